//! A world: nodes with agents, replicas and engines, a network, a registry, clients, and what happens to them.

use holdfast_dataplane::core::engine::{ConnectFailure, RegistryOutcome, Wanted as WantedReplica};
use holdfast_dataplane::layout::Meta;
use holdfast_dataplane::units::{BLOCK_BYTES, REGION_BYTES};
use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ReplicaId, VolumeId,
};
use holdfast_proto::record::{ReplicaSet, View, VolumeStatus};
use uuid::Uuid;

use super::check::Registers;
use super::disk::PER_BLOCK;
use super::net::{Conn, Net};
use super::plan::Plan;
use super::queue::{MS, Queue, SEC, Time};
use super::random::Random;
use super::registry::Registry;
use super::{Report, engine, replica};

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    Arrives {
        conn: usize,
        at_replica: bool,
    },
    Tick {
        engine: usize,
    },
    Control {
        replica: usize,
        run: u64,
    },
    Data {
        replica: usize,
        run: u64,
    },
    Persisted {
        replica: usize,
        run: u64,
    },
    FileOp {
        replica: usize,
        run: u64,
        token: usize,
    },
    PageWritten {
        replica: usize,
        run: u64,
        token: u64,
    },
    Synced {
        replica: usize,
        run: u64,
    },
    OpenReplica {
        replica: usize,
        run: u64,
    },
    StartReplica {
        replica: usize,
    },
    Locate {
        engine: usize,
        replica: usize,
    },
    NotConnected {
        engine: usize,
        replica: usize,
        why: Box<ConnectFailure>,
    },
    TryTimeout {
        engine: usize,
        replica: usize,
        conn: usize,
    },
    Ask {
        engine: usize,
        ask: u64,
    },
    Answer {
        engine: usize,
        ask: u64,
        outcome: Box<RegistryOutcome>,
    },
    Ended {
        engine: usize,
    },
    /// The agent starts the engine that is wanted.
    EngineDue {
        wish: u64,
    },
    KillEngine {
        engine: usize,
    },
    Client,
    Fault,
    /// A fault ends.
    Mends(Mending),
    WriteBack,
    NodeUp {
        node: usize,
    },
    /// Other replicas are wanted.
    Change,
    /// An engine is told which are.
    Want {
        engine: usize,
    },
    EndRemoved,
}

/// Reads that are asked of an engine that was replaced, beside its clients' own.
const READERS: usize = 3;

/// How a fault ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mending {
    Way { from: usize, to: usize },
    Registry,
    RegistryFor { node: usize },
    Agent { node: usize },
    Disk { replica: usize },
    Meta { replica: usize },
}

/// A machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) boot: u64,
    pub(super) up: bool,
    pub(super) agent_up: bool,
    /// Its agent cannot reach the registry.
    pub(super) registry_cut: bool,
    /// The record as its agent last read it.
    known: (u64, VolumeStatus, Vec<WantedReplica>),
}

/// Where the volume is wanted, and by which engine.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) node: usize,
    pub(super) uuid: u128,
    /// Whose process runs, or ran last.
    pub(super) engine: Option<usize>,
    /// Grows with each start that is planned: only the last one is done.
    pub(super) wish: u64,
    pub(super) restarts: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) queue: Queue<Event>,
    pub(super) size: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) net: Net,
    pub(super) conns: Vec<Conn>,
    pub(super) replicas: Vec<replica::Host>,
    pub(super) engines: Vec<engine::Host>,
    pub(super) registry: Registry,
    pub(super) wanted: Wanted,
    pub(super) registers: Registers,
    pub(super) next_write: u64,
    /// The last that began to serve: its generation, and which.
    pub(super) newest_served: Option<(Generation, usize)>,
    pub(super) served_engines: u64,
    pub(super) answered: u64,
    pub(super) failed_ops: u64,
    pub(super) faults: bool,
    load: bool,
    pub(super) failure: Option<String>,
    pub(super) trace: bool,
}

pub(super) fn first_meta(replica: ReplicaId, size_bytes: u64, view: View, configured: ReplicaSet) -> Meta {
    Meta {
        node: "node".parse().expect("a name"),
        volume: VolumeId(Uuid::from_u128(1)),
        volume_name: "sim".parse().expect("a name"),
        replica,
        size_bytes,
        lineage: Lineage::nil(),
        promised: Generation(0),
        promised_to: InstanceUuid::nil(),
        view,
        configured,
        incarnation: Incarnation(Uuid::from_u128(1)),
        revision: 1,
        syncing: false,
        boot: BootId::nil(),
        unflushed: false,
        cache_lost: false,
        failed: String::new(),
        basis: Some(view.order()),
        dirty: Vec::new(),
    }
}

impl World {
    pub(super) fn new(plan: Plan, trace: bool) -> Self {
        let size = plan.regions * REGION_BYTES - plan.short_blocks * BLOCK_BYTES;
        let blocks = usize::try_from(size / BLOCK_BYTES).unwrap_or(0);
        let configured: ReplicaSet = (0..plan.replicas).map(engine::id_of).collect();
        let view =
            View { generation: Generation(0), epoch: Epoch(0), members: configured, needs_registry: false };
        let status = VolumeStatus {
            incarnation: Incarnation(Uuid::from_u128(1)),
            lineage: Lineage::nil(),
            generation: Generation(0),
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            view,
            configured,
            clean: true,
            instance_uuids: std::collections::BTreeMap::new(),
        };
        let mut wanted = Vec::new();
        if plan.change_every > 0 {
            let all = configured.iter();
            wanted.extend(all.map(|replica| WantedReplica { replica, replaces: ReplicaSet::new() }));
        }
        let mut random = Random::new(plan.seed ^ 0x51ed_270b);
        let known = (1, status.clone(), wanted.clone());
        let node = |_| Node { boot: 1, up: true, agent_up: true, registry_cut: false, known: known.clone() };
        let replicas = (0..plan.replicas)
            .map(|slot| {
                let meta = first_meta(engine::id_of(slot), size, view, configured);
                let node = if plan.one_node { 0 } else { slot % plan.nodes };
                replica::Host::new(node, blocks, &meta, random.one_in(3))
            })
            .collect();
        let mut world = Self {
            size,
            nodes: (0..plan.nodes).map(node).collect(),
            net: Net::new(plan.nodes),
            conns: Vec::new(),
            replicas,
            engines: Vec::new(),
            registry: Registry {
                version: 1,
                status: status.clone(),
                wanted,
                incarnation: 1,
                up: true,
                lose_one_in: 0,
                backup: None,
            },
            wanted: Wanted { node: 0, uuid: 100, engine: None, wish: 0, restarts: 0 },
            registers: Registers::new(blocks * PER_BLOCK),
            next_write: 0,
            newest_served: None,
            served_engines: 0,
            answered: 0,
            failed_ops: 0,
            faults: true,
            load: true,
            failure: None,
            queue: Queue::new(),
            random,
            plan,
            trace,
        };
        world.set_up();
        world
    }

    fn set_up(&mut self) {
        self.net.latency = self.plan.latency_us;
        self.net.slow_one_in = self.plan.slow_one_in;
        self.net.damage_one_in = self.plan.damage_one_in;
        self.registry.lose_one_in = self.plan.lose_answers_one_in;
        for slot in 0..self.replicas.len() {
            let after = self.random.below(100 * MS);
            self.queue.after(after, Event::StartReplica { replica: slot });
        }
        self.want_engine(200 * MS);
        self.queue.after(MS, Event::Client);
        self.queue.after(SEC, Event::Fault);
        self.queue.after(10 * MS, Event::WriteBack);
        if self.plan.change_every > 0 {
            self.queue.after(SEC, Event::Change);
            self.queue.after(SEC, Event::EndRemoved);
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        trace!(self, "FAILED: {why}");
        self.failure.get_or_insert(why);
    }

    /// Runs it to its end.
    pub(super) fn run(mut self) -> Report {
        let busy_until = self.plan.busy_for;
        self.run_until(busy_until);
        self.faults_stop();
        self.run_until(busy_until + 2 * SEC);
        self.load = false;
        let healthy_by = busy_until + self.plan.healthy_within;
        while self.failure.is_none() && !self.at_rest() {
            if self.queue.now() > healthy_by {
                let why = self.why_not_healthy();
                self.fail(format!("not healthy in time: {why}"));
            }
            let next = self.queue.now() + 100 * MS;
            self.run_until(next);
        }
        if self.failure.is_none() {
            self.check_copies();
        }
        Report {
            failure: self.failure,
            answered: self.answered,
            failed_ops: self.failed_ops,
            engines: u64::try_from(self.engines.len()).unwrap_or(0),
            events: self.queue.count(),
            sim_us: self.queue.now(),
        }
    }

    fn run_until(&mut self, until: Time) {
        self.queue.at(until, Event::Mends(Mending::Way { from: 0, to: 0 }));
        while self.failure.is_none()
            && let Some(event) = self.queue.pop()
        {
            self.happens(event);
            if self.queue.now() >= until {
                return;
            }
        }
    }

    fn at_rest(&self) -> bool {
        let Some(current) = self.wanted.engine else { return false };
        let host = &self.engines[current];
        host.alive
            && host.serving
            && host.ended.is_none()
            && host.clients.is_empty()
            && self.is_healthy(current)
            && self.registry.is_as_wanted()
            && self.engines.iter().all(|host| host.clients.is_empty() || !host.alive)
    }

    fn why_not_healthy(&self) -> String {
        let current = self.wanted.engine.map(|engine| {
            let host = &self.engines[engine];
            let report = host.core.report(engine::now_of(self.queue.now()));
            format!(
                "e{engine} alive {} ended {:?} clients {} {report:?}",
                host.alive,
                host.ended,
                host.clients.len()
            )
        });
        let metas: Vec<_> = self
            .replicas
            .iter()
            .map(|r| r.open.as_ref().map_or("not open".to_owned(), |open| format!("{:?}", open.core.meta())))
            .collect();
        format!(
            "{current:?}\nrecord {} {:?} wanted {:?}\n{}",
            self.registry.version,
            self.registry.status,
            self.registry.wanted,
            metas.join("\n")
        )
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives { conn, at_replica } => self.arrives(conn, at_replica),
            Event::Tick { engine } => self.tick(engine),
            Event::Control { replica, run } if self.is_run(replica, run) => self.control(replica),
            Event::Data { replica, run } if self.is_run(replica, run) => self.data(replica),
            Event::Persisted { replica, run } if self.is_run(replica, run) => self.persisted(replica),
            Event::FileOp { replica, run, token } if self.is_run(replica, run) => {
                self.file_op_ended(replica, token);
            }
            Event::PageWritten { replica, run, token } if self.is_run(replica, run) => {
                self.page_written(replica, token);
            }
            Event::Synced { replica, run } if self.is_run(replica, run) => self.synced(replica),
            Event::OpenReplica { replica, run } if self.is_run(replica, run) => self.open_replica(replica),
            Event::Control { .. }
            | Event::Data { .. }
            | Event::Persisted { .. }
            | Event::FileOp { .. }
            | Event::PageWritten { .. }
            | Event::Synced { .. }
            | Event::OpenReplica { .. } => {}
            Event::StartReplica { replica } => self.replica_due(replica),
            Event::Locate { engine, replica } => self.locate(engine, replica),
            Event::NotConnected { engine, replica, why } => self.not_connected(engine, replica, *why),
            Event::TryTimeout { engine, replica, conn } => self.try_timed_out(engine, replica, conn),
            Event::Ask { engine, ask } => self.executes(engine, ask),
            Event::Answer { engine, ask, outcome } => self.answer_ask(engine, ask, *outcome),
            Event::Ended { engine } => self.engine_ended(engine),
            Event::EngineDue { wish } => self.engine_due(wish),
            Event::KillEngine { engine } => self.kill_engine(engine, false),
            Event::Client => self.clients_turn(),
            Event::Fault => self.fault_due(),
            Event::Mends(mending) => self.mends(mending),
            Event::WriteBack => {
                let blocks = self.blocks();
                for slot in 0..self.replicas.len() {
                    let block = self.random.index(blocks);
                    self.replicas[slot].image.written_back(block);
                }
                self.queue.after(50 * MS, Event::WriteBack);
            }
            Event::NodeUp { node } => self.node_up(node),
            Event::Change => self.change_due(),
            Event::Want { engine } => self.tell_wanted(engine),
            Event::EndRemoved => self.end_removed(),
        }
    }

    fn is_run(&self, replica: usize, run: u64) -> bool {
        self.replicas[replica].running && self.replicas[replica].run == run
    }

    fn clients_turn(&mut self) {
        if !self.load {
            return;
        }
        for engine in 0..self.engines.len() {
            let host = &self.engines[engine];
            if host.alive && host.serving && !host.draining {
                for _ in 0..=self.random.below(self.plan.burst) {
                    self.client(engine);
                }
                if self.plan.readers && self.newest_served.is_some_and(|(_, newest)| newest != engine) {
                    for _ in 0..READERS {
                        self.reader(engine);
                    }
                }
            }
        }
        let next = self.random.below(2 * self.plan.client_every);
        self.queue.after(next, Event::Client);
    }

    /// All copies are the same, and are what clients were told.
    fn check_copies(&mut self) {
        let blocks = self.blocks();
        let slots: Vec<_> = self.registry.status.configured.iter().map(engine::slot_of).collect();
        let first: Vec<_> = self.replicas[slots[0]].image.read(0, blocks).collect();
        for &slot in &slots[1..] {
            let differs = self.replicas[slot].image.read(0, blocks).zip(&first).position(|(a, b)| a != *b);
            if let Some(unit) = differs {
                let values: Vec<_> =
                    slots.iter().map(|slot| self.replicas[*slot].image.read(0, blocks).nth(unit)).collect();
                return self.fail(format!("copies differ in unit {unit}: {values:?}"));
            }
        }
        let began = self.registers.moment();
        for (unit, value) in first.into_iter().enumerate() {
            if let Err(why) = self.registers.read(unit, began, value) {
                let known = self.registers.describe(unit);
                return self.fail(format!("in the end: {why}\n{known}"));
            }
        }
    }

    // ---- the stand-in for agents and operators ----------------------------------------------------------------------

    pub(super) fn agent_is_up(&self, node: usize) -> bool {
        self.nodes[node].up && self.nodes[node].agent_up
    }

    pub(super) fn registry_answers(&self, node: usize) -> bool {
        self.registry.up && self.agent_is_up(node) && !self.nodes[node].registry_cut
    }

    fn replica_due(&mut self, slot: usize) {
        if self.replicas[slot].running || self.was_removed(slot) {
            return;
        }
        if self.agent_is_up(self.replicas[slot].node) {
            self.start_replica(slot);
        } else {
            self.queue.after(500 * MS, Event::StartReplica { replica: slot });
        }
    }

    /// The engine that is wanted is started after a while; a start that was planned before is not.
    pub(super) fn want_engine(&mut self, after: Time) {
        self.wanted.wish += 1;
        self.queue.after(after, Event::EngineDue { wish: self.wanted.wish });
    }

    /// An operator attaches the volume: another creation of its engine, perhaps elsewhere.
    pub(super) fn attach_anew(&mut self, after: Time) {
        self.wanted.uuid += 1;
        self.wanted.node = self.random.index(self.nodes.len());
        self.wanted.engine = None;
        self.wanted.restarts = 0;
        if self.registry.up {
            // The wish is in the record.
            self.registry.version += 1;
        }
        self.want_engine(after);
    }

    fn engine_due(&mut self, wish: u64) {
        if wish != self.wanted.wish || self.wanted.engine.is_some_and(|e| self.engines[e].alive) {
            return;
        }
        let node = self.wanted.node;
        if !self.agent_is_up(node) {
            return self.want_engine(500 * MS);
        }
        if self.registry_answers(node) {
            let registry = &self.registry;
            self.nodes[node].known = (registry.version, registry.for_engine(), registry.wanted.clone());
        }
        let known = self.nodes[node].known.clone();
        let uuid = InstanceUuid(Uuid::from_u128(self.wanted.uuid));
        let engine = self.engines.len();
        self.wanted.engine = Some(engine);
        self.start_engine(node, uuid, known);
        if self.plan.change_every > 0 {
            // Its agent looks at the record again, as every few seconds.
            self.queue.after(5 * SEC, Event::Want { engine });
        }
    }

    /// The current engine's process is gone: its agent starts it again.
    pub(super) fn engine_lost(&mut self) {
        self.wanted.restarts += 1;
        let backoff = SEC << self.wanted.restarts.min(3);
        let after = backoff / 2 + self.random.below(backoff);
        self.want_engine(after);
    }

    fn engine_ended(&mut self, engine: usize) {
        use holdfast_dataplane::core::engine::Ending;
        let Some(ending) = self.engines[engine].ended.clone() else { return };
        if !self.engines[engine].alive {
            return;
        }
        let current = self.wanted.engine == Some(engine);
        match ending {
            Ending::RecordMissing => self.fail(format!("e{engine}: the record is missing")),
            Ending::CacheLost => {
                let lost = self.members_of(engine).iter().all(|slot| self.replicas[*slot].lost);
                if !self.plan.reboots {
                    self.fail(format!("e{engine}: caches lost without a restart of a node ({lost})"));
                }
                self.kill_engine(engine, false);
                if current {
                    self.engine_lost();
                }
            }
            Ending::Fenced { .. } | Ending::Clean | Ending::Unclean(_) => {
                self.kill_engine(engine, false);
                if current {
                    let after = self.random.between(100 * MS, 3 * SEC);
                    self.attach_anew(after);
                }
            }
        }
    }
}
