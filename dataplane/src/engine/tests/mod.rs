//! The engine with real replicas, over real sockets: everything of an instance but its process.

pub(super) mod agent;
mod nbd;
mod proxy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_proto::pb::instance as pb;
use pb::configure_request::Role as Configured;

use self::agent::{Hosted, Mood, Registry, SIZE_BYTES, engine_config, new_volume, replica_config};
use self::nbd::Client;
use self::proxy::{Fault, Proxy};
use crate::error::{EXIT_RECORD_MISSING, Error};
use crate::frontend::nbd::proto::command;

/// What NBD calls "no space", which is also what it says of a write past the end.
const NBD_ENOSPC: u32 = 28;
/// How long anything may take before a test gives up on it: far longer than it ever does.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume with its replicas, each behind a proxy, and an engine that serves it.
struct Volume {
    tmp: tempfile::TempDir,
    registry: Registry,
    replicas: Vec<Hosted>,
    proxies: Vec<Proxy>,
    engine: Option<Hosted>,
}

impl Volume {
    fn new(replicas: u32) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let registry = new_volume(replicas);
        let mut volume = Self { tmp, registry, replicas: Vec::new(), proxies: Vec::new(), engine: None };
        for id in 1..=replicas {
            let hosted = Hosted::replica(&volume.path(&format!("r{id}")), &volume.registry);
            let config = replica_config(&volume.registry, id, &hosted.dir.join("data"));
            hosted.configure(Configured::Replica(config)).unwrap();
            let open = |status: &pb::InstanceStatus| {
                status.replica.as_ref().is_some_and(|replica| replica.mode == "open")
            };
            let address: SocketAddr = hosted.wait("open", open).replica.unwrap().address.parse().unwrap();
            volume.proxies.push(Proxy::new(address));
            volume.replicas.push(hosted);
        }
        volume
    }

    fn serving(replicas: u32) -> Self {
        let mut volume = Self::new(replicas);
        volume.engine = Some(volume.start_engine("engine"));
        volume.engine().wait_state("healthy");
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }
    fn socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    fn start_engine(&self, name: &str) -> Hosted {
        let engine = Hosted::engine(&self.path(name), &self.registry);
        engine.configure(Configured::Engine(self.config(name))).unwrap();
        engine
    }
    fn config(&self, name: &str) -> pb::EngineConfig {
        let replicas = self.proxies.iter().zip(1..).map(|(proxy, id)| pb::ReplicaEndpoint {
            id,
            address: proxy.address.to_string(),
            local: true,
            ..Default::default()
        });
        engine_config(&self.registry, &self.socket(name), replicas.collect())
    }

    fn engine(&self) -> &Hosted {
        self.engine.as_ref().unwrap()
    }
    fn client(&self) -> Client {
        Client::connect(&self.socket("engine"))
    }

    /// What each replica's image holds now.
    fn images(&self) -> Vec<Vec<u8>> {
        self.replicas.iter().map(|r| std::fs::read(r.dir.join("data/head.img")).unwrap()).collect()
    }
    fn assert_images(&self, expected: &[u8]) {
        for (image, id) in self.images().iter().zip(1..) {
            assert_eq!(image.len(), expected.len());
            let differs = image.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "r{id} differs from what was written");
        }
    }

    fn stop(mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop().unwrap();
        }
        for replica in self.replicas.drain(..) {
            replica.stop().unwrap();
        }
    }
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let first = u8::try_from(self.below(256)).unwrap();
        (0..len).map(|i| first.wrapping_add(u8::try_from(i % 241).unwrap())).collect()
    }
}

fn size() -> usize {
    usize::try_from(SIZE_BYTES).unwrap()
}

/// Anything a client may do, at any alignment, against a model of the volume.
fn scribble(client: &mut Client, model: &mut [u8], numbers: &mut Numbers, rounds: usize) {
    for round in 0..rounds {
        let offset = numbers.below(SIZE_BYTES);
        let limit = [4096, 70_000, 600_000][round % 3];
        let len = usize::try_from(1 + numbers.below(limit.min(SIZE_BYTES - offset))).unwrap();
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + len;
        match numbers.below(8) {
            0..=2 => {
                let data = numbers.bytes(len);
                client.write(offset, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
            3 => {
                let data = numbers.bytes(len);
                client.write_fua(offset, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
            4 => {
                client.write_zeroes(offset, len).unwrap();
                model[range].fill(0);
            }
            5 => {
                // Whole blocks within read as zeros afterwards; here that is promised, elsewhere it is only allowed.
                client.trim_fua(offset, len).unwrap();
                let (start, end) = (range.start.next_multiple_of(4096), range.end - range.end % 4096);
                if start < end {
                    model[start..end].fill(0);
                }
            }
            6 => client.flush().unwrap(),
            _ => {
                let found = client.read(offset, len).unwrap();
                assert!(found == model[range], "round {round}: {len} bytes at {offset}");
            }
        }
    }
    assert!(client.read(0, size()).unwrap() == model);
}

#[test]
fn three_replicas_hold_just_what_clients_wrote_at_any_alignment() {
    let volume = Volume::serving(3);
    let mut model = vec![0; size()];
    scribble(&mut volume.client(), &mut model, &mut Numbers(1), 300);
    volume.client().flush().unwrap();
    volume.assert_images(&model);
    volume.stop();
}

#[test]
fn overlapping_writes_in_flight_leave_all_replicas_equal() {
    let volume = Volume::serving(3);
    let mut numbers = Numbers(2);
    let mut client = volume.client();
    let mut in_flight = 0;
    for _ in 0..2000 {
        if in_flight == 32 {
            assert_eq!(client.reply().unwrap().1, 0);
            in_flight -= 1;
        }
        let len = 4096 * (1 + numbers.below(3));
        let data = numbers.bytes(usize::try_from(len).unwrap());
        client.send(command::WRITE, 0, 4096 * numbers.below(8), data.len(), &data);
        in_flight += 1;
    }
    for _ in 0..in_flight {
        assert_eq!(client.reply().unwrap().1, 0);
    }
    client.flush().unwrap();
    let expected = client.read(0, size()).unwrap();
    volume.assert_images(&expected);
    volume.stop();
}

/// A client that writes and reads its own blocks until it is told to stop; any error, and any byte that is not what it
/// wrote last, ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<u8>>,
}

impl Load {
    fn start(volume: &Volume) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let mut client = volume.client();
        let thread = std::thread::spawn(move || {
            let (mut model, mut numbers) = (vec![0; size()], Numbers(3));
            while !stopped.load(Ordering::SeqCst) {
                scribble(&mut client, &mut model, &mut numbers, 20);
                counted.fetch_add(1, Ordering::SeqCst);
            }
            client.flush().unwrap();
            model
        });
        Self { stop, rounds, thread }
    }

    /// Waits until so many more rounds are done: I/O goes on.
    fn goes_on(&self, rounds: u64) {
        let until = std::time::Instant::now() + PATIENCE;
        let wanted = self.rounds.load(Ordering::SeqCst) + rounds;
        while self.rounds.load(Ordering::SeqCst) < wanted {
            assert!(!self.thread.is_finished(), "the load failed");
            assert!(std::time::Instant::now() < until, "I/O does not go on");
            std::thread::yield_now();
        }
    }

    fn end(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn connections_that_are_reset_are_made_again_and_nothing_is_lost() {
    let volume = Volume::serving(3);
    let load = Load::start(&volume);
    for round in 0..6 {
        volume.proxies[round % 3].reset();
        load.goes_on(1);
    }
    volume.engine().wait_state("healthy");
    let model = load.end();
    volume.assert_images(&model);
    volume.stop();
}

#[test]
fn damaged_replies_are_noticed_and_never_reach_a_client() {
    let volume = Volume::serving(3);
    let load = Load::start(&volume);
    for round in 0..9 {
        let fault = [Fault::Corrupt, Fault::Noise, Fault::Truncate][round / 3];
        let proxy = &volume.proxies[round % 3];
        proxy.fault(fault);
        while !proxy.has_hit() {
            load.goes_on(1);
        }
        load.goes_on(1);
    }
    volume.engine().wait_state("healthy");
    let model = load.end();
    volume.assert_images(&model);
    volume.stop();
}

#[test]
fn a_replica_that_dies_leaves_without_an_error_and_becomes_a_member_again() {
    let volume = Volume::serving(3);
    let load = Load::start(&volume);
    for (proxy, id) in volume.proxies.iter().zip(1..) {
        proxy.down();
        let degraded = volume.engine().wait_state("degraded");
        load.goes_on(2);
        let states: BTreeMap<_, _> = degraded.replicas.iter().map(|r| (r.id, r.mode.as_str())).collect();
        assert_eq!(states.len(), 3);
        assert!(volume.registry.lock().status.configured.len() == 3);
        volume.engine().wait("without it", |status| {
            let replicas = &status.engine.as_ref().unwrap().replicas;
            replicas.iter().any(|r| r.id == id && r.mode == "absent")
        });
        proxy.up();
        volume.engine().wait_state("healthy");
    }
    let model = load.end();
    volume.assert_images(&model);
    volume.stop();
}

#[test]
fn a_drain_finishes_refuses_and_leaves_a_clean_mark() {
    let volume = Volume::serving(2);
    let mut client = volume.client();
    client.write(8192, &[7; 4096]).unwrap();
    assert!(!volume.registry.lock().status.clean);
    let mut idle = volume.client();
    let reply = volume.engine().drain();
    assert_eq!((reply.clean, reply.reason.contains("flushed")), (true, true), "{reply:?}");
    assert!(volume.registry.lock().status.clean);
    assert!(!volume.socket("engine").exists());
    assert!(client.is_closed() && idle.is_closed());
    volume.engine().wait("left by clients", |status| {
        status.engine.as_ref().is_some_and(|engine| engine.state == "detaching" && engine.clients == 0)
    });
    assert_eq!(volume.images()[1][8192..12288], [7; 4096]);
    // Asked again, it says the same.
    assert!(volume.engine().drain().clean);
    volume.stop();
}

#[test]
fn a_request_after_the_drain_began_is_refused_and_those_before_are_finished() {
    let volume = Volume::serving(1);
    let mut client = volume.client();
    // A write whose payload has only half arrived was taken; the drain waits for the rest of it.
    let data = [5; 8192];
    client.begin_write(0, data.len(), &data[..4096]);
    let draining = std::thread::scope(|scope| {
        let drain = scope.spawn(|| volume.engine().drain());
        volume.engine().wait("stopping", |status| status.phase == "stopping");
        client.finish(&data[4096..]);
        assert_eq!(client.reply().unwrap().1, 0);
        drain.join().unwrap()
    });
    assert!(draining.clean, "{draining:?}");
    assert_eq!(volume.images()[0][..8192], data);
    volume.stop();
}

#[test]
fn an_older_engine_is_fenced_and_stays_to_say_so() {
    let volume = Volume::serving(2);
    let mut client = volume.client();
    client.write(0, &[1; 4096]).unwrap();
    let second = volume.start_engine("second");
    second.wait_state("healthy");
    let fenced = volume.engine().wait("fenced", |status| status.engine.as_ref().is_some_and(|e| e.fenced));
    assert!(fenced.reason.contains("generation 2"), "{}", fenced.reason);
    assert_eq!(fenced.engine.unwrap().nbd_socket, "");
    assert!(client.is_closed());
    assert!(!volume.socket("engine").exists());
    let mut other = Client::connect(&volume.socket("second"));
    assert_eq!(other.read(0, 4096).unwrap(), [1; 4096]);
    second.stop().unwrap();
    volume.stop();
}

#[test]
fn the_loss_of_the_last_members_suspends_and_resumes() {
    let volume = Volume::serving(2);
    let mut client = volume.client();
    client.write(0, &[1; 4096]).unwrap();
    volume.registry.lock().mood = Mood::Away;
    for proxy in &volume.proxies {
        proxy.down();
    }
    let data = [2; 4096];
    let cookie = client.send(command::WRITE, 0, 0, data.len(), &data);
    volume.engine().wait_state("suspended");
    volume.registry.lock().mood = Mood::Good;
    for proxy in &volume.proxies {
        proxy.up();
    }
    assert_eq!(client.reply(), Some((cookie, 0)));
    assert_eq!(client.read(0, 4096).unwrap(), data);
    volume.engine().wait_state("healthy");
    volume.stop();
}

#[test]
fn without_a_record_the_process_ends_with_a_reason_of_its_own() {
    let volume = Volume::new(1);
    volume.registry.lock().mood = Mood::Missing;
    let engine = volume.start_engine("engine");
    let error = engine.ended().unwrap_err();
    assert!(matches!(error, Error::EngineEnded { .. }), "{error}");
    assert_eq!(error.exit_code(), EXIT_RECORD_MISSING);
    volume.stop();
}

#[test]
fn a_client_that_sends_garbage_is_dropped_and_the_others_are_served() {
    let volume = Volume::serving(1);
    let (mut good, mut bad) = (volume.client(), volume.client());
    bad.garbage();
    assert!(bad.is_closed());
    good.write(4096, &[3; 100]).unwrap();
    assert_eq!(good.read(4096, 100).unwrap(), [3; 100]);
    assert_eq!(good.write(SIZE_BYTES, &[0; 4096]), Err(NBD_ENOSPC));
    drop(bad);
    volume.engine().wait("one client", |s| s.engine.as_ref().is_some_and(|e| e.clients == 1));
    volume.stop();
}

#[test]
fn a_start_waits_for_replicas_and_says_for_whom() {
    let volume = Volume::new(2);
    for proxy in &volume.proxies {
        proxy.down();
    }
    let engine = volume.start_engine("engine");
    let waiting = engine.wait("waiting", |status| status.reason.contains("r1"));
    assert_eq!(waiting.phase, "starting");
    assert_eq!(waiting.engine.unwrap().nbd_socket, "");
    for proxy in &volume.proxies {
        proxy.up();
    }
    engine.configure(Configured::Engine(volume.config("engine"))).unwrap();
    engine.wait_state("healthy");
    let foreign = pb::EngineConfig { size_bytes: 4096, ..volume.config("engine") };
    assert!(engine.configure(Configured::Engine(foreign)).is_err());
    engine.stop().unwrap();
    volume.stop();
}
