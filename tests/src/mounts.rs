//! Small file systems mounted over a replica's directory: the only way to have a full disk on demand.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::process::run;
use crate::wait::SECOND;

/// Whether this process may mount file systems; tried, not guessed: a container's root often may not.
#[must_use]
pub fn possible() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    SmallDisk::try_mount(dir.path(), 1 << 20, false).is_ok()
}

/// A tmpfs over a directory, whose content was copied in; unmounted when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn try_mount(path: &Path, size_bytes: u64, noexec: bool) -> nix::Result<Self> {
        let options = format!("size={size_bytes},mode=0700");
        let flags = if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        mount(Some("holdfast-test"), path, Some("tmpfs"), flags, Some(options.as_str()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// An empty one of this size over `path`.
    ///
    /// # Panics
    /// When the system refuses; ask [`possible`] first.
    #[must_use]
    pub fn empty(path: &Path, size_bytes: u64, noexec: bool) -> Self {
        Self::try_mount(path, size_bytes, noexec)
            .unwrap_or_else(|e| panic!("cannot mount over {}: {e}", path.display()))
    }

    /// The directory `from` over the directory `path`.
    ///
    /// # Panics
    /// When the system refuses; ask [`possible`] first.
    #[must_use]
    pub fn bound(from: &Path, path: &Path) -> Self {
        mount(Some(from), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .unwrap_or_else(|e| panic!("cannot bind {} over {}: {e}", from.display(), path.display()));
        Self { path: path.to_owned() }
    }

    /// One of this size over the directory `path`, holding what the directory held, holes kept. `aside` is a free
    /// path on the same file system.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn over(path: &Path, aside: &Path, size_bytes: u64) -> Self {
        std::fs::rename(path, aside).unwrap_or_else(|e| panic!("cannot move {}: {e}", path.display()));
        std::fs::create_dir(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        let disk = Self::empty(path, size_bytes, false);
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=always"]).arg(aside.join(".")).arg(path);
        let _ = run(copy, 60 * SECOND).ok();
        std::fs::remove_dir_all(aside).unwrap_or_else(|e| panic!("cannot remove {}: {e}", aside.display()));
        disk
    }

    /// Gives it another size; what it holds stays.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn resize(&self, size_bytes: u64) {
        let options = format!("size={size_bytes}");
        mount(None::<&str>, &self.path, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
            .unwrap_or_else(|e| panic!("cannot resize {}: {e}", self.path.display()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, so that a process that still has a file open there does not keep the mount in place.
        if let Err(e) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {e}", self.path.display());
        }
    }
}
