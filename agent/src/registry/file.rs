//! The registry as files of the data directory: one node, nothing to install.
//!
//! `registry.json` names this life of the registry, `volumes/<name>.json` and `nodes/<name>.json` are the records,
//! `keys/<volume-id>.key` the keys, `claims/<node>/<instance>.json` the claims of others. The agent's lock on the data
//! directory makes it the only writer; a mutex orders its own threads. A registry that exists is never made again: where
//! its parts are missing later, reads are errors, not emptiness.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::ids::{Incarnation, NodeName, VolumeId, VolumeName};
use holdfast_proto::record::{
    CLAIM_SCHEMA, ClaimRecord, NODE_SCHEMA, NodeRecord, RECORD_SCHEMA, VolumeRecord,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::inventory::{InventoryFiles, InventoryHome};
use super::stored_key::{KEY_SCHEMA, StoredKey};
use super::{Entry, Read, Registry, Swap, VolumeKey, check_claim, check_record, claimed};
use crate::blocking::blocking;
use crate::core::foreign::Stored;
use crate::core::instance::InstanceName;
use crate::core::nodes::Heard;
use crate::error::Error;
use crate::store::atomic;
use crate::store::remembered::Remembered;

const HOME_SCHEMA: u32 = 1;

/// Written once, and so loses nothing that it does not know.
#[derive(Debug, Serialize, Deserialize)]
struct Home {
    schema: u32,
    incarnation: Incarnation,
}

/// Records as files.
#[derive(Debug, Clone)]
pub struct FileRegistry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    volumes: PathBuf,
    keys: PathBuf,
    nodes: PathBuf,
    /// One directory for each node.
    claims: PathBuf,
    incarnation: Incarnation,
    // Held from the read that compares to the write that replaces; only ever inside blocking work.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
    /// Records as they were read last.
    seen: Remembered<Arc<VolumeRecord>>,
}

/// Whether records are kept in the files below `root`; where that cannot be told, they are.
#[must_use]
pub fn has_records(root: &Path) -> bool {
    match std::fs::read_dir(root.join("volumes")) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

impl FileRegistry {
    /// Opens the registry below `root`, or makes it where there has never been one. Blocking.
    ///
    /// # Errors
    /// When `registry.json` is damaged or foreign, or the file system refuses.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let (volumes, keys, nodes) = (root.join("volumes"), root.join("keys"), root.join("nodes"));
        let home = root.join("registry.json");
        let incarnation = match atomic::read_json::<Home>(&home, HOME_SCHEMA) {
            Read::Found(found) => found.incarnation,
            Read::Unreadable(reason) => {
                let remedy = "restore that file, or remove it to begin a new incarnation (every replica of a volume \
                              must then be present at its next attach)";
                let why = atomic::with_remedy(&home, HOME_SCHEMA, reason, remedy);
                return Err(Error::failed(format!("open the registry: {why}")));
            }
            Read::Absent => {
                for dir in [root, &volumes, &keys] {
                    atomic::make_dir(dir)?;
                }
                let incarnation = Incarnation::random();
                atomic::replace_json(&home, &Home { schema: HOME_SCHEMA, incarnation })?;
                tracing::info!(%incarnation, "a new registry");
                incarnation
            }
        };
        for dir in [&volumes, &keys, &nodes] {
            if dir.is_dir() {
                atomic::clear_temporaries(dir)?;
            }
        }
        let changed = watch::Sender::new(0);
        let claims = root.join("claims");
        let root = root.to_owned();
        let inner = Inner {
            root,
            volumes,
            keys,
            nodes,
            claims,
            incarnation,
            writing: Mutex::new(()),
            changed,
            seen: Remembered::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

impl Inner {
    fn path(&self, name: &str) -> PathBuf {
        self.volumes.join(format!("{name}.json"))
    }

    fn key_path(&self, id: VolumeId) -> PathBuf {
        self.keys.join(format!("{id}.key"))
    }

    fn require_home(&self) -> Result<(), Error> {
        if self.volumes.is_dir() {
            return Ok(());
        }
        Err(Error::failed(format!(
            "read the registry: {} is missing: is the disk mounted?",
            self.volumes.display()
        )))
    }

    fn read(&self, name: &str) -> Read<VolumeRecord> {
        let path = self.path(name);
        let told = |problem: String| format!("{}: {problem}; restore it from a backup", path.display());
        atomic::read_json(&path, RECORD_SCHEMA).check(|record: &VolumeRecord| {
            if record.name.as_str() != name {
                return Err(told(format!("name: expected {name}, found {}", record.name)));
            }
            check_record(record).map_err(told)
        })
    }

    /// The record that a conditional write is about.
    fn current(&self, name: &VolumeName, id: VolumeId) -> Result<Option<VolumeRecord>, Error> {
        self.require_home()?;
        match self.read(name.as_str()) {
            Read::Found(record) if record.id == id => Ok(Some(record)),
            // The name was given to another volume: this one's record is gone.
            Read::Found(_) | Read::Absent => Ok(None),
            Read::Unreadable(reason) => Err(Error::failed(format!("change volume {name}: {reason}"))),
        }
    }

    fn list(&self) -> Result<Vec<Entry>, Error> {
        self.list_by(|name| self.read(name)).map(|(entries, _)| entries)
    }

    /// Parses only the records that may have changed.
    fn look(&self) -> Result<Vec<Entry>, Error> {
        let (entries, there) = self.list_by(|name| {
            let read = self.seen.read(&self.path(name), || match self.read(name) {
                Read::Found(record) => Ok(Arc::new(record)),
                other => Err(Box::new(other)),
            });
            read.map_or_else(|other| *other, |record| Read::Found(Arc::unwrap_or_clone(record)))
        })?;
        self.seen.retain(there.iter().map(|path| path.as_os_str()));
        Ok(entries)
    }

    /// All records by name, and their files.
    fn list_by(
        &self,
        read: impl Fn(&str) -> Read<VolumeRecord>,
    ) -> Result<(Vec<Entry>, Vec<PathBuf>), Error> {
        self.require_home()?;
        let (mut entries, mut there) = (Vec::new(), Vec::new());
        for file in std::fs::read_dir(&self.volumes).map_err(Error::io("read", &self.volumes))? {
            let file = file.map_err(Error::io("read", &self.volumes))?.file_name();
            let file = file.to_string_lossy();
            let Some(name) = file.strip_suffix(".json").filter(|name| !name.starts_with('.')) else {
                continue;
            };
            there.push(self.path(name));
            match read(name) {
                Read::Found(record) => entries.push(Entry::Readable(Box::new(record))),
                Read::Unreadable(reason) => {
                    entries.push(Entry::Unreadable { name: name.to_owned(), reason });
                }
                // Deleted since the directory was read.
                Read::Absent => {}
            }
        }
        entries.sort_by(|a, b| a.name().cmp(b.name()));
        Ok((entries, there))
    }

    fn create(&self, mut record: VolumeRecord) -> Result<VolumeRecord, Error> {
        check_record(&record).map_err(|e| Error::invalid(format!("create volume {}: {e}", record.name)))?;
        let _writing = self.writing.lock();
        self.require_home()?;
        let path = self.path(record.name.as_str());
        // Whatever lies there is somebody's record, readable or not.
        if path.symlink_metadata().is_ok() {
            return Err(Error::conflict(format!("create volume {}: it exists already", record.name)));
        }
        record.version = 1;
        atomic::replace_json(&path, &record)?;
        self.tick();
        Ok(record)
    }

    fn swap(&self, expected: u64, mut record: VolumeRecord) -> Result<Swap, Error> {
        check_record(&record).map_err(|e| Error::invalid(format!("change volume {}: {e}", record.name)))?;
        let _writing = self.writing.lock();
        let Some(current) = self.current(&record.name, record.id)? else { return Ok(Swap::Missing) };
        if current.version != expected {
            return Ok(Swap::Conflict(Box::new(current)));
        }
        record.version = expected + 1;
        atomic::replace_json(&self.path(record.name.as_str()), &record)?;
        if record.spec != current.spec {
            self.tick();
        }
        Ok(Swap::Stored(Box::new(record)))
    }

    fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error> {
        let _writing = self.writing.lock();
        let Some(current) = self.current(name, id)? else { return Ok(Swap::Missing) };
        if current.version != expected {
            return Ok(Swap::Conflict(Box::new(current)));
        }
        let path = self.path(name.as_str());
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        atomic::sync_dir(&self.volumes)?;
        self.tick();
        Ok(Swap::Stored(Box::new(current)))
    }

    fn key(&self, id: VolumeId) -> Read<VolumeKey> {
        let path = self.key_path(id);
        let read = atomic::read_json(&path, KEY_SCHEMA);
        StoredKey::to_key(read, &path.display().to_string())
    }

    fn put_key(&self, id: VolumeId, key: &VolumeKey) -> Result<(), Error> {
        atomic::replace_json(&self.key_path(id), &StoredKey::of(key))
    }

    fn delete_key(&self, id: VolumeId) -> Result<(), Error> {
        let path = self.key_path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => atomic::sync_dir(&self.keys),
        }
    }

    fn node(&self, name: &NodeName) -> Read<NodeRecord> {
        let path = self.nodes.join(format!("{name}.json"));
        atomic::read_json(&path, NODE_SCHEMA).check(|record: &NodeRecord| {
            if record.name == *name {
                return Ok(());
            }
            Err(format!("{}: name: expected {name}, found {}; remove it", path.display(), record.name))
        })
    }

    fn put_node(&self, mut record: NodeRecord) -> Result<bool, Error> {
        let _writing = self.writing.lock();
        self.require_home()?;
        let version = match self.node(&record.name) {
            Read::Found(current) => current.version,
            Read::Absent => 0,
            Read::Unreadable(reason) => {
                return Err(Error::failed(format!("change node {}: {reason}", record.name)));
            }
        };
        if version != record.version {
            return Ok(false);
        }
        record.version += 1;
        atomic::make_dir(&self.nodes)?;
        atomic::replace_json(&self.nodes.join(format!("{}.json", record.name)), &record)?;
        Ok(true)
    }

    fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error> {
        let _writing = self.writing.lock();
        self.require_home()?;
        let current = match self.node(name) {
            Read::Found(current) => current.version,
            Read::Absent => 0,
            Read::Unreadable(reason) => {
                return Err(Error::failed(format!("forget node {name}: {reason}")));
            }
        };
        if current != version {
            return Ok(false);
        }
        let published = self.root.join("inventory").join(name.as_str());
        match std::fs::remove_dir_all(&published) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &published)(error));
            }
            _ => {}
        }
        let path = self.nodes.join(format!("{name}.json"));
        match std::fs::remove_file(&path) {
            Ok(()) => atomic::sync_dir(&self.nodes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &path)(error)),
        }
        Ok(true)
    }

    fn claim_path(&self, node: &NodeName, name: &InstanceName) -> PathBuf {
        self.claims.join(node.as_str()).join(format!("{name}.json"))
    }

    fn claim(&self, node: &NodeName, name: &InstanceName) -> Read<ClaimRecord> {
        let path = self.claim_path(node, name);
        atomic::read_json(&path, CLAIM_SCHEMA)
            .check(|claim| check_claim(claim, node, name, &path.display().to_string()))
    }

    fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error> {
        self.require_home()?;
        let dir = self.claims.join(node.as_str());
        let files = match std::fs::read_dir(&dir) {
            // Nobody ever claimed anything here.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            files => files.map_err(Error::io("read", &dir))?,
        };
        let mut found = BTreeMap::new();
        for file in files {
            let file = file.map_err(Error::io("read", &dir))?.file_name();
            let file = file.to_string_lossy();
            let named = file.strip_suffix(".json").filter(|name| !name.starts_with('.'));
            // What has no instance's name claims none.
            let Some(name) = named.and_then(|name| name.parse::<InstanceName>().ok()) else { continue };
            match self.claim(node, &name) {
                Read::Found(claim) => found.insert(name, Stored::Readable(Box::new(claim))),
                Read::Unreadable(reason) => found.insert(name, Stored::Unreadable(reason)),
                Read::Absent => None,
            };
        }
        Ok(found)
    }

    fn claim_version(&self, node: &NodeName, name: &InstanceName) -> Result<u64, Error> {
        self.require_home()?;
        match self.claim(node, name) {
            Read::Found(current) => Ok(current.version),
            Read::Absent => Ok(0),
            Read::Unreadable(reason) => Err(Error::failed(format!("change the claim of {name}: {reason}"))),
        }
    }

    fn put_claim(&self, mut claim: ClaimRecord) -> Result<bool, Error> {
        let name = claimed(&claim)?;
        let _writing = self.writing.lock();
        if self.claim_version(&claim.node, &name)? != claim.version {
            return Ok(false);
        }
        claim.version += 1;
        let path = self.claim_path(&claim.node, &name);
        for dir in [&self.claims, &self.claims.join(claim.node.as_str())] {
            atomic::make_dir(dir)?;
        }
        atomic::replace_json(&path, &claim)?;
        Ok(true)
    }

    fn delete_claim(&self, node: &NodeName, name: &InstanceName, version: u64) -> Result<bool, Error> {
        let _writing = self.writing.lock();
        self.require_home()?;
        match self.claim(node, name) {
            Read::Found(claim) if claim.version == version => {}
            Read::Unreadable(_) if version == 0 => {}
            Read::Found(_) | Read::Unreadable(_) | Read::Absent => return Ok(false),
        }
        let path = self.claim_path(node, name);
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        atomic::sync_dir(&self.claims.join(node.as_str()))?;
        Ok(true)
    }

    fn tick(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

#[tonic::async_trait]
impl Registry for FileRegistry {
    fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }
    async fn list(&self) -> Result<Vec<Entry>, Error> {
        self.blocking(Inner::list).await
    }
    async fn look(&self) -> Result<Vec<Entry>, Error> {
        self.blocking(Inner::look).await
    }
    async fn get(&self, name: &VolumeName) -> Result<Read<VolumeRecord>, Error> {
        let name = name.clone();
        self.blocking(move |inner| inner.require_home().map(|()| inner.read(name.as_str()))).await
    }
    async fn create(&self, record: VolumeRecord) -> Result<VolumeRecord, Error> {
        self.blocking(move |inner| inner.create(record)).await
    }
    async fn compare_and_swap(&self, expected: u64, record: VolumeRecord) -> Result<Swap, Error> {
        self.blocking(move |inner| inner.swap(expected, record)).await
    }
    async fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error> {
        let name = name.clone();
        self.blocking(move |inner| inner.delete(&name, id, expected)).await
    }
    async fn key(&self, id: VolumeId) -> Result<Read<VolumeKey>, Error> {
        self.blocking(move |inner| Ok(inner.key(id))).await
    }
    async fn put_key(&self, id: VolumeId, key: VolumeKey) -> Result<(), Error> {
        self.blocking(move |inner| inner.put_key(id, &key)).await
    }
    async fn delete_key(&self, id: VolumeId) -> Result<(), Error> {
        self.blocking(move |inner| inner.delete_key(id)).await
    }
    async fn node(&self, name: &NodeName) -> Result<Read<NodeRecord>, Error> {
        let name = name.clone();
        self.blocking(move |inner| inner.require_home().map(|()| inner.node(&name))).await
    }
    async fn put_node(&self, record: NodeRecord) -> Result<bool, Error> {
        self.blocking(move |inner| inner.put_node(record)).await
    }
    async fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error> {
        let name = name.clone();
        self.blocking(move |inner| inner.forget_node(&name, version)).await
    }
    fn inventory(&self, node: &NodeName) -> Option<Arc<dyn InventoryHome>> {
        Some(Arc::new(InventoryFiles::new(&self.inner.root, node)))
    }
    async fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error> {
        let node = node.clone();
        self.blocking(move |inner| inner.claims(&node)).await
    }
    async fn put_claim(&self, claim: ClaimRecord) -> Result<bool, Error> {
        self.blocking(move |inner| inner.put_claim(claim)).await
    }
    async fn delete_claim(&self, node: &NodeName, name: &InstanceName, version: u64) -> Result<bool, Error> {
        let (node, name) = (node.clone(), name.clone());
        self.blocking(move |inner| inner.delete_claim(&node, &name, version)).await
    }
    fn follow_nodes(&self) -> Option<mpsc::Receiver<Heard>> {
        None
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
