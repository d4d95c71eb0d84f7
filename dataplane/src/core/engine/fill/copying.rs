//! Copying and comparing, region by region, until the target lacks nothing.

use super::{PROGRESS_REGIONS, Progress, ProgressStep, Stage, Walk};
use holdfast_proto::record::Stamp;

use crate::core::engine::ops::{Work, scan_window};
use crate::core::engine::tag::Tag;
use crate::core::engine::view::Telling;
use crate::core::engine::{Engine, Now, bit, slots};
use crate::core::region_map::{RegionMap, region_bytes};
use crate::core::rules::{Rule, kept};
use crate::units::REGION_BYTES;
use crate::wire::map::MapEdit;
use crate::wire::payload::Extent;

impl Engine {
    pub(super) fn copy_next(&mut self, now: Now) {
        self.fill.end_turn_waited_for(now);
        if self.fill.is_held(now) {
            return;
        }
        self.scan_next(now);
        while self.fill.budget.may_start(now) {
            let Some(target) = &mut self.fill.target else { return };
            let (slot, size) = (target.slot, self.fill.volume_bytes);
            let (region, compare) = match next_to_copy(&target.todo, &mut target.walk, size) {
                Some(region) => (region, false),
                None => match target.compare.next_from(target.walk.compare_cursor) {
                    Some(region) => {
                        target.walk.compare_cursor = region + 1;
                        (region, true)
                    }
                    None => break,
                },
            };
            let (offset, len) = region_bytes(region, size);
            self.admit(Work::Copy { target: slot, compare }, offset, len, now);
        }
        self.flush_progress(now);
        let Some(target) = &mut self.fill.target else { return };
        if self.fill.copies > 0 || target.walk.known_to < self.fill.volume_bytes || target.flushing.is_some()
        {
            return;
        }
        if target.todo.is_empty() && target.compare.is_empty() {
            target.stage = Stage::Flushing;
            let slot = target.slot;
            self.admit(Work::FlushTarget { target: slot }, 0, 0, now);
        } else if target.walk.cursor != 0 || target.walk.compare_cursor != 0 {
            target.walk.cursor = 0;
            target.walk.compare_cursor = 0;
            self.copy_next(now);
        }
    }

    /// Finds out where both source and target have holes.
    fn scan_next(&mut self, now: Now) {
        let (size, source) = (self.fill.volume_bytes, self.source());
        let (Some(target), Some(source)) = (&mut self.fill.target, source) else { return };
        let walk = &mut target.walk;
        if walk.asking.is_some() || walk.known_to >= size {
            return;
        }
        // What need not be copied need not be looked at.
        let next =
            target.todo.next_from(walk.known_to / REGION_BYTES).map_or(size, |region| region * REGION_BYTES);
        walk.known_to = next;
        if next < size {
            let mask = bit(target.slot) | bit(source);
            let op = self.admit(Work::Scan { mask }, next, scan_window(next, size), now);
            if let Some(target) = &mut self.fill.target {
                target.walk.asking = Some(op.slot);
            }
        }
    }

    /// Once much was copied: the target flushes, and the members forget that it lacked it.
    fn flush_progress(&mut self, now: Now) {
        let Some(target) = self.fill.target.as_mut() else { return };
        if target.flushing.is_none() && target.done.count() >= PROGRESS_REGIONS {
            let regions = std::mem::take(&mut target.done);
            target.flushing = Some(Progress { regions, step: ProgressStep::Flushing });
            let slot = target.slot;
            self.admit(Work::FlushTarget { target: slot }, 0, 0, now);
        }
    }

    /// A scan has ended. What could not be found out counts as data.
    pub(in crate::core::engine) fn scanned(&mut self, id: u32, now: Now) {
        let Work::Scan { mask } = self.ops.get(id).work else { return };
        let (offset, len, found) = self.ops.take_scan(id);
        let complete = found.len() == usize::try_from(mask.count_ones()).unwrap_or(0);
        let (known, holes) = common_holes(offset, len, if complete { &found } else { &[] });
        self.end_own(id, now);
        if let Some(target) = self.fill.target.as_mut().filter(|t| t.walk.asking == Some(id)) {
            target.walk.asking = None;
            target.walk.known_to = known;
            for region in holes {
                if target.todo.contains(region) {
                    target.todo.remove(region);
                    target.done.insert(region);
                }
            }
        }
        self.fill_next(now);
    }

    /// A flush of the target has ended: of its progress, or the last one before it is added.
    pub(in crate::core::engine) fn target_flushed(&mut self, slot: usize, ok: bool, now: Now) {
        let Some(target) = self.fill.target.as_mut().filter(|target| target.slot == slot) else { return };
        if !ok {
            return self.give_up_target(slot, "its flush failed".to_owned(), now);
        }
        if target.flushing.as_ref().is_some_and(|progress| progress.step == ProgressStep::Flushing) {
            self.stamp_progress(slot);
        } else if target.stage == Stage::Flushing {
            self.hand_over(slot, now);
        }
        self.fill_next(now);
    }
}

/// How the members forget what the target has got.
impl Engine {
    /// Its stable storage has it: it gets a stamp.
    fn stamp_progress(&mut self, slot: usize) {
        let known = self.know_stamps(self.members | bit(slot)) && kept(Rule::ProgressStamped);
        if known && self.proposal.is_some() {
            // No member persists anything under the view before.
            return self.set_progress(ProgressStep::Stamping { round: 0 }, true);
        }
        let basis = self.peers[slot].stamp.filter(|_| known);
        let Some(round) = basis.map(|basis| basis.round + 1) else { return self.forget_progress(slot) };
        self.set_progress(ProgressStep::Stamping { round }, false);
        let telling = Telling { syncing: true, round: Some(round), ..Telling::default() };
        self.tell_view(slot, self.view, Tag::Progress, telling);
    }

    fn set_progress(&mut self, step: ProgressStep, stop: bool) {
        if let Some(progress) = self.fill.target.as_mut().and_then(|target| target.flushing.as_mut()) {
            progress.step = step;
        }
        if stop {
            self.fill.stop_progress();
        }
    }

    /// The target, or a member, has (or has not) persisted the target's stamp.
    pub(in crate::core::engine) fn progress_persisted(&mut self, slot: usize, ok: bool, now: Now) {
        let Some(target) = &self.fill.target else { return };
        let target_slot = target.slot;
        let Some(step) = target.flushing.as_ref().map(|progress| progress.step) else { return };
        match step {
            ProgressStep::Flushing => {}
            ProgressStep::Stamping { .. } | ProgressStep::Telling { .. } if !ok => {
                self.set_progress(step, true);
            }
            ProgressStep::Stamping { round } if slot == target_slot => {
                let peer = &mut self.peers[slot];
                peer.stamp = peer.stamp.map(|stamp| Stamp { round, ..stamp });
                if let Some(welcome) = &mut peer.welcome {
                    welcome.basis = peer.stamp;
                }
                let (advance, owed) = (peer.stamp.map(|stamp| (peer.id, stamp)), self.members);
                self.set_progress(ProgressStep::Telling { round, owed }, false);
                for member in slots(owed) {
                    let telling = Telling { advance, ..Telling::default() };
                    self.tell_view(member, self.view, Tag::Progress, telling);
                }
            }
            ProgressStep::Stamping { .. } => {}
            ProgressStep::Telling { round, owed } => {
                let owed = owed & !bit(slot);
                self.set_progress(ProgressStep::Telling { round, owed }, false);
                if owed == 0 {
                    self.forget_progress(target_slot);
                }
            }
        }
        self.fill_next(now);
    }

    /// The members forget that it lacked what it has.
    fn forget_progress(&mut self, slot: usize) {
        let Some(target) = self.fill.target.as_mut() else { return };
        let Some(progress) = target.flushing.take() else { return };
        let replica = self.peers[slot].id;
        for member in slots(self.members & self.live) {
            let edit = |words| MapEdit::Copied { replica, words };
            self.edit_map(member, progress.regions.set_words(), REGION_BYTES, edit);
        }
    }
}

/// The next region to copy: set, known, and not passed yet.
fn next_to_copy(map: &RegionMap, walk: &mut Walk, size: u64) -> Option<u64> {
    let region = map.next_from(walk.cursor)?;
    let end = ((region + 1) * REGION_BYTES).min(size);
    if end > walk.known_to {
        return None;
    }
    walk.cursor = region + 1;
    Some(region)
}

/// How far the answers reach (at least one region), and which regions up to there are holes in all of them.
fn common_holes(offset: u64, len: u64, found: &[(usize, Vec<Extent>)]) -> (u64, Vec<u64>) {
    let end = offset + len;
    if found.is_empty() {
        return (end, Vec::new());
    }
    let reach =
        found.iter().map(|(_, list)| list.iter().fold(offset, |at, e| at.saturating_add(e.len))).min();
    let mut known = reach.unwrap_or(end).min(end);
    if known < end {
        known -= known % REGION_BYTES;
    }
    if known <= offset {
        return ((offset + REGION_BYTES).min(end), Vec::new());
    }
    // Of the window alone: its beginning is that of a region.
    let mut data = RegionMap::empty(len);
    for (_, list) in found {
        let mut at = 0;
        for extent in list {
            if extent.allocated {
                data.insert_bytes(at, extent.len.min(len.saturating_sub(at)));
            }
            at = at.saturating_add(extent.len);
        }
    }
    let first = offset / REGION_BYTES;
    let holes = (first..known.div_ceil(REGION_BYTES)).filter(|r| !data.contains(*r - first)).collect();
    (known, holes)
}
