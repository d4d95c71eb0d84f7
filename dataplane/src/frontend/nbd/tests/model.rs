//! Random requests, in random pieces and completed in random order, against a plain array.

use proptest::prelude::*;

use super::decoder::decode;
use super::rig::{Rig, SIMPLE, STRUCTURED, header};
use crate::frontend::nbd::ClientLimits;
use crate::frontend::nbd::proto::{self, ErrorCode, RequestHeader, command, command_flag as flag};
use crate::io::{BLOCK, PoolConfig};

/// Three parts and a bit.
const SIZE_U32: u32 = (3 * 256 + 5 * 4) * 1024;
const SIZE: usize = SIZE_U32 as usize;

#[derive(Debug, Clone)]
struct Ask {
    command: u16,
    flags: u16,
    offset: u32,
    len: u32,
}

fn ask() -> impl Strategy<Value = Ask> {
    let commands = prop_oneof![
        4 => Just(command::READ),
        4 => Just(command::WRITE),
        1 => Just(command::FLUSH),
        1 => Just(command::TRIM),
        2 => Just(command::WRITE_ZEROES),
        2 => Just(command::BLOCK_STATUS),
        1 => Just(99),
    ];
    let place = prop_oneof![
        (0..SIZE_U32 / 4096, 1..16_u32).prop_map(|(block, blocks)| (block * 4096, blocks * 4096)),
        (0..SIZE_U32, 0..9000_u32),
        (0..SIZE_U32, 0..SIZE_U32),
        Just((0, SIZE_U32)),
        Just((0, 0)),
    ];
    let flags = prop_oneof![
        3 => Just(0),
        1 => Just(flag::FUA),
        1 => Just(flag::DF),
        1 => Just(flag::REQ_ONE | flag::FUA),
        1 => Just(flag::NO_HOLE),
        1 => Just(flag::FAST_ZERO),
    ];
    let in_range = |(offset, len): (u32, u32)| (offset, len.min(SIZE_U32 - offset));
    let place = prop_oneof![7 => place.clone().prop_map(in_range), 1 => place];
    (commands, flags, place).prop_map(|(command, flags, (offset, len))| match command {
        command::FLUSH => Ask { command, flags: flags & flag::FUA, offset: 0, len: 0 },
        _ => Ask { command, flags, offset, len },
    })
}

/// What the specification, read on its own, makes of a request on a plain array.
struct Reference {
    bytes: Vec<u8>,
    allocated: Vec<bool>,
    structured: bool,
}

impl Reference {
    fn error(&self, ask: &Ask) -> Option<ErrorCode> {
        let beyond = u64::from(ask.offset) + u64::from(ask.len) > u64::from(SIZE_U32);
        let (allowed, error_beyond) = match ask.command {
            command::READ if self.structured => (flag::DF, ErrorCode::Invalid),
            command::READ | command::FLUSH | command::TRIM => (0, ErrorCode::Invalid),
            command::WRITE => (0, ErrorCode::NoSpace),
            command::WRITE_ZEROES => (flag::NO_HOLE | flag::FAST_ZERO, ErrorCode::NoSpace),
            command::BLOCK_STATUS if self.structured => (flag::REQ_ONE, ErrorCode::Invalid),
            _ => return Some(ErrorCode::Invalid),
        };
        let whole = ask.flags & flag::DF != 0 && ask.command == command::READ;
        if ask.flags & !(allowed | flag::FUA) != 0 {
            Some(ErrorCode::Invalid)
        } else if ask.flags & flag::FAST_ZERO != 0 {
            Some(ErrorCode::NotSupported)
        } else if whole && ask.len > 64 * 1024 {
            Some(ErrorCode::Overflow)
        } else if beyond {
            Some(error_beyond)
        } else {
            (ask.command == command::BLOCK_STATUS && ask.len == 0).then_some(ErrorCode::Invalid)
        }
    }

    fn apply(&mut self, ask: &Ask, payload: &[u8]) {
        let at = usize::try_from(ask.offset).unwrap();
        let end = at + usize::try_from(ask.len).unwrap();
        for byte in at..end {
            let block = byte / BLOCK;
            let whole = block * BLOCK >= at && (block + 1) * BLOCK <= end;
            match ask.command {
                command::WRITE => {
                    self.bytes[byte] = payload[byte - at];
                    self.allocated[block] = true;
                }
                command::WRITE_ZEROES => {
                    self.bytes[byte] = 0;
                    self.allocated[block] = !whole || ask.flags & flag::NO_HOLE != 0;
                }
                command::TRIM if whole => {
                    self.bytes[byte] = 0;
                    self.allocated[block] = false;
                }
                _ => {}
            }
        }
    }
}

enum Expected {
    Error(u32),
    Data(Vec<u8>),
    Done,
    /// The map at the time, by byte from the request's offset.
    Status(Vec<bool>, bool),
}

/// Small and fast; the seed is proptest's.
fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    }
}

fn check(asks: &[Ask], structured: bool, scarce: bool, seed: u64) {
    let pool = if scarce {
        // As few as a read that is gathered may need at once.
        PoolConfig { small: 2, medium: 2, large: 2 }
    } else {
        PoolConfig { small: 64, medium: 64, large: 64 }
    };
    let requests_max = if scarce { 3 } else { 256 };
    let limits = ClientLimits { requests_max, bytes_max: 1 << 20, gather_bytes_max: 64 * 1024 };
    let mut rig = Rig::with(if structured { STRUCTURED } else { SIMPLE }, SIZE, limits, pool);
    let mut choose = random(seed);
    let mut reference = Reference { bytes: vec![0; SIZE], allocated: vec![false; SIZE / BLOCK], structured };
    let (mut stream, mut requests, mut expected) = (Vec::new(), Vec::<RequestHeader>::new(), Vec::new());
    for (cookie, ask) in (1 << 60..).zip(asks) {
        let request = header(ask.command, ask.flags, cookie, u64::from(ask.offset), ask.len);
        stream.extend_from_slice(&request.encode());
        requests.push(request);
        let len = usize::try_from(ask.len).unwrap();
        let fill = u8::try_from(choose(256)).unwrap();
        let payload: Vec<u8> = (0..len).map(|i| fill ^ i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        if ask.command == command::WRITE {
            stream.extend_from_slice(&payload);
        }
        if let Some(error) = reference.error(ask) {
            expected.push(Expected::Error(error.number()));
            continue;
        }
        reference.apply(ask, &payload);
        let at = usize::try_from(ask.offset).unwrap();
        expected.push(match ask.command {
            command::READ => Expected::Data(reference.bytes[at..at + len].to_vec()),
            command::BLOCK_STATUS => {
                let map = (at..at + len).map(|byte| reference.allocated[byte / BLOCK]).collect();
                Expected::Status(map, ask.flags & flag::REQ_ONE != 0)
            }
            _ => Expected::Done,
        });
    }
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let most = [1, 50, 5000, 200_000][choose(4)].min(rest.len());
        let (piece, after) = rest.split_at(1 + choose(most));
        rest = after;
        rig.feed(piece).unwrap();
        if choose(3) == 0 && !rig.pending.is_empty() {
            let index = choose(rig.pending.len());
            rig.complete(index);
        }
        if choose(3) == 0 {
            rig.link.queued = 0;
            rig.parse().unwrap();
        }
    }
    rig.finish(&mut choose).unwrap();
    assert_eq!(rig.client.in_flight(), 0);
    assert!(rig.disk.bytes == reference.bytes, "the disk has what was written");
    assert_eq!(rig.disk.allocated, reference.allocated);
    verify(&rig.link.sent, &requests, &expected, structured);
}

fn verify(sent: &[u8], requests: &[RequestHeader], expected: &[Expected], structured: bool) {
    let replies = decode(sent, requests, structured);
    assert_eq!(replies.len(), requests.len(), "each request is answered");
    for (request, expected) in requests.iter().zip(expected) {
        let reply = &replies[&request.cookie];
        assert!(reply.done, "{request:?} is answered to the end");
        match expected {
            Expected::Error(error) => assert_eq!(reply.error, *error, "{request:?}"),
            Expected::Done => assert_eq!(reply.error, 0, "{request:?}"),
            Expected::Data(data) => {
                assert_eq!(reply.error, 0, "{request:?}");
                assert!(reply.bytes() == *data, "{request:?} reads what was written");
                assert!(request.flags & flag::DF == 0 || reply.content_chunks <= 1);
            }
            Expected::Status(map, only_one) => {
                assert_eq!(reply.error, 0, "{request:?}");
                let hole = proto::STATE_HOLE | proto::STATE_ZERO;
                let mut map = map.iter();
                for (len, state) in &reply.runs {
                    let mut run = map.by_ref().take(usize::try_from(*len).unwrap());
                    assert!(run.all(|allocated| *state == if *allocated { 0 } else { hole }));
                }
                assert!(!*only_one || reply.runs.len() == 1);
                assert!(*only_one || map.next().is_none(), "few runs are all told");
                assert!(reply.runs.windows(2).all(|pair| pair[0].1 != pair[1].1), "runs are joined");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn replies_match_a_plain_array(
        asks in prop::collection::vec(ask(), 1..24),
        structured: bool,
        scarce: bool,
        seed: u64,
    ) {
        check(&asks, structured, scarce, seed);
    }
}
