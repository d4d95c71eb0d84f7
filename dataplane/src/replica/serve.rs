//! Frames into operations.

use sha2::{Digest as _, Sha256};

use super::config::IoMode;
use super::data::{Connection, Data, OPS_MAX, Op, Waiter, What};
use super::messages::{FromData, ViewFrom};
use super::request::{self, Request};
use crate::io::{Buf, ConnId, Errno};
use crate::units::{to_u64, to_usize};
use crate::wire::header::{FLAG_FILL, FLAG_HOLE};
use crate::wire::payload::{EXTENTS_MAX, Extent, ViewUpdate, encode_extents};
use crate::wire::{HEADER_BYTES, Header, Kind, Status};

/// Replies that an engine does not take: beyond this nothing more is read from it.
const SEND_QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A payload that has not come as a whole is waited for in the receive buffer up to this size, so that small ones keep
/// arriving in batches; a larger one goes straight into a buffer, in one wake-up.
const GATHER_BYTES_MAX: usize = 32 * 1024;
/// Views that the control thread has under way; an engine needs one.
const VIEWS_MAX: usize = 4;
/// Runs looked up for one frame: each is up to two system calls, which may need the disk.
const RUNS_PER_FRAME_MAX: usize = 256;
const _: () = assert!(RUNS_PER_FRAME_MAX <= EXTENTS_MAX);

/// What became of a frame.
enum Step {
    /// It is consumed; it was, or will be, answered.
    Done,
    /// Its payload is not here.
    More,
    /// Its payload goes into a buffer of its own.
    Receiving,
    /// Something in flight must end first.
    Blocked,
    /// Nothing on this connection makes sense any more.
    Foreign(String),
}

/// The status that tells an engine of a failed operation.
pub(super) fn status_of(errno: Errno) -> Status {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => Status::NoSpace,
        _ => Status::Io,
    }
}

impl Data {
    /// Works off what was received.
    pub(super) fn pump(&mut self) {
        while !self.is_draining()
            && let Some(c) = &mut self.connection
            && c.end.is_none()
            && c.receiving.is_none()
        {
            let conn = c.conn;
            let header = match c.pending.take() {
                Some(header) => header,
                None => match Header::decode(self.driver.received(conn)) {
                    Ok(None) => return,
                    Ok(Some(header)) if !request::is_next(&header, c.sequence) => {
                        let (found, last) = (header.sequence, c.sequence);
                        return self.end_session(format!("bad frame: sequence {found} after {last}"));
                    }
                    Ok(Some(header)) => {
                        c.sequence = header.sequence;
                        self.driver.consume(conn, HEADER_BYTES);
                        header
                    }
                    Err(e) => return self.end_session(format!("bad frame: {e}")),
                },
            };
            let step = self.step(conn, &header);
            let Some(c) = &mut self.connection else { return };
            match step {
                Step::Done => {}
                Step::More => {
                    c.pending = Some(header);
                    return;
                }
                Step::Receiving => c.receiving = Some(header),
                Step::Blocked => {
                    c.pending = Some(header);
                    c.paused = true;
                    self.driver.pause(conn, true);
                    return;
                }
                Step::Foreign(reason) => self.end_session(format!("bad frame: {reason}")),
            }
        }
    }

    fn step(&mut self, conn: ConnId, header: &Header) -> Step {
        if request::is_foreign(header) {
            return Step::Foreign(format!("{:?} with {} bytes of payload", header.kind, header.length));
        }
        let generation = self.connection.as_ref().map(|c| c.session.generation.0);
        if generation != Some(header.generation) {
            self.reply(conn, header, Status::Fenced);
            self.end_session_politely(format!("a frame of generation {}", header.generation));
            return Step::Done;
        }
        if self.is_blocked(conn) {
            return Step::Blocked;
        }
        let request = request::check(header, self.size_bytes);
        self.begun += 1;
        if header.kind != Kind::Ping {
            self.last_io = self.now;
        }
        let len = to_usize(u64::from(header.length));
        if self.driver.received(conn).len() < len {
            let gather = len <= GATHER_BYTES_MAX || !matches!(request, Ok(Request::Write { .. }));
            return match if gather { None } else { self.driver.pool().alloc(len) } {
                Some(buf) => {
                    self.driver.receive_into(conn, buf, 0);
                    Step::Receiving
                }
                // The receive buffer has room for any payload.
                None => Step::More,
            };
        }
        match request {
            Ok(request) => self.begin(conn, header, request, len),
            Err(status) => {
                self.driver.consume(conn, len);
                self.reply(conn, header, status);
                Step::Done
            }
        }
    }

    fn is_blocked(&self, conn: ConnId) -> bool {
        self.ops.is_full()
            || self.gate.waiting() >= OPS_MAX
            || self.driver.queued_bytes(conn) > SEND_QUEUE_BYTES_MAX
            || self.connection.as_ref().is_some_and(|c| c.views >= VIEWS_MAX)
    }

    /// A request whose payload is at the front of the receive buffer.
    fn begin(&mut self, conn: ConnId, header: &Header, request: Request, len: usize) -> Step {
        match request {
            Request::Write { fua } => return self.write(conn, header, len, fua),
            Request::Read { sparse } => return self.read(conn, header, sparse, What::Read),
            Request::Digest => return self.read(conn, header, true, What::Digest),
            Request::Flush => {
                if self.gate.request(Waiter::Frame { conn, header: *header }).is_err() {
                    self.reply(conn, header, Status::Failed);
                }
            }
            Request::Zero { punch, fua } => {
                if self.maps.admit(header) {
                    self.zero(conn, header, punch, fua);
                } else {
                    self.wait_for_intent(conn, header, request, None);
                }
            }
            Request::Ping => self.reply(conn, header, Status::Ok),
            Request::PersistView => return self.persist_view(conn, header, len),
            Request::Extents => self.extents(conn, header),
            Request::ReadMap | Request::EditMap => return self.map(conn, header, len),
        }
        Step::Done
    }

    pub(super) fn reply(&mut self, conn: ConnId, header: &Header, status: Status) {
        self.driver.send(conn, &header.answer(status).encode(), None);
    }

    /// The reply of a read: payload and checksum.
    pub(super) fn reply_bytes(&mut self, conn: ConnId, header: &Header, buf: &Buf) {
        let length = u32::try_from(buf.len()).expect("bounded by the largest buffer");
        let payload_crc = crc32fast::hash(buf.as_slice());
        let head = Header { length, payload_crc, ..header.answer(Status::Ok) }.encode();
        self.driver.send(conn, &head, Some((buf, 0..buf.len())));
    }

    pub(super) fn reply_digest(&mut self, conn: ConnId, header: &Header, data: &[u8]) {
        self.reply_small(conn, header, &Sha256::digest(data));
    }

    fn reply_small(&mut self, conn: ConnId, header: &Header, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("small");
        let head = Header { length, payload_crc: crc32fast::hash(payload), ..header.answer(Status::Ok) };
        self.driver.send(conn, &head.encode(), None);
        self.driver.send(conn, payload, None);
    }

    // ---- writes -----------------------------------------------------------------------------------------------------

    fn write(&mut self, conn: ConnId, header: &Header, len: usize, fua: bool) -> Step {
        // A slice of what was received; longer than `len`, checked by the caller.
        let Some(payload) = self.driver.received(conn).get(..len) else { return Step::More };
        if let Err(e) = header.verify(payload) {
            return Step::Foreign(e.to_string());
        }
        if !self.maps.admit(header) {
            let Some(buf) = self.copy_out(conn, len) else { return Step::Blocked };
            self.wait_for_intent(conn, header, Request::Write { fua }, Some(buf));
            return Step::Done;
        }
        if self.writes_inline() {
            // Into the page cache from where it was received.
            let result = self.driver.write_inline(self.file, header.offset, payload);
            self.wrote_inline = true;
            self.driver.consume(conn, len);
            self.changed(conn, header, result, fua);
        } else {
            let Some(buf) = self.copy_out(conn, len) else { return Step::Blocked };
            self.write_buf(conn, header, buf, fua);
        }
        Step::Done
    }

    /// The next `len` bytes received, in a buffer of their own; none: there is no memory now.
    fn copy_out(&mut self, conn: ConnId, len: usize) -> Option<Buf> {
        let mut buf = self.driver.pool().alloc(len)?;
        let payload = self.driver.received(conn).get(..len)?;
        buf.get_mut().expect("a new buffer is unshared").copy_from_slice(payload);
        self.driver.consume(conn, len);
        Some(buf)
    }

    /// The payload of the write under way has come, in a buffer of its own.
    pub(super) fn received_payload(&mut self, buf: Buf) {
        let Some(Connection { conn, receiving, .. }) = &mut self.connection else { return };
        let (conn, Some(header)) = (*conn, receiving.take()) else { return };
        if let Err(e) = header.verify(buf.as_slice()) {
            return self.end_session(format!("bad frame: {e}"));
        }
        // Checked before its payload was asked for.
        let Ok(Request::Write { fua }) = request::check(&header, self.size_bytes) else { return };
        if self.maps.admit(&header) {
            self.write_whole(conn, &header, buf, fua);
        } else {
            self.wait_for_intent(conn, &header, Request::Write { fua }, Some(buf));
        }
    }

    /// A write whose payload is in a buffer of its own.
    pub(super) fn write_whole(&mut self, conn: ConnId, header: &Header, buf: Buf, fua: bool) {
        if self.writes_inline() {
            let result = self.driver.write_inline(self.file, header.offset, buf.as_slice());
            self.wrote_inline = true;
            self.changed(conn, header, result, fua);
        } else {
            self.write_buf(conn, header, buf, fua);
        }
    }

    fn write_buf(&mut self, conn: ConnId, header: &Header, buf: Buf, fua: bool) {
        let token = self.ops.insert(Op { conn, header: *header, what: What::Write { fua } });
        let len = buf.len();
        self.driver.write(self.file, token, header.offset, buf, 0..len);
    }

    pub(super) fn zero(&mut self, conn: ConnId, header: &Header, punch: bool, fua: bool) {
        let by_file_system = if punch { self.can_punch } else { self.can_zero_range };
        if by_file_system {
            let what = What::Zero { punch, fua, next: header.offset };
            self.zero_on(Op { conn, header: *header, what });
        } else {
            let end = header.offset + header.extent;
            self.write_zeros(conn, header, header.offset, end, fua);
        }
    }

    /// Writes the next part of `next..end`.
    pub(super) fn write_zeros(&mut self, conn: ConnId, header: &Header, next: u64, end: u64, fua: bool) {
        if !self.zeros_are_zero {
            self.zeros.get_mut().expect("nobody has used it").fill(0);
            self.zeros_are_zero = true;
        }
        let len = (end - next).min(to_u64(self.zeros.len()));
        let what = What::WriteZeros { next: next + len, end, fua };
        let token = self.ops.insert(Op { conn, header: *header, what });
        self.driver.write(self.file, token, next, self.zeros.clone(), 0..to_usize(len));
    }

    /// A change of the data has ended, one way or the other.
    pub(super) fn changed(&mut self, conn: ConnId, header: &Header, result: Result<(), Errno>, fua: bool) {
        // Also where it failed: a part may have been changed.
        self.gate.applied();
        if self.io_mode == IoMode::Buffered {
            let len = request::range_len(header);
            if header.flags & FLAG_FILL == 0 {
                self.early.changed(header.offset, len);
            } else {
                self.early.filled(header.offset, len);
            }
        }
        match result {
            Err(errno) => self.reply(conn, header, status_of(errno)),
            Ok(()) if fua => {
                if self.gate.request(Waiter::Frame { conn, header: *header }).is_err() {
                    self.reply(conn, header, Status::Failed);
                }
            }
            Ok(()) => self.reply(conn, header, Status::Ok),
        }
    }

    // ---- reads ------------------------------------------------------------------------------------------------------

    fn read(&mut self, conn: ConnId, header: &Header, sparse: bool, what: What) -> Step {
        let (offset, len) = (header.offset, header.extent);
        if sparse {
            match self.driver.seek_extent(self.file, offset, offset + len) {
                Ok(run) if run == (len, false) => {
                    let hole = Header { flags: FLAG_HOLE, ..header.answer(Status::Ok) };
                    self.driver.send(conn, &hole.encode(), None);
                    return Step::Done;
                }
                Ok(_) => {}
                Err(errno) => {
                    self.reply(conn, header, status_of(errno));
                    return Step::Done;
                }
            }
        }
        if !request::fits_a_frame(len) {
            self.reply(conn, header, Status::Invalid);
            return Step::Done;
        }
        let len = to_usize(len);
        let Some(mut buf) = self.driver.pool().alloc(len) else { return Step::Blocked };
        if self.reads_cached() {
            let out = buf.get_mut().expect("a new buffer is unshared");
            // Otherwise it takes the disk, or there is an error that the ring will see as well.
            if self.driver.read_cached(self.file, offset, out) == Ok(true) {
                match what {
                    What::Digest => self.reply_digest(conn, header, buf.as_slice()),
                    _ => self.reply_bytes(conn, header, &buf),
                }
                return Step::Done;
            }
        }
        let token = self.ops.insert(Op { conn, header: *header, what });
        self.driver.read(self.file, token, offset, buf, len);
        Step::Done
    }

    fn extents(&mut self, conn: ConnId, header: &Header) {
        let end = header.offset + header.extent;
        let mut at = header.offset;
        self.extents.clear();
        while at < end && self.extents.len() < RUNS_PER_FRAME_MAX {
            let (len, allocated) = match self.driver.seek_extent(self.file, at, end) {
                Ok(run) => request::whole_blocks(run, end - at),
                Err(errno) => return self.reply(conn, header, status_of(errno)),
            };
            match self.extents.last_mut() {
                Some(last) if last.allocated == allocated => last.len += len,
                _ => self.extents.push(Extent { len, allocated }),
            }
            at += len;
        }
        let payload = encode_extents(&self.extents);
        self.reply_small(conn, header, &payload);
    }

    // ---- maps -------------------------------------------------------------------------------------------------------

    fn map(&mut self, conn: ConnId, header: &Header, len: usize) -> Step {
        let Some(payload) = self.driver.received(conn).get(..len) else { return Step::More };
        if let Err(e) = header.verify(payload) {
            return Step::Foreign(e.to_string());
        }
        let payload = payload.to_vec();
        self.driver.consume(conn, len);
        let done = if header.kind == Kind::ReadMap {
            self.map_part(header, &payload).map(|part| self.reply_small(conn, header, &part))
        } else {
            self.edit_map(header, &payload).map(|status| self.reply(conn, header, status))
        };
        match done {
            Ok(()) => Step::Done,
            Err(reason) => Step::Foreign(reason),
        }
    }

    // ---- views ------------------------------------------------------------------------------------------------------

    fn persist_view(&mut self, conn: ConnId, header: &Header, len: usize) -> Step {
        let Some(payload) = self.driver.received(conn).get(..len) else { return Step::More };
        if let Err(e) = header.verify(payload) {
            return Step::Foreign(e.to_string());
        }
        let tags = self.connection.as_ref().is_some_and(|c| c.terms.has_tags());
        match ViewUpdate::decode(payload, tags) {
            Ok(update) => {
                self.driver.consume(conn, len);
                if let Some(c) = &mut self.connection {
                    c.views += 1;
                }
                let from = ViewFrom { conn, header: *header };
                self.tell(FromData::View { from, update: Box::new(update) });
                Step::Done
            }
            Err(e) => Step::Foreign(format!("{:?}: {e}", Kind::PersistView)),
        }
    }
}
