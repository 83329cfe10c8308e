//! Making a found scheme fit its budget: planes are closed where that costs the least loss per bit saved, and what is then
//! left over is spent where it saves the most. Any method that searches widths ends its search here, so a target is kept
//! whatever the search left behind.

use super::budget::{Budget, Count};
use super::grid::fake_quantize;
use super::range::Range;
use crate::error::Error;
use crate::method::{Slot, Trial};
use crate::quantizer::{Quantizer, Rows};

/// A quantizer whose tensor can be tried at other widths, given as planes: k of them and a sign hold the codes
/// −(2^k − 1) ..= 2^k − 1, whichever way the method writes them.
pub trait Fit: Quantizer {
    /// Fewest planes it may get.
    fn floor(&self) -> usize;
    /// Whether its width is given.
    fn is_given(&self) -> bool;
    /// The elements that share a step.
    fn rows(&self) -> &Rows;
    /// Shows these weights (in row order) in every forward pass instead of its own; `None` ends that.
    fn show(&mut self, weights: Option<Vec<f32>>);
}

/// The best step of each row for `k` planes.
pub fn best_steps(x: &[f32], rows: &Rows, k: usize, range: Range) -> Vec<f32> {
    x.chunks(rows.row_len.max(1)).map(|row| range.symmetric_step(row, (1 << k) - 1)).collect()
}

/// Shows `target` rounded to `k` planes with the best steps.
pub(crate) fn preview(quantizer: &mut impl Fit, target: &[f32], k: usize, range: Range) {
    let mut out = vec![0.0; target.len()];
    if k > 0 {
        let rows = quantizer.rows();
        let steps = best_steps(target, rows, k, range);
        fake_quantize(target, &steps, (1 << k) - 1, rows, &mut out);
    }
    quantizer.show(Some(out));
}

/// A layer's present width and what one plane more or less would do.
struct Layer {
    /// Target of the refit, in row order.
    target: Vec<f32>,
    /// What it weighs in the budget.
    size: usize,
    planes: usize,
    floor: usize,
    most: usize,
    /// Loss increase of closing one plane, and the round in which it was measured.
    closing: Option<(f64, usize)>,
}

/// Changes `planes` (one count per slot) until the budget holds, then opens planes that still fit if that lowers the
/// loss. Returns lines for the log.
///
/// A measurement stays good until another layer changes; then it is repeated before it is acted on, which needs few
/// repetitions, because most increases only grow as others close (lazy greedy).
pub fn fit_budget<Q: Fit>(
    slots: &mut [Slot<Q>],
    targets: Vec<Vec<f32>>,
    planes: &mut [usize],
    most: usize,
    budget: &Budget,
    range: Range,
    trial: &mut Trial<'_, Q>,
) -> Result<Vec<String>, Error> {
    let mut layers: Vec<Layer> = slots
        .iter()
        .zip(targets)
        .zip(planes.iter())
        .map(|((slot, target), &planes)| {
            let given = slot.quantizer.is_given();
            let most = if given { planes } else { most };
            let floor = if given { planes } else { slot.quantizer.floor() };
            Layer { target, size: budget.size(&slot.layer), planes, floor, most, closing: None }
        })
        .collect();
    let mut log = vec![];
    let holds = |layers: &[Layer]| budget.holds(&sizes(layers));
    if holds(&layers) && !any_fits(&layers, budget) {
        return Ok(log);
    }
    for (slot, layer) in slots.iter_mut().zip(&layers) {
        preview(&mut slot.quantizer, &layer.target, layer.planes, range);
    }
    let result = run(slots, &mut layers, budget, range, trial, &mut log);
    slots.iter_mut().for_each(|slot| slot.quantizer.show(None));
    result?;
    for (planes, layer) in planes.iter_mut().zip(&layers) {
        *planes = layer.planes;
    }
    Ok(log)
}

fn run<Q: Fit>(
    slots: &mut [Slot<Q>],
    layers: &mut [Layer],
    budget: &Budget,
    range: Range,
    trial: &mut Trial<'_, Q>,
    log: &mut Vec<String>,
) -> Result<(), Error> {
    let mut base = trial(slots)?;
    let mut round = 0;
    while !budget.holds(&sizes(layers)) {
        // Bits saved beyond what is asked for are worth nothing: a large layer must not vanish for a small excess.
        let excess = excess_bits(layers, budget);
        let price = |layer: &Layer| {
            let increase = layer.closing.map_or(f64::NEG_INFINITY, |(increase, _)| increase);
            increase / saved(layer, budget).min(excess)
        };
        let cheapest = (0..layers.len())
            .filter(|&i| layers[i].planes > layers[i].floor)
            .min_by(|&a, &b| price(&layers[a]).total_cmp(&price(&layers[b])));
        let Some(i) = cheapest else {
            return Err(Error::option(format!(
                "a target of {} mean bits cannot be reached: every layer is at its floor with {:.3}; lower the floor of the edge layers or raise the target",
                budget.target,
                budget.mean(&sizes(layers))
            )));
        };
        if layers[i].closing.is_none_or(|(_, measured)| measured != round) {
            let loss = try_planes(slots, layers, i, layers[i].planes - 1, range, trial)?;
            layers[i].closing = Some((loss - base, round));
            continue;
        }
        layers[i].planes -= 1;
        round += 1;
        let increase = layers[i].closing.take().map_or(0.0, |(increase, _)| increase);
        base += increase;
        preview(&mut slots[i].quantizer, &layers[i].target, layers[i].planes, range);
        log.push(format!(
            "closed plane {} of `{}`: loss {increase:+.4}, mean now {:.3} bits",
            layers[i].planes + 1,
            slots[i].layer.name,
            budget.mean(&sizes(layers)),
        ));
    }
    loop {
        let mut best: Option<(f64, usize, f64)> = None;
        for i in 0..layers.len() {
            if !fits(layers, i, budget) {
                continue;
            }
            let loss = try_planes(slots, layers, i, layers[i].planes + 1, range, trial)?;
            let rate = (base - loss) / added(&layers[i], budget);
            if loss < base && best.is_none_or(|(most, _, _)| rate > most) {
                best = Some((rate, i, loss));
            }
        }
        let Some((_, i, loss)) = best else { return Ok(()) };
        layers[i].planes += 1;
        preview(&mut slots[i].quantizer, &layers[i].target, layers[i].planes, range);
        log.push(format!(
            "opened plane {} of `{}`: loss {:+.4}, mean now {:.3} bits",
            layers[i].planes,
            slots[i].layer.name,
            loss - base,
            budget.mean(&sizes(layers)),
        ));
        base = loss;
    }
}

/// The loss with layer `i` at `planes` planes; everything is as before afterwards.
fn try_planes<Q: Fit>(
    slots: &mut [Slot<Q>],
    layers: &[Layer],
    i: usize,
    planes: usize,
    range: Range,
    trial: &mut Trial<'_, Q>,
) -> Result<f64, Error> {
    preview(&mut slots[i].quantizer, &layers[i].target, planes, range);
    let loss = trial(slots);
    preview(&mut slots[i].quantizer, &layers[i].target, layers[i].planes, range);
    // A layer without planes may leave nothing to normalise: no number means no good choice.
    loss.map(|loss| if loss.is_finite() { loss } else { f64::MAX })
}

fn sizes(layers: &[Layer]) -> Vec<(usize, usize)> {
    layers.iter().map(|l| (l.size, l.planes)).collect()
}

fn bits(layer: &Layer, planes: usize, count: Count) -> f64 {
    layer.size as f64 * count.bits(planes)
}

/// Bits above the budget, by size.
fn excess_bits(layers: &[Layer], budget: &Budget) -> f64 {
    let total: usize = layers.iter().map(|l| l.size).sum();
    ((budget.mean(&sizes(layers)) - budget.target) * total as f64).max(1.0)
}

/// Bits that closing a plane saves. Closing the last stored one saves the sign as well.
fn saved(layer: &Layer, budget: &Budget) -> f64 {
    (bits(layer, layer.planes, budget.count) - bits(layer, layer.planes - 1, budget.count)).max(1.0)
}

fn added(layer: &Layer, budget: &Budget) -> f64 {
    (bits(layer, layer.planes + 1, budget.count) - bits(layer, layer.planes, budget.count)).max(1.0)
}

fn fits(layers: &[Layer], i: usize, budget: &Budget) -> bool {
    let mut sizes = sizes(layers);
    sizes[i].1 += 1;
    layers[i].planes < layers[i].most && budget.holds(&sizes)
}

fn any_fits(layers: &[Layer], budget: &Budget) -> bool {
    (0..layers.len()).any(|i| fits(layers, i, budget))
}
