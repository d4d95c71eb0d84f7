//! What the control thread and the data thread say to each other. They share nothing else on the I/O path.

use std::fs::File;
use std::os::fd::OwnedFd;

use crate::core::region_map::RegionMap;
use crate::core::replica::Session;
use crate::error::Error;
use crate::io::ConnId;
use crate::layout::meta::DirtyMap;
use crate::wire::handshake::Terms;
use crate::wire::payload::ViewUpdate;
use crate::wire::{Header, Status};

/// To the data thread.
#[derive(Debug)]
pub(crate) enum ToData {
    /// Serve this engine. Only after [`FromData::Dropped`].
    Attach { socket: OwnedFd, session: Session, terms: Terms },
    /// Drop the engine's connection, if any, and let its I/O end: answered by [`FromData::Dropped`].
    Drop,
    /// Remember changes for these from now on.
    Track(Box<Track>),
    /// The answer to [`FromData::View`].
    AnswerView { from: ViewFrom, status: Status, reopen: bool },
    /// Take no more, finish, flush: answered by [`FromData::Drained`].
    Drain,
    /// End at once.
    Stop,
}

/// What to remember changes for.
#[derive(Debug)]
pub(crate) struct Track {
    /// The dirty maps.
    pub(crate) dirty: Vec<TrackFor>,
}

/// A dirty map.
#[derive(Debug)]
pub(crate) struct TrackFor {
    pub(crate) map: DirtyMap,
    /// It begins anew, or was not known to the data thread: its file and its bits.
    pub(crate) new: Option<(File, RegionMap)>,
}

/// From the data thread.
#[derive(Debug)]
pub(crate) enum FromData {
    /// No connection is left, and all I/O has ended. `clean`: everything is on stable storage.
    Dropped { flush_sequence: u64, clean: bool },
    /// The engine wants a view persisted.
    View { from: ViewFrom, update: Box<ViewUpdate> },
    /// An fsync failed.
    SyncFailed { reason: String },
    /// A session ended by itself, and all of its I/O has.
    SessionEnded { session: Session, clean: bool, reason: String },
    /// Finished; `Err`: what stands in the way of a clean mark.
    Drained(Result<(), String>),
    /// The thread has ended.
    Ended(Result<(), Error>),
}

/// Whom to answer a PersistView.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ViewFrom {
    pub(crate) conn: ConnId,
    pub(crate) header: Header,
}
