//! Fixed partitions over rayon's global pool.
//!
//! Work is cut by the number of threads alone and partial sums are added in part order, so that the same thread count
//! gives the same bits, whichever thread runs which part.
//!
//! A network is a few hundred short loops one after another. Inside [`team()`] the other threads wait for each loop
//! awake, so that handing over a part costs well below a microsecond instead of a wake-up.

mod team;

use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use team::team;

/// Fewer elements than this are not worth a second thread (a hand-over costs some microseconds).
const WORTH_A_THREAD: usize = 1 << 13;

/// `count` items cut into at most `parts` ranges whose lengths differ by at most one; never an empty range.
pub fn ranges(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = parts.clamp(1, count.max(1));
    (0..parts).map(move |p| p * count / parts..(p + 1) * count / parts).filter(|r| !r.is_empty())
}

/// The number of parts for `work` elements: the pool's threads, or 1 where that little work does not repay them.
pub fn parts_for(work: usize) -> usize {
    if work < WORTH_A_THREAD { 1 } else { rayon::current_num_threads() }
}

/// Cuts `out` at multiples of `row` and calls `run(offset, part)` for each part, in parallel.
pub fn for_each_part(out: &mut [f32], row: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    let work = out.len();
    for_each_part_weighing(out, row, work, run);
}

/// As [`for_each_part`], where computing `out` costs as much as passing over `work` elements.
pub fn for_each_part_weighing<T: Send>(out: &mut [T], row: usize, work: usize, run: impl Fn(usize, &mut [T]) + Sync) {
    let rows = out.len() / row.max(1);
    let parts = parts_for(work);
    if parts == 1 {
        run(0, out);
        return;
    }
    let mut rest = out;
    let mut jobs = Vec::with_capacity(parts);
    let mut start = 0;
    for range in ranges(rows, parts) {
        let (part, tail) = rest.split_at_mut(range.len() * row);
        rest = tail;
        jobs.push((start, part));
        start += range.len() * row;
    }
    for_each_job(jobs, |(start, part)| run(start, part));
}

/// The number of the range that begins at `start`, or how many there are if none does: an `offset` for
/// [`for_each_cut`] where every range owns a part of the same length.
pub fn part_of(cuts: &[Range<usize>], start: usize) -> usize {
    cuts.iter().position(|cut| cut.start == start).unwrap_or(cuts.len())
}

/// Runs `part(range)` for the parts of `0..count` in parallel and returns the results in order.
pub fn map_parts<T: Send>(count: usize, parts: usize, run: impl Fn(Range<usize>) -> T + Sync + Send) -> Vec<T> {
    map_jobs(ranges(count, parts).collect(), run)
}

/// Runs `run(job)` for all jobs in parallel and returns the results in order.
pub fn map_jobs<J: Send, T: Send>(jobs: Vec<J>, run: impl Fn(J) -> T + Sync + Send) -> Vec<T> {
    let results: Vec<_> = jobs.iter().map(|_| Mutex::new(None)).collect();
    for_each(jobs.into_iter().zip(&results), |(job, result)| *lock(result) = Some(run(job)));
    results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// Runs `run(job)` for all jobs in parallel.
pub fn for_each_job<J: Send>(jobs: Vec<J>, run: impl Fn(J) + Sync + Send) {
    // Of what follows there is one instance per type of job, and of rayon's loop only one: it is larger than most of what it runs.
    fn all<J: Send>(jobs: Vec<J>, run: &(dyn Fn(J) + Sync)) {
        if jobs.len() <= 1 || rayon::current_num_threads() == 1 {
            return jobs.into_iter().for_each(run);
        }
        // A part takes its job out of its place; who runs which part does not matter.
        let jobs: Vec<_> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
        for_each_index(jobs.len(), &|i| {
            if let Some(job) = lock(&jobs[i]).take() {
                run(job);
            }
        });
    }
    all(jobs, &run);
}

/// Runs `part(0..count)` in parallel: by the team, where this thread leads one, else by rayon.
fn for_each_index(count: usize, part: &(dyn Fn(usize) + Sync)) {
    match team::is_leading() {
        true => team::run_parts(count, part),
        false => (0..count).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// Runs `run(job)` for all jobs in parallel, which need not be in a list yet.
pub fn for_each<J: Send>(jobs: impl Iterator<Item = J>, run: impl Fn(J) + Sync + Send) {
    for_each_job(jobs.collect(), run);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside a part is passed on by whoever started the loop.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits `out` where the ranges of `cuts` begin (`offset` of a range's start; ascending, the first at 0) and calls
/// `run(range, part)` for each in parallel.
pub fn for_each_cut(
    out: &mut [f32],
    cuts: &[Range<usize>],
    offset: impl Fn(usize) -> usize,
    run: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let mut rest = out;
    let mut jobs = Vec::with_capacity(cuts.len());
    for cut in cuts {
        let (part, tail) = rest.split_at_mut(offset(cut.end) - offset(cut.start));
        rest = tail;
        jobs.push((cut.clone(), part));
    }
    for_each_job(jobs, |(range, part)| run(range, part));
}

#[cfg(test)]
mod tests {
    use super::{for_each_part, map_parts, ranges};

    #[test]
    fn ranges_cover() {
        for count in [0, 1, 2, 3, 7, 100] {
            for parts in [1, 2, 3, 8] {
                let all: Vec<usize> = ranges(count, parts).flatten().collect();
                assert!(all.iter().copied().eq(0..count), "{count} in {parts}");
            }
        }
    }

    #[test]
    fn parts_cover() {
        let mut out = vec![0.0; 3 * 10_007];
        for_each_part(&mut out, 3, |start, part| {
            assert_eq!(start % 3, 0);
            part.iter_mut().enumerate().for_each(|(i, o)| *o = (start + i) as f32);
        });
        assert!(out.iter().enumerate().all(|(i, &o)| o == i as f32));
        assert_eq!(map_parts(10, 3, |r| r.len()).iter().sum::<usize>(), 10);
    }
}
