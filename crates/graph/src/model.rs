//! A float model: a graph, the sites where rounding will happen, and how its inputs are made from files.

use std::collections::BTreeMap;

use crate::error::{Error, Kind};
use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;
use crate::quant::{Granularity, QuantSpec, Role, Site};

/// Names of a classifier's classes, by index; empty where unknown.
pub type ClassNames = Vec<String>;

/// How pixels become network input: `(pixel · scale − mean[c]) / std[c]`, pixels from 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Factor from 0..255 to the range that `mean` and `std` speak of: 1/255 usually, 1 for raw pixels.
    pub scale: f32,
    /// Subtracted, per channel.
    pub mean: Vec<f32>,
    /// Divided by, per channel.
    pub std: Vec<f32>,
}

impl Preprocess {
    /// [0, 1] pixels with the ImageNet mean and standard deviation, which the CIFAR ResNets use too.
    pub fn imagenet() -> Self {
        Self { scale: 1.0 / 255.0, mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Pixels scaled by a factor, nothing else.
    pub fn scaled(scale: f32, channels: usize) -> Self {
        Self { scale, mean: vec![0.0; channels], std: vec![1.0; channels] }
    }
}

/// A float model on its way to integers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    /// What to call it.
    pub name: String,
    /// The network.
    pub graph: Graph,
    /// Places where rounding happens, by value: weights and biases (constants), activations, inputs.
    pub sites: BTreeMap<ValueId, Site>,
    /// How images become input, where known.
    pub preprocess: Option<Preprocess>,
    /// What the outputs mean, where known.
    pub classes: ClassNames,
}

/// A layer with a weight matrix or filter, as reports and cost models see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Index into [`Graph::nodes`].
    pub node: usize,
    /// The constant that holds the weight.
    pub weight: ValueId,
    /// The constant that holds the bias, if there is one.
    pub bias: Option<ValueId>,
    /// Axis of the weight that runs over output channels.
    pub channel_axis: usize,
    /// Number of weights.
    pub weights: usize,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
}

impl Model {
    /// A model without sites.
    pub fn new(name: impl Into<String>, graph: Graph) -> Self {
        Self { name: name.into(), graph, ..Self::default() }
    }

    /// The layers that multiply by a constant weight, in execution order.
    pub fn layers(&self) -> Result<Vec<Layer>, Error> {
        layers(&self.graph)
    }

    /// Marks every layer's weight (and bias) as a site with this spec for weights; `per_channel` scales follow each
    /// layer's own output axis. Sites that exist already are replaced.
    pub fn add_weight_sites(&mut self, spec: QuantSpec, bias: Option<QuantSpec>) -> Result<(), Error> {
        for layer in self.layers()? {
            let per = match spec.per {
                Granularity::PerTensor => Granularity::PerTensor,
                Granularity::PerChannel { .. } => Granularity::PerChannel { axis: layer.channel_axis },
            };
            self.sites.insert(layer.weight, Site { role: Role::Weight, spec: QuantSpec { per, ..spec }, params: None });
            if let (Some(id), Some(spec)) = (layer.bias, bias) {
                self.sites.insert(id, Site { role: Role::Bias, spec, params: None });
            }
        }
        Ok(())
    }

    /// The values that activation quantization rounds, so that every layer reads integers: each layer's input, moved up
    /// through operators that only move or select elements (so that one rounding serves all readers), plus the graph's
    /// inputs. Operands of a residual addition that come from such a value share it.
    pub fn activation_values(&self) -> Result<Vec<ValueId>, Error> {
        let mut out: Vec<ValueId> = self.layers()?.iter().filter_map(|layer| self.activation_of(layer)).collect();
        out.sort();
        out.dedup();
        Ok(out)
    }

    /// The values that products of two computed values, as attention has them, must be given as integers to be computed with integers:
    /// both operands, moved up as [`Model::activation_values`] are.
    pub fn attention_values(&self) -> Vec<ValueId> {
        let is_product = |node: &&Node| matches!(node.op, Op::MatMul(_));
        let products = self.graph.nodes().iter().filter(is_product);
        let operands = |node: &Node| -> Option<[ValueId; 2]> {
            Some([self.computed_before(node.input(0)?)?, self.computed_before(node.input(1)?)?])
        };
        let mut out: Vec<ValueId> = products.filter_map(operands).flatten().collect();
        out.sort();
        out.dedup();
        out
    }

    /// Which of the [`Model::activation_values`] a layer reads; `None` where it reads a constant.
    pub fn activation_of(&self, layer: &Layer) -> Option<ValueId> {
        self.computed_before(self.graph.nodes()[layer.node].input(0)?)
    }

    /// The value whose elements operators only move or select to make this one; `None` if it is a constant.
    fn computed_before(&self, mut id: ValueId) -> Option<ValueId> {
        let producers = self.graph.producers();
        while let Some(node) = producers[id.index()].map(|n| &self.graph.nodes()[n]) {
            match (moves_elements(&node.op), node.input(0)) {
                (true, Some(before)) => id = before,
                _ => break,
            }
        }
        let is_input = self.graph.inputs().iter().any(|i| i.value == id);
        (is_input || producers[id.index()].is_some()).then_some(id)
    }

    /// Marks activations and inputs as sites with these specs.
    pub fn add_activation_sites(&mut self, activation: QuantSpec, input: QuantSpec) -> Result<(), Error> {
        for id in self.activation_values()? {
            let is_input = self.graph.inputs().iter().any(|i| i.value == id);
            let (role, spec) = if is_input { (Role::Input, input) } else { (Role::Activation, activation) };
            self.sites.insert(id, Site { role, spec, params: None });
        }
        Ok(())
    }
}

/// Whether an operator of one input only moves or selects elements, so that codes pass through it unchanged.
/// Concatenation moves elements too, but joins values that may lie on different grids.
pub fn moves_elements(op: &Op) -> bool {
    match op {
        Op::Flatten(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => true,
        Op::Slice(_) | Op::Identity(_) | Op::Dropout(_) | Op::MaxPool(_) => true,
        Op::Pad(pad) => pad.value == 0.0,
        _ => false,
    }
}

/// Whether an operator only cuts off what is negative, which rounding to unsigned codes without a zero point does anyway.
pub fn rectifies(op: &Op) -> bool {
    matches!(op, Op::Relu(_)) || matches!(op, Op::Clip(clip) if clip.min == Some(0.0) && clip.max.is_none())
}

/// See [`Model::layers`].
pub(crate) fn layers(graph: &Graph) -> Result<Vec<Layer>, Error> {
    let macs = graph.macs()?;
    let mut out = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        let channel_axis = match &node.op {
            Op::Conv(_) => 0,
            Op::Gemm(gemm) => usize::from(!gemm.trans_b),
            Op::MatMul(_) => 1,
            _ => continue,
        };
        let Some(weight) = node.input(1) else { continue };
        let Some(tensor) = graph.constant(weight) else { continue };
        if tensor.shape().len() <= channel_axis {
            return Err(Error::new(
                Kind::Shape,
                format!("weight is {:?}: a layer's weight needs two axes", tensor.shape()),
            )
            .at(&node.name));
        }
        let bias = match node.op {
            Op::Conv(_) | Op::Gemm(_) => node.input(2).filter(|&id| graph.constant(id).is_some()),
            _ => None,
        };
        out.push(Layer { node: index, weight, bias, channel_axis, weights: tensor.len(), macs: macs[index] });
    }
    Ok(out)
}
