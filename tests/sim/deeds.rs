//! What agents may do, said once more and without their core: by what the registry really answered each of them, and by
//! what really runs.
//!
//! Whatever is claimed by the last answer that was complete is not ended, forgotten or moved to the trash, and without such
//! an answer nothing is. A process ends by a fault, by itself, or because an agent that may end it said so; never
//! because its agent ended.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast::core::instance::{InstanceName, Kind};
use holdfast::core::records::{Lookup, Records};
use holdfast_proto::ids::{Generation, InstanceUuid, NodeName};
use holdfast_proto::record::{Intent, VolumeRecord};

use super::agent::{Agent, Live};
use super::engine::now_of;
use super::process::Body;
use super::queue::{MS, SEC, Time};
use super::world::World;

type Creation = (InstanceName, InstanceUuid);

/// For how long an agent was told that nobody owns something.
#[derive(Debug, Default, Clone, Copy)]
struct Unclaimed {
    total: Time,
    last: Option<Time>,
}

/// What one agent was answered.
#[derive(Debug, Default)]
struct Answers {
    /// The last answer; none: there is none, or it was an error.
    last: Option<Rc<Records>>,
    unclaimed: BTreeMap<Creation, Unclaimed>,
    /// What it may end.
    ending: BTreeSet<Creation>,
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Record,
    Nobody,
    Unknown,
}

/// By node.
#[derive(Debug, Default)]
pub(super) struct Deeds {
    nodes: Vec<Answers>,
    /// Orphans that were ended.
    pub(super) cleaned: u64,
}

fn owner(records: &Records, node: &NodeName, name: &InstanceName, uuid: InstanceUuid) -> Owner {
    match records.lookup(name.volume().as_str()) {
        Lookup::Unknown(_) => Owner::Unknown,
        Lookup::Absent => Owner::Nobody,
        Lookup::Found(record) => match owns(record, node, name, uuid) {
            true => Owner::Record,
            false => Owner::Nobody,
        },
    }
}

fn owns(record: &VolumeRecord, node: &NodeName, name: &InstanceName, uuid: InstanceUuid) -> bool {
    let same = record.status.instance_uuids.get(&name.to_string()) == Some(&uuid);
    let here = match name.kind() {
        Kind::Engine => record.spec.attach.as_ref().is_none_or(|attach| attach.node == *node),
        Kind::Replica(id) => record.placed().any(|spec| spec.id == id && spec.node == *node),
    };
    same && here
}

impl Deeds {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes: (0..nodes).map(|_| Answers::default()).collect(), cleaned: 0 }
    }

    pub(super) fn answered(&mut self, agent: &Agent, node: usize, asked_at: Time, records: Rc<Records>) {
        let answers = &mut self.nodes[node];
        let known = matches!(*records, Records::Known(_));
        for (name, process) in &agent.processes {
            let owner = owner(&records, &agent.name, name, process.uuid);
            let key = (name.clone(), process.uuid);
            match owner {
                Owner::Record => drop(answers.unclaimed.remove(&key)),
                Owner::Unknown => {
                    if let Some(unclaimed) = answers.unclaimed.get_mut(&key) {
                        unclaimed.last = None;
                    }
                }
                Owner::Nobody => {
                    let unclaimed = answers.unclaimed.entry(key).or_default();
                    unclaimed.total += unclaimed.last.map_or(0, |last| asked_at.saturating_sub(last));
                    unclaimed.last = Some(asked_at);
                }
            }
        }
        answers.last = known.then_some(records);
    }

    /// Nothing is known of the time until the next one has asked.
    pub(super) fn agent_ended(&mut self, node: usize) {
        let answers = &mut self.nodes[node];
        answers.last = None;
        for unclaimed in answers.unclaimed.values_mut() {
            unclaimed.last = None;
        }
    }

    pub(super) fn is_claimed(
        &self,
        node: usize,
        here: &NodeName,
        name: &InstanceName,
        uuid: InstanceUuid,
    ) -> bool {
        self.nodes[node].last.as_ref().is_none_or(|records| owner(records, here, name, uuid) != Owner::Nobody)
    }

    /// The record as it was answered last.
    fn record(&self, node: usize) -> Option<&VolumeRecord> {
        match self.nodes[node].last.as_ref()?.lookup("sim") {
            Lookup::Found(record) => Some(record),
            Lookup::Absent | Lookup::Unknown(_) => None,
        }
    }
}

impl World {
    fn may_now_end(&mut self, node: usize, name: &InstanceName, uuid: InstanceUuid) {
        self.deeds.nodes[node].ending.insert((name.clone(), uuid));
    }

    /// An agent starts an instance.
    pub(super) fn check_spawn(&mut self, node: usize, live: &Live, name: &InstanceName) {
        let agent = &self.agents[node];
        let wanted = self.deeds.record(node).is_some_and(|record| {
            let attach = record.spec.attach.as_ref().filter(|_| record.spec.intent == Intent::Keep);
            match name.kind() {
                Kind::Engine => attach.is_some_and(|attach| attach.node == agent.name),
                Kind::Replica(id) => {
                    attach.is_some() && record.placed().any(|spec| spec.id == id && spec.node == agent.name)
                }
            }
        });
        if !wanted {
            return self.fail(format!("n{node} starts {name}, which no record wants there"));
        }
        if agent.processes.contains_key(name) {
            return self.fail(format!("n{node} starts {name} beside a process of it"));
        }
        if name.kind() == Kind::Engine
            && let Some(why) = self.started_too_early(node, live)
        {
            self.fail(format!("n{node} starts {name} too early: {why}"));
        }
    }

    /// An engine finds the replicas beside it, unless those take seconds or cannot start.
    fn started_too_early(&self, node: usize, live: &Live) -> Option<String> {
        let agent = &self.agents[node];
        let record = self.deeds.record(node)?;
        let mut here = record.placed().filter(|spec| spec.node == agent.name);
        let early = here.find(|spec| {
            let name = InstanceName::replica(&record.name, spec.id);
            let slot = super::engine::slot_of(spec.id);
            let usable = !agent.trash.contains(&slot) && self.replicas[slot].meta.load().is_ok();
            let known = live.instances.get(&name);
            match agent.processes.get(&name) {
                // It lives, was started just now, and has not said where it is.
                Some(process) => {
                    let new = self.queue.now() < process.began + 2500 * MS;
                    let says = known.is_some_and(|known| known.address().is_some() || !known.is_up());
                    new && !says && process.body == Body::Replica(slot)
                }
                None => usable && known.is_none(),
            }
        });
        early.map(|spec| format!("{} has not had its time", spec.id))
    }

    /// An agent ends an instance because a record says so.
    pub(super) fn check_stop(&mut self, node: usize, name: &InstanceName, uuid: InstanceUuid) {
        let Some(record) = self.deeds.record(node) else {
            return self.fail(format!("n{node} stops {name} {uuid} without a record that says so"));
        };
        let here = &self.agents[node].name;
        let detached = record.spec.attach.is_none() || record.spec.intent != Intent::Keep;
        let same = record.status.instance_uuids.get(&name.to_string()) == Some(&uuid);
        let elsewhere = record.spec.attach.as_ref().is_some_and(|attach| attach.node != *here);
        let drained = record.status.clean || record.spec.detaching.as_ref().is_none_or(|node| node == here);
        let engine_runs = self.agents[node].processes.keys().any(|other| other.kind() == Kind::Engine);
        let said = match name.kind() {
            Kind::Engine => {
                let before = self.generation_there(node, name).is_none_or(|generation| {
                    generation < record.status.generation || record.status.engine_instance == uuid
                });
                (same && detached) || (elsewhere && (same || before))
            }
            Kind::Replica(id) if record.was_removed(id) => true,
            Kind::Replica(_) => same && detached && !engine_runs && drained,
        };
        // An earlier agent was right to tell it, and did not live to see it end.
        let told = self.deeds.nodes[node].ending.contains(&(name.clone(), uuid));
        if !said && !told {
            return self
                .fail(format!("n{node} stops {name} {uuid}, which its record does not say: {record:?}"));
        }
        self.may_now_end(node, name, uuid);
    }

    /// What the engine that runs there has, or last took; none: none runs.
    fn generation_there(&self, node: usize, name: &InstanceName) -> Option<Generation> {
        match self.agents[node].processes.get(name)?.body {
            Body::Engine(Some(engine)) => {
                Some(self.engines[engine].core.report(now_of(self.queue.now())).generation)
            }
            _ => None,
        }
    }

    /// An agent says that the engine that it had has ended.
    pub(super) fn check_says_detached(&mut self, node: usize, engine: Option<InstanceUuid>) {
        let mut processes = self.agents[node].processes.iter();
        if processes.any(|(name, process)| name.kind() == Kind::Engine && Some(process.uuid) == engine) {
            self.fail(format!("n{node} says that its engine {engine:?} has ended, and it lives"));
        }
    }

    /// An agent ends what nobody claims.
    pub(super) fn check_clean(&mut self, node: usize, name: &InstanceName, uuid: InstanceUuid) {
        let here = &self.agents[node].name;
        let answers = &self.deeds.nodes[node];
        let told = answers.unclaimed.get(&(name.clone(), uuid)).copied().unwrap_or_default();
        let nobodys = !self.deeds.is_claimed(node, here, name, uuid);
        let grace = self.plan.grace.unwrap_or(Time::MAX);
        if !nobodys || told.total <= grace {
            let total = told.total / SEC;
            return self.fail(format!("n{node} cleans {name} {uuid}: {nobodys}, unclaimed for {total} s"));
        }
        self.deeds.cleaned += 1;
        self.may_now_end(node, name, uuid);
    }

    /// A person ends what nobody claims.
    pub(super) fn check_stop_unclaimed(&mut self, node: usize, name: &InstanceName, uuid: InstanceUuid) {
        if self.deeds.is_claimed(node, &self.agents[node].name, name, uuid) {
            return self.fail(format!("n{node} lets a person stop {name} {uuid}, which is claimed"));
        }
        self.may_now_end(node, name, uuid);
    }

    /// A process ends because it was told to.
    pub(super) fn check_end(&mut self, node: usize, name: &InstanceName, uuid: InstanceUuid) {
        if !self.deeds.nodes[node].ending.remove(&(name.clone(), uuid)) {
            self.fail(format!("n{node}: {name} {uuid} was told to end, and was not meant"));
        }
    }

    /// An agent forgets an instance.
    pub(super) fn check_retire(&mut self, node: usize, name: &InstanceName) {
        if self.agents[node].processes.contains_key(name) {
            self.fail(format!("n{node} forgets {name}, which lives"));
        }
    }

    /// An agent forgets an instance because a record says so.
    pub(super) fn check_retire_by_record(&mut self, node: usize, name: &InstanceName) {
        let said = self.deeds.record(node).is_some_and(|record| {
            let removed = matches!(name.kind(), Kind::Replica(id) if record.was_removed(id));
            removed || record.spec.intent != Intent::Keep
        });
        if !said {
            self.fail(format!("n{node} forgets {name}, which no record says"));
        }
    }

    /// An agent moves the volume's data to the trash.
    pub(super) fn check_trash(&mut self, node: usize, generation: Generation) {
        let purge = self.deeds.record(node).is_some_and(|record| {
            let wanted = Intent::Purge(format!("{}@{generation}", record.id));
            record.spec.intent == wanted && record.spec.attach.is_none()
        });
        if !purge || !self.agents[node].processes.is_empty() {
            self.fail(format!("n{node} moves data to the trash: wanted {purge}"));
        }
    }

    /// An agent removes the record.
    pub(super) fn check_delete(&mut self, node: usize) {
        let here = &self.agents[node].name;
        let alone = self.deeds.record(node).is_some_and(|record| {
            record.spec.intent != Intent::Keep && record.placed().all(|spec| spec.node == *here)
        });
        if !alone || self.agents.iter().any(|agent| !agent.processes.is_empty()) {
            self.fail(format!("n{node} removes the record too early: {alone}"));
        }
    }
}
