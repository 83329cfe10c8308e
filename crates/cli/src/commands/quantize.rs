//! `bitsmith quantize MODEL`: a packed model from a float one, by training or without.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitsmith_engine::Device;
use bitsmith_engine::data::Split;
use bitsmith_graph::{Model, Op};
use bitsmith_quant::blocks::range::Range;
use bitsmith_quant::methods;
use bitsmith_quant::passes::PassContext;
use bitsmith_quant::passes::ptq::{Ptq, PtqOptions};
use bitsmith_quant::train::data::InMemory;
use bitsmith_quant::train::events::{Event as Heard, Silent};
use clap::ValueEnum;
use serde_json::json;
use toml::Value;

use super::train::{Mode, execute};
use super::{Context, DeviceArgs, Outcome, run_folder};
use crate::budget::Budget;
use crate::datasets::{self, DataArgs, Wanted};
use crate::events::{Event, Start, Variant};
use crate::failure::{Explain, Failure};
use crate::forge::{self, Finish, Run};
use crate::models::ModelArgs;
use crate::recipe::{DataSection, ModelSection, Recipe};
use crate::table::{bytes, percent, seconds};
use crate::training;
use crate::{files, suggest};

/// Make a packed model from a float one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith quantize model.onnx --data photos --method csq --target-bits 3
  bitsmith quantize resnet20 --weights w.safetensors --data cifar-10-batches-bin --method ptq --weight-bits 4 --activation-bits 8
  bitsmith quantize model.onnx --data photos --method ptq --budget latency=2ms --activation-bits 4
  bitsmith quantize mobilenetv2 --method ptq --data random --weight-bits 8       (no data: for benchmarks only)
  bitsmith quantize model.onnx --data photos --method csq --set train.epochs=10 --set train.distill=0.5

Methods: csq, sdq, fracbits, bsq and adaqat learn how many bits each layer needs; lsq, dorefa and pdqat train a fixed width; ptq calibrates
without training, and with --target-bits or --budget chooses widths by trial. Training methods are a recipe in short form: the folder keeps it as recipe.toml, and `--set` reaches every
key of it. Without batch normalisation in the model, the learning rate is a tenth of the usual one unless set.

JSON: {accuracy, mean_weight_bits, packed_bytes, float_bytes, verified, seconds, run}, with a budget also budget: {budget, spent, met} in
bits, bytes, bit operations or seconds; accuracy is null without labels.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// How: the name of a method, or ptq
    #[arg(long, value_name = "METHOD", default_value = "csq")]
    method: String,
    /// Mean stored bits per weight that a searching method or ptq is to meet, sign included
    #[arg(long, value_name = "BITS")]
    target_bits: Option<f64>,
    /// What the model may cost, for a searching method or ptq: bits=2.5, bytes=80kB, bops=4G or latency=1.2ms
    #[arg(long, value_name = "KIND=AMOUNT", conflicts_with = "target_bits")]
    budget: Option<String>,
    /// Bits of each weight for ptq, lsq, dorefa and pdqat
    #[arg(long, value_name = "BITS")]
    weight_bits: Option<u8>,
    /// Bits of activations; 32 leaves them in float [default: 8 for ptq, 32 for training]
    #[arg(long, value_name = "BITS")]
    activation_bits: Option<u8>,
    /// Bits of what attention multiplies with each other; 32 leaves it in float
    #[arg(long, value_name = "BITS", default_value_t = 32)]
    attention_bits: u8,
    /// Bits of the first and last layer; 0 treats them like the others
    #[arg(long, value_name = "BITS")]
    edge_bits: Option<u8>,
    /// How ptq chooses the range of activations
    #[arg(long, value_enum, default_value_t = RangeName::Mse)]
    range: RangeName,
    /// The share of values that the range `percentile` covers
    #[arg(long, value_name = "SHARE", default_value_t = 0.999)]
    percentile: f64,
    /// Samples that ptq calibrates with
    #[arg(long, value_name = "N", default_value_t = 512)]
    calibration: usize,
    /// Epochs of training
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Any other value of the recipe of a training method
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to put everything [default: runs/MODEL-METHOD]; NAME.bitsmith puts the packed file there, the rest into NAME
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the training in that folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace what that folder holds
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Batches of calibration samples that a scheme is measured on.
const TRIAL_BATCHES: usize = 4;

/// How a range is chosen from calibration values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RangeName {
    /// Everything seen fits
    MinMax,
    /// A share of the values fits
    Percentile,
    /// The least squared error
    Mse,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let context = &args.device.open(context)?;
    let trained = methods::METHODS.iter().map(|m| m.name).filter(|&n| n != "float");
    let known: Vec<&str> = trained.chain(["ptq"]).collect();
    if !known.contains(&args.method.as_str()) {
        let message = format!("there is no method `{}`", args.method);
        return Err(Failure::usage(message).remedy(suggest::remedy(&args.method, &known)));
    }
    if let Some(target) = args.target_bits
        && !(target > 0.0 && target <= 8.0)
    {
        return Err(Failure::usage(format!("`--target-bits {target}` cannot be stored"))
            .remedy("choose more than 0 and at most 8"));
    }
    for (flag, bits, or_float) in [
        ("--weight-bits", args.weight_bits, false),
        ("--activation-bits", args.activation_bits, true),
        ("--attention-bits", Some(args.attention_bits), true),
    ] {
        match bits {
            None | Some(1..=8) => {}
            Some(32) if or_float => {}
            Some(bits) => {
                let also = if or_float { ", or 32 for float" } else { "" };
                return Err(
                    Failure::usage(format!("`{flag} {bits}` cannot be stored")).remedy(format!("choose 1 to 8{also}"))
                );
            }
        }
    }
    let default = if args.method == "ptq" { 8 } else { 32 };
    if args.attention_bits != 32 && args.activation_bits.unwrap_or(default) == 32 {
        return Err(Failure::usage("`--attention-bits` rounds parts of what stays in float without --activation-bits")
            .remedy("give --activation-bits, or leave out --attention-bits"));
    }
    let stem = std::path::Path::new(&args.model.model).file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    let name: String = format!("{stem}-{}", args.method)
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .collect();
    let file = args.out.clone().filter(|out| out.extension().is_some_and(|e| e == "bitsmith"));
    if let Some(file) = file.as_ref().filter(|file| file.exists() && !args.force && !args.resume) {
        return Err(Failure::new(format!("`{}` exists already", file.display())).remedy("replace it with --force"));
    }
    let out = file.as_ref().map(|file| file.with_extension("")).or(args.out.clone());
    let folder = run_folder(out.as_ref(), name.trim_start_matches('.'));
    let outcome = match args.method.as_str() {
        "ptq" => without_training(args, &folder, context)?,
        _ => {
            let mode = match (args.resume, args.force) {
                (true, _) => Mode::Resume,
                (_, true) => Mode::Force,
                _ => Mode::Fresh,
            };
            execute(recipe(args, &name, context)?, &folder, mode, context)?
        }
    };
    if let Some(file) = file.filter(|_| outcome != Outcome::Interrupted) {
        let made = folder.join(forge::PACKED);
        let bytes = std::fs::read(&made).context(|| format!("cannot read `{}`", made.display()))?;
        files::write(&file, &bytes)?;
    }
    Ok(outcome)
}

/// Learning rate for networks without batch normalisation, unless `--set` says otherwise.
const RATE_WITHOUT_NORMS: f64 = 0.002;

/// The recipe that the flags are short for.
fn recipe(args: &Args, name: &str, context: &Context) -> Result<Recipe, Failure> {
    let mut recipe = Recipe {
        name: name.trim_start_matches('.').to_owned(),
        seed: context.seed.unwrap_or(1),
        model: ModelSection {
            from: args.model.model.clone(),
            weights: args.model.weights.clone(),
            classes: args.model.classes,
            image_size: args.model.image_size,
        },
        data: DataSection {
            path: args.data.data.clone(),
            limit: args.data.data_limit,
            hold_out: args.data.hold_out,
            skip_broken: args.data.skip_broken,
            ..DataSection::default()
        },
        ..Recipe::default()
    };
    recipe.activations.bits = args.activation_bits.unwrap_or(32);
    recipe.activations.attention_bits = args.attention_bits;
    let model = args.model.open(recipe.seed)?.into_float("quantizing")?;
    let normalises = model.graph.nodes().iter().any(|n| matches!(n.op, Op::BatchNormalization(_)));
    if !normalises {
        // Normalisations folded into weights no longer keep large steps in check.
        recipe.train.learning_rate = RATE_WITHOUT_NORMS;
    }
    if let Some(epochs) = args.epochs {
        recipe.train.epochs = epochs;
    }
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            recipe.method.insert(key.to_owned(), value);
        }
    };
    recipe.budget.clone_from(&args.budget);
    set("name", Some(Value::String(args.method.clone())));
    set("target_bits", args.target_bits.map(Value::Float));
    set("weight_bits", args.weight_bits.map(|b| Value::Integer(b.into())));
    set("edge_bits", args.edge_bits.map(|b| Value::Integer(b.into())));
    Recipe::parse(&recipe.resolved()?, &args.set)
}

fn without_training(args: &Args, folder: &Path, context: &Context) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let seed = context.seed.unwrap_or(1);
    let is_elsewhere = context.device != Device::Cpu;
    if !args.set.is_empty() || args.epochs.is_some() || args.resume || is_elsewhere {
        return Err(Failure::usage("ptq does not train: --set, --epochs, --resume and --device mean nothing to it")
            .remedy("choose --weight-bits, --target-bits or --budget, or --method csq"));
    }
    let budget = match args.target_bits {
        Some(bits) => Some(Budget::Bits(bits)),
        None => args.budget.as_deref().map(str::parse).transpose()?,
    };
    if budget.is_some() && args.weight_bits.is_some() {
        return Err(Failure::usage("--weight-bits gives all layers one width, but a budget lets them differ")
            .remedy("leave out either"));
    }
    let model = args.model.open(seed)?.into_float("quantizing")?;
    let wanted = Wanted::of(&model.graph, model.preprocess.as_ref())?;
    let is_random = datasets::is_noise(&args.data.data);
    let train = args.data.open(&wanted, Split::Train, false, seed)?;
    let test = args.data.open(&wanted, Split::Test, false, seed)?;
    if folder.join(forge::PACKED).exists() && !args.force {
        return Err(Failure::new(format!("`{}` holds a run already", folder.display()))
            .remedy("replace it with --force, or choose another folder with --out"));
    }
    let bits = args.weight_bits.unwrap_or(8);
    let options = PtqOptions {
        weight_bits: bits,
        edge_bits: args.edge_bits.unwrap_or(0),
        activation_bits: args.activation_bits.unwrap_or(8),
        attention_bits: args.attention_bits,
        activation_range: match args.range {
            RangeName::MinMax => Range::MinMax,
            RangeName::Percentile => Range::Percentile(args.percentile),
            RangeName::Mse => Range::Mse,
        },
        batches: usize::MAX,
        ..PtqOptions::default()
    };
    let calibration = training::calibration(&train, args.calibration, context)?;
    files::create_folder(folder)?;
    let quantized = match budget {
        Some(budget) => allocated(&model, &calibration, options, budget, folder, context)?,
        None => training::ptq(&model, &calibration, options)?,
    };
    let described = budget.map_or_else(|| format!("uniform {bits} bits"), |budget| format!("within {budget}"));
    let layers = model.layers()?;
    let start = Start {
        name: format!("{}: {described}", model.name),
        model: model.name.clone(),
        method: "ptq (no training)".to_owned(),
        data: train.label().to_owned(),
        samples: (calibration_len(&train, args.calibration), test.len()),
        seed,
        threads: context.threads,
        weights: layers.iter().map(|l| l.weights as u64).sum(),
        macs: model.graph.macs()?.iter().sum(),
        recipe: std::env::args().collect::<Vec<_>>().join(" "),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Start::default()
    };
    let mut run = Run::begin(folder, vec![Event::Start(start)])?;
    let float_bytes = forge::float_bytes(&model);
    // Random data have random labels: an accuracy on them would only look like one.
    let test = if is_random { test.subset(&test.spread(256))? } else { test };
    let labelled = test.is_labelled() && !is_random;
    if labelled {
        let accuracy = forge::of_float(&model, &test, context)?.accuracy;
        run.push(Event::Variant(Variant { name: "float".to_owned(), accuracy, bytes: float_bytes, mean_bits: 32.0 }))?;
    }
    let finish =
        Finish { test: &test, verify_samples: 1000, onnx: true, name: &described, budget, is_noise: is_random };
    let forged = forge::forge(quantized, &finish, &mut run, context)?;
    let took = began.elapsed().as_secs_f64();
    run.push(forge::finished(began))?;
    let report = run.write_report()?;
    let accuracy = forged.accuracy.filter(|_| labelled);
    let mut value = json!({
        "accuracy": accuracy, "mean_weight_bits": forged.mean_bits, "packed_bytes": forged.bytes,
        "float_bytes": float_bytes, "verified": forged.verify.agree, "seconds": took, "run": folder,
    });
    if let Some(spent) = &forged.spent {
        value["budget"] = spent.json();
    }
    context.out.result(&value, || {
        format!(
            "{}{}{:.2} bits per weight in {} (float: {}) after {}; {}\n{}\n",
            forged.spent.map_or(String::new(), |spent| format!("{spent}\n")),
            accuracy.map_or(String::new(), |a| format!("accuracy {} with ", percent(a))),
            forged.mean_bits,
            bytes(forged.bytes),
            bytes(float_bytes),
            seconds(took),
            match (forged.verify.agree, is_random) {
                (true, true) => "kernels verified (noise has no classes to compare)",
                (true, false) => "verified",
                (false, _) => "NOT verified",
            },
            report.display()
        )
    })?;
    Ok(if forged.verify.agree { Outcome::Done } else { Outcome::Disagree })
}

/// Widths that meet a budget, each scheme measured on some of the calibration samples.
fn allocated(
    model: &Model,
    calibration: &InMemory,
    options: PtqOptions,
    budget: Budget,
    folder: &Path,
    context: &Context,
) -> Result<Model, Failure> {
    let ptq = Ptq { options: options.clone() };
    let calibrated = ptq.calibrated(model.clone(), &mut PassContext { calibration, sink: &mut Silent })?;
    let terms = budget.terms(&calibrated, folder, false, context)?;
    let options = PtqOptions { activation_bits: 32, batches: TRIAL_BATCHES, ..options };
    // Nobody knows how many it will be: layers are tried some times each.
    let about = 8 * calibrated.layers()?.len();
    let task = context.out.progress.task("choosing widths", about as u64);
    let watch = |event: &Heard| match event {
        Heard::Trial { measured } => task.set((*measured).min(about) as u64, &format!("{measured} schemes")),
        Heard::Note { text } => context.out.progress.detail(text),
        _ => {}
    };
    training::allocate(&calibrated, calibration, options, &terms, watch)
}

fn calibration_len(train: &bitsmith_engine::data::Dataset, wanted: usize) -> usize {
    train.len().min(wanted)
}
