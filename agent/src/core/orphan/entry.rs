//! One orphan: how long it has been confirmed that nobody claims it, and what keeps it.

use std::time::Duration;

use holdfast_proto::unknown::Unknown;
use serde::{Deserialize, Serialize};

use super::{Class, MAX_STALENESS, Moment, READ_APART, Settings, Standing};

/// Who keeps an orphan, whatever its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Nobody.
    #[default]
    No,
    /// A person.
    Person,
    /// It turned orphan together with too many others, or what was known of it is lost.
    Breaker,
    /// Nobody, by a person's word: the breaker does not hold it again.
    Released,
}

/// What an orphan looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Counting,
    Frozen,
    Busy,
    Kept,
    Held,
    Cleaning,
}

impl State {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Counting => "orphaned",
            Self::Frozen => "orphaned-unknown",
            Self::Busy => "orphaned-busy",
            Self::Kept => "orphaned-kept",
            Self::Held => "orphaned-held",
            Self::Cleaning => "cleaning",
        }
    }
}

/// How far the cleaning of an orphan is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cleaning {
    No,
    Asked,
    Failed { why: String, retry_at: Moment },
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// For how long it is confirmed; only grows while the entry is there.
    pub(super) confirmed: Duration,
    pub(super) hold: Hold,
    /// What a newer build saved of it.
    pub(super) unknown: Unknown,
    /// The last answer that said unclaimed, of all this agent has seen.
    pub(super) last_confirmed: Option<Moment>,
    /// The same, where nothing else was heard since: from here on time may count.
    counting_from: Option<Moment>,
    /// Consecutive answers that said unclaimed.
    answers: u32,
    /// Why nobody claims it, or why that is not known.
    pub(super) reason: String,
    standing: Standing,
    cleaning: Cleaning,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            confirmed: Duration::ZERO,
            hold: Hold::No,
            unknown: Unknown::default(),
            last_confirmed: None,
            counting_from: None,
            answers: 0,
            reason: "not looked at yet".to_owned(),
            standing: Standing::Idle,
            cleaning: Cleaning::No,
        }
    }
}

impl Entry {
    /// As an earlier agent left it.
    pub(super) fn restored(confirmed: Duration, hold: Hold, unknown: Unknown) -> Self {
        Self { confirmed, hold, unknown, ..Self::default() }
    }

    /// An answer of this moment says that nobody claims it.
    pub(super) fn unclaimed(&mut self, at: Moment, reason: &str, standing: &Standing) {
        self.standing.clone_from(standing);
        reason.clone_into(&mut self.reason);
        match self.counting_from {
            // The same answer again, or an older one, confirms nothing more.
            Some(before) if at <= before => return,
            Some(before) if at.saturating_sub(before) <= MAX_STALENESS => {
                self.confirmed += at.saturating_sub(before);
                self.answers = self.answers.saturating_add(1);
            }
            Some(_) | None => self.answers = 1,
        }
        self.counting_from = Some(at);
        self.last_confirmed = Some(at);
    }

    /// Nobody knows whether it is claimed.
    pub(super) fn unknown(&mut self, reason: &str) {
        self.counting_from = None;
        self.answers = 0;
        reason.clone_into(&mut self.reason);
    }

    /// It is on its way up or down.
    pub(super) fn exempt(&mut self) {
        self.standing = Standing::Exempt;
        self.counting_from = None;
        self.answers = 0;
    }

    pub(super) fn clean(&mut self) {
        self.cleaning = Cleaning::Asked;
    }

    pub(super) fn failed(&mut self, why: &str, retry_at: Moment) {
        self.cleaning = Cleaning::Failed { why: why.to_owned(), retry_at };
    }

    pub(super) fn is_cleaning(&self) -> bool {
        self.cleaning == Cleaning::Asked
    }

    /// Whether it is one of those that turned orphan within the last grace period, which nobody has vouched for.
    pub(super) fn turned_within(&self, grace: Duration) -> bool {
        self.confirmed <= grace && self.hold != Hold::Released
    }

    pub(super) fn break_off(&mut self) {
        if self.hold == Hold::No && !self.is_cleaning() {
            self.hold = Hold::Breaker;
        }
    }

    /// Whether an answer of this moment is newer than all that were heard.
    pub(super) fn confirmed_before(&self, at: Moment) -> bool {
        self.last_confirmed.is_some_and(|before| before < at)
    }

    /// None: it is in no state in which it can be an orphan.
    pub(super) fn state(&self) -> Option<State> {
        if self.is_cleaning() {
            return Some(State::Cleaning);
        }
        if matches!(self.hold, Hold::Person | Hold::Breaker) {
            return Some(State::Held);
        }
        match (&self.standing, self.counting_from) {
            (Standing::Exempt, _) => None,
            (_, None) => Some(State::Frozen),
            (Standing::Kept(_), _) => Some(State::Kept),
            (Standing::Busy(_), _) => Some(State::Busy),
            (Standing::Idle, _) => Some(State::Counting),
        }
    }

    /// Why it is in that state.
    pub(super) fn why(&self) -> String {
        if let Cleaning::Failed { why, .. } = &self.cleaning {
            return format!("it could not be cleaned: {why}");
        }
        match (&self.hold, &self.standing) {
            _ if self.is_cleaning() => self.reason.clone(),
            (Hold::Person, _) => format!("held by a person; {}", self.reason),
            (Hold::Breaker, _) => {
                format!("held: too many turned orphan at once, or its history is lost; {}", self.reason)
            }
            (_, Standing::Busy(why) | Standing::Kept(why)) if self.counting_from.is_some() => {
                format!("{why}; {}", self.reason)
            }
            (Hold::No | Hold::Released, _) => self.reason.clone(),
        }
    }

    pub(super) fn remaining(&self, grace: Duration) -> Duration {
        grace.saturating_sub(self.confirmed)
    }

    pub(super) fn is_due(&self, class: Class, settings: &Settings, now: Moment) -> bool {
        let retry = !matches!(self.cleaning, Cleaning::Failed { retry_at, .. } if now < retry_at);
        let fresh = self.counting_from.is_some_and(|at| now.saturating_sub(at) <= MAX_STALENESS);
        // Strictly more than the grace period, and never on one answer alone.
        let over = self.confirmed > settings.grace && self.answers >= 2;
        settings.auto_cleanup.contains(&class)
            && self.state() == Some(State::Counting)
            && retry
            && fresh
            && over
    }

    pub(super) fn next_at(&self, class: Class, settings: &Settings) -> Option<Moment> {
        let counting = settings.auto_cleanup.contains(&class) && self.state() == Some(State::Counting);
        let from = self.counting_from.filter(|_| counting && self.confirmed <= settings.grace)?;
        Some(from + (self.remaining(settings.grace) + Duration::from_millis(1)).max(READ_APART))
    }
}
