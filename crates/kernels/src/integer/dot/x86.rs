//! What becomes of sums on x86, and the kernels for AVX-512: each goes through all pixels of a panel, a few at a time.

// Iterators over sums would take their addresses and keep them in memory.
#![allow(clippy::needless_range_loop)]

use super::avx2::{Partial, add_sums};
use super::{GROUP, LANES, MAX_BLOCKS, Panel, QUAD};
use std::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
    _mm512_maskz_loadu_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
};

/// What becomes of sums, while they are in the first cache at the most: with AVX-512 in registers of 16, with AVX2 of 8 (`_eights`).
pub trait Finish: Copy {
    /// Outputs.
    type Out;

    /// Whether this is done with AVX2 too; for what is rare, so many loops more would make the program too large.
    const WITH_EIGHTS: bool = true;

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

    /// Adds sums of up to 16 channels and the first `pixels` pixels to their start values, or to what an earlier chunk left.
    ///
    /// # Safety
    /// AVX2 and FMA are available; there are 16 start values, and at `to.out` is room for the wanted channels of these pixels.
    unsafe fn store_eights<const PIXELS: usize>(
        &self,
        sums: Partial<PIXELS>,
        start: Option<&[i32]>,
        pixels: usize,
        to: Place<Self::Out>,
    );

    /// The same for up to 32 channels of a pixel.
    ///
    /// # Safety
    /// As for [`store_eights`](Self::store_eights), with 32 start values.
    unsafe fn store_row_of_eights(&self, sums: [__m256i; 4], start: &[i32], to: Place<Self::Out>);
}

/// The first half of each register in both, which are half the channels of each [part](by_part).
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
pub unsafe fn twice([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller promises AVX-512.
    unsafe {
        [
            _mm512_shuffle_i32x4::<0x44>(a, a),
            _mm512_shuffle_i32x4::<0x44>(b, b),
            _mm512_shuffle_i32x4::<0x44>(c, c),
            _mm512_shuffle_i32x4::<0x44>(d, d),
        ]
    }
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

    #[inline(always)]
    unsafe fn store_eights<const PIXELS: usize>(
        &self,
        sums: Partial<PIXELS>,
        start: Option<&[i32]>,
        pixels: usize,
        to: Place<i32>,
    ) {
        // SAFETY: the caller's promises.
        unsafe { add_sums(sums, start, pixels, to) }
    }

    #[inline(always)]
    unsafe fn store_row_of_eights(&self, [a, b, c, d]: [__m256i; 4], start: &[i32], to: Place<i32>) {
        let (near, far) = start.split_at(LANES);
        let out = to.out.wrapping_add(LANES);
        // SAFETY: the caller's promises.
        unsafe {
            add_sums([[a, b]], Some(near), 1, to);
            if to.channels > LANES {
                add_sums([[c, d]], Some(far), 1, Place { out, channels: to.channels - LANES, ..to });
            }
        }
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
        // The next weights are on their way while the first pixels pass by these.
        let ahead = panel.next.map_or(0, |next| next.ahead_of(weights, idx, panel.quads()));
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
