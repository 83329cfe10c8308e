//! The command's only error: a chain of causes, outermost first, an optional remedy, and the exit code.
//!
//! Libraries return typed errors; `?` turns any of them into a [`Failure`] with its chain of sources, and
//! [`Explain::context`] says what the command was doing. Printed as
//!
//! ```text
//! error: cannot read `model.onnx`
//!   because: the file ends after 312 of 4,096 bytes
//!   try: export the model again
//! ```

use std::error::Error;
use std::fmt;

/// Why a command stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    chain: Vec<String>,
    remedy: Option<String>,
    /// 1 for a failed run, 2 for arguments or recipes that cannot be understood.
    pub code: u8,
    /// The reader of our output went away (`bitsmith inspect … | head`): stop without a word.
    pub is_broken_pipe: bool,
}

impl Failure {
    /// A run that failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { chain: vec![message.into()], remedy: None, code: 1, is_broken_pipe: false }
    }

    /// Arguments or a recipe that cannot be understood.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// The same failure with another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Says what to do about it. The innermost remedy wins, because it knows most.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy.get_or_insert(remedy.into());
        self
    }

    /// Says what was being done.
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.chain.insert(0, doing.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.chain.first().map_or("", String::as_str))?;
        for cause in self.chain.iter().skip(1) {
            write!(f, "\n  because: {}", cause.replace('\n', "\n  "))?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n  try: {}", remedy.replace('\n', "\n  ")),
            None => Ok(()),
        }
    }
}

// `Failure` itself is no `Error`, as in anyhow, so that this conversion can exist.
impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut chain: Vec<String> = Vec::new();
        let mut is_broken_pipe = false;
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Libraries often repeat their source's text in their own; say it once.
            if !chain.last().is_some_and(|said| said.contains(&text)) {
                chain.push(text);
            }
            is_broken_pipe |=
                cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
            next = cause.source();
        }
        Failure { chain, remedy: None, code: 1, is_broken_pipe }
    }
}

/// `context` and `remedy` on results.
pub trait Explain<T> {
    /// Says what was being done when it failed.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
    /// Says what to do about a failure.
    fn remedy(self, remedy: &str) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Explain<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| e.into().context(doing()))
    }

    fn remedy(self, remedy: &str) -> Result<T, Failure> {
        self.map_err(|e| e.into().remedy(remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::{Explain, Failure};
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_failure_reads_from_the_outside_in() {
        let inner: Result<(), Error> = Err(Error::new(ErrorKind::NotFound, "no such file"));
        let failure = inner.context(|| "cannot read `x`".to_owned()).remedy("check the path").unwrap_err();
        assert_eq!(failure.to_string(), "error: cannot read `x`\n  because: no such file\n  try: check the path");
        assert_eq!(failure.code, 1);
        assert_eq!(
            failure.remedy("something vaguer"),
            Failure::new("no such file").remedy("check the path").context("cannot read `x`")
        );
    }

    #[test]
    fn a_reader_that_went_away_is_recognised() {
        let failure: Failure = Error::from(ErrorKind::BrokenPipe).into();
        assert!(failure.is_broken_pipe);
    }
}
