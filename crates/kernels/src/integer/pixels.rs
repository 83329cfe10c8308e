//! Where windows begin in the input.

/// Offsets of the windows of some rows of pixels, in order. Columns, and rows, are equally far apart.
#[derive(Debug, Default)]
pub(super) struct Pixels {
    at: Vec<usize>,
    /// What they are of, as [`Pixels::fill`] takes it.
    rows: [usize; 2],
    columns: [usize; 2],
}

impl Pixels {
    /// Makes it that of some rows and columns: how many, and how far apart. Bands of a layer have the same, but for the last.
    pub fn fill(&mut self, rows: [usize; 2], columns: [usize; 2]) {
        if (rows, columns) == (self.rows, self.columns) {
            return;
        }
        (self.rows, self.columns) = (rows, columns);
        let ([rows, row_step], [columns, step]) = (rows, columns);
        self.at.clear();
        if columns == 1 {
            self.at.extend((0..rows).map(|row| row * row_step));
        } else {
            for row in 0..rows {
                self.at.extend((0..columns).map(|column| row * row_step + column * step));
            }
        }
    }

    /// All offsets.
    pub fn offsets(&self) -> &[usize] {
        &self.at
    }

    /// The largest offset; 0 if there is none.
    pub fn last(&self) -> usize {
        let last = |[count, step]: [usize; 2]| count.saturating_sub(1) * step;
        last(self.rows) + last(self.columns)
    }

    /// Pixels of a row.
    pub fn columns(&self) -> usize {
        self.columns[0]
    }

    /// From column to column.
    pub fn step(&self) -> usize {
        self.columns[1]
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
        for _ in 0..2 {
            pixels.fill([2, 5], [2, 1]);
            assert_eq!(pixels.offsets(), [0, 1, 5, 6]);
        }
    }
}
