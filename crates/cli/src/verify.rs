//! The proof: several engines compute the same inputs, and what must be equal is held equal.
//!
//! | pair | must be |
//! |---|---|
//! | integer reference, fast kernels | the same bits |
//! | simulator, integers | the same class for 99.9 % of the samples (as far as so many can tell: by one standard deviation, or one sample), accuracy within 0.05 points (or one sample) |
//! | … with float activations | besides, logits within 1e-3 of the largest logit |
//! | any other model given | as the simulator |
//!
//! A model that is made with random data is held to the first alone.
//!
//! Why simulator and integers may differ at all is in `docs/numerics.md`: a float sum is rounded in the kernel's order, so a
//! value half-way between two codes may fall to either side.

use bitsmith_engine::data::Loader;
use serde::Serialize;

use crate::engines::{REFERENCE, Runner, top1};
use crate::events;
use crate::failure::Failure;
use crate::progress::Progress;

/// What an engine is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each logit has the same bits as the first engine's.
    Bits,
    /// Same classes, up to rounding at the border of two codes.
    Classes,
    /// Same classes, and logits that differ only by float rounding.
    Rounding,
    /// Nothing: on noise classes are near ties, so that it says little whether they are the same. The difference is shown.
    Shown,
}

/// An engine, and what it is held to.
pub struct Way {
    /// What computes.
    pub engine: Box<dyn Runner>,
    /// How closely it must follow the first.
    pub promise: Promise,
    /// The first so many samples are computed: one that is slow need not do them all.
    pub samples: usize,
}

impl Way {
    /// An engine that computes all samples.
    pub fn all(engine: Box<dyn Runner>, promise: Promise) -> Self {
        Self { engine, promise, samples: usize::MAX }
    }
}

/// How an engine compared with the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The engine.
    pub name: String,
    /// Samples it computed.
    pub n: usize,
    /// Largest difference of a logit.
    pub max_abs_diff: f64,
    /// Share of samples with the same largest logit.
    pub top1_agreement: f64,
    /// Share of samples whose largest logit is the label's, where labels are known.
    pub accuracy: Option<f64>,
    /// Whether it kept its promise.
    pub agrees: bool,
}

/// The outcome of a comparison. The first engine is the one that the others are compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Samples.
    pub n: usize,
    /// Each engine, the first included.
    pub engines: Vec<Compared>,
}

/// Smallest share of samples on which the chosen classes must be equal.
pub const TOP1_AGREEMENT: f64 = 0.999;
/// Largest difference of two accuracies.
pub const ACCURACY_DIFFERENCE: f64 = 0.0005;
/// Largest difference of two logits relative to the largest logit, where nothing is rounded after the weights.
pub const RELATIVE_DIFFERENCE: f64 = 1e-3;

impl Verdict {
    /// Whether every engine kept its promise.
    pub fn agrees(&self) -> bool {
        self.engines.iter().all(|e| e.agrees)
    }

    /// The largest difference of a logit between the first engine and any other.
    pub fn max_abs_diff(&self) -> f64 {
        self.engines.iter().map(|e| e.max_abs_diff).fold(0.0, f64::max)
    }

    /// The smallest agreement of any engine with the first.
    pub fn top1_agreement(&self) -> f64 {
        self.engines.iter().map(|e| e.top1_agreement).fold(1.0, f64::min)
    }

    /// The same for the event log.
    pub fn event(&self) -> events::Verify {
        events::Verify {
            agree: self.agrees(),
            max_abs_diff: self.max_abs_diff(),
            top1_agreement: self.top1_agreement(),
            samples: self.n,
            reference_samples: self.engines.iter().find(|e| e.name == REFERENCE).map_or(0, |e| e.n),
            accuracies: self.engines.iter().filter_map(|e| Some((e.name.clone(), e.accuracy?))).collect(),
        }
    }
}

/// Computes all batches with every engine, of which the first does all samples; its promise does not matter.
pub fn compare(ways: &mut [Way], loader: &Loader, progress: &Progress) -> Result<Verdict, Failure> {
    let task = progress.task("verifying", loader.batches() as u64);
    let labelled = loader.dataset().is_labelled();
    let (mut n, mut largest) = (0usize, 0.0f64);
    let mut tallies = vec![Tally::default(); ways.len()];
    for (index, batch) in loader.epoch(0).enumerate() {
        let batch = batch?;
        let mut first: Vec<f32> = Vec::new();
        for (position, (way, tally)) in ways.iter_mut().zip(&mut tallies).enumerate() {
            let samples = if position == 0 { batch.n() } else { way.samples.saturating_sub(n).min(batch.n()) };
            if samples == 0 {
                continue;
            }
            let logits = way.engine.logits(&batch.x[..batch.x.len() / batch.n() * samples], samples)?;
            if position == 0 {
                first.clone_from(&logits);
                largest = logits.iter().map(|z| f64::from(z.abs())).fold(largest, f64::max);
            }
            let (a, b) = (first.len() / batch.n(), logits.len() / samples);
            if a != b {
                return Err(Failure::new(format!(
                    "`{}` has {b} outputs but the first model has {a}",
                    way.engine.name()
                ))
                .remedy("compare models of the same task"));
            }
            tally.add(&first[..logits.len()], &logits, &batch.labels[..samples]);
        }
        n += batch.n();
        task.set(index as u64 + 1, "");
    }
    // Accuracies are compared on the samples that both computed, which begin the list.
    let base = tallies.first().cloned().unwrap_or_default();
    let judged = ways.iter().zip(&tallies).map(|(way, tally)| {
        let n = tally.n;
        let first_correct = base.correct.iter().take(n).filter(|c| **c).count();
        let correct = tally.correct.iter().filter(|c| **c).count();
        let expected = (1.0 - TOP1_AGREEMENT) * n as f64;
        let classes_agree = n - tally.same <= (expected + expected.sqrt()).floor().max(1.0) as usize
            && correct.abs_diff(first_correct) <= (ACCURACY_DIFFERENCE * n as f64).floor().max(1.0) as usize;
        let agrees = match way.promise {
            Promise::Bits => tally.same_bits,
            Promise::Classes => classes_agree,
            Promise::Shown => true,
            Promise::Rounding => classes_agree && tally.largest <= RELATIVE_DIFFERENCE * largest.max(1.0),
        };
        let share = |count: usize| if n > 0 { count as f64 / n as f64 } else { 0.0 };
        Compared {
            name: way.engine.name().to_owned(),
            n,
            max_abs_diff: tally.largest,
            top1_agreement: share(tally.same),
            accuracy: labelled.then(|| share(correct)),
            agrees: agrees && n > 0,
        }
    });
    Ok(Verdict { n, engines: judged.collect() })
}

#[derive(Debug, Clone)]
struct Tally {
    n: usize,
    same: usize,
    /// Whether each sample's largest logit is the label's.
    correct: Vec<bool>,
    largest: f64,
    same_bits: bool,
}

impl Default for Tally {
    fn default() -> Self {
        Self { n: 0, same: 0, correct: vec![], largest: 0.0, same_bits: true }
    }
}

impl Tally {
    fn add(&mut self, first: &[f32], other: &[f32], labels: &[u32]) {
        let classes = (first.len() / labels.len().max(1)).max(1);
        self.n += labels.len();
        for ((a, b), &label) in first.chunks_exact(classes).zip(other.chunks_exact(classes)).zip(labels) {
            let chosen = top1(b);
            self.same += usize::from(top1(a) == chosen);
            self.correct.push(chosen == label as usize);
        }
        for (a, b) in first.iter().zip(other) {
            let difference = f64::from((a - b).abs());
            // NaN on one side only is as different as can be; `max` would lose it.
            self.largest = if a.is_nan() != b.is_nan() { f64::MAX } else { self.largest.max(difference) };
            self.same_bits &= a.to_bits() == b.to_bits();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    /// Answers with its first input, changed a little.
    struct Fake(&'static str, f32);

    impl Runner for Fake {
        fn name(&self) -> &str {
            self.0
        }
        fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure> {
            let rows = x.chunks_exact(x.len() / batch);
            Ok(rows.flat_map(|row| [row[0] * 8.0, 4.0 + self.1]).collect())
        }
    }

    fn verdict(change: f32, promise: Promise, samples: usize) -> Verdict {
        use bitsmith_engine::data::{Loader, LoaderOptions, Options, open};
        let set = open("random:1x8x8:2:64", &Options::default()).unwrap();
        let loader = Loader::new(std::sync::Arc::new(set), LoaderOptions::evaluation(10)).unwrap();
        let second = Way { engine: Box::new(Fake("b", change)), promise, samples };
        let mut ways = [Way::all(Box::new(Fake("a", 0.0)), Promise::Bits), second];
        compare(&mut ways, &loader, &Progress::Quiet).unwrap()
    }

    #[test]
    fn promises_are_kept_or_broken() {
        for (change, promise, agrees) in [
            (0.0, Promise::Bits, true),
            (1e-5, Promise::Bits, false),
            (1e-5, Promise::Rounding, true),
            (3.0, Promise::Rounding, false),
            (3.0, Promise::Classes, false),
            (f32::NAN, Promise::Classes, false),
            (3.0, Promise::Shown, true),
        ] {
            for samples in [25, usize::MAX] {
                let verdict = verdict(change, promise, samples);
                assert_eq!(verdict.agrees(), agrees, "{change} {promise:?}: {verdict:?}");
                assert_eq!((verdict.n, verdict.engines[1].n), (64, samples.min(64)));
            }
        }
        // Nothing computed proves nothing.
        assert!(!verdict(0.0, Promise::Bits, 0).agrees());
    }
}
