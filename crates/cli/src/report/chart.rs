//! Charts as SVG text: lines over epochs and a heat strip of bits. Colours are CSS classes, so the page's theme decides.

use std::fmt::Write;

use super::page::escape;

/// One line of a chart. Epochs without a value are skipped: the line joins their neighbours. A value that is not finite leaves a gap.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is called in the legend.
    pub name: String,
    /// CSS class: `s0`, `s1`, … or `target`.
    pub class: &'static str,
    /// One value per epoch.
    pub values: Vec<Option<f64>>,
}

/// A line chart over epochs 1..n.
#[derive(Debug, Clone)]
pub struct Lines {
    /// The lines.
    pub series: Vec<Series>,
    /// The least range of the vertical axis.
    pub y_at_least: Option<(f64, f64)>,
    /// How tick labels are written.
    pub label: fn(f64) -> String,
    /// Epochs at which a new phase begins (0-based index), with the phase's name.
    pub phases: Vec<(usize, String)>,
    /// Width of the drawing.
    pub width: f64,
    /// Height of the drawing.
    pub height: f64,
}

const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 28.0;

impl Lines {
    /// The chart, or nothing where there is no number to draw.
    pub fn svg(&self) -> String {
        let count = self.series.iter().map(|s| s.values.len()).max().unwrap_or(0);
        let drawable = |v: f64| v.is_finite() && v.abs() < 1e12;
        let finite = || self.series.iter().flat_map(|s| s.values.iter().flatten()).copied().filter(|&v| drawable(v));
        if count == 0 || finite().next().is_none() {
            return String::new();
        }
        let (mut low, mut high) = finite().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        if let Some((a, b)) = self.y_at_least {
            (low, high) = (low.min(a), high.max(b));
        }
        let ticks = ticks(low, high);
        let (low, high) = (low.min(ticks[0]), high.max(ticks[ticks.len() - 1]));
        let (inner_w, inner_h) = (self.width - LEFT - RIGHT, self.height - TOP - BOTTOM);
        let x = |i: usize| LEFT + if count == 1 { inner_w / 2.0 } else { inner_w * i as f64 / (count - 1) as f64 };
        let y = |v: f64| TOP + inner_h * (1.0 - (v - low) / (high - low));

        let mut svg = format!(r#"<svg class="chart" viewBox="0 0 {} {}" role="img">"#, self.width, self.height);
        // Where the last phase's name ends: a phase too short for its own goes without.
        let mut named_to = f64::MIN;
        for (n, (begin, name)) in self.phases.iter().enumerate() {
            let end = self.phases.get(n + 1).map_or(count - 1, |p| p.0);
            let (x0, x1) = (x(*begin), x(end));
            if n % 2 == 1 {
                _ = write!(
                    svg,
                    r#"<rect class="phase" x="{x0:.1}" y="{TOP}" width="{:.1}" height="{inner_h:.1}"/>"#,
                    x1 - x0
                );
            }
            if self.phases.len() > 1 && x0 + 4.0 >= named_to {
                named_to = x0 + 8.0 + 6.0 * name.chars().count() as f64;
                _ = write!(
                    svg,
                    r#"<text class="{}" x="{:.1}" y="{:.1}">{}</text>"#,
                    // A phase that begins at the right edge is named leftwards.
                    if x0 > self.width - 60.0 { "end" } else { "phase-name" },
                    if x0 > self.width - 60.0 { self.width - RIGHT } else { x0 + 4.0 },
                    TOP - 7.0,
                    escape(name)
                );
            }
        }
        for tick in &ticks {
            let at = y(*tick);
            _ = write!(svg, r#"<path class="grid" d="M{LEFT} {at:.1}H{:.1}"/>"#, self.width - RIGHT);
            _ = write!(
                svg,
                r#"<text class="tick end" x="{:.1}" y="{:.1}">{}</text>"#,
                LEFT - 7.0,
                at + 3.6,
                (self.label)(*tick)
            );
        }
        for epoch in epoch_ticks(count) {
            let at = x(epoch - 1);
            _ = write!(svg, r#"<text class="tick mid" x="{at:.1}" y="{:.1}">{epoch}</text>"#, self.height - 9.0);
        }
        for series in &self.series {
            let mut path = String::new();
            let mut pen_down = false;
            for (i, value) in series.values.iter().enumerate() {
                match *value {
                    Some(v) if drawable(v) => {
                        _ = write!(path, "{}{:.1} {:.1}", if pen_down { 'L' } else { 'M' }, x(i), y(v));
                        pen_down = true;
                    }
                    Some(_) => pen_down = false,
                    None => {}
                }
            }
            _ = write!(svg, r#"<path class="line {}" d="{path}"/>"#, series.class);
            if let Some((i, v)) =
                series.values.iter().enumerate().filter_map(|(i, v)| Some((i, v.filter(|&v| drawable(v))?))).next_back()
                && series.class != "target"
            {
                let (name, label) = (escape(&series.name), (self.label)(v));
                _ = write!(
                    svg,
                    r#"<circle class="dot {}" cx="{:.1}" cy="{:.1}" r="3"><title>{name}, epoch {}: {label}</title></circle>"#,
                    series.class,
                    x(i),
                    y(v),
                    i + 1
                );
            }
        }
        svg + "</svg>"
    }

    /// The names of the lines with their colours, as HTML.
    pub fn legend(&self) -> String {
        let mut html = r#"<div class="legend">"#.to_owned();
        for series in &self.series {
            _ = write!(html, r#"<span><i class="{}"></i>{}</span>"#, series.class, escape(&series.name));
        }
        html + "</div>"
    }
}

/// One row per layer, one column per epoch, the darker the more bits. Each cell says its numbers when pointed at.
pub fn heat_strip(names: &[String], epochs: &[&[f32]], most: f32) -> String {
    let rows = names.len();
    if rows == 0 || epochs.is_empty() {
        return String::new();
    }
    let (left, right, row_h) = (150.0, 34.0, if rows > 40 { 11.0 } else { 15.0 });
    let (width, top) = (960.0, 4.0);
    let cell_w = (width - left - right) / epochs.len() as f64;
    let height = top + row_h * rows as f64 + 22.0;
    let mut svg = format!(r#"<svg class="chart strip" viewBox="0 0 {width} {height}" role="img">"#);
    for (row, name) in names.iter().enumerate() {
        let y = top + row_h * row as f64;
        let short: String = match name.chars().count() {
            0..=22 => name.clone(),
            n => "…".to_owned() + &name.chars().skip(n - 21).collect::<String>(),
        };
        _ = write!(
            svg,
            r#"<text class="tick end" x="{:.1}" y="{:.1}">{}</text>"#,
            left - 8.0,
            y + row_h * 0.72,
            escape(&short)
        );
        let value = |e: usize| epochs[e].get(row).copied().filter(|b| b.is_finite());
        // Equal neighbours become one rectangle: a run of 300 epochs stays a small file.
        let mut begin = 0;
        while begin < epochs.len() {
            let bits = value(begin);
            let mut end = begin + 1;
            while end < epochs.len() && value(end) == bits {
                end += 1;
            }
            if let Some(bits) = bits {
                let depth = f64::from((bits / most.max(1.0)).clamp(0.0, 1.0));
                let (from, to) = (begin + 1, end);
                let when = if from == to { format!("epoch {from}") } else { format!("epochs {from} to {to}") };
                _ = write!(
                    svg,
                    r#"<rect class="cell" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill-opacity="{:.2}"><title>{}, {when}: {bits} bits</title></rect>"#,
                    left + cell_w * begin as f64,
                    y,
                    cell_w * (end - begin) as f64,
                    row_h - 1.5,
                    0.04 + 0.96 * depth,
                    escape(name)
                );
            }
            begin = end;
        }
        if let Some(bits) = value(epochs.len() - 1) {
            _ = write!(
                svg,
                r#"<text class="tick strong" x="{:.1}" y="{:.1}">{bits}</text>"#,
                width - right + 8.0,
                y + row_h * 0.72
            );
        }
    }
    for epoch in epoch_ticks(epochs.len()) {
        let x = left + cell_w * (epoch as f64 - 0.5);
        _ = write!(svg, r#"<text class="tick mid" x="{x:.1}" y="{:.1}">{epoch}</text>"#, height - 5.0);
    }
    svg + "</svg>"
}

/// Round numbers that enclose a range: 3 to 6 of them.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = if high - low > 1e-9 * high.abs().max(1e-9) { high - low } else { high.abs().max(1.0) * 0.1 };
    let magnitude = 10f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|s| span / s <= 4.5).unwrap_or(span);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// 1-based epochs to label: the first, the last, and round ones between.
fn epoch_ticks(count: usize) -> Vec<usize> {
    let step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500].into_iter().find(|s| count / s <= 10).unwrap_or(count.max(1));
    let mut ticks: Vec<usize> = (1..=count).filter(|e| e % step == 0).collect();
    if ticks.first() != Some(&1) && step > 1 {
        ticks.insert(0, 1);
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::{epoch_ticks, ticks};

    #[test]
    fn ticks_are_round_and_enclose() {
        for (low, high) in [(0.0, 1.0), (0.13, 0.97), (2.9, 8.0), (5.0, 5.0), (0.0, 0.0), (-3.0, 1e6), (0.9123, 0.9124)]
        {
            let ticks = ticks(low, high);
            assert!((2..=8).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks[0] <= low + 1e-9 && ticks[ticks.len() - 1] >= high - 1e-9, "{low}..{high}: {ticks:?}");
        }
    }

    #[test]
    fn epochs_are_labelled_sparsely() {
        assert_eq!(epoch_ticks(3), [1, 2, 3]);
        assert_eq!(epoch_ticks(24), [1, 5, 10, 15, 20]);
        assert!(epoch_ticks(600).len() <= 13);
        assert!(epoch_ticks(0).is_empty());
    }
}
