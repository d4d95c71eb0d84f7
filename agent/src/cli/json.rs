//! The JSON that scripts rely on: names and nesting are a contract, kept by the golden tests below. Where nothing
//! runs, a field is null; it is never left out.

mod claim;
mod node;
mod orphan;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;
use serde::Serialize;

use crate::complaint::Complaint;

pub(super) use claim::{Claim, Claims};
pub(super) use node::{NodeParts, SafeToReboot};
pub(super) use orphan::{OrphanDetail, Orphans, Trash, TrashItem};

/// `volume show`.
#[derive(Debug, Serialize)]
pub(super) struct Volume<'a> {
    id: &'a str,
    name: &'a str,
    size_bytes: u64,
    state: &'a str,
    generation: u64,
    epoch: u64,
    endpoint: Option<&'a str>,
    engine: Option<Engine<'a>>,
    replicas: Vec<Replica<'a>>,
    /// Still to be made equal after an unclean end.
    unrepaired_bytes: u64,
    /// Why, where the state needs a reason.
    reason: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Engine<'a> {
    instance: &'a str,
    uuid: &'a str,
    pid: Option<i32>,
    node: &'a str,
}

#[derive(Debug, Serialize)]
struct Replica<'a> {
    id: &'a str,
    node: &'a str,
    mode: &'a str,
    instance: Option<&'a str>,
    pid: Option<i32>,
    address: Option<&'a str>,
    data_dir: &'a str,
    progress: Option<Progress>,
    copied_bytes: u64,
    compared_bytes: u64,
    /// Why, where the mode needs a reason.
    reason: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Progress {
    done_bytes: u64,
    total_bytes: u64,
    bytes_per_second: u64,
    /// At that rate; null while it is not known.
    remaining_s: Option<u64>,
}

/// Protobuf says "nothing" with an empty text, JSON with null.
fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl<'a> From<&'a pb::VolumeInfo> for Volume<'a> {
    fn from(volume: &'a pb::VolumeInfo) -> Self {
        Self {
            id: &volume.id,
            name: &volume.name,
            size_bytes: volume.size_bytes,
            state: &volume.state,
            generation: volume.generation,
            epoch: volume.epoch,
            endpoint: volume.endpoint.as_deref().and_then(filled),
            engine: volume.engine.as_ref().map(|engine| Engine {
                instance: &engine.instance,
                uuid: &engine.uuid,
                pid: engine.pid,
                node: &engine.node,
            }),
            replicas: volume.replicas.iter().map(Replica::from).collect(),
            unrepaired_bytes: volume.unrepaired_bytes,
            reason: volume.reason.as_deref().and_then(filled),
        }
    }
}

impl<'a> From<&'a pb::VolumeReplicaInfo> for Replica<'a> {
    fn from(replica: &'a pb::VolumeReplicaInfo) -> Self {
        Self {
            id: &replica.id,
            node: &replica.node,
            mode: &replica.mode,
            instance: replica.instance.as_deref().and_then(filled),
            pid: replica.pid,
            address: replica.address.as_deref().and_then(filled),
            data_dir: &replica.data_dir,
            progress: replica.progress.as_ref().map(|p| Progress {
                done_bytes: p.done_bytes,
                total_bytes: p.total_bytes,
                bytes_per_second: p.bytes_per_second,
                remaining_s: p.remaining_s,
            }),
            copied_bytes: replica.copied_bytes,
            compared_bytes: replica.compared_bytes,
            reason: replica.reason.as_deref().and_then(filled),
        }
    }
}

/// `volume ls`.
#[derive(Debug, Serialize)]
pub(super) struct Volumes<'a> {
    revision: u64,
    volumes: Vec<Volume<'a>>,
}

impl<'a> From<&'a pb::ListVolumesReply> for Volumes<'a> {
    fn from(reply: &'a pb::ListVolumesReply) -> Self {
        Self { revision: reply.revision, volumes: reply.volumes.iter().map(Volume::from).collect() }
    }
}

/// `volume delete`.
#[derive(Debug, Serialize)]
pub(super) struct Deleted<'a> {
    name: &'a str,
    kept_dirs: &'a [String],
    trashed_dirs: &'a [String],
}

impl<'a> Deleted<'a> {
    pub(super) fn new(name: &'a str, reply: &'a pb::DeleteVolumeReply) -> Self {
        Self { name, kept_dirs: &reply.kept_dirs, trashed_dirs: &reply.trashed_dirs }
    }
}

/// One of `instance ls`, and `instance show`.
#[derive(Debug, Serialize)]
pub(super) struct Instance<'a> {
    name: &'a str,
    uuid: &'a str,
    kind: &'a str,
    volume: &'a str,
    state: &'a str,
    pid: Option<i32>,
    restarts: u32,
    claim: &'a str,
    orphan: Option<Orphan<'a>>,
    reason: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Orphan<'a> {
    state: &'a str,
    remaining_s: u64,
}

impl<'a> From<&'a pb::InstanceInfo> for Instance<'a> {
    fn from(instance: &'a pb::InstanceInfo) -> Self {
        Self {
            name: &instance.name,
            uuid: &instance.uuid,
            kind: &instance.kind,
            volume: &instance.volume,
            state: &instance.state,
            pid: instance.pid,
            restarts: instance.restarts,
            claim: &instance.claim,
            orphan: instance
                .orphan
                .as_ref()
                .map(|orphan| Orphan { state: &orphan.state, remaining_s: orphan.remaining_s }),
            reason: instance.reason.as_deref().and_then(filled),
        }
    }
}

/// `instance ls`.
#[derive(Debug, Serialize)]
pub(super) struct Instances<'a> {
    revision: u64,
    instances: Vec<Instance<'a>>,
}

impl<'a> From<&'a pb::ListInstancesReply> for Instances<'a> {
    fn from(reply: &'a pb::ListInstancesReply) -> Self {
        Self { revision: reply.revision, instances: reply.instances.iter().map(Instance::from).collect() }
    }
}

/// One line of `instance logs`.
#[derive(Debug, Serialize)]
pub(super) struct LogLine<'a> {
    pub(super) instance: &'a str,
    pub(super) line: &'a str,
}

/// `node ls`.
#[derive(Debug, Serialize)]
pub(super) struct Nodes<'a> {
    nodes: Vec<NodeSummary<'a>>,
}

/// One of `node ls`, and what `node undrain` and `node forget` leave.
#[derive(Debug, Serialize)]
pub(super) struct NodeSummary<'a> {
    name: &'a str,
    here: bool,
    live: bool,
    silent_s: Option<u64>,
    version: Option<&'a str>,
    address: Option<&'a str>,
    instances: u32,
    replicas: u32,
    pressure_cpu: Option<&'a str>,
    pressure_memory: Option<&'a str>,
    pressure_io: Option<&'a str>,
    draining: bool,
    forgotten: bool,
    reason: Option<&'a str>,
}

impl<'a> From<&'a pb::ListNodesReply> for Nodes<'a> {
    fn from(reply: &'a pb::ListNodesReply) -> Self {
        Self { nodes: reply.nodes.iter().map(NodeSummary::from).collect() }
    }
}

impl<'a> From<&'a pb::NodeSummary> for NodeSummary<'a> {
    fn from(node: &'a pb::NodeSummary) -> Self {
        Self {
            name: &node.name,
            here: node.here,
            live: node.live,
            silent_s: node.silent_s,
            version: filled(&node.version),
            address: filled(&node.address),
            instances: node.instances,
            replicas: node.replicas,
            pressure_cpu: filled(&node.pressure_cpu),
            pressure_memory: filled(&node.pressure_memory),
            pressure_io: filled(&node.pressure_io),
            draining: node.draining,
            forgotten: node.forgotten,
            reason: node.reason.as_deref().and_then(filled),
        }
    }
}

/// `replica ls`.
#[derive(Debug, Serialize)]
pub(super) struct ReplicaDirs<'a> {
    revision: u64,
    replicas: Vec<ReplicaDir<'a>>,
}

#[derive(Debug, Serialize)]
struct ReplicaDir<'a> {
    volume: Option<&'a str>,
    volume_id: Option<&'a str>,
    id: Option<&'a str>,
    node: Option<&'a str>,
    data_dir: &'a str,
    size_bytes: u64,
    allocated_bytes: u64,
    generation: u64,
    epoch: u64,
    claim: &'a str,
    instance: Option<&'a str>,
    reason: Option<&'a str>,
}

impl<'a> From<&'a pb::ListReplicasReply> for ReplicaDirs<'a> {
    fn from(reply: &'a pb::ListReplicasReply) -> Self {
        let replicas = reply.replicas.iter().map(|dir| ReplicaDir {
            volume: filled(&dir.volume),
            volume_id: filled(&dir.volume_id),
            id: filled(&dir.id),
            node: filled(&dir.node),
            data_dir: &dir.data_dir,
            size_bytes: dir.size_bytes,
            allocated_bytes: dir.allocated_bytes,
            generation: dir.generation,
            epoch: dir.epoch,
            claim: &dir.claim,
            instance: dir.instance.as_deref().and_then(filled),
            reason: dir.reason.as_deref().and_then(filled),
        });
        Self { revision: reply.revision, replicas: replicas.collect() }
    }
}

/// `node show`.
#[derive(Debug, Serialize)]
pub(super) struct Node<'a> {
    node: &'a str,
    version: &'a str,
    boot_id: &'a str,
    data_dir: &'a str,
    capacity_bytes: u64,
    available_bytes: u64,
    instances: u32,
    volumes: u32,
    io_uring: &'a str,
    kernel: &'a str,
    agent_pid: i32,
    listen: &'a str,
    warnings: &'a [String],
    disks: Vec<Disk<'a>>,
    pressure: Option<Pressure>,
    instance_protocol_min: u32,
    instance_protocol_max: u32,
    data_protocol_min: u32,
    data_protocol_max: u32,
}

/// A file system that replicas are on; `errors` is null where it does not count them.
#[derive(Debug, Serialize)]
struct Disk<'a> {
    path: &'a str,
    capacity_bytes: u64,
    available_bytes: u64,
    errors: Option<u64>,
    faulted_replicas: u32,
    last_error: Option<&'a str>,
    reserved_bytes: u64,
}

impl<'a> From<&'a pb::DiskInfo> for Disk<'a> {
    fn from(disk: &'a pb::DiskInfo) -> Self {
        Self {
            path: &disk.path,
            capacity_bytes: disk.capacity_bytes,
            available_bytes: disk.available_bytes,
            errors: disk.errors,
            faulted_replicas: disk.faulted_replicas,
            last_error: disk.last_error.as_deref(),
            reserved_bytes: disk.reserved_bytes,
        }
    }
}

/// In percent of the last 10 s.
#[derive(Debug, Serialize)]
struct Pressure {
    cpu: Option<f32>,
    memory: Option<f32>,
    io: Option<f32>,
}

impl<'a> From<&'a pb::NodeInfo> for Node<'a> {
    fn from(node: &'a pb::NodeInfo) -> Self {
        Self {
            node: &node.node,
            version: &node.version,
            boot_id: &node.boot_id,
            data_dir: &node.data_dir,
            capacity_bytes: node.capacity_bytes,
            available_bytes: node.available_bytes,
            instances: node.instances,
            volumes: node.volumes,
            io_uring: &node.io_uring,
            kernel: &node.kernel,
            agent_pid: node.agent_pid,
            listen: &node.listen,
            warnings: &node.warnings,
            disks: node.disks.iter().map(Disk::from).collect(),
            pressure: (node.pressure.as_ref()).map(|told| Pressure {
                cpu: told.cpu,
                memory: told.memory,
                io: told.io,
            }),
            instance_protocol_min: node.instance_protocol_min,
            instance_protocol_max: node.instance_protocol_max,
            data_protocol_min: node.data_protocol_min,
            data_protocol_max: node.data_protocol_max,
        }
    }
}

/// `version`; `agent` is null where none can be reached.
#[derive(Debug, Serialize)]
pub(super) struct Version<'a> {
    pub(super) version: &'a str,
    pub(super) instance_protocol_min: u32,
    pub(super) instance_protocol_max: u32,
    pub(super) agent: Option<AgentVersion>,
}

#[derive(Debug, Serialize)]
pub(super) struct AgentVersion {
    pub(super) version: String,
    pub(super) instance_protocol_min: u32,
    pub(super) instance_protocol_max: u32,
    pub(super) socket: String,
}

/// One line of `watch`.
#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    revision: u64,
    #[serde(flatten)]
    what: EventKind<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventKind<'a> {
    Snapshot { instances: Vec<Instance<'a>>, volumes: Vec<Volume<'a>> },
    InstanceChanged { instance: Instance<'a> },
    InstanceRemoved { name: &'a str },
    VolumeChanged { volume: Box<Volume<'a>> },
    VolumeRemoved { name: &'a str },
    Resync { reason: &'a str },
}

impl<'a> Event<'a> {
    /// `None` for an event that this build does not know: a newer agent may send more.
    pub(super) fn of(event: &'a pb::WatchEvent) -> Option<Self> {
        use pb::watch_event::Event as Wire;
        let what = match event.event.as_ref()? {
            Wire::Snapshot(all) => EventKind::Snapshot {
                instances: all.instances.iter().map(Instance::from).collect(),
                volumes: all.volumes.iter().map(Volume::from).collect(),
            },
            Wire::InstanceChanged(instance) => EventKind::InstanceChanged { instance: instance.into() },
            Wire::InstanceRemoved(name) => EventKind::InstanceRemoved { name },
            Wire::VolumeChanged(volume) => EventKind::VolumeChanged { volume: Box::new(volume.into()) },
            Wire::VolumeRemoved(name) => EventKind::VolumeRemoved { name },
            Wire::Resync(resync) => EventKind::Resync { reason: &resync.reason },
        };
        Some(Self { revision: event.revision, what })
    }
}

/// What `quickstart --ready-file` writes.
#[derive(Debug, Serialize)]
pub(super) struct Ready<'a> {
    pub(super) agent: &'a str,
    pub(super) volume: &'a str,
    pub(super) nbd_uri: &'a str,
    pub(super) pid: u32,
}

/// What goes to standard error when a command fails.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    kind: &'static str,
    exit_code: u8,
    message: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> From<&'a Complaint> for ErrorBody<'a> {
    fn from(complaint: &'a Complaint) -> Self {
        let kind = match complaint.kind {
            ErrorKind::Invalid => "usage",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Refused => "refused",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::Denied => "denied",
            ErrorKind::Unconfirmed => "unconfirmed",
            ErrorKind::Failed => "failed",
        };
        Self {
            error: ErrorFields {
                kind,
                exit_code: complaint.kind.exit_code(),
                message: &complaint.message,
                remedy: complaint.remedy.as_deref(),
            },
        }
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
