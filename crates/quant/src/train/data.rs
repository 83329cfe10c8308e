//! Batches, as the training loop reads them.

use bitsmith_engine::data::Loader;

use crate::error::Error;

/// Some samples with labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Samples one after another, in the graph's layout.
    pub x: Vec<f32>,
    /// One per sample.
    pub labels: Vec<u32>,
    /// Its number in the epoch.
    pub number: usize,
}

/// An epoch's batches in order.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch, Error>> + 'a>;

/// A source of batches that is a function of the epoch alone, so that an interrupted run sees what it would have seen.
pub trait Data {
    /// Batches in an epoch.
    fn batches(&self) -> usize;
    /// The batches of an epoch from number `first` on.
    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_>;
}

/// Batches kept in memory, the same every epoch: calibration sets, tests.
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    /// In order.
    pub batches: Vec<Batch>,
}

impl InMemory {
    /// The first `count` batches of another source.
    pub fn take(data: &dyn Data, count: usize) -> Result<Self, Error> {
        Ok(Self { batches: data.epoch(0, 0).take(count).collect::<Result<_, _>>()? })
    }

    /// Samples drawn from a normal distribution, for calibration without data. Labels are 0.
    pub fn random(sample_len: usize, batch: usize, count: usize, seed: u64) -> Self {
        use rand_chacha::ChaCha8Rng;
        use rand_chacha::rand_core::{RngCore, SeedableRng};
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = move || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
        let mut normal = move || {
            let (u, v) = (uniform(), uniform());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        };
        let make =
            |number| Batch { x: (0..sample_len * batch).map(|_| normal()).collect(), labels: vec![0; batch], number };
        Self { batches: (0..count).map(make).collect() }
    }
}

impl Data for InMemory {
    fn batches(&self) -> usize {
        self.batches.len()
    }

    fn epoch(&self, _epoch: u64, first: usize) -> Batches<'_> {
        Box::new(self.batches.iter().skip(first).cloned().map(Ok))
    }
}

impl Data for Loader {
    fn batches(&self) -> usize {
        Loader::batches(self)
    }

    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_> {
        Box::new(self.epoch_from(epoch, first).map(|batch| {
            let batch = batch?;
            let (labels, number) = (batch.labels.clone(), batch.number);
            Ok(Batch { x: batch.into_x(), labels, number })
        }))
    }
}
