//! The driver: queues what its owner asks for, submits it once per turn, and tells what came of it.
//!
//! Invariant of every `push` in `turn.rs`: connections, operations and the waker's counter stay in their tables until the
//! ring has no operation of theirs in flight. A closed connection leaves the table only when it is idle, an operation
//! only with its completion, and a driver that is dropped waits for all of them or leaks the tables.

use std::collections::VecDeque;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::conn::{Conn, State};
use super::file::{self, FallocateMode, File, Operation, Request};
use super::liveness::{self, Patience, bound_silence};
use super::pool::{Buf, Pool};
use super::ring::{Ring, Tag};
use super::slots::{Key, Slots};
use super::wake::{WakeSource, Waker};
use super::{Completion, ConnId, Errno, Error, ErrorKind, FileId};

mod end;
mod turn;

/// A connection may submit a receive and a send at once.
const ENTRIES_MIN: u32 = 2;

/// Sizes that are set up in advance. Tables grow beyond them where needed, the submission queue is reused within a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverConfig {
    /// Places in the submission queue, at least 2; the completion queue has four times as many.
    pub entries: u32,
    /// Connections expected at a time.
    pub conns: usize,
    /// File operations expected in flight at a time.
    pub file_ops: usize,
}

impl Default for DriverConfig {
    /// For some dozens of connections with a queue depth of 128 together: 60 KiB.
    fn default() -> Self {
        Self { entries: 256, conns: 32, file_ops: 256 }
    }
}

/// Counters since the driver was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Calls of io_uring_enter(2).
    pub enters: u64,
    /// `sendmsg` operations submitted.
    pub sends: u64,
    /// `recv` operations submitted.
    pub recvs: u64,
    /// File operations submitted, continuations included.
    pub file_ops: u64,
    /// Wakes reported.
    pub wakes: u64,
}

/// The hot loop's I/O; see the module's documentation. It stays on the thread that made it.
pub struct Driver {
    ring: Ring,
    pool: Pool,
    conns: Slots<Box<Conn>>,
    files: Slots<File>,
    operations: Slots<Operation>,
    wake: ManuallyDrop<WakeSource>,
    /// Slots of connections that may have something to submit, each at most once.
    dirty: VecDeque<u32>,
    /// Slots of operations to submit, in the order they were asked for.
    pending: VecDeque<u32>,
    cancels: Vec<Tag>,
    /// Completions not handed out yet.
    ready: Vec<Completion>,
    /// Where the ring's completions are copied to while they are worked off.
    reaped: Vec<(Tag, i32)>,
    stats: DriverStats,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("ring", &self.ring)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// Sets up the ring with the best flags that the kernel knows.
    ///
    /// # Errors
    /// io_uring is missing or forbidden, or memory ran out; the message names the remedy.
    pub fn new(cfg: DriverConfig, pool: Pool) -> Result<Self, Error> {
        let ring = Ring::new(cfg.entries.max(ENTRIES_MIN))?;
        let wake =
            WakeSource::new().map_err(|errno| Error::new(ErrorKind::NoMemory, "make an eventfd", errno))?;
        Ok(Self {
            ring,
            pool,
            conns: Slots::with_capacity(cfg.conns),
            files: Slots::with_capacity(8),
            operations: Slots::with_capacity(cfg.file_ops),
            wake: ManuallyDrop::new(wake),
            dirty: VecDeque::with_capacity(cfg.conns),
            pending: VecDeque::with_capacity(cfg.file_ops),
            cancels: Vec::with_capacity(2 * cfg.conns),
            ready: Vec::with_capacity(2 * cfg.conns + cfg.file_ops),
            reaped: Vec::with_capacity(2 * cfg.conns + cfg.file_ops),
            stats: DriverStats::default(),
        })
    }

    /// The pool that the driver was made with.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A handle that wakes this driver from other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// Which set-up this kernel allowed, in one line.
    #[must_use]
    pub fn features(&self) -> &'static str {
        self.ring.features()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> DriverStats {
        DriverStats { enters: self.ring.enters(), ..self.stats }
    }

    // ---- connections ------------------------------------------------------------------------------------------------

    /// Takes over a connected stream socket (TCP or unix) and begins to receive with the next turn.
    ///
    /// # Errors
    /// It is no socket, or memory for its receive buffer ran out.
    pub fn add_conn(&mut self, socket: OwnedFd) -> Result<ConnId, Error> {
        let key = self.conns.insert(Box::new(Conn::new(socket)?));
        self.touch(key);
        Ok(ConnId(key))
    }

    /// The bytes received and not consumed; empty for stale ids and after `close`. After
    /// `Failed` what was there before stays until it is consumed.
    #[must_use]
    pub fn received(&self, c: ConnId) -> &[u8] {
        self.conns.get(c.0).map_or(&[], |conn| conn.rx.received())
    }

    /// Marks the first `n` received bytes as done with.
    ///
    /// # Panics
    /// When fewer bytes were received.
    pub fn consume(&mut self, c: ConnId, n: usize) {
        let conn = self.conns.get_mut(c.0);
        if let Some(conn) = conn.filter(|conn| matches!(conn.state, State::Open | State::Failed)) {
            conn.rx.consume(n);
            self.touch(c.0);
        }
    }

    /// Sends the next `buf.len() - filled` bytes of the stream into `buf`, behind the `filled` bytes it has already;
    /// what was received before is copied, the rest comes in without a copy. `ReceivedInto` gives the buffer back,
    /// with the next turn when it is full at once. A stale or failed connection just drops the buffer.
    ///
    /// # Panics
    /// While another such buffer is being filled, or when `buf` is shared.
    pub fn receive_into(&mut self, c: ConnId, buf: Buf, filled: usize) {
        let Some(conn) = self.open(c) else { return };
        let progress = conn.rx.receive_into(buf, filled);
        if let Some(buf) = progress.filled {
            self.ready.push(Completion::ReceivedInto { conn: c, buf });
            if progress.received {
                self.ready.push(Completion::Received { conn: c });
            }
        }
        self.touch(c.0);
    }

    /// While paused no further receive is submitted; one that is in flight still reports its bytes. Bytes that were
    /// received before stay in [`Driver::received`] and are not reported again when the pause ends.
    pub fn pause(&mut self, c: ConnId, paused: bool) {
        if let Some(conn) = self.open(c) {
            conn.rx.set_paused(paused);
            self.touch(c.0);
        }
    }

    /// Queues `head` (copied) and a range of a buffer (shared until it is sent) behind what is queued already. All of
    /// it goes out with the next turn. Silently dropped for stale, failed and closed connections.
    pub fn send(&mut self, c: ConnId, head: &[u8], payload: Option<(&Buf, Range<usize>)>) {
        if let Some(conn) = self.open(c) {
            conn.tx.push(head, payload);
            self.touch(c.0);
        }
    }

    /// How many bytes the kernel has not taken yet.
    #[must_use]
    pub fn queued_bytes(&self, c: ConnId) -> usize {
        self.conns.get(c.0).map_or(0, |conn| conn.tx.queued_bytes())
    }

    /// How many bytes the kernel has taken in all.
    #[must_use]
    pub fn sent_bytes(&self, c: ConnId) -> u64 {
        self.conns.get(c.0).map_or(0, |conn| conn.tx.sent_bytes())
    }

    /// From now on the end of what the peer sends is reported as [`Completion::Ended`] instead of `Failed`, and what is
    /// queued for it still goes out.
    pub fn keep_sending_after_end(&mut self, c: ConnId) {
        if let Some(conn) = self.open(c) {
            conn.outlives_input = true;
        }
    }

    /// Changes how long the connection's peer may be silent. Without effect where it is no TCP connection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bound_silence(&self, c: ConnId, patience: Patience) -> Result<(), Errno> {
        self.conns.get(c.0).map_or(Ok(()), |conn| bound_silence(&conn.socket, patience))
    }

    /// Whether the peer has not acknowledged what is on its way to it, and nothing has come from it for so long. Never so
    /// for connections that are not TCP.
    #[must_use]
    pub fn is_unanswered(&self, c: ConnId, silent: Duration) -> bool {
        self.conns.get(c.0).is_some_and(|conn| liveness::is_unanswered(&conn.socket, silent))
    }

    /// Shuts the connection down and drops what is not sent. `Closed` follows when nothing of it is in flight any
    /// more. A repeat changes nothing.
    pub fn close(&mut self, c: ConnId) {
        let Some(conn) = self.conns.get_mut(c.0).filter(|conn| conn.state != State::Closing) else { return };
        conn.close();
        if conn.rx.is_in_flight() {
            self.cancels.push(Tag::Recv(c.0.slot));
        }
        if conn.tx.is_in_flight() {
            self.cancels.push(Tag::Send(c.0.slot));
        }
        self.settle(c.0);
    }

    /// Closes once all that is queued is sent; meanwhile nothing can be queued, and what arrives is thrown away. The
    /// caller bounds the time by a timer of its own, and closes. Also ends in `Closed` when sending fails.
    pub fn close_after_sends(&mut self, c: ConnId) {
        let Some(conn) = self.conns.get_mut(c.0).filter(|conn| conn.state != State::Draining) else { return };
        if conn.state != State::Open || conn.tx.queued_bytes() == 0 {
            return self.close(c);
        }
        conn.state = State::Draining;
        conn.rx.abandon();
        self.touch(c.0);
    }

    fn open(&mut self, c: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(c.0).map(|conn| &mut **conn).filter(|conn| conn.state == State::Open)
    }

    /// Notes that the connection may have something to submit.
    fn touch(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key)
            && !mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push_back(key.slot);
        }
    }

    /// Lets a closed connection go once nothing of it is in flight.
    fn settle(&mut self, key: Key) {
        let conn = self.conns.get(key);
        // One that is still in the dirty list waits for its turn there, so that its slot is not reused under the list.
        if conn.is_some_and(|conn| conn.state == State::Closing && conn.is_idle() && !conn.dirty) {
            self.conns.remove(key);
            self.ready.push(Completion::Closed { conn: ConnId(key) });
        }
    }

    // ---- files ------------------------------------------------------------------------------------------------------

    /// Takes over an open file.
    pub fn add_file(&mut self, f: OwnedFd) -> FileId {
        FileId(self.files.insert(File { fd: f, in_flight: 0 }))
    }

    /// Closes a file.
    ///
    /// # Panics
    /// While operations are in flight on it.
    pub fn remove_file(&mut self, f: FileId) {
        assert_eq!(self.files_in_flight(f), 0, "a file is removed when nothing is in flight on it");
        self.files.remove(f.0);
    }

    /// How many operations are in flight on a file; 0 for stale ids.
    #[must_use]
    pub fn files_in_flight(&self, f: FileId) -> usize {
        self.files.get(f.0).map_or(0, |file| file.in_flight)
    }

    /// Writes a range of `buf` at `offset`.
    ///
    /// # Panics
    /// When the range is not within the buffer.
    pub fn write(&mut self, f: FileId, token: u64, offset: u64, buf: Buf, range: Range<usize>) {
        self.begin(f, token, offset, Request::Write { buf, range });
    }

    /// Reads `len` bytes at `offset` into the start of `buf`.
    ///
    /// # Panics
    /// When `buf` is shared or shorter than `len`.
    pub fn read(&mut self, f: FileId, token: u64, offset: u64, buf: Buf, len: usize) {
        self.begin(f, token, offset, Request::Read { buf, len });
    }

    /// Brings all that was written and completed before to stable storage.
    pub fn fdatasync(&mut self, f: FileId, token: u64) {
        self.begin(f, token, 0, Request::Fdatasync);
    }

    /// Lets the kernel begin to write what is dirty in the page cache of a range, and does not wait for it. A flush still
    /// needs [`Self::fdatasync`]. An error may be the only word of data that was lost.
    pub fn begin_writeback(&mut self, f: FileId, token: u64, range: Range<u64>) {
        let len = range.end.saturating_sub(range.start);
        self.begin(f, token, range.start, Request::BeginWriteback { len });
    }

    /// Deallocates or zeroes a range.
    pub fn fallocate(&mut self, f: FileId, token: u64, mode: FallocateMode, offset: u64, len: u64) {
        self.begin(f, token, offset, Request::Fallocate { mode, len });
    }

    fn begin(&mut self, f: FileId, token: u64, offset: u64, request: Request) {
        let operation = Operation::new(f.0, token, offset, request);
        if let Some(file) = self.files.get_mut(f.0) {
            file.in_flight += 1;
            self.pending.push_back(self.operations.insert(operation).slot);
        } else {
            let buf = operation.into_buf();
            self.ready.push(Completion::File { token, result: Err(Errno::EBADF), buf });
        }
    }

    /// Writes all of `data` now, without the ring: cheapest for the page cache.
    ///
    /// # Errors
    /// The system's, also after a part was written; EBADF for stale ids.
    pub fn write_inline(&self, f: FileId, offset: u64, data: &[u8]) -> Result<(), Errno> {
        file::write_inline(self.file(f)?, offset, data)
    }

    /// Reads all of `out` now if that takes no disk access; `false` (with `out` unspecified) means: use `read`.
    ///
    /// # Errors
    /// The system's; EBADF for stale ids.
    pub fn read_cached(&self, f: FileId, offset: u64, out: &mut [u8]) -> Result<bool, Errno> {
        file::read_cached(self.file(f)?, offset, out)
    }

    /// The length of the run that starts at `offset`, cut at `end`, and whether it is allocated.
    ///
    /// # Errors
    /// The system's; EBADF for stale ids.
    pub fn seek_extent(&self, f: FileId, offset: u64, end: u64) -> Result<(u64, bool), Errno> {
        file::seek_extent(self.file(f)?, offset, end)
    }

    fn file(&self, f: FileId) -> Result<BorrowedFd<'_>, Errno> {
        self.files.get(f.0).map(|file| file.fd.as_fd()).ok_or(Errno::EBADF)
    }
}
