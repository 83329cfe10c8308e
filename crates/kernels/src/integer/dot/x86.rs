//! The kernels for x86: each goes through all pixels of a panel, a few at a time.

// Iterators over sums would take their addresses and keep them in memory.
#![allow(clippy::needless_range_loop)]

use super::{GROUP, LANES, MAX_BLOCKS, Panel, QUAD, Rest, Word};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
};

/// Registers of eight channels per block.
pub const PARTS: usize = LANES / 8;

/// Sums of a few pixels and one block.
type Partial<const PIXELS: usize> = [[__m256i; PARTS]; PIXELS];

/// What becomes of sums, while they are in the first cache at the most.
pub trait Finish: Copy {
    /// Outputs.
    type Out;

    /// The sums of an earlier chunk, of the `wanted` lanes.
    ///
    /// # Safety
    /// AVX-512 F is available, and the wanted lanes are there.
    unsafe fn load(from: *const Self::Out, wanted: u16) -> __m512i;

    /// The same for a band whose first output is number `first` among all.
    fn of_band(self, first: usize) -> Self;

    /// Stores the sums of blocks of channels and of the first `pixels` pixels.
    ///
    /// # Safety
    /// AVX-512 F, BW, DQ and VL are available; at `to.out` is room for the wanted channels of these pixels.
    unsafe fn store<const PIXELS: usize, const BLOCKS: usize>(
        &self,
        sums: [[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: Place<Self::Out>,
    );

    /// What [`store_parts`](Self::store_parts) needs of 64 channels.
    type Ready;

    /// That of the channels from number `channel` on, or of 32 [`twice`].
    ///
    /// # Safety
    /// AVX-512 F is available.
    unsafe fn ready(&self, channel: usize, twice: bool) -> Self::Ready;

    /// Stores the sums of a pixel and 64 channels, by [parts](by_part).
    ///
    /// # Safety
    /// As for [`store`](Self::store).
    unsafe fn store_parts(&self, ready: &Self::Ready, parts: [__m512i; 4], to: Place<Self::Out>);

    /// The same of two pixels, `to.stride` apart, and 32 channels.
    ///
    /// # Safety
    /// As for [`store`](Self::store).
    #[inline(always)]
    unsafe fn store_halves(&self, _ready: &Self::Ready, parts: [__m512i; 4], to: Place<Self::Out>) {
        // SAFETY: the caller's promises.
        unsafe {
            let [a, b, c, d] = by_part(parts);
            self.store([[a, b], [c, d]], 2, to);
        }
    }
}

/// The first half of a register in both, which are half the channels of each [part](by_part).
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
pub unsafe fn twice(x: __m512i) -> __m512i {
    // SAFETY: the caller promises AVX-512.
    unsafe { _mm512_shuffle_i32x4::<0x44>(x, x) }
}

/// The numbers of 64 channels, in order.
///
/// # Safety
/// AVX-512 F is available, and `from` holds 64 numbers of 32 bits.
#[inline(always)]
pub unsafe fn quarters<T>(from: *const T) -> [__m512i; 4] {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: the caller's promises.
    unsafe {
        [
            _mm512_loadu_si512(from.cast()),
            _mm512_loadu_si512(from.add(LANES).cast()),
            _mm512_loadu_si512(from.add(2 * LANES).cast()),
            _mm512_loadu_si512(from.add(3 * LANES).cast()),
        ]
    }
}

/// Four registers with 64 channels in order, as parts, of which number j has the channels 16 l + 4 j … of l = 0 … 3; and back.
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
pub unsafe fn by_part(x: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller promises AVX-512.
    unsafe {
        let (a, b) = (_mm512_shuffle_i32x4::<0x44>(x[0], x[1]), _mm512_shuffle_i32x4::<0x44>(x[2], x[3]));
        let (c, d) = (_mm512_shuffle_i32x4::<0xee>(x[0], x[1]), _mm512_shuffle_i32x4::<0xee>(x[2], x[3]));
        [
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        ]
    }
}

/// Where the outputs of some pixels go.
#[derive(Clone, Copy)]
pub struct Place<O> {
    /// The first of the first pixel.
    pub out: *mut O,
    /// From pixel to pixel.
    pub stride: usize,
    /// Number of the first channel in the layer.
    pub channel: usize,
    /// Number of the first output in the band.
    pub at: usize,
    /// Channels that are wanted.
    pub channels: usize,
}

impl<O> Place<O> {
    /// The lanes that are wanted of a block.
    #[inline(always)]
    pub fn wanted(&self, block: usize) -> u16 {
        wanted(self.channels, block)
    }
}

impl<X, W> Panel<'_, X, W> {
    /// Where the outputs of its pixels go from number `first` of its outputs on, which is at `out`.
    #[inline(always)]
    pub fn place<O>(&self, first: usize, out: *mut O) -> Place<O> {
        let &Panel { stride, channel, channels, .. } = self;
        Place { out, stride, channel, at: self.at + first, channels }
    }
}

/// The lanes of a block that are among so many channels.
#[inline(always)]
fn wanted(channels: usize, block: usize) -> u16 {
    ((1u32 << channels.saturating_sub(block * LANES).min(LANES)) - 1) as u16
}

/// Sums that stay what they are.
#[derive(Clone, Copy)]
pub struct Sums;

impl Finish for Sums {
    type Out = i32;

    #[inline(always)]
    unsafe fn load(from: *const i32, wanted: u16) -> __m512i {
        // SAFETY: only wanted lanes are read.
        unsafe { _mm512_maskz_loadu_epi32(wanted, from) }
    }

    fn of_band(self, _first: usize) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn store<const PIXELS: usize, const BLOCKS: usize>(
        &self,
        sums: [[__m512i; BLOCKS]; PIXELS],
        pixels: usize,
        to: Place<i32>,
    ) {
        for m in 0..PIXELS {
            if m == pixels {
                break;
            }
            for j in 0..BLOCKS {
                let out = to.out.wrapping_add(m * to.stride + j * LANES);
                // SAFETY: only wanted lanes are written.
                unsafe { _mm512_mask_storeu_epi32(out, to.wanted(j), sums[m][j]) };
            }
        }
    }

    type Ready = ();

    #[inline(always)]
    unsafe fn ready(&self, _channel: usize, _twice: bool) {}

    #[inline(always)]
    unsafe fn store_parts(&self, _ready: &(), parts: [__m512i; 4], to: Place<i32>) {
        // SAFETY: the caller's promises.
        unsafe { self.store([by_part(parts)], 1, to) }
    }
}

/// All pixels of a panel of up to four blocks, with `vpdpbusd`. Twelve sums at a time: as many as hide the latency of a product, and so few that
/// the next ones begin while these are finished. With many inputs it matters more how often weights are read.
///
/// # Safety
/// * AVX-512 F, BW, DQ, VL and VNNI are available.
/// * Every piece of every pixel lies within `panel.input`; blocks of `panel.weights` and `panel.start` exist, each with weights
///   for all pieces.
/// * `out` holds `(pixels - 1) * panel.stride + panel.channels` elements.
pub unsafe fn vnni_panel<F: Finish>(panel: &Panel<'_, u8, i8>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the caller's promises.
    unsafe {
        match panel.blocks {
            1 => vnni::<12, 1, F>(panel, finish, out),
            2 => vnni::<6, 2, F>(panel, finish, out),
            3 => vnni::<4, 3, F>(panel, finish, out),
            _ if panel.quads() > MANY_QUADS => vnni::<6, MAX_BLOCKS, F>(panel, finish, out),
            _ => vnni::<3, MAX_BLOCKS, F>(panel, finish, out),
        }
    }
}

/// Groups of four inputs from which on a panel's weights are too many for the first cache.
const MANY_QUADS: usize = 256;

/// `PIXELS` pixels at a time, times `BLOCKS` blocks.
///
/// # Safety
/// As for [`vnni_panel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni<const PIXELS: usize, const BLOCKS: usize, F: Finish>(
    panel: &Panel<'_, u8, i8>,
    finish: F,
    out: &mut [F::Out],
) {
    for (idx, pixels) in panel.pixels.chunks(PIXELS).enumerate() {
        let inputs = panel.inputs::<PIXELS>(pixels);
        let first = idx * PIXELS * panel.stride;
        let out = out.as_mut_ptr().wrapping_add(first);
        // SAFETY: the caller's promises; `out` begins with these pixels.
        let mut sums = unsafe { begin::<PIXELS, BLOCKS, F, _>(panel, pixels.len(), out) };
        let mut weights = panel.weights.as_ptr();
        // The next panel's weights are on their way while the first pixels pass by this one's, a block for each group of pixels.
        let ahead = if panel.is_followed && idx < BLOCKS { (BLOCKS + idx) * panel.block_len } else { 0 };
        for &(offset, quads) in panel.pieces {
            for at in (offset..offset + quads * QUAD).step_by(QUAD) {
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(ahead));
                // SAFETY: the caller promises `BLOCKS` blocks of weights for all pieces; `weights` moves 64 bytes per group of
                // four inputs.
                let w: [__m512i; BLOCKS] =
                    std::array::from_fn(|j| unsafe { _mm512_loadu_si512(weights.add(j * panel.block_len).cast()) });
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the piece, of which these are 4 bytes, lies within the input.
                    let x = _mm512_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for j in 0..BLOCKS {
                        sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], x, w[j]);
                    }
                }
                weights = weights.wrapping_add(GROUP);
            }
        }
        // SAFETY: for these pixels and channels, the caller promises room.
        unsafe { finish.store(sums, pixels.len(), panel.place(first, out)) };
    }
}

/// What sums of `pixels` pixels begin with, whose outputs begin at `out`. Of fewer than `PIXELS`, the last one's several times.
///
/// # Safety
/// AVX-512 F is available; start values of `BLOCKS` blocks are there, or the wanted outputs.
#[inline(always)]
pub unsafe fn begin<const PIXELS: usize, const BLOCKS: usize, F: Finish, W>(
    panel: &Panel<'_, u8, W>,
    pixels: usize,
    out: *const F::Out,
) -> [[__m512i; BLOCKS]; PIXELS] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
        for m in 0..PIXELS {
            for j in 0..BLOCKS {
                sums[m][j] = match panel.start {
                    Some(start) => _mm512_loadu_si512(start.as_ptr().add(j * LANES).cast()),
                    None => {
                        let at = m.min(pixels - 1) * panel.stride + j * LANES;
                        F::load(out.wrapping_add(at), wanted(panel.channels, j))
                    }
                };
            }
        }
        sums
    }
}

/// Whether [`InLongs`] can be used.
pub fn has_dots() -> bool {
    if cfg!(test) {
        return is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
    }
    is_x86_feature_detected!("avxvnni")
}

/// Products of 32 bytes, added up in eight channels.
pub trait Products: Copy {
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
    #[inline(always)]
    unsafe fn add(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller promises AVX2.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(x, w)) }
    }

    #[inline(always)]
    unsafe fn whole(sums: __m256i) -> __m256i {
        // SAFETY: the caller promises AVX2.
        unsafe { widen(sums) }
    }
}

/// In 32 bits, by fours, with AVX-VNNI's `vpdpbusd`. Assembly, because an intrinsic is an instruction only in functions compiled for
/// AVX-VNNI alone. Tests use the encoding that AVX-512 has for the same instruction, so that they run where it is.
#[derive(Clone, Copy)]
pub struct InLongs;

impl Products for InLongs {
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
/// As for [`vnni_panel`] with one block, and the instructions of `P`.
pub unsafe fn bytes<P: Products>(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
    // SAFETY: the caller's promises.
    unsafe {
        match (panel.rest(), panel.needs_widening()) {
            (Rest::Many, false) => short_once::<6, P>(panel, acc),
            (Rest::Many, true) => short::<6, P>(panel, acc),
            (Rest::Four, false) => short_once::<4, P>(panel, acc),
            (Rest::Four, true) => short::<4, P>(panel, acc),
            (Rest::Two, _) => short::<2, P>(panel, acc),
            (Rest::One, _) => short::<1, P>(panel, acc),
        }
    }
}

/// `PIXELS` pixels at a time, times one block: a register holds eight channels x two partial sums of 16 bits, or one of 32, which
/// can hold all of the panel's pieces.
///
/// # Safety
/// As for [`bytes`].
#[target_feature(enable = "avx2")]
unsafe fn short_once<const PIXELS: usize, P: Products>(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
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
        // SAFETY: AVX2 is available, and the caller promises accumulators.
        unsafe { add_to(panel, pixels.len(), sums, &mut acc[idx * PIXELS * panel.stride..]) }
    }
}

/// [`short_once`] for panels of any length: partial sums are widened whenever they could be full.
///
/// # Safety
/// As for [`bytes`].
#[target_feature(enable = "avx2")]
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
        unsafe { short_with::<PIXELS, P, _>(panel, pixels, next, &mut acc[idx * PIXELS * panel.stride..]) }
    }
}

/// [`short`] for one group of pixels with weights from `next`, a group of four inputs at a time.
///
/// # Safety
/// As for [`short`]; `next` gives weights for all pieces, and `acc` begins with the first of the `pixels`, which are of the panel.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn short_with<const PIXELS: usize, P: Products, W>(
    panel: &Panel<'_, u8, W>,
    pixels: &[usize],
    mut next: impl FnMut() -> [__m256i; PARTS],
    acc: &mut [i32],
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
    // SAFETY: AVX2 is available, and the caller promises accumulators.
    unsafe { add_to(panel, pixels.len(), whole, acc) }
}

/// `PIXELS` pixels at a time, times one block, with `vpmaddwd`: a register holds the sums of eight channels.
///
/// # Safety
/// As for [`short`].
#[target_feature(enable = "avx2")]
pub unsafe fn wide<const PIXELS: usize, W: Word>(panel: &Panel<'_, i16, W>, acc: &mut [i32]) {
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
        // SAFETY: AVX2 is available, and the caller promises accumulators.
        unsafe { add_to(panel, pixels.len(), sums, &mut acc[idx * PIXELS * panel.stride..]) }
    }
}

/// Pairs of 16-bit sums to sums of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub fn widen(sums: __m256i) -> __m256i {
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}

/// Adds sums to the start values, or to what is there, of the wanted channels of so many pixels.
///
/// # Safety
/// AVX2 is available, and there are accumulators for these pixels.
#[inline(always)]
unsafe fn add_to<X, W, const PIXELS: usize>(
    panel: &Panel<'_, X, W>,
    pixels: usize,
    sums: Partial<PIXELS>,
    acc: &mut [i32],
) {
    if panel.channels < LANES {
        // A copy, so that the sums themselves are never anywhere but in registers.
        let copy = sums;
        // SAFETY: AVX2 is available.
        return unsafe { add_some(panel, pixels, &copy, acc) };
    }
    assert!(acc.len() >= (pixels - 1) * panel.stride + LANES, "accumulators are missing");
    for m in 0..PIXELS {
        if m == pixels {
            break;
        }
        for part in 0..PARTS {
            let to = acc.as_mut_ptr().wrapping_add(m * panel.stride + part * 8);
            let base = panel.start.map_or(to.cast_const(), |start| start.as_ptr().wrapping_add(part * 8));
            // SAFETY: a block has 16 start values, and the accumulators were counted.
            unsafe {
                _mm256_storeu_si256(to.cast(), _mm256_add_epi32(sums[m][part], _mm256_loadu_si256(base.cast())));
            }
        }
    }
}

/// [`add_to`] for fewer channels than a block has.
///
/// # Safety
/// AVX2 is available.
#[cold]
#[target_feature(enable = "avx2")]
unsafe fn add_some<X, W, const PIXELS: usize>(
    panel: &Panel<'_, X, W>,
    pixels: usize,
    sums: &Partial<PIXELS>,
    acc: &mut [i32],
) {
    for (m, sums) in sums.iter().enumerate().take(pixels) {
        let to = &mut acc[m * panel.stride..][..panel.channels];
        let mut lanes = [0i32; LANES];
        lanes[..to.len()].copy_from_slice(panel.start.map_or(&*to, |start| &start[..to.len()]));
        for (lanes, &sum) in lanes.chunks_exact_mut(8).zip(sums) {
            // SAFETY: these are 8 elements.
            unsafe {
                let base = _mm256_loadu_si256(lanes.as_ptr().cast());
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(sum, base));
            }
        }
        to.copy_from_slice(&lanes[..to.len()]);
    }
}
