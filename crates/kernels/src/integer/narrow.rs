//! Weights of 1 to 7 bits that stay as narrow in memory and are expanded in registers, for layers that meet each weight once or
//! a few times: there, reading weights takes the time, and half the bits take half of it.
//!
//! A code is its distance from the lowest weight, cut into fields of 4, 2 and 1 bits by the binary digits of its width, low
//! bits first: 7 = 4 + 2 + 1. The 64 weights of a block of 16 channels and a group of four inputs, in the order of
//! [`weights`](super::weights), become
//!
//! ```text
//! 4 bits: 32 bytes, byte j = weight j | weight 32 + j << 4
//! 2 bits: 16 bytes, byte j = weight j | weight 16 + j << 2 | weight 32 + j << 4 | weight 48 + j << 6
//! 1 bit:   8 bytes, bit j  = weight j
//! ```

use super::weights::{LANES, QUAD};

/// Weights per block and group of four inputs.
const GROUP: usize = LANES * QUAD;

/// The width of weights and the lowest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Narrow {
    pub bits: u8,
    pub lowest: i8,
}

impl Narrow {
    /// The narrowest form of these weights, if 7 bits do.
    pub fn of(w: &[i8]) -> Option<Self> {
        let (lowest, highest) = w.iter().fold((0, 0), |(low, high), &w| (low.min(w), high.max(w)));
        let distance = highest.abs_diff(lowest);
        let bits = (u8::BITS - distance.leading_zeros()).max(1) as u8;
        (bits <= 7).then_some(Narrow { bits, lowest })
    }

    /// Bytes per group of 64 weights.
    pub fn group_bytes(self) -> usize {
        usize::from(self.bits) * GROUP / 8
    }

    /// Weights in the order of the short kernel, as this form.
    pub fn pack(self, w: &[i8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(w.len() / GROUP * self.group_bytes());
        for group in w.chunks_exact(GROUP) {
            let code = |i: usize| group[i].wrapping_sub(self.lowest) as u8;
            let mut position = 0;
            for field in [4, 2, 1] {
                if self.bits & field == 0 {
                    continue;
                }
                let (per_byte, mask) = (usize::from(8 / field), (1u16 << field) as u8 - 1);
                let bytes = GROUP / per_byte;
                out.extend((0..bytes).map(|j| {
                    let place = |k: usize| {
                        // Single bits lie in order, wider fields a whole register apart.
                        let weight = if field == 1 { j * 8 + k } else { k * bytes + j };
                        (code(weight) >> position & mask) << (k * usize::from(field))
                    };
                    (0..per_byte).map(place).fold(0, |byte, bits| byte | bits)
                }));
                position += field;
            }
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::super::dot::Tile;
    use super::super::dot::x86::{PARTS, add_to, widen};
    use super::{Narrow, QUAD};
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_add_epi8, _mm256_add_epi16, _mm256_and_si256, _mm256_broadcastsi128_si256,
        _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_or_si256, _mm256_set1_epi8,
        _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256,
        _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_srlv_epi32,
    };

    /// A tile of as many pixels as are valid.
    ///
    /// # Safety
    /// As for [`short`](super::super::dot::x86::short), with a block of weights in the given form.
    pub unsafe fn run(tile: &Tile<'_, u8, u8>, form: Narrow, acc: &mut [i32]) {
        macro_rules! bits {
            ($($bits:literal)*) => {
                match form.bits {
                    // SAFETY: the caller's promises are those of `pixels`.
                    $($bits => unsafe {
                        match tile.valid {
                            1 => pixels::<1, $bits>(tile, form.lowest, acc),
                            2 => pixels::<2, $bits>(tile, form.lowest, acc),
                            3 | 4 => pixels::<4, $bits>(tile, form.lowest, acc),
                            _ => pixels::<6, $bits>(tile, form.lowest, acc),
                        }
                    },)*
                    bits => unreachable!("weights of {bits} bits are not narrow"),
                }
            };
        }
        bits!(1 2 3 4 5 6 7)
    }

    /// `PIXELS` pixels times one block, as the short kernel does it.
    ///
    /// # Safety
    /// As for [`run`]; `BITS` are those of the weights.
    #[target_feature(enable = "avx2")]
    unsafe fn pixels<const PIXELS: usize, const BITS: u8>(tile: &Tile<'_, u8, u8>, lowest: i8, acc: &mut [i32]) {
        let mut partial = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        let lowest = _mm256_set1_epi8(lowest);
        let inputs: [*const u8; PIXELS] = std::array::from_fn(|m| tile.input.as_ptr().wrapping_add(tile.pixels[m]));
        let mut weights = tile.weights.as_ptr();
        for &(offset, quads) in tile.pieces {
            for at in (offset..offset + quads * QUAD).step_by(QUAD) {
                // SAFETY: the caller promises a block of weights for all pieces.
                let codes = unsafe { expand::<BITS>(weights) };
                let w = [_mm256_add_epi8(codes[0], lowest), _mm256_add_epi8(codes[1], lowest)];
                for m in 0..PIXELS {
                    // SAFETY: the caller promises that the piece, of which these are 4 bytes, lies within the input.
                    let x = _mm256_set1_epi32(unsafe { inputs[m].add(at).cast::<i32>().read_unaligned() });
                    for part in 0..PARTS {
                        partial[m][part] = _mm256_add_epi16(partial[m][part], _mm256_maddubs_epi16(x, w[part]));
                    }
                }
                weights = weights.wrapping_add(usize::from(BITS) * 8);
            }
        }
        let mut sums = [[_mm256_setzero_si256(); PARTS]; PIXELS];
        for m in 0..PIXELS {
            for part in 0..PARTS {
                sums[m][part] = widen(partial[m][part]);
            }
        }
        add_to(tile, &sums, acc);
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
}
