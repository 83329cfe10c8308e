//! Which arithmetic every node of a model runs with, and why.

use std::fmt;

/// The arithmetic of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Integer codes are multiplied or added up; the result is scaled once.
    Integer,
    /// Codes are moved or compared, nothing is computed.
    Codes,
    /// 32-bit floats.
    Float,
    /// Nothing runs: the result is part of the model.
    Constant,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::Integer => "integer",
            Arithmetic::Codes => "codes",
            Arithmetic::Float => "float",
            Arithmetic::Constant => "constant",
        })
    }
}

/// One node's arithmetic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// Index into the graph's nodes.
    pub node: usize,
    /// The node's name.
    pub name: String,
    /// The operator's name.
    pub op: &'static str,
    /// What it runs with.
    pub arithmetic: Arithmetic,
    /// Why, or how.
    pub reason: String,
}
