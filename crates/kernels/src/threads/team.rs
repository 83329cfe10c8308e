//! A team of threads that stays awake while one of them runs many short parallel loops.
//!
//! Rayon's workers fall asleep between loops, and waking one costs 50 µs and more, above all on virtual machines: as long
//! as a whole layer takes at batch 1. The members of a team are tasks in rayon's pool (there is no other) that spin on one word:
//!
//! ```text
//! state = epoch of the loop (32 bits) | next part (16 bits) | parts (16 bits)
//! leader   writes the loop's closure, then the state; takes parts like everybody; waits until all parts are done
//! member   sees next < parts: takes a part by compare-and-swap, runs it, counts it as done
//! ```
//!
//! A part is only ever taken under the epoch it belongs to, and the closure outlives its epoch because the leader waits. A
//! member that is late, or busy with other work of the pool, costs nothing but its help: the leader takes what is left.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Rounds of waiting between two offers of the core to others.
const SPINS: u32 = 64;

type Job = *const (dyn Fn(usize) + Sync);

struct Team {
    state: AtomicU64,
    done: AtomicUsize,
    job: UnsafeCell<Job>,
    /// What a part died of.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    over: AtomicBool,
}

// SAFETY: `job` is written by the leader alone, while no part of any epoch is left to take (it waits for `done`), and read
// only by whoever took a part of the epoch that was published (release) after the write. The closure is `Sync`.
unsafe impl Sync for Team {}

thread_local! {
    /// The team that this thread leads, outside of its parallel loops.
    static LEADS: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
    /// Whether this thread leads or serves. While it waits for other work of the pool, rayon may hand it a second
    /// membership, in which it would be stuck.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `run` on a thread of the pool, with the pool's other threads as its team.
pub fn team<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    if is_leading() {
        return run();
    }
    fn nothing(_: usize) {}
    let team = Team {
        state: AtomicU64::new(0),
        done: AtomicUsize::new(0),
        job: UnsafeCell::new(&(nothing as fn(usize)) as &'static (dyn Fn(usize) + Sync)),
        panic: Mutex::new(None),
        over: AtomicBool::new(false),
    };
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| team.serve());
        }
        let _lead = Lead::new(&team);
        run()
    })
}

/// Whether loops of this thread go to a team.
pub(super) fn is_leading() -> bool {
    !LEADS.get().is_null()
}

/// Makes this thread the leader until it is dropped.
struct Lead<'a> {
    team: &'a Team,
    was_busy: bool,
}

impl<'a> Lead<'a> {
    fn new(team: &'a Team) -> Self {
        LEADS.set(team);
        Self { team, was_busy: BUSY.replace(true) }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        LEADS.set(std::ptr::null());
        BUSY.set(self.was_busy);
        self.team.over.store(true, Ordering::Release);
    }
}

/// Runs `part(0..parts)`, on this thread and its team.
///
/// # Panics
/// If a part does, once all are over; or if this thread leads no team.
pub(super) fn run_parts(parts: usize, part: &(dyn Fn(usize) + Sync)) {
    let leads = LEADS.replace(std::ptr::null());
    assert!(!leads.is_null(), "only the leader of a team gives it work");
    // SAFETY: set by `Lead::new` of a team that `team` keeps alive until after `Lead` is dropped.
    let team = unsafe { &*leads };
    for first in (0..parts).step_by(u16::MAX as usize) {
        let count = (parts - first).min(u16::MAX as usize);
        team.run(count, &|i| part(first + i));
    }
    LEADS.set(leads);
    let panic = team.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

impl Team {
    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        self.done.store(0, Ordering::Relaxed);
        // SAFETY: no part is left to take and none is running (see the end of this function), so nobody reads. The
        // lifetime is forgotten; this function returns only when no part uses the closure any more.
        unsafe {
            *self.job.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(part)
        };
        let epoch = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        self.state.store(epoch << 32 | parts as u64, Ordering::Release);
        while self.take_part() {}
        let mut waited = 0u32;
        while self.done.load(Ordering::Acquire) < parts {
            waited = waited.wrapping_add(1);
            // A member may have lost its core in the middle of a part.
            if waited.is_multiple_of(SPINS * 16) { std::thread::yield_now() } else { spin_loop() }
        }
    }

    /// Takes and runs one part, if any is left.
    fn take_part(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let (next, parts) = ((state >> 16 & 0xffff) as usize, (state & 0xffff) as usize);
            if next >= parts {
                return false;
            }
            match self.state.compare_exchange_weak(state, state + (1 << 16), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // SAFETY: this part belongs to the published epoch, which does not end before it is done.
                    let part = unsafe { &**self.job.get() };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| part(next))) {
                        self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                    }
                    self.done.fetch_add(1, Ordering::Release);
                    return true;
                }
                Err(now) => state = now,
            }
        }
    }

    /// A member's life.
    fn serve(&self) {
        if BUSY.replace(true) {
            return;
        }
        let mut idle = 0u32;
        while !self.over.load(Ordering::Acquire) {
            if self.take_part() {
                idle = 0;
                continue;
            }
            idle = idle.wrapping_add(1);
            if !idle.is_multiple_of(SPINS) {
                spin_loop();
            } else if rayon::yield_now() != Some(rayon::Yield::Executed) {
                // Other loops of the pool come first (matrix products, burn's operations), then other processes.
                std::thread::yield_now();
            }
        }
        BUSY.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{for_each_part, map_parts};
    use super::team;

    #[test]
    fn many_short_loops_run_every_part_once() {
        let total = team(|| {
            let mut x = vec![0.0f32; 1 << 14];
            for round in 0..200 {
                for_each_part(&mut x, 1, |_, part| part.iter_mut().for_each(|x| *x += 1.0));
                let counts = map_parts(x.len(), 3, |range| range.len());
                assert_eq!(counts.iter().sum::<usize>(), x.len(), "round {round}");
            }
            x.iter().map(|&x| f64::from(x)).sum::<f64>()
        });
        assert_eq!(total, 200.0 * (1 << 14) as f64);
    }

    #[test]
    fn teams_nest_and_loops_inside_parts_work() {
        let sums = team(|| {
            team(|| {
                map_parts(4, 4, |range| {
                    let start = range.start;
                    map_parts(100, 2, move |inner| inner.map(|i| i + start).sum::<usize>()).iter().sum::<usize>()
                })
            })
        });
        assert_eq!(sums, [4950, 5050, 5150, 5250]);
    }

    #[test]
    fn two_teams_share_the_pool() {
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    team(|| {
                        for _ in 0..50 {
                            map_parts(8, 8, |range| count.fetch_add(range.len(), Ordering::Relaxed));
                        }
                    });
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 50 * 8);
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_leader() {
        let result = std::panic::catch_unwind(|| team(|| map_parts(8, 8, |range| assert!(range.start != 5, "five"))));
        assert!(result.is_err());
        assert_eq!(team(|| map_parts(2, 2, |range| range.start)), [0, 1]);
    }
}
