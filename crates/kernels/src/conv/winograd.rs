//! 3x3 convolutions of stride 1 with fewer multiplications (Winograd's minimal filtering; Lavin and Gray, arXiv
//! 1509.09308), forward, input gradient and weight gradient.
//!
//! A tile is m x m outputs `y` and the (m + 2) x (m + 2) inputs `d` under them; `scheme` has the matrices for m = 2 (2.25 times
//! fewer multiplications) and m = 4 (4 times fewer).
//!
//! ```text
//!   v = Bᵀ d B      u = G w Gᵀ      m = Σ over channels of v ⊙ u      y = Aᵀ m A
//!   gradient of w:                  dm = A dy Aᵀ,  du = Σ over tiles of v ⊙ dm,  dw = Gᵀ du G
//! ```
//!
//! Each position of a tile is a matrix product, done by the register tiles of the direct loops: tiles take the place of
//! pixels. The input gradient is a forward convolution of `dy` with the weight turned by 180 degrees.
//!
//! Rounding: the transforms add and subtract neighbours. The error stays below `k c (c + r) u max|x| max|w|` for `c` summed
//! channels, with `k` the product of the squared largest row sums of Aᵀ, Bᵀ and G, and `r` the roundings of the transforms:
//! k = 81 = 3²·2²·1.5² and r = 12 for m = 2, which is also the worst case of a direct sum of `9 c` products; k = 3100 and r = 24
//! for m = 4. The weight gradient sums over tiles: c is their number, and k = 64 or 9800, because A and G are transposed and the
//! largest sums of their columns count. Measured on 32 channels of 16x16, root mean square: forward 0.7 (m = 2) and 2.6 (m = 4) times the error of the direct
//! sum, weight gradient 2.8 and 2.1 times.
//!
//! With pairs of bf16 (`product`), `v`, `u` and `dm` are rounded to it after their transforms, and pairs of summed channels (for the weight: of
//! tiles) lie side by side in an element: each product is off by 2⁻⁷ of itself more, times the same k. Measured as above: see `docs/numerics.md`.
//!
//! A block of tiles is transformed, multiplied and transformed back while it is in the second-level cache.
//! Layouts: `v [position][tile][channel]`, `m [position][tile][channel]`, `u [block][position][channel][Q * lanes]`.

mod scheme;
mod tiles;

use super::ConvShape;
use super::dense::{Direction, Init, Tile, row_of_tiles};
use super::product::Product;
use super::weight_grad::{self, run_of_tiles};
use crate::buffer::{Purpose, with_scratch};
use crate::isa::Isa;
use crate::simd::{Kernel, Vector, dispatch};
use crate::threads;
use scheme::{F2, F4, Line, Scheme};
use std::marker::PhantomData;
use std::ops::Range;
use tiles::{transform_gradient, transform_groups, transform_source};

/// How large the tiles are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// 2x2 outputs: as accurate as direct sums.
    Two,
    /// 4x4 outputs: a few times less accurate, and fastest.
    Four,
}

/// Vectors of output channels per register tile, as in the direct loops.
const BLOCK: usize = 2;

/// Elements of `v` and `m` together that a block of tiles may take.
const BLOCK_ELEMENTS: usize = 64 * 1024;

/// Products of input and output channels from which the transformed weight leaves the second-level cache.
const MANY: usize = 1 << 16;

/// Whether the loops here apply and are worth it: whole vectors of channels on both sides, and enough tiles to repay the
/// transform of the weight.
pub(super) fn applies(s: &ConvShape) -> bool {
    let geometry = s.kernel == [3, 3] && s.stride == [1, 1] && s.dilation == [1, 1] && s.groups == 1;
    let channels = s.c_in.is_multiple_of(16) && s.c_out.is_multiple_of(16);
    let tiles = s.batch * s.out_h().div_ceil(2) * s.out_w().div_ceil(2);
    geometry && channels && s.pads.iter().all(|&p| p <= 2) && tiles >= (s.c_in * s.c_out / 1024).max(16)
}

/// The size of tiles for work that need not be as accurate as direct sums: the larger one, unless images are so small that it
/// mostly computes what lies outside them.
pub(super) fn coarse(s: &ConvShape) -> Size {
    let tiles = |m: usize| s.out_h().div_ceil(m) * s.out_w().div_ceil(m) * (m + 2) * (m + 2);
    if 5 * tiles(4) <= 4 * tiles(2) { Size::Four } else { Size::Two }
}

/// Source and output of one direction, and where its tiles lie.
struct Geometry {
    batch: usize,
    /// Height, width, channels.
    source: [usize; 3],
    out: [usize; 3],
    /// Zeros above and to the left of the source.
    top: usize,
    left: usize,
    /// Tiles per column and row of an image.
    tiles: [usize; 2],
    /// Tiles that are done together.
    block: usize,
    /// Rows and columns of a tile's outputs.
    size: usize,
}

impl Geometry {
    fn new<S: Scheme>(s: &ConvShape, direction: Direction) -> Geometry {
        let input = [s.in_h, s.in_w, s.c_in];
        let output = [s.out_h(), s.out_w(), s.c_out];
        let (source, out, top, left) = match direction {
            Direction::Forward => (input, output, s.pads[0], s.pads[1]),
            Direction::InputGradient => (output, input, 2 - s.pads[0], 2 - s.pads[1]),
        };
        let tiles = [out[0].div_ceil(S::OUT), out[1].div_ceil(S::OUT)];
        // Many channels: the weight of a position streams from afar, and more tiles must share it.
        let fewest = if s.c_in * s.c_out >= MANY { 64 } else { 16 };
        let block = (BLOCK_ELEMENTS / (S::POSITIONS * (source[2] + out[2]))).clamp(fewest, 64).next_multiple_of(8);
        Geometry { batch: s.batch, source, out, top, left, tiles, block, size: S::OUT }
    }

    /// Rows of tiles in the batch: the unit that threads share.
    fn rows(&self) -> usize {
        self.batch * self.tiles[0]
    }

    /// Where the outputs of a row of tiles begin.
    fn out_offset(&self, row: usize) -> usize {
        let [height, width, channels] = self.out;
        (row / self.tiles[0] * height + (row % self.tiles[0] * self.size).min(height)) * width * channels
    }

    /// Image, and tile row and column in it, of a tile of the batch.
    fn tile(&self, tile: usize) -> [usize; 3] {
        let row = tile / self.tiles[1];
        [row / self.tiles[0], row % self.tiles[0], tile % self.tiles[1]]
    }

    /// Elements from one position of `v` or `m` to the next: one line more than the tiles need, so that the positions of
    /// one tile do not fall on the same cache sets.
    fn position(&self, channels: usize) -> usize {
        self.block * channels + 16
    }
}

/// Forward or input gradient; writes all of `out`.
pub(super) fn run<P: Product>(
    isa: Isa,
    size: Size,
    of: (&ConvShape, Direction),
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    match size {
        Size::Two => correlate::<F2, P>(isa, of, source, w, bias, out),
        Size::Four => correlate::<F4, P>(isa, of, source, w, bias, out),
    }
}

fn correlate<S: Scheme, P: Product>(
    isa: Isa,
    (shape, direction): (&ConvShape, Direction),
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let geometry = &Geometry::new::<S>(shape, direction);
    // Elements of a source pixel.
    let (c_in, c_out) = (geometry.source[2] / P::NUMBERS, geometry.out[2]);
    let cuts: Vec<_> = threads::ranges(geometry.rows(), rayon::current_num_threads()).collect();
    with_scratch(Purpose::Weights, S::POSITIONS * c_in * c_out, |u| {
        let blocks = blocks(c_out, BLOCK * isa.lanes(), S::POSITIONS * c_in);
        threads::for_each_cut(
            u,
            &blocks.cuts,
            |block| blocks.offset(block),
            |range, u| {
                let channels = blocks.channels(&range);
                P::dispatch(isa, TransformWeight::<S, P> { shape, direction, w, channels, u, kind: PhantomData });
            },
        );
        let u = &*u;
        threads::for_each_cut(
            out,
            &cuts,
            |row| geometry.out_offset(row),
            |rows, out| {
                let zeros = geometry.source[2];
                with_scratch(Purpose::Source, S::POSITIONS * geometry.position(c_in) + zeros, |v| {
                    with_scratch(Purpose::Gradient, S::POSITIONS * geometry.position(c_out), |m| {
                        let kind = PhantomData;
                        P::dispatch(isa, Correlate::<S, P> { geometry, source, u, bias, rows, out, v, m, kind });
                    });
                });
            },
        );
    });
}

/// Produced channels in blocks of vectors, shared among threads.
struct Blocks {
    channels: usize,
    /// Channels of a block, but for the last.
    width: usize,
    /// Elements that belong to a channel.
    len: usize,
    cuts: Vec<Range<usize>>,
}

fn blocks(channels: usize, width: usize, len: usize) -> Blocks {
    let cuts = threads::ranges(channels.div_ceil(width), threads::parts_for(channels * len)).collect();
    Blocks { channels, width, len, cuts }
}

impl Blocks {
    /// The first channel of a block.
    fn first(&self, block: usize) -> usize {
        (block * self.width).min(self.channels)
    }

    /// The channels of some blocks.
    fn channels(&self, blocks: &Range<usize>) -> Range<usize> {
        self.first(blocks.start)..self.first(blocks.end)
    }

    /// Where the elements of a block begin.
    fn offset(&self, block: usize) -> usize {
        self.first(block) * self.len
    }
}

/// `u = G w Gᵀ` for some produced channels, whole blocks, and all summed ones.
struct TransformWeight<'a, S, P> {
    shape: &'a ConvShape,
    direction: Direction,
    w: &'a [f32],
    channels: Range<usize>,
    u: &'a mut [f32],
    kind: PhantomData<(S, P)>,
}

impl<S: Scheme, P: Product> Kernel for TransformWeight<'_, S, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (c_in, c_out) = (self.shape.c_in, self.shape.c_out);
        // Elements of `w` from one summed and from one produced channel to the next.
        let (summed, sum_stride, out_stride) = match self.direction {
            Direction::Forward => (c_in, 9, c_in * 9),
            Direction::InputGradient => (c_out, c_in * 9, 9),
        };
        let turned = self.direction == Direction::InputGradient;
        let Range { start, end } = self.channels;
        let elements = summed / P::NUMBERS;
        assert!(self.w.len() == 9 * c_in * c_out && self.u.len() == S::POSITIONS * elements * (end - start));
        for first in (start..end).step_by(V::LANES) {
            let block = first - first % (BLOCK * V::LANES);
            let width = (end - block).min(BLOCK * V::LANES);
            for element in 0..elements {
                let mut taps = [[[0.0_f32; 16]; 9]; 2];
                for (number, taps) in taps.iter_mut().enumerate().take(P::NUMBERS) {
                    let channel = element * P::NUMBERS + number;
                    let kernels = self.w[channel * sum_stride + first * out_stride..].chunks(out_stride);
                    for (lane, kernel) in kernels.take(V::LANES).enumerate() {
                        for (tap, &w) in kernel[..9].iter().enumerate() {
                            taps[if turned { 8 - tap } else { tap }][lane] = w;
                        }
                    }
                }
                let at = (block - start) * S::POSITIONS * elements + element * width + (first - block);
                // SAFETY: each row of `taps` holds a vector; `at` plus a vector lies inside each position of the block in `u`, which
                // has `elements * width` elements. The caller promises the instruction set.
                unsafe {
                    let mut rows = [[[V::zero(); 3]; 6]; 2];
                    for (rows, taps) in rows.iter_mut().zip(&taps).take(P::NUMBERS) {
                        for column in 0..3 {
                            let line = [0, 1, 2].map(|row| taps[row * 3 + column].as_ptr());
                            let transformed = S::weight([V::load(line[0]), V::load(line[1]), V::load(line[2])]);
                            for (row, value) in rows.iter_mut().zip(&transformed) {
                                row[column] = *value;
                            }
                        }
                    }
                    let [first, second] = &rows;
                    for (i, (first, second)) in first.iter().zip(second).enumerate().take(S::IN) {
                        let low = S::weight(*first);
                        let high = if P::NUMBERS == 2 { S::weight(*second) } else { low };
                        for j in 0..S::IN {
                            let to = self.u[(i * S::IN + j) * elements * width + at..].as_mut_ptr();
                            P::join([low[j], high[j]]).store(to);
                        }
                    }
                }
            }
        }
    }
}

/// The outputs of some rows of tiles.
struct Correlate<'a, S, P> {
    geometry: &'a Geometry,
    source: &'a [f32],
    u: &'a [f32],
    bias: Option<&'a [f32]>,
    rows: Range<usize>,
    out: &'a mut [f32],
    /// Room for `v`, and one pixel of zeros behind it.
    v: &'a mut [f32],
    m: &'a mut [f32],
    kind: PhantomData<(S, P)>,
}

impl<S: Scheme, P: Product> Kernel for Correlate<'_, S, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let g = self.geometry;
        let (c_in, c_out) = (g.source[2] / P::NUMBERS, g.out[2]);
        let start = g.out_offset(self.rows.start);
        let all = self.rows.start * g.tiles[1]..self.rows.end * g.tiles[1];
        let (v, zeros) = self.v.split_at_mut(S::POSITIONS * g.position(c_in));
        zeros.fill(0.0);
        for first in all.clone().step_by(g.block) {
            let tiles = first..(first + g.block).min(all.end);
            // SAFETY: the caller promises the instruction set; `v` and `m` hold `block` tiles at every position, `u` is
            // packed as `row_of_tiles` expects, and the assertions of the callees bound the rest.
            unsafe {
                transform_source::<S, P, V>(g, self.source, zeros, &tiles, v);
                for position in 0..S::POSITIONS {
                    let from = v[position * g.position(c_in)..].as_ptr();
                    for channel in (0..c_out).step_by(BLOCK * V::LANES) {
                        let vectors = ((c_out - channel) / V::LANES).min(BLOCK);
                        let tile = Tile {
                            runs: &[0],
                            run_len: c_in,
                            source_step: c_in,
                            weights: self.u[(channel * S::POSITIONS + position * vectors * V::LANES) * c_in..].as_ptr(),
                            init: Init::Zero,
                            out_step: c_out,
                            last_lanes: V::LANES,
                            streams: false,
                            ahead: 0,
                        };
                        let to = self.m[position * g.position(c_out) + channel..].as_mut_ptr();
                        if vectors == 2 {
                            row_of_tiles::<P, V, 2>(&tile, tiles.len(), from, to);
                        } else {
                            row_of_tiles::<P, V, 1>(&tile, tiles.len(), from, to);
                        }
                    }
                }
                transform_back::<S, V>(g, self.m, self.bias, &tiles, &mut self.out[..], start);
            }
        }
    }
}

/// `y = Aᵀ m A + bias` of all channels of some tiles; `out` begins at element `start` of the whole output.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels of the output are whole vectors.
#[inline(always)]
unsafe fn transform_back<S: Scheme, V: Vector>(
    g: &Geometry,
    m: &[f32],
    bias: Option<&[f32]>,
    tiles: &Range<usize>,
    out: &mut [f32],
    start: usize,
) {
    let [height, width, channels] = g.out;
    let position = g.position(channels);
    assert!(m.len() >= S::POSITIONS * position && bias.is_none_or(|b| b.len() == channels));
    for (number, tile) in tiles.clone().enumerate() {
        let [image, row, column] = g.tile(tile);
        let corner = ((image * height + row * S::OUT) * width + column * S::OUT) * channels - start;
        // Rows or columns of a last tile may lie outside.
        let rows = (height - row * S::OUT).min(S::OUT);
        let columns = (width - column * S::OUT).min(S::OUT);
        let out = &mut out[corner..];
        assert!(((rows - 1) * width + columns) * channels <= out.len());
        let from = m[number * channels..].as_ptr();
        let line = width * channels;
        // SAFETY: the assertions above; the function's contract. Whole tiles have a loop of known length.
        unsafe {
            if (rows, columns) == (S::OUT, S::OUT) {
                transform_tile_back::<S, V>(channels, position, from, bias, out.as_mut_ptr(), line, (S::OUT, S::OUT));
            } else {
                transform_tile_back::<S, V>(channels, position, from, bias, out.as_mut_ptr(), line, (rows, columns));
            }
        }
    }
}

/// `y = Aᵀ m A + bias` of all channels of one tile, of which the first rows and columns are written.
///
/// # Safety
/// The CPU has the instruction set of `V`; `channels` elements are readable at `from` and every `position` elements on, and
/// writable at `to` for each row (`line` elements apart) and column that is written.
#[inline(always)]
unsafe fn transform_tile_back<S: Scheme, V: Vector>(
    channels: usize,
    position: usize,
    from: *const f32,
    bias: Option<&[f32]>,
    to: *mut f32,
    line: usize,
    (rows, columns): (usize, usize),
) {
    for channel in (0..channels).step_by(V::LANES) {
        // SAFETY: the function's contract.
        unsafe {
            let start = match bias {
                Some(bias) => V::load(bias.as_ptr().add(channel)),
                None => V::zero(),
            };
            let mut half = [[V::zero(); 6]; 6];
            for (i, half) in half.iter_mut().enumerate().take(S::IN) {
                let mut m = [V::zero(); 6];
                for (j, m) in m.iter_mut().enumerate().take(S::IN) {
                    *m = V::load(from.add((i * S::IN + j) * position + channel));
                }
                *half = S::out(m);
            }
            for j in 0..S::OUT {
                let done = S::out(column_of(&half, j));
                for (i, value) in done.iter().enumerate().take(S::OUT) {
                    if i < rows && j < columns {
                        value.add(start).store(to.add(i * line + j * channels + channel));
                    }
                }
            }
        }
    }
}

/// The weight gradient; writes all of `dw`.
pub(super) fn weight_gradient<P: Product>(
    isa: Isa,
    size: Size,
    shape: &ConvShape,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) {
    match size {
        Size::Two => gradient::<F2, P>(isa, shape, x, dy, dw),
        Size::Four => gradient::<F4, P>(isa, shape, x, dy, dw),
    }
}

fn gradient<S: Scheme, P: Product>(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let geometry = &Geometry::new::<S>(shape, Direction::Forward);
    let (c_in, c_out) = (shape.c_in, shape.c_out);
    let (width, len) = (BLOCK * isa.lanes(), S::POSITIONS * c_in * c_out);
    let blocks = &blocks(c_out, width, S::POSITIONS * c_in);
    // Each thread has sums of its own, from some rows of tiles; where they are many, those of some channels from all rows.
    let by_channels = c_in * c_out >= MANY;
    let cuts: Vec<_> = threads::ranges(geometry.rows(), rayon::current_num_threads()).collect();
    let copies = if by_channels { 1 } else { cuts.len() };
    let add = |rows: Range<usize>, channels: Range<usize>, sums: &mut [f32]| {
        sums.fill(0.0);
        let position = |channels: usize| S::POSITIONS * geometry.position(channels / P::NUMBERS);
        with_scratch(Purpose::Source, position(c_in) + c_in, |v| {
            with_scratch(Purpose::Gradient, position(channels.len()), |m| {
                let kind = PhantomData;
                P::dispatch(isa, Gradient::<S, P> { geometry, x, dy, rows, channels, sums, v, m, kind });
            });
        });
    };
    with_scratch(Purpose::Sums, len * copies, |sums| {
        if by_channels {
            let offset = |block| blocks.offset(block);
            threads::for_each_cut(sums, &blocks.cuts, offset, |range, sums| {
                add(0..geometry.rows(), blocks.channels(&range), sums);
            });
        } else {
            let offset = |row| threads::part_of(&cuts, row) * len;
            threads::for_each_cut(sums, &cuts, offset, |rows, sums| add(rows, 0..c_out, sums));
        }
        let (mut total, others) = sums.split_at_mut(len);
        let mut rest = dw;
        let mut jobs = Vec::with_capacity(blocks.cuts.len());
        for cut in &blocks.cuts {
            let (sums, later) = total.split_at_mut(blocks.offset(cut.end) - blocks.offset(cut.start));
            let (dw, tail) = rest.split_at_mut(blocks.channels(cut).len() * c_in * 9);
            (total, rest) = (later, tail);
            jobs.push((blocks.offset(cut.start), sums, dw));
        }
        threads::for_each_job(jobs, |(start, sums, dw)| {
            for other in others.chunks_exact(len) {
                sums.iter_mut().zip(&other[start..]).for_each(|(t, &o)| *t += o);
            }
            for (sums, dw) in sums.chunks_mut(S::POSITIONS * c_in * width).zip(dw.chunks_mut(c_in * 9 * width)) {
                dispatch(isa, TransformSums::<S> { sums, dw, c_in, scheme: PhantomData });
            }
        });
    });
}

/// `dw = Gᵀ du G` of the channels of a block, whose sums it overwrites.
struct TransformSums<'a, S> {
    /// `[position][input channel][output channel]`
    sums: &'a mut [f32],
    dw: &'a mut [f32],
    c_in: usize,
    scheme: PhantomData<S>,
}

impl<S: Scheme> Kernel for TransformSums<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let pairs = self.sums.len() / S::POSITIONS;
        assert!(
            self.sums.len() == S::POSITIONS * pairs && pairs.is_multiple_of(V::LANES) && self.dw.len() == 9 * pairs
        );
        for first in (0..pairs).step_by(V::LANES) {
            // SAFETY: a vector of pairs lies inside each position, as asserted; the caller promises the instruction set.
            unsafe {
                let at = self.sums.as_mut_ptr().add(first);
                let mut half = [[V::zero(); 6]; 3];
                for column in 0..S::IN {
                    let mut line = [V::zero(); 6];
                    for (row, du) in line.iter_mut().enumerate().take(S::IN) {
                        *du = V::load(at.add((row * S::IN + column) * pairs));
                    }
                    for (half, value) in half.iter_mut().zip(S::gradient(line)) {
                        half[column] = value;
                    }
                }
                for (row, half) in half.iter().enumerate() {
                    for (column, value) in S::gradient(*half).into_iter().enumerate() {
                        value.store(at.add((row * 3 + column) * pairs));
                    }
                }
            }
        }
        // The taps are in the first 9 positions, output channels side by side; now each output channel's go together.
        let c_in = self.c_in;
        let width = pairs / c_in;
        for (co, dw) in self.dw.chunks_exact_mut(c_in * 9).enumerate() {
            for (ci, kernel) in dw.chunks_exact_mut(9).enumerate() {
                let taps = self.sums[ci * width + co..].iter().step_by(pairs);
                kernel.iter_mut().zip(taps).for_each(|(to, &from)| *to = from);
            }
        }
    }
}

/// `du` of some rows of tiles and output channels, added to `sums` in the layout of `u`.
struct Gradient<'a, S, P> {
    geometry: &'a Geometry,
    x: &'a [f32],
    dy: &'a [f32],
    rows: Range<usize>,
    /// Whole blocks.
    channels: Range<usize>,
    sums: &'a mut [f32],
    v: &'a mut [f32],
    m: &'a mut [f32],
    kind: PhantomData<(S, P)>,
}

impl<S: Scheme, P: Product> Kernel for Gradient<'_, S, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let g = self.geometry;
        let (c_in, c_out) = (g.source[2], self.channels.len());
        let all = self.rows.start * g.tiles[1]..self.rows.end * g.tiles[1];
        let (v, zeros) = self.v.split_at_mut(S::POSITIONS * g.position(c_in / P::NUMBERS));
        zeros.fill(0.0);
        assert!(self.sums.len() == S::POSITIONS * c_in * c_out);
        for first in all.clone().step_by(g.block) {
            let tiles = first..(first + g.block).min(all.end);
            let columns = tiles.len().div_ceil(P::NUMBERS);
            let pixels =
                weight_grad::Pixels { rows: 1, columns, x_row: 0, x_step: c_in, dy_step: c_out, ahead: [0; 2] };
            // SAFETY: the caller promises the instruction set; `v` and `m` hold `block` tiles at every position, and the
            // sums of a block of vectors are `c_in` rows of its width.
            unsafe {
                transform_groups::<S, P, V>(g, self.x, zeros, &tiles, v);
                transform_gradient::<S, P, V>(g, self.dy, &self.channels, &tiles, self.m);
                for position in 0..S::POSITIONS {
                    let v = v[position * g.position(c_in / P::NUMBERS)..].as_ptr();
                    for channel in (0..c_out).step_by(BLOCK * V::LANES) {
                        let m = self.m[position * g.position(c_out / P::NUMBERS) + channel..].as_ptr();
                        let vectors = ((c_out - channel) / V::LANES).min(BLOCK);
                        let at = (channel * S::POSITIONS + position * vectors * V::LANES) * c_in;
                        let sums = self.sums[at..].as_mut_ptr();
                        if vectors == 2 {
                            run_of_tiles::<P, V, 2>(&pixels, c_in, v, m, sums);
                        } else {
                            run_of_tiles::<P, V, 1>(&pixels, c_in, v, m, sums);
                        }
                    }
                }
            }
        }
    }
}

/// Column `j` of a tile. Element by element: `rows.map` copies each row to the stack before it picks one of it.
#[inline(always)]
fn column_of<V: Copy>(rows: &[Line<V>; 6], j: usize) -> Line<V> {
    [rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]]
}
