//! The connections to replicas on the data thread: frames out, replies in. Nothing that a replica sends is believed
//! before its checksum was verified, and nothing it sends ends the process: a connection that makes no sense is closed.

use std::ops::Range;

use holdfast_proto::ids::ReplicaId;

use super::buffers::Buffers;
use crate::core::engine::{Body, Engine, Now, OpId, PayloadUse};
use crate::core::zero_blocks::ZeroBlocks;
use crate::io::{Buf, ConnId, Driver};
use crate::units::{PART_BYTES_MAX, to_usize};
use crate::wire::handshake::Terms;
use crate::wire::header::{FrameError, HEADER_BYTES, Header};
use crate::wire::map::MAP_WORDS_MAX;
use crate::wire::payload::EXTENTS_MAX;

/// A payload of at least this length that is not here yet goes straight into its buffer. Below it, copying costs less
/// than a receive of its own, which could not bring the next replies along. A guess, to be measured.
const DIRECT_BYTES_MIN: usize = 16 * 1024;
/// What is handed over inline is at most a list of extents, or a part of a map.
const INLINE_BYTES_MAX: usize =
    if EXTENTS_MAX > MAP_WORDS_MAX { EXTENTS_MAX * 8 } else { MAP_WORDS_MAX * 8 + 64 };

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it sent what is no reply: {0}")]
    Frame(#[from] FrameError),
    #[error("it sent a request")]
    Request,
    #[error("it sent {0} bytes where at most {INLINE_BYTES_MAX} were expected")]
    Inline(u32),
    #[error("there is no memory left to receive into")]
    Memory,
}

/// Where in the stream of replies we are.
#[derive(Debug, Clone, Copy)]
enum Rx {
    Header,
    /// The payload of this reply is next.
    Payload(Header),
    /// It is on its way into the buffer of this operation.
    Direct(Header, OpId),
    /// So much of it is still to be thrown away.
    Skip(Header, usize),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) replica: ReplicaId,
    pub(super) session: u64,
    pub(super) conn: ConnId,
    terms: Terms,
    rx: Rx,
}

/// What is next for a caller of [`Link::next`].
pub(super) enum Step {
    /// Nothing until more bytes are here.
    NeedInput,
    /// This reply is complete; its inline payload is this much of what was received, to be consumed afterwards.
    Reply(Header, Range<usize>),
    /// This reply is complete, its payload is in its buffer, and these blocks of it are zeros.
    Filled(Header, ZeroBlocks),
}

impl Link {
    pub(super) fn new(replica: ReplicaId, session: u64, conn: ConnId, terms: Terms) -> Self {
        Self { replica, session, conn, terms, rx: Rx::Header }
    }

    /// Works the stream off up to the next reply that the core is to hear of.
    pub(super) fn next(
        &mut self,
        driver: &mut Driver,
        core: &Engine,
        buffers: &mut Buffers,
    ) -> Result<Step, Broken> {
        loop {
            match self.rx {
                Rx::Header => {
                    let Some(header) = Header::decode(driver.received(self.conn))? else {
                        return Ok(Step::NeedInput);
                    };
                    if !header.reply {
                        return Err(Broken::Request);
                    }
                    driver.consume(self.conn, HEADER_BYTES);
                    self.rx = Rx::Payload(header);
                }
                Rx::Payload(header) if header.length == 0 => {
                    self.rx = Rx::Header;
                    header.verify(&[])?;
                    return Ok(Step::Reply(header, 0..0));
                }
                Rx::Payload(header) => {
                    if let Some(step) = self.payload(header, driver, core, buffers)? {
                        return Ok(step);
                    }
                }
                Rx::Direct(..) => return Ok(Step::NeedInput),
                Rx::Skip(header, left) => {
                    let present = driver.received(self.conn).len().min(left);
                    driver.consume(self.conn, present);
                    if present < left {
                        self.rx = Rx::Skip(header, left - present);
                        return Ok(Step::NeedInput);
                    }
                    self.rx = Rx::Header;
                    return Ok(Step::Reply(header, 0..0));
                }
            }
        }
    }

    /// `None`: go on with the state that was set.
    fn payload(
        &mut self,
        header: Header,
        driver: &mut Driver,
        core: &Engine,
        buffers: &mut Buffers,
    ) -> Result<Option<Step>, Broken> {
        let length = to_usize(u64::from(header.length).min(PART_BYTES_MAX));
        let usage = core.payload_use(&header);
        if usage == PayloadUse::Discard {
            self.rx = Rx::Skip(header, length);
            return Ok(None);
        }
        if usage == PayloadUse::Inline && length > INLINE_BYTES_MAX {
            return Err(Broken::Inline(header.length));
        }
        let Some(payload) = driver.received(self.conn).get(..length) else {
            if let PayloadUse::Fill(op) | PayloadUse::FillAndLook(op) = usage
                && length >= DIRECT_BYTES_MIN
            {
                let buf = buffers.take_to_fill(op, length).ok_or(Broken::Memory)?;
                self.rx = Rx::Direct(header, op);
                driver.receive_into(self.conn, buf, 0);
            }
            return Ok(Some(Step::NeedInput));
        };
        header.verify(payload)?;
        self.rx = Rx::Header;
        match usage {
            PayloadUse::Inline => return Ok(Some(Step::Reply(header, 0..length))),
            PayloadUse::Fill(op) => {
                let mut buf = buffers.take_to_fill(op, length).ok_or(Broken::Memory)?;
                buf.get_mut().ok_or(Broken::Memory)?.copy_from_slice(payload);
                buffers.fill(op, buf);
            }
            PayloadUse::FillAndLook(op) => {
                let zeros = ZeroBlocks::of(payload);
                let mut buf = buffers.take_to_fill(op, length).ok_or(Broken::Memory)?;
                buf.get_mut().ok_or(Broken::Memory)?.copy_from_slice(payload);
                buffers.fill(op, buf);
                driver.consume(self.conn, length);
                return Ok(Some(Step::Filled(header, zeros)));
            }
            PayloadUse::Merge { op, at, keep_from, keep_to } => {
                let [at, from, to] = [at, keep_from, keep_to].map(to_usize);
                if !buffers.merge(op, at, from, to, payload) {
                    return Err(Broken::Memory);
                }
            }
            PayloadUse::Discard => {}
        }
        driver.consume(self.conn, length);
        Ok(Some(Step::Reply(header, 0..0)))
    }

    /// The buffer of [`Rx::Direct`] is full. `None`: nobody asked for it.
    pub(super) fn received_into(
        &mut self,
        buf: Buf,
        core: &Engine,
        buffers: &mut Buffers,
    ) -> Result<Option<(Header, ZeroBlocks)>, Broken> {
        let Rx::Direct(header, op) = self.rx else { return Ok(None) };
        self.rx = Rx::Header;
        header.verify(buf.as_slice())?;
        // What it was asked for may have been given up meanwhile; then the buffer is another's by now.
        let usage = core.payload_use(&header);
        let look = usage == PayloadUse::FillAndLook(op);
        let zeros = if look { ZeroBlocks::of(buf.as_slice()) } else { ZeroBlocks::NONE };
        if look || usage == PayloadUse::Fill(op) {
            buffers.fill(op, buf);
        }
        Ok(Some((header, zeros)))
    }

    /// Queues a frame. False: there is no payload where there must be one, so the connection is of no use.
    pub(super) fn send(
        &self,
        header: Header,
        body: &Body,
        driver: &mut Driver,
        buffers: &mut Buffers,
    ) -> bool {
        match body {
            Body::None => driver.send(self.conn, &header.encode(), None),
            Body::Buffer { op, from, len } => {
                let (from, len) = (to_usize(*from), to_usize(*len));
                let Some((buf, payload_crc)) = buffers.sending(*op, from, len) else { return false };
                let length = u32::try_from(len).unwrap_or(u32::MAX);
                let header = Header { length, payload_crc, ..header };
                driver.send(self.conn, &header.encode(), Some((buf, from..from + len)));
            }
            Body::View(update) => self.send_small(header, &update.encode(self.terms.has_tags()), driver),
            Body::Bytes(payload) => self.send_small(header, payload, driver),
        }
        true
    }

    fn send_small(&self, header: Header, payload: &[u8], driver: &mut Driver) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { length, payload_crc: crc32fast::hash(payload), ..header };
        driver.send(self.conn, &[header.encode().as_slice(), payload].concat(), None);
    }
}

/// The connections there are; a handful.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

impl Links {
    pub(super) fn add(&mut self, link: Link) {
        self.0.push(link);
    }
    pub(super) fn by_conn(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.0.iter_mut().find(|link| link.conn == conn)
    }
    pub(super) fn by_session(&self, replica: ReplicaId, session: u64) -> Option<&Link> {
        self.0.iter().find(|link| link.session == session && link.replica == replica)
    }
    /// Forgets a connection and closes it.
    pub(super) fn close(&mut self, conn: ConnId, driver: &mut Driver) {
        if let Some(at) = self.0.iter().position(|link| link.conn == conn) {
            self.0.swap_remove(at);
            driver.close(conn);
        }
    }
    pub(super) fn close_all(&mut self, driver: &mut Driver) {
        for link in self.0.drain(..) {
            driver.close(link.conn);
        }
    }
}

/// Tells the core of a reply. The payload handed over inline is consumed.
pub(super) fn deliver(
    core: &mut Engine,
    driver: &mut Driver,
    (replica, session, conn): (ReplicaId, u64, ConnId),
    header: &Header,
    inline: Range<usize>,
    now: Now,
) {
    let length = inline.len();
    let bytes = driver.received(conn).get(inline).unwrap_or_default();
    core.reply(replica, session, header, bytes, now);
    driver.consume(conn, length);
}
