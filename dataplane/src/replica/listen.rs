//! The data port: bind, accept, handshake. What comes out has proven the volume's key.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::config::ReplicaConfig;
use crate::control::handshake::{Acceptor, Authenticated};
use crate::control::tcp;
use crate::error::Error;

/// Peers that have not proven the key, at once; each is gone after its deadline, and more wait in the backlog.
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

/// Accepts for as long as somebody takes the peers. The acceptor may be changed meanwhile.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: Rc<RefCell<Acceptor>>,
    engines: mpsc::Sender<Authenticated>,
) {
    let unauthenticated = Arc::new(Semaphore::new(UNAUTHENTICATED_MAX));
    loop {
        let permit = Arc::clone(&unauthenticated).acquire_owned().await.expect("never closed");
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("accept on the data port: {e}");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                    continue;
                }
            },
            () = engines.closed() => return,
        };
        let acceptor = acceptor.borrow().clone();
        let engines = engines.clone();
        tokio::task::spawn_local(async move {
            let result = acceptor.accept(stream).await;
            drop(permit);
            match result {
                // Too many wait: the engine comes again.
                Ok(engine) => drop(engines.try_send(engine)),
                Err(e) => tracing::debug!(%peer, "handshake: {e}"),
            }
        });
    }
}
