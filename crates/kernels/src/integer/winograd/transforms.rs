//! Codes to transformed inputs, and products to accumulators.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::{LANES, Output, Size};
use crate::multiversion::multiversion;

/// Where the tiles of a row go in the planes: elements from position to position, to the first tile, and from tile to tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub plane: usize,
    pub first: usize,
    pub step: usize,
}

/// Transformed inputs, which wrap around: all sums fit, or fit once the offset is added.
pub(super) trait Transformed: Copy + Default {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
}

macro_rules! transformed {
    ($($t:ty)*) => {$(
        impl Transformed for $t {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}
transformed!(u8 i16);

/// Tiles of two outputs along an axis, and of four. Functions of traits, because closures would not be compiled for the caller's instructions.
struct Two;
struct Four;

/// How a window of `W` inputs is transformed.
trait Window<T, const W: usize> {
    /// `N` windows side by side.
    fn transform<const N: usize>(d: &[[T; N]; W]) -> [[T; N]; W];
}

/// How `W` products become a multiple of `M` outputs.
trait Outputs<const W: usize, const M: usize> {
    /// Along an axis, of some channels.
    fn along(m: [&[i32; RUN]; W]) -> [[i32; RUN]; M];
    /// Outputs from their multiples along both.
    fn divide(multiples: &mut [i32; RUN]);
}

multiversion! {
    /// Rows of codes to a row of 2x2 tiles of bytes, with `offset` added in all positions but the central one. `vertical` holds as
    /// many elements as the rows.
    pub(super) fn to_bytes(rows: &[u8], c_in: usize, offset: u8, vertical: &mut [u8], planes: &mut [u8], places: Places) {
        inputs::<Two, _, 4>(rows, c_in, offset, vertical, planes, places);
    }
}

multiversion! {
    /// The same in words, without an offset.
    pub(super) fn to_words(rows: &[u8], c_in: usize, vertical: &mut [i16], planes: &mut [i16], places: Places) {
        inputs::<Two, _, 4>(rows, c_in, 0, vertical, planes, places);
    }
}

multiversion! {
    /// The same for 4x4 tiles.
    pub(super) fn to_words_of_four(rows: &[u8], c_in: usize, vertical: &mut [i16], planes: &mut [i16], places: Places) {
        inputs::<Four, _, 6>(rows, c_in, 0, vertical, planes, places);
    }
}

/// Along columns of pixels first, for all of them at once, then along each tile's rows, windows of `W`.
#[inline(always)]
fn inputs<F: Window<T, W>, T: Transformed + From<u8>, const W: usize>(
    rows: &[u8],
    c_in: usize,
    offset: T,
    vertical: &mut [T],
    planes: &mut [T],
    Places { plane, first, step }: Places,
) {
    let row_len = rows.len() / W;
    let none = [T::default(); W];
    each_run::<F, u8, T, W>(row_len, rows, row_len, vertical, row_len, none);
    for (y, vertical) in vertical.chunks_exact(row_len).enumerate() {
        let mut beside = [offset; W];
        if y == 1 {
            beside[1] = T::default();
        }
        let planes = &mut planes[W * y * plane..][..W * plane];
        for tile in 0..(row_len / c_in - 2) / (W - 2) {
            let window = &vertical[(W - 2) * tile * c_in..][..W * c_in];
            each_run::<F, T, T, W>(c_in, window, c_in, &mut planes[first + tile * step..], plane, beside);
        }
    }
}

/// Transforms `len` windows side by side: `W` elements of each, `from_step` apart, become as many, `to_step` apart.
#[inline(always)]
fn each_run<F: Window<T, W>, S: Copy, T: Transformed + From<S>, const W: usize>(
    len: usize,
    from: &[S],
    from_step: usize,
    to: &mut [T],
    to_step: usize,
    add: [T; W],
) {
    let mut at = 0;
    while at + 32 <= len {
        run::<F, S, T, W, 32>(at, from, from_step, to, to_step, &add);
        at += 32;
    }
    while at + 16 <= len {
        run::<F, S, T, W, 16>(at, from, from_step, to, to_step, &add);
        at += 16;
    }
    while at < len {
        run::<F, S, T, W, 1>(at, from, from_step, to, to_step, &add);
        at += 1;
    }
}

/// `N` windows from number `at` on.
#[inline(always)]
fn run<F: Window<T, W>, S: Copy, T: Transformed + From<S>, const W: usize, const N: usize>(
    at: usize,
    from: &[S],
    from_step: usize,
    to: &mut [T],
    to_step: usize,
    add: &[T; W],
) {
    let mut d = [[T::default(); N]; W];
    for k in 0..W {
        let from = &from[k * from_step + at..][..N];
        for i in 0..N {
            d[k][i] = T::from(from[i]);
        }
    }
    let u = F::transform(&d);
    for k in 0..W {
        let to = &mut to[k * to_step + at..][..N];
        for i in 0..N {
            to[i] = u[k][i].plus(add[k]);
        }
    }
}

impl<T: Transformed> Window<T, 4> for Two {
    #[inline(always)]
    fn transform<const N: usize>(d: &[[T; N]; 4]) -> [[T; N]; 4] {
        let mut u = [[T::default(); N]; 4];
        for i in 0..N {
            u[0][i] = d[0][i].minus(d[2][i]);
            u[1][i] = d[1][i].plus(d[2][i]);
            u[2][i] = d[2][i].minus(d[1][i]);
            u[3][i] = d[1][i].minus(d[3][i]);
        }
        u
    }
}

impl Window<i16, 6> for Four {
    #[inline(always)]
    fn transform<const N: usize>(d: &[[i16; N]; 6]) -> [[i16; N]; 6] {
        let mut u = [[0; N]; 6];
        for i in 0..N {
            let [d0, d1, d2, d3, d4, d5] = [d[0][i], d[1][i], d[2][i], d[3][i], d[4][i], d[5][i]];
            let (near, far) = (d1.minus(d3).wrapping_mul(2), d4.minus(d2));
            u[0][i] = d0.minus(d2).wrapping_mul(4).plus(far);
            u[1][i] = d1.plus(d2).wrapping_mul(4).minus(d3.plus(d4));
            u[2][i] = d2.minus(d1).wrapping_mul(4).plus(d3.minus(d4));
            u[3][i] = far.minus(near);
            u[4][i] = far.plus(near);
            u[5][i] = d1.minus(d3).wrapping_mul(4).plus(d5.minus(d3));
        }
        u
    }
}

/// Channels that are held in registers together: one of AVX-512 for each number.
const RUN: usize = LANES;

/// Products `[position][tile][lanes]` of some tiles to accumulators, from channel number `first` on.
pub(super) fn outputs(
    size: Size,
    products: &[i32],
    lanes: usize,
    tiles: Range<usize>,
    first: usize,
    out: &mut Output<'_>,
) {
    match size {
        Size::Two => outputs_of_two(products, lanes, tiles, first, out),
        Size::Four => outputs_of_four(products, lanes, tiles, first, out),
    }
}

multiversion! {
    fn outputs_of_two(products: &[i32], lanes: usize, tiles: Range<usize>, first: usize, out: &mut Output<'_>) {
        tiles_to_pixels::<Two, 4, 2>(products, lanes, tiles, first, out);
    }
}

multiversion! {
    fn outputs_of_four(products: &[i32], lanes: usize, tiles: Range<usize>, first: usize, out: &mut Output<'_>) {
        tiles_to_pixels::<Four, 6, 4>(products, lanes, tiles, first, out);
    }
}

/// Tiles of `M` by `M` pixels from `W` by `W` products: along columns, then along rows.
#[inline(always)]
fn tiles_to_pixels<F: Outputs<W, M>, const W: usize, const M: usize>(
    products: &[i32],
    lanes: usize,
    tiles: Range<usize>,
    first: usize,
    out: &mut Output<'_>,
) {
    let ([rows, columns], stride, width) = (out.size, out.stride, lanes.min(out.width - first));
    let acc = &mut out.acc[first..];
    let plane = products.len() / (W * W);
    let across = columns.div_ceil(M);
    for (from, tile) in tiles.enumerate() {
        let (row, column) = (tile / across * M, tile % across * M);
        for c in (0..width).step_by(RUN) {
            let m = &products[from * lanes + c..][..(W * W - 1) * plane + RUN];
            let n = RUN.min(width - c);
            let mut sums = [[[0; RUN]; M]; W];
            for x in 0..W {
                let mut column = [&[0; RUN]; W];
                for y in 0..W {
                    column[y] = some(m, (y * W + x) * plane);
                }
                sums[x] = F::along(column);
            }
            for y in 0..M {
                if row + y == rows {
                    break;
                }
                let mut line = [&[0; RUN]; W];
                for x in 0..W {
                    line[x] = &sums[x][y];
                }
                let mut pixels = F::along(line);
                for pixels in &mut pixels {
                    F::divide(pixels);
                }
                for x in 0..M {
                    if column + x == columns {
                        break;
                    }
                    let to = &mut acc[((row + y) * columns + column + x) * stride + c..][..n];
                    match <&mut [i32; RUN]>::try_from(&mut *to) {
                        Ok(to) => *to = pixels[x],
                        Err(_) => store_some(&pixels[x], to),
                    }
                }
            }
        }
    }
}

/// Fewer channels than a run. Out of line, lest both ways become one that copies any number.
#[cold]
#[inline(never)]
fn store_some(out: &[i32; RUN], to: &mut [i32]) {
    to.copy_from_slice(&out[..to.len()]);
}

#[inline(always)]
fn some(m: &[i32], at: usize) -> &[i32; RUN] {
    m[at..at + RUN].try_into().unwrap_or(&[0; RUN])
}

impl Outputs<4, 2> for Two {
    /// Twice the outputs.
    #[inline(always)]
    fn along([m0, m1, m2, m3]: [&[i32; RUN]; 4]) -> [[i32; RUN]; 2] {
        let mut y = [[0; RUN]; 2];
        for i in 0..RUN {
            y[0][i] = m0[i].wrapping_add(m0[i]).wrapping_add(m1[i]).wrapping_add(m2[i]);
        }
        for i in 0..RUN {
            y[1][i] = m1[i].wrapping_sub(m2[i]).wrapping_sub(m3[i]).wrapping_sub(m3[i]);
        }
        y
    }

    #[inline(always)]
    fn divide(multiples: &mut [i32; RUN]) {
        for v in multiples {
            *v >>= 2;
        }
    }
}

impl Outputs<6, 4> for Four {
    /// 24 times the outputs.
    #[inline(always)]
    fn along([m0, m1, m2, m3, m4, m5]: [&[i32; RUN]; 6]) -> [[i32; RUN]; 4] {
        let mut y = [[0i32; RUN]; 4];
        for i in 0..RUN {
            let (s12, d12) = (m1[i].wrapping_add(m2[i]), m1[i].wrapping_sub(m2[i]));
            let (s34, d34) = (m3[i].wrapping_add(m4[i]), m3[i].wrapping_sub(m4[i]));
            let (s12, d12, d34) = (s12.wrapping_shl(2), d12.wrapping_shl(2), d34.wrapping_shl(1));
            y[0][i] = m0[i].wrapping_mul(6).wrapping_add(s12).wrapping_add(s34);
            y[1][i] = d12.wrapping_add(d34);
            y[2][i] = s12.wrapping_add(s34.wrapping_shl(2));
            y[3][i] = d12.wrapping_add(d34.wrapping_shl(2)).wrapping_add(m5[i].wrapping_mul(24));
        }
        y
    }

    #[inline(always)]
    fn divide(multiples: &mut [i32; RUN]) {
        for v in multiples {
            *v = by_576(*v);
        }
    }
}

/// A 576th of a multiple of 576, which may have wrapped around as long as a 9th of it would not have: times the inverse of 9 modulo 2^32, then a
/// 64th.
#[inline(always)]
fn by_576(multiple: i32) -> i32 {
    multiple.wrapping_mul(954_437_177) >> 6
}

#[cfg(test)]
mod tests {
    use super::by_576;

    #[test]
    fn multiples_of_576_divide_exactly() {
        let most = i32::MAX / 64;
        for y in [0, 1, -1, 7, 12_345, -99_999, most, -most, most - 1] {
            assert_eq!(by_576(y.wrapping_mul(576)), y);
        }
    }
}
