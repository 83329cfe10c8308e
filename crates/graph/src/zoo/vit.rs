//! Vision transformers: patches as tokens, attention between them (Dosovitskiy et al., arXiv 2010.11929).
//!
//! Blocks normalise before attention and before the two-layer perceptron, as DeiT does. The class is read from the mean of all
//! tokens instead of a token of its own. Constants are named as in timm's files; linear weights are stored `[in, out]`,
//! as a matrix product over tokens reads them.

use super::build::{Builder, ConvSpec};
use crate::error::Error;
use crate::graph::ValueId;
use crate::ops::{Add, Gelu, LayerNormalization, MatMul, Mul, ReduceMean, Reshape, Softmax, Split, Transpose};
use crate::tensor::Tensor;

/// The size of a transformer.
#[derive(Clone, Copy)]
pub(super) struct Vit {
    pub patch: usize,
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
}

/// Hidden features of a perceptron per token feature.
const EXPANSION: usize = 4;

pub(super) fn vit(b: &mut Builder, size: Vit) -> Result<(), Error> {
    let [_, height, width] = b.input;
    let Vit { patch, dim, depth, heads } = size;
    if height % patch != 0 || width % patch != 0 {
        return Err(Error::shape(format!(
            "an image of {height}x{width} does not divide into patches of {patch}x{patch}"
        )));
    }
    let tokens = (height / patch) * (width / patch);
    b.conv("patch_embed.proj", ConvSpec { pads: (0, 0), ..ConvSpec::new(dim, patch, patch).with_bias() })?;
    b.push("patch_embed.flatten", Reshape { shape: vec![0, dim as i64, tokens as i64], allow_zero: false })?;
    b.push("patch_embed.tokens", Transpose { perm: Some(vec![0, 2, 1]) })?;
    let places = b.normal(&[1, tokens, dim], 0.02)?;
    let places = b.graph.add_constant("pos_embed", places)?;
    b.at = b.graph.add("embedded", Add, &[b.at, places])?;
    for block in 0..depth {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let before = b.at;
        layer_norm(b, &name("norm1"), dim)?;
        attention(b, &name("attn"), tokens, dim, heads)?;
        b.at = b.graph.add(&name("add1"), Add, &[before, b.at])?;
        let before = b.at;
        layer_norm(b, &name("norm2"), dim)?;
        tokenwise(b, &name("mlp.fc1"), dim, EXPANSION * dim)?;
        b.push(&name("mlp.act"), Gelu { tanh: false })?;
        tokenwise(b, &name("mlp.fc2"), EXPANSION * dim, dim)?;
        b.at = b.graph.add(&name("add2"), Add, &[before, b.at])?;
    }
    layer_norm(b, "norm", dim)?;
    b.push("pool", ReduceMean { axes: Some(vec![1]), keepdims: false })?;
    let classes = b.classes;
    b.linear("head", classes)?;
    Ok(())
}

fn layer_norm(b: &mut Builder, name: &str, dim: usize) -> Result<ValueId, Error> {
    let gamma = b.graph.add_constant(&format!("{name}.weight"), Tensor::floats(vec![1.0; dim]))?;
    let beta = b.graph.add_constant(&format!("{name}.bias"), Tensor::floats(vec![0.0; dim]))?;
    b.at = b.graph.add(name, LayerNormalization { axis: -1, epsilon: 1e-6 }, &[b.at, gamma, beta])?;
    Ok(b.at)
}

/// A linear layer on every token.
fn tokenwise(b: &mut Builder, name: &str, from: usize, to: usize) -> Result<ValueId, Error> {
    let weight = b.normal(&[from, to], (1.0 / from as f64).sqrt())?;
    let weight = b.graph.add_constant(&format!("{name}.weight"), weight)?;
    let bias = b.graph.add_constant(&format!("{name}.bias"), Tensor::floats(vec![0.0; to]))?;
    let product = b.graph.add(name, MatMul, &[b.at, weight])?;
    b.at = b.graph.add(&format!("{name}.add"), Add, &[product, bias])?;
    Ok(b.at)
}

fn attention(b: &mut Builder, name: &str, tokens: usize, dim: usize, heads: usize) -> Result<ValueId, Error> {
    let part = |p: &str| format!("{name}.{p}");
    let depth = dim / heads;
    let joint = tokenwise(b, &part("qkv"), dim, 3 * dim)?;
    let split = Split { axis: -1, sizes: Some(vec![dim; 3]), outputs: 3 };
    let outputs = [part("q"), part("k"), part("v")];
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let parts = b.graph.add_node(&part("split"), split, &[Some(joint)], &names)?;
    // [N, tokens, dim] to [N, heads, tokens, dim / heads], or with the last two axes exchanged.
    let by_head = |b: &mut Builder, id: ValueId, what: &str, perm: [usize; 4]| -> Result<ValueId, Error> {
        let shape = Reshape { shape: vec![0, tokens as i64, heads as i64, depth as i64], allow_zero: false };
        let split = b.graph.add(&format!("{name}.{what}.split"), shape, &[id])?;
        b.graph.add(&format!("{name}.{what}.heads"), Transpose { perm: Some(perm.to_vec()) }, &[split])
    };
    let q = by_head(b, parts[0], "q", [0, 2, 1, 3])?;
    let k = by_head(b, parts[1], "k", [0, 2, 3, 1])?;
    let v = by_head(b, parts[2], "v", [0, 2, 1, 3])?;
    let scores = b.graph.add(&part("scores"), MatMul, &[q, k])?;
    let scale = b.graph.add_constant(&part("scale"), Tensor::f32([1], vec![(depth as f32).powf(-0.5)])?)?;
    let scaled = b.graph.add(&part("scaled"), Mul, &[scores, scale])?;
    let weights = b.graph.add(&part("softmax"), Softmax { axis: -1 }, &[scaled])?;
    let mixed = b.graph.add(&part("mixed"), MatMul, &[weights, v])?;
    let joined = b.graph.add(&part("join"), Transpose { perm: Some(vec![0, 2, 1, 3]) }, &[mixed])?;
    let flat = Reshape { shape: vec![0, tokens as i64, dim as i64], allow_zero: false };
    b.at = b.graph.add(&part("joined"), flat, &[joined])?;
    tokenwise(b, &part("proj"), dim, dim)
}
