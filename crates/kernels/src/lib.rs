//! bitsmith kernels.
