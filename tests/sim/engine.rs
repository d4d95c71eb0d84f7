//! An engine's process around the real core: what the shell does with its actions, connections and buffers, and the
//! clients that ask it for I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_dataplane::core::engine::{
    Action, Body, Config, ConnectFailure, Ending, Engine, PayloadUse, Wanted,
};
use holdfast_dataplane::core::zero_blocks::ZeroBlocks;
use holdfast_dataplane::units::{PART_BYTES_MAX, to_usize};
use holdfast_dataplane::wire::handshake::{Hello, RefusalKind, Refused, Role};
use holdfast_dataplane::wire::{Header, VERSION_MAX, VERSION_MIN};
use holdfast_proto::ids::{Epoch, Generation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId};
use holdfast_proto::pb::instance::ReplicaEndpoint;
use holdfast_proto::record::VolumeStatus;
use uuid::Uuid;

use super::clients::ClientOp;
use super::disk::{PER_BLOCK, UNIT_BYTES};
use super::net::{Message, Payload, units_crc};
use super::queue::{MS, Time};
use super::world::{Event, World};

/// One process of an engine.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) core: Engine,
    pub(super) node: usize,
    pub(super) uuid: InstanceUuid,
    /// What it is a process of.
    pub(super) instance: InstanceUuid,
    pub(super) alive: bool,
    pub(super) ended: Option<Ending>,
    pub(super) serving: bool,
    /// It has begun to serve once.
    pub(super) served: bool,
    pub(super) draining: bool,
    next_session: u64,
    /// By replica: the connection, and its session.
    links: Vec<Option<(usize, u64)>>,
    /// By replica: the try under way, and the generation it asks a promise for.
    tries: Vec<Option<(usize, Generation)>>,
    /// By replica: the process that the agent last named.
    addresses: Vec<Option<u64>>,
    /// By replica: what its agent told it last, where there are agents.
    told: BTreeMap<u32, ReplicaEndpoint>,
    /// By the operation's place in the core's table, in units.
    pub(super) buffers: BTreeMap<u32, Vec<u64>>,
    pub(super) clients: BTreeMap<(u32, u32), ClientOp>,
    tick_at: Time,
    /// After a tick that did nothing about what was overdue.
    not_before: Time,
    pub(super) asks: BTreeMap<u64, (u64, VolumeStatus, Time)>,
}

pub(super) fn now_of(time: Time) -> Duration {
    // The core's clock begins at any moment, and zero means "never" in places.
    Duration::from_micros(time + 1_000_000)
}

pub(super) fn slot_of(replica: ReplicaId) -> usize {
    usize::try_from(replica.0).unwrap_or(usize::MAX).wrapping_sub(1)
}

pub(super) fn id_of(slot: usize) -> ReplicaId {
    ReplicaId(u32::try_from(slot + 1).unwrap_or(u32::MAX))
}

/// How an engine begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) node: usize,
    pub(super) instance: InstanceUuid,
    pub(super) version: u64,
    pub(super) status: VolumeStatus,
    pub(super) wanted: Vec<Wanted>,
    pub(super) predecessor_gone: bool,
    /// As its agent says; none: as it is.
    pub(super) endpoints: Option<Vec<ReplicaEndpoint>>,
}

fn failure(refused: &Refused) -> ConnectFailure {
    match refused.kind {
        RefusalKind::Fenced => {
            ConnectFailure::Fenced { generation: refused.generation, engine: refused.engine }
        }
        RefusalKind::Identity | RefusalKind::Version | RefusalKind::Storage | RefusalKind::Absent => {
            ConnectFailure::Refused(refused.reason.clone())
        }
    }
}

impl Host {
    pub(super) fn has_one_more_replica(&mut self) {
        self.links.push(None);
        self.tries.push(None);
        self.addresses.push(None);
    }
}

impl World {
    /// An engine begins, with the record as its agent read it.
    pub(super) fn start_engine(&mut self, start: Start) -> usize {
        let Start { node, instance, version, status, wanted, predecessor_gone, endpoints } = start;
        // Promises are made to the process, not to the instance.
        let process =
            InstanceUuid(Uuid::from_u128((1 << 64) + u128::try_from(self.engines.len()).unwrap_or(0)));
        let mut config = Config::new(self.size, process);
        config.instance = instance;
        config.predecessor_gone = predecessor_gone;
        config.replica_timeout = Duration::from_millis(self.plan.replica_timeout_ms);
        config.suspend_timeout = Duration::from_secs(self.plan.suspend_timeout_s);
        let count = self.replicas.len();
        let engine = self.engines.len();
        trace!(self, "e{engine} starts on n{node}: version {version} {status:?}");
        self.engines.push(Host {
            core: Engine::new(config, version, status),
            node,
            uuid: process,
            instance,
            alive: true,
            ended: None,
            serving: false,
            served: false,
            draining: false,
            next_session: 1,
            links: vec![None; count],
            tries: vec![None; count],
            addresses: vec![None; count],
            told: BTreeMap::new(),
            buffers: BTreeMap::new(),
            clients: BTreeMap::new(),
            tick_at: Time::MAX,
            not_before: 0,
            asks: BTreeMap::new(),
        });
        match endpoints {
            Some(endpoints) => endpoints.iter().for_each(|endpoint| self.told_where(engine, endpoint)),
            None => (0..count).for_each(|slot| self.locate(engine, slot)),
        }
        let now = now_of(self.queue.now());
        self.engines[engine].core.want(wanted, now);
        self.engines[engine].core.start(now);
        self.act_engine(engine);
        engine
    }

    /// Its process is gone.
    pub(super) fn kill_engine(&mut self, engine: usize, with_its_node: bool) {
        let host = &mut self.engines[engine];
        if !std::mem::take(&mut host.alive) {
            return;
        }
        trace!(self, "e{engine} killed");
        let host = &mut self.engines[engine];
        host.serving = false;
        host.buffers.clear();
        host.links.fill(None);
        host.tries.fill(None);
        for op in std::mem::take(&mut host.clients).into_values().filter(ClientOp::mutates) {
            self.registers.write_decided(op.write, op.units);
        }
        for conn in 0..self.conns.len() {
            if self.conns[conn].engine == engine {
                if with_its_node {
                    self.conns[conn].engine_open = false;
                } else {
                    self.close_engine_end(conn);
                }
            }
        }
    }

    /// What an agent's stand-in says of a replica: what is so.
    pub(super) fn locate(&mut self, engine: usize, slot: usize) {
        let (running, run) = (self.replicas[slot].running, self.replicas[slot].run);
        let absent = running && self.replicas[slot].open.is_none();
        let local = self.engines[engine].node == self.replicas[slot].node;
        let reason = absent.then(|| "its meta cannot be read".to_owned());
        self.located(engine, slot, running.then_some(run), local, reason);
    }

    /// What its agent says of a replica; a repeat is no news.
    pub(super) fn told_where(&mut self, engine: usize, endpoint: &ReplicaEndpoint) {
        let told = &mut self.engines[engine].told;
        if told.insert(endpoint.id, endpoint.clone()).as_ref() == Some(endpoint) {
            return;
        }
        let run = endpoint.address.rsplit_once(':').and_then(|(_, run)| run.parse().ok());
        let reason = endpoint.absent.then(|| endpoint.reason.clone());
        self.located(engine, slot_of(ReplicaId(endpoint.id)), run, endpoint.local, reason);
    }

    fn located(&mut self, engine: usize, slot: usize, run: Option<u64>, local: bool, reason: Option<String>) {
        let now = now_of(self.queue.now());
        let host = &mut self.engines[engine];
        if !host.alive {
            return;
        }
        if run.is_some() && host.addresses[slot] != run {
            host.addresses[slot] = run;
            // A try that still knocks at the old place goes on at the new one.
            if let Some((conn, generation)) = host.tries[slot] {
                self.close_engine_end(conn);
                self.begin_try(engine, slot, generation, Lineage::nil(), Epoch(0));
            }
        }
        let known = self.engines[engine].addresses[slot].is_some();
        trace!(self, "e{engine} located {}: known {known} absent {reason:?}", id_of(slot));
        self.engines[engine].core.locate(id_of(slot), known, local, reason, now);
        self.act_engine(engine);
    }

    /// Every engine's agent hears of a change of a replica's process, sooner or later.
    pub(super) fn tell_engines_where(&mut self, slot: usize) {
        if self.plan.has_agents() {
            return self.nudge_replica(slot);
        }
        for engine in 0..self.engines.len() {
            if self.engines[engine].alive {
                let delay = self.random.between(MS, 500 * MS);
                self.queue.after(delay, Event::Locate { engine, replica: slot });
            }
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, engine: usize) {
        let now = self.queue.now();
        let host = &mut self.engines[engine];
        if !host.alive || host.tick_at != now {
            return;
        }
        host.tick_at = Time::MAX;
        if host.core.poll_timeout().is_some_and(|at| at <= now_of(now)) {
            host.core.tick(now_of(now));
            host.not_before = 0;
            if host.core.poll_timeout().is_some_and(|at| at <= now_of(now)) {
                host.not_before = now + 100 * MS;
            }
        }
        self.act_engine(engine);
    }

    fn plan_tick(&mut self, engine: usize) {
        let host = &mut self.engines[engine];
        let Some(at) = host.core.poll_timeout() else { return };
        let micros = u64::try_from(at.as_nanos().div_ceil(1000)).unwrap_or(Time::MAX);
        let at = micros.saturating_sub(1_000_000).max(host.not_before).max(self.queue.now());
        if at < host.tick_at {
            host.tick_at = at;
            self.queue.at(at, Event::Tick { engine });
        }
    }

    /// Carries out what the core decided.
    pub(super) fn act_engine(&mut self, engine: usize) {
        while let Some(action) = self.engines[engine].core.poll_action() {
            trace!(self, "e{engine} {action:?}");
            match action {
                Action::Connect { replica, generation, lineage, epoch } => {
                    self.begin_try(engine, slot_of(replica), generation, lineage, epoch);
                }
                Action::Disconnect { replica, session } => {
                    let link = &mut self.engines[engine].links[slot_of(replica)];
                    if let Some((conn, _)) = link.take_if(|(_, number)| *number == session) {
                        self.close_engine_end(conn);
                    }
                }
                Action::Send { replica, session, header, body } => {
                    let link = self.engines[engine].links[slot_of(replica)];
                    if let Some((conn, _)) = link.filter(|(_, number)| *number == session) {
                        self.send_frame(engine, conn, header, body);
                    }
                }
                Action::Complete { op, outcome } => self.completed(engine, (op.slot, op.serial), outcome),
                Action::Reserve { op, len } => {
                    let units = vec![0; to_usize(len / UNIT_BYTES)];
                    self.engines[engine].buffers.insert(op.slot, units);
                }
                Action::Release { op } => drop(self.engines[engine].buffers.remove(&op.slot)),
                Action::CompareAndSwap { ask, expected_version, status } => {
                    self.ask(engine, ask, expected_version, *status);
                }
                Action::Serve => self.serves(engine),
                Action::End(ending) => {
                    let host = &mut self.engines[engine];
                    host.serving = false;
                    host.ended = Some(ending);
                    self.queue.after(10 * MS, Event::Ended { engine });
                }
            }
            if self.failure.is_some() {
                return;
            }
        }
        self.plan_tick(engine);
    }

    fn send_frame(&mut self, engine: usize, conn: usize, header: Header, body: Body) {
        let (header, payload) = match body {
            Body::None => (header, Payload::None),
            Body::Bytes(bytes) => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let payload_crc = crc32fast::hash(&bytes);
                (Header { length, payload_crc, ..header }, Payload::Bytes(bytes))
            }
            Body::View(update) => {
                let bytes = update.encode(true);
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let payload_crc = crc32fast::hash(&bytes);
                (Header { length, payload_crc, ..header }, Payload::Bytes(bytes))
            }
            Body::Buffer { op, from, len } => {
                let Some(buffer) = self.engines[engine].buffers.get(&op.slot) else {
                    return self.fail(format!("e{engine}: a frame without a buffer: {header:?}"));
                };
                let from = to_usize(from / UNIT_BYTES);
                let units = buffer[from..from + to_usize(len / UNIT_BYTES)].to_vec();
                let crc = units_crc(&units);
                let length = u32::try_from(len).unwrap_or(u32::MAX);
                (Header { length, payload_crc: crc, ..header }, Payload::Units(units, crc))
            }
        };
        self.send_to_replica(conn, Message::Frame(header.encode(), payload));
    }

    // ---- connections ------------------------------------------------------------------------------------------------

    fn begin_try(
        &mut self,
        engine: usize,
        slot: usize,
        generation: Generation,
        lineage: Lineage,
        epoch: Epoch,
    ) {
        if let Some((conn, _)) = self.engines[engine].tries[slot].take() {
            self.close_engine_end(conn);
        }
        let Some(run) = self.engines[engine].addresses[slot] else {
            let why = ConnectFailure::Unreachable("nobody said where it is".to_owned());
            self.queue.after(1, Event::NotConnected { engine, replica: slot, why: Box::new(why) });
            return;
        };
        let host = &self.engines[engine];
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: 0,
            payload_bytes_max: u32::try_from(PART_BYTES_MAX).unwrap_or(u32::MAX),
            volume: VolumeId(Uuid::from_u128(1)),
            replica: id_of(slot),
            key_id: 1,
            role: Role::Engine,
            lineage,
            generation,
            engine: host.uuid,
            epoch,
            process: ProcessUuid(Uuid::from_u128(engine as u128)),
            boot: self.boot(host.node),
            nonce: [0; 32],
        };
        let conn = self.open_conn(engine, slot, run, hello);
        self.engines[engine].tries[slot] = Some((conn, generation));
        self.queue
            .after(self.plan.replica_timeout_ms * MS, Event::TryTimeout { engine, replica: slot, conn });
    }

    fn try_failed(&mut self, engine: usize, slot: usize, why: ConnectFailure) {
        self.engines[engine].tries[slot] = None;
        let now = now_of(self.queue.now());
        trace!(self, "e{engine} not connected to {}: {why:?}", id_of(slot));
        self.engines[engine].core.connect_failed(id_of(slot), why, now);
        self.act_engine(engine);
    }

    pub(super) fn not_connected(&mut self, engine: usize, slot: usize, why: ConnectFailure) {
        if self.engines[engine].alive && self.engines[engine].tries[slot].is_none() {
            self.try_failed(engine, slot, why);
        }
    }

    pub(super) fn try_timed_out(&mut self, engine: usize, slot: usize, conn: usize) {
        if self.engines[engine].tries[slot].is_some_and(|(mine, _)| mine == conn) {
            self.close_engine_end(conn);
            self.try_failed(engine, slot, ConnectFailure::Unreachable("timed out".to_owned()));
        }
    }

    /// Something arrived from a replica.
    pub(super) fn arrives_at_engine(&mut self, conn: usize, message: Message) {
        let c = &self.conns[conn];
        let (engine, slot) = (c.engine, c.replica);
        if !c.engine_open {
            if c.replica_open && !matches!(message, Message::Close) {
                self.send_to_replica(conn, Message::Close);
            }
            return;
        }
        let trying = self.engines[engine].tries[slot].filter(|(mine, _)| *mine == conn);
        if let Some((_, generation)) = trying {
            return self.handshake_answer(engine, slot, conn, generation, message);
        }
        let Some((_, session)) = self.engines[engine].links[slot].filter(|(mine, _)| *mine == conn) else {
            return;
        };
        match message {
            Message::Frame(bytes, payload) => match Header::decode(&bytes) {
                Ok(Some(header)) if header.reply => {
                    self.reply_arrives(engine, slot, conn, session, &header, payload)
                }
                Ok(_) | Err(_) => self.link_broken(engine, slot, conn, session, "it sent what is no reply"),
            },
            Message::Cut(bytes, len) => {
                if Header::decode(&bytes[..len]) != Ok(None) {
                    self.fail("a part of a header was taken for one".to_owned());
                }
            }
            Message::Hello(_)
            | Message::Welcome(..)
            | Message::Refused(_)
            | Message::NobodyThere
            | Message::Close => self.link_broken(engine, slot, conn, session, "connection reset"),
        }
    }

    fn handshake_answer(
        &mut self,
        engine: usize,
        slot: usize,
        conn: usize,
        generation: Generation,
        message: Message,
    ) {
        let why = match message {
            Message::Welcome(welcome, boot) => {
                let host = &mut self.engines[engine];
                host.tries[slot] = None;
                let session = host.next_session;
                host.next_session += 1;
                if let Some((old, _)) = host.links[slot].replace((conn, session)) {
                    self.close_engine_end(old);
                }
                let now = now_of(self.queue.now());
                trace!(self, "e{engine} connected to {}: {generation:?} {welcome:?}", id_of(slot));
                let core = &mut self.engines[engine].core;
                core.connected(id_of(slot), session, generation, *welcome, boot, now);
                return self.act_engine(engine);
            }
            Message::Refused(refused) => failure(&refused),
            Message::NobodyThere => ConnectFailure::Gone("connection refused".to_owned()),
            Message::Hello(_) | Message::Frame(..) | Message::Cut(..) | Message::Close => {
                ConnectFailure::Refused("the handshake broke off".to_owned())
            }
        };
        self.close_engine_end(conn);
        self.try_failed(engine, slot, why);
    }

    fn link_broken(&mut self, engine: usize, slot: usize, conn: usize, session: u64, why: &str) {
        self.engines[engine].links[slot] = None;
        self.close_engine_end(conn);
        let now = now_of(self.queue.now());
        trace!(self, "e{engine} lost {}: {why}", id_of(slot));
        self.engines[engine].core.disconnected(id_of(slot), session, why, now);
        self.act_engine(engine);
    }

    fn reply_arrives(
        &mut self,
        engine: usize,
        slot: usize,
        conn: usize,
        session: u64,
        header: &Header,
        payload: Payload,
    ) {
        let intact = match &payload {
            Payload::None => header.verify(&[]).is_ok(),
            Payload::Units(units, crc) => units_crc(units) == *crc,
            Payload::Bytes(bytes) => header.verify(bytes).is_ok(),
        };
        if !intact {
            return self.link_broken(engine, slot, conn, session, "payload checksum");
        }
        let host = &mut self.engines[engine];
        let mut inline = Vec::new();
        match (host.core.payload_use(header), payload) {
            (PayloadUse::Fill(op), Payload::Units(units, _)) => match host.buffers.get_mut(&op.slot) {
                Some(buffer) => buffer.copy_from_slice(&units),
                None => return self.fail(format!("e{engine}: a reply without a buffer: {header:?}")),
            },
            (PayloadUse::FillAndLook(op), Payload::Units(units, _)) => {
                let Some(buffer) = host.buffers.get_mut(&op.slot) else {
                    return self.fail(format!("e{engine}: a reply without a buffer: {header:?}"));
                };
                buffer.copy_from_slice(&units);
                let zeros = units.chunks(PER_BLOCK).map(|block| block.iter().all(|unit| *unit == 0));
                inline = ZeroBlocks::by_block(zeros).encode().to_vec();
            }
            (PayloadUse::Merge { op, at, keep_from, keep_to }, Payload::Units(units, _)) => {
                let Some(buffer) = host.buffers.get_mut(&op.slot) else {
                    return self.fail(format!("e{engine}: an edge without a buffer: {header:?}"));
                };
                let keep = to_usize(keep_from / UNIT_BYTES)..to_usize(keep_to / UNIT_BYTES);
                for (unit, place) in units.into_iter().zip(to_usize(at / UNIT_BYTES)..) {
                    if !keep.contains(&place) {
                        buffer[place] = unit;
                    }
                }
            }
            (PayloadUse::Inline, Payload::Bytes(bytes)) => inline = bytes,
            (
                PayloadUse::Fill(_)
                | PayloadUse::FillAndLook(_)
                | PayloadUse::Merge { .. }
                | PayloadUse::Inline,
                _,
            )
            | (PayloadUse::Discard, _) => {}
        }
        let now = now_of(self.queue.now());
        self.engines[engine].core.reply(id_of(slot), session, header, &inline, now);
        self.act_engine(engine);
    }
}
