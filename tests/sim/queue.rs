//! What is going to happen, by simulated time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Microseconds since the world began.
pub type Time = u64;

/// One millisecond.
pub const MS: Time = 1_000;
/// One second.
pub const SEC: Time = 1_000_000;

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    order: u64,
    event: E,
}
impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the earliest is to be that.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Events in the order of their time; those of one moment in the order in which they were put in.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    now: Time,
    next: u64,
}

impl<E> Queue<E> {
    /// Empty, at time 0.
    #[must_use]
    pub fn new() -> Self {
        Self { heap: BinaryHeap::with_capacity(256), now: 0, next: 0 }
    }
    /// The time of the last event taken.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }
    /// How many events were put in.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next
    }
    /// Happens at `at`, or now where that has passed.
    pub fn at(&mut self, at: Time, event: E) {
        let entry = Entry { at: at.max(self.now), order: self.next, event };
        self.next += 1;
        self.heap.push(entry);
    }
    /// Happens that much later.
    pub fn after(&mut self, delay: Time, event: E) {
        self.at(self.now + delay, event);
    }
    /// The next event; time moves there.
    pub fn pop(&mut self) -> Option<E> {
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self::new()
    }
}
