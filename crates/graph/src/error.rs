//! What can be wrong with a graph, a model or its quantization parameters.

use std::fmt;

/// The kind of mistake, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tensor's data does not fill its shape, or two shapes do not fit together.
    Shape,
    /// An attribute is missing, has the wrong type or an impossible value.
    Attribute,
    /// An operator is not known here.
    Operator,
    /// The graph is not a graph of this kind: cyclic, a value without a producer, a name used twice.
    Structure,
    /// A quantization site is not ready: no parameters, values off their grid, NaN.
    Quantization,
}

/// An error of this crate: what kind, where (a node, a value), and what exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// What kind of mistake it is.
    pub kind: Kind,
    /// The node or value it is about, as users know it; empty where there is none.
    pub place: String,
    /// What is wrong, with both numbers, and the remedy if it is known.
    pub detail: String,
}

impl Error {
    /// An error that does not know its place yet; see [`Error::at`].
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, place: String::new(), detail: detail.into() }
    }

    /// A shape that does not fit.
    pub fn shape(detail: impl Into<String>) -> Self {
        Self::new(Kind::Shape, detail)
    }

    /// An attribute that is missing or impossible.
    pub fn attribute(detail: impl Into<String>) -> Self {
        Self::new(Kind::Attribute, detail)
    }

    /// The same error, told where it happened. The first place named is kept: it is the innermost.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        if self.place.is_empty() {
            self.place = place.into();
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "{}", self.detail)
        } else {
            write!(f, "`{}`: {}", self.place, self.detail)
        }
    }
}

impl std::error::Error for Error {}
