//! A reserved range of addresses that becomes memory from its beginning on.

/// Addresses that belong to this process, of which the first part may be read and written.
#[derive(Debug)]
pub(super) struct Reserve {
    /// Of the first byte; as a number, since nothing is read or written here.
    base: usize,
    len: usize,
    committed: usize,
}

/// By how much the readable part grows: whole huge pages.
const STEP: usize = 64 << 20;

impl Reserve {
    #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
    /// As many addresses as are to be had, from 1 TiB down to 1 GiB: a limit on them may be in force.
    pub fn new() -> Option<Self> {
        /// What huge pages are aligned to.
        const HUGE: usize = 2 << 20;
        (30..=40).rev().find_map(|bits| {
            let len = 1_usize << bits;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping at an address of the system's choice.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
            if at == libc::MAP_FAILED {
                return None;
            }
            let base = at.addr().next_multiple_of(HUGE);
            let len = (at.addr() + len - base) / HUGE * HUGE;
            // SAFETY: within the mapping. Where there are no huge pages it changes nothing.
            unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(base), len, libc::MADV_HUGEPAGE) };
            at.expose_provenance();
            Some(Self { base, len, committed: 0 })
        })
    }

    #[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
    /// There are none here.
    pub fn new() -> Option<Self> {
        None
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes memory of the range up to this offset, if the system allows.
    pub fn commit(&mut self, end: usize) -> bool {
        if end <= self.committed {
            return true;
        }
        let wanted = end.next_multiple_of(STEP).min(self.len);
        let is_done = wanted >= end && self.grow(wanted);
        if is_done {
            self.committed = wanted;
        }
        is_done
    }

    #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
    fn grow(&self, wanted: usize) -> bool {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: within the mapping, and nothing there is in use yet.
        unsafe { libc::mprotect(self.address(self.committed).cast(), wanted - self.committed, rights) == 0 }
    }

    #[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
    fn grow(&self, _wanted: usize) -> bool {
        false
    }

    pub fn address(&self, offset: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.base + offset)
    }

    /// Where an address lies in the range, if it does.
    pub fn offset(&self, at: *mut u8) -> Option<usize> {
        at.addr().checked_sub(self.base).filter(|&offset| offset < self.len)
    }
}
