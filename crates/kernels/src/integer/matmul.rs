//! Products of two matrices of codes, as attention has them: neither is a weight, so that one of them is packed in every run.
//!
//! ```text
//! out[i, j] = f32(Σ over k of (a[i, k] − zero_a) · (b[k, j] − zero_b)) · (scale_a · scale_b)
//! ```
//!
//! The second one, less its zero point, must fit signed bytes; codes that were signed do. It is packed as weights are
//! ([`weights`](super::weights)), and the first one's rows are the pixels of the dot kernels.

use std::cell::Cell;

use super::ByteGrid;
use super::conv::{room, widen};
use super::dot::{Chunk, Job, Kernel};
use super::pixels::Pixels;
use super::weights::{GROUP, LANES, QUAD, words_by_pairs};
use crate::multiversion::multiversion;
use crate::numerics::max_i32_dot;
use crate::threads;

/// Rows whose sums are in the first cache when they become numbers.
const ROWS: usize = 24;
/// Products that take about as long as passing over an element.
const PRODUCTS_PER_ELEMENT: usize = 64;

/// Whether codes of these grids can be multiplied as integers, `k` of them a sum: the second less its zero point fits a signed byte,
/// and no sum overflows.
pub fn multiplies(k: usize, a: &ByteGrid, b: &ByteGrid) -> bool {
    let fits = |code: i32| i8::try_from(code - b.zero_point).is_ok();
    fits(b.low) && fits(b.high) && k as u64 <= max_i32_dot(a.max_magnitude(), b.max_magnitude())
}

/// `batch` products of matrices `[m, k]` and `[k, n]`, each on a grid of its own: bit-equal to
/// [`reference::matmul`](super::reference::matmul).
///
/// # Panics
/// If a slice has another length than the sizes say, or the grids cannot be [multiplied](multiplies).
pub fn matmul(batch: usize, size: [usize; 3], a: (&[u8], ByteGrid), b: (&[u8], ByteGrid), out: &mut [f32]) {
    let [m, k, n] = size;
    assert!(a.0.len() == batch * m * k && b.0.len() == batch * k * n && out.len() == batch * m * n, "lengths disagree");
    assert!(multiplies(k, &a.1, &b.1), "grids whose codes cannot be multiplied");
    if out.is_empty() {
        return;
    }
    let wanted = threads::parts_for(batch * m * k * n / PRODUCTS_PER_ELEMENT);
    // Whoever shares a matrix packs it as well.
    let rows = m.div_ceil(wanted.div_ceil(batch));
    let mut jobs = Vec::with_capacity(batch * m.div_ceil(rows));
    for (index, out) in out.chunks_mut(m * n).enumerate() {
        for (part, out) in out.chunks_mut(rows * n).enumerate() {
            jobs.push((index, part * rows, out));
        }
    }
    let run = |(index, first, out): (usize, usize, &mut [f32])| {
        let rows = &a.0[(index * m + first) * k..][..out.len() / n * k];
        let mut scratch = SCRATCH.take();
        scratch.multiply([k, n], (rows, a.1), (&b.0[index * k * n..][..k * n], b.1), out);
        SCRATCH.set(scratch);
    };
    match wanted {
        1 => jobs.into_iter().for_each(run),
        _ => threads::for_each_job(jobs, run),
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Buffers that a thread keeps.
#[derive(Default)]
struct Scratch {
    /// The second matrix, packed.
    packed: Vec<i8>,
    /// Its columns' sums, and then what sums of products begin with.
    start: Vec<i32>,
    /// Rows of the first one whose last group of four reaches past the end.
    bytes: Vec<u8>,
    words: Vec<i16>,
    pixels: Pixels,
    acc: Vec<i32>,
}

impl Scratch {
    fn multiply(&mut self, [k, n]: [usize; 2], a: (&[u8], ByteGrid), b: (&[u8], ByteGrid), out: &mut [f32]) {
        let (quads, blocks) = (k.div_ceil(QUAD), n.div_ceil(LANES));
        let packed = room(&mut self.packed, blocks * quads * GROUP, 0);
        let start = room(&mut self.start, blocks * LANES, 0);
        pack(k, n, b.0, b.1.zero_byte(), packed, start);
        let largest_pair = a.1.high.max(1) * 2 * b.1.max_magnitude().max(1) as i32;
        let short_sums = (i32::from(i16::MAX) / largest_pair) as usize;
        let kernel = Kernel::best(short_sums);
        let zero = a.1.zero_point - kernel.input_offset();
        start.iter_mut().for_each(|sum| *sum = zero.wrapping_mul(*sum).wrapping_neg());
        let short_sums = kernel.room(short_sums);
        let chunks = Chunk::cut(&[0], quads, kernel.longest_chunk(short_sums));
        let scale = a.1.scale * b.1.scale;
        let acc = room(&mut self.acc, ROWS * n, 0);
        macro_rules! rows {
            ($input:expr, $weights:expr, $run:ident) => {
                for (idx, out) in out.chunks_mut(ROWS * n).enumerate() {
                    self.pixels.fill([out.len() / n, k], [1, 0]);
                    kernel.$run(&mut Job {
                        input: &$input[idx * ROWS * k..],
                        pixels: &self.pixels,
                        chunks: &chunks,
                        weights: $weights,
                        start,
                        short_sums,
                        channels: n,
                        first: 0,
                        out: &mut *acc,
                        stride: n,
                    });
                    scaled(&acc[..out.len()], scale, out);
                }
            };
        }
        if kernel.is_wide() {
            let words = room(&mut self.words, a.0.len() + QUAD, 0);
            widen(a.0, &mut words[..a.0.len()]);
            rows!(words, &words_by_pairs(packed), run_words);
        } else if k.is_multiple_of(QUAD) {
            rows!(a.0, packed, run_bytes);
        } else {
            let bytes = room(&mut self.bytes, a.0.len() + QUAD, 0);
            bytes[..a.0.len()].copy_from_slice(a.0);
            rows!(bytes, packed, run_bytes);
        }
    }
}

multiversion! {
    /// The codes of `[k, n]` less `zero`, in the order of the dot kernels, and the sums of columns, both padded with zeros to whole blocks.
    fn pack(k: usize, n: usize, codes: &[u8], zero: u8, packed: &mut [i8], sums: &mut [i32]) {
        let quads = k.div_ceil(QUAD);
        for (block, sums) in sums.chunks_exact_mut(LANES).enumerate() {
            let first = block * LANES;
            let width = LANES.min(n - first);
            let mut sum = [0i32; LANES];
            for quad in 0..quads {
                let mut group = [0u32; LANES];
                for i in 0..QUAD.min(k - quad * QUAD) {
                    let row = &codes[(quad * QUAD + i) * n + first..][..width];
                    let mut whole = [zero; LANES];
                    if width == LANES {
                        whole.copy_from_slice(row);
                    } else {
                        whole[..width].copy_from_slice(row);
                    }
                    for lane in 0..LANES {
                        let code = whole[lane].wrapping_sub(zero);
                        group[lane] |= u32::from(code) << (8 * i);
                        sum[lane] += i32::from(code as i8);
                    }
                }
                let to = &mut packed[(block * quads + quad) * GROUP..][..GROUP];
                for lane in 0..LANES {
                    let bytes = group[lane].to_le_bytes();
                    for i in 0..QUAD {
                        to[lane * QUAD + i] = bytes[i] as i8;
                    }
                }
            }
            sums.copy_from_slice(&sum);
        }
    }
}

multiversion! {
    fn scaled(acc: &[i32], scale: f32, out: &mut [f32]) {
        for (out, &acc) in out.iter_mut().zip(acc) {
            *out = acc as f32 * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integer::reference;
    use crate::testing::{on_every_level, values};
    use proptest::prelude::*;

    fn grid(bits: u32, zero_point: i32) -> ByteGrid {
        ByteGrid { scale: 0.37, zero_point, low: 0, high: (1 << bits) - 1 }
    }

    fn codes(n: usize, grid: &ByteGrid, seed: usize) -> Vec<u8> {
        values(n, seed).iter().map(|x| ((x * 1e6) as i32).rem_euclid(grid.high + 1) as u8).collect()
    }

    fn check(batch: usize, [m, k, n]: [usize; 3], a: ByteGrid, b: ByteGrid, extreme: bool) {
        let (mut x, mut w) = (codes(batch * m * k, &a, 3), codes(batch * k * n, &b, 4));
        if extreme {
            x.fill(a.high as u8);
            w.fill(0);
        }
        let mut want = vec![0.0; batch * m * n];
        reference::matmul([m, k, n], (&x, a), (&w, b), &mut want);
        on_every_level(|level| {
            let mut got = vec![1.0; batch * m * n];
            matmul(batch, [m, k, n], (&x, a), (&w, b), &mut got);
            assert!(got == want, "{batch} x {m}x{k}x{n} at {level:?}");
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn any_size_and_width(
            batch in 1usize..4, m in 1usize..40, k in 1usize..70, n in 1usize..70,
            a in (1u32..9, 0i32..256), b in 1u32..9,
        ) {
            check(batch, [m, k, n], grid(a.0, a.1 % (1 << a.0)), grid(b, 1 << (b - 1)), false);
        }
    }

    #[test]
    fn sums_may_be_as_large_as_integers() {
        let (a, b) = (grid(8, 0), grid(8, 128));
        let most = i32::MAX as usize / (255 * 128);
        assert!(multiplies(most, &a, &b) && !multiplies(most + 1, &a, &b));
        check(1, [2, most, 17], a, b, true);
        // A zero point at the end leaves 255 on one side.
        assert!(!multiplies(1, &b, &a));
    }
}
