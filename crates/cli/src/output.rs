//! Where a command's results go: text or one JSON object on stdout, progress on stderr.

use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;
use crate::progress::Progress;

/// What every command needs from the command line.
#[derive(Debug, Clone)]
pub struct Output {
    /// One JSON object instead of text.
    pub json: bool,
    /// Progress on stderr.
    pub progress: Progress,
}

impl Output {
    /// Prints the result: `value` as one line of JSON, or `text`.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.json {
            true => write_stdout(&(serde_json::to_string(value)? + "\n")),
            false => write_stdout(&text()),
        }
    }

    /// Prints a part of the story as it happens: to stdout, unless stdout belongs to JSON.
    pub fn tell(&self, text: &str) -> Result<(), Failure> {
        match &self.progress {
            _ if self.json => Ok(()),
            // A bar in the way is lifted for the line.
            Progress::Bars(bars) => bars.suspend(|| write_stdout(&format!("{text}\n"))),
            _ => write_stdout(&format!("{text}\n")),
        }
    }
}

/// `print!` panics when the reader has gone; this returns.
fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
