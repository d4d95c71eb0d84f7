//! A disk that fails on demand: a file system of our own (FUSE) over one flat directory, which passes everything on to
//! another directory until it is told otherwise.
//!
//! With [`FaultyDisk::volatile`] it is a disk with a cache that a power cut empties: it remembers what each unsynced
//! write replaced, in sectors of 512 bytes, and [`FaultyDisk::power_cut`] brings back any part of that. Names are
//! durable at once; a file system's journal keeps their order.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::mount::{MntFlags, umount2};

use super::fs::Passthrough;
use super::undo::Undo;
use crate::rng::Rng;

/// What a disk does instead of its work. Only content counts: `meta` and names are never touched by it, unless `meta`
/// is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Reads fail with this.
    pub read: Option<i32>,
    /// Writes and fallocate fail with this.
    pub write: Option<i32>,
    /// fsync fails with this.
    pub sync: Option<i32>,
    /// Everything takes this much longer.
    pub slow: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    trouble: Mutex<Trouble>,
    /// Failures that were answered.
    pub(super) failed: AtomicU64,
    /// What unsynced writes replaced, where the disk is volatile.
    pub(super) undo: Mutex<Option<Undo>>,
}

impl Shared {
    pub(super) fn trouble(&self) -> Trouble {
        *self.trouble.lock().expect("no thread of a disk panics")
    }
}

/// A mounted one; unmounted when this is dropped.
#[derive(Debug)]
pub struct FaultyDisk {
    path: PathBuf,
    backing: PathBuf,
    shared: Arc<Shared>,
    _session: BackgroundSession,
}

/// Whether this process may mount one; tried, not guessed.
#[must_use]
pub fn possible() -> bool {
    let (Ok(dir), Ok(backing)) = (tempfile::tempdir(), tempfile::tempdir()) else { return false };
    FaultyDisk::mount(dir.path(), backing.path().to_owned()).is_ok()
}

impl FaultyDisk {
    fn mount(path: &Path, backing: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("holdfast-test".to_owned()), MountOption::NoAtime];
        config.acl = SessionACL::Owner;
        // Slow operations must not make the quick ones wait.
        config.n_threads = Some(4);
        let session =
            fuser::spawn_mount(Passthrough::new(backing.clone(), Arc::clone(&shared))?, path, &config)?;
        Ok(Self { path: path.to_owned(), backing, shared, _session: session })
    }

    /// One over the directory `path`, which holds what it held; that is kept in `backing`, a free path on the same
    /// file system.
    ///
    /// # Panics
    /// When the system refuses; ask [`possible`] first.
    #[must_use]
    pub fn over(path: &Path, backing: &Path) -> Self {
        std::fs::rename(path, backing).unwrap_or_else(|e| panic!("cannot move {}: {e}", path.display()));
        std::fs::create_dir(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        Self::mount(path, backing.to_owned())
            .unwrap_or_else(|e| panic!("cannot mount over {}: {e}", path.display()))
    }

    /// Where the files really are.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }
    /// From now on it behaves like this.
    ///
    /// # Panics
    /// When a thread of the disk has panicked.
    pub fn set(&self, trouble: Trouble) {
        *self.shared.trouble.lock().expect("no thread of a disk panics") = trouble;
    }
    /// How many operations it has failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }
    /// From now on unsynced writes can be lost.
    ///
    /// # Panics
    /// When a thread of the disk has panicked.
    pub fn volatile(&self) {
        *self.shared.undo.lock().expect("no thread of a disk panics") = Some(Undo::default());
    }
    /// Loses any part of what was not synced, and tells how many sectors. Nobody may have a file open.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn power_cut(&self, rng: &mut Rng) -> usize {
        let mut undo = self.shared.undo.lock().expect("no thread of a disk panics");
        undo.as_mut().map_or(0, |undo| undo.lose(rng))
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.set(Trouble::default());
        // Detached, so that a process that is just ending does not keep the mount in place; its thread ends with it.
        if let Err(e) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {e}", self.path.display());
        }
    }
}
