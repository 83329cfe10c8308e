//! What can be wrong with a file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The kind of mistake, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The file cannot be opened, read or written.
    Io,
    /// The file is not of a kind that is read here.
    Unknown,
    /// The file breaks its own format: truncated, sizes that do not add up.
    Malformed,
    /// The file is fine but holds something that is not supported here.
    Unsupported,
    /// The file would reach outside its folder.
    Outside,
    /// The tensors do not fit the model.
    Mismatch,
}

/// An error of this crate: which file, what kind, and what exactly.
#[derive(Debug)]
pub struct Error {
    /// What kind of mistake it is.
    pub kind: Kind,
    /// The file; empty where the bytes came from elsewhere.
    pub path: PathBuf,
    /// What is wrong, where, and the remedy if it is known.
    pub detail: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, path: PathBuf::new(), detail: detail.into(), source: None }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, detail)
    }

    pub(crate) fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, detail)
    }

    /// An error of the file system, in words that name the remedy.
    pub(crate) fn io(doing: &str, e: io::Error) -> Self {
        let detail = match e.kind() {
            io::ErrorKind::NotFound if doing == "read" => "there is no such file".to_owned(),
            io::ErrorKind::NotFound => "its folder does not exist: create it first".to_owned(),
            io::ErrorKind::PermissionDenied => format!("no permission to {doing} it"),
            io::ErrorKind::StorageFull => "the disk is full: nothing was written".to_owned(),
            io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: write elsewhere".to_owned(),
            _ => format!("cannot {doing} it: {e}"),
        };
        Self { kind: Kind::Io, path: PathBuf::new(), detail, source: Some(Box::new(e)) }
    }

    /// The same error, told which file it is about. The first file named is kept.
    pub(crate) fn at(mut self, path: &Path) -> Self {
        if self.path.as_os_str().is_empty() {
            self.path = path.to_owned();
        }
        self
    }
}

impl From<bitsmith_graph::Error> for Error {
    fn from(e: bitsmith_graph::Error) -> Self {
        let kind = match e.kind {
            bitsmith_graph::error::Kind::Operator => Kind::Unsupported,
            _ => Kind::Malformed,
        };
        Self { kind, path: PathBuf::new(), detail: e.to_string(), source: Some(Box::new(e)) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            write!(f, "{}", self.detail)
        } else {
            write!(f, "{}: {}", self.path.display(), self.detail)
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
