//! A graph compiled into steps: which operators, in which layout, what is fused, when a value is no longer needed.
//!
//! ```text
//! BatchNormalization ─▶ Add ─▶ activation ─▶ fake-quant site      one step, as far as this chain reaches
//! Slice ─▶ Pad            the shortcut of a residual block that changes shape: one step, if channels-last
//! MatMul ─▶ Add           a weight and its bias: one step
//! ```
//!
//! A chain is fused where each intermediate value has one reader, is neither an output nor a site, and (for the addition) both
//! operands have the same shape. The fused step runs where its last node stands, so all inputs exist by then.
//!
//! Values of four axes (or three, for one-dimensional convolutions) inside convolutional regions are stored channels-last.
//! Operators say which layout they want; a value is converted once, at the first reader that wants the other one.

mod chains;
mod compile;
mod execute;
mod nodes;
#[cfg(test)]
mod tests;

pub(crate) use compile::{Facts, compile};
pub(crate) use execute::{Batch, Leaves, Observed, Run, Seen, execute};

use bitsmith_graph::ValueId;
use bitsmith_graph::ops::{AveragePool, BatchNormalization, Conv, MaxPool};
use bitsmith_kernels::activation::Activation;

use crate::ops::{FakeQuant, Pair, Shortcut};

/// How a value lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layout {
    /// As the graph says.
    First,
    /// `[N, C, H, W]` stored as `[N, H, W, C]`, `[N, C, L]` as `[N, 1, L, C]`.
    Last,
}

/// A place for a tensor while a plan runs.
pub(crate) type Slot = usize;

/// What a step reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arg {
    /// A computed value.
    Slot(Slot),
    /// A constant of the graph, as a leaf.
    Constant(ValueId),
}

/// One operator of a plan.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// The node it came from; the last one of a fused chain.
    pub name: String,
    pub kind: Kind,
    pub inputs: Vec<Arg>,
    pub outputs: Vec<Slot>,
    /// The graph's values behind the first input and the first output, for their shapes.
    pub x: ValueId,
    pub y: ValueId,
    /// Slots that nothing reads after this step.
    pub free: Vec<Slot>,
}

/// A normalisation and what is fused behind it.
#[derive(Debug, Clone)]
pub(crate) struct NormStep {
    pub op: BatchNormalization,
    pub mean: ValueId,
    pub variance: ValueId,
    pub has_add: bool,
    pub activation: Activation,
    /// The site whose step is the last input.
    pub quant: Option<(ValueId, FakeQuant)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// x, w, bias?
    Conv(Conv),
    /// x, gamma, beta, addend?
    Norm(NormStep),
    /// x, gamma, beta, all as rows.
    LayerNorm {
        epsilon: f32,
    },
    Activation(Activation),
    FakeQuant(ValueId, FakeQuant),
    FakeQuantPair(ValueId, Pair),
    MaxPool(MaxPool),
    AveragePool(AveragePool),
    GlobalAveragePool,
    /// x, w, bias?
    Linear {
        transposed: bool,
    },
    ToLast,
    ToFirst,
    /// Another shape for the same elements; the output's.
    Reshape,
    Permute(Vec<usize>),
    /// Two operands, broadcast.
    Binary(Binary, Layout),
    /// Operands `[.., m, k]` and `[.., k, n]`, broadcast.
    MatMul,
    Scale(f32),
    Softmax {
        axis: usize,
        log: bool,
    },
    /// Axes that are averaged away; kept as size 1, then reshaped to the output.
    Mean(Vec<usize>),
    /// (before, after) per axis; negative crops.
    Pad {
        pads: Vec<(i64, i64)>,
        mode: bitsmith_graph::ops::PadMode,
        value: f32,
    },
    /// In this layout.
    Slice(bitsmith_graph::ops::Slice, Layout),
    Concat {
        axis: usize,
    },
    /// The sizes of the parts.
    Split {
        axis: usize,
        sizes: Vec<usize>,
    },
    /// A slice over height and width, then zeros around the channels.
    Shortcut(Shortcut),
    /// Indices along an axis.
    Gather {
        axis: usize,
        indices: Vec<i64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
}

/// What a constant is to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The weight of a convolution or linear layer.
    Weight,
    /// Its bias.
    Bias,
    /// Gamma of a batch normalisation.
    Gamma,
    /// Its beta.
    Beta,
    /// Its running mean.
    Mean,
    /// Its running variance.
    Variance,
    /// An operand of an elementwise operator or matrix product: a parameter if it has more than one element (a bias that was
    /// exported as an addition), a number of the formula otherwise.
    Operand,
}

impl Role {
    /// Whether training changes it through its gradient.
    pub(crate) fn is_trained(self, len: usize) -> bool {
        match self {
            Role::Mean | Role::Variance => false,
            Role::Operand => len > 1,
            _ => true,
        }
    }
}

/// Steps in order.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    pub slots: usize,
    /// Where the input goes first, in the graph's layout.
    pub input: Slot,
    /// Requested values, in the graph's layout, in the order asked for.
    pub outputs: Vec<Slot>,
    /// Constants that steps read, with their stored shape.
    pub constants: Vec<(ValueId, Role, Vec<usize>)>,
    /// Sites whose step is a parameter of the plan.
    pub sites: Vec<ValueId>,
    /// Those of them that stand between two widths.
    pub pairs: Vec<ValueId>,
}
