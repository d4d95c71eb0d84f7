//! Making a volume again of data that is still on this node: nothing is overwritten, and what does not agree is left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_proto::ids::VolumeId;
use holdfast_proto::pb::agent as pb;
use uuid::Uuid;

use super::shared::{Shared, blocking};
use super::volumes::{IO_MODE_DEFAULT, info, new_key};
use crate::core::undelete::{self, Remains};
use crate::error::Error;
use crate::process::proc;
use crate::registry::{Entry, Read};
use crate::store::replica_dirs::{self, FoundDir};

/// A directory that may be a part of it.
struct Part {
    volume: VolumeId,
    remains: Remains,
    /// Where it is to be, which is where it is unless it is in the trash.
    place: PathBuf,
    /// Its name in the trash.
    trashed: Option<String>,
}

impl Part {
    fn of(found: &FoundDir, place: PathBuf, trashed: Option<String>) -> Option<Self> {
        let label = found.label.as_ref().ok()?;
        let there = FoundDir { path: place.clone(), ..found.clone() };
        // A directory that a person copied is not taken for the replica.
        if !there.is_in_place() {
            return None;
        }
        let remains = Remains {
            volume_name: label.volume_name.clone(),
            replica: label.replica,
            size_bytes: label.size_bytes,
            lineage: label.lineage,
            view: label.view,
            configured: label.configured,
            promised: label.promised,
            sound: found.image_fits() && !label.syncing && label.failed.is_empty(),
        };
        Some(Self { volume: label.volume, remains, place, trashed })
    }
}

/// Makes the volume of this name or id again.
pub(super) async fn undelete(
    shared: &Arc<Shared>,
    request: &pb::UndeleteVolumeRequest,
) -> Result<pb::VolumeInfo, Error> {
    let told = |why: String| format!("undelete volume {}: {why}", request.name);
    let by_id = request.name.parse::<Uuid>().ok().map(VolumeId);
    let parts = parts(shared, request.from_trash).await?;
    let named =
        |part: &Part| by_id.map_or(part.remains.volume_name.as_str() == request.name, |id| part.volume == id);
    let volumes: BTreeSet<VolumeId> =
        parts.iter().filter(|part| named(part)).map(|part| part.volume).collect();
    let mut ids = volumes.iter().copied();
    let (Some(id), None) = (ids.next(), ids.next()) else {
        let all: Vec<_> = volumes.iter().map(ToString::to_string).collect();
        return Err(match all.is_empty() {
            true => Error::not_found(told(
                "no data of it is there; `holdfast replica ls` lists what is, and --from-trash looks in the trash, too"
                    .to_owned(),
            )),
            false => Error::conflict(told(format!("there were several; give one of the ids {}", all.join(", ")))),
        });
    };
    let of_it = |part: &Part| part.volume == id;
    let name = parts.iter().find(|part| of_it(part)).map(|part| part.remains.volume_name.clone());
    let name = name.ok_or_else(|| Error::not_found(told("no data of it is there".to_owned())))?;
    let _turn = shared.begin(name.as_str(), "undelete").await?;
    // What was there before its turn came may be gone by now.
    let mut parts = self::parts(shared, request.from_trash).await?;
    parts.retain(of_it);
    for entry in shared.registry.list().await? {
        match entry {
            Entry::Readable(record) if record.id == id => {
                return Err(Error::conflict(told(format!("it is there, as {}", record.name))));
            }
            Entry::Readable(record) if record.name == name => {
                let why =
                    format!("another volume has the name {name} by now ({}); delete that first", record.id);
                return Err(Error::conflict(told(why)));
            }
            Entry::Unreadable { name, reason } => {
                return Err(Error::refused(told(format!("the record of {name} may be its own: {reason}"))));
            }
            Entry::Readable(_) => {}
        }
    }
    let remains: Vec<_> = parts.iter().map(|part| part.remains.clone()).collect();
    let incarnation = shared.registry.incarnation();
    let record = undelete::record(id, &shared.config.node, incarnation, IO_MODE_DEFAULT, &remains)
        .map_err(|why| Error::refused(told(why)))?;
    let used: Vec<_> = parts
        .iter()
        .filter(|part| {
            let same = part.remains.lineage == record.status.lineage;
            same && record.status.configured.contains(part.remains.replica)
        })
        .map(|part| (part.place.clone(), part.trashed.clone()))
        .collect();
    let trash = shared.trash.clone();
    let operation = told(String::new());
    blocking(move || {
        for (place, trashed) in used {
            match trashed {
                Some(name) => drop(trash.restore(&name)?),
                None if matches!(proc::probe(&place.join("lock"))?, proc::Life::Held) => {
                    let why = format!("{operation}a process holds {}", place.join("lock").display());
                    return Err(Error::refused(format!("{why}; `holdfast orphan ls` lists it")));
                }
                None => {}
            }
        }
        Ok(())
    })
    .await?;
    match shared.registry.key(id).await? {
        Read::Found(_) => {}
        // The purge removed it. No file on disk depends on it: the agent tells replicas the one in the registry.
        Read::Absent => shared.registry.put_key(id, new_key()?).await?,
        Read::Unreadable(reason) => return Err(Error::failed(told(format!("its key: {reason}")))),
    }
    shared.registry.create(record).await?;
    tracing::info!(volume = %name, %id, "made again of data that was still there");
    shared.reconcile().await?;
    info("undelete", &name, shared.volume(name.as_str()))
}

async fn parts(shared: &Arc<Shared>, from_trash: bool) -> Result<Vec<Part>, Error> {
    let (replicas, trash, now) = (shared.data.replicas(), shared.trash.clone(), shared.now());
    blocking(move || {
        let found = replica_dirs::scan(&replicas)?;
        let here = found.iter().filter_map(|found| Part::of(found, found.path.clone(), None));
        let mut parts: Vec<_> = here.collect();
        if from_trash {
            let waiting = trash.waiting(now)?;
            parts.extend(waiting.into_iter().filter_map(|waiting| {
                let found = replica_dirs::found(&waiting.step.to);
                Part::of(&found, waiting.step.from, Some(waiting.name))
            }));
        }
        Ok(parts)
    })
    .await
}
