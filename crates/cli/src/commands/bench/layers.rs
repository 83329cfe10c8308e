//! The profile of a packed model: time, rate and share of the machine's limits, layer by layer.

use bitsmith_kernels::roofline;
use bitsmith_runtime::StepProfile;
use serde_json::{Value, json};

use crate::table::Table;

/// A profile as JSON and as a table.
pub fn describe(profile: &[StepProfile], threads: usize) -> (Value, String) {
    let total: f64 = profile.iter().map(seconds).sum();
    // What a run touches: where that fits into a cache, the cache's pace is the limit.
    let touched = profile.iter().map(|step| step.bytes).sum::<u64>().clamp(1 << 16, 1 << 28) as usize;
    let limits = Limits {
        ops: roofline::integer_ops(true, threads.max(1)),
        wide_ops: roofline::integer_ops(false, threads.max(1)),
        bytes: roofline::read_bytes(touched, threads.max(1)),
    };
    let mut table = Table::new(&[
        "layer",
        "",
        ">channels",
        ">sum of",
        ">pixels",
        ">ms",
        ">share",
        ">Gop/s",
        ">MB",
        ">GB/s",
        ">roofline",
    ]);
    for step in profile {
        let time = seconds(step);
        let product = |value: String| if step.macs > 0 { value } else { String::new() };
        table.row(vec![
            step.name.clone(),
            step.kind.to_owned(),
            product(step.size[0].to_string()),
            product(step.size[1].to_string()),
            product(step.size[2].to_string()),
            format!("{:.3}", time * 1e3),
            format!("{:.1} %", 100.0 * time / total.max(1e-12)),
            product(format!("{:.1}", step.gops())),
            format!("{:.2}", step.bytes as f64 / 1e6),
            format!("{:.1}", step.bytes as f64 / time.max(1e-12) / 1e9),
            product(format!("{:.0} %", 100.0 * limits.share(step))),
        ]);
    }
    let macs: u64 = profile.iter().map(|step| step.macs).sum();
    let text = format!(
        "{}\nall layers: {:.3} ms, {:.1} Gop/s. Limits measured here: {:.0} Gop/s with few bits, {:.0} with eight; {:.1} GB/s.\n\
         The roofline is the longer of operations at the first pace and bytes at the last.",
        table.render(),
        total * 1e3,
        2e-9 * macs as f64 / total.max(1e-12),
        limits.ops / 1e9,
        limits.wide_ops / 1e9,
        limits.bytes / 1e9,
    );
    let layer = |step: &StepProfile| {
        json!({
            "name": step.name, "kind": step.kind, "channels": step.size[0], "sum_of": step.size[1], "pixels": step.size[2],
            "ms": seconds(step) * 1e3, "gops": step.gops(), "bytes": step.bytes, "roofline": limits.share(step),
        })
    };
    let limits_json = json!({
        "gops_few_bits": limits.ops / 1e9, "gops_eight_bits": limits.wide_ops / 1e9, "gb_per_s": limits.bytes / 1e9,
    });
    (json!({ "layers": profile.iter().map(layer).collect::<Vec<_>>(), "limits": limits_json }), text)
}

fn seconds(step: &StepProfile) -> f64 {
    step.time.as_secs_f64()
}

/// Operations and bytes per second.
struct Limits {
    ops: f64,
    wide_ops: f64,
    bytes: f64,
}

impl Limits {
    /// The shortest time that a step could take here, as a share of the time that it took.
    fn share(&self, step: &StepProfile) -> f64 {
        let ops = if self.ops > 0.0 { 2.0 * step.macs as f64 / self.ops } else { 0.0 };
        ops.max(step.bytes as f64 / self.bytes.max(1.0)) / seconds(step).max(1e-12)
    }
}
