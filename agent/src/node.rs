//! The supervisor of one node, and the handle through which everything else talks to it.
//!
//! One task (`supervisor`) owns the instances: it reconciles on change and on a timer, never on its own writes.
//! One driver per instance talks to its process. What operators ask for (`volumes`) is written into records by the
//! caller's task and then only awaited: the records are the truth, and a crash between any two steps is repaired by
//! the next reconcile. Reads come from the inventory and never wait for a disk.

mod claims;
mod drain;
mod follow;
mod force;
mod host;
mod info;
mod metrics;
mod nodes;
mod orphans;
mod publish;
mod registry;
mod rename;
mod replicas;
mod roles;
mod shared;
mod startup;
mod supervisor;
mod undelete;
mod upkeep;
mod volumes;
mod wishes;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use tokio::sync::{broadcast, watch};

use self::shared::{Command, OrphanWish, Shared};
use crate::config::{Limits, REPLENISH_AFTER, RegistryHome};
use crate::core::orphan;
use crate::core::presence::Standing;
use crate::core::upkeep::DiskReserve;
use crate::error::Error;
use crate::metrics::Observed;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name in volume records.
    pub node: NodeName,
    /// Where the records live.
    pub registry: RegistryHome,
    /// Where instances, replicas and, in their file home, records are kept.
    pub data_dir: PathBuf,
    /// A short directory for sockets.
    pub runtime_dir: PathBuf,
    /// Where the instances' binary is copied to; none: `bin` in the data directory.
    pub bin_dir: Option<PathBuf>,
    /// The binary that instances run; none: this process's own.
    pub binary: Option<PathBuf>,
    /// The address that replicas listen on.
    pub bind: IpAddr,
    /// The address that engines reach them by; none: the same.
    pub advertise: Option<IpAddr>,
    /// The ports that replicas choose from.
    pub data_ports: RangeInclusive<u16>,
    /// Where this agent listens, for messages and `node show`.
    pub listen_display: String,
    /// What engines wait for, and how long.
    pub limits: Limits,
    /// How long deleted data stays in the trash.
    pub trash_ttl: Duration,
    /// What is cleaned when nobody claims it, and after how long.
    pub orphans: orphan::Settings,
    /// How long a node's agent may be silent before its replicas are placed elsewhere.
    pub replenish_after: Duration,
    /// What replicas that move here leave free of its disk.
    pub disk_reserve: DiskReserve,
}

impl NodeConfig {
    /// The defaults for everything but where the node lives.
    #[must_use]
    pub fn new(node: NodeName, data_dir: PathBuf, runtime_dir: PathBuf) -> Self {
        Self {
            node,
            registry: RegistryHome::File,
            data_dir,
            runtime_dir,
            bin_dir: None,
            binary: None,
            bind: IpAddr::from([127, 0, 0, 1]),
            advertise: None,
            data_ports: 20000..=29999,
            listen_display: String::new(),
            limits: Limits::default(),
            trash_ttl: Duration::from_secs(24 * 3600),
            orphans: orphan::Settings::default(),
            replenish_after: REPLENISH_AFTER,
            disk_reserve: DiskReserve::default(),
        }
    }
}

pub use self::rename::{Renamed, rename};
pub use self::startup::{Held, open_registry};
pub use self::volumes::IO_MODE_DEFAULT;
pub use self::wishes::{allow_uninstall, leave_registry};
pub use crate::core::inventory::{Change, Snapshot};

/// How far a shutdown has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ShutdownProgress {
    /// Not asked for.
    #[default]
    Running,
    /// These engines are still finishing: draining, flushing, writing the clean mark.
    Engines(Vec<String>),
    /// These replicas are still ending.
    Replicas(Vec<String>),
    /// Over; what did not end in time, if anything.
    Done(Vec<String>),
}

/// Starts the node: takes the data directory's lock, adopts what runs, and supervises from then on.
///
/// # Errors
/// When the directory is held by another agent, or cannot be used.
pub async fn start(config: NodeConfig) -> Result<NodeHandle, Error> {
    let held = Held::take(&config).await?;
    start_in(config, held).await
}

/// The same in a data directory that this process holds already.
///
/// # Errors
/// When the directory cannot be used, or another agent lives under the node's name.
pub async fn start_in(config: NodeConfig, held: Held) -> Result<NodeHandle, Error> {
    let shared = startup::start(config, held).await?;
    Ok(NodeHandle { shared })
}

/// Talks to the supervisor of this node. When the last handle is dropped without a shutdown, the supervisor ends and
/// the instances stay.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    shared: Arc<Shared>,
}

impl NodeHandle {
    /// Creates a volume and its replica directories on this node; other nodes make theirs when they see the record.
    ///
    /// # Errors
    /// `Invalid` for a bad name, size, count, mode or node; `Conflict` where the name is taken; `TimedOut`, with the
    /// volume created, where another node has not made a directory yet.
    pub async fn create_volume(&self, request: pb::CreateVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { volumes::create(&shared, &request).await }).await
    }
    /// Wants the volume here, or on the node that is named; returns once I/O can start, or after a few seconds with what it waits for.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where it is attached otherwise, still detaching, or being deleted.
    pub async fn attach_volume(&self, request: pb::AttachVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { volumes::attach(&shared, &request).await }).await
    }
    /// Wants the volume nowhere; returns once it is detached, or still `detaching` where that is another node's to do, which
    /// is silent.
    ///
    /// # Errors
    /// `NotFound`; `Refused` while clients are connected, unless forced; `TimedOut` where it is not detached in time.
    pub async fn detach_volume(&self, request: pb::DetachVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { volumes::detach(&shared, &request).await }).await
    }
    /// Forgets a detached volume; its data stays, or goes to the trash where that is asked for.
    ///
    /// # Errors
    /// `NotFound`; `Refused` while it is attached.
    pub async fn delete_volume(
        &self,
        request: pb::DeleteVolumeRequest,
    ) -> Result<pb::DeleteVolumeReply, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { volumes::delete(&shared, &request).await }).await
    }
    /// Makes a volume again of its directories that are still on this node.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where it, or another of its name, is there; `Refused` where its copies do not agree, or newer
    /// data may be elsewhere.
    pub async fn undelete_volume(&self, request: pb::UndeleteVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { undelete::undelete(&shared, &request).await }).await
    }
    /// Wants one more replica of a volume.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for another node; `Refused` where it has as many as it can have; `Conflict` while too many
    /// are on their way out.
    pub async fn add_replica(&self, request: pb::AddReplicaRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { replicas::add(&shared, &request).await }).await
    }
    /// Wants a replica no more; its data stays on disk.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where it is leaving already; `Refused` where it may be the last healthy copy.
    pub async fn remove_replica(&self, request: pb::RemoveReplicaRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { replicas::remove(&shared, &request).await }).await
    }
    /// Wants a new replica in the place of one, which stays until the new one holds everything.
    ///
    /// # Errors
    /// As for [`Self::add_replica`] and [`Self::remove_replica`].
    pub async fn replace_replica(&self, request: pb::ReplaceReplicaRequest) -> Result<pb::VolumeInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { replicas::replace(&shared, &request).await }).await
    }
    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume(&self, name: &str) -> Result<pb::VolumeInfo, Error> {
        self.shared.volume(name).ok_or_else(|| volumes::no_such("find", name))
    }
    /// Everything, at one revision.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }
    /// Everything, and each change after exactly that. A receiver that lags must subscribe again.
    #[must_use]
    pub fn subscribe(&self) -> (Snapshot, broadcast::Receiver<(u64, Change)>) {
        self.shared.subscribe()
    }
    /// Stops the process of an instance that no record claims. `uuid` empty: whichever has the name now.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where the name belongs to another creation by now; `Refused` where it is claimed, its
    /// claim is unknown, or it has clients.
    pub async fn stop_instance(&self, name: &str, uuid: &str) -> Result<pb::InstanceInfo, Error> {
        let (name, uuid) = (name.to_owned(), uuid.to_owned());
        self.shared.command(|reply| Command::Stop { name, uuid, reply }).await?
    }
    /// What no record claims, as it was seen last.
    #[must_use]
    pub fn orphans(&self) -> Vec<pb::Orphan> {
        orphans::list(&self.shared)
    }
    /// What is cleaned from now on.
    pub fn set_orphan_settings(&self, settings: orphan::Settings) {
        *self.shared.orphan_settings.lock() = settings;
    }
    /// How long a node's agent may be silent, from now on, before its replicas are placed elsewhere.
    pub fn set_replenish_after(&self, wait: Duration) {
        *self.shared.replenish_after.lock() = wait;
    }
    /// What replicas that move here leave free of its disk, from now on.
    pub fn set_disk_reserve(&self, reserve: DiskReserve) {
        *self.shared.disk_reserve.lock() = reserve;
    }
    /// Keeps an orphan from being cleaned until it is released. `uuid` empty: whichever has the name now.
    ///
    /// # Errors
    /// `NotFound`; `Refused` where it is no orphan; `Conflict` where the name belongs to another creation by now.
    pub async fn hold_orphan(&self, name: &str, uuid: &str) -> Result<pb::Orphan, Error> {
        orphans::wish(&self.shared, OrphanWish::Hold, name, uuid).await
    }
    /// Lets an orphan that is held go.
    ///
    /// # Errors
    /// As for [`Self::hold_orphan`].
    pub async fn release_orphan(&self, name: &str, uuid: &str) -> Result<pb::Orphan, Error> {
        orphans::wish(&self.shared, OrphanWish::Release, name, uuid).await
    }
    /// Stops the process of an orphan, or moves its directory to the trash, without waiting.
    ///
    /// # Errors
    /// As for [`Self::hold_orphan`]; `Refused` where it is claimed, that cannot be known, or it is in use.
    pub async fn delete_orphan(&self, name: &str, uuid: &str) -> Result<pb::Orphan, Error> {
        orphans::wish(&self.shared, OrphanWish::Delete, name, uuid).await
    }
    /// What others claim on this node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn claims(&self) -> Result<Vec<pb::Claim>, Error> {
        claims::list(&self.shared).await
    }
    /// Claims an instance of this node for a controller, or renews its claim.
    ///
    /// # Errors
    /// `Invalid`; `NotFound` where nobody knows its volume; `Conflict` while another owner's claim counts.
    pub async fn claim(&self, request: pb::PutClaimRequest) -> Result<pb::Claim, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { claims::put(&shared, &request).await }).await
    }
    /// Releases an instance; what was claimed.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where it is another owner's.
    pub async fn release_claim(&self, request: pb::DeleteClaimRequest) -> Result<pb::Claim, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { claims::delete(&shared, &request).await }).await
    }
    /// What waits in the trash.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn trash(&self) -> Result<Vec<pb::TrashItem>, Error> {
        orphans::trash(&self.shared, |trash, now| trash.waiting(now)).await
    }
    /// Puts a directory back where it was.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where something else is in its place.
    pub async fn restore_trash(&self, name: &str) -> Result<pb::TrashItem, Error> {
        let wanted = name.to_owned();
        let restored =
            orphans::trash(&self.shared, move |trash, _| Ok(vec![trash.restore(&wanted)?])).await?;
        restored.into_iter().next().ok_or_else(|| Error::not_found(format!("restore {name}: there is none")))
    }
    /// Unlinks what waits in the trash; `name` empty: everything. Returns what went.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn empty_trash(&self, name: &str) -> Result<Vec<pb::TrashItem>, Error> {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        orphans::trash(&self.shared, move |trash, _| trash.empty(name.as_deref())).await
    }
    /// Every replica directory on disk, claimed or not.
    pub async fn replica_dirs(&self) -> Vec<pb::ReplicaDirInfo> {
        self.listed_replica_dirs().await
    }
    async fn listed_replica_dirs(&self) -> Vec<pb::ReplicaDirInfo> {
        info::replica_dirs(&self.shared).await.unwrap_or_else(|error| {
            tracing::error!(%error, "replica directories cannot be listed");
            Vec::new()
        })
    }
    /// The node itself.
    pub async fn node_info(&self) -> pb::NodeInfo {
        let directories = self.listed_replica_dirs().await;
        let mut node = info::node_info(&self.shared).await;
        match info::disks(&self.shared, &directories).await {
            Ok(disks) => node.disks = disks,
            Err(error) => node.warnings.push(error.to_string()),
        }
        node
    }
    /// What metrics say now.
    #[must_use]
    pub fn metrics(&self) -> Observed {
        metrics::observe(&self.shared)
    }

    /// Every node that the registry tells of.
    pub async fn nodes(&self) -> Vec<pb::NodeSummary> {
        nodes::looked_for(&self.shared).await
    }
    /// Has a node take no new replicas and give its own away; `node` empty: this one. Says what is left there.
    ///
    /// # Errors
    /// `Invalid` for a node that nobody has heard of.
    pub async fn drain_node(&self, node: String) -> Result<pb::NodeParts, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { drain::drain(&shared, &node).await }).await
    }
    /// Takes that back, and that the node was forgotten.
    ///
    /// # Errors
    /// As for [`Self::drain_node`].
    pub async fn undrain_node(&self, node: String) -> Result<pb::NodeSummary, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { drain::undrain(&shared, &node).await }).await
    }
    /// What is left on a node.
    ///
    /// # Errors
    /// As for [`Self::drain_node`].
    pub async fn left_on_node(&self, node: &str) -> Result<pb::NodeParts, Error> {
        drain::left(&self.shared, node).await
    }
    /// What speaks against restarting a node now.
    ///
    /// # Errors
    /// As for [`Self::drain_node`].
    pub async fn safe_to_reboot(&self, node: &str) -> Result<pb::NodeParts, Error> {
        drain::safe_to_reboot(&self.shared, node).await
    }
    /// Declares that a node does not come back.
    ///
    /// # Errors
    /// As for [`Self::drain_node`]; `Refused` while its agent lives, or where that cannot be known.
    pub async fn forget_node(&self, node: String) -> Result<pb::NodeSummary, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { drain::forget(&shared, &node).await }).await
    }
    /// See [`allow_uninstall`].
    ///
    /// # Errors
    /// When the node's record cannot be read or written.
    pub async fn allow_uninstall(&self, allowed: Option<bool>) -> Result<bool, Error> {
        wishes::allow_uninstall(self.shared.registry.as_ref(), &self.shared.config.node, allowed).await
    }
    /// The registry as it is, and what it would lose if it counted.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn show_registry(&self) -> Result<pb::RegistryInfo, Error> {
        registry::show(&self.shared).await
    }
    /// Begins a new incarnation in a registry that is not believed, whose incarnation was shown to be `shown`; empty: none.
    ///
    /// # Errors
    /// `Refused` where it is believed; `Conflict` where its incarnation is another one by now.
    pub async fn accept_registry(&self, shown: String) -> Result<pb::RegistryInfo, Error> {
        let shared = Arc::clone(&self.shared);
        detached(async move { registry::accept(&shared, &shown).await }).await
    }
    /// Returns when another agent turns out to have this node's name; which one, and what to do. Cancel safe.
    pub async fn name_is_taken(&self) -> String {
        let mut standing = self.shared.standing.clone();
        loop {
            if let Standing::Taken(why) = &*standing.borrow_and_update() {
                return why.clone();
            }
            if standing.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
    /// Where an instance's log is.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn log_path(&self, name: &str) -> Result<PathBuf, Error> {
        self.shared.log_path(name)
    }
    /// Ends the supervisor. With `stop_instances`, engines are drained and stopped first, then replicas; without,
    /// all instances keep running. [`Self::shutdown_progress`] tells how far it is. A repeat joins the first.
    ///
    /// # Errors
    /// `TimedOut`, naming what did not end in time.
    pub async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        self.shared.shutdown(stop_instances).await
    }
    /// How far a shutdown has come.
    #[must_use]
    pub fn shutdown_progress(&self) -> watch::Receiver<ShutdownProgress> {
        self.shared.progress.subscribe()
    }
}

/// Runs to its end even if the caller goes away: an operation is never half an operation for want of a listener.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|e| Error::failed(format!("finish the operation: {e}")))?
}
