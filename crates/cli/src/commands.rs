//! The command line: one file per command, one line per command in [`Command`].

mod bench;
mod compare;
mod demo;
mod eval;
mod export;
mod inspect;
mod profile;
mod quantize;
mod report;
mod run;
mod train;
pub mod verify;

use std::path::PathBuf;

use bitsmith_engine::Device;
use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Progress;
use crate::system;

/// How a command ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well: exit code 0.
    Done,
    /// It compared things that should agree and do not: exit code 1.
    Disagree,
    /// The user stopped it; what was done is kept: exit code 130.
    Interrupted,
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

/// Learn how many bits each part of a network needs, and forge a model that really uses them.
#[derive(Debug, Parser)]
#[command(name = "bitsmith", version, styles = STYLES, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Start with `bitsmith demo`: the whole story in about a minute, on data inside the program.

BITSMITH_ISA=portable, neon, avx2 or avx512 keeps kernels to that instruction set; BITSMITH_CACHE names the folder of `bitsmith profile`.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print one JSON object on stdout and nothing else
    #[arg(long, global = true)]
    json: bool,
    /// Threads; 0 means one per core. The same number gives the same bits
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Train(train::Args),
    Compare(compare::Args),
    Quantize(quantize::Args),
    Eval(eval::Args),
    Run(run::Args),
    Inspect(inspect::Args),
    Export(export::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Profile(profile::Args),
    Report(report::Args),
}

/// What a command knows besides its own arguments.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where results and progress go.
    pub out: Output,
    /// Threads in the shared pool.
    pub threads: usize,
    /// `--seed`, where given.
    pub seed: Option<u64>,
    /// Where networks run in float.
    pub device: Device,
}

/// `--device`, for commands that run networks in float.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceArgs {
    /// Where the network runs in float; GPUs need a build with the feature of their name
    #[arg(long, value_name = "DEVICE", default_value = Device::Cpu.name(), value_parser = device_parser())]
    device: Device,
}

impl DeviceArgs {
    /// The context of a command that runs there, or why it cannot.
    fn open(self, context: &Context) -> Result<Context, Failure> {
        self.device.check()?;
        Ok(Context { device: self.device, ..context.clone() })
    }
}

fn device_parser() -> impl TypedValueParser<Value = Device> {
    PossibleValuesParser::new(Device::ALL.map(Device::name)).try_map(|name| name.parse::<Device>())
}

/// Runs the command that was asked for.
pub fn run(cli: Cli) -> Result<Outcome, Failure> {
    let Global { json, threads, seed, quiet } = cli.global;
    system::choose_kernels()?;
    let threads = system::set_threads(threads)?;
    let context = Context { out: Output { json, progress: Progress::new(quiet) }, threads, seed, device: Device::Cpu };
    match cli.command {
        Command::Demo(args) => demo::run(&args, &context),
        Command::Train(args) => train::run(&args, &context),
        Command::Compare(args) => compare::run(&args, &context),
        Command::Quantize(args) => quantize::run(&args, &context),
        Command::Eval(args) => eval::run(&args, &context),
        Command::Run(args) => run::run(&args, &context),
        Command::Inspect(args) => inspect::run(&args, &context),
        Command::Export(args) => export::run(&args, &context),
        Command::Verify(args) => verify::run(&args, &context),
        Command::Bench(args) => bench::run(&args, &context),
        Command::Profile(args) => profile::run(&args, &context),
        Command::Report(args) => report::run(&args, &context),
    }
}

/// Where results go when `--out` is absent: `runs/NAME`.
pub fn run_folder(out: Option<&PathBuf>, name: &str) -> PathBuf {
    out.cloned().unwrap_or_else(|| PathBuf::from("runs").join(name))
}

/// Reads a split's name.
fn split(text: &str) -> Result<bitsmith_engine::data::Split, String> {
    use bitsmith_engine::data::Split;
    match text {
        "train" => Ok(Split::Train),
        "test" | "val" | "validation" => Ok(Split::Test),
        "all" => Ok(Split::All),
        _ => Err(format!("{}: one of train, test, all", crate::suggest::remedy(text, &["train", "test", "all"]))),
    }
}
