//! The fused operators under autodiff on the CPU: the forward of [`super::flex`], and a backward of our kernels each.
//!
//! Every operator saves only what its backward reads, as shared handles: the input of a convolution *is* the output that the
//! normalisation before it saved, or how that is made ([`again`]). What nobody reads any more is dropped at once,
//! for the next to take its memory.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use bitsmith_kernels::activation::{self as acts, Activation};
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::pool::PoolShape;
use bitsmith_kernels::threads::for_each_part;
use bitsmith_kernels::{conv, pool};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::ops::{Backward, OpsKind};
use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::again::{self, Activated, Normalised, Recipe, Rounded, Rows, Value};
use super::flex::{self, Affine, channels, scalar};
use super::{
    BatchStatistics, FakeQuant, Fused, Norm, Pair, Products, Shortcut, Statistics, TrainOps, attention, composed,
    rounding, shortcut,
};
use crate::memory::{dense, floats, into_buffer, into_own, tensor};
use crate::profile;
use backward::{
    Activate, Add, AveragePool, Conv, ConvState, Direction, GlobalAverage, Linear, MaxPool, NormState, Normalise,
    NormaliseRows, Relayout, Round, RoundPair, Subsample,
};

mod backward;

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
    match op.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
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
            x: w.is_tracked().then(|| again::saved(&x, x_data, products_of(shape))),
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
        let add_saved = add.as_ref().zip(add_data.clone()).map(|(add, data)| again::lent(add, data));
        let (gamma_data, beta_data) = (dense(gamma.primitive().clone()), dense(beta.primitive().clone()));
        let mut affine = Affine::new(&x_data, &gamma_data, &beta_data, norm);
        let mut y = affine.apply(&x_data, add_data.as_ref(), norm.activation);
        let quant = step.as_ref().map(|s| scalar(s.primitive())).zip(norm.quant);
        if let Some((step, quant)) = &quant {
            y = rounding::rounded(y, *step, quant);
        }
        let y = tensor(y, x_data.shape());
        let statistics = affine.statistics.take().map(|s| s.map(|v| Cpu::from_inner(channels(v))));
        let (activation, shape) = (norm.activation, x_data.shape());
        let is_frozen = matches!(norm.statistics, Statistics::Frozen { .. });
        let recipe = Recipe::new(Normalised { x: x_data, add: add_saved, affine, activation, quant });
        // Input and statistics tell the slope of what is piecewise linear, where nothing was added.
        let wants_output = activation.saved() == acts::Saved::Output && quant.is_none();
        if wants_output && !activation.is_piecewise_linear() {
            recipe.keep(y.clone());
        }
        let state = NormState { recipe: recipe.clone(), shape, gamma: gamma_data, beta: beta_data, is_frozen };
        let inputs = [x, gamma, beta, add.unwrap_or_else(absent), step.unwrap_or_else(absent)];
        let y = record(Normalise, inputs, y, || state);
        again::remember(&y, recipe);
        (y, statistics)
    }

    fn layer_norm(x: Tracked, gamma: Tracked, beta: Tracked, epsilon: f32) -> Tracked {
        let [x_data, gamma_data, beta_data] = [&x, &gamma, &beta].map(|t| dense(t.primitive().clone()));
        let (y, statistics) = flex::by_rows(&x_data, &gamma_data, &beta_data, epsilon);
        let recipe = Recipe::new(Rows { x: x_data, gamma: gamma_data, beta: beta_data, epsilon });
        let state = (recipe.clone(), Arc::new(statistics));
        let y = record(NormaliseRows, [x, gamma, beta], y, || state);
        again::remember(&y, recipe);
        y
    }

    fn activation(x: Tracked, activation: Activation) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let y = flex::activate(&x_data, activation);
        let recipe = Recipe::new(Activated { x: x_data, activation });
        if activation.saved() == acts::Saved::Output {
            recipe.keep(y.clone());
        }
        let y = record(Activate, [x], y, || recipe.clone());
        again::remember(&y, recipe);
        y
    }

    fn fake_quant(x: Tracked, step: Tracked, quant: &FakeQuant) -> Tracked {
        let x_data = dense(x.primitive().clone());
        let value = scalar(step.primitive());
        let y = flex::quantize(&x_data, value, quant);
        let recipe = Recipe::new(Rounded { x: again::lent(&x, x_data), step: value, quant: *quant });
        let y = record(Round, [x, step], y, || recipe.clone());
        again::remember(&y, recipe);
        y
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
        let (y, first) = flex::max_numbered(&x_data, shape);
        record(MaxPool, [x], y, || (first, x_data.shape(), *shape))
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
        let n = if transposed { w_data.shape()[0] } else { w_data.shape()[1] };
        let x_saved = again::saved(&x, x_data, n);
        record(Linear, [x, w, bias.unwrap_or_else(absent)], y, || (x_saved, w_data, transposed, products.gradients))
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

    fn add(a: Tracked, b: Tracked) -> Tracked {
        if !flex::repeats(&a.shape(), &b.shape()) {
            return Cpu::float_add(a, b);
        }
        let b_shape = b.shape();
        let y = flex::sum(&dense(a.primitive().clone()), &dense(b.primitive().clone()));
        record(Add, [a, b], y, || b_shape)
    }

    fn reshape(x: Tracked, shape: Shape) -> Tracked {
        let before = x.clone();
        let y = Cpu::float_reshape(x, shape);
        again::same(&before, &y);
        y
    }

    fn to_channels_last(x: Tracked) -> Tracked {
        let y = flex::channels_last(&dense(x.primitive().clone()));
        record(Relayout, [x], y, || Direction::Last)
    }

    fn to_channels_first(x: Tracked) -> Tracked {
        let y = flex::channels_first(&dense(x.primitive().clone()));
        record(Relayout, [x], y, || Direction::First)
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
            tensor(sum, shape)
        }
        Ok(old) => Flex::float_add(tensor(old, shape), new),
        Err(old) => Flex::float_add(old, new),
    }
}

/// Products that a convolution makes of each element of its input; a quarter as many where a transform may save the others.
fn products_of(shape: &ConvShape) -> usize {
    let outputs = shape.kernel[0] * shape.kernel[1] * shape.c_out / shape.groups;
    let saved = if shape.kernel == [3, 3] && shape.stride == [1, 1] { 4 } else { 1 };
    outputs / (shape.stride[0] * shape.stride[1] * saved).max(1)
}
