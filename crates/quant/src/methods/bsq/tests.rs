//! The acceptance checks of the method, on the planes as training uses them.

use super::*;
use crate::blocks::searched::Search;
use crate::quantizer::{Quantizer, Rows};
use bitsmith_graph::Granularity;

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.4).collect()
}

fn planes(n: usize, k: usize, most: usize) -> BsqPlanes {
    BsqPlanes::new(Granularity::PerTensor, Rows::one(n), &noise(n), k, most, false)
}

fn weights(q: &mut BsqPlanes) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    q.forward(&mut out);
    out
}

/// Planes with these codes over a step of 0.5.
fn exact(codes: &[i32], k: usize, most: usize) -> BsqPlanes {
    let n = codes.len();
    let mut q = planes(n, k, most);
    for (i, z) in codes.iter().enumerate() {
        for b in 0..k {
            let bit = f32::from(u8::from(z.unsigned_abs() >> (k - 1 - b) & 1 == 1));
            q.positive.value[b * n + i] = if *z > 0 { bit } else { 0.0 };
            q.negative.value[b * n + i] = if *z < 0 { bit } else { 0.0 };
        }
    }
    q.scale.value[0] = 0.5 * ((1 << k) - 1) as f32;
    q
}

#[test]
fn planes_start_as_the_rounded_weights() {
    for k in 1..=7 {
        let x = noise(50);
        let mut q = planes(50, k, 7);
        let most = x.iter().fold(0f32, |a, x| a.max(x.abs()));
        let levels = ((1 << k) - 1) as f32;
        for (w, x) in weights(&mut q).iter().zip(&x) {
            let want = (x / (most / levels)).round_ties_even() * (most / levels);
            assert!((w - want).abs() <= 1e-6, "{k}: {w} {want}");
        }
        let both = q.positive.value.iter().zip(&q.negative.value).filter(|(p, m)| **p > 0.0 && **m > 0.0);
        assert_eq!(both.count(), 0, "a weight has one sign");
        assert_eq!(32.0 / f64::from(q.bits() + 1.0), 32.0 / (k + 1) as f64);
    }
}

#[test]
fn empty_planes_go_and_weights_stay() {
    // Codes of 6 planes with one empty plane at the top and two at the bottom.
    let codes: Vec<i32> = (0..40).map(|i| (i % 8 - 4) * 4).map(|z| z.clamp(-28, 28)).collect();
    let mut q = exact(&codes, 6, 7);
    let before = weights(&mut q);
    assert!(q.adjust());
    assert_eq!(q.planes(), 3, "16 = 4 · 4 uses three bits above the lowest two");
    assert_eq!(weights(&mut q), before);
    assert!(!q.adjust(), "twice is once");
    assert_eq!(weights(&mut q), before);
    // Nothing left: one empty plane, and no bits.
    let mut zero = exact(&[0; 8], 4, 7);
    assert!(zero.adjust() && zero.planes() == 0 && zero.bits() == 1.0);
    assert_eq!(zero.qparams().unwrap().spec.bits, 0);
    zero.qparams().unwrap().check(1).unwrap();
}

#[test]
fn values_beyond_the_range_get_a_plane_more() {
    let mut q = exact(&[15, -15, 3, 0], 4, 7);
    // All planes at 2: v = 2, which the forward pass clips.
    for b in 0..4 {
        q.positive.value[b * 4] = 2.0;
    }
    assert_eq!(weights(&mut q)[0], 7.5);
    assert!(q.adjust());
    assert_eq!((q.planes(), weights(&mut q)), (5, vec![15.0, -7.5, 1.5, 0.0]));
    // At the cap they are clipped instead.
    let mut q = exact(&[15, -15, 3, 0], 4, 4);
    for b in 0..4 {
        q.positive.value[b * 4] = 2.0;
    }
    assert!(!q.adjust());
    assert_eq!(weights(&mut q), [7.5, -7.5, 1.5, 0.0]);
}

#[test]
fn gradients_pass_straight_through_rounding_and_clipping() {
    let mut q = exact(&[5, -7, 7, 1], 3, 7);
    q.positive.value[2] = 2.0; // beyond the range
    let w = weights(&mut q);
    let grad = [1.0, -2.0, 0.5, 0.25];
    q.backward(&grad);
    let s = q.scale.value[0];
    for (i, grad) in grad.iter().enumerate() {
        for b in 0..3 {
            let e = [4.0, 2.0, 1.0][b] / 7.0;
            assert!((q.positive.grad[b * 4 + i] - grad * s * e).abs() < 1e-6);
            assert_eq!(q.positive.grad[b * 4 + i], -q.negative.grad[b * 4 + i]);
        }
        assert_eq!(q.positive.grad[i], 2.0 * q.positive.grad[4 + i]);
    }
    let want: f32 = w.iter().zip(&grad).map(|(w, g)| w / s * g).sum();
    assert!((q.scale.grad[0] - want).abs() < 1e-6);
}

#[test]
fn the_lasso_has_its_value_and_gradient() {
    let mut q = exact(&[7, 7, 7, 7, 7], 3, 7);
    assert!((q.lasso(2.0) - 2.0 * 3.0 * (5.0f64 + 1e-8).sqrt()).abs() < 1e-12);
    q.visit(&mut |p| p.clear_grad());
    q.positive.value.iter_mut().enumerate().for_each(|(i, x)| *x = 0.1 + 0.1 * i as f32);
    q.lasso(1.0);
    let norm = |q: &BsqPlanes, b: usize| {
        let square = |x: &f32| f64::from(*x).powi(2);
        let at = b * 5..(b + 1) * 5;
        (1e-8 + q.positive.value[at.clone()].iter().chain(&q.negative.value[at]).map(square).sum::<f64>()).sqrt()
    };
    for i in 0..15 {
        let x = f64::from(q.positive.value[i]);
        let (others, h) = (norm(&q, i / 5).powi(2) - x * x, 1e-6);
        let slope = ((others + (x + h).powi(2)).sqrt() - (others + (x - h).powi(2)).sqrt()) / (2.0 * h);
        assert!((f64::from(q.positive.grad[i]) - slope).abs() < 1e-6, "{i}");
    }
}

#[test]
fn planes_stay_in_their_range() {
    let mut q = planes(10, 3, 7);
    q.positive.value[0] = -0.5;
    q.negative.value[3] = 7.0;
    q.scale.value[0] = -1.0;
    q.clamp();
    assert_eq!((q.positive.value[0], q.negative.value[3]), (0.0, 2.0));
    assert!(q.scale.value[0] > 0.0);
}

#[test]
fn given_widths_are_kept_and_impossible_options_refused() {
    let mut q = BsqPlanes::new(Granularity::PerTensor, Rows::one(8), &[0.1; 8], 7, 7, true);
    q.positive.value.fill(0.0);
    assert!(!q.adjust());
    assert_eq!(q.state(), 7);
    let refused = |o: BsqOptions, with: &str| {
        let error = Bsq::new(o).unwrap_err().to_string();
        assert!(error.starts_with(with), "{error}");
    };
    refused(BsqOptions { planes: 8, ..Default::default() }, "planes = 8");
    refused(BsqOptions { target_bits: 40.0, ..Default::default() }, "target_bits = 40");
    refused(BsqOptions { alpha: f64::NAN, ..Default::default() }, "alpha = NaN");
    refused(BsqOptions { interval: 0, ..Default::default() }, "interval = 0");
}
