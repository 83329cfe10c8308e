//! Convolution kernels on the shapes of ResNet-20, fast and naive: `cargo bench -p bitsmith-kernels --bench conv`.

use bitsmith_kernels::conv::{self, ConvShape};
use bitsmith_kernels::reference::conv as naive;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Throughput is in multiply-accumulates per second, so that fast (batch 16) and naive (batch 1) compare.
fn convolutions(criterion: &mut Criterion) {
    for (name, size, c_in, c_out, stride) in [
        ("stem", 32, 3, 16, 1),
        ("16", 32, 16, 16, 1),
        ("16-32", 32, 16, 32, 2),
        ("32", 16, 32, 32, 1),
        ("32-64", 16, 32, 64, 2),
        ("64", 8, 64, 64, 1),
    ] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        let fast = ConvShape::square(16, size, c_in, c_out, 3, stride);
        let (x, w, dy) = (values(fast.input_len()), values(fast.weight_len()), values(fast.output_len()));
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        group.throughput(Throughput::Elements(fast.macs()));
        group.bench_function("forward", |b| b.iter(|| conv::forward(&fast, black_box(&x), &w, None, &mut y)));
        group.bench_function("input", |b| b.iter(|| conv::backward_input(&fast, black_box(&dy), &w, &mut dx)));
        group.bench_function("weight", |b| b.iter(|| conv::backward_weight(&fast, black_box(&x), &dy, &mut dw)));

        let slow = ConvShape { batch: 1, ..fast };
        let (x, dy) = (&x[..slow.input_len()], &dy[..slow.output_len()]);
        let (y, dx) = (&mut y[..slow.output_len()], &mut dx[..slow.input_len()]);
        group.sample_size(10);
        group.throughput(Throughput::Elements(slow.macs()));
        group.bench_function("naive forward", |b| b.iter(|| naive::forward(&slow, black_box(x), &w, None, y)));
        group.bench_function("naive input", |b| b.iter(|| naive::backward_input(&slow, black_box(dy), &w, dx)));
        group.bench_function("naive weight", |b| b.iter(|| naive::backward_weight(&slow, black_box(x), dy, &mut dw)));
        group.finish();
    }
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
