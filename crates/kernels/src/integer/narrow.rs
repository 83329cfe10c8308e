//! Weights of 1 to 7 bits that stay as narrow in memory, for layers that meet each weight once or a few times: there, reading
//! weights takes the time, and half the bits take half of it. They are expanded in registers, and kept
//! a chunk at a time for many rows.
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

use super::weights::GROUP;

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

    /// Packed weights of whole groups, expanded to bytes.
    ///
    /// # Panics
    /// If there are not 64 of them per group, or this processor has no AVX2.
    pub fn expand(self, from: &[u8], to: &mut [i8]) {
        assert!(to.len() >= from.len() / self.group_bytes() * GROUP, "expanded weights have no room");
        assert!(crate::isa::Isa::new(crate::isa::Level::Avx2).is_some(), "narrow weights are for AVX2");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: AVX2 was found just now; `to` has room for as many groups as `from` holds.
        unsafe {
            x86::expand_all(self, from, to)
        };
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
pub(super) mod x86;
