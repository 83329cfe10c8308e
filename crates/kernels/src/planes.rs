//! CSQ's weight reparametrisation: soft bit planes with gates, forward, and all gradients in one pass.
//!
//! CSQ: Xiao et al., arXiv 2212.02770. For one layer with n weights and N planes, plane 0 the most significant:
//!
//! ```text
//! p_ib = σ(β P_ib)   q_ib = σ(β Q_ib)   d_ib = p_ib − q_ib          e_b = 2^(N−1−b) / (2^N − 1)
//! W_i  = s · Σ_b m_b e_b d_ib                                       soft bits
//! W_i  = s / (2^N − 1) · z_i,  z_i = Σ_b m_b 2^(N−1−b) (1[P>0] − 1[Q>0])   hard bits, m_b ∈ {0, 1}
//!
//! G = ∂L/∂W     ∂L/∂P_ib =  G_i s m_b e_b β p (1 − p)               ∂L/∂s   = Σ_i G_i Σ_b m_b e_b d_ib
//!               ∂L/∂Q_ib = −G_i s m_b e_b β q (1 − q)               ∂L/∂m_b = e_b s R_b,  R_b = Σ_i G_i d_ib
//! ```
//!
//! | symbol | field | shape |
//! |---|---|---|
//! | P, Q | [`Logits::positive`], [`Logits::negative`] | `[N][n]`, plane-major: every plane is one contiguous run |
//! | m | [`Gates::masks`] | `[N]`, gate *values*; [`mask_values`] makes them from logits, [`mask_logit_gradient`] goes back |
//! | s | [`Gates::scale`] | `[1]`, or `[channels]`: equal contiguous runs of n / channels weights |
//! | β | [`Gates::temperature`] | |
//!
//! Plane-major, because then every inner loop is a plain run over contiguous floats; weights are processed in tiles
//! that stay in the first cache, so the many streams cost nothing. Nothing is stored between forward and backward:
//! recomputing a sigmoid is cheaper than writing and reading it. Planes whose gate is exactly 0 are skipped; this changes
//! neither W nor any other gradient, bit for bit, and their own gradients are 0.
//!
//! The work is cut into fixed chunks for all threads, and partial sums are added in chunk order in double precision: the same
//! bits for every number of threads, and on every machine.
//!
//! ResNet-20 (268,336 weights, 8 planes), milliseconds of processor time per step on one AVX-512 core (`benches/planes.rs`):
//! forward 1.8, backward with the SGD update 5.3; composed array operations in this same process 56; two threads halve ours.

mod backward;
mod hard;
pub mod reference;

pub use backward::{GateGradients, LogitGradients, Sgd, TrainableLogits, backward, backward_sgd};
pub use hard::{hard_codes, init_logits, nearest_on_planes};

use crate::multiversion::multiversion;
use crate::runs::{Runs, TILE};
use crate::sigmoid::{sigmoid, sigmoid_and_complement, sigmoid_pair};
use crate::threads;

/// Most planes a layer can have.
pub const MAX_PLANES: usize = 8;
/// Weights per unit of parallel work.
const CHUNK: usize = 4096;

/// Whether a logit passes through the steep sigmoid or through a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// σ(β x).
    #[default]
    Soft,
    /// 1 if x > 0, else 0.
    Hard,
}

/// The logits of one layer, `[N][n]`, plane-major.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    /// P: logits of the positive planes.
    pub positive: &'a [f32],
    /// Q: logits of the negative planes.
    pub negative: &'a [f32],
}

/// What turns the logits of one layer into weights.
#[derive(Debug, Clone, Copy)]
pub struct Gates<'a> {
    /// Gate values m, `[N]`, each in 0..=1; with hard bits exactly 0 or 1.
    pub masks: &'a [f32],
    /// One scale, or one per output channel.
    pub scale: &'a [f32],
    /// Steepness β of the sigmoids, positive.
    pub temperature: f32,
    /// Soft bits while training, hard ones for what is deployed.
    pub bits: Gate,
}

/// e_b: the share of plane `plane` of `planes` in the full scale, `2^(N-1-b) / (2^N - 1)`. The shares sum to 1.
pub fn plane_share(plane: usize, planes: usize) -> f64 {
    plane_weight(plane, planes) / largest_code(planes)
}

/// 2^(N−1−b).
fn plane_weight(plane: usize, planes: usize) -> f64 {
    f64::from(1u32 << (planes - 1 - plane))
}

/// 2^N − 1.
fn largest_code(planes: usize) -> f64 {
    f64::from((1u32 << planes) - 1)
}

/// Gate values of mask logits: `σ(β M)` or `1[M > 0]`.
///
/// # Panics
/// If lengths differ.
pub fn mask_values(logits: &[f32], temperature: f32, gate: Gate, out: &mut [f32]) {
    assert_eq!(logits.len(), out.len(), "one value per logit");
    for (m, &logit) in out.iter_mut().zip(logits) {
        *m = match gate {
            Gate::Soft => sigmoid(temperature * logit),
            Gate::Hard => f32::from(u8::from(logit > 0.0)),
        };
    }
}

/// Gradient of mask logits: `(grad_masks + penalty) · β m (1 − m)` for soft gates, 0 for hard ones.
///
/// `penalty` is the derivative of the regulariser with respect to a gate value (CSQ: λ·ΔS, the same for all).
///
/// # Panics
/// If lengths differ.
pub fn mask_logit_gradient(
    logits: &[f32],
    grad_masks: &[f32],
    penalty: f32,
    temperature: f32,
    gate: Gate,
    out: &mut [f32],
) {
    assert!(logits.len() == out.len() && grad_masks.len() == out.len(), "one gradient per logit");
    for ((g, &logit), &grad) in out.iter_mut().zip(logits).zip(grad_masks) {
        let (m, complement) = sigmoid_and_complement(temperature * logit);
        *g = match gate {
            Gate::Soft => (grad + penalty) * temperature * (m * complement),
            Gate::Hard => 0.0,
        };
    }
}

/// Writes the weights W.
///
/// With hard bits every weight is exactly `(s / (2^N − 1)) * z as f32` with an integer z: what
/// [`dequantize`](crate::numerics::dequantize) gives for code z, scale `s / (2^N − 1)` and zero point 0.
///
/// # Panics
/// If shapes disagree, there are no or more than [`MAX_PLANES`] planes, or a gate is neither 0 nor 1 while bits are hard.
pub fn forward(logits: &Logits<'_>, gates: &Gates<'_>, weights: &mut [f32]) {
    let shape = Shape::of(gates, weights.len());
    shape.check_logits(logits.positive.len(), logits.negative.len());
    let live = LivePlanes::of(gates);
    let run = |(chunk_idx, chunk): (usize, &mut [f32])| {
        for (tile_idx, out) in chunk.chunks_mut(TILE).enumerate() {
            let first = chunk_idx * shape.runs.chunk + tile_idx * TILE;
            out.fill(0.0);
            for plane in &live.list {
                let at = plane.index * shape.runs.n + first..plane.index * shape.runs.n + first + out.len();
                let (p, q) = (&logits.positive[at.clone()], &logits.negative[at]);
                match gates.bits {
                    Gate::Soft => add_soft(p, q, gates.temperature, plane.factor, out),
                    Gate::Hard => add_hard(p, q, plane.factor, out),
                }
            }
            for (row, range) in shape.runs.segments(first, out.len()) {
                let step = gates.scale[row] / live.divisor;
                out[range].iter_mut().for_each(|w| *w *= step);
            }
        }
    };
    threads::for_each(weights.chunks_mut(shape.runs.chunk).enumerate(), run);
}

multiversion! {
    /// `out += factor * (σ(βP) − σ(βQ))`.
    fn add_soft(p: &[f32], q: &[f32], temperature: f32, factor: f32, out: &mut [f32]) {
        for ((u, &p), &q) in out.iter_mut().zip(p).zip(q) {
            let d = sigmoid_pair(temperature * p, temperature * q).difference;
            *u = d.mul_add(factor, *u);
        }
    }
}

multiversion! {
    /// `out += factor * (1[P > 0] − 1[Q > 0])`; factors are powers of two, so that sums are exact integers.
    fn add_hard(p: &[f32], q: &[f32], factor: f32, out: &mut [f32]) {
        for ((u, &p), &q) in out.iter_mut().zip(p).zip(q) {
            *u += hard_difference(p, q) * factor;
        }
    }
}

/// 1[p > 0] − 1[q > 0].
#[inline(always)]
fn hard_difference(p: f32, q: f32) -> f32 {
    let p = if p > 0.0 { 1.0 } else { 0.0 };
    let q = if q > 0.0 { 1.0 } else { 0.0 };
    p - q
}

/// The planes that contribute, with their constants.
struct LivePlanes {
    list: Vec<LivePlane>,
    /// What the scale is divided by: 1 for soft bits (`factor` has it), 2^N − 1 for hard bits.
    divisor: f32,
}

struct LivePlane {
    /// Its number, 0 the most significant.
    index: usize,
    /// m_b e_b for soft bits, 2^(N−1−b) for hard ones.
    factor: f32,
    /// e_b.
    share: f64,
}

impl LivePlanes {
    fn of(gates: &Gates<'_>) -> Self {
        let count = gates.masks.len();
        let hard = gates.bits == Gate::Hard;
        assert!(!hard || gates.masks.iter().all(|&m| m == 0.0 || m == 1.0), "hard bits need hard masks");
        let list = gates
            .masks
            .iter()
            .enumerate()
            .filter(|(_, m)| **m != 0.0)
            .map(|(index, &mask)| {
                let share = plane_share(index, count);
                let factor = if hard { plane_weight(index, count) as f32 } else { (f64::from(mask) * share) as f32 };
                LivePlane { index, factor, share }
            })
            .collect();
        let divisor = if hard { largest_code(count) as f32 } else { 1.0 };
        LivePlanes { list, divisor }
    }
}

/// Checked sizes and the fixed cutting of a layer.
#[derive(Clone, Copy)]
struct Shape {
    /// Weights, and how they share scales and are cut.
    runs: Runs,
    /// Planes.
    planes: usize,
}

impl Shape {
    fn of(gates: &Gates<'_>, n: usize) -> Self {
        let planes = gates.masks.len();
        assert!((1..=MAX_PLANES).contains(&planes), "1 to {MAX_PLANES} planes, not {planes}");
        Shape { runs: Runs::new(n, gates.scale.len(), CHUNK), planes }
    }

    fn check_logits(self, positive: usize, negative: usize) {
        assert!([positive, negative] == [self.planes * self.runs.n; 2], "one logit per weight and plane");
    }
}

#[cfg(test)]
mod tests;
