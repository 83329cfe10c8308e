//! Intrinsics of 64-bit ARM, by their names: the compiler's own, or, in tests on other machines, what ARM's reference says that each of
//! them does, lane by lane. So what is written for NEON is type-checked and held to the reference everywhere.

#[cfg(all(test, not(target_arch = "aarch64")))]
pub(crate) use emulated::*;
#[cfg(target_arch = "aarch64")]
pub(crate) use std::arch::aarch64::*;

/// Whether this processor multiplies and adds bytes by fours (FEAT_DotProd).
pub(crate) fn has_dotprod() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(target_arch = "aarch64"))]
    cfg!(test)
}

/// `sums` plus, in each lane, the products of four bytes of `w` with those of lane `LANE` of `x`: `vdotq_laneq_s32`, which the compiler
/// does not offer yet.
///
/// # Safety
/// FEAT_DotProd is available.
#[inline]
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn dot_lane<const LANE: i32>(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    const { assert!(LANE >= 0 && LANE < 4) };
    // SAFETY: the caller promises the instruction, which reads and writes nothing but its registers.
    unsafe {
        std::arch::asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

#[cfg(all(test, not(target_arch = "aarch64")))]
#[allow(non_camel_case_types)]
mod emulated {
    use std::array::from_fn;

    macro_rules! vectors {
        ($($name:ident [$of:ty; $lanes:literal]),*) => {
            $(#[derive(Debug, Clone, Copy)]
            pub(crate) struct $name([$of; $lanes]);)*
        };
    }

    vectors!(float32x4_t [f32; 4], uint32x4_t [u32; 4], int32x4_t [i32; 4], int8x16_t [i8; 16], uint8x16_t [u8; 16]);

    /// All lanes one after the other.
    macro_rules! lanes {
        ($(fn $name:ident($($x:ident: $of:ty),*) -> $to:ident $f:expr;)*) => {
            $(pub(crate) fn $name($($x: $of),*) -> $to {
                $to(from_fn(|i| $f($($x.0[i]),*)))
            })*
        };
    }

    lanes! {
        fn vaddq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t |a: f32, b: f32| a + b;
        fn vsubq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t |a: f32, b: f32| a - b;
        fn vmulq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t |a: f32, b: f32| a * b;
        fn vdivq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t |a: f32, b: f32| a / b;
        fn vfmaq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t |a: f32, b: f32, c| b.mul_add(c, a);
        fn vcltq_f32(a: float32x4_t, b: float32x4_t) -> uint32x4_t |a: f32, b: f32| if a < b { u32::MAX } else { 0 };
        fn vaddq_u32(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t |a: u32, b: u32| a.wrapping_add(b);
        fn vreinterpretq_u32_f32(a: float32x4_t) -> uint32x4_t |a: f32| a.to_bits();
        fn vreinterpretq_f32_u32(a: uint32x4_t) -> float32x4_t |a: u32| f32::from_bits(a);
        fn vbslq_f32(a: uint32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t
            |a: u32, b: f32, c: f32| f32::from_bits(a & b.to_bits() | !a & c.to_bits());
        fn veorq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t |a: u8, b: u8| a ^ b;
        fn vreinterpretq_s8_u8(a: uint8x16_t) -> int8x16_t |a: u8| a as i8;
    }

    pub(crate) fn vdupq_n_f32(value: f32) -> float32x4_t {
        float32x4_t([value; 4])
    }

    pub(crate) fn vdupq_n_u32(value: u32) -> uint32x4_t {
        uint32x4_t([value; 4])
    }

    pub(crate) fn vdupq_n_u8(value: u8) -> uint8x16_t {
        uint8x16_t([value; 16])
    }

    pub(crate) fn vreinterpretq_u8_u32(a: uint32x4_t) -> uint8x16_t {
        uint8x16_t(from_fn(|i| a.0[i / 4].to_le_bytes()[i % 4]))
    }

    pub(crate) fn vshlq_n_u32<const N: i32>(a: uint32x4_t) -> uint32x4_t {
        const { assert!(0 <= N && N < 32) };
        uint32x4_t(a.0.map(|a| a << N))
    }

    /// Whole vectors to and from memory.
    macro_rules! memory {
        ($($load:ident, $store:ident: $of:ty => $vector:ident;)*) => {
            $(/// # Safety
            /// As the intrinsic's.
            #[allow(dead_code)]
            pub(crate) unsafe fn $load(ptr: *const $of) -> $vector {
                // SAFETY: the caller's promise.
                $vector(unsafe { ptr.cast::<[$of; size_of::<$vector>() / size_of::<$of>()]>().read_unaligned() })
            }

            /// # Safety
            /// As the intrinsic's.
            #[allow(dead_code)]
            pub(crate) unsafe fn $store(ptr: *mut $of, a: $vector) {
                // SAFETY: the caller's promise.
                unsafe { ptr.cast::<[$of; size_of::<$vector>() / size_of::<$of>()]>().write_unaligned(a.0) }
            })*
        };
    }

    memory! {
        vld1q_f32, vst1q_f32: f32 => float32x4_t;
        vld1q_s32, vst1q_s32: i32 => int32x4_t;
        vld1q_s8, vst1q_s8: i8 => int8x16_t;
        vld1q_u8, vst1q_u8: u8 => uint8x16_t;
    }

    /// See the instruction's own.
    ///
    /// # Safety
    /// None here.
    pub(crate) unsafe fn dot_lane<const LANE: i32>(sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let of = |i: usize, k: usize| i32::from(w.0[4 * i + k]) * i32::from(x.0[4 * LANE as usize + k]);
        int32x4_t(from_fn(|i| sums.0[i].wrapping_add((0..4).map(|k| of(i, k)).sum())))
    }
}
