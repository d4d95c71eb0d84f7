//! The registry in etcd.
//!
//! Below a prefix: `incarnation` names this life of the registry, `volumes/NAME` are the records, `keys/VOLUME-ID` the
//! keys, `wishes/NODE` the records of nodes, `claims/NODE/INSTANCE` the claims of others, `inventory/NODE/...` what a node
//! publishes, and `live/NODE` that its agent lives: that key goes with a lease. `high` and `high/HOME` are written with
//! every change, of any node and of the one with that data directory.
//!
//! Every question is a linearizable transaction under the condition that the incarnation is the one that this node
//! knows: where it is missing or another one, the answer is an error and never "there is nothing". An etcd that
//! went back in time is recognised by the revisions of the store and of these two keys, another one by its cluster id
//! (`core::history`); a change is under the condition that both keys are as new as this node knows them, so that an
//! older etcd takes none. One that went back is refused from then on (`memory`) until an operator accepts it
//! (`acceptance`). Every change compares the revision of the key that it replaces in the same transaction. A change whose
//! answer is lost is read back; what cannot be told then is an error.

mod acceptance;
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
use holdfast_proto::pb::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use holdfast_proto::pb::etcd::request_op::Request;
use holdfast_proto::pb::etcd::response_op::Response;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::client::Client;
use self::memory::{Memory, Stored};
use crate::blocking::blocking;
use crate::config::EtcdHome;
use crate::core::history::{Known, Shown};
use crate::error::Error;

/// The keys that are written with every change. Only their revisions matter.
const HIGH: &str = "high";
const HIGH_VALUE: &[u8] = b"{\"schema\":1}";

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
        failure: vec![range(&key), range(&format!("{prefix}/{HIGH}"))],
    };
    // Repeated without harm: a second one finds what the first one made.
    let answer = client.ask(OPERATION, &request).await?;
    let header = answer.header.unwrap_or_default();
    let high = if answer.succeeded { 0 } else { modified(&answer, 1) };
    let known = Known { cluster_id: header.cluster_id, revision: header.revision, high, own: 0 };
    if answer.succeeded {
        tracing::info!(incarnation = %mine, prefix, "a new registry");
        return Ok(Stored::first(mine, known));
    }
    let found = found(&answer, 0).first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    let incarnation = found.as_deref().unwrap_or_default().parse().map_err(|_| {
        Error::failed(format!(
            "{OPERATION}: {key} in etcd is no incarnation: found {found:?}; restore it from a backup, or choose another \
             prefix"
        ))
    })?;
    Ok(Stored::first(incarnation, known))
}

impl Inner {
    fn key(&self, kind: &str, name: impl std::fmt::Display) -> String {
        format!("{}/{kind}/{name}", self.prefix)
    }

    /// Reads ranges at one moment.
    async fn read(&self, operation: &str, ranges: Vec<pb::RequestOp>) -> Result<pb::TxnResponse, Error> {
        let asked = self.asked(operation).await?;
        let count = ranges.len();
        let ranges = [ranges, vec![range(&self.high()), range(&self.own_high(&asked))]].concat();
        let request = self.guarded(&asked, Vec::new(), ranges);
        let answer = self.client.ask(operation, &request).await?;
        let shown = (modified(&answer, count), modified(&answer, count + 1));
        self.believe(operation, &asked, &answer, shown).await?;
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
        mut compare: Vec<pb::Compare>,
        mut change: Vec<pb::RequestOp>,
    ) -> Result<bool, Error> {
        let asked = self.asked(operation).await?;
        let (high, own) = (self.high(), self.own_high(&asked));
        let known = asked.known();
        compare.extend([no_older(&high, known.high), no_older(&own, known.own)]);
        change.extend([&high, &own].map(|key| put(key, HIGH_VALUE.to_vec(), 0)));
        let request = self.guarded(&asked, compare, change);
        let answer = self.client.change(operation, &request).await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        self.believe(operation, &asked, &answer, (revision, revision)).await?;
        Ok(answer.succeeded)
    }

    /// What is known when something is asked.
    ///
    /// # Errors
    /// Nothing is asked of a registry that went back in time, but whether an operator has accepted it meanwhile.
    async fn asked(&self, operation: &str) -> Result<Stored, Error> {
        let asked = self.memory.stored();
        let Some(refused) = &asked.refused else { return Ok(asked) };
        let answer = self.client.ask(operation, &self.guarded(&asked, Vec::new(), Vec::new())).await?;
        if !answer.succeeded {
            self.follow(operation, &asked, &answer).await?;
        }
        Err(self.not_believed(operation, refused))
    }

    /// A transaction for this incarnation only; its failure says which one there is, and how new it is.
    fn guarded(
        &self,
        asked: &Stored,
        mut compare: Vec<pb::Compare>,
        success: Vec<pb::RequestOp>,
    ) -> pb::TxnRequest {
        let key = format!("{}/incarnation", self.prefix);
        compare.push(pb::Compare {
            target: CompareTarget::Value.into(),
            key: key.clone().into_bytes(),
            target_union: Some(TargetUnion::Value(asked.incarnation.to_string().into_bytes())),
            ..Default::default()
        });
        let failure = [key, self.accepted(), self.high(), self.own_high(asked)];
        pb::TxnRequest { compare, success, failure: failure.iter().map(|key| range(key)).collect() }
    }

    /// Takes in an answer; `shown` is what a transaction that succeeded shows of the newest changes.
    async fn believe(
        &self,
        operation: &str,
        asked: &Stored,
        answer: &pb::TxnResponse,
        shown: (i64, i64),
    ) -> Result<(), Error> {
        let (high, own) = if answer.succeeded {
            shown
        } else {
            self.follow(operation, asked, answer).await?;
            (modified(answer, 2), modified(answer, 3))
        };
        let header = answer.header.as_ref();
        let header = header.ok_or_else(|| self.not_believed(operation, "the answer has no header"))?;
        let (high, own) = (Some(high), Some(own));
        let shown = Shown { cluster_id: header.cluster_id, revision: header.revision, high, own };
        let checked = self.memory.check(asked, &shown);
        let saved = self.save(false).await;
        checked.map_err(|why| self.not_believed(operation, &why))?;
        saved
    }

    fn not_believed(&self, operation: &str, why: &str) -> Error {
        Error::failed(format!(
            "{operation} in etcd ({}): {why}; nothing it says is relied on. It was restored from a backup, lost data, or \
             is another one: see `holdfast registry show`. Restore the newest state there is; then `holdfast registry \
             accept` begins a new incarnation",
            self.client.servers()
        ))
    }

    fn foreign(&self, operation: &str, asked: &Stored, failed: &pb::TxnResponse) -> Error {
        let there = match found(failed, 0).first() {
            Some(kv) => format!("found {}", String::from_utf8_lossy(&kv.value)),
            None => "found none: it was emptied, or is not the one that this node belongs to".to_owned(),
        };
        let expected =
            format!("expected the incarnation {} at {}/incarnation", asked.incarnation, self.prefix);
        self.not_believed(operation, &format!("{expected}, {there}"))
    }

    fn high(&self) -> String {
        format!("{}/{HIGH}", self.prefix)
    }
    fn own_high(&self, stored: &Stored) -> String {
        self.key(HIGH, stored.home)
    }
    fn accepted(&self) -> String {
        format!("{}/accepted", self.prefix)
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

/// When the one key that was asked for at `index` was last changed; 0: it is not there.
fn modified(answer: &pb::TxnResponse, index: usize) -> i64 {
    found(answer, index).first().map_or(0, |kv| kv.mod_revision)
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

/// The key was last changed at this revision or later.
fn no_older(key: &str, mod_revision: i64) -> pb::Compare {
    pb::Compare { result: CompareResult::Greater.into(), ..unchanged(key, mod_revision - 1) }
}

#[cfg(test)]
#[path = "../etcd_tests.rs"]
mod tests;
