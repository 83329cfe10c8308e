//! What this machine could do at best, measured: limits to hold kernels against.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::Isa;
use crate::simd::{Kernel, Vector, dispatch};
use crate::threads;

/// Rounds of each measurement, of which the best counts.
const ROUNDS: usize = 7;

/// Multiply-adds that one thread of this machine can do per second at `isa`, times two: a loop of independent ones in
/// registers, best of several runs. For benchmarks, which report shares of it.
pub fn float_ops(isa: Isa) -> f64 {
    struct Peak;
    const STEPS: usize = 100_000;
    const CHAINS: usize = 12;
    impl Kernel for Peak {
        type Output = f64;
        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> f64 {
            // SAFETY: arithmetic on registers; the caller promises the instruction set.
            unsafe {
                let (a, b) = (V::splat(black_box(0.5)), V::splat(black_box(1.0)));
                let mut chains = [V::zero(); CHAINS];
                for _ in 0..STEPS {
                    for chain in &mut chains {
                        *chain = chain.mul_add(a, b);
                    }
                }
                let mut lanes = [0.0; 16];
                for chain in chains {
                    chain.store(lanes.as_mut_ptr());
                    black_box(&lanes);
                }
            }
            (2 * STEPS * CHAINS * V::LANES) as f64
        }
    }
    (0..20)
        .map(|_| {
            let start = Instant::now();
            dispatch(isa, Peak) / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

/// Operations per second of integer products, a multiply-accumulate being two, on `threads` threads: a loop of independent sums in
/// registers. `few_bits` asks for the instructions that products of few bits can use, where these are others. 0 where no
/// instructions for it exist.
pub fn integer_ops(few_bits: bool, threads: usize) -> f64 {
    let one = || {
        let began = Instant::now();
        let macs = multiply(few_bits);
        2.0 * macs as f64 / began.elapsed().as_secs_f64().max(1e-9)
    };
    let all = || threads::map_parts(threads, threads, |_| one()).into_iter().sum();
    (0..ROUNDS).map(|_| all()).fold(0.0, f64::max)
}

/// Bytes per second that `threads` threads read from `len` bytes, over and over: from whichever cache holds them, or from memory.
pub fn read_bytes(len: usize, threads: usize) -> f64 {
    let words: Vec<u64> = (0..(len / 8).max(threads) as u64).collect();
    let sums = |words: &[u64]| {
        // Wide enough to keep loads in flight, whatever the additions cost.
        let mut lanes = [0u64; 32];
        for part in words.as_chunks::<32>().0 {
            lanes.iter_mut().zip(part).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
        }
        lanes.iter().fold(0u64, |sum, lane| sum.wrapping_add(*lane))
    };
    let passes = ((1 << 24) / words.len().max(1)).max(1);
    let round = || {
        let began = Instant::now();
        let parts = threads::map_parts(words.len(), threads, |range| {
            (0..passes).fold(0u64, |sum, _| sum.wrapping_add(sums(black_box(&words[range.clone()]))))
        });
        black_box(parts);
        (passes * words.len() * 8) as f64 / began.elapsed().as_secs_f64().max(1e-9)
    };
    (0..ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

/// Products in registers; how many.
fn multiply(few_bits: bool) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::Level;
        let level = Isa::current().level();
        if level == Level::Avx512 && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the instructions were just detected.
            return unsafe { x86::vnni() };
        }
        if level >= Level::Avx2 {
            // SAFETY: the level proves AVX2.
            return unsafe { if few_bits { x86::short() } else { x86::wide() } };
        }
    }
    let _ = few_bits;
    0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const STEPS: usize = 1 << 16;
    /// Independent sums: enough to hide the latency of an instruction.
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn vnni() -> usize {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        let total = sums.into_iter().fold(_mm512_setzero_si512(), |x, y| _mm512_add_epi32(x, y));
        black_box(_mm512_reduce_add_epi32(total));
        STEPS * CHAINS * 64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn short() -> usize {
        let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-2)));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                // The product must not be taken out of the loop.
                let a = _mm256_xor_si256(a, *sum);
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(a, b));
            }
        }
        let total = sums.into_iter().fold(_mm256_setzero_si256(), |x, y| _mm256_add_epi16(x, y));
        black_box(_mm256_extract_epi16::<0>(total));
        STEPS * CHAINS * 32
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn wide() -> usize {
        let (a, b) = (_mm256_set1_epi16(black_box(3)), _mm256_set1_epi16(black_box(-2)));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                let a = _mm256_xor_si256(a, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
            }
        }
        let total = sums.into_iter().fold(_mm256_setzero_si256(), |x, y| _mm256_add_epi32(x, y));
        black_box(_mm256_extract_epi32::<0>(total));
        STEPS * CHAINS * 16
    }
}

#[cfg(test)]
mod tests {
    use super::{integer_ops, read_bytes};

    #[test]
    fn limits_are_rates() {
        let ops = integer_ops(true, 1);
        assert!(ops.is_finite() && ops >= 0.0);
        assert!(read_bytes(1 << 16, 1) > 1e6);
    }
}
