//! What outlives the agent: how much is confirmed, and who holds what. Read back, it confirms nothing by itself.

use std::time::Duration;

use holdfast_proto::unknown::Unknown;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::entry::Entry;
use super::{Class, Hold, Moment, SAVE_EVERY, Subject, Tracker};

/// The schema this build writes.
pub const SCHEMA: u32 = 1;

/// The file of a node's orphans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// [`SCHEMA`].
    pub schema: u32,
    /// All of them.
    pub orphans: Vec<SavedOrphan>,
    /// What this build does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOrphan {
    /// What it is.
    pub class: Class,
    /// See [`Subject`].
    pub name: String,
    /// See [`Subject`].
    pub uuid: Uuid,
    /// For how long it was confirmed that nobody claims it.
    pub confirmed_ms: u64,
    /// Who keeps it.
    pub hold: Hold,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Tracker {
    /// Goes on from what an earlier agent saved; the time since then confirms nothing. None: it saved nothing.
    #[must_use]
    pub fn restore(saved: Option<Saved>) -> Self {
        let Some(Saved { orphans, unknown, .. }) = saved else { return Self::default() };
        let entries = orphans.into_iter().map(|orphan| {
            let subject = Subject { class: orphan.class, name: orphan.name, uuid: orphan.uuid };
            let confirmed = Duration::from_millis(orphan.confirmed_ms);
            (subject, Entry::restored(confirmed, orphan.hold, orphan.unknown))
        });
        Self { entries: entries.collect(), unknown, ..Self::default() }
    }

    /// Goes on where what an earlier agent saved cannot be read. A person may have held any of them, so what is found
    /// unclaimed at first is held.
    #[must_use]
    pub fn with_lost_history() -> Self {
        Self { lost: Class::ALL.into(), ..Self::default() }
    }

    /// What is to be made durable now, if anything: changes at once, progress every few seconds. Until that has
    /// succeeded nothing is cleaned; where it did not, [`Self::not_saved`] is called.
    pub fn save(&mut self, now: Moment) -> Option<Saved> {
        let aged = self.saved_at.is_none_or(|at| now.saturating_sub(at) >= SAVE_EVERY);
        // What cannot be read is not replaced before it is known what to hold.
        let wanted = self.unsaved || (aged && !self.entries.is_empty());
        if !wanted || !self.lost.is_empty() {
            return None;
        }
        self.unsaved = false;
        self.saved_at = Some(now);
        let orphans = self.entries.iter().map(|(subject, entry)| SavedOrphan {
            class: subject.class,
            name: subject.name.clone(),
            uuid: subject.uuid,
            confirmed_ms: u64::try_from(entry.confirmed.as_millis()).unwrap_or(u64::MAX),
            hold: entry.hold,
            unknown: entry.unknown.clone(),
        });
        Some(Saved { schema: SCHEMA, orphans: orphans.collect(), unknown: self.unknown.clone() })
    }

    /// The last one is not durable.
    pub fn not_saved(&mut self) {
        self.unsaved = true;
    }
}
