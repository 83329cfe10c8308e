//! The fused operators on the CPU, forward: our kernels on burn-flex tensors.

use bitsmith_kernels::activation::Activation;
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::integer::rows;
use bitsmith_kernels::pool::PoolShape;
use bitsmith_kernels::threads::for_each_part;
use bitsmith_kernels::{activation, conv, gemm, layout, norm, numerics, pool};
use burn_backend::ops::FloatTensorOps;
use burn_backend::{Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::{
    BatchStatistics, FakeQuant, Fused, Integers, Norm, Pair, Products, Shortcut, Statistics, TrainOps, attention,
    composed, integers, rounding, shortcut,
};
use crate::memory::{dense, floats, take, tensor};
use crate::profile;

impl TrainOps for Fused<Flex> {
    type B = Flex;

    fn conv(
        x: FlexTensor,
        w: FlexTensor,
        bias: Option<FlexTensor>,
        shape: &ConvShape,
        products: Products<'_>,
    ) -> FlexTensor {
        convolve((conv::forward, products.integers), &dense(x), &dense(w), bias.map(dense).as_ref(), shape)
    }

    fn norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        add: Option<FlexTensor>,
        step: Option<FlexTensor>,
        norm: &Norm<'_>,
    ) -> (FlexTensor, Option<BatchStatistics<FlexTensor>>) {
        let (x, add) = (dense(x), add.map(dense));
        let affine = Affine::new(&x, &dense(gamma), &dense(beta), norm);
        let mut y = affine.apply(&x, add.as_ref(), norm.activation);
        if let (Some(step), Some(quant)) = (step, &norm.quant) {
            y = rounding::rounded(y, scalar(&step), quant);
        }
        let y = tensor(y, x.shape());
        (y, affine.statistics.map(|s| s.map(channels)))
    }

    fn layer_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f32) -> FlexTensor {
        by_rows(&dense(x), &dense(gamma), &dense(beta), epsilon).0
    }

    fn activation(x: FlexTensor, activation: Activation) -> FlexTensor {
        activate(&dense(x), activation)
    }

    fn fake_quant(x: FlexTensor, step: FlexTensor, quant: &FakeQuant) -> FlexTensor {
        quantize(&dense(x), scalar(&step), quant)
    }

    fn fake_quant_pair(x: FlexTensor, steps: [FlexTensor; 2], mix: FlexTensor, pair: &Pair) -> FlexTensor {
        quantize_pair(&dense(x), steps.each_ref().map(scalar), scalar(&mix), pair)
    }

    fn max_pool(x: FlexTensor, shape: &PoolShape) -> FlexTensor {
        pooled(&dense(x), shape, pool::max)
    }

    fn average_pool(x: FlexTensor, shape: &PoolShape) -> FlexTensor {
        pooled(&dense(x), shape, pool::average)
    }

    fn shortcut(x: FlexTensor, shape: &Shortcut) -> FlexTensor {
        shortcut::forward(&dense(x), shape)
    }

    fn global_average_pool(x: FlexTensor) -> FlexTensor {
        average(&dense(x))
    }

    fn linear(
        x: FlexTensor,
        w: FlexTensor,
        bias: Option<FlexTensor>,
        transposed: bool,
        products: Products<'_>,
    ) -> FlexTensor {
        multiply(&dense(x), &dense(w), bias.map(dense).as_ref(), transposed, products.integers)
    }

    fn matmul(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        if !attention::multiplies(&a.shape(), &b.shape()) {
            return composed::matmul::<Flex>(a, b);
        }
        attention::multiply(&dense(a), &dense(b))
    }

    fn softmax(x: FlexTensor, axis: usize) -> FlexTensor {
        if !attention::is_last(&x.shape(), axis) {
            return composed::softmax::<Flex>(x, axis);
        }
        attention::soften(&dense(x))
    }

    fn permute(x: FlexTensor, axes: &[usize]) -> FlexTensor {
        attention::permuted(&dense(x), axes)
    }

    fn part(x: FlexTensor, axis: usize, at: usize, len: usize) -> FlexTensor {
        if !attention::is_last(&x.shape(), axis) {
            return composed::part::<Flex>(x, axis, at, len);
        }
        attention::part(&dense(x), at, len)
    }

    fn to_channels_last(x: FlexTensor) -> FlexTensor {
        channels_last(&dense(x))
    }

    fn to_channels_first(x: FlexTensor) -> FlexTensor {
        channels_first(&dense(x))
    }

    fn add(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        if !repeats(&a.shape(), &b.shape()) {
            return Flex::float_add(a, b);
        }
        sum(&dense(a), &dense(b))
    }
}

/// The only element of a step tensor.
pub(super) fn scalar(x: &FlexTensor) -> f32 {
    floats(x).first().copied().unwrap_or(f32::NAN)
}

/// A tensor of one number per channel.
pub(super) fn channels(values: Vec<f32>) -> FlexTensor {
    let len = values.len();
    tensor(values, Shape::new([len]))
}

/// With `forward`, [`conv::forward`] or one of its kin, where there are no integers, or none that the kernels take.
pub(super) fn convolve(
    (forward, integers): (impl Fn(&ConvShape, &[f32], &[f32], Option<&[f32]>, &mut [f32]), Option<Integers<'_>>),
    x: &FlexTensor,
    w: &FlexTensor,
    bias: Option<&FlexTensor>,
    shape: &ConvShape,
) -> FlexTensor {
    let _time = profile::span("conv");
    let mut y = take(shape.output_len());
    let summed = shape.weight_len() / shape.c_out;
    match integers.filter(|grids| grids.fit(summed, shape.c_out)) {
        Some(grids) => integers::convolve(shape, floats(x), floats(w), bias.map(floats), &grids, &mut y),
        None => forward(shape, floats(x), floats(w), bias.map(floats), &mut y),
    }
    tensor(y, Shape::new([shape.batch, shape.out_h(), shape.out_w(), shape.c_out]))
}

/// A normalisation whose statistics are known.
#[derive(Debug)]
pub(super) struct Affine {
    pub mean: Vec<f32>,
    pub inv_std: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub statistics: Option<BatchStatistics<Vec<f32>>>,
}

impl Affine {
    pub(super) fn new(x: &FlexTensor, gamma: &FlexTensor, beta: &FlexTensor, norm: &Norm<'_>) -> Self {
        let (gamma, beta) = (floats(gamma), floats(beta));
        let channels = gamma.len();
        let (mean, variance, statistics) = match norm.statistics {
            Statistics::Frozen { mean, variance } => (mean.to_vec(), variance.to_vec(), None),
            Statistics::Batch => {
                let _time = profile::span("norm statistics");
                let (mut mean, mut variance) = (vec![0.0; channels], vec![0.0; channels]);
                norm::batch_stats(floats(x), channels, &mut mean, &mut variance);
                let statistics = BatchStatistics { mean: mean.clone(), variance: variance.clone() };
                (mean, variance, Some(statistics))
            }
        };
        let (mut a, mut b) = (vec![0.0; channels], vec![0.0; channels]);
        numerics::batch_norm_affine_slice(gamma, beta, &mean, &variance, norm.epsilon, &mut a, &mut b);
        let inv_std = variance.iter().map(|v| 1.0 / (v + norm.epsilon).sqrt()).collect();
        Self { mean, inv_std, a, b, statistics }
    }

    /// `activation(x · a + b (+ add))`.
    pub(super) fn apply(&self, x: &FlexTensor, add: Option<&FlexTensor>, activation: Activation) -> Vec<f32> {
        let _time = profile::span("norm");
        let x = floats(x);
        let mut y = take(x.len());
        norm::affine_act(x, &self.a, &self.b, add.map(floats), activation, &mut y);
        y
    }
}

/// Layer normalisation, and mean and factor of each row.
pub(super) fn by_rows(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    epsilon: f32,
) -> (FlexTensor, Vec<(f32, f32)>) {
    let _time = profile::span("layer norm");
    let (values, gamma) = (floats(x), floats(gamma));
    let mut y = take(values.len());
    let mut statistics = vec![(0.0, 0.0); values.len() / gamma.len().max(1)];
    norm::layer::forward(values, gamma, floats(beta), epsilon, &mut y, Some(&mut statistics));
    (tensor(y, x.shape()), statistics)
}

pub(super) fn activate(x: &FlexTensor, act: Activation) -> FlexTensor {
    let _time = profile::span("activation");
    let mut y = take(floats(x).len());
    activation::forward(act, floats(x), &mut y);
    tensor(y, x.shape())
}

pub(super) fn quantize(x: &FlexTensor, step: f32, quant: &FakeQuant) -> FlexTensor {
    let mut y = take(floats(x).len());
    rounding::round(floats(x), &mut y, step, quant);
    tensor(y, x.shape())
}

pub(super) fn quantize_pair(x: &FlexTensor, steps: [f32; 2], mix: f32, pair: &Pair) -> FlexTensor {
    let mut y = take(floats(x).len());
    rounding::round_pair(floats(x), &mut y, steps, mix, pair);
    tensor(y, x.shape())
}

pub(super) fn pooled(x: &FlexTensor, shape: &PoolShape, kernel: fn(&PoolShape, &[f32], &mut [f32])) -> FlexTensor {
    let _time = profile::span("pool");
    let mut y = take(shape.output_len());
    kernel(shape, floats(x), &mut y);
    tensor(y, Shape::new([shape.batch, shape.out_h(), shape.out_w(), shape.channels]))
}

pub(super) fn average(x: &FlexTensor) -> FlexTensor {
    let _time = profile::span("pool");
    let [batch, _, _, channels] = x.shape().dims();
    let mut y = take(batch * channels);
    pool::global_average(batch, channels, floats(x), &mut y);
    tensor(y, Shape::new([batch, 1, 1, channels]))
}

pub(super) fn multiply(
    x: &FlexTensor,
    w: &FlexTensor,
    bias: Option<&FlexTensor>,
    transposed: bool,
    integers: Option<Integers<'_>>,
) -> FlexTensor {
    let _time = profile::span("linear");
    let [m, k] = x.shape().dims();
    let [rows, columns] = w.shape().dims();
    let n = if transposed { rows } else { columns };
    let order = if transposed { gemm::Order::Transposed } else { gemm::Order::Plain };
    let mut y = take(m * n);
    let bias = bias.map(floats);
    match integers.filter(|grids| grids.fit(k, n)) {
        Some(grids) => integers::multiply([m, k, n], floats(x), floats(w), bias, transposed, &grids, &mut y),
        None => {
            gemm::matmul([m, k, n], floats(x), gemm::Order::Plain, floats(w), order, &mut y);
            if let Some(bias) = bias {
                for_each_part(&mut y, n, |_, y| rows::add_rows(bias, y));
            }
        }
    }
    tensor(y, Shape::new([m, n]))
}

/// Whether the second shape is the first, or the end of it: then a sum repeats the second operand.
pub(super) fn repeats(a: &Shape, b: &Shape) -> bool {
    let (a, b) = (a.as_slice(), b.as_slice());
    let own = b.iter().position(|&size| size != 1).unwrap_or(b.len());
    a.len() == b.len() && own < b.len() && a[own..] == b[own..] && !a.contains(&0)
}

/// Of operands that [`repeats`] takes.
pub(super) fn sum(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    let _time = profile::span("elementwise");
    let mut y = take(floats(a).len());
    let (a_data, b_data) = (floats(a), floats(b));
    let n = b_data.len();
    // Where nothing is repeated a part may begin anywhere.
    let unit = if n == a_data.len() { 1 } else { n };
    for_each_part(&mut y, unit, |at, y| {
        let b = if unit == 1 { &b_data[at..] } else { b_data };
        for (y, a) in y.chunks_mut(n).zip(a_data[at..].chunks(n)) {
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
        }
    });
    tensor(y, a.shape())
}

/// The largest elements of windows, and which pixel each came from.
pub(super) fn max_numbered(x: &FlexTensor, shape: &PoolShape) -> (FlexTensor, FlexTensor) {
    let _time = profile::span("pool");
    let [mut y, mut first] = [(); 2].map(|()| take(shape.output_len()));
    pool::max_numbered(shape, floats(x), &mut y, &mut first);
    let dims = Shape::new([shape.batch, shape.out_h(), shape.out_w(), shape.channels]);
    (tensor(y, dims.clone()), tensor(first, dims))
}

pub(super) fn channels_last(x: &FlexTensor) -> FlexTensor {
    let _time = profile::span("layout");
    let [batch, channels, height, width] = x.shape().dims();
    let shape = Shape::new([batch, height, width, channels]);
    if channels == 1 || height * width == 1 {
        return x.reshape(shape);
    }
    let mut y = take(floats(x).len());
    layout::nchw_to_nhwc(batch, channels, height * width, floats(x), &mut y);
    tensor(y, shape)
}

pub(super) fn channels_first(x: &FlexTensor) -> FlexTensor {
    let _time = profile::span("layout");
    let [batch, height, width, channels] = x.shape().dims();
    let shape = Shape::new([batch, channels, height, width]);
    if channels == 1 || height * width == 1 {
        return x.reshape(shape);
    }
    let mut y = take(floats(x).len());
    layout::nhwc_to_nchw(batch, channels, height * width, floats(x), &mut y);
    tensor(y, shape)
}
