//! From a graph to steps: which values exist as codes, in which layout, and which nodes run together.
//!
//! * A value at an activation site is stored as **codes**; every other one as floats (or integers, for shapes).
//! * Images are channels-last inside (`Layout::Last`), canonical at the borders; conversions are steps that are planned
//!   where a reader asks for a form that does not exist yet.
//! * A product and the element-wise nodes after it become one step (see [`super::chain`]), as long as nobody else reads
//!   the values in between. The step runs where its last node stood, when all its operands exist.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bitsmith_graph::model::moves_elements;
use bitsmith_graph::ops::{AveragePool, Conv, Gather, MaxPool, Pad, ShapeOf, Slice};
use bitsmith_graph::quant::for_each_channel;
use bitsmith_graph::{Data, Granularity, Graph, Grid, Node, Op, QParams, QuantTensor, Role, Shape, Tensor, ValueId};
use bitsmith_kernels::gemm::Order;
use bitsmith_kernels::numerics::batch_norm_affine;

use super::chain::{Binary, Link, Side, activation_of};
use super::grid::ByteGrid;
use super::product::{Geometry, IntegerWeight};
use super::report::{Arithmetic, NodeReport};
use super::{Kernels, geometry};
use crate::error::{Error, Kind};

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
    F32(Vec<f32>),
    Codes(Vec<u8>),
    Ints(Vec<i64>),
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
    MatMul,
    ShapeOf(ShapeOf),
    ToFloat,
    ToInts {
        boolean: bool,
    },
}

/// Where a chain starts.
#[derive(Debug)]
pub(super) enum Head {
    Value,
    Conv(Conv, Weight),
    /// For one row; there are as many as the result has.
    Linear(Geometry, Weight),
}

/// What a product multiplies with.
#[derive(Debug)]
pub(super) enum Weight {
    /// Input 1, in floats.
    Float,
    Integer(Box<IntegerWeight>),
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
        integral: integral(graph),
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
fn integral(graph: &Graph) -> Vec<bool> {
    let is_float = |t: &Tensor| matches!(t.data(), Data::F32(_));
    let mut out: Vec<bool> = graph.values().iter().map(|v| v.constant.as_ref().is_some_and(|t| !is_float(t))).collect();
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

/// A chain that waits for its last node.
struct Pending {
    first: usize,
    start: ValueId,
    layout: Layout,
    links: Vec<Link<ValueId>>,
    end: ValueId,
}

struct Planner<'a> {
    network: Network<'a>,
    kernels: Kernels,
    splits: bool,
    integral: Vec<bool>,
    /// Shapes for 1, 2 and 3 samples: two shapes are equal if they are in all three.
    tables: [Vec<Shape>; 3],
    /// Readers of each value, the caller counting twice.
    uses: Vec<usize>,
    consumers: Vec<Vec<usize>>,
    forms: HashMap<(ValueId, Elem, Layout), Source>,
    /// The form in which a value was made.
    natural: Vec<Option<(Elem, Layout)>>,
    /// Constants that nodes stand for.
    folded: HashMap<ValueId, Tensor>,
    absorbed: Vec<bool>,
    pending: HashMap<usize, Pending>,
    plan: Plan,
}

impl Planner<'_> {
    fn run(mut self) -> Result<Plan, Error> {
        let graph = self.network.graph;
        for input in graph.inputs() {
            let slot = self.make(input.value, Elem::F32, Layout::Plain, None);
            self.plan.inputs.push(slot);
            self.settle(input.value, &graph.value(input.value).name)?;
        }
        for (index, node) in graph.nodes().iter().enumerate() {
            self.node(index, node).map_err(|e| e.at(&node.name))?;
        }
        for &id in graph.outputs() {
            let elem = if self.integral[id.index()] { Elem::Ints } else { Elem::F32 };
            let source = self.need(id, elem, Layout::Plain)?;
            self.plan.outputs.push(source);
        }
        self.plan.splits = self.splits;
        self.plan.report.sort_by_key(|r| r.node);
        free_early(&mut self.plan);
        Ok(self.plan)
    }

    fn shape(&self, id: ValueId) -> &[usize] {
        &self.tables[0][id.index()]
    }

    fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        self.tables.iter().all(|t| t[a.index()] == t[b.index()])
    }

    fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        self.network.graph.constant(id).or_else(|| self.folded.get(&id))
    }

    /// The float elements of a constant, decoded if need be.
    fn floats(&self, id: ValueId) -> Option<Vec<f32>> {
        match self.network.quantized(id) {
            Some(quantized) => Some(quantized.decode()),
            None => Some(self.tensor(id)?.as_f32()?.to_vec()),
        }
    }

    /// A new slot for a form of a value.
    fn make(&mut self, value: ValueId, elem: Elem, layout: Layout, grid: Option<ByteGrid>) -> usize {
        let layout = if self.shape(value).len() < 3 { Layout::Plain } else { layout };
        let slot = self.plan.slots.len();
        self.plan.slots.push(Form { value, elem, layout, grid });
        self.forms.insert((value, elem, layout), Source::Slot(slot));
        self.natural[value.index()] = Some((elem, layout));
        slot
    }

    fn push(&mut self, name: &str, action: Action, inputs: Vec<Source>, outputs: Vec<usize>) {
        self.plan.steps.push(Step { name: name.to_owned(), action, inputs, outputs, frees: vec![] });
    }

    fn natural(&self, id: ValueId) -> (Elem, Layout) {
        let elem = if self.integral[id.index()] { Elem::Ints } else { Elem::F32 };
        self.natural[id.index()].unwrap_or((elem, Layout::Plain))
    }

    fn form(&self, source: Source) -> &Form {
        match source {
            Source::Slot(i) => &self.plan.slots[i],
            Source::Constant(i) => &self.plan.constants[i].0,
        }
    }

    /// The grid of a value that exists as codes.
    fn grid(&self, id: ValueId) -> Option<ByteGrid> {
        let (elem, layout) = self.natural[id.index()]?;
        let source = (elem == Elem::Codes).then(|| self.forms.get(&(id, elem, layout)))??;
        self.form(*source).grid
    }

    /// A form of a value, converted from the one it was made in if it does not exist yet.
    fn need(&mut self, id: ValueId, elem: Elem, layout: Layout) -> Result<Source, Error> {
        let layout = if self.shape(id).len() < 3 { Layout::Plain } else { layout };
        if let Some(&source) = self.forms.get(&(id, elem, layout)) {
            return Ok(source);
        }
        let name = &self.network.graph.value(id).name;
        if self.tensor(id).is_some() {
            let source = self.constant(id, elem, layout).map_err(|e| e.at(name))?;
            self.forms.insert((id, elem, layout), source);
            return Ok(source);
        }
        let natural = self.natural(id);
        let grid = self.grid(id);
        let before = match (natural.0 == elem, natural.0) {
            // First the elements (codes are decoded where they were made), then their order.
            (false, Elem::Codes) if elem == Elem::F32 => {
                let from = self.need(id, Elem::Codes, natural.1)?;
                match self.forms.get(&(id, Elem::F32, natural.1)) {
                    Some(&source) => source,
                    None => {
                        let slot = self.make(id, Elem::F32, natural.1, None);
                        self.push(name, Action::Chain { head: Head::Value, links: vec![] }, vec![from], vec![slot]);
                        Source::Slot(slot)
                    }
                }
            }
            (true, _) => match self.forms.get(&(id, elem, natural.1)) {
                Some(&source) => source,
                None => return Err(Error::new(Kind::Model, "this value is read before it is computed").at(name)),
            },
            _ => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("is made of {:?} where {elem:?} are needed", natural.0),
                )
                .at(name));
            }
        };
        self.natural[id.index()] = Some(natural);
        if natural.1 == layout {
            return Ok(before);
        }
        let slot = self.make(id, elem, layout, grid.filter(|_| elem == Elem::Codes));
        self.natural[id.index()] = Some(natural);
        self.push(name, Action::Relayout, vec![before], vec![slot]);
        Ok(Source::Slot(slot))
    }

    fn constant(&mut self, id: ValueId, elem: Elem, layout: Layout) -> Result<Source, Error> {
        let shape = self.shape(id).to_vec();
        let buffer = match elem {
            Elem::F32 => {
                let values =
                    self.floats(id).ok_or_else(|| Error::new(Kind::Unsupported, "integers where floats are needed"))?;
                let mut arranged = values.clone();
                if layout == Layout::Last {
                    super::moves::transpose(shape[1], shape[2..].iter().product(), &values, &mut arranged);
                }
                Buffer::F32(arranged)
            }
            _ => {
                let ints = self.tensor(id).and_then(Tensor::to_ints);
                Buffer::Ints(ints.ok_or_else(|| Error::new(Kind::Unsupported, "floats where integers are needed"))?)
            }
        };
        let layout = if elem == Elem::F32 { layout } else { Layout::Plain };
        self.plan.constants.push((Form { value: id, elem, layout, grid: None }, buffer));
        Ok(Source::Constant(self.plan.constants.len() - 1))
    }

    /// Rounds a value that was just made, if it is a site.
    fn settle(&mut self, id: ValueId, name: &str) -> Result<(), Error> {
        let Some(site) = self.network.site(id) else { return Ok(()) };
        let (elem, layout) = self.natural(id);
        let grid = ByteGrid::of(site);
        if elem == Elem::Codes && self.grid(id) == grid {
            return Ok(());
        }
        let from = self.need(id, Elem::F32, layout)?;
        // Nobody may read the value as it was before rounding.
        self.forms.retain(|(value, ..), _| *value != id);
        let (elem, links) = rounding(site);
        let slot = self.make(id, elem, layout, grid);
        self.push(name, Action::Chain { head: Head::Value, links }, vec![from], vec![slot]);
        Ok(())
    }

    fn note(&mut self, index: usize, arithmetic: Arithmetic, reason: impl Into<String>) {
        let node = &self.network.graph.nodes()[index];
        let (name, op) = (node.name.clone(), node.op.name());
        self.plan.report.push(NodeReport { node: index, name, op, arithmetic, reason: reason.into() });
    }

    fn node(&mut self, index: usize, node: &Node) -> Result<(), Error> {
        if !self.absorbed[index] {
            match self.start(index, node)? {
                Some(pending) => {
                    let mut last = index;
                    let pending = self.grow(index, pending, &mut last);
                    self.pending.insert(last, pending);
                }
                None => self.single(index, node)?,
            }
        }
        match self.pending.remove(&index) {
            Some(pending) => self.emit(pending),
            None => Ok(()),
        }
    }

    /// The beginning of a chain at a node, if chains can begin there.
    fn start(&mut self, index: usize, node: &Node) -> Result<Option<Pending>, Error> {
        let end = node.output();
        let product = match (&node.op, node.input(0), node.input(1)) {
            (Op::Conv(_), Some(x), _) => Some((x, Layout::Last)),
            (Op::Gemm(_), Some(x), _) => Some((x, Layout::Plain)),
            (Op::MatMul(_), Some(x), Some(w))
                if self.tensor(w).is_some_and(|t| t.shape().len() == 2) && self.tensor(x).is_none() =>
            {
                Some((x, Layout::Plain))
            }
            _ => None,
        };
        if let Some((start, layout)) = product {
            let links = self.own_links(node)?;
            return Ok(Some(Pending { first: index, start, layout, links, end }));
        }
        // An element-wise node: it starts from the operand that has the result's shape.
        let candidates = node.inputs.iter().take(2).flatten().copied();
        for x in candidates.filter(|&x| self.tensor(x).is_none() && self.same_shape(x, end)) {
            let layout = match node.op {
                Op::BatchNormalization(_) => Layout::Last,
                _ => self.natural(x).1,
            };
            if let Some(links) = self.link(node, x, layout) {
                let links = links.into_iter().collect();
                self.note(index, Arithmetic::Float, "element-wise");
                return Ok(Some(Pending { first: index, start: x, layout, links, end }));
            }
        }
        Ok(None)
    }

    /// What a product's own attributes and bias add.
    fn own_links(&mut self, node: &Node) -> Result<Vec<Link<ValueId>>, Error> {
        let channel = |op, values: Vec<f32>| Link::Channel { op, side: Side::Left, values: values.into() };
        let mut links = vec![];
        let (bias, beta) = match &node.op {
            Op::Conv(_) => (node.input(2), 1.0),
            Op::Gemm(op) => {
                if op.alpha != 1.0 {
                    links.push(channel(Binary::Mul, vec![op.alpha]));
                }
                (node.input(2), op.beta)
            }
            _ => (None, 1.0),
        };
        let Some(bias) = bias else { return Ok(links) };
        let n = *self.shape(node.output()).get(1).unwrap_or(&1);
        let shape = self.shape(bias);
        let per_channel =
            shape.iter().product::<usize>() == 1 || (shape.last() == Some(&n) && shape.iter().product::<usize>() == n);
        match self.floats(bias) {
            Some(values) if per_channel => links
                .push(channel(Binary::Add, values.iter().map(|v| if beta == 1.0 { *v } else { v * beta }).collect())),
            None if beta == 1.0 && self.same_shape(bias, node.output()) => {
                links.push(Link::Value { op: Binary::Add, side: Side::Left, other: bias })
            }
            _ => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("its bias is {shape:?}: a constant number per output channel is supported"),
                ));
            }
        }
        Ok(links)
    }

    /// The link that a node is for the running value `x`, if it is one: `None` if it cannot follow, `Some(None)` if it does
    /// nothing.
    fn link(&self, node: &Node, x: ValueId, layout: Layout) -> Option<Option<Link<ValueId>>> {
        let y = node.output();
        if !self.same_shape(x, y) || self.integral[x.index()] {
            return None;
        }
        let rank = self.shape(x).len();
        let layout = if rank < 3 { Layout::Plain } else { layout };
        if let Op::Identity(_) | Op::Dropout(_) = &node.op {
            // Inside a chain there is nothing to do; alone it is a move.
            return self.natural[x.index()].is_none().then_some(None);
        }
        if let Some(act) = activation_of(&node.op) {
            return Some(Some(Link::Activation(act)));
        }
        if let Op::BatchNormalization(op) = &node.op {
            if node.input(0) != Some(x) || layout.axis(rank, 1) != rank - 1 {
                return None;
            }
            let p: Vec<_> = (1..5).map(|i| self.floats(node.input(i)?)).collect::<Option<_>>()?;
            let [gamma, beta, mean, var] = p.as_slice() else { return None };
            let of = |c: usize| batch_norm_affine(gamma[c], beta[c], mean[c], var[c], op.epsilon);
            let (a, b): (Vec<_>, Vec<_>) = (0..gamma.len()).map(of).unzip();
            return Some(Some(Link::Affine { a: a.into(), b: b.into() }));
        }
        let op = Binary::of(&node.op)?;
        let (side, other) = match (node.input(0)?, node.input(1)?) {
            (a, b) if a == x && b != x => (Side::Left, b),
            (a, b) if b == x && a != x => (Side::Right, a),
            _ => return None,
        };
        if self.tensor(other).is_some() {
            let values = self.floats(other)?;
            let shape = self.shape(other);
            // A scalar, or all elements along the axis that is last in memory.
            let wide: Vec<_> = (0..shape.len()).filter(|&a| shape[a] != 1).map(|a| a + rank - shape.len()).collect();
            let fits = match wide.as_slice() {
                [] => true,
                &[axis] => layout.axis(rank, axis) == rank - 1,
                _ => false,
            };
            return fits.then_some(Some(Link::Channel { op, side, values: values.into() }));
        }
        let fits = self.same_shape(other, y) && !self.integral[other.index()];
        fits.then_some(Some(Link::Value { op, side, other }))
    }

    /// Appends the element-wise nodes that follow and whose inputs nobody else reads.
    fn grow(&mut self, index: usize, mut pending: Pending, last: &mut usize) -> Pending {
        let graph = self.network.graph;
        *last = index;
        while self.network.site(pending.end).is_none() && self.uses[pending.end.index()] == 1 {
            let Some(&next) = self.consumers[pending.end.index()].first() else { break };
            let node = &graph.nodes()[next];
            if self.absorbed[next] || node.outputs.len() != 1 {
                break;
            }
            let Some(link) = self.link(node, pending.end, pending.layout) else { break };
            pending.links.extend(link);
            pending.end = node.output();
            self.absorbed[next] = true;
            let head = graph.nodes()[pending.first].name.clone();
            self.note(next, Arithmetic::Float, format!("fused into `{head}`"));
            *last = next;
        }
        pending
    }

    /// Plans a chain whose operands all exist by now.
    fn emit(&mut self, pending: Pending) -> Result<(), Error> {
        let graph = self.network.graph;
        let node = &graph.nodes()[pending.first];
        let Pending { first, start, layout, links, end } = pending;
        let mut inputs = Vec::new();
        let head = match &node.op {
            Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) => {
                let (head, sources) = self.product(first, node, start)?;
                inputs = sources;
                head
            }
            _ => {
                let elem = self.natural(start).0;
                inputs.push(self.need(start, elem, layout)?);
                Head::Value
            }
        };
        let mut placed: Vec<Link<usize>> = Vec::with_capacity(links.len());
        for link in &links {
            if let Link::Value { other, .. } = link {
                let elem = self.natural(*other).0;
                inputs.push(self.need(*other, elem, layout)?);
            }
            placed.push(link.map(|_| inputs.len() - 1));
        }
        let (mut elem, mut grid) = (Elem::F32, None);
        if let Some(site) = self.network.site(end) {
            let (kept, round) = rounding(site);
            elem = kept;
            grid = ByteGrid::of(site);
            placed.extend(round);
        }
        let slot = self.make(end, elem, layout, grid);
        self.push(&node.name, Action::Chain { head, links: placed }, inputs, vec![slot]);
        Ok(())
    }

    /// The head of a product and its sources: integers if both sides are.
    fn product(&mut self, index: usize, node: &Node, x: ValueId) -> Result<(Head, Vec<Source>), Error> {
        let missing = || Error::new(Kind::Model, "it has no weight");
        let w = node.input(1).ok_or_else(missing)?;
        let w_shape = self.shape(w).to_vec();
        let (channel_axis, layout) = match &node.op {
            Op::Conv(_) => (0, Layout::Last),
            Op::Gemm(op) if op.trans_b => (0, Layout::Plain),
            _ => (1, Layout::Plain),
        };
        let geometry = match &node.op {
            Op::Conv(op) => Geometry::Conv(geometry::conv(op, self.shape(x), &w_shape)?),
            op => {
                let transposed = matches!(op, Op::Gemm(op) if op.trans_b);
                let order = if transposed { Order::Transposed } else { Order::Plain };
                Geometry::Linear { m: 1, k: w_shape[1 - channel_axis], n: w_shape[channel_axis], order }
            }
        };
        let integer = self.integer_weight(w, x, channel_axis, &geometry)?;
        let mut inputs = Vec::new();
        let weight = match integer {
            Ok(weight) => {
                inputs.push(self.need(x, Elem::Codes, layout)?);
                self.note(index, Arithmetic::Integer, weight.describe());
                Weight::Integer(Box::new(weight))
            }
            Err(reason) => {
                inputs.push(self.need(x, Elem::F32, layout)?);
                inputs.push(self.need(w, Elem::F32, Layout::Plain)?);
                self.note(index, Arithmetic::Float, reason);
                Weight::Float
            }
        };
        if let Op::Gemm(op) = &node.op
            && op.trans_a
        {
            let form = self.form(inputs[0]).clone();
            let slot = self.plan.slots.len();
            self.plan.slots.push(form);
            self.push(&node.name, Action::Permute(vec![1, 0]), vec![inputs[0]], vec![slot]);
            inputs[0] = Source::Slot(slot);
        }
        let head = match (&node.op, geometry) {
            (Op::Conv(op), _) => Head::Conv(op.clone(), weight),
            (_, geometry) => Head::Linear(geometry, weight),
        };
        Ok((head, inputs))
    }

    /// The integer form of a weight for an input, or why there is none.
    fn integer_weight(
        &self,
        w: ValueId,
        x: ValueId,
        channel_axis: usize,
        geometry: &Geometry,
    ) -> Result<Result<IntegerWeight, String>, Error> {
        let Some(quantized) = self.network.quantized(w) else {
            let reason =
                if self.tensor(w).is_some() { "its weight is not quantized" } else { "its weight is computed" };
            return Ok(Err(reason.to_owned()));
        };
        let shape = quantized.shape;
        let Some(grid) = self.grid(x) else { return Ok(Err("its input is not quantized".to_owned())) };
        if shape.contains(&0) {
            return Ok(Err("its weight has no elements".to_owned()));
        }
        let params = quantized.params;
        if let Granularity::PerChannel { axis } = params.spec.per
            && axis != channel_axis
        {
            return Ok(Err(format!("its scales follow axis {axis}, which is summed over")));
        }
        let level = |code: i32| params.levels.get(usize::try_from(code).unwrap_or(0)).copied().unwrap_or(0.0);
        if params.spec.grid == Grid::Codebook && params.levels.iter().any(|l| l.fract() != 0.0 || l.abs() > 255.0) {
            return Ok(Err("its codebook has levels that are not integers".to_owned()));
        }
        let mut codes = vec![0i16; quantized.codes.len()];
        for_each_channel(params.spec.per, shape, |i, channel| {
            let code = quantized.code(i);
            // Codes less zero points, and integer levels, lie within ±255.
            codes[i] = match params.spec.grid {
                Grid::Codebook => level(code) as i16,
                Grid::Planes { .. } => code as i16,
                Grid::Affine { .. } => (code - params.zero_point(channel)) as i16,
            };
        });
        let weight = IntegerWeight::new(shape, codes, &params.scale, geometry, grid, self.kernels)?;
        Ok(Ok(weight))
    }

    /// A node that is a step of its own.
    fn single(&mut self, index: usize, node: &Node) -> Result<(), Error> {
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
        let fits = node.outputs.iter().all(|&id| self.network.site(id).is_none_or(|site| ByteGrid::of(site) == grid));
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
            Op::MatMul(_) => (Action::MatMul, Layout::Plain, (Elem::F32, Layout::Plain)),
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
        let read = match &action {
            _ if sums_codes || keeps_codes => Elem::Codes,
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

/// How a site's values are kept, and the link that rounds them where they are not kept as codes.
fn rounding<V>(site: &QParams) -> (Elem, Vec<Link<V>>) {
    match ByteGrid::of(site) {
        Some(_) => (Elem::Codes, vec![]),
        None => (Elem::F32, vec![Link::Round(Arc::new(site.clone()))]),
    }
}

/// A tensor of one repeated element.
fn repeated(value: &Tensor, shape: &[usize]) -> Result<Tensor, Error> {
    let n: usize = shape.iter().product();
    if n > 1 << 28 {
        return Err(Error::new(Kind::Unsupported, format!("a constant of {n} elements is too large")));
    }
    let data = match (value.data(), value.to_ints().as_deref()) {
        (Data::F32(v), _) => Data::F32(vec![v.first().copied().unwrap_or(0.0); n]),
        (_, Some(&[v])) => Data::I64(vec![v; n]),
        _ => return Err(Error::new(Kind::Model, "its value has no element")),
    };
    Ok(Tensor::new(shape.to_vec(), data)?)
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
