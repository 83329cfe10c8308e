//! Scratch memory that outlives a call: no allocation in the steady state, and 64-byte alignment.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

/// A cache line of f32; its alignment is the buffer's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// What the scratch is for; each purpose has a buffer of its own per thread, so that they may be held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Repacked weights, made by the calling thread.
    Weights,
    /// Padded source rows of one strip.
    Source,
    /// Gradient rows with channels padded to whole vectors.
    Gradient,
    /// Partial sums of all threads, held by the calling one.
    Sums,
}

impl Purpose {
    /// Whether the buffers are as large as a layer's weights, and held by the thread that leads a loop, which may be another next time.
    fn is_large(self) -> bool {
        matches!(self, Purpose::Weights | Purpose::Sums)
    }
}

const PURPOSES: usize = 4;

thread_local! {
    static SCRATCH: [RefCell<Vec<Line>>; PURPOSES] = const { [const { RefCell::new(Vec::new()) }; PURPOSES] };
}

/// Large buffers that nobody holds.
static LARGE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

fn large() -> std::sync::MutexGuard<'static, Vec<Vec<Line>>> {
    LARGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lends `len` elements of this thread's scratch of `purpose` to `run`, or of that of all threads. Their content is whatever was left there.
///
/// The buffer is taken out while it is lent, so that a nested call (rayon may run another job while this one waits)
/// gets a fresh one instead of a panic.
pub(crate) fn with_scratch<T>(purpose: Purpose, len: usize, run: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut lines = match purpose.is_large() {
        true => large().pop().unwrap_or_default(),
        false => SCRATCH.with(|all| all[purpose as usize].take()),
    };
    if lines.len() * 16 < len {
        // Not resized: what was there would be copied, and both be held meanwhile.
        drop(lines);
        lines = vec![Line([0.0; 16]); len.div_ceil(16)];
    }
    // SAFETY: `Line` is `repr(C)` and holds 16 f32 without padding, so that the vector's lines are one run of
    // initialised f32, at least `len` of them; the slice borrows `lines`, which stays alive and untouched meanwhile.
    let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) };
    let result = run(floats);
    match purpose.is_large() {
        true => large().push(lines),
        false => drop(SCRATCH.with(|all| all[purpose as usize].replace(lines))),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::{Purpose, with_scratch};

    #[test]
    fn aligned_and_nestable() {
        with_scratch(Purpose::Source, 17, |outer| {
            outer.fill(1.0);
            with_scratch(Purpose::Source, 3, |inner| inner.fill(2.0));
            assert_eq!(outer.as_ptr() as usize % 64, 0);
            assert!(outer.iter().all(|&x| x == 1.0) && outer.len() == 17);
        });
    }
}
