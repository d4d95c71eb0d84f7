//! The hot loop's I/O: sockets and files through one io_uring, on one thread.
//!
//! [`Driver`] owns the ring. Calls on it queue work; [`Driver::turn`] submits all of it in one system call, waits, and
//! hands out [`Completion`]s. Buffers come from a [`Pool`] and belong to the ring from the call that hands them over
//! to the completion that gives them back. Nothing here allocates once its tables have grown to the load.
//!
//! It decides nothing: no protocol, no retry of a failed operation, no timer. It is the only place in the crate with
//! unsafe code, and what it offers is safe. The one rule behind every `SAFETY` note: **memory that the kernel may read
//! or write is owned by the driver's tables (or leaked) until the completion has been reaped.**

#![expect(
    unsafe_code,
    reason = "the ring and its memory are reached through raw pointers; this module makes them safe"
)]

mod code;
mod conn;
mod driver;
mod error;
mod file;
mod liveness;
mod memory;
mod pool;
mod probe;
mod ring;
mod rx;
mod slots;
mod spin;
mod tx;
mod wake;

#[cfg(test)]
mod driver_tests;

pub use code::forget_mapped_code;
pub use driver::{Driver, DriverConfig, DriverStats};
pub use error::{Error, ErrorKind};
pub use file::FallocateMode;
pub use liveness::{Patience, bound_silence};
pub use nix::errno::Errno;
pub use pool::{BLOCK, Buf, Need, OWNERS_MAX, Owner, PART_BYTES_MAX, Pool, PoolConfig};
pub use probe::{close_inherited_fds, probe};
pub use spin::{Awaited, SpinMode, Spinner};
pub use wake::Waker;

use slots::Key;

/// Names a connection of a [`Driver`]. An id that outlived its connection is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId(Key);

/// Names a file of a [`Driver`]. An id that outlived its file is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(Key);

/// What [`Driver::turn`] reports.
#[derive(Debug)]
pub enum Completion {
    /// [`Waker::wake`] was called, once or more often.
    Wake,
    /// There are new bytes in [`Driver::received`].
    Received {
        /// The connection.
        conn: ConnId,
    },
    /// The buffer of [`Driver::receive_into`] is full. When the stream has gone on, a `Received` follows.
    ReceivedInto {
        /// The connection.
        conn: ConnId,
        /// The buffer, unshared.
        buf: Buf,
    },
    /// The connection's send queue became empty: the kernel has taken all of it.
    Sent {
        /// The connection.
        conn: ConnId,
    },
    /// The connection is of no more use; its owner calls [`Driver::close`]. Reported once.
    Failed {
        /// The connection.
        conn: ConnId,
        /// Why; `ECONNRESET` also when the peer has closed it in an orderly way.
        error: Errno,
    },
    /// The peer will send no more, and may still read: only of a connection of [`Driver::keep_sending_after_end`].
    /// Reported once, after all that it has sent.
    Ended {
        /// The connection.
        conn: ConnId,
    },
    /// The connection has ended as its owner asked; its id is stale from now on.
    Closed {
        /// The connection.
        conn: ConnId,
    },
    /// A file operation has ended.
    File {
        /// The caller's name for the operation.
        token: u64,
        /// The number of bytes read or written (0 for operations without data). A read is short only at the end of
        /// the file, a write never.
        result: Result<usize, Errno>,
        /// The buffer that was handed over.
        buf: Option<Buf>,
    },
}
