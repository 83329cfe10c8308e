//! bitsmith quant.
