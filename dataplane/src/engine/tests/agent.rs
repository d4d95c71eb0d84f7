//! What stands in for agent and registry: hosts instances on threads of this process, speaks to them over their real
//! control sockets, and keeps one volume record in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use holdfast_proto::ids::{Epoch, Generation, Incarnation, InstanceUuid, Lineage, ReplicaId, VolumeId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{View, VolumeStatus};
use parking_lot::{Condvar, Mutex};
use pb::instance_client::InstanceClient;
use pb::registry_result_request::{Conflict, Missing, Outcome, Stored, Unavailable};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use super::PATIENCE;
use crate::control::{Instance, InstanceArgs, Role, server};
use crate::engine::control::EngineRole;
use crate::error::Error;
use crate::replica::ReplicaRole;

pub(super) const SIZE_BYTES: u64 = 4 * 1024 * 1024 + 8192;

/// How the registry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Missing,
    Away,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) version: u64,
    pub(super) status: VolumeStatus,
    pub(super) mood: Mood,
}

pub(super) type Registry = Arc<Mutex<Record>>;

/// A volume that no engine has had yet.
pub(super) fn new_volume(replicas: u32) -> Registry {
    let configured = (1..=replicas).map(ReplicaId).collect();
    let status = VolumeStatus {
        incarnation: Incarnation::random(),
        lineage: Lineage::random(),
        generation: Generation(0),
        engine_uuid: InstanceUuid::nil(),
        engine_instance: InstanceUuid::nil(),
        round: 0,
        view: View { generation: Generation(0), epoch: Epoch(0), members: configured, needs_registry: false },
        configured,
        clean: true,
        instance_uuids: Default::default(),
        unknown: Default::default(),
    };
    Arc::new(Mutex::new(Record { version: 1, status, mood: Mood::Good }))
}

fn key() -> pb::VolumeKey {
    pb::VolumeKey { key_id: 7, key: vec![9; 32] }
}

pub(super) const VOLUME: VolumeId = VolumeId(uuid::Uuid::from_u128(0x4242));

/// A configuration with two replicas that are nowhere.
pub(in crate::engine) fn sample_config() -> pb::EngineConfig {
    let registry = new_volume(2);
    let endpoint = |id| pb::ReplicaEndpoint { id, address: "127.0.0.1:9".to_owned(), ..Default::default() };
    engine_config(&registry, Path::new("/run/demo.sock"), vec![endpoint(1), endpoint(2)])
}

pub(super) fn engine_config(
    registry: &Registry,
    nbd_socket: &Path,
    replicas: Vec<pb::ReplicaEndpoint>,
) -> pb::EngineConfig {
    let record = registry.lock();
    pb::EngineConfig {
        volume_id: VOLUME.to_string(),
        volume_name: "demo".to_owned(),
        size_bytes: SIZE_BYTES,
        record_version: record.version,
        status: Some((&record.status).into()),
        key: Some(key()),
        replicas,
        nbd_socket: nbd_socket.to_str().unwrap().to_owned(),
        node: "node-a".to_owned(),
        ..Default::default()
    }
}

pub(super) fn replica_config(registry: &Registry, id: u32, data_dir: &Path) -> pb::ReplicaConfig {
    let record = registry.lock();
    pb::ReplicaConfig {
        volume_id: VOLUME.to_string(),
        volume_name: "demo".to_owned(),
        replica_id: id,
        node: "node-a".to_owned(),
        size_bytes: SIZE_BYTES,
        data_dir: data_dir.to_str().unwrap().to_owned(),
        create: true,
        lineage: record.status.lineage.to_string(),
        configured: record.status.configured.iter().map(|id| id.0).collect(),
        key: Some(key()),
        bind: "127.0.0.1".to_owned(),
        port_min: 20000,
        port_max: 60000,
        port_preferred: 0,
        io_mode: "buffered".to_owned(),
        incarnation: record.status.incarnation.to_string(),
        advertise: String::new(),
        spin: String::new(),
    }
}

/// The newest status, and who waits for it to change.
#[derive(Debug, Default)]
struct Seen {
    status: Mutex<pb::InstanceStatus>,
    changed: Condvar,
}

/// An instance on a thread of this process.
#[derive(Debug)]
pub(super) struct Hosted {
    uuid: InstanceUuid,
    runtime: tokio::runtime::Handle,
    _gone: oneshot::Sender<()>,
    client: InstanceClient<Channel>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    seen: Arc<Seen>,
    pub(super) dir: PathBuf,
}

fn host<R: Role>(
    dir: &Path,
    kind: &'static str,
    make: impl FnOnce(&Instance) -> R + Send + 'static,
    registry: &Registry,
) -> Hosted {
    std::fs::create_dir_all(dir).unwrap();
    let args = InstanceArgs {
        name: format!("demo-{kind}"),
        uuid: InstanceUuid::random(),
        instance_dir: dir.to_owned(),
        control: dir.join("control"),
    };
    let (uuid, control) = (args.uuid, args.control.clone());
    let (listening, listens) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        tokio_uring::start(async {
            let (instance, ended) = Instance::new(args, kind)?;
            let listener = server::listen(&instance.args.control)?;
            listening.send(()).unwrap();
            let role = std::rc::Rc::new(make(&instance));
            server::serve(instance, ended, listener, role, PATIENCE).await
        })
    });
    listens.recv_timeout(PATIENCE).unwrap();
    let (runtime, gone) = start_runtime();
    let seen = Arc::new(Seen::default());
    let client = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix:{}", control.display())).unwrap();
        let mut client = InstanceClient::new(endpoint.connect().await.unwrap());
        client.confirm(pb::ConfirmRequest { uuid: uuid.to_string() }).await.unwrap();
        client
    });
    runtime.spawn(watch(client.clone(), uuid, Arc::clone(&seen), Arc::clone(registry)));
    Hosted { uuid, runtime, _gone: gone, client, thread: Some(thread), seen, dir: dir.to_owned() }
}

/// A runtime on a thread of its own, until the second of these is dropped.
fn start_runtime() -> (tokio::runtime::Handle, oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let (sender, gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = runtime.block_on(gone);
    });
    (handle, sender)
}

async fn watch(mut client: InstanceClient<Channel>, uuid: InstanceUuid, seen: Arc<Seen>, registry: Registry) {
    let mut items = client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    while let Ok(Some(item)) = items.message().await {
        match item.item {
            Some(pb::watch_item::Item::Status(status)) => {
                *seen.status.lock() = status;
                seen.changed.notify_all();
            }
            Some(pb::watch_item::Item::Ask(pb::Ask {
                ask_id,
                ask: Some(pb::ask::Ask::RegistryCas(cas)),
            })) => {
                let outcome = Some(compare_and_swap(&registry, &cas));
                let result = pb::RegistryResultRequest { uuid: uuid.to_string(), ask_id, outcome };
                // It may have ended meanwhile.
                let _ = client.registry_result(result).await;
            }
            _ => {}
        }
    }
}

fn compare_and_swap(registry: &Registry, cas: &pb::RegistryCas) -> Outcome {
    let mut record = registry.lock();
    match record.mood {
        Mood::Missing => Outcome::Missing(Missing {}),
        Mood::Away => Outcome::Unavailable(Unavailable { reason: "away".to_owned() }),
        Mood::Good if cas.expected_version != record.version => {
            Outcome::Conflict(Conflict { version: record.version, status: Some((&record.status).into()) })
        }
        Mood::Good => {
            record.status = cas.status.as_ref().unwrap().try_into().unwrap();
            record.version += 1;
            Outcome::Stored(Stored { version: record.version })
        }
    }
}

impl Hosted {
    pub(super) fn engine(dir: &Path, registry: &Registry) -> Self {
        host(dir, "engine", EngineRole::new, registry)
    }
    pub(super) fn replica(dir: &Path, registry: &Registry) -> Self {
        host(dir, "replica", ReplicaRole::start, registry)
    }

    fn call<T>(
        &self,
        call: impl AsyncFnOnce(InstanceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, tonic::Status> {
        let client = self.client.clone();
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call(client)).await });
        answer.unwrap().map(tonic::Response::into_inner)
    }

    pub(super) fn configure(&self, role: pb::configure_request::Role) -> Result<(), tonic::Status> {
        let request = pb::ConfigureRequest { uuid: self.uuid.to_string(), role: Some(role) };
        self.call(async |mut client| client.configure(request).await).map(|_| ())
    }
    pub(super) fn drain(&self) -> pb::DrainReply {
        self.call(async |mut client| client.drain(pb::DrainRequest { deadline_ms: 20_000 }).await).unwrap()
    }
    /// Stops it, and returns how its process would have ended.
    pub(super) fn stop(mut self) -> Result<(), Error> {
        let _ = self.call(async |mut client| client.stop(pb::StopRequest {}).await);
        self.thread.take().unwrap().join().unwrap()
    }
    /// Waits until it ends by itself.
    pub(super) fn ended(mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the status is as wanted.
    pub(super) fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&pb::InstanceStatus) -> bool,
    ) -> pb::InstanceStatus {
        let until = Instant::now() + PATIENCE;
        let mut status = self.seen.status.lock();
        while !wanted(&status) {
            let late = self.seen.changed.wait_until(&mut status, until).timed_out();
            assert!(!late, "not {what} in time: {status:?}");
        }
        status.clone()
    }
    pub(super) fn wait_state(&self, state: &str) -> pb::EngineStatus {
        let status = self.wait(state, |status| status.engine.as_ref().is_some_and(|e| e.state == state));
        status.engine.unwrap()
    }
}
