//! What the dense and the depthwise loops walk over: one description for forward and input gradient.
//!
//! Both are correlations of a source with a set of taps. Along one axis, output number `i` of a pass lies at
//! `out_start + i * out_step` and reads the source at `i * step + offset` for each tap:
//!
//! * forward: one pass, `step = stride`, `offset = k * dilation - pad`, outputs dense;
//! * input gradient: the source is `dy`. Input row `r` is reached by tap `k` from output row `(r + pad - k * dilation) /
//!   stride` where that is whole. Rows with the same `r mod stride` share their taps, so each such residue is a pass with
//!   `step = 1`, `out_step = stride`, and `stride = 1` is a forward convolution with the taps reversed.
//!
//! Positions outside the source are zeros: the source rows of a strip of outputs are copied into a padded scratch, unless
//! no tap ever leaves the source.

use super::ConvShape;
use super::dense::Direction;
use super::product::{Along, Lines, Singles};
use crate::simd::{Portable, streams};
use std::ops::Range;

/// One tap along one axis: the kernel index and where it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    pub kernel: usize,
    pub offset: isize,
}

/// One axis of one pass.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// Number of outputs.
    pub count: usize,
    pub step: usize,
    pub out_start: usize,
    pub out_step: usize,
    /// Ascending by offset.
    pub taps: Vec<Tap>,
}

/// A set of outputs that share their taps.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub h: Axis,
    pub w: Axis,
    /// Source offsets (in elements, from the first source element of an output) where runs of products begin.
    pub runs: Vec<usize>,
    /// Products of one run; consecutive in the source.
    pub run_len: usize,
    /// The kernel's `(row, column)` of each tap, in the order of the runs.
    pub taps: Vec<[usize; 2]>,
}

/// A whole correlation: geometry of source and output, and its passes.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub batch: usize,
    pub groups: usize,
    /// Source height, width, channels; these in elements of so many numbers as the plan was made for.
    pub source: [usize; 3],
    /// Output height, width, channels.
    pub out: [usize; 3],
    pub passes: Vec<Pass>,
    /// Whether every output is written by some pass with taps; otherwise the output must be cleared first.
    pub complete: bool,
    /// Source rows and columns of zeros before the source that some tap reads. Rows may be negative: never read.
    first_row: isize,
    left: usize,
    /// Pixels per row of the padded scratch.
    padded_w: usize,
    /// Last source row read by output `i`, relative to `i * step`.
    last_row: isize,
    direct: bool,
    /// Whether outputs are written past the caches; see [`Plan::writing`].
    pub streams: bool,
    /// Output rows (in units of `i`) per strip.
    strip: usize,
}

/// How many elements of padded source a strip may take: small enough for the second-level cache.
const STRIP_ELEMENTS: usize = 24 * 1024;

/// The same for depthwise layers, which do so little with each row that copying the rows between two strips twice matters: 384 KiB.
const DEPTHWISE_STRIP_ELEMENTS: usize = 96 * 1024;

impl Plan {
    /// The plan of `y = conv(x, w)`.
    pub fn forward(s: &ConvShape) -> Plan {
        let axis = |a: usize, count: usize| Axis {
            count,
            step: s.stride[a],
            out_start: 0,
            out_step: 1,
            taps: (0..s.kernel[a])
                .map(|k| Tap { kernel: k, offset: (k * s.dilation[a]) as isize - s.pads[a] as isize })
                .collect(),
        };
        let (out_h, out_w) = (s.out_h(), s.out_w());
        let source = [s.in_h, s.in_w, s.c_in];
        let out = [out_h, out_w, s.c_out];
        Plan::new(s, source, out, vec![axis(0, out_h)], vec![axis(1, out_w)])
    }

    /// The plan of either direction, with `numbers` channels of the source in each element.
    pub fn of(s: &ConvShape, direction: Direction, numbers: usize) -> Plan {
        let plan = match direction {
            Direction::Forward => Plan::forward(&ConvShape { c_in: s.c_in / numbers, ..*s }),
            Direction::InputGradient => Plan::input_gradient(&ConvShape { c_out: s.c_out / numbers, ..*s }),
        };
        if numbers > 1 { plan.copying() } else { plan }
    }

    /// Copies source rows even where no tap ever leaves the source: into elements.
    pub fn copying(mut self) -> Plan {
        self.direct = false;
        self
    }

    /// The plan of `dx` from `dy`.
    pub fn input_gradient(s: &ConvShape) -> Plan {
        let axes = |a: usize, size: usize| -> Vec<Axis> {
            let stride = s.stride[a];
            (0..stride.min(size))
                .map(|residue| {
                    let reach = (residue + s.pads[a]) as isize;
                    // Descending kernel index: ascending offset.
                    let taps = (0..s.kernel[a]).rev().filter_map(|k| {
                        let distance = reach - (k * s.dilation[a]) as isize;
                        (distance.rem_euclid(stride as isize) == 0)
                            .then(|| Tap { kernel: k, offset: distance.div_euclid(stride as isize) })
                    });
                    Axis {
                        count: (size - residue).div_ceil(stride),
                        step: 1,
                        out_start: residue,
                        out_step: stride,
                        taps: taps.collect(),
                    }
                })
                .collect()
        };
        let source = [s.out_h(), s.out_w(), s.c_out];
        Plan::new(s, source, [s.in_h, s.in_w, s.c_in], axes(0, s.in_h), axes(1, s.in_w))
    }

    fn new(s: &ConvShape, source: [usize; 3], out: [usize; 3], hs: Vec<Axis>, ws: Vec<Axis>) -> Plan {
        let all = |axes: &[Axis]| axes.iter().all(|a| !a.taps.is_empty());
        let complete = all(&hs) && all(&ws);
        let low = |axes: &[Axis]| axes.iter().flat_map(|a| a.taps.iter().map(|t| t.offset)).min().unwrap_or(0);
        let high = |axes: &[Axis]| axes.iter().flat_map(|a| a.taps.iter().map(|t| t.offset)).max().unwrap_or(0);
        // The last source position that any output reads.
        let reach = |axes: &[Axis]| {
            let ends = axes.iter().filter_map(|a| Some(((a.count - 1) * a.step) as isize + a.taps.last()?.offset));
            ends.max().unwrap_or(0)
        };
        let [source_h, source_w, channels] = source;
        let first_row = low(&hs);
        let last_row = high(&hs);
        let left = (-low(&ws)).max(0) as usize;
        let right = (reach(&ws) + 1 - source_w as isize).max(0) as usize;
        let padded_w = left + source_w + right;
        let direct = left == 0 && right == 0 && first_row >= 0 && reach(&hs) < source_h as isize;

        let group = channels / s.groups;
        let mut passes = Vec::with_capacity(hs.len() * ws.len());
        for h in &hs {
            for w in &ws {
                let adjacent = w.taps.windows(2).all(|t| t[1].offset == t[0].offset + 1);
                let merged = s.groups == 1 && adjacent && !w.taps.is_empty();
                let mut runs = Vec::new();
                let mut taps = Vec::new();
                for th in &h.taps {
                    let row = (th.offset - first_row) as usize * padded_w;
                    for (number, tw) in w.taps.iter().enumerate() {
                        taps.push([th.kernel, tw.kernel]);
                        if number == 0 || !merged {
                            runs.push((row + (tw.offset + left as isize) as usize) * channels);
                        }
                    }
                }
                let run_len = if merged { w.taps.len() * group } else { group };
                passes.push(Pass { h: h.clone(), w: w.clone(), runs, run_len, taps });
            }
        }

        let rows = hs.iter().map(|a| a.count).max().unwrap_or(0);
        let step = hs.first().map_or(1, |a| a.step);
        let halo = (last_row - first_row) as usize + 1;
        let elements = if group == 1 && s.groups > 1 { DEPTHWISE_STRIP_ELEMENTS } else { STRIP_ELEMENTS };
        let affordable = (elements / (padded_w * channels)).saturating_sub(halo) / step + 1;
        Plan {
            batch: s.batch,
            groups: s.groups,
            source,
            out,
            passes,
            complete,
            first_row,
            left,
            padded_w,
            last_row,
            direct,
            streams: false,
            strip: Plan::strip_rows(affordable, rows, s.batch),
        }
    }

    /// Rows per strip: as many as the cache affords, evenly, and enough strips to occupy the threads at batch one.
    fn strip_rows(affordable: usize, rows: usize, batch: usize) -> usize {
        let wanted = (4 * rayon::current_num_threads()).div_ceil(batch);
        let strips = rows.div_ceil(affordable.max(1)).max(wanted.min(rows / 2)).max(1);
        rows.div_ceil(strips).max(1)
    }

    /// The same plan, which streams outputs where they are many and whole vectors of channels lie on whole vectors of memory.
    pub fn writing(self, out: &[f32], lanes: usize) -> Plan {
        let streams = streams(out) && (self.out[2] / self.groups.max(1)).is_multiple_of(lanes);
        Plan { streams, ..self }
    }

    /// Limits strips to `rows` output rows.
    pub fn limit_strip(&mut self, rows: usize) {
        self.strip = self.strip.min(rows.max(1));
    }

    /// Output rows in units of `i`, over all passes.
    fn rows(&self) -> usize {
        self.passes.iter().map(|p| p.h.count).max().unwrap_or(0)
    }

    fn strips(&self) -> usize {
        self.rows().div_ceil(self.strip)
    }

    /// Number of pieces of work: strips of all images.
    pub fn units(&self) -> usize {
        self.batch * self.strips()
    }

    /// The image and the rows `i` of a unit.
    pub fn unit(&self, unit: usize) -> (usize, Range<usize>) {
        let (image, strip) = (unit / self.strips(), unit % self.strips());
        (image, strip * self.strip..((strip + 1) * self.strip).min(self.rows()))
    }

    /// Where a unit's outputs begin; they end where the next unit's begin.
    pub fn out_offset(&self, unit: usize) -> usize {
        let [out_h, out_w, channels] = self.out;
        if unit == self.units() {
            return self.batch * out_h * out_w * channels;
        }
        let (image, rows) = self.unit(unit);
        let out_step = self.passes.first().map_or(1, |p| p.h.out_step);
        (image * out_h + (rows.start * out_step).min(out_h)) * out_w * channels
    }

    /// Elements of the padded scratch of one strip; zero when the source is read in place.
    pub fn scratch_len(&self) -> usize {
        if self.direct { 0 } else { self.scratch_rows(self.strip) * self.row_len() }
    }

    /// Output pixels of the largest strip of a forward plan.
    pub fn strip_outputs(&self) -> usize {
        self.strip * self.out[1]
    }

    fn scratch_rows(&self, rows: usize) -> usize {
        (rows - 1) * self.step() + (self.last_row - self.first_row) as usize + 1
    }

    fn step(&self) -> usize {
        self.passes.first().map_or(1, |p| p.h.step)
    }

    /// Elements from one source row to the next, as the runs count them.
    pub fn row_len(&self) -> usize {
        self.padded_w * self.source[2]
    }

    /// The source rows of a unit, zero-padded, such that `runs` are offsets from the position of an output: output `(i, j)`
    /// of `rows` begins at `((i - rows.start) * step * row_len + j * step * channels)`.
    pub fn source_rows<'a>(
        &self,
        source: &'a [f32],
        image: usize,
        rows: &Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let source = &source[image * self.image_len()..(image + 1) * self.image_len()];
        if self.direct {
            let first = (rows.start * self.step()) as isize + self.first_row;
            return &source[first as usize * self.source[1] * self.source[2]..];
        }
        // SAFETY: plain copies, which need no instruction set.
        unsafe { self.padded_rows(&Along::<Singles, Portable>::new(source), rows, scratch) }
    }

    /// Whether [`Plan::source_rows`] are the source itself.
    pub fn reads_in_place(&self) -> bool {
        self.direct
    }

    /// Elements of the source of one image.
    pub fn image_len(&self) -> usize {
        self.source.iter().product()
    }

    /// [`Plan::source_rows`] of an image whose lines are given, copied whatever the taps.
    ///
    /// # Safety
    /// As [`Lines::line`].
    #[inline(always)]
    pub unsafe fn padded_rows<'a>(
        &self,
        source: &impl Lines,
        rows: &Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let [source_h, source_w, channels] = self.source;
        let first = (rows.start * self.step()) as isize + self.first_row;
        let count = self.scratch_rows(rows.len());
        let line = source_w * channels;
        for (r, to) in scratch[..count * self.row_len()].chunks_exact_mut(self.row_len()).enumerate() {
            let row = first + r as isize;
            if row < 0 || row >= source_h as isize {
                to.fill(0.0);
                continue;
            }
            let (before, rest) = to.split_at_mut(self.left * channels);
            let (middle, after) = rest.split_at_mut(line);
            before.fill(0.0);
            // SAFETY: the function's contract.
            unsafe { source.line(row as usize, middle) };
            after.fill(0.0);
        }
        &scratch[..count * self.row_len()]
    }
}
