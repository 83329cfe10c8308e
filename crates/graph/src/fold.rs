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

mod batch;
mod emit;
mod evaluate;
mod rounding;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::attrs::{Attr, Attrs};
use crate::error::{Error, Kind};
use crate::graph::{Dim, Graph, ValueId, check_size};
use crate::op::{InputShapes, Op, Operator};
use crate::ops::{Identity, Split, normalize_axis};
use crate::quant::{QParams, Role, Site};
use crate::tensor::{Shape, Tensor};
use batch::{check_generalised, generalise, unify};
use emit::Emit;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Reshape;
    use crate::tensor::Data;

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
