//! Products of numbers that lie on grids, by the integer kernels of deployment: exact, and several times as fast as floats.

use bitsmith_kernels::integer::{ConvWeights, conv_with, linear_shape, rows};
use bitsmith_kernels::numerics::quantize;
use bitsmith_kernels::threads::for_each_part_weighing;

use super::{Grid, Integers};

/// Largest magnitude of a weight's code.
const LARGEST: i32 = 127;
/// Columns of a weight that are read together.
const COLUMNS: usize = 16;

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

/// `y = x · w`, where `x` is `[m, k]` and `w` is `[k, n]`, or `[n, k]` if transposed.
pub(super) fn multiply(
    [m, k, n]: [usize; 3],
    x: &[f32],
    w: &[f32],
    transposed: bool,
    &Integers { grid, steps }: &Integers<'_>,
    y: &mut [f32],
) {
    let offset = grid.offset();
    let mut inputs = vec![0u8; m * k];
    for_each_part_weighing(&mut inputs, 1, m * k, |at, codes| {
        let x = &x[at..at + codes.len()];
        rows::quantize_u8(x, grid.step, offset, grid.low + offset, grid.high + offset, codes);
    });
    let step = |c: usize| if steps.len() == 1 { steps[0] } else { steps[c] };
    let mut weights = vec![0i8; n * k];
    for_each_part_weighing(&mut weights, k, n * k, |at, part| {
        let code = |w: f32, c: usize| quantize(w, step(c), 0, -LARGEST, LARGEST) as i8;
        for (block, part) in part.chunks_mut(COLUMNS * k).enumerate() {
            let first = at / k + block * COLUMNS;
            for i in 0..k {
                for (c, codes) in part.chunks_exact_mut(k).enumerate() {
                    let channel = first + c;
                    codes[i] = code(if transposed { w[channel * k + i] } else { w[i * n + channel] }, channel);
                }
            }
        }
    });
    let shape = linear_shape(m, k, n);
    let packed = ConvWeights::for_inputs(&shape, &weights, (grid.high + offset) as u8);
    let scale: Vec<f32> = (0..n).map(|c| grid.step * step(c)).collect();
    conv_with(&shape, &inputs, offset, &packed, y, |_, acc, y| rows::scale_rows(acc, &scale, y));
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
                let mut y = vec![0.0; m * n];
                multiply([m, k, n], &x, &w, transposed, &grids, &mut y);
                for (i, y) in y.iter().enumerate() {
                    let (row, c) = (i / n, i % n);
                    let weight = |j: usize| if transposed { w[c * k + j] } else { w[j * n + c] };
                    let sum: f64 = (0..k).map(|j| f64::from(x[row * k + j]) * f64::from(weight(j))).sum();
                    assert!((f64::from(*y) - sum).abs() <= 1e-5 * sum.abs().max(1.0), "{y} {sum}");
                }
            }
        }
        let grids = |low, high| Integers { grid: Grid { step: 1.0, low, high }, steps: &[1.0] };
        assert!(!grids(-10, 245).fit(10, 10) && !grids(0, 256).fit(10, 10) && !grids(0, 255).fit(70_000, 10));
    }
}
