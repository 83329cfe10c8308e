//! The acceptance checks of the method, on the quantizer and the method as training uses them. The kernels' own tests hold
//! the fused passes to the naive ones.

use bitsmith_graph::Granularity;
use bitsmith_kernels::planes::reference;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::method::Part;
use crate::quantizer::{Quantizer, Rows};

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in −1..1.
    fn next(&mut self) -> f32 {
        (f64::from(self.0.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

const START: Start = Start { planes: 7, on: 1.0, off: -1.0, mask: 1.0, temperature: 3.0 };

fn weight(n: usize, rows: usize, seed: u64, start: Start) -> (CsqWeight, Vec<f32>) {
    let init = Random::new(seed).vec(n);
    let (per, layout) = match rows {
        1 => (Granularity::PerTensor, Rows::one(n)),
        _ => (Granularity::PerChannel { axis: 0 }, Rows::along(0, &[rows, n / rows])),
    };
    (CsqWeight::new(per, layout, &init, start, Range::MinMax), init)
}

fn layer(name: &str, n: usize) -> WeightLayer {
    let graph = bitsmith_graph::zoo::build("mlp", &Default::default()).unwrap().graph;
    let id = graph.value_ids().next().unwrap();
    WeightLayer {
        id,
        name: name.to_owned(),
        shape: vec![n / 4, 4],
        first: 0,
        channel_axis: 0,
        part: Part::Middle,
        macs: 1,
        costs: None,
    }
}

fn slots(csq: &mut Csq, sizes: &[usize]) -> Vec<Slot<CsqWeight>> {
    let mut out = vec![];
    for (i, &n) in sizes.iter().enumerate() {
        let layer = layer(&format!("layer{i}"), n);
        let quantizer = csq.weight(&layer, &Random::new(i as u64).vec(n)).unwrap();
        out.push(Slot { layer, quantizer });
    }
    out
}

fn clear(slots: &mut [Slot<CsqWeight>]) {
    slots.iter_mut().for_each(|s| s.quantizer.visit(&mut |p| p.clear_grad()));
}

/// Plain gradient descent on everything.
fn descend(slots: &mut [Slot<CsqWeight>], rate: f32) {
    for slot in slots.iter_mut() {
        slot.quantizer.visit(&mut |p| {
            for (x, g) in p.value.iter_mut().zip(&p.grad) {
                *x -= rate * g;
            }
        });
    }
    clear(slots);
}

/// ResNet-20's layers.
fn resnet20() -> Vec<usize> {
    let mut sizes = vec![432];
    sizes.extend([2304; 6]);
    sizes.extend([4608, 9216, 9216, 9216, 9216, 9216]);
    sizes.extend([18432, 36864, 36864, 36864, 36864, 36864, 640]);
    sizes
}

#[test]
fn steep_gates_give_the_hard_weights_and_these_lie_on_integers() {
    for planes in 1..=8 {
        let (mut q, _) = weight(96, 1, 5, Start { planes, ..START });
        let mut random = Random::new(planes as u64);
        let away = |x: f32| x + 0.1f32.copysign(x);
        for p in [&mut q.positive, &mut q.negative, &mut q.masks] {
            p.value.iter_mut().for_each(|x| *x = away(random.next()));
        }
        q.temperature = 1e4;
        let (mut soft, mut hard) = (vec![0.0; 96], vec![0.0; 96]);
        q.forward(&mut soft);
        q.show_hard = true;
        q.forward(&mut hard);
        let step = q.scale.value[0] / ((1u32 << planes) - 1) as f32;
        for (soft, hard) in soft.iter().zip(&hard) {
            assert!((soft - hard).abs() <= 1e-6 * q.scale.value[0], "{planes} planes: {soft} {hard}");
            let code = (hard / step).round_ties_even();
            assert!((hard / step - code).abs() <= code.abs() * f32::EPSILON, "{hard} is no multiple of {step}");
            assert!(code.abs() < f32::from(1u16 << planes));
        }
    }
}

#[test]
fn the_start_is_the_rounding_of_the_float_weights() {
    for planes in 1..=8 {
        let (mut q, init) = weight(60, 1, 9, Start { planes, ..START });
        q.show_hard = true;
        let mut hard = vec![0.0; 60];
        q.forward(&mut hard);
        let largest = init.iter().fold(0f32, |m, x| m.max(x.abs()));
        let levels = (1 << planes) - 1;
        let step = largest / levels as f32;
        for (hard, x) in hard.iter().zip(&init) {
            let code = bitsmith_kernels::numerics::quantize(*x, step, 0, -levels, levels);
            assert_eq!(*hard, q.scale.value[0] / levels as f32 * code as f32);
        }
    }
    // The published start: logits are the bits themselves, gates undecided, temperature 1.
    let (mut q, _) = weight(60, 1, 9, Start { planes: 8, on: 1.0, off: 0.0, mask: 0.0, temperature: 1.0 });
    let (mut soft, mut hard) = (vec![0.0; 60], vec![0.0; 60]);
    q.forward(&mut soft);
    q.masks.value.fill(1.0);
    q.show_hard = true;
    q.forward(&mut hard);
    for (soft, hard) in soft.iter().zip(&hard).filter(|(_, hard)| hard.abs() > 1e-3) {
        assert!((soft / hard - 0.115_529_3).abs() < 2e-6, "{}", soft / hard);
    }
}

#[test]
fn our_start_reproduces_the_weights_while_soft() {
    let mut csq = Csq::new(CsqOptions::default()).unwrap();
    let layer = layer("x", 64);
    let init = Random::new(3).vec(64);
    let mut q = csq.weight(&layer, &init).unwrap();
    let mut soft = vec![0.0; 64];
    q.forward(&mut soft);
    for (row, (soft, init)) in soft.chunks(4).zip(init.chunks(4)).enumerate() {
        let largest = init.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (soft, init) in soft.iter().zip(init) {
            assert!((soft - init).abs() < 0.6 * largest / 127.0, "row {row}: {soft} {init}");
        }
    }
}

/// Loss of the test below: Σ G W in double precision.
fn loss(q: &CsqWeight, g: &[f32]) -> f64 {
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let temperature = f64::from(q.temperature);
    let masks = q.masks.value.iter().map(|&m| reference::sigmoid(temperature * f64::from(m))).collect();
    let layer = reference::Layer {
        positive: wide(&q.positive.value),
        negative: wide(&q.negative.value),
        masks,
        scale: wide(&q.scale.value),
        temperature,
    };
    reference::forward(&layer).weights.iter().zip(g).map(|(w, g)| w * f64::from(*g)).sum()
}

#[test]
fn gradients_match_central_differences() {
    for temperature in [1.0, 7.0, 40.0] {
        let (mut q, _) = weight(12, 3, 2, Start { planes: 3, temperature, ..START });
        let mut random = Random::new(1);
        for p in [&mut q.positive, &mut q.negative, &mut q.masks] {
            // Within reach of the sigmoid's slope at every temperature.
            p.value.iter_mut().for_each(|x| *x = random.next() * 3.0 / temperature);
        }
        let g = random.vec(12);
        let mut w = vec![0.0; 12];
        q.forward(&mut w);
        q.backward(&g);
        let params = [q.positive.clone(), q.negative.clone(), q.masks.clone(), q.scale.clone()];
        for (which, param) in params.iter().enumerate() {
            let largest = param.grad.iter().fold(0f32, |m, x| m.max(x.abs()));
            for i in 0..param.value.len() {
                let at = |delta: f32| {
                    let mut q = q.clone();
                    let p =
                        [&mut q.positive, &mut q.negative, &mut q.masks, &mut q.scale].into_iter().nth(which).unwrap();
                    p.value[i] += delta;
                    let moved = f64::from(p.value[i]);
                    (loss(&q, &g), moved)
                };
                // The step is small against 1/β, and what f32 really moved is what is divided by.
                let h = 0.01 / temperature;
                let ((up, x_up), (down, x_down)) = (at(h), at(-h));
                let expected = (up - down) / (x_up - x_down);
                let error = (f64::from(param.grad[i]) - expected).abs();
                // 1e-3 relative; differences below 1e-4 of the largest gradient are the step's own truncation error.
                assert!(
                    error < 1e-3 * expected.abs() + 1e-4 * f64::from(largest),
                    "β {temperature} {} {i}: {} {expected}",
                    param.name,
                    param.grad[i]
                );
            }
        }
    }
}

#[test]
fn the_published_penalty_starts_at_six_tenths() {
    let options = CsqOptions { planes: 8, target_bits: 2.0, parity: Parity::PublishedCode, ..Default::default() };
    let mut csq = Csq::new(options).unwrap();
    let mut slots = slots(&mut csq, &resnet20());
    // The published count takes an undecided gate for an open one; ours only counts what would stay after hardening.
    slots.iter_mut().for_each(|s| s.quantizer.masks.value.fill(1e-9));
    assert_eq!(csq.sizes(&slots).iter().map(|s| s.1).sum::<usize>(), 160);
    let value = csq.penalty(&mut slots);
    assert!((value - 0.6).abs() < 1e-6, "{value}");
    // λ ΔS β m (1 − m) with ΔS held constant, at β = 1 and m = 1/2.
    for slot in &slots {
        assert!(slot.quantizer.masks.grad.iter().all(|g| (g - 0.01 * 0.75 * 0.25).abs() < 1e-8));
    }
    for (open, sign) in [(41, 1.0), (40, 0.0), (39, -1.0)] {
        clear(&mut slots);
        for (i, m) in slots.iter_mut().flat_map(|s| &mut s.quantizer.masks.value).enumerate() {
            *m = if i < open { 0.1 } else { -0.1 };
        }
        let value = csq.penalty(&mut slots);
        assert!(value * sign > 0.0 || (sign == 0.0 && value == 0.0), "{open} open: {value}");
    }
}

#[test]
fn gates_rise_below_the_target_and_fall_above_it() {
    for pressure in [Pressure::All, Pressure::Lowest] {
        let mut csq = Csq::new(CsqOptions { target_bits: 3.0, pressure, ..Default::default() }).unwrap();
        let mut slots = slots(&mut csq, &[64, 256]);
        for (start, rises) in [(-0.05, true), (0.05, false)] {
            slots.iter_mut().for_each(|s| s.quantizer.masks.value.fill(start));
            clear(&mut slots);
            csq.penalty(&mut slots);
            descend(&mut slots, 0.1);
            for slot in &slots {
                let q = &slot.quantizer;
                assert!(q.masks.value.iter().any(|&m| m != start));
                for &m in &q.masks.value {
                    assert!(if rises { m >= start } else { m <= start }, "{pressure:?} from {start}: {m}");
                }
            }
        }
    }
}

#[test]
fn without_a_task_the_mean_settles_at_the_target() {
    for (target, start) in [(3.0, 1.0), (5.0, -0.2)] {
        let mut csq = Csq::new(CsqOptions { target_bits: target, edge_bits: 0, ..Default::default() }).unwrap();
        let mut slots = slots(&mut csq, &resnet20());
        for slot in &mut slots {
            slot.quantizer.masks.value[1..].fill(start);
        }
        for _ in 0..4000 {
            csq.penalty(&mut slots);
            for slot in &mut slots {
                let masks = &mut slot.quantizer.masks;
                masks.value.iter_mut().zip(&masks.grad).for_each(|(m, g)| *m -= 0.1 * g);
                masks.clear_grad();
            }
            csq.after_update(&mut slots);
        }
        let mean = csq.budget.mean(&csq.sizes(&slots));
        assert!((mean - target).abs() < 0.6, "from {start}: {mean} for {target}");
    }
}

#[test]
fn twins_stay_opposite() {
    // A pair of undecided logits receives opposite gradients, so that their sum stays what it is: zero.
    let (mut q, _) = weight(32, 1, 4, Start { planes: 4, on: 0.0, off: 0.0, ..START });
    let mut random = Random::new(8);
    let mut w = vec![0.0; 32];
    for _ in 0..200 {
        q.forward(&mut w);
        q.backward(&random.vec(32));
        q.visit(&mut |p| {
            if p.group == crate::param::Group::Bit {
                p.value.iter_mut().zip(&p.grad).for_each(|(x, g)| *x -= 0.5 * g);
            }
            p.clear_grad();
        });
    }
    let moved = q.positive.value.iter().any(|x| x.abs() > 0.05);
    assert!(moved && q.positive.value.iter().zip(&q.negative.value).all(|(p, q)| (p + q).abs() < 1e-6));
}

#[test]
fn a_closed_plane_changes_nothing_else() {
    let (mut q, _) = weight(40, 2, 6, Start { planes: 4, ..START });
    q.gates_fixed = true;
    q.masks.value[2] = -1.0;
    let g = Random::new(2).vec(40);
    let run = |q: &CsqWeight| {
        let mut q = q.clone();
        let mut w = vec![0.0; 40];
        q.forward(&mut w);
        q.backward(&g);
        let outer = |p: &crate::param::Param| [&p.grad[..80], &p.grad[120..]].concat();
        (w, outer(&q.positive), outer(&q.negative), q.scale.grad.clone())
    };
    let before = run(&q);
    let mut random = Random::new(3);
    q.positive.value[80..120].iter_mut().for_each(|x| *x = random.next());
    assert_eq!(before, run(&q));
}

#[test]
fn a_refit_keeps_soft_weights_near_and_hard_weights_best() {
    for k in 1..=4 {
        let (mut q, init) = weight(400, 4, 12, START);
        q.refit(&init, k, 1.0, 3.0, Range::Mse);
        let (mut soft, mut hard) = (vec![0.0; 400], vec![0.0; 400]);
        q.forward(&mut soft);
        q.show_hard = true;
        q.forward(&mut hard);
        let error = |w: &[f32]| w.iter().zip(&init).map(|(w, x)| f64::from((w - x) * (w - x))).sum::<f64>();
        crate::blocks::fit::preview(&mut q, &init, k, Range::Mse);
        let mut best = vec![0.0; 400];
        q.forward(&mut best);
        for ((hard, best), init) in hard.iter().zip(&best).zip(&init) {
            assert!((hard - best).abs() < 1e-6, "{k} planes: {init} becomes {hard}, not {best}");
        }
        assert!(error(&soft) < error(&hard) * 1.2, "{k}: {} {}", error(&soft), error(&hard));
    }
}

#[test]
fn hardening_is_exact_and_survives_the_file_format() {
    for (seed, mask) in [(1, 0b1111000_u32), (2, 0b1010100), (3, 0b0000001), (4, 0)] {
        let (mut q, _) = weight(60, 3, seed, START);
        for (b, m) in q.masks.value.iter_mut().enumerate() {
            *m = if mask >> (6 - b) & 1 == 1 { 1.0 } else { -1.0 };
        }
        // Digits of both signs, so that codes need projecting.
        let mut random = Random::new(seed);
        q.positive.value.iter_mut().for_each(|x| *x = random.next());
        q.negative.value.iter_mut().for_each(|x| *x = random.next());
        q.harden().unwrap();
        let mut w = vec![0.0; 60];
        q.forward(&mut w);
        let params = q.qparams().unwrap();
        params.check(3).unwrap();
        assert!(params.spec.bits <= mask.count_ones() as u8 + 1);
        for (i, w) in w.iter().enumerate() {
            assert_eq!(params.decode(params.encode(*w, i / 20), i / 20), *w, "mask {mask:07b}");
        }
        if mask == 0 {
            assert!(w.iter().all(|w| *w == 0.0) && q.stored_bits() == 0.0);
        }
    }
}

#[test]
fn hardening_contiguous_planes_moves_nothing() {
    let (mut q, init) = weight(120, 4, 7, START);
    q.refit(&init, 3, 1.0, 500.0, Range::Mse);
    let (mut soft, mut hard) = (vec![0.0; 120], vec![0.0; 120]);
    q.show_hard = true;
    q.forward(&mut soft);
    q.show_hard = false;
    assert!(!q.harden().unwrap());
    q.forward(&mut hard);
    for (soft, hard) in soft.iter().zip(&hard) {
        assert!((soft - hard).abs() <= 2.0 * f32::EPSILON * soft.abs(), "{soft} {hard}");
    }
}

#[test]
fn a_search_that_ends_above_its_target_is_closed_to_it() {
    let mut csq = Csq::new(CsqOptions { target_bits: 3.0, ..Default::default() }).unwrap();
    let mut slots = slots(&mut csq, &[64, 256, 128, 32]);
    // The second layer hurts most when it changes, the others not at all.
    let before: Vec<Vec<f32>> = slots.iter_mut().map(|s| s.quantizer.soft_weights()).collect();
    let mut trial = |slots: &mut [Slot<CsqWeight>]| {
        let mut w = vec![0.0; 256];
        slots[1].quantizer.forward(&mut w);
        Ok(w.iter().zip(&before[1]).map(|(a, b)| f64::from((a - b) * (a - b))).sum())
    };
    let log = csq.freeze_scheme(&mut slots, &mut trial).unwrap();
    let mean = csq.budget.mean(&csq.sizes(&slots));
    assert!(mean <= 3.0 && mean > 2.5, "{mean}");
    assert!(slots[1].quantizer.planes() > slots[0].quantizer.planes(), "{log:?}");
    assert!(log.iter().any(|l| l.starts_with("closed plane")) && log[0].contains("8.000"), "{log:?}");
    csq.finish(&mut slots).unwrap();
    assert!(slots.iter().all(|s| s.quantizer.stage == Stage::Hard));
}

#[test]
fn a_large_layer_does_not_vanish_for_a_small_excess() {
    let options = CsqOptions { target_bits: 1.56, floor_bits: 0, edge_bits: 0, ..Default::default() };
    let mut csq = Csq::new(options).unwrap();
    let mut slots = slots(&mut csq, &[64, 64, 4096]);
    let mut planes = vec![1, 1, 1];
    let targets: Vec<Vec<f32>> = slots.iter_mut().map(|s| s.quantizer.soft_weights()).collect();
    // Closing any layer costs something, the large one most, though least per bit.
    let mut trial = |slots: &mut [Slot<CsqWeight>]| {
        let mut loss = 0.0;
        for (slot, price) in slots.iter_mut().zip([1.0, 1.1, 8.0]) {
            let mut w = vec![0.0; slot.quantizer.len()];
            slot.quantizer.forward(&mut w);
            loss += if w.iter().all(|w| *w == 0.0) { price } else { 0.0 };
        }
        Ok(loss)
    };
    let budget = csq.budget;
    fit_budget(&mut slots, targets, &mut planes, 7, &budget, Range::Mse, &mut trial).unwrap();
    assert_eq!(planes, [0, 0, 1]);
}

#[test]
fn impossible_targets_are_refused() {
    for (target, word) in [(0.0, "target_bits = 0"), (40.0, "target_bits = 40"), (f64::NAN, "target_bits = NaN")] {
        let error = Csq::new(CsqOptions { target_bits: target, ..Default::default() }).unwrap_err().to_string();
        assert!(error.starts_with(word), "{error}");
    }
    let mut csq = Csq::new(CsqOptions { target_bits: 1.5, ..Default::default() }).unwrap();
    let mut slots = slots(&mut csq, &[64]);
    assert!(csq.begin(&mut slots).unwrap_err().to_string().contains("lower edge_bits or floor_bits"));
}

#[test]
fn weights_that_learn_on_start_at_their_codes() {
    let options = CsqOptions { polish: Polish::Weights, target_bits: 3.0, edge_bits: 0, ..Default::default() };
    let mut csq = Csq::new(options).unwrap();
    let mut slots = slots(&mut csq, &[64, 256]);
    for (slot, k) in slots.iter_mut().zip([2, 3]) {
        let target = slot.quantizer.soft_weights();
        slot.quantizer.refit(&target, k, 1.0, 40.0, Range::Mse);
        slot.quantizer.show_hard = true;
    }
    let shown = |slots: &mut [Slot<CsqWeight>]| -> Vec<Vec<f32>> {
        let weights = |s: &mut Slot<CsqWeight>| {
            let mut w = vec![0.0; s.quantizer.len()];
            s.quantizer.forward(&mut w);
            w
        };
        slots.iter_mut().map(weights).collect()
    };
    let decided = shown(&mut slots);
    csq.stage = Stage::Frozen;
    csq.harden_all(&mut slots).unwrap();
    let after = shown(&mut slots);
    let close = |a: &f32, b: &f32| (a - b).abs() <= 1e-6;
    assert!(decided.iter().flatten().zip(after.iter().flatten()).all(|(a, b)| close(a, b)));
    assert_eq!(slots.iter().map(|s| s.quantizer.planes()).collect::<Vec<_>>(), [2, 3]);
    // They have latent weights with gradients now, and lie on their grid.
    let mut names = vec![];
    slots[0].quantizer.visit(&mut |p| names.push(p.name));
    assert_eq!(names, ["latent", "steps"]);
    let params = slots[1].quantizer.qparams().unwrap();
    assert!(after[1].iter().enumerate().all(|(i, w)| params.decode(params.encode(*w, i / 4), i / 4) == *w));
    // A checkpoint restores the same kind of tensor.
    let state = csq.state(&slots);
    let mut again = Csq::new(csq.options.clone()).unwrap();
    let mut empty = super::tests::slots(&mut again, &[64, 256]);
    again.restore(&mut empty, &state).unwrap();
    let mut names = vec![];
    empty[0].quantizer.visit(&mut |p| names.push((p.name, p.value.len())));
    assert_eq!(names, [("latent", 64), ("steps", 16)]);
}
