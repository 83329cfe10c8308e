//! Training steps by themselves, for benchmarks: no data loading, no evaluation, no checkpoints.

use bitsmith_engine::Device;
use bitsmith_graph::Model;

use super::checkpoint::Position;
use super::data::{Batch, InMemory};
use super::options::TrainOptions;
use super::state::State;
use super::{Run, Timed};
use crate::error::Error;
use crate::method::Method;
use crate::options::Options;

/// Prepares a run on `device` as training would, brings it to the middle of phase number `phase`, and hands a function that does one step
/// on `batch` to `timed`.
pub(crate) fn steps_json<M: Method>(
    model: Model,
    method_options: &serde_json::Value,
    options: &TrainOptions,
    device: Device,
    batch: &Batch,
    phase: usize,
    timed: &mut Timed<'_>,
) -> Result<(), Error> {
    options.check()?;
    let mut method = M::new(M::Options::from_json(method_options)?)?;
    let phases = method.phases(options.epochs);
    let Some(&last) = phases.get(phase) else {
        let names: Vec<&str> = phases.iter().map(|p| p.name).collect();
        let known = names.join(", ");
        return Err(Error::option(format!("`{}` has {} phases ({known}), counted from 0", M::NAME, phases.len())));
    };
    let mut state = State::new(model, &mut method, options, (device, None))?;
    let data = InMemory { batches: vec![batch.clone()] };
    state.search_activations(method.gating(), options, &data)?;
    method.begin(&mut state.slots)?;
    let mut run =
        Run { method, options, phases, state, position: Position::default(), recipe: serde_json::Value::Null };
    for ended in 0..phase {
        run.end_phase(&data, ended)?;
    }
    if phase > 0 || run.phases.len() == 1 {
        run.state.fix_activations(&data, options)?;
    }
    run.position.phase = phase;
    // Long enough that temperatures and rates stand where the middle of a real run has them.
    let at = run.progress(50_000, 100_000);
    let rate = (options.learning_rate * last.rate) as f32;
    timed(&mut || {
        run.begin_step(&at);
        let (loss, _) = run.step(batch, at.step, rate)?;
        if loss.is_finite() { Ok(()) } else { Err(Error::option(format!("the loss of a step is {loss}"))) }
    })
}
