//! How many copies of a rebuild may be in flight, and when the next may start.
//!
//! Two limits, both soft in the same way: they delay copies and never forbid them for ever.
//! - **Bandwidth**: a token bucket of `bytes_per_second`. A copy may overdraw it (a copy is one region, whatever the
//!   limit), and the next waits until the debt is paid.
//! - **Foreground latency**: the number of copies in flight grows by one while clients do not suffer, and is halved when
//!   they do (additive increase, multiplicative decrease, as in TCP and in tigerbeetle's repair budget). Where one at a
//!   time is too much, a rest follows each. What clients see while copies run is compared with what they see with the
//!   fewest: a slow disk is not mistaken for one that is disturbed.
//!
//! The floor is one copy, and three times as long without any: a rebuild always progresses, since a volume with a copy
//! missing is in more danger than a slow one. There is no deadline for the whole. A watchdog says so when a rebuild has
//! not progressed for a while, and what it waits for.
//!
//! Calling order: [`RebuildBudget::may_start`] before each copy, then [`RebuildBudget::started`] and, when it has ended
//! in whichever way, [`RebuildBudget::finished`]; [`RebuildBudget::foreground`] with the latency of clients' operations
//! (each of them or some: it costs a few additions); [`RebuildBudget::next_at`] says when to ask again where time alone
//! decides. One budget serves all that one engine copies.

use std::time::Duration;

/// Time, counted from any fixed moment.
pub type Now = Duration;

/// Clients suffer when what they see is so many times what they see with the fewest copies.
const SUFFERS_AT: f64 = 2.0;
/// Latencies below this do not count as suffering, whatever they are compared with: noise of scheduling. With 1 ms, clients
/// of a quick machine that saw 0.16 ms alone and 0.47 ms beside a rebuild were not heard.
const NOISE: Duration = Duration::from_micros(250);
/// Of a new latency, this part goes into the average.
const WEIGHT: f64 = 1.0 / 16.0;
/// So many latencies make an average worth deciding on.
const SAMPLES_MIN: u32 = 16;
/// A rest lasts at most so many times as long as the copy before it, and at most so long.
const REST_MAX: u32 = 3;
const REST_AT_MOST: Duration = Duration::from_millis(500);
/// Between two changes of the number in flight. Long enough for a change to show in what clients see.
const ADJUST_EVERY: Duration = Duration::from_millis(100);
/// Without an operation of a client for this long, the foreground is idle.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// What the fewest copies cost clients is measured anew this often: loads change.
const BASELINE_EVERY: Duration = Duration::from_secs(10);
/// The bucket holds what the limit lets through in this time: bursts are no longer.
const BURST: Duration = Duration::from_millis(100);
/// Without progress for this long, somebody is told.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Copies in flight at most; at least one.
    pub inflight_max: usize,
    /// Bytes copied per second at most; 0: no limit.
    pub bytes_per_second: u64,
}

/// Why the next copy does not start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// As many as may be are in flight: until one has finished.
    InFlight,
    /// The bandwidth limit: until then.
    Bandwidth {
        /// When the debt is paid.
        until: Now,
    },
    /// Clients have the machine: until then.
    Rest {
        /// When it is over.
        until: Now,
    },
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes per second lately.
    pub bytes_per_second: u64,
    /// What is left takes so long at that rate; none while the rate is not known.
    pub remaining: Option<Duration>,
}

/// An average that follows slowly.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    seconds: f64,
    samples: u32,
}

impl Average {
    fn add(&mut self, latency: Duration) {
        let weight = WEIGHT.max(1.0 / (f64::from(self.samples) + 1.0));
        self.seconds += (latency.as_secs_f64() - self.seconds) * weight;
        self.samples = self.samples.saturating_add(1);
    }
    fn known(&self) -> Option<f64> {
        (self.samples >= SAMPLES_MIN).then_some(self.seconds)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RebuildBudget {
    limits: Limits,
    in_flight: usize,
    /// How many may be in flight now.
    allowed: usize,
    /// How many times its own time each copy is followed by a rest; more than none only with one in flight.
    rest: u32,
    rest_until: Now,
    /// When the one in flight was begun.
    began_at: Now,
    /// Tokens, in bytes; below zero: a debt.
    tokens: f64,
    filled_at: Now,
    /// What clients see with what is allowed now, and with the least that ever is.
    seen: Average,
    baseline: Average,
    baseline_at: Option<Now>,
    adjusted_at: Now,
    heard_at: Option<Now>,
    rate: Rate,
    progressed_at: Now,
    told_stalled: bool,
}

impl RebuildBudget {
    /// A budget that has not copied anything yet. It begins with one copy in flight, so that what clients see with the
    /// fewest is known first.
    #[must_use]
    pub fn new(limits: Limits, now: Now) -> Self {
        let limits = Limits { inflight_max: limits.inflight_max.max(1), ..limits };
        Self {
            limits,
            in_flight: 0,
            allowed: 1,
            rest: 0,
            rest_until: Duration::ZERO,
            began_at: now,
            tokens: 0.0,
            filled_at: now,
            seen: Average::default(),
            baseline: Average::default(),
            baseline_at: None,
            adjusted_at: now,
            heard_at: None,
            rate: Rate::new(now),
            progressed_at: now,
            told_stalled: false,
        }
    }

    /// Other limits from here on.
    pub fn set_limits(&mut self, limits: Limits, now: Now) {
        self.refill(now);
        self.limits = Limits { inflight_max: limits.inflight_max.max(1), ..limits };
        self.allowed = self.allowed.min(self.limits.inflight_max);
        if self.limits.bytes_per_second == 0 {
            self.tokens = 0.0;
        }
    }

    /// Whether a copy may start now.
    pub fn may_start(&mut self, now: Now) -> bool {
        self.held_by(now).is_none()
    }

    /// Why none may start now; none: one may.
    pub fn held_by(&mut self, now: Now) -> Option<Hold> {
        self.adjust(now);
        self.refill(now);
        if self.in_flight >= self.allowed {
            return Some(Hold::InFlight);
        }
        if let Some(until) = self.paid_at().filter(|until| *until > now) {
            return Some(Hold::Bandwidth { until });
        }
        self.is_resting(now).then_some(Hold::Rest { until: self.rest_until })
    }

    /// A copy of so many bytes has started.
    pub fn started(&mut self, bytes: u64, now: Now) {
        self.refill(now);
        if self.in_flight == 0 {
            // What waited with nothing to copy has not stalled.
            self.progressed_at = now;
            self.began_at = now;
        }
        self.in_flight += 1;
        if self.limits.bytes_per_second > 0 {
            self.tokens -= to_f64(bytes);
        }
    }

    /// A copy has ended; `bytes` of it reached the target (0: it failed, or there was nothing to copy).
    pub fn finished(&mut self, bytes: u64, now: Now) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.progressed_at = now;
        self.told_stalled = false;
        self.rate.add(bytes, now);
        self.adjust(now);
        if self.rest > 0 && self.in_flight == 0 {
            let took = now.saturating_sub(self.began_at);
            self.rest_until = now + (took * self.rest).min(REST_AT_MOST);
        }
    }

    /// A client's operation took so long.
    pub fn foreground(&mut self, latency: Duration, now: Now) {
        self.heard_at = Some(now);
        self.seen.add(latency);
        if self.is_least() {
            self.baseline.add(latency);
        }
    }

    /// Whether the next copy waits so that clients have the machine.
    #[must_use]
    pub fn is_resting(&self, now: Now) -> bool {
        self.rest_until > now
    }

    /// When a copy that the bandwidth limit or a rest holds back may start. None: time alone decides nothing.
    #[must_use]
    pub fn next_at(&self) -> Option<Now> {
        // As of when it was asked last.
        let rested_at = self.is_resting(self.filled_at).then_some(self.rest_until);
        self.paid_at().into_iter().chain(rested_at).max()
    }

    /// When the debt of the bandwidth limit is paid.
    fn paid_at(&self) -> Option<Now> {
        let rate = self.limits.bytes_per_second;
        (rate > 0 && self.tokens < 0.0).then(|| {
            // Rounded up, so that the debt is paid when the time has come.
            self.filled_at + Duration::from_secs_f64(-self.tokens / to_f64(rate)) + Duration::from_micros(1)
        })
    }

    /// How many may be in flight now: 1 to the limit.
    #[must_use]
    pub fn allowed(&self) -> usize {
        self.allowed
    }
    /// How many are.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The rate, and how long so many bytes take.
    #[must_use]
    pub fn progress(&self, left_bytes: u64, now: Now) -> Progress {
        let rate = self.rate.per_second(now);
        let remaining = (rate >= 1.0 || left_bytes == 0).then(|| {
            Duration::try_from_secs_f64(to_f64(left_bytes) / rate.max(1.0)).unwrap_or(Duration::MAX)
        });
        Progress { bytes_per_second: to_u64(rate), remaining }
    }

    /// Says once that there was no progress for [`STALLED_AFTER`], and what is waited for. `source` and `target` are how
    /// the caller names the two; it asks while there is something left to copy.
    pub fn stalled(&mut self, source: &str, target: &str, now: Now) -> Option<String> {
        let waited = now.saturating_sub(self.progressed_at);
        if waited < STALLED_AFTER || self.told_stalled {
            return None;
        }
        self.told_stalled = true;
        let what = match (self.in_flight, self.paid_at().filter(|until| *until > now)) {
            (0, Some(until)) => format!(
                "the bandwidth limit of {} bytes/s, for another {} s",
                self.limits.bytes_per_second,
                until.saturating_sub(now).as_secs()
            ),
            (0, None) => "a copy to be begun: operations of clients in that range go first".to_owned(),
            (count, _) => format!("{source} and {target} to answer (copies in flight: {count})"),
        };
        Some(format!("no progress for {} s: it waits for {what}", waited.as_secs()))
    }

    fn refill(&mut self, now: Now) {
        let rate = to_f64(self.limits.bytes_per_second);
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        self.tokens = (self.tokens + passed * rate).min(rate * BURST.as_secs_f64());
    }

    /// Grows or shrinks the number in flight, now and then.
    fn adjust(&mut self, now: Now) {
        if now.saturating_sub(self.adjusted_at) < ADJUST_EVERY {
            return;
        }
        if self.heard_at.is_none_or(|at| now.saturating_sub(at) >= IDLE_AFTER) {
            self.adjusted_at = now;
            self.seen = Average::default();
            self.allow(self.allowed * 2, 0);
            return;
        }
        let Some(seen) = self.seen.known() else { return };
        self.adjusted_at = now;
        self.seen = Average::default();
        if self.is_least() {
            self.baseline_at = self.baseline_at.or(Some(now));
        }
        let due = self.baseline_at.is_none_or(|at| now.saturating_sub(at) >= BASELINE_EVERY);
        let Some(baseline) = self.baseline.known().filter(|_| !due) else {
            // The measuring itself takes a part of a second.
            self.baseline = Average::default();
            self.baseline_at = None;
            self.allow(1, REST_MAX);
            return;
        };
        let suffers = seen > (baseline * SUFFERS_AT).max(NOISE.as_secs_f64());
        match (suffers, self.allowed) {
            (true, 1) => self.allow(1, (2 * self.rest + 1).min(REST_MAX)),
            (true, _) => self.allow(self.allowed / 2, 0),
            (false, _) if self.rest > 0 => self.allow(1, self.rest / 2),
            (false, _) => self.allow(self.allowed + 1, 0),
        }
    }

    fn allow(&mut self, count: usize, rest: u32) {
        self.allowed = count.clamp(1, self.limits.inflight_max);
        self.rest = rest;
        if rest == 0 {
            self.rest_until = Duration::ZERO;
        }
    }

    fn is_least(&self) -> bool {
        self.allowed == 1 && self.rest == REST_MAX
    }
}

/// Bytes per second over the last few seconds.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    bytes: f64,
    since: Now,
    known: bool,
}

/// Over how long the rate is counted before it goes into the average.
const RATE_OVER: Duration = Duration::from_secs(1);

impl Rate {
    fn new(now: Now) -> Self {
        Self { per_second: 0.0, bytes: 0.0, since: now, known: false }
    }
    fn add(&mut self, bytes: u64, now: Now) {
        self.bytes += to_f64(bytes);
        let passed = now.saturating_sub(self.since);
        if passed >= RATE_OVER {
            self.per_second = self.per_second(now);
            self.known = true;
            (self.bytes, self.since) = (0.0, now);
        }
    }
    fn per_second(&self, now: Now) -> f64 {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        if !self.known {
            return if passed > 0.0 { self.bytes / passed } else { 0.0 };
        }
        // A part of a second says little; many seconds without anything say that the old rate is over.
        let weight = (passed / 4.0).min(1.0);
        let lately = if passed > 0.0 { self.bytes / passed } else { self.per_second };
        self.per_second + (lately - self.per_second) * weight
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are beyond any rebuild, and a rate is not exact")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and a rate is not negative"
)]
fn to_u64(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
#[path = "rebuild_budget_tests.rs"]
mod tests;
