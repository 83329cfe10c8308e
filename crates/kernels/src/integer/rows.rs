//! The loops of an epilogue, each over rows of channels and each compiled for every instruction set.
//!
//! Slices that hold one number per channel repeat for every row; slices of other lengths than whole rows leave the rest alone.

use crate::multiversion::multiversion;
use crate::numerics::{dequantize, quantize};
use crate::sigmoid::exp_clamped;

multiversion! {
    /// `out = acc · multiplier[c]`.
    pub fn scale_rows(acc: &[i32], multiplier: &[f32], out: &mut [f32]) {
        let channels = multiplier.len().max(1);
        for (out, acc) in out.chunks_exact_mut(channels).zip(acc.chunks_exact(channels)) {
            for ((y, &acc), &m) in out.iter_mut().zip(acc).zip(multiplier) {
                *y = acc as f32 * m;
            }
        }
    }
}

multiversion! {
    /// `y + bias[c]`.
    pub fn add_rows(bias: &[f32], out: &mut [f32]) {
        for out in out.chunks_exact_mut(bias.len().max(1)) {
            out.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
        }
    }
}

multiversion! {
    /// `y · a[c] + b[c]`, two roundings.
    pub fn affine_rows(a: &[f32], b: &[f32], out: &mut [f32]) {
        for out in out.chunks_exact_mut(a.len().max(1)) {
            for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *y = *y * a + b;
            }
        }
    }
}

multiversion! {
    /// `y + x`, element by element.
    pub fn add_elements(x: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
    }
}

multiversion! {
    /// `y + scale · (q − zero_point)`, element by element.
    pub fn add_u8(codes: &[u8], scale: f32, zero_point: i32, out: &mut [f32]) {
        out.iter_mut().zip(codes).for_each(|(y, &q)| *y += dequantize(i32::from(q), scale, zero_point));
    }
}

multiversion! {
    /// `y + scale · (q − zero_point)`, element by element.
    pub fn add_i8(codes: &[i8], scale: f32, zero_point: i32, out: &mut [f32]) {
        out.iter_mut().zip(codes).for_each(|(y, &q)| *y += dequantize(i32::from(q), scale, zero_point));
    }
}

multiversion! {
    /// `scale · (q − zero_point)`, element by element.
    pub fn decode_u8(codes: &[u8], scale: f32, zero_point: i32, out: &mut [f32]) {
        out.iter_mut().zip(codes).for_each(|(y, &q)| *y = dequantize(i32::from(q), scale, zero_point));
    }
}

multiversion! {
    /// [`quantize`] to bytes, element by element; the range lies within 0..=255.
    pub fn quantize_u8(x: &[f32], scale: f32, zero_point: i32, q_min: i32, q_max: i32, codes: &mut [u8]) {
        codes.iter_mut().zip(x).for_each(|(q, &x)| *q = quantize(x, scale, zero_point, q_min, q_max) as u8);
    }
}

multiversion! {
    /// `e^(x − max) / Σ` of each row of `n`, or its logarithm.
    pub fn softmax(n: usize, log: bool, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(n.max(1)).zip(y.chunks_exact_mut(n.max(1))) {
            let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
            for (y, &x) in y.iter_mut().zip(x) {
                *y = exp_clamped(x - max);
            }
            // Side by side, so that the sum is vectorised; what is left over comes last.
            let mut lanes = [0f32; 8];
            let (whole, rest) = y.as_chunks::<8>();
            for part in whole {
                for (sum, y) in lanes.iter_mut().zip(part) {
                    *sum += y;
                }
            }
            let sum = rest.iter().chain(&lanes).sum::<f32>();
            if log {
                let offset = max + sum.ln();
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - offset);
            } else {
                y.iter_mut().for_each(|y| *y /= sum);
            }
        }
    }
}
