//! The naive loops: short, obviously right, slow, and never optimised. They are the specification of this crate.
//!
//! Sums run in f64 and are rounded to f32 once, so that a fast version's distance to them is that version's own error.

pub mod conv;
pub mod gemm;
pub mod norm;
pub mod pool;
