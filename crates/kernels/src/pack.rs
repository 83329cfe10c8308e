//! Codes on disk: fields of exactly b bits, bit planes, or base 3. Lengths are checked, nothing panics on hostile input.
//!
//! **Fields**: one bitstream, least significant bit first, no padding between values. Three codes of 3 bits, a b c:
//!
//! ```text
//! byte 0                     byte 1
//! bit 7 6 5 4 3 2 1 0        7 6 5 4 3 2 1 0
//!     c c b b b a a a        0 0 0 0 0 0 0 c       (a's lowest bit is bit 0; unused bits are written as 0)
//!     1 0 2 1 0 2 1 0                      2       (which bit of the code)
//! ```
//!
//! Value i occupies bits `i·b .. (i+1)·b`; n values take `ceil(n·b / 8)` bytes. Eight values always start on a byte
//! boundary, which is what unpacking exploits. Signed codes are stored in two's complement.
//!
//! **Planes**: sign and magnitude, for codes whose magnitude has bits only at the positions set in `mask`. Every plane is
//! a bit set of `ceil(n / 8)` bytes, value i at bit `i % 8` of byte `i / 8`; the sign plane comes first (1 = negative),
//! then the planes that are on, most significant first. Mask 0 stores nothing: every code is 0.
//!
//! ```text
//! mask = 0b101, 10 values:   | sign 2 bytes | 2² 2 bytes | 2⁰ 2 bytes |     code = ±(4·bit + 1·bit)
//! ```
//!
//! **Base 3**: codes −1, 0 and 1, five to a byte ([`pack_ternary`]).
//!
//! Readers ignore the unused bits of a last byte, and a set sign on magnitude 0 reads as 0; writers write neither.

mod ternary;

use crate::numerics::Code;
use std::fmt;

pub use ternary::{pack_ternary, ternary_len, unpack_ternary};

/// Why packing or unpacking was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// A field has 1 to 8 bits.
    Bits(u8),
    /// The packed bytes are not as many as the count of values asks for.
    Length {
        /// Bytes that the values take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The requested values reach past the end.
    OutOfRange {
        /// One past the last value asked for (saturating).
        end: usize,
        /// Number of values stored.
        len: usize,
    },
    /// A code that its field, its planes or its storage type cannot represent.
    Code {
        /// Position of the first such code.
        index: usize,
        /// The code.
        code: i32,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Bits(bits) => write!(f, "fields of {bits} bits: 1 to 8 are possible"),
            Error::Length { expected, found } => {
                write!(f, "packed data has {found} bytes but {expected} are needed")
            }
            Error::OutOfRange { end, len } => {
                write!(f, "values up to {end} requested but only {len} are stored")
            }
            Error::Code { index, code } => {
                write!(f, "code {code} at position {index} does not fit its field")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Types that fields unpack into: `u8` zero-extends, `i8` sign-extends.
pub trait Field: Code {
    /// Whether codes are two's complement.
    const SIGNED: bool;
    /// The code whose low `bits` bits are `raw` (bits above are 0).
    fn extend(raw: u8, bits: u8) -> Self;
}

impl Field for u8 {
    const SIGNED: bool = false;
    #[inline(always)]
    fn extend(raw: u8, _bits: u8) -> Self {
        raw
    }
}

impl Field for i8 {
    const SIGNED: bool = true;
    #[inline(always)]
    fn extend(raw: u8, bits: u8) -> Self {
        let sign = 1u8 << (bits - 1);
        (raw ^ sign).wrapping_sub(sign) as i8
    }
}

/// Bytes that `n` fields of `bits` bits take (0 for an impossible `bits`).
pub const fn fields_len(n: usize, bits: u8) -> usize {
    if bits == 0 || bits > 8 {
        return 0;
    }
    // Eight values are `bits` bytes; this form cannot overflow.
    n / 8 * bits as usize + (n % 8 * bits as usize).div_ceil(8)
}

/// Packs `codes` into fields of exactly `bits` bits.
///
/// ```
/// use bitsmith_kernels::pack::{pack_fields, unpack_fields};
/// let bytes = pack_fields(&[-4i8, 3, -1], 3)?;
/// assert_eq!(bytes, [0b11_011_100, 0b1]);
/// let mut codes = [0i8; 2];
/// unpack_fields(&bytes, 3, 3, 1, &mut codes)?; // of 3 values, those from 1 on
/// assert_eq!(codes, [3, -1]);
/// # Ok::<(), bitsmith_kernels::pack::Error>(())
/// ```
pub fn pack_fields<F: Field>(codes: &[F], bits: u8) -> Result<Vec<u8>, Error> {
    check_bits(bits)?;
    let low_bits = u8::MAX >> (8 - bits);
    let mut bytes = Vec::with_capacity(fields_len(codes.len(), bits));
    for (group_idx, group) in codes.chunks(8).enumerate() {
        let mut word = 0u64;
        for (i, &code) in group.iter().enumerate() {
            let raw = code.to_code() as u8 & low_bits;
            if F::extend(raw, bits).to_code() != code.to_code() {
                return Err(Error::Code { index: group_idx * 8 + i, code: code.to_code() });
            }
            word |= u64::from(raw) << (i * usize::from(bits));
        }
        bytes.extend_from_slice(&word.to_le_bytes()[..fields_len(group.len(), bits)]);
    }
    Ok(bytes)
}

/// Unpacks values `first .. first + out.len()` of `n` fields of `bits` bits.
///
/// `bytes` must be exactly the [`fields_len`] of all `n` values: a row is read without touching the others.
pub fn unpack_fields<F: Field>(bytes: &[u8], bits: u8, n: usize, first: usize, out: &mut [F]) -> Result<(), Error> {
    check_bits(bits)?;
    check_length(bytes, fields_len(n, bits))?;
    check_window(n, first, out.len())?;
    for_groups(first, out, |group, within, out| {
        let start = group * usize::from(bits);
        let word = load_le(&bytes[start..], usize::from(bits));
        for (i, code) in out.iter_mut().enumerate() {
            let raw = (word >> ((within + i) * usize::from(bits))) as u8 & (u8::MAX >> (8 - bits));
            *code = F::extend(raw, bits);
        }
    });
    Ok(())
}

/// Bytes that `n` codes with magnitude planes `mask` take: a sign plane and one per set bit; 0 for mask 0.
pub const fn planes_len(n: usize, mask: u8) -> usize {
    if mask == 0 {
        return 0;
    }
    n.div_ceil(8).saturating_mul(mask.count_ones() as usize + 1)
}

/// Packs `codes` as a sign plane and the magnitude planes in `mask` (bit p of it: the plane of weight 2^p).
///
/// ```
/// use bitsmith_kernels::pack::{pack_planes, unpack_planes};
/// let bytes = pack_planes(&[5i8, -4, 0], 0b101)?;
/// assert_eq!(bytes, [0b010, 0b011, 0b001]); // signs, fours, ones
/// let mut codes = [0i8; 3];
/// unpack_planes(&bytes, 0b101, 3, 0, &mut codes)?;
/// assert_eq!(codes, [5, -4, 0]);
/// # Ok::<(), bitsmith_kernels::pack::Error>(())
/// ```
pub fn pack_planes<C: Code>(codes: &[C], mask: u8) -> Result<Vec<u8>, Error> {
    if let Some(index) = codes.iter().position(|c| c.to_code().unsigned_abs() & !u32::from(mask) != 0) {
        let code = codes[index].to_code();
        return Err(Error::Code { index, code });
    }
    let mut bytes = Vec::with_capacity(planes_len(codes.len(), mask));
    if mask == 0 {
        return Ok(bytes);
    }
    let mut push_plane = |bit: &dyn Fn(i32) -> bool| {
        for group in codes.chunks(8) {
            let byte = group.iter().enumerate().fold(0, |byte, (i, c)| byte | u8::from(bit(c.to_code())) << i);
            bytes.push(byte);
        }
    };
    push_plane(&|code| code < 0);
    for position in positions(mask) {
        push_plane(&|code| code.unsigned_abs() >> position & 1 == 1);
    }
    Ok(bytes)
}

/// Unpacks values `first .. first + out.len()` of `n` codes packed by [`pack_planes`].
///
/// `bytes` must be exactly their [`planes_len`]; the storage type must hold ±`mask`.
pub fn unpack_planes<C: Code>(bytes: &[u8], mask: u8, n: usize, first: usize, out: &mut [C]) -> Result<(), Error> {
    check_length(bytes, planes_len(n, mask))?;
    check_window(n, first, out.len())?;
    let largest = i32::from(mask);
    if C::CODE_MAX < largest || C::CODE_MIN > -largest {
        return Err(Error::Code { index: first, code: largest });
    }
    if mask == 0 {
        out.fill(C::from_code(0));
        return Ok(());
    }
    let plane_len = n.div_ceil(8);
    for_groups(first, out, |group, within, out| {
        let mut plane = group;
        let signs = spread_bits(bytes[plane]).to_le_bytes();
        let mut magnitudes = 0u64;
        for position in positions(mask) {
            plane += plane_len;
            magnitudes |= spread_bits(bytes[plane]) << position;
        }
        let magnitudes = magnitudes.to_le_bytes();
        for (i, code) in out.iter_mut().enumerate() {
            let magnitude = i32::from(magnitudes[within + i]);
            let negative = -i32::from(signs[within + i]); // 0 or all ones
            *code = C::from_code((magnitude ^ negative) - negative);
        }
    });
    Ok(())
}

/// Positions of the set bits, highest first.
fn positions(mask: u8) -> impl Iterator<Item = u32> {
    (0..8).rev().filter(move |&p| mask >> p & 1 == 1)
}

/// Byte i of the result is bit i of `byte`.
#[inline(always)]
fn spread_bits(byte: u8) -> u64 {
    // One copy of the byte per lane, of which lane i keeps bit i; adding 0x7f carries
    // it into bit 7 (of 0x80 the sum is 0xff: no lane overflows).
    let picked = (u64::from(byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    ((picked + 0x7f7f_7f7f_7f7f_7f7f) >> 7) & 0x0101_0101_0101_0101
}

/// Up to `len` (at most 8) bytes from the start of `bytes`, little endian, missing ones 0.
#[inline(always)]
fn load_le(bytes: &[u8], len: usize) -> u64 {
    if let Some(word) = bytes.first_chunk::<8>() {
        return u64::from_le_bytes(*word);
    }
    let mut word = [0u8; 8];
    let len = len.min(bytes.len());
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(word)
}

/// Cuts the window starting at value `first` into groups of eight aligned values and calls
/// `unpack(group index, position of the first wanted value in the group, outputs)`.
#[inline(always)]
fn for_groups<T>(first: usize, out: &mut [T], mut unpack: impl FnMut(usize, usize, &mut [T])) {
    let head_len = ((8 - first % 8) % 8).min(out.len());
    let (head, rest) = out.split_at_mut(head_len);
    if !head.is_empty() {
        unpack(first / 8, first % 8, head);
    }
    let mut group = (first + head_len) / 8;
    let (whole, tail) = rest.as_chunks_mut::<8>();
    for out in whole {
        unpack(group, 0, out); // The length is known to be 8 here, so the inner loop unrolls.
        group += 1;
    }
    if !tail.is_empty() {
        unpack(group, 0, tail);
    }
}

fn check_bits(bits: u8) -> Result<(), Error> {
    if (1..=8).contains(&bits) { Ok(()) } else { Err(Error::Bits(bits)) }
}

fn check_length(bytes: &[u8], expected: usize) -> Result<(), Error> {
    let found = bytes.len();
    if found == expected { Ok(()) } else { Err(Error::Length { expected, found }) }
}

fn check_window(n: usize, first: usize, wanted: usize) -> Result<(), Error> {
    let end = first.saturating_add(wanted);
    if end <= n { Ok(()) } else { Err(Error::OutOfRange { end, len: n }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::pack as naive;
    use proptest::prelude::*;

    const LENGTHS: [usize; 9] = [0, 1, 7, 8, 9, 63, 64, 65, 251];

    /// A cheap deterministic byte sequence.
    fn noise(n: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn fields_round_trip_and_match_the_definition() {
        for n in LENGTHS {
            for bits in 1..=8u8 {
                let raw: Vec<u8> = noise(n, n as u32 + 1).iter().map(|v| v >> (8 - bits)).collect();
                check_fields(&raw, bits);
                let signed: Vec<i8> = raw.iter().map(|&v| i8::extend(v, bits)).collect();
                check_fields(&signed, bits);
            }
        }
    }

    fn check_fields<F: Field + PartialEq + std::fmt::Debug>(codes: &[F], bits: u8) {
        let bytes = pack_fields(codes, bits).unwrap();
        assert_eq!(bytes, naive::pack_fields(codes, bits));
        for unpack in [
            |bytes: &[u8], bits, out: &mut [F]| unpack_fields(bytes, bits, out.len(), 0, out).unwrap(),
            naive::unpack_fields,
        ] {
            let mut back = vec![F::from_code(0); codes.len()];
            unpack(&bytes, bits, &mut back);
            assert_eq!(back, codes);
        }
    }

    #[test]
    fn planes_round_trip_for_every_mask() {
        for n in LENGTHS {
            for mask in 0..=255u8 {
                let signs = noise(n, 77);
                let codes: Vec<i16> = noise(n, u32::from(mask))
                    .iter()
                    .zip(signs)
                    .map(|(&v, s)| i16::from(v & mask) * if s & 1 == 1 { -1 } else { 1 })
                    .collect();
                let bytes = pack_planes(&codes, mask).unwrap();
                assert_eq!(bytes, naive::pack_planes(&codes, mask));
                let mut back = vec![1i16; n];
                unpack_planes(&bytes, mask, n, 0, &mut back).unwrap();
                assert_eq!(back, codes);
                naive::unpack_planes(&bytes, mask, &mut back);
                assert_eq!(back, codes);
            }
        }
    }

    #[test]
    fn bits_spread_to_bytes() {
        for byte in 0..=255u8 {
            let want: [u8; 8] = std::array::from_fn(|i| byte >> i & 1);
            assert_eq!(spread_bits(byte).to_le_bytes(), want);
        }
    }

    proptest! {
        #[test]
        fn windows_equal_the_whole(n in 0usize..200, bits in 1u8..=8, mask in 0u8..128, a in 0usize..200, b in 0usize..200, seed: u32) {
            let (first, end) = (a.min(b).min(n), a.max(b).min(n));
            let raw: Vec<u8> = noise(n, seed).iter().map(|v| v >> (8 - bits)).collect();
            let bytes = pack_fields(&raw, bits).unwrap();
            let mut window = vec![0u8; end - first];
            unpack_fields(&bytes, bits, n, first, &mut window).unwrap();
            prop_assert_eq!(&window, &raw[first..end]);

            let codes: Vec<i8> = raw.iter().map(|&v| (v & mask) as i8 * if v & 1 == 1 { -1 } else { 1 }).collect();
            let bytes = pack_planes(&codes, mask).unwrap();
            let mut window = vec![0i8; end - first];
            unpack_planes(&bytes, mask, n, first, &mut window).unwrap();
            prop_assert_eq!(&window, &codes[first..end]);
        }

        #[test]
        fn hostile_arguments_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..40), bits: u8, mask: u8, n: usize, first: usize, wanted in 0usize..40) {
            let mut out = vec![0i8; wanted];
            let _ = unpack_fields(&bytes, bits, n, first, &mut out);
            let _ = unpack_planes(&bytes, mask, n, first, &mut out);
            let small = n % 64;
            let _ = unpack_fields(&bytes, bits, small, first % 64, &mut out);
            let _ = unpack_planes(&bytes, mask, small, first % 64, &mut out);
        }
    }

    #[test]
    fn refusals_name_their_reason() {
        let mut out = [0i8; 3];
        assert_eq!(unpack_fields(&[0; 2], 9, 3, 0, &mut out), Err(Error::Bits(9)));
        assert_eq!(unpack_fields(&[0; 3], 3, 3, 0, &mut out), Err(Error::Length { expected: 2, found: 3 }));
        assert_eq!(unpack_fields(&[0; 2], 3, 3, 1, &mut out), Err(Error::OutOfRange { end: 4, len: 3 }));
        assert_eq!(pack_fields(&[0i8, 4], 3), Err(Error::Code { index: 1, code: 4 }));
        assert_eq!(pack_planes(&[0i8, 2], 0b101), Err(Error::Code { index: 1, code: 2 }));
        assert_eq!(unpack_planes(&[0; 9], 255, 1, 0, &mut out[..1]), Err(Error::Code { index: 0, code: 255 }));
        assert_eq!(
            unpack_planes(&[], 255, usize::MAX, 0, &mut out),
            Err(Error::Length { expected: usize::MAX, found: 0 })
        );
    }
}
