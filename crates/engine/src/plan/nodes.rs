//! What becomes of each node that is no part of a [chain](super::chains).

use bitsmith_graph::ops::{Pad, normalize_axis};
use bitsmith_graph::{Node, Op, ValueId};

use super::compile::{Compiler, unsupported};
use super::{Arg, Binary, Kind, Layout, Role, Slot};
use crate::error::Error;

impl<'a> Compiler<'a> {
    /// The steps of a node.
    pub fn node(&mut self, node: &'a Node) -> Result<(), Error> {
        if let Op::Constant(_) | Op::ConstantOfShape(_) | Op::ShapeOf(_) = node.op {
            return Err(unsupported(format!(
                "operator `{}` computes no real values: fold constants and shapes first (importing does)",
                node.op.name()
            )));
        }
        let x = self.input(node, 0)?;
        let y = node.output();
        // Products, sums and joins may have a constant first; everything else must not.
        let reads_constant = self.facts.graph.constant(x).is_some();
        let joins =
            matches!(node.op, Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::MatMul(_) | Op::Concat(_));
        if reads_constant && !joins {
            return Err(unsupported(format!("operator `{}` of a constant: fold it first", node.op.name())));
        }
        match &node.op {
            Op::Conv(op) => {
                let mut inputs = vec![self.arg(x, Layout::Last)?, self.weight(self.input(node, 1)?, Role::Weight)?];
                if let Some(bias) = node.input(2) {
                    inputs.push(self.weight(bias, Role::Bias)?);
                }
                self.emit(node, Kind::Conv(op.clone()), inputs, Layout::Last);
            }
            Op::MaxPool(op) => {
                if (0..op.kernel.len()).any(|axis| op.window.dilation(axis) != 1) {
                    return Err(unsupported("pools with a dilation: only dilation 1 is supported"));
                }
                let inputs = vec![self.arg(x, Layout::Last)?];
                self.emit(node, Kind::MaxPool(op.clone()), inputs, Layout::Last);
            }
            Op::AveragePool(op) => {
                if (0..op.kernel.len()).any(|axis| op.window.dilation(axis) != 1) {
                    return Err(unsupported("pools with a dilation: only dilation 1 is supported"));
                }
                let inputs = vec![self.arg(x, Layout::Last)?];
                self.emit(node, Kind::AveragePool(op.clone()), inputs, Layout::Last);
            }
            Op::GlobalAveragePool(_) if matches!(self.rank(x), 3 | 4) => {
                let inputs = vec![self.arg(x, Layout::Last)?];
                self.emit(node, Kind::GlobalAveragePool, inputs, Layout::Last);
            }
            Op::GlobalAveragePool(_) => self.mean(node, x, (2..self.rank(x)).collect())?,
            Op::ReduceMean(op) => {
                let reduced = op.reduced(self.rank(x))?;
                if reduced.first() == Some(&true) {
                    return Err(unsupported("averages over the batch axis: samples must stay independent"));
                }
                let axes = (0..reduced.len()).filter(|&axis| reduced[axis]).collect();
                self.mean(node, x, axes)?;
            }
            Op::Gemm(op) => {
                let w = self.input(node, 1)?;
                let bias = node.input(2);
                let n = self.shape(y)[1];
                let plain_bias = bias.is_none_or(|b| {
                    op.beta == 1.0
                        && self.facts.graph.constant(b).is_some()
                        && self.shape(b).iter().product::<usize>() == n
                });
                if op.trans_a {
                    return Err(unsupported("transposes its input, which mixes samples: put a Transpose before it"));
                }
                let mut inputs = vec![self.arg(x, Layout::First)?, self.weight(w, Role::Weight)?];
                let linear = Kind::Linear { transposed: op.trans_b };
                if op.alpha == 1.0 && plain_bias {
                    if let Some(bias) = bias {
                        inputs.push(self.weight(bias, Role::Bias)?);
                    }
                    self.emit(node, linear, inputs, Layout::First);
                    return Ok(());
                }
                let mut at = self.new_slot();
                self.push(&node.name, linear, inputs, vec![at], x, y);
                if op.alpha != 1.0 {
                    at = self.scaled(node, Arg::Slot(at), op.alpha, y);
                }
                if let Some(bias) = bias {
                    let mut c = self.weight(bias, Role::Bias)?;
                    if op.beta != 1.0 {
                        c = Arg::Slot(self.scaled(node, c, op.beta, bias));
                    }
                    let out = self.new_slot();
                    let kind = Kind::Binary(Binary::Add, Layout::First);
                    self.push(&node.name, kind, vec![Arg::Slot(at), c], vec![out], y, y);
                    at = out;
                }
                self.places.insert((y, self.effective(y, Layout::First)), at);
                self.round(y);
            }
            Op::MatMul(_) if self.is_weight(node) => self.linear(node, None)?,
            Op::MatMul(_) => {
                let inputs = vec![self.arg(x, Layout::First)?, self.arg(self.input(node, 1)?, Layout::First)?];
                self.emit(node, Kind::MatMul, inputs, Layout::First);
            }
            Op::LayerNormalization(op) => {
                let mut inputs = vec![self.arg(x, Layout::First)?];
                for (index, role, name) in [(1, Role::Gamma, "gamma"), (2, Role::Beta, "beta")] {
                    let Some(id) = node.input(index) else {
                        return Err(unsupported(format!("has no {name}: give it one that does nothing")));
                    };
                    inputs.push(self.constant(id, role)?);
                }
                self.emit(node, Kind::LayerNorm { epsilon: op.epsilon }, inputs, Layout::First);
            }
            Op::Add(_) => self.binary(node, Binary::Add)?,
            Op::Sub(_) => self.binary(node, Binary::Sub)?,
            Op::Mul(_) => self.binary(node, Binary::Mul)?,
            Op::Div(_) => self.binary(node, Binary::Div)?,
            Op::Identity(_) | Op::Dropout(_) => {
                for layout in [Layout::First, Layout::Last] {
                    if let Some(&slot) = self.places.get(&(x, layout)) {
                        self.places.insert((y, layout), slot);
                    }
                }
                self.round(y);
            }
            Op::Cast(op) if op.to == 1 => {
                let slot = self.arg(x, Layout::First)?;
                if let Arg::Slot(slot) = slot {
                    self.places.insert((y, Layout::First), slot);
                }
                self.round(y);
            }
            Op::Cast(op) => {
                return Err(unsupported(format!(
                    "casts to ONNX type {}: only 1 (float) can be trained through",
                    op.to
                )));
            }
            Op::Flatten(_) | Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
                let inputs = vec![self.arg(x, Layout::First)?];
                self.emit(node, Kind::Reshape, inputs, Layout::First);
            }
            Op::Transpose(op) => {
                let kind = Kind::Permute(op.permutation(self.rank(x))?);
                let inputs = vec![self.arg(x, Layout::First)?];
                self.emit(node, kind, inputs, Layout::First);
            }
            Op::Softmax(op) => self.softmax(node, x, op.axis, false)?,
            Op::LogSoftmax(op) => self.softmax(node, x, op.axis, true)?,
            Op::Pad(op) if self.shortcut(node, op)?.is_some() => {}
            Op::Pad(op) => {
                let layout = self.movable(x);
                let pads = stored_order(layout, op.per_axis(self.rank(x))?);
                if pads.first().is_some_and(|&p| p != (0, 0)) {
                    return Err(unsupported("pads the batch axis: samples must stay independent"));
                }
                let inputs = vec![self.arg(x, layout)?];
                let kind = Kind::Pad { pads, mode: op.mode, value: op.value };
                self.emit(node, kind, inputs, layout);
            }
            // Computed by the padding behind it.
            Op::Slice(_) if self.is_shortcut_slice(node) => {}
            Op::Slice(op) => {
                let layout = self.movable(x);
                let inputs = vec![self.arg(x, layout)?];
                self.emit(node, Kind::Slice(op.clone(), layout), inputs, layout);
            }
            Op::Concat(op) => {
                let ids: Vec<_> = node.inputs.iter().flatten().copied().collect();
                let layout = match ids.iter().any(|&id| self.is_last(id)) && self.rank(y) == 4 {
                    true => Layout::Last,
                    false => Layout::First,
                };
                if ids.iter().any(|&id| self.facts.graph.constant(id).is_some()) {
                    return Err(unsupported("joins a constant: only computed values can be joined"));
                }
                let axis = stored_axis(layout, normalize_axis(op.axis, self.rank(y))?);
                let inputs = ids.iter().map(|&id| self.arg(id, layout)).collect::<Result<_, _>>()?;
                self.emit(node, Kind::Concat { axis }, inputs, layout);
            }
            Op::Split(op) => {
                let layout = self.movable(x);
                let canonical = normalize_axis(op.axis, self.rank(x))?;
                if canonical == 0 {
                    return Err(unsupported("splits the batch axis: samples must stay independent"));
                }
                let sizes = node.outputs.iter().map(|&id| self.shape(id)[canonical]).collect();
                let inputs = vec![self.arg(x, layout)?];
                let kind = Kind::Split { axis: stored_axis(layout, canonical), sizes };
                let outs: Vec<_> = node.outputs.iter().map(|&id| self.define(id, layout)).collect();
                self.push(&node.name, kind, inputs, outs, x, y);
                node.outputs.iter().for_each(|&id| self.round(id));
            }
            Op::Gather(op) => {
                let indices = self.input(node, 1)?;
                let axis = normalize_axis(op.axis, self.rank(x))?;
                let size = self.shape(x)[axis] as i64;
                let Some(values) = self.facts.graph.constant(indices).and_then(|t| t.to_ints()) else {
                    return Err(unsupported("gathers by computed indices: only constant ones are supported"));
                };
                if axis == 0 {
                    return Err(unsupported("gathers along the batch axis: samples must stay independent"));
                }
                if let Some(bad) = values.iter().find(|&&v| v < -size || v >= size) {
                    return Err(unsupported(format!("gathers index {bad} of an axis of {size}")));
                }
                let indices = values.iter().map(|&v| if v < 0 { v + size } else { v }).collect();
                let inputs = vec![self.arg(x, Layout::First)?];
                self.emit(node, Kind::Gather { axis, indices }, inputs, Layout::First);
            }
            op => match op.activation() {
                Some(activation) => {
                    let layout = if self.is_last(x) { Layout::Last } else { Layout::First };
                    let inputs = vec![self.arg(x, layout)?];
                    self.emit(node, Kind::Activation(activation), inputs, layout);
                }
                None => {
                    return Err(unsupported(format!(
                        "operator `{}` cannot be trained here: replace it, or remove it from the model",
                        op.name()
                    )));
                }
            },
        }
        Ok(())
    }

    /// Emits a padding together with the slice before it, if the two make a shortcut.
    fn shortcut(&mut self, node: &Node, pad: &Pad) -> Result<Option<()>, Error> {
        let graph = self.facts.graph;
        let before = self.input(node, 0)?;
        let slice = graph.nodes().iter().find(|n| n.outputs.contains(&before));
        let Some(slice) = slice.filter(|slice| self.is_shortcut_slice(slice)) else { return Ok(None) };
        let Some((x, shape)) = self.shortcut_of(slice, pad) else { return Ok(None) };
        let inputs = vec![self.arg(x, Layout::Last)?];
        self.emit_from(x, node, Kind::Shortcut(shape), inputs, Layout::Last);
        Ok(Some(()))
    }

    fn scaled(&mut self, node: &Node, x: Arg, factor: f32, id: ValueId) -> Slot {
        let out = self.new_slot();
        self.push(&node.name, Kind::Scale(factor), vec![x], vec![out], id, id);
        out
    }

    /// The layout in which an operator that only moves elements of four axes finds its input.
    fn movable(&self, x: ValueId) -> Layout {
        if self.rank(x) == 4 && self.is_last(x) { Layout::Last } else { Layout::First }
    }

    fn softmax(&mut self, node: &Node, x: ValueId, axis: i64, log: bool) -> Result<(), Error> {
        let axis = normalize_axis(axis, self.rank(x))?;
        let inputs = vec![self.arg(x, Layout::First)?];
        self.emit(node, Kind::Softmax { axis, log }, inputs, Layout::First);
        Ok(())
    }

    fn mean(&mut self, node: &Node, x: ValueId, axes: Vec<usize>) -> Result<(), Error> {
        let y = node.output();
        // The usual way to spell a global average pooling.
        if axes == [2, 3] && self.rank(x) == 4 && self.is_last(x) {
            let inputs = vec![self.arg(x, Layout::Last)?];
            if self.rank(y) == 4 {
                self.emit(node, Kind::GlobalAveragePool, inputs, Layout::Last);
                return Ok(());
            }
            let pooled = self.new_slot();
            self.push(&node.name, Kind::GlobalAveragePool, inputs, vec![pooled], x, x);
            self.emit(node, Kind::Reshape, vec![Arg::Slot(pooled)], Layout::First);
            return Ok(());
        }
        let inputs = vec![self.arg(x, Layout::First)?];
        self.emit(node, Kind::Mean(axes), inputs, Layout::First);
        Ok(())
    }

    fn binary(&mut self, node: &Node, op: Binary) -> Result<(), Error> {
        let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
        let is_constant = |id: ValueId| self.facts.graph.constant(id).is_some();
        if is_constant(a) && is_constant(b) {
            return Err(unsupported("combines two constants: fold them first"));
        }
        let computed = [a, b].into_iter().filter(|&id| !is_constant(id));
        let all_of_four = computed.clone().all(|id| self.rank(id) == 4) && self.rank(node.output()) == 4;
        let same_of_three = self.shape(a) == self.shape(b) && self.rank(a) == 3;
        let at_hand = computed.clone().any(|id| self.is_last(id));
        let layout = if at_hand && (all_of_four || same_of_three) { Layout::Last } else { Layout::First };
        let inputs = vec![self.arg(a, layout)?, self.arg(b, layout)?];
        self.emit(node, Kind::Binary(op, layout), inputs, layout);
        Ok(())
    }
}

/// The position of a canonical axis in the stored tensor.
fn stored_axis(layout: Layout, axis: usize) -> usize {
    match (layout, axis) {
        (Layout::Last, 1) => 3,
        (Layout::Last, 2 | 3) => axis - 1,
        _ => axis,
    }
}

/// Per-axis values of a tensor of four axes, in the order of the stored tensor.
pub(super) fn stored_order<T: Copy>(layout: Layout, values: Vec<T>) -> Vec<T> {
    match (layout, values.as_slice()) {
        (Layout::Last, &[n, c, h, w]) => vec![n, h, w, c],
        _ => values,
    }
}
