//! One behaviour each.

use std::time::Duration;

use super::decoder::{Reply, decode};
use super::rig::{Rig, SIMPLE, STRUCTURED, request};
use crate::frontend::nbd::proto::{RequestHeader, command, command_flag as flag};
use crate::frontend::nbd::{ClientLimits, Negotiated, Violation};
use crate::frontend::{BlockError, BlockKind, BlockRequest, IoKind, KindCounters};
use crate::io::{PART_BYTES_MAX, PoolConfig};

const PART: u64 = PART_BYTES_MAX as u64;
const PART_U32: u32 = 256 * 1024;
const SIZE: usize = 64 << 20;

fn part(kind: BlockKind, offset: u64, len: u64) -> BlockRequest {
    BlockRequest { kind, offset, len, fua: false }
}

/// The reply to the only request.
fn reply(rig: &Rig, header: &[u8; 28], structured: bool) -> Reply {
    let header = RequestHeader::parse(header).unwrap();
    decode(&rig.link.sent, &[header], structured).remove(&header.cookie).unwrap()
}

fn error_of(negotiated: Negotiated, header: &[u8; 28], payload: &[u8]) -> u32 {
    let mut rig = Rig::new(negotiated, SIZE);
    rig.feed(header).unwrap();
    rig.feed(payload).unwrap();
    assert!(rig.pending.is_empty(), "a refused request has no parts");
    // What follows is understood: nothing of the payload was taken for a request.
    let next = request(command::FLUSH, 0, 99, 0, 0);
    rig.feed(&next).unwrap();
    assert_eq!(rig.kinds(), [part(BlockKind::Flush, 0, 0)]);
    reply(&rig, header, negotiated.structured_replies).error
}

#[test]
fn requests_are_refused_with_the_error_of_the_specification() {
    let end = u64::try_from(SIZE).unwrap();
    for (header, payload, expected) in [
        (request(command::READ, 0, 1, end - 10, 11), 0, 22),
        (request(command::READ, 0, 1, u64::MAX, 2), 0, 22),
        (request(command::READ, 0, 1, 0, (32 << 20) + 1), 0, 22),
        (request(command::READ, flag::REQ_ONE, 1, 0, 1), 0, 22),
        (request(command::READ, 1 << 15, 1, 0, 1), 0, 22),
        (request(command::READ, flag::DF, 1, 0, 32 << 20), 0, 75),
        (request(command::WRITE, 0, 1, end - 10, 11), 11, 28),
        (request(command::WRITE, 0, 1, u64::MAX, 300_000), 300_000, 28),
        (request(command::WRITE, flag::DF, 1, 0, 5000), 5000, 22),
        (request(command::FLUSH, 0, 1, 1, 0), 0, 22),
        (request(command::TRIM, 0, 1, end, 1), 0, 22),
        (request(command::WRITE_ZEROES, 0, 1, end, 1), 0, 28),
        (request(command::WRITE_ZEROES, flag::FAST_ZERO, 1, 0, 4096), 0, 95),
        (request(command::BLOCK_STATUS, 0, 1, 0, 0), 0, 22),
        (request(command::BLOCK_STATUS, 0, 1, end, 1), 0, 22),
        (request(5, 0, 1, 0, 1), 0, 22),
        (request(u16::MAX, 0, 1, 0, 1), 0, 22),
    ] {
        let error = error_of(STRUCTURED, &header, &vec![0x25; payload]);
        assert_eq!(error, expected, "{:?}", RequestHeader::parse(&header));
    }
    let unfragmented = request(command::READ, flag::DF, 1, 0, 4096);
    assert_eq!(error_of(SIMPLE, &unfragmented, &[]), 22, "DF without structured replies");
    let status = request(command::BLOCK_STATUS, 0, 1, 0, 4096);
    assert_eq!(error_of(SIMPLE, &status, &[]), 22, "no metadata context was selected");
}

#[test]
fn a_request_of_no_length_succeeds_at_once() {
    for negotiated in [SIMPLE, STRUCTURED] {
        for command in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let mut rig = Rig::new(negotiated, SIZE);
            let header = request(command, flag::FUA, 5, u64::try_from(SIZE).unwrap(), 0);
            rig.feed(&header).unwrap();
            assert!(rig.pending.is_empty());
            assert_eq!(reply(&rig, &header, negotiated.structured_replies).error, 0);
        }
    }
}

#[test]
fn violations_end_the_session_and_leave_nothing_in_flight() {
    let mut rig = Rig::new(SIMPLE, SIZE);
    rig.feed(&request(command::READ, 0, 1, 0, 4096)).unwrap();
    let error = rig.feed(&[0xff; 28]).unwrap_err();
    assert!(matches!(error, Violation::BadMagic(_)), "{error}");
    assert!(!rig.client.disconnecting(), "a part is still in flight");
    rig.complete(0);
    assert!(rig.client.disconnecting());
    assert!(rig.link.sent.is_empty(), "nothing is sent to whom we no longer understand");

    let mut rig = Rig::new(SIMPLE, SIZE);
    let error = rig.feed(&request(command::WRITE, 0, 1, 0, (32 << 20) + 1)).unwrap_err();
    assert_eq!(error, Violation::OversizedWrite { len: (32 << 20) + 1 });
}

#[test]
fn requests_are_cut_at_boundaries_of_parts() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    rig.feed(&request(command::READ, 0, 1, PART - 100, PART_U32 + 300)).unwrap();
    let read = |offset, len| part(BlockKind::Read, offset, len);
    assert_eq!(rig.kinds(), [read(PART - 100, 100), read(PART, PART), read(2 * PART, 200)]);
    rig.finish(|n| n - 1).unwrap();

    let mut rig = Rig::new(SIMPLE, SIZE);
    rig.feed(&request(command::WRITE_ZEROES, flag::FUA, 1, 4000, 3 * PART_U32)).unwrap();
    let fua = |kind, offset, len| BlockRequest { fua: true, ..part(kind, offset, len) };
    let zeroes = BlockKind::WriteZeroes { may_punch: true };
    let expected = [
        fua(BlockKind::Write, 4000, 96),
        fua(zeroes, 4096, 3 * PART - 4096),
        fua(BlockKind::Write, 3 * PART, 4000),
    ];
    assert_eq!(rig.kinds(), expected);
    rig.finish(|_| 0).unwrap();

    rig.feed(&request(command::WRITE_ZEROES, flag::NO_HOLE, 2, 0, 8192)).unwrap();
    assert_eq!(rig.kinds(), [part(BlockKind::WriteZeroes { may_punch: false }, 0, 8192)]);
    rig.finish(|_| 0).unwrap();

    rig.feed(&request(command::TRIM, 0, 3, 1, 3 * 4096)).unwrap();
    assert_eq!(rig.kinds(), [part(BlockKind::Trim, 4096, 2 * 4096)]);
    rig.finish(|_| 0).unwrap();

    let small = request(command::TRIM, 0, 4, 1, 4096);
    rig.link.sent.clear();
    rig.feed(&small).unwrap();
    assert!(rig.pending.is_empty(), "no whole block is concerned");
    assert_eq!(reply(&rig, &small, false).error, 0);
}

#[test]
fn chunks_go_out_as_parts_complete() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    let header = request(command::READ, 0, 1, 0, 3 * PART_U32);
    rig.feed(&header).unwrap();
    rig.complete(1);
    let first = reply(&rig, &header, true);
    assert!(!first.done && first.content_chunks == 1);
    assert!(first.data[0].is_none() && first.data[PART_BYTES_MAX].is_some(), "in the order of completion");
    rig.finish(|_| 0).unwrap();
    let last = reply(&rig, &header, true);
    assert!(last.done && last.content_chunks == 3 && last.bytes().len() == 3 * PART_BYTES_MAX);
}

#[test]
fn an_unfragmented_read_is_one_chunk() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    let header = request(command::READ, flag::DF, 1, 100, 2 * PART_U32);
    rig.feed(&header).unwrap();
    rig.complete(1);
    rig.complete(0);
    assert!(rig.link.sent.is_empty(), "not before all is there");
    rig.finish(|_| 0).unwrap();
    let reply = reply(&rig, &header, true);
    assert!(reply.done && reply.content_chunks == 1 && reply.error == 0);
}

#[test]
fn errors_are_told_in_the_clients_terms() {
    for (error, number) in [
        (BlockError::Io, 5),
        (BlockError::NoSpace, 28),
        (BlockError::Invalid, 22),
        (BlockError::Shutdown, 108),
    ] {
        let requests = [
            (request(command::READ, 0, 1, 0, 2 * PART_U32), STRUCTURED),
            (request(command::READ, flag::DF, 1, 0, 2 * PART_U32), STRUCTURED),
            (request(command::READ, 0, 1, 0, 2 * PART_U32), SIMPLE),
            (request(command::FLUSH, 0, 1, 0, 0), SIMPLE),
            (request(command::TRIM, 0, 1, 0, 4096), STRUCTURED),
            (request(command::WRITE_ZEROES, 0, 1, 0, 5000), STRUCTURED),
            (request(command::BLOCK_STATUS, 0, 1, 0, 5000), STRUCTURED),
        ];
        for (header, negotiated) in requests {
            for order in [[true, false], [false, true], [true, true]] {
                let mut rig = Rig::new(negotiated, SIZE);
                rig.feed(&header).unwrap();
                let mut fail = order.iter().cycle().skip(usize::from(rig.pending.len() == 1 && !order[0]));
                while !rig.pending.is_empty() {
                    if *fail.next().unwrap() { rig.fail(0, error) } else { rig.complete(0) }
                }
                let reply = reply(&rig, &header, negotiated.structured_replies);
                assert!(reply.done && reply.error == number, "{reply:?}");
                assert_eq!(rig.client.in_flight(), 0);
                assert!(!rig.client.disconnecting());
            }
        }
    }
}

#[test]
fn a_failed_write_is_told_after_its_payload_and_its_last_part() {
    let mut rig = Rig::new(SIMPLE, SIZE);
    let header = request(command::WRITE, 0, 1, 0, 4 * PART_U32);
    rig.feed(&header).unwrap();
    rig.feed(&vec![1; 2 * PART_BYTES_MAX + 10]).unwrap();
    assert_eq!(rig.pending.len(), 2);
    rig.fail(0, BlockError::NoSpace);
    assert!(rig.link.sent.is_empty());
    rig.feed(&vec![1; 2 * PART_BYTES_MAX - 10]).unwrap();
    assert!(rig.link.sent.is_empty(), "a part is in flight");
    assert!(rig.pending.len() <= 2, "the rest is not worth writing");
    rig.finish(|_| 0).unwrap();
    assert_eq!(reply(&rig, &header, false).error, 28);
    rig.link.sent.clear();
    let flush = request(command::FLUSH, 0, 2, 0, 0);
    rig.feed(&flush).unwrap();
    rig.finish(|_| 0).unwrap();
    assert_eq!(reply(&rig, &flush, false).error, 0, "the stream is still understood");
}

#[test]
fn a_long_simple_read_goes_out_in_order_and_ends_the_connection_on_an_error() {
    let limits = ClientLimits { bytes_max: 1 << 20, gather_bytes_max: PART_BYTES_MAX, requests_max: 8 };
    let pool = PoolConfig { small: 1, medium: 1, large: 8 };
    let mut rig = Rig::with(SIMPLE, SIZE, limits, pool);
    let header = request(command::READ, 0, 1, 0, 8 * PART_U32);
    rig.feed(&header).unwrap();
    assert_eq!(rig.pending.len(), 4, "not more than the client's bound");
    assert!(rig.client.starved());
    rig.complete(1);
    assert!(rig.link.sent.is_empty(), "the first part comes first");
    rig.complete(0);
    assert_eq!(rig.link.sent.len(), 16 + 2 * PART_BYTES_MAX);
    rig.parse().unwrap();
    assert!(rig.client.starved(), "what is queued counts too");
    rig.link.queued = 0;
    rig.parse().unwrap();
    assert_eq!(rig.pending.len(), 4);
    let sent = rig.link.sent.len();
    rig.fail(0, BlockError::Io);
    while !rig.pending.is_empty() {
        assert!(!rig.client.disconnecting());
        rig.complete(0);
    }
    assert!(rig.client.disconnecting(), "there is no other way to tell");
    assert_eq!(rig.link.sent.len(), sent);
}

#[test]
fn large_payloads_are_received_in_place_and_small_ones_are_not() {
    let mut rig = Rig::new(SIMPLE, SIZE);
    rig.feed(&request(command::WRITE, 0, 1, 0, PART_U32)).unwrap();
    rig.feed(&[7; 1000]).unwrap();
    assert_eq!(rig.link.directs, 1);
    // The next request comes with the payload's end.
    let rest = [&vec![7; PART_BYTES_MAX - 1000][..], &request(command::WRITE, 0, 2, 5, 4096)].concat();
    rig.feed(&rest).unwrap();
    rig.feed(&[8; 4000]).unwrap();
    rig.feed(&[8; 96]).unwrap();
    assert_eq!(rig.link.directs, 1);
    assert_eq!(rig.kinds(), [part(BlockKind::Write, 0, PART), part(BlockKind::Write, 5, 4096)]);
    rig.finish(|_| 0).unwrap();
    assert_eq!(rig.disk.bytes[..5], [7; 5]);
    assert_eq!(rig.disk.bytes[5..5 + 4096], [8; 4096]);
    assert_eq!(rig.disk.bytes[5 + 4096..PART_BYTES_MAX], vec![7; PART_BYTES_MAX - 4101]);
}

#[test]
fn want_of_buffers_stops_parsing_until_they_are_back() {
    let mut rig =
        Rig::with(SIMPLE, SIZE, ClientLimits::default(), PoolConfig { small: 1, medium: 1, large: 1 });
    let taken = rig.link.pool.alloc(4096).unwrap();
    rig.feed(&request(command::WRITE, 0, 1, 0, 4096)).unwrap();
    rig.feed(&[1; 4096]).unwrap();
    assert!(rig.client.starved() && rig.pending.is_empty());
    rig.parse().unwrap();
    assert!(rig.client.starved());
    drop(taken);
    rig.parse().unwrap();
    assert!(!rig.client.starved());
    assert_eq!(rig.pending.len(), 1);
}

#[test]
fn requests_in_flight_are_bounded() {
    let limits = ClientLimits { requests_max: 4, ..ClientLimits::default() };
    let mut rig = Rig::with(SIMPLE, SIZE, limits, PoolConfig { small: 8, medium: 1, large: 1 });
    for cookie in 0..10 {
        rig.feed(&request(command::FLUSH, 0, cookie, 0, 0)).unwrap();
    }
    assert_eq!((rig.pending.len(), rig.client.in_flight(), rig.client.starved()), (4, 4, true));
    rig.finish(|n| n - 1).unwrap();
    let headers: Vec<_> = (0..10).map(|cookie| super::rig::header(command::FLUSH, 0, cookie, 0, 0)).collect();
    assert_eq!(decode(&rig.link.sent, &headers, false).len(), 10);
}

#[test]
fn replies_nobody_reads_do_not_pile_up() {
    let limits = ClientLimits { bytes_max: 1 << 20, ..ClientLimits::default() };
    let mut rig = Rig::with(SIMPLE, SIZE, limits, PoolConfig { small: 1, medium: 1, large: 1 });
    let refused = request(99, 0, 1, 0, 0).repeat(1000);
    for _ in 0..200 {
        rig.feed(&refused).unwrap();
    }
    assert!(rig.client.starved());
    assert!(rig.link.sent.len() <= (1 << 20) + 16, "{} bytes are queued", rig.link.sent.len());
}

#[test]
fn a_disconnect_waits_for_what_was_asked_before() {
    let mut rig = Rig::new(SIMPLE, SIZE);
    let write = request(command::WRITE, 0, 1, 0, 4096);
    rig.feed(&write).unwrap();
    rig.feed(&[1; 4096]).unwrap();
    rig.feed(&request(command::DISC, 0, 2, 0, 0)).unwrap();
    rig.feed(b"what comes after it is dropped").unwrap();
    assert!(!rig.client.disconnecting());
    rig.complete(0);
    assert!(rig.client.disconnecting());
    assert_eq!(reply(&rig, &write, false).error, 0);
}

#[test]
fn half_closed_client_gets_the_replies_to_all_it_sent() {
    let whole = [
        request(command::READ, 0, 1, 0, 4096).to_vec(),
        [&request(command::WRITE, 0, 2, 0, 300_000)[..], &vec![1; 300_000]].concat(),
        request(command::READ, 0, 3, 0, 4 * PART_U32).to_vec(),
    ];
    let headers: Vec<_> =
        whole.iter().map(|bytes| RequestHeader::parse(bytes.first_chunk().unwrap()).unwrap()).collect();
    // What is cut short behind them, at each place where a request can be, is not answered.
    let large = [&request(command::WRITE, 0, 9, 1 << 20, 3 * PART_U32)[..], &vec![2; 300_000]].concat();
    let refused = [&request(command::WRITE, 0, 9, 1 << 60, 5000)[..], &[2; 100]].concat();
    for cut in [&b""[..], &whole[0][..20], &large[..28], &large[..1000], &large[..20_000], &large, &refused] {
        for negotiated in [SIMPLE, STRUCTURED] {
            let mut rig = Rig::new(negotiated, SIZE);
            rig.feed(&whole.concat()).unwrap();
            rig.feed(cut).unwrap();
            rig.end_input().unwrap();
            assert!(!rig.client.disconnecting(), "the replies are still to come");
            rig.finish(|n| n - 1).unwrap();
            let replies = decode(&rig.link.sent, &headers, negotiated.structured_replies);
            assert_eq!([1, 2, 3].map(|cookie| replies[&cookie].error), [0; 3], "{} bytes", cut.len());
            assert!(rig.client.disconnecting());
            assert_eq!(rig.link.pool.available(PART_BYTES_MAX), 160);
        }
    }
}

#[test]
fn half_closed_client_is_answered_what_it_had_no_room_for() {
    let limits = ClientLimits { requests_max: 1, ..ClientLimits::default() };
    let mut rig = Rig::with(SIMPLE, SIZE, limits, PoolConfig { small: 1, medium: 1, large: 1 });
    let requests = [1, 2, 3].map(|cookie| request(command::READ, 0, cookie, 0, 4096));
    rig.feed(&requests.concat()).unwrap();
    rig.end_input().unwrap();
    assert!(rig.client.starved() && !rig.client.disconnecting());
    rig.finish(|_| 0).unwrap();
    let headers = requests.map(|bytes| RequestHeader::parse(&bytes).unwrap());
    assert_eq!(decode(&rig.link.sent, &headers, false).len(), 3);
    assert!(rig.client.disconnecting());
}

#[test]
fn gathered_read_begins_with_room_for_all_of_it_or_not() {
    let pool = PoolConfig { small: 16, medium: 1, large: 4 };
    let mut rig = Rig::with(SIMPLE, SIZE, ClientLimits::default(), pool);
    let mut held: Vec<_> = (0..3).map(|_| rig.link.pool.alloc(PART_BYTES_MAX).unwrap()).collect();
    rig.feed(&request(command::READ, 0, 1, 0, 2 * PART_U32)).unwrap();
    assert!(rig.client.starved() && rig.client.waits_for_buffers());
    assert_eq!(rig.link.pool.available(PART_BYTES_MAX), 1, "it keeps no buffer from others meanwhile");
    held.pop();
    rig.parse().unwrap();
    assert_eq!((rig.pending.len(), rig.client.waits_for_buffers()), (2, false));
    rig.finish(|_| 0).unwrap();
}

#[test]
fn a_drain_finishes_what_was_taken_and_refuses_the_rest() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    let requests = [
        request(command::WRITE, 0, 1, 0, 8192),
        request(command::WRITE, 0, 2, 0, 4096),
        request(command::READ, 0, 3, 0, 4096),
        request(command::FLUSH, 0, 4, 0, 0),
        request(command::BLOCK_STATUS, 0, 5, 0, 4096),
    ];
    rig.feed(&requests[0]).unwrap();
    rig.feed(&[1; 5000]).unwrap();
    rig.client.refuse_new();
    rig.feed(&[1; 3192]).unwrap();
    rig.feed(&requests[1]).unwrap();
    rig.feed(&[1; 4096]).unwrap();
    rig.feed(&requests[2..].concat()).unwrap();
    assert_eq!(rig.pending.len(), 1);
    rig.finish(|_| 0).unwrap();
    let headers = requests.map(|bytes| RequestHeader::parse(&bytes).unwrap());
    let replies = decode(&rig.link.sent, &headers, true);
    let errors = [1, 2, 3, 4, 5].map(|cookie| replies[&cookie].error);
    assert_eq!(errors, [0, 108, 108, 108, 108]);
    rig.feed(&request(command::DISC, 0, 6, 0, 0)).unwrap();
    assert!(rig.client.disconnecting());
}

#[test]
fn an_abandoned_client_frees_all_it_held() {
    // At every point where a request can be half parsed.
    let write = [&request(command::WRITE, 0, 1, 0, 3 * PART_U32)[..], &vec![1; 300_000]].concat();
    let small = [&request(command::WRITE, 0, 1, 100, 20_000)[..], &[1; 10_000]].concat();
    let read = request(command::READ, 0, 1, 0, 32 << 20).to_vec();
    let refused = [&request(command::WRITE, 0, 1, 1 << 60, 20_000)[..], &[1; 10_000]].concat();
    for bytes in [write, small, read, refused] {
        let mut rig = Rig::new(SIMPLE, SIZE);
        rig.feed(&bytes).unwrap();
        rig.client.abandon();
        while !rig.pending.is_empty() {
            rig.complete(0);
        }
        assert_eq!(rig.client.in_flight(), 0);
        assert!(rig.client.disconnecting() && rig.link.sent.is_empty() && !rig.client.starved());
        rig.feed(&vec![1; 600_000]).unwrap();
        let free = [4096, 32768, PART_BYTES_MAX].map(|len| rig.link.pool.available(len));
        assert_eq!(free, [64, 64, 160]);
    }
}

fn counted(rig: &Rig, kind: IoKind) -> KindCounters {
    *rig.client.counters().kinds().find(|(found, _)| *found == kind).unwrap().1
}

#[test]
fn a_request_is_counted_once_whatever_its_parts_from_its_header_to_its_answer() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    rig.now = Duration::from_millis(10);
    rig.feed(&request(command::WRITE, 0, 1, 0, 3 * PART_U32)).unwrap();
    rig.now = Duration::from_millis(11);
    rig.feed(&vec![1; 3 * PART_BYTES_MAX]).unwrap();
    assert_eq!(rig.pending.len(), 3);
    rig.complete(0);
    rig.complete(0);
    assert_eq!(counted(&rig, IoKind::Write), KindCounters::default(), "it is not answered yet");
    rig.now = Duration::from_millis(15);
    rig.complete(0);
    let writes = counted(&rig, IoKind::Write);
    assert_eq!((writes.requests, writes.errors, writes.bytes), (1, 0, 3 * PART));
    assert_eq!(writes.latency_sum_ns, 5_000_000, "with the time that its payload took to come");
    assert_eq!(writes.latency_buckets[8], 1, "over 4.096 ms, up to 8.192 ms");
}

#[test]
fn an_error_is_counted_and_what_was_refused_or_had_nobody_to_answer_is_not() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    rig.feed(&request(command::READ, 0, 1, 0, 4096)).unwrap();
    rig.fail(0, BlockError::Io);
    rig.feed(&request(command::READ, 0, 2, 1 << 60, 4096)).unwrap();
    rig.feed(&request(command::BLOCK_STATUS, 0, 3, 0, 4096)).unwrap();
    rig.complete(0);
    let reads = counted(&rig, IoKind::Read);
    assert_eq!((reads.requests, reads.errors, reads.bytes), (1, 1, 0));
    rig.feed(&request(command::FLUSH, 0, 4, 0, 0)).unwrap();
    rig.client.abandon();
    rig.complete(0);
    assert_eq!(counted(&rig, IoKind::Flush), KindCounters::default());
}

#[test]
fn tables_stop_growing() {
    let mut rig = Rig::new(STRUCTURED, SIZE);
    let mut after_one = 0;
    for round in 0..100 {
        for cookie in 0..32 {
            rig.feed(&request(command::WRITE, 0, cookie, cookie * 5000, 4096)).unwrap();
            rig.feed(&[1; 4096]).unwrap();
            rig.feed(&request(command::READ, 0, 100 + cookie, 0, 2 * PART_U32)).unwrap();
            rig.feed(&request(command::BLOCK_STATUS, 0, 200 + cookie, 0, 2 * PART_U32)).unwrap();
        }
        rig.finish(|n| n / 2).unwrap();
        if round == 0 {
            after_one = rig.client.table_capacity();
        }
    }
    assert_eq!(rig.client.table_capacity(), after_one);
}
