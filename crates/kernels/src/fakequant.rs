//! Fake quantization: round to a grid and back, with the gradients of LSQ, optionally fused with a preceding ReLU.
//!
//! LSQ: learned step size quantization (Esser et al., arXiv 1902.08153), with v = x / s, Q_N = −`low`, Q_P = `high`:
//!
//! ```text
//! forward    x̂ = s · (q − z),  q = quantize(x, s, z)                        eq. 1–2 (z = 0), numerics' rounding
//! ∂x̂/∂s  =  round(v) − v   if low < v < high,    low if v ≤ low,   high if v ≥ high               eq. 3
//! ∂x̂/∂x  =  1              if low < v < high,    0 otherwise                                       eq. 5
//! low = q_min − z,  high = q_max − z         (z = 0 in the paper; for other zero points the formulas are the same)
//! ```
//!
//! The gradient of the step is returned without the paper's scale g = 1 / √(n · Q_P): the caller applies [`lsq_gradient_scale`].
//! With [`Before::Relu`] the input of the grid is max(x, 0) and ∂/∂x is 0 where x ≤ 0.
//!
//! Scales are one per tensor, or one per contiguous run (the output channels of an OIHW weight). NaN quantizes to 0.0, as in
//! [`crate::numerics`], and gets gradient 0. Sums are deterministic whatever the number of threads.

use crate::multiversion::multiversion;
use crate::numerics::{Code, dequantize, quantize, round_clamped};
use crate::runs::{Runs, TILE, sum_tile};
use crate::threads;

/// Elements per unit of parallel work.
const CHUNK: usize = 16 * 1024;

/// The grids of a tensor: one, or one per contiguous run of `len / scale.len()` elements.
#[derive(Debug, Clone, Copy)]
pub struct Grids<'a> {
    /// Steps s, positive and finite.
    pub scale: &'a [f32],
    /// Codes of 0.0, as many as scales.
    pub zero_point: &'a [i32],
    /// Smallest and largest code; zero points lie within.
    pub range: (i32, i32),
}

/// What happens before the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Before {
    /// Nothing.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
}

/// What the step's gradient takes from values inside the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Inside {
    /// LSQ: their rounding errors.
    #[default]
    Error,
    /// PACT (Choi et al., arXiv 1805.06085): nothing; only what is clipped moves the clip, α = s · `high`.
    Nothing,
}

/// Writes x̂.
///
/// # Panics
/// If lengths disagree.
pub fn forward(x: &[f32], grids: &Grids<'_>, before: Before, out: &mut [f32]) {
    let runs = grids.runs(x.len());
    assert_eq!(x.len(), out.len(), "one result per value");
    threads::for_each(out.chunks_mut(runs.chunk).zip(x.chunks(runs.chunk)).enumerate(), |(idx, (out, x))| {
        for (row, range) in runs.segments(idx * runs.chunk, x.len()) {
            let (low, high) = grids.bounds(row);
            round_trip(&x[range.clone()], grids.scale[row], low, high, before, &mut out[range]);
        }
    });
}

/// Writes x̂ and the codes it stands for: a later pass can read a quarter of the bytes.
///
/// # Panics
/// If lengths disagree or the range does not fit `C`.
pub fn forward_codes<C: Code>(x: &[f32], grids: &Grids<'_>, before: Before, out: &mut [f32], codes: &mut [C]) {
    encode(x, grids, before, codes);
    decode(codes, grids, out);
}

/// Writes the codes of x.
///
/// # Panics
/// If lengths disagree or the range does not fit `C`.
pub fn encode<C: Code>(x: &[f32], grids: &Grids<'_>, before: Before, codes: &mut [C]) {
    let runs = grids.runs(x.len());
    let (q_min, q_max) = grids.range;
    assert_eq!(x.len(), codes.len(), "one code per value");
    assert!(C::CODE_MIN <= q_min && q_max <= C::CODE_MAX, "codes must fit their storage type");
    threads::for_each(codes.chunks_mut(runs.chunk).zip(x.chunks(runs.chunk)).enumerate(), |(idx, (codes, x))| {
        for (row, range) in runs.segments(idx * runs.chunk, x.len()) {
            let (scale, zero_point) = (grids.scale[row], grids.zero_point[row]);
            for (q, &x) in codes[range.clone()].iter_mut().zip(&x[range]) {
                *q = C::from_code(quantize(apply(before, x), scale, zero_point, q_min, q_max));
            }
        }
    });
}

/// Writes the numbers that codes stand for.
///
/// # Panics
/// If lengths disagree.
pub fn decode<C: Code>(codes: &[C], grids: &Grids<'_>, out: &mut [f32]) {
    let runs = grids.runs(codes.len());
    assert_eq!(codes.len(), out.len(), "one value per code");
    threads::for_each(out.chunks_mut(runs.chunk).zip(codes.chunks(runs.chunk)).enumerate(), |(idx, (out, codes))| {
        for (row, range) in runs.segments(idx * runs.chunk, codes.len()) {
            let (scale, zero_point) = (grids.scale[row], grids.zero_point[row]);
            for (x, q) in out[range.clone()].iter_mut().zip(&codes[range]) {
                *x = dequantize(q.to_code(), scale, zero_point);
            }
        }
    });
}

/// Turns `grad` from ∂L/∂x̂ into ∂L/∂x, given the input of [`forward`], and writes ∂L/∂s (without g).
///
/// # Panics
/// If lengths disagree.
pub fn backward(
    x: &[f32],
    grids: &Grids<'_>,
    (before, inside): (Before, Inside),
    grad: &mut [f32],
    grad_scale: &mut [f32],
) {
    let runs = grids.runs(x.len());
    let errors = if inside == Inside::Error { 1.0 } else { 0.0 };
    assert_eq!(grad.len(), x.len(), "one gradient per value");
    assert_eq!(grad_scale.len(), grids.scale.len(), "one gradient per scale");
    let chunks = grad.chunks_mut(runs.chunk).zip(x.chunks(runs.chunk)).enumerate().collect();
    let sums: Vec<Vec<f64>> = threads::map_jobs(chunks, |(idx, (grad, x))| {
        let first = idx * runs.chunk;
        let mut sums = vec![0.0; x.len().div_ceil(runs.row)];
        for (row, range) in runs.segments(first, x.len()) {
            let (low, high) = grids.bounds(row);
            let sum = &mut sums[row - first / runs.row];
            for (grad, x) in grad[range.clone()].chunks_mut(TILE).zip(x[range].chunks(TILE)) {
                *sum += backward_tile(x, grids.scale[row], low, high, before, errors, grad);
            }
        }
        sums
    });
    runs.combine(sums.iter().map(Vec::as_slice), |row, total| grad_scale[row] = total as f32);
}

/// LSQ's g = 1 / √(n · q_max), n the number of elements that share the scale.
pub fn lsq_gradient_scale(n: usize, q_max: i32) -> f32 {
    (1.0 / (n.max(1) as f64 * f64::from(q_max.max(1))).sqrt()) as f32
}

/// LSQ's initial step, 2 · mean|x| / √q_max, over the finite values; 1 if they are all zero or there are none.
pub fn lsq_initial_scale(x: &[f32], q_max: i32) -> f32 {
    let finite = || x.iter().filter(|v| v.is_finite());
    let mean = finite().map(|v| f64::from(v.abs())).sum::<f64>() / finite().count().max(1) as f64;
    let scale = (2.0 * mean / f64::from(q_max.max(1)).sqrt()) as f32;
    if scale.is_normal() { scale } else { 1.0 }
}

/// PACT's clip (Choi et al., arXiv 1805.06085): min(max(x, 0), alpha).
///
/// # Panics
/// If lengths differ.
pub fn pact_forward(x: &[f32], alpha: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "one result per value");
    for (y, &x) in out.iter_mut().zip(x) {
        *y = x.max(0.0).min(alpha);
    }
}

/// PACT backward: `grad_x` passes where 0 ≤ x ≤ alpha; returns ∂L/∂alpha = Σ grad_out over x ≥ alpha.
///
/// # Panics
/// If lengths differ.
pub fn pact_backward(x: &[f32], alpha: f32, grad_out: &[f32], grad_x: &mut [f32]) -> f32 {
    assert!([grad_out.len(), grad_x.len()] == [x.len(); 2], "one gradient per value");
    let mut total = 0f64;
    for ((gx, &x), &g) in grad_x.iter_mut().zip(x).zip(grad_out) {
        *gx = if (0.0..=alpha).contains(&x) { g } else { 0.0 };
        total += if x >= alpha { f64::from(g) } else { 0.0 };
    }
    total as f32
}

impl Grids<'_> {
    fn runs(&self, n: usize) -> Runs {
        assert_eq!(self.scale.len(), self.zero_point.len(), "one zero point per scale");
        Runs::new(n, self.scale.len(), CHUNK)
    }

    /// q_min − z and q_max − z.
    fn bounds(&self, row: usize) -> (f32, f32) {
        let zero_point = self.zero_point[row];
        ((self.range.0 - zero_point) as f32, (self.range.1 - zero_point) as f32)
    }
}

#[inline(always)]
fn apply(before: Before, x: f32) -> f32 {
    match before {
        Before::Identity => x,
        Before::Relu => {
            if x > 0.0 {
                x
            } else {
                0.0
            }
        }
    }
}

multiversion! {
    /// `scale * round(clamp(x / scale))`: what `dequantize(quantize(x))` gives, without leaving floats.
    fn round_trip(x: &[f32], scale: f32, low: f32, high: f32, before: Before, out: &mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            let v = apply(before, x) / scale;
            let v = if v.is_nan() { 0.0 } else { v };
            *y = scale * round_clamped(v, low, high);
        }
    }
}

multiversion! {
    /// One tile of the backward pass; returns its share of ∂L/∂s.
    fn backward_tile(
        x: &[f32], scale: f32, low: f32, high: f32, before: Before, errors: f32, grad: &mut [f32],
    ) -> f64 {
        let n = x.len();
        let grad = &mut grad[..n];
        let mut products = [0f32; TILE];
        let products = &mut products[..n];
        for i in 0..n {
            let v = apply(before, x[i]) / scale;
            let inside = v > low && v < high;
            let alive = inside && (before == Before::Identity || x[i] > 0.0);
            // Beyond the ends the clamp alone is the derivative; NaN is neither inside nor beyond.
            let r = round_clamped(v, low, high);
            let slope = if inside { errors * (r - v) } else { r };
            let slope = if v.is_nan() { 0.0 } else { slope };
            products[i] = grad[i] * slope;
            grad[i] = if alive { grad[i] } else { 0.0 };
        }
        sum_tile(products)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::fakequant as naive;
    use crate::testing::{UNIT, assert_within, bitwise, on_every_level};
    use proptest::prelude::*;

    /// x̂, codes and ∂L/∂x have the bits of the definition on every level; sums of the step's gradient add 16 numbers in f32
    /// at most, then f64: 16 u Σ|·|.
    fn check(x: &[f32], scale: &[f32], zero_point: &[i32], range: (i32, i32), before: Before) {
        let n = x.len();
        let grids = Grids { scale, zero_point, range };
        let grad_out: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut want = vec![0.0; n];
        naive::forward(x, &grids, before, &mut want);
        for inside in [Inside::Error, Inside::Nothing] {
            let (mut want_x, mut want_scale, mut unused) = (vec![0.0; n], vec![0.0; scale.len()], vec![0.0; n]);
            naive::backward(x, &grids, (before, inside), &grad_out, &mut want_x, &mut want_scale);
            // Σ|·|, from each element's own gradient of the step.
            let row = (n / scale.len()).max(1);
            let mut size = vec![0.0_f64; scale.len()];
            for i in 0..n {
                let one = Grids { scale: &scale[i / row..=i / row], zero_point: &zero_point[i / row..=i / row], range };
                let mut slope = [0.0];
                naive::backward(&x[i..=i], &one, (before, inside), &grad_out[i..=i], &mut unused[i..=i], &mut slope);
                size[i / row] += f64::from(slope[0].abs());
            }
            on_every_level(|isa| {
                let (mut out, mut grad_x, mut grad_scale) =
                    (vec![f32::NAN; n], grad_out.clone(), vec![f32::NAN; scale.len()]);
                let mut codes = vec![0i32; n];
                forward(x, &grids, before, &mut out);
                assert!(bitwise(&out, &want), "forward {isa:?} {n}");
                out.fill(f32::NAN);
                forward_codes(x, &grids, before, &mut out, &mut codes);
                assert!(bitwise(&out, &want), "by codes {isa:?} {n}");
                backward(x, &grids, (before, inside), &mut grad_x, &mut grad_scale);
                assert!(grad_x == want_x, "gradient {isa:?} {n}");
                let what = format_args!("step {isa:?} {n} {inside:?}");
                assert_within(what, &grad_scale, &want_scale, |c| 17.0 * UNIT * size[c]);
            });
        }
    }

    #[test]
    fn by_hand() {
        let grids = Grids { scale: &[0.5], zero_point: &[0], range: (-2, 1) };
        let x = [-3.0, -1.0, -0.3, 0.2, 0.5, 9.0, f32::NAN];
        let (mut out, mut grad_x, mut grad_scale) = ([0.0; 7], [1.0; 7], [0.0]);
        forward(&x, &grids, Before::Identity, &mut out);
        assert_eq!(out, [-1.0, -1.0, -0.5, 0.0, 0.5, 0.5, 0.0]);
        backward(&x, &grids, (Before::Identity, Inside::Error), &mut grad_x, &mut grad_scale);
        assert_eq!(grad_x, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        // −2 −2 + (−1 + 0.6) + (0 − 0.4) + 1 + 1 + 0
        assert!((grad_scale[0] + 2.8).abs() < 1e-6);
        forward(&x, &grids, Before::Relu, &mut out);
        assert_eq!(out, [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0]);
        grad_x = [1.0; 7];
        backward(&x, &grids, (Before::Relu, Inside::Error), &mut grad_x, &mut grad_scale);
        assert_eq!(grad_x, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert!((grad_scale[0] - 1.6).abs() < 1e-6);
    }

    #[test]
    fn awkward_sizes() {
        for (n, channels) in [
            (0, 1),
            (0, 3),
            (1, 1),
            (15, 1),
            (17, 1),
            (511, 1),
            (513, 1),
            (16_385, 1),
            (40_001, 1),
            (27 * 16, 16),
            (9 * 2000, 2000),
            (2 * 20_011, 2),
        ] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 250.0).collect();
            let scale: Vec<f32> = (0..channels).map(|c| 0.1 + (c % 7) as f32 * 0.05).collect();
            for before in [Before::Identity, Before::Relu] {
                check(&x, &scale, &vec![0; channels], (-7, 7), before);
                check(&x, &scale, &vec![0; channels], (0, 15), before);
                check(&x, &scale, &vec![3; channels], (0, 15), before);
            }
        }
    }

    proptest! {
        #[test]
        fn anything(x in proptest::collection::vec(any::<f32>(), 1..80), scale in 1e-5f32..1e5, zp in 0i32..16, relu: bool) {
            // Values near the grid beside arbitrary ones; sums of huge ones are not compared.
            let x: Vec<f32> = x.iter().map(|v| if v.is_finite() { (v.to_bits() % 997) as f32 / 31.0 * scale - 12.0 * scale } else { *v }).collect();
            let before = if relu { Before::Relu } else { Before::Identity };
            check(&x, &[scale], &[zp], (0, 15), before);
        }
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let n = 100_003;
        let x: Vec<f32> = (0..n).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 250.0).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut gx, mut gs) = (x.clone(), [0.0]);
            let grids = Grids { scale: &[0.3], zero_point: &[0], range: (-7, 7) };
            pool.install(|| backward(&x, &grids, (Before::Identity, Inside::Error), &mut gx, &mut gs));
            gs[0].to_bits()
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn initial_step_and_gradient_scale() {
        assert_eq!(lsq_initial_scale(&[1.0, -1.0, 3.0, -3.0, f32::NAN], 4), 2.0);
        assert_eq!(lsq_initial_scale(&[0.0], 4), 1.0);
        assert_eq!(lsq_initial_scale(&[], 4), 1.0);
        assert_eq!(lsq_gradient_scale(100, 1), 0.1);
    }

    #[test]
    fn pact_by_hand() {
        let x = [-1.0, 0.0, 2.0, 4.0, 5.0];
        let (mut y, mut gx) = ([0.0; 5], [0.0; 5]);
        pact_forward(&x, 4.0, &mut y);
        assert_eq!(y, [0.0, 0.0, 2.0, 4.0, 4.0]);
        assert_eq!(pact_backward(&x, 4.0, &[1.0, 2.0, 3.0, 4.0, 5.0], &mut gx), 9.0);
        assert_eq!(gx, [0.0, 2.0, 3.0, 4.0, 0.0]);
        // The same of a grid whose steps are α / 8: ∂L/∂s = 8 ∂L/∂α. Where a value meets an end exactly, a grid clips it.
        let grids = Grids { scale: &[0.5], zero_point: &[0], range: (0, 8) };
        let mut gs = [0.0];
        gx = [1.0, 2.0, 3.0, 4.0, 5.0];
        backward(&x, &grids, (Before::Identity, Inside::Nothing), &mut gx, &mut gs);
        assert_eq!((gs[0], gx), (8.0 * 9.0, [0.0, 0.0, 3.0, 0.0, 0.0]));
    }
}
