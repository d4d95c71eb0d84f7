//! What the model checker needs of an engine: when two states count as the same, and what it may look at.

use std::hash::{Hash, Hasher};

use super::view::Phase;
use super::*;

impl Engine {
    /// Writes all that decides about what this engine will do, and nothing else. Between two events: the shell has
    /// taken every action.
    pub(crate) fn fingerprint(&self, now: Now, h: &mut impl Hasher) {
        assert!(self.ready.is_empty() && self.actions.is_empty());
        std::mem::discriminant(&self.phase).hash(h);
        let mut deciding = matches!(self.phase, Phase::New | Phase::Attaching);
        if let Phase::Fencing { since } = self.phase {
            deciding = true;
            (now >= since + self.config.start_patience).hash(h);
        }
        (self.view, self.members, self.live, self.targets).hash(h);
        self.registry.fingerprint(h);
        for peer in &self.peers {
            peer.fingerprint(deciding, now, h);
        }
        if let Some(proposal) = &self.proposal {
            proposal.fingerprint(h);
        }
        h.write_u8(0);
        self.ops.fingerprint(self.writes_done, h);
        self.zeroing.fingerprint(h);
        self.lock.fingerprint(h);
        self.unrepaired.hash(h);
        self.fill.fingerprint(now, h);
        (self.writes_done - self.writes_flushed).hash(h);
        (now < self.remove_not_before).hash(h);
        (self.configured, &self.configure, self.forced.new_lineage, self.config.force).hash(h);
        self.intent.fingerprint(now, h);
        self.rounds.fingerprint(self.intent.next_sweep != Now::MAX, now, h);
        self.lease_fingerprint(deciding, now, h);
    }

    /// See [`ops::Ops::normalise`].
    pub(crate) fn normalise(&mut self) {
        self.ops.normalise();
    }

    /// The operation (and its part) that a frame with this tag still belongs to; none: nobody waits for the answer.
    pub(crate) fn awaited(&self, tag: u64) -> Option<(u32, u8)> {
        self.ops.present(tag).map(|(slot, part)| (slot, part as u8))
    }

    /// Nothing is asked only to see whether somebody is there.
    pub(crate) fn never_ping(&mut self) {
        self.next_heartbeat = Now::MAX;
    }
    /// Write-intent bits are cleared by a clean end alone.
    pub(crate) fn never_sweep(&mut self) {
        self.intent.next_sweep = Now::MAX;
    }
    /// Rounds are begun to clear bits alone, and the record is told them with a clean end alone.
    pub(crate) fn never_tell_rounds(&mut self) {
        self.rounds.only_for_bits();
    }
    pub(crate) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }
    /// The members of the committed view.
    pub(crate) fn member_set(&self) -> ReplicaSet {
        self.set_of(self.members)
    }
    /// Nothing is going on, and the members are known to be equal.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_serving()
            && self.proposal.is_none()
            && self.unrepaired.is_empty()
            && !self.ops.any(|_| true)
            && self.members & !self.live == 0
    }
    /// The next read goes to this member, if it is one that may answer.
    pub(crate) fn prefer(&mut self, replica: Option<ReplicaId>) {
        for peer in &mut self.peers {
            peer.local = Some(peer.id) == replica;
        }
    }
}
