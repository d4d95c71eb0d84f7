//! A replica's directory: `meta`, `meta.spare`, `head.img`, `lock`; for the bitmaps see [`super::bitmap_file`].
//!
//! `meta` is replaced by writing `meta.spare` in place, syncing it, and exchanging the two names in one
//! `renameat2(RENAME_EXCHANGE)`: both files have their blocks from the beginning, so a full disk cannot stop a
//! replica from recording what happened.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};

use super::bitmap::Label;
use super::bitmap_file::{file_name, write_bitmap, write_spares};
use super::meta::{META_BYTES, META_BYTES_MAX, Meta, MetaError};
use crate::private_file::PrivateFile;
use crate::units::{GROUP_BYTES, to_u64};

/// Why a replica directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaDirError {
    /// It is not there (is the disk mounted?), or a part of it is missing.
    #[error("{path} is missing: is the disk mounted?")]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// It exists where it was to be made.
    #[error("{path} exists already; it is left as it is")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its meta is damaged or foreign; nothing was changed.
    #[error("{path}: {source}")]
    Meta {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MetaError,
    },
    /// `head.img` is not as large as `meta` says.
    #[error("{path}: expected {expected} bytes, found {found}")]
    Size {
        /// The image.
        path: PathBuf,
        /// By `meta`.
        expected: u64,
        /// By the file system.
        found: u64,
    },
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplicaDirError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::NotFound => ReplicaDirError::Missing { path },
        _ => ReplicaDirError::Io { operation, path, source },
    }
}

pub(super) fn sync_dir(path: &Path) -> Result<(), ReplicaDirError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("fsync", path))
}

/// The temporary name under which a replica's directory is made.
#[must_use]
pub fn making_path(dir: &Path) -> PathBuf {
    let mut making = dir.as_os_str().to_owned();
    making.push(".making");
    PathBuf::from(making)
}

/// Makes a replica's directory: in a temporary name beside it, synced, then renamed, so that it is there whole or
/// not at all. Where it fails nothing is left, as far as the disk lets go of it.
///
/// # Errors
/// When it exists, or the disk refuses.
pub fn create_replica_dir(dir: &Path, meta: &Meta) -> Result<(), ReplicaDirError> {
    if dir.exists() {
        return Err(ReplicaDirError::Exists { path: dir.to_owned() });
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let making = making_path(dir);
    // What an earlier attempt left behind was never a replica.
    if making.exists() {
        remove_unfinished(&making)?;
    }
    let made = fill_new(&making, meta).and_then(|()| {
        renameat2(AT_FDCWD, &making, AT_FDCWD, dir, RenameFlags::RENAME_NOREPLACE)
            .map_err(|e| failed("rename", &making)(e.into()))
    });
    if let Err(error) = made {
        // What cannot be removed now is removed later; the first error says more.
        let _ = remove_unfinished(&making);
        return Err(error);
    }
    sync_dir(parent)
}

fn fill_new(making: &Path, meta: &Meta) -> Result<(), ReplicaDirError> {
    std::fs::create_dir_all(making).map_err(failed("create", making))?;
    for name in ["meta", "meta.spare"] {
        let path = making.join(name);
        let mut file = private_file(&path).map_err(failed("create", &path))?;
        let written = file.write_all(&meta.encode()).and_then(|()| reserve_all(&file));
        written.and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
    }
    let image = making.join("head.img");
    private_file(&image)
        .and_then(|file| file.set_len(meta.size_bytes).and_then(|()| file.sync_all()))
        .map_err(failed("create", &image))?;
    let intent = Label {
        volume: meta.volume,
        replica: meta.replica,
        of: None,
        bits: meta.size_bytes.div_ceil(GROUP_BYTES),
    };
    write_bitmap(&making.join(file_name(None)), &intent, false)?;
    write_spares(making, meta)?;
    let lock = making.join("lock");
    private_file(&lock).map_err(failed("create", &lock))?;
    sync_dir(making)
}

/// Removes a directory that was never made whole, if there is nothing in it but what making one puts there.
///
/// # Errors
/// When there is, or the disk refuses.
pub fn remove_unfinished(making: &Path) -> Result<(), ReplicaDirError> {
    let ours = |name: &OsStr| {
        let begins = |start: &str| name.as_encoded_bytes().starts_with(start.as_bytes());
        ["meta", "head.", "lock"].into_iter().any(begins)
            || Path::new(name).extension().is_some_and(|e| e == "bm")
    };
    for entry in std::fs::read_dir(making).map_err(failed("read", making))? {
        let entry = entry.map_err(failed("read", making))?;
        if !ours(&entry.file_name()) {
            let source = io::Error::other("it is no file of a replica; move it away");
            return Err(ReplicaDirError::Io { operation: "remove", path: entry.path(), source });
        }
    }
    std::fs::remove_dir_all(making).map_err(failed("remove", making))
}

pub(super) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Where the label of a replica directory is.
#[must_use]
pub fn label_file(dir: &Path) -> PathBuf {
    dir.join("meta")
}

/// Blocks for the longest meta, without a change of the file's size. Not every file system can reserve.
fn reserve_all(file: &File) -> io::Result<()> {
    let size = i64::try_from(META_BYTES_MAX).expect("a small constant");
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, size) {
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn read_meta(dir: &Path) -> Result<Meta, ReplicaDirError> {
    let path = label_file(dir);
    let bytes =
        PrivateFile::read().at_most(to_u64(META_BYTES_MAX)).read_all(&path).map_err(failed("read", &path))?;
    Meta::decode(&bytes).map_err(|source| ReplicaDirError::Meta { path, source })
}

/// The label of a replica directory, read without opening it for anything else.
///
/// # Errors
/// When there is no readable `meta`.
pub fn read_label(dir: &Path) -> Result<Meta, ReplicaDirError> {
    read_meta(dir)
}

/// The bytes that the image in a replica directory occupies; 0 where there is none.
#[must_use]
pub fn allocated_bytes(dir: &Path) -> u64 {
    std::fs::symlink_metadata(dir.join("head.img")).map_or(0, |m| m.blocks() * 512)
}

/// An open replica directory: exclusively this process's.
#[derive(Debug)]
pub struct ReplicaDir {
    dir: PathBuf,
    meta: Meta,
    // Holds the flock for as long as the directory is open.
    _lock: File,
}

impl ReplicaDir {
    /// Opens and locks it.
    ///
    /// # Errors
    /// When it is missing, damaged, foreign or held by another process, or cannot be synced.
    pub fn open(dir: &Path) -> Result<Self, ReplicaDirError> {
        let meta = read_meta(dir)?;
        let path = dir.join("lock");
        let lock = PrivateFile::read_write().create().open(&path).map_err(failed("open", &path))?;
        lock.try_lock().map_err(|e| ReplicaDirError::Io {
            operation: "lock (another process serves this replica)",
            path,
            source: e.into(),
        })?;
        // Read again under the lock: an owner that has just ended may have changed it.
        let meta = if lock.metadata().is_ok() { read_meta(dir)? } else { meta };
        let image = dir.join("head.img");
        let found = PrivateFile::read_write().open(&image).and_then(|file| file.metadata());
        let found = found.map_err(failed("open", &image))?.len();
        if found != meta.size_bytes {
            return Err(ReplicaDirError::Size { path: image, expected: meta.size_bytes, found });
        }
        let this = Self { dir: dir.to_owned(), meta, _lock: lock };
        this.reserve_spare(META_BYTES)?;
        // An owner that ended in the middle may have exchanged the names and not synced that: what was read here counts
        // as stored from now on, so a restart of the node must not bring back the one before.
        sync_dir(dir)?;
        Ok(this)
    }

    /// What it is and what it promised.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Opens the image for reading and writing; `direct` bypasses the page cache.
    ///
    /// # Errors
    /// When the file system refuses (not every one knows `O_DIRECT`).
    pub fn open_image(&self, direct: bool) -> Result<File, ReplicaDirError> {
        let path = self.dir.join("head.img");
        let how = PrivateFile::read_write();
        let how = if direct { how.direct() } else { how };
        how.open(&path).map_err(failed(if direct { "open with O_DIRECT" } else { "open" }, &path))
    }

    /// Replaces `meta`; on stable storage when this returns.
    ///
    /// # Errors
    /// When the disk refuses: the old one then stands.
    pub fn store(&mut self, meta: Meta) -> Result<(), ReplicaDirError> {
        let (current, spare) = (self.dir.join("meta"), self.dir.join("meta.spare"));
        let bytes = meta.encode();
        let file = self.reserve_spare(bytes.len())?;
        file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).map_err(failed("write", &spare))?;
        renameat2(AT_FDCWD, &spare, AT_FDCWD, &current, RenameFlags::RENAME_EXCHANGE)
            .map_err(|e| failed("exchange", &spare)(e.into()))?;
        sync_dir(&self.dir)?;
        self.meta = meta;
        Ok(())
    }

    /// The spare file with its blocks allocated; made again where somebody removed it.
    fn reserve_spare(&self, needed: usize) -> Result<File, ReplicaDirError> {
        let path = self.dir.join("meta.spare");
        let file = PrivateFile::write().create().open(&path).map_err(failed("open", &path))?;
        // One that was made when a meta was never longer than its first 4096 bytes gets the rest where there is room.
        let _ = reserve_all(&file);
        let size = i64::try_from(needed).expect("at most 64 KiB");
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            // Not every file system can reserve; the write itself then says whether there is room.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(file),
            Err(e) => Err(failed("reserve", &path)(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::tests::sample;
    use super::*;
    use holdfast_proto::ids::Generation;

    fn small() -> Meta {
        Meta { size_bytes: 1 << 20, ..sample() }
    }

    #[test]
    fn created_once_and_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        create_replica_dir(&dir, &small()).unwrap();
        assert!(matches!(create_replica_dir(&dir, &small()), Err(ReplicaDirError::Exists { .. })));
        let mut open = ReplicaDir::open(&dir).unwrap();
        assert_eq!(open.meta(), &small());
        open.store(Meta { promised: Generation(9), ..small() }).unwrap();
        open.store(Meta { promised: Generation(10), ..small() }).unwrap();
        drop(open);
        assert_eq!(ReplicaDir::open(&dir).unwrap().meta().promised, Generation(10));
        assert_eq!(read_label(&dir).unwrap().promised, Generation(10));
    }

    #[test]
    fn a_making_that_fails_leaves_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        // Its name is taken by something that leads nowhere: the last step fails.
        std::os::unix::fs::symlink("nowhere", &dir).unwrap();
        assert!(create_replica_dir(&dir, &small()).is_err());
        assert!(!making_path(&dir).exists());
        std::fs::remove_file(&dir).unwrap();
        // One that was killed in the middle is in nobody's way.
        std::fs::create_dir(making_path(&dir)).unwrap();
        std::fs::write(making_path(&dir).join("meta"), b"half").unwrap();
        create_replica_dir(&dir, &small()).unwrap();
        assert!(!making_path(&dir).exists());
    }

    #[test]
    fn meta_of_any_length_has_its_blocks_from_the_beginning() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        create_replica_dir(&dir, &small()).unwrap();
        for name in ["meta", "meta.spare"] {
            let found = std::fs::metadata(dir.join(name)).unwrap();
            assert_eq!(found.len(), 4096, "{name}: what an older build reads");
            assert!(found.blocks() * 512 >= 64 * 1024, "{name}: {} blocks", found.blocks());
        }
        let mut open = ReplicaDir::open(&dir).unwrap();
        let long = super::super::meta::tests::with_unknown(&small(), 50_000);
        open.store(long.clone()).unwrap();
        open.store(small()).unwrap();
        open.store(long.clone()).unwrap();
        drop(open);
        assert_eq!(ReplicaDir::open(&dir).unwrap().meta(), &long);
    }

    #[test]
    fn a_second_process_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        create_replica_dir(&dir, &small()).unwrap();
        let _held = ReplicaDir::open(&dir).unwrap();
        let said = ReplicaDir::open(&dir).unwrap_err().to_string();
        assert!(said.contains("another process serves this replica"), "{said}");
    }

    #[test]
    fn missing_damaged_and_resized_are_told_apart_and_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        let missing = ReplicaDir::open(&dir).unwrap_err();
        assert!(missing.to_string().contains("is the disk mounted?"), "{missing}");
        create_replica_dir(&dir, &small()).unwrap();
        std::fs::File::options().write(true).open(dir.join("head.img")).unwrap().set_len(4096).unwrap();
        assert!(matches!(ReplicaDir::open(&dir), Err(ReplicaDirError::Size { found: 4096, .. })));
        std::fs::write(dir.join("meta"), b"garbage").unwrap();
        assert!(matches!(ReplicaDir::open(&dir), Err(ReplicaDirError::Meta { .. })));
        assert_eq!(std::fs::read(dir.join("meta")).unwrap(), b"garbage");
        std::fs::remove_file(dir.join("meta")).unwrap();
        assert!(matches!(ReplicaDir::open(&dir), Err(ReplicaDirError::Missing { .. })));
    }

    #[test]
    fn replica_dir_with_foreign_kinds_of_files_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo.r1");
        create_replica_dir(&dir, &small()).unwrap();
        let (meta, image, away) = (label_file(&dir), dir.join("head.img"), tmp.path().join("away"));
        let refused = |said: &str| {
            let why = ReplicaDir::open(&dir).unwrap_err().to_string();
            assert!(why.contains(said), "{why}");
        };
        std::fs::rename(&meta, &away).unwrap();
        nix::unistd::mkfifo(&meta, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("found a FIFO");
        assert!(read_label(&dir).unwrap_err().to_string().contains("found a FIFO"));
        std::fs::remove_file(&meta).unwrap();
        private_file(&meta).unwrap().set_len(3 << 30).unwrap();
        refused("expected at most 65536 bytes");
        std::fs::rename(&away, &meta).unwrap();
        std::fs::rename(&image, &away).unwrap();
        std::os::unix::fs::symlink(&away, &image).unwrap();
        refused("found a symbolic link");
        std::fs::remove_file(&image).unwrap();
        std::fs::hard_link(&away, &image).unwrap();
        refused("2 hard links");
        std::fs::remove_file(&away).unwrap();
        ReplicaDir::open(&dir).unwrap();
    }
}
