//! A network: nodes in topological order over numbered values, some of which are constants.
//!
//! The order is an invariant: a node can only name values that exist when it is added, so every graph is acyclic and a
//! single walk over [`Graph::nodes`] executes it. Importers with nodes in any order use [`Graph::topological`].

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Kind};
use crate::op::{InputShapes, Op};
use crate::tensor::{Shape, Tensor};

/// Most axes a value may have. Together with [`MAX_ELEMENTS`] it bounds what shape arithmetic can be driven to.
pub const MAX_RANK: usize = 16;

/// Largest product of the dimensions of a value, those of size 0 left out: 2^40.
pub const MAX_ELEMENTS: usize = 1 << 40;

/// A value's number in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(u32);

impl ValueId {
    /// Index into [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Something that flows along an edge: computed, an input, or a constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Unique in its graph.
    pub name: String,
    /// The tensor, where it is part of the model: weights, biases, statistics.
    pub constant: Option<Tensor>,
}

/// One dimension of a graph input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// As many samples as one likes.
    Batch,
    /// Always this many.
    Fixed(usize),
}

/// A graph input and its dimensions.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The value fed.
    pub value: ValueId,
    /// Its dimensions.
    pub dims: Vec<Dim>,
}

impl Input {
    /// The shape for a batch of this many samples.
    pub fn shape(&self, batch: usize) -> Shape {
        self.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { batch }).collect()
    }
}

/// One operator applied to values.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique in its graph; what people call the layer.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// Values read; `None` where an optional input is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Values written.
    pub outputs: Vec<ValueId>,
}

impl Node {
    /// The value of input `index`, if it is there.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// The first output. Every node has one.
    pub fn output(&self) -> ValueId {
        self.outputs[0]
    }
}

/// A network. See the module's page for its invariant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<Value>,
    inputs: Vec<Input>,
    outputs: Vec<ValueId>,
    by_name: HashMap<String, ValueId>,
    node_names: HashMap<String, usize>,
    /// Of constants whose elements are gone.
    outlines: BTreeMap<ValueId, Shape>,
}

impl Graph {
    /// An empty graph, to be built with the `add_…` functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares an input.
    pub fn add_input(&mut self, name: &str, dims: Vec<Dim>) -> Result<ValueId, Error> {
        let value = self.add_value(name, None)?;
        self.inputs.push(Input { value, dims });
        Ok(value)
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, name: &str, tensor: Tensor) -> Result<ValueId, Error> {
        self.add_value(name, Some(tensor))
    }

    /// Adds a node whose outputs get these names (at least one). Inputs must exist already.
    pub fn add_node(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: &[Option<ValueId>],
        outputs: &[&str],
    ) -> Result<Vec<ValueId>, Error> {
        if outputs.is_empty() {
            return Err(Error::new(Kind::Structure, "a node needs an output").at(name));
        }
        if let Some(id) = inputs.iter().flatten().find(|id| id.index() >= self.values.len()) {
            return Err(Error::new(Kind::Structure, format!("value {} does not exist", id.0)).at(name));
        }
        if self.node_names.insert(name.to_owned(), self.nodes.len()).is_some() {
            return Err(Error::new(Kind::Structure, "two nodes have this name").at(name));
        }
        let outputs = outputs.iter().map(|n| self.add_value(n, None)).collect::<Result<Vec<_>, _>>()?;
        self.nodes.push(Node {
            name: name.to_owned(),
            op: op.into(),
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
        });
        Ok(outputs)
    }

    /// Adds a node with one output of the node's own name: how built-in architectures are written.
    pub fn add(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, Error> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.add_node(name, op, &inputs, &[name])?[0])
    }

    /// Says which values the network returns.
    pub fn set_outputs(&mut self, outputs: Vec<ValueId>) {
        self.outputs = outputs;
    }

    fn add_value(&mut self, name: &str, constant: Option<Tensor>) -> Result<ValueId, Error> {
        let id = u32::try_from(self.values.len())
            .map_err(|_| Error::new(Kind::Structure, "a graph holds at most 2^32 values"))?;
        if self.by_name.insert(name.to_owned(), ValueId(id)).is_some() {
            return Err(Error::new(Kind::Structure, "two values have this name").at(name));
        }
        self.values.push(Value { name: name.to_owned(), constant });
        Ok(ValueId(id))
    }

    /// Nodes, every one after those it reads from.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values, by [`ValueId::index`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// All value numbers.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The constant at a value, if it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        self.values[id.index()].constant.as_ref()
    }

    /// Replaces a constant by one of the same shape.
    pub fn set_constant(&mut self, id: ValueId, tensor: Tensor) -> Result<(), Error> {
        let value = &mut self.values[id.index()];
        match &value.constant {
            Some(old) if old.shape() == tensor.shape() => {
                value.constant = Some(tensor);
                Ok(())
            }
            Some(old) => {
                Err(Error::shape(format!("a constant of shape {:?} cannot become {:?}", old.shape(), tensor.shape()))
                    .at(&value.name))
            }
            None => Err(Error::new(Kind::Structure, "this value is not a constant").at(&value.name)),
        }
    }

    /// The same network without the elements of its constants: names, nodes and [`shapes`](Self::shapes) are all that is left, and
    /// [`constant`](Self::constant) finds none.
    pub fn outline(&self) -> Self {
        let value = |value: &Value| Value { name: value.name.clone(), constant: None };
        let shape = |id: ValueId| Some((id, self.constant(id)?.shape().to_vec()));
        let mut outlines = self.outlines.clone();
        outlines.extend(self.value_ids().filter_map(shape));
        Self {
            nodes: self.nodes.clone(),
            values: self.values.iter().map(value).collect(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            by_name: self.by_name.clone(),
            node_names: self.node_names.clone(),
            outlines,
        }
    }

    /// The float elements of a constant, for writing in place.
    pub fn constant_f32_mut(&mut self, id: ValueId) -> Option<&mut [f32]> {
        self.values[id.index()].constant.as_mut().and_then(Tensor::as_f32_mut)
    }

    /// Replaces the operator of a node by another of the same inputs and outputs.
    pub(crate) fn replace_op(&mut self, node: usize, op: Op) {
        self.nodes[node].op = op;
    }

    /// A value by name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// Inputs, in declared order.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Outputs, in declared order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The node that computes each value, by [`ValueId::index`]; `None` for inputs and constants.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut out = vec![None; self.values.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for id in &node.outputs {
                out[id.index()] = Some(index);
            }
        }
        out
    }

    /// The nodes that read each value, by [`ValueId::index`].
    pub fn consumers(&self) -> Vec<Vec<usize>> {
        let mut out = vec![vec![]; self.values.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for id in node.inputs.iter().flatten() {
                if out[id.index()].last() != Some(&index) {
                    out[id.index()].push(index);
                }
            }
        }
        out
    }

    /// Shapes of all values for a batch of this many samples, or the node that does not fit.
    pub fn shapes(&self, batch: usize) -> Result<Vec<Shape>, Error> {
        let mut shapes: Vec<Shape> =
            self.values.iter().map(|v| v.constant.as_ref().map_or_else(Vec::new, |t| t.shape().to_vec())).collect();
        self.outlines.iter().for_each(|(id, shape)| shapes[id.index()].clone_from(shape));
        for input in &self.inputs {
            let shape = input.shape(batch);
            check_size(&shape).map_err(|e| e.at(&self.value(input.value).name))?;
            shapes[input.value.index()] = shape;
        }
        for node in &self.nodes {
            let inputs: Vec<_> = node.inputs.iter().map(|i| i.map(|id| shapes[id.index()].as_slice())).collect();
            let inferred = node.op.infer(InputShapes(&inputs)).map_err(|e| e.at(&node.name))?;
            if inferred.len() < node.outputs.len() {
                return Err(Error::new(
                    Kind::Structure,
                    format!("{} outputs are named but {} has {}", node.outputs.len(), node.op.name(), inferred.len()),
                )
                .at(&node.name));
            }
            for (id, shape) in node.outputs.iter().zip(inferred) {
                check_size(&shape).map_err(|e| e.at(&node.name))?;
                shapes[id.index()] = shape;
            }
        }
        Ok(shapes)
    }

    /// Multiply-accumulate operations of each node for one sample.
    pub fn macs(&self) -> Result<Vec<u64>, Error> {
        let shapes = self.shapes(1)?;
        let of = |node: &Node| {
            let inputs: Vec<_> = node.inputs.iter().map(|i| i.map(|id| shapes[id.index()].as_slice())).collect();
            let outputs: Vec<_> = node.outputs.iter().map(|id| shapes[id.index()].clone()).collect();
            node.op.macs(InputShapes(&inputs), &outputs)
        };
        Ok(self.nodes.iter().map(of).collect())
    }

    /// Orders nodes so that each follows those it reads from. `reads` and `writes` are value names; names that nothing
    /// writes are taken as given. A cycle is an error that names one of its nodes.
    pub fn topological(reads: &[Vec<&str>], writes: &[Vec<&str>], names: &[&str]) -> Result<Vec<usize>, Error> {
        let mut writer = BTreeMap::new();
        for (index, outputs) in writes.iter().enumerate() {
            for &name in outputs {
                if let Some(other) = writer.insert(name, index) {
                    return Err(Error::new(Kind::Structure, format!("`{name}` is written by `{}` too", names[other]))
                        .at(names[index]));
                }
            }
        }
        let mut missing: Vec<usize> = vec![0; reads.len()];
        let mut readers: Vec<Vec<usize>> = vec![vec![]; reads.len()];
        for (index, inputs) in reads.iter().enumerate() {
            for name in inputs {
                if let Some(&from) = writer.get(name) {
                    missing[index] += 1;
                    readers[from].push(index);
                }
            }
        }
        // Nodes that are ready are taken in their given order, so that an ordered graph stays as it is.
        let mut ready: std::collections::BTreeSet<usize> = (0..reads.len()).filter(|&i| missing[i] == 0).collect();
        let mut order = Vec::with_capacity(reads.len());
        while let Some(index) = ready.pop_first() {
            order.push(index);
            for &reader in &readers[index] {
                missing[reader] -= 1;
                if missing[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        match (0..reads.len()).find(|&i| missing[i] > 0) {
            None => Ok(order),
            Some(stuck) => {
                Err(Error::new(Kind::Structure, "the graph is cyclic: this node waits for its own output")
                    .at(names[stuck]))
            }
        }
    }
}

/// Refuses shapes that no machine holds, before further arithmetic on them can overflow.
pub(crate) fn check_size(shape: &[usize]) -> Result<(), Error> {
    if shape.len() > MAX_RANK {
        return Err(Error::shape(format!("{} axes: at most {MAX_RANK} are supported", shape.len())));
    }
    // Zeros count as ones, so that the product of any selection of axes stays within the bound too.
    let product = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
    let fits = product.is_some_and(|n| n <= MAX_ELEMENTS);
    match fits {
        true => Ok(()),
        false => Err(Error::shape(format!("{shape:?} has more than {MAX_ELEMENTS} elements"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Conv, Relu, Reshape, Split, Unsqueeze, Window};

    fn tiny() -> Graph {
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(8), Dim::Fixed(8)]).unwrap();
        let w = g.add_constant("w", Tensor::f32([4, 3, 3, 3], vec![0.0; 108]).unwrap()).unwrap();
        let y = g.add("conv", Conv { groups: 1, window: Window::uniform(2, 2, 1) }, &[x, w]).unwrap();
        let z = g.add("relu", Relu, &[y]).unwrap();
        g.set_outputs(vec![z]);
        g
    }

    #[test]
    fn shapes_and_costs() {
        let g = tiny();
        let shapes = g.shapes(5).unwrap();
        assert_eq!(shapes[g.outputs()[0].index()], [5, 4, 4, 4]);
        assert_eq!(g.macs().unwrap(), [4 * 4 * 4 * 27, 0]);
    }

    #[test]
    fn mistakes_are_named() {
        let mut g = tiny();
        let x = g.find("x").unwrap();
        assert_eq!(g.add("relu", Relu, &[x]).unwrap_err().to_string(), "`relu`: two nodes have this name");
        let w = g.add_constant("w2", Tensor::f32([4, 8, 3, 3], vec![0.0; 288]).unwrap()).unwrap();
        g.add("conv2", Conv { groups: 1, window: Window::default() }, &[x, w]).unwrap();
        assert_eq!(
            g.shapes(1).unwrap_err().to_string(),
            "`conv2`: weight is [4, 8, 3, 3] but input has 3 channels in 1 groups"
        );
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let with = |dims: Vec<Dim>, op: Op| {
            let mut g = Graph::new();
            let x = g.add_input("x", dims).unwrap();
            g.add("y", op, &[x]).unwrap();
            g.shapes(1).unwrap_err().to_string()
        };
        let huge = vec![Dim::Batch, Dim::Fixed(usize::MAX), Dim::Fixed(2)];
        assert!(with(huge, Relu.into()).starts_with("`x`: [1, 18446744073709551615, 2] has more than"));
        let axes = Unsqueeze { axes: (0..20).collect() };
        assert_eq!(with(vec![Dim::Batch], axes.into()), "`y`: 21 axes: at most 16 are supported");
        let split = Split { axis: 0, sizes: None, outputs: usize::MAX };
        assert!(with(vec![Dim::Batch], split.into()).contains("outputs"));
        let sizes = Split { axis: 0, sizes: Some(vec![usize::MAX, 2]), outputs: 0 };
        assert!(with(vec![Dim::Batch], sizes.into()).contains("do not add up"));
        let window = Window { pads: vec![usize::MAX / 2; 4], ..Window::uniform(2, 1, 0) };
        let pool = crate::ops::MaxPool { kernel: vec![3, 3], window };
        assert!(with(vec![Dim::Batch, Dim::Fixed(1), Dim::Fixed(9), Dim::Fixed(9)], pool.into()).contains("elements"));
        let reshape = Reshape { shape: vec![0, i64::MAX, 0], allow_zero: true };
        assert!(with(vec![Dim::Batch], reshape.into()).contains("does not reshape"));
    }

    #[test]
    fn cycles_are_found_and_order_is_kept() {
        let order = Graph::topological(
            &[vec!["b"], vec!["a"], vec!["x"]],
            &[vec!["c"], vec!["b"], vec!["a"]],
            &["n0", "n1", "n2"],
        );
        assert_eq!(order, Ok(vec![2, 1, 0]));
        let cycle = Graph::topological(&[vec!["b"], vec!["a"]], &[vec!["a"], vec!["b"]], &["n0", "n1"]);
        assert_eq!(cycle.unwrap_err().to_string(), "`n0`: the graph is cyclic: this node waits for its own output");
    }
}
