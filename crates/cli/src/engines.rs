//! The ways to compute a model's logits, behind one function, and what is measured with them.

use bitsmith_engine::data::Loader;
use bitsmith_engine::{Device, Engine, EngineOptions, Params};
use bitsmith_graph::{Model, QuantModel};
use bitsmith_runtime::{Kernels, Session, SessionOptions, StepProfile};

use crate::failure::Failure;
use crate::models::Opened;
use crate::progress::Progress;

/// Something that turns samples into logits.
pub trait Runner {
    /// What it is called in tables.
    fn name(&self) -> &str;
    /// Logits of `batch` samples, row-major.
    fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure>;
}

/// Training's own arithmetic: floats, rounded where the model says so.
pub struct Simulator {
    name: &'static str,
    engine: Engine,
    params: Params,
}

impl Simulator {
    /// Compiles a model for a device.
    pub fn new(name: &'static str, model: &Model, device: Device) -> Result<Self, Failure> {
        let engine = Engine::new(model, &EngineOptions { device, ..EngineOptions::default() })?;
        Ok(Self { name, engine, params: Params::from_model(model) })
    }
}

impl Runner for Simulator {
    fn name(&self) -> &str {
        self.name
    }

    fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure> {
        Ok(self.engine.forward(&self.params, x, batch)?)
    }
}

/// What the integer reference is called.
pub const REFERENCE: &str = "reference";

/// The integer runtime.
pub struct Integers {
    name: &'static str,
    session: Session,
}

impl Integers {
    /// Prepares a model for running.
    pub fn new(model: &QuantModel, kernels: Kernels) -> Result<Self, Failure> {
        let name = match kernels {
            Kernels::Reference => REFERENCE,
            Kernels::Fast => "runtime",
        };
        let options = SessionOptions { kernels, ..SessionOptions::default() };
        Ok(Self { name, session: Session::new(model, options)? })
    }

    /// Where the time of runs goes; see [`Session::profile`].
    pub fn profile(&self, x: &[f32], batch: usize, runs: usize) -> Result<Vec<StepProfile>, Failure> {
        Ok(self.session.profile(x, batch, runs)?)
    }
}

impl Runner for Integers {
    fn name(&self) -> &str {
        self.name
    }

    fn logits(&mut self, x: &[f32], batch: usize) -> Result<Vec<f32>, Failure> {
        Ok(self.session.run(x, batch)?)
    }
}

/// The natural way to run a model: floats simulated on a device, integers with the fast kernels, which are the CPU's.
pub fn of(model: &Opened, device: Device) -> Result<Box<dyn Runner>, Failure> {
    Ok(match model {
        Opened::Float(model) => Box::new(Simulator::new("float", model, device)?),
        Opened::Packed(_) if device != Device::Cpu => {
            let message = format!("`--device {device}` is for networks in float, and this model is packed");
            return Err(Failure::usage(message).remedy("leave it out: integers run on the CPU"));
        }
        Opened::Packed(model) => Box::new(Integers::new(model, Kernels::Fast)?),
    })
}

/// What evaluation measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evaluation {
    /// Samples.
    pub n: usize,
    /// Share of samples whose largest logit is the label's.
    pub accuracy: f64,
    /// Share of samples whose label is among the five largest logits.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

/// Runs a model over labelled batches.
pub fn evaluate(runner: &mut dyn Runner, loader: &Loader, progress: &Progress) -> Result<Evaluation, Failure> {
    let task = progress.task("evaluating", loader.batches() as u64);
    let (mut n, mut correct, mut top5, mut loss) = (0usize, 0usize, 0usize, 0.0f64);
    for (index, batch) in loader.epoch(0).enumerate() {
        let batch = batch?;
        let logits = runner.logits(&batch.x, batch.n())?;
        let classes = logits.len() / batch.n().max(1);
        for (row, &label) in logits.chunks_exact(classes.max(1)).zip(&batch.labels) {
            let label = label as usize;
            let Some(&own) = row.get(label) else {
                return Err(Failure::new(format!("label {label} is outside the {classes} outputs of the model"))
                    .remedy("use a model with as many outputs as the data has classes"));
            };
            let rank = rank(row, label);
            correct += usize::from(rank == 0);
            top5 += usize::from(rank < 5);
            let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&z| f64::from(z - peak).exp()).sum();
            loss += sum.ln() - f64::from(own - peak);
        }
        n += batch.n();
        task.set(index as u64 + 1, &format!("{:.2} %", 100.0 * correct as f64 / n.max(1) as f64));
    }
    if n == 0 {
        return Err(Failure::new("there is no sample to evaluate"));
    }
    let share = |count: usize| count as f64 / n as f64;
    Ok(Evaluation { n, accuracy: share(correct), top5: share(top5), loss: loss / n as f64 })
}

/// How many logits beat this one; of equal ones the first counts as larger. NaN beats nothing and loses to everything.
fn rank(row: &[f32], label: usize) -> usize {
    let own = row[label];
    if own.is_nan() {
        return row.len();
    }
    row.iter().enumerate().filter(|&(i, &z)| z > own || (z == own && i < label)).count()
}

/// Index of the largest logit; the first of equal ones.
pub fn top1(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] || row[best].is_nan() { i } else { best };
    (0..row.len()).fold(0, better)
}

/// Numbers in (-1, 1) that no kernel could find easy.
pub fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::{rank, top1};

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(top1(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(rank(&[1.0, 3.0, 3.0], 1), 0);
        assert_eq!(rank(&[1.0, 3.0, 3.0], 2), 1);
        assert_eq!(top1(&[f32::NAN, 0.0]), 1);
        assert_eq!(rank(&[f32::NAN, 0.0], 0), 2);
        assert_eq!(top1(&[]), 0);
    }
}
