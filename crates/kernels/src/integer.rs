//! Integer kernels of the packed runtime, channels last: codes in, i32 accumulators or codes out.
//!
//! ```text
//! acc[pixel, c] = Σ over taps and input channels of (x − zero_point) · w        padding is exactly zero
//! y = f32(acc) · (scale_x · scale_w[c]), then bias, batch-norm, residual, activation in f32    [`Requantize`]
//! q = quantize(y)
//! ```
//!
//! Activations are `u8` or `i8` codes with a zero point, weights `i8` codes (`q_w − zero_w`, so that their zero point is 0).
//! Integer sums do not depend on the order of their terms: every fast kernel equals [`reference`](mod@reference) bit for
//! bit, on every machine and for every number of threads. Sums wrap around; they are the true sums as long as no dot product
//! is longer than [`max_i32_dot`](crate::numerics::max_i32_dot) allows, which the caller checks.
//!
//! Layouts: activations `[batch, height, width, channels]`; weights arrive as OIHW and are packed once
//! ([`ConvWeights`]). A linear layer is a 1x1 convolution over rows ([`linear_shape`]).

// Much of what a kernel may ask for only those for x86 do.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_variables))]

mod conv;
mod depthwise;
mod dot;
mod matmul;
mod narrow;
mod pixels;
pub mod reference;
pub mod requantize;
pub mod rows;
mod weights;
mod winograd;

#[cfg(test)]
mod tests;

pub use conv::{conv, conv_to_codes, conv_with};
pub use matmul::{matmul, multiplies};
pub use requantize::{Kept, PerChannel, Prepared, Requantize, Residual};
pub use weights::ConvWeights;

use crate::conv::ConvShape;
use crate::numerics::Code;

/// Storage types of activation codes.
pub trait Operand: Code {
    /// What turns a code's byte into an unsigned number: `byte ^ FLIP` is the code plus [`Self::OFFSET`].
    const FLIP: u8;
    /// 0 for unsigned codes, 128 for signed ones.
    const OFFSET: i32;
    /// The code's byte.
    fn byte(self) -> u8;
    /// The codes as they are, if they are unsigned bytes.
    fn unsigned(codes: &[Self]) -> Option<&[u8]>;
}

impl Operand for u8 {
    const FLIP: u8 = 0;
    const OFFSET: i32 = 0;
    #[inline(always)]
    fn byte(self) -> u8 {
        self
    }
    fn unsigned(codes: &[Self]) -> Option<&[u8]> {
        Some(codes)
    }
}

impl Operand for i8 {
    const FLIP: u8 = 0x80;
    const OFFSET: i32 = 128;
    #[inline(always)]
    fn byte(self) -> u8 {
        self as u8
    }
    fn unsigned(_codes: &[Self]) -> Option<&[u8]> {
        None
    }
}

/// An affine grid with one scale, over unsigned bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteGrid {
    /// Step, positive and finite.
    pub scale: f32,
    /// The byte of 0.0.
    pub zero_point: i32,
    /// Smallest byte.
    pub low: i32,
    /// Largest byte.
    pub high: i32,
}

impl ByteGrid {
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

/// A linear layer of `rows` inputs as a convolution: weights `[outputs, inputs]` are its OIHW.
pub fn linear_shape(rows: usize, inputs: usize, outputs: usize) -> ConvShape {
    ConvShape {
        batch: 1,
        in_h: rows,
        in_w: 1,
        c_in: inputs,
        c_out: outputs,
        kernel: [1; 2],
        stride: [1; 2],
        pads: [0; 4],
        dilation: [1; 2],
        groups: 1,
    }
}
