//! A client with its connection and disk, driven step by step.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::disk::{Disk, Outcome};
use crate::frontend::nbd::proto::{REQUEST_BYTES, RequestHeader};
use crate::frontend::nbd::{Client, ClientLimits, Negotiated, Transport, Violation};
use crate::frontend::{BlockError, BlockRequest, PartResult, Submit};
use crate::io::{Buf, Need, Owner, Pool, PoolConfig};

pub(super) const SIMPLE: Negotiated = Negotiated { structured_replies: false, base_allocation: false };
pub(super) const STRUCTURED: Negotiated = Negotiated { structured_replies: true, base_allocation: true };

/// A connection in memory.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) pool: Pool,
    owner: Owner,
    inbox: Vec<u8>,
    direct: Option<(Buf, usize)>,
    ready: Option<Buf>,
    pub(super) directs: usize,
    pub(super) sent: Vec<u8>,
    /// Bytes that count as not yet sent.
    pub(super) queued: usize,
}

impl Link {
    fn push(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        self.fill_direct();
    }

    fn fill_direct(&mut self) {
        let Some((mut buf, filled)) = self.direct.take() else { return };
        let n = self.inbox.len().min(buf.len() - filled);
        buf.get_mut().unwrap()[filled..filled + n].copy_from_slice(&self.inbox[..n]);
        self.inbox.drain(..n);
        if filled + n == buf.len() {
            self.ready = Some(buf);
        } else {
            self.direct = Some((buf, filled + n));
        }
    }
}

impl Transport for Link {
    fn received(&self) -> &[u8] {
        &self.inbox
    }

    fn consume(&mut self, n: usize) {
        self.inbox.drain(..n);
    }

    fn receive_into(&mut self, buf: Buf, filled: usize) {
        assert!(self.direct.is_none() && self.ready.is_none());
        self.directs += 1;
        self.direct = Some((buf, filled));
        self.fill_direct();
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
        let before = self.sent.len();
        self.sent.extend_from_slice(head);
        if let Some((buf, range)) = payload {
            self.sent.extend_from_slice(&buf.as_slice()[range]);
        }
        self.queued += self.sent.len() - before;
    }

    fn queued_bytes(&self) -> usize {
        self.queued
    }
}

/// A part that the disk has executed and nobody has answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    part: u32,
    pub(super) request: BlockRequest,
    outcome: Outcome,
    /// The payload's buffer stays taken until the answer, as it does in an engine.
    _buf: Option<Buf>,
}

#[derive(Debug)]
pub(super) struct Rig {
    pub(super) client: Client,
    pub(super) link: Link,
    pub(super) disk: Disk,
    out: VecDeque<Submit>,
    pub(super) pending: Vec<Pending>,
    pub(super) now: Duration,
}

impl Rig {
    pub(super) fn new(negotiated: Negotiated, size: usize) -> Self {
        let pool = PoolConfig { small: 64, medium: 64, large: 160 };
        Self::with(negotiated, size, ClientLimits::default(), pool)
    }

    pub(super) fn with(negotiated: Negotiated, size: usize, limits: ClientLimits, pool: PoolConfig) -> Self {
        let link = Link {
            pool: Pool::new(pool).unwrap(),
            owner: Owner::new(0).unwrap(),
            inbox: Vec::new(),
            direct: None,
            ready: None,
            directs: 0,
            sent: Vec::new(),
            queued: 0,
        };
        let client = Client::new(negotiated, u64::try_from(size).unwrap(), limits);
        Self {
            client,
            link,
            disk: Disk::new(size),
            out: VecDeque::new(),
            pending: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// Bytes arrive; the disk executes the parts that come of it in their order.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.link.push(bytes);
        self.parse()
    }

    /// No more bytes arrive; a connection then drops a buffer that it was filling.
    pub(super) fn end_input(&mut self) -> Result<(), Violation> {
        self.link.direct = None;
        self.client.on_input_ended();
        self.parse()
    }

    pub(super) fn parse(&mut self) -> Result<(), Violation> {
        let mut result = match self.link.ready {
            None => self.client.on_received(self.now, &mut self.link, &mut self.out),
            Some(_) => Ok(()),
        };
        while let Some(buf) = self.link.ready.take() {
            result = self.client.on_received_into(buf, self.now, &mut self.link, &mut self.out);
        }
        while let Some(submit) = self.out.pop_front() {
            let part = submit.part;
            let request = submit.request;
            let (outcome, buf) = self.disk.execute(submit);
            self.pending.push(Pending { part, request, outcome, _buf: buf });
        }
        result
    }

    /// The part at `index` of those pending is answered.
    pub(super) fn complete(&mut self, index: usize) {
        let pending = self.pending.swap_remove(index);
        let result = match pending.outcome {
            Outcome::Done => PartResult::Done,
            Outcome::Data(buf) => PartResult::Data(buf),
            Outcome::Extents(ref extents) => PartResult::Extents(extents),
        };
        self.client.on_complete(pending.part, result, self.now, &mut self.link);
    }

    pub(super) fn fail(&mut self, index: usize, error: BlockError) {
        let pending = self.pending.swap_remove(index);
        self.client.on_complete(pending.part, PartResult::Error(error), self.now, &mut self.link);
    }

    /// Answers everything, in the order that `choose` picks from the number pending.
    pub(super) fn finish(&mut self, mut choose: impl FnMut(usize) -> usize) -> Result<(), Violation> {
        loop {
            self.link.queued = 0;
            if self.client.starved() {
                self.parse()?;
            }
            if self.pending.is_empty() {
                assert!(!self.client.starved(), "nothing is pending, so there must be room");
                return Ok(());
            }
            let index = choose(self.pending.len());
            self.complete(index);
        }
    }

    pub(super) fn kinds(&self) -> Vec<BlockRequest> {
        self.pending.iter().map(|pending| pending.request).collect()
    }
}

pub(super) fn header(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> RequestHeader {
    RequestHeader { flags, command, cookie, offset, len }
}

pub(super) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    header(command, flags, cookie, offset, len).encode()
}
