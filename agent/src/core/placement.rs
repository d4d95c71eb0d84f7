//! Which replicas a volume's record wants, and on which nodes: those of a new volume; one more, one in the place of
//! another, one less.

use std::collections::BTreeSet;

use holdfast_proto::ids::{InstanceUuid, NodeName, ReplicaId};
use holdfast_proto::record::{ReplicaSet, ReplicaSpec, VolumeRecord};

use super::instance::{InstanceName, Kind};

/// The node of each of `replicas` replicas, where a person named `on`: nobody: all here; one node: all there; several:
/// one on each, and never two on one.
///
/// # Errors
/// Expected and found.
pub fn spread(on: &[NodeName], replicas: usize, here: &NodeName) -> Result<Vec<NodeName>, String> {
    match on {
        [] => Ok(vec![here.clone(); replicas]),
        [one] => Ok(vec![one.clone(); replicas]),
        several => {
            let different: BTreeSet<_> = several.iter().collect();
            if different.len() < several.len() {
                return Err("on: one node is named twice; name one node for each replica".to_owned());
            }
            if several.len() != replicas {
                return Err(format!(
                    "on: expected one node for each of the {replicas} replicas, or one for all, found {}",
                    several.len()
                ));
            }
            Ok(several.to_vec())
        }
    }
}

/// Wants the replica `id` on `node`, whose instance is the creation `uuid`, perhaps in the place of another.
pub fn want(
    record: &mut VolumeRecord,
    id: ReplicaId,
    uuid: InstanceUuid,
    node: &NodeName,
    replaces: Option<ReplicaId>,
) {
    let mut spec = ReplicaSpec::new(id, node.clone());
    if let Some(old) = replaces {
        let former = record.spec.replicas.iter().find(|spec| spec.id == old).map(|spec| spec.replaces);
        let configured = record.status.configured;
        let all = former.unwrap_or_default().without(old).iter().chain([old]).collect::<Vec<_>>();
        spec.replaces = all.into_iter().filter(|id| configured.contains(*id)).collect();
        unwant(record, old);
    }
    record.spec.replicas.push(spec);
    record.spec.next_replica_id = record.fresh_replica_id().0;
    record.status.instance_uuids.insert(InstanceName::replica(&record.name, id).to_string(), uuid);
}

/// Wants a replica no more. It belongs to the volume until it is configured no more.
pub fn unwant(record: &mut VolumeRecord, id: ReplicaId) {
    let (gone, stay) = std::mem::take(&mut record.spec.replicas).into_iter().partition(|spec| spec.id == id);
    record.spec.replicas = stay;
    let gone: Vec<ReplicaSpec> = gone;
    record.spec.leaving.extend(gone);
}

/// What was removed and has gone needs no mention any more. While an engine may be at work it is not gone: one that heard
/// of the removal late may still add it to the configured set, and then it must be started to be taken out again.
pub fn forget_left(record: &mut VolumeRecord) {
    if record.spec.attach.is_some() || !record.status.clean {
        return;
    }
    let configured = record.status.configured;
    record.spec.leaving.retain(|spec| configured.contains(spec.id));
    let placed: ReplicaSet = record.placed().map(|spec| spec.id).collect();
    record.status.instance_uuids.retain(|name, _| {
        match name.parse::<InstanceName>().map(|name| name.kind()) {
            Ok(Kind::Replica(id)) => placed.contains(id),
            Ok(Kind::Engine) | Err(_) => true,
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::attached;

    fn ids(specs: &[ReplicaSpec]) -> Vec<u32> {
        specs.iter().map(|spec| spec.id.0).collect()
    }

    #[test]
    fn a_successor_keeps_what_its_predecessor_was_to_replace() {
        let node: NodeName = "node-a".parse().unwrap();
        let mut record = attached("demo", "node-a", 3);
        want(&mut record, ReplicaId(4), InstanceUuid::random(), &node, Some(ReplicaId(2)));
        assert_eq!((ids(&record.spec.replicas), ids(&record.spec.leaving)), (vec![1, 3, 4], vec![2]));
        assert_eq!(record.spec.next_replica_id, 5);
        assert!(record.status.instance_uuids.contains_key("demo.r4"));
        // r4 never got as far as the configured set.
        want(&mut record, ReplicaId(5), InstanceUuid::random(), &node, Some(ReplicaId(4)));
        assert_eq!(ids(&record.spec.replicas), [1, 3, 5]);
        assert_eq!(record.spec.replicas[2].replaces.iter().collect::<Vec<_>>(), [ReplicaId(2)]);
        forget_left(&mut record);
        assert_eq!(ids(&record.spec.leaving), [2, 4], "an engine may add r4 yet");
        assert!(record.status.instance_uuids.contains_key("demo.r4"));
        assert!(record.was_removed(ReplicaId(4)), "it is not in the set now");
        let mut added = record.clone();
        added.status.configured = added.status.configured.with(ReplicaId(4));
        assert!(!added.was_removed(ReplicaId(4)), "it is started until it is out again");
        record.spec.attach = None;
        forget_left(&mut record);
        assert_eq!(ids(&record.spec.leaving), [2], "it is configured still");
        assert!(!record.status.instance_uuids.contains_key("demo.r4"));
        assert!(record.status.instance_uuids.contains_key("demo.engine"));
        assert!(record.was_removed(ReplicaId(4)));
    }

    #[test]
    fn several_nodes_have_one_replica_each_and_never_two() {
        let nodes =
            |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<NodeName>>();
        let here: NodeName = "node-a".parse().unwrap();
        let placed = |on: &[&str], replicas| spread(&nodes(on), replicas, &here);
        assert_eq!(placed(&[], 2), Ok(nodes(&["node-a", "node-a"])));
        assert_eq!(placed(&["node-b"], 3), Ok(nodes(&["node-b", "node-b", "node-b"])));
        assert_eq!(placed(&["b", "c", "a"], 3), Ok(nodes(&["b", "c", "a"])));
        assert!(placed(&["a", "b"], 3).unwrap_err().contains("found 2"));
        assert!(placed(&["a", "b", "c"], 2).unwrap_err().contains("found 3"));
        assert!(placed(&["a", "b", "a"], 3).unwrap_err().contains("twice"));
    }
}
