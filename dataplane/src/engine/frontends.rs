//! Clients on the data thread: their requests into the core, the core's answers to them.
//!
//! A part that cannot begin now (too many operations in flight) waits in one queue for all clients, in order. What a
//! client may have in flight is bounded by its [`ClientLimits`] and its share of the pool, so this queue is too. A client
//! that waits for memory waits in its own parser, and keeps no other waiting.

use std::collections::VecDeque;
use std::time::Duration;

use super::buffers::{Answer, Buffers, Part};
use super::message::NewClient;
use crate::core::engine::{Engine, Failure, Now, Outcome, Request};
use crate::core::seats::Source;
use crate::core::stalls::{Stalls, Standing, TAKES_NOTHING_MAX};
use crate::frontend::nbd::{Client, ClientLimits, DriverTransport, Violation};
use crate::frontend::{BlockError, BlockKind, BlockRequest, Extent, IoCounters, PartResult, Submit};
use crate::io::{Buf, ConnId, Driver, OWNERS_MAX, Owner, Patience};
use crate::units::block_cover;

/// Arrivals, departures and handshakes of clients share one limit: one that comes, sends nonsense and goes, again and
/// again, says it once.
pub(super) const CLIENTS: &str = "holdfast_dataplane::clients";
/// Clients at once over the unix socket, and over TCP from one host: far beyond the connections of a multi-connection
/// client. A guess.
const SOURCE_CLIENTS_MAX: usize = 64;
/// Clients at once over TCP: one host leaves room for others.
const TCP_CLIENTS_MAX: usize = 96;
const CLIENTS_MAX: usize = SOURCE_CLIENTS_MAX + TCP_CLIENTS_MAX;
const _: () = assert!(CLIENTS_MAX <= OWNERS_MAX, "each client has a share of the pool");
/// Operations of clients in flight together: deeper than any queue that a disk gains from.
const OPERATIONS_MAX: usize = 1024;
/// How long a client may take for its last replies; one that is not sent away, as long as it goes on taking some.
const LAST_REPLIES_WITHIN: Duration = Duration::from_secs(2);
/// How long a check of who is still there takes: three probes a second apart, and a second to spare.
const CHECK_WITHIN: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// It sends nothing more, and waits for the replies to what it sent.
    Listening,
    /// Its last replies are being sent.
    Leaving {
        /// Closed at this time, unless it goes on taking them.
        until: Now,
        /// What it had taken when that was set. None: it is sent away, and `until` is final.
        taken: Option<u64>,
    },
    /// Its connection is being closed.
    Closing,
    /// Its connection has gone; what it asked for is still in flight.
    Gone,
}

#[derive(Debug)]
struct Seat {
    client: Client,
    conn: ConnId,
    source: Source,
    /// What it holds of the pool.
    owner: Owner,
    state: State,
}

impl Seat {
    fn is_tcp(&self) -> bool {
        is_tcp(self.source)
    }

    fn transport<'a>(&self, driver: &'a mut Driver) -> DriverTransport<'a> {
        DriverTransport { driver, conn: self.conn, owner: self.owner }
    }
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
    /// The client whose turn to go on is first.
    turn: usize,
    stalls: Stalls,
    /// A check of who is still there ends at this time.
    checked_at: Option<Now>,
    /// Of the clients that have gone.
    counted: IoCounters,
    /// Clients that were dropped because they took no replies while others waited.
    stalled: u64,
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
            turn: 0,
            stalls: Stalls::default(),
            checked_at: None,
            counted: IoCounters::default(),
            stalled: 0,
            refusing: false,
            ending: false,
        }
    }

    /// Clients that are connected and may send more.
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

    /// Clients that were dropped because they took no replies while others waited for memory.
    pub(super) fn stalled(&self) -> u64 {
        self.stalled
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
    pub(super) fn admit(&mut self, new: NewClient, driver: &mut Driver) {
        let NewClient { socket, negotiated, source } = new;
        let free = self.seats.iter().position(Option::is_none).unwrap_or(self.seats.len());
        let sources = self.seats.iter().flatten().map(|seat| seat.source);
        let admitted = !self.refusing && has_seat(sources, source);
        let Some(owner) = Owner::new(free).filter(|_| admitted) else {
            tracing::warn!(target: CLIENTS, "a client was sent away: the volume is detaching, or has too many clients");
            return;
        };
        let conn = match driver.add_conn(socket) {
            Ok(conn) => conn,
            Err(e) => return tracing::warn!(target: CLIENTS, "a client was sent away: {e}"),
        };
        driver.keep_sending_after_end(conn);
        let client = Client::new(negotiated, self.size_bytes, ClientLimits::default());
        if free == self.seats.len() {
            self.seats.push(None);
        }
        self.seats[free] = Some(Seat { client, conn, source, owner, state: State::Open });
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
                self.waiting.push_front((at, submit));
                false
            }
        }
    }

    /// Replies have been sent, parts have ended or memory became free: clients that wait for that go on. True: it
    /// brought parts.
    pub(super) fn parse_starved(&mut self, x: &mut Context<'_>) -> bool {
        let before = self.waiting.len();
        // Each call begins with the next client, so that the first does not get all that became free.
        self.turn = (self.turn + 1) % self.seats.len().max(1);
        for at in (self.turn..self.seats.len()).chain(0..self.turn) {
            if self.seat(at).is_some_and(|seat| seat.client.starved()) {
                self.parse(at, None, x);
            }
        }
        self.waiting.len() > before
    }

    /// Lets a client's parser run. What it brings waits to begin with the end of the turn, one after the other.
    fn parse(&mut self, at: usize, buf: Option<Buf>, x: &mut Context<'_>) {
        let mut submits = std::mem::take(&mut self.submits);
        if let Some(seat) = self.seats.get_mut(at).and_then(Option::as_mut) {
            let t = &mut seat.transport(x.driver);
            let parsed = match buf {
                Some(buf) => seat.client.on_received_into(buf, x.now, t, &mut submits),
                None => seat.client.on_received(x.now, t, &mut submits),
            };
            if seat.client.waits_for_buffers() {
                self.stalls.begin(x.now);
            }
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
            let t = &mut seat.transport(x.driver);
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
            State::Open | State::Listening if seat.client.disconnecting() => {
                let taken = Some(x.driver.sent_bytes(seat.conn));
                seat.state = State::Leaving { until: x.now + LAST_REPLIES_WITHIN, taken };
                x.driver.close_after_sends(seat.conn);
            }
            State::Gone if seat.client.in_flight() == 0 => {
                let counted = *seat.client.counters();
                self.counted.add(&counted);
                self.seats[at] = None;
                self.stalls.forget(at);
            }
            State::Open | State::Listening | State::Leaving { .. } | State::Closing | State::Gone => {}
        }
    }

    /// The client sends nothing more; what it has sent is still answered. False: it is not a client's connection.
    pub(super) fn input_ended(&mut self, conn: ConnId, x: &mut Context<'_>) -> bool {
        let Some((at, seat)) = self.by_conn(conn) else { return false };
        seat.client.on_input_ended();
        if seat.state == State::Open {
            seat.state = State::Listening;
        }
        self.parse(at, None, x);
        true
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
        let away = State::Leaving { until: x.now + LAST_REPLIES_WITHIN, taken: None };
        for seat in self.seats.iter_mut().flatten() {
            match seat.state {
                State::Open | State::Listening => {
                    seat.state = away;
                    seat.client.abandon();
                    x.driver.close_after_sends(seat.conn);
                }
                State::Leaving { taken: Some(_), .. } => seat.state = away,
                State::Leaving { taken: None, .. } | State::Closing | State::Gone => {}
            }
        }
    }

    /// Begins to find out which clients over TCP are still there: those that are not are dropped at the end of it. One
    /// that vanished would otherwise count for a minute and a half.
    pub(super) fn check(&mut self, driver: &Driver, now: Now) {
        // One under way tells soon. Beginning anew each time, a caller that asks again and again would never be told.
        if self.checked_at.is_some() {
            return;
        }
        self.checked_at = Some(now + CHECK_WITHIN);
        self.bound_silence(driver, Patience::Short);
    }

    fn bound_silence(&self, driver: &Driver, patience: Patience) {
        for seat in self.seats.iter().flatten().filter(|seat| seat.is_tcp()) {
            if let Err(error) = driver.bound_silence(seat.conn, patience) {
                tracing::debug!(%error, "how long a client may be silent stays as it is");
            }
        }
    }

    /// When [`Self::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Now> {
        let leaving = self.seats.iter().flatten().filter_map(|seat| match seat.state {
            State::Leaving { until, .. } => Some(until),
            State::Open | State::Listening | State::Closing | State::Gone => None,
        });
        leaving.chain(self.stalls.poll_timeout()).chain(self.checked_at).min()
    }

    /// Closes clients that did not take their last replies in time, that have vanished, or that keep memory from others.
    pub(super) fn tick(&mut self, driver: &mut Driver, now: Now) {
        for seat in self.seats.iter_mut().flatten() {
            let State::Leaving { until, taken } = seat.state else { continue };
            if until > now {
                continue;
            }
            let sent = driver.sent_bytes(seat.conn);
            if taken.is_some_and(|taken| taken < sent) {
                seat.state = State::Leaving { until: now + LAST_REPLIES_WITHIN, taken: Some(sent) };
            } else {
                seat.state = State::Closing;
                driver.close(seat.conn);
            }
        }
        if self.checked_at.is_some_and(|at| at <= now) {
            self.checked_at = None;
            self.end_check(driver);
        }
        if self.stalls.poll_timeout().is_some_and(|at| at <= now) {
            self.drop_stalled(driver, now);
        }
    }

    fn end_check(&mut self, driver: &mut Driver) {
        self.bound_silence(driver, Patience::Usual);
        for at in 0..self.seats.len() {
            let vanished = |seat: &Seat| driver.is_unanswered(seat.conn, CHECK_WITHIN);
            if self.seats[at].as_ref().is_some_and(vanished) {
                tracing::info!("a client is dropped: it does not answer any more");
                self.drop_client(at, driver);
            }
        }
    }

    fn drop_stalled(&mut self, driver: &mut Driver, now: Now) {
        let standing = |(at, seat): (usize, &Option<Seat>)| {
            let seat = seat.as_ref().filter(|seat| !matches!(seat.state, State::Closing | State::Gone))?;
            let standing = Standing {
                taken_bytes: driver.sent_bytes(seat.conn),
                has_replies: driver.queued_bytes(seat.conn) > 0,
                holds_memory: driver.pool().is_holder(seat.owner),
                waits: seat.client.waits_for_buffers(),
            };
            Some((at, standing))
        };
        let stalled = self.stalls.look(self.seats.iter().enumerate().filter_map(standing), now);
        if let Some(at) = stalled {
            self.stalled += 1;
            tracing::warn!(
                "a client is dropped: it took no reply for {TAKES_NOTHING_MAX:?} and held memory that others waited for"
            );
            self.drop_client(at, driver);
        }
    }

    fn drop_client(&mut self, at: usize, driver: &mut Driver) {
        if let Some(seat) = self.seat(at) {
            seat.client.abandon();
            seat.state = State::Closing;
            driver.close(seat.conn);
        }
    }
}

fn is_tcp(source: Source) -> bool {
    match source {
        Source::Network(_) => true,
        Source::User(_) => false,
    }
}

/// Whether there is a seat beside those that are taken: clients over TCP take none from those over the unix socket, nor
/// one host all of them from others.
fn has_seat(taken: impl Iterator<Item = Source>, source: Source) -> bool {
    let (mut same_door, mut same_source) = (0, 0);
    for other in taken {
        same_door += usize::from(is_tcp(other) == is_tcp(source));
        same_source += usize::from(other == source);
    }
    let door_max = if is_tcp(source) { TCP_CLIENTS_MAX } else { SOURCE_CLIENTS_MAX };
    same_door < door_max && same_source < SOURCE_CLIENTS_MAX
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
    fn seats_of_one_door_and_host_are_no_others() {
        let host = |ip: &str| Source::of_address(ip.parse().unwrap());
        let crowd = || std::iter::repeat_n(host("192.0.2.1"), SOURCE_CLIENTS_MAX);
        assert!(!has_seat(crowd(), host("192.0.2.1")));
        assert!(has_seat(crowd(), host("192.0.2.2")) && has_seat(crowd(), Source::User(0)));
        let others = || (0..TCP_CLIENTS_MAX).map(|i| host(&format!("198.51.100.{i}")));
        assert!(!has_seat(others(), host("192.0.2.1")) && has_seat(others(), Source::User(0)));
        let users = || (0..2).flat_map(|user| std::iter::repeat_n(Source::User(user), 32));
        assert!(!has_seat(users(), Source::User(2)) && has_seat(users(), host("127.0.0.1")));
    }

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
