//! Reaching one instance over its control socket, and making sure that it is the one that is meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::ids::{BootId, InstanceUuid};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::pb::instance::instance_client::InstanceClient;
use holdfast_proto::{INSTANCE_PROTOCOL_MAX, INSTANCE_PROTOCOL_MIN};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::core::instance::InstanceName;
use crate::store::instances::ProcessId;

/// An instance answers a short question from memory; one that takes longer is not well.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A connection to an instance.
pub type Client = InstanceClient<Channel>;

/// Who must answer.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Its name, which also says its kind.
    pub name: InstanceName,
    /// Its creation.
    pub uuid: InstanceUuid,
    /// This boot: nothing survives another one.
    pub boot_id: BootId,
    /// Its process, where it is known.
    pub pid: Option<i32>,
}

/// Connects to the socket.
///
/// # Errors
/// Why nobody answers there.
pub async fn connect(socket: &Path) -> Result<Client, String> {
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never resolved; HTTP/2 just wants one.
    let endpoint = Endpoint::from_static("http://instance").connect_timeout(ANSWER_WITHIN);
    match tokio::time::timeout(ANSWER_WITHIN, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(InstanceClient::new(channel)),
        Ok(Err(error)) => Err(format!("connect to {}: {}", socket.display(), chain(&error))),
        Err(_) => Err(format!("connect to {}: no answer within {ANSWER_WITHIN:?}", socket.display())),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}

/// Asks who is there and verifies it. The process is verified further by whoever opens its pidfd.
///
/// # Errors
/// Expected and found.
pub async fn hello(client: &mut Client, expected: &Expected) -> Result<(pb::HelloReply, ProcessId), String> {
    let request =
        pb::HelloRequest { protocol_min: INSTANCE_PROTOCOL_MIN, protocol_max: INSTANCE_PROTOCOL_MAX };
    let reply = within(client.hello(request)).await.map_err(|e| format!("hello: {e}"))?;
    let process = verify(&reply, expected)?;
    Ok((reply, process))
}

fn verify(reply: &pb::HelloReply, expected: &Expected) -> Result<ProcessId, String> {
    let differs = |what: &str, wanted: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(format!("another {what} answers on its control socket: expected {wanted}, found {found}"))
    };
    if !(INSTANCE_PROTOCOL_MIN..=INSTANCE_PROTOCOL_MAX).contains(&reply.protocol) {
        return Err(format!(
            "it speaks no common protocol: expected {INSTANCE_PROTOCOL_MIN} to {INSTANCE_PROTOCOL_MAX}, found {}",
            reply.protocol
        ));
    }
    if reply.uuid != expected.uuid.to_string() {
        return differs("creation", &expected.uuid, &reply.uuid);
    }
    if reply.name != expected.name.to_string() {
        return differs("instance", &expected.name, &reply.name);
    }
    if reply.kind != expected.name.kind().as_str() {
        return differs("kind", &expected.name.kind().as_str(), &reply.kind);
    }
    if reply.boot_id != expected.boot_id.to_string() {
        return differs("boot", &expected.boot_id, &reply.boot_id);
    }
    if let Some(pid) = expected.pid.filter(|pid| *pid != reply.pid) {
        return differs("process", &pid, &reply.pid);
    }
    Ok(ProcessId { pid: reply.pid, start_time_ticks: reply.start_time_ticks })
}

/// One short call.
///
/// # Errors
/// The status's message, or that there was no answer.
pub async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    within_time(ANSWER_WITHIN, call).await
}

/// One call with a deadline of its own.
///
/// # Errors
/// The status's message, or that there was no answer.
pub async fn within_time<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {deadline:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            name: "demo.r1".parse().unwrap(),
            uuid: InstanceUuid::random(),
            boot_id: BootId::random(),
            pid: Some(7),
        }
    }

    fn right(expected: &Expected) -> pb::HelloReply {
        pb::HelloReply {
            protocol: INSTANCE_PROTOCOL_MAX,
            uuid: expected.uuid.to_string(),
            name: "demo.r1".into(),
            kind: "replica".into(),
            boot_id: expected.boot_id.to_string(),
            pid: 7,
            start_time_ticks: 9,
            ..Default::default()
        }
    }

    #[test]
    fn only_the_expected_instance_is_accepted() {
        let expected = expected();
        assert_eq!(verify(&right(&expected), &expected), Ok(ProcessId { pid: 7, start_time_ticks: 9 }));
        let wrong: [fn(&mut pb::HelloReply); 7] = [
            |r| r.protocol = 0,
            |r| r.protocol = INSTANCE_PROTOCOL_MAX + 1,
            |r| r.uuid = InstanceUuid::random().to_string(),
            |r| r.name = "demo.r2".into(),
            |r| r.kind = "engine".into(),
            |r| r.boot_id = BootId::random().to_string(),
            |r| r.pid = 8,
        ];
        for change in wrong {
            let mut reply = right(&expected);
            change(&mut reply);
            assert!(verify(&reply, &expected).unwrap_err().contains("expected"), "{reply:?}");
        }
        let unknown_pid = Expected { pid: None, ..expected.clone() };
        assert!(verify(&right(&expected), &unknown_pid).is_ok());
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_says_why() {
        let said = connect(Path::new("/nonexistent/x.sock")).await.unwrap_err();
        assert!(said.contains("/nonexistent/x.sock") && said.contains("No such file"), "{said}");
    }
}
