//! The naive loops: short, obviously right, slow, and never optimised. They are the specification of this crate.
//!
//! Sums run in f64 and are rounded to f32 once, so that a fast version's distance to them is that version's own error.

pub mod activation;
pub mod conv;
pub mod fakequant;
pub mod gemm;
pub mod layout;
pub mod norm;
pub mod pack;
pub mod pool;
