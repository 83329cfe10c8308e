//! The options of a training run that do not belong to a method.

use bitsmith_engine::optim::{AdamW, Algorithm, Sgd};
use bitsmith_engine::{Curve, StepGradient};
use serde::{Deserialize, Serialize};

use super::activations::ActivationWidths;
use super::sharpness::SharpnessOptions;
use crate::error::Error;
use crate::method::Method;
use crate::options::options;

/// The rule that turns a gradient into an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam with decoupled decay.
    Adamw,
}

/// How the learning rate falls within each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    /// Half a cosine to zero.
    #[default]
    Cosine,
    /// To a tenth at one half and again at three quarters.
    Step,
    /// Not at all.
    Constant,
}

/// How products of the forward pass of a training step are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardPrecision {
    /// f32.
    #[default]
    F32,
    /// bf16, summed in f32, where the CPU has instructions for it and that is faster.
    Bf16,
}

/// How products that make gradients are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GradientPrecision {
    /// bf16 in networks with rounded weights, f32 in others.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, summed in f32, where the CPU has instructions for it.
    Bf16,
}

/// What moves the step of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationGradient {
    /// Rounding errors and what is clipped (LSQ).
    #[default]
    Lsq,
    /// What is clipped alone (PACT, Choi et al., arXiv 1805.06085).
    Pact,
}

options! {
    /// Options of a training run.
    pub struct TrainOptions {
        /// Passes over the training data, all phases of the method together.
        pub epochs: usize = 30,
        /// Learning rate of float weights at the start of each phase.
        pub learning_rate: f64 = 0.02,
        /// "sgd" or "adamw".
        pub optimizer: OptimizerName = OptimizerName::Sgd,
        /// Momentum of sgd.
        pub momentum: f32 = 0.9,
        /// Nesterov's look-ahead for sgd.
        pub nesterov: bool = true,
        /// Decay of float weights towards zero.
        pub weight_decay: f32 = 1e-4,
        /// Let norms, biases and quantizer parameters decay too.
        pub decay_all: bool = false,
        /// "cosine", "step" or "constant".
        pub schedule: ScheduleName = ScheduleName::Cosine,
        /// Steps over which the learning rate rises at the start of each phase (at most a fifth of it).
        pub warmup_steps: u64 = 100,
        /// Share of the label's probability that is spread over all classes.
        pub label_smoothing: f32 = 0.0,
        /// Share of the loss that imitates the model before quantization, 0 to 1; 1 needs no labels.
        pub distill: f32 = 0.0,
        /// Temperature of that imitation.
        pub distill_temperature: f32 = 2.0,
        /// Multiply rounded weights with rounded activations as integers, in linear layers: exactly what the packed model does, and faster; false: in float.
        pub integers: bool = true,
        /// Numbers that are multiplied in the forward pass of training steps, where they are not integers: "f32", or "bf16" (convolutions of up to 48 channels, and those of larger strides; summed in f32). Evaluation is always exact.
        pub forward: ForwardPrecision = ForwardPrecision::F32,
        /// Numbers that are multiplied for gradients of convolutions and linear layers: "f32", "bf16" (summed in f32; faster, on CPUs that multiply them), or "auto" (bf16 where weights are rounded).
        pub gradients: GradientPrecision = GradientPrecision::Auto,
        /// Strength of the regulariser that draws weights to the values they are rounded to, once widths are fixed; below 0: the method's own (`sdq`: 0.1; others: none). Of no effect on `dorefa` and on soft bits of `csq`.
        pub bins: f64 = -1.0,
        /// Learning rate of activation steps, relative to that of float weights.
        pub activation_rate: f32 = 1.0,
        /// What moves those steps: "lsq" (rounding errors too) or "pact" (what is clipped alone).
        pub activation_gradient: ActivationGradient = ActivationGradient::Lsq,
        /// Stored bits of biases (32: float).
        pub bias_bits: u8 = 8,
        /// Groups of neighbouring output channels, in each layer, that have widths of their own where a method searches widths; 1: one width per layer.
        pub channel_groups: usize = 1,
        /// Evaluate after every so many epochs; 0 means only at the end.
        pub evaluate_every: usize = 1,
        /// Write a checkpoint after every so many steps, besides the end of each epoch; 0 means only there.
        pub checkpoint_steps: usize = 200,
        /// Batches over which the statistics of batch normalisations are averaged at the end; 0 keeps the running ones.
        pub recalibrate_batches: usize = 60,
        /// Batches over which a method measures the loss of alternatives.
        pub trial_batches: usize = 2,
        /// Sharpness-aware steps: a section of its own, off unless its `rho` is above 0.
        pub sharpness: SharpnessOptions = SharpnessOptions::default(),
        /// Widths of activations: a section of its own, off unless its `target_bits` is above 0.
        pub activation_widths: ActivationWidths = ActivationWidths::default(),
    }
}

impl TrainOptions {
    /// Refuses impossible values.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |detail: String| Err(Error::option(detail));
        if self.epochs == 0 {
            return bad("epochs = 0: train for at least 1".to_owned());
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return bad(format!("learning_rate = {}: must be a positive number", self.learning_rate));
        }
        if !(0.0..=1.0).contains(&self.distill) {
            return bad(format!("distill = {}: must be between 0 and 1", self.distill));
        }
        if self.distill_temperature <= 0.0 || !self.distill_temperature.is_finite() {
            return bad(format!("distill_temperature = {}: must be a positive number", self.distill_temperature));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return bad(format!("label_smoothing = {}: must be at least 0 and below 1", self.label_smoothing));
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return bad(format!("momentum = {}: must be at least 0 and below 1", self.momentum));
        }
        if !self.bins.is_finite() {
            return bad(format!("bins = {}: must be a number; 0 switches the regulariser off", self.bins));
        }
        if self.weight_decay.is_nan() || self.weight_decay < 0.0 {
            return bad(format!("weight_decay = {}: must not be negative", self.weight_decay));
        }
        if self.channel_groups == 0 {
            return bad("channel_groups = 0: 1 gives each layer one width".to_owned());
        }
        self.sharpness.check()?;
        self.activation_widths.check()?;
        if !(2..=8).contains(&self.bias_bits) && self.bias_bits != 32 {
            return bad(format!("bias_bits = {}: 2 to 8, or 32 for float", self.bias_bits));
        }
        Ok(())
    }

    pub(super) fn bins_of<M: Method>(&self) -> f64 {
        if self.bins < 0.0 { M::BINS } else { self.bins }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self.optimizer {
            OptimizerName::Sgd => Algorithm::Sgd(Sgd { momentum: self.momentum, nesterov: self.nesterov }),
            OptimizerName::Adamw => Algorithm::AdamW(AdamW::default()),
        }
    }

    pub(super) fn step_gradient(&self) -> StepGradient {
        match self.activation_gradient {
            ActivationGradient::Lsq => StepGradient::Lsq,
            ActivationGradient::Pact => StepGradient::Pact,
        }
    }

    pub(super) fn curve(&self) -> Curve {
        match self.schedule {
            ScheduleName::Cosine => Curve::Cosine { floor: 0.0 },
            ScheduleName::Step => Curve::Step { at: vec![0.5, 0.75], factor: 0.1 },
            ScheduleName::Constant => Curve::Constant,
        }
    }
}
