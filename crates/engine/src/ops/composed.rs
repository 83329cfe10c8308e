//! Each fused operator as a composition of burn's own: the definition for every device, and the reference for [`super::Fused`].
//!
//! A GPU gives each element of a sum's result to one unit, which adds term after term: a sum of a million terms for sixteen channels
//! would leave it idle. So numbers for a channel or for a whole tensor are spread over samples first, then over the rest; on the way
//! back this makes several short sums, of many elements each, out of a long one.

use bitsmith_kernels::activation::Activation;
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::fakequant::Inside;
use bitsmith_kernels::pool::{Padding, PoolShape};
use burn_backend::ops::{ConvOptions, PadMode, TransactionPrimitive};
use burn_backend::tensor::FloatTensor;
use burn_backend::{
    Backend, Scalar, Shape, Slice, TensorData, TensorMetadata, get_or_init_device_settings, try_read_sync,
};

use super::{BatchStatistics, FakeQuant, Norm, Pair, Shortcut, Statistics};
use crate::error::{Error, Kind};

type T<B> = FloatTensor<B>;

/// A constant like `like` in device, of this shape.
fn constant<B: Backend>(values: Vec<f32>, shape: &[usize], like: &T<B>) -> T<B> {
    B::float_from_data(TensorData::new(values, Shape::from(shape.to_vec())), &like.device())
}

fn reshape<B: Backend>(x: T<B>, shape: &[usize]) -> T<B> {
    B::float_reshape(x, Shape::from(shape.to_vec()))
}

/// Copies a tensor to the host, waiting for the device.
pub(crate) fn read<B: Backend>(x: T<B>) -> Result<Vec<f32>, Error> {
    Ok(read_all::<B>(vec![x])?.pop().unwrap_or_default())
}

/// Copies tensors to the host, waiting for the device once.
pub(crate) fn read_all<B: Backend>(tensors: Vec<T<B>>) -> Result<Vec<Vec<f32>>, Error> {
    if tensors.is_empty() {
        return Ok(vec![]);
    }
    let fail = |what: &dyn std::fmt::Display| Error::new(Kind::Device, "", format!("results cannot be read: {what}"));
    let data = try_read_sync(B::tr_execute(TransactionPrimitive::new(tensors, vec![], vec![], vec![])));
    let data = data.ok_or_else(|| fail(&"the device cannot be waited for"))?.map_err(|e| fail(&e))?;
    data.read_floats.into_iter().map(|data| data.try_into_vec::<f32>().map_err(|e| fail(&format!("{e:?}")))).collect()
}

pub(crate) fn permute<B: Backend>(x: T<B>, axes: &[usize]) -> T<B> {
    B::float_permute(x, axes)
}

/// Every window as a row, and one product for each sample: what burn computes fast without trying out kernels first.
pub(super) fn conv<B: Backend>(x: T<B>, w: T<B>, bias: Option<T<B>>, shape: &ConvShape) -> T<B> {
    if shape.groups > 1 {
        return grouped_conv::<B>(x, w, bias, shape);
    }
    let [top, left, bottom, right] = shape.pads;
    let (rows, columns) = (shape.out_h(), shape.out_w());
    let [kernel_h, kernel_w] = shape.kernel;
    let taps = kernel_h * kernel_w;
    let x = pad::<B>(x, [(0, 0), (top, bottom), (left, right), (0, 0)], 0.0);
    let tap = |tap: usize| {
        let taken = |tap: usize, axis: usize, count: usize| {
            let (first, step) = (tap * shape.dilation[axis], shape.stride[axis]);
            Slice::new(first as isize, Some((first + (count - 1) * step + 1) as isize), step as isize)
        };
        let (h, w) = (taken(tap / kernel_w, 0, rows), taken(tap % kernel_w, 1, columns));
        let x = B::float_slice(x.clone(), &[Slice::full(), h, w, Slice::full()]);
        reshape::<B>(x, &[shape.batch, rows * columns, shape.c_in])
    };
    let mut windows: Vec<T<B>> = (0..taps).map(tap).collect();
    let windows = if taps == 1 { windows.remove(0) } else { B::float_cat(windows, 2) };
    let w = permute::<B>(reshape::<B>(w, &[shape.c_out, shape.c_in, taps]), &[2, 1, 0]);
    let w = reshape::<B>(w, &[1, taps * shape.c_in, shape.c_out]);
    let w = B::float_expand(w, Shape::from(vec![shape.batch, taps * shape.c_in, shape.c_out]));
    let y = B::float_matmul(windows, w);
    let y = match bias {
        Some(bias) => {
            let bias = reshape::<B>(bias, &[1, 1, shape.c_out]);
            B::float_add(y, per_sample::<B>(bias, shape.batch))
        }
        None => y,
    };
    reshape::<B>(y, &[shape.batch, rows, columns, shape.c_out])
}

fn grouped_conv<B: Backend>(x: T<B>, w: T<B>, bias: Option<T<B>>, shape: &ConvShape) -> T<B> {
    let [top, left, bottom, right] = shape.pads;
    let x = permute::<B>(x, &[0, 3, 1, 2]);
    // The same zeros on both sides cost nothing; others are a copy.
    let (x, padding) = match (top, left) == (bottom, right) {
        true => (x, [top, left]),
        false => (pad::<B>(x, [(0, 0), (0, 0), (top, bottom), (left, right)], 0.0), [0, 0]),
    };
    let w = reshape::<B>(w, &[shape.c_out, shape.c_in / shape.groups, shape.kernel[0], shape.kernel[1]]);
    let options = ConvOptions::new(shape.stride, padding, shape.dilation, shape.groups);
    permute::<B>(B::conv2d(x, w, bias, options), &[0, 2, 3, 1])
}

fn pad<B: Backend>(x: T<B>, pads: [(usize, usize); 4], value: f32) -> T<B> {
    if pads == [(0, 0); 4] { x } else { B::float_pad(x, &pads, PadMode::Constant(value)) }
}

/// Numbers `[1, 1, channels]` for each of `samples`, to meet values `[samples, rows, channels]`.
fn per_sample<B: Backend>(x: T<B>, samples: usize) -> T<B> {
    let channels = x.shape()[2];
    B::float_expand(x, Shape::from(vec![samples, 1, channels]))
}

/// Means of channels over samples and rows: `[samples, rows, channels]` to `[1, 1, channels]`.
fn mean<B: Backend>(x: T<B>) -> T<B> {
    B::float_mean_dim(B::float_mean_dim(x, 1), 0)
}

/// One number for a tensor of this shape, with as many axes and all but the last as long.
fn for_all<B: Backend>(x: T<B>, shape: &Shape) -> T<B> {
    let mut now = vec![1; shape.num_dims()];
    let x = reshape::<B>(x, &now);
    (0..now.len().saturating_sub(1)).fold(x, |x, axis| {
        now[axis] = shape[axis];
        B::float_expand(x, Shape::from(now.clone()))
    })
}

pub(super) fn norm<B: Backend>(
    x: T<B>,
    gamma: T<B>,
    beta: T<B>,
    add: Option<T<B>>,
    step: Option<T<B>>,
    norm: &Norm<'_>,
) -> (T<B>, Option<BatchStatistics<T<B>>>) {
    let shape = x.shape();
    let (samples, channels) = (shape[0], shape[shape.num_dims() - 1]);
    let rows = shape.num_elements() / (samples * channels).max(1);
    let x = reshape::<B>(x, &[samples, rows, channels]);
    let (gamma, beta) = (reshape::<B>(gamma, &[1, 1, channels]), reshape::<B>(beta, &[1, 1, channels]));
    let (a, b, statistics) = match norm.statistics {
        Statistics::Batch => {
            let mean = self::mean::<B>(x.clone());
            let centred = B::float_sub(x.clone(), per_sample::<B>(mean.clone(), samples));
            let variance = self::mean::<B>(B::float_mul(centred.clone(), centred));
            let statistics = BatchStatistics { mean: mean.clone(), variance: variance.clone() }.map(B::float_detach);
            let std = B::float_sqrt(B::float_add_scalar(variance, Scalar::from(norm.epsilon)));
            let a = B::float_div(gamma, std);
            (a.clone(), B::float_sub(beta, B::float_mul(mean, a)), Some(statistics))
        }
        Statistics::Frozen { mean, variance } => {
            let std = variance.iter().map(|v| (v + norm.epsilon).sqrt()).collect();
            let a = B::float_div(gamma, constant::<B>(std, &[1, 1, channels], &x));
            let mean = constant::<B>(mean.to_vec(), &[1, 1, channels], &x);
            (a.clone(), B::float_sub(beta, B::float_mul(mean, a)), None)
        }
    };
    let (a, b) = (per_sample::<B>(a, samples), per_sample::<B>(b, samples));
    let y = B::float_reshape(B::float_add(B::float_mul(x, a), b), shape);
    let y = match add {
        Some(add) => B::float_add(y, add),
        None => y,
    };
    let y = activation::<B>(y, norm.activation);
    match (step, &norm.quant) {
        (Some(step), Some(quant)) => (fake_quant::<B>(y, step, quant), statistics),
        _ => (y, statistics),
    }
}

pub(super) fn layer_norm<B: Backend>(x: T<B>, gamma: T<B>, beta: T<B>, epsilon: f32) -> T<B> {
    let shape = x.shape();
    let n = gamma.shape().num_elements();
    let x = reshape::<B>(x, &[shape.num_elements() / n.max(1), n]);
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
    let normalised = B::float_div(centred, B::float_sqrt(B::float_add_scalar(variance, Scalar::from(epsilon))));
    let samples = shape[0];
    let normalised = reshape::<B>(normalised, &[samples, shape.num_elements() / (samples * n).max(1), n]);
    let [gamma, beta] = [gamma, beta].map(|x| per_sample::<B>(reshape::<B>(x, &[1, 1, n]), samples));
    B::float_reshape(B::float_add(B::float_mul(normalised, gamma), beta), shape)
}

pub(super) fn activation<B: Backend>(x: T<B>, activation: Activation) -> T<B> {
    match activation {
        Activation::Identity => x,
        Activation::Relu => B::relu(x),
        Activation::LeakyRelu { alpha } => B::leaky_relu(x, Scalar::from(alpha)),
        Activation::Clip { min, max } => clip::<B>(x, min, max),
        Activation::HardSwish => {
            let gate =
                B::float_add_scalar(B::float_div_scalar(x.clone(), Scalar::from(6.0_f32)), Scalar::from(0.5_f32));
            B::float_mul(x, clip::<B>(gate, 0.0, 1.0))
        }
        Activation::HardSigmoid { alpha, beta } => {
            let line = B::float_add_scalar(B::float_mul_scalar(x, Scalar::from(alpha)), Scalar::from(beta));
            clip::<B>(line, 0.0, 1.0)
        }
        Activation::Sigmoid => B::sigmoid(x),
        Activation::Tanh => B::float_tanh(x),
        Activation::GeluErf => {
            // Not burn's own, whose gradient is, on most backends, that of the approximation by tanh.
            let erf = B::float_erf(B::float_mul_scalar(x.clone(), Scalar::from(std::f32::consts::FRAC_1_SQRT_2)));
            let half = B::float_mul_scalar(x, Scalar::from(0.5_f32));
            B::float_mul(half, B::float_add_scalar(erf, Scalar::from(1.0_f32)))
        }
        Activation::GeluTanh => {
            let cube = B::float_mul(B::float_mul(x.clone(), x.clone()), x.clone());
            let inner = B::float_add(x.clone(), B::float_mul_scalar(cube, Scalar::from(0.044_715_f32)));
            let t = B::float_tanh(B::float_mul_scalar(inner, Scalar::from(0.797_884_6_f32)));
            let half = B::float_mul_scalar(x, Scalar::from(0.5_f32));
            B::float_mul(half, B::float_add_scalar(t, Scalar::from(1.0_f32)))
        }
    }
}

/// `min(max(x, low), high)`; an infinite bound does nothing.
fn clip<B: Backend>(x: T<B>, low: f32, high: f32) -> T<B> {
    let x = if low == f32::NEG_INFINITY { x } else { limit::<B>(x, low, Side::Below) };
    if high == f32::INFINITY { x } else { limit::<B>(x, high, Side::Above) }
}

enum Side {
    Below,
    Above,
}

/// Replaces what lies beyond `bound`, which thereby gets no gradient. By masks, since burn's own clamp is not
/// differentiated the same way by every backend.
fn limit<B: Backend>(x: T<B>, bound: f32, side: Side) -> T<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let mask = match side {
        Side::Below => B::float_lower_equal_elem(x.clone(), Scalar::from(bound), bool_dtype),
        Side::Above => B::float_greater_equal_elem(x.clone(), Scalar::from(bound), bool_dtype),
    };
    B::float_mask_fill(x, mask, Scalar::from(bound))
}

pub(super) fn fake_quant<B: Backend>(x: T<B>, step: T<B>, quant: &FakeQuant) -> T<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let step = for_all::<B>(step, &x.shape());
    // The value of the step, with a gradient scaled by g: detach(s) + (g·s - detach(g·s)), where the bracket is exactly 0.
    let scaled = B::float_mul_scalar(step.clone(), Scalar::from(quant.grad_scale));
    let nothing = B::float_sub(scaled.clone(), B::float_detach(scaled));
    let step = B::float_add(B::float_detach(step), nothing);
    let divisor = if quant.inside == Inside::Error { step.clone() } else { B::float_detach(step.clone()) };
    let clamped = clip::<B>(B::float_div(x, divisor.clone()), quant.low as f32, quant.high as f32);
    // Rounded on the way forward, passed through on the way back; again the second bracket is exactly 0.
    let rounded = B::float_detach(B::float_round(B::float_detach(clamped.clone())));
    let through = B::float_sub(clamped.clone(), B::float_detach(clamped.clone()));
    let y = B::float_mul(B::float_add(rounded.clone(), through), divisor);
    if quant.inside == Inside::Error {
        return y;
    }
    // PACT: the step's gradient comes from the ends alone, through a term that is exactly 0.
    let clamped = B::float_detach(clamped);
    let below = B::float_lower_equal_elem(clamped.clone(), Scalar::from(quant.low as f32), bool_dtype);
    let above = B::float_greater_equal_elem(clamped, Scalar::from(quant.high as f32), bool_dtype);
    let inside = B::bool_not(B::bool_or(below, above));
    let ends = B::float_mask_fill(rounded, inside, Scalar::from(0.0f32));
    let nothing = B::float_sub(step.clone(), B::float_detach(step));
    B::float_add(y, B::float_mul(ends, nothing))
}

pub(super) fn fake_quant_pair<B: Backend>(x: T<B>, steps: [T<B>; 2], mix: T<B>, pair: &Pair) -> T<B> {
    let mix = for_all::<B>(mix, &x.shape());
    let [wide, narrow] = steps;
    let wide = fake_quant::<B>(x.clone(), wide, &pair.wide);
    let narrow = fake_quant::<B>(x, narrow, &pair.narrow);
    let rest = B::float_add_scalar(B::float_neg(mix.clone()), Scalar::from(1.0f32));
    B::float_add(B::float_mul(wide, mix), B::float_mul(narrow, rest))
}

pub(super) fn max_pool<B: Backend>(x: T<B>, shape: &PoolShape) -> T<B> {
    let x = pool_input::<B>(x, shape, f32::MIN);
    permute::<B>(B::max_pool2d(x, shape.kernel, shape.stride, [0, 0], [1, 1], false), &[0, 2, 3, 1])
}

pub(super) fn average_pool<B: Backend>(x: T<B>, shape: &PoolShape) -> T<B> {
    let (kernel, pads) = (shape.kernel, shape.pads);
    let axis = |size: usize, windows: usize, axis: usize| -> Vec<f32> {
        // How many elements of each window count: those inside the input, or inside its (not extended) padding.
        let (before, after) = (pads[axis], pads[axis + 2]);
        let (from, to) = match shape.padding {
            Padding::Ignored => (before, before + size),
            Padding::Counted => (0, before + size + after),
        };
        (0..windows)
            .map(|i| {
                let start = i * shape.stride[axis];
                (start + kernel[axis]).min(to).saturating_sub(start.max(from)) as f32
            })
            .collect()
    };
    let (h, w) = (axis(shape.in_h, shape.out_h(), 0), axis(shape.in_w, shape.out_w(), 1));
    let area = (kernel[0] * kernel[1]) as f32;
    let factors = h.iter().flat_map(|h| w.iter().map(move |w| area / (h * w).max(1.0))).collect();
    let factors = constant::<B>(factors, &[1, h.len(), w.len(), 1], &x);
    let x = pool_input::<B>(x, shape, 0.0);
    let mean = permute::<B>(B::avg_pool2d(x, kernel, shape.stride, [0, 0], true, false), &[0, 2, 3, 1]);
    B::float_mul(mean, factors)
}

/// Channels first, padded so that exactly the windows of `shape` fit.
fn pool_input<B: Backend>(x: T<B>, shape: &PoolShape, fill: f32) -> T<B> {
    let end = |size: usize, windows: usize, axis: usize| {
        ((windows - 1) * shape.stride[axis] + shape.kernel[axis]).saturating_sub(size + shape.pads[axis])
    };
    let pads = [
        (0, 0),
        (0, 0),
        (shape.pads[0], end(shape.in_h, shape.out_h(), 0)),
        (shape.pads[1], end(shape.in_w, shape.out_w(), 1)),
    ];
    pad::<B>(permute::<B>(x, &[0, 3, 1, 2]), pads, fill)
}

pub(super) fn shortcut<B: Backend>(x: T<B>, shape: &Shortcut) -> T<B> {
    let taken = |(first, step, count): (usize, usize, usize)| {
        Slice::new(first as isize, Some((first + (count - 1) * step + 1) as isize), step as isize)
    };
    let x = B::float_slice(x, &[Slice::full(), taken(shape.rows), taken(shape.columns), Slice::full()]);
    pad::<B>(x, [(0, 0), (0, 0), (0, 0), shape.channels], 0.0)
}

pub(super) fn global_average_pool<B: Backend>(x: T<B>) -> T<B> {
    let shape = x.shape();
    let (batch, pixels, channels) = (shape[0], shape[1] * shape[2], shape[3]);
    let mean = B::float_mean_dim(reshape::<B>(x, &[batch, pixels, channels]), 1);
    reshape::<B>(mean, &[batch, 1, 1, channels])
}

pub(super) fn linear<B: Backend>(x: T<B>, w: T<B>, bias: Option<T<B>>, transposed: bool) -> T<B> {
    let w = if transposed { B::float_transpose(w) } else { w };
    let y = B::float_matmul(x, w);
    match bias {
        Some(bias) => {
            let n = bias.shape().num_elements();
            B::float_add(y, reshape::<B>(bias, &[1, n]))
        }
        None => y,
    }
}

pub(super) fn matmul<B: Backend>(a: T<B>, b: T<B>) -> T<B> {
    B::float_matmul(a, b)
}

pub(super) fn softmax<B: Backend>(x: T<B>, axis: usize) -> T<B> {
    B::softmax(x, axis)
}

pub(super) fn part<B: Backend>(x: T<B>, axis: usize, at: usize, len: usize) -> T<B> {
    let mut slices = vec![Slice::full(); x.shape().num_dims()];
    slices[axis] = Slice::new(at as isize, Some((at + len) as isize), 1);
    B::float_slice(x, &slices)
}
