//! Batch normalisation against the reference, on every instruction set of this machine.

use super::{Backward, Statistics, affine_act, backward, batch_stats, channel_sums};
use crate::activation::{Activation, Saved};
use crate::reference::norm as naive;
use crate::testing::{ACTIVATIONS, UNIT, assert_within, on_every_level, values};
use proptest::prelude::*;

/// The most numbers that any loop adds in f32: a chunk of 4096 elements is 256 periods of the smallest vectors.
const LONGEST: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Case {
    channels: usize,
    rows: usize,
    act: Activation,
    statistics: Statistics,
    /// Added to the input: its mean is not zero.
    offset: f32,
    has_add: bool,
}

/// All passes of one case; `docs/numerics.md` derives the bounds.
fn check(case: Case) {
    let Case { channels, rows, act, statistics, offset, has_add } = case;
    let n = rows * channels;
    let x: Vec<f32> = values(n, 1).iter().map(|x| x + offset).collect();
    let add = has_add.then(|| values(n, 2));
    let (gamma, beta) = (values(channels, 3).iter().map(|g| g + 1.5).collect::<Vec<f32>>(), values(channels, 4));
    let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
    naive::batch_stats(&x, channels, &mut mean, &mut var);
    let inv_std: Vec<f32> = var.iter().map(|v| 1.0 / (v + 1e-5_f32).sqrt()).collect();
    let a: Vec<f32> = gamma.iter().zip(&inv_std).map(|(g, s)| g * s).collect();
    let b: Vec<f32> = beta.iter().zip(&mean).zip(&a).map(|((b, m), a)| b - m * a).collect();
    let mut y = vec![0.0; n];
    naive::affine_act(&x, &a, &b, add.as_deref(), act, &mut y);
    let dy: Vec<f32> = values(n, 5).iter().map(|d| d + 0.1).collect();
    let args = Backward {
        y: if act.saved() == Saved::Input { &[] } else { &y },
        factors: None,
        x: &x,
        add: add.as_deref(),
        mean: &mean,
        inv_std: &inv_std,
        gamma: &gamma,
        beta: &beta,
        act,
        statistics,
    };
    let (mut dx, mut dadd) = (vec![0.0; n], vec![0.0; n]);
    let (mut dgamma, mut dbeta, mut sums) = (vec![0.0; channels], vec![0.0; channels], vec![0.0; channels]);
    naive::backward(&args, &dy, &mut dx, &mut dgamma, &mut dbeta, Some(&mut dadd));
    naive::channel_sums(&dy, &mut sums);

    let terms = rows.min(LONGEST) as f64;
    // Magnitudes per channel, as sums over its rows; dadd is g.
    let per_channel = |value: &dyn Fn(usize) -> f32| -> Vec<f64> {
        (0..channels).map(|c| (c..n).step_by(channels).map(|i| f64::from(value(i).abs())).sum()).collect()
    };
    let (of_dy, of_g) = (per_channel(&|i| dy[i]), per_channel(&|i| dadd[i]));
    let of_crossed = per_channel(&|i| dadd[i] * (x[i] - mean[i % channels]));
    let largest: Vec<f64> = (0..channels)
        .map(|c| x.iter().skip(c).step_by(channels).fold(0.0, |m: f64, &x| m.max(f64::from(x.abs()))))
        .collect();

    on_every_level(|isa| {
        let nan = |len: usize| vec![f32::NAN; len];
        let (mut fast_mean, mut fast_var) = (nan(channels), nan(channels));
        batch_stats(&x, channels, &mut fast_mean, &mut fast_var);
        let of_mean = |c: usize| (terms + 3.0) * UNIT * largest[c];
        assert_within(format_args!("mean {isa:?} {case:?}"), &fast_mean, &mean, of_mean);
        assert_within(format_args!("variance {isa:?} {case:?}"), &fast_var, &var, |c| {
            let variance = f64::from(var[c]);
            (terms + 4.0) * UNIT * variance + 2.0 * of_mean(c) * (variance.sqrt() + of_mean(c))
        });
        let mut fast = nan(n);
        affine_act(&x, &a, &b, add.as_deref(), act, &mut fast);
        // The same roundings in the same order.
        assert!(fast == y, "affine {isa:?} {case:?}");
        for wants_add in [false, true] {
            let (mut gradient, mut fast_dx) = (dy.clone(), nan(n));
            let (mut fast_gamma, mut fast_beta) = (nan(channels), nan(channels));
            let apart = wants_add.then_some(&mut fast_dx[..]);
            backward(&args, &mut gradient, &mut fast_gamma, &mut fast_beta, apart);
            let fast_dadd = if wants_add { gradient } else { std::mem::replace(&mut fast_dx, gradient) };
            let of_beta = |c: usize| (terms + 2.0) * UNIT * of_g[c];
            let of_gamma = |c: usize| (terms + 4.0) * UNIT * of_crossed[c] * f64::from(inv_std[c]);
            assert_within(format_args!("dbeta {isa:?} {case:?}"), &fast_beta, &dbeta, of_beta);
            assert_within(format_args!("dgamma {isa:?} {case:?}"), &fast_gamma, &dgamma, of_gamma);
            assert_within(format_args!("dx {isa:?} {case:?}"), &fast_dx, &dx, |i| {
                let c = i % channels;
                let g = f64::from(dadd[i].abs());
                let through_statistics = match statistics {
                    Statistics::Frozen => 0.0,
                    Statistics::Batch => {
                        let centred = f64::from((x[i] - mean[c]).abs());
                        (of_g[c] + centred * of_crossed[c] * f64::from(inv_std[c]).powi(2)) / rows as f64
                    }
                };
                f64::from(a[c].abs()) * UNIT * (5.0 * g + (terms + 11.0) * through_statistics)
            });
            if wants_add {
                assert!(fast_dadd == dadd, "dadd {isa:?} {case:?}");
            }
            // The output made again is the output.
            if act.saved() == Saved::Output && !has_add {
                let again = Backward { y: &[], factors: Some([&a, &b]), ..args };
                let (mut gradient, mut same_dx) = (dy.clone(), nan(n));
                let (mut same_gamma, mut same_beta) = (nan(channels), nan(channels));
                let apart = wants_add.then_some(&mut same_dx[..]);
                backward(&again, &mut gradient, &mut same_gamma, &mut same_beta, apart);
                let same_dadd = if wants_add { gradient } else { std::mem::replace(&mut same_dx, gradient) };
                assert!(same_dx == fast_dx && same_gamma == fast_gamma && same_beta == fast_beta, "{isa:?} {case:?}");
                assert!(!wants_add || same_dadd == fast_dadd, "{isa:?} {case:?}");
            }
        }
        let mut fast = nan(channels);
        channel_sums(&dy, &mut fast);
        assert_within(format_args!("sums {isa:?} {case:?}"), &fast, &sums, |c| (terms + 2.0) * UNIT * of_dy[c]);
    });
}

#[test]
fn known_shapes() {
    for (channels, rows) in [(16, 1000), (64, 333), (17, 70), (1000, 9), (15, 4099), (3, 9000)] {
        for act in [Activation::Identity, Activation::Relu, Activation::HardSwish] {
            for (statistics, has_add) in [(Statistics::Batch, true), (Statistics::Frozen, false)] {
                check(Case { channels, rows, act, statistics, offset: 0.3, has_add });
            }
        }
    }
}

/// Every activation where rows fill no period, one, or one and a bit, at every level.
#[test]
fn awkward_shapes() {
    for channels in [1, 3, 15, 17] {
        for rows in [1, 2, 7, 31, 33, 65] {
            for act in ACTIVATIONS {
                for statistics in [Statistics::Batch, Statistics::Frozen] {
                    check(Case { channels, rows, act, statistics, offset: 0.3, has_add: rows % 2 == 1 });
                }
            }
        }
    }
}

/// A mean a thousand times the spread: the sum of squares would lose everything.
#[test]
fn no_cancellation() {
    let x: Vec<f32> = (0..40_000).map(|i| 1000.0 + (i / 4 % 2) as f32).collect();
    on_every_level(|_| {
        let (mut mean, mut var) = ([0.0; 4], [0.0; 4]);
        batch_stats(&x, 4, &mut mean, &mut var);
        assert!(mean.iter().all(|m| (m - 1000.5).abs() < 1e-3), "{mean:?}");
        assert!(var.iter().all(|v| (v - 0.25).abs() < 1e-5), "{var:?}");
    });
}

#[test]
fn no_rows_have_no_sums() {
    on_every_level(|_| {
        let (mut mean, mut var) = ([1.0; 3], [1.0; 3]);
        batch_stats(&[], 3, &mut mean, &mut var);
        assert_eq!((mean, var), ([0.0; 3], [0.0; 3]));
        channel_sums(&[], &mut mean);
        assert_eq!(mean, [0.0; 3]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        channels in 1..70_usize, rows in 2..400_usize, act in 0..ACTIVATIONS.len(), frozen: bool, has_add: bool,
        offset in -2.0..2.0_f32,
    ) {
        let statistics = if frozen { Statistics::Frozen } else { Statistics::Batch };
        check(Case { channels, rows, act: ACTIVATIONS[act], statistics, offset, has_add });
    }
}
