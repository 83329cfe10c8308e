//! Every fast kernel against the naive one, bit for bit, over awkward shapes and at extreme values.

use super::dot::Kernel;
use super::weights::{Layout, Packed, in_order, short_sums};
use super::winograd::{Form, Size, Winograd};
use super::{
    ByteGrid, ConvWeights, Operand, PerChannel, Requantize, Residual, conv, conv_to_codes, conv_with, linear_shape,
    reference, rows,
};
use crate::activation::Activation;
use crate::conv::ConvShape;
use crate::numerics::{batch_norm_affine, dequantize, quantize};
use crate::testing::{UNIT, assert_within, bitwise, on_every_level};
use proptest::prelude::*;

/// Deterministic codes: all values, and runs of the extremes.
fn codes<A: Operand>(n: usize, seed: u32) -> Vec<A> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state >> 8
    };
    (0..n)
        .map(|_| {
            let v = next();
            A::from_code(match v % 8 {
                0 => A::CODE_MIN,
                1 => A::CODE_MAX,
                _ => A::CODE_MIN + (v >> 4) as i32 % 256,
            })
        })
        .collect()
}

fn check_conv<A: Operand>(shape: &ConvShape, zero_point: i32, x: &[A], w: &[i8]) {
    let mut want = vec![0; shape.output_len()];
    reference::conv(shape, x, zero_point, w, &mut want);
    let largest = x.iter().map(|x| x.byte() ^ A::FLIP).max().unwrap_or(0).max((zero_point + A::OFFSET) as u8);
    for largest in [u8::MAX, largest] {
        let ordered = in_order(shape, w);
        let sums = short_sums(Layout::of(shape).kind, &ordered, largest);
        for kernel in Kernel::available(sums) {
            let weights = ConvWeights::packed(kernel, sums, shape, ordered.clone(), largest, 0);
            let mut acc = vec![i32::MIN; shape.output_len()];
            conv(shape, x, zero_point, &weights, &mut acc);
            assert!(acc == want, "{kernel:?} on {shape:?}, zero point {zero_point}, largest {largest}");
            for form in Form::ALL {
                let Some(winograd) = Winograd::new(form, kernel, shape, w, largest) else { continue };
                let weights = ConvWeights::transformed(kernel, winograd, shape, &ordered, largest);
                acc.fill(i32::MIN);
                conv(shape, x, zero_point, &weights, &mut acc);
                assert!(acc == want, "{form:?} by {kernel:?} on {shape:?}, zero point {zero_point}, largest {largest}");
            }
        }
    }
    let weights = ConvWeights::new(shape, w);
    let mut acc = vec![0i64; shape.output_len()];
    conv_with(shape, x, zero_point, &weights, &mut acc, |first, acc, out| {
        assert_eq!(acc, &want[first..first + acc.len()]);
        out.iter_mut().zip(acc).for_each(|(o, &a)| *o = a.into());
    });
    assert!(acc.iter().zip(&want).all(|(&a, &w)| a == i64::from(w)));
}

fn check_both(shape: &ConvShape, seed: u32) {
    shape.validate().expect("test shapes are valid");
    let mut w = codes::<i8>(shape.weight_len(), seed + 1);
    // Weights of fewer bits have kernels of their own; every width comes up, signs and extremes stay.
    let unused = 7 - seed % 8;
    w.iter_mut().for_each(|w| *w >>= unused);
    for zero_point in [0, 1, 128, 255] {
        check_conv::<u8>(shape, zero_point, &codes(shape.input_len(), seed), &w);
        check_conv::<i8>(shape, zero_point - 128, &codes(shape.input_len(), seed), &w);
    }
    // Inputs of fewer bits allow longer sums of 16 bits.
    let narrow =
        |bits: u8| -> Vec<u8> { codes::<u8>(shape.input_len(), seed).iter().map(|x| x >> (8 - bits)).collect() };
    check_conv::<u8>(shape, 15, &narrow(4), &w);
    check_conv::<u8>(shape, 0, &narrow(1), &w);
}

const BASE: ConvShape = ConvShape {
    batch: 1,
    in_h: 5,
    in_w: 7,
    c_in: 3,
    c_out: 5,
    kernel: [3; 2],
    stride: [1; 2],
    pads: [1; 4],
    dilation: [1; 2],
    groups: 1,
};

#[test]
fn awkward_shapes() {
    let mut seed = 1;
    let mut check = |shape: ConvShape| {
        seed += 10;
        check_both(&shape, seed);
    };
    for channels in [1, 3, 15, 16, 17, 33] {
        check(ConvShape { c_in: channels, c_out: 16, ..BASE });
        check(ConvShape { c_out: channels, c_in: 4, ..BASE });
    }
    for c_out in [48, 64, 80, 130] {
        check(ConvShape { c_out, ..BASE });
    }
    for in_w in [1, 7, 8, 17] {
        check(ConvShape { in_w, batch: 2, ..BASE });
    }
    for stride in [[2, 2], [3, 3], [1, 2], [3, 1]] {
        check(ConvShape { stride, in_h: 9, c_in: 4, ..BASE });
        check(ConvShape { stride, in_h: 9, in_w: 8, pads: [0; 4], ..BASE });
    }
    for pads in [[0, 1, 2, 0], [2, 0, 0, 3], [0; 4], [4, 5, 6, 7]] {
        check(ConvShape { pads, c_in: 8, batch: 2, ..BASE });
    }
    for dilation in [[2, 2], [1, 3], [3, 1]] {
        check(ConvShape { dilation, in_h: 9, in_w: 9, c_in: 6, ..BASE });
    }
    for (groups, c_in, c_out) in [(2, 6, 10), (3, 3, 3), (17, 17, 17), (4, 4, 8), (2, 32, 64), (64, 64, 64), (3, 12, 3)]
    {
        check(ConvShape { groups, c_in, c_out, stride: [2, 1], ..BASE });
        check(ConvShape { groups, c_in, c_out, dilation: [2, 1], batch: 3, ..BASE });
    }
    for kernel in [[1, 1], [1, 3], [5, 1], [2, 2]] {
        check(ConvShape { kernel, c_in: 5, ..BASE });
        check(ConvShape { kernel, c_in: 16, pads: [0; 4], ..BASE });
        check(ConvShape { kernel, c_in: 16, stride: [2, 2], pads: [0; 4], ..BASE });
    }
    // Padding so wide that windows are gathered one by one.
    let far = 600_000;
    check(ConvShape { pads: [0, far, 0, far], stride: [1, far], ..BASE });
    check(ConvShape { pads: [0, far, 0, far], stride: [1, far], groups: 3, c_out: 6, ..BASE });
    check(ConvShape { pads: [0, far, 0, far], stride: [1, far], groups: 3, c_out: 3, ..BASE });
}

#[test]
fn extreme_values() {
    // 64 channels x 9 taps of the largest products; and a dot product whose sum wraps around.
    let shape = ConvShape { c_in: 64, c_out: 20, ..BASE };
    let long = linear_shape(2, 70_000, 3);
    for shape in [shape, long] {
        // Each is the largest of its width, or the first beyond what 16-bit sums can hold.
        for w in [i8::MIN, -127, -64, -63, -32, -15, -7, -1, 1, 3, 7, 15, 31, 63, 64, 65, i8::MAX] {
            let w = vec![w; shape.weight_len()];
            for (x, zero_point) in [(255u8, 0), (0, 255), (255, 255), (15, 0), (1, 0), (127, 127)] {
                check_conv(&shape, zero_point, &vec![x; shape.input_len()], &w);
            }
            for (x, zero_point) in [(-128i8, 127), (127, -128), (-128, -128)] {
                check_conv(&shape, zero_point, &vec![x; shape.input_len()], &w);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_shape(
        batch in 1usize..3, in_h in 1usize..9, in_w in 1usize..12, group_in in 1usize..9, group_out in 1usize..20,
        groups in 1usize..4, kernel in [1usize..4, 1usize..4], stride in [1usize..4, 1usize..4],
        pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3], dilation in [1usize..3, 1usize..3], seed: u32,
        zero_point in 0i32..256,
    ) {
        let shape = ConvShape {
            batch, in_h, in_w, c_in: group_in * groups, c_out: group_out * groups, kernel, stride, pads, dilation, groups,
        };
        prop_assume!(shape.validate().is_ok());
        let mut w = codes::<i8>(shape.weight_len(), seed ^ 1);
        w.iter_mut().for_each(|w| *w >>= seed >> 8 & 7);
        check_conv::<u8>(&shape, zero_point, &codes(shape.input_len(), seed), &w);
        check_conv::<i8>(&shape, zero_point - 128, &codes(shape.input_len(), seed), &w);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_shape_for_winograd(
        batch in 1usize..3, in_h in 1usize..12, in_w in 1usize..12, c_in in 1usize..40, c_out in 1usize..80,
        pads in [0usize..4, 0usize..4, 0usize..4, 0usize..4], bits in 1u32..7, weight_bits in 1u32..6, seed: u32,
    ) {
        let shape = ConvShape { batch, in_h, in_w, c_in, c_out, pads, ..BASE };
        prop_assume!(shape.validate().is_ok());
        let w: Vec<i8> = codes::<i8>(shape.weight_len(), seed ^ 1).iter().map(|w| w >> (8 - weight_bits)).collect();
        let x: Vec<u8> = codes::<u8>(shape.input_len(), seed).iter().map(|x| x >> (8 - bits)).collect();
        check_conv::<u8>(&shape, (seed % (1 << bits)) as i32, &x, &w);
    }
}

/// Transforms at the ends of their bytes, and sums whose fourfold is at the end of 32 bits.
#[test]
fn winograd_at_extreme_values() {
    let signs: [[i8; 9]; 4] = [[1; 9], [-1; 9], [1, -1, 1, -1, 1, -1, 1, -1, 1], [1, -1, 1, 1, -1, 1, 1, -1, 1]];
    // The last two only in words.
    let cases =
        [(63u8, 14i8, 20), (63, 14, 67_000), (15, 14, 64), (1, 14, 5), (31, 7, 33), (255, 127, 115), (255, -127, 3)];
    for (largest, weight, c_in) in cases {
        let c_out = if c_in > 1000 { 1 } else { 18 };
        let shape = ConvShape { in_h: 3, in_w: 4, c_in, c_out, ..BASE };
        // One set of signs is enough work for the longest sums.
        for signs in signs.into_iter().take(if c_in > 1000 { 1 } else { 4 }) {
            let w: Vec<i8> = (0..shape.weight_len()).map(|i| weight * signs[i % 9]).collect();
            let fits = Winograd::new(Form::Bytes, Kernel::Portable, &shape, &w, largest).is_some();
            assert_eq!(fits, largest < 255, "{weight} times nine fits a byte");
            // Everywhere the most, or as the signs of one tap's window and of its differences have it.
            for pattern in [[1u8, 1], [0, 1], [1, 0]] {
                let at = |i: usize| (i / c_in % 4 + i / (4 * c_in)) % 2;
                let x: Vec<u8> = (0..shape.input_len()).map(|i| largest * pattern[at(i)]).collect();
                for zero_point in [0, i32::from(largest)] {
                    check_conv(&shape, zero_point, &x, &w);
                }
            }
        }
    }
    let shape = ConvShape { c_in: 70_000, c_out: 1, ..BASE };
    let is_held = |form, shape: &ConvShape, w: i8, largest: u8| {
        Winograd::new(form, Kernel::Portable, shape, &vec![w; shape.weight_len()], largest).is_some()
    };
    let is_taken = |shape: &ConvShape, w: i8, largest: u8| is_held(Form::Bytes, shape, w, largest);
    assert!(!is_taken(&shape, 14, 63), "four times the largest sum is more than 32 bits hold");
    let shape = ConvShape { c_in: 116, c_out: 1, ..BASE };
    assert!(!is_held(Form::Words(Size::Four), &shape, 127, 255), "nor 64 times the largest");
    assert!(is_held(Form::Words(Size::Four), &ConvShape { c_in: 115, ..shape }, 127, 255));
    assert!(!is_taken(&BASE, 15, 63) && is_taken(&BASE, -14, 63), "135 is no byte");
    assert!(!is_taken(&BASE, 1, 64), "four times 64 is no byte");
    assert!(!is_taken(&ConvShape { stride: [2, 1], ..BASE }, 1, 1));
}

#[test]
fn wide_layers_of_few_bits_have_fewer_products() {
    let shape = ConvShape { in_h: 8, in_w: 8, c_in: 64, c_out: 64, ..BASE };
    let is_transformed = |shape: &ConvShape, bits: u32, largest: u8| {
        let w: Vec<i8> = codes::<i8>(shape.weight_len(), 3).iter().map(|w| w >> (8 - bits)).collect();
        matches!(ConvWeights::for_inputs(shape, &w, largest).data, Packed::Winograd(_))
    };
    assert!(is_transformed(&shape, 4, 15) && is_transformed(&shape, 2, 3));
    // Bytes do not hold these, and words are worth it only where they are as fast as they can be.
    let words = Kernel::best(0).is_wide() || Kernel::best(0).has_vnni();
    assert!(is_transformed(&shape, 8, 255) == words && is_transformed(&shape, 4, 255) == words);
    for other in [
        ConvShape { c_in: 3, ..shape },
        ConvShape { stride: [2, 2], ..shape },
        ConvShape { in_h: 2, in_w: 2, ..shape },
        ConvShape { groups: 2, ..shape },
        ConvShape { dilation: [2, 2], ..shape },
    ] {
        assert!(!is_transformed(&other, 4, 15), "{other:?}");
    }
}

#[test]
fn linear_is_a_pointwise_convolution() {
    for (rows, inputs, outputs) in [(1, 64, 10), (3, 17, 33), (129, 5, 1), (8, 1, 16), (1000, 4, 2)] {
        let (x, w) = (codes::<i8>(rows * inputs, 3), codes::<i8>(inputs * outputs, 4));
        let mut want = vec![0; rows * outputs];
        reference::linear(inputs, &x, -3, &w, &mut want);
        let shape = linear_shape(rows, inputs, outputs);
        let mut got = vec![0; rows * outputs];
        conv(&shape, &x, -3, &ConvWeights::new(&shape, &w), &mut got);
        assert_eq!(got, want);
    }
}

/// Layers with few pixels keep weights narrow, and threads share their channels.
#[test]
fn few_pixels() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| {
        for (rows, inputs, outputs) in
            [(1, 64, 10), (1, 70, 33), (3, 257, 48), (4, 5, 17), (1, 1000, 160), (2, 1030, 370), (5, 2100, 40)]
        {
            let shape = linear_shape(rows, inputs, outputs);
            for bits in 1..=8 {
                let w: Vec<i8> = codes::<i8>(inputs * outputs, bits).iter().map(|w| w >> (8 - bits)).collect();
                let x: Vec<u8> = codes(rows * inputs, bits + 1);
                check_conv(&shape, 3, &x, &w);
                let x: Vec<u8> = x.iter().map(|x| x >> 4).collect();
                check_conv(&shape, 15, &x, &w);
            }
        }
        // Weights that were packed for few rows meet many; they are expanded for up to 4096 inputs at a time.
        for (inputs, outputs, bits) in (1..=8).map(|bits| (1100, 40, bits)).chain([(4500, 70, 3), (4500, 70, 7)]) {
            let w: Vec<i8> = codes::<i8>(inputs * outputs, bits).iter().map(|w| w >> (8 - bits)).collect();
            let weights = ConvWeights::new(&linear_shape(1, inputs, outputs), &w);
            for rows in [2, 7, 8, 13, 33] {
                let x: Vec<u8> = codes(rows * inputs, bits);
                let (mut want, mut got) = (vec![0; rows * outputs], vec![1; rows * outputs]);
                reference::linear(inputs, &x, 9, &w, &mut want);
                conv(&linear_shape(rows, inputs, outputs), &x, 9, &weights, &mut got);
                assert!(want == got, "{bits} bits, {rows} rows");
            }
        }
        // Late in a network: a small image and many channels.
        for (kernel, pads) in [(3, 1), (1, 0)] {
            let shape =
                ConvShape { in_h: 4, in_w: 3, c_in: 128, c_out: 200, kernel: [kernel; 2], pads: [pads; 4], ..BASE };
            check_both(&shape, 7);
            check_both(&ConvShape { batch: 2, ..shape }, 4);
        }
    });
}

#[test]
fn requantizing_follows_the_graph() {
    for channels in [1usize, 5, 16, 17, 2000] {
        let pixels = 7;
        let n = pixels * channels;
        let acc: Vec<i32> = (0..n).map(|i| (i * 7919 % 4001) as i32 - 2000).collect();
        let per_channel = |f: f32| -> Vec<f32> { (0..channels).map(|c| f + (c % 5) as f32 * 0.1).collect() };
        let (multiplier, bias, gamma, mean) =
            (per_channel(0.001), per_channel(-0.2), per_channel(0.8), per_channel(0.05));
        let (a, b): (Vec<f32>, Vec<f32>) =
            (0..channels).map(|c| batch_norm_affine(gamma[c], 0.3, mean[c], 1.1, 1e-5)).unzip();
        let codes: Vec<u8> = codes(n, 5);
        let from = ByteGrid { scale: 0.01, zero_point: 7, low: 0, high: 255 };
        let large = [1e3, -1e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let floats: Vec<f32> =
            (0..n).map(|i| if i % 50 == 7 { large[i / 50 % 5] } else { (i * 31 % 100) as f32 * 0.007 - 0.3 }).collect();
        for per_channel in [PerChannel::None, PerChannel::Bias(&bias), PerChannel::Affine(&a, &b)] {
            for residual in [Residual::None, Residual::Codes(&codes, from), Residual::Floats(&floats)] {
                for clip in [None, Some((0.0, f32::INFINITY)), Some((0.0, 0.3)), Some((-0.05, 6.0))] {
                    for zero_point in [0, 3] {
                        let grid = ByteGrid { scale: 0.037, zero_point, low: 0, high: 15 };
                        let mut q = vec![0u8; n];
                        let requantize = Requantize { multiplier: &multiplier, per_channel, residual, clip, grid };
                        requantize.run(&acc, &mut q);
                        for i in 0..n {
                            let c = i % channels;
                            let mut want = acc[i] as f32 * multiplier[c];
                            want = match per_channel {
                                PerChannel::None => want,
                                PerChannel::Bias(bias) => want + bias[c],
                                PerChannel::Affine(a, b) => want * a[c] + b[c],
                            };
                            want += match residual {
                                Residual::None => 0.0,
                                Residual::Codes(codes, from) => {
                                    dequantize(codes[i].into(), from.scale, from.zero_point)
                                }
                                Residual::Floats(floats) => floats[i],
                            };
                            want = clip.map_or(want, |(min, max)| Activation::Clip { min, max }.apply(want));
                            assert_eq!(i32::from(q[i]), quantize(want, 0.037, zero_point, 0, 15));
                        }
                    }
                }
            }
        }
    }
}

/// Numbers at and around the middle of two codes, where multiplying by the inverse would round differently than dividing.
#[test]
fn requantizing_rounds_as_division_does() {
    for scale in [0.1f32, 1.0 / 3.0, 0.037, 0.05, 7e-3, 1.7e-39, 2e38] {
        let grid = ByteGrid { scale, zero_point: 7, low: 0, high: 255 };
        let (mut bias, mut want) = (vec![], vec![]);
        for code in -20..270 {
            let middle = (code as f32 + 0.5) * scale;
            for ulps in -3..=3i32 {
                let y = f32::from_bits(middle.to_bits().wrapping_add_signed(ulps));
                bias.push(y);
                want.push(quantize(y, scale, 7, 0, 255) as u8);
            }
        }
        let n = bias.len();
        let (multiplier, mut q) = (vec![1.0; n], vec![0; n]);
        let requantize = Requantize {
            multiplier: &multiplier,
            per_channel: PerChannel::Bias(&bias),
            residual: Residual::None,
            clip: None,
            grid,
        };
        requantize.run(&vec![0; n], &mut q);
        assert_eq!(q, want, "scale {scale}");
    }
}

/// Sums so dense that every code's borders are met closely, with every kind of operand, and with numbers beyond all reason.
#[test]
fn requantizing_in_steps_of_the_result_changes_no_code() {
    const N: usize = 64;
    let noise = |seed: u32, i: usize| {
        let mut state = (seed.wrapping_mul(747_796_405) ^ i as u32).wrapping_mul(2_891_336_453) | 1;
        state ^= state >> 15;
        state = state.wrapping_mul(0x2c1b_3c6d) ^ (state >> 13);
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    for case in 0..400u32 {
        let size = |k: u32| match case % 40 {
            0 => 10f32.powi(noise(case * 7 + k, 1) as i32 * 30),
            _ => 10f32.powf(noise(case * 7 + k, 2) * 2.0),
        };
        let values = |k: u32, size: f32| -> Vec<f32> { (0..N).map(|i| noise(case * 31 + k, i) * size).collect() };
        let (high, scale) = ([15, 255, 7, 3][case as usize % 4], size(0));
        let grid = ByteGrid { scale, zero_point: (case as i32 / 4 % 3) * high / 4, low: 0, high };
        // About as many steps as the grid has codes, in small ones.
        let multiplier = values(1, scale * high as f32 / 1e5);
        let (a, b) = (values(2, 2.0), values(3, scale * high as f32 * [0.1, 1.0, 20.0][case as usize % 3]));
        let acc: Vec<i32> = (0..N * 50).map(|i| (noise(case, i + 999) * 2e5) as i32).collect();
        let bytes = codes::<u8>(acc.len(), case);
        let from = ByteGrid { scale: scale * size(4), zero_point: 100, low: 0, high: 255 };
        let floats: Vec<f32> = (0..acc.len()).map(|i| noise(case + 5, i) * scale * high as f32).collect();
        for per_channel in [PerChannel::None, PerChannel::Bias(&b), PerChannel::Affine(&a, &b)] {
            for residual in [Residual::None, Residual::Codes(&bytes, from), Residual::Floats(&floats)] {
                let clip = [None, Some((0.0, f32::INFINITY)), Some((0.0, 6.0 * scale))][case as usize % 3];
                let mut q = vec![0; acc.len()];
                Requantize { multiplier: &multiplier, per_channel, residual, clip, grid }.run(&acc, &mut q);
                for (i, &q) in q.iter().enumerate() {
                    let c = i % N;
                    let y = acc[i] as f32 * multiplier[c];
                    let y = match per_channel {
                        PerChannel::None => y,
                        PerChannel::Bias(b) => y + b[c],
                        PerChannel::Affine(a, b) => y * a[c] + b[c],
                    };
                    let y = match residual {
                        Residual::None => y,
                        Residual::Codes(codes, from) => y + dequantize(codes[i].into(), from.scale, from.zero_point),
                        Residual::Floats(floats) => y + floats[i],
                    };
                    let y = clip.map_or(y, |(min, max)| Activation::Clip { min, max }.apply(y));
                    let want = quantize(y, grid.scale, grid.zero_point, grid.low, grid.high);
                    assert_eq!(i32::from(q), want, "case {case}, element {i}: {y} in steps of {scale}");
                }
            }
        }
    }
}

/// The loops of an epilogue give the same bits on every level, fused or one after the other.
#[test]
fn epilogues_do_not_depend_on_the_level() {
    for channels in [1usize, 3, 15, 16, 17, 33] {
        for pixels in [1usize, 7] {
            let n = pixels * channels;
            let acc: Vec<i32> = (0..n).map(|i| (i * 7919 % 4001) as i32 - 2000).collect();
            let [multiplier, a, b] = [0.001, 0.8, -0.2].map(|f| vec![f; channels]);
            let residual = codes::<u8>(n, 5);
            let from = ByteGrid { scale: 0.01, zero_point: 7, low: 0, high: 255 };
            let grid = ByteGrid { scale: 0.037, zero_point: 3, low: 0, high: 15 };
            let mut first: Option<(Vec<u8>, Vec<f32>)> = None;
            on_every_level(|isa| {
                let mut y = vec![f32::NAN; n];
                rows::scale_rows(&acc, &multiplier, &mut y);
                rows::affine_rows(&a, &b, &mut y);
                rows::add_u8(&residual, from.scale, from.zero_point, &mut y);
                let mut one_by_one = vec![0; n];
                grid.encode(&y, &mut one_by_one);
                let mut fused = vec![0; n];
                let per_channel = PerChannel::Affine(&a, &b);
                let residual = Residual::Codes(&residual, from);
                Requantize { multiplier: &multiplier, per_channel, residual, clip: None, grid }.run(&acc, &mut fused);
                assert_eq!(fused, one_by_one, "{isa:?} {channels}");

                let mut softmax = vec![f32::NAN; n];
                crate::softmax::forward(channels, false, &y, &mut softmax);
                let mut want = vec![0.0; n];
                crate::reference::activation::softmax(channels, &y, &mut want);
                // Two exponentials, their arguments rounded, a division, and sums of channels / 8 + 8 terms.
                let bound = 3e-7 + (channels as f64 / 8.0 + 28.0) * UNIT;
                let limit = |i: usize| bound * f64::from(want[i]);
                assert_within(format_args!("softmax {isa:?} {channels}"), &softmax, &want, limit);
                let (first_codes, first_softmax) = first.get_or_insert_with(|| (fused.clone(), softmax.clone()));
                assert!(*first_codes == fused && bitwise(first_softmax, &softmax), "{isa:?} {channels}");
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Sums that become codes at once are those of [`conv`], and the codes those of the chain, where sums fall on the middle of two codes as well.
    #[test]
    fn codes_at_once_are_those_of_the_chain(
        batch in 1usize..3, in_h in 1usize..8, in_w in 1usize..12, group_in in 1usize..7, group_out in 1usize..20, groups in 1usize..4,
        depthwise in 0usize..220, side in 1usize..4, stride in [1usize..4, 1usize..4], dilation in 1usize..3, wide: bool, eights: bool, seed: u32,
        kinds in [0usize..3, 0usize..3, 0usize..3], bits in 1u32..9, zero_point in 0i32..9,
    ) {
        // Every other one is depthwise, or has several blocks, or outputs that fill registers.
        let (depthwise, group_out) = match eights {
            true => (depthwise / 16 * 16 + depthwise % 2 * 8, group_out.next_multiple_of(8)),
            false => (depthwise, group_out),
        };
        let (c_in, c_out, groups) = match (seed % 2, wide) {
            (1, _) => (depthwise, depthwise, depthwise),
            (_, true) => (group_in, depthwise.max(1), 1),
            _ => (group_in * groups, group_out * groups, groups),
        };
        let shape = ConvShape {
            batch, in_h: in_h + side, in_w: in_w + side, c_in, c_out, kernel: [side; 2], stride, pads: [side / 2; 4], dilation: [dilation; 2], groups,
        };
        prop_assume!(shape.validate().is_ok());
        let (x, w) = (codes::<u8>(shape.input_len(), seed), codes::<i8>(shape.weight_len(), seed ^ 1));
        let (high, n) = ((1 << bits) - 1, shape.output_len());
        let grid = ByteGrid { scale: 1.0, zero_point: zero_point.min(high), low: 0, high };
        let halves = |seed: u32, size: u32| -> Vec<f32> {
            codes::<u8>(c_out, seed).iter().map(|&c| (u32::from(c) % size) as f32 * 0.5 - 1.0).collect()
        };
        // Sums of thousands of steps of a power of two.
        let multiplier: Vec<f32> = codes::<u8>(c_out, seed ^ 2).iter().map(|&c| 0.5f32.powi(5 + i32::from(c) % 9)).collect();
        let (a, b) = (halves(seed ^ 3, 9), halves(seed ^ 4, 100));
        let bytes = codes::<u8>(n, seed ^ 5);
        let floats: Vec<f32> = bytes.iter().map(|&c| if c == 77 { f32::NAN } else { f32::from(c) * 0.5 - 50.0 }).collect();
        let from = ByteGrid { scale: 0.5, zero_point: 3, low: 0, high: 255 };
        let requantize = Requantize {
            multiplier: &multiplier,
            per_channel: [PerChannel::None, PerChannel::Bias(&b), PerChannel::Affine(&a, &b)][kinds[0]],
            residual: [Residual::None, Residual::Codes(&bytes, from), Residual::Floats(&floats)][kinds[1]],
            clip: [None, Some((0.0, f32::INFINITY)), Some((-1.0, 6.0))][kinds[2]],
            grid,
        };
        let mut acc = vec![0; n];
        reference::conv(&shape, &x, 7, &w, &mut acc);
        let mut want = vec![0; n];
        requantize.one_by_one(&acc, 0, &mut want);
        let ordered = in_order(&shape, &w);
        let sums = short_sums(Layout::of(&shape).kind, &ordered, u8::MAX);
        for kernel in Kernel::available(sums) {
            let weights = ConvWeights::packed(kernel, sums, &shape, ordered.clone(), u8::MAX, 0);
            let mut got = vec![0; n];
            conv_to_codes(&shape, &x, 7, &weights, &requantize.prepared(), &mut got);
            prop_assert!(got == want, "{:?} on {:?}", kernel, shape);
        }
    }
}

#[test]
fn thread_count_changes_nothing() {
    let shape = ConvShape { batch: 3, in_h: 17, in_w: 13, c_in: 16, c_out: 24, ..BASE };
    let (x, w) = (codes::<u8>(shape.input_len(), 1), codes::<i8>(shape.weight_len(), 2));
    let weights = ConvWeights::new(&shape, &w);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut acc = vec![0; shape.output_len()];
        pool.install(|| conv(&shape, &x, 3, &weights, &mut acc));
        acc
    };
    assert_eq!(run(1), run(5));
}
