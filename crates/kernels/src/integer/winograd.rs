//! Exact 3x3 convolutions of stride 1 with 2.25 times fewer products (Winograd's F(2x2, 3x3); Lavin and Gray,
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
//! 6 bits. v is at most nine times as large as a weight, but rarely is. Whoever packs weights looks at what they are. Where exact products of 8
//! bits need words, AVX2's, both are words: those hold every u and v, without an offset.
//!
//! Each position is a product of matrices, tiles times channels. All positions of a few tiles and a block of channels are
//! computed one after the other, so that their products are in the first cache when they become outputs.

mod group;
mod transforms;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::Cell;
use std::ops::Range;

use self::group::{Group, Operands};
use self::transforms::{Places, outputs, to_bytes, to_words};
use super::dot::Kernel;
use super::weights::{Kind, LANES, QUAD, by_pairs, short_sums};
use crate::conv::ConvShape;

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
/// The same for products of words, which take twice as long.
const FEWEST_CHANNELS_WIDE: usize = 32;
/// Pixels of an output's side from which on few of the tiles' outputs are for nothing.
const SMALLEST_IMAGE: usize = 4;
/// Products that a 16-bit sum must hold for its widening to cost less than what is gained.
const FEWEST_SUMS: usize = 3;

/// Weights of all positions.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    weights: Weights,
    /// Takes the offset back: `[block][position][16 channels]`.
    start: Vec<i32>,
    /// Groups of four inputs.
    quads: usize,
}

/// Weights in the width that their kernel takes.
#[derive(Debug, Clone)]
enum Weights {
    /// `[block of 16 output channels][position][group of four inputs][16 channels][4 inputs]`.
    Bytes {
        weights: Vec<i8>,
        /// Per position, how many products of a pair of inputs a 16-bit sum can hold.
        short_sums: [usize; POSITIONS],
        /// 2L: what is added to transformed inputs.
        offset: u8,
    },
    /// `[block][position][pair of inputs][16 channels][2 inputs]`.
    Words(Vec<i16>),
}

/// Transformed inputs of a band, as wide as the weights: planes of all positions, and room behind them.
#[derive(Debug, Default)]
pub(super) struct Planes {
    bytes: Vec<u8>,
    words: Vec<i16>,
}

/// Where results go: accumulators of `size` (rows, columns) pixels, `stride` from pixel to pixel, of which `width` channels
/// are wanted.
pub(super) struct Output<'a> {
    pub acc: &'a mut [i32],
    pub size: [usize; 2],
    pub stride: usize,
    pub width: usize,
}

/// Whether this is a convolution with such products.
pub(super) fn applies(shape: &ConvShape) -> bool {
    shape.kernel == [3; 2] && shape.stride == [1; 2] && shape.dilation == [1; 2] && shape.groups == 1
}

/// Whether it may be faster than the direct products.
pub(super) fn may_pay(shape: &ConvShape, kernel: Kernel) -> bool {
    let fewest = if kernel.is_wide() { FEWEST_CHANNELS_WIDE } else { FEWEST_CHANNELS };
    applies(shape) && shape.c_in.min(shape.c_out) >= fewest && shape.out_h().min(shape.out_w()) >= SMALLEST_IMAGE
}

impl Winograd {
    /// Weights `w`, OIHW, for inputs up to `largest`; `None` if their transforms do not fit the kernel's operands, their
    /// sums the kernel, or outputs times four 32 bits.
    pub fn new(kernel: Kernel, shape: &ConvShape, w: &[i8], largest: u8) -> Option<Self> {
        let most = 4 * u32::from(largest);
        let taps = shape.kernel[0] * shape.kernel[1];
        let magnitudes = |w: &[i8]| w.iter().map(|w| i64::from(w.unsigned_abs())).sum();
        let longest: i64 = w.chunks_exact(shape.c_in * taps).map(magnitudes).max().unwrap_or(0);
        if !applies(shape) || i64::from(most) * longest > i32::MAX.into() {
            return None;
        }
        // Words need no offset, and hold every sum.
        let most = if kernel.is_wide() { None } else { Some(u8::try_from(most).ok()?) };
        let offset = most.map_or(0, |most| most / 2);
        let quads = shape.c_in.div_ceil(QUAD);
        let (blocks, len) = (shape.c_out.div_ceil(LANES), quads * QUAD * LANES);
        let mut weights = vec![0i16; blocks * POSITIONS * len];
        let mut start = vec![0i32; blocks * POSITIONS * LANES];
        let each = weights.chunks_exact_mut(POSITIONS * len).zip(start.chunks_exact_mut(POSITIONS * LANES));
        for (block, (weights, start)) in each.enumerate() {
            for quad in 0..quads {
                // A group at a time, so that what is written lies close together.
                let mut group = [[0i16; QUAD * LANES]; POSITIONS];
                for i in 0..QUAD * LANES {
                    let (c_out, c_in) = (block * LANES + i / QUAD, quad * QUAD + i % QUAD);
                    if c_out >= shape.c_out || c_in >= shape.c_in {
                        continue;
                    }
                    let v = transformed(&w[(c_out * shape.c_in + c_in) * taps..][..taps]);
                    for (position, v) in v.into_iter().enumerate() {
                        group[position][i] = v;
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
        let Some(most) = most else {
            return Some(Winograd { weights: Weights::Words(by_pairs(&weights)), start, quads });
        };
        let weights: Vec<i8> = weights.into_iter().map(|v| i8::try_from(v).ok()).collect::<Option<_>>()?;
        let mut room = [usize::MAX; POSITIONS];
        for (part, weights) in weights.chunks_exact(len).enumerate() {
            let room = &mut room[part % POSITIONS];
            *room = short_sums(Kind::Rows, weights, most).min(*room);
        }
        if !room.iter().all(|&sums| kernel.takes(sums)) {
            return None;
        }
        Some(Winograd { weights: Weights::Bytes { weights, short_sums: room, offset }, start, quads })
    }

    /// Whether it is expected to be faster than the direct products of a shape for which it [may](may_pay) be.
    pub fn pays(&self, kernel: Kernel) -> bool {
        match &self.weights {
            Weights::Bytes { short_sums, .. } => {
                kernel.has_vnni() || short_sums.iter().all(|&sums| sums >= FEWEST_SUMS)
            }
            Weights::Words(_) => true,
        }
    }

    /// Bytes of transformed inputs per byte of a strip.
    pub fn growth(&self) -> usize {
        match self.weights {
            Weights::Bytes { .. } => 4,
            Weights::Words(_) => 8,
        }
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        let weights = match &self.weights {
            Weights::Bytes { weights, .. } => weights.len(),
            Weights::Words(weights) => size_of_val(&weights[..]),
        };
        weights + self.start.len() * size_of::<i32>()
    }

    /// Transforms `rows` rows of `columns` tiles: `strip` holds two rows more than twice as many, of two pixels more than twice as many.
    pub fn transform(&self, strip: &[u8], c_in: usize, [rows, columns]: [usize; 2], planes: &mut Planes) {
        let row_len = (2 * columns + 2) * c_in;
        let four = |row: usize| &strip[2 * row * row_len..][..4 * row_len];
        let (step, plane) = (self.step(c_in), self.plane([rows, columns], c_in));
        let places = |row: usize| Places { plane, first: row * columns * step, step };
        let len = POSITIONS * plane;
        match &self.weights {
            Weights::Bytes { offset, .. } => {
                planes.bytes.resize(len + 4 * row_len, 0);
                let (planes, vertical) = planes.bytes.split_at_mut(len);
                (0..rows).for_each(|row| to_bytes(four(row), c_in, *offset, vertical, planes, places(row)));
            }
            Weights::Words(_) => {
                planes.words.resize(len + 4 * row_len, 0);
                let (planes, vertical) = planes.words.split_at_mut(len);
                (0..rows).for_each(|row| to_words(four(row), c_in, vertical, planes, places(row)));
            }
        }
    }

    /// Products of tiles, as [`transform`](Self::transform) made them of `c_in` channels, with some blocks of output channels. `start` is
    /// four times what accumulators start with, per channel of these blocks.
    pub fn run(
        &self,
        kernel: Kernel,
        planes: &Planes,
        c_in: usize,
        start: &[i32],
        blocks: Range<usize>,
        out: &mut Output<'_>,
    ) {
        match &self.weights {
            Weights::Bytes { weights, short_sums, .. } => {
                self.products(kernel, &planes.bytes, weights, short_sums, c_in, start, blocks, out);
            }
            Weights::Words(weights) => {
                self.products(kernel, &planes.words, weights, &[0; POSITIONS], c_in, start, blocks, out);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn products<X, W>(
        &self,
        kernel: Kernel,
        planes: &[X],
        weights: &[W],
        short_sums: &[usize; POSITIONS],
        c_in: usize,
        start: &[i32],
        blocks: Range<usize>,
        out: &mut Output<'_>,
    ) where
        for<'a> Group<'a, X, W>: Operands,
    {
        let tiles = out.size.map(|n| n.div_ceil(2));
        let (step, plane, count) = (self.step(c_in), self.plane(tiles, c_in), tiles[0] * tiles[1]);
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
                    weights: &weights[part.start * block_len..part.end * block_len],
                    start: own,
                    short_sums,
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
                let wanted = lanes.min(out.width - channel);
                outputs(products, lanes, tiles, out.size, wanted, &mut out.acc[channel..], out.stride);
                tile += group.tiles;
            }
        }
        PRODUCTS.set(products);
    }

    /// Elements from tile to tile in a plane.
    fn step(&self, c_in: usize) -> usize {
        let element = match self.weights {
            Weights::Bytes { .. } => size_of::<u8>(),
            Weights::Words(_) => size_of::<i16>(),
        };
        let step = c_in.next_multiple_of(QUAD);
        if (step * element).is_multiple_of(COLLIDING_BYTES) { step + LINE_BYTES / element } else { step }
    }

    /// Elements of a position, with room for the tiles that the last group has too many.
    fn plane(&self, [rows, columns]: [usize; 2], c_in: usize) -> usize {
        (rows * columns + MOST_TILES - 1) * self.step(c_in)
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

thread_local! {
    /// Kept from call to call.
    static PRODUCTS: Cell<Vec<i32>> = Cell::default();
}
