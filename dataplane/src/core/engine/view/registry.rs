//! The volume's record: what is asked of the registry, and what its answer means.

use std::time::Duration;

use holdfast_proto::ids::{Epoch, Generation};
use holdfast_proto::record::{View, VolumeStatus};

use super::Phase;
use crate::core::engine::{Action, Ending, Engine, Now, RegistryOutcome};
use crate::core::rules::{Rule, kept};
use crate::core::start::RegistryState;

/// The record as last read, and what is being asked of it.
#[derive(Debug, Clone)]
pub(in crate::core::engine) struct Registry {
    pub(in crate::core::engine) version: u64,
    pub(in crate::core::engine) status: VolumeStatus,
    /// Promised to this engine by the record.
    pub(in crate::core::engine) generation: Generation,
    /// The last engine ended cleanly.
    pub(in crate::core::engine) was_clean: bool,
    /// The record was ours once: another engine in it has taken the volume over.
    attached: bool,
    pub(in crate::core::engine) state: RegistryState,
    next_ask: u64,
    pub(super) pending: Option<Asked>,
    /// The highest generation that somebody refused with.
    pub(super) refused_with: Generation,
    /// When it last stored something.
    pub(in crate::core::engine) heard_at: Now,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    ask: u64,
    purpose: Purpose,
    wish: VolumeStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Purpose {
    Attach,
    /// The proposal of this epoch counts once this is stored.
    Commit(Epoch),
    /// The view is committed already; the record follows.
    Follow,
    Clean,
}

impl Registry {
    pub(in crate::core::engine) fn new(version: u64, status: VolumeStatus) -> Self {
        Self {
            version,
            generation: status.generation,
            was_clean: status.clean,
            attached: false,
            status,
            state: RegistryState::Attached,
            next_ask: 1,
            pending: None,
            refused_with: Generation(0),
            heard_at: Duration::ZERO,
        }
    }
    pub(in crate::core::engine) fn was_clean(&self) -> bool {
        self.was_clean
    }
}

#[cfg(test)]
impl Registry {
    /// What the model checker tells states apart by. The number of a question is left out: only the last one counts.
    pub(in crate::core::engine) fn fingerprint(&self, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let status = crate::core::model::print::status;
        status(&self.status, h);
        (self.version, self.generation, self.was_clean, self.attached, self.refused_with).hash(h);
        (self.state == RegistryState::Attached).hash(h);
        let pending = self.pending.as_ref();
        pending.map(|asked| asked.purpose).hash(h);
        if let Some(asked) = pending {
            status(&asked.wish, h);
        }
    }
}

impl Engine {
    pub(super) fn ask(&mut self, purpose: Purpose, wish: VolumeStatus) {
        let ask = self.registry.next_ask;
        self.registry.next_ask += 1;
        self.actions.push_back(Action::CompareAndSwap {
            ask,
            expected_version: self.registry.version,
            status: Box::new(wish.clone()),
        });
        self.registry.pending = Some(Asked { ask, purpose, wish });
    }

    /// The registry's answer. An answer to anything but the last question is passed over.
    pub fn registry_result(&mut self, ask: u64, outcome: RegistryOutcome, now: Now) {
        let Some(asked) = self.registry.pending.take_if(|asked| asked.ask == ask) else { return };
        if self.phase == Phase::Ended {
            return;
        }
        match outcome {
            RegistryOutcome::Stored { version } => {
                self.registry.version = version;
                self.registry.status = asked.wish;
                self.registry.state = RegistryState::Attached;
                self.registry.heard_at = now;
                self.stored(asked.purpose, now);
            }
            RegistryOutcome::Conflict { version, status } => self.conflict(asked, version, *status, now),
            // That it is not there is nobody's word that it was deleted: a volume that is served goes on as without the
            // registry. One that is not does not start: nothing says from what it may.
            RegistryOutcome::Missing if self.serves() => self.registry_away(asked, now),
            RegistryOutcome::Missing => self.end(Ending::RecordMissing, now),
            RegistryOutcome::Unreachable => self.registry_away(asked, now),
        }
        self.drained(now);
    }

    fn stored(&mut self, purpose: Purpose, now: Now) {
        match purpose {
            Purpose::Attach => {
                self.registry.generation = self.registry.status.generation;
                self.registry.attached = true;
                self.begin_fencing(now);
            }
            Purpose::Commit(epoch) => {
                if self.proposal.as_ref().is_some_and(|p| p.view.epoch == epoch) {
                    self.commit(now);
                } else {
                    self.follow();
                }
            }
            Purpose::Follow => self.follow(),
            Purpose::Clean => self.end(Ending::Clean, now),
        }
        self.advance(now);
    }

    /// The record is not as it was read. Either what was wanted is there already (the first answer was lost), or an
    /// operator changed another part of it, or another engine has taken the volume.
    fn conflict(&mut self, asked: Asked, version: u64, status: VolumeStatus, now: Now) {
        let before = std::mem::replace(&mut self.registry.status, status.clone());
        self.registry.version = version;
        if status == asked.wish {
            return self.stored(asked.purpose, now);
        }
        let lives_on = asked.purpose == Purpose::Attach || !kept(Rule::SameLife);
        if status.incarnation != before.incarnation && !lives_on {
            // Restored from an older copy: it knows nothing of what was committed since, and other engines may have
            // started from what this one knows nothing of. Only one that attaches now may tell it what is newest.
            return self.end(Ending::Fenced { by: status.generation }, now);
        }
        if status.view != before.view {
            // Somebody has served since a person gave it.
            self.config.force = None;
        }
        if asked.purpose == Purpose::Attach && !self.registry.attached {
            // Nothing was promised to us yet: whoever came first keeps its number, ours is higher.
            self.registry.was_clean = status.clean;
            self.lease.record_changed(&status);
            return self.attach(now);
        }
        if status == before {
            // Only an operator's wish is new in it. (It need not be ours: a start without the registry took nothing.)
            return self.ask(asked.purpose, asked.wish);
        }
        let ours = status.generation == self.registry.generation && status.engine_uuid == self.config.engine;
        if !ours {
            return self.end(Ending::Fenced { by: status.generation }, now);
        }
        // Ours, and not what we last saw: an answer to an older question came late. The next question is asked anew.
        match asked.purpose {
            Purpose::Attach => self.attach(now),
            Purpose::Commit(_) | Purpose::Follow => self.advance(now),
            Purpose::Clean => {
                let wish = VolumeStatus { clean: true, ..self.wish(self.view) };
                self.ask(Purpose::Clean, wish);
            }
        }
    }

    fn registry_away(&mut self, asked: Asked, now: Now) {
        self.registry.state = RegistryState::Unreachable;
        match asked.purpose {
            // A start without the registry: fenced under the next generation, it needs every replica.
            Purpose::Attach => {
                let Some(generation) = self.next_generation() else { return self.no_number_left(now) };
                self.registry.generation = generation;
                self.begin_fencing(now);
            }
            Purpose::Clean => self.end(
                Ending::Unclean("the registry cannot be reached, or has no record of the volume".to_owned()),
                now,
            ),
            // Asked again with the next tick.
            Purpose::Commit(_) | Purpose::Follow => {}
        }
    }

    /// Asks the registry for what changes nothing, to find out whether it answers.
    pub(in crate::core::engine) fn probe_registry(&mut self) {
        if self.registry.pending.is_none() {
            let wish = self.registry.status.clone();
            self.ask(Purpose::Follow, wish);
        }
    }

    pub(super) fn wish(&self, view: View) -> VolumeStatus {
        let (configured, lineage) = self.terms_of(&view);
        VolumeStatus {
            view,
            configured,
            lineage,
            round: self.round_of(&view),
            generation: self.registry.generation,
            engine_uuid: self.config.engine,
            engine_instance: self.config.instance,
            clean: false,
            ..self.registry.status.clone()
        }
    }

    /// The newest settling round of a view that is proposed or committed.
    pub(super) fn round_of(&self, view: &View) -> u64 {
        let proposed = self.proposal.as_ref().is_some_and(|proposal| proposal.view == *view);
        if *view == self.view && !proposed { self.rounds.done() } else { 0 }
    }

    /// Tells the record the newest settling round, where nothing else is asked of it.
    pub(in crate::core::engine) fn record_round(&mut self) {
        let status = &self.registry.status;
        let behind = status.view == self.view && status.round < self.rounds.done();
        if behind && self.proposal.is_none() && self.registry.pending.is_none() {
            let wish = self.wish(self.view);
            self.ask(Purpose::Follow, wish);
        }
    }

    /// Brings the record up to date with a view that was committed without it.
    pub(super) fn follow(&mut self) {
        let committed = matches!(self.phase, Phase::Serving | Phase::Draining) && self.proposal.is_none();
        // The record may be ahead: it took a view that another was proposed after.
        let behind = self.registry.status.view.order() < self.view.order();
        if committed && self.registry.pending.is_none() && behind {
            let wish = self.wish(self.view);
            self.ask(Purpose::Follow, wish);
        }
    }

    /// Finds out whether a registry that was away is back, where nothing else asks it: it is told what it knows.
    pub(in crate::core::engine) fn try_registry(&mut self) {
        if self.registry.pending.is_none() {
            let wish = self.wish(self.view);
            self.ask(Purpose::Follow, wish);
        }
    }

    /// What the registry could not take is asked again.
    pub(super) fn retry_registry(&mut self, now: Now) {
        if self.registry.pending.is_none() && self.registry.state == RegistryState::Unreachable {
            self.advance(now);
        }
    }
}
