//! Publishes this node's inventory in the registry: what changes reaches the publisher at once, what must be looked for
//! is looked for at intervals, and the publisher says what is written when.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use holdfast_proto::ids::Incarnation;
use holdfast_proto::inventory::{Key, Kind};
use holdfast_proto::pb::agent as pb;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep, sleep_until};

use super::shared::Shared;
use super::{Change, Snapshot, info};
use crate::core::publish::Publisher;
use crate::core::published::{self, Steps};
use crate::core::records::Records;
use crate::error::Error;
use crate::registry::inventory::InventoryHome;

/// Disks, pressure, and replica directories when nothing is known to have changed, since somebody may have moved one:
/// `statvfs` of a sick disk can take its time, and none of this is in a hurry.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Directories are read at most this often: a thousand labels take tens of milliseconds.
const SCAN_EVERY_MIN: Duration = Duration::from_secs(1);
/// A home that cannot be read is asked again after this.
const BEGIN_AGAIN: Duration = Duration::from_secs(10);

/// See the module.
struct Publishing {
    // Weak: publishing is no reason for a node to go on.
    shared: Weak<Shared>,
    home: Arc<dyn InventoryHome>,
    /// The life of the registry in which it was begun.
    incarnation: Incarnation,
    publisher: Publisher,
    steps: Steps,
    volumes: BTreeMap<String, Placement>,
    /// Something has changed that directories depend on.
    scan_at: Option<Instant>,
    scanned_at: Instant,
    look_at: Instant,
    /// Changes were passed over.
    missed: bool,
    failing: bool,
    /// What was said last about what cannot be looked at.
    complaint: String,
}

/// What of a volume says that its directories may say something else than before.
#[derive(PartialEq, Eq)]
struct Placement {
    generation: u64,
    epoch: u64,
    replicas: Vec<(String, String)>,
}

impl Placement {
    fn of(volume: &pb::VolumeInfo) -> Self {
        let replicas = volume.replicas.iter().map(|r| (r.id.clone(), r.mode.clone())).collect();
        Self { generation: volume.generation, epoch: volume.epoch, replicas }
    }
}

/// Publishes until the node has ended; everything anew in each life of the registry, which may have lost some of it.
pub(super) async fn run(shared: Weak<Shared>, home: Arc<dyn InventoryHome>) {
    while shared.strong_count() > 0 {
        publish(shared.clone(), Arc::clone(&home)).await;
    }
}

async fn publish(shared: Weak<Shared>, home: Arc<dyn InventoryHome>) {
    // A list that is not complete is not begun with.
    let mut complaint = String::new();
    let (node, snapshot, changes, found, directories) = loop {
        let Some(node) = shared.upgrade() else { return };
        let (snapshot, changes) = node.subscribe();
        // What stands there may be of another agent of this name.
        let found = match node.check_standing() {
            Ok(()) => home.found().await,
            Err(error) => Err(error),
        };
        match (found, info::replica_dirs(&node).await) {
            (Ok(found), Ok(directories)) => break (node, snapshot, changes, found, directories),
            (Err(error), _) | (_, Err(error)) => {
                complain(&mut complaint, &error, "the inventory is not published yet");
            }
        }
        drop(node);
        sleep(BEGIN_AGAIN).await;
    };
    let mut steps = Steps::default();
    let mut entries = vec![steps.node(&info::node_info(&node).await)];
    match info::disks(&node, &directories).await {
        Ok(disks) => entries.extend(disks.iter().map(|disk| steps.disk(disk))),
        Err(error) => tracing::warn!(%error, "the disks cannot be asked"),
    }
    entries.extend(directories.iter().map(published::replica_dir));
    entries.extend(snapshot.instances.iter().map(published::instance));
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
    let publisher = Publisher::new(&node.config.node, &found, unix_ms, entries, node.now());
    let incarnation = node.registry.incarnation();
    drop((node, found));
    let now = Instant::now();
    let volumes = snapshot.volumes.iter().map(|v| (v.name.clone(), Placement::of(v))).collect();
    let publishing = Publishing {
        shared,
        home,
        incarnation,
        publisher,
        steps,
        volumes,
        scan_at: None,
        scanned_at: now,
        look_at: now + LOOK_EVERY,
        missed: false,
        failing: false,
        complaint: String::new(),
    };
    publishing.go_on(changes).await;
}

impl Publishing {
    async fn go_on(mut self, mut changes: Receiver<(u64, Change)>) {
        while let Some(shared) = self.shared.upgrade() {
            let write_at = self.publisher.poll_timeout().map(|at| shared.instant(at));
            let next = [self.scan_at, Some(self.look_at), write_at].into_iter().flatten().min();
            drop(shared);
            let change = tokio::select! {
                change = changes.recv() => Some(change),
                () = sleep_until(next.unwrap_or(self.look_at)) => None,
            };
            let Some(shared) = self.shared.upgrade() else { return };
            if shared.registry.incarnation() != self.incarnation {
                return;
            }
            match change {
                Some(Ok((_, change))) => self.hear(&shared, change),
                Some(Err(RecvError::Lagged(_))) => {
                    let (snapshot, again) = shared.subscribe();
                    changes = again;
                    self.hear_all(&shared, snapshot);
                }
                Some(Err(RecvError::Closed)) => return,
                None => self.act(&shared).await,
            }
        }
    }

    fn hear(&mut self, shared: &Shared, change: Change) {
        // While records cannot be read every claim is unknown: that is no news of what runs here, and over soon.
        if matches!(**shared.records.lock(), Records::Unavailable(_)) {
            self.missed = true;
            return;
        }
        if std::mem::take(&mut self.missed) {
            return self.hear_all(shared, shared.snapshot());
        }
        let now = shared.now();
        match change {
            Change::InstanceChanged(info) => {
                // Whether a directory is healthy depends on what serves it.
                if info.kind == "replica" {
                    self.scan_soon();
                }
                self.publisher.set(published::instance(&info), now);
            }
            Change::InstanceRemoved(name) => {
                self.publisher.remove(&Key { kind: Kind::Instance, name }, now);
                self.scan_soon();
            }
            Change::VolumeChanged(volume) => {
                let placement = Placement::of(&volume);
                if self.volumes.get(&volume.name) != Some(&placement) {
                    self.volumes.insert(volume.name, placement);
                    self.scan_soon();
                }
            }
            Change::VolumeRemoved(name) => {
                self.volumes.remove(&name);
                self.scan_soon();
            }
        }
    }

    /// Changes were missed: what is there now is all there is.
    fn hear_all(&mut self, shared: &Shared, snapshot: Snapshot) {
        let instances = snapshot.instances.iter().map(published::instance).collect();
        self.publisher.replace(Kind::Instance, instances, shared.now());
        self.volumes = snapshot.volumes.iter().map(|v| (v.name.clone(), Placement::of(v))).collect();
        self.scan_soon();
    }

    fn scan_soon(&mut self) {
        self.scan_at.get_or_insert((self.scanned_at + SCAN_EVERY_MIN).max(Instant::now()));
    }

    async fn act(&mut self, shared: &Arc<Shared>) {
        let known = matches!(**shared.records.lock(), Records::Known(_));
        if known && std::mem::take(&mut self.missed) {
            self.hear_all(shared, shared.snapshot());
        }
        let now = Instant::now();
        let (scan, look) = (self.scan_at.is_some_and(|at| at <= now), self.look_at <= now);
        if scan || look {
            let looked = info::replica_dirs(shared).await;
            self.scanned_at = Instant::now();
            self.scan_at = None;
            if look {
                self.look_at = self.scanned_at + LOOK_EVERY;
            }
            match looked {
                Ok(_) if matches!(**shared.records.lock(), Records::Unavailable(_)) => self.missed = true,
                Ok(directories) => self.take(shared, &directories, look).await,
                // What was published stays: that they cannot be listed says of none of them that it is gone.
                Err(error) => {
                    complain(&mut self.complaint, &error, "replica directories cannot be listed");
                }
            }
        }
        self.write(shared).await;
    }

    async fn take(&mut self, shared: &Arc<Shared>, directories: &[pb::ReplicaDirInfo], look: bool) {
        let entries = directories.iter().map(published::replica_dir).collect();
        self.publisher.replace(Kind::ReplicaDir, entries, shared.now());
        if look {
            match info::disks(shared, directories).await {
                Ok(disks) => {
                    let disks = disks.iter().map(|disk| self.steps.disk(disk)).collect();
                    self.publisher.replace(Kind::Disk, disks, shared.now());
                    self.complaint.clear();
                }
                Err(error) => complain(&mut self.complaint, &error, "the disks cannot be asked"),
            }
            let node = self.steps.node(&info::node_info(shared).await);
            self.publisher.set(node, shared.now());
        }
    }

    async fn write(&mut self, shared: &Shared) {
        let Some(ops) = self.publisher.poll_write(shared.now()) else { return };
        let written = match shared.check_standing() {
            Ok(()) => self.home.write(ops).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                self.publisher.written(shared.now());
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the inventory is published again");
                }
            }
            Err(error) => {
                self.publisher.failed(shared.now());
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the inventory is not published; tried again");
                }
            }
        }
    }
}

/// Says what is wrong, once.
fn complain(before: &mut String, error: &Error, what: &str) {
    let said = error.to_string();
    if *before != said {
        tracing::warn!(error = said, "{what}");
        *before = said;
    }
}
