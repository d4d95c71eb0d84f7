//! Shows that a replica's data thread allocates nothing per request once it is warm: writes small and large, reads,
//! flushes, trims. The whole process runs as it does in production, so its control thread may allocate; only what
//! the thread named "data" asks for is counted.
//!
//! The whole file is one test: it counts for the whole process.

mod no_alloc_counting;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use holdfast_dataplane::control::InstanceArgs;
use holdfast_dataplane::control::handshake::{Connected, VolumeKey, connect};
use holdfast_dataplane::wire::handshake::{Hello, Role};
use holdfast_dataplane::wire::header::FLAG_FUA;
use holdfast_dataplane::wire::{HEADER_BYTES, Header, Kind, Status};
use holdfast_proto::ids::{
    BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::pb::instance as pb;
use no_alloc_counting::Counting;
use pb::instance_client::InstanceClient;
use tonic::transport::{Channel, Endpoint};

#[global_allocator]
static ALLOCATOR: Counting = Counting::threads_named("data");

const PATIENCE: Duration = Duration::from_secs(30);
/// Which mode this process tests; unset: it starts one for each.
const IO_MODE: &str = "HOLDFAST_TEST_IO_MODE";
const SECRET: [u8; 32] = [5; 32];

fn frame(kind: Kind, flags: u16, offset: u64, extent: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        flags,
        offset,
        extent,
        length: u32::try_from(payload.len()).unwrap(),
        payload_crc: if payload.is_empty() { 0 } else { crc32fast::hash(payload) },
        ..Header::request(kind, 1, 1)
    };
    [&header.encode()[..], payload].concat()
}

/// One round of everything an engine sends in steady state, all in flight at once.
fn round(stream: &mut TcpStream, frames: &[Vec<u8>], sequence: &mut u64, bytes: &mut [u8]) {
    for frame in frames {
        *sequence += 1;
        let header = Header::decode(frame).unwrap().unwrap();
        stream.write_all(&Header { sequence: *sequence, ..header }.encode()).unwrap();
        stream.write_all(&frame[HEADER_BYTES..]).unwrap();
    }
    for _ in frames {
        let head = &mut bytes[..HEADER_BYTES];
        stream.read_exact(head).unwrap();
        let reply = Header::decode(head).unwrap().unwrap();
        assert_eq!(reply.status, Status::Ok, "{reply:?}");
        let length = usize::try_from(reply.length).unwrap();
        stream.read_exact(&mut bytes[..length]).unwrap();
    }
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

async fn serve(
    control: &Path,
    uuid: InstanceUuid,
    config: pb::ReplicaConfig,
) -> (InstanceClient<Channel>, SocketAddr) {
    let uuid = uuid.to_string();
    let mut client = client(control).await;
    client.confirm(pb::ConfirmRequest { uuid: uuid.clone() }).await.unwrap();
    let role = Some(pb::configure_request::Role::Replica(config));
    client.configure(pb::ConfigureRequest { uuid, role }).await.unwrap();
    let mut items = client.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    loop {
        if let Some(pb::watch_item::Item::Status(pb::InstanceStatus { replica: Some(replica), .. })) =
            items.message().await.unwrap().unwrap().item
        {
            assert_eq!(replica.mode, "open");
            return (client, replica.address.parse().unwrap());
        }
    }
}

#[test]
fn a_warm_data_thread_allocates_nothing() {
    if let Ok(io_mode) = std::env::var(IO_MODE) {
        return run(&io_mode);
    }
    // A process each: a replica makes its process its own, and closes what was open in it.
    for io_mode in ["buffered", "direct"] {
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_warm_data_thread_allocates_nothing", "--nocapture"])
            .env(IO_MODE, io_mode)
            .status()
            .unwrap();
        assert!(ended.success(), "io mode {io_mode}");
    }
}

fn run(io_mode: &str) {
    let tmp = tempfile::tempdir().unwrap();
    let (volume, lineage, uuid) = (VolumeId::random(), Lineage::random(), InstanceUuid::random());
    let args = InstanceArgs {
        name: "demo-r1".to_owned(),
        uuid,
        instance_dir: tmp.path().to_owned(),
        control: tmp.path().join("control"),
    };
    let control = args.control.clone();
    let replica = std::thread::spawn(|| holdfast_dataplane::replica::run(args));
    let config = pb::ReplicaConfig {
        volume_id: volume.to_string(),
        volume_name: "demo".to_owned(),
        replica_id: 1,
        node: "node-a".to_owned(),
        size_bytes: 16 << 20,
        data_dir: tmp.path().join("demo.r1").display().to_string(),
        create: true,
        lineage: lineage.to_string(),
        // Of two: its changes are remembered.
        configured: vec![1, 2],
        key: Some(pb::VolumeKey { key_id: 1, key: SECRET.to_vec() }),
        bind: "127.0.0.1".to_owned(),
        port_min: 11_000,
        port_max: 11_999,
        port_preferred: 0,
        io_mode: io_mode.to_owned(),
        incarnation: Incarnation::random().to_string(),
        advertise: String::new(),
        spin: String::new(),
    };
    let hello = Hello {
        version_min: 2,
        version_max: 3,
        features: 0,
        payload_bytes_max: 262_144,
        volume,
        replica: ReplicaId(1),
        key_id: 1,
        role: Role::Engine,
        lineage,
        generation: Generation(1),
        engine: InstanceUuid::random(),
        epoch: Epoch(0),
        process: ProcessUuid::random(),
        boot: BootId::random(),
        nonce: [0; 32],
    };
    // The replica begins by closing what this process has open: nothing of ours is, before its socket answers.
    while !control.exists() {
        assert!(!replica.is_finished(), "{:?}", replica.join());
        std::thread::yield_now();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, address) = runtime.block_on(serve(&control, uuid, config));
    let key = VolumeKey { id: 1, secret: SECRET };
    let Connected { socket, .. } = runtime.block_on(connect(address, &key, hello, PATIENCE)).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();

    let (small, large) = (vec![7; 4096], vec![8; 256 * 1024]);
    let mut frames = Vec::new();
    for n in 0..24u64 {
        frames.push(frame(Kind::Write, 0, n * 4096, 0, &small));
    }
    frames.push(frame(Kind::Write, 0, 1 << 20, 0, &large));
    frames.push(frame(Kind::Write, FLAG_FUA, 2 << 20, 0, &small));
    frames.push(frame(Kind::Flush, 0, 0, 0, &[]));
    frames.push(frame(Kind::Trim, 0, 3 << 20, 1 << 20, &[]));
    frames.push(frame(Kind::WriteZeroes, 0, 4 << 20, 4096, &[]));
    for n in 0..24u64 {
        frames.push(frame(Kind::Read, 0, (8 << 20) + n * 4096, 4096, &[]));
    }
    let (mut sequence, mut bytes) = (0, vec![0; 256 * 1024]);
    for _ in 0..50 {
        round(&mut stream, &frames, &mut sequence, &mut bytes);
    }
    let before = ALLOCATOR.allocations();
    assert!(before > 0, "the counter counts");
    for _ in 0..200 {
        round(&mut stream, &frames, &mut sequence, &mut bytes);
    }
    assert_eq!(ALLOCATOR.allocations() - before, 0, "io mode {io_mode}");

    runtime.block_on(client.stop(pb::StopRequest {})).unwrap();
    drop((client, runtime));
    replica.join().unwrap().unwrap();
}
