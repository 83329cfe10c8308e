//! The integer layers of ResNet-20 (u8 codes, 3x3 convolutions with batch-norm, residual, ReLU, back to codes): the three
//! kinds of layer, and the whole network.

use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::integer::{ByteGrid, ConvWeights, PerChannel, Requantize, Residual, conv, conv_with};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const BATCH: usize = 32;

/// What weights and activations are made of.
#[derive(Clone, Copy)]
struct Bits(u32);

impl Bits {
    fn grid(self) -> ByteGrid {
        ByteGrid { scale: 0.05, zero_point: 0, low: 0, high: (1 << self.0) - 1 }
    }

    fn weight(self, i: usize) -> i8 {
        let levels = (1 << self.0) - 1;
        (i * 7919 % levels) as i8 - (levels / 2) as i8
    }
}

struct Layer {
    shape: ConvShape,
    weights: ConvWeights,
    multiplier: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    has_residual: bool,
    grid: ByteGrid,
}

impl Layer {
    fn new(bits: Bits, size: usize, c_in: usize, c_out: usize, stride: usize, has_residual: bool) -> Self {
        let shape = ConvShape::square(BATCH, size, c_in, c_out, 3, stride);
        let w: Vec<i8> = (0..shape.weight_len()).map(|i| bits.weight(i)).collect();
        let per_channel = |f: f32| vec![f; c_out];
        Layer {
            shape,
            weights: ConvWeights::for_inputs(&shape, &w, bits.grid().high as u8),
            multiplier: per_channel(1e-4),
            a: per_channel(1.3),
            b: per_channel(0.1),
            has_residual,
            grid: bits.grid(),
        }
    }

    fn run(&self, x: &[u8], residual: &[u8], out: &mut [u8]) {
        let residual = self.has_residual.then_some((&residual[..self.shape.output_len()], self.grid));
        let (x, out) = (&x[..self.shape.input_len()], &mut out[..self.shape.output_len()]);
        conv_with(&self.shape, x, 0, &self.weights, out, |first, acc, out| {
            let residual = match residual {
                Some((codes, grid)) => Residual::Codes(&codes[first..first + acc.len()], grid),
                None => Residual::None,
            };
            let requantize = Requantize {
                multiplier: &self.multiplier,
                per_channel: PerChannel::Affine(&self.a, &self.b),
                residual,
                clip: Some((0.0, f32::INFINITY)),
                grid: self.grid,
            };
            requantize.run(acc, out);
        });
    }
}

fn resnet20(bits: Bits) -> Vec<Layer> {
    let mut layers = vec![Layer::new(bits, 32, 3, 16, 1, false)];
    for (size, channels) in [(32, 16), (16, 32), (8, 64)] {
        for block in 0..3 {
            let down = block == 0 && channels > 16;
            let (size_in, c_in, stride) = if down { (size * 2, channels / 2, 2) } else { (size, channels, 1) };
            layers.push(Layer::new(bits, size_in, c_in, channels, stride, false));
            layers.push(Layer::new(bits, size, channels, channels, 1, true));
        }
    }
    layers
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("integer");
    for bits in [Bits(8), Bits(4)] {
        let codes: Vec<u8> = (0..BATCH * 32 * 32 * 16).map(|i| (i * 31 % (1 << bits.0)) as u8).collect();
        let mut other = codes.clone();
        for (name, size, channels) in [("conv 16@32", 32, 16), ("conv 32@16", 16, 32), ("conv 64@8", 8, 64)] {
            let layer = Layer::new(bits, size, channels, channels, 1, true);
            let mut acc = vec![0i32; layer.shape.output_len()];
            group.throughput(Throughput::Elements(layer.shape.macs()));
            let x = &codes[..layer.shape.input_len()];
            let name = format!("{name}, {} bits", bits.0);
            group.bench_function(&name, |b| b.iter(|| conv(&layer.shape, x, 0, &layer.weights, &mut acc)));
            group.bench_function(format!("{name}, to codes"), |b| b.iter(|| layer.run(&codes, &codes, &mut other)));
            black_box(&acc);
        }
        let layers = resnet20(bits);
        let mut buffers = [codes.clone(), codes.clone()];
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("resnet20, {} bits, images", bits.0), |b| {
            b.iter(|| {
                for layer in &layers {
                    let [x, out] = &mut buffers;
                    layer.run(x, &codes, out);
                    buffers.swap(0, 1);
                }
            })
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
