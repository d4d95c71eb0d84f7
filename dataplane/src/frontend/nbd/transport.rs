//! What a client's transmission phase needs of its connection.

use std::ops::Range;

use crate::io::{Buf, ConnId, Driver, Need, Owner};

/// One client's connection, and the pool its payloads live in.
pub trait Transport {
    /// Bytes received and not yet consumed.
    fn received(&self) -> &[u8];
    /// The first `n` of them are done with.
    fn consume(&mut self, n: usize);
    /// The next bytes of the stream fill the rest of `buf`, behind the first `filled`; then
    /// [`Client::on_received_into`](super::Client::on_received_into) gets it back.
    fn receive_into(&mut self, buf: Buf, filled: usize);
    /// A buffer of `len` bytes with unspecified content; `None`: the client's share of the pool is used up.
    fn alloc(&self, len: usize) -> Option<Buf>;
    /// Whether the client's share allows so many buffers at once.
    fn allows(&self, need: &Need) -> bool;
    /// A buffer of those that [`Transport::allows`] was just asked for.
    fn alloc_allowed(&self, len: usize) -> Option<Buf>;
    /// Queues `head`, then the given part of a buffer, behind all that was queued before. Either may be empty.
    fn send(&mut self, head: &[u8], payload: Option<(&Buf, Range<usize>)>);
    /// Bytes queued and not yet sent.
    fn queued_bytes(&self) -> usize;
}

/// A connection of the data thread's driver.
#[derive(Debug)]
pub struct DriverTransport<'a> {
    /// The data thread's driver.
    pub driver: &'a mut Driver,
    /// The client's connection.
    pub conn: ConnId,
    /// The client, to the driver's pool.
    pub owner: Owner,
}

impl Transport for DriverTransport<'_> {
    fn received(&self) -> &[u8] {
        self.driver.received(self.conn)
    }

    fn consume(&mut self, n: usize) {
        self.driver.consume(self.conn, n);
    }

    fn receive_into(&mut self, buf: Buf, filled: usize) {
        self.driver.receive_into(self.conn, buf, filled);
    }

    fn alloc(&self, len: usize) -> Option<Buf> {
        self.driver.pool().alloc_share(self.owner, len)
    }

    fn allows(&self, need: &Need) -> bool {
        self.driver.pool().share_allows(self.owner, need)
    }

    fn alloc_allowed(&self, len: usize) -> Option<Buf> {
        self.driver.pool().alloc_for(self.owner, len)
    }

    fn send(&mut self, head: &[u8], payload: Option<(&Buf, Range<usize>)>) {
        self.driver.send(self.conn, head, payload);
    }

    fn queued_bytes(&self) -> usize {
        self.driver.queued_bytes(self.conn)
    }
}
