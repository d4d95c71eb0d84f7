//! What an engine says of itself.

use holdfast_proto::ids::{Epoch, Generation, ReplicaId};
use holdfast_proto::record::ReplicaSet;

use super::peers::SUSPECT_AFTER;
use super::view::Phase;
use super::{Engine, Now, bit, slots};
use crate::core::rebuild_budget::Progress;
use crate::core::start::Decision;
use crate::units::REGION_BYTES;

/// The volume's state as its engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// On the way to its first view.
    Attaching,
    /// Every replica is a member, and all are known to be equal.
    Healthy,
    /// I/O goes on, with fewer members or with copies still to be compared.
    Degraded,
    /// I/O is held.
    Suspended,
    /// No replica is here, or the engine is fenced.
    Faulted,
    /// Draining.
    Detaching,
}

/// What a replica is to its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaMode {
    /// In sync.
    Member,
    /// A member that does not answer, or answers slowly.
    Suspect,
    /// Getting what it missed.
    CatchingUp,
    /// Being filled.
    Rebuilding,
    /// Its disk failed.
    Faulted,
    /// Not here.
    Absent,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Which.
    pub id: ReplicaId,
    /// What it is.
    pub mode: ReplicaMode,
    /// Why, where there is something to say.
    pub reason: String,
    /// Of the filling.
    pub done_bytes: u64,
    /// Of the filling, as far as is known.
    pub total_bytes: u64,
    /// The filling's rate lately, and how long the rest takes at that rate.
    pub rate: Progress,
    /// Sent to it by fillings, since this engine began.
    pub copied_bytes: u64,
    /// Found equal by fillings, and not sent.
    pub compared_bytes: u64,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The volume's state.
    pub state: EngineState,
    /// This engine's generation.
    pub generation: Generation,
    /// Of the committed view.
    pub epoch: Epoch,
    /// The configured set of that view.
    pub configured: ReplicaSet,
    /// Each configured replica.
    pub replicas: Vec<ReplicaReport>,
    /// What a start or suspended I/O waits for; empty: nothing.
    pub waiting_for: String,
    /// What keeps the configured set from becoming what is wanted; empty: nothing.
    pub change_waits_for: String,
    /// This engine was started against the rules: from what, and what may be lost; empty: it was not.
    pub forced: String,
    /// Still to be compared after an unclean end.
    pub unrepaired_bytes: u64,
    /// Clients' reads answered.
    pub reads: u64,
    /// Clients' writes answered.
    pub writes: u64,
}

impl Engine {
    /// What to tell people now.
    #[must_use]
    pub fn report(&self, now: Now) -> Report {
        Report {
            state: self.state(now),
            generation: self.registry.generation,
            epoch: self.view.epoch,
            configured: self.configured,
            replicas: slots(self.occupied()).map(|slot| self.replica_report(slot, now)).collect(),
            waiting_for: self.waiting_for(now),
            change_waits_for: self.change_waits_for(),
            forced: self.forced.note.clone(),
            unrepaired_bytes: self.unrepaired.count() * REGION_BYTES,
            reads: self.reads_done,
            writes: self.writes_done,
        }
    }

    fn state(&self, now: Now) -> EngineState {
        match self.phase {
            Phase::New | Phase::Attaching | Phase::Fencing { .. } | Phase::Opening => {
                if slots(self.occupied()).all(|slot| self.peers[slot].absent.is_some()) {
                    EngineState::Faulted
                } else {
                    EngineState::Attaching
                }
            }
            Phase::Serving if self.blocked(now) => EngineState::Suspended,
            Phase::Serving => {
                let whole = self.members == self.occupied()
                    && self.members & !self.live == 0
                    && self.unrepaired.is_empty()
                    && self.is_as_wanted();
                if whole { EngineState::Healthy } else { EngineState::Degraded }
            }
            Phase::Draining => EngineState::Detaching,
            Phase::Ended => EngineState::Faulted,
        }
    }

    fn replica_report(&self, slot: usize, now: Now) -> ReplicaReport {
        let peer = &self.peers[slot];
        let live = self.live & bit(slot) != 0;
        let quiet = peer.owes > 0 && now.saturating_sub(peer.quiet_since) > SUSPECT_AFTER;
        let slow = self.slowness(slot);
        let mode = if self.members & bit(slot) != 0 {
            let sound = live && !quiet && slow.is_none() && peer.failed.is_none();
            if sound { ReplicaMode::Member } else { ReplicaMode::Suspect }
        } else if self.filling() & bit(slot) != 0 && self.serves() {
            match self.fill.progress() {
                Some((target, false, _, _)) if target == slot => ReplicaMode::CatchingUp,
                Some(_) | None => ReplicaMode::Rebuilding,
            }
        } else if peer.welcome.as_ref().is_some_and(|w| !w.failed.is_empty()) {
            ReplicaMode::Faulted
        } else if !self.serves() && live && self.registry.status.view.members.contains(peer.id) {
            // Fenced, and the first view is on its way. Later the record may still name one that the view left out.
            ReplicaMode::Member
        } else {
            ReplicaMode::Absent
        };
        let (done_bytes, total_bytes, rate) = match self.fill.progress() {
            Some((target, _, done, total)) if target == slot => {
                (done, total, self.fill.budget.progress(total.saturating_sub(done), now))
            }
            Some(_) | None => (0, 0, Progress::default()),
        };
        let told =
            peer.absent.clone().or_else(|| Some(peer.reason.clone()).filter(|reason| !reason.is_empty()));
        let silent = || quiet.then(|| format!("it has not answered for over {} s", SUSPECT_AFTER.as_secs()));
        let turn = || {
            let target = self.fill.progress().is_some_and(|(target, ..)| target == slot);
            self.fill.waits_for_turn(now).filter(|_| target).map(str::to_owned)
        };
        let refused = || self.fill.refusal(slot).map(str::to_owned);
        let reason = turn().or(told).or_else(silent).or(slow).or_else(refused).unwrap_or_default();
        let moved = self.fill.moved.get(&peer.id).copied().unwrap_or_default();
        ReplicaReport {
            id: peer.id,
            mode,
            reason,
            done_bytes,
            total_bytes,
            rate,
            copied_bytes: moved.copied_bytes,
            compared_bytes: moved.compared_bytes,
        }
    }

    fn waiting_for(&self, now: Now) -> String {
        match self.phase {
            Phase::New | Phase::Attaching => "the registry".to_owned(),
            Phase::Fencing { .. } if self.force_pending() => self.force_waits_for(),
            Phase::Fencing { .. } => match self.decision() {
                Decision::Wait { missing, why } if missing.is_empty() => why,
                Decision::Wait { missing, why } => format!("{missing}: {why}"),
                Decision::Start { newest, .. } => match self.lease_of_predecessor(&newest) {
                    Some(until) if now < until => {
                        "the read lease of the engine before, which may still run, to end".to_owned()
                    }
                    Some(_) | None => "the other replicas, for a moment".to_owned(),
                },
            },
            Phase::Opening => "its first view".to_owned(),
            Phase::Serving if self.blocked(now) => self.blocked_by(now),
            Phase::Serving | Phase::Draining | Phase::Ended => String::new(),
        }
    }

    fn blocked_by(&self, now: Now) -> String {
        match &self.proposal {
            Some(_) => "a change of members: the registry has to take it (is the agent running?)".to_owned(),
            None if !self.any_failed_member() => self.lease_waits_for(now),
            None => {
                let failed: Vec<_> = self
                    .peers
                    .iter()
                    .filter_map(|peer| peer.failed.as_ref().map(|why| format!("{} ({why})", peer.id)))
                    .collect();
                format!("its last members: {}", failed.join(", "))
            }
        }
    }
}
