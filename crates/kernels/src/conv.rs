//! Convolution in f32 over channels-last tensors: forward, input gradient, weight gradient.
//!
//! Layouts: activations `[batch, height, width, channels]`, weights `[c_out, c_in / groups, kernel_h, kernel_w]` (ONNX's
//! OIHW, repacked inside each call: weights are small). A 1-D convolution is a 2-D one of height 1. Every function writes
//! its output completely and adds to nothing.
//!
//! Four families of loops, chosen by shape: `winograd` for 3x3 of stride 1 over whole vectors of channels, `depthwise`,
//! and direct register tiles for everything else (`dense` forward and for the input, `weight_grad`). The first has
//! other rounding errors than a plain dot product, bounded in its header: small tiles about the same ([`forward`]), large
//! ones a few times larger (gradients, and [`forward_training`]); [`forward_direct`] never uses it. All are
//! deterministic; only the weight gradient depends on the number of threads, in the order of its partial sums.

mod dense;
mod depthwise;
mod plan;
mod product;
#[cfg(test)]
mod tests;
mod weight_grad;
mod winograd;

use crate::isa::Isa;
use dense::{Dense, Direction};
use product::{Pairs, Product, Singles};
use std::fmt;

/// The geometry of one convolution. Construct it with public fields, then ask [`ConvShape::validate`] once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images in the batch.
    pub batch: usize,
    /// Height of the input, 1 for a 1-D convolution.
    pub in_h: usize,
    /// Width of the input.
    pub in_w: usize,
    /// Channels of the input, over all groups.
    pub c_in: usize,
    /// Channels of the output, over all groups.
    pub c_out: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between windows.
    pub stride: [usize; 2],
    /// Rows and columns of zeros around the input: top, left, bottom, right (the order of ONNX).
    pub pads: [usize; 4],
    /// Vertical and horizontal distance between the taps of a window.
    pub dilation: [usize; 2],
    /// Number of independent slices of the channels; `c_in` for a depthwise convolution.
    pub groups: usize,
}

/// From what numbers the products of a gradient are formed; they are summed in f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    Full,
    /// Operands rounded to bf16 (8 significant bits) where the CPU multiplies them faster than f32, else f32.
    Bf16,
}

impl Precision {
    /// Whether pairs of bf16 are multiplied.
    pub(crate) fn pairs(self, isa: Isa) -> bool {
        self == Precision::Bf16 && isa.has_bf16()
    }
}

/// Why a [`ConvShape`] (or a pooling shape) describes nothing that can be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError(pub(crate) String);

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ShapeError {}

impl ConvShape {
    /// A square-kernel convolution with equal pads on all sides, no dilation, one group: the common case.
    pub fn square(batch: usize, size: usize, c_in: usize, c_out: usize, kernel: usize, stride: usize) -> Self {
        ConvShape {
            batch,
            in_h: size,
            in_w: size,
            c_in,
            c_out,
            kernel: [kernel; 2],
            stride: [stride; 2],
            pads: [kernel / 2; 4],
            dilation: [1; 2],
            groups: 1,
        }
    }

    /// Height of the output; meaningful after [`ConvShape::validate`].
    pub fn out_h(&self) -> usize {
        let span = (self.kernel[0] - 1) * self.dilation[0];
        (self.in_h + self.pads[0] + self.pads[2] - 1 - span) / self.stride[0] + 1
    }

    /// Width of the output; meaningful after [`ConvShape::validate`].
    pub fn out_w(&self) -> usize {
        let span = (self.kernel[1] - 1) * self.dilation[1];
        (self.in_w + self.pads[1] + self.pads[3] - 1 - span) / self.stride[1] + 1
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_h * self.in_w * self.c_in
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_h() * self.out_w() * self.c_out
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.c_out * (self.c_in / self.groups) * self.kernel[0] * self.kernel[1]
    }

    /// Multiply-accumulates of one forward pass, padding counted as if it were data.
    pub fn macs(&self) -> u64 {
        let window = (self.c_in / self.groups) as u64 * self.kernel[0] as u64 * self.kernel[1] as u64;
        self.output_len() as u64 * window
    }

    /// Checks that every number is positive where it must be, that groups divide the channels, that a window fits into
    /// the padded input, and that no length overflows.
    ///
    /// # Errors
    /// Names the offending number.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let fail = |detail: String| Err(ShapeError(detail));
        let positive = [
            ("batch", self.batch),
            ("input height", self.in_h),
            ("input width", self.in_w),
            ("input channels", self.c_in),
            ("output channels", self.c_out),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
            ("groups", self.groups),
        ];
        // A bound on every number keeps the sums below from overflowing; the products are checked one by one.
        let largest = i32::MAX as usize;
        for (name, value) in positive {
            if value == 0 || value > largest {
                return fail(format!("convolution: {name} is {value}, expected 1 to {largest}"));
            }
        }
        for (side, &pad) in ["top", "left", "bottom", "right"].iter().zip(&self.pads) {
            if pad > largest {
                return fail(format!("convolution: {side} pad is {pad}, expected at most {largest}"));
            }
        }
        if !self.c_in.is_multiple_of(self.groups) || !self.c_out.is_multiple_of(self.groups) {
            return fail(format!(
                "convolution: {} groups do not divide {} input and {} output channels",
                self.groups, self.c_in, self.c_out
            ));
        }
        let axes = [
            ("height", self.in_h, self.pads[0] + self.pads[2], 0),
            ("width", self.in_w, self.pads[1] + self.pads[3], 1),
        ];
        for (name, size, pads, axis) in axes {
            let span = (self.kernel[axis] - 1).checked_mul(self.dilation[axis]).and_then(|s| s.checked_add(1));
            match span {
                Some(span) if span <= size + pads => {}
                _ => {
                    return fail(format!(
                        "convolution: a window of {} taps {} apart does not fit into the padded {name} {}",
                        self.kernel[axis],
                        self.dilation[axis],
                        size + pads
                    ));
                }
            }
        }
        let lengths = [
            ("input", [self.batch, self.in_h, self.in_w, self.c_in]),
            ("output", [self.batch, self.out_h(), self.out_w(), self.c_out]),
            ("weight", [self.c_out, self.c_in / self.groups, self.kernel[0], self.kernel[1]]),
        ];
        for (name, dims) in lengths {
            let len = dims.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
            if len.is_none_or(|n| n > isize::MAX as usize / 4) {
                return fail(format!("convolution: {name} {dims:?} has too many elements"));
            }
        }
        Ok(())
    }

    /// Panics unless the shape is valid and the three slices have its lengths: our own mistakes, not a file's.
    pub(crate) fn assert_lengths(&self, input: usize, weight: usize, output: usize) {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        assert_eq!(input, self.input_len(), "length of the input of {self:?}");
        assert_eq!(weight, self.weight_len(), "length of the weight of {self:?}");
        assert_eq!(output, self.output_len(), "length of the output of {self:?}");
    }
}

/// `y = conv(x, w) + bias`: `x` and `y` channels-last, `w` OIHW, `bias` one number per output channel.
///
/// # Panics
/// If the shape is not valid or a slice has another length than the shape says.
pub fn forward(shape: &ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    shape.assert_lengths(x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|b| b.len() == shape.c_out), "one bias per output channel");
    correlate::<Singles>(Isa::current(), shape, Direction::Forward, winograd::Size::Two, x, w, bias, y);
}

/// [`forward`] where a few more units in the last place do not matter: steps of training, whose gradients are noisy. With operands of
/// bf16, where they are asked for and direct sums are the fastest; a transform of rounded operands would be off by too much.
///
/// # Panics
/// As [`forward`].
pub fn forward_training(
    shape: &ConvShape,
    precision: Precision,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    shape.assert_lengths(x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|b| b.len() == shape.c_out), "one bias per output channel");
    let isa = Isa::current();
    if precision.pairs(isa) && !(winograd::applies(shape) && pays::<Pairs>(shape)) {
        correlate_directly::<Pairs>(isa, shape, Direction::Forward, x, w, bias, y);
    } else {
        correlate::<Singles>(isa, shape, Direction::Forward, winograd::coarse(shape), x, w, bias, y);
    }
}

/// [`forward_training`] of operands rounded as `precision` says: for products that are part of a gradient.
pub(crate) fn forward_rounded(shape: &ConvShape, precision: Precision, x: &[f32], w: &[f32], y: &mut [f32]) {
    shape.assert_lengths(x.len(), w.len(), y.len());
    correlate_coarsely(shape, Direction::Forward, precision, x, w, y);
}

/// `dx = ∂L/∂x` from `dy = ∂L/∂y`, with products as `precision` says.
///
/// # Panics
/// As [`forward`].
pub fn backward_input(shape: &ConvShape, precision: Precision, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    shape.assert_lengths(dx.len(), w.len(), dy.len());
    correlate_coarsely(shape, Direction::InputGradient, precision, dy, w, dx);
}

/// `dw = ∂L/∂w` (OIHW) from the input and `dy = ∂L/∂y`, summed over batch and pixels, with products as `precision` says.
///
/// # Panics
/// As [`forward`].
pub fn backward_weight(shape: &ConvShape, precision: Precision, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    shape.assert_lengths(x.len(), dw.len(), dy.len());
    let isa = Isa::current();
    if precision.pairs(isa) {
        weight_gradient::<Pairs>(isa, shape, x, dy, dw);
    } else {
        weight_gradient::<Singles>(isa, shape, x, dy, dw);
    }
}

/// [`forward`] by direct summation of products, never by a transform: bounded by the error of one dot product, for
/// comparisons with integer arithmetic. Slower where `forward` would transform (3x3 of stride 1).
///
/// # Panics
/// As [`forward`].
pub fn forward_direct(shape: &ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    shape.assert_lengths(x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|b| b.len() == shape.c_out), "one bias per output channel");
    correlate_directly::<Singles>(Isa::current(), shape, Direction::Forward, x, w, bias, y);
}

/// Products that are part of a gradient: with the largest tiles, and operands as `precision` says; lengths already checked.
fn correlate_coarsely(
    shape: &ConvShape,
    direction: Direction,
    precision: Precision,
    source: &[f32],
    w: &[f32],
    out: &mut [f32],
) {
    let (isa, size) = (Isa::current(), winograd::coarse(shape));
    if precision.pairs(isa) {
        correlate::<Pairs>(isa, shape, direction, size, source, w, None, out);
    } else {
        correlate::<Singles>(isa, shape, direction, size, source, w, None, out);
    }
}

/// Forward or input gradient with the vectors of `isa`; lengths already checked.
#[allow(clippy::too_many_arguments)]
fn correlate<P: Product>(
    isa: Isa,
    shape: &ConvShape,
    direction: Direction,
    size: winograd::Size,
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    if winograd::applies(shape) && pays::<P>(shape) {
        winograd::run::<P>(isa, size, (shape, direction), source, w, bias, out);
    } else {
        correlate_directly::<P>(isa, shape, direction, source, w, bias, out);
    }
}

/// Whether fewer products repay the transforms: pairs are so fast that it takes many channels.
fn pays<P: Product>(shape: &ConvShape) -> bool {
    P::NUMBERS == 1 || shape.c_in.min(shape.c_out) >= 48
}

/// Depthwise layers, and those whose channels make no pairs, are computed in f32.
fn correlate_directly<P: Product>(
    isa: Isa,
    shape: &ConvShape,
    direction: Direction,
    source: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    if depthwise::applies(shape) {
        depthwise::run(isa, (shape, direction), source, w, bias, out);
    } else {
        let summed = if direction == Direction::Forward { shape.c_in } else { shape.c_out };
        let dense = Dense { isa, shape, direction, w, bias };
        if shape.groups == 1 && summed.is_multiple_of(P::NUMBERS) {
            dense.run::<P>(source, out);
        } else {
            dense.run::<Singles>(source, out);
        }
    }
}

/// [`backward_weight`] with the vectors of `isa`; lengths already checked.
fn weight_gradient<P: Product>(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    if winograd::applies(shape) && pays::<P>(shape) {
        winograd::weight_gradient::<P>(isa, winograd::coarse(shape), shape, x, dy, dw);
    } else {
        weight_gradient_directly::<P>(isa, shape, x, dy, dw);
    }
}

fn weight_gradient_directly<P: Product>(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    if depthwise::applies(shape) {
        depthwise::weight_gradient(isa, shape, x, dy, dw);
    } else if shape.batch > 1 {
        weight_grad::run::<P>(isa, shape, x, dy, dw);
    } else {
        weight_grad::run::<Singles>(isa, shape, x, dy, dw);
    }
}

/// `db = ∂L/∂bias`: the sum of `dy` over batch and pixels for each of the `db.len()` channels.
pub fn backward_bias(dy: &[f32], db: &mut [f32]) {
    crate::norm::channel_sums(dy, db);
}
