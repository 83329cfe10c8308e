//! What an operator is, and the one list that registers them all.
//!
//! Operators are named and behave as in ONNX. An operator is a struct of its attributes; its inputs and outputs belong to
//! the [`crate::graph::Node`]. Inputs that ONNX passes as tensors but that must be known beforehand (the target of a
//! `Reshape`, the bounds of a `Slice`) are attributes here: [`Operator::PARAMS`] says which, so that importers fold them
//! in and exporters spell them out without knowing any operator by name.

use bitsmith_kernels::activation::Activation;

use crate::attrs::Attrs;
use crate::error::{Error, Kind};
use crate::ops::*;
use crate::tensor::Shape;

/// The shapes of a node's inputs. Optional inputs that are absent have none.
#[derive(Debug, Clone, Copy)]
pub struct InputShapes<'a>(pub &'a [Option<&'a [usize]>]);

impl<'a> InputShapes<'a> {
    /// The shape of input `index`, which the operator cannot do without.
    pub fn get(&self, index: usize) -> Result<&'a [usize], Error> {
        self.opt(index).ok_or_else(|| Error::shape(format!("input {index} is missing")))
    }

    /// The shape of input `index`, if it is there.
    pub fn opt(&self, index: usize) -> Option<&'a [usize]> {
        self.0.get(index).copied().flatten()
    }

    /// Number of inputs, absent ones included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One operator: attributes, shapes, cost.
pub trait Operator: Sized {
    /// ONNX `op_type`.
    const NAME: &'static str;
    /// Inputs that must be constant and are kept as attributes instead: (ONNX input index, attribute name).
    const PARAMS: &'static [(usize, &'static str)] = &[];

    /// Reads the attributes as they mean in `opset`. Defaults are ONNX's.
    fn from_attrs(attrs: &Attrs, opset: u32) -> Result<Self, Error>;
    /// The inverse of [`Operator::from_attrs`] at the newest opset.
    fn attrs(&self) -> Attrs;
    /// The first opset in which [`Operator::attrs`], with [`Operator::PARAMS`] as inputs, is how ONNX spells this operator.
    /// Exporters write no opset below 13.
    fn since(&self) -> u32 {
        13
    }
    /// Shapes of the outputs, or why the inputs do not fit.
    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error>;
    /// Multiply-accumulate operations for these shapes; 0 where nothing is multiplied by a weight.
    fn macs(&self, _inputs: InputShapes<'_>, _outputs: &[Shape]) -> u64 {
        0
    }
}

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// Any operator.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Op { $($op($op)),* }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Op { Op::$op(op) }
        })*

        impl Op {
            /// The names of all operators, as ONNX spells them.
            pub const NAMES: &'static [&'static str] = &[$($op::NAME),*];

            /// ONNX `op_type`.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => $op::NAME),* }
            }

            /// Inputs that are kept as attributes; see [`Operator::PARAMS`]. `None` where the operator is not known.
            pub fn params_of(name: &str) -> Option<&'static [(usize, &'static str)]> {
                $(if name == $op::NAME { return Some($op::PARAMS); })*
                None
            }

            /// Reads an operator by name.
            pub fn from_attrs(name: &str, attrs: &Attrs, opset: u32) -> Result<Op, Error> {
                $(if name == $op::NAME { return $op::from_attrs(attrs, opset).map(Op::$op); })*
                Err(Error::new(Kind::Operator, format!("operator `{name}` is not known here")))
            }

            /// The attributes; inverse of [`Op::from_attrs`].
            pub fn attrs(&self) -> Attrs {
                match self { $(Op::$op(op) => op.attrs()),* }
            }

            /// The first opset that has the operator as written here; see [`Operator::since`].
            pub fn since(&self) -> u32 {
                match self { $(Op::$op(op) => op.since()),* }
            }

            /// Shapes of the outputs.
            pub fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
                match self { $(Op::$op(op) => op.infer(inputs)),* }
            }

            /// Multiply-accumulate operations.
            pub fn macs(&self, inputs: InputShapes<'_>, outputs: &[Shape]) -> u64 {
                match self { $(Op::$op(op) => op.macs(inputs, outputs)),* }
            }
        }
    };
}

ops! {
    Conv, Gemm, MatMul, BatchNormalization, LayerNormalization,
    Relu, LeakyRelu, Clip, HardSwish, HardSigmoid, Sigmoid, Tanh, Gelu, Softmax, LogSoftmax,
    Add, Sub, Mul, Div,
    MaxPool, AveragePool, GlobalAveragePool, ReduceMean,
    Flatten, Reshape, Transpose, Squeeze, Unsqueeze, Pad, Slice, Concat, Split,
    Constant, ConstantOfShape, ShapeOf, Gather, Cast, Identity, Dropout,
}

impl Op {
    /// The element-wise function of one input that this operator is, if it is one the kernels fuse.
    pub fn activation(&self) -> Option<Activation> {
        Some(match self {
            Op::Relu(_) => Activation::Relu,
            Op::LeakyRelu(op) => Activation::LeakyRelu { alpha: op.alpha },
            Op::Clip(op) => {
                Activation::Clip { min: op.min.unwrap_or(f32::NEG_INFINITY), max: op.max.unwrap_or(f32::INFINITY) }
            }
            Op::HardSwish(_) => Activation::HardSwish,
            Op::HardSigmoid(op) => Activation::HardSigmoid { alpha: op.alpha, beta: op.beta },
            Op::Sigmoid(_) => Activation::Sigmoid,
            Op::Tanh(_) => Activation::Tanh,
            Op::Gelu(op) if op.tanh => Activation::GeluTanh,
            Op::Gelu(_) => Activation::GeluErf,
            _ => return None,
        })
    }
}
