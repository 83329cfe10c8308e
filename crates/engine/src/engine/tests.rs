//! Whole networks: against the composed operators, finite differences, themselves, and nonsense.

use bitsmith_graph::ops::{
    Add, AveragePool, BatchNormalization, Concat, Conv, Div, Flatten, Gather, Gemm, GlobalAveragePool, HardSigmoid,
    Identity, LogSoftmax, MatMul, MaxPool, Mul, Pad, PadMode, ReduceMean, Relu, Reshape, Slice, Softmax, Split,
    Squeeze, Sub, Tanh, Transpose, Unsqueeze, Window,
};
use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{Dim, Graph, Model, Op, QParams, Role as SiteRole, Site, Tensor, ValueId};
use bitsmith_kernels::conv::Precision;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::loss::Distill;

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    let scale = b.iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what} [{i}]: {a} against {b}");
    }
}

fn built(name: &str, input: [usize; 3]) -> Model {
    zoo::build(name, &ZooOptions { classes: Some(5), input: Some(input), seed: 3 }).unwrap()
}

fn engine(model: &Model, operators: Operators) -> Engine {
    Engine::new(model, &EngineOptions { operators, ..EngineOptions::default() }).unwrap()
}

/// Adds calibrated activation sites of this many bits.
fn quantize(model: &mut Model, bits: u8, scale: f32) {
    for id in model.activation_values().unwrap().into_iter().chain(model.attention_values()) {
        let is_input = model.graph.inputs().iter().any(|i| i.value == id);
        let params = QParams::per_tensor(bits, is_input, scale, 0);
        let role = if is_input { SiteRole::Input } else { SiteRole::Activation };
        model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
    }
}

/// A residual network with a smooth activation, small enough for finite differences.
fn smooth_net() -> Model {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(2), Dim::Fixed(5), Dim::Fixed(4)]).unwrap();
    let norm = |g: &mut Graph, name: &str, x, c: usize, seed| {
        let constant = |g: &mut Graph, part: &str, v: Vec<f32>| {
            g.add_constant(&format!("{name}.{part}"), Tensor::floats(v)).unwrap()
        };
        let gamma = constant(g, "gamma", random(seed, c).iter().map(|v| 1.0 + 0.3 * v).collect());
        let beta = constant(g, "beta", random(seed + 1, c));
        let mean = constant(g, "mean", vec![0.0; c]);
        let var = constant(g, "var", vec![1.0; c]);
        g.add(name, BatchNormalization { epsilon: 1e-2, momentum: 0.9 }, &[x, gamma, beta, mean, var]).unwrap()
    };
    let conv = |g: &mut Graph, name: &str, x, [o, i, k]: [usize; 3], groups, seed| {
        let w = Tensor::f32([o, i / groups, k, k], random(seed, o * i / groups * k * k)).unwrap();
        let w = g.add_constant(&format!("{name}.weight"), w).unwrap();
        g.add(name, Conv { groups, window: Window::uniform(2, 1, k / 2) }, &[x, w]).unwrap()
    };
    let a = conv(&mut g, "conv1", x, [4, 2, 3], 1, 1);
    let a = norm(&mut g, "bn1", a, 4, 10);
    let a = g.add("act1", Tanh, &[a]).unwrap();
    let b = conv(&mut g, "conv2", a, [4, 4, 3], 4, 2);
    let b = norm(&mut g, "bn2", b, 4, 20);
    let b = g.add("sum", Add, &[b, a]).unwrap();
    let b = g.add("act2", Tanh, &[b]).unwrap();
    let p = g.add("pool", GlobalAveragePool, &[b]).unwrap();
    let p = g.add("flat", Flatten { axis: 1 }, &[p]).unwrap();
    let w = g.add_constant("fc.weight", Tensor::f32([3, 4], random(5, 12)).unwrap()).unwrap();
    let bias = g.add_constant("fc.bias", Tensor::floats(random(6, 3))).unwrap();
    let y = g.add("fc", Gemm::default(), &[p, w, bias]).unwrap();
    g.set_outputs(vec![y]);
    Model::new("smooth", g)
}

#[test]
fn architectures_agree_with_composed_operators() {
    for (name, input) in [
        ("resnet20", [3, 8, 8]),
        ("resnet8", [3, 16, 16]),
        ("mobilenetv2", [3, 16, 16]),
        ("resnet18", [3, 16, 16]),
        ("squeezenet1_1", [3, 40, 40]),
        ("cnn", [1, 8, 8]),
        ("mlp", [1, 8, 8]),
    ] {
        let model = built(name, input);
        let params = Params::from_model(&model);
        let batch = 2;
        let x = random(7, batch * input.iter().product::<usize>());
        let fused = engine(&model, Operators::Fused).forward(&params, &x, batch).unwrap();
        let composed = engine(&model, Operators::Composed).forward(&params, &x, batch).unwrap();
        assert_eq!(fused.len(), batch * 5, "{name}");
        close(name, &fused, &composed, 1e-4);
    }
}

#[test]
fn a_training_step_agrees_with_composed_operators() {
    for (name, bits) in [
        ("resnet20", None),
        ("resnet20", Some(8)),
        ("mobilenetv2", None),
        ("cnn", Some(8)),
        ("vit-tiny", None),
        ("vit-tiny", Some(8)),
    ] {
        let input = if name == "cnn" { [1, 8, 8] } else { [3, 8, 8] };
        let mut model = built(name, input);
        // A coarse grid would turn the last bit of a sum into a whole step somewhere; a fine one keeps both together.
        bits.into_iter().for_each(|bits| quantize(&mut model, bits, 0.05));
        // With this input no value lies so close to a half that two orders of summation round it differently.
        let x = random(9, 6 * input.iter().product::<usize>());
        let labels = [0, 1, 2, 3, 4, 0];
        for train_norm in [true, false] {
            // Fifty normalisations over six values each amplify the last bit of a sum beyond any tolerance.
            if name == "mobilenetv2" && train_norm {
                continue;
            }
            let options = StepOptions { update_statistics: true, train_norm };
            let run = |operators| {
                let mut params = Params::from_model(&model);
                let out = engine(&model, operators).step(&mut params, &x, &labels, &Loss::default(), options);
                (out.unwrap(), params)
            };
            let ((fused, p), (composed, q)) = (run(Operators::Fused), run(Operators::Composed));
            let label = format!("{name} {bits:?} {train_norm}");
            close(&format!("{label}: loss"), &[fused.loss], &[composed.loss], 1e-3);
            assert_eq!(fused.constants.len(), composed.constants.len());
            if bits.is_some() {
                // Somewhere a value falls to the other side of a half: gradients agree in the mean only.
                let sums = |out: &StepOutput| out.steps.values().map(|g| g.abs()).sum::<f32>();
                assert!((sums(&fused) / sums(&composed) - 1.0).abs() < 0.2, "{label}");
                assert_eq!(fused.steps.len(), model.sites.len());
                continue;
            }
            for (id, gradient) in &fused.constants {
                let name = &model.graph.value(*id).name;
                close(&format!("{label}: {name}"), gradient, &composed.constants[id], 2e-3);
            }
            for (id, values) in &p.constants {
                close(&format!("{label}: statistics"), values, &q.constants[id], 1e-4);
            }
        }
    }
}

/// Forward and a step of whole networks on every GPU that this build and machine have. Says so where there is none.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[test]
fn a_training_step_on_a_gpu_agrees_with_the_cpu() {
    for device in [Device::Cuda, Device::Wgpu] {
        if let Err(error) = device.check() {
            eprintln!("not compared on {device}: {error}");
            continue;
        }
        // Tensor cores round factors to 11 bits, and layers add that up.
        let tolerance = if device == Device::Cuda { 3e-2 } else { 5e-3 };
        let networks = [
            ("smooth", [2, 5, 4], None),
            ("cnn", [1, 8, 8], None),
            ("cnn", [1, 8, 8], Some(8)),
            ("vit-tiny", [3, 8, 8], None),
            ("resnet20", [3, 8, 8], None),
            ("mobilenetv2", [3, 8, 8], None),
        ];
        // Behind wgpu may be a software driver, which takes minutes to time kernels for the larger ones.
        let count = if device == Device::Cuda { networks.len() } else { 3 };
        for (name, input, bits) in networks.into_iter().take(count) {
            let mut model = if name == "smooth" { smooth_net() } else { built(name, input) };
            bits.into_iter().for_each(|bits| quantize(&mut model, bits, 0.05));
            let x = random(9, 6 * input.iter().product::<usize>());
            let labels = [0, 1, 2, 1, 2, 0];
            // Fifty normalisations over six values each amplify the last bit of a sum beyond any tolerance.
            let options = StepOptions { train_norm: name != "mobilenetv2", update_statistics: true };
            let run = |device| {
                let options_of_engine =
                    EngineOptions { device, operators: Operators::Composed, ..EngineOptions::default() };
                let engine = Engine::new(&model, &options_of_engine).unwrap();
                let mut params = Params::from_model(&model);
                let out = engine.step(&mut params, &x, &labels, &Loss::default(), options).unwrap();
                (engine.forward(&params, &x, 6).unwrap(), out, params)
            };
            let ((logits, out, params), (expected, out_here, params_here)) = (run(device), run(Device::Cpu));
            let label = format!("{name} {bits:?} on {device}");
            close(&format!("{label}: loss"), &[out.loss], &[out_here.loss], tolerance);
            close(&format!("{label}: inference"), &logits, &expected, tolerance);
            assert_eq!(out.constants.len(), out_here.constants.len());
            for (id, values) in &params_here.constants {
                close(&format!("{label}: statistics"), &params.constants[id], values, tolerance);
            }
            let sums = |out: &StepOutput| out.steps.values().map(|g| g.abs()).sum::<f32>();
            if bits.is_some() {
                // Somewhere a value falls to the other side of a half: gradients agree in the mean only.
                assert!((sums(&out) / sums(&out_here) - 1.0).abs() < 0.2, "{label}");
                continue;
            }
            for (id, gradient) in &out_here.constants {
                let name = &model.graph.value(*id).name;
                close(&format!("{label}: {name}"), &out.constants[id], gradient, tolerance);
            }
        }
    }
}

#[test]
fn gradients_of_a_network_match_finite_differences() {
    let model = smooth_net();
    let engine = engine(&model, Operators::Fused);
    let (x, labels) = (random(1, 4 * 40), [0, 2, 1, 1]);
    let teacher_logits = random(2, 12);
    let distill = Some(Distill { teacher_logits, temperature: 2.0, weight: 0.4 });
    let loss = Loss { label_smoothing: 0.1, distill, ..Loss::default() };
    for train_norm in [true, false] {
        let options = StepOptions { update_statistics: false, train_norm };
        let mut params = Params::from_model(&model);
        let out = engine.step(&mut params, &x, &labels, &loss, options).unwrap();
        assert_eq!(params, Params::from_model(&model), "nothing is updated unasked");
        for (id, gradient) in &out.constants {
            let direction = random(77, gradient.len());
            let at = |h: f32| {
                let mut moved = params.clone();
                let values = moved.constants.get_mut(id).unwrap();
                values.iter_mut().zip(&direction).for_each(|(v, d)| *v += h * d);
                f64::from(engine.step(&mut moved, &x, &labels, &loss, options).unwrap().loss)
            };
            let h = 1e-2;
            let numeric = (at(h) - at(-h)) / (2.0 * f64::from(h));
            let exact: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            // The loss is rounded to f32: 1e-7 over 2h is 1e-5; truncation is of the same order.
            let name = &model.graph.value(*id).name;
            assert!((numeric - exact).abs() < 2e-4, "{name}, {train_norm}: {numeric} against {exact}");
        }
    }
}

#[test]
fn steps_that_stay_have_no_gradient_and_change_no_other() {
    let mut model = built("resnet8", [3, 8, 8]);
    quantize(&mut model, 4, 0.2);
    let (x, labels) = (random(1, 4 * 192), [0, 1, 2, 3]);
    let engine = engine(&model, Operators::Fused);
    let step = |still: Vec<ValueId>| {
        let mut params = Params { still: still.into_iter().collect(), ..Params::from_model(&model) };
        engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default()).unwrap()
    };
    let sites: Vec<ValueId> = Params::from_model(&model).steps.into_keys().collect();
    let (all, none) = (step(vec![]), step(sites.clone()));
    // That of the input besides the others': nothing else leads to it.
    let input = step(vec![model.graph.inputs()[0].value]);
    assert!(sites.iter().all(|id| all.steps[id] != 0.0 && none.steps[id] == 0.0));
    assert!(sites.iter().all(|id| input.steps[id] == all.steps[id] || *id == model.graph.inputs()[0].value));
    for out in [none, input] {
        assert!((out.loss, &out.constants) == (all.loss, &all.constants));
    }
}

#[test]
fn products_of_integers_give_the_same_step() {
    let mut model = built("mlp", [1, 8, 8]);
    // Steps without common factors: no sum lies half-way between two codes.
    quantize(&mut model, 4, 0.2371);
    let (x, labels) = (random(1, 6 * 64), [0, 1, 2, 3, 4, 0]);
    let engine = engine(&model, Operators::Fused);
    let mut params = Params::from_model(&model);
    // Weights on grids, each output channel on one of its own.
    let mut grids = BTreeMap::new();
    for layer in model.layers().unwrap() {
        let w = params.constants.get_mut(&layer.weight).unwrap();
        let shape = model.graph.constant(layer.weight).unwrap().shape();
        let channels = shape[layer.channel_axis];
        let steps: Vec<f32> = (0..channels).map(|c| 0.0517 + 0.0113 * (c % 3) as f32).collect();
        for (i, w) in w.iter_mut().enumerate() {
            let step = steps[if layer.channel_axis == 0 { i / (shape[1]) } else { i % channels }];
            *w = step * (*w / step).round().clamp(-7.0, 7.0);
        }
        grids.insert(layer.weight, steps);
        // Integers can cancel exactly, where a float is left with a little on either side of a ReLU's kink.
        if let Some(bias) = layer.bias.and_then(|id| params.constants.get_mut(&id)) {
            bias.iter_mut().for_each(|b| *b += 0.0137);
        }
    }
    let step = |grids| {
        let mut params = Params { grids, ..params.clone() };
        engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default()).unwrap()
    };
    let (floats, integers) = (step(BTreeMap::new()), step(grids));
    assert!(floats.logits != integers.logits, "integers were not used");
    close("logits", &integers.logits, &floats.logits, 1e-4);
    for (id, gradient) in &floats.constants {
        close(&model.graph.value(*id).name, &integers.constants[id], gradient, 1e-3);
    }
}

#[test]
fn the_same_step_gives_the_same_bits() {
    let mut model = built("resnet20", [3, 16, 16]);
    quantize(&mut model, 4, 0.2);
    let (x, labels) = (random(1, 8 * 768), [0, 1, 2, 3, 4, 0, 1, 2]);
    let run = || {
        let engine = engine(&model, Operators::Fused);
        let mut params = Params::from_model(&model);
        let outs: Vec<_> = (0..3)
            .map(|_| {
                let out = engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default()).unwrap();
                for (id, g) in &out.constants {
                    params.constants.get_mut(id).unwrap().iter_mut().zip(g).for_each(|(w, g)| *w -= 0.1 * g);
                }
                out
            })
            .collect();
        (outs, params)
    };
    assert!(run() == run());
}

#[test]
fn training_learns_and_moves_the_statistics() {
    let model = built("cnn", [1, 8, 8]);
    let engine = engine(&model, Operators::Fused);
    let mut params = Params::from_model(&model);
    let before = params.clone();
    let (x, labels): (_, Vec<u32>) = (random(1, 20 * 64), (0..20).map(|i| i % 5).collect());
    let mut optimizer = crate::optim::Optimizer::new(crate::optim::Algorithm::Sgd(Default::default()));
    let rates = crate::optim::Rates { learning_rate: 0.05, weight_decay: 0.0 };
    let mut losses = vec![];
    for _ in 0..30 {
        let out = engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default()).unwrap();
        losses.push(out.loss);
        for (id, g) in &out.constants {
            let values = params.constants.get_mut(id).unwrap();
            optimizer.update(&model.graph.value(*id).name, values, g, rates);
        }
    }
    assert!(losses[29] < 0.3 * losses[0], "{losses:?}");
    let statistics = engine.parameters().into_iter().filter(|p| matches!(p.role, Role::Mean | Role::Variance));
    for p in statistics {
        assert_ne!(params.constants[&p.id], before.constants[&p.id]);
    }
}

#[test]
fn values_inside_can_be_read() {
    let mut model = smooth_net();
    let find = |name: &str| model.graph.find(name).unwrap();
    let (x_id, bn1, act1, sum, fc) = (find("x"), find("bn1"), find("act1"), find("sum"), find("fc"));
    let x = random(1, 3 * 40);
    let params = Params::from_model(&model);
    let float = engine(&model, Operators::Fused);
    let values = float.forward_values(&params, &x, 3, &[fc, x_id, act1, bn1, sum]).unwrap();
    assert_eq!(values[0], float.forward(&params, &x, 3).unwrap());
    assert_eq!(values[1], x);
    assert_eq!(values[2].len(), 3 * 4 * 20);
    let tanh: Vec<f32> = values[3].iter().map(|v| v.tanh()).collect();
    close("tanh of the normalised value, in the graph's layout", &values[2], &tanh, 1e-6);
    let site = QParams::per_tensor(4, true, 0.125, 0);
    model.sites.insert(act1, Site { role: SiteRole::Activation, spec: site.spec, params: Some(site.clone()) });
    let params = Params::from_model(&model);
    let rounded = engine(&model, Operators::Fused).forward_values(&params, &x, 3, &[act1]).unwrap();
    let expected: Vec<f32> = values[2].iter().map(|&v| site.decode(site.encode(v, 0), 0)).collect();
    assert_eq!(rounded[0], expected, "bit for bit what the grid says");
}

/// Each operator once behind a layout-preserving identity and once behind a 1x1 convolution with an identity weight, which
/// makes the value channels-last: results must be equal, forward and backward.
#[test]
fn operators_agree_in_both_layouts() {
    type Build = fn(&mut Graph, ValueId) -> ValueId;
    let cases: [(&str, Build); 19] = [
        ("slice", |g, x| {
            let op = Slice {
                starts: vec![0, 5, -1],
                ends: vec![i64::MAX, 1, i64::MIN],
                axes: Some(vec![2, 3, 1]),
                steps: Some(vec![2, -2, -1]),
            };
            g.add("y", op, &[x]).unwrap()
        }),
        ("pad", |g, x| {
            let op = Pad { pads: vec![0, 2, 1, -1, 0, 1, 0, 2], axes: None, mode: PadMode::Constant, value: 0.5 };
            g.add("y", op, &[x]).unwrap()
        }),
        ("reflect", |g, x| {
            let op = Pad { pads: vec![1, 2, 1, 0], axes: Some(vec![2, 3]), mode: PadMode::Reflect, value: 0.0 };
            g.add("y", op, &[x]).unwrap()
        }),
        ("edge", |g, x| {
            let op = Pad { pads: vec![1, 2, 1, 0], axes: Some(vec![2, 3]), mode: PadMode::Edge, value: 0.0 };
            g.add("y", op, &[x]).unwrap()
        }),
        ("concat", |g, x| {
            let a = g.add("a", Relu, &[x]).unwrap();
            g.add("y", Concat { axis: 1 }, &[a, x]).unwrap()
        }),
        ("split", |g, x| {
            let op = Split { axis: 1, sizes: Some(vec![1, 2]), outputs: 0 };
            let parts = g.add_node("s", op, &[Some(x)], &["p", "q"]).unwrap();
            g.add("y", Concat { axis: -3 }, &[parts[1], parts[0]]).unwrap()
        }),
        ("transpose", |g, x| g.add("y", Transpose { perm: Some(vec![0, 2, 3, 1]) }, &[x]).unwrap()),
        ("mean over pixels", |g, x| g.add("y", ReduceMean { axes: Some(vec![2, 3]), keepdims: false }, &[x]).unwrap()),
        ("mean over channels", |g, x| g.add("y", ReduceMean { axes: Some(vec![1]), keepdims: true }, &[x]).unwrap()),
        ("softmax", |g, x| g.add("y", Softmax { axis: 1 }, &[x]).unwrap()),
        ("log-softmax", |g, x| g.add("y", LogSoftmax { axis: -1 }, &[x]).unwrap()),
        ("channel factors", |g, x| {
            let c = g.add_constant("c", Tensor::f32([3, 1, 1], vec![0.5, -1.0, 2.0]).unwrap()).unwrap();
            g.add("y", Mul, &[c, x]).unwrap()
        }),
        ("image offsets", |g, x| {
            let c = g.add_constant("c", Tensor::f32([4, 6], random(3, 24)).unwrap()).unwrap();
            g.add("y", Sub, &[x, c]).unwrap()
        }),
        ("divide by a number", |g, x| {
            let c = g.add_constant("c", Tensor::f32([], vec![3.0]).unwrap()).unwrap();
            g.add("y", Div, &[x, c]).unwrap()
        }),
        ("squeeze and excite", |g, x| {
            let p = g.add("p", GlobalAveragePool, &[x]).unwrap();
            let s = g.add("s", HardSigmoid { alpha: 0.2, beta: 0.5 }, &[p]).unwrap();
            let s = g.add("i", Identity, &[s]).unwrap();
            g.add("y", Mul, &[x, s]).unwrap()
        }),
        ("pools", |g, x| {
            let window = Window { strides: vec![2, 1], ceil_mode: true, ..Window::default() };
            let m = g.add("m", MaxPool { kernel: vec![2, 2], window: window.clone() }, &[x]).unwrap();
            g.add("y", AveragePool { kernel: vec![2, 1], window, count_include_pad: false }, &[m]).unwrap()
        }),
        ("attention", |g, x| {
            let shape = Reshape { shape: vec![0, 3, -1], allow_zero: false };
            let q = g.add("q", shape, &[x]).unwrap();
            let k = g.add("k", Transpose { perm: Some(vec![0, 2, 1]) }, &[q]).unwrap();
            let a = g.add("a", MatMul, &[q, k]).unwrap();
            let a = g.add("soft", Softmax { axis: -1 }, &[a]).unwrap();
            let v = g.add("v", MatMul, &[a, q]).unwrap();
            let w = g.add_constant("w", Tensor::f32([24, 5], random(9, 120)).unwrap()).unwrap();
            g.add("y", MatMul, &[v, w]).unwrap()
        }),
        ("one axis", |g, x| {
            let line = g.add("line", Reshape { shape: vec![0, 3, 24], allow_zero: false }, &[x]).unwrap();
            let w = g.add_constant("w", Tensor::f32([3, 1, 3], random(4, 9)).unwrap()).unwrap();
            let y = g.add("c1", Conv { groups: 3, window: Window::uniform(1, 2, 1) }, &[line, w]).unwrap();
            let y = g.add("r", Relu, &[y]).unwrap();
            let p = g.add("p", MaxPool { kernel: vec![2], window: Window::uniform(1, 2, 0) }, &[y]).unwrap();
            g.add("y", Add, &[p, p]).unwrap()
        }),
        ("gather, squeeze, unsqueeze", |g, x| {
            let i = g.add_constant("i", Tensor::int(-1)).unwrap();
            let a = g.add("a", Gather { axis: 1 }, &[x, i]).unwrap();
            let a = g.add("u", Unsqueeze { axes: vec![1] }, &[a]).unwrap();
            let a = g.add("s", Squeeze { axes: Some(vec![1]) }, &[a]).unwrap();
            g.add("y", Relu, &[a]).unwrap()
        }),
    ];
    for (name, build) in cases {
        let run = |last: bool, operators| {
            let mut g = Graph::new();
            let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(4), Dim::Fixed(6)]).unwrap();
            let eye = (0..9).map(|i| if i % 4 == 0 { 1.0 } else { 0.0 }).collect();
            let w = g.add_constant("eye", Tensor::f32([3, 3, 1, 1], eye).unwrap()).unwrap();
            let start = match last {
                true => g.add("start", Conv { groups: 1, window: Window::uniform(2, 1, 0) }, &[x, w]).unwrap(),
                false => g.add("start", Identity, &[x]).unwrap(),
            };
            let y = build(&mut g, start);
            // As logits, so that a step runs too.
            let flat = g.add("flat", Flatten { axis: 1 }, &[y]).unwrap();
            g.set_outputs(vec![flat]);
            let model = Model::new(name, g);
            let mut params = Params::from_model(&model);
            let engine = engine(&model, operators);
            let x = random(8, 2 * 72);
            let out = engine.forward(&params, &x, 2).unwrap();
            let step = engine.step(&mut params, &x, &[0, 1], &Loss::default(), StepOptions::default()).unwrap();
            close(&format!("{name}: training and inference"), &step.logits, &out, 1e-6);
            (out, step.constants.get(&w).cloned())
        };
        let (first, _) = run(false, Operators::Fused);
        let (last, gradient) = run(true, Operators::Fused);
        let (composed, expected) = run(true, Operators::Composed);
        close(&format!("{name}: layouts"), &last, &first, 1e-5);
        close(&format!("{name}: composed"), &composed, &first, 1e-5);
        close(&format!("{name}: gradient"), &gradient.unwrap(), &expected.unwrap(), 1e-4);
    }
}

#[test]
fn what_cannot_be_trained_is_named() {
    let refuse = |dims: Vec<Dim>, build: &dyn Fn(&mut Graph, ValueId) -> ValueId| {
        let mut g = Graph::new();
        let x = g.add_input("x", dims).unwrap();
        let y = build(&mut g, x);
        g.set_outputs(vec![y]);
        Engine::new(&Model::new("m", g), &EngineOptions::default()).unwrap_err().to_string()
    };
    let image = || vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(4), Dim::Fixed(4)];
    let message = refuse(image(), &|g, x| {
        g.add("shape", Op::ShapeOf(bitsmith_graph::ops::ShapeOf { start: 0, end: None }), &[x]).unwrap()
    });
    assert!(message.contains("output does not follow the batch size"), "{message}");
    let message = refuse(image(), &|g, x| {
        let window = Window { dilations: vec![2, 2], ..Window::default() };
        g.add("pool", MaxPool { kernel: vec![2, 2], window }, &[x]).unwrap()
    });
    assert_eq!(message, "`pool`: pools with a dilation: only dilation 1 is supported");
    let message = refuse(vec![Dim::Fixed(1), Dim::Fixed(3)], &|g, x| g.add("y", Relu, &[x]).unwrap());
    assert!(message.contains("dynamic first axis"), "{message}");
    let message = refuse(image(), &|g, x| g.add("y", Reshape { shape: vec![1, -1], allow_zero: false }, &[x]).unwrap());
    assert!(message.contains("dynamic first axis"), "{message}");
    let message = refuse(image(), &|g, x| {
        g.add("y", Pad { pads: vec![1, 0], axes: Some(vec![0]), mode: PadMode::Constant, value: 0.0 }, &[x]).unwrap()
    });
    assert!(message.contains("batch"), "{message}");
}

#[test]
fn bad_inputs_and_parameters_are_errors() {
    let model = built("cnn", [1, 8, 8]);
    let engine = engine(&model, Operators::Fused);
    let params = Params::from_model(&model);
    let error = engine.forward(&params, &[0.0; 65], 1).unwrap_err();
    assert_eq!(error.to_string(), "the input has 65 numbers but 1 samples of 64 need 64");
    assert!(engine.forward(&params, &[], 0).is_err());
    let options = StepOptions::default();
    let mut bad = params.clone();
    assert!(engine.step(&mut bad, &[0.0; 64], &[9], &Loss::default(), options).is_err(), "label outside");
    let (&id, _) = bad.constants.iter().next().unwrap();
    bad.constants.get_mut(&id).unwrap().pop();
    let error = engine.step(&mut bad, &[0.0; 64], &[0], &Loss::default(), options).unwrap_err();
    assert!(error.kind == Kind::Params && error.place == model.graph.value(id).name, "{error}");
    bad.constants.remove(&id);
    assert!(engine.forward(&bad, &[0.0; 64], 1).unwrap_err().to_string().contains("missing"));
    assert!(engine.forward_values(&params, &[0.0; 64], 1, &[id]).is_err(), "a constant is no computed value");
}

#[test]
fn rounding_errors_are_shares_of_outputs() {
    let mut model = smooth_net();
    quantize(&mut model, 8, 0.02);
    let x = random(1, 4 * 40);
    let start = Params::from_model(&model);
    let layers = model.layers().unwrap();
    let mut errors = BTreeMap::new();
    for (i, layer) in layers.iter().enumerate() {
        let error = random(50 + i as u64, start.constants[&layer.weight].len()).iter().map(|e| 0.1 * e).collect();
        errors.insert(layer.weight, WeightError { error, multiplier: 0.7 * i as f32 });
    }
    for operators in [Operators::Fused, Operators::Composed] {
        let engine = engine(&model, operators);
        let mut params = start.clone();
        let found = engine.rounding_errors(&mut params, &x, &errors).unwrap();
        close("logits", &found.logits, &engine.forward_live(&start, &x, 4).unwrap(), 1e-6);
        let mut stepped = start.clone();
        engine.step(&mut stepped, &x, &[0, 2, 1, 1], &Loss::default(), StepOptions::default()).unwrap();
        for (id, values) in &stepped.constants {
            close("statistics", &params.constants[id], values, 1e-6);
        }
        for layer in &layers {
            let name = &model.graph.value(layer.weight).name;
            let output = model.graph.nodes()[layer.node].outputs[0];
            let output = |params: &Params| engine.forward_values_live(params, &x, 4, &[output]).unwrap().remove(0);
            let WeightError { error, multiplier } = &errors[&layer.weight];
            // A layer is linear in its weight: what the error makes of the input is what the output changes by.
            let share = |error: &[f32]| {
                let mut moved = start.clone();
                moved.constants.get_mut(&layer.weight).unwrap().iter_mut().zip(error).for_each(|(w, e)| *w += e);
                let (whole, moved) = (output(&start), output(&moved));
                let square = |x: f32| f64::from(x) * f64::from(x);
                let change: f64 = whole.iter().zip(&moved).map(|(a, b)| square(b - a)).sum();
                change / whole.iter().map(|&y| square(y)).sum::<f64>()
            };
            let wanted = share(error);
            let got = f64::from(found.shares[&layer.weight]);
            assert!((got - wanted).abs() < 1e-4 * wanted, "{name}, {operators:?}: {got} against {wanted}");
            let Some(gradient) = found.gradients.get(&layer.weight) else {
                assert_eq!(*multiplier, 0.0, "{name}");
                continue;
            };
            let direction = random(88, error.len());
            let at = |h: f32| share(&error.iter().zip(&direction).map(|(e, d)| e + h * d).collect::<Vec<_>>());
            let numeric = f64::from(*multiplier) * (at(1e-2) - at(-1e-2)) / 2e-2;
            let exact: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            assert!((numeric - exact).abs() < 1e-3 * numeric.abs(), "{name}: {numeric} against {exact}");
        }
    }
    let id = layers[0].weight;
    let short = BTreeMap::from([(id, WeightError { error: vec![0.0; 3], multiplier: 1.0 })]);
    assert!(engine(&model, Operators::Fused).rounding_errors(&mut start.clone(), &x, &short).is_err());
}

#[test]
fn a_forward_pass_of_rounded_products_is_close_and_for_training_alone() {
    let model = built("cnn", [1, 8, 8]);
    let (x, labels) = (random(1, 6 * 64), [0, 1, 2, 3, 4, 0]);
    let engine = engine(&model, Operators::Fused);
    let run = |forward| {
        let mut params = Params { forward, ..Params::from_model(&model) };
        let out = engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default()).unwrap();
        (out.logits, engine.forward(&Params { forward, ..Params::from_model(&model) }, &x, 6).unwrap())
    };
    let (full, rounded) = (run(Precision::Full), run(Precision::Bf16));
    // Operands are off by 2⁻⁸ of themselves; normalisations over six images of a small network amplify that a little.
    close("training", &rounded.0, &full.0, 0.05);
    assert!(rounded.1 == full.1, "inference is exact");
}
