//! The read lease (rule R11): reads are sent only while every member has answered something that was sent at most
//! `read_lease` ago.
//!
//! Why: an engine that is cut off from all but one member does not know that a newer engine has taken the volume over
//! and serves from the others. That one has fenced at least one member of every view that could have been committed;
//! from then on that member answers the old engine nothing, and the lease, which needs all of them, runs out. A
//! starting engine that has not fenced *all* members of the newest view therefore waits for as long as such a lease can
//! last, unless the engine before it is known to have ended.
//!
//! Only differences of this process's own clock are compared, never the times of two. A read is checked when it is
//! sent: one that was sent under the lease overlaps in time with whatever a newer engine does later. Nothing is timed
//! per operation: a lease is renewed by heartbeats, and an operation compares the time with one number.
//! `docs/replication.md` has the argument.

use std::time::Duration;

use holdfast_proto::ids::{Generation, InstanceUuid};
use holdfast_proto::record::{View, VolumeStatus};

use super::tag::Tag;
use super::{Body, Engine, Mask, Now, bit, slots};
use crate::wire::header::{Header, Kind};

/// Two clocks may run at different rates: the kernel lets time services change a clock's rate by 500 ppm, and a crystal
/// is off by less. A tenth is far above both, and costs half a second at a start that has to wait at all.
const DRIFT_PART: u32 = 10;
/// A lease that is lost for longer than this counts as suspended; a shorter gap is a matter of scheduling.
const NORMAL: Duration = Duration::from_secs(1);

/// A frame whose answer will prove that a member was there at `sent_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    sequence: u64,
    sent_at: Now,
}

/// What a peer has to do with the lease.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Presence {
    mark: Option<Mark>,
    /// When the latest thing was sent that it answered.
    proven_at: Option<Now>,
    /// When its connection was asked for: the handshake is sent later than this.
    asked_at: Now,
    /// When it promised to this generation.
    pub(super) fenced_at: Now,
}

impl Presence {
    /// A connection is asked for.
    pub(super) fn asked(&mut self, now: Now) {
        self.asked_at = now;
    }
    /// The handshake has succeeded, the first one of this generation or a later one.
    pub(super) fn welcomed(&mut self, first: bool, now: Now) {
        self.mark = None;
        self.proven_at = self.proven_at.max(Some(self.asked_at));
        if first {
            self.fenced_at = now;
        }
    }
    /// The connection is gone, and with it what was asked on it.
    pub(super) fn dropped(&mut self) {
        self.mark = None;
    }
}

/// The engine's side of it.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    /// Reads may be sent before this.
    until: Now,
    /// Since when they may not.
    lost_since: Option<Now>,
    /// The engine that the record named when it was read, where it was said that it has ended.
    predecessor: Option<(Generation, InstanceUuid)>,
}

impl Lease {
    pub(super) fn new(status: &VolumeStatus, predecessor_gone: bool) -> Self {
        Self {
            until: Duration::ZERO,
            lost_since: None,
            predecessor: predecessor_gone.then_some((status.generation, status.engine_uuid)),
        }
    }
    /// The record is not as it was when its engine was said to have ended.
    pub(super) fn record_changed(&mut self, status: &VolumeStatus) {
        self.predecessor = self.predecessor.filter(|p| *p == (status.generation, status.engine_uuid));
    }
}

#[cfg(test)]
impl Engine {
    /// Every replica has just proven that it is there: for the model checker, in which there is no time for a lease to
    /// end.
    pub(crate) fn keep_lease(&mut self, now: Now) {
        for peer in &mut self.peers {
            peer.presence.proven_at = Some(now);
        }
        self.renew_lease();
        self.reads_again(now);
    }

    /// What the model checker tells states apart by: whether reads are held, and how far the lease of the engine before
    /// is waited for.
    pub(super) fn lease_fingerprint(&self, deciding: bool, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.lease.lost_since.is_some(), self.lease.predecessor).hash(h);
        if deciding {
            let wait = self.config.read_lease + self.config.read_lease / DRIFT_PART;
            self.peers.iter().for_each(|peer| (now < peer.presence.fenced_at + wait).hash(h));
        }
    }
}

impl Engine {
    /// Whose answers the lease needs: those of the committed view, and those of any that may follow it.
    fn lease_from(&self) -> Mask {
        self.possible()
    }

    /// Whether a read may be sent now.
    pub(super) fn may_read(&self, now: Now) -> bool {
        now < self.lease.until
    }

    /// Called when a member has answered, and when it changes who is a member.
    pub(super) fn renew_lease(&mut self) {
        let lease = self.config.read_lease;
        self.lease.until = slots(self.lease_from())
            .map(|slot| self.peers[slot].presence.proven_at.map_or(Duration::ZERO, |at| at + lease))
            .min()
            .unwrap_or(Duration::ZERO);
    }

    /// A member has answered; it was there when the marked frame was sent.
    pub(super) fn present(&mut self, slot: usize, sequence: u64, now: Now) {
        let presence = &mut self.peers[slot].presence;
        let Some(mark) = presence.mark.take_if(|mark| sequence >= mark.sequence) else { return };
        presence.proven_at = presence.proven_at.max(Some(mark.sent_at));
        self.renew_lease();
        self.reads_again(now);
    }

    /// What was held without a lease is sent.
    pub(super) fn reads_again(&mut self, now: Now) {
        if self.may_read(now) && self.lease.lost_since.take().is_some() {
            self.run_held(now);
        }
    }

    /// A read came without a lease, or a tick finds that there is none.
    pub(super) fn note_lease(&mut self, now: Now) {
        if self.serves() && !self.may_read(now) {
            self.lease.lost_since.get_or_insert(now);
        }
    }

    /// Asks every replica whether it is there, unless it has not answered the last time.
    pub(super) fn ask_presence(&mut self, now: Now) {
        for slot in slots(self.live) {
            if self.peers[slot].presence.mark.is_none() {
                self.send(slot, Header::request(Kind::Ping, Tag::Ping.encode(), 0), Body::None);
                let sequence = self.peers[slot].frames.last();
                self.peers[slot].presence.mark = Some(Mark { sequence, sent_at: now });
            }
        }
    }

    /// Whether the lease has been lost for so long that it is worth telling.
    pub(super) fn lease_is_lost(&self, now: Now) -> bool {
        self.lease.lost_since.is_some_and(|since| now.saturating_sub(since) > NORMAL)
    }

    /// Who keeps the lease from being renewed, for people.
    pub(super) fn lease_waits_for(&self, now: Now) -> String {
        let lease = self.config.read_lease;
        let late = slots(self.lease_from())
            .filter(|slot| self.peers[*slot].presence.proven_at.is_none_or(|at| at + lease <= now))
            .fold(0, |mask, slot| mask | bit(slot));
        format!(
            "an answer of {}: reads need one at most {} s old from every member",
            self.set_of(late),
            lease.as_secs_f32()
        )
    }

    /// Until when a start must not serve: the engine before may still answer reads. `newest` is what it builds on.
    pub(super) fn lease_of_predecessor(&self, newest: &View) -> Option<Now> {
        let fenced = |slot: &usize| self.peers[*slot].welcome.is_some();
        let members = self.mask_of(&newest.members);
        let all = usize::try_from(members.count_ones()) == Ok(newest.members.len());
        if (all && slots(members).all(|slot| fenced(&slot))) || self.predecessor_has_ended(newest) {
            return None;
        }
        let lease = self.config.read_lease;
        let fenced_at = (0..self.peers.len()).filter(fenced).map(|slot| self.peers[slot].presence.fenced_at);
        fenced_at.max().map(|at| at + lease + lease / DRIFT_PART)
    }

    /// Whether no engine before this one can have a lease. One that committed a view has itself waited for those before
    /// it; so it is enough that *this* one has ended, if the newest view is its own. One that took a generation and
    /// proposed nothing has proven nothing: the one before it may still run.
    fn predecessor_has_ended(&self, newest: &View) -> bool {
        let clean = self.registry.was_clean() && *newest == self.registry.status.view;
        clean || self.lease.predecessor.is_some_and(|(generation, _)| generation == newest.generation)
    }
}
