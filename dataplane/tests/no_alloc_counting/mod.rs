//! An allocator that counts what threads of one name ask for: never the whole process, for the test harness allocates
//! too, whenever it likes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, with a count.
#[derive(Debug)]
pub(crate) struct Counting {
    thread: &'static str,
    allocations: AtomicU64,
}

impl Counting {
    /// Counts for threads of this name, of at most 15 bytes.
    pub(crate) const fn threads_named(thread: &'static str) -> Self {
        Self { thread, allocations: AtomicU64::new(0) }
    }

    /// How often memory was asked for so far.
    pub(crate) fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn count(&self) {
        let mut name = [0u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes to the address given.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        if name.split(|byte| *byte == 0).next() == Some(self.thread.as_bytes()) {
            self.allocations.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and all memory comes from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count();
        // SAFETY: the caller keeps the contract of `realloc`, and all memory comes from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
