//! Finding the agent and asking it: every failure says which socket, and what starts an agent there.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::pb::agent::claims_client::ClaimsClient;
use holdfast_proto::pb::agent::instances_client::InstancesClient;
use holdfast_proto::pb::agent::node_client::NodeClient;
use holdfast_proto::pb::agent::orphans_client::OrphansClient;
use holdfast_proto::pb::agent::registry_client::RegistryClient;
use holdfast_proto::pb::agent::trash_client::TrashClient;
use holdfast_proto::pb::agent::volumes_client::VolumesClient;
use holdfast_proto::status::ErrorKind;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::Global;
use super::quickstart;
use crate::complaint::Complaint;
use crate::config::{LISTEN, absolute};
use crate::runtime_dir;

/// Longer than any answer takes (a detach drains first); a stopped agent must not hold a script for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// A connection to one agent.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) socket: PathBuf,
    channel: Channel,
}

impl Client {
    /// The agent that was named, or the first of the two likely sockets that answers.
    pub(super) async fn connect(global: &Global) -> Result<Self, Complaint> {
        let candidates = match &global.agent {
            Some(named) => vec![here(named)],
            None => vec![PathBuf::from(LISTEN), quickstart_socket()],
        };
        let mut tried = Vec::new();
        for socket in candidates {
            match Self::open(&socket).await {
                Ok(client) => return Ok(client),
                Err(error) => tried.push((socket, error)),
            }
        }
        Err(unreachable(&tried, global.agent.is_some()))
    }

    /// The agent that listens there.
    pub(super) async fn open(socket: &Path) -> io::Result<Self> {
        // Tried by hand first: the channel would hide why it failed.
        drop(UnixStream::connect(socket).await?);
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is a formality of HTTP; the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://agent.invalid");
        let channel = endpoint.connect_with_connector(connector).await.map_err(io::Error::other)?;
        Ok(Self { socket: socket.to_owned(), channel })
    }

    pub(super) fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn instances(&self) -> InstancesClient<Channel> {
        InstancesClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn orphans(&self) -> OrphansClient<Channel> {
        OrphansClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn claims(&self) -> ClaimsClient<Channel> {
        ClaimsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn trash(&self) -> TrashClient<Channel> {
        TrashClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    pub(super) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}

/// A node of a thousand instances fits many times over.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One question, one answer; `what` fits after "failed to".
pub(super) async fn ask<T>(
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Complaint> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(told(what, &status)),
        Err(_) => {
            let message = format!("failed to {what}: no answer within {} s", ANSWER_WITHIN.as_secs());
            Err(Complaint::new(ErrorKind::TimedOut, message)
                .remedy("see whether the agent is stopped or its machine overloaded"))
        }
    }
}

/// A status in the words of the command line.
pub(super) fn told(what: &str, status: &Status) -> Complaint {
    let lost = "transport error";
    let text = status.message();
    // A connection that broke arrives as one of several codes, with the transport's own words.
    let broken =
        matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
            && [lost, "h2 protocol error", "connection error", "stream closed", "broken pipe"]
                .iter()
                .any(|words| text.contains(words));
    if broken {
        return Complaint::new(
            ErrorKind::Unreachable,
            format!("failed to {what}: the agent went away ({text})"),
        )
        .remedy("start it again; what it had accepted is in its records");
    }
    let kind = ErrorKind::from_code(status.code());
    // The agent's own messages begin with what it was doing; the transport's do not.
    let same = what.split(' ').next() == text.split(' ').next();
    let message = if same { format!("failed to {text}") } else { format!("failed to {what}: {text}") };
    let complaint = Complaint::new(kind, message);
    match status.code() {
        Code::Unimplemented => {
            complaint.remedy("the agent is older than this program: compare `holdfast version`")
        }
        _ => complaint,
    }
}

fn here(path: &Path) -> PathBuf {
    std::env::current_dir().map_or_else(|_| path.to_owned(), |dir| absolute(&dir, path))
}

/// Where a quickstart in the current directory listens.
fn quickstart_socket() -> PathBuf {
    runtime_dir::path_for(&here(Path::new(quickstart::DATA_DIR))).join(quickstart::SOCKET)
}

fn unreachable(tried: &[(PathBuf, io::Error)], named: bool) -> Complaint {
    let lines: Vec<String> =
        tried.iter().map(|(socket, error)| format!("{}: {}", socket.display(), reason(error))).collect();
    let message = match lines.as_slice() {
        [only] => format!("the agent cannot be reached at {only}"),
        _ => format!("no agent can be reached\n  {}", lines.join("\n  ")),
    };
    let denied = tried.iter().any(|(_, error)| error.kind() == io::ErrorKind::PermissionDenied);
    let remedy = match (denied, named) {
        (true, _) => "run as the agent's user or as root, or join the group holdfast",
        (false, true) => {
            "start one there with `holdfast agent --listen unix:PATH`, or correct --agent or HOLDFAST_AGENT"
        }
        (false, false) => {
            "start one with `holdfast agent` (as a service) or `holdfast quickstart` (in this directory), or say where \
             it listens with --agent unix:PATH or HOLDFAST_AGENT"
        }
    };
    Complaint::new(ErrorKind::Unreachable, message).remedy(remedy)
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(agent: Option<&Path>) -> Global {
        Global { agent: agent.map(Path::to_owned), output: super::super::output::Format::Text }
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_names_socket_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let complaint = Client::connect(&global(Some(&path))).await.unwrap_err();
        assert_eq!(complaint.kind.exit_code(), 5);
        let text = complaint.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("no such socket"), "{text}");
        assert!(text.contains("holdfast agent") && text.contains("HOLDFAST_AGENT"), "{text}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let text = Client::connect(&global(Some(&path))).await.unwrap_err().to_string();
        assert!(text.contains("nobody listens"), "{text}");
    }

    #[test]
    fn without_a_name_both_likely_sockets_are_named() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let tried = [(PathBuf::from(LISTEN), missing()), (PathBuf::from("/x/agent.sock"), missing())];
        let text = unreachable(&tried, false).to_string();
        for words in [LISTEN, "/x/agent.sock", "holdfast agent", "holdfast quickstart", "--agent"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn statuses_keep_their_kind_and_a_broken_connection_is_unreachable() {
        for (status, code) in [
            (Status::not_found("no volume x"), 3),
            (Status::already_exists("x"), 4),
            (Status::failed_precondition("2 clients"), 7),
            (Status::invalid_argument("x"), 2),
            (Status::deadline_exceeded("x"), 6),
            (Status::internal("disk full"), 1),
            (Status::unavailable("x"), 5),
            (Status::unknown("transport error"), 5),
            (Status::unknown("h2 protocol error: error reading a body from connection"), 5),
        ] {
            let complaint = told("create volume x", &status);
            assert_eq!(complaint.kind.exit_code(), code, "{status:?}");
            assert!(complaint.message.starts_with("failed to create volume x: "), "{complaint}");
        }
        let complaint = told("create volume x", &Status::already_exists("create volume x: it is there"));
        assert_eq!(complaint.message, "failed to create volume x: it is there");
    }
}
