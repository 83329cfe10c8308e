//! Everything that a run changes: quantizers, other parameters, the engine's numbers. And what is done with all of it:
//! a pass, an update, an evaluation.

use std::collections::BTreeMap;

use bitsmith_engine::optim::{Algorithm, Rates, State as Memory};
use bitsmith_engine::{Device, Engine, EngineOptions, Loss, Params, Role, StepOptions, StepOutput};
use bitsmith_graph::{Granularity, Grid, Model, Op, QParams, Role as SiteRole, Site, ValueId};
use bitsmith_kernels::conv::Precision;

use super::activations::Activations;
use super::data::{Batch, Data, InMemory};
use super::events::Bits;
use super::options::{ForwardPrecision, GradientPrecision, TrainOptions};
use crate::blocks::cost::{Costs, mean_bits};
use crate::blocks::grid::SMALLEST_STEP;
use crate::blocks::range::Range;
use crate::error::{Error, Kind};
use crate::method::{Method, Slot, Trial};
use crate::methods::lsq::LsqWeight;
use crate::param::{Group, Param};
use crate::passes::layers::priced_layers;
use crate::quantizer::{Quantizer, Rows};

/// Largest relative change of a scale or step in one update.
const STEP_CHANGE: f32 = 0.02;

/// Accuracy and mean loss on held-out data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evaluated {
    pub accuracy: f64,
    pub loss: f64,
}

/// See the module.
pub(super) struct State<Q> {
    pub model: Model,
    pub engine: Engine,
    pub params: Params,
    /// The same network without rounding of activations, once it was needed.
    pub float: Option<Engine>,
    pub device: Device,
    /// The model before quantization, if it is to be imitated.
    pub teacher: Option<(Engine, Params)>,
    pub slots: Vec<Slot<Q>>,
    /// Biases that are quantized.
    pub biases: Vec<(ValueId, LsqWeight)>,
    /// Everything else that learns: gammas, betas, float biases.
    pub others: Vec<(ValueId, Param)>,
    /// Steps of activation sites.
    pub steps: Vec<(ValueId, Param)>,
    /// Widths of those sites, where they are looked for.
    pub activations: Option<Activations>,
    /// Whether products of rounded numbers are computed with integers.
    integers: bool,
}

impl<Q: Quantizer> State<Q> {
    pub fn new<M: Method<Weight = Q>>(
        model: Model,
        method: &mut M,
        options: &TrainOptions,
        (device, costs): (Device, Option<&Costs>),
    ) -> Result<Self, Error> {
        let engine_options =
            EngineOptions { device, step_gradient: options.step_gradient(), ..EngineOptions::default() };
        let engine = Engine::new(&model, &engine_options)?;
        let mut params = Params::from_model(&model);
        let teacher = match options.distill > 0.0 {
            true => {
                let float = Model { sites: BTreeMap::new(), ..model.clone() };
                Some((Engine::new(&float, &engine_options)?, params.clone()))
            }
            false => None,
        };
        let mut slots: Vec<Slot<Q>> = vec![];
        for layer in priced_layers(&model, costs)? {
            let Some(init) = params.constants.get(&layer.id) else { continue };
            if let Some(x) = init.iter().find(|x| !x.is_finite()) {
                return Err(Error::new(
                    Kind::Model,
                    format!("weight `{}` holds {x}: every number must be finite", layer.name),
                ));
            }
            for layer in layer.split(options.channel_groups) {
                let quantizer = method.weight(&layer, &init[layer.range()])?;
                slots.push(Slot { layer, quantizer });
            }
        }
        // Groups that no grid could hold together are better known before the training than after it.
        by_layer(&slots).try_for_each(|slots| joined(slots).map(drop))?;
        let quantizes = slots.iter().any(|s| s.quantizer.qparams().is_some());
        let (mut biases, mut others) = (vec![], vec![]);
        for parameter in engine.parameters() {
            let is_slot = slots.iter().any(|s| s.layer.id == parameter.id);
            let Some(init) = params.constants.get(&parameter.id).filter(|_| parameter.trained && !is_slot) else {
                continue;
            };
            if parameter.role == Role::Bias && quantizes && options.bias_bits < 32 {
                let rows = Rows::one(init.len());
                let bias = LsqWeight::new(options.bias_bits, Granularity::PerTensor, rows, init, Range::MinMax);
                biases.push((parameter.id, bias));
                continue;
            }
            let (name, group) = match parameter.role {
                Role::Weight => ("weight", Group::Weight),
                Role::Bias | Role::Operand => ("bias", Group::Bias),
                _ => ("norm", Group::Norm),
            };
            others.push((parameter.id, Param::new(name, group, init.clone())));
        }
        let step = |(&id, &step): (&ValueId, &f32)| {
            let mut param = Param::new("step", Group::Scale, vec![step]);
            param.rate = vec![options.activation_rate];
            // At 8 bits a calibrated step is as good as a learned one, and its gradient mostly noise.
            param.frozen = model.sites.get(&id).is_none_or(|site| site.spec.bits >= 8);
            (id, param)
        };
        let steps = params.steps.iter().map(step).collect();
        let integers = options.integers;
        params.forward = match options.forward {
            ForwardPrecision::F32 => Precision::Full,
            ForwardPrecision::Bf16 => Precision::Bf16,
        };
        params.gradients = match options.gradients {
            GradientPrecision::Auto if quantizes => Precision::Bf16,
            GradientPrecision::Bf16 => Precision::Bf16,
            GradientPrecision::Auto | GradientPrecision::F32 => Precision::Full,
        };
        let (float, activations) = (None, None);
        Ok(Self { model, engine, params, float, device, teacher, slots, biases, others, steps, activations, integers })
    }

    /// Shows every parameter with a name that is unique in the run, always in the same order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&str, &mut Param)) {
        let mut slots = std::mem::take(&mut self.slots);
        self.visit_with(&mut slots, f);
        self.slots = slots;
    }

    /// The same while the quantizers of the weights are elsewhere.
    pub fn visit_with(&mut self, slots: &mut [Slot<Q>], f: &mut dyn FnMut(&str, &mut Param)) {
        let graph = &self.model.graph;
        for slot in slots {
            let name = &slot.layer.name;
            slot.quantizer.visit(&mut |p| f(&format!("{name}/{}", p.name), p));
        }
        for (id, bias) in &mut self.biases {
            let name = &graph.value(*id).name;
            bias.visit(&mut |p| f(&format!("{name}/{}", p.name), p));
        }
        for (id, param) in self.others.iter_mut().chain(&mut self.steps) {
            f(&format!("{}/{}", graph.value(*id).name, param.name), param);
        }
        if let Some(activations) = &mut self.activations {
            activations.visit(f);
        }
    }

    /// Name and numbers of each constant that no parameter holds: running statistics above all.
    pub fn statistics(&mut self) -> Vec<(String, &mut Vec<f32>)> {
        let wanted: Vec<ValueId> = self
            .engine
            .parameters()
            .iter()
            .filter(|p| matches!(p.role, Role::Mean | Role::Variance))
            .map(|p| p.id)
            .collect();
        let graph = &self.model.graph;
        self.params
            .constants
            .iter_mut()
            .filter(|(id, _)| wanted.contains(id))
            .map(|(id, values)| (format!("{}/statistic", graph.value(*id).name), values))
            .collect()
    }

    /// One pass forward and backward over a batch: gradients are added to all parameters. Returns loss and correct answers.
    pub fn pass(
        &mut self,
        slots: &mut [Slot<Q>],
        batch: &Batch,
        loss: &Loss,
        options: StepOptions,
    ) -> Result<(f64, usize), Error> {
        self.publish_with(slots);
        let out = self.engine.step(&mut self.params, &batch.x, &batch.labels, loss, options)?;
        self.distribute(slots, &out);
        let found = (f64::from(out.loss), out.correct);
        Ok(found)
    }

    /// Writes everything into the engine's parameters: present weights, biases, norms and steps.
    fn publish(&mut self) {
        let mut slots = std::mem::take(&mut self.slots);
        self.publish_with(&mut slots);
        self.slots = slots;
    }

    /// The same while the quantizers of the weights are elsewhere.
    pub fn publish_with(&mut self, slots: &mut [Slot<Q>]) {
        let params = &mut self.params;
        for slot in slots {
            if let Some(values) = params.constants.get_mut(&slot.layer.id) {
                slot.quantizer.forward(&mut values[slot.layer.range()]);
                // Groups of channels each have steps of their own, and maybe grids of other kinds.
                let is_whole = slot.layer.weights() == values.len();
                match slot.quantizer.grid_steps().filter(|_| self.integers && is_whole) {
                    Some(steps) => params.grids.insert(slot.layer.id, steps.to_vec()),
                    None => params.grids.remove(&slot.layer.id),
                };
            }
        }
        for (id, bias) in &mut self.biases {
            if let Some(values) = params.constants.get_mut(id) {
                bias.forward(values);
            }
        }
        for (id, param) in &self.others {
            if let Some(values) = params.constants.get_mut(id) {
                values.copy_from_slice(&param.value);
            }
        }
        for (id, param) in &self.steps {
            if let (Some(step), Some(value)) = (params.steps.get_mut(id), param.value.first()) {
                *step = *value;
            }
        }
        params.still = self.steps.iter().filter(|(_, step)| step.frozen).map(|(id, _)| *id).collect();
        if let Some(activations) = &self.activations {
            activations.publish(params);
        }
    }

    /// Adds the gradients of a step to all parameters.
    pub fn distribute(&mut self, slots: &mut [Slot<Q>], out: &StepOutput) {
        for slot in slots {
            if let Some(grad) = out.constants.get(&slot.layer.id) {
                slot.quantizer.backward(&grad[slot.layer.range()]);
            }
        }
        for (id, bias) in &mut self.biases {
            if let Some(grad) = out.constants.get(id) {
                bias.backward(grad);
            }
        }
        for (id, param) in &mut self.others {
            if let Some(grad) = out.constants.get(id) {
                param.grad.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g);
            }
        }
        for (id, param) in &mut self.steps {
            if let (Some(grad), Some(sum)) = (out.steps.get(id), param.grad.first_mut()) {
                *sum += grad;
            }
        }
        if let Some(activations) = &mut self.activations {
            activations.distribute(&out.pairs);
        }
    }

    /// One update of everything that learns; gradients are cleared.
    pub fn update(&mut self, options: &TrainOptions, rate: f32) -> Result<(), Error> {
        let algorithm = options.algorithm();
        self.visit(&mut |_, param| update(param, &algorithm, options, rate));
        self.walk_activations()
    }

    /// Runs `f` with a function that measures the mean loss over calibration batches, by the batches' own statistics.
    pub fn with_trial<T>(
        &mut self,
        data: &dyn Data,
        options: &TrainOptions,
        f: impl FnOnce(&mut Trial<'_, Q>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut batches: Option<InMemory> = None;
        let mut trial = |slots: &mut [Slot<Q>]| {
            // Read on first use: most phases end without a question.
            let batches = match &mut batches {
                Some(batches) => batches,
                none => none.insert(InMemory::take(data, options.trial_batches.max(1))?),
            };
            self.mean_loss(slots, batches)
        };
        f(&mut trial)
    }

    /// The mean loss over batches, by their own statistics.
    pub fn mean_loss(&mut self, slots: &mut [Slot<Q>], batches: &InMemory) -> Result<f64, Error> {
        self.publish_with(slots);
        let mut losses = vec![];
        for batch in &batches.batches {
            let logits = self.engine.forward_live(&self.params, &batch.x, batch.labels.len())?;
            losses.extend(Loss::default().per_sample(&logits, self.engine.classes(), &batch.labels));
        }
        Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
    }

    /// Accuracy and loss in inference mode.
    pub fn evaluate(&mut self, data: &dyn Data) -> Result<Evaluated, Error> {
        self.publish();
        evaluate(&self.engine, &self.params, data)
    }

    /// Replaces running means and variances by their plain averages over some batches, with the weights as they are.
    pub fn recalibrate(&mut self, data: &dyn Data, count: usize) -> Result<(), Error> {
        let norms: Vec<(ValueId, f32)> = self
            .model
            .graph
            .nodes()
            .iter()
            .filter_map(|node| match &node.op {
                Op::BatchNormalization(op) => {
                    Some([node.input(3), node.input(4)].map(|id| id.map(|id| (id, op.momentum))))
                }
                _ => None,
            })
            .flatten()
            .flatten()
            .collect();
        if count == 0 || norms.iter().any(|(_, momentum)| *momentum >= 1.0) || norms.is_empty() {
            return Ok(());
        }
        self.publish();
        let mut sums: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        let mut seen = 0usize;
        for batch in data.epoch(u64::from(u32::MAX), 0).take(count) {
            let batch = batch?;
            let before = self.params.clone();
            let norm = StepOptions { update_statistics: true, train_norm: true };
            self.engine.step(&mut self.params, &batch.x, &batch.labels, &Loss::default(), norm)?;
            for (id, momentum) in &norms {
                let (Some(new), Some(old)) = (self.params.constants.get(id), before.constants.get(id)) else {
                    continue;
                };
                let sum = sums.entry(*id).or_insert_with(|| vec![0.0; new.len()]);
                // running = momentum · before + (1 − momentum) · batch, solved for the batch's own.
                let keep = f64::from(*momentum);
                for ((sum, new), old) in sum.iter_mut().zip(new).zip(old) {
                    *sum += (f64::from(*new) - keep * f64::from(*old)) / (1.0 - keep);
                }
            }
            self.params = before;
            seen += 1;
        }
        for (id, sum) in sums {
            if let Some(values) = self.params.constants.get_mut(&id) {
                for (value, sum) in values.iter_mut().zip(sum) {
                    *value = (sum / seen as f64) as f32;
                }
            }
        }
        Ok(())
    }

    /// Widths of all layers; means where the channels of one differ.
    pub fn bits(&self) -> Vec<Bits> {
        let bits = |slots: &[Slot<Q>]| {
            let mean =
                |bits: &dyn Fn(&Q) -> f64| mean_bits(slots.iter().map(|s| (s.layer.weights(), bits(&s.quantizer))));
            Bits {
                name: self.model.graph.value(slots[0].layer.id).name.clone(),
                part: slots[0].layer.part,
                weights: slots.iter().map(|s| s.layer.weights()).sum(),
                stored: mean(&Q::stored_bits),
                paper: mean(&|q| f64::from(q.bits())) as f32,
            }
        };
        by_layer(&self.slots).map(bits).collect()
    }

    pub fn mean_bits(&self) -> f64 {
        mean_bits(self.slots.iter().map(|s| (s.layer.weights(), s.quantizer.stored_bits())))
    }

    /// The model with everything written back: constants, and parameters of weight, bias and activation sites.
    pub fn into_model(mut self) -> Result<Model, Error> {
        self.publish();
        let mut model = self.model;
        self.params.write_to(&mut model)?;
        let biases = self.biases.iter().map(|(id, q)| (*id, SiteRole::Bias, q.qparams()));
        let mut grids: Vec<(ValueId, SiteRole, Option<QParams>)> = biases.collect();
        for slots in by_layer(&self.slots) {
            grids.push((slots[0].layer.id, SiteRole::Weight, joined(slots)?));
        }
        for (id, role, params) in grids {
            match params {
                Some(params) => {
                    model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
                }
                None => {
                    model.sites.remove(&id);
                }
            }
            // A negative zero would not survive the way through integers.
            if let Some(values) = model.graph.constant_f32_mut(id) {
                values.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = 0.0);
            }
        }
        Ok(model)
    }
}

/// The slots of each layer: one, or its groups of channels.
fn by_layer<Q>(slots: &[Slot<Q>]) -> impl Iterator<Item = &[Slot<Q>]> {
    slots.chunk_by(|a, b| a.layer.id == b.layer.id)
}

/// The grid of a layer: that of its slot, or of all groups of its channels together, which must be integers about zero.
fn joined<Q: Quantizer>(slots: &[Slot<Q>]) -> Result<Option<QParams>, Error> {
    if let [slot] = slots {
        return Ok(slot.quantizer.qparams());
    }
    let (mut rows, mut scale) = (vec![], vec![]);
    for slot in slots {
        let Some(params) = slot.quantizer.qparams() else { return Ok(None) };
        let bits = match params.spec.grid {
            Grid::Affine { signed: true, symmetric: true } if params.zero_point.iter().all(|&z| z == 0) => {
                params.spec.bits
            }
            // Planes without a gap are the same numbers.
            Grid::Planes { mask } if mask.count_ones() == 8 - mask.leading_zeros() => params.spec.bits,
            grid => {
                let message = format!(
                    "channels of `{}` lie on {grid:?}: only integers about zero can have several widths; use channel_groups = 1",
                    slot.layer.name
                );
                return Err(Error::option(message));
            }
        };
        let channels = slot.layer.shape[0];
        rows.extend(std::iter::repeat_n(bits, channels));
        match params.scale.as_slice() {
            &[one] => scale.extend(std::iter::repeat_n(one, channels)),
            each => scale.extend(each),
        }
    }
    Ok(Some(QParams::by_rows(rows, scale)))
}

/// Accuracy and mean loss of a compiled model in inference mode.
pub(super) fn evaluate(engine: &Engine, params: &Params, data: &dyn Data) -> Result<Evaluated, Error> {
    let classes = engine.classes().max(1);
    let (mut n, mut right, mut loss) = (0usize, 0usize, 0f64);
    for batch in data.epoch(0, 0) {
        let batch = batch?;
        let logits = engine.forward(params, &batch.x, batch.labels.len())?;
        for (z, &label) in logits.chunks(classes).zip(&batch.labels) {
            let label = label as usize;
            let Some(&own) = z.get(label) else {
                return Err(Error::new(
                    Kind::Data,
                    format!("label {label} is outside the {classes} classes of the network"),
                ));
            };
            right += usize::from(bitsmith_engine::loss::argmax(z) == label);
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = z.iter().map(|v| f64::from(v - top).exp()).sum();
            loss += sum.ln() - f64::from(own - top);
            n += 1;
        }
    }
    let n = n.max(1) as f64;
    Ok(Evaluated { accuracy: right as f64 / n, loss: loss / n })
}

/// The optimiser on one parameter, segment by segment.
fn update(param: &mut Param, algorithm: &Algorithm, options: &TrainOptions, rate: f32) {
    let segments = param.rate.len().max(1);
    let len = param.value.len() / segments;
    if param.frozen || len == 0 {
        param.clear_grad();
        return;
    }
    param.memory.resize_with(segments, Memory::default);
    let before = (param.group == Group::Scale).then(|| param.value.clone());
    let decay = if param.group == Group::Weight || options.decay_all { options.weight_decay } else { 0.0 };
    let parts = param.value.chunks_mut(len).zip(param.grad.chunks(len)).zip(&mut param.memory).zip(&param.rate);
    for (((value, grad), memory), factor) in parts {
        algorithm.update(memory, value, grad, Rates { learning_rate: rate * factor, weight_decay: decay });
    }
    // One unlucky batch must not move a grid far. A step that passed zero, or jumped beyond all that it rounds, would not come back:
    // its channel would round to nothing, which has no gradient.
    for (scale, before) in param.value.iter_mut().zip(before.into_iter().flatten()) {
        let most = before * STEP_CHANGE;
        *scale = scale.clamp(before - most, before + most).max(SMALLEST_STEP);
    }
    param.clear_grad();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::options::OptimizerName;

    #[test]
    fn no_update_moves_a_grid_far() {
        for optimizer in [OptimizerName::Sgd, OptimizerName::Adamw] {
            let options = TrainOptions { optimizer, ..TrainOptions::default() };
            let mut steps = Param::new("steps", Group::Scale, vec![1e-4, 0.5, 2.0]);
            for _ in 0..3 {
                let before = steps.value.clone();
                steps.grad = vec![1e3, -1e3, 1e-9];
                update(&mut steps, &options.algorithm(), &options, 0.1);
                for (after, before) in steps.value.iter().zip(before) {
                    assert!(
                        (after / before - 1.0).abs() <= 1.001 * STEP_CHANGE,
                        "{optimizer:?}: {before} became {after}"
                    );
                }
            }
            // Weights go where the gradient sends them.
            let mut weight = Param::new("latent", Group::Weight, vec![1e-4]);
            weight.grad = vec![1e3];
            update(&mut weight, &options.algorithm(), &options, 0.1);
            assert!(weight.value[0] < -0.05);
        }
    }
}
