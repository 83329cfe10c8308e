//! What reading a hostile file may allocate, measured.

mod checksums;

use bitsmith_graph::ops::{Gemm, Relu};
use bitsmith_graph::{Dim, Granularity, Graph, Grid, Model, QParams, QuantSpec, Role, Site, Tensor, freeze};
use bitsmith_runtime::packed;

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// Bytes that `run` allocates beyond what was there, at its peak.
fn peak(run: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    run();
    ALLOCATOR.peak_usage() - before
}

/// Reading allocates at most 128 MiB and 512 times the file's length: files made to need much for their length.
#[test]
fn reading_is_bounded() {
    // Many nodes of the shortest lines, deep ranks, one bit per element, elements without bytes.
    let mut chain = Graph::new();
    let mut x = chain.add_input("x", vec![Dim::Fixed(1); 16]).unwrap();
    for i in 0..20_000 {
        x = chain.add(&i.to_string(), Relu, &[x]).unwrap();
    }
    chain.set_outputs(vec![x]);

    let linear = |n: usize| {
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(n)]).unwrap();
        let w = g.add_constant("w", Tensor::f32([n, n], vec![0.0; n * n]).unwrap()).unwrap();
        let y = g.add("y", Gemm::default(), &[x, w]).unwrap();
        g.set_outputs(vec![y]);
        (Model::new("linear", g), w)
    };
    let site = |bits| QParams {
        spec: QuantSpec {
            grid: if bits == 0 { Grid::Planes { mask: 0 } } else { Grid::Affine { signed: true, symmetric: false } },
            bits,
            per: Granularity::PerTensor,
        },
        scale: vec![1.0],
        zero_point: vec![],
        levels: vec![],
        rows: vec![],
    };
    let with_bits = |bits| {
        let (mut model, w) = linear(4000);
        let params = site(bits);
        model.sites.insert(w, Site { role: Role::Weight, spec: params.spec, params: Some(params) });
        model
    };
    for model in [Model::new("chain", chain), with_bits(0), with_bits(1), linear(3000).0] {
        let name = model.name.clone();
        let (file, sizes) = packed::encode(&freeze(model).unwrap()).unwrap();
        let used = peak(|| drop(packed::read_bytes(&file).unwrap()));
        println!("{name}: {} bytes, {used} allocated at the peak, {sizes:?}", file.len());
        assert!(used <= (128 << 20) + 512 * file.len(), "{name}: {used} bytes for {}", file.len());
    }
    // JSON that is all structure.
    for (open, close) in [("[],", "[]"), ("{\"a\":0},", "0"), ("0,", "0")] {
        let body = format!(
            "{{\"__metadata__\":{{\"bitsmith\":\"1\",\"header_crc32\":\"00000000\"}},\"x\":[{}{close}]}}",
            open.repeat(1 << 18)
        );
        let mut file = (body.len() as u64).to_le_bytes().to_vec();
        file.extend(body.as_bytes());
        checksums::mend(&mut file);
        let used = peak(|| drop(packed::read_bytes(&file).unwrap_err()));
        println!("{open}: {} bytes, {used} allocated at the peak", file.len());
        assert!(used <= (128 << 20) + 512 * file.len(), "{open}: {used} bytes for {}", file.len());
    }
}
