//! Where the time of a step goes, by kind of operator. Off unless asked for; then a few nanoseconds per operator.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<BTreeMap<&'static str, Entry>> = Mutex::new(BTreeMap::new());

/// The time spent in one kind of operator, in the whole process since [`start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// How often it ran.
    pub calls: u64,
    /// How long, in sum.
    pub time: Duration,
}

/// Starts to measure, from zero.
pub fn start() {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops, and returns what was measured since [`start`].
pub fn stop() -> BTreeMap<&'static str, Entry> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *TIMES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Counts the time until it is dropped.
pub(crate) struct Span(Option<(&'static str, Instant)>);

pub(crate) fn span(name: &'static str) -> Span {
    Span(ON.load(Ordering::Relaxed).then(|| (name, Instant::now())))
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some((name, since)) = self.0 {
            let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = times.entry(name).or_default();
            entry.calls += 1;
            entry.time += since.elapsed();
        }
    }
}
