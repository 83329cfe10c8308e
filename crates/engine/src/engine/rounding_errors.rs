//! How much of each layer's output is the rounding of its weight, as a loss on that weight.

use std::collections::BTreeMap;

use bitsmith_graph::ValueId;
use burn_autodiff::Autodiff;
use burn_backend::{AutodiffBackend, Scalar};
use burn_flex::Flex;

use super::{DeviceOf, Engine, blend, leaves, upload};
use crate::device::Place;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::gpu::Cube;
use crate::error::Error;
use crate::ops::{Composed, Fused, Tensor, TrainOps, read_all};
use crate::params::Params;
use crate::plan::{Batch, Observed, Run, Seen, execute};
use bitsmith_kernels::threads::team;

/// What a weight lost when it was rounded, and how much that matters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WeightError {
    /// The weight less the rounded one, in the layout of the graph.
    pub error: Vec<f32>,
    /// λ: the factor of this layer's share in the loss, at least 0.
    pub multiplier: f32,
}

/// What [`Engine::rounding_errors`] found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoundingErrors {
    /// Of the rounded network, `[batch, classes]`.
    pub logits: Vec<f32>,
    /// For each weight asked for: ‖f(z, W − Ŵ)‖² / ‖f(z, Ŵ)‖², f being the layer, z its input in the rounded network and Ŵ its
    /// rounded weight; squares are summed over the batch.
    pub shares: BTreeMap<ValueId, f32>,
    /// `∂(Σ λ · share)/∂W`, Ŵ and z taken as constant, for each weight with λ > 0.
    pub gradients: BTreeMap<ValueId, Vec<f32>>,
}

/// The arguments, checked.
struct Call<'a> {
    params: &'a Params,
    shapes: &'a [bitsmith_graph::Shape],
    x: &'a [f32],
    errors: &'a BTreeMap<ValueId, WeightError>,
}

type Found = (RoundingErrors, Vec<Seen<Vec<f32>>>);

impl Engine {
    /// One pass forward through the network as `params` have it, rounded, and from each layer whose weight is in `errors` backward to that
    /// weight alone. Running statistics take in this batch's.
    ///
    /// # Errors
    /// As [`Engine::step`]; also if an error is not as long as its weight.
    pub fn rounding_errors(
        &self,
        params: &mut Params,
        x: &[f32],
        errors: &BTreeMap<ValueId, WeightError>,
    ) -> Result<RoundingErrors, Error> {
        let shapes = self.check_input(&self.plan, params, x, None)?;
        for (id, error) in errors {
            let wanted = params.constants.get(id).map_or(0, Vec::len);
            if error.error.len() != wanted {
                let found = error.error.len();
                return Err(Error::input(format!("an error of {found} numbers was given for a weight of {wanted}")));
            }
        }
        let call = Call { params, shapes: &shapes, x, errors };
        let (found, seen) = match &self.place {
            Place::Fused => team(|| self.errors_on::<Fused<Autodiff<Flex>>, _>(&call, &Default::default())),
            Place::Composed => team(|| self.errors_on::<Composed<Autodiff<Flex>>, _>(&call, &Default::default())),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Place::Gpu(gpu) => gpu.run(|| self.errors_on::<Composed<Autodiff<Cube>>, _>(&call, &gpu.device)),
        }?;
        seen.iter().for_each(|seen| blend(params, seen));
        Ok(found)
    }

    fn errors_on<O, B>(&self, call: &Call<'_>, device: &DeviceOf<O>) -> Result<Found, Error>
    where
        O: TrainOps<B = B>,
        B: AutodiffBackend,
    {
        let Call { params, shapes, x, errors } = *call;
        let run = Run { plan: &self.plan, shapes, params, statistics: Batch::Live };
        // Nothing is tracked but the errors: each layer's gradient ends at its own.
        let mut leaves = leaves::<O>(&self.plan, params, device);
        for (id, _, shape) in &self.plan.constants {
            if let Some(WeightError { error, .. }) = errors.get(id) {
                let error = upload::<O>(error, shape, device);
                leaves.errors.insert(*id, B::float_set_require_grad(error, true));
            }
        }
        let x = upload::<O>(x, &shapes[self.graph.inputs()[0].value.index()], device);
        let mut observed = Observed::default();
        let mut outputs = execute::<O>(&run, x, &leaves, &mut observed)?;
        let Some(output) = outputs.pop() else { return Err(Error::input("the plan has no output")) };
        let mut loss: Option<Tensor<O>> = None;
        let mut pending = vec![B::inner(output)];
        let mut layers = vec![];
        for (id, [error, output]) in observed.errors {
            // What puts out nothing has no error either.
            let output = B::float_add_scalar(output, Scalar::from(f32::MIN_POSITIVE));
            let share = B::float_div(error, output);
            layers.push(id);
            pending.push(B::inner(share.clone()));
            let multiplier = errors.get(&id).map_or(0.0, |e| e.multiplier);
            if multiplier > 0.0 {
                let term = B::float_mul_scalar(share, Scalar::from(multiplier));
                loss = Some(match loss {
                    Some(sum) => B::float_add(sum, term),
                    None => term,
                });
            }
        }
        let mut grads = loss.map(B::backward);
        let mut learning = vec![];
        for (id, leaf) in &leaves.errors {
            if let Some(gradient) = grads.as_mut().and_then(|grads| B::grad_remove(leaf, grads)) {
                learning.push(*id);
                pending.push(gradient);
            }
        }
        let seen = observed.statistics;
        pending.extend(seen.iter().flat_map(|s| [&s.statistics.mean, &s.statistics.variance]).cloned().map(B::inner));
        let mut values = read_all::<B::InnerBackend>(pending)?.into_iter();
        let mut found = RoundingErrors { logits: values.next().unwrap_or_default(), ..Default::default() };
        for (id, share) in layers.into_iter().zip(values.by_ref()) {
            *found.shares.entry(id).or_default() += share.first().copied().unwrap_or_default();
        }
        found.gradients = learning.into_iter().zip(values.by_ref()).collect();
        let seen = seen.into_iter().map(|s| s.map(|_| values.next().unwrap_or_default())).collect();
        Ok((found, seen))
    }
}
