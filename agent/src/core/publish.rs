//! What a node writes into the registry of itself, and when: a full list, then what changes.
//!
//! Calling order: [`Publisher::set`], [`Publisher::remove`] and [`Publisher::replace`] as things change;
//! [`Publisher::poll_write`] at [`Publisher::poll_timeout`]; then exactly one of [`Publisher::written`] and
//! [`Publisher::failed`] before the next write.
//!
//! A delta holds every entry that changed after its base, as it is now. So it may be applied to any state from its base
//! on, a repeat changes nothing, and one whose outcome is not known is simply written again, with what changed
//! meanwhile, under the same key. A full list is written at least every [`FULL_EVERY`], whether or not anything changed:
//! whatever a reader was not told of, or a late write undid, is put right by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::inventory::{self, FORMAT, Key, Kind};
use holdfast_proto::pb::inventory as pb;
use pb::document::Body;

use super::Moment;

/// A burst of changes is one write: an instance that starts goes through three states within this.
pub const COALESCE: Duration = Duration::from_millis(200);
/// Between two writes of a node. Ten thousand nodes that change all the time then make 20,000 writes a second, half of
/// what etcd's own benchmark reaches, and a change is still out within the second.
pub const WRITE_EVERY_MIN: Duration = Duration::from_millis(500);
/// A full list follows the last one at the latest after this.
pub const FULL_EVERY: Duration = Duration::from_secs(60);
/// Nodes that began together do not all write their full lists together: each is early by up to this, by its name.
const FULL_SPREAD: Duration = Duration::from_secs(10);
/// Deltas that a new reader must fold; also what one transaction of etcd (128 operations) deletes beside the parts.
pub const DELTAS_MAX: usize = 64;
/// A part of a full list, or a delta: far below what etcd takes, so that other writes do not wait long behind one.
pub const PART_BYTES_MAX: usize = 256 * 1024;
/// After a write that failed: the first wait, doubling.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// No wait is longer: the registry may be back at any time.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// One operation below the node's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make this the value.
    Put {
        /// Relative to the prefix.
        key: String,
        /// A document.
        bytes: Vec<u8>,
    },
    /// Have no such key.
    Delete {
        /// Relative to the prefix.
        key: String,
    },
}

impl Op {
    /// The key, relative to the node's prefix.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Publisher {
    session: u64,
    revision: u64,
    entries: BTreeMap<Key, pb::Entry>,
    /// What differs from the registry, but for the write under way.
    changed: BTreeSet<Key>,
    /// Up to which revision the registry has it for certain.
    published: u64,
    /// The keys that are, or may be, below the prefix.
    stored: BTreeSet<String>,
    deltas: Deltas,
    under_way: Option<UnderWay>,
    first_change_at: Option<Moment>,
    /// No write before this.
    ready_at: Moment,
    full_at: Moment,
    full_after: Duration,
    failures: u32,
}

/// The deltas since the last full list.
#[derive(Debug, Default)]
struct Deltas {
    count: usize,
    bytes: usize,
    full_bytes: usize,
}

impl Deltas {
    /// A reader that comes now has more work with them than a new full list would be.
    fn grown(&self) -> bool {
        self.count >= DELTAS_MAX || self.bytes > self.full_bytes.max(PART_BYTES_MAX / 16)
    }
}

#[derive(Debug)]
struct UnderWay {
    revision: u64,
    changed: BTreeSet<Key>,
    stored: BTreeSet<String>,
    bytes: usize,
    full: bool,
}

impl Publisher {
    /// A new session of the node whose inventory is `entries`. `found` is everything below its prefix: an earlier
    /// session's, which is replaced. `unix_ms` is the wall clock's: sessions go on growing where the registry was lost.
    #[must_use]
    pub fn new(
        node: &NodeName,
        found: &[(String, Vec<u8>)],
        unix_ms: u64,
        entries: Vec<pb::Entry>,
        now: Moment,
    ) -> Self {
        let sessions = found.iter().filter_map(|(_, bytes)| inventory::decode(bytes).ok()).map(|d| d.session);
        let last = sessions.max().unwrap_or(0);
        let mut publisher = Self {
            session: unix_ms.max(last.saturating_add(1)),
            revision: 1,
            entries: BTreeMap::new(),
            changed: BTreeSet::new(),
            published: 0,
            stored: found.iter().map(|(key, _)| key.clone()).collect(),
            deltas: Deltas::default(),
            under_way: None,
            first_change_at: None,
            ready_at: now,
            full_at: now,
            full_after: FULL_EVERY - spread(node),
            failures: 0,
        };
        publisher.entries = keyed(entries);
        publisher
    }

    /// Which run of the agent this is.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }
    /// Grows with each change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }
    /// What is known now.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<Key, pb::Entry> {
        &self.entries
    }

    /// An entry is new, or may be different.
    pub fn set(&mut self, entry: pb::Entry, now: Moment) {
        let Some(key) = Key::of(&entry) else { return };
        if self.entries.get(&key) != Some(&entry) {
            self.entries.insert(key.clone(), entry);
            self.change(key, now);
        }
    }

    /// An entry is gone.
    pub fn remove(&mut self, key: &Key, now: Moment) {
        if self.entries.remove(key).is_some() {
            self.change(key.clone(), now);
        }
    }

    /// These are all the entries of a kind.
    pub fn replace(&mut self, kind: Kind, entries: Vec<pb::Entry>, now: Moment) {
        let new = keyed(entries);
        let gone = |key: &&Key| key.kind == kind && !new.contains_key(*key);
        let gone: Vec<Key> = self.entries.keys().filter(gone).cloned().collect();
        for key in gone {
            self.remove(&key, now);
        }
        for entry in new.into_values() {
            self.set(entry, now);
        }
    }

    fn change(&mut self, key: Key, now: Moment) {
        self.revision += 1;
        self.changed.insert(key);
        self.first_change_at.get_or_insert(now);
    }

    /// When to poll next; none while a write is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        if self.under_way.is_some() {
            return None;
        }
        let delta_at = self.first_change_at.map(|at| at + COALESCE);
        let next = delta_at.map_or(self.full_at, |at| at.min(self.full_at));
        Some(next.max(self.ready_at))
    }

    /// The next write, if one is due. It may be split, in this order, where one transaction cannot hold it.
    pub fn poll_write(&mut self, now: Moment) -> Option<Vec<Op>> {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return None;
        }
        let full_is_due = self.full_at <= now || self.deltas.grown();
        let delta = if full_is_due { None } else { self.delta() };
        let full = delta.is_none();
        let ops = delta.unwrap_or_else(|| self.full());
        let mut stored = self.stored.clone();
        let mut bytes = 0;
        for op in &ops {
            match op {
                Op::Put { key, bytes: value } => {
                    stored.insert(key.clone());
                    bytes += value.len();
                }
                Op::Delete { key } => drop(stored.remove(key)),
            }
        }
        // Whatever becomes of it, these may be there from now on.
        self.stored.extend(stored.iter().cloned());
        self.ready_at = now + WRITE_EVERY_MIN;
        self.first_change_at = None;
        let changed = std::mem::take(&mut self.changed);
        self.under_way = Some(UnderWay { revision: self.revision, changed, stored, bytes, full });
        Some(ops)
    }

    /// The write was done.
    pub fn written(&mut self, now: Moment) {
        let Some(done) = self.under_way.take() else { return };
        self.failures = 0;
        self.published = done.revision;
        self.stored = done.stored;
        if done.full {
            self.deltas = Deltas { full_bytes: done.bytes, ..Deltas::default() };
            self.full_at = now + self.full_after;
        } else {
            self.deltas.count += 1;
            self.deltas.bytes += done.bytes;
        }
    }

    /// Whether the write was done, or some of it, is not known.
    pub fn failed(&mut self, now: Moment) {
        let Some(lost) = self.under_way.take() else { return };
        self.changed.extend(lost.changed);
        if !self.changed.is_empty() {
            self.first_change_at.get_or_insert(now);
        }
        let wait = RETRY_AFTER.saturating_mul(1 << self.failures.min(5)).min(RETRY_AFTER_MAX);
        self.failures = self.failures.saturating_add(1);
        self.ready_at = now + wait;
    }

    /// What changed after the published revision; none where that is no less than everything.
    fn delta(&self) -> Option<Vec<Op>> {
        let mut delta = pb::Delta { base: self.published, ..Default::default() };
        for key in &self.changed {
            match self.entries.get(key) {
                Some(entry) => delta.changed.push(entry.clone()),
                None => delta.removed.push(key.into()),
            }
        }
        let bytes = self.document(Body::Delta(delta));
        let key = format!("delta/{:016x}", self.published);
        (bytes.len() <= PART_BYTES_MAX).then(|| vec![Op::Put { key, bytes }])
    }

    /// Everything, in parts; then what they replace goes.
    fn full(&self) -> Vec<Op> {
        let parts = parts(&self.entries);
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut ops = Vec::new();
        for (part, entries) in (0_u32..).zip(parts) {
            let bytes = self.document(Body::Full(pb::Full { part, parts: count, entries }));
            ops.push(Op::Put { key: format!("full/{part}"), bytes });
        }
        let written: BTreeSet<&str> = ops.iter().map(Op::key).collect();
        let old = self.stored.iter().filter(|key| !written.contains(key.as_str())).cloned();
        let deletes: Vec<Op> = old.map(|key| Op::Delete { key }).collect();
        ops.extend(deletes);
        ops
    }

    fn document(&self, body: Body) -> Vec<u8> {
        let document =
            pb::Document { format: FORMAT, session: self.session, revision: self.revision, body: Some(body) };
        inventory::encode(&document)
    }
}

fn keyed(entries: Vec<pb::Entry>) -> BTreeMap<Key, pb::Entry> {
    entries.into_iter().filter_map(|entry| Key::of(&entry).map(|key| (key, entry))).collect()
}

/// In the order of their keys, each part no longer than [`PART_BYTES_MAX`] but for one entry that alone is.
fn parts(entries: &BTreeMap<Key, pb::Entry>) -> Vec<Vec<pb::Entry>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for entry in entries.values() {
        let length = inventory::entry_bytes(entry);
        if bytes + length > PART_BYTES_MAX && bytes > 0 {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(part) = parts.last_mut() {
            part.push(entry.clone());
        }
    }
    parts
}

/// The same for a node whenever it is asked: FNV-1a of its name.
fn spread(node: &NodeName) -> Duration {
    let hash = node.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The high bits are the well mixed ones.
    FULL_SPREAD.mul_f64(f64::from(u16::try_from(hash >> 48).unwrap_or(0)) / f64::from(u16::MAX))
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
