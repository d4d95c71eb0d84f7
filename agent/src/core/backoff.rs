//! How long to wait before a process is started again: 1 s, doubling to 30 s, for ever.

use std::time::Duration;

use super::Moment;

/// The first delay.
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
        let delay = DELAY_MIN.saturating_mul(1 << self.failures.min(5)).min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        now + delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn r7_from_one_to_thirty_seconds_for_ever() {
        let mut backoff = Backoff::default();
        let mut now = secs(0);
        let mut delays = Vec::new();
        for _ in 0..1000 {
            let next = backoff.failed(now, now);
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert!(delays[7..].iter().all(|d| *d == 30), "no terminal state");
    }

    #[test]
    fn a_minute_of_running_begins_again() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.failed(secs(100), secs(100));
        }
        assert_eq!(backoff.failed(secs(100), secs(159)), secs(159 + 16));
        assert_eq!(backoff.failed(secs(200), secs(260)), secs(260 + 1));
    }
}
