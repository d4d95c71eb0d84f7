//! When the members' write-intent bits may be cleared: the engine alone knows what all of them have on stable storage.
//!
//! A group of regions is `hot` from a write on; a flush that begins later covers it, unless something is still in flight
//! there; once every member (and the replica that is being filled) has answered that flush, it is `cold`; and if it
//! stays so from one sweep to the one after the next, it is settled. A working set keeps its bits, so that writing to it
//! costs the replicas nothing.

use std::time::Duration;

use super::tag::OpId;
use super::view::Phase;
use super::{Engine, Now, slots};
use crate::core::region_map::RegionMap;
use crate::core::rules::{Rule, kept};
use crate::units::GROUP_BYTES;
use crate::wire::map::MapEdit;

/// Groups that may be set before the engine flushes by itself so that some can be cleared: 64 GiB, compared in about a
/// minute after a crash.
const GROUPS_MAX: u64 = 16 * 1024;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct IntentClock {
    hot: RegionMap,
    /// Covered by the flush that is in flight.
    covering: RegionMap,
    cold: RegionMap,
    /// Cold since the sweep before.
    settled: RegionMap,
    /// That flush.
    cover: Option<OpId>,
    /// Flushes before then cover nothing: a load that flushes often need not be looked at each time.
    next_cover: Now,
    pub(super) next_sweep: Now,
    /// Something was written since the last sweep.
    busy: bool,
}

impl IntentClock {
    pub(super) fn new(volume_bytes: u64) -> Self {
        let none = RegionMap::of(volume_bytes.div_ceil(GROUP_BYTES));
        Self {
            hot: none.clone(),
            covering: none.clone(),
            cold: none.clone(),
            settled: none,
            cover: None,
            next_cover: Duration::ZERO,
            next_sweep: Duration::ZERO,
            busy: false,
        }
    }
    /// What the model checker tells states apart by: of times only whether they have come.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        if self.next_sweep == Now::MAX {
            // Only a clean end clears anything, and does not tell them apart.
            let mut all = self.hot.clone();
            [&self.covering, &self.cold, &self.settled].iter().for_each(|map| all.insert_map(map));
            return all.hash(h);
        }
        (&self.hot, &self.covering, &self.cold, &self.settled, self.busy).hash(h);
        (self.cover.map(|cover| cover.slot), now >= self.next_cover, now >= self.next_sweep).hash(h);
    }
    /// Bits may be set in this group, on some member. Whether it was not hot: what is hot is nothing else.
    pub(super) fn wrote(&mut self, group: u64) -> bool {
        self.busy = true;
        if self.hot.contains(group) {
            return false;
        }
        self.hot.insert(group);
        self.cold.remove(group);
        self.settled.remove(group);
        true
    }
    /// Whether a flush that begins now should cover what is hot: one at a time is enough.
    fn wants_cover(&self, now: Now) -> bool {
        self.cover.is_none() && !self.hot.is_empty() && now >= self.next_cover
    }
    fn begin_cover(&mut self, flush: OpId) {
        let none = RegionMap::of(self.hot.len());
        self.covering = std::mem::replace(&mut self.hot, none);
        self.cover = Some(flush);
        if !kept(Rule::FlushedBeforeCleared) {
            self.flush_ended(flush, true);
        }
    }
    /// That flush has ended; others are passed over.
    pub(super) fn flush_ended(&mut self, flush: OpId, ok: bool) {
        if self.cover.take_if(|cover| *cover == flush).is_none() {
            return;
        }
        let mut covered = std::mem::replace(&mut self.covering, RegionMap::of(self.hot.len()));
        if ok {
            covered.remove_map(&self.hot);
            self.cold.insert_map(&covered);
        } else {
            self.hot.insert_map(&covered);
        }
    }
    fn count(&self) -> u64 {
        self.hot.count() + self.covering.count() + self.cold.count() + self.settled.count()
    }
    /// All that has a bit set, as far as this clock knows.
    fn take_all(&mut self) -> RegionMap {
        let mut all = std::mem::replace(&mut self.settled, RegionMap::of(self.hot.len()));
        for map in [&mut self.hot, &mut self.covering, &mut self.cold] {
            all.insert_map(map);
            map.clear();
        }
        all
    }
}

impl Engine {
    /// Also where there is one replica: another may be added, and is filled from what that one's cache holds.
    pub(super) fn wrote(&mut self, offset: u64, len: u64) {
        self.rounds.wrote = true;
        for group in offset / GROUP_BYTES..(offset + len).div_ceil(GROUP_BYTES) {
            if self.intent.wrote(group) {
                self.rounds.not_flushed(group);
            }
        }
    }

    /// A flush is being sent: it covers all that was answered before.
    pub(super) fn cover_by(&mut self, flush: OpId, now: Now) {
        if !self.intent.wants_cover(now) {
            return;
        }
        self.intent.begin_cover(flush);
        self.intent.next_cover = now + self.config.intent_sweep / 10;
        for (offset, len) in self.ops.changing() {
            self.wrote(offset, len);
        }
    }

    /// Clears what has been cold for long, and flushes where nobody else does.
    pub(super) fn sweep_intent(&mut self, now: Now) {
        let calm = self.phase == Phase::Serving && self.proposal.is_none() && !self.any_failed_member();
        let complete = self.members & !self.live == 0 && !self.rounds.is_busy();
        if now < self.intent.next_sweep || !calm || !complete || self.fill.hands_over() {
            return;
        }
        self.intent.next_sweep = now + self.config.intent_sweep;
        let none = RegionMap::of(self.intent.hot.len());
        let cold = std::mem::replace(&mut self.intent.cold, none);
        let settled = std::mem::replace(&mut self.intent.settled, cold);
        self.settle_cold(settled, now);
        let busy = std::mem::replace(&mut self.intent.busy, false);
        let set = self.intent.count() + self.rounds.count();
        if self.intent.wants_cover(now) && (!busy || set > GROUPS_MAX) {
            self.admit(super::ops::Work::FlushOwn, 0, 0, now);
            self.run_ready(now);
        }
    }

    /// All is on stable storage on every member, and nothing is under way.
    pub(super) fn settle_all(&mut self, now: Now) {
        let all = self.intent.take_all();
        self.settle_cold(all, now);
        if !self.rounds.is_busy() {
            self.all_flushed(now);
        }
    }

    /// The bits of these groups are cleared, but for what is still needed.
    pub(super) fn settle_groups(&mut self, mut groups: RegionMap) {
        let differs = |group: &u64| self.unrepaired.touches(group * GROUP_BYTES, GROUP_BYTES);
        for group in groups.iter().filter(differs).collect::<Vec<_>>() {
            groups.remove(group);
            self.intent.hot.insert(group);
        }
        // What the one that is being filled may have written and no member has: until it was compared, only its own bits
        // say so, and until they are read all of them are needed.
        let uncompared = |group: &u64| self.fill.is_uncompared(group * GROUP_BYTES, GROUP_BYTES);
        if kept(Rule::ComparedBeforeCleared) {
            for group in groups.iter().filter(uncompared).collect::<Vec<_>>() {
                groups.remove(group);
                self.intent.hot.insert(group);
            }
        }
        let knows = self.fill.knows_target() || !kept(Rule::ComparedBeforeCleared);
        let targets = if knows { self.targets } else { 0 };
        for slot in slots((self.members | targets) & self.live) {
            self.edit_map(slot, groups.set_words(), GROUP_BYTES, |words| MapEdit::Settled { words });
        }
    }
}
