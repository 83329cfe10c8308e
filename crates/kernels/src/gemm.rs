//! Dense f32 matrix products, for linear layers.

/// How a matrix lies in its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Row-major, as the product reads it.
    Plain,
    /// The slice holds the transpose, row-major.
    Transposed,
}

/// Below this many multiply-accumulates one thread is faster than waking the others.
const PARALLEL_FROM: usize = 1 << 17;

/// `c[m, n] = a[m, k] · b[k, n]`, row-major; writes all of `c`. `Order::Transposed` says that the slice holds `[k, m]`
/// (or `[n, k]`) instead. An empty `k` gives zeros.
///
/// # Panics
/// If a slice has another length than `[m, k, n]` says.
pub fn matmul([m, k, n]: [usize; 3], a: &[f32], a_order: Order, b: &[f32], b_order: Order, c: &mut [f32]) {
    assert_eq!(a.len(), m * k, "length of a");
    assert_eq!(b.len(), k * n, "length of b");
    assert_eq!(c.len(), m * n, "length of c");
    if m == 0 || n == 0 {
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
    let (a_column, a_row) = strides(a_order, m, k);
    let (b_column, b_row) = strides(b_order, k, n);
    let parallelism = if m * n * k >= PARALLEL_FROM { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the assertions above make every element that `gemm` addresses through these strides lie inside its slice, and
    // `c` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Order, matmul};
    use crate::reference;

    #[test]
    fn equals_reference() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (16, 17, 33), (128, 64, 10), (65, 1, 100), (2, 0, 3)] {
            for a_order in [Order::Plain, Order::Transposed] {
                for b_order in [Order::Plain, Order::Transposed] {
                    let a: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 19) as f32 - 9.0) / 7.0).collect();
                    let b: Vec<f32> = (0..k * n).map(|i| ((i * 53 % 23) as f32 - 11.0) / 5.0).collect();
                    let (mut fast, mut slow) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
                    matmul([m, k, n], &a, a_order, &b, b_order, &mut fast);
                    reference::gemm::matmul([m, k, n], &a, a_order, &b, b_order, &mut slow);
                    for (f, s) in fast.iter().zip(&slow) {
                        // k sums of products of at most 3 in f32: an error of k² ulps at worst.
                        assert!((f - s).abs() <= 3e-5 * k as f32, "{m}x{k}x{n} {a_order:?} {b_order:?}: {f} {s}");
                    }
                }
            }
        }
    }
}
