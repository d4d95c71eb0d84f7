//! Orphans as operators and metrics see them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::State;
use super::voice::End;
use super::{Class, Hold, Moment, Settings, Subject, Tracker};

/// One orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Which.
    pub subject: Subject,
    /// `orphaned` while its time counts, or what keeps it.
    pub state: &'static str,
    /// Why.
    pub reason: String,
    /// What is left of the grace period.
    pub remaining: Duration,
    /// For how long it is confirmed that nobody claims it.
    pub confirmed: Duration,
    /// How long ago that was confirmed last; none: not since this agent started.
    pub last_confirmed_ago: Option<Duration>,
    /// Who keeps it.
    pub hold: Hold,
    /// Whether its class is cleaned at all.
    pub auto_cleanup: bool,
}

/// What became of orphans since this agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Cleaned, by the agent or by a person's word.
    pub cleaned: u64,
    /// Claimed again before that.
    pub cancelled: u64,
}

/// The numbers of all orphans.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// How many there are, by class and state.
    pub count: BTreeMap<(Class, &'static str), u64>,
    /// Of the one that is confirmed for longest, for how long.
    pub oldest: BTreeMap<Class, Duration>,
    /// By class, how many the breaker holds.
    pub held_by_breaker: BTreeMap<Class, u64>,
    /// By class.
    pub totals: BTreeMap<Class, Totals>,
}

/// Every word that a [`super::Notice`] says a thing has become.
pub const TRANSITIONS: [&str; 9] = [
    State::Counting.as_str(),
    State::Frozen.as_str(),
    State::Busy.as_str(),
    State::Kept.as_str(),
    State::Held.as_str(),
    State::Cleaning.as_str(),
    End::Claimed.as_str(),
    End::Cleaned.as_str(),
    End::Gone.as_str(),
];

impl Tracker {
    /// Every orphan, by class and name.
    pub fn orphans<'a>(&'a self, settings: &'a Settings, now: Moment) -> impl Iterator<Item = Orphan> + 'a {
        self.entries.keys().filter_map(move |subject| self.orphan(subject, settings, now))
    }

    /// One orphan.
    #[must_use]
    pub fn orphan(&self, subject: &Subject, settings: &Settings, now: Moment) -> Option<Orphan> {
        let entry = self.entries.get(subject)?;
        Some(Orphan {
            subject: subject.clone(),
            state: entry.state().map(State::as_str)?,
            reason: entry.why(),
            remaining: entry.remaining(settings.grace),
            confirmed: entry.confirmed,
            last_confirmed_ago: entry.last_confirmed.map(|at| now.saturating_sub(at)),
            hold: entry.hold,
            auto_cleanup: settings.auto_cleanup.contains(&subject.class),
        })
    }

    /// For metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { totals: self.totals.clone(), ..Stats::default() };
        for (subject, entry) in &self.entries {
            let Some(state) = entry.state() else { continue };
            *stats.count.entry((subject.class, state.as_str())).or_default() += 1;
            let oldest = stats.oldest.entry(subject.class).or_default();
            *oldest = entry.confirmed.max(*oldest);
            if entry.hold == Hold::Breaker {
                *stats.held_by_breaker.entry(subject.class).or_default() += 1;
            }
        }
        stats
    }
}
