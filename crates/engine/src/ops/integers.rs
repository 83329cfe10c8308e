//! Products of numbers that lie on grids, by the integer kernels of deployment: exact, and several times as fast as floats.

use std::cell::Cell;
use std::thread::LocalKey;

use bitsmith_kernels::conv::ConvShape;
use bitsmith_kernels::integer::{ConvWeights, conv_with, linear_shape, rows};
use bitsmith_kernels::threads::for_each_part_weighing;

use super::{Grid, Integers};

/// Largest magnitude of a weight's code.
const LARGEST: i32 = 127;
/// Columns of a weight that are read together.
const COLUMNS: usize = 64;

impl Grid {
    /// What is added to codes to make bytes of them.
    fn offset(self) -> i32 {
        if self.low < 0 { 128 } else { 0 }
    }
}

impl Integers<'_> {
    /// Whether the kernels take a sum of `k` products for each of `n` outputs.
    pub fn fit(&self, k: usize, n: usize) -> bool {
        let Grid { step, low, high } = self.grid;
        let offset = self.grid.offset();
        let largest = i64::from(low.abs().max(high)) * i64::from(LARGEST) * k as i64;
        let is_known = step > 0.0 && (self.steps.len() == n || self.steps.len() == 1);
        low + offset >= 0 && high + offset <= 255 && largest <= i64::from(i32::MAX) && is_known && k > 0 && n > 0
    }
}

thread_local! {
    /// Codes of inputs and of weights, kept from layer to layer: fresh pages cost more than what is written there.
    static CODES: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static WEIGHTS: Cell<Vec<i8>> = const { Cell::new(Vec::new()) };
}

/// Lends `len` elements of arbitrary content.
fn with_scratch<T: Copy + Default>(scratch: &'static LocalKey<Cell<Vec<T>>>, len: usize, run: impl FnOnce(&mut [T])) {
    let mut buffer = scratch.take();
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    run(&mut buffer[..len]);
    scratch.set(buffer);
}

/// `y = x · w + bias`, where `x` is `[m, k]` and `w` is `[k, n]`, or `[n, k]` if transposed.
pub(super) fn multiply(
    [m, k, n]: [usize; 3],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    transposed: bool,
    integers: &Integers<'_>,
    y: &mut [f32],
) {
    let shape = linear_shape(m, k, n);
    if transposed {
        return convolve(&shape, x, w, bias, integers, y);
    }
    let steps: Vec<f32> = (0..n).map(|c| integers.step(c)).collect();
    with_scratch(&WEIGHTS, n * k, |weights| {
        for_each_part_weighing(weights, k, n * k, |at, part| {
            let mut row = [0; COLUMNS];
            for (block, part) in part.chunks_mut(COLUMNS * k).enumerate() {
                let first = at / k + block * COLUMNS;
                let row = &mut row[..part.len() / k];
                for i in 0..k {
                    rows::quantize_each(&w[i * n + first..][..row.len()], &steps[first..], LARGEST, row);
                    part.chunks_exact_mut(k).zip(&*row).for_each(|(codes, &code)| codes[i] = code);
                }
            }
        });
        integers.run(&shape, x, weights, bias, y);
    });
}

/// `y = conv(x, w) + bias`, channels-last, `w` OIHW.
pub(super) fn convolve(
    shape: &ConvShape,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    integers: &Integers<'_>,
    y: &mut [f32],
) {
    let filter = w.len() / shape.c_out;
    with_scratch(&WEIGHTS, w.len(), |weights| {
        for_each_part_weighing(weights, filter, w.len(), |at, part| {
            let w = &w[at..at + part.len()];
            let channels = part.chunks_exact_mut(filter).zip(w.chunks_exact(filter)).enumerate();
            channels.for_each(|(c, (codes, w))| integers.codes(w, at / filter + c, codes));
        });
        integers.run(shape, x, weights, bias, y);
    });
}

impl Integers<'_> {
    fn step(&self, channel: usize) -> f32 {
        if self.steps.len() == 1 { self.steps[0] } else { self.steps[channel] }
    }

    /// The codes of weights of one channel.
    fn codes(&self, w: &[f32], channel: usize, codes: &mut [i8]) {
        let steps = [self.step(channel); 256];
        for (w, codes) in w.chunks(steps.len()).zip(codes.chunks_mut(steps.len())) {
            rows::quantize_each(w, &steps, LARGEST, codes);
        }
    }

    /// `y = conv(x, weights) + bias` by the kernels of deployment.
    fn run(&self, shape: &ConvShape, x: &[f32], weights: &[i8], bias: Option<&[f32]>, y: &mut [f32]) {
        let (grid, offset) = (self.grid, self.grid.offset());
        let packed = ConvWeights::for_inputs(shape, weights, (grid.high + offset) as u8);
        let scale: Vec<f32> = (0..shape.c_out).map(|c| grid.step * self.step(c)).collect();
        with_scratch(&CODES, x.len(), |inputs| {
            for_each_part_weighing(inputs, 1, x.len(), |at, codes| {
                let x = &x[at..at + codes.len()];
                rows::quantize_u8(x, grid.step, offset, grid.low + offset, grid.high + offset, codes);
            });
            conv_with(shape, &*inputs, offset, &packed, y, |_, acc, y| {
                rows::scale_rows(acc, &scale, y);
                if let Some(bias) = bias {
                    rows::add_rows(bias, y);
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_numbers() {
        for (low, high) in [(0, 15), (-8, 7), (0, 255), (-128, 127)] {
            for transposed in [true, false] {
                let [m, k, n] = [5, 37, 19];
                let steps: Vec<f32> = (0..n).map(|c| 0.01 + c as f32 * 0.003).collect();
                let code = |i: usize, modulo: usize| (i * 7919 % modulo) as i32;
                let x: Vec<f32> =
                    (0..m * k).map(|i| 0.25 * (low + code(i, (high - low + 1) as usize)) as f32).collect();
                let channel = |i: usize| if transposed { i / k } else { i % n };
                let w: Vec<f32> = (0..n * k).map(|i| steps[channel(i)] * (code(i, 255) - 127) as f32).collect();
                let grids = Integers { grid: Grid { step: 0.25, low, high }, steps: &steps };
                assert!(grids.fit(k, n));
                let bias: Vec<f32> = (0..n).map(|c| c as f32 - 7.5).collect();
                let mut y = vec![0.0; m * n];
                multiply([m, k, n], &x, &w, Some(&bias), transposed, &grids, &mut y);
                for (i, y) in y.iter().enumerate() {
                    let (row, c) = (i / n, i % n);
                    let weight = |j: usize| if transposed { w[c * k + j] } else { w[j * n + c] };
                    let products = (0..k).map(|j| f64::from(x[row * k + j]) * f64::from(weight(j)));
                    let sum = products.sum::<f64>() + f64::from(bias[c]);
                    assert!((f64::from(*y) - sum).abs() <= 1e-5 * sum.abs().max(1.0), "{y} {sum}");
                }
            }
        }
        // A convolution: signed codes, padding, a stride, one step for all.
        let shape = ConvShape::square(2, 7, 5, 18, 3, 2);
        let code = |i: usize, modulo: usize| (i * 7919 % modulo) as f32;
        let x: Vec<f32> = (0..shape.input_len()).map(|i| 0.5 * (code(i, 16) - 8.0)).collect();
        let w: Vec<f32> = (0..shape.weight_len()).map(|i| 0.125 * (code(i, 15) - 7.0)).collect();
        let grids = Integers { grid: Grid { step: 0.5, low: -8, high: 7 }, steps: &[0.125] };
        let (mut y, mut slow) = (vec![0.0; shape.output_len()], vec![0.0; shape.output_len()]);
        convolve(&shape, &x, &w, None, &grids, &mut y);
        bitsmith_kernels::reference::conv::forward(&shape, &x, &w, None, &mut slow);
        // All powers of two: exact.
        assert_eq!(y, slow);
        let grids = |low, high| Integers { grid: Grid { step: 1.0, low, high }, steps: &[1.0] };
        assert!(!grids(-10, 245).fit(10, 10) && !grids(0, 256).fit(10, 10) && !grids(0, 255).fit(70_000, 10));
    }
}
