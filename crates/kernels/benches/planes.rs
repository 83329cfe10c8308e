//! CSQ's planes on the weights of ResNet-20 (268,336 in 20 layers, 8 planes): one training step of the reparametrisation
//! (forward, backward, SGD with momentum), fused against composed array operations.

use bitsmith_kernels::planes::{
    Gate, GateGradients, Gates, Logits, Sgd, TrainableLogits, backward_sgd, forward, reference,
};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

const PLANES: usize = 8;

/// Weights per layer: stem, three stages of six convolutions (the first narrower), classifier.
fn layer_sizes() -> Vec<usize> {
    let mut sizes = vec![432];
    for (first, rest) in [(2304, 2304), (4608, 9216), (18432, 36864)] {
        sizes.push(first);
        sizes.extend([rest; 5]);
    }
    sizes.push(640);
    sizes
}

struct Layer {
    params: reference::Layer<f32>,
    velocity_positive: Vec<f32>,
    velocity_negative: Vec<f32>,
    weights: Vec<f32>,
    grad_w: Vec<f32>,
}

fn layers(live_planes: usize) -> Vec<Layer> {
    let noise = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect() };
    layer_sizes()
        .into_iter()
        .map(|n| Layer {
            params: reference::Layer {
                positive: noise(n * PLANES),
                negative: noise(n * PLANES),
                masks: (0..PLANES).map(|b| f32::from(u8::from(b < live_planes))).collect(),
                scale: vec![0.3],
                temperature: 5.0,
            },
            velocity_positive: vec![0.0; n * PLANES],
            velocity_negative: vec![0.0; n * PLANES],
            weights: vec![0.0; n],
            grad_w: noise(n),
        })
        .collect()
}

const SGD: Sgd = Sgd { learning_rate: 1e-6, momentum: 0.9, weight_decay: 0.0, nesterov: false };

fn fused_forward(layer: &mut Layer) {
    let p = &layer.params;
    let gates = Gates { masks: &p.masks, scale: &p.scale, temperature: p.temperature, bits: Gate::Soft };
    forward(&Logits { positive: &p.positive, negative: &p.negative }, &gates, &mut layer.weights);
}

fn fused_update(layer: &mut Layer) {
    let p = &mut layer.params;
    let gates = Gates { masks: &p.masks, scale: &p.scale, temperature: p.temperature, bits: Gate::Soft };
    backward_sgd(
        &mut TrainableLogits {
            positive: &mut p.positive,
            negative: &mut p.negative,
            velocity_positive: &mut layer.velocity_positive,
            velocity_negative: &mut layer.velocity_negative,
        },
        &gates,
        &layer.grad_w,
        &SGD,
        &mut GateGradients { masks: &mut [0.0; PLANES], scale: &mut [0.0] },
    );
}

fn naive_step(layer: &mut Layer) {
    let saved = reference::forward(&layer.params);
    let grads = reference::backward(&layer.params, &saved, &layer.grad_w);
    let update = |x: &mut [f32], v: &mut [f32], g: &[f32]| {
        let new_v: Vec<f32> = v.iter().zip(g).map(|(v, g)| SGD.momentum * v + g).collect();
        let step: Vec<f32> = new_v.iter().map(|v| SGD.learning_rate * v).collect();
        x.iter_mut().zip(&step).for_each(|(x, s)| *x -= s);
        v.copy_from_slice(&new_v);
    };
    update(&mut layer.params.positive, &mut layer.velocity_positive, &grads.positive);
    update(&mut layer.params.negative, &mut layer.velocity_negative, &grads.negative);
    black_box((saved.weights, grads.masks, grads.scale));
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("planes/resnet20");
    group.sample_size(20);
    let mut all = layers(PLANES);
    group.bench_function("naive step", |b| b.iter(|| all.iter_mut().for_each(naive_step)));
    group.bench_function("fused step", |b| {
        b.iter(|| {
            all.iter_mut().for_each(|l| {
                fused_forward(l);
                fused_update(l)
            })
        })
    });
    group.bench_function("fused forward", |b| b.iter(|| all.iter_mut().for_each(fused_forward)));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    group.bench_function("fused step, 1 thread", |b| {
        b.iter(|| {
            one.install(|| {
                all.iter_mut().for_each(|l| {
                    fused_forward(l);
                    fused_update(l)
                })
            })
        })
    });
    let mut three = layers(3);
    group.bench_function("fused step, 3 of 8 planes on", |b| {
        b.iter(|| {
            three.iter_mut().for_each(|l| {
                fused_forward(l);
                fused_update(l)
            })
        })
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
