//! Sums to codes with AVX2: the same [fixed-point numbers](super::x86), 32 at a time.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use super::x86::ToCodes;
use super::{MOST_ADDED, UNIT};
use crate::integer::dot::avx2::Partial;
use crate::integer::dot::x86::Place;
use std::arch::x86_64::{
    __m256, __m256i, _CMP_NLE_UQ, _mm_loadl_epi64, _mm_setr_epi8, _mm_storel_epi64, _mm_storeu_si128,
    _mm_unpackhi_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_andnot_ps, _mm256_blend_epi16,
    _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cmpeq_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtps_epi32, _mm256_extracti128_si256, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_epu8, _mm256_min_epu8, _mm256_min_epu32, _mm256_movemask_epi8,
    _mm256_movemask_ps, _mm256_mul_ps, _mm256_or_ps, _mm256_packus_epi16, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_subs_epu16,
};

/// Numbers of a register.
const EIGHT: usize = 8;
/// Registers whose codes fill one.
const FOUR: usize = 4;

/// Which outputs four registers are. A register may be there more than once.
#[derive(Clone, Copy)]
struct Four {
    /// Channel of each register's first sum.
    channel: [usize; FOUR],
    /// How far its output is from the first of the place.
    of: [usize; FOUR],
}

impl<const RESIDUAL: u8> ToCodes<'_, RESIDUAL> {
    /// Sums of whole pixels; the first is output number `first`.
    ///
    /// # Safety
    /// AVX2 and FMA are available.
    ///
    /// # Panics
    /// If lengths disagree, or there are fewer than eight channels.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn rows_in_memory(self, acc: &[i32], channels: usize, first: usize, out: &mut [u8]) {
        assert!(channels >= EIGHT && acc.len().is_multiple_of(channels), "whole pixels of eight channels or more");
        let to = self.of_outputs(acc.len(), channels, first, out.len());
        let place = Place { out: out.as_mut_ptr(), stride: channels, channel: 0, at: 0, channels };
        if !channels.is_multiple_of(EIGHT) {
            for row in (0..acc.len()).step_by(channels) {
                for first in (0..channels).step_by(FOUR * EIGHT) {
                    // The last register of a row begins early enough to be a whole one, and does some channels again.
                    let channel = [0, 1, 2, 3].map(|i| (first + i * EIGHT).min(channels - EIGHT));
                    let four = Four { channel, of: channel.map(|channel| row + channel) };
                    // SAFETY: the caller's promise; lengths were checked, and registers lie within rows.
                    unsafe { to.in_memory::<1>(acc, four, &place) };
                }
            }
            return;
        }
        let (mut channel, whole) = (0, acc.len() - acc.len() % (FOUR * EIGHT));
        let mut next = || {
            let this = channel;
            channel = if this + EIGHT == channels { 0 } else { this + EIGHT };
            this
        };
        for at in (0..whole).step_by(FOUR * EIGHT) {
            let of = [at, at + EIGHT, at + 2 * EIGHT, at + 3 * EIGHT];
            let four = Four { channel: [next(), next(), next(), next()], of };
            // SAFETY: as above; rows are whole registers.
            unsafe { to.in_memory::<FOUR>(acc, four, &place) };
        }
        let left = (acc.len() - whole) / EIGHT;
        if left > 0 {
            let last = [next(), next(), next()];
            // What is not there is the last register again.
            let register = [0, 1, 2, 3].map(|i: usize| i.min(left - 1));
            let four = Four { channel: register.map(|i| last[i]), of: register.map(|i| whole + i * EIGHT) };
            // SAFETY: as above.
            unsafe { to.in_memory::<1>(acc, four, &place) };
        }
    }

    /// The codes of four registers that are still in memory.
    ///
    /// # Safety
    /// As for [`codes_of`](Self::codes_of); sums and codes of the registers are there.
    #[inline(always)]
    unsafe fn in_memory<const TOGETHER: usize>(&self, acc: &[i32], four: Four, to: &Place<u8>) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); FOUR];
            for i in 0..FOUR {
                sums[i] = _mm256_loadu_si256(acc.as_ptr().add(four.of[i]).cast());
            }
            self.codes_of::<TOGETHER>(sums, four, to);
        }
    }

    /// Sums of pixels and 16 channels; see [`Finish::store_eights`](crate::integer::dot::x86::Finish::store_eights). Eight of the channels, or
    /// all, are wanted.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn pixels_of_eights<const PIXELS: usize>(
        &self,
        sums: Partial<PIXELS>,
        start: Option<&[i32]>,
        pixels: usize,
        to: Place<u8>,
    ) {
        assert!(to.channels == EIGHT || to.channels == 2 * EIGHT, "registers are not filled");
        assert!(to.channel + 2 * EIGHT <= self.factors.len().min(self.addends.len()), "a factor is missing");
        const { assert!(PIXELS <= 6) };
        // SAFETY: the caller's promises; there are factors.
        unsafe {
            let mut first = [_mm256_setzero_si256(); 2];
            if let Some(start) = start {
                first[0] = _mm256_loadu_si256(start.as_ptr().cast());
                first[1] = _mm256_loadu_si256(start.as_ptr().add(EIGHT).cast());
            }
            if to.channels != 2 * EIGHT {
                // A copy, so that sums are in registers otherwise.
                let copy = sums;
                return self.half_pixels(&copy, first[0], pixels, &to);
            }
            // Written out, as a loop would have sums in memory.
            self.two_pixels::<PIXELS>(0, &sums, first, pixels, &to);
            if PIXELS > 2 {
                self.two_pixels::<PIXELS>(2, &sums, first, pixels, &to);
            }
            if PIXELS > 4 {
                self.two_pixels::<PIXELS>(4, &sums, first, pixels, &to);
            }
        }
    }

    /// Pixels number `m` and `m + 1`, or if they are not there, the last one.
    ///
    /// # Safety
    /// As for [`pixels_of_eights`](Self::pixels_of_eights), which checked what it checks.
    #[inline(always)]
    unsafe fn two_pixels<const PIXELS: usize>(
        &self,
        m: usize,
        sums: &Partial<PIXELS>,
        start: [__m256i; 2],
        pixels: usize,
        to: &Place<u8>,
    ) {
        let (near, far) = (sums[m], sums[(m + 1).min(PIXELS - 1)]);
        let (row, next) = (m.min(pixels - 1) * to.stride, (m + 1).min(pixels - 1) * to.stride);
        // SAFETY: the caller's promises.
        unsafe {
            let (a, b) = (_mm256_add_epi32(near[0], start[0]), _mm256_add_epi32(near[1], start[1]));
            let (c, d) = (_mm256_add_epi32(far[0], start[0]), _mm256_add_epi32(far[1], start[1]));
            let channel = [to.channel, to.channel + EIGHT, to.channel, to.channel + EIGHT];
            self.codes_of::<2>([a, b, c, d], Four { channel, of: [row, row + EIGHT, next, next + EIGHT] }, to);
        }
    }

    /// The same where only eight channels are wanted, four pixels at a time.
    ///
    /// # Safety
    /// As for [`pixels_of_eights`](Self::pixels_of_eights), which checked what it checks.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn half_pixels(&self, sums: &[[__m256i; 2]], start: __m256i, pixels: usize, to: &Place<u8>) {
        for m in (0..pixels).step_by(FOUR) {
            let pixel = [0, 1, 2, 3].map(|i: usize| (m + i).min(pixels - 1));
            let four = Four { channel: [to.channel; FOUR], of: pixel.map(|i| i * to.stride) };
            let mut first = [start; FOUR];
            for i in 0..FOUR {
                first[i] = _mm256_add_epi32(start, sums[pixel[i]][0]);
            }
            // SAFETY: the caller's promises.
            unsafe { self.codes_of::<1>(first, four, to) }
        }
    }

    /// Sums of a pixel and 32 channels; see [`Finish::store_row_of_eights`](crate::integer::dot::x86::Finish::store_row_of_eights). Those that
    /// are wanted fill registers.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn row_of_eights(&self, mut sums: [__m256i; FOUR], start: &[i32], to: Place<u8>) {
        assert!(to.channels > 0 && to.channels.is_multiple_of(EIGHT), "registers are not filled");
        assert!(to.channel + FOUR * EIGHT <= self.factors.len().min(self.addends.len()), "a factor is missing");
        // SAFETY: the caller's promises; there are factors.
        unsafe {
            for i in 0..FOUR {
                sums[i] = _mm256_add_epi32(sums[i], _mm256_loadu_si256(start.as_ptr().add(i * EIGHT).cast()));
            }
            let of = [0, EIGHT, 2 * EIGHT, 3 * EIGHT];
            if to.channels >= FOUR * EIGHT {
                return self.codes_of::<FOUR>(sums, Four { channel: of.map(|i| to.channel + i), of }, &to);
            }
            self.part_of_row(&sums, &to);
        }
    }

    /// The same where fewer than 32 channels are wanted; start values were added.
    ///
    /// # Safety
    /// As for [`row_of_eights`](Self::row_of_eights), which checked what it checks.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn part_of_row(&self, sums: &[__m256i; FOUR], to: &Place<u8>) {
        // What is not there is the last register again.
        let register = [0, 1, 2, 3].map(|i: usize| i.min(to.channels / EIGHT - 1));
        let of = register.map(|i| i * EIGHT);
        let four = Four { channel: of.map(|i| to.channel + i), of };
        // SAFETY: the caller's promises.
        unsafe { self.codes_of::<1>(register.map(|i| sums[i]), four, to) }
    }

    /// The codes of four registers, of which so many go next to each other.
    ///
    /// # Safety
    /// AVX2 and FMA are available. There are factors and residuals of all registers, and room for their codes.
    #[inline(always)]
    unsafe fn codes_of<const TOGETHER: usize>(&self, sums: [__m256i; FOUR], four: Four, to: &Place<u8>) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut fixed = [_mm256_setzero_si256(); FOUR];
            let mut beyond = _mm256_setzero_ps();
            for i in 0..FOUR {
                let is_beyond;
                (fixed[i], is_beyond) = self.eight(sums[i], four.channel[i], to.at + four.of[i]);
                beyond = _mm256_or_ps(beyond, is_beyond);
            }
            let [a, b, c, d] = fixed;
            // The upper words of two registers, in turn; packed, and brought into order.
            let near = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(a), b);
            let far = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(c), d);
            let packed = _mm256_packus_epi16(near, far);
            let (low, high) = (_mm256_set1_epi8(self.low as i8), _mm256_set1_epi8(self.high as i8));
            let codes = _mm256_min_epu8(_mm256_max_epu8(packed, low), high);
            let in_turn =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
            let halves = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let codes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(codes, in_turn), halves);
            let (ab, cd) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
            let out = four.of.map(|of| to.out.wrapping_add(of));
            match TOGETHER {
                FOUR => _mm256_storeu_si256(out[0].cast(), codes),
                2 => {
                    _mm_storeu_si128(out[0].cast(), ab);
                    _mm_storeu_si128(out[2].cast(), cd);
                }
                _ => {
                    _mm_storel_epi64(out[0].cast(), ab);
                    _mm_storel_epi64(out[1].cast(), _mm_unpackhi_epi64(ab, ab));
                    _mm_storel_epi64(out[2].cast(), cd);
                    _mm_storel_epi64(out[3].cast(), _mm_unpackhi_epi64(cd, cd));
                }
            }
            let [a, b, c, d] = [self.above(a), self.above(b), self.above(c), self.above(d)];
            let least = _mm256_min_epu32(_mm256_min_epu32(a, b), _mm256_min_epu32(c, d));
            let doubt = _mm256_movemask_epi8(_mm256_cmpeq_epi32(least, _mm256_setzero_si256())) != 0;
            if doubt || RESIDUAL == 2 && _mm256_movemask_ps(beyond) != 0 {
                // Copies, so that all is in registers otherwise.
                let (sums, four, to) = (sums, four, *to);
                self.decide_eights(&sums, &four, &to);
            }
        }
    }

    /// Eight sums fixed-point, and in which lanes no bound holds for them.
    ///
    /// # Safety
    /// As for [`codes_of`](Self::codes_of).
    #[inline(always)]
    unsafe fn eight(&self, sums: __m256i, channel: usize, at: usize) -> (__m256i, __m256) {
        let number = self.first + at;
        // SAFETY: the caller's promises.
        unsafe {
            let residual = _mm256_set1_ps(self.residual);
            let a = _mm256_loadu_ps(self.factors.as_ptr().add(channel));
            let b = _mm256_loadu_ps(self.addends.as_ptr().add(channel));
            let mut t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), a, b);
            let mut beyond = _mm256_setzero_ps();
            if RESIDUAL == 1 {
                let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(self.codes.as_ptr().add(number).cast()));
                t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), residual, t);
            } else if RESIDUAL == 2 {
                let added = _mm256_mul_ps(_mm256_loadu_ps(self.floats.as_ptr().add(number)), residual);
                let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), added);
                // NaN is beyond too.
                beyond = _mm256_cmp_ps::<_CMP_NLE_UQ>(magnitude, _mm256_set1_ps(MOST_ADDED * UNIT as f32));
                t = _mm256_add_ps(t, added);
            }
            (_mm256_cvtps_epi32(t), beyond)
        }
    }

    /// How far the lower halves are above what is in doubt.
    ///
    /// # Safety
    /// AVX2 is available.
    #[inline(always)]
    unsafe fn above(&self, fixed: __m256i) -> __m256i {
        let most = (0xffff_0000 | u32::from(self.doubt)) as i32;
        // SAFETY: the caller's promise.
        unsafe {
            // Saturates: the upper halves always.
            _mm256_subs_epu16(fixed, _mm256_set1_epi32(most))
        }
    }

    /// The chain itself for what is in doubt in a group: a slice, lest the loop be written out.
    ///
    /// # Safety
    /// As for [`codes_of`](Self::codes_of).
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn decide_eights(&self, sums: &[__m256i], four: &Four, to: &Place<u8>) {
        for i in 0..sums.len() {
            let (at, mut all) = (to.at + four.of[i], [0i32; EIGHT]);
            // SAFETY: the caller's promises; these are eight elements.
            let (fixed, beyond) = unsafe {
                _mm256_storeu_si256(all.as_mut_ptr().cast(), sums[i]);
                self.eight(sums[i], four.channel[i], at)
            };
            // SAFETY: this is compiled for AVX2.
            let above = unsafe { self.above(fixed) };
            let doubt = _mm256_castsi256_ps(_mm256_cmpeq_epi32(above, _mm256_setzero_si256()));
            let doubt = _mm256_movemask_ps(_mm256_or_ps(doubt, beyond));
            for lane in (0..EIGHT).filter(|lane| doubt >> lane & 1 == 1) {
                // SAFETY: the caller promises room for it.
                let out = unsafe { &mut *to.out.add(four.of[i] + lane) };
                self.chain.one_by_one(&all[lane..=lane], self.first + at + lane, std::slice::from_mut(out));
            }
        }
    }
}
