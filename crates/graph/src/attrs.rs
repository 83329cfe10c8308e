//! Operator attributes: what ONNX keeps in a node besides its inputs.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::tensor::Tensor;

/// One attribute value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Tensor),
}

/// Attributes by name. Typed readers return the default where a name is absent and an error where its type is wrong.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attrs(pub BTreeMap<String, Attr>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one; for building by chaining.
    pub fn with(mut self, name: &str, value: Attr) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// Adds a list of integers.
    pub fn with_ints<T: Copy + TryInto<i64>>(self, name: &str, values: &[T]) -> Self {
        // Sizes come from shapes, which fit; a value that does not is clamped rather than wrapped.
        let values = values.iter().map(|&v| v.try_into().unwrap_or(i64::MAX)).collect();
        self.with(name, Attr::Ints(values))
    }

    /// Adds one integer.
    pub fn with_int(self, name: &str, value: i64) -> Self {
        self.with(name, Attr::Int(value))
    }

    /// Adds one float.
    pub fn with_float(self, name: &str, value: f32) -> Self {
        self.with(name, Attr::Float(value))
    }

    /// The raw value.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// An integer, or `default` where absent. A one-element list or tensor counts as its element.
    pub fn int(&self, name: &str, default: i64) -> Result<i64, Error> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Int(v)) => Ok(*v),
            Some(Attr::Ints(v)) if v.len() == 1 => Ok(v[0]),
            Some(Attr::Tensor(t)) if t.len() == 1 => t
                .to_ints()
                .and_then(|v| v.first().copied())
                .ok_or_else(|| wrong_type(name, "an integer", self.get(name))),
            other => Err(wrong_type(name, "an integer", other)),
        }
    }

    /// A flag (0 or 1).
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.int(name, default.into())? != 0)
    }

    /// A float, or `default` where absent. Integers and one-element lists or tensors are converted.
    pub fn float(&self, name: &str, default: f32) -> Result<f32, Error> {
        Ok(self.float_opt(name)?.unwrap_or(default))
    }

    /// A float, if present.
    pub fn float_opt(&self, name: &str) -> Result<Option<f32>, Error> {
        Ok(Some(match self.get(name) {
            None => return Ok(None),
            Some(Attr::Float(v)) => *v,
            Some(Attr::Int(v)) => *v as f32,
            Some(Attr::Floats(v)) if v.len() == 1 => v[0],
            Some(Attr::Tensor(t)) if t.len() == 1 => match (t.as_f32(), t.to_ints()) {
                (Some(v), _) => v[0],
                (None, Some(v)) => v[0] as f32,
                (None, None) => return Err(wrong_type(name, "a number", self.get(name))),
            },
            other => return Err(wrong_type(name, "a number", other)),
        }))
    }

    /// A string, or `default` where absent.
    pub fn str<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Str(v)) => Ok(v),
            other => Err(wrong_type(name, "a string", other)),
        }
    }

    /// A list of integers, if present. A single integer counts as a list of one.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            Some(Attr::Int(v)) => Ok(Some(vec![*v])),
            Some(Attr::Floats(v)) if v.is_empty() => Ok(Some(vec![])),
            Some(Attr::Tensor(t)) => t.to_ints().map(Some).ok_or_else(|| wrong_type(name, "integers", self.get(name))),
            other => Err(wrong_type(name, "integers", other)),
        }
    }

    /// A list of sizes (integers of at least 0), if present.
    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>, Error> {
        let Some(values) = self.ints(name)? else { return Ok(None) };
        let sizes = values
            .iter()
            .map(|&v| {
                usize::try_from(v).map_err(|_| {
                    Error::attribute(format!("attribute `{name}` is {values:?}: sizes cannot be negative"))
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Some(sizes))
    }

    /// A tensor, if present.
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Tensor(t)) => Ok(Some(t)),
            other => Err(wrong_type(name, "a tensor", other)),
        }
    }
}

fn wrong_type(name: &str, wanted: &str, found: Option<&Attr>) -> Error {
    let found = match found {
        Some(Attr::Int(_)) => "an integer".to_owned(),
        Some(Attr::Float(_)) => "a float".to_owned(),
        Some(Attr::Str(v)) => format!("the string `{v}`"),
        Some(Attr::Ints(v)) => format!("{} integers", v.len()),
        Some(Attr::Floats(v)) => format!("{} floats", v.len()),
        Some(Attr::Tensor(t)) => format!("a {} tensor of shape {:?}", t.data().dtype(), t.shape()),
        None => "nothing".to_owned(),
    };
    Error::attribute(format!("attribute `{name}` should be {wanted} but is {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_default_convert_and_complain() {
        let attrs = Attrs::new().with_int("axis", 1).with_float("alpha", 0.5).with_ints("pads", &[1usize, 2]);
        assert_eq!(attrs.int("axis", 0), Ok(1));
        assert_eq!(attrs.int("absent", 7), Ok(7));
        assert_eq!(attrs.float("axis", 0.0), Ok(1.0));
        assert_eq!(attrs.sizes("pads"), Ok(Some(vec![1, 2])));
        let error = attrs.int("alpha", 0).unwrap_err();
        assert_eq!(error.to_string(), "attribute `alpha` should be an integer but is a float");
        assert!(Attrs::new().with_int("group", -1).sizes("group").is_err());
    }
}
