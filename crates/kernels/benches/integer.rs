//! The integer layers of ResNet-20 (u8 codes, 3x3 convolutions with batch-norm, residual, ReLU, back to codes): the three
//! kinds of layer, and the whole network.

use bitsmith_kernels::activation::Activation;
use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::integer::{ConvWeights, Epilogue, OutputGrid, Residual, Stage, conv, conv_with};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const BATCH: usize = 32;
const GRID: OutputGrid = OutputGrid { scale: 0.05, zero_point: 0, range: (0, 255) };

struct Layer {
    shape: ConvShape,
    weights: ConvWeights,
    multiplier: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    has_residual: bool,
}

impl Layer {
    fn new(size: usize, c_in: usize, c_out: usize, stride: usize, has_residual: bool) -> Self {
        let shape = ConvShape::square(BATCH, size, c_in, c_out, 3, stride);
        let w: Vec<i8> = (0..shape.weight_len()).map(|i| (i * 7919 % 15) as i8 - 7).collect();
        let per_channel = |f: f32| vec![f; c_out];
        Layer {
            shape,
            weights: ConvWeights::new(&shape, &w),
            multiplier: per_channel(1e-4),
            a: per_channel(1.3),
            b: per_channel(0.1),
            has_residual,
        }
    }

    fn run(&self, x: &[u8], residual: &[u8], out: &mut [u8]) {
        let affine = Stage::Affine { a: &self.a, b: &self.b };
        let relu = Stage::Activation(Activation::Relu);
        let add = Stage::Add(Residual::U8 { codes: residual, scale: 0.05, zero_point: 0 });
        let with: [Stage<'_>; 3] = [affine, add, relu];
        let without: [Stage<'_>; 2] = [affine, relu];
        let stages: &[Stage<'_>] = if self.has_residual { &with } else { &without };
        let epilogue = Epilogue { multiplier: &self.multiplier, stages };
        let x = &x[..self.shape.input_len()];
        let out = &mut out[..self.shape.output_len()];
        conv_with(&self.shape, x, 0, &self.weights, out, |first, acc, out| epilogue.to_codes(first, acc, &GRID, out));
    }
}

fn resnet20() -> Vec<Layer> {
    let mut layers = vec![Layer::new(32, 3, 16, 1, false)];
    for (size, channels) in [(32, 16), (16, 32), (8, 64)] {
        for block in 0..3 {
            let down = block == 0 && channels > 16;
            let (size_in, c_in, stride) = if down { (size * 2, channels / 2, 2) } else { (size, channels, 1) };
            layers.push(Layer::new(size_in, c_in, channels, stride, false));
            layers.push(Layer::new(size, channels, channels, 1, true));
        }
    }
    layers
}

fn bench(c: &mut Criterion) {
    let codes: Vec<u8> = (0..BATCH * 32 * 32 * 16).map(|i| (i * 31 % 256) as u8).collect();
    let mut other = codes.clone();
    let mut group = c.benchmark_group("integer");
    for (name, size, channels) in [("conv 16@32", 32, 16), ("conv 32@16", 16, 32), ("conv 64@8", 8, 64)] {
        let layer = Layer::new(size, channels, channels, 1, true);
        let mut acc = vec![0i32; layer.shape.output_len()];
        group.throughput(Throughput::Elements(layer.shape.macs()));
        let x = &codes[..layer.shape.input_len()];
        group.bench_function(name, |b| b.iter(|| conv(&layer.shape, x, 0, &layer.weights, &mut acc)));
        group.bench_function(format!("{name} to codes"), |b| b.iter(|| layer.run(&codes, &codes, &mut other)));
        black_box(&acc);
    }
    let layers = resnet20();
    let mut buffers = [codes.clone(), codes.clone()];
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("resnet20, images", |b| {
        b.iter(|| {
            for layer in &layers {
                let [x, out] = &mut buffers;
                layer.run(x, &codes, out);
                buffers.swap(0, 1);
            }
        })
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
