//! Running a model: integers where both sides of a product are codes, floats everywhere else.
//!
//! ```text
//! codes ─▶ Σ (q_x − z_x)·(q_w − z_w)  exact integers
//!       ─▶ · s_x·s_w[c]  + bias  · a + b  + residual  activation      f32, in the order of the graph, each rounded
//!       ─▶ codes of the next site
//! ```
//!
//! Means over windows and axes of codes are exact integer sums, scaled once. Operators that move or compare elements act on
//! codes. Everything else reads decoded values. [`Session::arithmetic`] says which node does what, and why.
//!
//! Results do not depend on the number of threads or on how samples are grouped.

mod chain;
mod exec;
mod geometry;
mod grid;
mod moves;
mod plan;
mod pool;
mod product;
mod profile;
mod report;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod tests;
mod weight_codes;
mod windows;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bitsmith_graph::{Data, Dim, Graph, Model, QuantModel, Shape, Tensor};
use bitsmith_kernels::threads::team;

use crate::error::{Error, Kind};
use exec::Worker;
use plan::{Buffer, Network, Plan};
use profile::Measured;

pub use profile::StepProfile;
pub use report::{Arithmetic, NodeReport};

/// Which loops compute products of integers. Both give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// By definition, one term after the other: the specification, slow.
    Reference,
    /// The fastest that this machine has.
    #[default]
    Fast,
}

/// How a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionOptions {
    /// Which loops compute products of integers.
    pub kernels: Kernels,
    /// Threads; 0 means as many as rayon's pool has.
    pub threads: usize,
}

/// A model that is ready to run, from any number of threads.
pub struct Session {
    /// Its [outline](Graph::outline).
    graph: Graph,
    plan: Plan,
    /// One pool over all threads for a few samples, one per thread for many.
    wide: rayon::ThreadPool,
    narrow: Vec<rayon::ThreadPool>,
    weight_bytes: usize,
    /// Buffers of earlier runs.
    workers: Mutex<Vec<Worker>>,
    /// Shapes of all values by number of samples, the latest last.
    known_shapes: Mutex<VecDeque<(usize, Arc<Vec<Shape>>)>>,
}

/// Numbers of samples whose shapes are kept: a batch, its groups, the last of them, and one sample.
const KNOWN_SHAPES: usize = 4;

/// Bytes that the values of one sample may take together.
const MEMORY_LIMIT: u64 = 8 << 30;

/// How many times as many bytes of weights as of values are so many that they should be read once.
const MUCH_MORE: usize = 8;

/// Bytes of the largest value of a group of samples: values should stay in the second-level cache.
const GROUP_BYTES: usize = 1 << 20;

impl Session {
    /// Prepares a quantized model: weights are packed for this processor and every accumulator is proved not to overflow. Nothing of the
    /// model is kept, so that it may be dropped to save memory.
    pub fn new(model: &QuantModel, options: SessionOptions) -> Result<Self, Error> {
        Self::build(model.graph(), Network { graph: model.graph(), sites: model.sites() }, options)
    }

    /// Prepares a float model. Sites are not simulated: everything is float.
    pub fn from_model(model: &Model, options: SessionOptions) -> Result<Self, Error> {
        Self::build(&model.graph, Network { graph: &model.graph, sites: &BTreeMap::new() }, options)
    }

    fn build(graph: &Graph, network: Network<'_>, options: SessionOptions) -> Result<Self, Error> {
        let plan = plan::plan(network, options.kernels)?;
        let shapes = graph.shapes(1)?;
        let elements = |form: &plan::Form| shapes[form.value.index()].iter().product::<usize>() as u64;
        let bytes = plan.slots.iter().map(|form| elements(form).saturating_mul(8)).fold(0, u64::saturating_add);
        if bytes > MEMORY_LIMIT {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "one sample's values take {bytes} bytes together, more than the {MEMORY_LIMIT} that are allowed"
                ),
            ));
        }
        let threads = if options.threads == 0 { rayon::current_num_threads() } else { options.threads };
        let pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(|e| Error::new(Kind::Io, format!("threads could not be started: {e}")))
        };
        let narrow = if threads > 1 { (0..threads).map(|_| pool(1)).collect::<Result<_, _>>()? } else { vec![] };
        Ok(Self {
            // Constants live in the plan.
            graph: graph.outline(),
            weight_bytes: plan.weight_bytes(),
            plan,
            wide: pool(threads)?,
            narrow,
            workers: Mutex::default(),
            known_shapes: Mutex::default(),
        })
    }

    /// Which arithmetic every node runs with, and why, in the order of the graph.
    pub fn arithmetic(&self) -> &[NodeReport] {
        &self.plan.report
    }

    /// The network that is run, without the elements of its constants.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs a model of one input and one output on `batch` samples, canonical layout (NCHW).
    pub fn run(&self, x: &[f32], batch: usize) -> Result<Vec<f32>, Error> {
        let ([input], &[output]) = (self.graph.inputs(), self.graph.outputs()) else {
            let (inputs, outputs) = (self.graph.inputs().len(), self.graph.outputs().len());
            return Err(Error::new(
                Kind::Input,
                format!("the model has {inputs} inputs and {outputs} outputs: feed it by names"),
            ));
        };
        let name = &self.graph.value(input.value).name;
        let shape = input.shape(batch);
        if bitsmith_graph::tensor::element_count(&shape) != Some(x.len()) {
            return Err(Error::new(
                Kind::Input,
                format!("{} values given but {batch} samples of {shape:?} are expected", x.len()),
            )
            .at(name));
        }
        check_numbers(x).map_err(|e| e.at(name))?;
        match self.run_checked(&[x], batch)?.pop() {
            Some((_, Data::F32(values))) => Ok(values),
            _ => Err(Error::new(Kind::Input, "the output is no float tensor: read it by name")
                .at(&self.graph.value(output).name)),
        }
    }

    /// Where the time of [`run`](Self::run) goes: the mean over `runs` runs, at least one, in the order of execution. Other
    /// threads should not use the session meanwhile: their runs would be counted, too.
    pub fn profile(&self, x: &[f32], batch: usize, runs: usize) -> Result<Vec<StepProfile>, Error> {
        let runs = runs.max(1);
        // Buffers are there by then.
        self.run(x, batch)?;
        // Enough workers for all threads, since those that are made on the way would not know.
        {
            let mut workers = self.workers();
            let count = workers.len().max(self.narrow.len()).max(1);
            workers.resize_with(count, Worker::default);
            workers.iter_mut().for_each(|worker| worker.profile = Some(vec![]));
        }
        let ran = (0..runs).try_for_each(|_| self.run(x, batch).map(|_| ()));
        let mut sums = vec![Measured::default(); self.plan.steps.len()];
        for worker in self.workers().iter_mut() {
            let measured = worker.profile.take().unwrap_or_default();
            sums.iter_mut().zip(measured).for_each(|(sum, part)| sum.add(part));
        }
        // Workers measure no more, however it went.
        ran?;
        let is_split = self.plan.splits && self.group(batch) < batch;
        let side_by_side = if is_split { self.narrow.len().max(1) } else { 1 };
        let step = |(step, sum): (&plan::Step, Measured)| StepProfile {
            name: step.name.clone(),
            kind: step.action.name(),
            size: [sum.size[0], sum.size[1], sum.size[2] / runs],
            time: sum.time / (runs * side_by_side) as u32,
            macs: sum.macs / runs as u64,
            bytes: sum.bytes / runs as u64,
        };
        Ok(self.plan.steps.iter().zip(sums).map(step).collect())
    }

    /// Runs the model on tensors by input name and returns tensors by output name.
    pub fn run_named(&self, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut batch = None;
        let mut values = Vec::new();
        for input in self.graph.inputs() {
            let name = self.graph.value(input.value).name.as_str();
            let wanted =
                || input.dims.iter().map(|d| if let Dim::Fixed(n) = d { n.to_string() } else { "batch".to_owned() });
            let wanted = || format!("[{}]", wanted().collect::<Vec<_>>().join(", "));
            let tensor = inputs.get(name).ok_or_else(|| {
                Error::new(
                    Kind::Input,
                    format!("this input {} is missing; given are {:?}", wanted(), inputs.keys().collect::<Vec<_>>()),
                )
                .at(name)
            })?;
            let misfit = || {
                Error::new(Kind::Input, format!("given is {:?} but {} is expected", tensor.shape(), wanted())).at(name)
            };
            if tensor.shape().len() != input.dims.len() {
                return Err(misfit());
            }
            for (dim, &size) in input.dims.iter().zip(tensor.shape()) {
                match dim {
                    Dim::Fixed(n) if *n != size => return Err(misfit()),
                    Dim::Fixed(_) => {}
                    Dim::Batch if *batch.get_or_insert(size) != size => {
                        let other = batch.unwrap_or(0);
                        return Err(Error::new(
                            Kind::Input,
                            format!("{size} samples given but {other} in another input"),
                        )
                        .at(name));
                    }
                    Dim::Batch => {}
                }
            }
            let floats = tensor.as_f32().ok_or_else(|| {
                Error::new(Kind::Input, format!("given is {} but F32 is expected", tensor.data().dtype())).at(name)
            })?;
            check_numbers(floats).map_err(|e| e.at(name))?;
            values.push(floats);
        }
        if let Some(extra) =
            inputs.keys().find(|k| !self.graph.inputs().iter().any(|i| self.graph.value(i.value).name == **k))
        {
            let known: Vec<_> = self.graph.inputs().iter().map(|i| &self.graph.value(i.value).name).collect();
            return Err(
                Error::new(Kind::Input, format!("the model has no such input; its inputs are {known:?}")).at(extra)
            );
        }
        let results = self.run_checked(&values, batch.unwrap_or(1))?;
        let mut out = BTreeMap::new();
        for (&id, (shape, data)) in self.graph.outputs().iter().zip(results) {
            out.insert(self.graph.value(id).name.clone(), Tensor::new(shape, data)?);
        }
        Ok(out)
    }

    /// Shapes and elements of all outputs; inputs have been checked.
    fn run_checked(&self, inputs: &[&[f32]], batch: usize) -> Result<Vec<(Shape, Data)>, Error> {
        if batch == 0 {
            return Err(Error::new(Kind::Input, "no samples given: at least one is expected"));
        }
        let whole = self.shapes(batch)?;
        let group = if self.plan.splits { self.group(batch) } else { batch };
        if group == batch {
            let mut out = Vec::new();
            let run = || {
                self.with_worker(|worker| {
                    exec::run(&self.plan, &self.graph, &whole, inputs, worker, |_, buffer| out.push(data_of(buffer)))
                })
            };
            self.wide.install(|| team(run))?;
            let shapes = self.graph.outputs().iter().map(|id| whole[id.index()].clone());
            return Ok(shapes.zip(out).collect());
        }

        // Groups of samples, each on one thread; every output is a list of samples, so results are put side by side.
        let ranges: Vec<_> = (0..batch).step_by(group).map(|start| start..batch.min(start + group)).collect();
        let shapes = [self.shapes(group)?, self.shapes(ranges.last().map_or(group, |r| r.len()))?];
        let results: Vec<Mutex<Vec<Data>>> = ranges.iter().map(|_| Mutex::default()).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Error> {
            self.with_worker(|worker| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(range) = ranges.get(index) else { return Ok(()) };
                    let part: Vec<&[f32]> = inputs
                        .iter()
                        .map(|x| &x[range.start * (x.len() / batch)..range.end * (x.len() / batch)])
                        .collect();
                    let shapes = &shapes[usize::from(range.len() != group)];
                    let mut out = Vec::new();
                    exec::run(&self.plan, &self.graph, shapes, &part, worker, |_, buffer| out.push(data_of(buffer)))?;
                    *results[index].lock().unwrap_or_else(|e| e.into_inner()) = out;
                }
            })
        };
        if self.narrow.is_empty() {
            self.wide.install(work)?;
        } else {
            let threads: Vec<Result<(), Error>> = std::thread::scope(|scope| {
                let handles: Vec<_> = self.narrow.iter().map(|pool| scope.spawn(|| pool.install(work))).collect();
                let lost = |_| Err(Error::new(Kind::Unsupported, "a thread panicked"));
                handles.into_iter().map(|h| h.join().unwrap_or_else(lost)).collect()
            });
            threads.into_iter().collect::<Result<(), _>>()?;
        }
        let mut out: Vec<Option<Data>> = vec![None; self.graph.outputs().len()];
        for result in results {
            for (slot, part) in out.iter_mut().zip(result.into_inner().unwrap_or_else(|e| e.into_inner())) {
                match (slot, part) {
                    (Some(Data::F32(all)), Data::F32(part)) => all.extend(part),
                    (Some(Data::I64(all)), Data::I64(part)) => all.extend(part),
                    (slot, part) => *slot = Some(part),
                }
            }
        }
        let shapes = self.graph.outputs().iter().map(|id| whole[id.index()].clone());
        Ok(shapes.zip(out.into_iter().flatten()).collect())
    }

    /// Shapes of all values for so many samples; those of the last few numbers of samples are kept.
    fn shapes(&self, batch: usize) -> Result<Arc<Vec<Shape>>, Error> {
        let known = || self.known_shapes.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, shapes)) = known().iter().find(|(of, _)| *of == batch) {
            return Ok(shapes.clone());
        }
        let shapes = Arc::new(self.graph.shapes(batch)?);
        let mut known = known();
        if known.len() == KNOWN_SHAPES {
            known.pop_front();
        }
        known.push_back((batch, shapes.clone()));
        Ok(shapes)
    }

    /// Samples that are run together. Groups run side by side, so each reads all weights: all samples are one group where weights are much
    /// more than their values.
    fn group(&self, batch: usize) -> usize {
        let Ok(one) = self.shapes(1) else { return batch };
        let sizes = || self.plan.slots.iter().map(|form| one[form.value.index()].iter().product::<usize>());
        if sizes().sum::<usize>().saturating_mul(batch) < self.weight_bytes / MUCH_MORE {
            return batch;
        }
        let largest = sizes().max().unwrap_or(0) * 4;
        let fitting = (GROUP_BYTES / largest.max(1)).max(1);
        fitting.min(batch.div_ceil(self.narrow.len().max(1)))
    }

    fn with_worker<T>(&self, run: impl FnOnce(&mut Worker) -> T) -> T {
        let mut worker = self.workers().pop().unwrap_or_default();
        let result = run(&mut worker);
        self.workers().push(worker);
        result
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.workers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session of {} steps on {} threads", self.plan.steps.len(), self.wide.current_num_threads())
    }
}

fn check_numbers(x: &[f32]) -> Result<(), Error> {
    // Parts without an early end become vectors.
    let has_nan = |part: &[f32]| part.iter().fold(false, |nan, v| nan | v.is_nan());
    let find = || x.iter().position(|v| v.is_nan());
    match x.chunks(4096).any(has_nan).then(find).flatten() {
        Some(at) => Err(Error::new(Kind::Input, format!("element {at} of {} is not a number", x.len()))),
        None => Ok(()),
    }
}

fn data_of(buffer: &Buffer) -> Data {
    match buffer {
        Buffer::F32(v) => Data::F32(v.to_vec()),
        Buffer::Ints(v) => Data::I64(v.to_vec()),
        Buffer::Codes(v) => Data::U8(v.to_vec()),
    }
}
