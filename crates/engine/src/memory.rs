//! Buffers that outlive a step, and the way between them and burn's CPU tensors.
//!
//! A training step asks for the same few dozen large buffers every time. Fresh ones cost a page fault per 4 KiB (up to half
//! the step for a small network) and freshly zeroed ones a pass over memory, so dead tensors give their buffer back here
//! and new ones take it as it is. Lengths match exactly: networks repeat them. What went unused for several calls
//! is freed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn_backend::{DType, Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;

/// Shorter buffers are left to the allocator.
const SMALLEST: usize = 1 << 12;
/// Calls (steps or inferences) that a buffer may stay unused: a teacher's inference and an evaluation now and then must
/// not empty the pool of training.
const KEEP_CALLS: u64 = 4;

struct Pool {
    /// By length, each with the call that gave it back; the most recent is taken first, since it is in the cache.
    free: BTreeMap<usize, Vec<(u64, Vec<f32>)>>,
    call: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool> {
    // Nothing inside can be left half-done by a panic.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    const fn new() -> Self {
        Self { free: BTreeMap::new(), call: 0 }
    }

    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        self.free.get_mut(&len).and_then(Vec::pop).map(|(_, buffer)| buffer)
    }

    fn give(&mut self, buffer: Vec<f32>) {
        self.free.entry(buffer.len()).or_default().push((self.call, buffer));
    }

    fn end_call(&mut self) {
        self.call += 1;
        let call = self.call;
        self.free.retain(|_, buffers| {
            buffers.retain(|(given, _)| call - given <= KEEP_CALLS);
            !buffers.is_empty()
        });
    }
}

/// A buffer whose content is arbitrary: the taker writes all of it.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let used = if len >= SMALLEST { pool().take(len) } else { None };
    used.unwrap_or_else(|| vec![0.0; len])
}

/// Gives a buffer back.
pub(crate) fn give(buffer: Vec<f32>) {
    if buffer.len() >= SMALLEST {
        pool().give(buffer);
    }
}

/// Ends a call: frees what has not been used for a while.
pub(crate) fn end_call() {
    pool().end_call();
}

/// A tensor that owns the buffer, without a copy.
pub(crate) fn tensor(buffer: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(buffer, shape))
}

/// The same elements, row-major without gaps.
pub(crate) fn dense(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

/// The elements of a tensor that [`dense`] made.
pub(crate) fn floats(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect("operators make their inputs dense, and every tensor of a plan is f32")
}

/// The elements of a tensor that [`dense`] made, to be changed: in its buffer if nobody else holds that, else in a copy.
pub(crate) fn into_own(x: FlexTensor) -> Vec<f32> {
    into_buffer(x).unwrap_or_else(|shared| {
        let mut copy = take(floats(&shared).len());
        copy.copy_from_slice(floats(&shared));
        copy
    })
}

/// Gives a tensor's buffer back if nobody else holds it.
pub(crate) fn recycle(x: FlexTensor) {
    if let Ok(buffer) = into_buffer(x) {
        give(buffer);
    }
}

/// The buffer of a tensor that nobody else holds; else the tensor.
pub(crate) fn into_buffer(x: FlexTensor) -> Result<Vec<f32>, FlexTensor> {
    if TensorMetadata::dtype(&x) != DType::F32 || !x.is_unique() || !x.is_contiguous() {
        return Err(x);
    }
    let (bytes, shape, dtype) = x.into_data().into_parts();
    bytes.try_into_vec::<f32>().map_err(|bytes| FlexTensor::from_data(TensorData::from_bytes(bytes, shape, dtype)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_and_forgotten_in_time() {
        let mut pool = Pool::new();
        pool.give(vec![5.0; 10]);
        assert_eq!(pool.take(11), None, "lengths match exactly");
        let buffer = pool.take(10).unwrap();
        assert_eq!(buffer[3], 5.0, "as it was left");
        pool.give(buffer);
        (0..KEEP_CALLS).for_each(|_| pool.end_call());
        assert!(pool.free.contains_key(&10));
        pool.end_call();
        assert!(pool.free.is_empty());
    }

    #[test]
    fn tensors_neither_copy_nor_share_their_buffer() {
        let buffer = vec![1.0; 100];
        let address = buffer.as_ptr();
        let x = tensor(buffer, Shape::new([4, 25]));
        let shared = x.clone();
        assert!(into_buffer(x).is_err(), "a shared tensor keeps its buffer");
        let buffer = into_buffer(shared).unwrap();
        assert_eq!((buffer.as_ptr(), buffer.len()), (address, 100));
    }
}
