//! The control server against a real client over a real socket, with a role that records what it is told.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt as _;

use holdfast_proto::status::ErrorKind;
use pb::instance_client::InstanceClient;
use pb::watch_item::Item;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default, Clone)]
struct Recorder(Rc<RefCell<Vec<String>>>);

impl Role for Recorder {
    fn configure(
        &self,
        config: pb::configure_request::Role,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        let said = match config {
            pb::configure_request::Role::Replica(c) => Ok(format!("configure {}", c.volume_name)),
            pb::configure_request::Role::Engine(_) => Err(Error::invalid("role", "replica", "engine")),
        };
        let calls = Rc::clone(&self.0);
        async move {
            calls.borrow_mut().push(said?);
            Ok(())
        }
    }
    fn drain(&self, deadline: Duration) -> impl Future<Output = pb::DrainReply> + 'static {
        self.0.borrow_mut().push(format!("drain {deadline:?}"));
        async { pb::DrainReply { clean: true, reason: String::new() } }
    }
    fn stop(&self) -> impl Future<Output = ()> + 'static {
        self.0.borrow_mut().push("stop".to_owned());
        async {}
    }
}

struct Fixture {
    instance: Instance,
    role: Recorder,
    served: tokio::task::JoinHandle<Result<(), Error>>,
    tmp: tempfile::TempDir,
}

fn start(confirm_within: Duration) -> Fixture {
    let tmp = tempfile::tempdir().unwrap();
    let args = InstanceArgs {
        name: "demo-r1".to_owned(),
        uuid: InstanceUuid::random(),
        instance_dir: tmp.path().to_owned(),
        control: tmp.path().join("control"),
    };
    let (instance, ended) = Instance::new(args, "replica").unwrap();
    let role = Recorder::default();
    let listener = server::listen(&instance.args.control).unwrap();
    let served = tokio::task::spawn_local(server::serve(
        instance.clone(),
        ended,
        listener,
        Rc::new(role.clone()),
        confirm_within,
    ));
    Fixture { instance, role, served, tmp }
}

impl Fixture {
    async fn client(&self) -> InstanceClient<Channel> {
        let uri = format!("unix:{}", self.instance.args.control.display());
        let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
        InstanceClient::new(channel)
    }
    fn uuid(&self) -> String {
        self.instance.args.uuid.to_string()
    }
    async fn end(self) -> Result<(), Error> {
        tokio::time::timeout(PATIENCE, self.served).await.unwrap().unwrap()
    }
}

fn configuration(uuid: String) -> pb::ConfigureRequest {
    let config = pb::ReplicaConfig { volume_name: "demo".to_owned(), ..Default::default() };
    pb::ConfigureRequest { uuid, role: Some(pb::configure_request::Role::Replica(config)) }
}

#[test]
fn o16_without_confirm_it_ends_by_itself_and_was_told_nothing() {
    tokio_uring::start(async {
        let fixture = start(Duration::from_millis(50));
        let role = fixture.role.clone();
        let error = fixture.end().await.unwrap_err();
        assert!(matches!(error, Error::NotConfirmed { .. }), "{error}");
        assert_eq!(error.exit_code(), crate::error::EXIT_NOT_CONFIRMED);
        assert!(role.0.borrow().is_empty());
    });
}

#[test]
fn hello_confirm_configure_watch_drain_stop() {
    tokio_uring::start(async {
        let fixture = start(PATIENCE);
        let mode = std::fs::metadata(&fixture.instance.args.control).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = fixture.client().await;
        let uuid = fixture.uuid();

        let hello = client.hello(pb::HelloRequest { protocol_min: 1, protocol_max: 7 }).await.unwrap();
        let hello = hello.into_inner();
        assert_eq!((hello.protocol, hello.kind.as_str(), hello.confirmed), (1, "replica", false));
        assert_eq!((hello.uuid.as_str(), hello.name.as_str()), (uuid.as_str(), "demo-r1"));
        let future = client.hello(pb::HelloRequest { protocol_min: 2, protocol_max: 7 }).await.unwrap();
        assert_eq!(future.into_inner().protocol, 0);

        let early = client.configure(configuration(uuid.clone())).await.unwrap_err();
        assert_eq!(ErrorKind::from_code(early.code()), ErrorKind::Refused);
        let foreign = InstanceUuid::random().to_string();
        let wrong = client.confirm(pb::ConfirmRequest { uuid: foreign }).await.unwrap_err();
        assert_eq!(ErrorKind::from_code(wrong.code()), ErrorKind::Invalid);

        for _repeated in 0..2 {
            client.confirm(pb::ConfirmRequest { uuid: uuid.clone() }).await.unwrap();
            client.configure(configuration(uuid.clone())).await.unwrap();
        }
        let mut items = client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
        let Some(Item::Status(status)) = items.message().await.unwrap().unwrap().item else {
            panic!("expected the status first")
        };
        assert_eq!(status.phase, "starting");
        fixture.instance.board.update(|s| s.phase = "running".to_owned());
        let changed = items.message().await.unwrap().unwrap().item;
        assert!(matches!(changed, Some(Item::Status(s)) if s.phase == "running"));

        let outcome = fixture.instance.board.ask_registry(pb::RegistryCas::default());
        let Some(Item::Ask(ask)) = items.message().await.unwrap().unwrap().item else {
            panic!("expected the ask")
        };
        let missing = pb::registry_result_request::Outcome::Missing(Default::default());
        let result = pb::RegistryResultRequest { uuid, ask_id: ask.ask_id, outcome: Some(missing.clone()) };
        client.registry_result(result).await.unwrap();
        assert_eq!(outcome.await.unwrap(), missing);

        assert!(client.drain(pb::DrainRequest { deadline_ms: 7 }).await.unwrap().into_inner().clean);
        client.stop(pb::StopRequest {}).await.unwrap();
        // The stream ends, by itself or with the connection.
        while let Ok(Some(_)) = items.message().await {}
        let told = fixture.role.0.borrow().clone();
        assert_eq!(told, ["configure demo", "configure demo", "drain 7ms", "stop"]);
        let control = fixture.instance.args.control.clone();
        fixture.end().await.unwrap();
        assert!(!control.exists());
    });
}

#[test]
fn garbage_on_the_control_socket_ends_nothing() {
    tokio_uring::start(async {
        let fixture = start(PATIENCE);
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 3]] {
            let mut stream = UnixStream::connect(&fixture.instance.args.control).await.unwrap();
            // It may be closed while we write.
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
            let mut said = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap();
        }
        let mut client = fixture.client().await;
        client.hello(pb::HelloRequest { protocol_min: 1, protocol_max: 1 }).await.unwrap();
    });
}

#[test]
fn a_path_too_long_for_a_socket_is_named_as_such() {
    tokio_uring::start(async {
        let tmp = tempfile::tempdir().unwrap();
        let error = server::listen(&tmp.path().join("x".repeat(120))).unwrap_err();
        assert!(error.to_string().contains("at most 107 bytes"), "{error}");
    });
}

#[test]
fn a_stale_socket_is_replaced() {
    tokio_uring::start(async {
        let fixture = start(PATIENCE);
        let path = fixture.tmp.path().join("stale");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _listener = server::listen(&path).unwrap();
        UnixStream::connect(&path).await.unwrap();
    });
}
