//! Sharpness-aware training: each step looks for the worst point near the present one, and descends from there.
//!
//! ```text
//! pass 1   g = ∂L/∂x at the present point;  ε = ρ · g / ‖g‖₂              one norm over everything that is perturbed
//! pass 2   ∂L/∂x at x + ε updates x, ε taken as constant
//! ```
//!
//! With Q the rounding of the weights w, SAQ (Liu et al., arXiv 2111.12273) tells three couplings apart:
//!
//! | case | loss of pass 2 | option `coupling` |
//! |---|---|---|
//! | 1 | L(Q(w) + ε(w)): the direction of the latent weights, zero where they are clipped | "mismatched" |
//! | 2 | L(Q(w + ε(w))): SAM (arXiv 2010.01412) around the rounding, which swallows what is below half a step | "latent" |
//! | 3 | L(Q(w) + ε(Q(w))): the direction and the place of what the network computes with | "quantized", the default |
//!
//! For float weights all three are SAM. Layers' weights differ in size by an order of magnitude, and behind a normalisation only
//! their direction matters, so that one length for all may be measured in units T of the weights themselves (`normalization`):
//! `ε = ρ · T²g / ‖Tg‖₂`. T is the standard deviation of a layer's weights in SAQ, whose weights have unit variance, and
//! |w| + 0.01 of each weight in ASAM (Kwon et al., arXiv 2102.11600); 1 for what is no weight.
//!
//! ESAM (Du et al., arXiv 2110.03141) saves time: only a `share` of the tensors takes part in
//! a step, each perturbed the more (1/share), and pass 2 sees only the `samples` whose loss rose most. `every` does most
//! steps plainly, which is this crate's own.
//!
//! | symbol | field | default |
//! |---|---|---|
//! | ρ | `rho` | 0 (off); published are 0.3 to 0.9 in units of "layer", 0.05 to 0.2 for weights as they are |
//! | T | `normalization` | "layer"; "none": 1 |
//! | extra parameters | `norms`, `steps`; biases always; steps of weights never | as published |
//!
//! Batch normalisation uses the batch's statistics in both passes; its running ones are updated by the first alone (the
//! published code does it twice). Loss and accuracy that are reported are those of pass 1.

use std::collections::BTreeMap;

use bitsmith_engine::{Loss, Params, StepOptions, StepOutput};
use bitsmith_graph::ValueId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::data::Batch;
use super::state::State;
use crate::blocks::grid::SMALLEST_STEP;
use crate::error::Error;
use crate::method::Slot;
use crate::options::options;
use crate::param::Group;
use crate::quantizer::Quantizer;

/// Which gradient perturbs which weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coupling {
    /// Case 3: the rounded weights, along their own gradient.
    #[default]
    Quantized,
    /// Case 2: what the rounding is made of (latent weights, logits), along its own gradient.
    Latent,
    /// Case 1: the rounded weights, along the gradient of the latent ones.
    Mismatched,
}

/// What the perturbation of a weight is measured in: T of the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalization {
    /// Weights as they are.
    None,
    /// The standard deviation of the layer's weights.
    #[default]
    Layer,
    /// The weight itself.
    Element,
}

impl Normalization {
    /// T of a parameter of this group with these values.
    fn unit(self, group: Group, values: &[f32]) -> Unit {
        match (self, group) {
            (Self::Layer, Group::Weight) => {
                let n = values.len().max(1) as f64;
                let mean = values.iter().map(|w| f64::from(*w)).sum::<f64>() / n;
                let square = values.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>();
                Unit { fixed: (square / n).sqrt() as f32, own: 0.0 }
            }
            (Self::Element, Group::Weight) => Unit { fixed: 0.01, own: 1.0 },
            _ => Unit { fixed: 1.0, own: 0.0 },
        }
    }
}

/// T of a weight w: `fixed + own · |w|`.
#[derive(Debug, Clone, Copy)]
struct Unit {
    fixed: f32,
    own: f32,
}

impl Unit {
    fn of(self, value: f32) -> f32 {
        self.fixed + self.own * value.abs()
    }
}

options! {
    /// Options of sharpness-aware training.
    pub struct SharpnessOptions {
        /// Length of the perturbation, over all parameters together; 0 turns sharpness-awareness off.
        pub rho: f32 = 0.0,
        /// "quantized", "latent" or "mismatched".
        pub coupling: Coupling = Coupling::Quantized,
        /// Units of `rho` for weights: "layer" (standard deviations of a layer's), "element" (each weight itself) or "none".
        pub normalization: Normalization = Normalization::Layer,
        /// Perturb gamma and beta of normalisations too.
        pub norms: bool = true,
        /// Perturb the step sizes of activations too.
        pub steps: bool = true,
        /// Perturb in every so-many-th step only.
        pub every: u64 = 1,
        /// Share of the tensors that take part in a step, drawn anew each time.
        pub share: f64 = 1.0,
        /// Share of the batch that the second pass sees: the samples whose loss rises most.
        pub samples: f64 = 1.0,
        /// Seed of that draw.
        pub seed: u64 = 1,
    }
}

impl SharpnessOptions {
    /// Refuses impossible values.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |detail: String| Err(Error::option(detail));
        if !(self.rho >= 0.0 && self.rho.is_finite()) {
            return bad(format!("sharpness.rho = {}: must be a length, 0 for none", self.rho));
        }
        if self.every == 0 {
            return bad("sharpness.every = 0: 1 perturbs in every step".to_owned());
        }
        for (name, share) in [("share", self.share), ("samples", self.samples)] {
            if !(share > 0.0 && share <= 1.0) {
                return bad(format!("sharpness.{name} = {share}: must be above 0 and at most 1"));
            }
        }
        Ok(())
    }

    /// Whether step number `step` of a run perturbs.
    pub(super) fn acts(&self, step: u64) -> bool {
        self.rho > 0.0 && step.is_multiple_of(self.every)
    }
}

/// What is done to a step: its options and its number in the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sharpness<'a> {
    pub options: &'a SharpnessOptions,
    pub step: u64,
}

impl Sharpness<'_> {
    /// ESAM's draw for this step: whether the next tensor takes part, which it does with probability `share`.
    fn draw(self) -> impl FnMut() -> bool {
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        rng.set_stream(self.step);
        let most = self.options.share * f64::from(u32::MAX);
        move || f64::from(rng.next_u32()) <= most
    }
}

/// Directions by value of the graph, Tg: constants, which have a unit each, and steps of activation sites.
#[derive(Debug)]
struct Direction {
    constants: BTreeMap<ValueId, (Vec<f32>, Unit)>,
    steps: BTreeMap<ValueId, f32>,
}

impl Direction {
    /// ‖·‖₂ over everything, in double precision.
    fn norm(&self) -> f64 {
        let square = |x: &f32| f64::from(*x).powi(2);
        let constants: f64 = self.constants.values().flat_map(|(g, _)| g).map(square).sum();
        (constants + self.steps.values().map(square).sum::<f64>()).sqrt()
    }

    /// Adds `factor` times the direction, in its units, to the parameters.
    fn add_to(&self, params: &mut Params, factor: f32) {
        for (id, (direction, unit)) in &self.constants {
            if let Some(values) = params.constants.get_mut(id) {
                values.iter_mut().zip(direction).for_each(|(x, g)| *x += factor * unit.of(*x) * g);
            }
        }
        for (id, direction) in &self.steps {
            if let Some(step) = params.steps.get_mut(id) {
                *step = (*step + factor * direction).max(SMALLEST_STEP);
            }
        }
    }

    /// Leaves only those tensors in that take part in this step.
    fn thin_out(&mut self, sharpness: Sharpness<'_>) {
        let mut takes_part = sharpness.draw();
        self.constants.retain(|_, _| takes_part());
        self.steps.retain(|_, _| takes_part());
    }
}

impl<Q: Quantizer> State<Q> {
    /// The two passes of a sharpness-aware step: gradients of the second are added to all parameters. Returns loss and
    /// correct answers of the first.
    pub(super) fn sharp_pass(
        &mut self,
        slots: &mut [Slot<Q>],
        batch: &Batch,
        loss: &Loss,
        sharpness: Sharpness<'_>,
    ) -> Result<(f64, usize), Error> {
        let first = StepOptions { update_statistics: true, train_norm: true };
        let second = StepOptions { update_statistics: false, train_norm: true };
        self.publish_with(slots);
        let mut out = self.engine.step(&mut self.params, &batch.x, &batch.labels, loss, first)?;
        let (before, correct, logits) = (out.loss, out.correct, std::mem::take(&mut out.logits));
        let options = sharpness.options;
        let mut restore = vec![];
        if options.coupling == Coupling::Latent {
            self.distribute(slots, &out);
            restore = self.perturb_latent(slots, sharpness);
            self.publish_with(slots);
        } else {
            let mut direction = self.direction(slots, out, options)?;
            direction.thin_out(sharpness);
            direction.add_to(&mut self.params, factor(options, direction.norm()));
            // What was perturbed after rounding lies on no grid.
            self.params.grids.clear();
        }
        let subset = match options.samples < 1.0 {
            true => Some(self.most_sensitive(batch, loss, &logits, options.samples)?),
            false => None,
        };
        let (batch, loss) = subset.as_ref().map_or((batch, loss), |(batch, loss)| (batch, loss));
        let out = self.engine.step(&mut self.params, &batch.x, &batch.labels, loss, second)?;
        self.distribute(slots, &out);
        // Parameters hold the unperturbed values themselves; only case 2 changed them.
        let mut restore = restore.into_iter();
        self.visit_with(slots, &mut |_, param| {
            if let Some(Some(values)) = restore.next() {
                param.value = values;
            }
        });
        Ok((f64::from(before), correct))
    }

    /// The gradient of everything that cases 1 and 3 perturb, at the values that the network computes with.
    fn direction(
        &mut self,
        slots: &mut [Slot<Q>],
        out: StepOutput,
        options: &SharpnessOptions,
    ) -> Result<Direction, Error> {
        if options.coupling == Coupling::Mismatched {
            self.distribute(slots, &out);
        }
        let mut gradients = out.constants;
        if options.coupling == Coupling::Mismatched {
            for slot in slots.iter_mut() {
                let Some(grad) = gradients.get_mut(&slot.layer.id) else { continue };
                let Some(grad) = grad.get_mut(slot.layer.range()) else { continue };
                if !slot.quantizer.latent_gradient(grad) {
                    return Err(Error::option(
                        "sharpness.coupling = \"mismatched\" needs latent float weights, which this method does not keep; use \"quantized\"",
                    ));
                }
            }
            self.visit_with(slots, &mut |_, param| param.clear_grad());
        }
        let mut direction = self.in_units(gradients, options);
        if options.steps {
            let learned = |id: &ValueId| self.steps.iter().any(|(step, p)| step == id && !p.frozen);
            direction.steps = out.steps.into_iter().filter(|(id, _)| learned(id)).collect();
        }
        Ok(direction)
    }

    /// The direction of these gradients of constants, those that are perturbed, at the present values.
    fn in_units(&self, gradients: BTreeMap<ValueId, Vec<f32>>, options: &SharpnessOptions) -> Direction {
        let group =
            |id: ValueId| self.others.iter().find(|(other, _)| *other == id).map_or(Group::Weight, |(_, p)| p.group);
        let perturbed = gradients.into_iter().map(|(id, gradient)| (id, group(id), gradient));
        let perturbed = perturbed.filter(|(_, group, _)| options.norms || *group != Group::Norm);
        let constants = perturbed.map(|(id, group, mut gradient)| {
            let values = self.params.constants.get(&id).map_or(&[][..], Vec::as_slice);
            let unit = options.normalization.unit(group, values);
            gradient.iter_mut().zip(values).for_each(|(g, w)| *g *= unit.of(*w));
            (id, (gradient, unit))
        });
        Direction { constants: constants.collect(), steps: BTreeMap::new() }
    }

    /// Where nothing is rounded all cases are one: moves what the network computes with along its gradient.
    pub(super) fn perturb_floats(
        &mut self,
        constants: BTreeMap<ValueId, Vec<f32>>,
        sharpness: Sharpness<'_>,
    ) -> Result<(), Error> {
        if sharpness.options.samples < 1.0 {
            return Err(Error::option(
                "sharpness.samples: a step under constraints sees its whole batch; leave it at 1",
            ));
        }
        let mut direction = self.in_units(constants, sharpness.options);
        direction.thin_out(sharpness);
        direction.add_to(&mut self.params, factor(sharpness.options, direction.norm()));
        Ok(())
    }

    /// Case 2: moves the parameters behind the rounding along their gradients, which are cleared. Returns the values
    /// before, in the order of the parameters.
    fn perturb_latent(&mut self, slots: &mut [Slot<Q>], sharpness: Sharpness<'_>) -> Vec<Option<Vec<f32>>> {
        let options = sharpness.options;
        let mut square = 0f64;
        let mut drawn = sharpness.draw();
        let mut units = vec![];
        let takes_part = |group: Group| match group {
            Group::Weight | Group::Bit | Group::Bias => true,
            Group::Norm => options.norms,
            Group::Scale | Group::Gate => false,
        };
        self.visit_with(slots, &mut |_, param| {
            let stays = drawn() && !param.frozen && takes_part(param.group);
            let unit = stays.then(|| options.normalization.unit(param.group, &param.value));
            units.push(unit);
            if let Some(unit) = unit {
                let scaled = param.grad.iter().zip(&param.value).map(|(g, x)| g * unit.of(*x));
                square += scaled.map(|g| f64::from(g).powi(2)).sum::<f64>();
            }
        });
        let factor = factor(options, square.sqrt());
        let mut units = units.into_iter();
        let mut before = vec![];
        self.visit_with(slots, &mut |_, param| {
            let unit = units.next().flatten();
            before.push(unit.map(|_| param.value.clone()));
            if let Some(unit) = unit {
                param.value.iter_mut().zip(&param.grad).for_each(|(x, g)| *x += factor * unit.of(*x).powi(2) * g);
            }
            param.clear_grad();
        });
        before
    }

    /// ESAM's selection: the `share` of the batch whose loss rises most from `logits` to the present, perturbed point.
    fn most_sensitive(
        &mut self,
        batch: &Batch,
        loss: &Loss,
        logits: &[f32],
        share: f64,
    ) -> Result<(Batch, Loss), Error> {
        let n = batch.labels.len().max(1);
        let perturbed = self.engine.forward_live(&self.params, &batch.x, n)?;
        let classes = (logits.len() / n).max(1);
        let [before, after] = [logits, &perturbed].map(|z| loss.per_sample(z, classes, &batch.labels));
        let rise = |i: usize| after[i] - before[i];
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| rise(b).total_cmp(&rise(a)).then(a.cmp(&b)));
        order.truncate(((n as f64 * share).ceil() as usize).clamp(1, n));
        order.sort_unstable();
        let sample = batch.x.len() / n;
        let rows = |values: &[f32], len: usize| -> Vec<f32> {
            order.iter().flat_map(|&i| &values[i * len..(i + 1) * len]).copied().collect()
        };
        let labels = order.iter().map(|&i| batch.labels[i]).collect();
        let distill = loss
            .distill
            .as_ref()
            .map(|d| bitsmith_engine::Distill { teacher_logits: rows(&d.teacher_logits, classes), ..d.clone() });
        let subset = Batch { x: rows(&batch.x, sample), labels, number: batch.number };
        Ok((subset, Loss { distill, ..loss.clone() }))
    }
}

/// What a gradient of this norm is multiplied by: ρ / ‖g‖, and ESAM's 1 / share.
fn factor(options: &SharpnessOptions, norm: f64) -> f32 {
    (f64::from(options.rho) / (norm + 1e-12) / options.share) as f32
}

#[cfg(test)]
mod tests {
    use bitsmith_graph::zoo::{ZooOptions, build};

    use super::*;
    use crate::method::Method;
    use crate::methods::lsq::{Lsq, LsqOptions, LsqWeight};
    use crate::train::data::InMemory;
    use crate::train::options::TrainOptions;

    type Slots = Vec<Slot<LsqWeight>>;

    /// A small network with weights of `bits` bits, apart from its quantizers, and a batch.
    fn start(bits: u8) -> (State<LsqWeight>, Slots, Batch) {
        let model = build("cnn", &ZooOptions { seed: 3, ..ZooOptions::default() }).unwrap();
        let mut method = Lsq::new(LsqOptions { weight_bits: bits, edge_bits: 0, per_channel: true }).unwrap();
        let mut state =
            State::new(model, &mut method, &TrainOptions::default(), (bitsmith_engine::Device::Cpu, None)).unwrap();
        let slots = std::mem::take(&mut state.slots);
        let random = InMemory::random(state.engine.sample_len(), 16, 1, 5);
        let labels = (0..16).map(|i| i % 10).collect();
        let batch = Batch { labels, ..random.batches[0].clone() };
        (state, slots, batch)
    }

    fn gradients(state: &mut State<LsqWeight>, slots: &mut Slots) -> Vec<u32> {
        let mut all = vec![];
        state.visit_with(slots, &mut |_, p| all.extend(p.grad.iter().map(|g| g.to_bits())));
        all
    }

    fn values(state: &mut State<LsqWeight>, slots: &mut Slots) -> Vec<u32> {
        let mut all = vec![];
        state.visit_with(slots, &mut |_, p| all.extend(p.value.iter().map(|v| v.to_bits())));
        all
    }

    fn loss(state: &mut State<LsqWeight>, batch: &Batch) -> f64 {
        let options = StepOptions { update_statistics: false, train_norm: true };
        let out = state.engine.step(&mut state.params, &batch.x, &batch.labels, &Loss::default(), options).unwrap();
        f64::from(out.loss)
    }

    fn direction(
        state: &mut State<LsqWeight>,
        slots: &mut Slots,
        batch: &Batch,
        options: &SharpnessOptions,
    ) -> Direction {
        let step = StepOptions { update_statistics: false, train_norm: true };
        state.publish_with(slots);
        let out = state.engine.step(&mut state.params, &batch.x, &batch.labels, &Loss::default(), step).unwrap();
        state.direction(slots, out, options).unwrap()
    }

    fn weights(state: &State<LsqWeight>, slots: &Slots) -> Vec<f32> {
        slots.iter().flat_map(|s| &state.params.constants[&s.layer.id]).copied().collect()
    }

    #[test]
    fn the_perturbation_has_one_length_over_all_and_raises_the_loss_by_as_much_as_it_should() {
        for normalization in [Normalization::None, Normalization::Layer, Normalization::Element] {
            let (mut state, mut slots, batch) = start(4);
            let options = SharpnessOptions { rho: 2e-3, normalization, ..Default::default() };
            let direction = direction(&mut state, &mut slots, &batch, &options);
            let norm = direction.norm();
            let factor = factor(&options, norm);
            assert!((f64::from(factor) * norm / 2e-3 - 1.0).abs() < 1e-6);
            // Every trained constant takes part: weights, biases, gammas, betas.
            let trained = state.engine.parameters().iter().filter(|p| p.trained).count();
            assert_eq!(direction.constants.len(), trained);
            let before = loss(&mut state, &batch);
            direction.add_to(&mut state.params, factor);
            let rise = loss(&mut state, &batch) - before;
            assert!((rise / (2e-3 * norm) - 1.0).abs() < 0.05, "{normalization:?}: {rise} of {}", 2e-3 * norm);
        }
    }

    /// Behind a normalisation the size of a layer's weights means nothing, and nothing should follow from it.
    #[test]
    fn in_units_of_a_layer_its_share_of_the_perturbation_does_not_depend_on_its_size() {
        // How far a layer moves, in its own length, with the first one's weights `size` times as large.
        let moved = |normalization, size: f32| -> Vec<f64> {
            let (mut state, mut slots, batch) = start(4);
            slots[0].quantizer.visit(&mut |p| p.value.iter_mut().for_each(|v| *v *= size));
            let options = SharpnessOptions { rho: 0.1, normalization, ..Default::default() };
            let direction = direction(&mut state, &mut slots, &batch, &options);
            let before = state.params.constants.clone();
            direction.add_to(&mut state.params, factor(&options, direction.norm()));
            let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let share = |s: &Slot<LsqWeight>| {
                let [old, new] = [&before, &state.params.constants].map(|c| &c[&s.layer.id]);
                let step: Vec<f64> = old.iter().zip(new).map(|(a, b)| f64::from(b - a)).collect();
                length(&step) / length(&old.iter().map(|w| f64::from(*w)).collect::<Vec<_>>())
            };
            slots.iter().map(share).collect()
        };
        for normalization in [Normalization::Layer, Normalization::None] {
            let [as_it_is, large] = [1.0, 8.0].map(|size| moved(normalization, size));
            let change = as_it_is.iter().zip(&large).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            match normalization {
                Normalization::Layer => assert!(change < 0.01, "{as_it_is:?} {large:?}"),
                _ => assert!(change > 1.0, "{as_it_is:?} {large:?}"),
            }
        }
    }

    #[test]
    fn one_tensor_with_a_larger_gradient_leaves_less_for_the_others() {
        let (mut state, mut slots, batch) = start(4);
        let options = SharpnessOptions { rho: 0.1, ..Default::default() };
        let mut direction = direction(&mut state, &mut slots, &batch, &options);
        let before = factor(&options, direction.norm());
        direction.constants.values_mut().next().unwrap().0.iter_mut().for_each(|g| *g *= 2.0);
        assert!(factor(&options, direction.norm()) < before);
    }

    #[test]
    fn without_a_radius_the_step_is_the_plain_one_bit_for_bit() {
        let (mut state, mut slots, batch) = start(4);
        let plain = StepOptions { update_statistics: true, train_norm: true };
        let before = values(&mut state, &mut slots);
        let (expected, _) = state.pass(&mut slots, &batch, &Loss::default(), plain).unwrap();
        let wanted = gradients(&mut state, &mut slots);
        for coupling in [Coupling::Quantized, Coupling::Latent, Coupling::Mismatched] {
            state.visit_with(&mut slots, &mut |_, p| p.clear_grad());
            let options = SharpnessOptions { coupling, ..Default::default() };
            let sharpness = Sharpness { options: &options, step: 0 };
            let (found, _) = state.sharp_pass(&mut slots, &batch, &Loss::default(), sharpness).unwrap();
            assert_eq!(found, expected);
            assert!(gradients(&mut state, &mut slots) == wanted, "{coupling:?}");
            assert!(values(&mut state, &mut slots) == before, "{coupling:?}");
        }
    }

    #[test]
    fn all_values_are_restored_whatever_was_perturbed() {
        for coupling in [Coupling::Quantized, Coupling::Latent, Coupling::Mismatched] {
            let (mut state, mut slots, batch) = start(3);
            let before = values(&mut state, &mut slots);
            let options = SharpnessOptions { rho: 0.5, coupling, share: 0.5, samples: 0.25, ..Default::default() };
            let sharpness = Sharpness { options: &options, step: 3 };
            state.sharp_pass(&mut slots, &batch, &Loss::default(), sharpness).unwrap();
            assert!(values(&mut state, &mut slots) == before, "{coupling:?}");
            assert!(gradients(&mut state, &mut slots).iter().any(|g| f32::from_bits(*g) != 0.0));
        }
    }

    #[test]
    fn rounding_swallows_what_is_added_before_it() {
        let (mut state, mut slots, batch) = start(2);
        let options = SharpnessOptions { rho: 0.05, coupling: Coupling::Latent, ..Default::default() };
        let direction =
            direction(&mut state, &mut slots, &batch, &SharpnessOptions { rho: 0.05, ..Default::default() });
        let before = weights(&state, &slots);
        let changed = |now: &[f32]| before.iter().zip(now).filter(|(a, b)| a != b).count();
        direction.add_to(&mut state.params, factor(&options, direction.norm()));
        let after = changed(&weights(&state, &slots));
        // A few gradients are exactly zero (behind a ReLU that never opens).
        assert!(after > before.len() * 9 / 10, "{after} of {}", before.len());
        let plain = StepOptions { update_statistics: false, train_norm: true };
        state.pass(&mut slots, &batch, &Loss::default(), plain).unwrap();
        state.perturb_latent(&mut slots, Sharpness { options: &options, step: 0 });
        state.publish_with(&mut slots);
        let before = changed(&weights(&state, &slots));
        assert!(before < after / 20, "{before} of {after}");
    }

    #[test]
    fn the_gradient_of_clipped_weights_perturbs_nothing_in_case_1() {
        let (mut state, mut slots, batch) = start(4);
        // Steps so small that every weight but a few lies outside the grid.
        state.visit_with(&mut slots, &mut |name, p| {
            if name.ends_with("weight/steps") {
                p.value.iter_mut().for_each(|s| *s *= 0.05);
            }
        });
        let zeros = |d: &Direction, slots: &Slots| {
            let all: Vec<f32> = slots.iter().flat_map(|s| d.constants[&s.layer.id].0.clone()).collect();
            all.iter().filter(|g| **g == 0.0).count() as f64 / all.len() as f64
        };
        let quantized = SharpnessOptions::default();
        let mismatched = SharpnessOptions { coupling: Coupling::Mismatched, ..Default::default() };
        let third = direction(&mut state, &mut slots, &batch, &quantized);
        let first = direction(&mut state, &mut slots, &batch, &mismatched);
        assert!(zeros(&first, &slots) > 0.5, "{}", zeros(&first, &slots));
        assert!(zeros(&third, &slots) < 0.2, "{}", zeros(&third, &slots));
    }

    #[test]
    fn the_samples_whose_loss_rises_most_are_kept_in_order() {
        let (mut state, mut slots, batch) = start(4);
        state.publish_with(&mut slots);
        let logits = state.engine.forward_live(&state.params, &batch.x, 16).unwrap();
        let loss = Loss::default();
        let direction = direction(&mut state, &mut slots, &batch, &SharpnessOptions::default());
        direction
            .add_to(&mut state.params, factor(&SharpnessOptions { rho: 0.5, ..Default::default() }, direction.norm()));
        let (kept, _) = state.most_sensitive(&batch, &loss, &logits, 0.25).unwrap();
        assert_eq!((kept.labels.len(), kept.x.len()), (4, batch.x.len() / 4));
        let now = state.engine.forward_live(&state.params, &batch.x, 16).unwrap();
        let [a, b] = [&logits, &now].map(|z| loss.per_sample(z, 10, &batch.labels));
        let mut rises: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
        let sample = batch.x.len() / 16;
        let chosen: Vec<usize> =
            (0..16).filter(|i| kept.x.chunks(sample).any(|x| x == &batch.x[i * sample..(i + 1) * sample])).collect();
        let least = chosen.iter().map(|&i| rises[i]).fold(f64::INFINITY, f64::min);
        rises.sort_by(f64::total_cmp);
        assert_eq!(least, rises[12]);
    }

    #[test]
    fn impossible_values_are_refused() {
        for (options, part) in [
            (SharpnessOptions { rho: -1.0, ..Default::default() }, "rho = -1"),
            (SharpnessOptions { rho: f32::NAN, ..Default::default() }, "rho = NaN"),
            (SharpnessOptions { every: 0, ..Default::default() }, "every = 0"),
            (SharpnessOptions { share: 0.0, ..Default::default() }, "share = 0"),
            (SharpnessOptions { samples: 1.5, ..Default::default() }, "samples = 1.5"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
