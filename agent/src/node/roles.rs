//! What engines and replicas are told to serve, from records and this node's configuration.

use std::path::Path;

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::pb::instance as pb;
use holdfast_proto::pb::instance::configure_request::Role;
use holdfast_proto::record::{ForceFrom, ReplicaSpec, VolumeRecord};

use super::shared::Shared;
use crate::error::Error;
use crate::process::driver::nbd_socket;
use crate::process::spawn::check_socket_path;
use crate::registry::{VolumeKey, engine_cas};
use crate::store::replica_dirs::replica_path;

fn millis(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn key(key: &VolumeKey) -> pb::VolumeKey {
    pb::VolumeKey { key_id: key.key_id, key: key.key.to_vec() }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Where a replica of this node lives.
pub(super) fn data_dir(shared: &Shared, record: &VolumeRecord, id: ReplicaId) -> std::path::PathBuf {
    replica_path(&shared.data.replicas(), &record.name, id, record.id)
}

/// What the engine of `record` serves.
///
/// # Errors
/// When its socket would have too long a path.
pub(super) fn engine(
    shared: &Shared,
    record: &VolumeRecord,
    volume_key: &VolumeKey,
    replicas: Vec<pb::ReplicaEndpoint>,
    predecessor_gone: bool,
    fill_pace: Option<pb::FillPace>,
) -> Result<Role, Error> {
    let (config, limits) = (&shared.config, &shared.config.limits);
    let configured = u32::try_from(record.status.configured.len()).unwrap_or(u32::MAX);
    let socket = nbd_socket(&config.runtime_dir, record.name.as_str());
    check_socket_path(&socket)?;
    let tcp = record.spec.attach.as_ref().and_then(|attach| attach.nbd_tcp.clone());
    Ok(Role::Engine(pb::EngineConfig {
        volume_id: record.id.to_string(),
        volume_name: record.name.to_string(),
        size_bytes: record.spec.size_bytes,
        record_version: record.version,
        status: Some(engine_cas::status_for_engine(record, &*shared.registry)),
        key: Some(key(volume_key)),
        replicas,
        nbd_socket: text(&socket),
        nbd_tcp: tcp.unwrap_or_default(),
        replica_timeout_ms: millis(limits.replica_timeout),
        suspend_timeout_ms: millis(limits.suspend_timeout),
        // A volume with fewer copies than that needs all of them.
        min_in_sync: limits.min_in_sync.min(configured),
        node: config.node.to_string(),
        rebuild_inflight_max: limits.rebuild_inflight,
        read_lease_ms: millis(limits.read_lease),
        predecessor_gone,
        replica_lag_max_ms: millis(limits.replica_lag_max),
        heartbeat_ms: millis(limits.heartbeat),
        start_patience_ms: millis(limits.start_patience),
        rebuild_bytes_per_second: limits.rebuild_bandwidth,
        wanted: record.spec.replicas.iter().map(wanted).collect(),
        force_from: (record.spec.attach.as_ref())
            .and_then(|attach| attach.force_from.as_ref())
            .filter(|force| force.counts(&record.status))
            .map(force),
        fill_pace,
        spin: limits.spin.to_string(),
    }))
}

fn wanted(spec: &ReplicaSpec) -> pb::WantedReplica {
    pb::WantedReplica { id: spec.id.0, replaces: spec.replaces.iter().map(|id| id.0).collect() }
}

fn force(force: &ForceFrom) -> pb::ForceFrom {
    pb::ForceFrom {
        replica_id: force.replica.0,
        even_if_syncing: force.even_if_syncing,
        lineage: force.lineage.to_string(),
    }
}

/// What the replica `id` of `record` serves. Its driver adds the port it had last.
pub(super) fn replica(shared: &Shared, record: &VolumeRecord, volume_key: &VolumeKey, id: ReplicaId) -> Role {
    let config = &shared.config;
    Role::Replica(pb::ReplicaConfig {
        volume_id: record.id.to_string(),
        volume_name: record.name.to_string(),
        replica_id: id.0,
        node: config.node.to_string(),
        size_bytes: record.spec.size_bytes,
        data_dir: text(&data_dir(shared, record, id)),
        // The agent made it with the volume; whoever misses it later reports it absent.
        create: false,
        lineage: record.status.lineage.to_string(),
        configured: record.status.configured.iter().map(|id| id.0).collect(),
        key: Some(key(volume_key)),
        bind: config.bind.to_string(),
        port_min: u32::from(*config.data_ports.start()),
        port_max: u32::from(*config.data_ports.end()),
        port_preferred: 0,
        io_mode: record.spec.io_mode.clone(),
        incarnation: shared.registry.incarnation().to_string(),
        advertise: config.advertise.map(|address| address.to_string()).unwrap_or_default(),
        spin: config.limits.spin.to_string(),
    })
}
