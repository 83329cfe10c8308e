//! The training loop: runs a [`Method`] over a model with the engine and a stream of batches.
//!
//! Weights are made outside the tape: before each pass the quantizers write them into the engine's parameters, after it
//! their gradients go back into the quantizers. Everything that is learned is a [`Param`]: of a quantizer, of a
//! normalisation or bias, or the step of an activation site. So one optimiser call updates all, and one list is the
//! checkpoint.

pub mod activations;
pub mod checkpoint;
mod constrained;
pub mod data;
pub mod events;
pub mod options;
pub mod sharpness;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bitsmith_engine::{Device, Distill, Loss, Schedule, StepOptions};
use bitsmith_graph::Model;

use crate::blocks::cost::Costs;
use crate::error::{Error, Kind};
use crate::method::{Constrained, Method, Multipliers, Passes, Phase, Progress, Slot};
use crate::options::Options;
use crate::quantizer::Quantizer;

use checkpoint::{Position, Store};
use data::Data;
use events::{Bits, EpochEvent, Event, Sink, StepEvent};
use options::TrainOptions;
use sharpness::Sharpness;
use state::State;
pub(crate) use steps::steps_json;

/// What times steps: it is given a function that does one.
pub type Timed<'a> = dyn FnMut(&mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> + 'a;

/// What a run needs from outside.
pub struct Context<'a> {
    /// Shuffled, augmented training batches.
    pub train: &'a dyn Data,
    /// Held-out batches for evaluation, if there are any.
    pub test: Option<&'a dyn Data>,
    /// Where events go.
    pub sink: &'a mut dyn Sink,
    /// Where checkpoints are kept, if they are.
    pub store: Option<&'a Store>,
    /// Whether to go on from the last checkpoint. Without one the run starts afresh.
    pub resume: bool,
    /// Set to stop after the present step: a checkpoint is written and the run ends with [`Kind::Cancelled`].
    pub cancel: &'a AtomicBool,
    /// Where the network runs; quantizers and optimiser stay on the CPU. A run may go on elsewhere than it began.
    pub device: Device,
    /// What layers cost at each width, for methods whose `weighting` is "cost".
    pub costs: Option<&'a Costs>,
}

/// What a run ends with.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The trained model: weights on their grids, every site with parameters.
    pub model: Model,
    /// Accuracy on the held-out batches after hardening, 0 to 1; `None` without such batches.
    pub accuracy: Option<f64>,
    /// Loss on them.
    pub loss: Option<f64>,
    /// Width of every layer.
    pub bits: Vec<Bits>,
}

/// Steps between two events.
const STEPS_PER_EVENT: u64 = 20;

/// Trains `model` by method `M`. Activation sites must be calibrated already ([`crate::passes::calibrate`]).
pub fn train<M: Method>(
    model: Model,
    method_options: M::Options,
    options: &TrainOptions,
    ctx: &mut Context<'_>,
) -> Result<Outcome, Error> {
    options.check()?;
    let recipe = checkpoint::recipe_of::<M>(&method_options, options);
    let mut method = M::new(method_options)?;
    let phases = method.phases(options.epochs);
    let mut state = State::new(model, &mut method, options, (ctx.device, ctx.costs))?;
    state.search_activations(method.gating(), options, ctx.train)?;
    let mut position = Position::default();
    match ctx.store.filter(|_| ctx.resume).map(|store| store.last()).transpose()?.flatten() {
        Some(saved) => {
            position = saved.restore(&recipe, &mut method, &mut state)?;
            ctx.sink.event(&Event::Resumed { epoch: position.epoch, batch: position.batch });
        }
        None => {
            method.begin(&mut state.slots)?;
            ctx.sink.event(&Event::Started {
                method: M::NAME,
                epochs: phases.iter().map(|p| p.epochs).sum(),
                phases: phases.iter().map(|p| (p.name, p.epochs)).collect(),
                batches: ctx.train.batches(),
                bits: state.bits(),
            });
        }
    }
    let mut run = Run { method, options, phases, state, position, recipe };
    if run.phases.len() == 1 && run.position == Position::default() {
        // There is no search to wait for.
        run.fix_activations(ctx)?;
    }
    run.train(ctx)?;
    run.finish(ctx)
}

/// A run in progress.
struct Run<'o, M: Method> {
    method: M,
    options: &'o TrainOptions,
    phases: Vec<Phase>,
    state: State<M::Weight>,
    position: Position,
    recipe: serde_json::Value,
}

impl<M: Method> Run<'_, M> {
    fn train(&mut self, ctx: &mut Context<'_>) -> Result<(), Error> {
        while self.position.phase < self.phases.len() {
            let phase = self.phases[self.position.phase];
            while self.position.phase_epoch < phase.epochs {
                self.epoch(ctx, phase)?;
            }
            for text in self.end_phase(ctx.train, self.position.phase)? {
                ctx.sink.event(&Event::Note { text });
            }
            if self.position.phase == 0 {
                self.fix_activations(ctx)?;
            }
            self.position.phase += 1;
            self.position.phase_epoch = 0;
            self.checkpoint(ctx)?;
        }
        Ok(())
    }

    /// What the method does at the end of a phase. Returns lines for the log.
    fn end_phase(&mut self, train: &dyn data::Data, phase: usize) -> Result<Vec<String>, Error> {
        let mut slots = std::mem::take(&mut self.state.slots);
        let method = &mut self.method;
        let ended = self.state.with_trial(train, self.options, |trial| method.end_phase(&mut slots, phase, trial));
        self.state.slots = slots;
        ended
    }

    fn fix_activations(&mut self, ctx: &mut Context<'_>) -> Result<(), Error> {
        for text in self.state.fix_activations(ctx.train, self.options)? {
            ctx.sink.event(&Event::Note { text });
        }
        Ok(())
    }

    /// One epoch, or what is left of it.
    fn epoch(&mut self, ctx: &mut Context<'_>, phase: Phase) -> Result<(), Error> {
        let batches = ctx.train.batches() as u64;
        let steps = batches * phase.epochs as u64;
        let base = (self.options.learning_rate * phase.rate) as f32;
        let warmup = self.options.warmup_steps.min(steps / 5);
        let schedule = Schedule { curve: self.options.curve(), ..Schedule::cosine(base, warmup, steps) };
        let started = Instant::now();
        let (mut samples, mut steps_done) = (0u64, 0u64);
        let mut rate = base;
        for batch in ctx.train.epoch(self.position.epoch as u64, self.position.batch) {
            let batch = batch?;
            let step = self.position.phase_epoch as u64 * batches + batch.number as u64;
            let at = self.progress(step, steps);
            self.begin_step(&at);
            rate = schedule.at(step);
            let (loss, correct) = self.step(&batch, step, rate)?;
            if !loss.is_finite() {
                return Err(self.diverged(ctx, loss, step));
            }
            let n = batch.labels.len() as u64;
            samples += n;
            steps_done += 1;
            self.position.batch = batch.number + 1;
            self.position.samples += n;
            self.position.loss_sum += loss * n as f64;
            self.position.correct += correct as u64;
            if steps_done.is_multiple_of(STEPS_PER_EVENT) {
                let seconds = started.elapsed().as_secs_f64();
                let all: u64 = self.phases.iter().map(|p| p.epochs as u64 * batches).sum();
                let done = self.position.epoch as u64 * batches + self.position.batch as u64;
                ctx.sink.event(&Event::Step(StepEvent {
                    phase: phase.name,
                    epoch: self.position.epoch,
                    step: done,
                    steps: all,
                    loss: self.position.loss_sum / self.position.samples.max(1) as f64,
                    accuracy: self.position.correct as f64 / self.position.samples.max(1) as f64,
                    images_per_s: samples as f64 / seconds.max(1e-9),
                    eta_s: (all.saturating_sub(done)) as f64 * seconds / steps_done as f64,
                }));
            }
            if ctx.cancel.load(Ordering::Relaxed) {
                self.checkpoint(ctx)?;
                let at =
                    ctx.store.map_or(String::new(), |s| format!("; go on with --resume from {}", s.folder().display()));
                return Err(Error::new(Kind::Cancelled, format!("stopped in epoch {}{at}", self.position.epoch + 1)));
            }
            let every = self.options.checkpoint_steps;
            if every > 0 && self.position.batch.is_multiple_of(every) {
                self.checkpoint(ctx)?;
            }
        }
        self.end_epoch(ctx, phase, rate, samples as f64 / started.elapsed().as_secs_f64().max(1e-9))
    }

    fn end_epoch(&mut self, ctx: &mut Context<'_>, phase: Phase, rate: f32, images_per_s: f64) -> Result<(), Error> {
        let batches = ctx.train.batches() as u64;
        let at = self.progress((self.position.phase_epoch as u64 + 1) * batches, batches * phase.epochs as u64);
        let notes = self.method.end_epoch(&mut self.state.slots, &at)?;
        let n = self.position.samples.max(1) as f64;
        let (loss, accuracy) = (self.position.loss_sum / n, self.position.correct as f64 / n);
        let is_last = self.position.phase + 1 == self.phases.len() && self.position.phase_epoch + 1 == phase.epochs;
        let due =
            self.options.evaluate_every > 0 && (self.position.epoch + 1).is_multiple_of(self.options.evaluate_every);
        let (mut soft, mut hard) = (None, None);
        if let Some(test) = ctx.test.filter(|_| due && !is_last) {
            soft = Some(self.state.evaluate(test)?);
            self.set_hard(true);
            let evaluated = self.state.evaluate(test);
            self.set_hard(false);
            hard = Some(evaluated?);
        }
        ctx.sink.event(&Event::Epoch(EpochEvent {
            phase: phase.name,
            epoch: self.position.epoch,
            learning_rate: f64::from(rate),
            loss,
            accuracy,
            test_accuracy: soft.map(|e| e.accuracy),
            test_loss: soft.map(|e| e.loss),
            hard_accuracy: hard.map(|e| e.accuracy),
            mean_bits: self.state.mean_bits(),
            bits: self.state.bits(),
            images_per_s,
        }));
        for text in notes {
            ctx.sink.event(&Event::Note { text });
        }
        self.position.phase_epoch += 1;
        self.position.epoch += 1;
        (self.position.batch, self.position.samples, self.position.loss_sum, self.position.correct) = (0, 0, 0.0, 0);
        self.checkpoint(ctx)?;
        if let (Some(store), Some(hard)) = (ctx.store, hard)
            && hard.accuracy > self.position.best
        {
            self.position.best = hard.accuracy;
            store.keep_best()?;
        }
        Ok(())
    }

    /// Before each step: temperatures, rates, draws.
    fn begin_step(&mut self, at: &Progress) {
        self.method.begin_step(&mut self.state.slots, at);
        if let Some(activations) = &mut self.state.activations {
            activations.begin_step(at);
        }
    }

    /// Switches between what trains and what would be deployed.
    fn set_hard(&mut self, is_hard: bool) {
        self.method.set_hard(&mut self.state.slots, is_hard);
        if let Some(activations) = &mut self.state.activations {
            activations.is_hard = is_hard;
        }
    }

    /// One step, by its number in the phase: passes, penalty, update. Returns loss and number of correct answers.
    fn step(&mut self, batch: &data::Batch, step: u64, rate: f32) -> Result<(f64, usize), Error> {
        let distill = self.imitate(batch)?;
        let loss = Loss { label_smoothing: self.options.label_smoothing, distill, ..Loss::default() };
        let mut slots = std::mem::take(&mut self.state.slots);
        let sharpness = Sharpness { options: &self.options.sharpness, step };
        let mut passes = StepPasses { state: &mut self.state, batch, loss, sharpness, correct: 0 };
        let value = self.method.step(&mut slots, &mut passes);
        let correct = passes.correct;
        self.state.slots = slots;
        let mut value = value? + self.method.penalty(&mut self.state.slots);
        let bins = self.options.bins_of::<M>();
        if bins > 0.0 {
            value += self.state.slots.iter_mut().map(|slot| slot.quantizer.bin_penalty(bins)).sum::<f64>();
        }
        if let Some(activations) = &mut self.state.activations {
            value += activations.penalty(&self.state.slots);
        }
        if value.is_finite() {
            self.state.update(self.options, rate)?;
            self.method.after_update(&mut self.state.slots);
        }
        Ok((value, correct))
    }

    fn imitate(&self, batch: &data::Batch) -> Result<Option<Distill>, Error> {
        let weight = self.options.distill;
        if weight <= 0.0 {
            return Ok(None);
        }
        let Some((teacher, params)) = &self.state.teacher else { return Ok(None) };
        let teacher_logits = teacher.forward(params, &batch.x, batch.labels.len())?;
        Ok(Some(Distill { teacher_logits, temperature: self.options.distill_temperature, weight }))
    }

    fn progress(&self, step: u64, steps: u64) -> Progress {
        Progress {
            phase: self.position.phase,
            epoch: self.position.epoch,
            fraction: step as f64 / steps.max(1) as f64,
            step,
            steps,
        }
    }

    fn diverged(&self, ctx: &Context<'_>, loss: f64, step: u64) -> Error {
        let kept = match ctx.store {
            Some(store) if store.has_last() => format!("; the last good checkpoint is {}", store.last_path().display()),
            _ => String::new(),
        };
        Error::new(
            Kind::Diverged,
            format!(
                "the loss is {loss} in epoch {}, step {step}: try a smaller learning_rate than {}{kept}",
                self.position.epoch + 1,
                self.options.learning_rate
            ),
        )
    }

    fn checkpoint(&mut self, ctx: &Context<'_>) -> Result<(), Error> {
        let Some(store) = ctx.store else { return Ok(()) };
        store.save(&self.recipe, &self.method, &mut self.state, &self.position)
    }

    /// Hardens, settles the statistics of normalisations, evaluates, and writes everything into the model.
    fn finish(mut self, ctx: &mut Context<'_>) -> Result<Outcome, Error> {
        for text in self.method.finish(&mut self.state.slots)? {
            ctx.sink.event(&Event::Note { text });
        }
        self.state.recalibrate(ctx.train, self.options.recalibrate_batches)?;
        let evaluated = match ctx.test {
            Some(test) => Some(self.state.evaluate(test)?),
            None => None,
        };
        let bits = self.state.bits();
        ctx.sink.event(&Event::Finished {
            accuracy: evaluated.map(|e| e.accuracy),
            loss: evaluated.map(|e| e.loss),
            mean_bits: self.state.mean_bits(),
            bits: bits.clone(),
        });
        let model = self.state.into_model()?;
        Ok(Outcome { model, accuracy: evaluated.map(|e| e.accuracy), loss: evaluated.map(|e| e.loss), bits })
    }
}

/// The passes of one step.
struct StepPasses<'a, Q> {
    state: &'a mut State<Q>,
    batch: &'a data::Batch,
    loss: Loss,
    sharpness: Sharpness<'a>,
    /// Correct answers in the last full pass.
    correct: usize,
}

impl<Q: Quantizer> Passes<Q> for StepPasses<'_, Q> {
    fn full(&mut self, slots: &mut [Slot<Q>]) -> Result<f64, Error> {
        let norm = StepOptions { update_statistics: true, train_norm: true };
        let (loss, correct) = match self.sharpness.options.acts(self.sharpness.step) {
            true => self.state.sharp_pass(slots, self.batch, &self.loss, self.sharpness)?,
            false => self.state.pass(slots, self.batch, &self.loss, norm)?,
        };
        self.correct = correct;
        Ok(loss)
    }

    fn loss(&mut self, slots: &mut [Slot<Q>]) -> Result<f64, Error> {
        self.state.publish_with(slots);
        let (labels, n) = (&self.batch.labels, self.batch.labels.len().max(1));
        let logits = self.state.engine.forward_live(&self.state.params, &self.batch.x, n)?;
        let losses = self.loss.per_sample(&logits, (logits.len() / n).max(1), labels);
        Ok(losses.iter().sum::<f64>() / n as f64)
    }

    fn constrained(&mut self, slots: &mut [Slot<Q>], multipliers: &Multipliers) -> Result<Constrained, Error> {
        let sharpness = Some(self.sharpness).filter(|s| s.options.acts(s.step));
        let (found, correct) = self.state.constrained(slots, (self.batch, &self.loss), multipliers, sharpness)?;
        self.correct = correct;
        Ok(found)
    }
}

/// Reads method options from a recipe's JSON and trains.
pub(crate) fn train_json<M: Method>(
    model: Model,
    method_options: &serde_json::Value,
    options: &TrainOptions,
    ctx: &mut Context<'_>,
) -> Result<Outcome, Error> {
    train::<M>(model, M::Options::from_json(method_options)?, options, ctx)
}
