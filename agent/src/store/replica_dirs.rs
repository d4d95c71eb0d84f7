//! The replica directories of this node: where they are, what their labels say, and making them with their volume.
//!
//! A directory is made once, here, while its volume is being created or a replica is added to it. Nothing ever makes one
//! again: one that is missing later is absent, and another replica, with an id of its own, takes its place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_dataplane::layout::{
    Meta, allocated_bytes, create_replica_dir, label_file, making_path, read_label, remove_unfinished,
};
use holdfast_proto::ids::{BootId, Generation, InstanceUuid, NodeName, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::record::VolumeRecord;
use parking_lot::Mutex;

use super::atomic;
use super::remembered::Remembered;
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

impl FoundDir {
    /// Whether its image is there, a file of its own and of the size that the label says. Blocking.
    #[must_use]
    pub fn image_fits(&self) -> bool {
        let image = self.path.join("head.img").symlink_metadata();
        let fits = |label: &Meta| image.is_ok_and(|m| m.is_file() && m.len() == label.size_bytes);
        self.label.as_ref().is_ok_and(fits)
    }

    /// Whether it is where a record of its volume looks for it.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let place = |label: &Meta| {
            let parent = self.path.parent().unwrap_or(Path::new("/"));
            replica_path(parent, &label.volume_name, label.replica, label.volume) == self.path
        };
        self.label.as_ref().is_ok_and(place)
    }

    /// What its image occupies. Blocking.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.label.as_ref().map_or(0, |_| allocated_bytes(&self.path))
    }
}

/// Every replica directory below `replicas`, each label read now.
///
/// # Errors
/// When it cannot be listed completely.
pub fn scan(replicas: &Path) -> Result<Vec<FoundDir>, Error> {
    list(replicas, label)
}

/// One directory, its label read now.
#[must_use]
pub fn found(path: &Path) -> FoundDir {
    FoundDir { label: label(path), path: path.to_owned(), marked: is_marked(path) }
}

/// Only what is certainly not there is no mark.
fn is_marked(path: &Path) -> bool {
    !atomic::is_gone(&path.join(KEEP))
}

fn list(replicas: &Path, label: impl Fn(&Path) -> Result<Meta, String>) -> Result<Vec<FoundDir>, Error> {
    let mut found = Vec::new();
    for path in directories(replicas)? {
        let marked = is_marked(&path);
        found.push(FoundDir { label: label(&path), path, marked });
    }
    found.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Ok(found)
}

fn directories(replicas: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(replicas).map_err(Error::io("read", replicas))? {
        let entry = entry.map_err(Error::io("read", replicas))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("read", replicas))?);
        let is_dir = kind.is_dir() || kind.is_symlink() && path.is_dir();
        // What waits to be unlinked there, and what belongs to the file system.
        let aside = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b".") || name == "lost+found");
        // A directory still being made was never a replica, and its maker may be at work.
        if is_dir && !aside && path.extension().is_none_or(|e| e != "making") {
            found.push(path);
        }
    }
    Ok(found)
}

fn label(path: &Path) -> Result<Meta, String> {
    read_label(path).map_err(|error| error.to_string())
}

/// Labels as they were read last, for looking whether anything has changed. What deletes reads them: [`scan`].
#[derive(Debug, Default)]
pub struct Labels(Remembered<Arc<Meta>>);

impl Labels {
    /// As [`scan`], but only labels that may have changed are read. Blocking.
    ///
    /// # Errors
    /// When it cannot be listed completely.
    pub fn scan(&self, replicas: &Path) -> Result<Vec<FoundDir>, Error> {
        let found = list(replicas, |path| self.label(path).map(Arc::unwrap_or_clone))?;
        let files: Vec<_> = found.iter().map(|dir| label_file(&dir.path)).collect();
        self.0.retain(files.iter().map(|file| file.as_os_str()));
        Ok(found)
    }

    /// Grows whenever a label turns out to be new, another, or gone.
    pub fn changes(&self) -> u64 {
        self.0.changes()
    }

    /// Whether a scan would certainly find the directories and labels that were there when [`Self::changes`] was this;
    /// not whether somebody has put the mark [`KEEP`] into one. Blocking.
    ///
    /// # Errors
    /// When they cannot be listed completely.
    pub fn are_as_of(&self, changes: u64, replicas: &Path) -> Result<bool, Error> {
        let files: Vec<_> = directories(replicas)?.iter().map(|path| label_file(path)).collect();
        Ok(self.0.are(files.iter().map(|file| file.as_os_str())) && self.0.changes() == changes)
    }

    /// As [`check`], but only a label that may have changed is read. Blocking.
    ///
    /// # Errors
    /// The reason why the directory counts as absent.
    pub fn check(&self, path: &Path, replica: ReplicaId, id: VolumeId) -> Result<(), String> {
        self.label(path).map_or_else(|_| check(path, replica, id), |meta| is_of(path, &meta, replica, id))
    }

    fn label(&self, path: &Path) -> Result<Arc<Meta>, String> {
        self.0.read(&label_file(path), || label(path).map(Arc::new))
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
        basis: record.status.view.members.contains(replica).then(|| record.status.view.stamp(0)),
        settled: None,
        dirty: Vec::new(),
        unknown: Vec::new(),
    };
    let _making = Making::begin(path);
    create_replica_dir(path, &meta).map_err(Error::from)
}

/// The directories that this agent is making at this moment; no other makes any in its data directory.
static MAKING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

struct Making(PathBuf);

impl Making {
    fn begin(path: &Path) -> Self {
        let making = making_path(path);
        MAKING.lock().insert(making.clone());
        Self(making)
    }
}
impl Drop for Making {
    fn drop(&mut self) {
        MAKING.lock().remove(&self.0);
    }
}

/// Removes what agents left that ended while they made a directory: it was never a replica, and holds no data.
pub fn clear_unfinished(replicas: &Path) {
    let Ok(entries) = std::fs::read_dir(replicas) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_unfinished(path)) {
        // Held while it is removed, so that none is begun there meanwhile.
        let making = MAKING.lock();
        if making.contains(&path) {
            continue;
        }
        match remove_unfinished(&path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "removed what was left of a creation that failed")
            }
            Err(error) => tracing::debug!(path = %path.display(), %error, "what is left of a creation stays"),
        }
    }
}

/// Only a name that this agent gives, and only with what it puts there.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".making"));
    let parts: Option<Vec<_>> = name.map(|name| name.rsplitn(3, '.').collect());
    let ours = |id: &str, replica: &str, volume: &str| {
        let hex = id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit());
        hex && replica.parse::<ReplicaId>().is_ok() && volume.parse::<VolumeName>().is_ok()
    };
    matches!(parts.as_deref(), Some([id, replica, volume]) if ours(id, replica, volume)) && !path.is_symlink()
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
    is_of(path, &label(path)?, replica, id)
}

fn is_of(path: &Path, meta: &Meta, replica: ReplicaId, id: VolumeId) -> Result<(), String> {
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
    atomic::is_gone(path) && path.parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use holdfast_dataplane::layout::ReplicaDir;

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

    #[test]
    fn what_a_failed_making_left_is_removed_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        let making = tmp.path().join("demo.r1.0123abcd.making");
        let mut there =
            vec![tmp.path().join("notes.making"), tmp.path().join("a.r1.0123abcd"), making.clone()];
        // Ours by name, with something in it that this agent never puts there.
        there.push(tmp.path().join("demo.r2.0123abcd.making"));
        for path in &there {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("meta"), "half").unwrap();
        }
        std::fs::write(there[3].join("thesis.odt"), "theirs").unwrap();
        let busy = Making::begin(&tmp.path().join("demo.r1.0123abcd"));
        clear_unfinished(tmp.path());
        assert!(there.iter().all(|path| path.is_dir()), "its maker is at work");
        drop(busy);
        clear_unfinished(tmp.path());
        assert!(!making.exists());
        assert!(there.iter().filter(|path| **path != making).all(|path| path.is_dir()));
        assert!(there[3].join("thesis.odt").exists());
    }

    #[test]
    fn an_unchanged_label_is_not_read_again_and_a_changed_one_is() {
        let tmp = tempfile::tempdir().unwrap();
        let (node, record) = ("node-a".parse().unwrap(), record("demo", "node-a", 2));
        let path = |id| replica_path(tmp.path(), &record.name, ReplicaId(id), record.id);
        for id in [1, 2] {
            create(&path(id), &node, ReplicaId(id), &record).unwrap();
        }
        let labels = Labels::default();
        labels.0.let_settle();
        let scanned = || {
            let found = labels.scan(tmp.path()).unwrap().into_iter();
            found.map(|dir| dir.label.ok().map(|meta| meta.promised.0)).collect::<Vec<_>>()
        };
        let checked = |id| labels.check(&path(id), ReplicaId(id), record.id);
        for _ in 0..3 {
            assert_eq!(scanned(), [Some(0), Some(0)]);
            assert_eq!((checked(1), checked(2)), (Ok(()), Ok(())));
        }
        assert_eq!(labels.0.reads(), 2, "each once");
        let then = std::cell::Cell::new(labels.changes());
        let same = || {
            let same = labels.are_as_of(then.get(), tmp.path()).unwrap();
            then.set(labels.changes());
            same
        };
        assert!(same());

        // As a replica does it: the spare is written, and the names are exchanged.
        let mut open = ReplicaDir::open(&path(1)).unwrap();
        open.store(Meta { promised: Generation(7), ..open.meta().clone() }).unwrap();
        assert!(!same());
        for _ in 0..2 {
            assert_eq!(scanned(), [Some(7), Some(0)]);
        }
        assert!(!same(), "somebody has read it meanwhile, and it is another than then");
        assert!(same());
        assert_eq!(labels.0.reads(), 3, "the one that changed");

        std::fs::create_dir(tmp.path().join("another")).unwrap();
        assert!(!same());
        std::fs::remove_dir(tmp.path().join("another")).unwrap();
        assert!(same());

        std::fs::remove_file(path(2).join("meta")).unwrap();
        assert!(!same());
        assert_eq!(scanned(), [Some(7), None]);
        assert!(checked(2).unwrap_err().contains("missing"));
        std::fs::remove_dir_all(path(1)).unwrap();
        assert!(checked(1).unwrap_err().contains("is the disk mounted?"));
        std::fs::write(path(2).join("meta"), "not a label").unwrap();
        assert!(checked(2).is_err());
        assert_eq!(scanned(), [None]);
    }
}
