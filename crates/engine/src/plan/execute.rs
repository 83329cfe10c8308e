//! Runs a [`Plan`] on any operator set.

use std::collections::BTreeMap;

use bitsmith_graph::ops::{AveragePool, Conv, MaxPool, PadMode, Window};
use bitsmith_graph::{Shape, ValueId};
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::pool::{Padding, PoolShape, Rounding};
use burn_backend::ops::{ActivationOps, FloatTensorOps, IntTensorOps, PadMode as BurnPad};
use burn_backend::{Scalar, Shape as BurnShape, Slice, TensorData, TensorMetadata, get_or_init_device_settings};

use super::nodes::stored_order;
use super::{Arg, Binary, Kind, Layout, NormStep, Plan, Step};
use crate::error::{Error, Kind as ErrorKind};
use crate::ops::{BatchStatistics, Grid, Integers, Norm, Products, Statistics, Tensor, TrainOps};
use crate::params::Params;
use crate::profile;

/// Where normalisations take their statistics from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batch {
    /// The batch: training.
    Live,
    /// The running ones: inference, or training with normalisation frozen.
    Frozen,
}

/// One execution: everything but the tensors.
pub(crate) struct Run<'a> {
    pub plan: &'a Plan,
    /// Shapes of all values of the graph for this batch.
    pub shapes: &'a [Shape],
    pub params: &'a Params,
    pub statistics: Batch,
}

/// Statistics that a normalisation saw, to be blended into the running ones.
pub(crate) struct Seen<T> {
    pub mean: ValueId,
    pub variance: ValueId,
    /// Share of the old statistic that stays.
    pub momentum: f32,
    /// Elements per channel.
    pub rows: usize,
    pub statistics: BatchStatistics<T>,
}

impl<T> Seen<T> {
    /// The same with its statistics in another form.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Seen<U> {
        let Self { mean, variance, momentum, rows, statistics } = self;
        Seen { mean, variance, momentum, rows, statistics: statistics.map(f) }
    }
}

/// What an execution leaves besides its outputs.
pub(crate) struct Observed<T> {
    /// Of every normalisation that used the batch's own statistics.
    pub statistics: Vec<Seen<T>>,
    /// Of every layer whose weight is in [`Leaves::errors`]: the sums of squares of what it makes of the error, and of what it puts out.
    pub errors: Vec<(ValueId, [T; 2])>,
}

impl<T> Default for Observed<T> {
    fn default() -> Self {
        Self { statistics: vec![], errors: vec![] }
    }
}

/// The tensors of parameters.
pub(crate) struct Leaves<T> {
    pub constants: BTreeMap<ValueId, T>,
    pub steps: BTreeMap<ValueId, T>,
    /// The narrower step and the mixture of sites between two widths.
    pub pairs: BTreeMap<ValueId, [T; 2]>,
    /// Errors of weights, whose effect on their layer's output is asked for.
    pub errors: BTreeMap<ValueId, T>,
}

/// Runs all steps; returns the plan's outputs.
pub(crate) fn execute<O: TrainOps>(
    run: &Run<'_>,
    x: Tensor<O>,
    leaves: &Leaves<Tensor<O>>,
    observed: &mut Observed<Tensor<O>>,
) -> Result<Vec<Tensor<O>>, Error> {
    let mut values: Vec<Option<Tensor<O>>> = (0..run.plan.slots).map(|_| None).collect();
    values[run.plan.input] = Some(x);
    // Which values are integers times a step.
    let mut grids: Vec<Option<Grid>> = vec![None; run.plan.slots];
    for step in &run.plan.steps {
        let mut inputs = Vec::with_capacity(step.inputs.len() + 1);
        for (index, arg) in step.inputs.iter().enumerate() {
            let tensor = match arg {
                // Moved out where this is the last reading, so that its buffer can be used again.
                Arg::Slot(slot) if step.free.contains(slot) && !step.inputs[index + 1..].contains(arg) => {
                    values[*slot].take()
                }
                Arg::Slot(slot) => values[*slot].clone(),
                Arg::Constant(id) => leaves.constants.get(id).cloned(),
            };
            // A plan defines each slot before it is read, and the engine makes a leaf of each constant.
            inputs.push(tensor.ok_or_else(|| Error::new(ErrorKind::Params, &*step.name, "an input is missing"))?);
        }
        let before = match step.inputs.first() {
            Some(Arg::Slot(slot)) => grids[*slot],
            _ => None,
        };
        let after = grid_after(run, &step.kind, before);
        step.outputs.iter().for_each(|slot| grids[*slot] = after);
        let outputs = perform::<O>(run, step, (inputs, before), leaves, observed).map_err(|mut e| {
            if e.place.is_empty() {
                e.place.clone_from(&step.name);
            }
            e
        })?;
        for (slot, tensor) in step.outputs.iter().zip(outputs) {
            values[*slot] = Some(tensor);
        }
        for slot in &step.free {
            values[*slot] = None;
        }
    }
    let missing = || Error::new(ErrorKind::Params, "", "an output was not computed");
    run.plan.outputs.iter().map(|&slot| values[slot].clone().ok_or_else(missing)).collect()
}

/// The grid of what a step makes of a value of this grid.
fn grid_after(run: &Run<'_>, kind: &Kind, before: Option<Grid>) -> Option<Grid> {
    match kind {
        Kind::FakeQuant(site, quant) | Kind::Norm(NormStep { quant: Some((site, quant)), .. }) => {
            Some(Grid { step: *run.params.steps.get(site)?, low: quant.low, high: quant.high })
        }
        Kind::Reshape | Kind::Permute(_) | Kind::ToLast | Kind::ToFirst | Kind::Split { .. } => before,
        // Some of the values, and zeros.
        Kind::MaxPool(_) | Kind::Shortcut(_) => before.filter(|grid| grid.low <= 0 && grid.high >= 0),
        _ => None,
    }
}

/// How a product with the second input may be computed, the first one being of this grid.
fn products<'a>(run: &Run<'a>, step: &Step, grid: Option<Grid>) -> Products<'a> {
    let steps = match step.inputs.get(1) {
        Some(Arg::Constant(id)) => run.params.grids.get(id),
        _ => None,
    };
    let integers = grid.zip(steps).map(|(grid, steps)| Integers { grid, steps });
    Products { integers, forward: run.params.forward, gradients: run.params.gradients }
}

fn perform<O: TrainOps>(
    run: &Run<'_>,
    step: &Step,
    (inputs, grid): (Vec<Tensor<O>>, Option<Grid>),
    leaves: &Leaves<Tensor<O>>,
    observed: &mut Observed<Tensor<O>>,
) -> Result<Vec<Tensor<O>>, Error> {
    let (x_shape, y_shape) = (&run.shapes[step.x.index()], &run.shapes[step.y.index()]);
    let mut inputs = inputs.into_iter();
    let missing = || Error::new(ErrorKind::Params, "", "an input is missing");
    let mut next = || inputs.next().ok_or_else(missing);
    let x = next()?;
    // Fused operators time themselves; the rest is burn's.
    let _time = match &step.kind {
        Kind::Conv(_)
        | Kind::Norm(_)
        | Kind::Activation(_)
        | Kind::FakeQuant(..)
        | Kind::FakeQuantPair(..)
        | Kind::Linear { .. } => None,
        Kind::Slice(..) => Some(profile::span("slice")),
        Kind::Pad { .. } => Some(profile::span("pad")),
        Kind::Binary(..) => Some(profile::span("elementwise")),
        Kind::MaxPool(_) | Kind::AveragePool(_) | Kind::GlobalAveragePool | Kind::Shortcut(_) => None,
        Kind::ToFirst | Kind::ToLast | Kind::LayerNorm { .. } => None,
        Kind::MatMul | Kind::Permute(_) | Kind::Split { .. } | Kind::Softmax { log: false, .. } => None,
        Kind::Reshape => Some(profile::span("reshape")),
        Kind::Scale(_) => Some(profile::span("elementwise")),
        Kind::Mean(_) => Some(profile::span("mean")),
        Kind::Softmax { .. } | Kind::Concat { .. } | Kind::Gather { .. } => Some(profile::span("other")),
    };
    let one = match &step.kind {
        Kind::Conv(op) => {
            let w = next()?;
            let shape = conv_shape(op, x_shape, &w.shape())?;
            let error = error_of(step, leaves);
            let error = error.map(|(id, e)| (id, O::conv(x.clone(), e, None, &shape, products(run, step, None))));
            let y = O::conv(x, w, inputs.next(), &shape, products(run, step, grid));
            observed.errors.extend(error.map(|(id, error)| (id, energies::<O>(error, &y))));
            y
        }
        Kind::Norm(norm) => {
            let (gamma, beta) = (next()?, next()?);
            let add = if norm.has_add { Some(next()?) } else { None };
            normalise::<O>(run, norm, [x, gamma, beta], add, leaves, &mut observed.statistics)?
        }
        Kind::LayerNorm { epsilon } => {
            let (gamma, beta) = (next()?, next()?);
            O::layer_norm(x, gamma, beta, *epsilon)
        }
        Kind::Activation(activation) => O::activation(x, *activation),
        Kind::FakeQuant(site, quant) => {
            let size = leaves.steps.get(site).cloned().ok_or_else(missing)?;
            O::fake_quant(x, size, quant)
        }
        Kind::FakeQuantPair(site, pair) => {
            let wide = leaves.steps.get(site).cloned().ok_or_else(missing)?;
            let [narrow, mix] = leaves.pairs.get(site).cloned().ok_or_else(missing)?;
            O::fake_quant_pair(x, [wide, narrow], mix, pair)
        }
        Kind::MaxPool(MaxPool { kernel, window }) => O::max_pool(x, &pool_shape(kernel, window, false, x_shape)?),
        Kind::AveragePool(AveragePool { kernel, window, count_include_pad }) => {
            O::average_pool(x, &pool_shape(kernel, window, *count_include_pad, x_shape)?)
        }
        Kind::GlobalAveragePool => O::global_average_pool(x),
        Kind::Linear { transposed } => {
            let w = next()?;
            // Leading axes are samples.
            let features = x_shape.last().copied().unwrap_or(1);
            let rows = x.shape().num_elements() / features.max(1);
            let x = reshape::<O>(x, &[rows, features]);
            let plain = products(run, step, None);
            let error = error_of(step, leaves);
            let error = error.map(|(id, e)| (id, O::linear(x.clone(), e, None, *transposed, plain)));
            let y = O::linear(x, w, inputs.next(), *transposed, products(run, step, grid));
            observed.errors.extend(error.map(|(id, error)| (id, energies::<O>(error, &y))));
            reshape::<O>(y, y_shape)
        }
        Kind::ToLast => O::to_channels_last(spatial::<O>(x)),
        Kind::ToFirst => reshape::<O>(O::to_channels_first(x), y_shape),
        Kind::Reshape => reshape::<O>(x, y_shape),
        Kind::Permute(axes) => O::permute(x, axes),
        Kind::Binary(op, layout) => {
            let is_constant = |index: usize| matches!(step.inputs.get(index), Some(Arg::Constant(_)));
            binary::<O>(*op, *layout, [(x, is_constant(0)), (next()?, is_constant(1))], y_shape.len())
        }
        Kind::MatMul => {
            let b = next()?;
            let rank = y_shape.len().max(2);
            O::matmul(aligned::<O>(x, rank), aligned::<O>(b, rank))
        }
        Kind::Scale(factor) => O::B::float_mul_scalar(x, Scalar::from(*factor)),
        Kind::Softmax { axis, log: false } => O::softmax(x, *axis),
        Kind::Softmax { axis, log: true } => O::B::log_softmax(x, *axis),
        Kind::Mean(axes) => {
            let y = axes.iter().fold(x, |x, &axis| O::B::float_mean_dim(x, axis));
            reshape::<O>(y, y_shape)
        }
        Kind::Pad { pads, mode, value } => pad::<O>(x, pads, *mode, *value),
        Kind::Slice(op, layout) => slice::<O>(x, &stored_order(*layout, op.per_axis(x_shape)?)),
        Kind::Shortcut(shape) => O::shortcut(x, shape),
        Kind::Concat { axis } => {
            let all = std::iter::once(x).chain(inputs).collect();
            O::B::float_cat(all, *axis)
        }
        Kind::Split { axis, sizes } => {
            let mut at = 0;
            let part = |&size: &usize| {
                at += size;
                O::part(x.clone(), *axis, at - size, size)
            };
            return Ok(sizes.iter().map(part).collect());
        }
        Kind::Gather { axis, indices } => {
            let count = indices.len();
            let data = TensorData::new(indices.clone(), BurnShape::new([count]));
            // Not every device has integers of 64 bits.
            let dtype = get_or_init_device_settings::<O::B>(&x.device()).int_dtype;
            let indices = O::B::int_from_data(data.convert_dtype(dtype.into()), &x.device());
            reshape::<O>(O::B::float_select(x, *axis, indices), y_shape)
        }
    };
    Ok(vec![one])
}

/// The error of the weight that a layer reads, if it is asked for.
fn error_of<T: Clone>(step: &Step, leaves: &Leaves<T>) -> Option<(ValueId, T)> {
    let Some(Arg::Constant(id)) = step.inputs.get(1) else { return None };
    leaves.errors.get(id).map(|error| (*id, error.clone()))
}

/// Sums of squares.
fn energies<O: TrainOps>(error: Tensor<O>, output: &Tensor<O>) -> [Tensor<O>; 2] {
    [error, output.clone()].map(|x| O::B::float_sum(O::B::float_mul(x.clone(), x)))
}

fn normalise<O: TrainOps>(
    run: &Run<'_>,
    step: &NormStep,
    [x, gamma, beta]: [Tensor<O>; 3],
    add: Option<Tensor<O>>,
    leaves: &Leaves<Tensor<O>>,
    seen: &mut Vec<Seen<Tensor<O>>>,
) -> Result<Tensor<O>, Error> {
    let constant = |id: ValueId| {
        let values = run.params.constants.get(&id);
        values.ok_or_else(|| Error::new(ErrorKind::Params, "", "a running statistic is missing"))
    };
    let statistics = match run.statistics {
        Batch::Live => Statistics::Batch,
        Batch::Frozen => Statistics::Frozen { mean: constant(step.mean)?, variance: constant(step.variance)? },
    };
    let channels = gamma.shape().num_elements();
    let rows = x.shape().num_elements() / channels.max(1);
    let (size, quant) = match &step.quant {
        Some((site, quant)) => (leaves.steps.get(site).cloned(), Some(*quant)),
        None => (None, None),
    };
    let norm = Norm { epsilon: step.op.epsilon, statistics, activation: step.activation, quant };
    let (y, statistics) = O::norm(x, gamma, beta, add, size, &norm);
    seen.extend(statistics.map(|statistics| Seen {
        mean: step.mean,
        variance: step.variance,
        momentum: step.op.momentum,
        rows,
        statistics,
    }));
    Ok(y)
}

fn reshape<O: TrainOps>(x: Tensor<O>, shape: &[usize]) -> Tensor<O> {
    let shape = BurnShape::from(shape.to_vec());
    if x.shape() == shape { x } else { O::reshape(x, shape) }
}

/// `[N, C, L]` as `[N, C, 1, L]`.
fn spatial<O: TrainOps>(x: Tensor<O>) -> Tensor<O> {
    match x.shape().num_dims() {
        3 => {
            let [n, c, l] = x.shape().dims();
            reshape::<O>(x, &[n, c, 1, l])
        }
        _ => x,
    }
}

/// The same elements with ones in front, up to `rank` axes.
fn aligned<O: TrainOps>(x: Tensor<O>, rank: usize) -> Tensor<O> {
    let old: Vec<usize> = x.shape().as_slice().to_vec();
    let mut shape = vec![1; rank.saturating_sub(old.len())];
    shape.extend(old);
    reshape::<O>(x, &shape)
}

/// Two operands and whether each is a constant, which comes as the graph has it; computed ones come in the layout.
fn binary<O: TrainOps>(op: Binary, layout: Layout, operands: [(Tensor<O>, bool); 2], rank: usize) -> Tensor<O> {
    let [a, b] = operands.map(|(x, is_constant)| match layout {
        Layout::First => aligned::<O>(x, rank),
        Layout::Last if is_constant => O::B::float_permute(spatial::<O>(aligned::<O>(x, rank)), &[0, 2, 3, 1]),
        Layout::Last => x,
    });
    match op {
        Binary::Add => O::add(a, b),
        Binary::Sub => O::B::float_sub(a, b),
        Binary::Mul => O::B::float_mul(a, b),
        Binary::Div => O::B::float_div(a, b),
    }
}

fn pad<O: TrainOps>(x: Tensor<O>, pads: &[(i64, i64)], mode: PadMode, value: f32) -> Tensor<O> {
    // Crop first where pads are negative.
    let crop = |&(begin, end): &(i64, i64), size: usize| {
        let first = (-begin).max(0) as usize;
        (first, 1, size - first - (-end).max(0) as usize)
    };
    let sizes: Vec<usize> = x.shape().as_slice().to_vec();
    let x = match pads.iter().any(|&(begin, end)| begin < 0 || end < 0) {
        true => slice::<O>(x, &pads.iter().zip(sizes).map(|(p, size)| crop(p, size)).collect::<Vec<_>>()),
        false => x,
    };
    let pads: Vec<_> = pads.iter().map(|&(begin, end)| (begin.max(0) as usize, end.max(0) as usize)).collect();
    let mode = match mode {
        PadMode::Constant => BurnPad::Constant(value),
        PadMode::Reflect => BurnPad::Reflect,
        PadMode::Edge => BurnPad::Edge,
    };
    O::B::float_pad(x, &pads, mode)
}

/// (first, step, count) per axis of the stored tensor.
fn slice<O: TrainOps>(x: Tensor<O>, axes: &[(usize, i64, usize)]) -> Tensor<O> {
    let backwards: Vec<usize> = (0..axes.len()).filter(|&axis| axes[axis].1 < 0).collect();
    let sizes: Vec<usize> = x.shape().as_slice().to_vec();
    let x = if backwards.is_empty() { x } else { O::B::float_flip(x, &backwards) };
    let slices: Vec<Slice> = axes
        .iter()
        .zip(sizes)
        .map(|(&(first, step, count), size)| {
            // After the flip a walk backwards from `first` is one forwards from the mirrored index.
            let first = if step < 0 { size - 1 - first } else { first };
            let stride = step.unsigned_abs() as usize;
            let end = first + (count.max(1) - 1) * stride + 1;
            Slice::new(first as isize, Some(end as isize), stride as isize)
        })
        .collect();
    O::B::float_slice(x, &slices)
}

/// The geometry of a convolution of stored rank 4; one spatial axis becomes width.
fn conv_shape(op: &Conv, x: &[usize], w: &BurnShape) -> Result<ConvShape, Error> {
    let w: Vec<usize> = w.as_slice().to_vec();
    let window = geometry(&op.window, x, w.get(2..).unwrap_or(&[]));
    let shape = ConvShape {
        batch: x[0],
        in_h: window.size[0],
        in_w: window.size[1],
        c_in: x[1],
        c_out: w[0],
        kernel: window.kernel,
        stride: window.stride,
        pads: window.pads,
        dilation: window.dilation,
        groups: op.groups,
    };
    shape.validate().map_err(|e| Error::new(ErrorKind::Unsupported, "", e.to_string()))?;
    Ok(shape)
}

fn pool_shape(kernel: &[usize], window: &Window, count_pad: bool, x: &[usize]) -> Result<PoolShape, Error> {
    let rounding = if window.ceil_mode { Rounding::Ceil } else { Rounding::Floor };
    let window = geometry(window, x, kernel);
    let shape = PoolShape {
        batch: x[0],
        in_h: window.size[0],
        in_w: window.size[1],
        channels: x[1],
        kernel: window.kernel,
        stride: window.stride,
        pads: window.pads,
        rounding,
        padding: if count_pad { Padding::Counted } else { Padding::Ignored },
    };
    shape.validate().map_err(|e| Error::new(ErrorKind::Unsupported, "", e.to_string()))?;
    Ok(shape)
}

struct Geometry {
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
    dilation: [usize; 2],
}

fn geometry(window: &Window, x: &[usize], kernel: &[usize]) -> Geometry {
    let axes = x.len().saturating_sub(2).min(2);
    let mut out = Geometry { size: [1; 2], kernel: [1; 2], stride: [1; 2], pads: [0; 4], dilation: [1; 2] };
    for axis in 0..axes {
        // A single spatial axis is the width.
        let to = axis + 2 - axes;
        out.size[to] = x[axis + 2];
        out.kernel[to] = kernel.get(axis).copied().unwrap_or(1);
        out.stride[to] = window.stride(axis);
        out.dilation[to] = window.dilation(axis);
        (out.pads[to], out.pads[to + 2]) = window.pad(axis, axes, out.size[to], out.kernel[to]);
    }
    out
}
