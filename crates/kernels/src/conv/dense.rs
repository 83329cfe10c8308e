//! Forward and input gradient of every convolution that is not depthwise: register tiles of pixels x channel vectors.
//!
//! ```text
//! for each strip of output rows (copied with its zeros into a scratch that fits the second-level cache)
//!   for each block of Q vectors of output channels          its packed weights stay in the second-level cache
//!     for each tile of P neighbouring output pixels         P x Q sums stay in registers
//!       for each run, for each product k of the run         the source is consecutive: taps of a row times channels
//!         Q loads of weights, P broadcasts of source, P x Q multiply-adds
//! ```
//!
//! Elements of the source are f32, or pairs of neighbouring channels as bf16 (`product`), and so are packed weights; then rows are
//! always copied, and k counts pairs.
//!
//! Packed weights: `[pass][group][block][k][Q * lanes]`, channels past the last padded with zeros.

use super::ConvShape;
use super::plan::{Pass, Plan};
use super::product::{Along, Product};
use crate::buffer::{Purpose, with_scratch};
use crate::isa::Isa;
use crate::simd::{Kernel, Vector};
use crate::threads;
use std::marker::PhantomData;
use std::ops::Range;

/// Which side of the weight is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Over input channels: forward.
    Forward,
    /// Over output channels: input gradient.
    InputGradient,
}

/// Elements of packed weights that one tile may stream: larger sums are cut into chunks of runs.
const CHUNK_ELEMENTS: usize = 48 * 1024;

/// Fewer multiply-accumulates than this are not worth a second thread.
const WORTH_A_THREAD: u64 = 1 << 17;

/// Elements by which a source is prefetched: 4 KiB.
const AHEAD: usize = 1024;

/// Vectors of output channels per block.
const BLOCK: usize = 2;

/// A convolution of either direction, ready to run.
pub(super) struct Dense<'a> {
    pub isa: Isa,
    pub shape: &'a ConvShape,
    pub direction: Direction,
    /// OIHW.
    pub w: &'a [f32],
    /// One number per output channel.
    pub bias: Option<&'a [f32]>,
}

impl Dense<'_> {
    /// Writes all of `out`; for pairs there must be one group, and an even number of channels in the source.
    pub fn run<P: Product>(&self, source: &[f32], out: &mut [f32]) {
        let lanes = self.isa.lanes();
        let plan = Plan::of(self.shape, self.direction, P::NUMBERS).writing(out, lanes);
        if !plan.complete {
            // Only a gradient can have outputs that no tap reaches, and it has no bias.
            out.fill(0.0);
        }
        let padded_out = (plan.out[2] / plan.groups).next_multiple_of(lanes) * plan.groups;
        let packed_len: usize = plan.passes.iter().map(|p| p.runs.len() * p.run_len * padded_out).sum();
        let parts = if self.shape.macs() < WORTH_A_THREAD { 1 } else { rayon::current_num_threads() };
        let cuts: Vec<_> = threads::ranges(plan.units(), parts).collect();
        with_scratch(Purpose::Weights, packed_len, |packed| {
            pack::<P>(&plan, self.shape, self.direction, lanes, self.w, packed);
            let (plan, packed, bias) = (&plan, &*packed, self.bias);
            let offset = |unit| plan.out_offset(unit);
            threads::for_each_cut(out, &cuts, offset, |units, out| {
                with_scratch(Purpose::Source, plan.scratch_len(), |scratch| {
                    let product = PhantomData;
                    P::dispatch(self.isa, Strips::<P> { plan, packed, bias, source, units, out, scratch, product });
                });
            });
        });
    }
}

/// Fills `packed` in the layout of the file header.
fn pack<P: Product>(plan: &Plan, shape: &ConvShape, direction: Direction, lanes: usize, w: &[f32], packed: &mut [f32]) {
    let taps = shape.kernel[0] * shape.kernel[1];
    let (in_group, out_group) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    // Elements of `w` from one summed channel to the next, from one produced channel to the next, from group to group.
    let (summed, sum_stride, produced, out_stride) = match direction {
        Direction::Forward => (in_group, taps, out_group, in_group * taps),
        Direction::InputGradient => (out_group, in_group * taps, in_group, taps),
    };
    let elements = summed / P::NUMBERS;
    let mut rest = packed;
    for pass in &plan.passes {
        for group in 0..plan.groups {
            let w = &w[group * out_group * in_group * taps..];
            for first in (0..produced).step_by(BLOCK * lanes) {
                let width = (produced - first).next_multiple_of(lanes).min(BLOCK * lanes);
                let valid = (produced - first).min(width);
                let (block, tail) = rest.split_at_mut(pass.taps.len() * elements * width);
                rest = tail;
                for (tap, rows) in pass.taps.iter().zip(block.chunks_exact_mut(elements * width)) {
                    let w = &w[first * out_stride + tap[0] * shape.kernel[1] + tap[1]..];
                    for (channel, row) in rows.chunks_exact_mut(width).enumerate() {
                        let first = &w[channel * P::NUMBERS * sum_stride..];
                        let second = if P::NUMBERS == 2 { &first[sum_stride..] } else { first };
                        for (lane, to) in row[..valid].iter_mut().enumerate() {
                            *to = P::element([first[lane * out_stride], second[lane * out_stride]]);
                        }
                        row[valid..].fill(0.0);
                    }
                }
            }
        }
    }
}

/// The strips `units`, whose outputs are `out`.
struct Strips<'a, P> {
    plan: &'a Plan,
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    source: &'a [f32],
    units: Range<usize>,
    out: &'a mut [f32],
    scratch: &'a mut [f32],
    product: PhantomData<P>,
}

impl<P: Product> Kernel for Strips<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let plan = self.plan;
        let start = plan.out_offset(self.units.start);
        for unit in self.units {
            let (image, rows) = plan.unit(unit);
            let source = if P::NUMBERS == 1 {
                plan.source_rows(self.source, image, &rows, self.scratch)
            } else {
                let len = plan.image_len() * P::NUMBERS;
                let lines = Along::<P, V>::new(&self.source[image * len..(image + 1) * len]);
                // SAFETY: the caller promises the instruction set.
                unsafe { plan.padded_rows(&lines, &rows, self.scratch) }
            };
            let out = &mut self.out[plan.out_offset(unit) - start..plan.out_offset(unit + 1) - start];
            let mut packed = self.packed;
            for pass in &plan.passes {
                let len = pass.runs.len() * pass.run_len * plan.groups;
                let (weights, rest) = packed.split_at(len * (plan.out[2] / plan.groups).next_multiple_of(V::LANES));
                packed = rest;
                if !pass.runs.is_empty() {
                    // SAFETY: the caller promises the instruction set.
                    unsafe { pass_of_strip::<P, V>(plan, pass, &rows, weights, self.bias, source, out) };
                }
            }
        }
        if plan.streams {
            // SAFETY: the caller promises the instruction set.
            unsafe { V::fence() };
        }
    }
}

/// One pass over the rows of one strip.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn pass_of_strip<P: Product, V: Vector>(
    plan: &Plan,
    pass: &Pass,
    rows: &Range<usize>,
    weights: &[f32],
    bias: Option<&[f32]>,
    source: &[f32],
    out: &mut [f32],
) {
    let [_, out_w, out_channels] = plan.out;
    let source_channels = plan.source[2];
    let (group_in, group_out) = (source_channels / plan.groups, out_channels / plan.groups);
    let products = pass.runs.len() * pass.run_len;
    let chunk_runs = (CHUNK_ELEMENTS / (pass.run_len * BLOCK * V::LANES)).max(1);
    let rows = rows.start..rows.end.min(pass.h.count);
    let mut block_weights = weights;
    for group in 0..plan.groups {
        for first in (0..group_out).step_by(BLOCK * V::LANES) {
            let vectors = (group_out - first).div_ceil(V::LANES).min(BLOCK);
            let channel = group * group_out + first;
            let valid = (group_out - first).min(vectors * V::LANES);
            let chunks = pass.runs.len().div_ceil(chunk_runs);
            for (chunk, runs) in pass.runs.chunks(chunk_runs).enumerate() {
                let tile = Tile {
                    // An earlier chunk's sums are read again.
                    streams: plan.streams && chunks == 1,
                    // Later blocks find the strip in the cache, and so does who copied it.
                    ahead: if plan.reads_in_place() && first == 0 && group == 0 { AHEAD } else { 0 },
                    runs,
                    run_len: pass.run_len,
                    source_step: pass.w.step * source_channels,
                    weights: block_weights[chunk * chunk_runs * pass.run_len * vectors * V::LANES..].as_ptr(),
                    init: match bias {
                        _ if chunk > 0 => Init::Add,
                        Some(bias) => Init::Bias(bias[channel..].as_ptr()),
                        None => Init::Zero,
                    },
                    out_step: pass.w.out_step * out_channels,
                    last_lanes: valid - (vectors - 1) * V::LANES,
                };
                for i in rows.clone() {
                    let relative = i - rows.start;
                    let from = &source[relative * pass.h.step * plan.row_len() + group * group_in..];
                    let row = relative * pass.h.out_step + pass.h.out_start;
                    let to = &mut out[(row * out_w + pass.w.out_start) * out_channels + channel..];
                    // The last product of the last pixel, and the last element written, lie inside: the plan padded the
                    // source that far, and the output has that many pixels. Checked here once per row.
                    let last = pass.w.count - 1;
                    let farthest = runs.iter().max().map_or(0, |&r| r) + pass.run_len;
                    assert!(last * tile.source_step + farthest <= from.len());
                    assert!(last * tile.out_step + valid <= to.len());
                    // SAFETY: the assertions above, the packed layout, and the caller's promise of the instruction set.
                    unsafe {
                        if vectors == 2 {
                            row_of_tiles::<P, V, 2>(&tile, pass.w.count, from.as_ptr(), to.as_mut_ptr());
                        } else {
                            row_of_tiles::<P, V, 1>(&tile, pass.w.count, from.as_ptr(), to.as_mut_ptr());
                        }
                    }
                }
            }
            block_weights = &block_weights[products * vectors * V::LANES..];
        }
    }
}

/// What the sums of a tile start from.
#[derive(Clone, Copy)]
pub(super) enum Init {
    Zero,
    Bias(*const f32),
    /// What the output holds: an earlier chunk.
    Add,
}

/// What all tiles of a row share.
pub(super) struct Tile<'a> {
    pub runs: &'a [usize],
    pub run_len: usize,
    /// Elements from one output's source to the next's.
    pub source_step: usize,
    /// `[run][k][Q * lanes]`
    pub weights: *const f32,
    pub init: Init,
    /// Elements from one output pixel to the next.
    pub out_step: usize,
    /// Channels of the last vector.
    pub last_lanes: usize,
    /// Whether outputs, whole vectors at whole vectors of memory, are written past the caches.
    pub streams: bool,
    /// By how many elements to prefetch the source, at least; 0 if it is in a cache.
    pub ahead: usize,
}

/// Covers `count` pixels with tiles.
///
/// # Safety
/// As [`tile`], for all `count` pixels.
#[inline(always)]
pub(super) unsafe fn row_of_tiles<P: Product, V: Vector, const Q: usize>(
    t: &Tile,
    count: usize,
    from: *const f32,
    to: *mut f32,
) {
    let mut done = 0;
    // Tiles of nearly equal width: 14 pixels are 7 + 7, not 8 + 6.
    let widest = if V::REGISTERS == 32 {
        if Q == 1 { 16 } else { 8 }
    } else if Q == 1 {
        8
    } else {
        6
    };
    while done < count {
        let rest = count - done;
        let width = rest.div_ceil(rest.div_ceil(widest));
        // SAFETY: `done + width <= count`; the caller's promises.
        unsafe {
            let (from, to) = (from.add(done * t.source_step), to.add(done * t.out_step));
            done += match width {
                16 if V::REGISTERS == 32 && Q == 1 => tile::<P, V, 16, Q>(t, from, to),
                12.. if V::REGISTERS == 32 && Q == 1 => tile::<P, V, 12, Q>(t, from, to),
                8.. if V::REGISTERS == 32 || Q == 1 => tile::<P, V, 8, Q>(t, from, to),
                7 if V::REGISTERS == 32 || Q == 1 => tile::<P, V, 7, Q>(t, from, to),
                6.. => tile::<P, V, 6, Q>(t, from, to),
                5 => tile::<P, V, 5, Q>(t, from, to),
                4 => tile::<P, V, 4, Q>(t, from, to),
                3 => tile::<P, V, 3, Q>(t, from, to),
                2 => tile::<P, V, 2, Q>(t, from, to),
                _ => tile::<P, V, 1, Q>(t, from, to),
            };
        }
    }
}

/// `P` pixels times `Q` vectors; returns `P`.
///
/// # Safety
/// The CPU has the instruction set of `V`; for each of the `P` pixels, every run's elements of `from` are readable, `Q`
/// vectors less the missing lanes of the last are writable at `to`, aligned if `t.streams`, and `t.weights` holds the packed runs.
#[inline(always)]
unsafe fn tile<K: Product, V: Vector, const P: usize, const Q: usize>(
    t: &Tile,
    from: *const f32,
    to: *mut f32,
) -> usize {
    // SAFETY: the function's contract.
    unsafe {
        let mut sums = [[V::zero(); Q]; P];
        match t.init {
            Init::Zero => {}
            Init::Bias(bias) => {
                let bias = load_vectors::<V, Q>(bias, t.last_lanes);
                sums = [bias; P];
            }
            Init::Add => {
                for (p, sums) in sums.iter_mut().enumerate() {
                    *sums = load_vectors::<V, Q>(to.add(p * t.out_step), t.last_lanes);
                }
            }
        }
        let mut weights = t.weights;
        let ahead = from.wrapping_add(t.ahead.max(P * t.source_step));
        for &run in t.runs {
            let from = from.add(run);
            for k in 0..t.run_len {
                if t.ahead > 0 {
                    V::prefetch(ahead.wrapping_add(k * P));
                }
                let w: [V; Q] = {
                    let mut w = [V::zero(); Q];
                    for (q, w) in w.iter_mut().enumerate() {
                        *w = V::load(weights.add(q * V::LANES));
                    }
                    w
                };
                weights = weights.add(Q * V::LANES);
                for (p, sums) in sums.iter_mut().enumerate() {
                    let x = K::splat::<V>(from.add(p * t.source_step + k));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = K::add(x, w, *sum);
                    }
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            let to = to.add(p * t.out_step);
            for (q, sum) in sums.iter().enumerate() {
                if t.streams {
                    sum.stream(to.add(q * V::LANES));
                } else if q + 1 < Q || t.last_lanes == V::LANES {
                    sum.store(to.add(q * V::LANES));
                } else {
                    sum.store_partial(to.add(q * V::LANES), t.last_lanes);
                }
            }
        }
        P
    }
}

/// # Safety
/// The CPU has the instruction set of `V`, and `Q` vectors less the missing lanes of the last are readable at `from`.
#[inline(always)]
unsafe fn load_vectors<V: Vector, const Q: usize>(from: *const f32, last_lanes: usize) -> [V; Q] {
    // SAFETY: the function's contract.
    unsafe {
        let mut vectors = [V::zero(); Q];
        for (q, vector) in vectors.iter_mut().enumerate() {
            let n = if q + 1 < Q { V::LANES } else { last_lanes };
            *vector = V::load_partial(from.add(q * V::LANES), n);
        }
        vectors
    }
}
