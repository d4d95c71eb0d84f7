//! What a request's header asks for, and whether it may: pure.

use super::handshake::Negotiated;
use super::parts::blocks_within;
use super::proto::{self, ErrorCode, RequestHeader, command, command_flag as flag};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes { may_punch: bool },
    BlockStatus,
}

/// How the client is told of the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyForm {
    /// A simple reply without data.
    Plain,
    /// Chunks of data as parts complete, in any order.
    Chunks,
    /// All data in order: behind one chunk header (`chunk`) or a simple reply's. With `early`, data goes out as soon
    /// as it is next in order; an error after that can only be told by hanging up.
    Ordered { chunk: bool, early: bool },
    /// Runs of the allocation map, or just the first of them.
    Status { only_one: bool },
}

impl ReplyForm {
    /// Other replies cannot go out between the pieces of this one: nothing else may be in flight meanwhile. Rare:
    /// only a simple reply that is too long to be gathered.
    pub(super) fn needs_the_line(self) -> bool {
        matches!(self, Self::Ordered { early: true, .. })
    }

    /// Nothing is sent before all of it is there.
    pub(super) fn is_gathered(self) -> bool {
        matches!(self, Self::Ordered { early: false, .. })
    }
}

/// A request that the engine has work to do for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) op: Op,
    pub(super) cookie: u64,
    /// The bytes concerned; a trim's are already shrunk to whole blocks.
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) fua: bool,
    pub(super) form: ReplyForm,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Run(Task),
    /// Answered without the engine: there is nothing to do, or it is refused. A write's payload is skipped first.
    Answer(Option<ErrorCode>),
    Disconnect,
    /// A write that is too long to skip.
    Oversized,
}

/// What a verdict depends on beside the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) size_bytes: u64,
    pub(super) negotiated: Negotiated,
    /// Reads up to this length are gathered before their reply begins.
    pub(super) gather_bytes_max: u32,
    /// Nothing new is taken.
    pub(super) refusing: bool,
}

impl Rules {
    pub(super) fn judge(&self, header: &RequestHeader) -> Verdict {
        if header.command == command::WRITE && header.len > proto::REQUEST_BYTES_MAX {
            return Verdict::Oversized;
        }
        if header.command == command::DISC {
            return Verdict::Disconnect;
        }
        match self.task(header) {
            Ok(Some(task)) => Verdict::Run(task),
            Ok(None) => Verdict::Answer(None),
            Err(error) => Verdict::Answer(Some(error)),
        }
    }

    /// The form in which an answer to `command` without content is sent; see [`ReplyForm`].
    pub(super) fn form_of_answer(&self, command: u16) -> ReplyForm {
        match command {
            command::READ if self.negotiated.structured_replies => ReplyForm::Chunks,
            command::BLOCK_STATUS if self.negotiated.structured_replies => {
                ReplyForm::Status { only_one: false }
            }
            _ => ReplyForm::Plain,
        }
    }

    /// `None`: nothing to do.
    fn task(&self, header: &RequestHeader) -> Result<Option<Task>, ErrorCode> {
        if self.refusing {
            return Err(ErrorCode::Shutdown);
        }
        let (op, form, out_of_range) = self.kind(header)?;
        let end = header.offset.checked_add(u64::from(header.len)).filter(|end| *end <= self.size_bytes);
        let range = header.offset..end.ok_or(out_of_range)?;
        let range = match op {
            Op::Flush if header.offset != 0 || header.len != 0 => return Err(ErrorCode::Invalid),
            Op::BlockStatus if range.is_empty() => return Err(ErrorCode::Invalid),
            Op::Trim => blocks_within(range),
            Op::Read | Op::Write | Op::WriteZeroes { .. } | Op::Flush | Op::BlockStatus => range,
        };
        if range.is_empty() && op != Op::Flush {
            return Ok(None);
        }
        let fua = header.flags & flag::FUA != 0 && !matches!(op, Op::Read | Op::Flush | Op::BlockStatus);
        let (offset, end) = (range.start, range.end);
        Ok(Some(Task { op, cookie: header.cookie, offset, end, fua, form }))
    }

    /// The operation, the form of its reply, and the error of a range that is not within the volume.
    fn kind(&self, header: &RequestHeader) -> Result<(Op, ReplyForm, ErrorCode), ErrorCode> {
        // FUA is valid with every command.
        let only = |allowed: u16| match header.flags & !(allowed | flag::FUA) {
            0 => Ok(()),
            _ => Err(ErrorCode::Invalid),
        };
        match header.command {
            command::READ => {
                only(if self.negotiated.structured_replies { flag::DF } else { 0 })?;
                Ok((Op::Read, self.read_form(header)?, ErrorCode::Invalid))
            }
            command::WRITE => {
                only(0)?;
                Ok((Op::Write, ReplyForm::Plain, ErrorCode::NoSpace))
            }
            command::FLUSH => {
                only(0)?;
                Ok((Op::Flush, ReplyForm::Plain, ErrorCode::Invalid))
            }
            command::TRIM => {
                only(0)?;
                Ok((Op::Trim, ReplyForm::Plain, ErrorCode::Invalid))
            }
            command::WRITE_ZEROES => {
                only(flag::NO_HOLE | flag::FAST_ZERO)?;
                if header.flags & flag::FAST_ZERO != 0 {
                    // Whether zeroing is faster than writing depends on every replica's filesystem: never promised.
                    return Err(ErrorCode::NotSupported);
                }
                let may_punch = header.flags & flag::NO_HOLE == 0;
                Ok((Op::WriteZeroes { may_punch }, ReplyForm::Plain, ErrorCode::NoSpace))
            }
            command::BLOCK_STATUS if self.negotiated.base_allocation => {
                only(flag::REQ_ONE)?;
                let only_one = header.flags & flag::REQ_ONE != 0;
                Ok((Op::BlockStatus, ReplyForm::Status { only_one }, ErrorCode::Invalid))
            }
            _ => Err(ErrorCode::Invalid),
        }
    }

    fn read_form(&self, header: &RequestHeader) -> Result<ReplyForm, ErrorCode> {
        if header.len > proto::REQUEST_BYTES_MAX {
            return Err(ErrorCode::Invalid);
        }
        let gathered = header.len <= self.gather_bytes_max;
        match (self.negotiated.structured_replies, header.flags & flag::DF != 0) {
            (true, false) => Ok(ReplyForm::Chunks),
            (true, true) if gathered => Ok(ReplyForm::Ordered { chunk: true, early: false }),
            // The specification lets a server refuse an unfragmented read of more than 64 KiB.
            (true, true) => Err(ErrorCode::Overflow),
            (false, _) => Ok(ReplyForm::Ordered { chunk: false, early: !gathered }),
        }
    }
}
