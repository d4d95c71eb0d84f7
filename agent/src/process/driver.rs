//! The one task per instance that lives as long as its process: starts or finds it, watches it, talks to it, ends it.
//!
//! It reports [`Event`]s and decides nothing; what the instance should serve and whether it should end are told to
//! it through two watch channels of which only the newest value counts. When the task is dropped, the process stays.

mod session;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_dataplane::error::EXIT_PANICKED;
use holdfast_proto::ids::BootId;
use holdfast_proto::pb::instance::configure_request::Role;
use rustix::process::Signal;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::binary::Binary;
use super::cgroup::Cgroup;
use super::link::{self, Expected};
use super::proc::{self, Life};
use super::watch::Watched;
use super::{logs, spawn};
use crate::blocking::blocking;
use crate::core::instance::{Event, InstanceName};
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::features::Features;
use crate::store::atomic;
use crate::store::instances::{InstanceStore, SpawnRecord};

/// A drain flushes what is in flight; longer than any flush of a healthy disk, shorter than a person's patience.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// From being asked to end to the first signal.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// From that to the one that cannot be ignored: what is written may have to be flushed to a slow disk.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How often an instance that cannot be asked is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// And so often before one whose socket is gone is asked to make it again.
const LOOKS_BEFORE_HANGUP: u32 = 10;

/// What all drivers share.
#[derive(Debug)]
pub struct Context {
    /// Where spawn records are.
    pub store: InstanceStore,
    /// What engines ask things of.
    pub registry: Arc<dyn Registry>,
    /// What may be written into its records.
    pub features: Features,
    /// This boot.
    pub boot_id: BootId,
    /// What new processes run.
    pub binary: Binary,
    /// Where they are put.
    pub cgroup: Cgroup,
    /// Where events go. Bounded: a supervisor that cannot keep up slows the drivers, not the data path.
    pub events: mpsc::Sender<Report>,
}

/// An event of one instance.
#[derive(Debug)]
pub struct Report {
    /// Whose.
    pub name: InstanceName,
    /// Of which driver: events of an earlier one are stale.
    pub run: u64,
    /// What happened.
    pub event: Event,
}

/// How a driver begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Start a process, unless one lives.
    Spawn {
        /// After it has failed more than once: that is no news.
        again: bool,
    },
    /// Find the process that an earlier agent started.
    Adopt,
}

/// The wish that an instance ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopWish {
    /// After finishing what it has begun.
    pub drain: bool,
}

/// A running driver. Dropping it leaves the process alone.
pub struct Driver {
    /// Tells its events from those of earlier drivers of the same name.
    pub run: u64,
    role: watch::Sender<Option<Role>>,
    stop: watch::Sender<Option<StopWish>>,
    hangup: Arc<Notify>,
    check: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Starts one for `record`.
    #[must_use]
    pub fn start(context: Arc<Context>, record: SpawnRecord, begin: Begin, run: u64) -> Self {
        let (role, stop, check) =
            (watch::Sender::new(None), watch::Sender::new(None), watch::Sender::new(()));
        let hangup = Arc::new(Notify::new());
        let (role_told, stop_told) = (role.subscribe(), stop.subscribe());
        let task = Task {
            context,
            record,
            run,
            role: role_told,
            stop: stop_told,
            check: check.subscribe(),
            hangup: Arc::clone(&hangup),
            deaf: false,
            refused: None,
        };
        Self { run, role, stop, check, hangup, task: tokio::spawn(task.run(begin)) }
    }
    /// What the instance should serve. Nothing is sent where it serves that already.
    pub fn configure(&self, role: Role) {
        self.role.send_if_modified(|old| {
            let modified = !old.as_ref().is_some_and(|old| same_settings(old, &role));
            *old = Some(role);
            modified
        });
    }
    /// That it should find out which of its clients are still there.
    pub fn check_clients(&self) {
        self.check.send_replace(());
    }
    /// That it should end.
    pub fn stop(&self, wish: StopWish) {
        self.stop.send_replace(Some(wish));
    }
    /// That sockets of it are gone: it makes them again. Only for one that has answered: before that the signal would end it.
    pub fn bind_again(&self) {
        self.hangup.notify_one();
    }
    /// Lets go of the instance and waits until nothing of this driver runs any more.
    pub async fn release(mut self) {
        self.task.abort();
        // Cancelled is what was asked for; a panic has been reported by the runtime.
        let _ = (&mut self.task).await;
    }
}

impl fmt::Debug for Driver {
    // What it configures holds the volume's key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether two configurations differ in nothing that an instance is told after its first one: the record's version
/// and status move with the engine's own writes, and what became of the engine before matters at the start alone.
fn same_settings(a: &Role, b: &Role) -> bool {
    // The common case, which needs no copy.
    if a == b {
        return true;
    }
    match (a, b) {
        (Role::Engine(a), Role::Engine(b)) => {
            let mut a = a.clone();
            a.record_version = b.record_version;
            a.status.clone_from(&b.status);
            a.predecessor_gone = b.predecessor_gone;
            a == *b
        }
        (Role::Engine(_) | Role::Replica(_), _) => false,
    }
}

struct Task {
    context: Arc<Context>,
    record: SpawnRecord,
    run: u64,
    role: watch::Receiver<Option<Role>>,
    stop: watch::Receiver<Option<StopWish>>,
    hangup: Arc<Notify>,
    /// No socket leads to it: only signals do.
    deaf: bool,
    /// Why the instance does not serve what it was told to, as it was reported last.
    refused: Option<String>,
    check: watch::Receiver<()>,
}

impl Task {
    async fn run(mut self, begin: Begin) {
        let ended = self.live(begin).await;
        self.report(Event::Ended(ended)).await;
    }

    /// The whole life of the process. Returns why it ended.
    async fn live(&mut self, begin: Begin) -> String {
        let spawned = match begin {
            Begin::Spawn { again } => match self.spawn(again).await {
                Ok(spawned) => spawned,
                Err(error) => return error.to_string(),
            },
            Begin::Adopt => None,
        };
        let mut process = match spawned {
            Some(process) => process,
            None => match self.find().await {
                Ok(process) => process,
                Err(nobody) => return nobody,
            },
        };
        self.report(Event::Process(process.pid())).await;
        let cause = self.attend(&mut process).await;
        self.forget_process().await;
        self.context.cgroup.remove(&self.record.name.to_string());
        // What was asked to end needs no explanation, and what was killed could not give one.
        if self.stop.borrow().is_some() || cause.starts_with("killed") {
            return cause;
        }
        let log = self.context.store.log_of(&self.record.name.to_string());
        let last_line = blocking(move || Ok(logs::last_line(&log))).await.ok().flatten();
        explained(cause, last_line)
    }

    /// Makes the record durable, then starts the process. None when one lives already.
    async fn spawn(&mut self, again: bool) -> Result<Option<Watched>, Error> {
        self.record.boot_id = self.context.boot_id;
        self.record.binary_digest.clone_from(&self.context.binary.digest);
        self.record.process = None;
        let (context, mut record) = (Arc::clone(&self.context), self.record.clone());
        let spawned = blocking(move || {
            let name = record.name.to_string();
            if proc::probe(&context.store.lock_of(&name))? == Life::Held {
                return Ok(None);
            }
            context.store.write(&record)?;
            let child = spawn::spawn(&record, &context.binary, &context.store)?;
            let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
            context.cgroup.place(&name, pid);
            record.process = proc::process(pid);
            if let Err(error) = context.store.write(&record) {
                // The process is found without it, by its lock and its answer.
                tracing::warn!(instance = name, %error, "its process is not in its record");
            }
            Ok(Some((child, record)))
        });
        let Some((child, record)) = spawned.await? else { return Ok(None) };
        let (name, uuid, pid) = (&record.name, &record.uuid, child.id());
        match again {
            true => tracing::debug!(instance = %name, %uuid, pid, "started again"),
            false => tracing::info!(instance = %name, %uuid, pid, "started"),
        }
        let binary = self.context.binary.path.clone();
        self.record = record;
        Watched::child(child).map(Some).map_err(Error::io("watch a process of", binary))
    }

    /// Finds the process that holds the lock. An error: nobody does.
    async fn find(&mut self) -> Result<Watched, String> {
        let mut told = String::new();
        let mut looks = 0_u32;
        loop {
            let lock = self.context.store.lock_of(&self.record.name.to_string());
            let why = match blocking(move || proc::probe(&lock)).await {
                Ok(Life::Free) => {
                    self.forget_process().await;
                    return Err("no process holds its lock".to_owned());
                }
                Ok(Life::Held) => match self.ask().await {
                    Ok(process) => return Ok(process),
                    Err(why) => format!("it lives (its lock is held) and cannot be asked: {why}"),
                },
                Err(error) => error.to_string(),
            };
            // Said once per cause, tried for ever.
            if why != told {
                tracing::warn!(instance = %self.record.name, why, "left alone");
                self.report(Event::Lost(why.clone())).await;
                told = why;
            }
            looks = looks.wrapping_add(1);
            if let Some(process) = self.without_its_socket(looks).await {
                self.deaf = true;
                return Ok(process);
            }
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                // Why the wish to end does not reach it is said anew.
                Ok(()) = self.stop.changed() => told.clear(),
            }
        }
    }

    /// The process that holds the lock, by its record, where no socket leads to it and it is to end: signals reach it. One that
    /// is to stay is asked to make its socket again.
    async fn without_its_socket(&self, looks: u32) -> Option<Watched> {
        let (socket, process) = (self.record.control_socket.clone(), self.record.process?);
        let is_gone = blocking(move || Ok(atomic::is_gone(&socket))).await;
        // A number alone may be a later process's; its start makes it the one that was spawned, and in this boot.
        if !is_gone.unwrap_or_default() || self.record.boot_id != self.context.boot_id {
            return None;
        }
        let process = Watched::adopt(process).ok()?;
        if self.stop.borrow().is_some() {
            return Some(process);
        }
        // By then it has started, and the signal does not end it.
        if looks.is_multiple_of(LOOKS_BEFORE_HANGUP) {
            process.signal(Signal::HUP);
        }
        None
    }

    async fn ask(&mut self) -> Result<Watched, String> {
        // The process that listens must be the one that it says it is.
        let (mut client, pid) = link::connect(&self.record.control_socket, None).await?;
        let (_, found) = link::hello(&mut client, &self.expected(Some(pid))).await?;
        let process = Watched::adopt(found).map_err(|e| format!("its process: {e}"))?;
        tracing::info!(instance = %self.record.name, pid = found.pid, "adopted");
        if self.record.process != Some(found) {
            self.record.process = Some(found);
            self.write_record().await;
        }
        Ok(process)
    }

    /// Watches and talks until the process ends.
    async fn attend(&mut self, process: &mut Watched) -> String {
        let (mut stop, hangup, deaf) = (self.stop.clone(), Arc::clone(&self.hangup), self.deaf);
        let mut ladder = Ladder::default();
        let pid = process.pid();
        let talking = self.talk(pid);
        tokio::pin!(talking);
        loop {
            if let Some(wish) = *stop.borrow_and_update() {
                ladder.begin(StopWish { drain: wish.drain && !deaf });
            }
            tokio::select! {
                cause = process.ended() => return cause,
                () = &mut talking => {}
                () = ladder.step() => if let Some(signal) = ladder.climb() {
                    tracing::warn!(pid, ?signal, "it does not end by itself");
                    process.signal(signal);
                },
                () = hangup.notified() => process.signal(Signal::HUP),
                Ok(()) = stop.changed() => {}
            }
        }
    }

    fn expected(&self, pid: Option<i32>) -> Expected {
        Expected {
            name: self.record.name.clone(),
            uuid: self.record.uuid,
            boot_id: self.context.boot_id,
            pid,
        }
    }

    async fn report(&self, event: Event) {
        let report = Report { name: self.record.name.clone(), run: self.run, event };
        // Without a supervisor nobody wants to know.
        let _ = self.context.events.send(report).await;
    }

    /// That the last end was seen: a later agent need not wonder what became of the process.
    async fn forget_process(&mut self) {
        if self.stop.borrow().is_some() && self.record.process.take().is_some() {
            self.write_record().await;
        }
    }

    async fn write_record(&self) {
        let (context, record) = (Arc::clone(&self.context), self.record.clone());
        if let Err(error) = blocking(move || context.store.write(&record)).await {
            tracing::warn!(instance = %self.record.name, %error, "its record is not up to date");
        }
    }
}

/// Why a process ended, from how it did and the last line of its log. Its log may be what is full.
fn explained(cause: String, last_line: Option<String>) -> String {
    let panicked = cause == format!("exit code {EXIT_PANICKED}");
    match (panicked, last_line) {
        (true, Some(line)) if line.contains("panicked") => format!("{cause}: {line}"),
        (true, _) => format!(
            "{cause}: one of its threads panicked, and its log does not say where; is the disk of its log full or \
             read-only?"
        ),
        (false, Some(line)) => format!("{cause}: {line}"),
        (false, None) => cause,
    }
}

/// From asking a process to end to making it.
#[derive(Debug, Default)]
struct Ladder {
    next: Option<(Instant, Signal)>,
    begun: bool,
}

impl Ladder {
    fn begin(&mut self, wish: StopWish) {
        if !self.begun {
            self.begun = true;
            let patience = if wish.drain { DRAIN_WITHIN + ASKED_WITHIN } else { ASKED_WITHIN };
            self.next = Some((Instant::now() + patience, Signal::TERM));
        }
    }
    async fn step(&self) {
        match self.next {
            Some((at, _)) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
    fn climb(&mut self) -> Option<Signal> {
        let (at, signal) = self.next.take()?;
        if signal == Signal::TERM {
            self.next = Some((at + END_WITHIN, Signal::KILL));
        }
        Some(signal)
    }
}

/// The port of `HOST:PORT`.
fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

/// Where the engine of a volume serves NBD.
#[must_use]
pub fn nbd_socket(runtime_dir: &std::path::Path, volume: &str) -> PathBuf {
    runtime_dir.join(format!("nbd-{volume}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::pb::instance as pb;

    #[tokio::test(start_paused = true)]
    async fn o1_a_process_is_asked_then_told_then_ended() {
        for drain in [true, false] {
            let asked = ASKED_WITHIN + if drain { DRAIN_WITHIN } else { Duration::ZERO };
            let mut ladder = Ladder::default();
            let begun = Instant::now();
            ladder.begin(StopWish { drain });
            ladder.step().await;
            assert_eq!(begun.elapsed(), asked);
            // Asking again does not begin again.
            ladder.begin(StopWish { drain });
            assert_eq!(ladder.climb(), Some(Signal::TERM));
            ladder.step().await;
            assert_eq!(begun.elapsed(), asked + END_WITHIN);
            assert_eq!(ladder.climb(), Some(Signal::KILL));
            assert_eq!(ladder.climb(), None);
        }
    }

    #[test]
    fn end_by_a_panic_is_told_from_its_code_where_the_log_is_full() {
        let panicked = format!("exit code {EXIT_PANICKED}");
        let old = "2026-11-30T00:00:00Z  INFO engine taken".to_owned();
        let told = explained(panicked.clone(), Some(old.clone()));
        assert!(
            told.contains("panicked") && told.contains("full") && !told.contains("engine taken"),
            "{told}"
        );
        let line = "ERROR the process ends: thread data panicked at a.rs:1: no".to_owned();
        assert_eq!(explained(panicked.clone(), Some(line.clone())), format!("{panicked}: {line}"));
        assert_eq!(explained("exit code 1".to_owned(), Some(old.clone())), format!("exit code 1: {old}"));
        assert_eq!(explained("exit code 1".to_owned(), None), "exit code 1");
    }

    #[test]
    fn n3_an_engines_own_writes_are_no_new_settings() {
        let engine = pb::EngineConfig { record_version: 1, ..Default::default() };
        let mut next = engine.clone();
        next.record_version = 2;
        next.status = Some(pb::VolumeStatus { generation: 4, ..Default::default() });
        next.predecessor_gone = true;
        assert!(same_settings(&Role::Engine(engine.clone()), &Role::Engine(next.clone())));
        let paced = pb::EngineConfig { fill_pace: Some(pb::FillPace::default()), ..next.clone() };
        assert!(!same_settings(&Role::Engine(next.clone()), &Role::Engine(paced)), "a turn is told");
        next.replicas.push(pb::ReplicaEndpoint::default());
        assert!(!same_settings(&Role::Engine(engine), &Role::Engine(next)));
    }

    #[test]
    fn ports_are_found_behind_any_host() {
        assert_eq!(port_of("127.0.0.1:20001"), Some(20001));
        assert_eq!(port_of("[::1]:20001"), Some(20001));
        for bad in ["", "::", "host", "host:", "host:70000"] {
            assert_eq!(port_of(bad), None, "{bad}");
        }
    }
}
