//! On which nodes the replicas of a new volume belong.

use std::collections::BTreeSet;

use holdfast_proto::ids::NodeName;

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

#[cfg(test)]
mod tests {
    use super::*;

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
