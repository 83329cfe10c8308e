//! Activation codes in memory: one byte each, with the grid they lie on.

use bitsmith_graph::{Grid, QParams};
use bitsmith_kernels::numerics;

/// An affine grid with one scale, and how its codes are held: two's complement if signed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ByteGrid {
    pub scale: f32,
    pub zero_point: i32,
    pub low: i32,
    pub high: i32,
    pub signed: bool,
}

impl ByteGrid {
    /// The grid of an activation site, if it is affine with one scale. Sites of other kinds are rounded in float.
    pub fn of(params: &QParams) -> Option<Self> {
        let (Grid::Affine { .. }, [scale]) = (params.spec.grid, params.scale.as_slice()) else { return None };
        let (low, high) = params.code_range();
        Some(Self { scale: *scale, zero_point: params.zero_point(0), low, high, signed: low < 0 })
    }

    /// Largest magnitude of `code - zero_point`.
    pub fn max_magnitude(&self) -> u32 {
        (self.high - self.zero_point).max(self.zero_point - self.low).unsigned_abs()
    }

    /// The byte of a number.
    #[inline(always)]
    pub fn encode(&self, x: f32) -> u8 {
        // A code fits its byte: the range has at most 8 bits.
        numerics::quantize(x, self.scale, self.zero_point, self.low, self.high) as u8
    }

    /// The byte that stands for zero.
    pub fn zero_byte(&self) -> u8 {
        self.zero_point as u8
    }

    /// `code - zero_point` of every byte, converted.
    pub fn centre<T>(&self, bytes: &[u8], out: &mut [T], convert: impl Fn(i32) -> T) {
        let zero = self.zero_point;
        match self.signed {
            true => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = convert(i32::from(b as i8) - zero)),
            false => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = convert(i32::from(b) - zero)),
        }
    }

    /// The numbers that the bytes stand for.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        let scale = self.scale;
        self.centre(bytes, out, |centred| numerics::dequantize(centred, scale, 0));
    }

    /// The bytes of numbers.
    pub fn encode_slice(&self, x: &[f32], out: &mut [u8]) {
        out.iter_mut().zip(x).for_each(|(o, &x)| *o = self.encode(x));
    }

    /// A byte whose unsigned order is the order of the codes; its own inverse.
    #[inline(always)]
    pub fn ordered(&self, byte: u8) -> u8 {
        if self.signed { byte ^ 0x80 } else { byte }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_for_the_numbers_of_the_grid() {
        for params in [
            QParams::per_tensor(8, false, 0.1, 200),
            QParams::per_tensor(8, true, 0.3, -5),
            QParams::per_tensor(4, false, 0.5, 3),
        ] {
            let grid = ByteGrid::of(&params).unwrap();
            let (low, high) = params.code_range();
            let (mut last, mut decoded) = (None, [0.0]);
            for code in low..=high {
                let byte = grid.encode(params.decode(code, 0));
                grid.decode(&[byte], &mut decoded);
                assert_eq!(decoded[0], params.decode(code, 0));
                assert!(last.is_none_or(|l| l < grid.ordered(byte)), "order of {code}");
                last = Some(grid.ordered(byte));
            }
            grid.decode(&[grid.zero_byte()], &mut decoded);
            assert_eq!(decoded[0], 0.0);
        }
    }
}
