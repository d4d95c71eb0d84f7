//! Garbage, truncated and hostile bytes at every port and socket: nothing ends, nothing grows without bound, the peer
//! is told and dropped, and the good client goes on.
#![forbid(unsafe_code)]

use std::io::Write as _;

use holdfast_dataplane::wire::handshake::{MessageKind, frame};
use holdfast_dataplane::wire::{Header, Kind, Status};
use holdfast_tests::block::{self, greet, receive_option_reply, request, send_option};
use holdfast_tests::control::{Control, instance_sockets, sockets};
use holdfast_tests::hostile::{Guard, Target, garbage, mangled};
use holdfast_tests::wire::{Answer, Claim, receive_frame};
use holdfast_tests::{AgentOptions, BlockClient, Cluster, Rng, Volume};

/// What every attack must leave behind: the same processes and a client that notices nothing. Foreign bytes are the
/// peer's fault, so no ERROR line is allowed either.
struct Scene {
    cluster: Cluster,
    before: Volume,
    guard: Guard,
    client: BlockClient,
    rng: Rng,
    turn: u64,
}

impl Scene {
    fn new(test: &str) -> Self {
        let cluster = Cluster::agent(AgentOptions::default());
        cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
        let tcp = format!("127.0.0.1:{}", cluster.ports().own(0));
        cluster.ok(&["volume", "attach", "demo", "--nbd-tcp", &tcp]);
        let before = cluster.wait_healthy("demo");
        let client = cluster.connect("demo");
        let mut scene =
            Self { guard: Guard::of(&cluster), before, client, rng: Rng::announced(test), turn: 0, cluster };
        scene.still_well();
        // Buffers that every process touches once are not growth under attack.
        scene.guard = Guard::of(&scene.cluster);
        scene
    }

    fn nbd_unix(&self) -> Target {
        let uri = self.before.endpoint().unwrap();
        Target::Unix(uri.split_once("?socket=").unwrap().1.into())
    }
    fn nbd_tcp(&self) -> Target {
        Target::Tcp(format!("127.0.0.1:{}", self.cluster.ports().own(0)))
    }
    fn data(&self, replica: &str) -> Target {
        Target::Tcp(self.before.replica(replica).address().unwrap())
    }
    fn control(&self) -> Vec<Target> {
        let found = instance_sockets(&self.cluster.runtime_dir());
        assert_eq!(found.len(), 3, "{found:?}");
        found.into_iter().map(|(path, _)| Target::Unix(path)).collect()
    }

    #[track_caller]
    fn still_well(&mut self) {
        self.guard.check();
        self.turn += 1;
        let content = vec![self.turn.to_le_bytes()[0]; 8192];
        let offset = self.turn % 1000 * 8192 + 100;
        self.client.write_fua(offset, &content).expect("the good client writes");
        assert_eq!(self.client.read(offset, 8192).expect("the good client reads"), content);
        let now = self.cluster.wait_healthy("demo");
        assert_eq!(now.pids(), self.before.pids(), "a process was replaced");
        assert_eq!(now.generation(), self.before.generation());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.cluster.assert_images_equal("demo");
        }
    }
}

#[test]
fn garbage_at_every_socket_ends_nothing() {
    let mut scene = Scene::new("garbage_at_every_socket_ends_nothing");
    let mut targets = vec![scene.nbd_unix(), scene.nbd_tcp(), scene.data("r1"), scene.data("r2")];
    targets.extend(scene.control());
    targets.push(Target::Unix(scene.cluster.socket()));
    for target in &targets {
        for _ in 0..40 {
            let bytes = garbage(&mut scene.rng);
            target.throw(&bytes);
        }
        for bytes in [&b""[..], b"\0", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0xff; 4096], &[0; 70_000]] {
            target.throw(bytes);
        }
        scene.still_well();
    }
}

#[test]
fn every_listening_socket_is_known_to_these_tests() {
    let scene = Scene::new("every_listening_socket_is_known_to_these_tests");
    let known = 1 + scene.control().len();
    let found = sockets(&scene.cluster.runtime_dir());
    assert_eq!(found.len(), known, "one NBD socket and the control sockets: {found:?}");
}

#[test]
fn crowds_of_silent_connections_keep_nobody_out() {
    let mut scene = Scene::new("crowds_of_silent_connections_keep_nobody_out");
    let mut targets = vec![scene.nbd_unix(), scene.nbd_tcp(), scene.data("r1")];
    targets.extend(scene.control());
    targets.push(Target::Unix(scene.cluster.socket()));
    for target in &targets {
        let crowd = target.crowd(150);
        scene.still_well();
        // And half a message each, which promises more.
        for mut stream in crowd {
            // One that was dropped already cannot take it.
            let _ = stream.write_all(&[0x48, 0x46]);
        }
        scene.still_well();
    }
    // There is room for a new client, and for a new data connection.
    let fresh = BlockClient::connect(&scene.before.endpoint().unwrap()).unwrap();
    assert_eq!(fresh.size_bytes, 64 << 20);
    let stale = Claim::of_current_engine(&scene.cluster, "demo", 1).later(0);
    let answer = stale.say(&scene.before.replica("r1").address().unwrap()).unwrap();
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

#[test]
fn nbd_negotiation_refuses_what_it_does_not_know_and_believes_no_length() {
    let mut scene = Scene::new("nbd_negotiation_refuses_what_it_does_not_know_and_believes_no_length");
    const ERROR: u32 = 1 << 31;
    for target in [scene.nbd_unix(), scene.nbd_tcp()] {
        let mut stream = target.dial().unwrap();
        greet(stream.as_mut()).unwrap();
        // Told, and not dropped: an option is a question.
        for option in [0, 4, 42, 5, 0x7fff_ffff] {
            send_option(stream.as_mut(), option, b"whatever").unwrap();
            let (kind, _) = receive_option_reply(stream.as_mut(), option).unwrap();
            assert!(kind & ERROR != 0, "option {option} was answered {kind:#x}");
        }
        // GO for an export that is not there, and with lengths that lie.
        let named = |len: u32, name: &[u8]| [&len.to_be_bytes()[..], name, &[0, 0]].concat();
        for data in [named(4, b"nope"), named(u32::MAX, b"demo"), named(3, b"demo"), vec![], vec![0; 2]] {
            send_option(stream.as_mut(), 7, &data).unwrap();
            let (kind, _) = receive_option_reply(stream.as_mut(), 7).unwrap();
            assert!(kind & ERROR != 0, "{data:?} was answered {kind:#x}");
        }
        drop(stream);
        // An option that announces four gigabytes.
        let mut stream = target.dial().unwrap();
        greet(stream.as_mut()).unwrap();
        let mut announced = b"IHAVEOPT".to_vec();
        announced.extend_from_slice(&7u32.to_be_bytes());
        announced.extend_from_slice(&u32::MAX.to_be_bytes());
        stream.write_all(&announced).unwrap();
        // The server may have hung up by now: it need not read on to know.
        let _ = stream.write_all(&[0; 4096]).and_then(|()| stream.end_sending());
        target.read_to_close(stream.as_mut());
        scene.still_well();
        // A valid negotiation, cut and bent in every way.
        let mut valid = 3u32.to_be_bytes().to_vec();
        valid.extend_from_slice(b"IHAVEOPT");
        valid.extend_from_slice(&7u32.to_be_bytes());
        valid.extend_from_slice(&10u32.to_be_bytes());
        valid.extend_from_slice(&named(4, b"demo"));
        for _ in 0..120 {
            let bytes = mangled(&mut scene.rng, &valid);
            target.throw(&bytes);
        }
        scene.still_well();
    }
}

#[test]
fn nbd_requests_out_of_bounds_are_answered_with_an_error() {
    let mut scene = Scene::new("nbd_requests_out_of_bounds_are_answered_with_an_error");
    let uri = scene.before.endpoint().unwrap();
    let mut client = BlockClient::connect(&uri).unwrap();
    let size = client.size_bytes;
    let bad: [(u64, usize); 5] =
        [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX - 4095, 8192), (1 << 63, 4096)];
    for (offset, len) in bad {
        assert!(client.read(offset, len).is_err(), "read {len} at {offset}");
        assert!(client.write(offset, &vec![1; len]).is_err(), "write {len} at {offset}");
        assert!(client.trim(offset, len).is_err(), "trim {len} at {offset}");
        assert!(client.write_zeroes(offset, len, false).is_err(), "zeroes {len} at {offset}");
    }
    assert!(client.read(0, (32 << 20) + 1).is_err(), "a read past the announced maximum");
    // The same connection still serves.
    assert_eq!(client.read(size - 512, 512).unwrap().len(), 512);
    for code in [7u16, 8, 99, u16::MAX] {
        client.raw().write_all(&request(0, code, 77, 0, 0)).unwrap();
        let mut reply = [0; 16];
        client.raw().read_exact(&mut reply).unwrap();
        assert_ne!(reply[4..8], [0; 4], "command {code} was answered with success");
        assert_eq!(reply[8..16], 77u64.to_be_bytes());
    }
    drop(client);
    scene.still_well();
}

#[test]
fn nbd_streams_that_make_no_sense_are_dropped() {
    let mut scene = Scene::new("nbd_streams_that_make_no_sense_are_dropped");
    let uri = scene.before.endpoint().unwrap();
    let target = scene.nbd_unix();
    let mut attacks: Vec<Vec<u8>> = vec![
        vec![0xff; 28],
        // A write that announces four gigabytes, and one that announces 32 MiB and ends.
        request(0, 1, 1, 0, u32::MAX),
        request(0, 1, 1, 0, 32 << 20),
        [request(0, 1, 1, 0, 1 << 20), vec![1; 1000]].concat(),
    ];
    let valid =
        [request(0, 1, 1, 4096, 4096), vec![5; 4096], request(0, 0, 2, 0, 512), request(0, 3, 3, 0, 0)];
    for _ in 0..60 {
        attacks.push(mangled(&mut scene.rng, &valid.concat()));
        attacks.push(garbage(&mut scene.rng));
    }
    for bytes in attacks {
        let (stream, export) = block::dial(&uri).unwrap();
        stream.deadline(holdfast_tests::SECOND * 30).unwrap();
        let mut client = BlockClient::negotiate(stream, &export).unwrap();
        // A server that has closed already does not take the rest.
        let _ = client.raw().write_all(&bytes);
        let _ = client.raw().end_sending();
        target.read_to_close(client.raw());
    }
    scene.still_well();
}

#[test]
fn many_clients_that_announce_large_writes_take_no_memory_for_them() {
    let mut scene = Scene::new("many_clients_that_announce_large_writes_take_no_memory_for_them");
    let uri = scene.before.endpoint().unwrap();
    let mut clients: Vec<_> = (0..30).map(|_| BlockClient::connect(&uri).unwrap()).collect();
    for client in &mut clients {
        client.raw().write_all(&request(0, 1, 1, 0, 32 << 20)).unwrap();
        client.raw().write_all(&[9; 5000]).unwrap();
    }
    scene.guard.check();
    drop(clients);
    scene.still_well();
}

#[test]
fn clients_that_never_read_their_answers_do_not_stop_others() {
    let mut scene = Scene::new("clients_that_never_read_their_answers_do_not_stop_others");
    let uri = scene.before.endpoint().unwrap();
    let mut greedy = BlockClient::connect(&uri).unwrap();
    greedy.raw().deadline(holdfast_tests::SECOND).unwrap();
    // Until the server stops taking more: it must stop, or it buffers answers without end.
    let asked =
        (0..20_000).take_while(|i| greedy.raw().write_all(&request(0, 0, *i, 0, 1 << 20)).is_ok()).count();
    assert!(asked < 20_000, "twenty gigabytes of answers were taken on");
    scene.still_well();
    drop(greedy);
    scene.still_well();
}

#[test]
fn a_data_port_takes_no_handshake_that_is_bent_or_cut() {
    let mut scene = Scene::new("a_data_port_takes_no_handshake_that_is_bent_or_cut");
    let claim = Claim::of_current_engine(&scene.cluster, "demo", 1);
    let valid = frame(MessageKind::Hello, &claim.hello.encode());
    let target = scene.data("r1");
    for _ in 0..150 {
        let bytes = mangled(&mut scene.rng, &valid);
        target.throw(&bytes);
    }
    // The right first message, then garbage where the proof belongs.
    for _ in 0..30 {
        let mut bytes = valid.clone();
        bytes.extend_from_slice(&frame(MessageKind::Proof, &scene.rng.bytes(32)));
        let answered = target.throw(&bytes);
        assert!(answered.len() < 1024, "{} bytes for a peer without the key", answered.len());
        let mut bytes = valid.clone();
        bytes.extend_from_slice(&garbage(&mut scene.rng));
        target.throw(&bytes);
    }
    for kind in [MessageKind::Challenge, MessageKind::Proof, MessageKind::Welcome, MessageKind::Refused] {
        target.throw(&frame(kind, &claim.hello.encode()));
    }
    scene.still_well();
}

#[test]
fn a_data_connection_that_turns_hostile_is_dropped_and_the_engine_comes_back() {
    let mut scene = Scene::new("a_data_connection_that_turns_hostile_is_dropped_and_the_engine_comes_back");
    let claim = Claim::of_current_engine(&scene.cluster, "demo", 1);
    let address = scene.before.replica("r1").address().unwrap();
    let generation = claim.hello.generation.0;
    let good = Header { extent: 4096, sequence: 1, ..Header::request(Kind::Read, 1, generation) }.encode();
    let mut longer = good;
    longer[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc_of(&longer);
    longer[60..].copy_from_slice(&crc);
    let write =
        Header { length: 4096, payload_crc: 1, sequence: 1, ..Header::request(Kind::Write, 1, generation) };
    let skipped = Header { extent: 4096, sequence: 2, ..Header::request(Kind::Read, 1, generation) };
    let bad_payload = [&write.encode()[..], &[1; 4096]].concat();
    let attacks: Vec<Vec<u8>> = vec![
        scene.rng.bytes(64),
        longer.to_vec(),
        bad_payload,
        mangled(&mut Rng::seeded(3), &good),
        good[..40].to_vec(),
        skipped.encode().to_vec(),
        [good, good].concat(),
    ];
    for bytes in attacks {
        // The engine's own identity: only then does the replica listen at all. It drops the engine's connection for
        // it; the engine must come back by itself, and lose nothing.
        let Answer::Welcome(_, mut stream) = claim.say(&address).unwrap() else {
            panic!("the identity is right")
        };
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        while let Ok(Some((header, _))) = receive_frame(&mut stream) {
            assert!(header.reply, "{header:?}");
        }
        drop(stream);
        scene.still_well();
    }
    // Frames that are well-formed and out of bounds are answered, not obeyed.
    let Answer::Welcome(_, mut stream) = claim.say(&address).unwrap() else {
        panic!("the identity is right")
    };
    let outside =
        Header { offset: 1 << 40, extent: 4096, sequence: 1, ..Header::request(Kind::Read, 9, generation) };
    stream.write_all(&outside.encode()).unwrap();
    // Where there is no answer, the engine has taken its connection back meanwhile: that is its right.
    if let Ok(Some((header, _))) = receive_frame(&mut stream) {
        assert_ne!(header.status, Status::Ok, "{header:?}");
    }
    drop(stream);
    scene.still_well();
}

fn crc_of(header: &[u8; 64]) -> [u8; 4] {
    // CRC-32 (IEEE), bit by bit: the wire's checksum, computed without the wire's own code.
    let mut crc = u32::MAX;
    for byte in &header[..60] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

#[test]
fn control_sockets_refuse_orders_that_are_not_for_them() {
    use holdfast_proto::pb::instance::configure_request::Role;
    use holdfast_proto::pb::instance::{
        ConfigureRequest, EngineConfig, RegistryResultRequest, ReplicaConfig,
    };
    let mut scene = Scene::new("control_sockets_refuse_orders_that_are_not_for_them");
    for (path, hello) in instance_sockets(&scene.cluster.runtime_dir()) {
        let control = Control::connect(&path).unwrap();
        let foreign = "00000000-0000-4000-8000-000000000001".to_owned();
        let roles = [
            None,
            Some(Role::Engine(EngineConfig::default())),
            Some(Role::Replica(ReplicaConfig::default())),
            Some(Role::Replica(ReplicaConfig {
                volume_name: "../../etc/x".repeat(1000),
                data_dir: "/etc".to_owned(),
                create: true,
                ..Default::default()
            })),
        ];
        for role in roles {
            for uuid in [foreign.clone(), String::new(), "x".repeat(100_000), hello.uuid.clone()] {
                // An instance that is configured already may take a repeat, but nothing that means something else.
                let answer = control.configure(ConfigureRequest { uuid, role: role.clone() });
                assert!(answer.is_err(), "{}: {role:?} was taken", hello.name);
            }
        }
        let unasked = RegistryResultRequest { uuid: hello.uuid.clone(), ask_id: u64::MAX, outcome: None };
        // Refused or ignored: it must not matter.
        let _ = control.registry_result(unasked);
        scene.still_well();
    }
}
