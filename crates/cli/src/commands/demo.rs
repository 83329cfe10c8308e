//! `bitsmith demo`: the whole story in about a minute, on handwritten digits that are part of the program.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitsmith_quant::methods;
use bitsmith_quant::passes::ptq::PtqOptions;
use serde_json::json;

use super::{Context, DeviceArgs, Outcome, run_folder};
use crate::events::{Event, Variant};
use crate::failure::{Explain, Failure};
use crate::forge::{self, Finish, Run};
use crate::models::{ModelArgs, Opened};
use crate::recipe::{self, Recipe};
use crate::table::{bytes, percent, seconds};
use crate::training::{self, Ended, Job};
use crate::{files, interrupt, layers, suggest};

/// The whole story on embedded data: train, learn bits, pack, run, prove, draw
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith demo
  bitsmith demo --out my-demo --seed 7
  bitsmith demo --method sdq          (or another of the methods; csq is the default)
  bitsmith demo --method lsq --saq    (sharpness-aware steps)
  bitsmith demo --device cuda         (in a build with the feature `cuda`)
  bitsmith demo --json

JSON: {float_accuracy, accuracy, mean_weight_bits, float_bytes, packed_bytes, verified, seconds, run}; accuracies are fractions on
held-out digits, `accuracy` that of the packed file run with integers.")]
pub struct Args {
    /// Where to put everything [default: runs/demo]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The method that quantizes
    #[arg(long, value_name = "NAME", default_value = "csq")]
    method: String,
    /// Train sharpness-aware
    #[arg(long)]
    saq: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Float training, then the search; each is a recipe of its own inside the run's folder.
const FLOAT: &str = include_str!("demo-float.toml");
const LEARN: &str = include_str!("demo-learn.toml");
/// Mean bits per weight for methods that search.
const TARGET: f64 = 2.2;
/// Bits of every weight for those that do not.
const WIDTH: i64 = 3;
/// Length of the perturbation of sharpness-aware steps, in standard deviations of each layer's weights.
const RHO: f32 = 0.4;

/// The second recipe, with the method's name and what it is asked for. Returns what to tell about it too.
fn learning(args: &Args) -> Result<(Recipe, String), Failure> {
    let names: Vec<&str> = methods::METHODS.iter().map(|m| m.name).filter(|n| *n != "float").collect();
    let Some(method) = methods::METHODS.iter().find(|m| m.name == args.method && names.contains(&m.name)) else {
        let message = format!("there is no quantizing method `{}`", args.method);
        return Err(Failure::usage(message).remedy(suggest::remedy(&args.method, &names)));
    };
    let mut recipe = Recipe::parse(LEARN, &[])?;
    let options: Vec<&str> = (method.options)().iter().map(|o| o.name).collect();
    let mut set = |key: &str, value: toml::Value| {
        if key == "name" || options.contains(&key) {
            recipe.method.insert(key.to_owned(), value);
        }
    };
    set("name", method.name.into());
    set("target_bits", TARGET.into());
    set("weight_bits", WIDTH.into());
    set("edge_bits", 0.into());
    if args.saq {
        recipe.train.sharpness.rho = RHO;
    }
    let story = match options.contains(&"target_bits") {
        true => format!(
            "every weight starts with 8 bits or so; the network learns which it needs, {TARGET} each on average"
        ),
        false => format!("every weight gets {WIDTH} bits, and the network learns to do with them"),
    };
    Ok((recipe, story))
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let context = &args.device.open(context)?;
    let folder = run_folder(args.out.as_ref(), "demo");
    let out = &context.out;
    let (mut learn, story) = learning(args)?;
    interrupt::listen()?;
    files::create_folder(&folder)?;
    forget_earlier(&folder);

    out.tell("bitsmith learns how many bits each part of a network needs, and forges a model that uses them.\n")?;
    let mut recipe = Recipe::parse(FLOAT, &[])?;
    recipe.seed = context.seed.unwrap_or(recipe.seed);
    let job = Job::open(recipe)?;
    let weights: usize = job.model.layers()?.iter().map(|l| l.weights).sum();
    out.tell(&format!(
        "1  a small network ({weights} weights) learns 8x8 handwritten digits in float, from {} of them",
        job.train.len()
    ))?;
    let float_folder = folder.join("float");
    let mut run = Run::begin(&float_folder, vec![job.start(context)?])?;
    let Ended::Trained(float) = training::train(&job, &mut run, false, "learning digits", context)? else {
        return Ok(Outcome::Interrupted);
    };
    let float_path = folder.join("float.safetensors");
    bitsmith_formats::safetensors::save(&float, &float_path)
        .context(|| format!("cannot write `{}`", float_path.display()))?;
    let float_bytes = files::size(&float_path)?;
    let float_accuracy = forge::of_float(&float, &job.test, context)?.accuracy;
    out.tell(&format!(
        "   {} right on {} digits it has never seen; the file has {}\n",
        percent(float_accuracy),
        job.test.len(),
        bytes(float_bytes)
    ))?;

    learn.seed = job.recipe.seed;
    learn.model.weights = Some(float_path);
    let job = Job::open(learn)?;
    out.tell(&format!("2  {story}"))?;
    let mut start = job.start(context)?;
    if let Event::Start(start) = &mut start {
        let (method, saq) = (&args.method, if args.saq { " --saq" } else { "" });
        let device = start.device.as_ref().map_or(String::new(), |device| format!(" --device {device}"));
        let (seed, threads) = (job.recipe.seed, context.threads);
        start.recipe = format!("bitsmith demo --method {method}{saq} --seed {seed} --threads {threads}{device}");
    }
    let mut run = Run::begin(&folder, vec![start])?;
    files::write(&folder.join(recipe::FILE_NAME), job.recipe.resolved()?.as_bytes())?;
    run.push(Event::Variant(Variant {
        name: "float".to_owned(),
        accuracy: float_accuracy,
        bytes: float_bytes,
        mean_bits: 32.0,
    }))?;
    for &bits in &job.recipe.finish.compare_uniform {
        let activation_bits = job.recipe.activations.bits;
        let options = PtqOptions { weight_bits: bits, edge_bits: 0, activation_bits, ..PtqOptions::default() };
        run.push(Event::Variant(forge::uniform(&job.model, &job.train, &job.test, options, context)?))?;
    }
    let Ended::Trained(model) = training::train(&job, &mut run, false, "learning bits", context)? else {
        return Ok(Outcome::Interrupted);
    };
    let finish =
        Finish { test: &job.test, verify_samples: 0, onnx: true, name: "learned", budget: None, is_noise: false };
    let forged = forge::forge(*model, &finish, &mut run, context)?;
    out.tell(&format!("\n{}", indent(&picture(&forged.layers))))?;

    // What is reported is what a user of the file gets: it is read back from the disk.
    let packed_path = folder.join(forge::PACKED);
    let reread = ModelArgs { model: packed_path.display().to_string(), weights: None, classes: None, image_size: None }
        .open(0)?;
    let accuracy = match &reread {
        Opened::Packed(model) => forge::of_packed(model, &job.test, context)?.accuracy,
        Opened::Float(_) => return Err(Failure::new("the packed file was not recognised as one")),
    };
    out.tell(&format!(
        "3  packed into {}, {:.1} times smaller than float; run with integers, it gets {} right ({:+.2} points)",
        bytes(forged.bytes),
        float_bytes as f64 / forged.bytes as f64,
        percent(accuracy),
        100.0 * (accuracy - float_accuracy)
    ))?;
    let verify = &forged.verify;
    out.tell(&format!(
        "4  {}: simulator, integer reference and fast kernels on {} digits: {} same answers, logits at most {:.1e} apart\n",
        if verify.agree { "proved" } else { "NOT proved" },
        verify.samples,
        percent(verify.top1_agreement),
        verify.max_abs_diff
    ))?;
    let took = began.elapsed().as_secs_f64();
    run.push(forge::finished(began))?;
    let report = run.write_report()?;
    let value = json!({
        "float_accuracy": float_accuracy, "accuracy": accuracy, "mean_weight_bits": forged.mean_bits, "float_bytes": float_bytes,
        "packed_bytes": forged.bytes, "verified": verify.agree, "seconds": took, "run": folder,
    });
    out.result(&value, || {
        format!(
            "{} after {}. Look at\n   {}   the whole run on one page\n   {}   the packed model: bitsmith inspect, run, bench\n   {}   the same for other runtimes\n",
            if verify.agree { "Done" } else { "Something disagrees" },
            seconds(took),
            report.display(),
            packed_path.display(),
            folder.join(forge::ONNX).display()
        )
    })?;
    Ok(if verify.agree { Outcome::Done } else { Outcome::Disagree })
}

/// Removes checkpoints of an earlier demo in the same folder: a demo always starts afresh.
fn forget_earlier(folder: &Path) {
    for part in [folder.join(training::CHECKPOINTS), folder.join("float").join(training::CHECKPOINTS)] {
        // Absent is as good as removed.
        _ = std::fs::remove_dir_all(part);
    }
}

/// Bits per layer as a small drawing.
fn picture(rows: &[crate::events::LayerRow]) -> String {
    let width = rows.iter().map(|l| l.name.chars().count()).max().unwrap_or(0);
    let line = |l: &crate::events::LayerRow| {
        let filled = l.stored_bits.round().clamp(0.0, 8.0) as usize;
        let (name, bar, rest) = (&l.name, "■".repeat(filled), "·".repeat(8 - filled));
        format!("{name:<width$}  {bar}{rest}  {} bits  {:>5} weights\n", l.stored_bits, l.weights)
    };
    let mean = layers::mean_stored_bits(rows);
    rows.iter().map(line).collect::<String>()
        + &format!("{:<width$}  {mean:.2} bits per weight on average, sign included\n", "")
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("   {l}\n")).collect()
}
