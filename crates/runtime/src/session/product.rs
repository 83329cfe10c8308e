//! Products with weights: convolutions and linear layers, in floats or in integers.
//!
//! The integer result is `Σ (q_x − zero_x) · (q_w − zero_w)`, exact. [`Kernels::Reference`] adds it up term by term in
//! `i32`. [`Kernels::Fast`] gets the same integers from the f32 kernels wherever every partial sum stays below 2^24 in
//! magnitude, because then each of them is an exact float whatever the order of addition; weights too large for that are cut
//! into digits whose products are exact and are added up in `i32`.

use bitsmith_kernels::conv::{self, ConvShape};
use bitsmith_kernels::gemm::{self, Order};
use bitsmith_kernels::reference;

use super::Kernels;
use super::grid::ByteGrid;
use crate::error::{Error, Kind};

/// What is multiplied with what.
#[derive(Debug, Clone, Copy)]
pub(super) enum Geometry {
    /// Channels-last input, OIHW weight.
    Conv(ConvShape),
    /// `[m, k]` times a weight that is `[k, n]`, or `[n, k]` if transposed.
    Linear { m: usize, k: usize, n: usize, order: Order },
}

impl Geometry {
    /// Elements of the result.
    pub fn output_len(&self) -> usize {
        match self {
            Geometry::Conv(shape) => shape.output_len(),
            Geometry::Linear { m, n, .. } => m * n,
        }
    }

    /// The product in f32.
    pub fn multiply_f32(&self, x: &[f32], w: &[f32], y: &mut [f32]) {
        match *self {
            Geometry::Conv(shape) => conv::forward(&shape, x, w, None, y),
            Geometry::Linear { m, k, n, order } => gemm::matmul([m, k, n], x, Order::Plain, w, order, y),
        }
    }

    /// The product in i32, by its definition.
    fn multiply_i32(&self, x: &[i32], w: &[i16], y: &mut [i32]) {
        y.fill(0);
        match *self {
            Geometry::Conv(shape) => {
                reference::conv::for_each_product(&shape, |xi, wi, yi| y[yi] += x[xi] * i32::from(w[wi]))
            }
            Geometry::Linear { m, k, n, order } => {
                let at = |l: usize, j: usize| if order == Order::Plain { l * n + j } else { j * k + l };
                for i in 0..m {
                    for j in 0..n {
                        y[i * n + j] = (0..k).map(|l| x[i * k + l] * i32::from(w[at(l, j)])).sum();
                    }
                }
            }
        }
    }
}

/// An integer weight, made ready for one input grid.
#[derive(Debug, Clone)]
pub(super) struct IntegerWeight {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Codes less their zero point, or integer levels.
    codes: Vec<i16>,
    /// Empty for the reference. Else `codes = Σ digit · factor`, each digit exact in f32.
    digits: Vec<(i32, Vec<f32>)>,
    /// `scale_x · scale_w` per output channel.
    pub scale: Vec<f32>,
    /// The input's grid.
    grid: ByteGrid,
}

/// Accumulators: integers, or integers held in floats.
pub(super) enum Accumulators {
    I32(Vec<i32>),
    F32(Vec<f32>),
}

impl IntegerWeight {
    /// `channel_of` says which output channel a weight belongs to. Refuses a layer whose accumulator could overflow.
    pub fn new(
        shape: &[usize],
        codes: Vec<i16>,
        scale_w: &[f32],
        channels: usize,
        channel_of: impl Fn(usize) -> usize,
        grid: ByteGrid,
        kernels: Kernels,
    ) -> Result<Self, Error> {
        let max_x = u64::from(grid.max_magnitude());
        let bound = |digit: &dyn Fn(i16) -> i32| {
            let mut sums = vec![0u64; channels];
            codes.iter().enumerate().for_each(|(i, &c)| sums[channel_of(i)] += u64::from(digit(c).unsigned_abs()));
            sums.iter().max().copied().unwrap_or(0).saturating_mul(max_x)
        };
        let largest = bound(&i32::from);
        if largest > i32::MAX as u64 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a sum of products could reach {largest}, but accumulators hold {}: use fewer bits", i32::MAX),
            ));
        }
        let mut digits = Vec::new();
        if kernels == Kernels::Fast {
            // The widest digits whose sums are exact; one bit always is, for any layer that fits i32 and this many terms.
            for width in [9u32, 5, 3, 2, 1] {
                let parts = 9u32.div_ceil(width);
                let digit = |part: u32| {
                    move |c: i16| {
                        let shifted = i32::from(c) >> (part * width);
                        if part + 1 == parts { shifted } else { shifted & ((1 << width) - 1) }
                    }
                };
                if (0..parts).all(|p| bound(&digit(p)) < 1 << 24) {
                    let part = |p: u32| (1i32 << (p * width), codes.iter().map(|&c| digit(p)(c) as f32).collect());
                    digits = (0..parts).map(part).collect();
                    break;
                }
            }
        }
        let scale =
            (0..channels).map(|c| grid.scale * scale_w.get(c).or(scale_w.first()).copied().unwrap_or(0.0)).collect();
        Ok(Self { shape: shape.to_vec(), codes, digits, scale, grid })
    }

    /// How the product is computed, for people.
    pub fn describe(&self) -> String {
        match self.digits.len() {
            0 => "32-bit accumulators".to_owned(),
            1 => "32-bit accumulators, exact in float registers".to_owned(),
            n => format!("32-bit accumulators from {n} exact parts"),
        }
    }

    /// The exact sums of products of an input given as bytes.
    pub fn multiply(
        &self,
        geometry: &Geometry,
        x: &[u8],
        floats: &mut Pool<f32>,
        ints: &mut Pool<i32>,
    ) -> Accumulators {
        let n = geometry.output_len();
        let Some(((factor, low), rest)) = self.digits.split_first() else {
            let mut centred = ints.take(x.len());
            self.grid.centre(x, &mut centred, |c| c);
            let mut acc = ints.take(n);
            geometry.multiply_i32(&centred, &self.codes, &mut acc);
            ints.give(centred);
            return Accumulators::I32(acc);
        };
        let mut centred = floats.take(x.len());
        self.grid.centre(x, &mut centred, |c| c as f32);
        let mut sums = floats.take(n);
        geometry.multiply_f32(&centred, low, &mut sums);
        if rest.is_empty() {
            floats.give(centred);
            return Accumulators::F32(sums);
        }
        let mut acc = ints.take(n);
        acc.iter_mut().zip(&sums).for_each(|(a, &s)| *a = (s as i32).wrapping_mul(*factor));
        for (factor, digits) in rest {
            geometry.multiply_f32(&centred, digits, &mut sums);
            acc.iter_mut().zip(&sums).for_each(|(a, &s)| *a = a.wrapping_add((s as i32).wrapping_mul(*factor)));
        }
        floats.give(centred);
        floats.give(sums);
        Accumulators::I32(acc)
    }
}

/// Buffers that are used again, so that a run allocates only once.
#[derive(Debug, Default)]
pub(super) struct Pool<T> {
    free: Vec<Vec<T>>,
}

impl<T: Copy + Default> Pool<T> {
    /// A buffer of this length; its content is whatever was left in it.
    pub fn take(&mut self, len: usize) -> Vec<T> {
        // The smallest that is large enough, or else the largest, which then grows.
        let fits = |v: &Vec<T>| (v.capacity() < len, v.capacity().abs_diff(len));
        let best = (0..self.free.len()).min_by_key(|&i| fits(&self.free[i]));
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        buffer.resize(len, T::default());
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Vec<T>) {
        self.free.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(n: usize, seed: u32, grid: &ByteGrid) -> Vec<u8> {
        let value = |x: f32| (x * 300.0).clamp(grid.low as f32, grid.high as f32) as i32 as u8;
        crate::testing::noise(n, seed).into_iter().map(value).collect()
    }

    fn both(
        geometry: Geometry,
        codes: Vec<i16>,
        channels: usize,
        channel_of: impl Fn(usize) -> usize + Copy,
        grid: ByteGrid,
        x: &[u8],
    ) {
        let run = |kernels| {
            let w = IntegerWeight::new(&[], codes.clone(), &[1.0], channels, channel_of, grid, kernels).unwrap();
            match w.multiply(&geometry, x, &mut Pool::default(), &mut Pool::default()) {
                Accumulators::I32(acc) => acc,
                Accumulators::F32(acc) => acc.into_iter().map(|v| v as i32).collect(),
            }
        };
        assert_eq!(run(Kernels::Reference), run(Kernels::Fast));
    }

    /// Full-range weights of 9 bits and long sums need several digits.
    #[test]
    fn long_sums_of_large_codes_stay_exact() {
        let grid = ByteGrid { scale: 1.0, zero_point: 0, low: 0, high: 255, signed: false };
        for (k, largest) in [(500, 127), (2000, 127), (30_000, 255), (8_000, 255), (1, 255)] {
            let codes: Vec<i16> = (0..2 * k).map(|i| if i % 3 == 0 { -largest } else { largest }).collect();
            let geometry = Geometry::Linear { m: 2, k, n: 2, order: Order::Transposed };
            both(geometry, codes, 2, |i| i / k, grid, &vec![255; 2 * k]);
        }
    }

    #[test]
    fn accumulators_that_could_overflow_are_refused() {
        let grid = ByteGrid { scale: 1.0, zero_point: 0, low: 0, high: 255, signed: false };
        let error = IntegerWeight::new(&[], vec![127; 70_000], &[1.0], 1, |_| 0, grid, Kernels::Fast).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a sum of products could reach 2266950000, but accumulators hold 2147483647: use fewer bits"
        );
    }

    proptest! {
        #[test]
        fn fast_equals_reference(
            batch in 1usize..3, in_h in 1usize..7, in_w in 1usize..7, group_in in 1usize..5, group_out in 1usize..20, groups in 1usize..3,
            kernel in 1usize..4, stride in 1usize..3, pads in proptest::array::uniform4(0usize..3), signed: bool, zero in 0i32..16, seed: u32,
        ) {
            let shape = ConvShape {
                batch, in_h: in_h + kernel, in_w: in_w + kernel, c_in: group_in * groups, c_out: group_out * groups,
                kernel: [kernel; 2], stride: [stride; 2], pads, dilation: [1; 2], groups,
            };
            let grid = match signed {
                true => ByteGrid { scale: 0.5, zero_point: zero, low: -128, high: 127, signed },
                false => ByteGrid { scale: 0.5, zero_point: zero, low: 0, high: 255, signed },
            };
            let codes: Vec<i16> = crate::testing::noise(shape.weight_len(), seed).iter().map(|v| (v * 127.0) as i16).collect();
            let x = bytes(shape.input_len(), seed ^ 99, &grid);
            let per_channel = shape.weight_len() / shape.c_out;
            both(Geometry::Conv(shape), codes, shape.c_out, |i| i / per_channel, grid, &x);
        }
    }
}
