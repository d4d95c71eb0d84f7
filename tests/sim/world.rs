//! A world: nodes with agents, replicas and engines, a network, a registry, clients, and what happens to them.

use holdfast::core::instance::InstanceName;
use holdfast_dataplane::core::engine::{ConnectFailure, Ending, RegistryOutcome, Wanted as WantedReplica};
use holdfast_dataplane::layout::Meta;
use holdfast_dataplane::units::{BLOCK_BYTES, REGION_BYTES};
use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId,
};
use holdfast_proto::record::{Intent, ReplicaSet, ReplicaSpec, View, VolumeSpec, VolumeStatus};
use holdfast_proto::unknown::Unknown;
use uuid::Uuid;

use super::agent::{Agent, Turn, node_name};
use super::check::Registers;
use super::deeds::Deeds;
use super::disk::PER_BLOCK;
use super::net::{Conn, Net};
use super::operator::Wish;
use super::plan::Plan;
use super::process::{Fate, Step, VOLUME};
use super::queue::{MS, Queue, SEC, Time};
use super::random::Random;
use super::registry::{Registry, wanted_of};
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
    AgentBegins {
        node: usize,
    },
    /// Of the process `agent` of a node's agent.
    Agent {
        node: usize,
        agent: u64,
        turn: Turn,
    },
    Driver {
        node: usize,
        agent: u64,
        name: InstanceName,
        run: u64,
        step: Step,
    },
    /// A process's end is seen.
    Reaped {
        node: usize,
        agent: u64,
        name: InstanceName,
        pid: i32,
        why: &'static str,
    },
    Process {
        node: usize,
        name: InstanceName,
        pid: i32,
        fate: Fate,
    },
    Operator {
        number: u64,
        wish: Wish,
    },
    PeopleLook,
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
    Record,
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
    pub(super) known: (u64, VolumeStatus, Vec<WantedReplica>),
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
    /// Where there are agents: nothing more is about to be wished.
    pub(super) settled: bool,
    /// Until then people wait for what is not as it should be.
    pub(super) patience: Time,
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
    /// Of each node, where there are any.
    pub(super) agents: Vec<Agent>,
    pub(super) deeds: Deeds,
    /// The chance that agents and people have.
    pub(super) chance: Random,
    /// The last creation of an engine.
    pub(super) minted: u128,
    /// Processes of agents.
    pub(super) agents_begun: u64,
    /// The registry has said that there is no record.
    pub(super) was_gone: bool,
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
    /// Nothing is left that tells an older copy from the newest: the world ends, and nothing more is asked of it.
    pub(super) beyond: bool,
    pub(super) copy: Option<Snapshot>,
    pub(super) trace: bool,
}

/// A copy of a node's disks.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) node: usize,
    pub(super) disks: Vec<(usize, super::disk::Image, super::disk::MetaFiles, super::maps::Files)>,
}

/// The creation of a replica's instance.
pub(super) fn replica_instance(replica: ReplicaId) -> InstanceUuid {
    InstanceUuid(Uuid::from_u128(1 << 80 | u128::from(replica.0)))
}

fn first_spec(size_bytes: u64, replicas: impl Iterator<Item = (ReplicaId, NodeName)>) -> VolumeSpec {
    let replicas: Vec<_> = replicas
        .map(|(id, node)| ReplicaSpec {
            id,
            node,
            disk: None,
            to_make: false,
            replaces: ReplicaSet::new(),
            unknown: Unknown::default(),
        })
        .collect();
    VolumeSpec {
        size_bytes,
        next_replica_id: u32::try_from(replicas.len()).unwrap_or(0) + 1,
        replicas,
        leaving: Vec::new(),
        attach: None,
        detaching: None,
        intent: Intent::Keep,
        io_mode: "buffered".to_owned(),
        unknown: Unknown::default(),
    }
}

pub(super) fn first_meta(replica: ReplicaId, size_bytes: u64, view: View, configured: ReplicaSet) -> Meta {
    Meta {
        node: "node".parse().expect("a name"),
        volume: VOLUME,
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
        basis: Some(view.stamp(0)),
        settled: None,
        dirty: Vec::new(),
        unknown: Vec::new(),
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
            round: 0,
            view,
            configured,
            clean: true,
            instance_uuids: std::collections::BTreeMap::new(),
            unknown: Unknown::default(),
        };
        let mut wanted = Vec::new();
        if plan.change_every > 0 {
            let all = configured.iter();
            wanted.extend(all.map(|replica| WantedReplica { replica, replaces: ReplicaSet::new() }));
        }
        let mut random = Random::new(plan.seed ^ 0x51ed_270b);
        let place = |slot: usize| if plan.one_node { 0 } else { slot % plan.nodes };
        let spec = first_spec(size, configured.iter().map(|id| (id, node_name(place(engine::slot_of(id))))));
        let mut status = status;
        if plan.has_agents() {
            for id in configured.iter() {
                let name = InstanceName::replica(&"sim".parse().expect("a name"), id).to_string();
                status.instance_uuids.insert(name, replica_instance(id));
            }
            wanted = wanted_of(&spec);
        }
        let known = (1, status.clone(), wanted.clone());
        let node = |_| Node { boot: 1, up: true, agent_up: true, registry_cut: false, known: known.clone() };
        let replicas = (0..plan.replicas)
            .map(|slot| {
                let meta = first_meta(engine::id_of(slot), size, view, configured);
                replica::Host::new(place(slot), blocks, &meta, random.one_in(3))
            })
            .collect();
        let mut world = Self {
            size,
            nodes: (0..plan.nodes).map(node).collect(),
            net: Net::new(plan.nodes),
            conns: Vec::new(),
            replicas,
            engines: Vec::new(),
            registry: Registry::new(status, wanted, spec),
            agents: if plan.has_agents() { (0..plan.nodes).map(Agent::new).collect() } else { Vec::new() },
            deeds: Deeds::new(plan.nodes),
            chance: Random::new(plan.seed ^ 0x1b87_3593),
            minted: 100,
            agents_begun: 0,
            was_gone: false,
            wanted: Wanted {
                node: 0,
                uuid: 100,
                engine: None,
                wish: 0,
                restarts: 0,
                settled: true,
                patience: plan.busy_for + 80 * SEC,
            },
            registers: Registers::new(blocks * PER_BLOCK),
            next_write: 0,
            newest_served: None,
            served_engines: 0,
            answered: 0,
            failed_ops: 0,
            faults: true,
            load: true,
            failure: None,
            beyond: false,
            copy: None,
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
        if self.plan.has_agents() {
            for node in 0..self.nodes.len() {
                self.nodes[node].agent_up = false;
                let after = self.chance.below(100 * MS);
                self.queue.after(after, Event::AgentBegins { node });
            }
            self.people_attach_anew(200 * MS);
            self.queue.after(SEC, Event::PeopleLook);
        } else {
            for slot in 0..self.replicas.len() {
                let after = self.random.below(100 * MS);
                self.queue.after(after, Event::StartReplica { replica: slot });
            }
            self.want_engine(200 * MS);
        }
        self.queue.after(MS, Event::Client);
        self.queue.after(SEC, Event::Fault);
        self.queue.after(10 * MS, Event::WriteBack);
        if self.plan.change_every > 0 {
            self.queue.after(SEC, Event::Change);
            if !self.plan.has_agents() {
                self.queue.after(SEC, Event::EndRemoved);
            }
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        if !self.beyond {
            trace!(self, "FAILED: {why}");
            self.failure.get_or_insert(why);
        }
    }

    /// Runs it to its end.
    pub(super) fn run(mut self) -> Report {
        let busy_until = self.plan.busy_for;
        self.run_until(busy_until);
        self.faults_stop();
        self.run_until(busy_until + 2 * SEC);
        self.load = false;
        let healthy_by = busy_until + self.plan.healthy_within;
        while self.failure.is_none() && !self.beyond && !self.at_rest() {
            if self.queue.now() > healthy_by {
                let why = self.why_not_healthy();
                self.fail(format!("not healthy in time: {why}"));
            }
            let next = self.queue.now() + 100 * MS;
            self.run_until(next);
        }
        if self.failure.is_none() && !self.beyond {
            self.check_copies();
        }
        if self.failure.is_none() && self.plan.has_agents() {
            self.detach_at_last();
        }
        Report {
            failure: self.failure,
            answered: self.answered,
            failed_ops: self.failed_ops,
            engines: u64::try_from(self.engines.len()).unwrap_or(0),
            agents: self.agents_begun,
            cleaned: self.deeds.cleaned,
            events: self.queue.count(),
            sim_us: self.queue.now(),
        }
    }

    /// The volume is detached, and then deleted with its data.
    fn detach_at_last(&mut self) {
        trace!(self, "THE VOLUME IS DETACHED");
        self.people_detach();
        let last = self.wanted.engine;
        let ends = |world: &Self| match world.registry.status.clean {
            true => world.agents.iter().all(|agent| agent.processes.is_empty()),
            // Where a flush had failed on the last copy, or a registry that went back has fenced it, or an answer that came
            // late has ended the replicas first, it cannot be clean.
            false => last.is_some_and(|engine| {
                let host = &world.engines[engine];
                let said = matches!(host.ended, Some(Ending::Unclean(_) | Ending::Fenced { .. }));
                !host.alive && (said || host.draining)
            }),
        };
        self.run_while("not detached in time", |world| !ends(world));
        if self.failure.is_some() {
            return;
        }
        self.check_copies();
        if !self.plan.seed.is_multiple_of(4) || !self.registry.status.clean {
            return;
        }
        trace!(self, "THE VOLUME IS DELETED");
        self.people_purge();
        let trashed = |world: &Self| {
            let gone = |slot: usize| world.agents[world.replicas[slot].node].trash.contains(&slot);
            // What was taken out of the volume before stays where no replica of it is left.
            world.registry.record().placed().all(|spec| gone(engine::slot_of(spec.id)))
        };
        self.run_while("not deleted in time", |world| !trashed(world));
        let alone = self.registry.record().placed().all(|spec| spec.node == node_name(0));
        if self.failure.is_none() && alone && self.plan.one_node {
            self.run_while("its record stays", |world| !world.registry.deleted);
        }
    }

    fn run_while(&mut self, late: &str, goes_on: impl Fn(&Self) -> bool) {
        let until = self.queue.now() + self.plan.healthy_within;
        while self.failure.is_none() && goes_on(self) {
            if self.queue.now() > until {
                let why = self.why_not_healthy();
                self.fail(format!("{late}: {why}"));
            }
            let next = self.queue.now() + 100 * MS;
            self.run_until(next);
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
        self.wanted.settled
            && self.engine_processes() <= 1
            && host.alive
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
        let agents = (0..self.agents.len()).map(|node| self.agent_says(node)).collect::<Vec<_>>().join("\n");
        format!(
            "{current:?}\nsettled {} record {} {:?} wanted {:?} attach {:?}\n{}\n{agents}",
            self.wanted.settled,
            self.registry.version,
            self.registry.status,
            self.registry.wanted,
            self.registry.spec.attach,
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
            Event::AgentBegins { node } => self.agent_begins(node),
            Event::Agent { node, agent, turn } if self.agents[node].run == agent => {
                self.agents_turn(node, turn);
            }
            Event::Driver { node, agent, name, run, step } if self.agents[node].run == agent => {
                self.driver_steps(node, &name, run, step);
            }
            Event::Reaped { node, agent, name, pid, why } if self.agents[node].run == agent => {
                self.reaped(node, &name, pid, why);
            }
            Event::Agent { .. } | Event::Driver { .. } | Event::Reaped { .. } => {}
            Event::Process { node, name, pid, fate } => self.process_fate(node, &name, pid, fate),
            Event::Operator { number, wish } => self.people_do(number, wish),
            Event::PeopleLook => self.people_look(),
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

    pub(super) fn agent_is_up(&self, node: usize) -> bool {
        self.nodes[node].up && self.nodes[node].agent_up
    }

    pub(super) fn registry_answers(&self, node: usize) -> bool {
        self.registry.up && self.agent_is_up(node) && !self.nodes[node].registry_cut
    }
}
