//! Moving between channels-first and channels-last, plain transposes, and any other order of axes. Copies, never in place.

#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, Level};
use crate::threads::for_each_part_weighing;

/// Rows and columns of the squares that a transpose works in: both sides of a 16x16 square stay in the first cache.
const BLOCK: usize = 16;

/// `[batch, channels, pixels]` to `[batch, pixels, channels]`, where `pixels` is height times width.
///
/// # Panics
/// If a slice has another length than `batch * channels * pixels`.
pub fn nchw_to_nhwc(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), batch * channels * pixels, "length of x");
    transpose(channels, pixels, x, y);
}

/// `[batch, pixels, channels]` to `[batch, channels, pixels]`, the inverse of [`nchw_to_nhwc`].
///
/// # Panics
/// As [`nchw_to_nhwc`].
pub fn nhwc_to_nchw(batch: usize, channels: usize, pixels: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), batch * channels * pixels, "length of x");
    transpose(pixels, channels, x, y);
}

/// Matrices `[rows, columns]` to `[columns, rows]`, as many as `x` holds, each row-major; shared among threads.
///
/// # Panics
/// If the slices have different lengths or end within a matrix.
pub fn transpose<T: Copy + Send + Sync>(rows: usize, columns: usize, x: &[T], y: &mut [T]) {
    let (image, work) = (rows * columns, y.len());
    assert_eq!(y.len(), x.len(), "length of y");
    if image == 0 {
        return assert!(x.is_empty(), "whole matrices");
    }
    assert!(x.len().is_multiple_of(image), "whole matrices");
    // Images come with a few channels: whole pixels at a time.
    let one = match rows {
        1 => return y.copy_from_slice(x),
        2 => interleave::<T, 2>,
        3 => interleave::<T, 3>,
        4 => interleave::<T, 4>,
        _ => transpose_blocks,
    };
    for_each_part_weighing(y, image, work, |at, y| {
        y.chunks_exact_mut(image).zip(x[at..].chunks_exact(image)).for_each(|(y, x)| one(rows, columns, x, y));
    });
}

/// One matrix of `ROWS` rows.
fn interleave<T: Copy, const ROWS: usize>(_rows: usize, columns: usize, x: &[T], y: &mut [T]) {
    let rows: [&[T]; ROWS] = std::array::from_fn(|row| &x[row * columns..][..columns]);
    let pixels = &mut y.as_chunks_mut::<ROWS>().0[..columns];
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<T: Copy, const ROWS: usize>(rows: [&[T]; ROWS], pixels: &mut [[T; ROWS]]) {
            interleave_rows(rows, pixels);
        }
        #[target_feature(enable = "avx2")]
        fn avx2<T: Copy, const ROWS: usize>(rows: [&[T]; ROWS], pixels: &mut [[T; ROWS]]) {
            interleave_rows(rows, pixels);
        }
        match Isa::current().level() {
            // SAFETY: an `Isa` of this level proves every feature that the function enables.
            Level::Avx512 => return unsafe { avx512(rows, pixels) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(rows, pixels) },
            Level::Portable | Level::Neon => {}
        }
    }
    interleave_rows(rows, pixels);
}

#[inline(always)]
fn interleave_rows<T: Copy, const ROWS: usize>(rows: [&[T]; ROWS], pixels: &mut [[T; ROWS]]) {
    for row in rows {
        assert_eq!(row.len(), pixels.len(), "columns of a row");
    }
    // Indices and no closures, so that it becomes shuffles of vectors.
    #[allow(clippy::needless_range_loop)]
    for column in 0..pixels.len() {
        for row in 0..ROWS {
            pixels[column][row] = rows[row][column];
        }
    }
}

/// One matrix of any number of rows.
fn transpose_blocks<T: Copy>(rows: usize, columns: usize, x: &[T], y: &mut [T]) {
    for row0 in (0..rows).step_by(BLOCK) {
        for column0 in (0..columns).step_by(BLOCK) {
            for column in column0..columns.min(column0 + BLOCK) {
                for row in row0..rows.min(row0 + BLOCK) {
                    y[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
}

/// Row-major strides.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        out[axis - 1] = out[axis] * dims[axis];
    }
    out
}

/// Calls `visit(output offset, input offset)` for the elements of a box in row-major order of the output, where one step along
/// an axis moves the input offset by `steps[axis]`. Offsets wrap, so that negative steps can be given as their complement.
pub fn walk(dims: &[usize], steps: &[usize], start: usize, mut visit: impl FnMut(usize, usize)) {
    let Some((&inner, outer)) = dims.split_last() else { return visit(0, start) };
    if dims.contains(&0) {
        return;
    }
    let inner_step = steps[outer.len()];
    let mut index = vec![0; outer.len()];
    let (mut row, mut at) = (start, 0);
    loop {
        let mut source = row;
        for _ in 0..inner {
            visit(at, source);
            at += 1;
            source = source.wrapping_add(inner_step);
        }
        // The next row: count up like an odometer.
        let mut axis = outer.len();
        loop {
            let Some(a) = axis.checked_sub(1) else { return };
            axis = a;
            index[axis] += 1;
            row = row.wrapping_add(steps[axis]);
            if index[axis] < outer[axis] {
                break;
            }
            row = row.wrapping_sub(steps[axis].wrapping_mul(outer[axis]));
            index[axis] = 0;
        }
    }
}

/// Copies all of `from` to the beginning of `to`: short runs, of which there are many, without a call.
///
/// # Panics
/// If there is no room.
#[inline]
pub fn copy_run<T: Copy>(to: &mut [T], from: &[T]) {
    let to = &mut to[..from.len()];
    #[inline(always)]
    fn of<T: Copy, const N: usize>(to: &mut [T], from: &[T]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        8 => of::<T, 8>(to, from),
        16 => of::<T, 16>(to, from),
        32 => of::<T, 32>(to, from),
        64 => of::<T, 64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// `y[to] = x[from]` over a [`walk`], in whole runs where the innermost axis is one.
pub fn copy<T: Copy>(dims: &[usize], steps: &[usize], start: usize, x: &[T], y: &mut [T]) {
    match (dims, steps) {
        ([outer @ .., inner], [outer_steps @ .., 1]) => walk(outer, outer_steps, start, |to, from| {
            copy_run(&mut y[to * inner..], &x[from..][..*inner]);
        }),
        _ => walk(dims, steps, start, |to, from| y[to] = x[from]),
    }
}

/// Output axis `i` is input axis `perm[i]`. Output rows are shared among threads.
///
/// # Panics
/// If `perm` does not permute the axes of `dims`, or a slice has another length.
pub fn permute<T: Copy + Send + Sync>(dims: &[usize], perm: &[usize], x: &[T], y: &mut [T]) {
    let strides = strides(dims);
    let out: Vec<_> = perm.iter().map(|&axis| dims[axis]).collect();
    let steps: Vec<_> = perm.iter().map(|&axis| strides[axis]).collect();
    assert!(out.len() == dims.len() && x.len() == y.len() && out.iter().product::<usize>() == y.len(), "a permutation");
    let Some((&step, &rows)) = steps.first().zip(out.first()) else { return y.copy_from_slice(x) };
    let (row, work) = (y.len() / rows.max(1), y.len());
    for_each_part_weighing(y, row, work, |at, y| {
        let first = at / row.max(1);
        let part: Vec<_> = std::iter::once(y.len() / row.max(1)).chain(out[1..].iter().copied()).collect();
        copy(&part, &steps, first * step, x, y);
    });
}

#[cfg(test)]
mod tests {
    use super::{nchw_to_nhwc, nhwc_to_nchw, permute, transpose};
    use crate::reference::layout as naive;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let mut y = [0.0; 6];
        transpose(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut y);
        assert_eq!(y, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let mut y = [0; 6];
        transpose(3, 2, &[0, 3, 1, 4, 2, 5], &mut y);
        assert_eq!(y, [0, 1, 2, 3, 4, 5]);
        for rows in 1..6 {
            let x: Vec<usize> = (0..2 * rows * 7).collect();
            let mut y = vec![0; x.len()];
            transpose(rows, 7, &x, &mut y);
            for (i, &value) in y.iter().enumerate() {
                let (image, column, row) = (i / (7 * rows), i / rows % 7, i % rows);
                assert_eq!(value, (image * rows + row) * 7 + column, "{rows} rows");
            }
        }
    }

    /// Copies: equal, and the way back gives what was there.
    fn check(batch: usize, channels: usize, pixels: usize) {
        let x: Vec<f32> = (0..batch * channels * pixels).map(|i| i as f32).collect();
        let (mut y, mut want, mut back) = (vec![f32::NAN; x.len()], vec![0.0; x.len()], vec![f32::NAN; x.len()]);
        nchw_to_nhwc(batch, channels, pixels, &x, &mut y);
        naive::nchw_to_nhwc(batch, channels, pixels, &x, &mut want);
        assert_eq!(y, want, "{batch} {channels} {pixels}");
        nhwc_to_nchw(batch, channels, pixels, &y, &mut back);
        assert_eq!(back, x, "{batch} {channels} {pixels}");
        naive::nhwc_to_nchw(batch, channels, pixels, &y, &mut back);
        assert_eq!(back, x, "{batch} {channels} {pixels}");
    }

    #[test]
    fn awkward_shapes() {
        for channels in [1, 2, 3, 4, 5, 15, 16, 17, 33] {
            for pixels in [1, 7, 15, 16, 17, 49] {
                check(1, channels, pixels);
                check(3, channels, pixels);
            }
        }
        check(0, 3, 4);
    }

    proptest! {
        #[test]
        fn any_shape(batch in 0..4_usize, channels in 1..40_usize, pixels in 1..60_usize) {
            check(batch, channels, pixels);
        }
    }

    #[test]
    fn permutations() {
        let mut y = [0; 6];
        permute(&[2, 3], &[1, 0], &[0, 1, 2, 3, 4, 5], &mut y);
        assert_eq!(y, [0, 3, 1, 4, 2, 5]);
        let mut scalar = [0];
        permute(&[], &[], &[5], &mut scalar);
        assert_eq!(scalar, [5]);
        // Large enough for several threads.
        let dims = [7, 30, 4, 33];
        let x: Vec<u32> = (0..dims.iter().product::<usize>() as u32).collect();
        for perm in [[0, 2, 1, 3], [0, 2, 3, 1], [3, 1, 0, 2], [1, 0, 2, 3]] {
            let mut y = vec![0; x.len()];
            permute(&dims, &perm, &x, &mut y);
            let size = perm.map(|axis| dims[axis]);
            for (i, &value) in y.iter().enumerate() {
                let (mut rest, mut index) = (i, [0; 4]);
                for axis in (0..4).rev() {
                    index[perm[axis]] = rest % size[axis];
                    rest /= size[axis];
                }
                let from = index.iter().zip(dims).fold(0, |at, (i, d)| at * d + i);
                assert_eq!(value, x[from], "{perm:?} at {i}");
            }
        }
    }
}
