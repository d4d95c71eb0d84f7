//! The engine against modelled replicas, network and registry, driven by a seed. Every read must return a value that
//! is possible for a register; when the faults stop, the volume becomes healthy and all copies are equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use holdfast_proto::ids::{Generation, InstanceUuid, ReplicaId};
use holdfast_proto::record::VolumeStatus;

use super::*;
use crate::core::start::tests::{set, status, view};
use crate::core::zero_blocks::ZeroBlocks;
use crate::units::{BLOCK_BYTES, GROUP_REGIONS, REGION_BYTES, to_usize};
use crate::wire::header::Kind;

mod faults;
mod members;
mod replica;
use self::replica::{Disk, Reply};

const REGIONS: u64 = 2 * GROUP_REGIONS + 2;
const SIZE: u64 = REGIONS * REGION_BYTES;
/// The blocks that are used, numbered: the first of some regions of every group of regions.
const USED_REGIONS: [u64; 5] = [0, 1, GROUP_REGIONS, GROUP_REGIONS + 9, 2 * GROUP_REGIONS + 1];
const BLOCKS_PER_REGION: u64 = 12;
const BLOCKS: u64 = USED_REGIONS.len() as u64 * BLOCKS_PER_REGION;

/// Where a numbered block is in the volume.
fn place(block: u64) -> u64 {
    let region = USED_REGIONS[to_usize(block / BLOCKS_PER_REGION)];
    region * (REGION_BYTES / BLOCK_BYTES) + block % BLOCKS_PER_REGION
}

struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Where the model keeps this replica.
fn slot_of(replica: ReplicaId) -> usize {
    usize::try_from(replica.0).unwrap() - 1
}

struct Frame {
    header: Header,
    payload: Vec<u64>,
    update: Option<ViewUpdate>,
    bytes: Vec<u8>,
}

impl Frame {
    /// The bytes that it changes.
    fn len(&self) -> u64 {
        match self.header.kind {
            Kind::Write => self.payload.len() as u64 * BLOCK_BYTES,
            _ => self.header.extent,
        }
    }
}

#[derive(Clone)]
struct ClientOp {
    request: Request,
    offset: u64,
    blocks: u64,
    stamp: u64,
}

struct World {
    random: Random,
    now: Now,
    disks: Vec<Disk>,
    to: Vec<VecDeque<Frame>>,
    from: Vec<VecDeque<Reply>>,
    connects: VecDeque<(usize, Generation, Lineage)>,
    record: (u64, VolumeStatus),
    asks: VecDeque<(u64, u64, VolumeStatus)>,
    engine: Engine,
    engines: u128,
    buffers: BTreeMap<u32, Vec<u64>>,
    clients: BTreeMap<(u32, u32), ClientOp>,
    busy: BTreeSet<u64>,
    possible: Vec<BTreeSet<u64>>,
    /// What a block may be if the caches are lost: all that it may have been since the last flush was asked for.
    durable: Vec<BTreeSet<u64>>,
    /// What was asked for since a flush that is on its way, per flush.
    since: BTreeMap<(u32, u32), Vec<BTreeSet<u64>>>,
    reboots: bool,
    /// Operators change their minds about the replicas.
    changes: bool,
    wanted: Vec<Wanted>,
    next_stamp: u64,
    next_session: u64,
    serving: bool,
    faults: bool,
    /// Disks may refuse writes and flushes too.
    bad_disks: bool,
    ended: Option<Ending>,
    answered: u64,
    registry_up: bool,
    load: bool,
    trace: bool,
}

fn engine_of(number: u128, record: &(u64, VolumeStatus)) -> Engine {
    let mut config = Config::new(SIZE, InstanceUuid(uuid::Uuid::from_u128(number)));
    config.suspend_timeout = Duration::from_secs(20);
    config.intent_sweep = Duration::from_secs(1);
    Engine::new(config, record.0, record.1.clone())
}

impl World {
    fn new(seed: u64, replicas: u32, bad_disks: bool) -> Self {
        let ids: Vec<_> = (1..=replicas).collect();
        let first = view(0, 0, &ids, false);
        let mut record = (1, status(&ids, first));
        record.1.clean = true;
        let disks: Vec<_> =
            ids.iter().map(|id| Disk::new(ReplicaId(*id), record.1.configured, first)).collect();
        let count = ids.len();
        let mut world = Self {
            random: Random(seed),
            now: Duration::from_secs(1),
            disks,
            to: (0..count).map(|_| VecDeque::new()).collect(),
            from: (0..count).map(|_| VecDeque::new()).collect(),
            connects: VecDeque::new(),
            engine: engine_of(1, &record),
            record,
            asks: VecDeque::new(),
            engines: 1,
            buffers: BTreeMap::new(),
            clients: BTreeMap::new(),
            busy: BTreeSet::new(),
            possible: (0..BLOCKS).map(|_| BTreeSet::from([0])).collect(),
            durable: (0..BLOCKS).map(|_| BTreeSet::from([0])).collect(),
            since: BTreeMap::new(),
            reboots: false,
            changes: false,
            wanted: Vec::new(),
            next_stamp: 1,
            next_session: 1,
            serving: false,
            faults: true,
            bad_disks,
            ended: None,
            answered: 0,
            registry_up: true,
            load: true,
            trace: std::env::var_os("HOLDFAST_TRACE").is_some(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let now = self.now;
        self.engine.want(self.wanted.clone(), now);
        self.engine.start(now);
        for slot in (0..self.disks.len()).filter(|slot| self.is_placed(*slot)).collect::<Vec<_>>() {
            let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
            self.engine.locate(id, true, true, None, now);
        }
        self.actions();
    }

    /// The engine's process is killed; another begins from the record.
    fn restart_engine(&mut self) {
        if self.trace {
            eprintln!("{:?} ENGINE RESTART", self.now);
        }
        for op in std::mem::take(&mut self.clients).into_values() {
            self.unknown(&op);
        }
        self.busy.clear();
        self.since.clear();
        self.buffers.clear();
        self.serving = false;
        self.ended = None;
        for slot in 0..self.disks.len() {
            self.cut(slot);
        }
        self.connects.clear();
        // A compare-and-swap that is on its way may still be carried out.
        if let Some((_, version, status)) = self.asks.pop_front()
            && self.random.one_in(2)
        {
            self.swap(version, status);
        }
        self.asks.clear();
        // The same instance, another process; sometimes another instance.
        self.engines += 1;
        self.engine = engine_of(self.engines, &self.record);
        self.begin();
    }

    /// The connection is gone. What had arrived is carried out before the next handshake.
    fn cut(&mut self, slot: usize) {
        let arrived = self.random.below(u64::try_from(self.to[slot].len()).unwrap() + 1);
        for _ in 0..arrived {
            if let Some(frame) = self.to[slot].pop_front() {
                self.carry_out(slot, frame);
            }
        }
        self.to[slot].clear();
        self.from[slot].clear();
        self.disks[slot].session = 0;
    }

    fn reset(&mut self, slot: usize) {
        let session = self.disks[slot].session;
        self.cut(slot);
        if session != 0 {
            let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
            self.engine.disconnected(id, session, "reset", self.now);
            self.actions();
        }
    }

    fn swap(&mut self, version: u64, status: VolumeStatus) -> RegistryOutcome {
        let goes_back =
            status.generation < self.record.1.generation || status.view.order() < self.record.1.view.order();
        if self.record.0 == version && !goes_back {
            self.record = (version + 1, status);
            RegistryOutcome::Stored { version: version + 1 }
        } else {
            RegistryOutcome::Conflict { version: self.record.0, status: Box::new(self.record.1.clone()) }
        }
    }

    fn actions(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            if self.trace {
                eprintln!("{:?} {action:?}", self.now);
            }
            match action {
                Action::Connect { replica, generation, lineage, .. } => {
                    self.connects.push_back((slot_of(replica), generation, lineage));
                }
                Action::Disconnect { replica, session } => {
                    let slot = slot_of(replica);
                    if self.disks[slot].session == session {
                        self.cut(slot);
                    }
                }
                Action::Send { replica, session, header, body } => self.sent(replica, session, header, body),
                Action::Complete { op, outcome } => self.completed(op, outcome),
                Action::Reserve { op, len } => {
                    self.buffers.insert(op.slot, vec![0; to_usize(len / BLOCK_BYTES)]);
                }
                Action::Release { op } => {
                    self.buffers.remove(&op.slot);
                }
                Action::CompareAndSwap { ask, expected_version, status } => {
                    self.asks.push_back((ask, expected_version, *status));
                }
                Action::Serve => {
                    self.serving = true;
                    self.opened();
                }
                Action::End(ending) => {
                    self.serving = false;
                    self.ended = Some(ending);
                }
            }
        }
    }

    fn sent(&mut self, replica: ReplicaId, session: u64, header: Header, body: Body) {
        let slot = slot_of(replica);
        if self.disks[slot].session != session {
            return;
        }
        let mut frame = Frame { header, payload: Vec::new(), update: None, bytes: Vec::new() };
        match body {
            Body::None => {}
            Body::View(update) => frame.update = Some(*update),
            Body::Bytes(bytes) => frame.bytes = bytes,
            Body::Buffer { op, from, len } => {
                let buffer = &self.buffers[&op.slot];
                let from = to_usize(from / BLOCK_BYTES);
                frame.payload = buffer[from..from + to_usize(len / BLOCK_BYTES)].to_vec();
            }
        }
        self.to[slot].push_back(frame);
    }

    fn completed(&mut self, op: OpId, outcome: Outcome) {
        let client = self.clients.remove(&(op.slot, op.serial)).expect("completed once");
        let buffer = self.buffers.remove(&op.slot);
        self.answered += 1;
        let blocks = client.offset..client.offset + client.blocks;
        match (&client.request, outcome) {
            (_, Outcome::Failed(_)) => self.unknown(&client),
            (Request::Read, _) => {
                for (block, value) in blocks.clone().zip(buffer.unwrap()) {
                    let possible = &mut self.possible[to_usize(block)];
                    assert!(possible.contains(&value), "block {block}: read {value}, possible {possible:?}");
                    *possible = BTreeSet::from([value]);
                }
            }
            (Request::Write { fua }, _) => {
                for block in blocks.clone() {
                    if *fua {
                        self.durable[to_usize(block)] = BTreeSet::from([client.stamp]);
                    }
                    self.possible[to_usize(block)] = BTreeSet::from([client.stamp]);
                }
            }
            (Request::Trim | Request::WriteZeroes { .. }, _) => {
                for block in blocks.clone() {
                    self.possible[to_usize(block)] = BTreeSet::from([0]);
                }
            }
            (Request::Flush, _) => {
                if let Some(since) = self.since.remove(&(op.slot, op.serial)) {
                    self.durable = since;
                }
            }
            (Request::Extents, _) => {}
        }
        for block in blocks {
            self.busy.remove(&block);
        }
    }

    /// Where every member of the first view lost its cache, what was not flushed may be gone.
    fn opened(&mut self) {
        let members = self.engine.set_of(self.engine.members);
        if members.iter().all(|id| self.disks[slot_of(id)].meta().cache_lost) {
            for (possible, durable) in self.possible.iter_mut().zip(&self.durable) {
                possible.extend(durable);
            }
        }
    }

    /// A value that the block may have from now on.
    fn may_be(&mut self, block: u64, value: u64) {
        self.durable[to_usize(block)].insert(value);
        for since in self.since.values_mut() {
            since[to_usize(block)].insert(value);
        }
    }

    /// The node restarts: of what was not flushed, each block is there or not.
    fn reboot(&mut self, slot: usize) {
        if self.trace {
            eprintln!("{:?} REBOOT {}", self.now, slot + 1);
        }
        self.reset(slot);
        self.disks[slot].reboot(&mut self.random);
    }

    fn unknown(&mut self, op: &ClientOp) {
        for block in op.offset..op.offset + op.blocks {
            match op.request {
                Request::Write { .. } => self.possible[to_usize(block)].insert(op.stamp),
                Request::Trim | Request::WriteZeroes { .. } => self.possible[to_usize(block)].insert(0),
                Request::Read | Request::Flush | Request::Extents => false,
            };
            self.busy.remove(&block);
        }
    }

    fn submit(&mut self) {
        if self.clients.len() > 12 {
            return;
        }
        let blocks = 1 + self.random.below(3);
        let offset = self.random.below(BLOCKS - blocks + 1);
        let request = match self.random.below(10) {
            0..=3 => Request::Write { fua: self.random.one_in(4) },
            4..=6 => Request::Read,
            7 => Request::Trim,
            8 => Request::WriteZeroes { may_punch: true, fua: false },
            _ => Request::Flush,
        };
        let one_region = offset / BLOCKS_PER_REGION == (offset + blocks - 1) / BLOCKS_PER_REGION;
        let range = offset..offset + blocks;
        if !one_region || range.clone().any(|block| self.busy.contains(&block)) {
            return;
        }
        let (offset, blocks) = if request == Request::Flush { (0, 0) } else { (offset, blocks) };
        let at = place(offset) * BLOCK_BYTES;
        let Ok(op) = self.engine.submit(request, at, blocks * BLOCK_BYTES, self.now) else { return };
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        let client = ClientOp { request, offset, blocks, stamp };
        for block in offset..offset + blocks {
            match request {
                Request::Write { .. } => self.may_be(block, stamp),
                Request::Trim | Request::WriteZeroes { .. } => self.may_be(block, 0),
                Request::Read | Request::Flush | Request::Extents => {}
            }
        }
        if request == Request::Flush {
            // Writes that are on their way may or may not be covered.
            let mut since = self.possible.clone();
            for other in self.clients.values() {
                for block in other.offset..other.offset + other.blocks {
                    match other.request {
                        Request::Write { .. } => since[to_usize(block)].insert(other.stamp),
                        Request::Trim | Request::WriteZeroes { .. } => since[to_usize(block)].insert(0),
                        Request::Read | Request::Flush | Request::Extents => false,
                    };
                }
            }
            self.since.insert((op.slot, op.serial), since);
        }
        self.busy.extend(offset..offset + blocks);
        self.clients.insert((op.slot, op.serial), client);
        self.buffers.insert(op.slot, vec![stamp; to_usize(blocks)]);
        self.actions();
    }

    /// A replica does what a frame says, and queues the reply.
    fn carry_out(&mut self, slot: usize, frame: Frame) {
        let bad = self.bad_disks && self.faults && self.random.one_in(400);
        let reply = self.disks[slot].carry_out(frame, bad);
        self.from[slot].extend(reply);
    }

    /// The disk below a replica's maps goes on.
    fn disk_turn(&mut self, slot: usize) {
        let fails = self.bad_disks && self.faults && self.random.one_in(10);
        let replies = self.disks[slot].disk_turn(fails);
        if self.disks[slot].session != 0 {
            self.from[slot].extend(replies);
        }
    }

    fn receive(&mut self, slot: usize) {
        let Some(reply) = self.from[slot].pop_front() else { return };
        let mut zeros = [0; 8];
        match self.engine.payload_use(&reply.header) {
            PayloadUse::Fill(op) => {
                let buffer = self.buffers.get_mut(&op.slot).expect("a buffer for every read");
                buffer.copy_from_slice(&reply.payload);
            }
            PayloadUse::FillAndLook(op) => {
                let buffer = self.buffers.get_mut(&op.slot).expect("a buffer for every read");
                buffer.copy_from_slice(&reply.payload);
                zeros = ZeroBlocks::by_block(reply.payload.iter().map(|value| *value == 0)).encode();
            }
            PayloadUse::Merge { .. } | PayloadUse::Inline | PayloadUse::Discard => {}
        }
        let inline = if reply.inline.is_empty() { &zeros[..] } else { &reply.inline[..] };
        let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
        let session = self.disks[slot].session;
        self.engine.reply(id, session, &reply.header, inline, self.now);
        self.actions();
    }

    fn connect(&mut self) {
        let Some((slot, generation, lineage)) = self.connects.pop_front() else { return };
        let id = ReplicaId(u32::try_from(slot).unwrap() + 1);
        let uuid = InstanceUuid(uuid::Uuid::from_u128(self.engines));
        let failure = if !self.disks[slot].up {
            Some(ConnectFailure::Gone("refused".to_owned()))
        } else if self.faults && self.random.one_in(12) {
            Some(ConnectFailure::Unreachable("timed out".to_owned()))
        } else if lineage != self.disks[slot].meta().lineage {
            Some(ConnectFailure::Refused("another lineage".to_owned()))
        } else {
            None
        };
        if let Some(failure) = failure {
            self.engine.connect_failed(id, failure, self.now);
            return self.actions();
        }
        let meta = self.disks[slot].meta();
        if generation > meta.promised || (generation == meta.promised && uuid == meta.promised_to) {
            // The older connection ends before the promise is made.
            self.cut(slot);
        }
        let welcome = match self.disks[slot].fence(generation, uuid) {
            Ok(welcome) => welcome,
            Err(refused) => {
                let (generation, engine) = (refused.generation, refused.engine);
                self.engine.connect_failed(id, ConnectFailure::Fenced { generation, engine }, self.now);
                return self.actions();
            }
        };
        let session = self.next_session;
        self.next_session += 1;
        self.disks[slot].session = session;
        let boot = self.disks[slot].boot();
        self.engine.connected(id, session, generation, welcome, boot, self.now);
        self.actions();
    }

    fn registry(&mut self) {
        if !self.registry_up {
            return;
        }
        let Some((ask, version, status)) = self.asks.pop_front() else { return };
        let outcome = self.swap(version, status.clone());
        if self.faults && self.random.one_in(8) {
            // The answer is lost; the agent is asked again.
            self.asks.push_back((ask, version, status));
            return;
        }
        let outcome =
            if self.faults && self.random.one_in(20) { RegistryOutcome::Unreachable } else { outcome };
        self.engine.registry_result(ask, outcome, self.now);
        self.actions();
    }

    fn step(&mut self) {
        let count = u64::try_from(self.disks.len()).unwrap();
        let slot = to_usize(self.random.below(count));
        match self.random.below(100) {
            0..=34 => {
                if let Some(frame) = self.to[slot].pop_front() {
                    self.carry_out(slot, frame);
                }
            }
            35..=69 => self.receive(slot),
            70..=79 if self.serving && self.load => self.submit(),
            80..=84 => self.connect(),
            85..=89 => self.registry(),
            90..=93 => {
                let most = if self.random.one_in(20) { 3000 } else { 60 };
                self.now += Duration::from_millis(self.random.below(most));
                self.engine.tick(self.now);
                self.actions();
            }
            94..=96 if self.faults => self.fault(slot),
            97..=99 => self.disk_turn(slot),
            _ => {}
        }
    }

    fn recovers(&mut self, seed: u64) {
        self.faults = false;
        self.registry_up = true;
        for slot in 0..self.disks.len() {
            self.return_from_away(slot);
        }
        for step in 0.. {
            self.load = step < 2000;
            self.step();
            if self.ended.is_some() {
                self.restart_engine();
            }
            let idle = self.clients.is_empty()
                && self.to.iter().all(VecDeque::is_empty)
                && self.disks.iter().all(Disk::is_idle);
            if step > 2000 && idle && self.engine.report(self.now).state == EngineState::Healthy {
                break;
            }
            assert!(
                step < 400_000,
                "seed {seed}: never healthy: {:?}\n{:?}",
                self.engine.report(self.now),
                self.engine
            );
        }
        let configured = self.record.1.configured;
        let wanted: ReplicaSet = self.wanted.iter().map(|w| w.replica).collect();
        assert!(self.wanted.is_empty() || wanted == configured, "wanted {wanted}, configured {configured}");
        let copies: Vec<_> = configured.iter().map(|id| &self.disks[slot_of(id)]).collect();
        let first = copies[0].data.clone();
        for disk in &copies[1..] {
            for block in 0..BLOCKS {
                assert_eq!(
                    disk.data.get(&place(block)).copied().unwrap_or(0),
                    first.get(&place(block)).copied().unwrap_or(0),
                    "seed {seed}: copies differ in block {block}"
                );
            }
        }
        for block in 0..BLOCKS {
            let value = first.get(&place(block)).copied().unwrap_or(0);
            let possible = &self.possible[to_usize(block)];
            assert!(
                possible.contains(&value),
                "seed {seed}: block {block} is {value}, possible {possible:?}"
            );
        }
    }
}

/// Resets, killed replicas and engines, a registry that is away or whose answers are lost; and beside these:
#[derive(Clone, Copy, PartialEq, Eq)]
enum Faults {
    Common,
    /// Disks that refuse writes and flushes.
    BadDisks,
    /// Nodes that restart and lose what was not flushed.
    Reboots,
    /// Replicas that are added, removed and replaced.
    Changes,
}

fn run(seed: u64, replicas: u32, faults: Faults) -> u64 {
    let mut world = World::new(seed, replicas, faults == Faults::BadDisks);
    world.reboots = faults == Faults::Reboots;
    world.changes = faults == Faults::Changes;
    for _ in 0..8_000 {
        world.step();
    }
    world.recovers(seed);
    world.answered
}

fn runs(replicas: u32, faults: Faults, seeds: u64) {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let only: Option<u64> = number("HOLDFAST_SEED");
    let seeds = number("HOLDFAST_SEEDS").unwrap_or(seeds);
    let mut answered = 0;
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| run(seed, replicas, faults));
        match result {
            Ok(count) => answered += count,
            Err(panic) => {
                eprintln!("replay with HOLDFAST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(answered > 0, "the seeds have done nothing");
}

#[test]
fn one_replica_under_faults() {
    runs(1, Faults::Common, 60);
}

#[test]
fn two_replicas_under_faults() {
    runs(2, Faults::Common, 100);
}

#[test]
fn three_replicas_under_faults() {
    runs(3, Faults::Common, 120);
}

#[test]
fn three_replicas_with_bad_disks() {
    runs(3, Faults::BadDisks, 120);
}

#[test]
fn five_replicas_under_faults() {
    runs(5, Faults::Common, 40);
}

#[test]
fn two_replicas_with_bad_disks() {
    runs(2, Faults::BadDisks, 80);
}

#[test]
fn one_replica_with_reboots() {
    runs(1, Faults::Reboots, 80);
}

#[test]
fn two_replicas_with_reboots() {
    runs(2, Faults::Reboots, 120);
}

#[test]
fn three_replicas_with_reboots() {
    runs(3, Faults::Reboots, 120);
}

#[test]
fn one_replica_that_gets_and_loses_others() {
    runs(1, Faults::Changes, 80);
}

#[test]
fn three_replicas_that_are_replaced() {
    runs(3, Faults::Changes, 120);
}

#[test]
fn a_set_is_written_as_people_read_it() {
    assert_eq!(set(&[3, 1]).to_string(), "{r1,r3}");
}
