//! When write-back begins before a flush asks for it. The kernel writes late, so that more goes at a time and what is
//! written again and again goes once; two cases are better off early.
//!
//! Where **flushes are frequent**, as under a database or a journal, what was written goes to the disk while the
//! acknowledgement travels to the client and its flush comes back.
//!
//! What a **replica is filled with** is written once and is much. Left to the flushes that save the progress, it is
//! hundreds of MiB that go to the disk at once, and a client's write that needs a bit of the write-intent map, or its
//! flush, waits behind them; and nothing goes to the disk while it is being copied.

use std::ops::Range;

/// Flushes are frequent with at most so many changes from one to the next.
const FREQUENT: u32 = 64;
/// So many of them in a row are no accident.
const STREAK: u8 = 4;
/// So much that was filled is worth a request of its own, and what waits behind it waits a millisecond or two.
const FILLED_BYTES: u64 = 2 << 20;

/// Remembers what is dirty, and how far apart flushes are.
#[derive(Debug, Default)]
pub struct EarlyWriteback {
    /// Clients' changes since the last flush, and where those are that are not on their way.
    changes: u32,
    changed: Option<Range<u64>>,
    /// How many flushes in a row were frequent, up to [`STREAK`].
    frequent: u8,
    /// The same of what was filled.
    filled_bytes: u64,
    filled: Option<Range<u64>>,
    running: bool,
}

impl EarlyWriteback {
    /// A client's change is in the page cache.
    pub fn changed(&mut self, offset: u64, len: u64) {
        extend(&mut self.changed, offset, len);
        self.changes = self.changes.saturating_add(1);
        if self.changes > FREQUENT {
            self.frequent = 0;
        }
    }

    /// What a replica is filled with is in the page cache.
    pub fn filled(&mut self, offset: u64, len: u64) {
        extend(&mut self.filled, offset, len);
        self.filled_bytes += len;
    }

    /// A flush begins, and with it the write-back of everything. One with nothing to flush says nothing.
    pub fn flushed(&mut self) {
        if self.changes > 0 && self.changes <= FREQUENT {
            self.frequent = (self.frequent + 1).min(STREAK);
        }
        *self = Self { frequent: self.frequent, running: self.running, ..Self::default() };
    }

    /// Of which bytes to begin write-back now. One at a time: the next takes all that has come meanwhile.
    pub fn poll_start(&mut self) -> Option<Range<u64>> {
        if self.running {
            return None;
        }
        let range = if self.filled_bytes >= FILLED_BYTES {
            self.filled_bytes = 0;
            self.filled.take()
        } else if self.frequent == STREAK {
            self.changed.take()
        } else {
            None
        };
        self.running = range.is_some();
        range
    }

    /// The one that [`Self::poll_start`] asked for has been begun.
    pub fn begun(&mut self) {
        self.running = false;
    }
}

fn extend(range: &mut Option<Range<u64>>, offset: u64, len: u64) {
    let end = offset.saturating_add(len);
    *range = Some(match range {
        None => offset..end,
        Some(range) => range.start.min(offset)..range.end.max(end),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many changes, and a flush.
    fn batch(early: &mut EarlyWriteback, changes: u32) {
        (0..changes).for_each(|_| early.changed(0, 4096));
        early.flushed();
    }

    fn eager() -> EarlyWriteback {
        let mut early = EarlyWriteback::default();
        for _ in 0..STREAK {
            early.changed(0, 4096);
            assert_eq!(early.poll_start(), None, "too little is known yet");
            early.flushed();
        }
        early
    }

    #[test]
    fn begins_early_where_flushes_are_frequent() {
        let mut early = eager();
        assert_eq!(early.poll_start(), None, "nothing is dirty");
        early.changed(8192, 4096);
        assert_eq!(early.poll_start(), Some(8192..12_288));
        early.changed(0, 4096);
        early.changed(40_960, 4096);
        assert_eq!(early.poll_start(), None, "one at a time");
        early.begun();
        assert_eq!(early.poll_start(), Some(0..45_056), "what came meanwhile");
        early.begun();
        assert_eq!(early.poll_start(), None, "nothing came");
    }

    #[test]
    fn a_flush_takes_what_is_dirty_with_it() {
        let mut early = eager();
        early.changed(0, 4096);
        early.filled(0, FILLED_BYTES);
        early.flushed();
        assert_eq!(early.poll_start(), None);
    }

    #[test]
    fn one_long_way_to_the_next_flush_ends_it() {
        let mut early = eager();
        batch(&mut early, FREQUENT);
        early.changed(0, 4096);
        assert!(early.poll_start().is_some());
        early.begun();
        (0..FREQUENT).for_each(|_| early.changed(0, 4096));
        assert_eq!(early.poll_start(), None, "without a flush to wait for");
        early.flushed();
        for _ in 0..STREAK {
            early.changed(0, 4096);
            assert_eq!(early.poll_start(), None);
            early.flushed();
        }
        early.changed(0, 4096);
        assert!(early.poll_start().is_some(), "learned again");
    }

    #[test]
    fn flushes_of_nothing_say_nothing() {
        let mut early = EarlyWriteback::default();
        (0..10).for_each(|_| early.flushed());
        early.changed(0, 4096);
        assert_eq!(early.poll_start(), None);
    }

    #[test]
    fn what_a_replica_is_filled_with_goes_a_few_mib_at_a_time_and_is_no_change_of_a_client() {
        let mut early = eager();
        let region = 256 * 1024;
        for n in 1..FILLED_BYTES / region {
            early.filled(n * region, region);
            assert_eq!(early.poll_start(), None);
        }
        early.filled(0, region);
        assert_eq!(early.poll_start(), Some(0..FILLED_BYTES));
        early.begun();
        early.changed(4096, 4096);
        assert_eq!(early.poll_start(), Some(4096..8192), "the client's flushes are still frequent");
    }
}
