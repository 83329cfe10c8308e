//! The planner: walks the nodes and keeps the forms in which each value exists.

use std::collections::HashMap;
use std::sync::Arc;

use bitsmith_graph::{Node, QParams, Shape, Tensor, ValueId};
use bitsmith_kernels::layout;

use super::super::Kernels;
use super::super::report::{Arithmetic, NodeReport};
use super::chains::Pending;
use super::{
    Action, Buffer, ByteGrid, Elem, Form, Head, Layout, Link, Network, Plan, Source, Step, byte_grid, free_early,
};
use crate::error::{Error, Kind};
/// What is known while a plan is made.
pub(super) struct Planner<'a> {
    pub network: Network<'a>,
    pub kernels: Kernels,
    pub splits: bool,
    pub integral: Vec<bool>,
    /// Shapes for 1, 2 and 3 samples: two shapes are equal if they are in all three.
    pub tables: [Vec<Shape>; 3],
    /// Readers of each value, the caller counting twice.
    pub uses: Vec<usize>,
    pub consumers: Vec<Vec<usize>>,
    pub forms: HashMap<(ValueId, Elem, Layout), Source>,
    /// The form in which a value was made.
    pub natural: Vec<Option<(Elem, Layout)>>,
    /// Constants that nodes stand for.
    pub folded: HashMap<ValueId, Tensor>,
    pub absorbed: Vec<bool>,
    pub pending: HashMap<usize, Pending>,
    pub plan: Plan,
}

impl Planner<'_> {
    pub fn run(mut self) -> Result<Plan, Error> {
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

    pub fn shape(&self, id: ValueId) -> &[usize] {
        &self.tables[0][id.index()]
    }

    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        self.tables.iter().all(|t| t[a.index()] == t[b.index()])
    }

    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        self.network.graph.constant(id).or_else(|| self.folded.get(&id))
    }

    /// The float elements of a constant, decoded if need be.
    pub fn floats(&self, id: ValueId) -> Option<Vec<f32>> {
        match self.network.quantized(id) {
            Some(quantized) => Some(quantized.decode()),
            None => Some(self.tensor(id)?.as_f32()?.to_vec()),
        }
    }

    /// A new slot for a form of a value.
    pub fn make(&mut self, value: ValueId, elem: Elem, layout: Layout, grid: Option<ByteGrid>) -> usize {
        let layout = if self.shape(value).len() < 3 { Layout::Plain } else { layout };
        let slot = self.plan.slots.len();
        self.plan.slots.push(Form { value, elem, layout, grid });
        self.forms.insert((value, elem, layout), Source::Slot(slot));
        self.natural[value.index()] = Some((elem, layout));
        slot
    }

    pub fn push(&mut self, name: &str, action: Action, inputs: Vec<Source>, outputs: Vec<usize>) {
        self.plan.steps.push(Step { name: name.to_owned(), action, inputs, outputs, frees: vec![] });
    }

    pub fn natural(&self, id: ValueId) -> (Elem, Layout) {
        let elem = if self.integral[id.index()] { Elem::Ints } else { Elem::F32 };
        self.natural[id.index()].unwrap_or((elem, Layout::Plain))
    }

    pub fn form(&self, source: Source) -> &Form {
        match source {
            Source::Slot(i) => &self.plan.slots[i],
            Source::Constant(i) => &self.plan.constants[i].0,
        }
    }

    /// The grid of a value that exists as codes.
    pub fn grid(&self, id: ValueId) -> Option<ByteGrid> {
        let (elem, layout) = self.natural[id.index()]?;
        let source = (elem == Elem::Codes).then(|| self.forms.get(&(id, elem, layout)))??;
        self.form(*source).grid
    }

    /// A form of a value, converted from the one it was made in if it does not exist yet.
    pub fn need(&mut self, id: ValueId, elem: Elem, layout: Layout) -> Result<Source, Error> {
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

    pub fn constant(&mut self, id: ValueId, elem: Elem, layout: Layout) -> Result<Source, Error> {
        let shape = self.shape(id).to_vec();
        let buffer = match elem {
            Elem::F32 => {
                let values =
                    self.floats(id).ok_or_else(|| Error::new(Kind::Unsupported, "integers where floats are needed"))?;
                let mut arranged = values.clone();
                if layout == Layout::Last {
                    layout::transpose(shape[1], shape[2..].iter().product(), &values, &mut arranged);
                }
                Buffer::F32(arranged.into())
            }
            _ => {
                let ints = self.tensor(id).and_then(Tensor::to_ints);
                let needed = || Error::new(Kind::Unsupported, "floats where integers are needed");
                Buffer::Ints(ints.ok_or_else(needed)?.into())
            }
        };
        let layout = if elem == Elem::F32 { layout } else { Layout::Plain };
        self.plan.constants.push((Form { value: id, elem, layout, grid: None }, buffer));
        Ok(Source::Constant(self.plan.constants.len() - 1))
    }

    /// Rounds a value that was just made, if it is a site.
    pub fn settle(&mut self, id: ValueId, name: &str) -> Result<(), Error> {
        let Some(site) = self.network.site(id) else { return Ok(()) };
        let (elem, layout) = self.natural(id);
        let grid = byte_grid(site);
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

    pub fn note(&mut self, index: usize, arithmetic: Arithmetic, reason: impl Into<String>) {
        let node = &self.network.graph.nodes()[index];
        let (name, op) = (node.name.clone(), node.op.name());
        self.plan.report.push(NodeReport { node: index, name, op, arithmetic, reason: reason.into() });
    }

    pub fn node(&mut self, index: usize, node: &Node) -> Result<(), Error> {
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
}

/// How a site's values are kept, and the link that rounds them where they are not kept as codes.
pub(super) fn rounding<V>(site: &QParams) -> (Elem, Vec<Link<V>>) {
    match byte_grid(site) {
        Some(_) => (Elem::Codes, vec![]),
        None => (Elem::F32, vec![Link::Round(Arc::new(site.clone()))]),
    }
}
