//! The fused kernels against the naive ones, the naive ones against finite differences, and CSQ's acceptance checks.

use super::{
    Gate, GateGradients, Gates, LogitGradients, Logits, Sgd, TrainableLogits, backward, backward_sgd, forward,
    hard_codes, init_logits, mask_logit_gradient, mask_values, nearest_on_planes,
    reference::{self, Layer},
};
use crate::isa::Isa;
use crate::numerics::{dequantize, quantize};
use crate::testing::{UNIT, bitwise, on_every_level};
use proptest::prelude::*;

/// Deterministic numbers in −1..1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32).collect()
    }
}

fn layer(n: usize, planes: usize, channels: usize, temperature: f32, seed: u64) -> Layer<f32> {
    let mut noise = Noise(seed);
    Layer {
        positive: noise.vec(planes * n),
        negative: noise.vec(planes * n),
        masks: (0..planes).map(|_| noise.next().abs() as f32).collect(),
        scale: (0..channels).map(|_| 0.1 + noise.next().abs() as f32).collect(),
        temperature,
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

fn to_f64(l: &Layer<f32>) -> Layer<f64> {
    Layer {
        positive: widen(&l.positive),
        negative: widen(&l.negative),
        masks: widen(&l.masks),
        scale: widen(&l.scale),
        temperature: f64::from(l.temperature),
    }
}

fn logits(l: &Layer<f32>) -> Logits<'_> {
    Logits { positive: &l.positive, negative: &l.negative }
}

fn gates(l: &Layer<f32>, bits: Gate) -> Gates<'_> {
    Gates { masks: &l.masks, scale: &l.scale, temperature: l.temperature, bits }
}

fn fused_forward(l: &Layer<f32>, n: usize, bits: Gate) -> Vec<f32> {
    let mut w = vec![f32::NAN; n];
    forward(&logits(l), &gates(l, bits), &mut w);
    w
}

fn fused_backward(l: &Layer<f32>, grad_w: &[f32], bits: Gate) -> reference::Gradients<f32> {
    let nan = |n: usize| vec![f32::NAN; n];
    let mut g = reference::Gradients {
        positive: nan(l.positive.len()),
        negative: nan(l.positive.len()),
        masks: nan(l.masks.len()),
        scale: nan(l.scale.len()),
    };
    backward(
        &logits(l),
        &gates(l, bits),
        grad_w,
        &mut LogitGradients { positive: &mut g.positive, negative: &mut g.negative },
        &mut GateGradients { masks: &mut g.masks, scale: &mut g.scale },
    );
    g
}

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * want.abs() + floor, "{what}[{i}]: {got} but {want}");
    }
}

/// (weights, channels): tile and chunk borders, rows shorter and longer than a tile, depthwise rows.
const SHAPES: [(usize, usize); 16] = [
    (0, 1),
    (0, 4),
    (1, 1),
    (15, 1),
    (16, 2),
    (17, 1),
    (511, 1),
    (512, 1),
    (513, 1),
    (4095, 1),
    (4097, 1),
    (9001, 1),
    (432, 16),
    (9 * 577, 577),
    (3 * 5000, 3),
    (2 * 613, 2),
];

/// Forward and backward of soft planes within the bounds that `docs/numerics.md` derives.
fn check_soft(l: &Layer<f32>, n: usize) {
    let wide = to_f64(l);
    let saved = reference::forward(&wide);
    let s = l.scale.iter().fold(0f64, |a, &b| a.max(b.into()));
    let (planes, temperature) = (l.masks.len() as f64, f64::from(l.temperature));
    // Of a difference of sigmoids: 7 roundings of numbers up to 1, and two exponentials that each count a quarter.
    let of_difference = 7.0 * UNIT + 0.5 * 1.5e-7;
    // Relative to the full scale: differences p − q cancel. Shares and gates sum to 1 at most.
    let of_sum = of_difference + (planes + 2.0) * UNIT;
    assert_close("W", &fused_forward(l, n, Gate::Soft), &saved.weights, 0.0, (of_sum + UNIT) * s);

    let grad_w = Noise(9).vec(n);
    let want = reference::backward(&wide, &saved, &widen(&grad_w));
    let got = fused_backward(l, &grad_w, Gate::Soft);
    // The naive 1 − p has no more digits than f64 leaves.
    let floor = 3e-16 * temperature;
    // 16 roundings and an exponential; and the argument of exp is rounded, so its error grows with |βP|, and |P| is at most 1.
    let tolerance = (16.0 + temperature) * UNIT + 1.5e-7;
    assert_close("dP", &got.positive, &want.positive, tolerance, floor);
    assert_close("dQ", &got.negative, &want.negative, tolerance, floor);
    // Sums cancel: relative to the sum of magnitudes; 16 terms in f32, the rest in f64.
    let size: f64 = grad_w.iter().map(|g| f64::from(g.abs())).sum();
    assert_close("dm", &got.masks, &want.masks, 0.0, (of_difference + 20.0 * UNIT) * s * size);
    assert_close("ds", &got.scale, &want.scale, 0.0, (of_sum + 18.0 * UNIT) * size);
}

#[test]
fn fused_equals_naive() {
    for (case, &(n, channels)) in SHAPES.iter().enumerate() {
        for planes in [1, 2, 7, 8] {
            for temperature in [1.0, 7.0, 40.0, 200.0] {
                check_soft(&layer(n, planes, channels, temperature, case as u64 * 31 + planes as u64), n);
            }
        }
    }
}

/// Acceptance check 3, in double precision: the closed forms are the derivatives.
#[test]
fn gradients_match_finite_differences() {
    let (n, planes, channels) = (12, 4, 3);
    for temperature in [1.0, 7.0, 40.0] {
        let mut l = layer(n, planes, channels, temperature, 5);
        // Keep βx moderate so that central differences have digits left.
        l.positive.iter_mut().chain(&mut l.negative).for_each(|x| *x *= 3.0 / temperature);
        let mask_logits: Vec<f32> = Noise(6).vec(planes).iter().map(|m| m * 3.0 / temperature).collect();
        let l64 = to_f64(&l);
        let grad_w = widen(&Noise(8).vec(n));
        let penalty = 0.013;
        let beta = f64::from(temperature);
        let with_masks = |l: &Layer<f64>, m: &[f64]| Layer {
            masks: m.iter().map(|&m| reference::sigmoid(beta * m)).collect(),
            ..l.clone()
        };
        let loss = |l: &Layer<f64>, m: &[f64]| {
            let l = with_masks(l, m);
            let w = reference::forward(&l).weights;
            let task: f64 = w.iter().zip(&grad_w).map(|(w, g)| w * g).sum();
            task + penalty * l.masks.iter().sum::<f64>()
        };
        let m64 = widen(&mask_logits);
        let opened = with_masks(&l64, &m64);
        let grads = reference::backward(&opened, &reference::forward(&opened), &grad_w);

        let h = 1e-5 / beta;
        let check = |what: &str, i: usize, analytic: f64, shifted: &dyn Fn(f64) -> f64| {
            let numeric = (shifted(h) - shifted(-h)) / (2.0 * h);
            assert!(
                (analytic - numeric).abs() <= 1e-5 * numeric.abs() + 1e-8,
                "{what}[{i}] at temperature {temperature}: {analytic} but {numeric}"
            );
        };
        for i in 0..planes * n {
            let shift = |h: f64| {
                let mut l = l64.clone();
                l.positive[i] += h;
                loss(&l, &m64)
            };
            check("P", i, grads.positive[i], &shift);
            let shift = |h: f64| {
                let mut l = l64.clone();
                l.negative[i] += h;
                loss(&l, &m64)
            };
            check("Q", i, grads.negative[i], &shift);
        }
        for c in 0..channels {
            let shift = |h: f64| {
                let mut l = l64.clone();
                l.scale[c] += h;
                loss(&l, &m64)
            };
            check("s", c, grads.scale[c], &shift);
        }
        // The f32 functions on the way from gate values to logits.
        let grad_masks: Vec<f32> = grads.masks.iter().map(|&g| g as f32).collect();
        let mut grad_m = vec![0.0; planes];
        mask_logit_gradient(&mask_logits, &grad_masks, penalty as f32, temperature, Gate::Soft, &mut grad_m);
        for b in 0..planes {
            let shift = |h: f64| {
                let mut m = m64.clone();
                m[b] += h;
                loss(&l64, &m)
            };
            let numeric = (shift(h) - shift(-h)) / (2.0 * h);
            assert!((f64::from(grad_m[b]) - numeric).abs() <= 1e-3 * numeric.abs() + 1e-6);
        }
        // And the fused kernel in f32, to 1e-3.
        l.masks = opened.masks.iter().map(|&m| m as f32).collect();
        let narrow: Vec<f32> = grad_w.iter().map(|&g| g as f32).collect();
        let fused = fused_backward(&l, &narrow, Gate::Soft);
        assert_close("dP", &fused.positive, &grads.positive, 1e-3, 1e-7);
        assert_close("dQ", &fused.negative, &grads.negative, 1e-3, 1e-7);
        assert_close("ds", &fused.scale, &grads.scale, 1e-3, 1e-6);
        assert_close("dm", &fused.masks, &grads.masks, 1e-3, 1e-6);
    }
}

/// Acceptance check 1.
#[test]
fn soft_weights_tend_to_hard_ones_on_the_grid() {
    for planes in 1..=8usize {
        let n = 700;
        let mut l = layer(n, planes, 1, 1e4, planes as u64);
        let mut mask_logits = Noise(3).vec(planes);
        for x in l.positive.iter_mut().chain(&mut l.negative).chain(&mut mask_logits) {
            *x = x.signum() * (0.1 + x.abs());
        }
        mask_values(&mask_logits, l.temperature, Gate::Soft, &mut l.masks);
        let soft = fused_forward(&l, n, Gate::Soft);
        mask_values(&mask_logits, l.temperature, Gate::Hard, &mut l.masks);
        let hard = fused_forward(&l, n, Gate::Hard);
        let mut codes = vec![0i16; n];
        hard_codes(&logits(&l), &mask_logits, &mut codes);
        let s = l.scale[0];
        let step = s / ((1 << planes) - 1) as f32;
        for i in 0..n {
            assert!((soft[i] - hard[i]).abs() <= 1e-6 * s);
            assert_eq!(hard[i].to_bits(), dequantize(codes[i].into(), step, 0).to_bits());
            assert!(codes[i].unsigned_abs() < 1 << planes);
        }
    }
}

/// Acceptance check 2.
#[test]
fn initial_logits_reproduce_the_rounded_weights() {
    let mut noise = Noise(12);
    for (n, channels) in [(501, 1), (96, 4)] {
        for planes in 1..=8usize {
            let weights = noise.vec(n);
            let row = n / channels;
            let scale: Vec<f32> = weights.chunks(row).map(|w| w.iter().fold(0f32, |a, w| a.max(w.abs()))).collect();
            let (mut p, mut q) = (vec![0.0; planes * n], vec![0.0; planes * n]);
            let largest = (1 << planes) - 1;
            let masks = vec![1.0; planes];
            for (on, off) in [(0.7, -0.7), (1.0, 0.0)] {
                init_logits(&weights, &scale, planes, (on, off), &mut p, &mut q);
                let logits = Logits { positive: &p, negative: &q };
                let gates = Gates { masks: &masks, scale: &scale, temperature: 1.0, bits: Gate::Hard };
                let mut hard = vec![0.0; n];
                forward(&logits, &gates, &mut hard);
                for i in 0..n {
                    let step = scale[i / row] / largest as f32;
                    let want = dequantize(quantize(weights[i], step, 0, -largest, largest), step, 0);
                    assert_eq!(hard[i].to_bits(), want.to_bits());
                }
            }
            // The published start (logits 1 and 0, gates undecided, β = 1) shrinks the weights by a known factor.
            let half = vec![0.5; planes];
            let gates = Gates { masks: &half, scale: &scale, temperature: 1.0, bits: Gate::Soft };
            let (mut soft, mut hard) = (vec![0.0; n], vec![0.0; n]);
            forward(&Logits { positive: &p, negative: &q }, &gates, &mut soft);
            let gates = Gates { masks: &masks, bits: Gate::Hard, ..gates };
            forward(&Logits { positive: &p, negative: &q }, &gates, &mut hard);
            for i in 0..n {
                assert!((soft[i] - 0.115_529_3 * hard[i]).abs() < 1e-6);
            }
        }
    }
}

/// Acceptance check 8.
#[test]
fn an_undecided_pair_stays_antisymmetric() {
    let n = 600;
    let mut l = layer(n, 3, 1, 3.0, 1);
    l.positive.fill(0.0);
    l.negative.fill(0.0);
    let (mut vp, mut vq) = (vec![0.0; 3 * n], vec![0.0; 3 * n]);
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: false };
    let mut noise = Noise(2);
    for _ in 0..50 {
        let grad_w = noise.vec(n);
        let Layer { positive, negative, masks, scale, temperature } = &mut l;
        backward_sgd(
            &mut TrainableLogits { positive, negative, velocity_positive: &mut vp, velocity_negative: &mut vq },
            &Gates { masks, scale, temperature: *temperature, bits: Gate::Soft },
            &grad_w,
            &sgd,
            &mut GateGradients { masks: &mut [0.0; 3], scale: &mut [0.0] },
        );
    }
    assert!(l.positive.iter().any(|p| p.abs() > 0.1));
    assert!(l.positive.iter().zip(&l.negative).all(|(p, q)| (p + q).abs() < 1e-6));
}

/// Acceptance check 9: a plane that is skipped may hold anything, even NaN; the rest has the bits it has without skipping.
#[test]
fn closed_planes_change_nothing() {
    let n = 1000;
    for bits in [Gate::Soft, Gate::Hard] {
        let mut l = layer(n, 8, 4, 7.0, 3);
        if bits == Gate::Hard {
            l.masks.fill(1.0);
        }
        l.masks[2] = 0.0;
        l.masks[5] = 0.0;
        let grad_w = Noise(4).vec(n);
        let w = fused_forward(&l, n, bits);
        let g = fused_backward(&l, &grad_w, bits);
        assert!(g.positive[2 * n..3 * n].iter().all(|&x| x == 0.0) && g.masks[5] == 0.0);
        // Not skipped, contributing zeros: a gate so small that its products vanish.
        let mut open = l.clone();
        if bits == Gate::Soft {
            open.masks[2] = f32::from_bits(1);
            open.masks[5] = f32::from_bits(1);
            let (w2, g2) = (fused_forward(&open, n, bits), fused_backward(&open, &grad_w, bits));
            assert!(bitwise(&w, &w2) && bitwise(&g.scale, &g2.scale));
            for b in [0, 1, 3, 4, 6, 7] {
                assert!(bitwise(&g.positive[b * n..][..n], &g2.positive[b * n..][..n]));
                assert!(bitwise(&g.negative[b * n..][..n], &g2.negative[b * n..][..n]));
                assert_eq!(g.masks[b].to_bits(), g2.masks[b].to_bits());
            }
        }
        for b in [2, 5] {
            l.positive[b * n..(b + 1) * n].fill(f32::NAN);
            l.negative[b * n..(b + 1) * n].fill(f32::INFINITY);
        }
        assert!(bitwise(&w, &fused_forward(&l, n, bits)));
        let g2 = fused_backward(&l, &grad_w, bits);
        assert!(bitwise(&g.positive, &g2.positive) && bitwise(&g.masks, &g2.masks) && bitwise(&g.scale, &g2.scale));
    }
}

#[test]
fn fused_optimiser_equals_separate_steps() {
    for nesterov in [false, true] {
        let (n, planes) = (5000, 8);
        let mut l = layer(n, planes, 1, 5.0, 8);
        l.masks[6] = 0.0;
        let before = l.clone();
        let grad_w = Noise(1).vec(n);
        let g = fused_backward(&l, &grad_w, Gate::Soft);
        let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 1e-3, nesterov };
        let (mut vp, mut vq) = (Noise(7).vec(planes * n), Noise(8).vec(planes * n));
        let step = |x: &mut [f32], v: &mut [f32], g: &[f32]| {
            for i in (0..x.len()).filter(|i| i / n != 6) {
                let g = g[i] + sgd.weight_decay * x[i];
                v[i] = sgd.momentum * v[i] + g;
                x[i] -= sgd.learning_rate * if nesterov { sgd.momentum * v[i] + g } else { v[i] };
            }
        };
        let (mut p, mut q, mut wp, mut wq) = (before.positive.clone(), before.negative.clone(), vp.clone(), vq.clone());
        step(&mut p, &mut wp, &g.positive);
        step(&mut q, &mut wq, &g.negative);
        let (mut grad_m, mut grad_s) = ([0.0; 8], [0.0]);
        let Layer { positive, negative, masks, scale, temperature } = &mut l;
        backward_sgd(
            &mut TrainableLogits { positive, negative, velocity_positive: &mut vp, velocity_negative: &mut vq },
            &Gates { masks, scale, temperature: *temperature, bits: Gate::Soft },
            &grad_w,
            &sgd,
            &mut GateGradients { masks: &mut grad_m, scale: &mut grad_s },
        );
        assert!(bitwise(&l.positive, &p) && bitwise(&l.negative, &q) && bitwise(&vp, &wp) && bitwise(&vq, &wq));
        assert!(bitwise(&grad_m, &g.masks) && bitwise(&grad_s, &g.scale));
    }
}

/// Hard bits: gradients of gates and scale from their definition.
#[test]
fn hard_gate_gradients_by_definition() {
    let (n, planes, channels) = (90, 3, 3);
    let mut l = layer(n, planes, channels, 1.0, 4);
    l.masks.copy_from_slice(&[1.0, 0.0, 1.0]);
    let grad_w = Noise(5).vec(n);
    let g = fused_backward(&l, &grad_w, Gate::Hard);
    let digit = |b: usize, i: usize| {
        f64::from(u8::from(l.positive[b * n + i] > 0.0)) - f64::from(u8::from(l.negative[b * n + i] > 0.0))
    };
    let share = [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0];
    let row = n / channels;
    for b in [0, 2] {
        let want: f64 =
            (0..n).map(|i| f64::from(grad_w[i]) * f64::from(l.scale[i / row]) * share[b] * digit(b, i)).sum();
        assert!((f64::from(g.masks[b]) - want).abs() < 1e-5);
    }
    for c in 0..channels {
        let want: f64 = (c * row..(c + 1) * row)
            .map(|i| f64::from(grad_w[i]) * (share[0] * digit(0, i) + share[2] * digit(2, i)))
            .sum();
        assert!((f64::from(g.scale[c]) - want).abs() < 1e-5);
    }
    assert!(g.positive.iter().chain(&g.negative).all(|&g| g == 0.0));
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let n = 50_000;
    let l = layer(n, 8, 1, 3.0, 17);
    let grad_w = Noise(18).vec(n);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (fused_forward(&l, n, Gate::Soft), fused_backward(&l, &grad_w, Gate::Soft)))
    };
    let ((w1, g1), (w3, g3)) = (run(1), run(3));
    assert!(bitwise(&w1, &w3) && bitwise(&g1.masks, &g3.masks) && bitwise(&g1.scale, &g3.scale));
    assert!(bitwise(&g1.positive, &g3.positive));
}

/// What a step of training leaves behind: weights, all gradients, and logits with their momentum after the fused update.
fn everything(l: &Layer<f32>, n: usize, bits: Gate) -> Vec<f32> {
    let mut l = l.clone();
    let grad_w = Noise(22).vec(n);
    let mut all = fused_forward(&l, n, bits);
    let reference::Gradients { positive, negative, masks, scale } = fused_backward(&l, &grad_w, bits);
    all.extend([positive, negative, masks, scale].concat());
    for nesterov in [false, true] {
        let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 1e-3, nesterov };
        let (mut vp, mut vq) = (Noise(7).vec(l.positive.len()), Noise(8).vec(l.positive.len()));
        let (mut grad_m, mut grad_s) = (vec![f32::NAN; l.masks.len()], vec![f32::NAN; l.scale.len()]);
        let Layer { positive, negative, masks, scale, temperature } = &mut l;
        backward_sgd(
            &mut TrainableLogits { positive, negative, velocity_positive: &mut vp, velocity_negative: &mut vq },
            &Gates { masks, scale, temperature: *temperature, bits },
            &grad_w,
            &sgd,
            &mut GateGradients { masks: &mut grad_m, scale: &mut grad_s },
        );
        all.extend([&l.positive[..], &l.negative, &vp, &vq, &grad_m, &grad_s].concat());
    }
    all
}

/// Every level gives the bits of the first, soft and hard: what holds for one holds for all.
fn check_levels(l: &Layer<f32>, n: usize) {
    for bits in [Gate::Soft, Gate::Hard] {
        let mut l = l.clone();
        if bits == Gate::Hard {
            l.masks.iter_mut().for_each(|m| *m = f32::from(u8::from(*m > 0.3)));
        }
        let mut first: Option<(Isa, Vec<f32>)> = None;
        on_every_level(|isa| {
            let got = everything(&l, n, bits);
            let (other, first) = first.get_or_insert_with(|| (isa, got.clone()));
            assert!(bitwise(first, &got), "{other:?} and {isa:?}: {n} weights, {} planes, {bits:?}", l.masks.len());
        });
    }
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    for (case, &(n, channels)) in SHAPES.iter().enumerate() {
        for planes in [1, 3, 8] {
            check_levels(&layer(n, planes, channels, 7.0, case as u64 + 21), n);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_layer(row in 0..700_usize, channels in 1..6_usize, planes in 1..=8_usize, temperature in 0.5..200.0_f32, seed: u64) {
        let n = row * channels;
        let l = layer(n, planes, channels, temperature, seed);
        check_soft(&l, n);
        check_levels(&l, n);
    }
}

#[test]
fn nearest_code_on_planes_is_nearest() {
    for mask in 0..=255u8 {
        let representable: Vec<i32> = (0..=255).filter(|v| v & !i32::from(mask) == 0).collect();
        for z in -255..=255i32 {
            let nearest = representable.iter().min_by_key(|v| ((z.abs() - **v).abs(), **v)).unwrap();
            assert_eq!(nearest_on_planes(z, mask), nearest * z.signum(), "{z} on {mask:08b}");
        }
    }
}
