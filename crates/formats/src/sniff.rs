//! What a file is, from its first bytes and its name, and what to do where it is not a model.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bitsmith_graph::Model;

use crate::error::{Error, Kind};
use crate::onnx;

/// How the header of a packed model begins, whatever its version; the runtime writes it so.
const PACKED: &[u8] = br#"{"__metadata__":{"bitsmith":""#;

/// The kinds of file that bitsmith reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A network with weights: [`onnx::read`].
    Onnx,
    /// Weights without a network: [`safetensors::load_into`].
    Safetensors,
    /// A packed model, which the runtime reads.
    Packed,
    /// One array: [`crate::npy::read`].
    Npy,
}

/// Reads a float model, whatever kind of file it is in, or says what the file is and what to do with it.
pub fn open(path: &Path) -> Result<Model, Error> {
    let other = |detail: &str| Err(Error::unsupported(detail).at(path));
    match kind(path)? {
        FileKind::Onnx => onnx::read(path),
        FileKind::Safetensors => other(
            "holds weights without a network: name a built-in architecture and give this file as its weights \
             (`--weights FILE`)",
        ),
        FileKind::Packed => other("is a packed model already, not a float one: run, inspect or verify it"),
        FileKind::Npy => other("holds an array, not a model: give it as an input"),
    }
}

/// What kind of file this is. Files that other programs write for the same purpose are refused with the way to convert
/// them.
pub fn kind(path: &Path) -> Result<FileKind, Error> {
    let start = read_start(path)?;
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let unknown = |detail: &str| Err(Error::new(Kind::Unknown, detail).at(path));
    match (start.as_slice(), extension.as_str()) {
        ([], _) => unknown("is empty"),
        ([0x93, b'N', b'U', b'M', b'P', b'Y', ..], _) => Ok(FileKind::Npy),
        ([_, _, _, _, _, _, _, _, b'{', ..], ext) => {
            let ours = ext == "bitsmith" || start[8..].starts_with(PACKED);
            Ok(if ours { FileKind::Packed } else { FileKind::Safetensors })
        }
        (_, "bitsmith") => Ok(FileKind::Packed),
        (_, "safetensors") => Ok(FileKind::Safetensors),
        (_, "npy") => Ok(FileKind::Npy),
        (_, "onnx") => Ok(FileKind::Onnx),
        ([b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..], _) => unknown(
            "is a PyTorch (pickle or zip) file, which can run code when it is loaded: save the weights with \
             `safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")`, or the network with \
             `torch.onnx.export`",
        ),
        ([0x89, b'H', b'D', b'F', ..], _) => {
            unknown("is a Keras or HDF5 file: convert it with tf2onnx, or save the weights as safetensors")
        }
        ([_, _, _, _, b'T', b'F', b'L', b'3', ..], _) => unknown("is a TensorFlow Lite file: convert it with tf2onnx"),
        // An ONNX file starts with its first field, the version of the format: a small number.
        ([0x08, 1..=99, ..], _) => Ok(FileKind::Onnx),
        _ => unknown("is none of the kinds known here: .onnx, .safetensors, .bitsmith, .npy"),
    }
}

/// The first bytes, at most 64.
fn read_start(path: &Path) -> Result<Vec<u8>, Error> {
    let mut start = Vec::new();
    open_file(path)?.0.take(64).read_to_end(&mut start).map_err(|e| Error::io("read", e).at(path))?;
    Ok(start)
}

/// The whole file, if it has at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, size) = open_file(path)?;
    if size > limit {
        return Err(
            Error::unsupported(format!("has {size} bytes, more than the {limit} that such a file may have")).at(path)
        );
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("read", e).at(path))?;
    Ok(bytes)
}

/// The file and its size, if it is a plain file.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), Error> {
    let failed = |e| Error::io("read", e).at(path);
    let found = std::fs::metadata(path).map_err(failed)?;
    let not_a_file = match (found.is_dir(), found.is_file()) {
        (true, _) => Some("is a folder: name the model file in it"),
        (false, false) => Some("is not a plain file: a device or a pipe cannot be read as a model"),
        (false, true) => None,
    };
    match not_a_file {
        Some(detail) => Err(Error::new(Kind::Unknown, detail).at(path)),
        None => Ok((File::open(path).map_err(failed)?, found.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_and_of_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let packed = [b"\x02\0\0\0\0\0\0\0", PACKED].concat();
        let cases: [(&str, &[u8], Result<FileKind, &str>); 10] = [
            ("renamed", &packed, Ok(FileKind::Packed)),
            ("a.onnx", b"\x08\x08", Ok(FileKind::Onnx)),
            ("unnamed", b"\x08\x08", Ok(FileKind::Onnx)),
            ("b.safetensors", b"\x02\0\0\0\0\0\0\0{}", Ok(FileKind::Safetensors)),
            ("c.bitsmith", b"\x02\0\0\0\0\0\0\0{}", Ok(FileKind::Packed)),
            ("d.npy", b"\x93NUMPY\x01\0", Ok(FileKind::Npy)),
            ("e.pth", b"PK\x03\x04....", Err("is a PyTorch")),
            ("f.h5", b"\x89HDF....", Err("is a Keras")),
            ("g.txt", b"hello", Err("is none of the kinds")),
            ("h.onnx", b"", Err("is empty")),
        ];
        for (name, bytes, expected) in cases {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            match (kind(&path), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
                (Err(e), Err(message)) => assert!(e.detail.starts_with(message), "{name}: {e}"),
                (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
            }
        }
        assert!(open(folder.path()).unwrap_err().detail.contains("is a folder"));
        assert!(open(&folder.path().join("absent")).unwrap_err().detail.contains("no such file"));
        assert!(open(&folder.path().join("b.safetensors")).unwrap_err().detail.contains("--weights"));
    }
}
