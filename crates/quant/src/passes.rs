//! Passes: model in, model out. Calibration and quantization without training are passes; training itself
//! ([`crate::train`]) is one with a method inside.

pub mod allocate;
pub mod calibrate;
pub mod layers;
pub mod ptq;

use bitsmith_graph::Model;

use crate::error::Error;
use crate::train::data::Data;
use crate::train::events::Sink;

/// What a pass may use besides the model.
pub struct PassContext<'a> {
    /// Batches to calibrate with.
    pub calibration: &'a dyn Data,
    /// Where events go.
    pub sink: &'a mut dyn Sink,
}

/// Something done to a model.
pub trait Pass {
    /// What to call it.
    fn name(&self) -> &'static str;
    /// Does it.
    fn run(&self, model: Model, ctx: &mut PassContext<'_>) -> Result<Model, Error>;
}
