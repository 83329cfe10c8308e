//! From a recipe to a trained model: opens network and data, runs the method, keeps log and checkpoints.

use std::path::Path;

use bitsmith_engine::Device;
use bitsmith_engine::data::{self, Augment, Dataset, Loader, OnBroken, Split};
use bitsmith_graph::Model;
use bitsmith_graph::zoo;
use bitsmith_quant::blocks::budget::Count;
use bitsmith_quant::blocks::widths::Widths;
use bitsmith_quant::passes::allocate::Allocate;
use bitsmith_quant::passes::calibrate::CalibrateActivations;
use bitsmith_quant::passes::ptq::{Ptq, PtqOptions};
use bitsmith_quant::passes::{Pass, PassContext};
use bitsmith_quant::train::Context as Outside;
use bitsmith_quant::train::checkpoint::Store;
use bitsmith_quant::train::data::{Batch, Batches, Data, InMemory};
use bitsmith_quant::train::events::{Bits, EpochEvent, Event as Heard, Silent};
use bitsmith_quant::{Kind, methods};

use crate::budget::Terms;
use crate::commands::Context;
use crate::datasets::{self, Wanted};
use crate::events::{Epoch, Event, Start};
use crate::failure::{Explain, Failure};
use crate::forge::Run;
use crate::interrupt;
use crate::models::{self, BuiltFor};
use crate::progress::Task;
use crate::recipe::{self, ActivationSection, Recipe};
use crate::suggest;

/// Where checkpoints lie inside a run folder.
pub const CHECKPOINTS: &str = "checkpoints";

/// Everything a training needs.
#[derive(Debug)]
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// The float network to start from.
    pub model: Model,
    /// Whether its weights are random.
    pub is_random: bool,
    /// Training samples.
    pub train: Dataset,
    /// Held-out samples.
    pub test: Dataset,
}

impl Job {
    /// Opens what the recipe names.
    pub fn open(recipe: Recipe) -> Result<Self, Failure> {
        check_method(&recipe)?;
        let section = &recipe.model;
        let built_for = BuiltFor { classes: section.classes, image_size: section.image_size, seed: recipe.seed };
        let model = models::open(&section.from, section.weights.as_deref(), &built_for)?.into_float("training")?;
        let is_random = section.weights.is_none() && zoo::names().any(|n| n == section.from);
        let wanted = Wanted::of(&model.graph, model.preprocess.as_ref())?;
        let open = |split, limit| {
            let options = data::Options {
                split,
                hold_out: recipe.data.hold_out,
                limit,
                on_broken: if recipe.data.skip_broken { OnBroken::Skip } else { OnBroken::Fail },
                ..data::Options::default()
            };
            datasets::open(&recipe.data.path, &wanted, None, options, recipe.seed)
        };
        let train = open(Split::Train, recipe.data.limit)?;
        let test = open(Split::Test, recipe.data.limit)?;
        Ok(Self { model, is_random, train, test, recipe })
    }

    /// The event that begins the log.
    pub fn start(&self, context: &Context) -> Result<Event, Failure> {
        let graph = &self.model.graph;
        let layers = self.model.layers()?;
        Ok(Event::Start(Start {
            name: self.recipe.name.clone(),
            model: self.model.name.clone(),
            method: self.recipe.method().to_owned(),
            data: self.train.label().to_owned(),
            samples: (self.train.len(), self.test.len()),
            seed: self.recipe.seed,
            threads: context.threads,
            device: Some(context.device).filter(|&d| d != Device::Cpu).map(|d| d.to_string()),
            target_bits: self.recipe.method.get("target_bits").and_then(toml::Value::as_float).map(|v| v as f32),
            weights: layers.iter().map(|l| l.weights as u64).sum(),
            macs: graph.macs()?.iter().sum(),
            layers: vec![],
            recipe: self.recipe.resolved()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    /// Batches for training.
    pub fn loader(&self, threads: usize) -> Result<Loader, Failure> {
        let section = &self.recipe.data;
        let augment =
            Augment { pad_crop: section.pad_crop, flip: section.flip, cutout: section.cutout, ..Augment::none() };
        datasets::shuffled(self.train.clone(), section.batch, self.recipe.seed, augment, threads)
    }
}

/// How a training ended.
#[derive(Debug)]
pub enum Ended {
    /// Well.
    Trained(Box<Model>),
    /// The user stopped it; a checkpoint is there.
    Stopped,
}

/// Trains, writing events and checkpoints into the run's folder. `title` is what progress calls it.
pub fn train(job: &Job, run: &mut Run, resume: bool, title: &str, context: &Context) -> Result<Ended, Failure> {
    let recipe = &job.recipe;
    let loader = job.loader(context.threads)?;
    let test = datasets::in_order(job.test.clone(), 250, context.threads)?;
    let model = calibrated(job, context)?;
    let store = Store::open(&run.folder.join(CHECKPOINTS))?;
    let (method, mut options) = (methods::find(recipe.method())?, recipe.method_options()?);
    let mut costs = None;
    if let Some(budget) = recipe.budget()? {
        let terms = budget.terms(&model, &run.folder, resume, context)?;
        options["target_bits"] = terms.target.into();
        options["weighting"] = serde_json::to_value(terms.weighting)?;
        costs = terms.costs;
    }
    let mut listener = Listener { run, task: None, title, failure: None, context };
    let ended = {
        let mut hear = |event: &Heard| listener.hear(event);
        let mut outside = Outside {
            train: &Source(&loader),
            test: Some(&Source(&test)),
            sink: &mut hear,
            store: Some(&store),
            resume,
            cancel: interrupt::flag(),
            device: context.device,
            costs: costs.as_ref(),
        };
        (method.train)(model, &options, &recipe.train, &mut outside)
    };
    if let Some(failure) = listener.failure {
        return Err(failure);
    }
    datasets::report_broken(loader.dataset(), &context.out.progress);
    match ended {
        Ok(outcome) => Ok(Ended::Trained(Box::new(outcome.model))),
        Err(error) if error.kind == Kind::Cancelled => Ok(Ended::Stopped),
        Err(error) => {
            let code = if error.kind == Kind::Option { 2 } else { 1 };
            Err(Failure::from(error).with_code(code))
        }
    }
}

/// The model with calibrated activation sites, where the recipe wants activations rounded.
fn calibrated(job: &Job, context: &Context) -> Result<Model, Failure> {
    let section = &job.recipe.activations;
    if section.bits == 32 {
        return Ok(job.model.clone());
    }
    calibrate(job.model.clone(), section, job.is_random, &calibration(&job.train, section.calibration, context)?)
}

/// The model with activation sites as a recipe wants them, calibrated on these batches.
pub fn calibrate(
    model: Model,
    section: &ActivationSection,
    is_random: bool,
    batches: &InMemory,
) -> Result<Model, Failure> {
    let pass = CalibrateActivations {
        bits: section.bits,
        input_bits: section.input_bits,
        attention_bits: section.attention_bits,
        range: section.range,
        symmetric: true,
        batches: usize::MAX,
        live: is_random,
    };
    Ok(pass.run(model, &mut PassContext { calibration: batches, sink: &mut Silent })?)
}

/// Some training samples in memory, spread over the classes, without augmentation.
pub fn calibration(set: &Dataset, samples: usize, context: &Context) -> Result<InMemory, Failure> {
    let set = set.subset(&set.spread(samples.max(1)))?;
    let loader = datasets::in_order(set, 64, context.threads)?;
    Ok(InMemory::take(&Source(&loader), usize::MAX)?)
}

/// Quantizes without training.
pub fn ptq(model: &Model, calibration: &InMemory, options: PtqOptions) -> Result<Model, Failure> {
    Ok(Ptq { options }.run(model.clone(), &mut PassContext { calibration, sink: &mut Silent })?)
}

/// The same with widths that differ, to meet `terms`. `watch` is told how many schemes were measured.
pub fn allocate(
    model: &Model,
    calibration: &InMemory,
    options: PtqOptions,
    terms: &Terms,
    mut watch: impl FnMut(&Heard),
) -> Result<Model, Failure> {
    let widths = Widths {
        target_bits: terms.target,
        edge_bits: options.edge_bits,
        floor_bits: 2,
        most: 7,
        weighting: terms.weighting,
        count: Count::Stored,
    };
    let pass = Allocate { ptq: Ptq { options }, widths, costs: terms.costs.clone() };
    Ok(pass.run(model.clone(), &mut PassContext { calibration, sink: &mut watch })?)
}

/// Refuses methods that do not exist and options that a method does not take.
pub fn check_method(recipe: &Recipe) -> Result<(), Failure> {
    let name = recipe.method();
    let names: Vec<&str> = methods::METHODS.iter().map(|m| m.name).collect();
    let Some(method) = methods::METHODS.iter().find(|m| m.name == name) else {
        return Err(Failure::usage(format!("there is no method `{name}`")).remedy(suggest::remedy(name, &names)));
    };
    if recipe.budget.is_some() && !(method.options)().iter().any(|o| o.name == "target_bits") {
        let searching = methods::METHODS.iter().filter(|m| (m.options)().iter().any(|o| o.name == "target_bits"));
        let names: Vec<&str> = searching.map(|m| m.name).collect();
        return Err(Failure::usage(format!("`{name}` searches no widths, so it cannot meet a budget"))
            .remedy(format!("choose one of {}", names.join(", "))));
    }
    let checked = recipe::explain_options((method.check)(&recipe.method_options()?));
    checked.map_err(|failure| failure.context(format!("method {name} cannot be used")).with_code(2))
}

/// The events that a checkpoint has seen: all up to the end of its last whole epoch.
pub fn events_up_to(events: Vec<Event>, epochs: usize) -> Vec<Event> {
    let is_later = |event: &Event| match event {
        Event::Epoch(epoch) => epoch.epoch > epochs,
        Event::Variant(_) | Event::Layers { .. } | Event::Verify(_) | Event::Finish { .. } => true,
        Event::Start(_) | Event::Note { .. } => false,
    };
    let keep = events.iter().position(is_later).unwrap_or(events.len());
    events.into_iter().take(keep).collect()
}

/// A loader as the training loop reads it.
pub struct Source<'a>(pub &'a Loader);

impl Data for Source<'_> {
    fn batches(&self) -> usize {
        self.0.batches()
    }

    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_> {
        Box::new(self.0.epoch_from(epoch, first).map(|batch| match batch {
            Ok(batch) => {
                let (labels, number) = (batch.labels.clone(), batch.number);
                Ok(Batch { x: batch.into_x(), labels, number })
            }
            Err(error) => Err(bitsmith_quant::Error::new(Kind::Data, error.to_string()).caused_by(error)),
        }))
    }
}

/// Turns what the loop says into log lines and progress.
struct Listener<'a> {
    run: &'a mut Run,
    task: Option<Task>,
    title: &'a str,
    failure: Option<Failure>,
    context: &'a Context,
}

impl Listener<'_> {
    fn hear(&mut self, event: &Heard) {
        if let Err(failure) = self.record(event) {
            // The loop cannot be failed from here, but it can be stopped; the first failure is the one to report.
            self.failure.get_or_insert(failure);
            interrupt::flag().store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn record(&mut self, event: &Heard) -> Result<(), Failure> {
        let progress = &self.context.out.progress;
        match event {
            Heard::Started { bits, .. } => self.name_layers(bits),
            Heard::Resumed { epoch, batch } => {
                self.run.rewind(events_up_to(self.run.events.clone(), *epoch))?;
                progress.say(&format!("going on in epoch {} after {batch} batches", epoch + 1));
                Ok(())
            }
            Heard::Step(step) => {
                let task = self.task.get_or_insert_with(|| progress.task(self.title, step.steps));
                let (epoch, accuracy) = (step.epoch + 1, 100.0 * step.accuracy);
                let message = format!(
                    "epoch {epoch} {}  loss {:.3}  accuracy {accuracy:.1} %  {:.0}/s",
                    step.phase, step.loss, step.images_per_s
                );
                task.set(step.step, &message);
                Ok(())
            }
            Heard::Epoch(epoch) => {
                let epoch = converted(epoch);
                progress.detail(&line(&epoch));
                self.run.push(Event::Epoch(epoch))
            }
            // Said after every epoch: for those who watch, not for the record.
            Heard::Trial { .. } => Ok(()),
            Heard::Note { text } if text.starts_with("temperature ") => {
                progress.detail(text);
                Ok(())
            }
            Heard::Note { text } => {
                progress.detail(text);
                self.run.push(Event::Note { text: text.clone() })
            }
            Heard::Finished { bits, .. } => {
                self.task = None;
                self.name_layers(bits)
            }
        }
    }

    /// Layer names come with the first widths; the log's first event carries them.
    fn name_layers(&mut self, bits: &[Bits]) -> Result<(), Failure> {
        let names: Vec<String> = bits.iter().map(|b| short(&b.name)).collect();
        let mut events = self.run.events.clone();
        match events.first_mut() {
            Some(Event::Start(start)) if start.layers != names => start.layers = names,
            _ => return Ok(()),
        }
        self.run.rewind(events)
    }
}

fn converted(e: &EpochEvent) -> Epoch {
    Epoch {
        epoch: e.epoch + 1,
        phase: e.phase.to_owned(),
        train_loss: e.loss,
        train_accuracy: e.accuracy,
        accuracy: e.hard_accuracy.or(e.test_accuracy),
        soft_accuracy: e.test_accuracy.filter(|_| e.hard_accuracy.is_some()),
        loss: e.test_loss,
        learning_rate: e.learning_rate,
        mean_bits: Some(e.mean_bits).filter(|&bits| bits < 32.0),
        layer_bits: if e.mean_bits < 32.0 { e.bits.iter().map(|b| b.stored as f32).collect() } else { vec![] },
        images_per_s: e.images_per_s,
    }
}

fn line(e: &Epoch) -> String {
    let held_out = e.accuracy.map_or(String::new(), |a| format!("  held-out {:.2} %", 100.0 * a));
    let bits = e.mean_bits.map_or(String::new(), |b| format!("  {b:.2} bits"));
    let (loss, accuracy) = (e.train_loss, 100.0 * e.train_accuracy);
    format!(
        "epoch {:>3} {:<9} loss {loss:.4}  training {accuracy:.2} %{held_out}{bits}  {:.0}/s",
        e.epoch, e.phase, e.images_per_s
    )
}

/// A layer's name from its weight's.
fn short(name: &str) -> String {
    name.trim_end_matches(".weight").to_owned()
}

/// Whether a run's folder holds a checkpoint to go on from.
pub fn has_checkpoint(folder: &Path) -> Result<bool, Failure> {
    let path = folder.join(CHECKPOINTS);
    Ok(path.is_dir() && Store::open(&path).context(|| format!("cannot open `{}`", path.display()))?.has_last())
}

#[cfg(test)]
mod tests {
    use super::events_up_to;
    use crate::events::{Epoch, Event};

    #[test]
    fn a_resumed_log_forgets_what_its_checkpoint_has_not_seen() {
        let epoch = |n| Event::Epoch(Epoch { epoch: n, ..Epoch::default() });
        let note = Event::Note { text: "x".to_owned() };
        let events = vec![epoch(1), note.clone(), epoch(2), epoch(3), note.clone()];
        assert_eq!(events_up_to(events.clone(), 2), vec![epoch(1), note, epoch(2)]);
        assert_eq!(events_up_to(events.clone(), 9).len(), 5);
    }
}
