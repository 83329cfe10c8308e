//! The random streams of the data module. Each is a function of (seed, epoch, purpose, index) alone, so that neither the
//! number of workers nor the order in which they finish can change a bit.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The stream for one purpose (`b"shuffle_"`, `b"augment_"`, …) and one index: ChaCha8 whose key spells out seed, epoch
/// and purpose, and whose stream number is the index.
pub(super) fn stream(seed: u64, epoch: u64, purpose: &[u8; 8], index: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(purpose);
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}

/// A whole number below `n`, without bias (Lemire's rejection); 0 when `n` is 0.
pub(super) fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    if n == 0 {
        return 0;
    }
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(n);
        if product as u32 >= threshold {
            return (product >> 32) as u32;
        }
    }
}

/// A number in [0, 1) with 32 random bits.
pub(super) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / 4_294_967_296.0
}

/// The order in which an epoch visits `n` samples: a Fisher-Yates shuffle.
pub(super) fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut rng = stream(seed, epoch, b"shuffle_", 0);
    for i in (1..order.len()).rev() {
        order.swap(i, below(&mut rng, i as u32 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut rng = stream(1, 2, b"shuffle_", 3);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        // Standard deviation is 92; five of them.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 460), "{counts:?}");
        assert_eq!(below(&mut rng, 0), 0);
        assert_eq!(below(&mut rng, 1), 0);
    }

    #[test]
    fn permutations_visit_all_and_depend_on_seed_and_epoch() {
        let a = permutation(1000, 7, 0);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, &v)| i as u32 == v));
        assert_eq!(a, permutation(1000, 7, 0));
        assert_ne!(a, permutation(1000, 7, 1));
        assert_ne!(a, permutation(1000, 8, 0));
        assert!(permutation(0, 1, 1).is_empty());
    }

    #[test]
    fn the_stream_is_pinned() {
        // A seed must mean the same bits for ever: runs are resumed and replayed across versions.
        assert_eq!(permutation(8, 42, 3), PINNED);
    }

    const PINNED: [u32; 8] = [6, 0, 4, 1, 7, 3, 5, 2];
}
