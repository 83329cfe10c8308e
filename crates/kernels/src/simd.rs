//! One vector of f32 lanes, for loops written once and compiled per instruction set.
//!
//! A kernel is a value that implements [`Kernel`]; [`dispatch`] runs it with the vector of the given [`Isa`], inside a
//! function compiled for that instruction set. Everything that a kernel calls with a vector must be `#[inline(always)]`
//! and free of closures that may stay out of line: only then is it compiled with the instructions of its caller.

#[cfg(any(target_arch = "aarch64", test))]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::isa::{Isa, Level};
pub(crate) use portable::Portable;

/// A register of f32 lanes.
///
/// # Safety
/// All functions require that the CPU has the instruction set of the implementing type; pointers must be valid for
/// the stated number of elements. No alignment is required.
pub(crate) trait Vector: Copy {
    /// Lanes of one register.
    const LANES: usize;
    /// Registers of the architecture.
    const REGISTERS: usize;
    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// `LANES` elements from `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// `n <= LANES` elements from `p`, the rest zero; touches no others.
    unsafe fn load_partial(p: *const f32, n: usize) -> Self;
    /// Writes `LANES` elements to `p`.
    unsafe fn store(self, p: *mut f32);
    /// [`Vector::store`] past the caches, to a `p` aligned to the vector's size; other threads see it after [`Vector::fence`].
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32) {
        // SAFETY: the caller promises as much and more.
        unsafe { self.store(p) }
    }
    /// Says that what is at `p`, readable or not, will soon be read.
    #[inline(always)]
    unsafe fn prefetch(_p: *const f32) {}
    /// Comes after the last [`Vector::stream`] of a loop.
    #[inline(always)]
    unsafe fn fence() {}
    /// Writes the first `n <= LANES` lanes to `p`; touches no others.
    unsafe fn store_partial(self, p: *mut f32, n: usize);
    /// `n <= LANES` elements from `p`, expecting that all are there.
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller promises n elements.
        unsafe { if n == Self::LANES { Self::load(p) } else { Self::load_partial(p, n) } }
    }
    /// Writes the first `n <= LANES` lanes to `p`, expecting that all are wanted.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, n: usize) {
        // SAFETY: the caller promises n elements.
        unsafe { if n == Self::LANES { self.store(p) } else { self.store_partial(p, n) } }
    }
    /// `self + b`
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, fused where the hardware can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self * b + c` with one rounding, whatever the hardware can.
    #[inline(always)]
    unsafe fn fused(self, b: Self, c: Self) -> Self {
        // SAFETY: as the caller promises; all but portable code fuse.
        unsafe { self.mul_add(b, c) }
    }
    /// `self / b`
    unsafe fn div(self, b: Self) -> Self;
    /// The magnitudes of `self` with the signs of `sign`.
    unsafe fn copy_sign(self, sign: Self) -> Self;
    /// Two to the power of `n`, an integer of -126 to 127, where `self` is `magic + n` and `magic` so large that its last bit is 1.
    unsafe fn power_of_two(self, magic: f32) -> Self;
    /// Lane by lane `yes` where `self < bound`, else `no`; NaN gives `no`.
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// `c` plus the products of both bf16 numbers of each lane. With AVX-512 this, and the next two, want [`Isa::has_bf16`].
    #[inline(always)]
    unsafe fn dot_pairs(self, b: Self, c: Self) -> Self {
        // SAFETY: arrays that hold any vector; the caller's promise.
        unsafe {
            let (x, y, mut sums) = (lanes_of(self), lanes_of(b), lanes_of(c));
            for ((x, y), sum) in x.iter().zip(&y).zip(&mut sums) {
                let low = |number: &f32| f32::from_bits(number.to_bits() << 16);
                let high = |number: &f32| f32::from_bits(number.to_bits() & 0xffff_0000);
                *sum += low(x) * low(y) + high(x) * high(y);
            }
            Self::load(sums.as_ptr())
        }
    }
    /// All lanes the pair at `p`. As integers, and first in [`Vector::dot_pairs`]: compilers then read it in the instruction that
    /// multiplies, without a register for it.
    #[inline(always)]
    unsafe fn splat_pair(p: *const f32) -> Self {
        // SAFETY: the caller promises an element.
        unsafe { Self::splat(*p) }
    }
    /// Lanes of two bf16 numbers each: `low` and `high`, rounded.
    #[inline(always)]
    unsafe fn pairs(low: Self, high: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let (mut lanes, high) = (lanes_of(low), lanes_of(high));
            for (lane, high) in lanes.iter_mut().zip(high) {
                *lane = f32::from_bits(to_bf16(*lane) | to_bf16(high) << 16);
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// Writes `LANES` bf16 numbers to `p`, half as many elements.
    #[inline(always)]
    unsafe fn store_halves(self, p: *mut f32) {
        // SAFETY: as above; the caller promises half a vector at `p`.
        unsafe {
            let lanes = lanes_of(self);
            for (i, pair) in lanes[..Self::LANES].chunks_exact(2).enumerate() {
                *p.add(i) = f32::from_bits(to_bf16(pair[0]) | to_bf16(pair[1]) << 16);
            }
        }
    }
}

/// # Safety
/// As every function of a vector.
#[inline(always)]
unsafe fn lanes_of<V: Vector>(vector: V) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: no vector has more lanes; the function's contract.
    unsafe { vector.store(lanes.as_mut_ptr()) };
    lanes
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN.
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { bits >> 16 | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// A loop that is generic over the vector.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The loop; implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs `kernel` with the vectors that `isa` proves to exist.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.level() {
        // SAFETY: the token proves that the CPU has these instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::run_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(any(target_arch = "aarch64", test))]
        Level::Neon => unsafe { neon::run(kernel) },
        // SAFETY: plain arrays need no instruction set.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

/// Whether a loop had better [stream](Vector::stream) what it writes: so much that the next reader would not find it in a cache, to which
/// an ordinary store reads each line first. All elements must be written, from the beginning of a line of the cache on. Measured on Zen 4: with
/// 26 MB and more a pass that reads and writes takes 25 to 30 % less, and the next reader as long as before.
pub(crate) fn streams(out: &[f32]) -> bool {
    const LARGE: usize = 24 << 20;
    size_of_val(out) >= LARGE && out.as_ptr().addr().is_multiple_of(64)
}

/// [`dispatch`] for a kernel that uses pairs of bf16.
///
/// # Panics
/// If the vectors are those of AVX-512 without bf16.
pub(crate) fn dispatch_bf16<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if isa.level() == Level::Avx512 {
        assert!(isa.has_bf16(), "a kernel of another processor");
        // SAFETY: the token proves that the CPU has AVX-512, and it was asked for bf16.
        return unsafe { x86::run_avx512_bf16(kernel) };
    }
    dispatch(isa, kernel)
}

#[cfg(test)]
mod tests {
    use super::{Kernel, Vector, dispatch};
    use crate::isa::Isa;

    struct Lanes;

    impl Kernel for Lanes {
        type Output = usize;
        unsafe fn run<V: Vector>(self) -> usize {
            V::LANES
        }
    }

    /// Numbers of all kinds and their products as bf16, joined and stored in both ways.
    struct Bf16;

    impl Kernel for Bf16 {
        type Output = Vec<f32>;
        unsafe fn run<V: Vector>(self) -> Vec<f32> {
            let x =
                [1.0, -2.5, 1.003_906_2, 1.011_718_8, 1e38, 1e-20, 0.1, -0.3, 7.0, 1e9, 0.0, -0.0, 5.5, 2.0, 0.7, 0.9];
            let mut out = Vec::new();
            for at in (0..16).step_by(V::LANES) {
                let mut lanes = [0.0; 40];
                // SAFETY: the test asks for levels of this machine only; all arrays hold a vector.
                unsafe {
                    let (low, high) = (V::load(x[at..].as_ptr()), V::load(x[at..].as_ptr()).mul(V::splat(0.3)));
                    let pairs = V::pairs(low, high);
                    pairs.store(lanes.as_mut_ptr());
                    pairs
                        .dot_pairs(V::pairs(V::splat(1.25), V::splat(-2.0)), low)
                        .store(lanes[V::LANES..].as_mut_ptr());
                    low.store_halves(lanes[2 * V::LANES..].as_mut_ptr());
                }
                out.push(lanes[..2 * V::LANES + V::LANES / 2].to_vec());
            }
            // Per kind of result, so that the number of lanes does not show.
            let lanes = V::LANES;
            let part = |from: usize, len: usize| out.iter().flat_map(move |o: &Vec<f32>| o[from..from + len].to_vec());
            part(0, lanes).chain(part(lanes, lanes)).chain(part(2 * lanes, lanes / 2)).collect()
        }
    }

    #[test]
    fn pairs_of_bf16_are_the_same_everywhere() {
        // SAFETY: plain arrays need no instruction set.
        let slow = unsafe { Bf16.run::<super::Portable>() };
        for isa in Isa::available().filter(|isa| isa.lanes() < 16 || isa.has_bf16()) {
            let fast = super::dispatch_bf16(isa, Bf16);
            assert_eq!(fast.len(), 40);
            // Elements are bits; sums may be rounded in another order.
            let same = |i: usize| fast[i].to_bits() == slow[i].to_bits();
            assert!((0..16).chain(32..40).all(same), "{isa:?} {fast:?} {slow:?}");
            let near = |i: usize| (fast[i] - slow[i]).abs() <= 1e-6 * slow[i].abs();
            assert!((16..32).all(near), "{isa:?} {fast:?} {slow:?}");
        }
        assert_eq!(super::to_bf16(1.0 + 1.0 / 256.0), 0x3f80, "ties go to even");
        assert_eq!(super::to_bf16(1.0 + 3.0 / 256.0), 0x3f82);
        assert!(f32::from_bits(super::to_bf16(f32::NAN) << 16).is_nan());
    }

    #[test]
    fn tokens_know_their_vectors() {
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Lanes), isa.lanes());
        }
    }
}
