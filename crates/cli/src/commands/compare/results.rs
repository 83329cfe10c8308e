//! What the runs of a grid came to: one result each, means over seeds, and what of it is best.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::grid::Case;
use super::{events, files, page, report};
use crate::events::{Event, LayerRow};
use crate::failure::Failure;
use crate::report::ReportData;
use crate::table::{Table, bytes, percent, seconds, short};

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct Result {
    /// What it has in common with others of its curve.
    pub label: String,
    /// Mean bits asked for.
    pub target: Option<f64>,
    /// Its seed.
    pub seed: u64,
    /// Accuracy of the packed runtime on held-out samples.
    pub accuracy: f64,
    /// Accuracy of the float network it began with, where that was measured.
    pub float_accuracy: Option<f64>,
    /// Mean stored bits per weight.
    #[serde(rename = "mean_weight_bits")]
    pub mean_bits: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Multiply-accumulates of a sample times the bits of both factors.
    pub bit_operations: u64,
    /// Training and all that follows.
    pub seconds: f64,
    /// Most memory, where the system tells.
    pub peak_rss_mb: Option<f64>,
    /// The run's folder.
    pub run: PathBuf,
}

impl Result {
    /// Reads a run's log; `None` where it is not finished.
    pub fn read(case: &Case) -> std::result::Result<Option<Self>, Failure> {
        let events = events::read(&case.folder)?;
        let Some((seconds, peak_rss_mb)) = events.iter().find_map(|event| match event {
            Event::Finish { seconds, peak_rss_mb } => Some((*seconds, *peak_rss_mb)),
            _ => None,
        }) else {
            return Ok(None);
        };
        let data = ReportData::from_events(&events);
        let Some(result) = data.variants.last() else {
            return Err(Failure::new(format!("the run in `{}` measured no accuracy", case.folder.display()))
                .remedy("compare on held-out samples with labels"));
        };
        let is_float = case.recipe.method() == "float";
        Ok(Some(Self {
            label: case.label.clone(),
            target: case.target,
            seed: case.seed,
            accuracy: result.accuracy,
            float_accuracy: data.float().filter(|_| !is_float).map(|v| v.accuracy),
            mean_bits: result.mean_bits,
            bytes: result.bytes,
            bit_operations: data.layers.iter().map(bit_operations).sum(),
            seconds,
            peak_rss_mb,
            run: case.folder.clone(),
        }))
    }
}

/// A ternary weight is multiplied as a code of two bits, whatever it takes in the file.
fn bit_operations(layer: &LayerRow) -> u64 {
    layer.macs * (layer.stored_bits.ceil() * layer.activation_bits) as u64
}

/// The runs that differ in nothing but the seed.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The curve they lie on.
    pub label: String,
    /// Mean bits asked for.
    pub target: Option<f64>,
    /// How many.
    pub runs: usize,
    /// Mean accuracy.
    pub accuracy: f64,
    /// Standard deviation of the accuracy; 0 for one run.
    pub deviation: f64,
    /// Mean stored bits per weight.
    #[serde(rename = "mean_weight_bits")]
    pub mean_bits: f64,
    /// Mean bytes.
    pub bytes: f64,
    /// Mean bit operations.
    pub bit_operations: f64,
    /// Mean minutes.
    pub minutes: f64,
    /// Most memory of any run.
    pub peak_rss_mb: Option<f64>,
    /// Whether no other group is both smaller and more accurate.
    pub is_best: bool,
}

/// Everything a grid came to so far.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Runs in the order they were made.
    pub runs: Vec<Result>,
    /// Groups in that order.
    pub groups: Vec<Group>,
    /// Accuracy of the float network, where it was measured.
    pub float: Option<f64>,
}

impl Comparison {
    /// Gathers runs.
    pub fn of(runs: &[Result]) -> Self {
        let mut groups: Vec<Group> = vec![];
        for run in runs {
            let is_same = |g: &Group| g.label == run.label && g.target == run.target;
            if groups.iter().any(is_same) {
                continue;
            }
            let all: Vec<&Result> = runs.iter().filter(|r| r.label == run.label && r.target == run.target).collect();
            groups.push(group(&all));
        }
        let best: Vec<bool> = groups
            .iter()
            .map(|g| {
                let beats = |o: &Group| {
                    o.bytes <= g.bytes && o.accuracy >= g.accuracy && (o.bytes < g.bytes || o.accuracy > g.accuracy)
                };
                !groups.iter().any(beats)
            })
            .collect();
        groups.iter_mut().zip(best).for_each(|(g, best)| g.is_best = best);
        Self { runs: runs.to_vec(), groups, float: runs.iter().find_map(|r| r.float_accuracy) }
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let float = self.float.map_or(String::new(), |f| format!("float: {}\n", percent(f)));
        format!("{}{float}* no other is both smaller and more accurate\n", self.rows().render())
    }

    fn rows(&self) -> Table {
        let columns =
            ["method", ">target", ">runs", ">accuracy", ">±", ">bits", ">size", ">bit ops", ">time", ">MB", "best"];
        let mut table = Table::new(&columns);
        for g in &self.groups {
            table.row([
                g.label.clone(),
                g.target.map_or_else(String::new, |t| t.to_string()),
                g.runs.to_string(),
                percent(g.accuracy),
                if g.runs > 1 { format!("{:.2}", 100.0 * g.deviation) } else { String::new() },
                format!("{:.2}", g.mean_bits),
                bytes(g.bytes.round() as u64),
                short(g.bit_operations.round() as u64),
                seconds(60.0 * g.minutes),
                g.peak_rss_mb.map_or_else(String::new, |mb| format!("{mb:.0}")),
                if g.is_best { "*" } else { "" }.to_owned(),
            ]);
        }
        table
    }

    /// As documented JSON.
    pub fn json(&self, folder: &Path) -> serde_json::Value {
        json!({ "float_accuracy": self.float, "groups": self.groups, "runs": self.runs, "folder": folder })
    }

    /// Writes page, pictures and numbers into the grid's folder.
    pub fn write(&self, folder: &Path, command: &str) -> std::result::Result<PathBuf, Failure> {
        files::write(
            &folder.join("results.json"),
            (serde_json::to_string_pretty(&self.json(folder))? + "\n").as_bytes(),
        )?;
        files::write(&folder.join("compare.md"), self.rows().markdown().as_bytes())?;
        for (name, chart) in page::charts(self) {
            files::write(&folder.join(name), report::scatter::standalone(&chart).as_bytes())?;
        }
        let path = folder.join("compare.html");
        files::write(&path, page::render(self, command).as_bytes())?;
        Ok(path)
    }
}

fn group(runs: &[&Result]) -> Group {
    let n = runs.len().max(1) as f64;
    let mean = |f: &dyn Fn(&Result) -> f64| runs.iter().map(|r| f(r)).sum::<f64>() / n;
    let accuracy = mean(&|r| r.accuracy);
    let square = runs.iter().map(|r| (r.accuracy - accuracy).powi(2)).sum::<f64>();
    Group {
        label: runs[0].label.clone(),
        target: runs[0].target,
        runs: runs.len(),
        accuracy,
        deviation: if runs.len() > 1 { (square / (n - 1.0)).sqrt() } else { 0.0 },
        mean_bits: mean(&|r| r.mean_bits),
        bytes: mean(&|r| r.bytes as f64),
        bit_operations: mean(&|r| r.bit_operations as f64),
        minutes: mean(&|r| r.seconds / 60.0),
        peak_rss_mb: runs.iter().filter_map(|r| r.peak_rss_mb).reduce(f64::max),
        is_best: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn result(label: &str, target: f64, seed: u64, accuracy: f64, bytes: u64) -> Result {
        Result {
            label: label.to_owned(),
            target: Some(target),
            seed,
            accuracy,
            float_accuracy: Some(0.95),
            mean_bits: target,
            bytes,
            bit_operations: bytes * 1000,
            seconds: 60.0,
            peak_rss_mb: Some(300.0),
            run: PathBuf::from("run"),
        }
    }

    #[test]
    fn seeds_become_means_and_the_front_is_marked() {
        let runs = [
            result("csq", 2.0, 1, 0.90, 100),
            result("csq", 2.0, 2, 0.92, 100),
            result("lsq", 2.0, 1, 0.89, 120),
            result("csq", 3.0, 1, 0.94, 200),
        ];
        let all = Comparison::of(&runs);
        let labels: Vec<_> = all.groups.iter().map(|g| (g.label.as_str(), g.target, g.runs, g.is_best)).collect();
        assert_eq!(labels, [("csq", Some(2.0), 2, true), ("lsq", Some(2.0), 1, false), ("csq", Some(3.0), 1, true)]);
        assert!((all.groups[0].accuracy - 0.91).abs() < 1e-12);
        assert!((all.groups[0].deviation - 0.02f64 / 2.0f64.sqrt()).abs() < 1e-12);
        assert_eq!(all.float, Some(0.95));
        assert!(all.table().contains("91.00 %") && all.table().contains('*'));
        let markdown = all.rows().markdown();
        assert!(markdown.starts_with("| method | target |") && markdown.lines().count() == 5, "{markdown}");
        assert!(markdown.contains("| csq | 2 | 2 | 91.00 % |"), "{markdown}");
    }

    #[test]
    fn the_page_stands_alone_whatever_it_compares() {
        for runs in [vec![], vec![result("a<b", 2.0, 1, 0.9, 100)], vec![result("x", 2.0, 1, f64::NAN, 0)]] {
            let page = page::render(&Comparison::of(&runs), "bitsmith compare x.toml");
            assert!(page.ends_with("</html>\n"));
            for outside in ["http://", "https://", "<script", "<link", "a<b"] {
                assert!(!page.contains(outside), "{outside}");
            }
        }
    }
}
