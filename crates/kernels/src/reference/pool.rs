//! Pooling by its definition.

use crate::pool::{Padding, PoolShape};

/// Calls `visit(output offset, divisor, offsets of the window's elements)` for every output.
fn for_each_window(shape: &PoolShape, mut visit: impl FnMut(usize, f64, &[usize])) {
    let s = shape;
    let (out_h, out_w) = (s.out_h(), s.out_w());
    let mut window = Vec::new();
    for n in 0..s.batch {
        for oh in 0..out_h {
            let (rows, padded_rows) = span(oh, 0, s.in_h, s);
            for ow in 0..out_w {
                let (columns, padded_columns) = span(ow, 1, s.in_w, s);
                for c in 0..s.channels {
                    window.clear();
                    for ih in rows.clone() {
                        for iw in columns.clone() {
                            window.push(((n * s.in_h + ih) * s.in_w + iw) * s.channels + c);
                        }
                    }
                    let count = match s.padding {
                        Padding::Ignored => window.len(),
                        Padding::Counted => padded_rows * padded_columns,
                    };
                    visit(((n * out_h + oh) * out_w + ow) * s.channels + c, count as f64, &window);
                }
            }
        }
    }
}

/// The input coordinates of window `index` along an axis, and its length inside the padded input.
fn span(index: usize, axis: usize, size: usize, s: &PoolShape) -> (std::ops::Range<usize>, usize) {
    let (before, after) = (s.pads[axis], s.pads[axis + 2]);
    let start = index * s.stride[axis];
    let end = (start + s.kernel[axis]).min(size + before + after);
    (start.saturating_sub(before)..end.saturating_sub(before).min(size), end - start)
}

/// The offset of the first largest element; a NaN counts as larger than all before it.
fn first_largest(x: &[f32], window: &[usize]) -> usize {
    let mut best = window[0];
    for &i in &window[1..] {
        if x[i] > x[best] || (x[i].is_nan() && !x[best].is_nan()) {
            best = i;
        }
    }
    best
}

/// See [`crate::pool::max`].
pub fn max(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    for_each_window(shape, |out, _, window| y[out] = x[first_largest(x, window)]);
}

/// See [`crate::pool::max_backward`].
pub fn max_backward(shape: &PoolShape, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let mut sums = vec![0.0_f64; dx.len()];
    for_each_window(shape, |out, _, window| sums[first_largest(x, window)] += f64::from(dy[out]));
    dx.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
}

/// See [`crate::pool::average`].
pub fn average(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    for_each_window(shape, |out, count, window| {
        y[out] = (window.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count) as f32;
    });
}

/// See [`crate::pool::average_backward`].
pub fn average_backward(shape: &PoolShape, dy: &[f32], dx: &mut [f32]) {
    let mut sums = vec![0.0_f64; dx.len()];
    for_each_window(shape, |out, count, window| {
        window.iter().for_each(|&i| sums[i] += f64::from(dy[out]) / count);
    });
    dx.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
}

/// See [`crate::pool::global_average`].
pub fn global_average(batch: usize, channels: usize, x: &[f32], y: &mut [f32]) {
    let pixels = x.len() / (batch * channels);
    for (i, y) in y.iter_mut().enumerate() {
        let (n, c) = (i / channels, i % channels);
        let sum: f64 = (0..pixels).map(|p| f64::from(x[(n * pixels + p) * channels + c])).sum();
        *y = (sum / pixels as f64) as f32;
    }
}

/// See [`crate::pool::global_average_backward`].
pub fn global_average_backward(batch: usize, channels: usize, dy: &[f32], dx: &mut [f32]) {
    let pixels = dx.len() / (batch * channels);
    for (i, dx) in dx.iter_mut().enumerate() {
        let (n, c) = (i / (pixels * channels), i % channels);
        *dx = (f64::from(dy[n * channels + c]) / pixels as f64) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::{average, average_backward, max, max_backward};
    use crate::pool::{Padding, PoolShape, Rounding};

    /// A row of four, window 3, stride 2, one pad on the left: ceil mode adds the window that holds only the last element.
    #[test]
    fn by_hand() {
        let mut shape = PoolShape {
            batch: 1,
            in_h: 1,
            in_w: 4,
            channels: 1,
            kernel: [1, 3],
            stride: [1, 2],
            pads: [0, 1, 0, 0],
            rounding: Rounding::Floor,
            padding: Padding::Ignored,
        };
        let x = [1.0, 3.0, 3.0, 2.0];
        let mut y = [0.0; 2];
        max(&shape, &x, &mut y);
        assert_eq!(y, [3.0, 3.0]);
        let mut dx = [0.0; 4];
        max_backward(&shape, &x, &[1.0, 10.0], &mut dx);
        assert_eq!(dx, [0.0, 11.0, 0.0, 0.0]);
        average(&shape, &x, &mut y);
        assert_eq!(y, [2.0, 8.0 / 3.0]);
        shape.padding = Padding::Counted;
        average(&shape, &x, &mut y);
        assert_eq!(y, [4.0 / 3.0, 8.0 / 3.0]);
        average_backward(&shape, &[3.0, 6.0], &mut dx);
        assert_eq!(dx, [1.0, 3.0, 2.0, 2.0]);

        shape.in_w = 5;
        shape.pads = [0, 0, 0, 1];
        shape.stride = [1, 2];
        assert_eq!(shape.out_w(), 2);
        shape.rounding = Rounding::Ceil;
        assert_eq!(shape.out_w(), 3, "a window starts at 4, inside the input");
    }
}
