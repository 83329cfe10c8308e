//! Batch normalisation over channels-last rows, fused with what usually follows it: an addition and an activation.
//!
//! `x` is `[rows, channels]`, where rows are batch times pixels. In training mode
//!
//! ```text
//! mean, var = batch_stats(x)          inv_std = 1 / sqrt(var + eps)
//! x̂ = (x - mean) * inv_std            z = gamma * x̂ + beta (+ add)          y = act(z)
//! ```
//!
//! which the forward pass computes as `z = x * a + b (+ add)` with `a = gamma * inv_std`, `b = beta - mean * a`.
//! Backward, with `g = dy * act'(·)` and `m` rows:
//!
//! ```text
//! dbeta = Σ g     dgamma = Σ g x̂     dadd = g     dx = a * (g - dbeta / m - x̂ * dgamma / m)
//! ```
//!
//! With frozen statistics (evaluation mode) the last line is `dx = a * g`.

pub mod layer;
mod rows;

use crate::activation::{Activation, Saved};
use crate::isa::Isa;
use crate::simd::{dispatch, streams};
use crate::threads;
use rows::{Affine, Apply, Gradient, Moments, Reduce, Source, Stats, period, repeat};

/// Everything the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The output `y`; read for the activation's slope unless [`Activation::saved`] says `Input`. May be empty then, for
    /// `Activation::Identity`, and with `factors`.
    pub y: &'a [f32],
    /// `a` and `b` of the forward pass without an addend: where `y` is empty, it is computed from them once more. Best where that takes
    /// less than reading it, as with what [is piecewise linear](Activation::is_piecewise_linear).
    pub factors: Option<[&'a [f32]; 2]>,
    /// The input of the normalisation.
    pub x: &'a [f32],
    /// The addend of the forward pass; read only where [`Activation::saved`] says `Input`.
    pub add: Option<&'a [f32]>,
    /// Mean per channel.
    pub mean: &'a [f32],
    /// `1 / sqrt(var + eps)` per channel.
    pub inv_std: &'a [f32],
    /// Scale per channel.
    pub gamma: &'a [f32],
    /// Shift per channel; read only where [`Activation::saved`] says `Input`.
    pub beta: &'a [f32],
    /// The activation after the sum.
    pub act: Activation,
    /// Where the statistics came from.
    pub statistics: Statistics,
}

/// Whether mean and variance were taken from the batch (and so pass gradients) or were constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Training mode: gradients flow through mean and variance.
    Batch,
    /// Evaluation mode, or batch-norm frozen during fine-tuning.
    Frozen,
}

/// Mean and biased variance of each channel over the rows of `x`. No rows: zeros.
///
/// # Panics
/// If `mean` and `var` are not `channels` long or `x` is not a multiple of it.
pub fn batch_stats(x: &[f32], channels: usize, mean: &mut [f32], var: &mut [f32]) {
    check_rows(x.len(), channels);
    assert_eq!(mean.len(), channels, "length of mean");
    assert_eq!(var.len(), channels, "length of var");
    batch_stats_on(Isa::current(), x, mean, var);
}

fn batch_stats_on(isa: Isa, x: &[f32], mean: &mut [f32], var: &mut [f32]) {
    let channels = mean.len();
    let period = period(channels, isa.lanes());
    let (periods, tail) = whole_periods(x, period);
    let parts = threads::map_parts(periods.len() / period, threads::parts_for(x.len()), |range| {
        dispatch(isa, Stats { x: &periods[range.start * period..range.end * period], period })
    });
    for c in 0..channels {
        let (mut m, mut d, mut n) = (0.0, 0.0, 0.0);
        for part in &parts {
            for i in (c..period).step_by(channels) {
                Moments::merge_into(&mut m, &mut d, &mut n, (part.count, part.mean[i], part.deviation[i]));
            }
        }
        for &x in tail.iter().skip(c).step_by(channels) {
            Moments::merge_into(&mut m, &mut d, &mut n, (1.0, f64::from(x), 0.0));
        }
        mean[c] = m as f32;
        var[c] = (d / n.max(1.0)) as f32;
    }
}

/// `x` cut after its last whole period.
fn whole_periods(x: &[f32], period: usize) -> (&[f32], &[f32]) {
    x.split_at(x.len() / period * period)
}

/// `y = act(x * a[c] + b[c] (+ add))`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn affine_act(x: &[f32], a: &[f32], b: &[f32], add: Option<&[f32]>, act: Activation, y: &mut [f32]) {
    check_rows(x.len(), a.len());
    assert_eq!(b.len(), a.len(), "length of b");
    assert_eq!(y.len(), x.len(), "length of y");
    assert!(add.is_none_or(|add| add.len() == x.len()), "length of add");
    affine_act_on(Isa::current(), x, a, b, add, act, y);
}

fn affine_act_on(isa: Isa, x: &[f32], a: &[f32], b: &[f32], add: Option<&[f32]>, act: Activation, y: &mut [f32]) {
    let channels = a.len();
    let period = period(channels, isa.lanes());
    let (a_periodic, b_periodic) = (repeat(a, period), repeat(b, period));
    let whole = x.len() / period * period;
    // Parts are whole periods, so that they begin where vectors do.
    let streams = streams(y);
    let (y, y_tail) = y.split_at_mut(whole);
    threads::for_each_part(y, period, |start, y| {
        let part = start..start + y.len();
        let add = add.map(|add| &add[part.clone()]);
        dispatch(isa, Affine { x: &x[part], a: &a_periodic, b: &b_periodic, add, act, y, streams });
    });
    for (i, y) in y_tail.iter_mut().enumerate() {
        let c = i % channels;
        let z = x[whole + i] * a[c] + b[c];
        *y = act.apply(add.map_or(z, |add| z + add[whole + i]));
    }
}

/// Writes `dgamma` and `dbeta`, and turns `dy`, the gradient of the output, into that of the input. Where the forward pass had an addend,
/// whose gradient is wanted too, `dx` is given: then that of the input goes there, and `dy` becomes the addend's.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn backward(args: &Backward, dy: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32], dx: Option<&mut [f32]>) {
    args.check(dy.len());
    assert_eq!(dgamma.len(), args.gamma.len(), "length of dgamma");
    assert_eq!(dbeta.len(), args.gamma.len(), "length of dbeta");
    assert!(dx.as_ref().is_none_or(|d| d.len() == dy.len()), "length of dx");
    backward_on(Isa::current(), args, dy, dgamma, dbeta, dx);
}

fn backward_on(
    isa: Isa,
    args: &Backward,
    dy: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    mut dx: Option<&mut [f32]>,
) {
    let n = dy.len();
    if args.act.saved() == Saved::Input {
        // The activations that need their input: g in one more pass, then as if there were none.
        let mut own = Vec::new();
        let z = match dx.as_deref_mut() {
            Some(dx) => dx,
            None => {
                own.resize(n, 0.0);
                &mut own[..]
            }
        };
        let a: Vec<f32> = args.gamma.iter().zip(args.inv_std).map(|(g, s)| g * s).collect();
        let b: Vec<f32> = args.beta.iter().zip(args.mean).zip(&a).map(|((b, m), a)| b - m * a).collect();
        affine_act_on(isa, args.x, &a, &b, args.add, Activation::Identity, z);
        crate::activation::backward(args.act, z, dy);
        let args = Backward { act: Activation::Identity, ..*args };
        return backward_on(isa, &args, dy, dgamma, dbeta, dx);
    }
    let channels = args.gamma.len();
    let period = period(channels, isa.lanes());
    let whole = n / period * period;
    let masked = args.act != Activation::Identity;
    let again = args.factors.filter(|_| masked && args.y.is_empty());
    let saved = |i: usize| match again {
        Some([a, b]) => args.act.apply(args.x[i] * a[i % channels] + b[i % channels]),
        None => args.y[i],
    };
    let slope = |i: usize| if masked { args.act.slope(saved(i)) } else { 1.0 };
    let factors = again.map(|factors| factors.map(|f| repeat(f, period)));
    let source = |part: &std::ops::Range<usize>, act: Activation| match &factors {
        _ if act == Activation::Identity => Source::Nothing,
        Some([a, b]) => Source::Input(a, b),
        None => Source::Output(&args.y[part.clone()]),
    };

    // First pass: the sums, and g in place of dy where it is the addend's gradient.
    let mean = repeat(args.mean, period);
    let replaces = masked && dx.is_some();
    let mut jobs = vec![];
    let (mut rest, tail) = dy.split_at_mut(whole);
    for range in threads::ranges(whole / period, threads::parts_for(whole)) {
        let (part, others) = rest.split_at_mut(range.len() * period);
        jobs.push((range, part));
        rest = others;
    }
    let parts = threads::map_jobs(jobs, |(range, dy)| {
        let part = range.start * period..range.end * period;
        let saved = source(&part, args.act);
        let dy = if replaces { Gradient::Replace(dy) } else { Gradient::Read(dy) };
        dispatch(isa, Reduce { dy, saved, x: &args.x[part], mean: &mean, act: args.act })
    });
    let mut sums = vec![[0.0_f64; 2]; channels];
    for [plain, weighted] in &parts {
        for (i, (p, w)) in plain.iter().zip(weighted).enumerate() {
            sums[i % channels][0] += p;
            sums[i % channels][1] += w;
        }
    }
    for (i, dy) in (whole..n).zip(tail) {
        let c = i % channels;
        let g = *dy * slope(i);
        sums[c][0] += f64::from(g);
        sums[c][1] += f64::from(g) * f64::from(args.x[i] - args.mean[c]);
        if replaces {
            *dy = g;
        }
    }

    // Second pass: dx = a (g - c - (x - mean) d).
    let count = (n / channels).max(1) as f64;
    let (mut a, mut c, mut d) = (vec![0.0; channels], vec![0.0; channels], vec![0.0; channels]);
    for i in 0..channels {
        let inv_std = f64::from(args.inv_std[i]);
        dbeta[i] = sums[i][0] as f32;
        dgamma[i] = (sums[i][1] * inv_std) as f32;
        a[i] = args.gamma[i] * args.inv_std[i];
        if args.statistics == Statistics::Batch {
            c[i] = (sums[i][0] / count) as f32;
            d[i] = (sums[i][1] * inv_std * inv_std / count) as f32;
        }
    }
    let periodic = [&a, &c, &d].map(|p| repeat(p, period));
    let parameters = [&periodic[0][..], &periodic[1], &periodic[2], &mean];
    // What was replaced has its slope already.
    let act = if replaces { Activation::Identity } else { args.act };
    let (gradient, dx) = match dx {
        Some(dx) => (Some(&*dy), dx),
        None => (None, dy),
    };
    let (dx, dx_tail) = dx.split_at_mut(whole);
    threads::for_each_part(dx, period, |start, dx| {
        let part = start..start + dx.len();
        let saved = source(&part, act);
        let dy = gradient.map(|dy| &dy[part.clone()]);
        dispatch(isa, Apply { dy, saved, x: &args.x[part], act, parameters, dx });
    });
    for (k, dx) in dx_tail.iter_mut().enumerate() {
        let (i, channel) = (whole + k, k % channels);
        let g = gradient.map_or(*dx, |dy| dy[i]) * if replaces { 1.0 } else { slope(i) };
        *dx = a[channel] * (g - c[channel] - (args.x[i] - args.mean[channel]) * d[channel]);
    }
}

/// `sums[c] = Σ x[·, c]` over the rows of a channels-last slice; a bias gradient when `x` is `dy`.
///
/// # Panics
/// If `x` is not a multiple of `sums`.
pub fn channel_sums(x: &[f32], sums: &mut [f32]) {
    check_rows(x.len(), sums.len());
    channel_sums_on(Isa::current(), x, sums);
}

fn channel_sums_on(isa: Isa, x: &[f32], sums: &mut [f32]) {
    let channels = sums.len();
    let period = period(channels, isa.lanes());
    let (periods, tail) = whole_periods(x, period);
    let parts = threads::map_parts(periods.len() / period, threads::parts_for(x.len()), |range| {
        dispatch(isa, rows::Sums { x: &periods[range.start * period..range.end * period], period })
    });
    for (c, sum) in sums.iter_mut().enumerate() {
        let whole: f64 = parts.iter().flat_map(|p| p.iter().skip(c).step_by(channels)).sum();
        let rest: f64 = tail.iter().skip(c).step_by(channels).map(|&x| f64::from(x)).sum();
        *sum = (whole + rest) as f32;
    }
}

impl Backward<'_> {
    fn check(&self, len: usize) {
        let channels = self.gamma.len();
        check_rows(len, channels);
        assert_eq!(self.x.len(), len, "length of x");
        assert_eq!(self.mean.len(), channels, "length of mean");
        assert_eq!(self.inv_std.len(), channels, "length of inv_std");
        if self.act.saved() == Saved::Input {
            assert_eq!(self.beta.len(), channels, "length of beta");
            assert!(self.add.is_none_or(|add| add.len() == len), "length of add");
        } else if self.act != Activation::Identity && (self.factors.is_none() || !self.y.is_empty()) {
            assert_eq!(self.y.len(), len, "length of y");
        }
        if let Some([a, b]) = self.factors {
            assert!(a.len() == channels && b.len() == channels, "length of a and b");
        }
    }
}

fn check_rows(len: usize, channels: usize) {
    assert!(channels > 0 && len.is_multiple_of(channels), "{len} elements are no rows of {channels} channels");
}

#[cfg(test)]
mod tests;
