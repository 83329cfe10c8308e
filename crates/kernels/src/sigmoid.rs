//! The logistic function and its complement, fast enough to be recomputed instead of stored.
//!
//! ```text
//! e = exp(−x)      x clamped to ±43, so that products of two such numbers and their reciprocals stay normal
//! σ(x) = 1 / (1 + e)          1 − σ(x) = e · σ(x)          (no cancellation: relative accuracy in both tails)
//! σ(x) − σ(y) = (e_y − e_x) / ((1 + e_x)(1 + e_y))         (one division for two sigmoids)
//! exp(t) = 2^n · exp(r),  n = round(t / ln 2),  r = t − n·ln 2 in two parts (Cody and Waite),  |r| ≤ 0.35
//! exp(r) = 1 + r + r²·P₅(r), the minimax polynomial of Cephes' `expf`
//! ```
//!
//! Error bounds, tested against double precision over 16 million arguments: relative error of σ and of 1 − σ at
//! most 3e-7 (about 5 units in the last place) for |x| ≤ 43; beyond, absolute error at most 2.2e-19. Multiply-adds are
//! written as such (`mul_add`, exact in hardware and in software alike), so the bits are the same on every machine. NaN
//! gives NaN.

use crate::multiversion::multiversion;
use crate::simd::Vector;

/// Arguments are clamped to ± this.
const LIMIT: f32 = 43.0;
/// 1.5 · 2^23: adding it rounds to an integer, half to even.
const ROUND_MAGIC: f32 = 12_582_912.0;
/// ln 2 = LN2_HIGH + LN2_LOW; the first has few significant bits, so that `x - n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// exp(r) = 1 + r + r² · (these, highest power first), for |r| ≤ ln 2 / 2.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// σ(x) = 1 / (1 + exp(−x)).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_clamped(-x))
}

/// (σ(x), 1 − σ(x)), both to full relative accuracy; their product is the derivative.
#[inline(always)]
pub fn sigmoid_and_complement(x: f32) -> (f32, f32) {
    let e = exp_clamped(-x);
    let p = 1.0 / (1.0 + e);
    (p, e * p)
}

/// σ(x) and σ(y) with their complements, for the price of one division.
#[derive(Debug, Clone, Copy)]
pub struct SigmoidPair {
    /// (σ(x), 1 − σ(x)).
    pub x: (f32, f32),
    /// (σ(y), 1 − σ(y)).
    pub y: (f32, f32),
    /// σ(x) − σ(y), without cancellation beyond that of `e_y − e_x`.
    pub difference: f32,
}

/// See [`SigmoidPair`].
#[inline(always)]
pub fn sigmoid_pair(x: f32, y: f32) -> SigmoidPair {
    let (ex, ey) = (exp_clamped(-x), exp_clamped(-y));
    let (dx, dy) = (1.0 + ex, 1.0 + ey);
    let r = 1.0 / (dx * dy);
    let (p, q) = (r * dy, r * dx);
    SigmoidPair { x: (p, ex * p), y: (q, ey * q), difference: r * (ey - ex) }
}

/// exp(x) for x clamped to ±43; relative error at most 1.5e-7.
#[inline(always)]
pub fn exp_clamped(x: f32) -> f32 {
    // Comparisons instead of `clamp`: they keep NaN and compile to two vector instructions.
    let x = if x < -LIMIT { -LIMIT } else { x };
    let x = if x > LIMIT { LIMIT } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND_MAGIC);
    let n = shifted - ROUND_MAGIC;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut poly = EXP[0];
    for coefficient in &EXP[1..] {
        poly = poly.mul_add(r, *coefficient);
    }
    let exp_r = poly.mul_add(r * r, r) + 1.0;
    // The low mantissa bits of `shifted` hold n; |n| ≤ 63, so the exponent field stays valid.
    let exponent = (shifted.to_bits().wrapping_sub(ROUND_MAGIC.to_bits())).wrapping_add(127);
    exp_r * f32::from_bits(exponent << 23)
}

/// [`exp_clamped`] of some vectors, side by side: one alone would wait for itself.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp_clamped_of<V: Vector, const N: usize>(mut x: [V; N]) -> [V; N] {
    // SAFETY: register arithmetic; the caller promises the instruction set.
    unsafe {
        let (low, high) = (V::splat(-LIMIT), V::splat(LIMIT));
        for x in &mut x {
            let clamped = x.select_less(low, low, *x);
            *x = high.select_less(clamped, high, clamped);
        }
        let magic = V::splat(ROUND_MAGIC);
        let (mut shifted, mut r) = (x, x);
        for i in 0..N {
            shifted[i] = x[i].fused(V::splat(std::f32::consts::LOG2_E), magic);
        }
        for i in 0..N {
            let n = shifted[i].sub(magic);
            r[i] = n.fused(V::splat(-LN2_LOW), n.fused(V::splat(-LN2_HIGH), x[i]));
        }
        let mut poly = [V::splat(EXP[0]); N];
        for coefficient in &EXP[1..] {
            for i in 0..N {
                poly[i] = poly[i].fused(r[i], V::splat(*coefficient));
            }
        }
        for i in 0..N {
            let exp_r = poly[i].fused(r[i].mul(r[i]), r[i]).add(V::splat(1.0));
            x[i] = exp_r.mul(shifted[i].power_of_two(ROUND_MAGIC));
        }
        x
    }
}

multiversion! {
    /// σ of every element.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn sigmoid_slice(x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "one result per argument");
        for (y, &x) in out.iter_mut().zip(x) {
            *y = sigmoid(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::on_every_level;

    #[test]
    fn error_is_within_the_stated_bound() {
        let (mut worst, mut worst_complement, mut worst_exp) = (0f64, 0f64, 0f64);
        // Every 257th bit pattern of both signs: every exponent, all regions of the mantissa.
        for bits in (0..=u32::MAX).step_by(257) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let (p, c) = sigmoid_and_complement(x);
            assert_eq!(p, sigmoid(x));
            let y = f32::from_bits(bits.rotate_left(1)).clamp(-20.0, 20.0);
            let y = if y.is_nan() { 0.0 } else { y };
            let pair = sigmoid_pair(x, y);
            let (py, cy) = sigmoid_and_complement(y);
            let close = |a: f32, b: f32| (a - b).abs() <= 4e-7 * b.abs();
            assert!(close(pair.x.0, p) && close(pair.x.1, c) && close(pair.y.0, py) && close(pair.y.1, cy));
            assert!((pair.difference - (p - py)).abs() <= 2e-7, "{x} {y}");
            let e = (-f64::from(x)).exp();
            let (p64, c64) = (1.0 / (1.0 + e), 1.0 / (1.0 + f64::from(x).exp()));
            if x.abs() <= LIMIT {
                worst = worst.max((f64::from(p) / p64 - 1.0).abs());
                worst_complement = worst_complement.max((f64::from(c) / c64 - 1.0).abs());
                worst_exp = worst_exp.max((f64::from(exp_clamped(-x)) / e - 1.0).abs());
            } else {
                assert!((f64::from(p) - p64).abs() < 2.2e-19 && (f64::from(c) - c64).abs() < 2.2e-19);
            }
        }
        println!("relative errors: {worst:e} {worst_complement:e} exp {worst_exp:e}");
        assert!(worst <= 3e-7 && worst_complement <= 3e-7, "{worst:e} {worst_complement:e}");
        assert!(worst_exp <= 1.5e-7, "{worst_exp:e}");
    }

    #[test]
    fn special_values() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid_and_complement(f32::INFINITY).0, 1.0);
        assert!(sigmoid(f32::NEG_INFINITY) < 2.2e-19);
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!(sigmoid(20.0), 1.0);
    }

    #[test]
    fn slices_equal_scalars_bit_for_bit() {
        for n in [0usize, 1, 3, 7, 15, 16, 17, 33, 101, 4097] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 50.0) * 1.7).collect();
            on_every_level(|isa| {
                let mut y = vec![f32::NAN; n];
                sigmoid_slice(&x, &mut y);
                assert!(x.iter().zip(&y).all(|(&x, &y)| sigmoid(x).to_bits() == y.to_bits()), "{isa:?} {n}");
            });
        }
    }
}
