//! `bitsmith compare RECIPE…`: the same network and data under many methods, budgets and seeds, one run folder each, and a page that
//! compares them. Finished runs are kept, stopped ones go on.

mod grid;
mod page;
mod results;

use std::path::PathBuf;

use super::train::{Mode, perform};
use super::{Context, DeviceArgs, Outcome, run_folder};
use crate::failure::Failure;
use crate::output::Output;
use crate::table::{percent, seconds};
use crate::{events, files, interrupt, recipe, report, suggest, system, training};
use grid::Case;
use results::{Comparison, Result as CaseResult};

/// Train a grid of methods, budgets and seeds, and compare
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith compare recipes/digits-cnn-csq.toml --methods csq,sdq,bsq,lsq --targets 2,3 --seeds 1,2,3
  bitsmith compare recipes/cifar10-resnet20-csq3.toml recipes/cifar10-resnet20-lsq-w4a4.toml --data cifar-10-batches-bin
  bitsmith compare recipes/digits-cnn-csq.toml --methods lsq --targets 2 --sharpness 0,0.05 --out runs/saq
  bitsmith compare recipes/digits-cnn-csq.toml --methods csq,lsq --targets 2,3 --list        (what would run)

Each run is a folder below --out, as `bitsmith train` makes them; the same command again goes on where it stopped. With --methods, a
recipe lends its network, data and training, and of its method's options those that must be equal for a fair comparison (edge_bits,
floor_bits, per_channel, search).
Targets are mean stored bits; methods of a fixed width take whole ones. The folder gets compare.html, its table as
compare.md, two pictures (accuracy against size and against bit operations) and results.json.

JSON: {float_accuracy, groups: [{label, target, runs, accuracy, deviation, mean_weight_bits, bytes, bit_operations, minutes,
peak_rss_mb, is_best}], runs: [{label, target, seed, run, …}], folder}.")]
pub struct Args {
    /// Recipes; their names tell them apart where methods do not
    #[arg(required = true)]
    recipes: Vec<PathBuf>,
    /// Methods, instead of the recipes' own
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    methods: Vec<String>,
    /// Mean stored bits per weight, instead of the recipes' own
    #[arg(long, value_delimiter = ',', value_name = "BITS,…")]
    targets: Vec<f64>,
    /// Seeds
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "1")]
    seeds: Vec<u64>,
    /// Lengths of the perturbation of sharpness-aware training; 0 is without
    #[arg(long, value_delimiter = ',', value_name = "RHO,…")]
    sharpness: Vec<f32>,
    /// Replace a value of every recipe; `method.…` of every method that has the option
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The data, instead of the recipes'
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Float weights to start from, instead of the recipes'
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Where runs and results go [default: runs/compare]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Say what would run, and run nothing
    #[arg(long)]
    list: bool,
    /// Replace runs that were made by other recipes
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let folder = run_folder(args.out.as_ref(), "compare");
    let cases = grid::cases(args, &folder)?;
    if args.list {
        let names: Vec<_> = cases.iter().map(|c| c.folder.display().to_string()).collect();
        context.out.result(&names, || names.iter().map(|n| format!("{n}\n")).collect())?;
        return Ok(Outcome::Done);
    }
    // A mistake in the last of many runs is better known before the first.
    cases.iter().try_for_each(|case| training::check_method(&case.recipe))?;
    let context = &args.device.open(context)?;
    files::create_folder(&folder)?;
    interrupt::listen()?;
    let mut results = vec![];
    for (done, case) in cases.iter().enumerate() {
        let place = format!("{}/{}  {}", done + 1, cases.len(), case.name());
        let Some(result) = one(case, args.force, context)? else {
            context.out.progress.say("stopped; the same command goes on from here");
            return Ok(Outcome::Interrupted);
        };
        context.out.progress.say(&format!(
            "{place}  accuracy {}  {:.2} bits  {}",
            percent(result.accuracy),
            result.mean_bits,
            seconds(result.seconds)
        ));
        results.push(result);
        // After every run, so that a long grid can be watched.
        Comparison::of(&results).write(&folder, &command_line())?;
    }
    let comparison = Comparison::of(&results);
    let page = comparison.write(&folder, &command_line())?;
    context.out.result(&comparison.json(&folder), || format!("{}\n{}\n", comparison.table(), page.display()))?;
    Ok(Outcome::Done)
}

/// One run: read where it is finished, else begun or gone on with. `None` where the user stopped it.
fn one(case: &Case, force: bool, context: &Context) -> Result<Option<CaseResult>, Failure> {
    let log = case.folder.join(events::FILE_NAME);
    let is_known = log.exists() && recipe::of_run(&case.folder).is_ok_and(|known| known == case.recipe);
    if log.exists() && !is_known && !force {
        return Err(Failure::new(format!("`{}` holds a run of another recipe", case.folder.display()))
            .remedy("replace it with --force, or choose another folder with --out"));
    }
    if is_known && let Some(result) = CaseResult::read(case)? {
        return Ok(Some(result));
    }
    let mode = match is_known && training::has_checkpoint(&case.folder)? {
        true => Mode::Resume,
        false => Mode::Force,
    };
    system::forget_peak_memory();
    let quiet = Context { out: Output { json: true, ..context.out.clone() }, ..context.clone() };
    let performed = perform(case.recipe.clone(), &case.folder, mode, &quiet)
        .map_err(|f| f.context(format!("the run `{}` failed", case.folder.display())))?;
    if performed.outcome == Outcome::Interrupted {
        return Ok(None);
    }
    CaseResult::read(case)?
        .ok_or_else(|| Failure::new(format!("`{}` ended without a result", case.folder.display())))
        .map(Some)
}

fn command_line() -> String {
    let mut words = std::env::args();
    // The program's own name, whatever path it was called by.
    words.next();
    std::iter::once("bitsmith".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}
