//! The methods, one file each, and the table that names them.

pub mod csq;
pub mod float;
pub mod lsq;

use bitsmith_graph::Model;

use crate::error::Error;
use crate::method::Method;
use crate::options::{OptionDoc, Options};
use crate::train::data::Batch;
use crate::train::options::TrainOptions;
use crate::train::{Context, Outcome, Timed, steps_json, train_json};

/// Trains a model by a method whose options are JSON (null: defaults).
pub type Train = fn(Model, &serde_json::Value, &TrainOptions, &mut Context<'_>) -> Result<Outcome, Error>;

/// Gives steps on one batch, in the middle of a phase, to whoever times them.
pub type Steps = fn(Model, &serde_json::Value, &TrainOptions, &Batch, usize, &mut Timed<'_>) -> Result<(), Error>;

/// A method as the command line and the documentation see it.
#[derive(Debug, Clone, Copy)]
pub struct MethodEntry {
    /// What recipes call it.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its options with help and defaults.
    pub options: fn() -> Vec<OptionDoc>,
    /// Whether these options are acceptable, before any data is read.
    pub check: fn(&serde_json::Value) -> Result<(), Error>,
    /// Runs it.
    pub train: Train,
    /// Runs single steps of it, for benchmarks.
    pub steps: Steps,
}

const fn entry<M: Method>() -> MethodEntry {
    MethodEntry {
        name: M::NAME,
        summary: M::SUMMARY,
        options: M::Options::docs,
        check: |options| M::new(M::Options::from_json(options)?).map(|_| ()),
        train: train_json::<M>,
        steps: steps_json::<M>,
    }
}

/// Every method.
pub const METHODS: &[MethodEntry] = &[entry::<csq::Csq>(), entry::<float::Float>(), entry::<lsq::Lsq>()];

/// A method by name, or an error that lists those there are.
pub fn find(name: &str) -> Result<&'static MethodEntry, Error> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<_> = METHODS.iter().map(|m| m.name).collect();
        Error::option(format!("there is no method `{name}`; there are {}", known.join(", ")))
    })
}
