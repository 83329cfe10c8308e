//! `bitsmith inspect MODEL`: layers, shapes, cost, bits and sizes of any model.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::models::{ModelArgs, Opened, file_of};
use crate::table::{bytes, count, short};
use crate::{files, layers};

/// Show layers, shapes, cost, bits and sizes of any model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith inspect model.onnx
  bitsmith inspect runs/demo/model.bitsmith
  bitsmith inspect resnet20 --json

JSON: {name, mean_weight_bits, bytes, macs, weights, layers: [{name, op, shape, weights, weight_bits, stored_bits,
activation_bits, bytes, macs, arithmetic}], float_operators}. `weight_bits` counts as papers do (magnitude), `stored_bits` what the file holds
(sign included); 32 means float. `bytes` is the file's size, or that of the float parameters for a built-in name.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let opened = args.model.open(context.seed.unwrap_or(1))?;
    let (rows, graph, kind) = match &opened {
        Opened::Float(model) => (layers::of_float(model)?, &model.graph, "float"),
        Opened::Packed(model) => (layers::of_packed(model)?, model.graph(), "packed"),
    };
    let fallbacks = match &opened {
        Opened::Float(_) => vec![],
        Opened::Packed(model) => layers::fallbacks(model)?,
    };
    let path = file_of(&args.model.model);
    let size = match path.is_file() {
        true => files::size(&path)?,
        false => graph.values().iter().filter_map(|v| v.constant.as_ref()).map(|t| t.bytes() as u64).sum(),
    };
    let macs: u64 = graph.macs()?.iter().sum();
    let weights: u64 = rows.iter().map(|l| l.weights).sum();
    let mean = layers::mean_stored_bits(&rows);
    let value = json!({
        "float_operators": fallbacks.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "name": opened.name(), "mean_weight_bits": mean, "bytes": size, "macs": macs, "weights": weights, "layers": rows,
    });
    context.out.result(&value, || {
        let shapes = |ids: &mut dyn Iterator<Item = String>| ids.collect::<Vec<_>>().join(", ");
        let inputs = shapes(&mut graph.inputs().iter().map(|i| {
            let dims: Vec<String> = i.dims.iter().map(dim).collect();
            format!("{} [{}]", graph.value(i.value).name, dims.join(", "))
        }));
        let outputs = shapes(&mut graph.outputs().iter().map(|&o| graph.value(o).name.clone()));
        format!(
            "{} ({kind}): {} → {}\n{} weights of {mean:.2} bits on average, {}, {} multiply-accumulates per sample\n\n{}{}",
            opened.name(),
            inputs,
            outputs,
            count(weights),
            bytes(size),
            short(macs),
            layers::table(&rows),
            floats(&fallbacks)
        )
    })?;
    Ok(Outcome::Done)
}

/// What runs in float, grouped by reason.
fn floats(fallbacks: &[(String, String)]) -> String {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in fallbacks {
        by_reason.entry(reason).or_default().push(name);
    }
    let line = |(reason, names): (&str, Vec<&str>)| format!("  {reason}: {}\n", names.join(", "));
    match by_reason.is_empty() {
        true => String::new(),
        false => "\nin float:\n".to_owned() + &by_reason.into_iter().map(line).collect::<String>(),
    }
}

fn dim(dim: &bitsmith_graph::Dim) -> String {
    match dim {
        bitsmith_graph::Dim::Batch => "batch".to_owned(),
        bitsmith_graph::Dim::Fixed(n) => n.to_string(),
    }
}
