//! TCP sockets for the data path. All of them bound how long a peer may be silent ([`bound_silence`]).
//!
//! On a connection within one node nothing is congested, and a congestion control that spreads segments over time only
//! costs: BBR does that by a timer for every few segments, which took a quarter of an engine's time with large writes
//! (docs/performance.md, "Pacing"). Such connections get Reno, which every kernel has and lets everybody choose. Between
//! nodes it is as the administrator wants it. The choice comes before the connection, as one that BBR has begun stays paced:
//! who listens at an address that other nodes reach cannot choose, and what it sends to its own node is paced like the rest.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::ifaddrs::{InterfaceAddressIterator, getifaddrs};
use nix::sys::socket::{SockaddrStorage, setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::io::{Patience, bound_silence};

/// Connects to a replica.
///
/// # Errors
/// As of `TcpStream::connect`.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    bound_silence(&socket, Patience::Usual)?;
    if is_on_this_node(address.ip()) {
        do_not_pace(&socket);
    }
    socket.connect(address).await
}

/// Listens at an address; peers on other nodes can reach it unless it is a loopback address.
///
/// # Errors
/// As of `TcpListener::bind`.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    bound_silence(&listener, Patience::Usual)?;
    if address.ip().is_loopback() {
        do_not_pace(&listener);
    }
    Ok(listener)
}

/// Whether an address is one of this node's, so that nothing sent there leaves it.
fn is_on_this_node(ip: IpAddr) -> bool {
    let address = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    let is_own = |all: InterfaceAddressIterator| {
        all.filter_map(|interface| interface.address.and_then(address)).any(|own| own == ip)
    };
    ip.is_loopback() || getifaddrs().is_ok_and(is_own)
}

/// For a socket that is not connected yet; what a listener has, its connections have.
fn do_not_pace(socket: &impl AsFd) {
    if let Err(error) = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno")) {
        tracing::debug!("congestion control of a local connection stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use nix::sys::socket::getsockopt;

    use super::*;

    fn congestion_control(socket: &impl AsFd) -> String {
        let name = getsockopt(socket, sockopt::TcpCongestion).unwrap();
        name.to_string_lossy().trim_end_matches('\0').to_owned()
    }

    #[tokio::test]
    async fn neither_side_of_a_connection_within_the_node_is_paced() {
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            // Not every machine has IPv6.
            let Ok(listener) = listen(SocketAddr::new(loopback, 0)).await else {
                assert!(loopback.is_ipv6());
                continue;
            };
            let ours = connect(listener.local_addr().unwrap()).await.unwrap();
            let (theirs, _) = listener.accept().await.unwrap();
            assert_eq!([congestion_control(&ours), congestion_control(&theirs)], ["reno", "reno"]);
        }
    }

    #[tokio::test]
    async fn who_listens_for_other_nodes_keeps_what_the_administrator_chose() {
        let chosen = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        let listener = listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)).await.unwrap();
        assert_eq!(congestion_control(&listener), chosen.trim());
    }

    #[tokio::test]
    async fn silence_is_bounded_on_both_sides_of_a_connection() {
        let listener = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).await.unwrap();
        let ours = connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        for socket in [&ours, &theirs] {
            assert!(getsockopt(socket, sockopt::KeepAlive).unwrap());
            assert_eq!(getsockopt(socket, sockopt::TcpUserTimeout).unwrap(), 90_000);
        }
    }

    #[test]
    fn addresses_of_this_node_are_known_from_others() {
        for ip in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(is_on_this_node(ip.parse().unwrap()), "{ip}");
        }
        for interface in getifaddrs().unwrap() {
            if let Some(own) = interface.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in) {
                assert!(is_on_this_node(own.ip().into()), "{own}");
            }
        }
        // Reserved for documentation: nobody has them.
        for ip in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_on_this_node(ip.parse().unwrap()), "{ip}");
        }
    }
}
