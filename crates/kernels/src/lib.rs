//! bitsmith kernels: slices in, slices out; the only crate with `unsafe`.

pub mod numerics;
pub mod pack;
