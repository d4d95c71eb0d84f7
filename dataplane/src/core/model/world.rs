//! The whole: engines, replicas, registry, network and clients; which steps are possible, and what each does.
//!
//! Reductions, and why each loses nothing:
//! - *A frame is carried out and answered in one step.* An answer that comes later than that is the same as a frame that
//!   is carried out later: nobody else sees the replica in between without ending the connection. What is left is an
//!   answer that never comes ([`Step::Lose`]): from then on the connection is mute, until it breaks.
//! - *What a broken connection had delivered was carried out before it broke* (by [`Step::Lose`]): a replica ends the
//!   I/O of one connection before it takes another, so nobody can tell.
//! - *An engine does not die*: it is never heard again. A question that it asked the registry may still be carried out
//!   later ([`Step::Late`]). One that was lost is one that is late for ever.
//! - *A replica persists at once*; see [`Node::fence`].
//! - *Time* is not here. [`Step::Tick`] is: everything that was to be done after a while is due. No answer is ever
//!   too late by itself; an engine learns that a connection broke, or that none can be made.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::ids::{Incarnation, InstanceUuid, ReplicaId};
use holdfast_proto::record::VolumeStatus;

use super::node::{Frame, Node, id_of};
use super::print::{self, Print};
use super::truth::{BLOCKS, Data, Truth, Values, one};
use crate::core::engine::{
    Action, Body, Config, ConnectFailure, Engine, Now, OpId, Outcome, PayloadUse, RegistryOutcome, Request,
};
use crate::core::rules::{Rule, kept};
use crate::units::BLOCK_BYTES;
use crate::wire::handshake::{RefusalKind, Refused};

pub(super) const SIZE: u64 = BLOCKS as u64 * BLOCK_BYTES;
/// Longer than anything in an engine but what never happens here.
const A_WHILE: Duration = Duration::from_secs(3600);
/// The UUID of an engine that starts when there is none: above all that are left of former ones.
const NEW_ENGINE: u128 = 1000;
const NEVER: Duration = Duration::from_secs(1 << 40);

/// What may happen, how often.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Budget {
    /// Engines that are started.
    pub(super) engines: u8,
    pub(super) writes: u8,
    pub(super) reads: u8,
    pub(super) flushes: u8,
    /// Connections that break, or cannot be made, or become mute.
    pub(super) faults: u8,
    /// Replica processes that are killed.
    pub(super) kills: u8,
    /// Nodes that restart.
    pub(super) reboots: u8,
    /// Flushes that a disk fails.
    pub(super) failures: u8,
    /// Questions that the registry does not answer.
    pub(super) away: u8,
    /// The registry is restored from an older copy, with a new incarnation.
    pub(super) restores: u8,
    /// Engines that are asked to end cleanly.
    pub(super) detaches: u8,
    /// Replicas whose node and disk go back to an earlier state: a virtual machine that is restored.
    pub(super) rollbacks: u8,
}

/// A [`Budget`] in few bits: four for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Left(u64);

impl Budget {
    fn left(&self) -> Left {
        let Self {
            engines,
            writes,
            reads,
            flushes,
            faults,
            kills,
            reboots,
            failures,
            away,
            restores,
            detaches,
            rollbacks,
        } = *self;
        let few = [engines, reads, flushes, faults, kills, reboots, failures, away, restores, detaches];
        let all = few.into_iter().chain([rollbacks, writes]);
        Left(all.fold(0, |left, n| {
            assert!(n < 16, "four bits");
            left << 4 | u64::from(n)
        }))
    }
}

impl Left {
    fn each(self) -> impl Iterator<Item = u8> {
        (0..16).map(move |place| (self.0 >> (4 * place) & 15) as u8)
    }
    /// The greater, the sooner it is looked at. Writes do not count: where fewer are left, the clients know it, and it is
    /// another state.
    pub(super) fn rank(self) -> u8 {
        self.each().skip(1).sum()
    }
    /// Whether all that `other` allows is allowed.
    pub(super) fn covers(self, other: Self) -> bool {
        self.each().zip(other.each()).all(|(mine, theirs)| mine >= theirs)
    }
}

/// What does not change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Writes go to one block, each over the last; else in turn to two.
    pub(super) overwrite: bool,
    /// An engine lives on when the next is started; else it is gone by then.
    pub(super) zombies: bool,
    /// The next engine is of the same instance: the same UUID in another process.
    pub(super) same_instance: bool,
    /// With every tick write-intent bits are swept; else only at a clean end.
    pub(super) sweeps: bool,
    /// Replicas know stamps; else they are of a build from before there were any.
    pub(super) stamps: bool,
    /// Numbers and names stay as they are: to see that renaming them loses nothing.
    pub(super) as_named: bool,
}

/// One thing that happens. Engines are numbered in the order in which they started, since there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    /// The registry carries out what this engine asked, and answers.
    Answer(u8),
    /// This engine is told that the registry cannot be reached. What it asked may be carried out later.
    Away(u8),
    /// A question whose asker was told otherwise is carried out.
    Late(u8),
    Restore(u8),
    /// A handshake succeeds or is refused.
    Fence(u8, u8),
    /// A replica promises, and the engine never hears of it.
    FenceUnheard(u8, u8),
    /// No connection can be made.
    Fail(u8, u8),
    Cut(u8, u8),
    /// An engine learns that its connection is gone.
    Notice(u8, u8),
    Deliver(u8, u8),
    /// A replica's disk fails the flush that it is told.
    FlushFails(u8, u8),
    /// A replica does what it is told, and no answer comes on this connection any more.
    Lose(u8, u8),
    Tick(u8),
    Write(u8),
    Read(u8, u8, u8),
    Flush(u8),
    Detach(u8),
    Kill(u8),
    /// The node restarts; of what was not flushed, these blocks are gone.
    Reboot(u8, u8),
    /// A write of a connection that is gone reaches the disk: only where the drain is taken away.
    Undrained(u8),
    /// A copy is made of a replica's disk; of what was not flushed, these blocks are not in it.
    Copy(u8, u8),
    /// The node begins anew with that copy.
    GoBack,
}

/// A connection as both of its ends see it.
#[derive(Debug, Clone)]
enum Link {
    None,
    /// The engine wants one.
    Wanted,
    Up {
        queue: VecDeque<Frame>,
        mute: bool,
    },
    /// The replica has none; the engine does not know yet.
    Dead,
}

#[derive(Debug, Clone, Copy, Hash)]
enum ClientOp {
    Write { block: usize, value: u8 },
    Read { block: usize, writes_before: usize },
    Flush { durable: [Values; BLOCKS] },
}

/// A process with an engine.
#[derive(Debug, Clone)]
struct Running {
    engine: Engine,
    uuid: InstanceUuid,
    now: Now,
    links: Vec<Link>,
    ask: Option<(u64, u64, VolumeStatus)>,
    buffers: BTreeMap<u32, Data>,
    clients: BTreeMap<u32, (u32, ClientOp)>,
    ended: bool,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct World {
    kind: Kind,
    left: Budget,
    /// Shared by the states in which they are the same.
    pub(super) nodes: Vec<Rc<Node>>,
    engines: Vec<Running>,
    /// One is about to start, where no other is left: made when it is looked at, since many such states wait for that.
    starting: bool,
    pub(super) record: (u64, VolumeStatus),
    /// The oldest record that an engine may have read which does not reach the registry now.
    first: VolumeStatus,
    lives: u8,
    /// Asked, and not carried out yet, by engines that do not wait for it.
    late: Vec<(u64, VolumeStatus)>,
    /// What the record was: kept while it may be restored.
    history: Vec<(u64, VolumeStatus)>,
    /// A copy of a replica's disk.
    copy: Option<(u8, Rc<Node>)>,
    /// An engine serves from an older copy alone: what is lost is said in the documents, and nothing is checked.
    lost: bool,
    pub(super) truth: Truth,
}

fn index(n: u8) -> usize {
    usize::from(n)
}
fn small(n: usize) -> u8 {
    u8::try_from(n).expect("few of everything")
}

impl World {
    pub(super) fn new(kind: Kind, left: Budget, nodes: Vec<Node>, status: VolumeStatus) -> Self {
        Self {
            kind,
            left,
            nodes: nodes.into_iter().map(Rc::new).collect(),
            engines: Vec::new(),
            starting: false,
            first: status.clone(),
            record: (1, status),
            lives: 1,
            late: Vec::new(),
            history: Vec::new(),
            copy: None,
            lost: false,
            truth: Truth::new(),
        }
    }

    fn node(&mut self, r: usize) -> &mut Node {
        Rc::make_mut(&mut self.nodes[r])
    }

    pub(super) fn left(&self) -> Left {
        self.left.left()
    }

    /// Whether what is not flushed may be lost, or was.
    fn caches(&self) -> bool {
        let left = &self.left;
        left.reboots + left.failures + left.rollbacks > 0
            || self.kind.as_named
            || self.nodes.iter().any(|node| node.lost_cache())
    }

    /// Of all but what is left of the budget.
    pub(super) fn fingerprint(&self) -> u128 {
        let mut h = Print::new();
        if self.kind.as_named {
            self.left.hash(&mut h);
        }
        let caches = self.caches();
        self.nodes.iter().for_each(|node| node.fingerprint(caches, &mut h));
        self.record.0.hash(&mut h);
        print::status(&self.record.1, &mut h);
        for (version, status) in self.late.iter().chain(&self.history) {
            version.hash(&mut h);
            print::status(status, &mut h);
        }
        self.truth.fingerprint(caches, &mut h);
        (self.starting, self.lost, self.copy.is_some()).hash(&mut h);
        if let Some((slot, node)) = &self.copy {
            slot.hash(&mut h);
            node.fingerprint(caches, &mut h);
        }
        self.engines.iter().for_each(|running| running.fingerprint(&mut h));
        h.finish128()
    }

    /// What would be left of this state if no engine were, as it is named then, and whatever may still happen: for
    /// comparing what is found with these reductions and without.
    pub(super) fn outcome(&self) -> u128 {
        let mut world = self.clone();
        (world.left.reboots, world.left.failures, world.kind.as_named) = (0, 0, false);
        (0..world.engines.len()).for_each(|e| world.gone(e).expect("it only ends"));
        world.rename();
        world.fingerprint()
    }

    /// The same without reductions.
    pub(super) fn plain(mut self) -> Self {
        self.kind.as_named = true;
        self
    }

    // ---- what they do ----

    pub(super) fn apply(&mut self, step: Step) -> Result<(), String> {
        self.wake()?;
        match step {
            Step::Start if self.kind.zombies => {
                self.left.engines -= 1;
                self.start()?;
            }
            Step::Start => {
                self.left.engines -= 1;
                (0..self.engines.len()).try_for_each(|e| self.gone(e))?;
                if !self.kind.as_named && !self.kind.same_instance {
                    self.rename();
                }
                self.starting = true;
            }
            Step::Answer(e) => {
                let Some((ask, version, status)) = self.engines[index(e)].ask.take() else { return Ok(()) };
                let outcome = self.swap(version, status);
                self.tell(e, |engine, now| engine.registry_result(ask, outcome, now))?;
            }
            Step::Away(e) => {
                self.left.away -= 1;
                let Some((ask, version, status)) = self.engines[index(e)].ask.take() else { return Ok(()) };
                self.late.push((version, status));
                self.tell(e, |engine, now| {
                    engine.registry_result(ask, RegistryOutcome::Unreachable, now);
                })?;
            }
            Step::Late(i) => {
                let (version, status) = self.late.remove(index(i));
                self.swap(version, status);
            }
            Step::Restore(i) => self.restore(index(i)),
            Step::Fence(e, r) => self.fence(e, r, true)?,
            Step::FenceUnheard(e, r) => {
                self.left.faults -= 1;
                self.fence(e, r, false)?;
            }
            Step::Fail(e, r) => {
                self.left.faults -= 1;
                self.notice(e, r)?;
                self.failed(e, r, ConnectFailure::Unreachable(String::new()))?;
            }
            Step::Cut(e, r) => {
                self.left.faults -= 1;
                self.notice(e, r)?;
            }
            Step::Notice(e, r) => self.notice(e, r)?,
            Step::Deliver(e, r) => self.deliver(e, r)?,
            Step::FlushFails(e, r) => {
                self.left.failures -= 1;
                self.node(index(r)).flush_fails()?;
                self.deliver(e, r)?;
            }
            Step::Lose(e, r) => self.lose(index(e), index(r))?,
            Step::Tick(e) => {
                self.engines[index(e)].now += A_WHILE;
                self.tell(e, Engine::tick)?;
            }
            Step::Write(e) => {
                self.left.writes -= 1;
                self.write(e)?;
            }
            Step::Read(e, member, block) => {
                self.left.reads -= 1;
                let op = ClientOp::Read { block: index(block), writes_before: self.truth.writes() };
                self.engines[index(e)].engine.prefer(Some(id_of(index(member))));
                self.submit(e, Request::Read, index(block), op, [0; BLOCKS])?;
                self.engines[index(e)].engine.prefer(None);
            }
            Step::Flush(e) => {
                self.left.flushes -= 1;
                let op = ClientOp::Flush { durable: self.truth.flush_begins() };
                self.submit(e, Request::Flush, 0, op, [0; BLOCKS])?;
            }
            Step::Detach(e) => {
                self.left.detaches -= 1;
                self.tell(e, Engine::drain)?;
            }
            Step::Kill(r) => {
                self.left.kills -= 1;
                self.restart(index(r), None)?;
            }
            Step::Reboot(r, lost) => {
                self.left.reboots -= 1;
                self.restart(index(r), Some(lost))?;
            }
            Step::Copy(r, lost) => {
                let mut node = Node::clone(&self.nodes[index(r)]);
                node.lose(lost);
                self.copy = Some((r, Rc::new(node)));
            }
            Step::GoBack => {
                self.left.rollbacks -= 1;
                let Some((r, copy)) = self.copy.take() else { return Ok(()) };
                self.restart(index(r), None)?;
                let now = &self.nodes[index(r)];
                let node = copy.put_back(now);
                self.nodes[index(r)] = Rc::new(node);
            }
            Step::Undrained(r) => {
                let node = self.node(index(r));
                let frame = node.undrained.remove(0);
                node.write(&frame);
            }
        }
        self.normalise();
        Ok(())
    }

    /// What cannot matter any more is forgotten, so that more states are the same.
    fn normalise(&mut self) {
        let (version, restores) = (self.record.0, self.left.restores);
        let whole = kept(Rule::CasWhole);
        self.late.retain(|(expected, _)| *expected == version || restores > 0 || !whole);
        self.late.sort_by_key(|(version, status)| (*version, status.view.order(), status.clean));
        if restores == 0 {
            self.history.clear();
        }
        if self.left.rollbacks == 0 {
            self.copy = None;
        }
        for running in &mut self.engines {
            running.engine.normalise();
        }
    }

    /// Before a state is looked at.
    pub(super) fn wake(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.starting) {
            self.start()?;
            self.normalise();
        }
        Ok(())
    }

    /// Replicas that are the same in several states waiting for an engine are kept once.
    pub(super) fn share(&mut self, shared: &mut HashMap<u128, Rc<Node>>) {
        if !self.starting || self.kind.as_named {
            return;
        }
        for (slot, node) in self.nodes.iter_mut().enumerate() {
            let mut h = Print::new();
            slot.hash(&mut h);
            node.fingerprint(true, &mut h);
            *node = shared.entry(h.finish128()).or_insert_with(|| node.clone()).clone();
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let number = self.engines.len();
        let uuid = if self.kind.same_instance { 0 } else { number as u128 } + NEW_ENGINE;
        let uuid = InstanceUuid(uuid::Uuid::from_u128(uuid));
        let mut config = Config::new(SIZE, uuid);
        (config.replica_timeout, config.suspend_timeout, config.heartbeat) = (NEVER, NEVER, NEVER);
        let (version, status) = self.record.clone();
        self.engines.push(Running {
            engine: Engine::new(config, version, status),
            uuid,
            now: A_WHILE,
            links: vec![Link::None; self.nodes.len()],
            ask: None,
            buffers: BTreeMap::new(),
            clients: BTreeMap::new(),
            ended: false,
        });
        let replicas = self.nodes.len();
        let sweeps = self.kind.sweeps;
        self.tell(small(number), |engine, now| {
            engine.never_ping();
            engine.never_tell_rounds();
            if !sweeps {
                engine.never_sweep();
            }
            engine.start(now);
            (0..replicas).for_each(|slot| engine.locate(id_of(slot), true, false, None, now));
        })?;
        // Without the room that it made for much more.
        let lean = self.engines[number].engine.clone();
        self.engines[number].engine = lean;
        Ok(())
    }

    /// The registry's part: compare with exactly the version that was expected, and never go back.
    fn swap(&mut self, expected: u64, wish: VolumeStatus) -> RegistryOutcome {
        let (version, status) = &self.record;
        let goes_back = wish.generation < status.generation || wish.view.order() < status.view.order();
        let as_expected = if kept(Rule::CasWhole) {
            *version == expected && !goes_back && wish.incarnation == status.incarnation
        } else {
            wish.view.epoch > status.view.epoch || *version == expected
        };
        if as_expected {
            if self.left.restores > 0 {
                self.history.push(self.record.clone());
            }
            self.record = (self.record.0 + 1, wish);
            return RegistryOutcome::Stored { version: self.record.0 };
        }
        if *version > expected && *status == wish {
            return RegistryOutcome::Stored { version: *version };
        }
        RegistryOutcome::Conflict { version: *version, status: Box::new(status.clone()) }
    }

    fn restore(&mut self, to: usize) {
        self.left.restores -= 1;
        self.lives += 1;
        self.record = self.history[to].clone();
        self.record.1.incarnation = Incarnation(uuid::Uuid::from_u128(u128::from(self.lives)));
    }

    fn write(&mut self, e: u8) -> Result<(), String> {
        let block = if self.kind.overwrite { 0 } else { self.truth.writes() % BLOCKS };
        let generation = self.engines[index(e)].engine.generation();
        let value = self.truth.submitted(block, generation);
        for running in &mut self.engines {
            for (_, op) in running.clients.values_mut() {
                if let ClientOp::Flush { durable } = op {
                    durable[block] |= one(value);
                }
            }
        }
        let mut data = [0; BLOCKS];
        data[block] = value;
        self.submit(e, Request::Write { fua: false }, block, ClientOp::Write { block, value }, data)
    }

    fn submit(
        &mut self,
        e: u8,
        request: Request,
        block: usize,
        op: ClientOp,
        data: Data,
    ) -> Result<(), String> {
        let running = &mut self.engines[index(e)];
        let len = if request == Request::Flush { 0 } else { BLOCK_BYTES };
        let offset = if request == Request::Flush { 0 } else { block as u64 * BLOCK_BYTES };
        let OpId { slot, serial } = running
            .engine
            .submit(request, offset, len, running.now)
            .map_err(|failure| format!("not taken: {failure:?}"))?;
        running.clients.insert(slot, (serial, op));
        running.buffers.insert(slot, data);
        self.actions(e)
    }

    /// Tells an engine something, and does what it wants done.
    fn tell(&mut self, e: u8, event: impl FnOnce(&mut Engine, Now)) -> Result<(), String> {
        let running = &mut self.engines[index(e)];
        running.engine.keep_lease(running.now);
        event(&mut running.engine, running.now);
        running.engine.keep_lease(running.now);
        self.actions(e)
    }

    fn actions(&mut self, e: u8) -> Result<(), String> {
        let ei = index(e);
        while let Some(action) = self.engines[ei].engine.poll_action() {
            match action {
                Action::Connect { replica, .. } => self.engines[ei].links[slot(replica)] = Link::Wanted,
                Action::Disconnect { replica, .. } => self.hang_up(ei, slot(replica))?,
                Action::Send { replica, header, body, .. } => self.send(ei, slot(replica), header, body)?,
                Action::Complete { op, outcome } => self.completed(ei, op, &outcome)?,
                Action::Reserve { op, .. } => {
                    self.engines[ei].buffers.insert(op.slot, [0; BLOCKS]);
                }
                Action::Release { op } => {
                    self.engines[ei].buffers.remove(&op.slot);
                }
                Action::CompareAndSwap { ask, expected_version, status } => {
                    let asked = self.engines[ei].ask.replace((ask, expected_version, *status));
                    if let Some((_, version, status)) = asked {
                        self.late.push((version, status));
                    }
                }
                Action::Serve => {
                    let members = self.engines[ei].engine.member_set();
                    self.lost |= members.iter().all(|id| self.nodes[slot(id)].older);
                    let lost = members.iter().all(|id| self.nodes[slot(id)].core.meta().cache_lost);
                    self.truth.serves(self.engines[ei].engine.generation(), lost);
                }
                Action::End(_) => self.gone(ei)?,
            }
        }
        Ok(())
    }
}

fn slot(replica: ReplicaId) -> usize {
    usize::try_from(replica.0).expect("few") - 1
}

mod check;
mod network;
mod rename;
mod steps;

pub(super) use self::rename::Names;
