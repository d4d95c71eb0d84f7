//! The trait, over etcd: records and keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_proto::ids::{Incarnation, NodeName, VolumeId, VolumeName};
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::record::{ClaimRecord, NODE_SCHEMA, NodeRecord, RECORD_SCHEMA, VolumeRecord};
use tokio::sync::{mpsc, watch};

use super::inventory::{EtcdInventory, INVENTORY};
use super::{
    EtcdRegistry, Inner, delete, delete_below, found, nodes, presence, put, range, range_below, unchanged,
};
use crate::blocking::blocking;
use crate::core::foreign::Stored;
use crate::core::instance::InstanceName;
use crate::core::nodes::Heard;
use crate::core::presence::Standing;
use crate::error::Error;
use crate::registry::inventory::InventoryHome;
use crate::registry::stored_key::{KEY_SCHEMA, StoredKey};
use crate::registry::{Announcement, Entry, Read, Registry, Review, Swap, VolumeKey, check_record};
use crate::store::atomic;

/// A reader that is this far behind holds up the stream, and with it nothing but itself.
const FEED_MAX: usize = 256;

pub(super) const VOLUMES: &str = "volumes";
const KEYS: &str = "keys";
pub(super) const WISHES: &str = "wishes";

/// A record as it is, and the revision that a change of it compares.
type Current = (VolumeRecord, i64);

impl Inner {
    fn parse(&self, name: &str, bytes: &[u8]) -> Read<VolumeRecord> {
        let place = format!("{} in etcd", self.key(VOLUMES, name));
        let told = |problem: String| format!("{place}: {problem}; restore it from a backup");
        atomic::parse_json(bytes, &place, RECORD_SCHEMA).check(|record: &VolumeRecord| {
            if record.name.as_str() != name {
                return Err(told(format!("name: expected {name}, found {}", record.name)));
            }
            check_record(record).map_err(told)
        })
    }

    async fn list(&self) -> Result<Vec<Entry>, Error> {
        let prefix = self.key(VOLUMES, "");
        let answer = self.read("read the registry", vec![range_below(&prefix)]).await?;
        Ok(found(&answer, 0).iter().map(|kv| self.entry(kv)).collect())
    }

    /// One key below `volumes/`.
    pub(super) fn entry(&self, kv: &pb::KeyValue) -> Entry {
        let prefix = self.key(VOLUMES, "");
        let key = String::from_utf8_lossy(&kv.key);
        let name = key.strip_prefix(&prefix).unwrap_or(&key);
        match self.parse(name, &kv.value) {
            Read::Found(record) => Entry::Readable(Box::new(record)),
            Read::Unreadable(reason) => Entry::Unreadable { name: name.to_owned(), reason },
            Read::Absent => Entry::Unreadable { name: name.to_owned(), reason: "it is empty".to_owned() },
        }
    }

    async fn get(&self, name: &VolumeName) -> Result<(Read<VolumeRecord>, i64), Error> {
        let key = self.key(VOLUMES, name);
        let answer = self.read(&format!("read volume {name}"), vec![range(&key)]).await?;
        Ok(match found(&answer, 0).first() {
            Some(kv) => (self.parse(name.as_str(), &kv.value), kv.mod_revision),
            None => (Read::Absent, 0),
        })
    }

    /// The record that a conditional write is about.
    async fn current(&self, name: &VolumeName, id: VolumeId) -> Result<Option<Current>, Error> {
        match self.get(name).await? {
            (Read::Found(record), revision) if record.id == id => Ok(Some((record, revision))),
            // The name was given to another volume: this one's record is gone.
            (Read::Found(_) | Read::Absent, _) => Ok(None),
            (Read::Unreadable(reason), _) => Err(Error::failed(format!("change volume {name}: {reason}"))),
        }
    }

    async fn create(&self, mut record: VolumeRecord) -> Result<VolumeRecord, Error> {
        let operation = format!("create volume {}", record.name);
        check_record(&record).map_err(|e| Error::invalid(format!("{operation}: {e}")))?;
        record.version = 1;
        let exists = || Error::conflict(format!("{operation}: it exists already"));
        // Also shows that this etcd may be believed, before anything is written into it.
        if !matches!(self.get(&record.name).await?.0, Read::Absent) {
            return Err(exists());
        }
        let key = self.key(VOLUMES, &record.name);
        let change = self.change(&operation, vec![unchanged(&key, 0)], vec![put(&key, encode(&record)?, 0)]);
        match change.await {
            Ok(true) => Ok(record),
            Ok(false) => Err(exists()),
            Err(error) => match self.current(&record.name, record.id).await {
                Ok(Some((stored, _))) if stored == record => Ok(record),
                _ => Err(error),
            },
        }
    }

    async fn swap(&self, expected: u64, mut record: VolumeRecord) -> Result<Swap, Error> {
        let operation = format!("change volume {}", record.name);
        check_record(&record).map_err(|e| Error::invalid(format!("{operation}: {e}")))?;
        let Some((current, revision)) = self.current(&record.name, record.id).await? else {
            return Ok(Swap::Missing);
        };
        if current.version != expected {
            return Ok(Swap::Conflict(Box::new(current)));
        }
        record.version = expected + 1;
        let key = self.key(VOLUMES, &record.name);
        let change = vec![put(&key, encode(&record)?, 0)];
        match self.change(&operation, vec![unchanged(&key, revision)], change).await {
            Ok(true) => Ok(Swap::Stored(Box::new(record))),
            Ok(false) => self.conflict(&record.name, record.id).await,
            // The answer is lost. What stands there now may tell; otherwise it may still come to stand there.
            Err(error) => match self.current(&record.name, record.id).await {
                Ok(Some((stored, _))) if stored == record => Ok(Swap::Stored(Box::new(record))),
                _ => Err(error),
            },
        }
    }

    async fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error> {
        let Some((current, revision)) = self.current(name, id).await? else { return Ok(Swap::Missing) };
        if current.version != expected {
            return Ok(Swap::Conflict(Box::new(current)));
        }
        let key = self.key(VOLUMES, name);
        let operation = format!("delete volume {name}");
        if self.change(&operation, vec![unchanged(&key, revision)], vec![delete(&key)]).await? {
            Ok(Swap::Stored(Box::new(current)))
        } else {
            self.conflict(name, id).await
        }
    }

    /// Somebody else was first.
    async fn conflict(&self, name: &VolumeName, id: VolumeId) -> Result<Swap, Error> {
        Ok(match self.current(name, id).await? {
            Some((record, _)) => Swap::Conflict(Box::new(record)),
            None => Swap::Missing,
        })
    }

    async fn volume_key(&self, id: VolumeId) -> Result<Read<VolumeKey>, Error> {
        let key = self.key(KEYS, id);
        let answer = self.read(&format!("read the key of volume {id}"), vec![range(&key)]).await?;
        let place = format!("{key} in etcd");
        let read = match found(&answer, 0).first() {
            Some(kv) => atomic::parse_json(&kv.value, &place, KEY_SCHEMA),
            None => Read::Absent,
        };
        Ok(StoredKey::to_key(read, &place))
    }

    /// Changes a key whatever it was: as often as it takes, with the same end.
    async fn change_key(
        &self,
        operation: String,
        id: VolumeId,
        new: Option<&VolumeKey>,
    ) -> Result<(), Error> {
        let key = self.key(KEYS, id);
        self.read(&operation, vec![range(&key)]).await?;
        let change = match new {
            Some(new) => {
                let bytes = serde_json::to_vec(&StoredKey::of(new));
                put(&key, bytes.map_err(|e| Error::failed(format!("{operation}: {e}")))?, 0)
            }
            None => delete(&key),
        };
        self.change(&operation, Vec::new(), vec![change]).await.map(drop)
    }

    async fn node(&self, name: &NodeName) -> Result<(Read<NodeRecord>, i64), Error> {
        let key = self.key(WISHES, name);
        let answer = self.read(&format!("look at node {name}"), vec![range(&key)]).await?;
        Ok(match found(&answer, 0).first() {
            Some(kv) => (self.parse_node(name, &kv.value), kv.mod_revision),
            None => (Read::Absent, 0),
        })
    }

    pub(super) fn parse_node(&self, name: &NodeName, bytes: &[u8]) -> Read<NodeRecord> {
        let place = format!("{} in etcd", self.key(WISHES, name));
        atomic::parse_json(bytes, &place, NODE_SCHEMA).check(|record: &NodeRecord| {
            match record.name == *name {
                true => Ok(()),
                false => Err(format!("{place}: name: expected {name}, found {}; delete it", record.name)),
            }
        })
    }

    async fn put_node(&self, mut record: NodeRecord) -> Result<bool, Error> {
        let operation = format!("change node {}", record.name);
        let (read, revision) = self.node(&record.name).await?;
        let version = match read {
            Read::Found(current) => current.version,
            Read::Absent => 0,
            Read::Unreadable(reason) => return Err(Error::failed(format!("{operation}: {reason}"))),
        };
        if version != record.version {
            return Ok(false);
        }
        record.version += 1;
        let key = self.key(WISHES, &record.name);
        let bytes = serde_json::to_vec(&record).map_err(|e| Error::failed(format!("{operation}: {e}")))?;
        match self.change(&operation, vec![unchanged(&key, revision)], vec![put(&key, bytes, 0)]).await {
            // The answer is lost: what stands there now may tell.
            Err(error) => match self.node(&record.name).await {
                Ok((Read::Found(stored), _)) if stored == record => Ok(true),
                _ => Err(error),
            },
            done => done,
        }
    }

    async fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error> {
        let operation = format!("forget node {name}");
        let (wish, live) = (self.key(WISHES, name), self.key(presence::LIVE, name));
        let answer = self.read(&operation, vec![range(&wish), range(&live)]).await?;
        let (wished, lives) = (found(&answer, 0).first(), found(&answer, 1).first());
        let known = match wished.map(|kv| self.parse_node(name, &kv.value)) {
            Some(Read::Found(record)) => record.version,
            Some(Read::Unreadable(reason)) => return Err(Error::failed(format!("{operation}: {reason}"))),
            Some(Read::Absent) | None => 0,
        };
        // What this data directory's own agent said ends with its lease anyway.
        let home = self.memory.stored().home;
        let another = lives.is_some_and(|kv| kv.lease != 0 && !presence::is_of(&kv.value, home));
        if known != version || another {
            return Ok(false);
        }
        let revision = |kv: Option<&pb::KeyValue>| kv.map_or(0, |kv| kv.mod_revision);
        let same = vec![unchanged(&wish, revision(wished)), unchanged(&live, revision(lives))];
        let published = format!("{}/", self.key(INVENTORY, name));
        self.change(&operation, same, vec![delete(&wish), delete(&live), delete_below(&published)]).await
    }

    async fn leave(&self) -> Result<(), Error> {
        const OPERATION: &str = "leave the registry";
        let asked = self.asked(OPERATION).await?;
        // First: a key that is gone though it is remembered would make the registry an older one.
        let memory = Arc::clone(&self.memory);
        blocking(move || memory.forget_own()).await?;
        let request = self.guarded(&asked, Vec::new(), vec![delete(&self.own_high(&asked))]);
        self.client.change(OPERATION, &request).await.map(drop)
    }
}

fn encode(record: &VolumeRecord) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(record).map_err(|e| Error::failed(format!("encode volume {}: {e}", record.name)))
}

#[tonic::async_trait]
impl Registry for EtcdRegistry {
    fn incarnation(&self) -> Incarnation {
        self.inner.memory.stored().incarnation
    }
    async fn list(&self) -> Result<Vec<Entry>, Error> {
        self.inner.list().await
    }
    async fn get(&self, name: &VolumeName) -> Result<Read<VolumeRecord>, Error> {
        self.inner.get(name).await.map(|(read, _)| read)
    }
    async fn create(&self, record: VolumeRecord) -> Result<VolumeRecord, Error> {
        self.inner.create(record).await
    }
    async fn compare_and_swap(&self, expected: u64, record: VolumeRecord) -> Result<Swap, Error> {
        self.inner.swap(expected, record).await
    }
    async fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error> {
        self.inner.delete(name, id, expected).await
    }
    async fn key(&self, id: VolumeId) -> Result<Read<VolumeKey>, Error> {
        self.inner.volume_key(id).await
    }
    async fn put_key(&self, id: VolumeId, key: VolumeKey) -> Result<(), Error> {
        self.inner.change_key(format!("keep the key of volume {id}"), id, Some(&key)).await
    }
    async fn delete_key(&self, id: VolumeId) -> Result<(), Error> {
        self.inner.change_key(format!("forget the key of volume {id}"), id, None).await
    }
    async fn node(&self, name: &NodeName) -> Result<Read<NodeRecord>, Error> {
        self.inner.node(name).await.map(|(read, _)| read)
    }
    async fn put_node(&self, record: NodeRecord) -> Result<bool, Error> {
        self.inner.put_node(record).await
    }
    async fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error> {
        self.inner.forget_node(name, version).await
    }
    async fn leave(&self) -> Result<(), Error> {
        self.inner.leave().await
    }
    fn inventory(&self, node: &NodeName) -> Option<Arc<dyn InventoryHome>> {
        Some(Arc::new(EtcdInventory::new(Arc::clone(&self.inner), node)))
    }
    async fn announce(&self, announcement: Announcement) -> Result<watch::Receiver<Standing>, Error> {
        let (task, standing) = presence::announce(&self.inner, announcement).await?;
        self.tasks.lock().push(task);
        Ok(standing)
    }
    async fn review(&self) -> Result<Option<Review>, Error> {
        self.inner.review().await.map(Some)
    }
    async fn accept(&self, node: &NodeName, shown: Option<Incarnation>) -> Result<Incarnation, Error> {
        self.inner.accept(node, shown).await
    }
    async fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error> {
        self.inner.claims(node).await
    }
    async fn put_claim(&self, claim: ClaimRecord) -> Result<bool, Error> {
        self.inner.put_claim(claim).await
    }
    async fn delete_claim(&self, node: &NodeName, name: &InstanceName, version: u64) -> Result<bool, Error> {
        self.inner.delete_claim(node, name, version).await
    }
    fn follow_nodes(&self) -> Option<mpsc::Receiver<Heard>> {
        let (out, feed) = mpsc::channel(FEED_MAX);
        tokio::spawn(nodes::run(Arc::clone(&self.inner), out));
        Some(feed)
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
    fn watch_restarts(&self) -> u64 {
        self.inner.watch_restarts.load(Ordering::Relaxed)
    }
}
