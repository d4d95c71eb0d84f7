//! How much of a trim or zeroing goes at a time, by the time that the last steps took.
//!
//! While a file system frees or zeroes a range, it lets no write to the same file through, and nobody knows beforehand how
//! long it takes: 64 MiB are microseconds where they are one extent, and seconds where they are thousands. So a step is
//! grown while it costs hardly more than the quickest one lately, which is what the way there and back costs, and halved
//! as soon as it costs more. Writes of others wait for one step at most.

use std::time::Duration;

/// Time, counted from any fixed moment.
pub type Now = Duration;

/// The first step, and the least: eight extents of the finest kind, that of every other block.
pub const STEP_BYTES_MIN: u64 = 64 * 1024;
/// The most: what clients' requests are cut into.
pub const STEP_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// So much longer than the quickest a step may take. About what a small write takes that goes to all members.
const GRACE: Duration = Duration::from_micros(500);
/// The quickest is measured anew this often: disks and networks change.
const QUICKEST_FOR: Duration = Duration::from_secs(10);
/// After a step beyond this others go first for as long as it took, and at most so long.
const SLOW: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone)]
pub struct ZeroSteps {
    bytes: u64,
    quickest: Option<(Duration, Now)>,
}

impl Default for ZeroSteps {
    fn default() -> Self {
        Self { bytes: STEP_BYTES_MIN, quickest: None }
    }
}

impl ZeroSteps {
    /// How much of so many bytes goes next.
    #[must_use]
    pub fn next(&self, left_bytes: u64) -> u64 {
        self.bytes.min(left_bytes)
    }

    /// A step of so many bytes took so long and ended `now`. For how long others go first.
    pub fn took(&mut self, bytes: u64, time: Duration, now: Now) -> Option<Duration> {
        let quickest = match self.quickest {
            Some((quickest, since)) if now.saturating_sub(since) < QUICKEST_FOR => quickest.min(time),
            // Only the least step tells what the way costs.
            Some(_) if bytes > STEP_BYTES_MIN => {
                (self.bytes, self.quickest) = (STEP_BYTES_MIN, None);
                return rest(time);
            }
            Some(_) | None => {
                self.quickest = Some((time, now));
                time
            }
        };
        self.quickest = self.quickest.map(|(_, since)| (quickest, since));
        if time > quickest + GRACE {
            self.bytes = (bytes / 2).next_multiple_of(STEP_BYTES_MIN).clamp(STEP_BYTES_MIN, self.bytes);
        } else if bytes >= self.bytes {
            self.bytes = (self.bytes * 2).min(STEP_BYTES_MAX);
        }
        rest(time)
    }
}

fn rest(time: Duration) -> Option<Duration> {
    (time > SLOW).then(|| time.min(REST_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a disk that takes so long for the way and for each MiB, until so many bytes are done: the longest after
    /// the first few, and how many there were.
    fn steps(way: Duration, per_mib: Duration, bytes: u64) -> (Duration, u32) {
        let (mut steps, mut now, mut done) = (ZeroSteps::default(), Duration::ZERO, 0);
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while done < bytes {
            let step = steps.next(bytes - done);
            let time = way + per_mib.mul_f64(f64::from(u32::try_from(step).unwrap()) / 1_048_576.0);
            now += time;
            let rest = steps.took(step, time, now);
            now += rest.unwrap_or_default();
            (done, count) = (done + step, count + 1);
            longest = longest.max(time);
        }
        (longest, count)
    }

    #[test]
    fn what_costs_nothing_goes_in_large_steps() {
        let way = Duration::from_millis(1);
        let (_, count) = steps(way, Duration::ZERO, 4 << 30);
        assert!(count < 64 + 20, "{count}");
    }

    #[test]
    fn what_takes_long_goes_in_steps_of_about_the_grace() {
        let way = Duration::from_micros(200);
        for per_mib in [1, 5, 7].map(Duration::from_millis) {
            let (longest, _) = steps(way, per_mib, 256 << 20);
            let least = way + per_mib / 16;
            assert!(longest <= (least + GRACE) * 3, "{per_mib:?} a MiB: {longest:?}");
        }
    }

    #[test]
    fn a_slow_step_is_followed_by_a_rest_as_long() {
        let mut steps = ZeroSteps::default();
        let took =
            |steps: &mut ZeroSteps, ms| steps.took(STEP_BYTES_MIN, Duration::from_millis(ms), Duration::ZERO);
        assert_eq!(took(&mut steps, 50), None);
        assert_eq!(took(&mut steps, 300), Some(Duration::from_millis(300)));
        assert_eq!(took(&mut steps, 60_000), Some(REST_MAX));
        assert_eq!(steps.next(u64::MAX), STEP_BYTES_MIN);
    }

    #[test]
    fn the_quickest_is_measured_anew_with_the_least_step() {
        let (mut steps, mut now) = (ZeroSteps::default(), Duration::ZERO);
        // The way has become longer than the grace allows.
        steps.took(STEP_BYTES_MIN, Duration::from_micros(100), now);
        let slower = Duration::from_millis(3);
        for _ in 0..5000 {
            now += slower;
            steps.took(steps.next(u64::MAX), slower, now);
        }
        assert!(steps.next(u64::MAX) > 1 << 20, "{}", steps.next(u64::MAX));
    }
}
