//! The single home of rounding, saturation and requantisation: every other file calls these and none retypes them.
//!
//! ```text
//! quantize    q = clamp(round_half_even(x / scale) + zero_point, q_min, q_max)        (ONNX QuantizeLinear)
//! dequantize  x̂ = scale · (q − zero_point) as f32                                     (ONNX DequantizeLinear)
//! requantise  q = quantize(acc as f32 · multiplier + offset)
//! batch-norm  a = gamma / sqrt(var + eps),  b = beta − mean · a,  y = x · a + b        (two roundings, not fused)
//! ```
//!
//! **Division, not a reciprocal.** `x / scale` and `x * (1 / scale)` differ in the last place, hence sometimes in the code.
//!
//! **One rounding idiom, vectorisable on every machine.** `f32::round_ties_even` is a library call on baseline x86-64.
//! Adding and subtracting 1.5 · 2^23 rounds half to even as long as |v| ≤ 2^22, and clamping to integer bounds
//! commutes with rounding, so clamping *first* makes the idiom exact for every input: [`round_clamped`].
//!
//! **NaN** becomes the zero point (the code of 0.0); infinities saturate; −0.0 is 0.0. A scale must be positive and finite.
//!
//! **Accumulators** are i32. [`max_exact_dot`] states how long a dot product may be for the conversion to f32 to be
//! exact, [`max_i32_dot`] how long for the accumulator not to overflow.

/// Adding this to a number of magnitude at most 2^22 leaves its rounded value in the low mantissa bits.
const ROUND_MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23

/// Largest magnitude of codes, zero points and their differences that [`quantize`] accepts: 2^22.
pub const CODE_LIMIT: i32 = 1 << 22;

/// The nearest code to `x`: divide, round half to even, add `zero_point`, saturate to `q_min..=q_max`.
///
/// NaN gives `zero_point`; ±infinity saturates. All of `q_min`, `q_max`, `q_min - zero_point` and `q_max - zero_point`
/// must lie within ±[`CODE_LIMIT`] (any grid of up to 16 bits does) and `q_min <= zero_point <= q_max`.
///
/// ```
/// use bitsmith_kernels::numerics::quantize;
/// assert_eq!(quantize(2.5, 1.0, 0, -7, 7), 2); // half to even
/// assert_eq!(quantize(3.5, 1.0, 0, -7, 7), 4);
/// assert_eq!(quantize(-0.3, 0.1, 4, 0, 15), 1);
/// assert_eq!(quantize(f32::NEG_INFINITY, 0.1, 4, 0, 15), 0);
/// assert_eq!(quantize(f32::NAN, 0.1, 4, 0, 15), 4);
/// ```
#[inline(always)]
pub fn quantize(x: f32, scale: f32, zero_point: i32, q_min: i32, q_max: i32) -> i32 {
    debug_assert!(q_min <= zero_point && zero_point <= q_max);
    debug_assert!(-CODE_LIMIT <= q_min - zero_point && q_max - zero_point <= CODE_LIMIT);
    let low = (q_min - zero_point) as f32;
    let high = (q_max - zero_point) as f32;
    round_clamped_to_i32(x / scale, low, high) + zero_point
}

/// `round_half_even(clamp(v, low, high))` as a float; `low` and `high` are integers within ±2^22. NaN stays NaN.
///
/// A zero result is always +0.0 or keeps no meaning in its sign.
#[inline(always)]
pub fn round_clamped(v: f32, low: f32, high: f32) -> f32 {
    (clamp(v, low, high) + ROUND_MAGIC) - ROUND_MAGIC
}

/// [`round_clamped`] as an integer, with NaN giving 0.
#[inline(always)]
pub fn round_clamped_to_i32(v: f32, low: f32, high: f32) -> i32 {
    let v = if v.is_nan() { 0.0 } else { v };
    // The mantissa of the sum holds the integer; both bit patterns have the same exponent, so their difference is it.
    ((clamp(v, low, high) + ROUND_MAGIC).to_bits() as i32).wrapping_sub(ROUND_MAGIC.to_bits() as i32)
}

/// [`round_clamped_to_i32`], and how far the clamped number is from its integer. NaN gives any integer, at the distance NaN.
#[inline(always)]
pub fn round_clamped_and_distance(v: f32, low: f32, high: f32) -> (i32, f32) {
    let v = clamp(v, low, high);
    let sum = v + ROUND_MAGIC;
    ((sum.to_bits() as i32).wrapping_sub(ROUND_MAGIC.to_bits() as i32), (v - (sum - ROUND_MAGIC)).abs())
}

/// Clamps without `f32::clamp`'s check of its bounds, which hinders vectorisation. NaN stays NaN.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// The number a code stands for: `scale * (q - zero_point)`, one multiplication.
///
/// The difference must not overflow and must lie within ±2^24 to be exact (any grid of up to 16 bits does).
#[inline(always)]
pub fn dequantize(q: i32, scale: f32, zero_point: i32) -> f32 {
    scale * (q - zero_point) as f32
}

/// An integer accumulator brought to a new grid: `quantize(acc as f32 * multiplier + offset, …)`.
///
/// `multiplier` is `scale_x * scale_w[channel]`. The product is rounded before `offset` is added. This is the short
/// form; `crate::integer` chains bias, batch-norm, residual and activation in the order of the graph.
#[inline(always)]
pub fn requantize(acc: i32, multiplier: f32, offset: f32, scale: f32, zero_point: i32, q_min: i32, q_max: i32) -> i32 {
    quantize(acc as f32 * multiplier + offset, scale, zero_point, q_min, q_max)
}

/// Frozen batch-norm as `y = x * a + b` (a plain multiplication, then a plain addition): returns `(a, b)`.
///
/// `a = gamma / sqrt(var + eps)`, `b = beta - mean * a`. Engine, runtime and freeze all call this one.
#[inline(always)]
pub fn batch_norm_affine(gamma: f32, beta: f32, mean: f32, var: f32, eps: f32) -> (f32, f32) {
    let a = gamma / (var + eps).sqrt();
    (a, beta - mean * a)
}

/// Smallest and largest code of an affine grid of `bits` bits (1..=16).
///
/// | signed | symmetric | range | 4 bits |
/// |---|---|---|---|
/// | yes | yes | ±(2^(b−1) − 1) | −7..=7 |
/// | yes | no | −2^(b−1) ..= 2^(b−1) − 1 | −8..=7 |
/// | no | either | 0 ..= 2^b − 1 | 0..=15 |
///
/// One signed symmetric bit is the single code 0: binary weights are a codebook {−1, +1}, not an affine grid.
///
/// # Panics
/// If `bits` is 0 or above 16.
pub const fn code_range(bits: u8, signed: bool, symmetric: bool) -> (i32, i32) {
    assert!(bits >= 1 && bits <= 16, "an affine grid has 1 to 16 bits");
    match (signed, symmetric) {
        (true, true) => (1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1),
        (true, false) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        (false, _) => (0, (1 << bits) - 1),
    }
}

/// Scale and zero point of the affine grid that covers `min..=max`; zero is always exactly representable.
///
/// The range is first widened to contain 0. Symmetric grids have zero point 0 and `scale = max(|min|, |max|) / q_max`
/// (unsigned ones: `max / q_max`, the negative part saturates). Others spread the range over all codes and round the zero
/// point half to even. Degenerate input never fails: an empty, all-zero or NaN range gives scale 1; infinite bounds
/// count as `f32::MAX`; a scale below the smallest normal number is raised to it.
pub fn scale_from_range(min: f32, max: f32, bits: u8, signed: bool, symmetric: bool) -> (f32, i32) {
    let (q_min, q_max) = code_range(bits, signed, symmetric);
    // `f32::min` and `max` return the other operand for NaN. Double precision keeps `max - min` from overflowing.
    let min = f64::from(min.min(0.0)).max(f64::from(f32::MIN));
    let max = f64::from(max.max(0.0)).min(f64::from(f32::MAX));
    let span = match (symmetric, signed) {
        (true, true) => max.max(-min),
        (true, false) => max,
        (false, _) => max - min,
    };
    let steps = if symmetric { q_max } else { q_max - q_min };
    let zero_of_signs = if symmetric { 0 } else { 0.clamp(q_min, q_max) };
    if span <= 0.0 || steps == 0 {
        return (1.0, zero_of_signs);
    }
    let scale = ((span / f64::from(steps)) as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
    if symmetric {
        return (scale, 0);
    }
    // From the unrounded scale, so that -1..=1 has its zero point where exact arithmetic puts it.
    let zero_point = f64::from(q_min) - (min * f64::from(steps) / span).round_ties_even();
    (scale, (zero_point as i32).clamp(q_min, q_max))
}

/// Smallest and largest finite value; (0, 0) if there is none.
pub fn min_max(values: &[f32]) -> (f32, f32) {
    let mut min = f32::INFINITY;
    let mut max = f32::NEG_INFINITY;
    for &v in values {
        let finite = v.is_finite();
        min = if finite && v < min { v } else { min };
        max = if finite && v > max { v } else { max };
    }
    if min <= max { (min, max) } else { (0.0, 0.0) }
}

/// The values below which a fraction `1 - fraction` and `fraction` of the finite values lie: a range that ignores tails.
///
/// Nearest rank, no interpolation: `fraction = 1` is [`min_max`], `0.5` twice the median; it is clamped to 0.5..=1
/// (NaN counts as 1). (0, 0) if no value is finite.
pub fn percentile_range(values: &[f32], fraction: f64) -> (f32, f32) {
    let mut finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let Some(last) = finite.len().checked_sub(1) else {
        return (0.0, 0.0);
    };
    let fraction = if fraction.is_nan() { 1.0 } else { fraction.clamp(0.5, 1.0) };
    let high_rank = ((fraction * last as f64).round() as usize).min(last);
    let low_rank = last - high_rank;
    let (_, &mut high, _) = finite.select_nth_unstable_by(high_rank, f32::total_cmp);
    let (_, &mut low, _) = finite.select_nth_unstable_by(low_rank, f32::total_cmp);
    (low, high)
}

/// Longest dot product of codes with magnitudes up to `max_a` and `max_b` whose sum stays below 2^24 in magnitude, so
/// that its conversion to f32 is exact.
///
/// Magnitudes are those of `q - zero_point`. Unsigned 8 bits against symmetric 8 bits: 518; 4 against 4: 159,783.
/// Beyond it results are still deterministic, rounded once to nearest even.
pub const fn max_exact_dot(max_a: u32, max_b: u32) -> u64 {
    longest_dot((1 << 24) - 1, max_a, max_b)
}

/// Longest dot product of codes with magnitudes up to `max_a` and `max_b` that cannot overflow an i32 accumulator.
///
/// Unsigned 8 bits against symmetric 8 bits: 66,311 terms; against full-range 8 bits: 65,793.
pub const fn max_i32_dot(max_a: u32, max_b: u32) -> u64 {
    longest_dot(i32::MAX as u64, max_a, max_b)
}

const fn longest_dot(limit: u64, max_a: u32, max_b: u32) -> u64 {
    match limit.checked_div(max_a as u64 * max_b as u64) {
        Some(n) => n,
        None => u64::MAX,
    }
}

/// An integer type that codes are stored in. The conversion is exact: ranges are checked by the slice functions.
pub trait Code: Copy + Send + Sync + 'static {
    /// Smallest storable code.
    const CODE_MIN: i32;
    /// Largest storable code.
    const CODE_MAX: i32;
    /// Narrows a code that is known to fit.
    fn from_code(code: i32) -> Self;
    /// Widens.
    fn to_code(self) -> i32;
}

macro_rules! impl_code {
    ($($t:ty),*) => {$(
        impl Code for $t {
            const CODE_MIN: i32 = <$t>::MIN as i32;
            const CODE_MAX: i32 = <$t>::MAX as i32;
            #[inline(always)]
            fn from_code(code: i32) -> Self {
                debug_assert!((Self::CODE_MIN..=Self::CODE_MAX).contains(&code));
                code as $t
            }
            #[inline(always)]
            fn to_code(self) -> i32 {
                self as i32
            }
        }
    )*};
}
impl_code!(i8, u8, i16, u16, i32);

/// [`quantize`] over a slice.
///
/// # Panics
/// If lengths differ or the range does not fit the storage type.
pub fn quantize_slice<C: Code>(x: &[f32], scale: f32, zero_point: i32, (q_min, q_max): (i32, i32), out: &mut [C]) {
    assert_eq!(x.len(), out.len(), "one code per value");
    assert!(C::CODE_MIN <= q_min && q_max <= C::CODE_MAX, "codes must fit their storage type");
    for (q, &x) in out.iter_mut().zip(x) {
        *q = C::from_code(quantize(x, scale, zero_point, q_min, q_max));
    }
}

/// [`dequantize`] over a slice.
///
/// # Panics
/// If lengths differ.
pub fn dequantize_slice<C: Code>(q: &[C], scale: f32, zero_point: i32, out: &mut [f32]) {
    assert_eq!(q.len(), out.len(), "one value per code");
    for (x, &q) in out.iter_mut().zip(q) {
        *x = dequantize(q.to_code(), scale, zero_point);
    }
}

/// [`batch_norm_affine`] for every channel: writes `a` and `b`.
///
/// # Panics
/// If lengths differ.
pub fn batch_norm_affine_slice(
    gamma: &[f32],
    beta: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f32,
    a: &mut [f32],
    b: &mut [f32],
) {
    let n = gamma.len();
    assert!([beta.len(), mean.len(), var.len(), a.len(), b.len()] == [n; 5], "one entry per channel");
    for c in 0..n {
        (a[c], b[c]) = batch_norm_affine(gamma[c], beta[c], mean[c], var[c], eps);
    }
}

/// [`requantize`] over rows of accumulators, channels last: `acc` is `[rows, channels]`, `multiplier` and `offset` are
/// `[channels]`.
///
/// # Panics
/// If lengths do not agree or the range does not fit the storage type.
pub fn requantize_slice<C: Code>(
    acc: &[i32],
    multiplier: &[f32],
    offset: &[f32],
    scale: f32,
    zero_point: i32,
    (q_min, q_max): (i32, i32),
    out: &mut [C],
) {
    let channels = multiplier.len();
    assert_eq!(channels, offset.len(), "one offset per channel");
    assert_eq!(acc.len(), out.len(), "one code per accumulator");
    assert!(C::CODE_MIN <= q_min && q_max <= C::CODE_MAX, "codes must fit their storage type");
    if acc.is_empty() {
        return;
    }
    assert_eq!(acc.len() % channels, 0, "whole rows");
    for (acc, out) in acc.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        for (((q, &acc), &m), &o) in out.iter_mut().zip(acc).zip(multiplier).zip(offset) {
            *q = C::from_code(requantize(acc, m, o, scale, zero_point, q_min, q_max));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn quantize_by_definition(x: f32, scale: f32, zp: i32, q_min: i32, q_max: i32) -> i32 {
        let rounded = f64::from((x / scale).round_ties_even());
        if rounded.is_nan() {
            return zp;
        }
        (rounded + f64::from(zp)).clamp(f64::from(q_min), f64::from(q_max)) as i32
    }

    #[test]
    fn every_half_rounds_to_even() {
        for k in -40_000..40_000 {
            let x = k as f32 * 0.25;
            let got = quantize(x, 1.0, 0, -32768, 32767);
            assert_eq!(got, x.round_ties_even() as i32, "{x}");
        }
    }

    #[test]
    fn extreme_inputs_saturate_and_nan_is_zero() {
        for (x, want) in [
            (f32::INFINITY, 15),
            (f32::NEG_INFINITY, 0),
            (f32::NAN, 3),
            (-f32::NAN, 3),
            (f32::MAX, 15),
            (f32::MIN, 0),
            (-0.0, 3),
            (1e-45, 3),
        ] {
            assert_eq!(quantize(x, 0.01, 3, 0, 15), want, "{x}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            bits in any::<u32>(), scale in 1e-6f32..1e3, width in 1u8..=16, signed: bool, at in 0.0f64..=1.0
        ) {
            let (q_min, q_max) = code_range(width, signed, false);
            let zp = q_min + ((q_max - q_min) as f64 * at) as i32;
            for x in [f32::from_bits(bits), (bits as i32 as f32) * 1e-7 * scale, (bits % 4096) as f32 * 0.5 * scale] {
                prop_assert_eq!(quantize(x, scale, zp, q_min, q_max), quantize_by_definition(x, scale, zp, q_min, q_max));
            }
        }

        #[test]
        fn encode_inverts_decode(scale_bits in 0x0080_0000u32..0x7000_0000, width in 1u8..=8, signed: bool, sym: bool) {
            let scale = f32::from_bits(scale_bits);
            let (q_min, q_max) = code_range(width, signed, sym);
            for zp in [q_min, (q_min + q_max) / 2, q_max] {
                for q in q_min..=q_max {
                    prop_assert_eq!(quantize(dequantize(q, scale, zp), scale, zp, q_min, q_max), q);
                }
            }
        }

        #[test]
        fn ranges_give_usable_grids(min in any::<f32>(), max in any::<f32>(), width in 1u8..=16, signed: bool, sym: bool) {
            let (scale, zp) = scale_from_range(min, max, width, signed, sym);
            let (q_min, q_max) = code_range(width, signed, sym);
            prop_assert!(scale.is_normal() && scale > 0.0);
            prop_assert!((q_min..=q_max).contains(&zp));
            prop_assert_eq!(dequantize(quantize(0.0, scale, zp, q_min, q_max), scale, zp), 0.0);
        }
    }

    #[test]
    fn ranges_by_hand() {
        let cases = [
            ((-1.0, 1.0, 8, true, true), (1.0 / 127.0, 0)),
            ((0.0, 6.0, 4, false, true), (0.4, 0)),
            ((-1.0, 3.0, 2, false, false), (4.0 / 3.0, 1)),
            ((2.0, 3.0, 8, false, false), (3.0 / 255.0, 0)),
            ((-3.0, -2.0, 8, false, false), (3.0 / 255.0, 255)),
            ((-1.0, 1.0, 8, true, false), (2.0 / 255.0, 0)),
            ((0.0, 0.0, 8, true, false), (1.0, 0)),
            ((f32::NAN, f32::NAN, 8, false, false), (1.0, 0)),
            ((-1.0, 0.0, 8, false, true), (1.0, 0)),
        ];
        for ((min, max, bits, signed, sym), want) in cases {
            assert_eq!(scale_from_range(min, max, bits, signed, sym), want, "{min}..{max}");
        }
        let (scale, _) = scale_from_range(f32::NEG_INFINITY, f32::INFINITY, 8, true, false);
        assert_eq!(scale, (2.0 * f64::from(f32::MAX) / 255.0) as f32);
    }

    #[test]
    fn percentiles_by_hand() {
        let values: Vec<f32> = (0..=100).rev().map(|v| v as f32).chain([f32::NAN, f32::INFINITY]).collect();
        assert_eq!(min_max(&values), (0.0, 100.0));
        assert_eq!(percentile_range(&values, 1.0), (0.0, 100.0));
        assert_eq!(percentile_range(&values, 0.99), (1.0, 99.0));
        assert_eq!(percentile_range(&values, 0.5), (50.0, 50.0));
        assert_eq!(percentile_range(&[], 0.9), (0.0, 0.0));
        assert_eq!(min_max(&[f32::NAN]), (0.0, 0.0));
    }

    #[test]
    fn code_ranges() {
        assert_eq!(code_range(8, true, true), (-127, 127));
        assert_eq!(code_range(8, true, false), (-128, 127));
        assert_eq!(code_range(8, false, false), (0, 255));
        assert_eq!(code_range(1, true, false), (-1, 0));
        assert_eq!(code_range(1, true, true), (0, 0));
        assert_eq!(code_range(16, false, true), (0, 65535));
    }

    #[test]
    fn dot_limits_are_tight() {
        assert_eq!(max_exact_dot(255, 127), 518);
        assert_eq!(max_exact_dot(15, 7), 159_783);
        assert_eq!(max_i32_dot(255, 127), 66_311);
        assert_eq!(max_i32_dot(255, 128), 65_793);
        assert_eq!(max_exact_dot(0, 127), u64::MAX);
        let n = max_exact_dot(255, 127);
        assert!(n * 255 * 127 < 1 << 24 && (n + 1) * 255 * 127 >= 1 << 24);
    }

    #[test]
    fn slices_equal_scalars() {
        for n in [0usize, 1, 7, 8, 31, 33, 97] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 40.0) * 0.37).collect();
            let mut q = vec![0i8; n];
            quantize_slice(&x, 0.5, 0, (-7, 7), &mut q);
            let mut back = vec![0f32; n];
            dequantize_slice(&q, 0.5, 0, &mut back);
            for i in 0..n {
                assert_eq!(i32::from(q[i]), quantize(x[i], 0.5, 0, -7, 7));
                assert_eq!(back[i], dequantize(i32::from(q[i]), 0.5, 0));
            }
        }
        let acc = [100, -100, 7, 3];
        let mut out = [0u8; 4];
        requantize_slice(&acc, &[0.1, 0.2], &[1.0, -1.0], 0.5, 10, (0, 255), &mut out);
        assert_eq!(out, [32, 0, 13, 9]);
    }

    #[test]
    fn batch_norm_is_two_roundings() {
        let (a, b) = batch_norm_affine(2.0, 0.5, 3.0, 0.25, 0.0);
        assert_eq!((a, b), (4.0, -11.5));
        let (mut a2, mut b2) = ([0.0], [0.0]);
        batch_norm_affine_slice(&[2.0], &[0.5], &[3.0], &[0.25], 0.0, &mut a2, &mut b2);
        assert_eq!((a2, b2), ([a], [b]));
    }
}
