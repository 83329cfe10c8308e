//! A budget of bits, and how far gates are above or below it. What a layer costs at each width is its [`Price`]: a number of bits for
//! each weight or multiply-accumulate, or whatever else was measured, a latency say, in a unit in which 8 bits everywhere cost 8.
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
    /// By what the run says that each layer costs at each width ([`crate::blocks::cost::Costs`]).
    Cost,
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

/// What a tensor costs at each width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// What it weighs in the mean.
    size: f64,
    costs: [f64; 9],
}

impl Price {
    /// So much for each bit.
    pub fn linear(size: f64, count: Count) -> Self {
        Self { size, costs: std::array::from_fn(|width| size * count.bits(width)) }
    }

    /// What was measured at 0 to 8 stored bits, for widths in planes. A wide grid holds all that a narrow one does, so it counts as no
    /// cheaper.
    pub fn measured(bits: &[f64; 9]) -> Self {
        let mut costs: [f64; 9] = std::array::from_fn(|planes| bits[if planes == 0 { 0 } else { (planes + 1).min(8) }]);
        for width in 1..costs.len() {
            costs[width] = costs[width].max(costs[width - 1]);
        }
        Self { size: costs[8] / 8.0, costs }
    }

    /// What it weighs in the mean.
    pub fn size(&self) -> f64 {
        self.size
    }

    /// What it costs at a width.
    pub fn at(&self, width: usize) -> f64 {
        self.costs[width.min(8)]
    }

    /// What a bit costs, on average over all widths: where costs go in steps, a pull that depends on the next one would come and go.
    pub fn per_bit(&self, count: Count) -> f64 {
        (self.costs[7] - self.costs[1]) / (count.bits(7) - count.bits(1))
    }

    /// The widest of the widths from `floor` on that cost less than this one.
    pub fn narrower(&self, width: usize, floor: usize) -> Option<usize> {
        (floor..width).rev().find(|&narrow| self.costs[narrow] < self.costs[width])
    }

    /// The widest of the widths up to `most` that cost as much as the next one.
    pub fn wider(&self, width: usize, most: usize) -> Option<usize> {
        (width + 1..=most.min(8)).take_while(|&wide| self.costs[wide] <= self.costs[width + 1]).last()
    }
}

/// A hair above the target is rounding error of the mean itself.
const SLACK: f64 = 1e-9;

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
    /// What a layer costs at each width.
    pub fn price(&self, layer: &WeightLayer) -> Price {
        match (self.weighting, &layer.costs) {
            (Weighting::Size, _) => Price::linear(layer.weights() as f64, self.count),
            (Weighting::Macs, _) => Price::linear(layer.macs as f64, self.count),
            (Weighting::Layers, _) => Price::linear(1.0, self.count),
            (Weighting::Cost, Some(costs)) => Price::measured(costs),
            (Weighting::Cost, None) => Price::linear(0.0, self.count),
        }
    }

    /// Mean bits of layers given as (price, planes on).
    pub fn mean(&self, layers: &[(Price, usize)]) -> f64 {
        self.mean_of(layers.iter().map(|(price, on)| (price.size(), price.at(*on))))
    }

    /// The same of layers given as (size, cost).
    pub fn mean_of(&self, layers: impl IntoIterator<Item = (f64, f64)>) -> f64 {
        let (size, cost) = layers.into_iter().fold((0.0, 0.0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        if size > 0.0 { cost / size } else { 0.0 }
    }

    /// A mean, for people.
    pub fn show(&self, mean: f64) -> String {
        match self.weighting {
            Weighting::Cost => format!("{:.1} % of what 8 bits cost", mean * 12.5),
            Weighting::Size | Weighting::Macs | Weighting::Layers => format!("{mean:.3} mean bits"),
        }
    }

    /// By how much a mean is above the target, if it is, for people.
    pub fn missed(&self, mean: f64) -> Option<String> {
        let above = mean - self.target;
        let by =
            if self.weighting == Weighting::Cost { format!("{:.1} %", above * 12.5) } else { format!("{above:.3}") };
        (above > SLACK).then(|| format!("the target of {} is missed by {by}", self.wanted()))
    }

    /// The target, for people.
    pub fn wanted(&self) -> String {
        match self.weighting {
            Weighting::Cost => self.show(self.target),
            Weighting::Size | Weighting::Macs | Weighting::Layers => format!("{} mean bits", self.target),
        }
    }

    /// ΔS: mean bits above the target (negative: below), as a fraction of `planes`.
    pub fn excess(&self, layers: &[(Price, usize)], planes: usize) -> f64 {
        (self.mean(layers) - self.target) / planes.max(1) as f64
    }

    /// Whether the mean is within the target.
    pub fn holds(&self, layers: &[(Price, usize)]) -> bool {
        self.mean(layers) <= self.target + SLACK
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
            let size = |n: usize| if weighting == Weighting::Layers { 1.0 } else { n as f64 };
            let price = |n| Price::linear(size(n), Count::Paper);
            let layers: Vec<_> = resnet20().into_iter().zip(bits).map(|(n, &b)| (price(n), b)).collect();
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
                    (Price::linear(1.0, Count::Paper), take)
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
    fn measured_costs_go_in_steps() {
        // At 0 to 8 bits; 3 bits happened to take longer than 4.
        let price = Price::measured(&[1.0, 2.0, 2.0, 3.5, 3.0, 6.0, 6.0, 6.0, 8.0]);
        assert_eq!((price.size(), price.at(0), price.at(2), price.at(3), price.at(7)), (1.0, 1.0, 3.5, 3.5, 8.0));
        // From 8 bits to 7; from there what saves something is 4; from 2 bits nothing above the floor does.
        assert_eq!(
            [(7, 1), (6, 1), (3, 1), (1, 1)].map(|(w, floor)| price.narrower(w, floor)),
            [Some(6), Some(3), Some(1), None]
        );
        assert_eq!(
            [(1, 7), (3, 7), (3, 5), (6, 7), (7, 7)].map(|(w, most)| price.wider(w, most)),
            [Some(3), Some(6), Some(5), Some(7), None]
        );
        let linear = Price::linear(10.0, Count::Stored);
        assert_eq!((linear.at(1), linear.per_bit(Count::Stored)), (16.0, 10.0));
        assert_eq!((linear.narrower(3, 0), linear.wider(3, 7), linear.wider(7, 7)), (Some(2), Some(4), None));
    }

    #[test]
    fn a_layer_without_planes_stores_nothing() {
        assert_eq!((Count::Stored.bits(0), Count::Stored.bits(1), Count::Stored.bits(7)), (0.0, 1.6, 8.0));
        assert_eq!((Count::Paper.bits(0), Count::Paper.bits(7)), (0.0, 7.0));
    }
}
