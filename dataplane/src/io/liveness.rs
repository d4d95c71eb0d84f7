//! How long a TCP peer may be silent before the kernel gives it up: one function for every TCP socket.
//!
//! A peer that vanished without a word (power, a cable, a firewall) sends no FIN. Only probes find that out where nothing
//! is sent to it, and only a bound on unanswered data where something is. Both are set, to the same time. The bound also
//! ends a peer that takes nothing of what is sent to it for so long, as TCP does not tell the two apart.
//!
//! A listener hands its options to the connections that it accepts.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

/// How long a peer may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A minute and a half: probed after 60 s without a word, every 10 s, three times. Long enough for a switch or a
    /// router that restarts.
    Usual,
    /// Four seconds, for the moment at which it matters whether a peer is there. Data on its way is not bounded, as that
    /// bound would end a connection at its first unanswered probe; `is_unanswered` tells.
    Short,
}

impl Patience {
    /// Seconds before the first probe and between probes, how many probes, and milliseconds for data on its way.
    fn options(self) -> (u32, u32, u32, u32) {
        match self {
            Self::Usual => (60, 10, 3, 90_000),
            Self::Short => (1, 1, 3, 0),
        }
    }
}

/// Sets how long the peer of a TCP socket may be silent; a listener's holds for what it accepts. Sockets of other kinds
/// stay as they are: the kernel itself tells what becomes of their peers.
///
/// # Errors
/// What the kernel says.
pub fn bound_silence(socket: &impl AsFd, patience: Patience) -> Result<(), Errno> {
    let (idle, interval, count, data_ms) = patience.options();
    match setsockopt(socket, sockopt::TcpUserTimeout, &data_ms) {
        Ok(()) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    // Last: it starts the timer anew with what is set by then.
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)
}

/// Whether nothing has come from a TCP peer for so long, though something was to be acknowledged: data on its way, or more
/// than one probe of whether it has room for more.
#[must_use]
pub(super) fn is_unanswered(socket: &OwnedFd, silent: Duration) -> bool {
    // SAFETY: plain numbers, for which all zeros is a value.
    let mut info = unsafe { std::mem::zeroed::<libc::tcp_info>() };
    let Ok(mut len) = libc::socklen_t::try_from(size_of::<libc::tcp_info>()) else { return false };
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes at most `len` bytes, the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    let heard = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
    let asked = info.tcpi_unacked > 0 || info.tcpi_probes > 1;
    result == 0 && asked && Duration::from_millis(heard.into()) >= silent
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::getsockopt;

    use super::*;

    fn options(socket: &impl AsFd) -> (bool, u32, u32, u32, u32) {
        (
            getsockopt(socket, sockopt::KeepAlive).unwrap(),
            getsockopt(socket, sockopt::TcpKeepIdle).unwrap(),
            getsockopt(socket, sockopt::TcpKeepInterval).unwrap(),
            getsockopt(socket, sockopt::TcpKeepCount).unwrap(),
            getsockopt(socket, sockopt::TcpUserTimeout).unwrap(),
        )
    }

    #[test]
    fn a_listener_bounds_the_silence_of_all_it_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bound_silence(&listener, Patience::Usual).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(options(&accepted), (true, 60, 10, 3, 90_000));
        assert!(!options(&client).0, "the other end is its owner's");
        bound_silence(&accepted, Patience::Short).unwrap();
        assert_eq!(options(&accepted), (true, 1, 1, 3, 0));
    }

    #[test]
    fn a_unix_socket_stays_as_it_is() {
        let (one, _other) = UnixStream::pair().unwrap();
        bound_silence(&one, Patience::Usual).unwrap();
        assert!(!getsockopt(&one, sockopt::KeepAlive).unwrap());
    }
}
