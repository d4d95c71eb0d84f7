//! A replica's process around the real cores: what `replica::shell` does on the control thread and `replica::data`,
//! `serve` and `complete` do on the data thread. The two say things to each other with a delay, as there.

use std::collections::VecDeque;

use holdfast_dataplane::core::flush::FlushGate;
use holdfast_dataplane::core::replica::{Action, NewMap, Replica, Session, Tracked, reopened};
use holdfast_dataplane::layout::Meta;
use holdfast_dataplane::wire::handshake::{Hello, RefusalKind, Refused};
use holdfast_dataplane::wire::payload::ViewUpdate;
use holdfast_dataplane::wire::{Header, Status};
use holdfast_proto::ids::{BootId, Generation, InstanceUuid};
use uuid::Uuid;

use super::disk::{Image, MetaFiles, Reached};
use super::maps::{Files, Maps};
use super::net::Message;
use super::queue::{MS, SEC};
use super::random::Random;
use super::world::{Event, World};

/// A file operation in flight.
#[derive(Debug)]
pub(super) struct FileOp {
    pub(super) conn: usize,
    pub(super) header: Header,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Write { units: Vec<u64>, fua: bool },
    Zero { punch: bool, fua: bool },
    Read,
    Digest,
}

/// Who waits for an fsync.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) conn: usize,
    pub(super) header: Header,
}

/// The engine's connection, as the data thread has it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) conn: usize,
    pub(super) session: Session,
    /// Of the last request.
    pub(super) sequence: u64,
    pub(super) ended: bool,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) enum ToControl {
    Engine { conn: usize, hello: Box<Hello> },
    Dropped { flush_sequence: u64, clean: bool },
    View { conn: usize, header: Header, update: Box<ViewUpdate> },
    SyncFailed,
    SessionEnded { session: Session, clean: bool },
}

#[derive(Debug)]
pub(super) enum ToData {
    Attach { conn: usize, session: Session },
    Drop,
    AnswerView { conn: usize, header: Header, status: Status, reopen: bool },
    Track(Box<Tracked>),
}

/// Everything that needs the directory.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) core: Replica,
    pub(super) gate: FlushGate<Waiter>,
    pub(super) link: Option<Link>,
    pub(super) ops: Vec<Option<FileOp>>,
    pub(super) maps: Maps,
    pub(super) flush_sequence: u64,
    generation: Generation,
    pub(super) drop_wanted: bool,
    control: VecDeque<ToControl>,
    data: VecDeque<ToData>,
    /// The control thread is writing this.
    persisting: Option<(Box<Meta>, Vec<NewMap>)>,
    engines: Vec<(u64, usize)>,
    views: Vec<(u64, usize, Header)>,
    next_ticket: u64,
}

/// One replica: its disk, and its process where one runs.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) node: usize,
    pub(super) image: Image,
    pub(super) meta: MetaFiles,
    pub(super) map_files: Files,
    /// Grows with each process.
    pub(super) run: u64,
    pub(super) running: bool,
    /// `None` while the directory cannot be opened.
    pub(super) open: Option<Box<Open>>,
    /// What was read from it once is gone, and has not been filled in since.
    pub(super) lost: bool,
    /// Its disk went back to an earlier state, and has not been filled since.
    pub(super) older: bool,
    /// File operations take their time instead of ending at once.
    pub(super) direct: bool,
    /// One in so many file operations fails.
    pub(super) bad_one_in: u64,
    /// Nothing that is asked of the disk ends before this.
    pub(super) stalled_until: u64,
}

impl Host {
    pub(super) fn new(node: usize, blocks: usize, meta: &Meta, direct: bool) -> Self {
        Self {
            node,
            image: Image::new(blocks),
            meta: MetaFiles::new(meta),
            map_files: Files::new(),
            run: 0,
            running: false,
            open: None,
            lost: false,
            older: false,
            direct,
            bad_one_in: 0,
            stalled_until: 0,
        }
    }
}

/// Whether a process that heard of a failed fsync and was killed before that was on its disk hears it again. Linux does
/// not tell it twice; see `docs/testing.md`.
const TELL_FAILURES_AGAIN: bool = true;

impl Host {
    /// The dirty maps that begin, then meta, not to the end.
    fn store_in_part(&mut self, next: &Meta, begin: &[NewMap], random: &mut Random) {
        let made = random.index(begin.len() + 1);
        self.map_files.begin(&begin[..made]);
        if made == begin.len() {
            let reached = Reached::some(random);
            self.meta.replace(next, reached);
        }
    }
}

fn absent(promised: Generation, reason: &str) -> Refused {
    Refused {
        kind: RefusalKind::Absent,
        generation: promised,
        engine: InstanceUuid::nil(),
        reason: reason.to_owned(),
    }
}

impl World {
    pub(super) fn boot(&self, node: usize) -> BootId {
        BootId(Uuid::from_u128(u128::from(self.nodes[node].boot) << 8 | node as u128))
    }

    /// A process begins.
    pub(super) fn start_replica(&mut self, slot: usize) {
        let host = &mut self.replicas[slot];
        if host.running || !self.nodes[host.node].up {
            return;
        }
        host.running = true;
        host.run += 1;
        trace!(self, "r{} starts", slot + 1);
        self.open_replica(slot);
        self.tell_engines_where(slot);
    }

    /// Tries to open the directory.
    pub(super) fn open_replica(&mut self, slot: usize) {
        let boot = self.boot(self.replicas[slot].node);
        let host = &mut self.replicas[slot];
        if !host.running || host.open.is_some() {
            return;
        }
        let run = host.run;
        let meta = match host.meta.load() {
            Ok(meta) => meta,
            Err(e) => {
                trace!(self, "r{} absent: {e}", slot + 1);
                self.queue.after(3 * SEC, Event::OpenReplica { replica: slot, run });
                return;
            }
        };
        if host.meta.is_damaged() {
            self.fail(format!("r{}: a damaged meta was opened", slot + 1));
            return;
        }
        host.meta.sync_directory();
        let meta = match reopened(&meta, boot) {
            Some(next) => {
                host.meta.replace(&next, Reached::Done);
                next
            }
            None => meta,
        };
        let maps = Maps::open(&mut host.map_files, &meta);
        let gate = FlushGate::new(64, meta.unflushed, !meta.failed.is_empty());
        trace!(self, "r{} open: {meta:?}", slot + 1);
        self.replicas[slot].open = Some(Box::new(Open {
            core: Replica::new(meta, boot),
            gate,
            link: None,
            ops: Vec::new(),
            maps,
            flush_sequence: 0,
            generation: Generation(0),
            drop_wanted: false,
            control: VecDeque::new(),
            data: VecDeque::new(),
            persisting: None,
            engines: Vec::new(),
            views: Vec::new(),
            next_ticket: 0,
        }));
        self.tell_engines_where(slot);
    }

    /// The process is gone. What it had handed to the kernel is in the cache.
    pub(super) fn kill_replica(&mut self, slot: usize, with_its_node: bool) {
        let host = &mut self.replicas[slot];
        if !std::mem::take(&mut host.running) {
            return;
        }
        trace!(self, "r{} killed", slot + 1);
        if let Some(open) = host.open.take() {
            let Open { persisting, ops, gate, maps, .. } = *open;
            if let Some((next, begin)) = persisting {
                host.store_in_part(&next, &begin, &mut self.random);
            }
            maps.cut_off(&mut host.map_files, with_its_node, &mut self.random);
            // Each file operation was done, or not.
            for op in ops.into_iter().flatten() {
                if self.random.coin() {
                    let all = self.random.coin();
                    self.apply(slot, &op.header, &op.what, all);
                }
            }
            // An fsync that began goes on in the kernel, and nobody hears how it went.
            let host = &mut self.replicas[slot];
            let ok = host.bad_one_in == 0 || self.random.coin();
            host.image.sync_goes_on_unheard(ok, &mut self.random);
            // A failure that was heard and is not on the disk yet: see `docs/testing.md`.
            let forgotten = gate.is_failed() && host.meta.load().is_ok_and(|meta| meta.failed.is_empty());
            if forgotten && !with_its_node && TELL_FAILURES_AGAIN {
                host.image.tell_error_again();
            }
        }
        for conn in 0..self.conns.len() {
            if self.conns[conn].replica == slot {
                self.close_replica_end(conn, with_its_node);
            }
        }
        self.tell_engines_where(slot);
    }

    pub(super) fn tell_control(&mut self, slot: usize, message: ToControl) {
        let delay = 5 + self.random.below(100);
        let host = &mut self.replicas[slot];
        let run = host.run;
        if let Some(open) = &mut host.open {
            open.control.push_back(message);
            self.queue.after(delay, Event::Control { replica: slot, run });
        }
    }

    fn tell_data(&mut self, slot: usize, message: ToData) {
        let delay = 5 + self.random.below(50);
        let host = &mut self.replicas[slot];
        let run = host.run;
        if let Some(open) = &mut host.open {
            open.data.push_back(message);
            self.queue.after(delay, Event::Data { replica: slot, run });
        }
    }

    /// Something arrived for the process's control thread.
    pub(super) fn control(&mut self, slot: usize) {
        let Some(open) = &mut self.replicas[slot].open else { return };
        if open.persisting.is_some() {
            return;
        }
        let Some(message) = open.control.pop_front() else { return };
        open.next_ticket += 1;
        let ticket = open.next_ticket;
        match message {
            ToControl::Engine { conn, hello } => {
                open.engines.push((ticket, conn));
                open.core.handle_fence(ticket, *hello);
            }
            ToControl::Dropped { flush_sequence, clean } => open.core.handle_dropped(flush_sequence, clean),
            ToControl::View { conn, header, update } => {
                open.views.push((ticket, conn, header));
                open.core.handle_view(ticket, Generation(header.generation), *update);
            }
            ToControl::SyncFailed => open.core.handle_sync_failed("fdatasync: EIO".to_owned()),
            ToControl::SessionEnded { session, clean } => {
                open.core.handle_session_ended(session.number, clean);
            }
        }
        self.act_replica(slot);
    }

    /// Carries out what the core decided, until it has to wait for its disk.
    fn act_replica(&mut self, slot: usize) {
        loop {
            let host = &mut self.replicas[slot];
            let run = host.run;
            let Some(open) = &mut host.open else { return };
            if open.persisting.is_some() {
                return;
            }
            let Some(action) = open.core.poll_action() else { return };
            match action {
                Action::DropSession => self.tell_data(slot, ToData::Drop),
                Action::Persist { meta, begin } => {
                    open.persisting = Some((meta, begin));
                    let takes = 100 + self.random.below(5 * MS);
                    let at = (self.queue.now() + takes).max(self.replicas[slot].stalled_until);
                    self.queue.at(at, Event::Persisted { replica: slot, run });
                }
                Action::Track(tracked) => self.tell_data(slot, ToData::Track(tracked)),
                Action::AnswerView { ticket, status, reopen } => {
                    if reopen {
                        host.image.forget_clean();
                    }
                    if let Some(at) = open.views.iter().position(|(t, ..)| *t == ticket) {
                        let (_, conn, header) = open.views.swap_remove(at);
                        self.tell_data(slot, ToData::AnswerView { conn, header, status, reopen });
                    }
                }
                Action::Refuse { ticket, refused } => {
                    if let Some(conn) = take_engine(open, ticket) {
                        self.refuse(conn, refused);
                    }
                }
                Action::Welcome { ticket, welcome, session } => {
                    let Some(conn) = take_engine(open, ticket) else { continue };
                    let left = self.conns[conn].early.iter().any(|m| matches!(m, Message::Close));
                    if !self.conns[conn].replica_open || (left && self.random.coin()) {
                        open.core.handle_session_lost(session.number);
                        continue;
                    }
                    trace!(self, "r{} welcomes conn {conn}: {session:?}", slot + 1);
                    let boot = self.boot(self.replicas[slot].node);
                    self.send_to_engine(conn, Message::Welcome(welcome, boot));
                    self.tell_data(slot, ToData::Attach { conn, session });
                }
            }
        }
    }

    fn refuse(&mut self, conn: usize, refused: Refused) {
        self.send_to_engine(conn, Message::Refused(Box::new(refused)));
        self.close_replica_end(conn, false);
    }

    /// The control thread's write of meta has ended.
    pub(super) fn persisted(&mut self, slot: usize) {
        let host = &mut self.replicas[slot];
        let Some(open) = &mut host.open else { return };
        let Some((next, begin)) = open.persisting.take() else { return };
        let bad = host.bad_one_in != 0 && self.random.one_in(host.bad_one_in * 4);
        let before = open.core.meta().clone();
        let result = if bad {
            host.store_in_part(&next, &begin, &mut self.random);
            let status = if self.random.coin() { Status::Io } else { Status::NoSpace };
            Err((status, "the disk refuses".to_owned()))
        } else {
            host.map_files.begin(&begin);
            host.meta.replace(&next, Reached::Done);
            if next.dirty.len() < before.dirty.len() {
                host.map_files.remove_stale(&next);
            }
            let filled = before.syncing && !next.syncing;
            let repaired = before.cache_lost && !next.cache_lost;
            if filled || repaired {
                host.lost = false;
            }
            host.older &= !filled;
            Ok(())
        };
        trace!(self, "r{} persisted {result:?}: {next:?}", slot + 1);
        let Some(open) = &mut self.replicas[slot].open else { return };
        open.core.handle_persisted(result);
        self.act_replica(slot);
        // What came meanwhile.
        for _ in 0..self.replicas[slot].open.as_ref().map_or(0, |open| open.control.len()) {
            self.control(slot);
        }
    }

    /// Something arrived for the process's data thread.
    pub(super) fn data(&mut self, slot: usize) {
        let host = &mut self.replicas[slot];
        let Some(open) = &mut host.open else { return };
        let Some(message) = open.data.pop_front() else { return };
        match message {
            ToData::Attach { conn, session } => {
                if session.generation != open.generation {
                    open.generation = session.generation;
                    open.flush_sequence = 0;
                }
                if open.link.is_some() {
                    return self.fail(format!("r{}: an engine is attached beside another", slot + 1));
                }
                open.link = Some(Link { conn, session, sequence: 0, ended: false, closed: false });
                while let Some(message) = self.conns[conn].early.pop_front() {
                    self.at_data_thread(slot, conn, message);
                }
            }
            ToData::Track(tracked) => {
                let size = self.size;
                open.maps.track(&mut host.map_files, &tracked, size);
            }
            ToData::Drop => {
                open.drop_wanted = true;
                self.end_session(slot);
            }
            ToData::AnswerView { conn, header, status, reopen } => {
                if reopen {
                    open.gate.reopen();
                }
                self.reply(slot, conn, &header, status);
            }
        }
        self.settle_replica(slot);
    }

    /// Nothing of the present connection is parsed any more.
    pub(super) fn end_session(&mut self, slot: usize) {
        let Some(link) = self.replicas[slot].open.as_mut().and_then(|open| open.link.as_mut()) else {
            return;
        };
        link.ended = true;
        link.closed = true;
        let conn = link.conn;
        self.close_replica_end(conn, false);
    }

    /// Something arrived over the network.
    pub(super) fn arrives_at_replica(&mut self, conn: usize, message: Message) {
        let c = &self.conns[conn];
        let (slot, run) = (c.replica, c.run);
        let host = &self.replicas[slot];
        match message {
            Message::Hello(hello) => {
                if !c.engine_open {
                    return;
                }
                if !host.running || host.run != run {
                    return self.send_to_engine(conn, Message::NobodyThere);
                }
                self.conns[conn].replica_open = true;
                if self.replicas[slot].open.is_some() {
                    self.tell_control(slot, ToControl::Engine { conn, hello });
                } else {
                    self.refuse(conn, absent(Generation(0), "its directory cannot be opened"));
                }
            }
            message if !c.replica_open => {
                // To a socket that is no more: a reset comes back.
                if c.engine_open && !matches!(message, Message::Close) {
                    self.send_to_engine(conn, Message::Close);
                }
            }
            message => {
                let current =
                    host.open.as_ref().and_then(|open| open.link.as_ref()).is_some_and(|l| l.conn == conn);
                if current {
                    self.at_data_thread(slot, conn, message);
                    self.settle_replica(slot);
                } else {
                    self.conns[conn].early.push_back(message);
                }
            }
        }
    }

    /// Ends what can end now, and begins an fsync where one is due.
    pub(super) fn settle_replica(&mut self, slot: usize) {
        let host = &mut self.replicas[slot];
        let run = host.run;
        let Some(open) = &mut host.open else { return };
        let mut said = Vec::new();
        if open.ops.iter().all(Option::is_none) && open.maps.is_idle() && open.gate.is_idle() {
            if let Some(link) = open.link.take_if(|link| link.closed)
                && !open.drop_wanted
            {
                said.push(ToControl::SessionEnded { session: link.session, clean: open.gate.is_clean() });
            }
            if open.drop_wanted && open.link.is_none() {
                open.drop_wanted = false;
                let (flush_sequence, clean) = (open.flush_sequence, open.gate.is_clean());
                said.push(ToControl::Dropped { flush_sequence, clean });
            }
        }
        if open.gate.poll_start() {
            host.image.sync_begins();
            let takes = 50 + self.random.below(4 * MS);
            let at = (self.queue.now() + takes).max(self.replicas[slot].stalled_until);
            self.queue.at(at, Event::Synced { replica: slot, run });
        }
        for message in said {
            self.tell_control(slot, message);
        }
        self.write_pages(slot);
    }
}

fn take_engine(open: &mut Open, ticket: u64) -> Option<usize> {
    let at = open.engines.iter().position(|(t, _)| *t == ticket)?;
    Some(open.engines.swap_remove(at).1)
}
