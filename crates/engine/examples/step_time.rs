//! How long a training step takes: images per second, median milliseconds, peak memory, and where the time goes.
//!
//! ```text
//! cargo run --release -p bitsmith-engine --example step_time -- [--model resnet20] [--batch 128] [--threads 2] [--steps 20]
//!     [--bits 4] [--composed] [--inference] [--profile]
//! ```

use std::time::Instant;

use bitsmith_engine::{Engine, EngineOptions, Loss, Operators, Params, StepOptions, profile, set_threads};
use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{Model, QParams, Role, Site};

// As the program itself does.
#[global_allocator]
static ALLOCATOR: bitsmith_kernels::heap::Heap = bitsmith_kernels::heap::Heap::new();

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(String::as_str);
    let number = |name: &str, default: usize| value(name).map_or(Ok(default), str::parse);
    let (batch, threads, steps) = (number("--batch", 128)?, number("--threads", 2)?, number("--steps", 20)?.max(1));
    set_threads(threads)?;
    let mut model = zoo::build(value("--model").unwrap_or("resnet20"), &ZooOptions::default())?;
    let bits = number("--bits", 32)?;
    if bits <= 8 {
        quantize_activations(&mut model, bits as u8)?;
    }
    let operators = if flag("--composed") { Operators::Composed } else { Operators::Fused };
    let engine = Engine::new(&model, &EngineOptions { operators, ..EngineOptions::default() })?;
    let mut params = Params::from_model(&model);
    let x: Vec<f32> = (0..batch * engine.sample_len()).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let labels: Vec<u32> = (0..batch as u32).map(|i| i % engine.classes() as u32).collect();
    let mut times = Vec::new();
    for step in 0..steps + 2 {
        if step == 2 && flag("--profile") {
            profile::start();
        }
        let start = Instant::now();
        if flag("--inference") {
            engine.forward(&params, &x, batch)?;
        } else {
            engine.step(&mut params, &x, &labels, &Loss::default(), StepOptions::default())?;
        }
        // The first two fill the pool.
        if step >= 2 {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let entries = profile::stop();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{:.0} images/s, median {median:.1} ms, fastest {:.1} ms, peak {:.0} MB, batch {batch}, {threads} threads",
        batch as f64 / median * 1e3,
        times[0],
        peak_megabytes(),
    );
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.time));
    for (name, entry) in entries {
        let per_step = entry.time.as_secs_f64() * 1e3 / steps as f64;
        println!("{per_step:9.2} ms  {:4} x  {name}", entry.calls / steps as u64);
    }
    Ok(())
}

fn quantize_activations(model: &mut Model, bits: u8) -> Result<(), bitsmith_graph::Error> {
    for id in model.activation_values()? {
        let is_input = model.graph.inputs().iter().any(|i| i.value == id);
        let params = QParams::per_tensor(bits, is_input, 4.0 / f32::from(1u8 << (bits - 1)), 0);
        let role = if is_input { Role::Input } else { Role::Activation };
        model.sites.insert(id, Site { role, spec: params.spec, params: Some(params) });
    }
    Ok(())
}

/// The largest resident set so far, where the system tells.
fn peak_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0) / 1024.0
}
