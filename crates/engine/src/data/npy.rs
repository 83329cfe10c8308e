//! The header of NumPy's `.npy` format, versions 1 to 3:
//! `\x93NUMPY`, major, minor, header length (u16, or u32 from version 2), then a Python dictionary as text.

use super::arrays::{Array, Element};
use super::error::{Error, FETCH_AGAIN};
use super::tree::Tree;

/// Headers above this are not NumPy's.
const MAX_HEADER: u64 = 1 << 16;

/// Reads the header of a file, and checks that the file is as long as it says.
pub(super) fn open(tree: &Tree, file: usize) -> Result<Array, Error> {
    let what = tree.display(file);
    let length = tree.bytes(file);
    let short = |expected: u64| Error::Length { what: what.clone(), expected, found: length, hint: FETCH_AGAIN.into() };
    let bad = |detail: &str| Error::malformed(&what, detail);
    let mut head = Vec::new();
    tree.read_part(file, 0, length.min(12), &mut head)?;
    if !head.starts_with(b"\x93NUMPY") {
        return Err(bad("not a .npy file (its first bytes are not \\x93NUMPY); write it with numpy.save"));
    }
    let (start, header) = match head.as_slice() {
        [_, _, _, _, _, _, 1, _, a, b, ..] => (10, u64::from(*a) | u64::from(*b) << 8),
        [_, _, _, _, _, _, 2 | 3, _, a, b, c, d, ..] => {
            (12, u64::from(*a) | u64::from(*b) << 8 | u64::from(*c) << 16 | u64::from(*d) << 24)
        }
        [_, _, _, _, _, _, version, _, ..] if length >= 12 => {
            return Err(bad(&format!("version {version} of the .npy format is unknown")));
        }
        _ => return Err(short(12)),
    };
    if header > MAX_HEADER {
        return Err(Error::too_large(what, Some(header), MAX_HEADER));
    }
    let offset = start + header;
    if offset > length {
        return Err(short(offset));
    }
    tree.read_part(file, start, header, &mut head)?;
    let text = std::str::from_utf8(&head).map_err(|_| bad("its header is not text"))?;
    let unreadable = || bad("its header is unreadable; write it again with numpy.save");

    let descr = value(text, "descr")
        .and_then(quoted)
        .ok_or_else(|| bad("its elements are records; store one plain array of numbers"))?;
    let element = element(descr).ok_or_else(|| {
        bad(&format!("elements of type `{descr}`; convert with x.astype('float32') or x.astype('uint8')"))
    })?;
    let shape = value(text, "shape").and_then(tuple).ok_or_else(unreadable)?;
    let fortran = value(text, "fortran_order").ok_or_else(unreadable)?;
    if !fortran.starts_with("False") && shape.len() > 1 {
        return Err(bad("it is in Fortran order; store numpy.ascontiguousarray(x)"));
    }
    let expected = shape
        .iter()
        .try_fold(element.bytes() as u64, |n, &d| n.checked_mul(d as u64))
        .and_then(|n| n.checked_add(offset));
    if expected != Some(length) {
        return Err(short(expected.unwrap_or(u64::MAX)));
    }
    Ok(Array { file, name: what, offset, element, shape })
}

/// The text after `'key':`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let quoted = format!("'{key}'");
    let after = &text[text.find(&quoted)? + quoted.len()..];
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.strip_prefix('\'')?;
    text.split_once('\'').map(|(inside, _)| inside)
}

fn tuple(text: &str) -> Option<Vec<usize>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    let parts = inside.split(',').map(str::trim).filter(|p| !p.is_empty());
    let dims: Vec<usize> = parts.map(|p| p.parse().ok()).collect::<Option<_>>()?;
    (dims.len() <= 8).then_some(dims)
}

/// Little-endian or single-byte types; `None` for the others.
fn element(descr: &str) -> Option<Element> {
    Some(match descr {
        "|u1" | "|b1" => Element::U8,
        "|i1" => Element::I8,
        "<u2" => Element::U16,
        "<i2" => Element::I16,
        "<u4" => Element::U32,
        "<i4" => Element::I32,
        "<u8" => Element::U64,
        "<i8" => Element::I64,
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod testing {
    /// A version 1 file as NumPy writes it.
    pub fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while (10 + text.len() + 1) % 64 != 0 {
            text.push(' ');
        }
        text.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::npy;
    use super::*;

    fn read(bytes: &[u8]) -> Result<Array, Error> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.npy");
        std::fs::write(&path, bytes).unwrap();
        open(&Tree::of_files("a", &[path]).unwrap(), 0)
    }

    #[test]
    fn headers_are_read() {
        let array = read(&npy("<f4", "(2, 3)", &[0; 24])).unwrap();
        assert_eq!((array.element, array.shape, array.offset % 64), (Element::F32, vec![2, 3], 0));
        let mut second = npy("|u1", "(4,)", &[0; 4]);
        second[6] = 2;
        second.splice(10..10, [0, 0]);
        assert_eq!(read(&second).unwrap().shape, [4]);
    }

    #[test]
    fn hostile_headers_are_refused() {
        let good = npy("<f4", "(2, 3)", &[0; 24]);
        let fortran = String::from_utf8_lossy(&good[10..128]).replace("False", "True ").into_bytes();
        let cases: [(Vec<u8>, &str); 11] = [
            ([&good[..10], &fortran, &good[128..]].concat(), "ascontiguousarray"),
            (good[..good.len() - 3].to_vec(), "expected 152 bytes, found 149"),
            (good[..9].to_vec(), "expected 12 bytes"),
            (good[..60].to_vec(), "expected 128 bytes, found 60"),
            (b"PK\x03\x04 and so on".to_vec(), "numpy.save"),
            (npy(">f4", "(2, 3)", &[0; 24]), "astype"),
            (npy("<c8", "(2, 3)", &[0; 48]), "astype"),
            (npy("<f4", "(1152921504606846976,)", &[0; 8]), "4611686018427388032"),
            (npy("<f4", "(4294967296, 4294967296, 16)", &[0; 8]), "18446744073709551615"),
            (npy("<f4", "(-1,)", &[0; 8]), "unreadable"),
            (npy("<f4", "2", &[0; 8]), "unreadable"),
        ];
        for (bytes, expected) in cases {
            let message = read(&bytes).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("a.npy"), "{expected}: {message}");
        }
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 0x55;
            let _ = read(&bytes);
        }
    }
}
