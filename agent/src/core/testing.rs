//! Records and instances for tests.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::ids::{
    Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId,
};
use holdfast_proto::pb::inventory as ipb;
use holdfast_proto::record::{
    AttachSpec, RECORD_SCHEMA, ReplicaSet, ReplicaSpec, View, VolumeRecord, VolumeSpec, VolumeStatus,
};
use holdfast_proto::unknown::Unknown;

use super::elsewhere::{Elsewhere, OtherNode};
use super::instance::InstanceName;
use super::presence::Presence;

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
        spec: VolumeSpec::detached(
            1 << 20,
            all.iter().map(|id| ReplicaSpec::new(id, node.clone())).collect(),
            replicas + 1,
            "buffered",
        ),
        status: VolumeStatus {
            incarnation: Incarnation::random(),
            lineage: Lineage::random(),
            generation: Generation(0),
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            round: 0,
            view: View { generation: Generation(0), epoch: Epoch(0), members: all, needs_registry: false },
            configured: all,
            clean: true,
            instance_uuids,
            unknown: Unknown::default(),
        },
        unknown: Unknown::default(),
    }
}

/// The same, wanted on `node`, with its engine's creation minted.
pub(crate) fn attached(name: &str, node: &str, replicas: u32) -> VolumeRecord {
    let mut record = record(name, node, replicas);
    record.spec.attach = Some(AttachSpec {
        node: node.parse().unwrap(),
        nbd_tcp: None,
        force_from: None,
        unknown: Unknown::default(),
    });
    let engine = InstanceName::engine(&record.name).to_string();
    record.status.instance_uuids.insert(engine, InstanceUuid::random());
    record
}

/// An agent that lives, and reads no feature of records.
pub(crate) fn presence() -> Presence {
    Presence { address: "10.0.0.2".to_owned(), ..Presence::not_understood() }
}

/// The node's own entry in a published inventory.
pub(crate) fn published_node(name: &str) -> ipb::Entry {
    let node = ipb::Node { name: name.to_owned(), boot_id: vec![9; 16], ..Default::default() };
    ipb::Entry { entry: Some(ipb::entry::Entry::Node(node)) }
}

/// A running instance in a published inventory.
pub(crate) fn published_instance(name: &str, generation: u64) -> ipb::Entry {
    let instance = ipb::Instance {
        name: name.to_owned(),
        uuid: vec![1; 16],
        volume_id: vec![2; 16],
        state: ipb::State::Running.into(),
        address: "192.168.100.100:20000".to_owned(),
        generation,
        epoch: 1,
        claim: ipb::Claim::Claimed.into(),
        ..Default::default()
    };
    ipb::Entry { entry: Some(ipb::entry::Entry::Instance(instance)) }
}

/// What one other node has published: instances, and the directories of replicas.
pub(crate) fn elsewhere(
    node: &str,
    live: bool,
    instances: Vec<ipb::Instance>,
    directories: &[(VolumeId, ReplicaId)],
) -> Elsewhere {
    use ipb::entry::Entry as Of;
    let instances = instances.into_iter().map(Of::Instance);
    let directories = directories.iter().map(|(volume, replica)| {
        Of::ReplicaDir(ipb::ReplicaDir {
            dir: format!("{volume}.{replica}"),
            volume_id: volume.0.as_bytes().to_vec(),
            replica: replica.0,
            ..Default::default()
        })
    });
    let entries = instances.chain(directories).map(|of| ipb::Entry { entry: Some(of) });
    let entries: Vec<_> = entries.collect();
    let other = OtherNode::of(entries.iter(), live, true);
    Elsewhere::new(BTreeMap::from([(node.parse().unwrap(), other)]), BTreeSet::new())
}
