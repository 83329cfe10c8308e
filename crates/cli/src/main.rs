//! The bitsmith command: learns how many bits each part of a network needs and forges a model that uses them.
//!
//! This crate alone prints, reads the environment and chooses exit codes. One file per command in `commands/`; results go
//! to stdout (with `--json`, one object and nothing else), everything else to stderr.

mod budget;
mod commands;
mod datasets;
mod engines;
mod events;
mod failure;
mod files;
mod forge;
mod interrupt;
mod latency;
mod layers;
mod models;
mod onnxruntime;
mod output;
mod progress;
mod recipe;
mod report;
mod suggest;
mod system;
mod table;
mod training;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use commands::{Cli, Outcome};

#[global_allocator]
static ALLOCATOR: bitsmith_kernels::heap::Heap = bitsmith_kernels::heap::Heap::new();

fn main() -> ExitCode {
    // Usage errors are clap's: message to stderr, exit code 2.
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Disagree) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(failure) if failure.is_broken_pipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}
