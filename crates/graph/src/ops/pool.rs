//! Pooling and means.

use super::layout::normalize_axis;
use super::window::Window;
use crate::attrs::{Attr, Attrs};
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

/// Largest value under a window; padding never wins.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MaxPool {
    pub kernel: Vec<usize>,
    pub window: Window,
}

impl Operator for MaxPool {
    const NAME: &'static str = "MaxPool";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { kernel: kernel(attrs)?, window: Window::from_attrs(attrs)? })
    }

    fn attrs(&self) -> Attrs {
        self.window.add_attrs(Attrs::new().with_ints("kernel_shape", &self.kernel))
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        pooled(inputs.get(0)?, &self.kernel, &self.window)
    }
}

/// Mean value under a window.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct AveragePool {
    pub kernel: Vec<usize>,
    pub window: Window,
    /// Whether padding counts as zeros in the mean.
    pub count_include_pad: bool,
}

impl Operator for AveragePool {
    const NAME: &'static str = "AveragePool";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self {
            kernel: kernel(attrs)?,
            window: Window::from_attrs(attrs)?,
            count_include_pad: attrs.flag("count_include_pad", false)?,
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with_ints("kernel_shape", &self.kernel);
        let mut attrs = self.window.add_attrs(attrs.with_int("count_include_pad", self.count_include_pad.into()));
        // Older opsets have no dilations here; these say nothing.
        if self.window.dilations.iter().all(|&d| d == 1) {
            attrs.0.remove("dilations");
        }
        attrs
    }

    fn since(&self) -> u32 {
        if self.window.dilations.iter().any(|&d| d != 1) { 19 } else { 13 }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        pooled(inputs.get(0)?, &self.kernel, &self.window)
    }
}

fn kernel(attrs: &Attrs) -> Result<Vec<usize>, Error> {
    attrs.sizes("kernel_shape")?.ok_or_else(|| Error::attribute("attribute `kernel_shape` is missing"))
}

fn pooled(x: &[usize], kernel: &[usize], window: &Window) -> Result<Vec<Shape>, Error> {
    if x.len() < 3 || x.len() > 4 {
        return Err(Error::shape(format!("input is {x:?}: pooling over one and two spatial axes is supported")));
    }
    let mut out = x[..2].to_vec();
    out.extend(window.output(&x[2..], kernel)?);
    Ok(vec![out])
}

/// Mean over all spatial axes, kept as size 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GlobalAveragePool;

impl Operator for GlobalAveragePool {
    const NAME: &'static str = "GlobalAveragePool";

    fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self)
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        if x.len() < 3 {
            return Err(Error::shape(format!("input is {x:?} but must have spatial axes")));
        }
        let mut out = x[..2].to_vec();
        out.resize(x.len(), 1);
        Ok(vec![out])
    }
}

/// Mean over some axes.
#[derive(Debug, Clone, PartialEq)]
pub struct ReduceMean {
    /// The axes; none given means all. Negative ones count from the end.
    pub axes: Option<Vec<i64>>,
    /// Whether reduced axes stay as size 1.
    pub keepdims: bool,
}

impl ReduceMean {
    /// Which of `rank` axes are reduced.
    pub fn reduced(&self, rank: usize) -> Result<Vec<bool>, Error> {
        let Some(axes) = &self.axes else { return Ok(vec![true; rank]) };
        let mut reduced = vec![false; rank];
        for &axis in axes {
            reduced[normalize_axis(axis, rank)?] = true;
        }
        Ok(reduced)
    }
}

impl Operator for ReduceMean {
    const NAME: &'static str = "ReduceMean";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "axes")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let axes = attrs.ints("axes")?;
        let noop = attrs.flag("noop_with_empty_axes", false)?;
        let axes = match axes {
            Some(axes) if axes.is_empty() && !noop => None,
            None if noop => Some(vec![]),
            axes => axes,
        };
        Ok(Self { axes, keepdims: attrs.flag("keepdims", true)? })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with_int("keepdims", self.keepdims.into());
        match &self.axes {
            Some(axes) if axes.is_empty() => attrs.with_int("noop_with_empty_axes", 1),
            Some(axes) => attrs.with("axes", Attr::Ints(axes.clone())),
            None => attrs,
        }
    }

    fn since(&self) -> u32 {
        if self.axes.as_ref().is_some_and(|axes| !axes.is_empty()) { 18 } else { 13 }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let reduced = self.reduced(x.len())?;
        let out = x.iter().zip(&reduced).filter_map(|(&d, &gone)| match (gone, self.keepdims) {
            (false, _) => Some(d),
            (true, true) => Some(1),
            (true, false) => None,
        });
        Ok(vec![out.collect()])
    }
}
