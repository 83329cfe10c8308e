//! Softmax over rows, and its gradient.

use crate::multiversion::multiversion;
use crate::sigmoid::exp_clamped;
use crate::threads::for_each_part;

/// `e^(x − max) / Σ` of each row of `n` elements, or its logarithm.
///
/// # Panics
/// If lengths differ.
pub fn forward(n: usize, log: bool, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "one result per element");
    for_each_part(y, n, |at, y| rows(n, log, &x[at..at + y.len()], y));
}

/// `dx = y · (dy − Σ y · dy)` of each row of `n` elements, where `y` is what [`forward`] gave without the logarithm.
///
/// # Panics
/// If lengths differ.
pub fn backward(n: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(y.len() == dy.len() && y.len() == dx.len(), "one gradient per element");
    for_each_part(dx, n, |at, dx| {
        let range = at..at + dx.len();
        gradient_rows(n, &y[range.clone()], &dy[range], dx);
    });
}

multiversion! {
    fn rows(n: usize, log: bool, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(n.max(1)).zip(y.chunks_exact_mut(n.max(1))) {
            // Side by side as the sum below: one comparison after the other took longer than all the rest.
            let mut highest = [f32::NEG_INFINITY; 16];
            let (whole, rest) = x.as_chunks::<16>();
            for part in whole {
                for (max, &x) in highest.iter_mut().zip(part) {
                    *max = if x > *max { x } else { *max };
                }
            }
            let max = rest.iter().chain(&highest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
            for (y, &x) in y.iter_mut().zip(x) {
                *y = exp_clamped(x - max);
            }
            // Side by side, so that the sum is vectorised; what is left over comes last.
            let mut lanes = [0f32; 8];
            let (whole, rest) = y.as_chunks::<8>();
            for part in whole {
                for (sum, y) in lanes.iter_mut().zip(part) {
                    *sum += y;
                }
            }
            let sum = rest.iter().chain(&lanes).sum::<f32>();
            if log {
                let offset = max + sum.ln();
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - offset);
            } else {
                y.iter_mut().for_each(|y| *y /= sum);
            }
        }
    }
}

multiversion! {
    fn gradient_rows(n: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        let n = n.max(1);
        for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let mut lanes = [0f32; 8];
            let ((whole, rest), (dy_whole, dy_rest)) = (y.as_chunks::<8>(), dy.as_chunks::<8>());
            for (y, dy) in whole.iter().zip(dy_whole) {
                for i in 0..8 {
                    lanes[i] += y[i] * dy[i];
                }
            }
            let sum = rest.iter().zip(dy_rest).map(|(y, dy)| y * dy).chain(lanes).sum::<f32>();
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = y * (dy - sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{backward, forward};

    /// Softmax of a row in double precision.
    fn reference(x: &[f32]) -> Vec<f64> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f64> = x.iter().map(|&x| f64::from(x - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    #[test]
    fn equals_the_definition() {
        for (rows, n) in [(1, 1), (3, 5), (7, 8), (20, 17), (50, 197)] {
            let x: Vec<f32> = (0..rows * n).map(|i| ((i * 7919 % 401) as f32 - 200.0) / 31.0).collect();
            let dy: Vec<f32> = (0..rows * n).map(|i| ((i * 5039 % 211) as f32 - 105.0) / 50.0).collect();
            let (mut y, mut log, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
            forward(n, false, &x, &mut y);
            forward(n, true, &x, &mut log);
            backward(n, &y, &dy, &mut dx);
            for row in 0..rows {
                let range = row * n..(row + 1) * n;
                let want = reference(&x[range.clone()]);
                let mean: f64 = want.iter().zip(&dy[range.clone()]).map(|(y, &dy)| y * f64::from(dy)).sum();
                for (i, want) in range.zip(want) {
                    // The exponential is good to 1.5e-7 of itself, a sum of n positive numbers to n half units.
                    let bound = (n as f64 * 6e-8 + 1e-6) * want + 1e-30;
                    assert!((f64::from(y[i]) - want).abs() <= bound, "{rows}x{n}: {} against {want}", y[i]);
                    assert!(
                        (f64::from(log[i]) - want.ln()).abs() <= 1e-5,
                        "{rows}x{n}: {} against {}",
                        log[i],
                        want.ln()
                    );
                    let gradient = want * (f64::from(dy[i]) - mean);
                    assert!((f64::from(dx[i]) - gradient).abs() <= 1e-5 * want + 1e-30, "{rows}x{n}: {}", dx[i]);
                }
            }
        }
    }
}
