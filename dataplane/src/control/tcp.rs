//! TCP sockets for the data path.
//!
//! On a connection within one node nothing is congested, and a congestion control that spreads segments over time only
//! costs: BBR does that by a timer for every few segments, which took a quarter of an engine's time with large writes
//! (docs/performance.md, "Pacing"). Such connections get Reno, which every kernel has and lets everybody choose. Between
//! nodes it is as the administrator wants it. The choice comes before the connection: one that BBR has begun stays paced.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connects to a replica.
///
/// # Errors
/// As of `TcpStream::connect`.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if is_on_this_node(address) {
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
    if address.ip().is_loopback() {
        do_not_pace(&listener);
    }
    Ok(listener)
}

/// Whether packets to this address stay on this node: then they come from the same address. Sends nothing.
fn is_on_this_node(address: SocketAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address.ip())
}

/// For a socket that is not connected yet; what a listener has, its connections have.
fn do_not_pace(socket: &impl AsFd) {
    if let Err(error) = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno")) {
        tracing::debug!("congestion control of a local connection stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn addresses_of_this_node_are_known_from_others() {
        for interface in nix::ifaddrs::getifaddrs().unwrap() {
            let address = interface.address.and_then(|a| a.as_sockaddr_in().map(|a| a.ip()));
            if let Some(ip) = address {
                assert!(is_on_this_node(SocketAddr::new(ip.into(), 9)), "{ip}");
            }
        }
        // Reserved for documentation: nobody has it.
        assert!(!is_on_this_node("192.0.2.1:9".parse().unwrap()));
        assert!(!is_on_this_node("[2001:db8::1]:9".parse().unwrap()));
    }
}
