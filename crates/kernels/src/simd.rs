//! One vector of f32 lanes, for loops written once and compiled per instruction set.
//!
//! A kernel is a value that implements [`Kernel`]; [`dispatch`] runs it with the vector of the given [`Isa`], inside a
//! function compiled for that instruction set. Everything that a kernel calls with a vector must be `#[inline(always)]`
//! and free of closures that may stay out of line: only then is it compiled with the instructions of its caller.

use crate::isa::{Isa, Level};

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

/// Four lanes as an array: one SSE2 or NEON register, in practice.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 4]);

impl Vector for Portable {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; 4])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises four elements; an array of f32 may be read unaligned.
        Portable(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: the caller promises n elements.
            *lane = unsafe { *p.add(i) };
        }
        Portable(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises four elements.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        for (i, &lane) in self.0.iter().enumerate().take(n) {
            // SAFETY: the caller promises n elements.
            unsafe { *p.add(i) = lane };
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] + b.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] - b.0[i]))
    }

    #[inline(always)]
    unsafe fn fused(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] / b.0[i]))
    }

    #[inline(always)]
    unsafe fn copy_sign(self, sign: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].copysign(sign.0[i])))
    }

    #[inline(always)]
    unsafe fn power_of_two(self, magic: f32) -> Self {
        let exponent = |x: f32| x.to_bits().wrapping_sub(magic.to_bits()).wrapping_add(127) << 23;
        Portable(std::array::from_fn(|i| f32::from_bits(exponent(self.0[i]))))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Portable(std::array::from_fn(|i| if self.0[i] < bound.0[i] { yes.0[i] } else { no.0[i] }))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX2 with FMA, and AVX-512. The intrinsics do exactly what the trait's functions say.

    use super::{Kernel, Vector};
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run::<__m256>() }
    }

    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, and AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run::<__m512>() }
    }

    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and BF16, and AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run::<__m512>() }
    }

    /// The mask register or vector that keeps the first `n` of eight lanes.
    #[inline(always)]
    unsafe fn first_of_8(n: usize) -> __m256i {
        // SAFETY: the caller runs on a CPU with AVX2.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }

    // SAFETY (all blocks below): the caller of a `Vector` function promises the instruction set and the pointers.

    impl Vector for __m256 {
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> Self {
            // SAFETY: see above; lanes whose mask is zero are not accessed.
            unsafe { _mm256_maskload_ps(p, first_of_8(n)) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn stream(self, p: *mut f32) {
            // SAFETY: see above; aligned, as the caller promises.
            unsafe { _mm256_stream_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            // SAFETY: see above; no address faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fence() {
            // SAFETY: see above.
            unsafe { _mm_sfence() }
        }

        #[inline(always)]
        unsafe fn store_partial(self, p: *mut f32, n: usize) {
            // SAFETY: see above; lanes whose mask is zero are not accessed.
            unsafe { _mm256_maskstore_ps(p, first_of_8(n), self) }
        }

        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_add_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_sub_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_mul_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_div_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn copy_sign(self, sign: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let bit = _mm256_set1_ps(-0.0);
                _mm256_or_ps(_mm256_andnot_ps(bit, self), _mm256_and_ps(bit, sign))
            }
        }

        #[inline(always)]
        unsafe fn power_of_two(self, magic: f32) -> Self {
            // SAFETY: see above.
            unsafe {
                let bias = _mm256_set1_epi32(127_i32.wrapping_sub(magic.to_bits() as i32));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(self), bias)))
            }
        }

        #[inline(always)]
        unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(self, bound)) }
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> Self {
            // SAFETY: see above; lanes whose mask is zero are not accessed.
            unsafe { _mm512_maskz_loadu_ps(((1_u32 << n) - 1) as u16, p) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn stream(self, p: *mut f32) {
            // SAFETY: see above; aligned, as the caller promises.
            unsafe { _mm512_stream_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            // SAFETY: see above; no address faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fence() {
            // SAFETY: see above.
            unsafe { _mm_sfence() }
        }

        #[inline(always)]
        unsafe fn store_partial(self, p: *mut f32, n: usize) {
            // SAFETY: see above; lanes whose mask is zero are not accessed.
            unsafe { _mm512_mask_storeu_ps(p, ((1_u32 << n) - 1) as u16, self) }
        }

        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_add_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_sub_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_mul_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_div_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn copy_sign(self, sign: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let bit = _mm512_set1_ps(-0.0);
                _mm512_or_ps(_mm512_andnot_ps(bit, self), _mm512_and_ps(bit, sign))
            }
        }

        #[inline(always)]
        unsafe fn power_of_two(self, magic: f32) -> Self {
            // SAFETY: see above.
            unsafe {
                let bias = _mm512_set1_epi32(127_i32.wrapping_sub(magic.to_bits() as i32));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_castps_si512(self), bias)))
            }
        }

        #[inline(always)]
        unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, bound), no, yes) }
        }

        #[inline(always)]
        unsafe fn dot_pairs(self, b: Self, c: Self) -> Self {
            // SAFETY: see above; registers of the same size, whose bits stay what they are. The last operand is the one that may come
            // from memory.
            unsafe { _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(b), transmute::<__m512, __m512bh>(self)) }
        }

        #[inline(always)]
        unsafe fn splat_pair(p: *const f32) -> Self {
            // SAFETY: see above; four bytes, wherever they lie.
            unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(p.cast::<i32>().read_unaligned())) }
        }

        #[inline(always)]
        unsafe fn pairs(low: Self, high: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                // Word 2i is number i of the lower half, word 2i + 1 that of the upper.
                let order = _mm512_add_epi32(
                    _mm512_set1_epi32(0x0010_0000),
                    _mm512_mullo_epi32(
                        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                        _mm512_set1_epi32(0x0001_0001),
                    ),
                );
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves))
            }
        }

        #[inline(always)]
        unsafe fn store_halves(self, p: *mut f32) {
            // SAFETY: as above; the caller promises half a vector at `p`.
            unsafe { _mm256_storeu_si256(p.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self))) }
        }
    }
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
