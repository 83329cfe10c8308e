//! Operators evaluated on tensors: those that shape arithmetic and prepared weights are made of.

use crate::attrs::Attrs;
use crate::error::{Error, Kind};
use crate::graph::check_size;
use crate::op::{InputShapes, Op, Operator};
use crate::ops::{Gather, broadcast, normalize_axis};
use crate::quant::{Granularity, channels, for_each_channel};
use crate::tensor::{Data, Shape, Tensor, element_count};

/// Operators that are known only where all they read is constant: shape arithmetic of exporters, and weights stored as
/// integers. The pair that rounds an activation is known too: it becomes a site.
pub const FOLDED_ONLY: &[&str] = &["CastLike", "DequantizeLinear", "Expand", "QuantizeLinear", "Range"];

/// Elements that folding may still create; what keeps a small file from becoming a large allocation.
#[derive(Debug)]
pub(super) struct Budget(pub usize);

impl Budget {
    /// Takes the elements of a shape out of the budget, and says how many they are.
    pub(super) fn spend(&mut self, shape: &[usize]) -> Result<usize, Error> {
        check_size(shape)?;
        let n = element_count(shape).unwrap_or(usize::MAX);
        self.0 = self.0.checked_sub(n).ok_or_else(|| {
            Error::shape(format!(
                "folding this constant of shape {shape:?} would take more memory than the model should"
            ))
        })?;
        Ok(n)
    }
}

/// The outputs of `op` for constant inputs, or `None` where constants are not evaluated through this operator.
pub(super) fn evaluate(op: &Op, inputs: &[Option<&Tensor>], budget: &mut Budget) -> Result<Option<Vec<Tensor>>, Error> {
    let shapes: Vec<_> = inputs.iter().map(|i| i.map(Tensor::shape)).collect();
    let input = |index: usize| {
        inputs.get(index).copied().flatten().ok_or_else(|| Error::shape(format!("input {index} is missing")))
    };
    match op {
        Op::Constant(_) | Op::ConstantOfShape(_) | Op::ShapeOf(_) | Op::Identity(_) | Op::Dropout(_) | Op::Cast(_) => {}
        Op::Gather(_) | Op::Slice(_) | Op::Concat(_) | Op::Split(_) | Op::Transpose(_) => {}
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {}
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => {}
        _ => return Ok(None),
    }
    let outputs = op.infer(InputShapes(&shapes))?;
    for shape in &outputs {
        budget.spend(shape)?;
    }
    let shape = outputs.first().cloned().unwrap_or_default();
    let one = match op {
        Op::Constant(op) => op.value.clone(),
        Op::ConstantOfShape(op) => strided(&op.value, &shape, 0, &vec![0; shape.len()])?,
        Op::ShapeOf(op) => shape_of(input(0)?.shape(), op.range(input(0)?.shape().len())),
        Op::Identity(_) | Op::Dropout(_) => input(0)?.clone(),
        Op::Cast(op) => cast(input(0)?, op.to)?,
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => input(0)?.clone().reshape(shape)?,
        Op::Transpose(op) => {
            let x = input(0)?;
            let steps = strides(x.shape());
            let steps: Vec<_> = op.permutation(x.shape().len())?.into_iter().map(|axis| steps[axis]).collect();
            strided(x, &shape, 0, &steps)?
        }
        Op::Slice(op) => {
            let x = input(0)?;
            let (mut base, mut steps) = (0i64, strides(x.shape()));
            for ((first, step, _), stride) in op.per_axis(x.shape())?.into_iter().zip(&mut steps) {
                base += first as i64 * *stride;
                *stride = stride.saturating_mul(step);
            }
            strided(x, &shape, base, &steps)?
        }
        Op::Split(op) => {
            let x = input(0)?;
            let steps = strides(x.shape());
            let axis = normalize_axis(op.axis, x.shape().len())?;
            let mut base = 0;
            let mut parts = Vec::with_capacity(outputs.len());
            for shape in &outputs {
                parts.push(strided(x, shape, base, &steps)?);
                base += shape[axis] as i64 * steps[axis];
            }
            return Ok(Some(parts));
        }
        Op::Gather(op) => gather(op, input(0)?, input(1)?, shape)?,
        Op::Concat(op) => {
            let parts = (0..inputs.len()).map(input).collect::<Result<Vec<_>, _>>()?;
            concat(&parts, normalize_axis(op.axis, shape.len())?, shape)?
        }
        Op::Add(_) => arithmetic(input(0)?, input(1)?, &shape, i64::checked_add, |a, b| a + b)?,
        Op::Sub(_) => arithmetic(input(0)?, input(1)?, &shape, i64::checked_sub, |a, b| a - b)?,
        Op::Mul(_) => arithmetic(input(0)?, input(1)?, &shape, i64::checked_mul, |a, b| a * b)?,
        Op::Div(_) => arithmetic(input(0)?, input(1)?, &shape, i64::checked_div, |a, b| a / b)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![one]))
}

/// The output of one of [`FOLDED_ONLY`]. `None` among the inputs is a computed value, of which only the type matters.
pub(super) fn evaluate_named(
    name: &str,
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    budget: &mut Budget,
) -> Result<Tensor, Error> {
    let input = |index: usize| {
        inputs.get(index).copied().flatten().ok_or_else(|| {
            let detail =
                format!("operator `{name}` is read only where its inputs are constant, but input {index} is not");
            Error::new(Kind::Operator, detail)
        })
    };
    match name {
        "CastLike" => {
            let like = inputs.get(1).copied().flatten().map_or(1, |t| type_number(t.data()));
            cast(input(0)?, like)
        }
        "DequantizeLinear" => {
            let (x, scale) = (input(0)?, input(1)?);
            budget.spend(x.shape())?;
            dequantize(attrs, x, scale, inputs.get(2).copied().flatten())
        }
        "Expand" => {
            let x = input(0)?;
            let wanted = ints(input(1)?)?
                .into_iter()
                .map(|d| usize::try_from(d).map_err(|_| Error::shape(format!("a dimension of {d} is impossible"))))
                .collect::<Result<Shape, _>>()?;
            let shape = broadcast(x.shape(), &wanted)?;
            budget.spend(&shape)?;
            spread(x, &shape)
        }
        "Range" => {
            let bound = |index: usize| match ints(input(index)?)?[..] {
                [value] => Ok(value),
                _ => Err(Error::shape("bounds of a range must be single integers")),
            };
            let (start, limit, step) = (bound(0)?, bound(1)?, bound(2)?);
            if step == 0 {
                return Err(Error::attribute("a step of 0 never ends"));
            }
            let (distance, stride) = match step > 0 {
                true => (limit.saturating_sub(start), step),
                false => (start.saturating_sub(limit), step.saturating_neg()),
            };
            let count = usize::try_from(distance.max(0)).unwrap_or(0).div_ceil(usize::try_from(stride).unwrap_or(1));
            budget.spend(&[count])?;
            Ok(Tensor::ints((0..count as i64).map(|i| start.saturating_add(i.saturating_mul(step))).collect()))
        }
        _ => Err(Error::new(Kind::Operator, format!("operator `{name}` is not known here"))),
    }
}

/// `scale · (x − zero point)`, per tensor or along an axis.
fn dequantize(attrs: &Attrs, x: &Tensor, scale: &Tensor, zero: Option<&Tensor>) -> Result<Tensor, Error> {
    let scales = scale.as_f32().ok_or_else(|| Error::shape("its scale must be float"))?;
    let zeros = zero.map_or_else(|| Ok(vec![0; scales.len()]), ints)?;
    if attrs.int("block_size", 0)? != 0 {
        return Err(Error::attribute("scales per block are not supported: only per tensor or along an axis"));
    }
    let per = match scales.len() {
        1 => Granularity::PerTensor,
        _ => Granularity::PerChannel { axis: normalize_axis(attrs.int("axis", 1)?, x.shape().len())? },
    };
    if channels(per, x.shape())? != scales.len() || zeros.len() != scales.len() {
        return Err(Error::shape(format!(
            "{} scales and {} zero points for a tensor of shape {:?}",
            scales.len(),
            zeros.len(),
            x.shape()
        )));
    }
    let codes = ints(x)?;
    let mut out = vec![0.0; codes.len()];
    for_each_channel(per, x.shape(), |i, c| out[i] = scales[c] * codes[i].saturating_sub(zeros[c]) as f32);
    Tensor::f32(x.shape(), out)
}

/// The dimensions `range` of a shape, as the operator `Shape` gives them.
pub(super) fn shape_of(shape: &[usize], range: std::ops::Range<usize>) -> Tensor {
    Tensor::ints(shape[range].iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect())
}

/// Calls an expression with the elements, whatever their type, and puts the vector it gives under the same type.
macro_rules! same_type {
    ($data:expr, $v:ident => $out:expr) => {
        match $data {
            Data::F32($v) => Data::F32($out),
            Data::I64($v) => Data::I64($out),
            Data::I32($v) => Data::I32($out),
            Data::I8($v) => Data::I8($out),
            Data::U8($v) => Data::U8($out),
            Data::Bool($v) => Data::Bool($out),
        }
    };
}

/// Row-major distances between neighbours along each axis.
fn strides(shape: &[usize]) -> Vec<i64> {
    let mut out = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        out[axis - 1] = out[axis].saturating_mul(i64::try_from(shape[axis]).unwrap_or(i64::MAX));
    }
    out
}

/// The tensor whose element (i, j, …) is element `base + i · steps[0] + j · steps[1] + …` of `x`.
fn strided(x: &Tensor, shape: &[usize], base: i64, steps: &[i64]) -> Result<Tensor, Error> {
    let n = element_count(shape).unwrap_or(0);
    let mut places = Vec::with_capacity(n);
    let mut at = vec![0usize; shape.len()];
    let mut place = base;
    for _ in 0..n {
        let index = usize::try_from(place).ok().filter(|&i| i < x.len());
        places.push(index.ok_or_else(|| Error::shape("a constant is read past its end"))?);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            // A step past the last element may be absurdly long; it is taken back before anything is read.
            place = place.wrapping_add(steps[axis]);
            if at[axis] < shape[axis] {
                break;
            }
            place = place.wrapping_sub(steps[axis].wrapping_mul(at[axis] as i64));
            at[axis] = 0;
        }
    }
    Tensor::new(shape, same_type!(x.data(), v => places.iter().map(|&i| v[i]).collect()))
}

/// `x` broadcast to `shape`.
fn spread(x: &Tensor, shape: &[usize]) -> Result<Tensor, Error> {
    let mut steps = vec![0; shape.len()];
    let first = shape.len() - x.shape().len();
    for (axis, (stride, &size)) in strides(x.shape()).into_iter().zip(x.shape()).enumerate() {
        steps[first + axis] = if size == 1 { 0 } else { stride };
    }
    strided(x, shape, 0, &steps)
}

fn gather(op: &Gather, x: &Tensor, indices: &Tensor, shape: Shape) -> Result<Tensor, Error> {
    let axis = normalize_axis(op.axis, x.shape().len())?;
    let size = x.shape()[axis] as i64;
    let inner: usize = x.shape()[axis + 1..].iter().product();
    // Where nothing is picked, an outer size may still be huge.
    let outer: usize = if shape.contains(&0) { 0 } else { x.shape()[..axis].iter().product() };
    let mut rows = Vec::with_capacity(indices.len());
    for index in ints(indices)? {
        let row = if index < 0 { index.saturating_add(size) } else { index };
        match (0..size).contains(&row) {
            true => rows.push(row as usize),
            false => return Err(Error::shape(format!("index {index} is outside axis {axis} of {:?}", x.shape()))),
        }
    }
    let mut places = Vec::with_capacity(outer * rows.len() * inner);
    for o in 0..outer {
        for row in &rows {
            let first = (o * size as usize + row) * inner;
            places.extend(first..first + inner);
        }
    }
    Tensor::new(shape, same_type!(x.data(), v => places.iter().map(|&i| v[i]).collect()))
}

fn concat(parts: &[&Tensor], axis: usize, shape: Shape) -> Result<Tensor, Error> {
    let outer: usize = if shape.contains(&0) { 0 } else { shape[..axis].iter().product() };
    // One run of every part in turn, for each outer index.
    macro_rules! joined {
        ($variant:ident) => {{
            let mut vectors = Vec::with_capacity(parts.len());
            for part in parts {
                match part.data() {
                    Data::$variant(v) => vectors.push((v, part.shape()[axis..].iter().product::<usize>())),
                    other => {
                        return Err(Error::shape(format!(
                            "{} and {} cannot be joined",
                            parts[0].data().dtype(),
                            other.dtype()
                        )));
                    }
                }
            }
            let mut out = Vec::new();
            for o in 0..outer {
                for (v, run) in &vectors {
                    out.extend_from_slice(&v[o * run..(o + 1) * run]);
                }
            }
            Data::$variant(out)
        }};
    }
    let Some(first) = parts.first() else { return Err(Error::shape("nothing to join")) };
    let data = match first.data() {
        Data::F32(_) => joined!(F32),
        Data::I64(_) => joined!(I64),
        Data::I32(_) => joined!(I32),
        Data::I8(_) => joined!(I8),
        Data::U8(_) => joined!(U8),
        Data::Bool(_) => joined!(Bool),
    };
    Tensor::new(shape, data)
}

fn arithmetic(
    a: &Tensor,
    b: &Tensor,
    shape: &[usize],
    of_ints: fn(i64, i64) -> Option<i64>,
    of_floats: fn(f32, f32) -> f32,
) -> Result<Tensor, Error> {
    let (a, b) = (spread(a, shape)?, spread(b, shape)?);
    let data = match (a.data(), b.data()) {
        (Data::F32(a), Data::F32(b)) => Data::F32(a.iter().zip(b).map(|(&a, &b)| of_floats(a, b)).collect()),
        (x, y) if std::mem::discriminant(x) == std::mem::discriminant(y) => {
            let out = ints(&a)?.into_iter().zip(ints(&b)?).map(|(a, b)| {
                of_ints(a, b).ok_or_else(|| Error::shape(format!("constants {a} and {b} overflow or divide by zero")))
            });
            from_ints(out.collect::<Result<_, _>>()?, type_number(x))?
        }
        (x, y) => return Err(Error::shape(format!("operands are {} and {}", x.dtype(), y.dtype()))),
    };
    Tensor::new(shape, data)
}

fn ints(t: &Tensor) -> Result<Vec<i64>, Error> {
    t.to_ints().ok_or_else(|| Error::shape("integers are needed but the constant holds floats"))
}

/// ONNX's number for an element type.
fn type_number(data: &Data) -> i64 {
    match data {
        Data::F32(_) => 1,
        Data::U8(_) => 2,
        Data::I8(_) => 3,
        Data::I32(_) => 6,
        Data::I64(_) => 7,
        Data::Bool(_) => 9,
    }
}

/// Conversion by ONNX's type number. Half, double and bfloat16 are all kept as f32; floats truncate to integers.
fn cast(x: &Tensor, to: i64) -> Result<Tensor, Error> {
    let data = match (x.data(), to) {
        (Data::F32(v), 1 | 10 | 11 | 16) => Data::F32(v.clone()),
        (Data::F32(v), 9) => Data::Bool(v.iter().map(|&v| v != 0.0).collect()),
        // `as` truncates towards zero and saturates; NaN becomes 0.
        (Data::F32(v), _) => from_ints(v.iter().map(|&v| v as i64).collect(), to)?,
        (_, 1 | 10 | 11 | 16) => Data::F32(ints(x)?.into_iter().map(|v| v as f32).collect()),
        _ => from_ints(ints(x)?, to)?,
    };
    Tensor::new(x.shape(), data)
}

fn from_ints(values: Vec<i64>, to: i64) -> Result<Data, Error> {
    fn narrow<T: TryFrom<i64>>(values: Vec<i64>) -> Result<Vec<T>, Error> {
        let fits =
            |v: i64| T::try_from(v).map_err(|_| Error::shape(format!("{v} does not fit the type it is cast to")));
        values.into_iter().map(fits).collect()
    }
    Ok(match to {
        2 => Data::U8(narrow(values)?),
        3 => Data::I8(narrow(values)?),
        6 => Data::I32(narrow(values)?),
        7 => Data::I64(values),
        9 => Data::Bool(values.into_iter().map(|v| v != 0).collect()),
        _ => return Err(Error::attribute(format!("element type {to} is not supported"))),
    })
}

/// Whether an operator gives its first input, of one of these shapes, unchanged: all computed values are f32, and nothing
/// drops out.
pub(super) fn passes_through(op: &Op, shapes: &[Shape; 2]) -> Result<bool, Error> {
    match op {
        // Exporters write `x[:]` as a slice of everything.
        Op::Slice(op) => {
            let takes_all = |shape: &Shape| {
                let parts = op.per_axis(shape)?;
                Ok(parts.into_iter().zip(shape).all(|(part, &size)| part == (0, 1, size)))
            };
            Ok(takes_all(&shapes[0])? && takes_all(&shapes[1])?)
        }
        Op::Identity(_) | Op::Dropout(_) => Ok(true),
        Op::Cast(op) if matches!(op.to, 1 | 10 | 11 | 16) => Ok(true),
        Op::Cast(op) => Err(Error::new(
            Kind::Operator,
            format!(
                "{} to element type {} of a computed value is not supported: only to floats",
                crate::ops::Cast::NAME,
                op.to
            ),
        )),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Cast, Concat, Div, Flatten, Slice, Split, Transpose};

    fn run(op: impl Into<Op>, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        match evaluate(&op.into(), &inputs, &mut Budget(1000)) {
            Ok(Some(out)) => Ok(out),
            Ok(None) => Err("not evaluated".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn matrix() -> Tensor {
        Tensor::new([2, 3], Data::I64(vec![1, 2, 3, 4, 5, 6])).unwrap()
    }

    #[test]
    fn layout() {
        let t = matrix();
        let turned = run(Transpose { perm: None }, &[&t]).unwrap().remove(0);
        assert_eq!((turned.shape(), turned.to_ints().unwrap()), (&[3, 2][..], vec![1, 4, 2, 5, 3, 6]));
        let back = Slice { starts: vec![-1], ends: vec![i64::MIN], axes: Some(vec![1]), steps: Some(vec![-2]) };
        assert_eq!(run(back, &[&t]).unwrap()[0].to_ints().unwrap(), [3, 1, 6, 4]);
        let joined = run(Concat { axis: 1 }, &[&t, &t]).unwrap().remove(0);
        assert_eq!(joined.to_ints().unwrap(), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        let picked = run(Gather { axis: 1 }, &[&t, &Tensor::ints(vec![-1, 0])]).unwrap().remove(0);
        assert_eq!((picked.shape(), picked.to_ints().unwrap()), (&[2, 2][..], vec![3, 1, 6, 4]));
        let parts = run(Split { axis: 1, sizes: Some(vec![1, 2]), outputs: 2 }, &[&t]).unwrap();
        assert_eq!(parts[1].to_ints().unwrap(), [2, 3, 5, 6]);
        assert_eq!(run(Flatten { axis: 0 }, &[&t]).unwrap()[0].shape(), [1, 6]);
    }

    #[test]
    fn numbers() {
        let t = matrix();
        let sum = run(crate::ops::Add, &[&t, &Tensor::ints(vec![10, 20, 30])]).unwrap().remove(0);
        assert_eq!(sum.to_ints().unwrap(), [11, 22, 33, 14, 25, 36]);
        let floats = run(Cast { to: 1 }, &[&t]).unwrap().remove(0);
        assert_eq!(floats.as_f32().unwrap()[5], 6.0);
        assert_eq!(run(Cast { to: 7 }, &[&Tensor::floats(vec![-1.9, 2.9])]).unwrap()[0].to_ints().unwrap(), [-1, 2]);
        let range = [Tensor::int(5), Tensor::int(0), Tensor::int(-2)];
        let range: Vec<_> = range.iter().map(Some).collect();
        assert_eq!(
            evaluate_named("Range", &Attrs::new(), &range, &mut Budget(9)).unwrap().to_ints().unwrap(),
            [5, 3, 1]
        );
        let expand = [Some(&t), Some(&Tensor::ints(vec![2, 1, 1]))];
        assert_eq!(evaluate_named("Expand", &Attrs::new(), &expand, &mut Budget(99)).unwrap().shape(), [2, 2, 3]);
    }

    #[test]
    fn absurd_numbers_end_quickly() {
        let t = matrix();
        let far = Slice { starts: vec![1, 1], ends: vec![2, 3], axes: None, steps: Some(vec![i64::MAX, i64::MAX]) };
        assert_eq!(run(far, &[&t]).unwrap()[0].to_ints().unwrap(), [5]);
        let empty = Tensor::new([1 << 39, 0], Data::I64(vec![])).unwrap();
        assert!(run(Concat { axis: 1 }, &[&empty, &empty]).unwrap()[0].is_empty());
        assert!(run(Gather { axis: 1 }, &[&empty, &Tensor::ints(vec![])]).unwrap()[0].is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let t = matrix();
        assert!(run(Gather { axis: 0 }, &[&t, &Tensor::int(2)]).unwrap_err().contains("index 2 is outside axis 0"));
        assert!(run(Div, &[&t, &Tensor::int(0)]).unwrap_err().contains("divide by zero"));
        assert!(run(Div, &[&t, &Tensor::floats(vec![1.0])]).unwrap_err().contains("I64 and F32"));
        let shape = Attrs::new().with_ints("shape", &[1i64 << 20, 1 << 10]);
        let huge = Op::from_attrs("ConstantOfShape", &shape, 20).unwrap();
        assert!(run(huge, &[]).unwrap_err().contains("more memory"));
        let range = [Tensor::int(0), Tensor::int(i64::MAX), Tensor::int(1)];
        assert!(
            evaluate_named("Range", &Attrs::new(), &range.iter().map(Some).collect::<Vec<_>>(), &mut Budget(9))
                .is_err()
        );
    }
}
