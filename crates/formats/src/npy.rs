//! NumPy's `.npy`: one array, as `numpy.save` writes it.
//!
//! ```text
//! | \x93NUMPY | major, minor | header length: 2 bytes (version 1) or 4 | {'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), } | data |
//! ```

use std::path::Path;

use bitsmith_graph::{Data, Tensor};
use bitsmith_kernels::file::write_atomically;

use crate::error::Error;
use crate::onnx::f16_to_f32;
use crate::safetensors::write_elements;
use crate::sniff;

/// Reads an array of floats, integers or booleans. Half and double become f32; 16-bit integers become 32-bit ones.
pub fn read(path: &Path) -> Result<Tensor, Error> {
    decode(&sniff::read_file(path, 1 << 36)?).map_err(|e| e.at(path))
}

/// Writes an array in row-major order.
pub fn write(path: &Path, tensor: &Tensor) -> Result<(), Error> {
    let header = header(tensor);
    write_atomically(path, |out| {
        out.write_all(header.as_slice())?;
        write_elements(out, tensor.data())
    })
    .map_err(|e| Error::io("write", e).at(path))
}

fn header(tensor: &Tensor) -> Vec<u8> {
    let descr = match tensor.data() {
        Data::F32(_) => "<f4",
        Data::I64(_) => "<i8",
        Data::I32(_) => "<i4",
        Data::I8(_) => "|i1",
        Data::U8(_) => "|u1",
        Data::Bool(_) => "|b1",
    };
    let dims = tensor.shape().iter().map(|d| format!("{d},")).collect::<Vec<_>>().join(" ");
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Data starts at a multiple of 64; ten bytes come before the text, and a line end closes it.
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    // A shape has at most 16 axes: the text is far below 2^16 bytes.
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text.as_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<Tensor, Error> {
    let cut = || Error::malformed("is no .npy file, or a truncated one");
    let (text, data) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, rest @ ..] => {
            rest.split_at_checked(u16::from_le_bytes([*a, *b]).into()).ok_or_else(cut)?
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, rest @ ..] => {
            let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).map_err(|_| cut())?;
            rest.split_at_checked(length).ok_or_else(cut)?
        }
        _ => return Err(cut()),
    };
    let text = std::str::from_utf8(text).map_err(|_| cut())?;
    let value = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = value("descr").and_then(|v| v.strip_prefix('\'')?.split('\'').next());
    let descr = descr.ok_or_else(|| Error::unsupported("holds records, not a plain array"))?;
    let fortran = value("fortran_order").is_some_and(|v| v.starts_with("True"));
    let dims = value("shape").and_then(|v| v.strip_prefix('(')?.split(')').next()).ok_or_else(cut)?;
    let shape = dims.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse::<usize>().map_err(|_| cut()));
    let shape = shape.collect::<Result<Vec<_>, _>>()?;
    let (kind, width) =
        descr.strip_prefix(['<', '|', '=']).and_then(|d| Some((d.get(..1)?, d.get(1..)?))).ok_or_else(|| {
            Error::unsupported(format!("elements of type `{descr}`: little-endian numbers are supported"))
        })?;
    let bytes_needed = width.parse().ok().and_then(|w: usize| shape.iter().try_fold(w, |n, &d| n.checked_mul(d)));
    if bytes_needed != Some(data.len()) {
        return Err(Error::malformed(format!(
            "shape {shape:?} of `{descr}` does not take the {} bytes that follow: is it truncated?",
            data.len()
        )));
    }
    let b2 = || data.as_chunks::<2>().0.iter().copied();
    let b4 = || data.as_chunks::<4>().0.iter().copied();
    let b8 = || data.as_chunks::<8>().0.iter().copied();
    let elements = match (kind, width) {
        ("f", "4") => Data::F32(b4().map(f32::from_le_bytes).collect()),
        ("f", "8") => Data::F32(b8().map(|b| f64::from_le_bytes(b) as f32).collect()),
        ("f", "2") => Data::F32(b2().map(|b| f16_to_f32(u16::from_le_bytes(b))).collect()),
        ("i", "8") => Data::I64(b8().map(i64::from_le_bytes).collect()),
        ("i", "4") => Data::I32(b4().map(i32::from_le_bytes).collect()),
        ("i", "2") => Data::I32(b2().map(|b| i16::from_le_bytes(b).into()).collect()),
        ("i", "1") => Data::I8(data.iter().map(|&b| b.cast_signed()).collect()),
        ("u", "4") => Data::I64(b4().map(|b| u32::from_le_bytes(b).into()).collect()),
        ("u", "2") => Data::I32(b2().map(|b| u16::from_le_bytes(b).into()).collect()),
        ("u", "1") => Data::U8(data.to_vec()),
        ("b", "1") => Data::Bool(data.iter().map(|&b| b != 0).collect()),
        _ => return Err(Error::unsupported(format!("elements of type `{descr}` are not supported"))),
    };
    let tensor = match fortran {
        false => Tensor::new(shape, elements)?,
        true => row_major(shape, elements)?,
    };
    Ok(tensor)
}

/// An array whose first axis runs fastest, in row-major order.
fn row_major(shape: Vec<usize>, elements: Data) -> Result<Tensor, Error> {
    let n = elements.len();
    let mut places = Vec::with_capacity(n);
    let mut at = vec![0; shape.len()];
    for _ in 0..n {
        let mut place = 0;
        for axis in (0..shape.len()).rev() {
            place = place * shape[axis] + at[axis];
        }
        places.push(place);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    fn picked<T: Copy>(v: &[T], places: &[usize]) -> Vec<T> {
        places.iter().map(|&i| v[i]).collect()
    }
    let elements = match &elements {
        Data::F32(v) => Data::F32(picked(v, &places)),
        Data::I64(v) => Data::I64(picked(v, &places)),
        Data::I32(v) => Data::I32(picked(v, &places)),
        Data::I8(v) => Data::I8(picked(v, &places)),
        Data::U8(v) => Data::U8(picked(v, &places)),
        Data::Bool(v) => Data::Bool(picked(v, &places)),
    };
    Ok(Tensor::new(shape, elements)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let arrays = [
            Tensor::f32([2, 3], vec![1.0, -2.5, 0.0, f32::MIN, 1e-40, 7.0]).unwrap(),
            Tensor::int(-7),
            Tensor::new([2], Data::Bool(vec![true, false])).unwrap(),
            Tensor::new([3], Data::U8(vec![1, 2, 255])).unwrap(),
            Tensor::f32([0, 4], vec![]).unwrap(),
        ];
        for array in arrays {
            write(&path, &array).unwrap();
            assert_eq!(read(&path).unwrap(), array);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!((bytes.len() - array.bytes()) % 64, 0);
            for end in 0..bytes.len().saturating_sub(usize::from(array.is_empty())) {
                assert!(decode(&bytes[..end]).is_err() || end + array.bytes() >= bytes.len());
            }
        }
    }

    #[test]
    fn column_major_arrays_are_turned() {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let text = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }";
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        for v in [1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0] {
            bytes.extend(v.to_le_bytes());
        }
        assert_eq!(decode(&bytes).unwrap().as_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn hostile_arrays() {
        let with = |text: &str, data: &[u8]| {
            let length = (text.len() as u16).to_le_bytes();
            decode(&[b"\x93NUMPY\x01\x00", &length[..], text.as_bytes(), data].concat()).map_err(|e| e.detail)
        };
        let cases = [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", "is it truncated?"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", "little-endian"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "is it truncated?"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "records"),
            ("{'descr': '<f4'", "no .npy file"),
        ];
        for (text, message) in cases {
            let error = with(text, &[0; 4]).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
