//! Trains a built-in network by a method and prints what happens: the training loop without the command line around it.
//!
//! ```text
//! cargo run --release -p bitsmith-quant --example learn_bits -- '{"model": "cnn", "data": "digits", "method": "csq",
//!     "options": {"target_bits": 2.5}, "train": {"epochs": 20}}'
//! ```
//!
//! Keys besides these: `weights` (a safetensors file), `batch`, `limit`, `float_epochs` (train in float first), `activation_bits`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bitsmith_engine::Device;
use bitsmith_engine::data::{Augment, Loader, LoaderOptions, Options as DataOptions, open};
use bitsmith_graph::Model;
use bitsmith_graph::zoo::{ZooOptions, build};
use bitsmith_quant::passes::calibrate::CalibrateActivations;
use bitsmith_quant::train::checkpoint::Store;
use bitsmith_quant::train::data::InMemory;
use bitsmith_quant::train::events::{Event, Silent};
use bitsmith_quant::{Context, Options, Pass, PassContext, TrainOptions, methods};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let recipe: Value = serde_json::from_str(&std::env::args().nth(1).unwrap_or_else(|| "{}".to_owned()))?;
    let text = |key: &str, default: &str| recipe[key].as_str().unwrap_or(default).to_owned();
    let mut model = build(&text("model", "cnn"), &ZooOptions::default())?;
    if let Some(path) = recipe["weights"].as_str() {
        load(&mut model, path)?;
    }
    let source = text("data", "digits");
    let limit = recipe["limit"].as_u64().map(|n| n as usize);
    let augment = if source == "digits" { Augment::digits() } else { Augment::cifar() };
    let batch = recipe["batch"].as_u64().unwrap_or(128) as usize;
    let set = open(&source, &DataOptions { limit, ..DataOptions::train() })?;
    let train = Loader::new(Arc::new(set), LoaderOptions::training(batch, 1, augment))?;
    let held_out = recipe["test_limit"].as_u64().map(|n| n as usize);
    let set = open(&source, &DataOptions { limit: held_out, ..DataOptions::test() })?;
    let test = Loader::new(Arc::new(set), LoaderOptions::evaluation(250))?;
    let cancel = AtomicBool::new(false);
    let started = std::time::Instant::now();
    let mut print = |event: &Event| match event {
        Event::Epoch(e) => println!(
            "{:7.1} s  {} {}: rate {:.4} loss {:.4} train {:.2} % test {:.2} % hard {:.2} %  {:.3} bits  {:.0} images/s",
            started.elapsed().as_secs_f64(),
            e.phase,
            e.epoch + 1,
            e.learning_rate,
            e.loss,
            100.0 * e.accuracy,
            100.0 * e.test_accuracy.unwrap_or(f64::NAN),
            100.0 * e.hard_accuracy.unwrap_or(f64::NAN),
            e.mean_bits,
            e.images_per_s,
        ),
        Event::Note { text } => println!("    {text}"),
        Event::Finished { accuracy, mean_bits, .. } => {
            println!("final: {:.2} % at {mean_bits:.3} stored bits", 100.0 * accuracy.unwrap_or(f64::NAN));
        }
        _ => {}
    };
    let float_epochs = recipe["float_epochs"].as_u64().unwrap_or(0) as usize;
    if float_epochs > 0 {
        let options =
            TrainOptions { epochs: float_epochs, learning_rate: 0.05, weight_decay: 5e-4, ..TrainOptions::default() };
        let mut ctx = Context {
            train: &train,
            test: Some(&test),
            sink: &mut print,
            store: None,
            resume: false,
            cancel: &cancel,
            device: Device::Cpu,
            costs: None,
        };
        model = (methods::find("float")?.train)(model, &json!({}), &options, &mut ctx)?.model;
    }
    if let Some(bits) = recipe["activation_bits"].as_u64() {
        let calibration = InMemory::take(&train, 8)?;
        let pass = CalibrateActivations { bits: bits as u8, ..CalibrateActivations::default() };
        model = pass.run(model, &mut PassContext { calibration: &calibration, sink: &mut Silent })?;
    }
    let store = match recipe["checkpoints"].as_str() {
        Some(folder) => Some(Store::open(folder.as_ref())?),
        None => None,
    };
    let options = TrainOptions::from_json(&recipe["train"])?;
    let mut ctx = Context {
        train: &train,
        test: Some(&test),
        sink: &mut print,
        store: store.as_ref(),
        resume: true,
        cancel: &cancel,
        device: Device::Cpu,
        costs: None,
    };
    let method = methods::find(&text("method", "csq"))?;
    let outcome = (method.train)(model, &recipe["options"], &options, &mut ctx)?;
    for layer in &outcome.bits {
        println!("{:<32} {:?} {:>8} weights, {} bits", layer.name, layer.part, layer.weights, layer.stored);
    }
    if method.name != "float" {
        let frozen = bitsmith_graph::freeze(outcome.model)?;
        println!("frozen: {:.3} mean stored bits", frozen.mean_weight_bits()?);
    }
    Ok(())
}

/// Reads the tensors of a safetensors file whose names the model's constants have.
fn load(model: &mut Model, path: &str) -> Result<(), Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("no safetensors file")?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or("truncated")?;
    let header: Value = serde_json::from_slice(header)?;
    for id in model.graph.value_ids().collect::<Vec<_>>() {
        let name = model.graph.value(id).name.clone();
        let (Some(entry), Some(target)) = (header.get(&name), model.graph.constant_f32_mut(id)) else { continue };
        let at = |i: usize| entry["data_offsets"][i].as_u64().map(|n| n as usize).ok_or("no offset");
        let bytes = data.get(at(0)?..at(1)?).ok_or("truncated")?;
        for (x, b) in target.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*b);
        }
    }
    Ok(())
}
