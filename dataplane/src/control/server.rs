//! The gRPC server on the instance's unix socket. The agent is always the client.
//!
//! Until Confirm the role is told nothing; without it the process ends by itself. A call names the instance's UUID, so
//! that an agent that holds a stale socket path cannot command another instance.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_proto::pb::instance as pb;
use holdfast_proto::status::ErrorKind;
use holdfast_proto::{INSTANCE_PROTOCOL_MAX, INSTANCE_PROTOCOL_MIN};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen as nix_listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use pb::instance_server::InstanceServer;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::bound::Bound;
use super::lifecycle::DRAIN_DEADLINE;
use super::{Instance, Role, guests};
use crate::core::seats::Seats;
use crate::error::Error;

/// An instance that nobody confirms for this long ends: its creation may never have become durable.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(30);
/// How long the process waits, at its end, for clients to take their last answers.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Calls under way at once; a further one waits.
const CALLS_MAX: usize = 64;
/// Connections at once: one agent, its successor during an upgrade, and people looking.
const CALLERS_MAX: usize = 64;
const BACKLOG: i32 = 64;

/// Binds the control socket, mode 0600 from its first moment. A file left by an earlier process is replaced: call this
/// only with the instance's lock held.
///
/// # Errors
/// When the path is too long, or the directory refuses.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    UnixListener::from_std(bind_private(path)?).map_err(Error::os("listen on", path))
}

/// As [`listen`], for a caller without a runtime: the socket is non-blocking and listens.
///
/// # Errors
/// As of [`listen`].
pub fn bind_private(path: &Path) -> Result<std::os::unix::net::UnixListener, Error> {
    let os = |operation| move |e: nix::errno::Errno| Error::os(operation, path)(e.into());
    let address = UnixAddr::new(path).map_err(|_| {
        Error::invalid(
            "control socket path",
            "at most 107 bytes",
            format!("{} bytes", path.as_os_str().len()),
        )
    })?;
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::os("remove the old", path)(e)),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(os("make a socket for"))?;
    // On Linux the socket's own mode becomes the file's: there is no moment in which others can connect.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(os("set the mode of"))?;
    bind(fd.as_raw_fd(), &address).map_err(os("bind"))?;
    let backlog = Backlog::new(BACKLOG).map_err(os("listen on"))?;
    nix_listen(&fd, backlog).map_err(os("listen on"))?;
    Ok(fd.into())
}

/// A call on its way from a handler to the role.
enum Call {
    Configure(Box<pb::configure_request::Role>, oneshot::Sender<Result<(), Error>>),
    Drain(Duration, oneshot::Sender<pb::DrainReply>),
    CheckClients(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

struct Service {
    instance: Instance,
    calls: mpsc::Sender<Call>,
    confirmed: Arc<AtomicBool>,
    confirm: Arc<Notify>,
    configured: AtomicBool,
}

/// Serves until the instance ends.
///
/// # Errors
/// What ended it, [`Error::NotConfirmed`] among them.
pub async fn serve<R: Role>(
    instance: Instance,
    mut ended: mpsc::Receiver<Result<(), Error>>,
    listener: UnixListener,
    role: Rc<R>,
    confirm_within: Duration,
) -> Result<(), Error> {
    let (calls, mut incoming_calls) = mpsc::channel(CALLS_MAX);
    let (confirmed, confirm) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let service = Service {
        instance: instance.clone(),
        calls,
        confirmed: Arc::clone(&confirmed),
        confirm: Arc::clone(&confirm),
        configured: AtomicBool::new(false),
    };
    let dispatcher = tokio::task::spawn_local({
        let instance = instance.clone();
        async move {
            while let Some(call) = incoming_calls.recv().await {
                dispatch(call, &role, &instance);
            }
        }
    });
    let unconfirmed = tokio::task::spawn_local({
        let instance = instance.clone();
        async move {
            if tokio::time::timeout(confirm_within, confirm.notified()).await.is_err()
                && !confirmed.load(Ordering::Relaxed)
            {
                let name = instance.args.name.clone();
                instance.end(Err(Error::NotConfirmed { name, within: confirm_within }));
            }
        }
    });

    let (shut, shutting) = oneshot::channel::<()>();
    let (accepted, streams) = mpsc::channel(1);
    let seats = Seats::new(CALLERS_MAX);
    let listener = Bound::new(listener, instance.args.control.clone());
    let accepting = tokio::task::spawn_local(guests::accept(listener, seats, guests::SILENT_MAX, accepted));
    let builder = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(guests::PING_EVERY))
        .http2_keepalive_timeout(Some(guests::PING_EVERY));
    let mut server = std::pin::pin!(builder.serve_with_incoming_shutdown(
        InstanceServer::new(service),
        ReceiverStream::new(streams),
        async {
            let _ = shutting.await;
        },
    ));
    let result = tokio::select! {
        result = &mut server => result.map_err(Error::failed("serve the control socket")),
        result = ended.recv() => {
            instance.board.close();
            // Closed by now or not: the process ends.
            let _ = shut.send(());
            let _ = tokio::time::timeout(LAST_ANSWERS_WITHIN, server).await;
            result.unwrap_or(Ok(()))
        }
    };
    for task in [accepting, dispatcher, unconfirmed] {
        task.abort();
    }
    // The lock is still held: this is our socket file.
    let _ = std::fs::remove_file(&instance.args.control);
    result
}

fn dispatch<R: Role>(call: Call, role: &Rc<R>, instance: &Instance) {
    // A reply nobody waits for any more is dropped: the caller's connection is gone.
    match call {
        Call::Configure(config, reply) => {
            let done = role.configure(*config);
            tokio::task::spawn_local(async move {
                let _ = reply.send(done.await);
            });
        }
        Call::Drain(deadline, reply) => {
            let done = role.drain(deadline);
            tokio::task::spawn_local(async move {
                let _ = reply.send(done.await);
            });
        }
        Call::CheckClients(reply) => {
            role.check_clients();
            let _ = reply.send(());
        }
        Call::Stop(reply) => {
            let done = role.stop();
            let instance = instance.clone();
            tokio::task::spawn_local(async move {
                done.await;
                let _ = reply.send(());
                instance.end(Ok(()));
            });
        }
    }
}

impl Service {
    fn check_uuid(&self, uuid: &str) -> Result<(), Status> {
        if uuid.parse() == Ok(self.instance.args.uuid) {
            return Ok(());
        }
        let expected = format!("{} of {}", self.instance.args.uuid, self.instance.args.name);
        Err(Error::invalid("uuid", expected, uuid).status())
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Status> {
        let ending = |_| ErrorKind::Unreachable.status("the instance is ending");
        let (reply, answer) = oneshot::channel();
        self.calls.send(make(reply)).await.map_err(|_| ending(()))?;
        answer.await.map_err(|_| ending(()))
    }
}

type WatchStream = ReceiverStream<Result<pb::WatchItem, Status>>;

#[tonic::async_trait]
impl pb::instance_server::Instance for Service {
    type WatchStream = WatchStream;

    async fn hello(&self, request: Request<pb::HelloRequest>) -> Result<Response<pb::HelloReply>, Status> {
        let asked = request.into_inner();
        let common = asked.protocol_max.min(INSTANCE_PROTOCOL_MAX);
        let known = common >= asked.protocol_min && common >= INSTANCE_PROTOCOL_MIN;
        let instance = &self.instance;
        Ok(Response::new(pb::HelloReply {
            protocol: if known { common } else { 0 },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uuid: instance.args.uuid.to_string(),
            name: instance.args.name.clone(),
            kind: instance.kind.to_owned(),
            boot_id: instance.boot.to_string(),
            pid: nix::unistd::getpid().as_raw(),
            start_time_ticks: instance.start_time_ticks,
            confirmed: self.confirmed.load(Ordering::Relaxed),
            configured: self.configured.load(Ordering::Relaxed),
        }))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::ConfirmReply>, Status> {
        self.check_uuid(&request.into_inner().uuid)?;
        if !self.confirmed.swap(true, Ordering::Relaxed) {
            tracing::info!("confirmed");
            self.instance.board.update(|status| status.phase = "starting".to_owned());
            self.confirm.notify_one();
        }
        Ok(Response::new(pb::ConfirmReply {}))
    }

    async fn configure(
        &self,
        request: Request<pb::ConfigureRequest>,
    ) -> Result<Response<pb::ConfigureReply>, Status> {
        let request = request.into_inner();
        self.check_uuid(&request.uuid)?;
        if !self.confirmed.load(Ordering::Relaxed) {
            let reason = "the instance is not confirmed".to_owned();
            return Err(Error::Refused { operation: "configure", reason }.status());
        }
        let role = request.role.ok_or_else(|| Error::invalid("role", self.instance.kind, "none").status())?;
        self.instance.board.configured();
        self.call(|reply| Call::Configure(Box::new(role), reply)).await?.map_err(|e| e.status())?;
        self.configured.store(true, Ordering::Relaxed);
        Ok(Response::new(pb::ConfigureReply {}))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let items = self.instance.board.watch().ok_or_else(|| {
            let reason = "too many watchers, or the instance is ending".to_owned();
            Error::Refused { operation: "watch", reason }.status()
        })?;
        Ok(Response::new(ReceiverStream::new(items)))
    }

    async fn registry_result(
        &self,
        request: Request<pb::RegistryResultRequest>,
    ) -> Result<Response<pb::RegistryResultReply>, Status> {
        let request = request.into_inner();
        self.check_uuid(&request.uuid)?;
        let outcome =
            request.outcome.ok_or_else(|| Error::invalid("outcome", "one of three", "none").status())?;
        if self.instance.board.answer(request.ask_id, outcome) {
            Ok(Response::new(pb::RegistryResultReply {}))
        } else {
            Err(Error::NotFound { what: format!("ask {}", request.ask_id) }.status())
        }
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        let deadline = match request.into_inner().deadline_ms {
            0 => DRAIN_DEADLINE,
            ms => Duration::from_millis(u64::from(ms)),
        };
        self.instance.board.update(|status| status.phase = "stopping".to_owned());
        self.call(|reply| Call::Drain(deadline, reply)).await.map(Response::new)
    }

    async fn check_clients(
        &self,
        _: Request<pb::CheckClientsRequest>,
    ) -> Result<Response<pb::CheckClientsReply>, Status> {
        self.call(Call::CheckClients).await?;
        Ok(Response::new(pb::CheckClientsReply {}))
    }

    async fn stop(&self, _: Request<pb::StopRequest>) -> Result<Response<pb::StopReply>, Status> {
        self.instance.board.update(|status| status.phase = "stopping".to_owned());
        self.call(Call::Stop).await?;
        Ok(Response::new(pb::StopReply {}))
    }
}
