//! Matrix products.

use super::conv::product;
use super::elementwise::broadcast;
use crate::attrs::Attrs;
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

/// `y = alpha · A' B' + beta · C` with A' `[M, K]`, B' `[K, N]`, C broadcast to `[M, N]` (optional).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Gemm {
    pub alpha: f32,
    pub beta: f32,
    /// Whether A is stored `[K, M]`.
    pub trans_a: bool,
    /// Whether B is stored `[N, K]`, as linear layers have it.
    pub trans_b: bool,
}

impl Default for Gemm {
    /// A linear layer: weight `[out, in]`.
    fn default() -> Self {
        Self { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true }
    }
}

impl Operator for Gemm {
    const NAME: &'static str = "Gemm";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self {
            alpha: attrs.float("alpha", 1.0)?,
            beta: attrs.float("beta", 1.0)?,
            trans_a: attrs.flag("transA", false)?,
            trans_b: attrs.flag("transB", false)?,
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .with_float("alpha", self.alpha)
            .with_float("beta", self.beta)
            .with_int("transA", self.trans_a.into())
            .with_int("transB", self.trans_b.into())
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let (a, b) = (inputs.get(0)?, inputs.get(1)?);
        let (&[a0, a1], &[b0, b1]) = (a, b) else {
            return Err(Error::shape(format!("operands are {a:?} and {b:?} but must have two axes each")));
        };
        let (m, k) = if self.trans_a { (a1, a0) } else { (a0, a1) };
        let (k_b, n) = if self.trans_b { (b1, b0) } else { (b0, b1) };
        if k != k_b {
            return Err(Error::shape(format!("input has {k} features but the weight {b:?} takes {k_b}")));
        }
        if let Some(c) = inputs.opt(2)
            && broadcast(c, &[m, n]).as_deref() != Ok(&[m, n])
        {
            return Err(Error::shape(format!("bias is {c:?}, which does not broadcast to [{m}, {n}]")));
        }
        Ok(vec![vec![m, n]])
    }

    fn macs(&self, inputs: InputShapes<'_>, outputs: &[Shape]) -> u64 {
        let Ok(a) = inputs.get(0) else { return 0 };
        let k = a.get(usize::from(!self.trans_a)).copied().unwrap_or(0);
        product(&outputs[0]).saturating_mul(k as u64)
    }
}

/// Matrix product of the last two axes, the others broadcast.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MatMul;

impl Operator for MatMul {
    const NAME: &'static str = "MatMul";

    fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self)
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let (a, b) = (inputs.get(0)?, inputs.get(1)?);
        let (&[.., m, k], &[.., k_b, n]) = (a, b) else {
            return Err(Error::shape(format!("operands are {a:?} and {b:?} but must have at least two axes each")));
        };
        if k != k_b {
            return Err(Error::shape(format!("inner sizes differ: {a:?} times {b:?}")));
        }
        let mut out = broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
        out.extend([m, n]);
        Ok(vec![out])
    }

    fn macs(&self, inputs: InputShapes<'_>, outputs: &[Shape]) -> u64 {
        let k = inputs.get(0).ok().and_then(|a| a.last().copied()).unwrap_or(0);
        product(&outputs[0]).saturating_mul(k as u64)
    }
}
