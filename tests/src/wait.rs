//! Waiting for events: always with a deadline, never for a length of time.

use std::time::{Duration, Instant};

/// For deadlines: `30 * SECOND`.
pub const SECOND: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(15);

/// Asks `probe` until it succeeds, and gives what it found.
///
/// # Panics
/// When it has not succeeded by the deadline, with what it said last.
pub fn eventually<T>(deadline: Duration, what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    match eventually_or(deadline, probe) {
        Ok(found) => found,
        Err(last) => panic!("not within {deadline:?}: {what}; last seen: {last}"),
    }
}

/// Like [`eventually`], for callers that go on without it.
///
/// # Errors
/// What the probe said last, at the deadline.
pub fn eventually_or<T>(
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    loop {
        match probe() {
            Ok(found) => return Ok(found),
            Err(last) if Instant::now() >= end => return Err(last),
            Err(_) => poll_pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the interval between two questions; the deadline is the caller's"
)]
fn poll_pause() {
    std::thread::sleep(POLL_INTERVAL);
}

/// `condition`, as a probe: `Err(why)` until it holds.
///
/// # Errors
/// `why()`, where it does not hold.
pub fn check(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}
