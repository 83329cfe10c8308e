//! `bitsmith bench train`: the time of a training step, forward, backward and optimiser, of any method.

use bitsmith_engine::profile;
use bitsmith_graph::Model;
use bitsmith_graph::zoo;
use bitsmith_quant::blocks::range::Range;
use bitsmith_quant::methods;
use bitsmith_quant::train::data::{Batch, InMemory};

use super::{Args, WARM_UP, measure};
use crate::commands::Context;
use crate::engines::noise;
use crate::failure::Failure;
use crate::models::{self, BuiltFor};
use crate::recipe::{DataSection, ModelSection, Recipe, explain_options};
use crate::suggest;
use crate::table::Table;
use crate::training;

/// The radius that `saq` perturbs by; any will do for timing.
const RHO: f32 = 0.4;

/// Milliseconds of each step, and where they went if that was asked for.
pub fn run(args: &Args, context: &Context, batch: usize) -> Result<(Vec<f64>, Option<String>), Failure> {
    let recipe = recipe(args, context)?;
    let model = network(args, &recipe)?;
    let shapes = model.graph.shapes(1)?;
    let elements = |id: bitsmith_graph::ValueId| shapes[id.index()].iter().product::<usize>();
    let sample = model.graph.inputs().first().map_or(0, |input| elements(input.value));
    let classes = model.graph.outputs().first().map_or(1, |&id| elements(id)).max(1) as u32;
    let data = Batch {
        x: noise(batch.saturating_mul(sample)),
        labels: (0..batch as u32).map(|i| i % classes).collect(),
        number: 0,
    };
    let model = calibrated(model, &recipe, &data, sample)?;
    let method = methods::find(recipe.method())?;
    let (mut times, mut failure) = (vec![], None);
    let mut table = None;
    let ran = (method.steps)(
        model,
        &recipe.method_options()?,
        &recipe.train,
        context.device,
        &data,
        args.phase,
        &mut |step| {
            if args.profile {
                profile::start();
            }
            match measure(args, context, || Ok(step()?)) {
                Ok(measured) => {
                    // The steps that warmed up are in the profile as well.
                    table = args.profile.then(|| profiled(measured.len() + WARM_UP));
                    times = measured;
                }
                Err(error) => failure = Some(error),
            }
            Ok(())
        },
    );
    explain_options(ran)?;
    failure.map_or(Ok((times, table)), Err)
}

/// The flags as a recipe, so that `--set` reaches the same keys as in training.
fn recipe(args: &Args, context: &Context) -> Result<Recipe, Failure> {
    let names: Vec<&str> = methods::METHODS.iter().map(|m| m.name).chain(["saq"]).collect();
    if !names.contains(&args.method.as_str()) {
        let message = format!("there is no method `{}`", args.method);
        return Err(Failure::usage(message).remedy(suggest::remedy(&args.method, &names)));
    }
    let mut recipe = Recipe {
        seed: context.seed.unwrap_or(1),
        model: ModelSection { from: args.model.clone(), ..ModelSection::default() },
        data: DataSection { path: "random".into(), ..DataSection::default() },
        ..Recipe::default()
    };
    recipe.train.learning_rate = 0.01;
    recipe.train.epochs = 100;
    recipe.activations.bits = args.activation_bits;
    recipe.activations.range = Range::MinMax;
    let mut set = |key: &str, value: toml::Value| drop(recipe.method.insert(key.to_owned(), value));
    let is_saq = args.method == "saq";
    set("name", if is_saq { "lsq" } else { args.method.as_str() }.into());
    match (args.method.as_str(), args.weight_bits) {
        ("lsq" | "saq", Some(bits)) => set("weight_bits", i64::from(bits).into()),
        ("csq", bits) => {
            // As many planes as the width has beside the sign, and a target that closes none of them.
            let planes = bits.map_or(7, |bits| bits.saturating_sub(1));
            set("planes", i64::from(planes).into());
            set("target_bits", (f64::from(planes) + 1.0).into());
            set("edge_bits", 0.into());
        }
        _ => {}
    }
    if is_saq {
        recipe.train.sharpness.rho = RHO;
    }
    Recipe::parse(&recipe.resolved()?, &args.set)
}

/// A built-in network with random weights, or a model file.
fn network(args: &Args, recipe: &Recipe) -> Result<Model, Failure> {
    let names: Vec<&str> = zoo::names().collect();
    let is_file = std::path::Path::new(&args.model).exists();
    if !is_file && !names.contains(&args.model.as_str()) {
        let message = format!("there is no built-in network `{}`", args.model);
        return Err(Failure::usage(message).remedy(suggest::remedy(&args.model, &names)));
    }
    let built_for = BuiltFor { image_size: args.image_size, seed: recipe.seed, ..BuiltFor::default() };
    models::open(&args.model, None, &built_for)?.into_float("training")
}

fn calibrated(model: Model, recipe: &Recipe, data: &Batch, sample: usize) -> Result<Model, Failure> {
    if recipe.activations.bits == 32 {
        return Ok(model);
    }
    let few = data.labels.len().min(8);
    let first = Batch { x: data.x[..few * sample].to_vec(), labels: data.labels[..few].to_vec(), number: 0 };
    let calibration = InMemory { batches: vec![first] };
    training::calibrate(model, &recipe.activations, true, &calibration)
}

/// What the profile of `steps` steps says: milliseconds per step by kind of operator, longest first.
fn profiled(steps: usize) -> String {
    let mut entries: Vec<_> = profile::stop().into_iter().collect();
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.time));
    let mut table = Table::new(&["operator", ">ms per step", ">calls"]);
    for (name, entry) in entries {
        let ms = entry.time.as_secs_f64() * 1e3 / steps as f64;
        table.row(vec![name.to_owned(), format!("{ms:.2}"), format!("{:.0}", entry.calls as f64 / steps as f64)]);
    }
    table.render()
}
