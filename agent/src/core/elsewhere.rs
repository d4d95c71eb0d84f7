//! What the other nodes say of themselves, as far as this node's plans and answers depend on it: where their replicas
//! are reached, which directories they have, which engines run. It may be late, and what is not in it is not known: no
//! plan ends or deletes anything because something is missing here.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::ids::{InstanceUuid, NodeName, ReplicaId, VolumeId};
use holdfast_proto::pb::inventory as ipb;
use holdfast_proto::record::{ReplicaSpec, VolumeRecord};
use ipb::entry::Entry as Of;
use uuid::Uuid;

use super::claims::is_creation_of;
use super::instance::{InstanceName, has_volume};

/// All nodes but this one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Elsewhere {
    nodes: BTreeMap<NodeName, OtherNode>,
    /// Those that a person has declared gone for good.
    forgotten: BTreeSet<NodeName>,
    /// There are others, and nothing has been heard of them yet.
    unheard: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherNode {
    /// Its agent has spoken to the registry lately.
    pub live: bool,
    /// What it published is complete and the newest that the registry has.
    pub complete: bool,
    /// By name, as it published them last.
    pub instances: BTreeMap<String, Place>,
    /// Its usable replica directories.
    pub directories: BTreeSet<(VolumeId, ReplicaId)>,
}

/// An instance there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which creation.
    pub uuid: InstanceUuid,
    /// Of which volume.
    pub volume_id: VolumeId,
    /// Whether no process of it can exist.
    pub ended: bool,
    /// Whether it runs and says so itself.
    pub running: bool,
    /// Whether a process of it may exist that does not answer its agent.
    pub silent: bool,
    /// Of a replica: `HOST:PORT`; empty: not known.
    pub address: String,
    /// Of an engine: what it says of its volume; empty: nothing yet.
    pub volume_state: String,
    /// Of an engine: connected clients.
    pub clients: u32,
    /// Of an engine: the replicas that hold everything.
    pub members: Vec<u32>,
    /// Why it is as it is, for people.
    pub reason: String,
}

impl OtherNode {
    /// From what the node has published.
    #[must_use]
    pub fn of<'a>(published: impl Iterator<Item = &'a ipb::Entry>, live: bool, complete: bool) -> Self {
        let mut this = Self { live, complete, ..Self::default() };
        for entry in published {
            match &entry.entry {
                Some(Of::Instance(instance)) => {
                    this.instances.insert(instance.name.clone(), Place::of(instance));
                }
                Some(Of::ReplicaDir(dir)) => {
                    if let Ok(volume) = Uuid::from_slice(&dir.volume_id) {
                        this.directories.insert((VolumeId(volume), ReplicaId(dir.replica)));
                    }
                }
                Some(Of::Node(_) | Of::Disk(_)) | None => {}
            }
        }
        this
    }
}

impl Place {
    /// As its node published it.
    #[must_use]
    pub fn of(instance: &ipb::Instance) -> Self {
        let uuid = |bytes: &[u8]| Uuid::from_slice(bytes).unwrap_or_default();
        let ended = instance.ended || instance.state() == ipb::State::Stopped;
        Self {
            uuid: InstanceUuid(uuid(&instance.uuid)),
            volume_id: VolumeId(uuid(&instance.volume_id)),
            ended,
            running: instance.state() == ipb::State::Running,
            silent: !ended && instance.state() == ipb::State::Error,
            address: instance.address.clone(),
            volume_state: instance.volume_state.clone(),
            clients: instance.clients,
            members: instance.members.clone(),
            reason: instance.reason.clone(),
        }
    }

    /// Whether this engine has the volume.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.running && has_volume(&self.volume_state)
    }
}

impl Elsewhere {
    /// From what is known of each node.
    #[must_use]
    pub fn new(nodes: BTreeMap<NodeName, OtherNode>, forgotten: BTreeSet<NodeName>) -> Self {
        Self { nodes, forgotten, unheard: false }
    }

    /// Before the registry has told of any node.
    #[must_use]
    pub fn unheard() -> Self {
        Self { unheard: true, ..Self::default() }
    }

    /// Whether anything was heard, or there is nobody to hear of.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        !self.unheard
    }

    /// The nodes that the registry has told of.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// The instances that other nodes published as not ended, by node and name.
    pub fn instances(&self) -> impl Iterator<Item = (&NodeName, &str, &Place)> {
        let all = self.nodes.iter().flat_map(|(node, other)| {
            other.instances.iter().map(move |(name, place)| (node, name.as_str(), place))
        });
        all.filter(|(_, _, place)| !place.ended)
    }

    /// Whether the node's agent has spoken lately; none: nobody has heard of the node.
    #[must_use]
    pub fn is_live(&self, node: &NodeName) -> Option<bool> {
        self.nodes.get(node).map(|node| node.live)
    }

    /// Whether the registry says positively that the node is gone for good.
    #[must_use]
    pub fn is_forgotten(&self, node: &NodeName) -> bool {
        self.forgotten.contains(node)
    }

    /// Where a replica on another node is reached, if that is known.
    #[must_use]
    pub fn address_of(&self, record: &VolumeRecord, spec: &ReplicaSpec) -> Option<&str> {
        let name = InstanceName::replica(&record.name, spec.id);
        let place = self.nodes.get(&spec.node)?.instances.get(&name.to_string())?;
        let meant = place.volume_id == record.id && is_creation_of(record, &name, place.uuid);
        (meant && place.running && !place.address.is_empty()).then_some(place.address.as_str())
    }

    /// Whether a node is known to have a replica's directory.
    #[must_use]
    pub fn has_directory(&self, volume: VolumeId, spec: &ReplicaSpec) -> bool {
        self.nodes.get(&spec.node).is_some_and(|node| node.directories.contains(&(volume, spec.id)))
    }

    /// The engine of the volume on that node, whichever creation.
    #[must_use]
    pub fn engine_on(&self, record: &VolumeRecord, node: &NodeName) -> Option<&Place> {
        let name = InstanceName::engine(&record.name).to_string();
        let place = self.nodes.get(node)?.instances.get(&name)?;
        (place.volume_id == record.id && !place.ended).then_some(place)
    }

    /// Why the clients of the volume on `node`, where it is attached, cannot be known; none: they are what its engine said.
    #[must_use]
    pub fn clients_unknown(&self, record: &VolumeRecord, node: &NodeName) -> Option<&'static str> {
        match self.nodes.get(node) {
            Some(known) if known.live && known.complete => {
                let silent = self.engine_on(record, node).is_some_and(|engine| engine.silent);
                silent.then_some("its engine does not answer there")
            }
            Some(known) if known.live => Some("what that node publishes is not known"),
            Some(_) | None => Some("that node does not answer"),
        }
    }
}

#[cfg(test)]
#[path = "elsewhere_tests.rs"]
mod tests;
