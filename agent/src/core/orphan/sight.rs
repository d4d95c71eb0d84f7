//! What the node runs and keeps, looked at as things that somebody may or may not claim.

use holdfast_proto::ids::{Epoch, Generation, Lineage, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::pb::instance::EngineStatus;
use holdfast_proto::record::VolumeRecord;

use super::{BUSY_WITHIN, Class, Sighting, Standing, Subject};
use crate::core::claims::{self, Claim};
use crate::core::instance::{Instance, InstanceName, Kind, State};
use crate::core::reconcile::World;
use crate::core::records::Lookup;

/// A replica directory on this node that has a readable label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its own name.
    pub directory: String,
    /// As its label says.
    pub volume_name: VolumeName,
    /// As its label says.
    pub volume: VolumeId,
    /// As its label says.
    pub replica: ReplicaId,
    /// The history its data belongs to.
    pub lineage: Lineage,
    /// Of the last view it was told of.
    pub order: (Generation, Epoch),
    /// Whether it is a member of that view, holds everything, and has never failed.
    pub whole: bool,
    /// Whether it is where its volume's record looks for it. A directory that was copied or renamed by hand is not.
    pub in_place: bool,
    /// Whether a person has marked it to be kept.
    pub marked: bool,
    /// Whether an operator is changing its volume at this moment: directories are made before the record that wants
    /// them.
    pub changing: bool,
}

/// Every instance that exists. One whose process has ended is nothing that could be an orphan.
#[must_use]
pub fn instances(world: World<'_>) -> Vec<Sighting> {
    let living = world.instances.iter().filter(|(_, instance)| !instance.is_down());
    living.map(|(name, instance)| of_instance(world, name, instance)).collect()
}

fn of_instance(world: World<'_>, name: &InstanceName, instance: &Instance) -> Sighting {
    let (uuid, volume) = (instance.uuid(), instance.volume_id());
    let claim = claims::of_instance(world, name, uuid, volume);
    let (claim, reason) = match instance.state() {
        // What cannot be asked may be anything, but for what a record says of it.
        State::Unknown(reason) if claim != Claim::Claimed => (Claim::Unknown, reason.clone()),
        _ => (claim, reason(world, claim, name, volume)),
    };
    let standing = match instance.state() {
        State::Running | State::Unknown(_) => {
            instance.in_use(BUSY_WITHIN, world.now).map_or(Standing::Idle, Standing::Busy)
        }
        State::Pending | State::Starting | State::Stopping | State::Down { .. } => Standing::Exempt,
    };
    let subject = Subject { class: Class::Instance, name: name.to_string(), uuid: uuid.0 };
    Sighting { subject, claim, reason, standing }
}

/// Every replica directory whose label can be read. One whose label cannot is never an orphan: nobody knows whose it is.
#[must_use]
pub fn data(world: World<'_>, copies: &[Copy]) -> Vec<Sighting> {
    copies.iter().map(|copy| of_copy(world, copies, copy)).collect()
}

fn of_copy(world: World<'_>, copies: &[Copy], copy: &Copy) -> Sighting {
    let name = copy.volume_name.as_str();
    let (claim, reason) = match claims::of_directory(
        world.records,
        world.foreign,
        world.node,
        &copy.volume_name,
        copy.volume,
        copy.replica,
    ) {
        Claim::Unclaimed if copy.changing => (Claim::Unknown, format!("volume {name} is being changed")),
        claim => {
            let instance = InstanceName::replica(&copy.volume_name, copy.replica);
            (claim, reason(world, claim, &instance, copy.volume))
        }
    };
    // Nobody asks it of what has an owner, which is nearly all of a node.
    let standing = if claim == Claim::Claimed { Standing::Idle } else { standing(world, copies, copy) };
    let subject = Subject { class: Class::ReplicaData, name: copy.directory.clone(), uuid: copy.volume.0 };
    Sighting { subject, claim, reason, standing }
}

fn standing(world: World<'_>, copies: &[Copy], copy: &Copy) -> Standing {
    match (user(world, copy), world.records.by_id(copy.volume)) {
        (Some(user), _) => Standing::Busy(format!("{user} uses it")),
        (None, _) if copy.marked => Standing::Kept("it is marked to be kept".to_owned()),
        (None, None) => Standing::Kept("its volume has no record, so it may be the last copy".to_owned()),
        (None, Some(record)) => others_are_healthy(world, record, copies, copy)
            .err()
            .map_or(Standing::Idle, |why| Standing::Kept(format!("it may be the last copy: {why}"))),
    }
}

/// Whether the volume is known to do without this copy, which is not among `copies` any more.
///
/// # Errors
/// Why that is not known: then it is put back.
pub fn is_spared(world: World<'_>, copies: &[Copy], copy: &Copy) -> Result<(), String> {
    let record = world.records.by_id(copy.volume).ok_or("its volume has no record")?;
    others_are_healthy(world, record, copies, copy)
}

/// A process that has the directory open, or may have.
fn user(world: World<'_>, copy: &Copy) -> Option<InstanceName> {
    let running = world.instances.iter().find(|(name, instance)| {
        let kind = name.kind() == Kind::Replica(copy.replica);
        // Of one whose spawn record cannot be read, nobody knows which volume it is of.
        let of = [copy.volume, VolumeId::nil()].contains(&instance.volume_id());
        kind && of && !instance.is_down()
    });
    running.map(|(name, _)| name.clone())
}

/// Whether the volume is known to do without this copy: it was taken out of it, and another is a healthy member.
///
/// # Errors
/// Why that is not known.
fn others_are_healthy(
    world: World<'_>,
    record: &VolumeRecord,
    copies: &[Copy],
    copy: &Copy,
) -> Result<(), String> {
    // Replicas never change their node: the node has another name than before, or this is a copy of another's disk.
    if let Some(spec) = record.placed().find(|spec| spec.id == copy.replica && spec.node != *world.node) {
        return Err(format!(
            "the record of volume {} has {} on node {}; was this node renamed, or its disk cloned?",
            record.name, copy.replica, spec.node
        ));
    }
    if !record.was_removed(copy.replica) {
        return Err(format!("the record of volume {} never had {}", record.name, copy.replica));
    }
    if record.status.incarnation != world.incarnation {
        return Err(format!("the registry was restored since volume {} was last attached", record.name));
    }
    if copy.lineage != record.status.lineage {
        return Err(format!("it belongs to another history of volume {} than its record", record.name));
    }
    if copy.order > newest_order(world, record) {
        return Err(format!("it is newer than the record of volume {}", record.name));
    }
    let healthy = match engine_of(world, record) {
        Some(told) => told.replicas.iter().any(|seen| {
            seen.mode == "member" && stays_member(record, ReplicaId(seen.id)) && seen.id != copy.replica.0
        }),
        // No engine serves it: what lies here must itself show that nothing newer is elsewhere, which only a clean end does.
        None if record.spec.attach.is_none() && record.status.clean => {
            copies.iter().any(|found| found.replica != copy.replica && vouches(world, record, found))
        }
        None => false,
    };
    if healthy { Ok(()) } else { Err(format!("no other of volume {} is seen to be healthy", record.name)) }
}

/// Whether the record wants this replica, and counts it as a member. One on its way out is none that another may be
/// given up for.
fn stays_member(record: &VolumeRecord, id: ReplicaId) -> bool {
    record.status.view.members.contains(id) && record.spec.replicas.iter().any(|spec| spec.id == id)
}

/// Whether another copy may be given up for this one: it is claimed by the record, on this node and at its place, and
/// whole as of the newest view that the record has.
fn vouches(world: World<'_>, record: &VolumeRecord, copy: &Copy) -> bool {
    let claimed = record.spec.replicas.iter().any(|spec| spec.id == copy.replica && spec.node == *world.node);
    copy.volume == record.id
        && copy.volume_name == record.name
        && claimed
        && copy.in_place
        && !copy.changing
        && copy.whole
        && copy.lineage == record.status.lineage
        && copy.order >= record.status.view.order()
        && record.status.view.members.contains(copy.replica)
}

/// What the volume's own engine says, where it runs here and serves.
fn engine_of<'a>(world: World<'a>, record: &VolumeRecord) -> Option<&'a EngineStatus> {
    let name = InstanceName::engine(&record.name);
    let engine = world.instances.get(&name)?;
    let ours = claims::of_instance(world, &name, engine.uuid(), engine.volume_id()) == Claim::Claimed;
    let serves = *engine.state() == State::Running && engine.volume_id() == record.id;
    let told = engine.engine_status().filter(|_| ours && serves)?;
    let halted = told.fenced || ["suspended", "faulted"].contains(&told.state.as_str());
    let stale = order_of(told) < record.status.view.order();
    (!halted && !stale).then_some(told)
}

fn order_of(told: &EngineStatus) -> (Generation, Epoch) {
    (Generation(told.generation), Epoch(told.epoch))
}

/// The newest view that is known of: the record's, or that of the engine.
fn newest_order(world: World<'_>, record: &VolumeRecord) -> (Generation, Epoch) {
    let told = engine_of(world, record).map(order_of);
    told.into_iter().chain([record.status.view.order()]).max().unwrap_or_default()
}

fn reason(world: World<'_>, claim: Claim, instance: &InstanceName, volume: VolumeId) -> String {
    let name = instance.volume().as_str();
    match (claim, world.records.lookup(name)) {
        (Claim::Unknown, Lookup::Absent | Lookup::Found(_))
            if let Some(why) = world.foreign.doubt(instance) =>
        {
            format!("whether another claims it cannot be known: {why}")
        }
        (Claim::Unknown, Lookup::Unknown(why)) => {
            format!("the record of volume {name} cannot be read: {why}")
        }
        (Claim::Unknown, Lookup::Absent | Lookup::Found(_)) if volume == VolumeId::nil() => {
            "its spawn record cannot be read".to_owned()
        }
        (Claim::Unknown, Lookup::Absent | Lookup::Found(_)) => {
            format!("the record of volume {name} is changing")
        }
        (_, Lookup::Found(record)) if record.id != volume => {
            format!("volume {name} is another one by now: {}", record.id)
        }
        (Claim::Claimed, _) => format!("volume {name} claims it"),
        (Claim::Unclaimed, Lookup::Found(_)) => format!("volume {name} does not want it on this node"),
        (Claim::Unclaimed, Lookup::Absent | Lookup::Unknown(_)) => {
            format!("there is no record of volume {name}")
        }
    }
}
