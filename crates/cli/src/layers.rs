//! The layers of a model as tables and reports show them.

use bitsmith_graph::model::{Layer, moves_elements};
use bitsmith_graph::{Grid, Model, QParams, QuantModel, ValueId};

use bitsmith_runtime::{Arithmetic, NodeReport, Session, SessionOptions};

use crate::events::LayerRow;
use crate::failure::Failure;
use crate::table::{Table, bytes, count, short};

/// Layers of a float model. Sites that have parameters count with their width.
pub fn of_float(model: &Model) -> Result<Vec<LayerRow>, Failure> {
    let row = |layer: &Layer| {
        let node = &model.graph.nodes()[layer.node];
        LayerRow {
            name: node.name.clone(),
            op: node.op.name().to_owned(),
            shape: model.graph.constant(layer.weight).map_or(vec![], |t| t.shape().to_vec()),
            weights: layer.weights as u64,
            weight_bits: 32.0,
            stored_bits: 32.0,
            activation_bits: 32.0,
            bytes: 4 * layer.weights as u64,
            macs: layer.macs,
            arithmetic: "f32".to_owned(),
        }
    };
    Ok(model.layers()?.iter().map(row).collect())
}

/// Layers of a model of integers, with the arithmetic that the runtime uses for each.
pub fn of_packed(model: &QuantModel) -> Result<Vec<LayerRow>, Failure> {
    let session = Session::new(model, SessionOptions::default())?;
    let runs = session.arithmetic();
    let producers = model.graph().producers();
    // The grid of a layer's input: its own, or that of the value which operators that only move elements were given.
    let grid_of = |mut id: ValueId| loop {
        if let Some(params) = model.params(id) {
            return Some(params);
        }
        let node = &model.graph().nodes()[producers[id.index()]?];
        match (moves_elements(&node.op), node.input(0)) {
            (true, Some(before)) => id = before,
            _ => return None,
        }
    };
    let row = |layer: &Layer| {
        let node = &model.graph().nodes()[layer.node];
        let weight = model.params(layer.weight);
        let input = node.input(0).and_then(grid_of);
        let stored_bits = weight.map_or(32.0, |p| p.stored_bits());
        LayerRow {
            name: node.name.clone(),
            op: node.op.name().to_owned(),
            shape: model.graph().constant(layer.weight).map_or(vec![], |t| t.shape().to_vec()),
            weights: layer.weights as u64,
            weight_bits: weight.map_or(32.0, paper_bits),
            stored_bits,
            activation_bits: input.map_or(32.0, |p| f64::from(p.spec.bits)),
            bytes: (layer.weights as f64 * stored_bits / 8.0).ceil() as u64,
            macs: layer.macs,
            arithmetic: arithmetic(weight, input, runs.iter().find(|r| r.node == layer.node)),
        }
    };
    Ok(model.layers()?.iter().map(row).collect())
}

/// Bits as papers count them: magnitude planes where the grid has planes, the width elsewhere.
fn paper_bits(params: &QParams) -> f64 {
    match params.spec.grid {
        Grid::Planes { mask } => f64::from(mask.count_ones()),
        _ => f64::from(params.spec.bits),
    }
}

/// What a layer with these grids computes with.
fn arithmetic(weight: Option<&QParams>, input: Option<&QParams>, runs: Option<&NodeReport>) -> String {
    let code = |p: &QParams| format!("{}{}", if p.code_range().0 < 0 { 'i' } else { 'u' }, p.spec.bits);
    match (weight, input, runs.map(|r| r.arithmetic)) {
        (Some(w), Some(x), Some(Arithmetic::Integer)) => format!("i32 += {}·{}", code(x), code(w)),
        (_, _, Some(Arithmetic::Constant)) => "none".to_owned(),
        (Some(w), None, _) => format!("f32 += f32·{}", code(w)),
        _ => "f32".to_owned(),
    }
}

/// Operators of a model of integers that run in float all the same, by name, with the runtime's reason.
pub fn fallbacks(model: &QuantModel) -> Result<Vec<(String, String)>, Failure> {
    let session = Session::new(model, SessionOptions::default())?;
    let floats = session.arithmetic().iter().filter(|r| {
        // What is fused into a product of integers is its rescaling, not a step of its own.
        r.arithmetic == Arithmetic::Float && !r.reason.starts_with("fused into")
    });
    Ok(floats.map(|r| (format!("{} ({})", r.name, r.op), r.reason.clone())).collect())
}

/// Mean stored bits per weight, by size.
pub fn mean_stored_bits(layers: &[LayerRow]) -> f64 {
    let weights: u64 = layers.iter().map(|l| l.weights).sum();
    let bits: f64 = layers.iter().map(|l| l.stored_bits * l.weights as f64).sum();
    if weights > 0 { bits / weights as f64 } else { 0.0 }
}

/// The layers as a table.
pub fn table(layers: &[LayerRow]) -> String {
    let mut table = Table::new(&[
        "layer",
        "op",
        "weight",
        ">weights",
        ">bits",
        ">stored",
        ">input",
        ">size",
        ">MACs",
        "arithmetic",
    ]);
    let bits = |b: f64| if b.fract() == 0.0 { format!("{b}") } else { format!("{b:.1}") };
    for l in layers {
        let shape = l.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        table.row([
            l.name.clone(),
            l.op.clone(),
            shape,
            count(l.weights),
            bits(l.weight_bits),
            bits(l.stored_bits),
            bits(l.activation_bits),
            bytes(l.bytes),
            short(l.macs),
            l.arithmetic.clone(),
        ]);
    }
    table.render()
}
