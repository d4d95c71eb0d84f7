//! A load of 4 KiB at random places that remembers when each answer came and how long it took.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::nbd::{Client, Kind};
use super::node::WITHIN;
use crate::stats;

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// In flight.
    pub(super) depth: u64,
    /// Of 100 requests, how many are reads.
    pub(super) read_percent: u64,
    /// Within this many bytes from the start.
    pub(super) range: u64,
}

/// A load that runs.
#[derive(Debug)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<Answer>>>,
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// When it came.
    pub(super) at: Instant,
    /// Since it was asked.
    pub(super) took: Duration,
}

/// What one load saw.
#[derive(Debug)]
pub(super) struct Seen(Vec<Answer>);

/// What one stretch of time saw; not finite where nothing was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bin {
    /// Its beginning, since that of the first.
    pub(super) at: Duration,
    /// Median time.
    pub(super) p50_us: f64,
    /// 99th percentile.
    pub(super) p99_us: f64,
    /// The longest.
    pub(super) max_us: f64,
}

impl Load {
    /// Connects to `uri` and begins.
    ///
    /// # Errors
    /// When nobody serves there.
    pub(super) fn start(uri: &str, shape: Shape) -> Result<Self> {
        let client = Client::connect(uri)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(client, shape, &told));
        Ok(Self { stop, thread })
    }

    /// The same, where the server may only be starting.
    ///
    /// # Errors
    /// When nobody serves there in time.
    pub(super) fn start_once_served(uri: &str, shape: Shape) -> Result<Self> {
        let deadline = Instant::now() + WITHIN;
        loop {
            match Self::start(uri, shape) {
                Err(_) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(2)),
                started => return started,
            }
        }
    }

    /// Ends it, once all is answered.
    ///
    /// # Errors
    /// When a request failed: a load that is not served is no measurement.
    pub(super) fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let answers = self.thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        Ok(Seen(answers))
    }
}

/// xorshift64: places need to be spread, not secret.
#[derive(Debug)]
pub(super) struct Places(u64);

impl Places {
    /// Another sequence for every seed.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }
    /// The next number.
    pub(super) fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn run(mut client: Client, shape: Shape, stop: &AtomicBool) -> std::io::Result<Vec<Answer>> {
    let mut places = Places::new(0x9e37_79b9_7f4a_7c15);
    let data = [0xa5; BLOCK_LEN];
    let mut scratch = [0; BLOCK_LEN];
    let mut sent: Vec<(Instant, Kind)> = vec![(Instant::now(), Kind::Write); slot(shape.depth)];
    let mut answers = Vec::with_capacity(1 << 20);
    let mut ask = |client: &mut Client, cookie: u64, sent: &mut Vec<(Instant, Kind)>| {
        let kind = if places.draw() % 100 < shape.read_percent { Kind::Read } else { Kind::Write };
        let offset = places.draw() % (shape.range / BLOCK) * BLOCK;
        sent[slot(cookie)] = (Instant::now(), kind);
        client.send(kind, cookie, offset, &data)
    };
    for cookie in 0..shape.depth {
        ask(&mut client, cookie, &mut sent)?;
    }
    let mut in_flight = shape.depth;
    while in_flight > 0 {
        let cookie = client.answer(&mut scratch, |cookie| sent[slot(cookie)].1)?;
        let at = Instant::now();
        answers.push(Answer { at, took: at - sent[slot(cookie)].0 });
        if stop.load(Ordering::Relaxed) {
            in_flight -= 1;
        } else {
            ask(&mut client, cookie, &mut sent)?;
        }
    }
    Ok(answers)
}

fn slot(cookie: u64) -> usize {
    usize::try_from(cookie).unwrap_or(usize::MAX)
}

impl Seen {
    /// The longest time without an answer that overlaps `from..to`.
    #[must_use]
    pub(super) fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let pairs = self.0.windows(2).map(|pair| (pair[0].at, pair[1].at));
        pairs.filter(|(a, b)| *b > from && *a < to).map(|(a, b)| b - a).max().unwrap_or_default()
    }

    /// The stretches of `width` in `from..to`, by when answers came.
    #[must_use]
    pub(super) fn bins(&self, from: Instant, to: Instant, width: Duration) -> Vec<Bin> {
        let mut took: BTreeMap<u128, Vec<f64>> = BTreeMap::new();
        let number = |at: Instant| (at - from).as_nanos() / width.as_nanos();
        for answer in self.0.iter().filter(|answer| answer.at >= from && answer.at < to) {
            took.entry(number(answer.at)).or_default().push(answer.took.as_secs_f64() * 1e6);
        }
        let mut at = Duration::ZERO;
        let mut bins = Vec::new();
        for number in 0..number(to) {
            let mut within = took.remove(&number).unwrap_or_default();
            within.sort_by(f64::total_cmp);
            let share =
                |percent: usize| within.get(within.len() * percent / 100).copied().unwrap_or(f64::NAN);
            let max_us = within.last().copied().unwrap_or(f64::NAN);
            bins.push(Bin { at, p50_us: share(50), p99_us: share(99), max_us });
            at += width;
        }
        bins
    }

    /// Median and 99th percentile of what was answered in `from..to`, in microseconds, and how many a second.
    #[must_use]
    pub(super) fn percentiles(&self, from: Instant, to: Instant) -> (f64, f64, f64) {
        let within = self.0.iter().filter(|answer| answer.at >= from && answer.at < to);
        let mut took: Vec<f64> = within.map(|answer| answer.took.as_secs_f64() * 1e6).collect();
        took.sort_by(f64::total_cmp);
        let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
        (stats::median(&took).unwrap_or_default(), at(99), took.len() as f64 / (to - from).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_and_percentiles_are_those_of_the_window() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let answer = |ms, took| Answer { at: at(ms), took: Duration::from_micros(took) };
        let seen = Seen(vec![answer(0, 9), answer(10, 10), answer(60, 20), answer(65, 30), answer(400, 7)]);
        assert_eq!(seen.longest_pause(at(20), at(64)), Duration::from_millis(50));
        assert_eq!(seen.longest_pause(at(66), at(70)), Duration::from_millis(335));
        let (p50, p99, rate) = seen.percentiles(at(10), at(110));
        assert_eq!((p50.round(), p99.round(), rate.round()), (20.0, 30.0, 30.0));
        let bins = seen.bins(at(10), at(110), Duration::from_millis(50));
        assert_eq!(bins.len(), 2);
        assert_eq!((bins[0].p50_us.round(), bins[1].max_us.round()), (10.0, 30.0));
        assert!(seen.bins(at(100), at(300), Duration::from_millis(100))[0].p99_us.is_nan());
    }
}
