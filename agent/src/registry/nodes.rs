//! What nodes tell each other through the registry: that they live, and where their replicas are reached. It is
//! observed, not wanted, and therefore never in a volume's record.

use holdfast_proto::ids::{BootId, InstanceUuid, NodeName, ReplicaId, VolumeId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Raised when a reader of the version before would be misled.
pub const INVENTORY_SCHEMA: u32 = 1;

/// One node, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInventory {
    /// [`INVENTORY_SCHEMA`].
    pub schema: u32,
    /// Its name.
    pub node: NodeName,
    /// Of the data directory: two agents of one name are two homes.
    pub home: Uuid,
    /// Of the agent.
    pub version: String,
    /// Of the node; another one after it has restarted.
    pub boot_id: BootId,
    /// Where its replicas are reached.
    pub address: String,
    /// The replicas that run or should.
    pub replicas: Vec<ReplicaPlace>,
}

/// A replica and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPlace {
    /// The volume.
    pub volume_id: VolumeId,
    /// Which of its replicas.
    pub replica: ReplicaId,
    /// The creation that runs.
    pub instance: InstanceUuid,
    /// `HOST:PORT`; empty while it is not known.
    pub address: String,
    /// Why its data cannot be used; empty: it can.
    pub absent: String,
}

/// One node, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Whether its agent spoke lately. A replica may be reached without it.
    pub alive: bool,
    /// What it published last.
    pub inventory: NodeInventory,
}
