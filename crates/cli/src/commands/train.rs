//! `bitsmith train RECIPE.toml`: a run from its complete description, and its continuation after a stop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitsmith_quant::passes::ptq::PtqOptions;
use serde_json::json;

use super::{Context, DeviceArgs, Outcome, run_folder};
use crate::events::{self, Event, Variant};
use crate::failure::{Explain, Failure};
use crate::forge::{self, Finish, Run};
use crate::recipe::{self, Recipe};
use crate::table::{bytes, percent, seconds};
use crate::training::{self, Ended, Job};
use crate::{datasets, files, interrupt, layers};

/// Train by a recipe, or go on with a run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith train recipes/digits-cnn-csq.toml
  bitsmith train recipes/cifar10-resnet20-csq3.toml --data cifar-10-batches-bin --weights resnet20.safetensors
  bitsmith train recipes/cifar10-resnet20-csq3.toml --set method.target_bits=2.5 --set train.epochs=10 --out runs/quick
  bitsmith train recipes/cifar10-resnet20-w3a4.toml --budget latency=0.3ms    (bits as this machine pays for them; see `bitsmith profile`)
  bitsmith train runs/quick --resume          (after Ctrl-C or a crash; ends in the same bits as if nothing had happened)
  bitsmith train recipes/cifar10-resnet20-csq3.toml --data cifar-10-batches-bin --device cuda

The run's folder gets recipe.toml (every value spelt out), events.jsonl, checkpoints/, model.bitsmith, model.onnx and
report.html. Paths in a recipe are relative to the current folder. On a GPU, which a recipe does not name, weights are quantized on
the CPU, and no two runs end in quite the same bits.

JSON: {accuracy, mean_weight_bits, packed_bytes, float_bytes, verified, seconds, run}, with a budget also budget: {budget, spent, met} in
bits, bytes, bit operations or seconds; for the method `float` {accuracy, float_bytes, seconds, run}.")]
pub struct Args {
    /// A recipe, or with --resume the folder of a run
    recipe: PathBuf,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What the model may cost, instead of the recipe's target: bits=2.5, bytes=80kB, bops=4G or latency=1.2ms
    #[arg(long, value_name = "KIND=AMOUNT")]
    budget: Option<String>,
    /// The data, instead of the recipe's
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Float weights to start from, instead of the recipe's
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// At most this many training (and held-out) samples
    #[arg(long, value_name = "N")]
    data_limit: Option<usize>,
    /// The run's folder [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the last checkpoint
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Start afresh where the folder holds another run
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let context = &args.device.open(context)?;
    if args.recipe.is_dir() && args.resume {
        let recipe = recipe::of_run(&args.recipe)?;
        return execute(recipe, &args.recipe, Mode::Resume, context);
    }
    if args.recipe.is_dir() {
        let message = format!("`{}` is a folder, but a recipe is a file", args.recipe.display());
        return Err(Failure::usage(message).remedy("add --resume to go on with the run in it"));
    }
    let mut recipe = Recipe::read(&args.recipe, &args.set)?;
    if let Some(budget) = &args.budget {
        recipe.set_budget(budget);
        // Read again, so that whatever does not go together is said now.
        recipe = Recipe::parse(&recipe.resolved()?, &[])?;
    }
    recipe.seed = context.seed.unwrap_or(recipe.seed);
    recipe.data.limit = args.data_limit.or(recipe.data.limit);
    if let Some(path) = &args.data {
        recipe.data.path.clone_from(path);
    }
    if let Some(path) = &args.weights {
        recipe.model.weights = Some(path.clone());
    }
    let folder = run_folder(args.out.as_ref(), &recipe.name);
    let mode = match (args.resume, args.force) {
        (true, _) => Mode::Resume,
        (_, true) => Mode::Force,
        _ => Mode::Fresh,
    };
    execute(recipe, &folder, mode, context)
}

/// What to do with a run that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Refuse.
    Fresh,
    /// Replace it.
    Force,
    /// Go on with it.
    Resume,
}

/// Runs a recipe in a folder and prints its result.
pub fn execute(recipe: Recipe, folder: &Path, mode: Mode, context: &Context) -> Result<Outcome, Failure> {
    let Performed { outcome, value, text } = perform(recipe, folder, mode, context)?;
    if outcome != Outcome::Interrupted {
        context.out.result(&value, || text)?;
    }
    Ok(outcome)
}

/// What a run ended with, for scripts and for people.
pub struct Performed {
    /// How it ended.
    pub outcome: Outcome,
    value: serde_json::Value,
    text: String,
}

/// Runs a recipe in a folder: train, freeze, pack, measure, prove, draw.
pub fn perform(recipe: Recipe, folder: &Path, mode: Mode, context: &Context) -> Result<Performed, Failure> {
    let began = Instant::now();
    let has_checkpoint = training::has_checkpoint(folder)?;
    let holds_a_run = has_checkpoint || folder.join(forge::PACKED).exists();
    match mode {
        Mode::Fresh if holds_a_run => {
            return Err(Failure::new(format!("`{}` holds a run already", folder.display()))
                .remedy("go on with it with --resume, replace it with --force, or choose another folder with --out"));
        }
        Mode::Resume if !has_checkpoint => {
            return Err(Failure::new(format!("`{}` holds no checkpoint to go on from", folder.display()))
                .remedy("start the run without --resume"));
        }
        Mode::Resume if recipe::of_run(folder)? != recipe => {
            return Err(Failure::new(format!("the run in `{}` was begun with another recipe", folder.display()))
                .remedy(format!("go on with `bitsmith train {} --resume`, which uses its own", folder.display())));
        }
        _ => {}
    }
    // Everything that can be refused is refused before a file is touched.
    let job = Job::open(recipe)?;
    interrupt::listen()?;
    let mut run = match mode {
        Mode::Resume => Run::begin(folder, events::read(folder)?)?,
        _ => {
            let run = Run::begin(folder, vec![job.start(context)?])?;
            _ = std::fs::remove_dir_all(folder.join(training::CHECKPOINTS));
            files::write(&folder.join(recipe::FILE_NAME), job.recipe.resolved()?.as_bytes())?;
            run
        }
    };
    let title = format!("training {}", job.recipe.name);
    let model = match training::train(&job, &mut run, mode == Mode::Resume, &title, context)? {
        Ended::Trained(model) => *model,
        Ended::Stopped => {
            run.write_report()?;
            context.out.progress.say(&format!("stopped; go on with `bitsmith train {} --resume`", folder.display()));
            return Ok(Performed { outcome: Outcome::Interrupted, value: json!(null), text: String::new() });
        }
    };
    let float_bytes = forge::float_bytes(&job.model);
    if job.recipe.method() == "float" {
        let path = folder.join("model.safetensors");
        bitsmith_formats::safetensors::save(&model, &path).context(|| format!("cannot write `{}`", path.display()))?;
        let result = forge::of_float(&model, &job.test, context)?;
        run.push(Event::Variant(Variant {
            name: "float".to_owned(),
            accuracy: result.accuracy,
            bytes: float_bytes,
            mean_bits: 32.0,
        }))?;
        run.push(Event::Layers { layers: layers::of_float(&model)? })?;
        if job.recipe.finish.onnx {
            let path = folder.join(forge::ONNX);
            let opset = bitsmith_formats::onnx::Target::default().opset;
            bitsmith_formats::onnx::write_float(&model, &path, opset)
                .context(|| format!("cannot write `{}`", path.display()))?;
        }
        let took = began.elapsed().as_secs_f64();
        run.push(forge::finished(began))?;
        run.write_report()?;
        let value = json!({ "accuracy": result.accuracy, "float_bytes": float_bytes, "seconds": took, "run": folder });
        let text = format!("accuracy {} after {}; {}\n", percent(result.accuracy), seconds(took), path.display());
        return Ok(Performed { outcome: Outcome::Done, value, text });
    }
    compare(&job, &mut run, context)?;
    let finish = Finish {
        test: &job.test,
        verify_samples: job.recipe.finish.verify_samples,
        onnx: job.recipe.finish.onnx,
        name: if job.recipe.method() == "csq" { "learned" } else { job.recipe.method() },
        budget: job.recipe.budget()?,
        is_noise: datasets::is_noise(&job.recipe.data.path),
    };
    let forged = forge::forge(model, &finish, &mut run, context)?;
    let took = began.elapsed().as_secs_f64();
    run.push(forge::finished(began))?;
    let report = run.write_report()?;
    let mut value = json!({
        "accuracy": forged.accuracy, "mean_weight_bits": forged.mean_bits, "packed_bytes": forged.bytes,
        "float_bytes": float_bytes, "verified": forged.verify.agree, "seconds": took, "run": folder,
    });
    if let Some(spent) = &forged.spent {
        value["budget"] = spent.json();
    }
    let text = format!(
        "{}accuracy {} with {:.2} bits per weight in {} (float: {}) after {}; {}\n{}\n",
        forged.spent.map_or(String::new(), |spent| format!("{spent}\n")),
        forged.accuracy.map_or_else(|| "unknown".to_owned(), percent),
        forged.mean_bits,
        bytes(forged.bytes),
        bytes(float_bytes),
        seconds(took),
        if forged.verify.agree { "verified" } else { "NOT verified" },
        report.display()
    );
    let outcome = if forged.verify.agree { Outcome::Done } else { Outcome::Disagree };
    Ok(Performed { outcome, value, text })
}

/// Measures the float network and untrained uniform widths, for the report. Random weights are nothing to compare with.
fn compare(job: &Job, run: &mut Run, context: &Context) -> Result<(), Failure> {
    if job.is_random {
        return Ok(());
    }
    let float = forge::of_float(&job.model, &job.test, context)?;
    let bytes = forge::float_bytes(&job.model);
    run.push(Event::Variant(Variant { name: "float".to_owned(), accuracy: float.accuracy, bytes, mean_bits: 32.0 }))?;
    for &bits in &job.recipe.finish.compare_uniform {
        let options = PtqOptions {
            weight_bits: bits,
            edge_bits: 0,
            activation_bits: job.recipe.activations.bits,
            input_bits: job.recipe.activations.input_bits,
            attention_bits: job.recipe.activations.attention_bits,
            ..PtqOptions::default()
        };
        let variant = forge::uniform(&job.model, &job.train, &job.test, options, context)?;
        run.push(Event::Variant(variant))?;
    }
    Ok(())
}
