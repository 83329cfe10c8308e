//! An ONNX file as a [`Model`].

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use bitsmith_graph::fold::{Batch, FOLDED_ONLY, Folder, RawNode};
use bitsmith_graph::{Attr, Attrs, Dim, Graph, Model, Op, Site, Tensor, ValueId};
use prost::Message;
use prost::bytes::Bytes;

use super::external::External;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, attribute_type, data_type};
use super::{OPSETS, metadata, tensor};
use crate::error::Error;
use crate::sniff;

/// Reads a model.
///
/// Batch normalisation and dropout mean what they mean at inference, whatever mode the file was exported in. A batch
/// size that the file fixes is freed where the network allows it. Layers are named after their weights where those have
/// telling names (`layer1.0.conv1`), other nodes as in the file. Weights stored as integers are decoded, and values that
/// the file rounds and decodes again (QDQ) become sites.
pub fn read(path: &Path) -> Result<Model, Error> {
    // Protobuf itself admits no more.
    let bytes = sniff::read_file(path, 1 << 31)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut model = decode(bytes.into(), folder).map_err(|e| e.at(path))?;
    if model.name.is_empty() {
        model.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
    Ok(model)
}

/// Reads a model from the bytes of a file in `folder`, which is where its external data would be. It has a name only if
/// this project wrote it.
pub fn decode(bytes: Bytes, folder: &Path) -> Result<Model, Error> {
    let file =
        ModelProto::decode(bytes).map_err(|e| Error::malformed(format!("is no ONNX file, or a truncated one: {e}")))?;
    let opset = opset(&file)?;
    let graph = file.graph.as_ref().ok_or_else(|| Error::malformed("is no ONNX file: there is no graph in it"))?;
    check_operators(&file, graph, opset)?;
    let source = Source::new(graph, opset, folder)?;
    let (graph_read, sites) = source.build()?;
    check_finite(&graph_read)?;
    let (preprocess, classes) = metadata::read(&file.metadata_props);
    let ours = file.producer_name.as_deref() == Some(super::PRODUCER);
    let name = if ours { graph.name.clone().unwrap_or_default() } else { String::new() };
    Ok(Model { preprocess, classes, sites, ..Model::new(name, graph_read) })
}

/// Refuses weights that are not numbers: whatever came next would only spread them.
fn check_finite(graph: &Graph) -> Result<(), Error> {
    for value in graph.values() {
        let floats = value.constant.as_ref().and_then(Tensor::as_f32).unwrap_or(&[]);
        if let Some((index, number)) = floats.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            let detail = format!("`{}`: element {index} is {number}: every weight must be finite", value.name);
            return Err(Error::malformed(detail));
        }
    }
    Ok(())
}

fn opset(file: &ModelProto) -> Result<u32, Error> {
    let standard = |domain: Option<&str>| matches!(domain, None | Some("" | "ai.onnx"));
    let version = file.opset_import.iter().find(|o| standard(o.domain.as_deref())).and_then(|o| o.version);
    let version = version.ok_or_else(|| Error::malformed("is no ONNX file, or a truncated one: it names no opset"))?;
    u32::try_from(version).ok().filter(|v| OPSETS.contains(v)).ok_or_else(|| {
        let (first, last) = OPSETS.into_inner();
        Error::unsupported(format!("opset {version}: {first} to {last} are read; export it again with one of those"))
    })
}

/// Refuses operators that are not known, all of them in one message.
fn check_operators(file: &ModelProto, graph: &GraphProto, opset: u32) -> Result<(), Error> {
    let key = |domain: &Option<String>, name: &Option<String>| {
        let (domain, name) = (domain.as_deref().unwrap_or(""), name.as_deref().unwrap_or(""));
        if matches!(domain, "" | "ai.onnx") { name.to_owned() } else { format!("{domain}::{name}") }
    };
    let functions: HashSet<_> = file.functions.iter().map(|f| key(&f.domain, &f.name)).collect();
    let (mut unknown, mut calls) = (BTreeMap::new(), BTreeMap::new());
    for node in &graph.node {
        let name = key(&node.domain, &node.op_type);
        if functions.contains(&name) {
            *calls.entry(name).or_insert(0) += 1;
        } else if !Op::NAMES.contains(&name.as_str()) && !FOLDED_ONLY.contains(&name.as_str()) {
            *unknown.entry(name).or_insert(0) += 1;
        }
    }
    let list = |names: BTreeMap<String, i32>| {
        let each: Vec<_> = names.iter().map(|(name, count)| format!("`{name}` ({count} times)")).collect();
        each.join(", ").replace("(1 times)", "(once)")
    };
    let mut problems = vec![];
    if !unknown.is_empty() {
        let hint = match opset {
            ..20 => format!(
                " (opset 20 or later may have one supported operator for what several spell out in opset {opset}: try \
                 exporting with that)"
            ),
            _ => String::new(),
        };
        problems.push(format!("operators that are not supported: {}{hint}", list(unknown)));
    }
    if !calls.is_empty() {
        problems.push(format!("functions of its own, which must be inlined when exporting: {}", list(calls)));
    }
    if !graph.sparse_initializer.is_empty() {
        problems.push(format!("{} sparse initializers, which must be stored dense", graph.sparse_initializer.len()));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::unsupported(format!("uses {}", problems.join("; and ")))),
    }
}

/// A graph of the file, tensors decoded, nodes in order.
struct Source<'a> {
    opset: u32,
    /// Name, tensor, and bits per element where the file has fewer than the tensor's type.
    constants: Vec<(&'a str, Tensor, Option<u8>)>,
    inputs: Vec<(&'a str, Vec<Dim>)>,
    nodes: Vec<RawNode<'a>>,
    outputs: Vec<&'a str>,
}

impl<'a> Source<'a> {
    fn new(graph: &'a GraphProto, opset: u32, folder: &Path) -> Result<Self, Error> {
        let mut external = External::new(folder);
        let mut constants = Vec::with_capacity(graph.initializer.len());
        for proto in &graph.initializer {
            let name = proto.name.as_deref().filter(|n| !n.is_empty());
            let name = name.ok_or_else(|| Error::malformed("an initializer has no name"))?;
            let tensor =
                tensor::decode(proto, &mut external).map_err(|e| within(&format!("initializer `{name}`"), e))?;
            constants.push((name, tensor, tensor::narrow_bits(proto.data_type.unwrap_or(0))));
        }
        let initialized: HashSet<&str> = constants.iter().map(|(name, ..)| *name).collect();
        // Old files list their initializers as inputs too.
        let inputs = graph.input.iter().filter(|i| i.name.as_deref().is_none_or(|n| !initialized.contains(n)));
        let inputs = inputs.map(input).collect::<Result<Vec<_>, _>>()?;
        let mut nodes = Vec::with_capacity(graph.node.len());
        for index in order(&graph.node)? {
            nodes.push(node(&graph.node[index], &mut external)?);
        }
        let outputs = graph.output.iter().map(|o| o.name.as_deref().unwrap_or("")).collect();
        Ok(Self { opset, constants, inputs, nodes, outputs })
    }

    /// The graph for any batch size if that works, else for the one in the file.
    fn build(&self) -> Result<(Graph, BTreeMap<ValueId, Site>), Error> {
        let firsts: Vec<_> = self.inputs.iter().filter_map(|(_, dims)| dims.first().copied()).collect();
        if let Some(&Dim::Fixed(size)) = firsts.first()
            && firsts.iter().all(|&d| d == Dim::Fixed(size))
            && let Ok(folded) = self.fold(Batch::Generalised(size))
        {
            return Ok(folded);
        }
        self.fold(Batch::AsDeclared)
    }

    fn fold(&self, batch: Batch) -> Result<(Graph, BTreeMap<ValueId, Site>), Error> {
        let mut folder = Folder::new(self.opset, batch);
        for (name, dims) in &self.inputs {
            let mut dims = dims.clone();
            if let (Batch::Generalised(_), Some(first)) = (batch, dims.first_mut()) {
                *first = Dim::Batch;
            }
            folder.input(name, dims)?;
        }
        for (name, tensor, bits) in &self.constants {
            match bits {
                Some(bits) => folder.narrow_constant(name, tensor.clone(), *bits)?,
                None => folder.constant(name, tensor.clone())?,
            }
        }
        for node in &self.nodes {
            folder.node(node)?;
        }
        Ok(folder.finish(&self.outputs)?)
    }
}

fn within(place: &str, mut e: Error) -> Error {
    e.detail = format!("{place}: {}", e.detail);
    e
}

fn input(proto: &ValueInfoProto) -> Result<(&str, Vec<Dim>), Error> {
    let name = proto.name.as_deref().filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| Error::malformed("an input has no name"))?;
    let kind = proto.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let kind = kind.ok_or_else(|| Error::unsupported(format!("input `{name}` is not a tensor")))?;
    match kind.elem_type.unwrap_or(0) {
        data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16 | data_type::DOUBLE => {}
        other => {
            let other = data_type::name(other);
            return Err(Error::unsupported(format!("input `{name}` is {other}: only float inputs are supported")));
        }
    }
    let shape = kind.shape.as_ref().ok_or_else(|| {
        Error::unsupported(format!("input `{name}` has no shape: export it with the size of everything but the batch"))
    })?;
    let mut dims = Vec::with_capacity(shape.dim.len());
    for (axis, dim) in shape.dim.iter().enumerate() {
        // Some exporters write 0 or -1 for a size that is left open.
        dims.push(match dim.dim_value.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0) {
            Some(size) => Dim::Fixed(size),
            None if axis == 0 => Dim::Batch,
            None => {
                let named = dim.dim_param.as_deref().map_or(String::new(), |p| format!(" (`{p}`)"));
                return Err(Error::unsupported(format!(
                    "dimension {axis}{named} of input `{name}` has no size: only the first, the batch, may be left open; \
                     fix the others when exporting"
                )));
            }
        });
    }
    Ok((name, dims))
}

/// Indices of the nodes, each after those it reads from.
fn order(nodes: &[NodeProto]) -> Result<Vec<usize>, Error> {
    fn names(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).filter(|n| !n.is_empty()).collect()
    }
    let reads: Vec<_> = nodes.iter().map(|n| names(&n.input)).collect();
    let writes: Vec<_> = nodes.iter().map(|n| names(&n.output)).collect();
    let labels: Vec<_> = nodes.iter().map(label).collect();
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    Ok(Graph::topological(&reads, &writes, &labels)?)
}

/// What to call a node in a message.
fn label(node: &NodeProto) -> String {
    match (node.name.as_deref().unwrap_or(""), node.output.first()) {
        ("", Some(output)) => format!("{} of `{output}`", node.op_type.as_deref().unwrap_or("")),
        (name, _) => name.to_owned(),
    }
}

fn node<'a>(proto: &'a NodeProto, external: &mut External<'_>) -> Result<RawNode<'a>, Error> {
    let some = |names: &'a [String]| names.iter().map(|n| (!n.is_empty()).then_some(n.as_str())).collect();
    let mut attrs = BTreeMap::new();
    for attribute in &proto.attribute {
        let name = attribute.name.as_deref().unwrap_or("");
        let place = || format!("attribute `{name}` of `{}`", label(proto));
        if let Some(value) = attr(attribute, external).map_err(|e| within(&place(), e))? {
            attrs.insert(name.to_owned(), value);
        }
    }
    Ok(RawNode {
        name: proto.name.as_deref().unwrap_or(""),
        op_type: proto.op_type.as_deref().unwrap_or(""),
        attrs: Attrs(attrs),
        inputs: some(&proto.input),
        outputs: some(&proto.output),
    })
}

/// The value of an attribute, if it is of a type that operators here have.
fn attr(proto: &AttributeProto, external: &mut External<'_>) -> Result<Option<Attr>, Error> {
    // Files older than IR version 2 leave the type to be seen from the field that is set.
    let guess = [
        (proto.f.is_some(), attribute_type::FLOAT),
        (proto.i.is_some(), attribute_type::INT),
        (proto.s.is_some(), attribute_type::STRING),
        (proto.t.is_some(), attribute_type::TENSOR),
        (!proto.floats.is_empty(), attribute_type::FLOATS),
        (!proto.ints.is_empty(), attribute_type::INTS),
    ];
    let guess = || guess.iter().find(|(set, _)| *set).map_or(0, |(_, kind)| *kind);
    Ok(match proto.r#type.filter(|&t| t != 0).unwrap_or_else(guess) {
        attribute_type::FLOAT => Some(Attr::Float(proto.f.unwrap_or(0.0))),
        attribute_type::INT => Some(Attr::Int(proto.i.unwrap_or(0))),
        attribute_type::STRING => {
            let text = String::from_utf8_lossy(proto.s.as_deref().unwrap_or(&[]));
            Some(Attr::Str(text.into_owned()))
        }
        attribute_type::TENSOR => {
            let tensor = proto.t.as_ref().ok_or_else(|| Error::malformed("its tensor is missing"))?;
            Some(Attr::Tensor(tensor::decode(tensor, external)?))
        }
        attribute_type::FLOATS => Some(Attr::Floats(proto.floats.clone())),
        attribute_type::INTS => Some(Attr::Ints(proto.ints.clone())),
        _ => None,
    })
}
