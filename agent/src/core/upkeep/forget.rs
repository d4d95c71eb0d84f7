//! Which forgotten nodes nothing refers to any more: then what the registry keeps of them can go.

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::VolumeRecord;

use crate::core::nodes::Nodes;
use crate::core::records::Records;

/// The forgotten nodes that no record names, with the version of the mark. None while a record cannot be read: it may
/// name any node.
#[must_use]
pub fn to_forget(records: &Records, nodes: &Nodes) -> Vec<(NodeName, u64)> {
    let forgotten = nodes.forgotten().filter(|node| !is_named(records, node));
    forgotten.filter_map(|node| Some((node.clone(), nodes.wish(node)?.version))).collect()
}

/// Whether a record names the node, or may.
fn is_named(records: &Records, node: &NodeName) -> bool {
    let known = matches!(records, Records::Known(_)) && records.unreadable().next().is_none();
    !known || records.readable().any(|record| names(record, node))
}

/// Whether the record has a part of its volume on the node.
#[must_use]
pub fn names(record: &VolumeRecord, node: &NodeName) -> bool {
    let spec = &record.spec;
    let attached = spec.attach.as_ref().is_some_and(|attach| attach.node == *node);
    let replicas = spec.replicas.iter().chain(&spec.leaving).any(|spec| spec.node == *node);
    attached || replicas || spec.detaching.as_ref() == Some(node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use holdfast_proto::record::NodeRecord;

    use super::*;
    use crate::core::nodes::Heard;
    use crate::core::records::RecordState;
    use crate::core::testing::{attached, record};

    #[test]
    fn forgotten_node_goes_once_no_record_names_it() {
        let node: NodeName = "gone".parse().unwrap();
        let mut nodes = Nodes::default();
        let mark = NodeRecord { forgotten: true, version: 7, ..NodeRecord::new(node.clone()) };
        let kept = NodeRecord { draining: true, ..NodeRecord::new("kept".parse().unwrap()) };
        let wishes = BTreeMap::from([(node.clone(), Some(mark)), (kept.name.clone(), Some(kept))]);
        let (published, live) = (BTreeMap::new(), BTreeMap::new());
        nodes.handle(Heard::Listed { published, live, wishes }, Duration::ZERO);
        let of = |state: RecordState| Records::Known(BTreeMap::from([("demo".to_owned(), state)]));
        let readable = |record| of(RecordState::Readable(Box::new(record)));
        let mut leaving = record("demo", "node-a", 2);
        leaving.spec.replicas[0].node = node.clone();
        let gone = leaving.spec.replicas.remove(0);
        leaving.spec.leaving.push(gone);
        for records in [
            Records::Unavailable("away".into()),
            of(RecordState::Unreadable("damaged".into())),
            readable(record("demo", "gone", 1)),
            readable(leaving),
            readable(attached("demo", "gone", 1)),
        ] {
            assert_eq!(to_forget(&records, &nodes), []);
        }
        let records = readable(attached("demo", "node-a", 2));
        assert_eq!(to_forget(&records, &nodes), [(node.clone(), 7)]);
        nodes.handle(Heard::Wished(node, None), Duration::ZERO);
        assert_eq!(to_forget(&records, &nodes), []);
    }
}
