//! Making members equal after an unclean end: only where a member's write-intent map says that they may differ, in the
//! background, and before a read of what was not compared yet.
//!
//! Until the maps have been read, members may differ anywhere.

use super::maps::{Learn, Purpose};
use super::ops::Work;
use super::view::Phase;
use super::{Engine, Now, slots};
use crate::core::region_map::region_bytes;
use crate::units::REGION_BYTES;
use crate::wire::map::MapName;

impl Engine {
    /// The members are equal in this region.
    pub(super) fn mark_repaired(&mut self, region: u64) {
        if self.unrepaired.contains(region) {
            self.unrepaired.remove(region);
            self.tell_if_repaired();
        }
    }

    /// After the last region the members are told: one whose node lost its cache is as good as the others from here on.
    fn tell_if_repaired(&mut self) {
        if self.unrepaired.is_empty() && self.proposal.is_none() {
            for slot in slots(self.members & self.live) {
                self.send_view(slot, self.view);
            }
        }
    }

    /// Members may differ in this range: it is made equal before it is read, and copied again to whoever is being
    /// filled.
    pub(super) fn differ(&mut self, offset: u64, len: u64) {
        // Whoever is about to leave has not left, and may be in the next engine's first view.
        if self.possible().count_ones() > 1 {
            self.unrepaired.insert_bytes(offset, len);
            self.fill.repair_cursor = 0;
            // The map that is being read may have been answered before.
            if let Some(learn) = self.fill.learn.as_mut().filter(|learn| learn.purpose == Purpose::Repair) {
                learn.map.insert_bytes(offset, len);
            }
        }
        self.fill.copy_again(offset, len);
    }

    pub(super) fn repair_next(&mut self, now: Now) {
        if self.fill.repair_unknown {
            if self.fill.learn.is_none() {
                let members = self.members & self.required();
                self.learn(Purpose::Repair, MapName::Intent, members, now);
            }
            return;
        }
        while self.fill.budget.may_start(now) {
            let Some(region) = self.unrepaired.next_from(self.fill.repair_cursor) else {
                // From the beginning once all are back: some may have been marked again.
                if self.fill.repairs == 0 && self.fill.repair_cursor != 0 {
                    self.fill.repair_cursor = 0;
                    continue;
                }
                return;
            };
            self.fill.repair_cursor = region + 1;
            let (offset, len) = region_bytes(region, self.config.volume_bytes);
            self.admit(Work::Repair, offset, len, now);
        }
    }

    /// When the next repair may begin that the limits hold back.
    pub(super) fn repair_next_at(&self) -> Option<Now> {
        let known = self.phase == Phase::Serving && !self.fill.repair_unknown;
        let waits = known && !self.unrepaired.is_empty();
        waits.then(|| self.fill.budget.next_at()).flatten()
    }

    /// Where any member says nothing, all are equal.
    pub(super) fn repair_known(&mut self, learn: &Learn) {
        self.fill.repair_unknown = false;
        self.fill.repair_cursor = 0;
        self.unrepaired.keep_only(&learn.map);
        for region in learn.map.iter() {
            // Cleared once they are equal and flushed.
            self.wrote(region * REGION_BYTES, 1);
        }
        self.tell_if_repaired();
    }
}
