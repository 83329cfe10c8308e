//! The naive specification of the integer kernels.

use crate::conv::ConvShape;
use crate::numerics::Code;
use crate::pool::{Padding, PoolShape};
use crate::reference::conv::for_each_product;
use std::ops::Range;

/// Convolution: `acc = Σ (x − zero_point) · w`, taps in the padding left out. `x` NHWC, `w` OIHW, `acc` NHWC.
///
/// # Panics
/// If the shape is not valid or a slice has another length than the shape says.
pub fn conv<A: Code>(shape: &ConvShape, x: &[A], zero_point: i32, w: &[i8], acc: &mut [i32]) {
    shape.assert_lengths(x.len(), w.len(), acc.len());
    acc.fill(0);
    for_each_product(shape, |xi, wi, yi| {
        let term = x[xi].to_code().wrapping_sub(zero_point).wrapping_mul(i32::from(w[wi]));
        acc[yi] = acc[yi].wrapping_add(term);
    });
}

/// Linear layer: `x` `[rows, inputs]`, `w` `[outputs, inputs]`, `acc` `[rows, outputs]`.
///
/// # Panics
/// If lengths disagree.
pub fn linear<A: Code>(inputs: usize, x: &[A], zero_point: i32, w: &[i8], acc: &mut [i32]) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert!(x.len() == rows * inputs && w.len() == outputs * inputs && acc.len() == rows * outputs, "lengths disagree");
    for (i, acc) in acc.iter_mut().enumerate() {
        let (x, w) = (&x[i / outputs * inputs..][..inputs], &w[i % outputs * inputs..][..inputs]);
        let term = |(x, w): (&A, &i8)| (x.to_code() - zero_point).wrapping_mul(i32::from(*w));
        *acc = x.iter().zip(w).map(term).fold(0, i32::wrapping_add);
    }
}

/// The input coordinates that window `index` covers along `axis`, and its length inside the padded input.
fn span(shape: &PoolShape, axis: usize, index: usize) -> (Range<usize>, usize) {
    let size = [shape.in_h, shape.in_w][axis];
    let (before, after) = (shape.pads[axis], shape.pads[axis + 2]);
    let start = index * shape.stride[axis];
    let end = (start + shape.kernel[axis]).min(size + before + after);
    (start.saturating_sub(before)..end.saturating_sub(before).min(size), end - start)
}

/// Calls `visit(output offset, offsets of the window's elements)`.
fn for_each_window(shape: &PoolShape, mut visit: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
    let s = *shape;
    let (out_h, out_w) = (s.out_h(), s.out_w());
    for at in 0..s.output_len() {
        let (c, pixel) = (at % s.channels, at / s.channels);
        let (ow, oh, n) = (pixel % out_w, pixel / out_w % out_h, pixel / out_w / out_h);
        let (rows, columns) = (span(&s, 0, oh).0, span(&s, 1, ow).0);
        let offset = move |ih: usize, iw: usize| ((n * s.in_h + ih) * s.in_w + iw) * s.channels + c;
        visit(at, &mut rows.flat_map(|ih| columns.clone().map(move |iw| offset(ih, iw))));
    }
}

/// Maximum of the codes of each window: padding never wins.
pub fn max_pool<A: Code>(shape: &PoolShape, x: &[A], y: &mut [A]) {
    for_each_window(shape, |at, window| {
        let largest = window.map(|i| x[i].to_code()).max();
        y[at] = A::from_code(largest.expect("a valid window meets the input"));
    });
}

/// Sums of `x − zero_point` over each window; padding adds 0.
pub fn pool_sums<A: Code>(shape: &PoolShape, x: &[A], zero_point: i32, sums: &mut [i32]) {
    for_each_window(shape, |at, window| sums[at] = window.map(|i| x[i].to_code() - zero_point).sum());
}

/// What an average divides by, per output pixel `[out_h, out_w]`.
pub fn pool_counts(shape: &PoolShape) -> Vec<u32> {
    let (out_h, out_w) = (shape.out_h(), shape.out_w());
    let count = |axis: usize, index: usize| {
        let (real, padded) = span(shape, axis, index);
        match shape.padding {
            Padding::Ignored => real.len(),
            Padding::Counted => padded,
        }
    };
    (0..out_h * out_w).map(|i| (count(0, i / out_w) * count(1, i % out_w)) as u32).collect()
}
