//! Depthwise convolutions: every channel alone, one weight per tap.
//!
//! With AVX2, `vpmaddwd` adds two taps at a time: 16 channels of two taps are widened to 16 bits and interleaved,
//!
//! ```text
//! x(tap 0): c0 … c15      low  = c0t0 c0t1 … c3t0 c3t1 | c8t0 c8t1 … c11t0 c11t1
//! x(tap 1): c0 … c15      high = c4t0 c4t1 … c7t0 c7t1 | c12t0 …
//! ```
//!
//! and multiplied with weights in the same order, `[block of 16 channels][pair of taps][low, high]`. Where 16 bits hold the sums,
//! `vpmaddubsw` does the same with bytes, 32 channels at a time. An odd tap is paired with itself and a weight of 0.
//!
//! With VNNI, `vpdpbusd` adds four taps at a time: 64 channels of four taps are interleaved by bytes, then by words,
//!
//! ```text
//! x(tap 0): c0 … c63      part j, j = 0 … 3:  c4j t0-3 … c4j+3 t0-3 | c16+4j … | c32+4j … | c48+4j …
//! ```
//!
//! with weights `[block of 64 channels][four taps][part]`; sums are brought into the order of channels at the end. Without
//! any of these, weights are `[tap][channel]`.

use super::dot::Kernel;
use super::weights::{LANES, Packed};
use crate::multiversion::multiversion;

/// Channels that are read together at most, and so the bytes that may be read past a window's last one.
pub(super) const SLACK: usize = 4 * LANES;

/// Taps of a group for `vpdpbusd`.
const QUAD: usize = 4;

/// How a layer's weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `[tap][channel]`.
    Taps,
    /// For `vpmaddwd`.
    Pairs,
    /// For `vpmaddubsw`.
    ShortPairs,
    /// For `vpdpbusd`.
    Quads,
}

impl Form {
    fn of(kernel: Kernel, weights: &Packed) -> Self {
        match weights {
            Packed::Words(_) => Form::Pairs,
            _ if kernel.has_vnni() => Form::Quads,
            _ if kernel.has_avx2() => Form::ShortPairs,
            _ => Form::Taps,
        }
    }

    /// Channels of a block, and taps of a group.
    fn block(self) -> (usize, usize) {
        match self {
            Form::Taps => (1, 1),
            Form::Pairs => (LANES, 2),
            Form::ShortPairs => (2 * LANES, 2),
            Form::Quads => (4 * LANES, QUAD),
        }
    }
}

/// Weights `[channel][tap]` in the order of the loops; `short_sums` are those of single weights.
pub(super) fn pack(kernel: Kernel, short_sums: usize, taps: usize, w: &[i8]) -> Packed {
    let channels = w.len() / taps;
    let pairs = taps.div_ceil(2);
    let by_pair = |block: usize, quarters: [usize; 4]| {
        let mut out = vec![0i8; channels.div_ceil(block) * pairs * 2 * block];
        for (i, &w) in w.iter().enumerate() {
            let (channel, tap) = (i / taps, i % taps);
            let lane = channel % block;
            let at = (channel / block * pairs + tap / 2) * 2 * block;
            let run = block / 4;
            out[at + quarters[lane / run] * 2 * run + lane % run * 2 + tap % 2] = w;
        }
        out
    };
    // Low and high halves of either kind hold the quarters 0 2 | 1 3.
    let quarters = [0, 2, 1, 3];
    if kernel.has_vnni() {
        Packed::Bytes(by_quad(taps, w))
    } else if !kernel.has_avx2() {
        Packed::Bytes((0..w.len()).map(|i| w[i % channels * taps + i / channels]).collect())
    } else if pairs <= short_sums / 2 {
        Packed::Bytes(by_pair(2 * LANES, quarters))
    } else {
        Packed::Words(by_pair(LANES, quarters).into_iter().map(i16::from).collect())
    }
}

/// Weights `[channel][tap]` as `vpdpbusd` meets them.
fn by_quad(taps: usize, w: &[i8]) -> Vec<i8> {
    let block = 4 * LANES;
    let (channels, quads) = (w.len() / taps, taps.div_ceil(QUAD));
    let mut out = vec![0i8; channels.div_ceil(block) * quads * QUAD * block];
    for (i, &w) in w.iter().enumerate() {
        let (channel, tap) = (i / taps, i % taps);
        let (lane, part, k) = (channel % block / LANES, channel % LANES / 4, channel % 4);
        let at = (channel / block * quads + tap / QUAD) * QUAD * block;
        out[at + part * block + lane * LANES + k * QUAD + tap % QUAD] = w;
    }
    out
}

/// Accumulates pixels whose windows begin at `pixels` in `input`; taps are at `offsets` from there. `start` has whole blocks of
/// [`SLACK`] channels.
///
/// # Panics
/// If a window and its [`SLACK`] reach past `input`, or a slice is shorter than the others say.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    kernel: Kernel,
    weights: &Packed,
    input: &[u8],
    pixels: &[usize],
    offsets: &[usize],
    start: &[i32],
    channels: usize,
    acc: &mut [i32],
) {
    let form = Form::of(kernel, weights);
    if let (Form::Taps, Packed::Bytes(weights)) = (form, weights) {
        for (acc, &pixel) in acc.chunks_exact_mut(channels).zip(pixels) {
            pixel_by_tap(&input[pixel..], offsets, weights, start, acc);
        }
        return;
    }
    let (block, group) = form.block();
    let blocks = channels.div_ceil(block);
    let reach = offsets.iter().max().map_or(0, |o| o + blocks * block);
    let last = pixels.iter().max().map_or(0, |p| p + reach);
    let needed = blocks * offsets.len().div_ceil(group) * group * block;
    assert!(last <= input.len(), "a window reaches past the input");
    assert!(start.len() >= blocks * block && acc.len() >= pixels.len() * channels, "accumulators are missing");
    match (form, weights) {
        #[cfg(target_arch = "x86_64")]
        (Form::Quads, Packed::Bytes(weights)) => {
            assert!(weights.len() >= needed, "weights are missing");
            // SAFETY: the kernel was chosen where VNNI was found; lengths were checked just now.
            unsafe { x86::quads(weights, input, pixels, offsets, start, channels, acc) };
        }
        #[cfg(target_arch = "x86_64")]
        (Form::ShortPairs, Packed::Bytes(weights)) => {
            assert!(weights.len() >= needed, "weights are missing");
            // SAFETY: the kernel was chosen where AVX2 was found; lengths were checked just now.
            unsafe { x86::short_pairs(weights, input, pixels, offsets, start, channels, acc) };
        }
        #[cfg(target_arch = "x86_64")]
        (Form::Pairs, Packed::Words(weights)) => {
            assert!(weights.len() >= needed, "weights are missing");
            // SAFETY: as above.
            unsafe { x86::pairs(weights, input, pixels, offsets, start, channels, acc) };
        }
        _ => unreachable!("{needed} depthwise weights are neither bytes nor words of this processor"),
    }
}

multiversion! {
    /// One pixel, weights `[tap][channel]`.
    fn pixel_by_tap(input: &[u8], offsets: &[usize], weights: &[i8], start: &[i32], acc: &mut [i32]) {
        let channels = acc.len();
        acc.copy_from_slice(&start[..channels]);
        for (offset, weights) in offsets.iter().zip(weights.chunks_exact(channels)) {
            let input = &input[*offset..][..channels];
            for ((acc, &x), &w) in acc.iter_mut().zip(input).zip(weights) {
                *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, QUAD};
    use std::arch::x86_64::{
        __m256i, __m512i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_castsi256_si128,
        _mm256_cvtepi16_epi32, _mm256_cvtepu8_epi16, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_maddubs_epi16, _mm256_permute2x128_si256, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm512_add_epi32,
        _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
        _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8, _mm512_unpacklo_epi16,
    };

    /// All pixels and channels with `vpdpbusd`.
    ///
    /// # Safety
    /// * AVX-512 F, BW and VNNI are available.
    /// * From every pixel and offset on, `input` has a byte for every channel of every block, 64 to each.
    /// * `weights` are packed as the module says, `start` has whole blocks, `acc` has `channels` elements per pixel.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe fn quads(
        weights: &[i8],
        input: &[u8],
        pixels: &[usize],
        offsets: &[usize],
        start: &[i32],
        channels: usize,
        acc: &mut [i32],
    ) {
        const BLOCK: usize = 4 * LANES;
        let per_block = offsets.len().div_ceil(QUAD) * QUAD * BLOCK;
        for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(BLOCK)) {
            let first = block * BLOCK;
            for (idx, &pixel) in pixels.iter().enumerate() {
                let window = input.as_ptr().wrapping_add(pixel + first);
                let mut sums = [_mm512_setzero_si512(); 4];
                let mut weight = weights.as_ptr();
                for taps in offsets.chunks(QUAD) {
                    let load = |tap: usize| -> __m512i {
                        // SAFETY: the caller promises 64 bytes at every offset.
                        unsafe { _mm512_loadu_si512(window.add(taps[tap.min(taps.len() - 1)]).cast()) }
                    };
                    let x: [__m512i; QUAD] = [load(0), load(1), load(2), load(3)];
                    let (low01, high01) = (_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1]));
                    let (low23, high23) = (_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3]));
                    let parts = [
                        _mm512_unpacklo_epi16(low01, low23),
                        _mm512_unpackhi_epi16(low01, low23),
                        _mm512_unpacklo_epi16(high01, high23),
                        _mm512_unpackhi_epi16(high01, high23),
                    ];
                    for part in 0..4 {
                        // SAFETY: the caller promises 256 weights per group of taps, through which `weight` moves.
                        let w = unsafe { _mm512_loadu_si512(weight.add(part * BLOCK).cast()) };
                        sums[part] = _mm512_dpbusd_epi32(sums[part], parts[part], w);
                    }
                    weight = weight.wrapping_add(QUAD * BLOCK);
                }
                // Quarter l of part j has channels 16 l + 4 j …: a transposition of quarters.
                let (a, b) =
                    (_mm512_shuffle_i32x4::<0x44>(sums[0], sums[1]), _mm512_shuffle_i32x4::<0x44>(sums[2], sums[3]));
                let (c, d) =
                    (_mm512_shuffle_i32x4::<0xee>(sums[0], sums[1]), _mm512_shuffle_i32x4::<0xee>(sums[2], sums[3]));
                let rows = [
                    _mm512_shuffle_i32x4::<0x88>(a, b),
                    _mm512_shuffle_i32x4::<0xdd>(a, b),
                    _mm512_shuffle_i32x4::<0x88>(c, d),
                    _mm512_shuffle_i32x4::<0xdd>(c, d),
                ];
                for (part, &sum) in rows.iter().enumerate() {
                    let from = first + part * LANES;
                    let wanted = channels.saturating_sub(from).min(LANES);
                    let to = acc.as_mut_ptr().wrapping_add(idx * channels + from);
                    // SAFETY: `start` has whole blocks; of the accumulators, only wanted channels of this pixel are stored.
                    unsafe {
                        let start = _mm512_loadu_si512(start.as_ptr().add(from).cast());
                        _mm512_mask_storeu_epi32(to, ((1u32 << wanted) - 1) as u16, _mm512_add_epi32(sum, start));
                    }
                }
            }
        }
    }

    /// All pixels and channels with `vpmaddwd`.
    ///
    /// # Safety
    /// * AVX2 is available.
    /// * From every pixel and offset on, `input` has a byte for every channel of every block, 16 to each.
    /// * `weights` are packed as the module says, `start` has whole blocks, `acc` has `channels` elements per pixel.
    #[target_feature(enable = "avx2")]
    pub unsafe fn pairs(
        weights: &[i16],
        input: &[u8],
        pixels: &[usize],
        offsets: &[usize],
        start: &[i32],
        channels: usize,
        acc: &mut [i32],
    ) {
        let per_block = offsets.len().div_ceil(2) * 2 * LANES;
        for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(LANES)) {
            let first = block * LANES;
            let wanted = (channels - first).min(LANES);
            // SAFETY: `start` has whole blocks.
            let start = |part: usize| unsafe { _mm256_loadu_si256(start.as_ptr().add(first + 8 * part).cast()) };
            let (start0, start1) = (start(0), start(1));
            // Sums are kept in the order of the interleaved halves until the end.
            let low0 = _mm256_permute2x128_si256::<0x20>(start0, start1);
            let high0 = _mm256_permute2x128_si256::<0x31>(start0, start1);
            for (idx, &pixel) in pixels.iter().enumerate() {
                let window = input.as_ptr().wrapping_add(pixel + first);
                let (mut low, mut high) = (low0, high0);
                let mut weight = weights.as_ptr();
                for taps in offsets.chunks(2) {
                    // SAFETY: the caller promises 16 bytes at every offset.
                    let load =
                        |offset: usize| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(window.add(offset).cast())) };
                    let (x0, x1) = (load(taps[0]), load(taps[taps.len() - 1]));
                    // SAFETY: the caller promises 32 weights per pair of taps, through which `weight` moves.
                    let w = |half: usize| -> __m256i { unsafe { _mm256_loadu_si256(weight.add(half * LANES).cast()) } };
                    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(x0, x1), w(0)));
                    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(x0, x1), w(1)));
                    weight = weight.wrapping_add(2 * LANES);
                }
                let sums = [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)];
                let to = &mut acc[idx * channels + first..][..wanted];
                let mut lanes = [0i32; LANES];
                let row = if wanted == LANES { to.as_mut_ptr() } else { lanes.as_mut_ptr() };
                for (part, &sum) in sums.iter().enumerate() {
                    // SAFETY: both hold 16 elements, of which this stores 8 from `8 * part` on.
                    unsafe { _mm256_storeu_si256(row.add(8 * part).cast(), sum) };
                }
                if wanted < LANES {
                    to.copy_from_slice(&lanes[..wanted]);
                }
            }
        }
    }

    /// All pixels and channels with `vpmaddubsw`, where 16 bits hold the sums.
    ///
    /// # Safety
    /// As for [`pairs`], with blocks of 32 channels.
    #[target_feature(enable = "avx2")]
    pub unsafe fn short_pairs(
        weights: &[i8],
        input: &[u8],
        pixels: &[usize],
        offsets: &[usize],
        start: &[i32],
        channels: usize,
        acc: &mut [i32],
    ) {
        const BLOCK: usize = 2 * LANES;
        let per_block = offsets.len().div_ceil(2) * 2 * BLOCK;
        for (block, weights) in weights.chunks_exact(per_block).enumerate().take(channels.div_ceil(BLOCK)) {
            let first = block * BLOCK;
            let wanted = (channels - first).min(BLOCK);
            for (idx, &pixel) in pixels.iter().enumerate() {
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
                    _mm256_castsi256_si128(low),
                    _mm256_castsi256_si128(high),
                    _mm256_extracti128_si256::<1>(low),
                    _mm256_extracti128_si256::<1>(high),
                ];
                let to = &mut acc[idx * channels + first..][..wanted];
                let mut lanes = [0i32; BLOCK];
                let row = if wanted == BLOCK { to.as_mut_ptr() } else { lanes.as_mut_ptr() };
                for (part, sum) in sums.into_iter().enumerate() {
                    // SAFETY: both hold 32 elements and `start` has whole blocks; these are 8 from `8 * part` on.
                    unsafe {
                        let start = _mm256_loadu_si256(start.as_ptr().add(first + 8 * part).cast());
                        let sum = _mm256_add_epi32(start, _mm256_cvtepi16_epi32(sum));
                        _mm256_storeu_si256(row.add(8 * part).cast(), sum);
                    }
                }
                if wanted < BLOCK {
                    to.copy_from_slice(&lanes[..wanted]);
                }
            }
        }
    }
}
