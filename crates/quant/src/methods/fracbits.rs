//! FracBits: widths as real numbers, by interpolation (Yang and Jin, AAAI 2021, arXiv 2007.02017).
//!
//! The weights of a layer of width λ = ⌊λ⌋ + f are (1 − f) · Q_⌊λ⌋(w) + f · Q_⌈λ⌉(w); the loss adds κ · |cost − target|. After the
//! search each width is rounded and the network finetuned.
//!
//! | symbol | option | default |
//! |---|---|---|
//! | λ at the start | `start_bits` | 0: the target and a half |
//! | κ | `lambda` | 0.05, on mean stored bits; falls to 0 within a bit of the target |
//! | search : tune | `search` | 0.8 |
//!
//! Here grids are symmetric with learned steps (LSQ's) where the paper has DoReFa's weights, and the cost is stored bits. Widths
//! of activations have gates and a target of their own ([`crate::train::activations`]). `estimator` may draw one of the two widths
//! instead (the published code has it as an option).

use crate::blocks::budget::{Count, Weighting};
use crate::blocks::gate::{Chain, Estimator};
use crate::blocks::widths::Widths;
use crate::methods::fractional::{Fractional, FractionalOptions, Preset, Sharing};
use crate::options::options;

options! {
    /// Options of `fracbits`.
    pub struct FracBitsOptions {
        /// Mean stored bits per weight to reach, by size over all layers.
        pub target_bits: f64 = 3.0,
        /// How layers weigh in the mean: "size" (bytes), "macs" (bit operations) or "cost" (what a run's budget says).
        pub weighting: Weighting = Weighting::Size,
        /// Bits at which every layer starts, 2 to 8, fractions allowed; 0 means the target and a half.
        pub start_bits: f64 = 0.0,
        /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
        pub edge_bits: u8 = 8,
        /// Fewest bits of any other layer's codes, 2 to 8.
        pub floor_bits: u8 = 2,
        /// One step per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Share of the epochs spent searching.
        pub search: f64 = 0.8,
        /// How widths are learned: "interpolate", "bernoulli", "gumbel" or "gumbel-soft".
        pub estimator: Estimator = Estimator::Interpolate,
        /// Temperature of the Gumbel estimators.
        pub tau: f64 = 1.0,
        /// Strength of the pull towards the target.
        pub lambda: f64 = 0.05,
        /// "layer": each layer has its own width; "net": all have one.
        pub sharing: Sharing = Sharing::Layer,
        /// Learning rate of widths, relative to that of float weights.
        pub gate_rate: f64 = 1.0,
        /// Seed of draws.
        pub seed: u64 = 1,
    }
}

/// What makes it FracBits.
#[derive(Debug)]
pub struct FracBitsPreset;

impl Preset for FracBitsPreset {
    const NAME: &'static str = "fracbits";
    const SUMMARY: &'static str = "learns bits as real numbers, between two widths by interpolation";
    type Options = FracBitsOptions;

    fn options(o: &FracBitsOptions) -> FractionalOptions {
        let start = if o.start_bits == 0.0 { (o.target_bits + 0.5).clamp(2.5, 8.0) } else { o.start_bits };
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
            start_bits: start,
            estimator: o.estimator,
            tau: o.tau,
            chain: Chain::Both,
            sharing: o.sharing,
            lambda: o.lambda,
            error_weight: 0.0,
            gate_rate: o.gate_rate,
            freeze_after: 0,
            fit: true,
            seed: o.seed,
        }
    }
}

/// The method.
pub type FracBits = Fractional<FracBitsPreset>;
