//! The weights of a model as methods see them, and where each layer sits.

use bitsmith_graph::{Model, Op, ValueId};

use crate::blocks::cost::Costs;
use crate::error::Error;
use crate::method::{Part, WeightLayer};

/// Every layer with a constant float weight, in execution order.
pub fn weight_layers(model: &Model) -> Result<Vec<WeightLayer>, Error> {
    let layers = model.layers()?;
    let graph = &model.graph;
    let last = layers.len().saturating_sub(1);
    let mut out = vec![];
    for (index, layer) in layers.iter().enumerate() {
        let Some(tensor) = graph.constant(layer.weight).filter(|t| t.as_f32().is_some()) else { continue };
        let part = match index {
            _ if reads_input(model, layer.node) => Part::First,
            _ if index == last => Part::Last,
            _ if is_shortcut(model, layer.node) => Part::Shortcut,
            _ => Part::Middle,
        };
        out.push(WeightLayer {
            id: layer.weight,
            name: graph.value(layer.weight).name.clone(),
            shape: tensor.shape().to_vec(),
            first: 0,
            channel_axis: layer.channel_axis,
            part,
            macs: layer.macs,
            costs: None,
        });
    }
    Ok(out)
}

/// The same for a choice of widths: each weight once, since layers that share one share its width, with what the run says that it costs.
pub fn priced_layers(model: &Model, costs: Option<&Costs>) -> Result<Vec<WeightLayer>, Error> {
    let mut out: Vec<WeightLayer> = vec![];
    for mut layer in weight_layers(model)? {
        if out.iter().all(|known| known.id != layer.id) {
            layer.costs = costs.map(|costs| costs.get(&layer.name).copied().unwrap_or_default());
            out.push(layer);
        }
    }
    Ok(out)
}

/// Whether a layer's input is a graph input, perhaps moved or padded on the way.
fn reads_input(model: &Model, node: usize) -> bool {
    let producers = model.graph.producers();
    let mut id = model.graph.nodes()[node].input(0);
    while let Some(value) = id {
        if model.graph.inputs().iter().any(|i| i.value == value) {
            return true;
        }
        let Some(before) = producers[value.index()].map(|n| &model.graph.nodes()[n]) else { return false };
        if !bitsmith_graph::model::moves_elements(&before.op) {
            return false;
        }
        id = before.input(0);
    }
    false
}

/// Whether a layer is a 1x1 convolution whose result, normalised or not, is added to that of a longer branch which starts
/// from the same value.
fn is_shortcut(model: &Model, node: usize) -> bool {
    let graph = &model.graph;
    let this = &graph.nodes()[node];
    let is_pointwise = |id: ValueId| graph.constant(id).is_some_and(|w| w.shape()[2..].iter().all(|&k| k == 1));
    if !matches!(this.op, Op::Conv(_)) || !this.input(1).is_some_and(is_pointwise) {
        return false;
    }
    let consumers = graph.consumers();
    let mut out = this.output();
    for _ in 0..2 {
        let [reader] = consumers[out.index()][..] else { return false };
        match &graph.nodes()[reader].op {
            Op::BatchNormalization(_) => out = graph.nodes()[reader].output(),
            Op::Add(_) => {
                // In a block both branches read the same value; a projection at a branch's end reads one of its own.
                return this.input(0).is_some_and(|x| consumers[x.index()].len() > 1);
            }
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_graph::zoo::{ZooOptions, build};

    #[test]
    fn parts_of_known_networks() {
        let count = |name: &str| {
            let layers = weight_layers(&build(name, &ZooOptions::default()).unwrap()).unwrap();
            [Part::First, Part::Middle, Part::Shortcut, Part::Last]
                .map(|part| layers.iter().filter(|l| l.part == part).count())
        };
        assert_eq!(count("resnet20"), [1, 18, 0, 1]);
        assert_eq!(count("resnet8"), [1, 6, 2, 1]);
        assert_eq!(count("resnet18"), [1, 16, 3, 1]);
        assert_eq!(count("mlp")[0], 1);
    }
}
