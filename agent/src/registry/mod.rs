//! The registry: where volume records live, behind one trait.
//!
//! Its homes are a directory of files ([`mod@file`]) and etcd ([`mod@etcd`]). Every read is three-valued, every write
//! compares the version of the whole record, and a home may answer "I do not know" (an error) at any time. One over
//! Kubernetes would map the version to its own resource version and never answer from a cache. `conformance` is what
//! every home must pass.

#[cfg(test)]
mod conformance;
pub mod engine_cas;
pub mod etcd;
pub mod features;
pub mod file;
pub mod inventory;
pub mod measured;
mod stored_key;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use holdfast_proto::ids::{Generation, Incarnation, NodeName, VolumeId, VolumeName};
use holdfast_proto::record::{
    CLAIM_SCHEMA, ClaimRecord, NodeRecord, RECORD_SCHEMA, REPLICAS_MAX, ReplicaSet, VolumeRecord,
};
use tokio::sync::{mpsc, watch};

pub use crate::store::Read;

use self::inventory::InventoryHome;
use crate::core::foreign::Stored;
use crate::core::instance::InstanceName;
use crate::core::nodes::Heard;
use crate::core::presence::{Lodging, Standing};
use crate::error::Error;

/// Blocks are the unit of checksums and of every size.
pub const SIZE_MULTIPLE_BYTES: u64 = 4096;
/// The largest file that ext4 keeps with 4 KiB blocks is just under this: a larger image could not be made there.
pub const SIZE_MAX_BYTES: u64 = holdfast_dataplane::units::VOLUME_BYTES_MAX;

/// One record of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It can be relied on.
    Readable(Box<VolumeRecord>),
    /// It is there, and nothing in it can be relied on.
    Unreadable {
        /// What it is called.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl Entry {
    /// The name it is kept under.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Readable(record) => record.name.as_str(),
            Self::Unreadable { name, .. } => name,
        }
    }
}

/// What became of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Done; the record as it is now.
    Stored(Box<VolumeRecord>),
    /// Not done: the version was another one. The record as it is.
    Conflict(Box<VolumeRecord>),
    /// Not done: there is no such record (any more).
    Missing,
}

/// A volume's key: whoever has it may speak to the volume's replicas.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey {
    /// Which one, so that keys can be replaced.
    pub key_id: u64,
    /// The secret.
    pub key: [u8; 32],
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// What an agent says of itself under the name of its node.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The name.
    pub node: NodeName,
    /// The address by which its replicas are reached.
    pub address: IpAddr,
    /// Where it runs; none: that is not known.
    pub lodging: Option<Lodging>,
}

/// What a home of records says, beside what this node knows of it.
#[derive(Debug, Clone)]
pub struct Review {
    /// Which home.
    pub place: String,
    /// The incarnation that this node knows.
    pub incarnation: Incarnation,
    /// The one that is there; none: none that can be read.
    pub found: Option<Incarnation>,
    /// The newest revision that this node knows.
    pub revision: i64,
    /// The revision that there is.
    pub found_revision: i64,
    /// Why it is not believed; none: it is.
    pub doubt: Option<String>,
    /// The records that are there.
    pub records: Vec<Entry>,
}

/// A home of volume records. An `Err` means "not known", never "not there".
#[tonic::async_trait]
pub trait Registry: fmt::Debug + Send + Sync {
    /// This life of the registry; another one after a restore from a backup.
    fn incarnation(&self) -> Incarnation;
    /// Every record, read now: complete, or an error.
    async fn list(&self) -> Result<Vec<Entry>, Error>;
    /// As [`Self::list`], for looking whether anything has changed: a home need not read again what is certainly as it
    /// was. Whatever ends or deletes something rests on a list.
    async fn look(&self) -> Result<Vec<Entry>, Error> {
        self.list().await
    }
    /// One record, from the source of truth.
    async fn get(&self, name: &VolumeName) -> Result<Read<VolumeRecord>, Error>;
    /// Adds a record as version 1. `Conflict` where the name is taken, readable or not.
    async fn create(&self, record: VolumeRecord) -> Result<VolumeRecord, Error>;
    /// Replaces the record of the same name and id if its version is still `expected`; the version grows by one.
    async fn compare_and_swap(&self, expected: u64, record: VolumeRecord) -> Result<Swap, Error>;
    /// Removes the record if it is still this one at this version; `Stored` carries what was removed.
    async fn delete(&self, name: &VolumeName, id: VolumeId, expected: u64) -> Result<Swap, Error>;
    /// The volume's key.
    async fn key(&self, id: VolumeId) -> Result<Read<VolumeKey>, Error>;
    /// Keeps a new volume's key; durable before the record that needs it.
    async fn put_key(&self, id: VolumeId, key: VolumeKey) -> Result<(), Error>;
    /// Forgets a key, together with the data that it guards.
    async fn delete_key(&self, id: VolumeId) -> Result<(), Error>;
    /// What operators wish for a node, from the source of truth; absent where nobody ever wished anything.
    async fn node(&self, name: &NodeName) -> Result<Read<NodeRecord>, Error>;
    /// Writes it if its version is still the one in `record`; the version grows by one. Returns whether it was.
    async fn put_node(&self, record: NodeRecord) -> Result<bool, Error>;
    /// Removes all that is kept of a node itself: what is wished for it, where that is still this version (0: nothing),
    /// and what it published. Volumes and claims are not touched. Returns whether it was done; not where an agent of
    /// another data directory than this registry's lives under that name.
    async fn forget_node(&self, name: &NodeName, version: u64) -> Result<bool, Error>;
    /// Removes what this node keeps there for itself alone, before its data directory goes.
    async fn leave(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Where this node publishes its inventory; none where this home has no place for it.
    fn inventory(&self, _node: &NodeName) -> Option<Arc<dyn InventoryHome>> {
        None
    }
    /// Says, for as long as this registry is open, that an agent of this node lives, and by which address its replicas
    /// are reached. That the home cannot be asked is no error: it is said as soon as it can. Returns whether this run
    /// may act as its node, from now on.
    ///
    /// # Errors
    /// `Conflict` where another run lives under this name.
    async fn announce(&self, _announcement: Announcement) -> Result<watch::Receiver<Standing>, Error> {
        Ok(watch::Sender::new(Standing::Sure).subscribe())
    }
    /// What there is, read without relying on it; none: this home cannot go back in time unnoticed.
    async fn review(&self) -> Result<Option<Review>, Error> {
        Ok(None)
    }
    /// Begins a new incarnation in a home as it is, by the word of an operator who was shown that its incarnation is
    /// `shown`.
    ///
    /// # Errors
    /// `Conflict` where that is another one by now; `Refused` where this home has nothing to accept.
    async fn accept(&self, _node: &NodeName, _shown: Option<Incarnation>) -> Result<Incarnation, Error> {
        Err(Error::refused("accept the registry: records in files have nothing to accept".to_owned()))
    }
    /// What others claim on a node, by instance: complete, or an error. Claims never tick.
    async fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error>;
    /// Writes a claim if its version is still the one in `claim`; the version grows by one. Returns whether it was.
    async fn put_claim(&self, claim: ClaimRecord) -> Result<bool, Error>;
    /// Removes a claim if it is still at this version; 0: one that cannot be read. Returns whether it was there and is gone.
    async fn delete_claim(&self, node: &NodeName, name: &InstanceName, version: u64) -> Result<bool, Error>;
    /// What is told of nodes from now on, beginning with everything there is; none where this home has one node. A feed
    /// whose receiver is dropped ends.
    fn follow_nodes(&self) -> Option<mpsc::Receiver<Heard>>;
    /// Ticks after a record came, went, or got another `spec`. Writes of `status` alone never tick: they are the
    /// engines' own, and must not wake the agent that made them.
    fn changes(&self) -> watch::Receiver<u64>;
    /// How often hearing of changes had to begin again: what ticks only then comes late.
    fn watch_restarts(&self) -> u64 {
        0
    }
}

/// What a record must satisfy before anything is done because of it.
///
/// # Errors
/// Expected and found.
pub fn check_record(record: &VolumeRecord) -> Result<(), String> {
    let spec = &record.spec;
    if !(1..=RECORD_SCHEMA).contains(&record.schema) {
        return Err(format!("schema: expected 1 to {RECORD_SCHEMA}, found {}", record.schema));
    }
    check_size(spec.size_bytes)?;
    if spec.replicas.is_empty() || spec.replicas.len() > REPLICAS_MAX {
        return Err(format!("replicas: expected 1 to {REPLICAS_MAX}, found {}", spec.replicas.len()));
    }
    if ReplicaSet::checked(spec.replicas.iter().map(|r| r.id.0)).is_none() {
        return Err("replicas: one id is listed twice".into());
    }
    check_io_mode(&spec.io_mode)?;
    check_numbers(record)?;
    if record.status.view.generation > record.status.generation {
        return Err(format!(
            "status: the view's generation {} is above the record's {}",
            record.status.view.generation, record.status.generation
        ));
    }
    Ok(())
}

/// Numbers that only grow, and that no history of changes can have brought so far.
fn check_numbers(record: &VolumeRecord) -> Result<(), String> {
    let status = &record.status;
    let numbers = [
        ("version", record.version),
        ("status.generation", status.generation.0),
        ("status.view.generation", status.view.generation.0),
        ("status.view.epoch", status.view.epoch.0),
    ];
    match numbers.iter().find(|(_, number)| *number > Generation::MAX.0) {
        None => Ok(()),
        Some((field, found)) => Err(format!(
            "{field}: expected at most {}, found {found}; it was changed by hand, or is damaged: restore the record",
            Generation::MAX
        )),
    }
}

/// Whether a volume can have this size.
///
/// # Errors
/// Expected and found.
pub fn check_size(size_bytes: u64) -> Result<(), String> {
    if size_bytes < SIZE_MULTIPLE_BYTES || !size_bytes.is_multiple_of(SIZE_MULTIPLE_BYTES) {
        return Err(format!(
            "size: expected a multiple of {SIZE_MULTIPLE_BYTES} bytes, at least one, found {size_bytes}"
        ));
    }
    if size_bytes > SIZE_MAX_BYTES {
        return Err(format!(
            "size: expected at most {SIZE_MAX_BYTES} bytes (16 TiB less a block), found {size_bytes}"
        ));
    }
    Ok(())
}

/// Whether replicas know this way of file I/O.
///
/// # Errors
/// Expected and found.
pub fn check_io_mode(io_mode: &str) -> Result<(), String> {
    match io_mode {
        "buffered" | "direct" => Ok(()),
        other => Err(format!("io_mode: expected buffered or direct, found {other:?}")),
    }
}

/// The instance that a claim is about.
fn claimed(claim: &ClaimRecord) -> Result<InstanceName, Error> {
    (claim.instance.parse()).map_err(|e| Error::invalid(format!("claim {}: {e}", claim.instance)))
}

/// What a claim must satisfy before anything is done because of it; `place` names where it was found.
///
/// # Errors
/// Expected and found, and what to do.
fn check_claim(claim: &ClaimRecord, node: &NodeName, name: &InstanceName, place: &str) -> Result<(), String> {
    let told = |what: &str, expected: String, found: &str| {
        Err(format!("{place}: {what}: expected {expected}, found {found}; write it again or delete it"))
    };
    if !(1..=CLAIM_SCHEMA).contains(&claim.schema) {
        return told("schema", format!("1 to {CLAIM_SCHEMA}"), &claim.schema.to_string());
    }
    if claim.node != *node {
        return told("node", node.to_string(), claim.node.as_str());
    }
    if claim.instance != name.to_string() {
        return told("instance", name.to_string(), &claim.instance);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;

    #[test]
    fn sizes_are_whole_blocks_within_bounds() {
        for good in [4096, 8192, 1 << 30, SIZE_MAX_BYTES] {
            assert_eq!(check_size(good), Ok(()), "{good}");
        }
        for bad in [0, 1, 4095, 4097, SIZE_MAX_BYTES + 4096, u64::MAX] {
            let said = check_size(bad).unwrap_err();
            assert!(said.contains("expected") && said.contains(&bad.to_string()), "{said}");
        }
    }

    #[test]
    fn a_record_that_says_nonsense_is_not_relied_on() {
        assert_eq!(check_record(&record("demo", "node-a", 3)), Ok(()));
        let bad: [fn(&mut VolumeRecord); 10] = [
            |r| r.schema = 2,
            |r| r.spec.size_bytes = 5,
            |r| r.spec.replicas.clear(),
            |r| r.spec.replicas[1].id = r.spec.replicas[0].id,
            |r| r.spec.io_mode = "fast".into(),
            |r| r.status.view.generation = r.status.generation.next().unwrap(),
            |r| r.version = u64::MAX,
            |r| r.status.generation.0 = u64::MAX - 1,
            |r| (r.status.generation, r.status.view.generation) = (Generation(1 << 63), Generation(1 << 63)),
            |r| r.status.view.epoch.0 = u64::MAX,
        ];
        for damage in bad {
            let mut record = record("demo", "node-a", 3);
            damage(&mut record);
            assert!(check_record(&record).is_err(), "{record:?}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let said = format!("{:?}", VolumeKey { key_id: 7, key: [0xAB; 32] });
        assert!(said.contains('7') && !said.to_lowercase().contains("ab") && !said.contains("171"), "{said}");
    }
}
