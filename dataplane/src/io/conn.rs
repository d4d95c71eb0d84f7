//! One stream socket: its two halves and the end of its life.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use super::liveness::{Patience, bound_silence};
use super::rx::Rx;
use super::tx::Tx;
use super::{Error, ErrorKind};

/// The names of a connection's place in its life; it only ever moves downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Open,
    /// Nothing more is received; closes when the queue has drained.
    Draining,
    /// The peer or the network has ended it; the owner knows and will close it.
    Failed,
    /// Waits for the completions of what is in flight.
    Closing,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) socket: OwnedFd,
    pub(super) rx: Rx,
    pub(super) tx: Tx,
    pub(super) state: State,
    /// Whether it is in the driver's list of connections to look at.
    pub(super) dirty: bool,
    /// The end of what the peer sends is not the end of the connection.
    pub(super) outlives_input: bool,
}

impl Conn {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Error> {
        prepare(&socket).map_err(|errno| Error::new(ErrorKind::Socket, "prepare a socket", errno))?;
        let rx = Rx::new()
            .map_err(|errno| Error::new(ErrorKind::NoMemory, "map a connection's receive buffer", errno))?;
        Ok(Self { socket, rx, tx: Tx::new(), state: State::Open, dirty: false, outlives_input: false })
    }

    pub(super) fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_raw_fd())
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.rx.is_in_flight() && !self.tx.is_in_flight()
    }

    /// No more traffic: forgets everything but what the kernel holds and what was received, which may be whole messages
    /// that their sender did not wait for.
    pub(super) fn fail(&mut self) {
        self.state = self.state.max(State::Failed);
        self.rx.release();
        self.tx.abandon();
    }

    /// Ends the connection for the peer. What is in flight completes soon, also because the caller cancels it.
    pub(super) fn close(&mut self) {
        self.fail();
        self.rx.abandon();
        self.state = State::Closing;
        // Not connected any more is as good as shut down.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

/// Sets what the ring needs and small messages want.
fn prepare(socket: &OwnedFd) -> Result<(), Errno> {
    match setsockopt(socket, sockopt::TcpNoDelay, &true) {
        // Not TCP, thus a unix socket, which has no such delay.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => {}
        Err(errno) => return Err(errno),
    }
    bound_silence(socket, Patience::Usual)?;
    // For a non-blocking descriptor io_uring would return EAGAIN instead of waiting for the socket to become ready.
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}
