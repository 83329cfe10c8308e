//! `bitsmith run MODEL`: predictions for images, or any tensors in and out as `.npy` files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitsmith_engine::data::{self, Options};
use bitsmith_formats::npy;
use bitsmith_graph::{Graph, Tensor};
use bitsmith_runtime::{Session, SessionOptions};
use serde_json::{Value, json};

use super::{Context, Outcome};
use crate::datasets::{self, Wanted};
use crate::engines;
use crate::failure::{Explain, Failure};
use crate::files;
use crate::models::{ModelArgs, Opened};
use crate::suggest;
use crate::table::Table;

/// Predict classes of images, or compute any tensors
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith run model.bitsmith cat.jpg dog.png
  bitsmith run resnet20 --weights cifar10_resnet20.safetensors ship.png --top 3
  bitsmith run model.onnx --input x=batch.npy --output-dir out    (writes out/NAME.npy for each output)

JSON for images: {predictions: [{input, class, name, probability, top: [{class, name, probability}]}]};
for tensors: {outputs: [{name, shape, file}]}.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Images to classify
    #[arg(value_name = "IMAGE", conflicts_with = "input")]
    images: Vec<PathBuf>,
    /// A tensor to feed, float32 or integers; once for each input of the model
    #[arg(long, value_name = "NAME=FILE.npy", requires = "output_dir")]
    input: Vec<String>,
    /// Where to write the outputs
    #[arg(long, value_name = "DIR", requires = "input")]
    output_dir: Option<PathBuf>,
    /// How many classes to show for each image
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// How pixels become input, overriding the model's own: cifar, imagenet, mnist, digits, zero-one, raw-255
    #[arg(long, value_name = "PRESET")]
    preprocess: Option<String>,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    if args.images.is_empty() && args.input.is_empty() {
        return Err(Failure::usage("there is nothing to run the model on")
            .remedy("name images, or tensors with --input NAME=FILE.npy --output-dir DIR"));
    }
    let opened = args.model.open(context.seed.unwrap_or(1))?;
    match &args.output_dir {
        Some(folder) => tensors(args, &opened, folder, context)?,
        None => images(args, &opened, context)?,
    }
    Ok(Outcome::Done)
}

fn images(args: &Args, opened: &Opened, context: &Context) -> Result<(), Failure> {
    let wanted: Wanted = super::eval::wanted(opened)?;
    let set = data::open_images(&args.images, &Options { unlabelled: true, ..Options::default() })?;
    let set = datasets::fit(set, &wanted, args.preprocess.as_deref())?;
    let loader = datasets::in_order(set, 64, context.threads)?;
    let names: &[String] = match opened {
        Opened::Float(model) => &model.classes,
        Opened::Packed(model) => model.classes(),
    };
    let mut runner = engines::of(opened, context.device)?;
    let mut predictions = Vec::new();
    for batch in loader.epoch(0) {
        let batch = batch?;
        let logits = runner.logits(&batch.x, batch.n())?;
        let classes = (logits.len() / batch.n().max(1)).max(1);
        for (row, &index) in logits.chunks_exact(classes).zip(&batch.indices) {
            let probabilities = softmax(row);
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
            let entry =
                |class: usize| json!({ "class": class, "name": names.get(class), "probability": probabilities[class] });
            let mut prediction = entry(order[0]);
            prediction["input"] = loader.dataset().sample_name(index as usize).into();
            prediction["top"] = order.iter().take(args.top).map(|&class| entry(class)).collect();
            predictions.push(prediction);
        }
    }
    let table = || {
        let mut table = Table::new(&["image", "class", ">probability"]);
        for prediction in &predictions {
            let image = prediction["input"].as_str().unwrap_or_default();
            for (rank, entry) in prediction["top"].as_array().into_iter().flatten().enumerate() {
                let class = &entry["class"];
                let name = entry["name"].as_str().map_or_else(|| class.to_string(), |name| format!("{class} {name}"));
                let probability = entry["probability"].as_f64().unwrap_or(0.0);
                table.row([
                    if rank == 0 { image.to_owned() } else { String::new() },
                    name,
                    format!("{:.2} %", 100.0 * probability),
                ]);
            }
        }
        table.render()
    };
    context.out.result(&json!({ "predictions": predictions }), table)
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|&z| f64::from(z - peak).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

fn tensors(args: &Args, opened: &Opened, folder: &Path, context: &Context) -> Result<(), Failure> {
    let graph = match opened {
        Opened::Float(model) => &model.graph,
        Opened::Packed(model) => model.graph(),
    };
    let inputs = read_inputs(args, graph)?;
    let session = match opened {
        Opened::Float(model) => Session::from_model(model, SessionOptions::default())?,
        Opened::Packed(model) => Session::new(model, SessionOptions::default())?,
    };
    let outputs = session.run_named(&inputs)?;
    files::create_folder(folder)?;
    let mut list: Vec<Value> = Vec::new();
    for (name, tensor) in &outputs {
        // A name may contain anything, `/` and `..` too; the file stays in the folder.
        let safe: String =
            name.chars().map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' }).collect();
        let path = folder.join(format!("{safe}.npy"));
        npy::write(&path, tensor).context(|| format!("cannot write `{}`", path.display()))?;
        list.push(json!({ "name": name, "shape": tensor.shape(), "file": path }));
    }
    context.out.result(&json!({ "outputs": list }), || {
        outputs
            .iter()
            .zip(&list)
            .map(|((name, t), entry)| format!("{name} {:?} → {}\n", t.shape(), entry["file"]))
            .collect()
    })
}

/// Reads every input of the graph, by name.
fn read_inputs(args: &Args, graph: &Graph) -> Result<BTreeMap<String, Tensor>, Failure> {
    let names: Vec<&str> = graph.inputs().iter().map(|i| graph.value(i.value).name.as_str()).collect();
    let mut inputs = BTreeMap::new();
    for text in &args.input {
        let (name, file) = text.split_once('=').ok_or_else(|| {
            Failure::usage(format!("`--input {text}` is not of the form NAME=FILE.npy"))
                .remedy("for example --input x=batch.npy")
        })?;
        if !names.contains(&name) {
            return Err(
                Failure::usage(format!("the model has no input `{name}`")).remedy(suggest::remedy(name, &names))
            );
        }
        let tensor = npy::read(Path::new(file)).context(|| format!("cannot read `{file}`"))?;
        if inputs.insert(name.to_owned(), tensor).is_some() {
            return Err(Failure::usage(format!("input `{name}` is given twice")).remedy("give each input once"));
        }
    }
    match names.iter().find(|name| !inputs.contains_key(**name)) {
        Some(name) => {
            Err(Failure::usage(format!("input `{name}` is missing")).remedy(format!("add --input {name}=FILE.npy")))
        }
        None => Ok(inputs),
    }
}
