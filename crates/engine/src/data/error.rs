//! What can go wrong between a path and a batch. Every message names the thing and, where one is known, the remedy;
//! `source()` keeps the cause, which the message itself does not repeat.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use super::open::Split;

/// An error of the data module. The first field is the file, folder, archive member or option it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing lies at the path.
    #[error("`{path}` does not exist; {hint}")]
    Missing {
        /// The path that was looked up.
        path: String,
        /// What to do about it.
        hint: String,
    },
    /// A folder where a file is expected, or the other way round.
    #[error("`{path}` is a {found} where a {wanted} is expected; {hint}")]
    WrongKind {
        /// The path concerned.
        path: String,
        /// What is there.
        found: &'static str,
        /// What should be there.
        wanted: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// The path exists but holds no data set that we know.
    #[error("`{path}` is not a data set we know: it holds {found}; looked for {looked_for}")]
    Unrecognised {
        /// The path concerned.
        path: String,
        /// A short inventory of what is there.
        found: String,
        /// Everything that would have been recognised.
        looked_for: String,
    },
    /// The operating system refused to read something.
    #[error("cannot read `{path}`")]
    Io {
        /// The path concerned.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or archive member is shorter (or longer) than its own header or format says.
    #[error("`{what}`: expected {expected} bytes, found {found}; {hint}")]
    Length {
        /// The file or archive member.
        what: String,
        /// Bytes that must be there.
        expected: u64,
        /// Bytes that are there.
        found: u64,
        /// What to do about it.
        hint: String,
    },
    /// Contents that contradict the format.
    #[error("`{what}`: {detail}")]
    Malformed {
        /// The file, archive member or line.
        what: String,
        /// What is wrong and what to do about it.
        detail: String,
        /// The parser's own error, if it had one.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// Something would not fit the memory limit, or claims an absurd size.
    #[error("`{what}` asks for {bytes} bytes, the limit is {limit}; {hint}")]
    TooLarge {
        /// The file, archive member or array.
        what: String,
        /// Bytes asked for (`u64::MAX` when the product overflowed).
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// What to do about it.
        hint: String,
    },
    /// A label that is not one of the classes.
    #[error("`{what}`: label {label} of sample {sample} is outside 0..{classes}; {hint}")]
    Label {
        /// The file or archive member that holds the label.
        what: String,
        /// Position of the sample in that file, from 0.
        sample: usize,
        /// The label as written.
        label: String,
        /// Number of classes.
        classes: usize,
        /// What to do about it.
        hint: String,
    },
    /// A class folder without images.
    #[error(
        "class folder `{folder}` holds no images ({others} other files); put images (jpg, png, webp, bmp, gif) in it, remove it, or name the data set's own folder"
    )]
    EmptyClass {
        /// The folder.
        folder: String,
        /// Files in it that are not images.
        others: usize,
    },
    /// The source has splits, but not the one asked for.
    #[error("`{path}` has no {wanted} split, only {have}; {hint}")]
    NoSplit {
        /// The data set.
        path: String,
        /// The split asked for.
        wanted: Split,
        /// The splits that exist.
        have: String,
        /// What to do about it.
        hint: String,
    },
    /// A combination of data and options that makes no sense.
    #[error("`{what}`: {detail}")]
    Options {
        /// The data set or option.
        what: String,
        /// What is wrong and what to do about it.
        detail: String,
    },
    /// An image that cannot be read or decoded. With [`OnBroken::Skip`](super::OnBroken) it is counted instead.
    #[error("image `{name}` cannot be decoded; repair or remove it, or choose to skip broken images")]
    BrokenImage {
        /// Path, or archive and member.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The loader's workers are gone, which only a defect of ours can cause.
    #[error("the data loader lost its worker threads before batch {batch} arrived; this is a defect, please report it")]
    WorkersLost {
        /// The batch that was awaited.
        batch: usize,
    },
}

/// What to do when a file's length is not what it should be; almost always the same thing.
pub(super) const FETCH_AGAIN: &str = "the file is cut short or is something else: fetch or unpack it again";

impl Error {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.display().to_string();
        if source.kind() == io::ErrorKind::NotFound {
            return Error::Missing { path, hint: "check the path".into() };
        }
        Error::Io { path, source }
    }

    pub(super) fn malformed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Malformed { what: what.into(), detail: detail.into(), source: None }
    }

    pub(super) fn options(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Options { what: what.into(), detail: detail.into() }
    }

    pub(super) fn too_large(what: impl Into<String>, bytes: Option<u64>, limit: u64) -> Self {
        Error::TooLarge {
            what: what.into(),
            bytes: bytes.unwrap_or(u64::MAX),
            limit,
            hint: "unpack it into a folder or a plain .tar, which are read in place, or raise the memory limit".into(),
        }
    }
}

/// An error's message with those of all its causes, in one line.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}
