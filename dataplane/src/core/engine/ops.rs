//! Operations: from the turn on their byte range to the answer.
//!
//! ```text
//! waiting -> (held while nothing is served) -> [edges] -> main ------------------> acknowledged -> ended
//!                                           -> read                                ^ held while a view is on its way
//!                                           -> digest -> source -> spread -> ended   (repair of a region)
//!                                           -> [digest] -> source -> spread -> ended (copy of a region)
//! ```

mod answers;
mod forget;
mod regions;

use std::collections::VecDeque;

use super::tag::{Part, SERIAL_MASK, SLOTS_MAX, Tag};
use super::{Action, Body, Engine, Failure, Mask, Now, OpId, Outcome, Request, bit, slots};
use crate::core::region_map::region_bytes;
use crate::core::rules::{Rule, kept};
use crate::core::zero_blocks::ZeroBlocks;
use crate::units::{BLOCK_BYTES, REGION_BYTES, block_cover, is_block_aligned};
use crate::wire::header::{FLAG_FILL, FLAG_FUA, FLAG_PUNCH, FLAG_SPARSE, Header, Kind, Status};
use crate::wire::map::{MapName, MapPart};
use crate::wire::payload::Extent;

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Work {
    /// A client's.
    Client(Request),
    /// Make the members equal in a region.
    Repair,
    /// Fill a region of the target; `compare`: where it differs from the source.
    Copy { target: usize, compare: bool },
    /// Find out where source and target hold data.
    Scan { mask: Mask },
    /// Read a map of these replicas.
    ReadMap { name: MapName, mask: Mask },
    /// The last flush of a target before it is added.
    FlushTarget { target: usize },
    /// A flush so that write-intent bits can be cleared.
    FlushOwn,
    /// The last flush before a clean end.
    FlushAll,
    /// A client's that failed while a member may still be carrying it out: it keeps its range until no member is, so
    /// that what is asked for next cannot be overtaken by it.
    Abandoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Stage {
    /// For its turn, or for something that goes first.
    Waiting,
    /// Its turn has come, but nothing is served now.
    Held,
    /// The blocks at the edges of an unaligned write are being read.
    Edges,
    /// Every member has been sent it.
    Main,
    /// One member has been asked.
    Read,
    /// Every member has been asked for its checksum.
    Digest,
    /// The source has been asked for the region.
    Source,
    /// The others are being given it.
    Spread,
    /// To be done again once nothing of it is in flight.
    Drain,
    /// Every member has it; the answer waits for a view.
    Acknowledged,
}

/// One operation.
#[derive(Debug, Clone)]
pub(super) struct Op {
    serial: u32,
    attempt: u8,
    live: bool,
    pub(super) work: Work,
    pub(super) stage: Stage,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where it ends, of what is done step by step.
    end: u64,
    /// Dispatch order, for sending again.
    order: u64,
    /// Who still owes an answer.
    pub(super) pending: Mask,
    ok: Mask,
    failed: Mask,
    status: Status,
    /// Who was asked to read.
    source: usize,
    edges: u8,
    /// Of a region that is given to others.
    zeros: ZeroBlocks,
    /// Frames of it that a replica has not answered, where there may be more than one.
    frames: [u8; 8],
    buffered: bool,
    digests: Option<Box<[Option<[u8; 32]>; 8]>>,
    extents: Vec<(usize, Vec<Extent>)>,
    parts: Vec<(usize, MapPart)>,
    /// Of a flush: the writes answered before it was sent.
    covers: u64,
    since: Now,
}

impl Op {
    fn new(serial: u32, work: Work, offset: u64, len: u64, now: Now) -> Self {
        Self {
            serial,
            attempt: 0,
            live: true,
            work,
            stage: Stage::Waiting,
            offset,
            len,
            end: offset + len,
            order: 0,
            pending: 0,
            ok: 0,
            failed: 0,
            status: Status::Ok,
            source: 0,
            edges: 0,
            zeros: ZeroBlocks::NONE,
            frames: [0; 8],
            buffered: false,
            digests: None,
            extents: Vec::new(),
            parts: Vec::new(),
            covers: 0,
            since: now,
        }
    }
    fn unaligned(&self) -> bool {
        !is_block_aligned(self.offset, self.len)
    }
    fn cover(&self) -> (u64, u64) {
        block_cover(self.offset, self.len)
    }
    fn client(&self) -> Option<Request> {
        match self.work {
            Work::Client(request) => Some(request),
            Work::Repair
            | Work::Copy { .. }
            | Work::Scan { .. }
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll
            | Work::Abandoned => None,
        }
    }
    /// Whether a client's answer depends on what one member holds: only under the read lease.
    fn reads_for_client(&self) -> bool {
        match self.client() {
            Some(Request::Read | Request::Extents) => true,
            Some(Request::Write { .. }) => self.unaligned(),
            Some(Request::Flush | Request::Trim | Request::WriteZeroes { .. }) | None => false,
        }
    }
    /// Whether it changes the data of members.
    fn mutates(&self) -> bool {
        matches!(self.client(), Some(Request::Write { .. } | Request::Trim | Request::WriteZeroes { .. }))
    }
}

const EDGE_HEAD: u8 = 1;
const EDGE_TAIL: u8 = 2;

/// The table of operations.
#[derive(Debug, Clone)]
pub(super) struct Ops {
    table: Vec<Op>,
    free: Vec<u32>,
    next_order: u64,
    /// Their turn has come while nothing was served.
    held: VecDeque<u32>,
    /// Done, but for the view that is on its way.
    acknowledged: Vec<u32>,
    pub(super) clients: usize,
    /// Operations of the engine's own that hold a buffer, and those that wait for one.
    buffers: usize,
    buffer_queue: VecDeque<u32>,
}

/// Buffers for repair and copying: enough for [`super::Config::copies_max`] and as many repairs that readers wait for.
const OWN_BUFFERS_MAX: usize = 16;

impl Ops {
    pub(super) fn new() -> Self {
        Self {
            table: Vec::with_capacity(1024),
            free: Vec::with_capacity(1024),
            next_order: 0,
            held: VecDeque::with_capacity(1024),
            acknowledged: Vec::with_capacity(1024),
            clients: 0,
            buffers: 0,
            buffer_queue: VecDeque::new(),
        }
    }
    fn slot(id: u32) -> usize {
        usize::try_from(id).unwrap_or(usize::MAX)
    }
    pub(super) fn get(&self, id: u32) -> &Op {
        &self.table[Self::slot(id)]
    }
    fn get_mut(&mut self, id: u32) -> &mut Op {
        &mut self.table[Self::slot(id)]
    }
    fn find(&self, op: OpId) -> Option<&Op> {
        self.table.get(Self::slot(op.slot)).filter(|found| found.live && found.serial == op.serial)
    }
    fn id(&self, slot: u32) -> OpId {
        OpId { slot, serial: self.get(slot).serial }
    }
    fn live(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().zip(0u32..).filter(|(op, _)| op.live).map(|(_, id)| id)
    }
    /// Whether this replica has answered a write whose client has no answer yet: the answer counts on it.
    pub(super) fn answered_by(&self, slot: usize) -> bool {
        kept(Rule::AnswersCount) && self.any(|op| op.mutates() && op.ok & bit(slot) != 0)
    }
    /// Whether this is the answer to a flush, or to a change that was to be flushed.
    pub(super) fn asked_to_flush(&self, kind: Kind, tag: Option<Tag>) -> bool {
        match (kind, tag) {
            (Kind::Flush, _) => true,
            (Kind::Write | Kind::WriteZeroes, Some(Tag::Op { op, .. })) => {
                self.find(op).and_then(Op::client).is_some_and(Request::is_fua)
            }
            _ => false,
        }
    }
    /// The ranges of operations that may be changing the members' data now.
    pub(super) fn changing(&self) -> Vec<(u64, u64)> {
        self.live()
            .map(|id| self.get(id))
            .filter(|op| op.mutates() || matches!(op.work, Work::Repair | Work::Abandoned))
            .map(Op::cover)
            .collect()
    }
    /// The extents that a scan found, taken out of it: `(offset, len, found)`.
    pub(super) fn take_scan(&mut self, id: u32) -> (u64, u64, Vec<(usize, Vec<Extent>)>) {
        let op = self.get_mut(id);
        (op.offset, op.len, std::mem::take(&mut op.extents))
    }
    /// The parts of maps that were read, taken out of it: `(offset, len, parts)`.
    pub(super) fn take_parts(&mut self, id: u32) -> (u64, u64, Vec<(usize, MapPart)>) {
        let op = self.get_mut(id);
        (op.offset, op.len, std::mem::take(&mut op.parts))
    }
    /// Begins a step, of as many bytes as `size` says of those that are left: its range.
    pub(super) fn begin_step(&mut self, id: u32, size: impl Fn(u64) -> u64, now: Now) -> (u64, u64) {
        let op = self.get_mut(id);
        op.len = size(op.end - op.offset);
        op.since = now;
        (op.offset, op.len)
    }
    /// The bytes of a step, and those left after it.
    pub(super) fn step(&self, id: u32) -> (u64, u64) {
        let op = self.get(id);
        (op.len, op.end - (op.offset + op.len))
    }
    /// A step is done, and there is another to come.
    pub(super) fn step_on(&mut self, id: u32) {
        let op = self.get_mut(id);
        op.attempt = op.attempt.wrapping_add(1);
        op.offset += op.len;
        op.len = op.end - op.offset;
        (op.stage, op.ok, op.failed, op.status) = (Stage::Waiting, 0, 0, Status::Ok);
    }
    pub(super) fn any(&self, wanted: impl Fn(&Op) -> bool) -> bool {
        self.table.iter().any(|op| op.live && wanted(op))
    }
}

#[cfg(test)]
impl Ops {
    /// What the model checker tells states apart by. Serials and attempts are left out (the model says of each frame
    /// whether it is of the present attempt), and of the order of dispatch only the order is kept.
    pub(super) fn fingerprint(&self, writes_done: u64, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let mut orders: Vec<u64> = self.live().map(|id| self.get(id).order).collect();
        orders.sort_unstable();
        for id in self.live() {
            let op = self.get(id);
            let rank = orders.iter().position(|order| *order == op.order);
            (id, op.work, op.stage, op.offset, op.len, op.end, rank).hash(h);
            (op.pending, op.ok, op.failed, op.status, op.source, op.edges, op.zeros, op.buffered).hash(h);
            op.frames.hash(h);
            op.digests.hash(h);
            for (slot, list) in &op.extents {
                slot.hash(h);
                list.iter().for_each(|e| (e.len, e.allocated).hash(h));
            }
            op.parts.iter().for_each(|(slot, part)| (slot, part.base, &part.words).hash(h));
            if matches!(op.work, Work::Client(Request::Flush) | Work::FlushOwn | Work::FlushAll) {
                (writes_done - op.covers.min(writes_done)).hash(h);
            }
        }
        (&self.held, &self.acknowledged, self.clients, self.buffers, &self.buffer_queue).hash(h);
    }

    /// Which place an operation gets next is of no consequence: one order for all histories.
    pub(super) fn normalise(&mut self) {
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// The place of the operation that a frame belongs to, if it is of its present attempt.
    pub(super) fn present(&self, tag: u64) -> Option<(u32, Part)> {
        let Some(Tag::Op { op, attempt, part }) = Tag::decode(tag) else { return None };
        self.find(op).filter(|found| found.attempt == attempt).map(|_| (op.slot, part))
    }
}

impl Engine {
    /// A client's operation. Reads and writes lie within one region; trims and write-zeroes are whole blocks.
    ///
    /// # Errors
    /// When it is out of range or not of that form, or the engine takes no more.
    pub fn submit(&mut self, request: Request, offset: u64, len: u64, now: Now) -> Result<OpId, Failure> {
        let end = offset.checked_add(len).ok_or(Failure::Invalid)?;
        let one_region = len > 0 && offset / REGION_BYTES == (end - 1) / REGION_BYTES;
        let fits = match request {
            Request::Read | Request::Write { .. } => one_region,
            Request::Trim | Request::WriteZeroes { .. } => len > 0 && is_block_aligned(offset, len),
            Request::Extents => len > 0,
            Request::Flush => true,
        };
        if !fits || end > self.config.volume_bytes {
            return Err(Failure::Invalid);
        }
        if !self.takes_requests() {
            return Err(Failure::Unavailable);
        }
        self.ops.clients += 1;
        let op = self.admit(Work::Client(request), offset, len, now);
        self.run_ready(now);
        Ok(op)
    }

    /// Puts an operation into the table and, where its turn comes at once, among the ready.
    pub(super) fn admit(&mut self, work: Work, offset: u64, len: u64, now: Now) -> OpId {
        let id = self.allocate(work, offset, len, now);
        let exclusive = match work {
            Work::Client(Request::Flush)
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll => {
                self.ready.push_back(id);
                return self.ops.id(id);
            }
            Work::Client(Request::Read) if !kept(Rule::ReadWaits) => {
                self.ready.push_back(id);
                return self.ops.id(id);
            }
            Work::Client(Request::Trim | Request::WriteZeroes { .. }) => {
                self.zeroing.waiting.push_back(id);
                self.zero_next(now);
                return self.ops.id(id);
            }
            Work::Client(Request::Read | Request::Extents) | Work::Scan { .. } => false,
            Work::Client(_) | Work::Repair | Work::Copy { .. } | Work::Abandoned => true,
        };
        let (start, len) = block_cover(offset, len);
        if self.lock.acquire(id, start, start + len, exclusive) {
            self.ready.push_back(id);
        }
        self.ops.id(id)
    }

    fn allocate(&mut self, work: Work, offset: u64, len: u64, now: Now) -> u32 {
        let ops = &mut self.ops;
        let id = ops.free.pop().unwrap_or_else(|| {
            assert!(ops.table.len() < SLOTS_MAX, "frontends bound what they submit");
            let id = u32::try_from(ops.table.len()).expect("bounded above");
            ops.table.push(Op::new(0, work, offset, len, now));
            id
        });
        let op = ops.get_mut(id);
        *op = Op::new((op.serial + 1) & SERIAL_MASK, work, offset, len, now);
        self.fill.began(work, len, now);
        id
    }

    /// Runs every operation whose turn has come.
    pub(super) fn run_ready(&mut self, now: Now) {
        while let Some(id) = self.ready.pop_front() {
            self.run(id, now);
        }
    }

    /// Runs what was held, now that something may be served.
    pub(super) fn run_held(&mut self, now: Now) {
        for _ in 0..self.ops.held.len() {
            if let Some(id) = self.ops.held.pop_front() {
                self.ready.push_back(id);
            }
        }
        self.run_ready(now);
    }

    fn run(&mut self, id: u32, now: Now) {
        if self.ops.get(id).work == Work::Abandoned {
            return self.release(id, now);
        }
        if !self.serves() {
            self.ops.get_mut(id).stage = Stage::Held;
            self.ops.held.push_back(id);
            return;
        }
        if self.ops.get(id).reads_for_client() && !self.may_read(now) {
            self.note_lease(now);
            self.ops.get_mut(id).stage = Stage::Held;
            self.ops.held.push_back(id);
            return;
        }
        let op = self.ops.get(id);
        let reads = match op.work {
            Work::Client(Request::Read) | Work::Copy { .. } => true,
            Work::Client(Request::Write { .. }) => op.unaligned(),
            Work::Client(_)
            | Work::Repair
            | Work::Scan { .. }
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll
            | Work::Abandoned => false,
        };
        if reads && self.unrepaired.touches(op.offset, op.len) && kept(Rule::RepairFirst) {
            self.repair_first(id, now);
            return;
        }
        if op.work == Work::Client(Request::Extents) && self.unrepaired.touches(op.offset, op.len) {
            // One member's hole may be another's data until they have been compared.
            let all = vec![Extent { len: op.len, allocated: true }];
            self.ops.get_mut(id).extents.push((0, all));
            self.ops.get_mut(id).stage = Stage::Read;
            return self.acknowledge(id, now);
        }
        match op.work {
            Work::Client(Request::Read | Request::Extents) => self.read(id),
            Work::Client(Request::Write { .. }) if op.unaligned() => self.read_edges(id),
            Work::Client(Request::Flush) | Work::FlushOwn | Work::FlushAll => {
                let covers = self.writes_done;
                self.ops.get_mut(id).covers = covers;
                self.cover_by(self.ops.id(id), now);
                self.spread_out(id, Stage::Main, self.required() | self.targets);
            }
            Work::Client(_) => {
                if !matches!(op.work, Work::Client(Request::Write { .. })) {
                    self.zeroing.sent_at = now;
                }
                self.spread_out(id, Stage::Main, self.required() | self.targets);
            }
            // Those it was meant for may have gone while it waited for its turn.
            Work::FlushTarget { target } if self.targets & bit(target) == 0 => self.end_own(id, now),
            Work::FlushTarget { target } => self.spread_out(id, Stage::Main, bit(target)),
            Work::Scan { mask } if mask & !(self.live & (self.members | self.targets)) != 0 => {
                self.scanned(id, now);
            }
            Work::Scan { mask } => self.spread_out(id, Stage::Main, mask),
            Work::ReadMap { mask, .. } => {
                // Those that are gone for good have been asked in vain.
                self.spread_out(id, Stage::Main, mask & (self.required() | self.targets));
                self.settle(id, now);
            }
            Work::Repair => self.repair(id, now),
            Work::Copy { target, compare: true } => self.compare(id, target),
            Work::Copy { .. } => self.ask_source(id),
            Work::Abandoned => {}
        }
    }

    /// A region that was not compared yet is made equal before anything is read from it.
    fn repair_first(&mut self, id: u32, now: Now) {
        let (offset, len) = region_bytes(self.ops.get(id).offset / REGION_BYTES, self.config.volume_bytes);
        let repair = self.allocate(Work::Repair, offset, len, now);
        self.ops.get_mut(id).stage = Stage::Waiting;
        if self.lock.yield_turn(id, repair, offset, offset + len) {
            self.ready.push_back(repair);
        }
    }

    /// Sends the operation to everybody in `mask` (those not connected now get it when they are back).
    fn spread_out(&mut self, id: u32, stage: Stage, mask: Mask) {
        let order = self.ops.next_order;
        self.ops.next_order += 1;
        let op = self.ops.get_mut(id);
        let (offset, len) = op.cover();
        let changes = match stage {
            Stage::Main => op.mutates(),
            Stage::Spread => op.work == Work::Repair,
            Stage::Waiting
            | Stage::Held
            | Stage::Edges
            | Stage::Read
            | Stage::Digest
            | Stage::Source
            | Stage::Drain
            | Stage::Acknowledged => false,
        };
        if changes {
            self.wrote(offset, len);
            self.written_by(mask, offset, len);
        }
        let op = self.ops.get_mut(id);
        op.stage = stage;
        op.order = order;
        op.pending = mask;
        op.frames = [0; 8];
        op.ok = 0;
        op.failed = 0;
        op.status = Status::Ok;
        for slot in slots(mask & self.live) {
            self.send_op(id, slot);
        }
    }

    fn read(&mut self, id: u32) {
        match self.reader() {
            Some(slot) => {
                self.ops.get_mut(id).source = slot;
                self.spread_out(id, Stage::Read, bit(slot));
            }
            // Nobody is there to ask: as when nothing is served.
            None => {
                self.ops.get_mut(id).stage = Stage::Held;
                self.ops.held.push_back(id);
            }
        }
    }

    fn read_edges(&mut self, id: u32) {
        let Some(slot) = self.reader() else {
            self.ops.get_mut(id).stage = Stage::Held;
            self.ops.held.push_back(id);
            return;
        };
        let op = self.ops.get_mut(id);
        op.source = slot;
        let head = !op.offset.is_multiple_of(BLOCK_BYTES);
        let end = op.offset + op.len;
        let same_block = op.offset / BLOCK_BYTES == (end - 1) / BLOCK_BYTES;
        let whole_tail = end.is_multiple_of(BLOCK_BYTES) || (head && same_block);
        let tail = !whole_tail;
        op.edges = if head { EDGE_HEAD } else { 0 } | if tail { EDGE_TAIL } else { 0 };
        self.spread_out(id, Stage::Edges, bit(slot));
    }

    /// The member to read from: a local one before others, then the one that owes least.
    pub(super) fn reader(&self) -> Option<usize> {
        let candidates = self.members & self.required() & self.live;
        slots(candidates).min_by_key(|slot| {
            let peer = &self.peers[*slot];
            (!peer.local, peer.owes)
        })
    }

    /// Sends (or sends again) what `slot` owes this operation in its present stage.
    fn send_op(&mut self, id: u32, slot: usize) {
        let op = self.ops.get(id);
        let (op_id, attempt) = (self.ops.id(id), op.attempt);
        let (start, cover) = op.cover();
        let main = |kind: Kind| {
            let tag = Tag::Op { op: op_id, attempt, part: Part::Main }.encode();
            Header { offset: op.offset, extent: op.len, ..Header::request(kind, tag, 0) }
        };
        let buffer = Body::Buffer { op: op_id, from: 0, len: cover };
        let fua = |fua: bool| if fua { FLAG_FUA } else { 0 };
        let (header, body) = match (op.stage, op.work) {
            (Stage::Edges, _) => return self.send_edges(id, slot),
            (Stage::Spread, _) => return self.send_region(id, slot),
            (Stage::Read, Work::Client(Request::Extents)) => (main(Kind::Extents), Body::None),
            (Stage::Read, _) => (Header { offset: start, extent: cover, ..main(Kind::Read) }, Body::None),
            (Stage::Digest, _) => (main(Kind::Digest), Body::None),
            (Stage::Source, _) => (Header { flags: FLAG_SPARSE, ..main(Kind::Read) }, Body::None),
            (Stage::Main, Work::Client(Request::Write { fua: f })) => {
                (Header { offset: start, extent: cover, flags: fua(f), ..main(Kind::Write) }, buffer)
            }
            (Stage::Main, Work::Client(Request::Trim)) => (main(Kind::Trim), Body::None),
            (Stage::Main, Work::Client(Request::WriteZeroes { may_punch, fua: f })) => {
                let punch = if may_punch { FLAG_PUNCH } else { 0 };
                (Header { flags: fua(f) | punch, ..main(Kind::WriteZeroes) }, Body::None)
            }
            (
                Stage::Main,
                Work::Client(Request::Flush) | Work::FlushOwn | Work::FlushAll | Work::FlushTarget { .. },
            ) => (main(Kind::Flush), Body::None),
            (Stage::Main, Work::ReadMap { name, .. }) => {
                (main(Kind::ReadMap), Body::Bytes(name.encode(self.know_stamps(bit(slot)))))
            }
            (Stage::Main, Work::Scan { .. }) => (main(Kind::Extents), Body::None),
            (
                Stage::Main,
                Work::Client(Request::Read | Request::Extents)
                | Work::Repair
                | Work::Copy { .. }
                | Work::Abandoned,
            )
            | (Stage::Waiting | Stage::Held | Stage::Drain | Stage::Acknowledged, _) => return,
        };
        self.send(slot, header, body);
    }

    fn send_edges(&mut self, id: u32, slot: usize) {
        let op = self.ops.get(id);
        let (op_id, attempt, edges) = (self.ops.id(id), op.attempt, op.edges);
        let (start, cover) = op.cover();
        for (edge, part, offset) in
            [(EDGE_HEAD, Part::Head, start), (EDGE_TAIL, Part::Tail, start + cover - BLOCK_BYTES)]
        {
            if edges & edge != 0 {
                let tag = Tag::Op { op: op_id, attempt, part }.encode();
                let header = Header { offset, extent: BLOCK_BYTES, ..Header::request(Kind::Read, tag, 0) };
                self.send(slot, header, Body::None);
            }
        }
    }

    /// Gives a replica what was read of a region. What is zeros is made a hole, whatever the replica has there.
    fn send_region(&mut self, id: u32, slot: usize) {
        let op = self.ops.get(id);
        let tag = Tag::Op { op: self.ops.id(id), attempt: op.attempt, part: Part::Main }.encode();
        let flags = if matches!(op.work, Work::Copy { .. }) { FLAG_FILL } else { 0 };
        let (op_id, offset, len, zeros) = (self.ops.id(id), op.offset, op.len, op.zeros);
        let mut frames = 0;
        for run in zeros.runs(len) {
            let (kind, body) = match run.zeros {
                true => (Kind::Trim, Body::None),
                false => (Kind::Write, Body::Buffer { op: op_id, from: run.from, len: run.len }),
            };
            let (offset, extent) = (offset + run.from, run.len);
            self.send(slot, Header { offset, extent, flags, ..Header::request(kind, tag, 0) }, body);
            frames += 1;
        }
        self.ops.get_mut(id).frames[slot] = frames;
    }

    /// Sends again, in their order, all that `slot` still owes.
    pub(super) fn send_again(&mut self, slot: usize) {
        let mut owed: Vec<_> = self
            .ops
            .live()
            .filter(|id| {
                let op = self.ops.get(*id);
                op.pending & bit(slot) != 0 && op.stage != Stage::Drain
            })
            .collect();
        owed.sort_by_key(|id| self.ops.get(*id).order);
        for id in owed {
            self.send_op(id, slot);
        }
    }

    fn finish_client(&mut self, id: u32, outcome: Outcome, now: Now) {
        self.ops.clients -= 1;
        if self.fill.is_busy(now) {
            self.fill.budget.foreground(now.saturating_sub(self.ops.get(id).since), now);
        }
        let op = self.ops.id(id);
        self.actions.push_back(Action::Complete { op, outcome });
    }

    pub(super) fn end_own(&mut self, id: u32, now: Now) {
        if std::mem::take(&mut self.ops.get_mut(id).buffered) {
            let op = self.ops.id(id);
            self.actions.push_back(Action::Release { op });
            self.ops.buffers -= 1;
            if let Some(next) = self.ops.buffer_queue.pop_front() {
                self.ask_source(next);
            }
        }
        let work = self.ops.get(id).work;
        self.release(id, now);
        self.fill_op_ended(work, now);
    }

    fn release(&mut self, id: u32, now: Now) {
        let op = self.ops.get_mut(id);
        op.live = false;
        op.digests = None;
        op.extents = Vec::new();
        op.parts = Vec::new();
        let ended = self.ops.id(id);
        // Where it was answered this was said before; one that failed covers nothing.
        self.intent.flush_ended(ended, false);
        self.ops.free.push(id);
        self.lock.release(id, &mut self.ready);
        self.zeroing_ended(id, now);
    }

    /// Fails every client's operation: the engine is fenced, or I/O was suspended for too long. A change that a member
    /// may be carrying out this very moment keeps its range until it is not; so does one whose turn has not come, since
    /// others count on its place in the queue.
    pub(super) fn fail_clients(&mut self, now: Now) {
        let clients: Vec<_> = self.ops.live().filter(|id| self.ops.get(*id).client().is_some()).collect();
        let unbegun = std::mem::take(&mut self.zeroing.waiting);
        self.ops.held.retain(|id| !clients.contains(id));
        self.ops.acknowledged.retain(|id| !clients.contains(id));
        for id in clients {
            let op = self.ops.get(id);
            let (mutates, stage, in_flight) = (op.mutates(), op.stage, op.pending & self.live);
            // Also where all that are asked have it, and only the view is missing: whoever that leaves out has it not.
            if mutates && matches!(stage, Stage::Main | Stage::Acknowledged) {
                let (offset, len) = op.cover();
                self.differ(offset, len);
            }
            self.finish_client(id, Outcome::Failed(Failure::Unavailable), now);
            let op = self.ops.get_mut(id);
            op.work = Work::Abandoned;
            match stage {
                Stage::Waiting if unbegun.contains(&id) => self.release(id, now),
                Stage::Waiting => {}
                Stage::Main if mutates && in_flight != 0 => {
                    op.stage = Stage::Drain;
                    op.pending = in_flight;
                }
                _ => self.release(id, now),
            }
        }
        self.run_ready(now);
    }

    /// When the client's operation that waits longest came.
    pub(super) fn oldest_client(&self) -> Option<Now> {
        self.ops.live().map(|id| self.ops.get(id)).filter(|op| op.client().is_some()).map(|op| op.since).min()
    }
}

/// Regions per scan: one frame answers for this much.
pub(super) fn scan_window(from: u64, size: u64) -> u64 {
    const WINDOW_BYTES: u64 = 1024 * 1024 * 1024;
    WINDOW_BYTES.min(size.saturating_sub(from))
}
