//! Element-wise functions of one input, and softmax.

use super::layout::normalize_axis;
use crate::attrs::{Attr, Attrs};
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $name;

        impl Operator for $name {
            const NAME: &'static str = stringify!($name);
            fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> { Ok(Self) }
            fn attrs(&self) -> Attrs { Attrs::new() }
            fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> { Ok(vec![inputs.get(0)?.to_vec()]) }
        }
    )*};
}
pub(super) use unary;

unary! {
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

/// `x · HardSigmoid(x)` with alpha 1/6 and beta 1/2.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HardSwish;

impl Operator for HardSwish {
    const NAME: &'static str = "HardSwish";
    fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self)
    }
    fn attrs(&self) -> Attrs {
        Attrs::new()
    }
    fn since(&self) -> u32 {
        14
    }
    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

/// `x` where positive, `alpha · x` elsewhere.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct LeakyRelu {
    pub alpha: f32,
}

impl Operator for LeakyRelu {
    const NAME: &'static str = "LeakyRelu";
    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { alpha: attrs.float("alpha", 0.01)? })
    }
    fn attrs(&self) -> Attrs {
        Attrs::new().with_float("alpha", self.alpha)
    }
    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

/// `min(max(x, min), max)`; an absent bound is infinite. ReLU6 is `Clip` from 0 to 6.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Clip {
    pub min: Option<f32>,
    pub max: Option<f32>,
}

impl Operator for Clip {
    const NAME: &'static str = "Clip";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "min"), (2, "max")];
    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { min: attrs.float_opt("min")?, max: attrs.float_opt("max")? })
    }
    fn attrs(&self) -> Attrs {
        let mut attrs = Attrs::new();
        for (name, bound) in [("min", self.min), ("max", self.max)] {
            if let Some(bound) = bound {
                attrs = attrs.with_float(name, bound);
            }
        }
        attrs
    }
    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

/// `clamp(alpha · x + beta, 0, 1)`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct HardSigmoid {
    pub alpha: f32,
    pub beta: f32,
}

impl Operator for HardSigmoid {
    const NAME: &'static str = "HardSigmoid";
    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { alpha: attrs.float("alpha", 0.2)?, beta: attrs.float("beta", 0.5)? })
    }
    fn attrs(&self) -> Attrs {
        Attrs::new().with_float("alpha", self.alpha).with_float("beta", self.beta)
    }
    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

/// `x · Φ(x)`, exactly (erf) or by the tanh approximation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gelu {
    /// Whether Φ is approximated with tanh.
    pub tanh: bool,
}

impl Operator for Gelu {
    const NAME: &'static str = "Gelu";
    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        match attrs.str("approximate", "none")? {
            "none" => Ok(Self { tanh: false }),
            "tanh" => Ok(Self { tanh: true }),
            other => Err(Error::attribute(format!("attribute `approximate` is `{other}`: expected none or tanh"))),
        }
    }
    fn attrs(&self) -> Attrs {
        Attrs::new().with("approximate", Attr::Str(if self.tanh { "tanh" } else { "none" }.to_owned()))
    }
    fn since(&self) -> u32 {
        20
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

macro_rules! softmax {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            /// The axis that sums to one; negative counts from the end.
            pub axis: i64,
        }

        impl Operator for $name {
            const NAME: &'static str = stringify!($name);
            fn from_attrs(attrs: &Attrs, opset: u32) -> Result<Self, Error> {
                // Before opset 13 the default was 1, and the input was seen as a matrix split there; for the last
                // axis of a matrix, where classifiers use it, both readings agree.
                Ok(Self { axis: attrs.int("axis", if opset < 13 { 1 } else { -1 })? })
            }
            fn attrs(&self) -> Attrs { Attrs::new().with_int("axis", self.axis) }
            fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
                let x = inputs.get(0)?;
                normalize_axis(self.axis, x.len())?;
                Ok(vec![x.to_vec()])
            }
        }
    )*};
}

softmax! {
    /// `e^x / Σ e^x` along an axis.
    Softmax,
    /// `log(Softmax(x))`.
    LogSoftmax,
}
