//! What comes of a reply: whose answer is still owed, and when a client has its own.

use super::{EDGE_HEAD, EDGE_TAIL, Op, Stage, Work};
use crate::core::engine::tag::{OpId, Part, Tag};
use crate::core::engine::{Engine, Failure, Mask, Now, Outcome, PayloadUse, Request, bit, slots};
use crate::core::rules::{Rule, kept};
use crate::core::zero_blocks::ZeroBlocks;
use crate::units::BLOCK_BYTES;
use crate::wire::header::{FLAG_HOLE, Header, Status};
use crate::wire::payload::decode_extents;

impl Engine {
    /// What to do with the payload of a reply, before [`Engine::reply`].
    #[must_use]
    pub fn payload_use(&self, header: &Header) -> PayloadUse {
        let Some(Tag::Op { op: op_id, attempt, part }) = Tag::decode(header.tag) else {
            return PayloadUse::Discard;
        };
        let Some(op) = self.ops.find(op_id).filter(|op| op.attempt == attempt) else {
            return PayloadUse::Discard;
        };
        let (start, cover) = op.cover();
        match (part, op.stage) {
            (Part::Head | Part::Tail, Stage::Edges) if u64::from(header.length) == BLOCK_BYTES => {
                let at = if part == Part::Head { 0 } else { cover - BLOCK_BYTES };
                PayloadUse::Merge {
                    op: op_id,
                    at,
                    keep_from: op.offset - start,
                    keep_to: op.offset + op.len - start,
                }
            }
            (Part::Main, Stage::Read) if op.work == Work::Client(Request::Extents) => PayloadUse::Inline,
            (Part::Main, Stage::Read) if u64::from(header.length) == cover => PayloadUse::Fill(op_id),
            (Part::Main, Stage::Source) if u64::from(header.length) == cover => {
                PayloadUse::FillAndLook(op_id)
            }
            (Part::Main, Stage::Digest) if header.length == 32 => PayloadUse::Inline,
            (Part::Main, Stage::Main) if matches!(op.work, Work::Scan { .. } | Work::ReadMap { .. }) => {
                PayloadUse::Inline
            }
            (Part::Main | Part::Head | Part::Tail, _) => PayloadUse::Discard,
        }
    }

    /// The reply to an operation's frame. `inline` is the payload where [`PayloadUse::Inline`] was said.
    pub(in crate::core::engine) fn op_reply(
        &mut self,
        slot: usize,
        (op_id, attempt, part): (OpId, u8, Part),
        header: &Header,
        inline: &[u8],
        now: Now,
    ) {
        let Some(op) = self.ops.find(op_id).filter(|op| op.attempt == attempt) else { return };
        if op.pending & bit(slot) == 0 {
            return;
        }
        let id = op_id.slot;
        match op.stage {
            Stage::Edges => self.edge_read(id, slot, part, header, now),
            Stage::Read | Stage::Source => self.has_read(id, slot, header, inline, now),
            Stage::Main | Stage::Spread | Stage::Digest => self.has_answered(id, slot, header, inline, now),
            Stage::Drain => {
                let op = self.ops.get_mut(id);
                op.frames[slot] = op.frames[slot].saturating_sub(1);
                if op.frames[slot] == 0 {
                    op.pending &= !bit(slot);
                }
                if op.pending == 0 {
                    self.begin_again(id, now);
                }
            }
            Stage::Waiting | Stage::Held | Stage::Acknowledged => {}
        }
        self.run_ready(now);
    }

    pub(super) fn edge_read(&mut self, id: u32, slot: usize, part: Part, header: &Header, now: Now) {
        if header.status != Status::Ok || u64::from(header.length) != BLOCK_BYTES {
            return self.read_failed(id, slot, header.status, now);
        }
        let op = self.ops.get_mut(id);
        op.edges &= match part {
            Part::Head => !EDGE_HEAD,
            Part::Tail => !EDGE_TAIL,
            Part::Main => return,
        };
        if op.edges == 0 {
            // The whole blocks are in the buffer now; from here it is an aligned write.
            op.attempt = op.attempt.wrapping_add(1);
            self.spread_out(id, Stage::Main, self.required() | self.targets);
        }
    }

    pub(super) fn has_read(&mut self, id: u32, slot: usize, header: &Header, inline: &[u8], now: Now) {
        let op = self.ops.get(id);
        let (stage, work, cover) = (op.stage, op.work, op.cover().1);
        let hole = header.flags & FLAG_HOLE != 0 && header.length == 0;
        let extents = work == Work::Client(Request::Extents);
        let whole = extents || u64::from(header.length) == cover || (stage == Stage::Source && hole);
        if header.status != Status::Ok || !whole {
            return self.read_failed(id, slot, header.status, now);
        }
        self.ops.get_mut(id).pending = 0;
        if stage == Stage::Source {
            let zeros = if hole { ZeroBlocks::ALL } else { ZeroBlocks::decode(inline) };
            self.ops.get_mut(id).zeros = zeros;
            return self.give_to_others(id, now);
        }
        if extents {
            match decode_extents(inline) {
                Ok(list) if !list.is_empty() => self.ops.get_mut(id).extents.push((slot, list)),
                Ok(_) | Err(_) => return self.read_failed(id, slot, Status::Io, now),
            }
        }
        self.reads_done += 1;
        self.acknowledge(id, now);
    }

    /// One member cannot read: another is asked; where there is none, the client is told.
    pub(super) fn read_failed(&mut self, id: u32, slot: usize, status: Status, now: Now) {
        let op = self.ops.get_mut(id);
        op.pending = 0;
        op.attempt = op.attempt.wrapping_add(1);
        let others = self.members & self.required() & self.live & !bit(slot);
        if others != 0 {
            self.ops.get_mut(id).stage = Stage::Waiting;
            self.member_failed(slot, format!("a read failed: {status:?}"), now);
            self.ready.push_back(id);
            return;
        }
        let work = self.ops.get(id).work;
        match work {
            Work::Client(_) => {
                self.ops.get_mut(id).status = status;
                self.ops.get_mut(id).failed = bit(slot);
                self.finish_client(id, Outcome::Failed(failure(status)), now);
                self.release(id, now);
            }
            Work::Copy { target, .. } => {
                self.give_up_target(target, format!("the source cannot be read: {status:?}"), now);
                self.end_own(id, now);
            }
            // The only member cannot be compared with anything.
            Work::Repair
            | Work::Scan { .. }
            | Work::ReadMap { .. }
            | Work::FlushTarget { .. }
            | Work::FlushOwn
            | Work::FlushAll
            | Work::Abandoned => self.end_own(id, now),
        }
    }

    pub(super) fn has_answered(&mut self, id: u32, slot: usize, header: &Header, inline: &[u8], now: Now) {
        let op = self.ops.get_mut(id);
        let mut status = header.status;
        if op.stage == Stage::Spread {
            let Some(all) = op.frame_answered(slot, status) else { return };
            status = all;
        }
        op.pending &= !bit(slot);
        if status == Status::Ok && op.stage == Stage::Digest {
            status = keep_digest(op, slot, header, inline);
        }
        if status == Status::Ok && matches!(op.work, Work::Scan { .. }) {
            match decode_extents(inline) {
                Ok(list) if !list.is_empty() => op.extents.push((slot, list)),
                Ok(_) | Err(_) => status = Status::Io,
            }
        }
        if status == Status::Ok
            && matches!(op.work, Work::ReadMap { .. })
            && !Self::keep_part(&mut op.parts, slot, header.extent, inline)
        {
            status = Status::Io;
        }
        if status == Status::Ok {
            op.ok |= bit(slot);
        } else {
            op.failed |= bit(slot);
            op.status = status;
        }
        self.settle(id, now);
    }

    /// Decides about an operation that went to several: called whenever an answer came or is no longer needed.
    pub(in crate::core::engine) fn settle(&mut self, id: u32, now: Now) {
        let op = self.ops.get(id);
        if op.pending != 0 && (kept(Rule::AckByAll) || op.ok == 0 || op.stage != Stage::Main || !op.mutates())
        {
            return;
        }
        match (op.stage, op.work) {
            (Stage::Digest, _) => self.compared(id, now),
            (Stage::Spread, Work::Repair) => self.repaired(id, now),
            (Stage::Spread, _) => self.copied(id, now),
            (Stage::Main, Work::Scan { .. }) => self.scanned(id, now),
            (Stage::Main, Work::ReadMap { .. }) => self.map_read(id, now),
            (Stage::Main, Work::FlushTarget { target }) => {
                let flushed = op.failed == 0 && op.ok & bit(target) != 0;
                self.end_own(id, now);
                self.target_flushed(target, flushed, now);
            }
            (Stage::Main, Work::Client(_) | Work::FlushOwn | Work::FlushAll) => self.settle_main(id, now),
            (Stage::Main, Work::Repair | Work::Copy { .. } | Work::Abandoned)
            | (
                Stage::Waiting
                | Stage::Held
                | Stage::Edges
                | Stage::Read
                | Stage::Source
                | Stage::Drain
                | Stage::Acknowledged,
                _,
            ) => {}
        }
    }

    /// All have answered. Some failed: they leave before the answer. All failed: nobody leaves, the client is told, and
    /// the range is made equal before it is read from a second member.
    pub(super) fn settle_main(&mut self, id: u32, now: Now) {
        for slot in slots(self.ops.get(id).failed & self.targets & !self.required()) {
            let status = self.ops.get(id).status;
            self.ops.get_mut(id).failed &= !bit(slot);
            self.target_refused(slot, "a write or flush failed", status, now);
        }
        let required = self.required();
        let lost = slots(required).filter(|slot| self.peers[*slot].lost);
        let lost = lost.fold(0, |mask, slot| mask | bit(slot));
        // What was acknowledged from a cache that is gone is nobody's word any more.
        self.ops.get_mut(id).ok &= !lost;
        let op = self.ops.get(id);
        let (failed, ok, status) = (op.failed & required, op.ok & required, op.status);
        if failed != 0 && ok != 0 && ok & !self.unsure_target() == 0 {
            // Only one has it that may yet refuse to be a member: who leaves is known once its view counts, or another.
            // (Where the client's time is over before that, nobody leaves for it.)
            if self.ops.get(id).mutates() {
                let (offset, len) = self.ops.get(id).cover();
                self.differ(offset, len);
            }
            return self.acknowledge(id, now);
        }
        if failed != 0 && ok != 0 {
            // Their answer is owed again, until a view without them is committed.
            self.ops.get_mut(id).pending = failed;
            self.ops.get_mut(id).failed &= !failed;
            for slot in slots(failed) {
                self.member_failed(slot, format!("a write or flush failed: {status:?}"), now);
            }
            // Where a proposal without them began at once, they are no longer required.
            let required = self.required();
            self.ops.get_mut(id).pending &= required;
            if self.ops.get(id).pending != 0 {
                return;
            }
        }
        if failed != 0 && ok == 0 && self.ops.get(id).mutates() {
            let (offset, len) = self.ops.get(id).cover();
            self.differ(offset, len);
        }
        self.acknowledge(id, now);
    }

    /// The answer, unless a view is on its way: then it waits for that.
    pub(in crate::core::engine) fn acknowledge(&mut self, id: u32, now: Now) {
        if self.proposal.is_some() && self.ops.get(id).stage != Stage::Read && kept(Rule::AckCommitted) {
            self.ops.get_mut(id).stage = Stage::Acknowledged;
            self.ops.acknowledged.push(id);
            return;
        }
        let op = self.ops.get_mut(id);
        let failed = op.failed & self.members != 0 && op.ok & self.members == 0;
        let (work, status, covers) = (op.work, op.status, op.covers);
        let extents = op.extents.pop();
        let outcome = match (failed, extents) {
            (true, _) => Outcome::Failed(failure(status)),
            (false, Some((_, list))) => Outcome::Extents(list),
            (false, None) => Outcome::Done,
        };
        if !failed {
            match work {
                Work::Client(Request::Write { .. }) => self.writes_done += 1,
                Work::Client(Request::Trim | Request::WriteZeroes { .. }) => {
                    self.writes_done += 1;
                    if self.step_done(id, now) {
                        return;
                    }
                }
                Work::Client(Request::Flush) | Work::FlushOwn | Work::FlushAll => {
                    self.writes_flushed = self.writes_flushed.max(covers);
                    let flush = self.ops.id(id);
                    self.intent.flush_ended(flush, true);
                }
                Work::Client(Request::Read | Request::Extents)
                | Work::Repair
                | Work::Copy { .. }
                | Work::Scan { .. }
                | Work::ReadMap { .. }
                | Work::FlushTarget { .. }
                | Work::Abandoned => {}
            }
        }
        if matches!(work, Work::FlushAll | Work::FlushOwn) {
            self.end_own(id, now);
            if work == Work::FlushAll {
                self.flushed_all(!failed, now);
            }
            return;
        }
        self.finish_client(id, outcome, now);
        self.release(id, now);
    }

    /// A view was committed: what is no longer needed is dropped, what waited for it is answered.
    pub(in crate::core::engine) fn view_committed(&mut self, now: Now) {
        for id in std::mem::take(&mut self.ops.acknowledged) {
            let op = self.ops.get_mut(id);
            if op.failed & self.members != 0 && op.ok & self.members != 0 {
                // Whoever has it has become a member: those that failed leave before the answer.
                op.stage = Stage::Main;
                self.settle_main(id, now);
            } else {
                self.acknowledge(id, now);
            }
        }
        let keep = self.members | self.targets;
        self.drop_pending(!keep, now);
        self.run_held(now);
    }

    /// The answers of the replicas in `gone` are no longer needed.
    pub(in crate::core::engine) fn drop_pending(&mut self, gone: Mask, now: Now) {
        let live = self.live;
        let concerned: Vec<_> = self.ops.live().filter(|id| self.ops.get(*id).pending & gone != 0).collect();
        for id in concerned {
            let op = self.ops.get_mut(id);
            if !op.live || op.pending & gone == 0 {
                continue;
            }
            op.pending &= !gone;
            match (op.stage, op.work) {
                (Stage::Drain, _) => {
                    if op.pending == 0 {
                        self.begin_again(id, now);
                    }
                }
                (Stage::Read | Stage::Edges, _) => {
                    op.attempt = op.attempt.wrapping_add(1);
                    op.stage = Stage::Waiting;
                    self.ready.push_back(id);
                }
                (Stage::Digest | Stage::Source | Stage::Spread, Work::Repair) => {
                    op.stage = Stage::Drain;
                    // Whose connection is gone carries nothing out, and is not asked again when it is back.
                    op.pending &= live;
                    if op.pending == 0 {
                        self.begin_again(id, now);
                    }
                }
                (Stage::Source | Stage::Digest, _) => {
                    op.attempt = op.attempt.wrapping_add(1);
                    op.stage = Stage::Waiting;
                    self.ready.push_back(id);
                }
                _ => self.settle(id, now),
            }
        }
        self.run_ready(now);
    }

    /// What was asked of a replica whose connection is gone: reads are asked of another member; and what waited for
    /// its former requests to end need not any more, since it ends them before it takes another connection.
    pub(in crate::core::engine) fn ask_others(&mut self, slot: usize, now: Now) {
        let draining: Vec<_> = self
            .ops
            .live()
            .filter(|id| {
                self.ops.get(*id).stage == Stage::Drain && self.ops.get(*id).pending & bit(slot) != 0
            })
            .collect();
        for id in draining {
            let op = self.ops.get_mut(id);
            op.pending &= !bit(slot);
            if op.pending == 0 {
                self.begin_again(id, now);
            }
        }
        if self.members & self.required() & self.live & !bit(slot) == 0 {
            return;
        }
        let reads: Vec<_> = self
            .ops
            .live()
            .filter(|id| {
                let op = self.ops.get(*id);
                matches!(op.stage, Stage::Read | Stage::Edges) && op.pending & bit(slot) != 0
            })
            .collect();
        for id in reads {
            let op = self.ops.get_mut(id);
            op.attempt = op.attempt.wrapping_add(1);
            op.pending = 0;
            op.stage = Stage::Waiting;
            self.ready.push_back(id);
        }
        self.run_ready(now);
    }

    /// Nothing of the former attempt is in flight: from the beginning.
    pub(super) fn begin_again(&mut self, id: u32, now: Now) {
        if self.ops.get(id).work == Work::Abandoned {
            self.release(id, now);
            return self.run_ready(now);
        }
        let op = self.ops.get_mut(id);
        op.attempt = op.attempt.wrapping_add(1);
        op.stage = Stage::Waiting;
        self.ready.push_back(id);
        self.run_ready(now);
    }
}

impl Op {
    /// One of the frames that give a replica a region was answered: how all of them went, if it was the last.
    fn frame_answered(&mut self, slot: usize, status: Status) -> Option<Status> {
        if status != Status::Ok {
            (self.failed, self.status) = (self.failed | bit(slot), status);
        }
        self.frames[slot] = self.frames[slot].saturating_sub(1);
        let failed = self.failed & bit(slot) != 0;
        (self.frames[slot] == 0).then_some(if failed { self.status } else { Status::Ok })
    }
}

fn keep_digest(op: &mut Op, slot: usize, header: &Header, inline: &[u8]) -> Status {
    // A region that is all hole is told apart from one of explicit zeros: copying then makes holes of them.
    let digest = match (header.flags & FLAG_HOLE != 0, inline.first_chunk::<32>()) {
        (true, _) => [0; 32],
        (false, Some(digest)) => *digest,
        (false, None) => return Status::Io,
    };
    if let Some(place) = op.digests.as_mut().and_then(|digests| digests.get_mut(slot)) {
        *place = Some(digest);
    }
    Status::Ok
}

fn failure(status: Status) -> Failure {
    match status {
        Status::NoSpace => Failure::NoSpace,
        Status::Invalid => Failure::Invalid,
        Status::Ok | Status::Io | Status::Fenced | Status::Failed => Failure::Io,
    }
}
