//! Dense f32 matrix products, for linear layers.

use std::ops::Range;

use crate::threads;

/// How a matrix lies in its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Row-major, as the product reads it.
    Plain,
    /// The slice holds the transpose, row-major.
    Transposed,
}

/// The library sums products of up to so many elements, and of up to so many rows and columns, in orders of their own. A part of a
/// larger product must not be one of them: the number of threads would show.
const SMALL_ELEMENTS: usize = 256;
const SMALL_SIDE: usize = 64;

/// Rows of a piece for whose sake the other operand may be packed once more: with a few pieces per thread, one that lost half its core to
/// somebody else holds up nobody.
const PIECE: usize = 512;
const PIECES_PER_THREAD: usize = 4;

/// `c[m, n] = a[m, k] · b[k, n]`, row-major; writes all of `c`. `Order::Transposed` says that the slice holds `[k, m]`
/// (or `[n, k]`) instead. An empty `k` gives zeros.
///
/// # Panics
/// If a slice has another length than `[m, k, n]` says.
pub fn matmul(size: [usize; 3], a: &[f32], a_order: Order, b: &[f32], b_order: Order, c: &mut [f32]) {
    batched(1, size, a, a_order, b, b_order, c);
}

/// `batch` products of [`matmul`], one after the other in each slice.
///
/// # Panics
/// As [`matmul`].
pub fn batched(
    batch: usize,
    [m, k, n]: [usize; 3],
    a: &[f32],
    a_order: Order,
    b: &[f32],
    b_order: Order,
    c: &mut [f32],
) {
    assert_eq!(a.len(), batch * m * k, "length of a");
    assert_eq!(b.len(), batch * k * n, "length of b");
    assert_eq!(c.len(), batch * m * n, "length of c");
    if c.is_empty() {
        return;
    }
    if k == 0 {
        c.fill(0.0);
        return;
    }
    // Strides (column, row) of a matrix of `rows` x `columns`.
    let strides = |order, rows: usize, columns: usize| match order {
        Order::Plain => (1, columns as isize),
        Order::Transposed => (rows as isize, 1),
    };
    let size = Product { size: [m, k, n], a: strides(a_order, m, k), b: strides(b_order, k, n) };
    // A multiply-accumulate takes a sixteenth of the time that passing over an element does.
    let parts = threads::parts_for(batch.saturating_mul(m * k * n) / 16);
    let pointers = Pointers { a: a.as_ptr(), b: b.as_ptr(), c: c.as_mut_ptr() };
    // Whole products where there are enough for everybody; else each is cut along its longer side.
    let (side, other) = (m.max(n), m.min(n));
    let shortest = (SMALL_SIDE + 1).max(SMALL_ELEMENTS / other + 1);
    let wanted = match parts {
        1 => 1,
        _ => parts.div_ceil(batch).max((side / PIECE).min((PIECES_PER_THREAD * parts).div_ceil(batch))),
    };
    let cuts = wanted.min(side / shortest).max(1);
    let jobs = (0..batch).flat_map(|i| threads::ranges(side, cuts).map(move |range| (i, range))).collect();
    threads::for_each_job(jobs, |(i, range): (usize, Range<usize>)| {
        let (rows, columns) = if m >= n { (range, 0..n) } else { (0..m, range) };
        // SAFETY: rows and columns of product `i`, which lies within the slices, whose lengths were checked; the ranges are disjoint.
        unsafe { size.run(pointers.product(i, [m * k, k * n, m * n]), rows, columns) };
    });
}

/// Sizes and strides (column, row) of a product.
#[derive(Clone, Copy)]
struct Product {
    size: [usize; 3],
    a: (isize, isize),
    b: (isize, isize),
}

/// Where the matrices of a product begin.
#[derive(Clone, Copy)]
struct Pointers {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
}

// SAFETY: whoever uses the pointers keeps to a part of `c` of its own; `a` and `b` are only read.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

impl Pointers {
    /// The matrices of product `i`, which have so many elements each.
    ///
    /// # Safety
    /// All of them lie within the slices.
    unsafe fn product(self, i: usize, [a, b, c]: [usize; 3]) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { a: self.a.add(i * a), b: self.b.add(i * b), c: self.c.add(i * c) } }
    }
}

impl Product {
    /// Computes some rows and columns of `c`.
    ///
    /// # Safety
    /// The pointers are those of whole matrices of this size, and nobody else uses these elements of `c`.
    unsafe fn run(&self, at: Pointers, rows: Range<usize>, columns: Range<usize>) {
        let [_, k, n] = self.size;
        let offset = |column: isize, row: isize, (c, r): (isize, isize)| column * c + row * r;
        // SAFETY: first element of the range within each matrix; `gemm` reads rows x k and k x columns from there and writes
        // rows x columns, all within the matrices.
        unsafe {
            gemm::gemm(
                rows.len(),
                columns.len(),
                k,
                at.c.add(rows.start * n + columns.start),
                1,
                n as isize,
                false,
                at.a.offset(offset(0, rows.start as isize, self.a)),
                self.a.0,
                self.a.1,
                at.b.offset(offset(columns.start as isize, 0, self.b)),
                self.b.0,
                self.b.1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Order, batched, matmul};
    use crate::reference::gemm as naive;
    use crate::testing::{UNIT, assert_within, values};
    use proptest::prelude::*;

    /// A sum of k products is off by at most k u Σ|a||b|, in whatever order and with whatever instructions: the crate beneath
    /// chooses its own and does not ask for the level in use.
    fn check([m, k, n]: [usize; 3]) {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let magnitudes = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x.abs()).collect() };
        for a_order in [Order::Plain, Order::Transposed] {
            for b_order in [Order::Plain, Order::Transposed] {
                let (mut fast, mut slow, mut bound) = (vec![f32::NAN; m * n], vec![0.0; m * n], vec![0.0; m * n]);
                matmul([m, k, n], &a, a_order, &b, b_order, &mut fast);
                naive::matmul([m, k, n], &a, a_order, &b, b_order, &mut slow);
                naive::matmul([m, k, n], &magnitudes(&a), a_order, &magnitudes(&b), b_order, &mut bound);
                let limit = |i: usize| (k + 2) as f64 * UNIT * f64::from(bound[i]);
                assert_within(format_args!("{m}x{k}x{n} {a_order:?} {b_order:?}"), &fast, &slow, limit);
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let pools = [1, 2, 3, 7, 16].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        // The first ones would fall into single rows or columns.
        for (batch, [m, k, n]) in [
            (1, [20, 400, 20]),
            (1, [3, 3000, 18]),
            (1, [200, 64, 50]),
            (1, [2100, 70, 66]),
            (3, [65, 70, 65]),
            (20, [9, 99, 9]),
        ] {
            let (a, b) = (values(batch * m * k, 1), values(batch * k * n, 2));
            for (a_order, b_order) in
                [(Order::Plain, Order::Plain), (Order::Plain, Order::Transposed), (Order::Transposed, Order::Plain)]
            {
                let [first, others @ ..] = pools.each_ref().map(|pool| {
                    let mut c = vec![f32::NAN; batch * m * n];
                    pool.install(|| batched(batch, [m, k, n], &a, a_order, &b, b_order, &mut c));
                    c
                });
                let same = others.iter().all(|other| *other == first);
                assert!(same, "{batch} of {m}x{k}x{n}, {a_order:?} {b_order:?}");
            }
        }
    }

    #[test]
    fn a_batch_is_its_products() {
        for (batch, [m, k, n]) in [(3, [5, 4, 7]), (2, [130, 33, 40]), (5, [64, 30, 65])] {
            let a: Vec<f32> = (0..batch * m * k).map(|i| (i * 37 % 19) as f32 - 9.0).collect();
            let b: Vec<f32> = (0..batch * k * n).map(|i| (i * 53 % 23) as f32 - 11.0).collect();
            let mut all = vec![f32::NAN; batch * m * n];
            batched(batch, [m, k, n], &a, Order::Transposed, &b, Order::Plain, &mut all);
            for i in 0..batch {
                let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
                let mut one = vec![0.0; m * n];
                naive::matmul([m, k, n], a, Order::Transposed, b, Order::Plain, &mut one);
                // Whole numbers: sums are exact.
                assert_eq!(all[i * m * n..][..m * n], one, "{batch} of {m}x{k}x{n}, {i}");
            }
        }
    }

    #[test]
    fn equals_reference() {
        for m in [1, 3, 15, 17] {
            for k in [0, 1, 3, 15, 17] {
                for n in [1, 3, 15, 17] {
                    check([m, k, n]);
                }
            }
        }
        for dims in [[16, 17, 33], [128, 64, 10], [65, 1, 100], [7, 1031, 5], [0, 3, 2], [2, 3, 0]] {
            check(dims);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn any_shape(m in 1..70_usize, k in 1..150_usize, n in 1..70_usize) {
            check([m, k, n]);
        }
    }
}
