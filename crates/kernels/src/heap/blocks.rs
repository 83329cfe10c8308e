//! Which parts of a range are free: best fit, the lowest among equals, neighbours joined at once.

use std::collections::{BTreeMap, BTreeSet};

/// The free parts of a range whose end grows. Offsets and lengths are whatever unit the caller has.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Length by start.
    by_start: BTreeMap<usize, usize>,
    /// (length, start).
    by_len: BTreeSet<(usize, usize)>,
    /// What was never handed out begins here.
    top: usize,
}

/// A block that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub start: usize,
    /// How much of it, from its start, was in use before.
    pub used: usize,
}

impl Blocks {
    pub const fn new() -> Self {
        Self { by_start: BTreeMap::new(), by_len: BTreeSet::new(), top: 0 }
    }

    /// The smallest free block that `len` fits into, cut to it; else the end of the range, which may grow up to `most`.
    pub fn take(&mut self, len: usize, most: usize) -> Option<Place> {
        if let Some(&(free, start)) = self.by_len.range((len, 0)..).next() {
            self.remove(start, free);
            if free > len {
                self.insert(start + len, free - len);
            }
            return Some(Place { start, used: len });
        }
        // A free block at the end is the beginning of the new one.
        let last = self.by_start.last_key_value().map(|(&start, &len)| (start, len));
        let (start, used) = last.filter(|(start, len)| start + len == self.top).unwrap_or((self.top, 0));
        let end = start.checked_add(len).filter(|&end| end <= most)?;
        if used > 0 {
            self.remove(start, used);
        }
        self.top = end;
        Some(Place { start, used })
    }

    /// Takes back a block that was handed out.
    pub fn give(&mut self, start: usize, len: usize) {
        let (mut start, mut len) = (start, len);
        if let Some((&before, &size)) = self.by_start.range(..start).next_back()
            && before + size == start
        {
            self.remove(before, size);
            (start, len) = (before, len + size);
        }
        if let Some(&size) = self.by_start.get(&(start + len)) {
            self.remove(start + len, size);
            len += size;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: usize, len: usize) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    fn remove(&mut self, start: usize, len: usize) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_best_fit_is_cut_and_joined_again() {
        let mut blocks = Blocks::new();
        let starts: Vec<usize> = [10, 30, 20, 40].map(|len| blocks.take(len, 1000).unwrap().start).into();
        assert_eq!(starts, [0, 10, 40, 60]);
        blocks.give(10, 30);
        blocks.give(60, 40);
        // 25 fits into the 30 at 10 better than into the 40 at the end.
        assert_eq!(blocks.take(25, 1000), Some(Place { start: 10, used: 25 }));
        assert_eq!(blocks.take(50, 1000), Some(Place { start: 60, used: 40 }), "the end grows by what is missing");
        blocks.give(10, 25);
        blocks.give(0, 10);
        blocks.give(40, 20);
        assert_eq!(blocks.take(60, 1000), Some(Place { start: 0, used: 60 }), "three neighbours and a rest are one");
        assert_eq!(blocks.take(1000, 1000), None);
    }

    proptest! {
        /// Blocks in use never overlap, and once all are given back a single free one is left.
        #[test]
        fn blocks_are_disjoint(calls in prop::collection::vec((1..50_usize, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut blocks = Blocks::new();
            let mut held: Vec<(usize, usize)> = vec![];
            let mut highest = 0;
            for (len, which, gives) in calls {
                if gives && !held.is_empty() {
                    let (start, len) = held.swap_remove(which.index(held.len()));
                    blocks.give(start, len);
                } else if let Some(place) = blocks.take(len, 600) {
                    prop_assert!(place.used <= len && place.start + len <= 600);
                    prop_assert!(place.start + place.used <= highest, "what was never handed out is not used");
                    highest = highest.max(place.start + len);
                    prop_assert!(held.iter().all(|&(s, l)| s + l <= place.start || place.start + len <= s));
                    held.push((place.start, len));
                }
            }
            held.into_iter().for_each(|(start, len)| blocks.give(start, len));
            prop_assert!(blocks.by_start.len() <= 1 && blocks.by_len.len() == blocks.by_start.len());
        }
    }
}
