//! ONNX files, opset 11 to 25.
//!
//! [`read`] takes classifiers as exporters write them, in inference or training mode, with shapes computed by nodes and
//! weights inside or beside the file.

mod external;
#[allow(dead_code)]
mod metadata;
#[allow(dead_code)]
mod proto;
mod read;
mod tensor;

pub use read::{decode, read};
pub(crate) use tensor::{bf16_to_f32, f16_to_f32};

/// Opsets that are read and written.
pub const OPSETS: std::ops::RangeInclusive<u32> = 11..=25;

/// What files written here name as their producer.
const PRODUCER: &str = "bitsmith";
