//! Speaking to etcd: which server, who we are, and for how long.
//!
//! One server is used at a time, the next one when it fails. What only asks is asked again there, within one limit for
//! the whole call; what changes something is sent once, because an answer that is missing says nothing about what was
//! done. Messages name the servers that were tried.

use std::error::Error as _;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_dataplane::io::{Patience, bound_silence};
use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::pb::etcd::auth_client::AuthClient;
use holdfast_proto::pb::etcd::kv_client::KvClient;
use holdfast_proto::pb::etcd::lease_client::LeaseClient;
use holdfast_proto::pb::etcd::watch_client::WatchClient;
use holdfast_proto::status::ErrorKind;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::codegen::http::Uri;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::config::EtcdHome;
use crate::error::Error;

/// A server elects another leader in one to two seconds, and until then answers nothing.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(2);
/// Long enough for three servers of which one is left.
const CALL_WITHIN: Duration = Duration::from_secs(6);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A server that does not answer this is not there, whatever its connection says. etcd refuses more than one in 5 s.
const PING_EVERY: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(3);
/// Far more than any number of records this is built for; bounds what a foreign answer can make us read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The servers of one etcd.
#[derive(Debug)]
pub(super) struct Client {
    home: EtcdHome,
    tls: Option<ClientTlsConfig>,
    /// The server whose turn it is.
    next: AtomicUsize,
    current: Mutex<Option<Arc<Connection>>>,
}

/// A connection to one server.
#[derive(Debug)]
pub(super) struct Connection {
    server: String,
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

/// Why one server did not do it.
#[derive(Debug)]
pub(super) struct Failure {
    server: String,
    why: String,
    kind: ErrorKind,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.why)
    }
}

/// As tonic connects by itself, with a bound on the server's silence ([`bound_silence`]).
fn connector() -> impl tower::Service<
    Uri,
    Response = TokioIo<TcpStream>,
    Error = Box<dyn std::error::Error + Send + Sync>,
    Future: Send,
> + Clone
+ Send {
    let mut http = HttpConnector::new();
    // TLS is the channel's business.
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_WITHIN));
    tower::service_fn(move |server: Uri| {
        let mut http = http.clone();
        async move {
            let stream = tower::Service::call(&mut http, server).await?;
            bound_silence(stream.inner(), Patience::Usual)?;
            Ok(stream)
        }
    })
}

impl Client {
    /// Reads the certificates; connects to nothing yet. Blocking.
    ///
    /// # Errors
    /// When a file of the configuration cannot be read.
    pub(super) fn new(home: EtcdHome) -> Result<Self, Error> {
        let tls = match &home.ca {
            None => None,
            Some(ca) => {
                let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
                if let Some((certificate, key)) = &home.certificate {
                    tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
                }
                Some(tls)
            }
        };
        Ok(Self { home, tls, next: AtomicUsize::new(0), current: Mutex::new(None) })
    }

    /// For messages.
    pub(super) fn servers(&self) -> String {
        self.home.place.endpoints.join(", ")
    }

    /// Asks what may be asked twice, of one server after the other.
    pub(super) async fn ask(
        &self,
        operation: &str,
        request: &pb::TxnRequest,
    ) -> Result<pb::TxnResponse, Error> {
        let until = Instant::now() + CALL_WITHIN;
        let mut failures: Vec<Failure> = Vec::new();
        // Twice round: a connection may have died unnoticed, and a token may have run out.
        for _ in 0..self.home.place.endpoints.len() * 2 {
            let answer = match timeout_at(until, self.send_once(request)).await {
                Ok(answer) => answer,
                Err(_) => break,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let useless = matches!(failure.kind, ErrorKind::Denied | ErrorKind::Invalid);
                    let again = failures.iter().any(|before| before.server == failure.server);
                    failures.retain(|before| before.server != failure.server);
                    failures.push(failure);
                    if useless && again {
                        break;
                    }
                }
            }
        }
        Err(self.error(operation, &failures))
    }

    /// Sends a change, once. An error says nothing about whether it was done.
    pub(super) async fn change(
        &self,
        operation: &str,
        request: &pb::TxnRequest,
    ) -> Result<pb::TxnResponse, Error> {
        match timeout(CALL_WITHIN, self.send_once(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(self.error(operation, &[failure])),
            Err(_) => Err(self.error(operation, &[])),
        }
    }

    async fn send_once(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
        let connection = self.connection().await?;
        let mut kv = KvClient::new(connection.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let call = kv.txn(connection.request(request.clone()));
        self.finish(&connection, timeout(ATTEMPT_WITHIN, call).await)
    }

    /// A lease of so many seconds.
    pub(super) async fn grant(&self, seconds: i64) -> Result<i64, Failure> {
        let connection = self.connection().await?;
        let mut leases = LeaseClient::new(connection.channel.clone());
        let call = leases.lease_grant(connection.request(pb::LeaseGrantRequest { ttl: seconds, id: 0 }));
        Ok(self.finish(&connection, timeout(ATTEMPT_WITHIN, call).await)?.id)
    }

    /// Lets a lease begin again. `false`: there is none any more.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<bool, Failure> {
        let connection = self.connection().await?;
        let mut leases = LeaseClient::new(connection.channel.clone());
        let once = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
        let call = async {
            let mut answers = leases.lease_keep_alive(connection.request(once)).await?.into_inner();
            let answer = answers.message().await?;
            answer.map(tonic::Response::new).ok_or_else(|| Status::unavailable("it closed the stream"))
        };
        Ok(self.finish(&connection, timeout(ATTEMPT_WITHIN, call).await)?.ttl > 0)
    }

    /// A stream of what changes in the ranges. It ends with an error when its server fails.
    pub(super) async fn watch(
        &self,
        ranges: Vec<pb::WatchCreateRequest>,
    ) -> Result<(Arc<Connection>, tonic::Streaming<pb::WatchResponse>), Failure> {
        let connection = self.connection().await?;
        let requests = ranges.into_iter().map(|range| pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(range)),
        });
        // The stream of requests stays open: its end would end the watch.
        let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
        let mut watch =
            WatchClient::new(connection.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let call = watch.watch(connection.request(requests));
        let stream = self.finish(&connection, timeout(ATTEMPT_WITHIN, call).await)?;
        Ok((connection, stream))
    }

    /// Turns an answer round; a failure makes it the next server's turn.
    fn finish<T>(
        &self,
        connection: &Arc<Connection>,
        answer: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failure> {
        let failure = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => connection.failure(&status),
            Err(_) => Failure {
                server: connection.server.clone(),
                why: format!("no answer within {} s", ATTEMPT_WITHIN.as_secs()),
                kind: ErrorKind::TimedOut,
            },
        };
        self.drop_connection(connection);
        Err(failure)
    }

    /// Not this server again before the others.
    pub(super) fn drop_connection(&self, connection: &Arc<Connection>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *current = None;
            self.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, Failure> {
        if let Some(connection) = &*self.current.lock() {
            return Ok(Arc::clone(connection));
        }
        let servers = &self.home.place.endpoints;
        let turn = self.next.load(Ordering::Relaxed);
        let server = servers.get(turn % servers.len().max(1)).cloned().unwrap_or_default();
        let connected = timeout(ATTEMPT_WITHIN, self.connect(&server)).await;
        let why = match connected {
            Ok(Ok(connection)) => {
                let connection = Arc::new(connection);
                *self.current.lock() = Some(Arc::clone(&connection));
                return Ok(connection);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure {
                server,
                why: format!("no connection within {} s", ATTEMPT_WITHIN.as_secs()),
                kind: ErrorKind::TimedOut,
            },
        };
        // Of callers that failed together, one moves on.
        let _ = self.next.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
        Err(why)
    }

    async fn connect(&self, server: &str) -> Result<Connection, Failure> {
        let failed = |why: String, kind| Failure { server: server.to_owned(), why, kind };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
            .map_err(|e| failed(e.to_string(), ErrorKind::Invalid))?
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        if let Some(tls) = &self.tls {
            endpoint = endpoint
                .tls_config(tls.clone())
                .map_err(|e| failed(format!("TLS: {}", root_cause(&e)), ErrorKind::Invalid))?;
        }
        let channel = endpoint
            .connect_with_connector(connector())
            .await
            .map_err(|e| failed(root_cause(&e), ErrorKind::Unreachable))?;
        let token = match &self.home.user {
            None => None,
            Some((user, file)) => Some(self.log_in(server, &channel, user, file).await?),
        };
        Ok(Connection { server: server.to_owned(), channel, token })
    }

    async fn log_in(
        &self,
        server: &str,
        channel: &Channel,
        user: &str,
        file: &Path,
    ) -> Result<AsciiMetadataValue, Failure> {
        let failed = |why: String| Failure { server: server.to_owned(), why, kind: ErrorKind::Denied };
        // Read each time, so that a password can be changed; it is one line.
        let path = file.to_owned();
        let password = tokio::task::spawn_blocking(move || PrivateFile::settings().read_all(path))
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
            .map_err(|e| failed(format!("the password file {}: {e}", file.display())))?;
        let request = pb::AuthenticateRequest {
            name: user.to_owned(),
            password: password.trim_end_matches(['\r', '\n']).to_owned(),
        };
        let answer = AuthClient::new(channel.clone()).authenticate(request).await.map_err(|status| {
            failed(format!("log in as {user} with the password in {}: {}", file.display(), status.message()))
        })?;
        let token = answer.into_inner().token;
        token.parse().map_err(|_| failed(format!("log in as {user}: the token makes no sense")))
    }

    /// What a person is told.
    pub(super) fn error(&self, operation: &str, failures: &[Failure]) -> Error {
        let kind = failures.last().map_or(ErrorKind::TimedOut, |failure| failure.kind);
        let tried = if failures.is_empty() {
            format!("{}: no answer within {} s", self.servers(), CALL_WITHIN.as_secs())
        } else {
            failures.iter().map(Failure::to_string).collect::<Vec<_>>().join("; ")
        };
        let remedy = match kind {
            ErrorKind::Denied => "check registry_user, registry_password_file and what that user may do",
            ErrorKind::Invalid => "check the registry_ settings of the agent",
            // One that wants a certificate and sees none closes the connection without a word.
            _ if self.tls.is_some() && self.home.certificate.is_none() => {
                "check that etcd runs there and has a leader, and whether it asks for a certificate: registry_cert and \
                 registry_key"
            }
            _ => {
                "check that etcd runs there, has a leader (etcdctl endpoint status), and can be reached from this \
                 node"
            }
        };
        Error::new(kind, format!("{operation} in etcd: {tried} ({remedy})"))
    }
}

impl Connection {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A server that has lost its leader says so, instead of keeping a stream that nothing comes from.
        request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// What a status means here.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        let kind = match status.code() {
            // An invalid argument of ours is a user that we did not name, where etcd wants one.
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => ErrorKind::Denied,
            Code::DeadlineExceeded | Code::Cancelled => ErrorKind::TimedOut,
            Code::Unavailable => ErrorKind::Unreachable,
            _ => ErrorKind::Failed,
        };
        let why = match status.source() {
            Some(source) => root_cause(source),
            None => status.message().to_owned(),
        };
        Failure { server: self.server.clone(), why, kind }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    PrivateFile::settings().read_all(path).map_err(Error::io("read", path))
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
