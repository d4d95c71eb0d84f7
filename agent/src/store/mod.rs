//! What the agent keeps on its own disk: the lock of its data directory, spawn records, replica directories, trash.
//!
//! Everything here is blocking file work on small files; callers run it where blocking is allowed. Reads are
//! three-valued ([`Read`]): what cannot be read is never taken for what does not exist.

pub mod atomic;
pub mod identity;
pub mod instances;
pub mod lock;
pub mod place;
pub mod remembered;
pub mod replica_dirs;
pub mod trash;
pub mod uninstall;

use std::path::{Path, PathBuf};

use holdfast_dataplane::private_file::check_directory;

pub use atomic::Read;

use crate::error::Error;

/// The data directory and the places in it.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Makes the places that an agent needs and that are missing. Replica directories are never among them.
    ///
    /// # Errors
    /// When the file system refuses, or the directory is another user's, or others may write to it.
    pub fn open(root: &Path) -> Result<Self, Error> {
        atomic::make_dir(root)?;
        // Absolute, because instances run elsewhere and people read it in answers.
        let root = root.canonicalize().map_err(Error::io("resolve", root))?;
        check_directory(&root).map_err(Error::io("use the data directory", &root))?;
        let this = Self { root };
        for dir in [this.instances(), this.replicas(), this.trash()] {
            atomic::make_dir(&dir)?;
        }
        Ok(this)
    }

    /// The directory itself, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Held by the one agent of this directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        Self::lock_in(&self.root)
    }
    /// [`Self::lock`] of a data directory that may not be there yet.
    #[must_use]
    pub fn lock_in(root: &Path) -> PathBuf {
        root.join("agent.lock")
    }
    /// The file home of the registry.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        Self::registry_in(&self.root)
    }
    /// [`Self::registry`] of a data directory that may not be there yet.
    #[must_use]
    pub fn registry_in(root: &Path) -> PathBuf {
        root.join("registry")
    }
    /// One directory per instance.
    #[must_use]
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }
    /// One directory per replica.
    #[must_use]
    pub fn replicas(&self) -> PathBuf {
        self.root.join("replicas")
    }
    /// Where deleted data waits.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
    /// How long what is confirmed to be nobody's, and who holds it.
    #[must_use]
    pub fn orphans(&self) -> PathBuf {
        Self::orphans_in(&self.root)
    }
    /// [`Self::orphans`] of a data directory that may not be there yet.
    #[must_use]
    pub fn orphans_in(root: &Path) -> PathBuf {
        root.join("orphans.json")
    }
    /// For how long what waits in the trash has waited.
    #[must_use]
    pub fn trash_times(&self) -> PathBuf {
        Self::trash_times_in(&self.root)
    }
    /// [`Self::trash_times`] of a data directory that may not be there yet.
    #[must_use]
    pub fn trash_times_in(root: &Path) -> PathBuf {
        root.join("trash-times.json")
    }
    /// Where replica directories are made.
    #[must_use]
    pub fn place(&self) -> place::Place {
        place::Place::new(self.replicas(), Self::place_in(&self.root))
    }
    /// Which file system replica directories are made on.
    #[must_use]
    pub fn place_in(root: &Path) -> PathBuf {
        root.join("replicas.json")
    }
    /// Where the instances' binaries are, unless configured elsewhere.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }
}
