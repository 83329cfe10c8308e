//! Batch normalisation over channels-last rows, fused with what usually follows it: an addition and an activation.
//!
//! `x` is `[rows, channels]`, where rows are batch times pixels. In training mode
//!
//! ```text
//! mean, var = batch_stats(x)          inv_std = 1 / sqrt(var + eps)
//! x̂ = (x - mean) * inv_std            z = gamma * x̂ + beta (+ add)          y = act(z)
//! ```
//!
//! which the forward pass computes as `z = x * a + b (+ add)` with `a = gamma * inv_std`, `b = beta - mean * a`.
//! Backward, with `g = dy * act'(·)` and `m` rows:
//!
//! ```text
//! dbeta = Σ g     dgamma = Σ g x̂     dadd = g     dx = a * (g - dbeta / m - x̂ * dgamma / m)
//! ```
//!
//! With frozen statistics (evaluation mode) the last line is `dx = a * g`.

use crate::activation::{Activation, Saved};
use crate::reference;

/// Everything the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Gradient of the output, `[rows, channels]`.
    pub dy: &'a [f32],
    /// The saved output `y`; read for the activation's mask unless [`Activation::saved`] says `Input`. May be empty then,
    /// and for `Activation::Identity`.
    pub y: &'a [f32],
    /// The input of the normalisation.
    pub x: &'a [f32],
    /// The addend of the forward pass; read only where [`Activation::saved`] says `Input`.
    pub add: Option<&'a [f32]>,
    /// Mean per channel.
    pub mean: &'a [f32],
    /// `1 / sqrt(var + eps)` per channel.
    pub inv_std: &'a [f32],
    /// Scale per channel.
    pub gamma: &'a [f32],
    /// Shift per channel; read only where [`Activation::saved`] says `Input`.
    pub beta: &'a [f32],
    /// The activation after the sum.
    pub act: Activation,
    /// Where the statistics came from.
    pub statistics: Statistics,
}

/// Whether mean and variance were taken from the batch (and so pass gradients) or were constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Training mode: gradients flow through mean and variance.
    Batch,
    /// Evaluation mode, or batch-norm frozen during fine-tuning.
    Frozen,
}

/// Mean and biased variance of each channel over the rows of `x`. No rows: zeros.
///
/// # Panics
/// If `mean` and `var` are not `channels` long or `x` is not a multiple of it.
pub fn batch_stats(x: &[f32], channels: usize, mean: &mut [f32], var: &mut [f32]) {
    check_rows(x.len(), channels);
    assert_eq!(mean.len(), channels, "length of mean");
    assert_eq!(var.len(), channels, "length of var");
    reference::norm::batch_stats(x, channels, mean, var);
}

/// `y = act(x * a[c] + b[c] (+ add))`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn affine_act(x: &[f32], a: &[f32], b: &[f32], add: Option<&[f32]>, act: Activation, y: &mut [f32]) {
    check_rows(x.len(), a.len());
    assert_eq!(b.len(), a.len(), "length of b");
    assert_eq!(y.len(), x.len(), "length of y");
    assert!(add.is_none_or(|add| add.len() == x.len()), "length of add");
    reference::norm::affine_act(x, a, b, add, act, y);
}

/// Writes `dx`, `dgamma`, `dbeta` and, where asked, `dadd`, the gradient of the addend.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn backward(args: &Backward, dx: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32], dadd: Option<&mut [f32]>) {
    args.check(dx.len());
    assert_eq!(dgamma.len(), args.gamma.len(), "length of dgamma");
    assert_eq!(dbeta.len(), args.gamma.len(), "length of dbeta");
    assert!(dadd.as_ref().is_none_or(|d| d.len() == dx.len()), "length of dadd");
    reference::norm::backward(args, dx, dgamma, dbeta, dadd);
}

/// `sums[c] = Σ x[·, c]` over the rows of a channels-last slice; a bias gradient when `x` is `dy`.
///
/// # Panics
/// If `x` is not a multiple of `sums`.
pub fn channel_sums(x: &[f32], sums: &mut [f32]) {
    check_rows(x.len(), sums.len());
    reference::norm::channel_sums(x, sums);
}

impl Backward<'_> {
    fn check(&self, len: usize) {
        let channels = self.gamma.len();
        check_rows(len, channels);
        assert_eq!(self.dy.len(), len, "length of dy");
        assert_eq!(self.x.len(), len, "length of x");
        assert_eq!(self.mean.len(), channels, "length of mean");
        assert_eq!(self.inv_std.len(), channels, "length of inv_std");
        if self.act.saved() == Saved::Input {
            assert_eq!(self.beta.len(), channels, "length of beta");
            assert!(self.add.is_none_or(|add| add.len() == len), "length of add");
        } else if self.act != Activation::Identity {
            assert_eq!(self.y.len(), len, "length of y");
        }
    }
}

fn check_rows(len: usize, channels: usize) {
    assert!(channels > 0 && len.is_multiple_of(channels), "{len} elements are no rows of {channels} channels");
}
