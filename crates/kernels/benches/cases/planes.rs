//! CSQ's planes with 8 planes on a layer of 3x3 16>16 (an image stands for one such layer); work in logits of one sign.

use super::{Case, Version, values};
use bitsmith_kernels::numerics::dequantize;
use bitsmith_kernels::planes::reference::{self as naive, Layer};
use bitsmith_kernels::planes::{
    Gate, GateGradients, Gates, LogitGradients, Logits, Sgd, TrainableLogits, backward, backward_sgd, forward,
    hard_codes,
};
use std::hint::black_box;

const PLANES: usize = 8;
const SGD: Sgd = Sgd { learning_rate: 1e-6, momentum: 0.9, weight_decay: 0.0, nesterov: false };

struct Buffers {
    layer: Layer<f32>,
    /// Momentum; the plain backward pass writes gradients here.
    velocity: [Vec<f32>; 2],
    weights: Vec<f32>,
    grad_w: Vec<f32>,
}

impl Buffers {
    fn new(n: usize) -> Buffers {
        Buffers {
            layer: Layer {
                positive: values(n * PLANES),
                negative: values(n * PLANES).iter().map(|x| -x).collect(),
                masks: vec![1.0; PLANES],
                scale: vec![0.3],
                temperature: 5.0,
            },
            velocity: [vec![0.0; n * PLANES], vec![0.0; n * PLANES]],
            weights: vec![0.0; n],
            grad_w: values(n),
        }
    }

    fn forward(&mut self, bits: Gate) {
        let (logits, gates) = (logits(&self.layer), gates(&self.layer, bits));
        forward(&logits, &gates, &mut self.weights);
    }

    fn backward(&mut self) {
        let [positive, negative] = &mut self.velocity;
        let (logits, gates) = (logits(&self.layer), gates(&self.layer, Gate::Soft));
        let mut of_gates = GateGradients { masks: &mut [0.0; PLANES], scale: &mut [0.0] };
        backward(&logits, &gates, &self.grad_w, &mut LogitGradients { positive, negative }, &mut of_gates);
    }

    fn update(&mut self) {
        let Layer { positive, negative, masks, scale, temperature } = &mut self.layer;
        let [velocity_positive, velocity_negative] = &mut self.velocity;
        let gates = Gates { masks, scale, temperature: *temperature, bits: Gate::Soft };
        let mut logits = TrainableLogits { positive, negative, velocity_positive, velocity_negative };
        let mut of_gates = GateGradients { masks: &mut [0.0; PLANES], scale: &mut [0.0] };
        backward_sgd(&mut logits, &gates, &self.grad_w, &SGD, &mut of_gates);
    }

    fn naive_backward(&mut self) {
        let saved = naive::forward(&self.layer);
        black_box(naive::backward(&self.layer, &saved, &self.grad_w));
    }

    fn naive_update(&mut self) {
        let saved = naive::forward(&self.layer);
        let grads = naive::backward(&self.layer, &saved, &self.grad_w);
        let logits = [&mut self.layer.positive, &mut self.layer.negative];
        for ((x, v), g) in logits.into_iter().zip(&mut self.velocity).zip([&grads.positive, &grads.negative]) {
            for ((x, v), g) in x.iter_mut().zip(v).zip(g) {
                *v = SGD.momentum * *v + g;
                *x -= SGD.learning_rate * *v;
            }
        }
    }

    fn naive_hard(&mut self) {
        let mut codes = vec![0; self.weights.len()];
        hard_codes(&logits(&self.layer), &self.layer.masks, &mut codes);
        let step = self.layer.scale[0] / 255.0;
        self.weights.iter_mut().zip(codes).for_each(|(w, code)| *w = dequantize(code.into(), step, 0));
    }
}

fn logits(l: &Layer<f32>) -> Logits<'_> {
    Logits { positive: &l.positive, negative: &l.negative }
}

fn gates(l: &Layer<f32>, bits: Gate) -> Gates<'_> {
    Gates { masks: &l.masks, scale: &l.scale, temperature: l.temperature, bits }
}

#[rustfmt::skip]
const KERNELS: [(&str, [Version<Buffers>; 2]); 4] = [
    ("planes/forward", [|b| b.forward(Gate::Soft), |b| { black_box(naive::forward(&b.layer)); }]),
    ("planes/forward hard", [|b| b.forward(Gate::Hard), |b| b.naive_hard()]),
    ("planes/backward", [|b| b.backward(), |b| b.naive_backward()]),
    ("planes/backward update", [|b| b.update(), |b| b.naive_update()]),
];

pub fn cases() -> Vec<Case> {
    let n = 16 * 16 * 9;
    let setup = move |images: usize| Buffers::new(images * n);
    KERNELS.map(|(kernel, versions)| Case::new(kernel, "16x16x9 8 planes", (n * PLANES) as u64, setup, versions)).into()
}
