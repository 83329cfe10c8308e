//! The learnable rounding of one weight tensor.

use bitsmith_graph::QParams;

use crate::param::Param;

/// Makes the weights of one layer from learnable parameters θ, and carries gradients back to them.
///
/// A quantizer owns everything that is learned about its tensor, latent float weights included where a method has them
/// (LSQ) and none where it has not (CSQ, whose weights are made of bit logits alone). So the parameters that
/// [`Quantizer::visit`] shows are the complete state: what they hold is what a checkpoint stores.
pub trait Quantizer: Send {
    /// Writes the weights Ŵ = Q(θ), in the tensor's own layout.
    fn forward(&mut self, weights: &mut [f32]);
    /// Adds ∂L/∂θ to the parameters' gradients, given `grad` = ∂L/∂Ŵ at the last [`Quantizer::forward`].
    fn backward(&mut self, grad: &[f32]);
    /// Writes ∂L/∂w of the latent float weights, in the tensor's own layout, as gathered so far. Returns whether there are any.
    fn latent_gradient(&self, _grad: &mut [f32]) -> bool {
        false
    }
    /// Writes the latent float weights, in the tensor's own layout. Returns whether there are any that a network could compute with.
    fn latent(&self, _weights: &mut [f32]) -> bool {
        false
    }
    /// Shows every parameter, always in the same order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// The steps of the grid that Ŵ of the last [`Quantizer::forward`] lies on, one per row of its granularity, where it is one of integers
    /// around zero of magnitudes up to 127.
    fn grid_steps(&self) -> Option<&[f32]> {
        None
    }
    /// Adds the gradient of the bin regulariser ([`crate::blocks::bins`]) times `strength` to that of the latent float weights, and returns
    /// its value; 0 where there are none, or where their width is still searched.
    fn bin_penalty(&mut self, _strength: f64) -> f64 {
        0.0
    }
    /// Bits per weight as the method's paper counts them.
    fn bits(&self) -> f32;
    /// Bits per weight that a file stores, sign included, were training to end now.
    fn stored_bits(&self) -> f64 {
        self.qparams().map_or(32.0, |params| params.spec.stored_bits())
    }
    /// The grid that Ŵ lies on exactly once [`crate::Method::finish`] has run. `None` for a method that leaves weights float.
    fn qparams(&self) -> Option<QParams>;
}

/// The elements of a tensor that share a scale, as rows: most layers have their channels outermost already, the others
/// are gathered. `rows` × `row_len` = number of elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows: channels, or 1.
    pub rows: usize,
    /// Elements per row.
    pub row_len: usize,
    /// Elements of one index along the channel axis that lie together; equal to `row_len` if rows are contiguous.
    inner: usize,
}

impl Rows {
    /// All elements share one scale.
    pub fn one(len: usize) -> Self {
        Self { rows: 1, row_len: len, inner: len }
    }

    /// One scale for each index along `axis`.
    pub fn along(axis: usize, shape: &[usize]) -> Self {
        let len: usize = shape.iter().product();
        let rows = shape.get(axis).copied().unwrap_or(1).max(1);
        let inner = shape.get(axis + 1..).unwrap_or(&[]).iter().product::<usize>().max(1);
        Self { rows, row_len: len / rows, inner }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.row_len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row is one contiguous run already.
    pub fn is_contiguous(&self) -> bool {
        self.inner == self.row_len
    }

    /// Copies a tensor into row order.
    pub fn gather(&self, tensor: &[f32], rows: &mut [f32]) {
        self.for_each(|at_tensor, at_rows, n| {
            rows[at_rows..at_rows + n].copy_from_slice(&tensor[at_tensor..at_tensor + n]);
        });
    }

    /// Copies from row order back into a tensor: the inverse of [`Rows::gather`].
    pub fn scatter(&self, rows: &[f32], tensor: &mut [f32]) {
        self.for_each(|at_tensor, at_rows, n| {
            tensor[at_tensor..at_tensor + n].copy_from_slice(&rows[at_rows..at_rows + n]);
        });
    }

    fn for_each(&self, mut f: impl FnMut(usize, usize, usize)) {
        if self.is_empty() {
            return;
        }
        for outer in 0..self.row_len / self.inner {
            for row in 0..self.rows {
                f((outer * self.rows + row) * self.inner, row * self.row_len + outer * self.inner, self.inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rows;

    #[test]
    fn rows_gather_and_scatter() {
        let rows = Rows::along(1, &[2, 3]);
        assert!(!rows.is_contiguous());
        let x = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0];
        let mut y = [0.0; 6];
        rows.gather(&x, &mut y);
        assert_eq!(y, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        let mut back = [0.0; 6];
        rows.scatter(&y, &mut back);
        assert_eq!(back, x);
        let plain = Rows::along(0, &[4, 3, 3, 3]);
        assert!(plain.is_contiguous());
        assert_eq!((plain.rows, plain.row_len), (4, 27));
        assert_eq!(Rows::one(5).len(), 5);
    }
}
