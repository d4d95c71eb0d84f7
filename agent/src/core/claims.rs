//! Who owns an instance or a replica directory: claimed, unclaimed, or unknown.
//!
//! Only a complete answer says unclaimed. A record that cannot be read leaves everything under its name unknown.

use std::fmt;

use holdfast_proto::ids::{InstanceUuid, NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::record::{Intent, VolumeRecord};

use super::foreign::Foreign;
use super::instance::{InstanceName, Kind};
use super::reconcile::World;
use super::records::{Lookup, Records};

/// The three answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claim {
    /// A record owns it.
    Claimed,
    /// A complete, readable answer has no owner for it.
    Unclaimed,
    /// There is no such answer.
    Unknown,
}

impl Claim {
    /// As the inventory says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Unclaimed => "unclaimed",
            Self::Unknown => "unknown",
        }
    }
}
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether `record` places an instance of this name on `node`, whatever its creation.
fn places(record: &VolumeRecord, node: &NodeName, name: &InstanceName) -> bool {
    match name.kind() {
        Kind::Engine => {
            let here = |attach: &holdfast_proto::record::AttachSpec| attach.node == *node;
            // A detached volume's engine is still the record's own until it has ended.
            record.spec.attach.as_ref().is_none_or(here)
        }
        Kind::Replica(id) => record.placed().any(|r| r.id == id && r.node == *node),
    }
}

/// Whether the creation `uuid` of `name` is the one that `record` means. A record that names none means any.
#[must_use]
pub fn is_creation_of(record: &VolumeRecord, name: &InstanceName, uuid: InstanceUuid) -> bool {
    record.status.instance_uuids.get(&name.to_string()).is_none_or(|wanted| *wanted == uuid)
}

/// Whether the record is on its way to saying something else: then what it does not list now is not yet nobody's.
fn is_moving(record: &VolumeRecord, node: &NodeName, kind: Kind) -> bool {
    if record.spec.intent != Intent::Keep {
        return true;
    }
    let elsewhere = record.spec.attach.as_ref().is_some_and(|attach| attach.node != *node);
    // An attachment has arrived when its own engine has taken the volume over.
    let engine = InstanceName::engine(&record.name).to_string();
    let arrived = record.status.instance_uuids.get(&engine) == Some(&record.status.engine_instance);
    kind == Kind::Engine && elsewhere && !arrived
}

/// Who owns an instance: a volume's record, or another controller.
#[must_use]
pub fn of_instance(world: World<'_>, name: &InstanceName, uuid: InstanceUuid, volume_id: VolumeId) -> Claim {
    let by_record = by_record(world.records, world.node, name, uuid, volume_id);
    either(by_record, || world.foreign.of(name, uuid, volume_id))
}

/// Who owns a replica directory whose label names this volume and replica. The claim of its process is one of it.
#[must_use]
pub fn of_directory(
    records: &Records,
    foreign: &Foreign,
    node: &NodeName,
    volume_name: &VolumeName,
    volume_id: VolumeId,
    replica: ReplicaId,
) -> Claim {
    let by_record = directory_by_record(records, node, volume_name.as_str(), volume_id, replica);
    either(by_record, || foreign.of_data(&InstanceName::replica(volume_name, replica), volume_id))
}

/// One claim is enough; it is nobody's only if both answers say so.
fn either(by_record: Claim, by_other: impl FnOnce() -> Claim) -> Claim {
    match by_record {
        Claim::Claimed => Claim::Claimed,
        Claim::Unclaimed => by_other(),
        Claim::Unknown if by_other() == Claim::Claimed => Claim::Claimed,
        Claim::Unknown => Claim::Unknown,
    }
}

/// Who owns an instance by the records of volumes.
#[must_use]
pub fn by_record(
    records: &Records,
    node: &NodeName,
    name: &InstanceName,
    uuid: InstanceUuid,
    volume_id: VolumeId,
) -> Claim {
    // Nobody knows which creation it is: its spawn record cannot be read.
    if volume_id == VolumeId::nil() {
        return Claim::Unknown;
    }
    match records.lookup(name.volume().as_str()) {
        Lookup::Unknown(_) => Claim::Unknown,
        Lookup::Absent => Claim::Unclaimed,
        Lookup::Found(record) => {
            let owned =
                record.id == volume_id && places(record, node, name) && is_creation_of(record, name, uuid);
            match owned {
                true => Claim::Claimed,
                false if record.id == volume_id && is_moving(record, node, name.kind()) => Claim::Unknown,
                false => Claim::Unclaimed,
            }
        }
    }
}

fn directory_by_record(
    records: &Records,
    node: &NodeName,
    volume_name: &str,
    volume_id: VolumeId,
    replica: ReplicaId,
) -> Claim {
    if let Some(record) = records.by_id(volume_id) {
        let listed = record.placed().any(|r| r.id == replica && r.node == *node);
        return match listed {
            true => Claim::Claimed,
            false if is_moving(record, node, Kind::Replica(replica)) => Claim::Unknown,
            false => Claim::Unclaimed,
        };
    }
    match records.lookup(volume_name) {
        Lookup::Unknown(_) => Claim::Unknown,
        // The name belongs to nobody, or to another volume.
        Lookup::Absent | Lookup::Found(_) => Claim::Unclaimed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::records::RecordState;
    use crate::core::testing::{attached, record};
    use std::collections::BTreeMap;

    fn known(record: &VolumeRecord) -> Records {
        let state = RecordState::Readable(Box::new(record.clone()));
        Records::Known(BTreeMap::from([(record.name.to_string(), state)]))
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn a_record_claims_its_own_creations_on_their_nodes() {
        let record = attached("demo", "node-a", 2);
        let records = known(&record);
        for (name, uuid) in &record.status.instance_uuids {
            let name = name.parse().unwrap();
            let claim = |on: NodeName, uuid, id| by_record(&records, &on, &name, uuid, id);
            assert_eq!(claim(node("node-a"), *uuid, record.id), Claim::Claimed, "{name}");
            // The engine is wanted on node-a and has not begun there.
            let elsewhere = if name.kind() == Kind::Engine { Claim::Unknown } else { Claim::Unclaimed };
            assert_eq!(claim(node("node-b"), *uuid, record.id), elsewhere, "{name}");
            assert_eq!(claim(node("node-a"), InstanceUuid::random(), record.id), Claim::Unclaimed);
            assert_eq!(claim(node("node-a"), *uuid, VolumeId::random()), Claim::Unclaimed);
        }
        let r1 = "demo.r1".parse().unwrap();
        let nobody_knows = by_record(&records, &node("node-a"), &r1, InstanceUuid::nil(), VolumeId::nil());
        assert_eq!(nobody_knows, Claim::Unknown, "its spawn record cannot be read");
        let stranger = "demo.r3".parse().unwrap();
        let claim = by_record(&records, &node("node-a"), &stranger, InstanceUuid::random(), record.id);
        assert_eq!(claim, Claim::Unclaimed);
    }

    #[test]
    fn o4_not_found_is_an_answer_and_an_error_is_not() {
        let name: InstanceName = "demo.r1".parse().unwrap();
        let (uuid, id, a) = (InstanceUuid::random(), VolumeId::random(), node("node-a"));
        let nobody = Records::Known(BTreeMap::new());
        assert_eq!(by_record(&nobody, &a, &name, uuid, id), Claim::Unclaimed);
        let away = Records::Unavailable("disk".into());
        assert_eq!(by_record(&away, &a, &name, uuid, id), Claim::Unknown);
        let damaged = RecordState::Unreadable("damaged".into());
        let damaged = Records::Known(BTreeMap::from([("demo".into(), damaged)]));
        assert_eq!(by_record(&damaged, &a, &name, uuid, id), Claim::Unknown);
        assert_eq!(directory_by_record(&damaged, &a, "demo", id, ReplicaId(1)), Claim::Unknown);
        assert_eq!(directory_by_record(&away, &a, "demo", id, ReplicaId(1)), Claim::Unknown);
        assert_eq!(directory_by_record(&nobody, &a, "demo", id, ReplicaId(1)), Claim::Unclaimed);
    }

    #[test]
    fn o12_a_stable_record_of_another_node_leaves_an_orphan_and_a_moving_one_does_not() {
        let mut record = attached("demo", "node-a", 1);
        let engine = InstanceName::engine(&record.name);
        let claim = |record: &VolumeRecord, name: &InstanceName| {
            let uuid = InstanceUuid::random();
            by_record(&known(record), &node("node-b"), name, uuid, record.id)
        };
        assert_eq!(claim(&record, &engine), Claim::Unknown, "node-a has not taken over yet");
        record.status.engine_instance = record.status.instance_uuids[&engine.to_string()];
        assert_eq!(claim(&record, &engine), Claim::Unclaimed, "node-a serves");
        let r1 = InstanceName::replica(&record.name, ReplicaId(1));
        assert_eq!(claim(&record, &r1), Claim::Unclaimed);
        record.spec.intent = Intent::Delete;
        assert_eq!(claim(&record, &engine), Claim::Unknown, "it is being deleted");
        let directory =
            directory_by_record(&known(&record), &node("node-b"), "demo", record.id, ReplicaId(1));
        assert_eq!(directory, Claim::Unknown);
    }

    #[test]
    fn a_name_given_again_does_not_claim_the_old_volumes_data() {
        let (old, new) = (record("demo", "node-a", 1), record("demo", "node-a", 1));
        let (records, a) = (known(&new), node("node-a"));
        assert_eq!(directory_by_record(&records, &a, "demo", old.id, ReplicaId(1)), Claim::Unclaimed);
        assert_eq!(directory_by_record(&records, &a, "demo", new.id, ReplicaId(1)), Claim::Claimed);
        assert_eq!(directory_by_record(&records, &a, "demo", new.id, ReplicaId(2)), Claim::Unclaimed);
    }
}
