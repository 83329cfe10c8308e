//! Runs a network forward and backward on burn tensors, and everything a training loop needs around that.

pub mod data;
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

pub use engine::{Engine, EngineOptions, Operators, Parameter, StepOptions, StepOutput};
pub use error::{Error, Kind};
pub use loss::{Distill, Loss};
pub use params::Params;
pub use plan::Role;
pub use schedule::{Curve, Schedule};
pub use threads::{set_threads, threads};
