//! The kernels for AVX2, and for AVX-VNNI beside it: each goes through all pixels of a panel of one block, a few at a time.

// Iterators over sums would take their addresses and keep them in memory.
#![allow(clippy::needless_range_loop)]

use super::x86::{Finish, Place, Sums};
use super::{GROUP, LANES, Panel, QUAD, Rest, Word};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
};

/// Registers of eight channels per block.
pub const PARTS: usize = LANES / 8;

/// Sums of a few pixels and one block.
pub type Partial<const PIXELS: usize> = [[__m256i; PARTS]; PIXELS];

/// Whether [`InLongs`] can be used.
pub fn has_dots() -> bool {
    if cfg!(test) {
        return is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
    }
    is_x86_feature_detected!("avxvnni")
}

/// Products of 32 bytes, added up in eight channels.
pub trait Products: Copy {
    /// Whether sums may become full before their end.
    const FILLS: bool;

    /// Products of unsigned and signed bytes, added to sums.
    ///
    /// # Safety
    /// The processor has its instruction, and AVX2.
    unsafe fn add(sums: __m256i, x: __m256i, w: __m256i) -> __m256i;

    /// Sums of 32 bits.
    ///
    /// # Safety
    /// As for [`add`](Self::add).
    unsafe fn whole(sums: __m256i) -> __m256i;
}

/// In 16 bits, by twos, with `vpmaddubsw`.
#[derive(Clone, Copy)]
pub struct InWords;

impl Products for InWords {
    const FILLS: bool = true;

    #[inline(always)]
    unsafe fn add(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller promises AVX2.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(x, w)) }
    }

    #[inline(always)]
    unsafe fn whole(sums: __m256i) -> __m256i {
        // SAFETY: the caller promises AVX2.
        unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
    }
}

/// In 32 bits, by fours, with AVX-VNNI's `vpdpbusd`. Assembly, because an intrinsic is an instruction only in functions compiled for
/// AVX-VNNI alone. Tests use the encoding that AVX-512 has for the same instruction, so that they run where it is.
#[derive(Clone, Copy)]
pub struct InLongs;

impl Products for InLongs {
    const FILLS: bool = false;

    #[inline(always)]
    unsafe fn add(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller's promises.
        unsafe { vpdpbusd(sums, x, w) }
    }

    #[inline(always)]
    unsafe fn whole(sums: __m256i) -> __m256i {
        sums
    }
}

/// See [`InLongs`].
///
/// # Safety
/// The instruction is available.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn vpdpbusd(mut sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
    // SAFETY: the caller promises the instruction, which touches nothing but its operands.
    unsafe {
        #[cfg(not(test))]
        asm!("{{vex}} vpdpbusd {0}, {1}, {2}", inout(ymm_reg) sums, in(ymm_reg) x, in(ymm_reg) w,
            options(pure, nomem, nostack, preserves_flags));
        #[cfg(test)]
        asm!("{{evex}} vpdpbusd {0}, {1}, {2}", inout(ymm_reg) sums, in(ymm_reg) x, in(ymm_reg) w,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// All pixels of a panel of one block of bytes.
///
/// # Safety
/// As for [`vnni_panel`](super::x86::vnni_panel) with one block, but with AVX2, FMA and the instructions of `P`.
pub unsafe fn bytes<P: Products>(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
    // SAFETY: the caller's promises.
    unsafe {
        if P::FILLS && panel.needs_widening() {
            return match panel.rest() {
                Rest::Many => short::<6, P>(panel, acc),
                Rest::Four => short::<4, P>(panel, acc),
                Rest::Two => short::<2, P>(panel, acc),
                Rest::One => short::<1, P>(panel, acc),
            };
        }
        match panel.rest() {
            Rest::Many => short_once::<6, P, _>(panel, Sums, acc),
            Rest::Four => short_once::<4, P, _>(panel, Sums, acc),
            Rest::Two => short_once::<2, P, _>(panel, Sums, acc),
            Rest::One => short_once::<1, P, _>(panel, Sums, acc),
        }
    }
}

/// [`bytes`] whose sums become something else; they need no widening. Two loops, as there are many things they may become.
///
/// # Safety
/// As for [`bytes`].
pub unsafe fn finish_bytes<P: Products, F: Finish>(panel: &Panel<'_, u8, i8>, finish: F, out: &mut [F::Out]) {
    assert!(!panel.needs_widening(), "sums of 16 bits cannot hold all");
    // SAFETY: the caller's promises.
    unsafe {
        match panel.rest() {
            Rest::Many | Rest::Four => short_once::<6, P, F>(panel, finish, out),
            Rest::Two | Rest::One => short_once::<2, P, F>(panel, finish, out),
        }
    }
}

/// All pixels of a panel of one block of words.
///
/// # Safety
/// As for [`bytes`].
pub unsafe fn words<W: Word>(panel: &Panel<'_, i16, W>, acc: &mut [i32]) {
    // SAFETY: the caller's promises.
    unsafe {
        match panel.rest() {
            Rest::Many => wide::<6, W, _>(panel, Sums, acc),
            Rest::Four => wide::<4, W, _>(panel, Sums, acc),
            Rest::Two => wide::<2, W, _>(panel, Sums, acc),
            Rest::One => wide::<1, W, _>(panel, Sums, acc),
        }
    }
}

/// [`words`] whose sums become something else.
///
/// # Safety
/// As for [`bytes`].
pub unsafe fn finish_words<F: Finish>(panel: &Panel<'_, i16, i16>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the caller's promises.
    unsafe {
        match panel.rest() {
            Rest::Many | Rest::Four => wide::<6, i16, F>(panel, finish, out),
            Rest::Two | Rest::One => wide::<2, i16, F>(panel, finish, out),
        }
    }
}

/// `PIXELS` pixels at a time, times one block: a register holds eight channels x two partial sums of 16 bits, or one of 32, which
/// can hold all of the panel's pieces.
///
/// # Safety
/// As for [`bytes`].
#[target_feature(enable = "avx2,fma")]
unsafe fn short_once<const PIXELS: usize, P: Products, F: Finish>(
    panel: &Panel<'_, u8, i8>,
    finish: F,
    out: &mut [F::Out],
) {
    for (idx, pixels) in panel.pixels.chunks(PIXELS).enumerate() {
        let inputs = panel.inputs::<PIXELS>(pixels);
        let mut partial: Partial<PIXELS> = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        let mut weights = panel.weights.as_ptr();
        for &(offset, quads) in panel.pieces {
            for at in (offset..offset + quads * QUAD).step_by(QUAD) {
                // SAFETY: the caller promises a block of weights for all pieces: 64 bytes per group.
                let w: [__m256i; PARTS] =
                    std::array::from_fn(|part| unsafe { _mm256_loadu_si256(weights.add(part * 32).cast()) });
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the piece, of which these are 4 bytes, lies within the input.
                    let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for part in 0..PARTS {
                        // SAFETY: the caller promises the instructions.
                        partial[m][part] = unsafe { P::add(partial[m][part], x, w[part]) };
                    }
                }
                weights = weights.wrapping_add(GROUP);
            }
        }
        let mut sums = partial;
        for m in 0..PIXELS {
            for part in 0..PARTS {
                // SAFETY: the caller promises the instructions.
                sums[m][part] = unsafe { P::whole(partial[m][part]) };
            }
        }
        let first = idx * PIXELS * panel.stride;
        let to = panel.place(first, out.as_mut_ptr().wrapping_add(first));
        // SAFETY: the caller promises room for these pixels, and start values of a block.
        unsafe { finish.store_eights(sums, panel.start, pixels.len(), to) }
    }
}

/// [`short_once`] for panels of any length: partial sums are widened whenever they could be full.
///
/// # Safety
/// As for [`bytes`].
#[target_feature(enable = "avx2,fma")]
unsafe fn short<const PIXELS: usize, P: Products>(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
    for (idx, pixels) in panel.pixels.chunks(PIXELS).enumerate() {
        let mut weights = panel.weights.as_ptr();
        // SAFETY: the caller promises a block of weights for all pieces: 64 bytes per group.
        let next = || unsafe {
            let w = [_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())];
            weights = weights.add(GROUP);
            w
        };
        // SAFETY: the caller's promises are those that `short_with` asks for.
        unsafe {
            let first = idx * PIXELS * panel.stride;
            let to = panel.place(first, acc.as_mut_ptr().wrapping_add(first));
            short_with::<PIXELS, P, _>(panel, pixels, next, to)
        }
    }
}

/// [`short`] for one group of pixels with weights from `next`, a group of four inputs at a time.
///
/// # Safety
/// As for [`short`]; `next` gives weights for all pieces, and `to` is where the outputs of the `pixels` go, which are of the panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn short_with<const PIXELS: usize, P: Products, W>(
    panel: &Panel<'_, u8, W>,
    pixels: &[usize],
    mut next: impl FnMut() -> [__m256i; PARTS],
    to: Place<i32>,
) {
    // With many pixels the sums live in memory, and all registers are for the partial ones.
    let mut sums: Partial<PIXELS> = [[_mm256_setzero_si256(); PARTS]; PIXELS];
    let mut partial = sums;
    let mut room = panel.short_sums;
    let inputs = panel.inputs::<PIXELS>(pixels);
    for &(offset, quads) in panel.pieces {
        let mut at = offset;
        let stop = offset + quads * QUAD;
        while at < stop {
            let until = stop.min(at + room * QUAD);
            room -= (until - at) / QUAD;
            while at < until {
                let w = next();
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the piece, of which these are 4 bytes, lies within the input.
                    let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for part in 0..PARTS {
                        // SAFETY: the caller promises the instructions.
                        partial[m][part] = unsafe { P::add(partial[m][part], x, w[part]) };
                    }
                }
                at += QUAD;
            }
            if room == 0 {
                for m in 0..PIXELS {
                    for part in 0..PARTS {
                        // SAFETY: the caller promises the instructions.
                        sums[m][part] = _mm256_add_epi32(sums[m][part], unsafe { P::whole(partial[m][part]) });
                        partial[m][part] = _mm256_setzero_si256();
                    }
                }
                room = panel.short_sums;
            }
        }
    }
    let mut whole = sums;
    for m in 0..PIXELS {
        for part in 0..PARTS {
            // SAFETY: the caller promises the instructions.
            whole[m][part] = _mm256_add_epi32(sums[m][part], unsafe { P::whole(partial[m][part]) });
        }
    }
    // SAFETY: the caller promises room for these pixels, and start values of a block.
    unsafe { add_sums(whole, panel.start, pixels.len(), to) }
}

/// `PIXELS` pixels at a time, times one block, with `vpmaddwd`: a register holds the sums of eight channels.
///
/// # Safety
/// As for [`short`].
#[target_feature(enable = "avx2,fma")]
unsafe fn wide<const PIXELS: usize, W: Word, F: Finish>(panel: &Panel<'_, i16, W>, finish: F, out: &mut [F::Out]) {
    for (idx, pixels) in panel.pixels.chunks(PIXELS).enumerate() {
        let inputs = panel.inputs::<PIXELS>(pixels);
        let mut sums: Partial<PIXELS> = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        let mut weights = panel.weights.as_ptr();
        for &(offset, quads) in panel.pieces {
            // A pair of inputs per round, two rounds per group of four.
            for at in (offset..offset + quads * QUAD).step_by(2) {
                // SAFETY: the caller promises a block of weights for all pieces: 32 per pair.
                let w: [__m256i; PARTS] = std::array::from_fn(|part| unsafe { W::load(weights.add(part * 16)) });
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the piece, of which these are 2 words, lies within the input.
                    let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for part in 0..PARTS {
                        sums[m][part] = _mm256_add_epi32(sums[m][part], _mm256_madd_epi16(x, w[part]));
                    }
                }
                weights = weights.wrapping_add(2 * LANES);
            }
        }
        let first = idx * PIXELS * panel.stride;
        let to = panel.place(first, out.as_mut_ptr().wrapping_add(first));
        // SAFETY: the caller promises room for these pixels, and start values of a block.
        unsafe { finish.store_eights(sums, panel.start, pixels.len(), to) }
    }
}

/// Adds sums to the start values, or to what is there, of the wanted channels of so many pixels.
///
/// # Safety
/// As for [`Finish::store_eights`].
#[inline(always)]
pub unsafe fn add_sums<const PIXELS: usize>(
    sums: Partial<PIXELS>,
    start: Option<&[i32]>,
    pixels: usize,
    to: Place<i32>,
) {
    if to.channels < LANES {
        // A copy, so that the sums themselves are never anywhere but in registers.
        let copy = sums;
        // SAFETY: the caller's promises.
        return unsafe { add_some(&copy, start, pixels, to) };
    }
    for m in 0..PIXELS {
        if m == pixels {
            break;
        }
        for part in 0..PARTS {
            let out = to.out.wrapping_add(m * to.stride + part * 8);
            let base = start.map_or(out.cast_const(), |start| start.as_ptr().wrapping_add(part * 8));
            // SAFETY: the caller promises 16 start values, and room for these.
            unsafe {
                _mm256_storeu_si256(out.cast(), _mm256_add_epi32(sums[m][part], _mm256_loadu_si256(base.cast())));
            }
        }
    }
}

/// [`add_sums`] for fewer channels than a block has.
///
/// # Safety
/// As for [`add_sums`].
#[cold]
#[target_feature(enable = "avx2")]
unsafe fn add_some<const PIXELS: usize>(sums: &Partial<PIXELS>, start: Option<&[i32]>, pixels: usize, to: Place<i32>) {
    for (m, sums) in sums.iter().enumerate().take(pixels) {
        // SAFETY: the caller promises room for the wanted channels of these pixels.
        let out = unsafe { std::slice::from_raw_parts_mut(to.out.add(m * to.stride), to.channels) };
        let mut lanes = [0i32; LANES];
        lanes[..out.len()].copy_from_slice(start.map_or(&*out, |start| &start[..out.len()]));
        for (lanes, &sum) in lanes.chunks_exact_mut(8).zip(sums) {
            // SAFETY: these are 8 elements.
            unsafe {
                let base = _mm256_loadu_si256(lanes.as_ptr().cast());
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(sum, base));
            }
        }
        out.copy_from_slice(&lanes[..out.len()]);
    }
}
