//! Depthwise convolutions: every channel alone, one weight per tap.
//!
//! With AVX2, `vpmaddwd` adds two taps at a time: 16 channels of two taps are widened to 16 bits and interleaved,
//!
//! ```text
//! x(tap 0): c0 … c15      low  = c0t0 c0t1 … c3t0 c3t1 | c8t0 c8t1 … c11t0 c11t1
//! x(tap 1): c0 … c15      high = c4t0 c4t1 … c7t0 c7t1 | c12t0 …
//! ```
//!
//! and multiplied with weights in the same order, `[block of 16 channels][pair of taps][low, high]`. Where 16 bits hold the sums,
//! `vpmaddubsw` does the same with bytes, 32 channels at a time. An odd tap is paired with itself and a weight of 0.
//!
//! With VNNI, `vpdpbusd` adds four taps at a time: 64 channels of four taps are interleaved by bytes, then by words,
//!
//! ```text
//! x(tap 0): c0 … c63      part j, j = 0 … 3:  c4j t0-3 … c4j+3 t0-3 | c16+4j … | c32+4j … | c48+4j …
//! ```
//!
//! with weights `[block of 64 channels][four taps][part]`; sums are brought into the order of channels at the end. The taps of a 3x3 kernel
//! are taken by columns, three and a weight of 0, because the next pixel meets most columns again. Without any of these, weights are
//! `[tap][channel]`.

use super::dot::Kernel;
#[cfg(target_arch = "x86_64")]
use super::dot::x86::{Finish, Sums};
use super::pixels::Pixels;
use super::weights::{LANES, Packed};
use crate::multiversion::multiversion;

/// Channels that are read together at most, and so the bytes that may be read past a window's last one.
pub(super) const SLACK: usize = 4 * LANES;

/// Taps of a group for `vpdpbusd`.
const QUAD: usize = 4;

/// Rows and columns of the kernel whose columns are shared.
const SIDE: usize = 3;

/// How a layer's weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `[tap][channel]`.
    Taps,
    /// For `vpmaddwd`.
    Pairs,
    /// For `vpmaddubsw`.
    ShortPairs,
    /// For `vpdpbusd`, in order.
    Quads,
    /// For `vpdpbusd`, by columns of three.
    Columns,
}

impl Form {
    fn of(kernel: Kernel, weights: &Packed, taps: usize) -> Self {
        match weights {
            Packed::Words(_) => Form::Pairs,
            _ if kernel.has_vnni() && taps == SIDE * SIDE => Form::Columns,
            _ if kernel.has_vnni() => Form::Quads,
            _ if kernel.has_avx2() => Form::ShortPairs,
            _ => Form::Taps,
        }
    }

    /// Channels of a block, and taps of a group.
    fn block(self) -> (usize, usize) {
        match self {
            Form::Taps => (1, 1),
            Form::Pairs => (LANES, 2),
            Form::ShortPairs => (2 * LANES, 2),
            Form::Quads | Form::Columns => (4 * LANES, QUAD),
        }
    }
}

/// Weights `[channel][tap]` in the order of the loops; `short_sums` are those of single weights.
pub(super) fn pack(kernel: Kernel, short_sums: usize, taps: usize, w: &[i8]) -> Packed {
    let channels = w.len() / taps;
    let pairs = taps.div_ceil(2);
    let by_pair = |block: usize, quarters: [usize; 4]| {
        let mut out = vec![0i8; channels.div_ceil(block) * pairs * 2 * block];
        for (i, &w) in w.iter().enumerate() {
            let (channel, tap) = (i / taps, i % taps);
            let lane = channel % block;
            let at = (channel / block * pairs + tap / 2) * 2 * block;
            let run = block / 4;
            out[at + quarters[lane / run] * 2 * run + lane % run * 2 + tap % 2] = w;
        }
        out
    };
    // Low and high halves of either kind hold the quarters 0 2 | 1 3.
    let quarters = [0, 2, 1, 3];
    if kernel.has_vnni() && taps == SIDE * SIDE {
        // Columns as if they were rows, each filled up to four taps.
        let by_column = |i: usize| (i % 4 < SIDE).then(|| i % 4 * SIDE + i / 4);
        let filter = |w: &[i8]| (0..4 * SIDE).map(|i| by_column(i).map_or(0, |tap| w[tap])).collect::<Vec<_>>();
        let w: Vec<i8> = w.chunks_exact(taps).flat_map(filter).collect();
        Packed::Bytes(by_quad(4 * SIDE, &w))
    } else if kernel.has_vnni() {
        Packed::Bytes(by_quad(taps, w))
    } else if !kernel.has_avx2() {
        Packed::Bytes((0..w.len()).map(|i| w[i % channels * taps + i / channels]).collect())
    } else if pairs <= short_sums / 2 {
        Packed::Bytes(by_pair(2 * LANES, quarters))
    } else {
        Packed::Words(by_pair(LANES, quarters).into_iter().map(i16::from).collect())
    }
}

/// Weights `[channel][tap]` as `vpdpbusd` meets them.
fn by_quad(taps: usize, w: &[i8]) -> Vec<i8> {
    let block = 4 * LANES;
    let (channels, quads) = (w.len() / taps, taps.div_ceil(QUAD));
    let mut out = vec![0i8; channels.div_ceil(block) * quads * QUAD * block];
    for (i, &w) in w.iter().enumerate() {
        let (channel, tap) = (i / taps, i % taps);
        let (lane, part, k) = (channel % block / LANES, channel % LANES / 4, channel % 4);
        let at = (channel / block * quads + tap / QUAD) * QUAD * block;
        out[at + part * block + lane * LANES + k * QUAD + tap % QUAD] = w;
    }
    out
}

/// The pixels of a band and what their windows are multiplied with, but for the weights.
pub(super) struct Windows<'a> {
    pub input: &'a [u8],
    /// Where each pixel's window begins in the input.
    pub pixels: &'a Pixels,
    /// Taps, from there.
    pub offsets: &'a [usize],
    /// What sums begin with, whole blocks of [`SLACK`] channels.
    pub start: &'a [i32],
    pub channels: usize,
}

/// Accumulates pixels.
///
/// # Panics
/// If a window and its [`SLACK`] reach past the input, or a slice is shorter than the others say.
pub(super) fn run(kernel: Kernel, weights: &Packed, windows: &Windows<'_>, acc: &mut [i32]) {
    match (Form::of(kernel, weights, windows.offsets.len()), weights) {
        (Form::Taps, Packed::Bytes(weights)) => {
            for (acc, &pixel) in acc.chunks_exact_mut(windows.channels).zip(windows.pixels.offsets()) {
                pixel_by_tap(&windows.input[pixel..], windows.offsets, weights, windows.start, acc);
            }
        }
        #[cfg(target_arch = "x86_64")]
        _ => finish(kernel, weights, windows, Sums, acc),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("depthwise weights are of another processor"),
    }
}

/// [`run`] with weights for x86, each sum turned into an output while it is in a register.
///
/// # Panics
/// As [`run`], or with weights of another processor.
#[cfg(target_arch = "x86_64")]
pub(super) fn finish<F: Finish>(
    kernel: Kernel,
    weights: &Packed,
    windows: &Windows<'_>,
    finish: F,
    out: &mut [F::Out],
) {
    let form = Form::of(kernel, weights, windows.offsets.len());
    let len = match weights {
        Packed::Bytes(bytes) => bytes.len(),
        Packed::Words(words) => words.len(),
        _ => 0,
    };
    windows.check(form, len, out.len());
    // SAFETY: the kernel was chosen where VNNI, or AVX2 and FMA, was found; lengths were checked just now.
    unsafe {
        match (form, weights, windows.columns_ahead()) {
            (Form::Columns, Packed::Bytes(w), Some(1)) => x86::columns::<1, F>(w, windows, finish, out),
            (Form::Columns, Packed::Bytes(w), Some(2)) => x86::columns::<2, F>(w, windows, finish, out),
            (Form::Columns, Packed::Bytes(w), _) => x86::columns::<SIDE, F>(w, windows, finish, out),
            (Form::Quads, Packed::Bytes(w), _) => x86::quads(w, windows, finish, out),
            _ => assert!(F::WITH_EIGHTS, "this is done with VNNI only"),
        }
        if F::WITH_EIGHTS {
            match (form, weights) {
                (Form::ShortPairs, Packed::Bytes(w)) => x86::short_pairs(w, windows, finish, out),
                (Form::Pairs, Packed::Words(w)) => x86::pairs(w, windows, finish, out),
                _ => {}
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Windows<'_> {
    /// That slices are as long as the loops for vectors read and write.
    fn check(&self, form: Form, weights: usize, out: usize) {
        let (block, group) = form.block();
        let (blocks, taps) = (self.channels.div_ceil(block), self.offsets.len());
        let reach = self.offsets.iter().max().map_or(0, |o| o + blocks * block);
        let last = self.pixels.last() + reach;
        let groups = if form == Form::Columns { SIDE } else { taps.div_ceil(group) };
        assert!(last <= self.input.len(), "a window reaches past the input");
        assert!(
            self.start.len() >= blocks * block && out >= self.pixels.offsets().len() * self.channels,
            "outputs are missing"
        );
        assert!(weights >= blocks * groups * group * block, "weights are missing");
    }

    /// How many columns further the next pixel of a row begins, if taps are three rows of columns and it is whole ones.
    fn columns_ahead(&self) -> Option<usize> {
        if self.offsets.len() != SIDE * SIDE {
            return None;
        }
        let (step, next) = (self.offsets[1].checked_sub(self.offsets[0])?, self.pixels.step());
        let are_columns = self.offsets.chunks_exact(SIDE).all(|row| row[1] == row[0] + step && row[2] == row[1] + step);
        (self.pixels.columns() > 1 && are_columns && step > 0 && next % step == 0).then(|| next / step)
    }
}

multiversion! {
    /// One pixel, weights `[tap][channel]`.
    fn pixel_by_tap(input: &[u8], offsets: &[usize], weights: &[i8], start: &[i32], acc: &mut [i32]) {
        let channels = acc.len();
        acc.copy_from_slice(&start[..channels]);
        for (offset, weights) in offsets.iter().zip(weights.chunks_exact(channels)) {
            let input = &input[*offset..][..channels];
            for ((acc, &x), &w) in acc.iter_mut().zip(input).zip(weights) {
                *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
