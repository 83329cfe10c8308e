//! Compiles one loop for several instruction sets and picks the level in use ([`crate::isa`]) at run time.
//!
//! The body is ordinary scalar Rust that the compiler vectorises. The compiler never fuses a multiplication with
//! an addition by itself, and `mul_add` rounds once on every machine (in software if need be): all versions return the same
//! bits.

/// Defines a function whose body is compiled for AVX-512, AVX2 and the baseline.
///
/// The body must consist of code that inlines (`#[inline(always)]` helpers, slices, arithmetic); a closure or an
/// out-of-line call inside it would be compiled for the baseline.
macro_rules! multiversion {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                use crate::isa::{Isa, Level};
                match Isa::current().level() {
                    // SAFETY: an `Isa` of this level proves every feature that `avx512` enables.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: an `Isa` of this level proves every feature that `avx2` enables.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable | Level::Neon => {}
                }
            }
            body($($arg),*)
        }
    };
}

pub(crate) use multiversion;
