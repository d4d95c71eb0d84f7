//! What is worth a line: one for each change of a thing's state, and for one thing at most one a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::State;
use super::{Class, Moment, Settings, Subject, Tracker};

/// Between two lines about the same thing. What changes meanwhile is told as it then is.
const QUIET: Duration = Duration::from_secs(60);

/// How an orphan ceased to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Claimed,
    Cleaned,
    Gone,
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Cleaned => "cleaned",
            Self::Gone => "gone",
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Of what.
    pub subject: Subject,
    /// The state it was last said to be in; empty: none.
    pub from: &'static str,
    /// The state it is in.
    pub to: &'static str,
    /// Why.
    pub reason: String,
    /// What is left of its grace period.
    pub remaining: Duration,
}

/// What was said of each thing, and when.
#[derive(Debug, Default)]
pub(super) struct Voice {
    said: BTreeMap<Subject, (&'static str, Moment)>,
    ended: BTreeMap<Subject, End>,
}

impl Voice {
    pub(super) fn ended(&mut self, subject: &Subject, end: End) {
        self.ended.insert(subject.clone(), end);
    }

    /// Whether this is news, and may be said.
    fn tells(&mut self, subject: &Subject, to: &'static str, now: Moment) -> Option<&'static str> {
        let (from, at) = self.said.get(subject).copied().unwrap_or_default();
        let quiet = !from.is_empty() && now.saturating_sub(at) < QUIET;
        // That something is ended is said whatever was said before; it happens once.
        if from == to || (quiet && to != State::Cleaning.as_str()) {
            return None;
        }
        self.said.insert(subject.clone(), (to, now));
        Some(from)
    }
}

impl Tracker {
    pub(super) fn speak(&mut self, class: Class, settings: &Settings, now: Moment) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (subject, entry) in self.entries.iter().filter(|(subject, _)| subject.class == class) {
            self.voice.ended.remove(subject);
            let Some(to) = entry.state().map(State::as_str) else { continue };
            if let Some(from) = self.voice.tells(subject, to, now) {
                let (reason, remaining) = (entry.why(), entry.remaining(settings.grace));
                notices.push(Notice { subject: subject.clone(), from, to, reason, remaining });
            }
        }
        let ended: Vec<_> = self.voice.ended.iter().map(|(subject, end)| (subject.clone(), *end)).collect();
        for (subject, end) in ended.into_iter().filter(|(subject, _)| subject.class == class) {
            let to = end.as_str();
            if let Some(from) = self.voice.tells(&subject, to, now) {
                let (reason, remaining) = (String::new(), Duration::ZERO);
                notices.push(Notice { subject, from, to, reason, remaining });
            }
        }
        self.forget_what_was_said(class, now);
        notices
    }

    /// What is gone and was told to be needs no memory once it could be told of again.
    fn forget_what_was_said(&mut self, class: Class, now: Moment) {
        let Voice { said, ended } = &mut self.voice;
        let over = |subject: &Subject| {
            subject.class == class && said.get(subject).is_none_or(|(_, at)| now.saturating_sub(*at) >= QUIET)
        };
        let forgotten: Vec<_> = ended.keys().filter(|subject| over(subject)).cloned().collect();
        for subject in forgotten {
            said.remove(&subject);
            ended.remove(&subject);
        }
    }
}
