//! Taking NBD clients: listening, their handshakes, and handing their sockets to the data thread.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::connect::Task;
use super::frontends::CLIENTS;
use super::message::{Command, DataHandle, NewClient};
use crate::control::bound::Bound;
use crate::control::lobby::Lobby;
use crate::control::{server, tcp};
use crate::core::seats::{Seats, Source};
use crate::error::Error;
use crate::frontend::nbd::{ExportInfo, negotiate};

/// Handshakes at once, over the unix socket and over TCP each. The next client gets the place of the oldest that is not
/// done, of the host that has most of them.
const HANDSHAKES_MAX: usize = 64;
/// How long a client may take to say what it wants.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A connection that could not be accepted (no descriptors left) is tried again after this.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(200);
/// A TCP address that is taken is tried again after this.
const BIND_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Where clients come in. Dropped: no new ones do.
#[derive(Debug)]
pub(super) struct Listeners {
    socket: PathBuf,
    _tasks: Vec<Task>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // The instance's lock is held: this is our socket file.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What the handshakes at one listener need.
struct Door {
    export: ExportInfo,
    data: DataHandle,
    lobby: Lobby,
}

impl Door {
    fn new(export: ExportInfo, data: DataHandle) -> Rc<Self> {
        Rc::new(Self { export, data, lobby: Lobby::new(Seats::new(HANDSHAKES_MAX)) })
    }
}

/// Listens on the unix socket and, where one is given, at the TCP address; `tcp` hears of the latter's fate.
///
/// # Errors
/// When the unix socket cannot be made.
pub(super) fn open(
    socket: PathBuf,
    address: Option<SocketAddr>,
    export: ExportInfo,
    data: DataHandle,
    tcp: impl Fn(Result<SocketAddr, String>) + 'static,
) -> Result<Listeners, Error> {
    let listener = server::listen(&socket)?;
    tracing::info!(socket = %socket.display(), "NBD clients may come");
    let listener = Bound::new(listener, socket.clone());
    // Doors of their own: what happens at one does not delay the other.
    let mut tasks = vec![Task::spawn(unix(listener, Door::new(export.clone(), data.clone())))];
    if let Some(address) = address {
        tasks.push(Task::spawn(serve_tcp(address, Door::new(export, data), tcp)));
    }
    Ok(Listeners { socket, _tasks: tasks })
}

async fn unix(mut listener: Bound, door: Rc<Door>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let into_fd = |stream: tokio::net::UnixStream| stream.into_std().map(OwnedFd::from);
                // A client without credentials has gone already.
                let Ok(peer) = stream.peer_cred() else { continue };
                receive(stream, into_fd, Source::User(peer.uid()), &door);
            }
            Err(e) => accept_failed(&e).await,
        }
    }
}

async fn serve_tcp(
    address: SocketAddr,
    door: Rc<Door>,
    report: impl Fn(Result<SocketAddr, String>) + 'static,
) {
    let listener = loop {
        match tcp::listen(address).await {
            Ok(listener) => break listener,
            Err(e) => {
                report(Err(format!("NBD over TCP: listen at {address}: {e}")));
                tokio::time::sleep(BIND_RETRY_AFTER).await;
            }
        }
    };
    let address = listener.local_addr().unwrap_or(address);
    tracing::warn!(%address, "NBD over TCP has no authentication: whoever reaches this address can read and write");
    report(Ok(address));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Without it small replies of the handshake may wait; no more than that is lost.
                let _ = stream.set_nodelay(true);
                let into_fd = |stream: tokio::net::TcpStream| stream.into_std().map(OwnedFd::from);
                receive(stream, into_fd, Source::of_address(peer.ip()), &door);
            }
            Err(e) => accept_failed(&e).await,
        }
    }
}

async fn accept_failed(e: &io::Error) {
    tracing::warn!(target: CLIENTS, "accept an NBD client: {e}");
    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
}

/// Shakes hands in a task of its own.
fn receive<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    mut stream: S,
    into_fd: impl FnOnce(S) -> io::Result<OwnedFd> + 'static,
    source: Source,
    door: &Rc<Door>,
) {
    // A client that has shaken hands has no seat here any more, so there is always one for the next.
    let Some(mut ticket) = door.lobby.arrive(source) else { return };
    let door = Rc::clone(door);
    tokio::task::spawn_local(async move {
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_WITHIN, negotiate(&mut stream, &door.export)) => shaken,
            () = ticket.given_away() => {
                return tracing::debug!("an NBD client gave way to another before its handshake was done");
            }
        };
        let refused: &dyn fmt::Display = match &shaken {
            Ok(Ok(Some(negotiated))) => match into_fd(stream) {
                Ok(socket) => {
                    let client = NewClient { socket, negotiated: *negotiated, source };
                    return door.data.tell(Command::Client(client));
                }
                Err(e) => return tracing::warn!(target: CLIENTS, "an NBD client is dropped: {e}"),
            },
            Ok(Ok(None)) => return,
            Ok(Err(e)) => e,
            Err(_) => &"its handshake took too long",
        };
        tracing::warn!(target: CLIENTS, "an NBD client is dropped: {refused}");
    });
}
