//! Filling a replica that is to become a member: with what it missed where the members know that (catch-up), with
//! everything else (rebuild).
//!
//! It goes region by region under the range lock, so that a client's write to the region is either before the copy (and
//! in it) or after it (and wins). What was copied and flushed is taken out of the members' dirty maps now and then, so
//! that whoever is interrupted goes on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::ReplicaSet;

use super::maps::{Learn, Purpose};
use super::ops::{Work, scan_window};
use super::tag::Tag;
use super::view::Phase;
use super::{Config, Engine, Mask, Now, bit, slots};
use crate::core::rebuild_budget::{Limits, RebuildBudget};
use crate::core::region_map::{RegionMap, region_bytes};
use crate::core::rules::{Rule, kept};
use crate::core::tracking::Order;
use crate::units::REGION_BYTES;
use crate::wire::header::Status;
use crate::wire::map::{MapEdit, MapName};
use crate::wire::payload::Extent;

/// The first retry of a replica that could not be filled, and the longest wait.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Regions copied between two flushes of the target after which the members take them out of their maps: 256 MiB, what an
/// interruption costs at most.
const PROGRESS_REGIONS: u64 = 1024;

/// A walk over the volume that finds out where there is data.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(test, derive(Hash))]
struct Walk {
    /// Up to here it is known.
    known_to: u64,
    /// The operation that asks for the next window.
    asking: Option<u32>,
    /// The next region to copy, and the next one to compare.
    cursor: u64,
    compare_cursor: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Stage {
    /// The members are asked how far back their maps of it go.
    Asking,
    /// Not far enough: each member persists that it lacks everything.
    Refilling { owed: Mask },
    /// It persists that it is being filled.
    Marking,
    /// It gets every new write; the maps of what it lacks are being read.
    Learning,
    /// It gets what it lacks.
    Copying,
    /// All is copied, and goes to its stable storage.
    Flushing,
    /// It gets to know what the members know of other absent replicas.
    HandingOver { left: Mask },
    /// A view with it is proposed, as soon as one can be.
    Adding,
}

#[derive(Debug, Clone)]
struct Target {
    slot: usize,
    stage: Stage,
    /// Nothing that it has is of use.
    full: bool,
    /// The members whose maps say what it lacks.
    reaching: Mask,
    todo: RegionMap,
    /// Where it may have what no member knows of.
    compare: RegionMap,
    walk: Walk,
    copied: u64,
    /// Copied since the last flush that took regions out of the members' maps, and those that the one in flight will.
    done: RegionMap,
    flushing: Option<RegionMap>,
    /// What it is to remember of others once it is a member.
    others: Vec<HandedOver>,
}

/// What a new member is told of an absent replica: its maps begin with every region, and lose those that the members
/// know it to have as soon as the view counts.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct HandedOver {
    pub(super) slot: usize,
    pub(super) base: Order,
    pub(super) lacks: RegionMap,
}

/// What filling a replica has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    /// Sent to it.
    pub(super) copied_bytes: u64,
    /// Found equal by checksum, and not sent.
    pub(super) compared_bytes: u64,
}

/// What is going on in the background.
#[derive(Debug, Clone)]
pub(super) struct Fill {
    volume_bytes: u64,
    /// Where members may differ is not known yet.
    pub(super) repair_unknown: bool,
    pub(super) repair_cursor: u64,
    pub(super) repairs: usize,
    /// How much may be copied and compared beside what clients do.
    pub(super) budget: RebuildBudget,
    /// Of the copy or repair that is ending: how much of it was sent.
    moved_bytes: u64,
    pub(super) learn: Option<Learn>,
    copies: usize,
    target: Option<Target>,
    /// Since this engine began.
    pub(super) moved: BTreeMap<ReplicaId, Moved>,
    retry_at: [Now; 8],
    failures: [u32; 8],
    /// Something is being begun; whatever ends at once meanwhile only says that there is more to begin.
    beginning: bool,
    more: bool,
}

impl Fill {
    pub(super) fn new(config: &Config) -> Self {
        let limits =
            Limits { inflight_max: config.copies_max, bytes_per_second: config.rebuild_bytes_per_second };
        Self {
            volume_bytes: config.volume_bytes,
            budget: RebuildBudget::new(limits, Duration::ZERO),
            moved_bytes: 0,
            repair_unknown: false,
            repair_cursor: 0,
            repairs: 0,
            learn: None,
            copies: 0,
            target: None,
            moved: BTreeMap::new(),
            retry_at: [Duration::ZERO; 8],
            failures: [0; 8],
            beginning: false,
            more: false,
        }
    }
    /// What the model checker tells states apart by: without what is only reported, and of times only whether they
    /// have come. Of the budget only whether it lets another copy begin; how quick clients are is not in the model.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.repair_unknown, self.repair_cursor, self.repairs, self.copies, self.beginning, self.more)
            .hash(h);
        self.budget.clone().may_start(now).hash(h);
        self.learn.hash(h);
        if let Some(t) = &self.target {
            (t.slot, t.stage, t.full, t.reaching, &t.todo, &t.compare, t.walk).hash(h);
            (&t.done, &t.flushing, &t.others).hash(h);
        }
        self.retry_at.iter().for_each(|at| (*at > now).hash(h));
    }
    /// What the target has of this range may not be what the members have.
    pub(super) fn copy_again(&mut self, offset: u64, len: u64) {
        if let Some(target) = &mut self.target {
            target.todo.insert_bytes(offset, len);
            target.walk.cursor = 0;
        }
    }
    /// Where the target may still have what no member knows of.
    pub(super) fn uncompared(&self) -> Vec<u64> {
        self.target.as_ref().map_or(Vec::new(), |target| target.compare.iter().collect())
    }
    /// The target's own write-intent map has been read.
    pub(super) fn knows_target(&self) -> bool {
        self.target.as_ref().is_some_and(|target| match target.stage {
            Stage::Asking | Stage::Refilling { .. } | Stage::Marking | Stage::Learning => false,
            Stage::Copying | Stage::Flushing | Stage::HandingOver { .. } | Stage::Adding => true,
        })
    }
    /// The target has what the members have there. Whether that was compared: then it may have written it, and nothing
    /// but its own write-intent bit says so until a flush that begins now.
    #[must_use]
    pub(super) fn copied(&mut self, slot: usize, region: u64) -> bool {
        let Some(target) = self.target.as_mut().filter(|target| target.slot == slot) else { return false };
        let compared = target.compare.contains(region);
        target.copied += u64::from(target.todo.contains(region));
        target.todo.remove(region);
        target.compare.remove(region);
        target.done.insert(region);
        compared
    }
    /// So many bytes of the copy or repair that is ending were sent.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.moved_bytes = bytes;
    }
    /// An operation of this kind was begun.
    pub(super) fn began(&mut self, work: Work, len: u64, now: Now) {
        match work {
            Work::Repair => {
                self.repairs += 1;
                self.budget.started(len, now);
            }
            Work::Copy { .. } => {
                self.copies += 1;
                self.budget.started(len, now);
            }
            Work::Client(_)
            | Work::Scan { .. }
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll
            | Work::Abandoned => {}
        }
    }
    /// Whether clients may feel what is done in the background.
    pub(super) fn is_busy(&self) -> bool {
        self.copies + self.repairs > 0
    }
    /// When the next copy may begin that the bandwidth limit holds back.
    pub(super) fn next_at(&self) -> Option<Now> {
        let copying = self.target.as_ref().is_some_and(|target| target.stage == Stage::Copying);
        if copying { self.budget.next_at() } else { None }
    }
    /// Another replica has this place now.
    pub(super) fn forget(&mut self, slot: usize) {
        self.retry_at[slot] = Duration::ZERO;
        self.failures[slot] = 0;
    }
    /// The replica that is being filled, whether from nothing, and how far: `(place, full, done bytes, total bytes)`.
    pub(super) fn progress(&self) -> Option<(usize, bool, u64, u64)> {
        self.target.as_ref().map(|target| {
            let done = target.copied * REGION_BYTES;
            (target.slot, target.full, done, done + target.todo.count() * REGION_BYTES)
        })
    }
    /// What the members know of others is being handed over: their maps must not change otherwise.
    pub(super) fn hands_over(&self) -> bool {
        self.target.as_ref().is_some_and(|t| matches!(t.stage, Stage::HandingOver { .. } | Stage::Adding))
    }
    pub(super) fn others(&self) -> &[HandedOver] {
        self.target.as_ref().map_or(&[], |target| &target.others)
    }
    fn target_in(&self, slot: usize, stage: Stage) -> bool {
        self.target.as_ref().is_some_and(|target| target.slot == slot && target.stage == stage)
    }
}

impl Engine {
    /// Who is copied from: the same member for a whole repair. One that is away for a moment is waited for.
    pub(super) fn source(&self) -> Option<usize> {
        slots(self.members & self.required())
            .find(|slot| !self.peers[*slot].lost)
            .filter(|slot| self.live & bit(*slot) != 0)
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

    fn fill_target(&mut self, now: Now) {
        let Some(target) = &self.fill.target else {
            return self.choose_target(now);
        };
        let slot = target.slot;
        match target.stage {
            Stage::Asking
            | Stage::Refilling { .. }
            | Stage::Marking
            | Stage::Learning
            | Stage::Flushing
            | Stage::HandingOver { .. } => {}
            Stage::Copying => self.copy_next(now),
            Stage::Adding => {
                if !target.todo.is_empty() {
                    self.set_stage(Stage::Copying);
                    self.copy_next(now);
                } else if self.propose_add(slot, now) {
                    // The commit of that view ends the filling.
                }
            }
        }
    }

    /// Who else is away, and may come back to the target alone one day.
    fn hand_over(&mut self, slot: usize, now: Now) {
        let all = (0..self.peers.len()).fold(0, |mask, slot| mask | bit(slot));
        let left = all & !self.required() & !bit(slot);
        if let Some(target) = &mut self.fill.target {
            target.others.clear();
        }
        self.set_stage(Stage::HandingOver { left });
        self.hand_over_next(now);
    }

    fn hand_over_next(&mut self, now: Now) {
        let Some(target) = &mut self.fill.target else { return };
        let Stage::HandingOver { left } = &mut target.stage else { return };
        let Some(absent) = slots(*left).next() else {
            return self.set_stage(Stage::Adding);
        };
        *left &= !bit(absent);
        let (name, members) = (MapName::Dirty(self.peers[absent].id), self.members & self.required());
        self.learn(Purpose::Others { absent }, name, members, now);
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(target) = &mut self.fill.target {
            target.stage = stage;
        }
    }

    /// The next replica that is connected and no member.
    fn choose_target(&mut self, now: Now) {
        let waiting = self.live & !self.required() & !self.unwanted();
        let Some(slot) = slots(waiting).find(|slot| self.fill.retry_at[*slot] <= now) else { return };
        let none = RegionMap::empty(self.fill.volume_bytes);
        self.fill.target = Some(Target {
            slot,
            stage: Stage::Asking,
            full: false,
            reaching: 0,
            todo: none.clone(),
            compare: none.clone(),
            walk: Walk::default(),
            copied: 0,
            done: none,
            flushing: None,
            others: Vec::new(),
        });
        let (name, members) = (MapName::Dirty(self.peers[slot].id), self.members & self.required());
        self.learn(Purpose::Ask, name, members, now);
    }

    // ---- what it lacks ----------------------------------------------------------------------------------------------

    pub(super) fn learned(&mut self, learn: Learn, now: Now) {
        let slot = self.fill.target.as_ref().map(|target| target.slot);
        match (learn.purpose, slot) {
            (Purpose::Repair, _) => self.repair_known(&learn),
            (Purpose::Ask, Some(slot)) => self.asked(slot, &learn, now),
            (Purpose::Lacks, Some(slot)) => {
                // The members' word was enough when they were asked, and still is: they keep what they know.
                if self.reaching(&learn, slot) == 0 && !self.is_full() {
                    return self.give_up_target(slot, "the members' maps of it began anew".to_owned(), now);
                }
                if let Some(target) = &mut self.fill.target {
                    target.todo = if kept(Rule::FilledFirst) { learn.map } else { target.todo.clone() };
                }
                self.learn(Purpose::Extra, MapName::Intent, bit(slot), now);
            }
            (Purpose::Extra, Some(slot)) => {
                let missed = self.missed_by(slot).cloned();
                if let Some(target) = &mut self.fill.target {
                    if kept(Rule::TargetCompared) {
                        target.compare = learn.map;
                    }
                    target.compare.remove_map(&target.todo);
                    if let Some(missed) = missed.filter(|_| !target.full) {
                        // What it had before it left need not be copied, where it still has it.
                        let mut before = target.todo.clone();
                        before.remove_map(&missed);
                        target.todo.keep_only(&missed);
                        if kept(Rule::BeforeCompared) {
                            target.compare.insert_map(&before);
                        }
                    }
                    target.stage = Stage::Copying;
                    // Where little is to be copied, asking what is a hole costs more than it saves.
                    let scan = target.todo.count() >= target.todo.len() / 4;
                    target.walk.known_to = if scan { 0 } else { self.fill.volume_bytes };
                    // Cleared once it is a member and all have flushed.
                    for region in target.compare.iter() {
                        self.intent.wrote(region * REGION_BYTES, 1);
                    }
                }
            }
            (Purpose::Others { absent }, Some(slot)) => {
                let base = learn.bases.iter().flatten().min().copied();
                let target = self.fill.target.as_mut().filter(|target| target.slot == slot);
                if let (Some(base), Some(target)) = (base, target) {
                    target.others.push(HandedOver { slot: absent, base, lacks: learn.map });
                }
                self.hand_over_next(now);
            }
            (Purpose::Ask | Purpose::Lacks | Purpose::Extra | Purpose::Others { .. }, None) => {}
        }
        self.fill_next(now);
    }

    /// A map could not be read from all: some of them are gone.
    pub(super) fn not_learned(&mut self, purpose: Purpose, now: Now) {
        let slot = self.fill.target.as_ref().map(|target| target.slot);
        match (purpose, slot) {
            (Purpose::Repair, _) | (_, None) => {}
            (Purpose::Ask, Some(_)) => self.postpone_target(now),
            // It goes without: whoever it knows nothing of is rebuilt if it is the last that is left.
            (Purpose::Others { .. }, Some(_)) => self.hand_over_next(now),
            (Purpose::Lacks | Purpose::Extra, Some(slot)) => {
                self.give_up_target(slot, "a map of what it lacks could not be read".to_owned(), now);
            }
        }
        self.fill_next(now);
    }

    fn is_full(&self) -> bool {
        self.fill.target.as_ref().is_some_and(|target| target.full)
    }

    fn asked(&mut self, slot: usize, learn: &Learn, now: Now) {
        if self.proposal.is_some() {
            // A view is on its way: what they were asked under the one before need not hold.
            return self.postpone_target(now);
        }
        let (reaching, members) = (self.reaching(learn, slot), self.members & self.required());
        let Some(target) = &mut self.fill.target else { return };
        target.reaching = reaching;
        if reaching != 0 {
            return self.mark_target(slot);
        }
        target.full = true;
        target.reaching = members;
        target.stage = Stage::Refilling { owed: members };
        let refill: ReplicaSet = [self.peers[slot].id].into_iter().collect();
        for member in slots(members) {
            let update = super::view::Telling { refill, ..super::view::Telling::default() };
            self.tell_view(member, self.view, Tag::Refill, update);
        }
        if members & !self.live != 0 {
            self.postpone_target(now);
        }
    }

    /// Begins anew after a while. Nothing of the target's has been touched yet.
    fn postpone_target(&mut self, now: Now) {
        if let Some(target) = self.fill.target.take() {
            self.fill.retry_at[target.slot] = now + RETRY_MIN;
        }
        self.fill.learn.take_if(|learn| learn.purpose != Purpose::Repair);
    }

    /// A member's connection is gone, and with it what it was asked to persist for the target.
    pub(super) fn fill_lost_member(&mut self, slot: usize, now: Now) {
        let owes =
            self.fill.target.as_ref().is_some_and(
                |target| matches!(target.stage, Stage::Refilling { owed } if owed & bit(slot) != 0),
            );
        if owes {
            self.postpone_target(now);
        }
    }

    /// A member has (or has not) persisted that the target lacks everything.
    pub(super) fn refilled(&mut self, member: usize, status: Status, now: Now) {
        let Some(target) = &mut self.fill.target else { return };
        let slot = target.slot;
        let Stage::Refilling { owed } = &mut target.stage else { return };
        if status != Status::Ok {
            let reason = format!("{} cannot persist what it lacks: {status:?}", self.peers[member].id);
            return self.give_up_target(slot, reason, now);
        }
        *owed &= !bit(member);
        if *owed == 0 {
            self.mark_target(slot);
        }
    }

    fn mark_target(&mut self, slot: usize) {
        let rebased = self.is_full();
        self.set_stage(Stage::Marking);
        let update = super::view::Telling { syncing: true, rebased, ..super::view::Telling::default() };
        self.tell_view(slot, self.view, Tag::View { epoch: 0 }, update);
    }

    /// The target has (or has not) persisted that it is being filled.
    pub(super) fn target_marked(&mut self, slot: usize, ok: bool, now: Now) {
        if !self.fill.target_in(slot, Stage::Marking) {
            return;
        }
        if !ok {
            return self.give_up_target(slot, "it cannot persist that it is being filled".to_owned(), now);
        }
        // From here it gets every new write. What is in flight is in the members' maps, which are read after it, and lies
        // in regions that are copied after it.
        self.targets |= bit(slot);
        self.set_stage(Stage::Learning);
        let reaching = self.fill.target.as_ref().map_or(0, |target| target.reaching);
        let mask = reaching & self.members & self.required();
        if mask == 0 {
            return self.give_up_target(slot, "the members that know what it lacks are gone".to_owned(), now);
        }
        self.learn(Purpose::Lacks, MapName::Dirty(self.peers[slot].id), mask, now);
    }

    // ---- copying ----------------------------------------------------------------------------------------------------

    fn copy_next(&mut self, now: Now) {
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
            let none = RegionMap::empty(self.fill.volume_bytes);
            target.flushing = Some(std::mem::replace(&mut target.done, none));
            let slot = target.slot;
            self.admit(Work::FlushTarget { target: slot }, 0, 0, now);
        }
    }

    /// A scan has ended. What could not be found out counts as data.
    pub(super) fn scanned(&mut self, id: u32, now: Now) {
        let Work::Scan { mask } = self.ops.get(id).work else { return };
        let (offset, len, found) = self.ops.take_scan(id);
        let complete = found.len() == usize::try_from(mask.count_ones()).unwrap_or(0);
        let (known, holes) = common_holes(offset, len, if complete { &found } else { &[] });
        self.end_own(id, now);
        if let Some(target) = self.fill.target.as_mut().filter(|t| t.walk.asking == Some(id)) {
            target.walk.asking = None;
            target.walk.known_to = known;
            for region in holes.into_iter().filter(|region| target.todo.contains(*region)).collect::<Vec<_>>()
            {
                target.todo.remove(region);
                target.done.insert(region);
            }
        }
        self.fill_next(now);
    }

    /// A flush of the target has ended: of its progress, or the last one before it is added.
    pub(super) fn target_flushed(&mut self, slot: usize, ok: bool, now: Now) {
        let Some(target) = self.fill.target.as_mut().filter(|target| target.slot == slot) else { return };
        if !ok {
            return self.give_up_target(slot, "its flush failed".to_owned(), now);
        }
        if let Some(done) = target.flushing.take() {
            let replica = self.peers[slot].id;
            for member in slots(self.members & self.live) {
                self.edit_map(member, &done, REGION_BYTES, |words| MapEdit::Copied { replica, words });
            }
        } else if target.stage == Stage::Flushing {
            self.hand_over(slot, now);
        }
        self.fill_next(now);
    }

    /// It is a member now; the members need not remember for it any more.
    pub(super) fn target_added(&mut self, slot: usize, _now: Now) {
        self.targets &= !bit(slot);
        self.finish_hand_over(slot);
        self.fill.target = None;
        self.fill.failures[slot] = 0;
        self.peers[slot].missed.filled();
        // Its mark was cleared with the view; what it said before no longer holds.
        if let Some(welcome) = &mut self.peers[slot].welcome {
            welcome.syncing = false;
            welcome.failed = String::new();
        }
        for member in slots(self.members & self.live) {
            self.send_view(member, self.view);
        }
    }

    /// The target cannot be filled now: it is tried again later. Its connection is dropped, so that nothing that is still
    /// in flight to it can land after what is sent next time.
    pub(super) fn give_up_target(&mut self, slot: usize, reason: String, now: Now) {
        if self.fill.target.as_ref().is_none_or(|target| target.slot != slot) {
            return;
        }
        self.fill.target = None;
        self.peers[slot].missed.forget();
        self.fill.learn.take_if(|learn| learn.purpose != Purpose::Repair);
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
        let moved = std::mem::take(&mut self.fill.moved_bytes);
        match work {
            Work::Repair => self.fill.repairs -= 1,
            Work::Copy { .. } => self.fill.copies -= 1,
            Work::Client(_)
            | Work::Scan { .. }
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll
            | Work::Abandoned => return,
        }
        self.fill.budget.finished(moved, now);
        self.fill_next(now);
    }

    /// A replica that should be getting something and gets nothing is told of, with what it waits for.
    pub(super) fn watch_fill(&mut self, now: Now) {
        let source = self.source();
        let Some(target) = self.fill.target.as_ref().filter(|target| target.stage == Stage::Copying) else {
            return;
        };
        let name = |slot: Option<usize>| {
            slot.and_then(|slot| self.peers.get(slot))
                .map_or("a source".to_owned(), |peer| peer.id.to_string())
        };
        let (slot, from, to) = (target.slot, name(source), name(Some(target.slot)));
        if let Some(stall) = self.fill.budget.stalled(&from, &to, now) {
            self.peers[slot].reason = stall;
        }
    }

    /// Which replicas wait to be filled or are.
    pub(super) fn filling(&self) -> Mask {
        self.live & !self.required() & !self.unwanted() | self.targets & !self.members
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
