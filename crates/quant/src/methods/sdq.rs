//! SDQ: stochastic differentiable quantization (Huang et al., ICML 2022, arXiv 2206.04459), as far as it is public.
//!
//! Each layer draws one of two neighbouring widths in every step; the probability of the wider one is learned. Once it has decayed,
//! the narrower width takes its place, and so on down the chain. Then widths are fixed, and the bin regulariser (and
//! distillation, `train.distill`) trains the weights.
//!
//! | symbol | option | default |
//! |---|---|---|
//! | b_K … b_1 | `start_bits`, `floor_bits` | 8 … 2: a symmetric grid has no 1 |
//! | β | `initial`, `threshold` | 0.99 down to 0.01 |
//! | τ | `tau` | 1 |
//! | λ_Q | `error_weight`: rounding error of both widths, by their probabilities | 0.1 |
//! | μ | `lambda`: pressure towards the target, 0 at the target | 0.05 |
//! | λ_E | `train.bins` | 0.1, the paper's best |
//!
//! No code was released. Known: adjacent widths, one draw per layer, Gumbel-softmax over the two, decay along the chain, the
//! regulariser's purpose and λ_E. Ours: straight-through draws, the form of the error term, pressure by a budget, thresholds, and
//! grids with a zero and learned steps (LSQ's) in place of DoReFa's, whose levels integers store only with a bit more. Results
//! are to be read as of this design, not of the paper.

use crate::blocks::budget::{Count, Weighting};
use crate::blocks::gate::{Chain, Estimator};
use crate::blocks::widths::Widths;
use crate::methods::fractional::{Fractional, FractionalOptions, Preset, Sharing};
use crate::options::options;

options! {
    /// Options of `sdq`.
    pub struct SdqOptions {
        /// Mean stored bits per weight to reach, by size over all layers.
        pub target_bits: f64 = 3.0,
        /// How layers weigh in the mean: "size" (bytes), "macs" (bit operations) or "cost" (what a run's budget says).
        pub weighting: Weighting = Weighting::Size,
        /// Bits at which every layer starts.
        pub start_bits: u8 = 8,
        /// Bits of the first and last layer's codes, kept whatever the search finds; 0 lets the search decide.
        pub edge_bits: u8 = 8,
        /// Fewest bits of any other layer's codes, 2 to 8.
        pub floor_bits: u8 = 2,
        /// One step per output channel instead of one per layer.
        pub per_channel: bool = true,
        /// Share of the epochs spent searching.
        pub search: f64 = 0.4,
        /// How probabilities are learned: "gumbel", "gumbel-soft", "bernoulli" or "interpolate".
        pub estimator: Estimator = Estimator::Gumbel,
        /// Temperature of the Gumbel estimators.
        pub tau: f64 = 1.0,
        /// Probability of the wider width at the start of each pair.
        pub initial: f32 = 0.99,
        /// Probability below which the wider width is given up.
        pub threshold: f32 = 0.01,
        /// Strength of the pressure towards the target.
        pub lambda: f64 = 0.05,
        /// Strength of the rounding error of both widths, which holds against it.
        pub error_weight: f64 = 0.1,
        /// "layer": each layer has its own width; "net": all have one.
        pub sharing: Sharing = Sharing::Layer,
        /// Learning rate of probabilities, relative to that of float weights.
        pub gate_rate: f64 = 1.0,
        /// Seed of the draws.
        pub seed: u64 = 1,
    }
}

/// What makes it SDQ.
#[derive(Debug)]
pub struct SdqPreset;

impl Preset for SdqPreset {
    const NAME: &'static str = "sdq";
    const SUMMARY: &'static str =
        "learns bits by drawing one of two neighbouring widths, down a chain; then a bin regulariser";
    const BINS: f64 = 0.1;
    type Options = SdqOptions;

    fn options(o: &SdqOptions) -> FractionalOptions {
        FractionalOptions {
            widths: Widths {
                target_bits: o.target_bits,
                edge_bits: o.edge_bits,
                floor_bits: o.floor_bits,
                most: usize::from(o.start_bits.clamp(2, 8)) - 1,
                weighting: o.weighting,
                count: Count::Stored,
            },
            per_channel: o.per_channel,
            search: o.search,
            start_bits: o.start_bits.into(),
            estimator: o.estimator,
            tau: o.tau,
            chain: Chain::Down { threshold: o.threshold, initial: o.initial },
            sharing: o.sharing,
            lambda: o.lambda,
            error_weight: o.error_weight,
            gate_rate: o.gate_rate,
            freeze_after: 0,
            fit: true,
            seed: o.seed,
        }
    }
}

/// The method.
pub type Sdq = Fractional<SdqPreset>;
