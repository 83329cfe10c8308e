//! Pooling over channels-last tensors: maximum, average, global average, forward and backward.

use crate::conv::ShapeError;
use crate::multiversion::multiversion;
use crate::threads;
use std::ops::Range;

/// The geometry of a pooling. Construct it with public fields, then ask [`PoolShape::validate`] once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolShape {
    /// Images in the batch.
    pub batch: usize,
    /// Height of the input, 1 for one-dimensional pooling.
    pub in_h: usize,
    /// Width of the input.
    pub in_w: usize,
    /// Channels, each pooled alone.
    pub channels: usize,
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between windows.
    pub stride: [usize; 2],
    /// Padding: top, left, bottom, right. Padding never wins a maximum.
    pub pads: [usize; 4],
    /// What happens to a last window that does not fit.
    pub rounding: Rounding,
    /// What an average divides by.
    pub padding: Padding,
}

/// How the number of windows is rounded when the stride does not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// Only windows that fit (`ceil_mode = 0`).
    #[default]
    Floor,
    /// Also a last partial window, if it starts inside the input or its leading padding (`ceil_mode = 1`).
    Ceil,
}

/// Whether an average counts padding as zeros of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Padding {
    /// Divide by the number of real elements (`count_include_pad = 0`, ONNX's default).
    #[default]
    Ignored,
    /// Divide by the window's size inside the padded input (`count_include_pad = 1`).
    Counted,
}

impl PoolShape {
    /// Height of the output; meaningful after [`PoolShape::validate`].
    pub fn out_h(&self) -> usize {
        self.windows(self.in_h, 0, self.pads[0], self.pads[2])
    }

    /// Width of the output; meaningful after [`PoolShape::validate`].
    pub fn out_w(&self) -> usize {
        self.windows(self.in_w, 1, self.pads[1], self.pads[3])
    }

    fn windows(&self, size: usize, axis: usize, before: usize, after: usize) -> usize {
        let room = size + before + after - self.kernel[axis];
        let floor = room / self.stride[axis] + 1;
        let partial = self.rounding == Rounding::Ceil
            && !room.is_multiple_of(self.stride[axis])
            && floor * self.stride[axis] < size + before;
        floor + usize::from(partial)
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_h * self.in_w * self.channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_h() * self.out_w() * self.channels
    }

    /// Checks that every number is positive where it must be, that a window fits and that every window meets the input
    /// (pads smaller than the kernel).
    ///
    /// # Errors
    /// Names the offending number.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let fail = |detail: String| Err(ShapeError(detail));
        let largest = i32::MAX as usize;
        for (name, value) in [
            ("batch", self.batch),
            ("input height", self.in_h),
            ("input width", self.in_w),
            ("channels", self.channels),
            ("window height", self.kernel[0]),
            ("window width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
        ] {
            if value == 0 || value > largest {
                return fail(format!("pooling: {name} is {value}, expected 1 to {largest}"));
            }
        }
        for axis in 0..2 {
            let (before, after) = (self.pads[axis], self.pads[axis + 2]);
            if before >= self.kernel[axis] || after >= self.kernel[axis] {
                return fail(format!(
                    "pooling: pads {before} and {after} are not smaller than the window {}",
                    self.kernel[axis]
                ));
            }
            let size = [self.in_h, self.in_w][axis] + before + after;
            if self.kernel[axis] > size {
                return fail(format!("pooling: window {} does not fit into {size}", self.kernel[axis]));
            }
        }
        for dims in
            [[self.batch, self.in_h, self.in_w, self.channels], [self.batch, self.out_h(), self.out_w(), self.channels]]
        {
            let len = dims.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
            if len.is_none_or(|n| n > isize::MAX as usize / 4) {
                return fail(format!("pooling: {dims:?} has too many elements"));
            }
        }
        Ok(())
    }

    fn image_len(&self) -> usize {
        self.in_h * self.in_w * self.channels
    }

    /// The input coordinates of window `index` along an axis, and its length inside the padded input.
    pub(crate) fn span(&self, index: usize, axis: usize) -> (Range<usize>, usize) {
        let (before, after) = (self.pads[axis], self.pads[axis + 2]);
        let size = [self.in_h, self.in_w][axis];
        let start = index * self.stride[axis];
        let end = (start + self.kernel[axis]).min(size + before + after);
        (start.saturating_sub(before)..end.saturating_sub(before).min(size), end - start)
    }

    fn divisor(&self, rows: &Range<usize>, columns: &Range<usize>, padded: usize) -> f32 {
        match self.padding {
            Padding::Ignored => (rows.len() * columns.len()) as f32,
            Padding::Counted => padded as f32,
        }
    }

    /// The pixels of a window, row by row.
    fn window<'a>(
        &self,
        x: &'a [f32],
        image: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> impl Iterator<Item = &'a [f32]> {
        let (line, pixel) = (self.in_w * self.channels, self.channels);
        let (from, to) = (columns.start * pixel, columns.end * pixel);
        let x = &x[image * self.image_len()..];
        rows.clone().flat_map(move |row| x[row * line + from..row * line + to].chunks_exact(pixel))
    }

    pub(crate) fn assert_lengths(&self, input: usize, output: usize) {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        assert_eq!(input, self.input_len(), "length of the input of {self:?}");
        assert_eq!(output, self.output_len(), "length of the output of {self:?}");
    }
}

/// The largest element of each window; NaN if there is one.
///
/// # Panics
/// If the shape is not valid or a slice has another length than the shape says.
pub fn max(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    shape.assert_lengths(x.len(), y.len());
    let pixel = shape.channels;
    for_each_row(shape, y, |image, oh, y| {
        let (rows, _) = shape.span(oh, 0);
        for (ow, y) in y.chunks_exact_mut(pixel).enumerate() {
            let (columns, _) = shape.span(ow, 1);
            y.fill(f32::NEG_INFINITY);
            for x in shape.window(x, image, &rows, &columns) {
                raise(x, y);
            }
        }
    });
}

multiversion! {
    /// `y = max(y, x)`, element by element; NaN if either is.
    pub fn raise(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = larger(*y, x));
    }
}

multiversion! {
    /// `y = max(y, x)` of codes, element by element.
    pub fn raise_codes(x: &[u8], y: &mut [u8]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x > *y { x } else { *y });
    }
}

multiversion! {
    /// `y = max(y, x)`, element by element, and `first = number` where `x` was larger; NaN is larger than any number.
    fn raise_numbered(x: &[f32], number: f32, y: &mut [f32], first: &mut [f32]) {
        let n = x.len();
        let (y, first) = (&mut y[..n], &mut first[..n]);
        for i in 0..n {
            let is_larger = (x[i] > y[i]) | (x[i].is_nan() & !y[i].is_nan());
            y[i] = if is_larger { x[i] } else { y[i] };
            first[i] = if is_larger { number } else { first[i] };
        }
    }
}

multiversion! {
    /// Adds `dy` to `dx` where `first` is `number`.
    fn add_where_first(first: &[f32], number: f32, dy: &[f32], dx: &mut [f32]) {
        let n = dx.len();
        let (first, dy) = (&first[..n], &dy[..n]);
        for i in 0..n {
            dx[i] += if first[i] == number { dy[i] } else { 0.0 };
        }
    }
}

/// [`max`], and in `first`, as long as `y`, which pixel of its window each largest element came from: the first one that is as large, counted
/// row by row over the pixels that lie in the input. All that [`max_backward`] needs, so that `x` need not be kept.
///
/// # Panics
/// As [`max`].
pub fn max_numbered(shape: &PoolShape, x: &[f32], y: &mut [f32], first: &mut [f32]) {
    shape.assert_lengths(x.len(), y.len());
    assert_eq!(first.len(), y.len(), "length of first");
    // Numbers are exact in f32 up to there.
    assert!(shape.kernel[0].min(shape.in_h) * shape.kernel[1].min(shape.in_w) <= 1 << 24, "pixels of a window");
    let pixel = shape.channels;
    let image_len = shape.out_h() * shape.out_w() * pixel;
    let jobs: Vec<_> = y.chunks_exact_mut(image_len).zip(first.chunks_exact_mut(image_len)).enumerate().collect();
    threads::for_each_job(jobs, |(image, (y, first))| {
        y.fill(f32::NEG_INFINITY);
        first.fill(0.0);
        for (at, (y, first)) in y.chunks_exact_mut(pixel).zip(first.chunks_exact_mut(pixel)).enumerate() {
            let (rows, _) = shape.span(at / shape.out_w(), 0);
            let (columns, _) = shape.span(at % shape.out_w(), 1);
            for (number, x) in shape.window(x, image, &rows, &columns).enumerate() {
                raise_numbered(x, number as f32, y, first);
            }
        }
    });
}

/// The gradient of [`max`]: each `dy` goes to the first largest element of its window, of which [`max_numbered`] told the number.
///
/// # Panics
/// As [`max`].
pub fn max_backward(shape: &PoolShape, first: &[f32], dy: &[f32], dx: &mut [f32]) {
    shape.assert_lengths(dx.len(), dy.len());
    assert_eq!(first.len(), dy.len(), "length of first");
    let pixel = shape.channels;
    for_each_image(shape, dx, |image, dx| {
        dx.fill(0.0);
        for oh in 0..shape.out_h() {
            let (rows, _) = shape.span(oh, 0);
            for ow in 0..shape.out_w() {
                let (columns, _) = shape.span(ow, 1);
                let at = ((image * shape.out_h() + oh) * shape.out_w() + ow) * pixel;
                let pixels = rows.clone().flat_map(|ih| columns.clone().map(move |iw| (ih * shape.in_w + iw) * pixel));
                for (number, to) in pixels.enumerate() {
                    let dx = &mut dx[to..to + pixel];
                    add_where_first(&first[at..at + pixel], number as f32, &dy[at..at + pixel], dx);
                }
            }
        }
    });
}

/// The mean of each window, divided as `shape.padding` says.
///
/// # Panics
/// As [`max`].
pub fn average(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    shape.assert_lengths(x.len(), y.len());
    let pixel = shape.channels;
    for_each_row(shape, y, |image, oh, y| {
        let (rows, padded_rows) = shape.span(oh, 0);
        for (ow, y) in y.chunks_exact_mut(pixel).enumerate() {
            let (columns, padded_columns) = shape.span(ow, 1);
            let count = shape.divisor(&rows, &columns, padded_rows * padded_columns);
            y.fill(0.0);
            for x in shape.window(x, image, &rows, &columns) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= count);
        }
    });
}

/// The gradient of [`average`].
///
/// # Panics
/// As [`max`].
pub fn average_backward(shape: &PoolShape, dy: &[f32], dx: &mut [f32]) {
    shape.assert_lengths(dx.len(), dy.len());
    let pixel = shape.channels;
    for_each_image(shape, dx, |image, dx| {
        dx.fill(0.0);
        for oh in 0..shape.out_h() {
            let (rows, padded_rows) = shape.span(oh, 0);
            for ow in 0..shape.out_w() {
                let (columns, padded_columns) = shape.span(ow, 1);
                let count = shape.divisor(&rows, &columns, padded_rows * padded_columns);
                let at = ((image * shape.out_h() + oh) * shape.out_w() + ow) * pixel;
                let dy = &dy[at..at + pixel];
                for ih in rows.clone() {
                    let line = &mut dx[(ih * shape.in_w + columns.start) * pixel..][..columns.len() * pixel];
                    for dx in line.chunks_exact_mut(pixel) {
                        dx.iter_mut().zip(dy).for_each(|(dx, &g)| *dx += g / count);
                    }
                }
            }
        }
    });
}

/// `[batch, pixels, channels]` to the mean over pixels, `[batch, channels]`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn global_average(batch: usize, channels: usize, x: &[f32], y: &mut [f32]) {
    check_global(batch, channels, x.len(), y.len());
    let pixels = x.len() / y.len();
    threads::for_each_part_weighing(y, channels, x.len(), |start, y| {
        for (y, x) in y.chunks_exact_mut(channels).zip(x[start * pixels..].chunks_exact(pixels * channels)) {
            y.fill(0.0);
            for x in x.chunks_exact(channels) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= pixels as f32);
        }
    });
}

/// The gradient of [`global_average`]: every pixel gets `dy / pixels`.
///
/// # Panics
/// As [`global_average`].
pub fn global_average_backward(batch: usize, channels: usize, dy: &[f32], dx: &mut [f32]) {
    check_global(batch, channels, dx.len(), dy.len());
    let pixels = dx.len() / dy.len();
    threads::for_each_part(dx, pixels * channels, |start, dx| {
        let dy = dy[start / pixels..].chunks_exact(channels);
        for (dx, dy) in dx.chunks_exact_mut(pixels * channels).zip(dy) {
            for dx in dx.chunks_exact_mut(channels) {
                dx.iter_mut().zip(dy).for_each(|(dx, &g)| *dx = g / pixels as f32);
            }
        }
    });
}

/// The larger one; NaN if either is.
#[inline(always)]
fn larger(best: f32, x: f32) -> f32 {
    if x > best || x.is_nan() { x } else { best }
}

/// Calls `run(image, output row, its elements)` for every output row, in parallel.
fn for_each_row(shape: &PoolShape, y: &mut [f32], run: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let (out_h, row) = (shape.out_h(), shape.out_w() * shape.channels);
    threads::for_each_part_weighing(y, row, shape.input_len(), |start, y| {
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let number = start / row + i;
            run(number / out_h, number % out_h, y);
        }
    });
}

/// Calls `run(image, its elements)` for every image of the input's shape, in parallel.
fn for_each_image(shape: &PoolShape, dx: &mut [f32], run: impl Fn(usize, &mut [f32]) + Sync) {
    let len = shape.image_len();
    threads::for_each_part(dx, len, |start, dx| {
        dx.chunks_exact_mut(len).enumerate().for_each(|(i, dx)| run(start / len + i, dx));
    });
}

fn check_global(batch: usize, channels: usize, input: usize, output: usize) {
    assert!(batch > 0 && channels > 0, "an empty batch or no channels");
    assert_eq!(output, batch * channels, "length of the pooled slice");
    assert!(input > 0 && input.is_multiple_of(output), "{input} elements in {batch} images of {channels} channels");
}

#[cfg(test)]
mod tests {
    use super::{Padding, PoolShape, Rounding};
    use crate::reference::pool as naive;
    use crate::testing::{UNIT, assert_within};
    use proptest::prelude::*;

    fn values(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + salt) * 7919 + i / 13) % 101) as f32 / 50.5 - 1.0).collect()
    }

    /// Nothing here is compiled per instruction set. Maxima are exact; a sum of k numbers, each divided or the sum divided, is off
    /// by at most (k + 2) u Σ|x|, where Σ|x| is the reference of the magnitudes.
    fn check(shape: &PoolShape) {
        shape.validate().expect("the test's shape");
        // Few different values: ties are common.
        let (x, dy) = (values(shape.input_len(), 1), values(shape.output_len(), 2));
        let magnitudes = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x.abs()).collect() };
        let (ax, ady) = (magnitudes(&x), magnitudes(&dy));
        let (mut slow, mut bound, mut fast) = (dy.clone(), dy.clone(), vec![f32::NAN; dy.len()]);
        let (mut slow_dx, mut bound_dx, mut fast_dx) = (x.clone(), x.clone(), vec![f32::NAN; x.len()]);
        let near = |what: &str, k: usize, fast: &[f32], slow: &[f32], bounds: &[f32]| {
            let limit = |i: usize| (k + 2) as f64 * UNIT * f64::from(bounds[i]);
            assert_within(format_args!("{what} {shape:?}"), fast, slow, limit);
        };
        let window = shape.kernel[0] * shape.kernel[1];
        naive::max(shape, &x, &mut slow);
        super::max(shape, &x, &mut fast);
        assert_eq!(fast, slow, "{shape:?}");
        naive::max_backward(shape, &x, &dy, &mut slow_dx);
        naive::max_backward(shape, &x, &ady, &mut bound_dx);
        let (mut numbered, mut first) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
        super::max_numbered(shape, &x, &mut numbered, &mut first);
        assert_eq!(numbered, slow, "{shape:?}");
        super::max_backward(shape, &first, &dy, &mut fast_dx);
        near("max backward", window, &fast_dx, &slow_dx, &bound_dx);
        naive::average(shape, &x, &mut slow);
        naive::average(shape, &ax, &mut bound);
        super::average(shape, &x, &mut fast);
        near("average", window, &fast, &slow, &bound);
        naive::average_backward(shape, &dy, &mut slow_dx);
        naive::average_backward(shape, &ady, &mut bound_dx);
        super::average_backward(shape, &dy, &mut fast_dx);
        near("average backward", window, &fast_dx, &slow_dx, &bound_dx);

        let (batch, channels) = (shape.batch, shape.channels);
        let (mut slow, mut bound) = (vec![0.0; batch * channels], vec![0.0; batch * channels]);
        let mut fast = vec![f32::NAN; batch * channels];
        naive::global_average(batch, channels, &x, &mut slow);
        naive::global_average(batch, channels, &ax, &mut bound);
        super::global_average(batch, channels, &x, &mut fast);
        near("global average", shape.in_h * shape.in_w, &fast, &slow, &bound);
        naive::global_average_backward(batch, channels, &slow, &mut slow_dx);
        super::global_average_backward(batch, channels, &slow, &mut fast_dx);
        near("global average backward", 0, &fast_dx, &slow_dx, &magnitudes(&slow_dx));
    }

    #[test]
    fn awkward_shapes() {
        for channels in [1, 3, 15, 17] {
            for in_w in [1, 7] {
                for stride in [1, 2, 3] {
                    for (kernel, pads) in [([1, 1], [0; 4]), ([2, 2], [0, 1, 1, 0]), ([3, 3], [1, 2, 0, 1])] {
                        for (rounding, padding) in
                            [(Rounding::Floor, Padding::Ignored), (Rounding::Ceil, Padding::Counted)]
                        {
                            let stride = [stride; 2];
                            let (batch, in_h) = (1, 5);
                            check(&PoolShape { batch, in_h, in_w, channels, kernel, stride, pads, rounding, padding });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nan_wins_and_takes_the_gradient() {
        let shape = PoolShape {
            batch: 1,
            in_h: 1,
            in_w: 3,
            channels: 1,
            kernel: [1, 3],
            stride: [1, 1],
            pads: [0; 4],
            rounding: Rounding::Floor,
            padding: Padding::Ignored,
        };
        let (mut y, mut dx) = ([0.0], [0.0; 3]);
        super::max(&shape, &[5.0, f32::NAN, 7.0], &mut y);
        assert!(y[0].is_nan());
        let mut first = [7.0];
        super::max_numbered(&shape, &[5.0, f32::NAN, 7.0], &mut y, &mut first);
        assert!(y[0].is_nan());
        super::max_backward(&shape, &first, &[2.0], &mut dx);
        assert_eq!(dx, [0.0, 2.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn any_shape(
            sizes in (1..3_usize, 1..12_usize, 1..40_usize),
            channels in prop::sample::select(vec![1, 3, 15, 16, 17, 33, 64]),
            kernel in [1..8_usize, 1..8_usize],
            stride in [1..4_usize, 1..4_usize],
            pads in [0..4_usize, 0..4_usize, 0..4_usize, 0..4_usize],
            (ceil, counted) in any::<(bool, bool)>(),
        ) {
            let (batch, in_h, in_w) = sizes;
            let rounding = if ceil { Rounding::Ceil } else { Rounding::Floor };
            let padding = if counted { Padding::Counted } else { Padding::Ignored };
            let shape = PoolShape { batch, in_h, in_w, channels, kernel, stride, pads, rounding, padding };
            if shape.validate().is_ok() {
                check(&shape);
            }
        }
    }
}
