//! Activations over vectors: the cheap ones in registers, the others lane by lane.
//!
//! All agree bit for bit with [`Activation::apply`] and, up to the sign of a zero, with `dy * Activation::slope`.

use std::f32::consts::FRAC_1_SQRT_2;

use super::{Activation, ERF_FAR, ERF_NEAR, ERF_T};
use crate::sigmoid::exp_clamped_of;
use crate::simd::Vector;

/// A function with its gradient, over vectors.
///
/// # Safety
/// Callers promise the instruction set of `V`.
pub(crate) trait Curve: Copy {
    /// The function.
    unsafe fn apply<V: Vector>(self, x: V) -> V;
    /// The function of some vectors, side by side.
    #[inline(always)]
    unsafe fn apply_all<V: Vector, const N: usize>(self, mut x: [V; N]) -> [V; N] {
        for x in &mut x {
            // SAFETY: the caller's promise.
            *x = unsafe { self.apply(*x) };
        }
        x
    }
    /// `dy` times the slope, from the input or output as [`Activation::saved`] says.
    unsafe fn gradient<V: Vector>(self, dy: V, saved: V) -> V;
}

/// Runs a block with `$curve` bound to the [`Curve`] of an activation: the block is compiled once for each.
macro_rules! with_curve {
    ($act:expr, $curve:ident => $body:block) => {{
        use $crate::activation::{Activation, Saved, curve};
        match $act {
            Activation::Identity => {
                let $curve = curve::Identity;
                $body
            }
            Activation::Relu => {
                let $curve = curve::Relu;
                $body
            }
            Activation::LeakyRelu { alpha } if $act.saved() == Saved::Output => {
                let $curve = curve::LeakyRelu(alpha);
                $body
            }
            Activation::Clip { min, max } => {
                let $curve = curve::Clip(min, max);
                $body
            }
            Activation::GeluErf => {
                let $curve = curve::GeluErf;
                $body
            }
            act => {
                let $curve = curve::Any(act);
                $body
            }
        }
    }};
}
pub(crate) use with_curve;

#[derive(Clone, Copy)]
pub(crate) struct Identity;

#[derive(Clone, Copy)]
pub(crate) struct Relu;

/// With a positive slope.
#[derive(Clone, Copy)]
pub(crate) struct LeakyRelu(pub f32);

#[derive(Clone, Copy)]
pub(crate) struct Clip(pub f32, pub f32);

#[derive(Clone, Copy)]
pub(crate) struct GeluErf;

#[derive(Clone, Copy)]
pub(crate) struct Any(pub Activation);

// SAFETY (all blocks below): register arithmetic; the caller promises the instruction set.

impl Curve for Identity {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        x
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, _: V) -> V {
        dy
    }
}

impl Curve for Relu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        // SAFETY: see above.
        unsafe { x.select_less(V::zero(), V::zero(), x) }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, y: V) -> V {
        // SAFETY: see above.
        unsafe { V::zero().select_less(y, dy, V::zero()) }
    }
}

impl Curve for LeakyRelu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        // SAFETY: see above.
        unsafe { x.select_less(V::zero(), x.mul(V::splat(self.0)), x) }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, y: V) -> V {
        // SAFETY: see above.
        unsafe { V::zero().select_less(y, dy, dy.mul(V::splat(self.0))) }
    }
}

impl Curve for Clip {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        // SAFETY: see above.
        unsafe {
            let (min, max) = (V::splat(self.0), V::splat(self.1));
            let x = x.select_less(min, min, x);
            max.select_less(x, max, x)
        }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, y: V) -> V {
        // SAFETY: see above.
        unsafe {
            let inside = y.select_less(V::splat(self.1), dy, V::zero());
            V::splat(self.0).select_less(y, inside, V::zero())
        }
    }
}

impl Curve for GeluErf {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        // SAFETY: see above.
        unsafe { self.apply_all([x])[0] }
    }

    #[inline(always)]
    unsafe fn apply_all<V: Vector, const N: usize>(self, x: [V; N]) -> [V; N] {
        // SAFETY: see above.
        unsafe {
            let mut scaled = x;
            for x in &mut scaled {
                *x = x.mul(V::splat(FRAC_1_SQRT_2));
            }
            let mut y = erf(scaled);
            for i in 0..N {
                y[i] = V::splat(0.5).mul(x[i]).mul(V::splat(1.0).add(y[i]));
            }
            y
        }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, x: V) -> V {
        // SAFETY: see above.
        unsafe { Any(Activation::GeluErf).gradient(dy, x) }
    }
}

/// [`super::erf`] of each.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn erf<V: Vector, const N: usize>(x: [V; N]) -> [V; N] {
    // SAFETY: register arithmetic; the caller promises the instruction set.
    unsafe {
        let one = V::splat(1.0);
        let (mut a, mut z, mut t, mut negative) = (x, x, x, x);
        for i in 0..N {
            a[i] = x[i].copy_sign(one);
            z[i] = x[i].mul(x[i]);
            t[i] = one.div(a[i].fused(V::splat(ERF_T), one));
            negative[i] = z[i].mul(V::splat(-1.0));
        }
        let mut tail = [V::splat(ERF_FAR[0]); N];
        for coefficient in &ERF_FAR[1..] {
            for i in 0..N {
                tail[i] = tail[i].fused(t[i], V::splat(*coefficient));
            }
        }
        let exp = exp_clamped_of(negative);
        let mut odd = [V::splat(ERF_NEAR[0]); N];
        for coefficient in &ERF_NEAR[1..] {
            for i in 0..N {
                odd[i] = odd[i].fused(z[i], V::splat(*coefficient));
            }
        }
        for i in 0..N {
            let far = one.sub(tail[i].mul(t[i]).mul(exp[i])).copy_sign(x[i]);
            t[i] = a[i].select_less(one, odd[i].mul(x[i]), far);
        }
        t
    }
}

impl Curve for Any {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, x: V) -> V {
        let mut lanes = [0.0; 16];
        // SAFETY: see above; no vector has more than 16 lanes.
        unsafe { x.store(lanes.as_mut_ptr()) };
        let used = &mut lanes[..V::LANES];
        // One loop per function, so that the compiler makes vectors of each.
        match self.0 {
            Activation::Sigmoid => used.iter_mut().for_each(|x| *x = Activation::Sigmoid.apply(*x)),
            Activation::Tanh => used.iter_mut().for_each(|x| *x = Activation::Tanh.apply(*x)),
            Activation::GeluTanh => used.iter_mut().for_each(|x| *x = Activation::GeluTanh.apply(*x)),
            Activation::HardSwish => used.iter_mut().for_each(|x| *x = Activation::HardSwish.apply(*x)),
            act => used.iter_mut().for_each(|x| *x = act.apply(*x)),
        }
        // SAFETY: see above.
        unsafe { V::load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(self, dy: V, saved: V) -> V {
        let mut lanes = [0.0; 16];
        // SAFETY: see above; no vector has more than 16 lanes.
        unsafe { saved.store(lanes.as_mut_ptr()) };
        let used = &mut lanes[..V::LANES];
        match self.0 {
            Activation::Sigmoid => used.iter_mut().for_each(|s| *s = Activation::Sigmoid.slope(*s)),
            Activation::Tanh => used.iter_mut().for_each(|s| *s = Activation::Tanh.slope(*s)),
            Activation::GeluErf => used.iter_mut().for_each(|s| *s = Activation::GeluErf.slope(*s)),
            Activation::GeluTanh => used.iter_mut().for_each(|s| *s = Activation::GeluTanh.slope(*s)),
            Activation::HardSwish => used.iter_mut().for_each(|s| *s = Activation::HardSwish.slope(*s)),
            act => used.iter_mut().for_each(|s| *s = act.slope(*s)),
        }
        // SAFETY: see above.
        unsafe { dy.mul(V::load(lanes.as_ptr())) }
    }
}
