//! Which nodes become one step: see the header of [`plan`](super).

use std::collections::BTreeMap;

use bitsmith_graph::ops::{Pad, PadMode};
use bitsmith_graph::{Node, Op, ValueId};
use bitsmith_kernels::activation::Activation;

use super::compile::Compiler;
use crate::ops::Shortcut;

/// What a node is in a fused chain.
pub(super) enum Chain<'a> {
    /// Computed by another step.
    Inside,
    /// Where the step stands.
    Last(Fused<'a>),
    /// A product with a weight, whose only reader adds this bias to it.
    Biased(&'a Node, ValueId),
}

pub(super) struct Fused<'a> {
    pub norm: &'a Node,
    pub add: Option<ValueId>,
    pub activation: Activation,
}

impl<'a> Compiler<'a> {
    /// Normalisations and products, and what follows them.
    pub fn find_chains(&self) -> BTreeMap<usize, Chain<'a>> {
        let nodes = self.facts.graph.nodes();
        let mut chains = BTreeMap::new();
        for (index, norm) in nodes.iter().enumerate() {
            if !self.needed[index] || !matches!(norm.op, Op::BatchNormalization(_)) {
                continue;
            }
            let (mut last, mut add, mut activation) = (index, None, Activation::Identity);
            if let Some(next) = self.sole_reader(norm.output())
                && let Op::Add(_) = nodes[next].op
                && !chains.contains_key(&next)
                && let Some(other) = self.other_operand(&nodes[next], norm.output())
            {
                (last, add) = (next, Some(other));
            }
            if let Some(next) = self.sole_reader(nodes[last].output())
                && let Some(act) = nodes[next].op.activation()
            {
                (last, activation) = (next, act);
            }
            chains.insert(index, Chain::Inside);
            if let Some(add_node) = self.sole_reader(norm.output()).filter(|_| add.is_some()) {
                chains.insert(add_node, Chain::Inside);
            }
            chains.insert(last, Chain::Last(Fused { norm, add, activation }));
        }
        for (index, product) in nodes.iter().enumerate() {
            if let Some((next, bias)) = self.bias_behind(product).filter(|_| self.needed[index]) {
                chains.insert(index, Chain::Biased(&nodes[next], bias));
                chains.insert(next, Chain::Inside);
            }
        }
        chains
    }

    /// The addition of one number per column to a product with a weight, if nothing else reads the product.
    fn bias_behind(&self, product: &Node) -> Option<(usize, ValueId)> {
        let constant = |id: ValueId| self.facts.graph.constant(id);
        let w = product.input(1).filter(|_| matches!(product.op, Op::MatMul(_)) && self.is_weight(product))?;
        let next = self.sole_reader(product.output())?;
        let add = &self.facts.graph.nodes()[next];
        let bias = add.inputs.iter().flatten().copied().find(|&id| id != product.output())?;
        let columns = self.shape(w)[1];
        let is_bias = matches!(add.op, Op::Add(_)) && constant(bias).is_some() && self.shape(bias) == [columns];
        is_bias.then_some((next, bias))
    }

    /// Whether a product's second operand is a matrix of constants, and its first is none.
    pub fn is_weight(&self, product: &Node) -> bool {
        let is_constant = |index| product.input(index).is_some_and(|id| self.facts.graph.constant(id).is_some());
        is_constant(1) && !is_constant(0) && product.input(1).is_some_and(|w| self.rank(w) == 2)
    }

    /// The only needed node that reads a value which nobody else may see.
    fn sole_reader(&self, id: ValueId) -> Option<usize> {
        let hidden = !self.pinned[id.index()] && !self.facts.sites.contains_key(&id);
        match self.readers[id.index()].as_slice() {
            &[reader] if hidden => Some(reader),
            _ => None,
        }
    }

    /// The addend next to `id`, if it is computed and of the same shape.
    fn other_operand(&self, add: &Node, id: ValueId) -> Option<ValueId> {
        let other = add.inputs.iter().flatten().copied().find(|&other| other != id)?;
        let same = self.shape(other) == self.shape(id);
        (same && self.facts.graph.constant(other).is_none()).then_some(other)
    }

    /// Whether a slice takes pixels of a channels-last value, and all that reads it is a padding of channels with zeros.
    pub fn is_shortcut_slice(&self, slice: &Node) -> bool {
        let reader = self.sole_reader(slice.output()).map(|index| &self.facts.graph.nodes()[index]);
        match reader.map(|node| &node.op) {
            Some(Op::Pad(pad)) => self.shortcut_of(slice, pad).is_some(),
            _ => false,
        }
    }

    pub fn shortcut_of(&self, slice: &Node, pad: &Pad) -> Option<(ValueId, Shortcut)> {
        let (Op::Slice(op), Some(x)) = (&slice.op, slice.input(0)) else { return None };
        if self.rank(x) != 4 || !self.is_last(x) || pad.mode != PadMode::Constant || pad.value != 0.0 {
            return None;
        }
        // Asked for a batch of two: at one sample a slice of the batch axis could pass for the whole of it.
        let mut shape = self.shape(x).to_vec();
        shape[0] = 2;
        let axes = op.per_axis(&shape).ok()?;
        let pads = pad.per_axis(4).ok()?;
        let whole = |axis: usize| axes[axis] == (0, 1, shape[axis]);
        let taken = |axis: usize| {
            let (first, step, count) = axes[axis];
            usize::try_from(step).ok().filter(|&step| step > 0 && pads[axis] == (0, 0)).map(|step| (first, step, count))
        };
        if !whole(0) || !whole(1) || pads[0] != (0, 0) {
            return None;
        }
        let channels = (usize::try_from(pads[1].0).ok()?, usize::try_from(pads[1].1).ok()?);
        Some((x, Shortcut { rows: taken(2)?, columns: taken(3)?, channels }))
    }
}
