//! One client's transmission phase: from received bytes to parts. How results become replies is in `reply`.
//!
//! Sans I/O. Requests are taken in the order they come, each is cut into parts, and only the newest can be cut
//! halfway: when buffers, the client's share of memory, or slots run out, parsing stops ([`Client::starved`]) until
//! parts complete or replies are sent, and the connection's receive buffer then holds the client back. The share is the
//! transport's business.
//!
//! Bounds, all in [`ClientLimits`]: requests in flight; bytes of buffers in flight together with replies not yet
//! sent. In steady state nothing is allocated here.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::time::Duration;

use super::handshake::Negotiated;
use super::parts;
use super::proto::{self, BadMagic, ErrorCode, RequestHeader, command};
use super::reply::Replies;
use super::request::{Op, ReplyForm, Rules, Task, Verdict};
use super::transport::Transport;
use crate::frontend::{BlockKind, BlockRequest, IoCounters, PartResult, Submit};
use crate::io::{Buf, Need, PART_BYTES_MAX};

/// The rest of a write's payload goes straight into its buffer from this length on. Below it, copying costs less
/// than a receive of its own, which could not bring the next requests along. A guess, to be measured.
const DIRECT_BYTES_MIN: usize = 16 * 1024;

/// How much of an engine's memory one client may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Requests in flight; at least 1.
    pub requests_max: usize,
    /// Bytes of buffers in flight and of replies not yet sent. Raised to 1 MiB if less.
    pub bytes_max: usize,
    /// A read up to this length fails with a proper error reply even where its data has to be sent in order (simple
    /// replies, or unfragmented); a longer one is sent as it is read, and an error ends the connection (or, asked
    /// for unfragmented, it is refused). Kept within 64 KiB, which clients may rely on, and half of `bytes_max`.
    pub gather_bytes_max: usize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { requests_max: 256, bytes_max: 16 << 20, gather_bytes_max: 4 << 20 }
    }
}

impl ClientLimits {
    /// Limits under which every request can make progress.
    fn workable(self) -> Self {
        let bytes_max = self.bytes_max.max(4 * PART_BYTES_MAX);
        let gather_bytes_max = self.gather_bytes_max.clamp(64 * 1024, bytes_max / 2);
        Self { requests_max: self.requests_max.max(1), bytes_max, gather_bytes_max }
    }
}

/// What a client must not do: its bytes make no sense any more, and it is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Something that is not a request.
    #[error("request: {0}")]
    BadMagic(#[from] BadMagic),
    /// A write with more payload than is read even to be refused.
    #[error("write: expected at most {} bytes, found {len}", proto::REQUEST_BYTES_MAX)]
    OversizedWrite {
        /// Its claimed length.
        len: u32,
    },
}

/// Where in the stream of requests we are.
#[derive(Debug)]
enum Rx {
    Header,
    /// A request is being cut into parts, next at `at`.
    Issue {
        request: u32,
        at: u64,
    },
    /// A write's payload: the part that begins at `at`, with its buffer once there is one.
    Payload {
        request: u32,
        at: u64,
        filling: Option<Filling>,
    },
    /// The payload of the part from `at` on is on its way into its buffer.
    Direct {
        request: u32,
        at: u64,
    },
    /// Payload that nobody wants.
    Skip {
        left: u64,
        then: AfterSkip,
    },
    /// Nothing more is read.
    Closed,
}

#[derive(Debug)]
struct Filling {
    buf: Buf,
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
enum AfterSkip {
    Answer { cookie: u64, error: Option<ErrorCode> },
    Close { request: u32 },
}

enum Step {
    Again,
    NeedInput,
    Starved,
}

/// One client in its transmission phase.
#[derive(Debug)]
pub struct Client {
    rules: Rules,
    limits: ClientLimits,
    rx: Rx,
    starved: bool,
    /// What it is starved for is a buffer of the pool.
    waits_for_buffers: bool,
    /// The client sends nothing more than what has been received.
    input_ended: bool,
    replies: Replies,
}

impl Client {
    /// A client that has just finished its handshake on a volume of `size_bytes`.
    #[must_use]
    pub fn new(negotiated: Negotiated, size_bytes: u64, limits: ClientLimits) -> Self {
        let limits = limits.workable();
        let gather_bytes_max = u32::try_from(limits.gather_bytes_max).unwrap_or(u32::MAX);
        Self {
            rules: Rules { size_bytes, negotiated, gather_bytes_max, refusing: false },
            limits,
            rx: Rx::Header,
            starved: false,
            waits_for_buffers: false,
            input_ended: false,
            replies: Replies::new(negotiated.structured_replies),
        }
    }

    /// Parses what was received and appends the parts to `out`. To be called when bytes arrive, and, while
    /// [`Client::starved`], after parts of this client completed, its replies were sent, or buffers became free. `now`,
    /// here as everywhere: the time of the loop's turn, on any clock that only goes forward.
    ///
    /// Errors: the client is to be dropped; see [`Client::abandon`] for the parts it still has in flight.
    pub fn on_received(
        &mut self,
        now: Duration,
        t: &mut impl Transport,
        out: &mut VecDeque<Submit>,
    ) -> Result<(), Violation> {
        self.replies.at(now);
        self.starved = false;
        self.waits_for_buffers = false;
        loop {
            let step = match mem::replace(&mut self.rx, Rx::Closed) {
                Rx::Header => match self.header(t) {
                    Ok(step) => step,
                    Err(violation) => {
                        self.abandon();
                        return Err(violation);
                    }
                },
                Rx::Issue { request, at } => self.issue(request, at, t, out),
                Rx::Payload { request, at, filling } => self.payload(request, at, filling, t, out),
                Rx::Skip { left, then } => self.skip(left, then, t),
                waiting @ Rx::Direct { .. } => {
                    self.rx = waiting;
                    Step::NeedInput
                }
                Rx::Closed => {
                    // Clients must not send anything after a disconnect; what they send all the same is dropped.
                    t.consume(t.received().len());
                    Step::NeedInput
                }
            };
            match step {
                Step::Again => {}
                Step::NeedInput if self.input_ended => {
                    self.end_of_input(t);
                    return Ok(());
                }
                Step::NeedInput => return Ok(()),
                Step::Starved => {
                    self.starved = true;
                    return Ok(());
                }
            }
        }
    }

    /// The buffer that was handed to [`Transport::receive_into`] is full. Errors: like [`Client::on_received`].
    pub fn on_received_into(
        &mut self,
        buf: Buf,
        now: Duration,
        t: &mut impl Transport,
        out: &mut VecDeque<Submit>,
    ) -> Result<(), Violation> {
        if let Rx::Direct { request, at } = self.rx {
            let filled = buf.len();
            self.rx = Rx::Payload { request, at, filling: Some(Filling { buf, filled }) };
        }
        self.on_received(now, t, out)
    }

    /// The client sends nothing more. What it has sent is to be parsed as before ([`Client::on_received`], at once and
    /// while it is starved): its whole requests are answered, one that is cut short is not.
    pub fn on_input_ended(&mut self) {
        self.input_ended = true;
    }

    /// All that was received is parsed, and a request that is not whole will never be.
    fn end_of_input(&mut self, t: &mut impl Transport) {
        match mem::replace(&mut self.rx, Rx::Closed) {
            Rx::Payload { request, .. }
            | Rx::Direct { request, .. }
            | Rx::Skip { then: AfterSkip::Close { request }, .. } => self.replies.give_up(request, t),
            // A request that is being cut into parts is whole, and waits for room.
            issue @ Rx::Issue { .. } => self.rx = issue,
            Rx::Header | Rx::Skip { then: AfterSkip::Answer { .. }, .. } | Rx::Closed => {}
        }
    }

    /// A part has ended: sends what is due. Panics on a part that is not in flight or a result of another kind.
    pub fn on_complete(&mut self, part: u32, result: PartResult<'_>, now: Duration, t: &mut impl Transport) {
        self.replies.at(now);
        self.replies.complete(part, result, t);
        if self.replies.broken() {
            self.abandon();
        }
    }

    /// The requests that were answered; not those that were refused before they began.
    #[must_use]
    pub fn counters(&self) -> &IoCounters {
        self.replies.counters()
    }

    /// Requests taken and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.replies.requests()
    }

    /// Parsing stopped for want of buffers, slots or room for replies; see [`Client::on_received`].
    #[must_use]
    pub fn starved(&self) -> bool {
        self.starved
    }

    /// It is starved for buffers of the pool, which others hold or its share does not allow.
    #[must_use]
    pub fn waits_for_buffers(&self) -> bool {
        self.waits_for_buffers
    }

    /// The connection is to be closed once what is queued on it is sent: the client asked for it and all it asked
    /// before is answered, or an error could not be told in another way.
    #[must_use]
    pub fn disconnecting(&self) -> bool {
        matches!(self.rx, Rx::Closed) && self.in_flight() == 0
    }

    /// Requests that come from now on are answered ESHUTDOWN; those already taken are finished.
    pub fn refuse_new(&mut self) {
        self.rules.refusing = true;
    }

    /// The connection is of no use any more: nothing more is parsed or sent. Parts in flight may still complete
    /// here (their buffers are freed); [`Client::in_flight`] says when the last one did.
    pub fn abandon(&mut self) {
        self.starved = false;
        self.waits_for_buffers = false;
        self.replies.silence();
        match mem::replace(&mut self.rx, Rx::Closed) {
            Rx::Issue { request, .. }
            | Rx::Payload { request, .. }
            | Rx::Direct { request, .. }
            | Rx::Skip { then: AfterSkip::Close { request }, .. } => self.replies.drop_rest(request),
            Rx::Header | Rx::Skip { then: AfterSkip::Answer { .. }, .. } | Rx::Closed => {}
        }
    }

    /// The next request's header, if it is there and there is room for one.
    fn header(&mut self, t: &mut impl Transport) -> Result<Step, Violation> {
        self.rx = Rx::Header;
        let Some(bytes) = t.received().first_chunk() else { return Ok(Step::NeedInput) };
        // Also before requests that need no part: their replies must not pile up either.
        let full = self.in_flight() >= self.limits.requests_max || t.queued_bytes() > self.limits.bytes_max;
        if full || self.replies.streaming() {
            return Ok(Step::Starved);
        }
        let header = RequestHeader::parse(bytes)?;
        let verdict = self.rules.judge(&header);
        if let Verdict::Run(task) = &verdict
            && let ReplyForm::Ordered { early, .. } = task.form
        {
            let begins = if early { self.in_flight() == 0 } else { self.can_gather(task, t) };
            if !begins {
                return Ok(Step::Starved);
            }
        }
        t.consume(proto::REQUEST_BYTES);
        self.rx = match verdict {
            Verdict::Disconnect => Rx::Closed,
            Verdict::Oversized => return Err(Violation::OversizedWrite { len: header.len }),
            Verdict::Answer(error) if header.command == command::WRITE => {
                let then = AfterSkip::Answer { cookie: header.cookie, error };
                Rx::Skip { left: u64::from(header.len), then }
            }
            Verdict::Answer(error) => {
                let form = self.rules.form_of_answer(header.command);
                self.replies.answer(header.cookie, form, error, t);
                Rx::Header
            }
            Verdict::Run(task) => {
                let (request, at) = (self.replies.begin(task), task.offset);
                match task.op {
                    Op::Write => Rx::Payload { request, at, filling: None },
                    Op::Read | Op::Flush | Op::Trim | Op::WriteZeroes { .. } | Op::BlockStatus => {
                        Rx::Issue { request, at }
                    }
                }
            }
        };
        Ok(Step::Again)
    }

    /// Cuts a request without payload into parts, as far as there is room.
    fn issue(
        &mut self,
        request: u32,
        mut at: u64,
        t: &mut impl Transport,
        out: &mut VecDeque<Submit>,
    ) -> Step {
        let task = self.replies.task(request);
        while !self.replies.failed(request) {
            let (kind, end) = parts::next_part(task.op, at, task.end);
            let Ok((buf, cost)) = self.room_for(kind, at, end, task.form.is_gathered(), t) else {
                self.rx = Rx::Issue { request, at };
                return Step::Starved;
            };
            self.submit(request, kind, at..end, buf, cost, out);
            at = end;
            if at >= task.end {
                break;
            }
        }
        self.rx = Rx::Header;
        self.replies.close(request, t);
        Step::Again
    }

    /// Whether there is room for all of a read at once. One that is gathered gives no buffer back before it has all of
    /// them: clients that each hold some would wait for each other for ever.
    fn can_gather(&mut self, task: &Task, t: &impl Transport) -> bool {
        let (mut need, mut bytes, mut at) = (Need::default(), 0, task.offset);
        while at < task.end {
            let (_, end) = parts::next_part(task.op, at, task.end);
            let (_, cost) = parts::in_buffer(at, end);
            need.add(cost);
            bytes += cost;
            at = end;
        }
        let room = self.has_room(bytes, t);
        let allowed = t.allows(&need);
        self.waits_for_buffers = room && !allowed;
        room && allowed
    }

    /// What a part without payload needs: a buffer of zeros for the edge of a write of zeros, room for what a read
    /// will bring. `Err`: not now.
    fn room_for(
        &mut self,
        kind: BlockKind,
        at: u64,
        end: u64,
        gathered: bool,
        t: &impl Transport,
    ) -> Result<(Option<Buf>, usize), ()> {
        match kind {
            BlockKind::Read => {
                let (_, cost) = parts::in_buffer(at, end);
                let buf = if gathered { t.alloc_allowed(cost) } else { self.alloc(cost, t) };
                Ok((Some(buf.ok_or(())?), cost))
            }
            BlockKind::Write => {
                let (_, cost) = parts::in_buffer(at, end);
                let mut buf = self.alloc(cost, t).ok_or(())?;
                own(&mut buf).fill(0);
                Ok((Some(buf), cost))
            }
            BlockKind::Flush | BlockKind::Trim | BlockKind::WriteZeroes { .. } | BlockKind::BlockStatus => {
                Ok((None, 0))
            }
        }
    }

    fn has_room(&self, cost: usize, t: &impl Transport) -> bool {
        let used = self.replies.held_bytes() + t.queued_bytes();
        used == 0 || used + cost <= self.limits.bytes_max
    }

    fn alloc(&mut self, cost: usize, t: &impl Transport) -> Option<Buf> {
        if !self.has_room(cost, t) {
            return None;
        }
        let buf = t.alloc(cost);
        self.waits_for_buffers |= buf.is_none();
        buf
    }

    fn submit(
        &mut self,
        request: u32,
        kind: BlockKind,
        range: Range<u64>,
        buf: Option<Buf>,
        cost: usize,
        out: &mut VecDeque<Submit>,
    ) {
        let fua = self.replies.task(request).fua;
        let part = self.replies.add_part(request, range.clone(), cost);
        let request = BlockRequest { kind, offset: range.start, len: range.end - range.start, fua };
        out.push_back(Submit { part, request, buf });
    }

    /// Takes payload of a write, part by part.
    fn payload(
        &mut self,
        request: u32,
        at: u64,
        filling: Option<Filling>,
        t: &mut impl Transport,
        out: &mut VecDeque<Submit>,
    ) -> Step {
        let task = self.replies.task(request);
        let (kind, end) = parts::next_part(task.op, at, task.end);
        let (payload, cost) = parts::in_buffer(at, end);
        if self.replies.failed(request) {
            // The answer is known; what is still to come of the payload need not be written.
            let taken = filling.map_or(0, |filling| filling.filled.min(payload.end) - payload.start);
            let left = task.end - at - u64::try_from(taken).expect("a part's length");
            self.rx = Rx::Skip { left, then: AfterSkip::Close { request } };
            return Step::Again;
        }
        let filling = match filling {
            None => self.alloc(cost, t).map(|buf| Filling { buf, filled: payload.start }),
            begun => begun,
        };
        let Some(mut filling) = filling else {
            self.rx = Rx::Payload { request, at, filling: None };
            return Step::Starved;
        };
        let missing = payload.end.saturating_sub(filling.filled);
        let present = missing.min(t.received().len());
        if present < missing
            && !self.input_ended
            && missing >= DIRECT_BYTES_MIN
            && filling.buf.len() == payload.end
        {
            self.rx = Rx::Direct { request, at };
            t.receive_into(filling.buf, filling.filled);
            return Step::NeedInput;
        }
        own(&mut filling.buf)[filling.filled..filling.filled + present]
            .copy_from_slice(&t.received()[..present]);
        t.consume(present);
        filling.filled += present;
        if present < missing {
            self.rx = Rx::Payload { request, at, filling: Some(filling) };
            return Step::NeedInput;
        }
        self.submit(request, kind, at..end, Some(filling.buf), cost, out);
        if end < task.end {
            self.rx = Rx::Payload { request, at: end, filling: None };
        } else {
            self.rx = Rx::Header;
            self.replies.close(request, t);
        }
        Step::Again
    }

    fn skip(&mut self, left: u64, then: AfterSkip, t: &mut impl Transport) -> Step {
        let present = t.received().len().min(usize::try_from(left).unwrap_or(usize::MAX));
        t.consume(present);
        let left = left - u64::try_from(present).expect("not more than was left");
        if left > 0 {
            self.rx = Rx::Skip { left, then };
            return Step::NeedInput;
        }
        self.rx = Rx::Header;
        match then {
            AfterSkip::Answer { cookie, error } => self.replies.answer(cookie, ReplyForm::Plain, error, t),
            AfterSkip::Close { request } => self.replies.close(request, t),
        }
        Step::Again
    }

    #[cfg(test)]
    pub(super) fn table_capacity(&self) -> usize {
        self.replies.table_capacity()
    }
}

/// A buffer we have just taken, or are still filling, is ours alone.
fn own(buf: &mut Buf) -> &mut [u8] {
    buf.get_mut().expect("a buffer that is not submitted yet is not shared")
}
