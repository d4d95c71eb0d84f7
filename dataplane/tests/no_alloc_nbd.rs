//! Shows that a client's requests allocate nothing once its tables have grown.
//!
//! The whole file is one test: it has an allocator of its own.

mod no_alloc_counting;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use holdfast_dataplane::frontend::nbd::proto::{RequestHeader, command, command_flag};
use holdfast_dataplane::frontend::nbd::{Client, ClientLimits, Negotiated, Transport};
use holdfast_dataplane::frontend::{BlockKind, Extent, PartResult, Submit};
use holdfast_dataplane::io::{Buf, Need, Owner, Pool, PoolConfig};
use no_alloc_counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::threads_named("counted");

/// Replays bytes prepared before, and only counts what is sent.
struct Replay {
    pool: Pool,
    owner: Owner,
    bytes: Vec<u8>,
    at: usize,
    sent: usize,
}

impl Transport for Replay {
    fn received(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn receive_into(&mut self, _buf: Buf, _filled: usize) {
        panic!("all bytes are there already");
    }

    fn alloc(&self, len: usize) -> Option<Buf> {
        self.pool.alloc_share(self.owner, len)
    }

    fn allows(&self, need: &Need) -> bool {
        self.pool.share_allows(self.owner, need)
    }

    fn alloc_allowed(&self, len: usize) -> Option<Buf> {
        self.pool.alloc_for(self.owner, len)
    }

    fn send(&mut self, head: &[u8], payload: Option<(&Buf, Range<usize>)>) {
        self.sent += head.len() + payload.map_or(0, |(_, range)| range.len());
    }

    fn queued_bytes(&self) -> usize {
        0
    }
}

fn batch() -> Vec<u8> {
    let request = |command, flags, len: u32| {
        RequestHeader { flags, command, cookie: u64::from(len), offset: 512, len }.encode().to_vec()
    };
    let requests = [
        [request(command::WRITE, command_flag::FUA, 4096), vec![1; 4096]].concat(),
        [request(command::WRITE, 0, 300_000), vec![1; 300_000]].concat(),
        request(command::READ, 0, 4096),
        request(command::READ, 0, 1 << 20),
        request(command::READ, command_flag::DF, 1 << 20),
        RequestHeader { flags: 0, command: command::FLUSH, cookie: 0, offset: 0, len: 0 }.encode().to_vec(),
        request(command::TRIM, 0, 1 << 20),
        request(command::WRITE_ZEROES, 0, 1 << 20),
        request(command::BLOCK_STATUS, 0, 1 << 20),
        request(99, 0, 1),
    ];
    requests.concat()
}

#[test]
fn requests_allocate_nothing() {
    let counted = std::thread::Builder::new().name("counted".to_owned()).spawn(requests).unwrap();
    counted.join().unwrap();
}

fn requests() {
    let pool = Pool::new(PoolConfig { small: 16, medium: 16, large: 64 }).unwrap();
    let mut link = Replay { pool, owner: Owner::new(0).unwrap(), bytes: batch(), at: 0, sent: 0 };
    let negotiated = Negotiated { structured_replies: true, base_allocation: true };
    let mut client = Client::new(negotiated, 1 << 30, ClientLimits::default());
    let mut out: VecDeque<Submit> = VecDeque::with_capacity(64);
    let extents = [true, false].map(|allocated| Extent { len: 512 * 1024, allocated });
    let mut round = || {
        link.at = 0;
        link.sent = 0;
        client.on_received(Duration::ZERO, &mut link, &mut out).unwrap();
        while let Some(Submit { part, request, buf }) = out.pop_back() {
            let result = match request.kind {
                BlockKind::Read => PartResult::Data(buf.unwrap()),
                BlockKind::BlockStatus => PartResult::Extents(&extents),
                BlockKind::Write | BlockKind::Flush | BlockKind::Trim | BlockKind::WriteZeroes { .. } => {
                    PartResult::Done
                }
            };
            client.on_complete(part, result, Duration::ZERO, &mut link);
        }
        assert_eq!((client.in_flight(), link.at), (0, link.bytes.len()));
        assert!(link.sent > 2 << 20, "the reads are answered");
    };
    round();
    let before = ALLOCATOR.allocations();
    for _ in 0..1000 {
        round();
    }
    assert_eq!(ALLOCATOR.allocations() - before, 0);
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATOR.allocations() - before, 1, "the allocator does count");
}
