//! Which replicas have to move to other nodes: those of nodes that are gone for long or forgotten, and those of nodes
//! that are being drained. A pure function from records and what is known of nodes to wishes, of which each is then
//! written by compare-and-swap on its record; so two agents that do this at once do no harm, and records are the only
//! truth.
//!
//! Nothing here ends or deletes anything: a replica that moves leaves its volume only once its successor is a member,
//! and its data stays where it is until somebody says otherwise.

mod choose;
mod drain;
mod fleet;
mod forget;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::record::{Intent, ReplicaSet, ReplicaSpec, VolumeRecord, VolumeStatus};

pub use choose::{DiskReserve, choose};
pub use drain::{Answers, Left, instances_to_ask, left_on, unsafe_to_reboot};
pub use fleet::{fleet, on_duty};
pub use forget::{names, to_forget};

use super::records::Records;

/// Wishes of one pass: a fleet that loses much at once moves it piece by piece, and sees between them what returned.
pub const MOVES_AT_ONCE: usize = 8;

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its agent holds its lease.
    Live,
    /// Complete answers of the registry had no lease of it, for at least so long.
    Gone(Duration),
    /// A person said that it does not come back.
    Forgotten,
}

/// A node, as the registry tells of it.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Whether it is there.
    pub standing: Standing,
    /// Takes no new replicas, and gives its own away.
    pub draining: bool,
    /// What new replicas may take of the disk under its replicas, as last published: without its [`DiskReserve`].
    pub room_bytes: u64,
    /// Its replica directories, by label: whether each runs, and is a member that nothing is known against.
    pub directories: BTreeMap<(VolumeId, ReplicaId), bool>,
    /// The engines that serve there: the replicas that hold everything, as each says.
    pub engines: BTreeMap<VolumeId, ReplicaSet>,
}

/// All nodes that the registry knows of.
pub type Fleet = BTreeMap<NodeName, Sight>;

/// A replica that is to be replaced by one on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The volume.
    pub volume: VolumeName,
    /// Its identity.
    pub id: VolumeId,
    /// The one that goes.
    pub replica: ReplicaId,
    /// Where it is.
    pub from: NodeName,
    /// Where its successor is to be.
    pub to: NodeName,
    /// Why.
    pub cause: Cause,
}

/// What one pass finds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upkeep {
    /// To be wished for now.
    pub moves: Vec<Move>,
    /// What ought to move and cannot, by volume and replica: why.
    pub stuck: BTreeMap<(VolumeName, ReplicaId), String>,
}

/// What there is to move now. `wait` is how long a node may be gone before its replicas are placed elsewhere.
#[must_use]
pub fn plan(records: &Records, fleet: &Fleet, wait: Duration) -> Upkeep {
    let mut upkeep = Upkeep::default();
    let mut load = replicas_by_node(records);
    let lost = too_many_gone(fleet);
    for record in records.readable().filter(|record| record.spec.intent == Intent::Keep) {
        for spec in &record.spec.replicas {
            let Some(cause) = cause(fleet, spec, wait) else { continue };
            let stuck = |why: String| ((record.name.clone(), spec.id), why);
            if let Some(why) = lost.as_ref().filter(|_| cause == Cause::Gone) {
                upkeep.stuck.extend([stuck(why.clone())]);
                continue;
            }
            if let Some(why) = not_now(record, spec, fleet, cause) {
                upkeep.stuck.extend([stuck(why)]);
                continue;
            }
            match choose(record, fleet, &load) {
                Ok(to) if upkeep.moves.len() < MOVES_AT_ONCE => {
                    *load.entry(to.clone()).or_default() += 1;
                    upkeep.moves.push(Move {
                        volume: record.name.clone(),
                        id: record.id,
                        replica: spec.id,
                        from: spec.node.clone(),
                        to,
                        cause,
                    });
                    // The next one of this volume once the record says what became of this.
                    break;
                }
                Ok(_) => {}
                Err(why) => upkeep.stuck.extend([stuck(why)]),
            }
        }
    }
    upkeep
}

/// Whether a move that was planned is one still, by the record as it is now.
#[must_use]
pub fn is_due(record: &VolumeRecord, fleet: &Fleet, wait: Duration, wanted: &Move) -> bool {
    let here = |spec: &&ReplicaSpec| spec.id == wanted.replica && spec.node == wanted.from;
    let free = !nodes_of(record).contains(&wanted.to);
    let same = record.id == wanted.id && record.spec.intent == Intent::Keep;
    let Some(spec) = record.spec.replicas.iter().find(here).filter(|_| same && free) else { return false };
    cause(fleet, spec, wait).is_some_and(|cause| not_now(record, spec, fleet, cause).is_none())
}

/// Why a replica has to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its node's agent has been silent for too long.
    Gone,
    /// Its node does not come back.
    Forgotten,
    /// Its node is being drained.
    Draining,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "its node is gone",
            Self::Forgotten => "its node was forgotten",
            Self::Draining => "its node is being drained",
        })
    }
}

fn cause(fleet: &Fleet, spec: &ReplicaSpec, wait: Duration) -> Option<Cause> {
    // Of a node that the registry has never heard of nobody knows that it is gone.
    let sight = fleet.get(&spec.node)?;
    match sight.standing {
        Standing::Forgotten => Some(Cause::Forgotten),
        Standing::Gone(since) if since >= wait => Some(Cause::Gone),
        Standing::Gone(_) => None,
        Standing::Live => sight.draining.then_some(Cause::Draining),
    }
}

/// Where most nodes are gone, it is more likely that the registry cannot be reached from there.
fn too_many_gone(fleet: &Fleet) -> Option<String> {
    let known = fleet.values().filter(|sight| sight.standing != Standing::Forgotten).count();
    let gone = fleet.values().filter(|sight| matches!(sight.standing, Standing::Gone(_))).count();
    (gone * 2 > known).then(|| {
        format!(
            "{gone} of {known} nodes are gone, which looks like a network that is cut; forget those that do not return"
        )
    })
}

/// Why this replica does not move in this pass, though it ought to.
fn not_now(record: &VolumeRecord, spec: &ReplicaSpec, fleet: &Fleet, cause: Cause) -> Option<String> {
    let VolumeStatus { configured, view, .. } = &record.status;
    let arriving = record.spec.replicas.iter().any(|r| r.id != spec.id && !configured.contains(r.id));
    let goes = |r: &ReplicaSpec| configured.contains(r.id) && !spec.replaces.contains(r.id);
    if arriving || record.spec.leaving.iter().any(goes) {
        return Some("another replica of the volume is being replaced".to_owned());
    }
    let others = record.spec.replicas.iter().filter(|other| other.id != spec.id);
    let members = members(record, fleet).unwrap_or(view.members);
    let last = members.contains(spec.id) && !others.clone().any(|other| members.contains(other.id));
    if last && cause != Cause::Draining {
        return Some(format!(
            "{} is the last copy that is known to be whole; its node has to come back",
            spec.id
        ));
    }
    if cause != Cause::Draining {
        return None;
    }
    // A copy that is there is not given up for one that nobody fills.
    match &record.spec.attach {
        None => Some("the volume is detached, and a replica is filled only while it is attached".to_owned()),
        Some(attach) if !is_live(fleet, &attach.node) => {
            Some(format!("the engine's node {} is not there to fill it", attach.node))
        }
        Some(_) => None,
    }
}

/// The replicas that hold everything, as the volume's engine says; none: it is not known to serve.
fn members(record: &VolumeRecord, fleet: &Fleet) -> Option<ReplicaSet> {
    let there = fleet.get(&record.spec.attach.as_ref()?.node)?;
    there.engines.get(&record.id).copied()
}

fn is_live(fleet: &Fleet, node: &NodeName) -> bool {
    fleet.get(node).is_some_and(|sight| sight.standing == Standing::Live)
}

/// How many replicas records place on each node.
fn replicas_by_node(records: &Records) -> BTreeMap<NodeName, usize> {
    let mut load = BTreeMap::new();
    for record in records.readable() {
        for spec in record.placed() {
            *load.entry(spec.node.clone()).or_default() += 1;
        }
    }
    load
}

/// The nodes that have a copy of this volume, or will.
fn nodes_of(record: &VolumeRecord) -> BTreeSet<&NodeName> {
    record.placed().map(|spec| &spec.node).collect()
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
