//! The widths that a search may choose from: a target for their mean, floors, and what is given beforehand.

use super::budget::{Budget, Count, Weighting};
use crate::error::Error;
use crate::method::{Part, WeightLayer};

/// Bounds of a search, as methods' options say them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widths {
    /// Mean stored bits to reach over all layers.
    pub target_bits: f64,
    /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
    pub edge_bits: u8,
    /// Fewest bits of any other layer's codes; 0 allows a layer to vanish.
    pub floor_bits: u8,
    /// Most planes: one less than the most bits.
    pub most: usize,
    /// How layers weigh in the mean.
    pub weighting: Weighting,
    /// What the target counts.
    pub count: Count,
}

impl Widths {
    /// Refuses what cannot be stored.
    pub fn check(&self) -> Result<(), Error> {
        let most = self.most as f64 + 1.0;
        if !(self.target_bits > 0.0 && self.target_bits <= most) {
            return Err(Error::option(format!(
                "target_bits = {}: a weight has at most {most} bits, so the target must be above 0 and at most that",
                self.target_bits
            )));
        }
        self.check_floors()
    }

    /// Refuses floors that cannot be stored.
    pub fn check_floors(&self) -> Result<(), Error> {
        for (name, bits) in [("edge_bits", self.edge_bits), ("floor_bits", self.floor_bits)] {
            if bits > 8 || bits == 1 {
                return Err(Error::option(format!("{name} = {bits}: 0 (no floor) or 2 to 8 bits")));
            }
        }
        Ok(())
    }

    /// The budget.
    pub fn budget(&self) -> Budget {
        Budget { target: self.target_bits, weighting: self.weighting, count: self.count }
    }

    /// Fewest planes of a layer, and whether that is the width it is given.
    pub fn floor(&self, layer: &WeightLayer) -> (usize, bool) {
        let given = matches!(layer.part, Part::First | Part::Last) && self.edge_bits > 0;
        let bits = if given { self.edge_bits } else { self.floor_bits };
        (usize::from(bits.saturating_sub(1)).min(self.most), given)
    }

    /// Refuses a target that the floors of these layers alone exceed.
    pub fn check_reachable<'a>(&self, layers: impl Iterator<Item = &'a WeightLayer>) -> Result<(), Error> {
        let budget = self.budget();
        let mut least = vec![];
        for layer in layers {
            if self.weighting == Weighting::Cost && layer.costs.is_none() {
                return Err(Error::option(
                    "weighting = \"cost\", but nobody said what layers cost: give a budget instead, latency=2ms for example",
                ));
            }
            least.push((budget.price(layer), self.floor(layer).0));
        }
        if budget.holds(&least) {
            return Ok(());
        }
        Err(Error::option(format!(
            "a target of {} cannot be reached: edge_bits = {} and floor_bits = {} alone make {}; lower edge_bits or floor_bits",
            budget.wanted(),
            self.edge_bits,
            self.floor_bits,
            budget.show(budget.mean(&least))
        )))
    }
}
