//! Accumulators to codes in one pass: the chain of operations that follows almost every product.
//!
//! ```text
//! y = f32(acc) · multiplier[c]        then, each if there is one and each rounded to f32:
//! y = y + bias[c]   or   y · a[c] + b[c]
//! y = y + residual
//! y = min(max(y, low), high)
//! q = quantize(y)
//! ```
//!
//! The result is that of the loops of [`rows`](super::rows) one after the other, bit for bit; here numbers stay in registers from
//! the accumulator to the code.

use super::ByteGrid;
use crate::activation::Activation;
use crate::multiversion::multiversion;
use crate::numerics::{dequantize, quantize, round_clamped_and_distance};

/// What is done per channel after the multiplier.
#[derive(Debug, Clone, Copy)]
pub enum PerChannel<'a> {
    /// Nothing.
    None,
    /// `y + bias[c]`.
    Bias(&'a [f32]),
    /// `y · a[c] + b[c]`, two roundings: a frozen batch-norm.
    Affine(&'a [f32], &'a [f32]),
}

/// The operations; see the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct Requantize<'a> {
    /// `scale_x · scale_w[c]` per output channel.
    pub multiplier: &'a [f32],
    /// Bias or batch-norm.
    pub per_channel: PerChannel<'a>,
    /// Codes to add, one per accumulator.
    pub residual: Option<(&'a [u8], ByteGrid)>,
    /// Bounds of ReLU (0 and infinity), ReLU6, ….
    pub clip: Option<(f32, f32)>,
    /// The grid of the result.
    pub grid: ByteGrid,
}

impl Requantize<'_> {
    /// Accumulators of whole pixels to codes.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn run(&self, acc: &[i32], out: &mut [u8]) {
        let channels = self.multiplier.len();
        assert!(
            acc.len() == out.len() && acc.len().is_multiple_of(channels.max(1)),
            "one code per accumulator of whole pixels"
        );
        assert!(self.residual.is_none_or(|(codes, _)| codes.len() == acc.len()), "one residual per accumulator");
        let per_channel = match self.per_channel {
            PerChannel::None => [channels; 2],
            PerChannel::Bias(bias) => [bias.len(), channels],
            PerChannel::Affine(a, b) => [a.len(), b.len()],
        };
        assert_eq!(per_channel, [channels; 2], "one bias or factor per channel");
        run(self, acc, out);
    }
}

multiversion! {
    fn run(r: &Requantize<'_>, acc: &[i32], out: &mut [u8]) {
        // A clip to the very range of codes, or beyond it, is done by rounding to them.
        let needed = r.clip.filter(|&(low, high)| {
            let code = |v: f32| quantize(v, r.grid.scale, r.grid.zero_point, r.grid.low, r.grid.high);
            code(low) > r.grid.low || code(high) < r.grid.high
        });
        let clip = needed.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        let none: &[f32] = &[];
        match (r.per_channel, r.residual, needed.is_some()) {
            (PerChannel::None, None, false) => rows::<0, false, false>(r, none, none, clip, acc, out),
            (PerChannel::None, None, true) => rows::<0, false, true>(r, none, none, clip, acc, out),
            (PerChannel::None, Some(_), false) => rows::<0, true, false>(r, none, none, clip, acc, out),
            (PerChannel::None, Some(_), true) => rows::<0, true, true>(r, none, none, clip, acc, out),
            (PerChannel::Bias(b), None, false) => rows::<1, false, false>(r, none, b, clip, acc, out),
            (PerChannel::Bias(b), None, true) => rows::<1, false, true>(r, none, b, clip, acc, out),
            (PerChannel::Bias(b), Some(_), false) => rows::<1, true, false>(r, none, b, clip, acc, out),
            (PerChannel::Bias(b), Some(_), true) => rows::<1, true, true>(r, none, b, clip, acc, out),
            (PerChannel::Affine(a, b), None, false) => rows::<2, false, false>(r, a, b, clip, acc, out),
            (PerChannel::Affine(a, b), None, true) => rows::<2, false, true>(r, a, b, clip, acc, out),
            (PerChannel::Affine(a, b), Some(_), false) => rows::<2, true, false>(r, a, b, clip, acc, out),
            (PerChannel::Affine(a, b), Some(_), true) => rows::<2, true, true>(r, a, b, clip, acc, out),
        }
    }
}

/// Channels that are held in registers together.
const RUN: usize = 16;

/// A quotient rounds as the product with the inverse does, unless it lies about half-way between two codes: the two differ by
/// at most 3 · 2^-24 of themselves, which is less than 5e-5 below 256.
const SURE: f32 = 0.5 - 1e-4;

/// `PER_CHANNEL` is 0 for nothing, 1 for `+ b`, 2 for `· a + b`.
#[inline(always)]
fn rows<const PER_CHANNEL: u8, const RESIDUAL: bool, const CLIP: bool>(
    r: &Requantize<'_>,
    a: &[f32],
    b: &[f32],
    clip: (f32, f32),
    acc: &[i32],
    out: &mut [u8],
) {
    let channels = r.multiplier.len().max(1);
    let (residual, from) = r.residual.unwrap_or((&[], r.grid));
    let rest = if channels < RUN { channels } else { 0 };
    // Dividing takes longer than everything else together.
    let inverse = 1.0 / r.grid.scale;
    let (low, high) = ((r.grid.low - r.grid.zero_point) as f32, (r.grid.high - r.grid.zero_point) as f32);
    for (row, (acc, out)) in acc.chunks_exact(channels).zip(out.chunks_exact_mut(channels)).enumerate() {
        let residual = if RESIDUAL { &residual[row * channels..][..channels] } else { &[] };
        let one = |c: usize, acc: i32| -> u8 {
            let mut y = acc as f32 * r.multiplier[c];
            if PER_CHANNEL == 1 {
                y += b[c];
            } else if PER_CHANNEL == 2 {
                y = y * a[c] + b[c];
            }
            if RESIDUAL {
                y += dequantize(i32::from(residual[c]), from.scale, from.zero_point);
            }
            if CLIP {
                y = Activation::Clip { min: clip.0, max: clip.1 }.apply(y);
            }
            quantize(y, r.grid.scale, r.grid.zero_point, r.grid.low, r.grid.high) as u8
        };
        let mut next = 0;
        while next < channels - rest {
            // The last run of a row begins early enough to be a whole one, and does some channels again.
            let at = next.min(channels - RUN);
            next = at + RUN;
            // Slices of known length and plain loops, which become registers; closures would not be compiled for AVX2.
            let (acc, m) = (&acc[at..at + RUN], &r.multiplier[at..at + RUN]);
            let mut y = [0f32; RUN];
            for i in 0..RUN {
                y[i] = acc[i] as f32 * m[i];
            }
            if PER_CHANNEL == 1 {
                let b = &b[at..at + RUN];
                for i in 0..RUN {
                    y[i] += b[i];
                }
            } else if PER_CHANNEL == 2 {
                let (a, b) = (&a[at..at + RUN], &b[at..at + RUN]);
                for i in 0..RUN {
                    y[i] = y[i] * a[i] + b[i];
                }
            }
            if RESIDUAL {
                let codes = &residual[at..at + RUN];
                for i in 0..RUN {
                    y[i] += dequantize(i32::from(codes[i]), from.scale, from.zero_point);
                }
            }
            if CLIP {
                for y in &mut y {
                    *y = Activation::Clip { min: clip.0, max: clip.1 }.apply(*y);
                }
            }
            let mut q = [0i32; RUN];
            let mut is_unsure = !inverse.is_normal();
            for i in 0..RUN {
                let (code, distance) = round_clamped_and_distance(y[i] * inverse, low, high);
                // NaN is unsure too.
                let is_sure = distance < SURE;
                is_unsure |= !is_sure;
                q[i] = code.wrapping_add(r.grid.zero_point);
            }
            if is_unsure {
                for i in 0..RUN {
                    q[i] = quantize(y[i], r.grid.scale, r.grid.zero_point, r.grid.low, r.grid.high);
                }
            }
            let out = &mut out[at..at + RUN];
            for i in 0..RUN {
                out[i] = q[i] as u8;
            }
        }
        for c in 0..rest {
            out[c] = one(c, acc[c]);
        }
    }
}
