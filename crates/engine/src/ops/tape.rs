//! The fused operators under autodiff on the CPU: the forward of [`super::flex`], and a backward of our kernels each.
//!
//! Every operator saves only what its backward reads, as shared handles: the input of a convolution *is* the output that the
//! normalisation before it saved for its mask. Gradients and saved tensors whose last reader is a backward go back to
//! the pool there.

use std::cell::RefCell;
use std::collections::HashSet;

use bitsmith_kernels::activation::{Activation, Saved};
use bitsmith_kernels::conv::{ConvShape, Precision};
use bitsmith_kernels::norm;
use bitsmith_kernels::pool::PoolShape;
use bitsmith_kernels::threads::for_each_part;
use bitsmith_kernels::{activation, conv, linear, pool};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::flex::{self, Affine, channels, scalar};
use super::{
    BatchStatistics, FakeQuant, Fused, Norm, Pair, Products, Shortcut, Statistics, TrainOps, attention, composed,
    rounding, shortcut,
};
use crate::memory::{dense, floats, give, into_buffer, into_own, recycle, take, tensor};
use crate::profile;

type Cpu = Autodiff<Flex>;
type Tracked = FloatTensor<Cpu>;

/// Stands in for an optional input that is absent: a constant, so that nothing flows to it.
fn absent() -> Tracked {
    Cpu::from_inner(tensor(vec![], Shape::new([0])))
}

/// Records an operator: its output, and the state of its backward if anything before it wants a gradient.
fn record<const N: usize, S, O>(op: O, inputs: [Tracked; N], output: FlexTensor, state: impl FnOnce() -> S) -> Tracked
where
    S: Clone + Send + std::fmt::Debug + 'static,
    O: Backward<Flex, N, State = S>,
{
    let guards = inputs.each_ref().map(|x| x.node());
    let output = match op.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    inputs.into_iter().for_each(|x| recycle(x.into_primitive()));
    output
}

impl TrainOps for Fused<Cpu> {
    type B = Cpu;

    fn conv(x: Tracked, w: Tracked, bias: Option<Tracked>, shape: &ConvShape, products: Products<'_>) -> Tracked {
        let (x_data, w_data) = (dense(x.primitive().clone()), dense(w.primitive().clone()));
        let bias_data = bias.as_ref().map(|b| dense(b.primitive().clone()));
        let forward = |shape: &ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]| {
            conv::forward_training(shape, products.forward, x, w, bias, y);
        };
        let y = flex::convolve((forward, products.integers), &x_data, &w_data, bias_data.as_ref(), shape);
        let state = ConvState {
            shape: *shape,
            gradients: products.gradients,
            x: w.is_tracked().then_some(x_data),
            w: x.is_tracked().then_some(w_data),
        };
        record(Conv, [x, w, bias.unwrap_or_else(absent)], y, || state)
    }

    fn norm(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        add: Option<Tracked>,
        step: Option<Tracked>,
        norm: &Norm<'_>,
    ) -> (Tracked, Option<BatchStatistics<Tracked>>) {
        let x_data = dense(x.primitive().clone());
        let add_data = add.as_ref().map(|a| dense(a.primitive().clone()));
        let (gamma_data, beta_data) = (dense(gamma.primitive().clone()), dense(beta.primitive().clone()));
        let mut affine = Affine::new(&x_data, &gamma_data, &beta_data, norm);
        let mut y = affine.apply(&x_data, add_data.as_ref(), norm.activation);
        let quant = step.as_ref().map(|s| scalar(s.primitive())).zip(norm.quant);
        if let Some((step, quant)) = &quant {
            y = rounding::rounded(y, *step, quant);
        }
        let y = tensor(y, x_data.shape());
        let statistics = affine.statistics.take().map(|s| s.map(|v| Cpu::from_inner(channels(v))));
        // Under fake-quant the output no longer tells the slope; input and addend, which others hold anyway, do.
        let wants_input = quant.is_some() || norm.activation.saved() == Saved::Input;
        // Here, not when this function ends: until then nobody could take the buffer of an addend that nothing saves.
        let add_data = add_data.filter(|_| wants_input);
        let state = NormState {
            y: (!wants_input && norm.activation != Activation::Identity).then(|| y.clone()),
            add: add_data,
            x: x_data,
            affine: std::sync::Arc::new(affine),
            gamma: gamma_data,
            beta: beta_data,
            activation: norm.activation,
            frozen: matches!(norm.statistics, Statistics::Frozen { .. }),
            quant,
        };
        let inputs = [x, gamma, beta, add.unwrap_or_else(absent), step.unwrap_or_else(absent)];
        (record(Normalise, inputs, y, || state), statistics)
    }

    fn layer_norm(x: Tracked, gamma: Tracked, beta: Tracked, epsilon: f32) -> Tracked {
        let (x_data, gamma_data) = (dense(x.primitive().clone()), dense(gamma.primitive().clone()));
        let (y, statistics) = flex::by_rows(&x_data, &gamma_data, &dense(beta.primitive().clone()), epsilon);
        record(NormaliseRows, [x, gamma, beta], y, || (x_data, gamma_data, std::sync::Arc::new(statistics)))
    }

    fn activation(x: Tracked, activation: Activation) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let y = flex::activate(&x_data, activation);
        let saved = if activation.saved() == Saved::Input { x_data } else { y.clone() };
        record(Activate, [x], y, || (saved, activation))
    }

    fn fake_quant(x: Tracked, step: Tracked, quant: &FakeQuant) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let value = scalar(step.primitive());
        let y = flex::quantize(&x_data, value, quant);
        record(Round, [x, step], y, || (x_data, value, *quant))
    }

    fn fake_quant_pair(x: Tracked, [wide, narrow]: [Tracked; 2], mix: Tracked, pair: &Pair) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let steps = [scalar(wide.primitive()), scalar(narrow.primitive())];
        let share = scalar(mix.primitive());
        let y = flex::quantize_pair(&x_data, steps, share, pair);
        record(RoundPair, [x, wide, narrow, mix], y, || (x_data, steps, share, *pair))
    }

    fn max_pool(x: Tracked, shape: &PoolShape) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let y = flex::pooled(&x_data, shape, pool::max);
        record(MaxPool, [x], y, || (x_data, *shape))
    }

    fn average_pool(x: Tracked, shape: &PoolShape) -> Tracked {
        let y = flex::pooled(&dense(x.primitive().clone()), shape, pool::average);
        record(AveragePool, [x], y, || *shape)
    }

    fn shortcut(x: Tracked, shape: &Shortcut) -> Tracked {
        let size = x.shape();
        let y = shortcut::forward(&dense(x.primitive().clone()), shape);
        record(Subsample, [x], y, || (size, *shape))
    }

    fn global_average_pool(x: Tracked) -> Tracked {
        let shape = x.shape();
        let y = flex::average(&dense(x.primitive().clone()));
        record(GlobalAverage, [x], y, || shape)
    }

    fn linear(x: Tracked, w: Tracked, bias: Option<Tracked>, transposed: bool, products: Products<'_>) -> Tracked {
        let (x_data, w_data) = (dense(x.primitive().clone()), dense(w.primitive().clone()));
        let bias_data = bias.as_ref().map(|b| dense(b.primitive().clone()));
        let y = flex::multiply(&x_data, &w_data, bias_data.as_ref(), transposed, products.integers);
        record(Linear, [x, w, bias.unwrap_or_else(absent)], y, || (x_data, w_data, transposed, products.gradients))
    }

    fn matmul(a: Tracked, b: Tracked) -> Tracked {
        if !attention::multiplies(&a.shape(), &b.shape()) {
            return composed::matmul::<Cpu>(a, b);
        }
        let (a_data, b_data) = (dense(a.primitive().clone()), dense(b.primitive().clone()));
        let y = attention::multiply(&a_data, &b_data);
        record(attention::MatMul, [a, b], y, || [a_data, b_data])
    }

    fn softmax(x: Tracked, axis: usize) -> Tracked {
        if !attention::is_last(&x.shape(), axis) {
            return composed::softmax::<Cpu>(x, axis);
        }
        let y = attention::soften(&dense(x.primitive().clone()));
        record(attention::Softmax, [x], y.clone(), || y)
    }

    fn permute(x: Tracked, axes: &[usize]) -> Tracked {
        let y = attention::permuted(&dense(x.primitive().clone()), axes);
        record(attention::Permute, [x], y, || axes.to_vec())
    }

    fn part(x: Tracked, axis: usize, at: usize, len: usize) -> Tracked {
        let shape = x.shape();
        if !attention::is_last(&shape, axis) {
            return composed::part::<Cpu>(x, axis, at, len);
        }
        let y = attention::part(&dense(x.primitive().clone()), at, len);
        record(attention::Part, [x], y, || (shape, at))
    }

    fn to_channels_last(x: Tracked) -> Tracked {
        let y = flex::channels_last(&dense(x.primitive().clone()));
        record(Relayout, [x], y, || Direction::Last)
    }

    fn to_channels_first(x: Tracked) -> Tracked {
        let y = flex::channels_first(&dense(x.primitive().clone()));
        record(Relayout, [x], y, || Direction::First)
    }

    fn release(x: Tracked) {
        recycle(x.into_primitive());
    }

    fn values(x: Tracked) -> Option<Vec<f32>> {
        Some(into_own(dense(x.into_primitive())))
    }
}

thread_local! {
    /// Nodes that have a gradient from one of our operators in the present backward pass.
    static REGISTERED: RefCell<HashSet<u64>> = RefCell::new(HashSet::new());
}

/// Whether no operator of ours has registered a gradient of this node yet; remembers that one has now.
pub(super) fn is_first(node: u64) -> bool {
    REGISTERED.with_borrow_mut(|nodes| {
        // Numbers are never used twice: what earlier passes left can only lie around.
        if nodes.len() > 1 << 14 {
            nodes.clear();
        }
        nodes.insert(node)
    })
}

/// Registers the gradient of an activation: `grads.register`, but where there is one already (both ways around a residual
/// block meet), the sum is made in place and the other buffer goes back to the pool, where burn would drop it.
macro_rules! register {
    ($grads:expr, $node:expr, $value:expr) => {{
        let (node, mut value) = ($node, $value);
        if !$crate::ops::tape::is_first(node.id.value) {
            value = $crate::ops::tape::added(node.parents.is_empty(), $grads.consume::<Flex>(&node), value);
        }
        $grads.register::<Flex>(node.id, value);
    }};
}
pub(super) use register;

/// What to register for a node that has the gradient `old`, which was consumed, and gets `new`: their sum, in the buffer of
/// `old` if nobody else holds that.
pub(super) fn added(is_leaf: bool, old: FlexTensor, new: FlexTensor) -> FlexTensor {
    // Consuming leaves a leaf's gradient where it is, and registering adds to it.
    if is_leaf {
        return new;
    }
    let _time = profile::span("gradients added");
    let shape = old.shape();
    match into_buffer(old) {
        Ok(mut sum) if sum.len() == floats(&new).len() => {
            for_each_part(&mut sum, 1, |start, part| {
                part.iter_mut().zip(&floats(&new)[start..]).for_each(|(a, b)| *a += b)
            });
            recycle(new);
            tensor(sum, shape)
        }
        Ok(old) => Flex::float_add(tensor(old, shape), new),
        Err(old) => Flex::float_add(old, new),
    }
}

#[derive(Debug)]
struct Conv;

#[derive(Debug, Clone)]
struct ConvState {
    shape: ConvShape,
    gradients: Precision,
    /// Kept if the weight wants a gradient.
    x: Option<FlexTensor>,
    /// Kept if the input does.
    w: Option<FlexTensor>,
}

impl Backward<Flex, 3> for Conv {
    type State = ConvState;

    fn backward(self, ops: Ops<ConvState, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let ConvState { shape, gradients, x, w } = ops.state;
        let [x_node, w_node, bias_node] = ops.parents;
        if let Some(node) = bias_node {
            let mut db = vec![0.0; shape.c_out];
            conv::backward_bias(floats(&dy), &mut db);
            grads.register::<Flex>(node.id, tensor(db, Shape::new([shape.c_out])));
        }
        if let (Some(node), Some(x)) = (w_node, x) {
            let _time = profile::span("conv weight gradient");
            let mut dw = take(shape.weight_len());
            conv::backward_weight(&shape, gradients, floats(&x), floats(&dy), &mut dw);
            let dims = [shape.c_out, shape.c_in / shape.groups, shape.kernel[0], shape.kernel[1]];
            grads.register::<Flex>(node.id, tensor(dw, Shape::new(dims)));
            recycle(x);
        }
        if let (Some(node), Some(w)) = (x_node, w) {
            let _time = profile::span("conv input gradient");
            let mut dx = take(shape.input_len());
            conv::backward_input(&shape, gradients, floats(&dy), floats(&w), &mut dx);
            register!(grads, node, tensor(dx, Shape::new([shape.batch, shape.in_h, shape.in_w, shape.c_in])));
        }
        recycle(dy);
    }
}

#[derive(Debug)]
struct Normalise;

#[derive(Debug, Clone)]
struct NormState {
    x: FlexTensor,
    y: Option<FlexTensor>,
    add: Option<FlexTensor>,
    affine: std::sync::Arc<Affine>,
    gamma: FlexTensor,
    beta: FlexTensor,
    activation: Activation,
    frozen: bool,
    quant: Option<(f32, FakeQuant)>,
}

impl Backward<Flex, 5> for Normalise {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        // Becomes the gradient of the input, or of the addend.
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let state = ops.state;
        let [x_node, gamma_node, beta_node, add_node, step_node] = ops.parents;
        let shape = state.x.shape();
        let channels = state.affine.mean.len();
        // Through the rounding first: its input is computed again rather than kept.
        let mut y = state.y;
        if let Some((step, quant)) = &state.quant {
            let value = state.affine.apply(&state.x, state.add.as_ref(), state.activation);
            let dstep = rounding::backward(&value, &mut gradient, *step, quant);
            if let Some(node) = step_node {
                grads.register::<Flex>(node.id, tensor(vec![dstep], Shape::new([1])));
            }
            y = Some(tensor(value, shape.clone()));
        }
        let time = profile::span("norm backward");
        let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
        let mut apart = add_node.is_some().then(|| take(gradient.len()));
        let args = norm::Backward {
            y: y.as_ref().map_or(&[], floats),
            x: floats(&state.x),
            add: state.add.as_ref().map(floats),
            mean: &state.affine.mean,
            inv_std: &state.affine.inv_std,
            gamma: floats(&state.gamma),
            beta: floats(&state.beta),
            act: state.activation,
            statistics: if state.frozen { norm::Statistics::Frozen } else { norm::Statistics::Batch },
        };
        norm::backward(&args, &mut gradient, &mut dgamma, &mut dbeta, apart.as_deref_mut());
        let (dx, dadd) = match apart {
            Some(dx) => (dx, Some(gradient)),
            None => (gradient, None),
        };
        drop(time);
        y.into_iter().for_each(recycle);
        recycle(state.x);
        state.add.into_iter().for_each(recycle);
        for (node, gradient) in [(gamma_node, dgamma), (beta_node, dbeta)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, Shape::new([channels])));
            }
        }
        match x_node {
            Some(node) => register!(grads, node, tensor(dx, shape.clone())),
            None => give(dx),
        }
        if let (Some(node), Some(dadd)) = (add_node, dadd) {
            register!(grads, node, tensor(dadd, shape));
        }
    }
}

#[derive(Debug)]
struct NormaliseRows;

impl Backward<Flex, 3> for NormaliseRows {
    type State = (FlexTensor, FlexTensor, std::sync::Arc<Vec<(f32, f32)>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (x, gamma, statistics) = ops.state;
        let [x_node, gamma_node, beta_node] = ops.parents;
        let time = profile::span("layer norm backward");
        let n = floats(&gamma).len();
        let (mut dgamma, mut dbeta) = (vec![0.0; n], vec![0.0; n]);
        let mut dx = take(floats(&x).len());
        norm::layer::backward(floats(&x), floats(&dy), floats(&gamma), &statistics, &mut dx, &mut dgamma, &mut dbeta);
        drop(time);
        for (node, gradient) in [(gamma_node, dgamma), (beta_node, dbeta)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, gamma.shape()));
            }
        }
        match x_node {
            Some(node) => register!(grads, node, tensor(dx, x.shape())),
            None => give(dx),
        }
        recycle(x);
        recycle(dy);
    }
}

#[derive(Debug)]
struct Activate;

impl Backward<Flex, 1> for Activate {
    type State = (FlexTensor, Activation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let (saved, act) = ops.state;
        let [node] = ops.parents;
        match node {
            Some(node) => {
                let _time = profile::span("activation backward");
                activation::backward(act, floats(&saved), &mut gradient);
                register!(grads, node, tensor(gradient, saved.shape()));
            }
            None => give(gradient),
        }
        recycle(saved);
    }
}

#[derive(Debug)]
struct Round;

impl Backward<Flex, 2> for Round {
    type State = (FlexTensor, f32, FakeQuant);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let (x, step, quant) = ops.state;
        let [x_node, step_node] = ops.parents;
        let dstep = rounding::backward(floats(&x), &mut gradient, step, &quant);
        match x_node {
            Some(node) => register!(grads, node, tensor(gradient, x.shape())),
            None => give(gradient),
        }
        if let Some(node) = step_node {
            grads.register::<Flex>(node.id, tensor(vec![dstep], Shape::new([1])));
        }
        recycle(x);
    }
}

#[derive(Debug)]
struct RoundPair;

impl Backward<Flex, 4> for RoundPair {
    type State = (FlexTensor, [f32; 2], f32, Pair);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (x, steps, mix, pair) = ops.state;
        let [x_node, wide_node, narrow_node, mix_node] = ops.parents;
        let mut dx = take(floats(&dy).len());
        let [dwide, dnarrow, dmix] = rounding::backward_pair(floats(&x), floats(&dy), &mut dx, steps, mix, &pair);
        match x_node {
            Some(node) => register!(grads, node, tensor(dx, x.shape())),
            None => give(dx),
        }
        for (node, gradient) in [(wide_node, dwide), (narrow_node, dnarrow), (mix_node, dmix)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(vec![gradient], Shape::new([1])));
            }
        }
        recycle(x);
        recycle(dy);
    }
}

#[derive(Debug)]
struct MaxPool;

impl Backward<Flex, 1> for MaxPool {
    type State = (FlexTensor, PoolShape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (x, shape) = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let _time = profile::span("pool backward");
            let mut dx = take(shape.input_len());
            pool::max_backward(&shape, floats(&x), floats(&dy), &mut dx);
            register!(grads, node, tensor(dx, x.shape()));
        }
        recycle(x);
        recycle(dy);
    }
}

#[derive(Debug)]
struct AveragePool;

impl Backward<Flex, 1> for AveragePool {
    type State = PoolShape;

    fn backward(self, ops: Ops<PoolShape, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let shape = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let _time = profile::span("pool backward");
            let mut dx = take(shape.input_len());
            pool::average_backward(&shape, floats(&dy), &mut dx);
            let dims = Shape::new([shape.batch, shape.in_h, shape.in_w, shape.channels]);
            register!(grads, node, tensor(dx, dims));
        }
        recycle(dy);
    }
}

#[derive(Debug)]
struct GlobalAverage;

impl Backward<Flex, 1> for GlobalAverage {
    type State = Shape;

    fn backward(self, ops: Ops<Shape, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let [node] = ops.parents;
        if let Some(node) = node {
            let _time = profile::span("pool backward");
            let [batch, _, _, channels] = ops.state.dims();
            let mut dx = take(ops.state.num_elements());
            pool::global_average_backward(batch, channels, floats(&dy), &mut dx);
            register!(grads, node, tensor(dx, ops.state));
        }
        recycle(dy);
    }
}

#[derive(Debug)]
struct Subsample;

impl Backward<Flex, 1> for Subsample {
    type State = (Shape, Shortcut);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (size, shape) = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            register!(grads, node, shortcut::backward(&dy, &shape, size));
        }
        recycle(dy);
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    type State = (FlexTensor, FlexTensor, bool, Precision);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let _time = profile::span("linear backward");
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (x, w, transposed, gradients) = ops.state;
        let [x_node, w_node, bias_node] = ops.parents;
        let [m, n] = dy.shape().dims();
        let [_, k] = x.shape().dims();
        if let Some(node) = bias_node {
            let mut db = vec![0.0; n];
            norm::channel_sums(floats(&dy), &mut db);
            grads.register::<Flex>(node.id, tensor(db, Shape::new([n])));
        }
        if let Some(node) = w_node {
            let mut dw = take(k * n);
            linear::backward_weight([m, k, n], gradients, floats(&x), floats(&dy), transposed, &mut dw);
            let shape = Shape::new(if transposed { [n, k] } else { [k, n] });
            grads.register::<Flex>(node.id, tensor(dw, shape));
        }
        if let Some(node) = x_node {
            let mut dx = take(m * k);
            linear::backward_input([m, k, n], gradients, floats(&dy), floats(&w), transposed, &mut dx);
            grads.register::<Flex>(node.id, tensor(dx, Shape::new([m, k])));
        }
        recycle(x);
        recycle(dy);
    }
}

#[derive(Debug)]
struct Relayout;

/// Which layout the forward pass produced.
#[derive(Debug, Clone, Copy)]
enum Direction {
    Last,
    First,
}

impl Backward<Flex, 1> for Relayout {
    type State = Direction;

    fn backward(self, ops: Ops<Direction, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let [node] = ops.parents;
        if let Some(node) = node {
            let dx = match ops.state {
                Direction::Last => flex::channels_first(&dy),
                Direction::First => flex::channels_last(&dy),
            };
            register!(grads, node, dx);
        }
        recycle(dy);
    }
}
