//! From a graph to a [`Plan`].

use std::collections::BTreeMap;

use bitsmith_graph::{Graph, Node, Op, Shape, ValueId};

use super::chains::{Chain, Fused};
use super::{Arg, Kind, Layout, NormStep, Plan, Role, Slot, Step};
use crate::error::{Error, Kind as ErrorKind};
use crate::ops::Rounding;

/// What compiling needs to know about a model.
pub(crate) struct Facts<'a> {
    pub graph: &'a Graph,
    /// Shapes of all values for one sample.
    pub shapes: &'a [Shape],
    /// Activation and input sites that round.
    pub sites: &'a BTreeMap<ValueId, Rounding>,
}

/// Compiles what is needed to compute `outputs`.
pub(crate) fn compile(facts: &Facts<'_>, outputs: &[ValueId]) -> Result<Plan, Error> {
    let mut compiler = Compiler::new(facts, outputs);
    let chains = compiler.find_chains();
    let input = facts.graph.inputs()[0].value;
    let input_slot = compiler.define(input, Layout::First);
    compiler.round(input);
    for (index, node) in facts.graph.nodes().iter().enumerate() {
        if !compiler.needed[index] {
            continue;
        }
        match chains.get(&index) {
            Some(Chain::Inside) => {}
            Some(Chain::Last(chain)) => compiler.norm(chain, node)?,
            Some(Chain::Biased(add, bias)) => compiler.linear(node, Some((add, *bias))).map_err(|e| place(e, node))?,
            None => compiler.node(node).map_err(|e| place(e, node))?,
        }
    }
    let outputs = outputs
        .iter()
        .map(|&id| match compiler.arg(id, Layout::First)? {
            Arg::Slot(slot) => Ok(slot),
            Arg::Constant(_) => Err(Error::new(
                ErrorKind::Unsupported,
                facts.graph.value(id).name.clone(),
                "this value is a constant: read it from the model",
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(compiler.finish(input_slot, outputs))
}

fn place(mut error: Error, node: &Node) -> Error {
    if error.place.is_empty() {
        error.place = node.name.clone();
    }
    error
}

pub(super) fn unsupported(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, "", detail)
}

pub(super) struct Compiler<'a> {
    pub facts: &'a Facts<'a>,
    pub needed: Vec<bool>,
    /// The needed nodes that read each value, once per reading input.
    pub readers: Vec<Vec<usize>>,
    pub pinned: Vec<bool>,
    /// Where a value is, by layout.
    pub places: BTreeMap<(ValueId, Layout), Slot>,
    slots: Slot,
    steps: Vec<Step>,
    constants: BTreeMap<ValueId, Role>,
    sites: Vec<ValueId>,
    pairs: Vec<ValueId>,
}

impl<'a> Compiler<'a> {
    fn new(facts: &'a Facts<'a>, outputs: &[ValueId]) -> Self {
        let graph = facts.graph;
        let mut wanted = vec![false; graph.values().len()];
        outputs.iter().for_each(|id| wanted[id.index()] = true);
        let pinned = wanted.clone();
        let mut needed = vec![false; graph.nodes().len()];
        let mut readers = vec![vec![]; graph.values().len()];
        for (index, node) in graph.nodes().iter().enumerate().rev() {
            needed[index] = node.outputs.iter().any(|id| wanted[id.index()]);
            if needed[index] {
                for id in node.inputs.iter().flatten() {
                    wanted[id.index()] = true;
                    readers[id.index()].push(index);
                }
            }
        }
        Self {
            facts,
            needed,
            readers,
            pinned,
            places: BTreeMap::new(),
            slots: 0,
            steps: vec![],
            constants: BTreeMap::new(),
            sites: vec![],
            pairs: vec![],
        }
    }

    pub fn shape(&self, id: ValueId) -> &'a [usize] {
        &self.facts.shapes[id.index()]
    }

    pub fn rank(&self, id: ValueId) -> usize {
        self.shape(id).len()
    }

    /// Only values of three and four axes have a channels-last form.
    pub fn effective(&self, id: ValueId, layout: Layout) -> Layout {
        if matches!(self.rank(id), 3 | 4) { layout } else { Layout::First }
    }

    pub fn new_slot(&mut self) -> Slot {
        self.slots += 1;
        self.slots - 1
    }

    pub fn define(&mut self, id: ValueId, layout: Layout) -> Slot {
        let slot = self.new_slot();
        self.places.insert((id, self.effective(id, layout)), slot);
        slot
    }

    pub fn push(&mut self, name: &str, kind: Kind, inputs: Vec<Arg>, outputs: Vec<Slot>, x: ValueId, y: ValueId) {
        self.steps.push(Step { name: name.to_owned(), kind, inputs, outputs, x, y, free: vec![] });
    }

    /// Rounds a value just defined, if it is a site.
    pub fn round(&mut self, id: ValueId) {
        let Some(rounding) = self.facts.sites.get(&id).copied() else { return };
        let kind = match rounding {
            Rounding::One(quant) => Kind::FakeQuant(id, quant),
            Rounding::Between(pair) => {
                self.pairs.push(id);
                Kind::FakeQuantPair(id, pair)
            }
        };
        for layout in [Layout::First, Layout::Last] {
            if let Some(&slot) = self.places.get(&(id, layout)) {
                let out = self.new_slot();
                let name = self.facts.graph.value(id).name.clone();
                self.push(&name, kind, vec![Arg::Slot(slot)], vec![out], id, id);
                self.places.insert((id, layout), out);
                self.sites.push(id);
                // The other layout, if there is one, is stale now: it will be converted again if asked for.
                let other = if layout == Layout::First { Layout::Last } else { Layout::First };
                self.places.remove(&(id, other));
                return;
            }
        }
    }

    /// A float constant of one of these uses, or the slot of a computed value in a layout.
    pub fn arg(&mut self, id: ValueId, layout: Layout) -> Result<Arg, Error> {
        if self.facts.graph.constant(id).is_some() {
            return self.constant(id, Role::Operand);
        }
        let layout = self.effective(id, layout);
        if let Some(&slot) = self.places.get(&(id, layout)) {
            return Ok(Arg::Slot(slot));
        }
        let (from, kind) = match layout {
            Layout::Last => (Layout::First, Kind::ToLast),
            Layout::First => (Layout::Last, Kind::ToFirst),
        };
        let Some(&slot) = self.places.get(&(id, from)) else {
            let name = &self.facts.graph.value(id).name;
            return Err(unsupported(format!("it reads `{name}`, which the engine does not compute")));
        };
        let out = self.define(id, layout);
        let name = self.facts.graph.value(id).name.clone();
        self.push(&name, kind, vec![Arg::Slot(slot)], vec![out], id, id);
        Ok(Arg::Slot(out))
    }

    pub fn constant(&mut self, id: ValueId, role: Role) -> Result<Arg, Error> {
        let value = self.facts.graph.value(id);
        let Some(tensor) = value.constant.as_ref() else {
            return Err(unsupported(format!("`{}` must be a constant here", value.name)));
        };
        if tensor.as_f32().is_none() {
            let dtype = tensor.data().dtype();
            return Err(unsupported(format!("`{}` is a constant of type {dtype}: only F32 is trained", value.name)));
        }
        // A constant may serve twice; the more specific use counts.
        let known = self.constants.entry(id).or_insert(role);
        *known = role.min(*known);
        Ok(Arg::Constant(id))
    }

    /// A weight or bias: a constant, or (rarely) computed.
    pub fn weight(&mut self, id: ValueId, role: Role) -> Result<Arg, Error> {
        match self.facts.graph.constant(id) {
            Some(_) => self.constant(id, role),
            None => self.arg(id, Layout::First),
        }
    }

    pub fn input(&self, node: &Node, index: usize) -> Result<ValueId, Error> {
        node.input(index).ok_or_else(|| unsupported(format!("input {index} is missing")))
    }

    /// Whether a value is at hand channels-last.
    pub fn is_last(&self, id: ValueId) -> bool {
        self.places.contains_key(&(id, Layout::Last))
    }

    /// A product with a weight, and the addition of a bias behind it if there is one.
    pub fn linear(&mut self, product: &'a Node, addition: Option<(&'a Node, ValueId)>) -> Result<(), Error> {
        let (x, w) = (self.input(product, 0)?, self.input(product, 1)?);
        let mut inputs = vec![self.arg(x, Layout::First)?, self.weight(w, Role::Weight)?];
        let mut last = product;
        if let Some((add, bias)) = addition {
            inputs.push(self.weight(bias, Role::Bias)?);
            last = add;
        }
        self.emit_from(x, last, Kind::Linear { transposed: false }, inputs, Layout::First);
        Ok(())
    }

    fn norm(&mut self, chain: &Fused<'a>, last: &'a Node) -> Result<(), Error> {
        self.norm_step(chain, last).map_err(|e| place(e, chain.norm))
    }

    fn norm_step(&mut self, chain: &Fused<'a>, last: &'a Node) -> Result<(), Error> {
        let Op::BatchNormalization(op) = &chain.norm.op else { return Ok(()) };
        let x = self.input(chain.norm, 0)?;
        if !matches!(self.rank(x), 2..=4) {
            return Err(unsupported(format!(
                "normalises {:?}: two to four axes are supported, reshape before it",
                self.shape(x)
            )));
        }
        if self.facts.graph.constant(x).is_some() {
            return Err(unsupported("normalises a constant: fold it first"));
        }
        let mut inputs = vec![self.arg(x, Layout::Last)?];
        for (index, role) in [(1, Role::Gamma), (2, Role::Beta)] {
            let id = self.input(chain.norm, index)?;
            inputs.push(self.constant(id, role)?);
        }
        let (mean, variance) = (self.input(chain.norm, 3)?, self.input(chain.norm, 4)?);
        self.constant(mean, Role::Mean)?;
        self.constant(variance, Role::Variance)?;
        if let Some(add) = chain.add {
            inputs.push(self.arg(add, Layout::Last)?);
        }
        let y = last.output();
        let quant = match self.facts.sites.get(&y) {
            Some(Rounding::One(quant)) => Some((y, *quant)),
            Some(Rounding::Between(_)) | None => None,
        };
        self.sites.extend(quant.map(|_| y));
        let step = NormStep {
            op: op.clone(),
            mean,
            variance,
            has_add: chain.add.is_some(),
            activation: chain.activation,
            quant,
        };
        let out = self.define(y, Layout::Last);
        self.push(&last.name, Kind::Norm(step), inputs, vec![out], x, y);
        if quant.is_none() {
            self.round(y);
        }
        Ok(())
    }

    /// A step with one output, which is rounded if it is a site.
    pub fn emit(&mut self, node: &Node, kind: Kind, inputs: Vec<Arg>, layout: Layout) {
        self.emit_from(node.input(0).unwrap_or(node.output()), node, kind, inputs, layout);
    }

    /// [`emit`](Self::emit) of several nodes, the first of which reads `x`.
    pub fn emit_from(&mut self, x: ValueId, last: &Node, kind: Kind, inputs: Vec<Arg>, layout: Layout) {
        let y = last.output();
        let out = self.define(y, layout);
        self.push(&last.name, kind, inputs, vec![out], x, y);
        self.round(y);
    }

    /// Fills in which slots die where.
    fn finish(mut self, input: Slot, outputs: Vec<Slot>) -> Plan {
        let mut seen = vec![false; self.slots];
        outputs.iter().for_each(|&slot| seen[slot] = true);
        for step in self.steps.iter_mut().rev() {
            let read = step.inputs.iter().filter_map(|arg| match arg {
                Arg::Slot(slot) => Some(*slot),
                Arg::Constant(_) => None,
            });
            for slot in read.chain(step.outputs.iter().copied()) {
                if !std::mem::replace(&mut seen[slot], true) {
                    step.free.push(slot);
                }
            }
        }
        let shapes = self.facts.shapes;
        let constants = self.constants.into_iter().map(|(id, role)| (id, role, shapes[id.index()].clone())).collect();
        Plan { steps: self.steps, slots: self.slots, input, outputs, constants, sites: self.sites, pairs: self.pairs }
    }
}
