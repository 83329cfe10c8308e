//! `bitsmith eval MODEL --data PATH`: accuracy and loss on labelled data, of float and packed models alike.

use bitsmith_engine::data::Split;
use serde_json::json;

use super::{Context, DeviceArgs, Outcome};
use crate::datasets::{self, DataArgs, Wanted};
use crate::engines;
use crate::failure::Failure;
use crate::models::{ModelArgs, Opened};
use crate::table::{count, percent};

/// Measure accuracy and loss on labelled data
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith eval resnet20 --weights cifar10_resnet20.safetensors --data cifar-10-batches-bin
  bitsmith eval runs/demo/model.bitsmith --data digits
  bitsmith eval model.onnx --data photos.tar --data-limit 500 --json
  bitsmith eval resnet20 --weights cifar10_resnet20.safetensors --data cifar-10-batches-bin --device cuda

JSON: {accuracy, loss, n, top5}; accuracies are fractions.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Which samples: test, train or all
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = super::split)]
    split: Split,
    /// Samples computed at once
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let context = &args.device.open(context)?;
    let seed = context.seed.unwrap_or(1);
    let opened = args.model.open(seed)?;
    let wanted = wanted(&opened)?;
    let set = args.data.open(&wanted, args.split, true, seed)?;
    let loader = datasets::in_order(set, args.batch, context.threads)?;
    let mut runner = engines::of(&opened, context.device)?;
    let result = engines::evaluate(runner.as_mut(), &loader, &context.out.progress)?;
    datasets::report_broken(loader.dataset(), &context.out.progress);
    if args.model.is_random() {
        context.out.progress.say("note: the weights are random; give trained ones with --weights");
    }
    let value = json!({ "accuracy": result.accuracy, "loss": result.loss, "n": result.n, "top5": result.top5 });
    context.out.result(&value, || {
        format!(
            "accuracy {}   top-5 {}   loss {:.4}   on {} samples of {}\n",
            percent(result.accuracy),
            percent(result.top5),
            result.loss,
            count(result.n as u64),
            loader.dataset().label()
        )
    })?;
    Ok(Outcome::Done)
}

/// What an opened model wants of its data.
pub fn wanted(opened: &Opened) -> Result<Wanted, Failure> {
    match opened {
        Opened::Float(model) => Wanted::of(&model.graph, model.preprocess.as_ref()),
        Opened::Packed(model) => Wanted::of(model.graph(), model.preprocess()),
    }
}
