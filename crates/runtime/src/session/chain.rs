//! What follows a product before its result is stored: scale, bias, batch normalisation, residual, activation, rounding,
//! each in f32, each rounded, in the order of the graph.
//!
//! A chain runs over small blocks that stay in the first cache, one operation after the other, so every operation is
//! a loop that the compiler vectorises and no order of fusing can change a bit.

use bitsmith_graph::{Op, QParams};
use bitsmith_kernels::activation::Activation;
use rayon::prelude::*;

use super::grid::ByteGrid;

/// An arithmetic operation of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
}

impl Binary {
    /// The operation of a node, if it is one of these.
    pub fn of(op: &Op) -> Option<Self> {
        Some(match op {
            Op::Add(_) => Binary::Add,
            Op::Sub(_) => Binary::Sub,
            Op::Mul(_) => Binary::Mul,
            Op::Div(_) => Binary::Div,
            _ => return None,
        })
    }

    /// The operation on floats.
    #[inline(always)]
    pub fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
        }
    }

    /// The operation on integers, which wraps; division by zero gives 0 where ONNX leaves it undefined.
    pub fn apply_ints(self, a: i64, b: i64) -> i64 {
        match self {
            Binary::Add => a.wrapping_add(b),
            Binary::Sub => a.wrapping_sub(b),
            Binary::Mul => a.wrapping_mul(b),
            Binary::Div => a.checked_div(b).unwrap_or(0),
        }
    }
}

/// Which operand the running value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// One operation on the running value. `V` names another value: a place in the plan, or its elements.
#[derive(Debug, Clone)]
pub(super) enum Link<V> {
    /// With one number per channel, or one for all.
    Channel { op: Binary, side: Side, values: Vec<f32> },
    /// `y = x · a + b` per channel, two roundings.
    Affine { a: Vec<f32>, b: Vec<f32> },
    /// With another value of the same shape and layout.
    Value { op: Binary, side: Side, other: V },
    /// An activation function.
    Activation(Activation),
    /// To a grid whose codes are not kept: rounded and decoded at once.
    Round(Box<QParams>),
}

impl<V> Link<V> {
    /// The same link with its value found.
    pub fn map<'a, W>(&'a self, find: impl FnOnce(&'a V) -> W) -> Link<W> {
        match self {
            Link::Channel { op, side, values } => Link::Channel { op: *op, side: *side, values: values.clone() },
            Link::Affine { a, b } => Link::Affine { a: a.clone(), b: b.clone() },
            Link::Value { op, side, other } => Link::Value { op: *op, side: *side, other: find(other) },
            Link::Activation(act) => Link::Activation(*act),
            Link::Round(params) => Link::Round(params.clone()),
        }
    }
}

/// Elements of a value, for reading.
#[derive(Debug, Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    Codes(&'a [u8], ByteGrid),
}

/// Where the running value starts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// Other elements, copied or decoded.
    Elements(Elements<'a>),
    /// Accumulators times one factor per channel.
    Accumulators(&'a [i32], &'a [f32]),
    /// Accumulators that are held in f32, exactly, times one factor per channel.
    ExactFloats(&'a [f32], &'a [f32]),
}

/// Elements per block: 16 KiB of floats.
const BLOCK: usize = 4096;

/// Elements below which a second thread is not worth its while.
const PART: usize = 1 << 16;

/// Runs a chain and stores floats.
pub(super) fn to_f32(start: Start<'_>, links: &[Link<Elements<'_>>], channels: usize, out: &mut [f32]) {
    let part = whole_rows(PART, channels);
    let block = whole_rows(BLOCK, channels);
    out.par_chunks_mut(part).enumerate().for_each(|(i, out)| {
        for (j, out) in out.chunks_mut(block).enumerate() {
            run(start, links, channels, i * part + j * block, out);
        }
    });
}

/// Runs a chain and stores codes.
pub(super) fn to_codes(
    start: Start<'_>,
    links: &[Link<Elements<'_>>],
    channels: usize,
    grid: ByteGrid,
    out: &mut [u8],
) {
    let part = whole_rows(PART, channels);
    let block = whole_rows(BLOCK, channels);
    out.par_chunks_mut(part).enumerate().for_each(|(i, out)| {
        let mut floats = vec![0.0; block.min(out.len())];
        for (j, out) in out.chunks_mut(block).enumerate() {
            let floats = &mut floats[..out.len()];
            run(start, links, channels, i * part + j * block, floats);
            grid.encode_slice(floats, out);
        }
    });
}

/// About `n` elements, in whole rows.
fn whole_rows(n: usize, channels: usize) -> usize {
    (n / channels.max(1)).max(1) * channels.max(1)
}

/// One block: whole rows from offset `at` on.
fn run(start: Start<'_>, links: &[Link<Elements<'_>>], channels: usize, at: usize, x: &mut [f32]) {
    let range = at..at + x.len();
    match start {
        Start::Elements(Elements::F32(v)) => x.copy_from_slice(&v[range.clone()]),
        Start::Elements(Elements::Codes(v, grid)) => grid.decode(&v[range.clone()], x),
        Start::Accumulators(acc, scale) => {
            for (x, acc) in x.chunks_mut(channels).zip(acc[range.clone()].chunks(channels)) {
                x.iter_mut().zip(acc).zip(scale).for_each(|((x, &acc), &s)| *x = acc as f32 * s);
            }
        }
        Start::ExactFloats(acc, scale) => {
            for (x, acc) in x.chunks_mut(channels).zip(acc[range.clone()].chunks(channels)) {
                x.iter_mut().zip(acc).zip(scale).for_each(|((x, &acc), &s)| *x = acc * s);
            }
        }
    }
    for link in links {
        match link {
            Link::Channel { op, side, values } => channel(*op, *side, values, x),
            Link::Affine { a, b } => {
                for x in x.chunks_mut(channels) {
                    x.iter_mut().zip(a).zip(b).for_each(|((x, &a), &b)| *x = *x * a + b);
                }
            }
            Link::Value { op, side, other: Elements::F32(v) } => with(*op, *side, &v[range.clone()], x),
            Link::Value { op, side, other: Elements::Codes(v, grid) } => {
                // Decoded in pieces that stay on the stack.
                let mut decoded = [0.0; 256];
                for (x, v) in x.chunks_mut(256).zip(v[range.clone()].chunks(256)) {
                    grid.decode(v, &mut decoded[..v.len()]);
                    with(*op, *side, &decoded[..v.len()], x);
                }
            }
            Link::Activation(act) => activate(*act, x),
            Link::Round(params) => x.iter_mut().for_each(|x| *x = params.decode(params.encode(*x, 0), 0)),
        }
    }
}

fn channel(op: Binary, side: Side, values: &[f32], x: &mut [f32]) {
    match values {
        [] => {}
        &[v] => each(op, side, x, |_| v),
        values => x.chunks_mut(values.len()).for_each(|x| with(op, side, values, x)),
    }
}

fn with(op: Binary, side: Side, other: &[f32], x: &mut [f32]) {
    let x = &mut x[..other.len()];
    each(op, side, x, |i| other[i]);
}

/// One loop per operation, so that each is vectorised.
#[inline(always)]
fn each(op: Binary, side: Side, x: &mut [f32], other: impl Fn(usize) -> f32) {
    match (op, side) {
        (Binary::Add, _) => x.iter_mut().enumerate().for_each(|(i, x)| *x += other(i)),
        (Binary::Mul, _) => x.iter_mut().enumerate().for_each(|(i, x)| *x *= other(i)),
        (Binary::Sub, Side::Left) => x.iter_mut().enumerate().for_each(|(i, x)| *x -= other(i)),
        (Binary::Sub, Side::Right) => x.iter_mut().enumerate().for_each(|(i, x)| *x = other(i) - *x),
        (Binary::Div, Side::Left) => x.iter_mut().enumerate().for_each(|(i, x)| *x /= other(i)),
        (Binary::Div, Side::Right) => x.iter_mut().enumerate().for_each(|(i, x)| *x = other(i) / *x),
    }
}

fn activate(act: Activation, x: &mut [f32]) {
    // The frequent ones get a loop of their own, without a choice inside.
    match act {
        Activation::Identity => {}
        Activation::Relu => x.iter_mut().for_each(|x| *x = Activation::Relu.apply(*x)),
        Activation::Clip { min, max } => x.iter_mut().for_each(|x| *x = Activation::Clip { min, max }.apply(*x)),
        Activation::LeakyRelu { alpha } => x.iter_mut().for_each(|x| *x = Activation::LeakyRelu { alpha }.apply(*x)),
        Activation::HardSwish => x.iter_mut().for_each(|x| *x = Activation::HardSwish.apply(*x)),
        act => x.iter_mut().for_each(|x| *x = act.apply(*x)),
    }
}

/// The activation function of a node, if it is one.
pub(super) fn activation_of(op: &Op) -> Option<Activation> {
    Some(match op {
        Op::Relu(_) => Activation::Relu,
        Op::LeakyRelu(op) => Activation::LeakyRelu { alpha: op.alpha },
        Op::Clip(op) => {
            Activation::Clip { min: op.min.unwrap_or(f32::NEG_INFINITY), max: op.max.unwrap_or(f32::INFINITY) }
        }
        Op::HardSwish(_) => Activation::HardSwish,
        Op::HardSigmoid(op) => Activation::HardSigmoid { alpha: op.alpha, beta: op.beta },
        Op::Sigmoid(_) => Activation::Sigmoid,
        Op::Tanh(_) => Activation::Tanh,
        Op::Gelu(op) if op.tanh => Activation::GeluTanh,
        Op::Gelu(_) => Activation::GeluErf,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_one_another() {
        let grid = ByteGrid { scale: 0.5, zero_point: 2, low: 0, high: 15, signed: false };
        let links = [
            Link::Channel { op: Binary::Add, side: Side::Left, values: vec![1.0, -1.0] },
            Link::Affine { a: vec![2.0, 3.0], b: vec![0.5, 0.25] },
            Link::Value { op: Binary::Sub, side: Side::Right, other: Elements::Codes(&[2, 4, 6, 8], grid) },
            Link::Activation(Activation::Relu),
            Link::Channel { op: Binary::Div, side: Side::Right, values: vec![1.0] },
        ];
        let mut y = [0.0; 4];
        to_f32(Start::Accumulators(&[-3, 4, -5, 6], &[0.5, 0.25]), &links, 2, &mut y);
        // ((acc·s + c)·a + b) subtracted from the decoded codes 0, 1, 2, 3, rectified, inverted.
        let by_hand =
            |acc: f32, s: f32, c: f32, a: f32, b: f32, other: f32| 1.0 / (other - ((acc * s + c) * a + b)).max(0.0);
        let expected = [
            by_hand(-3.0, 0.5, 1.0, 2.0, 0.5, 0.0),
            by_hand(4.0, 0.25, -1.0, 3.0, 0.25, 1.0),
            by_hand(-5.0, 0.5, 1.0, 2.0, 0.5, 2.0),
            by_hand(6.0, 0.25, -1.0, 3.0, 0.25, 3.0),
        ];
        assert_eq!(y, expected);
        let mut codes = [0; 4];
        to_codes(Start::ExactFloats(&[-3.0, 4.0, -5.0, 6.0], &[0.5, 0.25]), &links, 2, grid, &mut codes);
        assert_eq!(codes, expected.map(|v| grid.encode(v)));
    }

    /// Blocks, parts and rows do not show in the result.
    #[test]
    fn long_values_equal_their_rows() {
        for (rows, channels) in [(1, 1), (3, 7), (1000, 17), (2, 100_003)] {
            let x = crate::testing::noise(rows * channels, 5);
            let a = crate::testing::noise(channels, 6);
            let links = [Link::Affine { a: a.clone(), b: a.clone() }];
            let mut y = vec![0.0; x.len()];
            to_f32(Start::Elements(Elements::F32(&x)), &links, channels, &mut y);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, x[i] * a[i % channels] + a[i % channels]);
            }
        }
    }
}
