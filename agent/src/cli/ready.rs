//! The ready file: seen whole or not at all, and never one of an earlier start.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::json::Ready;
use crate::complaint::Complaint;
use crate::process::proc::{self, Life};
use crate::store::DataDir;

/// Where to write it.
#[derive(Debug)]
pub(super) struct ReadyFile {
    path: PathBuf,
}

impl ReadyFile {
    /// Takes away what an earlier start left, so that nobody waits for this one and reads that; unless an agent runs
    /// on this data directory: then the file is its, and this start is about to be refused.
    pub(super) fn prepare(path: &Path, data_dir: &Path) -> Result<Self, Complaint> {
        // A lock that cannot be looked at is no agent's excuse: the start says what is wrong with it.
        if matches!(proc::probe(&DataDir::lock_in(data_dir)), Ok(Life::Held)) {
            return Ok(Self { path: path.to_owned() });
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("failed to replace the ready file {}: {error}", path.display());
                Err(Complaint::failed(message).remedy("name a file that can be written with --ready-file"))
            }
            Ok(()) | Err(_) => Ok(Self { path: path.to_owned() }),
        }
    }

    /// Written beside its place, then renamed into it.
    pub(super) fn write(&self, ready: &Ready<'_>) -> Result<(), Complaint> {
        let failed = |error: io::Error| {
            Complaint::failed(format!("failed to write the ready file {}: {error}", self.path.display()))
                .remedy("name a file in a directory that exists and can be written with --ready-file")
        };
        let dir = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        let json = serde_json::to_string(ready).map_err(|error| failed(error.into()))?;
        writeln!(file, "{json}").map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_file_goes_first_and_the_new_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        fs::write(&path, "of an earlier start").unwrap();
        let lock = fs::File::create(DataDir::lock_in(dir.path())).unwrap();
        lock.try_lock().unwrap();
        ReadyFile::prepare(&path, dir.path()).unwrap();
        assert!(path.exists(), "it belongs to the agent that runs");
        drop(lock);
        fs::remove_file(DataDir::lock_in(dir.path())).unwrap();
        let file = ReadyFile::prepare(&path, dir.path()).unwrap();
        assert!(!path.exists());
        file.write(&Ready {
            agent: "unix:/a",
            volume: "demo",
            nbd_uri: "nbd+unix:///demo?socket=/s",
            pid: 1,
        })
        .unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"agent\":\"unix:/a\",\"volume\":\"demo\",\"nbd_uri\":\"nbd+unix:///demo?socket=/s\",\"pid\":1}\n"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_said() {
        let file =
            ReadyFile::prepare(Path::new("/nonexistent/ready.json"), Path::new("/nonexistent")).unwrap();
        let ready = Ready { agent: "", volume: "", nbd_uri: "", pid: 1 };
        let error = file.write(&ready).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ready.json") && error.contains("--ready-file"), "{error}");
    }
}
