//! Fake quantization as the papers have it, one element at a time; the step's gradient is summed in f64.

use crate::fakequant::{Before, Grids, Inside};
use crate::numerics::{dequantize, quantize};

/// See [`crate::fakequant::forward`].
pub fn forward(x: &[f32], grids: &Grids<'_>, before: Before, out: &mut [f32]) {
    let row = (x.len() / grids.scale.len()).max(1);
    for (i, (out, &x)) in out.iter_mut().zip(x).enumerate() {
        let (scale, zero_point, (q_min, q_max)) = (grids.scale[i / row], grids.zero_point[i / row], grids.range);
        *out = dequantize(quantize(input(x, before), scale, zero_point, q_min, q_max), scale, zero_point);
    }
}

/// See [`crate::fakequant::backward`].
pub fn backward(
    x: &[f32],
    grids: &Grids<'_>,
    (before, inside): (Before, Inside),
    grad_out: &[f32],
    grad_x: &mut [f32],
    grad_scale: &mut [f32],
) {
    let row = (x.len() / grids.scale.len()).max(1);
    let mut sums = vec![0.0_f64; grad_scale.len()];
    for (i, &x) in x.iter().enumerate() {
        let zero_point = grids.zero_point[i / row];
        let (low, high) = ((grids.range.0 - zero_point) as f32, (grids.range.1 - zero_point) as f32);
        let v = input(x, before) / grids.scale[i / row];
        // ∂x̂/∂x and ∂x̂/∂s.
        let (to_x, to_scale) = if v.is_nan() {
            (0.0, 0.0)
        } else if v <= low {
            (0.0, low)
        } else if v >= high {
            (0.0, high)
        } else {
            let error = if inside == Inside::Error { v.round_ties_even() - v } else { 0.0 };
            (if before == Before::Relu && x <= 0.0 { 0.0 } else { 1.0 }, error)
        };
        grad_x[i] = grad_out[i] * to_x;
        sums[i / row] += f64::from(grad_out[i] * to_scale);
    }
    grad_scale.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
}

fn input(x: f32, before: Before) -> f32 {
    if before == Before::Identity || x > 0.0 { x } else { 0.0 }
}
