//! Fake quantization to 4 bits: activations on one grid after ReLU, and weights of 3x3 64>64 on a grid per channel (where an image
//! stands for one tensor of weights); work in elements.

use super::{Case, Version, values};
use bitsmith_kernels::fakequant::{self, Before, Grids, Inside};
use bitsmith_kernels::reference::fakequant as naive;

struct Buffers {
    before: Before,
    x: Vec<f32>,
    y: Vec<f32>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    grad_scale: Vec<f32>,
    codes: Vec<i8>,
}

impl Buffers {
    fn new(n: usize, channels: usize, before: Before) -> Buffers {
        let x = values(n);
        Buffers {
            before,
            y: x.clone(),
            x,
            scale: vec![0.13; channels],
            zero_point: vec![0; channels],
            grad_scale: vec![0.0; channels],
            codes: vec![0; n],
        }
    }

    fn grids(&self) -> Grids<'_> {
        let range = if self.before == Before::Relu { (0, 15) } else { (-7, 7) };
        Grids { scale: &self.scale, zero_point: &self.zero_point, range }
    }

    fn forward(&mut self, run: fn(&[f32], &Grids, Before, &mut [f32])) {
        let mut y = std::mem::take(&mut self.y);
        run(&self.x, &self.grids(), self.before, &mut y);
        self.y = y;
    }

    fn backward(&mut self, run: impl Fn(&[f32], &Grids, (Before, Inside), &mut [f32], &mut [f32])) {
        let (mut y, mut grad_scale) = (std::mem::take(&mut self.y), std::mem::take(&mut self.grad_scale));
        run(&self.x, &self.grids(), (self.before, Inside::Error), &mut y, &mut grad_scale);
        (self.y, self.grad_scale) = (y, grad_scale);
    }

    fn codes(&mut self) {
        let (mut y, mut codes) = (std::mem::take(&mut self.y), std::mem::take(&mut self.codes));
        fakequant::forward_codes(&self.x, &self.grids(), self.before, &mut y, &mut codes);
        (self.y, self.codes) = (y, codes);
    }
}

const KERNELS: [(&str, [Version<Buffers>; 2]); 3] = [
    ("fakequant/forward", [|b| b.forward(fakequant::forward), |b| b.forward(naive::forward)]),
    ("fakequant/forward codes", [|b| b.codes(), |b| b.forward(naive::forward)]),
    (
        "fakequant/backward",
        [
            |b| b.backward(fakequant::backward),
            |b| b.backward(|x, grids, how, y, scale| naive::backward(x, grids, how, x, y, scale)),
        ],
    ),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, n, channels, before) in
        [("32x32x16 relu", 32 * 32 * 16, 1, Before::Relu), ("64x64x9 per channel", 64 * 64 * 9, 64, Before::Identity)]
    {
        let setup = move |images| Buffers::new(images * n, if channels == 1 { 1 } else { images * channels }, before);
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, name, n as u64, setup, versions)));
    }
    cases
}
