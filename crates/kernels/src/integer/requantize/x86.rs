//! Sums to codes while they are in the first cache, with AVX-512.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use super::{MOST_ADDED, Prepared, Requantize, Residual};
use crate::integer::dot::x86::{Finish, Place, by_part, quarters};
use crate::integer::weights::LANES;
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _CMP_GT_OQ, _CMP_NLE_UQ, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storeu_si128, _mm512_abs_ps, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtps_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_packus_epi16, _mm512_packus_epi32,
    _mm512_permutexvar_epi32, _mm512_range_ps, _mm512_reduce_ps, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Of a rounding instruction: to nearest, without exceptions.
const QUIET: i32 = 8;
/// Of `vrangeps`: the number of the larger magnitude.
const LARGEST_MAGNITUDE: i32 = 3;

/// The chain of a [`Prepared`] for [`Finish`]; `RESIDUAL` is 0 for nothing, 1 for codes, 2 for floats.
#[derive(Clone, Copy)]
pub struct ToCodes<'a, const RESIDUAL: u8> {
    chain: &'a Requantize<'a>,
    /// A and B per channel; zeros follow.
    factors: &'a [f32],
    addends: &'a [f32],
    codes: &'a [u8],
    floats: &'a [f32],
    /// Number of a band's first output among all.
    first: usize,
    /// R.
    residual: f32,
    low: f32,
    high: f32,
    sure: f32,
}

/// A [`ToCodes`] of any residual.
pub enum InRegisters<'a> {
    Alone(ToCodes<'a, 0>),
    AndCodes(ToCodes<'a, 1>),
    AndFloats(ToCodes<'a, 2>),
}

impl Prepared<'_> {
    /// What finishes sums in registers, if this can be done, for `len` outputs.
    ///
    /// # Panics
    /// If there are not as many residuals as outputs.
    pub fn in_registers(&self, len: usize) -> Option<InRegisters<'_>> {
        let residual = self.chain.residual;
        let residuals = match residual {
            Residual::None => len,
            Residual::Codes(codes, _) => codes.len(),
            Residual::Floats(floats) => floats.len(),
        };
        assert_eq!(residuals, len, "one residual per output");
        Some(match residual {
            Residual::None => InRegisters::Alone(self.to_codes(&[], &[])?),
            Residual::Codes(codes, _) => InRegisters::AndCodes(self.to_codes(codes, &[])?),
            Residual::Floats(floats) => InRegisters::AndFloats(self.to_codes(&[], floats)?),
        })
    }

    fn to_codes<'a, const RESIDUAL: u8>(&'a self, codes: &'a [u8], floats: &'a [f32]) -> Option<ToCodes<'a, RESIDUAL>> {
        let folded = self.folded.as_ref()?;
        Some(ToCodes {
            chain: &self.chain,
            factors: &folded.factors,
            addends: &folded.addends,
            codes,
            floats,
            first: 0,
            residual: folded.residual,
            low: folded.low,
            high: folded.high,
            sure: folded.sure,
        })
    }
}

impl<const RESIDUAL: u8> ToCodes<'_, RESIDUAL> {
    /// Codes of 64 sums of a pixel, before they are in order: lane l has four of each register. `None` if one is unsure. Residuals are those
    /// of channels in order.
    ///
    /// # Safety
    /// AVX-512 F, BW and DQ are available, and all residuals of the place there.
    #[inline(always)]
    unsafe fn four(self, ready: &[[__m512; 4]; 2], sums: [__m512i; 4], to: Place<u8>) -> Option<__m512i> {
        let [a, b] = ready;
        let number = self.first + to.at;
        // SAFETY: the caller's promises.
        unsafe {
            let (low, high) = (_mm512_set1_ps(self.low), _mm512_set1_ps(self.high));
            let mut codes = sums;
            let mut farthest = _mm512_setzero_ps();
            let mut unsure = 0;
            for j in 0..4 {
                let mut t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j]), a[j], b[j]);
                if RESIDUAL == 1 {
                    let codes = _mm_loadu_si128(self.codes.as_ptr().add(number + j * LANES).cast());
                    t = self.plus_codes(t, codes);
                } else if RESIDUAL == 2 {
                    let floats = _mm512_loadu_ps(self.floats.as_ptr().add(number + j * LANES));
                    (t, unsure) = self.plus_floats(t, floats, unsure);
                }
                t = _mm512_min_ps(high, _mm512_max_ps(low, t));
                farthest = _mm512_range_ps::<LARGEST_MAGNITUDE>(farthest, _mm512_reduce_ps::<QUIET>(t));
                codes[j] = _mm512_cvtps_epi32(t);
            }
            unsure |= self.unsure(farthest);
            let [low, high] = [_mm512_packus_epi32(codes[0], codes[1]), _mm512_packus_epi32(codes[2], codes[3])];
            (unsure == 0).then_some(_mm512_packus_epi16(low, high))
        }
    }

    /// Any pixels and blocks, where the chain decides what is unsure.
    ///
    /// # Safety
    /// As for [`Finish::store`].
    #[inline(always)]
    unsafe fn each<const BLOCKS: usize>(self, sums: &[[__m512i; BLOCKS]], to: Place<u8>) {
        for j in 0..BLOCKS {
            let wanted = to.wanted(j);
            // SAFETY: whole blocks have factors, which whoever calls this has checked; otherwise the caller's promises. These are outputs
            // of the whole, which has as many residuals.
            unsafe {
                let channel = to.channel + j * LANES;
                let a = _mm512_loadu_ps(self.factors.as_ptr().add(channel));
                let b = _mm512_loadu_ps(self.addends.as_ptr().add(channel));
                let (low, high) = (_mm512_set1_ps(self.low), _mm512_set1_ps(self.high));
                for (m, sums) in sums.iter().enumerate() {
                    let at = m * to.stride + j * LANES;
                    let number = self.first + to.at + at;
                    let mut t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j]), a, b);
                    let mut unsure = 0;
                    if RESIDUAL == 1 {
                        let codes = _mm_maskz_loadu_epi8(wanted, self.codes.as_ptr().add(number).cast());
                        t = self.plus_codes(t, codes);
                    } else if RESIDUAL == 2 {
                        let floats = _mm512_maskz_loadu_ps(wanted, self.floats.as_ptr().add(number));
                        (t, unsure) = self.plus_floats(t, floats, unsure);
                    }
                    t = _mm512_min_ps(high, _mm512_max_ps(low, t));
                    unsure = (unsure | self.unsure(_mm512_reduce_ps::<QUIET>(t))) & wanted;
                    let codes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(t));
                    if wanted == u16::MAX {
                        _mm_storeu_si128(to.out.add(at).cast(), codes);
                    } else {
                        _mm_mask_storeu_epi8(to.out.add(at).cast(), wanted, codes);
                    }
                    if unsure != 0 {
                        one_by_one(self.chain, sums[j], unsure, number, to.out.add(at));
                    }
                }
            }
        }
    }

    /// [`each`](Self::each), out of the way.
    ///
    /// # Safety
    /// As for [`Finish::store`].
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn each_of_unsure<const BLOCKS: usize>(self, sums: &[[__m512i; BLOCKS]], to: Place<u8>) {
        // SAFETY: the caller's promises.
        unsafe { self.each(sums, to) }
    }

    /// A and B of 64 channels from number `channel` on.
    #[inline(always)]
    fn of_channels(&self, channel: usize) -> (*const f32, *const f32) {
        let of = channel..channel + 4 * LANES;
        (self.factors[of.clone()].as_ptr(), self.addends[of].as_ptr())
    }

    #[inline(always)]
    unsafe fn plus_codes(self, t: __m512, codes: __m128i) -> __m512 {
        // SAFETY: the caller promises AVX-512.
        unsafe {
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
            _mm512_fmadd_ps(codes, _mm512_set1_ps(self.residual), t)
        }
    }

    /// The sum, and `unsure` with the lanes that are too large or NaN.
    #[inline(always)]
    unsafe fn plus_floats(self, t: __m512, floats: __m512, unsure: u16) -> (__m512, u16) {
        // SAFETY: the caller promises AVX-512.
        unsafe {
            let added = _mm512_mul_ps(floats, _mm512_set1_ps(self.residual));
            let large = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(added), _mm512_set1_ps(MOST_ADDED));
            (_mm512_add_ps(t, added), unsure | large)
        }
    }

    /// Lanes that are farther from an integer than is sure.
    #[inline(always)]
    unsafe fn unsure(self, distance: __m512) -> u16 {
        // SAFETY: the caller promises AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(distance), _mm512_set1_ps(self.sure)) }
    }
}

impl<const RESIDUAL: u8> Finish for ToCodes<'_, RESIDUAL> {
    type Out = u8;
    /// A and B.
    type Ready = [[__m512; 4]; 2];

    /// Nothing: codes are made of whole sums.
    #[inline(always)]
    unsafe fn load(_from: *const u8, _wanted: u16) -> __m512i {
        // SAFETY: the caller promises AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    fn of_band(self, first: usize) -> Self {
        Self { first, ..self }
    }

    #[inline(always)]
    unsafe fn store<const PIXELS: usize, const BLOCKS: usize>(
        self,
        sums: [[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: Place<u8>,
    ) {
        assert!(to.channel + BLOCKS * LANES <= self.factors.len().min(self.addends.len()), "a factor is missing");
        // A copy, so that the sums themselves are never anywhere but in registers.
        let copy = sums;
        let sums = &copy[..pixels];
        // SAFETY: there are factors of all blocks, as was checked just now; the rest are the caller's promises.
        unsafe {
            if BLOCKS != 4 || to.channels < BLOCKS * LANES {
                return self.each(sums, to);
            }
            let (a, b) = self.of_channels(to.channel);
            let ready = [floats(quarters(a)), floats(quarters(b))];
            // Four codes of each quarter side by side, brought into order.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            for (m, sums) in sums.iter().enumerate() {
                let to = to.pixel(m);
                match self.four(&ready, std::array::from_fn(|j| sums[j]), to) {
                    Some(codes) => _mm512_storeu_si512(to.out.cast(), _mm512_permutexvar_epi32(order, codes)),
                    None => self.each_of_unsure(std::slice::from_ref(sums), to),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn ready(self, channel: usize) -> Self::Ready {
        // SAFETY: the caller promises AVX-512.
        unsafe {
            let (a, b) = self.of_channels(channel);
            [floats(by_part(quarters(a))), floats(by_part(quarters(b)))]
        }
    }

    #[inline(always)]
    unsafe fn store_parts(self, ready: &Self::Ready, parts: [__m512i; 4], to: Place<u8>) {
        // SAFETY: the caller's promises; whoever has made it ready found factors of 64 channels.
        unsafe {
            if RESIDUAL != 0 || to.channels < 4 * LANES {
                return self.each(&[by_part(parts)], to);
            }
            match self.four(ready, parts, to) {
                // Lane l of each part has four channels, which lie side by side.
                Some(codes) => _mm512_storeu_si512(to.out.cast(), codes),
                None => self.each_of_unsure(&[by_part(parts)], to),
            }
        }
    }
}

/// Numbers whose bits these are.
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
unsafe fn floats([a, b, c, d]: [__m512i; 4]) -> [__m512; 4] {
    // SAFETY: the caller promises AVX-512.
    unsafe { [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _mm512_castsi512_ps(c), _mm512_castsi512_ps(d)] }
}

/// The chain itself for some lanes.
///
/// # Safety
/// AVX-512 F is available; `to` has room for these lanes.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn one_by_one(chain: &Requantize<'_>, sums: __m512i, lanes: u16, at: usize, to: *mut u8) {
    let mut all = [0i32; LANES];
    // SAFETY: these are 16 elements.
    unsafe { _mm512_storeu_si512(all.as_mut_ptr().cast(), sums) };
    for (lane, sum) in all.iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1) {
        // SAFETY: the caller promises room for it.
        let out = unsafe { &mut *to.add(lane) };
        chain.one_by_one(std::slice::from_ref(sum), at + lane, std::slice::from_mut(out));
    }
}
