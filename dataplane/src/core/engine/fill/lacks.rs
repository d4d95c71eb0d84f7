//! Who is filled next, and what it lacks: by the members' maps, by its own, and by what this engine wrote without it.

use holdfast_proto::record::{ReplicaSet, Stamp};

use super::{HandedOver, RETRY_MIN, Stage, Target, Walk};
use crate::core::engine::maps::{Learn, Purpose};
use crate::core::engine::tag::Tag;
use crate::core::engine::view::Telling;
use crate::core::engine::{Engine, Now, bit, slots};
use crate::core::region_map::{RegionMap, RegionSet};
use crate::core::rules::{Rule, kept};
use crate::units::GROUP_REGIONS;
use crate::wire::header::Status;
use crate::wire::map::MapName;

impl Engine {
    /// The next replica that is connected and no member.
    pub(super) fn choose_target(&mut self, now: Now) {
        let waiting = self.live & !self.required() & !self.unwanted();
        let Some(slot) = slots(waiting).find(|slot| self.fill.retry_at[*slot] <= now) else { return };
        let none = RegionMap::empty(self.fill.volume_bytes);
        self.fill.target = Some(Target {
            slot,
            stage: Stage::Asking,
            full: false,
            rebased: None,
            reaching: 0,
            todo: none.clone(),
            compare: none,
            walk: Walk::default(),
            copied: 0,
            done: RegionSet::default(),
            flushing: None,
            others: Vec::new(),
        });
        let (name, members) = (MapName::Dirty(self.peers[slot].id), self.members & self.required());
        self.learn(Purpose::Ask, name, members, now);
    }

    pub(in crate::core::engine) fn learned(&mut self, learn: Learn, now: Now) {
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
                    // Cleared once it is a member and all have flushed, whatever waits for a round now.
                    for group in target.compare.iter().map(|region| region / GROUP_REGIONS) {
                        if self.intent.wrote(group) {
                            self.rounds.not_flushed(group);
                        }
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
    pub(in crate::core::engine) fn not_learned(&mut self, purpose: Purpose, now: Now) {
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
        let older = self.peers[slot].older;
        let reaching = if older { 0 } else { self.reaching(learn, slot) };
        let members = self.members & self.required();
        let base = self.rebased_stamp(slot, learn);
        let Some(target) = &mut self.fill.target else { return };
        target.reaching = reaching;
        if reaching != 0 {
            return self.mark_target(slot);
        }
        target.full = true;
        target.rebased = Some(base);
        target.reaching = members;
        target.stage = Stage::Refilling { owed: members };
        let id = self.peers[slot].id;
        let refill = ReplicaSet::new().with(id);
        for member in slots(members) {
            let update = Telling { refill, advance: Some((id, base)), ..Telling::default() };
            self.tell_view(member, self.view, Tag::Refill, update);
        }
        if members & !self.live != 0 {
            self.postpone_target(now);
        }
    }

    /// The stamp of a target that is filled from nothing: no copy of its directory had it before.
    fn rebased_stamp(&self, slot: usize, learn: &Learn) -> Stamp {
        let peer = &self.peers[slot];
        let told = peer.welcome.as_ref().and_then(|welcome| welcome.basis);
        let known = learn.bases.iter().flatten().copied().chain(told).chain(peer.stamp);
        let here =
            known.filter(|stamp| stamp.generation == self.view.generation && stamp.epoch == self.view.epoch);
        self.view.stamp(here.map(|stamp| stamp.round + 1).max().unwrap_or(0))
    }

    /// Begins anew after a while. Nothing of the target's has been touched yet.
    fn postpone_target(&mut self, now: Now) {
        if let Some(target) = self.fill.target.take() {
            self.fill.retry_at[target.slot] = now + RETRY_MIN;
        }
        self.fill.learn.take_if(|learn| learn.purpose != Purpose::Repair);
    }

    /// A member's connection is gone, and with it what it was asked to persist for the target.
    pub(in crate::core::engine) fn fill_lost_member(&mut self, slot: usize, now: Now) {
        let owes =
            self.fill.target.as_ref().is_some_and(
                |target| matches!(target.stage, Stage::Refilling { owed } if owed & bit(slot) != 0),
            );
        if owes {
            self.postpone_target(now);
        }
        self.fill.stop_progress();
    }

    /// A member has (or has not) persisted that the target lacks everything.
    pub(in crate::core::engine) fn refilled(&mut self, member: usize, status: Status, now: Now) {
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
        let round = self.fill.target.as_ref().and_then(|target| target.rebased).map(|base| base.round);
        let update = Telling { syncing: true, rebased, round, ..Telling::default() };
        self.tell_view(slot, self.view, Tag::View { epoch: 0 }, update);
    }

    /// The target has (or has not) persisted that it is being filled.
    pub(in crate::core::engine) fn target_marked(&mut self, slot: usize, ok: bool, now: Now) {
        if !self.fill.target_in(slot, Stage::Marking) {
            return;
        }
        if !ok {
            return self.give_up_target(slot, "it cannot persist that it is being filled".to_owned(), now);
        }
        if let Some(base) = self.fill.target.as_ref().and_then(|target| target.rebased) {
            let peer = &mut self.peers[slot];
            peer.stamp = Some(base);
            if let Some(welcome) = &mut peer.welcome {
                welcome.basis = Some(base);
            }
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
}
