//! Calibration: runs batches through the float network, watches the values at activation and input sites, and gives each
//! a grid. Signedness follows from what was seen: values that are never negative get an unsigned grid.

use std::collections::BTreeMap;

use bitsmith_engine::{Engine, EngineOptions, Params};
use bitsmith_graph::{Granularity, Grid, Model, QParams, QuantSpec, Role, Site, ValueId};
use bitsmith_kernels::numerics::min_max;

use super::{Pass, PassContext};
use crate::blocks::range::Range;
use crate::error::{Error, Kind};
use crate::train::data::Data;

/// Marks the values that layers read and calibrates their grids.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrateActivations {
    /// Bits of activations.
    pub bits: u8,
    /// Bits of the network's input.
    pub input_bits: u8,
    /// Bits of what is multiplied with each other rather than with weights, in attention; 32 leaves it in float.
    pub attention_bits: u8,
    /// How ranges are chosen.
    pub range: Range,
    /// Keep zero at code 0; otherwise the grid covers the range seen, wherever zero falls.
    pub symmetric: bool,
    /// Batches to look at.
    pub batches: usize,
    /// Normalise by each batch's own statistics, as training does, instead of the running ones: those of a network with random
    /// weights say nothing.
    pub live: bool,
}

impl Default for CalibrateActivations {
    fn default() -> Self {
        Self { bits: 8, input_bits: 8, attention_bits: 32, range: Range::Mse, symmetric: true, batches: 8, live: false }
    }
}

impl Pass for CalibrateActivations {
    fn name(&self) -> &'static str {
        "calibrate"
    }

    fn run(&self, mut model: Model, ctx: &mut PassContext<'_>) -> Result<Model, Error> {
        let attention = (self.attention_bits != 32).then_some(("attention bits", self.attention_bits));
        for (name, bits) in
            [("activation bits", self.bits), ("input bits", self.input_bits)].into_iter().chain(attention)
        {
            if !(1..=8).contains(&bits) {
                return Err(Error::option(format!("{bits} {name}: 1 to 8, or 32 to leave activations float")));
            }
        }
        let layers = model.activation_values()?;
        let mut values = layers.clone();
        values.extend(model.attention_values().into_iter().filter(|id| attention.is_some() && !layers.contains(id)));
        let seen = observe(&model, &values, ctx.calibration, self.batches, self.live)?;
        for (id, values) in seen {
            let is_input = model.graph.inputs().iter().any(|i| i.value == id);
            let (role, bits) = match (is_input, layers.contains(&id)) {
                (true, _) => (Role::Input, self.input_bits),
                (_, true) => (Role::Activation, self.bits),
                _ => (Role::Activation, self.attention_bits),
            };
            let signed = values.low < 0.0;
            if signed && bits == 1 {
                let name = &model.graph.value(id).name;
                return Err(Error::option(format!(
                    "`{name}` takes both signs and cannot be stored in 1 bit: use at least 2"
                )));
            }
            let params = values.grid(bits, signed, self.range, self.symmetric);
            model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
        }
        Ok(model)
    }
}

/// The scale of each activation and input site at every width from 1 to 8, by index, as its values in the float network have it
/// with the least squared error.
pub(crate) fn scales(model: &Model, data: &dyn Data, batches: usize) -> Result<BTreeMap<ValueId, [f32; 9]>, Error> {
    let mut out = BTreeMap::new();
    for (id, seen) in observe(model, &model.activation_values()?, data, batches, true)? {
        let Some(Site { spec: QuantSpec { grid: Grid::Affine { signed, .. }, .. }, .. }) = model.sites.get(&id) else {
            continue;
        };
        let at = |bits: usize| seen.clone().grid(bits.max(1) as u8, *signed, Range::Mse, true).scale[0];
        out.insert(id, std::array::from_fn(at));
    }
    Ok(out)
}

/// Samples and extremes of a value.
#[derive(Debug, Clone, Default)]
struct Seen {
    low: f32,
    high: f32,
    sample: Vec<f32>,
}

/// Values kept for each site and batch.
const KEPT: usize = 1 << 14;

impl Seen {
    fn add(&mut self, values: &[f32]) {
        let (low, high) = min_max(values);
        self.low = self.low.min(low);
        self.high = self.high.max(high);
        // An odd stride visits all channels and places.
        let stride = (values.len() / KEPT).max(1) | 1;
        self.sample.extend(values.iter().step_by(stride).filter(|v| v.is_finite()));
    }

    fn grid(mut self, bits: u8, signed: bool, range: Range, symmetric: bool) -> QParams {
        if range == Range::MinMax {
            self.sample = vec![self.low, self.high];
        }
        // An asymmetric grid of unsigned codes serves either sign, its zero point inside.
        let signed = signed && symmetric;
        let (scale, zero_point) = range.activation(&self.sample, bits, signed, symmetric);
        let grid = Grid::Affine { signed, symmetric: false };
        let spec = QuantSpec { grid, bits, per: Granularity::PerTensor };
        QParams {
            spec,
            scale: vec![scale.max(f32::MIN_POSITIVE)],
            zero_point: vec![zero_point],
            levels: vec![],
            rows: vec![],
        }
    }
}

/// What these values look like.
fn observe(
    model: &Model,
    values: &[ValueId],
    data: &dyn Data,
    count: usize,
    live: bool,
) -> Result<BTreeMap<ValueId, Seen>, Error> {
    let float = Model { sites: BTreeMap::new(), ..model.clone() };
    let engine = Engine::new(&float, &EngineOptions::default())?;
    let params = Params::from_model(&float);
    let mut seen: BTreeMap<ValueId, Seen> = values.iter().map(|&id| (id, Seen::default())).collect();
    let mut batches = 0;
    for batch in data.epoch(0, 0).take(count.max(1)) {
        let batch = batch?;
        // A quarter of a batch at a time keeps all intermediate values in little memory.
        let sample = engine.sample_len().max(1);
        for part in batch.x.chunks(sample * 32) {
            let n = part.len() / sample;
            let computed = match live {
                true => engine.forward_values_live(&params, part, n, values)?,
                false => engine.forward_values(&params, part, n, values)?,
            };
            for (id, computed) in values.iter().zip(&computed) {
                if let Some(seen) = seen.get_mut(id) {
                    seen.add(computed);
                }
            }
        }
        batches += 1;
    }
    if batches == 0 {
        return Err(Error::new(Kind::Data, "calibration needs at least one batch, but the data are empty"));
    }
    Ok(seen)
}
