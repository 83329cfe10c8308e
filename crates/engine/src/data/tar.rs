//! The index of a tar archive: where each regular member lies, without reading or unpacking the members.
//!
//! Written here rather than taken from a crate because an index needs only 512-byte headers, and because this way every
//! size is checked against the file before anything is allocated. Understands ustar prefixes, GNU long names and pax
//! paths and sizes; links and devices are left out. Refused: paths that leave the archive (absolute or with `..`),
//! sparse members, members that reach beyond the end of the file, and archives without the closing zero block.

use std::io::{Read, Seek, SeekFrom};

use super::error::{Error, FETCH_AGAIN};

/// A regular file inside an archive or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Relative path with `/` between parts.
    pub path: String,
    /// Where the contents start (0 in folders).
    pub offset: u64,
    /// Length of the contents.
    pub bytes: u64,
}

/// Files and folders of an archive, in archive order.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub files: Vec<Member>,
    pub folders: Vec<String>,
}

const BLOCK: u64 = 512;
/// Long names and pax headers above this are not names.
const MAX_NAME_BYTES: u64 = 1 << 20;

/// Reads all headers of an archive of `length` bytes; `what` names it in errors.
pub(super) fn index(reader: &mut (impl Read + Seek), length: u64, what: &str) -> Result<Index, Error> {
    let io = |source| Error::Io { path: what.to_string(), source };
    let mut index = Index::default();
    let mut position = 0u64;
    let (mut long_name, mut pax) = (None, Pax::default());
    loop {
        if position + BLOCK > length {
            return Err(Error::Length {
                what: what.to_string(),
                expected: position + BLOCK,
                found: length,
                hint: format!("the archive has no closing block: {FETCH_AGAIN}"),
            });
        }
        let mut header = [0u8; BLOCK as usize];
        reader.seek(SeekFrom::Start(position)).map_err(io)?;
        reader.read_exact(&mut header).map_err(io)?;
        if header.iter().all(|&b| b == 0) {
            return Ok(index);
        }
        let bad = |detail: &str| Error::malformed(format!("{what} at byte {position}"), detail);
        if !checksum_fits(&header) {
            return Err(bad(if position == 0 {
                "not a tar archive (the header's checksum does not fit)"
            } else {
                "damaged tar header (its checksum does not fit); fetch the archive again"
            }));
        }
        let kind = header[156];
        let stated = number(&header[124..136]).ok_or_else(|| bad("unreadable size in tar header"))?;
        // A pax size replaces that of the member it precedes, not that of the pax header itself.
        let special = matches!(kind, b'L' | b'K' | b'x' | b'g' | b'X');
        let bytes = if special { stated } else { pax.size.unwrap_or(stated) };
        let offset = position + BLOCK;
        let end = offset.checked_add(bytes).filter(|&end| end <= length);
        let Some(end) = end else {
            return Err(Error::Length {
                what: format!("{what}:{}", name(&header)),
                expected: bytes,
                found: length - offset,
                hint: FETCH_AGAIN.to_string(),
            });
        };

        if special && kind != b'g' {
            if bytes > MAX_NAME_BYTES {
                return Err(bad("a member name of more than a mebibyte"));
            }
            let mut text = vec![0u8; bytes as usize];
            reader.read_exact(&mut text).map_err(io)?;
            match kind {
                b'L' => long_name = Some(trimmed(&text)),
                b'x' | b'X' => pax = Pax::parse(&text).ok_or_else(|| bad("unreadable pax header"))?,
                _ => {}
            }
        } else if kind != b'g' {
            let path = long_name.take().or(pax.path.take()).unwrap_or_else(|| name(&header));
            pax = Pax::default();
            let path = checked_path(&path).map_err(|detail| Error::malformed(format!("{what}:{path}"), detail))?;
            match kind {
                b'0' | 0 | b'7' if path.is_empty() => return Err(bad("a member without a name")),
                b'0' | 0 | b'7' => index.files.push(Member { path, offset, bytes }),
                b'5' if !path.is_empty() => index.folders.push(path),
                b'S' => {
                    return Err(Error::malformed(
                        format!("{what}:{path}"),
                        "sparse members are not supported; pack the archive again without --sparse",
                    ));
                }
                _ => {}
            }
        }
        position = end.div_ceil(BLOCK) * BLOCK;
    }
}

/// The sum of all header bytes, the checksum field itself counted as spaces.
fn checksum_fits(header: &[u8; 512]) -> bool {
    let outside = header[..148].iter().chain(&header[156..]);
    let (unsigned, signed) = outside.fold((256i64, 256i64), |(u, s), &b| (u + i64::from(b), s + i64::from(b as i8)));
    number(&header[148..156]).is_some_and(|stated| stated as i64 == unsigned || stated as i64 == signed)
}

/// An octal field, or GNU's base 256 when the top bit is set. `None` if neither, or if negative or above 2^62.
fn number(field: &[u8]) -> Option<u64> {
    let value = if field.first()? & 0x80 != 0 {
        field.iter().enumerate().try_fold(0u64, |sum, (i, &b)| {
            let digit = if i == 0 { b & 0x7f } else { b };
            sum.checked_mul(256)?.checked_add(u64::from(digit))
        })?
    } else {
        let digits = field.iter().skip_while(|&&b| b == b' ').take_while(|&&b| b != b' ' && b != 0);
        digits.clone().try_fold(0u64, |sum, &b| match b {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(b - b'0')),
            _ => None,
        })?
    };
    (value < 1 << 62).then_some(value)
}

/// Name with the ustar prefix, if there is one.
fn name(header: &[u8; 512]) -> String {
    let name = trimmed(&header[..100]);
    let prefix = trimmed(&header[345..500]);
    // GNU headers ("ustar  ") keep other things in the prefix field.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

fn trimmed(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The path without `./` and doubled or trailing slashes, or what is wrong with it.
fn checked_path(path: &str) -> Result<String, &'static str> {
    if path.starts_with('/') || path.split(['/', '\\']).any(|part| part == "..") {
        return Err("the member's path leaves the archive; pack it again with relative paths");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

/// What we use of a pax header.
#[derive(Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

impl Pax {
    /// Records are `LENGTH KEY=VALUE\n`, the length counting itself.
    fn parse(mut text: &[u8]) -> Option<Pax> {
        let mut pax = Pax::default();
        while !text.is_empty() && text.first() != Some(&0) {
            let space = text.iter().position(|&b| b == b' ')?;
            let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
            let record = text.get(space + 1..length)?;
            let record = record.strip_suffix(b"\n")?;
            let equals = record.iter().position(|&b| b == b'=')?;
            let value = std::str::from_utf8(&record[equals + 1..]).ok();
            match &record[..equals] {
                b"path" => pax.path = Some(value?.to_string()),
                b"size" => pax.size = Some(value?.parse().ok().filter(|&size: &u64| size < 1 << 62)?),
                _ => {}
            }
            text = text.get(length..)?;
        }
        Some(pax)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, contents) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, path, *contents).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Index, Error> {
        index(&mut Cursor::new(bytes), bytes.len() as u64, "a.tar")
    }

    /// A header with a valid checksum after `change`.
    fn patched(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        change(&mut bytes[..512]);
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes[..512].iter().map(|&b| u32::from(b)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    }

    #[test]
    fn members_are_found_where_they_lie() {
        let long = format!("{}/x.bin", "deep/".repeat(40));
        let bytes = archive(&[("a/one", b"hello"), (&long, &[7; 513]), ("empty", b""), ("./b//two", b"world")]);
        let index = read(&bytes).unwrap();
        let contents: Vec<(&str, &[u8])> = index
            .files
            .iter()
            .map(|m| (m.path.as_str(), &bytes[m.offset as usize..(m.offset + m.bytes) as usize]))
            .collect();
        assert_eq!(contents[0], ("a/one", &b"hello"[..]));
        assert_eq!(contents[1], (format!("{}x.bin", "deep/".repeat(40)).as_str(), &[7u8; 513][..]));
        assert_eq!(contents[2], ("empty", &b""[..]));
        assert_eq!(contents[3], ("b/two", &b"world"[..]));
    }

    #[test]
    fn pax_paths_and_sizes_are_used() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &b"caf\xc3\xa9/x"[..]), ("size", b"5")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("plain").unwrap();
        header.set_size(5);
        header.set_cksum();
        builder.append(&header, &b"hello"[..]).unwrap();
        let index = read(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(index.files[0].path, "café/x");
        assert_eq!(index.files[0].bytes, 5);
    }

    #[test]
    fn hostile_archives_are_refused_by_name() {
        let good = archive(&[("a/one", b"hello"), ("b", &[1; 600])]);
        let cases: [(&str, Vec<u8>, &str); 8] = [
            ("empty", Vec::new(), "expected 512 bytes, found 0"),
            ("cut in a member", good[..1024 + 512 + 100].to_vec(), "a.tar:b"),
            ("cut before the closing block", good[..1024 + 512 + 1024].to_vec(), "closing block"),
            ("text", vec![b'x'; 2048], "not a tar archive"),
            (
                "claims 2^60",
                patched(&good, |h| h[124..136].copy_from_slice(&[128, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0])),
                "a/one",
            ),
            ("claims 2^90", patched(&good, |h| h[124..136].fill(0xff)), "size"),
            ("leaves by ..", patched(&good, |h| h[..8].copy_from_slice(b"../../x\0")), "../../x"),
            ("absolute", patched(&good, |h| h[..8].copy_from_slice(b"/etc/xy\0")), "/etc/xy"),
        ];
        for (name, bytes, expected) in cases {
            let message = read(&bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{name}: {message}");
        }
        // A long name that claims to be as long as the file.
        let name = patched(&good, |h| {
            h[156] = b'L';
            h[124..136].copy_from_slice(b"00010000000\0");
        });
        let mut name = name;
        name.resize(4 << 20, 0);
        assert!(read(&name).unwrap_err().to_string().contains("mebibyte"));
    }

    #[test]
    fn no_damage_panics() {
        let good = archive(&[("a/one", b"hello"), (&"n".repeat(150), b"x"), ("b", &[1; 600])]);
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 0x91;
            let _ = read(&bytes);
            let _ = read(&good[..i]);
        }
        for text in [&b""[..], b"9", b"99 path=x\n", b"3 =\n", b"11 path=abc\n", b"0 a=b\n", b"4 a\n", b"6 a=\xff\n"] {
            let _ = Pax::parse(text);
        }
    }
}
