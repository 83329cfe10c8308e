//! From an operator's attributes and shapes to the numbers that a kernel takes, checked.

use bitsmith_graph::ops::{Conv, Pad, PadMode, Window};
use bitsmith_kernels::conv::ConvShape;

use super::windows::Pool;
use crate::error::{Error, Kind};

/// The two spatial sizes; one axis alone is the width.
fn spatial(shape: &[usize]) -> Result<[usize; 2], Error> {
    match *shape {
        [w] => Ok([1, w]),
        [h, w] => Ok([h, w]),
        _ => Err(Error::new(Kind::Unsupported, format!("{} spatial axes: one and two are supported", shape.len()))),
    }
}

/// Kernel, stride, dilation, pads before, pads after.
type Numbers = ([usize; 2], [usize; 2], [usize; 2], [usize; 2], [usize; 2]);

fn window(window: &Window, kernel: &[usize], sizes: &[usize]) -> Result<Numbers, Error> {
    let axes = sizes.len();
    let mut out = (spatial(kernel)?, [1; 2], [1; 2], [0; 2], [0; 2]);
    for axis in 0..axes {
        let at = axis + 2 - axes;
        out.1[at] = window.stride(axis);
        out.2[at] = window.dilation(axis);
        (out.3[at], out.4[at]) = window.pad(axis, axes, sizes[axis], kernel[axis]);
    }
    Ok(out)
}

/// The geometry of a convolution of `x` with a weight of shape `w`.
pub(super) fn conv(op: &Conv, x: &[usize], w: &[usize]) -> Result<ConvShape, Error> {
    let (&[batch, c_in, ref sizes @ ..], &[c_out, _, ref kernel @ ..]) = (x, w) else {
        return Err(Error::new(Kind::Unsupported, format!("input {x:?} and weight {w:?} are no convolution")));
    };
    let [in_h, in_w] = spatial(sizes)?;
    let (kernel, stride, dilation, before, after) = window(&op.window, kernel, sizes)?;
    let pads = [before[0], before[1], after[0], after[1]];
    let shape = ConvShape { batch, in_h, in_w, c_in, c_out, kernel, stride, pads, dilation, groups: op.groups };
    shape.validate().map_err(|e| Error::new(Kind::Unsupported, e.to_string()))?;
    Ok(shape)
}

/// The geometry of a pooling from `x` to `y`.
pub(super) fn pool(kernel: &[usize], of: &Window, x: &[usize], y: &[usize]) -> Result<Pool, Error> {
    let (&[batch, channels, ref sizes @ ..], &[_, _, ref out @ ..]) = (x, y) else {
        return Err(Error::new(Kind::Unsupported, format!("input {x:?} has no spatial axes")));
    };
    let (kernel, stride, dilation, before, after) = window(of, kernel, sizes)?;
    Ok(Pool { batch, input: spatial(sizes)?, output: spatial(out)?, channels, kernel, stride, dilation, before, after })
}

/// Whether padding can find its elements.
pub(super) fn check_pad(op: &Pad, x: &[usize]) -> Result<(), Error> {
    let pads = op.per_axis(x.len())?;
    let needs = |size: usize, (before, after): (i64, i64)| match op.mode {
        PadMode::Constant => true,
        PadMode::Edge => size > 0,
        PadMode::Reflect => before.max(after) < size as i64,
    };
    match pads.iter().zip(x).all(|(&p, &size)| needs(size, p)) {
        true => Ok(()),
        false => {
            Err(Error::new(Kind::Unsupported, format!("pads {:?} reach beyond what {x:?} can be extended by", op.pads)))
        }
    }
}
