//! What follows a product before its result is stored: scale, bias, batch normalisation, residual, activation, rounding,
//! each in f32, each rounded, in the order of the graph.
//!
//! A chain runs over small blocks that stay in the first cache, one operation after the other, so every operation is
//! a loop that the compiler vectorises and no order of fusing can change a bit.

use std::sync::Arc;

use bitsmith_graph::{Op, QParams};
use bitsmith_kernels::activation::{self, Activation};
use bitsmith_kernels::integer::{Kept, PerChannel, Prepared, Requantize, Residual, rows};
use bitsmith_kernels::threads;

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
    Channel { op: Binary, side: Side, values: Arc<[f32]> },
    /// `y = x · a + b` per channel, two roundings.
    Affine { a: Arc<[f32]>, b: Arc<[f32]> },
    /// With another value of the same shape and layout.
    Value { op: Binary, side: Side, other: V },
    /// An activation function.
    Activation(Activation),
    /// To a grid whose codes are not kept: rounded and decoded at once.
    Round(Arc<QParams>),
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

/// Elements per block: floats, accumulators and codes of one stay in the first cache together.
const BLOCK: usize = 2048;

/// Elements below which a second thread is not worth its while.
const PART: usize = 1 << 16;

/// Where results go: whole rows of the output, from offset `first` of it on.
pub(super) enum Target<'a> {
    F32(&'a mut [f32]),
    Codes(&'a mut [u8], ByteGrid),
}

/// Runs a chain on elements, in parallel.
pub(super) fn from_elements(start: Elements<'_>, links: &[Link<Elements<'_>>], channels: usize, target: Target<'_>) {
    let part = whole_rows(PART, channels);
    let load = |at: usize, x: &mut [f32]| match start {
        Elements::F32(v) => x.copy_from_slice(&v[at..at + x.len()]),
        Elements::Codes(v, grid) => grid.decode(&v[at..at + x.len()], x),
    };
    match target {
        Target::F32(out) => threads::for_each(out.chunks_mut(part).enumerate(), |(i, out)| {
            run(load, links, channels, i * part, Target::F32(out));
        }),
        Target::Codes(out, grid) => threads::for_each(out.chunks_mut(part).enumerate(), |(i, out)| {
            run(load, links, channels, i * part, Target::Codes(out, grid));
        }),
    }
}

/// A chain that follows a product, made ready for accumulators, each times a factor of its channel.
pub(super) struct AfterProduct<'a> {
    scale: &'a [f32],
    links: &'a [Link<Elements<'a>>],
    /// The one pass that does it all, if there is one.
    fused: Option<Prepared<'a>>,
}

impl<'a> AfterProduct<'a> {
    /// A chain to codes of `grid`, or to floats.
    pub fn new(scale: &'a [f32], links: &'a [Link<Elements<'a>>], grid: Option<ByteGrid>, kept: &'a Kept) -> Self {
        let fused = grid.and_then(|grid| requantize(scale, links, grid)).map(|fused| fused.prepared_once(kept));
        Self { scale, links, fused }
    }

    /// The one pass that does it all, if there is one.
    pub fn one_pass(&self) -> Option<&Prepared<'a>> {
        self.fused.as_ref()
    }

    /// Accumulators of whole rows, which stand for the output from offset `first` on.
    pub fn run(&self, acc: &[i32], first: usize, target: Target<'_>) {
        match (target, &self.fused) {
            (Target::Codes(out, _), Some(fused)) => fused.run(acc, first, out),
            (target, _) => from_scaled(acc, self.scale, self.links, first, target),
        }
    }
}

fn from_scaled(acc: &[i32], scale: &[f32], links: &[Link<Elements<'_>>], first: usize, target: Target<'_>) {
    let load = |at: usize, x: &mut [f32]| rows::scale_rows(&acc[at - first..][..x.len()], scale, x);
    run(load, links, scale.len(), first, target);
}

/// The usual chain, bias or batch normalisation, then a residual, then a clip, as the one pass that does it all.
fn requantize<'a>(
    multiplier: &'a [f32],
    mut links: &'a [Link<Elements<'a>>],
    grid: ByteGrid,
) -> Option<Requantize<'a>> {
    let channels = multiplier.len();
    let mut fused =
        Requantize { multiplier, per_channel: PerChannel::None, residual: Residual::None, clip: None, grid };
    if let [Link::Channel { op: Binary::Add, values, .. }, rest @ ..] = links
        && values.len() == channels
    {
        (fused.per_channel, links) = (PerChannel::Bias(values), rest);
    } else if let [Link::Affine { a, b }, rest @ ..] = links
        && a.len() == channels
        && b.len() == channels
    {
        (fused.per_channel, links) = (PerChannel::Affine(a, b), rest);
    }
    if let [Link::Value { op: Binary::Add, other, .. }, rest @ ..] = links {
        fused.residual = match other {
            Elements::Codes(codes, from) => Residual::Codes(codes, *from),
            Elements::F32(floats) => Residual::Floats(floats),
        };
        links = rest;
    }
    if let [Link::Activation(act), rest @ ..] = links {
        let clip = match *act {
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Clip { min, max } if min <= max => Some((min, max)),
            _ => return None,
        };
        (fused.clip, links) = (clip, rest);
    }
    links.is_empty().then_some(fused)
}

/// Runs a chain on floats that are already where results go.
pub(super) fn in_place(links: &[Link<Elements<'_>>], channels: usize, out: &mut [f32]) {
    let part = whole_rows(PART, channels);
    threads::for_each(out.chunks_mut(part).enumerate(), |(i, out)| {
        run(|_, _| {}, links, channels, i * part, Target::F32(out));
    });
}

/// About `n` elements, in whole rows.
fn whole_rows(n: usize, channels: usize) -> usize {
    (n / channels.max(1)).max(1) * channels.max(1)
}

/// Whole rows from offset `first` on, block by block.
fn run(
    load: impl Fn(usize, &mut [f32]),
    links: &[Link<Elements<'_>>],
    channels: usize,
    first: usize,
    target: Target<'_>,
) {
    let block = whole_rows(BLOCK, channels);
    match target {
        Target::F32(out) => {
            for (j, x) in out.chunks_mut(block).enumerate() {
                let at = first + j * block;
                load(at, x);
                links.iter().for_each(|link| apply(link, channels, at, x));
            }
        }
        Target::Codes(out, grid) => {
            let mut floats = vec![0.0; block.min(out.len())];
            for (j, out) in out.chunks_mut(block).enumerate() {
                let (at, x) = (first + j * block, &mut floats[..out.len()]);
                load(at, x);
                links.iter().for_each(|link| apply(link, channels, at, x));
                grid.encode(x, out);
            }
        }
    }
}

/// One operation on whole rows from offset `at` on.
fn apply(link: &Link<Elements<'_>>, channels: usize, at: usize, x: &mut [f32]) {
    let range = at..at + x.len();
    match link {
        Link::Channel { op, side, values } => channel(*op, *side, values, x),
        Link::Affine { a, b } if a.len() == channels => rows::affine_rows(a, b, x),
        Link::Affine { .. } => {}
        Link::Value { op, side, other: Elements::F32(v) } => with(*op, *side, &v[range], x),
        Link::Value { op: Binary::Add, other: Elements::Codes(v, grid), .. } => {
            rows::add_u8(&v[range], grid.scale, grid.zero_point, x);
        }
        Link::Value { op, side, other: Elements::Codes(v, grid) } => {
            // Decoded in pieces that stay on the stack.
            let mut decoded = [0.0; 256];
            for (x, v) in x.chunks_mut(256).zip(v[range].chunks(256)) {
                grid.decode(v, &mut decoded[..v.len()]);
                with(*op, *side, &decoded[..v.len()], x);
            }
        }
        Link::Activation(act) => activation::in_place(*act, x),
        Link::Round(params) => x.iter_mut().for_each(|x| *x = params.decode(params.encode(*x, 0), 0)),
    }
}

fn channel(op: Binary, side: Side, values: &[f32], x: &mut [f32]) {
    match values {
        [] => {}
        &[v] => each(op, side, x, |_| v),
        values if op == Binary::Add => rows::add_rows(values, x),
        values => x.chunks_mut(values.len()).for_each(|x| with(op, side, values, x)),
    }
}

fn with(op: Binary, side: Side, other: &[f32], x: &mut [f32]) {
    if op == Binary::Add {
        return rows::add_elements(other, x);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_one_another() {
        let grid = ByteGrid { scale: 0.5, zero_point: 2, low: 0, high: 15 };
        let links = [
            Link::Channel { op: Binary::Add, side: Side::Left, values: [1.0, -1.0].into() },
            Link::Affine { a: [2.0, 3.0].into(), b: [0.5, 0.25].into() },
            Link::Value { op: Binary::Sub, side: Side::Right, other: Elements::Codes(&[2, 4, 6, 8], grid) },
            Link::Activation(Activation::Relu),
            Link::Channel { op: Binary::Div, side: Side::Right, values: [1.0].into() },
        ];
        let mut y = [0.0; 4];
        AfterProduct::new(&[0.5, 0.25], &links, None, &Kept::default()).run(&[-3, 4, -5, 6], 0, Target::F32(&mut y));
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
        AfterProduct::new(&[0.5, 0.25], &links, Some(grid), &Kept::default()).run(
            &[-3, 4, -5, 6],
            0,
            Target::Codes(&mut codes, grid),
        );
        let mut rounded = [0; 4];
        grid.encode(&expected, &mut rounded);
        assert_eq!(codes, rounded);
    }

    /// The pass for the usual chain gives what its links give one by one.
    #[test]
    fn usual_chains_run_in_one_pass() {
        let (channels, n, first) = (19, 19 * 6, 38);
        let noise = |seed| crate::testing::noise(channels, seed);
        let acc: Vec<i32> = crate::testing::noise(n, 1).iter().map(|v| (v * 5000.0) as i32).collect();
        let codes: Vec<u8> = (0..n + first).map(|i| (i * 37 % 256) as u8).collect();
        let grid = |zero_point| ByteGrid { scale: 0.02, zero_point, low: 0, high: 200 };
        let scale: Vec<f32> = noise(2).iter().map(|v| 1e-3 + v.abs() * 1e-3).collect();
        let bias = || Link::Channel { op: Binary::Add, side: Side::Left, values: noise(3).into() };
        let affine = || Link::Affine { a: noise(4).into(), b: noise(5).into() };
        let residual = || Link::Value { op: Binary::Add, side: Side::Right, other: Elements::Codes(&codes, grid(90)) };
        let relu = || Link::Activation(Activation::Relu);
        let clip = || Link::Activation(Activation::Clip { min: -0.5, max: 1.0 });
        for links in [
            vec![],
            vec![bias()],
            vec![affine(), relu()],
            vec![bias(), residual()],
            vec![affine(), residual(), relu()],
            vec![residual(), clip()],
            vec![clip()],
        ] {
            for zero_point in [0, 100] {
                let grid = grid(zero_point);
                let kept = Kept::default();
                let after = AfterProduct::new(&scale, &links, Some(grid), &kept);
                assert!(after.fused.is_some());
                let (mut fused, mut floats, mut one_by_one) = (vec![0; n], vec![0.0; n], vec![0; n]);
                after.run(&acc, first, Target::Codes(&mut fused, grid));
                from_scaled(&acc, &scale, &links, first, Target::F32(&mut floats));
                grid.encode(&floats, &mut one_by_one);
                assert_eq!(fused, one_by_one, "{links:?}");
            }
        }
        let gelu = [Link::Activation(Activation::GeluErf)];
        assert!(AfterProduct::new(&scale, &gelu, Some(grid(0)), &Kept::default()).fused.is_none());
    }

    /// Blocks, parts and rows do not show in the result.
    #[test]
    fn long_values_equal_their_rows() {
        for (rows, channels) in [(1, 1), (3, 7), (1000, 17), (2, 100_003)] {
            let x = crate::testing::noise(rows * channels, 5);
            let a = crate::testing::noise(channels, 6);
            let links = [Link::Affine { a: a.clone().into(), b: a.clone().into() }];
            let mut y = vec![0.0; x.len()];
            from_elements(Elements::F32(&x), &links, channels, Target::F32(&mut y));
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, x[i] * a[i % channels] + a[i % channels]);
            }
        }
    }
}
