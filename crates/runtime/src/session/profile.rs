//! Where the time of runs goes, step by step.

use std::time::Duration;

/// One step of a session: a node with what was fused behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProfile {
    /// The node it belongs to; of a chain, the last one.
    pub name: String,
    /// What it does: `conv`, `linear`, `layer norm`, ….
    pub kind: &'static str,
    /// Output channels, inputs of each sum and output pixels of a product, for one run of the whole batch; zeros elsewhere.
    pub size: [usize; 3],
    /// How long it took per run, all samples of the batch together. Steps that several threads run side by side, each on samples
    /// of its own, count a thread's share.
    pub time: Duration,
    /// Multiply-accumulates of products per run.
    pub macs: u64,
    /// Bytes of inputs, outputs and weights per run, each counted once.
    pub bytes: u64,
}

impl StepProfile {
    /// Billions of operations per second, a multiply-accumulate being two.
    pub fn gops(&self) -> f64 {
        2.0 * self.macs as f64 / self.time.as_secs_f64().max(1e-12) / 1e9
    }
}

/// What one worker measured of one step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    pub time: Duration,
    pub size: [usize; 3],
    pub macs: u64,
    pub bytes: u64,
}

impl Measured {
    pub fn add(&mut self, other: Measured) {
        self.time += other.time;
        let [channels, inputs, pixels] = other.size;
        self.size = [channels, inputs, self.size[2] + pixels];
        self.macs += other.macs;
        self.bytes += other.bytes;
    }
}
