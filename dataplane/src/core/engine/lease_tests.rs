//! Two engines of one volume that do not know of each other, each with its own clock and its own view of the network:
//! counterexample 12. Whatever the older one is cut off from, it answers no read with what the newer has overwritten.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use holdfast_proto::ids::{BootId, Generation, Incarnation, InstanceUuid, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, View, VolumeStatus};

use super::*;
use crate::core::start::tests::{status, view};
use crate::units::REGION_BYTES;
use crate::wire::handshake::Welcome;
use crate::wire::header::{Kind, Status};
use crate::wire::map::MapPart;

const BLOCK: u64 = 4096;
const OLD: usize = 0;
const NEW: usize = 1;

/// One block on a replica, and what it promised.
#[derive(Debug, Clone)]
struct Disk {
    value: u64,
    promised: (Generation, InstanceUuid),
    view: View,
    /// Whose connection it has.
    session: Option<(usize, u64)>,
}

/// An engine where it runs: its clock, whom it reaches, and its client.
struct Node {
    engine: Engine,
    uuid: InstanceUuid,
    /// Its clock is `at × rate / 100` ahead of `origin`.
    rate: u32,
    origin: Duration,
    reaches: Vec<bool>,
    registry: bool,
    asks: VecDeque<(u64, u64, VolumeStatus)>,
    waiting: Vec<(ReplicaId, Generation)>,
    buffers: BTreeMap<u32, u64>,
    ops: BTreeMap<(u32, u32), Asked>,
    serves: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Now,
    write: Option<u64>,
}

/// A write that was answered.
#[derive(Debug, Clone, Copy)]
struct Acked {
    stamp: u64,
    from: Now,
    to: Now,
}

struct World {
    at: Now,
    disks: Vec<Disk>,
    record: (u64, VolumeStatus),
    nodes: Vec<Node>,
    acked: Vec<Acked>,
    stamp: u64,
    sessions: u64,
    reads: u64,
    stale: Vec<String>,
}

impl World {
    fn new(replicas: u32) -> Self {
        let ids: Vec<_> = (1..=replicas).collect();
        let first = view(0, 0, &ids, false);
        let disk =
            Disk { value: 0, promised: (Generation(0), InstanceUuid::nil()), view: first, session: None };
        Self {
            at: Duration::from_secs(1),
            disks: ids.iter().map(|_| disk.clone()).collect(),
            record: (1, VolumeStatus { clean: true, ..status(&ids, first) }),
            nodes: Vec::new(),
            acked: Vec::new(),
            stamp: 0,
            sessions: 0,
            reads: 0,
            stale: Vec::new(),
        }
    }

    /// Two replicas, and the older engine that serves from both.
    fn with_old() -> Self {
        let mut world = Self::new(2);
        world.attach(100, |_| {});
        world.pass(Duration::from_secs(4));
        assert!(world.nodes[OLD].serves);
        world
    }

    fn attach(&mut self, rate: u32, change: impl FnOnce(&mut Config)) {
        let uuid = InstanceUuid(uuid::Uuid::from_u128(100 + self.nodes.len() as u128));
        let mut config = Config::new(REGION_BYTES, uuid);
        change(&mut config);
        let engine = Engine::new(config, self.record.0, self.record.1.clone());
        self.nodes.push(Node {
            engine,
            uuid,
            rate,
            origin: Duration::from_secs(1000) * rate,
            reaches: vec![true; self.disks.len()],
            registry: true,
            asks: VecDeque::new(),
            waiting: Vec::new(),
            buffers: BTreeMap::new(),
            ops: BTreeMap::new(),
            serves: false,
            ended: false,
        });
        let n = self.nodes.len() - 1;
        let now = self.clock(n);
        self.nodes[n].engine.start(now);
        for slot in 0..self.disks.len() {
            self.nodes[n].engine.locate(replica(slot), true, true, None, now);
        }
        self.act(n);
    }

    fn clock(&self, n: usize) -> Now {
        self.nodes[n].origin + self.at * self.nodes[n].rate / 100
    }

    /// Cut off from all but these replicas; with the registry or not.
    fn partition(&mut self, n: usize, reaches: &[bool], registry: bool) {
        self.nodes[n].reaches = reaches.to_vec();
        self.nodes[n].registry = registry;
    }

    /// Time passes for both.
    fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.at += Duration::from_millis(50);
            for n in 0..self.nodes.len() {
                let now = self.clock(n);
                self.connect(n);
                self.registry(n);
                self.nodes[n].engine.tick(now);
                self.act(n);
            }
        }
    }

    fn act(&mut self, n: usize) {
        while let Some(action) = self.nodes[n].engine.poll_action() {
            let node = &mut self.nodes[n];
            match action {
                Action::Connect { replica, generation, .. } => node.waiting.push((replica, generation)),
                Action::Disconnect { replica, session } => {
                    let disk = &mut self.disks[slot_of(replica)];
                    if node.reaches[slot_of(replica)] && disk.session == Some((n, session)) {
                        disk.session = None;
                    }
                }
                Action::Send { replica, session, header, body } => {
                    let value = match body {
                        Body::Buffer { op, .. } => node.buffers[&op.slot],
                        Body::None | Body::Bytes(_) => 0,
                        Body::View(update) => {
                            if self.disks[slot_of(replica)].session == Some((n, session)) {
                                self.disks[slot_of(replica)].view = update.view;
                            }
                            0
                        }
                    };
                    self.sent(n, replica, session, header, value);
                }
                Action::Complete { op, outcome } => self.completed(n, op, &outcome),
                Action::CompareAndSwap { ask, expected_version, status } => {
                    node.asks.push_back((ask, expected_version, *status));
                }
                Action::Serve => node.serves = true,
                Action::End(_) => node.ended = true,
                Action::Reserve { op, .. } => {
                    node.buffers.insert(op.slot, 0);
                }
                Action::Release { .. } => {}
            }
        }
    }

    fn sent(&mut self, n: usize, replica: ReplicaId, session: u64, header: Header, value: u64) {
        let slot = slot_of(replica);
        let disk = &mut self.disks[slot];
        if !self.nodes[n].reaches[slot] || disk.session != Some((n, session)) {
            return;
        }
        let mut reply = header.answer(Status::Ok);
        let mut inline = Vec::new();
        match header.kind {
            Kind::Write => disk.value = value,
            Kind::Read => reply.length = u32::try_from(header.extent).unwrap(),
            Kind::Digest => {
                inline = disk.value.to_le_bytes().repeat(4);
                reply.length = 32;
            }
            Kind::Extents => {
                inline =
                    crate::wire::payload::encode_extents(&[Extent { len: header.extent, allocated: true }]);
                reply.length = u32::try_from(inline.len()).unwrap();
            }
            // They may differ, and lack, everything.
            Kind::ReadMap => {
                inline = MapPart { base: Some(disk.view.stamp(0)), words: vec![1] }.encode();
                reply.length = u32::try_from(inline.len()).unwrap();
            }
            Kind::Flush | Kind::Trim | Kind::WriteZeroes | Kind::Ping | Kind::PersistView | Kind::EditMap => {
            }
        }
        let (value, now) = (disk.value, self.clock(n));
        let node = &mut self.nodes[n];
        if let PayloadUse::Fill(op) | PayloadUse::FillAndLook(op) = node.engine.payload_use(&reply) {
            node.buffers.insert(op.slot, value);
        }
        node.engine.reply(replica, session, &reply, &inline, now);
    }

    fn completed(&mut self, n: usize, op: OpId, outcome: &Outcome) {
        let Some(asked) = self.nodes[n].ops.remove(&(op.slot, op.serial)) else { return };
        if *outcome != Outcome::Done {
            return;
        }
        if let Some(stamp) = asked.write {
            self.acked.push(Acked { stamp, from: asked.at, to: self.at });
            return;
        }
        self.reads += 1;
        let value = self.nodes[n].buffers[&op.slot];
        // Overwritten by a write that began after this one had been answered, and that was answered before the read.
        let written = match self.acked.iter().find(|w| w.stamp == value) {
            Some(write) => write.to,
            None if value == 0 => Duration::ZERO,
            // Never answered: it may have taken place at any time.
            None => return,
        };
        if let Some(newer) = self.acked.iter().find(|w| w.from > written && w.to < asked.at) {
            self.stale.push(format!("engine {n} read {value} after {newer:?}"));
        }
    }

    fn connect(&mut self, n: usize) {
        for (replica, generation) in std::mem::take(&mut self.nodes[n].waiting) {
            let (slot, now, uuid) = (slot_of(replica), self.clock(n), self.nodes[n].uuid);
            let disk = &mut self.disks[slot];
            let (promised, to) = disk.promised;
            let reached = self.nodes[n].reaches[slot];
            let engine = &mut self.nodes[n].engine;
            if !reached {
                engine.connect_failed(replica, ConnectFailure::Unreachable("cut off".to_owned()), now);
            } else if generation < promised || (generation == promised && to != uuid) {
                let why = ConnectFailure::Fenced { generation: promised, engine: to };
                engine.connect_failed(replica, why, now);
            } else {
                self.sessions += 1;
                let older = disk.session.replace((n, self.sessions));
                disk.promised = (generation, uuid);
                let welcome = Welcome { size_bytes: REGION_BYTES, ..welcome(disk.view) };
                let boot = BootId(uuid::Uuid::from_u128(1));
                engine.connected(replica, self.sessions, generation, welcome, boot, now);
                // The older one hears of it where the network lets it.
                if let Some((other, session)) = older.filter(|(other, _)| *other != n)
                    && self.nodes[other].reaches[slot]
                {
                    let now = self.clock(other);
                    self.nodes[other].engine.disconnected(replica, session, "replaced", now);
                    self.act(other);
                }
            }
            self.act(n);
        }
    }

    fn registry(&mut self, n: usize) {
        while let Some((ask, expected, status)) = self.nodes[n].asks.pop_front() {
            let outcome = if !self.nodes[n].registry {
                RegistryOutcome::Unreachable
            } else if self.record.0 == expected {
                self.record = (expected + 1, status);
                RegistryOutcome::Stored { version: expected + 1 }
            } else {
                let (version, status) = self.record.clone();
                RegistryOutcome::Conflict { version, status: Box::new(status) }
            };
            let now = self.clock(n);
            self.nodes[n].engine.registry_result(ask, outcome, now);
            self.act(n);
            if !self.nodes[n].registry {
                return;
            }
        }
    }

    fn submit(&mut self, n: usize, request: Request) {
        let now = self.clock(n);
        let Ok(op) = self.nodes[n].engine.submit(request, 0, BLOCK, now) else { return };
        let write = matches!(request, Request::Write { .. }).then(|| {
            self.stamp += 1;
            self.stamp
        });
        let node = &mut self.nodes[n];
        node.buffers.insert(op.slot, write.unwrap_or(0));
        node.ops.insert((op.slot, op.serial), Asked { at: self.at, write });
        self.act(n);
        // Two things asked for one after the other are told apart.
        self.at += Duration::from_millis(1);
    }
    fn write(&mut self, n: usize) {
        self.submit(n, Request::Write { fua: false });
    }
    fn read(&mut self, n: usize) {
        self.submit(n, Request::Read);
    }
}

fn replica(slot: usize) -> ReplicaId {
    ReplicaId(u32::try_from(slot).unwrap() + 1)
}
fn slot_of(replica: ReplicaId) -> usize {
    usize::try_from(replica.0).unwrap() - 1
}

fn welcome(view: View) -> Welcome {
    Welcome {
        size_bytes: REGION_BYTES,
        lineage: Lineage::nil(),
        view,
        configured: ReplicaSet::new(),
        incarnation: Incarnation::nil(),
        revision: 0,
        basis: Some(view.stamp(0)),
        // They remember no rounds.
        stamps: false,
        settled: None,
        syncing: false,
        cache_lost: false,
        failed: String::new(),
        flush_sequence: 0,
    }
}

/// E1 is left with r1 alone, E2 takes over with r2 and the registry, and writes; E1's client reads all the while.
/// Returns after how long E2 served, and what E1's client read that was overwritten.
fn counterexample_12(
    old: impl FnOnce(&mut Config),
    new: impl FnOnce(&mut Config),
    rate: u32,
) -> (Duration, World) {
    let mut world = World::new(2);
    world.attach(rate, old);
    world.pass(Duration::from_secs(4));
    world.write(OLD);
    world.pass(Duration::from_secs(1));
    world.partition(OLD, &[true, false], false);
    world.attach(100, new);
    world.partition(NEW, &[false, true], true);
    let begun = world.at;
    let mut served = None;
    for _ in 0..1000 {
        world.pass(Duration::from_millis(50));
        world.read(OLD);
        if world.nodes[NEW].serves {
            served.get_or_insert(world.at - begun);
            world.write(NEW);
        }
    }
    let after = served.unwrap_or_else(|| panic!("{:?}", world.nodes[NEW].engine.report(world.clock(NEW))));
    (after, world)
}

#[test]
fn counterexample_12_an_engine_that_was_superseded_answers_no_stale_read() {
    // Also where its clock is a twentieth too slow, far beyond what clocks do.
    for rate in [100, 95, 105] {
        let (after, world) = counterexample_12(|_| {}, |_| {}, rate);
        assert!(after >= Duration::from_millis(5500), "{after:?}");
        assert!(world.acked.len() > 100, "the newer engine serves");
        assert!(world.reads > 50, "the older one answers while it may");
        assert_eq!(world.stale, Vec::<String>::new());
    }
}

#[test]
fn without_the_wait_or_without_the_lease_it_would() {
    let (after, world) = counterexample_12(|_| {}, |new| new.predecessor_gone = true, 100);
    assert!(after < Duration::from_millis(5500), "{after:?}");
    assert!(!world.stale.is_empty(), "it was not gone");
    let (_, world) = counterexample_12(|old| old.read_lease = Duration::from_secs(3600), |_| {}, 100);
    assert!(!world.stale.is_empty(), "it believed in its lease");
}

#[test]
fn an_engine_that_took_a_generation_and_proposed_nothing_proves_nothing() {
    let mut world = World::with_old();
    world.write(OLD);
    world.partition(OLD, &[true, false], false);
    // The second one attaches, fences r2, and dies before its first view.
    world.attach(100, |_| {});
    world.partition(NEW, &[false, true], true);
    world.pass(Duration::from_millis(100));
    assert!(!world.nodes[NEW].serves);
    assert_eq!(world.record.1.engine_uuid, world.nodes[NEW].uuid);
    world.nodes.truncate(1);
    // The third is told that the second has ended, which is true, and says nothing of the first.
    world.attach(100, |config| config.predecessor_gone = true);
    world.partition(NEW, &[false, true], true);
    for _ in 0..200 {
        world.pass(Duration::from_millis(50));
        world.read(OLD);
        if world.nodes[NEW].serves {
            world.write(NEW);
        }
    }
    assert!(!world.acked.is_empty() && world.nodes[NEW].serves);
    assert_eq!(world.stale, Vec::<String>::new());
}

#[test]
fn a_start_waits_for_no_lease_that_cannot_be() {
    // The engine before is known to have ended.
    let mut world = World::with_old();
    let gone = world.nodes.remove(OLD);
    world.disks.iter_mut().for_each(|disk| disk.session = None);
    drop(gone);
    world.attach(100, |config| config.predecessor_gone = true);
    world.partition(OLD, &[true, false], true);
    world.pass(Duration::from_millis(4500));
    assert!(world.nodes[OLD].serves, "only the other replica was waited for");
    // All members of the newest view are fenced, which is that of the one before alone.
    world.attach(100, |_| {});
    world.partition(NEW, &[true, false], true);
    world.pass(Duration::from_millis(4500));
    assert!(world.nodes[NEW].serves);
    assert!(world.nodes[OLD].ended, "it was refused");
}

#[test]
fn a_start_that_waits_says_so_and_serves_at_once_when_the_last_member_is_fenced() {
    let mut world = World::with_old();
    world.partition(OLD, &[true, false], false);
    world.attach(100, |_| {});
    world.partition(NEW, &[false, true], true);
    world.pass(Duration::from_secs(4));
    let report = world.nodes[NEW].engine.report(world.clock(NEW));
    assert_eq!(report.state, EngineState::Attaching);
    assert!(report.waiting_for.contains("read lease"), "{}", report.waiting_for);
    world.partition(NEW, &[true, true], true);
    let now = world.clock(NEW);
    world.nodes[NEW].engine.locate(replica(0), true, true, None, now);
    world.act(NEW);
    world.pass(Duration::from_millis(100));
    assert!(world.nodes[NEW].serves, "{:?}", world.nodes[NEW].engine.report(world.clock(NEW)));
}

#[test]
fn reads_and_what_reads_are_held_without_a_lease_and_run_when_it_is_renewed() {
    for replicas in [1, 2] {
        let mut world = World::new(replicas);
        world.attach(100, |config| {
            // So that nobody leaves meanwhile.
            config.replica_timeout = Duration::from_secs(3600);
        });
        world.pass(Duration::from_secs(4));
        // Writes still reach everybody; only what they answer is lost. For one replica there is nobody but it.
        let mut cut = vec![true; replicas as usize];
        cut[replicas as usize - 1] = false;
        world.partition(OLD, &cut, true);
        world.read(OLD);
        let before = world.reads;
        assert_eq!(before, u64::from(replicas > 1), "under the lease the one that is there is asked");
        world.pass(Duration::from_secs(7));
        let now = world.clock(OLD);
        let partial = world.nodes[OLD].engine.submit(Request::Write { fua: false }, 100, 50, now).unwrap();
        world.nodes[OLD].buffers.insert(partial.slot, 7);
        world.read(OLD);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.reads, before);
        let report = world.nodes[OLD].engine.report(world.clock(OLD));
        assert_eq!(report.state, EngineState::Suspended);
        assert!(report.waiting_for.contains("reads need one"), "{}", report.waiting_for);
        // The connection was cut at the other end only: a reset brings a new handshake.
        let slot = replicas as usize - 1;
        let session = world.disks[slot].session.unwrap().1;
        world.partition(OLD, &vec![true; replicas as usize], true);
        let now = world.clock(OLD);
        world.nodes[OLD].engine.disconnected(replica(slot), session, "reset", now);
        world.act(OLD);
        world.pass(Duration::from_millis(200));
        assert!(world.reads > before, "{replicas}");
        let report = world.nodes[OLD].engine.report(world.clock(OLD));
        assert_eq!(report.state, EngineState::Healthy, "{report:?}");
    }
}

#[test]
fn a_lease_lasts_over_a_reset() {
    let mut world = World::with_old();
    let session = world.disks[1].session.unwrap().1;
    let now = world.clock(OLD);
    world.nodes[OLD].engine.disconnected(replica(1), session, "reset", now);
    world.act(OLD);
    world.read(OLD);
    assert_eq!(world.reads, 1);
}

/// Any network, any order.
#[test]
fn seeded_partitions_of_two_engines_never_read_stale() {
    let (mut served, mut reads) = (0, 0);
    for seed in 0..150u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let replicas = 2 + u32::try_from(below(2)).unwrap();
        let mut world = World::new(replicas);
        let rate = 95 + u32::try_from(below(11)).unwrap();
        world.attach(rate, |_| {});
        world.pass(Duration::from_secs(4));
        let attach_at = below(60);
        for step in 0..400 {
            if step == attach_at {
                world.attach(100, |_| {});
            }
            let n = usize::try_from(below(world.nodes.len() as u64)).unwrap();
            match below(20) {
                0 => {
                    let reaches: Vec<_> = (0..replicas).map(|_| below(3) > 0).collect();
                    let registry = below(3) > 0;
                    world.partition(n, &reaches, registry);
                }
                1..=6 => world.write(n),
                7..=12 => world.read(n),
                _ => world.pass(Duration::from_millis(50 * (1 + below(8)))),
            }
        }
        assert!(world.stale.is_empty(), "seed {seed}: {:?}", world.stale);
        served += u64::from(world.nodes.len() > 1 && world.nodes[NEW].serves);
        reads += world.reads;
    }
    assert!(served > 50 && reads > 1000, "{served} {reads}");
}
