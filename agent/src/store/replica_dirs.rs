//! The replica directories of this node: where they are, what their labels say, and making them with their volume.
//!
//! A directory is made once, here, while its volume is being created or a replica is added to it. Nothing ever makes one
//! again: one that is missing later is absent, and another replica, with an id of its own, takes its place.

use std::path::{Path, PathBuf};

use holdfast_dataplane::layout::{Meta, create_replica_dir, read_label};
use holdfast_proto::ids::{BootId, Generation, InstanceUuid, NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::record::VolumeRecord;

use super::atomic;
use crate::error::Error;

/// A file of this name in a replica directory beats every intent to delete it.
pub const KEEP: &str = "keep";

/// A replica directory on disk.
#[derive(Debug, Clone)]
pub struct FoundDir {
    /// Where it is.
    pub path: PathBuf,
    /// What its `meta` says; an error is "unknown", never "nobody's".
    pub label: Result<Meta, String>,
    /// What its image occupies.
    pub allocated_bytes: u64,
    /// Whether a person has put the mark [`KEEP`] into it: then it is never deleted, whatever a record says.
    pub marked: bool,
}

/// Where a replica lives: the volume's name for people, the start of its id so that a name given again to another
/// volume never meets the old one's data.
#[must_use]
pub fn replica_path(replicas: &Path, volume: &VolumeName, replica: ReplicaId, id: VolumeId) -> PathBuf {
    let id = id.0.simple().to_string();
    replicas.join(format!("{volume}.{replica}.{}", id.get(..8).unwrap_or(&id)))
}

/// Every replica directory below `replicas`.
///
/// # Errors
/// When it cannot be listed completely.
pub fn scan(replicas: &Path) -> Result<Vec<FoundDir>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(replicas).map_err(Error::io("read", replicas))? {
        let path = entry.map_err(Error::io("read", replicas))?.path();
        // A directory still being made was never a replica, and its maker may be at work.
        if path.is_dir() && path.extension().is_none_or(|e| e != "making") {
            found.push(look(path));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn look(path: PathBuf) -> FoundDir {
    // Only what is certainly not there is no mark.
    let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let marked = !path.join(KEEP).symlink_metadata().is_err_and(gone);
    match read_label(&path) {
        Ok((meta, allocated_bytes)) => FoundDir { path, label: Ok(meta), allocated_bytes, marked },
        Err(error) => FoundDir { path, label: Err(error.to_string()), allocated_bytes: 0, marked },
    }
}

/// Makes the directory of one replica of a volume that is being created.
///
/// # Errors
/// When it exists, or the disk refuses.
pub fn create(path: &Path, node: &NodeName, replica: ReplicaId, record: &VolumeRecord) -> Result<(), Error> {
    make(path, node, replica, record, false)
}

/// Makes the directory of a replica that joins a volume: it holds nothing, and is no source before it was filled.
///
/// # Errors
/// When it exists, or the disk refuses.
pub fn create_to_be_filled(
    path: &Path,
    node: &NodeName,
    replica: ReplicaId,
    record: &VolumeRecord,
) -> Result<(), Error> {
    make(path, node, replica, record, true)
}

fn make(
    path: &Path,
    node: &NodeName,
    replica: ReplicaId,
    record: &VolumeRecord,
    syncing: bool,
) -> Result<(), Error> {
    let meta = Meta {
        node: node.clone(),
        volume: record.id,
        volume_name: record.name.clone(),
        replica,
        size_bytes: record.spec.size_bytes,
        lineage: record.status.lineage,
        promised: Generation(0),
        promised_to: InstanceUuid::nil(),
        view: record.status.view,
        configured: record.status.configured,
        incarnation: record.status.incarnation,
        revision: record.version,
        syncing,
        boot: BootId::nil(),
        unflushed: false,
        cache_lost: false,
        failed: String::new(),
        // One that is made for a volume that has data already lacks all of it.
        basis: record.status.view.members.contains(replica).then(|| record.status.view.order()),
        dirty: Vec::new(),
    };
    create_replica_dir(path, &meta).map_err(Error::from)
}

/// Takes back directories that a failed creation has just made: they never held data and no record names them.
pub fn undo_create(paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = std::fs::remove_dir_all(path) {
            tracing::warn!(path = %path.display(), %error, "a directory of a failed creation stays behind");
        }
    }
    if let Some(parent) = paths.first().and_then(|path| path.parent()) {
        // Best effort: what reappears after a crash is listed as unclaimed.
        let _ = atomic::sync_dir(parent);
    }
}

/// Whether the replica's directory is there, and its own.
///
/// # Errors
/// The reason why it counts as absent.
pub fn check(path: &Path, replica: ReplicaId, id: VolumeId) -> Result<(), String> {
    if !path.is_dir() {
        return Err(format!("the replica directory {} is missing: is the disk mounted?", path.display()));
    }
    let meta = read_label(path).map_err(|e| e.to_string())?.0;
    if meta.volume == id && meta.replica == replica {
        Ok(())
    } else {
        Err(format!(
            "{}: expected {replica} of volume {id}, found {} of volume {}",
            path.display(),
            meta.replica,
            meta.volume
        ))
    }
}

/// Whether nothing at all is at `path`, in a place where there could be: a disk that is not mounted is no answer.
#[must_use]
pub fn is_missing(path: &Path) -> bool {
    let nothing = path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    nothing && path.parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;

    #[test]
    fn a_directory_carries_its_label_and_a_missing_one_is_absent() {
        let tmp = tempfile::tempdir().unwrap();
        let record = record("demo", "node-a", 2);
        let r1 = replica_path(tmp.path(), &record.name, ReplicaId(1), record.id);
        let r2 = replica_path(tmp.path(), &record.name, ReplicaId(2), record.id);
        create(&r1, &"node-a".parse().unwrap(), ReplicaId(1), &record).unwrap();
        assert_eq!(check(&r1, ReplicaId(1), record.id), Ok(()));
        assert!(check(&r2, ReplicaId(2), record.id).unwrap_err().contains("is the disk mounted?"));
        std::fs::rename(&r1, &r2).unwrap();
        assert!(check(&r2, ReplicaId(2), record.id).unwrap_err().contains("expected r2"));
        assert!(create(&r2, &"node-a".parse().unwrap(), ReplicaId(2), &record).is_err(), "never made again");
    }

    #[test]
    fn the_scan_lists_all_and_tells_the_unreadable() {
        let tmp = tempfile::tempdir().unwrap();
        let record = record("demo", "node-a", 1);
        let r1 = replica_path(tmp.path(), &record.name, ReplicaId(1), record.id);
        create(&r1, &"node-a".parse().unwrap(), ReplicaId(1), &record).unwrap();
        std::fs::create_dir(tmp.path().join("other.r1.00000000")).unwrap();
        std::fs::create_dir(tmp.path().join("new.r1.00000000.making")).unwrap();
        let found = scan(tmp.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].label.as_ref().unwrap().volume, record.id);
        assert!(found[1].label.is_err());
        assert!(scan(&tmp.path().join("gone")).is_err(), "a place that cannot be read is not an empty one");
    }
}
