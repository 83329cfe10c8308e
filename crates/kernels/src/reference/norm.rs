//! Batch normalisation by its formulas, in f64.

use crate::activation::{Activation, Saved};
use crate::norm::{Backward, Statistics};

/// See [`crate::norm::batch_stats`].
pub fn batch_stats(x: &[f32], channels: usize, mean: &mut [f32], var: &mut [f32]) {
    let rows = (x.len() / channels).max(1) as f64;
    for c in 0..channels {
        let column = || x.iter().skip(c).step_by(channels).map(|&x| f64::from(x));
        let m = column().sum::<f64>() / rows;
        mean[c] = m as f32;
        var[c] = (column().map(|x| (x - m) * (x - m)).sum::<f64>() / rows) as f32;
    }
}

/// See [`crate::norm::affine_act`].
pub fn affine_act(x: &[f32], a: &[f32], b: &[f32], add: Option<&[f32]>, act: Activation, y: &mut [f32]) {
    for (i, y) in y.iter_mut().enumerate() {
        let c = i % a.len();
        *y = act.apply(x[i] * a[c] + b[c] + add.map_or(0.0, |add| add[i]));
    }
}

/// See [`crate::norm::backward`]; `dx` and `dadd`, the gradient of the addend, beside `dy`.
pub fn backward(
    args: &Backward,
    dy: &[f32],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dadd: Option<&mut [f32]>,
) {
    let channels = args.gamma.len();
    let rows = (dx.len() / channels).max(1) as f64;
    let normalised = |i: usize| f64::from(args.x[i] - args.mean[i % channels]) * f64::from(args.inv_std[i % channels]);
    let masked: Vec<f32> = (0..dx.len())
        .map(|i| {
            let c = i % channels;
            let saved = match args.act.saved() {
                _ if args.act == Activation::Identity => 0.0,
                Saved::Output => args.y[i],
                Saved::Input => {
                    let a = args.gamma[c] * args.inv_std[c];
                    args.x[i] * a + (args.beta[c] - args.mean[c] * a) + args.add.map_or(0.0, |add| add[i])
                }
            };
            dy[i] * args.act.slope(saved)
        })
        .collect();
    let (mut sum, mut sum_normalised) = (vec![0.0_f64; channels], vec![0.0_f64; channels]);
    for (i, &g) in masked.iter().enumerate() {
        sum[i % channels] += f64::from(g);
        sum_normalised[i % channels] += f64::from(g) * normalised(i);
    }
    for (i, dx) in dx.iter_mut().enumerate() {
        let c = i % channels;
        let through_statistics = match args.statistics {
            Statistics::Batch => (sum[c] + normalised(i) * sum_normalised[c]) / rows,
            Statistics::Frozen => 0.0,
        };
        let a = f64::from(args.gamma[c]) * f64::from(args.inv_std[c]);
        *dx = (a * (f64::from(masked[i]) - through_statistics)) as f32;
    }
    for c in 0..channels {
        dgamma[c] = sum_normalised[c] as f32;
        dbeta[c] = sum[c] as f32;
    }
    if let Some(dadd) = dadd {
        dadd.copy_from_slice(&masked);
    }
}

/// See [`crate::norm::channel_sums`].
pub fn channel_sums(x: &[f32], sums: &mut [f32]) {
    let channels = sums.len();
    for (c, sum) in sums.iter_mut().enumerate() {
        *sum = x.iter().skip(c).step_by(channels).map(|&x| f64::from(x)).sum::<f64>() as f32;
    }
}

/// See [`crate::norm::layer::forward`].
pub fn layer(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) {
    let n = gamma.len();
    for (x, y) in x.chunks(n).zip(y.chunks_mut(n)) {
        let (mean, scale) = layer_statistics(x, epsilon);
        for (i, y) in y.iter_mut().enumerate() {
            *y = ((f64::from(x[i]) - mean) * scale * f64::from(gamma[i]) + f64::from(beta[i])) as f32;
        }
    }
}

/// See [`crate::norm::layer::backward`].
pub fn layer_backward(
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    epsilon: f32,
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let n = gamma.len();
    let (mut gammas, mut betas) = (vec![0f64; n], vec![0f64; n]);
    for ((x, dy), dx) in x.chunks(n).zip(dy.chunks(n)).zip(dx.chunks_mut(n)) {
        let (mean, scale) = layer_statistics(x, epsilon);
        let normalised: Vec<f64> = x.iter().map(|x| (f64::from(*x) - mean) * scale).collect();
        let g: Vec<f64> = dy.iter().zip(gamma).map(|(d, g)| f64::from(*d) * f64::from(*g)).collect();
        let plain = g.iter().sum::<f64>() / n as f64;
        let crossed = g.iter().zip(&normalised).map(|(g, x)| g * x).sum::<f64>() / n as f64;
        for i in 0..n {
            dx[i] = (scale * (g[i] - plain - normalised[i] * crossed)) as f32;
            gammas[i] += f64::from(dy[i]) * normalised[i];
            betas[i] += f64::from(dy[i]);
        }
    }
    dgamma.iter_mut().zip(gammas).for_each(|(to, sum)| *to = sum as f32);
    dbeta.iter_mut().zip(betas).for_each(|(to, sum)| *to = sum as f32);
}

fn layer_statistics(x: &[f32], epsilon: f32) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (variance + f64::from(epsilon)).sqrt())
}
