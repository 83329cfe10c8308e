//! One real number between two neighbouring widths, and four ways to learn it.
//!
//! A layer stands between a narrower grid Q₀ and the next wider one Q₁; its share β in \[0, 1\] says how far it is on the way to
//! the wider. With G = ∂L/∂ŵ and D = Σ G (Q₁(w) − Q₀(w)), which is the linear estimate of what the wider grid changes in the loss:
//!
//! | [`Estimator`] | forward | ∂L/∂β | known from |
//! |---|---|---|---|
//! | `Interpolate` | (1 − β) Q₀ + β Q₁ | D, exact | FracBits (arXiv 2007.02017) |
//! | `Bernoulli` | Q₁ with probability β, else Q₀ | D | Quantum Mantissa (arXiv 2204.13666) |
//! | `Gumbel` | the same draw, y > ½ | D · y (1 − y) / (τ β (1 − β)) | SDQ (arXiv 2206.04459) |
//! | `GumbelSoft` | (1 − y) Q₀ + y Q₁ | the same, exact | its relaxation without straight-through |
//! | `Difference` | Q₁, always | L(Q₁) − L(Q₀), measured or D | AdaQAT (arXiv 2404.16876) |
//!
//! with y = σ((logit β + logit u) / τ) and u uniform: the logistic form of Gumbel-softmax over two choices, whose draw is 1 with
//! probability β at every τ.

use serde::{Deserialize, Serialize};

/// How a share is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The forward pass mixes both grids.
    Interpolate,
    /// The forward pass draws one of them.
    Bernoulli,
    /// It draws one by the Gumbel trick, whose relaxation gives the gradient.
    Gumbel,
    /// It mixes them as that relaxation says.
    GumbelSoft,
    /// It takes the wider one; the gradient is a difference of losses.
    Difference,
}

/// Shares stay this far from 0 and 1 where their logarithm is taken.
const EDGE: f64 = 1e-4;

/// What one step does with a gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Share of the wider grid in the forward pass.
    pub mix: f32,
    /// Factor on D in the gradient of the share.
    pub slope: f32,
}

impl Estimator {
    /// The draw for a share, with `u` uniform in (0, 1) and temperature `tau` (both matter to draws alone).
    pub fn draw(self, share: f32, u: f64, tau: f64) -> Draw {
        let beta = f64::from(share).clamp(EDGE, 1.0 - EDGE);
        let logit = |p: f64| (p / (1.0 - p)).ln();
        let relaxed = || {
            let u = u.clamp(1e-12, 1.0 - 1e-12);
            let y = 1.0 / (1.0 + (-(logit(beta) + logit(u)) / tau).exp());
            (y, y * (1.0 - y) / (tau * beta * (1.0 - beta)))
        };
        match self {
            Estimator::Interpolate => Draw { mix: share, slope: 1.0 },
            Estimator::Bernoulli => Draw { mix: f32::from(u < f64::from(share)), slope: 1.0 },
            Estimator::Gumbel => {
                let (y, slope) = relaxed();
                Draw { mix: f32::from(y > 0.5), slope: slope as f32 }
            }
            Estimator::GumbelSoft => {
                let (y, slope) = relaxed();
                Draw { mix: y as f32, slope: slope as f32 }
            }
            Estimator::Difference => Draw { mix: 1.0, slope: 1.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    #[test]
    fn draws_are_one_as_often_as_the_share_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
        let n = 100_000;
        for share in [0.01f32, 0.5, 0.99] {
            for estimator in [Estimator::Bernoulli, Estimator::Gumbel] {
                for tau in [0.1, 1.0, 5.0] {
                    let ones = (0..n).filter(|_| estimator.draw(share, uniform(), tau).mix == 1.0).count();
                    let (mean, p) = (ones as f64 / f64::from(n), f64::from(share));
                    let sigma = (p * (1.0 - p) / f64::from(n)).sqrt();
                    assert!((mean - p).abs() <= 3.5 * sigma, "{estimator:?} {share} {tau}: {mean}");
                }
            }
        }
    }

    #[test]
    fn the_relaxed_mix_has_the_slope_that_is_returned() {
        for tau in [0.5, 1.0, 2.0] {
            for (share, u) in [(0.3f64, 0.2), (0.7, 0.9), (0.5, 0.4)] {
                let soft = |p: f64| {
                    let logit = |p: f64| (p / (1.0 - p)).ln();
                    1.0 / (1.0 + (-(logit(p) + logit(u)) / tau).exp())
                };
                let h = 1e-6;
                let slope = (soft(share + h) - soft(share - h)) / (2.0 * h);
                let draw = Estimator::GumbelSoft.draw(share as f32, u, tau);
                assert!((f64::from(draw.slope) - slope).abs() < 1e-5 * slope.max(1.0), "{draw:?} {slope}");
                assert!((f64::from(draw.mix) - soft(share)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn shares_at_the_ends_are_safe() {
        for estimator in [
            Estimator::Interpolate,
            Estimator::Bernoulli,
            Estimator::Gumbel,
            Estimator::GumbelSoft,
            Estimator::Difference,
        ] {
            for share in [0.0, 1.0] {
                for u in [0.0, 0.5, 1.0] {
                    let draw = estimator.draw(share, u, 1.0);
                    assert!(draw.mix.is_finite() && draw.slope.is_finite(), "{estimator:?} {share} {u}: {draw:?}");
                }
            }
        }
    }
}
