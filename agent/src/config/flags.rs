//! The flags of `holdfast agent`, each the stronger twin of a key of the file.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_dataplane::io::SpinMode;
use holdfast_proto::ids::NodeName;

use super::registry::{RegistryPlace, parse_place};
use super::{Origin, Partial, Sourced, Surroundings};
use crate::core::orphan::Class;
use crate::core::upkeep::DiskReserve;
use crate::telemetry::{LogFormat, LogLevel};
use crate::units::{parse_duration, parse_ports, parse_size, parse_tcp_listen};

/// Flags of `holdfast agent`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AgentFlags {
    /// TOML file with the same settings (data_dir, listen, node, ...); flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Records, replicas and binaries [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Fail at once where another agent has the data directory, instead of waiting for its end
    #[arg(long)]
    pub no_wait: bool,
    /// Socket of the gRPC server [default: unix:/run/holdfast/agent.sock]
    #[arg(long, value_name = "unix:PATH", value_parser = parse_listen)]
    pub listen: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// Where the records live: file, or etcd://HOST:PORT,HOST:PORT/PREFIX [default: file]
    #[arg(long, value_name = "file|etcd://...", value_parser = parse_place)]
    pub registry: Option<RegistryPlace>,
    /// PEM file of who signed etcd's certificates; with it, TLS is spoken
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// PEM file of the certificate that this node shows to etcd
    #[arg(long, value_name = "FILE")]
    pub registry_cert: Option<PathBuf>,
    /// PEM file of that certificate's private key
    #[arg(long, value_name = "FILE")]
    pub registry_key: Option<PathBuf>,
    /// User in etcd
    #[arg(long, value_name = "NAME")]
    pub registry_user: Option<String>,
    /// File that has the user's password and nothing else
    #[arg(long, value_name = "FILE")]
    pub registry_password_file: Option<PathBuf>,
    /// TCP ports that replicas may listen on [default: 20000-29999]
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports)]
    pub data_ports: Option<RangeInclusive<u16>>,
    /// Address that replicas listen on, IPv4 or IPv6 [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub bind: Option<IpAddr>,
    /// Address that engines reach them by, where it is another one [default: that of --bind]
    #[arg(long, value_name = "IP")]
    pub advertise: Option<IpAddr>,
    /// Where instances are run from, if the data directory is mounted noexec [default: DATA_DIR/bin]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Short directory for sockets [default: /run/holdfast, or one derived from a data directory that is not the default]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// Drain and stop all instances when the agent is told to end; without it they keep serving
    #[arg(long)]
    pub stop_instances: bool,
    /// A replica silent for this long is left out [default: 8s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub replica_timeout: Option<Duration>,
    /// Held I/O fails after this long [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub suspend_timeout: Option<Duration>,
    /// Below this many copies in sync I/O waits [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub min_in_sync: Option<u32>,
    /// Reads need an answer of every member at most this old [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub read_lease: Option<Duration>,
    /// A replica that goes on being slower than this, while others are quick, is left behind [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub replica_lag_max: Option<Duration>,
    /// Every replica is asked this often whether it is there [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub heartbeat: Option<Duration>,
    /// How long a start waits for replicas that it could do without [default: 3s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub start_patience: Option<Duration>,
    /// Regions in flight while a replica is filled [default: 4]
    #[arg(long, value_name = "COUNT")]
    pub rebuild_inflight: Option<u32>,
    /// Bytes per second that this node's engines copy to replicas, all together; 0: no limit [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub rebuild_bandwidth: Option<u64>,
    /// Volumes with their engine here whose replicas are filled at a time [default: 4]
    #[arg(long, value_name = "COUNT")]
    pub rebuild_concurrency: Option<u32>,
    /// How data threads wait: auto looks for I/O before it sleeps where that pays, off never does, a number always does
    /// for so many microseconds [default: auto]
    #[arg(long, value_name = "auto|off|MICROSECONDS")]
    pub spin: Option<SpinMode>,
    /// Deleted data waits this long in the trash [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub trash_ttl: Option<Duration>,
    /// What is cleaned by itself once nobody has claimed it for the grace period [default: nothing]
    #[arg(long, value_name = "instance,replica-data", value_delimiter = ',')]
    pub orphan_auto_cleanup: Option<Vec<Class>>,
    /// For so long it must be confirmed that nobody claims a thing [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub orphan_grace_period: Option<Duration>,
    /// How long a node's agent may be silent before its replicas are placed elsewhere [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub replenish_after: Option<Duration>,
    /// What replicas that move here leave free of the disk, for those that are here grow too [default: 10%]
    #[arg(long, value_name = "PERCENT%|SIZE")]
    pub disk_reserve: Option<DiskReserve>,
    /// Serve metrics for Prometheus here, without authentication; a port alone is one of loopback [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_tcp_listen)]
    pub metrics: Option<SocketAddr>,
}

/// `unix:PATH`, or the path alone.
pub(crate) fn parse_listen(text: &str) -> Result<PathBuf, String> {
    let expected = "expected unix:PATH (unix:/run/holdfast/agent.sock)";
    let path = match text.split_once(':') {
        Some(("unix", path)) => path.strip_prefix("//").unwrap_or(path),
        Some((scheme @ ("tcp" | "http" | "https"), _)) => {
            return Err(format!("{scheme} is not supported: the agent listens on a unix socket; {expected}"));
        }
        _ if text.starts_with('/') || text.starts_with('.') => text,
        _ => return Err(format!("{text:?} is not a listen address: {expected}")),
    };
    if path.is_empty() || path.ends_with('/') {
        return Err(format!("{text:?} names no socket: {expected}"));
    }
    Ok(PathBuf::from(path))
}

impl AgentFlags {
    pub(super) fn partial(&self, around: &Surroundings) -> Partial {
        fn flag<T: Clone>(name: &'static str, value: Option<&T>) -> Option<Sourced<T>> {
            value.map(|value| Sourced { value: value.clone(), origin: Origin::Flag(name) })
        }
        let path = |name, value: Option<&PathBuf>| {
            flag(name, value).map(|s| Sourced { value: absolute(&around.current_dir, &s.value), ..s })
        };
        Partial {
            data_dir: path("--data-dir", self.data_dir.as_ref()),
            listen: path("--listen", self.listen.as_ref()),
            node: flag("--node", self.node.as_ref()),
            registry: flag("--registry", self.registry.as_ref()),
            registry_ca: path("--registry-ca", self.registry_ca.as_ref()),
            registry_cert: path("--registry-cert", self.registry_cert.as_ref()),
            registry_key: path("--registry-key", self.registry_key.as_ref()),
            registry_user: flag("--registry-user", self.registry_user.as_ref()),
            registry_password_file: path("--registry-password-file", self.registry_password_file.as_ref()),
            data_ports: flag("--data-ports", self.data_ports.as_ref()),
            bind: flag("--bind", self.bind.as_ref()),
            advertise: flag("--advertise", self.advertise.as_ref()),
            bin_dir: path("--bin-dir", self.bin_dir.as_ref()),
            runtime_dir: path("--runtime-dir", self.runtime_dir.as_ref()),
            log_format: flag("--log-format", self.log_format.as_ref()),
            log_level: flag("--log-level", self.log_level.as_ref()),
            stop_instances: flag("--stop-instances", self.stop_instances.then_some(&true)),
            replica_timeout: flag("--replica-timeout", self.replica_timeout.as_ref()),
            suspend_timeout: flag("--suspend-timeout", self.suspend_timeout.as_ref()),
            min_in_sync: flag("--min-in-sync", self.min_in_sync.as_ref()),
            read_lease: flag("--read-lease", self.read_lease.as_ref()),
            replica_lag_max: flag("--replica-lag-max", self.replica_lag_max.as_ref()),
            heartbeat: flag("--heartbeat", self.heartbeat.as_ref()),
            start_patience: flag("--start-patience", self.start_patience.as_ref()),
            rebuild_inflight: flag("--rebuild-inflight", self.rebuild_inflight.as_ref()),
            rebuild_bandwidth: flag("--rebuild-bandwidth", self.rebuild_bandwidth.as_ref()),
            rebuild_concurrency: flag("--rebuild-concurrency", self.rebuild_concurrency.as_ref()),
            spin: flag("--spin", self.spin.as_ref()),
            trash_ttl: flag("--trash-ttl", self.trash_ttl.as_ref()),
            orphan_auto_cleanup: flag(
                "--orphan-auto-cleanup",
                self.orphan_auto_cleanup.as_ref().map(|list| list.iter().copied().collect()).as_ref(),
            ),
            orphan_grace_period: flag("--orphan-grace-period", self.orphan_grace_period.as_ref()),
            replenish_after: flag("--replenish-after", self.replenish_after.as_ref()),
            disk_reserve: flag("--disk-reserve", self.disk_reserve.as_ref()),
            metrics: flag("--metrics", self.metrics.as_ref()),
        }
    }
}

/// `path` from `base`, without `.` and `..` where that is safe to do by name alone.
pub(crate) fn absolute(base: &Path, path: &Path) -> PathBuf {
    base.join(path).components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}
