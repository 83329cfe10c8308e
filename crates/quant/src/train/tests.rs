//! The conformance suite: what every method in the table must do, on the embedded digits. And what the loop itself promises.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bitsmith_engine::Device;
use bitsmith_engine::data::{Augment, Loader, LoaderOptions, Options as DataOptions, open};
use bitsmith_graph::zoo::{ZooOptions, build};
use bitsmith_graph::{Model, freeze};
use serde_json::{Value, json};

use super::activations::ActivationWidths;
use super::checkpoint::Store;
use super::data::{Batches, Data, InMemory};
use super::events::{Event, Silent};
use super::options::TrainOptions;
use super::{Context, Outcome};
use crate::blocks::budget::{Count, Weighting};
use crate::blocks::cost::Costs;
use crate::blocks::widths::Widths;
use crate::error::{Error, Kind};
use crate::methods::{METHODS, MethodEntry};
use crate::passes::allocate::Allocate;
use crate::passes::calibrate::CalibrateActivations;
use crate::passes::ptq::{Ptq, PtqOptions};
use crate::passes::{Pass, PassContext};

fn digits(limit: usize) -> (Loader, Loader) {
    let set = |options| Arc::new(open("digits", &DataOptions { limit: Some(limit), ..options }).unwrap());
    let training = LoaderOptions { workers: 0, ..LoaderOptions::training(32, 7, Augment::digits()) };
    let testing = LoaderOptions { workers: 0, ..LoaderOptions::evaluation(100) };
    let train = Loader::new(set(DataOptions::train()), training).unwrap();
    (train, Loader::new(set(DataOptions::test()), testing).unwrap())
}

fn network() -> Model {
    build("cnn", &ZooOptions { seed: 3, ..ZooOptions::default() }).unwrap()
}

/// A network that has learned the digits, with its accuracy: most methods start from one.
fn float_model(train: &Loader, test: &Loader) -> (Model, f64) {
    let float = crate::methods::find("float").unwrap();
    let options = TrainOptions { epochs: 20, ..short(1) };
    let outcome = run(float, network(), &options, train, Some(test), None, &GO).unwrap();
    (outcome.model, outcome.accuracy.unwrap())
}

/// Method options under which the small network can be trained.
fn options_for(method: &MethodEntry) -> Value {
    match method.name {
        "csq" => json!({"target_bits": 2.5, "search": 0.4}),
        "dorefa" | "lsq" | "pdqat" => json!({"weight_bits": 3}),
        "adaqat" | "bsq" | "fracbits" | "sdq" => json!({"target_bits": 2.5}),
        _ => Value::Null,
    }
}

fn short(epochs: usize) -> TrainOptions {
    TrainOptions {
        epochs,
        learning_rate: 0.05,
        warmup_steps: 5,
        recalibrate_batches: 8,
        trial_batches: 1,
        ..Default::default()
    }
}

fn run(
    method: &MethodEntry,
    model: Model,
    options: &TrainOptions,
    train: &dyn Data,
    test: Option<&dyn Data>,
    store: Option<&Store>,
    cancel: &AtomicBool,
) -> Result<Outcome, Error> {
    run_with((method, &options_for(method)), model, options, train, test, store, cancel)
}

fn run_with(
    (method, own): (&MethodEntry, &Value),
    model: Model,
    options: &TrainOptions,
    train: &dyn Data,
    test: Option<&dyn Data>,
    store: Option<&Store>,
    cancel: &AtomicBool,
) -> Result<Outcome, Error> {
    let mut ctx =
        Context { train, test, sink: &mut Silent, store, resume: true, cancel, device: Device::Cpu, costs: None };
    (method.train)(model, own, options, &mut ctx)
}

/// All numbers of a model that training touches, as bits.
fn fingerprint(model: &Model) -> Vec<u32> {
    let mut out: Vec<u32> = vec![];
    for value in model.graph.values() {
        out.extend(value.constant.iter().filter_map(|t| t.as_f32()).flatten().map(|x| x.to_bits()));
    }
    for site in model.sites.values() {
        out.extend(site.params.iter().flat_map(|p| &p.scale).map(|x| x.to_bits()));
    }
    out
}

static GO: AtomicBool = AtomicBool::new(false);

#[test]
fn every_method_trains_and_ends_on_its_grid() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    assert!(float >= 0.97, "{float}");
    for method in METHODS {
        let options = TrainOptions { distill: 0.5, learning_rate: 0.02, ..short(16) };
        let outcome = run(method, model.clone(), &options, &train, Some(&test), None, &GO).unwrap();
        let accuracy = outcome.accuracy.unwrap();
        assert!(accuracy >= float - 0.015, "{}: {accuracy} from {float}", method.name);
        if method.name == "float" {
            continue;
        }
        // `freeze` compares every weight with the decoding of its code, bit for bit.
        let frozen = freeze(outcome.model.clone()).unwrap();
        let stored: Vec<f64> = outcome.bits.iter().map(|b| b.stored).collect();
        let layers = frozen.layers().unwrap();
        let found: Vec<f64> = layers.iter().map(|l| frozen.params(l.weight).unwrap().stored_bits()).collect();
        assert_eq!(stored, found, "{}", method.name);
        // And so the network of integers, decoded again, answers with the same bits.
        let logits = |model: &Model| {
            let engine = bitsmith_engine::Engine::new(model, &Default::default()).unwrap();
            let batch = Data::epoch(&test, 0, 0).next().unwrap().unwrap();
            engine.forward(&bitsmith_engine::Params::from_model(model), &batch.x, batch.labels.len()).unwrap()
        };
        assert_eq!(logits(&outcome.model), logits(&frozen.to_model().unwrap()), "{}", method.name);
        if !["float", "dorefa", "lsq", "pdqat", "adaqat"].contains(&method.name) {
            assert!(frozen.mean_weight_bits().unwrap() <= 2.5, "{stored:?}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let (train, _) = digits(200);
    for method in METHODS {
        let once = run(method, network(), &short(3), &train, None, None, &GO).unwrap();
        let again = run(method, network(), &short(3), &train, None, None, &GO).unwrap();
        assert!(fingerprint(&once.model) == fingerprint(&again.model), "{}", method.name);
    }
}

/// A source that fails or raises a flag after some batches in all.
struct Interrupted<'a> {
    inner: &'a Loader,
    left: AtomicUsize,
    flag: Option<&'a AtomicBool>,
}

impl Data for Interrupted<'_> {
    fn batches(&self) -> usize {
        Loader::batches(self.inner)
    }

    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_> {
        Box::new(Data::epoch(self.inner, epoch, first).map(|batch| {
            if self.left.fetch_sub(1, Ordering::Relaxed) > 1 {
                return batch;
            }
            match self.flag {
                Some(flag) => {
                    flag.store(true, Ordering::Relaxed);
                    batch
                }
                None => Err(Error::new(Kind::Data, "pulled the plug")),
            }
        }))
    }
}

#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let (train, test) = digits(160);
    let options = TrainOptions { checkpoint_steps: 2, distill: 0.5, ..short(6) };
    for method in METHODS {
        let whole = run(method, network(), &options, &train, Some(&test), None, &GO).unwrap();
        // Without notice (the last checkpoint may be two steps old) and by request, in every phase.
        for (after, polite) in [(3, false), (9, true), (14, false), (21, true), (28, false)] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let flag = AtomicBool::new(false);
            let broken = Interrupted { inner: &train, left: AtomicUsize::new(after), flag: polite.then_some(&flag) };
            let stopped = run(method, network(), &options, &broken, Some(&test), Some(&store), &flag);
            let Err(error) = stopped else { panic!("{}: nothing happened after {after} batches", method.name) };
            assert_eq!(error.kind, if polite { Kind::Cancelled } else { Kind::Data });
            let resumed = run(method, network(), &options, &train, Some(&test), Some(&store), &GO).unwrap();
            assert!(
                fingerprint(&whole.model) == fingerprint(&resumed.model),
                "{} interrupted after {after} batches",
                method.name
            );
        }
    }
}

/// Channels of a layer get widths of their own, by every method that searches; the file has them, and the target holds.
#[test]
fn groups_of_channels_have_widths_of_their_own() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    let options = TrainOptions { distill: 0.5, learning_rate: 0.02, channel_groups: 3, ..short(12) };
    for name in ["csq", "sdq", "fracbits", "bsq"] {
        let method = crate::methods::find(name).unwrap();
        let own = json!({"target_bits": 2.3});
        let outcome = run_with((method, &own), model.clone(), &options, &train, Some(&test), None, &GO).unwrap();
        let accuracy = outcome.accuracy.unwrap();
        assert!(accuracy >= float - 0.02, "{name}: {accuracy} from {float}");
        let frozen = freeze(outcome.model.clone()).unwrap();
        let layers = frozen.layers().unwrap();
        let params: Vec<_> = layers.iter().map(|l| frozen.params(l.weight).unwrap()).collect();
        assert_eq!(outcome.bits.len(), layers.len());
        for (told, params) in outcome.bits.iter().zip(&params) {
            assert!((told.stored - params.stored_bits()).abs() < 1e-9, "{name}: {told:?} but {params:?}");
        }
        assert!(params.iter().any(|p| !p.rows.is_empty()), "{name}: every layer has one width");
        assert!(frozen.mean_weight_bits().unwrap() <= 2.3 + 1e-9, "{name}");
    }
    let dorefa = crate::methods::find("dorefa").unwrap();
    let error =
        run(dorefa, network(), &TrainOptions { channel_groups: 2, ..short(1) }, &train, None, None, &GO).unwrap_err();
    assert!(error.to_string().contains("use channel_groups = 1"), "{error}");
}

#[test]
fn a_resumed_search_over_groups_of_channels_ends_in_the_same_bits() {
    let (train, test) = digits(160);
    let options = TrainOptions { checkpoint_steps: 2, channel_groups: 3, ..short(6) };
    for name in ["csq", "sdq", "bsq"] {
        let method = crate::methods::find(name).unwrap();
        let whole = run(method, network(), &options, &train, Some(&test), None, &GO).unwrap();
        for after in [9, 21] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let broken = Interrupted { inner: &train, left: AtomicUsize::new(after), flag: None };
            run(method, network(), &options, &broken, Some(&test), Some(&store), &GO).unwrap_err();
            let resumed = run(method, network(), &options, &train, Some(&test), Some(&store), &GO).unwrap();
            assert!(
                fingerprint(&whole.model) == fingerprint(&resumed.model),
                "{name} interrupted after {after} batches"
            );
        }
    }
}

#[test]
fn a_scheme_of_csq_can_be_trained_by_lsq() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    let csq = crate::methods::find("csq").unwrap();
    let own = json!({"target_bits": 2.5, "finetune": "weights"});
    let options = TrainOptions { learning_rate: 0.02, ..short(8) };
    let whole = run_with((csq, &own), model.clone(), &options, &train, Some(&test), None, &GO).unwrap();
    assert!(whole.accuracy.unwrap() >= float - 0.015, "{:?} from {float}", whole.accuracy);
    assert!(freeze(whole.model.clone()).unwrap().mean_weight_bits().unwrap() <= 2.5);
    for after in [70, 200] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let broken = Interrupted { inner: &train, left: AtomicUsize::new(after), flag: None };
        run_with((csq, &own), model.clone(), &options, &broken, Some(&test), Some(&store), &GO).unwrap_err();
        let resumed = run_with((csq, &own), model.clone(), &options, &train, Some(&test), Some(&store), &GO).unwrap();
        assert!(fingerprint(&whole.model) == fingerprint(&resumed.model), "interrupted after {after} batches");
    }
}

#[test]
fn bins_draw_the_weights_of_every_method_that_fixes_widths() {
    let (train, _) = digits(200);
    let start = network();
    let ends = |name: &str, own: &Value, bins: f64| {
        let options = TrainOptions { bins, ..short(2) };
        let method = crate::methods::find(name).unwrap();
        fingerprint(&run_with((method, own), start.clone(), &options, &train, None, None, &GO).unwrap().model)
    };
    for name in ["lsq", "sdq", "fracbits", "adaqat", "bsq", "csq"] {
        let own = match name {
            "csq" => json!({"target_bits": 2.5, "finetune": "weights"}),
            _ => options_for(crate::methods::find(name).unwrap()),
        };
        let without = ends(name, &own, 0.0);
        assert_ne!(ends(name, &own, 1.0), without, "{name}");
        // What a method prescribes holds where the run says nothing.
        let prescribed = if name == "sdq" { 0.1 } else { 0.0 };
        assert_eq!(ends(name, &own, -1.0), ends(name, &own, prescribed), "{name}");
    }
}

#[test]
fn a_budget_of_costs_is_met_by_every_method_that_searches() {
    let (train, _) = digits(200);
    let model = network();
    let layers = crate::passes::layers::weight_layers(&model).unwrap();
    // Half of the layers take half as long up to 4 bits; of the others nothing is to be won.
    let cost = |i: usize| match i % 2 {
        0 => [0.0, 4.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 8.0],
        _ => [0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0],
    };
    let costs: Costs = layers.iter().enumerate().map(|(i, layer)| (layer.name.clone(), cost(i))).collect();
    let all: f64 = (0..layers.len()).map(|i| cost(i)[8]).sum();
    for method in METHODS.iter().filter(|m| ["sdq", "fracbits", "bsq", "csq"].contains(&m.name)) {
        for share in [0.7, 0.85] {
            let own = json!({"target_bits": 8.0 * share, "weighting": "cost", "edge_bits": 0});
            let mut ctx = Context {
                train: &train,
                test: None,
                sink: &mut Silent,
                store: None,
                resume: false,
                cancel: &GO,
                device: Device::Cpu,
                costs: Some(&costs),
            };
            let outcome = (method.train)(model.clone(), &own, &short(2), &mut ctx).unwrap();
            let frozen = freeze(outcome.model).unwrap();
            let bits = |id| frozen.params(id).map_or(0, |params| usize::from(params.spec.bits));
            let spent: f64 = layers.iter().map(|layer| costs[&layer.name][bits(layer.id)]).sum();
            assert!(spent <= all * share + 1e-6, "{}: {spent} of {all}", method.name);
            ctx.costs = None;
            let error = (method.train)(model.clone(), &own, &short(2), &mut ctx).unwrap_err().to_string();
            assert!(error.contains("give a budget"), "{}: {error}", method.name);
        }
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let (train, _) = digits(200);
    let good = InMemory::take(&train, 6).unwrap();
    let mut bad = good.clone();
    bad.batches[4].x[0] = f32::NAN;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let options = TrainOptions { checkpoint_steps: 2, ..short(2) };
    let float = crate::methods::find("float").unwrap();
    let error = run(float, network(), &options, &bad, None, Some(&store), &GO).unwrap_err();
    assert_eq!(error.kind, Kind::Diverged);
    assert!(error.to_string().contains("last.ckpt"), "{error}");
    run(float, network(), &options, &good, None, Some(&store), &GO).unwrap();
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let (train, _) = digits(100);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let float = crate::methods::find("float").unwrap();
    run(float, network(), &short(1), &train, None, Some(&store), &GO).unwrap();
    let error = run(float, network(), &short(2), &train, None, Some(&store), &GO).unwrap_err();
    assert!(error.to_string().contains("epochs was 1 and is 2"), "{error}");
    let other = build("mlp", &ZooOptions::default()).unwrap();
    let error = run(float, other, &short(1), &train, None, Some(&store), &GO).unwrap_err();
    assert!(error.to_string().contains("belongs to another model"), "{error}");
    // One flipped bit, and a file cut short.
    let bytes = std::fs::read(store.last_path()).unwrap();
    for broken in
        [[&bytes[..bytes.len() - 1], &[bytes[bytes.len() - 1] ^ 1]].concat(), bytes[..bytes.len() / 2].to_vec()]
    {
        std::fs::write(store.last_path(), broken).unwrap();
        let error = run(float, network(), &short(1), &train, None, Some(&store), &GO).unwrap_err();
        assert!(error.kind == Kind::Checkpoint && error.to_string().contains("damaged"), "{error}");
    }
    // Where no file can be written the run stops and says so.
    let blocked = tempfile::tempdir().unwrap();
    std::fs::create_dir(blocked.path().join("last.ckpt")).unwrap();
    let store = Store::open(blocked.path()).unwrap();
    let mut ctx = Context {
        train: &train,
        test: None,
        sink: &mut Silent,
        store: Some(&store),
        resume: false,
        cancel: &GO,
        device: Device::Cpu,
        costs: None,
    };
    let error = (float.train)(network(), &Value::Null, &short(1), &mut ctx).unwrap_err();
    assert_eq!(error.kind, Kind::Checkpoint);
    assert!(Store::open(Path::new("/dev/null/x")).is_err());
}

#[test]
fn calibrated_activations_learn_their_steps() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    let calibration = InMemory::take(&train, 2).unwrap();
    let mut ctx = PassContext { calibration: &calibration, sink: &mut Silent };
    let pass = CalibrateActivations { bits: 4, ..Default::default() };
    let calibrated = pass.run(model, &mut ctx).unwrap();
    let before: Vec<f32> = calibrated.sites.values().filter_map(|s| Some(s.params.as_ref()?.scale[0])).collect();
    let input = calibrated.graph.inputs()[0].value;
    assert_eq!(calibrated.sites[&input].spec.bits, 8);
    let lsq = METHODS.iter().find(|m| m.name == "lsq").unwrap();
    let outcome =
        run(lsq, calibrated, &TrainOptions { learning_rate: 0.01, ..short(6) }, &train, Some(&test), None, &GO)
            .unwrap();
    assert!(outcome.accuracy.unwrap() > float - 0.03);
    let roles =
        |s: &&bitsmith_graph::Site| !matches!(s.role, bitsmith_graph::Role::Weight | bitsmith_graph::Role::Bias);
    let after: Vec<f32> =
        outcome.model.sites.values().filter(roles).filter_map(|s| Some(s.params.as_ref()?.scale[0])).collect();
    assert_eq!(before.len(), after.len());
    assert!(before != after && after.iter().all(|s| *s > 0.0));
    freeze(outcome.model).unwrap();
}

/// Mean bits of activations, each weighed by the bit operations of the layers that read it.
fn mean_activation_bits(model: &Model) -> f64 {
    let (mut bits, mut all) = (0.0, 0.0);
    for layer in model.layers().unwrap() {
        let size = layer.macs as f64 * model.sites[&layer.weight].spec.stored_bits();
        bits += size * f64::from(model.sites[&model.activation_of(&layer).unwrap()].spec.bits);
        all += size;
    }
    bits / all
}

#[test]
fn widths_of_activations_meet_their_target() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    let calibration = InMemory::take(&train, 2).unwrap();
    let mut ctx = PassContext { calibration: &calibration, sink: &mut Silent };
    let calibrated = CalibrateActivations::default().run(model, &mut ctx).unwrap();
    let widths = ActivationWidths { target_bits: 4.0, ..Default::default() };
    let options = TrainOptions { learning_rate: 0.02, activation_widths: widths, ..short(12) };
    for method in METHODS.iter().filter(|m| m.name != "float") {
        let outcome = run(method, calibrated.clone(), &options, &train, Some(&test), None, &GO).unwrap();
        let accuracy = outcome.accuracy.unwrap();
        assert!(accuracy >= float - 0.03, "{}: {accuracy} from {float}", method.name);
        let mean = mean_activation_bits(&outcome.model);
        assert!(mean <= 4.0 + 1e-9 && mean > 2.5, "{}: {mean} mean bits", method.name);
        let input = outcome.model.graph.inputs()[0].value;
        assert_eq!(outcome.model.sites[&input].spec.bits, 8, "the input keeps its width");
        freeze(outcome.model).unwrap();
    }
    // Activations that are float, and a target below what the input alone takes.
    let lsq = crate::methods::find("lsq").unwrap();
    let error = run(lsq, network(), &options, &train, None, None, &GO).unwrap_err();
    assert!(error.kind == Kind::Option && error.to_string().contains("[activations]"), "{error}");
    let widths = ActivationWidths { target_bits: 0.5, ..Default::default() };
    let error = run(lsq, calibrated, &TrainOptions { activation_widths: widths, ..short(1) }, &train, None, None, &GO);
    assert!(error.unwrap_err().to_string().contains("cannot be reached"));
}

#[test]
fn a_resumed_search_of_activations_ends_in_the_same_bits() {
    let (train, test) = digits(160);
    let calibration = InMemory::take(&train, 2).unwrap();
    let mut ctx = PassContext { calibration: &calibration, sink: &mut Silent };
    let model = CalibrateActivations::default().run(network(), &mut ctx).unwrap();
    let widths = ActivationWidths { target_bits: 4.5, ..Default::default() };
    let options = TrainOptions { checkpoint_steps: 2, activation_widths: widths, ..short(6) };
    for name in ["fracbits", "sdq", "adaqat", "csq", "lsq"] {
        let method = crate::methods::find(name).unwrap();
        let whole = run(method, model.clone(), &options, &train, Some(&test), None, &GO).unwrap();
        for after in [3, 14, 21] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let broken = Interrupted { inner: &train, left: AtomicUsize::new(after), flag: None };
            run(method, model.clone(), &options, &broken, Some(&test), Some(&store), &GO).unwrap_err();
            let resumed = run(method, model.clone(), &options, &train, Some(&test), Some(&store), &GO).unwrap();
            let bits = |m: &Model| m.sites.values().map(|s| s.spec.bits).collect::<Vec<_>>();
            assert_eq!(bits(&whole.model), bits(&resumed.model), "{name} interrupted after {after} batches");
            assert!(fingerprint(&whole.model) == fingerprint(&resumed.model), "{name} after {after} batches");
        }
    }
}

#[test]
fn quantizing_without_training_keeps_eight_bits_and_reads_anything() {
    let (train, test) = digits(2000);
    let (model, float) = float_model(&train, &test);
    let calibration = InMemory::take(&train, 2).unwrap();
    for options in [
        PtqOptions::default(),
        PtqOptions { symmetric: false, weight_range: crate::blocks::range::Range::MinMax, ..Default::default() },
        PtqOptions { activation_bits: 32, weight_bits: 6, per_channel: false, ..Default::default() },
    ] {
        let mut ctx = PassContext { calibration: &calibration, sink: &mut Silent };
        let quantized = Ptq { options: options.clone() }.run(model.clone(), &mut ctx).unwrap();
        let frozen = freeze(quantized).unwrap();
        let simulated = frozen.to_model().unwrap();
        let engine = bitsmith_engine::Engine::new(&simulated, &Default::default()).unwrap();
        let params = bitsmith_engine::Params::from_model(&simulated);
        let accuracy = super::state::evaluate(&engine, &params, &test).unwrap().accuracy;
        assert!(accuracy > float - 0.03, "{options:?}: {accuracy} {float}");
    }
    let random = InMemory::random(64, 16, 2, 1);
    let mut ctx = PassContext { calibration: &random, sink: &mut Silent };
    freeze(Ptq::default().run(model, &mut ctx).unwrap()).unwrap();
}

#[test]
fn widths_are_allocated_without_training() {
    let (train, test) = digits(2000);
    let (model, _) = float_model(&train, &test);
    let calibration = InMemory::take(&train, 8).unwrap();
    let correct = |model: &Model| {
        let engine = bitsmith_engine::Engine::new(model, &Default::default()).unwrap();
        super::state::evaluate(&engine, &bitsmith_engine::Params::from_model(model), &test).unwrap().accuracy
    };
    let widths = Widths {
        target_bits: 3.0,
        edge_bits: 0,
        floor_bits: 2,
        most: 7,
        weighting: Weighting::Size,
        count: Count::Stored,
    };
    let heard = std::cell::Cell::new(0);
    let mut sink = |event: &Event| heard.set(heard.get() + usize::from(matches!(event, Event::Trial { .. })));
    let mut ctx = PassContext { calibration: &calibration, sink: &mut sink };
    let options = PtqOptions { activation_bits: 8, ..Default::default() };
    let pass = Allocate { ptq: Ptq { options: options.clone() }, widths, costs: None };
    let mixed = pass.run(model.clone(), &mut ctx).unwrap();
    let uniform = Ptq { options: PtqOptions { weight_bits: 3, edge_bits: 0, ..options } };
    let uniform = uniform.run(model.clone(), &mut ctx).unwrap();
    assert!(heard.get() > 5, "{heard:?}");
    let frozen = freeze(mixed.clone()).unwrap();
    assert!(frozen.mean_weight_bits().unwrap() <= 3.0);
    let (mixed, uniform) = (correct(&mixed), correct(&uniform));
    assert!(mixed >= uniform - 0.005 && mixed > 0.9, "{mixed}, {uniform} with all layers alike");

    let out_of_reach = Allocate { widths: Widths { target_bits: 1.5, ..widths }, ..pass };
    let error = out_of_reach.run(model, &mut ctx).unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[test]
fn events_are_lines_of_json() {
    let (train, test) = digits(100);
    let mut lines = vec![];
    let mut sink = |event: &Event| lines.push(serde_json::to_value(event).unwrap());
    let mut ctx = Context {
        train: &train,
        test: Some(&test),
        sink: &mut sink,
        store: None,
        resume: false,
        cancel: &GO,
        device: Device::Cpu,
        costs: None,
    };
    let csq = crate::methods::find("csq").unwrap();
    (csq.train)(network(), &options_for(csq), &short(4), &mut ctx).unwrap();
    let kinds: Vec<&str> = lines.iter().filter_map(|l| l["event"].as_str()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("started", "finished"));
    assert_eq!(kinds.iter().filter(|k| **k == "epoch").count(), 4);
    assert!(lines.iter().any(|l| l["phase"] == "search" && l["bits"][0]["stored"].is_number()));
    assert!(
        crate::methods::find("cqs")
            .unwrap_err()
            .to_string()
            .contains("there are adaqat, bsq, csq, dorefa, float, fracbits, lsq, pdqat, sdq")
    );
}

#[test]
fn a_transformer_trains_and_ends_on_its_grid() {
    let (train, test) = digits(200);
    let options = ZooOptions { input: Some([1, 8, 8]), seed: 2, ..ZooOptions::default() };
    let model = build("vit-tiny", &options).unwrap();
    let options = TrainOptions {
        optimizer: super::options::OptimizerName::Adamw,
        learning_rate: 1e-3,
        weight_decay: 0.05,
        epochs: 4,
        ..TrainOptions::default()
    };
    let float = crate::methods::find("float").unwrap();
    let outcome = run(float, model, &options, &train, Some(&test), None, &GO).unwrap();
    assert!(outcome.accuracy.unwrap() > 0.3, "{:?}", outcome.accuracy);
    let lsq = crate::methods::find("lsq").unwrap();
    let short = TrainOptions { epochs: 1, learning_rate: 2e-4, ..options };
    let outcome = run(lsq, outcome.model, &short, &train, Some(&test), None, &GO).unwrap();
    let frozen = freeze(outcome.model.clone()).unwrap();
    assert_eq!(frozen.layers().unwrap().len(), 26);
    let logits = |model: &Model| {
        let engine = bitsmith_engine::Engine::new(model, &Default::default()).unwrap();
        let batch = Data::epoch(&test, 0, 0).next().unwrap().unwrap();
        engine.forward(&bitsmith_engine::Params::from_model(model), &batch.x, batch.labels.len()).unwrap()
    };
    assert_eq!(logits(&outcome.model), logits(&frozen.to_model().unwrap()));
}
