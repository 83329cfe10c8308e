//! What ships to a device: the packed file and the session that runs it with integers. No training, no other formats.

pub mod error;
pub mod packed;
#[cfg(test)]
mod testing;

pub use error::{Error, Kind};
