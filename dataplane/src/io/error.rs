//! What can go wrong with the ring itself, as opposed to one operation on it.

use nix::errno::Errno;

/// What a caller can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The kernel has no io_uring, or one that lacks what the block path needs.
    Unsupported,
    /// A sysctl or a seccomp filter forbids io_uring.
    Forbidden,
    /// Memory, or the right to lock or map it, ran out.
    NoMemory,
    /// The descriptor handed over is not a stream socket that can be used.
    Socket,
    /// The ring failed while it was in use; the driver cannot go on.
    Ring,
}

/// A failure of the driver: the operation, its cause, and the remedy where there is one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {source}{}", remedy.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    remedy: Option<String>,
    source: Errno,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, operation: &'static str, source: Errno) -> Self {
        Self { kind, operation, remedy: None, source }
    }

    pub(super) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The class of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system's own error number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.source
    }
}
