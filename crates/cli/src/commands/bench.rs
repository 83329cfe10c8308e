//! `bitsmith bench MODEL` and `bitsmith bench train`: how long inference or a training step takes here.

mod layers;
mod training;

use std::time::{Duration, Instant};

use bitsmith_engine::Device;
use bitsmith_runtime::Kernels;
use serde_json::{Value, json};

use super::{Context, DeviceArgs, Outcome};
use crate::datasets::Wanted;
use crate::engines::{self, Integers, Runner};
use crate::failure::Failure;
use crate::models::{self, BuiltFor, Opened};
use crate::system;

/// Time inference of a model, or training steps
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith bench model.bitsmith --batch 1
  bitsmith bench model.bitsmith --batch 1 --profile                             (where the time goes)
  bitsmith bench resnet20 --batch 128 --json
  bitsmith bench train --model resnet20 --batch 128 --profile
  bitsmith bench train --method lsq --weight-bits 4 --activation-bits 4 --json
  bitsmith bench train --model resnet20 --device cuda
  bitsmith bench train --method csq --phase 1 --activation-bits 4               (the frozen scheme's finetuning)

JSON for a model: {median_ms, p99_ms, images_per_s, peak_rss_mb, threads, batch}, with --profile also layers and limits; for
training: {images_per_s, median_ms, peak_rss_mb, threads, batch}. Times are of one call with one batch of random input, after
warming up. A training step is forward, backward, everything that the method adds, and optimiser; data loading is not in it.")]
pub struct Args {
    /// A model (file or built-in name), or the word `train`
    #[arg(value_name = "MODEL|train")]
    what: String,
    /// Samples in a call [default: 1 for a model, 128 for training]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Measure for about this long
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// What `train` trains: a built-in network, or a model file
    #[arg(long, value_name = "NAME", default_value = "resnet20")]
    model: String,
    /// Height and width of a built-in model's images [default: the architecture's own]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// How `train` rounds weights: a method's name, or saq for lsq with sharpness-aware steps
    #[arg(long, value_name = "METHOD", default_value = "float")]
    method: String,
    /// Bits of weights for `train`: the width of lsq, planes and sign of csq
    #[arg(long, value_name = "BITS")]
    weight_bits: Option<u8>,
    /// Bits of activations for `train`; 32 leaves them in float
    #[arg(long, value_name = "BITS", default_value_t = 32)]
    activation_bits: u8,
    /// The phase of the method that `train` times, from 0 (csq: search, finetune, polish)
    #[arg(long, value_name = "N", default_value_t = 0)]
    phase: usize,
    /// Any other value of a recipe, for `train`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also say where the time goes: by layer of a packed model, by operator of a training step
    #[arg(long)]
    profile: bool,
    /// Use the runtime's plain reference kernels instead of the fast ones
    #[arg(long)]
    reference: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let context = &args.device.open(context)?;
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        return Err(
            Failure::usage(format!("`--seconds {}` is not a time to measure", args.seconds)).remedy("1 to 60 will do")
        );
    }
    let is_training = args.what == "train";
    let batch = args.batch.unwrap_or(if is_training { 128 } else { 1 });
    if batch == 0 || batch > 1 << 16 {
        return Err(Failure::usage(format!("`--batch {batch}` cannot be computed")).remedy("1 to 65536"));
    }
    let (times, profile) = match is_training {
        true => training::run(args, context, batch).map(|(times, table)| (times, table.map(|t| (json!({}), t))))?,
        false => inference(args, context, batch)?,
    };
    let (median, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    let images_per_s = batch as f64 * 1000.0 / median;
    let peak_mb = system::peak_memory_bytes().map(|b| (b as f64 / 1e6 * 10.0).round() / 10.0);
    let mut value = json!({
        "images_per_s": images_per_s, "median_ms": median, "peak_rss_mb": peak_mb, "threads": context.threads, "batch": batch,
    });
    if !is_training {
        value["p99_ms"] = p99.into();
    }
    let (more, table) = profile.unzip();
    if let (Some(Value::Object(more)), Some(value)) = (more, value.as_object_mut()) {
        value.extend(more);
    }
    context.out.result(&value, || {
        let memory = peak_mb.map_or(String::new(), |mb| format!(", peak memory {mb} MB"));
        format!(
            "{} at batch {batch} on {}{} threads: median {median:.3} ms, p99 {p99:.3} ms, {images_per_s:.0} images/s{memory} ({} calls)\n{}",
            if is_training { format!("training {} by {}", args.model, args.method) } else { args.what.clone() },
            if context.device == Device::Cpu { String::new() } else { format!("{} and ", context.device) },
            context.threads,
            times.len(),
            table.map_or(String::new(), |table| format!("\n{table}"))
        )
    })?;
    Ok(Outcome::Done)
}

/// Where the time went, as JSON and as a table.
type Profile = (Value, String);

/// Milliseconds of each call, and where they went if that was asked for.
fn inference(args: &Args, context: &Context, batch: usize) -> Result<(Vec<f64>, Option<Profile>), Failure> {
    let opened = models::open(&args.what, None, &BuiltFor { image_size: args.image_size, ..BuiltFor::default() })?;
    let wanted: Wanted = super::eval::wanted(&opened)?;
    let x = engines::noise(batch.saturating_mul(wanted.sample));
    let mut integers = match &opened {
        Opened::Packed(model) if context.device == Device::Cpu => {
            Integers::new(model, if args.reference { Kernels::Reference } else { Kernels::Fast })?
        }
        _ if args.profile => {
            return Err(Failure::usage("`--profile` of inference needs a packed model")
                .remedy("pack one by `bitsmith quantize`, or profile training with `bitsmith bench train --profile`"));
        }
        opened => {
            let mut runner = engines::of(opened, context.device)?;
            return Ok((measure(args, context, || runner.logits(&x, batch).map(drop))?, None));
        }
    };
    let times = measure(args, context, || integers.logits(&x, batch).map(drop))?;
    if !args.profile {
        return Ok((times, None));
    }
    let runs = (args.seconds * 1e3 / quantile(&times, 0.5).max(1e-3)).clamp(1.0, 1000.0) as usize;
    let profile = integers.profile(&x, batch, runs)?;
    Ok((times, Some(layers::describe(&profile, context.threads))))
}

/// Calls that are not measured.
const WARM_UP: usize = 2;

/// Milliseconds of each call: after warming up at least five and as many as the time allows.
fn measure(args: &Args, context: &Context, mut call: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    let limit = Duration::from_secs_f64(args.seconds);
    let task = context.out.progress.task("measuring", 100);
    for _ in 0..WARM_UP {
        call()?;
    }
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || began.elapsed() < limit {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        task.set((100.0 * began.elapsed().as_secs_f64() / args.seconds).min(100.0) as u64, "");
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The smallest time that this share of the calls did not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&times, 0.5), quantile(&times, 0.99), quantile(&times, 1.0)), (50.0, 99.0, 100.0));
        assert_eq!((quantile(&[7.0], 0.5), quantile(&[], 0.5)), (7.0, 0.0));
    }
}
