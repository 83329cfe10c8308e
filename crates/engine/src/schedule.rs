//! Learning rates over a training run.

use serde::{Deserialize, Serialize};

/// The rate at every step: linear warm-up, then a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The rate that the warm-up reaches and the curve starts from.
    pub base: f32,
    /// Steps of the warm-up: step `i` of them has the rate `base · (i + 1) / warmup`.
    pub warmup: u64,
    /// Steps of the whole run, warm-up included.
    pub total: u64,
    /// What follows.
    pub curve: Curve,
}

/// The part of a [`Schedule`] after the warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Curve {
    /// `base` throughout.
    Constant,
    /// Half a cosine from `base` to `base · floor` (arXiv 1608.03983 without restarts).
    Cosine {
        /// The last rate as a share of the first.
        floor: f32,
    },
    /// Multiplied by `factor` at each of these shares (0 to 1) of the whole run.
    Step {
        /// Where, as shares of `total`.
        at: Vec<f32>,
        /// By how much.
        factor: f32,
    },
}

impl Schedule {
    /// The same rate throughout.
    pub fn constant(base: f32) -> Self {
        Self { base, warmup: 0, total: 0, curve: Curve::Constant }
    }

    /// Half a cosine down to zero.
    pub fn cosine(base: f32, warmup: u64, total: u64) -> Self {
        Self { base, warmup, total, curve: Curve::Cosine { floor: 0.0 } }
    }

    /// The rate of step `step`, counted from 0. Beyond `total` it stays where it ended.
    pub fn at(&self, step: u64) -> f32 {
        if step < self.warmup {
            return (f64::from(self.base) * (step + 1) as f64 / self.warmup as f64) as f32;
        }
        match &self.curve {
            Curve::Constant => self.base,
            Curve::Cosine { floor } => {
                let length = self.total.saturating_sub(self.warmup).max(1);
                let share = ((step - self.warmup) as f64 / length as f64).min(1.0);
                let floor = f64::from(*floor);
                let curve = floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
                (f64::from(self.base) * curve) as f32
            }
            Curve::Step { at, factor } => {
                let passed = at.iter().filter(|&&share| step as f64 >= f64::from(share) * self.total as f64).count();
                self.base * factor.powi(i32::try_from(passed).unwrap_or(i32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let cosine = Schedule::cosine(0.1, 5, 105);
        let steps =
            Schedule { curve: Curve::Step { at: vec![0.5, 0.75], factor: 0.1 }, ..Schedule::cosine(1.0, 0, 100) };
        for (schedule, step, rate) in [
            (&cosine, 0, 0.02),
            (&cosine, 4, 0.1),
            (&cosine, 5, 0.1),
            (&cosine, 55, 0.05),
            (&cosine, 105, 0.0),
            (&cosine, 1000, 0.0),
            (&steps, 49, 1.0),
            (&steps, 50, 0.1),
            (&steps, 99, 0.01),
            (&Schedule::constant(0.3), 7, 0.3),
        ] {
            let got = schedule.at(step);
            assert!((got - rate).abs() < 1e-6, "{schedule:?} at {step}: {got}, expected {rate}");
        }
    }
}
