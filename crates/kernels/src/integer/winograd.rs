//! Exact 3x3 convolutions of stride 1 with 2.25 times fewer products, in 8-bit operands (Winograd's F(2x2, 3x3); Lavin and Gray,
//! arXiv 1509.09308).
//!
//! Along one axis, two neighbouring outputs y of four inputs d and three weights g take four products m = u · v:
//!
//! ```text
//! u = [d0 − d2, d1 + d2, d2 − d1, d1 − d3]      v = [g0, g0 + g1 + g2, g0 − g1 + g2, g2]
//! 2 y0 = 2 m0 + m1 + m2                         2 y1 = m1 − m2 − 2 m3
//! ```
//!
//! Along both axes these are 16 products per channel, a *position* each, for four outputs, which are a fourth of what comes out: without
//! a remainder, as every sum is exact. For codes up to L, u of both axes lies within ±2L, or from 0 to 4L at position (1, 1);
//! with 2L added elsewhere, which the start value of the accumulators takes back, all are unsigned and at most 4L: bytes for codes of up to
//! 6 bits. v is at most nine times as large as a weight, but rarely is. Whoever packs weights looks at what they are.
//!
//! Each position is a product of matrices, tiles times channels. All positions of a few tiles and a block of channels are
//! computed one after the other, so that their products are in the first cache when they become outputs.

use std::cell::Cell;
use std::ops::Range;

use super::dot::Kernel;
use super::weights::{Kind, LANES, QUAD, short_sums};
use crate::conv::ConvShape;
use crate::multiversion::multiversion;

/// Products per tile and channel.
const POSITIONS: usize = 16;
/// The position without an offset. Its product counts once in all four outputs.
const CENTRE: usize = 5;
/// Most tiles and blocks of channels at a time.
const MOST_TILES: usize = 6;
const MOST_BLOCKS: usize = 4;
/// Rows of so many bytes, or a multiple, fall on the same few sets of the first cache: a line more keeps them apart.
const COLLIDING_BYTES: usize = 512;
const LINE_BYTES: usize = 64;
/// Channels, of inputs and outputs, from which on fewer products pay for the transforms.
const FEWEST_CHANNELS: usize = 64;
/// Pixels of an output's side from which on few of the tiles' outputs are for nothing.
const SMALLEST_IMAGE: usize = 4;
/// Products that a 16-bit sum must hold for its widening to cost less than what is gained.
const FEWEST_SUMS: usize = 3;

/// Weights of all positions.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    /// `[block of 16 output channels][position][group of four inputs][16 channels][4 inputs]`.
    weights: Vec<i8>,
    /// Takes the offset back: `[block][position][16 channels]`.
    start: Vec<i32>,
    /// Per position, how many products of a pair of inputs a 16-bit sum can hold.
    short_sums: [usize; POSITIONS],
    /// Groups of four inputs.
    quads: usize,
    /// 2L: what is added to transformed inputs.
    offset: u8,
}

/// Whether this is a convolution with such products.
pub(super) fn applies(shape: &ConvShape) -> bool {
    shape.kernel == [3; 2] && shape.stride == [1; 2] && shape.dilation == [1; 2] && shape.groups == 1
}

/// Whether it may be faster than the direct products.
pub(super) fn may_pay(shape: &ConvShape) -> bool {
    applies(shape)
        && shape.c_in.min(shape.c_out) >= FEWEST_CHANNELS
        && shape.out_h().min(shape.out_w()) >= SMALLEST_IMAGE
}

impl Winograd {
    /// Weights `w`, OIHW, for inputs up to `largest`; `None` if their transforms do not fit bytes, their
    /// sums the kernel, or outputs times four 32 bits.
    pub fn new(kernel: Kernel, shape: &ConvShape, w: &[i8], largest: u8) -> Option<Self> {
        let most = largest.checked_mul(4)?;
        let taps = shape.kernel[0] * shape.kernel[1];
        let magnitudes = |w: &[i8]| w.iter().map(|w| i64::from(w.unsigned_abs())).sum();
        let longest: i64 = w.chunks_exact(shape.c_in * taps).map(magnitudes).max().unwrap_or(0);
        if !applies(shape) || i64::from(most) * longest > i32::MAX.into() {
            return None;
        }
        let quads = shape.c_in.div_ceil(QUAD);
        let (blocks, len, offset) = (shape.c_out.div_ceil(LANES), quads * QUAD * LANES, most / 2);
        let mut weights = vec![0i8; blocks * POSITIONS * len];
        let mut start = vec![0i32; blocks * POSITIONS * LANES];
        let each = weights.chunks_exact_mut(POSITIONS * len).zip(start.chunks_exact_mut(POSITIONS * LANES));
        for (block, (weights, start)) in each.enumerate() {
            for quad in 0..quads {
                // A group at a time, so that what is written lies close together.
                let mut group = [[0i8; QUAD * LANES]; POSITIONS];
                for i in 0..QUAD * LANES {
                    let (c_out, c_in) = (block * LANES + i / QUAD, quad * QUAD + i % QUAD);
                    if c_out >= shape.c_out || c_in >= shape.c_in {
                        continue;
                    }
                    let v = transformed(&w[(c_out * shape.c_in + c_in) * taps..][..taps]);
                    for (position, v) in v.into_iter().enumerate() {
                        group[position][i] = i8::try_from(v).ok()?;
                        if position != CENTRE {
                            start[position * LANES + i / QUAD] -= i32::from(offset) * i32::from(v);
                        }
                    }
                }
                for (weights, group) in weights.chunks_exact_mut(len).zip(&group) {
                    weights[quad * group.len()..][..group.len()].copy_from_slice(group);
                }
            }
        }
        let mut room = [usize::MAX; POSITIONS];
        for (part, weights) in weights.chunks_exact(len).enumerate() {
            let room = &mut room[part % POSITIONS];
            *room = short_sums(Kind::Rows, weights, most).min(*room);
        }
        if !room.iter().all(|&sums| kernel.takes(sums)) {
            return None;
        }
        Some(Winograd { weights, start, short_sums: room, quads, offset })
    }

    /// Whether it is expected to be faster than the direct products of a shape for which it [may](may_pay) be.
    pub fn pays(&self, kernel: Kernel) -> bool {
        kernel.has_vnni() || self.short_sums.iter().all(|&sums| sums >= FEWEST_SUMS)
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        self.weights.len() + self.start.len() * size_of::<i32>()
    }

    /// Transforms `rows` rows of `columns` tiles: `strip` holds two rows more than twice as many, of two pixels more than twice as many.
    /// Returns the planes of all positions, in `planes`.
    pub fn transform(&self, strip: &[u8], c_in: usize, [rows, columns]: [usize; 2], planes: &mut Vec<u8>) {
        let step = tile_bytes(c_in);
        let plane = plane_bytes([rows, columns], c_in);
        planes.resize(POSITIONS * plane, 0);
        let mut vertical = VERTICAL.take();
        let row_len = (2 * columns + 2) * c_in;
        vertical.resize(4 * row_len, 0);
        for row in 0..rows {
            let four = &strip[2 * row * row_len..][..4 * row_len];
            inputs(four, c_in, self.offset, &mut vertical, planes, plane, row * columns * step, step);
        }
        VERTICAL.set(vertical);
    }

    /// Products of tiles, as [`transform`](Self::transform) made them of `c_in` channels, with some blocks of output channels, to accumulators of
    /// `size` (rows, columns) pixels, `stride` from pixel to pixel. `start` is four times what accumulators start with, per
    /// channel of these blocks; `width` of them are wanted.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        kernel: Kernel,
        planes: &[u8],
        c_in: usize,
        start: &[i32],
        blocks: Range<usize>,
        size: [usize; 2],
        width: usize,
        acc: &mut [i32],
        stride: usize,
    ) {
        let tiles = size.map(|n| n.div_ceil(2));
        let (step, plane, count) = (tile_bytes(c_in), plane_bytes(tiles, c_in), tiles[0] * tiles[1]);
        let block_len = POSITIONS * self.quads * QUAD * LANES;
        let at_once = kernel.blocks_at_once().min(MOST_BLOCKS);
        let mut products = PRODUCTS.take();
        products.resize(POSITIONS * MOST_TILES * MOST_BLOCKS * LANES, 0);
        let mut own = [0; MOST_BLOCKS * POSITIONS * LANES];
        for first in blocks.clone().step_by(at_once) {
            let part = first..blocks.end.min(first + at_once);
            let lanes = part.len() * LANES;
            let channel = (first - blocks.start) * LANES;
            let own = &mut own[..POSITIONS * lanes];
            own.copy_from_slice(&self.start[POSITIONS * LANES * part.start..POSITIONS * LANES * part.end]);
            for (own, start) in own.chunks_exact_mut(POSITIONS * LANES).zip(start[channel..].chunks_exact(LANES)) {
                own[CENTRE * LANES..][..LANES].copy_from_slice(start);
            }
            let mut tile = 0;
            while tile < count {
                let group = Group {
                    planes,
                    plane,
                    first: tile * step,
                    step,
                    weights: &self.weights[part.start * block_len..part.end * block_len],
                    start: own,
                    short_sums: &self.short_sums,
                    quads: self.quads,
                    blocks: part.len(),
                    tiles: match count - tile {
                        1 | 2 => 2,
                        3 | 4 => 4,
                        _ => MOST_TILES,
                    },
                };
                let products = &mut products[..POSITIONS * group.tiles * lanes];
                group.run(kernel, products);
                let tiles = tile..count.min(tile + group.tiles);
                outputs(products, lanes, tiles, size, lanes.min(width - channel), &mut acc[channel..], stride);
                tile += group.tiles;
            }
        }
        PRODUCTS.set(products);
    }
}

/// v of nine weights along both axes.
#[inline]
fn transformed(g: &[i8]) -> [i16; POSITIONS] {
    let along = |a: i16, b: i16, c: i16| [a, a + b + c, a - b + c, c];
    let g = |i: usize| i16::from(g[i]);
    let columns = [0, 1, 2].map(|x| along(g(x), g(3 + x), g(6 + x)));
    let mut v = [0; POSITIONS];
    for (y, row) in v.chunks_exact_mut(4).enumerate() {
        row.copy_from_slice(&along(columns[0][y], columns[1][y], columns[2][y]));
    }
    v
}

/// Bytes from tile to tile in a plane.
fn tile_bytes(c_in: usize) -> usize {
    let bytes = c_in.next_multiple_of(QUAD);
    if bytes.is_multiple_of(COLLIDING_BYTES) { bytes + LINE_BYTES } else { bytes }
}

/// Bytes of a position, with room for the tiles that the last group has too many.
fn plane_bytes([rows, columns]: [usize; 2], c_in: usize) -> usize {
    (rows * columns + MOST_TILES - 1) * tile_bytes(c_in)
}

thread_local! {
    /// Kept from call to call.
    static PRODUCTS: Cell<Vec<i32>> = Cell::default();
    static VERTICAL: Cell<Vec<u8>> = Cell::default();
}

/// A few tiles times a few blocks of channels.
struct Group<'a> {
    planes: &'a [u8],
    /// Bytes from position to position, to the first tile, and from tile to tile.
    plane: usize,
    first: usize,
    step: usize,
    /// Of all blocks.
    weights: &'a [i8],
    start: &'a [i32],
    short_sums: &'a [usize; POSITIONS],
    quads: usize,
    blocks: usize,
    tiles: usize,
}

impl Group<'_> {
    /// Products `[position][tile][block][16 channels]`.
    ///
    /// # Panics
    /// If slices are shorter than the numbers say.
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        let last = (POSITIONS - 1) * self.plane + self.first + (self.tiles - 1) * self.step + self.quads * QUAD;
        assert!(last <= self.planes.len(), "a tile lies outside");
        assert!(self.weights.len() >= self.blocks * POSITIONS * self.quads * QUAD * LANES, "weights are missing");
        assert!(self.start.len() >= self.blocks * POSITIONS * LANES, "start values are missing");
        assert!(products.len() >= POSITIONS * self.tiles * self.blocks * LANES, "products have no room");
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => {
                macro_rules! sizes {
                    ($($tiles:literal $blocks:literal),*) => {
                        match (self.tiles, self.blocks) {
                            // SAFETY: whoever chose `Vnni` found its instructions; lengths were checked above.
                            $(($tiles, $blocks) => unsafe { x86::vnni::<$tiles, $blocks>(self, products) },)*
                            size => unreachable!("{size:?} tiles and blocks"),
                        }
                    };
                }
                sizes!(2 1, 2 2, 2 3, 2 4, 4 1, 4 2, 4 3, 4 4, 6 1, 6 2, 6 3, 6 4)
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Short => {
                assert!(self.blocks == 1 && self.short_sums.iter().all(|&sums| sums > 0), "sums are too short");
                // SAFETY: whoever chose `Short` found AVX2; lengths were checked above.
                unsafe {
                    match self.tiles {
                        2 => x86::short::<2>(self, products),
                        4 => x86::short::<4>(self, products),
                        _ => x86::short::<MOST_TILES>(self, products),
                    }
                }
            }
            _ => self.portable(products),
        }
    }

    fn portable(&self, products: &mut [i32]) {
        let lanes = self.blocks * LANES;
        for (number, products) in products.chunks_exact_mut(lanes).take(POSITIONS * self.tiles).enumerate() {
            let (position, tile) = (number / self.tiles, number % self.tiles);
            let input = &self.planes[position * self.plane + self.first + tile * self.step..][..self.quads * QUAD];
            for (block, sums) in products.chunks_exact_mut(LANES).enumerate() {
                let own = block * POSITIONS + position;
                sums.copy_from_slice(&self.start[own * LANES..][..LANES]);
                let weights = self.weights[own * self.quads * QUAD * LANES..].chunks_exact(QUAD * LANES);
                for (x, w) in input.chunks_exact(QUAD).zip(weights) {
                    for (sum, w) in sums.iter_mut().zip(w.chunks_exact(QUAD)) {
                        for (&x, &w) in x.iter().zip(w) {
                            *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::dot::x86::{PARTS, widen};
    use super::{Group, LANES, POSITIONS, QUAD};
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256, _mm256_maddubs_epi16,
        _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_storeu_si512,
    };

    /// One block, with `vpmaddubsw`; sums of 16 bits are widened before they could be full.
    ///
    /// # Safety
    /// AVX2 is available; `group` has `TILES` tiles and one block, `products` room for them, and slices are as long as
    /// [`Group::run`] asks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn short<const TILES: usize>(group: &Group<'_>, products: &mut [i32]) {
        let mut weights = group.weights.as_ptr();
        for position in 0..POSITIONS {
            let input = group.planes.as_ptr().wrapping_add(position * group.plane + group.first);
            let inputs: [*const u8; TILES] = std::array::from_fn(|m| input.wrapping_add(m * group.step));
            let to = products.as_mut_ptr().wrapping_add(position * TILES * LANES);
            let room = group.short_sums[position];
            let mut first = 0;
            while first < group.quads {
                let until = group.quads.min(first + room);
                let mut partial = [[_mm256_setzero_si256(); PARTS]; TILES];
                for at in (first * QUAD..until * QUAD).step_by(QUAD) {
                    // SAFETY: the caller promises 64 weights per position and group of four inputs.
                    let w: [__m256i; PARTS] =
                        std::array::from_fn(|part| unsafe { _mm256_loadu_si256(weights.add(part * 32).cast()) });
                    for m in 0..TILES {
                        // SAFETY: the caller promises that all inputs of all tiles lie within the planes.
                        let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                        for part in 0..PARTS {
                            partial[m][part] = _mm256_add_epi16(partial[m][part], _mm256_maddubs_epi16(x, w[part]));
                        }
                    }
                    weights = weights.wrapping_add(QUAD * LANES);
                }
                let start = group.start.as_ptr().wrapping_add(position * LANES);
                for m in 0..TILES {
                    for part in 0..PARTS {
                        let to = to.wrapping_add(m * LANES + part * 8);
                        // SAFETY: the caller promises 16 start values per position and 16 products per position and tile.
                        unsafe {
                            let base = if first == 0 { start.wrapping_add(part * 8) } else { to.cast_const() };
                            let sum = _mm256_add_epi32(_mm256_loadu_si256(base.cast()), widen(partial[m][part]));
                            _mm256_storeu_si256(to.cast(), sum);
                        }
                    }
                }
                first = until;
            }
        }
    }

    /// `BLOCKS` blocks, with `vpdpbusd`.
    ///
    /// # Safety
    /// As for [`short`], with `BLOCKS` blocks and the instructions named.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn vnni<const TILES: usize, const BLOCKS: usize>(group: &Group<'_>, products: &mut [i32]) {
        let block_len = POSITIONS * group.quads * QUAD * LANES;
        let mut weights = group.weights.as_ptr();
        for position in 0..POSITIONS {
            let input = group.planes.as_ptr().wrapping_add(position * group.plane + group.first);
            let inputs: [*const u8; TILES] = std::array::from_fn(|m| input.wrapping_add(m * group.step));
            let start: [__m512i; BLOCKS] = std::array::from_fn(|j| {
                // SAFETY: the caller promises 16 start values per block and position.
                unsafe { _mm512_loadu_si512(group.start.as_ptr().add((j * POSITIONS + position) * LANES).cast()) }
            });
            let mut sums = [start; TILES];
            for at in (0..group.quads * QUAD).step_by(QUAD) {
                // SAFETY: the caller promises 64 weights per block, position and group of four inputs.
                let w: [__m512i; BLOCKS] =
                    std::array::from_fn(|j| unsafe { _mm512_loadu_si512(weights.add(j * block_len).cast()) });
                for m in 0..TILES {
                    // SAFETY: the caller promises that all inputs of all tiles lie within the planes.
                    let x = _mm512_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for j in 0..BLOCKS {
                        sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], x, w[j]);
                    }
                }
                weights = weights.wrapping_add(QUAD * LANES);
            }
            let to = products.as_mut_ptr().wrapping_add(position * TILES * BLOCKS * LANES);
            for (m, row) in sums.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    // SAFETY: the caller promises 16 products per position, tile and block.
                    unsafe { _mm512_storeu_si512(to.add((m * BLOCKS + j) * LANES).cast(), sum) };
                }
            }
        }
    }
}

multiversion! {
    /// A row of tiles: along columns of pixels first, for all of them at once, then along each tile's rows.
    fn inputs(
        four: &[u8], c_in: usize, offset: u8, vertical: &mut [u8], planes: &mut [u8], plane: usize, first: usize, step: usize,
    ) {
        let row_len = four.len() / 4;
        {
            let (d0, rest) = four.split_at(row_len);
            let (d1, rest) = rest.split_at(row_len);
            let (d2, d3) = rest.split_at(row_len);
            let (u0, rest) = vertical.split_at_mut(row_len);
            let (u1, rest) = rest.split_at_mut(row_len);
            let (u2, u3) = rest.split_at_mut(row_len);
            let (d3, u3) = (&d3[..row_len], &mut u3[..row_len]);
            for i in 0..row_len {
                u0[i] = d0[i].wrapping_sub(d2[i]);
                u1[i] = d1[i].wrapping_add(d2[i]);
                u2[i] = d2[i].wrapping_sub(d1[i]);
                u3[i] = d1[i].wrapping_sub(d3[i]);
            }
        }
        for (y, vertical) in vertical.chunks_exact(row_len).enumerate() {
            let beside = if y == 1 { 0 } else { offset };
            let planes = &mut planes[4 * y * plane..][..4 * plane];
            for tile in 0..(row_len / c_in - 2) / 2 {
                let d = &vertical[2 * tile * c_in..][..4 * c_in];
                let to = first + tile * step;
                let mut c = 0;
                while c + 32 <= c_in {
                    along::<32>(d, c, c_in, offset, beside, planes, plane, to);
                    c += 32;
                }
                while c + 16 <= c_in {
                    along::<16>(d, c, c_in, offset, beside, planes, plane, to);
                    c += 16;
                }
                while c < c_in {
                    along::<1>(d, c, c_in, offset, beside, planes, plane, to);
                    c += 1;
                }
            }
        }
    }
}

/// `N` channels from `c` on of four neighbouring pixels to four positions.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn along<const N: usize>(
    d: &[u8],
    c: usize,
    c_in: usize,
    offset: u8,
    beside: u8,
    planes: &mut [u8],
    plane: usize,
    to: usize,
) {
    let (d0, d1) = (&d[c..c + N], &d[c_in + c..c_in + c + N]);
    let (d2, d3) = (&d[2 * c_in + c..2 * c_in + c + N], &d[3 * c_in + c..3 * c_in + c + N]);
    let to = to + c;
    let mut u = [[0u8; N]; 4];
    for i in 0..N {
        u[0][i] = d0[i].wrapping_sub(d2[i]).wrapping_add(offset);
        u[1][i] = d1[i].wrapping_add(d2[i]).wrapping_add(beside);
        u[2][i] = d2[i].wrapping_sub(d1[i]).wrapping_add(offset);
        u[3][i] = d1[i].wrapping_sub(d3[i]).wrapping_add(offset);
    }
    planes[to..to + N].copy_from_slice(&u[0]);
    planes[plane + to..plane + to + N].copy_from_slice(&u[1]);
    planes[2 * plane + to..2 * plane + to + N].copy_from_slice(&u[2]);
    planes[3 * plane + to..3 * plane + to + N].copy_from_slice(&u[3]);
}

/// Channels that are held in registers together.
const RUN: usize = 8;

multiversion! {
    /// Products `[position][tile][lanes]` of some tiles to accumulators of `width` channels of pixels.
    fn outputs(
        products: &[i32], lanes: usize, tiles: Range<usize>, size: [usize; 2], width: usize, acc: &mut [i32], stride: usize,
    ) {
        let [rows, columns] = size;
        let plane = products.len() / POSITIONS;
        let across = columns.div_ceil(2);
        for (from, tile) in tiles.enumerate() {
            let (row, column) = (tile / across * 2, tile % across * 2);
            let pixel = (row * columns + column) * stride;
            let (is_low, is_right) = (row + 1 < rows, column + 1 < columns);
            for c in (0..width).step_by(RUN) {
                let m = &products[from * lanes + c..][..15 * plane + RUN];
                let along_columns = [column_sums(m, plane, 0), column_sums(m, plane, 1), column_sums(m, plane, 2), column_sums(m, plane, 3)];
                let n = RUN.min(width - c);
                for y in 0..1 + usize::from(is_low) {
                    let e = [&along_columns[0][y], &along_columns[1][y], &along_columns[2][y], &along_columns[3][y]];
                    let sums = two(e[0], e[1], e[2], e[3]);
                    for x in 0..1 + usize::from(is_right) {
                        let to = &mut acc[pixel + (y * columns + x) * stride + c..][..n];
                        let mut quarter = sums[x];
                        for v in &mut quarter {
                            *v >>= 2;
                        }
                        if let Ok(to) = <&mut [i32; RUN]>::try_from(&mut *to) {
                            *to = quarter;
                        } else {
                            to.copy_from_slice(&quarter[..n]);
                        }
                    }
                }
            }
        }
    }
}

/// Along the tile's column `x`.
#[inline(always)]
fn column_sums(m: &[i32], plane: usize, x: usize) -> [[i32; RUN]; 2] {
    two(run(m, x * plane), run(m, (4 + x) * plane), run(m, (8 + x) * plane), run(m, (12 + x) * plane))
}

#[inline(always)]
fn run(m: &[i32], at: usize) -> &[i32; RUN] {
    match m[at..at + RUN].try_into() {
        Ok(run) => run,
        Err(_) => &[0; RUN],
    }
}

/// Twice the outputs of four products along an axis.
#[inline(always)]
fn two(m0: &[i32; RUN], m1: &[i32; RUN], m2: &[i32; RUN], m3: &[i32; RUN]) -> [[i32; RUN]; 2] {
    let mut y = [[0; RUN]; 2];
    for i in 0..RUN {
        y[0][i] = m0[i].wrapping_add(m0[i]).wrapping_add(m1[i]).wrapping_add(m2[i]);
    }
    for i in 0..RUN {
        y[1][i] = m1[i].wrapping_sub(m2[i]).wrapping_sub(m3[i]).wrapping_sub(m3[i]);
    }
    y
}
