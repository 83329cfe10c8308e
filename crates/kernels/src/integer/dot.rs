//! The innermost loops: dot products of a few pixels with blocks of 16 output channels.
//!
//! | kernel | per instruction | tile |
//! |---|---|---|
//! | VNNI (AVX-512) | `vpdpbusd`: 64 products of u8 and i8, summed by fours into 16 i32 | 8 pixels x 1–3 blocks, 6 x 4 |
//! | AVX2, weights up to 7 bits | `vpmaddubsw`: 32 products of u8 and i8, summed by twos into 16 i16, several of which are added before they are widened | 3 pixels x 1 block |
//! | AVX2, 8-bit weights | `vpmaddwd` after widening to i16: 16 products, summed by twos | 2 pixels x 1 block |
//! | portable | | 1 pixel x 1 block |
//!
//! All take input bytes as unsigned numbers; signed codes were shifted by 128 on the way in, which the start value of the
//! accumulators makes up for. `vpmaddubsw` saturates, so it is used only where the weights at hand cannot make it: how
//! many of its results a 16-bit lane can hold for any input is known from packing, and nothing is ever clipped.

use super::weights::{LANES, QUAD};
use crate::isa::{Isa, Level};

/// Most pixels and blocks that any kernel takes at once.
const MAX_PIXELS: usize = 8;
const MAX_BLOCKS: usize = 4;

/// Where a tile's inputs lie, the same for all pixels of a band.
#[derive(Debug, Clone)]
pub(super) struct Segments {
    /// Byte offset of each segment from a pixel's first byte.
    pub offsets: Vec<usize>,
    /// Groups of four bytes per segment.
    pub quads: usize,
}

/// The pixels and channels of one call: accumulators `acc[pixel * stride + channel]`.
pub(super) struct Job<'a> {
    /// Input bytes, unsigned.
    pub input: &'a [u8],
    /// First byte of each pixel's window.
    pub pixels: &'a [usize],
    pub segments: &'a Segments,
    /// Packed weights of consecutive blocks.
    pub weights: &'a [i8],
    /// Pairs of products that 16 bits can sum up, see [`ConvWeights`](super::ConvWeights).
    pub short_sums: usize,
    /// Bytes per block.
    pub block_len: usize,
    /// Start value per channel, whole blocks.
    pub start: &'a [i32],
    /// Channels wanted, at most those of the blocks.
    pub channels: usize,
    /// First accumulator of the first pixel.
    pub acc: &'a mut [i32],
    /// Accumulators between pixels.
    pub stride: usize,
}

/// Which kernel this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The best kernel of the level in use.
    pub fn current() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let level = Isa::current().level();
            if level == Level::Avx512 && is_x86_feature_detected!("avx512vnni") {
                return Kernel::Vnni;
            }
            if level >= Level::Avx2 {
                return Kernel::Avx2;
            }
        }
        Kernel::Portable
    }

    /// All kernels this processor can run.
    #[cfg(test)]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Kernel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Isa::new(Level::Avx2).map(|_| Kernel::Avx2));
            let vnni = is_x86_feature_detected!("avx512vnni");
            all.extend(Isa::new(Level::Avx512).filter(|_| vnni).map(|_| Kernel::Vnni));
        }
        all
    }

    /// Accumulates every pixel and channel of the job.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes.
    pub fn run(self, job: &mut Job<'_>) {
        let blocks = job.channels.div_ceil(LANES);
        let quads = job.segments.offsets.len() * job.segments.quads;
        let reach = job.segments.offsets.iter().max().map_or(0, |o| o + job.segments.quads * QUAD);
        let last = job.pixels.iter().max().map_or(0, |p| p + reach);
        assert!(last <= job.input.len(), "a window reaches past the input");
        assert!(quads * QUAD * LANES <= job.block_len, "segments are longer than a block");
        assert!(blocks * job.block_len <= job.weights.len() && blocks * LANES <= job.start.len(), "blocks are missing");
        if let Some(before) = job.pixels.len().checked_sub(1) {
            assert!(before * job.stride + job.channels <= job.acc.len(), "accumulators are missing");
        }
        let mut block = 0;
        while block < blocks {
            let (count, height) = match self {
                #[cfg(target_arch = "x86_64")]
                Kernel::Vnni => match blocks - block {
                    1 => (1, 8),
                    2 => (2, 8),
                    3 => (3, 8),
                    _ => (4, 6),
                },
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 if job.short_sums > 0 => (1, 3),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => (1, 2),
                Kernel::Portable => (1, 1),
            };
            let channels = (job.channels - block * LANES).min(count * LANES);
            let mut pixel = 0;
            while pixel < job.pixels.len() {
                let valid = height.min(job.pixels.len() - pixel);
                // A short last tile computes its last pixel several times and stores it once.
                let mut pixels = [job.pixels[pixel + valid - 1]; MAX_PIXELS];
                pixels[..valid].copy_from_slice(&job.pixels[pixel..pixel + valid]);
                let at = pixel * job.stride + block * LANES;
                let tile = Tile {
                    input: job.input,
                    pixels,
                    segments: job.segments,
                    weights: &job.weights[block * job.block_len..],
                    block_len: job.block_len,
                    start: &job.start[block * LANES..(block + count) * LANES],
                    channels,
                    valid,
                    stride: job.stride,
                };
                let acc = &mut job.acc[at..];
                match self {
                    // SAFETY: `Vnni` is only chosen where AVX-512 and its VNNI were detected. `run` checked that every
                    // segment of every pixel lies within `input`, that `count` blocks of weights and start values exist
                    // (`count` ≤ `blocks - block`), and that the accumulators of the `valid` pixels exist.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Vnni => unsafe {
                        match count {
                            1 => x86::vnni::<8, 1>(&tile, acc),
                            2 => x86::vnni::<8, 2>(&tile, acc),
                            3 => x86::vnni::<8, 3>(&tile, acc),
                            _ => x86::vnni::<6, MAX_BLOCKS>(&tile, acc),
                        }
                    },
                    // SAFETY: as above; `Avx2` is only chosen where AVX2 was detected.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx2 => unsafe {
                        match job.short_sums {
                            0 => x86::avx2::<2>(&tile, acc),
                            short => x86::avx2_short::<3>(&tile, short, acc),
                        }
                    },
                    Kernel::Portable => portable(&tile, acc),
                }
                pixel += valid;
            }
            block += count;
        }
    }
}

/// One call of an innermost loop; see [`Job`].
struct Tile<'a> {
    input: &'a [u8],
    pixels: [usize; MAX_PIXELS],
    segments: &'a Segments,
    weights: &'a [i8],
    block_len: usize,
    start: &'a [i32],
    channels: usize,
    valid: usize,
    stride: usize,
}

fn portable(tile: &Tile<'_>, acc: &mut [i32]) {
    let mut sums: [i32; LANES] = std::array::from_fn(|lane| tile.start[lane]);
    let mut weights = tile.weights.chunks_exact(QUAD * LANES);
    for &offset in &tile.segments.offsets {
        let input = &tile.input[tile.pixels[0] + offset..][..tile.segments.quads * QUAD];
        for (x, w) in input.chunks_exact(QUAD).zip(&mut weights) {
            for (sum, w) in sums.iter_mut().zip(w.chunks_exact(QUAD)) {
                for (&x, &w) in x.iter().zip(w) {
                    *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                }
            }
        }
    }
    acc[..tile.channels].copy_from_slice(&sums[..tile.channels]);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, QUAD, Tile};
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi16,
        _mm256_add_epi32, _mm256_broadcastq_epi64, _mm256_cvtepi8_epi16, _mm256_hadd_epi32, _mm256_loadu_si256,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_permute4x64_epi64, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
        _mm512_set1_epi32,
    };

    /// `PIXELS` pixels times `BLOCKS` blocks with `vpdpbusd`.
    ///
    /// # Safety
    /// * AVX-512 F and VNNI are available.
    /// * Every segment of every pixel lies within `tile.input`; `BLOCKS` blocks of `tile.weights` and `tile.start` exist.
    /// * `acc` holds `(tile.valid - 1) * tile.stride + tile.channels` elements, and `tile.valid <= PIXELS`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn vnni<const PIXELS: usize, const BLOCKS: usize>(tile: &Tile<'_>, acc: &mut [i32]) {
        let mut sums = [[_mm512_set1_epi32(0); BLOCKS]; PIXELS];
        for j in 0..BLOCKS {
            // SAFETY: the caller promises `BLOCKS * LANES` start values.
            let start = unsafe { _mm512_loadu_si512(tile.start.as_ptr().add(j * LANES).cast()) };
            for row in &mut sums {
                row[j] = start;
            }
        }
        let inputs: [*const u8; PIXELS] = std::array::from_fn(|m| tile.input.as_ptr().wrapping_add(tile.pixels[m]));
        let mut weights = tile.weights.as_ptr();
        for &offset in &tile.segments.offsets {
            for quad in 0..tile.segments.quads {
                let at = offset + quad * QUAD;
                // SAFETY: the caller promises `BLOCKS` blocks of weights as long as all segments together; `weights` moves
                // 64 bytes per group of four inputs.
                let w: [__m512i; BLOCKS] =
                    std::array::from_fn(|j| unsafe { _mm512_loadu_si512(weights.add(j * tile.block_len).cast()) });
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the segment, of which these are 4 bytes, lies within the input.
                    let x = unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() };
                    let x = _mm512_set1_epi32(x);
                    for j in 0..BLOCKS {
                        sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], x, w[j]);
                    }
                }
                weights = weights.wrapping_add(QUAD * LANES);
            }
        }
        for (m, row) in sums.iter().enumerate().take(tile.valid) {
            for (j, &sum) in row.iter().enumerate() {
                let lanes = tile.channels.saturating_sub(j * LANES).min(LANES);
                let mask = ((1u32 << lanes) - 1) as u16;
                let at = acc.as_mut_ptr().wrapping_add(m * tile.stride + j * LANES);
                // SAFETY: only the lanes of wanted channels of valid pixels are stored, which the caller promises exist.
                unsafe { _mm512_mask_storeu_epi32(at, mask, sum) };
            }
        }
    }

    /// `PIXELS` pixels times one block with `vpmaddwd`: a register holds four channels x two partial sums.
    ///
    /// # Safety
    /// As for [`vnni`] with one block, and AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn avx2<const PIXELS: usize>(tile: &Tile<'_>, acc: &mut [i32]) {
        const PARTS: usize = LANES / 4;
        let mut sums = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        let inputs: [*const u8; PIXELS] = std::array::from_fn(|m| tile.input.as_ptr().wrapping_add(tile.pixels[m]));
        let mut weights = tile.weights.as_ptr();
        for &offset in &tile.segments.offsets {
            for quad in 0..tile.segments.quads {
                let at = offset + quad * QUAD;
                // SAFETY: the caller promises a block of weights as long as all segments together: 64 bytes per group.
                let w: [__m256i; PARTS] = std::array::from_fn(|part| unsafe {
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(part * 16).cast::<__m128i>()))
                });
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the segment, of which these are 4 bytes, lies within the input.
                    let x = unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() };
                    let x = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(x)));
                    for part in 0..PARTS {
                        sums[m][part] = _mm256_add_epi32(sums[m][part], _mm256_madd_epi16(x, w[part]));
                    }
                }
                weights = weights.wrapping_add(QUAD * LANES);
            }
        }
        for (m, parts) in sums.iter().enumerate().take(tile.valid) {
            let mut row = [0i32; LANES];
            for half in 0..2 {
                // Adds neighbours; the result's quarters are channels 0 1 | 4 5 | 2 3 | 6 7, which the permutation sorts.
                let pairs = _mm256_hadd_epi32(parts[2 * half], parts[2 * half + 1]);
                let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                // SAFETY: `row` has 16 elements, of which this stores 8 from `8 * half` on.
                unsafe { _mm256_storeu_si256(row.as_mut_ptr().add(8 * half).cast(), sorted) };
            }
            for ((acc, sum), start) in acc[m * tile.stride..][..tile.channels].iter_mut().zip(row).zip(tile.start) {
                *acc = sum.wrapping_add(*start);
            }
        }
    }

    /// `PIXELS` pixels times one block with `vpmaddubsw`: a register holds eight channels x two partial sums of 16 bits,
    /// which are widened after every `short` groups of four inputs.
    ///
    /// # Safety
    /// As for [`avx2`].
    #[target_feature(enable = "avx2")]
    pub unsafe fn avx2_short<const PIXELS: usize>(tile: &Tile<'_>, short: usize, acc: &mut [i32]) {
        const PARTS: usize = LANES / 8;
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        let mut partial = sums;
        let mut room = short;
        let inputs: [*const u8; PIXELS] = std::array::from_fn(|m| tile.input.as_ptr().wrapping_add(tile.pixels[m]));
        let mut weights = tile.weights.as_ptr();
        for &offset in &tile.segments.offsets {
            let mut quad = 0;
            while quad < tile.segments.quads {
                let end = tile.segments.quads.min(quad + room);
                room -= end - quad;
                while quad < end {
                    let at = offset + quad * QUAD;
                    // SAFETY: the caller promises a block of weights as long as all segments together: 64 bytes per group.
                    let w: [__m256i; PARTS] =
                        std::array::from_fn(|part| unsafe { _mm256_loadu_si256(weights.add(part * 32).cast()) });
                    for m in 0..PIXELS {
                        // SAFETY: the caller promises that the segment, of which these are 4 bytes, lies within the input.
                        let x = unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() };
                        let x = _mm256_set1_epi32(x);
                        for part in 0..PARTS {
                            partial[m][part] = _mm256_add_epi16(partial[m][part], _mm256_maddubs_epi16(x, w[part]));
                        }
                    }
                    weights = weights.wrapping_add(QUAD * LANES);
                    quad += 1;
                }
                if room == 0 {
                    // By index, here and below: an iterator would take the sums' addresses and keep them out of registers.
                    for m in 0..PIXELS {
                        for part in 0..PARTS {
                            sums[m][part] = _mm256_add_epi32(sums[m][part], _mm256_madd_epi16(partial[m][part], ones));
                            partial[m][part] = _mm256_setzero_si256();
                        }
                    }
                    room = short;
                }
            }
        }
        for m in 0..PIXELS {
            if m >= tile.valid {
                break;
            }
            let mut row = [_mm256_setzero_si256(); PARTS];
            for part in 0..PARTS {
                // SAFETY: the caller promises `LANES` start values.
                let start = unsafe { _mm256_loadu_si256(tile.start.as_ptr().add(8 * part).cast()) };
                let rest = _mm256_madd_epi16(partial[m][part], ones);
                row[part] = _mm256_add_epi32(_mm256_add_epi32(sums[m][part], rest), start);
            }
            let to = &mut acc[m * tile.stride..][..tile.channels];
            if to.len() == LANES {
                for (part, &sum) in row.iter().enumerate() {
                    // SAFETY: `to` has 16 elements, of which this stores 8 from `8 * part` on.
                    unsafe { _mm256_storeu_si256(to.as_mut_ptr().add(8 * part).cast(), sum) };
                }
            } else {
                let mut lanes = [0i32; LANES];
                for (part, &sum) in row.iter().enumerate() {
                    // SAFETY: as above, in `lanes`.
                    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().add(8 * part).cast(), sum) };
                }
                to.copy_from_slice(&lanes[..to.len()]);
            }
        }
    }
}
