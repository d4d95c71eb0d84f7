//! The kinds of error that people and programs can tell apart, and the one table from kind to gRPC code and exit
//! code.

use tonic::{Code, Status};

/// What a failure means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// What was named does not exist.
    NotFound,
    /// It exists already, or changed meanwhile.
    Conflict,
    /// Doing it could lose data or hurt a user of it.
    Refused,
    /// Somebody has to confirm it first.
    Unconfirmed,
    /// The other side cannot be reached.
    Unreachable,
    /// It did not happen in time.
    TimedOut,
    /// The other side may not do this.
    Denied,
    /// Anything else.
    Failed,
}

impl ErrorKind {
    /// The gRPC code that carries it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Conflict => Code::AlreadyExists,
            Self::Refused | Self::Unconfirmed => Code::FailedPrecondition,
            Self::Unreachable => Code::Unavailable,
            Self::TimedOut => Code::DeadlineExceeded,
            Self::Denied => Code::PermissionDenied,
            Self::Failed => Code::Internal,
        }
    }
    /// The kind a gRPC code means.
    #[must_use]
    pub fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists | Code::Aborted => Self::Conflict,
            Code::FailedPrecondition => Self::Refused,
            Code::Unavailable => Self::Unreachable,
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::Ok
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Failed,
        }
    }
    /// The exit code of the command line.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Denied => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::TimedOut => 6,
            Self::Refused => 7,
            Self::Unconfirmed => 8,
        }
    }
    /// A gRPC status of this kind.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        Status::new(self.code(), message)
    }
}
