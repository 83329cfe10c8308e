//! Pooling over channels-last tensors: maximum, average, global average, forward and backward.

use crate::conv::ShapeError;
use crate::reference;

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

    fn assert_lengths(&self, input: usize, output: usize) {
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
    reference::pool::max(shape, x, y);
}

/// The gradient of [`max`]: each `dy` goes to the first largest element of its window (row by row), found again from `x`.
///
/// # Panics
/// As [`max`].
pub fn max_backward(shape: &PoolShape, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    shape.assert_lengths(x.len(), dy.len());
    assert_eq!(dx.len(), x.len(), "length of dx");
    reference::pool::max_backward(shape, x, dy, dx);
}

/// The mean of each window, divided as `shape.padding` says.
///
/// # Panics
/// As [`max`].
pub fn average(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    shape.assert_lengths(x.len(), y.len());
    reference::pool::average(shape, x, y);
}

/// The gradient of [`average`].
///
/// # Panics
/// As [`max`].
pub fn average_backward(shape: &PoolShape, dy: &[f32], dx: &mut [f32]) {
    shape.assert_lengths(dx.len(), dy.len());
    reference::pool::average_backward(shape, dy, dx);
}

/// `[batch, pixels, channels]` to the mean over pixels, `[batch, channels]`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn global_average(batch: usize, channels: usize, x: &[f32], y: &mut [f32]) {
    check_global(batch, channels, x.len(), y.len());
    reference::pool::global_average(batch, channels, x, y);
}

/// The gradient of [`global_average`]: every pixel gets `dy / pixels`.
///
/// # Panics
/// As [`global_average`].
pub fn global_average_backward(batch: usize, channels: usize, dy: &[f32], dx: &mut [f32]) {
    check_global(batch, channels, dx.len(), dy.len());
    reference::pool::global_average_backward(batch, channels, dy, dx);
}

fn check_global(batch: usize, channels: usize, input: usize, output: usize) {
    assert!(batch > 0 && channels > 0, "an empty batch or no channels");
    assert_eq!(output, batch * channels, "length of the pooled slice");
    assert!(input > 0 && input.is_multiple_of(output), "{input} elements in {batch} images of {channels} channels");
}
