//! Widths of activations that differ: each site has its own, so that their mean meets a target. It goes together with every
//! method: those that learn widths by gates ([`crate::blocks::gate`]) learn these in the same way, beside their own, in the
//! first phase; and whatever that found, the fit that weights get ([`crate::blocks::fit`]) then makes meet the target. For all other
//! methods the fit alone chooses, from the widest down: at the end of the first phase, or before the only one.
//!
//! ```text
//! mean bits   Σ_i c_i · b_i / Σ_i c_i      c_i = Σ multiply-accumulates · weight bits, over the layers that read site i
//! search      x̂ = mix · Q_b(x) + (1 − mix) · Q_(b−1)(x);  share gets slope · Σ dx̂ · (Q_b − Q_(b−1)) + λ · clamp(mean − target, −1, 1) · c_i / mean c
//! ```
//!
//! So the mean times Σ c_i is the number of bit operations of a sample, and a target for it is a budget for those. The network's
//! input keeps its width and counts. What AdaQAT measures with another pass for weights is here the linear estimate, as in the
//! table of the gate. Steps start as calibration of the float network has them for the width; when a site gets
//! another one, its step changes by the ratio of the two.

use std::collections::{BTreeMap, BTreeSet};

use bitsmith_engine::{Between, Engine, Params};
use bitsmith_graph::{Model, Role as SiteRole, ValueId};
use serde::{Deserialize, Serialize};

use super::data::{Data, InMemory};
use super::options::TrainOptions;
use super::state::State;
use crate::blocks::budget::{Budget, Count, Price, Weighting};
use crate::blocks::cost::mean_bits;
use crate::blocks::fit::{Item, Trials, fit, is_settled};
use crate::blocks::gate::{Chain, Estimator, Gate, Gating, Walk, share_gradients};
use crate::blocks::grid::SMALLEST_STEP;
use crate::error::{Error, Kind};
use crate::method::{Progress, Slot};
use crate::options::options;
use crate::param::{Group, Param};
use crate::passes::calibrate::scales;
use crate::quantizer::Quantizer;

options! {
    /// Options of widths of activations.
    pub struct ActivationWidths {
        /// Mean bits of activations to reach, each weighed by the bit operations of the layers that read it; 0 leaves all at the width they were given, which is the most they can have.
        pub target_bits: f64 = 0.0,
        /// Fewest bits of an activation, 2 to 8.
        pub floor_bits: u8 = 2,
    }
}

impl ActivationWidths {
    /// Refuses impossible values.
    pub fn check(&self) -> Result<(), Error> {
        if !(0.0..=8.0).contains(&self.target_bits) {
            return Err(Error::option(format!("activation_widths.target_bits = {}: 0 to 8", self.target_bits)));
        }
        if !(2..=8).contains(&self.floor_bits) {
            return Err(Error::option(format!("activation_widths.floor_bits = {}: 2 to 8", self.floor_bits)));
        }
        Ok(())
    }
}

/// Batches of which the scales of all widths are taken.
const CALIBRATION: usize = 4;

/// A place where activations are rounded.
#[derive(Debug)]
struct Site {
    id: ValueId,
    name: String,
    /// Weights of the layers that read it, with their multiply-accumulates.
    readers: Vec<(ValueId, u64)>,
    /// Its width in bits.
    gate: Gate,
    /// Step of the narrower grid; that of the wider one is the step of the site.
    narrow: Param,
    /// What calibration says of each width.
    scales: [f32; 9],
}

/// A step for `bits`, where `step` is the one for `now` and calibration says `scales`.
fn step_at(scales: &[f32; 9], bits: usize, (now, step): (usize, f32)) -> f32 {
    (step * scales[bits] / scales[now]).max(SMALLEST_STEP)
}

/// The step of a site.
fn step_of(steps: &mut [(ValueId, Param)], site: ValueId) -> Option<&mut Param> {
    steps.iter_mut().find(|(id, _)| *id == site).map(|(_, step)| step)
}

/// How far the widths are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Nobody searches; they will be fitted.
    Waiting,
    /// Gates learn them.
    Searching(Gating),
    /// They stay.
    Fixed,
}

/// The widths of all sites.
#[derive(Debug)]
pub(super) struct Activations {
    sites: Vec<Site>,
    stage: Stage,
    budget: Budget,
    /// Whether passes use the widths that would be deployed.
    pub is_hard: bool,
}

/// What a checkpoint must know besides parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    is_fixed: bool,
    bits: Vec<usize>,
}

impl Activations {
    fn new(
        model: &Model,
        options: &ActivationWidths,
        gating: Option<Gating>,
        scales: &BTreeMap<ValueId, [f32; 9]>,
    ) -> Result<Self, Error> {
        let mut readers: BTreeMap<ValueId, Vec<(ValueId, u64)>> = BTreeMap::new();
        for layer in model.layers()? {
            if let Some(id) = model.activation_of(&layer) {
                readers.entry(id).or_default().push((layer.weight, layer.macs));
            }
        }
        let target = options.target_bits;
        let mut sites = vec![];
        for (id, readers) in readers {
            let Some((site, scales)) = model.sites.get(&id).zip(scales.get(&id)) else { continue };
            let Some(params) = &site.params else { continue };
            let most = usize::from(site.spec.bits);
            // The input is what the camera gives; and a grid whose zero point is not at code 0 has no narrower one of its kind.
            let is_given = site.role == SiteRole::Input || params.zero_point(0) != 0;
            let floor = if is_given { most } else { usize::from(options.floor_bits).min(most) };
            let width = match gating {
                _ if is_given => most as f64,
                Some(Gating { chain: Chain::Down { initial, .. }, .. }) => (most - 1) as f64 + f64::from(initial),
                Some(gating) if !gating.starts_wide => (target + 0.5).min(most as f64),
                _ => most as f64,
            };
            let gate = Gate::new(width, floor, most);
            let narrow = step_at(scales, (gate.upper() - 1).max(1), (most, params.scale[0]));
            sites.push(Site {
                id,
                name: model.graph.value(id).name.clone(),
                readers,
                narrow: Param::new("narrow", Group::Scale, vec![narrow]),
                gate,
                scales: *scales,
            });
        }
        if !sites.iter().any(|site| site.gate.is_open()) {
            return Err(Error::option(format!(
                "activation_widths.target_bits = {target}, but there is no activation that could be narrower: give activations (in \
                 [activations]) the most bits they may have, 8 say"
            )));
        }
        let stage = gating.map_or(Stage::Waiting, Stage::Searching);
        // The mean is over sizes that are handed in with the widths.
        let budget = Budget { target, weighting: Weighting::Size, count: Count::Paper };
        Ok(Self { sites, stage, budget, is_hard: false })
    }

    fn gating(&self) -> Option<Gating> {
        match self.stage {
            Stage::Searching(gating) => Some(gating),
            Stage::Waiting | Stage::Fixed => None,
        }
    }

    /// Bit operations for each bit of every site, with the weights as they are.
    fn sizes<Q: Quantizer>(&self, slots: &[Slot<Q>]) -> Vec<usize> {
        let mut layers: BTreeMap<ValueId, Vec<(usize, f64)>> = BTreeMap::new();
        for slot in slots {
            layers.entry(slot.layer.id).or_default().push((slot.layer.weights(), slot.quantizer.stored_bits()));
        }
        let bits: BTreeMap<ValueId, f64> = layers.into_iter().map(|(id, groups)| (id, mean_bits(groups))).collect();
        let size = |site: &Site| {
            let reader = |(weight, macs): &(ValueId, u64)| *macs as f64 * bits.get(weight).copied().unwrap_or(32.0);
            site.readers.iter().map(reader).sum::<f64>() as usize
        };
        self.sites.iter().map(size).collect()
    }

    /// What the engine computes with besides steps.
    pub fn publish(&self, params: &mut Params) {
        params.pairs.clear();
        if self.gating().is_none() {
            return;
        }
        for site in self.sites.iter().filter(|site| site.gate.is_open()) {
            let mix = site.gate.mix(self.is_hard).clamp(0.0, 1.0);
            params.pairs.insert(site.id, Between { step: site.narrow.value[0], mix });
        }
    }

    /// Takes the gradients of a step.
    pub fn distribute(&mut self, pairs: &BTreeMap<ValueId, Between>) {
        for site in &mut self.sites {
            let Some(gradient) = pairs.get(&site.id) else { continue };
            site.narrow.grad[0] += gradient.step;
            let slope = site.gate.draw().slope;
            site.gate.push(f64::from(slope * gradient.mix));
        }
    }

    /// Shows what learns.
    pub fn visit(&mut self, f: &mut dyn FnMut(&str, &mut Param)) {
        if self.gating().is_none() {
            return;
        }
        for site in &mut self.sites {
            site.narrow.frozen = !site.gate.is_open();
            f(&format!("{}/narrow", site.name), &mut site.narrow);
            f(&format!("{}/share", site.name), &mut site.gate.share);
        }
    }

    /// Before a step: rates and draws, which depend on the step's number alone.
    pub fn begin_step(&mut self, at: &Progress) {
        let Some(gating) = self.gating() else { return };
        gating.begin_step(self.sites.iter_mut().map(|site| &mut site.gate), at, 1);
    }

    /// The pull towards the target: adds to the gradients of the shares, and returns the term of the loss.
    pub fn penalty<Q: Quantizer>(&mut self, slots: &[Slot<Q>]) -> f64 {
        let Some(gating) = self.gating() else { return 0.0 };
        let sizes = self.sizes(slots);
        let rounds_up = gating.estimator == Estimator::Difference;
        let width = |site: &Site| if rounds_up { site.gate.upper() as f64 } else { site.gate.width() };
        let mean = mean_bits(sizes.iter().copied().zip(self.sites.iter().map(width)));
        let excess = (mean - self.budget.target).clamp(-1.0, 1.0);
        let mean_size = sizes.iter().sum::<usize>() as f64 / sizes.len().max(1) as f64;
        let mut value = 0.0;
        for (site, size) in self.sites.iter_mut().zip(sizes) {
            let pull = gating.lambda * excess * size as f64 / mean_size.max(1.0);
            site.gate.push(pull);
            value += pull * f64::from(site.gate.share());
        }
        if gating.is_shared {
            share_gradients(self.sites.iter_mut().map(|site| &mut site.gate));
        }
        value
    }

    /// After an update: the widths that changed, with their new step.
    fn walk(&mut self, step_of: impl Fn(ValueId) -> f32) -> Vec<(ValueId, f32)> {
        let Some(gating) = self.gating() else { return vec![] };
        let mut moved = vec![];
        for site in &mut self.sites {
            let before = (site.gate.upper(), step_of(site.id));
            let walk = site.gate.walk(gating.chain);
            let (upper, narrow) = (site.gate.upper(), site.narrow.value[0]);
            match walk {
                Walk::Stayed => continue,
                Walk::Up => {
                    moved.push((site.id, step_at(&site.scales, upper, before)));
                    site.narrow = Param::new("narrow", Group::Scale, vec![before.1]);
                }
                Walk::Down => {
                    moved.push((site.id, narrow));
                    let next = step_at(&site.scales, (upper - 1).max(1), (upper, narrow));
                    site.narrow = Param::new("narrow", Group::Scale, vec![next]);
                }
            }
        }
        moved
    }

    /// Writes widths into the model and compiles them.
    fn compile(&self, model: &mut Model, engine: &mut Engine) -> Result<(), Error> {
        for site in &self.sites {
            let Some(known) = model.sites.get_mut(&site.id) else { continue };
            let bits = site.gate.upper() as u8;
            known.spec.bits = bits;
            if let Some(params) = &mut known.params {
                params.spec.bits = bits;
            }
        }
        let is_between = |site: &&Site| self.gating().is_some() && site.gate.is_open();
        let between: BTreeSet<ValueId> = self.sites.iter().filter(is_between).map(|site| site.id).collect();
        Ok(engine.set_sites(model, &between)?)
    }

    /// For a line of the log.
    fn list(&self) -> String {
        let width = |site: &Site| match self.stage {
            Stage::Searching(_) => format!("{:.1}", site.gate.width()),
            Stage::Waiting | Stage::Fixed => site.gate.upper().to_string(),
        };
        self.sites.iter().map(width).collect::<Vec<_>>().join(" ")
    }

    /// Where the widths stand.
    pub fn standing(&self) -> Standing {
        let bits = self.sites.iter().map(|site| site.gate.upper()).collect();
        Standing { is_fixed: self.stage == Stage::Fixed, bits }
    }
}

impl<Q: Quantizer> State<Q> {
    /// Begins to look for widths of activations, if the options ask for it.
    pub(super) fn search_activations(
        &mut self,
        gating: Option<Gating>,
        options: &TrainOptions,
        data: &dyn Data,
    ) -> Result<(), Error> {
        if options.activation_widths.target_bits == 0.0 {
            return Ok(());
        }
        let scales = scales(&self.model, data, CALIBRATION)?;
        let activations = Activations::new(&self.model, &options.activation_widths, gating, &scales)?;
        // Where the search starts narrower than what was calibrated, the step is that of the narrower width.
        for site in &activations.sites {
            let Some(most) = self.model.sites.get(&site.id).map(|s| usize::from(s.spec.bits)) else { continue };
            if let Some(step) = step_of(&mut self.steps, site.id) {
                let value = step_at(&site.scales, site.gate.upper(), (most, step.value[0]));
                renew(step, value, site.gate.upper());
            }
        }
        activations.compile(&mut self.model, &mut self.engine)?;
        self.activations = Some(activations);
        Ok(())
    }

    /// After an update: gates that went beyond their ends move on.
    pub(super) fn walk_activations(&mut self) -> Result<(), Error> {
        let Some(activations) = &mut self.activations else { return Ok(()) };
        let steps: BTreeMap<ValueId, f32> = self.steps.iter().map(|(id, step)| (*id, step.value[0])).collect();
        let moved = activations.walk(|id| steps.get(&id).copied().unwrap_or(1.0));
        if moved.is_empty() {
            return Ok(());
        }
        for (id, value) in moved {
            let bits = activations.sites.iter().find(|site| site.id == id).map_or(8, |site| site.gate.upper());
            if let Some(step) = step_of(&mut self.steps, id) {
                renew(step, value, bits);
            }
        }
        activations.compile(&mut self.model, &mut self.engine)
    }

    /// Ends the search: widths are made to meet the target and stay. Returns lines for the log.
    pub(super) fn fix_activations(&mut self, data: &dyn Data, options: &TrainOptions) -> Result<Vec<String>, Error> {
        let Some(activations) = self.activations.as_mut().filter(|a| a.stage != Stage::Fixed) else {
            return Ok(vec![]);
        };
        let mut log = vec![];
        if let Some(gating) = activations.gating() {
            if gating.estimator == Estimator::Difference {
                // The wider width is what the forward pass has used throughout.
                activations.sites.iter_mut().for_each(|site| site.gate.share.value.fill(1.0));
            }
            log.push(format!("widths of activations after the search: {}", activations.list()));
        }
        let sizes = activations.sizes(&self.slots);
        let budget = activations.budget;
        let mut items = vec![];
        let mut known = vec![];
        for (site, size) in activations.sites.iter().zip(sizes) {
            let (floor, most, width) = site.gate.bounds_and_nearest();
            let price = Price::linear(size as f64, Count::Paper);
            items.push(Item::new(site.name.clone(), price, width, floor, most));
            let step = step_of(&mut self.steps, site.id).map_or(1.0, |step| step.value[0]);
            let upper = site.gate.upper();
            known.push(if width < upper { (width, site.narrow.value[0]) } else { (upper, step) });
        }
        activations.stage = Stage::Fixed;
        let batches = InMemory::take(data, options.trial_batches.max(1))?;
        let mut trials = Widths { state: self, known: &known, batches: &batches };
        for (i, item) in items.iter().enumerate() {
            trials.set(i, item.width)?;
        }
        if !is_settled(&items, &budget) {
            log.extend(fit(&mut items, &budget, &mut trials)?);
        }
        let mean = budget.mean(&items.iter().map(|item| (item.price, item.width)).collect::<Vec<_>>());
        let list = self.activations.as_ref().map_or(String::new(), Activations::list);
        log.push(format!("activations fixed at {mean:.3} mean bits: {list}"));
        Ok(log)
    }

    /// Restores what [`Activations::standing`] said; steps are parameters of their own.
    pub(super) fn restore_activations(&mut self, standing: Option<&Standing>) -> Result<(), Error> {
        let (Some(activations), Some(standing)) = (&mut self.activations, standing) else { return Ok(()) };
        if activations.sites.len() != standing.bits.len() {
            return Err(Error::new(
                Kind::Checkpoint,
                "this checkpoint belongs to another model: it has other activations",
            ));
        }
        for (site, &bits) in activations.sites.iter_mut().zip(&standing.bits) {
            site.gate.restore(bits);
        }
        if standing.is_fixed {
            activations.stage = Stage::Fixed;
        }
        for site in &activations.sites {
            if let Some(step) = step_of(&mut self.steps, site.id) {
                step.frozen = site.gate.upper() >= 8;
            }
        }
        activations.compile(&mut self.model, &mut self.engine)
    }
}

/// A site's step at another width: nothing of what the optimiser remembers applies to it. At 8 bits it is left alone, as always.
fn renew(step: &mut Param, value: f32, bits: usize) {
    step.value.fill(value);
    step.memory.clear();
    step.frozen = bits >= 8;
}

/// Trials of widths, one site at a time.
struct Widths<'a, Q> {
    state: &'a mut State<Q>,
    /// A width of each site, and the step it has there.
    known: &'a [(usize, f32)],
    batches: &'a InMemory,
}

impl<Q: Quantizer> Trials for Widths<'_, Q> {
    const UNIT: &'static str = "bit";

    fn set(&mut self, item: usize, width: usize) -> Result<(), Error> {
        let State { activations: Some(activations), model, engine, steps, .. } = &mut *self.state else {
            return Ok(());
        };
        let site = &mut activations.sites[item];
        site.gate.restore(width);
        if let Some(step) = step_of(steps, site.id) {
            renew(step, step_at(&site.scales, width, self.known[item]), width);
        }
        activations.compile(model, engine)
    }

    fn loss(&mut self) -> Result<f64, Error> {
        let mut slots = std::mem::take(&mut self.state.slots);
        let loss = self.state.mean_loss(&mut slots, self.batches);
        self.state.slots = slots;
        loss
    }
}
