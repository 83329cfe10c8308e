//! What a run tells the outside while it trains. Each event serialises to one JSON object with a field `event`, so that a
//! log of them is a file of JSON lines.

use serde::Serialize;

use crate::method::Part;

/// Receives events. The library itself prints nothing.
pub trait Sink {
    /// Called in order, from the training thread.
    fn event(&mut self, event: &Event);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Sink for Silent {
    fn event(&mut self, _event: &Event) {}
}

impl<F: FnMut(&Event)> Sink for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A fresh run begins.
    Started {
        /// The method's name.
        method: &'static str,
        /// In all phases together.
        epochs: usize,
        /// Name and epochs of each phase.
        phases: Vec<(&'static str, usize)>,
        /// Batches in an epoch.
        batches: usize,
        /// Widths at the start.
        bits: Vec<Bits>,
    },
    /// A run goes on from a checkpoint.
    Resumed {
        /// Epochs done.
        epoch: usize,
        /// Batches done in the next one.
        batch: usize,
    },
    /// Some steps are done.
    Step(StepEvent),
    /// An epoch is done.
    Epoch(EpochEvent),
    /// An alternative was measured.
    Trial {
        /// So many so far.
        measured: usize,
    },
    /// Something worth a line in the log: planes closed, bits decided.
    Note {
        /// The line.
        text: String,
    },
    /// The model is final.
    Finished {
        /// On held-out data, 0 to 1.
        accuracy: Option<f64>,
        /// On held-out data.
        loss: Option<f64>,
        /// Stored bits per weight, by size.
        mean_bits: f64,
        /// Final widths.
        bits: Vec<Bits>,
    },
}

/// Progress within an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepEvent {
    /// The phase's name.
    pub phase: &'static str,
    /// Epoch since the run's start, from 0.
    pub epoch: usize,
    /// Steps done in the whole run.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean training loss of this epoch so far.
    pub loss: f64,
    /// Training accuracy of this epoch so far.
    pub accuracy: f64,
    /// Training speed of this epoch so far.
    pub images_per_s: f64,
    /// Seconds that the rest of the run will take at this speed.
    pub eta_s: f64,
}

/// The end of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpochEvent {
    /// The phase's name.
    pub phase: &'static str,
    /// Epoch since the run's start, from 0.
    pub epoch: usize,
    /// Of the last step.
    pub learning_rate: f64,
    /// Mean training loss.
    pub loss: f64,
    /// Training accuracy, 0 to 1.
    pub accuracy: f64,
    /// On held-out data, with the weights that train (soft bits).
    pub test_accuracy: Option<f64>,
    /// On held-out data, likewise.
    pub test_loss: Option<f64>,
    /// On held-out data, with the weights that would be deployed.
    pub hard_accuracy: Option<f64>,
    /// Stored bits per weight, by size.
    pub mean_bits: f64,
    /// Width of every layer.
    pub bits: Vec<Bits>,
    /// Training speed.
    pub images_per_s: f64,
}

/// The width of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bits {
    /// The weight's name.
    pub name: String,
    /// Where the layer sits.
    pub part: Part,
    /// Number of weights.
    pub weights: usize,
    /// Bits that a file stores for each.
    pub stored: f64,
    /// Bits as the method's paper counts them.
    pub paper: f32,
}
