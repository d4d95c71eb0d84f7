//! The HTTP side: one page, for whoever can reach the address. There is no authentication and no encryption, so the
//! address is loopback unless a person says otherwise.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use holdfast_dataplane::control::lobby::Lobby;
use holdfast_dataplane::core::seats::{Seats, Source};
use holdfast_dataplane::io::{Patience, bound_silence};
use holdfast_proto::status::ErrorKind;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::render::render;
use crate::complaint::Complaint;
use crate::node::NodeHandle;

/// Scrapers at once. A further one gets the place of the oldest, of the host that has most of them: a scrape takes
/// milliseconds, so what is old is not one.
const CONNECTIONS_MAX: usize = 64;
/// Pages that are made at once: each takes a processor.
const PAGES_MAX: usize = 2;
/// A client that has not sent its request by then is closed.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// A page of a full node is written within this, or its reader has gone to sleep.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// After a failure to accept (no descriptor is left, mostly).
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// An address that is listened on, and not served yet.
#[derive(Debug)]
pub struct MetricsListener(TcpListener);

impl MetricsListener {
    /// Takes the address.
    ///
    /// # Errors
    /// Says what stands in the way and the remedy.
    pub fn bind(address: SocketAddr) -> Result<Self, Complaint> {
        let failed = |error: io::Error| {
            let (kind, remedy) = match error.kind() {
                io::ErrorKind::AddrInUse => (
                    ErrorKind::Conflict,
                    format!(
                        "see who listens there with: ss -ltnp 'sport = :{}'; end it, or name another port with --metrics",
                        address.port()
                    ),
                ),
                io::ErrorKind::AddrNotAvailable => (
                    ErrorKind::Invalid,
                    "name an address of this node with --metrics ADDRESS:PORT, or the port alone for loopback".to_owned(),
                ),
                _ => (ErrorKind::Failed, "name another address with --metrics ADDRESS:PORT".to_owned()),
            };
            let message = format!("failed to listen for scrapes of metrics on {address}: {error}");
            Complaint::new(kind, message).remedy(remedy)
        };
        let socket = TcpListener::bind(address).map_err(failed)?;
        bound_silence(&socket, Patience::Usual).map_err(|errno| failed(errno.into()))?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self(socket))
    }
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct MetricsServer(AbortHandle);

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl MetricsServer {
    /// Serves what the node knows.
    ///
    /// # Errors
    /// When the runtime cannot take the socket.
    pub fn start(node: NodeHandle, listener: MetricsListener) -> Result<Self, Complaint> {
        let failed = |error| Complaint::failed(format!("failed to set up the socket for metrics: {error}"));
        let listener = tokio::net::TcpListener::from_std(listener.0).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "whoever reaches this address can read the metrics, which have names of volumes");
        }
        tracing::info!(url = format!("http://{address}/metrics"), "metrics are served");
        Ok(Self(tokio::spawn(accept(node, listener)).abort_handle()))
    }
}

async fn accept(node: NodeHandle, listener: tokio::net::TcpListener) {
    let lobby = Lobby::new(Seats::new(CONNECTIONS_MAX));
    let pages = Arc::new(Semaphore::new(PAGES_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Every peer may be asked to give its seat up, so there is always one.
                let Some(mut ticket) = lobby.arrive(Source::of_address(peer.ip())) else { continue };
                let served = serve(node.clone(), Arc::clone(&pages), stream);
                connections.spawn(async move {
                    tokio::select! {
                        // A client that is slow has no claim on its seat.
                        _ = tokio::time::timeout(PAGE_WITHIN, served) => {}
                        () = ticket.given_away() => tracing::debug!(%peer, "a scraper gave way to another"),
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no scraper is taken");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}

/// One page a connection: scrapes are seconds apart, and a connection that is kept would keep its seat.
async fn serve(node: NodeHandle, pages: Arc<Semaphore>, stream: TcpStream) {
    let answer = service_fn(|request| answer(node.clone(), Arc::clone(&pages), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a scraper went before it had its answer");
    }
}

async fn answer(
    node: NodeHandle,
    pages: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            // Tens of milliseconds for a thousand volumes: not on a thread that others wait for.
            let turn = pages.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let page = render(node.metrics());
                drop(turn);
                page
            })
            .await
        }
        (&Method::GET | &Method::HEAD, _) => {
            return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
        }
        _ => {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(refused);
        }
    };
    Ok(match page {
        Ok(text) => page_of(StatusCode::OK, prometheus_text::CONTENT_TYPE, text),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written; see the agent's log\n")
        }
    })
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    page_of(status, "text/plain; charset=utf-8", text.to_owned())
}

fn page_of(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(Bytes::from(text)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    page
}
