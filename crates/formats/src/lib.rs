//! Other people's files: ONNX, safetensors and npy, read into [`bitsmith_graph::Model`]s and tensors, and written from
//! them.
//!
//! | | read | write |
//! |---|---|---|
//! | ONNX | [`onnx::read`] | [`onnx::write_float`], [`onnx::write_qdq`] |
//! | safetensors | [`safetensors::load_into`] | [`safetensors::save`] |
//! | npy | [`npy::read`] | [`npy::write`] |
//!
//! [`open`] picks a reader; [`kind`] only says what a file is. Files are untrusted: whatever is in them, reading ends
//! in a value or an [`Error`] that names the file, the place and the remedy. Writing replaces a file whole or not at all.

mod error;
pub mod npy;
pub mod onnx;
pub mod safetensors;
mod sniff;

pub use error::{Error, Kind};
pub use sniff::{FileKind, kind, open};
