//! The data thread: completions into the core, its actions into submissions, once around per turn.
//!
//! The core gives a place in its table away again as soon as an operation has ended, so every call into it is followed
//! by [`Data::act`] before the next: an action always finds the buffers of its own operation.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use holdfast_proto::ids::ReplicaId;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::buffers::{Buffers, User};
use super::frontends::{Context, Frontends};
use super::message::{Attempt, Command, DataHandle, Event, Whereabouts};
use super::replicas::{Broken, Link, Links, Step, deliver};
use crate::control::handshake::Connected;
use crate::core::engine::{Action, ConnectFailure, Ending, Engine, Now, Report};
use crate::error::Error;
use crate::frontend::IoCounters;
use crate::io::{
    Awaited, Buf, Completion, ConnId, Driver, DriverConfig, Errno, Pool, PoolConfig, SpinMode, Spinner, Waker,
};

/// Buffers of clients' operations: 8, 16 and 64 MiB, of which only what is in use at a time takes memory.
const POOL: PoolConfig = PoolConfig { small: 2048, medium: 512, large: 256 };
/// Between two looks at whether the report has changed.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Between two reports that differ in counters only.
const COUNTERS_EVERY: Duration = Duration::from_secs(1);
/// A time the core named that has passed, and that its tick did nothing about, is looked at again after this.
const OVERDUE_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Of a drain, how much of its time clients have to bring what they began to send.
const REQUESTS_WITHIN: Duration = Duration::from_secs(5);
/// Without a client's operation for this long, the memory of buffers goes back to the kernel.
const IDLE_AFTER: Duration = Duration::from_secs(5);

/// A drain on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// Clients finish what they began; the core is told at this time at the latest.
    Requests {
        until: Now,
    },
    Core,
}

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    report: Option<Report>,
    clients: usize,
    io: IoCounters,
    looked_at: Now,
    told_at: Now,
}

struct Data {
    driver: Driver,
    spinner: Spinner,
    core: Engine,
    buffers: Buffers,
    links: Links,
    frontends: Frontends,
    commands: mpsc::Receiver<Command>,
    events: async_mpsc::UnboundedSender<Event>,
    started: Instant,
    now: Now,
    next_session: u64,
    /// The last try to reach each replica.
    attempts: Vec<Attempt>,
    drain: Drain,
    /// How it ended, until that is told.
    ending: Option<Ending>,
    told: Told,
    /// Something rare happened: look at the report now.
    look: bool,
    last_io: Now,
    trimmed: bool,
    not_before: Now,
    stopped: bool,
}

/// Starts the thread with a core that has not begun yet, and knows where the replicas are. The receiver ends with the
/// thread.
///
/// # Errors
/// When there is no io_uring to be had, or no memory.
pub(super) async fn spawn(
    core: Engine,
    volume_bytes: u64,
    spin: SpinMode,
    replicas: Vec<Whereabouts>,
) -> Result<(DataHandle, async_mpsc::UnboundedReceiver<Event>), Error> {
    let (commands, incoming) = mpsc::channel();
    let (events, outgoing) = async_mpsc::unbounded_channel();
    let (ready, made) = oneshot::channel();
    let body = move || {
        let failed = events.clone();
        let data = match Data::new(core, volume_bytes, spin, incoming, events) {
            Ok(data) => data,
            Err(e) => {
                // Nobody waits any more: the process is ending.
                let _ = ready.send(Err(e));
                return;
            }
        };
        if ready.send(Ok(data.driver.waker())).is_ok()
            && let Err(e) = data.run(replicas)
        {
            let _ = failed.send(Event::Failed(e.to_string()));
        }
    };
    std::thread::Builder::new()
        .name("data".to_owned())
        .spawn(body)
        .map_err(Error::failed("start the data thread"))?;
    let waker: Result<Waker, crate::io::Error> =
        made.await.map_err(|_| Error::failed("start the data thread")("it ended at once"))?;
    let waker = waker?;
    Ok((DataHandle { commands, waker }, outgoing))
}

impl Data {
    fn new(
        core: Engine,
        volume_bytes: u64,
        spin: SpinMode,
        commands: mpsc::Receiver<Command>,
        events: async_mpsc::UnboundedSender<Event>,
    ) -> Result<Self, crate::io::Error> {
        let pool = Pool::new(POOL)?;
        let driver = Driver::new(DriverConfig::default(), pool.clone())?;
        tracing::info!(ring = driver.features(), "data thread started");
        Ok(Self {
            driver,
            spinner: Spinner::new(spin),
            core,
            buffers: Buffers::new(pool)?,
            links: Links::default(),
            frontends: Frontends::new(volume_bytes),
            commands,
            events,
            started: Instant::now(),
            now: Duration::ZERO,
            next_session: 1,
            attempts: Vec::new(),
            drain: Drain::No,
            ending: None,
            told: Told::default(),
            look: true,
            last_io: Duration::ZERO,
            trimmed: true,
            not_before: Duration::ZERO,
            stopped: false,
        })
    }

    fn run(mut self, replicas: Vec<Whereabouts>) -> Result<(), crate::io::Error> {
        for replica in replicas {
            self.locate(replica);
        }
        self.core.start(self.now);
        self.act();
        let mut completions = Vec::with_capacity(1024);
        while !self.stopped {
            self.settle();
            let until = self.deadline().map(|at| self.started + at);
            let depth = self.buffers.clients();
            let awaited = if depth > 0 { Awaited::Answer } else { Awaited::Request };
            self.driver.turn_looking(
                &mut self.spinner,
                (awaited, depth),
                self.started,
                until,
                &mut completions,
            )?;
            self.now = self.started.elapsed();
            for completion in completions.drain(..) {
                self.completed(completion);
            }
        }
        Ok(())
    }

    /// What is left to do once all that happened is worked in.
    fn settle(&mut self) {
        if self.now >= self.not_before && self.core.poll_timeout().is_some_and(|at| at <= self.now) {
            self.core.tick(self.now);
            self.act();
            self.not_before = match self.core.poll_timeout() {
                Some(at) if at <= self.now => self.now + OVERDUE_AGAIN_AFTER,
                Some(_) | None => Duration::ZERO,
            };
        }
        self.begin_parts();
        self.frontends.tick(&mut self.driver, self.now);
        self.go_on_draining();
        self.tell_ending();
        self.report();
        self.trim();
    }

    /// Hands to the core what clients brought, as far as there is room.
    fn begin_parts(&mut self) {
        loop {
            while self.frontends(Frontends::begin_next) {
                self.act();
            }
            // What began, or failed at once, may have made room for a client to go on.
            if !self.frontends(Frontends::parse_starved) {
                return;
            }
        }
    }

    fn deadline(&self) -> Option<Now> {
        let core = self.core.poll_timeout().map(|at| at.max(self.not_before));
        let drain = match self.drain {
            Drain::Requests { until } => Some(until),
            Drain::No | Drain::Core => None,
        };
        [core, drain, self.frontends.deadline()].into_iter().flatten().min()
    }

    fn frontends<T>(&mut self, call: impl FnOnce(&mut Frontends, &mut Context<'_>) -> T) -> T {
        let Self { driver, core, buffers, frontends, now, .. } = self;
        call(frontends, &mut Context { driver, core, buffers, now: *now })
    }

    // ---- completions ------------------------------------------------------------------------------------------------

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Wake => {
                while let Ok(command) = self.commands.try_recv() {
                    self.command(command);
                    self.act();
                }
            }
            Completion::Received { conn } => {
                if self.links.by_conn(conn).is_some() {
                    self.replies(conn);
                } else {
                    self.frontends(|frontends, x| frontends.received(conn, x));
                }
            }
            Completion::ReceivedInto { conn, buf } => self.received_into(conn, buf),
            Completion::Failed { conn, error } => self.failed(conn, error),
            Completion::Ended { conn } => {
                self.frontends(|frontends, x| frontends.input_ended(conn, x));
            }
            Completion::Closed { conn } => self.frontends(|frontends, x| frontends.closed(conn, x)),
            // Whoever waits for room goes on at the end of the turn. Files there are none.
            Completion::Sent { .. } | Completion::File { .. } => {}
        }
    }

    fn received_into(&mut self, conn: ConnId, buf: Buf) {
        let back = self.frontends(|frontends, x| frontends.received_into(conn, buf, x));
        let Some(buf) = back else { return };
        let Some(link) = self.links.by_conn(conn) else { return };
        let (replica, session) = (link.replica, link.session);
        match link.received_into(buf, &self.core, &mut self.buffers) {
            Ok(Some((header, zeros))) => {
                self.core.reply(replica, session, &header, &zeros.encode(), self.now);
                self.act();
                self.replies(conn);
            }
            Ok(None) => {}
            Err(why) => self.broken(conn, &why),
        }
    }

    /// Works off the replies that a replica has sent.
    fn replies(&mut self, conn: ConnId) {
        // Looked up each time: any reply may end the connection.
        while let Some(link) = self.links.by_conn(conn) {
            let id = (link.replica, link.session, conn);
            match link.next(&mut self.driver, &self.core, &mut self.buffers) {
                Ok(Step::NeedInput) => return,
                Ok(Step::Reply(header, inline)) => {
                    deliver(&mut self.core, &mut self.driver, id, &header, inline, self.now);
                    self.act();
                }
                Ok(Step::Filled(header, zeros)) => {
                    self.core.reply(id.0, id.1, &header, &zeros.encode(), self.now);
                    self.act();
                }
                Err(why) => return self.broken(conn, &why),
            }
        }
    }

    fn broken(&mut self, conn: ConnId, why: &Broken) {
        self.lost(conn, &why.to_string());
    }

    fn failed(&mut self, conn: ConnId, error: Errno) {
        if !self.frontends.failed(conn, &mut self.driver) {
            self.lost(conn, error.desc());
        }
    }

    /// A replica's connection is of no use any more.
    fn lost(&mut self, conn: ConnId, why: &str) {
        let Some(link) = self.links.by_conn(conn) else { return };
        let (replica, session) = (link.replica, link.session);
        tracing::warn!(%replica, "connection lost: {why}");
        self.links.close(conn, &mut self.driver);
        self.core.disconnected(replica, session, why, self.now);
        self.look = true;
        self.act();
    }

    // ---- commands ---------------------------------------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        self.look = true;
        match command {
            Command::Locate(replica) => self.locate(replica),
            Command::Want(wanted) => self.core.want(wanted, self.now),
            Command::Pace(pace) => self.core.pace_fill(pace, self.now),
            Command::Force(force) => self.core.force(force, self.now),
            Command::Connected { attempt, connected } => {
                if !self.is_last(attempt) {
                    return;
                }
                let replica = attempt.replica;
                let Connected { socket, terms, welcome, about } = *connected;
                match self.driver.add_conn(socket) {
                    Ok(conn) => {
                        let session = self.next_session;
                        self.next_session += 1;
                        self.links.add(Link::new(replica, session, conn, terms));
                        tracing::info!(%replica, version = terms.version, features = terms.features,
                            build = about.build, "connected");
                        let promised = attempt.generation;
                        self.core.connected(replica, session, promised, welcome, about.boot, self.now);
                    }
                    Err(e) => {
                        let why = ConnectFailure::Unreachable(e.to_string());
                        self.core.connect_failed(replica, why, self.now);
                    }
                }
            }
            Command::ConnectFailed { attempt, why } => {
                if self.is_last(attempt) && attempt.generation == self.core.generation() {
                    self.core.connect_failed(attempt.replica, why, self.now);
                }
            }
            Command::RegistryResult { ask, outcome } => {
                self.core.registry_result(ask, outcome, self.now);
            }
            Command::Client(new) => self.frontends.admit(new, &mut self.driver),
            Command::CheckClients => self.frontends.check(&self.driver, self.now),
            Command::Drain { within } => self.begin_drain(within),
            Command::Stop => self.stopped = true,
        }
    }

    fn locate(&mut self, r: Whereabouts) {
        self.core.locate(r.replica, r.known, r.local, r.absent, self.now);
        self.act();
    }

    /// Whether this is the last try to reach that replica.
    fn is_last(&self, attempt: Attempt) -> bool {
        self.attempts.contains(&attempt)
    }

    // ---- actions ----------------------------------------------------------------------------------------------------

    /// Does all that the core wants done.
    fn act(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Send { replica, session, header, body } => {
                    let Some(link) = self.links.by_session(replica, session) else { continue };
                    if !link.send(header, &body, &mut self.driver, &mut self.buffers) {
                        debug_assert!(false, "{header:?} needs a buffer that is not there");
                        let conn = link.conn;
                        self.links.close(conn, &mut self.driver);
                        self.core.disconnected(replica, session, "a buffer is missing", self.now);
                    }
                }
                Action::Complete { op, outcome } => {
                    if let (User::Client(part), buf) = self.buffers.end(op) {
                        self.frontends(|frontends, x| frontends.complete(part, buf, outcome, x));
                        self.last_io = self.now;
                    }
                }
                Action::Reserve { op, len } => self.buffers.reserve(op, len),
                Action::Release { op } => {
                    self.buffers.end(op);
                }
                rare => {
                    self.look = true;
                    self.act_rarely(rare);
                }
            }
        }
    }

    fn act_rarely(&mut self, action: Action) {
        match action {
            Action::Connect { replica, generation, lineage, epoch } => {
                let attempt = self.next_attempt(replica, generation);
                self.tell(Event::Connect { attempt, lineage, epoch });
            }
            Action::Disconnect { replica, session } => {
                if let Some(conn) = self.links.by_session(replica, session).map(|link| link.conn) {
                    self.links.close(conn, &mut self.driver);
                }
            }
            Action::CompareAndSwap { ask, expected_version, status } => {
                self.tell(Event::CompareAndSwap { ask, expected_version, status });
            }
            Action::Serve => self.tell(Event::Serve),
            Action::End(ending) => {
                self.links.close_all(&mut self.driver);
                self.frontends.ending();
                self.ending = Some(ending);
            }
            Action::Send { .. }
            | Action::Complete { .. }
            | Action::Reserve { .. }
            | Action::Release { .. } => {}
        }
    }

    fn next_attempt(&mut self, replica: ReplicaId, generation: holdfast_proto::ids::Generation) -> Attempt {
        let fresh = Attempt { replica, number: 0, generation };
        let at = match self.attempts.iter().position(|attempt| attempt.replica == replica) {
            Some(at) => at,
            None => {
                self.attempts.push(fresh);
                self.attempts.len() - 1
            }
        };
        let attempt = Attempt { number: self.attempts[at].number + 1, ..fresh };
        self.attempts[at] = attempt;
        attempt
    }

    fn tell(&self, event: Event) {
        // The control thread has ended: so will this one.
        let _ = self.events.send(event);
    }

    // ---- the end ----------------------------------------------------------------------------------------------------

    fn begin_drain(&mut self, within: Duration) {
        if self.drain == Drain::No {
            self.frontends.refuse_new();
            self.drain = Drain::Requests { until: self.now + REQUESTS_WITHIN.min(within / 2) };
        }
    }

    /// Tells the core to drain once clients have brought what they began to send.
    fn go_on_draining(&mut self) {
        if let Drain::Requests { until } = self.drain
            && (self.frontends.idle() || until <= self.now)
        {
            self.drain = Drain::Core;
            self.look = true;
            self.core.drain(self.now);
            self.act();
        }
    }

    /// Once the core has ended, clients get their last replies; then the end is told.
    fn tell_ending(&mut self) {
        if self.ending.is_none() {
            return;
        }
        self.frontends(Frontends::see_all_off);
        if self.frontends.empty()
            && let Some(ending) = self.ending.take()
        {
            tracing::info!(?ending, "nothing more is served");
            self.tell(Event::Ended(ending));
        }
    }

    // ---- now and then -----------------------------------------------------------------------------------------------

    /// Tells the control thread what has changed. That a client has come or gone is told at once: whoever wants to
    /// detach the volume waits for it, and the next turn may be a heartbeat away.
    fn report(&mut self) {
        let clients = self.frontends.count();
        let look = self.look || clients != self.told.clients;
        if !look && self.now < self.told.looked_at + REPORT_EVERY {
            return;
        }
        self.look = false;
        self.told.looked_at = self.now;
        let report = self.core.report(self.now);
        let io = self.frontends.counters();
        let changed = match &self.told.report {
            None => true,
            Some(told) if *told == report && self.told.clients == clients && self.told.io == io => return,
            Some(told) => {
                let uncounted = Report { reads: told.reads, writes: told.writes, ..report.clone() };
                uncounted != *told || self.told.clients != clients
            }
        };
        if changed || self.now >= self.told.told_at + COUNTERS_EVERY {
            self.told.told_at = self.now;
            self.told.clients = clients;
            self.told.io = io;
            self.told.report = Some(report.clone());
            let stalled = self.frontends.stalled();
            self.tell(Event::Report { report: Box::new(report), clients, stalled, io: Box::new(io) });
        }
    }

    /// Gives the memory of a burst back once it is over.
    fn trim(&mut self) {
        if self.buffers.clients() > 0 || self.last_io == self.now {
            self.trimmed = false;
        } else if !self.trimmed && self.now >= self.last_io + IDLE_AFTER {
            self.trimmed = true;
            self.driver.pool().trim();
        }
    }
}
