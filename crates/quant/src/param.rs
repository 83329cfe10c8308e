//! A learnable tensor of a quantizer: value, gradient, and how the optimiser should treat it.

use bitsmith_engine::optim::State;

/// What a parameter is; decides weight decay and the learning rate's factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// A float weight: decays.
    Weight,
    /// A bias: does not decay.
    Bias,
    /// Gamma or beta of a normalisation: does not decay.
    Norm,
    /// A scale or step size: does not decay.
    Scale,
    /// The logit of a weight bit: does not decay.
    Bit,
    /// The logit of a gate: does not decay.
    Gate,
}

/// A learnable tensor. The optimiser's own memory (momentum) lives here too, so that nothing can be lost when a method
/// resizes its parameters: a new `Param` starts with new memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Unique within its quantizer.
    pub name: &'static str,
    /// What it is.
    pub group: Group,
    /// The numbers.
    pub value: Vec<f32>,
    /// ∂L/∂value, as long as `value`. Backward passes add to it, the optimiser clears it.
    pub grad: Vec<f32>,
    /// The optimiser's memory, one for each entry of `rate`; empty until its first step.
    pub memory: Vec<State>,
    /// Factors on the learning rate, one for each of as many equal contiguous segments of `value` (usually one).
    pub rate: Vec<f32>,
    /// Whether the optimiser leaves it alone.
    pub frozen: bool,
}

impl Param {
    /// A parameter that learns at the optimiser's own rate.
    pub fn new(name: &'static str, group: Group, value: Vec<f32>) -> Self {
        let grad = vec![0.0; value.len()];
        Self { name, group, value, grad, memory: vec![], rate: vec![1.0], frozen: false }
    }

    /// Sets the gradient to zero.
    pub fn clear_grad(&mut self) {
        self.grad.fill(0.0);
    }
}
