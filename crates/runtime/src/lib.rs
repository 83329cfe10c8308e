//! What ships to a device: the packed file and the session that runs it with integers. No training, no other formats.
//!
//! ```
//! use bitsmith_graph::zoo::{self, ZooOptions};
//! use bitsmith_runtime::{Session, SessionOptions, packed};
//!
//! // A model without sites freezes to floats; a trained one to codes.
//! let model = bitsmith_graph::freeze(zoo::build("mlp", &ZooOptions::default())?)?;
//! let (bytes, sizes) = packed::encode(&model)?;
//! assert_eq!(bytes.len(), sizes.total);
//!
//! let session = Session::new(&packed::read_bytes(&bytes)?, SessionOptions::default())?;
//! let logits = session.run(&[0.5; 2 * 64], 2)?; // two images of 1x8x8
//! assert_eq!(logits.len(), 2 * 10);
//! for node in session.arithmetic() {
//!     println!("{} {}: {}", node.name, node.arithmetic, node.reason);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What may be trusted: reading checks everything, so a [`bitsmith_graph::QuantModel`] from a file is as sound as one from
//! `freeze`; a session proves at load that no accumulator overflows; [`Kernels::Fast`] returns the bits of
//! [`Kernels::Reference`]; results do not depend on threads or on how samples are grouped.

pub mod error;
pub mod packed;
pub mod session;
#[cfg(test)]
mod testing;

pub use error::{Error, Kind};
pub use session::{Arithmetic, Kernels, NodeReport, Session, SessionOptions, StepProfile};
