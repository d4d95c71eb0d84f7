//! The agent's gRPC server: converts, calls the node, converts. No rule of its own lives here.

mod claims;
mod instances;
mod listener;
mod logs;
mod node;
mod orphans;
mod registry;
mod router;
mod status;
mod trash;
mod volumes;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_dataplane::control::guests;
use holdfast_dataplane::core::seats::Seats;
use holdfast_proto::pb::DESCRIPTORS;
use holdfast_proto::pb::agent::claims_server::ClaimsServer;
use holdfast_proto::pb::agent::instances_server::InstancesServer;
use holdfast_proto::pb::agent::node_server::NodeServer;
use holdfast_proto::pb::agent::orphans_server::OrphansServer;
use holdfast_proto::pb::agent::registry_server::RegistryServer;
use holdfast_proto::pb::agent::trash_server::TrashServer;
use holdfast_proto::pb::agent::volumes_server::VolumesServer;
use tokio::sync::{mpsc, watch as stop_watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::NamedService;
use tonic::transport::Server;

use crate::complaint::Complaint;
use crate::node::NodeHandle;

pub use listener::Listener;

/// A shutdown waits this long for answers in flight; a client that never reads must not hold it up.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Connections at once: beyond the watchers and commands of a busy node.
const CALLERS_MAX: usize = 256;
/// Of these, one user's: members of the group keep root and the agent's own user out no more than each other.
const USER_CALLERS_MAX: usize = 192;

/// Becomes true when the server is to end.
type Stopped = stop_watch::Receiver<bool>;

/// What every service answers from; one file per service.
#[derive(Debug, Clone)]
struct Service {
    node: NodeHandle,
    stopped: Stopped,
}

/// Returns when the server is to end.
async fn stop_asked(mut stopped: Stopped) {
    // An error means that the sender is gone: the same as a stop.
    drop(stopped.wait_for(|stop| *stop).await);
}

/// A running server.
#[derive(Debug)]
pub struct RpcServer {
    stop: stop_watch::Sender<bool>,
    // None once it has ended by itself.
    task: Option<tokio::task::JoinHandle<Result<(), tonic::transport::Error>>>,
    accepting: tokio::task::JoinHandle<()>,
    // Held so that the socket is removed, and its lock released, only after the last answer.
    listener: listener::Guard,
}

/// Serves every service on the listener until [`RpcServer::stop`].
///
/// # Errors
/// When the runtime cannot take the socket.
pub async fn serve(node: NodeHandle, listener: Listener) -> Result<RpcServer, Complaint> {
    let (stop, stopped) = stop_watch::channel(false);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<InstancesServer<Service>>().await;
    health_reporter.set_serving::<VolumesServer<Service>>().await;
    health_reporter.set_serving::<NodeServer<Service>>().await;
    health_reporter.set_serving::<OrphansServer<Service>>().await;
    health_reporter.set_serving::<ClaimsServer<Service>>().await;
    health_reporter.set_serving::<TrashServer<Service>>().await;
    health_reporter.set_serving::<RegistryServer<Service>>().await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The descriptors hold the instances' contract too, which is not served here.
            .with_service_name(InstancesServer::<Service>::NAME)
            .with_service_name(VolumesServer::<Service>::NAME)
            .with_service_name(NodeServer::<Service>::NAME)
            .with_service_name(OrphansServer::<Service>::NAME)
            .with_service_name(ClaimsServer::<Service>::NAME)
            .with_service_name(TrashServer::<Service>::NAME)
            .with_service_name(RegistryServer::<Service>::NAME)
            .with_service_name("grpc.health.v1.Health")
    };
    let problem = |error| Complaint::failed(format!("failed to describe the services: {error}"));
    let reflection = described().build_v1().map_err(problem)?;
    // Many clients know only this one.
    let reflection_alpha = described().build_v1alpha().map_err(problem)?;
    let (peers, guard) = listener.into_parts()?;
    let service = Service { node, stopped: stopped.clone() };
    let router = router::Router::default()
        .with(health)
        .with(reflection)
        .with(reflection_alpha)
        .with(InstancesServer::new(service.clone()))
        .with(VolumesServer::new(service.clone()))
        .with(OrphansServer::new(service.clone()))
        .with(ClaimsServer::new(service.clone()))
        .with(TrashServer::new(service.clone()))
        .with(RegistryServer::new(service.clone()))
        .with(NodeServer::new(service));
    let seats = Seats::with_source_max(CALLERS_MAX, USER_CALLERS_MAX);
    let (accepted, callers) = mpsc::channel(1);
    let accepting = tokio::spawn(guests::accept(peers, seats, guests::SILENT_MAX, accepted));
    let builder = Server::builder()
        .trace_fn(span)
        .http2_keepalive_interval(Some(guests::PING_EVERY))
        .http2_keepalive_timeout(Some(guests::PING_EVERY));
    let task = tokio::spawn(builder.serve_with_incoming_shutdown(
        router,
        ReceiverStream::new(callers),
        stop_asked(stopped),
    ));
    Ok(RpcServer { stop, task: Some(task), accepting, listener: guard })
}

impl RpcServer {
    /// Takes no more calls, ends all streams, and waits a moment for answers in flight.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(mut task) = self.task.take() {
            match tokio::time::timeout(LAST_ANSWERS, &mut task).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => tracing::warn!(%error, "the gRPC server ended badly"),
                Ok(Err(error)) => tracing::error!(%error, "the gRPC server failed"),
                Err(_) => {
                    task.abort();
                    tracing::debug!("gave up on clients that do not read their answers");
                }
            }
        }
        self.accepting.abort();
        // Cancelled is what was asked for; the socket is closed by then.
        let _ = self.accepting.await;
        drop(self.listener);
    }
    /// Returns when the server has ended by itself, which it should not. Cancel safe.
    pub async fn failed(&mut self) -> String {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let why = match task.await {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.task = None;
        why
    }
}

fn span(request: &tonic::codegen::http::Request<()>) -> tracing::Span {
    static REQUESTS: AtomicU64 = AtomicU64::new(1);
    let request_id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    tracing::info_span!("rpc", method = request.uri().path(), request_id)
}

#[cfg(test)]
mod tests;
