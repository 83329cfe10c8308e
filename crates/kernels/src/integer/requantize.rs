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
//! ([`Folded::new`]), so both round to the same code unless t lies that close to half-way between two. Then the chain itself decides. With
//! AVX2 and AVX-512, t is a number of 2^-16 steps ([`x86`]).

use super::{ByteGrid, depthwise};
use crate::activation::Activation;
use crate::isa::{Isa, Level};
use crate::multiversion::multiversion;
use crate::numerics::{dequantize, quantize, round_clamped_and_distance};
use std::sync::OnceLock;

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

impl<'a> PerChannel<'a> {
    /// Factors and what is added, as far as there are any.
    fn values(self) -> (&'a [f32], &'a [f32]) {
        match self {
            PerChannel::None => (&[], &[]),
            PerChannel::Bias(b) => (&[], b),
            PerChannel::Affine(a, b) => (a, b),
        }
    }
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
        self.check();
        let folded = self.fold().map_or(Chain::Itself, |folded| Chain::Folded(Box::new(folded)));
        Prepared { chain: *self, folded }
    }

    /// The same, which finds in `kept` what an earlier call for the same chain left there. All but the numbers of the residual must be the
    /// same.
    ///
    /// # Panics
    /// As [`prepared`](Self::prepared), or if it was another chain's.
    pub fn prepared_once(&self, kept: &'a Kept) -> Prepared<'a> {
        self.check();
        let folded = match kept.0.get_or_init(|| self.fold()) {
            Some(folded) => Chain::Kept(folded),
            None => Chain::Itself,
        };
        if let Chain::Kept(folded) = folded {
            assert_eq!(folded.factors.len(), self.multiplier.len() + depthwise::SLACK, "another chain was kept");
        }
        Prepared { chain: *self, folded }
    }

    fn fold(&self) -> Option<Folded> {
        if self.multiplier.len() < RUN { None } else { Folded::new(self) }
    }

    fn check(&self) {
        let channels = self.multiplier.len();
        let per_channel = match self.per_channel {
            PerChannel::None => [channels; 2],
            PerChannel::Bias(bias) => [bias.len(), channels],
            PerChannel::Affine(a, b) => [a.len(), b.len()],
        };
        assert_eq!(per_channel, [channels; 2], "one bias or factor per channel");
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
    folded: Chain<'a>,
}

/// What [`Requantize::prepared_once`] makes at its first call.
#[derive(Debug, Default)]
pub struct Kept(OnceLock<Option<Folded>>);

/// A copy is as empty as a new one.
impl Clone for Kept {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// How a chain is computed.
#[derive(Debug)]
enum Chain<'a> {
    /// Operation by operation.
    Itself,
    Folded(Box<Folded>),
    Kept(&'a Folded),
}

impl Chain<'_> {
    fn folded(&self) -> Option<&Folded> {
        match self {
            Chain::Itself => None,
            Chain::Folded(folded) => Some(folded),
            Chain::Kept(folded) => Some(folded),
        }
    }
}

impl Prepared<'_> {
    /// Channels per pixel.
    pub fn channels(&self) -> usize {
        self.chain.multiplier.len()
    }

    /// Whether numbers that are no codes are added.
    pub(super) fn adds_floats(&self) -> bool {
        matches!(self.chain.residual, Residual::Floats(_))
    }

    /// Accumulators of whole pixels to codes. The first of them has the residual number `first`.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn run(&self, acc: &[i32], first: usize, out: &mut [u8]) {
        let (n, channels) = (acc.len(), self.chain.multiplier.len().max(1));
        assert!(n == out.len() && n.is_multiple_of(channels), "one code per accumulator of whole pixels");
        #[cfg(target_arch = "x86_64")]
        if self.run_fixed(acc, first, out) {
            return;
        }
        let residual = match self.chain.residual {
            Residual::None => Residual::None,
            Residual::Codes(codes, from) => Residual::Codes(&codes[first..first + n], from),
            Residual::Floats(floats) => Residual::Floats(&floats[first..first + n]),
        };
        let chain = Requantize { residual, ..self.chain };
        match self.folded.folded() {
            Some(folded @ &Folded { doubt: Doubt::From(far), .. }) => run(&chain, folded, far, acc, out),
            _ => chain.one_by_one(acc, 0, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Channels that are held in registers together.
const RUN: usize = 16;

/// Numbers whose products with one another and with accumulators are neither too large nor too small for the bound.
const TAME: f32 = 1e9;

/// Most that both forms may differ by, in steps.
const MOST_MARGIN: f64 = 0.1;

/// Steps of the result that a float may add; more than this is left to the chain itself.
const MOST_ADDED: f32 = 1024.0;

/// Fixed-point numbers are multiples of the inverse of this.
const UNIT: f64 = 65_536.0;

/// Where the chain itself decides.
#[derive(Debug, Clone, Copy)]
enum Doubt {
    /// Numbers in steps that are farther than this from an integer.
    From(f32),
    /// [Fixed-point](UNIT) numbers, a half and a margin added, whose lower half is at most this.
    UpTo(u16),
}

/// The chain in units of the result's step, or [fixed-point](UNIT).
#[derive(Debug)]
struct Folded {
    /// A, per channel; some zeros follow.
    factors: Vec<f32>,
    /// B, per channel; some follow that, being alone, would be beyond doubt.
    addends: Vec<f32>,
    /// R; 1 / scale for floats.
    residual: f32,
    /// Bounds of the code.
    low: f32,
    high: f32,
    doubt: Doubt,
    /// The instructions that `doubt` is meant for.
    #[cfg(target_arch = "x86_64")]
    isa: Isa,
}

impl Folded {
    /// `None` where the bound would be no use, or does not hold for numbers beyond all reason.
    ///
    /// All in steps, with u = 2^-24, c the largest magnitude of a code, and one, y = t − zero_point, P = f32(acc) · A, b = b / scale,
    /// Z = |zero_point| and X the largest residual. The chain's roundings sum up to at most u · (2 |P| + |y| + |y|), with a residual to
    /// u · (2 |P| + |P + b| + X + 2 |y|). A, B and R are rounded once each, so the short form's sum up to u · (|P| + |B| + |t|), with a residual to
    /// u · (|P| + |B| + X + |t| + X + |t|), where |B| ≤ |b| + Z + X + 1. As |P| ≤ |y| + |b| + X, both differ by less than
    /// u · (6 c + 4 |b| + Z + 1), or u · (8 c + 4 |b| + Z + 1 + 8 X): a float as residual is rounded as often as a code. Without fused operations,
    /// products are rounded too: |P|, and X.
    fn new(r: &Requantize<'_>) -> Option<Self> {
        let grid = r.grid;
        let inverse = 1.0 / f64::from(grid.scale);
        let is_tame = |x: f32| x.abs() <= TAME;
        let (residual, offset, added) = match r.residual {
            Residual::None => (0.0, 0.0, 0.0),
            Residual::Codes(_, from) if is_tame(from.scale) => {
                let residual = f64::from(from.scale) * inverse;
                (residual, residual * f64::from(from.zero_point), residual * 255.0)
            }
            Residual::Codes(..) => return None,
            Residual::Floats(_) => (inverse, 0.0, MOST_ADDED.into()),
        };
        let (a, b) = r.per_channel.values();
        let [multiplier, a, b] = [largest(r.multiplier), largest(a), largest(b)];
        if ![grid.scale, inverse as f32, multiplier, a, b].into_iter().all(is_tame) {
            return None;
        }
        // The code of a clipped number is the clipped code.
        let code = |y: f32| quantize(y, grid.scale, grid.zero_point, grid.low, grid.high);
        let (low, high) = match r.clip {
            Some((low, high)) => (code(low), code(high)),
            None => (grid.low, grid.high),
        };
        let zero = f64::from(grid.zero_point);
        let (code, b) = (f64::from(low.abs().max(high.abs())) + 1.0, f64::from(b) * inverse);
        let own = if matches!(r.residual, Residual::None) { 6.0 } else { 8.0 };
        let mut most = own * code + 4.0 * b + zero.abs() + 1.0 + 8.0 * added;
        let isa = Isa::current();
        let is_fixed = cfg!(target_arch = "x86_64") && isa.level() >= Level::Avx2;
        if !is_fixed {
            most += code + b + 2.0 * added;
        }
        let margin = most / f64::from(1 << 24);
        if margin.is_nan() || margin > MOST_MARGIN {
            return None;
        }
        let (unit, above, doubt) = if is_fixed {
            // Rounding to a whole number is off by a half at most.
            let margin = (margin * UNIT + 0.5).ceil();
            (UNIT, 0.5 + margin / UNIT, Doubt::UpTo(2 * margin as u16))
        } else {
            (1.0, 0.0, Doubt::From((0.5 - margin) as f32))
        };
        let channels = r.multiplier.len();
        let mut factors = vec![0.0; channels + depthwise::SLACK];
        let mut addends = vec![(0.5 * unit) as f32; channels + depthwise::SLACK];
        let (factor, addend) = (inverse * unit, (zero - offset + above) * unit);
        fold(r, factor, addend, &mut factors[..channels], &mut addends[..channels]);
        let (low, high) = (low as f32, high as f32);
        Some(Self {
            factors,
            addends,
            residual: (residual * unit) as f32,
            low,
            high,
            doubt,
            #[cfg(target_arch = "x86_64")]
            isa,
        })
    }
}

multiversion! {
    /// Fills A and B, times a factor, and with an addend.
    fn fold(r: &Requantize<'_>, factor: f64, addend: f64, factors: &mut [f32], addends: &mut [f32]) {
        let multiplier = &r.multiplier[..factors.len()];
        match r.per_channel {
            PerChannel::Affine(a, _) => {
                for ((to, &m), &a) in factors.iter_mut().zip(multiplier).zip(a) {
                    *to = (f64::from(m) * f64::from(a) * factor) as f32;
                }
            }
            _ => factors.iter_mut().zip(multiplier).for_each(|(to, &m)| *to = (f64::from(m) * factor) as f32),
        }
        addends.fill(addend as f32);
        let (_, b) = r.per_channel.values();
        addends.iter_mut().zip(b).for_each(|(to, &b)| *to = (f64::from(b) * factor + addend) as f32);
    }
}

multiversion! {
    /// The largest magnitude; NaN counts as infinite.
    fn largest(values: &[f32]) -> f32 {
        let mut largest = 0f32;
        for v in values {
            let v = if v.abs() <= f32::MAX { v.abs() } else { f32::INFINITY };
            largest = if v > largest { v } else { largest };
        }
        largest
    }
}

/// The short form on processors without AVX2.
fn run(r: &Requantize<'_>, folded: &Folded, far: f32, acc: &[i32], out: &mut [u8]) {
    match r.residual {
        Residual::None => rows::<0>(r, folded, far, &[], &[], acc, out),
        Residual::Codes(codes, _) => rows::<1>(r, folded, far, codes, &[], acc, out),
        Residual::Floats(floats) => rows::<2>(r, folded, far, &[], floats, acc, out),
    }
}

/// `RESIDUAL` is 0 for nothing, 1 for codes, 2 for floats.
fn rows<const RESIDUAL: u8>(
    r: &Requantize<'_>,
    folded: &Folded,
    far: f32,
    codes: &[u8],
    floats: &[f32],
    acc: &[i32],
    out: &mut [u8],
) {
    let channels = r.multiplier.len();
    let &Folded { low, high, .. } = folded;
    for (row, (acc, out)) in acc.chunks_exact(channels).zip(out.chunks_exact_mut(channels)).enumerate() {
        let first = row * channels;
        let codes = if RESIDUAL == 1 { &codes[first..first + channels] } else { &[] };
        let floats = if RESIDUAL == 2 { &floats[first..first + channels] } else { &[] };
        let mut next = 0;
        while next < channels {
            // The last run of a row begins early enough to be a whole one, and does some channels again.
            let at = next.min(channels - RUN);
            next = at + RUN;
            // Slices of known length and plain loops, which become registers.
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
                is_unsure |= distance > far;
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
