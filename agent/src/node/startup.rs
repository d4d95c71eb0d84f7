//! From a configuration to a running supervisor: what is checked, made and found, in this order.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::BootId;
use tokio::sync::{mpsc, oneshot};

use super::metrics::{self, Metrics};
use super::shared::{Homes, Shared, blocking};
use super::supervisor::{Found, Orphans, Reads, Supervisor};
use super::{NodeConfig, Snapshot};
use super::{follow, publish, upkeep, wishes};
use crate::config::RegistryHome;
use crate::core::creation::{self, Lock, Remembered};
use crate::core::elsewhere::Elsewhere;
use crate::core::identity::Identity;
use crate::core::instance::InstanceName;
use crate::core::presence::Lodging;
use crate::error::Error;
use crate::process::binary::{self, Binary};
use crate::process::cgroup::Cgroup;
use crate::process::driver::Context;
use crate::process::proc::{self, Life};
use crate::process::spawn::check_socket_path;
use crate::registry::etcd::{self, EtcdRegistry};
use crate::registry::file::{self, FileRegistry};
use crate::registry::measured::Measured;
use crate::registry::{Announcement, Registry};
use crate::store::instances::InstanceStore;
use crate::store::lock::AgentLock;
use crate::store::{DataDir, Read, atomic, identity};

/// Events of instances that the supervisor has not taken yet; a driver that finds no room waits.
const EVENTS_MAX: usize = 1024;
/// A start does not wait longer than this for what it adopts.
const ADOPT_WITHIN: Duration = Duration::from_secs(2);

struct Prepared {
    data: DataDir,
    identity: Identity,
    boot_id: BootId,
    warnings: Vec<String>,
    lock: AgentLock,
    binary: Binary,
    cgroup: Cgroup,
}

/// The data directory, of which this process is the one agent.
#[derive(Debug)]
pub struct Held {
    data: DataDir,
    lock: AgentLock,
}

impl Held {
    /// Takes the data directory.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when another agent has it; when it cannot be used.
    pub async fn take(config: &NodeConfig) -> Result<Self, Error> {
        let dir = config.data_dir.clone();
        blocking(move || {
            let data = DataDir::open(&dir)?;
            let lock = AgentLock::hold(&data.lock())?;
            Ok(Self { data, lock })
        })
        .await
    }

    /// The same, once an agent that has it has ended. Cancel safe: what waits then goes with the process.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn wait(config: &NodeConfig) -> Result<Self, Error> {
        let (tell, told) = oneshot::channel();
        let dir = config.data_dir.clone();
        // A thread of its own: the runtime would wait for one of its own at the process's end.
        let thread = std::thread::Builder::new().name("lock".to_owned());
        let waiting = thread.spawn(move || {
            let held = |error: &Error| tracing::warn!(%error, "another agent has the data directory; waiting for its end");
            let taken = DataDir::open(&dir).and_then(|data| {
                let lock = AgentLock::wait(&data.lock(), held)?;
                Ok(Self { data, lock })
            });
            // Where nobody waits any more, the lock goes with it.
            drop(tell.send(taken));
        });
        waiting.map_err(|error| Error::failed(format!("wait for the data directory: {error}")))?;
        told.await
            .map_err(|_| Error::failed("wait for the data directory: the thread that waits has ended"))?
    }
}

/// Starts the node. When this returns, the inventory is complete and what runs has been adopted, or did not answer.
pub(super) async fn start(config: NodeConfig, held: Held) -> Result<Arc<Shared>, Error> {
    let preparing = config.clone();
    let prepared = blocking(move || prepare(&preparing, held)).await?;
    let metrics = Metrics::new();
    let registry = open_registry(&config).await?;
    let registry: Arc<dyn Registry> = Arc::new(Measured::new(registry, Arc::clone(&metrics.counts)));
    let address = config.advertise.unwrap_or(config.bind);
    let (node, lodging) = (config.node.clone(), Some(prepared.lodging()?));
    let standing = registry.announce(Announcement { node, address, lodging }).await?;
    let Prepared { data, identity, boot_id, warnings, .. } = prepared;
    let shared_home = config.registry.is_shared();
    let elsewhere = if shared_home { Elsewhere::unheard() } else { Elsewhere::default() };
    let homes = Homes { data, identity, registry, boot_id, metrics, warnings, elsewhere, standing };
    let (shared, commands) = Shared::new(config, homes);
    let shared = Arc::new(shared);
    let (events, reports) = mpsc::channel(EVENTS_MAX);
    let context = Context {
        store: shared.store.clone(),
        registry: Arc::clone(&shared.registry),
        features: shared.features.clone(),
        boot_id: shared.boot_id,
        binary: prepared.binary,
        cgroup: prepared.cgroup,
        events,
    };
    let (store, boot_id) = (shared.store.clone(), shared.boot_id);
    let found = blocking(move || find_instances(&store, boot_id)).await?;
    let file = shared.data.orphans();
    let orphans = blocking(move || Ok(Orphans::load(file))).await?;
    let mut supervisor =
        Supervisor::new(Arc::downgrade(&shared), Arc::new(context), prepared.lock, orphans, shared.now());
    tokio::spawn(follow::run(Arc::downgrade(&shared)));
    if shared_home {
        tokio::spawn(upkeep::run(Arc::downgrade(&shared)));
    } else {
        wishes::learn(&shared).await;
    }
    let living = found.iter().filter(|found| !found.instance.is_down());
    let adopted: Vec<String> = living.map(|found| found.name.to_string()).collect();
    supervisor.take_over(&shared, found);
    supervisor.reconcile(&shared, Reads::All).await;
    tokio::spawn(supervisor.run(commands, reports));
    // What runs answers within milliseconds; what does not is reported later.
    let asking = |snapshot: &Snapshot| adopted.iter().any(|name| is_pending(snapshot, name));
    shared.settle(ADOPT_WITHIN, |snapshot| !asking(snapshot)).await;
    tokio::spawn(metrics::watch_space(Arc::downgrade(&shared)));
    if let Some(home) = shared.registry.inventory(&shared.config.node) {
        tokio::spawn(publish::run(Arc::downgrade(&shared), home));
    }
    Ok(shared)
}

fn is_pending(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.instances.iter().any(|instance| instance.name == *name && instance.state == "pending")
}

impl Prepared {
    /// What tells this run from one with a copy of its data directory.
    fn lodging(&self) -> Result<Lodging, Error> {
        let (lock_device, lock_inode) = self.lock.identity()?;
        Ok(Lodging {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            data_dir: self.data.root().to_string_lossy().into_owned(),
            boot: self.boot_id,
            lock_device,
            lock_inode,
        })
    }
}

fn prepare(config: &NodeConfig, held: Held) -> Result<Prepared, Error> {
    let Held { data, mut lock } = held;
    atomic::clear_temporaries(data.root())?;
    let boot_id = proc::boot_id()?;
    let identity = identity::bind(&data, &config.node, boot_id)?;
    lock.say(config.node.as_str(), &config.listen_display)?;
    make_runtime_dir(&config.runtime_dir)?;
    let mut warnings: Vec<_> = doubted(&identity).into_iter().collect();
    require_io_uring(&mut warnings)?;
    warnings.extend(plain_registry(&config.registry));
    let source = config.binary.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let bin_dir = config.bin_dir.clone().unwrap_or_else(|| data.bin());
    let binary = binary::install(&source, &bin_dir)?;
    Ok(Prepared { data, identity, boot_id, warnings, lock, binary, cgroup: Cgroup::detect() })
}

/// Opens the home of the records that is configured. One that this node did not use before has no record of what it
/// runs and stores, which must not look as if nobody owned it.
///
/// # Errors
/// When it is another one than before, or cannot be used.
pub async fn open_registry(config: &NodeConfig) -> Result<Arc<dyn Registry>, Error> {
    let dir = DataDir::registry_in(&config.data_dir);
    let other = |here: &str| {
        Error::refused(format!(
            "open the registry {}: the records of {} are {here}; set the registry that they are in, or use another \
             --data-dir",
            config.registry,
            config.data_dir.display()
        ))
    };
    match &config.registry {
        RegistryHome::File if etcd::was_used(&dir) => Err(other("in etcd")),
        RegistryHome::Etcd(_) if file::has_records(&dir) => Err(other("in its files")),
        RegistryHome::File => {
            let registry = blocking(move || FileRegistry::open(&dir)).await?;
            Ok(Arc::new(registry))
        }
        RegistryHome::Etcd(home) => Ok(Arc::new(EtcdRegistry::open(home.clone(), &dir).await?)),
    }
}

/// What stays to be said of a data directory that is not where it was.
fn doubted(identity: &Identity) -> Option<String> {
    identity.freshness_doubt.then(|| {
        format!(
            "the data directory may be a copy or a restored backup ({}): its replicas may be older than they say",
            identity.doubt_reason
        )
    })
}

/// What a person should know who keeps keys in an etcd that anybody on the way can listen to.
fn plain_registry(home: &RegistryHome) -> Option<String> {
    let RegistryHome::Etcd(etcd) = home else { return None };
    let local = |server: &String| ["127.", "localhost:", "[::1]:"].iter().any(|own| server.starts_with(own));
    let plain = etcd.ca.is_none() && !etcd.place.endpoints.iter().all(local);
    plain.then(|| {
        "etcd is spoken to without TLS: whoever can listen on the way reads the keys of all volumes; set registry_ca"
            .to_owned()
    })
}

fn make_runtime_dir(dir: &Path) -> Result<(), Error> {
    // The longest name that a socket of ours has, but for those of volumes, which are checked by name.
    check_socket_path(&dir.join("12345678.sock"))?;
    if !dir.is_absolute() {
        return Err(Error::invalid(format!(
            "use the runtime directory {}: expected an absolute path, because instances and clients look for it \
             from elsewhere",
            dir.display()
        )));
    }
    if dir.is_dir() {
        return Ok(());
    }
    // 0711: clients that a volume's socket lets in must be able to reach it.
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(Error::io("create", dir))
}

/// Whether the kernel lets processes like our instances make rings at all; a filter of system calls shows only in
/// the instance itself, which says so when it starts.
fn require_io_uring(warnings: &mut Vec<String>) -> Result<(), Error> {
    match io_uring_sysctl().as_deref() {
        Some("2") => Err(Error::failed(
            "start instances: io_uring is switched off (kernel.io_uring_disabled = 2); allow it with: sysctl \
             kernel.io_uring_disabled=0",
        )),
        Some("1") => {
            warnings.push(
                "io_uring is restricted (kernel.io_uring_disabled = 1) to CAP_SYS_ADMIN and the group of \
                 kernel.io_uring_group"
                    .to_owned(),
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The sysctl, where this kernel has it.
pub(super) fn io_uring_sysctl() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    Some(text.trim().to_owned())
}

/// What earlier agents left: by their spawn records, and by whether their locks are held.
fn find_instances(store: &InstanceStore, boot_id: BootId) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for (name, read) in store.list()? {
        let life = proc::probe(&store.lock_of(&name));
        let Ok(parsed) = name.parse::<InstanceName>() else {
            tracing::warn!(directory = name, "not an instance of ours; left alone");
            continue;
        };
        let lock = match life {
            Ok(Life::Held) => Lock::Held,
            Ok(Life::Free) => Lock::Free,
            Err(error) => Lock::Unknown(error.to_string()),
        };
        let (remembered, record) = match read {
            Read::Found(record) => (Remembered::Creation(record.creation()), Some(record)),
            Read::Absent => (Remembered::Nothing, None),
            Read::Unreadable(reason) => (Remembered::Unreadable(reason), None),
        };
        if let Some(instance) = creation::left_behind(&remembered, lock, boot_id) {
            found.push(Found { name: parsed, instance, record });
        }
    }
    Ok(found)
}

/// The control sockets that are spoken for.
pub(super) fn sockets(found: &[Found]) -> BTreeMap<InstanceName, PathBuf> {
    let recorded = found.iter().filter_map(|found| {
        found.record.as_ref().map(|record| (found.name.clone(), record.control_socket.clone()))
    });
    recorded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_or_long_runtime_directory_is_refused_at_start() {
        assert!(make_runtime_dir(Path::new("run")).unwrap_err().to_string().contains("absolute"));
        let long = format!("/{}", "x".repeat(100));
        assert!(make_runtime_dir(Path::new(&long)).unwrap_err().to_string().contains("limit is 107"));
    }
}
