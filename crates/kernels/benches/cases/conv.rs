//! Convolutions: all of ResNet-20's, one depthwise and one grouped; work in multiply-accumulates.

use super::{Case, Version, values};
use bitsmith_kernels::conv::{self, ConvShape, Precision};
use bitsmith_kernels::reference::conv as naive;

struct Buffers {
    shape: ConvShape,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    dy: Vec<f32>,
}

#[rustfmt::skip]
const KERNELS: [(&str, [Version<Buffers>; 2]); 8] = [
    ("conv/forward", [|b| conv::forward(&b.shape, &b.x, &b.w, None, &mut b.y), |b| naive::forward(&b.shape, &b.x, &b.w, None, &mut b.y)]),
    ("conv/forward training", [|b| conv::forward_training(&b.shape, Precision::Full, &b.x, &b.w, None, &mut b.y), |b| naive::forward(&b.shape, &b.x, &b.w, None, &mut b.y)]),
    ("conv/forward bf16", [|b| conv::forward_training(&b.shape, Precision::Bf16, &b.x, &b.w, None, &mut b.y), |b| naive::forward(&b.shape, &b.x, &b.w, None, &mut b.y)]),
    ("conv/forward direct", [|b| conv::forward_direct(&b.shape, &b.x, &b.w, None, &mut b.y), |b| naive::forward(&b.shape, &b.x, &b.w, None, &mut b.y)]),
    ("conv/input gradient", [|b| conv::backward_input(&b.shape, Precision::Full, &b.dy, &b.w, &mut b.dx), |b| naive::backward_input(&b.shape, &b.dy, &b.w, &mut b.dx)]),
    ("conv/input gradient bf16", [|b| conv::backward_input(&b.shape, Precision::Bf16, &b.dy, &b.w, &mut b.dx), |b| naive::backward_input(&b.shape, &b.dy, &b.w, &mut b.dx)]),
    ("conv/weight gradient bf16", [|b| conv::backward_weight(&b.shape, Precision::Bf16, &b.x, &b.dy, &mut b.dw), |b| naive::backward_weight(&b.shape, &b.x, &b.dy, &mut b.dw)]),
    ("conv/weight gradient", [|b| conv::backward_weight(&b.shape, Precision::Full, &b.x, &b.dy, &mut b.dw), |b| naive::backward_weight(&b.shape, &b.x, &b.dy, &mut b.dw)]),
];

/// Size, channels in and out, kernel, stride, groups.
const SHAPES: [(&str, [usize; 6]); 9] = [
    ("3x3 3>16 32x32", [32, 3, 16, 3, 1, 1]),
    ("3x3 16>16 32x32", [32, 16, 16, 3, 1, 1]),
    ("3x3 16>32 32x32 /2", [32, 16, 32, 3, 2, 1]),
    ("3x3 32>32 16x16", [16, 32, 32, 3, 1, 1]),
    ("3x3 32>64 16x16 /2", [16, 32, 64, 3, 2, 1]),
    ("3x3 64>64 8x8", [8, 64, 64, 3, 1, 1]),
    ("1x1 32>64 16x16 /2", [16, 32, 64, 1, 2, 1]),
    ("3x3 64>64 16x16 depthwise", [16, 64, 64, 3, 1, 64]),
    ("3x3 64>64 16x16 4 groups", [16, 64, 64, 3, 1, 4]),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, [size, c_in, c_out, kernel, stride, groups]) in SHAPES {
        let shape = move |batch| ConvShape { groups, ..ConvShape::square(batch, size, c_in, c_out, kernel, stride) };
        let setup = move |images| {
            let shape = shape(images);
            let (x, w, y) = (values(shape.input_len()), values(shape.weight_len()), values(shape.output_len()));
            Buffers { shape, dx: x.clone(), dw: w.clone(), dy: y.clone(), x, w, y }
        };
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, name, shape(1).macs(), setup, versions)));
    }
    cases
}
