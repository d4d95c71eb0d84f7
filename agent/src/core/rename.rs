//! What becomes of records when a node gets another name.

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::VolumeRecord;

/// Puts `to` wherever the record names `from`. Returns whether it did.
pub fn rename_in(record: &mut VolumeRecord, from: &NodeName, to: &NodeName) -> bool {
    let spec = &mut record.spec;
    let placed = spec.replicas.iter_mut().chain(&mut spec.leaving).map(|replica| &mut replica.node);
    let attached = spec.attach.as_mut().map(|attach| &mut attach.node);
    let named: Vec<_> =
        placed.chain(attached).chain(&mut spec.detaching).filter(|node| **node == *from).collect();
    let changed = !named.is_empty();
    named.into_iter().for_each(|node| node.clone_from(to));
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;
    use crate::core::upkeep::names;
    use holdfast_proto::record::AttachSpec;

    #[test]
    fn rename_reaches_every_place_that_names_a_node() {
        let (old, new, other): (NodeName, NodeName, NodeName) =
            ("old".parse().unwrap(), "new".parse().unwrap(), "other".parse().unwrap());
        let mut before = record("demo", "old", 3);
        before.spec.replicas[1].node = other.clone();
        before.spec.leaving.push(before.spec.replicas[0].clone());
        before.spec.attach = Some(AttachSpec {
            node: old.clone(),
            nbd_tcp: None,
            force_from: None,
            unknown: Default::default(),
        });
        before.spec.detaching = Some(old.clone());
        let mut after = before.clone();
        assert!(rename_in(&mut after, &old, &new));
        assert!(!names(&after, &old) && names(&after, &new) && names(&after, &other));
        assert!(!serde_json::to_string(&after).unwrap().contains("\"old\""), "{after:?}");
        assert!(!rename_in(&mut after, &old, &new), "a repeat changes nothing");
        assert!(rename_in(&mut after, &new, &old));
        assert_eq!(after, before);
    }
}
