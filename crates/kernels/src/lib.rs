//! bitsmith kernels: slices in, slices out.
//!
//! The loops under everything else: convolution, normalisation, pooling and activation for training in f32 with
//! channels-last tensors, and the numerics of quantization. Nothing here knows a graph, a file or a tensor type.
//! Every fast loop is held to the naive one in [`reference`](mod@reference), which is the specification.

pub mod activation;
#[cfg(any(target_arch = "aarch64", test))]
mod arm;
mod buffer;
pub mod conv;
pub mod fakequant;
pub mod file;
pub mod gemm;
pub mod heap;
pub mod integer;
pub mod isa;
pub mod layout;
pub mod linear;
mod multiversion;
pub mod norm;
pub mod numerics;
pub mod pack;
pub mod planes;
pub mod pool;
pub mod reference;
pub mod roofline;
mod runs;
pub mod sigmoid;
mod simd;
pub mod softmax;
#[cfg(test)]
mod testing;
pub mod threads;
