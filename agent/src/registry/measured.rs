//! A home of volume records whose answers are timed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use holdfast_proto::ids::{Incarnation, NodeName, VolumeId, VolumeName};
use holdfast_proto::record::{ClaimRecord, NodeRecord, VolumeRecord};
use holdfast_proto::status::ErrorKind;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::inventory::InventoryHome;
use super::{Announcement, Entry, Read, Registry, Review, Swap, VolumeKey};
use crate::core::foreign::Stored;
use crate::core::instance::InstanceName;
use crate::core::nodes::Heard;
use crate::core::presence::Standing;
use crate::core::publish::Op;
use crate::error::Error;
use crate::metrics::Counts;

/// Hands every call on, and counts how long it took and what came of it.
#[derive(Debug)]
pub struct Measured {
    inner: Arc<dyn Registry>,
    watch: Stopwatch,
}

impl Measured {
    /// Around another.
    #[must_use]
    pub fn new(inner: Arc<dyn Registry>, counts: Arc<Mutex<Counts>>) -> Self {
        Self { inner, watch: Stopwatch(counts) }
    }
}

/// Where calls are counted.
#[derive(Debug, Clone)]
struct Stopwatch(Arc<Mutex<Counts>>);

impl Stopwatch {
    /// `lost`: an answer that says that somebody else was first.
    async fn timed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, Error>>,
        lost: impl Fn(&T) -> bool,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let answer = call.await;
        let outcome = match &answer {
            Ok(answer) if lost(answer) => "conflict",
            Ok(_) => "ok",
            Err(error) if error.kind() == ErrorKind::Conflict => "conflict",
            Err(_) => "error",
        };
        self.0.lock().asked_registry(operation, outcome, began.elapsed());
        answer
    }

    async fn read<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.timed(operation, call, |_| false).await
    }
}

fn not_stored(swap: &Swap) -> bool {
    matches!(swap, Swap::Conflict(_) | Swap::Missing)
}

#[tonic::async_trait]
impl Registry for Measured {
    fn incarnation(&self) -> Incarnation {
        self.inner.incarnation()
    }
    async fn list(&self) -> Result<Vec<Entry>, Error> {
        self.watch.read("list", self.inner.list()).await
    }
    async fn look(&self) -> Result<Vec<Entry>, Error> {
        self.watch.read("look", self.inner.look()).await
    }
    async fn get(&self, name: &VolumeName) -> Result<Read<VolumeRecord>, Error> {
        self.watch.read("get", self.inner.get(name)).await
    }
    async fn create(&self, record: VolumeRecord) -> Result<VolumeRecord, Error> {
        self.watch.read("create", self.inner.create(record)).await
    }
    async fn compare_and_swap(&self, expected: u64, record: VolumeRecord) -> Result<Swap, Error> {
        let call = self.inner.compare_and_swap(expected, record);
        self.watch.timed("compare_and_swap", call, not_stored).await
    }
    async fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error> {
        self.watch.timed("delete", self.inner.delete(name, id, expected), not_stored).await
    }
    async fn key(&self, id: VolumeId) -> Result<Read<VolumeKey>, Error> {
        self.watch.read("key", self.inner.key(id)).await
    }
    async fn put_key(&self, id: VolumeId, key: VolumeKey) -> Result<(), Error> {
        self.watch.read("put_key", self.inner.put_key(id, key)).await
    }
    async fn delete_key(&self, id: VolumeId) -> Result<(), Error> {
        self.watch.read("delete_key", self.inner.delete_key(id)).await
    }
    async fn node(&self, name: &NodeName) -> Result<Read<NodeRecord>, Error> {
        self.watch.read("node", self.inner.node(name)).await
    }
    async fn put_node(&self, record: NodeRecord) -> Result<bool, Error> {
        self.watch.timed("put_node", self.inner.put_node(record), |stored| !stored).await
    }
    async fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error> {
        self.watch.timed("forget_node", self.inner.forget_node(name, version), |done| !done).await
    }
    async fn leave(&self) -> Result<(), Error> {
        self.watch.read("leave", self.inner.leave()).await
    }
    async fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error> {
        self.watch.read("claims", self.inner.claims(node)).await
    }
    async fn put_claim(&self, claim: ClaimRecord) -> Result<bool, Error> {
        self.watch.timed("put_claim", self.inner.put_claim(claim), |stored| !stored).await
    }
    async fn delete_claim(&self, node: &NodeName, name: &InstanceName, version: u64) -> Result<bool, Error> {
        let call = self.inner.delete_claim(node, name, version);
        self.watch.timed("delete_claim", call, |deleted| !deleted).await
    }
    fn inventory(&self, node: &NodeName) -> Option<Arc<dyn InventoryHome>> {
        let inner = self.inner.inventory(node)?;
        Some(Arc::new(MeasuredInventory { inner, watch: self.watch.clone() }))
    }
    async fn announce(&self, announcement: Announcement) -> Result<watch::Receiver<Standing>, Error> {
        self.watch.read("announce", self.inner.announce(announcement)).await
    }
    async fn review(&self) -> Result<Option<Review>, Error> {
        self.watch.read("review", self.inner.review()).await
    }
    async fn accept(&self, node: &NodeName, shown: Option<Incarnation>) -> Result<Incarnation, Error> {
        self.watch.read("accept", self.inner.accept(node, shown)).await
    }
    fn follow_nodes(&self) -> Option<mpsc::Receiver<Heard>> {
        self.inner.follow_nodes()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes()
    }
    fn watch_restarts(&self) -> u64 {
        self.inner.watch_restarts()
    }
}

/// The same for where the node publishes its inventory.
#[derive(Debug)]
struct MeasuredInventory {
    inner: Arc<dyn InventoryHome>,
    watch: Stopwatch,
}

#[tonic::async_trait]
impl InventoryHome for MeasuredInventory {
    async fn found(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.watch.read("inventory_read", self.inner.found()).await
    }
    async fn write(&self, ops: Vec<Op>) -> Result<(), Error> {
        self.watch.read("inventory_write", self.inner.write(ops)).await
    }
}
