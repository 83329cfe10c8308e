//! The fast convolutions against the reference, on every instruction set of this machine.

use super::product::{Pairs, Product, Singles};
use super::winograd::{self, Size};
use super::{ConvShape, Direction, Precision, correlate_directly, weight_gradient_directly};
use crate::isa::Isa;
use crate::reference::conv as naive;
use crate::testing::{UNIT, assert_within, bitwise, on_every_level, values};
use proptest::prelude::*;

fn magnitudes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

/// Holds all three directions, direct and where it applies by Winograd, to the reference.
///
/// A direct sum of n products is off by at most n u Σ|a||b|; 2 more roundings belong to the reference's own result and to
/// the comparison. The reference of the magnitudes is Σ|a||b|.
fn check(shape: &ConvShape) {
    shape.validate().expect("the test's shape");
    let (x, w) = (values(shape.input_len(), 1), values(shape.weight_len(), 2));
    let (dy, bias) = (values(shape.output_len(), 3), values(shape.c_out, 4));
    let (ax, aw, ady, abias) = (magnitudes(&x), magnitudes(&w), magnitudes(&dy), magnitudes(&bias));
    let has_bias = shape.in_w % 2 == 1;
    let (bias, abias) = (has_bias.then_some(&bias[..]), has_bias.then_some(&abias[..]));
    let slow = |values: [&[f32]; 3], bias: Option<&[f32]>| {
        let [x, w, dy] = values;
        let (mut y, mut dx, mut dw) = (dy.to_vec(), x.to_vec(), w.to_vec());
        naive::forward(shape, x, w, bias, &mut y);
        naive::backward_input(shape, dy, w, &mut dx);
        naive::backward_weight(shape, x, dy, &mut dw);
        [y, dx, dw]
    };
    let case = Case {
        shape: *shape,
        values: [&x, &w, &dy],
        bias,
        slow: slow([&x, &w, &dy], bias),
        bounds: slow([&ax, &aw, &ady], abias),
    };
    for isa in Isa::available() {
        case.hold::<Singles>(isa, 0.0);
        if isa.lanes() < 16 || isa.has_bf16() {
            // Both operands are off by at most 2⁻⁸ of themselves.
            case.hold::<Pairs>(isa, 2.0 / 256.0 + 1.0 / 65_536.0);
        }
    }
}

/// A shape with numbers, what the reference makes of them and of their magnitudes.
struct Case<'a> {
    shape: ConvShape,
    /// Input, weight, gradient of the output.
    values: [&'a [f32]; 3],
    bias: Option<&'a [f32]>,
    /// Output, gradients of input and weight.
    slow: [Vec<f32>; 3],
    bounds: [Vec<f32>; 3],
}

impl Case<'_> {
    /// Compares everything; products are off by `rounding` of themselves besides.
    fn hold<P: Product>(&self, isa: Isa, rounding: f64) {
        let (shape, [x, w, dy], bias) = (&self.shape, self.values, self.bias);
        let numbers = P::NUMBERS;
        let near = |what: &str, n: usize, fast: &[f32], slow: &[f32], bounds: &[f32]| {
            let limit = |i: usize| ((n + 2) as f64 * UNIT + rounding) * f64::from(bounds[i]);
            assert_within(format_args!("{what} {isa:?} {numbers} {shape:?}"), fast, slow, limit);
        };
        let window = shape.kernel[0] * shape.kernel[1];
        let pixels = shape.batch * shape.out_h() * shape.out_w();
        let ([y, dx, dw], [y_bound, dx_bound, dw_bound]) = (&self.slow, &self.bounds);
        // NaN in the outputs beforehand: everything must be written, nothing read.
        let (mut fast_y, mut fast_dx) = (vec![f32::NAN; y.len()], vec![f32::NAN; dx.len()]);
        let mut fast_dw = vec![f32::NAN; dw.len()];
        correlate_directly::<P>(isa, shape, Direction::Forward, x, w, bias, &mut fast_y);
        near("forward", window * shape.c_in / shape.groups + 1, &fast_y, y, y_bound);
        correlate_directly::<P>(isa, shape, Direction::InputGradient, dy, w, None, &mut fast_dx);
        near("input gradient", window * shape.c_out / shape.groups, &fast_dx, dx, dx_bound);
        weight_gradient_directly::<P>(isa, shape, x, dy, &mut fast_dw);
        near("weight gradient", pixels, &fast_dw, dw, dw_bound);
        if !winograd::applies(shape) {
            return;
        }
        // The bounds of `winograd` with max|x| = max|w| = max|dy| = 1, and a bias of at most 1. They are worst cases that would
        // hide a wrong tile; errors as they are lie within a few times those of direct sums.
        let direct = [rms(&fast_y, y), rms(&fast_dx, dx), rms(&fast_dw, dw)];
        for (size, side, k, k_weight, roundings) in [(Size::Two, 2, 81, 64, 12), (Size::Four, 4, 3100, 9800, 24)] {
            let near = |what: &str, (k, n): (usize, usize), fast: &[f32], slow: &[f32], direct: f64| {
                let limit = (k * n) as f64 * ((n + roundings) as f64 * UNIT + rounding);
                let what = format!("winograd {size:?} {what} {isa:?} {numbers} {shape:?}");
                assert_within(format_args!("{what}"), fast, slow, |_| limit);
                let usual = direct + (UNIT + rounding / 8.0) * rms(&vec![0.0; slow.len()], slow);
                let most = if P::NUMBERS == 1 { 16.0 } else { 48.0 };
                assert!(rms(fast, slow) <= most * usual, "{what}: {:e} where {usual:e} is usual", rms(fast, slow));
            };
            fast_y.fill(f32::NAN);
            winograd::run::<P>(isa, size, (shape, Direction::Forward), x, w, bias, &mut fast_y);
            near("forward", (k, shape.c_in), &fast_y, y, direct[0]);
            fast_dx.fill(f32::NAN);
            winograd::run::<P>(isa, size, (shape, Direction::InputGradient), dy, w, None, &mut fast_dx);
            near("input gradient", (k, shape.c_out), &fast_dx, dx, direct[1]);
            fast_dw.fill(f32::NAN);
            winograd::weight_gradient::<P>(isa, size, shape, x, dy, &mut fast_dw);
            let tiles = shape.batch * shape.out_h().div_ceil(side) * shape.out_w().div_ceil(side);
            near("weight gradient", (k_weight, tiles), &fast_dw, dw, direct[2]);
        }
    }
}

/// Root mean square of the differences.
fn rms(fast: &[f32], slow: &[f32]) -> f64 {
    let squares: f64 = fast.iter().zip(slow).map(|(f, s)| (f64::from(*f) - f64::from(*s)).powi(2)).sum();
    (squares / fast.len() as f64).sqrt()
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
    // So many channels that one sum is cut into chunks of weights, on every level and in both directions.
    check(&ConvShape { batch: 1, ..ConvShape::square(1, 2, 1300, 17, 3, 1) });
    check(&ConvShape { batch: 1, ..ConvShape::square(1, 2, 17, 1300, 3, 1) });
    // So wide that a strip is a row or two, dense and depthwise.
    check(&ConvShape { in_w: 200, in_h: 5, ..ConvShape::square(1, 5, 40, 5, 3, 1) });
    check(&ConvShape { in_w: 200, in_h: 5, groups: 40, ..ConvShape::square(1, 5, 40, 40, 3, 2) });
}

/// What fills no vector, no tile and no strip: every pair of channels 1, 3, 15 and 17, every such depthwise and grouped
/// layer, at widths 1 and 7, strides 1 to 3, asymmetric pads, batch 1.
#[test]
fn awkward_shapes() {
    let base = ConvShape { batch: 1, in_h: 5, pads: [1, 2, 0, 1], groups: 1, ..ConvShape::square(1, 7, 1, 1, 3, 1) };
    let sizes = [1, 7].into_iter().flat_map(|in_w| [1, 2, 3].map(|stride| (in_w, stride)));
    for (in_w, stride) in sizes {
        let shape = ConvShape { in_w, stride: [stride; 2], ..base };
        for c_in in [1, 3, 15, 17] {
            for c_out in [1, 3, 15, 17] {
                check(&ConvShape { c_in, c_out, ..shape });
                check(&ConvShape { c_in, c_out, kernel: [1; 2], ..shape });
            }
            check(&ConvShape { c_in, c_out: c_in, groups: c_in, ..shape });
            check(&ConvShape { c_in, c_out: c_in, groups: c_in, dilation: [2, 1], ..shape });
        }
        for (groups, group_in, group_out) in [(2, 1, 3), (3, 5, 1), (5, 3, 3), (2, 15, 17), (3, 17, 15)] {
            check(&ConvShape { groups, c_in: groups * group_in, c_out: groups * group_out, ..shape });
        }
    }
}

/// The public functions run the loops of the level in use.
#[test]
fn public_functions_follow_the_level_in_use() {
    for shape in [
        ConvShape::square(1, 7, 15, 17, 3, 2),
        ConvShape { groups: 17, ..ConvShape::square(1, 7, 17, 17, 3, 1) },
        ConvShape::square(2, 9, 16, 32, 3, 1),
    ] {
        let (x, w, dy) = (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
        on_every_level(|isa| {
            let run = |len: usize, run: &dyn Fn(&mut [f32])| {
                let mut out = vec![f32::NAN; len];
                run(&mut out);
                out
            };
            let (of_y, of_x, of_w) = (dy.len(), x.len(), w.len());
            let (forward, input) = (Direction::Forward, Direction::InputGradient);
            let by = |size| run(of_y, &|y| super::correlate::<Singles>(isa, &shape, forward, size, &x, &w, None, y));
            let coarse = winograd::coarse(&shape);
            let pairs = [
                (run(of_y, &|y| super::forward(&shape, &x, &w, None, y)), by(Size::Two)),
                (run(of_y, &|y| super::forward_training(&shape, Precision::Full, &x, &w, None, y)), by(coarse)),
                (
                    run(of_y, &|y| super::forward_training(&shape, Precision::Bf16, &x, &w, None, y)),
                    run(of_y, &|y| match isa.has_bf16() {
                        true => correlate_directly::<Pairs>(isa, &shape, forward, &x, &w, None, y),
                        false => super::correlate::<Singles>(isa, &shape, forward, coarse, &x, &w, None, y),
                    }),
                ),
                (
                    run(of_y, &|y| super::forward_direct(&shape, &x, &w, None, y)),
                    run(of_y, &|y| correlate_directly::<Singles>(isa, &shape, forward, &x, &w, None, y)),
                ),
                (
                    run(of_x, &|dx| super::backward_input(&shape, Precision::Full, &dy, &w, dx)),
                    run(of_x, &|dx| super::correlate::<Singles>(isa, &shape, input, coarse, &dy, &w, None, dx)),
                ),
                (
                    run(of_w, &|dw| super::backward_weight(&shape, Precision::Full, &x, &dy, dw)),
                    run(of_w, &|dw| super::weight_gradient::<Singles>(isa, &shape, &x, &dy, dw)),
                ),
                // Rounded where the hardware multiplies such pairs, and only there.
                (
                    run(of_x, &|dx| super::backward_input(&shape, Precision::Bf16, &dy, &w, dx)),
                    run(of_x, &|dx| match isa.has_bf16() {
                        true => super::correlate::<Pairs>(isa, &shape, input, coarse, &dy, &w, None, dx),
                        false => super::correlate::<Singles>(isa, &shape, input, coarse, &dy, &w, None, dx),
                    }),
                ),
                (
                    run(of_w, &|dw| super::backward_weight(&shape, Precision::Bf16, &x, &dy, dw)),
                    run(of_w, &|dw| match isa.has_bf16() {
                        true => super::weight_gradient::<Pairs>(isa, &shape, &x, &dy, dw),
                        false => super::weight_gradient::<Singles>(isa, &shape, &x, &dy, dw),
                    }),
                ),
            ];
            assert!(pairs.iter().all(|(public, inner)| bitwise(public, inner)), "{isa:?} {shape:?}");
        });
    }
}

/// How much accuracy the transforms cost in practice: the root mean square error of each way, on a layer of ResNet-20.
#[test]
fn winograd_costs_little_accuracy() {
    let shape = ConvShape::square(2, 16, 32, 32, 3, 1);
    let (x, w, dy) = (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
    let (mut y, mut dw, mut fast_y, mut fast_dw) = (dy.clone(), w.clone(), dy.clone(), w.clone());
    naive::forward(&shape, &x, &w, None, &mut y);
    naive::backward_weight(&shape, &x, &dy, &mut dw);
    for isa in Isa::available() {
        correlate_directly::<Singles>(isa, &shape, Direction::Forward, &x, &w, None, &mut fast_y);
        weight_gradient_directly::<Singles>(isa, &shape, &x, &dy, &mut fast_dw);
        let direct = [rms(&fast_y, &y), rms(&fast_dw, &dw)];
        for (size, most) in [(Size::Two, 4.0), (Size::Four, 8.0)] {
            winograd::run::<Singles>(isa, size, (&shape, Direction::Forward), &x, &w, None, &mut fast_y);
            winograd::weight_gradient::<Singles>(isa, size, &shape, &x, &dy, &mut fast_dw);
            let transformed = [rms(&fast_y, &y), rms(&fast_dw, &dw)];
            println!("{isa:?} {size:?}: forward and weight gradient {transformed:?}, direct {direct:?}");
            for (transformed, direct) in transformed.iter().zip(direct) {
                assert!(*transformed <= most * direct, "{isa:?} {size:?}: {transformed:e} against {direct:e}");
            }
        }
    }
}

/// What bf16 costs: the root mean square error relative to that of the result, direct and by Winograd.
#[test]
fn pairs_of_bf16_cost_what_numerics_says() {
    let shape = ConvShape::square(2, 16, 64, 64, 3, 1);
    let (x, w, dy) = (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
    let (mut dx, mut dw, mut fast_dx, mut fast_dw) = (x.clone(), w.clone(), x.clone(), w.clone());
    naive::backward_input(&shape, &dy, &w, &mut dx);
    naive::backward_weight(&shape, &x, &dy, &mut dw);
    let size = |x: &[f32]| rms(x, &vec![0.0; x.len()]);
    for isa in Isa::available().filter(|isa| isa.lanes() < 16 || isa.has_bf16()) {
        correlate_directly::<Pairs>(isa, &shape, Direction::InputGradient, &dy, &w, None, &mut fast_dx);
        weight_gradient_directly::<Pairs>(isa, &shape, &x, &dy, &mut fast_dw);
        let direct = [rms(&fast_dx, &dx) / size(&dx), rms(&fast_dw, &dw) / size(&dw)];
        println!("{isa:?} direct: input and weight gradient {direct:?}");
        assert!(direct.iter().all(|error| *error <= 0.003), "{direct:?}");
        for tiles in [Size::Two, Size::Four] {
            winograd::run::<Pairs>(isa, tiles, (&shape, Direction::InputGradient), &dy, &w, None, &mut fast_dx);
            winograd::weight_gradient::<Pairs>(isa, tiles, &shape, &x, &dy, &mut fast_dw);
            let errors = [rms(&fast_dx, &dx) / size(&dx), rms(&fast_dw, &dw) / size(&dw)];
            println!("{isa:?} {tiles:?}: {errors:?}");
            assert!(errors.iter().all(|error| *error <= 0.02), "{tiles:?} {errors:?}");
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

/// Shapes that are transformed: of those above hardly any is.
fn winograd_shapes() -> impl Strategy<Value = ConvShape> {
    let channels = || prop::sample::select(vec![16, 32, 48]);
    let pads = [0..=2_usize, 0..=2_usize, 0..=2_usize, 0..=2_usize];
    (1..=3_usize, 1..=13_usize, 1..=13_usize, channels(), channels(), pads)
        .prop_map(|(batch, in_h, in_w, c_in, c_out, pads)| ConvShape {
            in_h,
            in_w,
            pads,
            ..ConvShape::square(batch, 1, c_in, c_out, 3, 1)
        })
        .prop_filter("a window must fit, and be worth a transform", |s| s.validate().is_ok() && winograd::applies(s))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(shape in shapes()) {
        check(&shape);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_for_winograd(shape in winograd_shapes()) {
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
