//! The kernel for ARM's dot products (`sdot`): a few pixels, or tiles, times one block of 16 channels.
//!
//! `sdot` multiplies signed bytes with signed bytes. An input byte is one when its first bit is turned, which takes [`OFFSET`] off its
//! number; start values add what that takes off the sums.

// Iterators over sums would take their addresses and keep them in memory; see also `simd::neon`.
#![allow(clippy::needless_range_loop, unused_unsafe)]

use super::{GROUP, LANES, Panel, QUAD};
use crate::arm::*;

/// What inputs are smaller than the numbers that they stand for.
pub const OFFSET: i32 = 128;

/// Pixels at a time: their sums take half of the registers.
pub const PIXELS: usize = 4;

/// Registers of 16 sums.
const PARTS: usize = 4;

/// Sums of some pixels.
type Sums<const PIXELS: usize> = [[int32x4_t; PARTS]; PIXELS];

/// Up to four pixels at a time times one block.
///
/// # Safety
/// FEAT_DotProd is available; every piece of every pixel lies within the input; there are a block of weights, start values, and outputs of
/// all pixels.
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
pub unsafe fn panel(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
    for (pixels, acc) in panel.pixels.chunks(PIXELS).zip(acc.chunks_mut(PIXELS * panel.stride)) {
        // SAFETY: the caller's promises.
        unsafe {
            match pixels.len() {
                1 => some::<1>(panel, pixels, acc),
                2 => some::<2>(panel, pixels, acc),
                _ => some::<PIXELS>(panel, pixels, acc),
            }
        }
    }
}

/// # Safety
/// As for [`panel`], of these pixels.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
unsafe fn some<const PIXELS: usize>(panel: &Panel<'_, u8, i8>, pixels: &[usize], acc: &mut [i32]) {
    let inputs = panel.inputs::<PIXELS>(pixels);
    let mut rows = [[0; LANES]; PIXELS];
    for (row, acc) in rows.iter_mut().zip(acc.chunks(panel.stride)) {
        row[..panel.channels].copy_from_slice(&panel.start.unwrap_or(acc)[..panel.channels]);
    }
    // SAFETY: rows have 16 elements; the caller's promises.
    unsafe {
        let mut sums: Sums<PIXELS> = rows.map(|row| std::array::from_fn(|part| vld1q_s32(row[4 * part..].as_ptr())));
        let mut weights = panel.weights.as_ptr();
        for &(offset, quads) in panel.pieces {
            products(&mut sums, inputs.map(|x| x.wrapping_add(offset)), weights, quads);
            weights = weights.wrapping_add(quads * GROUP);
        }
        for (row, sums) in rows.iter_mut().zip(sums) {
            (0..PARTS).for_each(|part| vst1q_s32(row[4 * part..].as_mut_ptr(), sums[part]));
        }
    }
    for (row, acc) in rows.iter().take(pixels.len()).zip(acc.chunks_mut(panel.stride)) {
        acc[..panel.channels].copy_from_slice(&row[..panel.channels]);
    }
}

/// Adds the products of so many groups of four inputs, four groups at a time.
///
/// # Safety
/// FEAT_DotProd is available, and so many inputs and weights are there.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
pub unsafe fn products<const PIXELS: usize>(
    sums: &mut Sums<PIXELS>,
    inputs: [*const u8; PIXELS],
    weights: *const i8,
    quads: usize,
) {
    // SAFETY: the caller's promises; the first loop ends where fewer than four groups are left.
    unsafe {
        let flip = vdupq_n_u8(0x80);
        let (mut weights, mut at) = (weights, 0);
        let load =
            |weights: *const i8| -> [int8x16_t; PARTS] { std::array::from_fn(|part| vld1q_s8(weights.add(16 * part))) };
        while at + 4 * QUAD <= quads * QUAD {
            let x: [int8x16_t; PIXELS] =
                std::array::from_fn(|m| vreinterpretq_s8_u8(veorq_u8(vld1q_u8(inputs[m].add(at)), flip)));
            add_lane::<0, PIXELS>(sums, load(weights), x);
            add_lane::<1, PIXELS>(sums, load(weights.add(GROUP)), x);
            add_lane::<2, PIXELS>(sums, load(weights.add(2 * GROUP)), x);
            add_lane::<3, PIXELS>(sums, load(weights.add(3 * GROUP)), x);
            weights = weights.add(4 * GROUP);
            at += 4 * QUAD;
        }
        while at < quads * QUAD {
            let x: [int8x16_t; PIXELS] = std::array::from_fn(|m| {
                let quad = vdupq_n_u32(inputs[m].add(at).cast::<u32>().read_unaligned());
                vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(quad), flip))
            });
            add_lane::<0, PIXELS>(sums, load(weights), x);
            weights = weights.add(GROUP);
            at += QUAD;
        }
    }
}

/// Adds the products of a group of four inputs, lane `LANE` of each `x`.
///
/// # Safety
/// FEAT_DotProd is available.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
unsafe fn add_lane<const LANE: i32, const PIXELS: usize>(
    sums: &mut Sums<PIXELS>,
    w: [int8x16_t; PARTS],
    x: [int8x16_t; PIXELS],
) {
    for m in 0..PIXELS {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            sums[m][part] = unsafe { dot_lane::<LANE>(sums[m][part], w[part], x[m]) };
        }
    }
}
