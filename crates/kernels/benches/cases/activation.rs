//! Activations on ResNet-20's first stage, and softmax over the tokens of a small transformer; work in elements.

use super::{Case, Version, values};
use bitsmith_kernels::activation::{self, Activation, Saved};
use bitsmith_kernels::reference::activation as naive;
use bitsmith_kernels::sigmoid::sigmoid_slice;
use bitsmith_kernels::softmax;

struct Buffers {
    act: Activation,
    x: Vec<f32>,
    y: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
}

impl Buffers {
    fn saved(&self) -> &[f32] {
        if self.act.saved() == Saved::Input { &self.x } else { &self.y }
    }
}

const FORWARD: [Version<Buffers>; 2] =
    [|b| activation::forward(b.act, &b.x, &mut b.y), |b| naive::forward(b.act, &b.x, &mut b.y)];

const BACKWARD: [Version<Buffers>; 2] = [
    |b| {
        let mut dx = std::mem::take(&mut b.dx);
        // Where the gradient comes from is read and written; what it holds does not matter to the time.
        activation::backward(b.act, b.saved(), &mut dx);
        b.dx = dx;
    },
    |b| {
        let mut dx = std::mem::take(&mut b.dx);
        naive::backward(b.act, b.saved(), &b.dy, &mut dx);
        b.dx = dx;
    },
];

/// Forward, backward, function.
const ACTIVATIONS: [(&str, &str, Activation); 8] = [
    ("activation/relu", "activation/relu backward", Activation::Relu),
    ("activation/leaky relu", "activation/leaky relu backward", Activation::LeakyRelu { alpha: 0.1 }),
    ("activation/relu6", "activation/relu6 backward", Activation::Clip { min: 0.0, max: 6.0 }),
    ("activation/hard swish", "activation/hard swish backward", Activation::HardSwish),
    ("activation/sigmoid", "activation/sigmoid backward", Activation::Sigmoid),
    ("activation/tanh", "activation/tanh backward", Activation::Tanh),
    ("activation/gelu erf", "activation/gelu erf backward", Activation::GeluErf),
    ("activation/gelu tanh", "activation/gelu tanh backward", Activation::GeluTanh),
];

pub fn cases() -> Vec<Case> {
    let n = 32 * 32 * 16;
    let setup = |act: Activation, n: usize| {
        move |images| {
            let x: Vec<f32> = values(images * n).iter().map(|x| 3.0 * x).collect();
            Buffers { act, y: x.clone(), dy: x.clone(), dx: x.clone(), x }
        }
    };
    let mut cases = Vec::new();
    for (forward, backward, act) in ACTIVATIONS {
        for (kernel, versions) in [(forward, FORWARD), (backward, BACKWARD)] {
            cases.push(Case::new(kernel, "32x32x16", n as u64, setup(act, n), versions));
        }
    }
    let identity = Activation::Identity;
    let slices: [Version<Buffers>; 2] = [|b| sigmoid_slice(&b.x, &mut b.y), |b| naive::sigmoid(&b.x, &mut b.y)];
    cases.push(Case::new("sigmoid/slice", "32x32x16", n as u64, setup(identity, n), slices));
    let n = 65 * 65;
    let rows: [Version<Buffers>; 2] =
        [|b| softmax::forward(65, false, &b.x, &mut b.y), |b| naive::softmax(65, &b.x, &mut b.y)];
    cases.push(Case::new("activation/softmax", "65x65", n as u64, setup(identity, n), rows));
    cases
}
