//! Features of records: which ones this build reads, which ones a record needs of its reader, and which ones may be
//! written. A feature is a name for one addition to the records; docs/disk-format.md lists them.
//!
//! A field that readers may ignore is only kept by them. A field that changes what is to be done is written together with
//! its feature in the record's `requires`: a reader that does not know the feature leaves everything of the record alone.

use serde_json::Value;

use super::nodes::Nodes;

/// Fields that the reader does not know stay in a record that it writes.
pub const KEEPS_UNKNOWN: &str = "keeps-unknown";
/// `status.round` of a volume's record.
pub const STAMPS: &str = "stamps";
/// What this build reads, as its agents publish it.
pub const READ: [&str; 2] = [KEEPS_UNKNOWN, STAMPS];

/// The field of a record, at its top, with the features that a reader must know to act on it.
pub const REQUIRES: &str = "requires";

/// Checks that this build knows what a record needs of its reader.
///
/// # Errors
/// Which feature it does not know, and what to do.
pub fn check(record: &Value) -> Result<(), String> {
    let Some(requires) = record.get(REQUIRES) else { return Ok(()) };
    let named =
        requires.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let Some(named) = named else {
        return Err(format!("{REQUIRES}: expected a list of features, found another thing; {REMEDY}"));
    };
    match named.into_iter().find(|feature| !READ.contains(feature)) {
        Some(feature) => {
            Err(format!("it needs feature {feature:?}, which this agent does not know; {REMEDY}"))
        }
        None => Ok(()),
    }
}

/// What to do about a record that a newer build wrote.
pub const REMEDY: &str = "upgrade this node's agent";

/// Whether records may be written with a feature: this build and every agent that lives read it. `nodes` none: the
/// registry is this agent's alone. A node that is silent is not asked: an agent that comes back and does not know the
/// feature leaves such records alone.
#[must_use]
pub fn may_write(feature: &str, nodes: Option<&Nodes>) -> bool {
    let reads = |nodes: &Nodes| {
        let mut live = nodes.iter().filter_map(|(_, known)| known.presence.as_ref());
        nodes.is_complete() && live.all(|presence| presence.reads(feature))
    };
    READ.contains(&feature) && nodes.is_none_or(reads)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use holdfast_proto::ids::NodeName;
    use serde_json::json;

    use super::*;
    use crate::core::nodes::Heard;
    use crate::core::presence::Presence;
    use crate::core::testing::presence;

    #[test]
    fn features_unknown_and_required_are_named_with_a_remedy() {
        for good in [json!({}), json!({"requires": []}), json!({"requires": ["stamps", "keeps-unknown"]})] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
        let said = check(&json!({"requires": ["stamps", "tomorrow"]})).unwrap_err();
        assert!(said.contains("\"tomorrow\"") && said.contains("upgrade this node's agent"), "{said}");
        for odd in [json!({"requires": "stamps"}), json!({"requires": [1]}), json!({"requires": null})] {
            assert!(check(&odd).is_err(), "{odd}");
        }
    }

    fn listed(live: &[(&str, &[&str])]) -> Heard {
        let live = live.iter().map(|(node, features)| {
            let features = features.iter().map(|feature| (*feature).to_owned()).collect();
            (node.parse::<NodeName>().unwrap(), Presence { features, ..presence() })
        });
        Heard::Listed { published: BTreeMap::new(), live: live.collect(), wishes: BTreeMap::new() }
    }

    #[test]
    fn features_are_written_once_every_live_agent_reads_them() {
        let now = Duration::from_secs(1);
        let mut nodes = Nodes::default();
        assert!(!may_write(STAMPS, Some(&nodes)), "nothing was heard yet");
        nodes.handle(listed(&[("a", &READ), ("b", &READ)]), now);
        assert!(may_write(STAMPS, Some(&nodes)));
        assert!(!may_write("tomorrow", Some(&nodes)), "this build does not read it");
        nodes.handle(listed(&[("a", &READ), ("b", &[KEEPS_UNKNOWN])]), now);
        assert!(may_write(KEEPS_UNKNOWN, Some(&nodes)) && !may_write(STAMPS, Some(&nodes)));
        nodes.handle(listed(&[("a", &READ), ("b", &[])]), now);
        assert!(!may_write(KEEPS_UNKNOWN, Some(&nodes)), "an agent from before features lives");
        nodes.handle(Heard::Silent("b".parse().unwrap()), now);
        assert!(may_write(STAMPS, Some(&nodes)), "b is silent");
        nodes.handle(Heard::Lives("b".parse().unwrap(), presence()), now);
        assert!(!may_write(STAMPS, Some(&nodes)), "b has come back");
        nodes.handle(Heard::Silent("b".parse().unwrap()), now);
        nodes.handle(Heard::Lost("the watch broke".to_owned()), now);
        assert!(!may_write(STAMPS, Some(&nodes)), "who lives is not known");
    }

    #[test]
    fn features_of_a_registry_in_files_are_its_agents_own() {
        assert!(may_write(STAMPS, None) && !may_write("tomorrow", None));
    }
}
