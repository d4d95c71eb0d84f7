//! Shows that an engine's data thread allocates nothing per request once it is warm, with two real replicas and a
//! client that writes, reads, flushes, trims and zeroes. Only what the thread named "data" asks for is counted; what it
//! may allocate for is its report to the agent, a few times a second.
//!
//! The whole file is one test: it has an allocator of its own. Engine and replicas are a process each, because an
//! instance makes its process its own.

mod no_alloc_counting;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use holdfast_dataplane::control::InstanceArgs;
use holdfast_dataplane::frontend::nbd::proto;
use holdfast_proto::ids::{Incarnation, InstanceUuid, Lineage, VolumeId};
use holdfast_proto::pb::instance as pb;
use no_alloc_counting::Counting;
use pb::instance_client::InstanceClient;
use pb::registry_result_request::{Outcome, Stored};
use tonic::transport::{Channel, Endpoint};

#[global_allocator]
static ALLOCATOR: Counting = Counting::threads_named("data");

const PATIENCE: Duration = Duration::from_secs(30);
/// What this process is; unset: the test that starts the others.
const ROLE: &str = "HOLDFAST_TEST_ROLE";
const DIR: &str = "HOLDFAST_TEST_DIR";
const SIZE_BYTES: u64 = 16 << 20;
const REPLICAS: u32 = 2;

fn args(dir: &Path, name: &str) -> InstanceArgs {
    let instance_dir = dir.join(name);
    std::fs::create_dir_all(&instance_dir).unwrap();
    let control = instance_dir.join("control");
    InstanceArgs {
        name: name.to_owned(),
        uuid: InstanceUuid(uuid::Uuid::from_u128(77)),
        instance_dir,
        control,
    }
}

fn uuid() -> String {
    InstanceUuid(uuid::Uuid::from_u128(77)).to_string()
}

fn start(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_warm_data_thread_allocates_nothing_per_request", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .spawn()
        .unwrap()
}

async fn client(control: &Path) -> InstanceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", control.display())).unwrap();
    let connected = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return InstanceClient::new(channel),
                // The socket is not there yet.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.unwrap()
}

async fn configure(client: &mut InstanceClient<Channel>, role: pb::configure_request::Role) {
    client.confirm(pb::ConfirmRequest { uuid: uuid() }).await.unwrap();
    client.configure(pb::ConfigureRequest { uuid: uuid(), role: Some(role) }).await.unwrap();
}

/// Follows an instance until its status is as wanted; every change of the record is granted.
async fn follow(
    client: &mut InstanceClient<Channel>,
    wanted: impl Fn(&pb::InstanceStatus) -> bool,
) -> String {
    let mut items = client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    let mut version = 1;
    loop {
        match tokio::time::timeout(PATIENCE, items.message()).await.unwrap().unwrap().unwrap().item {
            Some(pb::watch_item::Item::Status(status)) if wanted(&status) => {
                return status.replica.map(|replica| replica.address).unwrap_or_default();
            }
            Some(pb::watch_item::Item::Ask(ask)) => {
                if let Some(pb::ask::Ask::RegistryCas(_)) = ask.ask {
                    version += 1;
                    let outcome = Some(Outcome::Stored(Stored { version }));
                    let result = pb::RegistryResultRequest { uuid: uuid(), ask_id: ask.ask_id, outcome };
                    client.registry_result(result).await.unwrap();
                }
            }
            _ => {}
        }
    }
}

fn key() -> Option<pb::VolumeKey> {
    Some(pb::VolumeKey { key_id: 1, key: vec![5; 32] })
}

/// The volume, the same in each process.
struct Volume {
    id: String,
    lineage: String,
    incarnation: String,
}

fn volume() -> Volume {
    let uuid = uuid::Uuid::from_u128;
    Volume {
        id: VolumeId(uuid(1)).to_string(),
        lineage: Lineage(uuid(2)).to_string(),
        incarnation: Incarnation(uuid(3)).to_string(),
    }
}

fn replica_config(dir: &Path, id: u32) -> pb::ReplicaConfig {
    let volume = volume();
    pb::ReplicaConfig {
        volume_id: volume.id,
        volume_name: "demo".to_owned(),
        replica_id: id,
        node: "node-a".to_owned(),
        size_bytes: SIZE_BYTES,
        data_dir: dir.join(format!("demo.r{id}")).display().to_string(),
        create: true,
        lineage: volume.lineage,
        configured: (1..=REPLICAS).collect(),
        key: key(),
        bind: "127.0.0.1".to_owned(),
        port_min: 12_000,
        port_max: 12_999,
        port_preferred: 0,
        io_mode: "buffered".to_owned(),
        incarnation: volume.incarnation,
        advertise: String::new(),
        spin: String::new(),
    }
}

fn engine_config(socket: &Path, replicas: Vec<pb::ReplicaEndpoint>) -> pb::EngineConfig {
    let volume = volume();
    let members: Vec<u32> = (1..=REPLICAS).collect();
    pb::EngineConfig {
        volume_id: volume.id,
        volume_name: "demo".to_owned(),
        size_bytes: SIZE_BYTES,
        record_version: 1,
        status: Some(pb::VolumeStatus {
            incarnation: volume.incarnation,
            lineage: volume.lineage,
            engine_uuid: uuid::Uuid::nil().to_string(),
            view: Some(pb::View { members: members.clone(), ..Default::default() }),
            configured: members,
            clean: true,
            ..Default::default()
        }),
        key: key(),
        replicas,
        nbd_socket: socket.display().to_string(),
        node: "node-a".to_owned(),
        ..Default::default()
    }
}

/// Connects and chooses the volume, with simple replies.
fn negotiate(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(proto::OPTION_MAGIC.to_be_bytes());
    hello.extend(proto::option::EXPORT_NAME.to_be_bytes());
    hello.extend(0u32.to_be_bytes());
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn request(command: u16, offset: u64, len: u32, data: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    let reads = if command == proto::command::READ { len } else { 0 };
    (bytes, usize::try_from(reads).unwrap())
}

/// One round of everything a client sends in steady state, all in flight at once.
fn round(stream: &mut UnixStream, requests: &[(Vec<u8>, usize)], replies: &mut [u8]) {
    for (bytes, _) in requests {
        stream.write_all(bytes).unwrap();
    }
    // In any order; together they are this long.
    stream.read_exact(replies).unwrap();
}

fn requests() -> (Vec<(Vec<u8>, usize)>, usize) {
    use proto::command::{FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
    let (small, large) = (vec![7; 4096], vec![8; 256 * 1024]);
    let mut requests = Vec::new();
    for n in 0..24u64 {
        requests.push(request(WRITE, n * 4096, 4096, &small));
        requests.push(request(READ, (8 << 20) + n * 4096, 4096, &[]));
    }
    requests.push(request(WRITE, 1 << 20, 256 * 1024, &large));
    requests.push(request(WRITE, (2 << 20) + 100, 1000, &small[..1000]));
    requests.push(request(READ, 9 << 20, 256 * 1024, &[]));
    requests.push(request(FLUSH, 0, 0, &[]));
    requests.push(request(TRIM, 3 << 20, 1 << 20, &[]));
    requests.push(request(WRITE_ZEROES, 4 << 20, 4096, &[]));
    let replies = requests.iter().map(|(_, reads)| 16 + reads).sum();
    (requests, replies)
}

/// Runs the engine in this process, and is its agent and its client.
fn engine(dir: &Path) {
    let args = args(dir, "engine");
    let (control, socket) = (args.control.clone(), dir.join("nbd.sock"));
    let engine = std::thread::spawn(|| holdfast_dataplane::engine::run(args));
    // It begins by closing what this process has open: nothing of ours is, before its socket answers.
    while !control.exists() {
        assert!(!engine.is_finished(), "{:?}", engine.join());
        std::thread::yield_now();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client_of = |control: PathBuf| runtime.block_on(client(&control));
    let mut replicas = Vec::new();
    for id in 1..=REPLICAS {
        let mut client = client_of(dir.join(format!("r{id}")).join("control"));
        let address = runtime.block_on(async {
            let config = replica_config(dir, id);
            configure(&mut client, pb::configure_request::Role::Replica(config)).await;
            follow(&mut client, |status| status.replica.as_ref().is_some_and(|r| r.mode == "open")).await
        });
        replicas.push((client, pb::ReplicaEndpoint { id, address, ..Default::default() }));
    }
    let endpoints = replicas.iter().map(|(_, endpoint)| endpoint.clone()).collect();
    let mut agent = client_of(control);
    runtime.block_on(async {
        let config = engine_config(&socket, endpoints);
        configure(&mut agent, pb::configure_request::Role::Engine(config)).await;
        follow(&mut agent, |s| {
            s.engine.as_ref().is_some_and(|e| e.state == "healthy" && !e.nbd_socket.is_empty())
        })
        .await
    });

    let mut stream = negotiate(&socket);
    let (requests, bytes) = requests();
    let mut replies = vec![0; bytes];
    for _ in 0..50 {
        round(&mut stream, &requests, &mut replies);
    }
    let before = ALLOCATOR.allocations();
    assert!(before > 0, "the counter counts");
    const ROUNDS: usize = 300;
    for _ in 0..ROUNDS {
        round(&mut stream, &requests, &mut replies);
    }
    let allocated = ALLOCATOR.allocations() - before;
    let done = u64::try_from(ROUNDS * requests.len()).unwrap();
    println!("{allocated} allocations for {done} requests");
    assert!(allocated < done / 20, "{allocated} allocations for {done} requests");

    runtime.block_on(async {
        agent.stop(pb::StopRequest {}).await.unwrap();
        for (client, _) in &mut replicas {
            client.stop(pb::StopRequest {}).await.unwrap();
        }
    });
    drop((agent, replicas, runtime));
    engine.join().unwrap().unwrap();
}

#[test]
fn a_warm_data_thread_allocates_nothing_per_request() {
    let dir = std::env::var_os(DIR).map(PathBuf::from);
    match (std::env::var(ROLE).as_deref(), dir) {
        (Ok("engine"), Some(dir)) => engine(&dir),
        (Ok(replica), Some(dir)) => holdfast_dataplane::replica::run(args(&dir, replica)).unwrap(),
        _ => {
            let tmp = tempfile::tempdir().unwrap();
            let mut replicas: Vec<_> =
                (1..=REPLICAS).map(|id| start(&format!("r{id}"), tmp.path())).collect();
            let ended = start("engine", tmp.path()).wait().unwrap();
            for replica in &mut replicas {
                if !ended.success() {
                    // Nobody has stopped it.
                    let _ = replica.kill();
                }
                assert!(replica.wait().unwrap().success() || !ended.success());
            }
            assert!(ended.success(), "{ended}");
        }
    }
}
