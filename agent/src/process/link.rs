//! Reaching one instance over its control socket, and making sure that it is the one that is meant.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
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

/// A connection on which nothing comes is tried so often: what is said of an instance is never older than this and
/// two times [`ANSWER_WITHIN`], after which it is said not to answer. An idle instance wakes for it.
const STILL_THERE_EVERY: Duration = Duration::from_secs(20);

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

/// Connects to the socket, where a process of this user listens, and the one that is expected where that is known: a socket
/// that another process put there is told nothing. Returns the process, too.
///
/// # Errors
/// Why no process answers there, or which one does.
pub async fn connect(socket: &Path, pid: Option<i32>) -> Result<(Client, i32), String> {
    let path: PathBuf = socket.to_owned();
    let found = Arc::new(AtomicI32::new(0));
    let peer = Arc::clone(&found);
    // Every connection is looked at: a channel makes another where one breaks.
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (path, peer) = (path.clone(), Arc::clone(&peer));
        async move {
            let stream = UnixStream::connect(path).await?;
            let credentials = stream.peer_cred()?;
            let listens = (credentials.uid(), credentials.pid().unwrap_or_default());
            let expected = (nix::unistd::geteuid().as_raw(), pid);
            verify_peer(listens, expected).map_err(io::Error::other)?;
            peer.store(listens.1, Ordering::Relaxed);
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The address is never resolved; HTTP/2 just wants one.
    let endpoint = Endpoint::from_static("http://instance")
        .connect_timeout(ANSWER_WITHIN)
        .http2_keep_alive_interval(STILL_THERE_EVERY)
        .keep_alive_timeout(ANSWER_WITHIN)
        .keep_alive_while_idle(true);
    match tokio::time::timeout(ANSWER_WITHIN, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok((InstanceClient::new(channel), found.load(Ordering::Relaxed))),
        Ok(Err(error)) => Err(format!("connect to {}: {}", socket.display(), chain(&error))),
        Err(_) => Err(format!("connect to {}: no answer within {ANSWER_WITHIN:?}", socket.display())),
    }
}

/// Who listens, by the kernel's word: user and process.
fn verify_peer(found: (u32, i32), expected: (u32, Option<i32>)) -> Result<(), String> {
    let ((found_user, found_pid), (user, pid)) = (found, expected);
    if found_user != user {
        return Err(format!(
            "another user listens there: expected user {user}, found {found_user} (process {found_pid})"
        ));
    }
    match pid {
        Some(pid) if pid != found_pid => {
            Err(format!("another process listens there: expected process {pid}, found {found_pid}"))
        }
        _ => Ok(()),
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

    #[test]
    fn socket_of_another_user_or_process_is_not_spoken_to() {
        for pid in [None, Some(9)] {
            assert_eq!(verify_peer((7, 9), (7, pid)), Ok(()));
            assert!(verify_peer((8, 9), (7, pid)).unwrap_err().contains("expected user 7, found 8"));
        }
        assert!(verify_peer((7, 9), (7, Some(10))).unwrap_err().contains("expected process 10, found 9"));
    }

    #[tokio::test]
    async fn socket_that_another_process_put_there_gets_no_byte() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let said = connect(&path, Some(own + 1)).await.unwrap_err();
        assert!(said.contains("another process listens there"), "{said}");
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut told = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut told).await.unwrap();
        assert!(told.is_empty(), "{told:?}");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_says_why() {
        let said = connect(Path::new("/nonexistent/x.sock"), None).await.unwrap_err();
        assert!(said.contains("/nonexistent/x.sock") && said.contains("No such file"), "{said}");
    }
}
