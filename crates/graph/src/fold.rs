//! Constant folding: builds a [`Graph`] from nodes as other people's files have them, with parameters and shapes computed
//! by nodes of their own.
//!
//! ```text
//! for each node, in topological order:
//!     inputs that must be attributes here (Operator::PARAMS) are looked up: constants, or shape arithmetic
//!     everything it reads is constant  →  evaluate it; nothing of it stays in the graph
//!     it passes its input through      →  its readers read the input instead
//!     it rounds an activation (QDQ)    →  a quantization site
//!     else                             →  keep it, and infer the shapes of what it writes
//! ```
//!
//! The batch size is not known, so shape arithmetic runs twice, for two batch sizes. A number that comes out equal does
//! not depend on the batch; the one entry of a target shape that does becomes -1 ("as many as there are"). Anything else
//! that depends on the batch is an error that names the node.

mod evaluate;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::attrs::{Attr, Attrs};
use crate::error::{Error, Kind};
use crate::graph::{Dim, Graph, ValueId, check_size};
use crate::op::{InputShapes, Op, Operator};
use crate::ops::{Identity, Reshape, Split, normalize_axis};
use crate::quant::{QParams, Role, Site};
use crate::tensor::{Data, Shape, Tensor};
use evaluate::{Budget, evaluate, evaluate_named, passes_through, shape_of};

pub use evaluate::FOLDED_ONLY;

/// The two batch sizes that shape arithmetic runs with.
const BATCHES: [usize; 2] = [2, 3];

/// What the file says about the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// It is symbolic, or there is none.
    AsDeclared,
    /// It was fixed to this size and is being generalised: a target shape that starts with it may mean the batch.
    Generalised(usize),
}

/// A node as a file has it: all parameters as inputs, outputs that may be absent.
#[derive(Debug, Clone, Default)]
pub struct RawNode<'a> {
    /// The name in the file; may be empty.
    pub name: &'a str,
    /// The operator.
    pub op_type: &'a str,
    /// Its attributes.
    pub attrs: Attrs,
    /// Names of the values read; `None` where an optional input is absent.
    pub inputs: Vec<Option<&'a str>>,
    /// Names of the values written; `None` where an optional output is absent.
    pub outputs: Vec<Option<&'a str>>,
}

/// Builds a graph from raw nodes; see the module's page.
#[derive(Debug)]
pub struct Folder {
    batch: Batch,
    opset: u32,
    budget: Budget,
    known: HashMap<String, Known>,
    /// Values that are other values: (the other one, name of the node that passed it through).
    aliases: HashMap<String, (String, String)>,
    inputs: Vec<(String, Vec<Dim>)>,
    nodes: Vec<Pending>,
    /// Constants that the file stores in fewer bits than their type here has.
    narrow: HashMap<String, u8>,
}

/// What is known about a value before any input was seen.
#[derive(Debug)]
enum Known {
    Constant(Tensor),
    /// A number of shape arithmetic that depends on the batch: its values for [`BATCHES`].
    PerBatch([Tensor; 2]),
    /// Computed when the network runs: its shapes for [`BATCHES`].
    Computed([Shape; 2]),
    /// A computed value in integers: the value that is rounded, and on which grid.
    Codes(String, QParams),
    /// An output that exists only in training, of the node named.
    Dropped(String),
}

#[derive(Debug)]
struct Pending {
    name: String,
    op: Op,
    inputs: Vec<Option<String>>,
    outputs: Vec<String>,
    /// For the node (an `Identity`) that stands for a rounding: its grid.
    rounding: Option<QParams>,
}

impl Folder {
    /// An empty graph whose nodes mean what they mean in `opset`.
    pub fn new(opset: u32, batch: Batch) -> Self {
        let budget = Budget(1 << 26);
        Self {
            batch,
            opset,
            budget,
            known: HashMap::new(),
            aliases: HashMap::new(),
            inputs: vec![],
            nodes: vec![],
            narrow: HashMap::new(),
        }
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, dims: Vec<Dim>) -> Result<(), Error> {
        let shapes = BATCHES.map(|batch| shape_for(&dims, batch));
        check_size(&shapes[1]).map_err(|e| e.at(name))?;
        self.define(name, Known::Computed(shapes))?;
        self.inputs.push((name.to_owned(), dims));
        Ok(())
    }

    /// Adds a constant. It becomes part of the graph only if a node reads it when the network runs.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> Result<(), Error> {
        check_size(tensor.shape()).map_err(|e| e.at(name))?;
        // What the file itself pays for may be rearranged a few times.
        self.budget.0 = self.budget.0.saturating_add(tensor.len().saturating_mul(4));
        self.define(name, Known::Constant(tensor))
    }

    /// Adds a constant of integers that the file stores in `bits` bits each, which is what rounding to it saturates at.
    pub fn narrow_constant(&mut self, name: &str, tensor: Tensor, bits: u8) -> Result<(), Error> {
        self.narrow.insert(name.to_owned(), bits);
        self.constant(name, tensor)
    }

    /// Adds a node. What it reads must have been added before.
    pub fn node(&mut self, node: &RawNode<'_>) -> Result<(), Error> {
        let place = match (node.name, node.outputs.iter().flatten().next()) {
            ("", Some(output)) => format!("{} of `{output}`", node.op_type),
            (name, _) => name.to_owned(),
        };
        self.add(node).map_err(|e| e.at(place))
    }

    /// The graph that computes these values, and the sites where the file rounds. Nodes that the values do not need are
    /// left out.
    pub fn finish(mut self, outputs: &[&str]) -> Result<(Graph, BTreeMap<ValueId, Site>), Error> {
        let outputs: Vec<_> =
            outputs.iter().copied().filter(|o| !matches!(self.known.get(*o), Some(Known::Dropped(_)))).collect();
        if outputs.is_empty() {
            return Err(Error::new(Kind::Structure, "the graph has no outputs"));
        }
        self.keep_live(&outputs);
        let sites = self.settle_roundings(&outputs);
        let mut emit = Emit { graph: Graph::new(), known: self.known, names: HashMap::new() };
        for (name, dims) in &self.inputs {
            emit.graph.add_input(name, dims.clone())?;
        }
        for node in &self.nodes {
            emit.node(node)?;
        }
        let mut ids = Vec::with_capacity(outputs.len());
        for name in outputs {
            ids.push(match self.aliases.get(name) {
                Some((source, through)) => {
                    let source = emit.value(source)?;
                    let through = emit.unique(through, "identity");
                    emit.graph.add_node(&through, Identity, &[Some(source)], &[name])?[0]
                }
                None => emit.value(name)?,
            });
        }
        emit.graph.set_outputs(ids);
        if let Batch::Generalised(_) = self.batch {
            check_generalised(&emit.graph)?;
        }
        let mut by_value = BTreeMap::new();
        for (name, params) in sites {
            let id = emit.value(&name)?;
            let is_input = emit.graph.inputs().iter().any(|i| i.value == id);
            let role = if is_input { Role::Input } else { Role::Activation };
            by_value.insert(id, Site { role, spec: params.spec, params: Some(params) });
        }
        Ok((emit.graph, by_value))
    }

    /// Moves each rounding to the value that it rounds, where nothing else reads that value; returns the grids by value.
    ///
    /// The rounded value keeps the name that its readers know, unless what is rounded is an input of the network.
    fn settle_roundings(&mut self, outputs: &[&str]) -> Vec<(String, QParams)> {
        let mut reads: HashMap<&str, usize> = HashMap::new();
        let read = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).map(String::as_str);
        for name in read.chain(outputs.iter().map(|&o| self.aliases.get(o).map_or(o, |(source, _)| source))) {
            *reads.entry(name).or_default() += 1;
        }
        let inputs: HashSet<&str> = self.inputs.iter().map(|(name, _)| name.as_str()).collect();
        let (mut sites, mut renamed, mut gone) = (vec![], HashMap::new(), HashSet::new());
        let mut moved: HashSet<&str> = HashSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let (Some(params), Some(Some(source))) = (&node.rounding, node.inputs.first()) else { continue };
            let rounded = &node.outputs[0];
            let is_input = inputs.contains(source.as_str());
            // Where one rounding follows another at once, the second keeps its node.
            let kept = reads.get(source.as_str()) != Some(&1)
                || moved.contains(source.as_str())
                || is_input
                    && (outputs.contains(&rounded.as_str()) || self.aliases.values().any(|(s, _)| s == rounded));
            if kept {
                sites.push((rounded.clone(), params.clone()));
                continue;
            }
            gone.insert(index);
            moved.insert(rounded);
            let (from, to) = if is_input { (rounded, source) } else { (source, rounded) };
            renamed.insert(from.clone(), to.clone());
            sites.push((to.clone(), params.clone()));
        }
        let mut index = 0;
        self.nodes.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        let rename = |name: &mut String| {
            if let Some(to) = renamed.get(name) {
                name.clone_from(to);
            }
        };
        for node in &mut self.nodes {
            node.inputs.iter_mut().flatten().for_each(rename);
            node.outputs.iter_mut().for_each(rename);
        }
        sites
    }

    fn define(&mut self, name: &str, known: Known) -> Result<(), Error> {
        match self.known.insert(name.to_owned(), known) {
            None => Ok(()),
            Some(_) => Err(Error::new(Kind::Structure, "two values have this name").at(name)),
        }
    }

    fn add(&mut self, node: &RawNode<'_>) -> Result<(), Error> {
        let mut names: Vec<Option<String>> = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            names.push(input.map(|name| self.aliases.get(name).map_or(name, |(source, _)| source).to_owned()));
        }
        for name in names.iter().flatten() {
            match self.known.get(name) {
                None => return Err(Error::new(Kind::Structure, format!("reads `{name}`, which nothing writes"))),
                Some(Known::Dropped(by)) => {
                    let detail = format!("reads `{name}`, which `{by}` writes only in training");
                    return Err(Error::new(Kind::Structure, detail));
                }
                Some(_) => {}
            }
        }
        if FOLDED_ONLY.contains(&node.op_type) {
            return match self.round(node, &names)? {
                true => Ok(()),
                false => self.fold_named(node, &names),
            };
        }
        let attrs = self.with_params(node, &mut names)?;
        let [first, second] = attrs.map(|attrs| Op::from_attrs(node.op_type, &attrs, self.opset));
        let ops = [first?, second?];
        if self.fold(node, &ops, &names)? {
            return Ok(());
        }
        if let Some(Some(source)) = names.first()
            && ops[0] == ops[1]
            && passes_through(&ops[0], &self.shapes(source)?)?
        {
            if let Some(Some(output)) = node.outputs.first() {
                let source = source.clone();
                let shapes = self.shapes(&source)?;
                self.define(output, Known::Computed(shapes))?;
                self.aliases.insert((*output).to_owned(), (source, node.name.to_owned()));
            }
            return self.drop_outputs(node, 1);
        }
        self.keep(node, ops, names)
    }

    /// Moves the inputs that are attributes here from `names` to the attributes, once for each batch size.
    fn with_params(&mut self, node: &RawNode<'_>, names: &mut Vec<Option<String>>) -> Result<[Attrs; 2], Error> {
        let mut attrs = [node.attrs.clone(), node.attrs.clone()];
        for &(index, attr) in Op::params_of(node.op_type).unwrap_or(&[]) {
            let Some(name) = names.get_mut(index).and_then(Option::take) else { continue };
            let values = match &self.known[&name] {
                Known::Constant(tensor) => [tensor, tensor],
                Known::PerBatch([first, second]) => [first, second],
                _ => {
                    let detail = format!("input {index} (`{attr}`) must be constant, but `{name}` is computed");
                    return Err(Error::new(Kind::Structure, detail));
                }
            };
            self.budget.spend(values[0].shape())?;
            for (attrs, value) in attrs.iter_mut().zip(values) {
                attrs.0.insert(attr.to_owned(), Attr::Tensor(value.clone()));
            }
        }
        while names.last().is_some_and(Option::is_none) {
            names.pop();
        }
        // Equal parts are counted by the outputs, which the newer attribute only repeats.
        if node.op_type == Split::NAME {
            for attrs in &mut attrs {
                attrs.0.entry("num_outputs".to_owned()).or_insert(Attr::Int(node.outputs.len() as i64));
            }
        }
        Ok(attrs)
    }

    /// Evaluates the node if all it reads is known. Whether it did.
    fn fold(&mut self, node: &RawNode<'_>, ops: &[Op; 2], names: &[Option<String>]) -> Result<bool, Error> {
        if let Op::ShapeOf(op) = &ops[0] {
            let name = names.first().cloned().flatten().ok_or_else(|| Error::shape("input 0 is missing"))?;
            let values = self.shapes(&name)?.map(|shape| shape_of(&shape, op.range(shape.len())));
            self.define_values(node, vec![values])?;
            return Ok(true);
        }
        let constant = |name: &Option<String>| match name {
            Some(name) => matches!(self.known[name], Known::Constant(_) | Known::PerBatch(_)),
            None => true,
        };
        if !names.iter().all(constant) {
            return Ok(false);
        }
        let same = ops[0] == ops[1] && names.iter().flatten().all(|n| matches!(self.known[n], Known::Constant(_)));
        let Some(first) = evaluate(&ops[0], &values(&self.known, names, 0), &mut self.budget)? else {
            return Ok(false);
        };
        let second = match same {
            true => first.clone(),
            false => evaluate(&ops[1], &values(&self.known, names, 1), &mut self.budget)?.unwrap_or_default(),
        };
        self.define_values(node, first.into_iter().zip(second).map(|(a, b)| [a, b]).collect())?;
        Ok(true)
    }

    fn fold_named(&mut self, node: &RawNode<'_>, names: &[Option<String>]) -> Result<(), Error> {
        let mut one = |index: usize| {
            let inputs = values(&self.known, names, index);
            evaluate_named(node.op_type, &node.attrs, &inputs, &mut self.budget)
        };
        let first = one(0)?;
        let varies = names.iter().flatten().any(|name| matches!(self.known[name], Known::PerBatch(_)));
        let second = if varies { one(1)? } else { first.clone() };
        self.define_values(node, vec![[first, second]])
    }

    /// Takes in the nodes that round a computed value to integers and back. Whether this is one.
    fn round(&mut self, node: &RawNode<'_>, names: &[Option<String>]) -> Result<bool, Error> {
        let Some(Some(source)) = names.first() else { return Ok(false) };
        match (node.op_type, &self.known[source]) {
            ("QuantizeLinear", Known::Computed(_)) => {
                let params = self.grid(node, names)?;
                if let Some(Some(output)) = node.outputs.first() {
                    self.define(output, Known::Codes(source.clone(), params))?;
                }
                Ok(true)
            }
            ("DequantizeLinear", Known::Codes(before, params)) => {
                let (before, params) = (before.clone(), params.clone());
                if self.grid(node, names)? != params {
                    return Err(Error::new(Kind::Quantization, "decodes with other numbers than it was encoded with"));
                }
                let shapes = self.shapes(&before)?;
                let Some(Some(output)) = node.outputs.first() else { return Ok(true) };
                self.define(output, Known::Computed(shapes))?;
                self.nodes.push(Pending {
                    name: node.name.to_owned(),
                    op: Identity.into(),
                    inputs: vec![Some(before)],
                    outputs: vec![(*output).to_owned()],
                    rounding: Some(params),
                });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The grid that a rounding node's scale and zero point describe.
    fn grid(&self, node: &RawNode<'_>, names: &[Option<String>]) -> Result<QParams, Error> {
        let given = values(&self.known, names, 0);
        let given = |index: usize| given.get(index).copied().flatten();
        let scale = given(1).and_then(Tensor::as_f32);
        let Some(&[scale]) = scale else {
            return Err(Error::new(Kind::Quantization, "an activation needs one constant scale for the whole tensor"));
        };
        let (signed, zero) = match given(2).map(Tensor::data) {
            None if node.attrs.int("output_dtype", 0)? == 0 => (false, 0),
            Some(Data::U8(v)) if v.len() == 1 => (false, v[0].into()),
            Some(Data::I8(v)) if v.len() == 1 => (true, v[0].into()),
            _ => {
                let detail = "an activation needs one zero point of an integer type of at most 8 bits";
                return Err(Error::new(Kind::Quantization, detail));
            }
        };
        let bits = names.get(2).and_then(|n| self.narrow.get(n.as_ref()?)).copied().unwrap_or(8);
        let params = QParams::per_tensor(bits, signed, scale, zero);
        params.check(1)?;
        Ok(params)
    }

    fn define_values(&mut self, node: &RawNode<'_>, values: Vec<[Tensor; 2]>) -> Result<(), Error> {
        let count = values.len();
        for (output, [first, second]) in node.outputs.iter().zip(values) {
            let Some(output) = output else { continue };
            let known = if first == second { Known::Constant(first) } else { Known::PerBatch([first, second]) };
            self.define(output, known)?;
        }
        self.drop_outputs(node, count)
    }

    /// Marks the outputs from `first` on as existing only in training.
    fn drop_outputs(&mut self, node: &RawNode<'_>, first: usize) -> Result<(), Error> {
        for output in node.outputs.iter().skip(first).flatten() {
            self.define(output, Known::Dropped(node.name.to_owned()))?;
        }
        Ok(())
    }

    /// Adds a node that runs when the network runs.
    fn keep(&mut self, node: &RawNode<'_>, ops: [Op; 2], names: Vec<Option<String>>) -> Result<(), Error> {
        let mut shapes: [Vec<Option<Shape>>; 2] = [vec![], vec![]];
        for (index, name) in names.iter().enumerate() {
            let pair = match name {
                None => [None, None],
                Some(name) => {
                    self.check_readable(name, matches!(ops[0], Op::Gather(_)) && index == 1)?;
                    self.shapes(name)?.map(Some)
                }
            };
            for (shapes, shape) in shapes.iter_mut().zip(pair) {
                shapes.push(shape);
            }
        }
        let op = self.settle(ops, &shapes)?;
        let mut outputs = [infer(&op, &shapes[0])?, infer(&op, &shapes[1])?];
        let count = outputs[0].len().min(node.outputs.len());
        let mut written = Vec::with_capacity(count);
        for (index, output) in node.outputs.iter().take(count).enumerate() {
            // An absent output before one that is there needs a name all the same.
            let name = output.map_or_else(|| format!("{}.{index}", node.name), str::to_owned);
            let pair = outputs.each_mut().map(|shapes| std::mem::take(&mut shapes[index]));
            self.define(&name, Known::Computed(pair))?;
            written.push(name);
        }
        if written.is_empty() {
            return Err(Error::new(Kind::Structure, "a node needs an output"));
        }
        self.nodes.push(Pending { name: node.name.to_owned(), op, inputs: names, outputs: written, rounding: None });
        self.drop_outputs(&RawNode { name: node.name, outputs: node.outputs.clone(), ..RawNode::default() }, count)
    }

    /// One operator for all batch sizes.
    fn settle(&self, ops: [Op; 2], shapes: &[Vec<Option<Shape>>; 2]) -> Result<Op, Error> {
        let input = |index: usize| shapes[index].first().cloned().flatten().unwrap_or_default();
        let [first, second] = ops;
        match (first, second) {
            (Op::Reshape(a), Op::Reshape(b)) if a != b => {
                let [to_a, to_b] = [(&a, input(0)), (&b, input(1))].map(|(op, x)| op.infer(InputShapes(&[Some(&x)])));
                Ok(Op::Reshape(unify(&to_a?.remove(0), &to_b?.remove(0))?))
            }
            (Op::Reshape(op), _) => match self.batch {
                Batch::Generalised(size) => Ok(Op::Reshape(generalise(op, size, &input(0), &input(1)))),
                Batch::AsDeclared => Ok(Op::Reshape(op)),
            },
            (a, b) if a != b => Err(Error::attribute("a parameter depends on the batch size: only target shapes may")),
            // Before opset 13, these saw their input as a matrix, split before `axis`.
            (Op::Softmax(crate::ops::Softmax { axis }), _) | (Op::LogSoftmax(crate::ops::LogSoftmax { axis }), _)
                if self.opset < 13 && {
                    let x = input(0);
                    x[normalize_axis(axis, x.len())? + 1..].iter().any(|&d| d != 1)
                } =>
            {
                Err(Error::attribute(format!(
                    "axis {axis} of {:?} means all axes from there on in opset {}: export with opset 13 or later",
                    input(0),
                    self.opset
                )))
            }
            (op, _) => Ok(op),
        }
    }

    /// Checks that a value can be read when the network runs.
    fn check_readable(&self, name: &str, ints: bool) -> Result<(), Error> {
        match &self.known[name] {
            Known::Constant(t) if !ints && t.as_f32().is_none() => Err(Error::shape(format!(
                "reads `{name}`, which is {}: only floats are computed with",
                t.data().dtype()
            ))),
            Known::PerBatch(_) => Err(Error::new(
                Kind::Structure,
                format!("reads `{name}`, which depends on the batch size: only target shapes may"),
            )),
            _ => Ok(()),
        }
    }

    fn shapes(&self, name: &str) -> Result<[Shape; 2], Error> {
        match &self.known[name] {
            Known::Constant(t) => Ok([t.shape().to_vec(), t.shape().to_vec()]),
            Known::PerBatch([a, b]) => Ok([a.shape().to_vec(), b.shape().to_vec()]),
            Known::Computed(shapes) => Ok(shapes.clone()),
            Known::Codes(..) => Err(Error::new(
                Kind::Operator,
                format!("reads `{name}`, which is in integers: only decoding may follow rounding"),
            )),
            Known::Dropped(_) => Err(Error::new(Kind::Structure, format!("`{name}` exists only in training"))),
        }
    }

    /// Drops the nodes that the outputs do not need.
    fn keep_live(&mut self, outputs: &[&str]) {
        let mut needed: HashSet<String> = HashSet::new();
        needed.extend(outputs.iter().map(|&o| self.aliases.get(o).map_or(o, |(source, _)| source).to_owned()));
        let mut kept = Vec::with_capacity(self.nodes.len());
        while let Some(node) = self.nodes.pop() {
            if node.outputs.iter().any(|o| needed.contains(o)) {
                needed.extend(node.inputs.iter().flatten().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
    }
}

fn values<'a>(known: &'a HashMap<String, Known>, names: &[Option<String>], index: usize) -> Vec<Option<&'a Tensor>> {
    let value = |name: &String| match &known[name] {
        Known::Constant(tensor) => Some(tensor),
        Known::PerBatch(pair) => Some(&pair[index]),
        _ => None,
    };
    names.iter().map(|name| name.as_ref().and_then(value)).collect()
}

fn shape_for(dims: &[Dim], batch: usize) -> Shape {
    dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { batch }).collect()
}

fn infer(op: &Op, shapes: &[Option<Shape>]) -> Result<Vec<Shape>, Error> {
    let shapes: Vec<_> = shapes.iter().map(Option::as_deref).collect();
    let out = op.infer(InputShapes(&shapes))?;
    out.iter().try_for_each(|shape| check_size(shape))?;
    Ok(out)
}

/// The reshape to `a` for the first batch size and to `b` for the second.
fn unify(a: &[usize], b: &[usize]) -> Result<Reshape, Error> {
    let differ = || Error::shape(format!("reshapes to {a:?} or {b:?}, depending on the batch size, in no simple way"));
    let varying = a.iter().zip(b).filter(|(x, y)| x != y).count();
    if a.len() != b.len() || varying > 1 {
        return Err(differ());
    }
    let entry = |(&x, &y): (&usize, &usize)| match x == y {
        true => i64::try_from(x).map_err(|_| differ()),
        false => Ok(-1),
    };
    let shape: Vec<_> = a.iter().zip(b).map(entry).collect::<Result<_, _>>()?;
    Ok(Reshape { allow_zero: shape.contains(&0), shape })
}

/// The reshape with its leading `size` replaced by "as many as there are", where that means the same for batch `size`.
///
/// It does if the input's first axis is the batch: elements are then grouped by sample before and after.
fn generalise(op: Reshape, size: usize, x: &[usize], y: &[usize]) -> Reshape {
    let leads = op.shape.first().and_then(|&d| usize::try_from(d).ok()) == Some(size) && size > 0;
    if !leads || x.first() != Some(&BATCHES[0]) || y.first() != Some(&BATCHES[1]) {
        return op;
    }
    let declared: Shape = std::iter::once(size).chain(x[1..].iter().copied()).collect();
    let out = check_size(&declared).and_then(|()| op.infer(InputShapes(&[Some(&declared)])));
    let Ok(out) = out else { return op };
    let rest = out[0][1..].iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX));
    let shape: Vec<_> = std::iter::once(-1).chain(rest).collect();
    let general = Reshape { allow_zero: shape.contains(&0), shape };
    let fits = |x: &[usize]| general.infer(InputShapes(&[Some(x)])).is_ok_and(|out| out[0].first() == x.first());
    if fits(x) && fits(y) { general } else { op }
}

/// A batch that was fixed may be freed only if every output still has one row per sample.
fn check_generalised(graph: &Graph) -> Result<(), Error> {
    for batch in BATCHES {
        let shapes = graph.shapes(batch)?;
        for &id in graph.outputs() {
            if shapes[id.index()].first() != Some(&batch) {
                return Err(Error::shape("its size does not follow the batch size").at(&graph.value(id).name));
            }
        }
    }
    Ok(())
}

/// Writes live nodes and what they read into a graph.
struct Emit {
    graph: Graph,
    known: HashMap<String, Known>,
    /// Node names taken, and how often each was asked for.
    names: HashMap<String, usize>,
}

impl Emit {
    fn node(&mut self, node: &Pending) -> Result<(), Error> {
        let inputs = node
            .inputs
            .iter()
            .map(|name| name.as_deref().map(|n| self.value(n)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let layer = inputs.iter().flatten().find_map(|&id| self.layer_name(id));
        let name = self.unique(layer.as_ref().unwrap_or(&node.name), &node.op.name().to_lowercase());
        let outputs: Vec<_> = node.outputs.iter().map(String::as_str).collect();
        self.graph.add_node(&name, node.op.clone(), &inputs, &outputs)?;
        Ok(())
    }

    /// The name of the layer whose weight this is: `layer1.0.conv1` of `layer1.0.conv1.weight`. What exporters make up
    /// (`onnx::Conv_283`, `/layer1/Constant_output_0`) says nothing.
    fn layer_name(&self, id: ValueId) -> Option<String> {
        let value = self.graph.value(id);
        value.constant.as_ref()?;
        let (layer, _) = value.name.rsplit_once('.')?;
        let telling = !layer.is_empty() && !value.name.contains(['/', ':']) && !self.names.contains_key(layer);
        telling.then(|| layer.to_owned())
    }

    /// A node name that is not taken yet.
    fn unique(&mut self, name: &str, kind: &str) -> String {
        let name = match name {
            "" => format!("{kind}_{}", self.graph.nodes().len()),
            name => name.to_owned(),
        };
        let mut unique = name.clone();
        while self.names.contains_key(&unique) {
            // The count of a base name goes on where it stopped, so that many equal names take linear time.
            let count = self.names.entry(name.clone()).or_insert(1);
            *count += 1;
            unique = format!("{name}_{count}");
        }
        self.names.insert(unique.clone(), 1);
        unique
    }

    /// The value of this name; constants are added when they are first read.
    fn value(&mut self, name: &str) -> Result<ValueId, Error> {
        if let Some(id) = self.graph.find(name) {
            return Ok(id);
        }
        match self.known.get_mut(name) {
            Some(Known::Constant(tensor)) => {
                let tensor = std::mem::replace(tensor, Tensor::new([0], Data::F32(vec![]))?);
                self.graph.add_constant(name, tensor)
            }
            Some(Known::PerBatch(_)) => {
                Err(Error::new(Kind::Structure, "depends on the batch size alone: that is no output").at(name))
            }
            _ => Err(Error::new(Kind::Structure, "nothing writes this value").at(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw<'a>(op_type: &'a str, inputs: &[&'a str], outputs: &[&'a str]) -> RawNode<'a> {
        let some = |names: &[&'a str]| names.iter().map(|n| (!n.is_empty()).then_some(*n)).collect();
        RawNode { name: "", op_type, attrs: Attrs::new(), inputs: some(inputs), outputs: some(outputs) }
    }

    fn folder(batch: Batch) -> Folder {
        let mut f = Folder::new(17, batch);
        f.input("x", vec![Dim::Batch, Dim::Fixed(4), Dim::Fixed(2), Dim::Fixed(2)]).unwrap();
        f
    }

    fn only_op(f: Folder, output: &str) -> Op {
        let graph = f.finish(&[output]).unwrap().0;
        assert_eq!(graph.nodes().len(), 1, "{:?}", graph.nodes());
        graph.nodes()[0].op.clone()
    }

    /// `x.view(x.size(0), -1)` and `x.view(x.size(0), 16)` as exporters spell them.
    #[test]
    fn the_batch_size_in_a_target_shape_becomes_free() {
        for last in [-1, 16] {
            let mut f = folder(Batch::AsDeclared);
            f.constant("zero", Tensor::int(0)).unwrap();
            f.constant("axes", Tensor::ints(vec![0])).unwrap();
            f.constant("last", Tensor::ints(vec![last])).unwrap();
            f.node(&raw("Shape", &["x"], &["shape"])).unwrap();
            f.node(&raw("Gather", &["shape", "zero"], &["n"])).unwrap();
            f.node(&raw("Unsqueeze", &["n", "axes"], &["n1"])).unwrap();
            let mut concat = raw("Concat", &["n1", "last"], &["target"]);
            concat.attrs = concat.attrs.with_int("axis", 0);
            f.node(&concat).unwrap();
            f.node(&raw("Reshape", &["x", "target"], &["y"])).unwrap();
            assert_eq!(only_op(f, "y"), Op::Reshape(Reshape { shape: vec![-1, 16], allow_zero: false }));
        }
    }

    #[test]
    fn a_fixed_batch_is_freed_where_that_is_the_same() {
        for target in [[1, 16], [1, -1]] {
            let mut f = folder(Batch::Generalised(1));
            f.constant("target", Tensor::ints(target.to_vec())).unwrap();
            f.node(&raw("Reshape", &["x", "target"], &["y"])).unwrap();
            assert_eq!(only_op(f, "y"), Op::Reshape(Reshape { shape: vec![-1, 16], allow_zero: false }));
        }
        let mut f = folder(Batch::Generalised(1));
        f.constant("target", Tensor::ints(vec![16, -1])).unwrap();
        f.node(&raw("Reshape", &["x", "target"], &["y"])).unwrap();
        assert!(f.finish(&["y"]).unwrap_err().to_string().contains("does not follow the batch size"));
    }

    #[test]
    fn what_else_depends_on_the_batch_is_named() {
        let mut f = folder(Batch::AsDeclared);
        f.node(&raw("Shape", &["x"], &["shape"])).unwrap();
        let mut zeros = raw("ConstantOfShape", &["shape"], &["zeros"]);
        zeros.attrs = zeros.attrs.with("value", Attr::Tensor(Tensor::floats(vec![0.0])));
        f.node(&zeros).unwrap();
        let error = f.node(&raw("Add", &["x", "zeros"], &["y"])).unwrap_err().to_string();
        assert_eq!(error, "`Add of `y``: reads `zeros`, which depends on the batch size: only target shapes may");
    }

    #[test]
    fn training_mode_is_read_as_inference() {
        let mut f = folder(Batch::AsDeclared);
        for name in ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"] {
            f.constant(name, Tensor::floats(vec![1.0; 4])).unwrap();
        }
        f.constant("ratio", Tensor::f32([], vec![0.5]).unwrap()).unwrap();
        f.constant("mode", Tensor::new([], Data::Bool(vec![true])).unwrap()).unwrap();
        let inputs = ["x", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"];
        f.node(&raw("BatchNormalization", &inputs, &["b", "mean", "var"])).unwrap();
        f.node(&raw("Dropout", &["b", "ratio", "mode"], &["d", "mask"])).unwrap();
        f.node(&raw("Relu", &["d"], &["y"])).unwrap();
        let error = f.node(&raw("Relu", &["mask"], &["z"])).unwrap_err().to_string();
        assert!(error.contains("writes only in training"), "{error}");
        let graph = f.finish(&["y", "mean"]).unwrap().0;
        let names: Vec<_> = graph.nodes().iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["bn", "relu_1"]);
        assert_eq!(graph.outputs().len(), 1);
    }

    #[test]
    fn names_and_needs() {
        let mut f = folder(Batch::AsDeclared);
        f.constant("unused", Tensor::floats(vec![1.0])).unwrap();
        for output in ["a", "b"] {
            f.node(&RawNode { name: "same", ..raw("Relu", &["x"], &[output]) }).unwrap();
        }
        f.node(&raw("Sigmoid", &["x"], &["dead"])).unwrap();
        f.node(&raw("Add", &["a", "b"], &["sum"])).unwrap();
        f.node(&RawNode { name: "last", ..raw("Identity", &["sum"], &["y"]) }).unwrap();
        let graph = f.finish(&["y"]).unwrap().0;
        let names: Vec<_> = graph.nodes().iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["same", "same_2", "add_2", "last"]);
        assert!(graph.find("unused").is_none());
    }

    #[test]
    fn old_softmax_over_several_axes_is_refused() {
        let mut f = Folder::new(11, Batch::AsDeclared);
        f.input("x", vec![Dim::Batch, Dim::Fixed(4), Dim::Fixed(2)]).unwrap();
        assert!(f.node(&raw("Softmax", &["x"], &["y"])).unwrap_err().to_string().contains("opset 13 or later"));
    }
}
