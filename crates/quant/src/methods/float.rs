//! Float training: the method that rounds nothing. It trains a network from scratch or finetunes it, and is the
//! smallest example of a method.

use bitsmith_graph::QParams;

use crate::error::Error;
use crate::method::{Method, WeightLayer};
use crate::options::options;
use crate::param::{Group, Param};
use crate::quantizer::Quantizer;

options! {
    /// Options of `float`: there are none.
    pub struct FloatOptions {}
}

/// Weights as they are.
#[derive(Debug)]
pub struct Float;

impl Method for Float {
    const NAME: &'static str = "float";
    const SUMMARY: &'static str = "plain float training, no quantization";
    type Options = FloatOptions;
    type Weight = FloatWeight;

    fn new(_options: FloatOptions) -> Result<Self, Error> {
        Ok(Self)
    }

    fn weight(&mut self, _layer: &WeightLayer, init: &[f32]) -> Result<FloatWeight, Error> {
        Ok(FloatWeight(Param::new("weight", Group::Weight, init.to_vec())))
    }
}

/// The identity.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatWeight(Param);

impl Quantizer for FloatWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        weights.copy_from_slice(&self.0.value);
    }

    fn backward(&mut self, grad: &[f32]) {
        self.0.grad.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g);
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        grad.copy_from_slice(&self.0.grad);
        true
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.0);
    }

    fn bits(&self) -> f32 {
        32.0
    }

    fn qparams(&self) -> Option<QParams> {
        None
    }
}
