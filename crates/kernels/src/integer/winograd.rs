//! Exact 3x3 convolutions of stride 1 with 2.25 or 4 times fewer products (Winograd's F(2x2, 3x3) and F(4x4, 3x3); Lavin and Gray,
//! arXiv 1509.09308).
//!
//! Along one axis, neighbouring outputs y of a window of inputs d and three weights g take as many products m = u · v as the window has
//! inputs. Fractions are left out of v and made up for in y:
//!
//! ```text
//! two outputs:   u = [d0 − d2, d1 + d2, d2 − d1, d1 − d3]      v = [g0, g0 + g1 + g2, g0 − g1 + g2, g2]
//!                2 y0 = 2 m0 + m1 + m2                         2 y1 = m1 − m2 − 2 m3
//! four outputs:  u = [4 d0 − 5 d2 + d4, 4 d1 + 4 d2 − d3 − d4, −4 d1 + 4 d2 + d3 − d4,
//!                     −2 d1 − d2 + 2 d3 + d4, 2 d1 − d2 − 2 d3 + d4, 4 d1 − 5 d3 + d5]
//!                v = [g0, g0 + g1 + g2, g0 − g1 + g2, g0 + 2 g1 + 4 g2, g0 − 2 g1 + 4 g2, g2]
//!                24 y0 = 6 m0 + 4 m1 + 4 m2 + m3 + m4          24 y1 = 4 m1 − 4 m2 + 2 m3 − 2 m4
//!                24 y2 = 4 m1 + 4 m2 + 4 m3 + 4 m4             24 y3 = 4 m1 − 4 m2 + 8 m3 − 8 m4 + 24 m5
//! ```
//!
//! Along both axes these are 16 (36) products per channel, a *position* each, for 4 (16) outputs, which come out 4 (576) times as large:
//! divided without a remainder, as every sum is exact. 576 = 9 · 64, and the ninth is taken modulo 2^32, so that only 64 times an output has
//! to fit.
//!
//! | form | operands | where |
//! |---|---|---|
//! | [`Form::Bytes`] | u of two outputs lies within ±2L for codes up to L, or from 0 to 4L at position (1, 1); 2L is added elsewhere, which the start value of the accumulators takes back: unsigned bytes for codes of up to 6 bits. v is at most nine times as large as a weight, but rarely is: whoever packs looks at the weights | bytes are multiplied |
//! | [`Form::Words`] | every u and v fits: 4 · 255 and 9 · 128, or 100 · 255 and 49 · 128 | words are, because AVX2 multiplies 8 bits exactly only so; and where bytes do not fit |
//!
//! Each position is a product of matrices, tiles times channels. All positions of a few tiles and a block of channels are
//! computed one after the other, so that their products are in the first cache when they become outputs.

mod group;
#[cfg(any(target_arch = "aarch64", test))]
mod neon;
mod transforms;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::Cell;
use std::ops::Range;

use self::group::{Group, Operands};
use self::transforms::{Places, outputs, to_bytes, to_words, to_words_of_four};
use super::conv::{COLLIDING_BYTES, LINE_BYTES, room};
use super::dot::Kernel;
use super::weights::{GROUP, Kind, LANES, QUAD, by_pairs, short_sums};
use crate::conv::ConvShape;
use crate::threads;

/// Most products per tile and channel.
const MOST_POSITIONS: usize = 36;
/// Most tiles at a time.
const MOST_TILES: usize = 6;
/// Channels, of inputs and outputs, from which on fewer products pay for the transforms.
const FEWEST_CHANNELS: usize = 64;
/// The same where words are multiplied directly as well: by 4x4 tiles, and by 2x2.
const FEWEST_CHANNELS_OF_WORDS: [usize; 2] = [16, 32];
/// Pixels of an output's side from which on few of the tiles' outputs are for nothing.
const SMALLEST_IMAGE: usize = 4;
/// Products that a 16-bit sum must hold for bytes to be faster than words.
const FEWEST_SUMS: usize = 4;
/// Words beside VNNI's direct products, whose weights are an eighth as large: what is gained by fewer products is soon lost by reading
/// weights. Layers of 512 channels on 7x7 pixels, for one, took twice as long.
const MOST_BYTES_OF_WORDS: usize = 2 << 20;

/// How many outputs a tile has along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Two,
    Four,
}

impl Size {
    /// Outputs along an axis.
    pub fn outputs(self) -> usize {
        match self {
            Size::Two => 2,
            Size::Four => 4,
        }
    }

    /// Inputs along an axis.
    pub fn window(self) -> usize {
        self.outputs() + 2
    }

    fn positions(self) -> usize {
        self.window() * self.window()
    }

    /// Position (1, 1), whose product counts alike in all outputs.
    fn centre(self) -> usize {
        self.window() + 1
    }

    /// What a number must be multiplied with to be added to all outputs at the centre.
    pub fn times(self) -> i32 {
        match self {
            Size::Two => 4,
            Size::Four => 36,
        }
    }

    /// How many times an output must fit 32 bits.
    fn multiple(self) -> i64 {
        match self {
            Size::Two => 4,
            Size::Four => 64,
        }
    }

    /// v along an axis.
    #[inline(always)]
    fn along(self, [a, b, c]: [&[i16; GROUP]; 3]) -> [[i16; GROUP]; 6] {
        let mut v = [[0; GROUP]; 6];
        for i in 0..GROUP {
            let (a, b, c) = (a[i], b[i], c[i]);
            v[0][i] = a;
            v[1][i] = a + b + c;
            v[2][i] = a - b + c;
            match self {
                Size::Two => v[3][i] = c,
                Size::Four => {
                    v[3][i] = a + 2 * b + 4 * c;
                    v[4][i] = a - 2 * b + 4 * c;
                    v[5][i] = c;
                }
            }
        }
        v
    }

    /// v of many times nine weights along both axes, by position.
    fn transformed(self, g: &[[i16; GROUP]; 9]) -> [[i16; GROUP]; MOST_POSITIONS] {
        let columns = [0, 1, 2].map(|x| self.along([&g[x], &g[3 + x], &g[6 + x]]));
        let mut v = [[0; GROUP]; MOST_POSITIONS];
        let window = self.window();
        for (y, row) in v.chunks_exact_mut(window).take(window).enumerate() {
            row.copy_from_slice(&self.along([&columns[0][y], &columns[1][y], &columns[2][y]])[..window]);
        }
        v
    }
}

/// The operands of products, and what they are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// 2x2 tiles.
    Bytes,
    Words(Size),
}

impl Form {
    #[cfg(test)]
    pub const ALL: [Form; 3] = [Form::Bytes, Form::Words(Size::Two), Form::Words(Size::Four)];

    pub fn size(self) -> Size {
        match self {
            Form::Bytes => Size::Two,
            Form::Words(size) => size,
        }
    }

    /// Bytes of an operand.
    fn width(self) -> usize {
        match self {
            Form::Bytes => 1,
            Form::Words(_) => 2,
        }
    }
}

/// Weights of all positions.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    form: Form,
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
        short_sums: Vec<usize>,
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

/// Calls `make(block, starts, room, weights)` for all blocks of output channels, in parallel; `room` has as many elements as a block's
/// weights. `None` if a call says so.
fn by_blocks<T: Send, R: Send>(
    blocks: usize,
    start: &mut [i32],
    weights: &mut [T],
    make: impl Fn(usize, &mut [i32], &mut [i16], &mut [T]) -> Option<R> + Sync + Send,
) -> Option<Vec<R>> {
    let (starts, len) = (start.len() / blocks.max(1), weights.len() / blocks.max(1));
    let per_part = blocks.div_ceil(threads::parts_for(weights.len())).max(1);
    let parts = start.chunks_mut((per_part * starts).max(1)).zip(weights.chunks_mut((per_part * len).max(1)));
    let part = |(part, (start, weights)): (usize, (&mut [i32], &mut [T]))| {
        // A block at a time: all of a wide layer's would take twice the memory of its weights.
        let mut room = vec![0i16; len];
        let each = start.chunks_exact_mut(starts.max(1)).zip(weights.chunks_exact_mut(len.max(1)));
        each.enumerate().map(|(i, (start, weights))| make(part * per_part + i, start, &mut room, weights)).collect()
    };
    let parts: Vec<Option<Vec<R>>> = threads::map_jobs(parts.enumerate().collect(), part);
    let parts: Vec<Vec<R>> = parts.into_iter().collect::<Option<_>>()?;
    Some(parts.into_iter().flatten().collect())
}

/// The transformed weights of a block, `[position][group of four inputs][16 channels][4 inputs]`.
fn transformed_block(size: Size, shape: &ConvShape, w: &[i8], block: usize, out: &mut [i16]) {
    let (taps, positions) = (shape.kernel[0] * shape.kernel[1], size.positions());
    let quads = shape.c_in.div_ceil(QUAD);
    for quad in 0..quads {
        // A group at a time, so that what is written lies close together.
        let mut g = [[0i16; GROUP]; 9];
        for i in 0..GROUP {
            let (c_out, c_in) = (block * LANES + i / QUAD, quad * QUAD + i % QUAD);
            if c_out < shape.c_out && c_in < shape.c_in {
                let filter = &w[(c_out * shape.c_in + c_in) * taps..][..taps];
                g.iter_mut().zip(filter).for_each(|(g, &w)| g[i] = w.into());
            }
        }
        let transformed = size.transformed(&g);
        for (position, v) in transformed.iter().take(positions).enumerate() {
            out[(position * quads + quad) * GROUP..][..GROUP].copy_from_slice(v);
        }
    }
}

/// Whether this is a convolution with such products.
pub(super) fn applies(shape: &ConvShape) -> bool {
    shape.kernel == [3; 2] && shape.stride == [1; 2] && shape.dilation == [1; 2] && shape.groups == 1
}

/// Weights for a layer where these are expected to be faster than direct products by `kernel`.
pub(super) fn faster(kernel: Kernel, shape: &ConvShape, w: &[i8], largest: u8) -> Option<Winograd> {
    let channels = shape.c_in.min(shape.c_out);
    let sides = [shape.out_h(), shape.out_w()];
    if !applies(shape) || sides.iter().any(|&side| side < SMALLEST_IMAGE) {
        return None;
    }
    let new = |form, fewest| (channels >= fewest).then(|| Winograd::new(form, kernel, shape, w, largest)).flatten();
    let covered: usize = sides.iter().map(|side| side.next_multiple_of(Size::Four.outputs())).product();
    let is_covered_well = covered <= 2 * sides[0] * sides[1];
    let four = |fewest| is_covered_well.then(|| new(Form::Words(Size::Four), fewest)).flatten();
    if kernel.is_wide() {
        let [fewest, fewest_of_two] = FEWEST_CHANNELS_OF_WORDS;
        return four(fewest).or_else(|| new(Form::Words(Size::Two), fewest_of_two));
    }
    let bytes = new(Form::Bytes, FEWEST_CHANNELS);
    if !kernel.has_short_sums() {
        let words = shape.c_in * shape.c_out * Size::Four.positions() * size_of::<i16>();
        let is_worth_it = kernel.has_vnni() && words <= MOST_BYTES_OF_WORDS;
        return bytes.or_else(|| if is_worth_it { four(FEWEST_CHANNELS) } else { None });
    }
    let are_long = |w: &Winograd| match &w.weights {
        Weights::Bytes { short_sums, .. } => short_sums.iter().all(|&sums| sums >= FEWEST_SUMS),
        Weights::Words(_) => true,
    };
    bytes.filter(are_long).or_else(|| four(FEWEST_CHANNELS))
}

impl Winograd {
    /// Weights `w`, OIHW, for inputs up to `largest`; `None` if their transforms do not fit the operands, their sums the kernel,
    /// or a multiple of outputs 32 bits.
    pub fn new(form: Form, kernel: Kernel, shape: &ConvShape, w: &[i8], largest: u8) -> Option<Self> {
        let (size, taps) = (form.size(), shape.kernel[0] * shape.kernel[1]);
        let magnitudes = |w: &[i8]| w.iter().map(|w| i64::from(w.unsigned_abs())).sum();
        let longest: i64 = w.chunks_exact(shape.c_in * taps).map(magnitudes).max().unwrap_or(0);
        if !applies(shape) || size.multiple() * i64::from(largest) * longest > i32::MAX.into() {
            return None;
        }
        // Words need no offset.
        let most = match form {
            Form::Bytes if kernel.is_wide() => return None,
            Form::Bytes => largest.checked_mul(4)?,
            Form::Words(_) => 0,
        };
        let (positions, quads, blocks) = (size.positions(), shape.c_in.div_ceil(QUAD), shape.c_out.div_ceil(LANES));
        let len = quads * GROUP;
        let mut start = vec![0i32; blocks * positions * LANES];
        // What transformed inputs are larger than they should be, but for those of the centre, and what the kernel takes off again.
        let offset = i32::from(most / 2);
        let taken = if form == Form::Bytes { kernel.input_offset() } else { 0 };
        let transform = |block: usize, start: &mut [i32], out: &mut [i16]| {
            transformed_block(size, shape, w, block, out);
            let each = start.chunks_exact_mut(LANES).zip(out.chunks_exact(len)).enumerate();
            for (position, (start, weights)) in each {
                let back = taken - if position == size.centre() { 0 } else { offset };
                if back == 0 {
                    continue;
                }
                for group in weights.chunks_exact(GROUP) {
                    for (start, w) in start.iter_mut().zip(group.chunks_exact(QUAD)) {
                        let sum: i32 = w.iter().map(|&w| i32::from(w)).sum();
                        *start = start.wrapping_add(back.wrapping_mul(sum));
                    }
                }
            }
        };
        let weights = match form {
            Form::Words(_) => {
                let mut weights = vec![0i16; blocks * positions * len];
                by_blocks(blocks, &mut start, &mut weights, |block, start, transformed, out| {
                    transform(block, start, transformed);
                    out.copy_from_slice(&by_pairs(transformed));
                    Some(())
                })?;
                Weights::Words(weights)
            }
            Form::Bytes => {
                let mut weights = vec![0i8; blocks * positions * len];
                let rooms = by_blocks(blocks, &mut start, &mut weights, |block, start, transformed, out| {
                    transform(block, start, transformed);
                    for (out, &v) in out.iter_mut().zip(&*transformed) {
                        *out = i8::try_from(v).ok()?;
                    }
                    let room = |weights| kernel.room(short_sums(Kind::Rows, weights, most));
                    let rooms: Vec<usize> = out.chunks_exact(len).map(room).collect();
                    rooms.iter().all(|&sums| kernel.takes(sums)).then_some(rooms)
                })?;
                let least = |position: usize| rooms.iter().map(|rooms| rooms[position]).min().unwrap_or(usize::MAX);
                Weights::Bytes { weights, short_sums: (0..positions).map(least).collect(), offset: most / 2 }
            }
        };
        Some(Winograd { form, weights, start, quads })
    }

    /// Outputs of a tile along an axis, and what else depends on it.
    pub fn size(&self) -> Size {
        self.form.size()
    }

    /// Bytes of transformed inputs per byte of a strip, about.
    pub fn growth(&self) -> usize {
        let size = self.size();
        (size.positions() * self.form.width()).div_ceil(size.outputs() * size.outputs())
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        let weights = match &self.weights {
            Weights::Bytes { weights, .. } => weights.len(),
            Weights::Words(weights) => size_of_val(&weights[..]),
        };
        weights + self.start.len() * size_of::<i32>()
    }

    /// Transforms `rows` rows of `columns` tiles: `strip` holds two rows more than their outputs, of two pixels more.
    pub fn transform(&self, strip: &[u8], c_in: usize, [rows, columns]: [usize; 2], planes: &mut Planes) {
        let size = self.size();
        let row_len = (size.outputs() * columns + 2) * c_in;
        let window = |row: usize| &strip[size.outputs() * row * row_len..][..size.window() * row_len];
        let (step, plane) = (self.step(c_in), self.plane([rows, columns], c_in));
        let places = |row: usize| Places { plane, first: row * columns * step, step };
        let len = size.positions() * plane;
        match &self.weights {
            Weights::Bytes { offset, .. } => {
                let (planes, vertical) = room(&mut planes.bytes, len + size.window() * row_len, 0).split_at_mut(len);
                (0..rows).for_each(|row| to_bytes(window(row), c_in, *offset, vertical, planes, places(row)));
            }
            Weights::Words(_) => {
                let (planes, vertical) = room(&mut planes.words, len + size.window() * row_len, 0).split_at_mut(len);
                let to_words = if size == Size::Two { to_words } else { to_words_of_four };
                (0..rows).for_each(|row| to_words(window(row), c_in, vertical, planes, places(row)));
            }
        }
    }

    /// Products of tiles, as [`transform`](Self::transform) made them of `c_in` channels, with some blocks of output channels. `start` is
    /// [so many times](Size::times) what accumulators start with, per channel of these blocks.
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
                self.products(kernel, &planes.words, weights, &[], c_in, start, blocks, out);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn products<X, W>(
        &self,
        kernel: Kernel,
        planes: &[X],
        weights: &[W],
        short_sums: &[usize],
        c_in: usize,
        start: &[i32],
        blocks: Range<usize>,
        out: &mut Output<'_>,
    ) where
        for<'a> Group<'a, X, W>: Operands,
    {
        let size = self.size();
        let (positions, centre) = (size.positions(), size.centre());
        let tiles = out.size.map(|n| n.div_ceil(size.outputs()));
        let (step, plane, count) = (self.step(c_in), self.plane(tiles, c_in), tiles[0] * tiles[1]);
        let block_len = positions * self.quads * GROUP;
        let at_once = kernel.blocks_at_once();
        let [mut products, mut own] = BUFFERS.take();
        let most = room(&mut products, positions * MOST_TILES * at_once * LANES, 0);
        for first in blocks.clone().step_by(at_once) {
            let part = first..blocks.end.min(first + at_once);
            let lanes = part.len() * LANES;
            let channel = (first - blocks.start) * LANES;
            own.clear();
            own.extend_from_slice(&self.start[positions * LANES * part.start..positions * LANES * part.end]);
            for (own, start) in own.chunks_exact_mut(positions * LANES).zip(start[channel..].chunks_exact(LANES)) {
                own[centre * LANES..].iter_mut().zip(start).for_each(|(own, start)| *own = own.wrapping_add(*start));
            }
            let mut tile = 0;
            while tile < count {
                let group = Group {
                    planes,
                    positions,
                    plane,
                    first: tile * step,
                    step,
                    weights: &weights[part.start * block_len..part.end * block_len],
                    start: &own,
                    short_sums,
                    quads: self.quads,
                    blocks: part.len(),
                    tiles: match count - tile {
                        1 | 2 => 2,
                        3 | 4 => 4,
                        _ => MOST_TILES,
                    },
                };
                let products = &mut most[..positions * group.tiles * lanes];
                group.run(kernel, products);
                let tiles = tile..count.min(tile + group.tiles);
                outputs(size, products, lanes, tiles, channel, out);
                tile += group.tiles;
            }
        }
        BUFFERS.set([products, own]);
    }

    /// Elements from tile to tile in a plane.
    fn step(&self, c_in: usize) -> usize {
        let (step, width) = (c_in.next_multiple_of(QUAD), self.form.width());
        if (step * width).is_multiple_of(COLLIDING_BYTES) { step + LINE_BYTES / width } else { step }
    }

    /// Elements of a position, with room for the tiles that the last group has too many.
    fn plane(&self, [rows, columns]: [usize; 2], c_in: usize) -> usize {
        (rows * columns + MOST_TILES - 1) * self.step(c_in)
    }
}

thread_local! {
    /// Products, and start values of some blocks, kept from call to call.
    static BUFFERS: Cell<[Vec<i32>; 2]> = Cell::default();
}
