//! Fused equals composed, and both equal finite differences: values and gradients of every operator. In a build with a GPU's
//! feature, on a machine with that GPU, composed there equals composed here.

use bitsmith_kernels::activation::Activation;
use bitsmith_kernels::conv::{ConvShape, Precision};
use bitsmith_kernels::fakequant::Inside;
use bitsmith_kernels::pool::{Padding, PoolShape, Rounding};
use burn_autodiff::Autodiff;
use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, BackendTypes, Shape, TensorData, TensorMetadata};
use burn_flex::Flex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Composed, FakeQuant, Fused, Norm, Pair, Products, Shortcut, Statistics, TrainOps};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::gpu::Cube;

const BY_FLOATS: Products<'_> = Products { integers: None, forward: Precision::Full, gradients: Precision::Full };

type Cpu = Autodiff<Flex>;
type T = FloatTensor<Cpu>;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
type OnGpu = FloatTensor<Autodiff<Cube>>;

fn read<B: burn_backend::Backend>(x: FloatTensor<B>) -> Vec<f32> {
    super::read::<B>(x).unwrap()
}

/// An operator as a function of its tensors, in every implementation.
struct Case<const N: usize> {
    name: String,
    shapes: [&'static [usize]; N],
    fused: Box<dyn Fn([T; N]) -> T>,
    composed: Box<dyn Fn([T; N]) -> T>,
    inference: Box<dyn Fn([FloatTensor<Flex>; N]) -> FloatTensor<Flex>>,
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    gpu: Box<dyn Fn([OnGpu; N]) -> OnGpu>,
    /// Whether finite differences apply: nothing rounds and no kink is near.
    smooth: bool,
    range: (f32, f32),
}

/// Writes one expression down for every operator set.
macro_rules! case {
    ($name:expr, $shapes:expr, $smooth:expr, $range:expr, $ops:ident, $inputs:pat => $body:expr) => {
        Case {
            name: format!("{}", $name),
            shapes: $shapes,
            fused: Box::new(move |$inputs| {
                type $ops = Fused<Cpu>;
                $body
            }),
            composed: Box::new(move |$inputs| {
                type $ops = Composed<Cpu>;
                $body
            }),
            inference: Box::new(move |$inputs| {
                type $ops = Fused<Flex>;
                $body
            }),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            gpu: Box::new(move |$inputs| {
                type $ops = Composed<Autodiff<Cube>>;
                $body
            }),
            smooth: $smooth,
            range: $range,
        }
    };
}

fn tensor(values: &[f32], shape: &[usize]) -> FloatTensor<Flex> {
    Flex::float_from_data(TensorData::new(values.to_vec(), Shape::from(shape.to_vec())), &Default::default())
}

fn random(seed: u64, len: usize, (low, high): (f32, f32)) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(low..high)).collect()
}

/// Output, and gradients of `Σ output · r` for every input, on the CPU.
fn run<const N: usize>(
    op: &dyn Fn([T; N]) -> T,
    shapes: &[&[usize]; N],
    inputs: &[Vec<f32>; N],
) -> (Vec<f32>, Vec<Vec<f32>>) {
    run_on::<Cpu, N>(&Default::default(), op, shapes, inputs)
}

fn run_on<B: AutodiffBackend, const N: usize>(
    device: &<B as BackendTypes>::Device,
    op: &dyn Fn([FloatTensor<B>; N]) -> FloatTensor<B>,
    shapes: &[&[usize]; N],
    inputs: &[Vec<f32>; N],
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let upload = |values: Vec<f32>, shape: Shape| B::float_from_data(TensorData::new(values, shape), device);
    let leaf = |i: usize| upload(inputs[i].clone(), Shape::from(shapes[i].to_vec()));
    let leaves: [FloatTensor<B>; N] = std::array::from_fn(|i| B::float_set_require_grad(leaf(i), true));
    let y = op(leaves.clone());
    let r = upload(random(99, y.shape().num_elements(), (-1.0, 1.0)), y.shape());
    let value = read::<B>(y.clone());
    let mut grads = B::backward(B::float_sum(B::float_mul(y, r)));
    let mut gradient = |leaf| read::<B::InnerBackend>(B::grad_remove(leaf, &mut grads).expect("every input is used"));
    let gradients = leaves.iter().map(&mut gradient).collect();
    (value, gradients)
}

/// The same case on every GPU that this build and machine have. Says so where there is none.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn check_gpus<const N: usize>(case: &Case<N>, inputs: &[Vec<f32>; N], expected: &(Vec<f32>, Vec<Vec<f32>>)) {
    use crate::device::{Device, Place};
    for device in [Device::Cuda, Device::Wgpu] {
        let gpu = match device.open(crate::Operators::Composed) {
            Ok(Place::Gpu(gpu)) => gpu,
            Ok(_) => unreachable!("a GPU is no CPU"),
            Err(error) => {
                eprintln!("{}: not compared on {device}: {error}", case.name);
                continue;
            }
        };
        // Tensor cores round factors to 11 bits.
        let tolerance = if device == Device::Cuda { 3e-3 } else { 1e-4 };
        let (value, gradients) = run_on::<Autodiff<Cube>, N>(&gpu.device, &*case.gpu, &case.shapes, inputs);
        close(&format!("{} on {device}: value", case.name), &value, &expected.0, tolerance);
        for (i, (got, want)) in gradients.iter().zip(&expected.1).enumerate() {
            close(&format!("{} on {device}: gradient of input {i}", case.name), got, want, tolerance);
        }
    }
}

fn close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    let scale = b.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what} [{i}]: {a} against {b}");
    }
}

fn check<const N: usize>(case: &Case<N>) {
    let inputs: [Vec<f32>; N] = std::array::from_fn(|i| {
        // Later inputs are weights, scales, steps: kept positive and away from zero where the range says so.
        random(i as u64 + 1, case.shapes[i].iter().product(), if i == 0 { (-2.0, 2.0) } else { case.range })
    });
    let (value, gradients) = run(&*case.fused, &case.shapes, &inputs);
    let (expected, expected_gradients) = run(&*case.composed, &case.shapes, &inputs);
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    check_gpus(case, &inputs, &(expected.clone(), expected_gradients.clone()));
    // Sums of some hundred products of size 1 in another order.
    close(&format!("{}: value", case.name), &value, &expected, 2e-5);
    for (i, (got, want)) in gradients.iter().zip(&expected_gradients).enumerate() {
        close(&format!("{}: gradient of input {i}", case.name), got, want, 5e-5);
    }
    let tensors = std::array::from_fn(|i| tensor(&inputs[i], case.shapes[i]));
    close(&format!("{}: inference", case.name), &read::<Flex>((case.inference)(tensors)), &value, 0.0);
    if !case.smooth {
        return;
    }
    // Directional derivatives in f64 sums of an f32 function: h balances truncation against rounding.
    let h = 1e-2;
    for (i, gradient) in gradients.iter().enumerate() {
        let direction = random(i as u64 + 50, inputs[i].len(), (-1.0, 1.0));
        let at = |h: f32| {
            let mut moved = inputs.clone();
            moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += h * d);
            let y = run(&*case.fused, &case.shapes, &moved).0;
            let r = random(99, y.len(), (-1.0, 1.0));
            y.iter().zip(r).map(|(y, r)| f64::from(*y) * f64::from(r)).sum::<f64>()
        };
        let numeric = (at(h) - at(-h)) / (2.0 * f64::from(h));
        let exact: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let size = gradient.iter().map(|g| f64::from(g.abs())).sum::<f64>().max(1.0);
        assert!((numeric - exact).abs() < 2e-3 * size, "{}: input {i}: {numeric} against {exact}", case.name);
    }
}

#[test]
fn convolution() {
    let shape = |c_in, c_out, groups, stride, pads, dilation| ConvShape {
        batch: 2,
        in_h: 7,
        in_w: 6,
        c_in,
        c_out,
        kernel: [3, 3],
        stride,
        pads,
        dilation,
        groups,
    };
    let plain = shape(4, 5, 1, [1, 1], [1; 4], [1, 1]);
    check(
        &case!("plain", [&[2, 7, 6, 4], &[5, 4, 3, 3], &[5]], true, (-1.0, 1.0), O, [x, w, b] => O::conv(x, w, Some(b), &plain, BY_FLOATS)),
    );
    let odd = shape(4, 6, 2, [2, 1], [0, 1, 2, 1], [1, 2]);
    check(
        &case!("groups", [&[2, 7, 6, 4], &[6, 2, 3, 3]], true, (-1.0, 1.0), O, [x, w] => O::conv(x, w, None, &odd, BY_FLOATS)),
    );
    let depthwise = shape(8, 8, 8, [2, 2], [1; 4], [1, 1]);
    check(
        &case!("depthwise", [&[2, 7, 6, 8], &[8, 1, 3, 3]], true, (-1.0, 1.0), O, [x, w] => O::conv(x, w, None, &depthwise, BY_FLOATS)),
    );
    let line = ConvShape { in_h: 1, kernel: [1, 3], pads: [0, 1, 0, 1], ..plain };
    check(
        &case!("one axis", [&[2, 1, 6, 4], &[5, 4, 3]], true, (-1.0, 1.0), O, [x, w] => O::conv(x, w, None, &line, BY_FLOATS)),
    );
}

const ACTIVATIONS: [Activation; 10] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { alpha: 0.1 },
    Activation::Clip { min: -0.5, max: 1.25 },
    Activation::HardSwish,
    Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::GeluErf,
    Activation::GeluTanh,
];

fn is_smooth(activation: Activation) -> bool {
    use Activation::{GeluErf, GeluTanh, Identity, Sigmoid, Tanh};
    matches!(activation, Identity | Sigmoid | Tanh | GeluErf | GeluTanh)
}

#[test]
fn activations() {
    for act in ACTIVATIONS {
        check(&case!(format!("{act:?}"), [&[3, 5, 7]], is_smooth(act), (0.0, 1.0), O, [x] => O::activation(x, act)));
    }
}

#[test]
fn normalisation() {
    const MEAN: [f32; 3] = [0.1, -0.2, 0.0];
    const VARIANCE: [f32; 3] = [1.0, 0.5, 2.0];
    for act in ACTIVATIONS {
        for frozen in [false, true] {
            let statistics =
                if frozen { Statistics::Frozen { mean: &MEAN, variance: &VARIANCE } } else { Statistics::Batch };
            let norm = Norm { epsilon: 1e-3, statistics, activation: act, quant: None };
            let (name, smooth, range) = (format!("{act:?}, frozen {frozen}"), is_smooth(act), (0.5, 1.5));
            check(
                &case!(name, [&[2, 3, 4, 3], &[3], &[3]], smooth, range, O, [x, g, b] => O::norm(x, g, b, None, None, &norm).0),
            );
            check(
                &case!(name, [&[2, 3, 4, 3], &[3], &[3], &[2, 3, 4, 3]], smooth, range, O, [x, g, b, a] => O::norm(x, g, b, Some(a), None, &norm).0),
            );
            let quant = FakeQuant { low: 0, high: 7, grad_scale: 0.3, inside: Inside::Error };
            let norm = Norm { quant: Some(quant), ..norm };
            // A step whose halves no value of the test hits: rounding either way would make the two differ by one step.
            check(
                &case!(name, [&[2, 3, 4, 3], &[3], &[3], &[2, 3, 4, 3], &[1]], false, range, O, [x, g, b, a, s] => O::norm(x, g, b, Some(a), Some(s), &norm).0),
            );
        }
    }
}

#[test]
fn layer_normalisation() {
    for shape in [&[2usize, 3, 5][..], &[4, 17], &[1, 2, 64]] {
        let n = shape[shape.len() - 1];
        let (x, row): (&'static [usize], &'static [usize]) = (shape.to_vec().leak(), vec![n].leak());
        check(
            &case!(format!("{shape:?}"), [x, row, row], true, (0.5, 1.5), O, [x, g, b] => O::layer_norm(x, g, b, 1e-3)),
        );
    }
}

#[test]
fn statistics_agree() {
    let x = random(5, 2 * 5 * 3, (-3.0, 1.0));
    let norm = Norm { epsilon: 1e-5, statistics: Statistics::Batch, activation: Activation::Relu, quant: None };
    let (x, g, b) = (tensor(&x, &[2, 5, 1, 3]), tensor(&[1.0; 3], &[3]), tensor(&[0.0; 3], &[3]));
    let (_, fused) = Fused::<Flex>::norm(x.clone(), g.clone(), b.clone(), None, None, &norm);
    let (_, composed) = Composed::<Flex>::norm(x, g, b, None, None, &norm);
    let (fused, composed) = (fused.unwrap().map(read::<Flex>), composed.unwrap().map(read::<Flex>));
    close("mean", &fused.mean, &composed.mean, 1e-6);
    close("variance", &fused.variance, &composed.variance, 1e-6);
}

#[test]
fn rounding() {
    let cases = [(0, 15), (-8, 7), (-3, 12)];
    for ((low, high), inside) in cases.into_iter().flat_map(|c| [(c, Inside::Error), (c, Inside::Nothing)]) {
        let quant = FakeQuant { low, high, grad_scale: 0.7, inside };
        check(
            &case!(format!("{low}..{high}"), [&[5, 31], &[1]], false, (0.08, 0.11), O, [x, s] => O::fake_quant(x, s, &quant)),
        );
    }
}

#[test]
fn rounding_between_two_widths() {
    let grid = |high| FakeQuant { low: 0, high, grad_scale: 0.7, inside: Inside::Error };
    let pair = Pair { wide: grid(15), narrow: grid(7) };
    check(
        &case!("pair", [&[5, 31], &[1], &[1], &[1]], false, (0.08, 0.11), O, [x, wide, narrow, mix] => O::fake_quant_pair(x, [wide, narrow], mix, &pair)),
    );
    // At either end it is the rounding that is left, bit for bit.
    let (x, steps) = (random(3, 155, (-0.3, 2.0)), [0.1, 0.19]);
    for (mix, step, quant) in [(1.0, steps[0], pair.wide), (0.0, steps[1], pair.narrow)] {
        let leaf = |v: f32| tensor(&[v], &[1]);
        let one = Fused::<Flex>::fake_quant(tensor(&x, &[155]), leaf(step), &quant);
        let pair = Fused::<Flex>::fake_quant_pair(tensor(&x, &[155]), steps.map(leaf), leaf(mix), &pair);
        assert_eq!(read::<Flex>(pair), read::<Flex>(one));
    }
}

#[test]
fn rounding_by_hand() {
    // s = 0.5, codes 0..=3: x/s = -1, 0.5, 1.4, 9 rounds to 0, 0, 1, 3.
    let quant = FakeQuant { low: 0, high: 3, grad_scale: 2.0, inside: Inside::Error };
    let op = move |[x, s]: [T; 2]| Fused::<Cpu>::fake_quant(x, s, &quant);
    let leaf = |v: &[f32]| Cpu::float_set_require_grad(Cpu::from_inner(tensor(v, &[v.len()])), true);
    let (x, s) = (leaf(&[-0.5, 0.25, 0.7, 4.5]), leaf(&[0.5]));
    let y = op([x.clone(), s.clone()]);
    assert_eq!(read::<Cpu>(y.clone()), [0.0, 0.0, 0.5, 1.5]);
    let mut grads = Cpu::backward(Cpu::float_sum(y));
    assert_eq!(read::<Flex>(Cpu::grad_remove(&x, &mut grads).unwrap()), [0.0, 1.0, 1.0, 0.0]);
    // Σ: 0 (below) + (0 - 0.5) + (1 - 1.4) + 3 (above) = 2.1, times 2.
    close("step", &read::<Flex>(Cpu::grad_remove(&s, &mut grads).unwrap()), &[4.2], 1e-6);
}

#[test]
fn pooling() {
    for rounding in [Rounding::Floor, Rounding::Ceil] {
        for padding in [Padding::Ignored, Padding::Counted] {
            let shape = PoolShape {
                batch: 2,
                in_h: 7,
                in_w: 6,
                channels: 3,
                kernel: [3, 2],
                stride: [2, 2],
                pads: [1, 0, 1, 1],
                rounding,
                padding,
            };
            let name = format!("{rounding:?} {padding:?}");
            check(&case!(name, [&[2, 7, 6, 3]], true, (0.0, 1.0), O, [x] => O::average_pool(x, &shape)));
            // The largest element changes hands only where two are within h of each other.
            check(&case!(name, [&[2, 7, 6, 3]], false, (0.0, 1.0), O, [x] => O::max_pool(x, &shape)));
        }
    }
    let taken = Shortcut { rows: (1, 2, 3), columns: (0, 3, 2), channels: (2, 1) };
    check(&case!("shortcut", [&[2, 7, 6, 3]], true, (0.0, 1.0), O, [x] => O::shortcut(x, &taken)));
    check(&case!("global", [&[2, 4, 5, 3]], true, (0.0, 1.0), O, [x] => O::global_average_pool(x)));
}

#[test]
fn linear_layers_and_layouts() {
    check(
        &case!("[n, k]", [&[5, 7], &[3, 7], &[3]], true, (-1.0, 1.0), O, [x, w, b] => O::linear(x, w, Some(b), true, BY_FLOATS)),
    );
    check(
        &case!("[k, n]", [&[5, 7], &[7, 3]], true, (-1.0, 1.0), O, [x, w] => O::linear(x, w, None, false, BY_FLOATS)),
    );
    check(&case!("last", [&[2, 3, 4, 5]], true, (0.0, 1.0), O, [x] => O::to_channels_last(x)));
    check(&case!("first", [&[2, 3, 4, 5]], true, (0.0, 1.0), O, [x] => O::to_channels_first(x)));
    check(&case!("one pixel", [&[2, 1, 1, 5]], true, (0.0, 1.0), O, [x] => O::to_channels_first(x)));
}

#[test]
fn attention() {
    check(&case!("matmul", [&[2, 3, 5, 4], &[2, 3, 4, 7]], true, (-1.0, 1.0), O, [a, b] => O::matmul(a, b)));
    check(&case!("broadcast", [&[2, 3, 5, 4], &[1, 3, 4, 7]], true, (-1.0, 1.0), O, [a, b] => O::matmul(a, b)));
    check(&case!("square", [&[3, 4, 4]], true, (-1.0, 1.0), O, [a] => O::matmul(a.clone(), a)));
    check(&case!("softmax", [&[2, 3, 17]], true, (0.0, 1.0), O, [x] => O::softmax(x, 2)));
    check(&case!("permute", [&[2, 3, 4, 5]], true, (0.0, 1.0), O, [x] => O::permute(x, &[0, 2, 3, 1])));
    check(&case!("part", [&[2, 3, 7]], true, (0.0, 1.0), O, [x] => O::part(x, 2, 2, 4)));
    // Gradients of all parts, and of another reader, meet in one buffer.
    check(&case!("parts", [&[2, 3, 6]], true, (0.0, 1.0), O, [x] => {
        let x = O::activation(x, Activation::Tanh);
        let [a, b, c] = [0, 2, 4].map(|at| O::part(x.clone(), 2, at, 2));
        let products = O::matmul(O::matmul(a, O::permute(b, &[0, 2, 1])), c);
        O::matmul(O::permute(products, &[0, 2, 1]), O::softmax(x, 2))
    }));
}
