//! What operators do with volumes: decide against the record as it is, write the wish into it, and wait for the
//! supervisor to make it so. Each wish is one compare-and-swap; each operation may be repeated.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::{
    Epoch, Generation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId, VolumeName,
};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::record::{
    AttachSpec, Intent, RECORD_SCHEMA, REPLICAS_MAX, ReplicaSet, ReplicaSpec, View, VolumeRecord, VolumeSpec,
    VolumeStatus,
};
use holdfast_proto::status::ErrorKind;
use holdfast_proto::unknown::Unknown;

use super::shared::{Command, Shared, blocking};
use super::{force, nodes, roles};
use crate::core::elsewhere::Elsewhere;
use crate::core::instance::InstanceName;
use crate::core::placement::spread;
use crate::core::reconcile::purge_intent;
use crate::error::Error;
use crate::process::driver::nbd_socket;
use crate::process::spawn::check_socket_path;
use crate::registry::{Read, Swap, VolumeKey, check_io_mode, check_size};
use crate::store::replica_dirs;

/// How replicas do file I/O where nobody chose.
pub const IO_MODE_DEFAULT: &str = "buffered";
/// An attach answers early with what it waits for: the wish stands, and `volume wait` waits longer.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);
/// Ending replicas takes milliseconds, and hearing of an engine's end on another node a second.
const DETACHING_ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Longer than a drain and the signals after it.
const DETACH_WITHIN: Duration = Duration::from_secs(100);
/// A client that has just gone is counted until its engine has seen its connection end and said so, which takes
/// milliseconds; on a busy machine more.
const CLIENTS_LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Clients over TCP that vanished are known as gone once they have not answered an engine's probes: 4 s, and its report.
const VANISHED_CLIENTS_WITHIN: Duration = Duration::from_secs(6);
/// Other nodes hear of a record at once, make a directory in milliseconds, and publish it within a second or two.
const DIRECTORIES_WITHIN: Duration = Duration::from_secs(15);
const DELETE_WITHIN: Duration = Duration::from_secs(60);
/// A record that changes under us so often is being fought over.
const SWAPS_MAX: usize = 16;

pub(super) fn name_of(operation: &str, name: &str) -> Result<VolumeName, Error> {
    name.parse().map_err(|e| Error::invalid(format!("{operation} volume: {e}")))
}

/// Nothing goes by that name.
pub(super) fn no_such(operation: &str, name: impl fmt::Display) -> Error {
    Error::not_found(format!("{operation} volume {name}: there is none; `holdfast volume ls` lists all"))
}

pub(super) async fn read(shared: &Shared, operation: &str, name: &VolumeName) -> Result<VolumeRecord, Error> {
    match shared.registry.get(name).await? {
        Read::Found(record) => Ok(record),
        Read::Absent => Err(no_such(operation, name)),
        Read::Unreadable(reason) => Err(Error::failed(format!("{operation} volume {name}: {reason}"))),
    }
}

/// Changes the record by compare-and-swap; `change` says on each attempt whether there is anything to change.
pub(super) async fn change(
    shared: &Shared,
    operation: &str,
    name: &VolumeName,
    mut change: impl FnMut(&mut VolumeRecord) -> Result<bool, Error>,
) -> Result<VolumeRecord, Error> {
    for _ in 0..SWAPS_MAX {
        let mut record = read(shared, operation, name).await?;
        let version = record.version;
        if !change(&mut record)? {
            return Ok(record);
        }
        match shared.registry.compare_and_swap(version, record).await? {
            Swap::Stored(stored) => return Ok(*stored),
            // An engine wrote its status meanwhile; decide again from what it says now.
            Swap::Conflict(_) | Swap::Missing => {}
        }
    }
    Err(Error::conflict(format!("{operation} volume {name}: its record keeps changing; try again")))
}

pub(super) fn info(
    operation: &str,
    name: &VolumeName,
    volume: Option<pb::VolumeInfo>,
) -> Result<pb::VolumeInfo, Error> {
    volume.ok_or_else(|| Error::not_found(format!("{operation} volume {name}: it was deleted meanwhile")))
}

/// Creates the volume: directories and key first, then the record that makes them a volume.
pub(super) async fn create(
    shared: &Arc<Shared>,
    request: &pb::CreateVolumeRequest,
) -> Result<pb::VolumeInfo, Error> {
    let record = new_record(shared, request)?;
    let name = record.name.clone();
    nodes::require_takes(shared, &format!("create volume {name}"), record.placed().map(|spec| &spec.node))
        .await?;
    let _turn = shared.begin(name.as_str(), "create").await?;
    let exists = || Error::conflict(format!("create volume {name}: it exists already"));
    if !matches!(shared.registry.get(&name).await?, Read::Absent) {
        return Err(exists());
    }
    let made = make_directories(shared, &record).await?;
    let stored = async {
        shared.registry.put_key(record.id, new_key()?).await?;
        shared.registry.create(record.clone()).await
    };
    if let Err(error) = stored.await {
        // Only when it is certain that no record names them; otherwise they stay, listed as unclaimed.
        if matches!(shared.registry.get(&name).await, Ok(Read::Absent)) || error.kind() == ErrorKind::Conflict
        {
            let undo = blocking(move || {
                replica_dirs::undo_create(&made);
                Ok(())
            });
            let _ = undo.await;
            let _ = shared.registry.delete_key(record.id).await;
        }
        return Err(error);
    }
    tracing::info!(volume = %name, id = %record.id, size_bytes = record.spec.size_bytes, "created");
    wait_for_directories(shared, &record).await?;
    shared.reconcile().await?;
    info("create", &name, shared.volume(name.as_str()))
}

/// A volume's first key.
pub(super) fn new_key() -> Result<VolumeKey, Error> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|e| Error::failed(format!("make a key: {e}")))?;
    Ok(VolumeKey { key_id: 1, key })
}

/// The other nodes make their own directories when they see the record.
async fn wait_for_directories(shared: &Shared, record: &VolumeRecord) -> Result<(), Error> {
    let there: Vec<_> = record.placed().filter(|spec| spec.node != shared.config.node).collect();
    let made = |known: &Elsewhere| there.iter().all(|spec| known.has_directory(record.id, spec));
    if shared.wait_elsewhere(DIRECTORIES_WITHIN, made).await {
        return Ok(());
    }
    let known = Arc::clone(&shared.elsewhere.borrow());
    let late = there.iter().filter(|spec| !known.has_directory(record.id, spec));
    let late = late.map(|spec| match known.is_live(&spec.node) {
        Some(true) => format!("{} on node {}", spec.id, spec.node),
        Some(false) | None => format!("{} on node {}, which does not answer", spec.id, spec.node),
    });
    let late: Vec<_> = late.collect();
    Err(Error::new(
        ErrorKind::TimedOut,
        format!(
            "create volume {}: there is no directory yet of {}; the volume stands and this goes on by itself: `holdfast \
             volume show {}`",
            record.name,
            late.join(" and "),
            record.name
        ),
    ))
}

fn new_record(shared: &Shared, request: &pb::CreateVolumeRequest) -> Result<VolumeRecord, Error> {
    let name = name_of("create", &request.name)?;
    let invalid = |why: String| Error::invalid(format!("create volume {name}: {why}"));
    check_size(request.size_bytes).map_err(invalid)?;
    let io_mode = match request.io_mode.as_str() {
        "" => IO_MODE_DEFAULT,
        told => told,
    };
    check_io_mode(io_mode).map_err(invalid)?;
    let max = u32::try_from(REPLICAS_MAX).unwrap_or(u32::MAX);
    if !(1..=max).contains(&request.replicas) {
        return Err(invalid(format!("replicas: expected 1 to {max}, found {}", request.replicas)));
    }
    let members: ReplicaSet = (1..=request.replicas).map(ReplicaId).collect();
    let on = request.on.iter().map(|node| node.parse::<NodeName>());
    let on = on.collect::<Result<Vec<_>, _>>().map_err(|e| invalid(format!("on: {e}")))?;
    let nodes = spread(&on, members.len(), &shared.config.node).map_err(invalid)?;
    // Minted with the volume, so that the record claims its instances before any of them exists.
    let instance_uuids = members
        .iter()
        .map(|id| (InstanceName::replica(&name, id).to_string(), InstanceUuid::random()))
        .collect();
    let placed = members.iter().zip(nodes).map(|(id, node)| {
        // This one makes its own before the record.
        let to_make = node != shared.config.node;
        ReplicaSpec { to_make, ..ReplicaSpec::new(id, node) }
    });
    Ok(VolumeRecord {
        schema: RECORD_SCHEMA,
        id: VolumeId::random(),
        version: 1,
        spec: VolumeSpec::detached(request.size_bytes, placed.collect(), request.replicas + 1, io_mode),
        status: VolumeStatus {
            incarnation: shared.registry.incarnation(),
            lineage: Lineage::random(),
            generation: Generation(0),
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            round: 0,
            view: View { generation: Generation(0), epoch: Epoch(0), members, needs_registry: false },
            configured: members,
            // Nothing was ever written: there is nothing in which the members could differ.
            clean: true,
            instance_uuids,
            unknown: Unknown::default(),
        },
        name,
        unknown: Unknown::default(),
    })
}

async fn make_directories(shared: &Arc<Shared>, record: &VolumeRecord) -> Result<Vec<PathBuf>, Error> {
    let here = record.spec.replicas.iter().filter(|spec| spec.node == shared.config.node);
    let wanted: Vec<_> = here.map(|spec| (spec.id, roles::data_dir(shared, record, spec.id))).collect();
    let (node, record, place) = (shared.config.node.clone(), record.clone(), shared.place.clone());
    blocking(move || {
        let mut made = Vec::new();
        if !wanted.is_empty() {
            place.require()?;
        }
        for (id, path) in wanted {
            if let Err(error) = replica_dirs::create(&path, &node, id, &record) {
                replica_dirs::undo_create(&made);
                return Err(error);
            }
            made.push(path);
        }
        Ok(made)
    })
    .await
}

/// Wants the volume on a node: its agent starts the engine.
pub(super) async fn attach(
    shared: &Arc<Shared>,
    request: &pb::AttachVolumeRequest,
) -> Result<pb::VolumeInfo, Error> {
    let name = name_of("attach", &request.name)?;
    check_tcp(&name, &request.nbd_tcp)?;
    let node = nodes::named(shared, &format!("attach volume {name}"), &request.node)?;
    if node == shared.config.node {
        check_socket_path(&nbd_socket(&shared.config.runtime_dir, name.as_str()))?;
    } else {
        check_attach_there(shared, &name, &node, request).await?;
    }
    let turn = shared.begin(name.as_str(), "attach").await?;
    shared.reconcile().await?;
    let record = read(shared, "attach", &name).await?;
    let fences = || nodes::may_pass_over_engine(shared, &record, &node);
    let detaching = stays_detaching(shared, &name, fences).await;
    let force_from = force::wanted(shared, &name, request).await?;
    let wanted = AttachSpec {
        node: node.clone(),
        nbd_tcp: Some(request.nbd_tcp.clone()).filter(|tcp| !tcp.is_empty()),
        force_from: force_from.clone(),
        unknown: Unknown::default(),
    };
    let conflict = |why: &str| Error::conflict(format!("attach volume {name}: {why}"));
    change(shared, "attach", &name, |record| {
        if record.spec.intent != Intent::Keep {
            return Err(conflict("it is being deleted"));
        }
        let fences = nodes::may_pass_over_engine(shared, record, &node);
        match &mut record.spec.attach {
            // An engine that waits is told of it.
            Some(attach) if force_from.is_some() && attach.node == wanted.node => {
                attach.force_from.clone_from(&force_from);
                return Ok(true);
            }
            Some(attach) if attach.node == wanted.node && attach.nbd_tcp == wanted.nbd_tcp => {
                return Ok(false);
            }
            Some(attach) if attach.node != wanted.node => {
                return Err(conflict(&format!("it is attached on node {}; detach it first", attach.node)));
            }
            Some(_) => return Err(conflict("it is attached with another TCP address; detach it first")),
            None if detaching && !fences => {
                return Err(conflict("it is still detaching; try again when it is detached"));
            }
            None => {}
        }
        record.spec.attach = Some(wanted.clone());
        record.spec.detaching = None;
        // Each attachment is a creation of its own.
        let engine = InstanceName::engine(&record.name).to_string();
        record.status.instance_uuids.insert(engine, InstanceUuid::random());
        Ok(true)
    })
    .await?;
    shared.reconcile().await?;
    drop(turn);
    let here = node == shared.config.node;
    let decided = |volume: Option<&pb::VolumeInfo>| {
        volume.is_none_or(|volume| match here {
            true => volume.endpoint.is_some() || volume.state == "faulted",
            false => volume.state != "attaching",
        })
    };
    info("attach", &name, shared.wait(name.as_str(), ATTACH_WITHIN, decided).await)
}

/// Whether the volume is still detaching after a moment, in which other nodes end their replicas just after the one that
/// was asked. `over` says that this does not matter.
async fn stays_detaching(shared: &Shared, name: &VolumeName, over: impl Fn() -> bool) -> bool {
    let detaching = |volume: &pb::VolumeInfo| volume.state == "detaching";
    let decided = |volume: Option<&pb::VolumeInfo>| !volume.is_some_and(detaching) || over();
    let volume = shared.wait(name.as_str(), DETACHING_ENDS_WITHIN, decided).await;
    volume.as_ref().is_some_and(detaching)
}

/// What must be so before another node is asked to run the engine.
async fn check_attach_there(
    shared: &Shared,
    name: &VolumeName,
    node: &NodeName,
    request: &pb::AttachVolumeRequest,
) -> Result<(), Error> {
    let told = |why: String| format!("attach volume {name} on node {node}: {why}");
    if !request.force_from.is_empty() {
        return Err(Error::invalid(told(
            "by force only from a replica that the asked agent can look at: ask the agent of that node"
                .to_owned(),
        )));
    }
    nodes::require_known(shared, &format!("attach volume {name}"), [node]).await?;
    if shared.elsewhere.borrow().is_live(node) != Some(true) {
        return Err(Error::refused(told(
            "that node does not answer; start its agent, or attach the volume on another".to_owned(),
        )));
    }
    Ok(())
}

fn check_tcp(name: &VolumeName, tcp: &str) -> Result<(), Error> {
    let port = tcp.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        _ if tcp.is_empty() => Ok(()),
        Some(Ok(_)) => Ok(()),
        _ => Err(Error::invalid(format!(
            "attach volume {name}: the TCP address: expected HOST:PORT (IPv6 in brackets), found {tcp:?}"
        ))),
    }
}

/// Wants the volume nowhere.
pub(super) async fn detach(
    shared: &Arc<Shared>,
    request: &pb::DetachVolumeRequest,
) -> Result<pb::VolumeInfo, Error> {
    let name = name_of("detach", &request.name)?;
    let turn = shared.begin(name.as_str(), "detach").await?;
    shared.reconcile().await?;
    let clients = if request.force { 0 } else { clients_that_stay(shared, &name).await? };
    let silent = engine_is_silent(shared, &name);
    let record = change(shared, "detach", &name, |record| {
        if record.spec.attach.is_none() {
            return Ok(false);
        }
        if clients > 0 {
            let (are, them) = if clients == 1 { ("client is", "it") } else { ("clients are", "them") };
            return Err(Error::refused(format!(
                "detach volume {name}: {clients} {are} connected; disconnect {them}, or use --force"
            )));
        }
        let there = record.spec.attach.as_ref().map(|attach| &attach.node);
        if let Some(node) = there.filter(|node| **node != shared.config.node && !request.force)
            && let Some(why) = shared.elsewhere.borrow().clients_unknown(record, node)
        {
            return Err(Error::refused(format!(
                "detach volume {name}, attached on node {node}: its clients cannot be known: {why}; use --force, and \
                 attach it on another node to fence it there"
            )));
        }
        if silent && !request.force {
            return Err(Error::refused(format!(
                "detach volume {name}: its engine does not answer, so its clients cannot be known; use --force"
            )));
        }
        record.detach();
        Ok(true)
    })
    .await?;
    shared.reconcile().await?;
    drop(turn);
    // Nobody knows when a node that does not answer will have done it.
    let engines = record.spec.detaching;
    let silent = || engines.as_ref().is_some_and(|node| nodes::is_silent(shared, node));
    let ended =
        |volume: Option<&pb::VolumeInfo>| volume.is_none_or(|volume| volume.state == "detached" || silent());
    let volume = info("detach", &name, shared.wait(name.as_str(), DETACH_WITHIN, ended).await)?;
    if volume.state == "detached" || silent() {
        return Ok(volume);
    }
    let why = volume.reason.unwrap_or_else(|| "its engine has not ended".to_owned());
    Err(Error::new(
        ErrorKind::TimedOut,
        format!(
            "detach volume {name}: it is {} still after {} s: {why}; it goes on by itself",
            volume.state,
            DETACH_WITHIN.as_secs()
        ),
    ))
}

/// How many clients there are that are not just leaving, and that have not vanished.
async fn clients_that_stay(shared: &Shared, name: &VolumeName) -> Result<u32, Error> {
    let none_left = |volume: Option<&pb::VolumeInfo>| volume.is_none_or(|volume| volume.clients == 0);
    let mut volume = shared.wait(name.as_str(), CLIENTS_LEAVE_WITHIN, none_left).await;
    if volume.as_ref().is_some_and(|volume| volume.clients > 0 && volume.endpoint_tcp.is_some()) {
        let engine = InstanceName::engine(name);
        shared.command(|reply| Command::CheckClients { name: engine, reply }).await?;
        volume = shared.wait(name.as_str(), VANISHED_CLIENTS_WITHIN, none_left).await;
    }
    Ok(volume.map_or(0, |volume| volume.clients))
}

/// Whether an engine runs, or may run, that cannot be asked.
fn engine_is_silent(shared: &Shared, name: &VolumeName) -> bool {
    let snapshot = shared.snapshot();
    let engine = InstanceName::engine(name).to_string();
    let runs = snapshot.volumes.iter().any(|v| v.name == name.as_str() && v.engine.is_some());
    runs && snapshot.instances.iter().any(|i| i.name == engine && i.state == "error")
}

/// Forgets a detached volume.
pub(super) async fn delete(
    shared: &Arc<Shared>,
    request: &pb::DeleteVolumeRequest,
) -> Result<pb::DeleteVolumeReply, Error> {
    let name = name_of("delete", &request.name)?;
    let _turn = shared.begin(name.as_str(), "delete").await?;
    shared.reconcile().await?;
    let detaching = stays_detaching(shared, &name, || false).await;
    let foreign = Arc::clone(&shared.foreign.lock());
    let record = change(shared, "delete", &name, |record| {
        let refused = |why: &str| Error::refused(format!("delete volume {name}: {why}"));
        if let Some(why) = foreign.holds(&record.name, record.id) {
            return Err(refused(&why));
        }
        if record.spec.attach.is_some() {
            return Err(refused("it is attached; detach it first"));
        }
        if detaching && record.spec.intent == Intent::Keep {
            return Err(refused("it is still detaching; try again when it is detached"));
        }
        let wanted = match request.purge_data {
            true => Intent::Purge(purge_intent(record)),
            false => Intent::Delete,
        };
        // A purge that was asked for is not taken back by a plain delete after it.
        let asked = matches!(record.spec.intent, Intent::Purge(_)) && !request.purge_data;
        let changed = record.spec.intent != wanted && !asked;
        if changed {
            record.spec.intent = wanted;
        }
        Ok(changed)
    })
    .await?;
    shared.reconcile().await?;
    let left = shared.wait(name.as_str(), DELETE_WITHIN, |volume| volume.is_none()).await;
    if let Some(left) = left {
        let why = left.reason.unwrap_or(left.state);
        return Err(Error::new(
            ErrorKind::TimedOut,
            format!("delete volume {name}: not done yet, it goes on by itself: {why}"),
        ));
    }
    let kept = dirs_of(shared, record.id).await?;
    let (trash, purged) = (shared.trash.clone(), record.status.generation);
    let trashed = blocking(move || Ok(trash.moved(record.id, purged))).await?;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    Ok(pb::DeleteVolumeReply {
        kept_dirs: kept.iter().map(text).collect(),
        trashed_dirs: trashed.iter().map(text).collect(),
    })
}

/// The directories whose labels name this volume.
async fn dirs_of(shared: &Arc<Shared>, id: VolumeId) -> Result<Vec<PathBuf>, Error> {
    let replicas = shared.data.replicas();
    let found = blocking(move || replica_dirs::scan(&replicas)).await?;
    let ours = found.into_iter().filter(|dir| dir.label.as_ref().is_ok_and(|label| label.volume == id));
    Ok(ours.map(|dir| dir.path).collect())
}
