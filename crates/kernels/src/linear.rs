//! Gradients of a linear layer, `y = x · w`, by the loops of pointwise convolutions where those multiply pairs of bf16, else by
//! matrix products.

use crate::conv::{self, ConvShape, Precision};
use crate::gemm::Order::{Plain, Transposed};
use crate::gemm::matmul;
use crate::isa::Isa;

/// Fewer multiply-accumulates are not worth a conversion.
const WORTH_CONVERTING: usize = 1 << 18;

/// `dx [m, k]` from `dy [m, n]` and `w [k, n]`, or `[n, k]` where `transposed`.
///
/// # Panics
/// If a slice has another length than `[m, k, n]` says.
pub fn backward_input(size: [usize; 3], precision: Precision, dy: &[f32], w: &[f32], transposed: bool, dx: &mut [f32]) {
    let [m, k, n] = size;
    match pointwise(size, precision, transposed).filter(|_| n.is_multiple_of(2)) {
        Some(shape) if transposed => conv::backward_input(&shape, precision, dy, w, dx),
        Some(shape) => conv::forward_rounded(&shape, precision, dy, w, dx),
        None => matmul([m, n, k], dy, Plain, w, if transposed { Plain } else { Transposed }, dx),
    }
}

/// `dw`, as `w` lies, from `x [m, k]` and `dy [m, n]`.
///
/// # Panics
/// As [`backward_input`].
pub fn backward_weight(
    size: [usize; 3],
    precision: Precision,
    x: &[f32],
    dy: &[f32],
    transposed: bool,
    dw: &mut [f32],
) {
    let [m, k, n] = size;
    match (pointwise(size, precision, transposed), transposed) {
        (Some(shape), true) => conv::backward_weight(&shape, precision, x, dy, dw),
        (Some(shape), false) => conv::backward_weight(&shape, precision, dy, x, dw),
        (None, true) => matmul([n, m, k], dy, Transposed, x, Plain, dw),
        (None, false) => matmul([k, m, n], x, Transposed, dy, Plain, dw),
    }
}

/// The pointwise convolution whose weight, OIHW, lies as `w` does: from k channels to n where it is transposed, else from n to k. The rows
/// are two images, so that pairs of pixels can be summed, of lines that fit the tiles. None where that cannot be or is not worth it.
fn pointwise([m, k, n]: [usize; 3], precision: Precision, transposed: bool) -> Option<ConvShape> {
    let is_small = m.saturating_mul(k).saturating_mul(n) < WORTH_CONVERTING || k.min(n) < 16;
    if !precision.pairs(Isa::current()) || is_small || !m.is_multiple_of(2) {
        return None;
    }
    let pixels = m / 2;
    // Tiles are 8 wide.
    let width = [64, 56, 48, 40, 32, 24, 16, 8].into_iter().find(|&width| pixels.is_multiple_of(width))?;
    let (c_in, c_out) = if transposed { (k, n) } else { (n, k) };
    Some(ConvShape { batch: 2, in_h: pixels / width, in_w: width, ..ConvShape::square(2, 1, c_in, c_out, 1, 1) })
}

#[cfg(test)]
mod tests {
    use super::{backward_input, backward_weight, pointwise};
    use crate::conv::Precision;
    use crate::gemm::Order::{Plain, Transposed};
    use crate::reference::gemm::matmul;
    use crate::testing::{UNIT, assert_within, on_every_level, values};

    #[test]
    fn equals_reference() {
        on_every_level(|isa| {
            for (m, k, n) in [(1, 1, 1), (16, 128, 128), (64, 96, 72), (3152, 16, 24), (394, 64, 33), (63, 128, 64)] {
                for transposed in [false, true] {
                    for precision in [Precision::Full, Precision::Bf16] {
                        let (x, dy, w) = (values(m * k, 1), values(m * n, 2), values(k * n, 3));
                        let magnitudes = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
                        let order = if transposed { Plain } else { Transposed };
                        let slow = |x: &[f32], dy: &[f32], w: &[f32]| {
                            let (mut dx, mut dw) = (vec![0.0; m * k], vec![0.0; k * n]);
                            matmul([m, n, k], dy, Plain, w, order, &mut dx);
                            match transposed {
                                true => matmul([n, m, k], dy, Transposed, x, Plain, &mut dw),
                                false => matmul([k, m, n], x, Transposed, dy, Plain, &mut dw),
                            }
                            (dx, dw)
                        };
                        let (dx, dw) = slow(&x, &dy, &w);
                        let (dx_bound, dw_bound) = slow(&magnitudes(&x), &magnitudes(&dy), &magnitudes(&w));
                        let (mut fast_dx, mut fast_dw) = (vec![f32::NAN; m * k], vec![f32::NAN; k * n]);
                        backward_input([m, k, n], precision, &dy, &w, transposed, &mut fast_dx);
                        backward_weight([m, k, n], precision, &x, &dy, transposed, &mut fast_dw);
                        let rounding = if precision == Precision::Bf16 && isa.has_bf16() { 0.008 } else { 0.0 };
                        let what = format!("{m}x{k}x{n} {transposed} {precision:?} {isa:?}");
                        let limit =
                            |terms: usize, bound: f32| ((terms + 2) as f64 * UNIT + rounding) * f64::from(bound);
                        assert_within(format_args!("dx {what}"), &fast_dx, &dx, |i| limit(n, dx_bound[i]));
                        assert_within(format_args!("dw {what}"), &fast_dw, &dw, |i| limit(m, dw_bound[i]));
                    }
                }
            }
        });
    }

    #[test]
    fn rows_become_images() {
        on_every_level(|isa| {
            let shape = |m| pointwise([m, 192, 576], Precision::Bf16, true);
            assert_eq!(shape(16 * 197).map(|s| [s.batch, s.in_h, s.in_w]), isa.has_bf16().then_some([2, 197, 8]));
            assert_eq!(shape(2 * 197), None, "lines of one or 197 pixels");
            assert_eq!(pointwise([3152, 192, 576], Precision::Full, true), None);
        });
    }
}
