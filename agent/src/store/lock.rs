//! One agent per data directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
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
        let mut file = PrivateFile::read_write().create().open(path).map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(held_by_another(&mut file, path)),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
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
}
