//! The quantizer of a layer whose width is searched by one means and then fixed: from there on it is LSQ's, with latent
//! float weights and learned steps, whatever found the width.

use bitsmith_graph::{Granularity, QParams};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::budget::{Budget, Count, Price};
use super::fit::{Fit, fit_budget};
use super::range::Range;
use crate::error::{Error, Kind};
use crate::method::{Phase, Slot, Trial};
use crate::methods::lsq::LsqWeight;
use crate::param::Param;
use crate::quantizer::{Quantizer, Rows};

/// What finds the width of a tensor.
pub trait Search: Quantizer {
    /// Weights that the fixed grid should represent, in row order.
    fn target(&mut self) -> Vec<f32>;
    /// Planes that the tensor would get if the search ended now.
    fn planes(&self) -> usize;
    /// What a checkpoint must know besides parameters.
    fn state(&self) -> usize;
    /// Restores [`Search::state`], resizing the parameters to it.
    fn restore(&mut self, state: usize);
}

/// See the module.
#[derive(Debug)]
pub struct Searched<S> {
    per: Granularity,
    rows: Rows,
    /// Fewest planes.
    floor: usize,
    /// Whether the width is given, and the search has nothing to find.
    given: bool,
    stage: Stage<S>,
    shown: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Stage<S> {
    Search(Box<S>),
    Fixed(Box<LsqWeight>),
}

/// Where a layer stands, for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Searching; what [`Search::state`] says.
    Search(usize),
    /// Fixed at so many planes.
    Fixed(usize),
}

/// Bits of a code of `planes` planes and a sign.
pub fn code_bits(planes: usize) -> u8 {
    if planes == 0 { 0 } else { planes as u8 + 1 }
}

impl<S: Search> Searched<S> {
    /// A layer in search of its width.
    pub fn new(per: Granularity, rows: Rows, search: S, (floor, given): (usize, bool)) -> Self {
        Self { per, rows, floor, given, stage: Stage::Search(Box::new(search)), shown: None }
    }

    /// What searches, as long as it does.
    pub fn search(&mut self) -> Option<&mut S> {
        match &mut self.stage {
            Stage::Search(search) => Some(search),
            Stage::Fixed(_) => None,
        }
    }

    /// Present planes.
    pub fn planes(&self) -> usize {
        match &self.stage {
            Stage::Search(search) => search.planes().max(self.floor),
            Stage::Fixed(fixed) => fixed.planes(),
        }
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Fixes the width: latent weights start at `target` (in row order), steps at the least squared error.
    fn fix(&mut self, target: &[f32], planes: usize) {
        let mut init = vec![0.0; target.len()];
        self.rows.scatter(target, &mut init);
        let fixed = LsqWeight::new(code_bits(planes), self.per, self.rows.clone(), &init, Range::Mse);
        self.stage = Stage::Fixed(Box::new(fixed));
    }

    /// Where the layer stands.
    pub fn standing(&self) -> Standing {
        match &self.stage {
            Stage::Search(search) => Standing::Search(search.state()),
            Stage::Fixed(fixed) => Standing::Fixed(fixed.planes()),
        }
    }

    /// Makes room for the parameters of a layer that stood there.
    pub fn restore(&mut self, standing: Standing) {
        match (standing, &mut self.stage) {
            (Standing::Search(state), Stage::Search(search)) => search.restore(state),
            (Standing::Fixed(planes), _) => self.fix(&vec![0.0; self.rows.len()], planes),
            // A run never goes back to searching.
            (Standing::Search(_), Stage::Fixed(_)) => {}
        }
    }
}

/// (price, planes) of every layer.
fn sizes<S: Search>(slots: &[Slot<Searched<S>>], budget: &Budget) -> Vec<(Price, usize)> {
    slots.iter().map(|s| (budget.price(&s.layer), s.quantizer.planes())).collect()
}

/// Mean bits of all layers.
pub fn mean_bits<S: Search>(slots: &[Slot<Searched<S>>], budget: &Budget) -> f64 {
    budget.mean(&sizes(slots, budget))
}

/// The two phases of a method that searches for this share of its epochs; each has at least one where there are two.
pub fn phases(epochs: usize, search: f64) -> Vec<Phase> {
    let search = ((epochs as f64 * search).round() as usize).clamp(1, epochs.max(2) - 1);
    vec![
        Phase { name: "search", epochs: search, rate: 1.0 },
        Phase { name: "finetune", epochs: epochs.saturating_sub(search), rate: 1.0 },
    ]
}

/// Stored bits of every layer, in order.
pub fn list<S: Search>(slots: &[Slot<Searched<S>>]) -> String {
    let bits: Vec<String> = slots.iter().map(|s| Count::Stored.bits(s.quantizer.planes()).to_string()).collect();
    bits.join(" ")
}

/// Ends the search of all layers: widths are made to fit the budget unless `fit` is false, in which case the log says by
/// how much they miss it. Returns lines for the log.
pub fn fix_all<S: Search>(
    slots: &mut [Slot<Searched<S>>],
    budget: &Budget,
    most: usize,
    fit: bool,
    trial: &mut Trial<'_, Searched<S>>,
) -> Result<Vec<String>, Error> {
    let mut log = vec![format!("search ended at {}: {}", budget.show(mean_bits(slots, budget)), list(slots))];
    let mut planes: Vec<usize> = slots.iter().map(|s| s.quantizer.planes()).collect();
    let targets: Vec<Vec<f32>> =
        slots.iter_mut().map(|s| s.quantizer.search().map_or_else(Vec::new, Search::target)).collect();
    if fit {
        log.extend(fit_budget(slots, targets.clone(), &mut planes, most, budget, Range::Mse, trial)?);
    }
    for ((slot, target), &planes) in slots.iter_mut().zip(&targets).zip(&planes) {
        slot.quantizer.fix(target, planes);
    }
    let mean = mean_bits(slots, budget);
    log.push(format!("widths fixed at {}: {}", budget.show(mean), list(slots)));
    log.extend(budget.missed(mean));
    Ok(log)
}

/// Reads a method's state from a checkpoint.
pub fn read_state<T: DeserializeOwned>(method: &str, state: &serde_json::Value) -> Result<T, Error> {
    T::deserialize(state).map_err(|e| {
        Error::new(Kind::Checkpoint, format!("the checkpoint's state of {method} cannot be read")).caused_by(e)
    })
}

/// Makes room for the parameters of layers that stood there.
pub fn restore_all<S: Search>(slots: &mut [Slot<Searched<S>>], layers: &[Standing]) -> Result<(), Error> {
    let too_wide = |standing: &Standing| matches!(standing, Standing::Search(n) | Standing::Fixed(n) if *n > 8);
    if layers.len() != slots.len() || layers.iter().any(too_wide) {
        return Err(Error::new(
            Kind::Checkpoint,
            format!("the checkpoint describes {} layers but the model has {}", layers.len(), slots.len()),
        ));
    }
    slots.iter_mut().zip(layers).for_each(|(slot, &standing)| slot.quantizer.restore(standing));
    Ok(())
}

impl<S: Search> Fit for Searched<S> {
    fn floor(&self) -> usize {
        self.floor
    }

    fn is_given(&self) -> bool {
        self.given
    }

    fn rows(&self) -> &Rows {
        &self.rows
    }

    fn show(&mut self, weights: Option<Vec<f32>>) {
        self.shown = weights;
    }
}

impl<S: Search> Quantizer for Searched<S> {
    fn forward(&mut self, weights: &mut [f32]) {
        match (&self.shown, &mut self.stage) {
            (Some(shown), _) => self.rows.scatter(shown, weights),
            (None, Stage::Search(search)) => search.forward(weights),
            (None, Stage::Fixed(fixed)) => fixed.forward(weights),
        }
    }

    fn backward(&mut self, grad: &[f32]) {
        match &mut self.stage {
            _ if self.shown.is_some() => {}
            Stage::Search(search) => search.backward(grad),
            Stage::Fixed(fixed) => fixed.backward(grad),
        }
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        match &self.stage {
            Stage::Search(search) => search.latent_gradient(grad),
            Stage::Fixed(fixed) => fixed.latent_gradient(grad),
        }
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        match &mut self.stage {
            Stage::Search(search) => search.visit(f),
            Stage::Fixed(fixed) => fixed.visit(f),
        }
    }

    fn grid_steps(&self) -> Option<&[f32]> {
        match &self.stage {
            Stage::Fixed(fixed) if self.shown.is_none() => fixed.grid_steps(),
            _ => None,
        }
    }

    fn bin_penalty(&mut self, strength: f64) -> f64 {
        match &mut self.stage {
            Stage::Search(search) => search.bin_penalty(strength),
            Stage::Fixed(fixed) => fixed.bin_penalty(strength),
        }
    }

    fn bits(&self) -> f32 {
        match &self.stage {
            Stage::Search(search) => search.bits(),
            Stage::Fixed(fixed) => fixed.bits(),
        }
    }

    fn qparams(&self) -> Option<QParams> {
        match &self.stage {
            Stage::Search(search) => search.qparams(),
            Stage::Fixed(fixed) => fixed.qparams(),
        }
    }
}
