//! The driver against the real kernel: sockets, files, wakes, and the ends of their lives.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::*;

/// Far beyond what any of this takes, so that a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(30);

fn driver() -> Driver {
    let pool = Pool::new(PoolConfig { small: 64, medium: 16, large: 8 }).unwrap();
    Driver::new(DriverConfig::default(), pool).unwrap()
}

/// Turns until `pick` has found what it looks for; everything else that happens goes by it too.
fn until<T>(driver: &mut Driver, mut pick: impl FnMut(&mut Driver, Completion) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut out = Vec::new();
    let mut found = None;
    while found.is_none() {
        assert!(Instant::now() < deadline, "nothing came of it in {PATIENCE:?}");
        driver.turn(Some(deadline), &mut out).unwrap();
        for completion in out.drain(..) {
            found = found.or(pick(driver, completion));
        }
    }
    found.unwrap()
}

fn until_closed(driver: &mut Driver, id: ConnId) {
    until(driver, |_, completion| match completion {
        Completion::Closed { conn } => {
            assert_eq!(conn, id);
            Some(())
        }
        _ => None,
    });
}

fn file_result(driver: &mut Driver, wanted: u64) -> (Result<usize, Errno>, Option<Buf>) {
    until(driver, |_, completion| match completion {
        Completion::File { token, result, buf } => {
            assert_eq!(token, wanted);
            Some((result, buf))
        }
        other => panic!("{other:?}"),
    })
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0u8..251).cycle().skip(seed % 251).take(len).collect()
}

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

#[test]
fn a_batch_goes_out_in_one_send_and_nodelay_is_set() {
    let mut driver = driver();
    let (ours, mut theirs) = tcp_pair();
    assert!(!getsockopt(&ours, sockopt::TcpNoDelay).unwrap());
    let copy = ours.try_clone().unwrap();
    let conn = driver.add_conn(ours.into()).unwrap();
    assert!(getsockopt(&copy, sockopt::TcpNoDelay).unwrap());
    let mut buf = driver.pool().alloc(1000).unwrap();
    buf.get_mut().unwrap().fill(b'p');
    for _ in 0..20 {
        driver.send(conn, b"head", Some((&buf, 0..1000)));
    }
    drop(buf);
    assert_eq!(driver.queued_bytes(conn), 20 * 1004);
    until(&mut driver, |_, completion| matches!(completion, Completion::Sent { .. }).then_some(()));
    assert_eq!((driver.stats().sends, driver.stats().enters, driver.queued_bytes(conn)), (1, 1, 0));
    assert_eq!(driver.pool().available(1000), 64, "the payload is let go");
    let mut bytes = vec![0; 20 * 1004];
    theirs.read_exact(&mut bytes).unwrap();
    assert!(bytes.chunks(1004).all(|message| message.starts_with(b"headp") && message.ends_with(b"ppp")));
}

#[test]
fn receive_into_at_every_boundary() {
    // How much is there before the buffer is offered, how much of it is filled already, and how much comes after.
    for before in [0, 1, 99, 100, 101, 150] {
        for filled in [0, 1, 99, 100] {
            let mut driver = driver();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let conn = driver.add_conn(ours.into()).unwrap();
            let stream = pattern(300, 0);
            theirs.write_all(&stream[..before]).unwrap();
            if before > 0 {
                until(&mut driver, |driver, _| (driver.received(conn).len() == before).then_some(()));
            }
            let mut buf = driver.pool().alloc(100).unwrap();
            buf.get_mut().unwrap()[..filled].fill(0xff);
            driver.receive_into(conn, buf, filled);
            theirs.write_all(&stream[before..]).unwrap();
            let wanted = 100 - filled;
            let mut full = None;
            until(&mut driver, |driver, completion| {
                if let Completion::ReceivedInto { buf, .. } = completion {
                    full = Some(buf);
                }
                (driver.received(conn).len() == 300 - wanted).then_some(())
            });
            let full = full.expect("the buffer comes before what follows it");
            assert!(full.as_slice()[..filled].iter().all(|&byte| byte == 0xff));
            assert_eq!(&full.as_slice()[filled..], &stream[..wanted], "before {before} filled {filled}");
            assert_eq!(driver.received(conn), &stream[wanted..], "before {before} filled {filled}");
        }
    }
}

#[test]
fn a_full_receive_buffer_throttles_the_peer_and_goes_on() {
    let mut driver = driver();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let conn = driver.add_conn(ours.into()).unwrap();
    let stream = pattern(1 << 20, 0);
    let expected = stream.clone();
    let writer = std::thread::spawn(move || theirs.write_all(&stream).map(|()| theirs));
    until(&mut driver, |driver, _| (driver.received(conn).len() == PART_BYTES_MAX).then_some(()));
    let recvs = driver.stats().recvs;
    let mut out = Vec::new();
    driver.turn(Some(Instant::now()), &mut out).unwrap();
    assert_eq!((driver.stats().recvs, out.len()), (recvs, 0), "no room, no receive");
    let mut seen = 0;
    loop {
        let n = driver.received(conn).len();
        assert!(driver.received(conn) == &expected[seen..seen + n]);
        driver.consume(conn, n);
        seen += n;
        if seen == expected.len() {
            break;
        }
        until(&mut driver, |_, completion| matches!(completion, Completion::Received { .. }).then_some(()));
    }
    drop(writer.join().unwrap().unwrap());
}

#[test]
fn paused_connections_receive_nothing_more() {
    let mut driver = driver();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let conn = driver.add_conn(ours.into()).unwrap();
    driver.pause(conn, true);
    theirs.write_all(b"patience").unwrap();
    let mut out = Vec::new();
    driver.turn(Some(Instant::now()), &mut out).unwrap();
    assert!(out.is_empty() && driver.stats().recvs == 0);
    driver.pause(conn, false);
    until(&mut driver, |_, completion| matches!(completion, Completion::Received { .. }).then_some(()));
    assert_eq!(driver.received(conn), b"patience");
}

#[test]
fn the_end_of_the_stream_fails_once_after_its_last_bytes() {
    let mut driver = driver();
    let (ours, mut theirs) = tcp_pair();
    let conn = driver.add_conn(ours.into()).unwrap();
    theirs.write_all(b"bye").unwrap();
    drop(theirs);
    let mut last = Vec::new();
    let error = until(&mut driver, |driver, completion| match completion {
        Completion::Received { conn } => {
            last.extend_from_slice(driver.received(conn));
            let n = driver.received(conn).len();
            driver.consume(conn, n);
            None
        }
        Completion::Failed { error, .. } => Some(error),
        other => panic!("{other:?}"),
    });
    assert_eq!((last.as_slice(), error), (b"bye".as_slice(), Errno::ECONNRESET));
    driver.send(conn, b"into the void", None);
    assert_eq!(driver.queued_bytes(conn), 0);
    driver.close(conn);
    driver.close(conn);
    until_closed(&mut driver, conn);
}

#[test]
fn stale_ids_are_harmless() {
    let mut driver = driver();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stale = driver.add_conn(ours.into()).unwrap();
    driver.close(stale);
    until_closed(&mut driver, stale);
    let mut theirs = theirs;
    assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "the peer sees the end");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let fresh = driver.add_conn(ours.into()).unwrap();
    assert_ne!(stale, fresh);
    let buf = driver.pool().alloc(4).unwrap();
    driver.send(stale, b"lost", Some((&buf, 0..4)));
    driver.receive_into(stale, buf, 0);
    driver.pause(stale, true);
    driver.consume(stale, 1000);
    driver.close(stale);
    driver.close_after_sends(stale);
    assert_eq!((driver.received(stale), driver.queued_bytes(stale)), ([].as_slice(), 0));
    theirs.write_all(b"hello").unwrap();
    until(&mut driver, |driver, _| (driver.received(fresh) == b"hello").then_some(()));

    let file = driver.add_file(tempfile::tempfile().unwrap().into());
    driver.remove_file(file);
    let buf = driver.pool().alloc(4).unwrap();
    driver.write(file, 9, 0, buf, 0..4);
    let (result, buf) = file_result(&mut driver, 9);
    assert_eq!((result, buf.unwrap().len()), (Err(Errno::EBADF), 4));
    assert_eq!(driver.write_inline(file, 0, b"x"), Err(Errno::EBADF));
}

#[test]
fn closing_waits_for_what_is_in_flight_and_lets_its_buffers_go() {
    let mut driver = driver();
    let (ours, theirs) = tcp_pair();
    let watch = ours.try_clone().unwrap();
    let conn = driver.add_conn(ours.into()).unwrap();
    // The peer reads nothing: the send stays in flight, like the receive into a buffer.
    let buf = driver.pool().alloc(PART_BYTES_MAX).unwrap();
    for _ in 0..64 {
        driver.send(conn, &[], Some((&buf, 0..PART_BYTES_MAX)));
    }
    drop(buf);
    let into = driver.pool().alloc(PART_BYTES_MAX).unwrap();
    driver.receive_into(conn, into, 0);
    let mut out = Vec::new();
    for _ in 0..20 {
        driver.turn(Some(Instant::now()), &mut out).unwrap();
    }
    assert!(driver.queued_bytes(conn) > 0 && out.is_empty());
    driver.close(conn);
    assert_eq!(driver.pool().available(PART_BYTES_MAX), 6, "both buffers are still the kernel's");
    until_closed(&mut driver, conn);
    assert_eq!(driver.pool().available(PART_BYTES_MAX), 8);
    drop((watch, theirs));
}

#[test]
fn closing_after_sends_delivers_everything_first() {
    let mut driver = driver();
    let (ours, mut theirs) = tcp_pair();
    let conn = driver.add_conn(ours.into()).unwrap();
    let mut buf = driver.pool().alloc(PART_BYTES_MAX).unwrap();
    buf.get_mut().unwrap().fill(7);
    for _ in 0..32 {
        driver.send(conn, &[], Some((&buf, 0..PART_BYTES_MAX)));
    }
    driver.close_after_sends(conn);
    driver.close_after_sends(conn);
    driver.send(conn, b"too late", None);
    theirs.write_all(b"nobody listens").unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).map(|_| all)
    });
    until_closed(&mut driver, conn);
    let all = reader.join().unwrap().unwrap();
    assert!(all.len() == 32 * PART_BYTES_MAX && all.iter().all(|&byte| byte == 7));
}

#[test]
fn dropping_the_driver_with_everything_in_flight_returns_every_buffer() {
    let mut driver = driver();
    let pool = driver.pool().clone();
    let (ours, theirs) = tcp_pair();
    let conn = driver.add_conn(ours.into()).unwrap();
    let buf = pool.alloc(PART_BYTES_MAX).unwrap();
    for _ in 0..64 {
        driver.send(conn, &[], Some((&buf, 0..PART_BYTES_MAX)));
    }
    drop(buf);
    driver.receive_into(conn, pool.alloc(PART_BYTES_MAX).unwrap(), 0);
    let file = driver.add_file(tempfile::tempfile().unwrap().into());
    for block in 0..32 {
        driver.write(file, block, block * 4096, pool.alloc(4096).unwrap(), 0..4096);
        driver.fdatasync(file, 100);
    }
    driver.turn(Some(Instant::now()), &mut Vec::new()).unwrap();
    driver.write(file, 99, 0, pool.alloc(4096).unwrap(), 0..1);
    let waker = driver.waker();
    drop(driver);
    assert_eq!([1, 100_000].map(|len| pool.available(len)), [64, 8]);
    waker.wake();
    drop(theirs);
}

#[test]
fn many_connections_and_operations_share_a_small_ring() {
    let pool = Pool::new(PoolConfig { small: 200, medium: 0, large: 0 }).unwrap();
    let mut driver = Driver::new(DriverConfig { entries: 2, conns: 1, file_ops: 1 }, pool).unwrap();
    let mut peers = HashMap::new();
    for i in 0..30u8 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let conn = driver.add_conn(ours.into()).unwrap();
        driver.send(conn, &[i], None);
        peers.insert(conn, (i, theirs));
    }
    let file = driver.add_file(tempfile::tempfile().unwrap().into());
    for block in 0..100 {
        let buf = driver.pool().alloc(4096).unwrap();
        driver.write(file, block, block * 4096, buf, 0..4096);
    }
    assert_eq!(driver.files_in_flight(file), 100);
    let mut seen = 0;
    until(&mut driver, |_, completion| {
        match completion {
            Completion::Sent { .. } => seen += 1,
            Completion::File { result, .. } => {
                assert_eq!(result, Ok(4096));
                seen += 1;
            }
            other => panic!("{other:?}"),
        }
        (seen == 130).then_some(())
    });
    assert_eq!(driver.files_in_flight(file), 0);
    for (conn, (i, theirs)) in &mut peers {
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [*i]);
        driver.close(*conn);
    }
    let mut closed = 0;
    until(&mut driver, |_, completion| {
        closed += usize::from(matches!(completion, Completion::Closed { .. }));
        (closed == 30).then_some(())
    });
}

#[test]
fn files_are_written_read_synced_punched_and_searched() {
    let mut driver = driver();
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let id = driver.add_file(file.try_clone().unwrap().into());
    let mut buf = driver.pool().alloc(8192).unwrap();
    buf.get_mut().unwrap().copy_from_slice(&pattern(8192, 3));
    driver.write(id, 1, 65536, buf.clone(), 0..8192);
    let (result, back) = file_result(&mut driver, 1);
    assert_eq!((result, back.is_some()), (Ok(8192), true));
    drop(back);
    driver.fdatasync(id, 2);
    assert_eq!(file_result(&mut driver, 2).0, Ok(0));

    let into = driver.pool().alloc(8192).unwrap();
    driver.read(id, 3, 65536 + 4096, into, 4096);
    let (result, read) = file_result(&mut driver, 3);
    assert_eq!(result, Ok(4096));
    assert_eq!(&read.unwrap().as_slice()[..4096], &buf.as_slice()[4096..]);
    let into = driver.pool().alloc(8192).unwrap();
    driver.read(id, 4, (1 << 20) - 100, into, 8192);
    assert_eq!(file_result(&mut driver, 4).0, Ok(100), "the end of the file");

    let (len, allocated) = driver.seek_extent(id, 0, 1 << 20).unwrap();
    assert_eq!((len, allocated), (65536, false));
    assert_eq!(driver.seek_extent(id, 65536, 1 << 20), Ok((8192, true)));
    assert_eq!(driver.seek_extent(id, 65536, 65536 + 100), Ok((100, true)));
    assert_eq!(driver.seek_extent(id, 65536 + 8192, 1 << 20), Ok(((1 << 20) - 65536 - 8192, false)));
    assert_eq!(driver.seek_extent(id, 5, 5), Ok((0, false)));

    driver.fallocate(id, 5, FallocateMode::PunchHole, 65536, 4096);
    assert_eq!(file_result(&mut driver, 5).0, Ok(0));
    assert_eq!(driver.seek_extent(id, 65536, 1 << 20), Ok((4096, false)));
    driver.write_inline(id, 100, b"inline").unwrap();
    let mut out = [1; 6];
    if driver.read_cached(id, 100, &mut out).unwrap() {
        assert_eq!(&out, b"inline");
    }
    assert_eq!(driver.read_cached(id, (1 << 20) - 3, &mut out), Ok(false), "never short");
    assert_eq!(file.metadata().unwrap().len(), 1 << 20, "no size has changed");
}

#[test]
fn a_file_error_is_reported_with_its_buffer() {
    let mut driver = driver();
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let id = driver.add_file(read_only.into());
    let buf = driver.pool().alloc(4096).unwrap();
    driver.write(id, 1, 0, buf, 0..4096);
    let (result, buf) = file_result(&mut driver, 1);
    assert_eq!((result, buf.unwrap().len()), (Err(Errno::EBADF), 4096));
}

#[test]
#[should_panic(expected = "nothing is in flight")]
fn a_file_in_use_is_not_removed() {
    let mut driver = driver();
    let id = driver.add_file(tempfile::tempfile().unwrap().into());
    driver.fdatasync(id, 1);
    driver.remove_file(id);
}

#[test]
fn another_thread_wakes_the_driver_and_no_message_is_lost() {
    let mut driver = driver();
    let waker = driver.waker();
    let (messages, inbox) = std::sync::mpsc::channel();
    let sender = std::thread::spawn(move || {
        for i in 0..20_000u32 {
            messages.send(i).unwrap();
            waker.wake();
        }
    });
    let mut next = 0;
    until(&mut driver, |_, completion| {
        assert!(matches!(completion, Completion::Wake));
        for message in inbox.try_iter() {
            assert_eq!(message, next);
            next += 1;
        }
        (next == 20_000).then_some(())
    });
    sender.join().unwrap();
    assert!(driver.stats().wakes <= 20_000);
}

#[test]
fn wakes_coalesce_and_a_time_that_has_passed_does_not_block() {
    let mut driver = driver();
    let mut out = Vec::new();
    driver.turn(Some(Instant::now()), &mut out).unwrap();
    assert!(out.is_empty());
    let enters = driver.stats().enters;
    for _ in 0..100 {
        driver.turn(Some(Instant::now()), &mut out).unwrap();
    }
    assert!(driver.stats().enters == enters || driver.features().contains("no task-run"), "spinning is free");
    let waker = driver.waker();
    waker.wake();
    waker.wake();
    until(&mut driver, |_, completion| matches!(completion, Completion::Wake).then_some(()));
    driver.turn(Some(Instant::now()), &mut out).unwrap();
    assert!(out.is_empty(), "two wakes before a turn are one");
}

#[test]
fn a_turn_ends_at_its_time_with_nothing_to_report() {
    let mut driver = driver();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    driver.add_conn(ours.into()).unwrap();
    let mut out = Vec::new();
    let until = Instant::now() + Duration::from_millis(20);
    driver.turn(Some(until), &mut out).unwrap();
    assert!(out.is_empty() && Instant::now() >= until, "not before its time");
}
