//! Activation fake-quant with a learnable step, over slices: the kernels with one grid per tensor.

use bitsmith_kernels::fakequant::{self, Before, Grids};
use bitsmith_kernels::threads::{for_each_part, map_parts, parts_for};

use super::{FakeQuant, Pair};
use crate::memory::take;
use crate::profile;

/// `y = step · round(clamp(x / step, low, high))`.
pub(super) fn round(x: &[f32], y: &mut [f32], step: f32, quant: &FakeQuant) {
    let _time = profile::span("fake-quant");
    with_grids(step, quant, |grids| fakequant::forward(x, grids, Before::Identity, y));
}

/// [`round`] of a buffer that is used up.
pub(super) fn rounded(x: Vec<f32>, step: f32, quant: &FakeQuant) -> Vec<f32> {
    let mut y = take(x.len());
    round(&x, &mut y, step, quant);
    y
}

/// Turns the gradient of the output into that of `x`, and returns that of the step.
pub(super) fn backward(x: &[f32], gradient: &mut [f32], step: f32, quant: &FakeQuant) -> f32 {
    let _time = profile::span("fake-quant backward");
    let mut dstep = [0.0];
    with_grids(step, quant, |grids| {
        fakequant::backward(x, grids, (Before::Identity, quant.inside), gradient, &mut dstep)
    });
    dstep[0] * quant.grad_scale
}

/// `y = mix · wide(x) + (1 - mix) · narrow(x)`.
pub(super) fn round_pair(x: &[f32], y: &mut [f32], steps: [f32; 2], mix: f32, pair: &Pair) {
    match mix {
        1.0 => round(x, y, steps[0], &pair.wide),
        0.0 => round(x, y, steps[1], &pair.narrow),
        _ => {
            let mut wide = take(x.len());
            round(x, &mut wide, steps[0], &pair.wide);
            round(x, y, steps[1], &pair.narrow);
            let _time = profile::span("fake-quant");
            for_each_part(y, 1, |at, y| {
                for (y, wide) in y.iter_mut().zip(&wide[at..]) {
                    *y = mix * wide + (1.0 - mix) * *y;
                }
            });
        }
    }
}

/// Writes the gradient of `x` and returns those of the wide step, the narrow step and `mix`.
pub(super) fn backward_pair(x: &[f32], dy: &[f32], dx: &mut [f32], steps: [f32; 2], mix: f32, pair: &Pair) -> [f32; 3] {
    let (mut wide, mut narrow) = (take(x.len()), take(x.len()));
    round(x, &mut wide, steps[0], &pair.wide);
    round(x, &mut narrow, steps[1], &pair.narrow);
    let dmix: f64 = map_parts(x.len(), parts_for(x.len()), |part| {
        let grids = wide[part.clone()].iter().zip(&narrow[part.clone()]);
        dy[part].iter().zip(grids).map(|(dy, (wide, narrow))| f64::from(dy * (wide - narrow))).sum::<f64>()
    })
    .into_iter()
    .sum();
    // The roundings are read no more: their room is that of the second gradient.
    dx.copy_from_slice(dy);
    wide.copy_from_slice(dy);
    let dwide = mix * backward(x, dx, steps[0], &pair.wide);
    let dnarrow = (1.0 - mix) * backward(x, &mut wide, steps[1], &pair.narrow);
    for_each_part(dx, 1, |at, dx| {
        for (dx, narrow) in dx.iter_mut().zip(&wide[at..]) {
            *dx = mix * *dx + (1.0 - mix) * narrow;
        }
    });
    [dwide, dnarrow, dmix as f32]
}

fn with_grids(step: f32, quant: &FakeQuant, run: impl FnOnce(&Grids<'_>)) {
    run(&Grids { scale: &[step], zero_point: &[0], range: (quant.low, quant.high) });
}
