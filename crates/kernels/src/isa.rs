//! Instruction-set levels: which vector code this process may run, and the token that proves it.
//!
//! An [`Isa`] can only come from a check of the CPU, so that a function which takes one may call code compiled for that
//! level. The level is picked once, at the first use; [`force`] lowers it, for tests and for `BITSMITH_ISA` (which the
//! program reads, not this crate).

use std::sync::atomic::{AtomicU8, Ordering};

/// The vector code that exists, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Plain arrays; whatever the compiler makes of them.
    Portable = 1,
    /// Any 64-bit ARM.
    Neon = 2,
    /// x86-64 with AVX2 and FMA.
    Avx2 = 3,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512 = 4,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Level; 4] = [Level::Portable, Level::Neon, Level::Avx2, Level::Avx512];

    /// The name that [`Level::from_name`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The level of this name, if there is one.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// Proof that this CPU can run code of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The token of `level`, if this CPU has it.
    pub fn new(level: Level) -> Option<Isa> {
        has(level).then_some(Isa(level))
    }

    /// The token of every level this CPU has, weakest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Level::ALL.into_iter().filter_map(Isa::new)
    }

    /// The level in use: the best one, or what [`force`] chose.
    pub fn current() -> Isa {
        match CURRENT.load(Ordering::Relaxed) {
            1 => Isa(Level::Portable),
            2 => Isa(Level::Neon),
            3 => Isa(Level::Avx2),
            4 => Isa(Level::Avx512),
            _ => {
                let best = Isa::available().last().unwrap_or(Isa(Level::Portable));
                CURRENT.store(best.0 as u8, Ordering::Relaxed);
                best
            }
        }
    }

    /// Lanes of f32 in one vector of this level.
    pub fn lanes(self) -> usize {
        match self.0 {
            Level::Portable | Level::Neon => 4,
            Level::Avx2 => 8,
            Level::Avx512 => 16,
        }
    }

    /// Whether the vectors of this level multiply pairs of bf16 in hardware (AVX512_BF16).
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Level::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The level this token proves.
    pub fn level(self) -> Level {
        self.0
    }
}

/// The level in use as a number of [`Level`], 0 before the first use. Only levels that `has` confirmed are ever stored.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// Makes `level` the one in use from now on, in the whole process.
///
/// # Errors
/// Gives the level back if this CPU does not have it; then nothing changes.
pub fn force(level: Level) -> Result<Isa, Level> {
    let isa = Isa::new(level).ok_or(level)?;
    CURRENT.store(level as u8, Ordering::Relaxed);
    Ok(isa)
}

#[cfg(target_arch = "x86_64")]
fn has(level: Level) -> bool {
    let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match level {
        Level::Portable => true,
        // Emulated.
        Level::Neon => cfg!(test),
        Level::Avx2 => avx2(),
        Level::Avx512 => {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(level: Level) -> bool {
    level == Level::Portable || level == Level::Neon && cfg!(target_arch = "aarch64")
}

#[cfg(test)]
mod tests {
    use super::{Isa, Level};

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("mmx"), None);
    }

    #[test]
    fn portable_is_everywhere() {
        assert!(Isa::available().any(|isa| isa.level() == Level::Portable));
        assert!(Isa::new(Isa::current().level()).is_some());
    }
}
