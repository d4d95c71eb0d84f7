//! What the supervisor and the callers of its handle share: the inventory, the homes on disk, and a way to ask.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_proto::ids::BootId;
use holdfast_proto::pb::agent as pb;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::metrics::Metrics;
use super::{Change, NodeConfig, ShutdownProgress, Snapshot};
pub(super) use crate::blocking::blocking;
use crate::core::Moment;
use crate::core::elsewhere::Elsewhere;
use crate::core::foreign::{Foreign, Leases};
use crate::core::identity::Identity;
use crate::core::instance::InstanceName;
use crate::core::inventory::Inventory;
use crate::core::nodes::Nodes;
use crate::core::orphan::{self, Orphan, Stats};
use crate::core::presence::Standing;
use crate::core::records::Records;
use crate::core::upkeep::DiskReserve;
use crate::core::view;
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::features::Features;
use crate::store::DataDir;
use crate::store::instances::InstanceStore;
use crate::store::place::Place;
use crate::store::replica_dirs::Labels;
use crate::store::trash::{Trash, When};

/// A subscriber this far behind is told to start again: thousands of volumes changing at once, and seconds of them.
const CHANGES_KEPT: usize = 4096;
/// Callers waiting for the supervisor; more wait before they are let in.
const COMMANDS_MAX: usize = 64;

/// Seconds of the wall clock since 1970: for names, and for people to read. Nothing is decided by it.
pub(super) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a caller wants of the supervisor.
#[derive(Debug)]
pub(super) enum Command {
    /// Reconcile now; answered when the inventory shows it.
    Reconcile { reply: oneshot::Sender<()> },
    /// Let an instance find out which of its clients are still there; answered when it was told.
    CheckClients { name: InstanceName, reply: oneshot::Sender<()> },
    /// Stop an unclaimed instance.
    Stop { name: String, uuid: String, reply: oneshot::Sender<Result<pb::InstanceInfo, Error>> },
    /// What a person wants done with an orphan. `uuid` empty: whichever has the name now.
    Orphan { wish: OrphanWish, name: String, uuid: String, reply: oneshot::Sender<Result<pb::Orphan, Error>> },
    /// End, answered when nothing of the supervisor is left; with what could not be stopped in time.
    Shutdown { stop_instances: bool, reply: oneshot::Sender<Vec<String>> },
}

/// What a person may want of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrphanWish {
    Hold,
    Release,
    Delete,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: NodeConfig,
    pub(super) data: DataDir,
    /// What the data directory says of itself.
    pub(super) identity: Identity,
    pub(super) store: InstanceStore,
    pub(super) trash: Trash,
    /// Where replica directories are made.
    pub(super) place: Place,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) boot_id: BootId,
    pub(super) metrics: Metrics,
    pub(super) warnings: Vec<String>,
    pub(super) progress: watch::Sender<ShutdownProgress>,
    /// Of the replica directories here.
    pub(super) labels: Arc<Labels>,
    /// What the registry said last.
    pub(super) records: Mutex<Arc<Records>>,
    /// When directories that are not healthy were seen to be that last, by path, in seconds since 1970.
    pub(super) last_healthy: Mutex<BTreeMap<String, u64>>,
    /// What others claim here, as the registry said last.
    pub(super) foreign: Mutex<Arc<Foreign>>,
    /// Since when each of these claims counts.
    pub(super) leases: Mutex<Leases>,
    /// All nodes, as the registry tells of them.
    pub(super) nodes: Arc<Mutex<Nodes>>,
    /// What may be written into records, as far as those nodes read it.
    pub(super) features: Features,
    /// The others, as plans need them.
    pub(super) elsewhere: watch::Sender<Arc<Elsewhere>>,
    /// Whether this run may act as its node.
    pub(super) standing: watch::Receiver<Standing>,
    /// The last complete answer of the registry: what it might have lost is told by it.
    pub(super) last_known: Mutex<Option<Arc<Records>>>,
    pub(super) operations: Mutex<BTreeMap<String, Operation>>,
    /// What is cleaned; changes at run time.
    pub(super) orphan_settings: Mutex<orphan::Settings>,
    /// How long a node may be silent; changes at run time.
    pub(super) replenish_after: Mutex<Duration>,
    pub(super) disk_reserve: Mutex<DiskReserve>,
    /// As the supervisor saw them last.
    pub(super) orphans: Mutex<SeenOrphans>,
    inventory: Mutex<Inventory>,
    changes: broadcast::Sender<(u64, Change)>,
    revision: watch::Sender<u64>,
    commands: mpsc::Sender<Command>,
    epoch: Instant,
    /// When the supervisor last came round.
    came_round: Mutex<Moment>,
}

/// What nobody claimed at one moment.
#[derive(Debug, Default)]
pub(super) struct SeenOrphans {
    pub(super) at: Moment,
    pub(super) list: Vec<Orphan>,
    pub(super) stats: Stats,
}

/// An operation on a volume that is under way.
#[derive(Debug)]
pub(super) struct Operation {
    what: &'static str,
    users: usize,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The places that a node works in.
#[derive(Debug)]
pub(super) struct Homes {
    pub(super) data: DataDir,
    pub(super) identity: Identity,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) boot_id: BootId,
    pub(super) metrics: Metrics,
    pub(super) warnings: Vec<String>,
    /// What is known of other nodes before any was heard of.
    pub(super) elsewhere: Elsewhere,
    /// Whether this run may act as its node.
    pub(super) standing: watch::Receiver<Standing>,
}

impl Shared {
    pub(super) fn new(config: NodeConfig, homes: Homes) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (orphans, replenish_after) = (config.orphans.clone(), config.replenish_after);
        let disk_reserve = config.disk_reserve;
        let nodes = Arc::<Mutex<Nodes>>::default();
        let features = match config.registry.is_shared() {
            true => Features::shared(Arc::clone(&nodes)),
            false => Features::alone(),
        };
        let shared = Self {
            config,
            store: InstanceStore::new(homes.data.instances()),
            trash: Trash::new(homes.data.trash(), homes.data.replicas(), homes.data.trash_times()),
            place: homes.data.place(),
            data: homes.data,
            identity: homes.identity,
            registry: homes.registry,
            boot_id: homes.boot_id,
            metrics: homes.metrics,
            warnings: homes.warnings,
            progress: watch::Sender::new(ShutdownProgress::Running),
            labels: Arc::default(),
            records: Mutex::new(Arc::new(Records::Unavailable("not read yet".to_owned()))),
            last_healthy: Mutex::default(),
            foreign: Mutex::new(Arc::new(Foreign::Unavailable("not read yet".to_owned()))),
            leases: Mutex::default(),
            nodes,
            features,
            elsewhere: watch::Sender::new(Arc::new(homes.elsewhere)),
            standing: homes.standing,
            last_known: Mutex::default(),
            operations: Mutex::default(),
            orphan_settings: Mutex::new(orphans),
            replenish_after: Mutex::new(replenish_after),
            disk_reserve: Mutex::new(disk_reserve),
            orphans: Mutex::default(),
            inventory: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            revision: watch::Sender::new(0),
            commands,
            epoch: Instant::now(),
            came_round: Mutex::default(),
        };
        (shared, receiver)
    }

    /// Now, as the core counts it.
    pub(super) fn now(&self) -> Moment {
        self.epoch.elapsed()
    }
    /// Now, for what is deleted.
    pub(super) fn when(&self) -> When {
        When { unix_s: unix_now_s(), now: self.now() }
    }
    /// A core moment as a point of the runtime's clock.
    pub(super) fn instant(&self, moment: Moment) -> Instant {
        self.epoch + moment
    }

    /// Makes the inventory equal to these lists and tells what changed.
    pub(super) fn publish(&self, instances: Vec<pb::InstanceInfo>, volumes: Vec<pb::VolumeInfo>) {
        let mut inventory = self.inventory.lock();
        let changes = inventory.update(instances, volumes);
        let Some((last, _)) = changes.last() else { return };
        let last = *last;
        let mut counts = self.metrics.counts.lock();
        changes.iter().for_each(|(_, change)| counts.changed(change));
        drop(counts);
        for change in changes {
            // Sent under the lock, so that a subscriber's snapshot and its first change are neighbours.
            let _ = self.changes.send(change);
        }
        drop(inventory);
        self.revision.send_replace(last);
    }

    /// The supervisor is at work: what the inventory says is what it sees.
    pub(super) fn came_round(&self) {
        *self.came_round.lock() = self.now();
    }
    /// Since when the inventory is not what is seen: a disk or a registry holds the supervisor up.
    pub(super) fn stuck_for(&self) -> Option<Duration> {
        let running = matches!(*self.progress.borrow(), ShutdownProgress::Running);
        let age = self.now().saturating_sub(*self.came_round.lock());
        (running && age >= view::STALE_AFTER).then_some(age)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.aged(self.inventory.lock().snapshot())
    }
    pub(super) fn subscribe(&self) -> (Snapshot, broadcast::Receiver<(u64, Change)>) {
        let inventory = self.inventory.lock();
        (self.aged(inventory.snapshot()), self.changes.subscribe())
    }
    pub(super) fn volume(&self, name: &str) -> Option<pb::VolumeInfo> {
        let mut volume = self.inventory.lock().volume(name).cloned()?;
        if let Some(age) = self.stuck_for() {
            view::age(&mut volume, age);
        }
        Some(volume)
    }
    fn aged(&self, mut snapshot: Snapshot) -> Snapshot {
        if let Some(age) = self.stuck_for() {
            snapshot.volumes.iter_mut().for_each(|volume| view::age(volume, age));
        }
        snapshot
    }

    pub(super) fn log_path(&self, name: &str) -> Result<PathBuf, Error> {
        let unknown = || {
            Error::not_found(format!("find instance {name}: there is none; `holdfast instance ls` lists all"))
        };
        // A name that does not parse could be a path to anywhere.
        let parsed: InstanceName = name.parse().map_err(|_| unknown())?;
        let known = self.inventory.lock().instance(name).is_some();
        if known { Ok(self.store.log_of(&parsed.to_string())) } else { Err(unknown()) }
    }

    /// Waits until the volume is as `wanted` says (none: it is not listed), or the deadline is over; returns it as it
    /// then is.
    pub(super) async fn wait(
        &self,
        name: &str,
        deadline: Duration,
        wanted: impl Fn(Option<&pb::VolumeInfo>) -> bool,
    ) -> Option<pb::VolumeInfo> {
        self.settle(deadline, |_| wanted(self.volume(name).as_ref())).await;
        self.volume(name)
    }

    /// Waits until the inventory is as `wanted` says, or the deadline is over.
    pub(super) async fn settle(&self, deadline: Duration, wanted: impl Fn(&Snapshot) -> bool) {
        let mut revisions = self.revision.subscribe();
        let until = Instant::now() + deadline;
        loop {
            revisions.mark_unchanged();
            if wanted(&self.snapshot()) {
                return;
            }
            if !matches!(tokio::time::timeout_at(until, revisions.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Waits until what is known of the other nodes is as `wanted` says, or the deadline is over; returns whether it is.
    pub(super) async fn wait_elsewhere(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&Elsewhere) -> bool,
    ) -> bool {
        let mut elsewhere = self.elsewhere.subscribe();
        let found = elsewhere.wait_for(|known| wanted(known));
        matches!(tokio::time::timeout(deadline, found).await, Ok(Ok(_)))
    }

    /// Asks the supervisor and waits for its answer.
    pub(super) async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let ended = || Error::failed("ask the supervisor: it has ended");
        self.commands.send(make(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    /// Returns when the inventory shows what the records say now.
    pub(super) async fn reconcile(&self) -> Result<(), Error> {
        self.command(|reply| Command::Reconcile { reply }).await
    }

    pub(super) async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        let mut progress = self.progress.subscribe();
        let asked = self.command(|reply| Command::Shutdown { stop_instances, reply }).await;
        let left = match asked {
            Ok(left) => left,
            // Another caller's shutdown was first; its end is ours.
            Err(_) => match progress.wait_for(|p| matches!(p, ShutdownProgress::Done(_))).await {
                Ok(done) => match &*done {
                    ShutdownProgress::Done(left) => left.clone(),
                    _ => Vec::new(),
                },
                Err(_) => Vec::new(),
            },
        };
        if left.is_empty() || !stop_instances {
            return Ok(());
        }
        Err(Error::new(
            holdfast_proto::status::ErrorKind::TimedOut,
            format!("stop in time: {}; they go on by themselves", left.join(", ")),
        ))
    }

    /// Whether this run may start, stop and delete as its node.
    ///
    /// # Errors
    /// Why it may not (yet).
    pub(super) fn check_standing(&self) -> Result<(), Error> {
        match &*self.standing.borrow() {
            Standing::Sure => Ok(()),
            Standing::Unsure(why) => Err(Error::failed(why)),
            Standing::Taken(why) => Err(Error::conflict(why)),
        }
    }

    /// Whether an operator is changing the volume of this name now.
    pub(super) fn is_changing(&self, volume: &str) -> bool {
        self.operations.lock().contains_key(volume)
    }

    /// One operation at a time on a volume: an equal one waits its turn, a different one is told to come back.
    pub(super) async fn begin<'a>(&'a self, name: &str, what: &'static str) -> Result<Turn<'a>, Error> {
        self.check_standing()?;
        let turn = {
            let mut operations = self.operations.lock();
            let operation = operations.entry(name.to_owned()).or_insert_with(|| Operation {
                what,
                users: 0,
                turn: Arc::default(),
            });
            if operation.what != what {
                return Err(Error::conflict(format!(
                    "{what} volume {name}: {} is under way; try again when it is done",
                    operation.what
                )));
            }
            operation.users += 1;
            Arc::clone(&operation.turn)
        };
        let mut guard = Turn { shared: self, name: name.to_owned(), _turn: None };
        guard._turn = Some(turn.lock_owned().await);
        Ok(guard)
    }
}

/// The right to change a volume; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    shared: &'a Shared,
    name: String,
    _turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut operations = self.shared.operations.lock();
        if let Some(operation) = operations.get_mut(&self.name) {
            operation.users -= 1;
            if operation.users == 0 {
                operations.remove(&self.name);
            }
        }
    }
}
