//! Matrix product by its definition.

use crate::gemm::Order;

/// See [`crate::gemm::matmul`].
pub fn matmul([m, k, n]: [usize; 3], a: &[f32], a_order: Order, b: &[f32], b_order: Order, c: &mut [f32]) {
    for i in 0..m {
        for j in 0..n {
            let at = |l: usize| match a_order {
                Order::Plain => a[i * k + l],
                Order::Transposed => a[l * m + i],
            };
            let bt = |l: usize| match b_order {
                Order::Plain => b[l * n + j],
                Order::Transposed => b[j * k + l],
            };
            c[i * n + j] = (0..k).map(|l| f64::from(at(l)) * f64::from(bt(l))).sum::<f64>() as f32;
        }
    }
}
