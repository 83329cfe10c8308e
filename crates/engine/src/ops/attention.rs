//! What attention adds to convolutional networks, on the CPU: products of computed tensors, softmax over rows, parts of rows,
//! and other orders of axes. Burn's own operations do the same, but wait for rayon, which a team of threads keeps busy.

use bitsmith_kernels::gemm::Order::{self, Plain, Transposed};
use bitsmith_kernels::threads::for_each_part;
use bitsmith_kernels::{gemm, layout, softmax};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};
use burn_backend::{Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::tape::{added, is_first, register};
use crate::memory::{dense, floats, into_buffer, take, tensor};
use crate::profile;

/// The last two axes of a tensor, and how many such matrices it holds.
fn matrices(x: &FlexTensor) -> (usize, [usize; 2]) {
    let shape = x.shape();
    match *shape.as_slice() {
        [ref leading @ .., rows, columns] => (leading.iter().product(), [rows, columns]),
        _ => (1, [1, shape.num_elements()]),
    }
}

/// Whether [`multiply`] takes them: matrices of the same leading axes.
pub(super) fn multiplies(a: &Shape, b: &Shape) -> bool {
    let (a, b) = (a.as_slice(), b.as_slice());
    a.len() == b.len() && a.len() >= 2 && a[..a.len() - 2] == b[..b.len() - 2]
}

/// Whether an axis is the last one, along which [`soften`] and [`part`] work.
pub(super) fn is_last(shape: &Shape, axis: usize) -> bool {
    axis + 1 == shape.num_dims()
}

/// `[.., m, k] · [.., k, n]`.
pub(super) fn multiply(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    let _time = profile::span("matmul");
    let (batch, [m, k]) = matrices(a);
    let (_, [_, n]) = matrices(b);
    let mut shape = a.shape().as_slice().to_vec();
    shape.pop();
    shape.push(n);
    product(batch, [m, k, n], (a, Plain), (b, Plain), Shape::from(shape))
}

fn product(
    batch: usize,
    size: [usize; 3],
    a: (&FlexTensor, Order),
    b: (&FlexTensor, Order),
    shape: Shape,
) -> FlexTensor {
    let mut c = take(batch * size[0] * size[2]);
    gemm::batched(batch, size, floats(a.0), a.1, floats(b.0), b.1, &mut c);
    tensor(c, shape)
}

#[derive(Debug)]
pub(super) struct MatMul;

impl Backward<Flex, 2> for MatMul {
    type State = [FlexTensor; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let [a, b] = ops.state;
        let [a_node, b_node] = ops.parents;
        let (batch, [m, k]) = matrices(&a);
        let (_, [_, n]) = matrices(&b);
        if let Some(node) = a_node {
            let time = profile::span("matmul backward");
            let da = product(batch, [m, n, k], (&dy, Plain), (&b, Transposed), a.shape());
            drop(time);
            register!(grads, node, da);
        }
        if let Some(node) = b_node {
            let time = profile::span("matmul backward");
            let db = product(batch, [k, m, n], (&a, Transposed), (&dy, Plain), b.shape());
            drop(time);
            register!(grads, node, db);
        }
    }
}

/// Along the last axis.
pub(super) fn soften(x: &FlexTensor) -> FlexTensor {
    let _time = profile::span("softmax");
    let (_, [_, n]) = matrices(x);
    let mut y = take(floats(x).len());
    softmax::forward(n, false, floats(x), &mut y);
    tensor(y, x.shape())
}

#[derive(Debug)]
pub(super) struct Softmax;

impl Backward<Flex, 1> for Softmax {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let y = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let time = profile::span("softmax backward");
            let (_, [_, n]) = matrices(&y);
            let mut dx = take(floats(&y).len());
            softmax::backward(n, floats(&y), floats(&dy), &mut dx);
            drop(time);
            register!(grads, node, tensor(dx, y.shape()));
        }
    }
}

/// Output axis `i` is input axis `axes[i]`.
pub(super) fn permuted(x: &FlexTensor, axes: &[usize]) -> FlexTensor {
    let _time = profile::span("permute");
    let dims = x.shape();
    let mut y = take(floats(x).len());
    layout::permute(dims.as_slice(), axes, floats(x), &mut y);
    tensor(y, Shape::from(axes.iter().map(|&axis| dims[axis]).collect::<Vec<_>>()))
}

#[derive(Debug)]
pub(super) struct Permute;

impl Backward<Flex, 1> for Permute {
    type State = Vec<usize>;

    fn backward(self, ops: Ops<Vec<usize>, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let [node] = ops.parents;
        if let Some(node) = node {
            let mut back = vec![0; ops.state.len()];
            ops.state.iter().enumerate().for_each(|(to, &from)| back[from] = to);
            let dx = permuted(&dy, &back);
            register!(grads, node, dx);
        }
    }
}

/// `len` elements of the last axis, from `at` on.
pub(super) fn part(x: &FlexTensor, at: usize, len: usize) -> FlexTensor {
    let _time = profile::span("split");
    let (batch, [rows, width]) = matrices(x);
    let mut y = take(batch * rows * len);
    let x_data = floats(x);
    for_each_part(&mut y, len, |start, y| {
        let from = x_data[start / len.max(1) * width..].chunks_exact(width);
        y.chunks_exact_mut(len).zip(from).for_each(|(y, x)| y.copy_from_slice(&x[at..at + len]));
    });
    let mut shape = x.shape().as_slice().to_vec();
    shape.pop();
    shape.push(len);
    tensor(y, Shape::from(shape))
}

#[derive(Debug)]
pub(super) struct Part;

impl Backward<Flex, 1> for Part {
    /// Shape of the whole, and where the part begins.
    type State = (Shape, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = dense(grads.consume::<Flex>(&ops.node));
        let (shape, at) = ops.state;
        let [node] = ops.parents;
        let Some(node) = node else { return };
        let time = profile::span("split backward");
        let (width, len) = (shape[shape.num_dims() - 1], dy.shape()[shape.num_dims() - 1]);
        // The parts of a whole add to one buffer.
        let earlier = (!is_first(node.id.value)).then(|| into_buffer(grads.consume::<Flex>(&node)));
        let (mut sum, other, is_new) = match earlier {
            // A leaf's gradient stays where it is; the clone that comes from there is never alone.
            Some(Ok(sum)) => (sum, None, false),
            other => (take(shape.num_elements()), other.and_then(Result::err), true),
        };
        let dy_data = floats(&dy);
        for_each_part(&mut sum, width, |start, sum| {
            let from = dy_data[start / width.max(1) * len..].chunks_exact(len.max(1));
            sum.chunks_exact_mut(width).zip(from).for_each(|(sum, dy)| {
                if is_new {
                    sum[..at].fill(0.0);
                    sum[at..at + len].copy_from_slice(dy);
                    sum[at + len..].fill(0.0);
                } else {
                    sum[at..at + len].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                }
            });
        });
        let mut sum = tensor(sum, shape);
        if let Some(other) = other {
            sum = added(node.parents.is_empty(), other, sum);
        }
        drop(time);
        grads.register::<Flex>(node.id, sum);
    }
}
