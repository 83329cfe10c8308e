//! Quantization without training: weights at a fixed width per output channel, activations calibrated.

use bitsmith_graph::{Granularity, Model, Role, Site};

use super::calibrate::CalibrateActivations;
use super::layers::weight_layers;
use super::{Pass, PassContext};
use crate::blocks::range::Range;
use crate::error::Error;
use crate::method::{Part, WeightLayer};
use crate::methods::lsq::{LsqWeight, check_bits};
use crate::options::options;
use crate::quantizer::{Quantizer, Rows};

options! {
    /// Options of `ptq`.
    pub struct PtqOptions {
        /// Stored bits of every weight, sign included: 2 to 8.
        pub weight_bits: u8 = 8,
        /// Stored bits of the first and last layer; 0 means the same as the others.
        pub edge_bits: u8 = 8,
        /// Bits of activations, 1 to 8; 32 leaves activations and input float.
        pub activation_bits: u8 = 8,
        /// Bits of the network's input.
        pub input_bits: u8 = 8,
        /// Bits of what attention multiplies with each other, 1 to 8; 32 leaves it float.
        pub attention_bits: u8 = 32,
        /// Stored bits of biases, 2 to 8; 32 leaves them float.
        pub bias_bits: u8 = 8,
        /// Range of weights: "min-max", {"percentile": 0.999} or "mse".
        pub weight_range: Range = Range::Mse,
        /// Range of activations, likewise.
        pub activation_range: Range = Range::Mse,
        /// Keep zero at activation code 0; otherwise the grid covers what was seen, wherever zero falls.
        pub symmetric: bool = true,
        /// One scale per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Batches to calibrate activations with.
        pub batches: usize = 8,
    }
}

/// The pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ptq {
    /// Its options.
    pub options: PtqOptions,
}

impl Pass for Ptq {
    fn name(&self) -> &'static str {
        "ptq"
    }

    fn run(&self, model: Model, ctx: &mut PassContext<'_>) -> Result<Model, Error> {
        let o = &self.options;
        check_bits("weight_bits", o.weight_bits)?;
        let model = self.calibrated(model, ctx)?;
        self.rounded(model, |layer| match layer.part {
            Part::First | Part::Last if o.edge_bits != 0 => o.edge_bits.max(o.weight_bits),
            _ => o.weight_bits,
        })
    }
}

impl Ptq {
    /// The model with activations calibrated, where they are to be rounded.
    pub fn calibrated(&self, mut model: Model, ctx: &mut PassContext<'_>) -> Result<Model, Error> {
        let o = &self.options;
        if o.activation_bits == 32 && o.attention_bits != 32 {
            return Err(Error::option(format!(
                "{} attention bits where activations stay in float: both do, or neither",
                o.attention_bits
            )));
        }
        if o.activation_bits != 32 {
            let calibrate = CalibrateActivations {
                bits: o.activation_bits,
                input_bits: o.input_bits,
                attention_bits: o.attention_bits,
                range: o.activation_range,
                symmetric: o.symmetric,
                batches: o.batches,
                live: false,
            };
            model = calibrate.run(model, ctx)?;
        }
        Ok(model)
    }

    /// The model with each layer's weights rounded to a width of its own, and biases.
    pub fn rounded(&self, mut model: Model, width: impl Fn(&WeightLayer) -> u8) -> Result<Model, Error> {
        let o = &self.options;
        let layers = weight_layers(&model)?;
        for layer in &layers {
            let bits = width(layer);
            check_bits("edge_bits", bits)?;
            let per = match o.per_channel {
                true => Granularity::PerChannel { axis: layer.channel_axis },
                false => Granularity::PerTensor,
            };
            round(&mut model, layer.id, Role::Weight, bits, per, layer.rows(o.per_channel), o.weight_range);
        }
        if o.bias_bits != 32 {
            check_bits("bias_bits", o.bias_bits)?;
            for id in model.layers()?.into_iter().filter_map(|l| l.bias) {
                let len = model.graph.constant(id).map_or(0, |t| t.len());
                round(&mut model, id, Role::Bias, o.bias_bits, Granularity::PerTensor, Rows::one(len), Range::MinMax);
            }
        }
        Ok(model)
    }
}

/// Rounds a constant in place and records its grid.
fn round(
    model: &mut Model,
    id: bitsmith_graph::ValueId,
    role: Role,
    bits: u8,
    per: Granularity,
    rows: Rows,
    range: Range,
) {
    let Some(values) = model.graph.constant_f32_mut(id) else { return };
    let mut quantizer = LsqWeight::new(bits, per, rows, values, range);
    quantizer.forward(values);
    values.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = 0.0);
    if let Some(params) = quantizer.qparams() {
        model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
    }
}
