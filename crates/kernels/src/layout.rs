//! Moving between channels-first and channels-last, and plain transposes. Copies, never in place.

use rayon::prelude::*;

/// Rows and columns of the squares that a transpose works in: both sides of a 16x16 square stay in the first cache.
const BLOCK: usize = 16;

/// `[batch, channels, pixels]` to `[batch, pixels, channels]`, where `pixels` is height times width.
///
/// # Panics
/// If a slice has another length than `batch * channels * pixels`.
pub fn nchw_to_nhwc(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    batched_transpose(batch, channels, pixels, x, y);
}

/// `[batch, pixels, channels]` to `[batch, channels, pixels]`, the inverse of [`nchw_to_nhwc`].
///
/// # Panics
/// As [`nchw_to_nhwc`].
pub fn nhwc_to_nchw(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    batched_transpose(batch, pixels, channels, x, y);
}

/// `[rows, columns]` to `[columns, rows]`, both row-major.
///
/// # Panics
/// If a slice has another length than `rows * columns`.
pub fn transpose_2d(rows: usize, columns: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), rows * columns, "length of x");
    assert_eq!(y.len(), x.len(), "length of y");
    for row0 in (0..rows).step_by(BLOCK) {
        for column0 in (0..columns).step_by(BLOCK) {
            for column in column0..columns.min(column0 + BLOCK) {
                for row in row0..rows.min(row0 + BLOCK) {
                    y[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
}

fn batched_transpose(batch: usize, rows: usize, columns: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), batch * rows * columns, "length of x");
    assert_eq!(y.len(), x.len(), "length of y");
    let image = (rows * columns).max(1);
    x.par_chunks(image).zip(y.par_chunks_mut(image)).for_each(|(x, y)| transpose_2d(rows, columns, x, y));
}

#[cfg(test)]
mod tests {
    use super::{nchw_to_nhwc, nhwc_to_nchw, transpose_2d};

    #[test]
    fn by_hand() {
        let mut y = [0.0; 6];
        transpose_2d(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut y);
        assert_eq!(y, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn round_trip() {
        for (batch, channels, pixels) in [(1, 1, 1), (2, 3, 35), (3, 17, 16), (1, 33, 49), (0, 3, 4)] {
            let x: Vec<f32> = (0..batch * channels * pixels).map(|i| i as f32).collect();
            let (mut y, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            nchw_to_nhwc(batch, channels, pixels, &x, &mut y);
            for n in 0..batch {
                for c in 0..channels {
                    for p in 0..pixels {
                        assert_eq!(y[(n * pixels + p) * channels + c], x[(n * channels + c) * pixels + p]);
                    }
                }
            }
            nhwc_to_nchw(batch, channels, pixels, &y, &mut back);
            assert_eq!(x, back);
        }
    }
}
