//! ONNX files, opset 11 to 25.
//!
//! [`read`] takes classifiers as exporters write them, in inference or training mode, with shapes computed by nodes and
//! weights inside or beside the file.

mod external;
mod metadata;
mod proto;
mod qdq;
mod read;
mod tensor;
mod write;

pub use qdq::{LayerRow, Target, write_qdq};
pub use read::{decode, read};
pub(crate) use tensor::{bf16_to_f32, f16_to_f32};
pub use write::write_float;

/// Opsets that are read.
pub const OPSETS: std::ops::RangeInclusive<u32> = 11..=25;

/// Opsets that are written: the first has scales per channel.
pub const OPSETS_WRITTEN: std::ops::RangeInclusive<u32> = 13..=25;

/// What files written here name as their producer.
const PRODUCER: &str = "bitsmith";

#[cfg(test)]
mod tests;
