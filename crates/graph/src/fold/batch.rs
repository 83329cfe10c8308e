//! Target shapes that depend on the batch size.

use super::BATCHES;
use crate::error::Error;
use crate::graph::{Graph, check_size};
use crate::op::{InputShapes, Operator};
use crate::ops::Reshape;
use crate::tensor::Shape;

/// The reshape to `a` for the first batch size and to `b` for the second.
pub(super) fn unify(a: &[usize], b: &[usize]) -> Result<Reshape, Error> {
    let differ = || Error::shape(format!("reshapes to {a:?} or {b:?}, depending on the batch size, in no simple way"));
    let varying = a.iter().zip(b).filter(|(x, y)| x != y).count();
    if a.len() != b.len() || varying > 1 {
        return Err(differ());
    }
    let entry = |(&x, &y): (&usize, &usize)| match x == y {
        true => i64::try_from(x).map_err(|_| differ()),
        false => Ok(-1),
    };
    let shape: Vec<_> = a.iter().zip(b).map(entry).collect::<Result<_, _>>()?;
    Ok(Reshape { allow_zero: shape.contains(&0), shape })
}

/// The reshape with its leading `size` replaced by "as many as there are", where that means the same for batch `size`.
///
/// It does if the input's first axis is the batch: elements are then grouped by sample before and after.
pub(super) fn generalise(op: Reshape, size: usize, x: &[usize], y: &[usize]) -> Reshape {
    let leads = op.shape.first().and_then(|&d| usize::try_from(d).ok()) == Some(size) && size > 0;
    if !leads || x.first() != Some(&BATCHES[0]) || y.first() != Some(&BATCHES[1]) {
        return op;
    }
    let declared: Shape = std::iter::once(size).chain(x[1..].iter().copied()).collect();
    let out = check_size(&declared).and_then(|()| op.infer(InputShapes(&[Some(&declared)])));
    let Ok(out) = out else { return op };
    let rest = out[0][1..].iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX));
    let shape: Vec<_> = std::iter::once(-1).chain(rest).collect();
    let general = Reshape { allow_zero: shape.contains(&0), shape };
    let fits = |x: &[usize]| general.infer(InputShapes(&[Some(x)])).is_ok_and(|out| out[0].first() == x.first());
    if fits(x) && fits(y) { general } else { op }
}

/// A batch that was fixed may be freed only if every output still has one row per sample.
pub(super) fn check_generalised(graph: &Graph) -> Result<(), Error> {
    for batch in BATCHES {
        let shapes = graph.shapes(batch)?;
        for &id in graph.outputs() {
            if shapes[id.index()].first() != Some(&batch) {
                return Err(Error::shape("its size does not follow the batch size").at(&graph.value(id).name));
            }
        }
    }
    Ok(())
}
