//! Chains: a product or an element-wise node and the element-wise nodes that follow, as one step.

use bitsmith_graph::{Granularity, Grid, Node, Op, ValueId};
use bitsmith_kernels::gemm::Order;
use bitsmith_kernels::numerics::batch_norm_affine;

use super::super::chain::{Binary, Side};
use super::super::geometry;
use super::super::product::{Geometry, IntegerWeight};
use super::super::report::Arithmetic;
use super::super::weight_codes::WeightCodes;
use super::planner::{Planner, rounding};
use super::{Action, Elem, Head, Layout, Link, Source, Weight, byte_grid};
use crate::error::{Error, Kind};

/// A chain that waits for its last node.
pub(super) struct Pending {
    pub first: usize,
    pub start: ValueId,
    pub layout: Layout,
    pub links: Vec<Link<ValueId>>,
    pub end: ValueId,
}

impl Planner<'_> {
    /// The beginning of a chain at a node, if chains can begin there.
    pub fn start(&mut self, index: usize, node: &Node) -> Result<Option<Pending>, Error> {
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
        if let Some(act) = node.op.activation() {
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
    pub fn grow(&mut self, index: usize, mut pending: Pending, last: &mut usize) -> Pending {
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
    pub fn emit(&mut self, pending: Pending) -> Result<(), Error> {
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
            grid = byte_grid(site);
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
                let n = w_shape[channel_axis];
                // Of one sample; how many there are really is known when the step runs.
                let m = self.shape(node.output()).iter().product::<usize>() / n.max(1);
                Geometry::Linear { m, k: w_shape[1 - channel_axis], n, order }
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
        if params.spec.grid == Grid::Codebook && params.levels.iter().any(|l| l.fract() != 0.0 || l.abs() > 255.0) {
            return Ok(Err("its codebook has levels that are not integers".to_owned()));
        }
        let codes = WeightCodes::of(&quantized);
        let weight = IntegerWeight::new(shape, codes, &params.scale, geometry, grid, self.kernels)?;
        Ok(Ok(weight))
    }
}
