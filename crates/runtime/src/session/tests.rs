//! The session against the simulation, over real architectures and small random networks.

use std::collections::BTreeMap;

use bitsmith_graph::ops::{
    Add, AveragePool, BatchNormalization, Cast, Clip, Concat, Constant, Conv, Div, Dropout, Flatten, Gather, Gelu,
    Gemm, GlobalAveragePool, HardSigmoid, HardSwish, Identity, LayerNormalization, LeakyRelu, LogSoftmax, MatMul,
    MaxPool, Mul, Pad, PadMode, ReduceMean, Relu, Reshape, ShapeOf, Sigmoid, Slice, Softmax, Split, Squeeze, Sub, Tanh,
    Transpose, Unsqueeze, Window,
};
use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{Data, Dim, Granularity, Graph, Grid, Model, Op, QuantModel, QuantSpec, Tensor, ValueId, freeze};
use proptest::prelude::*;

use super::simulate::{calibrate, simulate, simulate_nudged};
use super::{Arithmetic, Kernels, Session, SessionOptions};
use crate::error::Kind;
use crate::testing::{noise, round_weights, weight_spec};

const FAST: SessionOptions = SessionOptions { kernels: Kernels::Fast, threads: 1 };
const REFERENCE: SessionOptions = SessionOptions { kernels: Kernels::Reference, threads: 1 };

fn architecture(name: &str) -> Model {
    zoo::build(name, &ZooOptions { seed: 3, ..ZooOptions::default() }).unwrap()
}

fn batch_of(model: &Model, batch: usize, seed: u32) -> Tensor {
    let shape = model.graph.inputs()[0].shape(batch);
    Tensor::f32(shape.clone(), noise(shape.iter().product(), seed)).unwrap()
}

/// Weights on these grids in turn, inputs and activations at these widths, ranges from a few samples.
fn quantized(mut model: Model, weights: &[QuantSpec], activation_bits: u8, input_bits: u8) -> Model {
    round_weights(&mut model, |i| Some(weights[i % weights.len()]));
    let spec =
        |bits| QuantSpec { grid: Grid::Affine { signed: false, symmetric: false }, bits, per: Granularity::PerTensor };
    model.add_activation_sites(spec(activation_bits), spec(input_bits)).unwrap();
    let sample = batch_of(&model, 2, 77);
    calibrate(&mut model, &[sample]);
    model
}

/// Runs fast and reference, which must agree bit for bit, and returns the logits with the simulated ones.
fn run_both(model: &Model, frozen: &QuantModel, x: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let batch = x.shape()[0];
    let fast = Session::new(frozen, FAST).unwrap().run(x.as_f32().unwrap(), batch).unwrap();
    let reference = Session::new(frozen, REFERENCE).unwrap().run(x.as_f32().unwrap(), batch).unwrap();
    assert_eq!(fast, reference, "fast and reference differ");
    let simulated = &simulate(model, std::slice::from_ref(x), true)[&model.graph.outputs()[0]];
    (fast, simulated.as_f32().unwrap().to_vec())
}

/// Simulation and integers may round a value that lies in the middle between two codes to either side; such a step
/// of one activation moves logits by a small fraction of their spread.
fn assert_close(name: &str, got: &[f32], expected: &[f32], share: f32) {
    let spread = expected.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-3);
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= spread * share, "{name}: element {i} is {g} but simulated {e} (spread {spread})");
    }
}

#[test]
fn architectures_run_as_simulated() {
    let mixed = [weight_spec(3, 2, false), weight_spec(0, 4, true), weight_spec(3, 7, true), weight_spec(3, 0, false)];
    for (name, weights, activation, batch) in [
        ("cnn", &mixed[..], 4, 5),
        ("mlp", &mixed[..3], 8, 3),
        ("resnet8", &mixed[1..3], 4, 1),
        ("resnet8", &[weight_spec(0, 8, true)][..], 8, 1),
    ] {
        let model = quantized(architecture(name), weights, activation, 8);
        let frozen = freeze(model.clone()).unwrap();
        let x = batch_of(&model, batch, 5);
        let (got, expected) = run_both(&model, &frozen, &x);
        assert_close(name, &got, &expected, 0.02);
        let session = Session::new(&frozen, FAST).unwrap();
        for layer in frozen.layers().unwrap() {
            let report = &session.arithmetic()[layer.node];
            // The classifier behind the mean reads what the mean rounds; every layer is integer.
            assert_eq!(report.arithmetic, Arithmetic::Integer, "{name}: {report:?}");
        }
        assert_eq!(session.arithmetic().len(), frozen.graph().nodes().len());
    }
}

#[test]
fn float_models_run_as_simulated() {
    for name in ["cnn", "mlp", "resnet8"] {
        let model = architecture(name);
        let x = batch_of(&model, 2, 6);
        let got = Session::from_model(&model, FAST).unwrap().run(x.as_f32().unwrap(), 2).unwrap();
        let expected = &simulate(&model, &[x], false)[&model.graph.outputs()[0]];
        assert_close(name, &got, expected.as_f32().unwrap(), 1e-5);
        // Weights on a grid and float activations: the same with decoded weights.
        let mut rounded = model.clone();
        round_weights(&mut rounded, |_| Some(weight_spec(0, 4, true)));
        let x = batch_of(&model, 2, 6);
        let got = Session::new(&freeze(rounded.clone()).unwrap(), FAST).unwrap().run(x.as_f32().unwrap(), 2).unwrap();
        let expected = &simulate(&rounded, &[x], false)[&model.graph.outputs()[0]];
        assert_close(name, &got, expected.as_f32().unwrap(), 1e-5);
    }
}

/// ResNet-20's option-A shortcut is a strided slice and a pad, both on codes.
#[test]
fn resnet20_shortcuts_move_codes() {
    let weights = [weight_spec(3, 2, false)];
    let mut model = architecture("resnet20");
    round_weights(&mut model, |i| Some(weights[i % weights.len()]));
    let spec =
        |bits| QuantSpec { grid: Grid::Affine { signed: false, symmetric: false }, bits, per: Granularity::PerTensor };
    model.add_activation_sites(spec(4), spec(8)).unwrap();
    let params = bitsmith_graph::QParams::per_tensor(4, false, 0.2, 0);
    model.sites.values_mut().filter(|s| s.params.is_none()).for_each(|s| s.params = Some(params.clone()));
    let frozen = freeze(model.clone()).unwrap();
    let session = Session::new(&frozen, FAST).unwrap();
    for report in session.arithmetic() {
        match report.op {
            "Conv" | "Gemm" => assert_eq!(report.arithmetic, Arithmetic::Integer, "{report:?}"),
            "Slice" | "Pad" => assert_eq!(report.arithmetic, Arithmetic::Codes, "{report:?}"),
            _ => {}
        }
    }
    let x = batch_of(&model, 3, 8);
    let one_by_one: Vec<f32> =
        x.as_f32().unwrap().chunks(3 * 32 * 32).flat_map(|x| session.run(x, 1).unwrap()).collect();
    assert_eq!(session.run(x.as_f32().unwrap(), 3).unwrap(), one_by_one);
    let threaded = Session::new(&frozen, SessionOptions { threads: 2, ..FAST }).unwrap();
    assert_eq!(threaded.run(x.as_f32().unwrap(), 3).unwrap(), one_by_one);
}

/// Small graphs of one or a few nodes, so that every operator runs, alone and after codes.
fn zoo_of_operators() -> Vec<(&'static str, Graph)> {
    let image = |build: &dyn Fn(&mut Graph, ValueId) -> ValueId| {
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(4), Dim::Fixed(6), Dim::Fixed(5)]).unwrap();
        let y = build(&mut g, x);
        g.set_outputs(vec![y]);
        g
    };
    let op = |op: Op| image(&move |g, x| g.add("y", op.clone(), &[x]).unwrap());
    let constant = |g: &mut Graph, name: &str, shape: &[usize], seed| {
        let values =
            noise(shape.iter().product(), seed).iter().map(|v| v + if seed == 9 { 1.5 } else { 0.0 }).collect();
        g.add_constant(name, Tensor::f32(shape, values).unwrap()).unwrap()
    };
    let window = Window { strides: vec![2, 1], pads: vec![1, 0, 1, 1], dilations: vec![1, 2], ..Window::default() };
    let ceil = Window { strides: vec![2, 2], pads: vec![0, 1, 1, 0], ceil_mode: true, ..Window::default() };
    let pad = |mode, value| Pad { pads: vec![0, 0, 1, 2, 0, 1, 0, -1], axes: None, mode, value };
    let slice =
        Slice { starts: vec![-1, 0], ends: vec![i64::MIN, 4], axes: Some(vec![2, 3]), steps: Some(vec![-2, 3]) };
    let mut out = vec![
        ("relu", op(Relu.into())),
        ("leaky", op(LeakyRelu { alpha: 0.1 }.into())),
        ("clip", op(Clip { min: Some(-0.25), max: None }.into())),
        ("hardswish", op(HardSwish.into())),
        ("hardsigmoid", op(HardSigmoid { alpha: 0.2, beta: 0.5 }.into())),
        ("sigmoid", op(Sigmoid.into())),
        ("tanh", op(Tanh.into())),
        ("gelu", op(Gelu { tanh: false }.into())),
        ("identity", op(Identity.into())),
        ("dropout", op(Dropout.into())),
        ("softmax", op(Softmax { axis: 1 }.into())),
        ("logsoftmax", op(LogSoftmax { axis: -1 }.into())),
        ("maxpool", op(MaxPool { kernel: vec![3, 2], window: window.clone() }.into())),
        ("maxpool ceil", op(MaxPool { kernel: vec![3, 3], window: ceil.clone() }.into())),
        (
            "averagepool",
            op(AveragePool { kernel: vec![3, 2], window: window.clone(), count_include_pad: false }.into()),
        ),
        ("averagepool ceil", op(AveragePool { kernel: vec![3, 3], window: ceil, count_include_pad: true }.into())),
        ("globalaveragepool", op(GlobalAveragePool.into())),
        ("reducemean", op(ReduceMean { axes: Some(vec![2, 3]), keepdims: false }.into())),
        ("reducemean channels", op(ReduceMean { axes: Some(vec![1]), keepdims: true }.into())),
        ("reducemean rows", op(ReduceMean { axes: Some(vec![2]), keepdims: false }.into())),
        ("flatten", op(Flatten::default().into())),
        ("reshape", op(Reshape { shape: vec![0, -1, 10], allow_zero: false }.into())),
        ("transpose", op(Transpose { perm: Some(vec![0, 2, 3, 1]) }.into())),
        ("slice", op(slice.into())),
        ("pad", op(pad(PadMode::Constant, 0.0).into())),
        ("pad value", op(pad(PadMode::Constant, 0.7).into())),
        ("pad reflect", op(pad(PadMode::Reflect, 0.0).into())),
        ("pad edge", op(pad(PadMode::Edge, 0.0).into())),
        ("unsqueeze", op(Unsqueeze { axes: vec![1, -1] }.into())),
        ("cast", op(Cast { to: 1 }.into())),
    ];
    let more: Vec<(&'static str, Graph)> = vec![
        (
            "squeeze",
            image(&|g, x| {
                let y = g.add("mean", ReduceMean { axes: Some(vec![3]), keepdims: true }, &[x]).unwrap();
                g.add("y", Squeeze { axes: Some(vec![3]) }, &[y]).unwrap()
            }),
        ),
        (
            "split and concat",
            image(&|g, x| {
                let split = Split { axis: 1, sizes: Some(vec![1, 3]), outputs: 0 };
                let parts = g.add_node("split", split, &[Some(x)], &["a", "b"]).unwrap();
                g.add("y", Concat { axis: 1 }, &[parts[1], parts[0]]).unwrap()
            }),
        ),
        (
            "gather",
            image(&|g, x| {
                let indices = g.add_constant("i", Tensor::new([2, 1], Data::I64(vec![2, -1])).unwrap()).unwrap();
                g.add("y", Gather { axis: 1 }, &[x, indices]).unwrap()
            }),
        ),
        (
            "batch norm",
            image(&|g, x| {
                let p: Vec<_> = [1, 2, 3, 9].iter().map(|&s| constant(g, &format!("p{s}"), &[4], s)).collect();
                let y = g.add("bn", BatchNormalization::default(), &[x, p[0], p[1], p[2], p[3]]).unwrap();
                g.add("y", Relu, &[y]).unwrap()
            }),
        ),
        (
            "layer norm",
            image(&|g, x| {
                let (gamma, beta) = (constant(g, "gamma", &[5], 3), constant(g, "beta", &[5], 4));
                let y = g.add("ln", LayerNormalization::default(), &[x, gamma, beta]).unwrap();
                let wide = constant(g, "wide", &[6, 5], 9);
                g.add("y", LayerNormalization { axis: 2, epsilon: 1e-3 }, &[y, wide]).unwrap()
            }),
        ),
        (
            "arithmetic",
            image(&|g, x| {
                let (channel, scalar) = (constant(g, "c", &[1, 4, 1, 1], 3), constant(g, "s", &[], 9));
                let (row, wide) = (constant(g, "r", &[5], 4), constant(g, "w", &[4, 6, 5], 9));
                let a = g.add("a", Sub, &[channel, x]).unwrap();
                let b = g.add("b", Div, &[a, scalar]).unwrap();
                let c = g.add("c1", Mul, &[b, row]).unwrap();
                let d = g.add("d", Div, &[c, wide]).unwrap();
                let e = g.add("e", Add, &[d, d]).unwrap();
                let f = g.add("f", Sub, &[x, e]).unwrap();
                g.add("y", Mul, &[f, a]).unwrap()
            }),
        ),
        (
            "squeeze and excite",
            image(&|g, x| {
                let mean = g.add("mean", GlobalAveragePool, &[x]).unwrap();
                let w = constant(g, "w", &[4, 4, 1, 1], 5);
                let gate = g.add("fc", Conv { groups: 1, window: Window::default() }, &[mean, w]).unwrap();
                let gate = g.add("gate", Sigmoid, &[gate]).unwrap();
                g.add("y", Mul, &[x, gate]).unwrap()
            }),
        ),
        (
            "convolutions",
            image(&|g, x| {
                let w = constant(g, "w", &[6, 2, 3, 2], 5);
                let b = constant(g, "b", &[6], 6);
                let y = g.add("conv", Conv { groups: 2, window: window.clone() }, &[x, w, b]).unwrap();
                let w = constant(g, "dw", &[6, 1, 2, 2], 7);
                let z = g.add("depthwise", Conv { groups: 6, window: Window::default() }, &[y, w]).unwrap();
                let r = g.add("relu", Relu, &[z]).unwrap();
                let w = constant(g, "pw", &[6, 6, 1, 1], 8);
                let p = g.add("pointwise", Conv { groups: 1, window: Window::default() }, &[r, w]).unwrap();
                g.add("y", Add, &[p, r]).unwrap()
            }),
        ),
        (
            "linear",
            image(&|g, x| {
                let flat = g.add("flat", Flatten::default(), &[x]).unwrap();
                let (w, b) = (constant(g, "w", &[120, 7], 5), constant(g, "b", &[1, 7], 6));
                let gemm = Gemm { alpha: 0.5, beta: 2.0, trans_a: false, trans_b: false };
                let y = g.add("fc", gemm, &[flat, w, b]).unwrap();
                let r = g.add("relu", Relu, &[y]).unwrap();
                let w = constant(g, "w2", &[7, 3], 7);
                g.add("y", MatMul, &[r, w]).unwrap()
            }),
        ),
        (
            "matrices",
            image(&|g, x| {
                let t = g.add("t", Transpose { perm: Some(vec![0, 1, 3, 2]) }, &[x]).unwrap();
                let y = g.add("square", MatMul, &[x, t]).unwrap();
                let w = constant(g, "w", &[6, 2], 5);
                g.add("y", MatMul, &[y, w]).unwrap()
            }),
        ),
        (
            "one-dimensional",
            image(&|g, x| {
                let flat = g.add("lines", Reshape { shape: vec![0, 4, 30], allow_zero: false }, &[x]).unwrap();
                let w = constant(g, "w", &[5, 4, 3], 5);
                let window = Window { strides: vec![2], pads: vec![1, 1], dilations: vec![2], ..Window::default() };
                let y = g.add("conv", Conv { groups: 1, window }, &[flat, w]).unwrap();
                g.add("y", MaxPool { kernel: vec![2], window: Window::uniform(1, 2, 0) }, &[y]).unwrap()
            }),
        ),
        (
            "constant node",
            image(&|g, x| {
                let c = g.add("c", Constant { value: Tensor::f32([5], noise(5, 4)).unwrap() }, &[]).unwrap();
                g.add("y", Add, &[c, x]).unwrap()
            }),
        ),
    ];
    out.extend(more);
    out
}

/// Every operator in float, grouped or not, on one thread or two.
#[test]
fn every_operator_runs_in_float() {
    for (name, graph) in zoo_of_operators() {
        let model = Model::new(name, graph);
        let x = batch_of(&model, 5, 11);
        let expected = &simulate(&model, std::slice::from_ref(&x), false)[&model.graph.outputs()[0]];
        for threads in [1, 2] {
            let session = Session::from_model(&model, SessionOptions { threads, ..FAST }).unwrap();
            let got = session.run(x.as_f32().unwrap(), 5).unwrap();
            assert_close(name, &got, expected.as_f32().unwrap(), 1e-5);
        }
    }
}

/// The same with quantized inputs, weights and activations.
#[test]
fn every_operator_runs_after_codes() {
    for (name, graph) in zoo_of_operators() {
        for (kind, bits) in [(0, 4), (2, 8), (4, 1)] {
            let mut model = Model::new(name, graph.clone());
            let x = model.graph.inputs()[0].value;
            let spec = QuantSpec {
                grid: Grid::Affine { signed: true, symmetric: false },
                bits: 6,
                per: Granularity::PerTensor,
            };
            round_weights(&mut model, |_| Some(weight_spec(kind, bits, true)));
            model.add_activation_sites(spec, spec).unwrap();
            let site = bitsmith_graph::Site { role: bitsmith_graph::Role::Input, spec, params: None };
            model.sites.entry(x).or_insert(site);
            let sample = batch_of(&model, 2, 12);
            calibrate(&mut model, &[sample]);
            let frozen = freeze(model.clone()).unwrap();
            let (got, expected) = run_both(&model, &frozen, &batch_of(&model, 3, 13));
            assert_close(&format!("{name} {kind} {bits}"), &got, &expected, 0.05);
        }
    }
}

/// Queries, keys, values and their weights as codes: all products of a transformer are of integers.
#[test]
fn attention_multiplies_codes() {
    let options = ZooOptions { input: Some([3, 12, 20]), seed: 3, ..ZooOptions::default() };
    let mut model = zoo::build("vit-tiny", &options).unwrap();
    round_weights(&mut model, |_| Some(weight_spec(0, 8, true)));
    let spec =
        |signed| QuantSpec { grid: Grid::Affine { signed, symmetric: false }, bits: 8, per: Granularity::PerTensor };
    model.add_activation_sites(spec(true), spec(true)).unwrap();
    let operands = model.attention_values();
    let names: Vec<&str> = operands[..4].iter().map(|&id| &*model.graph.value(id).name).collect();
    assert_eq!(names, ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v", "blocks.0.attn.softmax"]);
    for id in operands {
        let params = match model.graph.value(id).name.ends_with("softmax") {
            true => bitsmith_graph::QParams::per_tensor(8, false, 1.0 / 255.0, 0),
            false => bitsmith_graph::QParams::per_tensor(8, true, 0.03, 0),
        };
        let role = bitsmith_graph::Role::Activation;
        model.sites.insert(id, bitsmith_graph::Site { role, spec: params.spec, params: Some(params) });
    }
    let sample = batch_of(&model, 2, 77);
    calibrate(&mut model, &[sample]);
    let frozen = freeze(model.clone()).unwrap();
    for batch in [1, 3] {
        let (got, expected) = run_both(&model, &frozen, &batch_of(&model, batch, 5));
        assert_close("vit-tiny", &got, &expected, 0.05);
    }
    let session = Session::new(&frozen, FAST).unwrap();
    for (node, report) in frozen.graph().nodes().iter().zip(session.arithmetic()) {
        if let Op::MatMul(_) = node.op {
            assert_eq!(report.arithmetic, Arithmetic::Integer, "{report:?}");
        }
    }
}

/// A model may go once its session is there: its codes are in memory only once, packed.
#[test]
fn a_session_keeps_no_constants_of_its_graph() {
    let frozen = freeze(quantized(architecture("mlp"), &[weight_spec(0, 4, false)], 4, 8)).unwrap();
    let session = Session::new(&frozen, FAST).unwrap();
    let (graph, whole) = (session.graph(), frozen.graph());
    assert!(graph.value_ids().all(|id| graph.constant(id).is_none()));
    assert!(whole.value_ids().any(|id| whole.constant(id).is_some()));
    for batch in [1, 5] {
        assert_eq!(graph.shapes(batch).unwrap(), whole.shapes(batch).unwrap());
    }
    assert_eq!(graph.outline(), *graph);
}

/// Quantized constants are numbers wherever they are read, not only as weights.
#[test]
fn quantized_biases_and_factors_are_decoded() {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(4)]).unwrap();
    let w = g.add_constant("w", Tensor::f32([3, 4], noise(12, 1)).unwrap()).unwrap();
    let b = g.add_constant("b", Tensor::floats(vec![0.5, -0.25, 1.0])).unwrap();
    let y = g.add("fc", Gemm::default(), &[x, w, b]).unwrap();
    let factor = g.add_constant("factor", Tensor::f32([3, 2], vec![0.25, -0.5, 0.75, 0.0, 0.5, 1.0]).unwrap()).unwrap();
    let t = g.add("t", Transpose { perm: None }, &[factor]).unwrap();
    let t = g.add("tt", Transpose { perm: None }, &[t]).unwrap();
    let z = g.add("z", MatMul, &[y, t]).unwrap();
    g.set_outputs(vec![z, factor]);
    let mut model = Model::new("m", g);
    round_weights(&mut model, |_| Some(weight_spec(0, 4, true)));
    let params = bitsmith_graph::QParams::signed(4, true, Granularity::PerTensor, vec![0.25]);
    for (id, role) in [(b, bitsmith_graph::Role::Bias), (factor, bitsmith_graph::Role::Weight)] {
        model.sites.insert(id, bitsmith_graph::Site { role, spec: params.spec, params: Some(params.clone()) });
    }
    let x = batch_of(&model, 3, 4);
    let frozen = freeze(model.clone()).unwrap();
    let session = Session::new(&frozen, FAST).unwrap();
    let got = session.run_named(&[("x".to_owned(), x.clone())].into()).unwrap();
    let expected = &simulate(&model, &[x], false)[&z];
    assert_close("z", got["z"].as_f32().unwrap(), expected.as_f32().unwrap(), 1e-5);
    assert_eq!(got["factor"].as_f32().unwrap(), [0.25, -0.5, 0.75, 0.0, 0.5, 1.0]);
}

#[test]
fn integers_of_shapes_run() {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(3)]).unwrap();
    let shape = g.add("shape", ShapeOf { start: 0, end: None }, &[x]).unwrap();
    let first = g.add_constant("first", Tensor::int(0)).unwrap();
    let batch = g.add("batch", Gather { axis: 0 }, &[shape, first]).unwrap();
    let float = g.add("float", Cast { to: 1 }, &[batch]).unwrap();
    let y = g.add("y", Div, &[x, float]).unwrap();
    g.set_outputs(vec![y, batch]);
    let session = Session::from_model(&Model::new("m", g), SessionOptions { threads: 2, ..FAST }).unwrap();
    let x = Tensor::f32([2, 3], vec![2.0, 4.0, 6.0, 8.0, 10.0, 12.0]).unwrap();
    let out = session.run_named(&[("x".to_owned(), x)].into()).unwrap();
    assert_eq!(out["y"].as_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(out["batch"], Tensor::int(2));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let session = Session::from_model(&architecture("cnn"), FAST).unwrap();
    let fails = |inputs: &[(&str, Tensor)]| {
        let inputs: BTreeMap<_, _> = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        let error = session.run_named(&inputs).unwrap_err();
        assert_eq!(error.kind, Kind::Input);
        error.to_string()
    };
    let name = session.graph().value(session.graph().inputs()[0].value).name.clone();
    let zeros = |shape: &[usize]| Tensor::f32(shape, vec![0.0; shape.iter().product()]).unwrap();
    let good = zeros(&[2, 1, 8, 8]);
    assert_eq!(fails(&[]), format!("`{name}`: this input [batch, 1, 8, 8] is missing; given are []"));
    assert_eq!(
        fails(&[(&name, zeros(&[2, 3, 8, 8]))]),
        format!("`{name}`: given is [2, 3, 8, 8] but [batch, 1, 8, 8] is expected")
    );
    assert_eq!(fails(&[(&name, zeros(&[64]))]), format!("`{name}`: given is [64] but [batch, 1, 8, 8] is expected"));
    assert!(fails(&[(&name, good.clone()), ("z", good)]).starts_with("`z`: the model has no such input"));
    let ints = Tensor::new([1, 1, 8, 8], Data::I64(vec![0; 64])).unwrap();
    assert_eq!(fails(&[(&name, ints)]), format!("`{name}`: given is I64 but F32 is expected"));
    let mut nan = vec![0.0; 64];
    nan[3] = f32::NAN;
    assert_eq!(
        fails(&[(&name, Tensor::f32([1, 1, 8, 8], nan).unwrap())]),
        format!("`{name}`: element 3 of 64 is not a number")
    );
    let error = session.run(&[0.0; 65], 1).unwrap_err().to_string();
    assert_eq!(error, format!("`{name}`: 65 values given but 1 samples of [1, 1, 8, 8] are expected"));
    assert!(session.run(&[], 0).unwrap_err().to_string().contains("at least one"));
}

#[test]
fn a_session_is_shared_between_threads() {
    fn check<T: Send + Sync>(_: &T) {}
    let session = Session::from_model(&architecture("mlp"), FAST).unwrap();
    check(&session);
    let expected = session.run(&noise(64, 1), 1).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(session.run(&noise(64, 1), 1).unwrap(), expected));
        }
    });
}

/// A random stack of layers: convolutions, batch norms, activations, poolings, residuals.
fn random_network(choices: &[(u8, u8)], weights: &[QuantSpec]) -> Model {
    let mut g = Graph::new();
    let mut x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(6), Dim::Fixed(6)]).unwrap();
    let (mut channels, mut size) = (3, 6);
    for (index, &(kind, detail)) in choices.iter().enumerate() {
        let name = format!("n{index}");
        let detail = usize::from(detail);
        let seed = (index * 31 + detail) as u32;
        x = match kind % 8 {
            0 | 1 => {
                let (kernel, stride) = (1 + detail % 3, 1 + detail / 3 % 2);
                let out = 1 + detail % 19;
                let values = noise(out * channels * kernel * kernel, seed);
                let w = Tensor::f32([out, channels, kernel, kernel], values).unwrap();
                let w = g.add_constant(&format!("{name}.weight"), w).unwrap();
                size = (size + 2 * (kernel / 2) - kernel) / stride + 1;
                channels = out;
                g.add(&name, Conv { groups: 1, window: Window::uniform(2, stride, kernel / 2) }, &[x, w]).unwrap()
            }
            2 => {
                let p = (0..4).map(|i| {
                    let values = noise(channels, seed + i).iter().map(|v| if i == 3 { v + 1.2 } else { *v }).collect();
                    g.add_constant(&format!("{name}.{i}"), Tensor::floats(values)).unwrap()
                });
                let p: Vec<_> = p.collect();
                g.add(&name, BatchNormalization::default(), &[x, p[0], p[1], p[2], p[3]]).unwrap()
            }
            3 => g.add(&name, Relu, &[x]).unwrap(),
            4 => g.add(&name, HardSwish, &[x]).unwrap(),
            5 if size >= 2 => {
                size = (size - 2) / 2 + 1;
                g.add(&name, MaxPool { kernel: vec![2, 2], window: Window::uniform(2, 2, 0) }, &[x]).unwrap()
            }
            6 => {
                let w = Tensor::f32([channels, 1, 3, 3], noise(channels * 9, seed)).unwrap();
                let w = g.add_constant(&format!("{name}.weight"), w).unwrap();
                let y = g.add(&name, Conv { groups: channels, window: Window::uniform(2, 1, 1) }, &[x, w]).unwrap();
                g.add(&format!("{name}.add"), Add, &[y, x]).unwrap()
            }
            _ => {
                let y = g.add(&name, LeakyRelu { alpha: 0.2 }, &[x]).unwrap();
                channels *= 2;
                g.add(&format!("{name}.cat"), Concat { axis: 1 }, &[y, x]).unwrap()
            }
        };
    }
    let w = Tensor::f32([4, channels], noise(4 * channels, 3)).unwrap();
    let w = g.add_constant("fc.weight", w).unwrap();
    let pooled = g.add("pool", GlobalAveragePool, &[x]).unwrap();
    let flat = g.add("flat", Flatten::default(), &[pooled]).unwrap();
    let y = g.add("fc", Gemm::default(), &[flat, w]).unwrap();
    g.set_outputs(vec![y]);
    let mut model = Model::new("random", g);
    round_weights(&mut model, |i| Some(weights[i % weights.len()]));
    model
}

/// Fast equals reference, and both are what the simulator says, or says once values in the middle between two codes go up or down.
fn check_random(choices: &[(u8, u8)], weights: &[(usize, u8, bool)], bits: u8, batch: usize) {
    let weights: Vec<_> = weights.iter().map(|&(kind, bits, per)| weight_spec(kind, bits, per)).collect();
    let mut model = random_network(choices, &weights);
    let spec = QuantSpec { grid: Grid::Affine { signed: false, symmetric: false }, bits, per: Granularity::PerTensor };
    model.add_activation_sites(spec, spec).unwrap();
    let sample = batch_of(&model, 2, 70);
    calibrate(&mut model, &[sample]);
    let frozen = freeze(model.clone()).unwrap();
    let x = batch_of(&model, batch, 71);
    let (got, expected) = run_both(&model, &frozen, &x);
    let nudged = [1e-4, -1e-4].map(|steps| {
        let values = simulate_nudged(&model, std::slice::from_ref(&x), true, steps);
        values[&model.graph.outputs()[0]].as_f32().unwrap().to_vec()
    });
    let distance = |other: &[f32]| got.iter().zip(other).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let all = [&expected, &nudged[0], &nudged[1]];
    let nearest = all.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
    // A step of a narrow grid is a large share of such a network's range.
    assert_close("random", &got, nearest, 0.5 / f32::from(bits));
}

/// A value of three bits in the middle between two codes, which integers round to one and floats to the other.
#[test]
fn ties_may_fall_to_either_side() {
    let choices = [(8, 20), (88, 239), (24, 95), (27, 0), (77, 0), (8, 91), (86, 0), (0, 2)];
    check_random(&choices, &[(4, 1, false), (4, 8, false), (0, 8, false)], 3, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn fast_equals_reference_on_random_networks(
        choices in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..9),
        weights in proptest::collection::vec((0usize..5, 1u8..=8, any::<bool>()), 1..4),
        bits in 2u8..=8, batch in 1usize..4,
    ) {
        check_random(&choices, &weights, bits, batch);
    }
}

/// Every step is measured once per run, however samples are grouped, and products are counted for the whole batch.
#[test]
fn profiles_count_every_step() {
    let model = architecture("resnet20");
    let frozen = freeze(quantized(model, &[weight_spec(0, 4, false)], 4, 8)).unwrap();
    for (threads, batch) in [(1, 1), (1, 3), (2, 5)] {
        let session = Session::new(&frozen, SessionOptions { threads, ..FAST }).unwrap();
        let x = noise(batch * 3 * 32 * 32, 4);
        let profile = session.profile(&x, batch, 2).unwrap();
        let macs: u64 = profile.iter().map(|step| step.macs).sum();
        // 40.55 million for one image: 19 convolutions and the classifier.
        assert_eq!(macs, batch as u64 * 40_551_040, "{threads} threads, batch {batch}");
        assert!(profile.iter().filter(|step| step.macs > 0).all(|step| !step.time.is_zero() && step.bytes > 0));
        assert_eq!(session.run(&x, batch).unwrap(), Session::new(&frozen, FAST).unwrap().run(&x, batch).unwrap());
    }
}
