//! The operators, one file per family. Each is a struct of its attributes that implements [`crate::op::Operator`].

mod activation;
mod constant;
mod conv;
mod elementwise;
mod layout;
mod linear;
mod norm;
mod pool;
mod window;

pub use activation::{Clip, Gelu, HardSigmoid, HardSwish, LeakyRelu, LogSoftmax, Relu, Sigmoid, Softmax, Tanh};
pub use constant::{Cast, Constant, ConstantOfShape, Dropout, Gather, Identity, ShapeOf};
pub use conv::Conv;
pub use elementwise::{Add, Div, Mul, Sub, broadcast};
pub use layout::{Concat, Flatten, Pad, PadMode, Reshape, Slice, Split, Squeeze, Transpose, Unsqueeze, normalize_axis};
pub use linear::{Gemm, MatMul};
pub use norm::{BatchNormalization, LayerNormalization};
pub use pool::{AveragePool, GlobalAveragePool, MaxPool, ReduceMean};
pub use window::{AutoPad, Window};
