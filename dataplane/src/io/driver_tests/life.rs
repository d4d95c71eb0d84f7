//! Turns, wakes, stale ids, a ring that is too small, and the driver's own end.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;

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
    let mut driver = Driver::new(DriverConfig { entries: 1, conns: 1, file_ops: 1 }, pool).unwrap();
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

#[test]
fn spinning_sees_what_arrives() {
    let mut driver = driver();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let conn = driver.add_conn(ours.into()).unwrap();
    let mut out = Vec::new();
    for round in 0..100u8 {
        theirs.write_all(&[round]).unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Never waits: what arrives must show without a system call that asks for it.
        while driver.received(conn).is_empty() {
            assert!(Instant::now() < deadline, "spun in vain");
            driver.turn(Some(Instant::now()), &mut out).unwrap();
        }
        assert_eq!(driver.received(conn), [round]);
        driver.consume(conn, 1);
        driver.turn(Some(Instant::now()), &mut out).unwrap();
        out.clear();
    }
}
