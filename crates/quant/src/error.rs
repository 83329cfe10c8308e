//! What can go wrong while quantizing or training.

use std::fmt;
use std::path::{Path, PathBuf};

/// The kind of mistake, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An option has an impossible value or is not known.
    Option,
    /// The graph, a site or a shape is not what was expected.
    Model,
    /// The data could not be read or do not fit the model.
    Data,
    /// The engine refused or failed.
    Engine,
    /// The loss or a parameter is no longer a number.
    Diverged,
    /// A checkpoint could not be written or read, or belongs to another run.
    Checkpoint,
    /// The user asked to stop.
    Cancelled,
}

/// An error of this crate.
#[derive(Debug)]
pub struct Error {
    /// What kind of mistake it is.
    pub kind: Kind,
    /// What is wrong, with the offending name, both numbers and the remedy where it is known.
    pub detail: String,
    /// The file it is about, if it is about a file.
    pub path: Option<PathBuf>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause from elsewhere.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), path: None, source: None }
    }

    /// An impossible option.
    pub fn option(detail: impl Into<String>) -> Self {
        Self::new(Kind::Option, detail)
    }

    /// The same error, about this file.
    pub fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// The same error with the one that caused it.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "`{}`: {}", path.display(), self.detail),
            None => write!(f, "{}", self.detail),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

impl From<bitsmith_graph::Error> for Error {
    fn from(error: bitsmith_graph::Error) -> Self {
        Self::new(Kind::Model, error.to_string()).caused_by(error)
    }
}

impl From<bitsmith_engine::Error> for Error {
    fn from(error: bitsmith_engine::Error) -> Self {
        Self::new(Kind::Engine, error.to_string()).caused_by(error)
    }
}

impl From<bitsmith_engine::data::Error> for Error {
    fn from(error: bitsmith_engine::data::Error) -> Self {
        Self::new(Kind::Data, error.to_string()).caused_by(error)
    }
}
