//! The agent library's error: what was attempted, what stood in the way, and where there is one, the remedy.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_proto::status::ErrorKind;

/// Why the agent did not do what it was asked to do. Each message names cause and remedy, and fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A failure of a known kind.
    #[error("{message}")]
    Told {
        /// What it means to the caller.
        kind: ErrorKind,
        /// Cause and remedy, for people.
        message: String,
    },
    /// The operating system refused.
    #[error("{operation} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A replica directory cannot be used.
    #[error(transparent)]
    ReplicaDir(#[from] holdfast_dataplane::layout::ReplicaDirError),
}

impl Error {
    /// What it means to the caller; one table turns it into a gRPC code or an exit code.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Told { kind, .. } => *kind,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            Self::Io { .. } | Self::ReplicaDir(_) => ErrorKind::Failed,
        }
    }

    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Told { kind, message: message.into() }
    }
    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
    /// What was named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
    /// It exists already, or changed meanwhile.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }
    /// Doing it could lose data or hurt a user of it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }
    /// Anything else.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }
    /// For `map_err`: `operation` on `path` was refused by the operating system.
    pub fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// What a person can do about the causes that come up at start.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            " (run as the owner of this path, or choose another with --data-dir, --bin-dir or --listen)"
        }
        io::ErrorKind::StorageFull => " (free some space on this file system)",
        io::ErrorKind::ReadOnlyFilesystem => " (mount it read-write, or choose another --data-dir)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_from_the_system_names_path_and_remedy() {
        let error =
            Error::io("create", "/var/lib/holdfast")(io::Error::from(io::ErrorKind::PermissionDenied));
        let said = error.to_string();
        assert!(said.contains("create /var/lib/holdfast") && said.contains("--data-dir"), "{said}");
        assert_eq!(error.kind(), ErrorKind::Failed);
    }
}
