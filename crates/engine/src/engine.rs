//! A compiled model that infers and trains.

use std::collections::{BTreeMap, BTreeSet};

use bitsmith_graph::{Graph, Grid, Model, QParams, Role as SiteRole, Shape, ValueId};
use bitsmith_kernels::fakequant::Inside;
use bitsmith_kernels::threads::{for_each_part, team};
use burn_autodiff::Autodiff;
use burn_backend::ops::FloatTensorOps;
use burn_backend::{AutodiffBackend, BackendTypes, Shape as BurnShape, TensorData, TensorMetadata};
use burn_flex::Flex;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::gpu::Cube;
use crate::device::{Device, Place};
use crate::error::{Error, Kind};
use crate::loss::Loss;
use crate::memory;
use crate::ops::{Composed, FakeQuant, Fused, Pair, Rounding, Tensor, TrainOps, read, read_all};
use crate::params::{Between, Params, name_of};
use crate::plan::{Batch, Facts, Leaves, Observed, Plan, Role, Run, Seen, compile, execute};
use crate::profile;

/// How a model is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// Where it runs.
    pub device: Device,
    /// Which operators to use on the CPU.
    pub operators: Operators,
    /// What moves the steps of activations.
    pub step_gradient: StepGradient,
}

/// What moves the step of an activation site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepGradient {
    /// LSQ: rounding errors inside the range, and what is clipped.
    #[default]
    Lsq,
    /// PACT: what is clipped.
    Pact,
}

/// Which implementation of the operators runs on the CPU. Elsewhere there is only the composition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operators {
    /// Our fused kernels.
    #[default]
    Fused,
    /// The composition of burn's own operations that other devices use. Slow here; for comparison.
    Composed,
}

/// What a training step updates besides returning gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    /// Whether running means and variances in the parameters take in this batch's; only with `train_norm`.
    pub update_statistics: bool,
    /// Whether batch normalisation uses the statistics of the batch. Otherwise it is frozen: the running statistics are used
    /// as constants, and gamma and beta still get gradients.
    pub train_norm: bool,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { update_statistics: true, train_norm: true }
    }
}

/// What a training step found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutput {
    /// Mean over the batch.
    pub loss: f32,
    /// Samples whose largest logit is the label's; 0 without labels.
    pub correct: usize,
    /// Logits, `[batch, classes]`.
    pub logits: Vec<f32>,
    /// `∂loss/∂` every trained constant; see [`Engine::parameters`].
    pub constants: BTreeMap<ValueId, Vec<f32>>,
    /// `∂loss/∂` every step size, with LSQ's factor `1 / sqrt(n · q_max)`, n being the features per sample.
    pub steps: BTreeMap<ValueId, f32>,
    /// The same for the narrower step of every site between two widths; and `∂loss/∂mix` as it is.
    pub pairs: BTreeMap<ValueId, Between>,
}

/// A constant that the network reads, and what it is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The constant.
    pub id: ValueId,
    /// Its use.
    pub role: Role,
    /// Number of elements.
    pub len: usize,
    /// Whether a step returns its gradient.
    pub trained: bool,
}

/// A model compiled for execution. The numbers it computes with come from [`Params`] each time.
#[derive(Debug, Clone)]
pub struct Engine {
    graph: Graph,
    sites: BTreeMap<ValueId, Rounding>,
    step_gradient: StepGradient,
    plan: Plan,
    place: Place,
    output: ValueId,
    /// Elements per sample of the input.
    sample: usize,
}

impl Engine {
    /// Compiles a model: one input whose first axis is the batch, and one output (further ones are ignored here, but
    /// [`Engine::forward_values`] computes any value).
    ///
    /// Activation and input sites that have parameters round with the step in [`Params`]; sites without parameters
    /// do nothing yet. Weights are taken as [`Params`] gives them.
    pub fn new(model: &Model, options: &EngineOptions) -> Result<Self, Error> {
        let graph = model.graph.clone();
        let [input] = graph.inputs() else {
            let count = graph.inputs().len();
            return Err(unsupported("", format!("the model has {count} inputs but training feeds exactly one")));
        };
        let Some(&output) = graph.outputs().first() else {
            return Err(unsupported("", "the model has no output"));
        };
        let shapes = graph.shapes(1)?;
        check_batch(&graph, &shapes, output)?;
        let sample = shapes[input.value.index()].iter().product();
        let sites = sites_of(model, &shapes, options.step_gradient, &BTreeSet::new())?;
        let plan = compile(&Facts { graph: &graph, shapes: &shapes, sites: &sites }, &[output])?;
        let place = options.device.open(options.operators)?;
        // A dry run finds geometry that no operator accepts, before anything is trained. Always here: what the kernels accept holds
        // everywhere, and a GPU would compile kernels for a batch that never comes.
        let step_gradient = options.step_gradient;
        let engine = Self { graph, sites, step_gradient, plan, place: Place::Fused, output, sample };
        engine.rehearse()?;
        Ok(Self { place, ..engine })
    }

    /// Takes the grids of activation and input sites anew from `model`, the one this was compiled from. Those in `between` round to a
    /// mixture of their grid and the one of a bit less, as [`Params::pairs`] says; they must have at least two bits and their
    /// zero point at code 0.
    pub fn set_sites(&mut self, model: &Model, between: &BTreeSet<ValueId>) -> Result<(), Error> {
        let shapes = self.graph.shapes(1)?;
        let sites = sites_of(model, &shapes, self.step_gradient, between)?;
        self.plan = compile(&Facts { graph: &self.graph, shapes: &shapes, sites: &sites }, &[self.output])?;
        self.sites = sites;
        Ok(())
    }

    /// Constants that the network reads, with their use.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(id, role, shape): &(ValueId, Role, Shape)| {
            let len = shape.iter().product();
            Parameter { id: *id, role: *role, len, trained: role.is_trained(len) }
        };
        self.plan.constants.iter().map(parameter).collect()
    }

    /// Values whose step size is trained, in execution order.
    pub fn quantized(&self) -> &[ValueId] {
        &self.plan.sites
    }

    /// Elements of one input sample.
    pub fn sample_len(&self) -> usize {
        self.sample
    }

    /// Elements of the output for one sample: the number of classes of a classifier.
    pub fn classes(&self) -> usize {
        self.graph.shapes(1).map_or(0, |shapes| shapes[self.output.index()].iter().product())
    }

    /// The output in inference mode, row-major, for `batch` samples in the graph's layout.
    pub fn forward(&self, params: &Params, x: &[f32], batch: usize) -> Result<Vec<f32>, Error> {
        let mut out = self.infer(&self.plan, params, x, batch, Batch::Frozen)?;
        Ok(out.pop().unwrap_or_default())
    }

    /// The output as a training step computes it, normalised by the batch's own statistics, without gradients.
    pub fn forward_live(&self, params: &Params, x: &[f32], batch: usize) -> Result<Vec<f32>, Error> {
        let mut out = self.infer(&self.plan, params, x, batch, Batch::Live)?;
        Ok(out.pop().unwrap_or_default())
    }

    /// Any computed values in inference mode, in the graph's layout; the input is one too. A value that is a site is
    /// returned as rounded.
    pub fn forward_values(
        &self,
        params: &Params,
        x: &[f32],
        batch: usize,
        values: &[ValueId],
    ) -> Result<Vec<Vec<f32>>, Error> {
        self.values(params, x, batch, values, Batch::Frozen)
    }

    /// The same as a training step computes them, normalised by the batch's own statistics.
    pub fn forward_values_live(
        &self,
        params: &Params,
        x: &[f32],
        batch: usize,
        values: &[ValueId],
    ) -> Result<Vec<Vec<f32>>, Error> {
        self.values(params, x, batch, values, Batch::Live)
    }

    fn values(
        &self,
        params: &Params,
        x: &[f32],
        batch: usize,
        values: &[ValueId],
        statistics: Batch,
    ) -> Result<Vec<Vec<f32>>, Error> {
        if let Some(id) = values.iter().find(|id| id.index() >= self.graph.values().len()) {
            return Err(Error::input(format!("value {} does not exist in this model", id.index())));
        }
        let shapes = self.graph.shapes(1)?;
        let plan = compile(&Facts { graph: &self.graph, shapes: &shapes, sites: &self.sites }, values)?;
        self.infer(&plan, params, x, batch, statistics)
    }

    /// One pass forward and backward: loss and gradients. Batch-norm statistics in `params` are updated as `options` say.
    ///
    /// `labels` may be empty only where the loss is pure distillation. Should this panic, parameters are lost; an error leaves them as they were.
    pub fn step(
        &self,
        params: &mut Params,
        x: &[f32],
        labels: &[u32],
        loss: &Loss,
        options: StepOptions,
    ) -> Result<StepOutput, Error> {
        let shapes = self.check_input(&self.plan, params, x, None)?;
        let shape = &shapes[self.output.index()];
        let &[batch, classes] = shape.as_slice() else {
            let name = &self.graph.value(self.output).name;
            return Err(unsupported(name, format!("the output is {shape:?}: training needs [batch, classes]")));
        };
        loss.check(batch, classes, labels)?;
        // Our own operators leave parameters as they are: those become leaves without a copy, and come back.
        let mut lent = BTreeMap::new();
        if matches!(self.place, Place::Fused) {
            for (id, _, _) in self.trained() {
                if let Some(values) = params.constants.get_mut(id).filter(|values| !values.is_empty()) {
                    lent.insert(*id, std::mem::take(values));
                }
            }
        }
        let call = StepCall { params, shapes: &shapes, x, labels, loss, options };
        let lend = &mut lent;
        let stepped = match &self.place {
            Place::Fused => team(|| self.train::<Fused<Autodiff<Flex>>, _>(&call, lend, &Default::default())),
            Place::Composed => team(|| self.train::<Composed<Autodiff<Flex>>, _>(&call, lend, &Default::default())),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Place::Gpu(gpu) => gpu.run(|| self.train::<Composed<Autodiff<Cube>>, _>(&call, lend, &gpu.device)),
        };
        params.constants.extend(lent);
        let (out, seen) = stepped?;
        if options.update_statistics {
            seen.iter().for_each(|seen| blend(params, seen));
        }
        Ok(out)
    }

    /// The constants that learn.
    fn trained(&self) -> impl Iterator<Item = &(ValueId, Role, Shape)> {
        self.plan.constants.iter().filter(|(_, role, shape)| role.is_trained(shape.iter().product()))
    }

    /// A step. What is `lent` of the parameters is in its place again when this returns, whatever it returns.
    fn train<O, B>(
        &self,
        call: &StepCall<'_>,
        lent: &mut BTreeMap<ValueId, Vec<f32>>,
        device: &B::Device,
    ) -> Result<Stepped, Error>
    where
        O: TrainOps<B = B>,
        B: AutodiffBackend,
    {
        let params = call.params;
        let track = |tensor: Tensor<O>| B::float_set_require_grad(tensor, true);
        let time = profile::span("parameters and input");
        let mut leaves = leaves::<O>(&self.plan, params, device);
        let ids: Vec<ValueId> = lent.keys().copied().collect();
        for (id, _, shape) in self.trained() {
            let leaf = match lent.remove(id) {
                Some(values) => {
                    Some(B::float_from_data(TensorData::new(values, BurnShape::from(shape.clone())), device))
                }
                None => leaves.constants.remove(id),
            };
            leaves.constants.extend(leaf.map(|leaf| (*id, track(leaf))));
        }
        let step = |(id, step)| (id, if params.still.contains(&id) { step } else { track(step) });
        leaves.steps = std::mem::take(&mut leaves.steps).into_iter().map(step).collect();
        leaves.pairs = std::mem::take(&mut leaves.pairs).into_iter().map(|(id, p)| (id, p.map(track))).collect();
        drop(time);
        let stepped = self.pass::<O, B>(call, &leaves, device);
        for id in ids {
            lent.extend(leaves.constants.remove(&id).and_then(O::values).map(|values| (id, values)));
        }
        stepped
    }

    /// Forward and backward. Waits for the device twice: for the logits, which the loss on the host needs, and for everything else.
    fn pass<O, B>(&self, call: &StepCall<'_>, leaves: &Leaves<Tensor<O>>, device: &B::Device) -> Result<Stepped, Error>
    where
        O: TrainOps<B = B>,
        B: AutodiffBackend,
    {
        let StepCall { params, shapes, x, labels, loss, options } = *call;
        let statistics = if options.train_norm { Batch::Live } else { Batch::Frozen };
        let run = Run { plan: &self.plan, shapes, params, statistics };
        let time = profile::span("parameters and input");
        let x = upload::<O>(x, &shapes[self.graph.inputs()[0].value.index()], device);
        drop(time);
        let time = profile::span("forward, all");
        let mut observed = Observed::default();
        let mut outputs = execute::<O>(&run, x, leaves, &mut observed)?;
        let seen = observed.statistics;
        let Some(output) = outputs.pop() else { return Err(Error::input("the plan has no output")) };
        let logits = read::<B::InnerBackend>(B::inner(output.clone()))?;
        drop(time);
        let classes = shapes[self.output.index()].last().copied().unwrap_or(1);
        let evaluated = loss.evaluate(&logits, classes, labels);
        // The loss was computed on the host. Seen from the tape it is Σ logits · g with g = ∂loss/∂logits constant, which has
        // exactly that gradient.
        let g = TensorData::new(evaluated.gradient, output.shape());
        let g = B::from_inner(B::InnerBackend::float_from_data(g, device));
        let surrogate = B::float_sum(B::float_mul(output, g));
        let mut grads = {
            let _time = profile::span("backward, all");
            B::backward(surrogate)
        };
        let _time = profile::span("gradients to the host");
        let mut out = StepOutput {
            loss: evaluated.loss,
            correct: evaluated.correct,
            logits,
            constants: BTreeMap::new(),
            steps: BTreeMap::new(),
            pairs: BTreeMap::new(),
        };
        // What nothing reached has no gradient; the others are read in this order, and the statistics after them.
        let mut pending = vec![];
        let mut gradient = |tensor: &Tensor<O>| {
            let gradient = B::grad_remove(tensor, &mut grads);
            let is_there = gradient.is_some();
            pending.extend(gradient);
            is_there
        };
        let (mut constants, mut steps, mut pairs) = (vec![], vec![], vec![]);
        for (id, _, shape) in self.trained() {
            if let Some(tensor) = leaves.constants.get(id) {
                match gradient(tensor) {
                    true => constants.push(*id),
                    false => drop(out.constants.insert(*id, vec![0.0; shape.iter().product()])),
                }
            }
        }
        for (id, tensor) in &leaves.steps {
            match gradient(tensor) {
                true => steps.push(*id),
                false => drop(out.steps.insert(*id, 0.0)),
            }
        }
        for (id, [step, mix]) in &leaves.pairs {
            out.pairs.insert(*id, Between::default());
            if gradient(step) && gradient(mix) {
                pairs.push(*id);
            }
        }
        pending.extend(seen.iter().flat_map(|s| [&s.statistics.mean, &s.statistics.variance]).cloned().map(B::inner));
        let mut values = read_all::<B::InnerBackend>(pending)?.into_iter();
        out.constants.extend(constants.into_iter().zip(values.by_ref()));
        out.steps.extend(steps.into_iter().zip(values.by_ref()).filter_map(|(id, g)| Some((id, *g.first()?))));
        let mut number = || values.next().and_then(|g| g.first().copied()).unwrap_or_default();
        out.pairs.extend(pairs.into_iter().map(|id| (id, Between { step: number(), mix: number() })));
        let seen = seen.into_iter().map(|s| s.map(|_| values.next().unwrap_or_default())).collect();
        Ok((out, seen))
    }

    fn infer(
        &self,
        plan: &Plan,
        params: &Params,
        x: &[f32],
        batch: usize,
        statistics: Batch,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let shapes = self.check_input(plan, params, x, Some(batch))?;
        let run = Run { plan, shapes: &shapes, params, statistics };
        let input = &shapes[self.graph.inputs()[0].value.index()];
        match &self.place {
            Place::Fused => team(|| outputs::<Fused<Flex>>(&run, x, input, &Default::default())),
            Place::Composed => team(|| outputs::<Composed<Flex>>(&run, x, input, &Default::default())),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Place::Gpu(gpu) => gpu.run(|| outputs::<Composed<Cube>>(&run, x, input, &gpu.device)),
        }
    }

    /// Shapes for the batch that `x` holds, after checking that everything needed has its size.
    fn check_input(&self, plan: &Plan, params: &Params, x: &[f32], batch: Option<usize>) -> Result<Vec<Shape>, Error> {
        let found = x.len() / self.sample.max(1);
        let batch = batch.unwrap_or(found);
        if batch == 0 || batch.checked_mul(self.sample) != Some(x.len()) {
            return Err(Error::input(format!(
                "the input has {} numbers but {batch} samples of {} need {}",
                x.len(),
                self.sample,
                batch.saturating_mul(self.sample)
            )));
        }
        for (id, _, shape) in &plan.constants {
            let wanted: usize = shape.iter().product();
            let found = params.constants.get(id).map(Vec::len);
            if found != Some(wanted) {
                let found = found.map_or("missing".to_owned(), |n| format!("{n} numbers long"));
                let detail = format!("this constant is {found} in the parameters but the network reads {wanted}");
                return Err(Error::new(Kind::Params, &self.graph.value(*id).name, detail));
            }
        }
        for id in &plan.sites {
            let step = params.steps.get(id).copied();
            if !step.is_some_and(|s| s > 0.0 && s.is_finite()) {
                let found = step.map_or("missing".to_owned(), |s| s.to_string());
                let detail = format!("the step size of this site is {found} but must be positive");
                return Err(Error::new(Kind::Params, &self.graph.value(*id).name, detail));
            }
        }
        for id in &plan.pairs {
            let pair = params.pairs.get(id).copied();
            if !pair.is_some_and(|p| p.step > 0.0 && p.step.is_finite() && (0.0..=1.0).contains(&p.mix)) {
                let found = pair.map_or("missing".to_owned(), |p| format!("step {} and mixture {}", p.step, p.mix));
                let detail = format!("the second grid of this site is {found}: a positive step and 0 to 1 are needed");
                return Err(Error::new(Kind::Params, &self.graph.value(*id).name, detail));
            }
        }
        let shapes = self.graph.shapes(batch)?;
        let kept = shapes[self.output.index()].first() == Some(&batch);
        if kept { Ok(shapes) } else { Err(batch_error(&self.graph, self.output)) }
    }

    /// Runs zeros through the network.
    fn rehearse(&self) -> Result<(), Error> {
        let constants = self.plan.constants.iter().map(|(id, _, shape)| (*id, vec![0.0; shape.iter().product()]));
        let steps = self.plan.sites.iter().map(|&id| (id, 1.0));
        let params = Params { constants: constants.collect(), steps: steps.collect(), ..Params::default() };
        self.forward(&params, &vec![0.0; self.sample], 1).map(|_| ())
    }
}

/// Every value that depends on the batch must keep it as its first axis, and nothing may be empty.
fn check_batch(graph: &Graph, shapes: &[Shape], output: ValueId) -> Result<(), Error> {
    if let Some(id) = graph.value_ids().find(|id| shapes[id.index()].contains(&0)) {
        let name = &graph.value(id).name;
        return Err(unsupported(name, format!("this value is {:?}, which is empty", shapes[id.index()])));
    }
    let two = graph.shapes(2).map_err(|_| batch_error(graph, output))?;
    if shapes[output.index()].first() != Some(&1) || two[output.index()].first() != Some(&2) {
        return Err(batch_error(graph, output));
    }
    Ok(())
}

fn batch_error(graph: &Graph, output: ValueId) -> Error {
    let detail = "the output does not follow the batch size: export the model with a dynamic first axis of its input, and \
                  without reshapes to a fixed batch";
    unsupported(&graph.value(output).name, detail)
}

fn unsupported(place: &str, detail: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, place, detail)
}

/// The rounding of activation and input sites that have parameters.
fn sites_of(
    model: &Model,
    shapes: &[Shape],
    gradient: StepGradient,
    between: &BTreeSet<ValueId>,
) -> Result<BTreeMap<ValueId, Rounding>, Error> {
    let inside = match gradient {
        StepGradient::Lsq => Inside::Error,
        StepGradient::Pact => Inside::Nothing,
    };
    let mut out = BTreeMap::new();
    for (&id, site) in &model.sites {
        let Some(params) = site.params.as_ref().filter(|_| matches!(site.role, SiteRole::Activation | SiteRole::Input))
        else {
            continue;
        };
        let fail = |detail: String| Err(Error::new(Kind::Unsupported, name_of(model, id), detail));
        if !matches!(params.spec.grid, Grid::Affine { .. }) || params.scale.len() != 1 {
            return fail(
                "activations are quantized on an affine grid with one scale; choose that in the policy".into(),
            );
        }
        if let Err(error) = params.check(1) {
            return fail(error.to_string());
        }
        let Some(shape) = shapes.get(id.index()) else {
            return fail("the site names a value that does not exist".into());
        };
        let features: usize = shape.iter().skip(1).product();
        let grid = |params: &QParams| {
            let (low, high) = params.code_range();
            let zero = params.zero_point(0);
            let (low, high) = (low - zero, high - zero);
            let q_max = if high > 0 { high } else { -low };
            let grad_scale = bitsmith_kernels::fakequant::lsq_gradient_scale(features, q_max);
            FakeQuant { low, high, grad_scale, inside }
        };
        let wide = grid(params);
        if !between.contains(&id) {
            out.insert(id, Rounding::One(wide));
            continue;
        }
        let mut narrow = params.clone();
        narrow.spec.bits = params.spec.bits.saturating_sub(1);
        if params.zero_point(0) != 0 || narrow.check(1).is_err() {
            return fail("only a grid of two bits or more whose zero point is at code 0 has a narrower one".into());
        }
        out.insert(id, Rounding::Between(Pair { wide, narrow: grid(&narrow) }));
    }
    Ok(out)
}

/// The arguments of a step, checked.
#[derive(Clone, Copy)]
struct StepCall<'a> {
    params: &'a Params,
    /// Of all values, for this batch.
    shapes: &'a [Shape],
    x: &'a [f32],
    labels: &'a [u32],
    loss: &'a Loss,
    options: StepOptions,
}

/// What a step found, and what normalisations saw.
type Stepped = (StepOutput, Vec<Seen<Vec<f32>>>);

/// The device of an operator set.
type DeviceOf<O> = <<O as TrainOps>::B as BackendTypes>::Device;

fn upload<O: TrainOps>(values: &[f32], shape: &[usize], device: &DeviceOf<O>) -> Tensor<O> {
    let mut buffer = memory::take(values.len());
    for_each_part(&mut buffer, 1, |at, part| part.copy_from_slice(&values[at..at + part.len()]));
    let data = TensorData::new(buffer, BurnShape::from(shape.to_vec()));
    O::B::float_from_data(data, device)
}

/// Tensors of the constants and steps that a plan reads; their sizes were checked.
fn leaves<O: TrainOps>(plan: &Plan, params: &Params, device: &DeviceOf<O>) -> Leaves<Tensor<O>> {
    let constant = |(id, role, shape): &(ValueId, Role, Shape)| {
        // Statistics are read on the host. What is lent is elsewhere.
        let is_read = |values: &&Vec<f32>| !values.is_empty() && !matches!(role, Role::Mean | Role::Variance);
        let values = params.constants.get(id).filter(is_read)?;
        Some((*id, upload::<O>(values, shape, device)))
    };
    let step = |id: &ValueId| Some((*id, upload::<O>(&[*params.steps.get(id)?], &[1], device)));
    let pair = |id: &ValueId| {
        let pair = params.pairs.get(id)?;
        Some((*id, [pair.step, pair.mix].map(|x| upload::<O>(&[x], &[1], device))))
    };
    Leaves {
        constants: plan.constants.iter().filter_map(constant).collect(),
        steps: plan.sites.iter().filter_map(step).collect(),
        pairs: plan.pairs.iter().filter_map(pair).collect(),
        errors: BTreeMap::new(),
    }
}

fn outputs<O: TrainOps>(
    run: &Run<'_>,
    x: &[f32],
    shape: &[usize],
    device: &DeviceOf<O>,
) -> Result<Vec<Vec<f32>>, Error> {
    let leaves = leaves::<O>(run.plan, run.params, device);
    let outputs = execute::<O>(run, upload::<O>(x, shape, device), &leaves, &mut Observed::default())?;
    read_all::<O::B>(outputs)
}

/// Takes the statistics of a batch into the running ones: `old · momentum + new · (1 - momentum)`, the variance unbiased as
/// in PyTorch.
fn blend(params: &mut Params, seen: &Seen<Vec<f32>>) {
    let unbiased = seen.rows as f32 / seen.rows.saturating_sub(1).max(1) as f32;
    let (mean, variance) = (&seen.statistics.mean, &seen.statistics.variance);
    for (id, batch, factor) in [(seen.mean, mean, 1.0), (seen.variance, variance, unbiased)] {
        if let Some(running) = params.constants.get_mut(&id) {
            for (running, batch) in running.iter_mut().zip(batch) {
                *running = seen.momentum * *running + (1.0 - seen.momentum) * factor * batch;
            }
        }
    }
}

mod rounding_errors;
#[cfg(test)]
mod tests;

pub use rounding_errors::{RoundingErrors, WeightError};
