//! Methods that learn a width as a real number between two neighbouring ones: SDQ, FracBits, AdaQAT. They are one gate
//! ([`crate::blocks::gate`]) with different estimators, starts and chains; a preset says which.
//!
//! ```text
//! search     L = task + λ · clamp(mean bits − target, −1, 1) · Σ_l (n_l / mean n) · bits_l(β_l) + λ_Q · Σ_l rounding error_l(β_l)
//! finetune   L = task + λ_E · bin regulariser                     widths fixed, weights and steps trained as LSQ does
//! ```
//!
//! Mean bits are those that a file stores, by size. Between the phases widths are made to fit the target
//! ([`crate::blocks::fit`]).

#[cfg(test)]
mod tests;
mod weight;

use serde::{Deserialize, Serialize};

pub use weight::PairWeight;

use crate::blocks::budget::Budget;
use crate::blocks::gate::{Chain, Draw, Estimator, Gating, share_gradients};
use crate::blocks::searched::{self, Searched, Standing, fix_all, list, read_state, restore_all};
use crate::blocks::widths::Widths;
use crate::error::Error;
use crate::method::{Method, Passes, Phase, Progress, Slot, Trial, WeightLayer};
use crate::options::Options;

/// What shares a width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Each layer has its own.
    Layer,
    /// All layers whose width is not given have one.
    Net,
}

/// Everything that presets differ in.
#[derive(Debug, Clone)]
pub struct FractionalOptions {
    /// Bounds of the search.
    pub widths: Widths,
    /// One step per output channel instead of one per layer.
    pub per_channel: bool,
    /// Share of the epochs spent searching.
    pub search: f64,
    /// Bits of a code at the start.
    pub start_bits: f64,
    /// How shares are learned.
    pub estimator: Estimator,
    /// τ of the Gumbel estimators.
    pub tau: f64,
    /// How widths follow each other.
    pub chain: Chain,
    /// What shares a width.
    pub sharing: Sharing,
    /// λ, strength of the budget term.
    pub lambda: f64,
    /// λ_Q, strength of the rounding error.
    pub error_weight: f64,
    /// Learning rate of shares, relative to that of float weights.
    pub gate_rate: f64,
    /// Changes of direction between two widths after which a shared width stays at the wider one; 0: never.
    pub freeze_after: usize,
    /// Whether widths are made to fit the target after the search.
    pub fit: bool,
    /// Seed of the draws.
    pub seed: u64,
}

/// A method of this family.
pub trait Preset: std::fmt::Debug + Send + 'static {
    /// Its name.
    const NAME: &'static str;
    /// One line.
    const SUMMARY: &'static str;
    /// λ_E, strength of the bin regulariser while finetuning.
    const BINS: f64 = 0.0;
    /// Its options.
    type Options: Options;
    /// What they mean.
    fn options(options: &Self::Options) -> FractionalOptions;
}

/// The quantizer of one tensor.
pub type FractionalWeight = Searched<PairWeight>;

/// The method.
#[derive(Debug)]
pub struct Fractional<P> {
    options: FractionalOptions,
    budget: Budget,
    /// The last direction in which the shared width crossed a whole number, and how often it changed.
    crossings: Crossings,
    preset: std::marker::PhantomData<fn() -> P>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Crossings {
    upper: usize,
    rising: Option<bool>,
    turns: usize,
}

impl<P: Preset> Fractional<P> {
    /// Mean stored bits with widths as real numbers, or rounded up where that is what the forward pass uses.
    fn mean_bits(&self, slots: &mut [Slot<FractionalWeight>]) -> f64 {
        let rounds_up = self.options.estimator == Estimator::Difference;
        let layer = |slot: &mut Slot<FractionalWeight>| {
            let price = self.budget.price(&slot.layer);
            let planes = slot.quantizer.planes();
            let cost = slot.quantizer.search().map_or(price.at(planes), |pair| {
                let (narrow, wide) = pair.gate.pair();
                let share = if rounds_up { 1.0 } else { f64::from(pair.gate.share()) };
                (1.0 - share) * price.at(narrow) + share * price.at(wide)
            });
            (price.size(), cost)
        };
        self.budget.mean_of(slots.iter_mut().map(layer))
    }

    fn searching(slots: &mut [Slot<FractionalWeight>]) -> impl Iterator<Item = &mut PairWeight> {
        slots.iter_mut().filter_map(|slot| slot.quantizer.search())
    }

    fn own_gating(&self) -> Gating {
        let o = &self.options;
        Gating {
            estimator: o.estimator,
            tau: o.tau,
            chain: o.chain,
            is_shared: o.sharing == Sharing::Net,
            starts_wide: o.estimator == Estimator::Difference || matches!(o.chain, Chain::Down { .. }),
            lambda: o.lambda,
            rate: o.gate_rate,
            seed: o.seed,
        }
    }

    /// Whether the shared width has turned often enough to stay.
    fn is_settled(&self) -> bool {
        self.options.freeze_after > 0 && self.crossings.turns >= self.options.freeze_after
    }

    fn count_turns(&mut self, slots: &mut [Slot<FractionalWeight>]) {
        let Some(upper) = Self::searching(slots).find(|p| !p.gate.share.frozen).map(|p| p.gate.pair().1) else {
            return;
        };
        let before = std::mem::replace(&mut self.crossings.upper, upper);
        if before != 0 && before != upper {
            let rising = upper > before;
            self.crossings.turns += usize::from(self.crossings.rising.is_some_and(|was| was != rising));
            self.crossings.rising = Some(rising);
        }
    }
}

impl<P: Preset> Method for Fractional<P> {
    const NAME: &'static str = P::NAME;
    const SUMMARY: &'static str = P::SUMMARY;
    const BINS: f64 = P::BINS;
    type Options = P::Options;
    type Weight = FractionalWeight;

    fn new(options: P::Options) -> Result<Self, Error> {
        let options = P::options(&options);
        options.widths.check()?;
        let bad = |detail: String| Err(Error::option(detail));
        if options.widths.floor_bits < 2 {
            return bad(format!(
                "floor_bits = {}: between two widths a layer cannot vanish; use 2 to 8",
                options.widths.floor_bits
            ));
        }
        if !(0.0..=1.0).contains(&options.search) {
            return bad(format!("search = {}: a share of the epochs is between 0 and 1", options.search));
        }
        if !(options.start_bits >= 2.0 && options.start_bits <= 8.0) {
            return bad(format!("start_bits = {}: 2 to 8", options.start_bits));
        }
        for (name, value) in [("tau", options.tau), ("lambda", options.lambda), ("gate_rate", options.gate_rate)] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(format!("{name} = {value}: must be a positive number"));
            }
        }
        if !(options.error_weight >= 0.0 && options.error_weight.is_finite()) {
            return bad(format!("error_weight = {}: must not be negative", options.error_weight));
        }
        if let Chain::Down { threshold, initial } = options.chain
            && !(threshold > 0.0 && threshold < initial && initial < 1.0)
        {
            return bad(format!("threshold = {threshold}, initial = {initial}: 0 < threshold < initial < 1"));
        }
        let budget = options.widths.budget();
        Ok(Self { options, budget, crossings: Crossings::default(), preset: std::marker::PhantomData })
    }

    fn phases(&self, epochs: usize) -> Vec<Phase> {
        searched::phases(epochs, self.options.search)
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<FractionalWeight, Error> {
        let o = &self.options;
        let per = layer.granularity(o.per_channel);
        let rows = layer.rows(o.per_channel);
        let (floor, given) = o.widths.floor(layer);
        let (width, most) = if given { (floor as f64, floor) } else { (o.start_bits - 1.0, o.widths.most) };
        let width = match o.chain {
            // The chain begins at the top of its first pair, or as near to it as its shares may be.
            Chain::Down { initial, .. } if !given => width.floor() - 1.0 + f64::from(initial),
            _ => width,
        };
        let pair = PairWeight::new(per, rows.clone(), init, width, (floor, most));
        Ok(Searched::new(per, rows, pair, (floor, given)))
    }

    fn begin(&mut self, slots: &mut [Slot<FractionalWeight>]) -> Result<(), Error> {
        self.options.widths.check_reachable(slots.iter().map(|slot| &slot.layer))
    }

    fn gating(&self) -> Option<Gating> {
        Some(self.own_gating())
    }

    fn begin_step(&mut self, slots: &mut [Slot<FractionalWeight>], at: &Progress) {
        self.own_gating().begin_step(Self::searching(slots).map(|pair| &mut pair.gate), at, 0);
    }

    fn step(
        &mut self,
        slots: &mut [Slot<FractionalWeight>],
        passes: &mut dyn Passes<FractionalWeight>,
    ) -> Result<f64, Error> {
        let measures = self.options.estimator == Estimator::Difference
            && self.options.sharing == Sharing::Net
            && Self::searching(slots).next().is_some()
            && !self.is_settled();
        if !measures {
            return passes.full(slots);
        }
        // AdaQAT: the loss with the narrower width, from one more forward pass.
        Self::searching(slots).for_each(|p| p.gate.set_draw(Draw { mix: 0.0, slope: 0.0 }));
        let narrow = passes.loss(slots)?;
        Self::searching(slots).for_each(|p| p.gate.set_draw(Draw { mix: 1.0, slope: 0.0 }));
        let wide = passes.full(slots)?;
        Self::searching(slots).for_each(|p| p.gate.push(wide - narrow));
        Ok(wide)
    }

    fn penalty(&mut self, slots: &mut [Slot<FractionalWeight>]) -> f64 {
        let o = self.options.clone();
        if Self::searching(slots).next().is_none() {
            return 0.0;
        }
        let excess = (self.mean_bits(slots) - self.budget.target).clamp(-1.0, 1.0);
        let budget = self.budget;
        let total: f64 = slots.iter().map(|s| budget.price(&s.layer).size()).sum();
        let mean = (total / slots.len().max(1) as f64).max(f64::MIN_POSITIVE);
        let mut value = 0.0;
        for slot in slots.iter_mut() {
            let size = budget.price(&slot.layer).per_bit(budget.count) / mean;
            let Some(pair) = slot.quantizer.search() else { continue };
            let (narrow, wide) = pair.gate.pair();
            if narrow == wide {
                continue;
            }
            let gap = budget.count.bits(wide) - budget.count.bits(narrow);
            let pull = o.lambda * excess * size * gap + o.error_weight * pair.error_gap();
            pair.gate.push(pull);
            value += pull * f64::from(pair.gate.share());
        }
        if o.sharing == Sharing::Net {
            share_gradients(Self::searching(slots).map(|pair| &mut pair.gate));
        }
        if self.is_settled() {
            Self::searching(slots).for_each(|p| p.gate.share.clear_grad());
        }
        value
    }

    fn after_update(&mut self, slots: &mut [Slot<FractionalWeight>]) {
        let settled = self.is_settled();
        for slot in slots.iter_mut() {
            let Some(pair) = slot.quantizer.search() else { continue };
            if settled && !pair.gate.share.frozen {
                pair.gate.share.value.fill(1.0);
            }
            pair.walk(self.options.chain);
        }
        if self.options.sharing == Sharing::Net {
            self.count_turns(slots);
        }
    }

    fn end_epoch(&mut self, slots: &mut [Slot<FractionalWeight>], _at: &Progress) -> Result<Vec<String>, Error> {
        if Self::searching(slots).next().is_none() {
            return Ok(vec![]);
        }
        let widths: Vec<String> = Self::searching(slots).map(|p| format!("{:.1}", p.gate.width() + 1.0)).collect();
        let settled = if self.is_settled() { "; the width has settled" } else { "" };
        Ok(vec![format!("{}, widths {}{settled}", self.budget.show(self.mean_bits(slots)), widths.join(" "))])
    }

    fn end_phase(
        &mut self,
        slots: &mut [Slot<FractionalWeight>],
        phase: usize,
        trial: &mut Trial<'_, FractionalWeight>,
    ) -> Result<Vec<String>, Error> {
        if phase > 0 {
            return Ok(vec![]);
        }
        if self.options.estimator == Estimator::Difference {
            // The wider width is what the forward pass has used throughout.
            Self::searching(slots).for_each(|p| p.gate.share.value.fill(1.0));
        }
        fix_all(slots, &self.budget, self.options.widths.most, self.options.fit, trial)
    }

    fn set_hard(&mut self, slots: &mut [Slot<FractionalWeight>], hard: bool) {
        Self::searching(slots).for_each(|pair| pair.show_hard = hard);
    }

    fn finish(&mut self, slots: &mut [Slot<FractionalWeight>]) -> Result<Vec<String>, Error> {
        Ok(vec![format!("{}: {}", self.budget.show(searched::mean_bits(slots, &self.budget)), list(slots))])
    }

    fn state(&self, slots: &[Slot<FractionalWeight>]) -> serde_json::Value {
        let layers: Vec<Standing> = slots.iter().map(|s| s.quantizer.standing()).collect();
        serde_json::to_value(State { layers, crossings: self.crossings }).unwrap_or_default()
    }

    fn restore(&mut self, slots: &mut [Slot<FractionalWeight>], state: &serde_json::Value) -> Result<(), Error> {
        let State { layers, crossings } = read_state(P::NAME, state)?;
        self.crossings = crossings;
        restore_all(slots, &layers)
    }
}

/// What a checkpoint holds besides parameters.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    layers: Vec<Standing>,
    crossings: Crossings,
}
