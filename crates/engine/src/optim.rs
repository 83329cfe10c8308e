//! Optimisers over plain slices: SGD with (Nesterov) momentum, and AdamW.
//!
//! burn's own optimisers walk modules of tensors. Here parameters live on the host and half of them are not network
//! tensors at all (bit-plane logits, masks, step sizes), so an optimiser is a function of three slices and a small state,
//! keyed by a name and stored as it is in a checkpoint.
//!
//! ```text
//! SGD      g += λ·w      v = μ·v + g      w -= η · (g + μ·v if Nesterov, else v)           (as PyTorch)
//! AdamW    w *= 1 - η·λ  m = β1·m + (1-β1)·g  u = β2·u + (1-β2)·g²  w -= η · m̂ / (√û + ε)   (arXiv 1711.05101)
//! ```

use std::collections::BTreeMap;

use bitsmith_kernels::threads::{for_each_job, parts_for, ranges};
use serde::{Deserialize, Serialize};

/// The rule that turns a gradient into an update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
}

/// Stochastic gradient descent with momentum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// μ; 0 turns the velocity off.
    pub momentum: f32,
    /// Whether to look ahead along the new velocity.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false }
    }
}

/// Adam with decoupled weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// β1.
    pub beta1: f32,
    /// β2.
    pub beta2: f32,
    /// ε, added to the root.
    pub epsilon: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// What an optimiser remembers about one parameter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Updates so far.
    pub step: u64,
    /// Velocity (SGD) or first moment (AdamW); empty until needed.
    pub first: Vec<f32>,
    /// Second moment (AdamW); empty otherwise.
    pub second: Vec<f32>,
}

/// Learning rate and decay of one group of parameters at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// η.
    pub learning_rate: f32,
    /// λ; 0 for norms, biases and quantizer parameters unless asked otherwise.
    pub weight_decay: f32,
}

/// An algorithm and its state for every parameter it has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// The rule.
    pub algorithm: Algorithm,
    /// State by parameter name.
    pub states: BTreeMap<String, State>,
}

impl Optimizer {
    /// No state yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, states: BTreeMap::new() }
    }

    /// One update of the parameter `name`. A parameter that changed size (bits were pruned) starts with fresh state.
    ///
    /// # Panics
    /// If there are not as many gradients as parameters.
    pub fn update(&mut self, name: &str, parameters: &mut [f32], gradients: &[f32], rates: Rates) {
        // Looked up before it is inserted: no allocation of the name once it is known.
        if !self.states.contains_key(name) {
            self.states.insert(name.to_owned(), State::default());
        }
        if let Some(state) = self.states.get_mut(name) {
            self.algorithm.update(state, parameters, gradients, rates);
        }
    }

    /// Forgets a parameter.
    pub fn forget(&mut self, name: &str) {
        self.states.remove(name);
    }
}

impl Algorithm {
    /// One update with explicit state.
    ///
    /// # Panics
    /// If there are not as many gradients as parameters.
    pub fn update(&self, state: &mut State, parameters: &mut [f32], gradients: &[f32], rates: Rates) {
        assert_eq!(parameters.len(), gradients.len(), "one gradient per parameter");
        match self {
            Algorithm::Sgd(sgd) => sgd.update(state, parameters, gradients, rates),
            Algorithm::AdamW(adam) => adam.update(state, parameters, gradients, rates),
        }
    }
}

impl Sgd {
    fn update(&self, state: &mut State, parameters: &mut [f32], gradients: &[f32], rates: Rates) {
        let Rates { learning_rate, weight_decay } = rates;
        let first = fit(&mut state.first, &mut state.step, if self.momentum == 0.0 { 0 } else { parameters.len() });
        state.step += 1;
        if self.momentum == 0.0 {
            for_each_piece([parameters], gradients, |[w], gradients| {
                for (w, &g) in w.iter_mut().zip(gradients) {
                    *w -= learning_rate * (g + weight_decay * *w);
                }
            });
            return;
        }
        for_each_piece([parameters, first], gradients, |[w, v], gradients| {
            for ((w, &g), v) in w.iter_mut().zip(gradients).zip(v) {
                let g = g + weight_decay * *w;
                *v = self.momentum * *v + g;
                *w -= learning_rate * if self.nesterov { g + self.momentum * *v } else { *v };
            }
        });
    }
}

impl AdamW {
    fn update(&self, state: &mut State, parameters: &mut [f32], gradients: &[f32], rates: Rates) {
        let Rates { learning_rate, weight_decay } = rates;
        let first = fit(&mut state.first, &mut state.step, parameters.len());
        let second = fit(&mut state.second, &mut state.step, parameters.len());
        state.step += 1;
        // In f64: at step 10^6 the power of 0.999 is far below what f32 resolves next to 1.
        let steps = state.step as f64;
        let correction1 = (1.0 - f64::from(self.beta1).powf(steps)) as f32;
        let correction2 = (1.0 - f64::from(self.beta2).powf(steps)) as f32;
        for_each_piece([parameters, first, second], gradients, |[w, m, u], gradients| {
            for (((w, &g), m), u) in w.iter_mut().zip(gradients).zip(m).zip(u) {
                *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                *u = self.beta2 * *u + (1.0 - self.beta2) * g * g;
                *w *= 1.0 - learning_rate * weight_decay;
                *w -= learning_rate * (*m / correction1) / ((*u / correction2).sqrt() + self.epsilon);
            }
        });
    }
}

/// Runs `run` on the same pieces of all slices, by several threads where they are long: an update passes over all that a network
/// learns.
fn for_each_piece<const N: usize>(
    mut slices: [&mut [f32]; N],
    mut gradients: &[f32],
    run: impl Fn([&mut [f32]; N], &[f32]) + Sync + Send,
) {
    let mut pieces = vec![];
    for range in ranges(gradients.len(), parts_for(gradients.len())) {
        let piece = slices.each_mut().map(|rest| rest.split_off_mut(..range.len()).unwrap_or_default());
        pieces.push((piece, gradients.split_off(..range.len()).unwrap_or_default()));
    }
    for_each_job(pieces, |(piece, gradients)| run(piece, gradients));
}

/// The buffer with `len` entries: as it is, or zeros (and the step count restarted) if it had another size.
fn fit<'a>(buffer: &'a mut Vec<f32>, step: &mut u64, len: usize) -> &'a mut [f32] {
    if buffer.len() != len {
        buffer.clear();
        buffer.resize(len, 0.0);
        *step = 0;
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { learning_rate: 0.1, weight_decay: 0.5 };

    fn run(algorithm: Algorithm, gradients: &[f32]) -> f32 {
        let mut optimizer = Optimizer::new(algorithm);
        let mut w = [1.0];
        for &g in gradients {
            optimizer.update("w", &mut w, &[g], RATES);
        }
        w[0]
    }

    #[test]
    fn by_hand() {
        struct Case(Algorithm, f32);
        let sgd = |momentum, nesterov| Algorithm::Sgd(Sgd { momentum, nesterov });
        // First step: g = 2 + 0.5·1 = 2.5. Second: g = 1 + 0.5·w.
        let cases = [
            Case(sgd(0.0, false), 0.75 - 0.1 * 1.375),
            Case(sgd(0.9, false), 0.75 - 0.1 * (0.9 * 2.5 + 1.375)),
            // w1 = 1 - 0.1·(2.5 + 0.9·2.5) = 0.525; g2 = 1.2625; v2 = 3.5125.
            Case(sgd(0.9, true), 0.525 - 0.1 * (1.2625 + 0.9 * 3.5125)),
            // m = [0.2, 0.28], u = [0.004, 0.004996]; corrections 0.1, 0.001 then 0.19, 0.001999.
            Case(
                Algorithm::AdamW(AdamW::default()),
                (0.95 - 0.1) * 0.95 - 0.1 * (0.28 / 0.19) / (0.004_996_f32 / 0.001_999).sqrt(),
            ),
        ];
        for Case(algorithm, expected) in cases {
            let w = run(algorithm, &[2.0, 1.0]);
            assert!((w - expected).abs() < 1e-6, "{algorithm:?}: {w}, expected {expected}");
        }
    }

    #[test]
    fn state_survives_a_checkpoint() {
        for algorithm in [Algorithm::Sgd(Sgd::default()), Algorithm::AdamW(AdamW::default())] {
            let mut whole = Optimizer::new(algorithm);
            let mut w = vec![0.3, -0.7];
            whole.update("w", &mut w, &[0.1, 0.2], RATES);
            let text = serde_json::to_string(&whole).unwrap();
            let mut resumed: Optimizer = serde_json::from_str(&text).unwrap();
            let mut w2 = w.clone();
            whole.update("w", &mut w, &[0.3, -0.1], RATES);
            resumed.update("w", &mut w2, &[0.3, -0.1], RATES);
            assert_eq!((w, whole), (w2, resumed));
        }
    }

    #[test]
    fn a_resized_parameter_starts_afresh() {
        let mut optimizer = Optimizer::new(Algorithm::Sgd(Sgd::default()));
        optimizer.update("w", &mut [1.0, 1.0], &[1.0, 1.0], RATES);
        optimizer.update("w", &mut [1.0], &[1.0], RATES);
        assert_eq!(optimizer.states["w"].step, 1);
    }
}
