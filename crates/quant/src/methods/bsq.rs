//! BSQ: bit-level sparsity (Yang et al., ICLR 2021, arXiv 2102.10462).
//!
//! ```text
//! v = Σ_b e_b (P_b − Q_b),   W = s · round(clip(v, −1, 1) · (2^n − 1)) / (2^n − 1),   e_b = 2^(n−1−b) / (2^n − 1)
//! L = task + α · Σ_l (n_l · #w_l / Σ #w) · Σ_b √(10⁻⁸ + ‖P_b‖² + ‖Q_b‖²)                       eq. 5
//! ∂W/∂v = s, straight through rounding and clipping;  planes stay in [0, 2]
//! ```
//!
//! Every `interval` epochs planes become exact bits again, one more where values overflow, and planes without any bit go, from
//! the top and from the bottom. Then widths are fixed and the weights finetuned.
//!
//! | symbol | option | default |
//! |---|---|---|
//! | P, Q, s | [`BsqPlanes`] | the float weights, rounded to n bits |
//! | n at the start | `planes` | 7 and a sign: 8 stored bits |
//! | α | `alpha` | 5e-3, while the mean is above the target |
//! | re-quantization | `interval` | 1 epoch (published: 100 of 350) |
//!
//! | published | here | because |
//! |---|---|---|
//! | α alone decides the size | the lasso stops at `target_bits`, and widths are then made to fit it | a budget is a promise |
//! | one scale per layer | per channel, unless `per_channel = false` | the grids of the other methods |
//! | planes learn at the rate of weights | at `bit_rate` over what a plane moves its weight | so that short runs move at all |
//! | the clamp to [0, 2] hits float layers and norms too | planes alone | an accident of the code |
//! | finetuning keeps a clipped float tensor and its scale | latent weights and steps of LSQ | the same for all that search |
//!
//! The first and last layers have no lasso while `edge_bits` gives their width.

mod planes;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use planes::BsqPlanes;

use crate::blocks::budget::{Budget, Count, Weighting};
use crate::blocks::searched::{self, Searched, Standing, fix_all, list, mean_bits, read_state, restore_all};
use crate::blocks::widths::Widths;
use crate::error::Error;
use crate::method::{Method, Phase, Progress, Slot, Trial, WeightLayer};
use crate::options::options;

options! {
    /// Options of `bsq`.
    pub struct BsqOptions {
        /// Mean stored bits per weight to reach, by size over all layers.
        pub target_bits: f64 = 3.0,
        /// How layers weigh in the mean: "size" (bytes), "macs" (bit operations) or "cost" (what a run's budget says).
        pub weighting: Weighting = Weighting::Size,
        /// Magnitude planes per weight at the start, 1 to 7.
        pub planes: usize = 7,
        /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
        pub edge_bits: u8 = 8,
        /// Fewest bits of any other layer's codes; 0 allows a layer to vanish.
        pub floor_bits: u8 = 2,
        /// One scale per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Share of the epochs spent searching.
        pub search: f64 = 0.5,
        /// Strength of the lasso while the mean is above the target.
        pub alpha: f64 = 5e-3,
        /// Weigh each layer's lasso by the bytes it takes, as published; otherwise all layers alike.
        pub reweigh: bool = true,
        /// Epochs between two re-quantizations.
        pub interval: usize = 1,
        /// Learning rate of planes, relative to that of float weights after allowing for how far a plane moves its weight.
        pub bit_rate: f64 = 1.0,
    }
}

/// The quantizer of one tensor.
pub type BsqWeight = Searched<BsqPlanes>;

/// The method.
#[derive(Debug)]
pub struct Bsq {
    options: BsqOptions,
    widths: Widths,
    budget: Budget,
}

impl Bsq {
    fn adjust(slots: &mut [Slot<BsqWeight>]) -> usize {
        slots.iter_mut().filter_map(|s| s.quantizer.search()).map(|q| usize::from(q.adjust())).sum()
    }
}

impl Method for Bsq {
    const NAME: &'static str = "bsq";
    const SUMMARY: &'static str = "learns bits by a group lasso that empties whole bit planes";
    type Options = BsqOptions;
    type Weight = BsqWeight;

    fn new(options: BsqOptions) -> Result<Self, Error> {
        if !(1..=7).contains(&options.planes) {
            return Err(Error::option(format!("planes = {}: 1 to 7 can be stored with a sign", options.planes)));
        }
        let widths = Widths {
            target_bits: options.target_bits,
            edge_bits: options.edge_bits,
            floor_bits: options.floor_bits,
            most: options.planes,
            weighting: options.weighting,
            count: Count::Stored,
        };
        widths.check()?;
        for (name, value) in [("alpha", options.alpha), ("bit_rate", options.bit_rate)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::option(format!("{name} = {value}: must not be negative")));
            }
        }
        if !(0.0..=1.0).contains(&options.search) {
            return Err(Error::option(format!(
                "search = {}: a share of the epochs is between 0 and 1",
                options.search
            )));
        }
        if options.interval == 0 {
            return Err(Error::option("interval = 0: 1 re-quantizes after every epoch"));
        }
        Ok(Self { widths, budget: widths.budget(), options })
    }

    fn phases(&self, epochs: usize) -> Vec<Phase> {
        searched::phases(epochs, self.options.search)
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<BsqWeight, Error> {
        let per = layer.granularity(self.options.per_channel);
        let rows = layer.rows(self.options.per_channel);
        let (floor, given) = self.widths.floor(layer);
        let planes = if given { floor } else { self.options.planes };
        let search = BsqPlanes::new(per, rows.clone(), init, planes, self.options.planes, given);
        Ok(Searched::new(per, rows, search, (floor, given)))
    }

    fn begin(&mut self, slots: &mut [Slot<BsqWeight>]) -> Result<(), Error> {
        self.widths.check_reachable(slots.iter().map(|slot| &slot.layer))
    }

    fn begin_step(&mut self, slots: &mut [Slot<BsqWeight>], _at: &Progress) {
        for q in slots.iter_mut().filter_map(|s| s.quantizer.search()) {
            let rate = (self.options.bit_rate / q.reach().max(1e-12)) as f32;
            q.positive.rate = vec![rate];
            q.negative.rate = vec![rate];
        }
    }

    fn penalty(&mut self, slots: &mut [Slot<BsqWeight>]) -> f64 {
        let excess = (mean_bits(slots, &self.budget) - self.budget.target).clamp(0.0, 1.0);
        let total: usize = slots.iter().map(|s| s.quantizer.len()).sum();
        let layers = slots.len();
        let (alpha, reweigh) = (self.options.alpha * excess, self.options.reweigh);
        let lasso = |slot: &mut Slot<BsqWeight>| {
            let q = slot.quantizer.search().filter(|q| !q.given)?;
            let share = match reweigh {
                true => q.weighs() as f64 / total.max(1) as f64,
                false => q.weighs() as f64 / (q.len() * layers).max(1) as f64,
            };
            Some(q.lasso(alpha * share))
        };
        if alpha == 0.0 { 0.0 } else { slots.iter_mut().filter_map(lasso).sum() }
    }

    fn after_update(&mut self, slots: &mut [Slot<BsqWeight>]) {
        slots.iter_mut().filter_map(|slot| slot.quantizer.search()).for_each(|planes| planes.clamp());
    }

    fn end_epoch(&mut self, slots: &mut [Slot<BsqWeight>], at: &Progress) -> Result<Vec<String>, Error> {
        if at.phase > 0 || !(at.epoch + 1).is_multiple_of(self.options.interval) {
            return Ok(vec![]);
        }
        let changed = Self::adjust(slots);
        let mean = self.budget.show(mean_bits(slots, &self.budget));
        Ok(vec![format!("re-quantized: {changed} layers changed, {mean}: {}", list(slots))])
    }

    fn end_phase(
        &mut self,
        slots: &mut [Slot<BsqWeight>],
        phase: usize,
        trial: &mut Trial<'_, BsqWeight>,
    ) -> Result<Vec<String>, Error> {
        if phase > 0 {
            return Ok(vec![]);
        }
        Self::adjust(slots);
        fix_all(slots, &self.budget, self.options.planes, true, trial)
    }

    fn finish(&mut self, slots: &mut [Slot<BsqWeight>]) -> Result<Vec<String>, Error> {
        Ok(vec![format!("{}: {}", self.budget.show(mean_bits(slots, &self.budget)), list(slots))])
    }

    fn state(&self, slots: &[Slot<BsqWeight>]) -> serde_json::Value {
        let layers = slots.iter().map(|s| s.quantizer.standing()).collect();
        serde_json::to_value(State { layers }).unwrap_or_default()
    }

    fn restore(&mut self, slots: &mut [Slot<BsqWeight>], state: &serde_json::Value) -> Result<(), Error> {
        let State { layers } = read_state(Self::NAME, state)?;
        restore_all(slots, &layers)
    }
}

/// What a checkpoint holds besides parameters.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    layers: Vec<Standing>,
}
