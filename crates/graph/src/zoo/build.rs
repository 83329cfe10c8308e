//! What the architectures are written with: layers by name, tracked shapes, seeded weights.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Error;
use crate::graph::{Dim, Graph, ValueId};
use crate::model::Model;
use crate::op::Op;
use crate::ops::{BatchNormalization, Conv, Flatten, Gemm, GlobalAveragePool, MaxPool, Relu, Window};
use crate::tensor::{Shape, Tensor};

/// A graph under construction. `at` is the value that the next layer reads unless told otherwise.
pub(super) struct Builder {
    pub graph: Graph,
    pub at: ValueId,
    pub classes: usize,
    pub input: [usize; 3],
    rng: ChaCha8Rng,
}

/// The shape of a convolution in the words of its architecture.
#[derive(Clone, Copy)]
pub(super) struct ConvSpec {
    pub out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub groups: usize,
    pub bias: bool,
    /// top = left, bottom = right.
    pub pads: (usize, usize),
}

impl ConvSpec {
    /// "Same" padding for odd kernels, one group, no bias.
    pub fn new(out: usize, kernel: usize, stride: usize) -> Self {
        Self { out, kernel, stride, groups: 1, bias: false, pads: (kernel / 2, kernel / 2) }
    }

    pub fn with_bias(self) -> Self {
        Self { bias: true, ..self }
    }
}

impl Builder {
    pub fn new(input: [usize; 3], classes: usize, seed: u64) -> Result<Self, Error> {
        if classes == 0 || input.contains(&0) {
            return Err(Error::shape(format!("input {input:?} and {classes} classes: every size must be at least 1")));
        }
        let mut graph = Graph::new();
        let dims = std::iter::once(Dim::Batch).chain(input.map(Dim::Fixed)).collect();
        let at = graph.add_input("input", dims)?;
        Ok(Self { graph, at, classes, input, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    pub fn finish(mut self, name: &str) -> Result<Model, Error> {
        self.graph.set_outputs(vec![self.at]);
        self.graph.shapes(1)?;
        Ok(Model::new(name, self.graph))
    }

    /// Shape of a value for one sample.
    pub fn shape(&self, id: ValueId) -> Result<Shape, Error> {
        Ok(self.graph.shapes(1)?.swap_remove(id.index()))
    }

    /// Number of channels at [`Builder::at`].
    pub fn channels(&self) -> Result<usize, Error> {
        Ok(self.shape(self.at)?[1])
    }

    /// Adds an operator on top of [`Builder::at`].
    pub fn push(&mut self, name: &str, op: impl Into<Op>) -> Result<ValueId, Error> {
        self.at = self.graph.add(name, op, &[self.at])?;
        Ok(self.at)
    }

    pub fn relu(&mut self, name: &str) -> Result<ValueId, Error> {
        self.push(name, Relu)
    }

    pub fn normal(&mut self, shape: &[usize], std: f64) -> Result<Tensor, Error> {
        let n = shape.iter().product();
        let rng = &mut self.rng;
        // Box-Muller: pairs of uniforms become pairs of normals.
        let pair = || {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
            [(radius * cos * std) as f32, (radius * sin * std) as f32]
        };
        let data = std::iter::repeat_with(pair).flatten().take(n).collect();
        Tensor::f32(shape.to_vec(), data)
    }

    /// A convolution with `{name}.weight` (and `{name}.bias`).
    pub fn conv(&mut self, name: &str, spec: ConvSpec) -> Result<ValueId, Error> {
        let c_in = self.channels()?;
        let shape = [spec.out, c_in / spec.groups, spec.kernel, spec.kernel];
        let fan_out = spec.kernel * spec.kernel * spec.out / spec.groups;
        let weight = self.normal(&shape, (2.0 / fan_out.max(1) as f64).sqrt())?;
        let mut inputs = vec![self.at, self.graph.add_constant(&format!("{name}.weight"), weight)?];
        if spec.bias {
            inputs.push(self.graph.add_constant(&format!("{name}.bias"), Tensor::floats(vec![0.0; spec.out]))?);
        }
        let (begin, end) = spec.pads;
        let window = Window { pads: vec![begin, begin, end, end], ..Window::uniform(2, spec.stride, 0) };
        self.at = self.graph.add(name, Conv { groups: spec.groups, window }, &inputs)?;
        Ok(self.at)
    }

    /// A batch normalisation with PyTorch's parameter names.
    pub fn batch_norm(&mut self, name: &str, epsilon: f32) -> Result<ValueId, Error> {
        let c = self.channels()?;
        let mut inputs = vec![self.at];
        for (part, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
            inputs.push(self.graph.add_constant(&format!("{name}.{part}"), Tensor::floats(vec![value; c]))?);
        }
        self.at = self.graph.add(name, BatchNormalization { epsilon, momentum: 0.9 }, &inputs)?;
        Ok(self.at)
    }

    /// A linear layer with `{name}.weight` `[out, in]` and `{name}.bias`, on a two-axis value.
    pub fn linear(&mut self, name: &str, out: usize) -> Result<ValueId, Error> {
        let c_in = self.channels()?;
        let weight = self.normal(&[out, c_in], (1.0 / c_in.max(1) as f64).sqrt())?;
        let weight = self.graph.add_constant(&format!("{name}.weight"), weight)?;
        let bias = self.graph.add_constant(&format!("{name}.bias"), Tensor::floats(vec![0.0; out]))?;
        self.at = self.graph.add(name, Gemm::default(), &[self.at, weight, bias])?;
        Ok(self.at)
    }

    pub fn max_pool(
        &mut self,
        name: &str,
        kernel: usize,
        stride: usize,
        pad: usize,
        ceil_mode: bool,
    ) -> Result<ValueId, Error> {
        let window = Window { ceil_mode, ..Window::uniform(2, stride, pad) };
        self.push(name, MaxPool { kernel: vec![kernel; 2], window })
    }

    /// Global average pooling, flattened to `[N, C]`.
    pub fn pool_and_flatten(&mut self) -> Result<ValueId, Error> {
        self.push("avgpool", GlobalAveragePool)?;
        self.push("flatten", Flatten::default())
    }
}
