//! Convolution.

use super::window::Window;
use crate::attrs::Attrs;
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

/// `y = x * w + b` over one or two spatial axes: x `[N, C_in, …]`, w `[C_out, C_in / groups, …kernel]`, b `[C_out]` (optional).
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Channel groups; `groups == C_in` is a depthwise convolution.
    pub groups: usize,
    /// Strides, pads, dilations.
    pub window: Window,
}

impl Operator for Conv {
    const NAME: &'static str = "Conv";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let groups = usize::try_from(attrs.int("group", 1)?).unwrap_or(0);
        if groups == 0 {
            return Err(Error::attribute("attribute `group` must be at least 1"));
        }
        Ok(Self { groups, window: Window::from_attrs(attrs)? })
    }

    fn attrs(&self) -> Attrs {
        let groups = i64::try_from(self.groups).unwrap_or(i64::MAX);
        self.window.add_attrs(Attrs::new().with_int("group", groups))
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let (x, w) = (inputs.get(0)?, inputs.get(1)?);
        if x.len() < 3 || x.len() > 4 || x.len() != w.len() {
            return Err(Error::shape(format!(
                "input is {x:?} and weight {w:?}: convolutions of one and two spatial axes are supported"
            )));
        }
        if x[1] % self.groups != 0 || w[0] % self.groups != 0 || w[1] != x[1] / self.groups {
            return Err(Error::shape(format!(
                "weight is {w:?} but input has {} channels in {} groups",
                x[1], self.groups
            )));
        }
        if let Some(b) = inputs.opt(2)
            && b != [w[0]]
        {
            return Err(Error::shape(format!("bias is {b:?} but there are {} output channels", w[0])));
        }
        let mut out = vec![x[0], w[0]];
        out.extend(self.window.output(&x[2..], &w[2..])?);
        Ok(vec![out])
    }

    fn macs(&self, inputs: InputShapes<'_>, outputs: &[Shape]) -> u64 {
        let Ok(w) = inputs.get(1) else { return 0 };
        product(&outputs[0]).saturating_mul(product(&w[1..]))
    }
}

/// Product of dimensions as a count that saturates instead of wrapping.
pub(super) fn product(dims: &[usize]) -> u64 {
    dims.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64))
}
