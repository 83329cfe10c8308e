//! What recipes may say of CSQ.

use serde::{Deserialize, Serialize};

use crate::blocks::budget::{Count, Weighting};
use crate::options::options;

/// Whose choices to follow where the published code and this crate differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    /// Ours.
    #[default]
    None,
    /// The published code's, as far as they can end on a grid.
    PublishedCode,
}

/// Which gates the budget presses on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pressure {
    /// The lowest open plane of each layer when above the target, the highest closed one when below, by layer size.
    #[default]
    Lowest,
    /// Every plane alike, as published.
    All,
}

/// What learns once the scheme is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finetune {
    /// Soft bits, which harden as the temperature rises: the paper's.
    #[default]
    Bits,
    /// Weights, straight through their rounding as LSQ trains them: the scheme is CSQ's, its weights are not. There is no polish then.
    Weights,
}

/// What learns once all bits are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polish {
    /// Scales, norms and biases: bits stay as they are.
    #[default]
    Scales,
    /// Weights too, straight through their rounding as LSQ trains them: what was decided early can still be changed.
    Weights,
}

/// What the frozen scheme's bits start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefitFrom {
    /// The weights that the search ended with.
    #[default]
    Search,
    /// The float weights that it began with.
    Float,
}

options! {
    /// Options of `csq`.
    pub struct CsqOptions {
        /// Mean bits per weight to reach, by size over all layers; stored bits, sign included, unless `count` says otherwise.
        pub target_bits: f64 = 3.0,
        /// What `target_bits` counts: "stored" (planes and sign) or "paper" (planes only).
        pub count: Count = Count::Stored,
        /// How layers weigh in the mean: "size" (bytes), "macs" (bit operations), "layers" (each alike, as the published code) or "cost" (what a run's budget says).
        pub weighting: Weighting = Weighting::Size,
        /// Magnitude planes per weight at the start, 1 to 7 (8 for parity runs, which cannot be stored).
        pub planes: usize = 7,
        /// One scale per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
        pub edge_bits: u8 = 8,
        /// Fewest bits of any other layer's codes; 0 allows a layer to vanish, 2 keeps sign and one plane (1.6 bits in the file).
        pub floor_bits: u8 = 2,
        /// Share of the epochs spent searching.
        pub search: f64 = 0.25,
        /// What learns once the scheme is frozen: "bits" (soft ones that harden) or "weights" (as LSQ trains them; no polish then).
        pub finetune: Finetune = Finetune::Bits,
        /// Epochs at the end with all bits decided.
        pub polish_epochs: usize = 1,
        /// What learns in them: "scales" (norms and biases too) or "weights" (straight-through from the decided bits, as LSQ).
        pub polish: Polish = Polish::Scales,
        /// Learning rate of those epochs, relative to that of the run.
        pub polish_rate: f64 = 0.1,
        /// Strength of the budget term.
        pub lambda: f64 = 0.3,
        /// Which gates the budget term presses on: "lowest" or "all".
        pub pressure: Pressure = Pressure::Lowest,
        /// Logit of a bit that is on (its negative: off) and of a weight half a step from flipping.
        pub logit: f32 = 1.0,
        /// Logit of every gate at the start.
        pub mask_logit: f32 = 1.0,
        /// Temperature at which the search starts.
        pub search_start: f64 = 3.0,
        /// Temperature at which it ends.
        pub search_end: f64 = 12.0,
        /// Temperature to which finetuning rewinds.
        pub finetune_start: f64 = 2.0,
        /// Temperature at which it ends.
        pub finetune_end: f64 = 200.0,
        /// Share of a phase after which the temperature stays at its end.
        pub reach: f64 = 0.9,
        /// Learning rate of bit logits, relative to that of float weights after allowing for how far a logit moves its weight.
        pub bit_rate: f64 = 3.0,
        /// Learning rate of gates, relative to that of float weights.
        pub gate_rate: f64 = 1.0,
        /// Learning rate of scales, relative to that of float weights, over the square root of the weights that share one.
        pub scale_rate: f64 = 1.0,
        /// What finetuning starts from: "search" (the weights found) or "float" (the original ones).
        pub refit_from: RefitFrom = RefitFrom::Search,
        /// Keep the found plane positions and scales instead of refitting contiguous planes.
        pub keep_positions: bool = false,
        /// "none", or "published-code" to follow the published code's choices for comparison.
        pub parity: Parity = Parity::None,
    }
}

impl CsqOptions {
    /// The options with the published code's choices filled in, where parity is asked for.
    pub(super) fn resolved(mut self) -> Self {
        if self.parity == Parity::PublishedCode {
            self.count = Count::Paper;
            self.weighting = Weighting::Layers;
            self.per_channel = false;
            self.edge_bits = 0;
            self.floor_bits = 0;
            self.pressure = Pressure::All;
            self.lambda = 0.01;
            self.mask_logit = 0.0;
            self.search_start = 1.0;
            self.search_end = 200.0;
            self.search = 595.0 / 600.0;
            self.reach = 1.0;
            self.polish_epochs = 0;
            self.keep_positions = true;
        }
        self
    }
}
