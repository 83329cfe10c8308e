//! Between logits and integers: initial logits from float weights, codes from hard bits, and the nearest code that a set of
//! planes can store.

use super::{Logits, MAX_PLANES};
use crate::numerics::quantize;

/// The integers z of the hard weights, `z = Σ_b m_b 2^(N−1−b) (1[P>0] − 1[Q>0])`, in ±(2^N − 1).
///
/// `masks` has one entry per plane, plane 0 the most significant; planes with a mask of 0 or less are off.
///
/// A digit may be −1 below a digit +1 (P of one plane, Q of a lower one), so |z| can have bits at positions whose planes are
/// off: with planes {128, 32} on, 128 − 32 = 96 = 64 + 32. If the planes that are on are contiguous this cannot happen;
/// otherwise project with [`nearest_on_planes`] before storing sign and magnitude.
///
/// # Panics
/// If shapes disagree or there are more than [`MAX_PLANES`] planes.
pub fn hard_codes(logits: &Logits<'_>, masks: &[f32], codes: &mut [i16]) {
    let (n, planes) = (codes.len(), masks.len());
    assert!(planes <= MAX_PLANES, "at most {MAX_PLANES} planes");
    assert!([logits.positive.len(), logits.negative.len()] == [planes * n; 2], "one logit per weight and plane");
    codes.fill(0);
    for (b, _) in masks.iter().enumerate().filter(|(_, m)| **m > 0.0) {
        let at = b * n..(b + 1) * n;
        let weight = 1i16 << (planes - 1 - b);
        for ((z, &p), &q) in codes.iter_mut().zip(&logits.positive[at.clone()]).zip(&logits.negative[at]) {
            *z += weight * (i16::from(p > 0.0) - i16::from(q > 0.0));
        }
    }
}

/// Initial logits that reproduce the N-bit rounding of float weights once hard (with all planes on).
///
/// `k = quantize(w, s / (2^N − 1))` with magnitude up to 2^N − 1; the bits of |k| become logits of P where w > 0, of Q
/// otherwise: a set bit `on`, all others `off`. With symmetric logits (`on = a, off = −a`) every bit starts decided;
/// the published code uses `on = 1, off = 0`, which leaves zero bits undecided.
///
/// `scale` has one entry, or one per contiguous run of `weights.len() / scale.len()` weights.
///
/// # Panics
/// If shapes disagree or there are more than [`MAX_PLANES`] planes.
pub fn init_logits(
    weights: &[f32],
    scale: &[f32],
    planes: usize,
    (on, off): (f32, f32),
    positive: &mut [f32],
    negative: &mut [f32],
) {
    let n = weights.len();
    assert!((1..=MAX_PLANES).contains(&planes), "1 to {MAX_PLANES} planes, not {planes}");
    assert!([positive.len(), negative.len()] == [planes * n; 2], "one logit per weight and plane");
    assert!(!scale.is_empty() && n.is_multiple_of(scale.len()), "whole rows");
    let row = (n / scale.len()).max(1);
    let largest = (1i32 << planes) - 1;
    positive.fill(off);
    negative.fill(off);
    for (i, &w) in weights.iter().enumerate() {
        let step = scale[i / row] / largest as f32;
        let k = quantize(w, step, 0, -largest, largest);
        let target = if w > 0.0 { &mut *positive } else { &mut *negative };
        for b in 0..planes {
            if k.unsigned_abs() >> (planes - 1 - b) & 1 == 1 {
                target[b * n + i] = on;
            }
        }
    }
}

/// The integer nearest to `z` whose magnitude has bits only in `mask` (bit p: the plane of weight 2^p).
///
/// Sign is kept. Between two equally near magnitudes the smaller wins. Mask 0 gives 0.
///
/// ```
/// use bitsmith_kernels::planes::nearest_on_planes;
/// assert_eq!(nearest_on_planes(96, 0b1010_0000), 128); // of 0, 32, 128, 160
/// assert_eq!(nearest_on_planes(-80, 0b1010_0000), -32); // a tie
/// assert_eq!(nearest_on_planes(5, 0b111), 5);
/// ```
pub fn nearest_on_planes(z: i32, mask: u8) -> i32 {
    let magnitude = z.unsigned_abs().min(255);
    let mask = u32::from(mask);
    // Largest representable value not above `magnitude`: copy bits from the top; at the first bit that the mask lacks,
    // everything below may be set.
    let mut below = 0;
    let mut above = None;
    for p in (0..8).rev() {
        let bit = 1 << p;
        if magnitude & bit != 0 {
            if mask & bit == 0 {
                below |= mask & (bit - 1);
                return pick(z, magnitude, below, above);
            }
            below |= bit;
        } else if mask & bit != 0 {
            // Representable and larger: the bits copied so far and this one. Lower p gives a smaller, hence nearer one.
            above = Some(below | bit);
        }
    }
    pick(z, magnitude, below, above)
}

fn pick(z: i32, magnitude: u32, below: u32, above: Option<u32>) -> i32 {
    let nearest = match above {
        Some(above) if above - magnitude < magnitude - below => above,
        _ => below,
    };
    nearest as i32 * z.signum()
}
