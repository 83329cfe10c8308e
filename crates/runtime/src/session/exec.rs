//! Runs the steps of a plan on some samples.

use std::time::Instant;

use bitsmith_graph::ops::{PadMode, broadcast};
use bitsmith_graph::{Graph, Shape};
use bitsmith_kernels::gemm::{self, Order};
use bitsmith_kernels::norm::layer;
use bitsmith_kernels::pool::{raise, raise_codes};
use bitsmith_kernels::{integer, layout, softmax};

use super::Kernels;
use super::chain::{Elements, Link, Target, from_elements, in_place};
use super::geometry;
use super::moves::{self, Fill};
use super::plan::{Action, Buffer, Elem, Form, Head, Layout, Plan, Source, Step, Weight};
use super::pool::Pool;
use super::product::Geometry;
use super::profile::Measured;
use super::windows;
use crate::error::{Error, Kind};

/// Buffers of one running plan, kept between runs.
#[derive(Debug, Default)]
pub(super) struct Worker {
    slots: Vec<Option<Buffer>>,
    floats: Pool<f32>,
    bytes: Pool<u8>,
    longs: Pool<i64>,
    ints: Pool<i32>,
    /// Per step, where somebody asked for it.
    pub profile: Option<Vec<Measured>>,
}

/// Runs `plan` on inputs of the given shapes and hands each output to `take(index, elements)`.
pub(super) fn run(
    plan: &Plan,
    graph: &Graph,
    shapes: &[Shape],
    inputs: &[&[f32]],
    worker: &mut Worker,
    mut take: impl FnMut(usize, &Buffer),
) -> Result<(), Error> {
    worker.slots.clear();
    worker.slots.resize(plan.slots.len(), None);
    for (&slot, values) in plan.inputs.iter().zip(inputs) {
        let mut buffer = worker.floats.take(values.len());
        buffer.copy_from_slice(values);
        worker.slots[slot] = Some(Buffer::F32(buffer));
    }
    for (index, step) in plan.steps.iter().enumerate() {
        let mut outputs: Vec<Buffer> = Vec::with_capacity(step.outputs.len());
        for &slot in &step.outputs {
            let form = &plan.slots[slot];
            let n = shapes[form.value.index()].iter().product();
            outputs.push(match form.elem {
                Elem::F32 => Buffer::F32(worker.floats.take(n)),
                Elem::Codes => Buffer::Codes(worker.bytes.take(n)),
                Elem::Ints => Buffer::Ints(worker.longs.take(n)),
            });
        }
        // Buffers are taken out while the step reads the others.
        let slots = std::mem::take(&mut worker.slots);
        let context = Context { plan, shapes, slots: &slots };
        let began = worker.profile.is_some().then(Instant::now);
        let done = context.step(step, &mut outputs, worker).map_err(|e| e.at(&step.name));
        if let (Some(began), Some(all)) = (began, &mut worker.profile) {
            let time = began.elapsed();
            all.resize(plan.steps.len(), Measured::default());
            all[index].add(Measured { time, ..context.cost(step, &outputs) });
        }
        worker.slots = slots;
        done?;
        for (&slot, buffer) in step.outputs.iter().zip(outputs) {
            worker.slots[slot] = Some(buffer);
        }
        for &slot in &step.frees {
            worker.free(slot);
        }
    }
    let context = Context { plan, shapes, slots: &worker.slots };
    for (index, &source) in plan.outputs.iter().enumerate() {
        let name = || &graph.value(graph.outputs()[index]).name;
        take(index, context.buffer(source).map_err(|e| e.at(name()))?);
    }
    for slot in 0..worker.slots.len() {
        worker.free(slot);
    }
    Ok(())
}

impl Worker {
    fn free(&mut self, slot: usize) {
        match self.slots[slot].take() {
            Some(Buffer::F32(v)) => self.floats.give(v),
            Some(Buffer::Codes(v)) => self.bytes.give(v),
            Some(Buffer::Ints(v)) => self.longs.give(v),
            None => {}
        }
    }
}

/// What a step may read.
struct Context<'a> {
    plan: &'a Plan,
    shapes: &'a [Shape],
    slots: &'a [Option<Buffer>],
}

/// A step whose buffers are not what its plan says: a mistake of ours, reported rather than hidden.
fn mismatch() -> Error {
    Error::new(Kind::Unsupported, "a buffer has another element type than planned")
}

/// Runs one generic function on whatever the buffers hold; both hold the same.
macro_rules! same_elements {
    ($x:expr, $y:expr, |$a:ident, $b:ident| $body:expr) => {
        match ($x, $y) {
            (Buffer::F32($a), Buffer::F32($b)) => $body,
            (Buffer::Codes($a), Buffer::Codes($b)) => $body,
            (Buffer::Ints($a), Buffer::Ints($b)) => $body,
            _ => return Err(mismatch()),
        }
    };
}

impl<'a> Context<'a> {
    fn form(&self, source: Source) -> &'a Form {
        match source {
            Source::Slot(i) => &self.plan.slots[i],
            Source::Constant(i) => &self.plan.constants[i].0,
        }
    }

    fn buffer(&self, source: Source) -> Result<&'a Buffer, Error> {
        match source {
            Source::Slot(i) => self.slots[i].as_ref().ok_or_else(mismatch),
            Source::Constant(i) => Ok(&self.plan.constants[i].1),
        }
    }

    fn shape(&self, source: Source) -> &'a [usize] {
        &self.shapes[self.form(source).value.index()]
    }

    /// Dimensions in memory order.
    fn dims(&self, source: Source) -> Shape {
        self.form(source).layout.dims(self.shape(source))
    }

    fn floats(&self, source: Source) -> Result<&'a [f32], Error> {
        match self.buffer(source)? {
            Buffer::F32(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }

    fn codes(&self, source: Source) -> Result<&'a [u8], Error> {
        match self.buffer(source)? {
            Buffer::Codes(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }

    fn ints(&self, source: Source) -> Result<&'a [i64], Error> {
        match self.buffer(source)? {
            Buffer::Ints(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }

    fn elements(&self, source: Source) -> Result<Elements<'a>, Error> {
        match (self.buffer(source)?, self.form(source).grid) {
            (Buffer::F32(v), _) => Ok(Elements::F32(v)),
            (Buffer::Codes(v), Some(grid)) => Ok(Elements::Codes(v, grid)),
            _ => Err(mismatch()),
        }
    }

    fn step(&self, step: &Step, outputs: &mut [Buffer], worker: &mut Worker) -> Result<(), Error> {
        let target = &self.plan.slots[step.outputs[0]];
        let y_shape = &self.shapes[target.value.index()];
        if let Action::Chain { head, links } = &step.action {
            return self.chain(step, head, links, target, &mut outputs[0], worker);
        }
        let x = *step.inputs.first().ok_or_else(mismatch)?;
        let (layout, dims) = (self.form(x).layout, self.dims(x));
        if let Action::Split(axis) = &step.action {
            return self.split(x, *axis, &dims, outputs);
        }
        let y = &mut outputs[0];
        match &step.action {
            Action::Chain { .. } | Action::Split(_) => {}
            Action::Relayout => {
                let shape = self.shape(x);
                let (channels, pixels) = (shape[1], shape[2..].iter().product());
                let (rows, columns) = if layout == Layout::Plain { (channels, pixels) } else { (pixels, channels) };
                same_elements!(self.buffer(x)?, y, |x, y| layout::transpose(rows, columns, x, y));
            }
            Action::Permute(perm) => same_elements!(self.buffer(x)?, y, |x, y| layout::permute(&dims, perm, x, y)),
            Action::Copy => same_elements!(self.buffer(x)?, y, |x, y| y.copy_from_slice(x)),
            Action::Slice(op) => {
                let ranges = layout.arrange(&op.per_axis(self.shape(x))?);
                same_elements!(self.buffer(x)?, y, |x, y| moves::slice(&dims, &ranges, x, y));
            }
            Action::Pad(op) => {
                let pads = layout.arrange(&op.per_axis(dims.len())?);
                let zero = self.form(x).grid.map_or(0, |g| g.zero_byte());
                match (self.buffer(x)?, y) {
                    (Buffer::F32(x), Buffer::F32(y)) => moves::pad(&dims, &pads, fill(op.mode, op.value), x, y),
                    (Buffer::Codes(x), Buffer::Codes(y)) => moves::pad(&dims, &pads, fill(op.mode, zero), x, y),
                    (Buffer::Ints(x), Buffer::Ints(y)) => {
                        moves::pad(&dims, &pads, fill(op.mode, op.value as i64), x, y)
                    }
                    _ => return Err(mismatch()),
                }
            }
            Action::Concat(axis) => self.concat(step, *axis, &dims, y)?,
            Action::Gather(op) => {
                let axis = bitsmith_graph::ops::normalize_axis(op.axis, dims.len())?;
                let indices = self.ints(*step.inputs.get(1).ok_or_else(mismatch)?)?;
                let size = dims[axis] as i64;
                let inner: usize = dims[axis + 1..].iter().product();
                let outer: usize = dims[..axis].iter().product();
                for (at, &index) in indices.iter().enumerate() {
                    let i = if index < 0 { index.saturating_add(size) } else { index };
                    if !(0..size).contains(&i) {
                        return Err(Error::new(Kind::Input, format!("index {index} is outside an axis of {size}")));
                    }
                    let (i, rows, width) = (i as usize * inner, dims[axis] * inner, indices.len() * inner);
                    same_elements!(self.buffer(x)?, &mut *y, |x, y| {
                        for o in 0..outer {
                            y[o * width + at * inner..][..inner].copy_from_slice(&x[o * rows + i..][..inner]);
                        }
                    });
                }
            }
            Action::MaxPool(op) => {
                let pool = geometry::pool(&op.kernel, &op.window, self.shape(x), y_shape)?;
                match (self.buffer(x)?, y) {
                    (Buffer::F32(x), Buffer::F32(y)) => windows::max(&pool, x, y, raise),
                    (Buffer::Codes(x), Buffer::Codes(y)) => windows::max(&pool, x, y, raise_codes),
                    _ => return Err(mismatch()),
                }
            }
            Action::AveragePool(op) => {
                let pool = geometry::pool(&op.kernel, &op.window, self.shape(x), y_shape)?;
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                match self.elements(x)? {
                    Elements::F32(x) => {
                        let (add, finish) = windows::float_sums();
                        windows::average(&pool, op.count_include_pad, x, y, add, finish)
                    }
                    Elements::Codes(x, grid) => {
                        let (add, finish) = windows::code_sums(grid);
                        windows::average(&pool, op.count_include_pad, x, y, add, finish);
                    }
                }
            }
            Action::Mean(reduced) => {
                let reduced = layout.arrange(reduced);
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                match self.elements(x)? {
                    Elements::F32(x) => windows::mean_of_floats(&dims, &reduced, x, y),
                    Elements::Codes(x, grid) => windows::mean_of_codes(&dims, &reduced, x, grid, y),
                }
            }
            Action::Softmax { axis, log } => {
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                softmax_along(&dims, *axis, *log, self.floats(x)?, y);
            }
            Action::Binary(op) => {
                let other = *step.inputs.get(1).ok_or_else(mismatch)?;
                let out = target.layout.dims(y_shape);
                match y {
                    Buffer::F32(y) => {
                        binary(&out, (&dims, self.floats(x)?), (&self.dims(other), self.floats(other)?), y, |a, b| {
                            op.apply(a, b)
                        })
                    }
                    Buffer::Ints(y) => {
                        binary(&out, (&dims, self.ints(x)?), (&self.dims(other), self.ints(other)?), y, |a, b| {
                            op.apply_ints(a, b)
                        })
                    }
                    Buffer::Codes(_) => return Err(mismatch()),
                }
            }
            Action::LayerNorm { epsilon } => {
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                let gamma = self.floats(*step.inputs.get(1).ok_or_else(mismatch)?)?;
                let beta = step.inputs.get(2).map(|&s| self.floats(s)).transpose()?;
                let zeros = vec![0.0; if beta.is_none() { gamma.len() } else { 0 }];
                layer::forward(self.floats(x)?, gamma, beta.unwrap_or(&zeros), *epsilon, y, None);
            }
            Action::MatMul => {
                let other = *step.inputs.get(1).ok_or_else(mismatch)?;
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                matmul((&dims, self.floats(x)?), (&self.dims(other), self.floats(other)?), y)?;
            }
            Action::MatMulOfCodes(kernels) => {
                let other = *step.inputs.get(1).ok_or_else(mismatch)?;
                let Buffer::F32(y) = y else { return Err(mismatch()) };
                let (&[ref leading @ .., m, k], Some(&n)) = (&dims[..], self.dims(other).last()) else {
                    return Err(mismatch());
                };
                let (Some(a), Some(b)) = (self.form(x).grid, self.form(other).grid) else { return Err(mismatch()) };
                let (a, b) = ((self.codes(x)?, a), (self.codes(other)?, b));
                match kernels {
                    Kernels::Reference => integer::reference::matmul([m, k, n], a, b, y),
                    Kernels::Fast => integer::matmul(leading.iter().product(), [m, k, n], a, b, y),
                }
            }
            Action::ShapeOf(op) => {
                let Buffer::Ints(y) = y else { return Err(mismatch()) };
                let shape = self.shape(x);
                y.iter_mut().zip(&shape[op.range(shape.len())]).for_each(|(y, &d)| *y = d as i64);
            }
            Action::ToFloat => match y {
                Buffer::F32(y) => y.iter_mut().zip(self.ints(x)?).for_each(|(y, &v)| *y = v as f32),
                _ => return Err(mismatch()),
            },
            Action::ToInts { boolean } => {
                let Buffer::Ints(y) = y else { return Err(mismatch()) };
                match self.buffer(x)? {
                    Buffer::F32(x) if *boolean => y.iter_mut().zip(&**x).for_each(|(y, &v)| *y = (v != 0.0).into()),
                    Buffer::F32(x) => y.iter_mut().zip(&**x).for_each(|(y, &v)| *y = v as i64),
                    Buffer::Ints(x) => y.iter_mut().zip(&**x).for_each(|(y, &v)| *y = (v != 0).into()),
                    Buffer::Codes(_) => return Err(mismatch()),
                }
            }
        }
        Ok(())
    }

    fn chain(
        &self,
        step: &Step,
        head: &Head,
        links: &[Link<usize>],
        target: &Form,
        y: &mut Buffer,
        worker: &mut Worker,
    ) -> Result<(), Error> {
        let y_shape = &self.shapes[target.value.index()];
        let channels = target.layout.dims(y_shape).last().copied().unwrap_or(1).max(1);
        // Found beforehand, so that no block has to ask.
        let others: Vec<Elements<'_>> = step.inputs.iter().map(|&s| self.elements(s)).collect::<Result<_, _>>()?;
        let links: Vec<Link<Elements<'_>>> = links.iter().map(|l| l.map(|&i| others[i])).collect();
        let x = *step.inputs.first().ok_or_else(mismatch)?;
        let Some((geometry, weight)) = self.geometry(step, head, y_shape)? else {
            from_elements(others[0], &links, channels, target_of(y, target)?);
            return Ok(());
        };
        match weight {
            Weight::Integer(weight) => {
                weight.run(&geometry, self.codes(x)?, &links, target_of(y, target)?, &mut worker.ints);
            }
            Weight::Float => {
                let (x, w) = (self.floats(x)?, self.floats(*step.inputs.get(1).ok_or_else(mismatch)?)?);
                match target_of(y, target)? {
                    Target::F32(y) => {
                        geometry.multiply_f32(x, w, y);
                        in_place(&links, channels, y);
                    }
                    codes => {
                        let mut sums = worker.floats.take(geometry.output_len());
                        geometry.multiply_f32(x, w, &mut sums);
                        from_elements(Elements::F32(&sums), &links, channels, codes);
                        worker.floats.give(sums);
                    }
                }
            }
        }
        Ok(())
    }

    /// The product that a chain starts with, if it starts with one.
    fn geometry<'w>(
        &self,
        step: &Step,
        head: &'w Head,
        y_shape: &[usize],
    ) -> Result<Option<(Geometry, &'w Weight)>, Error> {
        Ok(match head {
            Head::Value => None,
            Head::Conv(op, weight) => {
                let w: &[usize] = match weight {
                    Weight::Float => self.shape(*step.inputs.get(1).ok_or_else(mismatch)?),
                    Weight::Integer(w) => &w.shape,
                };
                let x = self.shape(*step.inputs.first().ok_or_else(mismatch)?);
                Some((Geometry::Conv(geometry::conv(op, x, w)?), weight))
            }
            Head::Linear(one_row, weight) => Some((one_row.rows(y_shape.iter().rev().skip(1).product()), weight)),
        })
    }

    /// What a step computes and moves.
    fn cost(&self, step: &Step, outputs: &[Buffer]) -> Measured {
        let mut cost = Measured::default();
        let inputs = step.inputs.iter().filter_map(|&source| self.buffer(source).ok());
        cost.bytes = inputs.chain(outputs).map(Buffer::bytes).sum();
        let product = match &step.action {
            Action::Chain { head, .. } => {
                let y_shape = &self.shapes[self.plan.slots[step.outputs[0]].value.index()];
                self.geometry(step, head, y_shape).ok().flatten()
            }
            _ => None,
        };
        if let Action::MatMulOfCodes(_) = &step.action {
            let (k, n) = (self.dims(step.inputs[0]).pop(), self.dims(step.inputs[1]).pop());
            let (k, n, elements) = (k.unwrap_or(1), n.unwrap_or(1), outputs.first().map_or(0, Buffer::len));
            (cost.size, cost.macs) = ([n, k, elements / n.max(1)], (elements * k) as u64);
        }
        if let Some((geometry, weight)) = product {
            let conv = geometry.as_conv();
            let pixels = conv.output_len() / conv.c_out.max(1);
            let inputs = (conv.macs() / conv.output_len().max(1) as u64) as usize;
            (cost.size, cost.macs) = ([conv.c_out, inputs, pixels], conv.macs());
            if let Weight::Integer(weight) = weight {
                cost.bytes += weight.bytes() as u64;
            }
        }
        cost
    }

    fn concat(&self, step: &Step, axis: usize, dims: &[usize], y: &mut Buffer) -> Result<(), Error> {
        let outer = dims[..axis].iter().product();
        let inner = |source: Source| self.dims(source)[axis..].iter().product::<usize>();
        macro_rules! join {
            ($variant:ident, $y:expr) => {{
                let part = |&source: &Source| match self.buffer(source)? {
                    Buffer::$variant(v) => Ok((&**v, inner(source))),
                    _ => Err(mismatch()),
                };
                moves::concat(outer, &step.inputs.iter().map(part).collect::<Result<Vec<_>, Error>>()?, $y)
            }};
        }
        match y {
            Buffer::F32(y) => join!(F32, y),
            Buffer::Codes(y) => join!(Codes, y),
            Buffer::Ints(y) => join!(Ints, y),
        }
        Ok(())
    }

    fn split(&self, x: Source, axis: usize, dims: &[usize], outputs: &mut [Buffer]) -> Result<(), Error> {
        let outer: usize = dims[..axis].iter().product();
        let width: usize = dims[axis..].iter().product();
        let mut at = 0;
        for y in outputs {
            same_elements!(self.buffer(x)?, y, |x, y| {
                let inner = y.len() / outer.max(1);
                moves::columns(outer, width, at, inner, x, y);
                at += inner;
            });
        }
        Ok(())
    }
}

/// Where a chain's results go.
fn target_of<'a>(y: &'a mut Buffer, form: &Form) -> Result<Target<'a>, Error> {
    match (y, form.grid) {
        (Buffer::F32(y), _) => Ok(Target::F32(y)),
        (Buffer::Codes(y), Some(grid)) => Ok(Target::Codes(y, grid)),
        _ => Err(mismatch()),
    }
}

fn fill<T>(mode: PadMode, value: T) -> Fill<T> {
    match mode {
        PadMode::Constant => Fill::Constant(value),
        PadMode::Reflect => Fill::Reflect,
        PadMode::Edge => Fill::Edge,
    }
}

/// `e^(x - max) / Σ`, or its logarithm, along an axis.
fn softmax_along(dims: &[usize], axis: usize, log: bool, x: &[f32], y: &mut [f32]) {
    let inner: usize = dims[axis + 1..].iter().product();
    let n = dims[axis];
    if inner == 1 {
        return softmax::forward(n, log, x, y);
    }
    for outer in 0..dims[..axis].iter().product() {
        for i in 0..inner {
            let at = |k: usize| (outer * n + k) * inner + i;
            let max = (0..n).map(|k| x[at(k)]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = (0..n).map(|k| f64::from(x[at(k)] - max).exp()).sum();
            for k in 0..n {
                let shifted = f64::from(x[at(k)] - max);
                y[at(k)] = if log { shifted - sum.ln() } else { shifted.exp() / sum } as f32;
            }
        }
    }
}

/// An operation with NumPy's broadcasting.
fn binary<T: Copy>(out: &[usize], a: (&[usize], &[T]), b: (&[usize], &[T]), y: &mut [T], op: impl Fn(T, T) -> T) {
    // Steps of an operand along the axes of the result: 0 where it is repeated.
    let steps = |dims: &[usize]| -> Vec<usize> {
        let own = layout::strides(dims);
        let missing = out.len() - dims.len();
        (0..out.len()).map(|i| i.checked_sub(missing).map_or(0, |k| if dims[k] == 1 { 0 } else { own[k] })).collect()
    };
    layout::walk(out, &steps(a.0), 0, |to, from| y[to] = a.1[from]);
    layout::walk(out, &steps(b.0), 0, |to, from| y[to] = op(y[to], b.1[from]));
}

/// Products of the last two axes, the others broadcast.
fn matmul(a: (&[usize], &[f32]), b: (&[usize], &[f32]), y: &mut [f32]) -> Result<(), Error> {
    let (&[ref a_batch @ .., m, k], &[ref b_batch @ .., _, n]) = (a.0, b.0) else { return Err(mismatch()) };
    if a_batch == b_batch {
        gemm::batched(a_batch.iter().product(), [m, k, n], a.1, Order::Plain, b.1, Order::Plain, y);
        return Ok(());
    }
    let batch = broadcast(a_batch, b_batch)?;
    // The matrices of each operand, numbered, broadcast like the elements of a small tensor.
    let count: usize = batch.iter().product();
    let numbers = |dims: &[usize]| -> Vec<usize> {
        let all: Vec<usize> = (0..dims.iter().product()).collect();
        let mut out = vec![0; count];
        binary(&batch, (dims, &all), (&[], &[0]), &mut out, |a, _| a);
        out
    };
    for (i, (ai, bi)) in numbers(a_batch).into_iter().zip(numbers(b_batch)).enumerate() {
        let (a, b) = (&a.1[ai * m * k..][..m * k], &b.1[bi * k * n..][..k * n]);
        gemm::matmul([m, k, n], a, Order::Plain, b, Order::Plain, &mut y[i * m * n..][..m * n]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_and_softmax() {
        let mut y = [0; 6];
        binary(&[2, 3], (&[2, 1], &[10, 20]), (&[3], &[1, 2, 3]), &mut y, |a, b| a + b);
        assert_eq!(y, [11, 12, 13, 21, 22, 23]);
        let mut y = [0.0; 4];
        softmax_along(&[2, 2], 0, false, &[0.0, 1000.0, 0.0, 1000.0], &mut y);
        assert_eq!(y, [0.5; 4]);
        softmax_along(&[2, 2], 1, true, &[0.0, 0.0, 3.0, 3.0], &mut y);
        assert!(y.iter().all(|v| (v + std::f32::consts::LN_2).abs() < 1e-6));
        // Rows that lie side by side have a loop of their own.
        let x = crate::testing::noise(2 * 19, 3);
        let turned: Vec<f32> = (0..38).map(|i| x[i % 2 * 19 + i / 2] * 9.0).collect();
        let x: Vec<f32> = x.iter().map(|x| x * 9.0).collect();
        for log in [false, true] {
            let (mut rows, mut columns) = ([0.0; 38], [0.0; 38]);
            softmax_along(&[2, 19], 1, log, &x, &mut rows);
            softmax_along(&[19, 2], 0, log, &turned, &mut columns);
            for i in 0..38 {
                assert!((columns[i] - rows[i % 2 * 19 + i / 2]).abs() < 1e-5, "{log} {i}");
            }
        }
    }

    #[test]
    fn matrices_broadcast() {
        let a = [1.0, 2.0, 3.0, 4.0]; // two 1x2
        let b = [1.0, 0.0, 0.0, 1.0]; // one 2x2
        let mut y = [0.0; 4];
        matmul((&[2, 1, 2], &a), (&[2, 2], &b), &mut y).unwrap();
        assert_eq!(y, a);
    }
}
