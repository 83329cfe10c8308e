//! A step of the float network under constraints on its rounded copy: see [`crate::methods::pdqat`] for whom it is.

use std::collections::BTreeMap;

use bitsmith_engine::loss::mean_cross_entropy;
use bitsmith_engine::{Engine, EngineOptions, Follow, Loss, StepOptions, WeightError};
use bitsmith_graph::Model;

use super::data::Batch;
use super::sharpness::Sharpness;
use super::state::State;
use crate::error::Error;
use crate::method::{Constrained, Multipliers, Slot};
use crate::quantizer::Quantizer;

impl<Q: Quantizer> State<Q> {
    /// See [`crate::method::Passes::constrained`]. Returns what was found, and the float network's correct answers.
    pub fn constrained(
        &mut self,
        slots: &mut [Slot<Q>],
        (batch, loss): (&Batch, &Loss),
        multipliers: &Multipliers,
        sharpness: Option<Sharpness<'_>>,
    ) -> Result<(Constrained, usize), Error> {
        self.publish_with(slots);
        let mut latent = vec![];
        let mut errors = BTreeMap::new();
        for (slot, &multiplier) in slots.iter().zip(&multipliers.layers) {
            let rounded = self.params.constants.get(&slot.layer.id);
            let Some(rounded) = rounded.filter(|w| w.len() == slot.layer.weights()) else {
                return Err(Error::option("channel_groups: constraints are on whole layers; use channel_groups = 1"));
            };
            let mut weights = vec![0.0; rounded.len()];
            if !slot.quantizer.latent(&mut weights) {
                return Err(Error::option("this method has no float weights to constrain"));
            }
            let error = weights.iter().zip(rounded).map(|(w, rounded)| w - rounded).collect();
            errors.insert(slot.layer.id, WeightError { error, multiplier: multiplier as f32 });
            latent.push(weights);
        }
        // The rounded network is the one that will be deployed: running statistics are its own.
        let rounded = self.engine.rounding_errors(&mut self.params, &batch.x, &errors)?;
        for (slot, weights) in slots.iter_mut().zip(latent) {
            if let Some(gradient) = rounded.gradients.get(&slot.layer.id) {
                slot.quantizer.backward(gradient);
            }
            self.params.constants.insert(slot.layer.id, weights);
            self.params.grids.remove(&slot.layer.id);
        }
        let follow = Follow { logits: rounded.logits, weight: multipliers.output as f32 };
        let loss = Loss { follow: Some(follow), ..loss.clone() };
        let options = StepOptions { update_statistics: false, train_norm: true };
        let float = match self.float.take() {
            Some(engine) => engine,
            None => {
                let model = Model { sites: BTreeMap::new(), ..self.model.clone() };
                Engine::new(&model, &EngineOptions { device: self.device, ..EngineOptions::default() })?
            }
        };
        let mut out = float.step(&mut self.params, &batch.x, &batch.labels, &loss, options)?;
        if let Some(sharpness) = sharpness {
            // The network in float is what is made flat; constraints are met where it stands.
            self.perturb_floats(std::mem::take(&mut out.constants), sharpness)?;
            out.constants = float.step(&mut self.params, &batch.x, &batch.labels, &loss, options)?.constants;
        }
        self.float = Some(float);
        self.distribute(slots, &out);
        let shares = slots.iter().map(|s| f64::from(rounded.shares.get(&s.layer.id).copied().unwrap_or_default()));
        let shares: Vec<f64> = shares.collect();
        let logits = loss.follow.as_ref().map_or(&[][..], |f| &f.logits);
        let output = mean_cross_entropy(&out.logits, logits, self.engine.classes());
        let constraints: f64 = shares.iter().zip(&multipliers.layers).map(|(share, l)| share * l).sum();
        Ok((Constrained { loss: f64::from(out.loss) + constraints, shares, output }, out.correct))
    }
}
