//! Cutting a slice three ways: runs that share a scale, chunks for threads, tiles for the first cache.
//!
//! All cuts depend on lengths alone, and partial sums are added in their order, so that results do not depend on the
//! number of threads.

use std::ops::Range;

/// Elements per inner loop: a tile's buffers stay in the first cache, and f32 partial sums stay short.
pub(crate) const TILE: usize = 512;
/// Independent partial sums: enough for two AVX-512 registers.
const LANES: usize = 32;

/// `n` elements in `channels` equal contiguous rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    /// Elements.
    pub n: usize,
    /// Rows.
    pub channels: usize,
    /// Elements per row, at least 1.
    pub row: usize,
    /// Elements per unit of parallel work, at least 1; whole rows when there are several.
    pub chunk: usize,
}

impl Runs {
    /// Cuts `n` elements into chunks of about `chunk`.
    ///
    /// # Panics
    /// If `n` does not divide into `channels`.
    pub fn new(n: usize, channels: usize, chunk: usize) -> Self {
        assert!(channels > 0 && n.is_multiple_of(channels), "{n} elements do not divide into {channels} channels");
        let row = (n / channels).max(1);
        let chunk = if channels == 1 { chunk } else { row * (chunk / row).max(1) };
        Runs { n, channels, row, chunk }
    }

    /// The rows that `first .. first + len` touches, with their ranges relative to `first`.
    #[inline]
    pub fn segments(self, first: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= len {
                return None;
            }
            let row = (first + at) / self.row;
            let end = ((row + 1) * self.row - first).min(len);
            let range = at..end;
            at = end;
            Some((row, range))
        })
    }

    /// Adds the rows' partial sums of all chunks, in chunk order: one total per row.
    pub fn combine<'a>(self, chunks: impl Iterator<Item = &'a [f64]>, mut total: impl FnMut(usize, f64)) {
        if self.channels == 1 {
            total(0, chunks.flatten().sum());
        } else {
            // Chunks are whole rows, and an empty slice has no chunks.
            let sums = chunks.flatten().copied().chain(std::iter::repeat(0.0));
            (0..self.channels).zip(sums).for_each(|(row, sum)| total(row, sum));
        }
    }
}

/// Sum of a tile: every lane adds at most [`TILE`]` / `[`LANES`] floats, then the lanes are added in double precision.
#[inline(always)]
pub(crate) fn sum_tile(x: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for group in whole {
        for i in 0..LANES {
            lanes[i] += group[i];
        }
    }
    let mut total = 0f64;
    for lane in lanes {
        total += f64::from(lane);
    }
    for &v in rest {
        total += f64::from(v);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::{Runs, sum_tile};

    #[test]
    fn segments_cover_and_name_their_row() {
        for (n, channels, chunk) in [(0, 1, 8), (10, 1, 4), (12, 3, 5), (12, 12, 5), (100, 2, 7)] {
            let runs = Runs::new(n, channels, chunk);
            let mut seen = 0;
            for first in (0..n).step_by(runs.chunk) {
                for (row, range) in runs.segments(first, runs.chunk.min(n - first)) {
                    assert_eq!(first + range.start, seen);
                    assert!(range.clone().all(|i| (first + i) / runs.row == row));
                    seen = first + range.end;
                }
            }
            assert_eq!(seen, n);
        }
    }

    #[test]
    fn tiles_sum() {
        for n in [0usize, 1, 31, 32, 33, 512] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum_tile(&x), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
