//! The one place where an error becomes a gRPC status.

use holdfast_proto::status::ErrorKind;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::{Code, Status};

use crate::error::Error;

/// Also logs what a person should see: refusals and typing errors are the caller's business, failures are ours.
pub(super) fn status(error: Error) -> Status {
    let kind = error.kind();
    let message = error.to_string();
    if kind == ErrorKind::Failed {
        tracing::warn!(error = %message, "a request failed");
    }
    kind.status(message)
}

/// The whole answer to a call of a service that is not there.
pub(super) fn no_such_service(path: &str) -> Response<Body> {
    let shown: String = path.chars().take(120).collect();
    Status::new(Code::Unimplemented, format!("this agent has no {shown}")).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_the_wire() {
        for kind in [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Refused,
            ErrorKind::Unreachable,
            ErrorKind::TimedOut,
            ErrorKind::Denied,
            ErrorKind::Failed,
        ] {
            let sent = status(Error::new(kind, "why"));
            assert_eq!(ErrorKind::from_code(sent.code()), kind);
            assert_eq!(sent.message(), "why");
        }
    }
}
