//! What this node has counted and seen for its metrics, beside what it works with: a scrape waits for nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_proto::ids::VolumeName;
use holdfast_proto::pb::{agent as pb, instance as ipb};
use parking_lot::Mutex;

use super::host;
use super::shared::{Shared, blocking, unix_now_s};
use crate::core::Moment;
use crate::core::moves::Moving;
use crate::core::records::Records;
use crate::metrics::{Counts, InTrash, Observed, SUSPENDED, Since, Space};
use crate::process::proc;

/// A trash of many directories takes a while to look through.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
    /// How many clients each running engine dropped for taking no replies, by volume.
    pub(super) clients_stalled: BTreeMap<String, u64>,
    pub(super) waiting_to_restart: BTreeMap<&'static str, u64>,
    pub(super) retrying: usize,
    pub(super) space: Option<Space>,
    pub(super) replica_moves_blocked: usize,
    pub(super) instances_blocked: Vec<(Since, String, &'static str)>,
    pub(super) moving: Vec<Moving>,
    suspended: BTreeMap<String, Moment>,
    blocked: BTreeMap<String, Moment>,
}

impl Seen {
    /// Notes what an engine has counted; nothing is known of one that has ended.
    pub(super) fn note_io(&mut self, volume: &VolumeName, told: Option<&ipb::EngineStatus>) {
        match told {
            Some(told) => {
                self.io.insert(volume.to_string(), told.io.clone());
                self.clients_stalled.insert(volume.to_string(), told.clients_stalled);
            }
            None => {
                self.io.remove(volume.as_str());
                self.clients_stalled.remove(volume.as_str());
            }
        }
    }

    /// Notes since when volumes hold their I/O.
    pub(super) fn note_suspended(&mut self, volumes: &[pb::VolumeInfo], now: Moment) {
        let held = volumes.iter().filter(|volume| volume.state == SUSPENDED).map(|volume| &volume.name);
        note(&mut self.suspended, held, now);
    }

    /// Notes since when something keeps volumes from what their records say.
    pub(super) fn note_blocked<'a>(&mut self, volumes: impl Iterator<Item = &'a String>, now: Moment) {
        note(&mut self.blocked, volumes, now);
    }
}

/// What is still so has been since it was first.
fn note<'a>(known: &mut BTreeMap<String, Moment>, now_so: impl Iterator<Item = &'a String>, now: Moment) {
    let before = std::mem::take(known);
    *known = now_so.map(|name| (name.clone(), before.get(name).copied().unwrap_or(now))).collect();
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self { counts: Arc::default(), seen: Mutex::default(), started_unix_s: unix_now_s() }
    }
}

/// Looks at the room of the data directory and at the trash until the node has ended. A task of its own: a sick disk
/// can take its time to answer.
pub(super) async fn watch_space(node: Weak<Shared>) {
    while let Some(shared) = node.upgrade() {
        let (root, trash) = (shared.data.root().to_owned(), shared.trash.clone());
        let looked = blocking(move || Ok((host::disk(&root)?, trash.usage()))).await;
        let space = looked.map(|(disk, usage)| Space {
            capacity_bytes: disk.capacity_bytes,
            available_bytes: disk.available_bytes,
            trash: usage
                .inspect_err(|error| tracing::warn!(%error, "the trash is not measured"))
                .map(|(entries, bytes)| InTrash { entries, bytes })
                .ok(),
        });
        let space = space.inspect_err(|error| tracing::warn!(%error, "the data directory is not measured"));
        shared.metrics.seen.lock().space = space.ok();
        drop(shared);
        tokio::time::sleep(LOOK_EVERY).await;
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
    let since = |(volume, at)| Since { volume, since: now.saturating_sub(at) };
    let moves_blocked = seen.moving.iter().filter(|moving| moving.blocked).count();
    let moving = seen.moving.into_iter().map(|moving| (moving.volume.to_string(), moving.since));
    Observed {
        node: shared.config.node.to_string(),
        started_unix_s: *started_unix_s,
        process: proc::own_use(),
        counts,
        inventory: shared.snapshot(),
        io: seen.io,
        clients_stalled: seen.clients_stalled,
        suspended: seen.suspended.into_iter().map(since).collect(),
        blocked: seen.blocked.into_iter().map(since).collect(),
        moving: moving.map(since).collect(),
        moves_blocked: number(moves_blocked),
        instances_blocked: seen.instances_blocked,
        replica_moves_blocked: number(seen.replica_moves_blocked),
        orphans,
        waiting_to_restart: seen.waiting_to_restart,
        retrying: number(seen.retrying),
        registry_up: matches!(*records, Records::Known(_)),
        watch_restarts: shared.registry.watch_restarts(),
        space: seen.space,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
