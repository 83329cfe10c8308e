//! LSQ: learned step size quantization of weights at a fixed width (Esser et al., ICLR 2020, arXiv 1902.08153).
//!
//! ```text
//! forward    ŵ = s · round(clamp(w/s, −q, q))                                  eq. 1-2
//! backward   ∂ŵ/∂w = 1 inside, 0 outside                                       eq. 5
//!            ∂ŵ/∂s = round(w/s) − w/s inside, ±q outside; times g = 1/√(n·q)   eq. 3, section 2.2
//! ```
//!
//! | symbol | field | default |
//! |---|---|---|
//! | w | `latent` | the float weights |
//! | s | `steps` | least squared error ([`Range::Mse`]); the paper starts at 2·mean abs(w)/√q |
//! | q | `q_max` = 2^(b−1) − 1 | symmetric, so that no code lacks its negative |
//! | n | elements that share a step | one step per output channel; the paper has one per layer |
//!
//! It is the uniform baseline that learned widths have to beat.

use bitsmith_graph::{Granularity, Grid, QParams};
use bitsmith_kernels::numerics::code_range;

use crate::blocks::bins::bin_penalty;
use crate::blocks::grid::{fake_quantize, fake_quantize_backward, lsq_grad_scale};
use crate::blocks::range::Range;
use crate::error::Error;
use crate::method::{Method, Part, WeightLayer};
use crate::options::options;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

options! {
    /// Options of `lsq`.
    pub struct LsqOptions {
        /// Stored bits of every weight, sign included: 2 to 8.
        pub weight_bits: u8 = 4,
        /// Stored bits of the first and last layer; 0 means the same as the others.
        pub edge_bits: u8 = 8,
        /// One step per output channel instead of one per layer.
        pub per_channel: bool = true,
    }
}

/// Fixed-width weights with learned steps.
#[derive(Debug)]
pub struct Lsq {
    options: LsqOptions,
}

impl Method for Lsq {
    const NAME: &'static str = "lsq";
    const SUMMARY: &'static str = "fixed-width weights with learned step sizes: the uniform baseline";
    type Options = LsqOptions;
    type Weight = LsqWeight;

    fn new(options: LsqOptions) -> Result<Self, Error> {
        check_bits("weight_bits", options.weight_bits)?;
        if options.edge_bits != 0 {
            check_bits("edge_bits", options.edge_bits)?;
        }
        Ok(Self { options })
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<LsqWeight, Error> {
        let is_edge = matches!(layer.part, Part::First | Part::Last);
        let bits = match self.options.edge_bits {
            edge if is_edge && edge != 0 => edge.max(self.options.weight_bits),
            _ => self.options.weight_bits,
        };
        let per = layer.granularity(self.options.per_channel);
        Ok(LsqWeight::new(bits, per, layer.rows(self.options.per_channel), init, Range::Mse))
    }
}

/// Refuses widths that a symmetric grid does not have.
pub fn check_bits(name: &str, bits: u8) -> Result<(), Error> {
    match bits {
        2..=8 => Ok(()),
        1 => Err(Error::option(format!("{name} = 1: a symmetric grid of one bit holds only zero; use at least 2"))),
        _ => Err(Error::option(format!("{name} = {bits}: a weight is stored in 2 to 8 bits"))),
    }
}

/// The quantizer of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct LsqWeight {
    bits: u8,
    q_max: i32,
    per: Granularity,
    rows: Rows,
    /// Latent float weights, in row order.
    latent: Param,
    /// One per row.
    steps: Param,
    /// Room for tensors whose rows are not contiguous.
    buffer: Vec<f32>,
}

impl LsqWeight {
    /// A quantizer of `bits` bits (0: all zero) around these float weights; `per` and `rows` must describe the same granularity.
    pub fn new(bits: u8, per: Granularity, rows: Rows, init: &[f32], range: Range) -> Self {
        let q_max = (1 << bits.saturating_sub(1)) - 1;
        let mut latent = vec![0.0; init.len()];
        rows.gather(init, &mut latent);
        let steps = latent.chunks(rows.row_len.max(1)).map(|row| range.symmetric_step(row, q_max)).collect();
        Self::resume(bits, per, rows, latent, steps)
    }

    /// A quantizer with these latent weights, in row order, and these steps.
    pub fn resume(bits: u8, per: Granularity, rows: Rows, latent: Vec<f32>, steps: Vec<f32>) -> Self {
        let q_max = if bits == 0 { 0 } else { code_range(bits, true, true).1 };
        let buffer = if rows.is_contiguous() { vec![] } else { vec![0.0; latent.len()] };
        let (latent, steps) = (Param::new("latent", Group::Weight, latent), Param::new("steps", Group::Scale, steps));
        Self { bits, q_max, per, rows, latent, steps, buffer }
    }

    /// Planes of the grid: its codes are −(2^planes − 1) ..= 2^planes − 1.
    pub fn planes(&self) -> usize {
        usize::from(self.bits.saturating_sub(1))
    }
}

impl Quantizer for LsqWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        if self.rows.is_contiguous() {
            fake_quantize(&self.latent.value, &self.steps.value, self.q_max, &self.rows, weights);
        } else {
            fake_quantize(&self.latent.value, &self.steps.value, self.q_max, &self.rows, &mut self.buffer);
            self.rows.scatter(&self.buffer, weights);
        }
    }

    fn backward(&mut self, grad: &[f32]) {
        let grad = if self.rows.is_contiguous() {
            grad
        } else {
            self.rows.gather(grad, &mut self.buffer);
            &self.buffer
        };
        fake_quantize_backward(
            &self.latent.value,
            &self.steps.value,
            self.q_max,
            &self.rows,
            grad,
            lsq_grad_scale(self.rows.row_len, self.q_max),
            &mut self.latent.grad,
            &mut self.steps.grad,
        );
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        self.rows.scatter(&self.latent.grad, grad);
        true
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.latent);
        f(&mut self.steps);
    }

    fn grid_steps(&self) -> Option<&[f32]> {
        (1..=127).contains(&self.q_max).then_some(self.steps.value.as_slice())
    }

    fn bin_penalty(&mut self, strength: f64) -> f64 {
        let Param { value, grad, .. } = &mut self.latent;
        bin_penalty(value, &self.steps.value, self.q_max, &self.rows, strength, grad)
    }

    fn bits(&self) -> f32 {
        f32::from(self.bits)
    }

    fn qparams(&self) -> Option<QParams> {
        let mut params = QParams::signed(self.bits, true, self.per, self.steps.value.clone());
        if self.bits == 0 {
            params.spec.grid = Grid::Planes { mask: 0 };
        }
        Some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_on_the_grid_whatever_the_layout() {
        let init: Vec<f32> = (0..24).map(|i| (i as f32 - 11.5) * 0.03).collect();
        for axis in [0, 1] {
            let shape = [4, 6];
            let per = Granularity::PerChannel { axis };
            let mut q = LsqWeight::new(3, per, Rows::along(axis, &shape), &init, Range::Mse);
            let mut w = vec![0.0; 24];
            q.forward(&mut w);
            let params = q.qparams().unwrap();
            params.check(shape[axis]).unwrap();
            bitsmith_graph::quant::for_each_channel(per, &shape, |i, c| {
                assert_eq!(params.decode(params.encode(w[i], c), c), w[i]);
                assert!((w[i] - init[i]).abs() <= params.scale[c] * 0.5 + 1e-6 || w[i].abs() >= params.scale[c] * 2.9);
            });
            q.backward(&[1.0; 24]);
            assert!(q.latent.grad.iter().all(|&g| g == 0.0 || g == 1.0));
        }
    }

    #[test]
    fn impossible_widths_are_refused() {
        for bits in [0, 1, 9, 40] {
            let error = Lsq::new(LsqOptions { weight_bits: bits, ..Default::default() }).unwrap_err().to_string();
            assert!(error.starts_with(&format!("weight_bits = {bits}")), "{error}");
        }
    }
}
