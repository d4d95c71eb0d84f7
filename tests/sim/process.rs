//! Processes of a node under its agent, and what stands between the two: `agent::process::driver`, mirrored. A driver
//! reports events and decides nothing; when it is gone, the process stays.

use holdfast::core::creation::Creation;
use holdfast::core::instance::{Event as Happened, InstanceName, Kind};
use holdfast_dataplane::core::engine::{Ending, EngineState, ReplicaMode, Wanted};
use holdfast_proto::ids::{InstanceUuid, VolumeId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::VolumeStatus;

use super::agent::Live;
use super::engine::{Start, id_of, now_of, slot_of};
use super::queue::{MS, SEC};
use super::world::{Event, World};

/// As in the drivers: a drain, and from it to the signal that cannot be ignored.
const DRAINS_WITHIN: u64 = 75 * SEC;
const ENDS_WITHIN: u64 = 15 * SEC;
/// A process that nobody confirms for so long ends by itself.
const CONFIRM_WITHIN: u64 = 30 * SEC;
const LOOK_AGAIN: u64 = SEC;
const WATCH_EVERY: u64 = SEC;

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Of the replica in this slot.
    Replica(usize),
    /// Of an engine, once it was told what it serves.
    Engine(Option<usize>),
}

/// A process that holds its instance's lock.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) uuid: InstanceUuid,
    pub(super) body: Body,
    pub(super) began: u64,
    confirmed: bool,
}

/// What an instance is told to serve.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Role {
    Replica,
    Engine(Box<EngineRole>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct EngineRole {
    pub(super) version: u64,
    pub(super) status: VolumeStatus,
    pub(super) predecessor_gone: bool,
    pub(super) wanted: Vec<Wanted>,
    pub(super) endpoints: Vec<pb::ReplicaEndpoint>,
}

/// Whether an instance that serves `a` need not be told `b`.
fn same_settings(a: &Role, b: &Role) -> bool {
    match (a, b) {
        (Role::Engine(a), Role::Engine(b)) => a.wanted == b.wanted && a.endpoints == b.endpoints,
        (a, b) => a == b,
    }
}

/// One per instance that lives, or that may.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) run: u64,
    pid: Option<i32>,
    pub(super) role: Option<Role>,
    told: Option<Role>,
    /// It is to end; whether after a drain.
    stop: Option<bool>,
    talks: bool,
    heard: Option<pb::InstanceStatus>,
}

impl Driver {
    pub(super) fn new(run: u64) -> Self {
        Self { run, pid: None, role: None, told: None, stop: None, talks: false, heard: None }
    }
}

/// What a driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Spawn,
    Find,
    Greet,
    Watch { again: bool },
    Tell,
    End,
    Signal,
    Gone { pid: i32, why: &'static str },
}

/// What happens to a process by itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Unconfirmed,
    Exits,
}

impl World {
    pub(super) fn drive(&mut self, node: usize, name: &InstanceName, run: u64, step: Step, after: u64) {
        let agent = self.agents[node].run;
        let step = Event::Driver { node, agent, name: name.clone(), run, step };
        self.queue.after(after, step);
    }

    fn soon(&mut self) -> u64 {
        let longest = if self.chance.one_in(20) { 2 * SEC } else { 10 * MS };
        100 + self.chance.below(longest)
    }

    pub(super) fn driver_steps(&mut self, node: usize, name: &InstanceName, run: u64, step: Step) {
        let Some(mut live) = self.agents[node].live.take() else { return };
        let current = live.drivers.get(name).is_some_and(|driver| driver.run == run);
        let lives =
            !current || self.step(node, &mut live, name, step).and_then(|()| self.survives(node)).is_some();
        if lives {
            self.agents[node].live = Some(live);
        }
    }

    /// None: the agent died of it.
    fn step(&mut self, node: usize, live: &mut Live, name: &InstanceName, step: Step) -> Option<()> {
        let driver = live.drivers.get_mut(name)?;
        let run = driver.run;
        match step {
            Step::Spawn => return self.spawns(node, live, name),
            Step::Find => self.finds(node, live, name),
            Step::Greet => {
                let process = self.agents[node].processes.get_mut(name);
                if let Some(process) = process.filter(|process| Some(process.pid) == driver.pid) {
                    process.confirmed = true;
                    driver.talks = true;
                    self.report(node, live, name, Happened::Confirmed);
                    self.drive(node, name, run, Step::Watch { again: true }, MS);
                    self.drive(node, name, run, Step::Tell, MS);
                    self.drive(node, name, run, Step::End, MS);
                }
            }
            Step::Watch { again } => {
                let there = self.agents[node].processes.get(name).map(|process| process.pid);
                if !driver.talks || there != driver.pid {
                    return Some(());
                }
                let status = self.status_of(node, name);
                if status != driver.heard {
                    driver.heard.clone_from(&status);
                    if let Some(status) = status {
                        self.report(node, live, name, Happened::Status(Box::new(status)));
                    }
                }
                if again {
                    self.drive(node, name, run, Step::Watch { again }, WATCH_EVERY);
                }
            }
            Step::Tell => self.tells(node, live, name),
            Step::End => self.ask_for_end(node, live, name),
            Step::Signal => {
                let pid = driver.pid;
                let process = self.agents[node].processes.get(name).map(|process| process.pid);
                if process.is_some() && process == pid {
                    self.process_ends(node, name, "killed by signal 9", false);
                }
            }
            Step::Gone { pid, why } => {
                if driver.pid == Some(pid) {
                    self.gone(node, live, name, why);
                }
            }
        }
        Some(())
    }

    /// Makes the creation durable, then starts the process; finds the one that lives already.
    fn spawns(&mut self, node: usize, live: &mut Live, name: &InstanceName) -> Option<()> {
        let driver = live.drivers.get_mut(name)?;
        let instance = live.instances.get(name)?;
        let (uuid, volume_id, restarts) = (instance.uuid(), instance.volume_id(), instance.restarts());
        if self.agents[node].processes.contains_key(name) {
            self.finds(node, live, name);
            return Some(());
        }
        let boot_id = self.boot(node);
        let creation = Creation { uuid, volume_id, restarts, boot_id, ran: false };
        self.agents[node].creations.insert(name.clone(), creation);
        self.survives(node)?;
        if self.faults && self.chance.one_in(40) {
            self.gone(node, live, name, "it could not be started");
            return Some(());
        }
        let body = match name.kind() {
            Kind::Replica(id) => Body::Replica(slot_of(id)),
            Kind::Engine => Body::Engine(None),
        };
        let began = self.queue.now();
        let agent = &mut self.agents[node];
        agent.pids += 1;
        let pid = agent.pids;
        trace!(self, "n{node} starts {name} {uuid} as {pid}");
        let process = Process { pid, uuid, body, began, confirmed: false };
        self.agents[node].processes.insert(name.clone(), process);
        let fate = Event::Process { node, name: name.clone(), pid, fate: Fate::Unconfirmed };
        self.queue.after(CONFIRM_WITHIN, fate);
        self.survives(node)?;
        self.agents[node].creations.insert(name.clone(), Creation { ran: true, ..creation });
        driver.pid = Some(pid);
        let run = driver.run;
        self.report(node, live, name, Happened::Process(pid));
        let after = self.soon();
        self.drive(node, name, run, Step::Greet, after);
        Some(())
    }

    /// Finds the process that holds the lock.
    fn finds(&mut self, node: usize, live: &mut Live, name: &InstanceName) {
        let Some(driver) = live.drivers.get_mut(name) else { return };
        let Some(creation) = self.agents[node].creations.get(name).copied() else { return };
        let run = driver.run;
        let Some(process) = self.agents[node].processes.get(name) else {
            return self.gone(node, live, name, "no process holds its lock");
        };
        let wanted = live.instances.get(name).map(|instance| instance.uuid());
        let silent = self.chance.one_in(10);
        if wanted != Some(process.uuid) || silent {
            let why = if silent { "it does not answer" } else { "another creation answers" };
            self.report(node, live, name, Happened::Lost(why.to_owned()));
            return self.drive(node, name, run, Step::Find, LOOK_AGAIN);
        }
        driver.pid = Some(process.pid);
        let pid = process.pid;
        trace!(self, "n{node} adopts {name} {pid}");
        self.agents[node].creations.insert(name.clone(), Creation { ran: true, ..creation });
        self.report(node, live, name, Happened::Process(pid));
        let after = self.soon();
        self.drive(node, name, run, Step::Greet, after);
    }

    fn gone(&mut self, node: usize, live: &mut Live, name: &InstanceName, why: &str) {
        let Some(driver) = live.drivers.get(name) else { return };
        if driver.stop.is_some()
            && let Some(creation) = self.agents[node].creations.get_mut(name)
        {
            creation.ran = false;
        }
        self.report(node, live, name, Happened::Ended(why.to_owned()));
    }

    /// The supervisor says what the instance is to serve.
    pub(super) fn configure(&mut self, node: usize, live: &mut Live, name: &InstanceName, role: Role) {
        let Some(driver) = live.drivers.get_mut(name) else { return };
        let news = !driver.role.as_ref().is_some_and(|old| same_settings(old, &role));
        driver.role = Some(role);
        if news {
            let (run, after) = (driver.run, 100 + self.chance.below(10 * MS));
            self.drive(node, name, run, Step::Tell, after);
        }
    }

    /// The supervisor says that the instance is to end.
    pub(super) fn stop(&mut self, node: usize, live: &mut Live, name: &InstanceName, drain: bool) {
        let Some(driver) = live.drivers.get_mut(name) else { return };
        if driver.stop.replace(drain).is_none() {
            let run = driver.run;
            self.drive(node, name, run, Step::End, MS);
            self.drive(node, name, run, Step::Signal, if drain { DRAINS_WITHIN } else { ENDS_WITHIN });
        }
    }

    fn tells(&mut self, node: usize, live: &mut Live, name: &InstanceName) {
        let Some(driver) = live.drivers.get_mut(name) else { return };
        let Some(process) = self.agents[node].processes.get(name) else { return };
        let Some(role) = driver.role.clone() else { return };
        let known = driver.told.as_ref().is_some_and(|told| same_settings(told, &role));
        if !driver.talks || driver.pid != Some(process.pid) || driver.stop.is_some() || known {
            return;
        }
        let (body, uuid) = (process.body, process.uuid);
        driver.told = Some(role.clone());
        match (body, role) {
            (Body::Replica(slot), _) => self.start_replica(slot),
            (Body::Engine(_), Role::Replica) => {}
            (Body::Engine(None), Role::Engine(role)) => {
                let EngineRole { version, status, predecessor_gone, wanted, endpoints } = *role;
                let number = self.engines.len();
                if let Some(process) = self.agents[node].processes.get_mut(name) {
                    process.body = Body::Engine(Some(number));
                }
                if uuid.0.as_u128() == self.wanted.uuid {
                    self.wanted.engine = Some(number);
                }
                self.start_engine(Start {
                    node,
                    instance: uuid,
                    version,
                    status,
                    wanted,
                    predecessor_gone,
                    endpoints: Some(endpoints),
                });
            }
            (Body::Engine(Some(engine)), Role::Engine(role)) => {
                if self.engines[engine].alive {
                    let now = now_of(self.queue.now());
                    self.engines[engine].core.want(role.wanted, now);
                    self.act_engine(engine);
                    for endpoint in &role.endpoints {
                        self.told_where(engine, endpoint);
                    }
                }
            }
        }
        let run = live.drivers.get(name).map_or(0, |driver| driver.run);
        self.drive(node, name, run, Step::Watch { again: false }, MS);
    }

    /// The conversation about an end: a drain, where that is wanted, and then the word that it stops.
    fn ask_for_end(&mut self, node: usize, live: &mut Live, name: &InstanceName) {
        let Some(driver) = live.drivers.get_mut(name) else { return };
        let Some(process) = self.agents[node].processes.get(name) else { return };
        let Some(drain) = driver.stop.filter(|_| driver.talks && driver.pid == Some(process.pid)) else {
            return;
        };
        let pid = process.pid;
        match process.body {
            Body::Engine(Some(engine)) if drain && self.engines[engine].ended.is_none() => {
                self.engines[engine].draining = true;
                let now = now_of(self.queue.now());
                self.engines[engine].core.drain(now);
                self.act_engine(engine);
                // Its agent may not live to see it drained.
                if self.faults && self.chance.one_in(8) {
                    self.agents[node].dies_in.get_or_insert(0);
                }
            }
            Body::Engine(_) | Body::Replica(_) => self.exits(node, name, pid),
        }
    }

    fn exits(&mut self, node: usize, name: &InstanceName, pid: i32) {
        let after = 100 + self.chance.below(10 * MS);
        let fate = Event::Process { node, name: name.clone(), pid, fate: Fate::Exits };
        self.queue.after(after, fate);
    }

    pub(super) fn process_fate(&mut self, node: usize, name: &InstanceName, pid: i32, fate: Fate) {
        let Some(process) = self.agents[node].processes.get(name).filter(|process| process.pid == pid) else {
            return;
        };
        match fate {
            Fate::Unconfirmed if process.confirmed => {}
            Fate::Unconfirmed => self.process_ends(node, name, "nobody confirmed it", false),
            Fate::Exits => {
                let uuid = process.uuid;
                self.check_end(node, name, uuid);
                self.process_ends(node, name, "it was asked to end", false);
            }
        }
    }

    /// A process is gone; its agent, where one runs, hears of it.
    pub(super) fn process_ends(&mut self, node: usize, name: &InstanceName, why: &'static str, reboot: bool) {
        let Some(process) = self.agents[node].processes.remove(name) else { return };
        let pid = process.pid;
        trace!(self, "n{node} {name} {pid} ends: {why}");
        match process.body {
            Body::Replica(slot) => self.kill_replica(slot, reboot),
            Body::Engine(Some(engine)) => self.kill_engine(engine, reboot),
            Body::Engine(None) => {}
        }
        let agent = self.agents[node].run;
        let after = 100 + self.chance.below(20 * MS);
        // Whichever driver has it by then.
        self.queue.after(after, Event::Reaped { node, agent, name: name.clone(), pid, why });
    }

    pub(super) fn reaped(&mut self, node: usize, name: &InstanceName, pid: i32, why: &'static str) {
        let driver = self.agents[node].live.as_ref().and_then(|live| live.drivers.get(name));
        if let Some(run) = driver.map(|driver| driver.run) {
            self.driver_steps(node, name, run, Step::Gone { pid, why });
        }
    }

    /// An engine's core has ended.
    pub(super) fn engine_of_agent_ended(&mut self, engine: usize, ending: &Ending) {
        let node = self.engines[engine].node;
        let Some((name, process)) = self.agents[node]
            .processes
            .iter()
            .find(|(_, process)| process.body == Body::Engine(Some(engine)))
        else {
            return;
        };
        let (name, pid, uuid) = (name.clone(), process.pid, process.uuid);
        let driver = self.agents[node].live.as_ref().and_then(|live| live.drivers.get(&name));
        let told = driver.is_some_and(|driver| driver.stop.is_some() && driver.pid == Some(pid));
        match ending {
            Ending::CacheLost | Ending::RecordMissing => {
                self.process_ends(node, &name, "it ended by itself", false);
            }
            // It stays until it is told to end.
            Ending::Fenced { .. } | Ending::Clean | Ending::Unclean(_) if told => {
                self.exits(node, &name, pid)
            }
            Ending::Fenced { .. } => self.people_see_it_fenced(uuid),
            Ending::Clean | Ending::Unclean(_) => {}
        }
        self.nudge(node, &name);
    }

    /// An instance has something to say.
    pub(super) fn nudge(&mut self, node: usize, name: &InstanceName) {
        let driver = self.agents[node].live.as_ref().and_then(|live| live.drivers.get(name));
        if let Some(run) = driver.filter(|driver| driver.talks).map(|driver| driver.run) {
            let after = self.soon();
            self.drive(node, name, run, Step::Watch { again: false }, after);
        }
    }

    pub(super) fn nudge_replica(&mut self, slot: usize) {
        let node = self.replicas[slot].node;
        let name = self.name_of(slot);
        self.nudge(node, &name);
    }

    pub(super) fn name_of(&self, slot: usize) -> InstanceName {
        InstanceName::replica(&"sim".parse().expect("a name"), id_of(slot))
    }

    /// A replica's process is killed.
    pub(super) fn end_replica(&mut self, slot: usize, reboot: bool) {
        if !self.plan.has_agents() {
            return self.kill_replica(slot, reboot);
        }
        let (node, name) = (self.replicas[slot].node, self.name_of(slot));
        self.process_ends(node, &name, "killed by signal 9", reboot);
    }

    /// An engine's process is killed.
    pub(super) fn end_engine(&mut self, engine: usize, reboot: bool) {
        if !self.plan.has_agents() {
            return self.kill_engine(engine, reboot);
        }
        let node = self.engines[engine].node;
        let of = |process: &Process| process.body == Body::Engine(Some(engine));
        let name =
            self.agents[node].processes.iter().find(|(_, process)| of(process)).map(|(n, _)| n.clone());
        if let Some(name) = name {
            self.process_ends(node, &name, "killed by signal 9", reboot);
        }
    }

    /// What an instance says of itself.
    fn status_of(&self, node: usize, name: &InstanceName) -> Option<pb::InstanceStatus> {
        let phase = |phase: &str| pb::InstanceStatus { phase: phase.to_owned(), ..Default::default() };
        Some(match self.agents[node].processes.get(name)?.body {
            Body::Engine(None) => phase("pending"),
            Body::Replica(slot) if !self.replicas[slot].running => phase("pending"),
            Body::Replica(slot) => {
                let host = &self.replicas[slot];
                let engines = host.open.as_ref().map_or(0, |open| u32::from(open.link.is_some()));
                let replica = pb::ReplicaStatus {
                    address: format!("r{}:{}", slot + 1, host.run),
                    mode: if host.open.is_some() { "open" } else { "absent" }.to_owned(),
                    engines: Some(engines),
                    ..Default::default()
                };
                pb::InstanceStatus { replica: Some(replica), ..phase("running") }
            }
            Body::Engine(Some(engine)) => {
                let host = &self.engines[engine];
                let said = match (host.draining, host.served) {
                    (true, _) => "stopping",
                    (false, true) => "running",
                    (false, false) => "starting",
                };
                let engine = Some(self.engine_status(engine));
                pb::InstanceStatus { engine, ..phase(said) }
            }
        })
    }

    fn engine_status(&self, engine: usize) -> pb::EngineStatus {
        let host = &self.engines[engine];
        let report = host.core.report(now_of(self.queue.now()));
        let mode = |mode| match mode {
            ReplicaMode::Member => "member",
            ReplicaMode::Suspect => "suspect",
            ReplicaMode::CatchingUp => "catching_up",
            ReplicaMode::Rebuilding => "rebuilding",
            ReplicaMode::Faulted => "faulted",
            ReplicaMode::Absent => "absent",
        };
        let state = match report.state {
            EngineState::Attaching => "attaching",
            EngineState::Healthy => "healthy",
            EngineState::Degraded => "degraded",
            EngineState::Suspended => "suspended",
            EngineState::Faulted => "faulted",
            EngineState::Detaching => "detaching",
        };
        pb::EngineStatus {
            state: state.to_owned(),
            generation: report.generation.0,
            replicas: (report.replicas.iter())
                .map(|r| pb::ReplicaState { id: r.id.0, mode: mode(r.mode).to_owned(), ..Default::default() })
                .collect(),
            clients: u32::from(self.has_clients(engine)),
            reads: report.reads,
            writes: report.writes,
            fenced: matches!(host.ended, Some(Ending::Fenced { .. })),
            configured: report.configured.iter().map(|id| id.0).collect(),
            ..Default::default()
        }
    }
}

/// The volume of all worlds.
pub(super) const VOLUME: VolumeId = VolumeId(uuid::Uuid::from_u128(1));
