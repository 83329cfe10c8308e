//! Runs a network forward and backward on burn tensors, and everything a training loop needs around that.
//!
//! ```
//! use bitsmith_engine::optim::{Algorithm, Optimizer, Rates, Sgd};
//! use bitsmith_engine::{Engine, EngineOptions, Loss, Params, StepOptions};
//! use bitsmith_graph::zoo::{self, ZooOptions};
//!
//! let model = zoo::build("cnn", &ZooOptions::default())?;
//! let engine = Engine::new(&model, &EngineOptions::default())?; // checks every operator and shape, once
//! let mut params = Params::from_model(&model);
//! let (images, labels) = (vec![0.5; 2 * engine.sample_len()], [3, 7]);
//!
//! let out = engine.step(&mut params, &images, &labels, &Loss::default(), StepOptions::default())?;
//! let mut optimizer = Optimizer::new(Algorithm::Sgd(Sgd::default()));
//! for (id, gradient) in &out.constants {
//!     let weights = params.constants.get_mut(id).expect("gradients belong to parameters");
//!     let rates = Rates { learning_rate: 0.1, weight_decay: 1e-4 };
//!     optimizer.update(&model.graph.value(*id).name, weights, gradient, rates);
//! }
//! let logits = engine.forward(&params, &images, 2)?;
//! assert_eq!(logits.len(), 2 * engine.classes());
//! # Ok::<(), bitsmith_engine::Error>(())
//! ```
//!
//! A step does nothing but that: no randomness, no hidden state. The same parameters, batch and number of threads give the
//! same bits. What a method does to weights (quantize them, perturb them) it does to [`Params`] before the step, and to
//! the gradients after it.
//!
//! A program that trains had better name the allocator that its large buffers are made for, [`bitsmith_kernels::heap::Heap`], as `bitsmith` does:
//! with the system's a step takes up to twice as long.

pub mod data;
mod device;
mod engine;
mod error;
pub mod loss;
mod memory;
mod ops;
pub mod optim;
mod params;
mod plan;
pub mod profile;
mod schedule;
mod threads;

pub use device::Device;
pub use engine::{
    Engine, EngineOptions, Operators, Parameter, RoundingErrors, StepGradient, StepOptions, StepOutput, WeightError,
};
pub use error::{Error, Kind};
pub use loss::{Distill, Follow, Loss};
pub use params::{Between, Params};
pub use plan::Role;
pub use schedule::{Curve, Schedule};
pub use threads::{set_threads, threads};
