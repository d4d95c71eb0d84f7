//! How long to wait before a process is started again: not at all the first time, then 1 s, doubling to 30 s, for ever.
//!
//! One death says nothing about the next start, and clients wait for it; only what dies again and again is made to wait.

use std::time::Duration;

use super::Moment;

/// The delay after a second failure in a row.
pub const DELAY_MIN: Duration = Duration::from_secs(1);
/// No delay is longer: what blocks a start may be mended at any time, and nobody should wait for us then.
pub const DELAY_MAX: Duration = Duration::from_secs(30);
/// A process that ran this long was well: its next failure is a first one.
pub const RESET_AFTER: Duration = Duration::from_secs(60);

/// The delays of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A process started at `started` has ended at `now`. Returns when it may start again.
    pub fn failed(&mut self, started: Moment, now: Moment) -> Moment {
        if now.saturating_sub(started) >= RESET_AFTER {
            self.failures = 0;
        }
        let delay = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(repeats) => DELAY_MIN.saturating_mul(1 << repeats.min(5)).min(DELAY_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        now + delay
    }
    /// Whether there was more than one failure in a row.
    #[must_use]
    pub fn repeats(self) -> bool {
        self.failures > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn r7_at_once_then_from_one_to_thirty_seconds_for_ever() {
        let mut backoff = Backoff::default();
        let mut now = secs(0);
        let mut delays = Vec::new();
        for _ in 0..1000 {
            let next = backoff.failed(now, now);
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays[..8], [0, 1, 2, 4, 8, 16, 30, 30]);
        assert!(delays[8..].iter().all(|d| *d == 30), "no terminal state");
    }

    #[test]
    fn a_minute_of_running_begins_again() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.failed(secs(100), secs(100));
        }
        assert_eq!(backoff.failed(secs(100), secs(159)), secs(159 + 8));
        assert_eq!(backoff.failed(secs(200), secs(260)), secs(260), "at once");
        assert_eq!(backoff.failed(secs(260), secs(261)), secs(261 + 1));
    }
}
