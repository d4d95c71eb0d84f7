//! The registry in etcd.
//!
//! Below a prefix: `incarnation` names this life of the registry, `volumes/NAME` are the records, `keys/VOLUME-ID` the
//! keys, `wishes/NODE` the records of nodes, `claims/NODE/INSTANCE` the claims of others, `inventory/NODE/...` what a node
//! publishes, and `live/NODE` that its agent lives: that key goes with a lease.
//!
//! Every question is a linearizable transaction under the condition that the incarnation is the one that this node
//! knows: where it is missing or another one, the answer is an error and never "there is nothing". An etcd that
//! went back in time is recognised by its revision, another one by its cluster id (`memory`). Every change compares
//! the revision of the key that it replaces in the same transaction. A change whose answer is lost is read back; what
//! cannot be told then is an error.

mod claims;
mod client;
mod inventory;
mod memory;
mod nodes;
mod presence;
mod records;
mod watcher;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use holdfast_proto::ids::Incarnation;
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::pb::etcd::compare::{CompareTarget, TargetUnion};
use holdfast_proto::pb::etcd::request_op::Request;
use holdfast_proto::pb::etcd::response_op::Response;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::client::Client;
use self::memory::{Memory, Stored};
use crate::blocking::blocking;
use crate::config::EtcdHome;
use crate::error::Error;

/// Records in etcd.
#[derive(Debug)]
pub struct EtcdRegistry {
    inner: Arc<Inner>,
    /// They end with the registry: the watch, and what says that this node lives.
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    prefix: String,
    incarnation: Incarnation,
    memory: Arc<Memory>,
    changed: watch::Sender<u64>,
    watch_restarts: AtomicU64,
}

/// Whether an earlier agent of this data directory kept its records in etcd.
pub fn was_used(dir: &Path) -> bool {
    memory::path_in(dir).exists()
}

impl EtcdRegistry {
    /// Opens the registry. `dir` is where this node remembers which one it is. A node that knows it already starts
    /// while etcd is away, and gets errors until it is back; the first time it must be there.
    ///
    /// # Errors
    /// When a file cannot be used, or etcd cannot be reached the first time.
    pub async fn open(home: EtcdHome, dir: &Path) -> Result<Self, Error> {
        let (prefix, path) = (home.place.prefix.clone(), dir.to_owned());
        let (client, memory) = blocking(move || Ok((Client::new(home)?, Memory::load(&path)?))).await?;
        let memory = match memory {
            Some(memory) => memory,
            None => {
                let first = meet(&client, &prefix).await?;
                let path = dir.to_owned();
                blocking(move || Memory::begin(&path, first)).await?
            }
        };
        let inner = Arc::new(Inner {
            client,
            prefix,
            incarnation: memory.stored().incarnation,
            memory: Arc::new(memory),
            changed: watch::Sender::new(0),
            watch_restarts: AtomicU64::new(0),
        });
        let watcher = tokio::spawn(watcher::run(Arc::clone(&inner))).abort_handle();
        Ok(Self { inner, tasks: Mutex::new(vec![watcher]) })
    }
}

impl Drop for EtcdRegistry {
    fn drop(&mut self) {
        for task in self.tasks.lock().iter() {
            task.abort();
        }
    }
}

/// Finds the registry below `prefix`, or begins it where there is none.
async fn meet(client: &Client, prefix: &str) -> Result<Stored, Error> {
    const OPERATION: &str = "open the registry";
    let key = format!("{prefix}/incarnation");
    let mine = Incarnation::random();
    let request = pb::TxnRequest {
        compare: vec![unchanged(&key, 0)],
        success: vec![put(&key, mine.to_string().into_bytes(), 0)],
        failure: vec![range(&key)],
    };
    // Repeated without harm: a second one finds what the first one made.
    let answer = client.ask(OPERATION, &request).await?;
    let header = answer.header.unwrap_or_default();
    if answer.succeeded {
        tracing::info!(incarnation = %mine, prefix, "a new registry");
        return Ok(Stored::first(mine, &header));
    }
    let found = found(&answer, 0).first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    let incarnation = found.as_deref().unwrap_or_default().parse().map_err(|_| {
        Error::failed(format!(
            "{OPERATION}: {key} in etcd is no incarnation: found {found:?}; restore it from a backup, or choose another \
             prefix"
        ))
    })?;
    Ok(Stored::first(incarnation, &header))
}

impl Inner {
    fn key(&self, kind: &str, name: impl std::fmt::Display) -> String {
        format!("{}/{kind}/{name}", self.prefix)
    }

    /// Reads ranges at one moment.
    async fn read(&self, operation: &str, ranges: Vec<pb::RequestOp>) -> Result<pb::TxnResponse, Error> {
        let request = self.guarded(Vec::new(), ranges, Vec::new());
        let asked_at = self.memory.revision();
        let answer = self.client.ask(operation, &request).await?;
        self.believe(operation, &answer, asked_at)?;
        if !answer.succeeded {
            return Err(self.foreign(operation, &answer));
        }
        self.save(false).await?;
        Ok(answer)
    }

    /// Changes something if `compare` holds. An error says nothing about whether it was done.
    async fn change(
        &self,
        operation: &str,
        compare: Vec<pb::Compare>,
        change: Vec<pb::RequestOp>,
    ) -> Result<bool, Error> {
        let done = self.tell(operation, compare, change).await?;
        if done {
            // Known before anybody builds on it: a backup from before this is recognised.
            self.save(true).await?;
        }
        Ok(done)
    }

    /// The same for what is only observed: nobody builds on it.
    async fn tell(
        &self,
        operation: &str,
        compare: Vec<pb::Compare>,
        change: Vec<pb::RequestOp>,
    ) -> Result<bool, Error> {
        let request = self.guarded(compare, change, Vec::new());
        let asked_at = self.memory.revision();
        let answer = self.client.change(operation, &request).await?;
        self.believe(operation, &answer, asked_at)?;
        if !answer.succeeded && !self.is_ours(&answer) {
            return Err(self.foreign(operation, &answer));
        }
        self.save(false).await?;
        Ok(answer.succeeded)
    }

    /// A transaction for this incarnation only; its failure begins with the incarnation that there is.
    fn guarded(
        &self,
        mut compare: Vec<pb::Compare>,
        success: Vec<pb::RequestOp>,
        failure: Vec<pb::RequestOp>,
    ) -> pb::TxnRequest {
        let key = format!("{}/incarnation", self.prefix);
        compare.push(pb::Compare {
            target: CompareTarget::Value.into(),
            key: key.clone().into_bytes(),
            target_union: Some(TargetUnion::Value(self.incarnation.to_string().into_bytes())),
            ..Default::default()
        });
        let failure = [vec![range(&key)], failure].concat();
        pb::TxnRequest { compare, success, failure }
    }

    fn is_ours(&self, failed: &pb::TxnResponse) -> bool {
        let ours = self.incarnation.to_string();
        found(failed, 0).first().is_some_and(|kv| kv.value == ours.as_bytes())
    }

    fn believe(&self, operation: &str, answer: &pb::TxnResponse, asked_at: i64) -> Result<(), Error> {
        self.memory
            .check(answer.header.as_ref(), asked_at, &self.prefix)
            .map_err(|why| Error::failed(format!("{operation} in etcd ({}): {why}", self.client.servers())))
    }

    fn foreign(&self, operation: &str, failed: &pb::TxnResponse) -> Error {
        let there = match found(failed, 0).first() {
            Some(kv) => format!("found {}", String::from_utf8_lossy(&kv.value)),
            None => "found none: it was emptied, or is not the one that this node belongs to".to_owned(),
        };
        Error::failed(format!(
            "{operation} in etcd ({}): expected the incarnation {} at {}/incarnation, {there}; nothing it says is \
             relied on. Restore it. If this is how it is to be: {}",
            self.client.servers(),
            self.incarnation,
            self.prefix,
            self.memory.remedy(&self.prefix)
        ))
    }

    async fn save(&self, now: bool) -> Result<(), Error> {
        let memory = Arc::clone(&self.memory);
        blocking(move || memory.save(now)).await
    }

    fn tick(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// What the range that was asked at `index` found.
fn found(answer: &pb::TxnResponse, index: usize) -> &[pb::KeyValue] {
    match answer.responses.get(index).and_then(|op| op.response.as_ref()) {
        Some(Response::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

fn range(key: &str) -> pb::RequestOp {
    let range = pb::RangeRequest { key: key.as_bytes().to_vec(), range_end: Vec::new() };
    pb::RequestOp { request: Some(Request::RequestRange(range)) }
}

/// Every key that begins with `prefix`, which ends with a slash.
fn range_below(prefix: &str) -> pb::RequestOp {
    let range = pb::RangeRequest { key: prefix.as_bytes().to_vec(), range_end: end_of(prefix) };
    pb::RequestOp { request: Some(Request::RequestRange(range)) }
}

/// The first key after all that begin with `prefix`: the slash's successor in its place.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn put(key: &str, value: Vec<u8>, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.as_bytes().to_vec(), value, lease };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

fn delete(key: &str) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.as_bytes().to_vec(), range_end: Vec::new() };
    pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

/// Every key that begins with `prefix`, which ends with a slash.
fn delete_below(prefix: &str) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: prefix.as_bytes().to_vec(), range_end: end_of(prefix) };
    pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

/// The key was last changed at this revision; 0: it is not there.
fn unchanged(key: &str, mod_revision: i64) -> pb::Compare {
    pb::Compare {
        target: CompareTarget::Mod.into(),
        key: key.as_bytes().to_vec(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "../etcd_tests.rs"]
mod tests;
