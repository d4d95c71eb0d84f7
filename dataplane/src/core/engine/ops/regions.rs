//! Making regions equal: comparing and repairing members, and copying to a replica that is being filled.

use super::{OWN_BUFFERS_MAX, Stage, Work};
use crate::core::engine::{Action, Engine, Now, bit, slots};
use crate::core::rules::{Rule, kept};
use crate::units::REGION_BYTES;

impl Engine {
    pub(super) fn repair(&mut self, id: u32, now: Now) {
        // With the one that is about to be added: from its proposal on it must hold whatever the others do.
        let members = self.required();
        if self.possible() & !members != 0 && kept(Rule::RepairWaits) {
            // Whoever is about to leave has not left: should that view never count, the next engine may start with it,
            // and what was read from the others meanwhile would not be read again. `view_committed` goes on.
            self.ops.get_mut(id).stage = Stage::Held;
            self.ops.held.push_back(id);
            return;
        }
        let region = self.ops.get(id).offset / REGION_BYTES;
        if members.count_ones() < 2 || !self.unrepaired.contains(region) {
            return self.repaired(id, now);
        }
        self.ops.get_mut(id).digests = Some(Box::new([None; 8]));
        self.spread_out(id, Stage::Digest, members);
    }

    pub(super) fn compared(&mut self, id: u32, now: Now) {
        let op = self.ops.get(id);
        if op.failed != 0 {
            // A copy needs no comparison.
            return if op.work == Work::Repair { self.own_failed(id, now) } else { self.ask_source(id) };
        }
        let asked = op.ok;
        let equal = op.digests.as_ref().is_some_and(|digests| {
            let mut seen = slots(asked).map(|slot| digests[slot]);
            let first = seen.next();
            seen.all(|digest| Some(digest) == first)
        });
        match (equal, op.work) {
            (false, _) => self.ask_source(id),
            (true, Work::Copy { target, .. }) => {
                let (offset, len) = (self.ops.get(id).offset, self.ops.get(id).len);
                self.fill.moved.entry(self.peers[target].id).or_default().compared_bytes += len;
                self.target_copied(target, offset);
                self.end_own(id, now);
            }
            (true, _) => self.repaired(id, now),
        }
    }

    /// The target has what the members have in the region that begins here.
    fn target_copied(&mut self, target: usize, offset: u64) {
        if self.fill.copied(target, offset / REGION_BYTES) {
            self.wrote(offset, 1);
        }
    }

    /// The target and its source are asked for their checksums of the region.
    pub(super) fn compare(&mut self, id: u32, target: usize) {
        match self.source() {
            Some(source) if self.targets & bit(target) != 0 => {
                self.ops.get_mut(id).digests = Some(Box::new([None; 8]));
                self.spread_out(id, Stage::Digest, bit(source) | bit(target));
            }
            // Whoever has gone is not copied to; whoever is away for a moment is waited for.
            Some(_) | None => self.ask_source(id),
        }
    }

    /// Reads the region from the source, into a buffer of the operation's own.
    pub(super) fn ask_source(&mut self, id: u32) {
        if !self.ops.get(id).buffered {
            if self.ops.buffers == OWN_BUFFERS_MAX {
                self.ops.buffer_queue.push_back(id);
                return;
            }
            self.ops.buffers += 1;
            self.ops.get_mut(id).buffered = true;
            let (op, len) = (self.ops.id(id), self.ops.get(id).len);
            self.actions.push_back(Action::Reserve { op, len });
        }
        match self.source() {
            Some(source) => {
                self.ops.get_mut(id).source = source;
                self.spread_out(id, Stage::Source, bit(source));
            }
            None => {
                self.ops.get_mut(id).stage = Stage::Held;
                self.ops.held.push_back(id);
            }
        }
    }

    pub(super) fn give_to_others(&mut self, id: u32, now: Now) {
        let op = self.ops.get_mut(id);
        op.attempt = op.attempt.wrapping_add(1);
        let (work, source) = (op.work, op.source);
        let to = match work {
            Work::Copy { target, .. } => bit(target) & self.targets,
            _ => self.required() & !bit(source),
        };
        if to == 0 {
            return self.end_own(id, now);
        }
        self.spread_out(id, Stage::Spread, to);
    }

    pub(super) fn repaired(&mut self, id: u32, now: Now) {
        if self.ops.get(id).failed != 0 {
            return self.own_failed(id, now);
        }
        if self.possible() & !self.required() != 0 && kept(Rule::RepairWaits) {
            // A view without a member is on its way. Until it counts, another engine may begin with that member, which
            // may differ: what would be read here could go back. It is compared again when the view has committed.
            let op = self.ops.get_mut(id);
            op.attempt = op.attempt.wrapping_add(1);
            op.stage = Stage::Held;
            self.ops.held.push_back(id);
            return;
        }
        if self.ops.get(id).stage == Stage::Spread && kept(Rule::RepairCounts) {
            // What was given to them is in their caches only: until a flush they can lose it with their node.
            self.writes_done += 1;
            self.fill.sent(self.ops.get(id).len);
        }
        self.mark_repaired(self.ops.get(id).offset / REGION_BYTES);
        self.end_own(id, now);
    }

    pub(super) fn copied(&mut self, id: u32, now: Now) {
        let op = self.ops.get(id);
        let (region, len, status) = (op.offset / REGION_BYTES, op.len, op.status);
        if let Work::Copy { target, .. } = op.work {
            if op.failed != 0 {
                self.target_refused(target, "a copy could not be written", status, now);
            } else if op.ok & bit(target) != 0 {
                self.fill.sent(op.len);
                self.fill.moved.entry(self.peers[target].id).or_default().copied_bytes += len;
                self.target_copied(target, region * REGION_BYTES);
            }
        }
        self.end_own(id, now);
    }

    /// A member could not take part in a repair: it leaves, and the repair is done with the others.
    pub(super) fn own_failed(&mut self, id: u32, now: Now) {
        let op = self.ops.get_mut(id);
        let (failed, status) = (std::mem::take(&mut op.failed), op.status);
        op.attempt = op.attempt.wrapping_add(1);
        let region = op.offset / REGION_BYTES;
        for slot in slots(failed) {
            self.member_failed(slot, format!("a repair failed: {status:?}"), now);
        }
        if self.required() & failed == 0 {
            self.ops.get_mut(id).stage = Stage::Waiting;
            self.ready.push_back(id);
        } else {
            // They cannot leave now. The region stays unrepaired, and is tried again when it is next asked for.
            debug_assert!(self.unrepaired.contains(region));
            self.ops.get_mut(id).stage = Stage::Held;
            self.ops.held.push_back(id);
        }
    }
}
