//! What nobody claims: how long that has been confirmed, and when a thing may be cleaned. Nothing is cleaned on a doubt.
//!
//! The shell reads the records and what is on the node, and hands each [`Reading`] to [`Tracker::observe`]. Time counts
//! only between two consecutive readings that both said unclaimed; anything else stops it, a claim ends it. What
//! [`Tracker::due`] names is read once more, and only where [`Tracker::confirm`] says yes is exactly that creation
//! cleaned. Before that and after it, what [`Tracker::save`] gives is made durable. There is no wall clock in here: no
//! jump of it can change anything, and the time in which no agent ran confirms nothing.

mod entry;
mod report;
mod saved;
mod sight;
mod voice;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use holdfast_proto::unknown::Unknown;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::entry::Entry;
use self::voice::{End, Voice};
use super::Moment;
use super::claims::Claim;

pub use entry::Hold;
pub use report::{Orphan, Stats, TRANSITIONS, Totals};
pub use saved::{SCHEMA, Saved, SavedOrphan};
pub use sight::{Copy, data, instances, is_spared};
pub use voice::Notice;

/// An answer that is older says nothing any more, and nothing is known of the time between two that are further apart.
pub const MAX_STALENESS: Duration = Duration::from_secs(60);
/// A thing that had a peer or I/O so lately is in use.
pub const BUSY_WITHIN: Duration = Duration::from_secs(30);
/// Progress alone is written no more often: a crash loses this much of it at most, so that things are held longer.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// What could not be cleaned is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Two readings closer than this are no two readings.
const READ_APART: Duration = Duration::from_secs(1);
/// So many may turn orphan within one grace period on any node...
const BREAKER_MIN: usize = 3;
/// ...and one in so many of what is there.
const BREAKER_SHARE: usize = 5;

/// The kinds of things that can be orphans; each has its own switch and its own times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A process. Cleaning stops it and deletes no byte of data.
    Instance,
    /// A replica directory. Cleaning moves it to the trash.
    ReplicaData,
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Instance, Self::ReplicaData];

    /// As the configuration and the inventory say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::ReplicaData => "replica-data",
        }
    }
}
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for Class {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not a class of orphans: expected instance or replica-data"))
    }
}

/// One thing: a creation, not whatever has its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// What it is.
    pub class: Class,
    /// The name of an instance, or of a replica directory.
    pub name: String,
    /// The instance's creation, or the volume that a directory's label names.
    pub uuid: Uuid,
}
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.class, self.name, self.uuid)
    }
}

/// Whether a thing that nobody claims could be cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is in no state in which it can be an orphan: on its way up or down, or without an identity.
    Exempt,
    /// Nothing speaks for it.
    Idle,
    /// Somebody uses it: by what that shows.
    Busy(String),
    /// It is data that is not given up by itself: it may be a last copy, or a person has marked it.
    Kept(String),
}

/// One thing as it was seen, and what the records said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub subject: Subject,
    /// Whose.
    pub claim: Claim,
    /// Why.
    pub reason: String,
    /// Whether it could be cleaned.
    pub standing: Standing,
}

/// Every thing of one class that exists on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Of which class.
    pub class: Class,
    /// When the records were asked for: what they said may have been over since.
    pub asked_at: Moment,
    /// All of them.
    pub sightings: Vec<Sighting>,
}

/// What operators decide; it may change at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The classes that are cleaned at all.
    pub auto_cleanup: BTreeSet<Class>,
    /// For how long it must have been confirmed that nobody claims a thing; more than exactly this.
    pub grace: Duration,
}
impl Default for Settings {
    fn default() -> Self {
        Self { auto_cleanup: BTreeSet::new(), grace: Duration::from_secs(300) }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tracker {
    entries: BTreeMap<Subject, Entry>,
    /// When the newest answer of each class was asked for: one that comes after it and is older says nothing.
    newest: BTreeMap<Class, Moment>,
    /// Of these what was known is lost, so what turns out to be unclaimed may have been held by a person.
    lost: BTreeSet<Class>,
    /// When the last copy of a volume was given up: another of it only after an answer that was asked for later.
    given_up: BTreeMap<Uuid, Moment>,
    voice: Voice,
    totals: BTreeMap<Class, Totals>,
    /// What a newer build saved of all of them.
    unknown: Unknown,
    unsaved: bool,
    saved_at: Option<Moment>,
}

impl Tracker {
    /// Takes in what one class looks like now. Returns what is worth a line.
    pub fn observe(&mut self, reading: &Reading, settings: &Settings, now: Moment) -> Vec<Notice> {
        if now.saturating_sub(reading.asked_at) > MAX_STALENESS {
            return self.unread(reading.class, "the last answer is too old", settings, now);
        }
        if self.newest.get(&reading.class).is_some_and(|newest| reading.asked_at <= *newest) {
            return self.speak(reading.class, settings, now);
        }
        self.forget_the_gone(reading);
        let mut turned = Vec::new();
        for sighting in &reading.sightings {
            if self.take_in(sighting, reading.asked_at) {
                turned.push(sighting.subject.clone());
            }
        }
        if !turned.is_empty() {
            self.check_the_breaker(reading, &turned, settings);
        }
        if reading.sightings.iter().all(|sighting| sighting.claim != Claim::Unknown) {
            self.lost.remove(&reading.class);
        }
        self.speak(reading.class, settings, now)
    }

    /// Whether there is nothing to remember of anything: all that was seen last has an owner.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.lost.is_empty()
    }

    /// What exists of a class could not be read: no time counts until it can.
    pub fn unread(&mut self, class: Class, reason: &str, settings: &Settings, now: Moment) -> Vec<Notice> {
        for (_, entry) in self.entries.iter_mut().filter(|(subject, _)| subject.class == class) {
            entry.unknown(reason);
        }
        self.speak(class, settings, now)
    }

    /// What has been unclaimed for more than the grace period, and is to be read once more. Of a volume's copies one at
    /// a time: the next is due when what is left was looked at without it.
    #[must_use]
    pub fn due(&self, settings: &Settings, now: Moment) -> Vec<Subject> {
        let mut volumes = BTreeSet::new();
        let due = self.entries.iter().filter(|(subject, entry)| entry.is_due(subject.class, settings, now));
        let due = due.map(|(subject, _)| subject).filter(|subject| self.may_be_given_up(subject, now));
        due.filter(|subject| subject.class == Class::Instance || volumes.insert(subject.uuid))
            .cloned()
            .collect()
    }

    /// Whether an answer of this moment may give up a copy: it is newer than the last copy of the volume that went, and
    /// none is on its way.
    fn may_be_given_up(&self, subject: &Subject, asked_at: Moment) -> bool {
        let other = |(known, entry): (&Subject, &Entry)| {
            known != subject
                && known.class == subject.class
                && known.uuid == subject.uuid
                && entry.is_cleaning()
        };
        subject.class == Class::Instance
            || (self.given_up.get(&subject.uuid).is_none_or(|at| *at < asked_at)
                && !self.entries.iter().any(other))
    }

    /// What the last look, newer than all before, says of a thing that is due. True: it is to be cleaned now, and will
    /// not be named again.
    pub fn confirm(
        &mut self,
        sighting: &Sighting,
        asked_at: Moment,
        settings: &Settings,
        now: Moment,
    ) -> bool {
        let subject = &sighting.subject;
        let Some(entry) = self.entries.get(subject) else { return false };
        let fresh = now.saturating_sub(asked_at) <= MAX_STALENESS && entry.confirmed_before(asked_at);
        let next = self.may_be_given_up(subject, asked_at);
        if !fresh || !next || !entry.is_due(subject.class, settings, now) {
            return false;
        }
        self.take_in(sighting, asked_at);
        let Some(entry) = self.entries.get_mut(subject) else { return false };
        let cleaned = entry.is_due(subject.class, settings, now);
        if cleaned {
            entry.clean();
            self.note_given_up(&sighting.subject, now);
        }
        cleaned
    }

    /// A person deletes a thing, which ignores its grace period but not its owner.
    ///
    /// # Errors
    /// Why not.
    pub fn delete(&mut self, sighting: &Sighting, asked_at: Moment) -> Result<(), String> {
        self.take_in(sighting, asked_at);
        match sighting.claim {
            Claim::Claimed => Err(format!("it is claimed: {}", sighting.reason)),
            Claim::Unknown => Err(format!("whether it is claimed cannot be known: {}", sighting.reason)),
            Claim::Unclaimed => match self.entries.get_mut(&sighting.subject) {
                Some(entry) => {
                    entry.clean();
                    self.unsaved = true;
                    self.note_given_up(&sighting.subject, asked_at);
                    Ok(())
                }
                None => Err("it is starting or ending".to_owned()),
            },
        }
    }

    /// What was to be cleaned could not be; it is an orphan as before, and is tried again later.
    pub fn failed(&mut self, subject: &Subject, why: &str, now: Moment) {
        if let Some(entry) = self.entries.get_mut(subject) {
            entry.failed(why, now + RETRY_AFTER);
        }
    }

    /// What was to be cleaned is gone.
    pub fn cleaned(&mut self, subject: &Subject) {
        self.end(subject, End::Cleaned);
    }

    /// A person keeps an orphan from being cleaned, until it is released. False: there is no such orphan.
    pub fn hold(&mut self, subject: &Subject) -> bool {
        self.set_hold(subject, Hold::Person)
    }

    /// A person lets an orphan go: it is cleaned when its grace is over. False: there is no such orphan.
    pub fn release(&mut self, subject: &Subject) -> bool {
        self.set_hold(subject, Hold::Released)
    }

    /// When something is due that is not yet, if the readings go on as they do.
    #[must_use]
    pub fn next_at(&self, settings: &Settings) -> Option<Moment> {
        let due = self.entries.iter().filter_map(|(subject, entry)| entry.next_at(subject.class, settings));
        due.min()
    }

    /// From now on an older answer gives up no other copy of that volume.
    fn note_given_up(&mut self, subject: &Subject, now: Moment) {
        if subject.class == Class::ReplicaData {
            // No answer that is used is older.
            self.given_up.retain(|_, at| now.saturating_sub(*at) <= MAX_STALENESS);
            self.given_up.insert(subject.uuid, now);
        }
    }

    fn set_hold(&mut self, subject: &Subject, hold: Hold) -> bool {
        let Some(entry) = self.entries.get_mut(subject) else { return false };
        entry.hold = hold;
        self.unsaved = true;
        true
    }

    /// True: it was none, and is an orphan now.
    fn take_in(&mut self, sighting: &Sighting, asked_at: Moment) -> bool {
        let subject = &sighting.subject;
        let newest = self.newest.entry(subject.class).or_insert(asked_at);
        *newest = asked_at.max(*newest);
        let exempt = sighting.standing == Standing::Exempt || subject.uuid.is_nil();
        match (sighting.claim, self.entries.get_mut(subject)) {
            (Claim::Claimed, known) => {
                // What was told to end ends; the owner starts it again.
                if known.is_some() {
                    self.end(subject, End::Claimed);
                }
            }
            (Claim::Unknown, Some(entry)) => entry.unknown(&sighting.reason),
            (Claim::Unclaimed, Some(entry)) if exempt => entry.exempt(),
            (Claim::Unclaimed, Some(entry)) => {
                entry.unclaimed(asked_at, &sighting.reason, &sighting.standing);
            }
            (Claim::Unclaimed, None) if !exempt => {
                let mut entry = Entry::default();
                entry.unclaimed(asked_at, &sighting.reason, &sighting.standing);
                self.entries.insert(subject.clone(), entry);
                self.unsaved = true;
                return true;
            }
            // No timer starts.
            (Claim::Unknown | Claim::Unclaimed, None) => {}
        }
        false
    }

    fn forget_the_gone(&mut self, reading: &Reading) {
        let seen: BTreeSet<&Subject> = reading.sightings.iter().map(|sighting| &sighting.subject).collect();
        let known = self.entries.iter().filter(|(subject, _)| subject.class == reading.class);
        let gone: Vec<_> = known
            .filter(|(subject, _)| !seen.contains(subject))
            .map(|(subject, entry)| {
                (subject.clone(), if entry.is_cleaning() { End::Cleaned } else { End::Gone })
            })
            .collect();
        for (subject, end) in gone {
            self.end(&subject, end);
        }
    }

    fn end(&mut self, subject: &Subject, end: End) {
        if self.entries.remove(subject).is_none() {
            return;
        }
        let totals = self.totals.entry(subject.class).or_default();
        match end {
            End::Claimed => totals.cancelled += 1,
            End::Cleaned => totals.cleaned += 1,
            End::Gone => {}
        }
        self.voice.ended(subject, end);
        self.unsaved = true;
    }

    /// Many at once are more likely a mistake than so many orphans: all of them wait for a person, or for their claims.
    fn check_the_breaker(&mut self, reading: &Reading, turned: &[Subject], settings: &Settings) {
        let class = reading.class;
        let of_class = || self.entries.iter().filter(|(subject, _)| subject.class == class);
        let lately = of_class().filter(|(_, entry)| entry.turned_within(settings.grace)).count();
        let share = lately * BREAKER_SHARE > reading.sightings.len();
        if lately > BREAKER_MIN && share {
            for (_, entry) in self.entries.iter_mut().filter(|(subject, _)| subject.class == class) {
                entry.break_off();
            }
        } else if self.lost.contains(&class) || of_class().any(|(_, entry)| entry.hold == Hold::Breaker) {
            for subject in turned {
                if let Some(entry) = self.entries.get_mut(subject) {
                    entry.break_off();
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "orphan/fuzz.rs"]
mod fuzz;
#[cfg(test)]
#[path = "orphan/fuzz_copies.rs"]
mod fuzz_copies;
#[cfg(test)]
#[path = "orphan/tests.rs"]
mod tests;
