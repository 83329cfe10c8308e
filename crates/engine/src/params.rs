//! The numbers a network computes with, on the host: what optimisers and quantizers read and write.

use std::collections::{BTreeMap, BTreeSet};

use bitsmith_graph::{Model, Role, ValueId};
use bitsmith_kernels::conv::Precision;

use crate::error::{Error, Kind};

/// Every float constant of a graph and the step size of every activation quantizer.
///
/// Plain vectors, because a quantizer rewrites weights before every step and an optimiser updates its own parameters
/// afterwards: neither gains anything from a tensor on a device, and the engine copies each vector once per step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Params {
    /// Weights, biases, batch-norm gamma, beta, running mean and variance, in the layout of the graph.
    pub constants: BTreeMap<ValueId, Vec<f32>>,
    /// The scale of each activation or input site that has parameters.
    pub steps: BTreeMap<ValueId, f32>,
    /// Sites whose step does not learn: training steps compute no gradient for it, nor for what is only on the way to it.
    pub still: BTreeSet<ValueId>,
    /// Steps of weights that lie on integers times a step around zero, one per output channel or one for all, magnitudes of codes being
    /// at most 127. Products of these with rounded inputs are computed with integers.
    pub grids: BTreeMap<ValueId, Vec<f32>>,
    /// How the products of convolutions are formed in steps of training, on the CPU, where they are not those of integers.
    pub forward: Precision,
    /// How the products of gradients are formed, on the CPU; those of convolutions and linear layers.
    pub gradients: Precision,
    /// What else the sites between two widths compute with; see [`crate::Engine::set_sites`].
    pub pairs: BTreeMap<ValueId, Between>,
}

/// A site that rounds to a mixture of its grid and the one of a bit less: `mix · wide + (1 - mix) · narrow`. Or the gradient of that.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Between {
    /// Step of the narrower grid.
    pub step: f32,
    /// Share of the wider one, 0 to 1.
    pub mix: f32,
}

impl Params {
    /// Copies the float constants and the scales of activation and input sites.
    pub fn from_model(model: &Model) -> Self {
        let constant = |id: ValueId| Some((id, model.graph.constant(id)?.as_f32()?.to_vec()));
        let step = |(&id, site): (&ValueId, &bitsmith_graph::Site)| {
            let scale = site.params.as_ref()?.scale.first().copied()?;
            matches!(site.role, Role::Activation | Role::Input).then_some((id, scale))
        };
        Self {
            constants: model.graph.value_ids().filter_map(constant).collect(),
            steps: model.sites.iter().filter_map(step).collect(),
            still: BTreeSet::new(),
            grids: BTreeMap::new(),
            forward: Precision::Full,
            gradients: Precision::Full,
            pairs: BTreeMap::new(),
        }
    }

    /// Writes constants and scales back into the model they came from.
    pub fn write_to(&self, model: &mut Model) -> Result<(), Error> {
        for (&id, values) in &self.constants {
            let name = name_of(model, id);
            let known = id.index() < model.graph.values().len();
            let Some(target) = known.then(|| model.graph.constant_f32_mut(id)).flatten() else {
                return Err(Error::new(Kind::Params, name, "this value is no float constant of the model"));
            };
            if target.len() != values.len() {
                let detail = format!("{} numbers are given but the constant has {}", values.len(), target.len());
                return Err(Error::new(Kind::Params, name, detail));
            }
            target.copy_from_slice(values);
        }
        for (&id, &step) in &self.steps {
            let params = model.sites.get_mut(&id).and_then(|s| s.params.as_mut());
            let Some(scale) = params.and_then(|p| p.scale.first_mut()) else {
                return Err(Error::new(Kind::Params, name_of(model, id), "the model has no calibrated site here"));
            };
            *scale = step;
        }
        Ok(())
    }
}

pub(crate) fn name_of(model: &Model, id: ValueId) -> String {
    model.graph.values().get(id.index()).map_or_else(|| format!("value {}", id.index()), |v| v.name.clone())
}
