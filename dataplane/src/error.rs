//! The one error type of this crate: a kind that callers match on, and a message that says operation, expected and
//! found. Pure parsers have their own, which end up in here.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::convert::InvalidMessage;
use holdfast_proto::status::ErrorKind;

use crate::layout::ReplicaDirError;

/// An instance's exit code when another process holds its directory: there is nothing to restart.
pub const EXIT_HELD: u8 = 20;
/// An instance's exit code when nobody confirmed it in time.
pub const EXIT_NOT_CONFIRMED: u8 = 21;
/// An engine's exit code when every member lost its cache with acknowledged, not flushed writes in it.
pub const EXIT_CACHE_LOST: u8 = 22;
/// An engine's exit code when its volume has no record any more, or one that means another engine.
pub const EXIT_RECORD_MISSING: u8 = 23;

/// An instance's exit code when one of its threads or tasks panicked.
pub const EXIT_PANICKED: u8 = holdfast_log::EXIT_PANICKED;

/// Why something failed. Messages are fragments that fit after "failed to serve: ".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lock of the instance's directory is taken.
    #[error("{path} is locked: another process is this instance; this one ends")]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The agent never made the creation durable.
    #[error("instance {name} was not confirmed within {within:?}; it opened no data and ends")]
    NotConfirmed {
        /// The instance.
        name: String,
        /// How long it waited.
        within: Duration,
    },
    /// The operating system refused.
    #[error("{operation} {path}: {source}")]
    Os {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The caller's message or setting is wrong.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// Of the message.
        field: &'static str,
        /// What would be right.
        expected: String,
        /// What came.
        found: String,
    },
    /// The caller's message does not say what its type needs.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// Not in this state.
    #[error("{operation} is refused: {reason}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Why not.
        reason: String,
    },
    /// The caller named something that does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was named.
        what: String,
    },
    /// A replica's directory cannot be used.
    #[error(transparent)]
    ReplicaDir(#[from] ReplicaDirError),
    /// The ring cannot be used, or failed.
    #[error(transparent)]
    Ring(#[from] crate::io::Error),
    /// An engine that must not go on.
    #[error("{reason}")]
    EngineEnded {
        /// The exit code that tells why.
        exit: u8,
        /// The same for people.
        reason: String,
    },
    /// Something that has no finer kind.
    #[error("{operation}: {reason}")]
    Failed {
        /// What was done.
        operation: &'static str,
        /// Why it failed.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on an operation of the operating system.
    pub fn os(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Os { operation, path, source }
    }

    /// A field that cannot be used.
    pub fn invalid(field: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Invalid { field, expected: expected.to_string(), found: found.to_string() }
    }

    /// For `map_err` on an operation whose error is only a text here.
    pub fn failed<E: ToString>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |e| Self::Failed { operation, reason: e.to_string() }
    }

    /// What it means to a caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Held { .. } => ErrorKind::Conflict,
            Self::NotConfirmed { .. } => ErrorKind::TimedOut,
            Self::Invalid { .. } | Self::Message(_) => ErrorKind::Invalid,
            Self::Refused { .. } => ErrorKind::Refused,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::ReplicaDir(ReplicaDirError::Exists { .. }) => ErrorKind::Conflict,
            Self::ReplicaDir(ReplicaDirError::Missing { .. }) => ErrorKind::NotFound,
            Self::Os { .. }
            | Self::ReplicaDir(_)
            | Self::Ring(_)
            | Self::EngineEnded { .. }
            | Self::Failed { .. } => ErrorKind::Failed,
        }
    }

    /// The exit code of an instance that ends with this.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Held { .. } => EXIT_HELD,
            Self::NotConfirmed { .. } => EXIT_NOT_CONFIRMED,
            Self::EngineEnded { exit, .. } => *exit,
            _ => self.kind().exit_code(),
        }
    }

    /// The same as a gRPC status.
    #[must_use]
    pub fn status(&self) -> tonic::Status {
        self.kind().status(self.to_string())
    }
}
