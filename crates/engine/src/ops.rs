//! The operators that a plan is made of, over any burn backend.
//!
//! [`TrainOps`] names a backend and the fused operators on its tensors. Every operator has a default body that composes
//! burn's own operations: [`Composed`] uses nothing else and so runs on every device. [`Fused`] replaces the bodies by
//! our kernels for the CPU backend, forward and (under autodiff) backward. A test holds the two equal.
//!
//! Convolutional operators work on channels-last tensors `[batch, height, width, channels]` of rank 4; those of one
//! spatial axis have height 1. Normalisation takes any tensor whose last axis is the channels.

mod again;
mod attention;
mod composed;
mod flex;
mod integers;
mod rounding;
mod shortcut;
mod tape;
#[cfg(test)]
mod tests;

pub(crate) use composed::{read, read_all};

use std::marker::PhantomData;

use bitsmith_kernels::activation::Activation;
use bitsmith_kernels::conv::{ConvShape, Precision};
use bitsmith_kernels::fakequant::Inside;
use bitsmith_kernels::pool::PoolShape;
use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, Shape};

/// A float tensor of an operator set.
pub(crate) type Tensor<O> = FloatTensor<<O as TrainOps>::B>;

/// Mean and biased variance per channel: tensors outside the tape, or numbers on the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BatchStatistics<T> {
    pub mean: T,
    pub variance: T,
}

impl<T> BatchStatistics<T> {
    /// The same statistics in another form.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> BatchStatistics<U> {
        BatchStatistics { mean: f(self.mean), variance: f(self.variance) }
    }
}

/// Where a normalisation takes its statistics from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Statistics<'a> {
    /// The batch; gradients flow through them.
    Batch,
    /// Constants.
    Frozen { mean: &'a [f32], variance: &'a [f32] },
}

/// Everything about a normalisation that is no tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub epsilon: f32,
    pub statistics: Statistics<'a>,
    /// Applied after the addition.
    pub activation: Activation,
    /// Applied last; goes with a step tensor.
    pub quant: Option<FakeQuant>,
}

/// Rounding to a grid and back: `s · round(clamp(x / s, low, high))`, where `low` and `high` are the ends of the code range
/// minus the zero point, which thereby cancels.
///
/// Backward (LSQ, arXiv 1902.08153, eq. 3): x passes where `low < x/s < high`; the step gets
/// `grad_scale · Σ dy · (round(x/s) - x/s inside, low or high outside)`. For PACT it gets nothing from inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FakeQuant {
    pub low: i32,
    pub high: i32,
    pub grad_scale: f32,
    pub inside: Inside,
}

/// Two grids of neighbouring widths, between which a search decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    pub wide: FakeQuant,
    pub narrow: FakeQuant,
}

/// How a site rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rounding {
    /// To its grid.
    One(FakeQuant),
    /// To a mixture of two.
    Between(Pair),
}

/// A value's step and the ends of its codes, zero being code 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub step: f32,
    pub low: i32,
    pub high: i32,
}

/// Of a product whose operands lie on grids: integers behind them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Integers<'a> {
    /// The input's.
    pub grid: Grid,
    /// Steps of the weight, one per output channel or one for all; its codes are within ±127.
    pub steps: &'a [f32],
}

/// How the products of a convolution or linear layer may be computed, where kernels can.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Products<'a> {
    /// Forward, if there are integers.
    pub integers: Option<Integers<'a>>,
    /// Forward in a step of training, if not.
    pub forward: Precision,
    /// Backward.
    pub gradients: Precision,
}

/// Which pixels a shortcut takes, from a tensor `[batch, rows, columns, channels]`, and what it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortcut {
    /// First index, step and count along height and width.
    pub rows: (usize, usize, usize),
    pub columns: (usize, usize, usize),
    /// Channels of zeros before and after.
    pub channels: (usize, usize),
}

/// A backend and the fused operators on its tensors.
pub(crate) trait TrainOps: 'static {
    /// The backend.
    type B: Backend;

    /// Convolution; `w` is OIHW.
    fn conv(
        x: Tensor<Self>,
        w: Tensor<Self>,
        bias: Option<Tensor<Self>>,
        shape: &ConvShape,
        _products: Products<'_>,
    ) -> Tensor<Self> {
        composed::conv::<Self::B>(x, w, bias, shape)
    }

    /// `quant(activation(normalise(x) + add))`, and the statistics of the batch where they were used. Those stay tensors: to read
    /// them is to wait for the device.
    fn norm(
        x: Tensor<Self>,
        gamma: Tensor<Self>,
        beta: Tensor<Self>,
        add: Option<Tensor<Self>>,
        step: Option<Tensor<Self>>,
        norm: &Norm<'_>,
    ) -> (Tensor<Self>, Option<BatchStatistics<Tensor<Self>>>) {
        composed::norm::<Self::B>(x, gamma, beta, add, step, norm)
    }

    /// Every row of `gamma`'s length by its own mean and variance, times gamma, plus beta.
    fn layer_norm(x: Tensor<Self>, gamma: Tensor<Self>, beta: Tensor<Self>, epsilon: f32) -> Tensor<Self> {
        composed::layer_norm::<Self::B>(x, gamma, beta, epsilon)
    }

    /// An activation function.
    fn activation(x: Tensor<Self>, activation: Activation) -> Tensor<Self> {
        composed::activation::<Self::B>(x, activation)
    }

    /// Rounding to a grid with a learnable step.
    fn fake_quant(x: Tensor<Self>, step: Tensor<Self>, quant: &FakeQuant) -> Tensor<Self> {
        composed::fake_quant::<Self::B>(x, step, quant)
    }

    /// `mix · wide(x) + (1 - mix) · narrow(x)`, where `mix` and both steps are tensors of one element. Backward as both roundings
    /// have it; `mix` gets `Σ dy · (wide(x) - narrow(x))`.
    fn fake_quant_pair(x: Tensor<Self>, steps: [Tensor<Self>; 2], mix: Tensor<Self>, pair: &Pair) -> Tensor<Self> {
        composed::fake_quant_pair::<Self::B>(x, steps, mix, pair)
    }

    /// Largest value under a window.
    fn max_pool(x: Tensor<Self>, shape: &PoolShape) -> Tensor<Self> {
        composed::max_pool::<Self::B>(x, shape)
    }

    /// Mean value under a window.
    fn average_pool(x: Tensor<Self>, shape: &PoolShape) -> Tensor<Self> {
        composed::average_pool::<Self::B>(x, shape)
    }

    /// Every so-many-th pixel, with channels of zeros around: the shortcut of a residual block that changes shape.
    fn shortcut(x: Tensor<Self>, shape: &Shortcut) -> Tensor<Self> {
        composed::shortcut::<Self::B>(x, shape)
    }

    /// Mean over height and width, kept as size 1.
    fn global_average_pool(x: Tensor<Self>) -> Tensor<Self> {
        composed::global_average_pool::<Self::B>(x)
    }

    /// `x [m, k]` times `w [k, n]` (or `[n, k]` where `transposed`), plus a bias `[n]`.
    fn linear(
        x: Tensor<Self>,
        w: Tensor<Self>,
        bias: Option<Tensor<Self>>,
        transposed: bool,
        _products: Products<'_>,
    ) -> Tensor<Self> {
        composed::linear::<Self::B>(x, w, bias, transposed)
    }

    /// `[.., m, k]` times `[.., k, n]`, leading axes broadcast.
    fn matmul(a: Tensor<Self>, b: Tensor<Self>) -> Tensor<Self> {
        composed::matmul::<Self::B>(a, b)
    }

    /// Softmax along an axis.
    fn softmax(x: Tensor<Self>, axis: usize) -> Tensor<Self> {
        composed::softmax::<Self::B>(x, axis)
    }

    /// Output axis `i` is input axis `axes[i]`.
    fn permute(x: Tensor<Self>, axes: &[usize]) -> Tensor<Self> {
        composed::permute::<Self::B>(x, axes)
    }

    /// `len` elements of an axis, from `at` on.
    fn part(x: Tensor<Self>, axis: usize, at: usize, len: usize) -> Tensor<Self> {
        composed::part::<Self::B>(x, axis, at, len)
    }

    /// `[batch, channels, height, width]` to channels-last.
    fn to_channels_last(x: Tensor<Self>) -> Tensor<Self> {
        composed::permute::<Self::B>(x, &[0, 2, 3, 1])
    }

    /// The inverse of [`TrainOps::to_channels_last`].
    fn to_channels_first(x: Tensor<Self>) -> Tensor<Self> {
        composed::permute::<Self::B>(x, &[0, 3, 1, 2])
    }

    /// The sum of two tensors, broadcast.
    fn add(a: Tensor<Self>, b: Tensor<Self>) -> Tensor<Self> {
        Self::B::float_add(a, b)
    }

    /// Another shape for the same elements.
    fn reshape(x: Tensor<Self>, shape: Shape) -> Tensor<Self> {
        Self::B::float_reshape(x, shape)
    }

    /// The numbers of a tensor on the host, if that is where they are.
    fn values(_x: Tensor<Self>) -> Option<Vec<f32>> {
        None
    }
}

/// Every operator composed of burn's own: any backend, any device.
pub(crate) struct Composed<B>(PhantomData<B>);

impl<B: Backend> TrainOps for Composed<B> {
    type B = B;
}

/// Our kernels: exists for the CPU backend `Flex` and for `Autodiff<Flex>`.
pub(crate) struct Fused<B>(PhantomData<B>);
