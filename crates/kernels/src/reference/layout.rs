//! Transposes by their index formula.

/// See [`crate::layout::nchw_to_nhwc`].
pub fn nchw_to_nhwc(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    for n in 0..batch {
        transpose_2d(channels, pixels, &x[n * channels * pixels..], &mut y[n * channels * pixels..]);
    }
}

/// See [`crate::layout::nhwc_to_nchw`].
pub fn nhwc_to_nchw(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    nchw_to_nhwc(batch, pixels, channels, x, y);
}

/// See [`crate::layout::transpose`].
pub fn transpose_2d(rows: usize, columns: usize, x: &[f32], y: &mut [f32]) {
    for row in 0..rows {
        for column in 0..columns {
            y[column * rows + row] = x[row * columns + column];
        }
    }
}
