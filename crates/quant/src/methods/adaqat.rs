//! AdaQAT: widths by finite differences of the loss (2024, arXiv 2404.16876), as far as its abstract and description tell.
//!
//! The network always computes with ⌈N⌉ bits; the gradient of the real width N is the loss at ⌈N⌉ less the loss at ⌊N⌋, which
//! costs a forward pass more, and the pull of the cost. Both act against each other, so N swings about a whole number; after
//! some turns it stays at the upper end.
//!
//! | symbol | option | default |
//! |---|---|---|
//! | N_w at the start | `start_bits` | 8 |
//! | λ | `lambda` | 0.05, on mean stored bits above the target |
//! | turns until N stays | `freeze_after` | 6 |
//!
//! One width for the whole network is the published form; `sharing = "layer"` gives each layer its own, with the difference of
//! losses estimated to first order (no extra pass), and only then are widths made to fit the target exactly. Constants are
//! ours, and so are grids with learned steps where the paper has DoReFa's; widths of activations
//! are learned beside them where a run asks for it ([`crate::train::activations`]), by the linear estimate.

use crate::blocks::budget::{Count, Weighting};
use crate::blocks::gate::{Chain, Estimator};
use crate::blocks::widths::Widths;
use crate::methods::fractional::{Fractional, FractionalOptions, Preset, Sharing};
use crate::options::options;

options! {
    /// Options of `adaqat`.
    pub struct AdaQatOptions {
        /// Mean stored bits per weight to approach, by size over all layers; the log says by how much it is missed.
        pub target_bits: f64 = 3.0,
        /// How layers weigh in the mean: "size" (bytes), "macs" (bit operations) or "cost" (what a run's budget says).
        pub weighting: Weighting = Weighting::Size,
        /// Bits at which the network starts, 2 to 8.
        pub start_bits: f64 = 8.0,
        /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
        pub edge_bits: u8 = 8,
        /// Fewest bits of any other layer's codes, 2 to 8.
        pub floor_bits: u8 = 2,
        /// One step per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Share of the epochs spent searching.
        pub search: f64 = 0.5,
        /// "net": one width for all layers; "layer": each its own.
        pub sharing: Sharing = Sharing::Net,
        /// Strength of the cost.
        pub lambda: f64 = 0.05,
        /// Learning rate of the width, relative to that of float weights.
        pub gate_rate: f64 = 1.0,
        /// Changes of direction after which the width stays; 0: never.
        pub freeze_after: usize = 6,
    }
}

/// What makes it AdaQAT.
#[derive(Debug)]
pub struct AdaQatPreset;

impl Preset for AdaQatPreset {
    const NAME: &'static str = "adaqat";
    const SUMMARY: &'static str = "learns one width for the network (or one per layer) from differences of the loss";
    type Options = AdaQatOptions;

    fn options(o: &AdaQatOptions) -> FractionalOptions {
        FractionalOptions {
            widths: Widths {
                target_bits: o.target_bits,
                edge_bits: o.edge_bits,
                floor_bits: o.floor_bits,
                most: 7,
                weighting: o.weighting,
                count: Count::Stored,
            },
            per_channel: o.per_channel,
            search: o.search,
            start_bits: o.start_bits,
            estimator: Estimator::Difference,
            tau: 1.0,
            chain: Chain::Both,
            sharing: o.sharing,
            lambda: o.lambda,
            error_weight: 0.0,
            gate_rate: o.gate_rate,
            freeze_after: if o.sharing == Sharing::Net { o.freeze_after } else { 0 },
            fit: o.sharing == Sharing::Layer,
            seed: 1,
        }
    }
}

/// The method.
pub type AdaQat = Fractional<AdaQatPreset>;
