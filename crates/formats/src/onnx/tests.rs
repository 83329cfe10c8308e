//! The longest trips: files of this project read back, files of PyTorch read and written again, files run elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use bitsmith_graph::ops::{Add, Flatten, Gelu, GlobalAveragePool, Pad, PadMode, Relu, Slice, Window};
use bitsmith_graph::ops::{Conv, Gemm};
use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{
    Dim, Granularity, Graph, Grid, Model, Preprocess, QParams, QuantModel, QuantSpec, Role, Site, Tensor, ValueId,
    freeze,
};
use prost::Message;

use super::proto::{FunctionProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto};
use super::{Target, decode, read, write_float, write_qdq};
use crate::npy;

/// A small classifier with parameters as inputs, a residual connection and metadata.
fn tiny() -> Model {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(2), Dim::Fixed(6), Dim::Fixed(6)]).unwrap();
    let numbers = |n: usize| (0..n).map(|i| ((i * 37 % 23) as f32 - 11.0) / 16.0).collect::<Vec<_>>();
    let w = g.add_constant("conv.weight", Tensor::f32([4, 2, 3, 3], numbers(72)).unwrap()).unwrap();
    let b = g.add_constant("conv.bias", Tensor::floats(numbers(4))).unwrap();
    let y = g.add("conv", Conv { groups: 1, window: Window::uniform(2, 2, 1) }, &[x, w, b]).unwrap();
    let y = g.add("relu", Relu, &[y]).unwrap();
    let every_second =
        Slice { starts: vec![0, 0], ends: vec![i64::MAX; 2], axes: Some(vec![2, 3]), steps: Some(vec![2, 2]) };
    let s = g.add("shortcut", every_second, &[x]).unwrap();
    let pad = Pad { pads: vec![0, 1, 0, 0, 0, 1, 0, 0], axes: None, mode: PadMode::Constant, value: 0.0 };
    let s = g.add("pad", pad, &[s]).unwrap();
    let y = g.add("sum", Add, &[y, s]).unwrap();
    let y = g.add("pool", GlobalAveragePool, &[y]).unwrap();
    let y = g.add("flat", Flatten::default(), &[y]).unwrap();
    let w = g.add_constant("fc.weight", Tensor::f32([3, 4], numbers(12)).unwrap()).unwrap();
    let y = g.add("fc", Gemm::default(), &[y, w]).unwrap();
    g.set_outputs(vec![y]);
    let classes = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
    Model { preprocess: Some(Preprocess::scaled(1.0 / 255.0, 2)), classes, ..Model::new("tiny", g) }
}

/// Every weight on the grid that `spec` describes, every activation and input on `activation` bits; frozen.
fn quantized(mut model: Model, spec: QuantSpec, levels: &[f32], activation: Option<u8>) -> QuantModel {
    model.add_weight_sites(spec, None).unwrap();
    if let Some(bits) = activation {
        let spec =
            |signed| QuantSpec { grid: Grid::Affine { signed, symmetric: false }, bits, per: Granularity::PerTensor };
        model.add_activation_sites(spec(false), spec(true)).unwrap();
    }
    for id in model.sites.keys().copied().collect::<Vec<_>>() {
        let site = model.sites[&id].clone();
        let params = match model.graph.constant(id) {
            None => {
                let signed = site.role == Role::Input;
                QParams {
                    spec: site.spec,
                    ..QParams::per_tensor(8, signed, 3.0 / f32::from(1u8 << (site.spec.bits - 1)), 0)
                }
            }
            Some(tensor) => on_grid(site.spec, levels, tensor),
        };
        if let Some(tensor) = model.graph.constant(id) {
            let values = tensor.as_f32().unwrap().to_vec();
            let mut rounded = values.clone();
            bitsmith_graph::quant::for_each_channel(params.spec.per, tensor.shape(), |i, c| {
                rounded[i] = params.decode(params.encode(values[i], c), c);
            });
            let tensor = Tensor::f32(tensor.shape(), rounded).unwrap();
            model.graph.set_constant(id, tensor).unwrap();
        }
        model.sites.insert(id, Site { params: Some(params), ..site });
    }
    freeze(model).unwrap()
}

fn on_grid(spec: QuantSpec, levels: &[f32], tensor: &Tensor) -> QParams {
    let channels = bitsmith_graph::quant::channels(spec.per, tensor.shape()).unwrap();
    let mut largest = vec![1e-3f32; channels];
    let values = tensor.as_f32().unwrap();
    bitsmith_graph::quant::for_each_channel(spec.per, tensor.shape(), |i, c| {
        largest[c] = largest[c].max(values[i].abs())
    });
    let mut params =
        QParams { spec, scale: vec![1.0; channels], zero_point: vec![], levels: levels.to_vec(), rows: vec![] };
    let top = match spec.grid {
        Grid::Codebook => levels.iter().fold(0.0f32, |a, l| a.max(l.abs())),
        _ => params.code_range().1.max(1) as f32,
    };
    params.scale = largest.iter().map(|l| l / top).collect();
    params
}

fn affine(bits: u8, per_channel: bool) -> QuantSpec {
    let per = if per_channel { Granularity::PerChannel { axis: 0 } } else { Granularity::PerTensor };
    QuantSpec { grid: Grid::Affine { signed: true, symmetric: true }, bits, per }
}

fn planes(mask: u8) -> QuantSpec {
    let bits = if mask == 0 { 0 } else { mask.count_ones() as u8 + 1 };
    QuantSpec { grid: Grid::Planes { mask }, bits, per: Granularity::PerTensor }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name)
}

/// Whether Python has these modules; says so where it has not.
fn python_has(modules: &str) -> bool {
    let found = Command::new("python3").args(["-c", &format!("import {modules}")]).output();
    let found = found.is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: python3 with {modules} is not installed");
    }
    found
}

/// Runs `scripts/check_onnx.py` and fails with its words.
fn check(files: &[PathBuf], arguments: &[&str]) {
    let out = Command::new("python3").arg(script("check_onnx.py")).args(files).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.onnx");
    for opset in [13, 17, 21, 25] {
        write_float(&tiny(), &path, opset).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(
            (found.name.as_str(), &found.preprocess, &found.classes),
            ("tiny", &tiny().preprocess, &tiny().classes)
        );
        let listing = |m: &Model| {
            let name = |id: &ValueId| m.graph.value(*id).name.clone();
            let node = |n: &bitsmith_graph::Node| {
                (n.name.clone(), n.op.clone(), n.inputs.iter().flatten().map(name).collect::<Vec<_>>())
            };
            m.graph.nodes().iter().map(node).collect::<Vec<_>>()
        };
        assert_eq!(listing(&found), listing(&tiny()), "opset {opset}");
        for value in tiny().graph.values().iter().filter(|v| v.constant.is_some()) {
            let id = found.graph.find(&value.name).unwrap();
            assert_eq!(found.graph.constant(id), value.constant.as_ref(), "{}", value.name);
        }
    }
}

#[test]
fn what_an_opset_lacks_is_refused() {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(2)]).unwrap();
    let y = g.add("act", Gelu::default(), &[x]).unwrap();
    g.set_outputs(vec![y]);
    let path = Path::new("never.onnx");
    let error = write_float(&Model::new("m", g), path, 17).unwrap_err().to_string();
    assert_eq!(error, "never.onnx: node `act`: this form of Gelu needs opset 20 or later, not 17");
    assert!(write_float(&tiny(), path, 12).unwrap_err().to_string().contains("choose one from 13 to 25"));
}

#[test]
fn each_layer_gets_the_narrowest_type() {
    struct Case(QuantSpec, &'static [f32], u32, &'static str);
    let cases = [
        Case(affine(2, true), &[], 25, "int2"),
        Case(affine(2, true), &[], 21, "int4"),
        Case(affine(4, true), &[], 21, "int4"),
        Case(affine(4, true), &[], 19, "int8"),
        Case(affine(5, false), &[], 25, "int8"),
        Case(planes(0b1), &[], 25, "int2"),
        Case(planes(0b101), &[], 25, "int4"),
        Case(planes(0b1001), &[], 25, "int8"),
        Case(planes(0), &[], 25, "int2"),
        Case(QuantSpec { grid: Grid::Codebook, bits: 1, ..affine(1, false) }, &[-1.0, 1.0], 25, "int2"),
        Case(QuantSpec { grid: Grid::Codebook, bits: 1, ..affine(1, false) }, &[-0.5, 1.0], 25, "float"),
    ];
    for Case(spec, levels, opset, name) in cases {
        let (_, rows) = super::qdq::encode_qdq(&quantized(tiny(), spec, levels, None), Target { opset }).unwrap();
        assert_eq!(rows[0].type_in_file, name, "{spec:?} in opset {opset}");
        assert_eq!(rows[0].bits_stored, Some(spec.bits));
        assert_eq!(rows[0].name, "conv");
    }
}

/// A quantized file read back: weights as they decode, roundings as sites, names as they were.
#[test]
fn what_is_quantized_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.onnx");
    for (opset, bits) in [(13, 8), (21, 8), (25, 4)] {
        let model = quantized(tiny(), affine(2, true), &[], Some(bits));
        write_qdq(&model, &path, Target { opset }).unwrap();
        let (found, wanted) = (read(&path).unwrap(), model.to_model().unwrap());
        for value in wanted.graph.values().iter().filter(|v| v.constant.is_some()) {
            let id = found.graph.find(&value.name).unwrap();
            assert_eq!(found.graph.constant(id), value.constant.as_ref(), "{}", value.name);
        }
        let sites = |m: &Model| -> Vec<(String, Role, f32)> {
            let rounded = m.sites.iter().filter(|(_, s)| matches!(s.role, Role::Input | Role::Activation));
            rounded
                .map(|(id, s)| (m.graph.value(*id).name.clone(), s.role, s.params.as_ref().unwrap().scale[0]))
                .collect()
        };
        match bits {
            8 => assert_eq!((sites(&found), found.graph.nodes().len()), (sites(&wanted), wanted.graph.nodes().len())),
            // What saturates before its type does is clipped first.
            _ => assert_eq!((sites(&found).len(), found.graph.nodes().len()), (2, wanted.graph.nodes().len() + 2)),
        }
    }
}

/// ONNX Runtime computes the same from integers as from the floats that they stand for.
#[test]
fn quantized_files_run_elsewhere() {
    if !python_has("onnx, onnxruntime, numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let x: Vec<f32> = (0..8 * 72).map(|i| ((i * 29 % 41) as f32 - 20.0) / 8.0).collect();
    npy::write(&at("x.npy"), &Tensor::f32([8, 2, 6, 6], x).unwrap()).unwrap();
    let run = "import sys, numpy, onnxruntime as o; s = o.InferenceSession(sys.argv[1]); \
               numpy.save(sys.argv[3], s.run(None, {'x': numpy.load(sys.argv[2])})[0])";
    for (index, spec) in
        [affine(2, true), affine(3, false), affine(8, true), planes(0b101), planes(0)].into_iter().enumerate()
    {
        let model = quantized(tiny(), spec, &[], None);
        write_float(&model.to_model().unwrap(), &at("float.onnx"), 17).unwrap();
        let status =
            Command::new("python3").args(["-c", run]).args([at("float.onnx"), at("x.npy"), at("y.npy")]).status();
        assert!(status.unwrap().success());
        let files: Vec<_> = [13, 21, 25].iter().map(|opset| at(&format!("{index}-{opset}.onnx"))).collect();
        for (path, opset) in files.iter().zip([13, 21, 25]) {
            write_qdq(&model, path, Target { opset }).unwrap();
        }
        let (x, y) = (at("x.npy"), at("y.npy"));
        check(&files, &["--inputs", x.to_str().unwrap(), "--expect", y.to_str().unwrap(), "--tolerance", "1e-6"]);
    }
    let with_activations: Vec<_> = [2, 3, 4, 8].iter().map(|bits| (*bits, at(&format!("a{bits}.onnx")))).collect();
    for (bits, path) in &with_activations {
        write_qdq(&quantized(tiny(), affine(4, true), &[], Some(*bits)), path, Target { opset: 25 }).unwrap();
    }
    check(&with_activations.into_iter().map(|(_, path)| path).collect::<Vec<_>>(), &[]);
}

/// Every export of PyTorch is read, and what is written from it gives PyTorch's logits.
#[test]
fn exports_of_pytorch_mean_the_same_here() {
    if !python_has("torch, onnxscript, onnx, onnxruntime, numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new("python3")
        .arg(script("export_torch.py"))
        .arg(folder.path())
        .args(["--depth", "8"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let files: Vec<PathBuf> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(files.len() >= 8, "{text}{}", String::from_utf8_lossy(&out.stderr));
    let mut written = vec![];
    for file in files {
        let model = read(&file).unwrap();
        assert_eq!(model.graph.inputs()[0].dims[0], Dim::Batch, "{}", file.display());
        if !file.to_string_lossy().contains("torchscript-inference") {
            // That one folds batch normalisation and gives the weights new names.
            assert!(model.graph.nodes().iter().any(|n| n.name == "layer1.0.conv1"), "{}", file.display());
        }
        let path = file.with_extension("again.onnx");
        write_float(&model, &path, 21).unwrap();
        written.push(path);
    }
    let (x, y) = (folder.path().join("input.npy"), folder.path().join("logits.npy"));
    check(&written, &["--inputs", x.to_str().unwrap(), "--expect", y.to_str().unwrap(), "--tolerance", "1e-4"]);
}

#[test]
fn built_in_networks_are_valid_onnx() {
    if !python_has("onnx, onnxruntime, numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec![];
    for name in ["resnet8", "resnet20"] {
        let model = zoo::build(name, &ZooOptions::default()).unwrap();
        files.push(folder.path().join(format!("{name}-float.onnx")));
        write_float(&model, files.last().unwrap(), 18).unwrap();
        files.push(folder.path().join(format!("{name}-w3a4.onnx")));
        write_qdq(&quantized(model, affine(3, true), &[], Some(4)), files.last().unwrap(), Target { opset: 21 })
            .unwrap();
        assert!(read(&files[files.len() - 2]).is_ok());
    }
    check(&files, &[]);
}

/// Rounding and saturation of activations, on ties and far outside, to the last bit.
#[test]
fn activations_round_elsewhere_as_they_do_here() {
    if !python_has("onnx, onnxruntime, numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (bits, signed, zero) in
        [(8, false, 0), (8, true, -5), (4, true, 0), (4, false, 3), (3, false, 0), (2, true, 0), (1, false, 0)]
    {
        let scale = 0.3;
        let params = QParams::per_tensor(bits, signed, scale, zero);
        let x: Vec<f32> = (-640..640).map(|i| i as f32 * scale / 2.0).chain([1e30, -1e30, 0.07]).collect();
        let y: Vec<f32> = x.iter().map(|&x| params.decode(params.encode(x, 0), 0).max(0.0)).collect();
        let mut g = Graph::new();
        let input = g.add_input("x", vec![Dim::Batch, Dim::Fixed(1)]).unwrap();
        let output = g.add("relu", Relu, &[input]).unwrap();
        g.set_outputs(vec![output]);
        let mut model = Model::new("round", g);
        model.sites.insert(input, Site { role: Role::Input, spec: params.spec, params: Some(params) });
        write_qdq(&freeze(model).unwrap(), &at("m.onnx"), Target::default()).unwrap();
        npy::write(&at("x.npy"), &Tensor::f32([x.len(), 1], x).unwrap()).unwrap();
        npy::write(&at("y.npy"), &Tensor::f32([y.len(), 1], y).unwrap()).unwrap();
        let (x, y) = (at("x.npy"), at("y.npy"));
        check(&[at("m.onnx")], &["--inputs", x.to_str().unwrap(), "--expect", y.to_str().unwrap(), "--tolerance", "0"]);
    }
}

fn bytes_of(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

fn proto() -> ModelProto {
    super::write::encode_float(&tiny(), 17).unwrap()
}

fn refused(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut file = proto();
    change(&mut file);
    decode(bytes_of(&file).into(), Path::new(".")).unwrap_err().to_string()
}

#[test]
fn each_mistake_has_its_message() {
    let node = |file: &mut ModelProto, index: usize, f: &dyn Fn(&mut NodeProto)| {
        f(&mut file.graph.as_mut().unwrap().node[index])
    };
    let unknown = refused(|file| {
        node(file, 1, &|n| n.op_type = Some("Erf".to_owned()));
        node(file, 4, &|n| n.op_type = Some("Erf".to_owned()));
        node(file, 5, &|n| (n.op_type, n.domain) = (Some("Fused".to_owned()), Some("com.microsoft".to_owned())));
    });
    assert_eq!(
        unknown,
        "uses operators that are not supported: `Erf` (2 times), `com.microsoft::Fused` (once) (opset 20 or later may have \
         one supported operator for what several spell out in opset 17: try exporting with that)"
    );
    let cyclic = refused(|file| node(file, 0, &|n| n.input[0] = "fc".to_owned()));
    assert!(cyclic.contains("the graph is cyclic"), "{cyclic}");
    let missing = refused(|file| node(file, 1, &|n| n.input[0] = "absent".to_owned()));
    assert_eq!(missing, "`relu`: reads `absent`, which nothing writes");
    let function = refused(|file| {
        node(file, 1, &|n| n.domain = Some("mine".to_owned()));
        file.functions.push(FunctionProto { name: Some("Relu".to_owned()), domain: Some("mine".to_owned()) });
    });
    assert!(function.contains("must be inlined when exporting: `mine::Relu` (once)"), "{function}");
    let newer = refused(|file| file.opset_import[0].version = Some(99));
    assert_eq!(newer, "opset 99: 11 to 25 are read; export it again with one of those");
    let external = refused(|file| {
        let tensor = &mut file.graph.as_mut().unwrap().initializer[0];
        tensor.data_location = Some(1);
        let location = StringStringEntryProto { key: Some("location".to_owned()), value: Some("../x".to_owned()) };
        tensor.external_data.push(location);
    });
    assert!(
        external.starts_with("initializer `conv.weight`: its external data is `../x`, which leaves the folder"),
        "{external}"
    );
    let open = refused(|file| {
        let kind = file.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        let dim = &mut kind.shape.as_mut().unwrap().dim[2];
        (dim.dim_value, dim.dim_param) = (None, Some("height".to_owned()));
    });
    assert!(open.starts_with("dimension 2 (`height`) of input `x` has no size"), "{open}");
    let nan = refused(|file| {
        let tensor = &mut file.graph.as_mut().unwrap().initializer[1];
        tensor.raw_data = Some(f32::NAN.to_le_bytes().repeat(4).into());
    });
    assert_eq!(nan, "`conv.bias`: element 0 is NaN: every weight must be finite");
    let huge = refused(|file| {
        let kind = file.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        kind.shape.as_mut().unwrap().dim[2].dim_value = Some(1 << 62);
    });
    assert!(huge.contains("more than 1099511627776 elements"), "{huge}");
    let shape = refused(|file| file.graph.as_mut().unwrap().initializer[0].dims[1] = 3);
    assert_eq!(shape, "initializer `conv.weight`: 108 elements of float need 432 bytes but 288 are stored");
}

#[test]
fn initializers_may_be_listed_as_inputs_and_nodes_come_in_any_order() {
    let mut file = proto();
    let graph = file.graph.as_mut().unwrap();
    graph.node.reverse();
    graph.node.iter_mut().for_each(|n| n.name = None);
    let names: Vec<_> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    graph.input.extend(names.into_iter().map(|name| ValueInfoProto { name, r#type: None }));
    let model = decode(bytes_of(&file).into(), Path::new(".")).unwrap();
    assert_eq!(model.graph.inputs().len(), 1);
    let names: Vec<_> = model.graph.nodes().iter().map(|n| n.name.as_str()).collect();
    assert!(
        names.contains(&"conv") && names.contains(&"fc") && names.iter().any(|n| n.starts_with("relu_")),
        "{names:?}"
    );
}

#[test]
fn a_batch_that_cannot_be_freed_stays() {
    let mut file = proto();
    let graph = file.graph.as_mut().unwrap();
    let fix = |info: &mut ValueInfoProto| {
        let kind = info.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        kind.shape.as_mut().unwrap().dim[0].dim_value = Some(4);
    };
    graph.input.iter_mut().for_each(fix);
    assert_eq!(decode(bytes_of(&file).into(), Path::new(".")).unwrap().graph.inputs()[0].dims[0], Dim::Batch);
    // A bias with a row for each of the four samples.
    let bias = Tensor::f32([4, 3], vec![0.5; 12]).unwrap();
    let graph = file.graph.as_mut().unwrap();
    graph.initializer.push(super::write::tensor_proto("rows", &bias).unwrap());
    graph.node.last_mut().unwrap().input.push("rows".to_owned());
    assert_eq!(decode(bytes_of(&file).into(), Path::new(".")).unwrap().graph.inputs()[0].dims[0], Dim::Fixed(4));
}

#[test]
fn truncated_files_are_refused_or_read() {
    let bytes = bytes_of(&proto());
    for end in 0..bytes.len() {
        // A file cut between two fields is a smaller file; it must only not panic.
        let _ = decode(bytes[..end].to_vec().into(), Path::new("."));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.onnx");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn mutated_files_do_not_panic(quantize in proptest::prelude::any::<bool>(), changes in proptest::collection::vec((proptest::prelude::any::<u16>(), proptest::prelude::any::<u8>()), 1..6)) {
        let mut bytes = match quantize {
            false => bytes_of(&proto()),
            true => {
                let model = quantized(tiny(), affine(2, true), &[], Some(4));
                bytes_of(&super::qdq::encode_qdq(&model, Target { opset: 25 }).unwrap().0)
            }
        };
        for (place, byte) in changes {
            let place = usize::from(place) % bytes.len();
            bytes[place] = byte;
        }
        if let Ok(model) = decode(bytes.into(), Path::new("/nowhere")) {
            let _ = model.graph.shapes(7);
            let _ = super::write::encode_float(&model, 21);
        }
    }
}
