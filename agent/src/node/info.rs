//! What the node says of itself and of the directories it keeps.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use holdfast_dataplane::layout::Meta;
use holdfast_dataplane::wire;
use holdfast_proto::ids::VolumeId;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::{INSTANCE_PROTOCOL_MAX, INSTANCE_PROTOCOL_MIN};

use super::host;
use super::shared::{Shared, blocking, unix_now_s};
use super::startup::io_uring_sysctl;
use crate::core::claims::{self, Claim};
use crate::core::instance::InstanceName;
use crate::core::records::{Lookup, Records};
use crate::error::Error;
use crate::store::replica_dirs::FoundDir;

/// Every replica directory, claimed or not.
///
/// # Errors
/// When they cannot be listed completely.
pub(super) async fn replica_dirs(shared: &Arc<Shared>) -> Result<Vec<pb::ReplicaDirInfo>, Error> {
    let (replicas, labels) = (shared.data.replicas(), Arc::clone(&shared.labels));
    let found = blocking(move || {
        let found = labels.scan(&replicas)?.into_iter();
        Ok(found.map(|dir| (dir.allocated_bytes(), dir)).collect::<Vec<_>>())
    })
    .await?;
    let records = Arc::clone(&shared.records.lock());
    let instances = shared.snapshot().instances;
    // The instance of that name serves this directory only if it is of the same volume.
    let states: BTreeMap<String, _> =
        instances.into_iter().map(|i| (i.name, (i.volume_id, i.state))).collect();
    let state = |name: &InstanceName, volume: VolumeId| {
        let (of, state) = states.get(&name.to_string())?;
        (*of == volume.to_string()).then(|| state.clone())
    };
    let mut directories: Vec<_> =
        found.into_iter().map(|(bytes, dir)| describe(shared, &records, dir, bytes, state)).collect();
    note_health(&mut shared.last_healthy.lock(), &mut directories, unix_now_s());
    Ok(directories)
}

/// Remembers which are healthy now, and says of the others when they were that last.
fn note_health(last: &mut BTreeMap<String, u64>, directories: &mut [pb::ReplicaDirInfo], now_s: u64) {
    let there: BTreeSet<&str> = directories.iter().map(|dir| dir.data_dir.as_str()).collect();
    last.retain(|path, _| there.contains(path.as_str()));
    for dir in directories {
        if dir.healthy {
            last.insert(dir.data_dir.clone(), now_s);
        } else {
            dir.last_healthy_unix_s = last.get(&dir.data_dir).copied();
        }
    }
}

/// Whether the label, and the record where it knows more, count this replica among the members.
fn is_member(label: &Meta, records: &Records) -> bool {
    let known = match records.lookup(label.volume_name.as_str()) {
        Lookup::Found(record) if record.id == label.volume => Some(record.status.view),
        Lookup::Found(_) | Lookup::Absent | Lookup::Unknown(_) => None,
    };
    let newest = known.filter(|known| known.order() > label.view.order()).unwrap_or(label.view);
    newest.members.contains(label.replica) && !label.syncing && label.failed.is_empty()
}

/// The file systems that replicas are, or will be, on.
///
/// # Errors
/// When one cannot be asked.
pub(super) async fn disks(
    shared: &Arc<Shared>,
    directories: &[pb::ReplicaDirInfo],
) -> Result<Vec<pb::DiskInfo>, Error> {
    let root = shared.data.replicas();
    let reserve = *shared.disk_reserve.lock();
    let places: Vec<_> = directories
        .iter()
        .map(|dir| (dir.data_dir.clone(), dir.reason.clone().filter(|_| dir.faulted)))
        .collect();
    blocking(move || {
        let mut disks = BTreeMap::from([(host::device(&root), host::disk(&root)?)]);
        for (path, fault) in places {
            let path = Path::new(&path);
            let Some(device) = host::device(path) else { continue };
            let disk = match disks.entry(Some(device)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(host::disk(path)?),
            };
            if let Some(fault) = fault {
                disk.faulted_replicas += 1;
                disk.last_error = Some(fault);
            }
        }
        for disk in disks.values_mut() {
            disk.reserved_bytes = reserve.of(disk.capacity_bytes);
        }
        Ok(disks.into_values().collect())
    })
    .await
}

fn describe(
    shared: &Shared,
    records: &Records,
    dir: FoundDir,
    allocated_bytes: u64,
    state_of: impl Fn(&InstanceName, VolumeId) -> Option<String>,
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
    let ours = label.node == *node || shared.identity.former_names.contains(&label.node);
    let moved = (!ours).then(|| format!("its label names node {}", label.node));
    let state = state_of(&instance, label.volume);
    pb::ReplicaDirInfo {
        healthy: state.as_deref() == Some("running") && is_member(&label, records),
        last_healthy_unix_s: None,
        faulted: !label.failed.is_empty(),
        instance: state.map(|_| instance.to_string()),
        volume: label.volume_name.to_string(),
        volume_id: label.volume.to_string(),
        id: label.replica.to_string(),
        node: label.node.to_string(),
        data_dir,
        size_bytes: label.size_bytes,
        allocated_bytes,
        generation: label.view.generation.0,
        epoch: label.view.epoch.0,
        claim: claim.as_str().to_owned(),
        reason: Some(label.failed).filter(|failed| !failed.is_empty()).or(moved),
    }
}

/// The node itself, but for its disks.
pub(super) async fn node_info(shared: &Arc<Shared>) -> pb::NodeInfo {
    let root = shared.data.root().to_owned();
    let mut warnings = shared.warnings.clone();
    let place = shared.place.clone();
    let looked = blocking(move || {
        Ok((host::disk(&root)?, host::pressure(), place.require_same("make a replica directory").err()))
    });
    let (room, pressure, elsewhere) = looked.await.unwrap_or_else(|error| {
        warnings.push(error.to_string());
        Default::default()
    });
    warnings.extend(elsewhere.map(|error| error.to_string()));
    let snapshot = shared.snapshot();
    if let Records::Unavailable(reason) = &**shared.records.lock() {
        warnings.push(format!("the registry cannot be read: {reason}"));
    }
    if let Some(age) = shared.stuck_for() {
        warnings.push(format!(
            "the agent has looked at nothing for {} s: a disk or the registry holds it up, and what it says of volumes is \
             that old",
            age.as_secs()
        ));
    }
    let reached = shared.config.advertise.unwrap_or(shared.config.bind);
    if reached.is_loopback() && shared.elsewhere.borrow().names().next().is_some() {
        warnings.push(format!(
            "other nodes share this registry, and the replicas here are reached at {reached}, from this machine alone; \
             set bind or advertise to an address that the others reach"
        ));
    }
    if shared.nodes.lock().wish(&shared.config.node).is_some_and(|wish| wish.draining) {
        warnings.push(
            "this node is being drained: it takes no new replicas and gives its own away; `holdfast node undrain`"
                .to_owned(),
        );
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
        capacity_bytes: room.capacity_bytes,
        available_bytes: room.available_bytes,
        instances: u32::try_from(snapshot.instances.len()).unwrap_or(u32::MAX),
        volumes: u32::try_from(snapshot.volumes.len()).unwrap_or(u32::MAX),
        io_uring: io_uring.to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        agent_pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        listen: shared.config.listen_display.clone(),
        warnings,
        disks: Vec::new(),
        pressure,
        instance_protocol_min: INSTANCE_PROTOCOL_MIN,
        instance_protocol_max: INSTANCE_PROTOCOL_MAX,
        data_protocol_min: wire::VERSION_MIN.into(),
        data_protocol_max: wire::VERSION_MAX.into(),
    }
}
