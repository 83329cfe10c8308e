//! bitsmith quant: methods that learn how many bits a network needs, passes that calibrate and quantize without
//! training, and the training loop.
//!
//! * [`method::Method`] is what a paper contributes, [`quantizer::Quantizer`] what it makes of one weight tensor;
//!   [`methods::METHODS`] lists them all.
//! * [`train::train`] is the loop that runs a method; [`passes`] are what needs no training.
//! * [`blocks`] holds the pieces that methods share.
//!
//! A program that trains had better name the allocator that its large buffers are made for, [`bitsmith_kernels::heap::Heap`], as `bitsmith` does:
//! with the system's a step takes up to twice as long.

pub mod blocks;
pub mod error;
pub mod method;
pub mod methods;
pub mod options;
pub mod param;
pub mod passes;
pub mod quantizer;
pub mod train;

pub use error::{Error, Kind};
pub use method::{Method, Part, Phase, Progress, Slot, WeightLayer};
pub use options::{OptionDoc, Options};
pub use param::{Group, Param};
pub use passes::{Pass, PassContext};
pub use quantizer::{Quantizer, Rows};
pub use train::options::TrainOptions;
pub use train::{Context, Outcome, train};
