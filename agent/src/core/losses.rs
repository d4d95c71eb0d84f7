//! What a registry that went back in time would lose, as far as this node knows: by the records that it read last, the
//! replicas here, and what runs here or did elsewhere. Told to the operator who is to accept the registry as it is.

use std::collections::BTreeMap;

use holdfast_proto::ids::VolumeId;

/// A sign that a volume is, or was, in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Which volume.
    pub id: VolumeId,
    /// What it is called; empty: the sign does not say.
    pub name: String,
    /// The version of its record that was heard of; none: the sign does not say.
    pub version: Option<u64>,
    /// What the sign is, for people.
    pub what: String,
}

/// A volume whose record is missing or older.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Which volume.
    pub id: VolumeId,
    /// What it is called.
    pub name: String,
    /// What is lost of it.
    pub what: String,
    /// By what that is known.
    pub known_by: Vec<String>,
}

/// What the records that are there lack. `there` has the versions of those that can be read; `before`, where it is
/// known, which volumes the registry had last: data of one that was deleted earlier is no loss.
#[must_use]
pub fn losses(
    traces: &[Trace],
    there: &BTreeMap<VolumeId, u64>,
    before: Option<&BTreeMap<VolumeId, u64>>,
) -> Vec<Loss> {
    let mut by_volume: BTreeMap<VolumeId, Vec<&Trace>> = BTreeMap::new();
    for trace in traces {
        by_volume.entry(trace.id).or_default().push(trace);
    }
    let lost = by_volume.into_iter().filter_map(|(id, traces)| {
        let known = traces.iter().filter_map(|trace| trace.version).max();
        let what = match (there.get(&id), known) {
            (None, _) if before.is_some_and(|before| !before.contains_key(&id)) => return None,
            (None, _) if before.is_none() => "it has no record, unless it was deleted before".to_owned(),
            (None, _) => "it has no record".to_owned(),
            (Some(found), Some(known)) if *found < known => {
                format!("its record goes back from version {known} to {found}")
            }
            (Some(_), _) => return None,
        };
        let name = traces.iter().map(|trace| &trace.name).find(|name| !name.is_empty());
        let mut known_by: Vec<_> = traces.iter().map(|trace| trace.what.clone()).collect();
        known_by.dedup();
        Some(Loss { id, name: name.cloned().unwrap_or_default(), what, known_by })
    });
    let mut lost: Vec<_> = lost.collect();
    lost.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(number: u128) -> VolumeId {
        VolumeId(Uuid::from_u128(number))
    }

    fn trace(number: u128, name: &str, version: Option<u64>, what: &str) -> Trace {
        Trace { id: id(number), name: name.to_owned(), version, what: what.to_owned() }
    }

    #[test]
    fn a_missing_record_and_an_older_one_are_losses() {
        let traces = [
            trace(1, "", None, "r2 runs on node b"),
            trace(1, "web", Some(3), "its record"),
            trace(2, "db", Some(9), "its record"),
            trace(2, "db", Some(12), "r1 here"),
            trace(3, "ok", Some(5), "its record"),
        ];
        let there = BTreeMap::from([(id(2), 7), (id(3), 5)]);
        let before = BTreeMap::from([(id(1), 3), (id(2), 9), (id(3), 5)]);
        let lost = losses(&traces, &there, Some(&before));
        let told: Vec<_> = lost.iter().map(|loss| (loss.name.as_str(), loss.what.as_str())).collect();
        assert_eq!(told, [("db", "its record goes back from version 12 to 7"), ("web", "it has no record")]);
        assert_eq!(lost[1].known_by, ["r2 runs on node b", "its record"]);
    }

    #[test]
    fn data_of_a_volume_that_was_deleted_before_is_no_loss() {
        let traces = [trace(1, "old", Some(3), "r1 here")];
        let there = BTreeMap::new();
        assert_eq!(losses(&traces, &there, Some(&BTreeMap::new())), []);
        let unsure = losses(&traces, &there, None);
        assert!(unsure[0].what.contains("unless it was deleted"), "{unsure:?}");
    }
}
