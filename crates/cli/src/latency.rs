//! What layers cost in time on this machine: each shape is measured once at every width, in the networks that contain it, and kept.
//!
//! A layer is known by everything that its time depends on besides the machine: operator, input and weight shape, and the grids of
//! the input and of the output. Times are those of a step of the packed runtime, in the middle of a run, so caches are as warm as they will be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitsmith_graph::model::Layer;
use bitsmith_graph::{Model, QuantModel, ValueId, freeze};
use bitsmith_kernels::isa::Isa;
use bitsmith_quant::passes::ptq::{Ptq, PtqOptions};
use bitsmith_quant::passes::{Pass, PassContext};
use bitsmith_quant::train::data::InMemory;
use bitsmith_quant::train::events::Silent;
use bitsmith_runtime::{Kernels, StepProfile};
use serde::{Deserialize, Serialize};

use crate::commands::Context;
use crate::datasets::Wanted;
use crate::engines::{Integers, Runner, noise};
use crate::failure::{Explain, Failure};
use crate::{files, system};

/// Widths that are measured.
pub const WIDTHS: std::ops::RangeInclusive<u8> = 2..=8;
/// Rounds over all widths, of which the lower quartile counts: the machine's pace wanders, and so hits all widths alike.
const ROUNDS: usize = 9;
/// Neighbouring widths whose times differ by less take equally long: the kernels are the same.
const TOLERANCE: f64 = 0.06;
/// How long a width is measured in a round, at least one run.
const SLICE: Duration = Duration::from_millis(40);

/// Seconds that a network's layers take, and all the rest of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Samples in a run.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Everything but the layers.
    pub rest: f64,
    /// At 0 to 8 stored bits of weights, by the name of the weight.
    pub layers: BTreeMap<String, [f64; 9]>,
}

impl Latencies {
    /// Seconds of the whole network with all layers at one width.
    pub fn uniform(&self, bits: u8) -> f64 {
        self.rest + self.layers.values().map(|layer| layer[usize::from(bits.min(8))]).sum::<f64>()
    }
}

/// How a measurement went.
#[derive(Debug)]
pub struct Measured {
    /// The result.
    pub latencies: Latencies,
    /// Layer shapes that were measured now; the others were known.
    pub fresh: usize,
    /// Where they are kept.
    pub cache: PathBuf,
}

/// Times by layer and width as they were measured.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Cache {
    /// Seconds at 0 to 8 bits of each layer.
    layers: BTreeMap<String, [f64; 9]>,
    /// Seconds of everything else in a network.
    rests: BTreeMap<String, f64>,
}

/// The latencies of a network whose activations are calibrated. `refresh` measures again what is known.
pub fn measure(model: &Model, batch: usize, refresh: bool, context: &Context) -> Result<Measured, Failure> {
    let layers = model.layers()?;
    if layers.is_empty() {
        return Err(Failure::new("the model has no layer with weights"));
    }
    if layers.iter().any(|layer| model.activation_of(layer).and_then(|id| model.sites.get(&id)).is_none()) {
        return Err(Failure::usage("a latency is measured with integers, but activations are in float")
            .remedy("give activations a width: --activation-bits 8, or [activations] bits = 8"));
    }
    let keys = keys(model, &layers)?;
    let whole = format!("{:08x}", fingerprint(model, &keys));
    let place = place(batch, context.threads)?;
    let mut cache = read(&place);
    if refresh {
        cache.layers.retain(|key, _| !keys.contains(key));
        cache.rests.remove(&whole);
    }
    let mut unknown: Vec<&String> = keys.iter().filter(|key| !cache.layers.contains_key(*key)).collect();
    unknown.sort();
    unknown.dedup();
    let fresh = unknown.len();
    if fresh > 0 || !cache.rests.contains_key(&whole) {
        let (times, rest) = time(model, &layers, &keys, batch, context)?;
        for (key, seconds) in keys.iter().zip(times) {
            cache.layers.entry(key.clone()).or_insert(seconds);
        }
        cache.rests.entry(whole.clone()).or_insert(rest);
        let text = serde_json::to_vec_pretty(&cache)?;
        if let Some(folder) = place.parent() {
            files::create_folder(folder)?;
        }
        files::write(&place, &text)?;
    }
    let name = |layer: &Layer| model.graph.value(layer.weight).name.clone();
    let known = |(layer, key): (&Layer, &String)| {
        let mut seconds = *cache.layers.get(key)?;
        level(&mut seconds[2..]);
        // A layer without any weight is computed all the same.
        seconds[0] = seconds[2];
        seconds[1] = seconds[2];
        Some((name(layer), seconds))
    };
    let named = layers.iter().zip(&keys).filter_map(known);
    let rest = cache.rests.get(&whole).copied().unwrap_or_default();
    let latencies = Latencies { batch, threads: context.threads, rest, layers: named.collect() };
    Ok(Measured { latencies, fresh, cache: place })
}

/// The network with all weights at one width.
pub fn uniform(model: &Model, bits: u8) -> Result<QuantModel, Failure> {
    let options = PtqOptions { weight_bits: bits, edge_bits: 0, activation_bits: 32, ..PtqOptions::default() };
    let nothing = InMemory { batches: vec![] };
    let rounded = Ptq { options }.run(model.clone(), &mut PassContext { calibration: &nothing, sink: &mut Silent })?;
    Ok(freeze(rounded)?)
}

/// Seconds of a run of a packed model: the lower quartile, as in [`measure`].
pub fn of_packed(model: &QuantModel, batch: usize) -> Result<f64, Failure> {
    let wanted = Wanted::of(model.graph(), None)?;
    let x = noise(batch * wanted.sample);
    let mut integers = Integers::new(model, Kernels::Fast)?;
    integers.logits(&x, batch)?;
    // Thrice as long as a width is measured: others may have the machine for a moment.
    let means = (0..3 * ROUNDS).map(|_| {
        let (start, mut runs) = (Instant::now(), 0);
        while runs == 0 || start.elapsed() < SLICE {
            integers.logits(&x, batch)?;
            runs += 1;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(runs))
    });
    Ok(quartile(means.collect::<Result<_, Failure>>()?))
}

/// Seconds of all layers at all widths, and of the rest of the network.
fn time(
    model: &Model,
    layers: &[Layer],
    keys: &[String],
    batch: usize,
    context: &Context,
) -> Result<(Vec<[f64; 9]>, f64), Failure> {
    let wanted = Wanted::of(&model.graph, None)?;
    let x = noise(batch * wanted.sample);
    let mut sessions = vec![];
    for bits in WIDTHS {
        let mut session = Integers::new(&uniform(model, bits)?, Kernels::Fast)?;
        let start = Instant::now();
        session.logits(&x, batch)?;
        sessions.push((usize::from(bits), session, start.elapsed()));
    }
    let names: Vec<&str> = layers.iter().map(|layer| model.graph.nodes()[layer.node].name.as_str()).collect();
    let task = context.out.progress.task("measuring layers", (ROUNDS * sessions.len()) as u64);
    let mut samples: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    let mut others = vec![];
    for round in 0..ROUNDS {
        for (i, (bits, session, once)) in sessions.iter().enumerate() {
            let runs = (SLICE.as_secs_f64() / once.as_secs_f64().max(1e-6)).clamp(1.0, 200.0) as usize;
            let profile = session.profile(&x, batch, runs)?;
            let mut rest = 0.0;
            for step in &profile {
                let seconds = step.time.as_secs_f64();
                match names.iter().position(|name| is_layer(step, name)) {
                    Some(layer) => samples.entry((&keys[layer], *bits)).or_default().push(seconds),
                    None => rest += seconds,
                }
            }
            others.push(rest);
            task.set((round * sessions.len() + i + 1) as u64, &format!("{bits} bits"));
        }
    }
    let of_layer = |key: &String| {
        let mut seconds = [0.0; 9];
        for bits in WIDTHS.map(usize::from) {
            seconds[bits] = samples.get(&(key.as_str(), bits)).cloned().map_or(0.0, quartile);
        }
        seconds
    };
    Ok((keys.iter().map(of_layer).collect(), quartile(others)))
}

fn is_layer(step: &StepProfile, name: &str) -> bool {
    step.macs > 0 && step.name == name
}

/// Everything that the time of each layer depends on besides the machine and the width of its weights.
fn keys(model: &Model, layers: &[Layer]) -> Result<Vec<String>, Failure> {
    let shapes = model.graph.shapes(1)?;
    let of = |id: ValueId| format!("{:?}", &shapes[id.index()]);
    let grid =
        |id| model.sites.get(&id).map_or("f32".to_owned(), |site| format!("{:?}{}", site.spec.grid, site.spec.bits));
    let key = |layer: &Layer| {
        let node = &model.graph.nodes()[layer.node];
        let input = node.input(0).map_or(String::new(), of);
        let reads = model.activation_of(layer).map_or(String::new(), grid);
        let writes = grid(node.output());
        format!("{:?} {input} {} reads {reads} writes {writes}", node.op, of(layer.weight))
    };
    Ok(layers.iter().map(key).collect())
}

/// A short name of all that is not a layer: the same for the same operators on the same shapes.
fn fingerprint(model: &Model, keys: &[String]) -> u32 {
    let nodes = model.graph.nodes().iter().map(|node| format!("{:?}", node.op));
    // FNV-1a: names only have to differ.
    nodes
        .chain(keys.iter().cloned())
        .flat_map(String::into_bytes)
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Gives neighbours that differ by no more than noise their mean, and those of which the wider is faster: pooled, so that times rise with
/// the width (isotonic regression), in steps that are worth a name.
fn level(seconds: &mut [f64]) {
    let mut pools: Vec<(f64, usize)> = vec![];
    for &time in seconds.iter() {
        let (mut sum, mut count) = (time, 1);
        while let Some(&(before, n)) = pools.last()
            && sum / count as f64 <= before / n as f64 * (1.0 + TOLERANCE)
        {
            (sum, count) = (sum + before, count + n);
            pools.pop();
        }
        pools.push((sum, count));
    }
    let levels = pools.iter().flat_map(|&(sum, count)| std::iter::repeat_n(sum / count as f64, count));
    seconds.iter_mut().zip(levels).for_each(|(time, level)| *time = level);
}

fn quartile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 4).copied().unwrap_or(0.0)
}

/// The file of this machine, version, batch and number of threads.
fn place(batch: usize, threads: usize) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = variable("BITSMITH_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("bitsmith")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/bitsmith")))
        .ok_or_else(|| {
            Failure::new("there is no folder to keep measurements in").remedy("name one: BITSMITH_CACHE=/some/folder")
        })?;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let machine: String = system::processor().chars().map(plain).collect();
    let (version, level) = (env!("CARGO_PKG_VERSION"), Isa::current().level().name());
    Ok(folder.join(format!("latency-{version}-{machine}-{level}-{threads}-threads-batch-{batch}.json")))
}

/// What is known. A file that cannot be read is as good as none: it is measured anew.
fn read(place: &std::path::Path) -> Cache {
    let known: Option<Cache> = std::fs::read(place).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut cache = known.unwrap_or_default();
    let is_time = |seconds: &f64| seconds.is_finite() && *seconds >= 0.0;
    cache.layers.retain(|_, seconds| seconds.iter().all(is_time));
    cache.rests.retain(|_, seconds| is_time(seconds));
    cache
}

/// The latencies that a run began with.
pub fn read_run(path: &std::path::Path) -> Result<Latencies, Failure> {
    let place = || format!("cannot use `{}`", path.display());
    serde_json::from_str(&files::read_text(path)?).context(place).remedy("begin the run again with --force")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_graph::zoo::{ZooOptions, build};

    #[test]
    fn layers_of_one_shape_have_one_key() {
        let model = build("resnet20", &ZooOptions::default()).unwrap();
        let layers = model.layers().unwrap();
        let mut keys = keys(&model, &layers).unwrap();
        let (first, all) = (fingerprint(&model, &keys), keys.len());
        keys.sort();
        keys.dedup();
        // 20 layers: stem, three widths, two steps between them, classifier.
        assert_eq!((all, keys.len()), (20, 7));
        let other = build("resnet8", &ZooOptions::default()).unwrap();
        assert_ne!(fingerprint(&other, &keys), first);
    }

    #[test]
    fn times_that_differ_by_noise_are_one() {
        let mut seconds = [1.0, 1.03, 0.97, 2.0, 2.1, 1.9, 3.0];
        level(&mut seconds);
        assert_eq!(seconds, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0]);
        let mut falling = [4.0, 2.0, 3.0];
        level(&mut falling);
        assert_eq!(falling, [3.0; 3]);
        let mut nothing = [0.0; 3];
        level(&mut nothing);
        assert_eq!(nothing, [0.0; 3]);
        assert_eq!((quartile(vec![5.0, 1.0, 2.0, 3.0, 4.0]), quartile(vec![])), (2.0, 0.0));
    }
}
