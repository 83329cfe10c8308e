//! The backward pass of the planes, writing gradients or applying the optimiser on the spot.
//!
//! Per tile: H = G·s once; then per live plane both sigmoids and their complements are recomputed and give R_b and the
//! gradients of both logits. With [`backward_sgd`] the two gradient tiles never leave the first cache.

use super::{Gate, Gates, LivePlane, LivePlanes, Logits, MAX_PLANES, Shape, hard_difference};
use crate::multiversion::multiversion;
use crate::runs::{TILE, sum_tile};
use crate::sigmoid::sigmoid_pair;
use crate::threads;
use std::ops::Range;

/// Where [`backward`] writes the gradients of the logits, `[N][n]`. Everything is overwritten.
#[derive(Debug)]
pub struct LogitGradients<'a> {
    /// ∂L/∂P.
    pub positive: &'a mut [f32],
    /// ∂L/∂Q.
    pub negative: &'a mut [f32],
}

/// Where the backward passes write the few gradients of the gates. Everything is overwritten.
#[derive(Debug)]
pub struct GateGradients<'a> {
    /// ∂L/∂m (gate values, not logits), `[N]`; 0 for a plane whose gate is exactly 0.
    pub masks: &'a mut [f32],
    /// ∂L/∂s, as many as scales.
    pub scale: &'a mut [f32],
}

/// SGD with momentum, as PyTorch defines it: `g += decay·x; v = momentum·v + g; x −= rate · v` (Nesterov:
/// `x −= rate · (g + momentum·v)`).
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// Learning rate.
    pub learning_rate: f32,
    /// Momentum; 0 for none.
    pub momentum: f32,
    /// L2 decay towards logit 0, that is, towards undecided bits.
    pub weight_decay: f32,
    /// Nesterov's look-ahead.
    pub nesterov: bool,
}

/// What [`backward_sgd`] updates in place: the logits and their momentum buffers, all `[N][n]`.
#[derive(Debug)]
pub struct TrainableLogits<'a> {
    /// P.
    pub positive: &'a mut [f32],
    /// Q.
    pub negative: &'a mut [f32],
    /// Momentum of P.
    pub velocity_positive: &'a mut [f32],
    /// Momentum of Q.
    pub velocity_negative: &'a mut [f32],
}

/// All gradients of one layer from `grad_w` = ∂L/∂W.
///
/// With hard bits the logits have gradient 0; those of scale and gates are still exact.
///
/// # Panics
/// If shapes disagree; see [`super::forward`].
pub fn backward(
    logits: &Logits<'_>,
    gates: &Gates<'_>,
    grad_w: &[f32],
    grad_logits: &mut LogitGradients<'_>,
    grad_gates: &mut GateGradients<'_>,
) {
    let shape = Shape::of(gates, grad_w.len());
    shape.check_logits(logits.positive.len(), logits.negative.len());
    shape.check_logits(grad_logits.positive.len(), grad_logits.negative.len());
    let live = LivePlanes::of(gates);
    let grad_p = split_planes(grad_logits.positive, shape);
    let grad_q = split_planes(grad_logits.negative, shape);
    let chunks = grad_p.into_iter().zip(grad_q).zip(grad_w.chunks(shape.runs.chunk)).enumerate().collect();
    let sums: Vec<Sums> = threads::map_jobs(chunks, |(chunk_idx, ((mut grad_p, mut grad_q), grad_w))| {
        for (plane, _) in gates.masks.iter().enumerate().filter(|(_, m)| **m == 0.0) {
            grad_p[plane].fill(0.0);
            grad_q[plane].fill(0.0);
        }
        let first = chunk_idx * shape.runs.chunk;
        run_chunk(shape, gates, &live, first, grad_w, |plane, tile, h, u| {
            let start = plane.index * shape.runs.n + first;
            let at = start + tile.start..start + tile.end;
            let (p, q) = (&logits.positive[at.clone()], &logits.negative[at]);
            let (grad_p, grad_q) = (&mut grad_p[plane.index][tile.clone()], &mut grad_q[plane.index][tile]);
            plane_tile(plane, gates, p, q, h, u, grad_p, grad_q)
        })
    });
    combine(&sums, shape, &live, grad_gates);
}

/// [`backward`] and the optimiser in one pass: the gradients of the logits are never written to memory.
///
/// A plane whose gate is exactly 0 (soft gates never are) is frozen: neither gradient, momentum nor decay touches it.
///
/// # Panics
/// If shapes disagree; see [`super::forward`].
pub fn backward_sgd(
    logits: &mut TrainableLogits<'_>,
    gates: &Gates<'_>,
    grad_w: &[f32],
    sgd: &Sgd,
    grad_gates: &mut GateGradients<'_>,
) {
    let shape = Shape::of(gates, grad_w.len());
    shape.check_logits(logits.positive.len(), logits.negative.len());
    shape.check_logits(logits.velocity_positive.len(), logits.velocity_negative.len());
    let live = LivePlanes::of(gates);
    let params = split_planes(logits.positive, shape).into_iter().zip(split_planes(logits.negative, shape));
    let velocities = split_planes(logits.velocity_positive, shape);
    let velocities = velocities.into_iter().zip(split_planes(logits.velocity_negative, shape));
    let chunks = params.zip(velocities).zip(grad_w.chunks(shape.runs.chunk)).enumerate().collect();
    let sums: Vec<Sums> = threads::map_jobs(chunks, |(chunk_idx, (((mut p, mut q), (mut v_p, mut v_q)), grad_w))| {
        let first = chunk_idx * shape.runs.chunk;
        let (mut grad_p, mut grad_q) = ([0.0; TILE], [0.0; TILE]);
        run_chunk(shape, gates, &live, first, grad_w, |plane, tile, h, u| {
            let (grad_p, grad_q) = (&mut grad_p[..h.len()], &mut grad_q[..h.len()]);
            let p = &mut p[plane.index][tile.clone()];
            let q = &mut q[plane.index][tile.clone()];
            let r = plane_tile(plane, gates, p, q, h, u, grad_p, grad_q);
            sgd_tile(grad_p, p, &mut v_p[plane.index][tile.clone()], sgd);
            sgd_tile(grad_q, q, &mut v_q[plane.index][tile], sgd);
            r
        })
    });
    combine(&sums, shape, &live, grad_gates);
}

/// Partial sums of one chunk, in double precision.
struct Sums {
    /// Σ H d per plane.
    planes: [f64; MAX_PLANES],
    /// Σ G u per row that the chunk touches.
    rows: Vec<f64>,
}

/// Runs `run_plane(plane, tile within the chunk, H, u) -> Σ H d` over tiles and live planes; it adds the plane to u.
fn run_chunk(
    shape: Shape,
    gates: &Gates<'_>,
    live: &LivePlanes,
    first: usize,
    grad_w: &[f32],
    mut run_plane: impl FnMut(&LivePlane, Range<usize>, &[f32], &mut [f32]) -> f64,
) -> Sums {
    let mut sums = Sums { planes: [0.0; MAX_PLANES], rows: vec![0.0; grad_w.len().div_ceil(shape.runs.row)] };
    let (mut h, mut u) = ([0.0; TILE], [0.0; TILE]);
    for (tile_idx, g) in grad_w.chunks(TILE).enumerate() {
        let start = tile_idx * TILE;
        let (h, u) = (&mut h[..g.len()], &mut u[..g.len()]);
        u.fill(0.0);
        for (row, range) in shape.runs.segments(first + start, g.len()) {
            scale_into(&g[range.clone()], gates.scale[row] / live.divisor, &mut h[range]);
        }
        for plane in &live.list {
            sums.planes[plane.index] += run_plane(plane, start..start + g.len(), h, u);
        }
        for (row, range) in shape.runs.segments(first + start, g.len()) {
            sums.rows[row - first / shape.runs.row] += dot(&g[range.clone()], &u[range]);
        }
    }
    sums
}

/// Adds the chunks' sums in chunk order and applies the constants they were taken without.
fn combine(sums: &[Sums], shape: Shape, live: &LivePlanes, grads: &mut GateGradients<'_>) {
    let channels = shape.runs.channels;
    assert!(grads.masks.len() == shape.planes && grads.scale.len() == channels, "one gradient per gate and per scale");
    grads.masks.fill(0.0);
    for plane in &live.list {
        let total: f64 = sums.iter().map(|s| s.planes[plane.index]).sum();
        grads.masks[plane.index] = (total * plane.share * f64::from(live.divisor)) as f32;
    }
    let divisor = f64::from(live.divisor);
    let rows = sums.iter().map(|s| s.rows.as_slice());
    shape.runs.combine(rows, |row, total| grads.scale[row] = (total / divisor) as f32);
}

/// One plane over one tile: adds the plane to `u`, writes both logit gradients, returns Σ H d.
#[allow(clippy::too_many_arguments)]
fn plane_tile(
    plane: &LivePlane,
    gates: &Gates<'_>,
    p: &[f32],
    q: &[f32],
    h: &[f32],
    u: &mut [f32],
    grad_p: &mut [f32],
    grad_q: &mut [f32],
) -> f64 {
    match gates.bits {
        Gate::Soft => soft_tile(p, q, h, gates.temperature, plane.factor, u, grad_p, grad_q),
        Gate::Hard => {
            grad_p.fill(0.0);
            grad_q.fill(0.0);
            hard_tile(p, q, h, plane.factor, u)
        }
    }
}

multiversion! {
    fn soft_tile(
        p: &[f32], q: &[f32], h: &[f32], temperature: f32, factor: f32, u: &mut [f32], grad_p: &mut [f32], grad_q: &mut [f32],
    ) -> f64 {
        let n = h.len();
        let (p, q, u) = (&p[..n], &q[..n], &mut u[..n]);
        let (grad_p, grad_q) = (&mut grad_p[..n], &mut grad_q[..n]);
        let slope = factor * temperature;
        let mut products = [0f32; TILE];
        let products = &mut products[..n];
        for i in 0..n {
            let pair = sigmoid_pair(temperature * p[i], temperature * q[i]);
            let d = pair.difference;
            let k = h[i] * slope;
            u[i] = d.mul_add(factor, u[i]);
            products[i] = h[i] * d;
            grad_p[i] = k * (pair.x.0 * pair.x.1);
            grad_q[i] = -(k * (pair.y.0 * pair.y.1));
        }
        sum_tile(products)
    }
}

multiversion! {
    fn hard_tile(p: &[f32], q: &[f32], h: &[f32], factor: f32, u: &mut [f32]) -> f64 {
        let n = h.len();
        let (p, q, u) = (&p[..n], &q[..n], &mut u[..n]);
        let mut products = [0f32; TILE];
        let products = &mut products[..n];
        for i in 0..n {
            let d = hard_difference(p[i], q[i]);
            u[i] += factor * d;
            products[i] = h[i] * d;
        }
        sum_tile(products)
    }
}

multiversion! {
    fn scale_into(g: &[f32], scale: f32, h: &mut [f32]) {
        for (h, &g) in h.iter_mut().zip(g) {
            *h = g * scale;
        }
    }
}

multiversion! {
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut products = [0f32; TILE];
        let products = &mut products[..a.len()];
        let b = &b[..a.len()];
        for i in 0..a.len() {
            products[i] = a[i] * b[i];
        }
        sum_tile(products)
    }
}

multiversion! {
    /// The optimiser over one tile.
    fn sgd_tile(grad: &[f32], x: &mut [f32], velocity: &mut [f32], sgd: &Sgd) {
        let n = grad.len();
        let (x, velocity) = (&mut x[..n], &mut velocity[..n]);
        let Sgd { learning_rate, momentum, weight_decay, nesterov } = *sgd;
        // x −= rate · (a·v + b·g) covers both kinds without a branch in the loop.
        let (a, b) = if nesterov { (momentum, 1.0) } else { (1.0, 0.0) };
        for i in 0..n {
            let g = grad[i] + weight_decay * x[i];
            velocity[i] = momentum * velocity[i] + g;
            x[i] -= learning_rate * (a * velocity[i] + b * g);
        }
    }
}

/// Cuts a plane-major `[N][n]` buffer into chunks of all planes: `[chunk][plane]`.
fn split_planes(x: &mut [f32], shape: Shape) -> Vec<Vec<&mut [f32]>> {
    let mut chunks: Vec<Vec<&mut [f32]>> =
        (0..shape.runs.n.div_ceil(shape.runs.chunk)).map(|_| Vec::with_capacity(shape.planes)).collect();
    for plane in x.chunks_mut(shape.runs.n.max(1)) {
        for (chunk, part) in chunks.iter_mut().zip(plane.chunks_mut(shape.runs.chunk)) {
            chunk.push(part);
        }
    }
    chunks
}
