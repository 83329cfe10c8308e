//! Activation codes in memory: one unsigned byte each, with the grid they lie on.
//!
//! Signed codes are held as `code + 128` with their zero point moved by as much, which changes no rounding and no decoded
//! number; so there is one kind of code, and the order of bytes is the order of numbers.

use bitsmith_graph::{Grid, QParams};
use bitsmith_kernels::integer::rows;

/// An affine grid with one scale, over bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ByteGrid {
    pub scale: f32,
    /// The byte of 0.0.
    pub zero_point: i32,
    pub low: i32,
    pub high: i32,
}

impl ByteGrid {
    /// The grid of an activation site, if it is affine with one scale. Sites of other kinds are rounded in float.
    pub fn of(params: &QParams) -> Option<Self> {
        let (Grid::Affine { .. }, [scale]) = (params.spec.grid, params.scale.as_slice()) else { return None };
        let (low, high) = params.code_range();
        let shift = if low < 0 { 128 } else { 0 };
        let grid =
            Self { scale: *scale, zero_point: params.zero_point(0) + shift, low: low + shift, high: high + shift };
        (0 <= grid.low && grid.high <= 255).then_some(grid)
    }

    /// Largest magnitude of `code - zero_point`.
    pub fn max_magnitude(&self) -> u32 {
        (self.high - self.zero_point).max(self.zero_point - self.low).unsigned_abs()
    }

    /// The byte that stands for zero.
    pub fn zero_byte(&self) -> u8 {
        self.zero_point as u8
    }

    /// The numbers that the bytes stand for.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        rows::decode_u8(bytes, self.scale, self.zero_point, out);
    }

    /// The bytes of numbers.
    pub fn encode(&self, x: &[f32], out: &mut [u8]) {
        rows::quantize_u8(x, self.scale, self.zero_point, self.low, self.high, out);
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
            QParams::per_tensor(1, true, 0.5, 0),
        ] {
            let grid = ByteGrid::of(&params).unwrap();
            let (low, high) = params.code_range();
            let mut last = None;
            for code in low..=high {
                let (mut byte, mut decoded) = ([0], [0.0]);
                grid.encode(&[params.decode(code, 0)], &mut byte);
                grid.decode(&byte, &mut decoded);
                assert_eq!(decoded[0], params.decode(code, 0));
                assert!(last < Some(byte), "order of {code}");
                last = Some(byte);
                // Values between codes round as the grid itself does.
                let between = params.decode(code, 0) + 0.5 * params.scale[0];
                grid.encode(&[between], &mut byte);
                grid.decode(&byte, &mut decoded);
                assert_eq!(decoded[0], params.decode(params.encode(between, 0), 0));
            }
            let mut decoded = [1.0];
            grid.decode(&[grid.zero_byte()], &mut decoded);
            assert_eq!(decoded[0], 0.0);
        }
    }
}
