//! Sums to codes while they are in registers: here with AVX-512, [there](super::avx2) with AVX2.
//!
//! Numbers are fixed-point here: t is computed as a multiple of 2^-16, with a half and a margin added to it, so that the upper 16 bits of its
//! 32 are the code, before saturation, and the lower ones tell how far it is from the border of two codes:
//!
//! ```text
//! fixed = to i32 (f32(acc) · (A · 2^16) + (B + 1/2 + margin) · 2^16)      code = fixed >> 16, in doubt if fixed mod 2^16 ≤ 2 · margin
//! ```
//!
//! A number that does not fit becomes −2^31, whose lower bits are 0: in doubt as well. Codes saturate in packing, 64 at a time.

// Plain loops over arrays of known length become registers.
#![allow(clippy::needless_range_loop)]

use super::{Doubt, MOST_ADDED, Prepared, Requantize, Residual, UNIT};
use crate::integer::dot::avx2::Partial;
use crate::integer::dot::x86::{Finish, Place, by_part, quarters, twice};
use crate::integer::weights::LANES;
use crate::isa::{Isa, Level};
use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _CMP_NLE_UQ, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storeu_si128, _mm256_mask_storeu_epi8, _mm256_storeu_si256, _mm512_abs_ps, _mm512_add_ps, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cmple_epu16_mask, _mm512_cmple_epu32_mask,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtps_epi32, _mm512_extracti32x4_epi32, _mm512_extracti64x4_epi64,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi32,
    _mm512_maskz_loadu_ps, _mm512_max_epu8, _mm512_min_epu8, _mm512_min_epu16, _mm512_mul_ps, _mm512_packus_epi16,
    _mm512_permutex2var_epi16, _mm512_permutexvar_epi64, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Registers whose codes fill one.
const FOUR: usize = 4;
/// Most registers of a call of [`Finish::store`].
const MOST: usize = 24;

/// The chain of a [`Prepared`] for [`Finish`]; `RESIDUAL` is 0 for nothing, 1 for codes, 2 for floats.
#[derive(Clone, Copy)]
pub struct ToCodes<'a, const RESIDUAL: u8> {
    pub(super) chain: &'a Requantize<'a>,
    /// A and B per channel, fixed-point; some that give no doubt follow.
    pub(super) factors: &'a [f32],
    pub(super) addends: &'a [f32],
    pub(super) codes: &'a [u8],
    pub(super) floats: &'a [f32],
    /// Number of a band's first output among all.
    pub(super) first: usize,
    /// R, fixed-point.
    pub(super) residual: f32,
    pub(super) low: u8,
    pub(super) high: u8,
    /// Largest lower half that is in doubt.
    pub(super) doubt: u16,
    /// What numbers were made fixed-point for.
    isa: Isa,
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
        let residuals = match self.chain.residual {
            Residual::None => len,
            Residual::Codes(codes, _) => codes.len(),
            Residual::Floats(floats) => floats.len(),
        };
        assert_eq!(residuals, len, "one residual per output");
        self.fixed_point()
    }

    /// The chain as fixed-point numbers, if it was made so.
    fn fixed_point(&self) -> Option<InRegisters<'_>> {
        Some(match self.chain.residual {
            Residual::None => InRegisters::Alone(self.to_codes(&[], &[])?),
            Residual::Codes(codes, _) => InRegisters::AndCodes(self.to_codes(codes, &[])?),
            Residual::Floats(floats) => InRegisters::AndFloats(self.to_codes(&[], floats)?),
        })
    }

    fn to_codes<'a, const RESIDUAL: u8>(&'a self, codes: &'a [u8], floats: &'a [f32]) -> Option<ToCodes<'a, RESIDUAL>> {
        let folded = self.folded.folded()?;
        let Doubt::UpTo(doubt) = folded.doubt else { return None };
        Some(ToCodes {
            chain: &self.chain,
            factors: &folded.factors,
            addends: &folded.addends,
            codes,
            floats,
            first: 0,
            residual: folded.residual,
            low: folded.low as u8,
            high: folded.high as u8,
            doubt,
            isa: folded.isa,
        })
    }

    /// Accumulators of whole pixels to codes, from output number `first` on, if this can be done.
    pub(super) fn run_fixed(&self, acc: &[i32], first: usize, out: &mut [u8]) -> bool {
        match self.fixed_point() {
            Some(InRegisters::Alone(to)) => to.run(acc, first, out),
            Some(InRegisters::AndCodes(to)) => to.run(acc, first, out),
            Some(InRegisters::AndFloats(to)) => to.run(acc, first, out),
            None => return false,
        }
        true
    }
}

/// Where the upper (1) or lower (0) words of two registers' numbers lie, as [`codes`] wants them.
const fn words(upper: u16, by_part: bool) -> [u16; 32] {
    let mut all = [0; 32];
    let mut i = 0;
    while i < 32 {
        // Registers in order: one after the other. Parts: four numbers of the first, four of the second, and so on.
        let number = if by_part { i / 8 * 4 + i % 4 + i % 8 / 4 * 16 } else { i };
        all[i as usize] = 2 * number + upper;
        i += 1;
    }
    all
}

static IN_ORDER: [[u16; 32]; 2] = [words(0, false), words(1, false)];
static BY_PART: [[u16; 32]; 2] = [words(0, true), words(1, true)];

/// 64 codes in order, of numbers in order or [by part](by_part), and the smallest lower halves of all.
///
/// # Safety
/// AVX-512 F and BW are available.
#[inline(always)]
unsafe fn codes<const PARTS: bool>(fixed: [__m512i; FOUR], low: u8, high: u8) -> (__m512i, __m512i) {
    let [lower, upper] = if PARTS { &BY_PART } else { &IN_ORDER };
    // SAFETY: the caller promises AVX-512; the tables fill a register each.
    unsafe {
        let (lower, upper) = (_mm512_loadu_si512(lower.as_ptr().cast()), _mm512_loadu_si512(upper.as_ptr().cast()));
        let [a, b, c, d] = fixed;
        let (near, far) = (_mm512_permutex2var_epi16(a, upper, b), _mm512_permutex2var_epi16(c, upper, d));
        let lower = [_mm512_permutex2var_epi16(a, lower, b), _mm512_permutex2var_epi16(c, lower, d)];
        let packed = _mm512_packus_epi16(near, far);
        let codes = _mm512_min_epu8(_mm512_max_epu8(packed, _mm512_set1_epi8(low as i8)), _mm512_set1_epi8(high as i8));
        // Packing puts eight of the first and eight of the second side by side.
        let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        let codes = if PARTS { codes } else { _mm512_permutexvar_epi64(order, codes) };
        (codes, _mm512_min_epu16(lower[0], lower[1]))
    }
}

impl<const RESIDUAL: u8> ToCodes<'_, RESIDUAL> {
    /// Sums of whole pixels; the first is output number `first`.
    fn run(self, acc: &[i32], first: usize, out: &mut [u8]) {
        let channels = self.chain.multiplier.len();
        match self.isa.level() {
            // SAFETY: an `Isa` of this level proves AVX-512 F, BW, DQ and VL.
            Level::Avx512 => unsafe { self.rows(acc, channels, first, out) },
            // SAFETY: an `Isa` of this level proves AVX2 and FMA.
            Level::Avx2 => unsafe { self.rows_in_memory(acc, channels, first, out) },
            Level::Portable | Level::Neon => unreachable!("numbers are fixed-point for AVX2 and AVX-512 only"),
        }
    }

    /// The same for outputs from number `first` on, of which and of their residuals there are enough.
    ///
    /// # Panics
    /// If lengths disagree.
    pub(super) fn of_outputs(self, sums: usize, channels: usize, first: usize, outputs: usize) -> Self {
        assert_eq!(sums, outputs, "one code per accumulator");
        assert!(RESIDUAL != 1 || first + sums <= self.codes.len(), "residuals are missing");
        assert!(RESIDUAL != 2 || first + sums <= self.floats.len(), "residuals are missing");
        assert!(channels <= self.factors.len().min(self.addends.len()), "a factor is missing");
        self.of_band(first)
    }

    /// Sums of 16 channels fixed-point, and which lanes no bound holds for. `number` is that of the first one's residual, of which `wanted`
    /// are there.
    ///
    /// # Safety
    /// AVX-512 F, BW and VL are available, and the residuals that are wanted there.
    #[inline(always)]
    unsafe fn fixed(&self, sums: __m512i, [a, b]: [__m512; 2], number: usize, wanted: Option<u16>) -> (__m512i, u16) {
        let mut beyond = 0;
        // SAFETY: the caller's promises.
        unsafe {
            let mut t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), a, b);
            if RESIDUAL == 1 {
                let at = self.codes.as_ptr().add(number).cast::<__m128i>();
                let codes = match wanted {
                    None => _mm_loadu_si128(at),
                    Some(wanted) => _mm_maskz_loadu_epi8(wanted, at.cast()),
                };
                let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
                t = _mm512_fmadd_ps(codes, _mm512_set1_ps(self.residual), t);
            } else if RESIDUAL == 2 {
                let floats = _mm512_maskz_loadu_ps(wanted.unwrap_or(u16::MAX), self.floats.as_ptr().add(number));
                let added = _mm512_mul_ps(floats, _mm512_set1_ps(self.residual));
                let most = _mm512_set1_ps(MOST_ADDED * UNIT as f32);
                // NaN is beyond too.
                beyond = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(added), most);
                t = _mm512_add_ps(t, added);
            }
            (_mm512_cvtps_epi32(t), beyond)
        }
    }

    /// A and B of a block of channels.
    ///
    /// # Safety
    /// AVX-512 F is available, and the block there.
    #[inline(always)]
    unsafe fn of_block(&self, channel: usize) -> [__m512; 2] {
        // SAFETY: the caller's promises.
        unsafe {
            [_mm512_loadu_ps(self.factors.as_ptr().add(channel)), _mm512_loadu_ps(self.addends.as_ptr().add(channel))]
        }
    }

    /// Codes of 64 sums by part, and the smallest lower halves.
    ///
    /// # Safety
    /// AVX-512 F, BW and VL are available.
    #[inline(always)]
    unsafe fn of_parts(&self, [a, b]: &[[__m512; FOUR]; 2], parts: [__m512i; FOUR]) -> (__m512i, __m512i) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut fixed = parts;
            for i in 0..FOUR {
                (fixed[i], _) = self.fixed(parts[i], [a[i], b[i]], 0, None);
            }
            codes::<true>(fixed, self.low, self.high)
        }
    }

    /// Whether any of 64 numbers with these smallest lower halves is in doubt.
    ///
    /// # Safety
    /// AVX-512 BW is available.
    #[inline(always)]
    unsafe fn doubts(&self, least: __m512i) -> bool {
        // SAFETY: the caller promises AVX-512.
        unsafe { _mm512_cmple_epu16_mask(least, _mm512_set1_epi16(self.doubt as i16)) != 0 }
    }

    /// Registers number `4 * group` to `4 * group + 3`, of pixels one after the other, and of blocks within them. `WHOLE` if all channels
    /// are wanted.
    ///
    /// # Safety
    /// As for [`Finish::store`]; there are factors of all blocks.
    #[inline(always)]
    unsafe fn group<const PIXELS: usize, const BLOCKS: usize, const WHOLE: bool>(
        &self,
        group: usize,
        sums: &[[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: &Place<u8>,
    ) {
        let place = |i: usize| {
            let register = (FOUR * group + i).min(PIXELS * BLOCKS - 1);
            (register / BLOCKS, register % BLOCKS)
        };
        // Pixels that are not there are the last one again.
        let at = |i: usize| place(i).0.min(pixels - 1) * to.stride + place(i).1 * LANES;
        // SAFETY: the caller's promises.
        unsafe {
            let mut fixed = [_mm512_setzero_si512(); FOUR];
            let mut beyond = 0;
            for i in 0..FOUR {
                let (pixel, block) = place(i);
                let wanted = if WHOLE { None } else { Some(to.wanted(block)) };
                let factors = self.of_block(to.channel + block * LANES);
                let is_beyond;
                (fixed[i], is_beyond) = self.fixed(sums[pixel][block], factors, self.first + to.at + at(i), wanted);
                beyond |= is_beyond;
            }
            let (codes, least) = codes::<false>(fixed, self.low, self.high);
            if WHOLE && BLOCKS == 4 {
                _mm512_storeu_si512(to.out.add(at(0)).cast(), codes);
            } else if WHOLE && BLOCKS == 2 {
                _mm256_storeu_si256(to.out.add(at(0)).cast(), _mm512_castsi512_si256(codes));
                _mm256_storeu_si256(to.out.add(at(2)).cast(), _mm512_extracti64x4_epi64::<1>(codes));
            } else if WHOLE && BLOCKS == 1 && to.stride == LANES && FOUR * (group + 1) <= pixels {
                _mm512_storeu_si512(to.out.add(at(0)).cast(), codes);
            } else {
                let blocks = [
                    _mm512_extracti32x4_epi32::<0>(codes),
                    _mm512_extracti32x4_epi32::<1>(codes),
                    _mm512_extracti32x4_epi32::<2>(codes),
                    _mm512_extracti32x4_epi32::<3>(codes),
                ];
                for i in 0..FOUR {
                    let out = to.out.add(at(i));
                    // Masks cost several times as much.
                    match if WHOLE { u16::MAX } else { to.wanted(place(i).1) } {
                        u16::MAX => _mm_storeu_si128(out.cast(), blocks[i]),
                        wanted => _mm_mask_storeu_epi8(out.cast(), wanted, blocks[i]),
                    }
                }
            }
            if self.doubts(least) || RESIDUAL == 2 && beyond != 0 {
                let mut four = [_mm512_setzero_si512(); FOUR];
                for i in 0..FOUR {
                    four[i] = sums[place(i).0][place(i).1];
                }
                self.decide::<PIXELS, BLOCKS>(group, &four, pixels, to);
            }
        }
    }

    /// The chain itself for what is in doubt among the registers of a group.
    ///
    /// # Safety
    /// As for [`group`](Self::group).
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decide<const PIXELS: usize, const BLOCKS: usize>(
        &self,
        group: usize,
        sums: &[__m512i; FOUR],
        pixels: usize,
        to: &Place<u8>,
    ) {
        for i in 0..FOUR.min(PIXELS * BLOCKS - FOUR * group) {
            let register = FOUR * group + i;
            let (pixel, block) = ((register / BLOCKS).min(pixels - 1), register % BLOCKS);
            let at = pixel * to.stride + block * LANES;
            let (number, wanted) = (self.first + to.at + at, to.wanted(block));
            // SAFETY: the caller's promises.
            unsafe {
                let factors = self.of_block(to.channel + block * LANES);
                let (fixed, beyond) = self.fixed(sums[i], factors, number, Some(wanted));
                let lower = _mm512_and_si512(fixed, _mm512_set1_epi32(0xffff));
                let doubt = _mm512_cmple_epu32_mask(lower, _mm512_set1_epi32(self.doubt.into()));
                one_by_one(self.chain, sums[i], (doubt | beyond) & wanted, number, to.out.add(at));
            }
        }
    }

    /// All groups of a call.
    ///
    /// # Safety
    /// As for [`group`](Self::group).
    #[inline(always)]
    unsafe fn groups<const PIXELS: usize, const BLOCKS: usize, const WHOLE: bool>(
        &self,
        sums: &[[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: &Place<u8>,
    ) {
        const { assert!(PIXELS * BLOCKS <= MOST) };
        let groups = const { (PIXELS * BLOCKS).div_ceil(FOUR) };
        // Written out, as a loop would have sums in memory.
        // SAFETY: the caller's promises.
        unsafe {
            self.group::<PIXELS, BLOCKS, WHOLE>(0, sums, pixels, to);
            if groups > 1 {
                self.group::<PIXELS, BLOCKS, WHOLE>(1, sums, pixels, to);
            }
            if groups > 2 {
                self.group::<PIXELS, BLOCKS, WHOLE>(2, sums, pixels, to);
            }
            if groups > 3 {
                self.group::<PIXELS, BLOCKS, WHOLE>(3, sums, pixels, to);
            }
            if groups > 4 {
                self.group::<PIXELS, BLOCKS, WHOLE>(4, sums, pixels, to);
            }
            if groups > 5 {
                self.group::<PIXELS, BLOCKS, WHOLE>(5, sums, pixels, to);
            }
        }
    }

    /// Sums of whole pixels that are in memory; the first is output number `first`.
    ///
    /// # Safety
    /// AVX-512 F, BW, DQ and VL are available.
    ///
    /// # Panics
    /// If lengths disagree.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn rows(self, acc: &[i32], channels: usize, first: usize, out: &mut [u8]) {
        let to = self.of_outputs(acc.len(), channels, first, out.len());
        // SAFETY: lengths were checked above, and blocks are cut from rows; the rest is the caller's promise.
        unsafe {
            match channels {
                16 => to.rows_of::<4, 1>(acc, channels, out),
                32 => to.rows_of::<2, 2>(acc, channels, out),
                _ => to.rows_of::<1, 4>(acc, channels, out),
            }
        }
    }

    /// [`rows`](Self::rows), `PIXELS` and `BLOCKS` at a time; of several pixels, the blocks are all.
    ///
    /// # Safety
    /// As for [`rows`](Self::rows), whose lengths were checked.
    #[inline(always)]
    unsafe fn rows_of<const PIXELS: usize, const BLOCKS: usize>(&self, acc: &[i32], channels: usize, out: &mut [u8]) {
        let rows = acc.len() / channels;
        for row in (0..rows).step_by(PIXELS) {
            let pixels = PIXELS.min(rows - row);
            for channel in (0..channels).step_by(BLOCKS * LANES) {
                let at = row * channels + channel;
                let width = (channels - channel).min(BLOCKS * LANES);
                let out = out.as_mut_ptr().wrapping_add(at);
                let to = Place { out, stride: channels, channel, at, channels: width };
                // SAFETY: only wanted lanes of pixels that are there are read.
                unsafe {
                    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
                    for m in 0..PIXELS {
                        for j in 0..BLOCKS {
                            let from = acc.as_ptr().wrapping_add(at + m.min(pixels - 1) * channels + j * LANES);
                            sums[m][j] = _mm512_maskz_loadu_epi32(to.wanted(j), from);
                        }
                    }
                    self.store(sums, pixels, to);
                }
            }
        }
    }
}

impl<const RESIDUAL: u8> Finish for ToCodes<'_, RESIDUAL> {
    type Out = u8;
    /// Not with floats, which stand behind few layers.
    const WITH_EIGHTS: bool = RESIDUAL != 2;
    /// A and B.
    type Ready = [[__m512; FOUR]; 2];

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
        &self,
        sums: [[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: Place<u8>,
    ) {
        assert!(to.channel + BLOCKS * LANES <= self.factors.len().min(self.addends.len()), "a factor is missing");
        // SAFETY: there are factors of all blocks, as was checked just now; the rest are the caller's promises.
        unsafe {
            if to.channels == BLOCKS * LANES {
                self.groups::<PIXELS, BLOCKS, true>(&sums, pixels, &to);
            } else {
                self.groups::<PIXELS, BLOCKS, false>(&sums, pixels, &to);
            }
        }
    }

    #[inline(always)]
    unsafe fn ready(&self, channel: usize, is_twice: bool) -> Self::Ready {
        let of = channel..channel + FOUR * LANES;
        let (a, b) = (self.factors[of.clone()].as_ptr(), self.addends[of].as_ptr());
        // SAFETY: these are 64 numbers each; the caller promises AVX-512.
        unsafe {
            let (mut a, mut b) = (by_part(quarters(a)), by_part(quarters(b)));
            if is_twice {
                (a, b) = (twice(a), twice(b));
            }
            [floats(a), floats(b)]
        }
    }

    #[inline(always)]
    unsafe fn store_parts(&self, ready: &Self::Ready, parts: [__m512i; FOUR], to: Place<u8>) {
        // SAFETY: the caller's promises; whoever has made it ready found factors of 64 channels.
        unsafe {
            if RESIDUAL != 0 {
                return self.store([by_part(parts)], 1, to);
            }
            let (codes, least) = self.of_parts(ready, parts);
            if to.channels >= FOUR * LANES {
                _mm512_storeu_si512(to.out.cast(), codes);
            } else {
                _mm512_mask_storeu_epi8(to.out.cast(), (1 << to.channels) - 1, codes);
            }
            if self.doubts(least) {
                self.decide::<1, FOUR>(0, &by_part(parts), 1, &to);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_halves(&self, ready: &Self::Ready, parts: [__m512i; FOUR], to: Place<u8>) {
        // SAFETY: as above.
        unsafe {
            if RESIDUAL != 0 {
                let [a, b, c, d] = by_part(parts);
                return self.store([[a, b], [c, d]], 2, to);
            }
            let (codes, least) = self.of_parts(ready, parts);
            let (near, far) = (_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes));
            if to.channels >= 2 * LANES {
                _mm256_storeu_si256(to.out.cast(), near);
                _mm256_storeu_si256(to.out.add(to.stride).cast(), far);
            } else {
                let wanted = (1 << to.channels) - 1;
                _mm256_mask_storeu_epi8(to.out.cast(), wanted, near);
                _mm256_mask_storeu_epi8(to.out.add(to.stride).cast(), wanted, far);
            }
            if self.doubts(least) {
                self.decide::<2, 2>(0, &by_part(parts), 2, &to);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_eights<const PIXELS: usize>(
        &self,
        sums: Partial<PIXELS>,
        start: Option<&[i32]>,
        pixels: usize,
        to: Place<u8>,
    ) {
        // SAFETY: the caller's promises.
        unsafe { self.pixels_of_eights(sums, start, pixels, to) }
    }

    #[inline(always)]
    unsafe fn store_row_of_eights(&self, sums: [__m256i; 4], start: &[i32], to: Place<u8>) {
        // SAFETY: the caller's promises.
        unsafe { self.row_of_eights(sums, start, to) }
    }
}

/// Numbers whose bits these are.
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
unsafe fn floats([a, b, c, d]: [__m512i; FOUR]) -> [__m512; FOUR] {
    // SAFETY: the caller promises AVX-512.
    unsafe { [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _mm512_castsi512_ps(c), _mm512_castsi512_ps(d)] }
}

/// The chain itself for some lanes.
///
/// # Safety
/// AVX-512 F is available; `to` has room for these lanes.
#[target_feature(enable = "avx512f")]
unsafe fn one_by_one(chain: &Requantize<'_>, sums: __m512i, lanes: u16, at: usize, to: *mut u8) {
    let mut all = [0i32; LANES];
    // SAFETY: these are 16 elements.
    unsafe { _mm512_storeu_si512(all.as_mut_ptr().cast(), sums) };
    let mut left = lanes;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        // SAFETY: the caller promises room for it.
        let out = unsafe { &mut *to.add(lane) };
        chain.one_by_one(&all[lane..=lane], at + lane, std::slice::from_mut(out));
    }
}
