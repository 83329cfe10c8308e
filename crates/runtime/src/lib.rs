//! What ships to a device: the packed file and the session that runs it with integers. No training, no other formats.

pub mod error;
pub mod packed;
pub mod session;
#[cfg(test)]
mod testing;

pub use error::{Error, Kind};
pub use session::{Arithmetic, Kernels, NodeReport, Session, SessionOptions};
