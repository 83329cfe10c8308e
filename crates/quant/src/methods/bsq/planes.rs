//! A tensor of BSQ: bit planes that are real numbers, rounded in every forward pass.

use bitsmith_graph::{Granularity, Grid, QParams};

use crate::blocks::grid::SMALLEST_STEP;
use crate::blocks::range::Range;
use crate::blocks::searched::Search;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

/// Largest value of a plane.
const MOST: f32 = 2.0;

/// The quantizer of one tensor in search of its width.
#[derive(Debug, Clone)]
pub struct BsqPlanes {
    per: Granularity,
    rows: Rows,
    /// P and Q, `[planes][weights]`, weights in row order, plane 0 the most significant.
    pub(super) positive: Param,
    pub(super) negative: Param,
    /// s: the value of a weight whose bits are all on. One per row.
    pub(super) scale: Param,
    planes: usize,
    /// Most planes.
    most: usize,
    /// Whether planes are neither added nor removed.
    pub(super) given: bool,
    /// v, the unrounded weight over its scale, and the codes of the last forward pass.
    value: Vec<f32>,
    codes: Vec<i32>,
    buffer: Vec<f32>,
}

impl BsqPlanes {
    /// Planes that hold the rounding of `init` to `planes` bits and a sign.
    pub fn new(per: Granularity, rows: Rows, init: &[f32], planes: usize, most: usize, given: bool) -> Self {
        let n = init.len();
        let mut x = vec![0.0; n];
        rows.gather(init, &mut x);
        let q = ((1i32 << planes) - 1).max(1);
        let steps: Vec<f32> = x.chunks(rows.row_len.max(1)).map(|row| Range::MinMax.symmetric_step(row, q)).collect();
        let row = rows.row_len.max(1);
        let codes = x
            .iter()
            .enumerate()
            .map(|(i, &x)| bitsmith_kernels::numerics::quantize(x, steps[i / row], 0, -q, q))
            .collect();
        let mut this = Self {
            per,
            positive: Param::new("positive", Group::Bit, vec![]),
            negative: Param::new("negative", Group::Bit, vec![]),
            scale: Param::new("scale", Group::Scale, vec![]),
            planes,
            most: most.max(planes),
            given,
            value: vec![0.0; n],
            codes,
            buffer: vec![0.0; n],
            rows,
        };
        this.write_planes(&steps);
        this
    }

    /// Largest code.
    fn q(&self) -> i32 {
        (1 << self.planes) - 1
    }

    /// e_b: what a plane is worth, as a share of the scale.
    fn worth(&self, plane: usize) -> f32 {
        (1u32 << (self.planes - 1 - plane)) as f32 / self.q() as f32
    }

    /// Number of weights.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bits of the whole tensor, signs not counted.
    pub fn weighs(&self) -> usize {
        self.planes * self.rows.len()
    }

    /// Rebuilds the planes as the exact bits of `codes`, over these steps. Momentum is lost, as in the published code.
    fn write_planes(&mut self, steps: &[f32]) {
        let (n, planes) = (self.rows.len(), self.planes);
        let bits = |side: i32, codes: &[i32]| -> Vec<f32> {
            let bit = |b: usize| {
                codes.iter().map(move |&z| {
                    let on = z.signum() == side && z.unsigned_abs() >> (planes - 1 - b) & 1 == 1;
                    f32::from(u8::from(on))
                })
            };
            (0..planes).flat_map(bit).collect()
        };
        let rate = self.positive.rate.clone();
        let with_rate = |param: Param| Param { rate: rate.clone(), ..param };
        self.positive = with_rate(Param::new("positive", Group::Bit, bits(1, &self.codes)));
        self.negative = with_rate(Param::new("negative", Group::Bit, bits(-1, &self.codes)));
        let q = self.q() as f32;
        self.scale = Param::new("scale", Group::Scale, steps.iter().map(|s| s * q).collect());
        debug_assert_eq!(self.positive.value.len(), n * planes);
    }

    /// Steps of the finest plane.
    fn steps(&self) -> Vec<f32> {
        let q = self.q() as f32;
        self.scale.value.iter().map(|s| s / q).collect()
    }

    /// v = Σ_b e_b (P_b − Q_b), unclipped.
    fn update_value(&mut self) {
        let n = self.rows.len();
        self.value.fill(0.0);
        for b in 0..self.planes {
            let worth = self.worth(b);
            let at = b * n..(b + 1) * n;
            let planes = self.positive.value[at.clone()].iter().zip(&self.negative.value[at]);
            for (v, (p, q)) in self.value.iter_mut().zip(planes) {
                *v += worth * (p - q);
            }
        }
    }

    /// Adds `strength` times the gradient of Σ_b ‖planes b of both signs‖ and returns `strength` times the sum.
    pub fn lasso(&mut self, strength: f64) -> f64 {
        let n = self.rows.len();
        let mut value = 0.0;
        for b in 0..self.planes {
            let at = b * n..(b + 1) * n;
            let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let norm =
                (1e-8 + square(&self.positive.value[at.clone()]) + square(&self.negative.value[at.clone()])).sqrt();
            value += norm;
            let factor = (strength / norm) as f32;
            for side in [&mut self.positive, &mut self.negative] {
                let (values, grads) = (&side.value[at.clone()], &mut side.grad[at.clone()]);
                grads.iter_mut().zip(values).for_each(|(g, x)| *g += factor * x);
            }
        }
        strength * value
    }

    /// Keeps planes in their range, and scales positive.
    pub fn clamp(&mut self) {
        for side in [&mut self.positive, &mut self.negative] {
            side.value.iter_mut().for_each(|x| *x = x.clamp(0.0, MOST));
        }
        let q = self.q() as f32;
        self.scale.value.iter_mut().for_each(|s| *s = s.max(SMALLEST_STEP * q));
    }

    /// What a step of learning rate 1 must be multiplied by so that the weight moves as far as a float weight would: the sum
    /// over planes of (s · e_b)², both signs.
    pub fn reach(&self) -> f64 {
        let scale = self.scale.value.iter().map(|s| f64::from(*s)).sum::<f64>() / self.scale.value.len().max(1) as f64;
        (0..self.planes).map(|b| 2.0 * (scale * f64::from(self.worth(b))).powi(2)).sum()
    }

    /// Re-quantization: planes become exact bits again, one more of them where values overflow, and planes that no weight uses
    /// go, from the top and from the bottom. Weights stay what they are but for those the forward pass had clipped. Returns
    /// whether the number of planes changed.
    pub fn adjust(&mut self) -> bool {
        self.update_value();
        let before = self.planes;
        let q = self.q() as f32;
        let codes = |value: &[f32], most: i32| -> Vec<i32> {
            value.iter().map(|v| ((v * q).round_ties_even() as i32).clamp(-most, most)).collect()
        };
        let mut steps = self.steps();
        let may_grow = self.planes < self.most && !self.given;
        self.codes = codes(&self.value, if may_grow { 2 * self.q() + 1 } else { self.q() });
        let used = self.codes.iter().fold(0u32, |used, z| used | z.unsigned_abs());
        if used > self.q() as u32 {
            self.planes += 1;
        }
        if !self.given {
            let top = (32 - used.leading_zeros()) as usize;
            self.planes = self.planes.min(top.max(1));
            let low = if used == 0 { 0 } else { (used.trailing_zeros() as usize).min(self.planes - 1) };
            self.planes -= low;
            self.codes.iter_mut().for_each(|z| *z /= 1 << low);
            steps.iter_mut().for_each(|s| *s *= (1u32 << low) as f32);
        }
        self.write_planes(&steps);
        self.planes != before
    }

    /// Whether no weight is left.
    fn is_zero(&self) -> bool {
        self.codes.iter().all(|z| *z == 0)
    }
}

impl Quantizer for BsqPlanes {
    fn forward(&mut self, weights: &mut [f32]) {
        self.update_value();
        let (q, row) = (self.q() as f32, self.rows.row_len.max(1));
        let steps = self.steps();
        for (i, (v, code)) in self.value.iter().zip(&mut self.codes).enumerate() {
            // Not the rounding of a float weight: v is in units of the scale already.
            *code = (v.clamp(-1.0, 1.0) * q).round_ties_even() as i32;
            self.buffer[i] = steps[i / row] * *code as f32;
        }
        self.rows.scatter(&self.buffer, weights);
    }

    fn backward(&mut self, grad: &[f32]) {
        self.rows.gather(grad, &mut self.buffer);
        let (n, row, q) = (self.rows.len(), self.rows.row_len.max(1), self.q() as f32);
        for (r, sum) in self.scale.grad.iter_mut().enumerate() {
            let at = r * row..(r + 1) * row;
            let products = self.buffer[at.clone()].iter().zip(&self.codes[at]).map(|(g, z)| f64::from(g * *z as f32));
            *sum += (products.sum::<f64>() / f64::from(q)) as f32;
        }
        // Straight through rounding and clipping alike: ∂W/∂v = s.
        for (g, &s) in self.buffer.chunks_mut(row).zip(&self.scale.value) {
            g.iter_mut().for_each(|g| *g *= s);
        }
        for b in 0..self.planes {
            let worth = self.worth(b);
            let at = b * n..(b + 1) * n;
            let sides = self.positive.grad[at.clone()].iter_mut().zip(&mut self.negative.grad[at]);
            for ((p, m), g) in sides.zip(&self.buffer) {
                *p += worth * g;
                *m -= worth * g;
            }
        }
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.positive);
        f(&mut self.negative);
        f(&mut self.scale);
    }

    fn bits(&self) -> f32 {
        self.planes as f32
    }

    fn qparams(&self) -> Option<QParams> {
        let zero = self.is_zero();
        let bits = if zero { 0 } else { self.planes as u8 + 1 };
        let mut params = QParams::signed(bits, true, self.per, self.steps());
        if zero {
            params.spec.grid = Grid::Planes { mask: 0 };
        }
        Some(params)
    }
}

impl Search for BsqPlanes {
    fn target(&mut self) -> Vec<f32> {
        self.update_value();
        let row = self.rows.row_len.max(1);
        self.value.iter().enumerate().map(|(i, v)| v.clamp(-1.0, 1.0) * self.scale.value[i / row]).collect()
    }

    fn planes(&self) -> usize {
        if self.is_zero() { 0 } else { self.planes }
    }

    fn state(&self) -> usize {
        self.planes
    }

    fn restore(&mut self, state: usize) {
        self.planes = state.clamp(1, self.most);
        // The values follow from the checkpoint; codes are made anew by the next forward pass.
        let steps = vec![1.0; self.scale.value.len()];
        self.write_planes(&steps);
    }
}
