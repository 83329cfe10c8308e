//! Rounding rows of weights to an evenly spaced symmetric grid, and what that pretends backward.
//!
//! ```text
//! forward    ŵ = s · k,  k = round_half_even(clamp(w / s, −q, q))                  one s per row
//! backward   ∂ŵ/∂w = 1 where |w / s| ≤ q, else 0                                   straight through
//!            ∂ŵ/∂s = k − w/s inside, ±q outside                                    LSQ, eq. 3
//! ```

use bitsmith_kernels::numerics::{dequantize, quantize};

use crate::quantizer::Rows;

/// Smallest step that is kept: far below any useful one, far above the subnormal numbers that `freeze` refuses.
pub const SMALLEST_STEP: f32 = 1e-12;

/// Rounds `x` (in row order) to multiples of each row's step up to ±`q_max`.
pub fn fake_quantize(x: &[f32], steps: &[f32], q_max: i32, rows: &Rows, out: &mut [f32]) {
    for ((x, out), &step) in x.chunks(rows.row_len.max(1)).zip(out.chunks_mut(rows.row_len.max(1))).zip(steps) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = dequantize(quantize(x, step, 0, -q_max, q_max), step, 0);
        }
    }
}

/// Straight-through gradients of [`fake_quantize`]: adds ∂L/∂x to `grad_x` and `grad_scale` · ∂L/∂s to `grad_steps`.
#[allow(clippy::too_many_arguments)]
pub fn fake_quantize_backward(
    x: &[f32],
    steps: &[f32],
    q_max: i32,
    rows: &Rows,
    grad_out: &[f32],
    grad_scale: f32,
    grad_x: &mut [f32],
    grad_steps: &mut [f32],
) {
    let n = rows.row_len.max(1);
    let q = q_max as f32;
    let per_row = x.chunks(n).zip(grad_out.chunks(n)).zip(grad_x.chunks_mut(n)).zip(steps.iter().zip(grad_steps));
    for (((x, grad_out), grad_x), (&step, grad_step)) in per_row {
        let mut sum = 0f64;
        for ((&x, &g), grad_x) in x.iter().zip(grad_out).zip(grad_x) {
            let v = x / step;
            let slope = if v.abs() <= q {
                *grad_x += g;
                quantize(x, step, 0, -q_max, q_max) as f32 - v
            } else {
                q.copysign(v)
            };
            sum += f64::from(g * slope);
        }
        *grad_step += (sum * f64::from(grad_scale)) as f32;
    }
}

/// LSQ's factor on the gradient of a step that `count` elements share: 1/√(count · q_max).
pub fn lsq_grad_scale(count: usize, q_max: i32) -> f32 {
    (1.0 / ((count.max(1) as f64) * f64::from(q_max.max(1))).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_passes_gradients_by_hand() {
        let rows = Rows::along(0, &[2, 3]);
        let x = [0.24, -0.26, 9.0, 1.5, -2.5, 0.0];
        let (steps, mut out) = ([0.5, 1.0], [0.0; 6]);
        fake_quantize(&x, &steps, 3, &rows, &mut out);
        // 0.48 -> 0, -0.52 -> -1, 18 saturates at 3; 1.5 -> 2 and -2.5 -> -2 (half to even).
        assert_eq!(out, [0.0, -0.5, 1.5, 2.0, -2.0, 0.0]);
        let (mut gx, mut gs) = ([0.0; 6], [0.0; 2]);
        fake_quantize_backward(&x, &steps, 3, &rows, &[1.0, 1.0, 1.0, 1.0, 2.0, 1.0], 0.5, &mut gx, &mut gs);
        assert_eq!(gx, [1.0, 1.0, 0.0, 1.0, 2.0, 1.0]);
        // Row 0: (0 - 0.48) + (-1 + 0.52) + 3; row 1: (2 - 1.5) + 2 (-2 + 2.5) + 0.
        assert!((gs[0] - 0.5 * 2.04).abs() < 1e-6 && (gs[1] - 0.75).abs() < 1e-6, "{gs:?}");
    }
}
