//! Settling rounds: stamps that grow before anything is forgotten, so that an older copy of a replica's directory (a
//! restored snapshot or backup, a clone) never passes for the newest one.
//!
//! A round is a number within the committed view that every member persists with that view. Write-intent bits are
//! cleared in two steps: the round that follows the flush of their groups is persisted by every member, and then the next
//! one, which says that all have persisted the first. So whoever clears a bit remembers durably that each member's newest
//! copy has at least that stamp; a copy with that stamp was made after the flush, and lacks nothing that was cleared.
//!
//! With a member that knows no stamps there are no rounds, and bits are cleared at once, as before there were any.

use std::time::Duration;

use super::tag::Tag;
use super::view::{Phase, Telling};
use super::{Engine, Mask, Now, bit, slots};
use crate::core::region_map::RegionMap;
use crate::core::rules::{Rule, kept};
use crate::wire::header::Status;

/// While something is written a round is persisted this often, also where no bit can be cleared: what a restored copy of
/// a volume's only replica can hide is written within this and [`RECORD_EVERY`].
const ROUND_EVERY: Duration = Duration::from_secs(60);
/// The record is told this often.
const RECORD_EVERY: Duration = Duration::from_secs(600);

/// A round on its way.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
struct Sent {
    /// Members that have not answered.
    owed: Mask,
    /// Flushed on every member before it was sent.
    groups: RegionMap,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    /// Every member has persisted it.
    done: u64,
    sent: Option<Sent>,
    /// Groups that were flushed on every member before round `done` was sent.
    flushed: RegionMap,
    /// Something was written since the last round.
    pub(super) wrote: bool,
    next_at: Now,
    record_at: Now,
}

impl Rounds {
    pub(super) fn new(groups: u64) -> Self {
        Self {
            done: 0,
            sent: None,
            flushed: RegionMap::of(groups),
            wrote: false,
            next_at: ROUND_EVERY,
            record_at: RECORD_EVERY,
        }
    }
    /// What the model checker tells states apart by. `sweeps`: bits are cleared otherwise than by a clean end.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, sweeps: bool, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.done, &self.sent).hash(h);
        if sweeps {
            (now >= self.next_at && self.wrote, now >= self.record_at).hash(h);
        }
        if sweeps || !self.flushed.is_empty() {
            self.flushed.hash(h);
        }
    }
    #[cfg(test)]
    pub(super) fn only_for_bits(&mut self) {
        (self.next_at, self.record_at) = (Now::MAX, Now::MAX);
    }
    /// The newest round that every member of the committed view has persisted.
    pub(super) fn done(&self) -> u64 {
        self.done
    }
    /// Something is about to be written to this group: that it was flushed before does not count.
    pub(super) fn not_flushed(&mut self, group: u64) {
        self.flushed.remove(group);
        if let Some(sent) = &mut self.sent {
            sent.groups.remove(group);
        }
    }
    pub(super) fn count(&self) -> u64 {
        self.flushed.count() + self.sent.as_ref().map_or(0, |sent| sent.groups.count())
    }
    pub(super) fn is_busy(&self) -> bool {
        self.sent.is_some()
    }
    /// A view is proposed: no answer to a round of the one before counts any more. What was flushed on every member
    /// before the round was sent was so before the view is persisted.
    pub(super) fn stop(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.flushed.insert_map(&sent.groups);
        }
    }
    /// A view was committed: its members have persisted it, and no round.
    pub(super) fn begin_view(&mut self) {
        self.stop();
        self.done = 0;
    }
    fn take_flushed(&mut self) -> RegionMap {
        let none = RegionMap::of(self.flushed.len());
        std::mem::replace(&mut self.flushed, none)
    }
}

impl Engine {
    /// Whether each of these is known to keep stamps.
    pub(super) fn know_stamps(&self, mask: Mask) -> bool {
        slots(mask).all(|slot| self.peers[slot].welcome.as_ref().is_some_and(|welcome| welcome.stamps))
    }

    /// These groups are cold: their bits may be cleared, in two rounds. A round is begun without any where the last one
    /// is to be followed by its clearing, or where something was written for long.
    pub(super) fn settle_cold(&mut self, groups: RegionMap, now: Now) {
        if !self.know_stamps(self.members) || !kept(Rule::RoundBeforeCleared) {
            let mut all = self.rounds.take_flushed();
            all.insert_map(&groups);
            return self.settle_groups(all);
        }
        let due = self.rounds.wrote && now >= self.rounds.next_at;
        if !groups.is_empty() || !self.rounds.flushed.is_empty() || due {
            self.begin_round(groups, now);
        }
    }

    pub(super) fn begin_round(&mut self, groups: RegionMap, now: Now) {
        self.rounds.wrote = false;
        self.rounds.next_at = self.rounds.next_at.max(now + ROUND_EVERY);
        self.rounds.sent = Some(Sent { owed: self.members, groups });
        for slot in slots(self.members) {
            self.send_round(slot);
        }
    }

    /// Asks a member to persist the round that is on its way, if it has not yet.
    pub(super) fn send_round(&mut self, slot: usize) {
        if self.rounds.sent.as_ref().is_some_and(|sent| sent.owed & bit(slot) != 0) {
            let round = self.rounds.done + 1;
            let telling = Telling { round: Some(round), ..Telling::default() };
            self.tell_view(slot, self.view, Tag::Round { round }, telling);
        }
    }

    /// A member has (or has not) persisted a round.
    pub(super) fn round_persisted(&mut self, slot: usize, round: u64, status: Status, now: Now) {
        let next = self.rounds.done + 1;
        let Some(sent) = self.rounds.sent.as_mut().filter(|_| round == next) else { return };
        if status != Status::Ok {
            return self.member_failed(slot, format!("it cannot persist a settling round: {status:?}"), now);
        }
        self.peers[slot].stamp = self.peers[slot].stamp.max(Some(self.view.stamp(round)));
        sent.owed &= !bit(slot);
        if sent.owed == 0 {
            self.round_done(now);
        }
    }

    fn round_done(&mut self, now: Now) {
        let Some(sent) = self.rounds.sent.take() else { return };
        self.rounds.done += 1;
        if self.phase == Phase::Opening {
            self.opened(now);
            return self.go_on(now);
        }
        if !kept(Rule::SettledBeforeCleared) {
            return self.settle_groups(sent.groups);
        }
        let flushed = std::mem::replace(&mut self.rounds.flushed, sent.groups);
        self.settle_groups(flushed);
        if self.phase == Phase::Draining {
            return self.all_flushed(now);
        }
        if now >= self.rounds.record_at {
            self.rounds.record_at = now + RECORD_EVERY;
            self.record_round();
        }
    }

    /// Everything is flushed on every member, and no request is taken any more: the record is marked clean once all bits
    /// are cleared.
    pub(super) fn all_flushed(&mut self, now: Now) {
        if self.rounds.flushed.is_empty() {
            self.mark_clean();
        } else {
            self.begin_round(RegionMap::of(self.rounds.flushed.len()), now);
        }
    }
}
