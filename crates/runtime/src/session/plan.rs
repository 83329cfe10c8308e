//! From a graph to steps: which values exist as codes, in which layout, and which nodes run together.
//!
//! * A value at an activation site is stored as **codes**; every other one as floats (or integers, for shapes).
//! * Images are channels-last inside (`Layout::Last`), canonical at the borders; conversions are steps that are planned
//!   where a reader asks for a form that does not exist yet.
//! * A product and the element-wise nodes after it become one step (see [`super::chain`]), as long as nobody else reads
//!   the values in between. The step runs where its last node stood, when all its operands exist.

mod chains;
mod planner;
mod single;

use std::collections::{BTreeMap, HashMap};

use bitsmith_graph::ops::{AveragePool, Conv, Gather, MaxPool, Pad, ShapeOf, Slice};
use bitsmith_graph::{Data, Graph, Op, QParams, QuantTensor, Role, Shape, Tensor, ValueId};

use super::Kernels;
use super::chain::{Binary, Link};
use super::grid::{ByteGrid, byte_grid};
use super::pool::Pooled;
use super::product::{Geometry, IntegerWeight};
use super::report::NodeReport;
use crate::error::Error;
use planner::Planner;

/// What a value's elements are held as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Elem {
    F32,
    Codes,
    Ints,
}

/// The order of a value's elements in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    /// Row-major over the axes as they are.
    Plain,
    /// Row-major with axis 1 moved to the end; for values of at least three axes.
    Last,
}

impl Layout {
    /// The dimensions in memory order.
    pub fn dims(self, shape: &[usize]) -> Shape {
        match (self, shape) {
            (Layout::Last, &[n, c, ref spatial @ ..]) => [&[n], spatial, &[c]].concat(),
            _ => shape.to_vec(),
        }
    }

    /// Where an axis lies in memory order.
    pub fn axis(self, rank: usize, axis: usize) -> usize {
        match (self, axis) {
            (Layout::Plain, _) | (_, 0) => axis,
            (Layout::Last, 1) => rank - 1,
            (Layout::Last, _) => axis - 1,
        }
    }

    /// Something that is given per axis, in memory order.
    pub fn arrange<T: Copy>(self, per_axis: &[T]) -> Vec<T> {
        match (self, per_axis) {
            (Layout::Last, &[n, c, ref spatial @ ..]) => [&[n], spatial, &[c]].concat(),
            _ => per_axis.to_vec(),
        }
    }
}

/// The elements of one value in one form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Buffer {
    F32(Pooled<f32>),
    Codes(Pooled<u8>),
    Ints(Pooled<i64>),
}

impl Buffer {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Buffer::F32(v) => v.len(),
            Buffer::Codes(v) => v.len(),
            Buffer::Ints(v) => v.len(),
        }
    }

    /// Bytes that the elements take.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Buffer::F32(v) => size_of_val(&v[..]),
            Buffer::Codes(v) => v.len(),
            Buffer::Ints(v) => size_of_val(&v[..]),
        };
        bytes as u64
    }
}

/// A form in which a value exists while the plan runs, or always (a constant).
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub value: ValueId,
    pub elem: Elem,
    pub layout: Layout,
    /// The grid, where the elements are codes.
    pub grid: Option<ByteGrid>,
}

/// Where a step reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Slot(usize),
    Constant(usize),
}

/// What a step does with its inputs, in order.
#[derive(Debug)]
pub(super) enum Action {
    /// A start and what follows; links name inputs by position.
    Chain {
        head: Head,
        links: Vec<Link<usize>>,
    },
    /// Between the two layouts.
    Relayout,
    Permute(Vec<usize>),
    /// The same elements in the same order.
    Copy,
    Slice(Slice),
    Pad(Pad),
    /// Along this axis of the memory order.
    Concat(usize),
    /// Along this axis of the memory order, one output per part.
    Split(usize),
    Gather(Gather),
    MaxPool(MaxPool),
    AveragePool(AveragePool),
    /// Over these axes of the graph's order.
    Mean(Vec<bool>),
    Softmax {
        axis: usize,
        log: bool,
    },
    Binary(Binary),
    /// Each row of gamma's length by its own mean and variance.
    LayerNorm {
        epsilon: f32,
    },
    MatMul,
    /// Of two matrices of codes.
    MatMulOfCodes(Kernels),
    ShapeOf(ShapeOf),
    ToFloat,
    ToInts {
        boolean: bool,
    },
}

impl Action {
    /// What it is called in profiles.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Chain { head: Head::Value, .. } => "elementwise",
            Action::Chain { head: Head::Conv(..), .. } => "conv",
            Action::Chain { head: Head::Linear(..), .. } => "linear",
            Action::Relayout | Action::Permute(_) => "transpose",
            Action::Copy | Action::Slice(_) | Action::Pad(_) | Action::Concat(_) | Action::Split(_) => "move",
            Action::Gather(_) => "gather",
            Action::MaxPool(_) | Action::AveragePool(_) => "pool",
            Action::Mean(_) => "mean",
            Action::Softmax { .. } => "softmax",
            Action::Binary(_) => "binary",
            Action::LayerNorm { .. } => "layer norm",
            Action::MatMul | Action::MatMulOfCodes(_) => "matmul",
            Action::ShapeOf(_) | Action::ToFloat | Action::ToInts { .. } => "shape",
        }
    }
}

/// Where a chain starts.
#[derive(Debug)]
pub(super) enum Head {
    Value,
    Conv(Conv, Weight),
    /// For one sample; there are as many rows as the result has.
    Linear(Geometry, Weight),
}

/// What a product multiplies with.
#[derive(Debug)]
pub(super) enum Weight {
    /// Input 1, in floats.
    Float,
    Integer(Box<IntegerWeight>),
}

impl Plan {
    /// Bytes of the weights that products of integers read.
    pub fn weight_bytes(&self) -> usize {
        let weight = |step: &Step| match &step.action {
            Action::Chain { head: Head::Conv(_, Weight::Integer(w)) | Head::Linear(_, Weight::Integer(w)), .. } => {
                w.bytes()
            }
            _ => 0,
        };
        self.steps.iter().map(weight).sum()
    }
}

/// One step of a plan.
#[derive(Debug)]
pub(super) struct Step {
    /// The node it belongs to, for messages.
    pub name: String,
    pub action: Action,
    pub inputs: Vec<Source>,
    pub outputs: Vec<usize>,
    /// Slots that nobody reads after this step.
    pub frees: Vec<usize>,
}

/// A network ready to run.
#[derive(Debug)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    pub slots: Vec<Form>,
    pub constants: Vec<(Form, Buffer)>,
    pub inputs: Vec<usize>,
    pub outputs: Vec<Source>,
    pub report: Vec<NodeReport>,
    /// Whether samples can be run in any grouping.
    pub splits: bool,
}

/// A graph, and what its constants and sites mean.
#[derive(Clone, Copy)]
pub(super) struct Network<'a> {
    pub graph: &'a Graph,
    pub sites: &'a BTreeMap<ValueId, (Role, QParams)>,
}

impl<'a> Network<'a> {
    fn quantized(&self, id: ValueId) -> Option<QuantTensor<'a>> {
        let (Role::Weight | Role::Bias, params) = self.sites.get(&id)? else { return None };
        let tensor = self.graph.constant(id)?;
        Some(QuantTensor { shape: tensor.shape(), codes: tensor.data(), params })
    }

    fn site(&self, id: ValueId) -> Option<&'a QParams> {
        match self.sites.get(&id)? {
            (Role::Activation | Role::Input, params) => Some(params),
            _ => None,
        }
    }
}

/// Plans a network.
pub(super) fn plan(network: Network<'_>, kernels: Kernels) -> Result<Plan, Error> {
    let graph = network.graph;
    let one = graph.shapes(1)?;
    // A graph that insists on one sample has the same shapes for any batch that it accepts.
    let tables = match (graph.shapes(2), graph.shapes(3)) {
        (Ok(two), Ok(three)) => [one, two, three],
        _ => [one.clone(), one.clone(), one],
    };
    let mut uses = vec![0usize; graph.values().len()];
    graph.nodes().iter().flat_map(|n| n.inputs.iter().flatten()).for_each(|id| uses[id.index()] += 1);
    graph.outputs().iter().for_each(|id| uses[id.index()] += 2);
    let planner = Planner {
        network,
        kernels,
        splits: splits(graph, &tables),
        integral: integral(network),
        tables,
        uses,
        consumers: graph.consumers(),
        forms: HashMap::new(),
        natural: vec![None; graph.values().len()],
        folded: HashMap::new(),
        absorbed: vec![false; graph.nodes().len()],
        pending: HashMap::new(),
        plan: Plan {
            steps: vec![],
            slots: vec![],
            constants: vec![],
            inputs: vec![],
            outputs: vec![],
            report: vec![],
            splits: false,
        },
    };
    planner.run()
}

/// Which values are integers: shapes and what is computed from them.
fn integral(network: Network<'_>) -> Vec<bool> {
    let graph = network.graph;
    let is_float = |t: &Tensor| matches!(t.data(), Data::F32(_));
    // The codes of a quantized constant stand for floats.
    let is_int = |id: ValueId| graph.constant(id).is_some_and(|t| !is_float(t) && network.quantized(id).is_none());
    let mut out: Vec<bool> = graph.value_ids().map(is_int).collect();
    for node in graph.nodes() {
        let result = match &node.op {
            Op::ShapeOf(_) => true,
            Op::Cast(op) => op.to != 1,
            Op::Constant(op) => !is_float(&op.value),
            Op::ConstantOfShape(op) => !is_float(&op.value),
            _ => node.input(0).is_some_and(|id| out[id.index()]),
        };
        node.outputs.iter().for_each(|id| out[id.index()] = result);
    }
    out
}

/// Whether every value that depends on an input is a list of samples that nothing mixes.
fn splits(graph: &Graph, tables: &[Vec<Shape>; 3]) -> bool {
    let mut varies = vec![false; graph.values().len()];
    graph.inputs().iter().for_each(|i| varies[i.value.index()] = true);
    for node in graph.nodes() {
        let moves = node.inputs.iter().flatten().any(|id| varies[id.index()]);
        node.outputs.iter().for_each(|id| varies[id.index()] = moves);
        let rank = node.input(0).map_or(0, |id| tables[0][id.index()].len());
        let first = |axis: i64| axis == 0 || axis == -(rank as i64);
        let mixes = match &node.op {
            Op::Softmax(op) => first(op.axis),
            Op::LogSoftmax(op) => first(op.axis),
            Op::Gather(op) => first(op.axis) || node.input(1).is_some_and(|id| varies[id.index()]),
            Op::ShapeOf(_) => true,
            Op::Slice(op) => {
                let of = |t: &Vec<Shape>| {
                    node.input(0).and_then(|id| Some(op.per_axis(&t[id.index()]).ok()?.first()?.to_owned()))
                };
                tables.iter().enumerate().any(|(i, t)| of(t) != Some((0, 1, i + 1)))
            }
            _ => false,
        };
        if moves && mixes {
            return false;
        }
    }
    let listed = |index: usize| {
        let rest =
            |t: &[Shape], batch| t[index].split_first().filter(|(b, _)| **b == batch).map(|(_, rest)| rest.to_vec());
        let rests = [rest(&tables[0], 1), rest(&tables[1], 2), rest(&tables[2], 3)];
        rests[0].is_some() && rests[0] == rests[1] && rests[1] == rests[2]
    };
    (0..varies.len()).all(|i| !varies[i] || listed(i)) && graph.outputs().iter().all(|id| varies[id.index()])
}

/// Notes after which step each slot is read for the last time.
fn free_early(plan: &mut Plan) {
    let mut last = vec![None; plan.slots.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        for source in &step.inputs {
            if let Source::Slot(slot) = source {
                last[*slot] = Some(index);
            }
        }
        step.outputs.iter().for_each(|&slot| last[slot] = Some(index));
    }
    for source in &plan.outputs {
        if let Source::Slot(slot) = source {
            last[*slot] = None;
        }
    }
    for (slot, last) in last.into_iter().enumerate() {
        if let Some(step) = last {
            plan.steps[step].frees.push(slot);
        }
    }
}
