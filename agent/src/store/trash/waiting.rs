//! What waits in the trash: how one orphan comes in, how a person looks at it, takes it out, and empties it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::ids::VolumeId;

use super::{Move, Swept, TRASH_SCHEMA, Trash, TrashList, When, name_of, rest};
use crate::core::Moment;
use crate::error::Error;
use crate::store::atomic::{self, Read};
use crate::store::replica_dirs;

/// A directory in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its name there.
    pub name: String,
    /// The volume whose data it is.
    pub volume_id: VolumeId,
    /// Where it was, and where it is.
    pub step: Move,
    /// When it was deleted, in seconds of the wall clock since 1970; nothing is decided by it.
    pub at_unix_s: u64,
    /// For how long it has waited, as far as that is confirmed.
    pub waited: Duration,
    /// Why it could not be unlinked when its time was over; empty: it was not tried.
    pub problem: String,
    list: PathBuf,
}

impl Trash {
    /// Moves one replica directory into the trash. Repeating it completes it.
    ///
    /// # Errors
    /// When the directory is not of this volume any more, or the file system refuses.
    pub fn take(&self, directory: &str, volume: VolumeId, at: When) -> Result<TrashList, Error> {
        let _changing = self.changing.lock();
        let path = self.trash.join(format!("orphan-{directory}.json"));
        if let Read::Found(old) = atomic::read_json::<TrashList>(&path, TRASH_SCHEMA)
            && old.moves.iter().all(rest::is_outside)
        {
            // Nothing came of it; the time in the trash begins now.
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        self.carry_out(&path, volume, at, || {
            let wanted = |dir: &replica_dirs::FoundDir| {
                let ours = dir.label.as_ref().is_ok_and(|label| label.volume == volume);
                ours && dir.path.file_name().is_some_and(|name| name == directory)
            };
            let Some(dir) = replica_dirs::scan(&self.replicas)?.into_iter().find(wanted) else {
                let why = format!("move {directory} to the trash: it is not of volume {volume} any more");
                return Err(Error::refused(why));
            };
            if dir.marked {
                let (keep, path) = (replica_dirs::KEEP, dir.path.display());
                let why = format!("move {directory} to the trash: {path}/{keep} says that it is to be kept");
                return Err(Error::refused(format!("{why}; remove that file first")));
            }
            if rest::is_alias(&dir.path, &self.replicas) {
                let why = "it is a symbolic link to another directory of this node; remove the link by hand";
                return Err(Error::refused(format!("move {directory} to the trash: {why}")));
            }
            let to = self.free_name(at.unix_s, directory);
            let moves = vec![Move::new(dir.path, to)];
            Ok(TrashList::new(volume, at.unix_s, moves))
        })
    }

    /// Everything that waits, by name.
    ///
    /// # Errors
    /// When the trash, or one of its lists, cannot be read: then it is not known what waits.
    pub fn waiting(&self, now: Moment) -> Result<Vec<Waiting>, Error> {
        let mut waiting = Vec::new();
        for entry in std::fs::read_dir(&self.trash).map_err(Error::io("read", &self.trash))? {
            let list_path = entry.map_err(Error::io("read", &self.trash))?.path();
            if list_path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let list = match atomic::read_json::<TrashList>(&list_path, TRASH_SCHEMA) {
                Read::Found(list) if !self.is_foreign(&list) => list,
                Read::Found(_) => {
                    let why = format!("read the trash: {} points outside of it", list_path.display());
                    return Err(Error::refused(format!("{why}; remove that file")));
                }
                Read::Absent => continue,
                Read::Unreadable(reason) => {
                    let why = atomic::with_remedy(&list_path, TRASH_SCHEMA, reason, "remove that file");
                    return Err(Error::failed(format!("read the trash: {why}")));
                }
            };
            let state = self.state();
            let waited = state.waits.as_ref().map(|waits| waits.waited(&name_of(&list_path), now));
            // A link whose target is away waits, too.
            let there = list.moves.into_iter().filter(|step| rest::is_there(&step.to));
            waiting.extend(there.filter_map(|step| {
                Some(Waiting {
                    name: step.to.file_name()?.to_string_lossy().into_owned(),
                    volume_id: list.volume_id,
                    problem: state.failed.get(&step.to).cloned().unwrap_or_default(),
                    step,
                    at_unix_s: list.at_unix_s,
                    waited: waited.unwrap_or_default(),
                    list: list_path.clone(),
                })
            }));
        }
        waiting.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(waiting)
    }

    /// How many directories wait, and how many bytes they take on disk.
    ///
    /// # Errors
    /// When it is not known what waits.
    pub fn usage(&self) -> Result<(u64, u64), Error> {
        let (mut entries, mut bytes) = (0, 0);
        for Waiting { step, .. } in self.waiting(Moment::ZERO)? {
            let files = match std::fs::read_dir(&step.to) {
                // Emptied or restored meanwhile, or on a disk that is not mounted.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                files => files.map_err(Error::io("read", &step.to))?,
            };
            entries += 1;
            bytes +=
                files.filter_map(|file| file.ok()?.metadata().ok()).fold(0, |sum, m| sum + m.blocks() * 512);
        }
        Ok((entries, bytes))
    }

    /// Puts one directory back where it was, and forgets that it was deleted.
    ///
    /// # Errors
    /// When there is none of that name, something else is in its place, or the file system refuses.
    pub fn restore(&self, name: &str) -> Result<Waiting, Error> {
        let _changing = self.changing.lock();
        let found = self.find("restore", name)?;
        rest::restore(&found.step)?;
        for dir in [found.step.from.parent(), Some(self.trash.as_path())].into_iter().flatten() {
            atomic::sync_dir(dir)?;
        }
        self.strike(&found)?;
        Ok(found)
    }

    /// Unlinks what waits: one directory, or everything. Returns what went.
    ///
    /// # Errors
    /// When there is none of that name, or something could not be unlinked; the rest of what was asked for is gone then,
    /// and what is left still waits.
    pub fn empty(&self, name: Option<&str>) -> Result<Vec<Waiting>, Error> {
        let _changing = self.changing.lock();
        let going = match name {
            Some(name) => vec![self.find("empty the trash of", name)?],
            None => self.waiting(Moment::ZERO)?,
        };
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        for waiting in going {
            match rest::remove(&waiting.step, waiting.volume_id) {
                Ok(()) => {
                    self.strike(&waiting)?;
                    self.state().failed.remove(&waiting.step.to);
                    gone.push(waiting);
                }
                Err(error) => {
                    self.state().failed.insert(waiting.step.to.clone(), error.to_string());
                    failed.push(error.to_string());
                }
            }
        }
        if name.is_none() {
            // Lists of which nothing is left, or never was.
            let (mut swept, mut left) = (Swept::default(), Default::default());
            for (path, list) in
                self.lists()?.iter().filter(|(_, list)| !list.moves.iter().any(rest::is_outside))
            {
                if list.moves.iter().all(|step| !rest::is_there(&step.to)) {
                    self.unlink(path, list, &mut swept.gone, &mut left)?;
                }
            }
        }
        match failed.is_empty() {
            true => Ok(gone),
            false => {
                let (left, what) = (failed.len(), failed.join("; "));
                Err(Error::failed(format!("empty the trash: {} unlinked, {left} left: {what}", gone.len())))
            }
        }
    }

    fn find(&self, what: &str, name: &str) -> Result<Waiting, Error> {
        let found = self.waiting(Moment::ZERO)?.into_iter().find(|waiting| waiting.name == name);
        found.ok_or_else(|| {
            Error::not_found(format!(
                "{what} {name}: there is none in the trash; `holdfast trash ls` lists what there is"
            ))
        })
    }

    /// Takes one step off its list, and the list away with its last.
    fn strike(&self, waiting: &Waiting) -> Result<(), Error> {
        let path: &Path = &waiting.list;
        let Read::Found(mut list) = atomic::read_json::<TrashList>(path, TRASH_SCHEMA) else { return Ok(()) };
        list.moves.retain(|step| *step != waiting.step);
        if list.moves.is_empty() {
            std::fs::remove_file(path).map_err(Error::io("remove", path))?;
            return atomic::sync_dir(&self.trash);
        }
        atomic::replace_json(path, &list)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, fixture, names};
    use super::*;
    use holdfast_proto::ids::ReplicaId;

    #[test]
    fn d7_one_orphan_goes_to_the_trash_and_can_be_restored() {
        let f = fixture();
        let replicas = f.tmp.path().join("replicas");
        let path = replica_dirs::replica_path(&replicas, &f.record.name, ReplicaId(2), f.record.id);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(f.trash.take(name, VolumeId::random(), at(5)).is_err(), "of another volume");
        let list = f.trash.take(name, f.record.id, at(5)).unwrap();
        assert_eq!(f.trash.take(name, f.record.id, at(9)).unwrap(), list, "a repeat is the same deletion");
        assert_eq!(names(&replicas).len(), 1);
        let waiting = f.trash.waiting(Duration::ZERO).unwrap();
        assert_eq!(waiting.len(), 1);
        assert_eq!((waiting[0].name.as_str(), waiting[0].at_unix_s), (format!("5-{name}").as_str(), 5));
        std::fs::create_dir(&path).unwrap();
        assert!(f.trash.restore(&waiting[0].name).is_err(), "its place is taken");
        std::fs::remove_dir(&path).unwrap();
        f.trash.restore(&waiting[0].name).unwrap();
        assert_eq!(replica_dirs::check(&path, ReplicaId(2), f.record.id), Ok(()));
        assert_eq!(names(&f.tmp.path().join("trash")), Vec::<String>::new());
        f.trash.take(name, f.record.id, at(7)).unwrap();
        assert_eq!(f.pass(10, 7, 18).len(), 1);
    }

    #[test]
    fn one_of_several_is_restored_and_the_rest_still_waits() {
        let f = fixture();
        f.purge(3, 5).unwrap();
        let waiting = f.trash.waiting(Duration::ZERO).unwrap();
        assert_eq!(waiting.len(), 2);
        let (entries, bytes) = f.trash.usage().unwrap();
        assert!(entries == 2 && bytes > 0, "{entries} with {bytes} bytes");
        f.trash.restore(&waiting[0].name).unwrap();
        assert_eq!(f.trash.waiting(Duration::ZERO).unwrap(), waiting[1..]);
        assert!(f.trash.restore("gone").is_err());
        assert_eq!(f.trash.empty(Some(&waiting[1].name)).unwrap().len(), 1);
        assert_eq!((f.trash.empty(None).unwrap(), f.trash.usage().unwrap()), (vec![], (0, 0)));
        assert_eq!(names(&f.tmp.path().join("trash")), Vec::<String>::new());
        assert_eq!(names(&f.tmp.path().join("replicas")).len(), 1);
    }
}
