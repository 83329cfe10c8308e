//! What follows the accumulators: to f32, through the operations of the graph in their order, to codes.
//!
//! Every operation is rounded to f32 by itself, exactly as [`crate::numerics`] and the engine's inference mode do it:
//! `y = f32(acc) · multiplier[c]`, then the stages, then `quantize`. Works on rows of channels while they are in the cache.

use super::rows::{add_elements, add_i8, add_rows, add_u8, affine_rows, clip, quantize_tile, relu, scale_rows};
use crate::activation::Activation;
use crate::numerics::Code;

/// One operation in f32, channels last.
#[derive(Debug, Clone, Copy)]
pub enum Stage<'a> {
    /// `y + bias[c]`.
    Bias(&'a [f32]),
    /// `y · a[c] + b[c]` (two roundings): a frozen batch-norm, see [`crate::numerics::batch_norm_affine`].
    Affine {
        /// Factor per channel.
        a: &'a [f32],
        /// Offset per channel.
        b: &'a [f32],
    },
    /// `y + residual`, element by element; it has the shape of the whole output.
    Add(Residual<'a>),
    /// An activation function.
    Activation(Activation),
}

/// The other operand of a residual addition.
#[derive(Debug, Clone, Copy)]
pub enum Residual<'a> {
    /// Numbers.
    F32(&'a [f32]),
    /// Unsigned codes, decoded as `scale · (q − zero_point)`.
    U8 {
        /// The codes.
        codes: &'a [u8],
        /// Their scale.
        scale: f32,
        /// Their code of 0.
        zero_point: i32,
    },
    /// Signed codes, decoded likewise.
    I8 {
        /// The codes.
        codes: &'a [i8],
        /// Their scale.
        scale: f32,
        /// Their code of 0.
        zero_point: i32,
    },
}

/// The path from accumulators to numbers; `finish` of [`conv_with`](super::conv_with) calls one of its two functions.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// `scale_x · scale_w[c]` per output channel, or `scale_x` for pooling sums.
    pub multiplier: &'a [f32],
    /// What comes after, in the order of the graph.
    pub stages: &'a [Stage<'a>],
}

/// The grid that codes are written on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputGrid {
    /// Step, positive and finite.
    pub scale: f32,
    /// Code of 0.0.
    pub zero_point: i32,
    /// Smallest and largest code.
    pub range: (i32, i32),
}

impl Epilogue<'_> {
    /// Accumulators of whole pixels to f32; `first` is their offset in the whole output.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn to_f32(&self, first: usize, acc: &[i32], out: &mut [f32]) {
        let channels = self.multiplier.len();
        assert_eq!(acc.len(), out.len(), "one result per accumulator");
        assert!(acc.is_empty() || acc.len().is_multiple_of(channels), "whole pixels");
        scale_rows(acc, self.multiplier, out);
        for stage in self.stages {
            match *stage {
                Stage::Bias(bias) => {
                    assert_eq!(bias.len(), channels, "one bias per channel");
                    add_rows(bias, out);
                }
                Stage::Affine { a, b } => {
                    assert!(a.len() == channels && b.len() == channels, "one factor and offset per channel");
                    affine_rows(a, b, out);
                }
                Stage::Add(residual) => residual.add(first, out),
                Stage::Activation(activation) => activate(activation, out),
            }
        }
    }

    /// Accumulators of whole pixels to codes; `first` is their offset in the whole output.
    ///
    /// # Panics
    /// If lengths disagree or the grid's range does not fit `C`.
    pub fn to_codes<C: Code>(&self, first: usize, acc: &[i32], grid: &OutputGrid, out: &mut [C]) {
        let channels = self.multiplier.len();
        let (q_min, q_max) = grid.range;
        assert_eq!(acc.len(), out.len(), "one code per accumulator");
        assert!(C::CODE_MIN <= q_min && q_max <= C::CODE_MAX, "codes must fit their storage type");
        // Whole pixels that fit into two small buffers, which all stages run over.
        let tile = (1024 / channels.max(1)).max(1) * channels.max(1);
        let mut values = vec![0f32; tile.min(acc.len())];
        let mut codes = vec![0i32; values.len()];
        for (idx, (acc, out)) in acc.chunks(tile).zip(out.chunks_mut(tile)).enumerate() {
            let (values, codes) = (&mut values[..acc.len()], &mut codes[..acc.len()]);
            self.to_f32(first + idx * tile, acc, values);
            quantize_tile(values, grid.scale, grid.zero_point, q_min, q_max, codes);
            out.iter_mut().zip(&*codes).for_each(|(q, &code)| *q = C::from_code(code));
        }
    }
}

impl Residual<'_> {
    fn add(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match *self {
            Residual::F32(x) => add_elements(&x[range], out),
            Residual::U8 { codes, scale, zero_point } => add_u8(&codes[range], scale, zero_point, out),
            Residual::I8 { codes, scale, zero_point } => add_i8(&codes[range], scale, zero_point, out),
        }
    }
}

/// The usual ones vectorise because the kind is known inside the loop.
fn activate(activation: Activation, out: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => relu(out),
        Activation::Clip { min, max } => clip(min, max, out),
        other => out.iter_mut().for_each(|y| *y = other.apply(*y)),
    }
}
