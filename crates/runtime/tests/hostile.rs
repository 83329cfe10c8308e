//! Packed files that were changed at random, checksums made right again: each is read as a model or refused, without a panic and
//! within the stated memory; what is read runs, and the fast kernels give the bits of the reference.
//!
//! `BITSMITH_FUZZ_INPUTS=100000 cargo test --release -p bitsmith-runtime --test hostile` is the longer run of `docs/safety.md`;
//! `BITSMITH_FUZZ_SEED` takes other inputs.

mod checksums;

use std::panic::catch_unwind;

use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{Granularity, Grid, Model, QParams, QuantModel, QuantSpec, Role, Site, freeze};
use bitsmith_runtime::{Kernels, Session, SessionOptions, packed};
use checksums::mend;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// A built-in network with weights on grids of all kinds and widths, and rounded activations.
fn seed(name: &str) -> QuantModel {
    let mut model = zoo::build(name, &ZooOptions::default()).unwrap();
    for (index, layer) in model.layers().unwrap().into_iter().enumerate() {
        let bits = [3, 8, 2, 5, 4, 1, 7, 6][index % 8];
        let per = Granularity::PerChannel { axis: layer.channel_axis };
        let shape = model.graph.constant(layer.weight).unwrap().shape().to_vec();
        let grid = match index % 3 {
            0 => Grid::Planes { mask: 0b101 },
            _ => Grid::Affine { signed: true, symmetric: bits > 1 },
        };
        let bits = if matches!(grid, Grid::Planes { .. }) { 3 } else { bits };
        let spec = QuantSpec { grid, bits, per };
        let params = QParams {
            spec,
            scale: vec![0.02; shape[layer.channel_axis]],
            zero_point: vec![],
            levels: vec![],
            rows: vec![],
        };
        // Every fourth layer has channels of several widths.
        let params = match layer.channel_axis {
            0 if index % 4 == 3 => {
                let rows: Vec<u8> = (0..params.scale.len()).map(|row| [4, 2, 0, 7, 7, 3][row % 6]).collect();
                QParams::by_rows(rows, params.scale)
            }
            _ => params,
        };
        let (spec, per) = (params.spec, params.spec.per);
        let weights = model.graph.constant_f32_mut(layer.weight).unwrap();
        bitsmith_graph::quant::for_each_channel(per, &shape, |i, c| {
            weights[i] = params.decode(params.encode(weights[i], c), c) + 0.0;
        });
        model.sites.insert(layer.weight, Site { role: Role::Weight, spec, params: Some(params) });
    }
    for (index, id) in model.activation_values().unwrap().into_iter().enumerate() {
        let is_input = model.graph.inputs().iter().any(|i| i.value == id);
        let params = QParams::per_tensor([8, 4, 3, 2][index % 4], false, 0.05, 0);
        let role = if is_input { Role::Input } else { Role::Activation };
        model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
    }
    freeze(Model { name: name.to_owned(), ..model }).unwrap()
}

/// One to five changes.
fn change(file: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let header = u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize;
    for _ in 0..1 + rng.next_u32() % 5 {
        // Most changes go to the header: it is where the claims are.
        let end = if rng.next_u32().is_multiple_of(4) { file.len() } else { (8 + header).min(file.len()) };
        let at = rng.next_u32() as usize % end.max(1);
        let byte = rng.next_u32() as u8;
        match rng.next_u32() % 6 {
            0 => file[at] = byte,
            1 => file[at] ^= 1 << (byte % 8),
            // Digits for digits keep most of the syntax, so the numbers behind it are reached.
            2 | 3 => {
                let digit = file[at..end].iter().position(u8::is_ascii_digit);
                if let Some(digit) = digit {
                    file[at + digit] = b'0' + byte % 10;
                }
            }
            // A piece of the file in another place of it.
            4 => {
                let from = rng.next_u32() as usize % end.max(1);
                let length = (usize::from(byte) % 24).min(end - at.max(from));
                file.copy_within(from..from + length, at);
            }
            _ => file.truncate(file.len() - usize::from(byte % 16).min(file.len() - 8)),
        }
    }
}

/// Multiply-accumulates above which a changed network is read but not run.
const WORTH_RUNNING: u64 = 2_000_000;

/// Whether the file is a model; runs it if so.
fn survives(file: &[u8]) -> bool {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let read = packed::read_bytes(file);
    let used = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(used <= (128 << 20) + 512 * file.len(), "{used} bytes allocated for a file of {}", file.len());
    let Ok(model) = read else { return false };
    let graph = model.graph();
    let values = |shapes: Vec<bitsmith_graph::Shape>| shapes.iter().flatten().product::<usize>();
    let is_small = graph.macs().is_ok_and(|macs| macs.iter().sum::<u64>() <= WORTH_RUNNING)
        && graph.shapes(1).is_ok_and(|shapes| shapes.into_iter().all(|shape| values(vec![shape]) <= 1 << 20));
    if !is_small {
        return true;
    }
    let run = |kernels| {
        let session = Session::new(&model, SessionOptions { kernels, ..SessionOptions::default() }).ok()?;
        let input = session.graph().inputs().first()?;
        let x: Vec<f32> = (0..input.shape(1).iter().product()).map(|i: usize| (i * 37 % 101) as f32 / 101.0).collect();
        session.run(&x, 1).ok().map(|y| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    let (fast, reference) = (run(Kernels::Fast), run(Kernels::Reference));
    assert!(fast == reference, "the fast kernels differ from the reference");
    true
}

#[test]
fn changed_files_are_refused_or_run() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (inputs, start) = (number("BITSMITH_FUZZ_INPUTS", 1000), number("BITSMITH_FUZZ_SEED", 1));
    let files: Vec<Vec<u8>> = ["mlp", "cnn"].map(|name| packed::encode(&seed(name)).unwrap().0).to_vec();
    files.iter().for_each(|file| assert!(survives(file), "the file itself"));
    let mut read = 0;
    for number in 0..inputs {
        let mut rng = ChaCha8Rng::seed_from_u64(start);
        rng.set_stream(number);
        let mut file = files[number as usize % files.len()].clone();
        change(&mut file, &mut rng);
        mend(&mut file);
        match catch_unwind(|| survives(&file)) {
            Ok(is_model) => read += u64::from(is_model),
            Err(_) => panic!("input {number} with BITSMITH_FUZZ_SEED={start}: see above"),
        }
    }
    println!("{inputs} files: {read} read, {} refused", inputs - read);
    assert!(read > 0 && read < inputs, "changes that are all refused, or none, test nothing");
}
