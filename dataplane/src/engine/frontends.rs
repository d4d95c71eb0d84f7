//! Clients on the data thread: their requests into the core, the core's answers to them.
//!
//! A part that cannot begin now (too many operations in flight, no memory for what it reads) waits in one queue for all
//! clients, in order. What a client may have in flight is bounded by its [`ClientLimits`], so this queue is too.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::buffers::{Answer, Buffers, Part};
use crate::core::engine::{Engine, Failure, Now, Outcome, Request};
use crate::frontend::nbd::{Client, ClientLimits, DriverTransport, Negotiated, Violation};
use crate::frontend::{BlockError, BlockKind, BlockRequest, Extent, IoCounters, PartResult, Submit};
use crate::io::{Buf, ConnId, Driver};
use crate::units::{block_cover, to_usize};

/// What is logged of clients shares one limit: one that comes, sends nonsense and goes, again and again, says it once.
pub(super) const CLIENTS: &str = "holdfast_dataplane::clients";
/// Clients at once: far beyond the connections of a multi-connection client. A guess.
pub(super) const CLIENTS_MAX: usize = 64;
/// Operations of clients in flight together: deeper than any queue that a disk gains from.
const OPERATIONS_MAX: usize = 1024;
/// How long a client may take for its last replies.
const LAST_REPLIES_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Its last replies are being sent; closed at this time at the latest.
    Leaving(Now),
    /// Its connection is being closed.
    Closing,
    /// Its connection has gone; what it asked for is still in flight.
    Gone,
}

#[derive(Debug)]
struct Seat {
    client: Client,
    conn: ConnId,
    state: State,
}

/// The clients, and what they wait for.
#[derive(Debug)]
pub(super) struct Frontends {
    size_bytes: u64,
    seats: Vec<Option<Seat>>,
    waiting: VecDeque<(usize, Submit)>,
    /// Reused: parts on their way from a client's parser to the core, runs on their way back.
    submits: VecDeque<Submit>,
    extents: Vec<Extent>,
    /// Of the clients that have gone.
    counted: IoCounters,
    refusing: bool,
    /// Nothing is answered any more: failures are told as the shutdown they are.
    ending: bool,
}

/// What clients' parts are worked with.
pub(super) struct Context<'a> {
    pub(super) driver: &'a mut Driver,
    pub(super) core: &'a mut Engine,
    pub(super) buffers: &'a mut Buffers,
    pub(super) now: Now,
}

impl Frontends {
    pub(super) fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            seats: Vec::with_capacity(CLIENTS_MAX),
            waiting: VecDeque::with_capacity(OPERATIONS_MAX),
            submits: VecDeque::with_capacity(OPERATIONS_MAX),
            extents: Vec::with_capacity(1024),
            counted: IoCounters::default(),
            refusing: false,
            ending: false,
        }
    }

    /// Clients that are connected.
    pub(super) fn count(&self) -> usize {
        self.seats.iter().flatten().filter(|seat| seat.state == State::Open).count()
    }

    /// The requests of all clients that were answered.
    pub(super) fn counters(&self) -> IoCounters {
        let mut all = self.counted;
        for seat in self.seats.iter().flatten() {
            all.add(seat.client.counters());
        }
        all
    }

    /// Whether nobody has anything in flight, and nothing waits.
    pub(super) fn idle(&self) -> bool {
        self.waiting.is_empty() && self.seats.iter().flatten().all(|seat| seat.client.in_flight() == 0)
    }

    /// Whether every client has gone.
    pub(super) fn empty(&self) -> bool {
        self.seats.iter().all(Option::is_none)
    }

    /// A client has finished its handshake.
    pub(super) fn admit(&mut self, socket: OwnedFd, negotiated: Negotiated, driver: &mut Driver) {
        if self.refusing || self.seats.iter().flatten().count() >= CLIENTS_MAX {
            tracing::warn!(target: CLIENTS, "a client was sent away: the volume is detaching, or has {CLIENTS_MAX} clients");
            return;
        }
        let conn = match driver.add_conn(socket) {
            Ok(conn) => conn,
            Err(e) => return tracing::warn!(target: CLIENTS, "a client was sent away: {e}"),
        };
        let client = Client::new(negotiated, self.size_bytes, ClientLimits::default());
        let seat = Some(Seat { client, conn, state: State::Open });
        match self.seats.iter_mut().find(|seat| seat.is_none()) {
            Some(free) => *free = seat,
            None => self.seats.push(seat),
        }
        tracing::info!(target: CLIENTS, clients = self.count(), "a client has come");
    }

    fn by_conn(&mut self, conn: ConnId) -> Option<(usize, &mut Seat)> {
        self.seats
            .iter_mut()
            .enumerate()
            .filter_map(|(at, seat)| seat.as_mut().map(|seat| (at, seat)))
            .find(|(_, seat)| seat.conn == conn)
    }

    fn seat(&mut self, at: usize) -> Option<&mut Seat> {
        self.seats.get_mut(at).and_then(Option::as_mut)
    }

    // ---- from a client to the core ----------------------------------------------------------------------------------

    /// A client has sent something. False: the connection is not a client's.
    pub(super) fn received(&mut self, conn: ConnId, x: &mut Context<'_>) -> bool {
        let Some((at, _)) = self.by_conn(conn) else { return false };
        self.parse(at, None, x);
        true
    }

    /// A client's buffer is full. Gives it back where the connection is not a client's.
    pub(super) fn received_into(&mut self, conn: ConnId, buf: Buf, x: &mut Context<'_>) -> Option<Buf> {
        let Some((at, _)) = self.by_conn(conn) else { return Some(buf) };
        self.parse(at, Some(buf), x);
        None
    }

    /// Hands the part that waits longest to the core. False: there is none, or it has to wait on.
    pub(super) fn begin_next(&mut self, x: &mut Context<'_>) -> bool {
        let Some((at, submit)) = self.waiting.pop_front() else { return false };
        match self.begin(at, submit, x) {
            Ok(()) => true,
            Err(submit) => {
                let for_memory = x.buffers.clients() < OPERATIONS_MAX;
                self.waiting.push_front((at, submit));
                for_memory && self.begin_behind(x)
            }
        }
    }

    /// A read waits for memory. What brought its own may hold all there is, and goes first.
    fn begin_behind(&mut self, x: &mut Context<'_>) -> bool {
        let behind = self.waiting.iter().position(|(_, submit)| submit.request.kind != BlockKind::Read);
        let Some((at, submit)) = behind.and_then(|behind| self.waiting.remove(behind)) else { return false };
        match self.begin(at, submit, x) {
            Ok(()) => true,
            Err(submit) => {
                self.waiting.push_front((at, submit));
                false
            }
        }
    }

    /// Replies have been sent, parts have ended or memory became free: clients that wait for that go on. True: it
    /// brought parts.
    pub(super) fn parse_starved(&mut self, x: &mut Context<'_>) -> bool {
        let before = self.waiting.len();
        for at in 0..self.seats.len() {
            if self.seat(at).is_some_and(|seat| seat.client.starved()) {
                self.parse(at, None, x);
            }
        }
        self.waiting.len() > before
    }

    /// Lets a client's parser run. What it brings waits to begin with the end of the turn, one after the other.
    fn parse(&mut self, at: usize, buf: Option<Buf>, x: &mut Context<'_>) {
        let mut submits = std::mem::take(&mut self.submits);
        if let Some(seat) = self.seat(at) {
            let t = &mut DriverTransport { driver: x.driver, conn: seat.conn };
            let parsed = match buf {
                Some(buf) => seat.client.on_received_into(buf, x.now, t, &mut submits),
                None => seat.client.on_received(x.now, t, &mut submits),
            };
            self.parsed(at, parsed, x);
        }
        self.waiting.extend(submits.drain(..).map(|submit| (at, submit)));
        self.submits = submits;
    }

    fn parsed(&mut self, at: usize, parsed: Result<(), Violation>, x: &mut Context<'_>) {
        if let Err(violation) = parsed {
            tracing::warn!(target: CLIENTS, "a client is dropped: {violation}");
            if let Some(seat) = self.seat(at) {
                seat.state = State::Closing;
                x.driver.close(seat.conn);
            }
        }
        self.see_off(at, x);
    }

    /// Hands a part to the core. `Err`: not now.
    fn begin(&mut self, at: usize, submit: Submit, x: &mut Context<'_>) -> Result<(), Submit> {
        let Submit { part, request, buf } = submit;
        if self.seat(at).is_none_or(|seat| matches!(seat.state, State::Closing | State::Gone)) {
            self.answer(at, part, PartResult::Error(BlockError::Shutdown), x);
            return Ok(());
        }
        if x.buffers.clients() >= OPERATIONS_MAX {
            return Err(Submit { part, request, buf });
        }
        let buf = if request.kind == BlockKind::Read {
            let (_, cover) = block_cover(request.offset, request.len);
            match x.driver.pool().alloc(to_usize(cover)) {
                Some(buf) => Some(buf),
                None => return Err(Submit { part, request, buf }),
            }
        } else {
            buf
        };
        let (wish, offset, len, answer) = wish(&request);
        match x.core.submit(wish, offset, len, x.now) {
            Ok(op) => x.buffers.begin(op, Part { client: at, part, answer }, buf),
            Err(failure) => {
                let error = self.error(failure);
                self.answer(at, part, PartResult::Error(error), x);
            }
        }
        Ok(())
    }

    // ---- from the core to a client ----------------------------------------------------------------------------------

    /// An operation for a client has ended. Where a flush is still to follow, it begins.
    pub(super) fn complete(&mut self, part: Part, buf: Option<Buf>, outcome: Outcome, x: &mut Context<'_>) {
        let at = part.client;
        match (outcome, part.answer, buf) {
            (Outcome::Failed(failure), _, _) => {
                let error = self.error(failure);
                self.answer(at, part.part, PartResult::Error(error), x);
            }
            (Outcome::Extents(runs), Answer::Extents { skip }, _) => {
                let mut extents = std::mem::take(&mut self.extents);
                cut_front(&runs, skip, &mut extents);
                self.answer(at, part.part, PartResult::Extents(&extents), x);
                self.extents = extents;
            }
            (Outcome::Done, Answer::Data, Some(buf)) => {
                self.answer(at, part.part, PartResult::Data(buf), x);
            }
            (Outcome::Done, Answer::Done, _) => self.answer(at, part.part, PartResult::Done, x),
            (Outcome::Done, Answer::Flush, _) => {
                // Not at once: the core may have more to say about operations whose places it would give away here.
                let request = BlockRequest { kind: BlockKind::Flush, offset: 0, len: 0, fua: false };
                self.waiting.push_back((at, Submit { part: part.part, request, buf: None }));
            }
            (Outcome::Done | Outcome::Extents(_), _, _) => {
                debug_assert!(false, "an outcome of another kind than the request");
                self.answer(at, part.part, PartResult::Error(BlockError::Io), x);
            }
        }
    }

    fn answer(&mut self, at: usize, part: u32, result: PartResult<'_>, x: &mut Context<'_>) {
        if let Some(seat) = self.seat(at) {
            let t = &mut DriverTransport { driver: x.driver, conn: seat.conn };
            seat.client.on_complete(part, result, x.now, t);
        }
        self.see_off(at, x);
    }

    fn error(&self, failure: Failure) -> BlockError {
        match failure {
            Failure::Io => BlockError::Io,
            Failure::NoSpace => BlockError::NoSpace,
            Failure::Invalid => BlockError::Invalid,
            Failure::Unavailable if self.refusing || self.ending => BlockError::Shutdown,
            // Suspended for too long: to the client, the storage failed.
            Failure::Unavailable => BlockError::Io,
        }
    }

    // ---- coming to an end -------------------------------------------------------------------------------------------

    /// Closes a client that is done, and forgets one that is gone.
    fn see_off(&mut self, at: usize, x: &mut Context<'_>) {
        let Some(seat) = self.seat(at) else { return };
        match seat.state {
            State::Open if seat.client.disconnecting() => {
                seat.state = State::Leaving(x.now + LAST_REPLIES_WITHIN);
                x.driver.close_after_sends(seat.conn);
            }
            State::Gone if seat.client.in_flight() == 0 => {
                let counted = *seat.client.counters();
                self.counted.add(&counted);
                self.seats[at] = None;
            }
            State::Open | State::Leaving(_) | State::Closing | State::Gone => {}
        }
    }

    /// The connection has failed. False: it is not a client's.
    pub(super) fn failed(&mut self, conn: ConnId, driver: &mut Driver) -> bool {
        let Some((_, seat)) = self.by_conn(conn) else { return false };
        seat.client.abandon();
        seat.state = State::Closing;
        driver.close(conn);
        true
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self, conn: ConnId, x: &mut Context<'_>) {
        let Some((at, seat)) = self.by_conn(conn) else { return };
        seat.client.abandon();
        seat.state = State::Gone;
        self.see_off(at, x);
        tracing::info!(target: CLIENTS, clients = self.count(), "a client has gone");
    }

    /// Takes no more requests; those taken are finished.
    pub(super) fn refuse_new(&mut self) {
        self.refusing = true;
        for seat in self.seats.iter_mut().flatten() {
            seat.client.refuse_new();
        }
    }

    /// The core answers nothing more: what waits is told so.
    pub(super) fn ending(&mut self) {
        self.ending = true;
        self.refuse_new();
    }

    /// Sends everybody away once they have their last replies.
    pub(super) fn see_all_off(&mut self, x: &mut Context<'_>) {
        for seat in self.seats.iter_mut().flatten() {
            if seat.state == State::Open {
                seat.state = State::Leaving(x.now + LAST_REPLIES_WITHIN);
                seat.client.abandon();
                x.driver.close_after_sends(seat.conn);
            }
        }
    }

    /// When [`Self::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Now> {
        let leaving = self.seats.iter().flatten().filter_map(|seat| match seat.state {
            State::Leaving(until) => Some(until),
            State::Open | State::Closing | State::Gone => None,
        });
        leaving.min()
    }

    /// Closes whoever did not take its last replies in time.
    pub(super) fn tick(&mut self, driver: &mut Driver, now: Now) {
        for seat in self.seats.iter_mut().flatten() {
            if matches!(seat.state, State::Leaving(until) if until <= now) {
                seat.state = State::Closing;
                driver.close(seat.conn);
            }
        }
    }
}

/// What the core is asked for, with its range, and what the client gets for it.
fn wish(request: &BlockRequest) -> (Request, u64, u64, Answer) {
    let &BlockRequest { kind, offset, len, fua } = request;
    match kind {
        BlockKind::Read => (Request::Read, offset, len, Answer::Data),
        BlockKind::Write => (Request::Write { fua }, offset, len, Answer::Done),
        BlockKind::Flush => (Request::Flush, 0, 0, Answer::Done),
        // The core's trim has no such flag: rare, and a flush is what it means.
        BlockKind::Trim if fua => (Request::Trim, offset, len, Answer::Flush),
        BlockKind::Trim => (Request::Trim, offset, len, Answer::Done),
        // It goes step by step, and one flush after the last is enough.
        BlockKind::WriteZeroes { may_punch } if fua => {
            (Request::WriteZeroes { may_punch, fua: false }, offset, len, Answer::Flush)
        }
        BlockKind::WriteZeroes { may_punch } => {
            (Request::WriteZeroes { may_punch, fua }, offset, len, Answer::Done)
        }
        BlockKind::BlockStatus => {
            // Replicas know whole blocks.
            let (start, cover) = block_cover(offset, len);
            (Request::Extents, start, cover, Answer::Extents { skip: offset - start })
        }
    }
}

/// The runs behind the first `skip` bytes.
fn cut_front(runs: &[crate::wire::payload::Extent], mut skip: u64, out: &mut Vec<Extent>) {
    out.clear();
    for run in runs {
        let cut = skip.min(run.len);
        skip -= cut;
        if run.len > cut {
            out.push(Extent { len: run.len - cut, allocated: run.allocated });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_before_the_request_are_cut() {
        let run = |len, allocated| crate::wire::payload::Extent { len, allocated };
        let mut out = Vec::new();
        cut_front(&[run(10, true), run(20, false), run(5, true)], 12, &mut out);
        let expected = [Extent { len: 18, allocated: false }, Extent { len: 5, allocated: true }];
        assert_eq!(out, expected);
        cut_front(&[run(10, true)], 10, &mut out);
        assert_eq!(out, []);
    }

    #[test]
    fn an_unaligned_status_asks_for_whole_blocks() {
        let request = BlockRequest { kind: BlockKind::BlockStatus, offset: 5000, len: 10, fua: false };
        assert_eq!(wish(&request), (Request::Extents, 4096, 4096, Answer::Extents { skip: 904 }));
    }
}
