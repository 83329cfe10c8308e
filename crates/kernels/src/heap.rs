//! Memory for the large buffers of training: an allocator that keeps and shares what they leave, in huge pages.
//!
//! A step of training asks for hundreds of buffers of megabytes, and gives all of them back. An ordinary allocator returns such memory to
//! the system, where each 4 KiB costs a page fault and zeros the next time, up to half of a step; or keeps buffers of each
//! size apart, and holds twice what a step needs at any time. [`Heap`] puts them into one reserved range of addresses, joins what
//! is free again and cuts from it what is asked for ([`blocks`]), so that the range grows to what the largest moment of a step takes. What
//! was used once stays. Huge pages (`madvise`) save faults and misses of the translation cache.
//!
//! A program that trains says
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: bitsmith_kernels::heap::Heap = bitsmith_kernels::heap::Heap::new();
//! # fn main() {
//! let numbers = bitsmith_kernels::heap::buffer(1 << 20);
//! assert_eq!(numbers.len(), 1 << 20);
//! # }
//! ```
//!
//! as `bitsmith` itself does. Short buffers, and all of them where addresses cannot be reserved or the system is not Linux, are the system's.

mod blocks;
mod reserve;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blocks::Blocks;
use reserve::Reserve;

/// Shorter allocations are the system allocator's.
const LARGE: usize = 128 * 1024;
/// Blocks are whole multiples of this, and aligned to it: a page.
const UNIT: usize = 4096;

/// The allocator.
#[derive(Debug)]
pub struct Heap {
    range: Mutex<Range>,
}

/// A reserved range of addresses, and which parts of it are in use.
#[derive(Debug)]
struct Range {
    reserve: Option<Reserve>,
    /// Whether reserving was tried.
    tried: bool,
    blocks: Blocks,
}

impl Heap {
    /// An empty one, which reserves addresses when the first large buffer is asked for.
    pub const fn new() -> Self {
        Self { range: Mutex::new(Range { reserve: None, tried: false, blocks: Blocks::new() }) }
    }

    fn range(&self) -> MutexGuard<'_, Range> {
        // Nothing inside can be left half-done by a panic.
        self.range.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// The length of the block for an allocation, if it is one of ours.
fn block_len(layout: Layout) -> Option<usize> {
    (layout.size() >= LARGE && layout.align() <= UNIT).then(|| layout.size().checked_next_multiple_of(UNIT)).flatten()
}

impl Range {
    /// A block, and how many bytes at its beginning were in use before; the others are zeros.
    fn take(&mut self, len: usize) -> Option<(*mut u8, usize)> {
        if !self.tried {
            self.tried = true;
            self.reserve = Reserve::new();
        }
        let reserve = self.reserve.as_mut()?;
        let place = self.blocks.take(len, reserve.len())?;
        if !reserve.commit(place.start + len) {
            self.blocks.give(place.start, len);
            return None;
        }
        Some((reserve.address(place.start), place.used))
    }

    /// Where an address lies in the range.
    fn offset(&self, at: *mut u8) -> Option<usize> {
        self.reserve.as_ref()?.offset(at)
    }
}

// SAFETY: `Blocks` hands out disjoint parts of a range of addresses that is ours alone and readable and writable as far as it was
// committed, aligned to `UNIT`, and takes back exactly what it handed out, because the length follows from the layout; everything
// else is `System`'s, which keeps the contract. Which of the two an address belongs to follows from the address. Nothing
// here unwinds: the tables inside allocate short pieces from this very allocator, which are `System`'s and need no lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(len) = block_len(layout)
            && let Some((at, _)) = self.range().take(len)
        {
            return at;
        }
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if let Some(len) = block_len(layout) {
            let taken = self.range().take(len);
            if let Some((at, used)) = taken {
                // SAFETY: the block has `len` bytes, of which the first `used` may be other than zero.
                unsafe { at.write_bytes(0, used) };
                return at;
            }
        }
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(len) = block_len(layout) {
            let mut range = self.range();
            if let Some(start) = range.offset(at) {
                range.blocks.give(start, len);
                return;
            }
        }
        // SAFETY: not in our range, so from `System`, with the caller's layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (block_len(layout), block_len(new)) {
            // SAFETY: short ones are `System`'s, before and after.
            (None, None) => return unsafe { System.realloc(at, layout, size) },
            (Some(old), Some(len)) if old == len => return at,
            _ => {}
        }
        // SAFETY: as the trait's own body: the new block holds at least the smaller of both sizes and is another one.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                std::ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

/// `len` numbers whose values are arbitrary: whatever the memory held. For those who write all of them, and would wait for zeros.
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
pub fn buffer(len: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> = Vec::with_capacity(len);
    // SAFETY: the capacity is there. To the compiler, the assembly may have written to what its operand points at (no option says that it
    // does not), so that the numbers are whatever it wrote; to the machine, the bytes of memory are some bytes, and any are an f32.
    #[allow(clippy::uninit_vec)]
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) numbers.as_mut_ptr(), options(nostack, preserves_flags));
        numbers.set_len(len);
    }
    numbers
}

/// `len` numbers whose values are arbitrary.
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
pub fn buffer(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    #[test]
    fn buffers_are_apart_and_zeroed_when_asked_for() {
        let heap = Heap::new();
        let sizes = [LARGE, 3 * LARGE + 1, 1 << 20, LARGE - 1, 100];
        // SAFETY: layouts of positive size; each block is written within its size and given back once with its layout.
        unsafe {
            let first: Vec<*mut u8> = sizes.iter().map(|&size| heap.alloc(layout(size))).collect();
            for (i, (&at, &size)) in first.iter().zip(&sizes).enumerate() {
                assert!(!at.is_null() && at.addr().is_multiple_of(64));
                at.write_bytes(i as u8 + 1, size);
            }
            for (i, (&at, &size)) in first.iter().zip(&sizes).enumerate() {
                assert!(std::slice::from_raw_parts(at, size).iter().all(|&byte| byte == i as u8 + 1));
            }
            first.iter().zip(&sizes).for_each(|(&at, &size)| heap.dealloc(at, layout(size)));
            // Over what was used, and beyond it.
            let zeros = heap.alloc_zeroed(layout(4 << 20));
            assert!(std::slice::from_raw_parts(zeros, 4 << 20).iter().all(|&byte| byte == 0));
            if cfg!(all(target_os = "linux", not(miri))) {
                assert_eq!(zeros, first[0], "what was left is used again");
            }
            heap.dealloc(zeros, layout(4 << 20));
        }
    }

    #[test]
    fn growing_keeps_what_is_there() {
        let heap = Heap::new();
        // SAFETY: as above.
        unsafe {
            let mut size = 1000;
            let mut at = heap.alloc(layout(size));
            (0..size).for_each(|i| at.add(i).write(i as u8));
            for next in [5000, LARGE, LARGE + 1, LARGE + UNIT + 1, 10 * LARGE, LARGE, 2000] {
                at = heap.realloc(at, layout(size), next);
                size = next;
                assert!((0..1000).all(|i| at.add(i).read() == i as u8), "{next}");
            }
            heap.dealloc(at, layout(size));
        }
    }

    #[test]
    fn threads_share_it() {
        let heap = &Heap::new();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                scope.spawn(move || {
                    for round in 0..50_usize {
                        let layout = layout(LARGE + (round * 7919 + usize::from(thread) * 104_729) % (1 << 20));
                        // SAFETY: as above.
                        unsafe {
                            let at = heap.alloc(layout);
                            at.write_bytes(thread, layout.size());
                            std::thread::yield_now();
                            let bytes = std::slice::from_raw_parts(at, layout.size());
                            assert!(bytes.iter().all(|&byte| byte == thread));
                            heap.dealloc(at, layout);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn any_numbers_are_numbers() {
        let mut numbers = buffer(1000);
        numbers.iter_mut().for_each(|x| *x = x.to_bits() as f32);
        assert!(numbers.iter().all(|x| *x >= 0.0));
        assert!(buffer(0).is_empty());
    }
}
