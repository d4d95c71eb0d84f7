//! gRPC to an agent or an instance, for tests of the protocols themselves. Each call blocks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::pb::agent::WatchEvent;
use holdfast_proto::pb::agent::instances_client::InstancesClient;
use holdfast_proto::pb::instance::instance_client::InstanceClient;
use holdfast_proto::pb::instance::{ConfirmRequest, HelloReply, HelloRequest};
use holdfast_proto::pb::{agent, instance};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(30);
/// Everything is told again every minute.
const EVENT_WITHIN: Duration = Duration::from_secs(90);

/// A connection to a unix socket that speaks gRPC.
#[derive(Debug)]
pub struct Control {
    runtime: Runtime,
    channel: Channel,
}

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers.
    ///
    /// # Panics
    /// When the system gives no runtime.
    pub fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
        let channel = runtime.block_on(endpoint.connect_with_connector(connector))?;
        Ok(Self { runtime, channel })
    }

    /// Hello of an agent that speaks these versions.
    ///
    /// # Errors
    /// What the instance answered.
    pub fn hello(&self, protocol_min: u32, protocol_max: u32) -> Result<HelloReply, Status> {
        let mut client = InstanceClient::new(self.channel.clone());
        let request = HelloRequest { protocol_min, protocol_max };
        self.runtime.block_on(client.hello(request)).map(tonic::Response::into_inner)
    }

    /// Confirm, for an instance that may be another one.
    ///
    /// # Errors
    /// What the instance answered.
    pub fn confirm(&self, uuid: &str) -> Result<(), Status> {
        let mut client = InstanceClient::new(self.channel.clone());
        self.runtime.block_on(client.confirm(ConfirmRequest { uuid: uuid.to_owned() })).map(drop)
    }

    /// Configure with whatever.
    ///
    /// # Errors
    /// What the instance answered.
    pub fn configure(&self, request: instance::ConfigureRequest) -> Result<(), Status> {
        let mut client = InstanceClient::new(self.channel.clone());
        self.runtime.block_on(client.configure(request)).map(drop)
    }

    /// The answer to a registry question that was perhaps never asked.
    ///
    /// # Errors
    /// What the instance answered.
    pub fn registry_result(&self, request: instance::RegistryResultRequest) -> Result<(), Status> {
        let mut client = InstanceClient::new(self.channel.clone());
        self.runtime.block_on(client.registry_result(request)).map(drop)
    }

    /// The agent's list of instances.
    ///
    /// # Errors
    /// What the agent answered.
    pub fn instances(&self) -> Result<agent::ListInstancesReply, Status> {
        let mut client = InstancesClient::new(self.channel.clone());
        let request = agent::ListInstancesRequest {};
        self.runtime.block_on(client.list(request)).map(tonic::Response::into_inner)
    }

    /// The health of a service, or of the whole agent (empty): whether it serves.
    ///
    /// # Errors
    /// What the agent answered.
    pub fn serves(&self, service: &str) -> Result<bool, Status> {
        use tonic_health::pb::health_check_response::ServingStatus;
        let mut client = tonic_health::pb::health_client::HealthClient::new(self.channel.clone());
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let reply = self.runtime.block_on(client.check(request))?.into_inner();
        Ok(reply.status() == ServingStatus::Serving)
    }

    /// The services that reflection lists.
    ///
    /// # Errors
    /// What the agent answered.
    pub fn reflected_services(&self) -> Result<Vec<String>, Status> {
        use tonic_reflection::pb::v1::ServerReflectionRequest;
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        self.runtime.block_on(async {
            let stream = client.server_reflection_info(tokio_stream::once(request)).await?;
            match stream.into_inner().message().await?.and_then(|m| m.message_response) {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    Ok(list.service.into_iter().map(|s| s.name).collect())
                }
                other => Err(Status::internal(format!("not a list of services: {other:?}"))),
            }
        })
    }

    /// Subscribes to the agent's changes.
    ///
    /// # Errors
    /// What the agent answered.
    pub fn watch(&self) -> Result<Watch<'_>, Status> {
        // A watch has no end, so it has no deadline as a whole either.
        let mut client = InstancesClient::new(self.channel.clone());
        let mut request = tonic::Request::new(agent::WatchRequest {});
        request.set_timeout(Duration::from_secs(3600));
        let stream = self.runtime.block_on(client.watch(request))?.into_inner();
        Ok(Watch { runtime: &self.runtime, stream })
    }
}

/// A subscription to the agent's changes.
#[derive(Debug)]
pub struct Watch<'a> {
    runtime: &'a Runtime,
    stream: tonic::Streaming<WatchEvent>,
}

impl Watch<'_> {
    /// The next event; none where the stream ended.
    ///
    /// # Panics
    /// When none comes in time, or the stream breaks.
    pub fn next_event(&mut self) -> Option<WatchEvent> {
        self.runtime.block_on(async {
            tokio::time::timeout(EVENT_WITHIN, self.stream.message())
                .await
                .expect("an event within the deadline")
                .expect("a stream that is not broken")
        })
    }
}

/// Every socket below `dir`.
#[must_use]
pub fn sockets(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_socket() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// The control sockets below `dir`, with what each one says it is.
#[must_use]
pub fn instance_sockets(dir: &Path) -> Vec<(PathBuf, HelloReply)> {
    let hello = |path: PathBuf| {
        let reply = Control::connect(&path).ok()?.hello(1, 1).ok()?;
        Some((path, reply))
    };
    sockets(dir).into_iter().filter_map(hello).collect()
}
