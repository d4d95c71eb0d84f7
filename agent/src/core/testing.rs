//! Records and instances for tests.

use std::collections::BTreeMap;

use holdfast_proto::ids::{
    Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId,
};
use holdfast_proto::record::{
    AttachSpec, Intent, RECORD_SCHEMA, ReplicaSet, ReplicaSpec, View, VolumeRecord, VolumeSpec, VolumeStatus,
};

use super::instance::InstanceName;

/// A new, detached volume with all its replicas on `node`.
pub(crate) fn record(name: &str, node: &str, replicas: u32) -> VolumeRecord {
    let node: NodeName = node.parse().unwrap();
    let all: ReplicaSet = (1..=replicas).map(ReplicaId).collect();
    let name: holdfast_proto::ids::VolumeName = name.parse().unwrap();
    let instance_uuids = all
        .iter()
        .map(|id| (InstanceName::replica(&name, id).to_string(), InstanceUuid::random()))
        .collect::<BTreeMap<_, _>>();
    VolumeRecord {
        schema: RECORD_SCHEMA,
        id: VolumeId::random(),
        name,
        version: 1,
        spec: VolumeSpec {
            size_bytes: 1 << 20,
            replicas: all
                .iter()
                .map(|id| ReplicaSpec { id, node: node.clone(), disk: None, replaces: ReplicaSet::new() })
                .collect(),
            leaving: Vec::new(),
            next_replica_id: replicas + 1,
            attach: None,
            intent: Intent::Keep,
            io_mode: "buffered".into(),
        },
        status: VolumeStatus {
            incarnation: Incarnation::random(),
            lineage: Lineage::random(),
            generation: Generation(0),
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            view: View { generation: Generation(0), epoch: Epoch(0), members: all, needs_registry: false },
            configured: all,
            clean: true,
            instance_uuids,
        },
    }
}

/// The same, wanted on `node`, with its engine's creation minted.
pub(crate) fn attached(name: &str, node: &str, replicas: u32) -> VolumeRecord {
    let mut record = record(name, node, replicas);
    record.spec.attach = Some(AttachSpec { node: node.parse().unwrap(), nbd_tcp: None, force_from: None });
    let engine = InstanceName::engine(&record.name).to_string();
    record.status.instance_uuids.insert(engine, InstanceUuid::random());
    record
}
