//! Buffers that are used again, so that a run allocates only once and fills nothing.

use std::ops::{Deref, DerefMut};

/// The first elements of a buffer that once was as long as its longest use.
#[derive(Debug)]
pub(super) struct Pooled<T> {
    all: Vec<T>,
    len: usize,
}

impl<T> Deref for Pooled<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[..self.len]
    }
}

impl<T> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[..self.len]
    }
}

impl<T> From<Vec<T>> for Pooled<T> {
    fn from(all: Vec<T>) -> Self {
        Self { len: all.len(), all }
    }
}

impl<T> From<Pooled<T>> for Vec<T> {
    fn from(mut buffer: Pooled<T>) -> Self {
        buffer.all.truncate(buffer.len);
        buffer.all
    }
}

impl<T: Clone> Clone for Pooled<T> {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T: PartialEq> PartialEq for Pooled<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// Free buffers.
#[derive(Debug, Default)]
pub(super) struct Pool<T> {
    free: Vec<Vec<T>>,
}

impl<T: Copy + Default> Pool<T> {
    /// A buffer of this length; its content is whatever was left in it.
    pub fn take(&mut self, len: usize) -> Pooled<T> {
        // The smallest that is large enough, or else the largest, which then grows.
        let fits = |v: &Vec<T>| (v.len() < len, v.len().abs_diff(len));
        let best = (0..self.free.len()).min_by_key(|&i| fits(&self.free[i]));
        let mut all = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        if all.len() < len {
            all.resize(len, T::default());
        }
        Pooled { all, len }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Pooled<T>) {
        self.free.push(buffer.all);
    }
}

#[cfg(test)]
mod tests {
    use super::Pool;

    #[test]
    fn buffers_come_back_as_long_as_asked_for() {
        let mut pool = Pool::default();
        let mut long = pool.take(5);
        long.fill(7);
        pool.give(long);
        let short = pool.take(2);
        assert_eq!(*short, [7, 7]);
        assert_eq!(Vec::from(short.clone()), [7, 7]);
        pool.give(short);
        assert_eq!(*pool.take(5), [7; 5]);
        assert_eq!(*pool.take(1), [0]);
    }
}
