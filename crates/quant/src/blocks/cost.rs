//! What bits cost: cost models turn widths into the number that a budget limits or a report shows.

use std::collections::BTreeMap;

/// What each layer costs at 0 to 8 stored bits, by the name of its weight, in one unit for all. Layers that are not in it cost nothing.
pub type Costs = BTreeMap<String, [f64; 9]>;

/// A layer as a cost model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Number of weights.
    pub weights: usize,
    /// Multiply-accumulates for one sample.
    pub macs: u64,
}

/// The price of a layer at given widths.
pub trait CostModel {
    /// What the numbers are.
    fn unit(&self) -> &'static str;
    /// The cost of one layer.
    fn layer(&self, layer: &LayerShape, weight_bits: f32, activation_bits: f32) -> f64;
}

/// Bits that the file stores for weights.
#[derive(Debug, Clone, Copy, Default)]
pub struct WeightBits;

impl CostModel for WeightBits {
    fn unit(&self) -> &'static str {
        "bits"
    }

    fn layer(&self, layer: &LayerShape, weight_bits: f32, _activation_bits: f32) -> f64 {
        layer.weights as f64 * f64::from(weight_bits)
    }
}

/// Bit operations for one sample: multiply-accumulates times both widths, the usual proxy for energy.
#[derive(Debug, Clone, Copy, Default)]
pub struct BitOperations;

impl CostModel for BitOperations {
    fn unit(&self) -> &'static str {
        "bit operations"
    }

    fn layer(&self, layer: &LayerShape, weight_bits: f32, activation_bits: f32) -> f64 {
        layer.macs as f64 * f64::from(weight_bits) * f64::from(activation_bits)
    }
}

/// Mean bits per weight over layers, weighted by size; 0 if there are no weights.
pub fn mean_bits(layers: impl IntoIterator<Item = (usize, f64)>) -> f64 {
    let (mut bits, mut weights) = (0.0, 0.0);
    for (n, b) in layers {
        bits += n as f64 * b;
        weights += n as f64;
    }
    if weights > 0.0 { bits / weights } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_by_hand() {
        let layer = LayerShape { weights: 100, macs: 5000 };
        assert_eq!(WeightBits.layer(&layer, 3.0, 8.0), 300.0);
        assert_eq!(BitOperations.layer(&layer, 3.0, 4.0), 60_000.0);
        assert_eq!(mean_bits([(10, 2.0), (30, 4.0)]), 3.5);
        assert_eq!(mean_bits([]), 0.0);
    }
}
