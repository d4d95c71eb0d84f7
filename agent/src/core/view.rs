//! Volumes and instances as operators see them: derived from records and observations each time, stored nowhere.

use std::time::Duration;

use holdfast_proto::ids::{Generation, InstanceUuid, NodeName, ReplicaId};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::instance as ipb;
use holdfast_proto::record::{Intent, ReplicaSpec, VolumeRecord};

use super::claims;
use super::elsewhere::Place;
use super::instance::{Instance, InstanceName, Kind, State};
use super::reconcile::{self, Plan, World};
use super::records::Lookup;

/// What an engine says when it begins; also said for one that cannot say anything.
const ATTACHING: &str = "attaching";
/// What no engine says.
const DETACHED: &str = "detached";
/// Every state of a volume.
pub const STATES: [&str; 7] =
    ["healthy", "degraded", "suspended", "faulted", ATTACHING, "detaching", DETACHED];
/// Every mode of a replica.
pub const MODES: [&str; 6] = ["member", "suspect", "catching_up", "rebuilding", "faulted", "absent"];

/// An agent that has seen nothing for so long does not know what it says. It looks every few seconds, and a plan may take
/// as long as a registry that does not answer.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// Says of a view how old it is. What is old is not healthy.
pub fn age(volume: &mut pb::VolumeInfo, age: Duration) {
    if volume.state == "healthy" {
        "degraded".clone_into(&mut volume.state);
    }
    let before = volume.reason.take().map(|reason| format!("; {reason}")).unwrap_or_default();
    let seconds = age.as_secs();
    volume.reason = Some(format!(
        "as it was {seconds} s ago: a disk or the registry holds the agent up since then{before}"
    ));
}

/// Makes the views of one moment.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// What is known.
    pub world: World<'a>,
    /// What keeps volumes from what their records say.
    pub plan: &'a Plan,
}

impl Viewer<'_> {
    /// Every volume whose record is there, readable or not.
    pub fn volumes(&self, data_dir: impl Fn(&VolumeRecord, ReplicaId) -> String) -> Vec<pb::VolumeInfo> {
        let readable = self.world.records.readable().map(|record| self.volume(record, &data_dir));
        let unreadable = self.world.records.unreadable().map(|(name, reason)| self.unreadable(name, reason));
        readable.chain(unreadable).collect()
    }

    /// A volume nobody can say anything about, but that its record is there.
    fn unreadable(&self, name: &str, reason: &str) -> pb::VolumeInfo {
        let engine = format!("{name}.engine").parse().ok();
        let running = engine.and_then(|engine: InstanceName| self.world.instances.get(&engine));
        let state = running.and_then(Instance::engine_status).map_or("faulted", |s| known_state(&s.state));
        pb::VolumeInfo {
            name: name.to_owned(),
            state: state.to_owned(),
            reason: Some(format!("its record cannot be read: {reason}")),
            ..Default::default()
        }
    }

    fn volume(
        &self,
        record: &VolumeRecord,
        data_dir: &impl Fn(&VolumeRecord, ReplicaId) -> String,
    ) -> pb::VolumeInfo {
        let engine_name = InstanceName::engine(&record.name);
        let engine = self.instance(record, &engine_name);
        let told = engine.and_then(Instance::engine_status);
        let there = self.engine_there(record);
        let (state, reason) = self.state(record, engine, told);
        let (state, reason) = changing(record, told, state, reason);
        let mut info = pb::VolumeInfo {
            id: record.id.to_string(),
            name: record.name.to_string(),
            size_bytes: record.spec.size_bytes,
            state: state.to_owned(),
            generation: record.status.generation.0,
            epoch: record.status.view.epoch.0,
            reason: reason.filter(|reason| !reason.is_empty()),
            engine: engine.filter(|e| !e.is_down()).map(|e| pb::EngineInfo {
                instance: engine_name.to_string(),
                uuid: e.uuid().to_string(),
                pid: e.pid(),
                node: self.world.node.to_string(),
            }),
            ..Default::default()
        };
        if let (None, Some((node, place))) = (&info.engine, there) {
            info.clients = place.clients;
            info.engine = Some(pb::EngineInfo {
                instance: engine_name.to_string(),
                uuid: place.uuid.to_string(),
                pid: None,
                node: node.to_string(),
            });
        }
        if let Some(told) = told {
            // An engine knows of changes before the record follows.
            info.generation = info.generation.max(told.generation);
            if (told.generation, told.epoch) >= (record.status.view.generation.0, record.status.view.epoch.0)
            {
                info.epoch = told.epoch;
            }
            info.endpoint = nbd_unix(&record.name, &told.nbd_socket);
            info.endpoint_tcp =
                (!told.nbd_tcp.is_empty()).then(|| format!("nbd://{}/{}", told.nbd_tcp, record.name));
            info.clients = told.clients;
            info.unrepaired_bytes = told.unrepaired_bytes;
        }
        info.replicas = record
            .placed()
            .map(|spec| match spec.node == *self.world.node {
                true => self.replica(record, spec.id, &spec.node, told, data_dir(record, spec.id)),
                false => self.replica_there(record, spec, told),
            })
            .collect();
        info
    }

    /// The engine on another node, where one may run.
    fn engine_there(&self, record: &VolumeRecord) -> Option<(&NodeName, &Place)> {
        let elsewhere = self.world.elsewhere;
        let attached = record.spec.attach.as_ref().map(|attach| &attach.node);
        let node = attached.or(record.spec.detaching.as_ref()).filter(|node| *node != self.world.node)?;
        // Borrowed from what is known of it, like the place.
        let node = elsewhere.names().find(|name| *name == node)?;
        Some((node, elsewhere.engine_on(record, node)?))
    }

    /// A replica on another node: as the engine sees it, or the record.
    fn replica_there(
        &self,
        record: &VolumeRecord,
        spec: &ReplicaSpec,
        told: Option<&ipb::EngineStatus>,
    ) -> pb::VolumeReplicaInfo {
        let elsewhere = self.world.elsewhere;
        let mut info = self.replica(record, spec.id, &spec.node, told, String::new());
        info.address = elsewhere.address_of(record, spec).map(str::to_owned);
        let never_attached = record.status.generation == Generation(0) && record.spec.attach.is_none();
        if never_attached && !elsewhere.has_directory(record.id, spec) {
            info.mode = "absent".to_owned();
            info.reason = Some(format!("node {} has not said that it has made its directory", spec.node));
        }
        info
    }

    /// The state of a volume, and why.
    fn state(
        &self,
        record: &VolumeRecord,
        engine: Option<&Instance>,
        told: Option<&ipb::EngineStatus>,
    ) -> (&'static str, Option<String>) {
        let blocked = self.plan.blocked.get(record.name.as_str()).cloned();
        let deleting = !matches!(record.spec.intent, Intent::Keep);
        let Some(attach) = record.spec.attach.as_ref().filter(|_| !deleting) else {
            let waits = reconcile::waits_for_engine(self.world, record);
            let ended = self.all_ended(record) && waits.is_none();
            let deleting = deleting.then(|| deleting_waits_for(self.world, record));
            return (if ended { DETACHED } else { "detaching" }, blocked.or(waits).or(deleting));
        };
        if attach.node != *self.world.node {
            return self.state_there(record, &attach.node);
        }
        if let Some(reason) = self.no_copy_left(record) {
            return ("faulted", Some(reason));
        }
        match (told, engine) {
            (Some(told), Some(engine)) => {
                let waiting = Some(told.waiting_for.clone()).filter(|w| !w.is_empty());
                (known_state(&told.state), waiting.or_else(|| engine.reason()).or(blocked))
            }
            (_, Some(engine)) => (ATTACHING, engine.reason().or(blocked)),
            (_, None) => (ATTACHING, blocked),
        }
    }

    /// The state of a volume that is attached on another node, as its engine says it there.
    fn state_there(&self, record: &VolumeRecord, node: &NodeName) -> (&'static str, Option<String>) {
        let elsewhere = self.world.elsewhere;
        let silent = elsewhere.is_live(node) != Some(true);
        let engine = InstanceName::engine(&record.name);
        let meant = |place: &&Place| claims::is_creation_of(record, &engine, place.uuid);
        match elsewhere.engine_on(record, node).filter(meant) {
            Some(place) if place.serves() && silent => {
                let said = &place.volume_state;
                ("degraded", Some(format!("node {node} does not answer; its engine was {said} when it did")))
            }
            Some(place) if place.serves() => (known_state(&place.volume_state), Some(place.reason.clone())),
            Some(place) if !place.reason.is_empty() => {
                (ATTACHING, Some(format!("its engine on node {node}: {}", place.reason)))
            }
            _ if silent => {
                (ATTACHING, Some(format!("its engine belongs on node {node}, which does not answer")))
            }
            _ => (ATTACHING, Some(format!("its engine belongs on node {node}"))),
        }
    }

    /// Why not one copy of the volume can be used, where that is known of every one.
    fn no_copy_left(&self, record: &VolumeRecord) -> Option<String> {
        let mut first = None;
        for spec in record.placed() {
            let name = InstanceName::replica(&record.name, spec.id);
            let running = self.instance(record, &name).is_some_and(Instance::is_up);
            let reason = self.world.absent.get(&name).filter(|_| !running)?;
            first.get_or_insert_with(|| reason.clone());
        }
        first.map(|reason| format!("every replica is absent; the first: {reason}"))
    }

    fn all_ended(&self, record: &VolumeRecord) -> bool {
        let replicas = record.placed().map(|r| InstanceName::replica(&record.name, r.id));
        // What another wants to run is its own.
        replicas
            .filter(|name| !self.world.is_wanted_by_others(record, name))
            .chain([InstanceName::engine(&record.name)])
            .all(|name| self.instance(record, &name).is_none_or(Instance::is_down))
    }

    fn replica(
        &self,
        record: &VolumeRecord,
        id: ReplicaId,
        node: &NodeName,
        told: Option<&ipb::EngineStatus>,
        data_dir: String,
    ) -> pb::VolumeReplicaInfo {
        let name = InstanceName::replica(&record.name, id);
        let instance = self.instance(record, &name);
        let running = instance.filter(|i| !i.is_down());
        let seen = told.and_then(|told| told.replicas.iter().find(|r| r.id == id.0));
        let (mode, reason) = self.mode(record, id, instance, seen);
        let leaves = !record.spec.replicas.iter().any(|spec| spec.id == id);
        let reason = reason
            .filter(|reason| !reason.is_empty())
            .or_else(|| leaves.then(|| "it is being removed".to_owned()));
        pb::VolumeReplicaInfo {
            id: id.to_string(),
            node: node.to_string(),
            mode: mode.to_owned(),
            // One that is to run is named while it is down, too: its log says why.
            instance: instance
                .filter(|i| !i.is_down() || record.spec.attach.is_some())
                .map(|_| name.to_string()),
            pid: running.and_then(Instance::pid),
            address: running.and_then(Instance::address).map(str::to_owned),
            data_dir,
            progress: seen.filter(|r| r.total_bytes > 0).map(|r| pb::Progress {
                done_bytes: r.done_bytes,
                total_bytes: r.total_bytes,
                bytes_per_second: r.bytes_per_second,
                remaining_s: r.remaining_s,
            }),
            reason,
            copied_bytes: seen.map_or(0, |r| r.copied_bytes),
            compared_bytes: seen.map_or(0, |r| r.compared_bytes),
        }
    }

    fn mode(
        &self,
        record: &VolumeRecord,
        id: ReplicaId,
        instance: Option<&Instance>,
        seen: Option<&ipb::ReplicaState>,
    ) -> (&'static str, Option<String>) {
        let name = InstanceName::replica(&record.name, id);
        let running = instance.is_some_and(Instance::is_up);
        if let Some(reason) = self.world.absent.get(&name).filter(|_| !running) {
            return ("absent", Some(reason.clone()));
        }
        let own_reason = || instance.and_then(|i| i.data_problem().or_else(|| i.reason()));
        if let Some(seen) = seen {
            let reason = Some(seen.reason.clone()).filter(|r| !r.is_empty()).or_else(own_reason);
            return (known_mode(&seen.mode), reason);
        }
        if !record.status.configured.contains(id) {
            let mode = if record.spec.attach.is_some() { "rebuilding" } else { "catching_up" };
            return (
                mode,
                own_reason().or_else(|| Some("new: the engine adds it, then fills it".to_owned())),
            );
        }
        if let Some((_, there)) = self.engine_there(record).filter(|(_, there)| there.serves()) {
            return match there.members.contains(&id.0) {
                true => ("member", own_reason()),
                false => ("catching_up", own_reason()),
            };
        }
        if record.spec.attach.is_some() {
            let reason = own_reason().unwrap_or_else(|| "the engine has not reported".to_owned());
            return ("suspect", Some(reason));
        }
        // At rest: what the newest view says it will be.
        if record.status.view.members.contains(id) {
            ("member", own_reason())
        } else {
            ("catching_up", Some("not a member of the newest view; it catches up once attached".into()))
        }
    }

    /// The instance of this volume under `name`; one of another volume is not it.
    fn instance(&self, record: &VolumeRecord, name: &InstanceName) -> Option<&Instance> {
        self.world.instances.get(name).filter(|instance| instance.volume_id() == record.id)
    }

    /// The process of an engine, where its record names the process of this creation and one runs.
    fn process_of(&self, name: &InstanceName, instance: &Instance) -> Option<InstanceUuid> {
        let Lookup::Found(record) = self.world.records.lookup(name.volume().as_str()) else { return None };
        let status = &record.status;
        let named = name.kind() == Kind::Engine && status.engine_instance == instance.uuid();
        (named && record.id == instance.volume_id() && instance.is_up()).then_some(status.engine_uuid)
    }

    /// One instance.
    #[must_use]
    pub fn instance_info(&self, name: &InstanceName, instance: &Instance) -> pb::InstanceInfo {
        let world = self.world;
        let (generation, epoch) = match (instance.engine_status(), instance.replica_status()) {
            (Some(engine), _) => (engine.generation, engine.epoch),
            (None, Some(replica)) => (replica.generation, replica.epoch),
            (None, None) => (0, 0),
        };
        let claim = claims::of_instance(world, name, instance.uuid(), instance.volume_id());
        let told = instance.engine_status().filter(|_| instance.is_up());
        pb::InstanceInfo {
            name: name.to_string(),
            uuid: instance.uuid().to_string(),
            kind: name.kind().as_str().to_owned(),
            volume: name.volume().to_string(),
            state: instance.state_name().to_owned(),
            pid: instance.pid(),
            restarts: instance.restarts(),
            claim: claim.as_str().to_owned(),
            orphan: None,
            reason: instance.reason(),
            volume_id: instance.volume_id().to_string(),
            address: instance.address().map(str::to_owned),
            generation,
            epoch,
            process_uuid: self.process_of(name, instance).map(|uuid| uuid.to_string()),
            ended: instance.is_down(),
            volume_state: told.map(|told| told.state.clone()).unwrap_or_default(),
            clients: told.map_or(0, |told| told.clients),
            members: told.map(members).unwrap_or_default(),
            ..Default::default()
        }
    }
}

/// The replicas that hold everything, as an engine says it.
fn members(told: &ipb::EngineStatus) -> Vec<u32> {
    told.replicas.iter().filter(|replica| replica.mode == "member").map(|replica| replica.id).collect()
}

/// A volume is not healthy while its replicas are not those that are wanted, whatever its engine has heard of that.
fn changing(
    record: &VolumeRecord,
    told: Option<&ipb::EngineStatus>,
    state: &'static str,
    reason: Option<String>,
) -> (&'static str, Option<String>) {
    let configured: Vec<u32> = match told.map(|told| told.configured.as_slice()) {
        // Of a build that does not say it.
        None | Some([]) => record.status.configured.iter().map(|id| id.0).collect(),
        Some(told) => told.to_vec(),
    };
    let mut wanted: Vec<u32> = record.spec.replicas.iter().map(|spec| spec.id.0).collect();
    wanted.sort_unstable();
    if state != "healthy" || wanted == configured {
        return (state, reason);
    }
    ("degraded", reason.or_else(|| Some("the set of its replicas is being changed".to_owned())))
}

/// What a deletion waits for once nothing runs here.
fn deleting_waits_for(world: World<'_>, record: &VolumeRecord) -> String {
    let others = reconcile::nodes_to_release(world, record);
    if others.is_empty() {
        return "it is being deleted".to_owned();
    }
    let said = others.iter().map(|node| match world.elsewhere.is_live(node) {
        Some(true) => node.to_string(),
        Some(false) | None => format!("{node} (which does not answer)"),
    });
    let said: Vec<_> = said.collect();
    format!("it is being deleted; waits until its replicas are given up on {}", said.join(", "))
}

/// Whether ending this unclaimed instance hurts nobody.
///
/// # Errors
/// Whom it would hurt, or why it cannot be ended.
pub fn may_be_stopped(name: &InstanceName, instance: &Instance) -> Result<(), String> {
    match instance.state() {
        State::Unknown(reason) => Err(format!("{name}: {reason}")),
        State::Down { .. } => Err(format!("{name} does not run")),
        State::Pending | State::Starting | State::Running | State::Stopping => {
            if let Some(why) = instance.silent() {
                return Err(format!("{name}: {why}"));
            }
            match (name.kind(), instance.engine_status()) {
                (Kind::Engine, Some(told)) if told.clients > 0 => {
                    Err(format!("{name} serves {} clients", told.clients))
                }
                _ => Ok(()),
            }
        }
    }
}

fn known_state(told: &str) -> &'static str {
    STATES.into_iter().find(|known| *known == told && *known != DETACHED).unwrap_or(ATTACHING)
}

fn known_mode(told: &str) -> &'static str {
    MODES.into_iter().find(|known| *known == told).unwrap_or("suspect")
}

/// `nbd+unix:///NAME?socket=PATH`, with what a URI cannot hold escaped.
fn nbd_unix(name: &holdfast_proto::ids::VolumeName, socket: &str) -> Option<String> {
    if socket.is_empty() {
        return None;
    }
    let mut path = String::new();
    for byte in socket.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~:@,+".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    Some(format!("nbd+unix:///{name}?socket={path}"))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
