//! Integer convolution: cuts the output into bands of rows, lays out each band's input with its padding, runs dot kernels.
//!
//! ```text
//! for each band of output rows of an image, in parallel:
//!     strip = the input rows it needs, as unsigned bytes, with the zero point in place of padding
//!     for each pixel of the band: its window is kernel_h runs of kernel_w * channels bytes in the strip (no im2col)
//!     acc = start + dot products,    start = −zero_point · Σ w
//!     (optionally) the epilogue, while acc is still in the cache
//! ```
//!
//! Where there is no padding and codes are unsigned, the input is read in place. Where padding or dilation is so large that a
//! strip would be mostly padding, every window is gathered by itself instead: slower, but memory stays bounded.

use super::Operand;
use super::dot::{Job, Kernel, Segments};
use super::weights::{ConvWeights, Kind, LANES, Layout, QUAD};
use crate::conv::ConvShape;
use crate::multiversion::multiversion;
use crate::threads;
use std::cell::Cell;
use std::ops::Range;

/// Bytes of strip, and of accumulators, that a band may have: both stay in the second cache.
const BAND_BYTES: usize = 96 * 1024;
/// A strip for a single output row may be this long, or four times as long as an image.
const LONG_STRIP: usize = 1 << 20;

/// `acc = Σ (x − zero_point) · w`: bit-equal to [`reference::conv`](super::reference::conv).
///
/// # Panics
/// If the shape is not valid, a slice has another length than it says, `weights` were packed for another shape, or
/// `zero_point` is no code of `A`.
pub fn conv<A: Operand>(shape: &ConvShape, x: &[A], zero_point: i32, weights: &ConvWeights, acc: &mut [i32]) {
    conv_on(Kernel::current(), shape, x, zero_point, weights, acc);
}

/// [`conv`] with a given kernel.
pub(super) fn conv_on<A: Operand>(
    kernel: Kernel,
    shape: &ConvShape,
    x: &[A],
    zero_point: i32,
    weights: &ConvWeights,
    acc: &mut [i32],
) {
    let plan = Plan::new(kernel, shape, x, acc.len(), zero_point, weights);
    plan.for_each_band(acc, |band, scratch, acc| plan.accumulate(band, &mut scratch.strip, acc));
}

/// [`conv`] with what follows it: `finish(first, acc, out)` turns the accumulators of whole pixels into outputs while they
/// are in the cache; `first` is the offset of both in the whole output. Bands run in parallel.
///
/// # Panics
/// As [`conv`].
pub fn conv_with<A: Operand, O: Send>(
    shape: &ConvShape,
    x: &[A],
    zero_point: i32,
    weights: &ConvWeights,
    out: &mut [O],
    finish: impl Fn(usize, &[i32], &mut [O]) + Sync,
) {
    let plan = Plan::new(Kernel::current(), shape, x, out.len(), zero_point, weights);
    plan.for_each_band(out, |band, Scratch { strip, acc }, out| {
        acc.resize(out.len(), 0);
        plan.accumulate(band, strip, acc);
        finish(plan.first(band), acc, out);
    });
}

thread_local! {
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch { strip: Vec::new(), acc: Vec::new() }) };
}

/// Buffers that a thread keeps from band to band.
#[derive(Default)]
struct Scratch {
    strip: Vec<u8>,
    acc: Vec<i32>,
}

/// Consecutive output rows of one image.
#[derive(Clone)]
struct Band {
    image: usize,
    rows: Range<usize>,
}

/// How windows are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// In the input itself.
    InPlace,
    /// In a padded copy of the band's input rows.
    Strip,
    /// Each copied by itself.
    Gather,
}

/// Everything that is the same for all bands.
struct Plan<'a, A> {
    kernel: Kernel,
    /// Pointwise convolutions are flattened: a pixel per row.
    shape: ConvShape,
    layout: Layout,
    x: &'a [A],
    weights: &'a ConvWeights,
    input: Input,
    /// Start value of the accumulators, per channel padded to blocks.
    start: Vec<i32>,
    segments: Segments,
    /// Bytes of a row of the strip.
    row_bytes: usize,
    /// Unsigned byte of code `zero_point`.
    fill: u8,
    band_rows: usize,
}

impl<'a, A: Operand> Plan<'a, A> {
    fn new(
        kernel: Kernel,
        shape: &ConvShape,
        x: &'a [A],
        out_len: usize,
        zero_point: i32,
        weights: &'a ConvWeights,
    ) -> Self {
        shape.assert_lengths(x.len(), shape.weight_len(), out_len);
        let layout = Layout::of(shape);
        assert_eq!(layout, weights.layout, "weights were packed for another shape than {shape:?}");
        assert!((A::CODE_MIN..=A::CODE_MAX).contains(&zero_point), "zero point {zero_point} is no code");
        let mut shape = *shape;
        if shape.kernel == [1; 2] && shape.stride == [1; 2] && shape.pads == [0; 4] {
            let pixels = shape.batch * shape.in_h * shape.in_w;
            (shape.batch, shape.in_h, shape.in_w) = (1, pixels, 1);
        }
        let row_bytes = (shape.in_w + shape.pads[1] + shape.pads[3]) * shape.c_in;
        let image_bytes = shape.in_h * shape.in_w * shape.c_in;
        let shortest = span(&shape).saturating_mul(row_bytes);
        let exact = layout.kind == Kind::Depthwise || layout.is_exact();
        let input = if shape.pads == [0; 4] && exact && A::unsigned(x).is_some() {
            Input::InPlace
        } else if shortest > LONG_STRIP.max(4 * image_bytes) {
            Input::Gather
        } else {
            Input::Strip
        };
        let [kernel_h, kernel_w] = shape.kernel;
        let (row_step, tap_step) = match input {
            Input::Gather => (kernel_w * shape.c_in, shape.c_in),
            _ => (shape.dilation[0] * row_bytes, shape.dilation[1] * shape.c_in),
        };
        let offsets = match layout.kind {
            Kind::Rows => (0..kernel_h).map(|kh| kh * row_step).collect(),
            Kind::Taps | Kind::Depthwise => {
                (0..kernel_h * kernel_w).map(|tap| tap / kernel_w * row_step + tap % kernel_w * tap_step).collect()
            }
        };
        let shifted = zero_point + A::OFFSET;
        let out_row = shape.out_w() * shape.c_out;
        let threads = rayon::current_num_threads();
        let fair_share = (shape.batch * shape.out_h()).div_ceil(2 * threads);
        let band_rows = (BAND_BYTES / (shape.stride[0] * row_bytes).max(1))
            .min(BAND_BYTES / (out_row * size_of::<i32>()).max(1))
            .clamp(1, shape.out_h().min(fair_share).max(1));
        Plan {
            kernel,
            layout,
            x,
            weights,
            input,
            start: weights.sums.iter().map(|sum| shifted.wrapping_mul(*sum).wrapping_neg()).collect(),
            segments: Segments { offsets, quads: layout.segment_quads() },
            row_bytes,
            fill: shifted as u8,
            band_rows,
            shape,
        }
    }

    /// Calls `run(band, scratch, its part of out)` for all bands, in parallel.
    fn for_each_band<O: Send>(&self, out: &mut [O], run: impl Fn(&Band, &mut Scratch, &mut [O]) + Sync) {
        let (out_h, row) = (self.shape.out_h(), self.shape.out_w() * self.shape.c_out);
        let mut bands = Vec::with_capacity(self.shape.batch * out_h.div_ceil(self.band_rows));
        for (image, out) in out.chunks_mut((out_h * row).max(1)).enumerate() {
            for (idx, part) in out.chunks_mut(self.band_rows * row).enumerate() {
                let first = idx * self.band_rows;
                bands.push((Band { image, rows: first..first + part.len() / row }, part));
            }
        }
        threads::for_each_job(bands, |(band, part)| {
            // Taken while it is used, so that a nested call gets a fresh one.
            let mut scratch = SCRATCH.take();
            run(&band, &mut scratch, part);
            SCRATCH.set(scratch);
        });
    }

    /// Offset of a band in the whole output.
    fn first(&self, band: &Band) -> usize {
        (band.image * self.shape.out_h() + band.rows.start) * self.shape.out_w() * self.shape.c_out
    }

    /// Fills the accumulators of a band.
    fn accumulate(&self, band: &Band, strip: &mut Vec<u8>, acc: &mut [i32]) {
        let s = &self.shape;
        let (out_w, c_out) = (s.out_w(), s.c_out);
        if self.input == Input::Gather {
            for (pixel, acc) in acc.chunks_exact_mut(c_out).enumerate() {
                self.gather(band.image, band.rows.start + pixel / out_w, pixel % out_w, strip);
                self.run_pixels(strip, &[0], acc);
            }
            return;
        }
        let pixels: Vec<usize> = (0..band.rows.len() * out_w)
            .map(|p| p / out_w * s.stride[0] * self.row_bytes + p % out_w * s.stride[1] * s.c_in)
            .collect();
        match A::unsigned(self.x) {
            Some(x) if self.input == Input::InPlace => {
                let first = (band.image * s.in_h + band.rows.start * s.stride[0]) * self.row_bytes;
                self.run_pixels(&x[first..], &pixels, acc);
            }
            _ => {
                self.fill_strip(band, strip);
                self.run_pixels(strip, &pixels, acc);
            }
        }
    }

    /// All channels of pixels whose windows begin at `pixels` in `input`.
    fn run_pixels(&self, input: &[u8], pixels: &[usize], acc: &mut [i32]) {
        let (layout, c_out) = (&self.layout, self.shape.c_out);
        if layout.kind == Kind::Depthwise {
            for (acc, &pixel) in acc.chunks_exact_mut(c_out).zip(pixels) {
                depthwise_pixel(&input[pixel..], &self.segments.offsets, &self.weights.data, &self.start, acc);
            }
            return;
        }
        let blocks = layout.blocks();
        let weights_per_group = (blocks * layout.block_len()).max(1);
        for (group, weights) in self.weights.data.chunks_exact(weights_per_group).enumerate() {
            self.kernel.run(&mut Job {
                input: &input[group * layout.group_in()..],
                pixels,
                segments: &self.segments,
                weights,
                short_sums: self.weights.short_sums,
                block_len: layout.block_len(),
                start: &self.start[group * blocks * LANES..][..blocks * LANES],
                channels: layout.group_out(),
                acc: &mut acc[group * layout.group_out()..],
                stride: c_out,
            });
        }
    }

    /// Lays out the input rows of a band, padded, as unsigned bytes.
    fn fill_strip(&self, band: &Band, strip: &mut Vec<u8>) {
        let s = &self.shape;
        let rows = (band.rows.len() - 1) * s.stride[0] + span(s);
        // The last quad of a segment may read up to three bytes past it; their weights are 0.
        strip.resize(rows * self.row_bytes + QUAD, self.fill);
        let (left, width) = (s.pads[1] * s.c_in, s.in_w * s.c_in);
        for (i, row) in strip.chunks_exact_mut(self.row_bytes).take(rows).enumerate() {
            let ih = (band.rows.start * s.stride[0] + i).checked_sub(s.pads[0]).filter(|&ih| ih < s.in_h);
            let Some(ih) = ih else {
                row.fill(self.fill);
                continue;
            };
            let source = &self.x[(band.image * s.in_h + ih) * width..][..width];
            row[..left].fill(self.fill);
            row[left + width..].fill(self.fill);
            for (byte, &code) in row[left..left + width].iter_mut().zip(source) {
                *byte = code.byte() ^ A::FLIP;
            }
        }
    }

    /// Lays out one window, taps in order.
    fn gather(&self, image: usize, oh: usize, ow: usize, window: &mut Vec<u8>) {
        let s = &self.shape;
        let [kernel_h, kernel_w] = s.kernel;
        window.clear();
        window.resize(kernel_h * kernel_w * s.c_in + QUAD, self.fill);
        for (tap, bytes) in window.chunks_exact_mut(s.c_in).take(kernel_h * kernel_w).enumerate() {
            let source = |out: usize, tap: usize, axis: usize, size: usize| {
                (out * s.stride[axis] + tap * s.dilation[axis]).checked_sub(s.pads[axis]).filter(|&i| i < size)
            };
            let (ih, iw) = (source(oh, tap / kernel_w, 0, s.in_h), source(ow, tap % kernel_w, 1, s.in_w));
            if let (Some(ih), Some(iw)) = (ih, iw) {
                let codes = &self.x[((image * s.in_h + ih) * s.in_w + iw) * s.c_in..][..s.c_in];
                for (byte, &code) in bytes.iter_mut().zip(codes) {
                    *byte = code.byte() ^ A::FLIP;
                }
            }
        }
    }
}

/// Input rows that one window spans.
fn span(shape: &ConvShape) -> usize {
    (shape.kernel[0] - 1) * shape.dilation[0] + 1
}

multiversion! {
    /// One pixel of a depthwise convolution: taps at `offsets` in `input`, weights `[tap][channel]`.
    fn depthwise_pixel(input: &[u8], offsets: &[usize], weights: &[i8], start: &[i32], acc: &mut [i32]) {
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
