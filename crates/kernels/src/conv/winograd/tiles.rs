//! What goes into the products: the transforms of source and gradient tiles, from channels-last pixels into elements.

use std::ops::Range;

use super::scheme::{Line, Scheme};
use super::{Geometry, column_of};
use crate::conv::product::Product;
use crate::simd::Vector;

/// Where the pixels of a tile lie.
trait Pixels {
    /// The first channel of row `i`, column `j`.
    fn at(&self, i: usize, j: usize) -> *const f32;
}

/// Pixels of a tile inside an image: where the first is, and elements to the next below and to the right.
#[derive(Clone, Copy)]
struct Inside {
    at: *const f32,
    line: usize,
    pixel: usize,
}

impl Pixels for Inside {
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *const f32 {
        self.at.wrapping_add(i * self.line + j * self.pixel)
    }
}

/// Pixels anywhere.
struct Table([[*const f32; 6]; 6]);

impl Pixels for Table {
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *const f32 {
        self.0[i][j]
    }
}

/// The source pixels of tiles, and the pixel of zeros that is everywhere outside.
struct Source<'a> {
    geometry: &'a Geometry,
    source: &'a [f32],
    zeros: &'a [f32],
    size: usize,
}

impl<'a> Source<'a> {
    fn new<S: Scheme>(geometry: &'a Geometry, source: &'a [f32], zeros: &'a [f32]) -> Self {
        let [height, width, channels] = geometry.source;
        assert!(source.len() == geometry.batch * height * width * channels && zeros.len() == channels);
        Source { geometry, source, zeros, size: S::IN }
    }

    /// The pixels of a tile all of which lie inside the image.
    #[inline(always)]
    fn inside(&self, tile: usize) -> Option<Inside> {
        let g = self.geometry;
        let [height, width, channels] = g.source;
        let [image, row, column] = g.tile(tile);
        let (y, x) = ((row * g.size).checked_sub(g.top)?, (column * g.size).checked_sub(g.left)?);
        let corner = ((image * height + y) * width + x) * channels;
        let fits = y + self.size <= height && x + self.size <= width;
        fits.then(|| Inside { at: self.source[corner..].as_ptr(), line: width * channels, pixel: channels })
    }

    /// The pixels of any tile; of one that is none, zeros.
    fn anywhere(&self, tile: Option<usize>) -> Table {
        let g = self.geometry;
        let [height, width, channels] = g.source;
        let mut pixels = [[self.zeros.as_ptr(); 6]; 6];
        let Some(tile) = tile else { return Table(pixels) };
        let [image, row, column] = g.tile(tile);
        for (i, pixels) in pixels.iter_mut().enumerate().take(self.size) {
            let Some(y) = (row * g.size + i).checked_sub(g.top).filter(|&y| y < height) else { continue };
            for (j, pixel) in pixels.iter_mut().enumerate().take(self.size) {
                let Some(x) = (column * g.size + j).checked_sub(g.left).filter(|&x| x < width) else { continue };
                *pixel = self.source[((image * height + y) * width + x) * channels..].as_ptr();
            }
        }
        Table(pixels)
    }
}

/// `v = Bᵀ d B` of all channels of some tiles, channels joined.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels of the source are whole vectors, `zeros` is one pixel, and `v`
/// holds `tiles` at each position.
#[inline(always)]
pub(super) unsafe fn transform_source<S: Scheme, P: Product, V: Vector>(
    g: &Geometry,
    source: &[f32],
    zeros: &[f32],
    tiles: &Range<usize>,
    v: &mut [f32],
) {
    let elements = g.source[2] / P::NUMBERS;
    let position = g.position(elements);
    assert!(v.len() >= S::POSITIONS * position && tiles.len() <= g.block);
    let source = Source::new::<S>(g, source, zeros);
    for (number, tile) in tiles.clone().enumerate() {
        let to = v[number * elements..].as_mut_ptr();
        // SAFETY: every pixel has all channels, inside the image or not; `v` has room as asserted. The function's contract.
        unsafe {
            match source.inside(tile) {
                Some(pixels) => transform_tile::<S, P, V>(&pixels, g.source[2], position, to),
                None => transform_tile::<S, P, V>(&source.anywhere(Some(tile)), g.source[2], position, to),
            }
        }
    }
}

/// `v = Bᵀ d B` of all channels of one tile.
///
/// # Safety
/// The CPU has the instruction set of `V`; `channels` numbers are readable at every pixel, and as many writable in elements at `to` and
/// every `position` elements on.
#[inline(always)]
unsafe fn transform_tile<S: Scheme, P: Product, V: Vector>(
    pixels: &impl Pixels,
    channels: usize,
    position: usize,
    to: *mut f32,
) {
    for channel in (0..channels).step_by(V::LANES) {
        // SAFETY: the function's contract.
        unsafe {
            let rows = half_transformed::<S, V>(pixels, channel);
            for j in 0..S::IN {
                let done = S::source(column_of(&rows, j));
                for (i, value) in done.iter().enumerate().take(S::IN) {
                    P::store(*value, to.add((i * S::IN + j) * position + channel / P::NUMBERS));
                }
            }
        }
    }
}

/// `v = Bᵀ d B` of all channels of some tiles, groups of as many tiles as an element has numbers joined.
///
/// # Safety
/// As [`transform_source`].
#[inline(always)]
pub(super) unsafe fn transform_groups<S: Scheme, P: Product, V: Vector>(
    g: &Geometry,
    source: &[f32],
    zeros: &[f32],
    tiles: &Range<usize>,
    v: &mut [f32],
) {
    if P::NUMBERS == 1 {
        // SAFETY: the function's contract.
        return unsafe { transform_source::<S, P, V>(g, source, zeros, tiles, v) };
    }
    let channels = g.source[2];
    let position = g.position(channels / P::NUMBERS);
    assert!(v.len() >= S::POSITIONS * position && tiles.len() <= g.block && g.block.is_multiple_of(2));
    let source = Source::new::<S>(g, source, zeros);
    for (number, tile) in tiles.clone().step_by(2).enumerate() {
        let to = v[number * channels..].as_mut_ptr();
        let next = Some(tile + 1).filter(|next| tiles.contains(next));
        // SAFETY: as in `transform_source`.
        unsafe {
            match (source.inside(tile), next.and_then(|next| source.inside(next))) {
                (Some(first), Some(second)) => transform_two::<S, P, V>([&first, &second], channels, position, to),
                _ => {
                    let (first, second) = (source.anywhere(Some(tile)), source.anywhere(next));
                    transform_two::<S, P, V>([&first, &second], channels, position, to);
                }
            }
        }
    }
}

/// `v = Bᵀ d B` of all channels of two tiles, joined.
///
/// # Safety
/// As [`transform_tile`] for both.
#[inline(always)]
unsafe fn transform_two<S: Scheme, P: Product, V: Vector>(
    pixels: [&impl Pixels; 2],
    channels: usize,
    position: usize,
    to: *mut f32,
) {
    for channel in (0..channels).step_by(V::LANES) {
        // SAFETY: the function's contract.
        unsafe {
            let first = half_transformed::<S, V>(pixels[0], channel);
            let second = half_transformed::<S, V>(pixels[1], channel);
            for j in 0..S::IN {
                let (low, high) = (S::source(column_of(&first, j)), S::source(column_of(&second, j)));
                for (i, (low, high)) in low.into_iter().zip(high).enumerate().take(S::IN) {
                    P::join([low, high]).store(to.add((i * S::IN + j) * position + channel));
                }
            }
        }
    }
}

/// The lines of a tile, `d B`, of the channels of one vector.
///
/// # Safety
/// The CPU has the instruction set of `V`; a vector is readable at every pixel from `channel` on.
#[inline(always)]
unsafe fn half_transformed<S: Scheme, V: Vector>(pixels: &impl Pixels, channel: usize) -> [Line<V>; 6] {
    // SAFETY: the function's contract.
    unsafe {
        let mut rows = [[V::zero(); 6]; 6];
        for (i, row) in rows.iter_mut().enumerate().take(S::IN) {
            let mut line = [V::zero(); 6];
            for (j, value) in line.iter_mut().enumerate().take(S::IN) {
                *value = V::load(pixels.at(i, j).add(channel));
            }
            *row = S::source(line);
        }
        rows
    }
}

/// `dm = A dy Aᵀ` of some channels of some tiles, groups of as many tiles as an element has numbers joined.
///
/// # Safety
/// The CPU has the instruction set of `V`; the channels are whole vectors.
#[inline(always)]
pub(super) unsafe fn transform_gradient<S: Scheme, P: Product, V: Vector>(
    g: &Geometry,
    dy: &[f32],
    of: &Range<usize>,
    tiles: &Range<usize>,
    m: &mut [f32],
) {
    let [height, width, channels] = g.out;
    let position = g.position(of.len() / P::NUMBERS);
    assert!(dy.len() == g.batch * height * width * channels && of.end <= channels && of.len().is_multiple_of(V::LANES));
    assert!(m.len() >= S::POSITIONS * position && tiles.len() <= g.block && g.block.is_multiple_of(P::NUMBERS));
    for (number, tile) in tiles.clone().step_by(P::NUMBERS).enumerate() {
        let mut parts = [Part { at: dy.as_ptr(), line: width * channels, pixel: channels, rows: 0, columns: 0 }; 2];
        for (tile, part) in (tile..tiles.end).zip(&mut parts[..P::NUMBERS]) {
            let [image, row, column] = g.tile(tile);
            let corner = &dy[((image * height + row * S::OUT) * width + column * S::OUT) * channels..];
            part.rows = (height - row * S::OUT).min(S::OUT);
            part.columns = (width - column * S::OUT).min(S::OUT);
            assert!(((part.rows - 1) * width + part.columns) * channels <= corner.len());
            part.at = corner[of.start..].as_ptr();
        }
        let to = m[number * of.len()..].as_mut_ptr();
        let whole = |part: &Part| (part.rows, part.columns) == (S::OUT, S::OUT);
        // SAFETY: the assertions above; the function's contract. Whole tiles have loops of known length.
        unsafe {
            if parts[..P::NUMBERS].iter().all(whole) {
                let parts = parts.map(|part| Part { rows: S::OUT, columns: S::OUT, ..part });
                spread_tiles::<S, P, V>(parts, of.len(), position, to);
            } else {
                spread_tiles::<S, P, V>(parts, of.len(), position, to);
            }
        }
    }
}

/// Pixels of the gradient under a tile: where the first is, elements to the next below and to the right, and how many rows and columns exist.
#[derive(Clone, Copy)]
struct Part {
    at: *const f32,
    line: usize,
    pixel: usize,
    rows: usize,
    columns: usize,
}

/// `dm = A dy Aᵀ` of the first channels of the tiles that are joined: outputs outside the image have no gradient.
///
/// # Safety
/// The CPU has the instruction set of `V`; `channels` elements are readable at each row and column that exists, and writable at
/// `to` and every `position` elements on.
#[inline(always)]
unsafe fn spread_tiles<S: Scheme, P: Product, V: Vector>(
    parts: [Part; 2],
    channels: usize,
    position: usize,
    to: *mut f32,
) {
    for channel in (0..channels).step_by(V::LANES) {
        // SAFETY: the function's contract.
        unsafe {
            let low = half_spread::<S, V>(&parts[0], channel);
            let high = if P::NUMBERS == 2 { half_spread::<S, V>(&parts[1], channel) } else { low };
            for j in 0..S::IN {
                let first = S::spread(column_of(&low, j));
                let second = if P::NUMBERS == 2 { S::spread(column_of(&high, j)) } else { first };
                for i in 0..S::IN {
                    P::join([first[i], second[i]]).store(to.add((i * S::IN + j) * position + channel));
                }
            }
        }
    }
}

/// The lines of a tile, `dy Aᵀ`, of the channels of one vector.
///
/// # Safety
/// The CPU has the instruction set of `V`; a vector is readable from `channel` on at each row and column that exists.
#[inline(always)]
unsafe fn half_spread<S: Scheme, V: Vector>(part: &Part, channel: usize) -> [Line<V>; 6] {
    // SAFETY: the function's contract.
    unsafe {
        let mut lines = [[V::zero(); 6]; 6];
        for (i, done) in lines.iter_mut().enumerate().take(S::OUT) {
            let mut d = [V::zero(); 6];
            for (j, d) in d.iter_mut().enumerate().take(S::OUT) {
                if i < part.rows && j < part.columns {
                    *d = V::load(part.at.add(i * part.line + j * part.pixel + channel));
                }
            }
            *done = S::spread(d);
        }
        lines
    }
}
