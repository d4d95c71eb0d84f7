//! Anonymous memory that the kernel may read and write while we look elsewhere.
//!
//! Such memory is mapped, not allocated: it is aligned to pages (which `O_DIRECT` wants), it is touched lazily (an
//! idle instance stays small), and it is only ever reached through raw pointers, so that a range which the kernel
//! writes is never also covered by a Rust reference.

use std::ptr::NonNull;

use nix::errno::Errno;

/// A private anonymous mapping, zeroed by the kernel, unmapped on drop.
///
/// Whoever gives parts of it to the ring must keep it alive until the completion; [`super::Driver`] does so by
/// owning every mapping for at least as long as the operations on it, or by leaking it.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps at least `len` bytes (one page when `len` is 0).
    pub(super) fn new(len: usize) -> Result<Self, Errno> {
        let len = len.max(super::BLOCK).next_multiple_of(super::BLOCK);
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(address.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        // SAFETY: the range was mapped just above and nobody else knows it. Huge pages would make the first touch of
        // any buffer cost 2 MiB of resident memory; a kernel without them answers EINVAL, which changes nothing.
        unsafe { libc::madvise(address, len, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start, len })
    }

    /// The mapping's length in bytes, a multiple of the page size.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`, which must lie in the mapping.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "offset {offset} beyond a mapping of {} bytes", self.len);
        // SAFETY: the result stays within the mapping or one past its end, by the assertion.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Gives the memory behind `[offset, offset + len)` back to the kernel; it reads as zeros afterwards.
    ///
    /// # Safety
    /// Nobody, and no operation in the ring, may be using the range.
    pub(super) unsafe fn discard(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.len, "discard beyond the mapping");
        // SAFETY: the range lies within our own mapping (assertion) and nobody uses it (contract of this function).
        unsafe { libc::madvise(self.at(offset).cast(), len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, mapped by `new` and never unmapped before. That no operation in the ring and no
        // slice still refers to it is kept by the owner: a mapping in use by the ring is leaked, never dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_page_aligned_zeroed_and_rounded_up() {
        let mapping = Mapping::new(5000).unwrap();
        assert_eq!(mapping.len(), 8192);
        assert_eq!(mapping.at(0).addr() % 4096, 0);
        // SAFETY: within the mapping, which only this test uses.
        assert_eq!(unsafe { mapping.at(8191).read() }, 0);
        assert_eq!(Mapping::new(0).unwrap().len(), 4096);
    }

    #[test]
    fn discarded_memory_reads_as_zeros() {
        let mapping = Mapping::new(8192).unwrap();
        // SAFETY: within the mapping, which only this test uses.
        unsafe {
            mapping.at(10).write(7);
            mapping.at(4096).write(9);
            mapping.discard(0, 4096);
            assert_eq!(mapping.at(10).read(), 0);
            assert_eq!(mapping.at(4096).read(), 9);
        }
    }
}
