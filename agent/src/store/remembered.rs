//! What small files said when they were last read, for as long as they are certainly the same files.
//!
//! A look every few seconds at a thousand files that hardly ever change would otherwise be all that an idle agent does.
//! A file counts as unchanged only while everything that the file system tells of it is the same, and only if its last
//! change lay well before it was read: two changes within one tick of the file system's clock look like one. So what is
//! answered from here is what a reader of the file would have found. What cannot be read is never kept.
//!
//! Noticing is what this is for. What ends or deletes something reads its files.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// Coarser than the clocks of all file systems that one would keep this on; FAT's have two seconds.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// What tells one content of a path from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether a later change is certain to have another stamp. A clock that was set back makes it wait.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(s), Ok(ns)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(s, ns);
        now.duration_since(changed).is_ok_and(|since| since >= SETTLED_AFTER)
    }
}

/// See the module. Blocking.
#[derive(Debug)]
pub struct Remembered<T> {
    // By the bytes of the path: paths compare and hash by their components.
    files: Mutex<HashMap<OsString, (Stamp, T)>>,
    /// How often one of them was added or taken away.
    changes: AtomicU64,
    #[cfg(test)]
    watched: Mutex<Watched>,
}

/// What tests of those who remember need: time that passes, and how often something was read.
#[cfg(test)]
#[derive(Debug, Default)]
struct Watched {
    ahead: Duration,
    reads: u32,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self {
            files: Mutex::default(),
            changes: AtomicU64::new(0),
            #[cfg(test)]
            watched: Mutex::default(),
        }
    }
}

impl<T: Clone> Remembered<T> {
    /// What `read` made of the file at `path` the last time, if that is certainly the same by now; otherwise what it
    /// makes of it now.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(&self, path: &Path, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        // Taken before the file is read: what is written meanwhile has another one.
        let stamp = Stamp::of(path);
        if let Some((before, known)) = self.files.lock().get(path.as_os_str())
            && stamp == Some(*before)
        {
            return Ok(known.clone());
        }
        let now = self.now();
        let found = read();
        let mut files = self.files.lock();
        let changed = match (&found, stamp.filter(|stamp| stamp.is_settled(now))) {
            (Ok(found), Some(stamp)) => {
                files.insert(path.as_os_str().to_owned(), (stamp, found.clone()));
                true
            }
            _ => files.remove(path.as_os_str()).is_some(),
        };
        self.changes.fetch_add(u64::from(changed), Ordering::Relaxed);
        found
    }

    /// Whether these are the files that are remembered, all of them, and each is certainly what it was.
    pub fn are<'a>(&self, mut there: impl Iterator<Item = &'a OsStr>) -> bool {
        let files = self.files.lock();
        let mut count = 0;
        let same = |path: &'a OsStr| {
            count += 1;
            files.get(path).is_some_and(|(before, _)| Stamp::of(Path::new(path)) == Some(*before))
        };
        there.all(same) && count == files.len()
    }

    #[cfg(not(test))]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Forgets all files but these.
    pub fn retain<'a>(&self, there: impl Iterator<Item = &'a OsStr>) {
        let there: HashSet<&OsStr> = there.collect();
        let mut files = self.files.lock();
        let before = files.len();
        files.retain(|path, _| there.contains(path.as_os_str()));
        self.changes.fetch_add((before - files.len()) as u64, Ordering::Relaxed);
    }

    /// Grows with each file that is remembered anew or forgotten.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl<T> Remembered<T> {
    /// At each read.
    fn now(&self) -> SystemTime {
        let mut watched = self.watched.lock();
        watched.reads += 1;
        SystemTime::now() + watched.ahead
    }
    /// From now on it is so much later than it is that every file has settled.
    pub(crate) fn let_settle(&self) {
        self.watched.lock().ahead = SETTLED_AFTER;
    }
    /// How many times a file was read, and not remembered.
    pub(crate) fn reads(&self) -> u32 {
        self.watched.lock().reads
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::path::PathBuf;

    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        known: Remembered<String>,
    }

    impl Scene {
        /// A file, written a while ago.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("a"), "one").unwrap();
            let known = Remembered::default();
            known.let_settle();
            Self { dir, known }
        }
        fn path(&self) -> PathBuf {
            self.dir.path().join("a")
        }
        fn read(&self) -> Result<String, String> {
            let path = self.path();
            self.known.read(&path, || std::fs::read_to_string(&path).map_err(|error| error.to_string()))
        }
    }

    /// Has `text` in the file, at a later tick of the file system's clock: what happens within one is what
    /// [`SETTLED_AFTER`] is for, and these tests read as if it were over.
    fn write(path: &Path, text: &str) {
        let before = Stamp::of(path).map(|stamp| stamp.changed);
        while Stamp::of(path).map(|stamp| stamp.changed) == before {
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn an_unchanged_file_is_read_once() {
        let scene = Scene::new();
        for _ in 0..5 {
            assert_eq!(scene.read().unwrap(), "one");
        }
        assert_eq!(scene.known.reads(), 1);
    }

    #[test]
    fn a_file_that_has_only_just_changed_is_read_again_until_its_clock_can_tell() {
        let scene = Scene::new();
        let settled = std::mem::take(&mut scene.known.watched.lock().ahead);
        for reads in 1..4 {
            scene.read().unwrap();
            assert_eq!(scene.known.reads(), reads);
        }
        scene.known.watched.lock().ahead = settled;
        scene.read().unwrap();
        scene.read().unwrap();
        assert_eq!(scene.known.reads(), 4);
    }

    #[test]
    fn whatever_is_changed_is_seen() {
        let scene = Scene::new();
        let mut reads = 0;
        let mut expect = |what: &str, text: &str| {
            reads += 1;
            for _ in 0..2 {
                let found = scene.read().unwrap();
                assert_eq!((found.as_str(), scene.known.reads()), (text, reads), "{what}");
            }
        };
        expect("made", "one");
        write(&scene.path(), "two");
        expect("written in place, as long as before", "two");
        let other = scene.dir.path().join("b");
        std::fs::write(&other, "six").unwrap();
        std::fs::rename(&other, scene.path()).unwrap();
        expect("replaced", "six");
        let modified = std::fs::metadata(scene.path()).unwrap().modified().unwrap();
        write(&scene.path(), "ten");
        let file = std::fs::File::options().write(true).open(scene.path()).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        expect("written, and the old time of modification put back", "ten");
    }

    #[test]
    fn what_cannot_be_read_is_not_kept() {
        let scene = Scene::new();
        scene.read().unwrap();
        std::fs::remove_file(scene.path()).unwrap();
        for _ in 0..2 {
            scene.read().unwrap_err();
        }
        assert_eq!(scene.known.reads(), 3);
        let damaged = scene.known.read(scene.dir.path(), || Err("a directory"));
        assert_eq!(damaged, Err("a directory"));
        assert!(scene.known.files.lock().is_empty());
    }

    #[test]
    fn the_files_are_the_same_only_if_all_are_there_and_none_has_changed() {
        let scene = Scene::new();
        let (a, b) = (scene.path(), scene.dir.path().join("b"));
        let are = |paths: &[&Path]| scene.known.are(paths.iter().map(|path| path.as_os_str()));
        assert!(are(&[]) && !are(&[&a]), "nothing is remembered yet");
        scene.read().unwrap();
        assert!(are(&[&a]) && !are(&[]), "one that is not there any more is a change");
        std::fs::write(&b, "two").unwrap();
        assert!(!are(&[&a, &b]), "and so is one that is new");
        write(&a, "other");
        assert!(!are(&[&a]));
        scene.read().unwrap();
        assert!(are(&[&a]));
        std::fs::remove_file(&a).unwrap();
        assert!(!are(&[&a]));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let scene = Scene::new();
        scene.read().unwrap();
        scene.known.retain([scene.path().as_os_str()].into_iter());
        scene.read().unwrap();
        assert_eq!(scene.known.reads(), 1);
        scene.known.retain(std::iter::empty());
        scene.read().unwrap();
        assert_eq!(scene.known.reads(), 2);
    }
}
