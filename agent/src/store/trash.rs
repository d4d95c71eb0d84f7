//! Deleting data on an intent, in steps that each can be repeated.
//!
//! First the exact list of moves is persisted in `<data>/trash/<volume-id>@<generation>.json`; then each listed path
//! is renamed into the trash; after the trash time to live, what the list names is unlinked, then the list itself.
//! What no list names is never touched, whatever it is called.

mod waiting;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::{Generation, VolumeId};
use holdfast_proto::unknown::Unknown;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::atomic::{self, Read};
use super::replica_dirs;
use crate::error::Error;

pub use waiting::Waiting;

const TRASH_SCHEMA: u32 = 1;

/// One directory on its way into the trash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Where it was.
    pub from: PathBuf,
    /// Where it waits.
    pub to: PathBuf,
    #[serde(flatten)]
    unknown: Unknown,
}

impl Move {
    fn new(from: PathBuf, to: PathBuf) -> Self {
        Self { from, to, unknown: Unknown::default() }
    }
}

/// Everything that one intent deletes on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashList {
    schema: u32,
    /// The volume whose data it is.
    pub volume_id: VolumeId,
    /// When, in seconds of the wall clock since 1970.
    pub at_unix_s: u64,
    /// Exactly these.
    pub moves: Vec<Move>,
    #[serde(flatten)]
    unknown: Unknown,
}

impl TrashList {
    fn new(volume_id: VolumeId, at_unix_s: u64, moves: Vec<Move>) -> Self {
        Self { schema: TRASH_SCHEMA, volume_id, at_unix_s, moves, unknown: Unknown::default() }
    }
}

/// The trash of a data directory.
#[derive(Debug, Clone)]
pub struct Trash {
    trash: PathBuf,
    replicas: PathBuf,
    // Held over each change: what one puts back another must not unlink.
    changing: Arc<Mutex<()>>,
}

impl Trash {
    /// The trash in `trash` for what lives in `replicas`, on the same file system.
    #[must_use]
    pub fn new(trash: PathBuf, replicas: PathBuf) -> Self {
        Self { trash, replicas, changing: Arc::default() }
    }

    fn list_path(&self, volume: VolumeId, generation: Generation) -> PathBuf {
        self.trash.join(format!("{volume}@{generation}.json"))
    }

    /// Moves the volume's replica directories, found by their labels, into the trash; repeating it completes it.
    ///
    /// # Errors
    /// When the file system refuses, or an earlier list cannot be read: then nothing further is moved.
    pub fn purge(
        &self,
        volume: VolumeId,
        generation: Generation,
        now_unix_s: u64,
    ) -> Result<TrashList, Error> {
        let _changing = self.changing.lock();
        self.carry_out(&self.list_path(volume, generation), volume, || self.plan(volume, now_unix_s))
    }

    /// Persists the list, unless it is there, and does what it says.
    fn carry_out(
        &self,
        path: &Path,
        volume: VolumeId,
        plan: impl FnOnce() -> Result<TrashList, Error>,
    ) -> Result<TrashList, Error> {
        let list = match atomic::read_json::<TrashList>(path, TRASH_SCHEMA) {
            Read::Found(list) if list.volume_id == volume => list,
            Read::Found(list) => {
                return Err(Error::refused(format!(
                    "purge volume {volume}: {} lists volume {}",
                    path.display(),
                    list.volume_id
                )));
            }
            Read::Absent => {
                let list = plan()?;
                atomic::replace_json(path, &list)?;
                list
            }
            Read::Unreadable(reason) => {
                let why = atomic::with_remedy(path, TRASH_SCHEMA, reason, "remove that file");
                return Err(Error::refused(format!("purge volume {volume}: {why}")));
            }
        };
        for step in &list.moves {
            move_once(step)?;
        }
        atomic::sync_dir(&self.replicas)?;
        atomic::sync_dir(&self.trash)?;
        Ok(list)
    }

    /// Where the data that this intent moved waits.
    #[must_use]
    pub fn moved(&self, volume: VolumeId, generation: Generation) -> Vec<PathBuf> {
        match atomic::read_json::<TrashList>(&self.list_path(volume, generation), TRASH_SCHEMA) {
            Read::Found(list) => list.moves.into_iter().map(|step| step.to).collect(),
            Read::Absent | Read::Unreadable(_) => Vec::new(),
        }
    }

    fn plan(&self, volume: VolumeId, at_unix_s: u64) -> Result<TrashList, Error> {
        let moves = replica_dirs::scan(&self.replicas)?
            .into_iter()
            .filter(|dir| !dir.marked && dir.label.as_ref().is_ok_and(|label| label.volume == volume))
            .filter_map(|dir| {
                let name = dir.path.file_name()?.to_string_lossy().into_owned();
                Some(Move::new(dir.path.clone(), self.trash.join(format!("{at_unix_s}-{name}"))))
            })
            .collect();
        Ok(TrashList::new(volume, at_unix_s, moves))
    }

    /// Unlinks what has waited for `ttl`. Returns what went.
    ///
    /// # Errors
    /// When the file system refuses; what is left is tried again at the next call.
    pub fn sweep(&self, ttl: Duration, now_unix_s: u64) -> Result<Vec<PathBuf>, Error> {
        let _changing = self.changing.lock();
        self.unlink(ttl, now_unix_s)
    }

    fn unlink(&self, ttl: Duration, now_unix_s: u64) -> Result<Vec<PathBuf>, Error> {
        let mut gone = Vec::new();
        for entry in std::fs::read_dir(&self.trash).map_err(Error::io("read", &self.trash))? {
            let path = entry.map_err(Error::io("read", &self.trash))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let Read::Found(list) = atomic::read_json::<TrashList>(&path, TRASH_SCHEMA) else { continue };
            if list.at_unix_s.saturating_add(ttl.as_secs()) >= now_unix_s || self.is_foreign(&list) {
                continue;
            }
            // Not yet moved (the purge was interrupted): it completes first, and its time starts with its list.
            if list.moves.iter().any(|step| step.from.exists() && !step.to.exists()) {
                continue;
            }
            for step in &list.moves {
                remove_tree(&step.to)?;
                gone.push(step.to.clone());
            }
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        if !gone.is_empty() {
            atomic::sync_dir(&self.trash)?;
        }
        Ok(gone)
    }

    /// A list that names anything outside the trash was not written by us for this place.
    fn is_foreign(&self, list: &TrashList) -> bool {
        list.moves.iter().any(|step| {
            // `..` has a parent but no file name.
            step.to.parent() != Some(self.trash.as_path()) || step.to.file_name().is_none()
        })
    }
}

fn move_once(step: &Move) -> Result<(), Error> {
    match (step.from.exists(), step.to.exists()) {
        (true, false) => {
            std::fs::rename(&step.from, &step.to).map_err(Error::io("move to trash", &step.from))?;
            // Said where it is done: a purge that waits for other nodes carries its list out again and again.
            tracing::info!(from = %step.from.display(), to = %step.to.display(), "to the trash");
            Ok(())
        }
        // Moved by an earlier attempt, or gone since the list was made: nothing to do either way.
        (false, _) => Ok(()),
        (true, true) => Err(Error::refused(format!(
            "move {} to trash: {} is already there",
            step.from.display(),
            step.to.display()
        ))),
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;
    use holdfast_proto::ids::ReplicaId;
    use holdfast_proto::record::VolumeRecord;

    pub(super) struct Fixture {
        pub(super) tmp: tempfile::TempDir,
        pub(super) trash: Trash,
        pub(super) record: VolumeRecord,
    }

    pub(super) fn fixture() -> Fixture {
        let tmp = tempfile::tempdir().unwrap();
        let (trash, replicas) = (tmp.path().join("trash"), tmp.path().join("replicas"));
        std::fs::create_dir(&trash).unwrap();
        std::fs::create_dir(&replicas).unwrap();
        let record = record("demo", "node-a", 2);
        for spec in &record.spec.replicas {
            let path = replica_dirs::replica_path(&replicas, &record.name, spec.id, record.id);
            replica_dirs::create(&path, &spec.node, spec.id, &record).unwrap();
        }
        Fixture { tmp, trash: Trash::new(trash, replicas), record }
    }

    pub(super) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn d4_the_same_intent_many_times_is_one_deletion() {
        let f = fixture();
        let first = f.trash.purge(f.record.id, Generation(3), 1000).unwrap();
        assert_eq!(first.moves.len(), 2);
        for later in 1001..1011 {
            assert_eq!(f.trash.purge(f.record.id, Generation(3), later).unwrap(), first);
        }
        assert!(names(&f.tmp.path().join("replicas")).is_empty());
        assert_eq!(names(&f.tmp.path().join("trash")).len(), 3, "two directories and the list");
    }

    #[test]
    fn d4_a_crash_between_two_renames_is_completed() {
        let f = fixture();
        let list = f.trash.plan(f.record.id, 1000).unwrap();
        atomic::replace_json(&f.trash.list_path(f.record.id, Generation(3)), &list).unwrap();
        move_once(&list.moves[0]).unwrap();
        assert_eq!(f.trash.purge(f.record.id, Generation(3), 2000).unwrap(), list);
        assert!(names(&f.tmp.path().join("replicas")).is_empty());
    }

    #[test]
    fn d5_d6_data_is_found_by_label_and_only_what_is_listed_goes() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let odd = replicas.join("moved-by-hand");
        std::fs::rename(
            replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(1), f.record.id),
            &odd,
        )
        .unwrap();
        let other = record("demo", "node-a", 1);
        let kept = replica_dirs::replica_path(&replicas, &other.name, ReplicaId(1), other.id);
        replica_dirs::create(&kept, &"node-a".parse().unwrap(), ReplicaId(1), &other).unwrap();
        let foreign = f.tmp.path().join("trash/1-not-ours");
        std::fs::create_dir(&foreign).unwrap();

        let list = f.trash.purge(f.record.id, Generation(0), 1000).unwrap();
        assert!(list.moves.iter().any(|m| m.from == odd));
        assert!(kept.is_dir(), "another volume of the same name");
        let ttl = Duration::from_secs(24 * 3600);
        assert!(f.trash.sweep(ttl, 1000 + 24 * 3600).unwrap().is_empty(), "its time is not over");
        assert_eq!(f.trash.sweep(ttl, 1001 + 24 * 3600).unwrap().len(), 2);
        assert!(f.trash.sweep(ttl, u64::MAX).unwrap().is_empty());
        assert_eq!(names(&f.tmp.path().join("trash")), ["1-not-ours"], "no list names it");
    }

    #[test]
    fn d3_a_mark_in_the_directory_beats_the_intent() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let kept = replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(1), f.record.id);
        std::fs::write(kept.join(replica_dirs::KEEP), b"").unwrap();
        assert_eq!(f.trash.purge(f.record.id, Generation(3), 1000).unwrap().moves.len(), 1);
        assert_eq!(names(&replicas), [kept.file_name().unwrap().to_str().unwrap()]);
        assert!(f.trash.take(&names(&replicas)[0], f.record.id, 1000).is_err());
    }

    #[test]
    fn a_damaged_list_stops_the_purge_and_the_sweep() {
        let f = fixture();
        let path = f.trash.list_path(f.record.id, Generation(3));
        std::fs::write(&path, b"{").unwrap();
        assert!(f.trash.purge(f.record.id, Generation(3), 1000).is_err());
        assert_eq!(names(&f.tmp.path().join("replicas")).len(), 2);
        assert!(f.trash.sweep(Duration::ZERO, u64::MAX).unwrap().is_empty());
        assert!(path.exists());
    }

    #[test]
    fn a_list_that_points_outside_removes_nothing() {
        let f = fixture();
        let mut list = f.trash.plan(f.record.id, 1).unwrap();
        let victim = f.tmp.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        list.moves = vec![Move::new(f.tmp.path().join("gone"), victim.clone())];
        atomic::replace_json(&f.trash.list_path(f.record.id, Generation(1)), &list).unwrap();
        assert!(f.trash.sweep(Duration::ZERO, u64::MAX).unwrap().is_empty());
        assert!(victim.is_dir());
    }
}
