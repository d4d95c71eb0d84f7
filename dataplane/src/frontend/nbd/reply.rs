//! Requests in flight and their parts: from results to replies.
//!
//! A request is *open* while more parts of it may come; it is answered once it is closed and its last part has
//! completed. Data is sent before that where its form allows it. The first error of a part becomes the request's.

use std::ops::Range;
use std::time::Duration;

use super::parts;
use super::proto::{self, ErrorCode, chunk};
use super::request::{Op, ReplyForm, Task};
use super::slab::Slab;
use super::transport::Transport;
use crate::frontend::{BlockError, Extent, IoCounters, IoKind, PartResult};
use crate::io::Buf;

/// Runs in one answer to BLOCK_STATUS, so that it stays small; a client asks again from where the answer ends.
const RUNS_MAX: usize = 512;

#[derive(Debug)]
struct Request {
    task: Task,
    begun_at: Duration,
    open: bool,
    parts_in_flight: usize,
    error: Option<ErrorCode>,
    /// The last word on it is already sent.
    answered: bool,
    /// The head of an ordered reply is already sent.
    begun: bool,
    /// Parts of an ordered reply that are still to be sent, chained in order.
    ordered: Option<(u32, u32)>,
}

#[derive(Debug)]
struct Part {
    request: u32,
    offset: u64,
    end: u64,
    /// Bytes of buffer that it counts for.
    cost: usize,
    /// Of an ordered reply: what was read, and the part after it.
    data: Option<Buf>,
    next: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Replies {
    structured: bool,
    requests: Slab<Request>,
    parts: Slab<Part>,
    held_bytes: usize,
    /// The only request in flight is one whose reply no other may interrupt.
    streaming: bool,
    /// Nothing is sent any more.
    silent: bool,
    /// A reply could not be finished: the connection must end.
    broken: bool,
    scratch: Vec<u8>,
    /// The time of the turn that calls.
    now: Duration,
    counters: IoCounters,
}

impl Replies {
    pub(super) fn new(structured: bool) -> Self {
        Self {
            structured,
            requests: Slab::new(),
            parts: Slab::new(),
            held_bytes: 0,
            streaming: false,
            silent: false,
            broken: false,
            scratch: Vec::new(),
            now: Duration::ZERO,
            counters: IoCounters::default(),
        }
    }

    /// What follows happens in the turn of this time.
    pub(super) fn at(&mut self, now: Duration) {
        self.now = now;
    }

    pub(super) fn counters(&self) -> &IoCounters {
        &self.counters
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    pub(super) fn streaming(&self) -> bool {
        self.streaming
    }

    pub(super) fn silence(&mut self) {
        self.silent = true;
    }

    pub(super) fn task(&mut self, request: u32) -> Task {
        self.requests.get(request).task
    }

    pub(super) fn failed(&mut self, request: u32) -> bool {
        self.requests.get(request).error.is_some()
    }

    pub(super) fn begin(&mut self, task: Task) -> u32 {
        self.streaming = task.form.needs_the_line();
        assert!(!self.streaming || self.requests.len() == 0, "a reply that needs the line is alone");
        self.requests.insert(Request {
            task,
            begun_at: self.now,
            open: true,
            parts_in_flight: 0,
            error: None,
            answered: false,
            begun: false,
            ordered: None,
        })
    }

    pub(super) fn add_part(&mut self, request: u32, range: Range<u64>, cost: usize) -> u32 {
        let (offset, end) = (range.start, range.end);
        let part = self.parts.insert(Part { request, offset, end, cost, data: None, next: None });
        self.held_bytes += cost;
        let request = self.requests.get(request);
        request.parts_in_flight += 1;
        if matches!(request.task.form, ReplyForm::Ordered { .. }) {
            match &mut request.ordered {
                None => request.ordered = Some((part, part)),
                Some((_, last)) => {
                    self.parts.get(*last).next = Some(part);
                    *last = part;
                }
            }
        }
        part
    }

    /// No more parts of the request come.
    pub(super) fn close(&mut self, request: u32, t: &mut impl Transport) {
        self.requests.get(request).open = false;
        self.settle(request, t);
    }

    /// The rest of the request never comes: what came of it is finished, and it is not answered.
    pub(super) fn give_up(&mut self, request: u32, t: &mut impl Transport) {
        let entry = self.requests.get(request);
        entry.error.get_or_insert(ErrorCode::Invalid);
        entry.answered = true;
        self.close(request, t);
    }

    /// Like [`Replies::close`] when nothing can be sent any more.
    pub(super) fn drop_rest(&mut self, request: u32) {
        assert!(self.silent, "a request is only dropped together with its connection");
        let entry = self.requests.get(request);
        entry.open = false;
        if entry.parts_in_flight == 0 {
            self.free_ordered(request);
            self.requests.remove(request);
        }
    }

    /// Answers a request that never began.
    pub(super) fn answer(
        &mut self,
        cookie: u64,
        form: ReplyForm,
        error: Option<ErrorCode>,
        t: &mut impl Transport,
    ) {
        if self.silent {
            return;
        }
        let chunks = match form {
            ReplyForm::Plain => false,
            ReplyForm::Ordered { .. } => self.structured,
            ReplyForm::Chunks | ReplyForm::Status { .. } => true,
        };
        match error {
            Some(error) if chunks => t.send(&proto::error_chunk(cookie, error), None),
            None if chunks => t.send(&proto::chunk_header(cookie, chunk::NONE, true, 0), None),
            Some(_) | None => t.send(&proto::simple_reply(cookie, error), None),
        }
    }

    /// A part has ended.
    pub(super) fn complete(&mut self, part: u32, result: PartResult<'_>, t: &mut impl Transport) {
        let request = self.parts.get(part).request;
        let entry = self.requests.get(request);
        entry.parts_in_flight -= 1;
        let task = entry.task;
        match (result, task.form) {
            (PartResult::Error(error), _) => {
                entry.error.get_or_insert(code(error));
            }
            (PartResult::Done, ReplyForm::Plain) => {}
            (PartResult::Data(buf), ReplyForm::Chunks) => self.send_chunk(request, part, &buf, t),
            (PartResult::Data(buf), ReplyForm::Ordered { .. }) => self.parts.get(part).data = Some(buf),
            (PartResult::Extents(extents), ReplyForm::Status { only_one }) => {
                entry.answered = true;
                self.send_status(&task, extents, if only_one { 1 } else { RUNS_MAX }, t);
            }
            (result, form) => panic!("{:?} of the form {form:?} was answered with {result:?}", task.op),
        }
        match task.form {
            ReplyForm::Ordered { early: true, .. } => self.send_ordered(request, t),
            ReplyForm::Ordered { early: false, .. } => {}
            ReplyForm::Plain | ReplyForm::Chunks | ReplyForm::Status { .. } => {
                self.free_part(part);
            }
        }
        self.settle(request, t);
    }

    /// Ends a request that is closed and has no part in flight any more.
    fn settle(&mut self, request: u32, t: &mut impl Transport) {
        let entry = self.requests.get(request);
        if entry.open || entry.parts_in_flight > 0 {
            return;
        }
        if matches!(entry.task.form, ReplyForm::Ordered { .. }) {
            self.send_ordered(request, t);
            self.free_ordered(request);
        }
        let Request { task, begun_at, error, answered, begun, .. } = self.requests.remove(request);
        self.streaming = false;
        self.count(&task, error.is_some(), begun_at);
        match error {
            Some(_) if begun => self.broken = true,
            None if begun => {}
            Some(_) | None if answered => {}
            Some(_) | None => self.answer(task.cookie, task.form, error, t),
        }
    }

    /// A client that has gone is answered nothing.
    fn count(&mut self, task: &Task, failed: bool, begun_at: Duration) {
        let kind = match task.op {
            _ if self.silent => return,
            Op::Read => IoKind::Read,
            Op::Write => IoKind::Write,
            Op::Flush => IoKind::Flush,
            Op::Trim => IoKind::Trim,
            Op::WriteZeroes { .. } => IoKind::WriteZeroes,
            Op::BlockStatus => return,
        };
        self.counters.answered(kind, task.end - task.offset, failed, self.now.saturating_sub(begun_at));
    }

    fn free_part(&mut self, part: u32) -> Part {
        let part = self.parts.remove(part);
        self.held_bytes -= part.cost;
        part
    }

    fn free_ordered(&mut self, request: u32) {
        let mut next = self.requests.get(request).ordered.take().map(|(first, _)| first);
        while let Some(part) = next {
            next = self.free_part(part).next;
        }
    }

    fn send_chunk(&mut self, request: u32, part: u32, buf: &Buf, t: &mut impl Transport) {
        let entry = self.requests.get(request);
        if entry.error.is_some() || self.silent {
            return;
        }
        let done = !entry.open && entry.parts_in_flight == 0;
        entry.answered = done;
        let cookie = entry.task.cookie;
        let part = self.parts.get(part);
        let head = proto::data_chunk(cookie, done, part.offset, length(part.end - part.offset));
        t.send(&head, Some((buf, parts::in_buffer(part.offset, part.end).0)));
    }

    /// Sends what is complete and next in order.
    fn send_ordered(&mut self, request: u32, t: &mut impl Transport) {
        let entry = self.requests.get(request);
        if entry.error.is_some() || self.silent {
            self.broken |= entry.begun && entry.error.is_some();
            return;
        }
        let ReplyForm::Ordered { chunk, .. } = entry.task.form else { return };
        let Task { cookie, offset, end, .. } = entry.task;
        let data_head = proto::data_chunk(cookie, true, offset, length(end - offset));
        let simple_head = proto::simple_reply(cookie, None);
        let mut head = match (entry.begun, chunk) {
            (true, _) => &[][..],
            (false, true) => &data_head[..],
            (false, false) => &simple_head[..],
        };
        while let Some((first, last)) = self.requests.get(request).ordered {
            let part = self.parts.get(first);
            let Some(buf) = part.data.take() else { return };
            t.send(head, Some((&buf, parts::in_buffer(part.offset, part.end).0)));
            head = &[];
            let next = self.free_part(first).next;
            let entry = self.requests.get(request);
            entry.begun = true;
            entry.ordered = next.map(|next| (next, last));
        }
    }

    fn send_status(&mut self, task: &Task, extents: &[Extent], runs_max: usize, t: &mut impl Transport) {
        if self.silent {
            return;
        }
        let unknown = extents.iter().all(|extent| extent.len == 0);
        let runs = Runs { extents, left: task.end - task.offset, unknown };
        proto::block_status_chunk(&mut self.scratch, task.cookie, runs.take(runs_max));
        t.send(&self.scratch, None);
    }

    #[cfg(test)]
    pub(super) fn table_capacity(&self) -> usize {
        self.requests.capacity() + self.parts.capacity() + self.scratch.capacity()
    }
}

/// Extents cut to the request, neighbours of one kind joined, as `(length, state)`; never empty.
struct Runs<'a> {
    extents: &'a [Extent],
    left: u64,
    unknown: bool,
}

impl Iterator for Runs<'_> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        if self.unknown {
            self.unknown = false;
            return Some((length(self.left), 0));
        }
        let mut run: Option<(u64, bool)> = None;
        while let [extent, rest @ ..] = self.extents {
            if run.is_some_and(|(_, allocated)| allocated != extent.allocated) {
                break;
            }
            self.extents = rest;
            let len = extent.len.min(self.left);
            if len > 0 {
                self.left -= len;
                run = Some((run.map_or(0, |(before, _)| before) + len, extent.allocated));
            }
        }
        let hole = proto::STATE_HOLE | proto::STATE_ZERO;
        run.map(|(len, allocated)| (length(len), if allocated { 0 } else { hole }))
    }
}

fn length(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("the length of a request, or of a piece of it")
}

fn code(error: BlockError) -> ErrorCode {
    match error {
        BlockError::Io => ErrorCode::Io,
        BlockError::NoSpace => ErrorCode::NoSpace,
        BlockError::Invalid => ErrorCode::Invalid,
        BlockError::Shutdown => ErrorCode::Shutdown,
    }
}
