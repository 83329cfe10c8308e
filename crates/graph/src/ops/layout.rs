//! Operators that move elements without computing: reshape, transpose, pad, slice, concatenate, split.

use crate::attrs::{Attr, Attrs};
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::{Shape, element_count};

/// Turns an axis that may count from the end into an index below `rank`.
pub fn normalize_axis(axis: i64, rank: usize) -> Result<usize, Error> {
    let r = rank as i64;
    let index = if axis < 0 { axis.saturating_add(r) } else { axis };
    match (0..r).contains(&index) {
        true => Ok(index as usize),
        false => Err(Error::attribute(format!("axis {axis} does not exist in a tensor of {rank} axes"))),
    }
}

/// Two axes: everything before `axis` by everything from it on.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Flatten {
    pub axis: i64,
}

impl Default for Flatten {
    fn default() -> Self {
        Self { axis: 1 }
    }
}

impl Operator for Flatten {
    const NAME: &'static str = "Flatten";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axis: attrs.int("axis", 1)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_int("axis", self.axis)
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let axis = if self.axis == x.len() as i64 { x.len() } else { normalize_axis(self.axis, x.len())? };
        Ok(vec![vec![x[..axis].iter().product(), x[axis..].iter().product()]])
    }
}

/// The same elements under another shape: -1 is inferred, 0 copies the input's size (unless `allow_zero`).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Reshape {
    pub shape: Vec<i64>,
    pub allow_zero: bool,
}

impl Operator for Reshape {
    const NAME: &'static str = "Reshape";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "shape")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let shape = attrs.ints("shape")?.ok_or_else(|| Error::attribute("the target shape must be a constant"))?;
        Ok(Self { shape, allow_zero: attrs.flag("allowzero", false)? })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with("shape", Attr::Ints(self.shape.clone()));
        if self.allow_zero { attrs.with_int("allowzero", 1) } else { attrs }
    }

    fn since(&self) -> u32 {
        if self.allow_zero { 14 } else { 13 }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let misfit = || Error::shape(format!("{x:?} does not reshape to {:?}", self.shape));
        let mut inferred = None;
        let mut out = Vec::with_capacity(self.shape.len());
        for (axis, &size) in self.shape.iter().enumerate() {
            out.push(match size {
                -1 if inferred.is_none() => {
                    inferred = Some(axis);
                    1
                }
                0 if !self.allow_zero => *x.get(axis).ok_or_else(misfit)?,
                size => usize::try_from(size).map_err(|_| misfit())?,
            });
        }
        let total: usize = x.iter().product();
        let known = element_count(&out).ok_or_else(misfit)?;
        if let Some(axis) = inferred {
            if known == 0 || !total.is_multiple_of(known) {
                return Err(misfit());
            }
            out[axis] = total / known;
        } else if known != total {
            return Err(misfit());
        }
        Ok(vec![out])
    }
}

/// Reorders axes; no permutation given means reversed.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Transpose {
    pub perm: Option<Vec<usize>>,
}

impl Transpose {
    /// The permutation for `rank` axes, checked.
    pub fn permutation(&self, rank: usize) -> Result<Vec<usize>, Error> {
        let Some(perm) = &self.perm else { return Ok((0..rank).rev().collect()) };
        let mut seen = perm.clone();
        seen.sort_unstable();
        match seen.iter().copied().eq(0..rank) {
            true => Ok(perm.clone()),
            false => Err(Error::attribute(format!("{perm:?} is not a permutation of {rank} axes"))),
        }
    }
}

impl Operator for Transpose {
    const NAME: &'static str = "Transpose";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { perm: attrs.sizes("perm")? })
    }

    fn attrs(&self) -> Attrs {
        match &self.perm {
            Some(perm) => Attrs::new().with_ints("perm", perm),
            None => Attrs::new(),
        }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        Ok(vec![self.permutation(x.len())?.into_iter().map(|axis| x[axis]).collect()])
    }
}

/// Drops axes of size 1; none given means all of them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Squeeze {
    pub axes: Option<Vec<i64>>,
}

impl Operator for Squeeze {
    const NAME: &'static str = "Squeeze";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "axes")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axes: attrs.ints("axes")? })
    }

    fn attrs(&self) -> Attrs {
        match &self.axes {
            Some(axes) => Attrs::new().with("axes", Attr::Ints(axes.clone())),
            None => Attrs::new(),
        }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let mut gone: Vec<bool> = x.iter().map(|&d| d == 1).collect();
        if let Some(axes) = &self.axes {
            gone.fill(false);
            for &axis in axes {
                let axis = normalize_axis(axis, x.len())?;
                if x[axis] != 1 {
                    return Err(Error::shape(format!("axis {axis} of {x:?} is not of size 1")));
                }
                gone[axis] = true;
            }
        }
        Ok(vec![x.iter().zip(gone).filter(|(_, gone)| !gone).map(|(&d, _)| d).collect()])
    }
}

/// Inserts axes of size 1 at these places of the output.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Unsqueeze {
    pub axes: Vec<i64>,
}

impl Operator for Unsqueeze {
    const NAME: &'static str = "Unsqueeze";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "axes")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axes: attrs.ints("axes")?.ok_or_else(|| Error::attribute("the axes must be a constant"))? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with("axes", Attr::Ints(self.axes.clone()))
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let rank = x.len() + self.axes.len();
        let mut is_new = vec![false; rank];
        for &axis in &self.axes {
            let axis = normalize_axis(axis, rank)?;
            if std::mem::replace(&mut is_new[axis], true) {
                return Err(Error::attribute(format!("axes {:?} name one axis twice", self.axes)));
            }
        }
        let mut old = x.iter().copied();
        Ok(vec![is_new.into_iter().map(|new| if new { 1 } else { old.next().unwrap_or(1) }).collect()])
    }
}

/// What padding is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PadMode {
    Constant,
    Reflect,
    Edge,
}

/// Grows (or, with negative pads, crops) a tensor at both ends of its axes.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Pad {
    /// All beginnings, then all ends, of `axes`.
    pub pads: Vec<i64>,
    /// The axes meant; none given means all.
    pub axes: Option<Vec<i64>>,
    pub mode: PadMode,
    /// The fill of [`PadMode::Constant`].
    pub value: f32,
}

impl Pad {
    /// (begin, end) per axis of a tensor of `rank` axes.
    pub fn per_axis(&self, rank: usize) -> Result<Vec<(i64, i64)>, Error> {
        let axes = match &self.axes {
            Some(axes) => axes.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).collect(),
        };
        if self.pads.len() != 2 * axes.len() {
            return Err(Error::attribute(format!(
                "{} pads are given but {} axes need {}",
                self.pads.len(),
                axes.len(),
                2 * axes.len()
            )));
        }
        let mut out = vec![(0, 0); rank];
        for (i, &axis) in axes.iter().enumerate() {
            out[axis] = (self.pads[i], self.pads[axes.len() + i]);
        }
        Ok(out)
    }
}

impl Operator for Pad {
    const NAME: &'static str = "Pad";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "pads"), (2, "constant_value"), (3, "axes")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let value = match attrs.float_opt("constant_value")? {
            Some(value) => value,
            None => attrs.float("value", 0.0)?,
        };
        Ok(Self {
            pads: attrs.ints("pads")?.ok_or_else(|| Error::attribute("the pads must be a constant"))?,
            axes: attrs.ints("axes")?,
            mode: match attrs.str("mode", "constant")? {
                "constant" => PadMode::Constant,
                "reflect" => PadMode::Reflect,
                "edge" => PadMode::Edge,
                other => {
                    return Err(Error::attribute(format!(
                        "attribute `mode` is `{other}`: expected constant, reflect or edge"
                    )));
                }
            },
            value,
        })
    }

    fn attrs(&self) -> Attrs {
        let mode = match self.mode {
            PadMode::Constant => "constant",
            PadMode::Reflect => "reflect",
            PadMode::Edge => "edge",
        };
        let mut attrs =
            Attrs::new().with("pads", Attr::Ints(self.pads.clone())).with("mode", Attr::Str(mode.to_owned()));
        if self.mode == PadMode::Constant {
            attrs = attrs.with_float("constant_value", self.value);
        }
        match &self.axes {
            Some(axes) => attrs.with("axes", Attr::Ints(axes.clone())),
            None => attrs,
        }
    }

    fn since(&self) -> u32 {
        if self.axes.is_some() { 18 } else { 13 }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let out = self.per_axis(x.len())?.into_iter().zip(x).map(|((begin, end), &d)| {
            let size = (d as i64).saturating_add(begin).saturating_add(end);
            usize::try_from(size).map_err(|_| Error::shape(format!("pads {:?} crop {x:?} below nothing", self.pads)))
        });
        Ok(vec![out.collect::<Result<_, _>>()?])
    }
}

/// Takes `start..end` in steps along some axes; negative bounds count from the end, negative steps walk backwards.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Slice {
    pub starts: Vec<i64>,
    pub ends: Vec<i64>,
    /// None given means the first ones.
    pub axes: Option<Vec<i64>>,
    /// None given means 1.
    pub steps: Option<Vec<i64>>,
}

impl Slice {
    /// (first index, step, count) per axis of a tensor of this shape.
    pub fn per_axis(&self, x: &[usize]) -> Result<Vec<(usize, i64, usize)>, Error> {
        let n = self.starts.len();
        let mut out: Vec<_> = x.iter().map(|&d| (0, 1, d)).collect();
        if self.ends.len() != n
            || self.axes.as_ref().is_some_and(|a| a.len() != n)
            || self.steps.as_ref().is_some_and(|s| s.len() != n)
        {
            return Err(Error::attribute(format!(
                "starts {:?}, ends {:?}, axes {:?} and steps {:?} differ in length",
                self.starts, self.ends, self.axes, self.steps
            )));
        }
        for i in 0..n {
            let axis = normalize_axis(self.axes.as_ref().map_or(i as i64, |a| a[i]), x.len())?;
            let size = x[axis] as i64;
            let step = self.steps.as_ref().map_or(1, |s| s[i]);
            let wrap = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
            let (first, count) = match step {
                0 => return Err(Error::attribute("a step of 0 never ends")),
                1.. => {
                    let (first, last) = (wrap(self.starts[i]).clamp(0, size), wrap(self.ends[i]).clamp(0, size));
                    (first, (last - first).max(0).div_euclid(step) + i64::from((last - first).max(0) % step != 0))
                }
                _ => {
                    let (first, last) =
                        (wrap(self.starts[i]).clamp(-1, size - 1), wrap(self.ends[i]).clamp(-1, size - 1));
                    let back = step.saturating_neg();
                    (
                        (first).max(0),
                        (first - last).max(0).div_euclid(back) + i64::from((first - last).max(0) % back != 0),
                    )
                }
            };
            out[axis] = (first as usize, step, count as usize);
        }
        Ok(out)
    }
}

impl Operator for Slice {
    const NAME: &'static str = "Slice";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let bound =
            |name: &str| attrs.ints(name)?.ok_or_else(|| Error::attribute(format!("the {name} must be constants")));
        Ok(Self {
            starts: bound("starts")?,
            ends: bound("ends")?,
            axes: attrs.ints("axes")?,
            steps: attrs.ints("steps")?,
        })
    }

    fn attrs(&self) -> Attrs {
        let mut attrs =
            Attrs::new().with("starts", Attr::Ints(self.starts.clone())).with("ends", Attr::Ints(self.ends.clone()));
        // `steps` is the input after `axes`: where it is given, the axes are spelt out too.
        let axes = self.axes.clone().or_else(|| self.steps.as_ref().map(|s| (0..s.len() as i64).collect()));
        for (name, values) in [("axes", axes), ("steps", self.steps.clone())] {
            if let Some(values) = values {
                attrs = attrs.with(name, Attr::Ints(values));
            }
        }
        attrs
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        Ok(vec![self.per_axis(inputs.get(0)?)?.into_iter().map(|(_, _, count)| count).collect()])
    }
}

/// Joins tensors along an axis.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Concat {
    pub axis: i64,
}

impl Operator for Concat {
    const NAME: &'static str = "Concat";

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        Ok(Self { axis: attrs.int("axis", 1)? })
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().with_int("axis", self.axis)
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let mut out = inputs.get(0)?.to_vec();
        let axis = normalize_axis(self.axis, out.len())?;
        for index in 1..inputs.len() {
            let x = inputs.get(index)?;
            let fits = x.len() == out.len() && (0..x.len()).all(|a| a == axis || x[a] == out[a]);
            if !fits {
                return Err(Error::shape(format!(
                    "input {index} is {x:?}, which does not join {out:?} along axis {axis}"
                )));
            }
            out[axis] = out[axis].saturating_add(x[axis]);
        }
        Ok(vec![out])
    }
}

/// Cuts a tensor along an axis, into given sizes or into `outputs` equal parts.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Split {
    pub axis: i64,
    pub sizes: Option<Vec<usize>>,
    /// Number of parts where no sizes are given; importers fill it in from the node's outputs.
    pub outputs: usize,
}

impl Operator for Split {
    const NAME: &'static str = "Split";
    const PARAMS: &'static [(usize, &'static str)] = &[(1, "split")];

    fn from_attrs(attrs: &Attrs, _opset: u32) -> Result<Self, Error> {
        let outputs = usize::try_from(attrs.int("num_outputs", 0)?).unwrap_or(0);
        Ok(Self { axis: attrs.int("axis", 0)?, sizes: attrs.sizes("split")?, outputs })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with_int("axis", self.axis);
        match &self.sizes {
            Some(sizes) => attrs.with_ints("split", sizes),
            None => attrs.with_int("num_outputs", i64::try_from(self.outputs).unwrap_or(i64::MAX)),
        }
    }

    fn since(&self) -> u32 {
        if self.sizes.is_some() { 13 } else { 18 }
    }

    fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
        let x = inputs.get(0)?;
        let axis = normalize_axis(self.axis, x.len())?;
        let sizes = match &self.sizes {
            Some(sizes) => sizes.clone(),
            None if self.outputs == 0 => {
                return Err(Error::attribute("neither sizes nor the number of outputs is given"));
            }
            // More parts than elements would be empty ones; the bound keeps a number in a file from becoming memory.
            None if self.outputs > x[axis].clamp(1, 1 << 16) => {
                return Err(Error::attribute(format!("{} outputs of an axis of {}", self.outputs, x[axis])));
            }
            None => {
                let part = x[axis].div_ceil(self.outputs);
                (0..self.outputs).map(|i| part.min(x[axis].saturating_sub(i * part))).collect()
            }
        };
        if sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s)) != Some(x[axis]) {
            return Err(Error::shape(format!("sizes {sizes:?} do not add up to axis {axis} of {x:?}")));
        }
        let part = |size| {
            let mut shape = x.to_vec();
            shape[axis] = size;
            shape
        };
        Ok(sizes.into_iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infer(op: impl Operator, x: &[usize]) -> Result<Shape, String> {
        op.infer(InputShapes(&[Some(x)])).map(|mut s| s.remove(0)).map_err(|e| e.to_string())
    }

    #[test]
    fn reshapes() {
        let reshape = |shape: &[i64]| Reshape { shape: shape.to_vec(), allow_zero: false };
        assert_eq!(infer(reshape(&[0, -1]), &[8, 4, 2]), Ok(vec![8, 8]));
        assert_eq!(infer(reshape(&[-1, 16]), &[8, 4, 2]), Ok(vec![4, 16]));
        assert!(infer(reshape(&[-1, 7]), &[8, 4, 2]).is_err());
        assert!(infer(reshape(&[-1, -1]), &[8]).is_err());
        assert!(infer(reshape(&[i64::MAX, i64::MAX]), &[8]).is_err());
        assert_eq!(infer(Flatten { axis: 1 }, &[8, 4, 2]), Ok(vec![8, 8]));
        assert_eq!(infer(Squeeze { axes: None }, &[8, 1, 1]), Ok(vec![8]));
        assert_eq!(infer(Unsqueeze { axes: vec![0, -1] }, &[8]), Ok(vec![1, 8, 1]));
    }

    #[test]
    fn slices() {
        let slice = |start, end, step| Slice {
            starts: vec![start],
            ends: vec![end],
            axes: Some(vec![-1]),
            steps: Some(vec![step]),
        };
        assert_eq!(infer(slice(0, i64::MAX, 2), &[1, 7]), Ok(vec![1, 4]));
        assert_eq!(infer(slice(-3, -1, 1), &[1, 7]), Ok(vec![1, 2]));
        assert_eq!(infer(slice(-1, i64::MIN, -1), &[1, 7]), Ok(vec![1, 7]));
        assert_eq!(infer(slice(5, 2, 1), &[1, 7]), Ok(vec![1, 0]));
        assert!(infer(slice(0, 1, 0), &[1, 7]).is_err());
    }

    #[test]
    fn pads_splits_and_joins() {
        let pad = Pad { pads: vec![8, 8], axes: Some(vec![1]), mode: PadMode::Constant, value: 0.0 };
        assert_eq!(infer(pad, &[2, 16, 4]), Ok(vec![2, 32, 4]));
        let split = Split { axis: 1, sizes: None, outputs: 2 };
        assert_eq!(split.infer(InputShapes(&[Some(&[2, 5])])), Ok(vec![vec![2, 3], vec![2, 2]]));
        let joined = Concat { axis: 1 }.infer(InputShapes(&[Some(&[2, 5]), Some(&[2, 3])]));
        assert_eq!(joined, Ok(vec![vec![2, 8]]));
        assert!(Concat { axis: 1 }.infer(InputShapes(&[Some(&[2, 5]), Some(&[3, 3])])).is_err());
    }
}
