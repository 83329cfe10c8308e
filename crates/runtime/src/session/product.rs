//! Products with weights: convolutions and linear layers, in floats or in integers.
//!
//! The integer result is `Σ (q_x − zero_x) · (q_w − zero_w)`, exact. [`Kernels::Reference`] adds it up term by term;
//! [`Kernels::Fast`] uses the integer kernels, whose weights are `i8`. Where a weight's zero point makes more than 8 bits of
//! `q_w − zero_w`, it is cut in two, `2 · high + low`, and the two sums are added.

use bitsmith_kernels::conv::{self, ConvShape};
use bitsmith_kernels::gemm::{self, Order};
use bitsmith_kernels::integer::{self, ConvWeights, Kept};
use bitsmith_kernels::reference;

use super::Kernels;
use super::chain::{AfterProduct, Elements, Link, Target};
use super::grid::ByteGrid;
use super::pool::Pool;
use super::weight_codes::WeightCodes;
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

    /// A linear layer of this many rows.
    pub fn rows(self, rows: usize) -> Self {
        match self {
            Geometry::Linear { k, n, order, .. } => Geometry::Linear { m: rows, k, n, order },
            conv => conv,
        }
    }

    /// Output channels.
    fn channels(&self) -> usize {
        match self {
            Geometry::Conv(shape) => shape.c_out,
            Geometry::Linear { n, .. } => *n,
        }
    }

    /// The same as a convolution; a linear layer has one row per pixel.
    pub fn as_conv(&self) -> ConvShape {
        match *self {
            Geometry::Conv(shape) => shape,
            Geometry::Linear { m, k, n, .. } => integer::linear_shape(m, k, n),
        }
    }

    /// Weights with the output channel as the first axis.
    fn channels_first<'a>(&self, codes: WeightCodes<'a>) -> WeightCodes<'a> {
        match *self {
            Geometry::Linear { k, n, order: Order::Plain, .. } => codes.transposed(k, n),
            _ => codes,
        }
    }
}

/// An integer weight, made ready for one input grid.
#[derive(Debug, Clone)]
pub(super) struct IntegerWeight {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// `scale_x · scale_w` per output channel.
    scale: Vec<f32>,
    /// The input's grid.
    grid: ByteGrid,
    packing: Packing,
    /// Of the chain that follows it in its step.
    kept: Kept,
}

#[derive(Debug, Clone)]
enum Packing {
    /// Codes less their zero point, or integer levels.
    Reference(Vec<i16>),
    Packed(ConvWeights),
    /// `2 · high + low`.
    Halves {
        high: ConvWeights,
        low: ConvWeights,
    },
}

impl IntegerWeight {
    /// `geometry` is that of any batch. Refuses a layer whose accumulator could overflow.
    pub fn new(
        shape: &[usize],
        codes: WeightCodes<'_>,
        scale_w: &[f32],
        geometry: &Geometry,
        grid: ByteGrid,
        kernels: Kernels,
    ) -> Result<Self, Error> {
        let codes = geometry.channels_first(codes);
        let channels = geometry.channels();
        let longest = codes.largest_sum(codes.len() / channels.max(1));
        let largest = longest.saturating_mul(grid.max_magnitude().into());
        if largest > i32::MAX as u64 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a sum of products could reach {largest}, but accumulators hold {}: use fewer bits", i32::MAX),
            ));
        }
        let pack = |codes: &[i8]| ConvWeights::for_inputs(&geometry.as_conv(), codes, grid.high as u8);
        let packing = match codes {
            codes if kernels == Kernels::Reference => Packing::Reference(codes.into_words()),
            WeightCodes::Bytes(codes) => Packing::Packed(pack(&codes)),
            WeightCodes::Words(codes) => {
                // The halves of ±255 fit.
                let half = |of: fn(i16) -> i16| pack(&codes.iter().map(|&c| of(c) as i8).collect::<Vec<_>>());
                Packing::Halves { high: half(|c| c >> 1), low: half(|c| c & 1) }
            }
        };
        let of = |c: usize| grid.scale * scale_w.get(c).or(scale_w.first()).copied().unwrap_or(0.0);
        Ok(Self { shape: shape.to_vec(), scale: (0..channels).map(of).collect(), grid, packing, kept: Kept::default() })
    }

    /// Bytes that the weights take in memory.
    pub fn bytes(&self) -> usize {
        match &self.packing {
            Packing::Reference(codes) => size_of_val(&codes[..]),
            Packing::Packed(weights) => weights.bytes(),
            Packing::Halves { high, low } => high.bytes() + low.bytes(),
        }
    }

    /// How the product is computed, for people.
    pub fn describe(&self) -> &'static str {
        match self.packing {
            Packing::Reference(_) => "32-bit accumulators, by definition",
            Packing::Packed(_) => "32-bit accumulators",
            Packing::Halves { .. } => "32-bit accumulators, weights of 9 bits in two halves",
        }
    }

    /// The product with an input of bytes, and what follows it, which but for the numbers of other values is always the same.
    pub fn run(
        &self,
        geometry: &Geometry,
        x: &[u8],
        links: &[Link<Elements<'_>>],
        target: Target<'_>,
        ints: &mut Pool<i32>,
    ) {
        let (shape, zero) = (geometry.as_conv(), self.grid.zero_point);
        let grid = if let Target::Codes(_, grid) = &target { Some(*grid) } else { None };
        let after = AfterProduct::new(&self.scale, links, grid, &self.kept);
        let mut take = || ints.take(geometry.output_len());
        let acc = match &self.packing {
            Packing::Packed(weights) => {
                // What follows runs on each band of rows while it is in the cache.
                return match target {
                    Target::F32(out) => integer::conv_with(&shape, x, zero, weights, out, |first, acc, out| {
                        after.run(acc, first, Target::F32(out));
                    }),
                    Target::Codes(out, grid) => match after.one_pass() {
                        Some(pass) => integer::conv_to_codes(&shape, x, zero, weights, pass, out),
                        None => integer::conv_with(&shape, x, zero, weights, out, |first, acc, out| {
                            after.run(acc, first, Target::Codes(out, grid));
                        }),
                    },
                };
            }
            Packing::Reference(codes) => {
                let mut acc = take();
                acc.fill(0);
                reference::conv::for_each_product(&shape, |xi, wi, yi| {
                    acc[yi] += (i32::from(x[xi]) - zero) * i32::from(codes[wi]);
                });
                acc
            }
            Packing::Halves { high, low } => {
                let (mut acc, mut other) = (take(), take());
                integer::conv(&shape, x, zero, high, &mut acc);
                integer::conv(&shape, x, zero, low, &mut other);
                // The sum fits, whatever its parts do in between.
                acc.iter_mut().zip(&*other).for_each(|(a, &b)| *a = a.wrapping_mul(2).wrapping_add(b));
                ints.give(other);
                acc
            }
        };
        after.run(&acc, 0, target);
        ints.give(acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(geometry: &Geometry, codes: &[i16], grid: ByteGrid, x: &[u8], kernels: Kernels) -> Vec<f32> {
        let w = IntegerWeight::new(&[], codes.to_vec().into(), &[1.0], geometry, grid, kernels).unwrap();
        let mut y = vec![0.0; geometry.output_len()];
        w.run(geometry, x, &[], Target::F32(&mut y), &mut Pool::default());
        y
    }

    /// Weights of 9 bits are cut in two, and accumulators near their limit do not overflow in between.
    #[test]
    fn long_sums_of_large_codes_stay_exact() {
        let grid = ByteGrid { scale: 1.0, zero_point: 0, low: 0, high: 255 };
        for (k, largest) in [(500, 127), (30_000, 255), (33_000, 255), (1, 255)] {
            for order in [Order::Plain, Order::Transposed] {
                let codes: Vec<i16> = (0..2 * k).map(|i| if i % 3 == 0 { -largest } else { largest }).collect();
                let geometry = Geometry::Linear { m: 2, k, n: 2, order };
                let x = vec![255; 2 * k];
                let y = run(&geometry, &codes, grid, &x, Kernels::Fast);
                assert_eq!(y, run(&geometry, &codes, grid, &x, Kernels::Reference));
                let at = |l: usize, j: usize| {
                    i64::from(if order == Order::Plain { codes[l * 2 + j] } else { codes[j * k + l] })
                };
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(*y, (0..k).map(|l| 255 * at(l, i % 2)).sum::<i64>() as f32);
                }
            }
        }
    }

    #[test]
    fn accumulators_that_could_overflow_are_refused() {
        let grid = ByteGrid { scale: 1.0, zero_point: 0, low: 0, high: 255 };
        let geometry = Geometry::Linear { m: 1, k: 70_000, n: 1, order: Order::Plain };
        let error =
            IntegerWeight::new(&[], vec![127; 70_000].into(), &[1.0], &geometry, grid, Kernels::Fast).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a sum of products could reach 2266950000, but accumulators hold 2147483647: use fewer bits"
        );
    }

    proptest! {
        #[test]
        fn fast_equals_reference(
            batch in 1usize..3, in_h in 1usize..7, in_w in 1usize..7, group_in in 1usize..5, group_out in 1usize..20, groups in 1usize..3,
            kernel in 1usize..4, stride in 1usize..3, pads in proptest::array::uniform4(0usize..3), largest in 1u8..=255, zero in 0i32..=255, seed: u32,
        ) {
            let shape = ConvShape {
                batch, in_h: in_h + kernel, in_w: in_w + kernel, c_in: group_in * groups, c_out: group_out * groups,
                kernel: [kernel; 2], stride: [stride; 2], pads, dilation: [1; 2], groups,
            };
            let grid = ByteGrid { scale: 0.5, zero_point: zero, low: 0, high: 255 };
            let noise = crate::testing::noise(shape.weight_len(), seed);
            let codes: Vec<i16> = noise.iter().map(|v| (v * f32::from(largest)) as i16).collect();
            let x: Vec<u8> = crate::testing::noise(shape.input_len(), seed ^ 99).iter().map(|v| (v * 128.0 + 128.0) as u8).collect();
            let geometry = Geometry::Conv(shape);
            prop_assert_eq!(run(&geometry, &codes, grid, &x, Kernels::Fast), run(&geometry, &codes, grid, &x, Kernels::Reference));
        }
    }
}
