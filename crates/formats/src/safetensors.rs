//! safetensors files: weights by name, into a model that has the names, and out of one.
//!
//! ```text
//! | length n of the header, 8 bytes | header, n bytes of JSON | tensors, one after the other |
//! header: {"conv1.weight": {"dtype": "F32", "shape": [16, 3, 3, 3], "data_offsets": [0, 1728]}, "__metadata__": {…}, …}
//! ```
//!
//! Only the tensors that are wanted are read, so a file costs the memory of the model, whatever it claims.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bitsmith_graph::{Data, Model, Tensor};
use bitsmith_kernels::file::write_atomically;
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind};
use crate::onnx::{bf16_to_f32, f16_to_f32};
use crate::sniff;

/// The longest header that is read. The reference implementation has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// Replaces every float constant of the model by the tensor of its name, or lists all that does not fit and changes
/// nothing.
///
/// Half, bfloat16 and double tensors become f32. The counters that PyTorch keeps beside batch normalisation
/// (`num_batches_tracked`) are passed over, and so is a prefix `module.` that all names share.
pub fn load_into(model: &mut Model, path: &Path) -> Result<(), Error> {
    let mut file = Weights::open(path)?;
    let wanted: Vec<_> =
        model.graph.value_ids().filter(|&id| model.graph.constant(id).is_some_and(|t| t.as_f32().is_some())).collect();
    let (mut loaded, mut missing, mut wrong, mut extra) = (vec![], vec![], vec![], vec![]);
    let mut used = std::collections::BTreeSet::new();
    for id in wanted {
        let value = model.graph.value(id);
        let Some(shape) = value.constant.as_ref().map(|t| t.shape().to_vec()) else { continue };
        let name = value.name.clone();
        let Some(entry) = file.entries.get(&name).cloned() else {
            missing.push(format!("`{name}` {shape:?}"));
            continue;
        };
        used.insert(name.clone());
        if entry.shape != shape {
            wrong.push(format!("`{name}` is {:?} instead of {shape:?}", entry.shape));
            continue;
        }
        match file.floats(&entry)? {
            None => wrong.push(format!("`{name}` is {}, not a float type", entry.dtype)),
            Some(values) => match values.iter().find(|v| !v.is_finite()) {
                Some(v) => wrong.push(format!("`{name}` holds {v}")),
                None => loaded.push((id, Tensor::f32(shape, values)?)),
            },
        }
    }
    extra.extend(
        file.entries
            .keys()
            .filter(|k| !used.contains(*k) && !k.ends_with("num_batches_tracked"))
            .map(|k| format!("`{k}`")),
    );
    let problems: Vec<_> =
        [("missing in the file", missing), ("not fitting", wrong), ("in the file but not in the model", extra)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{} {what}: {}", names.len(), abbreviated(&names)))
            .collect();
    if !problems.is_empty() {
        let detail = format!("does not fit the model `{}`; tensors {}", model.name, problems.join("; "));
        return Err(Error::new(Kind::Mismatch, detail).at(path));
    }
    for (id, tensor) in loaded {
        model.graph.set_constant(id, tensor)?;
    }
    Ok(())
}

/// The first names of a list, and how many more there are.
fn abbreviated(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Writes every constant of the model under its name.
pub fn save(model: &Model, path: &Path) -> Result<(), Error> {
    let constants: BTreeMap<_, _> =
        model.graph.values().iter().filter_map(|value| Some((value.name.as_str(), value.constant.as_ref()?))).collect();
    // Names are sorted here and in the header, so that equal models make equal files.
    let mut header = Map::new();
    let mut offset = 0;
    for (name, tensor) in &constants {
        let end = offset + tensor.bytes();
        header.insert(
            (*name).to_owned(),
            json!({"dtype": tensor.data().dtype(), "shape": tensor.shape(), "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        constants.values().try_for_each(|tensor| write_elements(out, tensor.data()))
    })
    .map_err(|e| Error::io("write", e).at(path))
}

/// Elements as little-endian bytes.
pub(crate) fn write_elements(out: &mut dyn std::io::Write, data: &Data) -> std::io::Result<()> {
    match data {
        Data::F32(v) => v.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        Data::I64(v) => v.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        Data::I32(v) => v.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        Data::I8(v) => v.iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
        Data::U8(v) => out.write_all(v),
        Data::Bool(v) => v.iter().try_for_each(|&x| out.write_all(&[x.into()])),
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// From the start of the file.
    first: u64,
    bytes: u64,
}

/// A file whose header was read and checked.
struct Weights {
    file: File,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    fn open(path: &Path) -> Result<Self, Error> {
        let (mut file, size) = sniff::open_file(path)?;
        let mut entries = BTreeMap::new();
        let header = header(&mut file, size).map_err(|e| e.at(path))?;
        let data = size - header_end(&mut file, size).map_err(|e| e.at(path))?;
        for (name, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let entry = entry(value, size - data, data)
                .map_err(|detail| Error::malformed(format!("tensor `{name}`: {detail}")).at(path))?;
            entries.insert(name.clone(), entry);
        }
        if !entries.is_empty() && entries.keys().all(|name| name.starts_with("module.")) {
            entries = entries.into_iter().map(|(name, e)| (name["module.".len()..].to_owned(), e)).collect();
        }
        Ok(Self { file, entries })
    }

    /// The elements as floats; `None` where they are none.
    fn floats(&mut self, entry: &Entry) -> Result<Option<Vec<f32>>, Error> {
        if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16" | "F64") {
            return Ok(None);
        }
        let failed = |e| Error::io("read", e);
        let mut bytes = vec![0; usize::try_from(entry.bytes).map_err(|_| Error::malformed("a tensor is too long"))?];
        self.file.seek(SeekFrom::Start(entry.first)).map_err(failed)?;
        self.file.read_exact(&mut bytes).map_err(failed)?;
        let b2 = || bytes.as_chunks::<2>().0.iter().copied().map(u16::from_le_bytes);
        Ok(Some(match entry.dtype.as_str() {
            "F16" => b2().map(f16_to_f32).collect(),
            "BF16" => b2().map(bf16_to_f32).collect(),
            "F64" => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }))
    }
}

/// Where the header ends, checked to lie in the file.
fn header_end(file: &mut File, size: u64) -> Result<u64, Error> {
    let mut length = [0; 8];
    if size < 8 {
        return Err(Error::malformed(format!("has {size} bytes, too few for a safetensors file: is it truncated?")));
    }
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut length)).map_err(|e| Error::io("read", e))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > size {
        return Err(Error::malformed(format!(
            "claims a header of {length} bytes but has {size} in all: it is truncated, or no safetensors file"
        )));
    }
    Ok(length + 8)
}

fn header(file: &mut File, size: u64) -> Result<Map<String, Value>, Error> {
    let end = header_end(file, size)?;
    let mut text = Vec::new();
    file.take(end - 8).read_to_end(&mut text).map_err(|e| Error::io("read", e))?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(format!("its header is not valid JSON: {e}")))
}

/// One entry of the header, checked to lie in the `data` bytes that follow `start`.
fn entry(value: &Value, start: u64, data: u64) -> Result<Entry, String> {
    let dtype = value.get("dtype").and_then(Value::as_str).ok_or("has no element type")?;
    let shape: Option<Vec<usize>> = value
        .get("shape")
        .and_then(Value::as_array)
        .and_then(|dims| dims.iter().map(|d| usize::try_from(d.as_u64()?).ok()).collect());
    let shape = shape.ok_or("has no shape")?;
    let offsets = value.get("data_offsets").and_then(Value::as_array).map(Vec::as_slice);
    let (Some(begin), Some(end)) = (match offsets {
        Some([begin, end]) => (begin.as_u64(), end.as_u64()),
        _ => (None, None),
    }) else {
        return Err("has no data offsets".to_owned());
    };
    if begin > end || end > data {
        return Err(format!("lies at bytes {begin} to {end} but the file holds {data}: is it truncated?"));
    }
    let width = match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    };
    let needed = shape.iter().try_fold(width, |n: u64, &d| n.checked_mul(d as u64));
    // Types narrower than a byte are listed but never loaded, so their size does not matter.
    if matches!(dtype, "F64" | "F32" | "F16" | "BF16") && needed != Some(end - begin) {
        return Err(format!("{dtype} of shape {shape:?} does not take {} bytes", end - begin));
    }
    Ok(Entry { dtype: dtype.to_owned(), shape, first: start + begin, bytes: end - begin })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_graph::ops::Gemm;
    use bitsmith_graph::zoo::{self, ZooOptions};
    use bitsmith_graph::{Dim, Graph};

    fn model() -> Model {
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(2)]).unwrap();
        let w = g.add_constant("fc.weight", Tensor::f32([3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, -0.5]).unwrap()).unwrap();
        let b = g.add_constant("fc.bias", Tensor::floats(vec![0.1, 0.2, 0.3])).unwrap();
        let y = g.add("fc", Gemm::default(), &[x, w, b]).unwrap();
        g.set_outputs(vec![y]);
        Model::new("tiny", g)
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn load(bytes: &[u8]) -> Result<Model, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let mut m = model();
        load_into(&mut m, &path).map_err(|e| e.detail)?;
        Ok(m)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        save(&model(), &path).unwrap();
        let mut other = model();
        for id in other.graph.value_ids().collect::<Vec<_>>() {
            other.graph.constant_f32_mut(id).into_iter().flatten().for_each(|v| *v = 0.0);
        }
        load_into(&mut other, &path).unwrap();
        assert_eq!(other, model());
        let bytes = std::fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            assert!(load(&bytes[..end]).is_err(), "truncated to {end} bytes");
        }
    }

    #[test]
    fn everything_that_does_not_fit_is_listed() {
        let error = load(&file(
            r#"{"fc.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"odd":{"dtype":"I64","shape":[],"data_offsets":[24,32]}}"#,
            &[0; 32],
        ));
        let expected = "does not fit the model `tiny`; tensors 1 missing in the file: `fc.bias` [3]; 1 not fitting: `fc.weight` is [2, 3] \
                        instead of [3, 2]; 1 in the file but not in the model: `odd`";
        assert_eq!(error.unwrap_err(), expected);
        let header = r#"{"fc.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"fc.bias":{"dtype":"I32","shape":[3],"data_offsets":[24,36]}}"#;
        let mut data = [0; 36];
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = load(&file(header, &data)).unwrap_err();
        assert!(error.contains("`fc.weight` holds NaN, `fc.bias` is I32, not a float type"), "{error}");
    }

    #[test]
    fn other_floats_are_converted() {
        let header = r#"{"module.fc.weight":{"dtype":"F16","shape":[3,2],"data_offsets":[0,12]},"module.fc.bias":{"dtype":"F64","shape":[3],"data_offsets":[12,36]},"module.bn.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[36,44]}}"#;
        let mut data = vec![];
        data.extend([0x00, 0x3c].repeat(6));
        data.extend((-1.5f64).to_le_bytes().repeat(3));
        data.extend([0; 8]);
        let m = load(&file(header, &data)).unwrap();
        let of = |name| m.graph.constant(m.graph.find(name).unwrap()).unwrap().as_f32().unwrap().to_vec();
        assert_eq!((of("fc.weight"), of("fc.bias")), (vec![1.0; 6], vec![-1.5; 3]));
    }

    /// The published weights fit the built-in networks, name for name.
    #[test]
    fn published_weights_fit() {
        let data = std::env::var_os("BITSMITH_DATA").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
            std::path::PathBuf::from,
        );
        let files = [
            ("resnet20", "cifar10_resnet20"),
            ("resnet56", "cifar10_resnet56"),
            ("resnet8", "cifar10_resnet8_mlperf_tiny"),
            ("squeezenet1_1", "imagenet_squeezenet1_1"),
        ];
        for (name, file) in files {
            let path = data.join("weights").join(file).with_extension("safetensors");
            if !path.exists() {
                eprintln!("skipped: {} is not there", path.display());
                continue;
            }
            let mut model = zoo::build(name, &ZooOptions::default()).unwrap();
            load_into(&mut model, &path).unwrap();
        }
    }

    #[test]
    fn hostile_headers() {
        let mut huge = file("{}", &[]);
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        assert_eq!(
            load(&huge).unwrap_err(),
            "claims a header of 1152921504606846976 bytes but has 10 in all: it is truncated, or no safetensors file"
        );
        let cases = [
            ("[]", "not valid JSON"),
            (r#"{"a":1}"#, "has no element type"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, "lies at bytes 4 to 0"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99]}}"#, "is it truncated?"),
            (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, "does not take 4 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "has no shape"),
        ];
        for (header, message) in cases {
            let error = load(&file(header, &[0; 4])).unwrap_err();
            assert!(error.contains(message), "{header}: {error}");
        }
        assert!(load(&file(&"[".repeat(100_000), &[])).is_err(), "nesting does not exhaust the stack");
    }
}
