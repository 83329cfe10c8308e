//! Activation functions over slices, and their derivatives.
//!
//! Formulas are ONNX's. Derivatives at a kink are 0 on the flat side's edge: `relu'(0) = 0`, and a clipped value passes
//! no gradient. NaN comes out as NaN.

pub(crate) mod curve;

use crate::isa::Isa;
use crate::sigmoid::{exp_clamped, sigmoid};
use crate::simd::{Kernel, Vector, dispatch};
use curve::{Curve, with_curve};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// An elementwise function between layers.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Activation {
    /// `x`
    #[default]
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x` where positive, else `alpha * x`.
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// `min(max(x, min), max)`; ReLU6 is `Clip { min: 0, max: 6 }`.
    Clip {
        /// Smallest value that passes.
        min: f32,
        /// Largest value that passes.
        max: f32,
    },
    /// `x * clamp(x / 6 + 1/2, 0, 1)`
    HardSwish,
    /// `clamp(alpha * x + beta, 0, 1)`
    HardSigmoid {
        /// Slope; ONNX's default is 0.2.
        alpha: f32,
        /// Value at zero; ONNX's default is 0.5.
        beta: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
    /// `x * (1 + erf(x / sqrt 2)) / 2`
    GeluErf,
    /// `x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2`
    GeluTanh,
}

/// What the derivative of an [`Activation`] is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The input of the function.
    Input,
    /// Its output.
    Output,
}

impl Activation {
    /// The function at one point.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Activation::Identity => x,
            Activation::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Activation::LeakyRelu { alpha } => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            Activation::Clip { min, max } => clip(x, min, max),
            Activation::HardSwish => x * clip(x / 6.0 + 0.5, 0.0, 1.0),
            Activation::HardSigmoid { alpha, beta } => clip(alpha * x + beta, 0.0, 1.0),
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => tanh(x),
            Activation::GeluErf => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
            Activation::GeluTanh => 0.5 * x * (1.0 + tanh(gelu_inner(x))),
        }
    }

    /// Whether [`Activation::slope`] wants the input or the output. The output suffices wherever the function can be
    /// inverted well enough to know its slope: then a layer need not keep its input.
    pub fn saved(self) -> Saved {
        match self {
            Activation::HardSwish | Activation::GeluErf | Activation::GeluTanh => Saved::Input,
            // With a slope that is not positive the sign of the output does not tell the side.
            Activation::LeakyRelu { alpha } if alpha.is_nan() || alpha <= 0.0 => Saved::Input,
            _ => Saved::Output,
        }
    }

    /// Whether it consists of straight lines: then a comparison or two tells the slope.
    pub fn is_piecewise_linear(self) -> bool {
        matches!(self, Activation::Identity | Activation::Relu | Activation::LeakyRelu { .. } | Activation::Clip { .. })
    }

    /// The derivative, from the input or the output as [`Activation::saved`] says.
    #[inline(always)]
    pub fn slope(self, saved: f32) -> f32 {
        let s = saved;
        let inside = |low: f32, high: f32, slope: f32| if s > low && s < high { slope } else { 0.0 };
        match self {
            Activation::Identity => 1.0,
            Activation::Relu => {
                if s > 0.0 {
                    1.0
                } else {
                    0.0
                }
            }
            Activation::LeakyRelu { alpha } => {
                if s > 0.0 {
                    1.0
                } else {
                    alpha
                }
            }
            Activation::Clip { min, max } => inside(min, max, 1.0),
            Activation::HardSigmoid { alpha, .. } => inside(0.0, 1.0, alpha),
            Activation::HardSwish => {
                if s >= 3.0 {
                    1.0
                } else {
                    inside(-3.0, 3.0, s / 3.0 + 0.5)
                }
            }
            Activation::Sigmoid => s * (1.0 - s),
            Activation::Tanh => 1.0 - s * s,
            Activation::GeluErf => {
                let density = exp_clamped(-0.5 * s * s) * 0.398_942_3; // 1 / sqrt(2 pi)
                0.5 * (1.0 + erf(s * FRAC_1_SQRT_2)) + s * density
            }
            Activation::GeluTanh => {
                let t = tanh(gelu_inner(s));
                let inner_slope = SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * s * s);
                0.5 * (1.0 + t) + 0.5 * s * (1.0 - t * t) * inner_slope
            }
        }
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

#[inline(always)]
fn gelu_inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)
}

/// `min(max(x, low), high)` that keeps NaN.
#[inline(always)]
fn clip(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// erf(x) / x in powers of x², for |x| < 1.
const ERF_NEAR: [f32; 7] =
    [7.853_861_4e-5, -8.010_194e-4, 5.188_328e-3, -2.685_381e-2, 0.112_835_854, -0.376_126_26, FRAC_2_SQRT_PI];
/// 1 - erf(x) = exp(-x²) · t · (these in powers of t), t = 1 / (1 + ERF_T x).
const ERF_FAR: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
const ERF_T: f32 = 0.327_591_1;
/// tanh(x) = x + x³ · (these in powers of x²), for |x| < TANH_NEAR.
const TANH: [f32; 5] = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
const TANH_NEAR: f32 = 0.625;

/// The error function, to 4e-7 absolute: Cephes' odd polynomial near zero, Abramowitz and Stegun 7.1.26 elsewhere
/// (1.5e-7 in exact arithmetic).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (a, z) = (x.abs(), x * x);
    let mut odd = ERF_NEAR[0];
    for coefficient in &ERF_NEAR[1..] {
        odd = odd.mul_add(z, *coefficient);
    }
    let t = 1.0 / a.mul_add(ERF_T, 1.0);
    let mut tail = ERF_FAR[0];
    for coefficient in &ERF_FAR[1..] {
        tail = tail.mul_add(t, *coefficient);
    }
    let far = (1.0 - tail * t * exp_clamped(-z)).copysign(x);
    if a < 1.0 { odd * x } else { far }
}

/// The hyperbolic tangent, to 3e-7 relative: Cephes' odd polynomial near zero, the exponential elsewhere.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut polynomial = TANH[0];
    for coefficient in &TANH[1..] {
        polynomial = polynomial.mul_add(z, *coefficient);
    }
    let near = (polynomial * z).mul_add(x, x);
    let far = (1.0 - 2.0 / (1.0 + exp_clamped(2.0 * x.abs()))).copysign(x);
    if x.abs() < TANH_NEAR { near } else { far }
}

/// `y = act(x)`.
///
/// # Panics
/// If the slices differ in length.
pub fn forward(act: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "length of y");
    crate::threads::for_each_part(y, 1, |start, y| {
        dispatch(Isa::current(), Forward { act, x: &x[start..start + y.len()], y });
    });
}

/// `y = act(y)`, on this thread alone.
pub fn in_place(act: Activation, y: &mut [f32]) {
    dispatch(Isa::current(), InPlace { act, y });
}

/// Multiplies the gradient of the output by `act'(·)`, where `saved` is the input or the output of the forward pass as
/// [`Activation::saved`] says: what is left is the gradient of the input.
///
/// # Panics
/// If the slices differ in length.
pub fn backward(act: Activation, saved: &[f32], gradient: &mut [f32]) {
    assert_eq!(saved.len(), gradient.len(), "length of the saved values");
    crate::threads::for_each_part(gradient, 1, |start, gradient| {
        let saved = &saved[start..start + gradient.len()];
        dispatch(Isa::current(), Backward { act, saved, gradient });
    });
}

/// Vectors that a curve takes at once: its steps wait for one another, those of others fill the gaps.
const SIDE_BY_SIDE: usize = 4;

/// Lanes of the vectors that are plain arrays.
const PLAIN_LANES: usize = 4;

/// How many of so many numbers are taken side by side: none without vectors, where it would only make programs larger.
#[inline(always)]
fn side_by_side<V: Vector>(len: usize) -> usize {
    match cfg!(target_arch = "x86_64") && V::LANES == PLAIN_LANES {
        true => 0,
        false => len - len % (SIDE_BY_SIDE * V::LANES),
    }
}

/// # Safety
/// The CPU has the instruction set; as many vectors lie there.
#[inline(always)]
unsafe fn load<V: Vector>(from: *const f32) -> [V; SIDE_BY_SIDE] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = [V::zero(); SIDE_BY_SIDE];
        for (i, x) in x.iter_mut().enumerate() {
            *x = V::load(from.add(i * V::LANES));
        }
        x
    }
}

/// # Safety
/// As of [`load`].
#[inline(always)]
unsafe fn store<V: Vector>(y: [V; SIDE_BY_SIDE], to: *mut f32) {
    for (i, y) in y.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { y.store(to.add(i * V::LANES)) }
    }
}

struct Forward<'a> {
    act: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        with_curve!(self.act, curve => {
            let whole = side_by_side::<V>(self.y.len());
            let (x, x_rest) = self.x.split_at(whole);
            let (y, y_rest) = self.y.split_at_mut(whole);
            for (x, y) in x.chunks_exact(SIDE_BY_SIDE * V::LANES).zip(y.chunks_exact_mut(SIDE_BY_SIDE * V::LANES)) {
                // SAFETY: the caller promises the instruction set; both chunks have four vectors.
                unsafe { store(curve.apply_all(load::<V>(x.as_ptr())), y.as_mut_ptr()) }
            }
            for (x, y) in x_rest.chunks(V::LANES).zip(y_rest.chunks_mut(V::LANES)) {
                // SAFETY: the caller promises the instruction set; both chunks have `y.len() <= LANES` elements.
                unsafe { curve.apply(V::load_up_to(x.as_ptr(), y.len())).store_up_to(y.as_mut_ptr(), y.len()) }
            }
        });
    }
}

struct InPlace<'a> {
    act: Activation,
    y: &'a mut [f32],
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        with_curve!(self.act, curve => {
            let whole = side_by_side::<V>(self.y.len());
            let (y, rest) = self.y.split_at_mut(whole);
            for y in y.chunks_exact_mut(SIDE_BY_SIDE * V::LANES) {
                // SAFETY: the caller promises the instruction set; the chunk has four vectors.
                unsafe { store(curve.apply_all(load::<V>(y.as_ptr())), y.as_mut_ptr()) }
            }
            for y in rest.chunks_mut(V::LANES) {
                // SAFETY: the caller promises the instruction set; the chunk has `y.len() <= LANES` elements.
                unsafe { curve.apply(V::load_up_to(y.as_ptr(), y.len())).store_up_to(y.as_mut_ptr(), y.len()) }
            }
        });
    }
}

struct Backward<'a> {
    act: Activation,
    saved: &'a [f32],
    gradient: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        with_curve!(self.act, curve => {
            for (gradient, saved) in self.gradient.chunks_mut(V::LANES).zip(self.saved.chunks(V::LANES)) {
                let n = gradient.len();
                // SAFETY: the caller promises the instruction set; both chunks have `n <= LANES` elements.
                unsafe {
                    let (dy, saved) = (V::load_up_to(gradient.as_ptr(), n), V::load_up_to(saved.as_ptr(), n));
                    curve.gradient(dy, saved).store_up_to(gradient.as_mut_ptr(), n);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Activation, Saved, backward, erf, forward, in_place, tanh};
    use crate::reference::activation as naive;
    use crate::testing::{ACTIVATIONS as ALL, on_every_level};
    use proptest::prelude::*;

    #[test]
    fn slopes_match_finite_differences() {
        for act in ALL {
            // Points between the kinks of all functions above.
            for x in [-7.3, -2.9, -1.1, -0.45, -0.2, 0.3, 0.9, 1.3, 2.4, 2.8, 3.3, 8.0_f32] {
                let h = 1e-2;
                let expected = (f64::from(act.apply(x + h)) - f64::from(act.apply(x - h))) / (2.0 * f64::from(h));
                let saved = if act.saved() == Saved::Input { x } else { act.apply(x) };
                let slope = f64::from(act.slope(saved));
                // Truncation h²/6 · |f'''| <= 2e-5, rounding of f to 1e-6 over 2h = 5e-5.
                assert!((slope - expected).abs() < 2e-4, "{act:?} at {x}: {slope} {expected}");
            }
        }
    }

    #[test]
    fn known_values() {
        for (act, x, expected) in [
            (Activation::Relu, -1.0, 0.0),
            (Activation::LeakyRelu { alpha: 0.1 }, -2.0, -0.2),
            (Activation::HardSwish, 1.0, 2.0 / 3.0),
            (Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }, 1.0, 0.7),
            (Activation::Sigmoid, 2.0, 0.880_797),
            (Activation::Tanh, 0.5, 0.462_117_16),
            (Activation::GeluErf, 1.0, 0.841_344_7),
            (Activation::GeluTanh, 1.0, 0.841_192),
        ] {
            assert!((act.apply(x) - expected).abs() < 1e-6, "{act:?}({x}) = {}", act.apply(x));
        }
        assert_eq!(erf(-9.0), -1.0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
    }

    /// The stated bounds, against the library's double precision and the series of erf.
    #[test]
    fn tanh_and_erf_are_accurate() {
        for i in -60_000..=60_000 {
            let x = i as f32 / 10_000.0;
            let exact = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - exact).abs() <= 3e-7 * exact.abs(), "tanh {x}");
            // erf(x) = 2 / sqrt(pi) exp(-x²) Σ 2^n x^(2n+1) / (2n+1)!!: all terms have one sign.
            let wide = f64::from(x);
            let (mut term, mut sum) = (wide, wide);
            for n in 1..200 {
                term *= 2.0 * wide * wide / f64::from(2 * n + 1);
                sum += term;
            }
            let exact = std::f64::consts::FRAC_2_SQRT_PI * (-wide * wide).exp() * sum;
            assert!((f64::from(erf(x)) - exact).abs() <= 4e-7, "erf {x}: {} {exact}", erf(x));
        }
    }

    /// Vectors see a positive output; so must what is done one by one.
    #[test]
    fn an_infinite_output_of_relu_passes_its_gradient() {
        let mut dx = [2.0; 2];
        backward(Activation::Relu, &[f32::INFINITY, f32::NAN], &mut dx);
        assert_eq!(dx, [2.0, 0.0]);
        assert_eq!([f32::INFINITY, f32::NAN].map(|y| Activation::Relu.slope(y)), [1.0, 0.0]);
    }

    #[test]
    fn nan_stays_nan() {
        for act in ALL {
            assert!(act.apply(f32::NAN).is_nan(), "{act:?}");
        }
    }

    /// Equal, both NaN counted as equal; the sign of a zero may differ.
    fn same(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
    }

    /// Vectors do what the scalar functions do, bit for bit, on every level.
    fn check(act: Activation, x: &[f32], dy: &[f32]) {
        let (mut y, mut dx) = (x.to_vec(), x.to_vec());
        naive::forward(act, x, &mut y);
        let saved = if act.saved() == Saved::Input { x } else { &y };
        naive::backward(act, saved, dy, &mut dx);
        on_every_level(|isa| {
            let mut fast = vec![f32::from_bits(1); x.len()];
            forward(act, x, &mut fast);
            assert!(same(&fast, &y), "forward {act:?} {isa:?} {}", x.len());
            fast.copy_from_slice(x);
            in_place(act, &mut fast);
            assert!(same(&fast, &y), "in place {act:?} {isa:?} {}", x.len());
            fast.copy_from_slice(dy);
            backward(act, saved, &mut fast);
            assert!(same(&fast, &dx), "backward {act:?} {isa:?} {}", x.len());
        });
    }

    #[test]
    fn awkward_lengths() {
        for n in [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 8191, 8193, 100_003] {
            let x: Vec<f32> = (0..n).map(|i| (i % 23) as f32 / 4.0 - 3.0).collect();
            for act in ALL {
                check(act, &x, &x);
            }
        }
    }

    #[test]
    fn special_values() {
        let (infinity, nan, least) = (f32::INFINITY, f32::NAN, f32::from_bits(1));
        let x = [0.0, -0.0, infinity, -infinity, nan, least, -least, f32::MAX, f32::MIN, 3.0, -3.0, 1.25, -0.5];
        for act in ALL {
            check(act, &x, &[1.5; 13]);
        }
    }

    proptest! {
        #[test]
        fn any_values(x in proptest::collection::vec(any::<f32>(), 1..70), act in 0..ALL.len(), scale in -2.0..2.0_f32) {
            // Half of them near the kinks.
            let x: Vec<f32> = x.iter().enumerate().map(|(i, v)| if i % 2 == 0 { *v } else { v % 8.0 }).collect();
            check(ALL[act], &x, &vec![scale; x.len()]);
        }
    }
}
