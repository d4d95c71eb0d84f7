//! Spawn records: what this agent started, durable before it was started.
//!
//! `<data>/instances/<name>/` holds `record.json`, the instance's `lock` and its `log`. The record survives the
//! agent; together with the lock (which alone proves life) it is how a later agent finds the instance again.

use std::path::{Path, PathBuf};

use holdfast_proto::ids::{BootId, InstanceUuid, VolumeId};
use holdfast_proto::unknown::Unknown;
use serde::{Deserialize, Serialize};

use super::atomic::{self, Read};
use crate::core::creation::Creation;
use crate::core::instance::InstanceName;
use crate::error::Error;

/// The schema this build writes.
pub const SPAWN_SCHEMA: u32 = 1;

/// A process as the kernel tells it from a later one with the same number. It takes no unknown fields: what is new of a
/// process becomes a field of [`SpawnRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time_ticks: u64,
}

/// One creation of an instance on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRecord {
    /// [`SPAWN_SCHEMA`].
    pub schema: u32,
    /// Its name, which also says its kind, volume name and replica.
    pub name: InstanceName,
    /// Minted once per creation and kept across restarts of the process.
    pub uuid: InstanceUuid,
    /// The volume it belongs to.
    pub volume_id: VolumeId,
    /// The boot in which it was last spawned: in another boot its process cannot exist.
    pub boot_id: BootId,
    /// Of the binary it was last spawned from.
    pub binary_digest: String,
    /// Where it listens for its agent.
    pub control_socket: PathBuf,
    /// Its last known process; none between the record and the spawn.
    pub process: Option<ProcessId>,
    /// The data port it had last, so that its address survives a restart.
    pub preferred_port: Option<u16>,
    /// How often its process was started again.
    pub restarts: u32,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl SpawnRecord {
    /// What the core needs of it.
    #[must_use]
    pub fn creation(&self) -> Creation {
        Creation {
            uuid: self.uuid,
            volume_id: self.volume_id,
            restarts: self.restarts,
            boot_id: self.boot_id,
            ran: self.process.is_some(),
        }
    }
}

/// The spawn records of a node.
#[derive(Debug, Clone)]
pub struct InstanceStore {
    dir: PathBuf,
}

impl InstanceStore {
    /// The records below `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The instance's own directory.
    #[must_use]
    pub fn dir_of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    /// Where its output goes.
    #[must_use]
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.dir_of(name).join("log")
    }
    /// What it holds for as long as it lives.
    #[must_use]
    pub fn lock_of(&self, name: &str) -> PathBuf {
        self.dir_of(name).join("lock")
    }
    fn record_of(&self, name: &str) -> PathBuf {
        self.dir_of(name).join("record.json")
    }

    /// Every instance directory, with what its record says.
    ///
    /// # Errors
    /// When the directory cannot be listed completely: then nothing is known of any instance.
    pub fn list(&self) -> Result<Vec<(String, Read<SpawnRecord>)>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let entry = entry.map_err(Error::io("read", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                let read = self.read(&name);
                found.push((name, read));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// What the record of `name` says.
    #[must_use]
    pub fn read(&self, name: &str) -> Read<SpawnRecord> {
        let path = self.record_of(name);
        atomic::read_json(&path, SPAWN_SCHEMA).check(|record: &SpawnRecord| {
            if record.name.to_string() == name {
                Ok(())
            } else {
                Err(format!("{}: expected the name {name}, found {}", path.display(), record.name))
            }
        })
    }

    /// Makes `record` durable.
    ///
    /// # Errors
    /// When the file system refuses, or the old record is one of a newer build; the old record then stands.
    pub fn write(&self, record: &SpawnRecord) -> Result<(), Error> {
        let name = record.name.to_string();
        self.check_newer("start", &name)?;
        let dir = self.dir_of(&name);
        atomic::make_dir(&dir)?;
        atomic::replace_json(&self.record_of(&name), record)
    }

    /// A record of a newer build may say what this one must not do.
    ///
    /// # Errors
    /// When `name` has one.
    pub fn check_newer(&self, operation: &str, name: &str) -> Result<(), Error> {
        match atomic::newer(&self.record_of(name), SPAWN_SCHEMA) {
            Some(why) => Err(Error::refused(format!("{operation} instance {name}: {why}"))),
            None => Ok(()),
        }
    }

    /// Forgets an instance whose process is proven to have ended. Volume data is never in here.
    ///
    /// # Errors
    /// When the file system refuses, or the record is one of a newer build.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.check_newer("forget", name)?;
        let dir = self.dir_of(name);
        // The record first: a directory without one and without a held lock is known to be nothing.
        remove_if_there(&self.record_of(name))?;
        match std::fs::remove_dir_all(&dir) {
            Ok(()) => atomic::sync_dir(&self.dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", &dir)(error)),
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(name: &str) -> SpawnRecord {
        SpawnRecord {
            schema: SPAWN_SCHEMA,
            name: name.parse().unwrap(),
            uuid: InstanceUuid::random(),
            volume_id: VolumeId::random(),
            boot_id: BootId::random(),
            binary_digest: "0123456789abcdef".into(),
            control_socket: "/run/holdfast/x.sock".into(),
            process: Some(ProcessId { pid: 12, start_time_ticks: 34 }),
            preferred_port: Some(20001),
            restarts: 2,
            unknown: Unknown::default(),
        }
    }

    #[test]
    fn records_survive_and_damaged_ones_stay_unknown() {
        let tmp = tempfile::tempdir().unwrap();
        let store = InstanceStore::new(tmp.path().to_owned());
        let record = sample("demo.r1");
        store.write(&record).unwrap();
        store.write(&sample("demo.r2")).unwrap();
        std::fs::write(store.record_of("demo.r2"), b"{\"schema\":1,").unwrap();
        store.write(&sample("demo.r3")).unwrap();
        std::fs::copy(store.record_of("demo.r1"), store.record_of("demo.r3")).unwrap();
        std::fs::create_dir(tmp.path().join("demo.engine")).unwrap();
        let list = store.list().unwrap();
        assert_eq!(list.len(), 4);
        assert_eq!(list[0], ("demo.engine".into(), Read::Absent));
        assert_eq!(list[1], ("demo.r1".into(), Read::Found(record)));
        assert!(matches!(&list[2].1, Read::Unreadable(why) if why.contains("damaged")), "{:?}", list[2]);
        assert!(matches!(&list[3].1, Read::Unreadable(why) if why.contains("expected the name demo.r3")));
    }

    #[test]
    fn records_keep_what_this_build_does_not_know() {
        let tmp = tempfile::tempdir().unwrap();
        let store = InstanceStore::new(tmp.path().to_owned());
        let mut json = serde_json::to_value(sample("demo.r1")).unwrap();
        json["later"] = 7.into();
        store.write(&serde_json::from_value(json).unwrap()).unwrap();
        let Read::Found(mut record) = store.read("demo.r1") else { panic!("it can be read") };
        record.restarts += 1;
        store.write(&record).unwrap();
        let Read::Found(record) = store.read("demo.r1") else { panic!("it can be read") };
        assert_eq!(record.unknown.names().collect::<Vec<_>>(), ["later"]);
    }

    #[test]
    fn records_of_a_newer_build_are_neither_replaced_nor_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let store = InstanceStore::new(tmp.path().to_owned());
        let record = sample("demo.r1");
        store.write(&record).unwrap();
        let text = std::fs::read_to_string(store.record_of("demo.r1")).unwrap();
        let newer = text.replacen('{', "{\"requires\": [\"tomorrow\"],", 1);
        std::fs::write(store.record_of("demo.r1"), &newer).unwrap();
        for refused in [store.write(&record), store.remove("demo.r1")] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("\"tomorrow\"") && said.contains("upgrade"), "{said}");
        }
        assert_eq!(std::fs::read_to_string(store.record_of("demo.r1")).unwrap(), newer);
    }

    #[test]
    fn an_unreadable_directory_is_an_error_and_not_an_empty_list() {
        let store = InstanceStore::new("/nonexistent/instances".into());
        assert!(store.list().is_err());
    }

    #[test]
    fn removing_twice_is_done() {
        let tmp = tempfile::tempdir().unwrap();
        let store = InstanceStore::new(tmp.path().to_owned());
        store.write(&sample("demo.r1")).unwrap();
        store.remove("demo.r1").unwrap();
        store.remove("demo.r1").unwrap();
        assert!(store.list().unwrap().is_empty());
    }
}
