//! Waking the data thread from another thread.
//!
//! A wake is a write to an eventfd that the ring reads. Wakes coalesce: between the first wake and the moment the data
//! thread sees it, further ones cost one atomic operation and no system call.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use rustix::event::{EventfdFlags, eventfd};

use super::memory::Mapping;

#[derive(Debug)]
struct Shared {
    event: OwnedFd,
    /// A wake is under way that the data thread has not seen yet.
    signalled: AtomicBool,
}

/// Wakes the [`super::Driver`] it came from; cheap to clone, usable from any thread, harmless once the driver is gone.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// Makes the driver's current or next `turn` return with a `Completion::Wake`.
    ///
    /// What was written before the call (a message in a queue) is seen by whoever handles that completion.
    pub fn wake(&self) {
        if self.shared.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        // At most one wake is outstanding, so the counter cannot overflow and the write cannot block; an interrupted
        // write is repeated, anything else would be a descriptor that is not ours.
        let result = rustix::io::retry_on_intr(|| rustix::io::write(&self.shared.event, &1u64.to_ne_bytes()));
        assert_eq!(result, Ok(8), "writing to our own eventfd");
    }
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct WakeSource {
    shared: Arc<Shared>,
    /// Eight bytes for the kernel to write the counter to.
    counter: Mapping,
    /// Whether the read is in the ring.
    armed: bool,
}

impl WakeSource {
    pub(super) fn new() -> Result<Self, Errno> {
        // Blocking on purpose: for a non-blocking descriptor io_uring would return EAGAIN instead of waiting.
        let event = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
        let shared = Arc::new(Shared { event, signalled: AtomicBool::new(false) });
        Ok(Self { shared, counter: Mapping::new(8)?, armed: false })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    pub(super) fn is_armed(&self) -> bool {
        self.armed
    }

    /// The read to put into the ring; the caller keeps `self` until its completion.
    pub(super) fn arm(&mut self) -> squeue::Entry {
        assert!(!self.armed, "one read of the eventfd at a time");
        self.armed = true;
        opcode::Read::new(types::Fd(self.shared.event.as_raw_fd()), self.counter.at(0), 8).build()
    }

    /// The read has ended. Further wakes signal again from here on; whatever was published before is visible.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
        self.shared.signalled.swap(false, Ordering::AcqRel);
    }
}
