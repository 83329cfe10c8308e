//! DoReFa: fixed-width weights on a grid without zero, after a squashing (Zhou et al., 2016, arXiv 1606.06160).
//!
//! ```text
//! t = tanh(w) / (2 max|tanh w|) + ½,   k = round(t · (2^b − 1)),   ŵ = s · (2k / (2^b − 1) − 1)          eq. 9
//! backward   ∂ŵ/∂w = s · (1 − tanh² w) / max|tanh w|, the maximum and the rounding taken as constant and straight through
//!            ∂ŵ/∂s = ŵ / s
//! ```
//!
//! | symbol | field | default |
//! |---|---|---|
//! | b | `weight_bits` | 4; 1 is binary, {−s, s} |
//! | s | `scale` | least squares, then learned |
//! | max | over the layer, as published | |
//!
//! The paper has s = 1 and leaves scale to batch normalisation (for one bit s = mean abs(w)); here it is learned, one for each
//! output channel, so that a trained network can be the start. The levels 2k − (2^b − 1) are odd integers, a codebook in the
//! file, and integers at run time.

use bitsmith_graph::{Granularity, Grid, QParams, QuantSpec};
use bitsmith_kernels::numerics::quantize;

use crate::blocks::grid::SMALLEST_STEP;
use crate::error::Error;
use crate::method::{Method, Part, Slot, WeightLayer};
use crate::options::options;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

options! {
    /// Options of `dorefa`.
    pub struct DorefaOptions {
        /// Bits of every weight, 1 to 8.
        pub weight_bits: u8 = 4,
        /// Bits of the first and last layer; 0 means the same as the others.
        pub edge_bits: u8 = 8,
        /// One scale per output channel instead of one per layer.
        pub per_channel: bool = true,
    }
}

/// The method.
#[derive(Debug)]
pub struct Dorefa {
    options: DorefaOptions,
}

impl Method for Dorefa {
    const NAME: &'static str = "dorefa";
    const SUMMARY: &'static str = "fixed-width weights, squashed by tanh, on a grid without zero";
    type Options = DorefaOptions;
    type Weight = DorefaWeight;

    fn new(options: DorefaOptions) -> Result<Self, Error> {
        if !(1..=8).contains(&options.weight_bits) || options.edge_bits > 8 {
            let (name, bits) = match options.edge_bits > 8 {
                true => ("edge_bits", options.edge_bits),
                false => ("weight_bits", options.weight_bits),
            };
            return Err(Error::option(format!("{name} = {bits}: a weight is stored in 1 to 8 bits")));
        }
        Ok(Self { options })
    }

    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<DorefaWeight, Error> {
        let is_edge = matches!(layer.part, Part::First | Part::Last);
        let bits =
            if is_edge { self.options.edge_bits.max(self.options.weight_bits) } else { self.options.weight_bits };
        let per = layer.granularity(self.options.per_channel);
        Ok(DorefaWeight::new(bits, per, layer.rows(self.options.per_channel), init))
    }

    fn after_update(&mut self, slots: &mut [Slot<DorefaWeight>]) {
        for slot in slots {
            let smallest = SMALLEST_STEP * slot.quantizer.top() as f32;
            slot.quantizer.scale.value.iter_mut().for_each(|s| *s = s.max(smallest));
        }
    }
}

/// The quantizer of one tensor.
#[derive(Debug, Clone)]
pub struct DorefaWeight {
    bits: u8,
    per: Granularity,
    rows: Rows,
    /// Latent float weights, in row order.
    latent: Param,
    /// s, one per row.
    scale: Param,
    /// Levels 2k − (2^b − 1) of the last forward pass, and max|tanh w|.
    levels: Vec<i32>,
    largest: f32,
    buffer: Vec<f32>,
}

impl DorefaWeight {
    /// A quantizer of `bits` bits around these float weights; `per` and `rows` must describe the same granularity.
    pub fn new(bits: u8, per: Granularity, rows: Rows, init: &[f32]) -> Self {
        let n = init.len();
        let mut latent = vec![0.0; n];
        rows.gather(init, &mut latent);
        let mut this = Self {
            bits,
            per,
            scale: Param::new("scale", Group::Scale, vec![1.0; rows.rows]),
            latent: Param::new("latent", Group::Weight, latent),
            levels: vec![0; n],
            largest: 1.0,
            buffer: vec![0.0; n],
            rows,
        };
        this.update_levels();
        let top = this.top() as f32;
        let row = this.rows.row_len.max(1);
        for ((s, w), levels) in
            this.scale.value.iter_mut().zip(this.latent.value.chunks(row)).zip(this.levels.chunks(row))
        {
            let units = || levels.iter().map(|l| f64::from(*l as f32 / top));
            let fit = w.iter().zip(units()).map(|(w, u)| f64::from(*w) * u).sum::<f64>();
            let square = units().map(|u| u * u).sum::<f64>();
            *s = if fit > 0.0 && square > 0.0 { (fit / square) as f32 } else { 1.0 };
        }
        this
    }

    /// 2^b − 1: number of steps between the lowest and the highest level, and the highest level itself.
    fn top(&self) -> i32 {
        (1 << self.bits) - 1
    }

    fn update_levels(&mut self) {
        let top = self.top();
        self.largest = self.latent.value.iter().fold(0f32, |most, w| most.max(w.tanh().abs())).max(f32::MIN_POSITIVE);
        for (level, w) in self.levels.iter_mut().zip(&self.latent.value) {
            let t = w.tanh() / (2.0 * self.largest) + 0.5;
            *level = 2 * quantize(t * top as f32, 1.0, 0, 0, top) - top;
        }
    }

    /// What one unit of a level is worth: the scale of the file.
    fn units(&self) -> Vec<f32> {
        let top = self.top() as f32;
        self.scale.value.iter().map(|s| s / top).collect()
    }
}

impl Quantizer for DorefaWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        self.update_levels();
        let (units, row) = (self.units(), self.rows.row_len.max(1));
        for (i, (out, level)) in self.buffer.iter_mut().zip(&self.levels).enumerate() {
            *out = units[i / row] * *level as f32;
        }
        self.rows.scatter(&self.buffer, weights);
    }

    fn backward(&mut self, grad: &[f32]) {
        self.rows.gather(grad, &mut self.buffer);
        let (top, row) = (self.top() as f32, self.rows.row_len.max(1));
        for (r, (s, sum)) in self.scale.value.iter().zip(&mut self.scale.grad).enumerate() {
            let mut slope = 0f64;
            for i in r * row..(r + 1) * row {
                let (g, tanh) = (self.buffer[i], self.latent.value[i].tanh());
                self.latent.grad[i] += g * s * (1.0 - tanh * tanh) / self.largest;
                slope += f64::from(g * self.levels[i] as f32 / top);
            }
            // One number for a row: LSQ's scaling keeps its steps in proportion to those of the weights.
            *sum += (slope / (row as f64 * f64::from(top)).sqrt()) as f32;
        }
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        self.rows.scatter(&self.latent.grad, grad);
        true
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.latent);
        f(&mut self.scale);
    }

    fn bits(&self) -> f32 {
        self.bits.into()
    }

    fn qparams(&self) -> Option<QParams> {
        let top = self.top();
        let levels = (0..=top).map(|k| (2 * k - top) as f32).collect();
        let spec = QuantSpec { grid: Grid::Codebook, bits: self.bits, per: self.per };
        Some(QParams { spec, scale: self.units(), zero_point: vec![], levels, rows: vec![] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.7).collect()
    }

    fn quantizer(bits: u8) -> DorefaWeight {
        DorefaWeight::new(bits, Granularity::PerChannel { axis: 0 }, Rows::along(0, &[3, 20]), &values(60))
    }

    #[test]
    fn weights_are_the_levels_of_the_paper() {
        for bits in 1..=8 {
            let mut q = quantizer(bits);
            let mut w = vec![0.0; 60];
            q.forward(&mut w);
            let most = values(60).iter().fold(0f32, |m, w| m.max(w.tanh().abs()));
            let n = ((1 << bits) - 1) as f32;
            let params = q.qparams().unwrap();
            params.check(3).unwrap();
            for (i, (w, x)) in w.iter().zip(values(60)).enumerate() {
                let t = x.tanh() / (2.0 * most) + 0.5;
                let level = 2.0 * (t * n).round_ties_even() / n - 1.0;
                let s = q.scale.value[i / 20];
                assert!((w - s * level).abs() < 1e-6 * s, "{bits}: {w} {level}");
                assert_eq!(params.decode(params.encode(*w, i / 20), i / 20), *w);
            }
            assert!(bits > 1 || w.iter().all(|w| *w != 0.0));
        }
    }

    #[test]
    fn gradients_are_those_of_the_squashing() {
        let mut q = quantizer(8);
        let grad: Vec<f32> = (0..60).map(|i| (i as f32).cos()).collect();
        let mut w = vec![0.0; 60];
        q.forward(&mut w);
        q.backward(&grad);
        for (i, grad) in grad.iter().enumerate() {
            let (x, h) = (f64::from(q.latent.value[i]), 1e-5);
            let smooth = |x: f64| f64::from(q.scale.value[i / 20]) * x.tanh() / f64::from(q.largest);
            let slope = (smooth(x + h) - smooth(x - h)) / (2.0 * h) * f64::from(*grad);
            assert!((f64::from(q.latent.grad[i]) - slope).abs() < 1e-5, "{i}");
        }
        let want: f32 = (0..20).map(|i| grad[i] * q.levels[i] as f32 / 255.0).sum::<f32>() / (20.0f32 * 255.0).sqrt();
        assert!((q.scale.grad[0] - want).abs() < 1e-5);
    }

    #[test]
    fn impossible_widths_are_refused() {
        for bits in [0, 9, 40] {
            let error = Dorefa::new(DorefaOptions { weight_bits: bits, ..Default::default() }).unwrap_err().to_string();
            assert!(error.starts_with(&format!("weight_bits = {bits}")), "{error}");
        }
    }
}
