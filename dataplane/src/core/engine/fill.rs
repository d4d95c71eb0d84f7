//! Filling a replica that is to become a member: with what it missed where the members know that (catch-up), with
//! everything else (rebuild).
//!
//! It goes region by region under the range lock, so that a client's write to the region is either before the copy (and
//! in it) or after it (and wins). What was copied and flushed is taken out of the members' dirty maps now and then, so
//! that whoever is interrupted goes on from there.

mod copying;
mod lacks;
mod pace;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::Stamp;

pub use self::pace::{Pace, Wait};
use super::maps::{Learn, Purpose};
use super::ops::Work;
use super::view::Phase;
use super::{Config, Engine, Mask, Now, bit, slots};
use crate::core::rebuild_budget::{Limits, RebuildBudget};
use crate::core::region_map::{RegionMap, RegionSet};
use crate::units::REGION_BYTES;
use crate::wire::header::Status;
use crate::wire::map::MapName;

/// The first retry of a replica that could not be filled, and the longest wait.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The same where there was no room for it: each try writes until the disk is full, and room is made by a person, seldom
/// within seconds.
const NO_ROOM_RETRY_MIN: Duration = Duration::from_secs(5);
const NO_ROOM_RETRY_MAX: Duration = Duration::from_secs(300);
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
    /// Its basis, where that begins with the view.
    rebased: Option<Stamp>,
    /// The members whose maps say what it lacks.
    reaching: Mask,
    todo: RegionMap,
    /// Where it may have what no member knows of.
    compare: RegionMap,
    walk: Walk,
    copied: u64,
    /// Copied since the last flush that took regions out of the members' maps, and those that the one in flight will.
    done: RegionSet,
    flushing: Option<Progress>,
    /// What it is to remember of others once it is a member.
    others: Vec<HandedOver>,
}

/// Regions that the target has, on their way out of the members' maps. The target first gets a stamp of its own, and the
/// members remember it: a copy of the target from before has an older one, and lacks what they forget.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
struct Progress {
    regions: RegionSet,
    step: ProgressStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum ProgressStep {
    /// The target's stable storage has them.
    Flushing,
    /// It persists its stamp.
    Stamping { round: u64 },
    /// The members persist that stamp.
    Telling { round: u64, owed: Mask },
}

/// What a new member is told of an absent replica: its maps begin with every region, and lose those that the members
/// know it to have as soon as the view counts.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct HandedOver {
    pub(super) slot: usize,
    pub(super) base: Stamp,
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
    /// The node lets others go first.
    waiting: Option<pace::Waiting>,
    /// Of the copy or repair that is ending: how much of it was sent.
    moved_bytes: u64,
    pub(super) learn: Option<Learn>,
    copies: usize,
    target: Option<Target>,
    /// Since this engine began.
    pub(super) moved: BTreeMap<ReplicaId, Moved>,
    retry_at: [Now; 8],
    failures: [u32; 8],
    /// What it refused the last time, until it is filled.
    refused: [String; 8],
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
            waiting: None,
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
            refused: Default::default(),
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
        (self.budget.clone().may_start(now), self.is_held(now)).hash(h);
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
    /// Whether the target may still have there what no member knows of.
    pub(super) fn is_uncompared(&self, offset: u64, len: u64) -> bool {
        self.target.as_ref().is_some_and(|target| target.compare.touches(offset, len))
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
    pub(super) fn is_busy(&self, now: Now) -> bool {
        self.copies + self.repairs > 0 || self.budget.is_resting(now)
    }
    /// Another replica has this place now.
    pub(super) fn forget(&mut self, slot: usize) {
        self.retry_at[slot] = Duration::ZERO;
        self.failures[slot] = 0;
        self.refused[slot].clear();
    }
    /// Why it could not be filled the last time, for people; none: there was nothing that it refused.
    pub(super) fn refusal(&self, slot: usize) -> Option<&str> {
        self.refused.get(slot).map(String::as_str).filter(|reason| !reason.is_empty())
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
    /// A view is proposed, or a member is lost: what was on its way out of the members' maps stays in them for now.
    pub(super) fn stop_progress(&mut self) {
        let Some(target) = &mut self.target else { return };
        let stops = |progress: &mut Progress| progress.step != ProgressStep::Flushing;
        if let Some(progress) = target.flushing.take_if(stops) {
            target.done.insert_all(&progress.regions);
        }
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

    /// It is a member now; the members need not remember for it any more.
    pub(super) fn target_added(&mut self, slot: usize, _now: Now) {
        self.targets &= !bit(slot);
        self.finish_hand_over(slot);
        self.fill.target = None;
        self.fill.failures[slot] = 0;
        self.fill.refused[slot].clear();
        self.peers[slot].missed.filled();
        self.peers[slot].older = false;
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
        self.give_up_target_for(slot, reason, (RETRY_MIN, RETRY_MAX), now);
    }

    /// The target's disk refused something that it must have.
    pub(super) fn target_refused(&mut self, slot: usize, what: &str, status: Status, now: Now) {
        let (reason, waits) = match status {
            Status::NoSpace => {
                ("no room on its disk for what it lacks".to_owned(), (NO_ROOM_RETRY_MIN, NO_ROOM_RETRY_MAX))
            }
            Status::Ok | Status::Io | Status::Invalid | Status::Fenced | Status::Failed => {
                (format!("{what}: {status:?}"), (RETRY_MIN, RETRY_MAX))
            }
        };
        if let Some(wait) = self.give_up_target_for(slot, reason.clone(), waits, now) {
            self.fill.refused[slot] = format!("{reason}; tried again after {} s", wait.as_secs_f32());
        }
    }

    /// After how long it is tried again, with the first wait and the longest; none: it is not the target.
    fn give_up_target_for(
        &mut self,
        slot: usize,
        reason: String,
        (wait_min, wait_max): (Duration, Duration),
        now: Now,
    ) -> Option<Duration> {
        self.fill.target.as_ref().filter(|target| target.slot == slot)?;
        self.fill.target = None;
        self.peers[slot].missed.forget();
        self.fill.learn.take_if(|learn| learn.purpose != Purpose::Repair);
        self.targets &= !bit(slot);
        let failures = self.fill.failures[slot].min(6);
        self.fill.failures[slot] += 1;
        let wait = wait_min.saturating_mul(1 << failures).min(wait_max);
        self.fill.retry_at[slot] = now + wait;
        self.hang_up(slot, reason, now);
        if self.required() & bit(slot) == 0 {
            self.drop_pending(bit(slot), now);
        }
        Some(wait)
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
        let copying = self.fill.target.as_ref().filter(|target| target.stage == Stage::Copying);
        let Some(target) = copying.filter(|_| !self.fill.is_held(now)) else { return };
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
