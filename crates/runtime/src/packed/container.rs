//! The outer layer of a packed file: safetensors, in the subset that is written here, plus checksums.
//!
//! ```text
//! 8 bytes   length of the header, little endian
//! header    {"__metadata__":{"bitsmith":"1","header_crc32":"…","data_crc32":"…", …},"name":{"dtype":…},…} and spaces
//! data      the tensors, back to back
//! ```

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::crc32::crc32;
use crate::error::{Error, Kind};

/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// Safetensors readers refuse longer headers.
const MAX_HEADER: usize = 100_000_000;

/// What every packed file begins with, from byte 8 on; the version's digits follow.
const PREFIX: &str = r#"{"__metadata__":{"bitsmith":""#;

/// What follows the version; eight hexadecimal digits follow it.
const BEFORE_CRC: &str = r#"","header_crc32":""#;

/// A tensor as the container sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored<'a> {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

/// Everything in a container: strings by key and tensors by name.
#[derive(Debug, Default)]
pub(super) struct Container<'a> {
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Stored<'a>>,
}

/// Whether bytes, of which the first hundred suffice, are a packed file of any version.
pub fn is_packed(bytes: &[u8]) -> bool {
    bytes.get(8..).is_some_and(|b| b.starts_with(PREFIX.as_bytes()))
}

/// Puts a file together. Keys and names are written in the given order; tensors must be ordered so that wider elements
/// come first, which keeps every one aligned without holes.
pub(super) fn encode(metadata: &[(&str, String)], tensors: &[(&str, &str, &[usize], &[u8])]) -> Result<Vec<u8>, Error> {
    let parts: Vec<&[u8]> = tensors.iter().map(|(.., bytes)| *bytes).collect();
    let mut header = format!(r#"{PREFIX}{VERSION}{BEFORE_CRC}"#);
    let crc_at = header.len();
    header += &format!(r#"00000000","data_crc32":"{:08x}""#, crc32(&parts));
    for (key, value) in metadata {
        header += &format!(",{}:{}", quoted(key), quoted(value));
    }
    header.push('}');
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let (shape, end) = (Json::from(shape.to_vec()), at + bytes.len());
        header += &format!(r#",{}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{at},{end}]}}"#, quoted(name));
        at = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    if header.len() > MAX_HEADER {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the graph takes {} bytes of header, at most {MAX_HEADER} can be stored", header.len()),
        ));
    }
    let crc = format!("{:08x}", crc32(&[header.as_bytes()]));
    header.replace_range(crc_at..crc_at + 8, &crc);
    let mut file = Vec::with_capacity(8 + header.len() + at);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    parts.iter().for_each(|part| file.extend_from_slice(part));
    Ok(file)
}

fn quoted(text: &str) -> Json {
    Json::from(text)
}

/// Takes a file apart, checking both checksums and that the tensors fill the data exactly.
pub(super) fn decode(file: &[u8]) -> Result<Container<'_>, Error> {
    let not_packed = |detail: &str| Error::new(Kind::NotPacked, format!("not a packed model: {detail}"));
    let length = file.first_chunk::<8>().ok_or_else(|| not_packed("it is shorter than 8 bytes"))?;
    let length = u64::from_le_bytes(*length);
    let rest = &file[8..];
    if !rest.starts_with(PREFIX.as_bytes()) {
        let short = PREFIX.as_bytes().starts_with(rest);
        return Err(if short {
            Error::corrupt("the file ends inside its header")
        } else {
            not_packed("the header does not begin as one")
        });
    }
    let version = &rest[PREFIX.len()..];
    let digits = version.iter().take(10).take_while(|b| b.is_ascii_digit()).count();
    let version = String::from_utf8_lossy(&version[..digits]);
    if version != VERSION.to_string() && rest.len() > PREFIX.len() + digits {
        return Err(Error::new(
            Kind::Version,
            format!(
                "format version `{version}`: this build reads version {VERSION}; convert the file with the program that wrote it"
            ),
        ));
    }
    let length = usize::try_from(length)
        .ok()
        .filter(|&n| n <= MAX_HEADER && n <= rest.len())
        .ok_or_else(|| Error::corrupt(format!("the header claims {length} bytes but {} follow", rest.len())))?;
    let (header, data) = rest.split_at(length);
    let crc_at = PREFIX.len() + digits + BEFORE_CRC.len();
    let (Some(true), Some(stated)) = (
        header.get(crc_at - BEFORE_CRC.len()..crc_at).map(|b| b == BEFORE_CRC.as_bytes()),
        header.get(crc_at..crc_at + 8),
    ) else {
        return Err(Error::corrupt("the header's checksum is missing: another program rewrote the file"));
    };
    check_crc("header", stated, crc32(&[&header[..crc_at], b"00000000", &header[crc_at + 8..]]))?;

    let header: Json =
        serde_json::from_slice(header).map_err(|e| Error::corrupt(format!("the header is not JSON: {e}")))?;
    let Json::Object(entries) = header else { return Err(Error::corrupt("the header is not a JSON object")) };
    let mut container = Container::default();
    for (name, entry) in entries {
        if name == "__metadata__" {
            container.metadata = strings(entry)?;
        } else {
            let stored = tensor(&entry, data).map_err(|e| e.at(&name))?;
            container.tensors.insert(name, stored);
        }
    }
    let stated =
        container.metadata.remove("data_crc32").ok_or_else(|| Error::corrupt("the data's checksum is missing"))?;
    check_crc("data", stated.as_bytes(), crc32(&[data]))?;

    // Back to back, as safetensors demands: no byte belongs to two tensors or to none.
    let mut ranges: Vec<_> =
        container.tensors.iter().map(|(n, t)| (t.bytes.as_ptr() as usize, t.bytes.len(), n)).collect();
    ranges.sort();
    let mut at = data.as_ptr() as usize;
    for (start, length, name) in ranges {
        if start != at {
            return Err(Error::corrupt("its bytes do not follow those of the tensor before it").at(name));
        }
        at += length;
    }
    if at != data.as_ptr() as usize + data.len() {
        return Err(Error::corrupt(format!(
            "the data has {} bytes that belong to no tensor",
            data.as_ptr() as usize + data.len() - at
        )));
    }
    Ok(container)
}

fn check_crc(what: &str, stated: &[u8], found: u32) -> Result<(), Error> {
    match stated == format!("{found:08x}").as_bytes() {
        true => Ok(()),
        false => Err(Error::corrupt(format!(
            "the {what} does not match its checksum ({found:08x} instead of {}): the file is damaged",
            String::from_utf8_lossy(stated)
        ))),
    }
}

fn strings(entry: Json) -> Result<BTreeMap<String, String>, Error> {
    let Json::Object(entries) = entry else { return Err(Error::corrupt("the metadata is not a JSON object")) };
    let string = |(key, value)| match value {
        Json::String(text) => Ok((key, text)),
        _ => Err(Error::corrupt("metadata values must be strings").at(key)),
    };
    entries.into_iter().map(string).collect()
}

fn tensor<'a>(entry: &Json, data: &'a [u8]) -> Result<Stored<'a>, Error> {
    let bad = || Error::corrupt("a tensor needs a dtype, a shape and two data offsets");
    let size = |v: &Json| v.as_u64().and_then(|v| usize::try_from(v).ok());
    let sizes = |key: &str| -> Option<Vec<usize>> { entry.get(key)?.as_array()?.iter().map(size).collect() };
    let dtype = entry.get("dtype").and_then(Json::as_str).ok_or_else(bad)?;
    let shape = sizes("shape").ok_or_else(bad)?;
    let Some(&[start, end]) = sizes("data_offsets").as_deref() else { return Err(bad()) };
    let bytes = data.get(start..end).ok_or_else(|| {
        Error::corrupt(format!("its bytes {start}..{end} lie outside the {} bytes of data", data.len()))
    })?;
    let width = match dtype {
        "I64" => 8,
        "F32" | "I32" => 4,
        "U8" | "I8" | "BOOL" => 1,
        other => return Err(Error::corrupt(format!("element type `{other}` is not used by packed files"))),
    };
    let needed = bitsmith_graph::tensor::element_count(&shape).and_then(|n| n.checked_mul(width));
    if needed != Some(bytes.len()) {
        return Err(Error::corrupt(format!("{dtype} {shape:?} does not take {} bytes", bytes.len())));
    }
    Ok(Stored { dtype: dtype.to_owned(), shape, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let file = encode(
            &[("name", "a \"b\"\n".to_owned())],
            &[("x", "F32", &[1], &[1, 2, 3, 4]), ("y", "U8", &[3], &[5, 6, 7])],
        )
        .unwrap();
        assert!(is_packed(&file));
        let container = decode(&file).unwrap();
        assert_eq!(container.metadata["name"], "a \"b\"\n");
        assert_eq!(container.tensors["y"].bytes, [5, 6, 7]);
        assert_eq!(file.len() % 8, 7, "the data starts at a multiple of 8");
    }

    #[test]
    fn each_lie_is_named() {
        let good = encode(&[], &[("x", "U8", &[3], &[5, 6, 7])]).unwrap();
        let fails = |file: &[u8]| decode(file).unwrap_err().to_string();
        assert!(fails(b"").contains("shorter than 8 bytes"));
        assert!(fails(b"\x08\0\0\0\0\0\0\0{}      ").contains("does not begin as one"));
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(fails(&huge).starts_with("the header claims 1152921504606846976 bytes but"), "{}", fails(&huge));
        let mut newer = good.clone();
        newer[8 + PREFIX.len()] = b'7';
        assert_eq!(decode(&newer).unwrap_err().kind, Kind::Version);
        assert!(fails(&newer).starts_with("format version `7`: this build reads version 1"));
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(fails(&flipped).contains("the data does not match its checksum"));
        let mut flipped = good.clone();
        flipped[8 + PREFIX.len() + 40] ^= 1;
        assert!(fails(&flipped).contains("checksum"), "{}", fails(&flipped));
        for shape in [&[4][..], &[1 << 62, 4], &[]] {
            let file = encode(&[], &[("x", "U8", shape, &[5, 6, 7])]).unwrap();
            assert!(fails(&file).contains("does not take 3 bytes"));
        }
    }
}
