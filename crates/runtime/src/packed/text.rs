//! Tokens of the listings in the metadata: names, numbers, attribute values. Nothing here knows a graph.
//!
//! A token holds no space and no line break. In names, bytes that have a meaning elsewhere are written `%XX`:
//!
//! ```text
//! name     any UTF-8, with  space % [ ] ( ) , = " \  and control characters as %XX; "%" alone is the empty name
//! float    shortest decimal that reads back as the same f32: 0.1, 1e-5, inf, NaN
//! value    3 · [1,2] · 0.5f · [0.5f,1f] ([f] if empty) · 'text · F32[2,2](1,2,3,4)
//! ```

use std::fmt::Write;

use bitsmith_graph::{Attr, Data, Tensor};

use crate::error::Error;

/// A name as a token.
pub(super) fn escape(name: &str) -> String {
    if name.is_empty() {
        return "%".to_owned();
    }
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            ' ' | '%' | '[' | ']' | '(' | ')' | ',' | '=' | '"' | '\\' | '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "%{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// The inverse of [`escape`].
pub(super) fn unescape(token: &str) -> Result<String, Error> {
    if token == "%" {
        return Ok(String::new());
    }
    let bad = || Error::corrupt(format!("`{token}` is not a name"));
    let mut pieces = token.split('%');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(u8::is_ascii);
        out.push(char::from(code.ok_or_else(bad)?));
        out.push_str(&piece[2..]);
    }
    match out.is_empty() {
        true => Err(bad()),
        false => Ok(out),
    }
}

/// A number.
pub(super) fn number<T: std::str::FromStr>(token: &str) -> Result<T, Error> {
    token.parse().map_err(|_| Error::corrupt(format!("`{token}` is not a number of the kind expected")))
}

/// A list in square brackets, or `None` where the token is no such list.
pub(super) fn list<T>(token: &str, element: impl Fn(&str) -> Result<T, Error>) -> Option<Result<Vec<T>, Error>> {
    let inside = token.strip_prefix('[')?.strip_suffix(']')?;
    Some(if inside.is_empty() { Ok(vec![]) } else { inside.split(',').map(element).collect() })
}

/// `1,2,3`
pub(super) fn joined<T>(values: &[T], element: impl Fn(&T) -> String) -> String {
    values.iter().map(element).collect::<Vec<_>>().join(",")
}

/// The shortest decimal that reads back as the same float.
pub(super) fn float(value: &f32) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// An attribute value as a token.
pub(super) fn print_attr(attr: &Attr) -> String {
    match attr {
        Attr::Int(v) => v.to_string(),
        Attr::Float(v) => float(v) + "f",
        Attr::Str(v) => format!("'{}", if v.is_empty() { String::new() } else { escape(v) }),
        Attr::Ints(v) => format!("[{}]", joined(v, i64::to_string)),
        Attr::Floats(v) if v.is_empty() => "[f]".to_owned(),
        Attr::Floats(v) => format!("[{}]", joined(v, |x| float(x) + "f")),
        Attr::Tensor(t) => {
            let elements = match t.data() {
                Data::F32(v) => joined(v, float),
                _ => joined(&t.to_ints().unwrap_or_default(), i64::to_string),
            };
            format!("{}[{}]({elements})", t.data().dtype(), joined(t.shape(), usize::to_string))
        }
    }
}

/// The inverse of [`print_attr`].
pub(super) fn parse_attr(token: &str) -> Result<Attr, Error> {
    let with_f = |t: &str| number::<f32>(t.strip_suffix('f').unwrap_or("?"));
    if let Some(text) = token.strip_prefix('\'') {
        return Ok(Attr::Str(if text.is_empty() { String::new() } else { unescape(text)? }));
    }
    if token == "[f]" {
        return Ok(Attr::Floats(vec![]));
    }
    if token.starts_with('[') {
        let bad = || Error::corrupt(format!("`{token}` is not a list"));
        return match token.ends_with("f]") {
            true => list(token, with_f).ok_or_else(bad)?.map(Attr::Floats),
            false => list(token, number).ok_or_else(bad)?.map(Attr::Ints),
        };
    }
    if token.ends_with(')') {
        return parse_tensor(token).map(Attr::Tensor);
    }
    match token.ends_with('f') {
        true => with_f(token).map(Attr::Float),
        false => number(token).map(Attr::Int),
    }
}

fn parse_tensor(token: &str) -> Result<Tensor, Error> {
    let bad = || Error::corrupt(format!("`{token}` is not a tensor"));
    let (head, elements) = token.strip_suffix(')').and_then(|t| t.split_once('(')).ok_or_else(bad)?;
    let at = head.find('[').ok_or_else(bad)?;
    let (dtype, shape) = head.split_at(at);
    let shape = list(shape, number::<usize>).ok_or_else(bad)??;
    fn all<T: std::str::FromStr>(elements: &str) -> Result<Vec<T>, Error> {
        if elements.is_empty() { Ok(vec![]) } else { elements.split(',').map(number).collect() }
    }
    let data = match dtype {
        "F32" => Data::F32(all(elements)?),
        "I64" => Data::I64(all(elements)?),
        "I32" => Data::I32(all(elements)?),
        "I8" => Data::I8(all(elements)?),
        "U8" => Data::U8(all(elements)?),
        "BOOL" => Data::Bool(all::<u8>(elements)?.into_iter().map(|v| v != 0).collect()),
        _ => return Err(bad()),
    };
    Ok(Tensor::new(shape, data)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_read_back() {
        let tensor = |data| Attr::Tensor(Tensor::new([2], data).unwrap());
        let cases = [
            (Attr::Int(-3), "-3"),
            (Attr::Float(1e-5), "1e-5f"),
            (Attr::Float(0.0), "0f"),
            (Attr::Float(f32::NEG_INFINITY), "-inff"),
            (Attr::Str("SAME UPPER".to_owned()), "'SAME%20UPPER"),
            (Attr::Str(String::new()), "'"),
            (Attr::Ints(vec![1, -1]), "[1,-1]"),
            (Attr::Ints(vec![]), "[]"),
            (Attr::Floats(vec![0.5, 1.0]), "[0.5f,1f]"),
            (Attr::Floats(vec![f32::INFINITY]), "[inff]"),
            (Attr::Floats(vec![]), "[f]"),
            (tensor(Data::F32(vec![0.1, -0.0])), "F32[2](0.1,-0)"),
            (tensor(Data::Bool(vec![true, false])), "BOOL[2](1,0)"),
            (Attr::Tensor(Tensor::int(7)), "I64[](7)"),
        ];
        for (attr, text) in cases {
            assert_eq!(print_attr(&attr), text);
            assert_eq!(parse_attr(text).unwrap(), attr);
        }
        for bad in ["", "x", "[1", "[1,]", "1.5", "F32[2](1)", "F64[1](1)", "[1f,2]", "'%4", "'%FF"] {
            assert!(parse_attr(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back(name: String) {
            let token = escape(&name);
            prop_assert!(!token.contains([' ', '\n', '[', '=', ',']));
            prop_assert_eq!(unescape(&token).unwrap(), name);
        }

        #[test]
        fn floats_read_back(bits: u32) {
            let value = f32::from_bits(bits);
            let back: f32 = number(&float(&value)).unwrap();
            prop_assert!(back.to_bits() == bits || (value.is_nan() && back.is_nan()));
        }
    }
}
