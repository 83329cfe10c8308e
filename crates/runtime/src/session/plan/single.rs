//! Nodes that are a step of their own: everything that moves, pools, reduces or broadcasts.

use bitsmith_graph::model::moves_elements;
use bitsmith_graph::{Data, Node, Op, Shape, Tensor, ValueId};
use bitsmith_kernels::integer;

use super::super::chain::Binary;
use super::super::geometry;
use super::super::report::Arithmetic;
use super::planner::Planner;
use super::{Action, Elem, Layout, byte_grid};
use crate::error::{Error, Kind};

impl Planner<'_> {
    /// A node that is a step of its own.
    pub fn single(&mut self, index: usize, node: &Node) -> Result<(), Error> {
        if let Op::Constant(_) | Op::ConstantOfShape(_) = &node.op {
            let tensor = match &node.op {
                Op::Constant(op) => op.value.clone(),
                Op::ConstantOfShape(op) => repeated(&op.value, &op.shape)?,
                _ => return Ok(()),
            };
            self.note(index, Arithmetic::Constant, "part of the model");
            self.folded.insert(node.output(), tensor);
            return Ok(());
        }
        let y = node.output();
        let x = node.input(0).ok_or_else(|| Error::new(Kind::Model, "it has no input"))?;
        let rank = self.shape(x).len();
        let (elem, layout) = self.natural(x);
        let float = |elem: Elem| if elem == Elem::Codes { Elem::F32 } else { elem };
        let axis = |axis: i64| bitsmith_graph::ops::normalize_axis(axis, rank);

        // Codes pass where elements only move and the result is not rounded to another grid.
        let mut grid = self.grid(x);
        if let Op::Concat(_) = node.op {
            let grids: Vec<_> = node.inputs.iter().flatten().map(|&id| self.grid(id)).collect();
            grid = grid.filter(|g| grids.iter().all(|other| *other == Some(*g)));
        }
        let moves = moves_elements(&node.op) || matches!(node.op, Op::Concat(_) | Op::Split(_) | Op::Gather(_));
        let fits = node.outputs.iter().all(|&id| self.network.site(id).is_none_or(|site| byte_grid(site) == grid));
        let keeps_codes = moves && grid.is_some() && fits;
        let moved = if keeps_codes { Elem::Codes } else { float(elem) };
        let grid = grid.filter(|_| keeps_codes);

        let (action, input, output) = match &node.op {
            Op::Flatten(_) | Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
                (Action::Copy, Layout::Plain, (moved, Layout::Plain))
            }
            Op::Identity(_) | Op::Dropout(_) => (Action::Copy, layout, (moved, layout)),
            Op::Transpose(op) => (Action::Permute(op.permutation(rank)?), Layout::Plain, (moved, Layout::Plain)),
            Op::Slice(op) => (Action::Slice(op.clone()), layout, (moved, layout)),
            Op::Pad(op) => {
                geometry::check_pad(op, self.shape(x))?;
                (Action::Pad(op.clone()), layout, (moved, layout))
            }
            Op::Concat(op) => (Action::Concat(layout.axis(rank, axis(op.axis)?)), layout, (moved, layout)),
            Op::Split(op) => (Action::Split(layout.axis(rank, axis(op.axis)?)), layout, (moved, layout)),
            Op::Gather(op) => (Action::Gather(op.clone()), Layout::Plain, (moved, Layout::Plain)),
            Op::MaxPool(op) => {
                let pool = geometry::pool(&op.kernel, &op.window, self.shape(x), self.shape(y))?;
                if pool.has_empty_window() {
                    return Err(Error::new(
                        Kind::Unsupported,
                        "one of its windows lies in the padding alone: use smaller pads",
                    ));
                }
                (Action::MaxPool(op.clone()), Layout::Last, (moved, Layout::Last))
            }
            Op::AveragePool(op) => {
                let pool = geometry::pool(&op.kernel, &op.window, self.shape(x), self.shape(y))?;
                if pool.has_empty_window() {
                    return Err(Error::new(
                        Kind::Unsupported,
                        "one of its windows lies in the padding alone: use smaller pads",
                    ));
                }
                (Action::AveragePool(op.clone()), Layout::Last, (Elem::F32, Layout::Last))
            }
            Op::GlobalAveragePool(_) => {
                let reduced = (0..rank).map(|a| a >= 2).collect();
                (Action::Mean(reduced), layout, (Elem::F32, layout))
            }
            Op::ReduceMean(op) => {
                let reduced = op.reduced(rank)?;
                // Without the reduced axes, memory order must be the graph's order.
                let ordered = reduced.get(1) == Some(&true) || reduced.iter().skip(2).all(|r| *r);
                let input = if op.keepdims || ordered { layout } else { Layout::Plain };
                (Action::Mean(reduced), input, (Elem::F32, if op.keepdims { input } else { Layout::Plain }))
            }
            Op::Softmax(op) => {
                (Action::Softmax { axis: layout.axis(rank, axis(op.axis)?), log: false }, layout, (Elem::F32, layout))
            }
            Op::LogSoftmax(op) => {
                (Action::Softmax { axis: layout.axis(rank, axis(op.axis)?), log: true }, layout, (Elem::F32, layout))
            }
            Op::LayerNormalization(op) => {
                (Action::LayerNorm { epsilon: op.epsilon }, Layout::Plain, (Elem::F32, Layout::Plain))
            }
            Op::MatMul(_) => {
                let action = match node.input(1).is_some_and(|other| self.multiplies_codes(x, other)) {
                    true => Action::MatMulOfCodes(self.kernels),
                    false => Action::MatMul,
                };
                (action, Layout::Plain, (Elem::F32, Layout::Plain))
            }
            Op::ShapeOf(op) => (Action::ShapeOf(op.clone()), layout, (Elem::Ints, Layout::Plain)),
            Op::Cast(op) => match (op.to, float(elem)) {
                (1, Elem::Ints) => (Action::ToFloat, layout, (Elem::F32, layout)),
                (1, _) => (Action::Copy, layout, (Elem::F32, layout)),
                (6 | 7, Elem::Ints) => (Action::Copy, layout, (Elem::Ints, layout)),
                (6 | 7 | 9, _) => (Action::ToInts { boolean: op.to == 9 }, layout, (Elem::Ints, layout)),
                (to, _) => {
                    return Err(Error::new(
                        Kind::Unsupported,
                        format!("a cast to ONNX type {to}: float, int32, int64 and bool are supported"),
                    ));
                }
            },
            Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => {
                let op = Binary::of(&node.op).unwrap_or(Binary::Add);
                // Both operands in one order; with axes to be filled in, the graph's.
                let other = node.input(1).ok_or_else(|| Error::new(Kind::Model, "it has one operand"))?;
                let variable = if self.tensor(x).is_some() { other } else { x };
                let same_rank = rank == self.shape(other).len();
                let layout = if same_rank { self.natural(variable).1 } else { Layout::Plain };
                (Action::Binary(op), layout, (if self.integral[y.index()] { Elem::Ints } else { Elem::F32 }, layout))
            }
            other => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("operator `{}` cannot be run in this form", other.name()),
                ));
            }
        };
        // Sums of codes are exact; everything else that computes does so on decoded values.
        let sums_codes = elem == Elem::Codes && matches!(action, Action::AveragePool(_) | Action::Mean(_));
        let multiplies_codes = matches!(action, Action::MatMulOfCodes(_));
        let read = match &action {
            _ if sums_codes || keeps_codes || multiplies_codes => Elem::Codes,
            Action::ShapeOf(_) => elem,
            _ => float(elem),
        };
        let mut inputs = vec![];
        for (i, id) in node.inputs.iter().enumerate() {
            match (id, &action) {
                (Some(id), Action::Gather(_)) if i == 1 => inputs.push(self.need(*id, Elem::Ints, Layout::Plain)?),
                (Some(id), _) => inputs.push(self.need(*id, read, input)?),
                (None, _) => {}
            }
        }
        match (sums_codes, keeps_codes, moves) {
            _ if multiplies_codes => self.note(index, Arithmetic::Integer, "multiplies codes, scales once"),
            (true, ..) => self.note(index, Arithmetic::Integer, "sums codes, scales once"),
            (_, true, _) => self.note(index, Arithmetic::Codes, "moves codes"),
            (_, _, true) => self.note(index, Arithmetic::Float, "moves floats"),
            _ => self.note(index, Arithmetic::Float, "computes on decoded values"),
        }
        let mut outputs = vec![];
        for &id in &node.outputs {
            outputs.push(self.make(id, output.0, output.1, grid));
        }
        self.push(&node.name, action, inputs, outputs);
        for &id in &node.outputs {
            self.settle(id, &node.name)?;
        }
        Ok(())
    }
}

impl Planner<'_> {
    /// Whether a product of two computed values is one of integers: both are codes, of matrices of the same leading axes.
    fn multiplies_codes(&self, x: ValueId, other: ValueId) -> bool {
        let (Some(a), Some(b)) = (self.grid(x), self.grid(other)) else { return false };
        let leading = |t: &Vec<Shape>, id: ValueId| t[id.index()].split_last_chunk::<2>().map(|(all, _)| all.to_vec());
        let alike = |t| leading(t, x).is_some_and(|all| Some(all) == leading(t, other));
        self.tables.iter().all(alike) && self.shape(x).last().is_some_and(|&k| integer::multiplies(k, &a, &b))
    }
}

/// A tensor of one repeated element.
fn repeated(value: &Tensor, shape: &[usize]) -> Result<Tensor, Error> {
    let n: usize = shape.iter().product();
    if n > 1 << 24 {
        return Err(Error::new(Kind::Unsupported, format!("a constant of {n} elements is too large")));
    }
    let data = match (value.data(), value.to_ints().as_deref()) {
        (Data::F32(v), _) => Data::F32(vec![v.first().copied().unwrap_or(0.0); n]),
        (_, Some(&[v])) => Data::I64(vec![v; n]),
        _ => return Err(Error::new(Kind::Model, "its value has no element")),
    };
    Ok(Tensor::new(shape.to_vec(), data)?)
}
