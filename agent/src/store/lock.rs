//! One agent per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::Error;

/// Held for as long as it lives; the kernel lets go of it however the process ends, and instances do not inherit it.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
}

impl AgentLock {
    /// Takes the lock and says in it who holds it.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when another agent has it.
    pub fn take(path: &Path, node: &str, listen: &str) -> Result<Self, Error> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held_by_another(&mut file, path)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        let content = format!("pid={} node={node} listen={listen}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(content.as_bytes()))
            .map_err(Error::io("write", path))?;
        Ok(Self { _file: file })
    }
}

fn held_by_another(file: &mut File, path: &Path) -> Error {
    let mut holder = String::new();
    // Only for the message: a holder that has not written its line yet is still a holder.
    let _ = file.take(512).read_to_string(&mut holder);
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
        AgentLock::take(&path, "node-b", "unix:/run/b.sock").unwrap();
    }
}
