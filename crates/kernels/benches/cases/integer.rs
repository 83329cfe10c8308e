//! Integer layers: convolutions of ResNet-20 at 8 and 4 bits, its classifier and a large linear layer, and the way from sums to
//! codes; work in multiply-accumulates, or in sums.

use super::{Case, Version};
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::integer::reference as naive;
use bitsmith_kernels::integer::{ByteGrid, ConvWeights, PerChannel, Requantize, Residual, conv, linear_shape};
use bitsmith_kernels::numerics::requantize_slice;

struct Buffers {
    shape: ConvShape,
    x: Vec<u8>,
    w: Vec<i8>,
    packed: ConvWeights,
    acc: Vec<i32>,
}

impl Buffers {
    /// Weights and inputs of so many bits.
    fn new(shape: ConvShape, bits: u32) -> Buffers {
        let levels = (1usize << bits) - 1;
        let x = (0..shape.input_len()).map(|i| (i * 31 % (levels + 1)) as u8).collect();
        let w: Vec<i8> =
            (0..shape.weight_len()).map(|i| ((i * 7919 % levels) as i32 - (levels / 2) as i32) as i8).collect();
        let packed = ConvWeights::for_inputs(&shape, &w, levels as u8);
        Buffers { x, packed, w, acc: vec![0; shape.output_len()], shape }
    }
}

const CONV: [Version<Buffers>; 2] =
    [|b| conv(&b.shape, &b.x, 0, &b.packed, &mut b.acc), |b| naive::conv(&b.shape, &b.x, 0, &b.w, &mut b.acc)];

/// Kernel and shape, then size, channels in and out, window, stride, groups.
const LAYERS: [(&str, &str, [usize; 6]); 7] = [
    ("integer/conv", "3x3 3>16 32x32", [32, 3, 16, 3, 1, 1]),
    ("integer/conv", "3x3 16>16 32x32", [32, 16, 16, 3, 1, 1]),
    ("integer/conv", "3x3 16>32 32x32 /2", [32, 16, 32, 3, 2, 1]),
    ("integer/conv", "3x3 64>64 8x8", [8, 64, 64, 3, 1, 1]),
    ("integer/conv", "3x3 128>128 28x28", [28, 128, 128, 3, 1, 1]),
    ("integer/conv", "1x1 32>64 16x16 /2", [16, 32, 64, 1, 2, 1]),
    ("integer/depthwise", "3x3 64>64 16x16", [16, 64, 64, 3, 1, 64]),
];

struct Sums {
    acc: Vec<i32>,
    multiplier: Vec<f32>,
    bias: Vec<f32>,
    codes: Vec<u8>,
}

const GRID: ByteGrid = ByteGrid { scale: 0.037, zero_point: 0, low: 0, high: 15 };

const REQUANTIZE: [Version<Sums>; 2] = [
    |b| {
        let (per_channel, clip) = (PerChannel::Bias(&b.bias), Some((0.0, f32::INFINITY)));
        let requantize =
            Requantize { multiplier: &b.multiplier, per_channel, residual: Residual::None, clip, grid: GRID };
        requantize.run(&b.acc, &mut b.codes);
    },
    |b| {
        let (scale, range) = (GRID.scale, (GRID.low, GRID.high));
        requantize_slice(&b.acc, &b.multiplier, &b.bias, scale, GRID.zero_point, range, &mut b.codes);
    },
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in [8, 4] {
        for (kernel, name, [size, c_in, c_out, window, stride, groups]) in LAYERS {
            let shape =
                move |batch| ConvShape { groups, ..ConvShape::square(batch, size, c_in, c_out, window, stride) };
            let setup = move |images| Buffers::new(shape(images), bits);
            cases.push(Case::new(kernel, format!("{name} {bits} bits"), shape(1).macs(), setup, CONV));
        }
        for (inputs, outputs) in [(64, 10), (1024, 1024)] {
            let setup = move |rows| Buffers::new(linear_shape(rows, inputs, outputs), bits);
            let name = format!("{inputs}>{outputs} {bits} bits");
            cases.push(Case::new("integer/linear", name, (inputs * outputs) as u64, setup, CONV));
        }
    }
    for (size, channels) in [(32, 16), (8, 64)] {
        let n = size * size * channels;
        let setup = move |images: usize| Sums {
            acc: (0..images * n).map(|i| (i * 7919 % 4001) as i32 - 2000).collect(),
            multiplier: vec![1e-3; channels],
            bias: vec![0.1; channels],
            codes: vec![0; images * n],
        };
        cases.push(Case::new("integer/requantize", format!("{size}x{size}x{channels}"), n as u64, setup, REQUANTIZE));
    }
    cases
}
