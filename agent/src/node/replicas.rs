//! Which replicas a volume is to have: adding, removing and replacing them. What is wanted is written into the record;
//! the volume's engine carries it out, one replica at a time, now or when the volume is next attached.

use std::sync::Arc;

use holdfast_proto::ids::{InstanceUuid, NodeName, ReplicaId, VolumeName};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::record::{Intent, REPLICAS_MAX, ReplicaSet, ReplicaSpec, VolumeRecord};

use super::shared::{Shared, blocking};
use super::volumes::{change, info, name_of, read};
use super::{nodes, roles};
use crate::core::placement::{forget_left, unwant, want};
use crate::error::Error;
use crate::registry::Read;
use crate::store::replica_dirs;

const ADD: &str = "add a replica to";
const REMOVE: &str = "remove a replica of";
const REPLACE: &str = "replace a replica of";

/// Wants one more replica.
pub(super) async fn add(
    shared: &Arc<Shared>,
    request: &pb::AddReplicaRequest,
) -> Result<pb::VolumeInfo, Error> {
    let name = name_of(ADD, &request.volume)?;
    let operation = format!("{ADD} volume {name}");
    let node = nodes::named(shared, &operation, &request.node)?;
    nodes::require_takes(shared, &operation, [&node]).await?;
    let turn = shared.begin(name.as_str(), ADD).await?;
    shared.reconcile().await?;
    let record = read(shared, ADD, &name).await?;
    make_and_want(shared, ADD, &record, None, &node).await?;
    shared.reconcile().await?;
    drop(turn);
    info(ADD, &name, shared.volume(name.as_str()))
}

/// Wants a new replica in the place of one, which serves until the new one does.
pub(super) async fn replace(
    shared: &Arc<Shared>,
    request: &pb::ReplaceReplicaRequest,
) -> Result<pb::VolumeInfo, Error> {
    let name = name_of(REPLACE, &request.volume)?;
    let turn = shared.begin(name.as_str(), REPLACE).await?;
    shared.reconcile().await?;
    let record = read(shared, REPLACE, &name).await?;
    let old = find(REPLACE, &record, &request.replica)?;
    let operation = format!("{REPLACE} volume {name}");
    let node = match request.node.as_str() {
        "" => old.node.clone(),
        named => nodes::named(shared, &operation, named)?,
    };
    nodes::require_takes(shared, &operation, [&node]).await?;
    if members(shared, &name).is_empty() {
        return Err(Error::refused(format!(
            "{REPLACE} volume {name}: no replica is known to hold the data now, so there is nothing to fill a new one \
             from; where the others are lost for good: `holdfast volume attach {name} --force-from rN`"
        )));
    }
    make_and_want(shared, REPLACE, &record, Some(old.id), &node).await?;
    shared.reconcile().await?;
    drop(turn);
    info(REPLACE, &name, shared.volume(name.as_str()))
}

/// Wants a replica no more. Its data stays where it is.
pub(super) async fn remove(
    shared: &Arc<Shared>,
    request: &pb::RemoveReplicaRequest,
) -> Result<pb::VolumeInfo, Error> {
    let name = name_of(REMOVE, &request.volume)?;
    let turn = shared.begin(name.as_str(), REMOVE).await?;
    shared.reconcile().await?;
    let members = members(shared, &name);
    change(shared, REMOVE, &name, |record| {
        let id = find(REMOVE, record, &request.replica)?.id;
        let refused = |why: String| Error::refused(format!("{REMOVE} volume {name}: {why}"));
        if record.spec.replicas.len() == 1 {
            return Err(refused(format!("{id} is the only one")));
        }
        let mut others = record.spec.replicas.iter().filter(|spec| spec.id != id);
        if !others.any(|spec| members.contains(spec.id)) {
            return Err(refused(format!(
                "{id} may be the last healthy copy: no other replica is known to hold the data now"
            )));
        }
        record.spec.next_replica_id = record.fresh_replica_id().0;
        forget_left(record);
        unwant(record, id);
        Ok(true)
    })
    .await?;
    tracing::info!(volume = %name, replica = request.replica, "not wanted any more");
    shared.reconcile().await?;
    drop(turn);
    info(REMOVE, &name, shared.volume(name.as_str()))
}

/// The replicas that hold the data, as far as is known: what the engine says, or at rest the newest view.
fn members(shared: &Shared, name: &VolumeName) -> ReplicaSet {
    let volume = shared.volume(name.as_str());
    let replicas = volume.iter().flat_map(|volume| &volume.replicas);
    replicas
        .filter(|replica| replica.mode == "member")
        .filter_map(|replica| replica.id.parse().ok())
        .collect()
}

/// A wanted replica, by the name that a person gave.
fn find<'a>(operation: &str, record: &'a VolumeRecord, replica: &str) -> Result<&'a ReplicaSpec, Error> {
    let told = |why: String| format!("{operation} volume {}: {why}", record.name);
    let id: ReplicaId = replica.parse().map_err(|e| Error::invalid(told(format!("{e}"))))?;
    if record.spec.intent != Intent::Keep {
        return Err(Error::conflict(told("it is being deleted".to_owned())));
    }
    if let Some(spec) = record.spec.replicas.iter().find(|spec| spec.id == id) {
        return Ok(spec);
    }
    if record.placed().any(|spec| spec.id == id) {
        return Err(Error::conflict(told(format!("{id} is being removed already"))));
    }
    let there: ReplicaSet = record.spec.replicas.iter().map(|spec| spec.id).collect();
    Err(Error::not_found(told(no_such(record, id, there))))
}

/// That `id` is none of `there`, and what to do.
pub(super) fn no_such(record: &VolumeRecord, id: ReplicaId, there: ReplicaSet) -> String {
    format!(
        "there is no {id}, only {there}; give one of these: `holdfast volume show {}` says what each of them is",
        record.name
    )
}

/// Whether the record has room for one more replica, in the place of `replaces` or beside all; asked of exactly the
/// record that is then written.
fn check_room(operation: &str, record: &VolumeRecord, replaces: Option<ReplicaId>) -> Result<(), Error> {
    let name = &record.name;
    if record.spec.intent != Intent::Keep {
        return Err(Error::conflict(format!("{operation} volume {name}: it is being deleted")));
    }
    if let Some(old) = replaces {
        find(operation, record, &old.to_string())?;
    } else if record.spec.replicas.len() >= REPLICAS_MAX {
        return Err(Error::refused(format!(
            "{operation} volume {name}: it has {REPLICAS_MAX} replicas, the most that a volume can have"
        )));
    }
    let placed = record.placed().count();
    if placed >= ReplicaSet::CAPACITY {
        return Err(Error::conflict(format!(
            "{operation} volume {name}: {placed} replicas are in use until those that are being removed have gone; \
             try again then"
        )));
    }
    Ok(())
}

/// Wants a new replica on `node`. This node makes its directory first; another one when it sees the record.
async fn make_and_want(
    shared: &Arc<Shared>,
    operation: &str,
    record: &VolumeRecord,
    replaces: Option<ReplicaId>,
    node: &NodeName,
) -> Result<(), Error> {
    check_room(operation, record, replaces)?;
    let name = record.name.clone();
    if *node != shared.config.node {
        want_there(shared, operation, &name, replaces, node, |_| true).await?;
        tracing::info!(volume = %name, %node, ?replaces, "a replica is wanted there");
        return Ok(());
    }
    let id = make_directory(shared, record).await?;
    let wanted = change(shared, operation, &name, |record| {
        check_room(operation, record, replaces)?;
        if id < record.fresh_replica_id() {
            let why = format!("{operation} volume {name}: its replicas changed meanwhile; try again");
            return Err(Error::conflict(why));
        }
        forget_left(record);
        want(record, id, InstanceUuid::random(), node, replaces);
        Ok(true)
    });
    if let Err(error) = wanted.await {
        // Only when it is certain that no record names it here; otherwise it stays, listed as unclaimed.
        let known = match shared.registry.get(&name).await {
            Ok(Read::Found(record)) => record.placed().any(|spec| spec.id == id && spec.node == *node),
            Ok(Read::Absent) => false,
            Ok(Read::Unreadable(_)) | Err(_) => true,
        };
        if !known {
            let path = roles::data_dir(shared, record, id);
            let undo = blocking(move || {
                replica_dirs::undo_create(&[path]);
                Ok(())
            });
            let _ = undo.await;
        }
        return Err(error);
    }
    tracing::info!(volume = %name, replica = %id, ?replaces, "wanted");
    Ok(())
}

/// Wants a new replica on `node`, whose agent makes its directory when it sees the record. Returns which; none where the
/// record, as it is then, is not as `due` wants it.
pub(super) async fn want_there(
    shared: &Shared,
    operation: &str,
    name: &VolumeName,
    replaces: Option<ReplicaId>,
    node: &NodeName,
    due: impl Fn(&VolumeRecord) -> bool,
) -> Result<Option<ReplicaId>, Error> {
    let mut wanted = None;
    change(shared, operation, name, |record| {
        wanted = None;
        if !due(record) {
            return Ok(false);
        }
        check_room(operation, record, replaces)?;
        forget_left(record);
        let id = record.fresh_replica_id();
        want(record, id, InstanceUuid::random(), node, replaces);
        if let Some(spec) = record.spec.replicas.last_mut() {
            spec.to_make = true;
        }
        wanted = Some(id);
        Ok(true)
    })
    .await?;
    Ok(wanted)
}

/// The directory of a replica that nobody was yet.
async fn make_directory(shared: &Arc<Shared>, record: &VolumeRecord) -> Result<ReplicaId, Error> {
    let (shared, record) = (Arc::clone(shared), record.clone());
    blocking(move || {
        let mut id = record.fresh_replica_id();
        // One that an attempt left which did not get as far as the record is passed over: it is nobody's.
        while roles::data_dir(&shared, &record, id).exists() {
            id = ReplicaId(id.0 + 1);
        }
        let path = roles::data_dir(&shared, &record, id);
        shared.place.require()?;
        replica_dirs::create_to_be_filled(&path, &shared.config.node, id, &record)?;
        Ok(id)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::attached;

    #[test]
    fn who_is_meant_is_told_exactly() {
        let mut record = attached("demo", "node-a", 2);
        let kind =
            |record: &VolumeRecord, name| find(REMOVE, record, name).map(|s| s.id).map_err(|e| e.kind());
        use holdfast_proto::status::ErrorKind::{Conflict, Invalid, NotFound};
        assert_eq!(kind(&record, "r2"), Ok(ReplicaId(2)));
        assert_eq!(kind(&record, "r3").unwrap_err(), NotFound);
        let told = find(REMOVE, &record, "r3").unwrap_err().to_string();
        assert!(told.contains("only {r1,r2}") && told.contains("`holdfast volume show demo`"), "{told}");
        assert_eq!(kind(&record, "two").unwrap_err(), Invalid);
        unwant(&mut record, ReplicaId(2));
        assert_eq!(kind(&record, "r2").unwrap_err(), Conflict, "it is on its way out");
        record.spec.intent = Intent::Delete;
        assert_eq!(kind(&record, "r1").unwrap_err(), Conflict);
    }
}
