//! Passes over channels-last rows with one parameter per channel.
//!
//! Several rows are taken as one *period*, so long that it is a whole number of blocks of four vectors: with 3 channels and
//! 16 lanes, 64 rows are one period of 192 elements, 3 blocks. Parameters are repeated to the length of a period, and no
//! loop has a remainder but the last rows, which fill no period and are done one by one.
//!
//! Sums over rows are f32 inside a chunk that fits the first-level cache, and f64 across chunks.

use crate::activation::Activation;
use crate::activation::curve::{Curve, with_curve};
use crate::simd::{Kernel, Vector};

/// Vectors per block.
pub(super) const BLOCK: usize = 4;

/// Elements per chunk: 16 KiB.
const CHUNK: usize = 4096;

/// Elements of one period for `channels` and `lanes`.
pub(super) fn period(channels: usize, lanes: usize) -> usize {
    let block = BLOCK * lanes;
    let (mut a, mut b) = (channels, block);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    channels / a * block
}

/// `parameters` repeated to `period` elements.
pub(super) fn repeat(parameters: &[f32], period: usize) -> Vec<f32> {
    parameters.iter().copied().cycle().take(period).collect()
}

fn chunk(period: usize) -> usize {
    (CHUNK / period).max(4) * period
}

/// Count, mean and sum of squared deviations, of each element of a period over whole periods.
pub(super) struct Moments {
    pub count: f64,
    pub mean: Vec<f64>,
    pub deviation: Vec<f64>,
}

impl Moments {
    pub fn new(period: usize) -> Moments {
        Moments { count: 0.0, mean: vec![0.0; period], deviation: vec![0.0; period] }
    }

    /// Joins two sets of rows (Chan, Golub and LeVeque 1983): no cancellation however large the mean.
    #[inline(always)]
    pub fn merge<'a>(&mut self, count: f64, moments: impl Iterator<Item = (&'a f32, &'a f32)>) {
        let total = self.count + count;
        let (weight, cross) = (count / total, self.count * count / total);
        for ((mean, deviation), (&m, &d)) in self.mean.iter_mut().zip(&mut self.deviation).zip(moments) {
            let delta = f64::from(m) - *mean;
            *mean += delta * weight;
            *deviation += f64::from(d) + delta * delta * cross;
        }
        self.count = total;
    }

    /// As [`Moments::merge`], for one element of other moments into one of these; `self.count` stays.
    pub fn merge_into(mean: &mut f64, deviation: &mut f64, count: &mut f64, other: (f64, f64, f64)) {
        let (n, m, d) = other;
        if n == 0.0 {
            return;
        }
        let (total, delta) = (*count + n, m - *mean);
        *mean += delta * (n / total);
        *deviation += d + delta * delta * (*count * n / total);
        *count = total;
    }
}

/// Moments of whole periods.
pub(super) struct Stats<'a> {
    pub x: &'a [f32],
    pub period: usize,
}

impl Kernel for Stats<'_> {
    type Output = Moments;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Moments {
        let period = self.period;
        let mut moments = Moments::new(period);
        let (mut mean, mut deviation) = (vec![0.0_f32; period], vec![0.0_f32; period]);
        for chunk in self.x.chunks(chunk(period)) {
            let rows = chunk.len() / period;
            for first in (0..period).step_by(BLOCK * V::LANES) {
                // SAFETY: the caller promises the instruction set; `chunk` is `rows` periods, each of whole blocks, so that
                // a block at `first` of each row and of `mean` and `deviation` is in bounds.
                unsafe {
                    let at = |row: usize, v: usize| chunk.as_ptr().add(row * period + first + v * V::LANES);
                    let mut sum = [V::zero(); BLOCK];
                    for row in 0..rows {
                        for (v, sum) in sum.iter_mut().enumerate() {
                            *sum = sum.add(V::load(at(row, v)));
                        }
                    }
                    let scale = V::splat(1.0 / rows as f32);
                    let mut centre = sum;
                    for centre in &mut centre {
                        *centre = centre.mul(scale);
                    }
                    let mut squares = [V::zero(); BLOCK];
                    for row in 0..rows {
                        for (v, squares) in squares.iter_mut().enumerate() {
                            let d = V::load(at(row, v)).sub(centre[v]);
                            *squares = d.mul_add(d, *squares);
                        }
                    }
                    for v in 0..BLOCK {
                        centre[v].store(mean.as_mut_ptr().add(first + v * V::LANES));
                        squares[v].store(deviation.as_mut_ptr().add(first + v * V::LANES));
                    }
                }
            }
            moments.merge(rows as f64, mean.iter().zip(&deviation));
        }
        moments
    }
}

/// Sums of whole periods.
pub(super) struct Sums<'a> {
    pub x: &'a [f32],
    pub period: usize,
}

impl Kernel for Sums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Vec<f64> {
        let mut totals = vec![0.0_f64; self.period];
        let mut sums = vec![0.0_f32; self.period];
        for chunk in self.x.chunks(chunk(self.period)) {
            sums.fill(0.0);
            for row in chunk.chunks_exact(self.period) {
                sums.iter_mut().zip(row).for_each(|(s, &x)| *s += x);
            }
            totals.iter_mut().zip(&sums).for_each(|(t, &s)| *t += f64::from(s));
        }
        totals
    }
}

/// `y = act(x * a + b (+ add))` over whole periods; `a` and `b` are one period long.
pub(super) struct Affine<'a> {
    pub x: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub add: Option<&'a [f32]>,
    pub act: Activation,
    pub y: &'a mut [f32],
    /// Whether `y`, at the beginning of a line of the cache, is written past it.
    pub streams: bool,
}

impl Kernel for Affine<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        assert!(self.x.len() == self.y.len() && self.add.is_none_or(|add| add.len() == self.y.len()));
        with_curve!(self.act, curve => {
            // SAFETY: the caller promises the instruction set; the lengths agree as just asserted.
            unsafe {
                let Self { x, a, b, y, .. } = self;
                match (self.add, self.streams) {
                    (Some(add), true) => affine::<V, _, true, true>(curve, x, a, b, add, y),
                    (Some(add), false) => affine::<V, _, true, false>(curve, x, a, b, add, y),
                    (None, true) => affine::<V, _, false, true>(curve, x, a, b, &[], y),
                    (None, false) => affine::<V, _, false, false>(curve, x, a, b, &[], y),
                }
            }
        });
    }
}

/// # Safety
/// The CPU has the instruction set of `V`; `x`, `y` and, with `ADD`, `add` have the same length; with `STREAM`, `y` is aligned to a vector.
#[inline(always)]
unsafe fn affine<V: Vector, C: Curve, const ADD: bool, const STREAM: bool>(
    curve: C,
    x: &[f32],
    a: &[f32],
    b: &[f32],
    add: &[f32],
    y: &mut [f32],
) {
    let period = a.len();
    assert!(b.len() == period && period.is_multiple_of(BLOCK * V::LANES) && x.len().is_multiple_of(period));
    let chunk = chunk(period);
    for start in (0..x.len()).step_by(chunk) {
        let rows = (x.len() - start).min(chunk) / period;
        for first in (0..period).step_by(BLOCK * V::LANES) {
            // SAFETY: all slices are whole periods of whole blocks, as asserted.
            unsafe {
                let (a, b) = (load_block::<V>(a, first), load_block::<V>(b, first));
                for row in 0..rows {
                    let at = start + row * period + first;
                    for v in 0..BLOCK {
                        let i = at + v * V::LANES;
                        // Two roundings, not one: batch-norm is a plain product and sum everywhere.
                        let mut z = V::load(x.as_ptr().add(i)).mul(a[v]).add(b[v]);
                        if ADD {
                            z = z.add(V::load(add.as_ptr().add(i)));
                        }
                        let (z, to) = (curve.apply(z), y.as_mut_ptr().add(i));
                        if STREAM {
                            z.stream(to);
                        } else {
                            z.store(to);
                        }
                    }
                }
            }
        }
    }
    if STREAM {
        // SAFETY: the caller promises the instruction set.
        unsafe { V::fence() };
    }
}

/// The gradient of an output, `dy`, which is read, or replaced by what is computed from it.
pub(super) enum Gradient<'a> {
    Read(&'a [f32]),
    Replace(&'a mut [f32]),
}

/// What an activation's slope is told from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// It is 1 everywhere.
    Nothing,
    /// The output, element by element.
    Output(&'a [f32]),
    /// The input of the normalisation: the output is `act(x * a + b)`, with `a` and `b` one period long.
    Input(&'a [f32], &'a [f32]),
}

/// Sums of `g` and of `g (x - mean)` per element of a period, where `g = dy act'(saved)`, which may replace `dy`.
pub(super) struct Reduce<'a> {
    pub dy: Gradient<'a>,
    pub saved: Source<'a>,
    pub x: &'a [f32],
    pub mean: &'a [f32],
    pub act: Activation,
}

impl Kernel for Reduce<'_> {
    type Output = [Vec<f64>; 2];

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> [Vec<f64>; 2] {
        let (dy, len, replace) = match self.dy {
            Gradient::Read(dy) => (dy.as_ptr().cast_mut(), dy.len(), false),
            Gradient::Replace(dy) => (dy.as_mut_ptr(), dy.len(), true),
        };
        let x = self.x;
        assert!(x.len() == len);
        with_curve!(self.act, curve => {
            // SAFETY: the caller promises the instruction set; the lengths agree as just asserted; `dy` is written only where it may be.
            unsafe {
                match (self.saved, replace) {
                    (Source::Input(a, b), true) => reduce::<V, _, true, true>(curve, dy, [a, b], x, self.mean),
                    (Source::Input(a, b), false) => reduce::<V, _, false, true>(curve, dy, [a, b], x, self.mean),
                    (Source::Output(y), true) => reduce::<V, _, true, false>(curve, dy, [y, y], x, self.mean),
                    (Source::Output(y), false) => reduce::<V, _, false, false>(curve, dy, [y, y], x, self.mean),
                    (Source::Nothing, true) => reduce::<V, _, true, false>(curve, dy, [x, x], x, self.mean),
                    (Source::Nothing, false) => reduce::<V, _, false, false>(curve, dy, [x, x], x, self.mean),
                }
            }
        })
    }
}

/// With `AGAIN`, `saved` is `a` and `b`, a period of each; else twice what the slope is told from.
///
/// # Safety
/// The CPU has the instruction set of `V`; at `dy` as many elements as `x` has can be read or, with `REPLACE`, written.
#[inline(always)]
unsafe fn reduce<V: Vector, C: Curve, const REPLACE: bool, const AGAIN: bool>(
    curve: C,
    dy: *mut f32,
    saved: [&[f32]; 2],
    x: &[f32],
    mean: &[f32],
) -> [Vec<f64>; 2] {
    let period = mean.len();
    assert!(period.is_multiple_of(BLOCK * V::LANES) && x.len().is_multiple_of(period));
    assert!(saved.iter().all(|s| s.len() == if AGAIN { period } else { x.len() }));
    let mut totals = [vec![0.0_f64; period], vec![0.0_f64; period]];
    let mut sums = [vec![0.0_f32; period], vec![0.0_f32; period]];
    let chunk = chunk(period);
    for start in (0..x.len()).step_by(chunk) {
        let rows = (x.len() - start).min(chunk) / period;
        for first in (0..period).step_by(BLOCK * V::LANES) {
            // SAFETY: all slices are whole periods of whole blocks, as asserted.
            unsafe {
                let mean = load_block::<V>(mean, first);
                let (a, b) = (load_block::<V>(saved[0], first), load_block::<V>(saved[1], first));
                let (mut plain, mut weighted) = ([V::zero(); BLOCK], [V::zero(); BLOCK]);
                for row in 0..rows {
                    let at = start + row * period + first;
                    for v in 0..BLOCK {
                        let i = at + v * V::LANES;
                        let x = V::load(x.as_ptr().add(i));
                        let y = match AGAIN {
                            true => curve.apply(x.mul(a[v]).add(b[v])),
                            false => V::load(saved[0].as_ptr().add(i)),
                        };
                        let masked = curve.gradient(V::load(dy.add(i)), y);
                        if REPLACE {
                            masked.store(dy.add(i));
                        }
                        plain[v] = plain[v].add(masked);
                        weighted[v] = x.sub(mean[v]).mul_add(masked, weighted[v]);
                    }
                }
                for v in 0..BLOCK {
                    plain[v].store(sums[0].as_mut_ptr().add(first + v * V::LANES));
                    weighted[v].store(sums[1].as_mut_ptr().add(first + v * V::LANES));
                }
            }
        }
        for (total, sum) in totals.iter_mut().zip(&sums) {
            total.iter_mut().zip(sum).for_each(|(t, &s)| *t += f64::from(s));
        }
    }
    totals
}

/// `dx = a (g - c - (x - mean) d)`, where `g` is `dy act'(saved)`; all parameters one period long.
pub(super) struct Apply<'a> {
    /// `None`: what `dx` holds, which is replaced.
    pub dy: Option<&'a [f32]>,
    pub saved: Source<'a>,
    pub x: &'a [f32],
    pub act: Activation,
    /// `a`, `c`, `d`, `mean`.
    pub parameters: [&'a [f32]; 4],
    pub dx: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { x, parameters, .. } = self;
        assert!(self.dx.len() == x.len() && self.dy.is_none_or(|dy| dy.len() == x.len()));
        let dx = self.dx.as_mut_ptr();
        let dy = match self.dy {
            Some(dy) => dy.as_ptr(),
            None => dx.cast_const(),
        };
        with_curve!(self.act, curve => {
            // SAFETY: the caller promises the instruction set; lengths agree as just asserted, and each element is read before it is
            // written.
            unsafe {
                match self.saved {
                    Source::Input(a, b) => apply::<V, _, true>(curve, dy, [a, b], x, parameters, dx),
                    Source::Output(y) => apply::<V, _, false>(curve, dy, [y, y], x, parameters, dx),
                    Source::Nothing => apply::<V, _, false>(curve, dy, [x, x], x, parameters, dx),
                }
            }
        });
    }
}

/// `saved` as in [`reduce`].
///
/// # Safety
/// The CPU has the instruction set of `V`; at `dy` as many elements can be read as `x` has, and at `dx` written. They may be the same.
#[inline(always)]
unsafe fn apply<V: Vector, C: Curve, const AGAIN: bool>(
    curve: C,
    dy: *const f32,
    saved: [&[f32]; 2],
    x: &[f32],
    parameters: [&[f32]; 4],
    dx: *mut f32,
) {
    let period = parameters[0].len();
    assert!(period.is_multiple_of(BLOCK * V::LANES) && x.len().is_multiple_of(period));
    assert!(parameters.iter().all(|p| p.len() == period));
    assert!(saved.iter().all(|s| s.len() == if AGAIN { period } else { x.len() }));
    let chunk = chunk(period);
    for start in (0..x.len()).step_by(chunk) {
        let rows = (x.len() - start).min(chunk) / period;
        for first in (0..period).step_by(BLOCK * V::LANES) {
            // SAFETY: all slices are whole periods of whole blocks, as asserted.
            unsafe {
                let (a, c) = (load_block::<V>(parameters[0], first), load_block::<V>(parameters[1], first));
                let (d, mean) = (load_block::<V>(parameters[2], first), load_block::<V>(parameters[3], first));
                let (scale, shift) = (load_block::<V>(saved[0], first), load_block::<V>(saved[1], first));
                for row in 0..rows {
                    let at = start + row * period + first;
                    for v in 0..BLOCK {
                        let i = at + v * V::LANES;
                        let x = V::load(x.as_ptr().add(i));
                        let y = match AGAIN {
                            true => curve.apply(x.mul(scale[v]).add(shift[v])),
                            false => V::load(saved[0].as_ptr().add(i)),
                        };
                        let g = curve.gradient(V::load(dy.add(i)), y);
                        let centred = x.sub(mean[v]);
                        g.sub(c[v]).sub(centred.mul(d[v])).mul(a[v]).store(dx.add(i));
                    }
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`, and `from` holds a block at `first`.
#[inline(always)]
unsafe fn load_block<V: Vector>(from: &[f32], first: usize) -> [V; BLOCK] {
    debug_assert!(first + BLOCK * V::LANES <= from.len());
    // SAFETY: the function's contract.
    unsafe {
        let mut block = [V::zero(); BLOCK];
        for (v, to) in block.iter_mut().enumerate() {
            *to = V::load(from.as_ptr().add(first + v * V::LANES));
        }
        block
    }
}
