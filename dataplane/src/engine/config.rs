//! What the agent says an engine is to serve, checked. Nothing of it is believed before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::ids::{InstanceUuid, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{ReplicaSet, VolumeStatus};

use super::message::Whereabouts;
use crate::control::handshake::VolumeKey;
use crate::control::spin;
use crate::core::engine::{Config, Force, Pace, Wait, Wanted};
use crate::error::Error;
use crate::frontend::nbd::ExportInfo;
use crate::io::SpinMode;
use crate::units::{VOLUME_BYTES_MAX, is_block_aligned};

/// A setting that is 0 is left at its default.
const NOT_SET: u32 = 0;
/// Copies in flight beyond this gain nothing: the core has 16 buffers for them.
const COPIES_MAX: usize = 16;

/// The volume and how to serve it: fixed once the data thread runs.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) volume: VolumeId,
    pub(super) name: VolumeName,
    pub(super) record_version: u64,
    pub(super) status: VolumeStatus,
    pub(super) key: VolumeKey,
    pub(super) nbd_socket: PathBuf,
    pub(super) nbd_tcp: Option<SocketAddr>,
    pub(super) core: Config,
    /// How the data thread waits.
    pub(super) spin: SpinMode,
}

/// Where one replica is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Option<SocketAddr>,
    pub(super) local: bool,
    pub(super) absent: Option<String>,
}

impl Endpoint {
    /// For the core; `known`: somebody said where it is, now or before.
    pub(super) fn whereabouts(&self, replica: ReplicaId, known: bool) -> Whereabouts {
        Whereabouts { replica, known, local: self.local, absent: self.absent.clone() }
    }
}

/// What the agent knows of the replicas.
pub(super) type Endpoints = BTreeMap<ReplicaId, Endpoint>;

impl Settings {
    /// Checks a configuration for `engine`.
    ///
    /// # Errors
    /// Which field cannot be used.
    pub(super) fn new(config: &pb::EngineConfig, engine: InstanceUuid) -> Result<Self, Error> {
        let status = config.status.as_ref().ok_or_else(|| Error::invalid("status", "a status", "none"))?;
        let status = VolumeStatus::try_from(status)?;
        let count = status.configured.len();
        if count == 0 {
            return Err(Error::invalid("status.configured", "at least one replica", count));
        }
        let key = config.key.as_ref().ok_or_else(|| Error::invalid("key", "a key", "none"))?;
        let nbd_socket = PathBuf::from(&config.nbd_socket);
        if !nbd_socket.is_absolute() {
            return Err(Error::invalid("nbd_socket", "an absolute path", &config.nbd_socket));
        }
        Ok(Self {
            volume: parse("volume_id", "a UUID", &config.volume_id)?,
            name: parse("volume_name", "a volume's name", &config.volume_name)?,
            record_version: config.record_version,
            core: Config { force: force(config)?, ..core_config(config, engine, count)? },
            spin: spin(&config.spin)?,
            status,
            key: key.try_into()?,
            nbd_socket,
            nbd_tcp: match config.nbd_tcp.as_str() {
                "" => None,
                address => Some(parse("nbd_tcp", "HOST:PORT with an IP address", address)?),
            },
        })
    }

    /// Refuses a later configuration that is not of this volume.
    pub(super) fn check_same(&self, config: &pb::EngineConfig) -> Result<(), Error> {
        if config.volume_id.parse() != Ok(self.volume) {
            return Err(Error::invalid("volume_id", self.volume, &config.volume_id));
        }
        if config.size_bytes != self.core.volume_bytes {
            return Err(Error::invalid("size_bytes", self.core.volume_bytes, config.size_bytes));
        }
        Ok(())
    }

    /// What clients are offered.
    pub(super) fn export(&self) -> ExportInfo {
        ExportInfo {
            name: self.name.to_string(),
            description: format!("Holdfast volume {}", self.volume),
            size_bytes: self.core.volume_bytes,
        }
    }
}

fn core_config(config: &pb::EngineConfig, engine: InstanceUuid, replicas: usize) -> Result<Config, Error> {
    let size = config.size_bytes;
    if size == 0 || size > VOLUME_BYTES_MAX || !is_block_aligned(0, size) {
        let expected = format!("a multiple of 4096, up to {VOLUME_BYTES_MAX}");
        return Err(Error::invalid("size_bytes", expected, size));
    }
    let mut core = Config::new(size, engine);
    for (ms, setting) in [
        (config.replica_timeout_ms, &mut core.replica_timeout),
        (config.suspend_timeout_ms, &mut core.suspend_timeout),
        (config.read_lease_ms, &mut core.read_lease),
        (config.replica_lag_max_ms, &mut core.replica_lag_max),
        (config.heartbeat_ms, &mut core.heartbeat),
        (config.start_patience_ms, &mut core.start_patience),
    ] {
        if ms != NOT_SET {
            *setting = Duration::from_millis(u64::from(ms));
        }
    }
    if config.heartbeat_ms == NOT_SET {
        core.heartbeat = core.heartbeat.min(core.read_lease / 2).min(core.replica_timeout / 2);
    }
    core.predecessor_gone = config.predecessor_gone;
    core.rebuild_bytes_per_second = config.rebuild_bytes_per_second;
    // A lease that ends before the next answer can come would hold reads all the time.
    for (field, time) in [("read_lease_ms", core.read_lease), ("replica_timeout_ms", core.replica_timeout)] {
        if time < core.heartbeat * 2 {
            let expected = format!("at least twice heartbeat_ms ({})", core.heartbeat.as_millis());
            return Err(Error::invalid(field, expected, time.as_millis()));
        }
    }
    if config.min_in_sync != NOT_SET {
        core.min_in_sync = bounded("min_in_sync", config.min_in_sync, replicas)?;
    }
    if config.rebuild_inflight_max != NOT_SET {
        core.copies_max = bounded("rebuild_inflight_max", config.rebuild_inflight_max, COPIES_MAX)?;
    }
    Ok(core)
}

fn bounded(field: &'static str, found: u32, max: usize) -> Result<usize, Error> {
    usize::try_from(found)
        .ok()
        .filter(|n| *n <= max)
        .ok_or_else(|| Error::invalid(field, format!("at most {max}"), found))
}

fn parse<T: std::str::FromStr>(field: &'static str, expected: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::invalid(field, expected, text))
}

/// Which replicas the volume is to have, as this configuration says.
///
/// # Errors
/// When they are too many, or one is named twice.
pub(super) fn wanted(config: &pb::EngineConfig) -> Result<Vec<Wanted>, Error> {
    let bad = || Error::invalid("wanted", "at most 8 different replicas", format!("{:?}", config.wanted));
    ReplicaSet::checked(config.wanted.iter().map(|wanted| wanted.id)).ok_or_else(bad)?;
    let replicas = config.wanted.iter().map(|wanted| {
        let replaces = ReplicaSet::checked(wanted.replaces.iter().copied())?;
        Some(Wanted { replica: ReplicaId(wanted.id), replaces })
    });
    replicas.collect::<Option<_>>().ok_or_else(bad)
}

/// From which replica a person wants the volume started, if one does.
///
/// # Errors
/// When the new history has no name.
pub(super) fn force(config: &pb::EngineConfig) -> Result<Option<Force>, Error> {
    let Some(force) = &config.force_from else { return Ok(None) };
    Ok(Some(Force {
        replica: ReplicaId(force.replica_id),
        even_if_syncing: force.even_if_syncing,
        lineage: parse("force_from.lineage", "a UUID", &force.lineage)?,
    }))
}

/// How fillings fit in beside those of other volumes; none: as this engine was started.
pub(super) fn pace(config: &pb::EngineConfig) -> Option<Pace> {
    let pace = config.fill_pace.as_ref()?;
    let at_most = Duration::from_millis(u64::from(pace.wait_ms));
    let wait = Wait { at_most, reason: pace.reason.clone() };
    Some(Pace { bytes_per_second: pace.bytes_per_second, wait: (pace.wait_ms > 0).then_some(wait) })
}

/// Where the replicas are, as this configuration says.
///
/// # Errors
/// When an address is not one.
pub(super) fn endpoints(config: &pb::EngineConfig) -> Result<Endpoints, Error> {
    config
        .replicas
        .iter()
        .map(|replica| {
            let address = match replica.address.as_str() {
                "" => None,
                address => Some(parse("replicas.address", "HOST:PORT with an IP address", address)?),
            };
            let absent = replica.absent.then(|| match replica.reason.as_str() {
                "" => "its directory is missing".to_owned(),
                reason => reason.to_owned(),
            });
            Ok((ReplicaId(replica.id), Endpoint { address, local: replica.local, absent }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::agent::sample_config;
    use super::*;

    fn error(change: impl FnOnce(&mut pb::EngineConfig)) -> String {
        let mut config = sample_config();
        change(&mut config);
        let settings = Settings::new(&config, InstanceUuid::random()).map(|_| ());
        let rest = || endpoints(&config).map(|_| ()).and_then(|()| wanted(&config).map(|_| ()));
        settings.and_then(|()| rest()).unwrap_err().to_string()
    }

    #[test]
    fn a_good_one_is_taken_and_zero_means_the_default() {
        let settings = Settings::new(&sample_config(), InstanceUuid::random()).unwrap();
        assert_eq!(settings.core.replica_timeout, Duration::from_secs(8));
        assert_eq!(settings.spin, SpinMode::Auto);
        let quick = pb::EngineConfig { replica_timeout_ms: 1500, min_in_sync: 2, ..sample_config() };
        let settings = Settings::new(&quick, InstanceUuid::random()).unwrap();
        assert_eq!(settings.core.replica_timeout, Duration::from_millis(1500));
        assert_eq!(settings.core.min_in_sync, 2);
        let limits = pb::EngineConfig {
            read_lease_ms: 2000,
            predecessor_gone: true,
            replica_lag_max_ms: 50,
            heartbeat_ms: 200,
            start_patience_ms: 10,
            spin: "30".to_owned(),
            rebuild_bytes_per_second: 1 << 20,
            ..sample_config()
        };
        let settings = Settings::new(&limits, InstanceUuid::random()).unwrap();
        assert_eq!(settings.spin, SpinMode::For(Duration::from_micros(30)));
        let core = settings.core;
        let times = [core.read_lease, core.replica_lag_max, core.heartbeat, core.start_patience];
        assert_eq!(times.map(|time| time.as_millis()), [2000, 50, 200, 10]);
        assert!(core.predecessor_gone && core.rebuild_bytes_per_second == 1 << 20);
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert!(error(|c| c.status = None).contains("status"));
        assert!(error(|c| c.key = None).contains("key"));
        assert!(error(|c| c.spin = "fast".to_owned()).contains("spin"));
        assert!(error(|c| c.size_bytes = 4097).contains("size_bytes"));
        assert!(error(|c| c.size_bytes = 0).contains("size_bytes"));
        assert!(error(|c| c.size_bytes = u64::MAX).contains("size_bytes"));
        assert!(error(|c| c.nbd_socket = "relative".to_owned()).contains("nbd_socket"));
        assert!(error(|c| c.nbd_tcp = "localhost".to_owned()).contains("nbd_tcp"));
        assert!(error(|c| c.min_in_sync = 9).contains("min_in_sync"));
        assert!(error(|c| (c.read_lease_ms, c.heartbeat_ms) = (1900, 1000)).contains("read_lease_ms"));
        assert!(
            error(|c| (c.replica_timeout_ms, c.heartbeat_ms) = (900, 500)).contains("replica_timeout_ms")
        );
        assert!(error(|c| c.volume_id = "demo".to_owned()).contains("volume_id"));
        assert!(error(|c| c.replicas[0].address = "nowhere".to_owned()).contains("replicas.address"));
        assert!(error(|c| c.status.as_mut().unwrap().configured.clear()).contains("configured"));
        let twice = || vec![pb::WantedReplica { id: 1, replaces: Vec::new() }; 2];
        assert!(error(|c| c.wanted = twice()).contains("wanted"));
        let nameless = pb::ForceFrom { replica_id: 1, ..Default::default() };
        assert!(error(|c| c.force_from = Some(nameless)).contains("force_from.lineage"));
    }

    #[test]
    fn a_turn_is_waited_for_as_long_as_is_said() {
        let paced = |wait_ms| {
            let reason = "others first".to_owned();
            let told = pb::FillPace { bytes_per_second: 7, wait_ms, reason, renewal: 3 };
            pace(&pb::EngineConfig { fill_pace: Some(told), ..sample_config() }).unwrap()
        };
        assert_eq!(pace(&sample_config()), None, "an agent that says nothing");
        assert_eq!(paced(0), Pace { bytes_per_second: 7, wait: None });
        assert_eq!(paced(1500).wait.unwrap().at_most, Duration::from_millis(1500));
    }

    #[test]
    fn an_absent_replica_has_a_reason() {
        let mut config = sample_config();
        config.replicas[1].absent = true;
        config.replicas[1].address = String::new();
        let endpoints = endpoints(&config).unwrap();
        let second = endpoints.values().nth(1).unwrap();
        assert!(second.absent.as_ref().unwrap().contains("missing"));
        let whereabouts = second.whereabouts(ReplicaId(2), false);
        assert!(!whereabouts.known && whereabouts.absent.is_some());
    }
}
