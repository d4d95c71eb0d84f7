//! Whether writes into the page cache are made on the data thread itself.
//!
//! That is cheapest, and it never waits for the disk, but for one case: where the machine has too many dirty pages, the
//! kernel lets whoever writes sleep, up to 200 ms at a time (`balance_dirty_pages`). Then reads, heartbeats and flushes
//! of the same replica would sleep with it. So after a long turn writes go to kernel threads for a while, which cost more
//! and keep nobody else waiting.

use std::time::Duration;

/// A turn of the loop beyond this has slept: a hundred times what its work takes, and more than a busy machine takes away.
const STALL: Duration = Duration::from_millis(50);
/// How long writes stay away from the thread, first and at most: it doubles while trying again ends in the next stall.
const AWAY_MIN: Duration = Duration::from_secs(1);
const AWAY_MAX: Duration = Duration::from_secs(16);

/// Remembers stalls. Times are of any clock that only goes forward.
#[derive(Debug)]
pub struct Inline {
    away_until: Duration,
    away: Duration,
}

impl Default for Inline {
    fn default() -> Self {
        Self { away_until: Duration::ZERO, away: AWAY_MIN }
    }
}

impl Inline {
    /// Whether the next write is made on the thread.
    #[must_use]
    pub fn allowed(&self, now: Duration) -> bool {
        now >= self.away_until
    }

    /// A turn that wrote inline took so long and ended `now`. For how long writes stay away, if that was a stall.
    pub fn took(&mut self, turn: Duration, now: Duration) -> Option<Duration> {
        if turn < STALL {
            return None;
        }
        let again = now.saturating_sub(self.away_until) < self.away && self.away_until > Duration::ZERO;
        self.away = if again { (2 * self.away).min(AWAY_MAX) } else { AWAY_MIN };
        self.away_until = now + self.away;
        Some(self.away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn short_turns_change_nothing() {
        let mut inline = Inline::default();
        assert!(inline.allowed(ms(0)));
        assert_eq!(inline.took(ms(49), ms(100)), None);
        assert!(inline.allowed(ms(100)));
    }

    #[test]
    fn after_a_stall_writes_stay_away_longer_and_longer() {
        let mut inline = Inline::default();
        let mut now = ms(50);
        let mut away = Vec::new();
        for _ in 0..6 {
            let time = inline.took(ms(200), now).expect("a stall");
            assert!(!inline.allowed(now + time - ms(1)) && inline.allowed(now + time));
            away.push(time.as_secs());
            now += time + ms(300);
        }
        assert_eq!(away, [1, 2, 4, 8, 16, 16]);
        now += ms(20_000);
        assert_eq!(inline.took(ms(200), now), Some(AWAY_MIN), "the last one was long ago");
    }
}
