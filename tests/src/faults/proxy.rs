//! The network between engines and replicas, of our own: a replica listens on one loopback address and is announced by
//! another, where this passes its connections on. Per replica and direction it can be late, silent or cut.
//!
//! TCP hides single losses, so a link that loses everything is one that is silent: bytes wait, as they would for their
//! next retransmission, until the link is back or the connection is given up.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_proto::ids::BootId;

use super::handshake::Translation;
use crate::rng::Rng;
use crate::wait::SECOND;

/// Where replicas are announced; they listen on 127.0.0.1.
pub const ADVERTISED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToReplica,
    /// Answers.
    ToEngine,
}

/// What a link does to what passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing passes towards the replica.
    pub deaf: bool,
    /// Nothing passes towards the engine.
    pub mute: bool,
    /// Each piece is late by a random time up to this: what two connections carry changes its order.
    pub delay_max: Duration,
}

/// One replica's link.
#[derive(Debug, Default)]
struct Link {
    weather: Mutex<Weather>,
    changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
    /// The next piece is cut in its middle, and the connection ends.
    cut_next: AtomicBool,
    /// The boot id that the replica has beyond here, and the volume's key, to prove it; none: its own.
    boot: Mutex<Option<([u8; 32], BootId)>>,
    seed: AtomicU64,
}

/// The links of all replicas whose ports are in a range.
#[derive(Debug)]
pub struct Network {
    first: u16,
    links: Vec<Arc<Link>>,
    ended: Arc<AtomicBool>,
    accepting: Vec<JoinHandle<()>>,
}

impl Network {
    /// Listens on every port of the range.
    ///
    /// # Panics
    /// When one is taken.
    #[must_use]
    pub fn new(ports: RangeInclusive<u16>) -> Self {
        let (first, ended) = (*ports.start(), Arc::new(AtomicBool::new(false)));
        let (links, accepting) = ports
            .map(|port| {
                let at = SocketAddr::from((ADVERTISED, port));
                let listener = TcpListener::bind(at).unwrap_or_else(|e| panic!("cannot listen on {at}: {e}"));
                let link = Arc::new(Link::default());
                let (shared, ended) = (Arc::clone(&link), Arc::clone(&ended));
                (link, std::thread::spawn(move || accept(&listener, &shared, &ended, port)))
            })
            .unzip();
        Self { first, links, ended, accepting }
    }

    fn link(&self, port: u16) -> &Link {
        &self.links[usize::from(port - self.first)]
    }
    /// From now on the link of the replica at `port` is like this.
    ///
    /// # Panics
    /// When a thread of the network has panicked.
    pub fn set(&self, port: u16, weather: Weather) {
        let link = self.link(port);
        *link.weather.lock().expect("no thread of the network panics") = weather;
        link.changed.notify_all();
    }
    /// Every link is fine again.
    pub fn heal(&self) {
        for i in 0..self.links.len() {
            self.set(self.first + u16::try_from(i).expect("a range of ports"), Weather::default());
        }
    }
    /// Ends the connections of the replica at `port`; new ones are taken.
    pub fn reset(&self, port: u16) {
        self.link(port).reset();
    }
    /// From its next connection on the replica at `port` tells of another boot of its node.
    ///
    /// # Panics
    /// When a thread of the network has panicked.
    pub fn reboot(&self, port: u16, key: [u8; 32]) {
        *self.link(port).boot.lock().expect("no thread of the network panics") =
            Some((key, BootId::random()));
    }
    /// Ends its connections in the middle of the next thing that one of them carries.
    pub fn cut_in_a_frame(&self, port: u16) {
        self.link(port).cut_next.store(true, Ordering::SeqCst);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.heal();
        for (i, link) in self.links.iter().enumerate() {
            link.reset();
            // Wakes the one that accepts, which then sees the end.
            let port = self.first + u16::try_from(i).expect("a range of ports");
            drop(TcpStream::connect_timeout(&SocketAddr::from((ADVERTISED, port)), SECOND));
        }
        // The ports are free again only then, and the next cluster may be given the same.
        for thread in self.accepting.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Link {
    fn reset(&self) {
        for stream in self.streams.lock().expect("no thread of the network panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Waits while nothing passes in this direction, or until the connection is given up.
    fn pass(&self, direction: Direction, alive: &AtomicBool) -> Weather {
        let mut weather = self.weather.lock().expect("no thread of the network panics");
        let silent = |w: &Weather| match direction {
            Direction::ToReplica => w.deaf,
            Direction::ToEngine => w.mute,
        };
        while silent(&weather) && alive.load(Ordering::SeqCst) {
            // The end of a connection is not always told: it is looked for.
            let waited = self.changed.wait_timeout(weather, Duration::from_millis(50));
            weather = waited.expect("no thread of the network panics").0;
        }
        *weather
    }
}

fn accept(listener: &TcpListener, link: &Arc<Link>, ended: &AtomicBool, port: u16) {
    for engine in listener.incoming() {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        // Dropped where nobody listens: refused a little later than by the system.
        if let Ok(engine) = engine
            && let Ok(replica) = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        {
            // A connection that breaks while it is set up is one that broke.
            let _ = pass_on(link, &engine, &replica);
        }
    }
}

fn pass_on(link: &Arc<Link>, engine: &TcpStream, replica: &TcpStream) -> std::io::Result<()> {
    engine.set_nodelay(true)?;
    replica.set_nodelay(true)?;
    {
        let mut streams = link.streams.lock().expect("no thread of the network panics");
        streams.retain(|stream| stream.peer_addr().is_ok());
        streams.extend([engine.try_clone()?, replica.try_clone()?]);
    }
    let alive = Arc::new(AtomicBool::new(true));
    let boot = *link.boot.lock().expect("no thread of the network panics");
    let translation = Arc::new(boot.map(|(key, boot)| Translation::new(key, boot)));
    for (from, to, direction) in
        [(engine, replica, Direction::ToReplica), (replica, engine, Direction::ToEngine)]
    {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (link, alive, translation) = (Arc::clone(link), Arc::clone(&alive), Arc::clone(&translation));
        std::thread::spawn(move || {
            let pass = || {
                link.pass(direction, &alive);
            };
            let begun = match (translation.as_ref(), direction) {
                (None, _) => Ok(()),
                (Some(translation), Direction::ToReplica) => translation.to_replica(&from, &to, pass),
                (Some(translation), Direction::ToEngine) => translation.to_engine(&from, &to, pass),
            };
            let _ = begun.and_then(|()| pump(&link, &from, &to, direction, &alive));
            // What one side ends, ends for both; a process that was killed is no half-open connection.
            alive.store(false, Ordering::SeqCst);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            link.changed.notify_all();
        });
    }
    Ok(())
}

fn pump(
    link: &Link,
    mut from: &TcpStream,
    mut to: &TcpStream,
    direction: Direction,
    alive: &AtomicBool,
) -> std::io::Result<()> {
    let mut rng = Rng::seeded(link.seed.fetch_add(1, Ordering::Relaxed));
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        let weather = link.pass(direction, alive);
        if n == 0 || !alive.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !weather.delay_max.is_zero() {
            let micros = u64::try_from(weather.delay_max.as_micros()).unwrap_or(u64::MAX);
            late(Duration::from_micros(rng.below(micros + 1)));
            // It may have become silent meanwhile.
            link.pass(direction, alive);
        }
        if link.cut_next.swap(false, Ordering::SeqCst) {
            to.write_all(&buffer[..n / 2])?;
            return Ok(());
        }
        to.write_all(&buffer[..n])?;
    }
}

/// The delay itself is the fault: nothing waits for anything here.
#[expect(clippy::disallowed_methods, reason = "a late network is what is asked for")]
pub(crate) fn late(by: Duration) {
    let end = Instant::now() + by;
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}
