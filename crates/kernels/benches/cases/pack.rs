//! Codes to bytes and back: the weights of 3x3 64>64 (an image stands for one such tensor); work in codes.

use super::{Case, Version};
use bitsmith_kernels::pack::{self, pack_fields, pack_planes, pack_ternary};
use bitsmith_kernels::reference::pack as naive;

/// Bits of a field.
const BITS: u8 = 4;
/// Magnitude planes.
const MASK: u8 = 0b101;

struct Buffers {
    codes: Vec<i8>,
    /// What is unpacked; what is packed replaces it, the same.
    bytes: Vec<u8>,
}

impl Buffers {
    fn unpack(&mut self, run: fn(&[u8], &mut [i8])) {
        run(&self.bytes, &mut self.codes);
    }
}

const FITS: &str = "codes that fit, and their bytes";

#[rustfmt::skip]
const FIELDS: [(&str, [Version<Buffers>; 2]); 2] = [
    ("pack/fields", [|b| b.bytes = pack_fields(&b.codes, BITS).expect(FITS), |b| b.bytes = naive::pack_fields(&b.codes, BITS)]),
    ("unpack/fields", [|b| b.unpack(|from, to| pack::unpack_fields(from, BITS, to.len(), 0, to).expect(FITS)), |b| b.unpack(|from, to| naive::unpack_fields(from, BITS, to))]),
];

#[rustfmt::skip]
const PLANES: [(&str, [Version<Buffers>; 2]); 2] = [
    ("pack/planes", [|b| b.bytes = pack_planes(&b.codes, MASK).expect(FITS), |b| b.bytes = naive::pack_planes(&b.codes, MASK)]),
    ("unpack/planes", [|b| b.unpack(|from, to| pack::unpack_planes(from, MASK, to.len(), 0, to).expect(FITS)), |b| b.unpack(|from, to| naive::unpack_planes(from, MASK, to))]),
];

#[rustfmt::skip]
const TERNARY: [(&str, [Version<Buffers>; 2]); 2] = [
    ("pack/ternary", [|b| b.bytes = pack_ternary(&b.codes).expect(FITS), |b| b.bytes = naive::pack_ternary(&b.codes)]),
    ("unpack/ternary", [|b| b.unpack(|from, to| pack::unpack_ternary(from, to.len(), 0, to).expect(FITS)), |b| b.unpack(naive::unpack_ternary)]),
];

pub fn cases() -> Vec<Case> {
    let n = 64 * 64 * 9;
    let mut cases = Vec::new();
    let mut add =
        |kernels: [(&'static str, [Version<Buffers>; 2]); 2], code: fn(usize) -> i8, pack: fn(&[i8]) -> Vec<u8>| {
            let setup = move |images: usize| {
                let codes: Vec<i8> = (0..images * n).map(code).collect();
                Buffers { bytes: pack(&codes), codes }
            };
            cases.extend(kernels.map(|(kernel, versions)| Case::new(kernel, "64x64x9", n as u64, setup, versions)));
        };
    add(FIELDS, |i| (i * 7919 % 15) as i8 - 7, |codes| naive::pack_fields(codes, BITS));
    add(PLANES, |i| [-5, -4, -1, 0, 1, 4, 5][i * 7919 % 7], |codes| naive::pack_planes(codes, MASK));
    add(TERNARY, |i| (i * 7919 % 3) as i8 - 1, naive::pack_ternary);
    cases
}
