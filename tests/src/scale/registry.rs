//! A registry that stores what is put and counts what that costs.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast::core::publish::Op;

/// Readers of everything: a coordinator and two others.
const WATCHERS_OF_ALL: u64 = 3;
/// How etcd is usually told to compact: what was replaced stays for this long.
const COMPACTED_AFTER_S: usize = 300;
/// Of a key, its revisions and a record of the log, beside key and value. A guess at what etcd adds.
const OVERHEAD_BYTES: u64 = 64;

/// What happened in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes, as transactions: what the log of the registry agrees on one by one.
    pub transactions: u64,
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Keys, values and overhead.
    pub bytes: u64,
    /// Leases kept alive, which is no write.
    pub keepalives: u64,
    /// What goes out to readers who watch only what concerns them.
    pub watched_bytes: u64,
    /// The same, if every node watched every node.
    pub watched_by_all_bytes: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.transactions += other.transactions;
        self.puts += other.puts;
        self.deletes += other.deletes;
        self.bytes += other.bytes;
        self.keepalives += other.keepalives;
        self.watched_bytes += other.watched_bytes;
        self.watched_by_all_bytes += other.watched_by_all_bytes;
    }
    fn max(&mut self, other: &Self) {
        self.transactions = self.transactions.max(other.transactions);
        self.puts = self.puts.max(other.puts);
        self.deletes = self.deletes.max(other.deletes);
        self.bytes = self.bytes.max(other.bytes);
        self.keepalives = self.keepalives.max(other.keepalives);
        self.watched_bytes = self.watched_bytes.max(other.watched_bytes);
        self.watched_by_all_bytes = self.watched_by_all_bytes.max(other.watched_by_all_bytes);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Registry {
    stored: Vec<BTreeMap<String, Vec<u8>>>,
    seconds: Vec<Counts>,
}

impl Registry {
    pub(super) fn new(nodes: usize) -> Self {
        Self { stored: vec![BTreeMap::new(); nodes], seconds: Vec::new() }
    }

    pub(super) fn found(&self, node: usize) -> Vec<(String, Vec<u8>)> {
        self.stored[node].clone().into_iter().collect()
    }

    fn second(&mut self, now: Duration) -> &mut Counts {
        let second = usize::try_from(now.as_secs()).unwrap();
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Counts::default());
        }
        &mut self.seconds[second]
    }

    /// One transaction of a node's, seen by so many nodes that it concerns.
    pub(super) fn write(&mut self, now: Duration, node: usize, ops: Vec<Op>, concerned: u64) {
        let mut counts = Counts { transactions: 1, ..Counts::default() };
        for op in ops {
            let key_bytes =
                u64::try_from(op.key().len()).unwrap() + "/holdfast/inventory/node-00000/".len() as u64;
            match op {
                Op::Put { key, bytes } => {
                    counts.puts += 1;
                    counts.bytes += key_bytes + u64::try_from(bytes.len()).unwrap() + OVERHEAD_BYTES;
                    self.stored[node].insert(key, bytes);
                }
                Op::Delete { key } => {
                    counts.deletes += 1;
                    counts.bytes += key_bytes + OVERHEAD_BYTES;
                    self.stored[node].remove(&key);
                }
            }
        }
        let nodes = u64::try_from(self.stored.len()).unwrap();
        counts.watched_bytes = counts.bytes * (concerned + WATCHERS_OF_ALL);
        counts.watched_by_all_bytes = counts.bytes * (nodes + WATCHERS_OF_ALL);
        self.second(now).add(&counts);
    }

    pub(super) fn keep_alive(&mut self, now: Duration) {
        self.second(now).keepalives += 1;
    }

    /// What all keys and values are now.
    pub(super) fn live_bytes(&self) -> u64 {
        let all = self.stored.iter().flat_map(BTreeMap::values);
        all.map(|value| u64::try_from(value.len()).unwrap() + OVERHEAD_BYTES).sum()
    }

    /// Totals, the largest second of each, and the most that was written between two compactions.
    pub(super) fn summary(&self, from: Duration, until: Duration) -> (Counts, Counts, u64) {
        let (from, until) = (from.as_secs(), until.as_secs());
        let seconds: Vec<Counts> = (from..until)
            .map(|second| self.seconds.get(usize::try_from(second).unwrap()).copied().unwrap_or_default())
            .collect();
        let (mut total, mut most) = (Counts::default(), Counts::default());
        for second in &seconds {
            total.add(second);
            most.max(second);
        }
        let window = COMPACTED_AFTER_S.min(seconds.len().max(1));
        let history = seconds.windows(window).map(|w| w.iter().map(|s| s.bytes).sum()).max().unwrap_or(0);
        (total, most, history)
    }
}
