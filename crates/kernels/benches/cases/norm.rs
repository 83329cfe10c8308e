//! Normalisation after the three stages of ResNet-20, and of the tokens of a small transformer; work in elements.

use super::{Case, Version, values};
use bitsmith_kernels::activation::Activation::Relu;
use bitsmith_kernels::norm::{self, Backward, Statistics, layer};
use bitsmith_kernels::reference::norm as naive;

struct Buffers {
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dadd: Vec<f32>,
    /// Per channel: a positive factor, a shift, and where sums go.
    gamma: Vec<f32>,
    beta: Vec<f32>,
    sums: [Vec<f32>; 2],
    /// Mean and factor of each row, for layers.
    rows: Vec<(f32, f32)>,
}

impl Buffers {
    fn new(n: usize, channels: usize) -> Buffers {
        let x = values(n);
        Buffers {
            dy: x.clone(),
            y: x.clone(),
            dx: x.clone(),
            dadd: x.clone(),
            x,
            gamma: vec![1.1; channels],
            beta: vec![0.1; channels],
            sums: [vec![0.0; channels], vec![0.0; channels]],
            rows: vec![(0.0, 1.0); n / channels],
        }
    }

    /// The arguments of a backward pass, and what it reads and writes: the gradient, sums, and two more.
    #[allow(clippy::type_complexity)]
    fn backward(&mut self) -> (Backward<'_>, &mut [f32], [&mut [f32]; 2], [&mut [f32]; 2]) {
        let [dgamma, dbeta] = &mut self.sums;
        let args = Backward {
            y: &self.y,
            factors: None,
            x: &self.x,
            add: None,
            mean: &self.beta,
            inv_std: &self.gamma,
            gamma: &self.gamma,
            beta: &self.beta,
            act: Relu,
            statistics: Statistics::Batch,
        };
        (args, &mut self.dy, [dgamma, dbeta], [&mut self.dx, &mut self.dadd])
    }
}

const KERNELS: [(&str, [Version<Buffers>; 2]); 6] = [
    ("norm/statistics", [|b| stats(b, norm::batch_stats), |b| stats(b, naive::batch_stats)]),
    (
        "norm/affine relu",
        [
            |b| norm::affine_act(&b.x, &b.gamma, &b.beta, None, Relu, &mut b.y),
            |b| naive::affine_act(&b.x, &b.gamma, &b.beta, None, Relu, &mut b.y),
        ],
    ),
    (
        "norm/affine add relu",
        [
            |b| norm::affine_act(&b.x, &b.gamma, &b.beta, Some(&b.dy), Relu, &mut b.y),
            |b| naive::affine_act(&b.x, &b.gamma, &b.beta, Some(&b.dy), Relu, &mut b.y),
        ],
    ),
    (
        "norm/backward",
        [
            |b| {
                let (args, dy, [dgamma, dbeta], _) = b.backward();
                norm::backward(&args, dy, dgamma, dbeta, None);
            },
            |b| {
                let (args, dy, [dgamma, dbeta], [dx, _]) = b.backward();
                naive::backward(&args, dy, dx, dgamma, dbeta, None);
            },
        ],
    ),
    (
        "norm/backward add",
        [
            |b| {
                let (args, dy, [dgamma, dbeta], [dx, _]) = b.backward();
                norm::backward(&args, dy, dgamma, dbeta, Some(dx));
            },
            |b| {
                let (args, dy, [dgamma, dbeta], [dx, dadd]) = b.backward();
                naive::backward(&args, dy, dx, dgamma, dbeta, Some(dadd));
            },
        ],
    ),
    (
        "norm/channel sums",
        [|b| norm::channel_sums(&b.dy, &mut b.sums[0]), |b| naive::channel_sums(&b.dy, &mut b.sums[0])],
    ),
];

const LAYERS: [(&str, [Version<Buffers>; 2]); 2] = [
    (
        "norm/layer",
        [
            |b| layer::forward(&b.x, &b.gamma, &b.beta, 1e-5, &mut b.y, Some(&mut b.rows)),
            |b| naive::layer(&b.x, &b.gamma, &b.beta, 1e-5, &mut b.y),
        ],
    ),
    (
        "norm/layer backward",
        [
            |b| {
                let [dgamma, dbeta] = &mut b.sums;
                layer::backward(&b.x, &b.dy, &b.gamma, &b.rows, &mut b.dx, dgamma, dbeta);
            },
            |b| {
                let [dgamma, dbeta] = &mut b.sums;
                naive::layer_backward(&b.x, &b.dy, &b.gamma, 1e-5, &mut b.dx, dgamma, dbeta);
            },
        ],
    ),
];

fn stats(b: &mut Buffers, run: fn(&[f32], usize, &mut [f32], &mut [f32])) {
    let [mean, var] = &mut b.sums;
    run(&b.x, b.gamma.len(), mean, var);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (size, channels) in [(32, 16), (16, 32), (8, 64)] {
        let n = size * size * channels;
        let shape = format!("{size}x{size}x{channels}");
        let setup = move |images| Buffers::new(images * n, channels);
        cases.extend(KERNELS.map(|(kernel, versions)| Case::new(kernel, &shape, n as u64, setup, versions)));
    }
    let (tokens, features) = (65, 192);
    let setup = move |images| Buffers::new(images * tokens * features, features);
    let work = (tokens * features) as u64;
    cases.extend(LAYERS.map(|(kernel, versions)| Case::new(kernel, "65x192", work, setup, versions)));
    cases
}
