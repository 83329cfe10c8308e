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

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::method::Progress;
use crate::param::{Group, Param};

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

/// How gates of activations are learned: what a method says of its own gates, as far as it concerns other tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gating {
    /// How shares are learned.
    pub estimator: Estimator,
    /// τ of the Gumbel estimators.
    pub tau: f64,
    /// How widths follow each other.
    pub chain: Chain,
    /// Whether all tensors have one width.
    pub is_shared: bool,
    /// Whether widths start at the most bits, or half a bit above the target.
    pub starts_wide: bool,
    /// λ, strength of the budget term.
    pub lambda: f64,
    /// Learning rate of shares, relative to that of float weights.
    pub rate: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Gating {
    /// Before a step: rates and draws of gates. Draws depend on the step's number and the `stream` (one for each kind of tensor) alone,
    /// so that a resumed run draws the same.
    pub fn begin_step<'a>(&self, gates: impl Iterator<Item = &'a mut Gate>, at: &Progress, stream: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream << 63 | at.step);
        for gate in gates {
            gate.share.rate = vec![(self.rate * hurry(at.steps)) as f32];
            let u = (f64::from(rng.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
            gate.set_draw(self.estimator.draw(gate.share(), u, self.tau));
        }
    }
}

/// One width for all: every open gate gets the mean of their gradients.
pub fn share_gradients<'a>(gates: impl Iterator<Item = &'a mut Gate>) {
    let mut open: Vec<&mut Gate> = gates.filter(|gate| gate.is_open()).collect();
    let sum: f32 = open.iter().flat_map(|gate| &gate.share.grad).sum();
    let mean = sum / open.len().max(1) as f32;
    open.iter_mut().for_each(|gate| gate.share.grad.fill(mean));
}

/// Steps of a search for which the defaults of rates and strengths are meant.
const SEARCH_STEPS: f64 = 2500.0;

/// Factor on the rates of gates in a search of so many steps: they must be able to cross from one width to the next several times
/// however short it is.
pub fn hurry(steps: u64) -> f64 {
    (SEARCH_STEPS / steps.max(1) as f64).clamp(1.0, 50.0)
}

/// How a gate gets from one pair of widths to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Chain {
    /// A share above 1 or below 0 carries over into the next pair: the width is one real number.
    Both,
    /// A share below the threshold makes the narrower width the wider one of the next pair, with this share. There is no way
    /// back.
    Down {
        /// Where a width is given up.
        threshold: f32,
        /// Share that the next pair starts with.
        initial: f32,
    },
}

/// What became of a pair of widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// It is the same.
    Stayed,
    /// The wider width is the narrower one now.
    Up,
    /// The narrower width is the wider one now.
    Down,
}

/// A width on its way: two neighbouring ones, the share of the wider, and what this step does with it. Widths are whole numbers
/// of whatever the tensor counts: planes of weights, bits of activations.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The wider width.
    upper: usize,
    floor: usize,
    most: usize,
    /// β, one number.
    pub share: Param,
    draw: Draw,
}

impl Gate {
    /// A gate at `width`, a number between `floor` (at least 1) and `most`; its fraction is the share.
    pub fn new(width: f64, floor: usize, most: usize) -> Self {
        let floor = floor.clamp(1, most.max(1));
        let width = width.clamp(floor as f64, most as f64);
        let upper = (width.ceil() as usize).clamp((floor + 1).min(most), most);
        let share = if upper == floor { 1.0 } else { (width - (upper - 1) as f64) as f32 };
        let share = Param::new("share", Group::Gate, vec![share]);
        let mut gate = Self { upper, floor, most, share, draw: Draw { mix: 1.0, slope: 1.0 } };
        gate.settle();
        gate
    }

    /// The share of the wider width.
    pub fn share(&self) -> f32 {
        self.share.value.first().copied().unwrap_or(1.0)
    }

    /// The wider width.
    pub fn upper(&self) -> usize {
        self.upper
    }

    /// Both widths; equal ones where the width is the fewest possible or given.
    pub fn pair(&self) -> (usize, usize) {
        if self.is_open() { (self.upper - 1, self.upper) } else { (self.upper, self.upper) }
    }

    /// Whether there is a narrower width to go to.
    pub fn is_open(&self) -> bool {
        self.upper > self.floor
    }

    /// The width as a real number.
    pub fn width(&self) -> f64 {
        if self.is_open() { (self.upper - 1) as f64 + f64::from(self.share()) } else { self.upper as f64 }
    }

    /// The whole width that the real one is nearest to.
    pub fn nearest(&self) -> usize {
        if self.is_open() && self.share() < 0.5 { self.upper - 1 } else { self.upper }
    }

    /// The fewest width, the most, and the whole one that is nearest.
    pub fn bounds_and_nearest(&self) -> (usize, usize, usize) {
        (self.floor, self.most, self.nearest())
    }

    /// What the next passes do.
    pub fn draw(&self) -> Draw {
        self.draw
    }

    /// Share of the wider width in a pass: what was drawn, or all or nothing where the width that would be deployed is asked for.
    pub fn mix(&self, is_hard: bool) -> f32 {
        match (self.is_open(), is_hard) {
            (false, _) => 1.0,
            (true, true) => f32::from(self.share() >= 0.5),
            (true, false) => self.draw.mix,
        }
    }

    /// Sets what the next passes do; a gate without a narrower width takes its only one.
    pub fn set_draw(&mut self, draw: Draw) {
        self.draw = if self.is_open() { draw } else { Draw { mix: 1.0, slope: 0.0 } };
    }

    /// Adds to the gradient of the share.
    pub fn push(&mut self, by: f64) {
        if self.is_open() {
            self.share.grad.iter_mut().for_each(|g| *g += by as f32);
        }
    }

    /// Keeps the share in its range, and moves to the next pair where the chain says so.
    pub fn walk(&mut self, chain: Chain) -> Walk {
        if !self.is_open() {
            self.settle();
            return Walk::Stayed;
        }
        let share = self.share();
        let (walk, share) = match chain {
            Chain::Both if share > 1.0 && self.upper < self.most => (Walk::Up, (share - 1.0).min(1.0)),
            Chain::Both if share < 0.0 && self.upper - 1 > self.floor => (Walk::Down, (share + 1.0).max(0.0)),
            Chain::Down { threshold, initial } if share < threshold => (Walk::Down, initial),
            _ => (Walk::Stayed, share.clamp(0.0, 1.0)),
        };
        match walk {
            Walk::Stayed => {}
            Walk::Up => self.upper += 1,
            Walk::Down => self.upper -= 1,
        }
        self.share.value.fill(share);
        if walk != Walk::Stayed {
            self.share.memory.clear();
        }
        self.settle();
        walk
    }

    /// Puts the wider width where a checkpoint says; the share is a parameter of its own.
    pub fn restore(&mut self, upper: usize) {
        self.upper = upper.clamp(self.floor, self.most);
        self.settle();
    }

    /// A width that is given, or the last, learns no share.
    fn settle(&mut self) {
        self.share.frozen = !self.is_open();
        if !self.is_open() {
            self.share.value.fill(1.0);
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
