//! The packed file (`.bitsmith`): a whole quantized model in one safetensors file whose weights take exactly the bits
//! that were learned. `docs/format.md` describes it byte by byte.
//!
//! | where | what |
//! |---|---|
//! | `__metadata__` | version, checksums, the graph as a listing, sites, preprocessing, class names |
//! | `U8` tensors | codes of quantized constants: fields of b bits, bit planes, or base 3 |
//! | one `F32` tensor | scales and codebooks of all sites, then every float vector (batch-norm, biases) |
//! | other tensors | constants that are not quantized |
//! | nothing | constants whose elements are all equal; weights of 0 bits |
//!
//! Reading trusts nothing: it allocates at most 128 MiB and 512 times the file's length, whatever the file says.

mod codes;
mod container;
mod crc32;
mod listing;
mod sites;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use bitsmith_graph::quant::channels;
use bitsmith_graph::{Data, Grid, Preprocess, QParams, QuantModel, Tensor, ValueId};

use crate::error::{Error, Kind};
use container::{Container, Stored};
use listing::Constant;
use text::{escape, float, joined, number, unescape};

pub use container::{VERSION, is_packed};

/// What a packed file spends its bytes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The whole file.
    pub total: usize,
    /// Codes of quantized constants.
    pub codes: usize,
    /// Scales, codebooks and float vectors.
    pub floats: usize,
    /// Constants that are not quantized and not float vectors.
    pub constants: usize,
    /// Length field, graph and tensor list.
    pub header: usize,
}

/// Writes a model, completely or not at all: the file appears under its name only once it is whole and on disk.
pub fn write(model: &QuantModel, path: &Path) -> Result<Sizes, Error> {
    let (bytes, sizes) = encode(model)?;
    bitsmith_kernels::file::write_atomically(path, |out| out.write_all(&bytes))
        .map_err(|e| Error::from(e).at(path.display().to_string()))?;
    Ok(sizes)
}

/// Reads a model from a file.
pub fn read(path: &Path) -> Result<QuantModel, Error> {
    let here = |e: Error| e.within(path.display().to_string());
    // A pipe or a device may never end.
    let is_file = std::fs::metadata(path).map_err(|e| here(e.into()))?.is_file();
    if !is_file {
        return Err(here(Error::new(Kind::NotPacked, "not a packed model: it is not a regular file")));
    }
    read_bytes(&std::fs::read(path).map_err(|e| here(e.into()))?).map_err(here)
}

/// What a model's packed file would spend its bytes on.
pub fn sizes(model: &QuantModel) -> Result<Sizes, Error> {
    Ok(encode(model)?.1)
}

/// A tensor to be stored: name, element type, shape, bytes.
type Entry = (String, &'static str, Vec<usize>, Vec<u8>);

/// The bytes of a model's packed file.
pub fn encode(model: &QuantModel) -> Result<(Vec<u8>, Sizes), Error> {
    let graph = model.graph();
    listing::check_names(graph)?;
    let is_quantized = |id: ValueId| model.tensor(id).is_some();
    let fill_of = |id: ValueId| graph.constant(id).filter(|_| !is_quantized(id)).and_then(listing::uniform);

    let (mut entries, mut floats): (Vec<Entry>, Vec<f32>) = (vec![], vec![]);
    let mut sites = String::new();
    for (&id, (role, params)) in model.sites() {
        sites += &sites::print(id.index(), *role, params);
        floats.extend(params.scale.iter().chain(&params.levels));
    }
    let mut elements_without_bytes = 0;
    for id in graph.value_ids() {
        let value = graph.value(id);
        let Some(tensor) = &value.constant else { continue };
        if let Some(quantized) = model.tensor(id) {
            let bytes = codes::pack(quantized).map_err(|e| e.at(&value.name))?;
            elements_without_bytes += without_bytes(quantized.params, tensor.len());
            match quantized.params.spec.bits {
                0 => {}
                _ => entries.push((value.name.clone(), "U8", vec![bytes.len()], bytes)),
            }
            continue;
        }
        match tensor.data() {
            _ if fill_of(id).is_some() => elements_without_bytes += tensor.len(),
            Data::F32(values) if tensor.shape().len() <= 1 => floats.extend(values),
            data => entries.push((value.name.clone(), data.dtype(), tensor.shape().to_vec(), le_bytes(data))),
        }
    }
    let mut pool = "floats".to_owned();
    while graph.find(&pool).is_some() {
        pool.push('_');
    }
    let codes = |entries: &[Entry]| -> usize {
        let of = |e: &Entry| if graph.find(&e.0).is_some_and(is_quantized) { e.3.len() } else { 0 };
        entries.iter().map(of).sum()
    };
    let mut sizes = Sizes { total: 0, codes: codes(&entries), floats: floats.len() * 4, constants: 0, header: 0 };
    sizes.constants = entries.iter().map(|e| e.3.len()).sum::<usize>() - sizes.codes;
    entries.push((pool.clone(), "F32", vec![floats.len()], le_bytes(&Data::F32(floats))));
    // Wide elements first, so that all are aligned without holes; otherwise in the graph's order.
    entries.sort_by_key(|e| match e.1 {
        "I64" => 0,
        "F32" | "I32" => 1,
        _ => 2,
    });

    let mut metadata = vec![
        ("name", model.name().to_owned()),
        ("opset", listing::OPSET.to_string()),
        ("floats", pool),
        ("graph", listing::print(graph, fill_of)),
        ("sites", sites),
    ];
    if let Some(p) = model.preprocess() {
        metadata
            .push(("preprocess", format!("{} {} {}", float(&p.scale), joined(&p.mean, float), joined(&p.std, float))));
    }
    if !model.classes().is_empty() {
        metadata.push(("classes", model.classes().iter().map(|c| escape(c)).collect::<Vec<_>>().join(" ")));
    }
    let tensors: Vec<_> =
        entries.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, &shape[..], &bytes[..])).collect();
    let file = container::encode(&metadata, &tensors)?;
    check_expansion(elements_without_bytes, file.len()).map_err(|e| e.of_kind(Kind::Unsupported))?;
    sizes.total = file.len();
    sizes.header = file.len() - sizes.codes - sizes.floats - sizes.constants;
    Ok((file, sizes))
}

/// Reads a model from the bytes of a packed file.
pub fn read_bytes(file: &[u8]) -> Result<QuantModel, Error> {
    let Container { metadata, tensors } = container::decode(file)?;
    let get = |key: &str| metadata.get(key).ok_or_else(|| Error::corrupt(format!("the metadata has no `{key}`")));
    let (lines, outputs) = listing::parse(get("graph")?, number(get("opset")?)?)?;
    let pool_name = get("floats")?;
    let pool = tensors
        .get(pool_name)
        .ok_or_else(|| Error::corrupt("the tensor of scales and vectors is missing").at(pool_name))?;
    let mut floats =
        Floats(f32_values(pool).ok_or_else(|| Error::corrupt("scales and vectors must be F32").at(pool_name))?);

    // Scales come first in the pool, so sites are read before constants; how many there are follows from the shapes.
    let constants = listing::constants(&lines);
    let shapes: BTreeMap<usize, &[usize]> = constants.iter().map(|(i, c)| (*i, c.shape.as_slice())).collect();
    let mut sites = BTreeMap::new();
    for line in get("sites")?.lines() {
        // As many as have scales: a claim that the file's own bytes bound.
        let channels_of = |index: usize, per| match channels(per, shapes.get(&index).copied().unwrap_or(&[]))? {
            n if n > floats.0.len() => {
                Err(Error::corrupt(format!("{n} scales are needed but {} floats are left", floats.0.len())))
            }
            n => Ok(n),
        };
        let (index, role, mut params) = sites::parse(line, channels_of).map_err(|e| e.at(format!("site `{line}`")))?;
        params.scale = floats.take(channels_of(index, params.spec.per)?)?;
        if params.spec.grid == Grid::Codebook {
            params.levels = floats.take(1 << params.spec.bits.min(8))?;
        }
        if sites.insert(index, (role, params)).is_some() {
            return Err(Error::corrupt("this value has two sites").at(format!("site `{line}`")));
        }
    }
    let codeless = |(index, c): &(usize, &Constant)| {
        let n = element_count(&c.shape);
        let of_codes = sites.get(index).map_or(0, |(_, p)| without_bytes(p, n));
        if c.fill.is_some() { n } else { of_codes }
    };
    check_expansion(constants.iter().map(codeless).fold(0, usize::saturating_add), file.len())?;

    let mut unused = tensors.len() - 1;
    let graph = listing::build(lines, &outputs, |index, constant| {
        let stored = tensors.get(&constant.name).filter(|_| constant.name != *pool_name);
        unused -= usize::from(stored.is_some());
        if let Some((_, params)) = sites.get(&index) {
            let bytes = match (params.spec.bits, stored) {
                (0, None) => &[][..],
                (0, Some(_)) => return Err(Error::corrupt("codes of 0 bits have no bytes, but it has a tensor")),
                (_, Some(stored)) => stored.bytes,
                (_, None) => return Err(Error::corrupt("its codes are missing")),
            };
            return Ok(Tensor::new(
                constant.shape.clone(),
                codes::unpack(params, element_count(&constant.shape), bytes)?,
            )?);
        }
        let data = match (constant.fill, stored) {
            (Some(value), _) => Data::F32(vec![value; element_count(&constant.shape)]),
            (None, Some(stored)) if stored.shape != constant.shape => {
                return Err(Error::corrupt(format!(
                    "it is {:?} but the graph says {:?}",
                    stored.shape, constant.shape
                )));
            }
            (None, Some(stored)) => {
                data_of(stored).ok_or_else(|| Error::corrupt("its element type is not supported"))?
            }
            (None, None) if constant.shape.len() <= 1 => Data::F32(floats.take(element_count(&constant.shape))?),
            (None, None) => return Err(Error::corrupt("its data is missing")),
        };
        Ok(Tensor::new(constant.shape.clone(), data)?)
    })?;
    if unused > 0 || !floats.0.is_empty() {
        return Err(Error::corrupt(format!("{unused} tensors and {} floats belong to no constant", floats.0.len())));
    }

    let ids: Vec<_> = graph.value_ids().collect();
    let site = |(index, site): (usize, _)| match ids.get(index) {
        Some(&id) => Ok((id, site)),
        None => Err(Error::corrupt(format!("a site is at value {index} but there are {}", ids.len()))),
    };
    let sites = sites.into_iter().map(site).collect::<Result<_, _>>()?;
    let preprocess = metadata.get("preprocess").map(|text| parse_preprocess(text)).transpose()?;
    let classes = match metadata.get("classes") {
        Some(text) => text.split(' ').map(unescape).collect::<Result<_, _>>()?,
        None => vec![],
    };
    Ok(QuantModel::from_parts(get("name")?.clone(), graph, sites, preprocess, classes)?)
}

/// Elements of a quantized constant whose codes have 0 bits.
fn without_bytes(params: &QParams, n: usize) -> usize {
    params.runs(n).into_iter().filter(|(spec, _)| spec.bits == 0).map(|(_, n)| n).sum()
}

/// Elements that take no bytes are bounded, so that a short file cannot ask for much memory.
fn check_expansion(elements: usize, file: usize) -> Result<(), Error> {
    let most = file.saturating_mul(64).saturating_add(1 << 24);
    match elements <= most {
        true => Ok(()),
        false => Err(Error::corrupt(format!(
            "{elements} elements have no bytes (fills and 0-bit weights): a file of {file} bytes may have {most}"
        ))),
    }
}

/// Number of elements, saturating: data is compared with it, or it has been bounded.
fn element_count(shape: &[usize]) -> usize {
    bitsmith_graph::tensor::element_count(shape).unwrap_or(usize::MAX)
}

/// The pool of floats, from the front.
struct Floats(Vec<f32>);

impl Floats {
    fn take(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        if n > self.0.len() {
            return Err(Error::corrupt(format!("{n} more floats are needed but {} are left", self.0.len())));
        }
        let rest = self.0.split_off(n);
        Ok(std::mem::replace(&mut self.0, rest))
    }
}

fn parse_preprocess(text: &str) -> Result<Preprocess, Error> {
    let parts: Vec<_> = text.split(' ').collect();
    let &[scale, mean, std] = parts.as_slice() else {
        return Err(Error::corrupt("needs a scale, means and standard deviations").at("preprocess"));
    };
    let floats = |list: &str| -> Result<Vec<f32>, Error> {
        if list.is_empty() { Ok(vec![]) } else { list.split(',').map(number).collect() }
    };
    Ok(Preprocess { scale: number(scale)?, mean: floats(mean)?, std: floats(std)? })
}

fn le_bytes(data: &Data) -> Vec<u8> {
    match data {
        Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I8(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::U8(v) => v.clone(),
        Data::Bool(v) => v.iter().map(|&x| x.into()).collect(),
    }
}

fn f32_values(stored: &Stored<'_>) -> Option<Vec<f32>> {
    match data_of(stored) {
        Some(Data::F32(values)) => Some(values),
        _ => None,
    }
}

fn data_of(stored: &Stored<'_>) -> Option<Data> {
    // The container has checked that the bytes are whole elements.
    let four = || stored.bytes.as_chunks::<4>().0.iter().copied();
    Some(match stored.dtype.as_str() {
        "F32" => Data::F32(four().map(f32::from_le_bytes).collect()),
        "I32" => Data::I32(four().map(i32::from_le_bytes).collect()),
        "I64" => Data::I64(stored.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        "I8" => Data::I8(stored.bytes.iter().map(|&b| b as i8).collect()),
        "U8" => Data::U8(stored.bytes.to_vec()),
        "BOOL" => Data::Bool(stored.bytes.iter().map(|&b| b != 0).collect()),
        _ => return None,
    })
}
