//! What the agent configures a replica with, checked.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId, VolumeName,
};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{ReplicaSet, View};

use crate::control::handshake::VolumeKey;
use crate::control::spin;
use crate::error::Error;
use crate::io::SpinMode;
use crate::layout::Meta;
use crate::units::{BLOCK_BYTES, VOLUME_BYTES_MAX};

/// How file I/O is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// Through the page cache.
    Buffered,
    /// Past it.
    Direct,
}

/// A replica's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub volume_name: VolumeName,
    /// The replica.
    pub replica: ReplicaId,
    /// This node.
    pub node: NodeName,
    /// The volume's size.
    pub size_bytes: u64,
    /// Where the data is.
    pub data_dir: PathBuf,
    /// The directory may be made: only while the volume is.
    pub create: bool,
    /// Of a new directory.
    pub lineage: Lineage,
    /// Of a new directory.
    pub configured: ReplicaSet,
    /// Of a new directory.
    pub incarnation: Incarnation,
    /// What engines must prove.
    pub key: VolumeKey,
    /// Where to listen.
    pub bind: IpAddr,
    /// The address to tell engines, with the port.
    pub advertise: IpAddr,
    /// On which port.
    pub ports: RangeInclusive<u16>,
    /// Which port to try first.
    pub port_preferred: Option<u16>,
    /// How.
    pub io_mode: IoMode,
    /// How the data thread waits.
    pub spin: SpinMode,
}

impl TryFrom<&pb::ReplicaConfig> for ReplicaConfig {
    type Error = Error;

    fn try_from(c: &pb::ReplicaConfig) -> Result<Self, Error> {
        fn parse<T: std::str::FromStr<Err: ToString>>(field: &'static str, text: &str) -> Result<T, Error> {
            text.parse().map_err(|e: T::Err| Error::invalid(field, "a valid one", e.to_string()))
        }
        let port = |field, n: u32| u16::try_from(n).map_err(|_| Error::invalid(field, "a port number", n));
        let ports = port("port_min", c.port_min)?..=port("port_max", c.port_max)?;
        if ports.is_empty() || *ports.start() == 0 {
            return Err(Error::invalid("port_min", "1 to port_max", format!("{ports:?}")));
        }
        let size_bytes = c.size_bytes;
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(BLOCK_BYTES) {
            let expected = format!("a multiple of {BLOCK_BYTES} up to {VOLUME_BYTES_MAX}");
            return Err(Error::invalid("size_bytes", expected, size_bytes));
        }
        let data_dir = PathBuf::from(&c.data_dir);
        if !data_dir.is_absolute() {
            return Err(Error::invalid("data_dir", "an absolute path", &c.data_dir));
        }
        let bind = parse("bind", &c.bind)?;
        let advertise = if c.advertise.is_empty() { bind } else { parse("advertise", &c.advertise)? };
        let key = c.key.as_ref().ok_or_else(|| Error::invalid("key", "the volume's key", "none"))?;
        Ok(Self {
            volume: parse("volume_id", &c.volume_id)?,
            volume_name: parse("volume_name", &c.volume_name)?,
            replica: ReplicaId(c.replica_id),
            node: parse("node", &c.node)?,
            size_bytes,
            data_dir,
            create: c.create,
            lineage: parse("lineage", &c.lineage)?,
            configured: ReplicaSet::checked(c.configured.iter().copied())
                .ok_or_else(|| Error::invalid("configured", "at most 8 different replicas", "others"))?,
            incarnation: parse("incarnation", &c.incarnation)?,
            key: key.try_into()?,
            bind,
            advertise,
            ports,
            port_preferred: (c.port_preferred != 0)
                .then(|| port("port_preferred", c.port_preferred))
                .transpose()?,
            io_mode: match c.io_mode.as_str() {
                "buffered" => IoMode::Buffered,
                "direct" => IoMode::Direct,
                other => return Err(Error::invalid("io_mode", "buffered or direct", other)),
            },
            spin: spin(&c.spin)?,
        })
    }
}

impl ReplicaConfig {
    /// Whether `next` is this replica, served the same way: what a later Configure may say.
    pub fn check_update(&self, next: &Self) -> Result<(), Error> {
        // What may differ: `create` and what a new directory begins with are over, a key may be replaced, the node may have
        // another name or address and other ports, and the preferred port is only a wish at the beginning. Another way of
        // waiting is for the next process.
        let fixed = Self {
            create: next.create,
            lineage: next.lineage,
            configured: next.configured,
            incarnation: next.incarnation,
            key: next.key.clone(),
            node: next.node.clone(),
            bind: next.bind,
            advertise: next.advertise,
            ports: next.ports.clone(),
            port_preferred: next.port_preferred,
            spin: next.spin,
            ..self.clone()
        };
        if fixed == *next {
            return Ok(());
        }
        let reason =
            "it differs from the configuration this process runs with in more than a running replica can \
                      change: stop it first"
                .to_owned();
        Err(Error::Refused { operation: "configure", reason })
    }

    /// What a new directory begins with: empty, a member of a view that no engine has proposed yet.
    #[must_use]
    pub fn first_meta(&self) -> Meta {
        Meta {
            node: self.node.clone(),
            volume: self.volume,
            volume_name: self.volume_name.clone(),
            replica: self.replica,
            size_bytes: self.size_bytes,
            lineage: self.lineage,
            promised: Generation(0),
            promised_to: InstanceUuid::nil(),
            view: View {
                generation: Generation(0),
                epoch: Epoch(0),
                members: self.configured,
                needs_registry: false,
            },
            configured: self.configured,
            incarnation: self.incarnation,
            revision: 0,
            syncing: false,
            boot: BootId::nil(),
            unflushed: false,
            cache_lost: false,
            failed: String::new(),
            basis: Some(holdfast_proto::record::Stamp::default()),
            settled: None,
            dirty: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Whether a directory is this replica's.
    pub fn check_directory(&self, meta: &Meta) -> Result<(), Error> {
        let ours = (self.volume, self.replica, self.size_bytes);
        let found = (meta.volume, meta.replica, meta.size_bytes);
        if ours == found {
            return Ok(());
        }
        let describe = |(volume, replica, size)| format!("{replica} of volume {volume} with {size} bytes");
        Err(Error::invalid("data_dir", describe(ours), describe(found)))
    }

    /// The ports to try, in order.
    pub fn port_candidates(&self) -> impl Iterator<Item = u16> + '_ {
        let preferred = self.port_preferred.filter(|port| self.ports.contains(port));
        preferred.into_iter().chain(self.ports.clone().filter(move |port| Some(*port) != preferred))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> pb::ReplicaConfig {
        pb::ReplicaConfig {
            volume_id: VolumeId::random().to_string(),
            volume_name: "demo".to_owned(),
            replica_id: 2,
            node: "node-a".to_owned(),
            size_bytes: 1 << 20,
            data_dir: "/data/demo.r2".to_owned(),
            create: true,
            lineage: Lineage::random().to_string(),
            configured: vec![1, 2, 3],
            key: Some(pb::VolumeKey { key_id: 7, key: vec![1; 32] }),
            bind: "127.0.0.1".to_owned(),
            port_min: 20000,
            port_max: 20003,
            port_preferred: 20002,
            io_mode: "buffered".to_owned(),
            incarnation: Incarnation::random().to_string(),
            advertise: String::new(),
            spin: String::new(),
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        type Damage = fn(&mut pb::ReplicaConfig);
        let table: [(&str, Damage); 13] = [
            ("volume_id", |c| c.volume_id.clear()),
            ("volume_name", |c| c.volume_name = "../x".to_owned()),
            ("size_bytes", |c| c.size_bytes = 4097),
            ("size_bytes", |c| c.size_bytes = 0),
            ("data_dir", |c| c.data_dir = "relative".to_owned()),
            ("key", |c| c.key = None),
            ("key", |c| c.key.as_mut().unwrap().key.truncate(31)),
            ("bind", |c| c.bind = "localhost:1".to_owned()),
            ("advertise", |c| c.advertise = "localhost".to_owned()),
            ("port_min", |c| c.port_min = 0),
            ("port_max", |c| c.port_max = 65536),
            ("io_mode", |c| c.io_mode.clear()),
            ("spin", |c| c.spin = "on".to_owned()),
        ];
        for (field, damage) in table {
            let mut config = sample();
            damage(&mut config);
            let error = ReplicaConfig::try_from(&config).unwrap_err();
            assert!(error.to_string().starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn the_preferred_port_is_tried_first_and_each_once() {
        let config = ReplicaConfig::try_from(&sample()).unwrap();
        assert_eq!(config.port_candidates().collect::<Vec<_>>(), [20002, 20000, 20001, 20003]);
        let foreign = ReplicaConfig { port_preferred: Some(1), ..config };
        assert_eq!(foreign.port_candidates().collect::<Vec<_>>(), [20000, 20001, 20002, 20003]);
    }

    #[test]
    fn a_running_replica_does_not_become_another() {
        let config = ReplicaConfig::try_from(&sample()).unwrap();
        let rekeyed = VolumeKey { id: 8, secret: [2; 32] };
        let waits = ReplicaConfig { spin: SpinMode::Off, ..config.clone() };
        config.check_update(&waits).unwrap();
        config.check_update(&ReplicaConfig { create: false, key: rekeyed, ..config.clone() }).unwrap();
        let elsewhere = ReplicaConfig {
            node: "node-b".parse().unwrap(),
            bind: "127.0.0.2".parse().unwrap(),
            advertise: "192.0.2.1".parse().unwrap(),
            ports: 1..=2,
            ..config.clone()
        };
        config.check_update(&elsewhere).unwrap();
        assert!(config.check_update(&ReplicaConfig { size_bytes: 4096, ..config.clone() }).is_err());
        assert!(config.check_update(&ReplicaConfig { replica: ReplicaId(3), ..config.clone() }).is_err());
    }
}
