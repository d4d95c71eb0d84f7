//! A whole replica but for the process around it: the agent's calls over its socket, engines over its data port.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_proto::ids::{BootId, Epoch, Generation, InstanceUuid, Lineage, ProcessUuid, ReplicaId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{ReplicaSet, View};
use pb::instance_client::InstanceClient;
use pb::watch_item::Item;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Channel, Endpoint};

use super::config::tests::sample;
use super::test_engine::{PATIENCE, TestEngine};
use super::{ReplicaConfig, ReplicaRole};
use crate::control::handshake::{ConnectError, Connected, VolumeKey, connect, nonce};
use crate::control::{Instance, InstanceArgs, server};
use crate::error::Error;
use crate::layout::read_label;
use crate::tags::TagWriter;
use crate::wire::handshake::{
    About, Challenge, HandshakeError, Hello, MessageKind, PREFIX_BYTES, Prefix, Proof, RefusalKind, Refused,
    Role, Terms, Welcome, frame,
};
use crate::wire::payload::{Adopt, ViewUpdate};
use crate::wire::{FEATURES_KNOWN, Kind, Status, VERSION_MAX, VERSION_MIN};

struct Replica {
    thread: Option<JoinHandle<Result<(), Error>>>,
    client: InstanceClient<Channel>,
    uuid: InstanceUuid,
    config: pb::ReplicaConfig,
}

/// A configuration with ports of its own: tests run side by side. Below the kernel's ephemeral ports.
fn config(dir: &Path) -> pb::ReplicaConfig {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other test processes on this machine choose their own by their pid.
    let base = 12_000 + (std::process::id() % 100) * 150;
    let port_min = base + NEXT.fetch_add(10, Ordering::Relaxed);
    let data_dir = dir.join("demo.r2").display().to_string();
    pb::ReplicaConfig { data_dir, port_min, port_max: port_min + 9, port_preferred: 0, ..sample() }
}

impl Replica {
    /// Runs one on a thread of its own and confirms it.
    async fn start(dir: &Path, config: pb::ReplicaConfig) -> Self {
        let uuid = InstanceUuid::random();
        let args = InstanceArgs {
            name: "demo-r2".to_owned(),
            uuid,
            instance_dir: dir.to_owned(),
            control: dir.join("control"),
        };
        let control = args.control.clone();
        let (ready, started) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            tokio_uring::start(async {
                let (instance, ended) = Instance::new(args, "replica").unwrap();
                let listener = server::listen(&instance.args.control).unwrap();
                ready.send(()).unwrap();
                let role = Rc::new(ReplicaRole::start(&instance));
                server::serve(instance, ended, listener, role, PATIENCE).await
            })
        });
        started.await.unwrap();
        let uri = format!("unix:{}", control.display());
        let mut client = InstanceClient::new(Endpoint::from_shared(uri).unwrap().connect().await.unwrap());
        client.confirm(pb::ConfirmRequest { uuid: uuid.to_string() }).await.unwrap();
        Self { thread: Some(thread), client, uuid, config }
    }

    async fn configure(&mut self) -> Result<(), tonic::Status> {
        let role = Some(pb::configure_request::Role::Replica(self.config.clone()));
        let request = pb::ConfigureRequest { uuid: self.uuid.to_string(), role };
        self.client.configure(request).await.map(drop)
    }

    async fn started(dir: &Path, config: pb::ReplicaConfig) -> Self {
        let mut replica = Self::start(dir, config).await;
        replica.configure().await.unwrap();
        replica
    }

    /// Watches until the status is as wanted.
    async fn until(&mut self, wanted: impl Fn(&pb::InstanceStatus) -> bool) -> pb::InstanceStatus {
        let watch = async {
            let mut items = self.client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
            loop {
                match items.message().await.unwrap().unwrap().item {
                    Some(Item::Status(status)) if wanted(&status) => return status,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, watch).await.unwrap()
    }

    async fn address(&mut self) -> SocketAddr {
        let status = self.until(|s| s.replica.is_some()).await;
        status.replica.unwrap().address.parse().unwrap()
    }

    fn key(&self) -> VolumeKey {
        VolumeKey::try_from(self.config.key.as_ref().unwrap()).unwrap()
    }

    fn hello(&self, generation: u64, engine: InstanceUuid) -> Hello {
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES_KNOWN,
            payload_bytes_max: 262_144,
            volume: self.config.volume_id.parse().unwrap(),
            replica: ReplicaId(2),
            key_id: 0,
            role: Role::Engine,
            lineage: self.config.lineage.parse().unwrap(),
            generation: Generation(generation),
            engine,
            epoch: Epoch(0),
            process: ProcessUuid::random(),
            boot: BootId::random(),
            nonce: [0; 32],
        }
    }

    async fn connect(&mut self, hello: Hello) -> Result<(TestEngine, Welcome), ConnectError> {
        let address = self.address().await;
        let generation = hello.generation.0;
        let newest = hello.version_max.min(VERSION_MAX);
        let boot = crate::control::lifecycle::boot_id().unwrap();
        let Connected { socket, terms, welcome, about } =
            connect(address, &self.key(), hello, PATIENCE).await?;
        assert_eq!((terms.version, about.boot), (newest, boot));
        Ok((TestEngine::new(socket.into(), generation), welcome))
    }

    async fn refused(&mut self, hello: Hello) -> Refused {
        match self.connect(hello).await {
            Err(ConnectError::Refused(refused)) => refused,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    async fn stop(mut self) -> Result<(), Error> {
        self.client.stop(pb::StopRequest {}).await.unwrap();
        // Beside this runtime, on which the client takes the server's last frames.
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap()
    }
}

/// The engine's calls block: they run beside this runtime.
async fn with<T: Send + 'static>(
    engine: TestEngine,
    calls: impl FnOnce(&mut TestEngine) -> T + Send + 'static,
) -> (TestEngine, T) {
    tokio::task::spawn_blocking(move || {
        let mut engine = engine;
        let result = calls(&mut engine);
        (engine, result)
    })
    .await
    .unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn tmp() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().to_owned();
    (tmp, path)
}

fn update(replica: &Replica, generation: u64, epoch: u64, members: &[u32], syncing: bool) -> Vec<u8> {
    ViewUpdate {
        view: View {
            generation: Generation(generation),
            epoch: Epoch(epoch),
            members: ReplicaSet::checked(members.iter().copied()).unwrap(),
            needs_registry: false,
        },
        configured: ReplicaSet::checked([1, 2, 3]).unwrap(),
        lineage: replica.config.lineage.parse().unwrap(),
        incarnation: replica.config.incarnation.parse().unwrap(),
        revision: 5,
        syncing,
        repaired: false,
        keep: ReplicaSet::new(),
        refill: ReplicaSet::new(),
        rebased: false,
        adopt: Adopt::default(),
        new_history: false,
        stamp: None,
    }
    .encode(true)
}

#[test]
fn replica_listens_at_a_new_address_and_keeps_its_engine() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let first = replica.address().await;
        let hello = replica.hello(1, InstanceUuid::random());
        let (engine, _) = replica.connect(hello).await.unwrap();
        let view = update(&replica, 1, 1, &[1, 2], false);

        // An address that is not this node's: the old one stays.
        replica.config.bind = "192.0.2.1".to_owned();
        assert!(replica.configure().await.unwrap_err().message().contains("192.0.2.1"));
        assert_eq!(replica.address().await, first);
        drop(std::net::TcpStream::connect(first).unwrap());

        replica.config.bind = "127.0.0.2".to_owned();
        replica.configure().await.unwrap();
        let moved =
            replica.until(|s| s.replica.as_ref().is_some_and(|r| r.address != first.to_string())).await;
        let second: SocketAddr = moved.replica.unwrap().address.parse().unwrap();
        assert_eq!((second.ip(), second.port()), ("127.0.0.2".parse().unwrap(), first.port()));
        drop(std::net::TcpStream::connect(second).unwrap());
        let refused = std::net::TcpStream::connect(first).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

        // The engine that is connected goes on; another one is taken at the new address.
        let (engine, ()) = with(engine, move |engine| {
            let header = engine.header(Kind::PersistView, 0, 0);
            assert_eq!(engine.call(header, &view).0.status, Status::Ok);
            assert_eq!(engine.write(4096, &[7; 4096], 0), Status::Ok);
        })
        .await;
        let hello = replica.hello(2, InstanceUuid::random());
        let (next, _) = replica.connect(hello).await.unwrap();
        drop((engine, next));

        // What engines are told may change alone.
        replica.config.advertise = "192.0.2.7".to_owned();
        replica.configure().await.unwrap();
        replica.until(|s| s.replica.as_ref().is_some_and(|r| r.address.starts_with("192.0.2.7:"))).await;
        replica.stop().await.unwrap();
    });
}

#[test]
fn from_creation_to_a_clean_end() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        replica.configure().await.unwrap();
        let status = replica.until(|s| s.phase == "running").await.replica.unwrap();
        assert_eq!((status.mode.as_str(), status.generation), ("open", 0));
        let data_dir = PathBuf::from(&replica.config.data_dir);

        let first = InstanceUuid::random();
        let hello = replica.hello(1, first);
        let (engine, welcome) = replica.connect(hello).await.unwrap();
        assert_eq!((welcome.size_bytes, welcome.syncing, welcome.cache_lost), (1 << 20, false, false));
        assert_eq!(welcome.view.members, ReplicaSet::checked([1, 2, 3]).unwrap());
        // The promise is on the disk, and so is the mark that writes may follow.
        let meta = read_label(&data_dir).unwrap();
        assert_eq!((meta.promised, meta.promised_to, meta.unflushed), (Generation(1), first, true));

        let view = update(&replica, 1, 1, &[1, 2], false);
        let (engine, ()) = with(engine, move |engine| {
            let header = engine.header(Kind::PersistView, 0, 0);
            assert_eq!(engine.call(header, &view).0.status, Status::Ok);
            let header = engine.header(Kind::PersistView, 0, 0);
            let mut newer = TagWriter::new();
            newer.put(999, false, b"a newer field");
            let newer = [view.as_slice(), &newer.into_bytes()].concat();
            assert_eq!(engine.call(header, &newer).0.status, Status::Ok);
            assert_eq!(engine.write(4096, &[7; 4096], 0), Status::Ok);
        })
        .await;
        let meta = read_label(&data_dir).unwrap();
        assert_eq!((meta.view.order(), meta.revision), ((Generation(1), Epoch(1)), 5));
        replica.until(|s| s.replica.as_ref().is_some_and(|r| r.epoch == 1)).await;

        // The same engine again: a reconnect. The older connection ends.
        let hello = replica.hello(1, first);
        let (again, welcome) = replica.connect(hello).await.unwrap();
        assert_eq!(welcome.view.epoch, Epoch(1));
        with(engine, |engine| assert!(engine.until_closed().is_empty())).await;
        let (again, ()) = with(again, |engine| assert_eq!(engine.read(4096, 4096), vec![7; 4096])).await;

        // A newer engine; the older one is told who took over.
        let second = InstanceUuid::random();
        let hello = replica.hello(2, second);
        let (engine, _) = replica.connect(hello).await.unwrap();
        with(again, |engine| assert!(engine.until_closed().is_empty())).await;
        let hello = replica.hello(1, first);
        let refused = replica.refused(hello).await;
        assert_eq!(
            (refused.kind, refused.generation, refused.engine),
            (RefusalKind::Fenced, Generation(2), second)
        );
        let hello = replica.hello(2, first);
        assert_eq!(replica.refused(hello).await.kind, RefusalKind::Fenced);
        let hello = Hello { lineage: Lineage::random(), ..replica.hello(9, first) };
        assert_eq!(replica.refused(hello).await.kind, RefusalKind::Identity);

        let (engine, ()) =
            with(engine, |engine| assert_eq!(engine.write(0, &[8; 4096], 0), Status::Ok)).await;
        for _repeated in 0..2 {
            let drained =
                replica.client.drain(pb::DrainRequest { deadline_ms: 0 }).await.unwrap().into_inner();
            assert_eq!((drained.clean, drained.reason.as_str()), (true, ""));
        }
        with(engine, |engine| assert!(engine.until_closed().is_empty())).await;
        assert!(!read_label(&data_dir).unwrap().unflushed);
        let hello = replica.hello(3, second);
        assert_eq!(replica.refused(hello).await.kind, RefusalKind::Absent);
        assert_eq!(read_label(&data_dir).unwrap().promised, Generation(2), "and promised nothing");
        replica.stop().await.unwrap();
        let image = std::fs::read(data_dir.join("head.img")).unwrap();
        assert_eq!((&image[..4096], &image[4096..8192]), (&[8; 4096][..], &[7; 4096][..]));
    });
}

#[test]
fn a_clean_detach_clears_the_mark_and_a_dirty_one_does_not() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let data_dir = PathBuf::from(&replica.config.data_dir);
        let uuid = InstanceUuid::random();
        for (generation, flush) in [(1, false), (2, true)] {
            let hello = replica.hello(generation, uuid);
            let (engine, _) = replica.connect(hello).await.unwrap();
            let (engine, ()) = with(engine, move |engine| {
                assert_eq!(engine.write(0, &[1; 4096], 0), Status::Ok);
                if flush {
                    assert_eq!(engine.flush(), Status::Ok);
                }
            })
            .await;
            drop(engine);
            if !flush {
                // The next fence waits for the end of this session; the mark stays.
                continue;
            }
            let cleared = async {
                while read_label(&data_dir).unwrap().unflushed {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, cleared).await.unwrap();
        }
        replica.stop().await.unwrap();
        assert!(!read_label(&data_dir).unwrap().unflushed);
    });
}

#[test]
fn a_missing_directory_is_absent_and_never_made_again() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        replica.until(|s| s.replica.as_ref().is_some_and(|r| r.mode == "open")).await;
        let (config, data_dir) = (replica.config.clone(), PathBuf::from(&replica.config.data_dir));
        replica.stop().await.unwrap();
        let away = dir.join("away");
        std::fs::rename(&data_dir, &away).unwrap();

        let mut replica = Replica::started(&dir, pb::ReplicaConfig { create: false, ..config }).await;
        let status = replica.until(|s| s.replica.is_some()).await;
        assert_eq!((status.phase.as_str(), status.replica.unwrap().mode.as_str()), ("running", "absent"));
        assert!(status.reason.contains("is the disk mounted?"), "{}", status.reason);
        let hello = replica.hello(1, InstanceUuid::random());
        let refused = replica.refused(hello.clone()).await;
        assert_eq!(refused.kind, RefusalKind::Absent);
        assert!(refused.reason.contains("is the disk mounted?"), "{}", refused.reason);
        assert!(!data_dir.exists());

        // The disk is mounted at last.
        std::fs::rename(&away, &data_dir).unwrap();
        replica.until(|s| s.replica.as_ref().is_some_and(|r| r.mode == "open")).await;
        replica.connect(hello).await.unwrap();
        replica.stop().await.unwrap();
    });
}

#[test]
fn a_foreign_directory_is_absent_and_left_alone() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        replica.until(|s| s.replica.as_ref().is_some_and(|r| r.mode == "open")).await;
        let foreign = pb::ReplicaConfig { replica_id: 3, ..replica.config.clone() };
        let data_dir = PathBuf::from(&replica.config.data_dir);
        replica.stop().await.unwrap();
        let before = std::fs::read(data_dir.join("meta")).unwrap();
        let mut replica = Replica::started(&dir, foreign).await;
        let status = replica.until(|s| s.replica.is_some()).await;
        assert_eq!(status.replica.unwrap().mode, "absent");
        assert!(
            status.reason.contains("expected r3") && status.reason.contains("found r2"),
            "{}",
            status.reason
        );
        replica.stop().await.unwrap();
        assert_eq!(std::fs::read(data_dir.join("meta")).unwrap(), before);
    });
}

#[test]
fn a_port_in_use_is_passed_over_and_none_left_is_said() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut config = config(&dir);
        config.port_max = config.port_min + 1;
        config.port_preferred = config.port_max;
        let port = |n: u32| SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()));
        let (min, max) = (port(config.port_min), port(config.port_max));
        let taken = std::net::TcpListener::bind(max).unwrap();
        let mut replica = Replica::started(&dir, config.clone()).await;
        assert_eq!(replica.address().await, min);
        let other = dir.join("other");
        std::fs::create_dir(&other).unwrap();
        let mut second = Replica::start(&other, config).await;
        let said = second.configure().await.unwrap_err();
        assert!(said.message().contains("is free on 127.0.0.1"), "{said}");
        drop(taken);
        second.config.data_dir = other.join("demo.r2").display().to_string();
        second.configure().await.unwrap();
        assert_eq!(second.address().await, max);
        second.stop().await.unwrap();
        replica.stop().await.unwrap();
    });
}

/// Sends `bytes` and reads what the replica says until it closes; `None`: nothing.
#[test]
fn an_advertised_address_is_told_instead_of_the_bound_one() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut config = config(&dir);
        config.advertise = "192.0.2.7".to_owned();
        let mut replica = Replica::started(&dir, config.clone()).await;
        let told = replica.address().await;
        assert_eq!(told.ip().to_string(), config.advertise);
        // The port is the one that it listens on, on the address that it was to bind.
        std::net::TcpStream::connect(("127.0.0.1", told.port())).unwrap();
        replica.stop().await.unwrap();
    });
}

async fn say(address: SocketAddr, bytes: &[u8]) -> Option<Refused> {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // It may close while we write.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    read_refusal(&mut stream).await
}

async fn read_refusal(stream: &mut tokio::net::TcpStream) -> Option<Refused> {
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap().unwrap();
    let (prefix, body) = said.split_first_chunk::<PREFIX_BYTES>()?;
    Prefix::decode(prefix).unwrap().check(MessageKind::Refused, body).unwrap();
    Some(Refused::decode(body).unwrap())
}

#[test]
fn hostile_bytes_at_the_data_port_are_told_and_dropped() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let address = replica.address().await;
        let uuid = InstanceUuid::random();
        let hello = Hello { key_id: replica.key().id, nonce: nonce(), ..replica.hello(1, uuid) };
        let good = frame(MessageKind::Hello, &hello.encode());

        assert_eq!(say(address, &[0xff; 3000]).await.unwrap().kind, RefusalKind::Version);
        assert_eq!(say(address, b"GET / HTTP/1.1\r\n\r\n").await.unwrap().kind, RefusalKind::Version);
        let proof = frame(MessageKind::Proof, &[0; 32]);
        assert_eq!(say(address, &proof).await.unwrap().kind, RefusalKind::Version);
        let old = Hello { version_min: 9, version_max: 9, ..hello.clone() };
        let refused = say(address, &frame(MessageKind::Hello, &old.encode())).await.unwrap();
        assert!(refused.reason.contains("no common protocol version"), "{}", refused.reason);
        for cut in [0, 1, PREFIX_BYTES - 1, PREFIX_BYTES, good.len() - 1] {
            assert_eq!(say(address, &good[..cut]).await, None, "cut at {cut}");
        }
        let mut damaged = good.clone();
        damaged[40] ^= 1;
        assert_eq!(say(address, &damaged).await.unwrap().kind, RefusalKind::Version);
        let mut long = good.clone();
        long[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(say(address, &long).await.unwrap().kind, RefusalKind::Version);
        for other in [
            Hello { replica: ReplicaId(3), ..hello.clone() },
            Hello { volume: holdfast_proto::ids::VolumeId::random(), ..hello.clone() },
            Hello { key_id: 99, ..hello.clone() },
        ] {
            let refused = say(address, &frame(MessageKind::Hello, &other.encode())).await.unwrap();
            assert_eq!(refused.kind, RefusalKind::Identity);
            assert_eq!((refused.generation, refused.engine), (Generation(0), InstanceUuid::nil()));
        }

        // Nothing of it reached the promises, and an engine is still served.
        let meta = read_label(Path::new(&replica.config.data_dir)).unwrap();
        assert_eq!(meta.promised, Generation(0));
        let hello = replica.hello(1, uuid);
        replica.connect(hello).await.unwrap();
        replica.stop().await.unwrap();
    });
}

#[test]
fn neither_side_goes_on_without_the_key() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let address = replica.address().await;
        let hello = replica.hello(1, InstanceUuid::random());
        let wrong = VolumeKey { secret: [9; 32], ..replica.key() };
        let error = connect(address, &wrong, hello.clone(), PATIENCE).await.unwrap_err();
        assert!(matches!(error, ConnectError::Handshake(HandshakeError::Proof)), "{error}");

        // An engine that does not check, and goes on with a proof by the wrong key.
        let hello = Hello { key_id: wrong.id, nonce: nonce(), ..hello };
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(&frame(MessageKind::Hello, &hello.encode())).await.unwrap();
        let mut prefix = [0; PREFIX_BYTES];
        stream.read_exact(&mut prefix).await.unwrap();
        let mut body = vec![0; Prefix::decode(&prefix).unwrap().body_bytes()];
        stream.read_exact(&mut body).await.unwrap();
        let challenge = Challenge::decode(&body).unwrap();
        let proof = Proof::of(&wrong.secret, &hello, &challenge);
        stream.write_all(&frame(MessageKind::Proof, &proof.encode())).await.unwrap();
        assert_eq!(read_refusal(&mut stream).await.unwrap().kind, RefusalKind::Identity);
        let meta = read_label(Path::new(&replica.config.data_dir)).unwrap();
        assert_eq!(meta.promised, Generation(0));
        replica.stop().await.unwrap();
    });
}

#[test]
fn an_engine_does_not_believe_a_stranger_that_says_fenced() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let liar = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let refused = Refused {
                kind: RefusalKind::Fenced,
                generation: Generation(99),
                engine: InstanceUuid::random(),
                reason: String::new(),
            };
            stream.write_all(&frame(MessageKind::Refused, &refused.encode())).await.unwrap();
            stream
        };
        let (_tmp, dir) = tmp();
        let config = ReplicaConfig::try_from(&config(&dir)).unwrap();
        let hello = Hello {
            version_min: 2,
            version_max: 2,
            features: 0,
            payload_bytes_max: 1,
            volume: config.volume,
            replica: config.replica,
            key_id: 0,
            role: Role::Engine,
            lineage: config.lineage,
            generation: Generation(1),
            engine: InstanceUuid::random(),
            epoch: Epoch(0),
            process: ProcessUuid::random(),
            boot: BootId::random(),
            nonce: [0; 32],
        };
        let (result, _stream) = tokio::join!(connect(address, &config.key, hello.clone(), PATIENCE), liar);
        assert!(matches!(result.unwrap_err(), ConnectError::Handshake(HandshakeError::Proof)));
        drop(listener);
        let nobody = connect(address, &config.key, hello, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(nobody, ConnectError::Unreachable(_)), "{nobody}");
    });
}

/// What a replica of version 2 says, which has no MAC for its last word, or a man in the middle from version 3 on.
async fn answer_by_hand(
    mut stream: tokio::net::TcpStream,
    key: &VolumeKey,
    version: u16,
    last_word: &(MessageKind, Vec<u8>),
) -> tokio::net::TcpStream {
    let read = async |stream: &mut tokio::net::TcpStream| {
        let mut prefix = [0; PREFIX_BYTES];
        stream.read_exact(&mut prefix).await.unwrap();
        let mut body = vec![0; Prefix::decode(&prefix).unwrap().body_bytes()];
        stream.read_exact(&mut body).await.unwrap();
        body
    };
    let hello = Hello::decode(&read(&mut stream).await).unwrap();
    let terms = Terms { version, features: 0, payload_bytes_max: hello.payload_bytes_max };
    let about = About { process: ProcessUuid::random(), boot: BootId::random(), build: String::new() };
    let challenge = Challenge::under(&terms, &about, nonce()).proven(&key.secret, &hello);
    stream.write_all(&frame(MessageKind::Challenge, &challenge.encode())).await.unwrap();
    if version > hello.version_max {
        return stream;
    }
    let proof = Proof::decode(&read(&mut stream).await).unwrap();
    proof.verify(&key.secret, &hello, &challenge).unwrap();
    stream.write_all(&frame(last_word.0, &last_word.1)).await.unwrap();
    stream
}

#[test]
fn engine_believes_no_last_word_without_its_mac() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let key = replica.key();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fenced = Refused {
            kind: RefusalKind::Fenced,
            generation: Generation(u64::MAX - 1),
            engine: InstanceUuid::random(),
            reason: String::new(),
        };
        let hello = replica.hello(1, InstanceUuid::random());
        let (_, welcome) = replica.connect(hello.clone()).await.unwrap();
        let terms = Terms { version: 2, features: 0, payload_bytes_max: 262_144 };
        let about = About { process: ProcessUuid::nil(), boot: BootId::nil(), build: String::new() };
        let words =
            [(MessageKind::Refused, fenced.encode()), (MessageKind::Welcome, welcome.encode(&terms, &about))];
        for word in &words {
            for version in [2, 3, 4] {
                let by_hand = async {
                    let (stream, _) = listener.accept().await.unwrap();
                    answer_by_hand(stream, &key, version, word).await
                };
                let (result, _stream) =
                    tokio::join!(connect(address, &key, hello.clone(), PATIENCE), by_hand);
                match (version, word.0, result) {
                    // Today's replicas have no MAC.
                    (2, MessageKind::Welcome, Ok(connected)) => {
                        assert_eq!(connected.welcome, Welcome { stamps: false, ..welcome.clone() });
                    }
                    (2, MessageKind::Refused, Err(ConnectError::Refused(said))) => assert_eq!(said, fenced),
                    (3, kind, Err(ConnectError::Handshake(HandshakeError::Mac { kind: said }))) => {
                        assert_eq!(said, kind);
                    }
                    (4, _, Err(ConnectError::Handshake(HandshakeError::Terms { what, found: 4 }))) => {
                        assert_eq!(what, "version");
                    }
                    (_, _, other) => panic!("version {version}: {other:?}"),
                }
            }
        }
        replica.stop().await.unwrap();
    });
}

/// Relays both ways; the first Hello is given to `change`.
async fn relay(from: tokio::net::TcpStream, to: SocketAddr, change: impl FnOnce(&mut Hello)) {
    let (mut from, mut to) = (from, tokio::net::TcpStream::connect(to).await.unwrap());
    let mut prefix = [0; PREFIX_BYTES];
    from.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; Prefix::decode(&prefix).unwrap().body_bytes()];
    from.read_exact(&mut body).await.unwrap();
    let mut hello = Hello::decode(&body).unwrap();
    change(&mut hello);
    to.write_all(&frame(MessageKind::Hello, &hello.encode())).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
}

#[test]
fn handshake_downgraded_on_the_way_is_found() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let (real, key) = (replica.address().await, replica.key());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hello = replica.hello(1, InstanceUuid::random());
        type Change = fn(&mut Hello);
        let changes: [(Change, bool); 3] =
            [(|_| {}, true), (|hello| hello.version_max = 2, false), (|hello| hello.features = 0, false)];
        for (change, taken) in changes {
            let middle = async {
                let (stream, _) = listener.accept().await.unwrap();
                relay(stream, real, change).await;
            };
            let engine = async { connect(address, &key, hello.clone(), PATIENCE).await.map(drop) };
            let (result, ()) = tokio::join!(engine, middle);
            let found = matches!(result, Err(ConnectError::Handshake(HandshakeError::Proof)));
            assert!(if taken { result.is_ok() } else { found }, "{result:?}");
        }
        replica.stop().await.unwrap();
    });
}

#[test]
fn engine_of_version_2_is_served_as_before() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let uuid = InstanceUuid::random();
        let before = |hello| Hello { version_max: 2, features: 0, ..hello };
        let hello = before(replica.hello(3, uuid));
        let (engine, _) = replica.connect(hello).await.unwrap();
        let payload = update(&replica, 3, 1, &[1, 2], false);
        let (engine, status) = with(engine, move |e| {
            let header = e.header(Kind::PersistView, 0, 0);
            e.call(header, &payload).0.status
        })
        .await;
        assert_eq!(status, Status::Ok);
        let older = before(replica.hello(2, uuid));
        let refused = replica.refused(older).await;
        assert_eq!((refused.kind, refused.generation), (RefusalKind::Fenced, Generation(3)));
        drop(engine);
        replica.stop().await.unwrap();
    });
}

#[test]
fn silent_peers_give_way_to_an_engine_the_oldest_first() {
    run(async {
        let (_tmp, dir) = tmp();
        let mut replica = Replica::started(&dir, config(&dir)).await;
        let address = replica.address().await;
        let mut silent = Vec::new();
        for _ in 0..200 {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            (&stream).write_all(b"H").unwrap();
            silent.push(stream);
        }
        let hello = replica.hello(1, InstanceUuid::random());
        replica.connect(hello).await.unwrap();
        // The oldest went without a word, and not because its time was over.
        let mut said = Vec::new();
        match std::io::Read::read_to_end(&mut &silent[0], &mut said) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
        assert_eq!(said, b"");
        replica.stop().await.unwrap();
    });
}
