//! The agent's configuration: defaults, then one TOML file, then flags.
//!
//! Every value remembers where it came from, so that a refusal can name the line or flag to change. Nothing here
//! touches a disk but [`AgentConfig::load`].

mod check;
mod file;
mod flags;
mod limits;
mod registry;
mod reload;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_dataplane::io::SpinMode;
use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::ids::NodeName;
use holdfast_proto::status::ErrorKind;

pub use flags::AgentFlags;
pub(crate) use flags::{absolute, parse_listen};
pub use limits::Limits;
pub(crate) use registry::parse_place;
pub use registry::{EtcdHome, EtcdPlace, RegistryHome, RegistryPlace};
pub use reload::Reload;

use crate::complaint::Complaint;
use crate::core::orphan::{self, Class};
use crate::core::upkeep::DiskReserve;
use crate::telemetry::{LogFormat, LogLevel};

/// Where a packaged agent keeps records and replicas.
pub const DATA_DIR: &str = "/var/lib/holdfast";
/// Where a packaged agent keeps its sockets.
pub const RUNTIME_DIR: &str = "/run/holdfast";
/// Where a packaged agent listens.
pub const LISTEN: &str = "/run/holdfast/agent.sock";
/// Ports that replicas listen on.
pub const DATA_PORTS: RangeInclusive<u16> = 20000..=29999;
/// Deleted data waits this long in the trash.
pub const TRASH_TTL: Duration = Duration::from_secs(24 * 3600);
/// A node's agent is silent for this long before its replicas are placed elsewhere: longer than a reboot takes.
pub const REPLENISH_AFTER: Duration = Duration::from_secs(600);

/// Everything `holdfast agent` needs to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Records, replicas and binaries.
    pub data_dir: PathBuf,
    /// The unix socket of the gRPC server.
    pub listen: PathBuf,
    /// This node's name.
    pub node: NodeName,
    /// Where the records live.
    pub registry: RegistryHome,
    /// What replicas listen on.
    pub data_ports: RangeInclusive<u16>,
    /// The address they listen on.
    pub bind: IpAddr,
    /// The address they are reached by; none: the same.
    pub advertise: Option<IpAddr>,
    /// Where copies of the binary are run from.
    pub bin_dir: PathBuf,
    /// Sockets of instances and frontends.
    pub runtime_dir: PathBuf,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogLevel,
    /// Whether `SIGTERM` stops the instances too.
    pub stop_instances: bool,
    /// What engines wait for, and how long.
    pub limits: Limits,
    /// See [`TRASH_TTL`].
    pub trash_ttl: Duration,
    /// What is cleaned when nobody claims it, and after how long.
    pub orphans: orphan::Settings,
    /// See [`REPLENISH_AFTER`].
    pub replenish_after: Duration,
    /// What replicas that move here leave free of the disk.
    pub disk_reserve: DiskReserve,
    /// Where metrics are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Flag(&'static str),
    File { path: PathBuf, line: usize, key: &'static str },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sourced<T> {
    value: T,
    origin: Origin,
}

/// What one source says; `None` where it is silent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Partial {
    data_dir: Option<Sourced<PathBuf>>,
    listen: Option<Sourced<PathBuf>>,
    node: Option<Sourced<NodeName>>,
    registry: Option<Sourced<RegistryPlace>>,
    registry_ca: Option<Sourced<PathBuf>>,
    registry_cert: Option<Sourced<PathBuf>>,
    registry_key: Option<Sourced<PathBuf>>,
    registry_user: Option<Sourced<String>>,
    registry_password_file: Option<Sourced<PathBuf>>,
    data_ports: Option<Sourced<RangeInclusive<u16>>>,
    bind: Option<Sourced<IpAddr>>,
    advertise: Option<Sourced<IpAddr>>,
    bin_dir: Option<Sourced<PathBuf>>,
    runtime_dir: Option<Sourced<PathBuf>>,
    log_format: Option<Sourced<LogFormat>>,
    log_level: Option<Sourced<LogLevel>>,
    stop_instances: Option<Sourced<bool>>,
    replica_timeout: Option<Sourced<Duration>>,
    suspend_timeout: Option<Sourced<Duration>>,
    min_in_sync: Option<Sourced<u32>>,
    read_lease: Option<Sourced<Duration>>,
    replica_lag_max: Option<Sourced<Duration>>,
    heartbeat: Option<Sourced<Duration>>,
    start_patience: Option<Sourced<Duration>>,
    rebuild_inflight: Option<Sourced<u32>>,
    rebuild_bandwidth: Option<Sourced<u64>>,
    rebuild_concurrency: Option<Sourced<u32>>,
    spin: Option<Sourced<SpinMode>>,
    trash_ttl: Option<Sourced<Duration>>,
    orphan_auto_cleanup: Option<Sourced<BTreeSet<Class>>>,
    orphan_grace_period: Option<Sourced<Duration>>,
    replenish_after: Option<Sourced<Duration>>,
    disk_reserve: Option<Sourced<DiskReserve>>,
    metrics: Option<Sourced<SocketAddr>>,
}

impl Partial {
    /// This source where it speaks, else the weaker one.
    fn over(self, weaker: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(weaker.data_dir),
            listen: self.listen.or(weaker.listen),
            node: self.node.or(weaker.node),
            registry: self.registry.or(weaker.registry),
            registry_ca: self.registry_ca.or(weaker.registry_ca),
            registry_cert: self.registry_cert.or(weaker.registry_cert),
            registry_key: self.registry_key.or(weaker.registry_key),
            registry_user: self.registry_user.or(weaker.registry_user),
            registry_password_file: self.registry_password_file.or(weaker.registry_password_file),
            data_ports: self.data_ports.or(weaker.data_ports),
            bind: self.bind.or(weaker.bind),
            advertise: self.advertise.or(weaker.advertise),
            bin_dir: self.bin_dir.or(weaker.bin_dir),
            runtime_dir: self.runtime_dir.or(weaker.runtime_dir),
            log_format: self.log_format.or(weaker.log_format),
            log_level: self.log_level.or(weaker.log_level),
            stop_instances: self.stop_instances.or(weaker.stop_instances),
            replica_timeout: self.replica_timeout.or(weaker.replica_timeout),
            suspend_timeout: self.suspend_timeout.or(weaker.suspend_timeout),
            min_in_sync: self.min_in_sync.or(weaker.min_in_sync),
            read_lease: self.read_lease.or(weaker.read_lease),
            replica_lag_max: self.replica_lag_max.or(weaker.replica_lag_max),
            heartbeat: self.heartbeat.or(weaker.heartbeat),
            start_patience: self.start_patience.or(weaker.start_patience),
            rebuild_inflight: self.rebuild_inflight.or(weaker.rebuild_inflight),
            rebuild_bandwidth: self.rebuild_bandwidth.or(weaker.rebuild_bandwidth),
            rebuild_concurrency: self.rebuild_concurrency.or(weaker.rebuild_concurrency),
            spin: self.spin.or(weaker.spin),
            trash_ttl: self.trash_ttl.or(weaker.trash_ttl),
            orphan_auto_cleanup: self.orphan_auto_cleanup.or(weaker.orphan_auto_cleanup),
            orphan_grace_period: self.orphan_grace_period.or(weaker.orphan_grace_period),
            replenish_after: self.replenish_after.or(weaker.replenish_after),
            disk_reserve: self.disk_reserve.or(weaker.disk_reserve),
            metrics: self.metrics.or(weaker.metrics),
        }
    }
}

/// What the machine says where the configuration is silent.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The host name, whether or not it can be a node name.
    pub host_name: String,
    /// Relative paths of flags start here.
    pub current_dir: PathBuf,
    /// Where sockets go for a data directory that is not the packaged one.
    pub runtime_dir_for: fn(&Path) -> PathBuf,
}

impl Surroundings {
    /// This machine's.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn of_this_machine() -> Result<Self, Complaint> {
        let current_dir = std::env::current_dir().map_err(|error| {
            Complaint::failed(format!("failed to find the current directory: {error}"))
                .remedy("change to a directory that exists")
        })?;
        let host_name =
            nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { host_name, current_dir, runtime_dir_for: crate::runtime_dir::path_for })
    }
}

impl AgentConfig {
    /// Reads the file that the flags name, and puts the flags over it.
    ///
    /// # Errors
    /// When the file cannot be read, or as in [`Self::resolve`].
    pub fn load(flags: &AgentFlags, around: &Surroundings) -> Result<Self, Complaint> {
        let file = match &flags.config {
            None => None,
            Some(path) => {
                let read = PrivateFile::settings().read_all(path);
                let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
                let text = text.map_err(|error| {
                    let message = format!("failed to read the configuration {}: {error}", path.display());
                    Complaint::new(ErrorKind::Invalid, message)
                        .remedy("name a readable TOML file with --config")
                })?;
                Some((path.as_path(), text))
            }
        };
        Self::resolve(flags, file.as_ref().map(|(path, text)| (*path, text.as_str())), around)
    }

    /// Flags over file over defaults. Every problem is reported, not just the first.
    ///
    /// # Errors
    /// Names file and line, or the flag, and the remedy for each unknown key, bad value and impossible combination.
    pub fn resolve(
        flags: &AgentFlags,
        file: Option<(&Path, &str)>,
        around: &Surroundings,
    ) -> Result<Self, Complaint> {
        let mut problems = Vec::new();
        let from_file = file.map(|(path, text)| file::parse(path, text, &mut problems)).unwrap_or_default();
        let merged = flags.partial(around).over(from_file);
        merged.check(&mut problems);
        let node = node_name(&merged, around, &mut problems);
        match node {
            Some(node) if problems.is_empty() => Ok(merged.complete(node, around)),
            _ => Err(Complaint::new(ErrorKind::Invalid, problems.join("\n"))),
        }
    }
}

fn node_name(merged: &Partial, around: &Surroundings, problems: &mut Vec<String>) -> Option<NodeName> {
    if let Some(node) = &merged.node {
        return Some(node.value.clone());
    }
    match around.host_name.to_ascii_lowercase().parse() {
        Ok(node) => Some(node),
        Err(error) => {
            problems.push(format!(
                "the host name cannot be this node's name: {error}; remedy: give one with --node or the key node"
            ));
            None
        }
    }
}

impl Partial {
    fn complete(self, node: NodeName, around: &Surroundings) -> AgentConfig {
        fn or<T>(setting: Option<Sourced<T>>, default: impl FnOnce() -> T) -> T {
            setting.map_or_else(default, |s| s.value)
        }
        let limits = self.limits();
        let registry = self.registry_home();
        let packaged = PathBuf::from(DATA_DIR);
        let data_dir = or(self.data_dir, || packaged.clone());
        // An agent beside the packaged one has sockets of its own, found again by its data directory.
        let runtime_dir = or(self.runtime_dir, || {
            if data_dir == packaged {
                PathBuf::from(RUNTIME_DIR)
            } else {
                (around.runtime_dir_for)(&data_dir)
            }
        });
        AgentConfig {
            listen: or(self.listen, || PathBuf::from(LISTEN)),
            node,
            registry,
            data_ports: or(self.data_ports, || DATA_PORTS),
            bind: or(self.bind, || IpAddr::V4(Ipv4Addr::LOCALHOST)),
            advertise: self.advertise.map(|advertise| advertise.value),
            bin_dir: or(self.bin_dir, || data_dir.join("bin")),
            runtime_dir,
            log_format: or(self.log_format, LogFormat::default),
            log_level: or(self.log_level, LogLevel::default),
            stop_instances: or(self.stop_instances, || false),
            limits,
            trash_ttl: or(self.trash_ttl, || TRASH_TTL),
            orphans: orphan::Settings {
                auto_cleanup: or(self.orphan_auto_cleanup, BTreeSet::new),
                grace: or(self.orphan_grace_period, || orphan::Settings::default().grace),
            },
            replenish_after: or(self.replenish_after, || REPLENISH_AFTER),
            disk_reserve: or(self.disk_reserve, DiskReserve::default),
            metrics: self.metrics.map(|metrics| metrics.value),
            data_dir,
        }
    }
}

#[cfg(test)]
mod tests;
