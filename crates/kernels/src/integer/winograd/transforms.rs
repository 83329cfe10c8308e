//! Codes to transformed inputs, and products to accumulators.

use std::ops::Range;

use super::POSITIONS;
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
    fn of(code: u8) -> Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
}

macro_rules! transformed {
    ($($t:ty)*) => {$(
        impl Transformed for $t {
            #[inline(always)]
            fn of(code: u8) -> Self {
                Self::from(code)
            }
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

multiversion! {
    /// Four rows of codes to a row of tiles of bytes, with `offset` added in all positions but the central one. `vertical` holds as
    /// many elements as the rows.
    pub(super) fn to_bytes(four: &[u8], c_in: usize, offset: u8, vertical: &mut [u8], planes: &mut [u8], places: Places) {
        inputs(four, c_in, offset, vertical, planes, places);
    }
}

multiversion! {
    /// The same in words, without an offset.
    pub(super) fn to_words(four: &[u8], c_in: usize, vertical: &mut [i16], planes: &mut [i16], places: Places) {
        inputs(four, c_in, 0, vertical, planes, places);
    }
}

/// Along columns of pixels first, for all of them at once, then along each tile's rows.
#[inline(always)]
fn inputs<T: Transformed>(
    four: &[u8],
    c_in: usize,
    offset: T,
    vertical: &mut [T],
    planes: &mut [T],
    Places { plane, first, step }: Places,
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
            u0[i] = T::of(d0[i]).minus(T::of(d2[i]));
            u1[i] = T::of(d1[i]).plus(T::of(d2[i]));
            u2[i] = T::of(d2[i]).minus(T::of(d1[i]));
            u3[i] = T::of(d1[i]).minus(T::of(d3[i]));
        }
    }
    for (y, vertical) in vertical.chunks_exact(row_len).enumerate() {
        let beside = if y == 1 { T::default() } else { offset };
        let planes = &mut planes[4 * y * plane..][..4 * plane];
        for tile in 0..(row_len / c_in - 2) / 2 {
            let d = &vertical[2 * tile * c_in..][..4 * c_in];
            let to = first + tile * step;
            let mut c = 0;
            while c + 32 <= c_in {
                along::<T, 32>(d, c, c_in, offset, beside, planes, plane, to);
                c += 32;
            }
            while c + 16 <= c_in {
                along::<T, 16>(d, c, c_in, offset, beside, planes, plane, to);
                c += 16;
            }
            while c < c_in {
                along::<T, 1>(d, c, c_in, offset, beside, planes, plane, to);
                c += 1;
            }
        }
    }
}

/// `N` channels from `c` on of four neighbouring pixels to four positions.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn along<T: Transformed, const N: usize>(
    d: &[T],
    c: usize,
    c_in: usize,
    offset: T,
    beside: T,
    planes: &mut [T],
    plane: usize,
    to: usize,
) {
    let (d0, d1) = (&d[c..c + N], &d[c_in + c..c_in + c + N]);
    let (d2, d3) = (&d[2 * c_in + c..2 * c_in + c + N], &d[3 * c_in + c..3 * c_in + c + N]);
    let to = to + c;
    let mut u = [[T::default(); N]; 4];
    for i in 0..N {
        u[0][i] = d0[i].minus(d2[i]).plus(offset);
        u[1][i] = d1[i].plus(d2[i]).plus(beside);
        u[2][i] = d2[i].minus(d1[i]).plus(offset);
        u[3][i] = d1[i].minus(d3[i]).plus(offset);
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
    pub(super) fn outputs(
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
