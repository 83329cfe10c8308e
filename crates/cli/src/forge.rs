//! What every command that makes a model does at its end: freeze, pack, export, measure, prove, draw; all into a run folder.
//!
//! ```text
//! recipe.toml        the resolved recipe (train)
//! events.jsonl       what happened
//! checkpoint         where training stands (train)
//! model.bitsmith     the packed model
//! model.onnx         the same for others
//! report.html        the page about it
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitsmith_engine::data::Dataset;
use bitsmith_formats::onnx::Target;
use bitsmith_graph::{Model, QuantModel, freeze};
use bitsmith_quant::passes::ptq::PtqOptions;
use bitsmith_runtime::Kernels;

use crate::budget::{Budget, Spent};
use crate::commands::{Context, verify};
use crate::datasets;
use crate::engines::{self, Evaluation, Integers, Simulator};
use crate::events::{Event, EventLog, LayerRow, Variant, Verify};
use crate::failure::{Explain, Failure};
use crate::report::{self, ReportData};
use crate::{files, layers, system, training};

/// The packed model's file name.
pub const PACKED: &str = "model.bitsmith";
/// The ONNX file's name.
pub const ONNX: &str = "model.onnx";

/// A run's folder and everything that happened in it so far.
#[derive(Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// Events, as in the log.
    pub events: Vec<Event>,
    log: EventLog,
}

impl Run {
    /// Makes the folder where needed and a log that starts with these events.
    pub fn begin(folder: &Path, events: Vec<Event>) -> Result<Self, Failure> {
        files::create_folder(folder)?;
        let log = EventLog::create(folder, &events)?;
        Ok(Self { folder: folder.to_owned(), events, log })
    }

    /// Something happened.
    pub fn push(&mut self, event: Event) -> Result<(), Failure> {
        self.log.push(&event)?;
        self.events.push(event);
        Ok(())
    }

    /// Replaces the log: a run that resumes keeps only what its checkpoint has seen.
    pub fn rewind(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        self.log = EventLog::create(&self.folder, &events)?;
        self.events = events;
        Ok(())
    }

    /// The report as things stand.
    pub fn write_report(&self) -> Result<PathBuf, Failure> {
        let path = self.folder.join(report::FILE_NAME);
        files::write(&path, report::render(&ReportData::from_events(&self.events)).as_bytes())?;
        Ok(path)
    }
}

/// What the end of a run needs besides the model.
pub struct Finish<'a> {
    /// Held-out samples, with labels or without.
    pub test: &'a Dataset,
    /// Samples that the proof compares; 0 for all.
    pub verify_samples: usize,
    /// Whether to write an ONNX file.
    pub onnx: bool,
    /// What the version is called in the report.
    pub name: &'a str,
    /// What the model may cost.
    pub budget: Option<Budget>,
    /// Whether samples are noise, on which only the kernels are held to the reference.
    pub is_noise: bool,
}

/// A forged model and its figures.
#[derive(Debug, Clone)]
pub struct Forged {
    /// Accuracy of the packed runtime; `None` without labels.
    pub accuracy: Option<f64>,
    /// Bytes of the packed file.
    pub bytes: u64,
    /// Mean stored bits per weight.
    pub mean_bits: f64,
    /// The layers.
    pub layers: Vec<LayerRow>,
    /// The proof.
    pub verify: Verify,
    /// What became of the budget, where there was one.
    pub spent: Option<Spent>,
}

/// Freezes a trained model and does the rest.
pub fn forge(model: Model, finish: &Finish<'_>, run: &mut Run, context: &Context) -> Result<Forged, Failure> {
    let frozen = freeze(model).context(|| "cannot turn the model into integers".to_owned())?;
    let path = run.folder.join(PACKED);
    let sizes =
        bitsmith_runtime::packed::write(&frozen, &path).context(|| format!("cannot write `{}`", path.display()))?;
    if finish.onnx {
        let path = run.folder.join(ONNX);
        match bitsmith_formats::onnx::write_qdq(&frozen, &path, Target::default()) {
            Ok(_) => {}
            Err(error) if error.kind == bitsmith_formats::Kind::Unsupported => {
                run.push(Event::Note { text: format!("no ONNX file: {error}") })?;
            }
            Err(error) => return Err(Failure::from(error).context(format!("cannot write `{}`", path.display()))),
        }
    }
    let rows = layers::of_packed(&frozen)?;
    let mean_bits = layers::mean_stored_bits(&rows);
    let bytes = sizes.total as u64;
    let accuracy = match finish.test.is_labelled() {
        true => Some(of_packed(&frozen, finish.test, context)?.accuracy),
        false => None,
    };
    if let Some(accuracy) = accuracy {
        run.push(Event::Variant(Variant { name: finish.name.to_owned(), accuracy, bytes, mean_bits }))?;
    }
    run.push(Event::Layers { layers: rows.clone() })?;
    let spent = finish.budget.map(|budget| budget.spent(&frozen, &rows, bytes)).transpose()?;
    if let Some(spent) = &spent {
        run.push(Event::Note { text: spent.to_string() })?;
    }
    let set = match finish.verify_samples {
        n if n > 0 && n < finish.test.len() => finish.test.subset(&finish.test.spread(n))?,
        _ => finish.test.clone(),
    };
    let verify = verify::packed(&frozen, set, finish.is_noise, context.threads, &context.out.progress)?.event();
    run.push(Event::Verify(verify.clone()))?;
    Ok(Forged { accuracy, bytes, mean_bits, layers: rows, verify, spent })
}

/// The event that ends a run's log.
pub fn finished(began: Instant) -> Event {
    let peak_rss_mb = system::peak_memory_bytes().map(|bytes| bytes as f64 / 1e6);
    Event::Finish { seconds: began.elapsed().as_secs_f64(), peak_rss_mb }
}

/// Accuracy of a packed model by the runtime.
pub fn of_packed(model: &QuantModel, test: &Dataset, context: &Context) -> Result<Evaluation, Failure> {
    let loader = datasets::in_order(test.clone(), 250, context.threads)?;
    engines::evaluate(&mut Integers::new(model, Kernels::Fast)?, &loader, &context.out.progress)
}

/// Accuracy of a float model.
pub fn of_float(model: &Model, test: &Dataset, context: &Context) -> Result<Evaluation, Failure> {
    let loader = datasets::in_order(test.clone(), 250, context.threads)?;
    engines::evaluate(&mut Simulator::new("float", model, context.device)?, &loader, &context.out.progress)
}

/// Bytes of a model's float parameters: what a float file holds besides its header.
pub fn float_bytes(model: &Model) -> u64 {
    model
        .graph
        .values()
        .iter()
        .filter_map(|v| v.constant.as_ref())
        .filter_map(|t| t.as_f32())
        .map(|v| 4 * v.len() as u64)
        .sum()
}

/// A uniform width without training, measured: what learned widths have to beat.
pub fn uniform(
    model: &Model,
    train: &Dataset,
    test: &Dataset,
    options: PtqOptions,
    context: &Context,
) -> Result<Variant, Failure> {
    let bits = options.weight_bits;
    let calibration = training::calibration(train, 512, context)?;
    let frozen = freeze(training::ptq(model, &calibration, options)?)?;
    let bytes = bitsmith_runtime::packed::sizes(&frozen)?.total as u64;
    let accuracy = of_packed(&frozen, test, context)?.accuracy;
    Ok(Variant {
        name: format!("uniform {bits} bits, untrained"),
        accuracy,
        bytes,
        mean_bits: frozen.mean_weight_bits()?,
    })
}
