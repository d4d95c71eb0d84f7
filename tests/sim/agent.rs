//! The agents: the real core, with a shell around it that does what `agent::node::supervisor` does and decides nothing.
//! One may end at any of its steps; what it started lives on, and the next one takes it over.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast::core::creation::{self, Creation, Lock, Remembered};
use holdfast::core::elsewhere::{Elsewhere, OtherNode, Place};
use holdfast::core::foreign::Foreign;
use holdfast::core::instance::{Event as Happened, Instance, InstanceName, Kind, State};
use holdfast::core::orphan::{Saved, Subject, Tracker};
use holdfast::core::predecessor::EndedEngines;
use holdfast::core::reconcile::{self, Action, Plan};
use holdfast::core::records::{Lookup, Records};
use holdfast::core::retry::Retries;
use holdfast_proto::ids::{Incarnation, InstanceUuid, NodeName, ReplicaId, VolumeName};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::VolumeRecord;
use uuid::Uuid;

use super::engine::slot_of;
use super::plan::Broken;
use super::process::{Driver, EngineRole, Process, Role, Step, VOLUME};
use super::queue::{MS, SEC, Time};
use super::registry::wanted_of;
use super::world::{Event, World};

const RECONCILE_EVERY: Time = 5 * SEC;
/// A registry that says nothing for so long has failed.
const ANSWERS_WITHIN: Time = 2 * SEC;
/// An agent that the registry has not heard of for so long is silent.
const SILENT_AFTER: Time = 15 * SEC;

/// One node's: what is on its disk, what runs beside it, and its own process.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: NodeName,
    /// Spawn records: durable before what they name.
    pub(super) creations: BTreeMap<InstanceName, Creation>,
    /// What it knows of orphans, durable.
    pub(super) orphans: Option<Saved>,
    /// Replica directories that were moved to the trash.
    pub(super) trash: BTreeSet<usize>,
    pub(super) processes: BTreeMap<InstanceName, Process>,
    pub(super) pids: i32,
    /// Its own process; none: it is away.
    pub(super) live: Option<Box<Live>>,
    /// Grows with each of its processes.
    pub(super) run: u64,
    /// It ends after so many more steps.
    pub(super) dies_in: Option<u64>,
    /// What the registry tells the others of it.
    published: OtherNode,
    /// When the registry heard of it last; none: never.
    heard: Option<Time>,
}

impl Agent {
    pub(super) fn new(node: usize) -> Self {
        Self {
            name: node_name(node),
            creations: BTreeMap::new(),
            orphans: None,
            trash: BTreeSet::new(),
            processes: BTreeMap::new(),
            pids: 0,
            live: None,
            run: 0,
            dies_in: None,
            published: OtherNode::default(),
            heard: None,
        }
    }
}

pub(super) fn node_name(node: usize) -> NodeName {
    format!("n{node}").parse().expect("a name")
}

/// The registry was asked.
#[derive(Debug)]
struct Asked {
    at: Time,
    /// To look once more at these; none: to reconcile.
    due: Vec<Subject>,
}

/// The process of an agent: a supervisor's memory.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) node: NodeName,
    began: Time,
    pub(super) instances: BTreeMap<InstanceName, Instance>,
    pub(super) drivers: BTreeMap<InstanceName, Driver>,
    ended: EndedEngines,
    pub(super) tracker: Tracker,
    pub(super) records: Rc<Records>,
    /// No controller but Holdfast claims anything in these worlds.
    foreign: Foreign,
    absent: BTreeMap<InstanceName, String>,
    /// Every replica has its directory from the beginning.
    missing: BTreeSet<InstanceName>,
    incarnation: Incarnation,
    elsewhere: Elsewhere,
    retries: Retries,
    pub(super) plan: Plan,
    runs: u64,
    asked: Option<Asked>,
    /// What instances said while the registry was being read.
    reports: Vec<(InstanceName, u64, Happened)>,
    look_at: Option<Time>,
    /// Instances that a person wants ended.
    pub(super) to_stop: BTreeSet<InstanceName>,
    pub(super) forgetting: BTreeSet<InstanceName>,
}

impl Live {
    pub(super) fn moment(&self, now: Time) -> Duration {
        Duration::from_micros(now - self.began)
    }

    pub(super) fn world(&self, now: Time) -> reconcile::World<'_> {
        reconcile::World {
            node: &self.node,
            now: self.moment(now),
            records: &self.records,
            foreign: &self.foreign,
            instances: &self.instances,
            absent: &self.absent,
            missing: &self.missing,
            incarnation: self.incarnation,
            elsewhere: &self.elsewhere,
        }
    }

    /// Whether another's agent has spoken lately.
    pub(super) fn sees_alive(&self, node: &NodeName) -> bool {
        self.elsewhere.is_live(node) == Some(true)
    }

    pub(super) fn record(&self) -> Option<&VolumeRecord> {
        match self.records.lookup("sim") {
            Lookup::Found(record) => Some(record),
            Lookup::Absent | Lookup::Unknown(_) => None,
        }
    }
}

impl Live {
    /// Where a rule of the core is left out: does the plan that would be made without it.
    fn misplan(&self, broken: Broken, plan: &mut Plan) {
        let sim = || "sim".parse::<VolumeName>().expect("a name");
        match broken {
            Broken::StopsOnAbsence if self.record().is_none() => {
                let up = self.instances.iter().filter(|(_, instance)| instance.is_up());
                let stop = |(name, instance): (&InstanceName, &Instance)| {
                    (sim(), Action::Stop { name: name.clone(), uuid: instance.uuid(), drain: false })
                };
                plan.actions.extend(up.map(stop));
            }
            Broken::StartsAtOnce => {
                let name = InstanceName::engine(&sim());
                let wanted = |record: &&VolumeRecord| {
                    record.spec.attach.as_ref().is_some_and(|attach| attach.node == self.node)
                };
                let planned = plan.actions.iter().any(
                    |(_, action)| matches!(action, Action::Spawn { name, .. } if name.kind() == Kind::Engine),
                );
                if let Some(record) = self.record().filter(wanted)
                    && !planned
                    && !self.instances.contains_key(&name)
                {
                    let uuid = record.status.instance_uuids.get(&name.to_string()).copied();
                    plan.actions.push((sim(), Action::Spawn { name, volume_id: VOLUME, uuid }));
                }
            }
            Broken::DetachesAtOnce => {
                let detached = |record: &&VolumeRecord| record.spec.attach.is_none();
                if self.record().filter(detached).is_some() {
                    let stop = |(name, instance): (&InstanceName, &Instance)| {
                        let up = instance.is_up() && matches!(name.kind(), Kind::Replica(_));
                        let (name, uuid) = (name.clone(), instance.uuid());
                        up.then(|| (sim(), Action::Stop { name, uuid, drain: false }))
                    };
                    plan.actions.extend(self.instances.iter().filter_map(stop));
                }
            }
            Broken::LeavesTheDrained => plan.actions.retain(|(_, action)| match action {
                Action::Stop { name, .. } => {
                    self.instances.get(name).is_none_or(|instance| *instance.state() != State::Stopping)
                }
                _ => true,
            }),
            Broken::StopsOnAbsence
            | Broken::ForgetsCreations
            | Broken::AdoptsNothing
            | Broken::CleansAtOnce => {}
        }
    }
}

/// What an agent does by itself.
#[derive(Debug)]
pub(super) enum Turn {
    Tick,
    Look,
    Reads,
    Publishes,
    Hears(Rc<Records>),
}

impl World {
    fn turn(&mut self, node: usize, turn: Turn, after: Time) {
        let agent = self.agents[node].run;
        self.queue.after(after, Event::Agent { node, agent, turn });
    }

    /// An agent begins, and takes over what it finds.
    pub(super) fn agent_begins(&mut self, node: usize) {
        if self.agents[node].live.is_some() || !self.nodes[node].up {
            return;
        }
        self.nodes[node].agent_up = true;
        self.agents_begun += 1;
        let (boot, now) = (self.boot(node), self.queue.now());
        let agent = &mut self.agents[node];
        agent.run += 1;
        let mut live = Box::new(Live {
            node: agent.name.clone(),
            began: now,
            instances: BTreeMap::new(),
            drivers: BTreeMap::new(),
            ended: EndedEngines::default(),
            tracker: Tracker::restore(agent.orphans.clone()),
            records: Rc::new(Records::Unavailable("not read yet".to_owned())),
            foreign: Foreign::none(),
            absent: BTreeMap::new(),
            missing: BTreeSet::new(),
            incarnation: Incarnation(Uuid::from_u128(self.registry.incarnation)),
            elsewhere: Elsewhere::unheard(),
            retries: Retries::new(Duration::ZERO),
            plan: Plan::default(),
            runs: 0,
            asked: None,
            reports: Vec::new(),
            look_at: None,
            to_stop: BTreeSet::new(),
            forgetting: BTreeSet::new(),
        });
        trace!(self, "n{node} agent begins");
        let found: Vec<_> = self.agents[node].creations.iter().map(|(name, c)| (name.clone(), *c)).collect();
        for (name, creation) in found {
            if self.plan.broken == Some(Broken::AdoptsNothing) {
                continue;
            }
            let held = self.agents[node].processes.contains_key(&name);
            let lock = if held { Lock::Held } else { Lock::Free };
            let Some(instance) = creation::left_behind(&Remembered::Creation(creation), lock, boot) else {
                continue;
            };
            let down = instance.is_down();
            live.instances.insert(name.clone(), instance);
            if !down {
                self.begin_to_drive(node, &mut live, &name, Step::Find);
            }
        }
        self.look(node, &mut live, 0);
        self.agents[node].live = Some(live);
        self.turn(node, Turn::Tick, RECONCILE_EVERY);
    }

    /// Its process is gone; nothing else is.
    pub(super) fn agent_ends(&mut self, node: usize, back_after: Option<Time>) {
        trace!(self, "n{node} agent ends");
        let agent = &mut self.agents[node];
        agent.live = None;
        agent.dies_in = None;
        agent.run += 1;
        self.nodes[node].agent_up = false;
        self.deeds.agent_ended(node);
        if let Some(after) = back_after {
            self.queue.after(after, Event::AgentBegins { node });
        }
    }

    /// One step of it is done. None: it was its last one.
    pub(super) fn survives(&mut self, node: usize) -> Option<()> {
        let left = self.agents[node].dies_in.as_mut();
        match left {
            Some(0) => {
                let after = self.chance.between(10 * MS, 2 * SEC);
                self.agent_ends(node, Some(after));
                None
            }
            Some(left) => {
                *left -= 1;
                Some(())
            }
            None => Some(()),
        }
    }

    pub(super) fn agents_turn(&mut self, node: usize, turn: Turn) {
        let Some(mut live) = self.agents[node].live.take() else { return };
        let survived = match turn {
            Turn::Tick => {
                self.turn(node, Turn::Tick, RECONCILE_EVERY);
                self.publishes_soon(node);
                self.look(node, &mut live, 0);
                Some(())
            }
            Turn::Look => {
                if live.asked.is_none() && live.look_at == Some(self.queue.now()) {
                    live.look_at = None;
                    self.asks(node, &mut live, Vec::new());
                }
                Some(())
            }
            Turn::Reads => {
                self.reads(node);
                Some(())
            }
            Turn::Publishes => {
                self.publishes(node, &live);
                Some(())
            }
            Turn::Hears(records) => self.hears(node, &mut live, records),
        };
        if survived.is_some() {
            self.agents[node].live = Some(live);
        }
    }

    /// Everything is to be compared, that much later at the latest.
    pub(super) fn look(&mut self, node: usize, live: &mut Live, after: Time) {
        let at = self.queue.now() + after;
        if live.look_at.is_none_or(|planned| at < planned) {
            live.look_at = Some(at);
            if live.asked.is_none() {
                self.turn(node, Turn::Look, after);
            }
        }
    }

    /// Something that an agent watches has changed.
    pub(super) fn wake_agent(&mut self, node: usize) {
        let after = self.chance.below(300 * MS);
        if let Some(mut live) = self.agents[node].live.take() {
            self.look(node, &mut live, after);
            self.agents[node].live = Some(live);
        }
    }

    pub(super) fn asks(&mut self, node: usize, live: &mut Live, due: Vec<Subject>) {
        live.asked = Some(Asked { at: self.queue.now(), due });
        let after = 50 + self.chance.below(2 * MS);
        self.turn(node, Turn::Reads, after);
    }

    /// The registry is read, or cannot be.
    fn reads(&mut self, node: usize) {
        let lost = self.chance.one_in(self.registry.lose_one_in.saturating_mul(4));
        if lost || !self.registry_answers_agent(node) {
            let failed = Rc::new(Records::Unavailable("no answer".to_owned()));
            let after = if lost || self.chance.coin() { ANSWERS_WITHIN } else { MS };
            return self.turn(node, Turn::Hears(failed), after);
        }
        let records = self.registry.records();
        let longest = if self.faults && self.chance.one_in(30) { 4 * SEC } else { 5 * MS };
        let after = 50 + self.chance.below(longest);
        self.turn(node, Turn::Hears(records), after);
    }

    fn registry_answers_agent(&self, node: usize) -> bool {
        self.registry.up && !self.nodes[node].registry_cut
    }

    fn hears(&mut self, node: usize, live: &mut Live, records: Rc<Records>) -> Option<()> {
        let Asked { at, due } = live.asked.take()?;
        if matches!(*records, Records::Known(_)) {
            live.elsewhere = self.elsewhere(node);
        }
        live.records = Rc::clone(&records);
        self.deeds.answered(&self.agents[node], node, at, records);
        if due.is_empty() {
            self.reconcile(node, live)?;
            self.look_for_orphans(node, live, at)?;
        } else {
            self.clean(node, live, at, &due)?;
        }
        if live.asked.is_none() {
            self.finish(node, live)?;
        }
        Some(())
    }

    fn reconcile(&mut self, node: usize, live: &mut Live) -> Option<()> {
        live.absent = self.absent_on(node, live);
        let mut plan = reconcile::plan(live.world(self.queue.now()));
        self.plan.broken.into_iter().for_each(|broken| live.misplan(broken, &mut plan));
        self.carry_out(node, live, &mut plan)?;
        live.plan = plan;
        Some(())
    }

    /// The replicas of this node whose directory cannot be used.
    fn absent_on(&self, node: usize, live: &Live) -> BTreeMap<InstanceName, String> {
        let Some(record) = live.record() else { return BTreeMap::new() };
        let here = record.placed().filter(|spec| spec.node == live.node);
        let unusable = |id: ReplicaId| match self.agents[node].trash.contains(&slot_of(id)) {
            true => Some("it is not there".to_owned()),
            false => self.replicas[slot_of(id)].meta.load().err().map(|error| error.to_string()),
        };
        here.filter_map(|spec| Some((InstanceName::replica(&record.name, spec.id), unusable(spec.id)?)))
            .collect()
    }

    /// Does what is planned, as far as it goes, unless what failed before waits.
    fn carry_out(&mut self, node: usize, live: &mut Live, plan: &mut Plan) -> Option<()> {
        let records = Rc::clone(&live.records);
        let now = live.moment(self.queue.now());
        let wishes: BTreeMap<_, _> = records.readable().map(|record| (&record.name, &record.spec)).collect();
        let actions = std::mem::take(&mut plan.actions);
        let volume = actions.first().map(|(volume, _)| volume.clone());
        let held = live.retries.hold_back(&wishes, volume.as_ref(), now);
        if let Some(volume) = volume.filter(|volume| !held.contains(volume)) {
            let mut done = Ok(());
            for (_, action) in actions {
                self.survives(node)?;
                done = self.act(node, live, action);
                if done.is_err() {
                    break;
                }
            }
            match done {
                Ok(()) => live.retries.succeeded(&volume),
                Err(reason) => {
                    if let Some(wish) = wishes.get(&volume) {
                        live.retries.failed(&volume, wish, &reason, now);
                    }
                    plan.blocked.insert(volume.to_string(), reason);
                }
            }
        }
        plan.next_at = plan.next_at.into_iter().chain(live.retries.next_at(now)).min();
        Some(())
    }

    fn act(&mut self, node: usize, live: &mut Live, action: Action) -> Result<(), String> {
        match action {
            Action::Spawn { name, volume_id, uuid } => {
                self.check_spawn(node, live, &name);
                let now = live.moment(self.queue.now());
                let remembered = self.agents[node].creations.get(&name).copied();
                let remembered = remembered.filter(|creation| creation.volume_id == volume_id);
                let known = remembered.map(|creation| creation.uuid);
                let minted = InstanceUuid(Uuid::from_u128(u128::from(self.chance.word()) | 1 << 100));
                let uuid = match self.plan.broken {
                    Some(Broken::ForgetsCreations) => minted,
                    Some(_) | None => creation::to_start(uuid, known, || minted),
                };
                if let Some(before) = known.filter(|known| *known != uuid && name.kind() == Kind::Engine) {
                    live.ended.note(volume_id, before);
                }
                let mut instance = creation::known_as(live.instances.remove(&name), uuid, volume_id, now);
                instance.handle(Happened::Spawning, now);
                live.instances.insert(name.clone(), instance);
                self.begin_to_drive(node, live, &name, Step::Spawn);
            }
            Action::ConfigureReplica { name } => self.configure(node, live, &name, Role::Replica),
            Action::ConfigureEngine { name, mut replicas } => {
                let Some(record) = live.record() else { return Ok(()) };
                let gone = live.instances.get(&name).is_some_and(|instance| {
                    live.ended.gone_before(record.id, &record.status, instance.uuid())
                });
                let (version, status) = (record.version, record.status.clone());
                let wanted = wanted_of(&record.spec);
                // An engine keeps what it was told before, where nothing else is known.
                if let Some(Role::Engine(before)) = live.drivers.get(&name).and_then(|d| d.role.as_ref()) {
                    let known = |e: &&mut pb::ReplicaEndpoint| !e.local && e.address.is_empty();
                    for endpoint in replicas.iter_mut().filter(known) {
                        if let Some(before) = before.endpoints.iter().find(|e| e.id == endpoint.id) {
                            endpoint.clone_from(before);
                        }
                    }
                }
                let role =
                    EngineRole { version, status, predecessor_gone: gone, wanted, endpoints: replicas };
                self.configure(node, live, &name, Role::Engine(Box::new(role)));
            }
            Action::Stop { name, uuid, drain } => {
                self.check_stop(node, &name, uuid);
                self.ask_to_end(node, live, &name, uuid, drain);
            }
            Action::Retire { name } => {
                self.check_retire_by_record(node, &name);
                self.retire(node, live, &name);
            }
            Action::Trash { volume_id, generation } => {
                assert_eq!(volume_id, VOLUME, "there is no other");
                self.check_trash(node, generation);
                let here = (0..self.replicas.len()).filter(|slot| self.replicas[*slot].node == node);
                self.agents[node].trash.extend(here);
            }
            Action::MakeDirectory { name, .. } => unreachable!("{name} has its directory"),
            Action::SayDetached { name: _, id: _, engine } => {
                if !self.registry_answers(node) {
                    return Err("the registry does not answer".to_owned());
                }
                if reconcile::says_detached(&self.registry.record(), &live.node, engine) {
                    self.check_says_detached(node, engine);
                    self.edit_record(|record| record.spec.detaching = None);
                }
            }
            Action::Release { name: _, id: _, version } => {
                if !self.registry_answers(node) {
                    return Err("the registry does not answer".to_owned());
                }
                if self.registry.version == version {
                    let here = live.node.clone();
                    self.edit_record(|record| *record = reconcile::without_replicas_of(record, &here));
                }
            }
            Action::DeleteRecord { name: _, id: _, version, purge: _ } => {
                self.check_delete(node);
                if !self.registry_answers(node) {
                    return Err("the registry does not answer".to_owned());
                }
                live.ended.forget(VOLUME);
                if self.registry.version == version {
                    self.registry.deleted = true;
                }
            }
        }
        Ok(())
    }

    /// What the others have published, and whether they live.
    fn elsewhere(&self, node: usize) -> Elsewhere {
        let now = self.queue.now();
        let others = self.agents.iter().enumerate().filter(|(other, _)| *other != node);
        let known = others.filter_map(|(_, agent)| {
            let live = now < agent.heard? + SILENT_AFTER;
            Some((agent.name.clone(), OtherNode { live, ..agent.published.clone() }))
        });
        Elsewhere::new(known.collect(), BTreeSet::new())
    }

    /// What an agent knows reaches the registry a moment later.
    fn publishes_soon(&mut self, node: usize) {
        let after = MS + self.chance.below(SEC);
        self.turn(node, Turn::Publishes, after);
    }

    fn publishes(&mut self, node: usize, live: &Live) {
        if !self.registry_answers_agent(node) {
            return self.turn(node, Turn::Publishes, SEC);
        }
        let place = |(name, instance): (&InstanceName, &Instance)| {
            let place = Place {
                uuid: instance.uuid(),
                volume_id: instance.volume_id(),
                ended: instance.is_down(),
                running: *instance.state() == State::Running,
                silent: matches!(instance.state(), State::Unknown(_)),
                address: instance.address().unwrap_or_default().to_owned(),
                volume_state: String::new(),
                clients: 0,
                members: Vec::new(),
                reason: String::new(),
            };
            (name.to_string(), place)
        };
        let instances = live.instances.iter().map(place).collect();
        let published = OtherNode { live: true, complete: true, instances, directories: BTreeSet::new() };
        let now = self.queue.now();
        let agent = &mut self.agents[node];
        agent.heard = Some(now);
        if agent.published != published {
            agent.published = published;
            self.tell_other_agents(node);
        }
    }

    fn begin_to_drive(&mut self, node: usize, live: &mut Live, name: &InstanceName, step: Step) {
        live.runs += 1;
        live.drivers.insert(name.clone(), Driver::new(live.runs));
        let after = 100 + self.chance.below(20 * MS);
        self.drive(node, name, live.runs, step, after);
    }

    pub(super) fn ask_to_end(
        &mut self,
        node: usize,
        live: &mut Live,
        name: &InstanceName,
        uuid: InstanceUuid,
        drain: bool,
    ) {
        let now = live.moment(self.queue.now());
        let Some(instance) = live.instances.get_mut(name).filter(|_| live.drivers.contains_key(name)) else {
            return;
        };
        if instance.uuid() == uuid {
            trace!(self, "n{node} stops {name} {uuid}");
            instance.handle(Happened::StopAsked, now);
            self.stop(node, live, name, drain);
        }
    }

    fn retire(&mut self, node: usize, live: &mut Live, name: &InstanceName) {
        if live.instances.get(name).is_some_and(|instance| !instance.is_down()) {
            return;
        }
        self.check_retire(node, name);
        self.agents[node].creations.remove(name);
        if let Some(instance) = live.instances.remove(name).filter(|_| name.kind() == Kind::Engine) {
            live.ended.note(instance.volume_id(), instance.uuid());
        }
    }

    /// An event of an instance. While the registry is being read it waits.
    pub(super) fn report(&mut self, node: usize, live: &mut Live, name: &InstanceName, event: Happened) {
        let Some(run) = live.drivers.get(name).map(|driver| driver.run) else { return };
        live.reports.push((name.clone(), run, event));
        if live.asked.is_none() {
            self.take_in(node, live);
        }
    }

    fn take_in(&mut self, node: usize, live: &mut Live) {
        let now = live.moment(self.queue.now());
        let mut due = false;
        for (name, run, event) in std::mem::take(&mut live.reports) {
            let current = live.drivers.get(&name).is_some_and(|driver| driver.run == run);
            let Some(instance) = live.instances.get_mut(&name).filter(|_| current) else { continue };
            let ended = matches!(event, Happened::Ended(_));
            let (before, state) = (instance.relevant(), instance.state_name());
            instance.handle(event, now);
            if state != instance.state_name() {
                trace!(self, "n{node} {name}: {state} -> {} {:?}", instance.state_name(), instance.reason());
            }
            let changed = before != instance.relevant();
            if ended {
                live.drivers.remove(&name);
            }
            due |= changed;
            if changed {
                self.publishes_soon(node);
            }
        }
        if due {
            self.look(node, live, 0);
        }
    }

    /// They see what this one published.
    fn tell_other_agents(&mut self, node: usize) {
        for other in (0..self.agents.len()).filter(|other| *other != node) {
            if self.registry_answers_agent(other) {
                self.wake_agent(other);
            }
        }
    }

    /// For people.
    pub(super) fn agent_says(&self, node: usize) -> String {
        let agent = &self.agents[node];
        let Some(live) = &agent.live else { return format!("n{node}: no agent; {:?}", agent.processes) };
        let instance = |(name, i): (&InstanceName, &Instance)| format!("{name} {} {:?}", i.uuid(), i.state());
        let instances: Vec<_> = live.instances.iter().map(instance).collect();
        format!(
            "n{node}: {instances:?} blocked {:?} next {:?} absent {:?}; {:?}",
            live.plan.blocked, live.plan.next_at, live.absent, agent.processes
        )
    }

    /// The end of a turn.
    fn finish(&mut self, node: usize, live: &mut Live) -> Option<()> {
        self.stop_as_told(node, live);
        let down = |name: &InstanceName| live.instances.get(name).is_none_or(Instance::is_down);
        let ended: Vec<_> = live.forgetting.iter().filter(|name| down(name)).cloned().collect();
        for name in ended {
            live.forgetting.remove(&name);
            self.survives(node)?;
            self.retire(node, live, &name);
        }
        self.take_in(node, live);
        let now = self.queue.now();
        if let Some(at) = live.look_at {
            // It was planned while the registry was being read.
            live.look_at = Some(at.max(now));
            self.turn(node, Turn::Look, at.saturating_sub(now));
        }
        let orphan = live.tracker.next_at(&self.orphan_settings());
        if let Some(at) = live.plan.next_at.into_iter().chain(orphan).min() {
            let after = at.saturating_sub(live.moment(now));
            self.look(node, live, u64::try_from(after.as_micros()).unwrap_or(Time::MAX).max(1));
        }
        Some(())
    }
}
