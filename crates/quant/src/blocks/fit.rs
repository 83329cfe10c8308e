//! Making a found scheme fit its budget: widths are narrowed where that costs the least loss per bit saved, and what is then
//! left over is spent where it saves the most. Any method that searches widths ends its search here, so a target is kept
//! whatever the search left behind. Weights come as planes, activations as bits ([`crate::train::activations`]).

use super::budget::{Budget, Price};
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

/// Something whose width is fitted: the weights of a layer in planes, an activation in bits.
#[derive(Debug, Clone)]
pub struct Item {
    /// What to call it in the log.
    pub name: String,
    /// What it costs at each width.
    pub price: Price,
    /// Its width now.
    pub width: usize,
    /// Fewest.
    pub floor: usize,
    /// Most.
    pub most: usize,
    /// Loss increase of the next width that costs less, and the round in which it was measured.
    closing: Option<(f64, usize)>,
}

impl Item {
    /// An item that may have any width from `floor` to `most`.
    pub fn new(name: String, price: Price, width: usize, floor: usize, most: usize) -> Self {
        Self { name, price, width, floor, most, closing: None }
    }

    fn narrower(&self) -> Option<usize> {
        self.price.narrower(self.width, self.floor)
    }

    fn wider(&self) -> Option<usize> {
        self.price.wider(self.width, self.most)
    }

    /// What another width saves, or costs where this is below 0.
    fn saved_at(&self, width: usize) -> f64 {
        self.price.at(self.width) - self.price.at(width)
    }
}

/// What a fit does to its items.
pub trait Trials {
    /// What a width counts.
    const UNIT: &'static str;
    /// Gives an item a width, until another is given.
    fn set(&mut self, item: usize, width: usize) -> Result<(), Error>;
    /// The loss with the widths as they are.
    fn loss(&mut self) -> Result<f64, Error>;
}

/// Changes `planes` (one count per slot) until the budget holds, then opens planes that still fit if that lowers the
/// loss. Returns lines for the log.
pub fn fit_budget<Q: Fit>(
    slots: &mut [Slot<Q>],
    targets: Vec<Vec<f32>>,
    planes: &mut [usize],
    most: usize,
    budget: &Budget,
    range: Range,
    trial: &mut Trial<'_, Q>,
) -> Result<Vec<String>, Error> {
    let item = |(slot, &planes): (&Slot<Q>, &usize)| {
        let (floor, most) = if slot.quantizer.is_given() { (planes, planes) } else { (slot.quantizer.floor(), most) };
        Item::new(slot.layer.name.clone(), budget.price(&slot.layer), planes, floor, most)
    };
    let mut items: Vec<Item> = slots.iter().zip(planes.iter()).map(item).collect();
    if is_settled(&items, budget) {
        return Ok(vec![]);
    }
    let mut trials = Planes { slots, targets, range, trial };
    let result = (|| {
        for (i, item) in items.iter().enumerate() {
            trials.set(i, item.width)?;
        }
        fit(&mut items, budget, &mut trials)
    })();
    trials.slots.iter_mut().for_each(|slot| slot.quantizer.show(None));
    let log = result?;
    for (planes, item) in planes.iter_mut().zip(&items) {
        *planes = item.width;
    }
    Ok(log)
}

/// The trials of [`fit_budget`].
struct Planes<'a, 'b, Q> {
    slots: &'a mut [Slot<Q>],
    targets: Vec<Vec<f32>>,
    range: Range,
    trial: &'a mut Trial<'b, Q>,
}

impl<Q: Fit> Trials for Planes<'_, '_, Q> {
    const UNIT: &'static str = "plane";

    fn set(&mut self, item: usize, width: usize) -> Result<(), Error> {
        preview(&mut self.slots[item].quantizer, &self.targets[item], width, self.range);
        Ok(())
    }

    fn loss(&mut self) -> Result<f64, Error> {
        (self.trial)(self.slots)
    }
}

/// Whether the budget holds and leaves nothing to spend.
pub fn is_settled(items: &[Item], budget: &Budget) -> bool {
    budget.holds(&sizes(items)) && !(0..items.len()).any(|i| wider_within(items, i, budget).is_some())
}

/// Changes widths until the budget holds, then opens what still fits if that lowers the loss. The items must have been set to
/// their widths. Returns lines for the log.
///
/// A measurement stays good until another item changes; then it is repeated before it is acted on, which needs few
/// repetitions, because most increases only grow as others close (lazy greedy).
pub fn fit<T: Trials>(items: &mut [Item], budget: &Budget, trials: &mut T) -> Result<Vec<String>, Error> {
    let mut log = vec![];
    let mut base = trials.loss()?;
    let mut round = 0;
    while !budget.holds(&sizes(items)) {
        // Bits saved beyond what is asked for are worth nothing: a large layer must not vanish for a small excess.
        let excess = excess(items, budget);
        let price = |(item, narrow): (&Item, usize)| {
            let increase = item.closing.map_or(f64::NEG_INFINITY, |(increase, _)| increase);
            increase / item.saved_at(narrow).min(excess)
        };
        let cheapest = (0..items.len())
            .filter_map(|i| items[i].narrower().map(|narrow| (i, narrow)))
            .min_by(|&(a, to_a), &(b, to_b)| price((&items[a], to_a)).total_cmp(&price((&items[b], to_b))));
        let Some((i, narrow)) = cheapest else {
            return Err(Error::option(format!(
                "a target of {} cannot be reached: everything is at its floor with {}; lower the floors or raise the target",
                budget.wanted(),
                budget.show(budget.mean(&sizes(items)))
            )));
        };
        if items[i].closing.is_none_or(|(_, measured)| measured != round) {
            let loss = try_width(items, i, narrow, trials)?;
            items[i].closing = Some((loss - base, round));
            continue;
        }
        let before = std::mem::replace(&mut items[i].width, narrow);
        round += 1;
        let increase = items[i].closing.take().map_or(0.0, |(increase, _)| increase);
        base += increase;
        trials.set(i, narrow)?;
        log.push(format!(
            "closed {} of `{}`: loss {increase:+.4}, now {}",
            range::<T>(narrow, before),
            items[i].name,
            budget.show(budget.mean(&sizes(items))),
        ));
    }
    loop {
        let mut best: Option<(f64, usize, usize, f64)> = None;
        for i in 0..items.len() {
            let Some(wide) = wider_within(items, i, budget) else { continue };
            let loss = try_width(items, i, wide, trials)?;
            // What costs nothing comes first.
            let rate = (base - loss) / (-items[i].saved_at(wide)).max(f64::MIN_POSITIVE);
            if loss < base && best.is_none_or(|(most, ..)| rate > most) {
                best = Some((rate, i, wide, loss));
            }
        }
        let Some((_, i, wide, loss)) = best else { return Ok(log) };
        let before = std::mem::replace(&mut items[i].width, wide);
        trials.set(i, wide)?;
        log.push(format!(
            "opened {} of `{}`: loss {:+.4}, now {}",
            range::<T>(before, wide),
            items[i].name,
            loss - base,
            budget.show(budget.mean(&sizes(items))),
        ));
        base = loss;
    }
}

/// The loss with item `i` at another width; everything is as before afterwards.
fn try_width<T: Trials>(items: &[Item], i: usize, width: usize, trials: &mut T) -> Result<f64, Error> {
    trials.set(i, width)?;
    let loss = trials.loss();
    trials.set(i, items[i].width)?;
    // A layer without planes may leave nothing to normalise: no number means no good choice.
    loss.map(|loss| if loss.is_finite() { loss } else { f64::MAX })
}

/// The widths above `narrow` up to `wide`, for the log.
fn range<T: Trials>(narrow: usize, wide: usize) -> String {
    match wide - narrow {
        1 => format!("{} {wide}", T::UNIT),
        _ => format!("{}s {} to {wide}", T::UNIT, narrow + 1),
    }
}

fn sizes(items: &[Item]) -> Vec<(Price, usize)> {
    items.iter().map(|item| (item.price, item.width)).collect()
}

/// What items cost above the budget, or a hair.
fn excess(items: &[Item], budget: &Budget) -> f64 {
    let total: f64 = items.iter().map(|item| item.price.size()).sum();
    ((budget.mean(&sizes(items)) - budget.target) * total).max(total * 1e-9)
}

/// The next width of item `i`, if the budget holds with it.
fn wider_within(items: &[Item], i: usize, budget: &Budget) -> Option<usize> {
    let wide = items[i].wider()?;
    let mut sizes = sizes(items);
    sizes[i].1 = wide;
    budget.holds(&sizes).then_some(wide)
}
