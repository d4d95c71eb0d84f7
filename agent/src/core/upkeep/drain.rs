//! What a node still has that others need, and whether it may be restarted.

use std::collections::BTreeMap;

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeName};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{Intent, ReplicaSpec, VolumeRecord};

use super::{Fleet, is_live, members};
use crate::core::instance::InstanceName;
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

/// What instances answered just now.
#[derive(Debug)]
pub struct Answers<'a> {
    /// The node that they run on: that of the agent that asks.
    pub here: &'a NodeName,
    /// Of each that was asked: its status, or why there is none.
    pub by: BTreeMap<InstanceName, Result<pb::InstanceStatus, String>>,
}

/// The instances on `here` whose word decides whether `node` may be restarted. What others do is known from what their
/// agents publish.
#[must_use]
pub fn instances_to_ask(node: &NodeName, here: &NodeName, records: &Records) -> Vec<InstanceName> {
    let mut asked = Vec::new();
    for record in records.readable().filter(|record| record.spec.intent == Intent::Keep) {
        let Some(attach) = &record.spec.attach else { continue };
        if !record.placed().any(|spec| spec.node == *node) {
            continue;
        }
        if attach.node == *here {
            asked.push(InstanceName::engine(&record.name));
        }
        let others = record.spec.replicas.iter().filter(|spec| spec.node == *here && spec.node != *node);
        asked.extend(others.map(|spec| InstanceName::replica(&record.name, spec.id)));
    }
    asked
}

/// Why a node must not be restarted now: each volume with a part here that would not be healthy enough without it, or
/// of which that is not known. Empty: it may be.
#[must_use]
pub fn unsafe_to_reboot(
    node: &NodeName,
    records: &Records,
    fleet: &Fleet,
    answers: &Answers<'_>,
) -> Vec<Left> {
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
            let sick = sick.map(|spec| format!("{} on node {} is not healthy", spec.id, spec.node));
            sick.or_else(|| doubted(node, record, answers))
        };
        let say = |reason| Left { volume: record.name.to_string(), replica: Some(here.id), reason };
        against.extend(reason.map(say));
    }
    against
}

/// What instances here answered against a volume's being healthy without `node`.
fn doubted(node: &NodeName, record: &VolumeRecord, answers: &Answers<'_>) -> Option<String> {
    let others: Vec<_> = record.spec.replicas.iter().filter(|spec| spec.node != *node).collect();
    let silent = |name: &InstanceName, why: &str| {
        format!(
            "{name} on node {} does not answer now, and what it said before does not count: {why}",
            answers.here
        )
    };
    let engine = InstanceName::engine(&record.name);
    match answers.by.get(&engine) {
        Some(Err(why)) => return Some(silent(&engine, why)),
        Some(Ok(status)) => {
            let told = status.engine.as_ref().map_or(&[][..], |engine| &engine.replicas);
            let member = |spec: &ReplicaSpec| told.iter().any(|r| r.id == spec.id.0 && r.mode == "member");
            if let Some(spec) = others.iter().find(|spec| !member(spec)) {
                return Some(format!(
                    "{engine} says now that {} on node {} is no member",
                    spec.id, spec.node
                ));
            }
        }
        // It is elsewhere, and its agent publishes what it says.
        None => {}
    }
    others.iter().find_map(|spec| {
        let name = InstanceName::replica(&record.name, spec.id);
        match answers.by.get(&name)? {
            Err(why) => Some(silent(&name, why)),
            Ok(status) => {
                let mode = status.replica.as_ref().map_or("nothing", |replica| replica.mode.as_str());
                (mode != "open").then(|| format!("{name} says now that its data is {mode}"))
            }
        }
    })
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
