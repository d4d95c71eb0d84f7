//! Holdfast's control-plane contract: identifiers, volume records, gRPC messages and the table of error kinds.
//! No I/O and no business rule lives here.
#![forbid(unsafe_code)]

pub mod convert;
pub mod ids;
pub mod inventory;
pub mod record;
pub mod status;
pub mod unknown;

/// The generated gRPC code.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    /// What an agent offers to operators and controllers.
    pub mod agent {
        tonic::include_proto!("holdfast.agent.v1");
    }
    /// The contract between an agent and its instances.
    pub mod instance {
        tonic::include_proto!("holdfast.instance.v1");
    }
    /// What a node publishes of itself in the registry.
    pub mod inventory {
        tonic::include_proto!("holdfast.inventory.v1");
    }
    /// What the registry asks of etcd.
    pub mod etcd {
        tonic::include_proto!("etcdserverpb");
    }
    /// The encoded descriptors of our own, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The oldest instance protocol this build still speaks.
pub const INSTANCE_PROTOCOL_MIN: u32 = 1;
/// The newest instance protocol this build speaks.
pub const INSTANCE_PROTOCOL_MAX: u32 = 1;
