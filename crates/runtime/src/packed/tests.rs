//! The packed file as a whole: round trips over grids and architectures, sizes, hostile files.

use bitsmith_graph::ops::{Add, Gemm};
use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{
    Data, Dim, Granularity, Graph, Grid, Model, Preprocess, QParams, QuantModel, QuantSpec, Role, Site, Tensor, freeze,
};
use proptest::prelude::*;

use super::crc32::crc32;
use super::{encode, is_packed, read, read_bytes, sizes, write};
use crate::error::Kind;
use crate::testing::{fitted, frozen, noise, round_weights, weight_spec};

fn planes(mask: u8) -> QuantSpec {
    let bits = if mask == 0 { 0 } else { mask.count_ones() as u8 + 1 };
    QuantSpec { grid: Grid::Planes { mask }, bits, per: Granularity::PerTensor }
}

fn architecture(name: &str) -> Model {
    zoo::build(name, &ZooOptions::default()).unwrap()
}

/// One linear layer with everything that a file can hold.
fn small() -> QuantModel {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(6)]).unwrap();
    let w = g.add_constant("fc.weight", Tensor::f32([3, 6], noise(18, 1)).unwrap()).unwrap();
    let b = g.add_constant("fc.bias", Tensor::floats(noise(3, 2))).unwrap();
    let y = g.add("fc", Gemm::default(), &[x, w, b]).unwrap();
    let shift = g.add_constant("shift", Tensor::f32([1, 3], noise(3, 3)).unwrap()).unwrap();
    let z = g.add("add", Add, &[y, shift]).unwrap();
    let flags = g.add_constant("flags", Tensor::new([2], Data::Bool(vec![true, false])).unwrap()).unwrap();
    g.set_outputs(vec![z, flags]);
    let mut model = Model::new("small", g);
    round_weights(&mut model, |_| Some(weight_spec(3, 3, true)));
    let input = QParams::per_tensor(8, false, 0.01, 128);
    model.sites.insert(x, Site { role: Role::Input, spec: input.spec, params: Some(input) });
    model.preprocess = Some(Preprocess::imagenet());
    model.classes = vec!["cat".to_owned(), "fire truck".to_owned(), String::new()];
    freeze(model).unwrap()
}

#[test]
fn architectures_survive_the_file() {
    for (name, specs) in [
        ("resnet20", vec![planes(0b11), planes(0b101), planes(0), planes(0b1111111)]),
        ("mlp", vec![weight_spec(4, 1, false), weight_spec(2, 8, true), weight_spec(0, 4, true)]),
        ("cnn", vec![weight_spec(0, 8, true), weight_spec(4, 3, false)]),
    ] {
        let model = frozen(architecture(name), &specs);
        let (bytes, _) = encode(&model).unwrap();
        assert_eq!(read_bytes(&bytes).unwrap(), model, "{name}");
    }
    let model = small();
    assert_eq!(read_bytes(&encode(&model).unwrap().0).unwrap(), model);
}

/// Codes take n·b/8 bytes and at most 2 % more; everything else stays small.
#[test]
fn bytes_are_bits() {
    for (name, spec) in [("resnet20", planes(0b11)), ("resnet20", planes(1)), ("cnn", planes(1)), ("cnn", planes(0b11))]
    {
        let model = architecture(name);
        let constants = model.graph.values().iter().filter_map(|v| v.constant.as_ref());
        let float_bytes: usize = constants.map(Tensor::bytes).sum();
        let model = frozen(model, &[spec]);
        let bits: u64 = model.layers().unwrap().iter().map(|l| model.tensor(l.weight).unwrap().payload_bits()).sum();
        let sizes = sizes(&model).unwrap();
        let exact = bits as f64 / 8.0;
        println!("{name} at {} bits: {sizes:?}, float {float_bytes}", spec.bits);
        assert!(sizes.codes as f64 <= exact * 1.02 && sizes.codes as f64 >= exact);
        assert!(sizes.total as f64 <= float_bytes as f64 * (f64::from(spec.bits) / 32.0 + 0.035), "{sizes:?}");
        assert_eq!(sizes.total, sizes.codes + sizes.floats + sizes.constants + sizes.header);
    }
}

#[test]
fn files_are_written_whole_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.bitsmith");
    let model = small();
    let sizes = write(&model, &path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), sizes.total as u64);
    assert!(is_packed(&std::fs::read(&path).unwrap()));
    assert_eq!(read(&path).unwrap(), model);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

    let missing = read(&folder.path().join("none")).unwrap_err();
    assert_eq!(missing.kind, Kind::Io);
    assert!(missing.to_string().contains("none"), "{missing}");
    assert_eq!(read(folder.path()).unwrap_err().kind, Kind::NotPacked);
    let unwritable = write(&model, &folder.path().join("no/such/folder.bitsmith")).unwrap_err();
    assert_eq!(unwritable.kind, Kind::Io);
}

/// Recomputes both checksums, so that a changed file gets past them.
fn with_checksums(mut file: Vec<u8>) -> Vec<u8> {
    let Some(length) = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b) as usize) else { return file };
    if file.len() < 8 || length > file.len() - 8 {
        return file;
    }
    let (header, data) = file[8..].split_at_mut(length);
    for (key, parts) in [("\"data_crc32\":\"", true), ("\"header_crc32\":\"", false)] {
        let Some(at) = header.windows(key.len()).position(|w| w == key.as_bytes()).map(|at| at + key.len()) else {
            continue;
        };
        let Some(field) = header.get_mut(at..at + 8) else { continue };
        field.copy_from_slice(b"00000000");
        let crc = if parts { crc32(&[data]) } else { crc32(&[header]) };
        header[at..at + 8].copy_from_slice(format!("{crc:08x}").as_bytes());
    }
    file
}

#[test]
fn every_truncation_is_an_error() {
    let (file, _) = encode(&small()).unwrap();
    assert_eq!(with_checksums(file.clone()), file);
    for length in 0..file.len() {
        read_bytes(&file[..length]).unwrap_err();
        read_bytes(&with_checksums(file[..length].to_vec())).unwrap_err();
    }
    let mut longer = file.clone();
    longer.push(0);
    read_bytes(&with_checksums(longer)).unwrap_err();
}

#[test]
fn a_version_from_the_future_says_what_is_read() {
    let (mut file, _) = encode(&small()).unwrap();
    let at = file.windows(2).position(|w| w == b"1\"").unwrap();
    file[at] = b'9';
    let error = read_bytes(&file).unwrap_err();
    assert_eq!(error.kind, Kind::Version);
    assert!(error.to_string().contains("version `9`: this build reads version 1"), "{error}");
}

/// Absurd claims inside a file whose checksums are right.
#[test]
fn claims_are_checked_before_memory_is_asked_for() {
    let (file, _) = encode(&small()).unwrap();
    let replaced = |from: &str, to: &str| {
        let length = u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize;
        let header = String::from_utf8(file[8..8 + length].to_vec()).unwrap();
        assert!(header.contains(from), "{header}");
        let header = header.replacen(from, to, 1);
        let mut changed = (header.len() as u64).to_le_bytes().to_vec();
        changed.extend(header.as_bytes());
        changed.extend(&file[8 + length..]);
        read_bytes(&with_checksums(changed)).unwrap_err().to_string()
    };
    for (from, to, message) in [
        (".weight[3,6]", ".weight[1152921504606846976,6]", ""),
        (".weight[3,6]", ".weight[4000000,600000]", ""),
        (".bias[3]", ".bias[1152921504606846976]", "more floats are needed"),
        (".bias[3]", ".bias[4611686018427387904]=0", "have no bytes"),
        ("x[_,6]", "x[_,1152921504606846976]", "more than"),
        ("planes:13 4 0", "planes:0 0 0", "0 bits"),
        ("planes:13 4 0", "planes:255 8 0", ""),
        ("planes:13 4 0", "unsigned 0 0", "0 bits"),
        ("planes:13 4 0", "codebook 8 0", "floats"),
        ("planes:13 4 0", "planes:13 4 7", "axis 7"),
        ("unsigned 8 - 128", "unsigned 8 - 300", "zero point 300 is outside"),
        ("0 input", "99 input", ""),
        ("\"U8\",\"shape\":[12]", "\"U8\",\"shape\":[8]", "does not take"),
        ("outputs 5 6", "outputs 5 70", "value 70 is not defined"),
        ("\"opset\":\"25\"", "\"opset\":\"x\"", "not a number"),
    ] {
        let error = replaced(from, to);
        assert!(error.contains(message), "{from} to {to}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_grid_survives_the_file(kind in 0usize..5, bits in 0u8..=8, rows in 1usize..9, columns in 1usize..40, per_channel: bool, seed: u32) {
        let spec = weight_spec(kind, bits, per_channel);
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(columns)]).unwrap();
        let shape = [rows, columns];
        let w = g.add_constant("w", Tensor::f32(shape, noise(rows * columns, seed)).unwrap()).unwrap();
        let y = g.add("fc", Gemm::default(), &[x, w]).unwrap();
        g.set_outputs(vec![y]);
        let mut model = Model::new("one", g);
        let mut spec_on_axis = spec;
        if per_channel {
            spec_on_axis.per = Granularity::PerChannel { axis: 0 };
        }
        let values = noise(rows * columns, seed);
        let mut params = fitted(spec_on_axis, &shape, &values);
        if let Grid::Affine { symmetric: false, .. } = spec.grid {
            let (low, high) = params.code_range();
            params.zero_point = (0..params.scale.len() as i32).map(|i| (low + i).min(high)).collect();
        }
        let mut rounded = vec![0.0; values.len()];
        bitsmith_graph::quant::for_each_channel(params.spec.per, &shape, |i, c| {
            rounded[i] = params.decode(params.encode(values[i], c), c);
        });
        model.graph.set_constant(w, Tensor::f32(shape, rounded).unwrap()).unwrap();
        model.sites.insert(w, Site { role: Role::Weight, spec: params.spec, params: Some(params) });
        let model = freeze(model).unwrap();
        let (file, _) = encode(&model).unwrap();
        let back = read_bytes(&file).unwrap();
        prop_assert_eq!(back.tensor(w).unwrap().decode(), model.tensor(w).unwrap().decode());
        prop_assert_eq!(back, model);
    }
}

/// `columns` weights a row on a grid whose rows have these bits.
fn by_rows(bits: &[u8], columns: usize, seed: u32) -> QuantModel {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(columns)]).unwrap();
    let shape = [bits.len(), columns];
    let params = QParams::by_rows(bits.to_vec(), vec![0.02; bits.len()]);
    let mut values = noise(bits.len() * columns, seed);
    for (i, value) in values.iter_mut().enumerate() {
        *value = params.decode(params.encode(*value, i / columns), i / columns) + 0.0;
    }
    let w = g.add_constant("w", Tensor::f32(shape, values).unwrap()).unwrap();
    let y = g.add("fc", Gemm { trans_b: true, ..Gemm::default() }, &[x, w]).unwrap();
    g.set_outputs(vec![y]);
    let mut model = Model::new("rows", g);
    model.sites.insert(w, Site { role: Role::Weight, spec: params.spec, params: Some(params) });
    freeze(model).unwrap()
}

proptest! {
    /// Rows of several widths take their own bits, and come back.
    #[test]
    fn rows_of_several_widths_are_what_was_packed(
        bits in proptest::collection::vec(prop_oneof![Just(0u8), 2u8..=8], 1..12), columns in 1usize..20, seed: u32,
    ) {
        let model = by_rows(&bits, columns, seed);
        let (file, sizes) = encode(&model).unwrap();
        prop_assert_eq!(read_bytes(&file).unwrap(), model);
        let run = |run: &[u8]| match (run[0], run.len() * columns) {
            (0, _) => 0,
            (2, n) => n.div_ceil(5),
            (bits, n) => (n * usize::from(bits)).div_ceil(8),
        };
        prop_assert_eq!(sizes.codes, bits.chunk_by(|a, b| a == b).map(run).sum::<usize>());
    }
}

#[test]
fn impossible_widths_of_rows_are_refused() {
    let (file, _) = encode(&by_rows(&[4, 4, 2, 3], 3, 1)).unwrap();
    let text = String::from_utf8_lossy(&file).into_owned();
    assert!(text.contains("rows:4x2,2x1,3x1"), "{text}");
    for (to, message) in [
        ("rows:4x2,2x1,3x2", "more than its 4 channels"),
        ("rows:4x2,1x1,3x1", "channels of 1 bits"),
        ("rows:4x2,9x1,3x1", "channels of 9 bits"),
        ("rows:4x2,5x1,3x1", "bytes"),
        ("rows:4x2,2y1,3x1", "BITSxCHANNELS"),
        ("rows:4x2,2x0,3x1", "more than its 4 channels"),
    ] {
        let at = text.find("rows:").unwrap();
        let mut changed = file.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        let error = read_bytes(&with_checksums(changed)).unwrap_err().to_string();
        assert!(error.contains(message), "{to}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever bytes change, reading returns: a model or an error, never a panic.
    #[test]
    fn changed_files_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..4), 1..6)) {
        let (mut file, _) = encode(&small()).unwrap();
        for (at, byte, how) in edits {
            let at = at.index(file.len());
            match how {
                0 => file[at] = byte,
                1 => file[at] ^= 1 << (byte % 8),
                // Digits for digits keep most of the syntax, so the numbers behind it are reached.
                2 => file[at] = if file[at].is_ascii_digit() { b'0' + byte % 10 } else { file[at] },
                _ => {
                    file.remove(at);
                }
            }
        }
        let _ = read_bytes(&with_checksums(file));
    }
}

/// The worked example of `docs/format.md`: its hex dump is this model's file.
#[test]
fn the_documentation_shows_a_real_file() {
    let mut g = Graph::new();
    let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(5)]).unwrap();
    let w = g.add_constant("fc.weight", Tensor::new([2, 5], Data::I8(vec![5, -4, 0, 1, -1, 4, -5, 0, 0, 1])).unwrap());
    let w = w.unwrap();
    let b = g.add_constant("fc.bias", Tensor::floats(vec![0.5, -1.0])).unwrap();
    let y = g.add("fc", Gemm::default(), &[x, w, b]).unwrap();
    g.set_outputs(vec![y]);
    let weight = QParams { spec: planes(0b101), scale: vec![0.25], zero_point: vec![], levels: vec![], rows: vec![] };
    let input = QParams::per_tensor(8, false, 0.125, 10);
    let sites = [(x, (Role::Input, input)), (w, (Role::Weight, weight))].into();
    let model = QuantModel::from_parts("example".to_owned(), g, sites, None, vec![]).unwrap();
    let (file, _) = encode(&model).unwrap();
    let mut dump = String::new();
    for (row, bytes) in file.chunks(16).enumerate() {
        let hex: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let text: String = bytes.iter().map(|&b| if (32..127).contains(&b) { char::from(b) } else { '.' }).collect();
        dump += &format!("{:04x}  {:<47}  {text}\n", row * 16, hex.join(" "));
    }
    let page = include_str!("../../../../docs/format.md");
    assert!(page.contains(&dump), "docs/format.md should show\n{dump}");
    assert_eq!(read_bytes(&file).unwrap(), model);
}
