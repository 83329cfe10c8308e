//! The bin regulariser: draws latent weights to the values they are rounded to, so that rounding loses less.
//!
//! ```text
//! v = clamp(w / s, −q, q),  bin k = { i : round(v_i) = k },  unit = 1 / (2q)          positions as shares of the grid's range
//! R = Σ_k unit² · [ (mean_k v − k)² + Var_k(v) ]                                      Var unbiased; empty bins count 0
//! ∂R/∂w_i = unit² · [ 2 (mean_k − k) / n_k + 2 (v_i − mean_k) / (n_k − 1) ] / s        bins as they are; 0 where w is clipped
//! ```
//!
//! Han et al., "Improving low-precision network quantization via bin regularization" (ICCV 2021); SDQ (arXiv 2206.04459, Eq. 10)
//! weighs it by 0.1 in its second phase. One pass counts and sums, one writes gradients: no pass for each bin.

use bitsmith_kernels::numerics::quantize;

use crate::quantizer::Rows;

/// Adds `strength` · ∂R/∂w to `grad` and returns `strength` · R. Weights and gradients are in row order, one step per row; a
/// bin holds the weights of all rows with its code.
pub fn bin_penalty(w: &[f32], steps: &[f32], q_max: i32, rows: &Rows, strength: f64, grad: &mut [f32]) -> f64 {
    if q_max < 1 {
        return 0.0;
    }
    let (row, bins) = (rows.row_len.max(1), 2 * q_max as usize + 1);
    let limit = f64::from(q_max);
    let (mut count, mut sum, mut square) = (vec![0f64; bins], vec![0f64; bins], vec![0f64; bins]);
    // Deviations from the bin's own value: small numbers, whose squares lose nothing.
    let place = |i: usize| {
        let step = steps[i / row];
        let code = quantize(w[i], step, 0, -q_max, q_max);
        let v = f64::from(w[i]) / f64::from(step);
        ((code + q_max) as usize, v.clamp(-limit, limit) - f64::from(code), v.abs() <= limit)
    };
    for i in 0..w.len() {
        let (bin, off, _) = place(i);
        count[bin] += 1.0;
        sum[bin] += off;
        square[bin] += off * off;
    }
    let unit = 1.0 / (2.0 * limit);
    let scale = strength * unit * unit;
    let mut value = 0.0;
    for bin in (0..bins).filter(|&b| count[b] > 0.0) {
        let mean = sum[bin] / count[bin];
        let variance = if count[bin] > 1.0 { (square[bin] - mean * sum[bin]) / (count[bin] - 1.0) } else { 0.0 };
        value += mean * mean + variance.max(0.0);
    }
    for (i, grad) in grad.iter_mut().enumerate() {
        let (bin, off, inside) = place(i);
        if inside {
            let mean = sum[bin] / count[bin];
            let spread = if count[bin] > 1.0 { 2.0 * (off - mean) / (count[bin] - 1.0) } else { 0.0 };
            *grad += (scale * (2.0 * mean / count[bin] + spread) / f64::from(steps[i / row])) as f32;
        }
    }
    scale * value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.9).collect()
    }

    /// Bin by bin, as the formula reads.
    fn naive(w: &[f64], step: f64, q: i32, frozen: &[i32]) -> f64 {
        (-q..=q)
            .map(|k| {
                let v: Vec<f64> = w.iter().zip(frozen).filter(|(_, c)| **c == k).map(|(w, _)| w / step).collect();
                if v.is_empty() {
                    return 0.0;
                }
                let mean = v.iter().sum::<f64>() / v.len() as f64;
                let spread: f64 = v.iter().map(|v| (v - mean).powi(2)).sum();
                (mean - f64::from(k)).powi(2) + if v.len() > 1 { spread / (v.len() - 1) as f64 } else { 0.0 }
            })
            .sum::<f64>()
            / f64::from(2 * q).powi(2)
    }

    #[test]
    fn one_pass_is_the_naive_sum_and_its_gradient_is_right() {
        for q in [1, 3, 15] {
            let w = noise(60);
            let step = 1.0 / q as f32;
            let rows = Rows::one(w.len());
            let codes: Vec<i32> = w.iter().map(|&x| quantize(x, step, 0, -q, q)).collect();
            let mut grad = vec![0.0; w.len()];
            let value = bin_penalty(&w, &[step], q, &rows, 0.5, &mut grad);
            let wide: Vec<f64> = w.iter().map(|&x| x.into()).collect();
            let want = 0.5 * naive(&wide, step.into(), q, &codes);
            assert!((value - want).abs() <= 1e-9 * want.max(1e-3), "{value} {want}");
            for i in [0, 7, 31, 59] {
                let h = 1e-5;
                let moved = |by: f64| {
                    let mut x = wide.clone();
                    x[i] += by;
                    0.5 * naive(&x, step.into(), q, &codes)
                };
                let slope = (moved(h) - moved(-h)) / (2.0 * h);
                assert!((f64::from(grad[i]) - slope).abs() < 1e-6 + 1e-4 * slope.abs(), "{i}: {} {slope}", grad[i]);
            }
        }
    }

    #[test]
    fn it_is_zero_exactly_on_the_grid_and_the_top_bin_counts() {
        let rows = Rows::along(0, &[2, 4]);
        let steps = [0.5, 0.25];
        let on_grid = [0.5, -1.5, 0.0, 1.5, 0.75, -0.75, 0.25, 0.0];
        let mut grad = [0.0; 8];
        assert_eq!(bin_penalty(&on_grid, &steps, 3, &rows, 1.0, &mut grad), 0.0);
        assert_eq!(grad, [0.0; 8]);
        let mut off = on_grid;
        off[3] = 1.4;
        assert!(bin_penalty(&off, &steps, 3, &rows, 1.0, &mut grad) > 0.0 && grad[3] != 0.0);
        // Permuting weights within a row permutes gradients and keeps the value; one weight alone is safe.
        let (mut a, mut b) = ([0.0; 3], [0.0; 3]);
        let one = Rows::one(3);
        let forward = bin_penalty(&[0.1, 0.4, -0.2], &[0.3], 1, &one, 1.0, &mut a);
        let back = bin_penalty(&[-0.2, 0.4, 0.1], &[0.3], 1, &one, 1.0, &mut b);
        assert!((forward - back).abs() < 1e-15 && (a[0] - b[2]).abs() < 1e-9);
        assert!(bin_penalty(&[0.1], &[0.3], 1, &Rows::one(1), 1.0, &mut [0.0]).is_finite());
        assert_eq!(bin_penalty(&[0.1], &[0.3], 0, &Rows::one(1), 1.0, &mut [0.0]), 0.0);
    }
}
