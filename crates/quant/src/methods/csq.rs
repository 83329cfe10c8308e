//! CSQ: mixed precision by bi-level continuous sparsification (Xiao et al., DAC 2023, arXiv 2212.02770).
//!
//! Every weight is made of bit planes behind steep sigmoids, every layer owns one gate per plane, and one temperature
//! drives bits and gates towards 0 and 1 without a straight-through estimator.
//!
//! ```text
//! W = s · Σ_b m_b e_b (σ(βP_b) − σ(βQ_b)),   m_b = σ(βM_b),   e_b = 2^(N−1−b) / (2^N − 1)
//! L = CE + λ · ΔS · Σ_layers Σ_b m_b,        ΔS = (mean bits − target) / N      prunes above the target, grows below
//! ```
//!
//! | symbol | field | default |
//! |---|---|---|
//! | N | `planes` | 7 and a sign: 8 stored bits |
//! | P, Q | [`CsqWeight`] `positive`, `negative` | ±`logit`: bits of the rounded float weight |
//! | M | `masks` | `mask_logit`: all open |
//! | s | `scale` | largest magnitude of each output channel |
//! | β | `temperature`, one for all layers | `search_start` → `search_end`, then `finetune_start` → `finetune_end` |
//! | λ | `lambda` | 0.3 |
//! | T | `target_bits` | stored bits: planes that are on, and one for the sign; 1.6 for a ternary layer |
//!
//! Three phases: *search* (gates and bits soft), *finetune* (the scheme frozen, temperature rewound, bits soft) and *polish* (all
//! bits decided; scales and batch norms settle). Between search and finetune the scheme is made to fit the budget exactly.
//!
//! Where this differs from the published code (`parity = "published-code"` restores its choices), and why:
//!
//! | published | here | because |
//! |---|---|---|
//! | e_b are trained and decay | constant powers of two (in parity too) | else weights lie on no integer grid |
//! | logits decay | they do not | decay pulls every bit back to undecided |
//! | bits stay soft for ever | hardened exactly, then polished | only hard bits can be stored |
//! | each layer counts alike, sign free | by size, sign included | that is what the file pays |
//! | penalty on every plane | on the lowest open plane of each layer, by layer size | with batch norm, shrinking all gates of a layer at once is free, so all would close together |
//! | starts undecided, from noise | reproduces the float weights | a pretrained network is kept, not relearned |
//! | one learning rate for all | logits' rate divided by the square of what a logit can move its weight | so that it means the same at every scale, plane and temperature |
//!
//! Reference: Savarese et al., "Winning the lottery with continuous sparsification" (arXiv 1912.04427) for the gates.

mod options;
#[cfg(test)]
mod tests;
mod weight;

use serde::{Deserialize, Serialize};

pub use options::{CsqOptions, Finetune, Parity, Polish, Pressure, RefitFrom};
pub use weight::{CsqWeight, Stage, Start};

use crate::blocks::budget::{Budget, Count, Price};
use crate::blocks::fit::fit_budget;
use crate::blocks::gate::hurry;
use crate::blocks::range::Range;
use crate::blocks::searched;
use crate::blocks::temperature::Temperature;
use crate::blocks::widths::Widths;
use crate::error::{Error, Kind};
use crate::method::{Method, Phase, Progress, Slot, Trial, WeightLayer};
use crate::quantizer::Quantizer;

/// The method.
#[derive(Debug)]
pub struct Csq {
    options: CsqOptions,
    widths: Widths,
    budget: Budget,
    stage: Stage,
    /// Float weights at the start, in row order; kept only if finetuning wants them.
    floats: Vec<Vec<f32>>,
}

impl Csq {
    fn is_parity(&self) -> bool {
        self.options.parity == Parity::PublishedCode
    }

    /// (price, planes on) of every layer.
    fn sizes(&self, slots: &[Slot<CsqWeight>]) -> Vec<(Price, usize)> {
        slots.iter().map(|s| (self.budget.price(&s.layer), s.quantizer.planes_on())).collect()
    }

    /// Where the mean is, for people.
    fn now(&self, slots: &[Slot<CsqWeight>]) -> String {
        self.budget.show(self.budget.mean(&self.sizes(slots)))
    }

    /// Sets temperatures, and learning rates to match them.
    fn set_temperature(&self, slots: &mut [Slot<CsqWeight>], temperature: f64, steps: u64) {
        let hurry = hurry(steps);
        for slot in slots {
            let q = &mut slot.quantizer;
            q.temperature = temperature as f32;
            if self.is_parity() {
                continue;
            }
            // What a logit at its steepest moves the weight, in the unit of the weight: step · 2^position · β / 4. Dividing
            // by its square makes a step of the logit move the weight as far as a step of a float weight would.
            let step = f64::from(q.mean_step());
            let planes = q.planes();
            let unit = self.options.bit_rate;
            let rates: Vec<f32> = (0..planes)
                .map(|b| {
                    // Fine planes share the rate of the one four positions below the top: theirs would be a lottery.
                    let position = (planes - 1 - b).max(planes.saturating_sub(4));
                    let reach = step * (1u64 << position) as f64 * temperature / 4.0;
                    (unit / (reach * reach).max(1e-12)) as f32
                })
                .collect();
            q.positive.rate.clone_from(&rates);
            q.negative.rate = rates;
            q.masks.rate = vec![(self.options.gate_rate * hurry) as f32];
            let shared = q.len() / q.scale.value.len().max(1);
            let rate = self.options.scale_rate / (shared.max(1) as f64).sqrt();
            // A hard tensor keeps its steps instead of its full scales: both the steps and what they gain from a gradient
            // are smaller by the largest code.
            let levels = if q.stage == Stage::Hard { f64::from((1u32 << planes) - 1).max(1.0) } else { 1.0 };
            q.scale.rate = vec![(rate / (levels * levels)) as f32];
        }
    }
}

impl Method for Csq {
    const NAME: &'static str = "csq";
    const SUMMARY: &'static str = "learns the bits of every layer: planes behind gates that harden as training goes";
    type Options = CsqOptions;
    type Weight = CsqWeight;

    fn new(options: CsqOptions) -> Result<Self, Error> {
        let options = options.resolved();
        let most = options.planes as f64 + if options.count == Count::Stored { 1.0 } else { 0.0 };
        let bad = |detail: String| Err(Error::option(detail));
        if !(1..=8).contains(&options.planes) {
            return bad(format!("planes = {}: 1 to 7 can be stored (8 only in comparisons)", options.planes));
        }
        if !(options.target_bits > 0.0 && options.target_bits <= most) {
            return bad(format!(
                "target_bits = {}: a weight starts with {most} bits, so the target must be above 0 and at most {most}",
                options.target_bits
            ));
        }
        let widths = Widths {
            target_bits: options.target_bits,
            edge_bits: options.edge_bits,
            floor_bits: options.floor_bits,
            most: options.planes,
            weighting: options.weighting,
            count: options.count,
        };
        widths.check_floors()?;
        let positive = [
            ("search_start", options.search_start),
            ("search_end", options.search_end),
            ("finetune_start", options.finetune_start),
            ("finetune_end", options.finetune_end),
            ("logit", f64::from(options.logit)),
            ("polish_rate", options.polish_rate),
        ];
        for (name, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return bad(format!("{name} = {value}: must be a positive number"));
            }
        }
        if options.polish == Polish::Weights && options.keep_positions {
            return bad(
                "polish = \"weights\" needs contiguous planes, which keep_positions does not promise".to_owned()
            );
        }
        if options.finetune == Finetune::Weights && options.keep_positions {
            return bad(
                "finetune = \"weights\" needs contiguous planes, which keep_positions does not promise".to_owned()
            );
        }
        if !(0.0..=1.0).contains(&options.search) {
            return bad(format!("search = {}: a share of the epochs is between 0 and 1", options.search));
        }
        Ok(Self { options, widths, budget: widths.budget(), stage: Stage::Search, floats: vec![] })
    }

    fn phases(&self, epochs: usize) -> Vec<Phase> {
        if self.options.finetune == Finetune::Weights {
            return searched::phases(epochs, self.options.search);
        }
        let polish = self.options.polish_epochs.min(epochs.saturating_sub(2));
        let rest = epochs - polish;
        let search = ((rest as f64 * self.options.search).round() as usize).clamp(1, rest.max(2) - 1);
        vec![
            Phase { name: "search", epochs: search, rate: 1.0 },
            Phase { name: "finetune", epochs: rest.saturating_sub(search), rate: 1.0 },
            Phase { name: "polish", epochs: polish, rate: self.options.polish_rate },
        ]
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<CsqWeight, Error> {
        let per = layer.granularity(self.options.per_channel);
        let rows = layer.rows(self.options.per_channel);
        if self.options.refit_from == RefitFrom::Float {
            let mut floats = vec![0.0; init.len()];
            rows.gather(init, &mut floats);
            self.floats.push(floats);
        }
        let (on, off) = if self.is_parity() { (1.0, 0.0) } else { (self.options.logit, -self.options.logit) };
        let start = Start {
            planes: self.options.planes,
            on,
            off,
            mask: self.options.mask_logit,
            temperature: self.options.search_start as f32,
        };
        let mut weight = CsqWeight::new(per, rows, init, start, Range::MinMax);
        let (floor, fixed) = self.widths.floor(layer);
        weight.floor = floor;
        weight.gates_fixed = fixed;
        weight.masks.frozen = fixed;
        if fixed {
            for (b, m) in weight.masks.value.iter_mut().enumerate() {
                *m = if b < floor { 1.0 } else { -1.0 };
            }
        }
        if !self.is_parity() {
            // Soft bits reach only tanh(β·logit/2) of a whole one, and soft gates only m: the scale makes up for both.
            let beta = self.options.search_start as f32;
            let gate = if fixed { 1.0 } else { 1.0 / (1.0 + (-beta * self.options.mask_logit).exp()) };
            let reach = (beta * self.options.logit / 2.0).tanh() * gate;
            weight.scale.value.iter_mut().for_each(|s| *s /= reach);
        }
        Ok(weight)
    }

    fn begin(&mut self, slots: &mut [Slot<CsqWeight>]) -> Result<(), Error> {
        self.widths.check_reachable(slots.iter().map(|slot| &slot.layer))
    }

    fn begin_step(&mut self, slots: &mut [Slot<CsqWeight>], at: &Progress) {
        let o = &self.options;
        let schedule = match self.stage {
            Stage::Search => Temperature { start: o.search_start, end: o.search_end, reach: o.reach },
            _ => Temperature { start: o.finetune_start, end: o.finetune_end, reach: o.reach },
        };
        self.set_temperature(slots, schedule.at(at.fraction), at.steps);
    }

    fn penalty(&mut self, slots: &mut [Slot<CsqWeight>]) -> f64 {
        if self.stage != Stage::Search {
            return 0.0;
        }
        let excess = self.budget.excess(&self.sizes(slots), self.options.planes);
        let total: f64 = slots.iter().map(|s| self.budget.price(&s.layer).size()).sum();
        let mean = (total / slots.len().max(1) as f64).max(f64::MIN_POSITIVE);
        let mut value = 0.0;
        for slot in slots.iter_mut().filter(|s| !s.quantizer.gates_fixed) {
            let q = &mut slot.quantizer;
            let share = self.budget.price(&slot.layer).per_bit(self.budget.count) / mean;
            let pressed: Vec<usize> = match self.options.pressure {
                Pressure::All => (0..q.planes()).collect(),
                // Planes below the lowest open one are pressed on, so that they do not stay half open.
                Pressure::Lowest => match lowest(&q.masks.value, q.floor, excess > 0.0) {
                    Some(b) if excess > 0.0 => (b..q.planes()).collect(),
                    found => found.into_iter().collect(),
                },
            };
            let share = if self.options.pressure == Pressure::All { 1.0 } else { share };
            let strength = self.options.lambda * excess * share;
            let beta = f64::from(q.temperature);
            for b in pressed {
                let m = 1.0 / (1.0 + (-beta * f64::from(q.masks.value[b])).exp());
                value += strength * m;
                q.masks.grad[b] += (strength * beta * m * (1.0 - m)) as f32;
            }
        }
        value
    }

    fn after_update(&mut self, slots: &mut [Slot<CsqWeight>]) {
        for slot in slots {
            let q = &mut slot.quantizer;
            q.keep_scale_positive();
            if self.stage == Stage::Search && !self.is_parity() && !q.gates_fixed {
                // A gate far from zero would need an epoch to come back; two starts' distance is decided enough.
                let limit = 2.0 * self.options.mask_logit.abs().max(0.5);
                let floor = q.floor;
                for (b, m) in q.masks.value.iter_mut().enumerate() {
                    *m = m.clamp(if b < floor { 0.1 } else { -limit }, limit);
                }
            }
        }
    }

    fn end_epoch(&mut self, slots: &mut [Slot<CsqWeight>], _at: &Progress) -> Result<Vec<String>, Error> {
        let undecided = slots.iter().map(|s| s.quantizer.undecided() * s.quantizer.len() as f64).sum::<f64>();
        let total: usize = slots.iter().map(|s| s.quantizer.len()).sum();
        let beta = slots.first().map_or(0.0, |s| s.quantizer.temperature);
        Ok(vec![format!(
            "temperature {beta:.2}, {}, {:.1} % of bits undecided",
            self.now(slots),
            100.0 * undecided / total.max(1) as f64
        )])
    }

    fn end_phase(
        &mut self,
        slots: &mut [Slot<CsqWeight>],
        phase: usize,
        trial: &mut Trial<'_, CsqWeight>,
    ) -> Result<Vec<String>, Error> {
        match phase {
            0 => self.freeze_scheme(slots, trial),
            1 => self.harden_all(slots),
            _ => Ok(vec![]),
        }
    }

    fn set_hard(&mut self, slots: &mut [Slot<CsqWeight>], hard: bool) {
        slots.iter_mut().for_each(|slot| slot.quantizer.show_hard = hard);
    }

    fn finish(&mut self, slots: &mut [Slot<CsqWeight>]) -> Result<Vec<String>, Error> {
        self.harden_all(slots)
    }

    fn state(&self, slots: &[Slot<CsqWeight>]) -> serde_json::Value {
        let layers = slots.iter().map(|s| (s.quantizer.stage, s.quantizer.planes())).collect();
        let temperature = slots.first().map_or(1.0, |s| s.quantizer.temperature);
        serde_json::to_value(State { stage: self.stage, temperature, layers }).unwrap_or_default()
    }

    fn restore(&mut self, slots: &mut [Slot<CsqWeight>], state: &serde_json::Value) -> Result<(), Error> {
        let unreadable = |e| Error::new(Kind::Checkpoint, "the checkpoint's state of csq cannot be read").caused_by(e);
        let State { stage, temperature, layers } = State::deserialize(state).map_err(unreadable)?;
        if layers.len() != slots.len() || layers.iter().any(|(_, planes)| *planes > self.options.planes) {
            return Err(Error::new(
                Kind::Checkpoint,
                format!("the checkpoint describes {} layers but the model has {}", layers.len(), slots.len()),
            ));
        }
        self.stage = stage;
        for (slot, (stage, planes)) in slots.iter_mut().zip(layers) {
            slot.quantizer.resize(stage, planes);
            if stage == Stage::Hard && self.trains_weights() {
                let room = vec![0.0; slot.quantizer.len()];
                slot.quantizer.loosen(&room);
            }
            // A checkpoint may lie between the last step of a phase and its end, which reads the temperature.
            slot.quantizer.temperature = temperature;
        }
        Ok(())
    }
}

/// What a checkpoint holds besides parameters.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    stage: Stage,
    temperature: f32,
    /// Stage and number of planes of every layer.
    layers: Vec<(Stage, usize)>,
}

impl Csq {
    /// Between search and finetuning: makes the scheme fit the budget and starts the bits' second life.
    fn freeze_scheme(
        &mut self,
        slots: &mut [Slot<CsqWeight>],
        trial: &mut Trial<'_, CsqWeight>,
    ) -> Result<Vec<String>, Error> {
        let o = self.options.clone();
        let mut log = vec![format!("search ended at {}", self.now(slots))];
        if o.keep_positions {
            log.extend(self.close_in_place(slots, trial)?);
            slots.iter_mut().for_each(|s| s.quantizer.freeze_in_place(o.finetune_start as f32));
            self.stage = Stage::Frozen;
            return Ok(log);
        }
        let mut planes: Vec<usize> = slots.iter().map(|s| s.quantizer.planes_on().max(s.quantizer.floor)).collect();
        let targets: Vec<Vec<f32>> = match o.refit_from {
            RefitFrom::Search => slots.iter_mut().map(|s| s.quantizer.soft_weights()).collect(),
            RefitFrom::Float => std::mem::take(&mut self.floats),
        };
        let fitted = fit_budget(slots, targets.clone(), &mut planes, o.planes, &self.budget, Range::Mse, trial)?;
        log.extend(fitted);
        for ((slot, target), &k) in slots.iter_mut().zip(&targets).zip(&planes) {
            match o.finetune {
                Finetune::Weights => slot.quantizer.retrain(target, k),
                // Edge layers have planes to spare: what is decided for them needs no softness beyond the finest plane.
                Finetune::Bits => slot.quantizer.refit(target, k, o.logit, o.finetune_start as f32, Range::Mse),
            }
        }
        self.stage = if o.finetune == Finetune::Weights { Stage::Hard } else { Stage::Frozen };
        log.push(format!("scheme frozen at {}: {}", self.now(slots), list(slots)));
        Ok(log)
    }

    /// Whether hard layers hold weights that learn on.
    fn trains_weights(&self) -> bool {
        self.options.polish == Polish::Weights || self.options.finetune == Finetune::Weights
    }

    /// Closes planes where they are until the budget holds, cheapest per bit first.
    fn close_in_place(
        &self,
        slots: &mut [Slot<CsqWeight>],
        trial: &mut Trial<'_, CsqWeight>,
    ) -> Result<Vec<String>, Error> {
        let mut log = vec![];
        self.show_all(slots, true);
        while !self.budget.holds(&self.sizes(slots)) {
            let mut best: Option<(f64, usize, usize)> = None;
            for i in 0..slots.len() {
                let q = &slots[i].quantizer;
                let Some(b) = lowest(&q.masks.value, q.floor, true).filter(|_| !q.gates_fixed) else { continue };
                let before = std::mem::replace(&mut slots[i].quantizer.masks.value[b], -1.0);
                let loss = trial(slots);
                slots[i].quantizer.masks.value[b] = before;
                let price = loss? / self.budget.price(&slots[i].layer).size();
                if best.is_none_or(|(least, _, _)| price < least) {
                    best = Some((price, i, b));
                }
            }
            let Some((_, i, b)) = best else {
                self.show_all(slots, false);
                return Err(Error::option(format!("a target of {} cannot be reached", self.budget.wanted())));
            };
            slots[i].quantizer.masks.value[b] = -1.0;
            log.push(format!("closed plane {} of `{}`, now {}", b + 1, slots[i].layer.name, self.now(slots)));
        }
        self.show_all(slots, false);
        Ok(log)
    }

    fn show_all(&self, slots: &mut [Slot<CsqWeight>], hard: bool) {
        slots.iter_mut().for_each(|s| s.quantizer.show_hard = hard);
    }

    fn harden_all(&mut self, slots: &mut [Slot<CsqWeight>]) -> Result<Vec<String>, Error> {
        if self.stage == Stage::Hard {
            return Ok(vec![]);
        }
        let mut moved = 0;
        for slot in slots.iter_mut() {
            slot.quantizer.show_hard = false;
            let soft = slot.quantizer.soft_weights();
            moved += usize::from(slot.quantizer.harden()?);
            if self.options.polish == Polish::Weights {
                slot.quantizer.loosen(&soft);
            }
        }
        self.stage = Stage::Hard;
        let mut log = vec![format!("bits decided: {}", list(slots))];
        if moved > 0 {
            log.push(format!(
                "{moved} layers had codes that their planes cannot store; the nearest ones took their place"
            ));
        }
        Ok(log)
    }
}

/// The plane that the budget acts on: above the target the lowest that is open (not below the floor), else the highest
/// that is closed under it.
fn lowest(masks: &[f32], floor: usize, above: bool) -> Option<usize> {
    let open = masks.iter().filter(|m| **m > 0.0).count();
    if above {
        (0..masks.len()).rev().find(|&b| masks[b] > 0.0).filter(|_| open > floor)
    } else {
        let last = (0..masks.len()).rev().find(|&b| masks[b] > 0.0);
        (last.map_or(0, |b| b + 1)..masks.len()).next().or_else(|| (0..masks.len()).rev().find(|&b| masks[b] <= 0.0))
    }
}

/// Stored bits of every layer, in order.
fn list(slots: &[Slot<CsqWeight>]) -> String {
    let bits: Vec<String> = slots.iter().map(|s| Count::Stored.bits(s.quantizer.bits() as usize).to_string()).collect();
    bits.join(" ")
}
