//! The replicas as the engine sees them: connections, what they owe, and when one has failed.

use std::time::Duration;

use holdfast_proto::ids::{BootId, Generation, ReplicaId};
use holdfast_proto::record::Stamp;

use super::lag::Lag;
use super::lease::Presence;
use super::missed::Missed;
use super::tag::Tag;
use super::unanswered::Unanswered;
use super::view::Phase;
use super::{Action, Body, ConnectFailure, Ending, Engine, Now, bit, slots};
use crate::core::rules::{Rule, kept};
use crate::wire::handshake::Welcome;
use crate::wire::header::{Header, Status};

/// The first retry of a connection, and the longest wait between two.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// After a stall of all, how long the first to return waits for the others.
const STALL_GRACE: Duration = Duration::from_secs(1);
/// How often in a row the engine at once remakes a connection that it cannot believe. A guess: one is enough for an engine
/// that was superseded, and a replica that is not its own master is left out soon.
const DISTRUSTS_MAX: u32 = 3;
/// A frame without an answer while so many later ones were sent has been lost: the account of them takes 8 MiB by then.
const SPAN_MAX: u64 = 1 << 26;
/// A member that owes an answer for this long is reported as suspect.
pub(super) const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// Why a replica is rebuilt although it was a member.
const OLDER_COPY: &str =
    "its directory is an older copy of itself (a restored snapshot, backup or clone): it is rebuilt";

/// The connection to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// None; tried again then.
    Down { retry_at: Now },
    /// Being made.
    Connecting,
    /// There.
    Up { session: u64 },
}

/// One configured replica.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) id: ReplicaId,
    /// Nobody has this place: who had it is not configured any more.
    pub(super) vacant: bool,
    /// Somebody said where it is.
    pub(super) known: bool,
    pub(super) local: bool,
    /// Its directory is missing: nobody waits for it.
    pub(super) absent: Option<String>,
    pub(super) link: Link,
    attempts: u32,
    /// What it said of itself when it last promised to this engine.
    pub(super) welcome: Option<Welcome>,
    /// The newest stamp that it told, or said to have persisted.
    pub(super) stamp: Option<Stamp>,
    /// It holds an older copy of itself than it did: what the members remember of it does not count.
    pub(super) older: bool,
    boot: BootId,
    /// Frames sent and not answered, and since when nothing was answered but that it is there.
    pub(super) owes: u32,
    pub(super) quiet_since: Now,
    pub(super) frames: Unanswered,
    /// How often in a row it said what no connection may say; none of it was believed.
    distrusted: u32,
    pub(super) presence: Presence,
    pub(super) lag: Lag,
    pub(super) missed: Missed,
    /// It failed while a member: it is to leave as soon as a view without it can be committed.
    pub(super) failed: Option<String>,
    /// It lost what it had acknowledged: it cannot stay a member, however well it answers now.
    pub(super) lost: bool,
    /// Its node restarted while it was a member: nothing shows that its disk did not go back to an earlier state.
    pub(super) restarted: bool,
    /// The last thing that went wrong with it.
    pub(super) reason: String,
}

impl Peer {
    pub(super) fn new(id: ReplicaId) -> Self {
        Self {
            id,
            vacant: false,
            known: false,
            local: false,
            absent: None,
            link: Link::Down { retry_at: Duration::ZERO },
            attempts: 0,
            welcome: None,
            stamp: None,
            older: false,
            boot: BootId::nil(),
            owes: 0,
            quiet_since: Duration::ZERO,
            frames: Unanswered::default(),
            distrusted: 0,
            presence: Presence::default(),
            lag: Lag::default(),
            missed: Missed::default(),
            failed: None,
            lost: false,
            restarted: false,
            reason: String::new(),
        }
    }
    /// What the model checker tells states apart by: numbers that only grow are left out, and of times only whether
    /// they have come. `deciding`: what it said of itself still matters as a whole.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, deciding: bool, now: Now, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        match self.link {
            Link::Down { retry_at } => (retry_at > now).hash(h),
            Link::Connecting => h.write_u8(2),
            Link::Up { .. } => h.write_u8(3),
        }
        (self.id, self.vacant).hash(h);
        (self.known, self.local, self.absent.is_some(), self.boot, self.owes).hash(h);
        (self.failed.is_some(), self.lost, self.welcome.is_some(), &self.missed).hash(h);
        (self.stamp, self.older, self.restarted).hash(h);
        if let Some(w) = &self.welcome {
            (w.syncing, w.cache_lost, w.failed.is_empty(), w.basis, w.stamps).hash(h);
            if deciding {
                (w.view, w.configured, w.incarnation, w.revision, w.settled).hash(h);
            }
        }
    }
    /// Its directory is an older copy of itself: only a rebuild makes it a member again.
    pub(super) fn is_older_copy(&mut self) {
        self.older = true;
        self.missed.forget();
        OLDER_COPY.clone_into(&mut self.reason);
    }
    fn backoff(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        RETRY_MIN.saturating_mul(1 << self.attempts.min(6).saturating_sub(1)).min(RETRY_MAX)
    }
}

impl Engine {
    /// Where a replica is known to be, or that its directory is missing.
    pub fn locate(&mut self, replica: ReplicaId, known: bool, local: bool, absent: Option<String>, now: Now) {
        let Some(slot) = self.slot_of(replica) else {
            return self.keep_place(replica, known, local, absent, now);
        };
        let peer = &mut self.peers[slot];
        peer.known = known;
        peer.local = local;
        peer.absent = absent;
        peer.attempts = 0;
        if let Link::Down { .. } = peer.link {
            peer.link = Link::Down { retry_at: now.max(peer.lag.not_before()) };
        }
        self.connect_due(now);
        self.fail_unreachable(now);
        self.try_start(now);
    }

    /// A member without a connection is waited for no longer than one that does not answer; one that runs nowhere (its
    /// process has ended, its directory is missing) is not waited for at all: nobody is going to try to reach it.
    fn fail_unreachable(&mut self, now: Now) {
        for slot in slots(self.required() & !self.live) {
            let peer = &self.peers[slot];
            if peer.failed.is_some() {
                continue;
            }
            let nowhere = matches!(peer.link, Link::Down { .. }) && (!peer.known || peer.absent.is_some());
            let gone = nowhere
                .then(|| peer.absent.clone().unwrap_or_else(|| format!("it does not run ({})", peer.reason)));
            let late = (now.saturating_sub(peer.quiet_since) >= self.config.replica_timeout)
                .then(|| format!("no connection for {} s", self.config.replica_timeout.as_secs()));
            if let Some(reason) = gone.or(late) {
                self.member_failed(slot, reason, now);
            }
        }
    }

    /// Whether connections to replicas are wanted now.
    fn connects(&self) -> bool {
        matches!(self.phase, Phase::Fencing { .. } | Phase::Opening | Phase::Serving | Phase::Draining)
    }

    /// Asks for every connection whose time has come.
    pub(super) fn connect_due(&mut self, now: Now) {
        if !self.connects() {
            return;
        }
        for slot in 0..self.peers.len() {
            let lineage = self.hello_lineage(self.peers[slot].id);
            let peer = &mut self.peers[slot];
            let due = matches!(peer.link, Link::Down { retry_at } if retry_at <= now);
            if due && peer.known && peer.absent.is_none() {
                peer.link = Link::Connecting;
                peer.presence.asked(now);
                let action = Action::Connect {
                    replica: peer.id,
                    generation: self.registry.generation,
                    lineage,
                    epoch: self.view.epoch,
                };
                self.actions.push_back(action);
            }
        }
    }

    /// The handshake succeeded: the replica has persisted its promise to this engine's generation.
    pub fn connected(
        &mut self,
        replica: ReplicaId,
        session: u64,
        promised: Generation,
        welcome: Welcome,
        boot: BootId,
        now: Now,
    ) {
        let Some(slot) = self.slot_of(replica) else {
            // It was taken out of the configured set meanwhile.
            self.actions.push_back(Action::Disconnect { replica, session });
            return;
        };
        if !self.connects() || promised != self.registry.generation {
            // A handshake that began before this engine took a higher number.
            self.actions.push_back(Action::Disconnect { replica, session });
            return;
        }
        self.drop_link(slot, now, now);
        let wrong = if !self.takes_lineage(replica, welcome.lineage) {
            Some("its data is of another history (lineage)".to_owned())
        } else if welcome.size_bytes != self.config.volume_bytes {
            Some(format!("it was made for {} bytes", welcome.size_bytes))
        } else {
            self.absurd(&welcome, promised)
        };
        if let Some(reason) = wrong {
            self.actions.push_back(Action::Disconnect { replica, session });
            self.connect_failed(replica, ConnectFailure::Refused(reason), now);
            return;
        }
        let former_boot = self.peers[slot].boot;
        let peer = &mut self.peers[slot];
        peer.link = Link::Up { session };
        peer.attempts = 0;
        peer.owes = 0;
        peer.frames.begin();
        peer.quiet_since = now;
        peer.boot = boot;
        let first = peer.welcome.is_none();
        let older = welcome.stamps && welcome.basis < peer.stamp;
        peer.stamp = welcome.basis;
        peer.welcome = Some(welcome);
        if older {
            peer.is_older_copy();
        }
        peer.presence.welcomed(first, now);
        self.renew_lease();
        if self.required() & bit(slot) != 0 && !first {
            self.member_returned(slot, former_boot, now);
        } else {
            self.live |= bit(slot);
            self.peers[slot].failed = None;
            if !self.peers[slot].older {
                self.peers[slot].reason = String::new();
            }
        }
        self.try_start(now);
        self.reads_again(now);
        self.fill_next(now);
    }

    /// Numbers that no history of this volume can have brought about: damaged, or made up.
    fn absurd(&self, welcome: &Welcome, promised: Generation) -> Option<String> {
        let known = self.view.epoch.max(self.registry.status.view.epoch);
        let far = |stamp: &Stamp| {
            let view = stamp.generation.jumps_from(promised) || stamp.epoch.jumps_from(known);
            view || stamp.round > Stamp::ROUND_MAX
        };
        let stamps = [Some(welcome.view.stamp(0)), welcome.basis, welcome.settled];
        let wrong = stamps.into_iter().flatten().find(far);
        wrong.map(|stamp| format!("its data is of view {stamp}, which cannot be after {promised}.{known}"))
    }

    /// A member's connection was lost and is back. Its process may be another one, but what it acknowledged is in its
    /// node's page cache; unless the node restarted.
    fn member_returned(&mut self, slot: usize, former_boot: BootId, now: Now) {
        let restarted = self.peers[slot].boot != former_boot || self.peers[slot].restarted;
        self.peers[slot].restarted = restarted && kept(Rule::LostStays);
        let restarted = restarted && kept(Rule::RestartedLeaves);
        let peer = &self.peers[slot];
        let unflushed = self.writes_done != self.writes_flushed || self.ops.answered_by(slot);
        let rebooted = (peer.lost && kept(Rule::LostStays))
            || (peer.boot != former_boot && unflushed && kept(Rule::BootId))
            || peer.older;
        let broken = peer.welcome.as_ref().map_or("", |w| &w.failed);
        let others = self.required() & !bit(slot) & !self.unsure_target();
        let alone = slots(others).all(|other| self.peers[other].failed.is_some());
        // The last member stays although a flush failed on it: consumers were told, and no copy is better. It stays after
        // a restart of its node, too, where all was flushed.
        if rebooted || ((restarted || !broken.is_empty()) && !alone) {
            let reason = match rebooted {
                true if peer.older => OLDER_COPY.to_owned(),
                true => "its node restarted: what it answered and had not flushed may be gone".to_owned(),
                false if broken.is_empty() => "its node restarted: it is compared with the others".to_owned(),
                false => format!("a flush failed on it ({broken})"),
            };
            self.peers[slot].lost = rebooted;
            let sure = self.required() & !self.unsure_target();
            if slots(sure).all(|member| self.peers[member].lost) {
                // Consumers believe in writes that are in no cache any more. (What one has that is not known to be a
                // member does not count: no view follows with it alone.)
                self.end(Ending::CacheLost, now);
                return;
            }
            self.member_failed(slot, reason, now);
            return;
        }
        let all_had_failed = slots(self.required()).all(|s| self.peers[s].failed.is_some());
        if all_had_failed {
            self.remove_not_before = now + STALL_GRACE;
        }
        self.peers[slot].failed = None;
        self.peers[slot].reason = String::new();
        self.live |= bit(slot);
        self.persist_view_on(slot);
        self.send_round(slot);
        self.send_again(slot);
        self.reconsider(now);
        self.run_held(now);
    }

    /// The connection could not be made, or the handshake said no.
    pub fn connect_failed(&mut self, replica: ReplicaId, why: ConnectFailure, now: Now) {
        let Some(slot) = self.slot_of(replica) else { return };
        let backoff = self.peers[slot].backoff();
        self.peers[slot].link = Link::Down { retry_at: now + backoff };
        let reason = match why {
            ConnectFailure::Fenced { generation, engine } => {
                let ours = self.registry.generation;
                if !generation.jumps_from(ours) {
                    return self.refused(generation, engine, now);
                }
                format!("it is promised to generation {generation}, which no engine can have after {ours}")
            }
            ConnectFailure::Refused(reason) => {
                self.try_other_lineage(replica);
                reason
            }
            ConnectFailure::Gone(reason) | ConnectFailure::Unreachable(reason) => reason,
        };
        self.peers[slot].reason = reason.clone();
        if self.required() & bit(slot) != 0 {
            self.member_failed(slot, reason, now);
        }
        self.try_start(now);
    }

    /// The connection broke. A member is tried again at once: a reset is not a failure.
    pub fn disconnected(&mut self, replica: ReplicaId, session: u64, reason: &str, now: Now) {
        let Some(slot) = self.slot_of(replica) else { return };
        if self.peers[slot].link != (Link::Up { session }) {
            return;
        }
        reason.clone_into(&mut self.peers[slot].reason);
        self.drop_link(slot, now, now);
        if self.required() & bit(slot) == 0 {
            self.give_up_target(slot, reason.to_owned(), now);
        }
        self.ask_others(slot, now);
        self.connect_due(now);
        self.fail_unreachable(now);
    }

    /// Forgets the connection, if there is one.
    pub(super) fn drop_link(&mut self, slot: usize, retry_at: Now, now: Now) {
        let peer = &mut self.peers[slot];
        if let Link::Up { session } = peer.link {
            self.actions.push_back(Action::Disconnect { replica: peer.id, session });
        }
        peer.missed.disconnected();
        peer.link = Link::Down { retry_at: retry_at.max(peer.lag.not_before()) };
        peer.owes = 0;
        peer.quiet_since = now;
        peer.presence.dropped();
        peer.lag.dropped();
        self.live &= !bit(slot);
        self.fill_lost_member(slot, now);
    }

    /// Drops the connection; it is made again after a while.
    pub(super) fn hang_up(&mut self, slot: usize, reason: String, now: Now) {
        let backoff = self.peers[slot].backoff();
        self.peers[slot].reason = reason;
        if matches!(self.peers[slot].link, Link::Up { .. }) {
            self.drop_link(slot, now + backoff, now);
        }
    }

    /// A member that cannot go on: it leaves by a view of its own, before any write that it lacks is acknowledged.
    pub(super) fn member_failed(&mut self, slot: usize, reason: String, now: Now) {
        let backoff = self.peers[slot].backoff();
        if matches!(self.peers[slot].link, Link::Up { .. }) {
            self.drop_link(slot, now + backoff, now);
        }
        self.peers[slot].reason.clone_from(&reason);
        if self.required() & bit(slot) == 0 {
            return;
        }
        if self.peers[slot].failed.is_none() {
            self.peers[slot].failed = Some(reason.clone());
        }
        // One that was about to be added begins anew: it may miss writes from here on.
        self.give_up_target(slot, reason, now);
        self.ask_others(slot, now);
        self.reconsider(now);
    }

    /// A reply came. `inline` is the payload where [`super::PayloadUse::Inline`] was said.
    pub fn reply(&mut self, replica: ReplicaId, session: u64, header: &Header, inline: &[u8], now: Now) {
        let Some(slot) = self.slot_of(replica) else { return };
        let peer = &mut self.peers[slot];
        if peer.link != (Link::Up { session }) || !header.reply {
            return;
        }
        if !peer.frames.answered(header.sequence) {
            let reason = format!("it answered what was not asked (sequence {})", header.sequence);
            return self.distrust(slot, reason, now);
        }
        if header.status == Status::Fenced {
            // A frame carries no proof of its sender; the handshake says it under a MAC, or not at all.
            let reason = "it says that it is promised to another engine; it is asked again".to_owned();
            return self.distrust(slot, reason, now);
        }
        let tag = Tag::decode(header.tag);
        peer.owes = peer.owes.saturating_sub(1);
        if peer.missed.owes_flush()
            && header.status == Status::Ok
            && self.ops.asked_to_flush(header.kind, tag)
        {
            peer.missed.flushed();
        }
        let ping = tag == Some(Tag::Ping);
        if !ping {
            peer.distrusted = 0;
        }
        if !ping || peer.owes == 0 {
            // One that only says that it is there, and does nothing of what it was asked, is silent.
            peer.quiet_since = now;
        }
        peer.lag.answered(header.sequence, now);
        self.present(slot, header.sequence, now);
        match tag {
            Some(Tag::Ping) | None => {}
            Some(Tag::Refill) => self.refilled(slot, header.status, now),
            Some(Tag::Round { round }) => self.round_persisted(slot, round, header.status, now),
            Some(Tag::Progress) => self.progress_persisted(slot, header.status == Status::Ok, now),
            Some(Tag::View { epoch }) => self.view_persisted(slot, epoch, header.status, now),
            Some(Tag::Op { op, attempt, part }) => {
                self.op_reply(slot, (op, attempt, part), header, inline, now);
            }
        }
        self.drained(now);
    }

    /// A connection on which came what an honest replica does not say, or what only a handshake may say. It is made
    /// again at once, and what was asked and not answered is asked again; one that goes on like this has failed.
    #[cold]
    fn distrust(&mut self, slot: usize, reason: String, now: Now) {
        let peer = &mut self.peers[slot];
        let Link::Up { session } = peer.link else { return };
        peer.distrusted += 1;
        if peer.distrusted > DISTRUSTS_MAX {
            peer.distrusted = 0;
            return self.lost(slot, reason, now);
        }
        let replica = peer.id;
        self.disconnected(replica, session, &reason, now);
    }

    /// Hands a frame to the shell.
    pub(super) fn send(&mut self, slot: usize, header: Header, body: Body) {
        let generation = self.registry.generation.0;
        let peer = &mut self.peers[slot];
        let Link::Up { session } = peer.link else { return };
        let sequence = peer.frames.sent();
        peer.owes += 1;
        peer.missed.sent(&header);
        peer.lag.sent(&header);
        let header = Header { sequence, generation, ..header };
        self.actions.push_back(Action::Send { replica: peer.id, session, header, body });
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        self.check_silence(now);
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.config.heartbeat;
            self.check_lag(now);
            self.ask_presence(now);
            self.note_lease(now);
        }
        self.registry_again(now);
        self.connect_due(now);
        self.fail_unreachable(now);
        self.try_start(now);
        self.reconsider(now);
        if now >= self.remove_not_before {
            self.remove_not_before = Duration::ZERO;
        }
        self.zero_next(now);
        self.run_ready(now);
        self.sweep_intent(now);
        self.change_configured(now);
        self.fill_next(now);
        self.watch_fill(now);
        self.check_suspended(now);
        self.drained(now);
    }

    /// Replicas that owe answers and give none have failed. Where no member answers, it is a stall of all: none of them
    /// leaves for it, whoever was the first to fall silent.
    fn check_silence(&mut self, now: Now) {
        let timeout = self.config.replica_timeout;
        let (mut silent, mut quiet) = (0, 0);
        for slot in slots(self.live) {
            let peer = &mut self.peers[slot];
            if peer.owes == 0 {
                peer.quiet_since = now;
                continue;
            }
            let since = now.saturating_sub(peer.quiet_since);
            silent |= if since >= timeout { bit(slot) } else { 0 };
            quiet |= if since >= timeout / 2 { bit(slot) } else { 0 };
        }
        let members = self.required();
        let answering = members & self.live & !quiet;
        if silent & members != 0 && answering == 0 {
            silent |= members & self.live;
            for slot in slots(silent & members) {
                // Before any is dealt with: with all marked, there is nobody to go on without them.
                self.peers[slot].failed.get_or_insert_with(|| "no member answers".to_owned());
            }
        }
        for slot in slots(silent) {
            self.lost(slot, format!("no answer for {} s", timeout.as_secs()), now);
        }
        for slot in slots(self.live) {
            if self.peers[slot].frames.span() > SPAN_MAX {
                self.lost(slot, format!("a request has no answer after {SPAN_MAX} later ones"), now);
            }
        }
    }

    /// A replica that owes answers gives none.
    pub(super) fn lost(&mut self, slot: usize, reason: String, now: Now) {
        if self.required() & bit(slot) != 0 {
            self.member_failed(slot, reason, now);
        } else {
            self.hang_up(slot, reason.clone(), now);
            self.give_up_target(slot, reason, now);
        }
    }

    /// When [`Self::tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        if matches!(self.phase, Phase::New | Phase::Ended) {
            return None;
        }
        let wanted = self.peers.iter().filter(|p| self.connects() && p.known && p.absent.is_none());
        let retries = wanted.filter_map(|p| match p.link {
            Link::Down { retry_at } => Some(retry_at),
            Link::Connecting | Link::Up { .. } => None,
        });
        let silences = slots(self.live)
            .filter(|slot| self.peers[*slot].owes > 0)
            .map(|slot| self.peers[slot].quiet_since + self.config.replica_timeout);
        let missing = slots(self.required() & !self.live)
            .filter(|slot| self.peers[*slot].failed.is_none())
            .map(|slot| self.peers[slot].quiet_since + self.config.replica_timeout);
        let stall = (self.remove_not_before > Duration::ZERO && self.any_failed_member())
            .then_some(self.remove_not_before);
        retries
            .chain(silences)
            .chain(missing)
            .chain(stall)
            .chain([self.next_heartbeat])
            .chain(self.start_deadline())
            .chain(self.fill.next_at())
            .chain(self.repair_next_at())
            .chain(self.zeroing.next_at())
            .min()
    }
}
