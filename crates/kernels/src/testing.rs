//! What the tests of fast kernels share: numbers, the comparison with a reference, and every instruction set in turn.
//!
//! A kernel that takes an [`Isa`] is simply called with each of `Isa::available()`. One that reads the level in use, in
//! threads of its own, is checked inside [`on_every_level`]. `docs/numerics.md` derives the bounds.

use crate::activation::Activation;
use crate::isa::{Isa, force};
use std::fmt::Arguments;
use std::sync::{Mutex, PoisonError};

/// u, half an ulp of 1: one rounding's relative error.
pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Every activation, the parametrised ones on both sides of what changes their loops.
pub(crate) const ACTIVATIONS: [Activation; 12] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { alpha: 0.1 },
    Activation::LeakyRelu { alpha: -0.5 },
    Activation::Clip { min: -0.5, max: 1.25 },
    Activation::HardSwish,
    Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 },
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::GeluErf,
    Activation::GeluTanh,
];

/// Values in -1..1 without structure, different for each `salt`.
pub(crate) fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + salt) * 7919 + i / 13) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Whether two slices have the same bits.
pub(crate) fn bitwise(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Fails where `fast` and `slow` differ by more than `limit` of their index, or `fast` is NaN.
pub(crate) fn assert_within(what: Arguments, fast: &[f32], slow: &[f32], limit: impl Fn(usize) -> f64) {
    assert_eq!(fast.len(), slow.len(), "{what}");
    for (i, (&f, &s)) in fast.iter().zip(slow).enumerate() {
        // Products that underflow are far below the least number that any test is about.
        let limit = limit(i) + 1e-30;
        // Written so that NaN fails.
        let is_near = (f64::from(f) - f64::from(s)).abs() <= limit;
        assert!(is_near, "{what} at {i}: {f} instead of {s}, allowed {limit:e}");
    }
}

/// Whoever forces a level holds this.
static FORCING: Mutex<()> = Mutex::new(());

/// Runs `check` once for each instruction set of this machine, as the one in use.
///
/// The level in use is one for the whole process, so checks that force one wait for each other; afterwards, or after a panic,
/// the best level is in use again. Tests that force none may run on any level meanwhile: none of them may depend on it.
/// Calls do not nest.
pub(crate) fn on_every_level(mut check: impl FnMut(Isa)) {
    struct Restore(Isa);
    impl Drop for Restore {
        fn drop(&mut self) {
            // The level was in use before, so the CPU has it.
            let _ = force(self.0.level());
        }
    }
    // A check that failed left nothing behind that matters here.
    let _alone = FORCING.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore(Isa::current());
    for isa in Isa::available() {
        check(force(isa.level()).expect("an available level"));
    }
}

#[test]
fn every_level_is_in_use_once_and_none_stays() {
    let before = Isa::available().last().expect("portable is everywhere");
    let mut seen = vec![];
    on_every_level(|isa| {
        assert_eq!(Isa::current(), isa);
        // What a thread of the pool sees.
        assert_eq!(rayon::join(Isa::current, Isa::current), (isa, isa));
        seen.push(isa);
    });
    assert!(seen.into_iter().eq(Isa::available()));
    let panicked = std::panic::catch_unwind(|| on_every_level(|_| panic!("a failed check")));
    assert!(panicked.is_err());
    // Other tests may be forcing a level now, one after the other; in the end the best one is back.
    on_every_level(|_| ());
    let _alone = FORCING.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(Isa::current(), before);
}
