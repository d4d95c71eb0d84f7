//! An NBD client's connection in memory: requests come whole, and what is sent is only counted.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use holdfast_dataplane::frontend::nbd::proto::{RequestHeader, command};
use holdfast_dataplane::frontend::nbd::{Client, ClientLimits, Negotiated, Transport};
use holdfast_dataplane::frontend::{PartResult, Submit};
use holdfast_dataplane::io::{Buf, Need, Owner, Pool, PoolConfig};

const LEN: usize = 4096;
/// Tables have grown to their size by then.
const WARM_UP: u64 = 200;

#[derive(Debug)]
struct Memory {
    pool: Pool,
    owner: Owner,
    bytes: Vec<u8>,
    at: usize,
    sent: usize,
}

impl Transport for Memory {
    fn received(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn receive_into(&mut self, _buf: Buf, _filled: usize) {
        unreachable!("all bytes are there already");
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

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    memory: Memory,
    client: Client,
    out: VecDeque<Submit>,
}

impl Link {
    /// One that has done some of everything.
    pub(super) fn warm(volume_bytes: u64) -> Self {
        let pool = Pool::new(PoolConfig { small: 16, medium: 16, large: 16 }).expect("there is memory");
        let owner = Owner::new(0).expect("it is the first");
        // As libnbd, and so fio and nbdcopy, negotiates.
        let negotiated = Negotiated { structured_replies: true, base_allocation: true };
        let mut link = Self {
            memory: Memory { pool, owner, bytes: Vec::with_capacity(2 * LEN), at: 0, sent: 0 },
            client: Client::new(negotiated, volume_bytes, ClientLimits::default()),
            out: VecDeque::with_capacity(64),
        };
        for number in 0..WARM_UP {
            link.write(number * 4096);
            link.read(number * 4096);
        }
        link
    }

    /// A request of 4 KiB arrives; the part that comes of it.
    fn receive(&mut self, command: u16, offset: u64, payload: &[u8]) -> Submit {
        let header = RequestHeader { flags: 0, command, cookie: offset, offset, len: 4096 };
        self.memory.bytes.clear();
        self.memory.bytes.extend_from_slice(&header.encode());
        self.memory.bytes.extend_from_slice(payload);
        (self.memory.at, self.memory.sent) = (0, 0);
        self.client.on_received(Duration::ZERO, &mut self.memory, &mut self.out).expect("it is a request");
        self.out.pop_front().expect("it is one part")
    }

    fn complete(&mut self, part: u32, result: PartResult<'_>) {
        self.client.on_complete(part, result, Duration::ZERO, &mut self.memory);
        assert!(self.memory.sent > 0 && self.client.in_flight() == 0);
    }

    /// A write, from its bytes to its reply.
    pub(super) fn write(&mut self, offset: u64) {
        let submit = self.receive(command::WRITE, offset, &[0x5a; LEN]);
        drop(submit.buf);
        self.complete(submit.part, PartResult::Done);
    }

    /// A read, likewise.
    pub(super) fn read(&mut self, offset: u64) {
        let submit = self.receive(command::READ, offset, &[]);
        self.complete(submit.part, PartResult::Data(submit.buf.expect("there is room for what is read")));
    }
}
