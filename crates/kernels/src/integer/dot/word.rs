//! Weights that are multiplied with words.

use crate::multiversion::multiversion;

/// A weight that the wide kernel multiplies with words.
pub trait Word: Copy {
    /// As many weights as words.
    fn widen(from: &[Self], to: &mut [i16]);

    /// 16 consecutive weights as words.
    ///
    /// # Safety
    /// AVX2 is available and `at` holds 16 weights.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i;
}

impl Word for i16 {
    fn widen(from: &[Self], to: &mut [i16]) {
        to.copy_from_slice(from);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i {
        // SAFETY: the caller promises 16 words, and AVX2.
        unsafe { std::arch::x86_64::_mm256_loadu_si256(at.cast()) }
    }
}

impl Word for i8 {
    fn widen(from: &[Self], to: &mut [i16]) {
        widen_bytes(from, to);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtepi8_epi16};
        // SAFETY: the caller promises 16 bytes, and AVX2.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) }
    }
}

multiversion! {
    fn widen_bytes(from: &[i8], to: &mut [i16]) {
        to.iter_mut().zip(from).for_each(|(to, &w)| *to = i16::from(w));
    }
}
