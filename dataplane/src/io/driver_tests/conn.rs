//! Connections: batches, buffers to receive into, back pressure, and their ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};

use super::*;

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
fn what_was_received_before_a_failure_can_still_be_read() {
    let mut driver = driver();
    let (ours, mut theirs) = tcp_pair();
    let conn = driver.add_conn(ours.into()).unwrap();
    theirs.write_all(b"last words").unwrap();
    drop(theirs);
    until(&mut driver, |_, completion| matches!(completion, Completion::Failed { .. }).then_some(()));
    assert_eq!(driver.received(conn), b"last words");
    driver.consume(conn, 5);
    assert_eq!(driver.received(conn), b"words");
    let buf = driver.pool().alloc(5).unwrap();
    driver.receive_into(conn, buf, 0);
    assert_eq!(driver.pool().available(5), 64, "a failed connection fills nothing");
    driver.close(conn);
    assert_eq!(driver.received(conn), b"");
    until_closed(&mut driver, conn);
}

#[test]
fn input_ended_closes_only_what_is_not_to_outlive_it() {
    let mut driver = driver();
    for outlives in [false, true] {
        let (ours, mut theirs) = tcp_pair();
        let conn = driver.add_conn(ours.into()).unwrap();
        if outlives {
            driver.keep_sending_after_end(conn);
        }
        theirs.write_all(b"last words").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let ended = until(&mut driver, |_, completion| match completion {
            Completion::Ended { .. } => Some(true),
            Completion::Failed { .. } => Some(false),
            _ => None,
        });
        assert_eq!((ended, driver.received(conn)), (outlives, &b"last words"[..]));
        driver.send(conn, b"reply", None);
        driver.close_after_sends(conn);
        until_closed(&mut driver, conn);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert_eq!(received, if outlives { &b"reply"[..] } else { b"" });
    }
}
