//! A training strategy: what a paper contributes, as hooks of one training loop.
//!
//! A method is one file in `methods/` and one line in [`crate::methods::METHODS`]. It makes a [`Quantizer`] for each
//! weight; the loop (`train`) runs forward and backward, moves gradients into the quantizers' parameters, and calls the
//! hooks below in this order:
//!
//! ```text
//! for each phase { for each epoch { for each batch { begin_step, step (forward, backward), penalty, [optimiser], after_update }
//!                                   end_epoch }
//!                  end_phase }
//! finish
//! ```

use std::ops::Range;

use bitsmith_graph::{Granularity, ValueId};
use serde::{Deserialize, Serialize};

use crate::blocks::gate::Gating;
use crate::error::Error;
use crate::options::Options;
use crate::quantizer::{Quantizer, Rows};

/// Where a layer sits; reports list these parts separately, and floors apply to the first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Reads the network's input.
    First,
    /// Somewhere between.
    Middle,
    /// A 1x1 convolution on a residual connection.
    Shortcut,
    /// Produces the network's output.
    Last,
}

/// A weight that a method is asked to quantize: that of a layer, or of some of its output channels.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightLayer {
    /// The constant.
    pub id: ValueId,
    /// Its name in the graph; of some channels, with these behind it.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements of the constant before its first.
    pub first: usize,
    /// Axis of output channels.
    pub channel_axis: usize,
    /// Where the layer sits.
    pub part: Part,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
    /// What it costs at 0 to 8 stored bits, where the run's budget is such a cost.
    pub costs: Option<[f64; 9]>,
}

impl WeightLayer {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where its elements are in the constant.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.weights()
    }

    /// Up to `groups` parts of about as many neighbouring output channels, each with a width of its own. The first and last layer, whose
    /// widths are given as a rule, stay whole, as does a weight whose channels are not side by side.
    pub fn split(self, groups: usize) -> Vec<Self> {
        let channels = self.shape.first().copied().unwrap_or(1);
        let groups = groups.min(channels);
        if groups < 2 || self.channel_axis != 0 || matches!(self.part, Part::First | Part::Last) {
            return vec![self];
        }
        let row = self.weights() / channels;
        let part = |group: usize| {
            let (from, to) = (group * channels / groups, (group + 1) * channels / groups);
            let mut shape = self.shape.clone();
            shape[0] = to - from;
            let name = format!("{}[{from}..{to}]", self.name);
            let macs = self.macs * (to - from) as u64 / channels as u64;
            // A part of a layer is taken to cost its part of what the layer costs.
            let costs = self.costs.map(|costs| costs.map(|cost| cost * (to - from) as f64 / channels as f64));
            Self { name, shape, first: self.first + from * row, macs, costs, ..self.clone() }
        };
        (0..groups).map(part).collect()
    }

    /// Which elements share a scale: those of an output channel, or all.
    pub fn granularity(&self, per_channel: bool) -> Granularity {
        if per_channel { Granularity::PerChannel { axis: self.channel_axis } } else { Granularity::PerTensor }
    }

    /// The elements that share a scale: one row per output channel, or one in all.
    pub fn rows(&self, per_channel: bool) -> Rows {
        if per_channel { Rows::along(self.channel_axis, &self.shape) } else { Rows::one(self.weights()) }
    }
}

/// A layer and its quantizer.
#[derive(Debug)]
pub struct Slot<Q> {
    /// Which layer.
    pub layer: WeightLayer,
    /// How its weights are made.
    pub quantizer: Q,
}

/// A stretch of training with a learning-rate schedule of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// What to call it in logs.
    pub name: &'static str,
    /// Its length.
    pub epochs: usize,
    /// Factor on the run's learning rate.
    pub rate: f64,
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Which phase.
    pub phase: usize,
    /// Epoch since the run's start.
    pub epoch: usize,
    /// Part of the phase that is done, 0 to 1.
    pub fraction: f64,
    /// Steps taken in this phase.
    pub step: u64,
    /// Steps in this phase.
    pub steps: u64,
}

/// Measures the mean loss over calibration batches with the quantizers as they are.
pub type Trial<'a, Q> = dyn FnMut(&mut [Slot<Q>]) -> Result<f64, Error> + 'a;

/// How strongly constraints on rounding count in a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Multipliers {
    /// One for each slot.
    pub layers: Vec<f64>,
    /// Of the distance between the answers of the network and of its rounded copy.
    pub output: f64,
}

/// What a step under constraints found; means over its batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Constrained {
    /// Of the float network, constraints included.
    pub loss: f64,
    /// For each slot, the share of rounding error in its layer's output ([`bitsmith_engine::RoundingErrors`]).
    pub shares: Vec<f64>,
    /// Cross entropy of the rounded network's answers to the float network's.
    pub output: f64,
}

/// The passes that a step may make over its batch.
pub trait Passes<Q> {
    /// Forward and backward: weights from the quantizers, gradients into them. Returns the loss.
    fn full(&mut self, slots: &mut [Slot<Q>]) -> Result<f64, Error>;
    /// Forward alone, by the batch's own statistics, of which nothing is kept. Returns the loss.
    fn loss(&mut self, slots: &mut [Slot<Q>]) -> Result<f64, Error>;
    /// Forward through the rounded network, then forward and backward through the same network in float, under the constraint that rounding
    /// changes little: its weights ([`Quantizer::latent`]) get the gradients of the loss and of the constraints through
    /// [`Quantizer::backward`]. No gradient passes a rounding.
    fn constrained(&mut self, slots: &mut [Slot<Q>], multipliers: &Multipliers) -> Result<Constrained, Error>;
}

/// A training strategy. Only the first three functions are mandatory.
pub trait Method: Sized + Send {
    /// Its name on the command line and in recipes.
    const NAME: &'static str;
    /// One line for help.
    const SUMMARY: &'static str;
    /// Strength of the bin regulariser on weights of fixed width, where the run gives none (`train.bins`).
    const BINS: f64 = 0.0;
    /// Its options.
    type Options: Options;
    /// How it rounds weights.
    type Weight: Quantizer;

    /// Checks the options.
    fn new(options: Self::Options) -> Result<Self, Error>;

    /// Makes the quantizer of a layer whose float weights are `init`.
    fn weight(&mut self, layer: &WeightLayer, init: &[f32]) -> Result<Self::Weight, Error>;

    /// Called once all quantizers exist, before the first step of a fresh run (not when one is resumed).
    fn begin(&mut self, _slots: &mut [Slot<Self::Weight>]) -> Result<(), Error> {
        Ok(())
    }

    /// How `epochs` are divided.
    fn phases(&self, epochs: usize) -> Vec<Phase> {
        vec![Phase { name: "train", epochs, rate: 1.0 }]
    }

    /// How the widths of activations are learned beside those of weights, in the first phase, where the run wants them to
    /// differ. `None`: not at all; then they are chosen by trial when that phase ends ([`crate::train::activations`]).
    fn gating(&self) -> Option<Gating> {
        None
    }

    /// Before each step: temperatures, rates.
    fn begin_step(&mut self, _slots: &mut [Slot<Self::Weight>], _at: &Progress) {}

    /// One step's passes: by default a single forward and backward. Returns the loss.
    fn step(&mut self, slots: &mut [Slot<Self::Weight>], passes: &mut dyn Passes<Self::Weight>) -> Result<f64, Error> {
        passes.full(slots)
    }

    /// A loss on the parameters themselves: adds its gradients and returns its value.
    fn penalty(&mut self, _slots: &mut [Slot<Self::Weight>]) -> f64 {
        0.0
    }

    /// After the optimiser's update: projections.
    fn after_update(&mut self, _slots: &mut [Slot<Self::Weight>]) {}

    /// After each epoch. Returns lines for the log.
    fn end_epoch(&mut self, _slots: &mut [Slot<Self::Weight>], _at: &Progress) -> Result<Vec<String>, Error> {
        Ok(vec![])
    }

    /// After the last step of a phase: harden, prune, resize. Returns lines for the log.
    fn end_phase(
        &mut self,
        _slots: &mut [Slot<Self::Weight>],
        _phase: usize,
        _trial: &mut Trial<'_, Self::Weight>,
    ) -> Result<Vec<String>, Error> {
        Ok(vec![])
    }

    /// Switches between the weights that train and those that would be deployed, to evaluate the latter on the way.
    fn set_hard(&mut self, _slots: &mut [Slot<Self::Weight>], _hard: bool) {}

    /// Hardens for good: from now on weights lie exactly on the grids of [`Quantizer::qparams`].
    fn finish(&mut self, _slots: &mut [Slot<Self::Weight>]) -> Result<Vec<String>, Error> {
        Ok(vec![])
    }

    /// What the method must remember besides its parameters, for checkpoints.
    fn state(&self, _slots: &[Slot<Self::Weight>]) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Restores [`Method::state`], resizing the quantizers' parameters to what the state says, so that their values can
    /// be read back afterwards.
    fn restore(&mut self, _slots: &mut [Slot<Self::Weight>], _state: &serde_json::Value) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_channels_cover_a_layer() {
        let id = bitsmith_graph::Graph::new().add_input("x", vec![]).unwrap();
        let layer = |part, channel_axis| WeightLayer {
            id,
            name: "w".to_owned(),
            shape: vec![10, 3, 2],
            first: 0,
            channel_axis,
            part,
            macs: 1000,
            costs: Some([100.0; 9]),
        };
        let parts = layer(Part::Middle, 0).split(4);
        let ranges: Vec<_> = parts.iter().map(WeightLayer::range).collect();
        assert_eq!(ranges, [0..12, 12..30, 30..42, 42..60]);
        assert_eq!(parts[1].name, "w[2..5]");
        assert_eq!(parts.iter().map(|p| p.macs).sum::<u64>(), 1000);
        assert_eq!(parts.iter().map(|p| p.costs.unwrap()[4]).sum::<f64>(), 100.0);
        assert_eq!(layer(Part::Middle, 0).split(100).len(), 10);
        for whole in [layer(Part::First, 0), layer(Part::Last, 0), layer(Part::Middle, 1)] {
            assert_eq!(whole.clone().split(4), [whole]);
        }
    }
}
