//! What a node still has that others need, and whether it may be restarted.

use std::collections::BTreeMap;

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeName};
use holdfast_proto::record::{Intent, ReplicaSpec, VolumeRecord};

use super::{Fleet, is_live, members};
use crate::core::records::Records;

/// Something of a volume that is on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The volume's name; `*`: any.
    pub volume: String,
    /// Its replica here; none: its engine, or the whole of a volume that nothing is known of.
    pub replica: Option<ReplicaId>,
    /// What is to be done, or waited for.
    pub reason: String,
}

/// What is left on a node that is being drained. `stuck` is what [`super::plan`] found.
#[must_use]
pub fn left_on(
    node: &NodeName,
    records: &Records,
    fleet: &Fleet,
    stuck: &BTreeMap<(VolumeName, ReplicaId), String>,
) -> Vec<Left> {
    let mut left = unknown(records);
    for record in records.readable() {
        left.extend(engine_on(node, record));
        for spec in record.placed().filter(|spec| spec.node == *node) {
            let wanted = record.spec.replicas.iter().any(|wanted| wanted.id == spec.id);
            let last = !record.spec.replicas.iter().any(|r| r.id != spec.id && is_healthy(record, r, fleet));
            let reason = match stuck.get(&(record.name.clone(), spec.id)) {
                _ if !wanted => "its successor is being filled".to_owned(),
                Some(why) if last => format!("the last healthy copy of the volume: {why}"),
                Some(why) => why.clone(),
                None => "it is about to be replaced".to_owned(),
            };
            left.push(Left { volume: record.name.to_string(), replica: Some(spec.id), reason });
        }
    }
    left
}

/// Why a node must not be restarted now: each volume with a part here that would not be healthy enough without it.
/// Empty: it may be.
#[must_use]
pub fn unsafe_to_reboot(node: &NodeName, records: &Records, fleet: &Fleet) -> Vec<Left> {
    let mut against = unknown(records);
    for record in records.readable().filter(|record| record.spec.intent == Intent::Keep) {
        against.extend(engine_on(node, record));
        let Some(here) = record.placed().find(|spec| spec.node == *node) else { continue };
        let mut others = record.spec.replicas.iter().filter(|spec| spec.node != *node).peekable();
        let reason = if others.peek().is_none() {
            Some("no other node has a copy".to_owned())
        } else if record.spec.attach.is_none() && !record.status.clean {
            // The record may not have the newest view.
            Some(
                "its engine did not end cleanly, and which copies are whole is not certain; attach it"
                    .to_owned(),
            )
        } else {
            let sick = others.find(|spec| !is_healthy(record, spec, fleet));
            sick.map(|spec| format!("{} on node {} is not healthy", spec.id, spec.node))
        };
        let say = |reason| Left { volume: record.name.to_string(), replica: Some(here.id), reason };
        against.extend(reason.map(say));
    }
    against
}

fn engine_on(node: &NodeName, record: &VolumeRecord) -> Option<Left> {
    let here = record.spec.attach.as_ref().is_some_and(|attach| attach.node == *node);
    here.then(|| Left {
        volume: record.name.to_string(),
        replica: None,
        reason: "it is attached here; detach it, or attach it elsewhere".to_owned(),
    })
}

/// Volumes that may have a part anywhere.
fn unknown(records: &Records) -> Vec<Left> {
    let left = |volume: &str, reason| Left { volume: volume.to_owned(), replica: None, reason };
    match records {
        Records::Unavailable(why) => vec![left("*", format!("the registry cannot be read: {why}"))],
        Records::Known(_) => {
            let unreadable = records.unreadable();
            unreadable.map(|(name, why)| left(name, format!("its record cannot be read: {why}"))).collect()
        }
    }
}

/// Whether this copy can be relied on: a member, as its engine says, whose node says the same. While a volume is detached
/// nothing runs of it: a member whose directory is there.
fn is_healthy(record: &VolumeRecord, spec: &ReplicaSpec, fleet: &Fleet) -> bool {
    let there = fleet.get(&spec.node).and_then(|sight| sight.directories.get(&(record.id, spec.id)));
    let (Some(healthy), true) = (there, is_live(fleet, &spec.node)) else { return false };
    match record.spec.attach {
        None => record.status.view.members.contains(spec.id),
        Some(_) => *healthy && members(record, fleet).is_some_and(|members| members.contains(spec.id)),
    }
}
