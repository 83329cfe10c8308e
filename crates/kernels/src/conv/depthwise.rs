//! Depthwise convolution (as many groups as channels): vectors run over channels, every product is one load.
//!
//! Forward and input gradient keep `P` neighbouring pixels of one channel vector in registers and pass over the taps; the
//! weight gradient keeps up to nine taps of one channel vector in registers and passes over the pixels of a strip. A
//! last vector with fewer channels is loaded and stored in part.

use super::ConvShape;
use super::dense::Direction;
use super::plan::{Pass, Plan};
use crate::buffer::{Purpose, with_scratch};
use crate::isa::Isa;
use crate::simd::{Kernel, Vector, dispatch};
use crate::threads;
use std::ops::Range;

/// Whether the loops here apply.
pub(super) fn applies(shape: &ConvShape) -> bool {
    shape.groups > 1 && shape.groups == shape.c_in && shape.groups == shape.c_out
}

/// Forward or input gradient; writes all of `out`.
pub(super) fn run(
    isa: Isa,
    (shape, direction): (&ConvShape, Direction),
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let plan = Plan::of(shape, direction, 1).writing(out, isa.lanes());
    if !plan.complete {
        out.fill(0.0);
    }
    let channels = shape.groups;
    let taps: usize = plan.passes.iter().map(|p| p.taps.len()).sum();
    let cuts: Vec<_> = threads::ranges(plan.units(), threads::parts_for(source.len() + out.len())).collect();
    with_scratch(Purpose::Weights, taps * channels, |packed| {
        let kernels = shape.kernel[0] * shape.kernel[1];
        let all = plan.passes.iter().flat_map(|p| &p.taps);
        for (tap, row) in all.zip(packed.chunks_exact_mut(channels)) {
            let column = w[tap[0] * shape.kernel[1] + tap[1]..].iter().step_by(kernels);
            row.iter_mut().zip(column).for_each(|(to, &from)| *to = from);
        }
        let (plan, packed) = (&plan, &*packed);
        let offset = |unit| plan.out_offset(unit);
        threads::for_each_cut(out, &cuts, offset, |units, out| {
            with_scratch(Purpose::Source, plan.scratch_len(), |scratch| {
                dispatch(isa, Strips { plan, packed, bias, source, units, out, scratch });
            });
        });
    });
}

struct Strips<'a> {
    plan: &'a Plan,
    /// `[pass][tap][channel]`
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    source: &'a [f32],
    units: Range<usize>,
    out: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for Strips<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let plan = self.plan;
        let start = plan.out_offset(self.units.start);
        for unit in self.units {
            let (image, rows) = plan.unit(unit);
            let source = plan.source_rows(self.source, image, &rows, self.scratch);
            let out = &mut self.out[plan.out_offset(unit) - start..plan.out_offset(unit + 1) - start];
            let mut packed = self.packed;
            for pass in &plan.passes {
                let (weights, rest) = packed.split_at(pass.taps.len() * plan.groups);
                packed = rest;
                if !pass.runs.is_empty() {
                    // SAFETY: the caller promises the instruction set.
                    unsafe { pass_of_strip::<V>(plan, pass, &rows, weights, self.bias, source, out) };
                }
            }
        }
        if plan.streams {
            // SAFETY: the caller promises the instruction set.
            unsafe { V::fence() };
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn pass_of_strip<V: Vector>(
    plan: &Plan,
    pass: &Pass,
    rows: &Range<usize>,
    weights: &[f32],
    bias: Option<&[f32]>,
    source: &[f32],
    out: &mut [f32],
) {
    let channels = plan.groups;
    let (source_step, out_step) = (pass.w.step * channels, pass.w.out_step * channels);
    let last = pass.w.count - 1;
    let farthest = pass.runs.iter().max().map_or(0, |&r| r);
    let rows = rows.start..rows.end.min(pass.h.count);
    assert!(weights.len() == pass.runs.len() * channels && bias.is_none_or(|b| b.len() == channels));
    for i in rows.clone() {
        let relative = i - rows.start;
        let from = &source[relative * pass.h.step * plan.row_len()..];
        let row = relative * pass.h.out_step + pass.h.out_start;
        let to = &mut out[(row * plan.out[1] + pass.w.out_start) * channels..];
        assert!(last * source_step + farthest + channels <= from.len());
        assert!((last * out_step) + channels <= to.len());
        let mut done = 0;
        while done < pass.w.count {
            let rest = pass.w.count - done;
            let mut channel = 0;
            let width = rest.min(8);
            while channel < channels {
                let lanes = (channels - channel).min(V::LANES);
                let tile = Tile {
                    runs: &pass.runs,
                    source_step,
                    out_step,
                    weights: weights[channel..].as_ptr(),
                    channels,
                    bias: bias.map(|b| b[channel..].as_ptr()),
                    lanes,
                    streams: plan.streams,
                };
                // SAFETY: the assertions above bound the last pixel's last tap and output; `lanes` channels from
                // `channel` exist. The caller promises the instruction set.
                unsafe {
                    let from = from.as_ptr().add(done * source_step + channel);
                    let to = to.as_mut_ptr().add(done * out_step + channel);
                    match (width, lanes == V::LANES) {
                        (8, true) => tile_of::<V, 8, true>(&tile, from, to),
                        (8, false) => tile_of::<V, 8, false>(&tile, from, to),
                        (4.., true) => tile_of::<V, 4, true>(&tile, from, to),
                        (4.., false) => tile_of::<V, 4, false>(&tile, from, to),
                        (2.., true) => tile_of::<V, 2, true>(&tile, from, to),
                        (2.., false) => tile_of::<V, 2, false>(&tile, from, to),
                        (_, true) => tile_of::<V, 1, true>(&tile, from, to),
                        (_, false) => tile_of::<V, 1, false>(&tile, from, to),
                    }
                }
                channel += lanes;
            }
            done += if width == 8 { 8 } else { 1 << width.ilog2() };
        }
    }
}

struct Tile<'a> {
    /// Source offset of each tap.
    runs: &'a [usize],
    source_step: usize,
    out_step: usize,
    /// `[tap][channel]`, from the tile's first channel.
    weights: *const f32,
    channels: usize,
    bias: Option<*const f32>,
    lanes: usize,
    /// Whether outputs, whole vectors at whole vectors of memory, are written past the caches.
    streams: bool,
}

/// `P` pixels of one vector of channels; `FULL` says that `lanes` is all of them.
///
/// # Safety
/// The CPU has the instruction set of `V`; `lanes` elements are readable at every tap of every pixel of `from`, in
/// every row of the weights and in the bias, and writable at every pixel of `to`.
#[inline(always)]
unsafe fn tile_of<V: Vector, const P: usize, const FULL: bool>(t: &Tile, from: *const f32, to: *mut f32) {
    let lanes = if FULL { V::LANES } else { t.lanes };
    // SAFETY: the function's contract.
    unsafe {
        let start = match t.bias {
            Some(bias) => V::load_up_to(bias, lanes),
            None => V::zero(),
        };
        let mut sums = [start; P];
        for (tap, &run) in t.runs.iter().enumerate() {
            let w = V::load_up_to(t.weights.add(tap * t.channels), lanes);
            let from = from.add(run);
            for (p, sum) in sums.iter_mut().enumerate() {
                *sum = V::load_up_to(from.add(p * t.source_step), lanes).mul_add(w, *sum);
            }
        }
        for (p, sum) in sums.iter().enumerate() {
            if t.streams {
                sum.stream(to.add(p * t.out_step));
            } else {
                sum.store_up_to(to.add(p * t.out_step), lanes);
            }
        }
    }
}

/// The weight gradient; writes all of `dw`.
pub(super) fn weight_gradient(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let plan = Plan::forward(shape);
    let (channels, taps) = (shape.groups, shape.kernel[0] * shape.kernel[1]);
    let cuts: Vec<_> = threads::ranges(plan.units(), threads::parts_for(x.len() + dy.len())).collect();
    let len = taps * channels;
    with_scratch(Purpose::Sums, len * cuts.len(), |sums| {
        sums.fill(0.0);
        threads::for_each_cut(
            sums,
            &cuts,
            |unit| threads::part_of(&cuts, unit) * len,
            |units, sums| {
                with_scratch(Purpose::Source, plan.scratch_len(), |scratch| {
                    dispatch(isa, GradientStrips { plan: &plan, x, dy, units, sums, scratch });
                });
            },
        );
        let (total, others) = sums.split_at_mut(len);
        for other in others.chunks_exact(len) {
            total.iter_mut().zip(other).for_each(|(t, &o)| *t += o);
        }
        for (c, kernel) in dw.chunks_exact_mut(taps).enumerate() {
            kernel.iter_mut().zip(total.iter().skip(c).step_by(channels)).for_each(|(to, &from)| *to = from);
        }
    });
}

struct GradientStrips<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    dy: &'a [f32],
    units: Range<usize>,
    /// `[tap][channel]`
    sums: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for GradientStrips<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let plan = self.plan;
        for unit in self.units {
            let (image, rows) = plan.unit(unit);
            let source = plan.source_rows(self.x, image, &rows, self.scratch);
            let dy = &self.dy[plan.out_offset(unit)..plan.out_offset(unit + 1)];
            for pass in &plan.passes {
                // SAFETY: the caller promises the instruction set.
                unsafe { gradient_strip::<V>(plan, pass, rows.len(), source, dy, self.sums) };
            }
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn gradient_strip<V: Vector>(
    plan: &Plan,
    pass: &Pass,
    rows: usize,
    source: &[f32],
    dy: &[f32],
    sums: &mut [f32],
) {
    let channels = plan.groups;
    let pixels = Pixels {
        rows,
        columns: pass.w.count,
        x_row: pass.h.step * plan.row_len(),
        x_step: pass.w.step * channels,
        channels,
    };
    let farthest = pass.runs.iter().max().map_or(0, |&r| r) + channels;
    assert!((rows - 1) * pixels.x_row + (pixels.columns - 1) * pixels.x_step + farthest <= source.len());
    assert!(rows * pixels.columns * channels <= dy.len() && pass.runs.len() * channels == sums.len());
    for (runs, sums) in pass.runs.chunks(9).zip(sums.chunks_mut(9 * channels)) {
        for channel in (0..channels).step_by(V::LANES) {
            let lanes = (channels - channel).min(V::LANES);
            let (x, dy) = (source[channel..].as_ptr(), dy[channel..].as_ptr());
            let mut sums = sums[channel..].as_mut_ptr();
            let mut runs = runs;
            // SAFETY: the assertions above bound the last pixel's last tap; `lanes` channels from `channel` exist. The
            // caller promises the instruction set.
            unsafe {
                while !runs.is_empty() {
                    let taps = match (runs.len(), lanes == V::LANES) {
                        (9.., true) => gradient_tile::<V, 9, true>(&pixels, runs, x, dy, sums, lanes),
                        (9.., false) => gradient_tile::<V, 9, false>(&pixels, runs, x, dy, sums, lanes),
                        (3.., true) => gradient_tile::<V, 3, true>(&pixels, runs, x, dy, sums, lanes),
                        (3.., false) => gradient_tile::<V, 3, false>(&pixels, runs, x, dy, sums, lanes),
                        (_, true) => gradient_tile::<V, 1, true>(&pixels, runs, x, dy, sums, lanes),
                        (_, false) => gradient_tile::<V, 1, false>(&pixels, runs, x, dy, sums, lanes),
                    };
                    runs = &runs[taps..];
                    // Past the last tap this is never read.
                    sums = sums.wrapping_add(taps * channels);
                }
            }
        }
    }
}

struct Pixels {
    rows: usize,
    columns: usize,
    x_row: usize,
    x_step: usize,
    channels: usize,
}

/// Adds the first `T` taps of one vector of channels, summed over all pixels, to `sums`; returns `T`.
///
/// # Safety
/// The CPU has the instruction set of `V`; `lanes` elements are readable at every tap of every pixel and writable in `T`
/// rows of `channels` of `sums`.
#[inline(always)]
unsafe fn gradient_tile<V: Vector, const T: usize, const FULL: bool>(
    pixels: &Pixels,
    runs: &[usize],
    x: *const f32,
    dy: *const f32,
    sums: *mut f32,
    lanes: usize,
) -> usize {
    let lanes = if FULL { V::LANES } else { lanes };
    let mut offsets = [0; T];
    offsets.copy_from_slice(&runs[..T]);
    // SAFETY: the function's contract.
    unsafe {
        let mut tile = [V::zero(); T];
        for row in 0..pixels.rows {
            let x = x.add(row * pixels.x_row);
            let dy = dy.add(row * pixels.columns * pixels.channels);
            for column in 0..pixels.columns {
                let g = V::load_up_to(dy.add(column * pixels.channels), lanes);
                let x = x.add(column * pixels.x_step);
                for (sum, &offset) in tile.iter_mut().zip(&offsets) {
                    *sum = V::load_up_to(x.add(offset), lanes).mul_add(g, *sum);
                }
            }
        }
        for (t, sum) in tile.iter().enumerate() {
            let to = sums.add(t * pixels.channels);
            V::load_up_to(to, lanes).add(*sum).store_up_to(to, lanes);
        }
    }
    T
}
