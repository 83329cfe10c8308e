//! Choosing the range of a grid from values: the whole range, a percentile of it, or the least squared error.

use bitsmith_kernels::numerics::{min_max, percentile_range, scale_from_range};
use serde::{Deserialize, Serialize};

use super::grid::SMALLEST_STEP;

/// How a range is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Range {
    /// Everything seen fits: no clipping, coarse steps if there are outliers.
    MinMax,
    /// What lies in this central fraction of the values fits (0.5 to 1), the tails are clipped.
    Percentile(f64),
    /// The step with the least squared rounding and clipping error.
    #[default]
    Mse,
}

/// Candidate steps that [`Range::Mse`] tries, as fractions of the step that covers everything.
const CANDIDATES: usize = 64;

impl Range {
    /// The step of a symmetric grid with codes −q_max..=q_max for these values. All-zero input gives 1.
    pub fn symmetric_step(self, values: &[f32], q_max: i32) -> f32 {
        let (low, high) = match self {
            Range::Percentile(fraction) => percentile_range(values, fraction),
            _ => min_max(values),
        };
        let widest = low.abs().max(high.abs()) / q_max.max(1) as f32;
        if widest < SMALLEST_STEP {
            return 1.0;
        }
        match self {
            Range::Mse => best_step(values, widest, -q_max, q_max),
            _ => widest,
        }
    }

    /// The step and zero point of an activation grid of `bits` bits. `symmetric` keeps the zero point at code 0.
    pub fn activation(self, values: &[f32], bits: u8, signed: bool, symmetric: bool) -> (f32, i32) {
        let (low, high) = match self {
            Range::Percentile(fraction) => percentile_range(values, fraction),
            _ => min_max(values),
        };
        if !symmetric {
            return scale_from_range(low, high, bits, signed, false);
        }
        let (q_min, q_max) = bitsmith_kernels::numerics::code_range(bits, signed, false);
        let widest = (high / q_max.max(1) as f32).max(low / q_min.min(-1) as f32);
        if widest < SMALLEST_STEP {
            return (1.0, 0);
        }
        match self {
            Range::Mse => (best_step(values, widest, q_min, q_max), 0),
            _ => (widest, 0),
        }
    }
}

/// The fraction of `widest` with the least squared error; the widest wins a tie.
fn best_step(values: &[f32], widest: f32, q_min: i32, q_max: i32) -> f32 {
    let (mut best, mut least) = (widest, f64::INFINITY);
    for candidate in (1..=CANDIDATES).rev() {
        // From 1 down to about 0.06: two-bit weights want less than a third of the range.
        let step = widest * (candidate as f32 / CANDIDATES as f32).max(0.06);
        let error = squared_error(values, step, q_min, q_max, least);
        if error < least {
            (best, least) = (step, error);
        }
    }
    best
}

/// Σ (round(x/s)·s − x)². Gives up once it exceeds `limit`.
fn squared_error(values: &[f32], step: f32, q_min: i32, q_max: i32, limit: f64) -> f64 {
    let (low, high) = (q_min as f32, q_max as f32);
    let mut total = 0f64;
    for part in values.chunks(256) {
        let mut sum = 0f32;
        for &x in part {
            let x = if x.is_finite() { x } else { 0.0 };
            // A choice between candidate steps, not the rounding of anything that is stored.
            let error = (x / step).clamp(low, high).round_ties_even() * step - x;
            sum += error * error;
        }
        total += f64::from(sum);
        if total >= limit {
            return f64::INFINITY;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_max_covers_and_mse_clips() {
        let mut values: Vec<f32> = (0..1000).map(|i| ((i * 37 % 1000) as f32 / 500.0 - 1.0) * 0.1).collect();
        values.push(1.0);
        assert_eq!(Range::MinMax.symmetric_step(&values, 7), 1.0 / 7.0);
        let step = Range::Mse.symmetric_step(&values, 7);
        assert!(step < 0.06, "{step}: one outlier must not decide");
        assert!((Range::Percentile(0.99).symmetric_step(&values, 1) - 0.1).abs() < 3e-3);
        assert_eq!(Range::Mse.symmetric_step(&[0.0; 4], 7), 1.0);
        assert_eq!(Range::Mse.symmetric_step(&[], 7), 1.0);
        assert!(Range::Mse.symmetric_step(&[f32::NAN, 1.0], 1) > 0.0);
    }

    #[test]
    fn activation_grids_keep_zero() {
        let values = [0.0, 1.0, 2.0, 3.0];
        assert_eq!(Range::MinMax.activation(&values, 2, false, true), (1.0, 0));
        assert_eq!(Range::Mse.activation(&values, 2, false, true).1, 0);
        assert_eq!(Range::MinMax.activation(&[-1.0, 3.0], 2, false, false), (4.0 / 3.0, 1));
        assert_eq!(Range::MinMax.activation(&[-2.0, 1.0], 2, true, true), (1.0, 0));
        assert_eq!(Range::MinMax.activation(&[], 8, false, true), (1.0, 0));
    }
}
