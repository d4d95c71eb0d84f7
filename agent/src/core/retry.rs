//! When the steps of a volume that failed are tried again: soon at first, then ever more rarely, and never by so many
//! volumes at once that the healthy ones wait for them.
//!
//! What fails is tried again because the plan still wants it, and plans are made for many reasons: without a limit each
//! event of a busy node would be one more attempt at what cannot work. The limits are two: per volume three attempts
//! at once, then delays that double from one second to a minute, each a little different so that volumes that failed
//! together part; for all of them together a bucket, from which those that waited longest take first. A new wish for
//! a volume is tried at once, and so is the first attempt of everything.
//!
//! Calling order: [`Retries::hold_back`] with all that want an attempt, then for each that had one [`Retries::failed`] or
//! [`Retries::succeeded`]; [`Retries::next_at`] says when a wait is over.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use holdfast_proto::ids::VolumeName;
use holdfast_proto::record::VolumeSpec;

use super::Moment;

/// Attempts without a delay between them.
const BURST: u32 = 3;
/// The first delay.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// No delay is longer, but for what spreads them.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// An agent that was started again knows nothing of failures before: what fails so soon has no burst once more.
const CAUTIOUS_FOR: Duration = Duration::from_secs(60);
/// Second attempts and later ones of all volumes together, per second (a guess: each is a few calls of the registry or
/// the disk, and a tenth of a second of each second is left to them).
const ALL_PER_SECOND: u32 = 10;
/// So many of them at once after a quiet time.
const ALL_AT_ONCE: u32 = 20;
/// Those that found the bucket empty come again together: looking costs a listing of the registry.
const REFILLED_AFTER: Duration = Duration::from_secs(1);
/// One volume's failures are said at most so often.
const SAY_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Failing {
    wish: VolumeSpec,
    reason: String,
    failures: u32,
    retry_at: Moment,
    said_at: Moment,
}

/// What failed and waits.
#[derive(Debug, Clone)]
pub struct Retries {
    failing: BTreeMap<VolumeName, Failing>,
    started: Moment,
    /// How much of the common bucket is gone, in attempts; it refills with time.
    spent: f64,
    spent_at: Moment,
    /// Some that were due found the bucket empty.
    refused: bool,
}

impl Retries {
    /// Of an agent that starts now.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self { failing: BTreeMap::new(), started: now, spent: 0.0, spent_at: now, refused: false }
    }

    /// Which of these may not have an attempt now. `wishes` are all there are: what nobody wishes any more, or wishes
    /// otherwise, is forgotten.
    #[must_use]
    pub fn hold_back<'a>(
        &mut self,
        wishes: &BTreeMap<&VolumeName, &VolumeSpec>,
        wanting: impl IntoIterator<Item = &'a VolumeName>,
        now: Moment,
    ) -> BTreeSet<VolumeName> {
        self.failing.retain(|name, failing| wishes.get(name).is_some_and(|wish| **wish == failing.wish));
        let at = |name: &'a VolumeName| Some((self.failing.get(name)?.retry_at, name.clone()));
        let failing: Vec<_> = wanting.into_iter().filter_map(at).collect();
        let (mut due, early): (Vec<_>, Vec<_>) = failing.into_iter().partition(|(at, _)| *at <= now);
        due.sort();
        let refused: Vec<_> = due.into_iter().filter(|_| !self.take(now)).collect();
        self.refused = !refused.is_empty();
        early.into_iter().chain(refused).map(|(_, name)| name).collect()
    }

    /// An attempt for `wish` failed. Returns whether that is worth a line in the log.
    pub fn failed(&mut self, name: &VolumeName, wish: &VolumeSpec, reason: &str, now: Moment) -> bool {
        let cautious = now.saturating_sub(self.started) < CAUTIOUS_FOR;
        let new = !self.failing.contains_key(name);
        let failing = self.failing.entry(name.clone()).or_insert_with(|| Failing {
            wish: wish.clone(),
            reason: String::new(),
            failures: if cautious { BURST - 1 } else { 0 },
            retry_at: now,
            said_at: now,
        });
        failing.failures = failing.failures.saturating_add(1);
        failing.retry_at = now + delay(name, failing.failures);
        let say = new || (failing.reason != reason && now.saturating_sub(failing.said_at) >= SAY_EVERY);
        if say {
            failing.said_at = now;
            reason.clone_into(&mut failing.reason);
        }
        say
    }

    /// An attempt did what it should.
    pub fn succeeded(&mut self, name: &VolumeName) {
        self.failing.remove(name);
    }

    /// How many volumes failed, and are tried again.
    #[must_use]
    pub fn failing(&self) -> usize {
        self.failing.len()
    }

    /// When to look again. One that is due and did not want its attempt waits for an event, not for time.
    #[must_use]
    pub fn next_at(&self, now: Moment) -> Option<Moment> {
        let waits = self.failing.values().map(|failing| failing.retry_at).filter(|at| *at > now);
        let refilled = self.refused.then_some(now + REFILLED_AFTER);
        waits.chain(refilled).min()
    }

    /// Takes one from the common bucket, if there is one.
    fn take(&mut self, now: Moment) -> bool {
        let since = now.saturating_sub(self.spent_at).as_secs_f64();
        self.spent = (self.spent - since * f64::from(ALL_PER_SECOND)).max(0.0);
        self.spent_at = now;
        let there = self.spent + 1.0 <= f64::from(ALL_AT_ONCE);
        if there {
            self.spent += 1.0;
        }
        there
    }
}

/// After so many failures. Up to a fifth more or less, by name and count: the same for the same, so that a plan can be
/// repeated.
fn delay(name: &VolumeName, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(BURST) else { return Duration::ZERO };
    let whole = DELAY_MIN.saturating_mul(1 << doublings.min(6)).min(DELAY_MAX);
    let mut hasher = DefaultHasher::new();
    (name, failures).hash(&mut hasher);
    let spread = u32::try_from(hasher.finish() % 401).unwrap_or_default();
    (whole * (800 + spread) / 1000).max(DELAY_MIN)
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
