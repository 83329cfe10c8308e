//! A [`QuantModel`] as an ONNX file in the QDQ form: integers in the file, with nodes that say what they stand for.
//!
//! ```text
//! weight codes (int2, int4, int8) ─ DequantizeLinear ─▶ the layer
//! activation ─ Clip ─ QuantizeLinear (uint8) ─ DequantizeLinear ─▶ its readers
//! ```
//!
//! Decoding is `(code − zero point) · scale` in f32, the same single product as everywhere, so weights are exact. A grid that
//! does not fill its type (4 bits in uint8) saturates through `Clip` at the decoded ends of its range; a clipped value is within
//! one rounding of an integer number of steps, so it rounds to the end of the range, and all others pass unchanged.

use std::collections::HashMap;
use std::path::Path;

use bitsmith_graph::model::rectifies;
use bitsmith_graph::ops::Clip;
use bitsmith_graph::quant::Granularity;
use bitsmith_graph::{Attr, Grid, QParams, QuantModel, QuantTensor, Role, Tensor, ValueId};
use bitsmith_kernels::pack::pack_fields;

use super::proto::{ModelProto, data_type};
use super::write::{Writer, attribute, raw_tensor, save, tensor_proto};
use crate::error::Error;

/// For whom an ONNX file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The opset: from 13 on; 4-bit types from 21, 2-bit types from 25.
    pub opset: u32,
}

impl Default for Target {
    /// Opset 21: 4-bit types, and two years of runtimes that read it.
    fn default() -> Self {
        Self { opset: 21 }
    }
}

/// How a layer's weight ended up in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRow {
    /// The layer.
    pub name: String,
    /// Bits of a code, as learned; none if the weight is float.
    pub bits_stored: Option<u8>,
    /// Bits per weight in this file.
    pub bits_in_file: u8,
    /// The element type in this file.
    pub type_in_file: &'static str,
    /// What ONNX Runtime's CPU provider computes with.
    pub arithmetic: &'static str,
}

/// Writes a quantized model and says what became of each layer.
pub fn write_qdq(model: &QuantModel, path: &Path, target: Target) -> Result<Vec<LayerRow>, Error> {
    let (proto, rows) = encode_qdq(model, target).map_err(|e| e.at(path))?;
    save(&proto, path)?;
    Ok(rows)
}

pub(super) fn encode_qdq(model: &QuantModel, target: Target) -> Result<(ModelProto, Vec<LayerRow>), Error> {
    let graph = model.graph();
    let mut writer = Writer::new(graph, target.opset)?;
    let mut types: HashMap<ValueId, Type> = HashMap::new();
    for id in writer.constants_read() {
        let name = &graph.value(id).name;
        match (model.tensor(id), graph.constant(id)) {
            (Some(tensor), _) => {
                types.insert(id, weight(&mut writer, name, tensor, target.opset)?);
            }
            (None, Some(tensor)) => writer.proto.initializer.push(tensor_proto(name, tensor)?),
            (None, None) => {}
        }
    }
    // Readers of a rounded value keep its name, and what is rounded gets a new one; an input has to keep its name instead.
    let (mut before, mut after) = (HashMap::new(), HashMap::new());
    for (&id, (role, _)) in model.sites() {
        let name = &graph.value(id).name;
        match (role, graph.inputs().iter().any(|input| input.value == id)) {
            (Role::Weight | Role::Bias, _) => continue,
            (_, true) => after.insert(id, writer.unique(format!("{name}.rounded"))),
            (_, false) => before.insert(id, writer.unique(format!("{name}.float"))),
        };
    }
    let read = |id: ValueId| after.get(&id).unwrap_or(&graph.value(id).name).clone();
    let write = |id: ValueId| before.get(&id).unwrap_or(&graph.value(id).name).clone();
    let round = |writer: &mut Writer<'_>, id: ValueId| match model.sites().get(&id) {
        Some((Role::Activation | Role::Input, params)) => {
            let name = &graph.value(id).name;
            activation(writer, name, params, write(id), read(id)).map_err(|e| named(name, e))
        }
        _ => Ok(()),
    };
    for input in graph.inputs() {
        round(&mut writer, input.value)?;
    }
    for node in graph.nodes() {
        writer.node(node, read, write)?;
        for &id in &node.outputs {
            round(&mut writer, id)?;
        }
    }
    let rows = rows(model, &types)?;
    Ok((writer.finish(model.name(), model.preprocess(), model.classes())?, rows))
}

fn named(name: &str, mut e: Error) -> Error {
    e.detail = format!("`{name}`: {}", e.detail);
    e
}

/// An element type of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Type {
    number: i32,
    name: &'static str,
    bits: u8,
    low: i32,
    high: i32,
}

/// What activations are rounded to. They are not stored, so 8 bits cost nothing, and unsigned bytes are what runtimes
/// have kernels for: ONNX Runtime 1.31 fails to load signed ones read by a `Slice`, and 2-bit ones read by anything.
const BYTE: Type = Type { number: data_type::UINT8, name: "uint8", bits: 8, low: 0, high: 255 };
const FLOAT: Type = Type { number: data_type::FLOAT, name: "float", bits: 32, low: 0, high: 0 };

impl Type {
    /// Integer types with the opset that brought them, narrowest first.
    const INTS: [(Type, u32); 6] = [
        (Type { number: data_type::INT2, name: "int2", bits: 2, low: -2, high: 1 }, 25),
        (Type { number: data_type::UINT2, name: "uint2", bits: 2, low: 0, high: 3 }, 25),
        (Type { number: data_type::INT4, name: "int4", bits: 4, low: -8, high: 7 }, 21),
        (Type { number: data_type::UINT4, name: "uint4", bits: 4, low: 0, high: 15 }, 21),
        (Type { number: data_type::INT8, name: "int8", bits: 8, low: -128, high: 127 }, 13),
        (Type { number: data_type::UINT8, name: "uint8", bits: 8, low: 0, high: 255 }, 13),
    ];

    /// The narrowest type of an opset that holds these integers.
    fn narrowest(low: i32, high: i32, opset: u32) -> Option<Type> {
        let mut types = Type::INTS.iter().filter(|(_, since)| *since <= opset).map(|(t, _)| *t);
        types.find(|t| t.low <= low && high <= t.high)
    }
}

/// Adds a quantized constant under its own name; says which type it got.
fn weight(writer: &mut Writer<'_>, name: &str, tensor: QuantTensor<'_>, opset: u32) -> Result<Type, Error> {
    let params = tensor.params;
    let codes = (0..tensor.codes.len()).map(|i| tensor.code(i));
    // A codebook of integers is those integers; of other numbers, it has no integer form.
    let codes: Option<Vec<i32>> = match params.spec.grid {
        Grid::Codebook => codes.map(|code| whole(params.levels.get(usize::try_from(code).ok()?)?)).collect(),
        _ => Some(codes.collect()),
    };
    // Zero points that are all zero need not be said.
    let coded = params.spec.grid != Grid::Codebook && params.zero_point.iter().any(|&z| z != 0);
    let zeros: &[i32] = if coded { &params.zero_point } else { &[] };
    let range = codes.as_ref().map(|codes| {
        let all = || codes.iter().chain(zeros).copied();
        (all().min().unwrap_or(0), all().max().unwrap_or(0))
    });
    let Some((kind, codes)) = range.and_then(|(low, high)| Type::narrowest(low, high, opset)).zip(codes) else {
        writer.proto.initializer.push(tensor_proto(name, &Tensor::f32(tensor.shape, tensor.decode())?)?);
        return Ok(FLOAT);
    };
    let stored = writer.unique(format!("{name}.codes"));
    writer.proto.initializer.push(raw_tensor(&stored, kind.number, tensor.shape, pack(&codes, kind)?)?);
    let mut inputs = vec![stored];
    inputs.extend(scale_and_zeros(writer, name, params, kind, zeros)?);
    let dequantize = format!("{name}.dequantize");
    writer.push(&dequantize, "DequantizeLinear", inputs, vec![name.to_owned()], axis(params)?);
    Ok(kind)
}

/// An integer that a float is.
fn whole(level: &f32) -> Option<i32> {
    (-128.0..=255.0).contains(level).then_some(*level as i32).filter(|&v| v as f32 == *level)
}

/// Integers as the file stores them: 2- and 4-bit types fill bytes from the low end.
fn pack(codes: &[i32], kind: Type) -> Result<Vec<u8>, Error> {
    let misfit = |e: bitsmith_kernels::pack::Error| Error::malformed(e.to_string());
    match kind.low < 0 {
        true => {
            let codes: Vec<i8> = codes.iter().map(|&c| i8::try_from(c).unwrap_or(i8::MAX)).collect();
            pack_fields(&codes, kind.bits).map_err(misfit)
        }
        false => {
            let codes: Vec<u8> = codes.iter().map(|&c| u8::try_from(c).unwrap_or(u8::MAX)).collect();
            pack_fields(&codes, kind.bits).map_err(misfit)
        }
    }
}

/// Adds scale and zero points, as the layout of the granularity asks; returns the names of both.
fn scale_and_zeros(
    writer: &mut Writer<'_>,
    name: &str,
    params: &QParams,
    kind: Type,
    zeros: &[i32],
) -> Result<Vec<String>, Error> {
    let shape: &[usize] = match params.spec.per {
        Granularity::PerTensor => &[],
        Granularity::PerChannel { .. } => &[params.scale.len()],
    };
    let scale = writer.unique(format!("{name}.scale"));
    writer.proto.initializer.push(tensor_proto(&scale, &Tensor::f32(shape, params.scale.clone())?)?);
    if zeros.is_empty() {
        return Ok(vec![scale]);
    }
    let zero = writer.unique(format!("{name}.zero_point"));
    writer.proto.initializer.push(raw_tensor(&zero, kind.number, shape, pack(zeros, kind)?)?);
    Ok(vec![scale, zero])
}

fn axis(params: &QParams) -> Result<Vec<super::proto::AttributeProto>, Error> {
    match params.spec.per {
        Granularity::PerTensor => Ok(vec![]),
        Granularity::PerChannel { axis } => {
            let axis = i64::try_from(axis).unwrap_or(i64::MAX);
            Ok(vec![attribute("axis".to_owned(), Attr::Int(axis))?])
        }
    }
}

/// Adds the nodes that round the value called `from` to the value called `to`.
fn activation(writer: &mut Writer<'_>, name: &str, params: &QParams, from: String, to: String) -> Result<(), Error> {
    let (low, high) = params.code_range();
    // Codes with a sign are moved up, zero point and all: the differences, which are what is decoded, stay.
    let shift = if low < 0 { 128 } else { 0 };
    let fits = BYTE.low <= low + shift && high + shift <= BYTE.high;
    if !matches!(params.spec.grid, Grid::Affine { .. }) || !fits {
        return Err(Error::unsupported(format!("an activation on the grid {:?} has no ONNX form", params.spec.grid)));
    }
    let mut from = from;
    if (low + shift, high + shift) != (BYTE.low, BYTE.high) {
        let clip = Clip { min: Some(params.decode(low, 0)), max: Some(params.decode(high, 0)) }.into();
        let clipped = writer.unique(format!("{name}.clipped"));
        writer.operator(&format!("{name}.clip"), &clip, vec![from], vec![clipped.clone()])?;
        from = clipped;
    }
    let codes = writer.unique(format!("{name}.codes"));
    let inputs = scale_and_zeros(writer, name, params, BYTE, &[params.zero_point(0) + shift])?;
    let with = |first: String| std::iter::once(first).chain(inputs.iter().cloned()).collect::<Vec<_>>();
    writer.push(&format!("{name}.quantize"), "QuantizeLinear", with(from), vec![codes.clone()], vec![]);
    writer.push(&format!("{name}.dequantize"), "DequantizeLinear", with(codes), vec![to], vec![]);
    Ok(())
}

/// What became of each layer.
fn rows(model: &QuantModel, types: &HashMap<ValueId, Type>) -> Result<Vec<LayerRow>, Error> {
    let graph = model.graph();
    let consumers = graph.consumers();
    let mut rows = Vec::new();
    for layer in model.layers()? {
        let node = &graph.nodes()[layer.node];
        let kind = types.get(&layer.weight).copied().unwrap_or(FLOAT);
        // ONNX Runtime fuses a convolution with the nodes around it where weight, input and output are bytes and nothing
        // but a rectifier lies between; matrix products it computes in float.
        let output = match consumers[node.output().index()].as_slice() {
            [only] if rectifies(&graph.nodes()[*only].op) => graph.nodes()[*only].output(),
            _ => node.output(),
        };
        let fills_byte = |id: ValueId| {
            let range = model.params(id).map(QParams::code_range);
            matches!(range, Some((low, high)) if high - low == BYTE.high)
        };
        let convolves = graph.constant(layer.weight).is_some_and(|w| w.shape().len() > 2);
        let integer = convolves && kind.bits == 8 && node.input(0).is_some_and(fills_byte) && fills_byte(output);
        rows.push(LayerRow {
            name: node.name.clone(),
            bits_stored: model.params(layer.weight).map(|p| p.spec.bits),
            bits_in_file: kind.bits,
            type_in_file: kind.name,
            arithmetic: match (integer, kind == FLOAT) {
                (true, _) => "int8",
                (false, false) => "f32 on decoded weights",
                (false, true) => "f32",
            },
        });
    }
    Ok(rows)
}
