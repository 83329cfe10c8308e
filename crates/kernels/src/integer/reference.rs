//! The naive specification of the integer kernels.

use super::ByteGrid;
use crate::conv::ConvShape;
use crate::numerics::Code;
use crate::reference::conv::for_each_product;

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

/// Products of matrices of codes, as many `[m, k]` and `[k, n]` as there are; see [`super::matmul`].
///
/// # Panics
/// If lengths disagree.
pub fn matmul([m, k, n]: [usize; 3], a: (&[u8], ByteGrid), b: (&[u8], ByteGrid), out: &mut [f32]) {
    let scale = a.1.scale * b.1.scale;
    for (i, out) in out.iter_mut().enumerate() {
        let (matrix, row, column) = (i / (m * n), i / n % m, i % n);
        let mut sum = 0i64;
        for at in 0..k {
            let x = i64::from(a.0[(matrix * m + row) * k + at]) - i64::from(a.1.zero_point);
            let w = i64::from(b.0[(matrix * k + at) * n + column]) - i64::from(b.1.zero_point);
            sum += x * w;
        }
        *out = sum as f32 * scale;
    }
}
