//! Panels of narrow weights for x86.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use super::{GROUP, Narrow};
use crate::integer::conv::room;
use crate::integer::dot::avx2::{InWords, PARTS, short_with};
use crate::integer::dot::x86::{Finish, Sums, begin, vnni_panel};
use crate::integer::dot::{MAX_BLOCKS, Panel, Rest};
use crate::integer::weights::{LANES, QUAD};
use std::arch::x86_64::{
    __m256i, __m512i, _mm_loadu_si128, _mm256_add_epi8, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setr_epi8,
    _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_srlv_epi32, _mm256_storeu_si256, _mm512_add_epi8, _mm512_and_si512, _mm512_broadcast_i32x4,
    _mm512_broadcast_i64x4, _mm512_dpbusd_epi32, _mm512_mask_add_epi8, _mm512_rolv_epi64, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setr_epi64, _mm512_setzero_si512, _mm512_srlv_epi64, _mm512_storeu_si512,
    _mm512_ternarylogic_epi32,
};

/// Runs `$run` with `$BITS` as those of a form.
macro_rules! with_bits {
    ($form:expr, $BITS:ident => $run:expr) => {
        with_bits!(1 2 3 4 5 6 7, $form, $BITS => $run)
    };
    ($($bits:literal)*, $form:expr, $BITS:ident => $run:expr) => {
        match $form.bits {
            $($bits => {
                const $BITS: u8 = $bits;
                $run
            })*
            bits => unreachable!("weights of {bits} bits are not narrow"),
        }
    };
}

/// A panel of at most six pixels, with `vpmaddubsw`, also where there is AVX-VNNI: reading weights takes longer than multiplying them.
///
/// # Safety
/// As for [`bytes`](crate::integer::dot::avx2::bytes), with a block of weights in the given form.
pub unsafe fn run(panel: &Panel<'_, u8, u8>, form: Narrow, acc: &mut [i32]) {
    // SAFETY: the caller's promises are those of `pixels`.
    with_bits!(form, BITS => unsafe {
        match panel.rest() {
            Rest::One => pixels::<1, BITS>(panel, form.lowest, acc),
            Rest::Two => pixels::<2, BITS>(panel, form.lowest, acc),
            Rest::Four => pixels::<4, BITS>(panel, form.lowest, acc),
            Rest::Many => pixels::<6, BITS>(panel, form.lowest, acc),
        }
    })
}

/// Up to `PIXELS` pixels times one block, as the short kernel does it.
///
/// # Safety
/// As for [`run`]; `BITS` are those of the weights.
#[target_feature(enable = "avx2,fma")]
unsafe fn pixels<const PIXELS: usize, const BITS: u8>(panel: &Panel<'_, u8, u8>, lowest: i8, acc: &mut [i32]) {
    let lowest = _mm256_set1_epi8(lowest);
    let mut weights = panel.weights.as_ptr();
    // SAFETY: the caller promises a block of weights for all pieces.
    let next = || unsafe {
        let codes = expand::<BITS>(weights);
        weights = weights.add(usize::from(BITS) * 8);
        [_mm256_add_epi8(codes[0], lowest), _mm256_add_epi8(codes[1], lowest)]
    };
    // SAFETY: the caller's promises are those that `short_with` asks for.
    unsafe { short_with::<PIXELS, InWords, _>(panel, panel.pixels, next, panel.place(0, acc.as_mut_ptr())) }
}

/// Pixels whose sums with [`MAX_BLOCKS`] blocks leave some of 32 registers.
const MOST_PIXELS: usize = 6;
/// Up to so many pixels, expanding weights again for each few of them is faster than keeping them.
const FEW_PIXELS: usize = 2 * MOST_PIXELS;

/// A panel of up to [`MAX_BLOCKS`] blocks, with `vpdpbusd`. Of many pixels, the first ones leave the weights in `expanded` for the others.
///
/// # Safety
/// As for [`vnni_panel`], with blocks of weights in the given form.
pub unsafe fn vnni(panel: &Panel<'_, u8, u8>, form: Narrow, expanded: &mut Vec<i8>, acc: &mut [i32]) {
    let count = panel.pixels.len();
    if count <= FEW_PIXELS {
        let together = count.div_ceil(count.div_ceil(MOST_PIXELS).max(1)).max(1);
        for (pixels, acc) in panel.pixels.chunks(together).zip(acc.chunks_mut(together * panel.stride)) {
            // SAFETY: the caller's promises.
            unsafe { few_pixels(&Panel { pixels, ..*panel }, form, None, acc) };
        }
        return;
    }
    let block_len = panel.quads() * GROUP;
    let expanded = room(expanded, panel.blocks * block_len, 0);
    let (first, rest) = panel.pixels.split_at(MOST_PIXELS);
    // SAFETY: the caller's promises are about all pixels; `expanded` has room for these blocks.
    unsafe { few_pixels(&Panel { pixels: first, ..*panel }, form, Some(expanded), acc) };
    let bytes = Panel {
        input: panel.input,
        pixels: rest,
        pieces: panel.pieces,
        weights: &*expanded,
        block_len,
        blocks: panel.blocks,
        next: panel.next,
        start: panel.start,
        channels: panel.channels,
        stride: panel.stride,
        channel: panel.channel,
        at: panel.at + MOST_PIXELS * panel.stride,
        short_sums: panel.short_sums,
    };
    // SAFETY: as above, and `expanded` holds all weights of the panel by now.
    unsafe { vnni_panel(&bytes, Sums, &mut acc[MOST_PIXELS * panel.stride..]) };
}

/// A panel of up to [`MOST_PIXELS`] pixels; `expanded` gets the weights of all its pieces as bytes, block by block.
///
/// # Safety
/// As for [`vnni`]; `expanded` has 64 elements per block and group of four inputs.
unsafe fn few_pixels(panel: &Panel<'_, u8, u8>, form: Narrow, mut expanded: Option<&mut [i8]>, acc: &mut [i32]) {
    // SAFETY: the caller's promises are those of `blocks`.
    unsafe {
        if panel.blocks == MAX_BLOCKS {
            return blocks::<{ MAX_BLOCKS }>(panel, form, expanded, acc);
        }
        // The last channels of a layer: one block after the other, so that there are half as many instances.
        let block_len = panel.quads() * GROUP;
        for block in 0..panel.blocks {
            let expanded = expanded.as_mut().map(|expanded| &mut expanded[block * block_len..]);
            blocks::<1>(&panel.block(block), form, expanded, &mut acc[block * LANES..]);
        }
    }
}

/// # Safety
/// As for [`few_pixels`], with panels of `BLOCKS` blocks.
unsafe fn blocks<const BLOCKS: usize>(
    panel: &Panel<'_, u8, u8>,
    form: Narrow,
    expanded: Option<&mut [i8]>,
    acc: &mut [i32],
) {
    // SAFETY: the caller's promises are those of `vnni_pixels`.
    with_bits!(form, BITS => unsafe {
        match (panel.pixels.len(), expanded) {
            (_, Some(to)) => vnni_pixels::<MOST_PIXELS, BLOCKS, BITS, true>(panel, form.lowest, to, acc),
            (0 | 1, None) => vnni_pixels::<1, BLOCKS, BITS, false>(panel, form.lowest, &mut [], acc),
            (2, None) => vnni_pixels::<2, BLOCKS, BITS, false>(panel, form.lowest, &mut [], acc),
            (3 | 4, None) => vnni_pixels::<4, BLOCKS, BITS, false>(panel, form.lowest, &mut [], acc),
            (_, None) => vnni_pixels::<MOST_PIXELS, BLOCKS, BITS, false>(panel, form.lowest, &mut [], acc),
        }
    })
}

/// # Safety
/// As for [`few_pixels`]; `BITS` are those of the weights, `BLOCKS` those of the panel, which has at most `PIXELS` pixels. With `KEEP`,
/// `expanded` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni_pixels<const PIXELS: usize, const BLOCKS: usize, const BITS: u8, const KEEP: bool>(
    panel: &Panel<'_, u8, u8>,
    lowest: i8,
    expanded: &mut [i8],
    acc: &mut [i32],
) {
    let lowest = _mm512_set1_epi8(lowest);
    let inputs = panel.inputs::<PIXELS>(panel.pixels);
    // SAFETY: the caller promises start values, or outputs of these pixels.
    let mut sums = unsafe { begin::<PIXELS, BLOCKS, Sums, _>(panel, panel.pixels.len(), acc.as_ptr()) };
    let mut weights = panel.weights.as_ptr();
    let mut to = expanded.as_mut_ptr();
    let block_len = panel.quads() * GROUP;
    for &(offset, quads) in panel.pieces {
        for at in (offset..offset + quads * QUAD).step_by(QUAD) {
            let mut w = [lowest; BLOCKS];
            for j in 0..BLOCKS {
                // SAFETY: the caller promises blocks of weights for all pieces, and room for as many bytes.
                unsafe {
                    w[j] = _mm512_add_epi8(expand_512::<BITS>(weights.add(j * panel.block_len)), lowest);
                    if KEEP {
                        _mm512_storeu_si512(to.add(j * block_len).cast(), w[j]);
                    }
                }
            }
            for m in 0..PIXELS {
                // SAFETY: the caller promises that the piece, of which these are 4 bytes, lies within the input.
                let x = _mm512_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                for j in 0..BLOCKS {
                    sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], x, w[j]);
                }
            }
            weights = weights.wrapping_add(usize::from(BITS) * 8);
            to = to.wrapping_add(GROUP);
        }
    }
    // SAFETY: the caller promises outputs of these pixels.
    unsafe { Sums.store(sums, panel.pixels.len(), panel.place(0, acc.as_mut_ptr())) };
}

/// The codes of 64 weights.
///
/// # Safety
/// `from` holds `BITS * 8` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn expand_512<const BITS: u8>(from: *const u8) -> __m512i {
    let mut out = _mm512_setzero_si512();
    let mut from = from;
    if BITS & 4 != 0 {
        // SAFETY: the first 32 of the promised bytes.
        let v = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(from.cast()) });
        let fields = _mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
        out = _mm512_and_si512(fields, _mm512_set1_epi8(15));
        from = from.wrapping_add(32);
    }
    if BITS & 2 != 0 {
        // SAFETY: 16 of the promised bytes, after those of four bits if there are any.
        let v = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(from.cast()) });
        out = if BITS & 4 == 0 {
            let fields = _mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
            _mm512_and_si512(fields, _mm512_set1_epi8(3))
        } else {
            // Each field goes to bits 4 and 5 of its byte, and what else is there is cut off: out | fields & mask.
            let fields = _mm512_rolv_epi64(v, _mm512_setr_epi64(4, 4, 2, 2, 0, 0, 62, 62));
            _mm512_ternarylogic_epi32::<0xf8>(out, fields, _mm512_set1_epi8(0x30))
        };
        from = from.wrapping_add(16);
    }
    if BITS & 1 != 0 {
        // SAFETY: the last 8 of the promised bytes.
        let set = unsafe { from.cast::<u64>().read_unaligned() };
        out = _mm512_mask_add_epi8(out, set, out, _mm512_set1_epi8(1 << (BITS - 1)));
    }
    out
}

/// Weights of whole groups as bytes.
///
/// # Safety
/// AVX2 is available; `from` holds whole groups of the form, `to` 64 elements for each.
pub unsafe fn expand_all(form: Narrow, from: &[u8], to: &mut [i8]) {
    #[target_feature(enable = "avx2")]
    unsafe fn all<const BITS: u8>(lowest: i8, from: &[u8], to: &mut [i8]) {
        let lowest = _mm256_set1_epi8(lowest);
        for (from, to) in from.chunks_exact(usize::from(BITS) * 8).zip(to.chunks_exact_mut(GROUP)) {
            // SAFETY: `from` is a group.
            let codes = unsafe { expand::<BITS>(from.as_ptr()) };
            for (part, codes) in codes.into_iter().enumerate() {
                // SAFETY: `to` has 64 elements, of which this stores 32 from `32 * part` on.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().add(32 * part).cast(), _mm256_add_epi8(codes, lowest)) };
            }
        }
    }
    // SAFETY: the caller's promises.
    with_bits!(form, BITS => unsafe { all::<BITS>(form.lowest, from, to) })
}

/// The codes of 64 weights.
///
/// # Safety
/// `from` holds `BITS * 8` bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn expand<const BITS: u8>(from: *const u8) -> [__m256i; PARTS] {
    let mut out = [_mm256_setzero_si256(); PARTS];
    let mut from = from;
    if BITS & 4 != 0 {
        // SAFETY: the first 32 of the promised bytes.
        let v = unsafe { _mm256_loadu_si256(from.cast()) };
        let mask = _mm256_set1_epi8(15);
        out = [_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask)];
        from = from.wrapping_add(32);
    }
    if BITS & 2 != 0 {
        // SAFETY: 16 of the promised bytes, after those of four bits if there are any.
        let v = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(from.cast()) });
        let mask = _mm256_set1_epi8(3);
        // A half of a register, 16 weights, per field.
        let low = _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), mask);
        let high = _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), mask);
        let fields =
            if BITS & 4 != 0 { [_mm256_slli_epi16::<4>(low), _mm256_slli_epi16::<4>(high)] } else { [low, high] };
        out = [_mm256_or_si256(out[0], fields[0]), _mm256_or_si256(out[1], fields[1])];
        from = from.wrapping_add(16);
    }
    if BITS & 1 != 0 {
        // SAFETY: the last 8 of the promised bytes.
        let v = _mm256_set1_epi64x(unsafe { from.cast::<i64>().read_unaligned() });
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let place = _mm256_set1_epi8(1 << (BITS - 1));
        // Byte j of a half looks at bit j % 8 of byte j / 8; the second half at the next two bytes.
        let byte = _mm256_setr_epi8(
            0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
        );
        for (part, out) in out.iter_mut().enumerate() {
            let byte = _mm256_add_epi8(byte, _mm256_set1_epi8(4 * part as i8));
            let own = _mm256_and_si256(_mm256_shuffle_epi8(v, byte), bit);
            let set = _mm256_and_si256(_mm256_cmpeq_epi8(own, bit), place);
            *out = _mm256_or_si256(*out, set);
        }
    }
    out
}
