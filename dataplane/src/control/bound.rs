//! Unix sockets whose file may be removed under them (a cleaner of `/tmp`, a wish of an operator): on a hangup, SIGHUP, what
//! is gone is bound again. An idle process is not woken to look; the agent looks, and asks.

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::server::listen;

/// Of the process, as signals are.
static HANGUPS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// Every socket looks for its file.
pub(super) fn hang_up() {
    HANGUPS.send_modify(|count| *count += 1);
}

/// A socket that listens, and where.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    hangups: watch::Receiver<u64>,
}

impl Bound {
    /// `listener`, bound at `path`.
    pub(crate) fn new(listener: UnixListener, path: PathBuf) -> Self {
        Self { listener, path, hangups: HANGUPS.subscribe() }
    }

    /// The next peer. Cancel safe.
    pub(crate) async fn accept(&mut self) -> io::Result<(UnixStream, SocketAddr)> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return accepted,
                Ok(()) = self.hangups.changed() => self.bind_where_gone(),
            }
        }
    }

    /// Leaves alone any file that stands at the path.
    fn bind_where_gone(&mut self) {
        let gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if !self.path.symlink_metadata().is_err_and(gone) {
            return;
        }
        match listen(&self.path) {
            Ok(listener) => {
                tracing::warn!(socket = %self.path.display(), "the socket was removed; it is there again");
                self.listener = listener;
            }
            Err(e) => tracing::warn!("the socket was removed and cannot be made again: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_that_was_removed_is_bound_again_on_a_hangup() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("run");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("x.sock");
        let mut bound = Bound::new(listen(&path).unwrap(), path.clone());
        let mut first = UnixStream::connect(&path).await.unwrap();
        let (mut served, _) = bound.accept().await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        // While the directory is missing too nothing can be done, and nothing is lost.
        bound.bind_where_gone();
        assert!(!path.exists());
        std::fs::create_dir(&dir).unwrap();
        hang_up();
        let accepting = tokio::spawn(async move { bound.accept().await.unwrap() });
        let there = async {
            while UnixStream::connect(&path).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), there).await.expect("it is bound again");
        accepting.await.unwrap();
        // Who was connected still is.
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        first.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
    }
}
