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
//!
//! ```
//! use bitsmith_formats::{onnx, safetensors};
//! use bitsmith_graph::zoo::{self, ZooOptions};
//!
//! let folder = std::env::temp_dir().join(format!("bitsmith-formats-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let (network, weights) = (folder.join("mlp.onnx"), folder.join("mlp.safetensors"));
//!
//! let model = zoo::build("mlp", &ZooOptions::default())?;
//! onnx::write_float(&model, &network, 21)?;
//! safetensors::save(&model, &weights)?;
//!
//! let mut again = bitsmith_formats::open(&network)?;
//! safetensors::load_into(&mut again, &weights)?;
//! assert_eq!(again.layers()?.len(), model.layers()?.len());
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
pub mod npy;
pub mod onnx;
pub mod safetensors;
mod sniff;

pub use error::{Error, Kind};
pub use sniff::{FileKind, kind, open};
