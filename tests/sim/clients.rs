//! The clients of an engine: what they ask for, and what they may be answered.

use std::ops::Range;

use holdfast_dataplane::core::engine::{EngineState, Outcome, Request};
use holdfast_dataplane::units::{BLOCK_BYTES, REGION_BYTES, block_cover, to_u64, to_usize};

use super::check::Moment;
use super::disk::{PER_BLOCK, UNIT_BYTES};
use super::engine::{now_of, slot_of};
use super::world::World;

/// A client's operation in flight.
#[derive(Debug, Clone)]
pub(super) struct ClientOp {
    request: Request,
    offset: u64,
    pub(super) units: Range<usize>,
    pub(super) write: u64,
    pub(super) began: Moment,
}

impl ClientOp {
    pub(super) fn mutates(&self) -> bool {
        match self.request {
            Request::Write { .. } | Request::Trim | Request::WriteZeroes { .. } => true,
            Request::Read | Request::Flush | Request::Extents => false,
        }
    }
}

impl World {
    /// The first view is committed.
    pub(super) fn serves(&mut self, engine: usize) {
        self.engines[engine].served = true;
        let generation = self.engines[engine].core.generation();
        if let Some((newest, other)) = self.newest_served {
            // The next process of the same instance may have the number of the one before, where the registry was away.
            let other = &self.engines[other];
            let next = generation == newest && !other.alive && other.uuid == self.engines[engine].uuid;
            if generation == newest && !next {
                return self.fail(format!("e{engine} of {generation} serves after one of {newest} did"));
            }
            if generation < newest {
                // It hears late that its view was persisted, before the newer engine's promise was: all it asks from here
                // on is refused, which the registers would tell.
                self.engines[engine].serving = true;
                return;
            }
        }
        self.newest_served = Some((generation, engine));
        self.served_engines += 1;
        self.engines[engine].serving = true;
        // Nothing that older engines still have on their way reaches a member from here on.
        for other in (0..self.engines.len()).filter(|other| *other != engine) {
            let pending: Vec<_> =
                self.engines[other].clients.values().filter(|op| op.mutates()).cloned().collect();
            for op in pending {
                self.registers.write_decided(op.write, op.units);
            }
        }
        let members = self.members_of(engine);
        trace!(self, "e{engine} serves {generation:?} with {members:?}");
        let (lost, older) =
            (|slot: &usize| self.replicas[*slot].lost, |slot: &usize| self.replicas[*slot].older);
        if members.iter().any(older) && members.iter().all(|slot| lost(slot) || older(slot)) {
            // What that may lose is in the documents: nothing is left that knows better.
            trace!(self, "only older copies and lost caches");
            self.beyond = true;
        }
        if members.iter().all(|slot| self.replicas[*slot].lost) {
            trace!(self, "every member has lost its cache");
            self.registers.caches_lost();
        }
    }

    /// The members of an engine's committed view.
    pub(super) fn members_of(&self, engine: usize) -> Vec<usize> {
        use holdfast_dataplane::core::engine::ReplicaMode;
        let report = self.engines[engine].core.report(now_of(self.queue.now()));
        let member = |mode| match mode {
            ReplicaMode::Member | ReplicaMode::Suspect => true,
            ReplicaMode::CatchingUp
            | ReplicaMode::Rebuilding
            | ReplicaMode::Faulted
            | ReplicaMode::Absent => false,
        };
        report.replicas.iter().filter(|r| member(r.mode)).map(|r| slot_of(r.id)).collect()
    }

    pub(super) fn is_healthy(&self, engine: usize) -> bool {
        self.engines[engine].core.report(now_of(self.queue.now())).state == EngineState::Healthy
    }

    fn oldest_read(&self) -> Moment {
        let began = self.engines.iter().flat_map(|host| host.clients.values()).map(|op| op.began);
        began.min().unwrap_or(Moment::MAX)
    }

    /// A client asks for something.
    pub(super) fn client(&mut self, engine: usize) {
        if self.engines[engine].clients.len() >= self.plan.depth {
            return;
        }
        let Some((request, offset, len)) = self.choose_request() else { return };
        self.submit(engine, request, offset, len);
    }

    /// A client of an engine that was replaced reads on: what its writes wait for is nothing to it.
    pub(super) fn reader(&mut self, engine: usize) {
        let reads = self.engines[engine].clients.values().filter(|op| op.request == Request::Read);
        if reads.count() >= self.plan.depth {
            return;
        }
        if let Some((Request::Read, offset, len)) = self.choose_request() {
            self.submit(engine, Request::Read, offset, len);
        }
    }

    fn submit(&mut self, engine: usize, request: Request, offset: u64, len: u64) {
        let now = now_of(self.queue.now());
        let Ok(op) = self.engines[engine].core.submit(request, offset, len, now) else { return };
        self.next_write += 1;
        let write = self.next_write;
        let units = Self::unit_of(offset)..Self::unit_of(offset + len);
        let stamp = if matches!(request, Request::Write { .. }) { write } else { 0 };
        let client =
            ClientOp { request, offset, units: units.clone(), write, began: self.registers.moment() };
        trace!(self, "e{engine} client {op:?} {client:?}");
        if client.mutates() {
            let oldest = self.oldest_read();
            self.registers.write_begins(write, units, stamp, oldest);
            // One that an older engine takes after a newer one serves: it is fenced, or about to be.
        }
        let (start, cover) = block_cover(offset, len);
        match request {
            Request::Write { .. } => {
                let mut buffer = vec![0; to_usize(cover / UNIT_BYTES)];
                let at = to_usize((offset - start) / UNIT_BYTES);
                buffer[at..at + to_usize(len / UNIT_BYTES)].fill(stamp);
                self.engines[engine].buffers.insert(op.slot, buffer);
            }
            Request::Read => {
                self.engines[engine].buffers.insert(op.slot, vec![u64::MAX; to_usize(cover / UNIT_BYTES)]);
            }
            Request::Flush | Request::Trim | Request::WriteZeroes { .. } | Request::Extents => {}
        }
        self.engines[engine].clients.insert((op.slot, op.serial), client);
        self.act_engine(engine);
    }

    fn choose_request(&mut self) -> Option<(Request, u64, u64)> {
        let random = &mut self.random;
        let per_region = to_usize(REGION_BYTES / BLOCK_BYTES);
        let regions = self.size.div_ceil(REGION_BYTES);
        // In a large volume, the first and the last few.
        let hot = regions.min(4);
        // A few blocks at the beginning and the end of each region: operations meet.
        let nth = random.below(hot);
        let region = to_usize(if nth < hot / 2 { nth } else { regions - hot + nth });
        let place = if random.coin() { random.index(4) } else { per_region - 1 - random.index(3) };
        let block = to_u64(region * per_region + place);
        let blocks = 1 + random.below(4);
        let request = match random.below(20) {
            0..=7 => Request::Write { fua: random.one_in(5) },
            8..=13 => Request::Read,
            14 => Request::Trim,
            15 => Request::WriteZeroes { may_punch: random.coin(), fua: random.one_in(4) },
            16..=18 => return Some((Request::Flush, 0, 0)),
            _ => Request::Extents,
        };
        let (mut offset, mut len) = (block * BLOCK_BYTES, blocks * BLOCK_BYTES);
        if matches!(request, Request::Read | Request::Write { .. }) {
            if random.one_in(3) {
                offset += UNIT_BYTES;
            }
            if random.one_in(3) {
                len -= UNIT_BYTES;
            }
            let left = REGION_BYTES - offset % REGION_BYTES;
            len = len.min(left);
        }
        len = len.min(self.size.checked_sub(offset)?);
        (len > 0).then_some((request, offset, len))
    }

    pub(super) fn completed(&mut self, engine: usize, key: (u32, u32), outcome: Outcome) {
        let buffer = self.engines[engine].buffers.remove(&key.0);
        let Some(op) = self.engines[engine].clients.remove(&key) else {
            return self.fail(format!("e{engine}: {key:?} is answered twice"));
        };
        self.answered += 1;
        match (op.request, outcome) {
            (_, Outcome::Failed(_)) => {
                self.failed_ops += 1;
                if op.mutates() {
                    self.registers.write_decided(op.write, op.units);
                }
            }
            (Request::Write { fua } | Request::WriteZeroes { fua, .. }, _) => {
                self.registers.write_done(op.write, op.units, fua);
            }
            (Request::Trim, _) => self.registers.write_done(op.write, op.units, false),
            (Request::Read, _) => {
                let skip = to_usize(op.offset % BLOCK_BYTES / UNIT_BYTES);
                let read = buffer.unwrap_or_default();
                for (unit, value) in op.units.zip(read.into_iter().skip(skip)) {
                    self.check_read(engine, unit, op.began, value);
                }
            }
            (Request::Extents, Outcome::Extents(runs)) => {
                let mut block = to_usize(op.offset / BLOCK_BYTES);
                for run in runs {
                    let next = block + to_usize(run.len / BLOCK_BYTES);
                    if !run.allocated {
                        for unit in block * PER_BLOCK..next * PER_BLOCK {
                            self.check_read(engine, unit, op.began, 0);
                        }
                    }
                    block = next;
                }
            }
            (Request::Extents, Outcome::Done) => self.fail(format!("e{engine}: extents without any")),
            (Request::Flush, _) => self.registers.flushed(op.began),
        }
    }

    fn check_read(&mut self, engine: usize, unit: usize, began: Moment, value: u64) {
        if let Err(why) = self.registers.read(unit, began, value) {
            let known = self.registers.describe(unit);
            self.fail(format!("e{engine}: {why}\n{known}"));
        }
    }
}
