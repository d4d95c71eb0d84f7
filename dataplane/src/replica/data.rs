//! The data thread: one engine's connection, one image, one ring. Frames in, file operations, replies out.
//!
//! This file holds the thread, its commands, and the life of a session; `serve` turns frames into operations,
//! `complete` turns their completions into replies. In steady state nothing here allocates, logs or waits for
//! another thread.
//!
//! A session has ended when its connection is closed **and** all I/O it submitted has ended: only then is the next
//! engine let in, so that no write of an older engine lands on top of one of a newer.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_proto::ids::Generation;
use tokio::sync::mpsc;

use super::config::IoMode;
use super::maps::{Maps, PAGES_MAX, is_page};
use super::messages::{FromData, ToData, Track, ViewFrom};
use super::request::Request;
use super::zeroing::Zeroing;
use crate::core::flush::FlushGate;
use crate::core::inline::Inline;
use crate::core::region_map::RegionMap;
use crate::core::replica::Session;
use crate::core::writeback::EarlyWriteback;
use crate::error::Error;
use crate::io::{
    Awaited, Buf, Completion, ConnId, Driver, DriverConfig, FileId, Pool, PoolConfig, SpinMode, Spinner,
    Waker,
};
use crate::units::{PART_BYTES_MAX, to_usize};
use crate::wire::handshake::Terms;
use crate::wire::payload::{EXTENTS_MAX, Extent};
use crate::wire::{Header, Status};

/// File operations in flight; more requests wait in the socket. Four times the queue depth at which throughput no longer
/// grows.
pub(super) const OPS_MAX: usize = 512;
/// Messages for the control thread that it has not taken yet: a few views, and one of each other kind.
const EVENTS_MAX: usize = 64;
/// How long a connection that is being sent away may take to hear why.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
/// Without a request other than heartbeats for this long, the memory of buffers goes back to the kernel.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Of each size; the memory is only used once a load needs it.
const POOL: PoolConfig = PoolConfig { small: 512, medium: 128, large: 33 };
/// The name `fdatasync` goes by; operations are named by their place in the table.
pub(super) const SYNC_TOKEN: u64 = u64::MAX;
/// And write-back that begins before a flush.
pub(super) const WRITEBACK_TOKEN: u64 = u64::MAX - 1;

/// What the data thread starts with.
#[derive(Debug)]
pub(crate) struct DataOptions {
    pub(crate) size_bytes: u64,
    pub(crate) io_mode: IoMode,
    /// How the thread waits.
    pub(crate) spin: SpinMode,
    /// An earlier process may have left changes that no fsync covered.
    pub(crate) dirty: bool,
    /// An earlier fsync failed.
    pub(crate) failed: bool,
    /// The write-intent map.
    pub(crate) intent: (File, RegionMap),
    /// For whom changes are remembered.
    pub(crate) track: Track,
}

/// The control thread's end.
#[derive(Debug)]
pub(crate) struct DataHandle {
    commands: std_mpsc::Sender<ToData>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    changes: Arc<AtomicU64>,
}

impl DataHandle {
    /// A thread that has ended does not hear it; it has said so.
    pub(crate) fn send(&self, command: ToData) {
        let _ = self.commands.send(command);
        self.waker.wake();
    }
    /// Grows with each change of the data.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

impl Drop for DataHandle {
    fn drop(&mut self) {
        self.send(ToData::Stop);
        if let Some(thread) = self.thread.take() {
            // It ends within one turn, or has ended; a panic of it was reported by the end of its channel.
            let _ = thread.join();
        }
    }
}

/// Starts the thread on an open image.
///
/// # Errors
/// When the ring or its memory cannot be had.
pub(crate) fn spawn(
    image: File,
    options: DataOptions,
) -> Result<(DataHandle, mpsc::Receiver<FromData>), Error> {
    let (commands, incoming) = std_mpsc::channel();
    let (events, outgoing) = mpsc::channel(EVENTS_MAX);
    let (ready, started) = std_mpsc::channel();
    let changes = Arc::new(AtomicU64::new(0));
    let thread = std::thread::Builder::new()
        .name("data".to_owned())
        .spawn({
            let changes = Arc::clone(&changes);
            move || {
                // The ring belongs to the thread that makes it.
                let mut data = match Data::new(image, options, incoming, events, changes) {
                    Ok(data) => data,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                let _ = ready.send(Ok(data.driver.waker()));
                let result = data.run();
                data.tell(FromData::Ended(result));
            }
        })
        .map_err(Error::failed("start the data thread"))?;
    let waker = started.recv().map_err(Error::failed("start the data thread"))??;
    Ok((DataHandle { commands, waker, thread: Some(thread), changes }, outgoing))
}

/// An operation in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) conn: ConnId,
    pub(super) header: Header,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// For its group's bit to be on stable storage.
    Waiting(Request),
    Write {
        fua: bool,
    },
    Read,
    Digest,
    /// By fallocate; what is before `next` is done.
    Zero {
        punch: bool,
        fua: bool,
        next: u64,
    },
    /// By writing zeros, `next..end` is left.
    WriteZeros {
        next: u64,
        end: u64,
        fua: bool,
    },
}

/// The operations in flight; a token is a place in the table. Made once, reused for ever.
#[derive(Debug)]
pub(super) struct Ops {
    places: Vec<Option<Op>>,
    free: Vec<usize>,
}

impl Ops {
    fn new() -> Self {
        Self { places: vec![None; OPS_MAX], free: (0..OPS_MAX).rev().collect() }
    }
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }
    fn is_empty(&self) -> bool {
        self.free.len() == OPS_MAX
    }
    /// The operation's token. Its callers have asked [`Ops::is_full`].
    pub(super) fn insert(&mut self, op: Op) -> u64 {
        let place = self.free.pop().expect("a full table takes no request");
        self.places[place] = Some(op);
        crate::units::to_u64(place)
    }
    pub(super) fn header(&self, token: u64) -> Header {
        self.get(token).header
    }
    pub(super) fn get(&self, token: u64) -> Op {
        self.places[to_usize(token)].expect("a token names an operation in flight")
    }
    pub(super) fn remove(&mut self, token: u64) -> Op {
        let place = to_usize(token);
        self.free.push(place);
        self.places[place].take().expect("a completion names an operation in flight")
    }
}

/// Who waits for a flush.
#[derive(Debug)]
pub(super) enum Waiter {
    Frame { conn: ConnId, header: Header },
    Drain,
}

/// The engine's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) conn: ConnId,
    pub(super) session: Session,
    pub(super) terms: Terms,
    /// Of the last request.
    pub(super) sequence: u64,
    /// A header whose payload, or whose turn, has not come.
    pub(super) pending: Option<Header>,
    /// A write whose payload is on its way into a buffer of its own.
    pub(super) receiving: Option<Header>,
    /// No more is received until something in flight has ended.
    pub(super) paused: bool,
    /// Views that the control thread is persisting.
    pub(super) views: usize,
    /// Why it ends.
    pub(super) end: Option<String>,
    /// Its last words must be sent by then.
    deadline: Option<Instant>,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    Finishing,
    Flushing,
    Done,
}

#[derive(Debug)]
pub(super) struct Data {
    pub(super) driver: Driver,
    spinner: Spinner,
    started: Instant,
    /// Requests begun in this turn.
    pub(super) begun: usize,
    /// When the last request came that was no heartbeat.
    pub(super) last_io: Duration,
    /// Since then buffers have given their memory back.
    trimmed: bool,
    /// When the last turn had something to report.
    pub(super) now: Duration,
    pub(super) file: FileId,
    pub(super) size_bytes: u64,
    pub(super) io_mode: IoMode,
    /// Where buffered writes are made.
    inline: Inline,
    /// One was made on this thread in this turn.
    pub(super) wrote_inline: bool,
    pub(super) connection: Option<Connection>,
    pub(super) ops: Ops,
    pub(super) maps: Maps,
    pub(super) gate: FlushGate<Waiter>,
    pub(super) early: EarlyWriteback,
    /// Of the last flush acknowledged to the engine of `generation`.
    pub(super) flush_sequence: u64,
    generation: Generation,
    /// For file systems that cannot zero a range by themselves; filled on first use.
    pub(super) zeros: Buf,
    pub(super) zeros_are_zero: bool,
    pub(super) zeroing: Zeroing,
    pub(super) can_punch: bool,
    pub(super) can_zero_range: bool,
    pub(super) extents: Vec<Extent>,
    commands: std_mpsc::Receiver<ToData>,
    events: mpsc::Sender<FromData>,
    changes: Arc<AtomicU64>,
    drop_wanted: bool,
    drain: Drain,
    stop: bool,
}

impl Data {
    fn new(
        image: File,
        options: DataOptions,
        commands: std_mpsc::Receiver<ToData>,
        events: mpsc::Sender<FromData>,
        changes: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let pool = Pool::new(POOL)?;
        let zeros = pool.alloc(to_usize(PART_BYTES_MAX)).expect("a new pool has a large buffer");
        let config = DriverConfig { entries: 256, conns: 4, file_ops: OPS_MAX + 2 + PAGES_MAX };
        let mut driver = Driver::new(config, pool)?;
        let file = driver.add_file(image.into());
        let mut maps = Maps::new(&mut driver, options.size_bytes, options.intent);
        maps.track(&mut driver, options.track);
        Ok(Self {
            driver,
            spinner: Spinner::new(options.spin),
            started: Instant::now(),
            begun: 0,
            last_io: Duration::ZERO,
            trimmed: true,
            now: Duration::ZERO,
            file,
            size_bytes: options.size_bytes,
            io_mode: options.io_mode,
            inline: Inline::default(),
            wrote_inline: false,
            connection: None,
            ops: Ops::new(),
            maps,
            // A waiter for each operation in flight and each flush that is let in, and the drain.
            gate: FlushGate::new(2 * OPS_MAX + 1, options.dirty, options.failed),
            early: EarlyWriteback::default(),
            flush_sequence: 0,
            generation: Generation(0),
            zeros,
            zeros_are_zero: false,
            zeroing: Zeroing::new(),
            can_punch: true,
            can_zero_range: true,
            extents: Vec::with_capacity(EXTENTS_MAX),
            commands,
            events,
            changes,
            drop_wanted: false,
            drain: Drain::No,
            stop: false,
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        let mut completions = Vec::with_capacity(2 * OPS_MAX);
        while !self.stop {
            let wait_until = self.connection.as_ref().and_then(|c| c.deadline);
            let awaited = if self.ops.is_empty() { Awaited::Request } else { Awaited::Answer };
            // What was begun together is what its engine has in flight.
            let depth = std::mem::take(&mut self.begun);
            self.driver.turn_looking(
                &mut self.spinner,
                (awaited, depth),
                self.started,
                wait_until,
                &mut completions,
            )?;
            self.now = self.started.elapsed();
            for completion in completions.drain(..) {
                self.handle(completion);
            }
            self.resume();
            self.look_for_a_stall();
            self.trim();
            self.settle();
            // After all that arrived in this turn: one page takes them all.
            self.write_pages();
            // Last, so that flushes that came in this turn share one fsync.
            if self.gate.poll_start() {
                self.driver.fdatasync(self.file, SYNC_TOKEN);
                self.early.flushed();
            } else if !self.gate.is_failed()
                && let Some(range) = self.early.poll_start()
            {
                self.driver.begin_writeback(self.file, WRITEBACK_TOKEN, range);
            }
            self.changes.store(self.gate.changes(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Wake => {
                while let Ok(command) = self.commands.try_recv() {
                    self.command(command);
                }
            }
            Completion::Received { conn } => {
                if self.is_current(conn) {
                    self.pump();
                }
            }
            Completion::ReceivedInto { conn, buf } => {
                if self.is_current(conn) {
                    self.received_payload(buf);
                    self.pump();
                }
            }
            // Room for more replies: `resume` looks.
            Completion::Sent { .. } => {}
            Completion::Failed { conn, error } => {
                if self.is_current(conn) {
                    self.end_session(format!("connection: {error}"));
                }
            }
            // Of connections that were asked for it: not an engine's.
            Completion::Ended { .. } => {}
            Completion::Closed { conn } => {
                if let Some(c) = self.connection.as_mut().filter(|c| c.conn == conn) {
                    c.closed = true;
                    c.end.get_or_insert_default();
                }
            }
            Completion::File { token, result, .. } if is_page(token) => self.page_written(token, result),
            Completion::File { token, result, buf } => self.completed(token, result, buf),
        }
    }

    /// Whether a write to the image is made on this thread, or in the ring. Through the ring, one that is buffered goes
    /// to a kernel thread.
    pub(super) fn writes_inline(&self) -> bool {
        self.io_mode == IoMode::Buffered && self.inline.allowed(self.now)
    }

    /// Whether reads are tried in the page cache first.
    pub(super) fn reads_cached(&self) -> bool {
        self.io_mode == IoMode::Buffered
    }

    /// Gives the memory of buffers back where nothing was asked for lately; heartbeats bring it here once a second.
    fn trim(&mut self) {
        if self.last_io == self.now {
            self.trimmed = false;
        } else if !self.trimmed && self.now >= self.last_io + IDLE_AFTER && self.ops.is_empty() {
            self.trimmed = true;
            self.driver.pool().trim();
        }
    }

    fn look_for_a_stall(&mut self) {
        if !std::mem::take(&mut self.wrote_inline) {
            return;
        }
        let ended = self.started.elapsed();
        let turn = ended - self.now;
        if let Some(away) = self.inline.took(turn, ended) {
            tracing::warn!(
                stalled_ms = turn.as_millis(),
                "the page cache made writes wait: too much is dirty, and the disk does not keep up; for {} s they go \
                 through kernel threads, so that nothing else waits with them; a lower vm.dirty_background_bytes, or \
                 a volume with --io-mode direct, avoids this",
                away.as_secs()
            );
        }
    }

    /// Since the thread began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_current(&self, conn: ConnId) -> bool {
        self.connection.as_ref().is_some_and(|c| c.conn == conn && c.end.is_none())
    }

    fn command(&mut self, command: ToData) {
        match command {
            ToData::Attach { socket, session, terms } => self.attach(socket, session, terms),
            ToData::Drop => {
                self.drop_wanted = true;
                self.end_session("a newer connection takes over".to_owned());
            }
            ToData::Track(track) => self.maps.track(&mut self.driver, *track),
            ToData::AnswerView { from, status, reopen } => self.answer_view(from, status, reopen),
            ToData::Drain => self.drain = Drain::Finishing,
            ToData::Stop => self.stop = true,
        }
    }

    fn attach(&mut self, socket: std::os::fd::OwnedFd, session: Session, terms: Terms) {
        assert!(self.connection.is_none(), "an engine is attached after the older one was dropped");
        if session.generation != self.generation {
            self.generation = session.generation;
            self.flush_sequence = 0;
        }
        match self.driver.add_conn(socket) {
            Ok(conn) => {
                self.connection = Some(Connection {
                    conn,
                    session,
                    terms,
                    sequence: 0,
                    pending: None,
                    receiving: None,
                    paused: false,
                    views: 0,
                    end: None,
                    deadline: None,
                    closed: false,
                });
            }
            Err(e) => {
                let clean = self.gate.is_clean();
                self.tell(FromData::SessionEnded { session, clean, reason: e.to_string() });
            }
        }
    }

    fn answer_view(&mut self, from: ViewFrom, status: Status, reopen: bool) {
        if reopen {
            self.gate.reopen();
        }
        if let Some(c) = self.connection.as_mut().filter(|c| c.conn == from.conn) {
            c.views -= 1;
        }
        self.reply(from.conn, &from.header, status);
    }

    /// Begins the end of the present session, if there is one: nothing of it is parsed any more.
    pub(super) fn end_session(&mut self, reason: String) {
        if let Some(c) = &mut self.connection {
            c.end.get_or_insert(reason);
            self.driver.close(c.conn);
        }
    }

    /// The same, after the replies under way have been sent.
    pub(super) fn end_session_politely(&mut self, reason: String) {
        if let Some(c) = &mut self.connection {
            c.end.get_or_insert(reason);
            c.deadline = Some(Instant::now() + LAST_WORDS_WITHIN);
            self.driver.close_after_sends(c.conn);
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain != Drain::No
    }

    pub(super) fn tell(&self, event: FromData) {
        match self.events.try_send(event) {
            Ok(()) => {}
            // The control thread is gone, and with it the process.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(event)) => panic!("no room to say {event:?}"),
        }
    }

    /// A connection that was paused goes on where it was; it pauses itself again where that is too early.
    fn resume(&mut self) {
        if let Some(c) = self.connection.as_mut().filter(|c| c.paused && c.end.is_none()) {
            c.paused = false;
            self.driver.pause(c.conn, false);
            self.pump();
        }
    }

    /// Ends what can end now.
    fn settle(&mut self) {
        if let Some(c) = &mut self.connection
            && c.deadline.is_some_and(|deadline| deadline <= Instant::now())
        {
            c.deadline = None;
            self.driver.close(c.conn);
        }
        if self.ops.is_empty() && self.gate.is_idle() {
            if let Some(c) = self.connection.take_if(|c| c.closed) {
                // Idle from here on, perhaps for long.
                self.driver.pool().trim();
                if !self.drop_wanted {
                    let (clean, reason) = (self.gate.is_clean(), c.end.unwrap_or_default());
                    self.tell(FromData::SessionEnded { session: c.session, clean, reason });
                }
            }
            if self.drop_wanted && self.connection.is_none() {
                self.drop_wanted = false;
                let clean = self.gate.is_clean();
                self.tell(FromData::Dropped { flush_sequence: self.flush_sequence, clean });
            }
        }
        if self.drain == Drain::Finishing && self.ops.is_empty() {
            self.drain = Drain::Flushing;
            if self.gate.request(Waiter::Drain).is_err() {
                self.drained(false);
            }
        }
    }

    pub(super) fn drained(&mut self, flushed: bool) {
        self.drain = Drain::Done;
        let result =
            if flushed { Ok(()) } else { Err("an fsync failed: the data may not be on the disk".to_owned()) };
        self.tell(FromData::Drained(result));
        self.end_session_politely("drained".to_owned());
    }
}
