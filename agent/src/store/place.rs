//! Which file system replica directories are made on: once known, none is made on another.
//!
//! An empty mount point looks like a place with room. So the first directory that is made leaves a mark beside it, in
//! `replicas/.place`, and the data directory remembers it in `replicas.json`, with the device and inode of `replicas/`.
//! The mark decides: device numbers change when a machine starts, and a disk may be copied to a larger one. Where only the
//! mark is gone, device and inode tell the place.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::atomic::{self, Read};
use crate::error::Error;

/// In `replicas/`.
pub const MARK: &str = ".place";
const SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    schema: u32,
    id: Uuid,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    schema: u32,
    id: Uuid,
    device: u64,
    inode: u64,
}

/// What is to be done about the place as it is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is the one that is known.
    Same,
    /// It is the known one, or the first: this is to be remembered and marked.
    Learn(Uuid),
    /// It is another.
    Other,
}

fn judge(known: Option<&Remembered>, mark: Option<Uuid>, device: u64, inode: u64, fresh: Uuid) -> Verdict {
    match (known, mark) {
        (None, mark) => Verdict::Learn(mark.unwrap_or(fresh)),
        (Some(known), Some(mark)) if known.id != mark => Verdict::Other,
        (Some(known), mark) => match (mark.is_some(), (known.device, known.inode) == (device, inode)) {
            (true, true) => Verdict::Same,
            (true, false) | (false, true) => Verdict::Learn(known.id),
            (false, false) => Verdict::Other,
        },
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Place {
    replicas: PathBuf,
    file: PathBuf,
    // Two directories may be made at once.
    learning: Arc<Mutex<()>>,
}

impl Place {
    /// Of the directories in `replicas`; `file` remembers it.
    #[must_use]
    pub fn new(replicas: PathBuf, file: PathBuf) -> Self {
        Self { replicas, file, learning: Arc::default() }
    }

    /// Before a directory is made: that the place is the one that is known, which it becomes with the first. Blocking.
    ///
    /// # Errors
    /// `Refused` where it is another; or the disk refuses.
    pub fn require(&self) -> Result<(), Error> {
        let _learning = self.learning.lock();
        let (verdict, device, inode) = self.look("make a replica directory")?;
        match verdict {
            Verdict::Same => Ok(()),
            Verdict::Other => Err(self.other("make a replica directory")),
            Verdict::Learn(id) => {
                // The mark first: what is remembered and has no mark is another place.
                atomic::replace_json(&self.replicas.join(MARK), &Mark { schema: SCHEMA, id })?;
                atomic::replace_json(&self.file, &Remembered { schema: SCHEMA, id, device, inode })
            }
        }
    }

    /// That the place is not known to be another. Nothing is written. Blocking.
    ///
    /// # Errors
    /// `Refused` where it is another.
    pub fn require_same(&self, operation: &str) -> Result<(), Error> {
        match self.look(operation)? {
            (Verdict::Other, ..) => Err(self.other(operation)),
            (Verdict::Same | Verdict::Learn(_), ..) => Ok(()),
        }
    }

    fn look(&self, operation: &str) -> Result<(Verdict, u64, u64), Error> {
        let stat = self.replicas.metadata().map_err(Error::io("look at", &self.replicas))?;
        let known = self.read::<Remembered>(operation, &self.file)?;
        let mark = self.read::<Mark>(operation, &self.replicas.join(MARK))?;
        let verdict = judge(known.as_ref(), mark.map(|mark| mark.id), stat.dev(), stat.ino(), Uuid::new_v4());
        Ok((verdict, stat.dev(), stat.ino()))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, operation: &str, file: &Path) -> Result<Option<T>, Error> {
        match atomic::read_json::<T>(file, SCHEMA) {
            Read::Found(found) => Ok(Some(found)),
            Read::Absent => Ok(None),
            Read::Unreadable(reason) => Err(Error::refused(format!(
                "{operation}: which file system {} was on cannot be known: {reason}; where it is the right one, remove \
                 that file",
                self.replicas.display()
            ))),
        }
    }

    fn other(&self, operation: &str) -> Error {
        Error::refused(format!(
            "{operation}: {} is on another file system than it was: is the disk mounted? Mount it; if this is where \
             replicas are to be from now on, remove {}",
            self.replicas.display(),
            self.file.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_told_by_its_mark_and_without_it_by_its_inode() {
        let [a, b, fresh] = [1, 2, 3].map(Uuid::from_u128);
        let known = Remembered { schema: SCHEMA, id: a, device: 7, inode: 2 };
        for (known, mark, device, verdict) in [
            (None, None, 7, Verdict::Learn(fresh)),
            (None, Some(b), 7, Verdict::Learn(b)),
            (Some(&known), Some(a), 7, Verdict::Same),
            (Some(&known), Some(a), 8, Verdict::Learn(a)),
            (Some(&known), Some(b), 7, Verdict::Other),
            (Some(&known), None, 7, Verdict::Learn(a)),
            (Some(&known), None, 8, Verdict::Other),
        ] {
            assert_eq!(judge(known, mark, device, 2, fresh), verdict, "{known:?} {mark:?} {device}");
        }
    }

    #[test]
    fn place_that_is_not_mounted_takes_nothing_new() {
        let tmp = tempfile::tempdir().unwrap();
        let [replicas, mounted, file] = ["replicas", "mounted", "replicas.json"].map(|n| tmp.path().join(n));
        std::fs::create_dir(&replicas).unwrap();
        let place = Place::new(replicas.clone(), file.clone());
        place.require_same("purge data").unwrap();
        assert!(!file.exists(), "only making something binds it");
        place.require().unwrap();
        place.require().unwrap();
        // Another directory in its place, as an empty mount point is.
        std::fs::rename(&replicas, &mounted).unwrap();
        std::fs::create_dir(&replicas).unwrap();
        for refused in [place.require(), place.require_same("purge data")] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("is the disk mounted?") && said.contains("replicas.json"), "{said}");
        }
        assert_eq!(std::fs::read_dir(&replicas).unwrap().count(), 0);
        std::fs::remove_dir(&replicas).unwrap();
        std::fs::rename(&mounted, &replicas).unwrap();
        place.require().unwrap();
        // The way out.
        std::fs::rename(&replicas, &mounted).unwrap();
        std::fs::create_dir(&replicas).unwrap();
        std::fs::remove_file(&file).unwrap();
        place.require().unwrap();
        assert!(replicas.join(MARK).exists());
    }
}
