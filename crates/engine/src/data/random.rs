//! `random`: seeded noise of a given shape with random labels, for benchmarks and for calibration without data.
//!
//! Nothing is kept in memory: sample i of a seed is the same bytes whenever it is asked for.

use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Parts, Samples};
use super::error::Error;
use super::open::{Options, Split};
use super::rng::{below, stream};

/// What `random` generates. Training and test split are different samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Random {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Number of samples.
    pub count: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for Random {
    /// 1,024 images of CIFAR's shape in ten classes.
    fn default() -> Self {
        Random { shape: [3, 32, 32], classes: 10, count: 1024, seed: 0 }
    }
}

/// More elements than this in one sample are a mistake.
const MAX_SAMPLE: usize = 1 << 28;

impl Random {
    /// Reads `random`, `random:CxHxW`, `random:CxHxW:CLASSES` or `random:CxHxW:CLASSES:COUNT`; what is left out is
    /// taken from `self`.
    pub(super) fn parse(mut self, word: &str) -> Result<Random, Error> {
        let bad = || Error::options(word, "not of the form random:CxHxW:CLASSES:COUNT, as in random:3x32x32:10:1000");
        let mut parts = word.split(':').skip(1);
        if let Some(shape) = parts.next() {
            let dims: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
            self.shape = dims.try_into().map_err(|_| bad())?;
        }
        for target in [&mut self.classes, &mut self.count] {
            if let Some(text) = parts.next() {
                *target = text.parse().map_err(|_| bad())?;
            }
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(self)
    }
}

/// The data set that `random` describes.
pub(super) fn dataset(random: &Random, options: &Options) -> Result<Dataset, Error> {
    let [channels, height, width] = random.shape;
    let len = channels.checked_mul(height).and_then(|n| n.checked_mul(width));
    if !len.is_some_and(|n| (1..=MAX_SAMPLE).contains(&n)) {
        return Err(Error::options("random", format!("a sample of {channels} x {height} x {width} elements")));
    }
    let classes = options.classes.unwrap_or(random.classes);
    if classes == 0 || classes > super::open::MAX_CLASSES {
        return Err(Error::options("random", format!("{classes} classes; give 1 to {}", super::open::MAX_CLASSES)));
    }
    let count = options.limit.map_or(random.count, |n| n.min(random.count));
    if count == 0 || count > 1 << 28 {
        return Err(Error::options("random", format!("{count} samples; give 1 to {}", 1 << 28)));
    }
    let mut labels = stream(random.seed, u64::from(options.split == Split::Test), b"labels__", 0);
    // Test samples are numbered from the other end, so that they are others than the training samples.
    let first = if options.split == Split::Test { u32::MAX - (count as u32 - 1) } else { 0 };
    Dataset::new(Parts {
        name: "random".into(),
        label: "random".into(),
        samples: Samples::Noise { shape: [height, width, channels], seed: random.seed },
        picks: (0..count as u32).map(|i| first + i).collect(),
        labels: (0..count).map(|_| below(&mut labels, classes as u32)).collect(),
        classes: (0..classes).map(|c| c.to_string()).collect(),
        labelled: true,
        split: options.split,
        transform: options.transform.clone().unwrap_or_default(),
        on_broken: options.on_broken,
        missing: Vec::new(),
    })
}

/// The bytes of sample `pick`.
pub(super) fn fill(seed: u64, pick: u32, len: usize, bytes: &mut Vec<u8>) {
    bytes.resize(len, 0);
    stream(seed, 0, b"noise___", u64::from(pick)).fill_bytes(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, open};
    use super::*;

    #[test]
    fn noise_is_seeded_and_splits_differ() {
        let make = |split, seed| {
            let random = Random { seed, count: 50, ..Random::default() };
            open("random:2x5x4:7", &Options { split, random, ..Options::default() }).unwrap()
        };
        let (a, b) = (make(Split::Train, 1), make(Split::Train, 1));
        assert_eq!((a.shape(), a.len(), a.classes().len()), ([2, 5, 4], 50, 7));
        assert_eq!(a.labels(), b.labels());
        let image = |set: &Dataset| set.images(&[3], Layout::Nchw).unwrap();
        assert_eq!(image(&a), image(&b));
        assert_ne!(image(&a), image(&make(Split::Test, 1)));
        assert_ne!(image(&a), image(&make(Split::Train, 2)));
        assert!(image(&a).iter().all(|v| (0.0..=1.0).contains(v)));
    }

    #[test]
    fn senseless_words_are_refused() {
        for word in [
            "random:",
            "random:3x3",
            "random:3x3x3:a",
            "random:3x3x3:2:2:2",
            "random:0x3x3",
            "random:3x3x3:0",
            "random:3x3x3:2:0",
            "random:99999999999x99999999999x9",
        ] {
            assert!(open(word, &Options::default()).is_err(), "{word}");
        }
    }
}
