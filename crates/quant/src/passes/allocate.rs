//! Widths that differ, without training: every layer starts at 8 bits, and the budget is met by narrowing where the network's
//! answers change least for what it saves ([`crate::blocks::fit`], which also ends every search by training).
//!
//! What a scheme loses is the cross-entropy between the float network's answers and those of the rounded one, over the
//! calibration batches: it needs no labels. All else is as in [`super::ptq`].

use std::collections::BTreeMap;

use bitsmith_engine::{Distill, Engine, EngineOptions, Loss, Params};
use bitsmith_graph::Model;

use super::layers::priced_layers;
use super::ptq::Ptq;
use super::{Pass, PassContext};
use crate::blocks::cost::Costs;
use crate::blocks::fit::{Item, Trials, best_steps, fit, is_settled};
use crate::blocks::grid::fake_quantize;
use crate::blocks::range::Range;
use crate::blocks::searched::code_bits;
use crate::blocks::widths::Widths;
use crate::error::Error;
use crate::method::WeightLayer;
use crate::quantizer::Rows;
use crate::train::data::Batch;
use crate::train::events::{Event, Sink};

/// The pass. Widths of the options' own (`weight_bits`, `edge_bits`) mean nothing to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocate {
    /// How weights and activations are rounded.
    pub ptq: Ptq,
    /// What to meet, and between which bounds.
    pub widths: Widths,
    /// What layers cost at each width, where the budget is such a cost.
    pub costs: Option<Costs>,
}

impl Pass for Allocate {
    fn name(&self) -> &'static str {
        "allocate"
    }

    fn run(&self, model: Model, ctx: &mut PassContext<'_>) -> Result<Model, Error> {
        self.widths.check()?;
        let model = self.ptq.calibrated(model, ctx)?;
        let layers = priced_layers(&model, self.costs.as_ref())?;
        self.widths.check_reachable(layers.iter())?;
        let budget = self.widths.budget();
        let item = |layer: &WeightLayer| {
            let (floor, given) = self.widths.floor(layer);
            let most = if given { floor } else { self.widths.most };
            Item::new(layer.name.clone(), budget.price(layer), most, floor.min(most), most)
        };
        let mut items: Vec<Item> = layers.iter().map(item).collect();
        if !is_settled(&items, &budget) {
            let mut trials = Schemes::new(&model, &layers, &self.ptq, ctx)?;
            for (i, item) in items.iter().enumerate() {
                trials.set(i, item.width)?;
            }
            for text in fit(&mut items, &budget, &mut trials)? {
                ctx.sink.event(&Event::Note { text });
            }
        }
        let widths: BTreeMap<_, u8> =
            layers.iter().zip(&items).map(|(l, item)| (l.id, code_bits(item.width))).collect();
        self.ptq.rounded(model, |layer| widths.get(&layer.id).copied().unwrap_or(8))
    }
}

/// The network with its layers at any widths, and what it answers.
struct Schemes<'a> {
    engine: Engine,
    params: Params,
    layers: Vec<(bitsmith_graph::ValueId, Rows, Vec<f32>)>,
    range: Range,
    /// Samples with the float network's answers.
    batches: Vec<(Batch, Loss)>,
    sink: &'a mut dyn Sink,
    measured: usize,
}

impl<'a> Schemes<'a> {
    fn new(model: &Model, layers: &[WeightLayer], ptq: &Ptq, ctx: &'a mut PassContext<'_>) -> Result<Self, Error> {
        let float = Model { sites: BTreeMap::new(), ..model.clone() };
        let teacher = Engine::new(&float, &EngineOptions::default())?;
        let params = Params::from_model(model);
        let mut batches = vec![];
        for batch in ctx.calibration.epoch(0, 0).take(ptq.options.batches) {
            let batch = batch?;
            let teacher_logits = teacher.forward(&params, &batch.x, batch.labels.len())?;
            let imitation = Distill { teacher_logits, temperature: 1.0, weight: 1.0 };
            batches.push((batch, Loss { distill: Some(imitation), ..Loss::default() }));
        }
        let rows = |layer: &WeightLayer| {
            let rows = layer.rows(ptq.options.per_channel);
            let mut values = vec![0.0; rows.len()];
            rows.gather(params.constants.get(&layer.id).map_or(&[], Vec::as_slice), &mut values);
            (layer.id, rows, values)
        };
        let layers = layers.iter().map(rows).collect();
        let engine = Engine::new(model, &EngineOptions::default())?;
        Ok(Self { engine, layers, params, range: ptq.options.weight_range, batches, sink: ctx.sink, measured: 0 })
    }
}

impl Trials for Schemes<'_> {
    const UNIT: &'static str = "plane";

    fn set(&mut self, item: usize, width: usize) -> Result<(), Error> {
        let (id, rows, values) = &self.layers[item];
        let mut rounded = vec![0.0; values.len()];
        if width > 0 {
            let steps = best_steps(values, rows, width, self.range);
            fake_quantize(values, &steps, (1 << width) - 1, rows, &mut rounded);
        }
        if let Some(weights) = self.params.constants.get_mut(id) {
            rows.scatter(&rounded, weights);
        }
        Ok(())
    }

    fn loss(&mut self) -> Result<f64, Error> {
        let mut losses = vec![];
        for (batch, loss) in &self.batches {
            let logits = self.engine.forward(&self.params, &batch.x, batch.labels.len())?;
            losses.extend(loss.per_sample(&logits, self.engine.classes(), &batch.labels));
        }
        self.measured += 1;
        self.sink.event(&Event::Trial { measured: self.measured });
        Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
    }
}
