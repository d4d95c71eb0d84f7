//! Streams echoed in pieces of random sizes, byte for byte.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// A small generator (xorshift), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// Two connections of one driver: what `near` sends, `far` sends back, partly from buffers filled by `receive_into`,
/// partly from received bytes, in pieces of random sizes.
struct Echo {
    driver: Driver,
    near: ConnId,
    far: ConnId,
    stream: Vec<u8>,
    random: Random,
    sent: usize,
    /// Bytes that `far` has consumed or asked for by `receive_into`.
    taken: usize,
    back: usize,
    filling: bool,
    direct: usize,
}

impl Echo {
    fn new(near: OwnedFd, far: OwnedFd, total: usize, seed: u64) -> Self {
        let mut driver = driver();
        let (near, far) = (driver.add_conn(near).unwrap(), driver.add_conn(far).unwrap());
        let (stream, random) = (pattern(total, 0), Random(seed));
        Self { driver, near, far, stream, random, sent: 0, taken: 0, back: 0, filling: false, direct: 0 }
    }

    fn run(mut self) -> DriverStats {
        let mut out = Vec::new();
        while self.back < self.stream.len() {
            while self.driver.queued_bytes(self.near) < 300_000 && self.feed() {}
            let deadline = Instant::now() + PATIENCE;
            self.driver.turn(Some(deadline), &mut out).unwrap();
            assert!(
                Instant::now() < deadline,
                "stuck at {} sent, {} taken, {} back",
                self.sent,
                self.taken,
                self.back
            );
            for completion in out.drain(..) {
                self.handle(completion);
            }
        }
        assert!(self.direct > 0, "some of it went straight into buffers");
        assert_eq!((self.driver.queued_bytes(self.near), self.driver.received(self.near).len()), (0, 0));
        let (pool, stats) = (self.driver.pool().clone(), self.driver.stats());
        drop(self);
        assert_eq!([1, 5000, 100_000].map(|len| pool.available(len)), [64, 16, 8], "every buffer is back");
        stats
    }

    /// Sends the next piece, if there is one and a buffer for it.
    fn feed(&mut self) -> bool {
        let left = self.stream.len() - self.sent;
        let head = self.random.below(200).min(left);
        let scale = [10, 5000, 100_000][self.random.below(3)];
        let payload = self.random.below(scale).min(left - head);
        let lead = self.random.below(10);
        let Some(mut buf) = self.driver.pool().alloc(lead + payload) else { return false };
        let (head, rest) = self.stream[self.sent..].split_at(head);
        buf.get_mut().unwrap()[lead..].copy_from_slice(&rest[..payload]);
        self.driver.send(self.near, head, Some((&buf, lead..lead + payload)));
        self.sent += head.len() + payload;
        left > 0
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Received { conn } if conn == self.near => {
                let n = self.driver.received(conn).len();
                assert!(
                    self.driver.received(conn) == &self.stream[self.back..self.back + n],
                    "at {}",
                    self.back
                );
                // Leave a little now and then, so that the buffer does not always start afresh.
                let n = if self.back + n < self.stream.len() { n - self.random.below(n.min(100)) } else { n };
                self.driver.consume(conn, n);
                self.back += n;
            }
            Completion::Received { .. } => self.serve(),
            Completion::ReceivedInto { conn, buf } => {
                assert_eq!(conn, self.far);
                self.filling = false;
                self.direct += 1;
                self.driver.send(self.far, &[], Some((&buf, 0..buf.len())));
                self.serve();
            }
            Completion::Sent { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    /// Takes all that `far` has received, one way or another.
    fn serve(&mut self) {
        while !self.filling && !self.driver.received(self.far).is_empty() {
            let ready = self.driver.received(self.far).len();
            let len = (1 + self.random.below(ready + 50_000)).min(self.sent - self.taken);
            let buf = if self.random.below(2) == 0 { self.driver.pool().alloc(len) } else { None };
            if let Some(buf) = buf {
                self.taken += len;
                self.filling = true;
                self.driver.receive_into(self.far, buf, 0);
            } else {
                let bytes = self.driver.received(self.far)[..len.min(ready)].to_vec();
                self.taken += bytes.len();
                self.driver.consume(self.far, bytes.len());
                self.driver.send(self.far, &bytes, None);
            }
        }
    }
}

#[test]
fn echo_over_tcp() {
    for seed in 1..4 {
        let (near, far) = tcp_pair();
        Echo::new(near.into(), far.into(), 8 << 20, seed).run();
    }
}

#[test]
fn echo_over_a_unix_socket() {
    for seed in 4..7 {
        let (near, far) = UnixStream::pair().unwrap();
        Echo::new(near.into(), far.into(), 8 << 20, seed).run();
    }
}

#[test]
fn echo_with_tiny_socket_buffers_is_sent_in_parts() {
    for seed in 7..9 {
        let (near, far) = UnixStream::pair().unwrap();
        for socket in [&near, &far] {
            setsockopt(socket, sockopt::SndBuf, &1).unwrap();
            // The driver has to cope with what an asynchronous runtime hands over.
            socket.set_nonblocking(true).unwrap();
        }
        let stats = Echo::new(near.into(), far.into(), 1 << 20, seed).run();
        // Each direction takes a few KiB at a time, and a batch is up to some hundred.
        assert!(stats.sends > 100, "{stats:?}");
    }
}
