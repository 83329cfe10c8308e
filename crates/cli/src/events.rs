//! The event log of a run: one JSON object a line, appended as things happen, read back by `report` and `--resume`.
//!
//! A line is written whole and flushed, so a killed run leaves at most one torn line at the end, which readers drop.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Explain, Failure};

/// The log's file name inside a run folder.
pub const FILE_NAME: &str = "events.jsonl";

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run began.
    Start(Start),
    /// An epoch ended.
    Epoch(Epoch),
    /// Something worth knowing, in words.
    Note {
        /// One sentence.
        text: String,
    },
    /// A version of the model was measured.
    Variant(Variant),
    /// The layers of the final model.
    Layers {
        /// In execution order.
        layers: Vec<LayerRow>,
    },
    /// The final model was compared with its simulation.
    Verify(Verify),
    /// The run ended well.
    Finish {
        /// Seconds since the start, pauses excluded.
        seconds: f64,
        /// Most memory that the program held, in MB, where the system tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peak_rss_mb: Option<f64>,
    },
}

/// What a run is about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Start {
    /// The run's name.
    pub name: String,
    /// The network.
    pub model: String,
    /// `csq`, `lsq`, `ptq`, `float`.
    pub method: String,
    /// The data set.
    pub data: String,
    /// Training samples and held-out samples.
    pub samples: (usize, usize),
    /// Seed of everything random.
    pub seed: u64,
    /// Threads; the same number gives the same bits.
    pub threads: usize,
    /// Where the network ran, if not on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Mean stored bits asked for.
    pub target_bits: Option<f32>,
    /// Weights of the network.
    pub weights: u64,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
    /// Names of the layers in the order of [`Epoch::layer_bits`].
    pub layers: Vec<String>,
    /// The resolved recipe, or the command line.
    pub recipe: String,
    /// This program's version.
    pub version: String,
}

/// One epoch's figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// 1-based, counted over the whole run.
    pub epoch: usize,
    /// What the method was doing: `float`, `search`, `finetune`, ….
    pub phase: String,
    /// Mean loss over the training samples of the epoch.
    pub train_loss: f64,
    /// Accuracy on augmented training samples while training.
    pub train_accuracy: f64,
    /// Accuracy on held-out samples after the epoch, with weights rounded as they would be deployed; where it was measured.
    pub accuracy: Option<f64>,
    /// The same with the weights that train, where those differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_accuracy: Option<f64>,
    /// Loss on held-out samples.
    pub loss: Option<f64>,
    /// Learning rate at the epoch's end.
    pub learning_rate: f64,
    /// Mean stored bits per weight.
    pub mean_bits: Option<f64>,
    /// Stored bits of each layer.
    pub layer_bits: Vec<f32>,
    /// Training speed.
    pub images_per_s: f64,
}

/// A version of the model with its size and accuracy: float, uniform, learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// What it is called in reports.
    pub name: String,
    /// Top-1 accuracy on held-out samples.
    pub accuracy: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Mean stored bits per weight.
    pub mean_bits: f64,
}

/// One layer as reports and `inspect --json` show it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LayerRow {
    /// The node's name.
    pub name: String,
    /// The operator.
    pub op: String,
    /// The weight's shape.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shape: Vec<usize>,
    /// Number of weights.
    #[serde(default)]
    pub weights: u64,
    /// Bits as papers count them: magnitude planes, sign excluded. 32 where the weight is float.
    pub weight_bits: f64,
    /// Bits that the file stores per weight.
    pub stored_bits: f64,
    /// Bits of the layer's input; 32 where it is float.
    pub activation_bits: f64,
    /// Bytes of the weight in the file.
    pub bytes: u64,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
    /// The arithmetic the runtime uses: `i32 += u8*i8`, `f32`, ….
    pub arithmetic: String,
}

/// The outcome of comparing engines on the same inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// Whether every pair agrees within the documented tolerance.
    pub agree: bool,
    /// Largest difference between two logits of the same sample.
    pub max_abs_diff: f64,
    /// Fraction of samples on which all choose the same class.
    pub top1_agreement: f64,
    /// Samples compared.
    pub samples: usize,
    /// Those of them that the integer reference computed too.
    pub reference_samples: usize,
    /// Accuracy of each engine on what it computed, where labels are known.
    pub accuracies: Vec<(String, f64)>,
}

/// Appends events to a run's log.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    path: PathBuf,
}

impl EventLog {
    /// Opens the log of a run folder with these events already in it, replacing what was there (a run that resumes keeps
    /// only what its checkpoint has seen).
    pub fn create(folder: &Path, events: &[Event]) -> Result<Self, Failure> {
        let path = folder.join(FILE_NAME);
        let text = events.iter().map(line).collect::<Result<String, _>>()?;
        crate::files::write(&path, text.as_bytes())?;
        let file =
            OpenOptions::new().append(true).open(&path).context(|| format!("cannot write `{}`", path.display()))?;
        Ok(Self { file, path })
    }

    /// Appends one event.
    pub fn push(&mut self, event: &Event) -> Result<(), Failure> {
        let text = line(event)?;
        self.file.write_all(text.as_bytes()).context(|| format!("cannot write `{}`", self.path.display()))
    }
}

fn line(event: &Event) -> Result<String, Failure> {
    Ok(serde_json::to_string(event)? + "\n")
}

/// Reads a run's log. A torn last line is dropped; any other line that cannot be read is an error.
pub fn read(folder: &Path) -> Result<Vec<Event>, Failure> {
    let path = folder.join(FILE_NAME);
    let file = File::open(&path)
        .context(|| format!("cannot read `{}`", path.display()))
        .remedy("give the folder of a run that `bitsmith train`, `quantize` or `demo` made")?;
    let lines: Vec<String> = BufReader::new(file).lines().collect::<Result<_, _>>()?;
    let mut events = Vec::with_capacity(lines.len());
    for (index, text) in lines.iter().enumerate() {
        match serde_json::from_str(text) {
            Ok(event) => events.push(event),
            Err(_) if index + 1 == lines.len() => {}
            Err(error) => {
                return Err(Failure::from(error).context(format!(
                    "cannot read `{}` line {}",
                    path.display(),
                    index + 1
                )));
            }
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_reads_back_and_survives_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let note = |text: &str| Event::Note { text: text.to_owned() };
        let mut log = EventLog::create(folder.path(), &[note("first")]).unwrap();
        log.push(&Event::Epoch(Epoch { epoch: 1, layer_bits: vec![2.0, 3.0], ..Epoch::default() })).unwrap();
        drop(log);
        let events = read(folder.path()).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0], note("first"));

        let path = folder.path().join(FILE_NAME);
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 1);
        std::fs::write(&path, format!("garbage\n{whole}")).unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().contains("line 1"));
    }
}
