//! `bitsmith profile MODEL`: what each layer costs in time at each width, on this machine.

use bitsmith_engine::data::{self, Split};
use serde_json::{Value, json};

use super::{Context, Outcome};
use crate::datasets::{self, Wanted};
use crate::failure::Failure;
use crate::latency::{self, Latencies, WIDTHS};
use crate::models::ModelArgs;
use crate::recipe::ActivationSection;
use crate::table::Table;
use crate::training;

/// Measure what layers cost at each width, here
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith profile resnet20
  bitsmith profile model.onnx --activation-bits 4 --threads 1
  bitsmith profile resnet20 --batch 32 --json
  bitsmith train recipes/cifar10-resnet20-w3a4.toml --budget latency=0.3ms     (a search that spends these times)

Every shape of a layer is measured once at 2 to 8 bits, inside the network, and kept: in $BITSMITH_CACHE, or bitsmith's folder of the
user's cache, a file for each processor, number of threads and batch. Weights and inputs are random; times do not depend on them.

JSON: {layers: [{name, macs, weights, ms: {\"2\", …, \"8\"}}], other_ms, total_ms: {\"2\", …, \"8\"}, batch, threads, activation_bits, measured, cache}.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Bits of activations, 1 to 8
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=8))]
    activation_bits: u8,
    /// Samples in a run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Measure again what is known
    #[arg(long)]
    refresh: bool,
}

/// Random samples that activations are calibrated with.
const CALIBRATION: usize = 8;

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let seed = context.seed.unwrap_or(1);
    let model = args.model.open(seed)?.into_float("profiling")?;
    let wanted = Wanted::of(&model.graph, model.preprocess.as_ref())?;
    let options =
        data::Options { split: Split::Train, unlabelled: true, limit: Some(CALIBRATION), ..data::Options::default() };
    let random = datasets::open("random".as_ref(), &wanted, None, options, seed)?;
    let section = ActivationSection { bits: args.activation_bits, ..ActivationSection::default() };
    let samples = training::calibration(&random, CALIBRATION, context)?;
    let calibrated = training::calibrate(model, &section, args.model.is_random(), &samples)?;
    let measured = latency::measure(&calibrated, usize::from(args.batch), args.refresh, context)?;
    let latencies = &measured.latencies;

    let layers = calibrated.layers()?;
    let times = |seconds: &[f64; 9]| -> Vec<f64> { WIDTHS.map(|bits| seconds[usize::from(bits)] * 1e3).collect() };
    let by_width =
        |ms: Vec<f64>| -> Value { WIDTHS.map(|b| b.to_string()).zip(ms.into_iter().map(Value::from)).collect() };
    let totals = || WIDTHS.map(|bits| latencies.uniform(bits) * 1e3).collect::<Vec<_>>();
    let mut rows = vec![];
    let heads: Vec<String> = WIDTHS.map(|bits| format!(">{bits} bits")).collect();
    let mut columns = vec!["layer", ">weights", ">multiply-adds"];
    columns.extend(heads.iter().map(String::as_str));
    let mut table = Table::new(&columns);
    for layer in &layers {
        let Some(seconds) = latencies.layers.get(&calibrated.graph.value(layer.weight).name) else { continue };
        let name = &calibrated.graph.nodes()[layer.node].name;
        rows.push(
            json!({ "name": name, "macs": layer.macs, "weights": layer.weights, "ms": by_width(times(seconds)) }),
        );
        let cells = times(seconds).into_iter().map(|ms| format!("{ms:.3}"));
        table.row([name.clone(), layer.weights.to_string(), layer.macs.to_string()].into_iter().chain(cells));
    }
    let line = |name: &str, ms: Vec<f64>| {
        let blank = [name.to_owned(), String::new(), String::new()];
        blank.into_iter().chain(ms.into_iter().map(|ms| format!("{ms:.3}"))).collect::<Vec<_>>()
    };
    table.row(line("everything else", vec![latencies.rest * 1e3; WIDTHS.count()]));
    table.row(line("all", totals()));
    let value = json!({
        "layers": rows, "other_ms": latencies.rest * 1e3, "total_ms": by_width(totals()), "batch": args.batch,
        "threads": context.threads, "activation_bits": args.activation_bits, "measured": measured.fresh, "cache": measured.cache,
    });
    context.out.result(&value, || describe(args, &table, latencies, &measured))?;
    Ok(Outcome::Done)
}

fn describe(args: &Args, table: &Table, latencies: &Latencies, measured: &latency::Measured) -> String {
    let news = match measured.fresh {
        0 => "All were known".to_owned(),
        n => format!("{n} shapes were measured now"),
    };
    format!(
        "Milliseconds of a run with a batch of {}, activations of {} bits, {} threads, by bits of weights.\n\n{}\n\
         {news}; they are kept in {}.\n",
        latencies.batch,
        args.activation_bits,
        latencies.threads,
        table.render(),
        measured.cache.display()
    )
}
