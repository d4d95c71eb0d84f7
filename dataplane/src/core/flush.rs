//! Group flushes: one fsync in flight, later requests share the next, and a failed one is never repaired by another.
//!
//! Calling order: [`FlushGate::applied`] for each change of the data as it completes, [`FlushGate::request`] for each
//! flush; then, as often as it says so, start an fsync after [`FlushGate::poll_start`] and report it to
//! [`FlushGate::completed`].

/// Decides when to fsync and whom an fsync answers. `W` is whoever waits.
#[derive(Debug)]
pub struct FlushGate<W> {
    /// Answered by the fsync in flight.
    current: Vec<W>,
    /// Came while it was in flight: it may have missed what they cover.
    next: Vec<W>,
    running: bool,
    failed: bool,
    /// Changes so far, up to which one the fsync in flight covers them, and the last successful one did.
    applied: u64,
    covering: u64,
    covered: u64,
}

impl<W> FlushGate<W> {
    /// With room for `waiters_max` waiters. `dirty`: an earlier process left changes that no fsync covered. `failed`: an
    /// earlier fsync failed.
    #[must_use]
    pub fn new(waiters_max: usize, dirty: bool, failed: bool) -> Self {
        Self {
            current: Vec::with_capacity(waiters_max),
            next: Vec::with_capacity(waiters_max),
            running: false,
            failed,
            applied: u64::from(dirty),
            covering: 0,
            covered: 0,
        }
    }

    /// The data changed, or may have (a failed write leaves a range in an unknown state).
    pub fn applied(&mut self) {
        self.applied += 1;
    }

    /// Whether every change is on stable storage.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.failed && self.applied == self.covered
    }

    /// Whether an fsync failed, or something was lost: nothing can be flushed any more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.current.len() + self.next.len()
    }

    /// How many changes there were.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.applied
    }

    /// Whether nobody waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.running && self.next.is_empty()
    }

    /// A flush that covers every change applied so far. `Err` gives the waiter back: the answer is "failed", at once.
    pub fn request(&mut self, waiter: W) -> Result<(), W> {
        if self.failed {
            return Err(waiter);
        }
        self.next.push(waiter);
        Ok(())
    }

    /// Whether to start an fsync now.
    #[must_use]
    pub fn poll_start(&mut self) -> bool {
        if self.running || self.next.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.current, &mut self.next);
        self.covering = self.applied;
        self.running = true;
        true
    }

    /// Something written was lost on its way to the disk, and no fsync need know of it: none succeeds any more, the one in
    /// flight neither.
    pub fn lost(&mut self) {
        self.failed = true;
    }

    /// The fsync in flight has ended; `answer` is called for each waiter with whether its flush succeeded. After a failure
    /// the kernel has forgotten what it could not write and a second fsync would say "ok": those who wait for the next one
    /// fail too.
    pub fn completed(&mut self, ok: bool, mut answer: impl FnMut(W, bool)) {
        assert!(self.running, "an fsync completed that was not started");
        self.running = false;
        let ok = ok && !self.failed;
        if ok {
            self.covered = self.covering;
        } else {
            self.failed = true;
        }
        for waiter in self.current.drain(..) {
            answer(waiter, ok);
        }
        if !ok {
            for waiter in self.next.drain(..) {
                answer(waiter, false);
            }
        }
    }

    /// Everything here is being filled anew: fsyncs count again.
    pub fn reopen(&mut self) {
        self.failed = false;
        self.applied += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(gate: &mut FlushGate<u32>, ok: bool) -> Vec<(u32, bool)> {
        let mut answered = Vec::new();
        gate.completed(ok, |waiter, ok| answered.push((waiter, ok)));
        answered
    }

    #[test]
    fn one_fsync_in_flight_and_later_requests_share_the_next() {
        let mut gate = FlushGate::new(4, false, false);
        assert!(!gate.poll_start());
        gate.request(1).unwrap();
        gate.request(2).unwrap();
        assert!(gate.poll_start());
        gate.request(3).unwrap();
        gate.request(4).unwrap();
        assert!(!gate.poll_start(), "one at a time");
        assert_eq!(complete(&mut gate, true), [(1, true), (2, true)]);
        assert!(gate.poll_start());
        assert_eq!(complete(&mut gate, true), [(3, true), (4, true)]);
        assert!(gate.is_idle() && !gate.poll_start());
    }

    #[test]
    fn clean_means_covered_by_an_fsync_that_began_later() {
        let mut gate = FlushGate::new(4, true, false);
        assert!(!gate.is_clean(), "an earlier process left changes");
        gate.request(1).unwrap();
        assert!(gate.poll_start());
        gate.applied();
        complete(&mut gate, true);
        assert!(!gate.is_clean(), "a write completed during the fsync");
        gate.request(2).unwrap();
        assert!(gate.poll_start());
        complete(&mut gate, true);
        assert!(gate.is_clean());
    }

    #[test]
    fn what_was_lost_before_an_fsync_fails_it_though_it_says_ok() {
        let mut gate = FlushGate::new(4, false, false);
        gate.applied();
        gate.request(1).unwrap();
        assert!(gate.poll_start());
        gate.request(2).unwrap();
        gate.lost();
        assert_eq!(complete(&mut gate, true), [(1, false), (2, false)]);
        assert!(gate.request(3).is_err() && !gate.is_clean());
        gate.reopen();
        gate.request(4).unwrap();
        assert!(gate.poll_start());
        assert_eq!(complete(&mut gate, true), [(4, true)]);
    }

    #[test]
    fn a_failure_is_never_retried_into_a_success() {
        let mut gate = FlushGate::new(4, false, false);
        gate.applied();
        gate.request(1).unwrap();
        assert!(gate.poll_start());
        gate.request(2).unwrap();
        assert_eq!(complete(&mut gate, false), [(1, false), (2, false)]);
        assert_eq!(gate.request(3), Err(3));
        assert!(!gate.poll_start() && !gate.is_clean() && gate.is_failed());
        gate.reopen();
        assert!(!gate.is_clean());
        gate.request(4).unwrap();
        assert!(gate.poll_start());
        assert_eq!(complete(&mut gate, true), [(4, true)]);
        assert!(gate.is_clean());
    }
}
