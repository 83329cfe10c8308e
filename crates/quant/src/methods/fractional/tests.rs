//! The acceptance checks of the family, on the quantizer as training uses it. The gate's own are beside it.

use bitsmith_kernels::numerics::{dequantize, quantize};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::blocks::budget::Price;
use crate::blocks::searched::Search;
use crate::param::Param;
use crate::quantizer::{Quantizer, Rows};
use bitsmith_graph::Granularity;

const DOWN: Chain = Chain::Down { threshold: 0.01, initial: 0.99 };

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.4).collect()
}

fn pair(width: f64) -> PairWeight {
    PairWeight::new(Granularity::PerChannel { axis: 0 }, Rows::along(0, &[4, 15]), &values(60), width, (1, 7))
}

fn forward(q: &mut PairWeight, mix: f32) -> Vec<f32> {
    q.gate.set_draw(Draw { mix, slope: 1.0 });
    let mut out = vec![0.0; 60];
    q.forward(&mut out);
    out
}

fn param(q: &mut PairWeight, name: &str) -> Param {
    let mut found = None;
    q.visit(&mut |p| {
        if p.name == name {
            found = Some(p.clone());
        }
    });
    found.unwrap()
}

#[test]
fn the_ends_are_the_two_grids_and_the_mean_is_their_interpolation() {
    let mut q = pair(2.3);
    assert_eq!((q.gate.pair(), q.bits()), ((2, 3), 3.3));
    let (wide, narrow) = (forward(&mut q, 1.0), forward(&mut q, 0.0));
    let (wide_steps, narrow_steps) = (param(&mut q, "wide").value, param(&mut q, "narrow").value);
    for (i, x) in values(60).into_iter().enumerate() {
        let round = |step: f32, q: i32| dequantize(quantize(x, step, 0, -q, q), step, 0);
        assert_eq!((wide[i], narrow[i]), (round(wide_steps[i / 15], 7), round(narrow_steps[i / 15], 3)));
    }
    let mixed = forward(&mut q, 0.3);
    assert!((0..60).all(|i| (mixed[i] - (0.3 * wide[i] + 0.7 * narrow[i])).abs() < 1e-7));
    // 10⁴ draws average to the same.
    let (mut sum, share) = (0u32, 0.3);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..10_000 {
        let u = (f64::from(rng.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
        sum += Estimator::Gumbel.draw(share, u, 1.0).mix as u32;
    }
    assert!((f64::from(sum) / 1e4 - 0.3).abs() < 0.02);
}

#[test]
fn the_share_has_the_exact_gradient_of_the_soft_forward() {
    let grad: Vec<f32> = (0..60).map(|i| (i as f32 * 0.37).sin()).collect();
    let loss = |w: &[f32]| w.iter().zip(&grad).map(|(w, g)| f64::from(w * g)).sum::<f64>();
    let u = 0.3;
    for estimator in [Estimator::Interpolate, Estimator::GumbelSoft] {
        let mut q = pair(2.6);
        let draw = estimator.draw(q.gate.share(), u, 0.7);
        q.gate.set_draw(draw);
        let mut out = vec![0.0; 60];
        q.forward(&mut out);
        q.backward(&grad);
        let got = f64::from(q.gate.share.grad[0]);
        let h = 1e-3f32;
        let at = |share: f32| {
            let mut q = pair(2.6);
            let mix = estimator.draw(share, u, 0.7).mix;
            loss(&forward(&mut q, mix))
        };
        let slope = (at(0.6 + h) - at(0.6 - h)) / (2.0 * f64::from(h));
        assert!((got - slope).abs() < 2e-3 * slope.abs().max(0.1), "{estimator:?}: {got} {slope}");
    }
}

#[test]
fn a_decaying_probability_walks_the_chain_in_order() {
    let mut q = pair(6.99);
    let mut seen = vec![q.gate.pair().1];
    for _ in 0..200 {
        q.gate.share.value[0] -= 0.1;
        if q.walk(DOWN) {
            assert!(q.gate.share() == 0.99 || q.gate.pair().0 == q.gate.pair().1, "{}", q.gate.share());
            seen.push(q.gate.pair().1);
        }
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1], "no width is skipped, none below the floor");
    assert_eq!((q.gate.share(), q.planes()), (1.0, 1));
    // A given width never moves.
    let mut fixed = PairWeight::new(Granularity::PerTensor, Rows::one(60), &values(60), 7.0, (7, 7));
    fixed.gate.share.value[0] = -1.0;
    assert!(!fixed.walk(DOWN) && fixed.planes() == 7);
}

#[test]
fn a_real_width_goes_both_ways_and_carries_over() {
    let mut q = pair(3.5);
    for (by, width, pair) in [(0.7, 4.2, (4, 5)), (-0.5, 3.7, (3, 4)), (-0.9, 2.8, (2, 3)), (-9.0, 1.0, (1, 2))] {
        q.gate.share.value[0] += by;
        q.walk(Chain::Both);
        assert!(
            (q.gate.width() - width).abs() < 1e-5 && q.gate.pair() == pair,
            "{} {:?}",
            q.gate.width(),
            q.gate.pair()
        );
    }
    q.gate.share.value[0] -= 9.0;
    q.walk(Chain::Both);
    assert_eq!((q.gate.width(), q.planes()), (1.0, 1), "the floor holds");
    for _ in 0..30 {
        q.gate.share.value[0] += 0.9;
        q.walk(Chain::Both);
    }
    assert_eq!((q.gate.width(), q.planes()), (7.0, 7), "and so does the top");
}

#[test]
fn weights_lie_on_the_grid_that_is_deployed() {
    for width in [1.0, 1.2, 1.7, 4.4, 6.9, 7.0] {
        let mut q = pair(width);
        q.show_hard = true;
        let w = forward(&mut q, 0.5);
        let params = q.qparams().unwrap();
        params.check(4).unwrap();
        for (i, w) in w.iter().enumerate() {
            assert_eq!(params.decode(params.encode(*w, i / 15), i / 15), *w, "{width}");
        }
    }
}

#[test]
fn mean_bits_are_those_of_the_table() {
    // 1.93 of 32 bits is the paper's 16.58 times.
    assert!((32.0f64 / 1.93 - 16.58).abs() < 0.005);
    let method: Fractional<crate::methods::sdq::SdqPreset> = Method::new(Default::default()).unwrap();
    let layers = [(100.0, 1), (300.0, 2)].map(|(size, planes)| (Price::linear(size, method.budget.count), planes));
    assert!((method.budget.mean(&layers) - (1.6 + 3.0 * 3.0) / 4.0).abs() < 1e-12);
}

#[test]
fn impossible_options_are_refused() {
    use crate::methods::{adaqat, fracbits, sdq};
    let sdq = |o: sdq::SdqOptions| Fractional::<sdq::SdqPreset>::new(o).unwrap_err().to_string();
    assert!(sdq(sdq::SdqOptions { target_bits: 0.0, ..Default::default() }).starts_with("target_bits = 0"));
    assert!(sdq(sdq::SdqOptions { target_bits: 40.0, ..Default::default() }).starts_with("target_bits = 40"));
    assert!(sdq(sdq::SdqOptions { floor_bits: 0, ..Default::default() }).starts_with("floor_bits = 0"));
    assert!(sdq(sdq::SdqOptions { threshold: 0.999, ..Default::default() }).starts_with("threshold = 0.999"));
    let start = fracbits::FracBitsOptions { start_bits: 9.0, ..Default::default() };
    assert!(Fractional::<fracbits::FracBitsPreset>::new(start).is_err());
    let search = adaqat::AdaQatOptions { search: 1.5, ..Default::default() };
    assert!(Fractional::<adaqat::AdaQatPreset>::new(search).is_err());
}
