//! One agent per data directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::ids::NodeName;

use crate::error::Error;

/// What is read of the line in it.
const LINE_BYTES_MAX: u64 = 512;

/// Held for as long as it lives; the kernel lets go of it however the process ends, and instances do not inherit it.
#[derive(Debug)]
pub struct AgentLock {
    file: File,
    path: PathBuf,
}

impl AgentLock {
    /// Takes the lock and says in it who holds it.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when another agent has it.
    pub fn take(path: &Path, node: &str, listen: &str) -> Result<Self, Error> {
        let mut lock = Self::hold(path)?;
        lock.say(node, listen)?;
        Ok(lock)
    }

    /// Takes the lock and leaves in it who held it last.
    ///
    /// # Errors
    /// As of [`Self::take`].
    pub fn hold(path: &Path) -> Result<Self, Error> {
        let mut file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(held_by_another(&mut file, path)),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
        }
    }

    /// The same, once the agent that has it has ended. `held` is told that it has to be waited for. Blocking.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn wait(path: &Path, held: impl Fn(&Error)) -> Result<Self, Error> {
        loop {
            let mut file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    held(&held_by_another(&mut file, path));
                    file.lock().map_err(Error::io("lock", path))?;
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
            }
            // An uninstall removes the file: the lock of one that is gone keeps nobody out.
            let here = file.metadata().map_err(Error::io("stat", path))?;
            if path.metadata().is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    /// Says in it who holds it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn say(&mut self, node: &str, listen: &str) -> Result<(), Error> {
        let content = format!("pid={} node={node} listen={listen}\n", std::process::id());
        // Over what is there, for which there is room on a full disk, too.
        (self.file.rewind())
            .and_then(|()| self.file.write_all(content.as_bytes()))
            .and_then(|()| self.file.set_len(content.len() as u64))
            .map_err(Error::io("write", &self.path))
    }

    /// Device and inode of the file: which lock of this boot it is.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let metadata = self.file.metadata().map_err(Error::io("stat", &self.path))?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

fn open(path: &Path) -> Result<File, Error> {
    PrivateFile::read_write().create().open(path).map_err(Error::io("open", path))
}

/// The node whose agent held the lock last, as far as it says so.
#[must_use]
pub fn last_node(path: &Path) -> Option<NodeName> {
    let mut line = String::new();
    PrivateFile::read().open(path).ok()?.take(LINE_BYTES_MAX).read_to_string(&mut line).ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix("node="))?.parse().ok()
}

fn held_by_another(file: &mut File, path: &Path) -> Error {
    let mut holder = String::new();
    // Only for the message: a holder that has not written its line yet is still a holder.
    let _ = file.take(LINE_BYTES_MAX).read_to_string(&mut holder);
    let holder = match holder.trim() {
        "" => "another agent",
        told => told,
    };
    Error::conflict(format!(
        "use the data directory of {}: it is held by {holder}; stop that agent, or choose another --data-dir",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::status::ErrorKind;

    #[test]
    fn the_second_agent_is_told_who_holds_it() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("agent.lock");
        let first = AgentLock::take(&path, "node-a", "unix:/run/a.sock").unwrap();
        let error = AgentLock::take(&path, "node-b", "unix:/run/b.sock").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let said = error.to_string();
        let pid = format!("pid={}", std::process::id());
        assert!(said.contains(&pid) && said.contains("node-a") && said.contains("/run/a.sock"), "{said}");
        drop(first);
        assert_eq!(last_node(&path), Some("node-a".parse().unwrap()));
        AgentLock::take(&path, "node-b", "unix:/run/b.sock").unwrap();
    }

    #[test]
    fn a_waiting_agent_gets_the_lock_when_the_first_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("agent.lock");
        let first = AgentLock::take(&path, "node-a", "unix:/run/a.sock").unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut lock = AgentLock::wait(&path, |held| told.send(held.to_string()).unwrap())?;
                lock.say("node-a", "unix:/run/b.sock").map(|()| lock)
            }
        });
        let said = heard.recv().unwrap();
        assert!(said.contains("/run/a.sock"), "{said}");
        let of_first = first.identity().unwrap();
        drop(first);
        let second = waiting.join().unwrap().unwrap();
        assert_eq!(second.identity().unwrap(), of_first, "a restart holds the lock of the run before");
        assert!(std::fs::read_to_string(&path).unwrap().contains("/run/b.sock"));
    }

    #[test]
    fn the_lock_of_a_copy_is_another_one() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, copy) = (tmp.path().join("agent.lock"), tmp.path().join("copy.lock"));
        let first = AgentLock::take(&path, "node-a", "unix:/run/a.sock").unwrap();
        std::fs::copy(&path, &copy).unwrap();
        let second = AgentLock::take(&copy, "node-a", "unix:/run/a.sock").unwrap();
        assert_ne!(first.identity().unwrap(), second.identity().unwrap());
    }
}
