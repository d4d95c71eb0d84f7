//! Which operations may run at the same time: those whose byte ranges do not conflict.
//!
//! Two operations conflict when their ranges overlap and at least one is exclusive. An operation waits for every
//! conflicting one that was there before it, so none starves. The table is scanned linearly: it holds at most the
//! operations in flight (a few hundred), and 24 bytes each.

/// An operation's claim on a range.
#[derive(Debug, Clone, Copy)]
struct Entry {
    op: u32,
    start: u64,
    end: u64,
    exclusive: bool,
    blockers: u32,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end && (self.exclusive || other.exclusive)
    }
    fn running(&self) -> bool {
        self.blockers == 0
    }
}

/// The table.
#[derive(Debug, Default, Clone)]
pub struct RangeLock {
    entries: Vec<Entry>,
}

impl RangeLock {
    /// With room for `capacity` operations before it allocates.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity) }
    }

    /// What the model checker tells states apart by.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self, h: &mut impl std::hash::Hasher) {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|e| e.op);
        for e in entries {
            h.write_u32(e.op);
            h.write_u64(e.start << 32 | e.end << 16 | u64::from(e.blockers) << 1 | u64::from(e.exclusive));
        }
        h.write_u8(0);
    }

    /// Queues `op` behind all that conflict with it. True: it runs now.
    pub fn acquire(&mut self, op: u32, start: u64, end: u64, exclusive: bool) -> bool {
        let mut entry = Entry { op, start, end, exclusive, blockers: 0 };
        for other in &self.entries {
            entry.blockers += u32::from(other.conflicts(&entry));
        }
        self.entries.push(entry);
        entry.running()
    }

    /// Queues `op` before all that still wait: it waits only for those that run. True: it runs now.
    pub fn acquire_first(&mut self, op: u32, start: u64, end: u64, exclusive: bool) -> bool {
        let mut entry = Entry { op, start, end, exclusive, blockers: 0 };
        for other in &mut self.entries {
            if other.conflicts(&entry) {
                if other.running() {
                    entry.blockers += 1;
                } else {
                    other.blockers += 1;
                }
            }
        }
        self.entries.push(entry);
        entry.running()
    }

    /// Takes the turn back from a running `op` for `first`, an exclusive operation on a range that conflicts with it:
    /// `op` waits for `first` alone, and whoever waited for `op` still does. True: `first` runs now.
    pub fn yield_turn(&mut self, op: u32, first: u32, start: u64, end: u64) -> bool {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.op == op) {
            // Not running, so that `first` does not wait for it; `acquire_first` then counts itself as its blocker.
            entry.blockers = 1;
        }
        let runs = self.acquire_first(first, start, end, true);
        if let Some(entry) = self.entries.iter_mut().find(|e| e.op == op) {
            entry.blockers -= 1;
        }
        runs
    }

    /// Ends `op`; those that waited for it alone are pushed to `ready`.
    pub fn release(&mut self, op: u32, ready: &mut impl Extend<u32>) {
        let Some(at) = self.entries.iter().position(|e| e.op == op) else { return };
        let gone = self.entries.swap_remove(at);
        for other in &mut self.entries {
            if !other.running() && other.conflicts(&gone) {
                other.blockers -= 1;
                if other.blockers == 0 {
                    ready.extend([other.op]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn readers_share_writers_do_not() {
        let mut lock = RangeLock::default();
        let mut ready = Vec::new();
        assert!(lock.acquire(1, 0, 10, false));
        assert!(lock.acquire(2, 5, 15, false));
        assert!(!lock.acquire(3, 8, 9, true));
        assert!(!lock.acquire(4, 8, 9, false), "a reader does not pass a writer that waits");
        assert!(lock.acquire(5, 20, 30, true));
        lock.release(1, &mut ready);
        assert!(ready.is_empty());
        lock.release(2, &mut ready);
        assert_eq!(ready, [3]);
        lock.release(3, &mut ready);
        assert_eq!(ready, [3, 4]);
    }

    #[test]
    fn a_turn_is_given_up_without_deadlock() {
        let mut lock = RangeLock::default();
        let mut ready = Vec::new();
        assert!(lock.acquire(1, 0, 10, false));
        assert!(!lock.acquire(2, 0, 10, true));
        assert!(lock.yield_turn(1, 9, 0, 100));
        lock.release(9, &mut ready);
        assert_eq!(ready, [1]);
        lock.release(1, &mut ready);
        assert_eq!(ready, [1, 2]);
    }

    proptest! {
        /// Whatever comes, conflicting operations never run together, and all get their turn.
        #[test]
        fn exclusive_and_live(ranges in proptest::collection::vec((0u64..20, 1u64..6, any::<bool>(), 0u8..4), 1..60)) {
            let mut lock = RangeLock::default();
            let mut running: Vec<(u32, u64, u64, bool)> = Vec::new();
            let mut known = std::collections::HashMap::new();
            let mut left = ranges.len();
            let mut extra = 1000u32;
            for (op, (start, len, exclusive, what)) in ranges.iter().enumerate() {
                let op = u32::try_from(op).unwrap();
                known.insert(op, (*start, start + len, *exclusive));
                if lock.acquire(op, *start, start + len, *exclusive) {
                    running.push((op, *start, start + len, *exclusive));
                }
                if *what == 0 && let Some((first, s, e, _)) = running.first().copied() {
                    // It finds that something must go first.
                    extra += 1;
                    known.insert(extra, (s, e + 3, true));
                    left += 1;
                    running.remove(0);
                    if lock.yield_turn(first, extra, s, e + 3) {
                        running.push((extra, s, e + 3, true));
                    }
                }
                if *what == 1 && !running.is_empty() {
                    finish(&mut lock, &mut running, &known, &mut left);
                }
                check(&running);
            }
            while !running.is_empty() {
                finish(&mut lock, &mut running, &known, &mut left);
                check(&running);
            }
            prop_assert_eq!(left, 0);
        }
    }

    type Running = Vec<(u32, u64, u64, bool)>;

    fn finish(
        lock: &mut RangeLock,
        running: &mut Running,
        known: &std::collections::HashMap<u32, (u64, u64, bool)>,
        left: &mut usize,
    ) {
        let (op, ..) = running.remove(0);
        let mut ready: Vec<u32> = Vec::new();
        lock.release(op, &mut ready);
        *left -= 1;
        for op in ready {
            let (start, end, exclusive) = known[&op];
            running.push((op, start, end, exclusive));
        }
    }

    fn check(running: &Running) {
        for (i, a) in running.iter().enumerate() {
            for b in &running[i + 1..] {
                assert!(!(a.1 < b.2 && b.1 < a.2 && (a.3 || b.3)), "{a:?} and {b:?} run together");
            }
        }
    }
}
