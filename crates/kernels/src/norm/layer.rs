//! Layer normalisation: every row by its own mean and variance.
//!
//! ```text
//! x̂ = (x − mean) / √(variance + ε),   y = x̂ · gamma + beta                    mean and variance over the row's n elements
//! dx = (g − mean(g) − x̂ · mean(g · x̂)) / √(variance + ε),  g = dy · gamma;   dgamma = Σ dy · x̂,  dbeta = Σ dy over rows
//! ```
//!
//! Ba, Kiros and Hinton, arXiv 1607.06450. Rows are independent; sums over rows are taken in fixed blocks of rows whose
//! totals are added in order, so that results do not depend on the number of threads.

use crate::multiversion::multiversion;
use crate::runs::{TILE, sum_tile};
use crate::threads;

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
    let blocks = y.chunks_mut(BLOCK * n).zip(x.chunks(BLOCK * n)).zip(statistics.chunks_mut(BLOCK));
    threads::for_each(blocks, |((y, x), statistics)| {
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
    let blocks = dx.chunks_mut(BLOCK * n).zip(x.chunks(BLOCK * n)).zip(dy.chunks(BLOCK * n));
    let blocks = blocks.zip(statistics.chunks(BLOCK)).collect();
    let parts: Vec<Vec<f32>> = threads::map_jobs(blocks, |(((dx, x), dy), statistics)| {
        // gamma's sums, then beta's.
        let mut sums = vec![0f32; 2 * n];
        let (gammas, betas) = sums.split_at_mut(n);
        let rows = dx.chunks_mut(n).zip(x.chunks(n)).zip(dy.chunks(n)).zip(statistics);
        for (((dx, x), dy), &(mean, scale)) in rows {
            row_backward(x, dy, gamma, mean, scale, dx, gammas, betas);
        }
        sums
    });
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
    use crate::testing::{UNIT, assert_within, bitwise, on_every_level, values};
    use proptest::prelude::*;

    /// On every level: within the bounds below of the reference, and the bits of the first level.
    fn check(rows: usize, n: usize, offset: f32) {
        let epsilon = 1e-5;
        let x: Vec<f32> = values(rows * n, 1).iter().map(|v| 3.0 * v + offset).collect();
        let (gamma, beta, dy) = (values(n, 2), values(n, 3), values(rows * n, 4));
        let (mut y, mut dx) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        let (mut dgamma, mut dbeta) = (vec![0.0; n], vec![0.0; n]);
        reference::layer(&x, &gamma, &beta, epsilon, &mut y);
        reference::layer_backward(&x, &dy, &gamma, epsilon, &mut dx, &mut dgamma, &mut dbeta);
        let bounds = Bounds::of(&x, &dy, &gamma, f64::from(epsilon));
        let mut first: Option<[Vec<f32>; 4]> = None;
        on_every_level(|isa| {
            let nan = |len: usize| vec![f32::NAN; len];
            let mut fast = [nan(rows * n), nan(rows * n), nan(n), nan(n)];
            let mut statistics = vec![(f32::NAN, f32::NAN); rows];
            let [fast_y, fast_dx, fast_dgamma, fast_dbeta] = &mut fast;
            forward(&x, &gamma, &beta, epsilon, fast_y, Some(&mut statistics));
            backward(&x, &dy, &gamma, &statistics, fast_dx, fast_dgamma, fast_dbeta);
            let what = format!("{rows} x {n} {isa:?}");
            let limit =
                |i: usize| bounds.normalised[i] * f64::from(gamma[i % n].abs()) + 2.0 * UNIT * f64::from(y[i].abs());
            assert_within(format_args!("y {what}"), fast_y, &y, limit);
            assert_within(format_args!("dx {what}"), fast_dx, &dx, |i| bounds.dx[i]);
            assert_within(format_args!("dgamma {what}"), fast_dgamma, &dgamma, |i| bounds.dgamma[i]);
            assert_within(format_args!("dbeta {what}"), fast_dbeta, &dbeta, |i| bounds.dbeta[i]);
            let first = first.get_or_insert_with(|| fast.clone());
            assert!(first.iter().zip(&fast).all(|(a, b)| bitwise(a, b)), "other bits: {what}");
        });
    }

    /// Bounds of the errors, from the magnitudes of the data; `docs/numerics.md` derives them. Sums along a row add 16 numbers
    /// in f32 at most, sums over rows 64.
    struct Bounds {
        /// Of x̂, before gamma.
        normalised: Vec<f64>,
        dx: Vec<f64>,
        dgamma: Vec<f64>,
        dbeta: Vec<f64>,
    }

    impl Bounds {
        fn of(x: &[f32], dy: &[f32], gamma: &[f32], epsilon: f64) -> Bounds {
            let n = gamma.len();
            let rows = (x.len() / n) as f64;
            let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
            let mean = |x: &mut dyn Iterator<Item = f64>| x.sum::<f64>() / n as f64;
            let mut bounds = Bounds { normalised: vec![], dx: vec![], dgamma: vec![0.0; n], dbeta: vec![0.0; n] };
            for (x, dy) in x.chunks(n).zip(dy.chunks(n)) {
                let (x, dy, gamma) = (wide(x), wide(dy), wide(gamma));
                let centre = mean(&mut x.iter().copied());
                let scale = 1.0 / (mean(&mut x.iter().map(|x| (x - centre).powi(2))) + epsilon).sqrt();
                let of_mean = 17.0 * UNIT * mean(&mut x.iter().map(|x| x.abs()));
                // Relative to the factor 1 / √(variance + ε).
                let of_scale = 11.0 * UNIT + (of_mean * scale).powi(2);
                let normalised: Vec<f64> = x.iter().map(|x| ((x - centre) * scale).abs()).collect();
                let of_normalised: Vec<f64> =
                    normalised.iter().map(|v| v * (of_scale + 3.0 * UNIT) + scale * of_mean).collect();
                let g: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, gamma)| (dy * gamma).abs()).collect();
                let plain = mean(&mut g.iter().copied());
                let crossed = mean(&mut g.iter().zip(&normalised).map(|(g, v)| g * v));
                let of_crossed = mean(&mut g.iter().zip(&of_normalised).map(|(g, v)| g * v)) + 19.0 * UNIT * crossed;
                for i in 0..n {
                    // g − plain − x̂ · crossed, each term with its own error, two subtractions and two products.
                    let sum = g[i] + plain + normalised[i] * crossed;
                    let of_sum = 18.0 * UNIT * plain + of_normalised[i] * crossed + normalised[i] * of_crossed;
                    bounds.dx.push(scale * (of_sum + sum * (of_scale + 5.0 * UNIT)));
                    let terms = rows.min(64.0) + 3.0;
                    bounds.dgamma[i] += dy[i].abs() * (of_normalised[i] + terms * UNIT * normalised[i]);
                    bounds.dbeta[i] += terms * UNIT * dy[i].abs();
                }
                bounds.normalised.extend(of_normalised);
            }
            bounds
        }
    }

    #[test]
    fn rows_are_normalised_as_the_formulas_say() {
        for n in [1, 3, 7, 15, 16, 17, 33, 192, 511, 513, 1031] {
            for rows in [1, 3, 65] {
                check(rows, n, 5.0);
            }
        }
        check(130, 17, -0.3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn any_shape(rows in 1..150_usize, n in 1..600_usize, offset in -10.0..10.0_f32) {
            check(rows, n, offset);
        }
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let (rows, n) = (333, 48);
        let (x, dy, gamma) = (values(rows * n, 1), values(rows * n, 2), values(n, 3));
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
