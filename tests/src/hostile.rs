//! Peers that mean harm, or are broken: bytes thrown at a socket, and what a process may grow by because of them.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::block::Stream;
use crate::cluster::Cluster;
use crate::process::Process;
use crate::rng::Rng;
use crate::wire::is_closed;

/// A server drops a peer that makes no sense within this.
const DROPPED_WITHIN: Duration = Duration::from_secs(30);
/// What a process may grow by under attack: connections, their receive buffers, the allocator's slack; far below
/// what believing one announced length would cost.
pub const GROWTH_MAX: u64 = 64 << 20;

/// Something that listens.
#[derive(Debug, Clone)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl Target {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let stream: Box<dyn Stream> = match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path)?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address)?),
        };
        stream.deadline(DROPPED_WITHIN)?;
        Ok(stream)
    }

    /// Sends `bytes`, says that no more will come, and reads until the server closes.
    ///
    /// # Panics
    /// When nobody listens, or the server does not close.
    pub fn throw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.dial().unwrap_or_else(|e| panic!("{self:?} does not listen: {e}"));
        // A server that closes at the first bytes does not have to take the rest.
        if let Err(e) = stream.write_all(bytes).and_then(|()| stream.end_sending()) {
            assert!(is_closed(&e) || e.kind() == io::ErrorKind::NotConnected, "{self:?}: {e}");
        }
        self.read_to_close(stream.as_mut())
    }

    /// Reads until the server closes.
    ///
    /// # Panics
    /// When it does not.
    pub fn read_to_close(&self, stream: &mut dyn Stream) -> Vec<u8> {
        let mut received = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return received,
                // More than any answer: a server that talks without end is not dropping anybody.
                Ok(n) if received.len() + n > 1 << 22 => panic!("{self:?} answers without end"),
                Ok(n) => received.extend_from_slice(&buffer[..n]),
                Err(e) if is_closed(&e) => return received,
                Err(e) => panic!("{self:?} did not drop a hostile peer within {DROPPED_WITHIN:?}: {e}"),
            }
        }
    }

    /// Connections that say nothing, held until dropped.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn crowd(&self, count: usize) -> Vec<Box<dyn Stream>> {
        let dial = |i| self.dial().unwrap_or_else(|e| panic!("{self:?}, connection {i}: {e}"));
        (0..count).map(dial).collect()
    }
}

/// Lets the peer of a connection believe that this end has vanished: nothing that arrives is looked at, so that nothing is
/// acknowledged and no probe answered, though what is sent still goes out.
///
/// # Panics
/// When the kernel refuses the filter.
pub fn vanish(stream: &TcpStream) {
    // The program "return 0 bytes of every packet".
    let drop_all = socket2::SockFilter::new(0x06, 0, 0, 0);
    socket2::SockRef::from(stream).attach_filter(&[drop_all]).expect("a filter on a socket of our own");
}

/// Random bytes of a random length, now and then long.
#[must_use]
pub fn garbage(rng: &mut Rng) -> Vec<u8> {
    let len = if rng.one_in(8) { rng.index(1 << 20) } else { rng.index(300) };
    rng.bytes(len)
}

/// Something valid, cut short, or with a few bits changed.
#[must_use]
pub fn mangled(rng: &mut Rng, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    if rng.one_in(2) {
        bytes.truncate(rng.index(valid.len().max(1)));
    } else {
        for _ in 0..=rng.below(4) {
            let at = rng.index(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
    }
    bytes
}

/// The cluster's processes, and how large each one was.
#[derive(Debug)]
pub struct Guard {
    before: Vec<(Process, u64)>,
}

impl Guard {
    /// Of the agent and every instance.
    ///
    /// # Panics
    /// When the agent does not run.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let agent = Process::find(cluster.agent_pid()).expect("the agent runs");
        let all = std::iter::once(agent).chain(cluster.instance_processes());
        Self { before: all.map(|p| (p.clone(), p.rss_bytes())).collect() }
    }
    /// Requires that each still runs and has not grown past [`GROWTH_MAX`].
    ///
    /// # Panics
    /// When one ended or grew.
    #[track_caller]
    pub fn check(&self) {
        for (process, before) in &self.before {
            assert!(process.is_alive(), "{:?} ended", process.command);
            let now = process.rss_bytes();
            assert!(now <= before + GROWTH_MAX, "{:?} grew from {before} to {now} bytes", process.command);
        }
    }
}
