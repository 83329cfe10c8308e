//! Packed codes bit by bit and digit by digit, as the header of [`crate::pack`] defines them. Nothing is checked.

use crate::numerics::Code;
use crate::pack::{Field, fields_len, planes_len, ternary_len};

/// Bit j of value i is bit i·b + j of the stream; see [`crate::pack::pack_fields`].
pub fn pack_fields<F: Field>(codes: &[F], bits: u8) -> Vec<u8> {
    let mut bytes = vec![0; fields_len(codes.len(), bits)];
    for (i, code) in codes.iter().enumerate() {
        for j in 0..usize::from(bits) {
            let at = i * usize::from(bits) + j;
            bytes[at / 8] |= ((code.to_code() >> j & 1) as u8) << (at % 8);
        }
    }
    bytes
}

/// See [`crate::pack::unpack_fields`].
pub fn unpack_fields<F: Field>(bytes: &[u8], bits: u8, out: &mut [F]) {
    for (i, out) in out.iter_mut().enumerate() {
        let raw = (0..usize::from(bits)).fold(0, |raw, j| raw | bit(bytes, i * usize::from(bits) + j) << j);
        *out = F::extend(raw, bits);
    }
}

/// Value i is bit i of the sign's set and of each magnitude's; see [`crate::pack::pack_planes`].
pub fn pack_planes<C: Code>(codes: &[C], mask: u8) -> Vec<u8> {
    let mut bytes = vec![0; planes_len(codes.len(), mask)];
    let set = codes.len().div_ceil(8);
    for (i, code) in codes.iter().map(|c| c.to_code()).enumerate().filter(|_| mask != 0) {
        bytes[i / 8] |= u8::from(code < 0) << (i % 8);
        for (number, position) in positions(mask).enumerate() {
            bytes[(number + 1) * set + i / 8] |= ((code.unsigned_abs() >> position & 1) as u8) << (i % 8);
        }
    }
    bytes
}

/// See [`crate::pack::unpack_planes`].
pub fn unpack_planes<C: Code>(bytes: &[u8], mask: u8, out: &mut [C]) {
    let set = out.len().div_ceil(8);
    for (i, out) in out.iter_mut().enumerate() {
        let magnitude = positions(mask).enumerate().fold(0, |magnitude, (number, position)| {
            magnitude | i32::from(bit(&bytes[(number + 1) * set..], i)) << position
        });
        let negative = mask != 0 && bit(bytes, i) == 1;
        *out = C::from_code(if negative { -magnitude } else { magnitude });
    }
}

/// Value i is digit i % 5 of byte i / 5, in base 3; see [`crate::pack::pack_ternary`].
pub fn pack_ternary(codes: &[i8]) -> Vec<u8> {
    let mut bytes = vec![0; ternary_len(codes.len())];
    for (i, code) in codes.iter().enumerate() {
        bytes[i / 5] += code.rem_euclid(3) as u8 * 3u8.pow((i % 5) as u32);
    }
    bytes
}

/// See [`crate::pack::unpack_ternary`].
pub fn unpack_ternary(bytes: &[u8], out: &mut [i8]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = [0, 1, -1][usize::from(bytes[i / 5] / 3u8.pow((i % 5) as u32) % 3)];
    }
}

/// Bit `at` of a stream.
fn bit(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 8] >> (at % 8) & 1
}

/// The bits of a mask, most significant first.
fn positions(mask: u8) -> impl Iterator<Item = u32> {
    (0..8).rev().filter(move |p| mask >> p & 1 == 1)
}
