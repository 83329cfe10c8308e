//! The loops of an epilogue, each over rows of channels and each compiled for every instruction set.
//!
//! Slices that hold one number per channel repeat for every row; slices of other lengths than whole rows leave the rest alone.

use crate::multiversion::multiversion;
use crate::numerics::{dequantize, quantize};

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

/// Columns that are summed at once.
const COLUMNS: usize = 32;
/// Rows whose codes 16 bits can sum up.
const ROWS: usize = 256;

multiversion! {
    /// Adds up rows of codes.
    pub fn sum_rows_u8(codes: &[u8], sums: &mut [u32]) {
        let width = sums.len().max(1);
        for rows in codes.chunks(ROWS * width) {
            let (whole, rest) = sums.as_chunks_mut::<COLUMNS>();
            let first = whole.len() * COLUMNS;
            for (idx, sums) in whole.iter_mut().enumerate() {
                let mut short = [0u16; COLUMNS];
                for row in rows.chunks_exact(width) {
                    let row = &row[idx * COLUMNS..][..COLUMNS];
                    short.iter_mut().zip(row).for_each(|(sum, &q)| *sum += u16::from(q));
                }
                sums.iter_mut().zip(short).for_each(|(sum, short)| *sum += u32::from(short));
            }
            for row in rows.chunks_exact(width) {
                rest.iter_mut().zip(&row[first..]).for_each(|(sum, &q)| *sum += u32::from(q));
            }
        }
    }
}

multiversion! {
    /// Adds up rows of numbers, in their order.
    pub fn sum_rows_f32(x: &[f32], sums: &mut [f64]) {
        for row in x.chunks_exact(sums.len().max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
}

multiversion! {
    /// [`quantize`] to bytes, element by element; the range lies within 0..=255.
    pub fn quantize_u8(x: &[f32], scale: f32, zero_point: i32, q_min: i32, q_max: i32, codes: &mut [u8]) {
        codes.iter_mut().zip(x).for_each(|(q, &x)| *q = quantize(x, scale, zero_point, q_min, q_max) as u8);
    }
}

multiversion! {
    /// [`quantize`] of numbers that each have a scale of their own, to codes within ±`limit`, at most 127.
    pub fn quantize_each(x: &[f32], scales: &[f32], limit: i32, codes: &mut [i8]) {
        for ((q, &x), &scale) in codes.iter_mut().zip(x).zip(scales) {
            *q = quantize(x, scale, 0, -limit, limit) as i8;
        }
    }
}
