//! What can go wrong when a packed file is read or written, or a model is run.

use std::fmt;

/// The kind of mistake, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The operating system refused: a missing file, a full disk. [`std::error::Error::source`] has its word.
    Io,
    /// The bytes are not a packed file at all.
    NotPacked,
    /// A packed file of a version that this build does not read.
    Version,
    /// A packed file that was cut, changed or never right.
    Corrupt,
    /// The model itself is not right; the source is the graph's own error.
    Model,
    /// The model asks for something that cannot be stored or run.
    Unsupported,
    /// An input does not fit the model: name, shape, type or a value that is not a number.
    Input,
}

/// An error of this crate: what kind, where (a file, a node, a value), and what exactly.
#[derive(Debug)]
pub struct Error {
    /// What kind of mistake it is.
    pub kind: Kind,
    /// The file, node or value it is about; empty where there is none.
    pub place: String,
    /// What is wrong, with both numbers, and the remedy if it is known.
    pub detail: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that does not know its place yet; see [`Error::at`].
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, place: String::new(), detail: detail.into(), source: None }
    }

    pub(crate) fn corrupt(detail: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, detail)
    }

    /// The same error, told where it happened. The first place named is kept: it is the innermost.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        if self.place.is_empty() {
            self.place = place.into();
        }
        self
    }

    /// The same error inside a larger thing, a file usually: that becomes the place and the old one part of the message.
    pub(crate) fn within(mut self, place: impl Into<String>) -> Self {
        if !self.place.is_empty() {
            self.detail = self.to_string();
        }
        self.place = place.into();
        self
    }

    pub(crate) fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

impl From<bitsmith_graph::Error> for Error {
    fn from(e: bitsmith_graph::Error) -> Self {
        Self { kind: Kind::Model, place: e.place.clone(), detail: e.detail.clone(), source: Some(Box::new(e)) }
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self { kind: Kind::Io, place: String::new(), detail: e.to_string(), source: Some(Box::new(e)) }
    }
}

impl From<bitsmith_kernels::pack::Error> for Error {
    fn from(e: bitsmith_kernels::pack::Error) -> Self {
        Self { kind: Kind::Corrupt, place: String::new(), detail: e.to_string(), source: Some(Box::new(e)) }
    }
}
