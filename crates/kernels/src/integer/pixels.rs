//! Where windows begin in the input.

/// Offsets of the windows of some rows of pixels, in order. Columns, and rows, are equally far apart.
#[derive(Debug, Default)]
pub(super) struct Pixels {
    at: Vec<usize>,
    columns: usize,
    step: usize,
    last: usize,
}

impl Pixels {
    /// Makes it that of `rows` rows, `row_step` apart, of `columns` columns, `step` apart.
    pub fn fill(&mut self, [rows, row_step]: [usize; 2], [columns, step]: [usize; 2]) {
        self.at.clear();
        if columns == 1 {
            self.at.extend((0..rows).map(|row| row * row_step));
        } else {
            for row in 0..rows {
                self.at.extend((0..columns).map(|column| row * row_step + column * step));
            }
        }
        let last = |count: usize, step: usize| count.saturating_sub(1) * step;
        (self.columns, self.step, self.last) = (columns, step, last(rows, row_step) + last(columns, step));
    }

    /// All offsets.
    pub fn offsets(&self) -> &[usize] {
        &self.at
    }

    /// The largest offset; 0 if there is none.
    pub fn last(&self) -> usize {
        self.last
    }

    /// Pixels of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// From column to column.
    pub fn step(&self) -> usize {
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::Pixels;

    #[test]
    fn rows_and_columns_are_equally_far_apart() {
        let mut pixels = Pixels::default();
        pixels.fill([2, 100], [3, 7]);
        assert_eq!(pixels.offsets(), [0, 7, 14, 100, 107, 114]);
        assert_eq!((pixels.last(), pixels.columns(), pixels.step()), (114, 3, 7));
        pixels.fill([3, 5], [1, 9]);
        assert_eq!((pixels.offsets(), pixels.last()), (&[0, 5, 10][..], 10));
        pixels.fill([0, 5], [4, 9]);
        assert!(pixels.offsets().is_empty());
    }
}
