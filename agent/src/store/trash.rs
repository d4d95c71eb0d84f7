//! Deleting data on an intent, in steps that each can be repeated.
//!
//! First the exact list of moves is persisted in `<data>/trash/<volume-id>@<generation>.json`; then each listed path
//! is renamed into the trash; after the trash time to live, what the list names is unlinked, then the list itself.
//! What no list names is never touched, whatever it is called. The time to live counts as [`Waits`] does: between looks
//! of agents, whatever the wall clock says. What is on another file system waits there, see `rest`.

mod rest;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::{Generation, VolumeId};
use holdfast_proto::unknown::Unknown;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::atomic::{self, Read};
use super::replica_dirs;
use crate::core::Moment;
use crate::core::waits::{self, Waits};
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

/// When something is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When {
    /// By the wall clock, in seconds since 1970: for names, and for people to read.
    pub unix_s: u64,
    /// As times are counted.
    pub now: Moment,
}

/// Everything that one intent deletes on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashList {
    schema: u32,
    /// The volume whose data it is.
    pub volume_id: VolumeId,
    /// When, in seconds of the wall clock since 1970; nothing is decided by it.
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
    times: PathBuf,
    // Held over each change: what one puts back another must not unlink.
    changing: Arc<Mutex<()>>,
    // Never held over work on a disk, but for reading what an earlier agent saved.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// None: not read yet.
    waits: Option<Waits>,
    /// What could not be unlinked, and why, by directory.
    failed: BTreeMap<PathBuf, String>,
}

/// What became of a look through the trash.
#[derive(Debug, Default)]
pub struct Swept {
    /// What is unlinked.
    pub gone: Vec<PathBuf>,
    /// Why the rest of what was to go is still there; each once.
    pub failed: Vec<String>,
}

impl Trash {
    /// The trash in `trash` for what lives in `replicas`; `times` is the file that says for how long it has waited.
    #[must_use]
    pub fn new(trash: PathBuf, replicas: PathBuf, times: PathBuf) -> Self {
        Self { trash, replicas, times, changing: Arc::default(), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if state.waits.is_none() {
            let saved = match atomic::read_json::<waits::Saved>(&self.times, waits::SCHEMA) {
                Read::Found(saved) => Some(saved),
                Read::Absent => None,
                Read::Unreadable(reason) => {
                    tracing::warn!(reason, "how long the trash has waited is lost; its time begins anew");
                    None
                }
            };
            state.waits = Some(Waits::restore(saved));
        }
        state
    }

    fn save(&self, now: Moment) {
        let Some(saved) = self.state().waits.as_mut().and_then(|waits| waits.save(now)) else { return };
        if let Err(error) = atomic::replace_json(&self.times, &saved) {
            // It waits longer after a restart, and that is all.
            tracing::debug!(%error, "how long the trash has waited is not remembered");
            self.state().waits.iter_mut().for_each(Waits::not_saved);
        }
    }

    fn list_path(&self, volume: VolumeId, generation: Generation) -> PathBuf {
        self.trash.join(format!("{volume}@{generation}.json"))
    }

    /// Moves the volume's replica directories, found by their labels, into the trash; repeating it completes it. `wanted`
    /// is where the record has replicas on this node: what is there and cannot be looked into is not said to be gone.
    ///
    /// # Errors
    /// When the file system refuses, or an earlier list cannot be read: then nothing further is moved.
    pub fn purge(
        &self,
        volume: VolumeId,
        generation: Generation,
        wanted: &[PathBuf],
        at: When,
    ) -> Result<TrashList, Error> {
        let _changing = self.changing.lock();
        let path = self.list_path(volume, generation);
        self.carry_out(&path, volume, at, || self.plan(volume, wanted, at.unix_s))
    }

    /// Persists the list, unless it is there, and does what it says.
    fn carry_out(
        &self,
        path: &Path,
        volume: VolumeId,
        at: When,
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
                self.state().waits.iter_mut().for_each(|waits| waits.begin(&name_of(path), at.now));
                self.save(at.now);
                list
            }
            Read::Unreadable(reason) => {
                let why = atomic::with_remedy(path, TRASH_SCHEMA, reason, "remove that file");
                return Err(Error::refused(format!("purge volume {volume}: {why}")));
            }
        };
        for step in &list.moves {
            rest::move_once(step, &self.replicas)?;
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

    fn plan(&self, volume: VolumeId, wanted: &[PathBuf], at_unix_s: u64) -> Result<TrashList, Error> {
        let found = replica_dirs::scan(&self.replicas)?;
        for path in wanted {
            rest::require_known(path, found.iter().find(|dir| dir.path == *path))?;
        }
        let moves = found
            .into_iter()
            .filter(|dir| !dir.marked && dir.label.as_ref().is_ok_and(|label| label.volume == volume))
            // Where it leads to is listed itself.
            .filter(|dir| !rest::is_alias(&dir.path, &self.replicas))
            .filter_map(|dir| {
                let name = dir.path.file_name()?.to_string_lossy().into_owned();
                Some(Move::new(dir.path, self.free_name(at_unix_s, &name)))
            })
            .collect();
        Ok(TrashList::new(volume, at_unix_s, moves))
    }

    /// A name in the trash that nothing has: a wall clock that was set back may give a second twice.
    fn free_name(&self, at_unix_s: u64, name: &str) -> PathBuf {
        let mut to = (at_unix_s..).map(|at| self.trash.join(format!("{at}-{name}")));
        to.find(|to| to.symlink_metadata().is_err()).unwrap_or_else(|| self.trash.join(name))
    }

    /// Unlinks what has waited for more than `ttl`. Returns what went, and what did not and why.
    ///
    /// # Errors
    /// When the trash cannot be read; what is left is tried again at the next call.
    pub fn sweep(&self, ttl: Duration, now: Moment) -> Result<Swept, Error> {
        let _changing = self.changing.lock();
        let lists = self.lists()?;
        let mut failed = BTreeMap::new();
        let mut waits = BTreeSet::new();
        for (path, list) in &lists {
            // A move that was interrupted completes first; its time begins when all is there.
            let told = list.moves.iter().try_for_each(|step| rest::finish(step, &self.replicas));
            match told {
                Ok(()) if !list.moves.iter().any(rest::is_outside) => waits.extend([name_of(path)]),
                Ok(()) => {}
                Err(error) => failed.extend([(path.clone(), error.to_string())]),
            }
        }
        let over = self.state().waits.as_mut().map_or_else(BTreeSet::new, |known| {
            known.observe(&waits, now);
            known.over(ttl)
        });
        self.save(now);
        let going = lists.into_iter().filter(|(path, _)| over.contains(&name_of(path)));
        let mut swept = Swept::default();
        for (path, list) in going {
            self.unlink(&path, &list, &mut swept.gone, &mut failed)?;
        }
        let mut state = self.state();
        let new = |(path, why): &(&PathBuf, &String)| state.failed.get(*path) != Some(*why);
        swept.failed = failed.iter().filter(new).map(|(_, why)| why.clone()).collect();
        state.failed = failed;
        Ok(swept)
    }

    /// Unlinks what a list names, then the list, if nothing of it is left.
    fn unlink(
        &self,
        path: &Path,
        list: &TrashList,
        gone: &mut Vec<PathBuf>,
        failed: &mut BTreeMap<PathBuf, String>,
    ) -> Result<(), Error> {
        let mut left = false;
        for step in list.moves.iter().filter(|step| rest::is_there(&step.to)) {
            match rest::remove(step, list.volume_id) {
                Ok(()) => gone.push(step.to.clone()),
                Err(error) => {
                    left = true;
                    failed.insert(step.to.clone(), error.to_string());
                }
            }
        }
        if left {
            return Ok(());
        }
        std::fs::remove_file(path).map_err(Error::io("remove", path))?;
        atomic::sync_dir(&self.trash)
    }

    /// Every list that is ours and can be read.
    fn lists(&self) -> Result<Vec<(PathBuf, TrashList)>, Error> {
        let mut lists = Vec::new();
        for entry in std::fs::read_dir(&self.trash).map_err(Error::io("read", &self.trash))? {
            let path = entry.map_err(Error::io("read", &self.trash))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match atomic::read_json::<TrashList>(&path, TRASH_SCHEMA) {
                Read::Found(list) if !self.is_foreign(&list) => lists.push((path, list)),
                Read::Found(_) | Read::Absent | Read::Unreadable(_) => {}
            }
        }
        Ok(lists)
    }

    /// A list that names anything outside the trash was not written by us for this place.
    fn is_foreign(&self, list: &TrashList) -> bool {
        list.moves.iter().any(|step| {
            // `..` has a parent but no file name.
            step.to.parent() != Some(self.trash.as_path()) || step.to.file_name().is_none()
        })
    }
}

/// What a list is called.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
        let times = tmp.path().join("trash-times.json");
        Fixture { trash: Trash::new(trash, replicas, times), tmp, record }
    }

    /// At this second of both clocks.
    pub(super) fn at(second: u64) -> When {
        When { unix_s: second, now: Duration::from_secs(second) }
    }

    impl Fixture {
        pub(super) fn purge(&self, generation: u64, second: u64) -> Result<TrashList, Error> {
            self.trash.purge(self.record.id, Generation(generation), &[], at(second))
        }

        /// Sweeps once a minute, and at the end; what went.
        pub(super) fn pass(&self, ttl: u64, from: u64, to: u64) -> Vec<PathBuf> {
            let looks = (from..to).step_by(60).chain([to]);
            let sweep =
                |second| self.trash.sweep(Duration::from_secs(ttl), Duration::from_secs(second)).unwrap();
            looks.flat_map(|second| sweep(second).gone).collect()
        }
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
        let first = f.purge(3, 1000).unwrap();
        assert_eq!(first.moves.len(), 2);
        for later in 1001..1011 {
            assert_eq!(f.purge(3, later).unwrap(), first);
        }
        assert!(names(&f.tmp.path().join("replicas")).is_empty());
        assert_eq!(names(&f.tmp.path().join("trash")).len(), 3, "two directories and the list");
    }

    #[test]
    fn d4_a_crash_between_two_renames_is_completed() {
        let f = fixture();
        let list = f.trash.plan(f.record.id, &[], 1000).unwrap();
        atomic::replace_json(&f.trash.list_path(f.record.id, Generation(3)), &list).unwrap();
        rest::move_once(&list.moves[0], &f.tmp.path().join("replicas")).unwrap();
        assert_eq!(f.purge(3, 2000).unwrap(), list);
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

        let list = f.purge(0, 1000).unwrap();
        assert!(list.moves.iter().any(|m| m.from == odd));
        assert!(kept.is_dir(), "another volume of the same name");
        let ttl = 24 * 3600;
        assert!(f.pass(ttl, 1000, 1000 + ttl).is_empty(), "its time is not over");
        assert_eq!(f.pass(ttl, 1000 + ttl, 1001 + ttl).len(), 2);
        assert!(f.pass(ttl, 1001 + ttl, 2000 + ttl).is_empty());
        assert_eq!(names(&f.tmp.path().join("trash")), ["1-not-ours"], "no list names it");
    }

    #[test]
    fn d3_a_mark_in_the_directory_beats_the_intent() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let kept = replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(1), f.record.id);
        std::fs::write(kept.join(replica_dirs::KEEP), b"").unwrap();
        assert_eq!(f.purge(3, 1000).unwrap().moves.len(), 1);
        assert_eq!(names(&replicas), [kept.file_name().unwrap().to_str().unwrap()]);
        assert!(f.trash.take(&names(&replicas)[0], f.record.id, at(1000)).is_err());
    }

    #[test]
    fn a_damaged_list_stops_the_purge_and_the_sweep() {
        let f = fixture();
        let path = f.trash.list_path(f.record.id, Generation(3));
        std::fs::write(&path, b"{").unwrap();
        assert!(f.purge(3, 1000).is_err());
        assert_eq!(names(&f.tmp.path().join("replicas")).len(), 2);
        assert!(f.pass(0, 2000, 3000).is_empty());
        assert!(path.exists());
    }

    #[test]
    fn wall_clock_that_jumps_ends_no_time_early() {
        let f = fixture();
        let when = |unix_s, now| When { unix_s, now: Duration::from_secs(now) };
        let day = 24 * 3600;
        // Deleted while the clock was 400 days behind, which is then corrected; an hour later a disk is full.
        f.trash.purge(f.record.id, Generation(3), &[], when(1000, 50)).unwrap();
        assert!(f.pass(day, 60, 3600).is_empty());
        assert_eq!(f.trash.waiting(Duration::from_secs(3600)).unwrap()[0].waited, Duration::from_secs(3550));
        // Another agent, a year later, with a clock of its own.
        let again = Trash::new(f.trash.trash.clone(), f.trash.replicas.clone(), f.trash.times.clone());
        let sweep = |now| again.sweep(Duration::from_secs(day), Duration::from_secs(now)).unwrap().gone.len();
        let went = (0..day).step_by(60).map(|now| (now, sweep(now))).find(|(_, gone)| *gone > 0);
        let (at, gone) = went.unwrap();
        assert_eq!(gone, 2);
        assert!(
            (day - 3600..=day - 3480).contains(&at),
            "{at}: what was seen before counts, and nothing else"
        );
    }

    #[test]
    fn deletion_that_was_interrupted_has_its_whole_time() {
        let f = fixture();
        let list = f.trash.plan(f.record.id, &[], 1000).unwrap();
        atomic::replace_json(&f.trash.list_path(f.record.id, Generation(3)), &list).unwrap();
        assert!(f.pass(100, 1000, 5000).is_empty(), "it is not in the trash yet");
        f.purge(3, 5000).unwrap();
        assert!(f.pass(100, 5000, 5100).is_empty());
        assert_eq!(f.pass(100, 5100, 5200).len(), 2);
    }

    #[test]
    fn times_that_are_lost_begin_anew() {
        let f = fixture();
        f.purge(3, 0).unwrap();
        f.pass(1000, 0, 900);
        std::fs::write(&f.trash.times, b"{").unwrap();
        let again = Trash::new(f.trash.trash.clone(), f.trash.replicas.clone(), f.trash.times.clone());
        assert_eq!(again.waiting(Duration::ZERO).unwrap()[0].waited, Duration::ZERO);
    }

    #[test]
    fn linked_replica_goes_with_its_data_and_can_be_restored() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let (disk, path) = (
            f.tmp.path().join("disk2"),
            replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(1), f.record.id),
        );
        std::fs::create_dir(&disk).unwrap();
        let data = disk.join("data");
        std::fs::rename(&path, &data).unwrap();
        std::os::unix::fs::symlink("../disk2/data", &path).unwrap();
        for again in 0..2 {
            let list = f.purge(3 + again, 100 * again).unwrap();
            assert_eq!(list.moves.len(), 2);
            assert!(names(&replicas).is_empty() && data.join("head.img").exists());
            if again == 0 {
                for waiting in f.trash.waiting(Duration::ZERO).unwrap() {
                    f.trash.restore(&waiting.name).unwrap();
                }
                assert_eq!(replica_dirs::check(&path, ReplicaId(1), f.record.id), Ok(()));
            }
        }
        // While its disk is away nothing is said to be gone.
        let away = f.tmp.path().join("away");
        std::fs::rename(&disk, &away).unwrap();
        let swept = |from: u64| {
            (from..from + 600)
                .step_by(60)
                .map(|second| f.trash.sweep(Duration::from_secs(10), Duration::from_secs(second)).unwrap())
        };
        let told: Vec<_> = swept(100).collect();
        assert_eq!(told.iter().map(|swept| swept.gone.len()).sum::<usize>(), 1);
        let said: Vec<_> = told.into_iter().flat_map(|swept| swept.failed).collect();
        assert!(said.len() == 1 && said[0].contains("is the disk mounted?"), "once: {said:?}");
        let left = f.trash.waiting(Duration::ZERO).unwrap();
        assert!(left.len() == 1 && left[0].problem.contains("is the disk mounted?"), "{left:?}");
        assert!(f.trash.empty(None).is_err());
        std::fs::rename(&away, &disk).unwrap();
        assert_eq!(swept(700).map(|swept| swept.gone.len()).sum::<usize>(), 1);
        assert!(names(&disk).is_empty() && names(&f.tmp.path().join("trash")).is_empty());
    }

    #[test]
    fn image_that_is_a_link_is_not_said_to_be_gone() {
        let f = fixture();
        let list = f.purge(3, 0).unwrap();
        let (image, far) = (list.moves[0].to.join("head.img"), f.tmp.path().join("far.img"));
        std::fs::rename(&image, &far).unwrap();
        std::os::unix::fs::symlink(&far, &image).unwrap();
        assert_eq!(f.pass(10, 0, 60).len(), 1, "the other one");
        let left = f.trash.waiting(Duration::ZERO).unwrap();
        assert!(left.len() == 1 && left[0].problem.contains("far.img"), "{left:?}");
        assert!(f.trash.empty(None).unwrap_err().to_string().contains("far.img"));
        std::fs::remove_file(&image).unwrap();
        assert_eq!(f.trash.empty(None).unwrap().len(), 1);
    }

    #[test]
    fn linked_data_of_another_volume_is_never_removed() {
        let f = fixture();
        let list = f.purge(3, 0).unwrap();
        let other = record("other", "node-a", 1);
        let victim = f.tmp.path().join("victim");
        replica_dirs::create(&victim, &"node-a".parse().unwrap(), ReplicaId(1), &other).unwrap();
        std::fs::remove_dir_all(&list.moves[0].to).unwrap();
        std::os::unix::fs::symlink(&victim, &list.moves[0].to).unwrap();
        assert!(f.trash.empty(None).unwrap_err().to_string().contains(&other.id.to_string()));
        assert!(victim.join("head.img").exists());
    }

    #[test]
    fn purge_says_nothing_of_what_it_cannot_look_into() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let path = replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(1), f.record.id);
        let away = f.tmp.path().join("away");
        std::fs::rename(&path, &away).unwrap();
        std::fs::create_dir(&path).unwrap();
        let purge = || f.trash.purge(f.record.id, Generation(3), std::slice::from_ref(&path), at(0));
        let said = purge().unwrap_err().to_string();
        assert!(said.contains("mount its disk"), "{said}");
        assert_eq!(names(&replicas).len(), 2);
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(purge().unwrap().moves.len(), 1, "what is certainly not there is gone");
    }

    #[test]
    fn a_list_that_points_outside_removes_nothing() {
        let f = fixture();
        let mut list = f.trash.plan(f.record.id, &[], 1).unwrap();
        let victim = f.tmp.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        list.moves = vec![Move::new(f.tmp.path().join("gone"), victim.clone())];
        atomic::replace_json(&f.trash.list_path(f.record.id, Generation(1)), &list).unwrap();
        assert!(f.pass(0, 2000, 3000).is_empty());
        assert!(victim.is_dir());
    }
}
