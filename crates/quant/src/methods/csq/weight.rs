//! The quantizer of CSQ: bit planes behind soft gates.
//!
//! A tensor passes through three stages. While the scheme is *searched*, all planes exist and gates decide how much of each is
//! let through. Once the scheme is *frozen*, only the planes that stay exist (`k` of them, contiguous, over a refitted scale) and
//! their bits alone are soft. Once *hard*, every bit is 0 or 1 and only the scale may still learn.

use bitsmith_graph::{Granularity, Grid, QParams, QuantSpec};
use bitsmith_kernels::planes::{
    self, Gate, GateGradients, Gates, LogitGradients, Logits, hard_codes, init_logits, mask_logit_gradient,
    mask_values, nearest_on_planes,
};

use crate::blocks::fit::{Fit, best_steps};
use crate::blocks::grid::SMALLEST_STEP;
use crate::blocks::range::Range;
use crate::blocks::searched::code_bits;
use crate::error::{Error, Kind};
use crate::methods::lsq::LsqWeight;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

/// How far a weight may be from the middle of its code, in steps, and still surely round to it.
const WITHIN: f32 = 0.45;

/// How far the bits of a tensor are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Gates and bits are soft.
    Search,
    /// Gates are decided, bits are soft.
    Frozen,
    /// Everything is decided.
    Hard,
}

/// The quantizer of one tensor.
#[derive(Debug, Clone)]
pub struct CsqWeight {
    per: Granularity,
    rows: Rows,
    pub(super) stage: Stage,
    /// P and Q, `[planes][weights]`, weights in row order, plane 0 the most significant.
    pub(super) positive: Param,
    pub(super) negative: Param,
    /// M, one per plane.
    pub(super) masks: Param,
    /// s: the value of a weight whose bits are all on. One per row.
    pub(super) scale: Param,
    /// β of the bits and of the gates.
    pub(super) temperature: f32,
    /// Planes that may not be closed.
    pub(super) floor: usize,
    /// Whether gates stay as they are (edge layers whose width is given).
    pub(super) gates_fixed: bool,
    /// Whether [`Quantizer::forward`] shows what would be deployed now.
    pub(super) show_hard: bool,
    /// What trains once bits are decided, where weights learn on.
    loose: Option<LsqWeight>,
    /// Weights to show instead, in row order, while a trial asks what a narrower grid would cost.
    preview: Option<Vec<f32>>,
    /// Gate values of the last forward pass.
    gates: Vec<f32>,
    buffer: Vec<f32>,
}

/// How logits start: the values for a bit that is set and one that is not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Start {
    /// Planes per tensor.
    pub planes: usize,
    /// Logit of a bit that is on.
    pub on: f32,
    /// Logit of a bit that is off.
    pub off: f32,
    /// Logit of every gate.
    pub mask: f32,
    /// Temperature at the start.
    pub temperature: f32,
}

impl CsqWeight {
    /// Planes that hold the rounding of `init` to `start.planes` bits.
    pub fn new(per: Granularity, rows: Rows, init: &[f32], start: Start, range: Range) -> Self {
        let n = init.len();
        let mut x = vec![0.0; n];
        rows.gather(init, &mut x);
        let q = (1 << start.planes) - 1;
        let scale: Vec<f32> =
            x.chunks(rows.row_len.max(1)).map(|row| range.symmetric_step(row, q) * q as f32).collect();
        let (mut positive, mut negative) = (vec![0.0; start.planes * n], vec![0.0; start.planes * n]);
        init_logits(&x, &scale, start.planes, (start.on, start.off), &mut positive, &mut negative);
        Self {
            per,
            rows,
            stage: Stage::Search,
            positive: Param::new("positive", Group::Bit, positive),
            negative: Param::new("negative", Group::Bit, negative),
            masks: Param::new("masks", Group::Gate, vec![start.mask; start.planes]),
            scale: Param::new("scale", Group::Scale, scale),
            temperature: start.temperature,
            floor: 0,
            gates_fixed: false,
            show_hard: false,
            loose: None,
            preview: None,
            gates: vec![0.0; start.planes],
            buffer: vec![0.0; n],
        }
    }

    /// Number of planes that exist, on or off.
    pub fn planes(&self) -> usize {
        self.loose.as_ref().map_or(self.masks.value.len(), LsqWeight::planes)
    }

    /// Number of planes whose gate is more than half open.
    pub fn planes_on(&self) -> usize {
        match self.stage {
            Stage::Search => self.masks.value.iter().filter(|m| **m > 0.0).count(),
            _ => self.planes(),
        }
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The value of one step of the finest plane, averaged over rows.
    pub fn mean_step(&self) -> f32 {
        let q = ((1u32 << self.planes()) - 1).max(1) as f32;
        self.scale.value.iter().sum::<f32>() / self.scale.value.len().max(1) as f32 / q
    }

    /// Share of logits that are not yet within 10⁻³ of a bit (β·|x| < 6.91).
    pub fn undecided(&self) -> f64 {
        let logits = self.positive.value.iter().chain(&self.negative.value);
        let open = logits.filter(|x| (**x * self.temperature).abs() < 6.91).count();
        open as f64 / (2 * self.positive.value.len()).max(1) as f64
    }

    fn bits_gate(&self) -> Gate {
        if self.show_hard || self.stage == Stage::Hard { Gate::Hard } else { Gate::Soft }
    }

    fn update_gates(&mut self) {
        if self.stage == Stage::Search {
            let hard = self.show_hard || self.gates_fixed;
            let gate = if hard { Gate::Hard } else { Gate::Soft };
            mask_values(&self.masks.value, self.temperature, gate, &mut self.gates);
        } else {
            self.gates.resize(self.planes(), 1.0);
            self.gates.fill(1.0);
        }
    }

    /// Current weights in row order.
    fn weights_in_rows(&mut self, out: &mut [f32]) {
        if let Some(preview) = &self.preview {
            out.copy_from_slice(preview);
            return;
        }
        if self.planes() == 0 {
            out.fill(0.0);
            return;
        }
        self.update_gates();
        let logits = Logits { positive: &self.positive.value, negative: &self.negative.value };
        let gates = Gates {
            masks: &self.gates,
            scale: &self.scale.value,
            temperature: self.temperature,
            bits: self.bits_gate(),
        };
        planes::forward(&logits, &gates, out);
    }

    /// The weights that training shows now, in row order: what a refit aims at.
    pub(super) fn soft_weights(&mut self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        let shown = std::mem::replace(&mut self.show_hard, false);
        self.weights_in_rows(&mut out);
        self.show_hard = shown;
        out
    }

    /// Freezes the scheme at `k` contiguous planes that represent `target` (in row order): steps are refitted, and each
    /// logit's distance from zero says how far the weight is from the nearest value at which that bit would flip, so
    /// that soft bits keep what hard bits lose. `unit` is the logit of a weight half a step away from flipping.
    pub(super) fn refit(&mut self, target: &[f32], k: usize, unit: f32, temperature: f32, range: Range) {
        let n = self.len();
        let q = (1i32 << k) - 1;
        let steps = best_steps(target, &self.rows, k.max(1), range);
        let (mut positive, mut negative) = (vec![0.0; k * n], vec![0.0; k * n]);
        for (i, &w) in target.iter().enumerate() {
            let z = w / steps[i / self.rows.row_len.max(1)];
            for b in 0..k {
                let (same, other) = margins(z.abs(), k, b);
                let (p, q) = if z > 0.0 { (same, other) } else { (other, same) };
                positive[b * n + i] = unit * (2.0 * p).clamp(-2.0, 2.0);
                negative[b * n + i] = unit * (2.0 * q).clamp(-2.0, 2.0);
            }
        }
        self.stage = Stage::Frozen;
        self.temperature = temperature;
        self.positive = Param::new("positive", Group::Bit, positive);
        self.negative = Param::new("negative", Group::Bit, negative);
        self.masks = Param { frozen: true, ..Param::new("masks", Group::Gate, vec![1.0; k]) };
        self.scale = Param::new("scale", Group::Scale, steps.iter().map(|s| s * q.max(1) as f32).collect());
        self.scale.frozen = k == 0;
        self.gates = vec![1.0; k];
    }

    /// Keeps the planes whose gates are on, where they are (positions need not be contiguous), and starts the bits' second
    /// life from their present values.
    pub(super) fn freeze_in_place(&mut self, temperature: f32) {
        for m in &mut self.masks.value {
            *m = if *m > 0.0 { 1.0 } else { -1.0 };
        }
        self.gates_fixed = true;
        self.masks.frozen = true;
        self.temperature = temperature;
    }

    /// Decides every bit. The codes are projected to the planes that are on (a digit −1 below a digit +1 may need a
    /// position that is off), and planes that no weight uses are dropped. Returns whether any weight moved.
    pub(super) fn harden(&mut self) -> Result<bool, Error> {
        let (n, planes) = (self.len(), self.planes());
        if planes == 0 || self.stage == Stage::Hard {
            self.stage = Stage::Hard;
            return Ok(false);
        }
        self.show_hard = true;
        self.update_gates();
        self.show_hard = false;
        let mask = self.gates.iter().fold(0u8, |mask, m| mask << 1 | u8::from(*m > 0.0));
        let mut codes = vec![0i16; n];
        let logits = Logits { positive: &self.positive.value, negative: &self.negative.value };
        hard_codes(&logits, &self.gates, &mut codes);
        let mut moved = false;
        let mut used = 0u8;
        for z in &mut codes {
            let nearest = nearest_on_planes(i32::from(*z), mask);
            moved |= nearest != i32::from(*z);
            *z = i16::try_from(nearest).unwrap_or(0);
            used |= u8::try_from(nearest.unsigned_abs()).unwrap_or(0);
        }
        let low = if used == 0 { 0 } else { used.trailing_zeros() };
        let k = (8 - (used >> low).leading_zeros()) as usize;
        if k > 7 {
            return Err(Error::new(
                Kind::Option,
                "8 magnitude planes and a sign are 9 bits, which no file stores: use at most 7 planes".to_owned(),
            ));
        }
        // From the scale of all planes to that of the ones that stay: both steps are exact powers of two apart.
        let old_q = ((1u32 << planes) - 1) as f32;
        let steps: Vec<f32> = self.scale.value.iter().map(|s| s / old_q * (1u32 << low) as f32).collect();
        self.set_codes(&codes.iter().map(|z| i32::from(*z) >> low).collect::<Vec<_>>(), used >> low, k, steps);
        Ok(moved)
    }

    /// Rebuilds the tensor from codes over `k` planes of which those in `mask` are on. Scales become the steps
    /// themselves, so that weights are exactly step · code.
    fn set_codes(&mut self, codes: &[i32], mask: u8, k: usize, steps: Vec<f32>) {
        let n = codes.len();
        let (mut positive, mut negative) = (vec![-1.0; k * n], vec![-1.0; k * n]);
        for (i, &z) in codes.iter().enumerate() {
            let side = if z > 0 { &mut positive } else { &mut negative };
            for b in (0..k).filter(|b| z.unsigned_abs() >> (k - 1 - b) & 1 == 1) {
                side[b * n + i] = 1.0;
            }
        }
        let gates: Vec<f32> = (0..k).map(|b| if mask >> (k - 1 - b) & 1 == 1 { 1.0 } else { -1.0 }).collect();
        let fixed = |param: Param| Param { frozen: true, ..param };
        self.positive = fixed(Param::new("positive", Group::Bit, positive));
        self.negative = fixed(Param::new("negative", Group::Bit, negative));
        self.masks = fixed(Param::new("masks", Group::Gate, gates));
        self.scale = Param::new("scale", Group::Scale, steps);
        self.scale.frozen = k == 0;
        self.gates = vec![1.0; k];
        self.stage = Stage::Hard;
    }

    /// Lets the weights of a hard tensor learn on, straight through their rounding: each starts where it was before it was
    /// decided (`soft`, in row order), but within the reach of its code.
    pub(super) fn loosen(&mut self, soft: &[f32]) {
        let row = self.rows.row_len.max(1);
        let codes = self.codes();
        let near = |i: usize| {
            let step = self.scale.value[i / row];
            step * (codes[i] as f32 + (soft[i] / step - codes[i] as f32).clamp(-WITHIN, WITHIN))
        };
        let latent: Vec<f32> = (0..soft.len()).map(near).collect();
        let bits = code_bits(self.planes());
        self.hold(LsqWeight::resume(bits, self.per, self.rows.clone(), latent, self.scale.value.clone()));
    }

    /// Gives up the bits: from now on weights learn straight through their rounding to `k` planes, starting at `target` in row
    /// order.
    pub(super) fn retrain(&mut self, target: &[f32], k: usize) {
        self.resize(Stage::Hard, k);
        let mut init = vec![0.0; target.len()];
        self.rows.scatter(target, &mut init);
        self.hold(LsqWeight::new(code_bits(k), self.per, self.rows.clone(), &init, Range::Mse));
    }

    fn hold(&mut self, weights: LsqWeight) {
        self.loose = Some(weights);
        (self.positive, self.negative) =
            (Param::new("positive", Group::Bit, vec![]), Param::new("negative", Group::Bit, vec![]));
    }

    /// The integer codes of a hard tensor in row order.
    fn codes(&self) -> Vec<i32> {
        let (n, k) = (self.len(), self.planes());
        let mut codes = vec![0i32; n];
        for b in 0..k {
            let weight = 1 << (k - 1 - b);
            let at = b * n..(b + 1) * n;
            for ((z, p), q) in codes.iter_mut().zip(&self.positive.value[at.clone()]).zip(&self.negative.value[at]) {
                *z += weight * (i32::from(*p > 0.0) - i32::from(*q > 0.0));
            }
        }
        codes
    }

    /// Makes room for a state with this many planes, so that a checkpoint's values can be read into it.
    pub(super) fn resize(&mut self, stage: Stage, planes: usize) {
        let n = self.len();
        let rows = self.scale.value.len();
        let frozen = stage == Stage::Hard;
        self.stage = stage;
        if stage != Stage::Search || planes != self.planes() {
            self.positive = Param { frozen, ..Param::new("positive", Group::Bit, vec![0.0; planes * n]) };
            self.negative = Param { frozen, ..Param::new("negative", Group::Bit, vec![0.0; planes * n]) };
            self.masks = Param { frozen: true, ..Param::new("masks", Group::Gate, vec![0.0; planes]) };
            self.scale = Param { frozen: planes == 0, ..Param::new("scale", Group::Scale, vec![1.0; rows]) };
        }
        self.gates = vec![1.0; planes];
    }

    /// Scales must stay positive for the grid to exist.
    pub(super) fn keep_scale_positive(&mut self) {
        let q = ((1u32 << self.planes()) - 1).max(1) as f32;
        self.scale.value.iter_mut().for_each(|s| *s = s.max(SMALLEST_STEP * q));
    }
}

impl Fit for CsqWeight {
    fn floor(&self) -> usize {
        self.floor
    }

    fn is_given(&self) -> bool {
        self.gates_fixed
    }

    fn rows(&self) -> &Rows {
        &self.rows
    }

    fn show(&mut self, weights: Option<Vec<f32>>) {
        self.preview = weights;
    }
}

/// For a magnitude `z` in steps: the signed distance to the nearest value at which bit `b` (of `k`, 0 the most significant)
/// of its rounding would flip, positive while the bit is on; and the same for the planes of the other sign, which are off
/// and would flip on beyond zero.
fn margins(z: f32, k: usize, b: usize) -> (f32, f32) {
    let weight = (1u32 << (k - 1 - b)) as f32;
    let largest = ((1u32 << k) - 1) as f32;
    let other = -(weight - 0.5 + z);
    // Codes saturate: beyond the last rounding boundary nothing flips any more, whatever the distance.
    if z > largest - 0.5 {
        return (z - (largest - 0.5) + if k > 1 { 0.5 } else { 0.0 }, other);
    }
    // Bit b is on while round(z) mod 2·weight >= weight.
    let at = (z + 0.5).rem_euclid(2.0 * weight);
    let below = z + 0.5 < weight;
    let same = if at >= weight {
        (at - weight).min(2.0 * weight - at)
    } else if below {
        at - weight
    } else {
        -(weight - at).min(at)
    };
    (same, other)
}

impl Quantizer for CsqWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        if let Some(loose) = self.loose.as_mut().filter(|_| self.preview.is_none()) {
            loose.forward(weights);
        } else if self.stage == Stage::Hard && self.preview.is_none() {
            // One multiplication of code and step: exactly what decoding the file will do.
            let codes = self.codes();
            let row = self.rows.row_len.max(1);
            for (i, (out, code)) in self.buffer.iter_mut().zip(codes).enumerate() {
                *out = self.scale.value[i / row] * code as f32;
            }
            self.rows.scatter(&self.buffer, weights);
        } else if self.rows.is_contiguous() {
            self.weights_in_rows(weights);
        } else {
            let mut buffer = std::mem::take(&mut self.buffer);
            self.weights_in_rows(&mut buffer);
            self.rows.scatter(&buffer, weights);
            self.buffer = buffer;
        }
    }

    fn backward(&mut self, grad: &[f32]) {
        let planes = self.planes();
        if planes == 0 || self.preview.is_some() {
            return;
        }
        if let Some(loose) = &mut self.loose {
            loose.backward(grad);
            return;
        }
        self.rows.gather(grad, &mut self.buffer);
        if self.stage == Stage::Hard {
            let codes = self.codes();
            let row = self.rows.row_len.max(1);
            for ((g, codes), sum) in self.buffer.chunks(row).zip(codes.chunks(row)).zip(&mut self.scale.grad) {
                *sum += g.iter().zip(codes).map(|(g, z)| f64::from(g * *z as f32)).sum::<f64>() as f32;
            }
            return;
        }
        let logits = Logits { positive: &self.positive.value, negative: &self.negative.value };
        let gates =
            Gates { masks: &self.gates, scale: &self.scale.value, temperature: self.temperature, bits: Gate::Soft };
        let mut grad_masks = vec![0.0; planes];
        let mut grad_scale = vec![0.0; self.scale.value.len()];
        planes::backward(
            &logits,
            &gates,
            &self.buffer,
            &mut LogitGradients { positive: &mut self.positive.grad, negative: &mut self.negative.grad },
            &mut GateGradients { masks: &mut grad_masks, scale: &mut grad_scale },
        );
        self.scale.grad.iter_mut().zip(&grad_scale).for_each(|(sum, g)| *sum += g);
        if self.stage == Stage::Search && !self.gates_fixed {
            let mut grad_logits = vec![0.0; planes];
            mask_logit_gradient(&self.masks.value, &grad_masks, 0.0, self.temperature, Gate::Soft, &mut grad_logits);
            self.masks.grad.iter_mut().zip(&grad_logits).for_each(|(sum, g)| *sum += g);
        }
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        self.loose.as_ref().is_some_and(|loose| loose.latent_gradient(grad))
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        if let Some(loose) = &mut self.loose {
            return loose.visit(f);
        }
        f(&mut self.positive);
        f(&mut self.negative);
        f(&mut self.masks);
        f(&mut self.scale);
    }

    fn grid_steps(&self) -> Option<&[f32]> {
        self.loose.as_ref().filter(|_| self.preview.is_none())?.grid_steps()
    }

    fn bin_penalty(&mut self, strength: f64) -> f64 {
        self.loose.as_mut().map_or(0.0, |loose| loose.bin_penalty(strength))
    }

    fn bits(&self) -> f32 {
        if self.loose.is_some() {
            return self.planes() as f32;
        }
        self.masks.value.iter().filter(|m| **m > 0.0).count() as f32
    }

    fn qparams(&self) -> Option<QParams> {
        if let Some(loose) = &self.loose {
            return loose.qparams();
        }
        let mask = self.masks.value.iter().fold(0u8, |mask, m| mask << 1 | u8::from(*m > 0.0));
        let bits = if mask == 0 { 0 } else { mask.count_ones() as u8 + 1 };
        let spec = QuantSpec { grid: Grid::Planes { mask }, bits, per: self.per };
        Some(QParams { spec, scale: self.scale.value.clone(), zero_point: vec![], levels: vec![], rows: vec![] })
    }
}
