//! Whole journeys through the command, in temporary folders: what a user types, what comes back, what is left on disk.

mod bad_input;
mod journeys;
mod resume;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The outcome of a command.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The one JSON object on stdout.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is not one JSON object ({e}): {self:?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The command with these arguments (split at spaces), run inside `folder`.
fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitsmith"));
    command
        .current_dir(folder)
        .args(arguments.split_whitespace())
        .args(["--threads", "2"])
        .env("BITSMITH_CACHE", folder.join("cache"));
    command
}

fn bitsmith(folder: &Path, arguments: &str) -> Ran {
    command(folder, arguments).output().unwrap().into()
}

/// Runs a command that must succeed.
fn ok(folder: &Path, arguments: &str) -> Ran {
    let ran = bitsmith(folder, arguments);
    assert_eq!(ran.code, 0, "bitsmith {arguments}: {}", ran.stderr);
    ran
}

/// Runs a command that must succeed with `--json`.
fn json(folder: &Path, arguments: &str) -> Value {
    ok(folder, &format!("{arguments} --json")).json()
}

/// The keys of a JSON object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Files of a folder, sorted, hidden ones included.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A small recipe that trains in seconds.
fn small_recipe(folder: &Path) -> PathBuf {
    let path = folder.join("small.toml");
    let text = "name = \"small\"\n[model]\nfrom = \"cnn\"\n[data]\npath = \"digits\"\nlimit = 400\nbatch = 50\n[method]\nname = \"csq\"\ntarget_bits = 3.0\nedge_bits = 0\n\
                [train]\nepochs = 4\nlearning_rate = 0.05\n[finish]\nverify_samples = 100\n";
    std::fs::write(&path, text).unwrap();
    path
}
