//! Doing what is planned: one action after the other, each against what is there by then.

use std::sync::Arc;

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::VolumeRecord;

use super::{
    Action, Begin, Error, Event, InstanceName, InstanceUuid, Kind, Lookup, Read, Shared, SpawnRecord,
    StopWish, Supervisor, VolumeId, VolumeKey, VolumeName, blocking, happened, reconcile, replica_dirs,
    roles,
};
use crate::core::creation;
use crate::process::spawn;
use crate::registry::Swap;
use crate::store::instances::SPAWN_SCHEMA;

impl Supervisor {
    pub(super) async fn act(&mut self, shared: &Shared, action: Action) -> Result<(), Error> {
        match action {
            Action::Spawn { name, volume_id, uuid } => self.spawn(shared, name, volume_id, uuid).await,
            Action::ConfigureReplica { name } => self.configure(shared, &name, None).await,
            Action::ConfigureEngine { name, replicas } => self.configure(shared, &name, Some(replicas)).await,
            Action::Stop { name, uuid, drain } => {
                self.stop(shared, &name, uuid, StopWish { drain });
                Ok(())
            }
            Action::Retire { name } => self.retire(shared, name).await,
            Action::Trash { volume_id, generation } => {
                let record = self.records.by_id(volume_id);
                let here = record.into_iter().flat_map(|record| {
                    let here = record.placed().filter(|spec| spec.node == shared.config.node);
                    here.map(|spec| roles::data_dir(shared, record, spec.id))
                });
                let (here, trash, at) = (here.collect::<Vec<_>>(), shared.trash.clone(), shared.when());
                let place = shared.place.clone();
                let list = blocking(move || {
                    // What is on a disk that is not mounted would be said to be gone.
                    place.require_same("purge data")?;
                    trash.purge(volume_id, generation, &here, at)
                });
                list.await.map(drop)
            }
            Action::MakeDirectory { name, id, fill } => self.make_directory(shared, &name, id, fill).await,
            Action::SayDetached { name, id, engine } => say_detached(shared, &name, id, engine).await,
            Action::Release { name, id, version } => release(shared, &name, id, version).await,
            Action::DeleteRecord { name, id, version, purge } => {
                if purge {
                    shared.registry.delete_key(id).await?;
                }
                self.keys.remove(&id);
                self.ended.forget(id);
                match shared.registry.delete(&name, id, version).await? {
                    Swap::Stored(_) => tracing::info!(volume = %name, %id, "deleted"),
                    // Changed meanwhile: the next plan is made from what it says now.
                    Swap::Conflict(_) | Swap::Missing => {}
                }
                Ok(())
            }
        }
    }

    async fn make_directory(
        &self,
        shared: &Shared,
        name: &InstanceName,
        id: ReplicaId,
        fill: bool,
    ) -> Result<(), Error> {
        let Lookup::Found(record) = self.records.lookup(name.volume().as_str()) else { return Ok(()) };
        let path = roles::data_dir(shared, record, id);
        let (node, of, place) = (shared.config.node.clone(), record.clone(), shared.place.clone());
        let may = reconcile::may_make_directory(record, id, shared.registry.incarnation());
        let there = blocking(move || {
            if !replica_dirs::is_missing(&path) {
                return Ok(true);
            }
            // Where it was there when this was planned, nothing is made.
            let Some(fill) = may else { return Ok(false) };
            place.require()?;
            if fill {
                replica_dirs::create_to_be_filled(&path, &node, id, &of)?;
            } else {
                replica_dirs::create(&path, &node, id, &of)?;
            }
            Ok(true)
        });
        if !there.await? {
            return Ok(());
        }
        let Read::Found(mut now) = shared.registry.get(&record.name).await? else { return Ok(()) };
        let version = now.version;
        let same = now.id == record.id;
        match now.spec.replicas.iter_mut().find(|spec| spec.id == id && spec.to_make).filter(|_| same) {
            Some(spec) => spec.to_make = false,
            None => return Ok(()),
        }
        // Where somebody else was first, the next plan finds the directory and says so again.
        if let Swap::Stored(_) = shared.registry.compare_and_swap(version, now).await? {
            tracing::info!(replica = %name, fill, "its directory is made");
        }
        Ok(())
    }

    async fn spawn(
        &mut self,
        shared: &Shared,
        name: InstanceName,
        volume_id: VolumeId,
        uuid: Option<InstanceUuid>,
    ) -> Result<(), Error> {
        let text = name.to_string();
        let store = shared.store.clone();
        let (old, text) = blocking(move || {
            store.check_newer("start", &text)?;
            Ok((store.read(&text), text))
        })
        .await?;
        let old = match old {
            Read::Found(record) if record.volume_id == volume_id => Some(record),
            Read::Unreadable(reason) => {
                tracing::warn!(instance = text, reason, "nothing runs there; its record is made anew");
                None
            }
            Read::Found(_) | Read::Absent => None,
        };
        let uuid = creation::to_start(uuid, old.as_ref().map(|record| record.uuid), InstanceUuid::random);
        if let Some(before) = old.as_ref().filter(|record| record.uuid != uuid && name.kind() == Kind::Engine)
        {
            // The process that is started takes the lock that this one had.
            self.ended.note(volume_id, before.uuid);
        }
        let old = old.filter(|record| record.uuid == uuid);
        let taken = |path: &std::path::Path| self.sockets.iter().any(|(n, p)| *n != name && p == path);
        let control_socket = spawn::control_socket(&shared.config.runtime_dir, uuid, taken)?;
        let now = shared.now();
        let instance = creation::known_as(self.instances.remove(&name), uuid, volume_id, now);
        let instance = self.instances.entry(name.clone()).or_insert(instance);
        happened(shared, &name, instance, Event::Spawning);
        let again = instance.fails_again();
        let record = SpawnRecord {
            schema: SPAWN_SCHEMA,
            name: name.clone(),
            uuid,
            volume_id,
            boot_id: shared.boot_id,
            binary_digest: self.context.binary.digest.clone(),
            control_socket: control_socket.clone(),
            process: None,
            preferred_port: old.as_ref().and_then(|record| record.preferred_port),
            restarts: instance.restarts(),
            unknown: old.map(|record| record.unknown).unwrap_or_default(),
        };
        self.sockets.insert(name.clone(), control_socket);
        self.digests.insert(name.clone(), record.binary_digest.clone());
        self.drive(&name, record, Begin::Spawn { again });
        Ok(())
    }

    async fn configure(
        &mut self,
        shared: &Shared,
        name: &InstanceName,
        replicas: Option<Vec<holdfast_proto::pb::instance::ReplicaEndpoint>>,
    ) -> Result<(), Error> {
        let records = Arc::clone(&self.records);
        let Lookup::Found(record) = records.lookup(name.volume().as_str()) else { return Ok(()) };
        let key = self.key(shared, record).await?;
        let role = match (name.kind(), replicas) {
            (Kind::Replica(id), _) => roles::replica(shared, record, &key, id),
            (Kind::Engine, replicas) => {
                let gone = self.instances.get(name).is_some_and(|instance| {
                    self.ended.gone_before(record.id, &record.status, instance.uuid())
                });
                let pace = self.turns.of(record.id).cloned();
                roles::engine(shared, record, &key, replicas.unwrap_or_default(), gone, pace)?
            }
        };
        if let Some(driver) = self.drivers.get(name) {
            driver.configure(role);
        }
        Ok(())
    }

    async fn key(&mut self, shared: &Shared, record: &VolumeRecord) -> Result<VolumeKey, Error> {
        if let Some(key) = self.keys.get(&record.id) {
            return Ok(key.clone());
        }
        let told = |reason: String| Error::failed(format!("use the key of volume {}: {reason}", record.name));
        match shared.registry.key(record.id).await? {
            Read::Found(key) => {
                self.keys.insert(record.id, key.clone());
                Ok(key)
            }
            Read::Absent => Err(told("it is missing; restore it from a backup".to_owned())),
            Read::Unreadable(reason) => Err(told(reason)),
        }
    }

    pub(super) fn stop(&mut self, shared: &Shared, name: &InstanceName, uuid: InstanceUuid, wish: StopWish) {
        let (Some(instance), Some(driver)) = (self.instances.get_mut(name), self.drivers.get(name)) else {
            return;
        };
        // Whatever has the name by now, only the creation that was meant ends.
        if instance.uuid() == uuid {
            tracing::info!(instance = %name, drain = wish.drain, "stopping");
            happened(shared, name, instance, Event::StopAsked);
            driver.stop(wish);
        }
    }

    pub(super) async fn retire(&mut self, shared: &Shared, name: InstanceName) -> Result<(), Error> {
        if self.instances.get(&name).is_some_and(|instance| !instance.is_down()) {
            return Ok(());
        }
        let (store, text) = (shared.store.clone(), name.to_string());
        blocking(move || store.remove(&text)).await?;
        if let Some(instance) = self.instances.remove(&name).filter(|_| name.kind() == Kind::Engine) {
            self.ended.note(instance.volume_id(), instance.uuid());
        }
        self.sockets.remove(&name);
        self.digests.remove(&name);
        Ok(())
    }
}

/// Says that the engine that was here has ended.
async fn say_detached(
    shared: &Shared,
    name: &VolumeName,
    id: VolumeId,
    engine: Option<InstanceUuid>,
) -> Result<(), Error> {
    let Read::Found(record) = shared.registry.get(name).await? else { return Ok(()) };
    if record.id != id || !reconcile::says_detached(&record, &shared.config.node, engine) {
        return Ok(());
    }
    let (version, mut said) = (record.version, record);
    said.spec.detaching = None;
    // Somebody else who was first: the next plan is made from what it says now.
    shared.registry.compare_and_swap(version, said).await.map(drop)
}

/// Takes this node's replicas out of the record of a volume that is being deleted.
async fn release(shared: &Shared, name: &VolumeName, id: VolumeId, version: u64) -> Result<(), Error> {
    let Read::Found(record) = shared.registry.get(name).await? else { return Ok(()) };
    // Anything else than what was planned from: the next plan is made from what it says now.
    if record.id != id || record.version != version {
        return Ok(());
    }
    let record = reconcile::without_replicas_of(&record, &shared.config.node);
    if let Swap::Stored(_) = shared.registry.compare_and_swap(version, record).await? {
        tracing::info!(volume = %name, %id, "given up here; other nodes are to do the same");
    }
    Ok(())
}
