//! Normalisation.

use super::layout::normalize_axis;
use crate::attrs::Attrs;
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

/// Batch normalisation per channel (axis 1): inputs x, gamma, beta, running mean, running variance (all `[C]`).
///
/// As data it is always the inference form; whether statistics come from the batch is the trainer's choice.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNormalization {
    /// Added to the variance.
    pub epsilon: f32,
    /// Share of the *old* running statistic kept per step (ONNX's convention; PyTorch's momentum is one minus this).
    pub momentum: f32,
}

impl Default for BatchNormalization {
    fn default() -> Self {
        Self { epsilon: 1e-5, momentum: 0.9 }
    }
}

impl Operator for BatchNormalization {
    const NAME: &'static str = "BatchNormalization";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { epsilon: attrs.float("epsilon", 1e-5)?, momentum: attrs.float("momentum", 0.9)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_float("epsilon", self.epsilon).with_float("momentum", self.momentum)
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        if x.len() < 2 {
            return Err(Error::shape(format!("input is {x:?} but must have a channel axis")));
        }
        for (index, name) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "variance")] {
            let p = inputs.get(index)?;
            if p != [x[1]] {
                return Err(Error::shape(format!("{name} is {p:?} but the input has {} channels", x[1])));
            }
        }
        Ok(vec![x.to_vec()])
    }
}

/// Layer normalisation: inputs x, gamma and (optional) beta of the shape of x from `axis` on, over which mean and variance are taken.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormalization {
    /// The first axis that is normalised over; negative counts from the end.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Default for LayerNormalization {
    fn default() -> Self {
        Self { axis: -1, epsilon: 1e-5 }
    }
}

impl Operator for LayerNormalization {
    const NAME: &'static str = "LayerNormalization";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axis: attrs.int("axis", -1)?, epsilon: attrs.float("epsilon", 1e-5)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_int("axis", self.axis).with_float("epsilon", self.epsilon)
    }

    fn since(&self) -> u32 {
        17
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let axis = normalize_axis(self.axis, x.len())?;
        if axis == 0 {
            return Err(Error::shape("it normalises over the batch axis: samples must stay independent"));
        }
        for (index, name) in [(1, "gamma"), (2, "beta")] {
            match inputs.opt(index) {
                Some(p) if p != &x[axis..] => {
                    return Err(Error::shape(format!(
                        "{name} is {p:?} but the input is {:?} from axis {axis} on",
                        &x[axis..]
                    )));
                }
                None if index == 1 => return Err(Error::shape("gamma is missing")),
                _ => {}
            }
        }
        Ok(vec![x.to_vec()])
    }
}
