//! Frames into file operations, and their ends into replies: what `replica::request`, `serve` and `complete` do.

use holdfast_dataplane::units::{BLOCK_BYTES, PART_BYTES_MAX, is_block_aligned, to_u64, to_usize};
use holdfast_dataplane::wire::header::{FLAG_FUA, FLAG_HOLE, FLAG_PUNCH, FLAG_SPARSE};
use holdfast_dataplane::wire::payload::{Extent, ViewUpdate, encode_extents};
use holdfast_dataplane::wire::{Header, Kind, Status};

use super::disk::PER_BLOCK;
use super::net::{Message, Payload, units_crc};
use super::queue::MS;
use super::replica::{FileOp, ToControl, Waiter, What};
use super::world::{Event, World};

pub(super) fn range_len(header: &Header) -> u64 {
    if header.kind == Kind::Write { u64::from(header.length) } else { header.extent }
}

fn fits(header: &Header, size: u64) -> bool {
    let len = range_len(header);
    let inside = len > 0 && header.offset.checked_add(len).is_some_and(|end| end <= size);
    inside && is_block_aligned(header.offset, len)
}

fn blocks(header: &Header) -> (usize, usize) {
    (to_usize(header.offset / BLOCK_BYTES), to_usize(range_len(header) / BLOCK_BYTES))
}

impl World {
    /// A frame, or the end of the connection, at the data thread.
    pub(super) fn at_data_thread(&mut self, slot: usize, conn: usize, message: Message) {
        let link = self.replicas[slot].open.as_ref().and_then(|open| open.link.as_ref());
        if link.is_none_or(|link| link.ended || link.conn != conn) {
            return;
        }
        match message {
            Message::Frame(bytes, payload) => match Header::decode(&bytes) {
                Ok(Some(header)) => self.frame(slot, conn, &header, payload),
                Ok(None) => self.fail("a whole header was taken for a part".to_owned()),
                Err(_) => self.end_session(slot),
            },
            Message::Cut(bytes, len) => {
                if Header::decode(&bytes[..len]) != Ok(None) {
                    self.fail("a part of a header was taken for one".to_owned());
                }
            }
            Message::Close
            | Message::NobodyThere
            | Message::Hello(_)
            | Message::Welcome(..)
            | Message::Refused(_) => self.end_session(slot),
        }
    }

    fn frame(&mut self, slot: usize, conn: usize, header: &Header, payload: Payload) {
        let intact = match &payload {
            Payload::None => header.verify(&[]).is_ok(),
            Payload::Units(units, crc) => units_crc(units) == *crc,
            Payload::Bytes(bytes) => header.verify(bytes).is_ok(),
        };
        if header.reply || !intact {
            return self.end_session(slot);
        }
        let open = self.replicas[slot].open.as_mut();
        let Some(link) = open.and_then(|open| open.link.as_mut()) else { return };
        if header.sequence != link.sequence + 1 {
            let what = format!("sequence {} after {}", header.sequence, link.sequence);
            return self.fail(what);
        }
        link.sequence = header.sequence;
        let generation = Some(link.session.generation.0);
        if generation != Some(header.generation) {
            self.reply(slot, conn, header, Status::Fenced);
            return self.end_session(slot);
        }
        let fua = header.flags & FLAG_FUA != 0;
        match (header.kind, payload) {
            (Kind::Flush, _) => self.flush_wanted(slot, conn, header),
            (Kind::Ping, _) => self.reply(slot, conn, header, Status::Ok),
            (Kind::PersistView, Payload::Bytes(bytes)) => match ViewUpdate::decode(&bytes, true) {
                Ok(update) => {
                    self.tell_control(
                        slot,
                        ToControl::View { conn, header: *header, update: Box::new(update) },
                    );
                }
                Err(_) => self.end_session(slot),
            },
            (Kind::ReadMap | Kind::EditMap, Payload::Bytes(bytes)) => {
                if !self.map_frame(slot, conn, header, &bytes) {
                    self.end_session(slot);
                }
            }
            (Kind::Write, Payload::Units(units, _)) if fits(header, self.size) => {
                self.change(slot, conn, header, What::Write { units, fua });
            }
            (Kind::Trim, _) if fits(header, self.size) => {
                self.change(slot, conn, header, What::Zero { punch: true, fua });
            }
            (Kind::WriteZeroes, _) if fits(header, self.size) => {
                let punch = header.flags & FLAG_PUNCH != 0;
                self.change(slot, conn, header, What::Zero { punch, fua });
            }
            (Kind::Read, _) if fits(header, self.size) && header.extent <= PART_BYTES_MAX => {
                self.begin(slot, conn, header, What::Read);
            }
            (Kind::Digest, _) if fits(header, self.size) => self.begin(slot, conn, header, What::Digest),
            (Kind::Extents, _) if fits(header, self.size) => self.extents(slot, conn, header),
            (_, _) => self.reply(slot, conn, header, Status::Invalid),
        }
    }

    fn flush_wanted(&mut self, slot: usize, conn: usize, header: &Header) {
        let Some(open) = &mut self.replicas[slot].open else { return };
        if open.gate.request(Waiter { conn, header: *header }).is_err() {
            self.reply(slot, conn, header, Status::Failed);
        }
    }

    /// A file operation: at once where the page cache takes or has it, else in its own time.
    pub(super) fn begin(&mut self, slot: usize, conn: usize, header: &Header, what: What) {
        let host = &mut self.replicas[slot];
        let inline = match &what {
            What::Write { .. } => !host.direct,
            What::Zero { .. } => false,
            What::Read | What::Digest => !host.direct && !self.random.one_in(8),
        };
        let op = FileOp { conn, header: *header, what };
        if inline {
            return self.ended(slot, op);
        }
        let Some(open) = &mut host.open else { return };
        let token = match open.ops.iter().position(Option::is_none) {
            Some(at) => {
                open.ops[at] = Some(op);
                at
            }
            None => {
                open.ops.push(Some(op));
                open.ops.len() - 1
            }
        };
        let run = host.run;
        let takes = 10 + self.random.below(2 * MS);
        let at = (self.queue.now() + takes).max(self.replicas[slot].stalled_until);
        self.queue.at(at, Event::FileOp { replica: slot, run, token });
    }

    pub(super) fn file_op_ended(&mut self, slot: usize, token: usize) {
        let Some(open) = &mut self.replicas[slot].open else { return };
        if let Some(op) = open.ops.get_mut(token).and_then(Option::take) {
            self.ended(slot, op);
            self.settle_replica(slot);
        }
    }

    /// Changes the image; `all`: not only its first half.
    pub(super) fn apply(&mut self, slot: usize, header: &Header, what: &What, all: bool) {
        let (first, count) = blocks(header);
        let count = if all { count } else { count / 2 };
        let image = &mut self.replicas[slot].image;
        match what {
            What::Write { units, .. } => image.write(first, &units[..count * PER_BLOCK]),
            What::Zero { punch, .. } => image.zero(first, count, *punch),
            What::Read | What::Digest => {}
        }
    }

    fn ended(&mut self, slot: usize, op: FileOp) {
        let bad_one_in = self.replicas[slot].bad_one_in;
        let bad = self.random.one_in(bad_one_in);
        let FileOp { conn, header, what } = op;
        if bad {
            // What the range holds is not known.
            if self.random.coin() {
                let all = self.random.coin();
                self.apply(slot, &header, &what, all);
            }
        } else {
            self.apply(slot, &header, &what, true);
        }
        match what {
            What::Write { fua, .. } | What::Zero { fua, .. } => {
                if let Some(open) = &mut self.replicas[slot].open {
                    open.gate.applied();
                }
                match (bad, fua) {
                    (true, _) => {
                        let status = if self.random.coin() { Status::Io } else { Status::NoSpace };
                        self.reply(slot, conn, &header, status);
                    }
                    (false, true) => self.flush_wanted(slot, conn, &header),
                    (false, false) => self.reply(slot, conn, &header, Status::Ok),
                }
            }
            What::Read | What::Digest if bad => self.reply(slot, conn, &header, Status::Io),
            What::Read => self.reply_read(slot, conn, &header),
            What::Digest => self.reply_digest(slot, conn, &header),
        }
    }

    fn all_hole(&self, slot: usize, header: &Header) -> bool {
        let (first, count) = blocks(header);
        let image = &self.replicas[slot].image;
        (first..first + count).all(|block| !image.allocated(block))
    }

    fn reply_read(&mut self, slot: usize, conn: usize, header: &Header) {
        let (first, count) = blocks(header);
        if header.flags & FLAG_SPARSE != 0 && self.all_hole(slot, header) {
            let hole = Header { flags: FLAG_HOLE, ..header.answer(Status::Ok) };
            return self.answer(slot, conn, hole, Payload::None);
        }
        let units: Vec<_> = self.replicas[slot].image.read(first, count).collect();
        let crc = units_crc(&units);
        let length = u32::try_from(header.extent).unwrap_or(u32::MAX);
        let head = Header { length, payload_crc: crc, ..header.answer(Status::Ok) };
        self.answer(slot, conn, head, Payload::Units(units, crc));
    }

    fn reply_digest(&mut self, slot: usize, conn: usize, header: &Header) {
        if self.all_hole(slot, header) {
            let hole = Header { flags: FLAG_HOLE, ..header.answer(Status::Ok) };
            return self.answer(slot, conn, hole, Payload::None);
        }
        let (first, count) = blocks(header);
        let mut sum = 0x6a09_e667_f3bc_c908_u64;
        for unit in self.replicas[slot].image.read(first, count) {
            sum = (sum ^ unit).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        // Never all zeros: that is how a hole is told.
        self.reply_small(slot, conn, header, (sum | 1).to_le_bytes().repeat(4));
    }

    fn extents(&mut self, slot: usize, conn: usize, header: &Header) {
        let (first, count) = blocks(header);
        // A short list now and then: the engine asks for the rest.
        let runs_max = if self.random.one_in(4) { 2 } else { 256 };
        let mut runs: Vec<Extent> = Vec::new();
        for block in first..first + count {
            let allocated = self.replicas[slot].image.allocated(block);
            let full = runs.len() == runs_max;
            match runs.last_mut() {
                Some(last) if last.allocated == allocated => last.len += BLOCK_BYTES,
                Some(_) | None if full => break,
                Some(_) | None => runs.push(Extent { len: BLOCK_BYTES, allocated }),
            }
        }
        self.reply_small(slot, conn, header, encode_extents(&runs));
    }

    pub(super) fn reply_small(&mut self, slot: usize, conn: usize, header: &Header, bytes: Vec<u8>) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let payload_crc = crc32fast::hash(&bytes);
        let head = Header { length, payload_crc, ..header.answer(Status::Ok) };
        self.answer(slot, conn, head, Payload::Bytes(bytes));
    }

    pub(super) fn reply(&mut self, slot: usize, conn: usize, header: &Header, status: Status) {
        self.answer(slot, conn, header.answer(status), Payload::None);
    }

    fn answer(&mut self, _slot: usize, conn: usize, header: Header, payload: Payload) {
        if self.conns[conn].replica_open {
            self.send_to_engine(conn, Message::Frame(header.encode(), payload));
        }
    }

    /// The fsync in flight has ended.
    pub(super) fn synced(&mut self, slot: usize) {
        let bad_one_in = self.replicas[slot].bad_one_in;
        let failed = self.random.one_in(bad_one_in / 4);
        let host = &mut self.replicas[slot];
        let ok = !failed && !host.image.take_error();
        host.image.sync_ends(ok, &mut self.random);
        let Some(open) = &mut host.open else { return };
        let mut answers = Vec::new();
        let flush_sequence = &mut open.flush_sequence;
        open.gate.completed(ok, |waiter, ok| {
            if ok && waiter.header.kind == Kind::Flush {
                *flush_sequence = waiter.header.sequence;
            }
            answers.push((waiter, if ok { Status::Ok } else { Status::Failed }));
        });
        for (waiter, status) in answers {
            self.reply(slot, waiter.conn, &waiter.header, status);
        }
        if !ok {
            trace!(self, "r{} fsync failed", slot + 1);
            self.tell_control(slot, ToControl::SyncFailed);
        }
        self.settle_replica(slot);
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> usize {
        to_usize(self.size / BLOCK_BYTES)
    }

    /// Bytes to units.
    pub(super) fn unit_of(offset: u64) -> usize {
        to_usize(offset * to_u64(PER_BLOCK) / BLOCK_BYTES)
    }
}
