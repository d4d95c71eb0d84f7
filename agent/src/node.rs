//! The supervisor of one node, and the handle through which everything else talks to it.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use tokio::sync::{broadcast, watch};

use crate::error::Error;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name in volume records.
    pub node: NodeName,
    /// Where records, instances and replicas are kept.
    pub data_dir: PathBuf,
    /// A short directory for sockets.
    pub runtime_dir: PathBuf,
    /// Where the instances' binary is copied to; none: `bin` in the data directory.
    pub bin_dir: Option<PathBuf>,
    /// The binary that instances run; none: this process's own.
    pub binary: Option<PathBuf>,
    /// The address that replicas listen on.
    pub bind: IpAddr,
    /// The ports that replicas choose from.
    pub data_ports: RangeInclusive<u16>,
    /// Where this agent listens, for messages and `node show`.
    pub listen_display: String,
    /// How long a replica may be silent.
    pub replica_timeout: Duration,
    /// How long I/O is held before it fails.
    pub suspend_timeout: Duration,
    /// How long deleted data stays in the trash.
    pub trash_ttl: Duration,
    /// Below this many members I/O is suspended.
    pub min_in_sync: u32,
    /// Regions in flight while a replica is filled.
    pub rebuild_inflight_max: u32,
}

impl NodeConfig {
    /// The defaults for everything but where the node lives.
    #[must_use]
    pub fn new(node: NodeName, data_dir: PathBuf, runtime_dir: PathBuf) -> Self {
        Self {
            node,
            data_dir,
            runtime_dir,
            bin_dir: None,
            binary: None,
            bind: IpAddr::from([127, 0, 0, 1]),
            data_ports: 20000..=29999,
            listen_display: String::new(),
            replica_timeout: Duration::from_secs(8),
            suspend_timeout: Duration::from_secs(300),
            trash_ttl: Duration::from_secs(24 * 3600),
            min_in_sync: 1,
            rebuild_inflight_max: 4,
        }
    }
}

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
pub async fn start(_config: NodeConfig) -> Result<NodeHandle, Error> {
    Err(Error::failed("start: not built yet"))
}

/// Talks to the supervisor of this node.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    progress: watch::Receiver<ShutdownProgress>,
    changes: broadcast::Sender<(u64, Change)>,
}

fn not_yet<T>() -> Result<T, Error> {
    Err(Error::failed("not built yet"))
}

impl NodeHandle {
    /// Creates a volume and its replica directories on this node.
    pub async fn create_volume(&self, _request: pb::CreateVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        not_yet()
    }
    /// Wants the volume here; returns once I/O can start, or after a few seconds with what it waits for.
    pub async fn attach_volume(&self, _request: pb::AttachVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        not_yet()
    }
    /// Wants the volume nowhere; returns once it is detached, or after its deadline still `detaching`.
    pub async fn detach_volume(&self, _request: pb::DetachVolumeRequest) -> Result<pb::VolumeInfo, Error> {
        not_yet()
    }
    /// Forgets a detached volume; its data stays, or goes to the trash where that is asked for.
    pub async fn delete_volume(
        &self,
        _request: pb::DeleteVolumeRequest,
    ) -> Result<pb::DeleteVolumeReply, Error> {
        not_yet()
    }
    /// One volume.
    pub async fn volume(&self, _name: &str) -> Result<pb::VolumeInfo, Error> {
        not_yet()
    }
    /// Everything, at one revision.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
    /// Everything, and each change after exactly that.
    #[must_use]
    pub fn subscribe(&self) -> (Snapshot, broadcast::Receiver<(u64, Change)>) {
        (Snapshot::default(), self.changes.subscribe())
    }
    /// Stops the process of an instance that no record claims. `uuid` empty: whichever has the name now.
    pub async fn stop_instance(&self, _name: &str, _uuid: &str) -> Result<pb::InstanceInfo, Error> {
        not_yet()
    }
    /// Every replica directory on disk, claimed or not, with the revision.
    pub async fn replica_dirs(&self) -> Vec<pb::ReplicaDirInfo> {
        Vec::new()
    }
    /// The node itself.
    pub async fn node_info(&self) -> pb::NodeInfo {
        pb::NodeInfo::default()
    }
    /// Where an instance's log is.
    pub fn log_path(&self, _name: &str) -> Result<PathBuf, Error> {
        not_yet()
    }
    /// Ends the supervisor. With `stop_instances`, engines are drained and stopped first, then replicas; without,
    /// all instances keep running. [`Self::shutdown_progress`] tells how far it is.
    pub async fn shutdown(&self, _stop_instances: bool) -> Result<(), Error> {
        not_yet()
    }
    /// How far a shutdown has come.
    #[must_use]
    pub fn shutdown_progress(&self) -> watch::Receiver<ShutdownProgress> {
        self.progress.clone()
    }
}
