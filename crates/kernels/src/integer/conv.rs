//! Integer convolution: cuts the output into bands of rows, lays out each band's input with its padding, runs dot kernels.
//!
//! ```text
//! for each band of output rows of an image, in parallel:
//!     strip = the input rows it needs, as unsigned bytes or words, with the zero point in place of padding
//!     for each pixel of the band: its window is kernel_h runs of kernel_w * channels bytes in the strip (no im2col)
//!     acc = start + dot products,    start = −zero_point · Σ w
//!     (optionally) the epilogue, while acc is still in the cache
//! ```
//!
//! Where there is no padding and codes are unsigned bytes, as the kernel wants them, the input is read in place. Where padding or dilation is so large that a
//! strip would be mostly padding, every window is gathered by itself instead: slower, but memory stays bounded.

#[cfg(target_arch = "x86_64")]
use super::dot::x86::Finish;
use super::dot::{Chunk, Job};
use super::pixels::Pixels;
#[cfg(target_arch = "x86_64")]
use super::requantize::x86::InRegisters;
use super::weights::{ConvWeights, Kind, LANES, Layout, Packed};
use super::winograd::{Output, Planes};
use super::{Operand, Prepared, depthwise};
use crate::conv::ConvShape;
use crate::multiversion::multiversion;
use crate::threads;
use std::cell::Cell;
use std::ops::Range;

/// Bytes of strip, and of accumulators, that a band may have: both stay in the second cache.
const BAND_BYTES: usize = 192 * 1024;
/// What may be read past a window: the last group of four of a segment, whose weights are 0, or a block of channels.
const SLACK: usize = depthwise::SLACK;
/// A strip for a single output row may be this long, or four times as long as an image.
const LONG_STRIP: usize = 1 << 20;

/// `acc = Σ (x − zero_point) · w`: bit-equal to [`reference::conv`](super::reference::conv).
///
/// # Panics
/// If the shape is not valid, a slice has another length than it says, `weights` were packed for another shape, or
/// `zero_point` is no code of `A`.
pub fn conv<A: Operand>(shape: &ConvShape, x: &[A], zero_point: i32, weights: &ConvWeights, acc: &mut [i32]) {
    conv_with(shape, x, zero_point, weights, acc, |_, acc, out: &mut [i32]| out.copy_from_slice(acc));
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
    Plan::new(shape, x, out.len(), zero_point, weights, size_of::<i32>()).accumulate_all(out, finish);
}

/// [`conv_with`] whose accumulators become codes: bit-equal to [`Prepared::run`] on them, and where the processor allows, done
/// before they leave their registers.
///
/// # Panics
/// As [`conv`], or if `requantize` is for another number of channels or residuals.
pub fn conv_to_codes<A: Operand>(
    shape: &ConvShape,
    x: &[A],
    zero_point: i32,
    weights: &ConvWeights,
    requantize: &Prepared<'_>,
    out: &mut [u8],
) {
    assert_eq!(requantize.channels(), shape.c_out, "factors of another number of channels");
    let has_loop = weights.kernel.has_vnni() || !requantize.adds_floats();
    let in_registers = has_loop && weights.finishes_in_registers();
    let held = if in_registers { size_of::<u8>() } else { size_of::<i32>() };
    let plan = Plan::new(shape, x, out.len(), zero_point, weights, held);
    #[cfg(target_arch = "x86_64")]
    if in_registers && plan.finishes_in_registers() {
        match requantize.in_registers(out.len()) {
            Some(InRegisters::Alone(finish)) => return plan.finish_all(out, finish),
            Some(InRegisters::AndCodes(finish)) => return plan.finish_all(out, finish),
            Some(InRegisters::AndFloats(finish)) => return plan.finish_all(out, finish),
            None => {}
        }
    }
    plan.accumulate_all(out, |first, acc, out| requantize.run(acc, first, out));
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Buffers that a thread keeps from band to band.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    words: Vec<i16>,
    /// Inputs of a band in tiles, transformed.
    planes: Planes,
    pixels: Pixels,
    acc: Vec<i32>,
}

/// Consecutive output rows of one image.
#[derive(Clone)]
struct Band {
    image: usize,
    rows: Range<usize>,
}

/// Inputs as a kernel takes them.
#[derive(Clone, Copy)]
enum Codes<'a> {
    Bytes(&'a [u8]),
    Words(&'a [i16]),
    /// Transformed.
    Planes(&'a Planes),
}

/// Inputs, and where in them the window of each pixel begins, or what comes from each tile.
struct Windows<'a> {
    input: Codes<'a>,
    pixels: &'a Pixels,
    /// Output rows.
    rows: usize,
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

/// Bytes of a cache line, the distance of rows that collide in the first cache, and how many of them hurt.
pub(super) const LINE_BYTES: usize = 64;
pub(super) const COLLIDING_BYTES: usize = 512;
const MANY_ROWS: usize = 8;

/// Bytes of weights above which threads share channels rather than rows, up to so many pixels.
const MANY_WEIGHTS: usize = 128 * 1024;
/// The same where sums become codes in registers.
#[cfg(target_arch = "x86_64")]
const MANY_WEIGHTS_IN_REGISTERS: usize = 512 * 1024;
const MOST_SHARED_PIXELS: usize = 256;

/// Everything that is the same for all bands.
struct Plan<'a, A> {
    /// Pointwise convolutions are flattened: a pixel per row.
    shape: ConvShape,
    layout: Layout,
    x: &'a [A],
    weights: &'a ConvWeights,
    input: Input,
    /// Start value of the accumulators, per channel padded to blocks.
    start: Vec<i32>,
    /// Offset of each segment from a window's first code.
    offsets: Vec<usize>,
    chunks: Vec<Chunk>,
    /// Codes of a row of the strip.
    row_len: usize,
    /// Unsigned byte of code `zero_point`.
    fill: u8,
    band_rows: usize,
}

impl<'a, A: Operand> Plan<'a, A> {
    /// `held` is how many bytes of each output a band keeps.
    fn new(
        shape: &ConvShape,
        x: &'a [A],
        out_len: usize,
        zero_point: i32,
        weights: &'a ConvWeights,
        held: usize,
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
        let shifted = zero_point + A::OFFSET;
        let winograd = match &weights.data {
            Packed::Winograd(winograd) => {
                assert!(shifted <= weights.largest.into(), "zero point {zero_point} is larger than any input");
                Some(winograd)
            }
            _ => None,
        };
        let mut row_len = match winograd {
            Some(w) => (shape.out_w().next_multiple_of(w.size().outputs()) + 2) * shape.c_in,
            None => (shape.in_w + shape.pads[1] + shape.pads[3]) * shape.c_in,
        };
        let image_bytes = shape.in_h * shape.in_w * shape.c_in;
        let shortest = span(&shape).saturating_mul(row_len);
        let in_place = match layout.kind {
            _ if winograd.is_some() => false,
            Kind::Depthwise => shape.c_in.is_multiple_of(depthwise::SLACK),
            Kind::Rows | Kind::Taps => layout.is_exact() && !weights.takes_words(),
        };
        let code_bytes = if weights.takes_words() { 2 } else { 1 };
        // Rows that far apart fall on the same few sets of a cache.
        let collides = (row_len * code_bytes).is_multiple_of(COLLIDING_BYTES);
        let in_place = in_place && !(collides && shape.in_w == 1 && shape.in_h >= MANY_ROWS);
        let input = if shape.pads == [0; 4] && in_place && A::unsigned(x).is_some() {
            Input::InPlace
        } else if winograd.is_none() && shortest > LONG_STRIP.max(4 * image_bytes) {
            Input::Gather
        } else {
            Input::Strip
        };
        if input == Input::Strip && winograd.is_none() && collides {
            row_len += LINE_BYTES / code_bytes;
        }
        let [kernel_h, kernel_w] = shape.kernel;
        let (row_step, tap_step) = match input {
            Input::Gather => (kernel_w * shape.c_in, shape.c_in),
            _ => (shape.dilation[0] * row_len, shape.dilation[1] * shape.c_in),
        };
        let offsets: Vec<usize> = match layout.kind {
            Kind::Rows => (0..kernel_h).map(|kh| kh * row_step).collect(),
            Kind::Taps | Kind::Depthwise => {
                (0..kernel_h * kernel_w).map(|tap| tap / kernel_w * row_step + tap % kernel_w * tap_step).collect()
            }
        };
        let out_row = shape.out_w() * shape.c_out;
        let threads = rayon::current_num_threads();
        // Depthwise layers do little more than laying out rows, of which neighbouring bands share some.
        let bands = if layout.kind == Kind::Depthwise { threads } else { 2 * threads };
        let fair_share = if threads > 1 { (shape.batch * shape.out_h()).div_ceil(bands) } else { usize::MAX };
        let band_rows = (BAND_BYTES / (shape.stride[0] * row_len).max(1))
            .min(BAND_BYTES / (out_row * held).max(1))
            .clamp(1, shape.out_h().min(fair_share).max(1));
        // Accumulators start with a multiple where they come of transforms.
        let (band_rows, times) = match winograd {
            Some(w) => {
                let (tile, fitting) = (w.size().outputs(), BAND_BYTES / (w.growth() * row_len));
                (band_rows.min(fitting).next_multiple_of(tile).max(tile), w.size().times())
            }
            None => (band_rows, 1),
        };
        // What the kernel of a direct sum takes off the inputs; transforms have start values of their own.
        let taken =
            if winograd.is_none() && layout.kind != Kind::Depthwise { weights.kernel.input_offset() } else { 0 };
        Plan {
            layout,
            x,
            weights,
            input,
            start: weights.sums.iter().map(|sum| (shifted - taken).wrapping_mul(*sum).wrapping_mul(-times)).collect(),
            chunks: Chunk::cut(&offsets, layout.segment_quads(), weights.longest_chunk()),
            offsets,
            row_len,
            fill: shifted as u8,
            band_rows,
            shape,
        }
    }

    /// All accumulators, and what `finish` makes of them.
    fn accumulate_all<O: Send>(&self, out: &mut [O], finish: impl Fn(usize, &[i32], &mut [O]) + Sync) {
        if self.shares_channels() {
            return self.channel_by_channel(out, finish);
        }
        self.for_each_band(out, |band, scratch, out| {
            let mut acc = std::mem::take(&mut scratch.acc);
            let sums = room(&mut acc, out.len(), 0);
            self.accumulate(band, scratch, sums);
            finish(self.first(band), sums, out);
            scratch.acc = acc;
        });
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

    /// Whether threads share the channels instead of the rows: where there are more weights than anything else, each is then read
    /// by one thread only.
    fn shares_channels(&self) -> bool {
        let pixels = self.shape.batch * self.shape.out_h() * self.shape.out_w();
        let threads = rayon::current_num_threads();
        threads > 1
            && self.input != Input::Gather
            && self.layout.kind != Kind::Depthwise
            && self.shape.groups == 1
            && self.shape.batch == 1
            && (1..=MOST_SHARED_PIXELS).contains(&pixels)
            && self.layout.blocks() >= 2 * threads
            && self.weights.bytes() > MANY_WEIGHTS
    }

    /// All of the output, each thread with its share of the channels.
    fn channel_by_channel<O: Send>(&self, out: &mut [O], finish: impl Fn(usize, &[i32], &mut [O]) + Sync) {
        let (channels, blocks) = (self.shape.c_out, self.layout.blocks());
        let mut scratch = SCRATCH.take();
        let whole = Band { image: 0, rows: 0..self.shape.out_h() };
        self.lay_out(&whole, &mut scratch);
        let windows = self.windows(&whole, &scratch);
        let pixels = whole.rows.len() * self.shape.out_w();
        let shares: Vec<Range<usize>> = threads::ranges(blocks, rayon::current_num_threads()).collect();
        let parts = threads::map_jobs(shares, |share| {
            let width = channels.min(share.end * LANES) - share.start * LANES;
            let mut acc = vec![0i32; pixels * width];
            self.run(&windows, share, &mut acc, width);
            (width, acc)
        });
        let mut acc = std::mem::take(&mut scratch.acc);
        let sums = room(&mut acc, out.len(), 0);
        for (pixel, row) in sums.chunks_exact_mut(channels).enumerate() {
            let mut at = 0;
            for (width, part) in &parts {
                row[at..at + width].copy_from_slice(&part[pixel * width..][..*width]);
                at += width;
            }
        }
        // Worth all threads: there were many weights.
        threads::for_each_part_weighing(out, channels, usize::MAX, |first, out| {
            finish(first, &sums[first..first + out.len()], out);
        });
        scratch.acc = acc;
        SCRATCH.set(scratch);
    }

    /// Offset of a band in the whole output.
    fn first(&self, band: &Band) -> usize {
        (band.image * self.shape.out_h() + band.rows.start) * self.shape.out_w() * self.shape.c_out
    }

    /// Fills the accumulators of a band.
    fn accumulate(&self, band: &Band, scratch: &mut Scratch, acc: &mut [i32]) {
        let s = &self.shape;
        let out_w = s.out_w();
        if self.input == Input::Gather {
            scratch.pixels.fill([1, 0], [1, 0]);
            for (pixel, acc) in acc.chunks_exact_mut(s.c_out).enumerate() {
                let at = [band.image, band.rows.start + pixel / out_w, pixel % out_w];
                if self.weights.takes_words() {
                    self.gather(at, &mut scratch.words);
                } else {
                    self.gather(at, &mut scratch.bytes);
                }
                self.run(&self.windows(band, scratch), 0..self.layout.blocks(), acc, s.c_out);
            }
            return;
        }
        self.lay_out(band, scratch);
        self.run(&self.windows(band, scratch), 0..self.layout.blocks(), acc, s.c_out);
    }

    /// Finds the windows of a band and lays out its input, unless it is read in place.
    fn lay_out(&self, band: &Band, scratch: &mut Scratch) {
        let s = &self.shape;
        if let Packed::Winograd(winograd) = &self.weights.data {
            self.fill_strip(band, &mut scratch.bytes);
            let tiles = [band.rows.len(), s.out_w()].map(|n| n.div_ceil(winograd.size().outputs()));
            winograd.transform(&scratch.bytes, s.c_in, tiles, &mut scratch.planes);
            return;
        }
        let (rows, columns) = ([band.rows.len(), s.stride[0] * self.row_len], [s.out_w(), s.stride[1] * s.c_in]);
        scratch.pixels.fill(rows, columns);
        match self.input {
            Input::InPlace => {}
            _ if self.weights.takes_words() => self.fill_strip(band, &mut scratch.words),
            _ => self.fill_strip(band, &mut scratch.bytes),
        }
    }

    /// The windows that were found, in what was laid out for them or in place.
    fn windows<'b>(&'b self, band: &Band, scratch: &'b Scratch) -> Windows<'b> {
        let s = &self.shape;
        let input = match A::unsigned(self.x) {
            Some(x) if self.input == Input::InPlace => {
                Codes::Bytes(&x[(band.image * s.in_h + band.rows.start * s.stride[0]) * self.row_len..])
            }
            _ if matches!(self.weights.data, Packed::Winograd(_)) => Codes::Planes(&scratch.planes),
            _ if self.weights.takes_words() => Codes::Words(&scratch.words),
            _ => Codes::Bytes(&scratch.bytes),
        };
        Windows { input, pixels: &scratch.pixels, rows: band.rows.len() }
    }

    /// Accumulates some blocks of each group's channels, `stride` accumulators from pixel to pixel. All blocks, if there are
    /// several groups.
    fn run(&self, windows: &Windows<'_>, blocks: Range<usize>, acc: &mut [i32], stride: usize) {
        let (kernel, pixels) = (self.weights.kernel, windows.pixels);
        match (&self.weights.data, windows.input) {
            (data, Codes::Bytes(input)) if self.layout.kind == Kind::Depthwise => {
                depthwise::run(kernel, data, &self.depthwise(input, pixels), acc);
            }
            (Packed::Bytes(data), Codes::Bytes(input)) => {
                self.for_each_group(data, input, pixels, blocks, acc, stride, |job| kernel.run_bytes(job));
            }
            (Packed::Narrow(form, data), Codes::Bytes(input)) => {
                self.for_each_group(data, input, pixels, blocks, acc, stride, |job| kernel.run_narrow(job, *form));
            }
            (Packed::Words(data), Codes::Words(input)) => {
                self.for_each_group(data, input, pixels, blocks, acc, stride, |job| kernel.run_words(job));
            }
            (Packed::Bytes(data), Codes::Words(input)) => {
                self.for_each_group(data, input, pixels, blocks, acc, stride, |job| kernel.run_words(job));
            }
            (Packed::Winograd(winograd), Codes::Planes(planes)) => {
                let size = [windows.rows, self.shape.out_w()];
                let width = self.shape.c_out.min(blocks.end * LANES) - blocks.start * LANES;
                let start = &self.start[blocks.start * LANES..blocks.end * LANES];
                winograd.run(kernel, planes, self.shape.c_in, start, blocks, &mut Output { acc, size, stride, width });
            }
            (Packed::Words(_) | Packed::Narrow(..) | Packed::Winograd(_), _) | (_, Codes::Planes(_)) => {
                unreachable!("inputs are laid out as the weights ask for")
            }
        }
    }

    /// Whether [`finish_all`](Self::finish_all) can do this, and should. Shared channels have to be put side by side, which takes longer
    /// than reading some weights twice.
    #[cfg(target_arch = "x86_64")]
    fn finishes_in_registers(&self) -> bool {
        let shares = self.shares_channels() && self.weights.bytes() > MANY_WEIGHTS_IN_REGISTERS;
        self.input != Input::Gather && !shares
    }

    /// All outputs, each sum finished in its register.
    #[cfg(target_arch = "x86_64")]
    fn finish_all<F: Finish<Out: Send> + Sync>(&self, out: &mut [F::Out], finish: F) {
        let (kernel, blocks, channels) = (self.weights.kernel, 0..self.layout.blocks(), self.shape.c_out);
        self.for_each_band(out, |band, scratch, out| {
            self.lay_out(band, scratch);
            let Windows { input, pixels, .. } = self.windows(band, scratch);
            let (finish, blocks) = (finish.of_band(self.first(band)), blocks.clone());
            match (&self.weights.data, input) {
                (data, Codes::Bytes(input)) if self.layout.kind == Kind::Depthwise => {
                    depthwise::finish(kernel, data, &self.depthwise(input, pixels), finish, out);
                }
                (Packed::Bytes(data), Codes::Bytes(input)) => {
                    let run = |job: &mut Job<'_, u8, i8, F::Out>| kernel.finish_bytes(job, finish);
                    self.for_each_group(data, input, pixels, blocks, out, channels, run);
                }
                (Packed::Words(data), Codes::Words(input)) => {
                    let run = |job: &mut Job<'_, i16, i16, F::Out>| kernel.finish_words(job, finish);
                    self.for_each_group(data, input, pixels, blocks, out, channels, run);
                }
                _ => unreachable!("weights are bytes or words, and inputs laid out as they ask for"),
            }
        });
    }

    /// Windows of a layer whose channels are alone.
    fn depthwise<'b>(&'b self, input: &'b [u8], pixels: &'b Pixels) -> depthwise::Windows<'b> {
        let (start, offsets, channels) = (&self.start[..], &self.offsets[..], self.shape.c_out);
        depthwise::Windows { input, pixels, offsets, start, channels }
    }

    #[allow(clippy::too_many_arguments)]
    fn for_each_group<X, W, O>(
        &self,
        data: &[W],
        input: &[X],
        pixels: &Pixels,
        blocks: Range<usize>,
        out: &mut [O],
        stride: usize,
        run: impl Fn(&mut Job<'_, X, W, O>),
    ) {
        let (layout, all) = (&self.layout, self.layout.blocks());
        let block_len = data.len() / (layout.groups * all).max(1);
        for (group, weights) in data.chunks_exact((all * block_len).max(1)).enumerate() {
            run(&mut Job {
                input: &input[group * layout.group_in()..],
                pixels,
                chunks: &self.chunks,
                weights: &weights[blocks.start * block_len..blocks.end * block_len],
                start: &self.start[group * all * LANES..][blocks.start * LANES..blocks.end * LANES],
                short_sums: self.weights.short_sums,
                channels: layout.group_out().min(blocks.end * LANES) - blocks.start * LANES,
                first: group * layout.group_out(),
                out: &mut out[group * layout.group_out()..],
                stride,
            });
        }
    }

    /// Lays out the input rows of a band, padded, as unsigned codes.
    fn fill_strip<E: Element>(&self, band: &Band, strip: &mut Vec<E>) {
        let s = &self.shape;
        let rows = match &self.weights.data {
            Packed::Winograd(w) => band.rows.len().next_multiple_of(w.size().outputs()) + 2,
            _ => (band.rows.len() - 1) * s.stride[0] + span(s),
        };
        let fill = E::from(self.fill);
        let strip = room(strip, rows * self.row_len + SLACK, fill);
        let (left, width) = (s.pads[1] * s.c_in, s.in_w * s.c_in);
        for (i, row) in strip.chunks_exact_mut(self.row_len).take(rows).enumerate() {
            let ih = (band.rows.start * s.stride[0] + i).checked_sub(s.pads[0]).filter(|&ih| ih < s.in_h);
            let Some(ih) = ih else {
                row.fill(fill);
                continue;
            };
            let source = &self.x[(band.image * s.in_h + ih) * width..][..width];
            row[..left].fill(fill);
            row[left + width..].fill(fill);
            self.copy(source, &mut row[left..left + width]);
        }
    }

    /// Lays out the window of output `[image, row, column]`, taps in order.
    fn gather<E: Element>(&self, [image, oh, ow]: [usize; 3], window: &mut Vec<E>) {
        let s = &self.shape;
        let [kernel_h, kernel_w] = s.kernel;
        window.clear();
        window.resize(kernel_h * kernel_w * s.c_in + SLACK, E::from(self.fill));
        for (tap, codes) in window.chunks_exact_mut(s.c_in).take(kernel_h * kernel_w).enumerate() {
            let source = |out: usize, tap: usize, axis: usize, size: usize| {
                (out * s.stride[axis] + tap * s.dilation[axis]).checked_sub(s.pads[axis]).filter(|&i| i < size)
            };
            let (ih, iw) = (source(oh, tap / kernel_w, 0, s.in_h), source(ow, tap % kernel_w, 1, s.in_w));
            if let (Some(ih), Some(iw)) = (ih, iw) {
                self.copy(&self.x[((image * s.in_h + ih) * s.in_w + iw) * s.c_in..][..s.c_in], codes);
            }
        }
    }

    /// Codes to unsigned numbers.
    fn copy<E: Element>(&self, source: &[A], to: &mut [E]) {
        let byte = |code: A| code.byte() ^ A::FLIP;
        debug_assert!(
            source.iter().all(|&code| byte(code) <= self.weights.largest),
            "an input is larger than the weights were packed for"
        );
        match A::unsigned(source) {
            Some(bytes) => E::copy(bytes, to),
            None => to.iter_mut().zip(source).for_each(|(to, &code)| *to = E::from(byte(code))),
        }
    }
}

/// What inputs are laid out as.
trait Element: Copy + From<u8> {
    /// As many of them as bytes.
    fn copy(bytes: &[u8], to: &mut [Self]);
}

impl Element for u8 {
    fn copy(bytes: &[u8], to: &mut [Self]) {
        to.copy_from_slice(bytes);
    }
}

impl Element for i16 {
    fn copy(bytes: &[u8], to: &mut [Self]) {
        widen(bytes, to);
    }
}

multiversion! {
    /// Bytes as words.
    pub(super) fn widen(bytes: &[u8], to: &mut [i16]) {
        to.iter_mut().zip(bytes).for_each(|(to, &byte)| *to = byte.into());
    }
}

/// The first elements of a buffer, which grows if it must: layers take turns, and filling anew what a smaller one left takes time.
pub(super) fn room<T: Clone>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}

/// Input rows that one window spans.
fn span(shape: &ConvShape) -> usize {
    (shape.kernel[0] - 1) * shape.dilation[0] + 1
}
