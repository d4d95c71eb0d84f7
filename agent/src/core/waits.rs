//! How long what was deleted has waited in the trash: the time between looks that found it there.
//!
//! Time counts only between two looks of agents at most [`LOOKS_APART_MAX`] apart; while no agent runs, or the machine
//! is suspended, nothing counts, and a thing waits longer. There is no wall clock in here: no jump of it can end a time
//! early. What [`Waits::save`] gives outlives the agent; where it was lost, all times begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Moment;

/// The schema this build writes.
pub const SCHEMA: u32 = 1;
/// The trash is looked at once a minute; a disk that hangs may make it some more.
pub const LOOKS_APART_MAX: Duration = Duration::from_secs(300);
/// Progress alone is written no more often: a crash loses this much of it at most, so that things wait longer.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// The file of these times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// [`SCHEMA`].
    pub schema: u32,
    /// For how long each was seen to wait, by the name of its list.
    pub waited_ms: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    confirmed: Duration,
    /// The last look that found it.
    seen_at: Option<Moment>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Waits {
    waits: BTreeMap<String, Wait>,
    unsaved: bool,
    saved_at: Option<Moment>,
}

impl Waits {
    /// Goes on from what an earlier agent saved; the time since then counts for nothing. None: it saved nothing.
    #[must_use]
    pub fn restore(saved: Option<Saved>) -> Self {
        let waited = saved.into_iter().flat_map(|saved| saved.waited_ms);
        let wait = |ms| Wait { confirmed: Duration::from_millis(ms), seen_at: None };
        Self { waits: waited.map(|(list, ms)| (list, wait(ms))).collect(), ..Self::default() }
    }

    /// Something is put into the trash now: its time begins, whatever had its name before.
    pub fn begin(&mut self, list: &str, now: Moment) {
        self.waits.insert(list.to_owned(), Wait { confirmed: Duration::ZERO, seen_at: Some(now) });
        self.unsaved = true;
    }

    /// A complete look at the trash: these wait, and nothing else does.
    pub fn observe(&mut self, there: &BTreeSet<String>, now: Moment) {
        let before = self.waits.len();
        self.waits.retain(|list, _| there.contains(list));
        self.unsaved |= self.waits.len() != before;
        for list in there {
            let wait = self.waits.entry(list.clone()).or_default();
            wait.confirmed = wait.confirmed_at(now);
            wait.seen_at = Some(now);
        }
    }

    /// For how long it has waited. One that was never seen has not.
    #[must_use]
    pub fn waited(&self, list: &str, now: Moment) -> Duration {
        self.waits.get(list).map_or(Duration::ZERO, |wait| wait.confirmed_at(now))
    }

    /// Those that have waited for more than `ttl`, by looks alone.
    #[must_use]
    pub fn over(&self, ttl: Duration) -> BTreeSet<String> {
        let over = self.waits.iter().filter(|(_, wait)| wait.confirmed > ttl);
        over.map(|(list, _)| list.clone()).collect()
    }

    /// What is to be made durable now, if anything: what begins and ends at once, progress once a minute. Where that does
    /// not succeed, [`Self::not_saved`] is called.
    pub fn save(&mut self, now: Moment) -> Option<Saved> {
        let fresh = self.saved_at.is_some_and(|at| now.saturating_sub(at) < SAVE_EVERY);
        if !self.unsaved && (fresh || self.waits.is_empty()) {
            return None;
        }
        self.unsaved = false;
        self.saved_at = Some(now);
        let ms = |wait: &Wait| u64::try_from(wait.confirmed.as_millis()).unwrap_or(u64::MAX);
        let waited_ms = self.waits.iter().map(|(list, wait)| (list.clone(), ms(wait))).collect();
        Some(Saved { schema: SCHEMA, waited_ms })
    }

    /// The last one is not durable.
    pub fn not_saved(&mut self) {
        self.unsaved = true;
    }
}

impl Wait {
    fn confirmed_at(&self, now: Moment) -> Duration {
        let since = self.seen_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let counts = since <= LOOKS_APART_MAX;
        self.confirmed.saturating_add(if counts { since } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    fn there(lists: &[&str]) -> BTreeSet<String> {
        lists.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn time_counts_between_looks_and_not_over_a_gap() {
        let mut waits = Waits::default();
        waits.begin("a", secs(100));
        for at in [160, 220, 280] {
            waits.observe(&there(&["a", "old"]), secs(at));
        }
        assert_eq!((waits.waited("a", secs(280)), waits.waited("old", secs(280))), (secs(180), secs(120)));
        assert_eq!(waits.waited("a", secs(300)), secs(200), "it goes on between two looks");
        waits.observe(&there(&["a"]), secs(280 + 301));
        assert_eq!(waits.waited("a", secs(581)), secs(180), "anything may have been between the two");
        assert_eq!(waits.waited("old", secs(581)), secs(0), "it is gone");
        assert_eq!(waits.over(secs(180)), there(&[]), "exactly its time is not over");
        waits.observe(&there(&["a"]), secs(582));
        assert_eq!(waits.over(secs(180)), there(&["a"]));
    }

    #[test]
    fn a_restart_goes_on_and_the_time_without_agent_counts_nothing() {
        let mut waits = Waits::default();
        waits.begin("a", secs(0));
        waits.observe(&there(&["a"]), secs(60));
        let text = serde_json::to_string(&waits.save(secs(60))).unwrap();
        let mut waits = Waits::restore(serde_json::from_str(&text).unwrap());
        assert_eq!(waits.waited("a", secs(1_000_000)), secs(60));
        waits.observe(&there(&["a"]), secs(1_000_000));
        waits.observe(&there(&["a"]), secs(1_000_010));
        assert_eq!(waits.waited("a", secs(1_000_010)), secs(70));
    }

    #[test]
    fn what_comes_again_under_its_name_begins_anew() {
        let mut waits = Waits::default();
        waits.begin("a", secs(0));
        waits.observe(&there(&["a"]), secs(200));
        waits.begin("a", secs(201));
        assert_eq!(waits.waited("a", secs(211)), secs(10));
        waits.observe(&there(&[]), secs(220));
        waits.observe(&there(&["a"]), secs(230));
        assert_eq!(waits.waited("a", secs(230)), secs(0), "it was put back, and deleted again");
    }

    #[test]
    fn progress_is_written_once_a_minute_and_changes_at_once() {
        let mut waits = Waits::default();
        assert_eq!(waits.save(secs(0)), None, "an empty trash has nothing to remember");
        waits.begin("a", secs(1));
        assert!(waits.save(secs(1)).is_some());
        waits.observe(&there(&["a"]), secs(30));
        assert_eq!(waits.save(secs(30)), None);
        assert_eq!(waits.save(secs(61)).unwrap().waited_ms["a"], 29_000);
        waits.not_saved();
        assert!(waits.save(secs(62)).is_some());
        waits.observe(&there(&[]), secs(63));
        assert_eq!(waits.save(secs(63)).unwrap().waited_ms.len(), 0);
    }
}
