//! Work in the background: making members equal after an unclean end, and filling replicas that are to become members.
//!
//! Both go region by region under the range lock, so that a client's write to the region is either before the copy (and
//! in it) or after it (and wins). Regions that are holes wherever they were asked for are passed over.

use std::time::Duration;

use super::ops::{Work, scan_window};
use super::view::Phase;
use super::{Engine, Mask, Now, bit, slots};
use crate::core::region_map::RegionMap;
use crate::core::rules::{Rule, kept};
use crate::units::REGION_BYTES;
use crate::wire::payload::Extent;

/// The first retry of a replica that could not be filled, and the longest wait.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A walk over the volume that finds out where there is data.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(test, derive(Hash))]
struct Walk {
    /// Up to here it is known.
    known_to: u64,
    /// The operation that asks for the next window.
    asking: Option<u32>,
    /// The next region to work on.
    cursor: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Stage {
    /// It persists that it is being filled.
    Marking,
    /// It gets every new write, and the regions that it may lack.
    Copying,
    /// All is copied, and goes to its stable storage.
    Flushing,
    /// A view with it is proposed, as soon as one can be.
    Adding,
}

#[derive(Debug, Clone)]
struct Target {
    slot: usize,
    stage: Stage,
    todo: RegionMap,
    walk: Walk,
    copied: u64,
}

/// What is going on in the background.
#[derive(Debug, Clone)]
pub(super) struct Fill {
    volume_bytes: u64,
    repair: Walk,
    repairs: usize,
    copies: usize,
    target: Option<Target>,
    retry_at: [Now; 8],
    failures: [u32; 8],
    /// Something is being begun; whatever ends at once meanwhile only says that there is more to begin.
    beginning: bool,
    more: bool,
}

impl Fill {
    pub(super) fn new(volume_bytes: u64) -> Self {
        Self {
            volume_bytes,
            repair: Walk { known_to: volume_bytes, ..Walk::default() },
            repairs: 0,
            copies: 0,
            target: None,
            retry_at: [Duration::ZERO; 8],
            failures: [0; 8],
            beginning: false,
            more: false,
        }
    }
    /// What the model checker tells states apart by: without what is only reported, and of times only whether they
    /// have come.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.repair, self.repairs, self.copies, self.beginning, self.more).hash(h);
        if let Some(target) = &self.target {
            (target.slot, target.stage, &target.todo, target.walk).hash(h);
        }
        self.retry_at.iter().for_each(|at| (*at > now).hash(h));
    }
    /// Members may differ anywhere: first find out where there is data at all.
    pub(super) fn repair_all(&mut self) {
        self.repair = Walk::default();
    }
    /// Some regions were marked again.
    pub(super) fn repair_again(&mut self) {
        self.repair.cursor = 0;
    }
    /// What the target has of this range may not be what the members have.
    pub(super) fn copy_again(&mut self, offset: u64, len: u64) {
        if let Some(target) = &mut self.target {
            target.todo.insert_bytes(offset, len);
            target.walk.cursor = 0;
        }
    }
    pub(super) fn copied(&mut self, slot: usize, region: u64) {
        if let Some(target) = self.target.as_mut().filter(|target| target.slot == slot) {
            target.todo.remove(region);
            target.copied += 1;
        }
    }
    /// An operation of this kind was begun.
    pub(super) fn began(&mut self, work: Work) {
        match work {
            Work::Repair => self.repairs += 1,
            Work::Copy { .. } => self.copies += 1,
            Work::Client(_)
            | Work::Scan { .. }
            | Work::FlushTarget { .. }
            | Work::FlushAll
            | Work::Abandoned => {}
        }
    }
    /// The replica that is being filled, and how far: `(place, done bytes, total bytes)`.
    pub(super) fn progress(&self) -> Option<(usize, u64, u64)> {
        self.target.as_ref().map(|target| {
            let done = target.copied * REGION_BYTES;
            (target.slot, done, done + target.todo.count() * REGION_BYTES)
        })
    }
}

impl Engine {
    /// Who is copied from: the same member for a whole repair. One that is away for a moment is waited for.
    pub(super) fn source(&self) -> Option<usize> {
        slots(self.members & self.required())
            .find(|slot| !self.peers[*slot].lost)
            .filter(|slot| self.live & bit(*slot) != 0)
    }

    /// The members are equal in this region. After the last one they are told so: a member whose node lost its cache
    /// is as good as the others from here on.
    pub(super) fn mark_repaired(&mut self, region: u64) {
        if !self.unrepaired.contains(region) {
            return;
        }
        self.unrepaired.remove(region);
        if self.unrepaired.is_empty() && self.proposal.is_none() {
            for slot in slots(self.members & self.live) {
                self.send_view(slot, self.view, false);
            }
        }
    }

    /// Begins what can be begun now. What ends as soon as it is begun makes room for the next: one after the other, not
    /// one within the other, for there may be as many as the volume has regions.
    pub(super) fn fill_next(&mut self, now: Now) {
        if std::mem::replace(&mut self.fill.beginning, true) {
            self.fill.more = true;
            return;
        }
        loop {
            self.fill.more = false;
            self.begin_fill(now);
            if !self.fill.more {
                break;
            }
        }
        self.fill.beginning = false;
    }

    fn begin_fill(&mut self, now: Now) {
        if self.phase != Phase::Serving || self.proposal.is_some() || self.any_failed_member() {
            return;
        }
        if self.unrepaired.is_empty() {
            self.fill_target(now);
        } else {
            self.repair_next(now);
        }
        self.run_ready(now);
    }

    fn repair_next(&mut self, now: Now) {
        let size = self.config.volume_bytes;
        let members = self.members & self.required();
        let walk = self.fill.repair;
        if walk.known_to < size && walk.asking.is_none() {
            let len = scan_window(walk.known_to, size);
            let op = self.admit(Work::Scan { mask: members }, walk.known_to, len, now);
            self.fill.repair.asking = Some(op.slot);
        }
        while self.fill.repairs < self.config.copies_max {
            let walk = &mut self.fill.repair;
            let Some(region) = next_region(&self.unrepaired, walk, size) else {
                // From the beginning once all is back: some may have been marked again.
                if walk.known_to == size && self.fill.repairs == 0 && walk.cursor != 0 {
                    walk.cursor = 0;
                    continue;
                }
                return;
            };
            let (offset, len) = crate::core::region_map::region_bytes(region, size);
            self.admit(Work::Repair, offset, len, now);
        }
    }

    fn fill_target(&mut self, now: Now) {
        let Some(target) = &self.fill.target else {
            return self.choose_target(now);
        };
        match target.stage {
            Stage::Marking | Stage::Flushing => {}
            Stage::Copying => self.copy_next(now),
            Stage::Adding => {
                let slot = target.slot;
                if !target.todo.is_empty() {
                    self.set_stage(Stage::Copying);
                    self.copy_next(now);
                } else if self.propose_add(slot, now) {
                    // The commit of that view ends the filling.
                }
            }
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(target) = &mut self.fill.target {
            target.stage = stage;
        }
    }

    /// The next replica that is connected and no member.
    fn choose_target(&mut self, now: Now) {
        let waiting = self.live & !self.required();
        let Some(slot) = slots(waiting).find(|slot| self.fill.retry_at[*slot] <= now) else { return };
        self.fill.target = Some(Target {
            slot,
            stage: Stage::Marking,
            todo: RegionMap::empty(self.fill.volume_bytes),
            walk: Walk::default(),
            copied: 0,
        });
        let view = self.view;
        self.send_view(slot, view, true);
    }

    /// The target has (or has not) persisted that it is being filled.
    pub(super) fn target_marked(&mut self, slot: usize, ok: bool, now: Now) {
        let marking = self.fill.target.as_ref().is_some_and(|t| t.slot == slot && t.stage == Stage::Marking);
        if !marking {
            return;
        }
        if !ok {
            return self.give_up_target(slot, "it cannot persist that it is being filled".to_owned(), now);
        }
        // From here it gets every new write. What is in flight lies in regions that are scanned and copied after it.
        self.targets |= bit(slot);
        self.set_stage(Stage::Copying);
        self.fill_next(now);
    }

    fn copy_next(&mut self, now: Now) {
        let size = self.config.volume_bytes;
        let source = self.source();
        let (Some(target), Some(source)) = (&self.fill.target, source) else { return };
        let (slot, walk) = (target.slot, target.walk);
        if walk.known_to < size && walk.asking.is_none() {
            let mask = bit(slot) | bit(source);
            let op = self.admit(Work::Scan { mask }, walk.known_to, scan_window(walk.known_to, size), now);
            if let Some(target) = &mut self.fill.target {
                target.walk.asking = Some(op.slot);
            }
        }
        while self.fill.copies < self.config.copies_max {
            let Some(target) = &mut self.fill.target else { return };
            let Some(region) = next_region(&target.todo, &mut target.walk, size) else { break };
            let (offset, len) = crate::core::region_map::region_bytes(region, size);
            self.admit(Work::Copy { target: slot }, offset, len, now);
        }
        let Some(target) = &mut self.fill.target else { return };
        if self.fill.copies > 0 || target.walk.known_to < size {
            return;
        }
        if target.todo.is_empty() {
            target.stage = Stage::Flushing;
            self.admit(Work::FlushTarget { target: slot }, 0, 0, now);
        } else if target.walk.cursor != 0 {
            target.walk.cursor = 0;
            self.copy_next(now);
        }
    }

    /// A scan has ended. What could not be found out counts as data.
    pub(super) fn scanned(&mut self, id: u32, now: Now) {
        let Work::Scan { mask } = self.ops.get(id).work else { return };
        let (offset, len, _, found) = self.take_scan(id);
        let complete = found.len() == usize::try_from(mask.count_ones()).unwrap_or(0);
        let (known, holes) = common_holes(offset, len, if complete { &found } else { &[] });
        let for_repair = self.fill.repair.asking == Some(id);
        self.end_own(id, now);
        if for_repair {
            self.fill.repair.asking = None;
            self.fill.repair.known_to = known;
            for region in holes {
                self.mark_repaired(region);
            }
        } else if let Some(target) = self.fill.target.as_mut().filter(|t| t.walk.asking == Some(id)) {
            target.walk.asking = None;
            target.walk.known_to = known;
            let mut holes = holes.into_iter().peekable();
            for region in offset / REGION_BYTES..known.div_ceil(REGION_BYTES) {
                if holes.next_if_eq(&region).is_none() && kept(Rule::FilledFirst) {
                    target.todo.insert(region);
                }
            }
        }
        self.fill_next(now);
    }

    /// The target's last flush before it is added has ended.
    pub(super) fn target_flushed(&mut self, slot: usize, ok: bool, now: Now) {
        let flushing =
            self.fill.target.as_ref().is_some_and(|t| t.slot == slot && t.stage == Stage::Flushing);
        if !flushing {
            return;
        }
        if ok {
            self.set_stage(Stage::Adding);
            self.fill_next(now);
        } else {
            self.give_up_target(slot, "its flush failed".to_owned(), now);
        }
    }

    /// It is a member now.
    pub(super) fn target_added(&mut self, slot: usize, _now: Now) {
        self.targets &= !bit(slot);
        self.fill.target = None;
        self.fill.failures[slot] = 0;
        // Its mark was cleared with the view; what it said before no longer holds.
        if let Some(welcome) = &mut self.peers[slot].welcome {
            welcome.syncing = false;
            welcome.failed = String::new();
        }
    }

    /// The target cannot be filled now: it is tried again later, from the beginning. Its connection is dropped, so that
    /// nothing that is still in flight to it can land after what is sent next time.
    pub(super) fn give_up_target(&mut self, slot: usize, reason: String, now: Now) {
        if self.fill.target.as_ref().is_none_or(|target| target.slot != slot) {
            return;
        }
        self.fill.target = None;
        self.targets &= !bit(slot);
        let failures = self.fill.failures[slot].min(6);
        self.fill.failures[slot] += 1;
        let wait = RETRY_MIN.saturating_mul(1 << failures).min(RETRY_MAX);
        self.fill.retry_at[slot] = now + wait;
        self.hang_up(slot, reason, now);
        if self.required() & bit(slot) == 0 {
            self.drop_pending(bit(slot), now);
        }
    }

    pub(super) fn fill_op_ended(&mut self, work: Work, now: Now) {
        match work {
            Work::Repair => self.fill.repairs -= 1,
            Work::Copy { .. } => self.fill.copies -= 1,
            Work::Client(_)
            | Work::Scan { .. }
            | Work::FlushTarget { .. }
            | Work::FlushAll
            | Work::Abandoned => return,
        }
        self.fill_next(now);
    }

    /// Which replicas wait to be filled or are.
    pub(super) fn filling(&self) -> Mask {
        self.live & !self.required() | self.targets & !self.members
    }
}

/// The next region to work on: set, known, and not passed yet.
fn next_region(map: &RegionMap, walk: &mut Walk, size: u64) -> Option<u64> {
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
    let mut data = RegionMap::empty(end);
    for (_, list) in found {
        let mut at = offset;
        for extent in list {
            if extent.allocated {
                data.insert_bytes(at, extent.len.min(end.saturating_sub(at)));
            }
            at = at.saturating_add(extent.len);
        }
    }
    let holes =
        (offset / REGION_BYTES..known.div_ceil(REGION_BYTES)).filter(|r| !data.contains(*r)).collect();
    (known, holes)
}
