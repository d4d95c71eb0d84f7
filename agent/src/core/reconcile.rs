//! From records and observations to ordered actions, as a pure function: the same input gives the same plan.
//!
//! It starts what a record, or a claim of another controller, wants here, and stops or removes only on a positive
//! statement in a record (detached, attached elsewhere, deleting) or, of what no record wants, in its owner's claim. An
//! instance without a record is unclaimed and keeps running; one whose record cannot be read is unknown and keeps
//! running; one that cannot be asked is neither started nor told what to serve. Where its record wants it ended it is told
//! to end, and its driver signals the process that it watches.
//!
//! Within a volume, starting goes from the replicas to the engine, ending from the engine to the replicas: an
//! engine finds its replicas and drains into them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_proto::ids::{Generation, Incarnation, InstanceUuid, NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{Desired, Intent, VolumeRecord};

use super::Moment;
use super::claims::{self, Claim, is_creation_of};
use super::elsewhere::Elsewhere;
use super::foreign::Foreign;
use super::instance::{Instance, InstanceName, Kind, State, has_volume};
use super::records::{Lookup, Records};

/// An engine does not wait longer than this for a replica that is starting: it attaches degraded instead (a guess,
/// well below the five seconds within which an attach must have started).
pub const ADDRESS_WAIT: Duration = Duration::from_secs(3);

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// When.
    pub now: Moment,
    /// What the registry said.
    pub records: &'a Records,
    /// What others claim here.
    pub foreign: &'a Foreign,
    /// What runs, or did.
    pub instances: &'a BTreeMap<InstanceName, Instance>,
    /// The replicas of this node whose directory cannot be used, and why.
    pub absent: &'a BTreeMap<InstanceName, String>,
    /// Those of them that have none at all.
    pub missing: &'a BTreeSet<InstanceName>,
    /// This life of the registry.
    pub incarnation: Incarnation,
    /// What the other nodes say.
    pub elsewhere: &'a Elsewhere,
}

impl World<'_> {
    /// Whether another wants this replica of a volume to run, also while the volume is detached.
    #[must_use]
    pub fn is_wanted_by_others(&self, record: &VolumeRecord, name: &InstanceName) -> bool {
        let creation = record.status.instance_uuids.get(&name.to_string()).copied();
        record.spec.intent == Intent::Keep && self.foreign.wants(name, record.id, creation).is_some()
    }
}

/// One step. Steps of one volume are done in order; when one fails, the rest of that volume's wait for the next plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a process. `uuid` none: the record names no creation, mint one.
    Spawn {
        /// Which.
        name: InstanceName,
        /// The volume it belongs to.
        volume_id: VolumeId,
        /// Its creation.
        uuid: Option<InstanceUuid>,
    },
    /// Tell an engine where its replicas are; a repeat of what it knows is not sent.
    ConfigureEngine {
        /// Which.
        name: InstanceName,
        /// All replicas of the volume.
        replicas: Vec<pb::ReplicaEndpoint>,
    },
    /// Tell a replica what it serves; a repeat of what it knows is not sent.
    ConfigureReplica {
        /// Which.
        name: InstanceName,
    },
    /// End a process; engines drain first.
    Stop {
        /// Which.
        name: InstanceName,
        /// Exactly this creation.
        uuid: InstanceUuid,
        /// Whether it finishes what it has begun.
        drain: bool,
    },
    /// Forget an instance that is proven not to run.
    Retire {
        /// Which.
        name: InstanceName,
    },
    /// Move the volume's data on this node to the trash.
    Trash {
        /// Whose.
        volume_id: VolumeId,
        /// By which intent.
        generation: Generation,
    },
    /// Make the directory of a replica of this node, with nothing in it, unless it is there; then say so in the record.
    MakeDirectory {
        /// Which replica of the volume.
        name: InstanceName,
        /// Its number.
        id: ReplicaId,
        /// It joins a volume that may have data: it is no source before it was filled.
        fill: bool,
    },
    /// Say in the record that the engine that was here has ended: replicas on other nodes wait for that.
    SayDetached {
        /// Its name.
        name: VolumeName,
        /// Its identity.
        id: VolumeId,
        /// The creation that has ended.
        engine: Option<InstanceUuid>,
    },
    /// Take this node's replicas out of the record: what it asked for here is done, and other nodes still need it.
    Release {
        /// Its name.
        name: VolumeName,
        /// Its identity.
        id: VolumeId,
        /// As it was read.
        version: u64,
    },
    /// Remove the record: everything it asked for is done.
    DeleteRecord {
        /// Its name.
        name: VolumeName,
        /// Its identity.
        id: VolumeId,
        /// As it was read.
        version: u64,
        /// Whether the volume's key goes too.
        purge: bool,
    },
}

impl Action {
    /// Whether it ends, deletes or gives up anything. Such a thing rests on records that were read for it.
    #[must_use]
    pub fn ends_something(&self) -> bool {
        match self {
            Self::Stop { .. }
            | Self::Retire { .. }
            | Self::Trash { .. }
            | Self::Release { .. }
            | Self::DeleteRecord { .. } => true,
            Self::Spawn { .. }
            | Self::ConfigureEngine { .. }
            | Self::ConfigureReplica { .. }
            | Self::MakeDirectory { .. }
            | Self::SayDetached { .. } => false,
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In order, with the name of the volume that each is about.
    pub actions: Vec<(VolumeName, Action)>,
    /// What keeps a volume from becoming what its record says, by name.
    pub blocked: BTreeMap<String, String>,
    /// When time alone changes the plan.
    pub next_at: Option<Moment>,
}

/// Makes the plan.
#[must_use]
pub fn plan(world: World<'_>) -> Plan {
    let mut planner = Planner { world, plan: Plan::default() };
    for record in world.records.readable() {
        planner.volume(record);
    }
    planner.foreign();
    planner.plan
}

/// Checks that a purge is meant for exactly this volume in exactly this generation.
///
/// # Errors
/// Why it is ignored.
pub fn check_purge(intent: &str, record: &VolumeRecord) -> Result<Generation, String> {
    let expected = purge_intent(record);
    if intent == expected {
        Ok(record.status.generation)
    } else {
        Err(format!("intent-ignored: expected purge={expected}, found purge={intent}; the data stays"))
    }
}

/// The purge intent for a volume as it is.
#[must_use]
pub fn purge_intent(record: &VolumeRecord) -> String {
    format!("{}@{}", record.id, record.status.generation)
}

/// Whether a node that has no directory of one of its replicas may make it, and whether to be filled. Only where the
/// record says that it was not made yet, and proves that nothing can be missed by that: the replica has never been one
/// of those that decide, nobody was ever handed the volume, or the volume was served without the replica. (None runs
/// while the record says that it is not made.) One that was lost later stays absent. None: it must not.
#[must_use]
pub fn may_make_directory(record: &VolumeRecord, id: ReplicaId, incarnation: Incarnation) -> Option<bool> {
    let status = &record.status;
    let to_make = record.spec.replicas.iter().any(|spec| spec.id == id && spec.to_make);
    if record.spec.intent != Intent::Keep || !to_make {
        return None;
    }
    if !status.configured.contains(id) {
        return Some(true);
    }
    // A record from before a restore of the registry proves nothing about what happened after it was written.
    if status.incarnation != incarnation {
        return None;
    }
    let is_member = status.view.members.contains(id);
    if status.generation == Generation(0) { is_member.then_some(false) } else { (!is_member).then_some(true) }
}

/// What keeps this node from ending replicas of a volume that is wanted nowhere: an engine on another node that may
/// still be finishing. None: there is none.
#[must_use]
pub fn waits_for_engine(world: World<'_>, record: &VolumeRecord) -> Option<String> {
    // A clean end is the engine's own statement.
    let there = record.spec.detaching.as_ref().filter(|_| !record.status.clean);
    let node = there.filter(|node| *node != world.node && !world.elsewhere.is_forgotten(node))?;
    Some(match world.elsewhere.is_live(node) {
        Some(true) => format!("its engine on node {node} has not ended"),
        Some(false) | None if world.elsewhere.is_heard() => format!(
            "node {node} does not answer: whether its engine has ended is not known; attach the volume on another \
             node to fence it"
        ),
        Some(false) | None => format!("nothing has been heard of node {node} yet, where its engine was"),
    })
}

/// Whether `node` is to say in this record that the engine it had there has ended, where it was this creation.
#[must_use]
pub fn says_detached(record: &VolumeRecord, node: &NodeName, engine: Option<InstanceUuid>) -> bool {
    let name = InstanceName::engine(&record.name).to_string();
    record.spec.detaching.as_ref() == Some(node)
        && record.spec.attach.is_none()
        && record.status.instance_uuids.get(&name).copied() == engine
}

/// The other nodes that have not given up their replicas of a volume that is being deleted. One that is gone for good
/// has.
#[must_use]
pub fn nodes_to_release<'a>(world: World<'_>, record: &'a VolumeRecord) -> BTreeSet<&'a NodeName> {
    let others = record.placed().map(|spec| &spec.node).filter(|node| *node != world.node);
    others.filter(|node| !world.elsewhere.is_forgotten(node)).collect()
}

/// The record of a volume that is being deleted, without the replicas of `node`.
#[must_use]
pub fn without_replicas_of(record: &VolumeRecord, node: &NodeName) -> VolumeRecord {
    let mut record = record.clone();
    record.spec.replicas.retain(|spec| spec.node != *node);
    record.spec.leaving.retain(|spec| spec.node != *node);
    if record.spec.replicas.is_empty() {
        // A record has one at least; of those that are left none is wanted any more.
        record.spec.replicas = std::mem::take(&mut record.spec.leaving);
    }
    record
}

/// Whether the record knows that this engine had the volume, or that a later one took it over. A record from before a
/// restore of the registry knows of neither, and who it means may be who is out of date.
fn is_before(record: &VolumeRecord, engine: &Instance) -> bool {
    let status = &record.status;
    engine.engine_status().is_some_and(|told| match told.generation.cmp(&status.generation.0) {
        // One that has no volume yet may have taken a higher number since it said this. It is refused one here.
        Ordering::Less => has_volume(&told.state),
        // Also one that found no replica after it took the generation: none tells it that it is too late.
        Ordering::Equal => status.engine_instance == engine.uuid(),
        Ordering::Greater => false,
    })
}

/// The local replicas of a volume.
pub fn local_replicas<'a>(
    record: &'a VolumeRecord,
    node: &'a NodeName,
) -> impl Iterator<Item = InstanceName> + 'a {
    let here = record.placed().filter(move |r| r.node == *node);
    here.map(|r| InstanceName::replica(&record.name, r.id))
}

/// Who has the name that an instance of a volume would have.
enum Slot<'a> {
    /// Nobody.
    Empty,
    /// The creation that the record means.
    Ours(&'a Instance),
    /// Another creation, which does not run.
    Left,
    /// Another creation, which runs or may run.
    Taken(&'a Instance),
}

/// The instances that have a name of this volume, whichever volume they are of.
fn named_after<'a>(
    world: World<'a>,
    volume: &VolumeName,
) -> impl Iterator<Item = (&'a InstanceName, &'a Instance)> {
    world.instances.range(InstanceName::all_of(volume))
}

struct Planner<'a> {
    world: World<'a>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn volume(&mut self, record: &'a VolumeRecord) {
        self.finish_ending(record);
        if self.make_directories(record) {
            return;
        }
        match &record.spec.intent {
            Intent::Keep if record.spec.attach.is_some() => self.attached(record),
            Intent::Keep => {
                self.detached(record);
            }
            Intent::Delete => self.deleting(record, None),
            Intent::Purge(intent) => match check_purge(intent, record) {
                Ok(generation) => self.deleting(record, Some(generation)),
                Err(reason) => self.block(record, reason),
            },
        }
    }

    /// What an earlier agent told to end, and did not live to see end, is told again: an engine that has drained waits for
    /// that word.
    fn finish_ending(&mut self, record: &VolumeRecord) {
        for (name, instance) in named_after(self.world, &record.name) {
            if instance.volume_id() == record.id
                && *instance.state() == State::Stopping
                && !instance.stop_asked()
            {
                self.stop(record, name, instance.uuid(), name.kind() == Kind::Engine);
            }
        }
    }

    /// Returns whether the rest waits for it.
    fn make_directories(&mut self, record: &'a VolumeRecord) -> bool {
        let mut any = false;
        let wanted = record.spec.replicas.iter().filter(|spec| spec.to_make && spec.node == *self.world.node);
        for spec in wanted {
            let (name, id) = (InstanceName::replica(&record.name, spec.id), spec.id);
            // One that is there was made, and the record does not say so yet: it does before the replica runs.
            let made = record.spec.intent == Intent::Keep && !self.world.absent.contains_key(&name);
            let may = may_make_directory(record, id, self.world.incarnation);
            if made || may.is_some() && self.world.missing.contains(&name) {
                self.act(record, Action::MakeDirectory { name, id, fill: may.unwrap_or(true) });
                any = true;
            }
        }
        any
    }

    fn attached(&mut self, record: &'a VolumeRecord) {
        self.end_removed(record);
        for name in local_replicas(record, self.world.node) {
            if self.world.absent.contains_key(&name) && !self.is_up(record, &name) {
                continue;
            }
            self.ensure(record, &name, Action::ConfigureReplica { name: name.clone() });
        }
        let engine = InstanceName::engine(&record.name);
        let here = record.spec.attach.as_ref().is_some_and(|attach| attach.node == *self.world.node);
        if !here {
            self.end_engine_of_elsewhere(record);
            return;
        }
        if let Slot::Ours(running) = self.slot(record, &engine)
            && running.is_up()
            && running.engine_status().is_some_and(|status| status.fenced)
        {
            // Refused is refused for good: one started again would take the volume back, and be fenced in turn.
            let reason =
                format!("{engine}: a newer engine has the volume; detach and attach it to take it back");
            self.block(record, reason);
            return;
        }
        let (replicas, waiting) = self.endpoints(record);
        if !waiting || self.is_up(record, &engine) {
            let configure = Action::ConfigureEngine { name: engine.clone(), replicas };
            self.ensure(record, &engine, configure);
        }
    }

    /// Starts what does not run, configures what does.
    fn ensure(&mut self, record: &'a VolumeRecord, name: &InstanceName, configure: Action) {
        let uuid = record.status.instance_uuids.get(&name.to_string()).copied();
        let spawn = |uuid| Action::Spawn { name: name.clone(), volume_id: record.id, uuid };
        match self.slot(record, name) {
            Slot::Empty | Slot::Left => self.act(record, spawn(uuid)),
            Slot::Ours(instance) => match instance.state() {
                State::Down { retry_at, .. } if *retry_at > self.world.now => self.wake_at(*retry_at),
                State::Down { .. } => {
                    let uuid = uuid.or(Some(instance.uuid()));
                    self.act(record, spawn(uuid));
                }
                State::Pending | State::Starting | State::Running => self.act(record, configure),
                // Its end is the next event.
                State::Stopping => {}
                State::Unknown(reason) => self.block(record, format!("{name}: {reason}")),
            },
            Slot::Taken(other) => {
                let uuid = other.uuid();
                let reason = format!(
                    "{name}: its name is taken by an instance of another creation; where that is not needed, end it: \
                     `holdfast instance stop {name} --uuid {uuid}`"
                );
                self.block(record, reason);
            }
        }
    }

    /// Where each replica is, and whether one that may still say so is worth waiting for.
    fn endpoints(&mut self, record: &'a VolumeRecord) -> (Vec<pb::ReplicaEndpoint>, bool) {
        let mut waiting = false;
        let mut endpoints = Vec::new();
        for spec in record.placed() {
            let mut endpoint = pb::ReplicaEndpoint { id: spec.id.0, ..Default::default() };
            endpoint.local = spec.node == *self.world.node;
            if endpoint.local {
                let name = InstanceName::replica(&record.name, spec.id);
                waiting |= self.locate(record, &name, &mut endpoint);
            } else if let Some(address) = self.world.elsewhere.address_of(record, spec) {
                // Otherwise the engine keeps what it was told before, and a start waits a moment for the rest.
                address.clone_into(&mut endpoint.address);
            }
            endpoints.push(endpoint);
        }
        (endpoints, waiting)
    }

    /// Fills in what is known of a local replica. Returns whether it is on its way.
    fn locate(
        &mut self,
        record: &'a VolumeRecord,
        name: &InstanceName,
        endpoint: &mut pb::ReplicaEndpoint,
    ) -> bool {
        if let Some(reason) = self.world.absent.get(name)
            && !self.is_up(record, name)
        {
            endpoint.absent = true;
            endpoint.reason.clone_from(reason);
            return false;
        }
        let Slot::Ours(instance) = self.slot(record, name) else {
            // Started by this very plan, or kept from it by whoever has the name.
            return !matches!(self.slot(record, name), Slot::Taken(_));
        };
        if let Some(problem) = instance.data_problem() {
            endpoint.absent = true;
            endpoint.reason = problem;
            return false;
        }
        if let Some(address) = instance.address() {
            address.clone_into(&mut endpoint.address);
            return false;
        }
        endpoint.reason = instance.reason().unwrap_or_else(|| instance.state_name().to_owned());
        match instance.state() {
            State::Down { error: Some(_), .. } | State::Unknown(_) => false,
            State::Down { error: None, .. } => true,
            State::Pending | State::Starting | State::Running | State::Stopping => {
                let until = instance.since() + ADDRESS_WAIT;
                if until > self.world.now {
                    self.wake_at(until);
                }
                until > self.world.now
            }
        }
    }

    /// Ends the engine, then the replicas. Returns whether all have ended.
    fn detached(&mut self, record: &'a VolumeRecord) -> bool {
        if !self.stop_engine(record) {
            return false;
        }
        if record.spec.detaching.as_ref() == Some(self.world.node) {
            let engine = record.status.instance_uuids.get(&InstanceName::engine(&record.name).to_string());
            let (name, id, engine) = (record.name.clone(), record.id, engine.copied());
            self.act(record, Action::SayDetached { name, id, engine });
        }
        let for_others = self.run_for_others(record);
        // The engine may be draining on another node.
        if waits_for_engine(self.world, record).is_some() {
            return false;
        }
        self.end_removed(record);
        let mut ended = true;
        for name in local_replicas(record, self.world.node).filter(|name| !for_others.contains(name)) {
            match self.world.foreign.doubt(&name) {
                Some(why) if !self.has_ended(record, &name) => {
                    self.block(record, format!("{name}: whether another claims it cannot be known: {why}"));
                    ended = false;
                }
                Some(_) | None => ended &= self.end(record, &name, false),
            }
        }
        ended && for_others.is_empty()
    }

    /// Runs the replicas of a detached volume that others want to run, and says which those are.
    fn run_for_others(&mut self, record: &'a VolumeRecord) -> Vec<InstanceName> {
        let wanted = |name: &InstanceName| self.world.is_wanted_by_others(record, name);
        let wanted: Vec<_> = local_replicas(record, self.world.node).filter(wanted).collect();
        for name in &wanted {
            match self.world.absent.get(name) {
                Some(why) if !self.is_up(record, name) => self.block(record, format!("{name}: {why}")),
                Some(_) | None => self.ensure(record, name, Action::ConfigureReplica { name: name.clone() }),
            }
        }
        wanted
    }

    /// Ends what its owner wants to end and no record wants to run; says what an owner wants and cannot have.
    fn foreign(&mut self) {
        for (name, claim) in self.world.foreign.with(Desired::Stopped) {
            let Some(instance) = self.world.instances.get(name).filter(|instance| instance.is_up()) else {
                continue;
            };
            let (uuid, volume) = (instance.uuid(), instance.volume_id());
            let this = claim.uuid.is_none_or(|wanted| wanted == uuid) && claim.volume_id == volume;
            let by_record = claims::by_record(self.world.records, self.world.node, name, uuid, volume);
            if !this || by_record != Claim::Unclaimed {
                continue;
            }
            if let Some(user) = self.user_of(name, instance) {
                let reason = format!("{name}: {} wants it to end, and {user}", claim.owner);
                self.plan.blocked.entry(name.volume().to_string()).or_insert(reason);
            } else {
                let drain = name.kind() == Kind::Engine;
                let stop = Action::Stop { name: name.clone(), uuid, drain };
                self.plan.actions.push((name.volume().clone(), stop));
            }
        }
        for (name, claim) in self.world.foreign.with(Desired::Running) {
            // Of a volume that has another's name by now, or no record, there is nothing to say it of.
            let Lookup::Found(record) = self.world.records.lookup(name.volume().as_str()) else { continue };
            let placed = local_replicas(record, self.world.node).any(|replica| replica == *name);
            if record.id == claim.volume_id && !placed {
                let reason =
                    format!("{name}: {} wants it to run, and there is no such replica here", claim.owner);
                self.plan.blocked.entry(record.name.to_string()).or_insert(reason);
            }
        }
    }

    /// What uses an instance that nobody but its owner knows of, or may use it.
    fn user_of(&self, name: &InstanceName, instance: &Instance) -> Option<&'static str> {
        if name.kind() == Kind::Engine {
            return match instance.engine_status() {
                None => Some("it has not said yet whether it has clients"),
                Some(status) => (status.clients > 0).then_some("it has clients"),
            };
        }
        // Of one whose spawn record cannot be read, nobody knows which volume it is of.
        let volumes = [instance.volume_id(), VolumeId::nil()];
        let engine = self.world.instances.get(&InstanceName::engine(name.volume()))?;
        (volumes.contains(&engine.volume_id()) && !engine.is_down()).then_some("its engine runs")
    }

    /// Ends the processes of replicas that the record says were removed. Their data stays.
    fn end_removed(&mut self, record: &'a VolumeRecord) {
        for (name, instance) in named_after(self.world, &record.name) {
            let Kind::Replica(id) = name.kind() else { continue };
            if instance.volume_id() != record.id || !record.was_removed(id) {
                continue;
            }
            if self.world.foreign.of(name, instance.uuid(), record.id) != Claim::Unclaimed {
                continue;
            }
            if instance.is_down() {
                self.act(record, Action::Retire { name: name.clone() });
            } else {
                self.ask_to_end(record, name, instance, false);
            }
        }
    }

    fn stop_engine(&mut self, record: &'a VolumeRecord) -> bool {
        self.end(record, &InstanceName::engine(&record.name), true)
    }

    /// The record says that the engine belongs on another node, so that none belongs here: not an earlier creation
    /// either, which this node may have slept through the end of.
    fn end_engine_of_elsewhere(&mut self, record: &'a VolumeRecord) {
        let name = InstanceName::engine(&record.name);
        let Some(instance) = self.world.instances.get(&name) else { return };
        let meant = is_creation_of(record, &name, instance.uuid());
        if instance.volume_id() != record.id || (!meant && !is_before(record, instance)) {
            return;
        }
        self.ask_to_end(record, &name, instance, true);
    }

    /// Ends an instance of this volume if it runs. Returns whether it is proven that none does.
    fn end(&mut self, record: &'a VolumeRecord, name: &InstanceName, drain: bool) -> bool {
        match self.slot(record, name) {
            Slot::Empty | Slot::Left => true,
            Slot::Taken(other) if other.volume_id() != record.id => true,
            Slot::Taken(other) => {
                let uuid = other.uuid();
                let reason = format!(
                    "{name}: {uuid} runs, which the record does not know; end it: `holdfast instance stop {name} --uuid \
                     {uuid}`"
                );
                self.block(record, reason);
                false
            }
            Slot::Ours(instance) => {
                self.ask_to_end(record, name, instance, drain);
                instance.is_down()
            }
        }
    }

    /// Tells an instance to end, unless it was told already or has ended.
    fn ask_to_end(
        &mut self,
        record: &'a VolumeRecord,
        name: &InstanceName,
        instance: &'a Instance,
        drain: bool,
    ) {
        match instance.state() {
            State::Down { .. } | State::Stopping => {}
            State::Pending | State::Starting | State::Running => {
                self.stop(record, name, instance.uuid(), drain);
            }
            State::Unknown(reason) => {
                // Its driver asks as soon as it answers, and signals the process that it watches if it never does.
                if !instance.stop_asked() {
                    self.stop(record, name, instance.uuid(), drain);
                }
                self.block(record, format!("{name}: {reason}"));
            }
        }
    }

    fn deleting(&mut self, record: &'a VolumeRecord, purge: Option<Generation>) {
        if let Some(why) = self.world.foreign.holds(&record.name, record.id) {
            self.block(record, why);
            return;
        }
        if !self.detached(record) {
            return;
        }
        if let Some(generation) = purge {
            self.act(record, Action::Trash { volume_id: record.id, generation });
        }
        let names = local_replicas(record, self.world.node);
        for name in names.chain([InstanceName::engine(&record.name)]) {
            let left = self.world.instances.get(&name);
            if left.is_some_and(|i| i.volume_id() == record.id && i.is_down()) {
                self.act(record, Action::Retire { name });
            }
        }
        let (name, id, version) = (record.name.clone(), record.id, record.version);
        if nodes_to_release(self.world, record).is_empty() {
            self.act(record, Action::DeleteRecord { name, id, version, purge: purge.is_some() });
        } else if record.placed().any(|spec| spec.node == *self.world.node) {
            // The others' agents still need the record to do the same.
            self.act(record, Action::Release { name, id, version });
        }
    }

    fn slot(&self, record: &VolumeRecord, name: &InstanceName) -> Slot<'a> {
        match self.world.instances.get(name) {
            None => Slot::Empty,
            Some(instance)
                if instance.volume_id() == record.id && is_creation_of(record, name, instance.uuid()) =>
            {
                Slot::Ours(instance)
            }
            Some(instance) if instance.is_down() => Slot::Left,
            Some(instance) => Slot::Taken(instance),
        }
    }

    fn is_up(&self, record: &VolumeRecord, name: &InstanceName) -> bool {
        matches!(self.slot(record, name), Slot::Ours(instance) if instance.is_up())
    }

    /// Whether no process of this creation can run: one that cannot be asked may.
    fn has_ended(&self, record: &VolumeRecord, name: &InstanceName) -> bool {
        !matches!(self.slot(record, name), Slot::Ours(instance) if !instance.is_down())
    }

    fn stop(&mut self, record: &VolumeRecord, name: &InstanceName, uuid: InstanceUuid, drain: bool) {
        self.act(record, Action::Stop { name: name.clone(), uuid, drain });
    }
    fn act(&mut self, record: &VolumeRecord, action: Action) {
        self.plan.actions.push((record.name.clone(), action));
    }
    fn block(&mut self, record: &VolumeRecord, reason: String) {
        self.plan.blocked.entry(record.name.to_string()).or_insert(reason);
    }
    fn wake_at(&mut self, at: Moment) {
        self.plan.next_at = Some(self.plan.next_at.map_or(at, |next| next.min(at)));
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
