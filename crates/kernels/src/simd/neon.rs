//! NEON, which every 64-bit ARM has. The intrinsics do exactly what the trait's functions say.

// Where the target is known to have NEON, most of them are safe to call.
#![allow(unused_unsafe)]

use super::{Kernel, Vector};
use crate::arm::*;

/// # Safety
/// The CPU has NEON.
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon"))]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<float32x4_t>() }
}

// SAFETY (all blocks below): the caller of a `Vector` function promises the instruction set and the pointers.

impl Vector for float32x4_t {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: the caller promises n elements.
            *lane = unsafe { *p.add(i) };
        }
        // SAFETY: an array of four.
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see above.
        unsafe { vst1q_f32(p, self) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        let mut lanes = [0.0; 4];
        // SAFETY: an array of four, and the caller's promise of n elements.
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), self);
            for (i, &lane) in lanes.iter().enumerate().take(n) {
                *p.add(i) = lane;
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { vaddq_f32(self, b) }
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { vsubq_f32(self, b) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { vmulq_f32(self, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see above.
        unsafe { vfmaq_f32(c, self, b) }
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { vdivq_f32(self, b) }
    }

    #[inline(always)]
    unsafe fn copy_sign(self, sign: Self) -> Self {
        // SAFETY: see above.
        unsafe { vbslq_f32(vdupq_n_u32(1 << 31), sign, self) }
    }

    #[inline(always)]
    unsafe fn power_of_two(self, magic: f32) -> Self {
        // SAFETY: see above.
        unsafe {
            let bias = vdupq_n_u32(127_u32.wrapping_sub(magic.to_bits()));
            vreinterpretq_f32_u32(vshlq_n_u32::<23>(vaddq_u32(vreinterpretq_u32_f32(self), bias)))
        }
    }

    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        unsafe { vbslq_f32(vcltq_f32(self, bound), yes, no) }
    }
}
