//! Layer normalisation: every row by its own mean and variance.
//!
//! ```text
//! x̂ = (x − mean) / √(variance + ε),   y = x̂ · gamma + beta                    mean and variance over the row's n elements
//! dx = (g − mean(g) − x̂ · mean(g · x̂)) / √(variance + ε),  g = dy · gamma;   dgamma = Σ dy · x̂,  dbeta = Σ dy over rows
//! ```
//!
//! Ba, Kiros and Hinton, arXiv 1607.06450. Rows are independent; sums over rows are taken in fixed blocks of rows whose
//! totals are added in order, so that results do not depend on the number of threads.

use rayon::prelude::*;

use crate::multiversion::multiversion;
use crate::runs::{TILE, sum_tile};

/// Rows per unit of parallel work.
const BLOCK: usize = 64;

/// Writes y for rows of `gamma.len()` elements; `statistics` gets mean and 1 / √(variance + ε) of each row, if wanted.
///
/// # Panics
/// If lengths disagree.
pub fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
    statistics: Option<&mut [(f32, f32)]>,
) {
    let n = gamma.len();
    assert!(n > 0 && beta.len() == n && x.len() == y.len() && x.len().is_multiple_of(n), "rows of {n} elements");
    let mut own = vec![];
    let statistics = statistics.unwrap_or_else(|| {
        own.resize(x.len() / n, (0.0, 0.0));
        &mut own
    });
    assert_eq!(statistics.len(), x.len() / n, "one mean per row");
    let blocks = y.par_chunks_mut(BLOCK * n).zip(x.par_chunks(BLOCK * n)).zip(statistics.par_chunks_mut(BLOCK));
    blocks.for_each(|((y, x), statistics)| {
        for ((y, x), known) in y.chunks_mut(n).zip(x.chunks(n)).zip(statistics) {
            *known = row_forward(x, gamma, beta, epsilon, y);
        }
    });
}

/// Writes dx, dgamma and dbeta from the input, the output's gradient and the statistics of [`forward`].
///
/// # Panics
/// If lengths disagree.
pub fn backward(
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    statistics: &[(f32, f32)],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let n = gamma.len();
    assert!(n > 0 && [dgamma.len(), dbeta.len()] == [n; 2] && x.len().is_multiple_of(n), "rows of {n} elements");
    assert!([dy.len(), dx.len(), statistics.len() * n] == [x.len(); 3], "one gradient per value");
    let blocks = dx.par_chunks_mut(BLOCK * n).zip(x.par_chunks(BLOCK * n)).zip(dy.par_chunks(BLOCK * n));
    let parts: Vec<Vec<f32>> = blocks
        .zip(statistics.par_chunks(BLOCK))
        .map(|(((dx, x), dy), statistics)| {
            // gamma's sums, then beta's.
            let mut sums = vec![0f32; 2 * n];
            let (gammas, betas) = sums.split_at_mut(n);
            let rows = dx.chunks_mut(n).zip(x.chunks(n)).zip(dy.chunks(n)).zip(statistics);
            for (((dx, x), dy), &(mean, scale)) in rows {
                row_backward(x, dy, gamma, mean, scale, dx, gammas, betas);
            }
            sums
        })
        .collect();
    let mut totals = vec![0f64; 2 * n];
    for part in &parts {
        totals.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(*part));
    }
    for (to, totals) in [(dgamma, &totals[..n]), (dbeta, &totals[n..])] {
        to.iter_mut().zip(totals).for_each(|(to, total)| *to = *total as f32);
    }
}

multiversion! {
    /// One row; returns its mean and the factor of its deviations.
    fn row_forward(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) -> (f32, f32) {
        let n = x.len();
        let (gamma, beta, y) = (&gamma[..n], &beta[..n], &mut y[..n]);
        let mut sum = 0f64;
        for tile in x.chunks(TILE) {
            sum += sum_tile(tile);
        }
        let mean = (sum / n as f64) as f32;
        let mut square = 0f64;
        let mut squares = [0f32; TILE];
        for tile in x.chunks(TILE) {
            let squares = &mut squares[..tile.len()];
            for i in 0..tile.len() {
                squares[i] = (tile[i] - mean) * (tile[i] - mean);
            }
            square += sum_tile(squares);
        }
        let scale = (1.0 / (square / n as f64 + f64::from(epsilon)).sqrt()) as f32;
        for i in 0..n {
            y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
        }
        (mean, scale)
    }
}

multiversion! {
    /// One row; adds to the sums of gamma and beta.
    fn row_backward(
        x: &[f32], dy: &[f32], gamma: &[f32], mean: f32, scale: f32, dx: &mut [f32], gammas: &mut [f32], betas: &mut [f32],
    ) {
        let n = x.len();
        let (dy, gamma, dx) = (&dy[..n], &gamma[..n], &mut dx[..n]);
        let (gammas, betas) = (&mut gammas[..n], &mut betas[..n]);
        let (mut plain, mut crossed) = (0f64, 0f64);
        let (mut a, mut b) = ([0f32; TILE], [0f32; TILE]);
        let mut first = 0;
        while first < n {
            let len = TILE.min(n - first);
            for i in 0..len {
                let at = first + i;
                let g = dy[at] * gamma[at];
                let normalised = (x[at] - mean) * scale;
                a[i] = g;
                b[i] = g * normalised;
                gammas[at] += dy[at] * normalised;
                betas[at] += dy[at];
            }
            plain += sum_tile(&a[..len]);
            crossed += sum_tile(&b[..len]);
            first += len;
        }
        let (plain, crossed) = ((plain / n as f64) as f32, (crossed / n as f64) as f32);
        for i in 0..n {
            dx[i] = scale * (dy[i] * gamma[i] - plain - (x[i] - mean) * scale * crossed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::norm as reference;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn rows_are_normalised_as_the_formulas_say() {
        for (rows, n) in [(1, 1), (1, 7), (3, 15), (5, 16), (130, 17), (65, 192), (2, 1031)] {
            let x: Vec<f32> = noise(rows * n, 1).iter().map(|v| 3.0 * v + 5.0).collect();
            let (gamma, beta, dy) = (noise(n, 2), noise(n, 3), noise(rows * n, 4));
            let (mut y, mut want) = (vec![0.0; rows * n], vec![0.0; rows * n]);
            let mut statistics = vec![(0.0, 0.0); rows];
            forward(&x, &gamma, &beta, 1e-5, &mut y, Some(&mut statistics));
            reference::layer(&x, &gamma, &beta, 1e-5, &mut want);
            let close = |a: &[f32], b: &[f32], tolerance: f32| {
                let size = b.iter().fold(1f32, |m, v| m.max(v.abs()));
                a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * size)
            };
            assert!(close(&y, &want, 2e-6), "{rows} x {n}");
            let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; rows * n], vec![0.0; n], vec![0.0; n]);
            backward(&x, &dy, &gamma, &statistics, &mut dx, &mut dgamma, &mut dbeta);
            let (mut rx, mut rgamma, mut rbeta) = (vec![0.0; rows * n], vec![0.0; n], vec![0.0; n]);
            reference::layer_backward(&x, &dy, &gamma, 1e-5, &mut rx, &mut rgamma, &mut rbeta);
            // A row of one element has no deviation: its gradient is zero but for what ε leaves of rounding.
            assert!(
                close(&dx, &rx, 1e-5) && close(&dgamma, &rgamma, 2e-5) && close(&dbeta, &rbeta, 1e-5),
                "{rows} x {n}"
            );
        }
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let (rows, n) = (333, 48);
        let (x, dy, gamma) = (noise(rows * n, 1), noise(rows * n, 2), noise(n, 3));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut statistics) = (vec![0.0; rows * n], vec![(0.0, 0.0); rows]);
            let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; rows * n], vec![0.0; n], vec![0.0; n]);
            pool.install(|| {
                forward(&x, &gamma, &gamma, 1e-5, &mut y, Some(&mut statistics));
                backward(&x, &dy, &gamma, &statistics, &mut dx, &mut dgamma, &mut dbeta);
            });
            [y, dx, dgamma, dbeta].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(3));
    }
}
