//! bitsmith runtime.
