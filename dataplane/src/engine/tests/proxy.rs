//! A replica's network: passes bytes on until it is told to cut, corrupt or replace them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

/// What happens to the next bytes that the replica sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fault {
    None = 0,
    /// One bit is flipped.
    Corrupt = 1,
    /// They become noise.
    Noise = 2,
    /// They are cut in the middle, and the connection ends.
    Truncate = 3,
}

#[derive(Debug, Default)]
struct Shared {
    down: AtomicBool,
    fault: AtomicU8,
    streams: Mutex<Vec<TcpStream>>,
}

#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(super) fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let proxy = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // Dropped at once where the replica is down: it is closed in its handshake.
                if !shared.down.load(Ordering::SeqCst)
                    && let Ok(replica) = TcpStream::connect(to)
                {
                    pass_on(&shared, stream, replica);
                }
            }
        });
        proxy
    }

    /// Cuts all connections; new ones are taken.
    pub(super) fn reset(&self) {
        for stream in self.shared.streams.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    /// The replica cannot be reached any more.
    pub(super) fn down(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        self.reset();
    }
    pub(super) fn up(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
    }
    pub(super) fn fault(&self, fault: Fault) {
        self.shared.fault.store(fault as u8, Ordering::SeqCst);
    }
    /// Whether the fault asked for has happened.
    pub(super) fn has_hit(&self) -> bool {
        self.shared.fault.load(Ordering::SeqCst) == Fault::None as u8
    }
}

fn pass_on(shared: &Arc<Shared>, engine: TcpStream, replica: TcpStream) {
    engine.set_nodelay(true).unwrap();
    replica.set_nodelay(true).unwrap();
    let clone = |stream: &TcpStream| stream.try_clone().unwrap();
    shared.streams.lock().extend([clone(&engine), clone(&replica)]);
    let (mut from, mut to) = (clone(&engine), clone(&replica));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let _ = replies(&shared, replica, &engine);
        let _ = engine.shutdown(Shutdown::Both);
    });
}

fn replies(shared: &Shared, mut replica: TcpStream, mut engine: &TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = replica.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let fault = shared.fault.swap(Fault::None as u8, Ordering::SeqCst);
        let bytes = &mut buffer[..n];
        match fault {
            1 => bytes[n - 1] ^= 0x10,
            2 => bytes.iter_mut().zip(0u8..=255).for_each(|(byte, noise)| *byte = noise.wrapping_mul(37)),
            3 => {
                engine.write_all(&bytes[..n / 2])?;
                return Ok(());
            }
            _ => {}
        }
        engine.write_all(bytes)?;
    }
}
