//! The naive specification of the planes: one array per intermediate, one operation per line, in any precision.
//!
//! In f64 it serves finite differences; in f32 it is what composed tensor operations cost. The fused kernels are held
//! to it.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Floating-point numbers.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// Conversion, rounded.
    fn from_f64(x: f64) -> Self;
    /// e to the power of this.
    fn exp(self) -> Self;
}

impl Real for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn exp(self) -> Self {
        f32::exp(self)
    }
}

impl Real for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
}

/// One layer: logits `[N][n]`, gate values `[N]`, scales `[1]` or `[channels]`.
#[derive(Debug, Clone)]
pub struct Layer<T> {
    /// P.
    pub positive: Vec<T>,
    /// Q.
    pub negative: Vec<T>,
    /// m.
    pub masks: Vec<T>,
    /// s.
    pub scale: Vec<T>,
    /// β.
    pub temperature: T,
}

/// Gradients with the shapes of [`Layer`].
#[derive(Debug, Clone)]
pub struct Gradients<T> {
    /// ∂L/∂P.
    pub positive: Vec<T>,
    /// ∂L/∂Q.
    pub negative: Vec<T>,
    /// ∂L/∂m.
    pub masks: Vec<T>,
    /// ∂L/∂s.
    pub scale: Vec<T>,
}

/// σ(x).
pub fn sigmoid<T: Real>(x: T) -> T {
    let one = T::from_f64(1.0);
    one / (one + (-x).exp())
}

/// What forward computes and autograd would keep: σ(βP), σ(βQ) and W.
pub struct Saved<T> {
    p: Vec<T>,
    q: Vec<T>,
    /// W.
    pub weights: Vec<T>,
}

/// e_b.
fn shares<T: Real>(planes: usize) -> Vec<T> {
    let largest = (1u32 << planes) - 1;
    (0..planes).map(|b| T::from_f64(f64::from(1u32 << (planes - 1 - b)) / f64::from(largest))).collect()
}

/// W = s Σ m e (σ(βP) − σ(βQ)).
pub fn forward<T: Real>(layer: &Layer<T>) -> Saved<T> {
    let planes = layer.masks.len();
    let n = layer.positive.len() / planes;
    let row = (n / layer.scale.len()).max(1);
    let e = shares::<T>(planes);
    let p: Vec<T> = layer.positive.iter().map(|&x| layer.temperature * x).map(sigmoid).collect();
    let q: Vec<T> = layer.negative.iter().map(|&x| layer.temperature * x).map(sigmoid).collect();
    let d: Vec<T> = p.iter().zip(&q).map(|(&p, &q)| p - q).collect();
    let gated: Vec<T> = (0..planes * n).map(|at| layer.masks[at / n] * e[at / n] * d[at]).collect();
    let weights = (0..n)
        .map(|i| {
            let sum = (0..planes).fold(T::from_f64(0.0), |sum, b| sum + gated[b * n + i]);
            layer.scale[i / row] * sum
        })
        .collect();
    Saved { p, q, weights }
}

/// All gradients from ∂L/∂W.
pub fn backward<T: Real>(layer: &Layer<T>, saved: &Saved<T>, grad_w: &[T]) -> Gradients<T> {
    let planes = layer.masks.len();
    let n = grad_w.len();
    let row = (n / layer.scale.len()).max(1);
    let (zero, one) = (T::from_f64(0.0), T::from_f64(1.0));
    let e = shares::<T>(planes);
    let Saved { p, q, .. } = saved;
    let upstream: Vec<T> = (0..planes * n)
        .map(|at| grad_w[at % n] * layer.scale[at % n / row] * layer.masks[at / n] * e[at / n] * layer.temperature)
        .collect();
    let positive = (0..planes * n).map(|at| upstream[at] * p[at] * (one - p[at])).collect();
    let negative = (0..planes * n).map(|at| -upstream[at] * q[at] * (one - q[at])).collect();
    let mut masks = vec![zero; planes];
    let mut scale = vec![zero; layer.scale.len()];
    for (b, grad_mask) in masks.iter_mut().enumerate() {
        for i in 0..n {
            let share = grad_w[i] * e[b] * (p[b * n + i] - q[b * n + i]);
            *grad_mask = *grad_mask + layer.scale[i / row] * share;
            scale[i / row] = scale[i / row] + layer.masks[b] * share;
        }
    }
    Gradients { positive, negative, masks, scale }
}
