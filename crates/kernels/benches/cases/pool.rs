//! Pooling: windows of 2x2 and 3x3 on ResNet-20's first stage, and its last layer, the mean of each channel; work in elements of
//! the input.

use super::{Case, Version, values};
use bitsmith_kernels::pool::{self, Padding, PoolShape, Rounding};
use bitsmith_kernels::reference::pool as naive;

struct Buffers {
    shape: PoolShape,
    x: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dy: Vec<f32>,
    first: Vec<f32>,
}

#[rustfmt::skip]
const KERNELS: [(&str, [Version<Buffers>; 2]); 5] = [
    ("pool/max", [|b| pool::max(&b.shape, &b.x, &mut b.y), |b| naive::max(&b.shape, &b.x, &mut b.y)]),
    ("pool/max numbered", [|b| pool::max_numbered(&b.shape, &b.x, &mut b.y, &mut b.first), |b| naive::max(&b.shape, &b.x, &mut b.y)]),
    ("pool/max backward", [|b| pool::max_backward(&b.shape, &b.first, &b.dy, &mut b.dx), |b| naive::max_backward(&b.shape, &b.x, &b.dy, &mut b.dx)]),
    ("pool/average", [|b| pool::average(&b.shape, &b.x, &mut b.y), |b| naive::average(&b.shape, &b.x, &mut b.y)]),
    ("pool/average backward", [|b| pool::average_backward(&b.shape, &b.dy, &mut b.dx), |b| naive::average_backward(&b.shape, &b.dy, &mut b.dx)]),
];

#[rustfmt::skip]
const GLOBAL: [(&str, [Version<Buffers>; 2]); 2] = [
    ("pool/global average", [|b| pool::global_average(b.shape.batch, 64, &b.x, &mut b.y), |b| naive::global_average(b.shape.batch, 64, &b.x, &mut b.y)]),
    ("pool/global average backward", [|b| pool::global_average_backward(b.shape.batch, 64, &b.dy, &mut b.dx), |b| naive::global_average_backward(b.shape.batch, 64, &b.dy, &mut b.dx)]),
];

pub fn cases() -> Vec<Case> {
    let setup = |size: usize, channels: usize, kernel: usize, stride: usize, pad: usize| {
        move |batch| {
            let shape = PoolShape {
                batch,
                in_h: size,
                in_w: size,
                channels,
                kernel: [kernel; 2],
                stride: [stride; 2],
                pads: [pad; 4],
                rounding: Rounding::Floor,
                padding: Padding::Ignored,
            };
            let (x, y) = (values(shape.input_len()), values(shape.output_len()));
            let (mut largest, mut first) = (y.clone(), y.clone());
            pool::max_numbered(&shape, &x, &mut largest, &mut first);
            Buffers { shape, dx: x.clone(), dy: y.clone(), x, y, first }
        }
    };
    let mut cases = Vec::new();
    for (name, kernel, pad) in [("2x2 /2 32x32x16", 2, 0), ("3x3 /2 32x32x16", 3, 1)] {
        let setup = setup(32, 16, kernel, 2, pad);
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, name, 32 * 32 * 16, setup, versions)));
    }
    let setup = setup(8, 64, 8, 8, 0);
    cases.extend(GLOBAL.map(|(kernel, versions)| Case::new(kernel, "8x8x64", 8 * 8 * 64, setup, versions)));
    cases
}
