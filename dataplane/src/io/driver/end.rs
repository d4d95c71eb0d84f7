//! The end of a driver: nothing that the kernel may still read or write is freed.

use std::mem::{self, ManuallyDrop};
use std::time::{Duration, Instant};

use super::super::ring::{Tag, Wait};
use super::Driver;

/// How long a dropped driver waits for the kernel before it leaks the memory instead. A guess: cancelled sockets take
/// microseconds; only a file operation on a hung disk takes longer, and nothing is gained by waiting for that.
const DROP_WAIT: Duration = Duration::from_secs(5);

impl Driver {
    /// Cancels everything and waits until the ring is empty; false when that took too long or the ring failed.
    fn quiesce(&mut self) -> bool {
        self.cancels.clear();
        for key in self.conns.keys() {
            self.cancels.extend([Tag::Recv(key.slot), Tag::Send(key.slot)]);
        }
        self.cancels.extend(self.operations.keys().map(|key| Tag::File(key.slot)));
        self.cancels.push(Tag::Wake);
        let until = Instant::now() + DROP_WAIT;
        loop {
            let full = self.fill_cancels();
            if self.ring.in_flight() == 0 {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            let wait = if full { Wait::No } else { Wait::For(left) };
            if left.is_zero() || self.ring.enter(wait).is_err() {
                return false;
            }
            self.ring.reap(&mut self.reaped);
            self.reaped.clear();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.quiesce() {
            // SAFETY: not used after this; nobody else drops it. The ring no longer writes to it.
            unsafe { ManuallyDrop::drop(&mut self.wake) };
        } else {
            // The kernel may still read and write what these hold, so it stays for good, like the waker's counter.
            mem::forget(mem::take(&mut self.conns));
            mem::forget(mem::take(&mut self.operations));
        }
    }
}
