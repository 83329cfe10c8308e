//! A budget of bits, and how far gates are above or below it.
//!
//! CSQ's regulariser is λ · ΔS · Σ gates with ΔS = (bits in use − target) / planes: it prunes above the target, and because
//! ΔS changes its sign, grows bits again below it. ΔS is a plain number: no gradient flows through it.

use bitsmith_graph::quant::TERNARY_BITS;
use serde::{Deserialize, Serialize};

use crate::method::WeightLayer;

/// How layers count in the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// By their number of weights: the mean is what a file pays per weight.
    #[default]
    Size,
    /// By their multiply-accumulates: times these and the bits of activations, the mean is the bit operations of a sample.
    Macs,
    /// Each layer alike, as the published code does: a stem of 432 weights counts as much as a layer of 36,864.
    Layers,
}

/// What a layer's bits are counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// What the file stores and the user pays: planes that are on and one sign bit, 1.6 for a single plane (three values,
    /// five to a byte), 0 if none is on.
    #[default]
    Stored,
    /// Planes that are on: the sign is free, as papers count.
    Paper,
}

impl Count {
    /// Bits of a layer with this many planes on.
    pub fn bits(self, planes_on: usize) -> f64 {
        match (self, planes_on) {
            (Count::Stored, 1) => TERNARY_BITS,
            (Count::Stored, 2..) => planes_on as f64 + 1.0,
            _ => planes_on as f64,
        }
    }
}

/// A target for mean bits over layers of `planes` planes at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Mean bits wanted.
    pub target: f64,
    /// How layers weigh.
    pub weighting: Weighting,
    /// What is counted.
    pub count: Count,
}

impl Budget {
    /// What a layer weighs in the mean.
    pub fn size(&self, layer: &WeightLayer) -> usize {
        match self.weighting {
            Weighting::Size => layer.weights(),
            Weighting::Macs => usize::try_from(layer.macs).unwrap_or(usize::MAX),
            Weighting::Layers => 1,
        }
    }

    /// Mean bits of layers given as (size, planes on).
    pub fn mean(&self, layers: &[(usize, usize)]) -> f64 {
        super::cost::mean_bits(layers.iter().map(|&(size, on)| (size, self.count.bits(on))))
    }

    /// ΔS: mean bits above the target (negative: below), as a fraction of `planes`.
    pub fn excess(&self, layers: &[(usize, usize)], planes: usize) -> f64 {
        (self.mean(layers) - self.target) / planes.max(1) as f64
    }

    /// Whether the mean is within the target (a hair above is rounding error of the mean itself).
    pub fn holds(&self, layers: &[(usize, usize)]) -> bool {
        self.mean(layers) <= self.target + 1e-9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layer sizes of ResNet-20 for CIFAR-10.
    fn resnet20() -> Vec<usize> {
        let mut sizes = vec![432];
        sizes.extend([2304; 6]);
        sizes.extend([4608, 9216, 9216, 9216, 9216, 9216]);
        sizes.extend([18432, 36864, 36864, 36864, 36864, 36864]);
        sizes.push(640);
        sizes
    }

    #[test]
    fn weighting_by_size_and_by_layer_differ_a_lot() {
        let budget = |weighting| Budget { target: 2.0, weighting, count: Count::Paper };
        let bits = |f: &dyn Fn(usize) -> usize| -> Vec<usize> { (0..resnet20().len()).map(f).collect() };
        let by = |weighting, bits: &[usize]| {
            let size = |n: usize| if weighting == Weighting::Layers { 1 } else { n };
            let layers: Vec<_> = resnet20().into_iter().zip(bits).map(|(n, &b)| (size(n), b)).collect();
            budget(weighting).mean(&layers)
        };
        let falling = bits(&|i| {
            if i < 8 {
                4
            } else if i < 14 {
                3
            } else {
                2
            }
        });
        let rising = bits(&|i| if i < 14 { 1 } else { 4 });
        let close = |got: f64, want: f64| assert!((got - want).abs() < 0.006, "{got} {want}");
        close(by(Weighting::Layers, &falling), 3.10);
        close(by(Weighting::Size, &falling), 2.38);
        close(by(Weighting::Layers, &rising), 1.90);
        close(by(Weighting::Size, &rising), 3.07);
    }

    #[test]
    fn the_published_penalty_at_the_start_and_its_sign() {
        let budget = Budget { target: 2.0, weighting: Weighting::Layers, count: Count::Paper };
        let with_on = |on: usize| {
            let mut left = on;
            resnet20()
                .into_iter()
                .map(|_| {
                    let take = left.min(8);
                    left -= take;
                    (1, take)
                })
                .collect::<Vec<_>>()
        };
        // Every gate is 0.5 and counts as on: 0.01 · 0.75 · 80 = 0.6.
        let penalty = 0.01 * budget.excess(&with_on(160), 8) * 160.0 * 0.5;
        assert!((penalty - 0.6).abs() < 1e-12);
        assert!(budget.excess(&with_on(41), 8) > 0.0);
        assert_eq!(budget.excess(&with_on(40), 8), 0.0);
        assert!(budget.excess(&with_on(39), 8) < 0.0);
        assert!(budget.holds(&with_on(40)) && !budget.holds(&with_on(41)));
    }

    #[test]
    fn a_layer_without_planes_stores_nothing() {
        assert_eq!((Count::Stored.bits(0), Count::Stored.bits(1), Count::Stored.bits(7)), (0.0, 1.6, 8.0));
        assert_eq!((Count::Paper.bits(0), Count::Paper.bits(7)), (0.0, 7.0));
    }
}
