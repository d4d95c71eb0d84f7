//! What happens to the nodes, and what it costs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use holdfast::core::follow::{Follower, Knowledge};

use super::fleet::{ENGINE, Fleet, Size};
use super::registry::{Counts, Registry};
use crate::Rng;

/// A lease of 15 s is kept alive three times in its life.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
/// All agents have begun, and have written their first full lists, well before this.
const BEGUN_BY: Duration = Duration::from_secs(120);
/// Readers are kept of every so many nodes, and compared with them in the end.
const READ_EVERY: usize = 97;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Every agent begins within one minute.
    Start,
    /// Nothing, for ten minutes.
    Idle,
    /// For ten minutes: each node's pressure changes its level every ten minutes and its disk by a hundredth every hour;
    /// each hour one of 25 volumes is detached and attached again.
    Daily,
    /// So many nodes at a time are drained, restart within two minutes, and are filled again; three times.
    RollingUpgrade {
        /// How many at a time.
        at_a_time: usize,
    },
    /// A third of the nodes vanishes, and returns after ten minutes.
    ZoneLoss,
}

/// What it cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How long it took, in simulated time.
    pub seconds: u64,
    /// In all.
    pub total: Counts,
    /// The largest second of each.
    pub most: Counts,
    /// Keys and values, in the end.
    pub live_bytes: u64,
    /// The same in the middle of it.
    pub live_bytes_midway: u64,
    /// The most that is written within five minutes: what an etcd keeps beside the live bytes until it compacts.
    pub history_bytes: u64,
    /// Readers that were compared with their nodes, and knew exactly what those have.
    pub readers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Begin(usize),
    Vanish(usize),
    /// A process of a volume (its place among the states) is in this state (index of [`STATES`]) from now on.
    State(usize, usize, usize),
    /// A replica is, or is not, among the members of its volume: a new epoch.
    Member(usize, usize, bool),
    /// A new engine takes the volume over.
    Attach(usize),
    Press(usize),
    Fill(usize),
    KeepAlive(usize),
    Poll(usize),
}

const STATES: [&str; 5] = ["pending", "starting", "running", "stopping", "stopped"];
const PENDING: usize = 0;
const STARTING: usize = 1;
const RUNNING: usize = 2;
const STOPPING: usize = 3;
const STOPPED: usize = 4;

struct Sim {
    fleet: Fleet,
    registry: Registry,
    concerned: Vec<u64>,
    readers: Vec<(usize, Follower)>,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    /// When the next poll of a node is due that is in `events` already.
    polls: Vec<Option<Duration>>,
    now: Duration,
    rng: Rng,
}

/// Runs a scenario on a fleet of this size, after all its agents have begun and settled.
///
/// # Panics
/// When a reader does not know what its node has, in the end.
#[must_use]
pub fn run(size: Size, scenario: Scenario) -> Report {
    let mut sim = Sim::new(size);
    for node in 0..size.nodes {
        let at = sim.within(Duration::from_secs(60));
        sim.at(at, Event::Begin(node));
        let phase = sim.within(KEEP_ALIVE_EVERY);
        sim.at(phase, Event::KeepAlive(node));
    }
    let (from, until) = match scenario {
        Scenario::Start => (Duration::ZERO, BEGUN_BY),
        _ => {
            sim.go_on(BEGUN_BY);
            (BEGUN_BY, BEGUN_BY + sim.plan(scenario))
        }
    };
    sim.go_on((from + until) / 2);
    let midway = sim.registry.live_bytes();
    sim.go_on(until);
    Report { live_bytes_midway: midway, ..sim.report(from, until) }
}

impl Sim {
    fn new(size: Size) -> Self {
        let fleet = Fleet::new(size);
        let concerned = (0..size.nodes).map(|node| fleet.concerned(node)).collect();
        let readers = (0..size.nodes).step_by(READ_EVERY);
        Self {
            registry: Registry::new(size.nodes),
            concerned,
            readers: readers.map(|node| (node, Follower::new(Fleet::name(node)))).collect(),
            events: BinaryHeap::new(),
            polls: vec![None; size.nodes],
            now: Duration::ZERO,
            rng: Rng::seeded(1),
            fleet,
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, event)));
    }
    /// Some moment of the next `span`.
    fn within(&mut self, span: Duration) -> Duration {
        let ms = u64::try_from(span.as_millis()).unwrap();
        self.now + Duration::from_millis(self.rng.below(ms))
    }

    fn go_on(&mut self, until: Duration) {
        while let Some(Reverse((at, event))) =
            self.events.peek().copied().filter(|Reverse((at, _))| *at < until)
        {
            self.events.pop();
            self.now = at;
            self.handle(event);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Begin(node) => {
                let found = self.registry.found(node);
                let unix_ms = 1_795_000_000_000 + u64::try_from(now.as_millis()).unwrap();
                self.fleet.begin(node, &found, unix_ms, now);
                self.polls[node] = None;
                self.poll_later(node);
            }
            Event::Vanish(node) => self.fleet.publishers[node] = None,
            Event::State(volume, which, state) => {
                self.fleet.volumes[volume].states[which] = STATES[state];
                self.tell(volume);
            }
            Event::Member(volume, replica, member) => {
                let of = &mut self.fleet.volumes[volume];
                if std::mem::replace(&mut of.members[replica], member) != member {
                    of.epoch += 1;
                    self.tell(volume);
                }
            }
            Event::Attach(volume) => {
                let of = &mut self.fleet.volumes[volume];
                (of.generation, of.epoch) = (of.generation + 1, of.epoch + 1);
                self.tell(volume);
            }
            Event::Press(node) => {
                self.fleet.press(node, 50.0, now);
                self.poll_later(node);
            }
            Event::Fill(node) => {
                self.fleet.fill(node, 1, now);
                self.poll_later(node);
            }
            Event::KeepAlive(node) => {
                if self.fleet.publishers[node].is_some() {
                    self.registry.keep_alive(now);
                }
                self.at(now + KEEP_ALIVE_EVERY, Event::KeepAlive(node));
            }
            Event::Poll(node) => {
                if self.polls[node].is_some_and(|at| at <= now) {
                    self.polls[node] = None;
                    self.write(node);
                    self.poll_later(node);
                }
            }
        }
    }

    fn tell(&mut self, volume: usize) {
        for node in self.fleet.tell(volume, self.now) {
            self.poll_later(node);
        }
    }

    fn poll_later(&mut self, node: usize) {
        let due = self.fleet.publishers[node].as_ref().and_then(|publisher| publisher.poll_timeout());
        let Some(due) = due.map(|due| due.max(self.now)) else { return };
        if self.polls[node].is_none_or(|held| due < held) {
            self.polls[node] = Some(due);
            self.at(due, Event::Poll(node));
        }
    }

    fn write(&mut self, node: usize) {
        let Some(publisher) = &mut self.fleet.publishers[node] else { return };
        let Some(ops) = publisher.poll_write(self.now) else { return };
        publisher.written(self.now);
        if let Some((_, reader)) = self.readers.iter_mut().find(|(read, _)| *read == node) {
            for op in &ops {
                match op {
                    holdfast::core::publish::Op::Put { key, bytes } => reader.put(key, bytes),
                    holdfast::core::publish::Op::Delete { key } => reader.delete(key),
                }
            }
        }
        self.registry.write(self.now, node, ops, self.concerned[node]);
    }

    /// Plans what happens; returns how long it takes.
    fn plan(&mut self, scenario: Scenario) -> Duration {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        match scenario {
            Scenario::Start | Scenario::Idle => minutes(10),
            Scenario::Daily => {
                self.plan_a_day(minutes(10));
                minutes(10)
            }
            Scenario::RollingUpgrade { at_a_time } => {
                let turns = 3;
                for turn in 0..turns {
                    let start = self.now + minutes(5) * u32::try_from(turn).unwrap();
                    for node in turn * at_a_time..(turn + 1) * at_a_time {
                        let drain_at = start + Duration::from_millis(self.rng.below(30_000));
                        self.plan_restart(node, drain_at);
                    }
                }
                minutes(5) * u32::try_from(turns).unwrap() + minutes(2)
            }
            Scenario::ZoneLoss => {
                let (zone, now) = (self.fleet.size.nodes / 3, self.now);
                for node in 0..zone {
                    self.at(now, Event::Vanish(node));
                    self.plan_loss(node, now);
                    let back = now + minutes(10) + Duration::from_millis(self.rng.below(60_000));
                    self.plan_return(node, back);
                }
                minutes(15)
            }
        }
    }

    fn plan_a_day(&mut self, span: Duration) {
        for node in 0..self.fleet.size.nodes {
            let at = self.within(span);
            self.at(at, Event::Press(node));
            if self.rng.below(6) == 0 {
                let at = self.within(span);
                self.at(at, Event::Fill(node));
            }
        }
        for volume in 0..self.fleet.volumes.len() {
            if self.rng.below(25 * 6) == 0 {
                let at = self.within(span);
                self.stop(volume, ENGINE, at);
                (0..3).for_each(|replica| self.stop(volume, replica, at + Duration::from_secs(1)));
                let again = at + Duration::from_secs(30);
                (0..3).for_each(|replica| self.begin(volume, replica, again));
                self.begin(volume, ENGINE, again);
                self.at(again + Duration::from_secs(1), Event::Attach(volume));
            }
        }
    }

    fn stop(&mut self, volume: usize, which: usize, at: Duration) {
        self.at(at, Event::State(volume, which, STOPPING));
        self.at(at + Duration::from_millis(600), Event::State(volume, which, STOPPED));
    }
    fn begin(&mut self, volume: usize, which: usize, at: Duration) {
        self.at(at, Event::State(volume, which, PENDING));
        self.at(at + Duration::from_millis(100), Event::State(volume, which, STARTING));
        self.at(at + Duration::from_millis(700), Event::State(volume, which, RUNNING));
    }

    /// Its processes end in order, its agent restarts with it, and everything comes back.
    fn plan_restart(&mut self, node: usize, at: Duration) {
        for (volume, replica) in self.fleet.placed[node].clone() {
            let at = at + Duration::from_millis(self.rng.below(20_000));
            if replica == 0 {
                self.stop(volume, ENGINE, at);
            }
            self.stop(volume, replica, at + Duration::from_secs(1));
            self.at(at + Duration::from_secs(2), Event::Member(volume, replica, false));
        }
        self.at(at + Duration::from_secs(30), Event::Vanish(node));
        self.plan_return(node, at + Duration::from_secs(120));
    }

    /// Its replicas are missed by engines elsewhere, within their timeout of 8 s and some more.
    fn plan_loss(&mut self, node: usize, at: Duration) {
        for (volume, replica) in self.fleet.placed[node].clone() {
            if replica != 0 {
                let missed = at + Duration::from_millis(8000 + self.rng.below(4000));
                self.at(missed, Event::Member(volume, replica, false));
            }
        }
    }

    /// Its agent begins, its instances are started within half a minute, and its replicas are filled within another.
    fn plan_return(&mut self, node: usize, at: Duration) {
        let before = at - Duration::from_millis(1);
        for (volume, replica) in self.fleet.placed[node].clone() {
            self.at(before, Event::State(volume, replica, STOPPED));
            let start = at + Duration::from_millis(1000 + self.rng.below(30_000));
            self.begin(volume, replica, start);
            if replica == 0 {
                self.at(before, Event::State(volume, ENGINE, STOPPED));
                self.begin(volume, ENGINE, start);
                self.at(start + Duration::from_secs(1), Event::Attach(volume));
            }
            let filled = start + Duration::from_millis(1000 + self.rng.below(30_000));
            self.at(filled, Event::Member(volume, replica, true));
        }
        self.at(at, Event::Begin(node));
    }

    fn report(&self, from: Duration, until: Duration) -> Report {
        let (total, most, history_bytes) = self.registry.summary(from, until);
        let mut readers = 0;
        for (node, reader) in &self.readers {
            // What is not written yet cannot be known yet.
            let Some(publisher) = self.fleet.publishers[*node].as_ref() else { continue };
            match reader.inventory() {
                Knowledge::Known(known) if known.revision == publisher.revision() => {
                    assert_eq!(&known.entries, publisher.entries(), "node {node}");
                    readers += 1;
                }
                Knowledge::Known(_) => {}
                Knowledge::Unknown { reason, .. } => panic!("node {node} is unknown: {reason}"),
            }
        }
        let seconds = (until - from).as_secs();
        let live_bytes = self.registry.live_bytes();
        Report { seconds, total, most, live_bytes, live_bytes_midway: live_bytes, history_bytes, readers }
    }
}
