//! The transforms of Winograd's convolutions along one axis, for two sizes of tiles.
//!
//! With points p and M(x) = Π (x − p), N_p = M / (x − p), f_p = N_p(p), and a last point at infinity (Toom and Cook):
//! row p of Bᵀ holds the coefficients of N_p (of M for infinity), row p of G holds p^k / f_p, column p of Aᵀ holds p^j.

use crate::simd::Vector;

/// A line of a tile; a scheme uses the first few.
pub(super) type Line<T> = [T; 6];

/// The transforms along one axis.
///
/// # Safety
/// Every function wants the instruction set of `V`; they are arithmetic on registers otherwise.
pub(super) trait Scheme: Sync {
    /// Outputs of a tile.
    const OUT: usize;
    /// Inputs under it, which is also the number of positions.
    const IN: usize = Self::OUT + 2;
    /// Positions of a square tile.
    const POSITIONS: usize = Self::IN * Self::IN;

    /// `Bᵀ d`: `IN` from `IN`.
    unsafe fn source<V: Vector>(d: Line<V>) -> Line<V>;
    /// `G g`: `IN` from 3.
    unsafe fn weight<V: Vector>(g: [V; 3]) -> Line<V>;
    /// `Aᵀ m`: `OUT` from `IN`.
    unsafe fn out<V: Vector>(m: Line<V>) -> Line<V>;
    /// `A y`: `IN` from `OUT`.
    unsafe fn spread<V: Vector>(y: Line<V>) -> Line<V>;
    /// `Gᵀ u`: 3 from `IN`.
    unsafe fn gradient<V: Vector>(u: Line<V>) -> [V; 3];
}

/// F(2, 3): points 0, 1, −1 and infinity. Every factor is a power of two.
///
/// ```text
///        | 1  0 -1  0 |        | 1    0    0  |
///   Bᵀ = | 0  1  1  0 |    G = | 1/2  1/2 1/2 |    Aᵀ = | 1  1  1  0 |
///        | 0 -1  1  0 |        | 1/2 -1/2 1/2 |         | 0  1 -1 -1 |
///        | 0  1  0 -1 |        | 0    0    1  |
/// ```
pub(super) struct F2;

impl Scheme for F2 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn source<V: Vector>([a, b, c, d, ..]: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe { line4(a.sub(c), b.add(c), c.sub(b), b.sub(d)) }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>([a, b, c]: [V; 3]) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe {
            let half = V::splat(0.5);
            let outer = a.add(c);
            line4(a, outer.add(b).mul(half), outer.sub(b).mul(half), c)
        }
    }

    #[inline(always)]
    unsafe fn out<V: Vector>([a, b, c, d, ..]: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe { line4(a.add(b).add(c), b.sub(c).sub(d), V::zero(), V::zero()) }
    }

    #[inline(always)]
    unsafe fn spread<V: Vector>([a, b, ..]: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe { line4(a, a.add(b), a.sub(b), V::zero().sub(b)) }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>([a, b, c, d, ..]: Line<V>) -> [V; 3] {
        // SAFETY: the trait's contract.
        unsafe {
            let half = V::splat(0.5);
            let (sum, difference) = (b.add(c).mul(half), b.sub(c).mul(half));
            [a.add(sum), difference, sum.add(d)]
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn line4<V: Vector>(a: V, b: V, c: V, d: V) -> Line<V> {
    // SAFETY: the function's contract.
    unsafe { [a, b, c, d, V::zero(), V::zero()] }
}

/// F(4, 3): points 0, ±a, ±b and infinity, with a = 1/√2 and b = √2, which keep the factors closer together than the
/// usual 1 and 2.
///
/// ```text
///        | 1   0   -5/2  0    1  0 |         |  1    0     0   |
///        | 0  -2a  -2    a    1  0 |         | -2/3 -2a/3 -1/3 |         | 1  1    1    1   1   0 |
///   Bᵀ = | 0   2a  -2   -a    1  0 |     G = | -2/3  2a/3 -1/3 |    Aᵀ = | 0  a   -a    b  -b   0 |
///        | 0  -b/2 -1/2  b    1  0 |         |  1/6  b/6   1/3 |         | 0  1/2  1/2  2   2   0 |
///        | 0   b/2 -1/2 -b    1  0 |         |  1/6 -b/6   1/3 |         | 0  a/2 -a/2  2b -2b  1 |
///        | 0   1    0   -5/2  0  1 |         |  0    0     1   |
/// ```
pub(super) struct F4;

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

impl Scheme for F4 {
    const OUT: usize = 4;

    #[inline(always)]
    unsafe fn source<V: Vector>(d: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe {
            let k = |x: f32| V::splat(x);
            let first = d[2].mul_add(k(-2.5), d[0].add(d[4]));
            let (even_a, odd_a) = (d[2].mul_add(k(-2.0), d[4]), d[1].mul_add(k(-2.0), d[3]).mul(k(A)));
            let (even_b, odd_b) = (d[2].mul_add(k(-0.5), d[4]), d[1].mul_add(k(-0.5), d[3]).mul(k(B)));
            let last = d[3].mul_add(k(-2.5), d[1].add(d[5]));
            [first, even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), last]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(g: [V; 3]) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe {
            let k = |x: f32| V::splat(x);
            let even_a = g[2].mul_add(k(0.5), g[0]).mul(k(-2.0 / 3.0));
            let odd_a = g[1].mul(k(-2.0 * A / 3.0));
            let even_b = g[2].mul_add(k(2.0), g[0]).mul(k(1.0 / 6.0));
            let odd_b = g[1].mul(k(B / 6.0));
            [g[0], even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g[2]]
        }
    }

    #[inline(always)]
    unsafe fn out<V: Vector>(m: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe {
            let k = |x: f32| V::splat(x);
            let (sum_a, difference_a) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (sum_b, difference_b) = (m[3].add(m[4]), m[3].sub(m[4]));
            [
                m[0].add(sum_a).add(sum_b),
                difference_b.mul_add(k(B), difference_a.mul(k(A))),
                sum_b.mul_add(k(2.0), sum_a.mul(k(0.5))),
                difference_b.mul_add(k(2.0 * B), difference_a.mul_add(k(0.5 * A), m[5])),
                V::zero(),
                V::zero(),
            ]
        }
    }

    #[inline(always)]
    unsafe fn spread<V: Vector>(y: Line<V>) -> Line<V> {
        // SAFETY: the trait's contract.
        unsafe {
            let k = |x: f32| V::splat(x);
            let (even_a, odd_a) = (y[2].mul_add(k(0.5), y[0]), y[3].mul_add(k(0.5), y[1]).mul(k(A)));
            let (even_b, odd_b) = (y[2].mul_add(k(2.0), y[0]), y[3].mul_add(k(2.0), y[1]).mul(k(B)));
            [y[0], even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), y[3]]
        }
    }

    #[inline(always)]
    unsafe fn gradient<V: Vector>(u: Line<V>) -> [V; 3] {
        // SAFETY: the trait's contract.
        unsafe {
            let k = |x: f32| V::splat(x);
            let (sum_a, difference_a) = (u[1].add(u[2]), u[1].sub(u[2]));
            let (sum_b, difference_b) = (u[3].add(u[4]), u[3].sub(u[4]));
            [
                sum_b.mul_add(k(1.0 / 6.0), sum_a.mul_add(k(-2.0 / 3.0), u[0])),
                difference_b.mul_add(k(B / 6.0), difference_a.mul(k(-2.0 * A / 3.0))),
                sum_b.sub(sum_a).mul_add(k(1.0 / 3.0), u[5]),
            ]
        }
    }
}
