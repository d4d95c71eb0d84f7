//! A start against the rules: from one replica, in a new history, because a person said so.
//!
//! The registry must be there: it hands out the generation, and takes view and history in one compare-and-swap. The
//! view has the one replica as its only member; those of the old history are never met again, neither as members nor as
//! sources, since their handshakes and this engine's name different histories. The word counts once: the record's
//! history is then the one that came with it.

use holdfast_proto::ids::{Lineage, ReplicaId};
use holdfast_proto::record::ReplicaSet;

use super::view::{Phase, Reason};
use super::{Engine, Now, bit, slots};
use crate::core::start::{RegistryState, newest};
use crate::wire::handshake::Welcome;

/// What a person decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Force {
    /// Whose data the volume is to have from now on.
    pub replica: ReplicaId,
    /// Also if it was being filled, and so may hold parts of different times.
    pub even_if_syncing: bool,
    /// The history that begins with it: random, made for this one start.
    pub lineage: Lineage,
}

/// How a start against the rules goes.
#[derive(Debug, Default, Clone)]
pub(super) struct Forced {
    /// The replica refused the old history: it has been told of the new one by a start that did not get further.
    pub(super) new_lineage: bool,
    /// From what it was, and what may be lost; empty: the rules of a start were kept.
    pub(super) note: String,
}

impl Engine {
    /// A person's word for an engine that waits. Passed over where it has begun to serve.
    pub fn force(&mut self, force: Force, now: Now) {
        if matches!(self.phase, Phase::New | Phase::Attaching | Phase::Fencing { .. })
            && self.config.force != Some(force)
        {
            self.config.force = Some(force);
            self.try_start(now);
        }
    }

    /// Whether this start is against the rules, and not yet done.
    pub(super) fn force_pending(&self) -> bool {
        self.config.force.is_some_and(|force| force.lineage != self.registry.status.lineage)
    }

    fn pending_force(&self) -> Option<Force> {
        self.config.force.filter(|_| self.force_pending())
    }

    /// The history that a handshake with this replica names.
    pub(super) fn hello_lineage(&self, replica: ReplicaId) -> Lineage {
        match self.pending_force() {
            Some(force) if force.replica == replica && self.forced.new_lineage => force.lineage,
            Some(_) | None => self.registry.status.lineage,
        }
    }

    pub(super) fn takes_lineage(&self, replica: ReplicaId, found: Lineage) -> bool {
        found == self.hello_lineage(replica)
    }

    /// The replica refused: perhaps because it is in the other history.
    pub(super) fn try_other_lineage(&mut self, replica: ReplicaId) {
        if self.pending_force().is_some_and(|force| force.replica == replica) {
            self.forced.new_lineage = !self.forced.new_lineage;
        }
    }

    fn forced_welcome(&self, force: Force) -> Option<&Welcome> {
        let slot = self.slot_of(force.replica).filter(|slot| self.live & bit(*slot) != 0)?;
        self.peers[slot].welcome.as_ref()
    }

    /// Why it cannot start yet, or never will.
    fn force_waits(&self, force: Force) -> Option<String> {
        let id = force.replica;
        let Some(slot) = self.slot_of(id) else {
            return Some(format!(
                "{id} is not one of the volume's replicas, {}",
                self.registry.status.configured
            ));
        };
        if self.registry.state == RegistryState::Unreachable {
            return Some("the registry: a forced start cannot do without it".to_owned());
        }
        let Some(welcome) = self.forced_welcome(force) else {
            let peer = &self.peers[slot];
            let why = peer.absent.as_ref().unwrap_or(&peer.reason);
            return Some(format!("{id}, which the start is forced from ({why})"));
        };
        let record = &self.registry.status;
        let newer = welcome.incarnation != record.incarnation || welcome.revision > self.registry.version;
        if welcome.lineage == force.lineage && newer {
            // The registry was restored from before this very start.
            return Some(format!(
                "another word of a person: {id} was started from by force before, and the record went back"
            ));
        }
        (welcome.syncing && !force.even_if_syncing).then(|| {
            format!(
                "another word of a person: {id} was being filled and may hold parts of different times; \
                 it serves only if that is accepted too"
            )
        })
    }

    pub(super) fn force_waits_for(&self) -> String {
        let why = self.pending_force().and_then(|force| self.force_waits(force));
        why.unwrap_or_else(|| "the other replicas, for a moment".to_owned())
    }

    /// Everybody who is here has promised. Proposes the view of the one replica, above all that is known.
    pub(super) fn try_forced(&mut self, now: Now) {
        let Some(force) = self.pending_force() else { return };
        if self.force_waits(force).is_some() {
            return;
        }
        let Some(welcome) = self.forced_welcome(force) else { return };
        let promised = || slots(self.live).filter_map(|slot| self.peers[slot].welcome.as_ref());
        let (best, _) = newest(&self.registry.status, promised());
        let epochs = promised().map(|welcome| welcome.view.epoch).chain([self.registry.status.view.epoch]);
        let highest = epochs.max().unwrap_or(best.epoch);
        self.forced.note = note(force, welcome, &best);
        self.view = best;
        self.view.epoch = highest;
        self.configured = self.registry.status.configured;
        self.registry.was_clean = false;
        self.begin_opening();
        let only = ReplicaSet::new().with(force.replica);
        self.propose_with(only, (self.configured, Some(force.lineage)), Reason::Start, true, now);
    }

    /// After the first view of a forced start: the others promised as replicas of the old history, and are not served.
    pub(super) fn leave_old_history(&mut self, now: Now) {
        if self.forced.note.is_empty() {
            return;
        }
        for slot in slots(self.occupied() & !self.members) {
            let old =
                self.peers[slot].welcome.as_ref().is_some_and(|w| w.lineage != self.registry.status.lineage);
            if old {
                self.hang_up(slot, "its data is of another history (lineage): replace it".to_owned(), now);
            }
        }
    }
}

/// What a person should read: what was started from, what was known to be newer, and what follows from it.
fn note(force: Force, welcome: &Welcome, best: &holdfast_proto::record::View) -> String {
    let id = force.replica;
    let behind = if welcome.view == *best && best.members.contains(id) {
        "it was a member of the newest view known, but a newer one may exist on replicas that were not met"
    } else if best.members.contains(id) {
        "it has not heard of the newest view known"
    } else {
        "it was no member of the newest view known: writes acknowledged since it left are lost"
    };
    let mut text = format!(
        "started by force from {id}: newest view known {best}, its own view {}; {behind}; acknowledged writes may be \
         lost, and the other replicas belong to another history now: replace them",
        welcome.view
    );
    if welcome.syncing {
        text.push_str("; it was being filled: its blocks may be of different times");
    }
    if welcome.cache_lost || !welcome.failed.is_empty() {
        text.push_str("; its disk may have lost writes that it had acknowledged");
    }
    text
}
