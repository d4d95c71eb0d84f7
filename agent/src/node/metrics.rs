//! What this node has counted and seen for its metrics, beside what it works with: a scrape waits for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::ids::VolumeName;
use holdfast_proto::pb::{agent as pb, instance as ipb};
use parking_lot::Mutex;

use super::shared::Shared;
use super::supervisor::unix_now_s;
use crate::core::Moment;
use crate::core::records::Records;
use crate::metrics::{Counts, Observed, SUSPENDED, Space, Suspended};
use crate::process::proc;

/// See the module.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Shared with who counts calls of the registry.
    pub(super) counts: Arc<Mutex<Counts>>,
    pub(super) seen: Mutex<Seen>,
    started_unix_s: u64,
}

/// What the supervisor saw last.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// What each running engine counted, by volume.
    pub(super) io: BTreeMap<String, Vec<ipb::IoCounters>>,
    pub(super) waiting_to_restart: BTreeMap<&'static str, u64>,
    pub(super) retrying: usize,
    pub(super) blocked: usize,
    pub(super) space: Option<Space>,
    suspended: BTreeMap<String, Moment>,
}

impl Seen {
    /// Notes what an engine has counted; nothing is known of one that has ended.
    pub(super) fn note_io(&mut self, volume: &VolumeName, told: Option<&ipb::EngineStatus>) {
        match told {
            Some(told) => self.io.insert(volume.to_string(), told.io.clone()),
            None => self.io.remove(volume.as_str()),
        };
    }

    /// Notes since when volumes hold their I/O.
    pub(super) fn note_suspended(&mut self, volumes: &[pb::VolumeInfo], now: Moment) {
        let before = std::mem::take(&mut self.suspended);
        let held = volumes.iter().filter(|volume| volume.state == SUSPENDED).map(|volume| &volume.name);
        self.suspended = held.map(|name| (name.clone(), before.get(name).copied().unwrap_or(now))).collect();
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self { counts: Arc::default(), seen: Mutex::default(), started_unix_s: unix_now_s() }
    }
}

/// All of it, at this moment. One lock at a time: whoever publishes takes them in an order of its own.
pub(super) fn observe(shared: &Shared) -> Observed {
    let now = shared.now();
    let Metrics { counts, seen, started_unix_s } = &shared.metrics;
    let counts = counts.lock().clone();
    let seen = seen.lock().clone();
    let orphans = shared.orphans.lock().stats.clone();
    let records = Arc::clone(&shared.records.lock());
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let suspended =
        seen.suspended.into_iter().map(|(volume, at)| Suspended { volume, since: now.saturating_sub(at) });
    Observed {
        node: shared.config.node.to_string(),
        started_unix_s: *started_unix_s,
        process: proc::own_use(),
        counts,
        inventory: shared.snapshot(),
        io: seen.io,
        suspended: suspended.collect(),
        orphans,
        waiting_to_restart: seen.waiting_to_restart,
        retrying: number(seen.retrying),
        blocked: number(seen.blocked),
        registry_up: matches!(*records, Records::Known(_)),
        watch_restarts: shared.registry.watch_restarts(),
        space: seen.space,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_volume_is_suspended_since_it_was_first_seen_so() {
        let volume =
            |state: &str| pb::VolumeInfo { name: "db".into(), state: state.into(), ..Default::default() };
        let mut seen = Seen::default();
        for (second, state, since) in [
            (1, "healthy", None),
            (2, "suspended", Some(2)),
            (5, "suspended", Some(2)),
            (6, "degraded", None),
            (7, "suspended", Some(7)),
        ] {
            seen.note_suspended(&[volume(state)], Duration::from_secs(second));
            assert_eq!(seen.suspended.get("db").map(Duration::as_secs), since, "at {second} s");
        }
        seen.note_suspended(&[], Duration::from_secs(8));
        assert!(seen.suspended.is_empty(), "it is gone");
    }
}
