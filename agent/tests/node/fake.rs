//! An instance that keeps the control contract and serves nothing: what the supervisor is tested against, in a real
//! process with a real lock and a real socket.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use holdfast_proto::pb::instance as pb;
use holdfast_proto::pb::instance::ask::Ask;
use holdfast_proto::pb::instance::configure_request::Role;
use holdfast_proto::pb::instance::instance_server::{Instance, InstanceServer};
use holdfast_proto::pb::instance::registry_result_request::Outcome;
use holdfast_proto::pb::instance::watch_item::Item;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What the supervisor's command line says.
struct Arguments {
    kind: String,
    name: String,
    uuid: String,
    dir: PathBuf,
    control: PathBuf,
}

fn arguments() -> Option<Arguments> {
    let args: Vec<String> = std::env::args().collect();
    let kind = args.get(1).filter(|kind| ["engine", "replica"].contains(&kind.as_str()))?.clone();
    let value = |flag: &str| args.iter().skip_while(|a| *a != flag).nth(1).cloned().unwrap();
    Some(Arguments {
        kind,
        name: value("--name"),
        uuid: value("--uuid"),
        dir: value("--instance-dir").into(),
        control: value("--control").into(),
    })
}

/// Runs as an instance when the command line says so; returns when it does not.
pub(crate) fn run_if_asked() {
    let Some(arguments) = arguments() else { return };
    let lock =
        File::options().create(true).truncate(false).write(true).open(arguments.dir.join("lock")).unwrap();
    if lock.try_lock().is_err() {
        println!("another process holds the lock");
        std::process::exit(3);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(arguments));
    drop(lock);
    std::process::exit(0);
}

async fn serve(arguments: Arguments) {
    let _ = std::fs::remove_file(&arguments.control);
    let listener = UnixListener::bind(&arguments.control).unwrap();
    // Part of the contract: a hangup ends no instance. One that serves has its sockets bound again by it.
    let mut hangup = signal(SignalKind::hangup()).unwrap();
    tokio::spawn(async move { while hangup.recv().await.is_some() {} });
    let (ending, ended) = watch::channel(false);
    let fake = Fake {
        name: arguments.name,
        uuid: arguments.uuid,
        kind: arguments.kind,
        state: Arc::default(),
        status: watch::Sender::new(phase("pending")),
        asks: watch::Sender::new(None),
        ending: Arc::new(ending),
    };
    let mut wait = ended.clone();
    let server = tonic::transport::Server::builder()
        .serve_with_incoming(InstanceServer::new(fake), UnixListenerStream::new(listener));
    tokio::select! {
        result = server => result.unwrap(),
        // The answer to Stop may or may not arrive: the end of the process is what counts.
        _ = wait.wait_for(|ended| *ended) => {}
    }
}

fn phase(phase: &str) -> pb::InstanceStatus {
    pb::InstanceStatus { phase: phase.into(), ..Default::default() }
}

#[derive(Debug, Default)]
struct State {
    confirmed: bool,
    role: Option<Role>,
    version: u64,
    record: pb::VolumeStatus,
    asked: u64,
}

#[derive(Debug, Clone)]
struct Fake {
    name: String,
    uuid: String,
    kind: String,
    state: Arc<Mutex<State>>,
    status: watch::Sender<pb::InstanceStatus>,
    asks: watch::Sender<Option<pb::Ask>>,
    ending: Arc<watch::Sender<bool>>,
}

impl Fake {
    fn ask(&self, change: impl FnOnce(&mut pb::VolumeStatus)) {
        let mut state = self.state.lock().unwrap();
        state.asked += 1;
        let mut wished = state.record.clone();
        change(&mut wished);
        let Some(Role::Engine(engine)) = &state.role else { panic!("only engines ask") };
        let cas = pb::RegistryCas {
            volume_id: engine.volume_id.clone(),
            expected_version: state.version,
            status: Some(wished),
        };
        self.asks.send_replace(Some(pb::Ask { ask_id: state.asked, ask: Some(Ask::RegistryCas(cas)) }));
    }

    fn serve_engine(&self) {
        let state = self.state.lock().unwrap();
        let Some(Role::Engine(engine)) = &state.role else { return };
        let replicas: Vec<_> = (engine.replicas.iter())
            .map(|r| pb::ReplicaState {
                id: r.id,
                mode: if r.address.is_empty() { "absent" } else { "member" }.into(),
                ..Default::default()
            })
            .collect();
        let healthy = replicas.iter().all(|r| r.mode == "member");
        let status = pb::EngineStatus {
            state: if healthy { "healthy" } else { "degraded" }.into(),
            generation: state.record.generation,
            epoch: 1,
            nbd_socket: engine.nbd_socket.clone(),
            clients: u32::from(engine.volume_name.starts_with("busy")),
            replicas,
            ..Default::default()
        };
        self.status.send_replace(pb::InstanceStatus { engine: Some(status), ..phase("running") });
    }

    fn serve_replica(&self, replica: &pb::ReplicaConfig) {
        let port = match replica.port_preferred {
            0 => replica.port_min + std::process::id() % 1000,
            preferred => preferred,
        };
        let there = Path::new(&replica.data_dir).join("meta").exists();
        let status = pb::ReplicaStatus {
            address: format!("{}:{port}", replica.bind),
            data_dir: replica.data_dir.clone(),
            mode: if there { "open" } else { "absent" }.into(),
            ..Default::default()
        };
        self.status.send_replace(pb::InstanceStatus { replica: Some(status), ..phase("running") });
    }
}

#[tonic::async_trait]
impl Instance for Fake {
    type WatchStream = ReceiverStream<Result<pb::WatchItem, Status>>;

    async fn hello(&self, _: Request<pb::HelloRequest>) -> Result<Response<pb::HelloReply>, Status> {
        let state = self.state.lock().unwrap();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        Ok(Response::new(pb::HelloReply {
            protocol: 1,
            version: "fake".into(),
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            kind: self.kind.clone(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into(),
            pid: std::process::id().try_into().unwrap(),
            start_time_ticks: start,
            confirmed: state.confirmed,
            configured: state.role.is_some(),
        }))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::ConfirmReply>, Status> {
        if request.into_inner().uuid != self.uuid {
            return Err(Status::failed_precondition("another creation"));
        }
        self.state.lock().unwrap().confirmed = true;
        Ok(Response::new(pb::ConfirmReply {}))
    }

    async fn configure(
        &self,
        request: Request<pb::ConfigureRequest>,
    ) -> Result<Response<pb::ConfigureReply>, Status> {
        let role = request.into_inner().role.unwrap();
        let first = {
            let mut state = self.state.lock().unwrap();
            assert!(state.confirmed, "configured before confirmed");
            let first = state.role.is_none();
            if let (Role::Engine(engine), true) = (&role, first) {
                state.version = engine.record_version;
                state.record = engine.status.clone().unwrap();
            }
            state.role = Some(role.clone());
            first
        };
        match role {
            Role::Replica(replica) => self.serve_replica(&replica),
            Role::Engine(_) if first => self.ask(|status| {
                status.generation += 1;
                status.engine_uuid.clone_from(&self.uuid);
                status.engine_instance.clone_from(&self.uuid);
                status.clean = false;
            }),
            Role::Engine(_) if self.status.borrow().engine.is_some() => self.serve_engine(),
            Role::Engine(_) => {}
        }
        Ok(Response::new(pb::ConfigureReply {}))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (items, stream) = mpsc::channel(8);
        let (mut status, mut asks) = (self.status.subscribe(), self.asks.subscribe());
        status.mark_changed();
        asks.mark_changed();
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    Ok(()) = status.changed() => Some(Item::Status(status.borrow_and_update().clone())),
                    Ok(()) = asks.changed() => asks.borrow_and_update().clone().map(Item::Ask),
                    else => return,
                };
                if item.is_some() && items.send(Ok(pb::WatchItem { item })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn registry_result(
        &self,
        request: Request<pb::RegistryResultRequest>,
    ) -> Result<Response<pb::RegistryResultReply>, Status> {
        let result = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let asked = self.asks.borrow().clone();
        let Some(pb::Ask { ask_id, ask: Some(Ask::RegistryCas(cas)) }) = asked else {
            return Ok(Response::new(pb::RegistryResultReply {}));
        };
        if ask_id != result.ask_id {
            return Ok(Response::new(pb::RegistryResultReply {}));
        }
        match result.outcome.unwrap() {
            Outcome::Stored(stored) => {
                state.version = stored.version;
                state.record = cas.status.unwrap();
                self.asks.send_replace(None);
                drop(state);
                self.serve_engine();
            }
            Outcome::Conflict(conflict) => {
                // An operator's wish came in between: the status is as it was, so the ask stands.
                state.version = conflict.version;
                state.record = conflict.status.unwrap();
                let wished = cas.status.unwrap();
                drop(state);
                self.ask(|status| *status = wished);
            }
            Outcome::Missing(_) | Outcome::Unavailable(_) => {
                self.asks.send_replace(None);
            }
        }
        Ok(Response::new(pb::RegistryResultReply {}))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        self.ask(|status| status.clean = true);
        let _ = self.asks.subscribe().wait_for(Option::is_none).await;
        Ok(Response::new(pb::DrainReply { clean: true, reason: String::new() }))
    }

    async fn check_clients(
        &self,
        _: Request<pb::CheckClientsRequest>,
    ) -> Result<Response<pb::CheckClientsReply>, Status> {
        Ok(Response::new(pb::CheckClientsReply {}))
    }

    async fn stop(&self, _: Request<pb::StopRequest>) -> Result<Response<pb::StopReply>, Status> {
        self.ending.send_replace(true);
        Ok(Response::new(pb::StopReply {}))
    }
}
