//! The faces of an engine: a consumer's protocol on one side, block requests on the other.
//!
//! A frontend turns what a consumer sends into [`Submit`]s, each a part small enough for one buffer and one wire
//! frame, and turns each part's [`PartResult`] into the consumer's reply. It knows nothing of replicas, generations
//! or files; the engine knows nothing of NBD.
//!
//! What holds for every part:
//! - `Read` and `Write` cover at least 1 and at most [`PART_BYTES_MAX`](crate::io::PART_BYTES_MAX) bytes and never
//!   cross a boundary of that size; they need not be aligned.
//! - `Trim` and `WriteZeroes` start and end on 4096-byte blocks and are otherwise as long as the consumer asked (up
//!   to 64 MiB).
//! - `BlockStatus` covers just what the consumer asked, aligned or not. `Flush` has offset and length 0.
//! - Every part lies within the volume, and its result is reported exactly once.

mod counters;
pub mod nbd;

use std::fmt;

pub use counters::{IoCounters, IoKind, KindCounters, LATENCY_BUCKETS};

use crate::io::Buf;

/// What a part of a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Answered with [`PartResult::Data`].
    Read,
    /// Carries a buffer; answered with [`PartResult::Done`].
    Write,
    /// All writes that were answered before it was submitted are made durable.
    Flush,
    /// The range's content is no longer needed.
    Trim,
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// Space may be given back; otherwise it stays allocated.
        may_punch: bool,
    },
    /// Answered with [`PartResult::Extents`].
    BlockStatus,
}

/// One part of a consumer's request; the module says what holds for each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRequest {
    /// What to do.
    pub kind: BlockKind,
    /// First byte of the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Answer only once the part is on stable storage.
    pub fua: bool,
}

/// A part on its way to the engine.
#[derive(Debug)]
pub struct Submit {
    /// Names the part in its result; unique among this consumer's parts in flight, then used again.
    pub part: u32,
    /// What to do.
    pub request: BlockRequest,
    /// Covers the 4096-aligned range around the request. For a `Write` with the payload at `offset % 4096`; what stands
    /// around the payload is unspecified (the engine fills it in under its lock). For a `Read`, room for what is read.
    /// `None` for all else.
    pub buf: Option<Buf>,
}

/// One run of a volume's allocation map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// False: not allocated, reads as zeros.
    pub allocated: bool,
}

/// How a part ended.
#[derive(Debug)]
pub enum PartResult<'a> {
    /// A `Write`, `Flush`, `Trim` or `WriteZeroes` is done.
    Done,
    /// A `Read` is done; the buffer covers the 4096-aligned range around it.
    Data(Buf),
    /// A `BlockStatus` is done: consecutive runs from the request's offset on. They may end early or reach beyond
    /// the request; empty means unknown, which counts as allocated.
    Extents(&'a [Extent]),
    /// The part failed.
    Error(BlockError),
}

/// Why a part failed, as far as a consumer can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// The storage failed.
    Io,
    /// No space is left.
    NoSpace,
    /// The request makes no sense for this volume.
    Invalid,
    /// The engine is about to end and takes nothing more.
    Shutdown,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "input/output error",
            Self::NoSpace => "no space left",
            Self::Invalid => "invalid request",
            Self::Shutdown => "shutting down",
        })
    }
}

impl std::error::Error for BlockError {}
