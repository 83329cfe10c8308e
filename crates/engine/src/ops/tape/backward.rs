//! The backward pass of each operator of [`tape`](super).

use std::sync::Arc;

use bitsmith_kernels::activation as acts;
use bitsmith_kernels::conv::{ConvShape, Precision};
use bitsmith_kernels::norm;
use bitsmith_kernels::pool::PoolShape;
use bitsmith_kernels::{activation, conv, linear, pool};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};
use burn_backend::{Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::register;
use crate::memory::{dense, floats, into_own, take, tensor};
use crate::ops::again::{Activated, Normalised, Recipe, Rounded, Rows, Saved, Value};
use crate::ops::{Pair, Shortcut, flex, rounding, shortcut};
use crate::profile;

#[derive(Debug)]
pub(super) struct Conv;

#[derive(Debug, Clone)]
pub(super) struct ConvState {
    pub shape: ConvShape,
    pub gradients: Precision,
    /// Kept if the weight wants a gradient.
    pub x: Option<Saved>,
    /// Kept if the input does.
    pub w: Option<FlexTensor>,
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
        if let (Some(node), Some(saved)) = (w_node, x) {
            let x = saved.get();
            let _time = profile::span("conv weight gradient");
            let mut dw = take(shape.weight_len());
            conv::backward_weight(&shape, gradients, floats(&x), floats(&dy), &mut dw);
            let dims = [shape.c_out, shape.c_in / shape.groups, shape.kernel[0], shape.kernel[1]];
            grads.register::<Flex>(node.id, tensor(dw, Shape::new(dims)));
        }
        if let (Some(node), Some(w)) = (x_node, w) {
            let _time = profile::span("conv input gradient");
            let mut dx = take(shape.input_len());
            conv::backward_input(&shape, gradients, floats(&dy), floats(&w), &mut dx);
            register!(grads, node, tensor(dx, Shape::new([shape.batch, shape.in_h, shape.in_w, shape.c_in])));
        }
    }
}

#[derive(Debug)]
pub(super) struct Normalise;

#[derive(Debug, Clone)]
pub(super) struct NormState {
    /// Of the output; holds what it was made of.
    pub recipe: Arc<Recipe<Normalised>>,
    pub shape: Shape,
    pub gamma: FlexTensor,
    pub beta: FlexTensor,
    pub is_frozen: bool,
}

impl Backward<Flex, 5> for Normalise {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        // Becomes the gradient of the input, or of the addend.
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let NormState { recipe, shape, gamma, beta, is_frozen } = ops.state;
        let Normalised { x, add, affine, activation, quant } = &recipe.how;
        let [x_node, gamma_node, beta_node, add_node, step_node] = ops.parents;
        let channels = affine.mean.len();
        let add = add.as_ref().map(Saved::get);
        let from_input = activation.is_piecewise_linear() && add.is_none();
        let y = match quant {
            // Through the rounding first: its input is computed again rather than kept.
            Some((step, quant)) => {
                let value = affine.apply(x, add.as_ref(), *activation);
                let dstep = rounding::backward(&value, &mut gradient, *step, quant);
                if let Some(node) = step_node {
                    grads.register::<Flex>(node.id, tensor(vec![dstep], Shape::new([1])));
                }
                Some(tensor(value, shape.clone()))
            }
            None if activation.saved() == acts::Saved::Output && !from_input => Some(recipe.get()),
            None => None,
        };
        let time = profile::span("norm backward");
        let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
        let mut apart = add_node.is_some().then(|| take(gradient.len()));
        let args = norm::Backward {
            y: y.as_ref().map_or(&[], floats),
            factors: from_input.then_some([&affine.a, &affine.b]),
            x: floats(x),
            add: add.as_ref().map(floats),
            mean: &affine.mean,
            inv_std: &affine.inv_std,
            gamma: floats(&gamma),
            beta: floats(&beta),
            act: *activation,
            statistics: if is_frozen { norm::Statistics::Frozen } else { norm::Statistics::Batch },
        };
        norm::backward(&args, &mut gradient, &mut dgamma, &mut dbeta, apart.as_deref_mut());
        let (dx, dadd) = match apart {
            Some(dx) => (dx, Some(gradient)),
            None => (gradient, None),
        };
        drop(time);
        for (node, gradient) in [(gamma_node, dgamma), (beta_node, dbeta)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, Shape::new([channels])));
            }
        }
        if let Some(node) = x_node {
            register!(grads, node, tensor(dx, shape.clone()));
        }
        if let (Some(node), Some(dadd)) = (add_node, dadd) {
            register!(grads, node, tensor(dadd, shape));
        }
    }
}

#[derive(Debug)]
pub(super) struct NormaliseRows;

impl Backward<Flex, 3> for NormaliseRows {
    type State = (Arc<Recipe<Rows>>, Arc<Vec<(f32, f32)>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (recipe, statistics) = ops.state;
        let Rows { x, gamma, .. } = &recipe.how;
        let [x_node, gamma_node, beta_node] = ops.parents;
        let time = profile::span("layer norm backward");
        let n = floats(gamma).len();
        let (mut dgamma, mut dbeta) = (vec![0.0; n], vec![0.0; n]);
        let mut dx = take(floats(x).len());
        norm::layer::backward(floats(x), floats(&dy), floats(gamma), &statistics, &mut dx, &mut dgamma, &mut dbeta);
        drop(time);
        for (node, gradient) in [(gamma_node, dgamma), (beta_node, dbeta)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, gamma.shape()));
            }
        }
        if let Some(node) = x_node {
            register!(grads, node, tensor(dx, x.shape()));
        }
    }
}

#[derive(Debug)]
pub(super) struct Activate;

impl Backward<Flex, 1> for Activate {
    type State = Arc<Recipe<Activated>>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let recipe = ops.state;
        let Activated { x, activation: act } = &recipe.how;
        let saved = if act.saved() == acts::Saved::Input { x.clone() } else { recipe.get() };
        let [node] = ops.parents;
        if let Some(node) = node {
            let _time = profile::span("activation backward");
            activation::backward(*act, floats(&saved), &mut gradient);
            register!(grads, node, tensor(gradient, saved.shape()));
        }
    }
}

#[derive(Debug)]
pub(super) struct Round;

impl Backward<Flex, 2> for Round {
    type State = Arc<Recipe<Rounded>>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = into_own(dense(grads.consume::<Flex>(&ops.node)));
        let Rounded { x, step, quant } = &ops.state.how;
        let x = x.get();
        let [x_node, step_node] = ops.parents;
        let dstep = rounding::backward(floats(&x), &mut gradient, *step, quant);
        if let Some(node) = x_node {
            register!(grads, node, tensor(gradient, x.shape()));
        }
        if let Some(node) = step_node {
            grads.register::<Flex>(node.id, tensor(vec![dstep], Shape::new([1])));
        }
    }
}

#[derive(Debug)]
pub(super) struct RoundPair;

impl Backward<Flex, 4> for RoundPair {
    type State = (FlexTensor, [f32; 2], f32, Pair);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (x, steps, mix, pair) = ops.state;
        let [x_node, wide_node, narrow_node, mix_node] = ops.parents;
        let mut dx = take(floats(&dy).len());
        let [dwide, dnarrow, dmix] = rounding::backward_pair(floats(&x), floats(&dy), &mut dx, steps, mix, &pair);
        if let Some(node) = x_node {
            register!(grads, node, tensor(dx, x.shape()));
        }
        for (node, gradient) in [(wide_node, dwide), (narrow_node, dnarrow), (mix_node, dmix)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(vec![gradient], Shape::new([1])));
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct MaxPool;

impl Backward<Flex, 1> for MaxPool {
    /// Which pixel of its window each output came from, and the input's shape.
    type State = (FlexTensor, Shape, PoolShape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (first, x_shape, shape) = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let _time = profile::span("pool backward");
            let mut dx = take(shape.input_len());
            pool::max_backward(&shape, floats(&first), floats(&dy), &mut dx);
            register!(grads, node, tensor(dx, x_shape));
        }
    }
}

#[derive(Debug)]
pub(super) struct AveragePool;

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
    }
}

#[derive(Debug)]
pub(super) struct GlobalAverage;

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
    }
}

#[derive(Debug)]
pub(super) struct Subsample;

impl Backward<Flex, 1> for Subsample {
    type State = (Shape, Shortcut);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (size, shape) = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            register!(grads, node, shortcut::backward(&dy, &shape, size));
        }
    }
}

#[derive(Debug)]
pub(super) struct Linear;

impl Backward<Flex, 3> for Linear {
    type State = (Saved, FlexTensor, bool, Precision);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (saved, w, transposed, gradients) = ops.state;
        let [x_node, w_node, bias_node] = ops.parents;
        let x = w_node.is_some().then(|| saved.get());
        let _time = profile::span("linear backward");
        let [m, n] = dy.shape().dims();
        let k = w.shape().num_elements() / n.max(1);
        if let Some(node) = bias_node {
            let mut db = vec![0.0; n];
            norm::channel_sums(floats(&dy), &mut db);
            grads.register::<Flex>(node.id, tensor(db, Shape::new([n])));
        }
        if let (Some(node), Some(x)) = (w_node, &x) {
            let mut dw = take(k * n);
            linear::backward_weight([m, k, n], gradients, floats(x), floats(&dy), transposed, &mut dw);
            let shape = Shape::new(if transposed { [n, k] } else { [k, n] });
            grads.register::<Flex>(node.id, tensor(dw, shape));
        }
        if let Some(node) = x_node {
            let mut dx = take(m * k);
            linear::backward_input([m, k, n], gradients, floats(&dy), floats(&w), transposed, &mut dx);
            register!(grads, node, tensor(dx, Shape::new([m, k])));
        }
    }
}

#[derive(Debug)]
pub(super) struct Add;

impl Backward<Flex, 2> for Add {
    /// The second operand's shape.
    type State = Shape;

    fn backward(self, ops: Ops<Shape, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let shape = ops.state;
        let [a_node, b_node] = ops.parents;
        match b_node {
            Some(node) if shape != dy.shape() => {
                let mut db = take(shape.num_elements());
                norm::channel_sums(floats(&dy), &mut db);
                register!(grads, node, tensor(db, shape));
            }
            Some(node) => register!(grads, node, dy.clone()),
            None => {}
        }
        if let Some(node) = a_node {
            register!(grads, node, dy);
        }
    }
}

#[derive(Debug)]
pub(super) struct Relayout;

/// Which layout the forward pass produced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
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
    }
}
