//! The fast convolutions against the reference, on every instruction set of this machine.

use super::winograd::{self, Size};
use super::{ConvShape, Direction, correlate_directly, weight_gradient_directly};
use crate::isa::Isa;
use crate::reference::conv as naive;
use proptest::prelude::*;

/// Half an ulp of 1: one rounding's relative error.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Values in -1..1 without structure, different for each `salt`.
fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + salt) * 7919 + i / 13) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn magnitudes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

/// A sum of n products in any order, each step rounded (or fused), is off by at most n u Σ|a||b| (Higham, Accuracy and
/// Stability of Numerical Algorithms, section 3.1; n u is far below 1 here). `bounds` holds Σ|a||b|, and 2 more roundings
/// belong to the reference's own result and to this comparison.
fn assert_close(what: &str, shape: &ConvShape, isa: Isa, n: usize, fast: &[f32], slow: &[f32], bounds: &[f32]) {
    for (i, ((&f, &s), &b)) in fast.iter().zip(slow).zip(bounds).enumerate() {
        let limit = (n + 2) as f64 * UNIT * f64::from(b) + 1e-30;
        let difference = (f64::from(f) - f64::from(s)).abs();
        // Written so that NaN fails.
        assert!(difference <= limit, "{what} {isa:?} {shape:?} at {i}: {f} instead of {s}, allowed {limit:e}");
    }
}

fn check(shape: &ConvShape) {
    shape.validate().expect("the test's shape");
    let (x, w) = (values(shape.input_len(), 1), values(shape.weight_len(), 2));
    let (dy, bias) = (values(shape.output_len(), 3), values(shape.c_out, 4));
    let (ax, aw, ady, abias) = (magnitudes(&x), magnitudes(&w), magnitudes(&dy), magnitudes(&bias));
    let window = shape.kernel[0] * shape.kernel[1];
    let pixels = shape.batch * shape.out_h() * shape.out_w();

    let (mut y, mut y_bound) = (dy.clone(), dy.clone());
    naive::forward(shape, &x, &w, Some(&bias), &mut y);
    naive::forward(shape, &ax, &aw, Some(&abias), &mut y_bound);
    let (mut dx, mut dx_bound) = (x.clone(), x.clone());
    naive::backward_input(shape, &dy, &w, &mut dx);
    naive::backward_input(shape, &ady, &aw, &mut dx_bound);
    let (mut dw, mut dw_bound) = (w.clone(), w.clone());
    naive::backward_weight(shape, &x, &dy, &mut dw);
    naive::backward_weight(shape, &ax, &ady, &mut dw_bound);

    for isa in Isa::available() {
        // NaN in the outputs beforehand: everything must be written, nothing read.
        let mut fast = vec![f32::NAN; y.len()];
        correlate_directly(isa, shape, Direction::Forward, &x, &w, Some(&bias), &mut fast);
        assert_close("forward", shape, isa, window * shape.c_in + 1, &fast, &y, &y_bound);
        let mut fast = vec![f32::NAN; dx.len()];
        correlate_directly(isa, shape, Direction::InputGradient, &dy, &w, None, &mut fast);
        assert_close("input gradient", shape, isa, window * shape.c_out, &fast, &dx, &dx_bound);
        let mut fast = vec![f32::NAN; dw.len()];
        weight_gradient_directly(isa, shape, &x, &dy, &mut fast);
        assert_close("weight gradient", shape, isa, pixels, &fast, &dw, &dw_bound);
        if winograd::applies(shape) {
            // The bounds of the file's header with max|x| = max|w| = max|dy| = 1, and a bias of at most 1; the weight
            // gradient sums over tiles, by the same matrices.
            let near = |what: &str, fast: &[f32], slow: &[f32], limit: f64| {
                for (f, s) in fast.iter().zip(slow) {
                    assert!(f64::from((f - s).abs()) <= limit, "winograd {what} {isa:?} {shape:?}: {f} not {s}");
                }
            };
            for (size, k, roundings, square) in [(Size::Two, 81, 12, 4), (Size::Four, 3100, 24, 16)] {
                let worst = |growth: usize, n: usize| (growth * n * (n + roundings)) as f64 * UNIT;
                let mut fast = vec![f32::NAN; y.len()];
                winograd::run(isa, size, (shape, Direction::Forward), &x, &w, Some(&bias), &mut fast);
                near("forward", &fast, &y, worst(k, shape.c_in));
                let mut fast = vec![f32::NAN; dx.len()];
                winograd::run(isa, size, (shape, Direction::InputGradient), &dy, &w, None, &mut fast);
                near("input gradient", &fast, &dx, worst(k, shape.c_out));
                let mut fast = vec![f32::NAN; dw.len()];
                winograd::weight_gradient(isa, size, shape, &x, &dy, &mut fast);
                near("weight gradient", &fast, &dw, worst(k, pixels.div_ceil(square) + shape.in_h * shape.in_w));
            }
        }
    }
}

/// The shapes of the networks that are trained most, and one of each special path.
#[test]
fn known_shapes() {
    for (size, c_in, c_out, kernel, stride) in [
        (32, 3, 16, 3, 1),
        (32, 16, 16, 3, 1),
        (32, 16, 32, 3, 2),
        (16, 32, 32, 3, 1),
        (16, 32, 64, 3, 2),
        (8, 64, 64, 3, 1),
        (8, 64, 64, 1, 1),
        (8, 32, 64, 1, 2),
        (7, 16, 24, 1, 3),
        (31, 3, 17, 7, 2),
        (1, 130, 33, 1, 1),
        (2, 300, 65, 3, 1),
    ] {
        check(&ConvShape::square(2, size, c_in, c_out, kernel, stride));
    }
    let mut shape = ConvShape::square(2, 9, 40, 40, 3, 1);
    for groups in [2, 5, 40] {
        shape.groups = groups;
        for stride in [1, 2, 3] {
            shape.stride = [stride, stride];
            check(&shape);
        }
    }
    // Winograd with odd sizes, asymmetric pads and unequal channels.
    for (in_h, in_w, c_in, c_out, pads) in [(9, 13, 16, 48, [1, 1, 1, 1]), (12, 7, 32, 16, [0, 2, 1, 0])] {
        check(&ConvShape { in_h, in_w, pads, ..ConvShape::square(3, 9, c_in, c_out, 3, 1) });
    }
    // Pads larger than the window, and windows that never meet some inputs.
    shape.groups = 1;
    shape.pads = [4, 0, 1, 5];
    check(&shape);
    shape.kernel = [2, 1];
    shape.stride = [3, 3];
    check(&shape);
}

/// How much accuracy the transforms cost in practice: the root mean square error of each way, on a layer of ResNet-20.
#[test]
fn winograd_costs_little_accuracy() {
    let shape = ConvShape::square(2, 16, 32, 32, 3, 1);
    let (x, w, dy) = (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
    let error = |fast: &[f32], slow: &[f32]| {
        let squares: f64 = fast.iter().zip(slow).map(|(f, s)| f64::from(f - s).powi(2)).sum();
        (squares / fast.len() as f64).sqrt()
    };
    let isa = Isa::current();
    let (mut y, mut dw, mut fast_y, mut fast_dw) = (dy.clone(), w.clone(), dy.clone(), w.clone());
    naive::forward(&shape, &x, &w, None, &mut y);
    naive::backward_weight(&shape, &x, &dy, &mut dw);
    correlate_directly(isa, &shape, Direction::Forward, &x, &w, None, &mut fast_y);
    weight_gradient_directly(isa, &shape, &x, &dy, &mut fast_dw);
    let direct = [error(&fast_y, &y), error(&fast_dw, &dw)];
    for (size, most) in [(Size::Two, 4.0), (Size::Four, 8.0)] {
        winograd::run(isa, size, (&shape, Direction::Forward), &x, &w, None, &mut fast_y);
        winograd::weight_gradient(isa, size, &shape, &x, &dy, &mut fast_dw);
        let transformed = [error(&fast_y, &y), error(&fast_dw, &dw)];
        println!("{size:?}: forward and weight gradient {transformed:?}, direct {direct:?}");
        for (transformed, direct) in transformed.iter().zip(direct) {
            assert!(*transformed <= most * direct, "{size:?}: {transformed:e} against {direct:e}");
        }
    }
}

fn shapes() -> impl Strategy<Value = ConvShape> {
    let channels = || prop::sample::select(vec![1, 3, 15, 16, 17, 33]);
    let kernel = prop::sample::select(vec![[1, 1], [3, 3], [5, 5], [7, 7], [1, 3], [1, 5], [2, 3]]);
    let strides = (1..=3_usize, 1..=3_usize).prop_map(|(h, w)| [h, w]);
    let dilation = prop::sample::select(vec![[1, 1], [2, 2], [1, 3]]);
    let pads = [0..4_usize, 0..4_usize, 0..4_usize, 0..4_usize];
    let sizes = (prop::sample::select(vec![1, 2, 7, 12]), prop::sample::select(vec![1, 3, 7, 18, 35]));
    // Groups: one, a few with several channels each, or depthwise.
    let groups = prop::sample::select(vec![0_usize, 0, 2, 3, 1000]);
    (1..=3_usize, sizes, channels(), channels(), kernel, strides, pads, dilation, groups)
        .prop_map(|(batch, (in_h, in_w), c_in, c_out, kernel, stride, pads, dilation, groups)| {
            let (c_in, c_out, groups) = match groups {
                0 => (c_in, c_out, 1),
                1000 => (c_in, c_in, c_in),
                g => (g * c_in.min(17), g * c_out.min(17), g),
            };
            ConvShape { batch, in_h, in_w, c_in, c_out, kernel, stride, pads, dilation, groups }
        })
        .prop_filter("a window must fit", |shape| shape.validate().is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(shape in shapes()) {
        check(&shape);
    }
}

#[test]
fn rejects() {
    let good = ConvShape::square(1, 8, 4, 4, 3, 1);
    assert_eq!(good.validate(), Ok(()));
    let huge = usize::MAX;
    for (bad, part) in [
        (ConvShape { batch: 0, ..good }, "batch is 0"),
        (ConvShape { stride: [1, 0], ..good }, "horizontal stride is 0"),
        (ConvShape { groups: 3, ..good }, "3 groups do not divide 4"),
        (ConvShape { kernel: [11, 3], ..good }, "does not fit into the padded height 10"),
        (ConvShape { pads: [huge, 0, 0, 0], ..good }, "top pad"),
        (ConvShape { dilation: [huge, 1], ..good }, "vertical dilation"),
        (ConvShape { batch: 1 << 30, in_h: 1 << 30, in_w: 1 << 30, ..good }, "too many elements"),
    ] {
        let message = bad.validate().expect_err("an invalid shape").to_string();
        assert!(message.contains(part), "{message}");
    }
}
