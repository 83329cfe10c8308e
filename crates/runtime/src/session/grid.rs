//! Activation codes in memory: one unsigned byte each, with the grid they lie on.
//!
//! Signed codes are held as their distance from the lowest with their zero point moved by as much, which changes no rounding
//! and no decoded number; so there is one kind of code, the order of bytes is the order of numbers, and few bits are small
//! bytes, which the kernels make use of.

use bitsmith_graph::{Grid, QParams};
pub(super) use bitsmith_kernels::integer::ByteGrid;

/// The grid of an activation site, if it is affine with one scale. Sites of other kinds are rounded in float.
pub(super) fn byte_grid(params: &QParams) -> Option<ByteGrid> {
    let (Grid::Affine { .. }, [scale]) = (params.spec.grid, params.scale.as_slice()) else { return None };
    let (low, high) = params.code_range();
    let shift = (-low).max(0);
    let grid =
        ByteGrid { scale: *scale, zero_point: params.zero_point(0) + shift, low: low + shift, high: high + shift };
    (0 <= grid.low && grid.high <= 255).then_some(grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_for_the_numbers_of_the_grid() {
        for params in [
            QParams::per_tensor(8, false, 0.1, 200),
            QParams::per_tensor(8, true, 0.3, -5),
            QParams::per_tensor(4, false, 0.5, 3),
            QParams::per_tensor(1, true, 0.5, 0),
        ] {
            let grid = byte_grid(&params).unwrap();
            let (low, high) = params.code_range();
            let mut last = None;
            for code in low..=high {
                let (mut byte, mut decoded) = ([0], [0.0]);
                grid.encode(&[params.decode(code, 0)], &mut byte);
                grid.decode(&byte, &mut decoded);
                assert_eq!(decoded[0], params.decode(code, 0));
                assert!(last < Some(byte), "order of {code}");
                last = Some(byte);
                // Values between codes round as the grid itself does.
                let between = params.decode(code, 0) + 0.5 * params.scale[0];
                grid.encode(&[between], &mut byte);
                grid.decode(&byte, &mut decoded);
                assert_eq!(decoded[0], params.decode(params.encode(between, 0), 0));
            }
            let mut decoded = [1.0];
            grid.decode(&[grid.zero_byte()], &mut decoded);
            assert_eq!(decoded[0], 0.0);
        }
    }
}
