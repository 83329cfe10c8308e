//! Networks as plain data: tensors, operators, shapes, quantization sites, and the one step (`freeze`) that turns a
//! float model with complete quantization parameters into integers.
//!
//! This crate knows no files and no training. Values flow one way:
//!
//! ```text
//! Model ─pass─▶ Model ─pass─▶ … ─freeze─▶ QuantModel
//! ```

pub mod attrs;
pub mod error;
pub mod fold;
pub mod freeze;
pub mod graph;
pub mod model;
pub mod op;
pub mod ops;
pub mod quant;
pub mod tensor;
pub mod zoo;

pub use attrs::{Attr, Attrs};
pub use error::Error;
pub use freeze::{QuantModel, QuantTensor, freeze};
pub use graph::{Dim, Graph, Input, Node, Value, ValueId};
pub use model::{ClassNames, Model, Preprocess};
pub use op::{Op, Operator};
pub use quant::{Granularity, Grid, QParams, QuantSpec, Role, Site};
pub use tensor::{Data, Shape, Tensor};
