//! The data port: bind, accept, handshake. What comes out has proven the volume's key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::config::ReplicaConfig;
use crate::control::handshake::{Acceptor, Authenticated};
use crate::control::tcp;
use crate::core::seats::{Arrival, SeatId, Seats, Source};
use crate::error::Error;

/// Peers that have not proven the key, at once. Each is gone after its deadline; a newcomer that finds no seat gets that of
/// the oldest one of the source that crowds the port most, so that peers that say nothing keep no engine out.
const UNAUTHENTICATED_MAX: usize = 64;
/// Peers that have and wait for the shell.
pub(super) const AUTHENTICATED_MAX: usize = 16;
/// A connection that could not be accepted (no descriptors left) is tried again after this.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(200);

/// Binds the preferred port, or the next free one.
///
/// # Errors
/// When no port is free, or the address is not this node's.
pub(super) async fn bind(config: &ReplicaConfig) -> Result<(TcpListener, SocketAddr), Error> {
    for port in config.port_candidates() {
        let address = SocketAddr::new(config.bind, port);
        match tcp::listen(address).await {
            Ok(listener) => return Ok((listener, address)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => {
                let reason = format!("{address}: {e}");
                return Err(Error::Failed { operation: "listen for engines", reason });
            }
        }
    }
    let reason = format!(
        "no port of {} to {} is free on {}: widen the range of data ports",
        config.ports.start(),
        config.ports.end(),
        config.bind
    );
    Err(Error::Failed { operation: "listen for engines", reason })
}

/// Handshakes under way. A peer whose seat goes to another is dropped where it is.
#[derive(Debug)]
struct Lobby {
    seats: Seats,
    peers: JoinSet<SeatId>,
    handles: BTreeMap<SeatId, AbortHandle>,
}

impl Lobby {
    fn new() -> Self {
        Self { seats: Seats::new(UNAUTHENTICATED_MAX), peers: JoinSet::new(), handles: BTreeMap::new() }
    }

    /// Begins the handshake with a peer, in place of another where there are too many.
    fn take(
        &mut self,
        (stream, peer): (TcpStream, SocketAddr),
        acceptor: Acceptor,
        engines: mpsc::Sender<Authenticated>,
    ) {
        let seat = match self.seats.arrive(Source::of_address(peer.ip())) {
            Arrival::Seated(seat) => seat,
            Arrival::InsteadOf { seat, gone } => {
                if let Some(handle) = self.handles.remove(&gone) {
                    handle.abort();
                }
                seat
            }
            Arrival::TurnedAway => return,
        };
        let handle = self.peers.spawn_local(async move {
            match acceptor.accept(stream).await {
                // Too many wait: the engine comes again.
                Ok(engine) => drop(engines.try_send(engine)),
                Err(e) => tracing::debug!(%peer, "handshake: {e}"),
            }
            seat
        });
        self.handles.insert(seat, handle);
    }

    /// Waits until a handshake has ended, well or not; for ever where there is none.
    async fn ended(&mut self) {
        match self.peers.join_next().await {
            Some(Ok(seat)) => {
                self.seats.leave(seat);
                self.handles.remove(&seat);
            }
            // Its seat is another's already.
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// Accepts for as long as somebody takes the peers. The acceptor may be changed meanwhile.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: Rc<RefCell<Acceptor>>,
    engines: mpsc::Sender<Authenticated>,
) {
    let mut lobby = Lobby::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => lobby.take(accepted, acceptor.borrow().clone(), engines.clone()),
                Err(e) => {
                    tracing::warn!("accept on the data port: {e}");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                }
            },
            () = lobby.ended() => {}
            () = engines.closed() => return,
        }
    }
}
