//! What the node says of itself and of the directories it keeps.

use std::sync::Arc;

use holdfast_proto::ids::VolumeId;
use holdfast_proto::pb::agent as pb;

use super::shared::{Shared, blocking};
use super::startup::io_uring_sysctl;
use crate::core::claims::{self, Claim};
use crate::core::instance::InstanceName;
use crate::core::records::{Lookup, Records};
use crate::store::replica_dirs::{self, FoundDir};

/// Every replica directory, claimed or not.
pub(super) async fn replica_dirs(shared: &Arc<Shared>) -> Vec<pb::ReplicaDirInfo> {
    let replicas = shared.data.replicas();
    let found = match blocking(move || replica_dirs::scan(&replicas)).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "replica directories cannot be listed");
            return Vec::new();
        }
    };
    let records = Arc::clone(&shared.records.lock());
    let instances = shared.snapshot().instances;
    // The instance of that name serves this directory only if the record of that name is this volume's.
    let runs = |name: &InstanceName, volume: VolumeId| {
        let named = matches!(records.lookup(name.volume().as_str()), Lookup::Found(r) if r.id == volume);
        named && instances.iter().any(|instance| instance.name == name.to_string())
    };
    found.into_iter().map(|dir| describe(shared, &records, dir, runs)).collect()
}

fn describe(
    shared: &Shared,
    records: &Records,
    dir: FoundDir,
    runs: impl Fn(&InstanceName, VolumeId) -> bool,
) -> pb::ReplicaDirInfo {
    let data_dir = dir.path.to_string_lossy().into_owned();
    let label = match dir.label {
        Ok(label) => label,
        Err(reason) => {
            return pb::ReplicaDirInfo {
                data_dir,
                node: shared.config.node.to_string(),
                claim: Claim::Unknown.as_str().to_owned(),
                reason: Some(reason),
                ..Default::default()
            };
        }
    };
    let node = &shared.config.node;
    let foreign = Arc::clone(&shared.foreign.lock());
    let claim =
        claims::of_directory(records, &foreign, node, &label.volume_name, label.volume, label.replica);
    let instance = InstanceName::replica(&label.volume_name, label.replica);
    let moved = (label.node != *node).then(|| format!("its label names node {}", label.node));
    pb::ReplicaDirInfo {
        instance: runs(&instance, label.volume).then(|| instance.to_string()),
        volume: label.volume_name.to_string(),
        volume_id: label.volume.to_string(),
        id: label.replica.to_string(),
        node: label.node.to_string(),
        data_dir,
        size_bytes: label.size_bytes,
        allocated_bytes: dir.allocated_bytes,
        generation: label.view.generation.0,
        epoch: label.view.epoch.0,
        claim: claim.as_str().to_owned(),
        reason: Some(label.failed).filter(|failed| !failed.is_empty()).or(moved),
    }
}

/// The node itself.
pub(super) async fn node_info(shared: &Arc<Shared>) -> pb::NodeInfo {
    let root = shared.data.root().to_owned();
    let space = blocking(move || {
        let stat =
            rustix::fs::statvfs(&root).map_err(|e| crate::error::Error::io("stat", &root)(e.into()))?;
        Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
    });
    let mut warnings = shared.warnings.clone();
    let (capacity_bytes, available_bytes) = space.await.unwrap_or_else(|error| {
        warnings.push(error.to_string());
        (0, 0)
    });
    let snapshot = shared.snapshot();
    if let Records::Unavailable(reason) = &**shared.records.lock() {
        warnings.push(format!("the registry cannot be read: {reason}"));
    }
    let io_uring = match io_uring_sysctl().as_deref() {
        Some("0") | None => "enabled",
        Some("1") => "restricted",
        Some(_) => "disabled",
    };
    pb::NodeInfo {
        node: shared.config.node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: shared.boot_id.to_string(),
        data_dir: shared.data.root().to_string_lossy().into_owned(),
        capacity_bytes,
        available_bytes,
        instances: u32::try_from(snapshot.instances.len()).unwrap_or(u32::MAX),
        volumes: u32::try_from(snapshot.volumes.len()).unwrap_or(u32::MAX),
        io_uring: io_uring.to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        agent_pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        listen: shared.config.listen_display.clone(),
        warnings,
    }
}
