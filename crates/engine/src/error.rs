//! What can go wrong between a model and its training.

use std::fmt;

/// The kind of mistake, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The graph itself is inconsistent; [`Error`]'s source says how.
    Graph,
    /// The engine cannot execute this operator, or not in this form.
    Unsupported,
    /// Data of the wrong size was passed in, or labels outside the classes.
    Input,
    /// [`crate::Params`] lacks a constant or step of the model, or has one of another size.
    Params,
    /// The thread pool could not be set up as asked.
    Threads,
    /// A device is missing from this build or machine, or failed.
    Device,
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
    source: Option<bitsmith_graph::Error>,
}

impl Error {
    pub(crate) fn new(kind: Kind, place: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, place: place.into(), detail: detail.into(), source: None }
    }

    pub(crate) fn input(detail: impl Into<String>) -> Self {
        Self::new(Kind::Input, "", detail)
    }
}

impl From<bitsmith_graph::Error> for Error {
    fn from(source: bitsmith_graph::Error) -> Self {
        Self { kind: Kind::Graph, place: source.place.clone(), detail: source.detail.clone(), source: Some(source) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() { f.write_str(&self.detail) } else { write!(f, "`{}`: {}", self.place, self.detail) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
