//! Models to test with: built-in architectures brought onto grids, without any training.

use bitsmith_graph::quant::{channels, for_each_channel};
use bitsmith_graph::{Granularity, Grid, Model, QParams, QuantModel, QuantSpec, Role, Site, Tensor, freeze};

/// A cheap deterministic sequence of floats in [-1, 1).
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The smallest grid of this spec that covers the values, as calibration would choose it.
pub(crate) fn fitted(spec: QuantSpec, shape: &[usize], values: &[f32]) -> QParams {
    let count = channels(spec.per, shape).unwrap();
    let mut largest = vec![0f32; count];
    for_each_channel(spec.per, shape, |i, c| largest[c] = largest[c].max(values[i].abs()));
    let levels = match spec.grid {
        Grid::Codebook => {
            let n = 1usize << spec.bits;
            (0..n).map(|i| if n == 1 { 0.0 } else { i as f32 * 2.0 / (n - 1) as f32 - 1.0 }).collect()
        }
        _ => vec![],
    };
    let mut params = QParams { spec, scale: vec![1.0; count], zero_point: vec![], levels, rows: vec![] };
    let (low, high) = params.code_range();
    let top = if params.spec.grid == Grid::Codebook { 1 } else { high.max(-low).max(1) };
    params.scale = largest.iter().map(|m| if *m > 0.0 { m / top as f32 } else { 1.0 }).collect();
    params
}

/// Rounds the weight of each layer to the grid that `spec_of(layer index)` names; `None` leaves it float.
pub(crate) fn round_weights(model: &mut Model, spec_of: impl Fn(usize) -> Option<QuantSpec>) {
    for (index, layer) in model.layers().unwrap().into_iter().enumerate() {
        let Some(mut spec) = spec_of(index) else { continue };
        if spec.per != Granularity::PerTensor {
            spec.per = Granularity::PerChannel { axis: layer.channel_axis };
        }
        let tensor = model.graph.constant(layer.weight).unwrap().clone();
        let values = tensor.as_f32().unwrap();
        let params = fitted(spec, tensor.shape(), values);
        let mut rounded = vec![0.0; values.len()];
        for_each_channel(spec.per, tensor.shape(), |i, c| rounded[i] = params.decode(params.encode(values[i], c), c));
        model.graph.set_constant(layer.weight, Tensor::f32(tensor.shape(), rounded).unwrap()).unwrap();
        model.sites.insert(layer.weight, Site { role: Role::Weight, spec, params: Some(params) });
    }
}

/// Any of the grids that a weight may have, by number.
pub(crate) fn weight_spec(kind: usize, bits: u8, per_channel: bool) -> QuantSpec {
    let grid = match kind % 5 {
        0 => Grid::Affine { signed: true, symmetric: true },
        1 => Grid::Affine { signed: true, symmetric: false },
        2 => Grid::Affine { signed: false, symmetric: false },
        3 => Grid::Planes { mask: [0, 1, 0b101, 0b1101, 0b10111, 0b110111, 0b1110111, 127][usize::from(bits) % 8] },
        _ => Grid::Codebook,
    };
    let bits = match grid {
        Grid::Planes { mask: 0 } => 0,
        Grid::Planes { mask } => mask.count_ones() as u8 + 1,
        // One symmetric bit is the single code 0.
        Grid::Affine { symmetric: true, .. } => bits.max(2),
        _ => bits.max(1),
    };
    let per = if per_channel { Granularity::PerChannel { axis: 0 } } else { Granularity::PerTensor };
    QuantSpec { grid, bits, per }
}

/// A frozen model whose layers have these grids in turn; activations stay float.
pub(crate) fn frozen(mut model: Model, specs: &[QuantSpec]) -> QuantModel {
    round_weights(&mut model, |i| Some(specs[i % specs.len()]));
    freeze(model).unwrap()
}
