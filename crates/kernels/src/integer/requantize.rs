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
//! The result is that of the loops of [`rows`](super::rows) one after the other, bit for bit, but most codes need less work:
//!
//! ```text
//! t = f32(acc) · A[c] + B[c] + code · R
//! q = round(clamp(t, codes of low and high))
//! A = multiplier · a / scale       B = (b − zero_x · scale_x) / scale + zero_point       R = scale_x / scale
//! ```
//!
//! is the chain in units of the result's step, in another order: it differs from the chain's number by a little that is known
//! ([`Folded::new`]), so both round to the same code unless t lies that close to half-way between two. Then the chain itself decides.

use super::{ByteGrid, depthwise};
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

/// What is added after the channel's factor and bias.
#[derive(Debug, Clone, Copy)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// The numbers that codes stand for.
    Codes(&'a [u8], ByteGrid),
    /// Numbers.
    Floats(&'a [f32]),
}

/// The operations; see the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct Requantize<'a> {
    /// `scale_x · scale_w[c]` per output channel.
    pub multiplier: &'a [f32],
    /// Bias or batch-norm.
    pub per_channel: PerChannel<'a>,
    /// What to add, one per accumulator.
    pub residual: Residual<'a>,
    /// Bounds of ReLU (0 and infinity), ReLU6, ….
    pub clip: Option<(f32, f32)>,
    /// The grid of the result.
    pub grid: ByteGrid,
}

impl<'a> Requantize<'a> {
    /// Accumulators of whole pixels to codes.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn run(&self, acc: &[i32], out: &mut [u8]) {
        self.prepared().run(acc, 0, out);
    }

    /// What is the same for all accumulators, made ready for [`Prepared::run`] on some of them at a time.
    ///
    /// # Panics
    /// If there is not one bias or factor per channel.
    pub fn prepared(&self) -> Prepared<'a> {
        let channels = self.multiplier.len();
        let per_channel = match self.per_channel {
            PerChannel::None => [channels; 2],
            PerChannel::Bias(bias) => [bias.len(), channels],
            PerChannel::Affine(a, b) => [a.len(), b.len()],
        };
        assert_eq!(per_channel, [channels; 2], "one bias or factor per channel");
        let folded = if channels < RUN { None } else { Folded::new(self) };
        Prepared { chain: *self, folded }
    }

    /// The chain itself, from element `first` on.
    #[cold]
    #[inline(never)]
    pub(super) fn one_by_one(&self, acc: &[i32], first: usize, out: &mut [u8]) {
        let (grid, channels) = (self.grid, self.multiplier.len().max(1));
        for (i, (&acc, out)) in (first..).zip(acc.iter().zip(out)) {
            let c = i % channels;
            let mut y = acc as f32 * self.multiplier[c];
            match self.per_channel {
                PerChannel::None => {}
                PerChannel::Bias(b) => y += b[c],
                PerChannel::Affine(a, b) => y = y * a[c] + b[c],
            }
            match self.residual {
                Residual::None => {}
                Residual::Codes(codes, from) => y += dequantize(i32::from(codes[i]), from.scale, from.zero_point),
                Residual::Floats(floats) => y += floats[i],
            }
            if let Some((min, max)) = self.clip {
                y = Activation::Clip { min, max }.apply(y);
            }
            *out = quantize(y, grid.scale, grid.zero_point, grid.low, grid.high) as u8;
        }
    }
}

/// A [`Requantize`] made ready.
#[derive(Debug)]
pub struct Prepared<'a> {
    chain: Requantize<'a>,
    folded: Option<Folded>,
}

impl Prepared<'_> {
    /// Channels per pixel.
    pub fn channels(&self) -> usize {
        self.chain.multiplier.len()
    }

    /// Accumulators of whole pixels to codes. The first of them has the residual number `first`.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn run(&self, acc: &[i32], first: usize, out: &mut [u8]) {
        let (n, channels) = (acc.len(), self.chain.multiplier.len().max(1));
        assert!(n == out.len() && n.is_multiple_of(channels), "one code per accumulator of whole pixels");
        let residual = match self.chain.residual {
            Residual::None => Residual::None,
            Residual::Codes(codes, from) => Residual::Codes(&codes[first..first + n], from),
            Residual::Floats(floats) => Residual::Floats(&floats[first..first + n]),
        };
        let chain = Requantize { residual, ..self.chain };
        match &self.folded {
            Some(folded) => run(&chain, folded, acc, out),
            None => chain.one_by_one(acc, 0, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Channels that are held in registers together.
const RUN: usize = 16;

/// Numbers whose products with one another and with accumulators are neither too large nor too small for the bound.
const TAME: f32 = 1e9;

/// Steps of the result that a float may add; more than this is left to the chain itself.
const MOST_ADDED: f32 = 1024.0;

/// The chain in units of the result's step.
#[derive(Debug)]
struct Folded {
    /// A, per channel; some zeros follow.
    factors: Vec<f32>,
    /// B, per channel; the same.
    addends: Vec<f32>,
    /// R; 1 / scale for floats.
    residual: f32,
    /// Bounds of the code.
    low: f32,
    high: f32,
    /// Up to this distance from an integer, the chain rounds to that integer as well.
    sure: f32,
}

impl Folded {
    /// `None` where the bound would be no use, or does not hold for numbers beyond all reason.
    ///
    /// With P = acc · A, B and R · code as above, all in steps, and u = 2^-24, the chain's roundings add up to at most
    /// u · (3 |P| + |B| + 3 |R · code| + 2 |t| + 2 |zero_point|), and those of the short form to at most u · (5 |P| + 6 |B| + 5 |R · code| + |t|),
    /// where |B| is |b / scale| + |R · zero_x| + |zero_point|. As |P| ≤ |t| + |B| + |R · code|, the two differ by less than
    /// 20 u · (|t| + |B| + |R · code|). A fused multiplication and addition rounds less.
    fn new(r: &Requantize<'_>) -> Option<Self> {
        let grid = r.grid;
        let inverse = 1.0 / grid.scale;
        let is_tame = |x: f32| x.abs() <= TAME;
        let (residual, offset, added) = match r.residual {
            Residual::None => (0.0, 0.0, 0.0),
            Residual::Codes(_, from) if is_tame(from.scale) => {
                let residual = from.scale * inverse;
                (residual, residual * from.zero_point as f32, residual * 255.0)
            }
            Residual::Codes(..) => return None,
            Residual::Floats(_) => (inverse, 0.0, MOST_ADDED),
        };
        let channels = r.multiplier.len();
        let mut factors = vec![0.0; channels + depthwise::SLACK];
        let mut addends = factors.clone();
        let zero = grid.zero_point as f32;
        let [largest, addend] = fold(r, inverse, offset, zero, &mut factors[..channels], &mut addends[..channels]);
        if !(is_tame(grid.scale) && is_tame(inverse) && is_tame(largest)) {
            return None;
        }
        // The code of a clipped number is the clipped code.
        let code = |y: f32| quantize(y, grid.scale, grid.zero_point, grid.low, grid.high);
        let (low, high) = match r.clip {
            Some((low, high)) => (code(low), code(high)),
            None => (grid.low, grid.high),
        };
        let (low, high) = (low as f32, high as f32);
        let most = low.abs().max(high.abs()) + 1.0 + addend + added;
        let sure = 0.5 - 20.0 * most / (1u32 << 24) as f32;
        (sure > 0.4).then_some(Self { factors, addends, residual, low, high, sure })
    }
}

multiversion! {
    /// Fills A and B. Returns the largest magnitude of what went into them, and that of B before its terms were added; NaN counts as
    /// infinite.
    fn fold(
        r: &Requantize<'_>,
        inverse: f32,
        offset: f32,
        zero: f32,
        factors: &mut [f32],
        addends: &mut [f32],
    ) -> [f32; 2] {
        let multiplier = &r.multiplier[..factors.len()];
        let (mut most, mut addend) = (largest(multiplier), offset.abs() + zero.abs());
        factors.copy_from_slice(multiplier);
        addends.fill(zero - offset);
        let (a, b): (&[f32], &[f32]) = match r.per_channel {
            PerChannel::None => (&[], &[]),
            PerChannel::Bias(b) => (&[], b),
            PerChannel::Affine(a, b) => (a, b),
        };
        factors.iter_mut().zip(a).for_each(|(f, a)| *f *= a);
        factors.iter_mut().for_each(|f| *f *= inverse);
        addends.iter_mut().zip(b).for_each(|(to, b)| *to += b * inverse);
        for values in [a, b] {
            most = most.max(largest(values));
        }
        addend += largest(b) * inverse;
        [most, addend]
    }
}

/// The largest magnitude; NaN counts as infinite.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut largest = 0f32;
    for v in values {
        let v = if v.abs() <= f32::MAX { v.abs() } else { f32::INFINITY };
        largest = if v > largest { v } else { largest };
    }
    largest
}

multiversion! {
    fn run(r: &Requantize<'_>, folded: &Folded, acc: &[i32], out: &mut [u8]) {
        match r.residual {
            Residual::None => rows::<0>(r, folded, &[], &[], acc, out),
            Residual::Codes(codes, _) => rows::<1>(r, folded, codes, &[], acc, out),
            Residual::Floats(floats) => rows::<2>(r, folded, &[], floats, acc, out),
        }
    }
}

/// `RESIDUAL` is 0 for nothing, 1 for codes, 2 for floats.
#[inline(always)]
fn rows<const RESIDUAL: u8>(
    r: &Requantize<'_>,
    folded: &Folded,
    codes: &[u8],
    floats: &[f32],
    acc: &[i32],
    out: &mut [u8],
) {
    let channels = r.multiplier.len();
    let &Folded { low, high, sure, .. } = folded;
    for (row, (acc, out)) in acc.chunks_exact(channels).zip(out.chunks_exact_mut(channels)).enumerate() {
        let first = row * channels;
        let codes = if RESIDUAL == 1 { &codes[first..first + channels] } else { &[] };
        let floats = if RESIDUAL == 2 { &floats[first..first + channels] } else { &[] };
        let mut next = 0;
        while next < channels {
            // The last run of a row begins early enough to be a whole one, and does some channels again.
            let at = next.min(channels - RUN);
            next = at + RUN;
            // Slices of known length and plain loops, which become registers; closures would not be compiled for AVX2.
            let (a, b) = (&folded.factors[at..at + RUN], &folded.addends[at..at + RUN]);
            let sums = &acc[at..at + RUN];
            let mut t = [0f32; RUN];
            for i in 0..RUN {
                t[i] = sums[i] as f32 * a[i] + b[i];
            }
            let mut is_unsure = false;
            if RESIDUAL == 1 {
                let codes = &codes[at..at + RUN];
                for i in 0..RUN {
                    t[i] += f32::from(codes[i]) * folded.residual;
                }
            } else if RESIDUAL == 2 {
                let floats = &floats[at..at + RUN];
                for i in 0..RUN {
                    let added = floats[i] * folded.residual;
                    // NaN is unsure too.
                    let is_small = added.abs() <= MOST_ADDED;
                    is_unsure |= !is_small;
                    t[i] += added;
                }
            }
            let mut q = [0i32; RUN];
            for i in 0..RUN {
                let (code, distance) = round_clamped_and_distance(t[i], low, high);
                is_unsure |= distance > sure;
                q[i] = code;
            }
            let out = &mut out[at..at + RUN];
            for i in 0..RUN {
                out[i] = q[i] as u8;
            }
            if is_unsure {
                r.one_by_one(sums, first + at, out);
            }
        }
    }
}
