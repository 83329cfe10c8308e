//! Pooling on codes: maxima stay codes, averages become sums and counts (the division happens in the epilogue, in f32).

pub use super::reference::pool_counts;

use super::Operand;
use crate::pool::PoolShape;
use rayon::prelude::*;

/// The largest code of each window; padding never wins. Monotone, so it commutes with decoding.
///
/// # Panics
/// If the shape is not valid or a slice has another length than it says.
pub fn max_pool<A: Operand>(shape: &PoolShape, x: &[A], y: &mut [A]) {
    for_each_pixel(shape, x, y, |window, out| {
        let mut first = true;
        for pixel in window {
            if first {
                out.copy_from_slice(pixel);
                first = false;
            } else {
                for (y, &x) in out.iter_mut().zip(pixel) {
                    *y = if x.to_code() > y.to_code() { x } else { *y };
                }
            }
        }
    });
}

/// Sums of `x − zero_point` over each window; padding adds 0. The average is `scale · sum / count`, see [`pool_counts`].
///
/// # Panics
/// If the shape is not valid or a slice has another length than it says.
pub fn pool_sums<A: Operand>(shape: &PoolShape, x: &[A], zero_point: i32, sums: &mut [i32]) {
    for_each_pixel(shape, x, sums, |window, out| {
        out.fill(0);
        for pixel in window {
            for (sum, &x) in out.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(x.to_code() - zero_point);
            }
        }
    });
}

/// Calls `run(pixels of the window, output pixel)` for every output pixel, images in parallel.
fn for_each_pixel<A: Operand, O: Send>(
    shape: &PoolShape,
    x: &[A],
    out: &mut [O],
    run: impl Fn(&mut dyn Iterator<Item = &[A]>, &mut [O]) + Sync,
) {
    let s = *shape;
    s.assert_lengths(x.len(), out.len());
    let (out_h, out_w, channels) = (s.out_h(), s.out_w(), s.channels);
    let row_len = out_w * channels;
    out.par_chunks_mut(row_len).enumerate().for_each(|(row, out)| {
        let (image, oh) = (row / out_h, row % out_h);
        let x = &x[image * s.in_h * s.in_w * channels..][..s.in_h * s.in_w * channels];
        for (ow, out) in out.chunks_exact_mut(channels).enumerate() {
            let columns = s.span(ow, 1).0;
            let mut pixels = s.span(oh, 0).0.flat_map(|ih| {
                let row = &x[(ih * s.in_w + columns.start) * channels..(ih * s.in_w + columns.end) * channels];
                row.chunks_exact(channels)
            });
            run(&mut pixels, out);
        }
    });
}
