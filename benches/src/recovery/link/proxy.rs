//! A relay that keeps every byte for a while: a link with a delay, for kernels without netem.
//!
//! Two threads a direction: one reads and notes when, the other waits and writes. What is on its way is not bounded, as
//! on a long fat link.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::super::let_pass;
use crate::stats::median;

/// Where it listens, on the ports of those behind it.
pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// As much as a data connection of ours receives at a time.
const CHUNK_BYTES: usize = 256 * 1024;
const PINGS: usize = 200;

/// The relay. It ends with this value.
#[derive(Debug)]
pub(super) struct Proxy {
    delay: Duration,
    ended: Arc<AtomicBool>,
    ports: RangeInclusive<u16>,
    listening: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on every port of `ports`; each way takes `delay`.
    ///
    /// # Errors
    /// When a port is taken.
    pub(super) fn start(ports: RangeInclusive<u16>, delay: Duration) -> Result<Self> {
        // Otherwise every sleep is up to 50 µs longer.
        nix::sys::prctl::set_timerslack(1).context("failed to set the timer's slack")?;
        let ended = Arc::new(AtomicBool::new(false));
        let mut listening = Vec::new();
        for port in ports.clone() {
            let listener = TcpListener::bind((ADDRESS, port))
                .with_context(|| format!("failed to listen on {ADDRESS}:{port}"))?;
            let ended = Arc::clone(&ended);
            listening.push(std::thread::spawn(move || accept(&listener, port, delay, &ended)));
        }
        Ok(Self { delay, ended, ports, listening })
    }

    /// What one byte there and back takes, median, with an echo behind it.
    ///
    /// # Errors
    /// When a socket fails.
    pub(super) fn round_trip(&self) -> Result<Duration> {
        let port = *self.ports.end();
        let echo = TcpListener::bind((BEHIND, port)).context("failed to listen for pings")?;
        let serve = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = echo.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let mut stream = TcpStream::connect((ADDRESS, port)).context("failed to reach the proxy")?;
        stream.set_nodelay(true)?;
        let mut times = Vec::new();
        for _ in 0..PINGS {
            let begin = Instant::now();
            stream.write_all(&[7])?;
            stream.read_exact(&mut [0])?;
            times.push(begin.elapsed().as_secs_f64());
        }
        drop(stream);
        // An error of its own would have been one of ours.
        let _ = serve.join();
        let middle = Duration::from_secs_f64(median(&times).context("no pings")?);
        anyhow::ensure!(middle >= 2 * self.delay, "the proxy is quicker than its delay");
        Ok(middle)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        for port in self.ports.clone() {
            // Wakes whoever accepts; it looks, and ends.
            let _ = TcpStream::connect((ADDRESS, port));
        }
        for thread in self.listening.drain(..) {
            // The next proxy takes its port; a panic of it was told where it happened.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, port: u16, delay: Duration, ended: &AtomicBool) {
    for near in listener.incoming().flatten() {
        if ended.load(Ordering::Acquire) {
            return;
        }
        // Nobody behind it: the connection ends, as on a link it would.
        let Ok(far) = TcpStream::connect((BEHIND, port)) else { continue };
        for (from, to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())] {
            if let (Ok(from), Ok(to)) = (from, to) {
                let (sender, receiver) = channel();
                std::thread::spawn(move || read(from, delay, &sender));
                std::thread::spawn(move || write(to, &receiver));
            }
        }
    }
}

/// Reads until the end, which it passes on by dropping `out`.
fn read(mut from: TcpStream, delay: Duration, out: &Sender<(Instant, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                if out.send((Instant::now() + delay, chunk[..n].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn write(mut to: TcpStream, from: &Receiver<(Instant, Vec<u8>)>) {
    // Each thread has a slack of its own.
    let slack = nix::sys::prctl::set_timerslack(1);
    debug_assert!(slack.is_ok());
    if to.set_nodelay(true).is_err() {
        return;
    }
    for (due, bytes) in from {
        if let Some(left) = due.checked_duration_since(Instant::now()) {
            let_pass(left);
        }
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    // The other side has closed, and has all that was sent before.
    let _ = to.shutdown(Shutdown::Write);
}
