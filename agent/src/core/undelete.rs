//! Which directories that are still there make a volume again that was deleted. Only copies that agree do: of one history,
//! with the newest view that any of them knows, and all of its members. A volume of fewer could be older than what was
//! acknowledged. The rest is decided when the volume is attached, by the rules of a registry that went back.

use std::collections::BTreeMap;

use holdfast_proto::ids::{Generation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::record::{
    RECORD_SCHEMA, ReplicaSet, ReplicaSpec, View, VolumeRecord, VolumeSpec, VolumeStatus,
};
use holdfast_proto::unknown::Unknown;

use super::instance::InstanceName;

/// A directory of the volume, by its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// As its label says.
    pub volume_name: VolumeName,
    /// As its label says.
    pub replica: ReplicaId,
    /// The size of its image.
    pub size_bytes: u64,
    /// The history its data belongs to.
    pub lineage: Lineage,
    /// The last view it was told of.
    pub view: View,
    /// The configured set that it knows.
    pub configured: ReplicaSet,
    /// The newest engine that it has promised to.
    pub promised: Generation,
    /// Whether it holds everything and its disk never failed.
    pub sound: bool,
}

/// The record of the volume that these directories are of. Its replicas are those of the configured set; `node` is where
/// they are.
///
/// # Errors
/// Why none can be made without a doubt.
pub fn record(
    volume: VolumeId,
    node: &NodeName,
    incarnation: holdfast_proto::ids::Incarnation,
    io_mode: &str,
    remains: &[Remains],
) -> Result<VolumeRecord, String> {
    let newest = remains.iter().max_by_key(|found| found.view.order()).ok_or("none of its data is there")?;
    let mut by_id = BTreeMap::new();
    for found in remains.iter().filter(|found| found.lineage == newest.lineage) {
        if by_id.insert(found.replica, found).is_some() {
            return Err(format!("two directories are of {}: move one away", found.replica));
        }
    }
    let other = |found: &&Remains| {
        let same = found.view.order() == newest.view.order();
        same && (found.view.members, found.lineage) != (newest.view.members, newest.lineage)
    };
    if let Some(other) = remains.iter().find(other) {
        return Err(format!("{} and {} are of two histories: move one away", newest.replica, other.replica));
    }
    let agrees = |id: &ReplicaId| by_id.get(id).is_some_and(|found| found.sound && found.view == newest.view);
    let missing: ReplicaSet = newest.view.members.iter().filter(|id| !agrees(id)).collect();
    if !missing.is_empty() {
        return Err(format!(
            "the newest view is {}, and of {missing} there is no whole copy of it here, so that newer data may be elsewhere",
            newest.view
        ));
    }
    let all = newest.configured;
    let absent: ReplicaSet = all.iter().filter(|id| !by_id.contains_key(id)).collect();
    if !absent.is_empty() {
        return Err(format!("its replicas are {all}, and of {absent} there is no directory here"));
    }
    let name = newest.volume_name.clone();
    let spec = |id| ReplicaSpec::new(id, node.clone());
    let instance = |id| (InstanceName::replica(&name, id).to_string(), InstanceUuid::random());
    let highest = remains.iter().map(|found| found.replica.0).chain(all.iter().map(|id| id.0)).max();
    // Above all that was promised, and so another than that of the deletion.
    let generation = remains.iter().map(|found| found.promised).chain([newest.view.generation]).max();
    Ok(VolumeRecord {
        schema: RECORD_SCHEMA,
        id: volume,
        version: 1,
        spec: VolumeSpec::detached(
            newest.size_bytes,
            all.iter().map(spec).collect(),
            highest.unwrap_or(0).saturating_add(1),
            io_mode,
        ),
        status: VolumeStatus {
            incarnation,
            lineage: newest.lineage,
            generation: generation
                .unwrap_or_default()
                .next()
                .ok_or("its labels have a generation above which there is none")?,
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            view: newest.view,
            round: 0,
            configured: all,
            // How the last engine ended is in no label: the members are compared when it is attached.
            clean: false,
            instance_uuids: all.iter().map(instance).collect(),
            unknown: Unknown::default(),
        },
        name,
        unknown: Unknown::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::ids::{Epoch, Incarnation};

    fn set(ids: &[u32]) -> ReplicaSet {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn view(generation: u64, members: &[u32]) -> View {
        let (generation, epoch) = (Generation(generation), Epoch(1));
        View { generation, epoch, members: set(members), needs_registry: false }
    }

    fn three() -> Vec<Remains> {
        let lineage = Lineage::random();
        let found = |id| Remains {
            volume_name: "demo".parse().unwrap(),
            replica: ReplicaId(id),
            size_bytes: 1 << 20,
            lineage,
            view: view(4, &[1, 2]),
            configured: set(&[1, 2, 3]),
            promised: Generation(6),
            sound: true,
        };
        let mut all: Vec<_> = [1, 2, 3].into_iter().map(found).collect();
        // It was away when the last view was made.
        all[2].view = view(3, &[1, 2, 3]);
        all
    }

    fn made(remains: &[Remains]) -> Result<VolumeRecord, String> {
        record(VolumeId::random(), &"node-a".parse().unwrap(), Incarnation::random(), "buffered", remains)
    }

    #[test]
    fn undelete_makes_the_volume_of_copies_that_agree() {
        let record = made(&three()).unwrap();
        assert_eq!(record.status.view, view(4, &[1, 2]));
        assert_eq!(record.status.configured, set(&[1, 2, 3]));
        assert_eq!((record.status.generation, record.status.clean), (Generation(7), false));
        assert_eq!((record.spec.replicas.len(), record.spec.next_replica_id), (3, 4));
        assert_eq!(record.status.instance_uuids.len(), 3);
        let mut left = three();
        left.push(Remains { lineage: Lineage::random(), view: view(2, &[1]), ..left[0].clone() });
        assert_eq!(made(&left).unwrap().spec.replicas.len(), 3, "what was left behind stays behind");
    }

    #[test]
    fn undelete_refuses_where_newer_data_may_be_elsewhere() {
        type Spoil = fn(&mut Vec<Remains>);
        let spoil: [(Spoil, &str); 7] = [
            (|r| r.clear(), "none of its data"),
            (|r| drop(r.remove(0)), "newer data may be elsewhere"),
            (|r| r[0].sound = false, "newer data may be elsewhere"),
            (|r| r[0].view = view(3, &[1, 2, 3]), "newer data may be elsewhere"),
            (|r| drop(r.remove(2)), "no directory here"),
            (|r| r.push(r[0].clone()), "two directories"),
            (|r| r[1].lineage = Lineage::random(), "two histories"),
        ];
        for (spoil, expected) in spoil {
            let mut remains = three();
            spoil(&mut remains);
            let said = made(&remains).unwrap_err();
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }
}
