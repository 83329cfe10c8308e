//! Matrix products: the classifier of ResNet-20 and a layer of a small transformer with their gradients; work in
//! multiply-accumulates. An image is a row of the first, 65 rows of the second.

use super::{Case, Version, values};
use bitsmith_kernels::gemm::{Order, matmul};
use bitsmith_kernels::reference::gemm as naive;

struct Buffers {
    rows: usize,
    inputs: usize,
    outputs: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
}

type Matmul = fn([usize; 3], &[f32], Order, &[f32], Order, &mut [f32]);

impl Buffers {
    /// `y = x wᵀ`.
    fn forward(&mut self, matmul: Matmul) {
        let Buffers { rows, inputs, outputs, x, w, y } = self;
        matmul([*rows, *inputs, *outputs], x, Order::Plain, w, Order::Transposed, y);
    }

    /// `dx = dy w`.
    fn input(&mut self, matmul: Matmul) {
        let Buffers { rows, inputs, outputs, x, w, y } = self;
        matmul([*rows, *outputs, *inputs], y, Order::Plain, w, Order::Plain, x);
    }

    /// `dw = dyᵀ x`.
    fn weight(&mut self, matmul: Matmul) {
        let Buffers { rows, inputs, outputs, x, w, y } = self;
        matmul([*outputs, *rows, *inputs], y, Order::Transposed, x, Order::Plain, w);
    }
}

const KERNELS: [(&str, [Version<Buffers>; 2]); 3] = [
    ("gemm/forward", [|b| b.forward(matmul), |b| b.forward(naive::matmul)]),
    ("gemm/input gradient", [|b| b.input(matmul), |b| b.input(naive::matmul)]),
    ("gemm/weight gradient", [|b| b.weight(matmul), |b| b.weight(naive::matmul)]),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, rows, inputs, outputs) in [("1x64>10", 1, 64, 10), ("65x192>576", 65, 192, 576)] {
        let setup = move |images| {
            let rows = images * rows;
            let (x, w, y) = (values(rows * inputs), values(inputs * outputs), values(rows * outputs));
            Buffers { rows, inputs, outputs, x, w, y }
        };
        let work = (rows * inputs * outputs) as u64;
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, name, work, setup, versions)));
    }
    cases
}
