//! Activation fake-quant with a learnable step, over slices: the kernels with one grid per tensor.

use bitsmith_kernels::fakequant::{self, Before, Grids};

use super::FakeQuant;
use crate::memory::{give, take};
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
    give(x);
    y
}

/// Writes the gradient of `x` and returns that of the step.
pub(super) fn backward(x: &[f32], dy: &[f32], dx: &mut [f32], step: f32, quant: &FakeQuant) -> f32 {
    let _time = profile::span("fake-quant backward");
    let mut dstep = [0.0];
    with_grids(step, quant, |grids| {
        fakequant::backward(x, grids, (Before::Identity, quant.inside), dy, dx, &mut dstep)
    });
    dstep[0] * quant.grad_scale
}

fn with_grids(step: f32, quant: &FakeQuant, run: impl FnOnce(&Grids<'_>)) {
    run(&Grids { scale: &[step], zero_point: &[0], range: (quant.low, quant.high) });
}
