//! A history of block I/O, and whether a device could have given it.
//!
//! Clients write **cells**: ranges of bytes that are always written whole, each with content that names its write
//! ([`stamp`]). What was sent and what was answered is put in one order ([`recorder`]); [`mod@check`] then decides for
//! each cell whether it behaved as one register.
//!
//! The order is that of a counter taken before a request is sent and after its answer is there, so it may only be
//! wider than the truth: two operations that do not overlap in the history did not overlap.

pub mod check;
pub mod recorder;
pub mod stamp;

#[cfg(test)]
mod check_tests;

pub use check::{Violation, check};
pub use recorder::{Log, Recorder};
pub use stamp::Value;

/// A cell, by the byte it starts at.
pub type CellAt = u64;
/// Names an operation within its history.
pub type OpId = u64;

/// What an operation is, for one cell or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The cells get this stamp. `fua`: the answer means that it is on stable storage.
    Write {
        /// Unique to the write.
        tag: u64,
        /// On stable storage with the answer.
        fua: bool,
    },
    /// The cells read as zeros: trim and write-zeroes alike.
    Zero,
    /// The cells are read.
    Read,
    /// What was answered before this was sent is on stable storage once this is answered. It names no cells.
    Flush,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As asked; of a read, the values in the order of its cells.
    Done(Vec<Value>),
    /// By an error, or by the loss of the connection: it may have taken effect, may still, or never will.
    Unknown,
}

/// One entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An operation was about to be sent.
    Invoke {
        /// Which.
        op: OpId,
        /// What.
        kind: Kind,
        /// Where.
        cells: Vec<CellAt>,
    },
    /// Its answer, or that there will be none, was noticed.
    Return {
        /// Which.
        op: OpId,
        /// How.
        end: End,
    },
    /// Every cache was lost: of what no flush covered, any part may be gone. No operation is under way.
    PowerCut,
}
