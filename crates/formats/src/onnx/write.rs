//! A [`Model`] as an ONNX file, and the parts that [`super::qdq`] shares.

use std::collections::HashSet;
use std::path::Path;

use bitsmith_graph::{Attr, Data, Dim, Graph, Model, Node, Op, Preprocess, Tensor, ValueId};
use bitsmith_kernels::file::write_atomically;
use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};
use super::{OPSETS_WRITTEN, PRODUCER, metadata};
use crate::error::Error;
use crate::safetensors::write_elements;

/// Writes a model in float, as it is; quantization sites are left out.
pub fn write_float(model: &Model, path: &Path, opset: u32) -> Result<(), Error> {
    save(&encode_float(model, opset).map_err(|e| e.at(path))?, path)
}

pub(super) fn encode_float(model: &Model, opset: u32) -> Result<ModelProto, Error> {
    let mut writer = Writer::new(&model.graph, opset)?;
    let name = |id: ValueId| model.graph.value(id).name.clone();
    for id in writer.constants_read() {
        if let Some(tensor) = model.graph.constant(id) {
            writer.proto.initializer.push(tensor_proto(&name(id), tensor)?);
        }
    }
    for node in model.graph.nodes() {
        writer.node(node, name, name)?;
    }
    writer.finish(&model.name, model.preprocess.as_ref(), &model.classes)
}

/// Replaces the file at `path` by this model.
pub(super) fn save(model: &ModelProto, path: &Path) -> Result<(), Error> {
    let bytes = model.encode_to_vec();
    if i32::try_from(bytes.len()).is_err() {
        let detail = format!("would have {} bytes, but an ONNX file holds at most 2^31", bytes.len());
        return Err(Error::unsupported(detail).at(path));
    }
    write_atomically(path, |out| out.write_all(&bytes)).map_err(|e| Error::io("write", e).at(path))
}

/// Builds the file of one graph.
pub(super) struct Writer<'a> {
    graph: &'a Graph,
    opset: u32,
    taken: HashSet<String>,
    pub proto: GraphProto,
}

impl<'a> Writer<'a> {
    pub fn new(graph: &'a Graph, opset: u32) -> Result<Self, Error> {
        if !OPSETS_WRITTEN.contains(&opset) {
            let (first, last) = OPSETS_WRITTEN.into_inner();
            return Err(Error::unsupported(format!(
                "opset {opset} cannot be written: choose one from {first} to {last}"
            )));
        }
        let taken = graph.values().iter().map(|v| v.name.clone()).collect();
        Ok(Self { graph, opset, taken, proto: GraphProto::default() })
    }

    /// Constants that a node reads or the network returns, in order.
    pub fn constants_read(&self) -> Vec<ValueId> {
        let read = self.graph.nodes().iter().flat_map(|n| n.inputs.iter().flatten());
        let mut read: Vec<_> = read.chain(self.graph.outputs()).copied().collect();
        read.sort();
        read.dedup();
        read.retain(|&id| self.graph.constant(id).is_some());
        read
    }

    /// A value name that is not taken yet.
    pub fn unique(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}_{count}");
        }
        name
    }

    /// Adds a node; `read` and `write` say under which names values are read and written.
    pub fn node(
        &mut self,
        node: &Node,
        read: impl Fn(ValueId) -> String,
        write: impl Fn(ValueId) -> String,
    ) -> Result<(), Error> {
        let inputs = node.inputs.iter().map(|id| id.map_or_else(String::new, &read)).collect();
        let outputs = node.outputs.iter().map(|&id| write(id)).collect();
        self.operator(&node.name, &node.op, inputs, outputs)
    }

    /// Adds a node that applies an operator to values of these names.
    pub fn operator(&mut self, name: &str, op: &Op, inputs: Vec<String>, outputs: Vec<String>) -> Result<(), Error> {
        if op.since() > self.opset {
            return Err(Error::unsupported(format!(
                "node `{name}`: this form of {} needs opset {} or later, not {}",
                op.name(),
                op.since(),
                self.opset
            )));
        }
        let (mut attrs, mut inputs) = (op.attrs(), inputs);
        for &(index, attr) in Op::params_of(op.name()).unwrap_or(&[]) {
            let Some(value) = attrs.0.remove(attr) else { continue };
            let tensor = match value {
                Attr::Int(v) => Tensor::int(v),
                Attr::Ints(v) => Tensor::ints(v),
                Attr::Float(v) => Tensor::f32([], vec![v])?,
                Attr::Floats(v) => Tensor::floats(v),
                Attr::Tensor(t) => t,
                Attr::Str(_) => continue,
            };
            let param = self.unique(format!("{name}.{attr}"));
            self.proto.initializer.push(tensor_proto(&param, &tensor)?);
            if inputs.len() <= index {
                inputs.resize(index + 1, String::new());
            }
            inputs[index] = param;
        }
        let attributes = attrs.0.into_iter().map(|(name, value)| attribute(name, value)).collect::<Result<_, _>>()?;
        self.push(name, op.name(), inputs, outputs, attributes);
        Ok(())
    }

    pub fn push(
        &mut self,
        name: &str,
        op: &str,
        input: Vec<String>,
        output: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        self.proto.node.push(NodeProto {
            input,
            output,
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute,
            domain: None,
        });
    }

    /// The whole file.
    pub fn finish(
        mut self,
        name: &str,
        preprocess: Option<&Preprocess>,
        classes: &[String],
    ) -> Result<ModelProto, Error> {
        let shapes = [self.graph.shapes(2)?, self.graph.shapes(3)?];
        for input in self.graph.inputs() {
            let dims = input.dims.iter().map(|d| match d {
                Dim::Batch => dimension(2, 3),
                Dim::Fixed(n) => dimension(*n, *n),
            });
            self.proto.input.push(value_info(&self.graph.value(input.value).name, dims.collect()));
        }
        for &id in self.graph.outputs() {
            let dims = shapes[0][id.index()].iter().zip(&shapes[1][id.index()]).map(|(&a, &b)| dimension(a, b));
            self.proto.output.push(value_info(&self.graph.value(id).name, dims.collect()));
        }
        self.proto.name = Some(name.to_owned());
        Ok(ModelProto {
            ir_version: Some(ir_version(self.opset)),
            producer_name: Some(PRODUCER.to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.proto),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset.into()) }],
            metadata_props: metadata::write(preprocess, classes),
            functions: vec![],
        })
    }
}

/// The version of the file format that came with an opset.
fn ir_version(opset: u32) -> i64 {
    match opset {
        ..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// A dimension that is `a` for two samples and `b` for three.
fn dimension(a: usize, b: usize) -> DimensionProto {
    match (a, b) {
        (2, 3) => DimensionProto { dim_value: None, dim_param: Some("batch".to_owned()) },
        (a, b) if a == b => DimensionProto { dim_value: i64::try_from(a).ok(), dim_param: None },
        _ => DimensionProto::default(),
    }
}

fn value_info(name: &str, dim: Vec<DimensionProto>) -> ValueInfoProto {
    let tensor = TensorTypeProto { elem_type: Some(data_type::FLOAT), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

pub(super) fn attribute(name: String, value: Attr) -> Result<AttributeProto, Error> {
    let mut proto = AttributeProto { name: Some(name), ..AttributeProto::default() };
    proto.r#type = Some(match value {
        Attr::Int(v) => {
            proto.i = Some(v);
            attribute_type::INT
        }
        Attr::Float(v) => {
            proto.f = Some(v);
            attribute_type::FLOAT
        }
        Attr::Str(v) => {
            proto.s = Some(v.into_bytes().into());
            attribute_type::STRING
        }
        Attr::Ints(v) => {
            proto.ints = v;
            attribute_type::INTS
        }
        Attr::Floats(v) => {
            proto.floats = v;
            attribute_type::FLOATS
        }
        Attr::Tensor(t) => {
            proto.t = Some(tensor_proto("", &t)?);
            attribute_type::TENSOR
        }
    });
    Ok(proto)
}

/// A tensor under its own element type.
pub(super) fn tensor_proto(name: &str, tensor: &Tensor) -> Result<TensorProto, Error> {
    let kind = match tensor.data() {
        Data::F32(_) => data_type::FLOAT,
        Data::I64(_) => data_type::INT64,
        Data::I32(_) => data_type::INT32,
        Data::I8(_) => data_type::INT8,
        Data::U8(_) => data_type::UINT8,
        Data::Bool(_) => data_type::BOOL,
    };
    let mut bytes = Vec::with_capacity(tensor.bytes());
    write_elements(&mut bytes, tensor.data()).map_err(|e| Error::io("write", e))?;
    raw_tensor(name, kind, tensor.shape(), bytes)
}

/// A tensor from its bytes as ONNX lays them out.
pub(super) fn raw_tensor(name: &str, kind: i32, shape: &[usize], bytes: Vec<u8>) -> Result<TensorProto, Error> {
    let dims = shape.iter().map(|&d| i64::try_from(d).map_err(|_| Error::malformed("a dimension is too large")));
    Ok(TensorProto {
        dims: dims.collect::<Result<_, _>>()?,
        data_type: Some(kind),
        name: (!name.is_empty()).then(|| name.to_owned()),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    })
}
