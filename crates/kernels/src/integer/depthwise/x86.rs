//! The loops for x86.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use super::super::dot::x86::{Finish, Place, by_part, quarters, twice};
use super::{LANES, QUAD, SIDE, Windows};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_castsi256_si128,
    _mm256_cvtepi16_epi32, _mm256_cvtepu8_epi16, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_permute2x128_si256, _mm256_setzero_si256, _mm256_unpackhi_epi8, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm512_castsi256_si512, _mm512_dpbusd_epi32, _mm512_inserti64x4,
    _mm512_loadu_si512, _mm512_setzero_si512, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8,
    _mm512_unpacklo_epi16,
};
use std::ops::Range;

/// Channels of a block.
const BLOCK: usize = 4 * LANES;

/// Four taps of 64 channels, interleaved: parts 0 to 3.
#[inline(always)]
fn interleave(x: [__m512i; QUAD]) -> [__m512i; 4] {
    // SAFETY: whoever calls this is compiled for AVX-512 BW.
    unsafe {
        let (low01, high01) = (_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1]));
        let (low23, high23) = (_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3]));
        [
            _mm512_unpacklo_epi16(low01, low23),
            _mm512_unpackhi_epi16(low01, low23),
            _mm512_unpacklo_epi16(high01, high23),
            _mm512_unpackhi_epi16(high01, high23),
        ]
    }
}

/// All pixels and channels with `vpdpbusd`, four taps at a time.
///
/// # Safety
/// * AVX-512 F, BW, DQ, VL and VNNI are available.
/// * From every pixel and offset on, the input has a byte for every channel of every block, 64 to each.
/// * `weights` are packed as the module says, start values are those of whole blocks, `out` has all channels of each pixel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn quads<F: Finish>(weights: &[i8], windows: &Windows<'_>, finish: F, out: &mut [F::Out]) {
    let &Windows { input, pixels, offsets, start, channels, .. } = windows;
    let per_block = offsets.len().div_ceil(QUAD) * QUAD * BLOCK;
    for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(BLOCK)) {
        let first = block * BLOCK;
        // SAFETY: the caller promises whole blocks of start values.
        let (start, ready) = unsafe { (start_of_parts(&start[first..]), finish.ready(first, false)) };
        for (idx, &pixel) in pixels.offsets().iter().enumerate() {
            let window = input.as_ptr().wrapping_add(pixel + first);
            let mut sums = start;
            let mut weight = weights.as_ptr();
            for taps in offsets.chunks(QUAD) {
                let load = |tap: usize| -> __m512i {
                    // SAFETY: the caller promises 64 bytes at every offset.
                    unsafe { _mm512_loadu_si512(window.add(taps[tap.min(taps.len() - 1)]).cast()) }
                };
                let parts = interleave([load(0), load(1), load(2), load(3)]);
                for part in 0..4 {
                    // SAFETY: the caller promises 256 weights per group of taps, through which `weight` moves.
                    let w = unsafe { _mm512_loadu_si512(weight.add(part * BLOCK).cast()) };
                    sums[part] = _mm512_dpbusd_epi32(sums[part], parts[part], w);
                }
                weight = weight.wrapping_add(QUAD * BLOCK);
            }
            let at = idx * channels + first;
            let out = out.as_mut_ptr().wrapping_add(at);
            let to = Place { out, stride: channels, channel: first, at, channels: channels - first };
            // SAFETY: the caller promises room for this pixel.
            unsafe { finish.store_parts(&ready, sums, to) };
        }
    }
}

/// The same by columns of three taps, of which each pixel has `AHEAD` that the one before it in its row had not. Of a last block that is
/// not half full, two rows are taken together.
///
/// # Safety
/// As for [`quads`]; pixels of a row are `AHEAD` columns apart, or that is three.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn columns<const AHEAD: usize, F: Finish>(
    weights: &[i8],
    windows: &Windows<'_>,
    finish: F,
    out: &mut [F::Out],
) {
    let rows = windows.pixels.offsets().len() / windows.pixels.columns().max(1);
    let per_block = SIDE * QUAD * BLOCK;
    for (block, weights) in weights.chunks_exact(per_block).enumerate().take(windows.channels.div_ceil(BLOCK)) {
        // Not where pixels share nothing, which is rare.
        let is_half = AHEAD < SIDE && windows.channels - block * BLOCK <= BLOCK / 2;
        let together = if is_half { rows / 2 * 2 } else { 0 };
        // SAFETY: the caller's promises.
        unsafe {
            if AHEAD < SIDE && together > 0 {
                block_by_columns::<AHEAD, 2, F>(block, weights, windows, 0..together, &finish, out);
            }
            block_by_columns::<AHEAD, 1, F>(block, weights, windows, together..rows, &finish, out);
        }
    }
}

/// Some rows of a block of [`columns`], `ROWS` at a time: two rows have the first 32 channels in the halves of registers.
///
/// # Safety
/// As for [`columns`]; these are rows of it, and with two at a time a multiple of two.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block_by_columns<const AHEAD: usize, const ROWS: usize, F: Finish>(
    block: usize,
    weights: &[i8],
    windows: &Windows<'_>,
    rows: Range<usize>,
    finish: &F,
    out: &mut [F::Out],
) {
    let &Windows { input, pixels, offsets, start, channels } = windows;
    let offsets: [usize; SIDE * SIDE] = std::array::from_fn(|tap| offsets[tap]);
    let (width, pixels, first) = (pixels.columns(), pixels.offsets(), block * BLOCK);
    // SAFETY: the caller promises whole blocks of start values, and 256 weights per column.
    let (start, ready, weights) = unsafe {
        let mut own = [[_mm512_setzero_si512(); 4]; SIDE];
        for k in 0..SIDE {
            for part in 0..4 {
                own[k][part] = _mm512_loadu_si512(weights.as_ptr().add((k * QUAD + part) * BLOCK).cast());
            }
        }
        let mut start = start_of_parts(&start[first..]);
        if ROWS == 2 {
            start = twice(start);
            for k in 0..SIDE {
                own[k] = twice(own[k]);
            }
        }
        (start, finish.ready(first, ROWS == 2), own)
    };
    let column = |pixel: [usize; ROWS], column: usize| -> [__m512i; 4] {
        let load = |row: usize| {
            let at = |i: usize| input.as_ptr().wrapping_add(pixel[i] + first + offsets[row * SIDE + column]);
            // SAFETY: the caller promises 64 bytes at every offset of every pixel.
            unsafe {
                match ROWS {
                    2 => {
                        let (low, high) = (_mm256_loadu_si256(at(0).cast()), _mm256_loadu_si256(at(ROWS - 1).cast()));
                        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
                    }
                    _ => _mm512_loadu_si512(at(0).cast()),
                }
            }
        };
        let x = load(2);
        interleave([load(0), load(1), x, x])
    };
    for row in rows.step_by(ROWS) {
        let pixel = |idx: usize| -> [usize; ROWS] { std::array::from_fn(|i| pixels[(row + i) * width + idx]) };
        // What each pixel finds of the one before.
        let mut parts = [[_mm512_setzero_si512(); 4]; SIDE];
        for k in AHEAD..SIDE {
            parts[k] = column(pixel(0), k - AHEAD);
        }
        for idx in 0..width {
            // Registers are for what changes: weights and start values are operands in the first cache.
            let (weights, start) = (anew(&raw const weights), anew(&raw const start));
            for k in 0..SIDE {
                parts[k] = if k + AHEAD < SIDE { parts[k + AHEAD] } else { column(pixel(idx), k) };
            }
            // SAFETY: these are the registers above.
            let mut sums = unsafe { *start };
            for k in 0..SIDE {
                for part in 0..4 {
                    // SAFETY: as above.
                    sums[part] = _mm512_dpbusd_epi32(sums[part], parts[k][part], unsafe { (*weights)[k][part] });
                }
            }
            let at = (row * width + idx) * channels + first;
            let out = out.as_mut_ptr().wrapping_add(at);
            let to = Place { out, stride: width * channels, channel: first, at, channels: channels - first };
            // SAFETY: the caller promises room for these pixels.
            unsafe {
                match ROWS {
                    2 => finish.store_halves(&ready, sums, to),
                    _ => finish.store_parts(&ready, sums, to),
                }
            }
        }
    }
}

/// The same pointer, of which the compiler does not know that it points to what it did in the iteration before, and so keeps nothing of it in
/// a register, or on the stack.
#[inline(always)]
fn anew<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instructions.
    unsafe { asm!("/* {0} */", inout(reg) pointer, options(readonly, nostack, preserves_flags)) };
    pointer
}

/// Start values of a block in the order of parts.
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
unsafe fn start_of_parts(start: &[i32]) -> [__m512i; 4] {
    // SAFETY: these are 64 elements; the caller promises AVX-512.
    unsafe { by_part(quarters(start[..BLOCK].as_ptr())) }
}

/// All pixels and channels with `vpmaddwd`.
///
/// # Safety
/// * AVX2 and FMA are available.
/// * From every pixel and offset on, the input has a byte for every channel of every block, 16 to each.
/// * `weights` are packed as the module says, start values are those of whole blocks, `out` has all channels of each pixel.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn pairs<F: Finish>(weights: &[i16], windows: &Windows<'_>, finish: F, out: &mut [F::Out]) {
    /// Pixels that meet weights together.
    const TWO: usize = 2;
    let &Windows { input, pixels, offsets, start, channels, .. } = windows;
    let per_block = offsets.len().div_ceil(2) * 2 * LANES;
    for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(LANES)) {
        let first = block * LANES;
        for (idx, pair) in pixels.offsets().chunks(TWO).enumerate() {
            // Of a single last pixel, the same one twice.
            let window = [0, pair.len() - 1].map(|i| input.as_ptr().wrapping_add(pair[i] + first));
            let mut sums = [[_mm256_setzero_si256(); 2]; TWO];
            let mut weight = weights.as_ptr();
            for taps in offsets.chunks(2) {
                // SAFETY: the caller promises 32 weights per pair of taps, through which `weight` moves.
                let w = |half: usize| -> __m256i { unsafe { _mm256_loadu_si256(weight.add(half * LANES).cast()) } };
                let (low, high) = (w(0), w(1));
                for m in 0..TWO {
                    // SAFETY: the caller promises 16 bytes at every offset.
                    let load =
                        |offset: usize| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(window[m].add(offset).cast())) };
                    let (x0, x1) = (load(taps[0]), load(taps[taps.len() - 1]));
                    sums[m][0] = _mm256_add_epi32(sums[m][0], _mm256_madd_epi16(_mm256_unpacklo_epi16(x0, x1), low));
                    sums[m][1] = _mm256_add_epi32(sums[m][1], _mm256_madd_epi16(_mm256_unpackhi_epi16(x0, x1), high));
                }
                weight = weight.wrapping_add(2 * LANES);
            }
            for [low, high] in &mut sums {
                // From the order of the interleaved halves to that of channels.
                let halves = [*low, *high];
                *low = _mm256_permute2x128_si256::<0x20>(halves[0], halves[1]);
                *high = _mm256_permute2x128_si256::<0x31>(halves[0], halves[1]);
            }
            let to = windows.place(TWO * idx, first, LANES, out);
            // SAFETY: the caller promises room for these pixels, and whole blocks of start values.
            unsafe { finish.store_eights(sums, Some(&start[first..]), pair.len(), to) };
        }
    }
}

/// All pixels and channels with `vpmaddubsw`, where 16 bits hold the sums.
///
/// # Safety
/// As for [`pairs`], with blocks of 32 channels.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn short_pairs<F: Finish>(weights: &[i8], windows: &Windows<'_>, finish: F, out: &mut [F::Out]) {
    let &Windows { input, pixels, offsets, start, channels, .. } = windows;
    const BLOCK: usize = 2 * LANES;
    let per_block = offsets.len().div_ceil(2) * 2 * BLOCK;
    for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(BLOCK)) {
        let first = block * BLOCK;
        for (idx, &pixel) in pixels.offsets().iter().enumerate() {
            let window = input.as_ptr().wrapping_add(pixel + first);
            let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            let mut weight = weights.as_ptr();
            for taps in offsets.chunks(2) {
                // SAFETY: the caller promises 32 bytes at every offset.
                let load = |offset: usize| -> __m256i { unsafe { _mm256_loadu_si256(window.add(offset).cast()) } };
                let (x0, x1) = (load(taps[0]), load(taps[taps.len() - 1]));
                // SAFETY: the caller promises 64 weights per pair of taps, through which `weight` moves.
                let w = |half: usize| -> __m256i { unsafe { _mm256_loadu_si256(weight.add(half * BLOCK).cast()) } };
                low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(x0, x1), w(0)));
                high = _mm256_add_epi16(high, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(x0, x1), w(1)));
                weight = weight.wrapping_add(2 * BLOCK);
            }
            // Eight channels each.
            let sums = [
                _mm256_cvtepi16_epi32(_mm256_castsi256_si128(low)),
                _mm256_cvtepi16_epi32(_mm256_castsi256_si128(high)),
                _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(low)),
                _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(high)),
            ];
            // SAFETY: the caller promises room for this pixel, and whole blocks of start values.
            unsafe { finish.store_row_of_eights(sums, &start[first..], windows.place(idx, first, BLOCK, out)) };
        }
    }
}

impl Windows<'_> {
    /// Where the outputs of a pixel go from channel `first` on, at most `most`.
    #[inline(always)]
    fn place<O>(&self, pixel: usize, first: usize, most: usize, out: &mut [O]) -> Place<O> {
        let (stride, at) = (self.channels, pixel * self.channels + first);
        let out = out.as_mut_ptr().wrapping_add(at);
        Place { out, stride, channel: first, at, channels: (stride - first).min(most) }
    }
}
