//! The page that compares: two pictures and the table.

use std::fmt::Write;

use super::results::{Comparison, Group};
use crate::report::page::{MARK, document, escape};
use crate::report::scatter::{Curve, Point, Scatter};
use crate::table::{bytes, percent, seconds, short};

/// File names and pictures: accuracy against size, and against bit operations.
pub fn charts(comparison: &Comparison) -> Vec<(&'static str, Scatter)> {
    let chart = |x: &dyn Fn(&Group) -> f64, label: &'static str, tick: fn(f64) -> String| {
        let mut curves: Vec<Curve> = vec![];
        for group in &comparison.groups {
            let point = Point {
                x: x(group),
                y: group.accuracy,
                spread: group.deviation,
                title: format!(
                    "{}{}: {}",
                    group.label,
                    group.target.map_or(String::new(), |t| format!(", target {t}")),
                    percent(group.accuracy)
                ),
            };
            match curves.iter_mut().find(|c| c.name == group.label) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { name: group.label.clone(), points: vec![point] }),
            }
        }
        Scatter {
            curves,
            baseline: comparison.float.map(|f| ("float".to_owned(), f)),
            x_label: label,
            x_tick: tick,
            y_tick: |v| format!("{:.1} %", 100.0 * v),
            width: 960.0,
            height: 380.0,
        }
    };
    vec![
        ("accuracy-size.svg", chart(&|g| g.bytes, "bytes of the packed file", |v| bytes(v.max(0.0) as u64))),
        (
            "accuracy-bit-operations.svg",
            chart(&|g| g.bit_operations, "bit operations for one sample", |v| short(v.max(0.0) as u64)),
        ),
    ]
}

/// The whole page.
pub fn render(comparison: &Comparison, command: &str) -> String {
    let mut body = format!(
        r#"<header>{MARK}<div><h1>Comparison</h1><p>{} runs; accuracy of the packed file on held-out samples, mean and standard deviation over seeds</p></div></header>"#,
        comparison.runs.len()
    );
    body.push('\n');
    for ((_, chart), title) in
        charts(comparison).iter().zip(["Accuracy against size", "Accuracy against bit operations"])
    {
        let svg = chart.svg();
        if !svg.is_empty() {
            _ = writeln!(
                body,
                "<section><h2>{title}</h2><p>Ringed: no other costs less and is more accurate.</p>{}{svg}</section>",
                chart.legend()
            );
        }
    }
    let mut rows = String::new();
    for g in &comparison.groups {
        let spread = if g.runs > 1 { format!(" ± {:.2}", 100.0 * g.deviation) } else { String::new() };
        let against = comparison.float.map_or(String::new(), |f| format!("{:+.2}", 100.0 * (g.accuracy - f)));
        _ = write!(
            rows,
            r#"<tr{}><td>{}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}{spread}</td><td class="num">{against}</td><td class="num">{:.2}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td></tr>"#,
            if g.is_best { r#" class="made""# } else { "" },
            escape(&g.label),
            g.target.map_or_else(String::new, |t| t.to_string()),
            g.runs,
            percent(g.accuracy),
            g.mean_bits,
            bytes(g.bytes.round() as u64),
            short(g.bit_operations.round() as u64),
            seconds(60.0 * g.minutes),
            g.peak_rss_mb.map_or_else(String::new, |mb| format!("{mb:.0} MB")),
        );
    }
    let float = comparison.float.map_or(String::new(), |f| format!(" The float network: {}.", percent(f)));
    _ = writeln!(
        body,
        r#"<section><h2>Every method and budget</h2><p>Bold: no other is both smaller and more accurate.{float}</p><div class="scroll"><table><tr><th>method</th><th class="num">target</th><th class="num">runs</th><th class="num">accuracy</th><th class="num">against float</th><th class="num">bits</th><th class="num">size</th><th class="num">bit operations</th><th class="num">time</th><th class="num">memory</th></tr>{rows}</table></div></section>"#
    );
    _ = writeln!(body, "<section><h2>How to make it again</h2><pre>{}</pre></section>", escape(command));
    document("bitsmith comparison", &body, env!("CARGO_PKG_VERSION"))
}
