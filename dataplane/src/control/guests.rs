//! Callers of a gRPC server on a unix socket: bounded in number, and in how long they may say nothing.
//!
//! A caller is silent until its first bytes. The server is to ping its callers ([`PING_EVERY`]): one that lives answers,
//! however long it only listens, and one that does not is closed after [`SILENT_MAX`]. Seats are counted by user.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

use super::bound::Bound;
use super::lobby::{Lobby, Ticket};
use crate::core::seats::{Seats, Source};

/// For the server's own pings, and how long it waits for the answer.
pub const PING_EVERY: Duration = Duration::from_secs(20);
/// A caller that sends nothing for so long has gone: it would have answered two pings.
pub const SILENT_MAX: Duration = Duration::from_secs(45);
/// A connection that could not be accepted (no descriptors left) is tried again after this.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(200);

/// One caller's connection.
#[derive(Debug)]
pub struct Guest {
    stream: UnixStream,
    ticket: Ticket,
    heard: bool,
    silent: Pin<Box<Sleep>>,
    silent_max: Duration,
}

/// What callers connect to.
pub trait Listens {
    /// The next one. Cancel safe.
    fn next(&mut self) -> impl Future<Output = io::Result<UnixStream>> + Send;
}

impl Listens for UnixListener {
    async fn next(&mut self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listens for Bound {
    async fn next(&mut self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listens for mpsc::Receiver<io::Result<UnixStream>> {
    async fn next(&mut self) -> io::Result<UnixStream> {
        match self.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }
}

/// Accepts until the receiver is dropped. One that finds no seat is closed; so is, later, one that sends nothing for
/// `silent_max`.
pub async fn accept(
    mut listener: impl Listens,
    seats: Seats,
    silent_max: Duration,
    accepted: mpsc::Sender<io::Result<Guest>>,
) {
    let lobby = Lobby::new(seats);
    loop {
        let stream = tokio::select! {
            stream = listener.next() => match stream {
                Ok(stream) => stream,
                Err(e) => {
                    tracing::warn!("accept on a control socket: {e}");
                    sleep(ACCEPT_RETRY_AFTER).await;
                    continue;
                }
            },
            () = accepted.closed() => return,
        };
        // A peer without credentials has gone already.
        let Ok(peer) = stream.peer_cred() else { continue };
        let Some(ticket) = lobby.arrive(Source::User(peer.uid())) else {
            tracing::debug!(uid = peer.uid(), "a caller is turned away: all connections are in use");
            continue;
        };
        let silent = Box::pin(sleep(silent_max));
        let guest = Guest { stream, ticket, heard: false, silent, silent_max };
        if accepted.send(Ok(guest)).await.is_err() {
            return;
        }
    }
}

impl Guest {
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.ticket.poll_given_away(cx).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "its place was needed"));
        }
        ready!(self.silent.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "it said nothing"))
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    if !std::mem::replace(&mut self.heard, true) {
                        self.ticket.proved();
                    }
                    let until = Instant::now() + self.silent_max;
                    self.silent.as_mut().reset(until);
                }
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_patience(cx).map(Err),
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Guest {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn reception(
        seats: usize,
        silent_max: Duration,
    ) -> (tempfile::TempDir, mpsc::Receiver<io::Result<Guest>>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (accepted, guests) = mpsc::channel(16);
        tokio::spawn(accept(listener, Seats::new(seats), silent_max, accepted));
        (dir, guests)
    }

    #[tokio::test]
    async fn a_silent_caller_gives_way_and_one_that_spoke_stays() {
        let (dir, mut guests) = reception(2, SILENT_MAX).await;
        let mut callers = Vec::new();
        let mut served = Vec::new();
        for _ in 0..3 {
            callers.push(UnixStream::connect(dir.path().join("s")).await.unwrap());
            let mut guest = guests.recv().await.unwrap().unwrap();
            if served.is_empty() {
                callers[0].write_all(b"x").await.unwrap();
                guest.read_u8().await.unwrap();
            }
            served.push(guest);
        }
        let silent = served.remove(1).read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::ConnectionAborted);
        callers[0].write_all(b"y").await.unwrap();
        assert_eq!(served[0].read_u8().await.unwrap(), b'y');
    }

    #[tokio::test]
    async fn a_caller_that_says_nothing_for_too_long_is_closed() {
        let (dir, mut guests) = reception(2, Duration::from_millis(20)).await;
        let _caller = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let error = guests.recv().await.unwrap().unwrap().read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
