//! Clients that write stamped cells and tell a history of it: many at once, on a few blocks that all want, on many that
//! few meet, on runs of blocks, and on cells that no block boundary fits.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::BLOCK;
use crate::block::{BlockClient, Command};
use crate::history::{CellAt, End, Kind, Log, OpId, Recorder, Value, stamp};
use crate::rng::Rng;
use crate::wait::{check, eventually, eventually_or};

/// Requests in flight per client: with four clients the few hot cells always have several.
const DEPTH: usize = 4;
/// Writes of one client to one cell at once; the checker's work grows with every one that overlaps.
const WRITES_PER_CELL: usize = 2;
/// A client whose engine is gone tries for this long.
const CONNECT_WITHIN: Duration = Duration::from_secs(90);
/// Between two tries, and the longest that the end of a load waits for a client that cannot connect.
const CONNECT_RETRY: Duration = Duration::from_millis(100);

/// Whole blocks that every client wants.
const HOT: u64 = 6;
/// Blocks with cells of 1000 bytes, four a block, aligned to nothing.
const FINE: std::ops::Range<u64> = 32..36;
const FINE_BYTES: u64 = 1000;
const FINE_FIRST: u64 = 40;
/// Blocks far apart: every region of 256 KiB has one or two.
const WIDE: u64 = 400;
const WIDE_STEP: u64 = 37;
const WIDE_FIRST: u64 = 64;
/// Blocks that are written and read in runs.
const RUN: std::ops::Range<u64> = 15_000..15_032;
/// The size of a volume that all of them fit.
pub const VOLUME_SIZE: &str = "64MiB";

/// Cells beside each other, all of one size.
#[derive(Debug, Clone)]
struct Target {
    first: CellAt,
    count: u64,
    cell_bytes: u64,
}

impl Target {
    fn cells(&self) -> Vec<CellAt> {
        (0..self.count).map(|i| self.first + i * self.cell_bytes).collect()
    }
    fn len(&self) -> usize {
        usize::try_from(self.count * self.cell_bytes).expect("a request's length")
    }
    fn cell_len(&self) -> usize {
        usize::try_from(self.cell_bytes).expect("a cell's length")
    }
    fn values(&self, data: &[u8]) -> Vec<Value> {
        self.cells()
            .iter()
            .zip(data.chunks(self.cell_len()))
            .map(|(at, bytes)| stamp::read(*at, bytes))
            .collect()
    }
    fn blocks(range: &std::ops::Range<u64>, rng: &mut Rng, most: u64) -> Self {
        let first = range.start + rng.below(range.end - range.start);
        let count = (1 + rng.below(most)).min(range.end - first);
        Self { first: first * BLOCK, count, cell_bytes: BLOCK }
    }
    fn any(rng: &mut Rng) -> Self {
        match rng.below(10) {
            0..=3 => Self::blocks(&(0..HOT), rng, 3),
            4..=6 => {
                let block = WIDE_FIRST + rng.below(WIDE) * WIDE_STEP;
                Self { first: block * BLOCK, count: 1, cell_bytes: BLOCK }
            }
            7 => Self::blocks(&RUN, rng, 16),
            _ => {
                let block = FINE.start + rng.below(FINE.end - FINE.start);
                let cell = rng.below(4);
                let count = 1 + rng.below(4 - cell);
                let first = block * BLOCK + FINE_FIRST + cell * FINE_BYTES;
                Self { first, count, cell_bytes: FINE_BYTES }
            }
        }
    }
}

/// Every cell there is, in requests.
fn everything() -> Vec<Target> {
    let block = |first: u64, count| Target { first: first * BLOCK, count, cell_bytes: BLOCK };
    let fine = |block: u64| Target { first: block * BLOCK + FINE_FIRST, count: 4, cell_bytes: FINE_BYTES };
    let mut all = vec![block(0, HOT), block(RUN.start, RUN.end - RUN.start)];
    all.extend(FINE.map(fine));
    all.extend((0..WIDE).map(|i| block(WIDE_FIRST + i * WIDE_STEP, 1)));
    all
}

/// Reads every cell by a client, as a part of the history.
///
/// # Errors
/// When the volume answers an error, or the connection breaks.
pub fn read_everything(uri: &str, recorder: &mut Recorder) -> io::Result<BTreeMap<CellAt, Value>> {
    let mut client = BlockClient::connect(uri)?;
    let mut found = BTreeMap::new();
    for target in everything() {
        let op = recorder.invoke(Kind::Read, &target.cells());
        let values = target.values(&client.read(target.first, target.len())?);
        recorder.ended(op, End::Done(values.clone()));
        found.extend(target.cells().into_iter().zip(values));
    }
    Ok(found)
}

/// What every cell is in an image.
///
/// # Errors
/// When it cannot be read.
pub fn read_image(path: &std::path::Path) -> io::Result<BTreeMap<CellAt, Value>> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path)?;
    let mut found = BTreeMap::new();
    for target in everything() {
        let mut data = vec![0; target.len()];
        file.read_exact_at(&mut data, target.first)?;
        found.extend(target.cells().into_iter().zip(target.values(&data)));
    }
    Ok(found)
}

/// What clients met.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Operations that were done.
    pub done: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Without an answer.
    pub lost: u64,
    /// Connections after the first.
    pub reconnects: u64,
}

impl Tally {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            done: self.done + other.done,
            failed: self.failed + other.failed,
            lost: self.lost + other.lost,
            reconnects: self.reconnects + other.reconnects,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts `clients` of them; `first` is the number of the first, which no other client of the volume ever had.
    #[must_use]
    pub fn start(uri: &str, log: &Arc<Log>, clients: u64, first: u64, rng: &mut Rng) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (first..first + clients)
            .map(|number| {
                let mut client = Client {
                    uri: uri.to_owned(),
                    number,
                    sequence: 0,
                    rng: Rng::seeded(rng.word()),
                    recorder: log.recorder(number),
                    shared: Arc::clone(&shared),
                    in_flight: HashMap::new(),
                    tally: Tally::default(),
                };
                std::thread::spawn(move || client.run())
            })
            .collect();
        Self { shared, threads }
    }
    /// Waits until `more` operations were done from now on: I/O goes on.
    pub fn wait_done(&self, more: u64, within: Duration) {
        let until = self.shared.done.load(Ordering::SeqCst) + more;
        eventually(within, "I/O goes on", || {
            let now = self.shared.done.load(Ordering::SeqCst);
            check(now >= until, || format!("{now} operations are done, {until} awaited"))
        });
    }
    /// Operations that were answered with an error so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }
    /// Lets every client finish what it has in flight.
    ///
    /// # Panics
    /// When a client did.
    pub fn finish(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::SeqCst);
        let tallies = self.threads.drain(..).map(|t| t.join().expect("a client of the load panicked"));
        tallies.fold(Tally::default(), Tally::plus)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct InFlight {
    op: OpId,
    target: Target,
    reads: bool,
}

struct Client {
    uri: String,
    number: u64,
    sequence: u64,
    rng: Rng,
    recorder: Recorder,
    shared: Arc<Shared>,
    in_flight: HashMap<u64, InFlight>,
    tally: Tally,
}

impl Client {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    fn run(&mut self) -> Tally {
        while !self.stopped() {
            let Some(client) = self.connect() else { break };
            if self.serve(client).is_err() {
                self.tally.reconnects += 1;
                for lost in std::mem::take(&mut self.in_flight).into_values() {
                    self.recorder.ended(lost.op, End::Unknown);
                    self.tally.lost += 1;
                }
            }
        }
        self.tally
    }

    fn connect(&self) -> Option<BlockClient> {
        let connected = eventually_or(CONNECT_WITHIN, || {
            if self.stopped() {
                return Ok(None);
            }
            BlockClient::connect(&self.uri).map(Some).map_err(|e| {
                crate::faults::proxy::late(CONNECT_RETRY);
                e.to_string()
            })
        });
        connected.unwrap_or_else(|e| panic!("client {} cannot connect to {}: {e}", self.number, self.uri))
    }

    /// Until it is told to stop and everything is answered, or the connection breaks.
    fn serve(&mut self, mut client: BlockClient) -> io::Result<()> {
        loop {
            while self.in_flight.len() < DEPTH && !self.stopped() {
                let (kind, target, command) = self.next();
                let reads = kind == Kind::Read;
                let cells = if kind == Kind::Flush { Vec::new() } else { target.cells() };
                let op = self.recorder.invoke(kind, &cells);
                match client.submit(&command) {
                    Ok(cookie) => drop(self.in_flight.insert(cookie, InFlight { op, target, reads })),
                    Err(e) => {
                        self.recorder.ended(op, End::Unknown);
                        self.tally.lost += 1;
                        return Err(e);
                    }
                }
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            let completion = client.complete()?;
            let ended =
                self.in_flight.remove(&completion.cookie).expect("the client tells known cookies only");
            match completion.result {
                Ok(data) => {
                    let values = if ended.reads { ended.target.values(&data) } else { Vec::new() };
                    self.recorder.ended(ended.op, End::Done(values));
                    self.tally.done += 1;
                    self.shared.done.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => {
                    self.recorder.ended(ended.op, End::Unknown);
                    self.tally.failed += 1;
                    self.shared.failed.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    fn next(&mut self) -> (Kind, Target, Command) {
        let target = Target::any(&mut self.rng);
        let (offset, len) = (target.first, target.len());
        let read = (Kind::Read, Command::Read { offset, len });
        let (kind, command) = match self.rng.below(40) {
            0..=14 => read,
            15 => (Kind::Flush, Command::Flush),
            _ if self.too_many_writes(&target) => read,
            16 if target.cell_bytes == BLOCK => (Kind::Zero, Command::Trim { offset, len }),
            16 | 17 => {
                let no_hole = self.rng.one_in(2);
                (Kind::Zero, Command::WriteZeroes { offset, len, no_hole })
            }
            choice => self.write(&target, choice == 18),
        };
        (kind, target, command)
    }

    fn write(&mut self, target: &Target, fua: bool) -> (Kind, Command) {
        self.sequence += 1;
        let tag = stamp::tag(self.number, self.sequence);
        let mut data = vec![0; target.len()];
        for (at, cell) in target.cells().into_iter().zip(data.chunks_mut(target.cell_len())) {
            stamp::fill(at, tag, cell);
        }
        (Kind::Write { tag, fua }, Command::Write { offset: target.first, data, fua })
    }

    fn too_many_writes(&self, target: &Target) -> bool {
        let end = |t: &Target| t.first + t.count * t.cell_bytes;
        let touches = |t: &Target| t.first < end(target) && target.first < end(t);
        self.in_flight.values().filter(|i| !i.reads && touches(&i.target)).count() >= WRITES_PER_CELL
    }
}
