//! `bitsmith verify A [B …] --data PATH`: simulator, integer reference, fast kernels and ONNX Runtime on the same inputs.

use std::path::{Path, PathBuf};

use bitsmith_engine::Device;
use bitsmith_engine::data::{Dataset, Split};
use bitsmith_graph::QuantModel;
use bitsmith_runtime::Kernels;
use serde_json::{Map, json};

use super::{Context, Outcome};
use crate::datasets::{self, DataArgs, Wanted};
use crate::engines::{self, Integers, Runner, Simulator};
use crate::failure::Failure;
use crate::models::{self, BuiltFor, Opened};
use crate::onnxruntime::{OnnxRuntime, dims};
use crate::progress::Progress;
use crate::table::{Table, count, percent};
use crate::verify::{Promise, TOP1_AGREEMENT, Verdict, Way, compare};

/// Prove that simulator, integers and exported files agree
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith verify runs/demo/model.bitsmith --data digits
  bitsmith verify model.bitsmith --data cifar-10-batches-bin --onnx model.onnx
  bitsmith verify model.bitsmith --data cifar-10-batches-bin --reference 10000
  bitsmith verify a.bitsmith b.bitsmith --data random

A packed model is computed three times: by the fast kernels, as training simulated it (floats on their grids), and the first
samples also by the plain integer reference, which is slow. Reference and fast kernels must return the same bits. Simulator and integers must choose the same class
on 99.9 % of the samples with accuracies at most 0.05 points apart (one sample in small sets), because a float sum is rounded
in another order; with float activations, logits must also be within a thousandth of the largest. The same holds for further
models and for --onnx, which needs python3 with onnxruntime. Exit code 1 where something disagrees.

JSON: {agree, max_abs_diff, top1_agreement, accuracies: {ENGINE: accuracy}, n, engines}; accuracies are null without labels.")]
pub struct Args {
    /// The model that the others are compared with, and more models
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Which samples: test, train or all
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = super::split)]
    split: Split,
    /// Also compute this ONNX file with ONNX Runtime; without FILE, an export of the first model
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    onnx: Option<Option<PathBuf>>,
    /// Samples that the integer reference computes too; 0 leaves it out [default: as many as take it some seconds]
    #[arg(long, value_name = "N")]
    reference: Option<usize>,
    /// Samples computed at once
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let seed = context.seed.unwrap_or(1);
    let options = BuiltFor { seed, ..BuiltFor::default() };
    let opened: Vec<Opened> = args.models.iter().map(|m| models::open(m, None, &options)).collect::<Result<_, _>>()?;
    let Some((first, others)) = opened.split_first() else {
        return Err(Failure::usage("there is no model to verify"));
    };
    let wanted: Wanted = super::eval::wanted(first)?;
    let set = args.data.open(&wanted, args.split, false, seed)?;
    let mut ways = match first {
        Opened::Packed(model) => of_packed(model, args.reference)?,
        Opened::Float(model) => vec![Way::all(Box::new(Simulator::new("float", model, Device::Cpu)?), Promise::Bits)],
    };
    for (model, name) in others.iter().zip(&args.models[1..]) {
        let other = super::eval::wanted(model)?;
        if other.sample != wanted.sample {
            let message = format!("`{name}` takes {:?} but `{}` takes {:?}", other.shape, args.models[0], wanted.shape);
            return Err(Failure::new(message).remedy("compare models of the same task"));
        }
        let named = Named { name: name.clone(), inner: engines::of(model, Device::Cpu)? };
        ways.push(Way::all(Box::new(named), Promise::Classes));
    }
    let export = match (&args.onnx, first) {
        (None, _) => None,
        (Some(Some(file)), Opened::Packed(model)) => Some(OnnxRuntime::of_file(file, &dims(model.graph())?)?),
        (Some(Some(file)), Opened::Float(model)) => Some(OnnxRuntime::of_file(file, &dims(&model.graph)?)?),
        (Some(None), Opened::Packed(model)) => Some(OnnxRuntime::of_model(model)?),
        (Some(None), Opened::Float(model)) => Some(OnnxRuntime::of_float(model)?),
    };
    if let Some(onnx) = export {
        ways.push(Way::all(Box::new(onnx), Promise::Classes));
    }
    let loader = datasets::in_order(set, args.batch, context.threads)?;
    let verdict = compare(&mut ways, &loader, &context.out.progress)?;
    datasets::report_broken(loader.dataset(), &context.out.progress);
    let accuracies: Map<String, _> = verdict.engines.iter().map(|e| (e.name.clone(), json!(e.accuracy))).collect();
    let value = json!({
        "agree": verdict.agrees(), "max_abs_diff": verdict.max_abs_diff(), "top1_agreement": verdict.top1_agreement(),
        "accuracies": accuracies, "n": verdict.n, "engines": verdict.engines,
    });
    context.out.result(&value, || text(&verdict))?;
    Ok(if verdict.agrees() { Outcome::Done } else { Outcome::Disagree })
}

/// Multiply-accumulates that the integer reference does in some seconds.
const REFERENCE_MACS: u64 = 4_000_000_000;

/// The three ways to compute a packed model, the fast kernels first. The integer reference, which is what the numbers mean,
/// computes `reference` samples, or as many as take some seconds.
pub fn of_packed(model: &QuantModel, reference: Option<usize>) -> Result<Vec<Way>, Failure> {
    let float_activations = !model.sites().values().any(|(role, _)| *role == bitsmith_graph::Role::Activation);
    let simulated = if float_activations { Promise::Rounding } else { Promise::Classes };
    let macs: u64 = model.graph().macs()?.iter().sum();
    let samples = reference.unwrap_or((REFERENCE_MACS / macs.max(1)).max(1) as usize);
    let mut ways = vec![Way::all(Box::new(Integers::new(model, Kernels::Fast)?), Promise::Bits)];
    if samples > 0 {
        let engine = Box::new(Integers::new(model, Kernels::Reference)?);
        ways.push(Way { engine, promise: Promise::Bits, samples });
    }
    ways.push(Way::all(Box::new(Simulator::new("simulator", &model.to_model()?, Device::Cpu)?), simulated));
    Ok(ways)
}

/// Verifies a packed model on some samples, which may be noise; what commands do that make one.
pub fn packed(
    model: &QuantModel,
    set: Dataset,
    is_noise: bool,
    threads: usize,
    progress: &Progress,
) -> Result<Verdict, Failure> {
    let loader = datasets::in_order(set, 100, threads)?;
    let mut ways = of_packed(model, None)?;
    for way in ways.iter_mut().filter(|way| is_noise && way.promise != Promise::Bits) {
        way.promise = Promise::Shown;
    }
    compare(&mut ways, &loader, progress)
}

/// The comparison as a table with its verdict.
pub fn text(verdict: &Verdict) -> String {
    let mut table = Table::new(&["engine", ">samples", ">accuracy", ">same class", ">largest difference", ""]);
    for (i, e) in verdict.engines.iter().enumerate() {
        table.row([
            e.name.clone(),
            count(e.n as u64),
            e.accuracy.map_or_else(|| "-".to_owned(), percent),
            if i == 0 { String::new() } else { percent(e.top1_agreement) },
            if i == 0 { String::new() } else { format!("{:.2e}", e.max_abs_diff) },
            if i == 0 {
                String::new()
            } else if e.agrees {
                "agrees".to_owned()
            } else {
                "DISAGREES".to_owned()
            },
        ]);
    }
    let samples = count(verdict.n as u64);
    let closing = match verdict.agrees() {
        true => format!("verified on {samples} samples\n"),
        false => format!(
            "NOT verified: on {samples} samples something disagrees beyond the tolerance ({} same classes; see docs/numerics.md)\n",
            percent(TOP1_AGREEMENT)
        ),
    };
    table.render() + &closing
}

/// A runner under the name the user gave it.
struct Named {
    name: String,
    inner: Box<dyn Runner>,
}

impl Runner for Named {
    fn name(&self) -> &str {
        Path::new(&self.name).file_name().and_then(|n| n.to_str()).unwrap_or(&self.name)
    }

    fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure> {
        self.inner.logits(x, batch)
    }
}
