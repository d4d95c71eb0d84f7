//! Taking an agent's files away once nothing of it runs: exactly what is ours, each step repeatable, what is missing
//! already done. Replica data and records are never among it.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use holdfast_dataplane::private_file::PrivateFile;

use crate::error::Error;
use crate::process::binary;
use crate::process::proc::{self, Life};

use super::instances::InstanceStore;
use super::{DataDir, atomic, identity, place, replica_dirs};

/// Held by the one that takes the agent of a data directory away.
#[derive(Debug)]
pub struct UninstallLock {
    path: PathBuf,
    _file: File,
}

impl UninstallLock {
    /// Takes the lock; none where another has it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn take(data_dir: &Path) -> Result<Option<Self>, Error> {
        let path = data_dir.join("uninstall.lock");
        loop {
            let file = PrivateFile::read_write().create().open(&path).map_err(Error::io("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
            // The one before may have removed the file that we have just locked.
            let ours = file.metadata().map_err(Error::io("look at", &path))?.ino();
            match std::fs::metadata(&path) {
                Ok(there) if there.ino() == ours => return Ok(Some(Self { path, _file: file })),
                _ => {}
            }
        }
    }
}

/// Where the things are that an agent leaves.
#[derive(Debug, Clone)]
pub struct Places {
    /// Records, instances, replicas.
    pub data_dir: PathBuf,
    /// Copies of the binary.
    pub bin_dir: PathBuf,
    /// Sockets of instances and frontends.
    pub runtime_dir: PathBuf,
    /// The agent's own socket.
    pub listen: PathBuf,
}

impl Places {
    /// Whether an instance lives here, or may: nothing is removed under it.
    ///
    /// # Errors
    /// When instances cannot be listed.
    pub fn living(&self) -> Result<Vec<String>, Error> {
        let dir = self.data_dir.join("instances");
        if !dir.is_dir() {
            return Ok(Vec::new());
        }
        let store = InstanceStore::new(dir);
        let names = store.list()?.into_iter().map(|(name, _)| name);
        Ok(names.filter(|name| !matches!(proc::probe(&store.lock_of(name)), Ok(Life::Free))).collect())
    }

    /// Whether there is anything here that [`Self::clear`] would have to end or remove, or a lock.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        ["instances", "agent.lock", "uninstall.lock"].iter().any(|name| self.data_dir.join(name).exists())
    }

    /// Removes what is ours but the locks. Returns what went, and what stays with what is in it.
    ///
    /// # Errors
    /// When the file system refuses; what is left is removed by the next attempt.
    pub fn clear(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Error> {
        let mut gone = Vec::new();
        remove_sockets(&self.runtime_dir, &mut gone)?;
        remove_file(&self.listen, &mut gone)?;
        let mut lock = self.listen.clone().into_os_string();
        lock.push(".lock");
        remove_file(Path::new(&lock), &mut gone)?;
        if self.bin_dir.is_dir() {
            gone.extend(binary::remove_unused(&self.bin_dir, &BTreeSet::new())?);
        }
        let instances = self.data_dir.join("instances");
        if instances.is_dir() {
            std::fs::remove_dir_all(&instances).map_err(Error::io("remove", &instances))?;
            gone.push(instances);
        }
        if self.data_dir.is_dir() {
            atomic::clear_temporaries(&self.data_dir)?;
        }
        let below = ["replicas", "trash"].map(|name| self.data_dir.join(name));
        remove_marks(&below[0], &mut gone)?;
        let mut stays = Vec::new();
        for dir in [&self.runtime_dir, &self.bin_dir].into_iter().chain(&below) {
            if !remove_empty(dir, &mut gone)? {
                stays.push(dir.clone());
            }
        }
        Ok((gone, stays))
    }

    /// Removes the records of a registry of files, and what is known of orphans, where no data is left that they are about.
    ///
    /// # Errors
    /// As for [`Self::clear`].
    pub fn clear_registry(&self, gone: &mut Vec<PathBuf>) -> Result<(), Error> {
        let registry = DataDir::registry_in(&self.data_dir);
        if registry.is_dir() {
            std::fs::remove_dir_all(&registry).map_err(Error::io("remove", &registry))?;
            gone.push(registry);
        }
        // Who holds which data, for how long it has waited, and where it was: none is left.
        remove_file(&DataDir::orphans_in(&self.data_dir), gone)?;
        remove_file(&DataDir::trash_times_in(&self.data_dir), gone)?;
        remove_file(&DataDir::place_in(&self.data_dir), gone)?;
        // Whose the directory was.
        remove_file(&identity::path_in(&self.data_dir), gone)
    }

    /// Removes the locks, last of all, and the data directory if nothing is in it. Returns whether it is gone.
    ///
    /// # Errors
    /// As for [`Self::clear`].
    pub fn clear_locks(&self, lock: UninstallLock) -> Result<bool, Error> {
        let mut gone = Vec::new();
        remove_file(&self.data_dir.join("agent.lock"), &mut gone)?;
        remove_file(&lock.path, &mut gone)?;
        remove_empty(&self.data_dir, &mut gone)
    }
}

/// What is in the directory of replicas beside them: what failed half-way, and, where nothing else is there, the mark of
/// the file system.
fn remove_marks(replicas: &Path, gone: &mut Vec<PathBuf>) -> Result<(), Error> {
    if !replicas.is_dir() {
        return Ok(());
    }
    replica_dirs::clear_unfinished(replicas);
    let mark = replicas.join(place::MARK);
    let mut others = std::fs::read_dir(replicas).map_err(Error::io("read", replicas))?;
    if others.all(|entry| entry.is_ok_and(|entry| entry.path() == mark)) {
        remove_file(&mark, gone)?;
    }
    Ok(())
}

/// Sockets with names like ours; whatever else is there is somebody's.
fn remove_sockets(dir: &Path, gone: &mut Vec<PathBuf>) -> Result<(), Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if is_socket && entry.path().extension().is_some_and(|extension| extension == "sock") {
            remove_file(&entry.path(), gone)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path, gone: &mut Vec<PathBuf>) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Ok(()) => gone.push(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", path)(error)),
    }
    Ok(())
}

/// Returns whether there is no such directory any more.
fn remove_empty(dir: &Path, gone: &mut Vec<PathBuf>) -> Result<bool, Error> {
    match std::fs::remove_dir(dir) {
        Ok(()) => gone.push(dir.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A mount point stays, whatever is in it.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) =>
        {
            return Ok(false);
        }
        // A directory of the service manager's, say: empty is as good as gone.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
        Err(error) => return Err(Error::io("remove", dir)(error)),
    }
    Ok(true)
}
