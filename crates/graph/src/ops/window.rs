//! The sliding window that convolution and pooling share: strides, pads, dilations, rounding of the output size.

use crate::attrs::{Attr, Attrs};
use crate::error::Error;

/// How pads are chosen where they are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum AutoPad {
    #[default]
    NotSet,
    Valid,
    SameUpper,
    SameLower,
}

/// Strides, pads and dilations over the spatial axes. Empty vectors mean ONNX's defaults (1, 0, 1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Step per spatial axis.
    pub strides: Vec<usize>,
    /// All beginnings, then all ends: `[top, left, bottom, right]` in two dimensions.
    pub pads: Vec<usize>,
    /// Distance between taps per spatial axis.
    pub dilations: Vec<usize>,
    /// How pads follow from the input size instead.
    pub auto_pad: AutoPad,
    /// Whether a last window that only partly covers the input counts (pooling).
    pub ceil_mode: bool,
}

impl Window {
    /// The same stride and symmetric pad along `axes` spatial axes.
    pub fn uniform(axes: usize, stride: usize, pad: usize) -> Self {
        Self { strides: vec![stride; axes], pads: vec![pad; 2 * axes], dilations: vec![1; axes], ..Self::default() }
    }

    /// Reads the ONNX attributes.
    pub fn from_attrs(attrs: &Attrs) -> Result<Self, Error> {
        let at_least_one = |name: &str| -> Result<Vec<usize>, Error> {
            let values = attrs.sizes(name)?.unwrap_or_default();
            match values.contains(&0) {
                true => {
                    Err(Error::attribute(format!("attribute `{name}` is {values:?}: every entry must be at least 1")))
                }
                false => Ok(values),
            }
        };
        Ok(Self {
            strides: at_least_one("strides")?,
            pads: attrs.sizes("pads")?.unwrap_or_default(),
            dilations: at_least_one("dilations")?,
            auto_pad: match attrs.str("auto_pad", "NOTSET")? {
                "NOTSET" | "" => AutoPad::NotSet,
                "VALID" => AutoPad::Valid,
                "SAME_UPPER" => AutoPad::SameUpper,
                "SAME_LOWER" => AutoPad::SameLower,
                other => {
                    return Err(Error::attribute(format!(
                        "attribute `auto_pad` is `{other}`: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"
                    )));
                }
            },
            ceil_mode: attrs.flag("ceil_mode", false)?,
        })
    }

    /// Adds the ONNX attributes that differ from their defaults.
    pub fn add_attrs(&self, mut attrs: Attrs) -> Attrs {
        for (name, values) in [("strides", &self.strides), ("pads", &self.pads), ("dilations", &self.dilations)] {
            let implied = name == "pads" && self.auto_pad != AutoPad::NotSet;
            if !values.is_empty() && !implied {
                attrs = attrs.with_ints(name, values);
            }
        }
        let auto_pad = match self.auto_pad {
            AutoPad::NotSet => None,
            AutoPad::Valid => Some("VALID"),
            AutoPad::SameUpper => Some("SAME_UPPER"),
            AutoPad::SameLower => Some("SAME_LOWER"),
        };
        if let Some(name) = auto_pad {
            attrs = attrs.with("auto_pad", Attr::Str(name.to_owned()));
        }
        match self.ceil_mode {
            true => attrs.with_int("ceil_mode", 1),
            false => attrs,
        }
    }

    /// Stride of spatial axis `axis`.
    pub fn stride(&self, axis: usize) -> usize {
        self.strides.get(axis).copied().unwrap_or(1)
    }

    /// Dilation of spatial axis `axis`.
    pub fn dilation(&self, axis: usize) -> usize {
        self.dilations.get(axis).copied().unwrap_or(1)
    }

    /// Pads (begin, end) of spatial axis `axis` for an input of `size` under a kernel of `kernel` taps.
    pub fn pad(&self, axis: usize, axes: usize, size: usize, kernel: usize) -> (usize, usize) {
        let stride = self.stride(axis);
        match self.auto_pad {
            AutoPad::NotSet => {
                (self.pads.get(axis).copied().unwrap_or(0), self.pads.get(axes + axis).copied().unwrap_or(0))
            }
            AutoPad::Valid => (0, 0),
            AutoPad::SameUpper | AutoPad::SameLower => {
                let extent = (kernel.saturating_sub(1)).saturating_mul(self.dilation(axis)).saturating_add(1);
                let needed = (size.div_ceil(stride).saturating_sub(1)).saturating_mul(stride).saturating_add(extent);
                let total = needed.saturating_sub(size);
                let small = total / 2;
                if self.auto_pad == AutoPad::SameUpper { (small, total - small) } else { (total - small, small) }
            }
        }
    }

    /// Output sizes of the spatial axes, or which axis does not fit.
    pub fn output(&self, sizes: &[usize], kernel: &[usize]) -> Result<Vec<usize>, Error> {
        let axes = sizes.len();
        let lengths = [
            ("kernel", kernel.len(), axes),
            ("strides", self.strides.len(), axes),
            ("dilations", self.dilations.len(), axes),
            ("pads", self.pads.len(), 2 * axes),
        ];
        for (name, found, wanted) in lengths {
            if found != wanted && (found != 0 || name == "kernel") {
                return Err(Error::shape(format!(
                    "{name} has {found} entries but the input has {axes} spatial axes, which needs {wanted}"
                )));
            }
        }
        (0..axes)
            .map(|axis| {
                let (begin, end) = self.pad(axis, axes, sizes[axis], kernel[axis]);
                let extent = kernel[axis].saturating_sub(1).saturating_mul(self.dilation(axis)).saturating_add(1);
                let padded = sizes[axis].saturating_add(begin).saturating_add(end);
                if kernel[axis] == 0 || extent > padded {
                    return Err(Error::shape(format!(
                        "a window of {extent} does not fit into spatial axis {axis} of {} padded to {padded}",
                        sizes[axis]
                    )));
                }
                let stride = self.stride(axis);
                let free = padded - extent;
                let windows = if self.ceil_mode { free.div_ceil(stride) } else { free / stride };
                let mut out = windows.saturating_add(1);
                // A window that would start in the end padding is dropped, as in ONNX and PyTorch.
                if self.ceil_mode && (out - 1).saturating_mul(stride) >= sizes[axis].saturating_add(begin) {
                    out -= 1;
                }
                Ok(out)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes() {
        struct Case(Window, usize, usize, usize);
        let same = Window { strides: vec![2], auto_pad: AutoPad::SameUpper, ..Window::default() };
        let ceil = Window { strides: vec![2], ceil_mode: true, ..Window::default() };
        let cases = [
            Case(Window::uniform(1, 1, 1), 32, 3, 32),
            Case(Window::uniform(1, 2, 1), 32, 3, 16),
            Case(Window { dilations: vec![2], ..Window::uniform(1, 1, 0) }, 7, 3, 3),
            Case(same, 7, 3, 4),
            Case(ceil, 55, 3, 27),
            Case(Window { strides: vec![2], ceil_mode: true, ..Window::default() }, 56, 3, 28),
        ];
        for Case(window, size, kernel, out) in cases {
            assert_eq!(window.output(&[size], &[kernel]), Ok(vec![out]), "{window:?} on {size}");
        }
        let error = Window::default().output(&[2], &[3]).unwrap_err();
        assert_eq!(error.to_string(), "a window of 3 does not fit into spatial axis 0 of 2 padded to 2");
    }
}
