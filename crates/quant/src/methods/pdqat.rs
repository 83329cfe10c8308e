//! PD-QAT: the float network is trained under the constraint that rounding changes little; no gradient passes a rounding
//! (Hounie, Elenter, Ribeiro, *Neural Networks with Quantization Constraints*, ICASSP 2023, arXiv 2210.15623).
//!
//! ```text
//! min over w    E[loss(f(x), y)]
//! subject to    E[‖f_l(z, w − ŵ)‖²] ≤ ε_l · E[‖f_l(z, ŵ)‖²]     for each layer l; z: its input in the rounded network
//!               E[CE(softmax f(x), f̂(x))] ≤ ε                   f̂: the rounded network
//! primal step   w descends the loss plus Σ λ_l · share_l + λ · CE, with ŵ, z and f̂ as constants
//! dual step     λ ← max(0, λ + η · (mean of the constraint over the epoch − its bound)), at the end of each epoch
//! ```
//!
//! | symbol | field | default | published |
//! |---|---|---|---|
//! | ε_l | `layer_bound` | 1/255 of the output's energy | 1/255, of the squared difference itself |
//! | ε | `output_bound` | 0.1 | 0.1 |
//! | η | `dual_rate` | 1 | 0.01 |
//! | λ_l, λ at the start | 0, `output_start` | 0, 1 | 0, 1 |
//! | layers kept at `high_bits` | `high_layers` | 0 | the k largest λ_l |
//!
//! Where this differs from the published code: a layer is its convolution or product alone, without the normalisation behind it, and its
//! error is taken relative to its output, so that one bound fits all; weights are on a symmetric grid with the step of least squared error,
//! chosen anew after each epoch; gammas and betas are shared by both networks and learn from the float one, running statistics are the
//! rounded network's. Steps of activations stay as they were calibrated: nothing tells them a gradient.

use bitsmith_graph::{Granularity, QParams};
use serde::{Deserialize, Serialize};

use crate::blocks::bins::bin_penalty;
use crate::blocks::grid::fake_quantize;
use crate::blocks::range::Range;
use crate::blocks::searched::read_state;
use crate::error::{Error, Kind};
use crate::method::{Method, Multipliers, Part, Passes, Phase, Progress, Slot, Trial, WeightLayer};
use crate::methods::lsq::check_bits;
use crate::options::options;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

options! {
    /// Options of `pdqat`.
    pub struct PdQatOptions {
        /// Stored bits of every weight, sign included: 2 to 8.
        pub weight_bits: u8 = 4,
        /// Stored bits of the first and last layer; 0 means the same as the others.
        pub edge_bits: u8 = 8,
        /// One step per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Most that rounding may put into a layer's output, as a share of its energy.
        pub layer_bound: f64 = 1.0 / 255.0,
        /// Most that the rounded network's answers may differ: their cross entropy to the float network's.
        pub output_bound: f64 = 0.1,
        /// What an epoch adds to a multiplier for each unit by which its constraint is missed.
        pub dual_rate: f64 = 1.0,
        /// Multiplier of the answers' constraint at the start; those of layers start at 0.
        pub output_start: f64 = 1.0,
        /// Layers that keep more bits: those with the largest multipliers when the search ends.
        pub high_layers: usize = 0,
        /// Stored bits of those.
        pub high_bits: u8 = 8,
        /// Share of the epochs before that choice; of no effect without `high_layers`.
        pub search: f64 = 0.25,
    }
}

/// The method.
#[derive(Debug)]
pub struct PdQat {
    options: PdQatOptions,
    duals: Duals,
}

/// Multipliers, and what they learn from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Duals {
    layers: Vec<f64>,
    output: f64,
    /// Sums over the epoch so far, of as many steps.
    shares: Vec<f64>,
    answers: f64,
    steps: u64,
}

impl Duals {
    /// The dual step. Returns how many layers missed their bound, and the means of the largest share and of the answers' distance.
    fn ascend(&mut self, options: &PdQatOptions) -> (usize, f64, f64) {
        let n = self.steps.max(1) as f64;
        let raise = |multiplier: &mut f64, slack: f64| *multiplier = (*multiplier + options.dual_rate * slack).max(0.0);
        let (mut missed, mut largest) = (0, 0.0_f64);
        for (multiplier, sum) in self.layers.iter_mut().zip(&self.shares) {
            let share = sum / n;
            missed += usize::from(share > options.layer_bound);
            largest = largest.max(share);
            raise(multiplier, share - options.layer_bound);
        }
        let answers = self.answers / n;
        raise(&mut self.output, answers - options.output_bound);
        self.shares.fill(0.0);
        (self.answers, self.steps) = (0.0, 0);
        (missed, largest, answers)
    }
}

impl Method for PdQat {
    const NAME: &'static str = "pdqat";
    const SUMMARY: &'static str =
        "fixed-width weights, the float network trained under constraints on what rounding changes";
    type Options = PdQatOptions;
    type Weight = PdWeight;

    fn new(options: PdQatOptions) -> Result<Self, Error> {
        check_bits("weight_bits", options.weight_bits)?;
        check_bits("high_bits", options.high_bits)?;
        if options.edge_bits != 0 {
            check_bits("edge_bits", options.edge_bits)?;
        }
        for (name, value) in [
            ("layer_bound", options.layer_bound),
            ("output_bound", options.output_bound),
            ("dual_rate", options.dual_rate),
            ("output_start", options.output_start),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::option(format!("{name} = {value}: must be 0 or more")));
            }
        }
        if !(0.0..=1.0).contains(&options.search) {
            return Err(Error::option(format!("search = {}: must be a share of the epochs, 0 to 1", options.search)));
        }
        let duals = Duals { output: options.output_start, ..Duals::default() };
        Ok(Self { options, duals })
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<PdWeight, Error> {
        let is_edge = matches!(layer.part, Part::First | Part::Last);
        let bits = match self.options.edge_bits {
            edge if is_edge && edge != 0 => edge.max(self.options.weight_bits),
            _ => self.options.weight_bits,
        };
        let per = layer.granularity(self.options.per_channel);
        Ok(PdWeight::new(bits, per, layer.rows(self.options.per_channel), init))
    }

    fn begin(&mut self, slots: &mut [Slot<PdWeight>]) -> Result<(), Error> {
        self.duals.layers = vec![0.0; slots.len()];
        self.duals.shares = vec![0.0; slots.len()];
        Ok(())
    }

    fn phases(&self, epochs: usize) -> Vec<Phase> {
        if self.options.high_layers == 0 {
            return vec![Phase { name: "train", epochs, rate: 1.0 }];
        }
        let search = ((epochs as f64 * self.options.search).round() as usize).clamp(usize::from(epochs > 1), epochs);
        vec![
            Phase { name: "search", epochs: search, rate: 1.0 },
            Phase { name: "finetune", epochs: epochs - search, rate: 1.0 },
        ]
    }

    fn step(&mut self, slots: &mut [Slot<PdWeight>], passes: &mut dyn Passes<PdWeight>) -> Result<f64, Error> {
        let multipliers = Multipliers { layers: self.duals.layers.clone(), output: self.duals.output };
        let found = passes.constrained(slots, &multipliers)?;
        self.duals.shares.iter_mut().zip(&found.shares).for_each(|(sum, share)| *sum += share);
        self.duals.answers += found.output;
        self.duals.steps += 1;
        Ok(found.loss)
    }

    fn end_epoch(&mut self, slots: &mut [Slot<PdWeight>], _at: &Progress) -> Result<Vec<String>, Error> {
        let (missed, largest, answers) = self.duals.ascend(&self.options);
        slots.iter_mut().for_each(|slot| slot.quantizer.fit_steps());
        let multiplier = self.duals.layers.iter().copied().fold(0.0, f64::max);
        Ok(vec![format!(
            "rounding makes up to {:.2} % of a layer's output, {missed} of {} layers above {:.2} %; answers {answers:.3} apart; \
             multipliers up to {multiplier:.3}, of the answers {:.3}",
            100.0 * largest,
            slots.len(),
            100.0 * self.options.layer_bound,
            self.duals.output,
        )])
    }

    fn end_phase(
        &mut self,
        slots: &mut [Slot<PdWeight>],
        phase: usize,
        _trial: &mut Trial<'_, PdWeight>,
    ) -> Result<Vec<String>, Error> {
        if phase > 0 || self.options.high_layers == 0 {
            return Ok(vec![]);
        }
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by(|&a, &b| self.duals.layers[b].total_cmp(&self.duals.layers[a]));
        let mut chosen = vec![];
        for &index in order.iter().take(self.options.high_layers) {
            let Slot { layer, quantizer } = &mut slots[index];
            quantizer.widen(self.options.high_bits);
            chosen.push(format!("{} ({:.3})", layer.name, self.duals.layers[index]));
        }
        Ok(vec![format!(
            "{} bits for the layers of the largest multipliers: {}",
            self.options.high_bits,
            chosen.join(", ")
        )])
    }

    fn state(&self, slots: &[Slot<PdWeight>]) -> serde_json::Value {
        let bits = slots.iter().map(|s| s.quantizer.bits).collect();
        serde_json::to_value(Saved { bits, duals: self.duals.clone() }).unwrap_or_default()
    }

    fn restore(&mut self, slots: &mut [Slot<PdWeight>], state: &serde_json::Value) -> Result<(), Error> {
        let Saved { bits, duals } = read_state(Self::NAME, state)?;
        let fits = |n: usize| n == slots.len();
        if !fits(bits.len()) || !fits(duals.layers.len()) || !fits(duals.shares.len()) {
            let message = format!("the checkpoint describes {} layers but the model has {}", bits.len(), slots.len());
            return Err(Error::new(Kind::Checkpoint, message));
        }
        for (slot, bits) in slots.iter_mut().zip(bits) {
            check_bits("the checkpoint's bits", bits)?;
            slot.quantizer.bits = bits;
        }
        self.duals = duals;
        Ok(())
    }
}

/// What a checkpoint holds besides parameters.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    bits: Vec<u8>,
    duals: Duals,
}

/// The quantizer of one tensor. Gradients go to the float weights as they come.
#[derive(Debug, Clone, PartialEq)]
pub struct PdWeight {
    bits: u8,
    per: Granularity,
    rows: Rows,
    /// Float weights, in row order.
    latent: Param,
    /// One per row; fitted, not learned.
    steps: Param,
    buffer: Vec<f32>,
}

impl PdWeight {
    /// A quantizer of `bits` bits around these float weights; `per` and `rows` must describe the same granularity.
    pub fn new(bits: u8, per: Granularity, rows: Rows, init: &[f32]) -> Self {
        let mut latent = vec![0.0; init.len()];
        rows.gather(init, &mut latent);
        let mut steps = Param::new("steps", Group::Scale, vec![1.0; rows.rows]);
        steps.frozen = true;
        let latent = Param::new("latent", Group::Weight, latent);
        let mut this = Self { bits, per, rows, latent, steps, buffer: vec![0.0; init.len()] };
        this.fit_steps();
        this
    }

    fn q_max(&self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }

    /// Steps of the least squared error.
    fn fit_steps(&mut self) {
        let q_max = self.q_max();
        let rows = self.latent.value.chunks(self.rows.row_len.max(1));
        self.steps.value.iter_mut().zip(rows).for_each(|(step, row)| *step = Range::Mse.symmetric_step(row, q_max));
    }

    fn widen(&mut self, bits: u8) {
        self.bits = self.bits.max(bits);
        self.fit_steps();
    }
}

impl Quantizer for PdWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        fake_quantize(&self.latent.value, &self.steps.value, self.q_max(), &self.rows, &mut self.buffer);
        self.rows.scatter(&self.buffer, weights);
    }

    fn backward(&mut self, grad: &[f32]) {
        self.rows.gather(grad, &mut self.buffer);
        self.latent.grad.iter_mut().zip(&self.buffer).for_each(|(sum, g)| *sum += g);
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        self.rows.scatter(&self.latent.grad, grad);
        true
    }

    fn latent(&self, weights: &mut [f32]) -> bool {
        self.rows.scatter(&self.latent.value, weights);
        true
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.latent);
        f(&mut self.steps);
    }

    fn grid_steps(&self) -> Option<&[f32]> {
        Some(&self.steps.value)
    }

    fn bin_penalty(&mut self, strength: f64) -> f64 {
        let q_max = self.q_max();
        let Param { value, grad, .. } = &mut self.latent;
        bin_penalty(value, &self.steps.value, q_max, &self.rows, strength, grad)
    }

    fn bits(&self) -> f32 {
        f32::from(self.bits)
    }

    fn qparams(&self) -> Option<QParams> {
        Some(QParams::signed(self.bits, true, self.per, self.steps.value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_rise_while_bounds_are_missed_and_never_below_zero() {
        let options = PdQatOptions { layer_bound: 0.1, output_bound: 0.2, dual_rate: 2.0, ..Default::default() };
        let mut duals = Duals { layers: vec![0.0, 1.0], output: 0.3, shares: vec![0.6, 0.1], answers: 0.2, steps: 2 };
        assert_eq!(duals.ascend(&options), (1, 0.3, 0.1));
        // 2 · (0.3 − 0.1); 1 + 2 · (0.05 − 0.1); 0.3 + 2 · (0.1 − 0.2)
        for (found, wanted) in [(duals.layers[0], 0.4), (duals.layers[1], 0.9), (duals.output, 0.1)] {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
        assert_eq!((duals.shares.as_slice(), duals.answers, duals.steps), (&[0.0, 0.0][..], 0.0, 0));
        (duals.answers, duals.steps) = (0.0, 1);
        duals.ascend(&options);
        assert_eq!(duals.output, 0.0);
    }

    #[test]
    fn gradients_reach_float_weights_as_they_come() {
        let init: Vec<f32> = (0..12).map(|i| (i as f32 - 5.5) * 0.1).collect();
        let mut q = PdWeight::new(2, Granularity::PerChannel { axis: 1 }, Rows::along(1, &[4, 3]), &init);
        let grad: Vec<f32> = (0..12).map(|i| i as f32).collect();
        q.backward(&grad);
        q.backward(&grad);
        let mut found = vec![0.0; 12];
        assert!(q.latent_gradient(&mut found));
        assert!(found.iter().zip(&grad).all(|(found, g)| *found == 2.0 * g), "{found:?}");
        let mut latent = vec![0.0; 12];
        assert!(q.latent(&mut latent));
        assert_eq!(latent, init);
    }

    #[test]
    fn impossible_options_are_refused() {
        let error = |options: PdQatOptions| PdQat::new(options).unwrap_err().to_string();
        assert!(error(PdQatOptions { weight_bits: 1, ..Default::default() }).starts_with("weight_bits = 1"));
        assert!(error(PdQatOptions { high_bits: 9, ..Default::default() }).starts_with("high_bits = 9"));
        assert!(error(PdQatOptions { dual_rate: -1.0, ..Default::default() }).starts_with("dual_rate = -1"));
        assert!(error(PdQatOptions { search: 2.0, ..Default::default() }).starts_with("search = 2"));
    }
}
