//! The shortcut of a residual block without weights (option A of He et al. 2015): fewer pixels, more channels. One pass over
//! the larger side in each direction.

use bitsmith_kernels::threads::for_each_part;
use burn_backend::{Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::Shortcut;
use crate::memory::{floats, take, tensor};
use crate::profile;

pub(super) fn forward(x: &FlexTensor, shape: &Shortcut) -> FlexTensor {
    let _time = profile::span("shortcut");
    let [batch, in_h, in_w, channels] = x.shape().dims();
    let (before, after) = shape.channels;
    let ((row0, row_step, out_h), (column0, column_step, out_w)) = (shape.rows, shape.columns);
    let wide = before + channels + after;
    let x = floats(x);
    let mut y = take(batch * out_h * out_w * wide);
    for_each_part(&mut y, out_w * wide, |start, part| {
        for (index, row) in part.chunks_exact_mut(out_w * wide).enumerate() {
            let (n, i) = split(start / (out_w * wide) + index, out_h);
            let from = (n * in_h + row0 + i * row_step) * in_w + column0;
            for (j, pixel) in row.chunks_exact_mut(wide).enumerate() {
                let from = (from + j * column_step) * channels;
                let (left, rest) = pixel.split_at_mut(before);
                let (middle, right) = rest.split_at_mut(channels);
                left.fill(0.0);
                middle.copy_from_slice(&x[from..from + channels]);
                right.fill(0.0);
            }
        }
    });
    tensor(y, Shape::new([batch, out_h, out_w, wide]))
}

/// The gradient of the input, of the given shape: that of the pixels taken, zero elsewhere.
pub(super) fn backward(dy: &FlexTensor, shape: &Shortcut, size: Shape) -> FlexTensor {
    let _time = profile::span("shortcut backward");
    let [_, in_h, in_w, channels] = size.dims();
    let (before, after) = shape.channels;
    let ((row0, row_step, out_h), (column0, column_step, out_w)) = (shape.rows, shape.columns);
    let wide = before + channels + after;
    let dy = floats(dy);
    let mut dx = take(size.num_elements());
    for_each_part(&mut dx, in_w * channels, |start, part| {
        for (index, row) in part.chunks_exact_mut(in_w * channels).enumerate() {
            row.fill(0.0);
            let (n, i) = split(start / (in_w * channels) + index, in_h);
            let Some(i) = i.checked_sub(row0).filter(|i| i % row_step == 0).map(|i| i / row_step) else { continue };
            if i >= out_h {
                continue;
            }
            for j in 0..out_w {
                let from = ((n * out_h + i) * out_w + j) * wide + before;
                let to = (column0 + j * column_step) * channels;
                row[to..to + channels].copy_from_slice(&dy[from..from + channels]);
            }
        }
    });
    tensor(dx, size)
}

/// Image and row of a row counted over all images.
fn split(row: usize, height: usize) -> (usize, usize) {
    (row / height, row % height)
}
