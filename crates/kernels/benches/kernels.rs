//! Every kernel beside its reference, on the table of `cases`: `cargo bench -p bitsmith-kernels --bench kernels -- conv/forward`.
//!
//! Throughput is work per second, so that the fast version over many images and the reference over few compare. Both run on
//! all threads of the pool and at the best instruction set; `RAYON_NUM_THREADS` limits the former.

mod cases;

use cases::Side;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::cell::LazyCell;
use std::time::Duration;

fn kernels(criterion: &mut Criterion) {
    for case in cases::all() {
        let mut group = criterion.benchmark_group(case.kernel);
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
        // The reference is slow: one image.
        for (side, name, images) in [(Side::Fast, "fast", 32), (Side::Reference, "reference", 1)] {
            // A filter leaves most cases out; those allocate nothing.
            let mut run = LazyCell::new(|| case.prepare(side, images as usize));
            group.throughput(Throughput::Elements(case.work * images));
            group.bench_function(BenchmarkId::new(name, &case.shape), |bencher| bencher.iter(&mut *run));
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
