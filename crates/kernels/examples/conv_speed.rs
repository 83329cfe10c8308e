//! Prints GFLOP/s of each convolution kernel on the shapes of ResNet-20 at batch 128 and some of ResNet-18 and
//! MobileNetV2, its share of this machine's peak, its ratio to the naive reference, and the speed of batch-norm: `cargo run --release -p bitsmith-kernels --example conv_speed [isa] [batch]`.

use bitsmith_kernels::activation::{self, Activation};
use bitsmith_kernels::conv::{self, ConvShape, Precision};
use bitsmith_kernels::{isa, norm, reference, roofline};
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(level) = arguments.first().and_then(|name| isa::Level::from_name(name))
        && isa::force(level).is_err()
    {
        eprintln!("this CPU has no {}", level.name());
    }
    let batch: usize = arguments.get(1).and_then(|b| b.parse().ok()).unwrap_or(128);
    let threads = rayon::current_num_threads();
    let isa = isa::Isa::current();
    let peak = roofline::float_ops(isa) * threads as f64;
    println!("{}, {threads} threads, peak {:.0} GFLOP/s, batch {batch}", isa.level().name(), peak / 1e9);

    // Size, channels in and out, kernel, stride, groups, and how often the network has it.
    let resnet20 = [
        ("stem 3>16 32x32", (32, 3, 16, 3, 1, 1), 1),
        ("3x3 16>16 32x32", (32, 16, 16, 3, 1, 1), 6),
        ("3x3 16>32 /2", (32, 16, 32, 3, 2, 1), 1),
        ("3x3 32>32 16x16", (16, 32, 32, 3, 1, 1), 5),
        ("3x3 32>64 /2", (16, 32, 64, 3, 2, 1), 1),
        ("3x3 64>64 8x8", (8, 64, 64, 3, 1, 1), 5),
    ];
    let others = [
        ("7x7 3>64 /2 224x224", (224, 3, 64, 7, 2, 1), 0),
        ("3x3 64>64 56x56", (56, 64, 64, 3, 1, 1), 0),
        ("3x3 256>256 14x14", (14, 256, 256, 3, 1, 1), 0),
        ("3x3 512>512 7x7", (7, 512, 512, 3, 1, 1), 0),
        ("1x1 96>24 56x56", (56, 96, 24, 1, 1, 1), 0),
        ("1x1 64>384 14x14", (14, 64, 384, 1, 1, 1), 0),
        ("depthwise 96 /2 112x112", (112, 96, 96, 3, 2, 96), 0),
        ("depthwise 384 14x14", (14, 384, 384, 3, 1, 384), 0),
    ];
    println!("| shape | times | forward | share | input grad | share | weight grad | share | ratios to reference |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut total = 0.0;
    for (name, (size, c_in, c_out, kernel, stride, groups), times) in resnet20.into_iter().chain(others) {
        // The large images at an eighth of the batch.
        let batch = if times == 0 { batch.div_ceil(8) } else { batch };
        let shape = ConvShape { groups, ..ConvShape::square(batch, size, c_in, c_out, kernel, stride) };
        let row = measure(&shape);
        let mut line = format!("| {name} | {times} |");
        for (i, seconds) in row.fast.iter().enumerate() {
            let flops = 2.0 * shape.macs() as f64 / seconds;
            line += &format!(" {:.2} ms, {:.0} GF/s | {:.0} % |", seconds * 1e3, flops / 1e9, 100.0 * flops / peak);
            // The gradient of the images is never asked for.
            if i != 1 || c_in != 3 {
                total += seconds * f64::from(times);
            }
        }
        println!("{line} {:.0}, {:.0}, {:.0} |", row.ratios[0], row.ratios[1], row.ratios[2]);
    }
    println!("sum of the convolutions of a ResNet-20 step: {:.1} ms", total * 1e3);
    norms(batch);
    let x: Vec<f32> = (0..1 << 16).map(|i| ((i * 7919) % 1009) as f32 / 150.0 - 3.0).collect();
    let (mut y, mut dx) = (x.clone(), x.clone());
    for act in [
        Activation::Relu,
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::GeluErf,
        Activation::GeluTanh,
    ] {
        let forward = best(|| activation::forward(act, &x, &mut y));
        let backward = best(|| activation::backward(act, &x, &mut dx));
        let per_element = |seconds: f64| seconds / x.len() as f64 * 1e9;
        println!(
            "{act:?}: {:.2} ns forward, {:.2} ns backward an element",
            per_element(forward),
            per_element(backward)
        );
    }
}

/// Prints what the passes of batch-norm + ReLU take on one activation, as bytes read and written per second.
fn norms(batch: usize) {
    for (size, channels) in [(32, 16), (16, 32), (8, 64)] {
        let n = batch * size * size * channels;
        let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        let (mut y, mut dx, mut dadd) = (x.clone(), x.clone(), x.clone());
        let ones = vec![1.0; channels];
        let (mut mean, mut var) = (ones.clone(), ones.clone());
        let megabytes = n as f64 * 4e-6;
        let stats = best(|| norm::batch_stats(&x, channels, &mut mean, &mut var));
        let affine = best(|| norm::affine_act(&x, &ones, &mean, None, Activation::Relu, &mut y));
        let saved = y.clone();
        let args = norm::Backward {
            y: &saved,
            factors: None,
            x: &x,
            add: None,
            mean: &mean,
            inv_std: &ones,
            gamma: &ones,
            beta: &ones,
            act: Activation::Relu,
            statistics: norm::Statistics::Batch,
        };
        let (mut dgamma, mut dbeta) = (ones.clone(), ones.clone());
        let plain = best(|| norm::backward(&args, &mut dx, &mut dgamma, &mut dbeta, None));
        let with_add = best(|| norm::backward(&args, &mut dadd, &mut dgamma, &mut dbeta, Some(&mut dx)));
        let show = |seconds: f64, passes: f64| {
            format!("{:.2} ms {:.0} GB/s", seconds * 1e3, passes * megabytes / seconds * 1e-3)
        };
        println!(
            "batch-norm {size}x{size}x{channels}: statistics {}, affine + relu {}, backward {}, with addend {}",
            show(stats, 1.0),
            show(affine, 2.0),
            show(plain, 7.0),
            show(with_add, 8.0)
        );
    }
}

struct Row {
    fast: [f64; 3],
    ratios: [f64; 3],
}

fn measure(shape: &ConvShape) -> Row {
    let values = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect() };
    let (x, w, dy) = (values(shape.input_len()), values(shape.weight_len()), values(shape.output_len()));
    let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
    let fast = [
        best(|| conv::forward(shape, &x, &w, None, &mut y)),
        best(|| conv::backward_input(shape, Precision::Full, &dy, &w, &mut dx)),
        best(|| conv::backward_weight(shape, Precision::Full, &x, &dy, &mut dw)),
    ];
    // The reference is slow: one image.
    let one = ConvShape { batch: 1, ..*shape };
    let (x, dy) = (&x[..one.input_len()], &dy[..one.output_len()]);
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * shape.batch as f64
    };
    let slow = [
        time(&mut || reference::conv::forward(&one, x, &w, None, &mut y[..one.output_len()])),
        time(&mut || reference::conv::backward_input(&one, dy, &w, &mut dx[..one.input_len()])),
        time(&mut || reference::conv::backward_weight(&one, x, dy, &mut dw)),
    ];
    Row { fast, ratios: std::array::from_fn(|i| slow[i] / fast[i]) }
}

/// The shortest of many runs in about a third of a second.
fn best(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
