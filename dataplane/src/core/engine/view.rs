//! Attach, fence, decide, propose, commit. The rules: `docs/replication.md`.

mod registry;

use std::time::Duration;

use holdfast_proto::ids::{Generation, InstanceUuid, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, Stamp, View, VolumeStatus};

use self::registry::Purpose;
pub(super) use self::registry::Registry;
use super::ops::Work;
use super::peers::Link;
use super::tag::Tag;
use super::{Action, Body, Ending, Engine, Mask, Now, bit, slots};
use crate::core::region_map::RegionMap;
use crate::core::rules::{Rule, kept};
use crate::core::start::{Decision, RegistryState, decide, majority, older_copies};
use crate::units::GROUP_BYTES;
use crate::wire::handshake::Welcome;
use crate::wire::header::{Header, Kind, Status};
use crate::wire::payload::{Adopt, StampUpdate, ViewUpdate};

/// Where the engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    New,
    /// Taking a generation.
    Attaching,
    /// Collecting promises.
    Fencing {
        since: Now,
    },
    /// The first view is on its way.
    Opening,
    Serving,
    /// No new requests; the last ones are finished, flushed, and the record is marked clean.
    Draining,
    Ended,
}

#[cfg(test)]
impl Proposal {
    /// What the model checker tells states apart by.
    pub(super) fn fingerprint(&self, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.view, self.members, self.reason, self.persisted, self.by_registry).hash(h);
        (self.configured, self.lineage, self.named).hash(h);
    }
}

/// Why a view is proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Reason {
    Start,
    Remove,
    Add {
        target: usize,
    },
    /// The configured set changes; the members stay.
    Configure,
}

/// What a replica is told beside a view.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Telling {
    /// It is being filled.
    pub(super) syncing: bool,
    /// From nothing: the members' maps of it begin with this view.
    pub(super) rebased: bool,
    /// These lack everything.
    pub(super) refill: ReplicaSet,
    /// It remembers for these from now on.
    pub(super) adopt: Adopt,
    /// It becomes a member with this view, which all others have persisted.
    pub(super) joins: bool,
    /// A settling round: of the view, or, where it is being filled, of its basis.
    pub(super) round: Option<u64>,
    /// The base of its dirty map of this replica.
    pub(super) advance: Option<(ReplicaId, Stamp)>,
}

/// A view that is on its way to being committed.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub(super) view: View,
    pub(super) members: Mask,
    /// Its members, and those of the proposals before it that never counted.
    pub(super) named: Mask,
    /// The configured set under this view.
    pub(super) configured: ReplicaSet,
    /// The history under this view, where it begins a new one.
    lineage: Option<Lineage>,
    reason: Reason,
    /// Who has it on stable storage.
    persisted: Mask,
    /// It counts only once the registry has it.
    by_registry: bool,
    /// Since when.
    pub(super) since: Now,
}

impl Engine {
    /// Begins: takes a generation.
    pub fn start(&mut self, now: Now) {
        self.phase = Phase::Attaching;
        self.attach(now);
    }

    fn attach(&mut self, now: Now) {
        let Some(generation) = self.next_generation() else { return self.no_number_left(now) };
        let wish = VolumeStatus {
            generation,
            engine_uuid: self.config.engine,
            engine_instance: self.config.instance,
            clean: false,
            ..self.registry.status.clone()
        };
        self.ask(Purpose::Attach, wish);
    }

    /// Above everything that was handed out or refused with.
    fn next_generation(&self) -> Option<Generation> {
        self.registry.status.generation.max(self.registry.refused_with).next()
    }

    /// Numbers from outside are checked before they are taken over: only 2^28 jumps of the largest kind lead here.
    fn no_number_left(&mut self, now: Now) {
        self.end(Ending::Unclean("there is no higher generation or epoch".to_owned()), now);
    }

    fn begin_fencing(&mut self, now: Now) {
        self.phase = Phase::Fencing { since: now };
        self.connect_due(now);
        self.try_start(now);
    }

    /// Somebody promised to another engine.
    pub(super) fn refused(&mut self, generation: Generation, engine: InstanceUuid, now: Now) {
        let another = generation > self.registry.generation || engine != self.config.engine;
        if !another {
            return;
        }
        let fencing = matches!(self.phase, Phase::Fencing { .. }) && self.proposal.is_none();
        if !fencing && self.phase != Phase::Attaching {
            return self.end(Ending::Fenced { by: generation }, now);
        }
        // Nothing was proposed under our number: take a higher one. Whoever is promised the refuser is either gone, or
        // will see ours in the registry.
        self.registry.refused_with = self.registry.refused_with.max(generation);
        if fencing {
            self.forget_promises(now);
            self.phase = Phase::Attaching;
            if self.registry.pending.is_none() {
                self.attach(now);
            }
        }
        // Otherwise it asks for one already: all replicas are tried at once, and another refused first.
    }

    /// A start that cannot do without the registry asks it again, under a higher number than was promised meanwhile.
    pub(super) fn registry_again(&mut self, now: Now) {
        let away = self.registry.state == RegistryState::Unreachable && self.registry.pending.is_none();
        if away
            && matches!(self.phase, Phase::Fencing { since } if now > since + self.config.start_patience)
            && (self.force_pending() || matches!(self.decision(), Decision::Wait { .. }))
        {
            self.registry.refused_with = self.registry.refused_with.max(self.registry.generation);
            self.forget_promises(now);
            self.phase = Phase::Attaching;
            self.attach(now);
        }
    }

    fn forget_promises(&mut self, now: Now) {
        for peer in &mut self.peers {
            if let Link::Up { session } = peer.link {
                self.actions.push_back(Action::Disconnect { replica: peer.id, session });
            }
            peer.link = Link::Down { retry_at: now };
            peer.welcome = None;
        }
        self.live = 0;
    }

    /// When a start that could do with those that are here stops waiting for the others.
    pub(super) fn start_deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Fencing { since } => {
                Some(since + self.config.start_patience).filter(|at| *at > self.next_heartbeat)
            }
            _ => None,
        }
    }

    /// Starts if the rules allow it, and nobody worth waiting for is missing.
    pub(super) fn try_start(&mut self, now: Now) {
        let Phase::Fencing { since } = self.phase else { return };
        let expected = self.peers.iter().filter(|p| p.absent.is_none() && !p.vacant).count();
        let here = usize::try_from(self.live.count_ones()).unwrap_or(0);
        if here < expected && now < since + self.config.start_patience {
            return;
        }
        if self.force_pending() {
            return self.try_forced(now);
        }
        self.note_older_copies();
        let (newest, configured, members, reseed) = match self.decision() {
            Decision::Start { newest, configured, members, reseed } => (newest, configured, members, reseed),
            Decision::Wait { missing, .. } => return self.look_for(missing, now),
        };
        if members.len() < self.config.min_in_sync {
            return;
        }
        if self.lease_of_predecessor(&newest).is_some_and(|until| now < until) {
            return;
        }
        // A clean end leaves the record at the newest view. A newer one is of an engine that the record does not know
        // of: it ran without the registry, and nobody knows how it ended.
        self.registry.was_clean &= newest == self.registry.status.view || !kept(Rule::CleanIsNewest);
        self.view = newest;
        self.configured = configured;
        self.begin_opening();
        if members == newest.members && !kept(Rule::OwnView) {
            return self.serve_at_once(newest, now);
        }
        self.propose(members, Reason::Start, reseed, now);
    }

    /// The first view is about to be proposed.
    pub(super) fn begin_opening(&mut self) {
        self.phase = Phase::Opening;
        if !self.registry.was_clean && kept(Rule::UncleanCounts) {
            // The engine before may have left what no flush has covered.
            self.writes_done += 1;
        }
    }

    /// What R3 forbids, for the test that shows why.
    fn serve_at_once(&mut self, newest: View, now: Now) {
        let members = self.mask_of(&newest.members);
        self.proposal = Some(Proposal {
            view: newest,
            members,
            named: members,
            configured: self.configured,
            lineage: None,
            reason: Reason::Start,
            persisted: members,
            by_registry: false,
            since: now,
        });
        self.commit(now);
    }

    pub(super) fn decision(&self) -> Decision {
        let fenced: Vec<_> = self.fenced().collect();
        decide(&self.registry.status, self.registry.version, self.registry.state, &fenced)
    }

    fn fenced(&self) -> impl Iterator<Item = (ReplicaId, &Welcome)> {
        slots(self.live).filter_map(|slot| {
            let peer = &self.peers[slot];
            peer.welcome.as_ref().map(|welcome| (peer.id, welcome))
        })
    }

    /// Replicas that a start must leave out for holding an older copy of themselves: they are rebuilt.
    fn note_older_copies(&mut self) {
        let fenced: Vec<_> = self.fenced().collect();
        let older = older_copies(&self.registry.status, &fenced);
        for slot in slots(self.mask_of(&older)) {
            self.peers[slot].is_older_copy();
        }
    }

    /// Proposes a view one epoch above the newest, and asks its members to persist it.
    pub(super) fn propose(&mut self, members: ReplicaSet, reason: Reason, by_registry: bool, now: Now) {
        // A change of the configured set that was proposed is never taken back either: a replica may know of it.
        let pending = self.proposal.as_ref().map(|p| (p.configured, p.lineage));
        let (configured, lineage) = pending.unwrap_or((self.configured, None));
        self.propose_with(members, (configured, lineage), reason, by_registry, now);
    }

    /// The same under another configured set, or in a new history. Either counts only once the registry has it, and so
    /// does the view after it.
    pub(super) fn propose_with(
        &mut self,
        members: ReplicaSet,
        (configured, lineage): (ReplicaSet, Option<Lineage>),
        reason: Reason,
        by_registry: bool,
        now: Now,
    ) {
        let last = self.proposal.as_ref().map_or(self.view.epoch, |p| p.view.epoch);
        let changes = configured != self.configured || lineage.is_some();
        let needs_registry = self.needs_registry(members.len(), configured) || changes;
        let Some(epoch) = last.max(self.view.epoch).next() else { return self.no_number_left(now) };
        let view = View { generation: self.registry.generation, epoch, members, needs_registry };
        let mask = self.mask_of(&members);
        let named = self.proposal.as_ref().map_or(0, |before| before.named) | mask;
        self.proposal = Some(Proposal {
            view,
            members: mask,
            named,
            configured,
            lineage,
            reason,
            persisted: 0,
            by_registry: needs_registry || by_registry,
            since: now,
        });
        self.rounds.stop();
        self.fill.stop_progress();
        self.renew_lease();
        for slot in slots(mask) {
            self.persist_view_on(slot);
        }
        self.advance(now);
    }

    /// Whether a view of so many members counts only once the registry has it.
    pub(super) fn needs_registry(&self, members: usize, configured: ReplicaSet) -> bool {
        let record = &self.registry.status;
        let minority = members < majority(configured.len()) && kept(Rule::MinorityAsks);
        let record_minority =
            record.view.members.len() < majority(record.configured.len()) && kept(Rule::RecordMinority);
        let after_flag =
            kept(Rule::Flag) && self.registry.state == RegistryState::Unreachable && self.view.needs_registry;
        minority || record_minority || after_flag
    }

    /// Asks a member of the proposal to persist it, if it has not yet and its turn has come: the one to be added is
    /// last.
    pub(super) fn persist_view_on(&mut self, slot: usize) {
        let Some(proposal) = &self.proposal else { return };
        if proposal.members & bit(slot) == 0 || proposal.persisted & bit(slot) != 0 {
            return;
        }
        if let Reason::Add { target } = proposal.reason
            && target == slot
            && proposal.persisted | bit(target) != proposal.members
        {
            return;
        }
        let view = proposal.view;
        let telling = match proposal.reason {
            Reason::Add { target } if target == slot => {
                Telling { adopt: self.handed_over(target), joins: true, ..Telling::default() }
            }
            Reason::Add { .. } | Reason::Start | Reason::Remove | Reason::Configure => Telling::default(),
        };
        self.tell_view(slot, view, Tag::View { epoch: view.epoch.0 }, telling);
    }

    /// Asks a member to persist a view.
    pub(super) fn send_view(&mut self, slot: usize, view: View) {
        self.tell_view(slot, view, Tag::View { epoch: view.epoch.0 }, Telling::default());
    }

    pub(super) fn tell_view(&mut self, slot: usize, view: View, tag: Tag, telling: Telling) {
        let Telling { syncing, rebased, refill, adopt, .. } = telling;
        let (configured, lineage) = self.terms_of(&view);
        let stamp = self.stamp_update(&view, &telling);
        let update = ViewUpdate {
            view,
            configured,
            lineage,
            new_history: lineage != self.registry.status.lineage,
            incarnation: self.registry.status.incarnation,
            revision: self.registry.version,
            syncing,
            repaired: !syncing && self.phase == Phase::Serving && self.unrepaired.is_empty(),
            // Whoever is to be added is remembered for until it is known to have persisted that it is.
            keep: configured.difference(&self.set_of(self.members)),
            refill,
            rebased,
            adopt,
            stamp,
        };
        let header = Header::request(Kind::PersistView, tag.encode(), 0);
        self.send(slot, header, Body::View(Box::new(update)));
    }

    /// Whether this engine has committed a view.
    fn is_committed(&self) -> bool {
        self.serves() || (self.phase == Phase::Opening && self.rounds.is_busy())
    }

    /// What is told of stamps beside a view; none where one of its members knows none.
    fn stamp_update(&self, view: &View, telling: &Telling) -> Option<StampUpdate> {
        let round = telling.round.unwrap_or(if telling.syncing { 0 } else { self.round_of(view) });
        let settled = match telling.joins {
            true => Some(view.stamp(0)),
            // Every member of the committed view has persisted it.
            false => self.is_committed().then(|| self.view.stamp(self.rounds.done())),
        };
        let known = self.know_stamps(self.mask_of(&view.members));
        known.then_some(StampUpdate { round, settled, advance: telling.advance })
    }

    /// A replica has answered about a view.
    pub(super) fn view_persisted(&mut self, slot: usize, epoch: u64, status: Status, now: Now) {
        if epoch == 0 {
            return self.target_marked(slot, status == Status::Ok, now);
        }
        let Some(proposal) = self.proposal.as_mut().filter(|p| p.view.epoch.0 == epoch) else { return };
        if status != Status::Ok {
            return self.member_failed(slot, format!("it cannot persist a view: {status:?}"), now);
        }
        proposal.persisted |= bit(slot);
        self.peers[slot].stamp = self.peers[slot].stamp.max(Some(proposal.view.stamp(0)));
        if let Reason::Add { target } = proposal.reason
            && proposal.persisted | bit(target) == proposal.members
        {
            self.persist_view_on(target);
        }
        self.advance(now);
    }

    /// Commits the proposal if all that is needed is there; asks the registry where it is needed.
    fn advance(&mut self, now: Now) {
        let Some(proposal) = &self.proposal else {
            self.follow();
            return;
        };
        if proposal.persisted != proposal.members {
            return;
        }
        if !proposal.by_registry {
            self.commit(now);
        } else if self.registry.pending.is_none() {
            let view = proposal.view;
            let wish = self.wish(view);
            self.ask(Purpose::Commit(view.epoch), wish);
        }
    }

    /// The configured set and the history of a view that is proposed or committed.
    fn terms_of(&self, view: &View) -> (ReplicaSet, Lineage) {
        let proposal = self.proposal.as_ref().filter(|proposal| proposal.view == *view);
        let configured = proposal.map_or(self.configured, |proposal| proposal.configured);
        let lineage = proposal.and_then(|proposal| proposal.lineage);
        (configured, lineage.unwrap_or(self.registry.status.lineage))
    }

    fn commit(&mut self, now: Now) {
        let Some(proposal) = self.proposal.take() else { return };
        self.view = proposal.view;
        self.rounds.begin_view();
        self.left(self.members & !proposal.members);
        self.members = proposal.members;
        self.renew_lease();
        self.configured = proposal.configured;
        match proposal.reason {
            Reason::Start | Reason::Remove | Reason::Configure => {}
            Reason::Add { target } => self.target_added(target, now),
        }
        if self.phase == Phase::Opening {
            self.open(proposal.by_registry, now);
        }
        for slot in 0..self.peers.len() {
            if self.members & bit(slot) == 0 {
                self.peers[slot].failed = None;
                (self.peers[slot].lost, self.peers[slot].restarted) = (false, false);
            }
        }
        self.seat_configured(now);
        self.go_on(now);
    }

    /// A view counts, or clients may come under it: what waited for that is done.
    pub(super) fn go_on(&mut self, now: Now) {
        self.view_committed(now);
        self.reads_again(now);
        self.follow();
        self.reconsider(now);
        self.change_configured(now);
        self.fill_next(now);
    }

    /// The first view counts. Before anything is acknowledged under it the record, or every member, remembers that all of
    /// them have persisted it: so the copy of a member from before this start is known for what it is.
    fn open(&mut self, recorded: bool, now: Now) {
        let known = recorded || self.members.count_ones() < 2 || !self.know_stamps(self.members);
        if known || !kept(Rule::SettledBeforeServing) {
            self.opened(now);
        } else {
            self.begin_round(RegionMap::of(self.config.volume_bytes.div_ceil(GROUP_BYTES)), now);
        }
    }

    /// Clients may come.
    pub(super) fn opened(&mut self, now: Now) {
        self.phase = Phase::Serving;
        self.leave_old_history(now);
        if !self.registry.was_clean && self.members.count_ones() > 1 {
            self.unrepaired = RegionMap::full(self.config.volume_bytes);
            self.fill.repair_unknown = true;
        }
        self.actions.push_back(Action::Serve);
    }

    pub(super) fn any_failed_member(&self) -> bool {
        slots(self.required()).any(|slot| self.peers[slot].failed.is_some())
    }

    /// Members that failed leave, where a view without them is possible.
    pub(super) fn reconsider(&mut self, now: Now) {
        if !matches!(self.phase, Phase::Opening | Phase::Serving | Phase::Draining) {
            return;
        }
        let base = self.required();
        let failed = slots(base)
            .filter(|slot| self.peers[*slot].failed.is_some())
            .fold(0, |mask, slot| mask | bit(slot));
        let remain = base & !failed;
        let enough = usize::try_from(remain.count_ones()).unwrap_or(0) >= self.config.min_in_sync.max(1);
        if failed == 0 || !enough || remain & !self.live != 0 || now < self.remove_not_before {
            if failed == 0 {
                self.retry_registry(now);
            }
            return;
        }
        if matches!(self.proposal, Some(Proposal { reason: Reason::Add { target }, .. }) if failed == bit(target))
            && !kept(Rule::AddStays)
        {
            self.proposal = None;
            return self.view_committed(now);
        }
        if remain == self.unsure_target() {
            // The others are waited for, as if its filling had not ended.
            return;
        }
        let members = self.set_of(remain);
        let (reason, by_registry) = match &self.proposal {
            Some(Proposal { reason: Reason::Start, by_registry, .. }) => (Reason::Start, *by_registry),
            Some(_) | None => (Reason::Remove, false),
        };
        self.propose(members, reason, by_registry, now);
    }

    /// Whoever is being added and has not said yet that it is a member: it may refuse to be (its disk failed while it was
    /// filled), and where it were alone, no view could follow.
    pub(super) fn unsure_target(&self) -> Mask {
        match &self.proposal {
            Some(Proposal { reason: Reason::Add { target }, persisted, .. }) => bit(*target) & !persisted,
            Some(_) | None => 0,
        }
    }

    /// Whether a view may be proposed that nothing forces now.
    pub(super) fn may_propose(&self) -> bool {
        let idle = self.phase == Phase::Serving && self.proposal.is_none();
        idle && !self.any_failed_member() && self.members & !self.live == 0
    }

    /// Proposes to add a replica that holds everything. False: not now.
    pub(super) fn propose_add(&mut self, target: usize, now: Now) -> bool {
        if !self.may_propose() {
            return false;
        }
        let members = self.set_of(self.members | bit(target));
        self.propose(members, Reason::Add { target }, false, now);
        true
    }

    /// Whether clients' requests are carried out now.
    pub(super) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining)
    }

    /// Whether clients' requests are taken (they may have to wait).
    pub(super) fn takes_requests(&self) -> bool {
        !matches!(self.phase, Phase::Draining | Phase::Ended)
    }

    /// Takes no more requests; ends once those taken are done, flushed on every member, and the record says so.
    pub fn drain(&mut self, now: Now) {
        match self.phase {
            Phase::Serving => {
                self.phase = Phase::Draining;
                self.drained(now);
            }
            Phase::New | Phase::Attaching | Phase::Fencing { .. } | Phase::Opening => {
                self.end(Ending::Unclean("it had not started to serve".to_owned()), now);
            }
            Phase::Draining | Phase::Ended => {}
        }
    }

    /// Goes on with the drain when the last operation has ended.
    pub(super) fn drained(&mut self, now: Now) {
        if self.phase != Phase::Draining {
            return;
        }
        let rounds = self.rounds.is_busy();
        let busy = self.ops.clients > 0 || self.ops.any(|_| true) || self.proposal.is_some() || rounds;
        if !busy && self.registry.pending.is_none() {
            self.admit(Work::FlushAll, 0, 0, now);
            self.run_ready(now);
        }
    }

    pub(super) fn flushed_all(&mut self, ok: bool, now: Now) {
        if !ok {
            return self.end(Ending::Unclean("the last flush failed".to_owned()), now);
        }
        if !self.unrepaired.is_empty() {
            let left = self.unrepaired.count();
            let why = format!("{left} regions have not been compared since the last unclean end");
            return self.end(Ending::Unclean(why), now);
        }
        self.settle_all(now);
    }

    /// The record is told that every member holds the same, on stable storage.
    pub(super) fn mark_clean(&mut self) {
        let wish = VolumeStatus { clean: true, ..self.wish(self.view) };
        self.ask(Purpose::Clean, wish);
    }

    pub(super) fn end(&mut self, ending: Ending, now: Now) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        self.proposal = None;
        self.fail_clients(now);
        self.actions.push_back(Action::End(ending));
    }

    /// I/O that could not be done for too long fails; the engine stays.
    pub(super) fn check_suspended(&mut self, now: Now) {
        let blocked = self.blocked(now);
        self.suspended_since = match (blocked, self.suspended_since) {
            (false, _) => None,
            (true, None) => Some(now),
            (true, since) => since,
        };
        if self.suspended_since.is_some()
            && self
                .oldest_client()
                .is_some_and(|since| now.saturating_sub(since) >= self.config.suspend_timeout)
        {
            self.fail_clients(now);
        }
    }

    /// Whether nothing can be acknowledged now (a change of view that takes its normal course is not meant).
    pub(super) fn blocked(&self, now: Now) -> bool {
        const NORMAL: Duration = Duration::from_secs(1);
        if !self.serves() {
            return true;
        }
        let slow = self.proposal.as_ref().is_some_and(|p| now.saturating_sub(p.since) > NORMAL);
        let stuck = self.proposal.is_none() && self.any_failed_member();
        slow || stuck || self.lease_is_lost(now)
    }
}
