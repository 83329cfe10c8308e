//! Runs a network forward and backward on burn tensors, and everything a training loop needs around that.

mod error;
pub mod loss;
pub mod optim;
mod params;
mod schedule;
mod threads;

pub use error::{Error, Kind};
pub use loss::{Distill, Loss};
pub use params::Params;
pub use schedule::{Curve, Schedule};
pub use threads::{set_threads, threads};
