//! 3x3 convolutions of stride 1 with 2.25 times fewer multiplications (Winograd's F(2x2, 3x3); Lavin and Gray, arXiv
//! 1509.09308), forward, input gradient and weight gradient.
//!
//! A tile is 2x2 outputs `y` and the 4x4 inputs `d` under them. With
//!
//! ```text
//!        | 1  0 -1  0 |        | 1    0    0  |
//!   Bᵀ = | 0  1  1  0 |    G = | 1/2  1/2 1/2 |    Aᵀ = | 1  1  1  0 |
//!        | 0 -1  1  0 |        | 1/2 -1/2 1/2 |         | 0  1 -1 -1 |
//!        | 0  1  0 -1 |        | 0    0    1  |
//!
//!   v = Bᵀ d B      u = G w Gᵀ      m = Σ over channels of v ⊙ u      y = Aᵀ m A
//!   gradient of w:                  dm = A dy Aᵀ,  du = Σ over tiles of v ⊙ dm,  dw = Gᵀ du G
//! ```
//!
//! each of the 16 positions is a matrix product, done by the register tiles of the direct loops: tiles take the place of
//! pixels. The input gradient is a forward convolution of `dy` with the weight turned by 180 degrees.
//!
//! Rounding: the transforms add and subtract neighbours, which costs up to two bits against the direct sum in the worst
//! case; the error stays below `81 c (c + 12) u max|x| max|w|` for `c` summed channels (3² from Aᵀ, 2² from Bᵀ, 1.5² from
//! G, as products of the row sums), which is also the worst case of a direct sum of `9 c` products.
//! Measured on 32 channels of 16x16, root mean square: forward 0.7 times the error of the direct sum (it is shorter), weight
//! gradient 1.8 times.
//!
//! A block of tiles is transformed, multiplied and transformed back while it is in the second-level cache.
//! Layouts: `v [position][tile][channel]`, `m [position][tile][channel]`, `u [position][block][channel][Q * lanes]`.

use super::ConvShape;
use super::dense::{Direction, Init, Tile, row_of_tiles};
use super::weight_grad::{Pixels, run_of_tiles};
use crate::buffer::{Purpose, with_scratch};
use crate::isa::Isa;
use crate::simd::{Kernel, Vector, dispatch};
use crate::threads;
use std::ops::Range;

/// Positions of a tile.
const POSITIONS: usize = 16;

/// Vectors of output channels per register tile, as in the direct loops.
const BLOCK: usize = 2;

/// Elements of `v` and `m` together that a block of tiles may take.
const BLOCK_ELEMENTS: usize = 32 * 1024;

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
}

impl Geometry {
    fn new(s: &ConvShape, direction: Direction) -> Geometry {
        let input = [s.in_h, s.in_w, s.c_in];
        let output = [s.out_h(), s.out_w(), s.c_out];
        let (source, out, top, left) = match direction {
            Direction::Forward => (input, output, s.pads[0], s.pads[1]),
            Direction::InputGradient => (output, input, 2 - s.pads[0], 2 - s.pads[1]),
        };
        let tiles = [out[0].div_ceil(2), out[1].div_ceil(2)];
        // Many channels: the weight of a position streams from afar, and more tiles must share it.
        let fewest = if s.c_in * s.c_out >= MANY { 64 } else { 16 };
        let block = (BLOCK_ELEMENTS / (POSITIONS * (source[2] + out[2]))).clamp(fewest, 64).next_multiple_of(8);
        Geometry { batch: s.batch, source, out, top, left, tiles, block }
    }

    /// Rows of tiles in the batch: the unit that threads share.
    fn rows(&self) -> usize {
        self.batch * self.tiles[0]
    }

    /// Where the outputs of a row of tiles begin.
    fn out_offset(&self, row: usize) -> usize {
        let [height, width, channels] = self.out;
        (row / self.tiles[0] * height + (row % self.tiles[0] * 2).min(height)) * width * channels
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
pub(super) fn run(
    isa: Isa,
    (shape, direction): (&ConvShape, Direction),
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let geometry = &Geometry::new(shape, direction);
    let (c_in, c_out) = (geometry.source[2], geometry.out[2]);
    let cuts: Vec<_> = threads::ranges(geometry.rows(), rayon::current_num_threads()).collect();
    with_scratch(Purpose::Weights, POSITIONS * c_in * c_out, |u| {
        dispatch(isa, TransformWeight { shape, direction, w, u });
        let u = &*u;
        threads::for_each_cut(
            out,
            &cuts,
            |row| geometry.out_offset(row),
            |rows, out| {
                with_scratch(Purpose::Source, POSITIONS * geometry.position(c_in) + c_in, |v| {
                    with_scratch(Purpose::Gradient, POSITIONS * geometry.position(c_out), |m| {
                        dispatch(isa, Correlate { geometry, source, u, bias, rows, out, v, m });
                    });
                });
            },
        );
    });
}

/// `u = G w Gᵀ` for all pairs of channels, in the layout of the direct loops' packed weights.
struct TransformWeight<'a> {
    shape: &'a ConvShape,
    direction: Direction,
    w: &'a [f32],
    u: &'a mut [f32],
}

impl Kernel for TransformWeight<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (c_in, c_out) = (self.shape.c_in, self.shape.c_out);
        // Elements of `w` from one summed and from one produced channel to the next.
        let (summed, produced, sum_stride, out_stride) = match self.direction {
            Direction::Forward => (c_in, c_out, 9, c_in * 9),
            Direction::InputGradient => (c_out, c_in, c_in * 9, 9),
        };
        let turned = self.direction == Direction::InputGradient;
        assert!(self.w.len() == 9 * c_in * c_out && self.u.len() == POSITIONS * c_in * c_out);
        for first in (0..produced).step_by(V::LANES) {
            let block = first / (BLOCK * V::LANES);
            let width = (produced - block * BLOCK * V::LANES).min(BLOCK * V::LANES);
            for channel in 0..summed {
                let mut taps = [[0.0_f32; 16]; 9];
                let kernels = self.w[channel * sum_stride + first * out_stride..].chunks(out_stride);
                for (lane, kernel) in kernels.take(V::LANES).enumerate() {
                    for (tap, &w) in kernel[..9].iter().enumerate() {
                        taps[if turned { 8 - tap } else { tap }][lane] = w;
                    }
                }
                let at = block * BLOCK * V::LANES * summed + channel * width + first % (BLOCK * V::LANES);
                // SAFETY: each row of `taps` holds a vector; `at` plus a vector lies inside each position of `u`, which
                // has `summed * produced` elements. The caller promises the instruction set.
                unsafe {
                    let mut rows = [[V::zero(); 3]; 4];
                    for column in 0..3 {
                        let g = |row: usize| V::load(taps[row * 3 + column].as_ptr());
                        let transformed = weight_1d(g(0), g(1), g(2));
                        for (row, value) in rows.iter_mut().zip(&transformed) {
                            row[column] = *value;
                        }
                    }
                    for (i, row) in rows.iter().enumerate() {
                        for (j, value) in weight_1d(row[0], row[1], row[2]).iter().enumerate() {
                            value.store(self.u[(i * 4 + j) * summed * produced + at..].as_mut_ptr());
                        }
                    }
                }
            }
        }
    }
}

/// `G g`
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn weight_1d<V: Vector>(a: V, b: V, c: V) -> [V; 4] {
    // SAFETY: register arithmetic; the function's contract.
    unsafe {
        let half = V::splat(0.5);
        let outer = a.add(c);
        [a, outer.add(b).mul(half), outer.sub(b).mul(half), c]
    }
}

/// The outputs of some rows of tiles.
struct Correlate<'a> {
    geometry: &'a Geometry,
    source: &'a [f32],
    u: &'a [f32],
    bias: Option<&'a [f32]>,
    rows: Range<usize>,
    out: &'a mut [f32],
    /// Room for `v`, and one pixel of zeros behind it.
    v: &'a mut [f32],
    m: &'a mut [f32],
}

impl Kernel for Correlate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let g = self.geometry;
        let (c_in, c_out) = (g.source[2], g.out[2]);
        let start = g.out_offset(self.rows.start);
        let all = self.rows.start * g.tiles[1]..self.rows.end * g.tiles[1];
        let (v, zeros) = self.v.split_at_mut(POSITIONS * g.position(c_in));
        zeros.fill(0.0);
        for first in all.clone().step_by(g.block) {
            let tiles = first..(first + g.block).min(all.end);
            // SAFETY: the caller promises the instruction set; `v` and `m` hold `block` tiles at every position, `u` is
            // packed as `row_of_tiles` expects, and the assertions of the callees bound the rest.
            unsafe {
                transform_source::<V>(g, self.source, zeros, &tiles, v);
                for position in 0..POSITIONS {
                    let from = v[position * g.position(c_in)..].as_ptr();
                    for channel in (0..c_out).step_by(BLOCK * V::LANES) {
                        let vectors = ((c_out - channel) / V::LANES).min(BLOCK);
                        let tile = Tile {
                            runs: &[0],
                            run_len: c_in,
                            source_step: c_in,
                            weights: self.u[(position * c_out + channel) * c_in..].as_ptr(),
                            init: Init::Zero,
                            out_step: c_out,
                            last_lanes: V::LANES,
                        };
                        let to = self.m[position * g.position(c_out) + channel..].as_mut_ptr();
                        if vectors == 2 {
                            row_of_tiles::<V, 2>(&tile, tiles.len(), from, to);
                        } else {
                            row_of_tiles::<V, 1>(&tile, tiles.len(), from, to);
                        }
                    }
                }
                transform_back::<V>(g, self.m, self.bias, &tiles, &mut self.out[..], start);
            }
        }
    }
}

/// `v = Bᵀ d B` of all channels of some tiles.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels of the source are whole vectors, `zeros` is one pixel, and `v`
/// holds `tiles` at each position.
#[inline(always)]
unsafe fn transform_source<V: Vector>(
    g: &Geometry,
    source: &[f32],
    zeros: &[f32],
    tiles: &Range<usize>,
    v: &mut [f32],
) {
    let [height, width, channels] = g.source;
    let position = g.position(channels);
    assert!(source.len() == g.batch * height * width * channels && zeros.len() == channels);
    assert!(v.len() >= POSITIONS * position && tiles.len() <= g.block);
    for (number, tile) in tiles.clone().enumerate() {
        let [image, row, column] = g.tile(tile);
        // The pixels under the tile; those outside the source are the pixel of zeros.
        let mut pixels = [[zeros.as_ptr(); 4]; 4];
        for (i, pixels) in pixels.iter_mut().enumerate() {
            let Some(y) = (row * 2 + i).checked_sub(g.top).filter(|&y| y < height) else { continue };
            for (j, pixel) in pixels.iter_mut().enumerate() {
                let Some(x) = (column * 2 + j).checked_sub(g.left).filter(|&x| x < width) else { continue };
                *pixel = source[((image * height + y) * width + x) * channels..].as_ptr();
            }
        }
        for channel in (0..channels).step_by(V::LANES) {
            // SAFETY: every pixel has `channels` elements; `v` has room as asserted. The function's contract.
            unsafe {
                let mut rows = [[V::zero(); 4]; 4];
                for (row, pixels) in rows.iter_mut().zip(&pixels) {
                    let d = |j: usize| V::load(pixels[j].add(channel));
                    *row = source_1d(d(0), d(1), d(2), d(3));
                }
                let to = v.as_mut_ptr().add(number * channels + channel);
                // Column by column; the compiler keeps all of it in registers.
                for (j, to) in (0..4).map(|j| (j, to.add(j * position))) {
                    let done = source_1d(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
                    for (i, value) in done.iter().enumerate() {
                        value.store(to.add(i * 4 * position));
                    }
                }
            }
        }
    }
}

/// `Bᵀ d`
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn source_1d<V: Vector>(a: V, b: V, c: V, d: V) -> [V; 4] {
    // SAFETY: register arithmetic; the function's contract.
    unsafe { [a.sub(c), b.add(c), c.sub(b), b.sub(d)] }
}

/// `y = Aᵀ m A + bias` of all channels of some tiles; `out` begins at element `start` of the whole output.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels of the output are whole vectors.
#[inline(always)]
unsafe fn transform_back<V: Vector>(
    g: &Geometry,
    m: &[f32],
    bias: Option<&[f32]>,
    tiles: &Range<usize>,
    out: &mut [f32],
    start: usize,
) {
    let [height, width, channels] = g.out;
    let position = g.position(channels);
    assert!(m.len() >= POSITIONS * position && bias.is_none_or(|b| b.len() == channels));
    for (number, tile) in tiles.clone().enumerate() {
        let [image, row, column] = g.tile(tile);
        let corner = ((image * height + row * 2) * width + column * 2) * channels - start;
        // The second row or column of a last tile may lie outside.
        let rows = (height - row * 2).min(2);
        let columns = (width - column * 2).min(2);
        let out = &mut out[corner..];
        assert!(((rows - 1) * width + columns) * channels <= out.len());
        for channel in (0..channels).step_by(V::LANES) {
            // SAFETY: the assertions above; the function's contract.
            unsafe {
                let from = m.as_ptr().add(number * channels + channel);
                let start = match bias {
                    Some(bias) => V::load(bias.as_ptr().add(channel)),
                    None => V::zero(),
                };
                let mut half = [[V::zero(); 2]; 4];
                for (i, half) in half.iter_mut().enumerate() {
                    let m = |j: usize| V::load(from.add((i * 4 + j) * position));
                    *half = out_1d(m(0), m(1), m(2), m(3));
                }
                let to = out.as_mut_ptr().add(channel);
                for (j, to) in (0..columns).map(|j| (j, to.add(j * channels))) {
                    let done = out_1d(half[0][j], half[1][j], half[2][j], half[3][j]);
                    for (i, value) in done.iter().enumerate().take(rows) {
                        value.add(start).store(to.add(i * width * channels));
                    }
                }
            }
        }
    }
}

/// `Aᵀ m`
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn out_1d<V: Vector>(a: V, b: V, c: V, d: V) -> [V; 2] {
    // SAFETY: register arithmetic; the function's contract.
    unsafe { [a.add(b).add(c), b.sub(c).sub(d)] }
}

/// The weight gradient; writes all of `dw`.
pub(super) fn weight_gradient(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let geometry = &Geometry::new(shape, Direction::Forward);
    let (c_in, c_out) = (shape.c_in, shape.c_out);
    let len = POSITIONS * c_in * c_out;
    let cuts: Vec<_> = threads::ranges(geometry.rows(), rayon::current_num_threads()).collect();
    with_scratch(Purpose::Sums, len * cuts.len(), |sums| {
        sums.fill(0.0);
        threads::for_each_cut(
            sums,
            &cuts,
            |row| threads::part_of(&cuts, row) * len,
            |rows, sums| {
                with_scratch(Purpose::Source, POSITIONS * geometry.position(c_in) + c_in, |v| {
                    with_scratch(Purpose::Gradient, POSITIONS * geometry.position(c_out), |m| {
                        dispatch(isa, Gradient { geometry, x, dy, rows, sums, v, m });
                    });
                });
            },
        );
        let (total, others) = sums.split_at_mut(len);
        for other in others.chunks_exact(len) {
            total.iter_mut().zip(other).for_each(|(t, &o)| *t += o);
        }
        // dw = Gᵀ du G, position by position of the sums' layout, into taps of the direct layout in the first 9 positions.
        let pairs = c_in * c_out;
        for i in 0..pairs {
            let du = |row: usize, column: usize| total[(row * 4 + column) * pairs + i];
            let mut half = [[0.0_f32; 4]; 3];
            for column in 0..4 {
                let done = gradient_1d(du(0, column), du(1, column), du(2, column), du(3, column));
                for (half, value) in half.iter_mut().zip(done) {
                    half[column] = value;
                }
            }
            for (row, half) in half.iter().enumerate() {
                for (column, value) in gradient_1d(half[0], half[1], half[2], half[3]).into_iter().enumerate() {
                    total[(row * 3 + column) * pairs + i] = value;
                }
            }
        }
        let lanes = isa.lanes();
        for (co, dw) in dw.chunks_exact_mut(c_in * 9).enumerate() {
            let first = co - co % (BLOCK * lanes);
            let width = (c_out - first).min(BLOCK * lanes);
            for (ci, kernel) in dw.chunks_exact_mut(9).enumerate() {
                let at = first * c_in + ci * width + (co - first);
                kernel.iter_mut().zip(total[at..].iter().step_by(pairs)).for_each(|(to, &from)| *to = from);
            }
        }
    });
}

/// `Gᵀ u`
fn gradient_1d(a: f32, b: f32, c: f32, d: f32) -> [f32; 3] {
    let (sum, difference) = (0.5 * (b + c), 0.5 * (b - c));
    [a + sum, difference, sum + d]
}

/// `du` of some rows of tiles, added to `sums` in the layout of `u`.
struct Gradient<'a> {
    geometry: &'a Geometry,
    x: &'a [f32],
    dy: &'a [f32],
    rows: Range<usize>,
    sums: &'a mut [f32],
    v: &'a mut [f32],
    m: &'a mut [f32],
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let g = self.geometry;
        let (c_in, c_out) = (g.source[2], g.out[2]);
        let all = self.rows.start * g.tiles[1]..self.rows.end * g.tiles[1];
        let (v, zeros) = self.v.split_at_mut(POSITIONS * g.position(c_in));
        zeros.fill(0.0);
        assert!(self.sums.len() == POSITIONS * c_in * c_out);
        for first in all.clone().step_by(g.block) {
            let tiles = first..(first + g.block).min(all.end);
            let pixels = Pixels { rows: 1, columns: tiles.len(), x_row: 0, x_step: c_in, dy_step: c_out };
            // SAFETY: the caller promises the instruction set; `v` and `m` hold `block` tiles at every position, and the
            // sums of a block of vectors are `c_in` rows of its width.
            unsafe {
                transform_source::<V>(g, self.x, zeros, &tiles, v);
                transform_gradient::<V>(g, self.dy, &tiles, self.m);
                for position in 0..POSITIONS {
                    let v = v[position * g.position(c_in)..].as_ptr();
                    for channel in (0..c_out).step_by(BLOCK * V::LANES) {
                        let m = self.m[position * g.position(c_out) + channel..].as_ptr();
                        let sums = self.sums[(position * c_out + channel) * c_in..].as_mut_ptr();
                        if (c_out - channel) / V::LANES >= 2 {
                            run_of_tiles::<V, 2>(&pixels, c_in, v, m, sums);
                        } else {
                            run_of_tiles::<V, 1>(&pixels, c_in, v, m, sums);
                        }
                    }
                }
            }
        }
    }
}

/// `dm = A dy Aᵀ` of all channels of some tiles.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels of the output are whole vectors.
#[inline(always)]
unsafe fn transform_gradient<V: Vector>(g: &Geometry, dy: &[f32], tiles: &Range<usize>, m: &mut [f32]) {
    let [height, width, channels] = g.out;
    let position = g.position(channels);
    assert!(dy.len() == g.batch * height * width * channels);
    assert!(m.len() >= POSITIONS * position && tiles.len() <= g.block);
    for (number, tile) in tiles.clone().enumerate() {
        let [image, row, column] = g.tile(tile);
        let corner = &dy[((image * height + row * 2) * width + column * 2) * channels..];
        let rows = (height - row * 2).min(2);
        let columns = (width - column * 2).min(2);
        assert!(((rows - 1) * width + columns) * channels <= corner.len());
        for channel in (0..channels).step_by(V::LANES) {
            // SAFETY: the assertions above; the function's contract.
            unsafe {
                // Outputs outside the image have no gradient.
                let mut d = [[V::zero(); 2]; 2];
                for (i, d) in d.iter_mut().enumerate().take(rows) {
                    for (j, d) in d.iter_mut().enumerate().take(columns) {
                        *d = V::load(corner.as_ptr().add((i * width + j) * channels + channel));
                    }
                }
                let halves = [spread_1d(d[0][0], d[1][0]), spread_1d(d[0][1], d[1][1])];
                let to = m.as_mut_ptr().add(number * channels + channel);
                for (i, (&a, &b)) in halves[0].iter().zip(&halves[1]).enumerate() {
                    for (j, value) in spread_1d(a, b).iter().enumerate() {
                        value.store(to.add((i * 4 + j) * position));
                    }
                }
            }
        }
    }
}

/// `A y`
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn spread_1d<V: Vector>(a: V, b: V) -> [V; 4] {
    // SAFETY: register arithmetic; the function's contract.
    unsafe { [a, a.add(b), a.sub(b), V::zero().sub(b)] }
}
