//! The weight gradient of every convolution that is not depthwise, directly from channels-last rows.
//!
//! ```text
//! each thread: its own sums for the whole weight, over its own images
//!   for each strip of output rows                           source and gradient stay in the first or second-level cache
//!     for each run, each R neighbouring products of it, each Q vectors of output channels
//!       R x Q sums stay in registers while the pixels of the strip pass by: Q loads of dy, R broadcasts of x
//!       they are added to the thread's sums
//! the threads' sums are added in order and unpacked to OIHW
//! ```
//!
//! The products of a run are consecutive in the source (taps of a row times channels), so that one pointer moves over the
//! pixels and all R broadcasts are at constant distances. Every strip starts its sums at zero: rounding errors grow with
//! the pixels of a strip plus the number of strips, not with the pixels of the batch.
//!
//! With pairs of bf16 (`product`) two images go together: an element of the source holds the same pixel and channel of both,
//! one of the gradient too, and what follows is the same.
//!
//! Sums: `[group][block][product][Q * lanes]`, channels past the last padded.

use super::ConvShape;
use super::plan::{Pass, Plan};
use super::product::{Across, Product};
use crate::buffer::{Purpose, with_scratch};
use crate::isa::Isa;
use crate::simd::{Kernel, Vector};
use crate::threads;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of source plus gradient per strip: most of them stay in a 32 KiB first-level cache while the tiles of sums
/// pass over them.
const STRIP_ELEMENTS: usize = 10 * 1024;

/// Fewer pixels per strip are not worth the sums that are loaded and stored for each, whatever the channels.
const FEWEST_PIXELS: usize = 48;

/// Vectors of output channels per tile.
const BLOCK: usize = 2;

/// Writes all of `dw`, OIHW.
pub(super) fn run<P: Product>(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let mut plan = Plan::forward(&ConvShape { batch: shape.batch.div_ceil(P::NUMBERS), ..*shape });
    if P::NUMBERS > 1 {
        plan = plan.copying();
    }
    let row = plan.row_len() * shape.stride[0] + plan.out[1] * plan.out[2];
    plan.limit_strip((STRIP_ELEMENTS / row).max(FEWEST_PIXELS / plan.out[1]));
    let lanes = isa.lanes();
    let group_out = (shape.c_out / shape.groups).next_multiple_of(lanes);
    let len = shape.kernel[0] * shape.kernel[1] * shape.c_in * group_out;
    let cuts: Vec<_> = threads::ranges(plan.units(), threads::parts_for(x.len() + dy.len())).collect();
    with_scratch(Purpose::Sums, len * cuts.len(), |sums| {
        sums.fill(0.0);
        threads::for_each_cut(
            sums,
            &cuts,
            |unit| threads::part_of(&cuts, unit) * len,
            |units, sums| {
                with_scratch(Purpose::Source, plan.scratch_len(), |scratch| {
                    let pixels = plan.strip_outputs();
                    let as_it_is = P::NUMBERS == 1 && lanes_divide(shape, lanes);
                    let padded = if as_it_is { 0 } else { pixels * group_out * shape.groups };
                    with_scratch(Purpose::Gradient, padded, |gradient| {
                        let (plan, product) = (&plan, PhantomData);
                        P::dispatch(isa, Strips::<P> { plan, x, dy, units, sums, scratch, gradient, product });
                    });
                });
            },
        );
        let (total, others) = sums.split_at_mut(len);
        for other in others.chunks_exact(len) {
            total.iter_mut().zip(other).for_each(|(t, &o)| *t += o);
        }
        unpack(shape, lanes, total, dw);
    });
}

fn lanes_divide(shape: &ConvShape, lanes: usize) -> bool {
    (shape.c_out / shape.groups).is_multiple_of(lanes)
}

/// From the layout of the file header to OIHW.
fn unpack(shape: &ConvShape, lanes: usize, sums: &[f32], dw: &mut [f32]) {
    let taps = shape.kernel[0] * shape.kernel[1];
    let (in_group, out_group) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let mut rest = sums;
    for dw in dw.chunks_exact_mut(out_group * in_group * taps) {
        for outputs in dw.chunks_mut(BLOCK * lanes * in_group * taps) {
            let valid = outputs.len() / (in_group * taps);
            let width = valid.next_multiple_of(lanes);
            let (block, tail) = rest.split_at(taps * in_group * width);
            rest = tail;
            for (co, output) in outputs.chunks_exact_mut(in_group * taps).enumerate() {
                for (ci, kernel) in output.chunks_exact_mut(taps).enumerate() {
                    for (tap, to) in kernel.iter_mut().enumerate() {
                        *to = block[(tap * in_group + ci) * width + co];
                    }
                }
            }
        }
    }
}

/// The strips `units`, added to `sums`.
struct Strips<'a, P> {
    plan: &'a Plan,
    x: &'a [f32],
    dy: &'a [f32],
    units: Range<usize>,
    sums: &'a mut [f32],
    scratch: &'a mut [f32],
    /// Room for a strip of `dy` with padded channels; empty if `dy` can be read as it is.
    gradient: &'a mut [f32],
    product: PhantomData<P>,
}

impl<P: Product> Kernel for Strips<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let plan = self.plan;
        let [_, out_w, channels] = plan.out;
        let group = channels / plan.groups;
        let padded_group = group.next_multiple_of(V::LANES);
        for unit in self.units {
            let (image, rows) = plan.unit(unit);
            let gradients = Across::<P, V>::new(self.dy, image, plan.out.iter().product());
            let of_strip = gradients.part(rows.start * out_w * channels..rows.end * out_w * channels);
            let source = if P::NUMBERS == 1 {
                plan.source_rows(self.x, image, &rows, self.scratch)
            } else {
                let lines = Across::<P, V>::new(self.x, image, plan.image_len());
                // SAFETY: the caller promises the instruction set.
                unsafe { plan.padded_rows(&lines, &rows, self.scratch) }
            };
            let dy = if self.gradient.is_empty() {
                of_strip[0]
            } else {
                let gradient = &mut self.gradient[..rows.len() * out_w * plan.groups * padded_group];
                if group == padded_group {
                    // SAFETY: as above.
                    unsafe { P::across::<V>(of_strip, gradient) };
                } else {
                    for (number, to) in gradient.chunks_exact_mut(padded_group).enumerate() {
                        let range = number * group..(number + 1) * group;
                        let from = of_strip.map(|image| image.get(range.clone()).unwrap_or_default());
                        // SAFETY: as above.
                        unsafe { P::across::<V>(from, &mut to[..group]) };
                        to[group..].fill(0.0);
                    }
                }
                &*gradient
            };
            for pass in &plan.passes {
                // SAFETY: the caller promises the instruction set.
                unsafe { strip::<P, V>(plan, pass, rows.len(), source, dy, self.sums) };
            }
        }
    }
}

/// One strip of `rows` output rows.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn strip<P: Product, V: Vector>(
    plan: &Plan,
    pass: &Pass,
    rows: usize,
    source: &[f32],
    dy: &[f32],
    sums: &mut [f32],
) {
    let channels = plan.source[2];
    let group_in = channels / plan.groups;
    let padded_group = (plan.out[2] / plan.groups).next_multiple_of(V::LANES);
    let pixels = Pixels {
        rows,
        columns: pass.w.count,
        x_row: pass.h.step * plan.row_len(),
        x_step: pass.w.step * channels,
        dy_step: padded_group * plan.groups,
        ahead: [0; 2],
    };
    // What is read where it lies comes from afar the first time: while the tiles pass over a strip they ask for the next one.
    let in_place = plan.reads_in_place();
    let next_strip = [rows * pixels.x_row, rows * pixels.columns * pixels.dy_step];
    // The farthest elements that any tile reads; the tiles below stay within them.
    let last_pixel = (rows - 1) * pixels.x_row + (pixels.columns - 1) * pixels.x_step;
    let farthest = pass.runs.iter().max().map_or(0, |&r| r) + pass.run_len;
    assert!(last_pixel + farthest + (plan.groups - 1) * group_in <= source.len());
    assert!(rows * pixels.columns * pixels.dy_step <= dy.len());
    let mut sums = sums;
    for group in 0..plan.groups {
        for first in (0..padded_group).step_by(BLOCK * V::LANES) {
            let vectors = ((padded_group - first) / V::LANES).min(BLOCK);
            let width = vectors * V::LANES;
            let dy = &dy[group * padded_group + first..];
            let ahead =
                [if first == 0 && in_place { next_strip[0] } else { 0 }, if in_place { next_strip[1] } else { 0 }];
            let pixels = Pixels { ahead, ..pixels };
            for &run in &pass.runs {
                let (run_sums, rest) = sums.split_at_mut(pass.run_len * width);
                sums = rest;
                let x = &source[run + group * group_in..];
                // SAFETY: the assertions above; `run_sums` holds `run_len` rows of `width` sums.
                unsafe {
                    if vectors == 2 {
                        run_of_tiles::<P, V, 2>(&pixels, pass.run_len, x.as_ptr(), dy.as_ptr(), run_sums.as_mut_ptr());
                    } else {
                        run_of_tiles::<P, V, 1>(&pixels, pass.run_len, x.as_ptr(), dy.as_ptr(), run_sums.as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// The pixels that a tile passes over.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub rows: usize,
    pub columns: usize,
    /// Source elements from one output row to the next, and from one output pixel to the next.
    pub x_row: usize,
    pub x_step: usize,
    /// Gradient elements from one pixel to the next; rows follow each other without gaps.
    pub dy_step: usize,
    /// By how many elements source and gradient are prefetched; 0 if they are in a cache, or another tile does it.
    pub ahead: [usize; 2],
}

/// Covers the `len` products of a run with tiles.
///
/// # Safety
/// As [`tile`], for all `len` products.
#[inline(always)]
pub(super) unsafe fn run_of_tiles<P: Product, V: Vector, const Q: usize>(
    pixels: &Pixels,
    len: usize,
    x: *const f32,
    dy: *const f32,
    sums: *mut f32,
) {
    let wide = V::REGISTERS == 32;
    let largest = if wide { 24 / Q } else { 12 / Q };
    let mut done = 0;
    let mut pixels = *pixels;
    while done < len {
        let rest = len - done;
        // As few tiles as possible, of nearly equal height.
        let height = rest.div_ceil(rest.div_ceil(largest));
        // SAFETY: every tile is at most `height` high, so that it ends within `len`; the caller's promises.
        unsafe {
            let (x, sums) = (x.add(done), sums.add(done * Q * V::LANES));
            done += match height {
                24.. if wide && Q == 1 => tile::<P, V, 24, Q>(&pixels, x, dy, sums),
                20.. if wide && Q == 1 => tile::<P, V, 20, Q>(&pixels, x, dy, sums),
                16.. if wide && Q == 1 => tile::<P, V, 16, Q>(&pixels, x, dy, sums),
                14.. if wide && Q == 1 => tile::<P, V, 14, Q>(&pixels, x, dy, sums),
                12.. if wide || Q == 1 => tile::<P, V, 12, Q>(&pixels, x, dy, sums),
                11 if wide || Q == 1 => tile::<P, V, 11, Q>(&pixels, x, dy, sums),
                10 if wide || Q == 1 => tile::<P, V, 10, Q>(&pixels, x, dy, sums),
                9 if wide || Q == 1 => tile::<P, V, 9, Q>(&pixels, x, dy, sums),
                8 if wide || Q == 1 => tile::<P, V, 8, Q>(&pixels, x, dy, sums),
                7 if wide || Q == 1 => tile::<P, V, 7, Q>(&pixels, x, dy, sums),
                6.. => tile::<P, V, 6, Q>(&pixels, x, dy, sums),
                5 => tile::<P, V, 5, Q>(&pixels, x, dy, sums),
                4 => tile::<P, V, 4, Q>(&pixels, x, dy, sums),
                3 => tile::<P, V, 3, Q>(&pixels, x, dy, sums),
                2 => tile::<P, V, 2, Q>(&pixels, x, dy, sums),
                _ => tile::<P, V, 1, Q>(&pixels, x, dy, sums),
            };
        }
        // The first tile has asked for all of the gradient.
        pixels.ahead[1] = 0;
    }
}

/// Adds `R` products x `Q` vectors, summed over all pixels, to `sums`; returns `R`.
///
/// # Safety
/// The CPU has the instruction set of `V`; at every pixel `R` elements of `x` and `Q` vectors of `dy` are readable; `sums`
/// holds `R * Q` vectors.
#[inline(always)]
unsafe fn tile<P: Product, V: Vector, const R: usize, const Q: usize>(
    pixels: &Pixels,
    x: *const f32,
    dy: *const f32,
    sums: *mut f32,
) -> usize {
    // SAFETY: the function's contract.
    unsafe {
        let mut tile = [[V::zero(); Q]; R];
        for row in 0..pixels.rows {
            let mut x = x.add(row * pixels.x_row);
            let mut dy = dy.add(row * pixels.columns * pixels.dy_step);
            for _ in 0..pixels.columns {
                if pixels.ahead[0] > 0 {
                    V::prefetch(x.wrapping_add(pixels.ahead[0]));
                }
                if pixels.ahead[1] > 0 {
                    V::prefetch(dy.wrapping_add(pixels.ahead[1]));
                    V::prefetch(dy.wrapping_add(pixels.ahead[1] + (Q - 1) * V::LANES));
                }
                let mut g = [V::zero(); Q];
                for (q, g) in g.iter_mut().enumerate() {
                    *g = V::load(dy.add(q * V::LANES));
                }
                for (r, tile) in tile.iter_mut().enumerate() {
                    let x = P::splat::<V>(x.add(r));
                    for (sum, g) in tile.iter_mut().zip(g) {
                        *sum = P::add(x, g, *sum);
                    }
                }
                // Past the last pixel these are never read; wrapping, because they may leave the slice.
                x = x.wrapping_add(pixels.x_step);
                dy = dy.wrapping_add(pixels.dy_step);
            }
        }
        for (r, tile) in tile.iter().enumerate() {
            for (q, sum) in tile.iter().enumerate() {
                let to = sums.add((r * Q + q) * V::LANES);
                V::load(to).add(*sum).store(to);
            }
        }
        R
    }
}
