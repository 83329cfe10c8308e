//! The page, section by section.

use std::fmt::Write;

use super::ReportData;
use super::chart::{Lines, Series, heat_strip};
use crate::events::Epoch;
use crate::table::{bytes, count, percent, seconds, short};

/// The whole page.
pub fn render(data: &ReportData) -> String {
    let title = if data.start.name.is_empty() { "bitsmith run" } else { &data.start.name };
    let mut body = String::new();
    for section in [
        header(data, title),
        figures(data),
        layers(data),
        movement(data),
        training(data),
        versions(data),
        proof(data),
        table(data),
        notes(data),
        reproduce(data),
    ] {
        if !section.is_empty() {
            body += &section;
            body.push('\n');
        }
    }
    document(title, &body, &data.start.version)
}

/// A page of its own around its sections.
pub fn document(title: &str, body: &str, version: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body><main>\n{body}<footer>made by bitsmith {}</footer>\n</main></body>\n</html>\n",
        escape(title),
        include_str!("style.css"),
        escape(version)
    )
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A hammer-struck byte: eight cells, some of them glowing.
pub const MARK: &str = r#"<svg viewBox="0 0 46 46" aria-hidden="true"><rect width="46" height="46" rx="11" fill="var(--accent)"/><g fill="var(--card)"><rect x="9" y="9" width="6" height="12" rx="1.5"/><rect x="17" y="9" width="6" height="12" rx="1.5" opacity=".35"/><rect x="25" y="9" width="6" height="12" rx="1.5"/><rect x="33" y="9" width="6" height="12" rx="1.5"/><rect x="9" y="25" width="6" height="12" rx="1.5" opacity=".35"/><rect x="17" y="25" width="6" height="12" rx="1.5"/><rect x="25" y="25" width="6" height="12" rx="1.5" opacity=".35"/><rect x="33" y="25" width="6" height="12" rx="1.5"/></g></svg>"#;

fn header(data: &ReportData, title: &str) -> String {
    let start = &data.start;
    let mut facts = Vec::new();
    if !start.model.is_empty() {
        facts.push(format!(
            "{}, {} weights, {} multiply-accumulates",
            start.model,
            count(start.weights),
            short(start.macs)
        ));
    }
    if !start.method.is_empty() {
        facts.push(format!("method {}", start.method));
    }
    if !start.data.is_empty() {
        let (train, test) = start.samples;
        facts.push(match (train, test) {
            (0, 0) => start.data.clone(),
            _ => format!("{} ({} to learn, {} held out)", start.data, count(train as u64), count(test as u64)),
        });
    }
    if let Some(s) = data.seconds {
        let device = start.device.as_ref().map_or(String::new(), |device| format!("{device} and "));
        facts.push(format!("{} on {device}{} threads", seconds(s), start.threads));
    }
    format!("<header>{MARK}<div><h1>{}</h1><p>{}</p></div></header>", escape(title), escape(&facts.join(" · ")))
}

fn figures(data: &ReportData) -> String {
    let mut html = String::new();
    let mut figure = |label: &str, value: String, note: String| {
        _ = write!(
            html,
            r#"<div class="figure"><div class="label">{label}</div><div class="value">{value}</div><div class="note">{note}</div></div>"#
        );
    };
    let result = data.result().or(data.variants.last());
    if let Some(result) = result {
        let note = match data.float().filter(|f| f.name != result.name) {
            Some(float) => {
                let points = 100.0 * (result.accuracy - float.accuracy);
                let class = if points >= -1.0 { "good" } else { "bad" };
                format!(r#"<span class="{class}">{points:+.2} points</span> against float"#)
            }
            None => "held-out samples".to_owned(),
        };
        figure("Accuracy", with_unit(&percent(result.accuracy)), note);
    }
    if let Some(stored) = data.mean_stored_bits() {
        let paper = data.mean_paper_bits().map_or(String::new(), |p| format!("{p:.2} as papers count"));
        let target = data.start.target_bits.map_or(String::new(), |t| format!("target {t}, "));
        figure("Mean stored bits per weight", format!("{stored:.2}"), format!("{target}{paper}"));
    }
    if let Some(result) = result.filter(|r| r.bytes > 0) {
        let note = match data.float().filter(|f| f.name != result.name) {
            Some(float) => {
                format!("{:.1}× smaller than {}", float.bytes as f64 / result.bytes as f64, bytes(float.bytes))
            }
            None => "as stored".to_owned(),
        };
        figure("File", with_unit(&bytes(result.bytes)), note);
    }
    if let Some(verify) = &data.verify {
        let (class, word) = if verify.agree { ("good", "proved") } else { ("bad", "disagrees") };
        let note =
            format!("{} same answers on {} samples", percent(verify.top1_agreement), count(verify.samples as u64));
        figure("Simulation = integers", format!(r#"<span class="{class}">{word}</span>"#), note);
    }
    match html.is_empty() {
        true => html,
        false => format!(r#"<div class="figures">{html}</div>"#),
    }
}

/// `91.42 %` with the unit set smaller.
fn with_unit(text: &str) -> String {
    match text.split_once(' ') {
        Some((number, unit)) => format!("{number} <small>{unit}</small>"),
        None => text.to_owned(),
    }
}

fn layers(data: &ReportData) -> String {
    let total: u64 = data.layers.iter().map(|l| l.bytes).sum();
    if data.layers.is_empty() {
        return String::new();
    }
    let mut rows = r#"<span class="head">layer</span><span class="head">bits stored per weight</span><span class="head num">bits</span><span class="head">share of the bytes</span><span class="head num">size</span>"#.to_owned();
    for layer in &data.layers {
        let cells: String = match layer.stored_bits {
            bits if bits > 8.0 => (0..8).map(|_| r#"<i class="float"></i>"#).collect(),
            bits => (0..8)
                .map(|i| match i {
                    _ if i as f64 >= bits => "<i></i>",
                    // The sign comes first where a code has one: that is where the two counts differ.
                    0 if layer.stored_bits > layer.weight_bits => r#"<i class="sign"></i>"#,
                    _ => r#"<i class="on"></i>"#,
                })
                .collect(),
        };
        let share = 100.0 * layer.bytes as f64 / total.max(1) as f64;
        _ = write!(
            rows,
            r#"<span class="name">{}</span><span class="bits">{cells}</span><span class="num">{}</span><span class="share" title="{share:.1} %"><i style="width:{share:.1}%"></i></span><span class="num">{}</span>"#,
            escape(&layer.name),
            number(layer.stored_bits),
            bytes(layer.bytes)
        );
    }
    format!(
        r#"<section><h2>Bits per layer</h2><p>What the file stores for each weight: <span class="key sign"></span>sign<span class="key on"></span>magnitude. The bar beside it is the layer's share of all weight bytes.</p><div class="bars">{rows}</div></section>"#
    )
}

fn movement(data: &ReportData) -> String {
    let epochs: Vec<&Epoch> = data.epochs.iter().filter(|e| !e.layer_bits.is_empty()).collect();
    if epochs.is_empty() {
        return String::new();
    }
    let mut series = vec![Series {
        name: "mean stored bits per weight".to_owned(),
        class: "s0",
        values: epochs.iter().map(|e| e.mean_bits).collect(),
    }];
    if let Some(target) = data.start.target_bits {
        let values = vec![Some(f64::from(target)); epochs.len()];
        series.push(Series { name: format!("target {target}"), class: "target", values });
    }
    let lines = Lines {
        series,
        y_at_least: Some((0.0, 8.0)),
        label: number,
        phases: phases(&epochs),
        width: 960.0,
        height: 210.0,
    };
    let bits: Vec<&[f32]> = epochs.iter().map(|e| e.layer_bits.as_slice()).collect();
    format!(
        r#"<section><h2>How the bits moved</h2><p>Training starts with every bit available, closes what the loss does not miss, and reopens what it does. Below, one row per layer over the epochs: the stronger the colour, the more bits.</p>{}{}<h3 style="margin-top:16px">Stored bits by layer and epoch</h3>{}</section>"#,
        lines.legend(),
        lines.svg(),
        heat_strip(&data.start.layers, &bits, 8.0)
    )
}

fn training(data: &ReportData) -> String {
    if data.epochs.is_empty() {
        return String::new();
    }
    let epochs: Vec<&Epoch> = data.epochs.iter().collect();
    let series = |name: &str, class, values: Vec<Option<f64>>| Series { name: name.to_owned(), class, values };
    let mut deployed: Vec<Option<f64>> = epochs.iter().map(|e| e.accuracy).collect();
    // Where the last epoch was not measured, the finished model is.
    if let (Some(last @ None), Some(result)) = (deployed.last_mut(), data.result()) {
        *last = Some(result.accuracy);
    }
    let mut accuracies = vec![
        series("held-out, as deployed", "s0", deployed),
        series("training", "s1", epochs.iter().map(|e| Some(e.train_accuracy)).collect()),
    ];
    if epochs.iter().any(|e| e.soft_accuracy.is_some()) {
        let values = epochs.iter().map(|e| e.soft_accuracy).collect();
        accuracies.push(series("held-out, bits still soft", "target", values));
    }
    let accuracy = Lines {
        series: accuracies,
        y_at_least: None,
        label: |v| format!("{} %", number(100.0 * v)),
        phases: phases(&epochs),
        width: 460.0,
        height: 250.0,
    };
    let loss = Lines {
        series: vec![
            series("held-out", "s0", epochs.iter().map(|e| e.loss).collect()),
            series("training", "s1", epochs.iter().map(|e| Some(e.train_loss)).collect()),
        ],
        label: number,
        ..accuracy.clone()
    };
    let charts: String = [("Accuracy", accuracy), ("Loss", loss)]
        .into_iter()
        .map(|(name, lines)| format!("<div><h3>{name}</h3>{}{}</div>", lines.legend(), lines.svg()))
        .collect();
    format!(
        r#"<section><h2>Training</h2><p>By epoch. Training figures are taken on augmented samples while the weights still move.</p><div class="pair">{charts}</div></section>"#
    )
}

/// Where each phase begins.
fn phases(epochs: &[&Epoch]) -> Vec<(usize, String)> {
    let mut phases: Vec<(usize, String)> = Vec::new();
    for (i, epoch) in epochs.iter().enumerate() {
        if phases.last().is_none_or(|(_, name)| *name != epoch.phase) {
            phases.push((i, epoch.phase.clone()));
        }
    }
    phases
}

fn versions(data: &ReportData) -> String {
    let Some(largest) = data.variants.iter().map(|v| v.bytes).max().filter(|_| data.variants.len() > 1) else {
        return String::new();
    };
    let float = data.float();
    let made = data.result().map(|r| r.name.clone()).unwrap_or_default();
    let mut rows = r#"<span class="head">version</span><span class="head">size</span><span class="head num"></span><span class="head num">mean bits</span><span class="head num">accuracy</span><span class="head num">against float</span>"#.to_owned();
    for v in &data.variants {
        let class = if v.name == made { " made" } else { "" };
        let width = 100.0 * v.bytes as f64 / largest.max(1) as f64;
        let delta = match float {
            Some(f) if f.name != v.name => format!("{:+.2}", 100.0 * (v.accuracy - f.accuracy)),
            _ => String::new(),
        };
        _ = write!(
            rows,
            r#"<span class="{class}">{}</span><span><span class="bar{class}" style="display:block;width:{width:.1}%"></span></span><span class="num{class}">{}</span><span class="num{class}">{}</span><span class="num{class}">{}</span><span class="num{class}">{delta}</span>"#,
            escape(&v.name),
            bytes(v.bytes),
            number(v.mean_bits),
            percent(v.accuracy)
        );
    }
    format!(
        r#"<section><h2>Size and accuracy</h2><p>The same network, the same held-out samples, the bytes on disk.</p><div class="versions">{rows}</div></section>"#
    )
}

fn proof(data: &ReportData) -> String {
    let Some(verify) = &data.verify else { return String::new() };
    let rows: String = verify
        .accuracies
        .iter()
        .map(|(name, accuracy)| {
            format!(r#"<tr><td>{}</td><td class="num">{}</td></tr>"#, escape(name), percent(*accuracy))
        })
        .collect();
    format!(
        r#"<section><h2>Proof</h2><p>The fast kernels and the simulation that training used computed the same {} inputs, the integer reference the first {} of them. Largest difference between two logits: {:.2e}. Same class on {}.</p><div class="scroll"><table style="width:auto"><tr><th>engine</th><th class="num">accuracy</th></tr>{rows}</table></div></section>"#,
        count(verify.samples as u64),
        count(verify.reference_samples as u64),
        verify.max_abs_diff,
        percent(verify.top1_agreement)
    )
}

fn table(data: &ReportData) -> String {
    if data.layers.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for l in &data.layers {
        let shape = l.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        _ = write!(
            rows,
            r#"<tr><td>{}</td><td>{}</td><td>{shape}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td><td>{}</td></tr>"#,
            escape(&l.name),
            escape(&l.op),
            count(l.weights),
            number(l.weight_bits),
            number(l.stored_bits),
            number(l.activation_bits),
            bytes(l.bytes),
            short(l.macs),
            escape(&l.arithmetic)
        );
    }
    format!(
        r#"<section><h2>Every layer</h2><p>“Bits (paper)” counts magnitude bits as publications do; “stored” is what the file holds, sign included.</p><div class="scroll"><table><tr><th>layer</th><th>operator</th><th>weight</th><th class="num">weights</th><th class="num">bits (paper)</th><th class="num">stored</th><th class="num">input bits</th><th class="num">size</th><th class="num">MACs</th><th>arithmetic</th></tr>{rows}</table></div></section>"#
    )
}

fn notes(data: &ReportData) -> String {
    if data.notes.is_empty() {
        return String::new();
    }
    let items: String = data.notes.iter().map(|n| format!("<li>{}</li>", escape(n))).collect();
    format!("<section><h2>What the run noted</h2><ul>{items}</ul></section>")
}

fn reproduce(data: &ReportData) -> String {
    let start = &data.start;
    if start.recipe.is_empty() {
        return String::new();
    }
    let is_command = !start.recipe.contains('\n');
    let (command, recipe) = match is_command {
        true => (start.recipe.clone(), String::new()),
        false => (
            "bitsmith train recipe.toml".to_owned(),
            format!("<details><summary>recipe.toml</summary><pre>{}</pre></details>", escape(&start.recipe)),
        ),
    };
    let promise = match &start.device {
        None => "The same seed and the same number of threads give the same bits.".to_owned(),
        Some(device) => {
            format!(
                "The network ran on the device {}, where sums come out a little different each time.",
                escape(device)
            )
        }
    };
    format!(
        r#"<section><h2>How to make it again</h2><p>Seed {} on {} threads. {promise}</p><pre>{}</pre>{recipe}</section>"#,
        start.seed,
        start.threads,
        escape(&command)
    )
}

/// A number with at most two decimals, none where it is whole.
fn number(v: f64) -> String {
    let text = format!("{v:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
