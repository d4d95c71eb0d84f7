//! The server over a real socket with a real node that has nothing to run.

use std::path::{Path, PathBuf};

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::instances_client::InstancesClient;
use holdfast_proto::pb::agent::node_client::NodeClient;
use holdfast_proto::pb::agent::volumes_client::VolumesClient;
use holdfast_proto::pb::agent::watch_event::Event;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha;

use super::*;
use crate::node::{self, NodeConfig};

struct Rig {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    node: NodeHandle,
    server: RpcServer,
}

impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let below = |name: &str| dir.path().join(name);
        std::fs::create_dir(below("run")).unwrap();
        let mut config = NodeConfig::new("node-a".parse().unwrap(), below("data"), below("run"));
        // Nothing is spawned here; any small program will do for the copy that is kept.
        config.binary = Some(PathBuf::from("/bin/true"));
        std::fs::create_dir(&config.data_dir).unwrap();
        let node = node::start(config).await.unwrap();
        let socket = below("agent.sock");
        let server = serve(node.clone(), Listener::bind(&socket).unwrap()).await.unwrap();
        Self { socket, node, server, _dir: dir }
    }
    async fn channel(&self) -> Channel {
        connect(&self.socket).await
    }
}

async fn connect(socket: &Path) -> Channel {
    Endpoint::try_from(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap()
}

fn create(name: &str) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest { name: name.into(), size_bytes: 1 << 20, replicas: 1, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_listed_watched_and_refused() {
    let rig = Rig::start().await;
    let mut volumes = VolumesClient::new(rig.channel().await);
    let mut instances = InstancesClient::new(rig.channel().await);
    let mut events = instances.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap();
    let Some(Event::Snapshot(all)) = first.event else { panic!("{first:?}") };
    assert!(all.volumes.is_empty());

    let made = volumes.create(create("a")).await.unwrap().into_inner();
    assert_eq!((made.name.as_str(), made.state.as_str()), ("a", "detached"));
    let next = events.message().await.unwrap().unwrap();
    assert_eq!(next.revision, first.revision + 1);
    let Some(Event::VolumeChanged(seen)) = next.event else { panic!("{next:?}") };
    assert_eq!(seen.name, "a");

    assert_eq!(volumes.create(create("a")).await.unwrap_err().code(), Code::AlreadyExists);
    let missing = pb::GetVolumeRequest { name: "b".into() };
    assert_eq!(volumes.get(missing).await.unwrap_err().code(), Code::NotFound);
    let listed = volumes.list(pb::ListVolumesRequest {}).await.unwrap().into_inner();
    assert!(listed.revision >= next.revision);
    assert_eq!(listed.volumes.len(), 1);
    let none = pb::GetInstanceRequest { name: "x".into() };
    assert_eq!(instances.get(none).await.unwrap_err().code(), Code::NotFound);
    let replicas =
        NodeClient::new(rig.channel().await).list_replicas(pb::ListReplicasRequest {}).await.unwrap();
    assert_eq!(replicas.into_inner().replicas.len(), 1);

    // A stop ends the watch too, although its client goes on reading, and takes the socket away.
    rig.node.shutdown(false).await.unwrap();
    rig.server.stop().await;
    while let Ok(Some(_)) = events.message().await {}
    assert!(!rig.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reflection_and_calls_of_nothing_are_answered() {
    let rig = Rig::start().await;
    let mut health = HealthClient::new(rig.channel().await);
    for service in ["", "holdfast.agent.v1.Instances", "holdfast.agent.v1.Volumes", "holdfast.agent.v1.Node"]
    {
        let reply = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(
            reply.status(),
            tonic_health::pb::health_check_response::ServingStatus::Serving,
            "{service}"
        );
    }
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(rig.channel().await)
        .server_reflection_info(tokio_stream::iter([question]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["holdfast.agent.v1.Volumes", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("instance.v1")), "{names:?}");
    // Of the older protocol, which many clients speak, it is the same.
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = v1alpha::server_reflection_client::ServerReflectionClient::new(rig.channel().await)
        .server_reflection_info(tokio_stream::iter([question]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(older) = answer else {
        panic!("{answer:?}")
    };
    assert!(older.service.into_iter().map(|service| service.name).eq(names));
    // An instance's contract is not an agent's.
    let mut wrong = holdfast_proto::pb::instance::instance_client::InstanceClient::new(rig.channel().await);
    let hello = holdfast_proto::pb::instance::HelloRequest { protocol_min: 1, protocol_max: 1 };
    assert_eq!(wrong.hello(hello).await.unwrap_err().code(), Code::Unimplemented);
    rig.node.shutdown(false).await.unwrap();
    rig.server.stop().await;
}
