//! A replica as a real process: its lock, its signals, and what its directory says after each kind of end.
//!
//! This test binary starts itself again as the replica.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use holdfast_dataplane::control::InstanceArgs;
use holdfast_dataplane::control::handshake::{Connected, VolumeKey, connect};
use holdfast_dataplane::error::EXIT_HELD;
use holdfast_dataplane::layout::read_label;
use holdfast_dataplane::wire::handshake::{Hello, Role};
use holdfast_dataplane::wire::header::FLAG_FILL;
use holdfast_dataplane::wire::{HEADER_BYTES, Header, Kind, Status};
use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::pb::instance as pb;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pb::instance_client::InstanceClient;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 16 << 20;
const SECRET: [u8; 32] = [5; 32];
/// Set in the child: its directory and its UUID.
const DIR: &str = "HOLDFAST_TEST_DIR";
const UUID: &str = "HOLDFAST_TEST_UUID";

/// Not a test of its own: what the child runs.
#[test]
fn child() {
    let (Ok(dir), Ok(uuid)) = (std::env::var(DIR), std::env::var(UUID)) else { return };
    let instance_dir = PathBuf::from(dir);
    let control = instance_dir.join("control");
    let args =
        InstanceArgs { name: "demo-r1".to_owned(), uuid: uuid.parse().unwrap(), instance_dir, control };
    let code = match holdfast_dataplane::replica::run(args) {
        Ok(()) => 0,
        Err(e) => e.exit_code(),
    };
    std::process::exit(code.into());
}

struct Node {
    dir: tempfile::TempDir,
    uuid: InstanceUuid,
    volume: VolumeId,
    lineage: Lineage,
    runtime: tokio::runtime::Runtime,
}

/// Ends with the test that started it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
    fn ended(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            uuid: InstanceUuid::random(),
            volume: VolumeId::random(),
            lineage: Lineage::random(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("demo.r1")
    }

    fn spawn(&self) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, self.dir.path())
            .env(UUID, self.uuid.to_string())
            .spawn()
            .unwrap();
        Process(child)
    }

    /// Confirms and configures whoever serves the control socket.
    fn configure(&self, create: bool, ports: u32) -> SocketAddr {
        let config = pb::ReplicaConfig {
            volume_id: self.volume.to_string(),
            volume_name: "demo".to_owned(),
            replica_id: 1,
            node: "node-a".to_owned(),
            size_bytes: SIZE,
            data_dir: self.data_dir().display().to_string(),
            create,
            lineage: self.lineage.to_string(),
            configured: vec![1],
            key: Some(pb::VolumeKey { key_id: 1, key: SECRET.to_vec() }),
            bind: "127.0.0.1".to_owned(),
            port_min: ports,
            port_max: ports + 99,
            port_preferred: 0,
            io_mode: "buffered".to_owned(),
            incarnation: Incarnation::nil().to_string(),
            advertise: String::new(),
            spin: String::new(),
        };
        let uuid = self.uuid.to_string();
        let control = self.dir.path().join("control");
        self.runtime.block_on(async {
            let mut client = tokio::time::timeout(PATIENCE, client(&control)).await.unwrap();
            client.confirm(pb::ConfirmRequest { uuid: uuid.clone() }).await.unwrap();
            let role = Some(pb::configure_request::Role::Replica(config));
            client.configure(pb::ConfigureRequest { uuid, role }).await.unwrap();
            let mut items = client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
            loop {
                if let Some(pb::watch_item::Item::Status(status)) =
                    items.message().await.unwrap().unwrap().item
                    && let Some(replica) = status.replica
                {
                    assert_eq!(replica.mode, "open", "{}", status.reason);
                    return replica.address.parse().unwrap();
                }
            }
        })
    }

    /// Connects as the engine of this generation.
    fn engine(&self, address: SocketAddr, generation: u64) -> TcpStream {
        let hello = Hello {
            version_min: 2,
            version_max: 3,
            features: 0,
            payload_bytes_max: 262_144,
            volume: self.volume,
            replica: ReplicaId(1),
            key_id: 1,
            role: Role::Engine,
            lineage: self.lineage,
            generation: Generation(generation),
            engine: InstanceUuid::random(),
            epoch: Epoch(0),
            process: ProcessUuid::random(),
            boot: BootId::random(),
            nonce: [0; 32],
        };
        let key = VolumeKey { id: 1, secret: SECRET };
        let connected = self.runtime.block_on(connect(address, &key, hello, PATIENCE)).unwrap();
        let Connected { socket, welcome, .. } = connected;
        assert!(!welcome.cache_lost, "the node did not restart");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Writes one block as the engine of this generation, without a flush.
    fn write(&self, address: SocketAddr, generation: u64) -> TcpStream {
        let mut stream = self.engine(address, generation);
        let payload = [u8::try_from(generation).unwrap(); 4096];
        call(&mut stream, Header { sequence: 1, ..Header::request(Kind::Write, 1, generation) }, &payload);
        stream
    }
}

/// Sends a frame, and waits until it is done.
fn call(stream: &mut TcpStream, header: Header, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap();
    let header = Header { length, payload_crc: crc32fast::hash(payload), ..header };
    stream.write_all(&[&header.encode()[..], payload].concat()).unwrap();
    let mut reply = [0; HEADER_BYTES];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(Header::decode(&reply).unwrap().unwrap().status, Status::Ok);
}

async fn client(control: &Path) -> InstanceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", control.display())).unwrap();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return InstanceClient::new(channel),
            // The socket is not there yet, or is that of an earlier process.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[test]
fn killed_it_keeps_its_cache_and_terminated_it_ends_clean() {
    let node = Node::new();
    let mut first = node.spawn();
    let engine = node.write(node.configure(true, 10_000), 1);
    first.signal(Signal::SIGKILL);
    first.ended();
    drop(engine);
    let meta = read_label(&node.data_dir()).unwrap();
    assert!(meta.unflushed, "nobody knows what the last session left");

    let mut second = node.spawn();
    let _engine = node.write(node.configure(false, 10_000), 2);
    // Ignored: instances outlive the terminal and the agent.
    second.signal(Signal::SIGHUP);
    second.signal(Signal::SIGTERM);
    assert_eq!(second.ended().code(), Some(0));
    let meta = read_label(&node.data_dir()).unwrap();
    assert!(!meta.unflushed && !meta.cache_lost, "drained, flushed, marked");
    assert_eq!(meta.promised, Generation(2));
    assert_eq!(&std::fs::read(node.data_dir().join("head.img")).unwrap()[..4096], &[2; 4096]);
    assert!(!node.dir.path().join("control").exists());
}

/// Whether the kernel has made a worker for the ring of the data thread: what begins write-back goes there, what is
/// written into the page cache does not.
fn has_worker(process: &Process) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap().flatten();
    let names: Vec<(String, String)> = tasks
        .filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            Some((task.file_name().into_string().ok()?, name.trim().to_owned()))
        })
        .collect();
    let (data, _) = names.iter().find(|(_, name)| name == "data").expect("a data thread");
    names.iter().any(|(_, name)| *name == format!("iou-wrk-{data}"))
}

#[test]
fn what_it_is_filled_with_is_on_its_way_to_the_disk_before_anybody_flushes() {
    let node = Node::new();
    let process = node.spawn();
    let mut engine = node.engine(node.configure(true, 10_200), 1);
    let region = vec![7; 256 * 1024];
    let fill = |n: u64| {
        let offset = n * 256 * 1024;
        Header { flags: FLAG_FILL, offset, sequence: n + 1, ..Header::request(Kind::Write, n + 1, 1) }
    };
    call(&mut engine, fill(0), &region);
    assert!(!has_worker(&process), "a little is not worth it");
    for n in 1..SIZE / (256 * 1024) {
        call(&mut engine, fill(n), &region);
    }
    let deadline = Instant::now() + PATIENCE;
    while !has_worker(&process) {
        assert!(Instant::now() < deadline, "16 MiB, and no write-back");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn the_second_process_of_an_instance_ends_and_the_first_is_untouched() {
    let node = Node::new();
    let _first = node.spawn();
    let address = node.configure(true, 10_100);
    assert_eq!(node.spawn().ended().code(), Some(i32::from(EXIT_HELD)));
    node.write(address, 1);
    // Its socket is still the first one's.
    node.configure(false, 10_100);
}
