//! Operators that are gone, or trivial, once constants are folded.

use super::activation::unary;
use super::layout::normalize_axis;
use crate::attrs::{Attr, Attrs};
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::{Shape, Tensor};

unary! {
    /// `x`.
    Identity,
}

/// `x`: dropout at inference. Training-mode exports are read as this too.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dropout;

impl Operator for Dropout {
    const NAME: &'static str = "Dropout";
    // Both matter in training only.
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "ratio"), (2, "training_mode")];

    fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self)
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}

/// A tensor that is part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant {
    /// The tensor.
    pub value: Tensor,
}

impl Operator for Constant {
    const NAME: &'static str = "Constant";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let value = match attrs.0.iter().next() {
            Some((_, Attr::Tensor(t))) => t.clone(),
            Some((_, Attr::Int(v))) => Tensor::int(*v),
            Some((_, Attr::Ints(v))) => Tensor::ints(v.clone()),
            Some((_, Attr::Float(v))) => Tensor::f32([], vec![*v])?,
            Some((_, Attr::Floats(v))) => Tensor::floats(v.clone()),
            _ => return Err(Error::attribute("attribute `value` is missing or of an unsupported type")),
        };
        Ok(Self { value })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with("value", Attr::Tensor(self.value.clone()))
    }

    fn infer(&self, _inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![self.value.shape().to_vec()])
    }
}

/// A tensor of one repeated value.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstantOfShape {
    /// The shape; folded from the input.
    pub shape: Vec<usize>,
    /// One element.
    pub value: Tensor,
}

impl Operator for ConstantOfShape {
    const NAME: &'static str = "ConstantOfShape";
    const PARAMS: &'static [(usize, &'static str)] = &[(0, "shape")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let value = match attrs.tensor("value")? {
            Some(t) if t.len() == 1 => t.clone(),
            Some(t) => {
                return Err(Error::attribute(format!("attribute `value` has {} elements but must have one", t.len())));
            }
            None => Tensor::floats(vec![0.0]),
        };
        let shape = attrs.sizes("shape")?.ok_or_else(|| Error::attribute("the shape must be a constant"))?;
        Ok(Self { shape, value })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_ints("shape", &self.shape).with("value", Attr::Tensor(self.value.clone()))
    }

    fn infer(&self, _inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![self.shape.clone()])
    }
}

/// The shape of a tensor, as a vector of integers (ONNX `Shape`).
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeOf {
    /// First axis; negative counts from the end.
    pub start: i64,
    /// One past the last axis; none means all.
    pub end: Option<i64>,
}

impl ShapeOf {
    /// The range of axes for a tensor of `rank` axes. Bounds are clamped, as ONNX says.
    pub fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let clamp = |v: i64| {
            let v = if v < 0 { v.saturating_add(rank as i64) } else { v };
            usize::try_from(v).unwrap_or(0).min(rank)
        };
        let start = clamp(self.start);
        start..self.end.map_or(rank, clamp).max(start)
    }
}

impl Operator for ShapeOf {
    const NAME: &'static str = "Shape";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let end = attrs.get("end").map(|_| attrs.int("end", 0)).transpose()?;
        Ok(Self { start: attrs.int("start", 0)?, end })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with_int("start", self.start);
        match self.end {
            Some(end) => attrs.with_int("end", end),
            None => attrs,
        }
    }

    fn since(&self) -> u32 {
        15
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![vec![self.range(inputs.get(0)?.len()).len()]])
    }
}

/// Picks slices of `data` along an axis by integer indices.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Gather {
    pub axis: i64,
}

impl Operator for Gather {
    const NAME: &'static str = "Gather";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axis: attrs.int("axis", 0)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_int("axis", self.axis)
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let (data, indices) = (inputs.get(0)?, inputs.get(1)?);
        let axis = normalize_axis(self.axis, data.len())?;
        let mut out = data[..axis].to_vec();
        out.extend(indices);
        out.extend(&data[axis + 1..]);
        Ok(vec![out])
    }
}

/// Conversion to another element type, named by ONNX's number (1 float, 6 int32, 7 int64, 9 bool, …).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Cast {
    pub to: i64,
}

impl Operator for Cast {
    const NAME: &'static str = "Cast";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { to: attrs.int("to", 1)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_int("to", self.to)
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![inputs.get(0)?.to_vec()])
    }
}
