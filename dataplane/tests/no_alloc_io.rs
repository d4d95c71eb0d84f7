//! Shows that the hot loop's I/O allocates nothing once it is warm.
//!
//! The whole file is one test: it has an allocator of its own.

mod no_alloc_counting;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_dataplane::io::{Completion, ConnId, Driver, DriverConfig, FileId, Pool, PoolConfig};
use no_alloc_counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::threads_named("counted");

const HEAD: usize = 64;
const PAYLOAD: usize = 4096;
const DEPTH: u64 = 16;

/// A client that sends requests of a head and a payload, and a server that writes each payload to a file and sends it
/// back; one request in two takes the way of a buffer that the stream is received into.
struct Loop {
    driver: Driver,
    client: ConnId,
    server: ConnId,
    file: FileId,
    out: Vec<Completion>,
    issued: u64,
    finished: u64,
    filling: bool,
}

impl Loop {
    fn new() -> Self {
        let pool = Pool::new(PoolConfig { small: 64, medium: 0, large: 0 }).unwrap();
        let mut driver = Driver::new(DriverConfig::default(), pool).unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let (client, server) = (OwnedFd::from(client), OwnedFd::from(server));
        let (client, server) = (driver.add_conn(client).unwrap(), driver.add_conn(server).unwrap());
        let file = driver.add_file(tempfile::tempfile().unwrap().into());
        Self {
            driver,
            client,
            server,
            file,
            out: Vec::with_capacity(1024),
            issued: 0,
            finished: 0,
            filling: false,
        }
    }

    fn run(&mut self, round_trips: u64) {
        let goal = self.finished + round_trips;
        while self.finished < goal {
            while self.issued < goal && self.issued - self.finished < DEPTH {
                let payload = self.driver.pool().alloc(PAYLOAD).expect("sized for the depth");
                self.driver.send(self.client, &[7; HEAD], Some((&payload, 0..PAYLOAD)));
                self.issued += 1;
            }
            let deadline = Instant::now() + Duration::from_secs(30);
            let mut out = std::mem::take(&mut self.out);
            self.driver.turn(Some(deadline), &mut out).unwrap();
            assert!(!out.is_empty(), "stuck at {} of {}", self.finished, self.issued);
            for completion in out.drain(..) {
                self.handle(completion);
            }
            self.out = out;
        }
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Received { conn } if conn == self.client => {
                let replies = self.driver.received(conn).len() / (HEAD + PAYLOAD);
                self.driver.consume(conn, replies * (HEAD + PAYLOAD));
                self.finished += u64::try_from(replies).unwrap();
            }
            Completion::Received { .. } => self.serve(),
            Completion::ReceivedInto { buf, .. } => {
                self.filling = false;
                self.driver.write(self.file, 0, 0, buf, 0..PAYLOAD);
                self.serve();
            }
            Completion::File { result, buf, .. } => {
                assert_eq!(result, Ok(PAYLOAD));
                self.driver.send(self.server, &[8; HEAD], Some((&buf.unwrap(), 0..PAYLOAD)));
            }
            Completion::Sent { .. } | Completion::Wake => {}
            other => panic!("{other:?}"),
        }
    }

    fn serve(&mut self) {
        while !self.filling && self.driver.received(self.server).len() >= HEAD {
            self.driver.consume(self.server, HEAD);
            let payload = self.driver.pool().alloc(PAYLOAD).expect("sized for the depth");
            self.filling = true;
            self.driver.receive_into(self.server, payload, 0);
        }
    }
}

#[test]
fn ten_thousand_round_trips_allocate_nothing() {
    let counted = std::thread::Builder::new().name("counted".to_owned()).spawn(round_trips).unwrap();
    counted.join().unwrap();
}

fn round_trips() {
    let mut ring = Loop::new();
    let waker = ring.driver.waker();
    ring.run(2_000);
    waker.wake();
    let before = ALLOCATOR.allocations();
    ring.run(10_000);
    waker.wake();
    ring.run(100);
    let allocated = ALLOCATOR.allocations() - before;
    assert_eq!(allocated, 0, "allocations in 10,100 round trips");
    let counted = ALLOCATOR.allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATOR.allocations() > counted, "the allocator does count");
}
