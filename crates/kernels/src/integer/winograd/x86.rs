//! Products of a few tiles for x86, all positions one after the other.

// Iterators over sums would take their addresses and keep them in memory.
#![allow(clippy::needless_range_loop)]

use super::super::dot::avx2::{InLongs, InWords, PARTS, Products};
use super::group::Group;
use super::{GROUP, LANES, QUAD};
use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_storeu_si512,
};

/// One block, with `vpmaddubsw`.
///
/// # Safety
/// As for [`bytes`], with AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn short<const TILES: usize>(group: &Group<'_, u8, i8>, products: &mut [i32]) {
    // SAFETY: the caller's promises.
    unsafe { bytes::<TILES, InWords>(group, products) }
}

/// One block, with AVX-VNNI's `vpdpbusd`.
///
/// # Safety
/// As for [`bytes`], with AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2")]
pub unsafe fn dots<const TILES: usize>(group: &Group<'_, u8, i8>, products: &mut [i32]) {
    // SAFETY: the caller's promises.
    unsafe { bytes::<TILES, InLongs>(group, products) }
}

/// One block; sums of 16 bits are widened before they could be full.
///
/// # Safety
/// The instructions of `P` are available; `group` has `TILES` tiles and one block, `products` room for them, and slices are as long as
/// [`Group::run`] asks.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn bytes<const TILES: usize, P: Products>(group: &Group<'_, u8, i8>, products: &mut [i32]) {
    let mut weights = group.weights.as_ptr();
    for position in 0..group.positions {
        let input = group.planes.as_ptr().wrapping_add(position * group.plane + group.first);
        let inputs: [*const u8; TILES] = std::array::from_fn(|m| input.wrapping_add(m * group.step));
        let to = products.as_mut_ptr().wrapping_add(position * TILES * LANES);
        let room = group.short_sums[position];
        let mut first = 0;
        while first < group.quads {
            let until = group.quads.min(first + room);
            let mut partial = [[_mm256_setzero_si256(); PARTS]; TILES];
            for at in (first * QUAD..until * QUAD).step_by(QUAD) {
                // SAFETY: the caller promises 64 weights per position and group of four inputs.
                let w: [__m256i; PARTS] =
                    std::array::from_fn(|part| unsafe { _mm256_loadu_si256(weights.add(part * 32).cast()) });
                for m in 0..TILES {
                    // SAFETY: the caller promises that all inputs of all tiles lie within the planes.
                    let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for part in 0..PARTS {
                        // SAFETY: the caller promises the instructions.
                        partial[m][part] = unsafe { P::add(partial[m][part], x, w[part]) };
                    }
                }
                weights = weights.wrapping_add(GROUP);
            }
            let start = group.start.as_ptr().wrapping_add(position * LANES);
            for m in 0..TILES {
                for part in 0..PARTS {
                    let to = to.wrapping_add(m * LANES + part * 8);
                    // SAFETY: the caller promises 16 start values per position and 16 products per position and tile.
                    unsafe {
                        let base = if first == 0 { start.wrapping_add(part * 8) } else { to.cast_const() };
                        let sum = _mm256_add_epi32(_mm256_loadu_si256(base.cast()), P::whole(partial[m][part]));
                        _mm256_storeu_si256(to.cast(), sum);
                    }
                }
            }
            first = until;
        }
    }
}

/// One block, with `vpmaddwd`: operands of 16 bits, sums of 32.
///
/// # Safety
/// As for [`bytes`].
#[target_feature(enable = "avx2")]
pub unsafe fn wide<const TILES: usize>(group: &Group<'_, i16, i16>, products: &mut [i32]) {
    let mut weights = group.weights.as_ptr();
    for position in 0..group.positions {
        let input = group.planes.as_ptr().wrapping_add(position * group.plane + group.first);
        let inputs: [*const i16; TILES] = std::array::from_fn(|m| input.wrapping_add(m * group.step));
        let start: [__m256i; PARTS] = std::array::from_fn(|part| {
            // SAFETY: the caller promises 16 start values per position.
            unsafe { _mm256_loadu_si256(group.start.as_ptr().add(position * LANES + part * 8).cast()) }
        });
        let mut sums = [start; TILES];
        // A pair of inputs per round, two rounds per group of four.
        for at in (0..group.quads * QUAD).step_by(2) {
            // SAFETY: the caller promises 64 weights per position and group of four inputs, 32 per pair.
            let w: [__m256i; PARTS] =
                std::array::from_fn(|part| unsafe { _mm256_loadu_si256(weights.add(part * 16).cast()) });
            for m in 0..TILES {
                // SAFETY: the caller promises that all inputs of all tiles lie within the planes.
                let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                for part in 0..PARTS {
                    sums[m][part] = _mm256_add_epi32(sums[m][part], _mm256_madd_epi16(x, w[part]));
                }
            }
            weights = weights.wrapping_add(2 * LANES);
        }
        let to = products.as_mut_ptr().wrapping_add(position * TILES * LANES);
        for m in 0..TILES {
            for part in 0..PARTS {
                // SAFETY: the caller promises 16 products per position and tile.
                unsafe { _mm256_storeu_si256(to.add(m * LANES + part * 8).cast(), sums[m][part]) };
            }
        }
    }
}

/// Operands that VNNI multiplies: 64 weights or 32 of a block at a time, with as many inputs as add up in a lane.
pub trait Vnni: Copy {
    /// What they are multiplied with.
    type Weight;
    /// Inputs per lane.
    const INPUTS: usize;
    /// `sums` and the products.
    ///
    /// # Safety
    /// AVX-512 F and VNNI are available.
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i;
}

impl Vnni for u8 {
    type Weight = i8;
    const INPUTS: usize = 4;
    #[inline(always)]
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: the caller promises VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, x, w) }
    }
}

impl Vnni for i16 {
    type Weight = i16;
    const INPUTS: usize = 2;
    #[inline(always)]
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: the caller promises VNNI.
        unsafe { _mm512_dpwssd_epi32(sums, x, w) }
    }
}

/// `BLOCKS` blocks, with `vpdpbusd` or `vpdpwssd`.
///
/// # Safety
/// As for [`bytes`], with `BLOCKS` blocks and the instructions named.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub unsafe fn vnni<const TILES: usize, const BLOCKS: usize, X: Vnni>(
    group: &Group<'_, X, X::Weight>,
    products: &mut [i32],
) {
    let block_len = group.positions * group.quads * GROUP;
    let mut weights = group.weights.as_ptr();
    for position in 0..group.positions {
        let input = group.planes.as_ptr().wrapping_add(position * group.plane + group.first);
        let inputs: [*const X; TILES] = std::array::from_fn(|m| input.wrapping_add(m * group.step));
        let start: [__m512i; BLOCKS] = std::array::from_fn(|j| {
            // SAFETY: the caller promises 16 start values per block and position.
            unsafe { _mm512_loadu_si512(group.start.as_ptr().add((j * group.positions + position) * LANES).cast()) }
        });
        let mut sums = [start; TILES];
        for at in (0..group.quads * QUAD).step_by(X::INPUTS) {
            // SAFETY: the caller promises 64 weights per block, position and group of four inputs.
            let w: [__m512i; BLOCKS] =
                std::array::from_fn(|j| unsafe { _mm512_loadu_si512(weights.add(j * block_len).cast()) });
            for m in 0..TILES {
                // SAFETY: the caller promises that all inputs of all tiles lie within the planes.
                let x = _mm512_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                for j in 0..BLOCKS {
                    // SAFETY: VNNI is enabled here.
                    sums[m][j] = unsafe { X::dot(sums[m][j], x, w[j]) };
                }
            }
            weights = weights.wrapping_add(X::INPUTS * LANES);
        }
        let to = products.as_mut_ptr().wrapping_add(position * TILES * BLOCKS * LANES);
        for m in 0..TILES {
            for j in 0..BLOCKS {
                // SAFETY: the caller promises 16 products per position, tile and block.
                unsafe { _mm512_storeu_si512(to.add((m * BLOCKS + j) * LANES).cast(), sums[m][j]) };
            }
        }
    }
}
