//! Pooling over channels-last rows and means over any axes, on numbers and on codes.

use bitsmith_kernels::integer::rows::{sum_rows_f32, sum_rows_u8};
use bitsmith_kernels::threads::for_each_part_weighing;

use super::grid::ByteGrid;

/// The geometry of one pooling. Every window meets the input (checked when the plan is made).
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool {
    pub batch: usize,
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub channels: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Pads at the beginning.
    pub before: [usize; 2],
    /// Pads at the end.
    pub after: [usize; 2],
}

impl Pool {
    /// The input coordinates along `axis` that output coordinate `out` reads.
    fn taps(&self, axis: usize, out: usize) -> impl Iterator<Item = usize> + Clone {
        let (start, before, size) = (out * self.stride[axis], self.before[axis], self.input[axis]);
        let dilation = self.dilation[axis];
        (0..self.kernel[axis]).filter_map(move |k| (start + k * dilation).checked_sub(before).filter(|&i| i < size))
    }

    /// Taps of output coordinate `out` inside the padded input.
    fn padded_taps(&self, axis: usize, out: usize) -> usize {
        let end = self.input[axis] + self.before[axis] + self.after[axis];
        (0..self.kernel[axis]).filter(|k| out * self.stride[axis] + k * self.dilation[axis] < end).count()
    }

    /// Whether a window sees nothing but padding.
    pub fn has_empty_window(&self) -> bool {
        (0..2).any(|axis| (0..self.output[axis]).any(|out| self.taps(axis, out).next().is_none()))
    }

    /// Calls `visit(pixels of the window as offsets of their channels, [window height, width with padding], output row)`.
    fn for_each_window(&self, mut visit: impl FnMut(&[usize], usize, usize)) {
        let mut offsets = Vec::new();
        let mut row = 0;
        for n in 0..self.batch {
            for oh in 0..self.output[0] {
                for ow in 0..self.output[1] {
                    offsets.clear();
                    for h in self.taps(0, oh) {
                        let line = (n * self.input[0] + h) * self.input[1];
                        offsets.extend(self.taps(1, ow).map(|w| (line + w) * self.channels));
                    }
                    visit(&offsets, self.padded_taps(0, oh) * self.padded_taps(1, ow), row);
                    row += self.channels;
                }
            }
        }
    }
}

/// The largest of every window; `raise` makes its second row the larger one of two, element by element. First of whole input rows, where it
/// has most to do at a time.
pub(super) fn max<T: Copy + Send + Sync>(pool: &Pool, x: &[T], y: &mut [T], raise: fn(&[T], &mut [T])) {
    let (c, row) = (pool.channels, pool.output[1] * pool.channels);
    let width = pool.input[1] * c;
    let work = y.len() * pool.kernel[0] * pool.kernel[1];
    for_each_part_weighing(y, row, work, |start, y| {
        let mut largest = Vec::with_capacity(width);
        for (i, y) in y.chunks_exact_mut(row.max(1)).enumerate() {
            let line = start / row + i;
            let (n, oh) = (line / pool.output[0], line % pool.output[0]);
            let mut rows = pool.taps(0, oh).map(|h| &x[(n * pool.input[0] + h) * width..][..width]);
            largest.clear();
            largest.extend_from_slice(rows.next().unwrap_or(&[]));
            rows.for_each(|row| raise(row, &mut largest));
            for (ow, y) in y.chunks_exact_mut(c).enumerate() {
                let mut pixels = pool.taps(1, ow).filter_map(|w| largest.get(w * c..(w + 1) * c));
                if let Some(first) = pixels.next() {
                    y.copy_from_slice(first);
                    pixels.for_each(|pixel| raise(pixel, y));
                }
            }
        }
    });
}

/// The mean of every window; `add` accumulates an element and `finish` makes a number of a sum and a count.
pub(super) fn average<T: Copy, S: Copy + Default>(
    pool: &Pool,
    count_padding: bool,
    x: &[T],
    y: &mut [f32],
    add: impl Fn(S, T) -> S,
    finish: impl Fn(S, usize) -> f32,
) {
    let c = pool.channels;
    let mut sums = vec![S::default(); c];
    pool.for_each_window(|window, padded, row| {
        sums.fill(S::default());
        for &at in window {
            sums.iter_mut().zip(&x[at..at + c]).for_each(|(s, &v)| *s = add(*s, v));
        }
        let count = if count_padding { padded } else { window.len() };
        y[row..row + c].iter_mut().zip(&sums).for_each(|(o, &s)| *o = finish(s, count));
    });
}

/// The mean over the axes marked in `reduced`, element by element.
fn mean<T: Copy, S: Copy + Default>(
    dims: &[usize],
    reduced: &[bool],
    x: &[T],
    y: &mut [f32],
    add: impl Fn(S, T) -> S,
    finish: impl Fn(S, usize) -> f32,
) {
    let mut steps = vec![0; dims.len()];
    let mut step = 1;
    for axis in (0..dims.len()).rev() {
        if !reduced[axis] {
            steps[axis] = step;
            step *= dims[axis];
        }
    }
    let mut sums = vec![S::default(); y.len()];
    bitsmith_kernels::layout::walk(dims, &steps, 0, |from, to| sums[to] = add(sums[to], x[from]));
    let count = dims.iter().zip(reduced).filter(|(_, r)| **r).map(|(d, _)| d).product();
    y.iter_mut().zip(sums).for_each(|(o, s)| *o = finish(s, count));
}

/// Sums of codes are exact; the scale is applied once, in double precision, and rounded once.
pub(super) fn code_sums(grid: ByteGrid) -> (impl Fn(i64, u8) -> i64, impl Fn(i64, usize) -> f32) {
    let centred = move |byte: u8| i64::from(byte) - i64::from(grid.zero_point);
    let scale = f64::from(grid.scale);
    (move |sum, byte| sum + centred(byte), move |sum: i64, count: usize| (sum as f64 * scale / count as f64) as f32)
}

/// Sums of numbers in double precision.
pub(super) fn float_sums() -> (impl Fn(f64, f32) -> f64, impl Fn(f64, usize) -> f32) {
    (|sum, x| sum + f64::from(x), |sum: f64, count: usize| (sum / count as f64) as f32)
}

/// Numbers of a mean and numbers of means side by side in memory, where the reduced axes follow one another and are not the last, as
/// those of a mean over the pixels of channels last.
fn rows(dims: &[usize], reduced: &[bool]) -> Option<(usize, usize)> {
    let outer = reduced.iter().take_while(|r| !**r).count();
    let inner = outer + reduced[outer..].iter().take_while(|r| **r).count();
    let (count, channels) = (dims[outer..inner].iter().product(), dims[inner..].iter().product());
    (reduced[inner..].iter().all(|r| !r) && count * channels > 0).then_some((count, channels))
}

/// The mean of codes over the axes marked in `reduced`.
pub(super) fn mean_of_codes(dims: &[usize], reduced: &[bool], x: &[u8], grid: ByteGrid, y: &mut [f32]) {
    let (add, finish) = code_sums(grid);
    let Some((count, channels)) = rows(dims, reduced).filter(|rows| rows.0 <= MOST_CODES) else {
        return mean(dims, reduced, x, y, add, finish);
    };
    let zeros = count as i64 * i64::from(grid.zero_point);
    let mut sums = vec![0u32; channels];
    for (x, y) in x.chunks_exact(count * channels).zip(y.chunks_exact_mut(channels)) {
        sums.fill(0);
        sum_rows_u8(x, &mut sums);
        y.iter_mut().zip(&sums).for_each(|(y, &sum)| *y = finish(i64::from(sum) - zeros, count));
    }
}

/// The mean of numbers over the axes marked in `reduced`.
pub(super) fn mean_of_floats(dims: &[usize], reduced: &[bool], x: &[f32], y: &mut [f32]) {
    let (add, finish) = float_sums();
    let Some((count, channels)) = rows(dims, reduced) else { return mean(dims, reduced, x, y, add, finish) };
    let mut sums = vec![0f64; channels];
    for (x, y) in x.chunks_exact(count * channels).zip(y.chunks_exact_mut(channels)) {
        sums.fill(0.0);
        sum_rows_f32(x, &mut sums);
        y.iter_mut().zip(&sums).for_each(|(y, &sum)| *y = finish(sum, count));
    }
}

/// Codes whose sum fits 32 bits.
const MOST_CODES: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_kernels::pool::raise;

    #[test]
    fn by_hand() {
        let pool = Pool {
            batch: 1,
            input: [1, 5],
            output: [1, 3],
            channels: 2,
            kernel: [1, 3],
            stride: [1, 2],
            dilation: [1, 1],
            before: [0, 1],
            after: [0, 1],
        };
        let x = [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0, 5.0, -5.0];
        let mut y = [0.0; 6];
        max(&pool, &x, &mut y, raise);
        assert_eq!(y, [2.0, -1.0, 4.0, -2.0, 5.0, -4.0]);
        let (add, finish) = float_sums();
        average(&pool, false, &x, &mut y, &add, &finish);
        assert_eq!(y, [1.5, -1.5, 3.0, -3.0, 4.5, -4.5]);
        average(&pool, true, &x, &mut y, &add, &finish);
        assert_eq!(y, [1.0, -1.0, 3.0, -3.0, 3.0, -3.0]);
        let mut y = [0.0; 2];
        mean(&[5, 2], &[true, false], &x, &mut y, &add, &finish);
        assert_eq!(y, [3.0, -3.0]);
        assert!(!pool.has_empty_window());
        assert!(Pool { before: [0, 3], ..pool }.has_empty_window());
    }

    #[test]
    fn means_over_any_axes_are_those_of_one_element_after_the_other() {
        let grid = ByteGrid { scale: 0.3, zero_point: 9, low: 0, high: 255 };
        for dims in [[2, 3, 4], [2, 600, 35], [1, 257, 64]] {
            let codes: Vec<u8> = (0..dims.iter().product()).map(|i: usize| (i * 37 % 251 + 4) as u8).collect();
            let floats: Vec<f32> = codes.iter().map(|&code| 1.0 / f32::from(code)).collect();
            for bits in 0..8usize {
                let reduced = [0, 1, 2].map(|axis| bits >> axis & 1 == 1);
                let len = dims.iter().zip(reduced).filter(|(_, r)| !r).map(|(d, _)| d).product();
                let (mut y, mut want) = (vec![0.0; len], vec![0.0; len]);
                mean_of_codes(&dims, &reduced, &codes, grid, &mut y);
                let (add, finish) = code_sums(grid);
                mean(&dims, &reduced, &codes, &mut want, add, finish);
                assert_eq!(y, want, "codes, {dims:?}, {reduced:?}");
                mean_of_floats(&dims, &reduced, &floats, &mut y);
                let (add, finish) = float_sums();
                mean(&dims, &reduced, &floats, &mut want, add, finish);
                assert_eq!(y, want, "floats, {dims:?}, {reduced:?}");
            }
        }
    }
}
