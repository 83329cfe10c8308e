//! Points with spreads, joined to curves, as SVG text: accuracy against what it costs.

use std::fmt::Write;

use super::chart::ticks;
use super::page::escape;

/// A measured point.
#[derive(Debug, Clone)]
pub struct Point {
    /// What it costs.
    pub x: f64,
    /// What it achieves.
    pub y: f64,
    /// Standard deviation of that; 0 draws none.
    pub spread: f64,
    /// What it says when pointed at.
    pub title: String,
}

/// Points of one kind, joined by a line. A point is ringed in the picture if no other costs less and achieves more.
#[derive(Debug, Clone)]
pub struct Curve {
    /// What it is called in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<Point>,
}

/// A picture of curves.
#[derive(Debug, Clone)]
pub struct Scatter {
    /// The curves, drawn in this order; colours repeat after eight, with other marks.
    pub curves: Vec<Curve>,
    /// A level to compare with, and its name.
    pub baseline: Option<(String, f64)>,
    /// What the horizontal axis shows.
    pub x_label: &'static str,
    /// How its ticks are written.
    pub x_tick: fn(f64) -> String,
    /// How ticks of the vertical axis are written.
    pub y_tick: fn(f64) -> String,
    /// Width of the drawing.
    pub width: f64,
    /// Height of the drawing.
    pub height: f64,
}

const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Number of colours, `c0` to `c7` in the style sheet.
const COLOURS: usize = 8;

impl Scatter {
    /// The picture, or nothing where there is no number to draw.
    pub fn svg(&self) -> String {
        let drawable = |p: &&Point| p.x.is_finite() && p.y.is_finite() && p.spread.is_finite();
        let points = || self.curves.iter().flat_map(|c| &c.points).filter(drawable);
        if points().next().is_none() {
            return String::new();
        }
        let range =
            |values: &mut dyn Iterator<Item = f64>| values.fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        let (x_low, x_high) = range(&mut points().map(|p| p.x));
        let level = self.baseline.as_ref().map(|b| b.1).filter(|v| v.is_finite());
        let (y_low, y_high) = range(&mut points().flat_map(|p| [p.y - p.spread, p.y + p.spread]).chain(level));
        let (x_ticks, y_ticks) = (ticks(x_low, x_high), ticks(y_low, y_high));
        let ends = |ticks: &[f64], low: f64, high: f64| (ticks[0].min(low), ticks[ticks.len() - 1].max(high));
        let ((x0, x1), (y0, y1)) = (ends(&x_ticks, x_low, x_high), ends(&y_ticks, y_low, y_high));
        let (inner_w, inner_h) = (self.width - LEFT - RIGHT, self.height - TOP - BOTTOM);
        let x = |v: f64| LEFT + inner_w * (v - x0) / (x1 - x0);
        let y = |v: f64| TOP + inner_h * (1.0 - (v - y0) / (y1 - y0));

        let is_best = |p: &Point| {
            let beats = |o: &Point| o.x <= p.x && o.y >= p.y && (o.x < p.x || o.y > p.y);
            !points().any(beats)
        };
        let mut svg = format!(r#"<svg class="chart" viewBox="0 0 {} {}" role="img">"#, self.width, self.height);
        for tick in &y_ticks {
            let at = y(*tick);
            _ = write!(svg, r#"<path class="grid" d="M{LEFT} {at:.1}H{:.1}"/>"#, self.width - RIGHT);
            let text = (self.y_tick)(*tick);
            _ = write!(svg, r#"<text class="tick end" x="{:.1}" y="{:.1}">{text}</text>"#, LEFT - 7.0, at + 3.6);
        }
        for tick in &x_ticks {
            let at = x(*tick);
            _ = write!(svg, r#"<path class="grid" d="M{at:.1} {TOP}V{:.1}"/>"#, TOP + inner_h);
            let text = (self.x_tick)(*tick);
            _ = write!(svg, r#"<text class="tick mid" x="{at:.1}" y="{:.1}">{text}</text>"#, TOP + inner_h + 17.0);
        }
        let middle = LEFT + inner_w / 2.0;
        _ = write!(
            svg,
            r#"<text class="tick mid" x="{middle:.1}" y="{:.1}">{}</text>"#,
            self.height - 8.0,
            self.x_label
        );
        if let Some((name, level)) = self.baseline.as_ref().filter(|(_, v)| v.is_finite()) {
            let at = y(*level);
            _ = write!(svg, r#"<path class="line target" d="M{LEFT} {at:.1}H{:.1}"/>"#, self.width - RIGHT);
            let right = self.width - RIGHT - 4.0;
            _ = write!(svg, r#"<text class="tick end" x="{right:.1}" y="{:.1}">{}</text>"#, at - 5.0, escape(name));
        }
        for (n, curve) in self.curves.iter().enumerate() {
            let colour = n % COLOURS;
            let mut sorted: Vec<&Point> = curve.points.iter().filter(drawable).collect();
            sorted.sort_by(|a, b| a.x.total_cmp(&b.x));
            let path: String = sorted
                .iter()
                .enumerate()
                .map(|(i, p)| format!("{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x(p.x), y(p.y)))
                .collect();
            _ = write!(svg, r#"<path class="line thin c{colour}" d="{path}"/>"#);
            for p in sorted {
                let (px, py) = (x(p.x), y(p.y));
                if p.spread > 0.0 {
                    let (top, bottom) = (y(p.y + p.spread), y(p.y - p.spread));
                    _ = write!(svg, r#"<path class="line thin c{colour}" d="M{px:.1} {top:.1}V{bottom:.1}"/>"#);
                }
                if is_best(p) {
                    _ = write!(svg, r#"<circle class="ring" cx="{px:.1}" cy="{py:.1}" r="8"/>"#);
                }
                let title = escape(&p.title);
                if (n / COLOURS).is_multiple_of(2) {
                    _ = write!(
                        svg,
                        r#"<circle class="mark c{colour}" cx="{px:.1}" cy="{py:.1}" r="4.5"><title>{title}</title></circle>"#
                    );
                } else {
                    let (left, top) = (px - 4.0, py - 4.0);
                    _ = write!(
                        svg,
                        r#"<rect class="mark c{colour}" x="{left:.1}" y="{top:.1}" width="8" height="8"><title>{title}</title></rect>"#
                    );
                }
            }
        }
        svg + "</svg>"
    }

    /// The names of the curves with their colours, as HTML.
    pub fn legend(&self) -> String {
        let name =
            |(n, c): (usize, &Curve)| format!(r#"<span><i class="c{}"></i>{}</span>"#, n % COLOURS, escape(&c.name));
        format!(r#"<div class="legend">{}</div>"#, self.curves.iter().enumerate().map(name).collect::<String>())
    }
}

/// The picture as a file of its own: style included, names beside the curves' colours at the top.
pub fn standalone(chart: &Scatter) -> String {
    let style = include_str!("style.css");
    let svg = chart.svg();
    let Some(inner) = svg.split_once('>').map(|(_, rest)| rest.trim_end_matches("</svg>")) else {
        return String::from(r#"<svg xmlns="http://www.w3.org/2000/svg"/>"#);
    };
    let mut legend = String::new();
    let mut at = LEFT;
    for (n, curve) in chart.curves.iter().enumerate() {
        let colour = n % COLOURS;
        _ = write!(
            legend,
            r#"<circle class="mark c{colour}" cx="{:.1}" cy="14" r="4.5"/><text class="tick" x="{:.1}" y="18">{}</text>"#,
            at + 5.0,
            at + 14.0,
            escape(&curve.name)
        );
        at += 30.0 + 7.0 * curve.name.chars().count() as f64;
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 -24 {w} {h}" width="{w}" height="{h}"><style>{style}</style><rect y="-24" width="{w}" height="{h}" fill="var(--card)"/><g transform="translate(0 -24)">{legend}</g>{inner}</svg>"#,
        w = chart.width,
        h = chart.height + 24.0,
    ) + "\n"
}
