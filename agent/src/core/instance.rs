//! One instance as its agent sees it: its name, and the states it goes through.
//!
//! Events come in through [`Instance::handle`]; the state is read through getters. A restart is decided by the
//! reconciler: a process that ends only moves to `Down`, with the moment from which it may be started again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use holdfast_proto::ids::{InstanceUuid, InvalidId, ReplicaId, VolumeId, VolumeName};
use holdfast_proto::pb::instance as pb;
use serde::{Deserialize, Serialize};

use super::Moment;
use super::backoff::Backoff;
use super::turns::Want;

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Keeps one copy.
    Replica(ReplicaId),
    /// Serves the volume.
    Engine,
}

impl Kind {
    /// `engine` or `replica`: the binary's subcommand, and what people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replica(_) => "replica",
            Self::Engine => "engine",
        }
    }
}

/// Whether an engine that says this of its volume has it: it has said something, and does not wait for it any more.
#[must_use]
pub fn has_volume(state: &str) -> bool {
    !matches!(state, "" | "attaching")
}

/// `<volume>.r<N>` or `<volume>.engine`. Volume names have no dots, so the name says all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName {
    volume: VolumeName,
    kind: Kind,
}

impl InstanceName {
    /// The engine of a volume.
    #[must_use]
    pub fn engine(volume: &VolumeName) -> Self {
        Self { volume: volume.clone(), kind: Kind::Engine }
    }
    /// From the first to the last name that an instance of a volume can have.
    #[must_use]
    pub fn all_of(volume: &VolumeName) -> std::ops::RangeInclusive<Self> {
        Self::replica(volume, ReplicaId(0))..=Self::engine(volume)
    }
    /// A replica of a volume.
    #[must_use]
    pub fn replica(volume: &VolumeName, id: ReplicaId) -> Self {
        Self { volume: volume.clone(), kind: Kind::Replica(id) }
    }
    /// The volume's name.
    #[must_use]
    pub fn volume(&self) -> &VolumeName {
        &self.volume
    }
    /// What it does.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Engine => write!(f, "{}.engine", self.volume),
            Kind::Replica(id) => write!(f, "{}.{id}", self.volume),
        }
    }
}

/// Why a text is not an instance's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// One of its halves is wrong.
    #[error(transparent)]
    Half(#[from] InvalidId),
    /// It has no halves.
    #[error("instance name {0:?} is not valid: expected VOLUME.engine or VOLUME.rN")]
    Shape(String),
}

impl FromStr for InstanceName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let Some((volume, kind)) = text.split_once('.') else {
            return Err(InvalidName::Shape(text.chars().take(80).collect()));
        };
        let kind = match kind {
            "engine" => Kind::Engine,
            replica => Kind::Replica(replica.parse()?),
        };
        Ok(Self { volume: volume.parse()?, kind })
    }
}
impl TryFrom<String> for InstanceName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}
impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.to_string()
    }
}

/// Where an instance is in its life. Only `Down` proves that no process exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its process exists (or is about to); it has not been verified and confirmed by this agent yet.
    Pending,
    /// Confirmed; it is opening what it serves.
    Starting,
    /// It says that it serves.
    Running,
    /// It was told to end.
    Stopping,
    /// No process exists: the lock is free, or the process was reaped.
    Down {
        /// Why, where it was not asked for.
        error: Option<String>,
        /// From when on it may be started again.
        retry_at: Moment,
    },
    /// A process may exist and cannot be asked: left alone until it can.
    Unknown(String),
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A process is about to be started.
    Spawning,
    /// Its process has this number.
    Process(i32),
    /// It answered, was verified, and is confirmed.
    Confirmed,
    /// Its own account of itself.
    Status(Box<pb::InstanceStatus>),
    /// It was told what to serve; an error is why it does not.
    Configured(Result<(), String>),
    /// It was told to end.
    StopAsked,
    /// Its process has ended, or could not be started.
    Ended(String),
    /// It holds its lock, but what answers is not it, or nothing does.
    Lost(String),
    /// Its process is the right one, lives, and has stopped answering: what it said before does not count any more.
    Silent(String),
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Instance {
    uuid: InstanceUuid,
    volume_id: VolumeId,
    state: State,
    /// When the process was started, or found running.
    since: Moment,
    pid: Option<i32>,
    restarts: u32,
    backoff: Backoff,
    status: Option<Box<pb::InstanceStatus>>,
    /// Why it does not serve what it was told to.
    refused: Option<String>,
    /// Why nothing is known of it although it runs. It can still be ended.
    silent: Option<String>,
    /// When it last had a peer or I/O, as far as it says.
    used_at: Option<Moment>,
    stop_asked: bool,
}

impl Instance {
    /// One that nobody has looked at yet, or that is proven not to run.
    #[must_use]
    pub fn new(uuid: InstanceUuid, volume_id: VolumeId, restarts: u32, state: State, now: Moment) -> Self {
        Self {
            uuid,
            volume_id,
            state,
            since: now,
            pid: None,
            restarts,
            backoff: Backoff::default(),
            status: None,
            refused: None,
            silent: None,
            used_at: None,
            stop_asked: false,
        }
    }

    /// Changes the state.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Spawning => {
                if matches!(&self.state, State::Down { error: Some(_), .. }) {
                    self.restarts = self.restarts.saturating_add(1);
                }
                self.since = now;
                self.stop_asked = false;
                self.status = None;
                self.refused = None;
                self.silent = None;
                self.pid = None;
                self.state = State::Pending;
            }
            Event::Process(pid) => self.pid = Some(pid),
            Event::Confirmed => {
                self.silent = None;
                if matches!(self.state, State::Pending | State::Unknown(_)) {
                    self.state = if self.stop_asked { State::Stopping } else { State::Starting };
                }
            }
            Event::Status(status) => self.reported(status, now),
            Event::Configured(result) => self.refused = result.err(),
            Event::StopAsked => {
                self.stop_asked = true;
                self.state = State::Stopping;
            }
            Event::Ended(reason) => self.ended(reason, now),
            Event::Lost(reason) => {
                self.status = None;
                self.silent = None;
                self.state = State::Unknown(reason);
            }
            Event::Silent(reason) => {
                self.status = None;
                self.silent = Some(reason);
            }
        }
    }

    fn reported(&mut self, status: Box<pb::InstanceStatus>, now: Moment) {
        self.silent = None;
        let alive =
            matches!(self.state, State::Pending | State::Starting | State::Running | State::Unknown(_));
        if alive && !self.stop_asked {
            self.state = match status.phase.as_str() {
                "pending" => State::Pending,
                "running" => State::Running,
                "stopping" => State::Stopping,
                _ => State::Starting,
            };
        }
        // A peer that has gone since the last word was there until now; before the first word anything may have been.
        let has_peer = |status: &pb::InstanceStatus| peers(status) != Some(0);
        let same = |old: &pb::InstanceStatus| !has_peer(old) && counted(old) == counted(&status);
        if has_peer(&status) || !self.status.as_deref().is_some_and(same) {
            self.used_at = Some(now);
        }
        self.status = Some(status);
    }

    fn ended(&mut self, reason: String, now: Moment) {
        self.status = None;
        self.refused = None;
        self.silent = None;
        self.pid = None;
        self.state = if self.stop_asked {
            self.backoff = Backoff::default();
            State::Down { error: None, retry_at: now }
        } else {
            State::Down { error: Some(reason), retry_at: self.backoff.failed(self.since, now) }
        };
        self.stop_asked = false;
    }

    /// Its creation.
    #[must_use]
    pub fn uuid(&self) -> InstanceUuid {
        self.uuid
    }
    /// The volume it belongs to.
    #[must_use]
    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }
    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }
    /// When the process was started, or found running.
    #[must_use]
    pub fn since(&self) -> Moment {
        self.since
    }
    /// The number of its process, where one exists.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }
    /// How often it was started again after an unasked end.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }
    /// Whether it is proven that no process of it exists.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }
    /// Whether it may be told something: a process exists, answers, and is not ending.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Pending | State::Starting | State::Running)
    }
    /// Why nothing is known of it although its process runs.
    #[must_use]
    pub fn silent(&self) -> Option<&str> {
        self.silent.as_deref()
    }
    /// Whether it has failed more than once in a row: its way up is no news then.
    #[must_use]
    pub fn fails_again(&self) -> bool {
        self.backoff.repeats()
    }
    /// Whether this agent has told it to end.
    #[must_use]
    pub fn stop_asked(&self) -> bool {
        self.stop_asked
    }
    /// What an engine says of its volume.
    #[must_use]
    pub fn engine_status(&self) -> Option<&pb::EngineStatus> {
        self.status.as_ref()?.engine.as_ref()
    }
    /// What a replica says of its data.
    #[must_use]
    pub fn replica_status(&self) -> Option<&pb::ReplicaStatus> {
        self.status.as_ref()?.replica.as_ref()
    }
    /// By what it shows that somebody uses it: a peer, or I/O within `lately`. One that does not say so is in use, too.
    #[must_use]
    pub fn in_use(&self, lately: Duration, now: Moment) -> Option<String> {
        let peer = if self.engine_status().is_some() { "client" } else { "engine" };
        match self.status.as_deref().map(peers) {
            None => Some("it has not said whether anybody uses it".to_owned()),
            Some(None) => {
                Some("it is of a build that does not say whether an engine is connected".to_owned())
            }
            Some(Some(0)) => {
                let ago = now.saturating_sub(self.used_at?);
                (ago < lately).then(|| format!("in use {} s ago", ago.as_secs()))
            }
            Some(Some(1)) => Some(format!("1 {peer} is connected")),
            Some(Some(count)) => Some(format!("{count} {peer}s are connected")),
        }
    }
    /// Where a replica's data port listens.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.replica_status().map(|status| status.address.as_str()).filter(|address| !address.is_empty())
    }
    /// Why a replica says that it has no usable data. One whose flush failed is not that: the engine fills it anew.
    #[must_use]
    pub fn data_problem(&self) -> Option<String> {
        let mode = self.replica_status()?.mode.as_str();
        let told = self.status.as_ref().map_or("", |status| status.reason.as_str());
        (mode == "absent")
            .then(|| if told.is_empty() { format!("its data is {mode}") } else { told.to_owned() })
    }
    /// What a plan may depend on.
    #[must_use]
    pub fn relevant(&self) -> Relevant {
        let engine = self.engine_status();
        Relevant {
            state: self.state.clone(),
            address: self.address().map(str::to_owned),
            data_problem: self.data_problem(),
            generation: engine.map(|status| status.generation),
            fenced: engine.is_some_and(|status| status.fenced),
            configured: engine.map(|status| status.configured.clone()).unwrap_or_default(),
            want: engine.and_then(Want::of),
        }
    }
    /// The state in the words of the inventory.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Pending | State::Starting | State::Running if self.silent.is_some() => "error",
            State::Pending => "pending",
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Down { error: None, .. } => "stopped",
            State::Down { error: Some(_), .. } | State::Unknown(_) => "error",
        }
    }
    /// Why it is in that state, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &self.state {
            State::Down { error, .. } => error.clone(),
            State::Unknown(reason) => Some(reason.clone()),
            State::Pending | State::Starting | State::Running | State::Stopping => {
                if self.silent.is_some() {
                    return self.silent.clone();
                }
                let told = self.status.as_ref().map(|s| s.reason.clone()).filter(|reason| !reason.is_empty());
                told.or_else(|| {
                    Some(format!("it cannot serve what it was told to: {}", self.refused.as_ref()?))
                })
            }
        }
    }
}

/// What plans are made from; progress and counters are not.
#[derive(Debug, Clone, PartialEq)]
pub struct Relevant {
    state: State,
    address: Option<String>,
    data_problem: Option<String>,
    /// Of an engine: one that the record knows a later one of is ended.
    generation: Option<u64>,
    fenced: bool,
    /// Of an engine: replicas that are configured no more are ended.
    configured: Vec<u32>,
    /// Of an engine: who fills replicas takes turns.
    want: Option<Want>,
}

/// How many are connected; none: it does not say.
fn peers(status: &pb::InstanceStatus) -> Option<u32> {
    match (&status.engine, &status.replica) {
        (Some(engine), _) => Some(engine.clients),
        (None, Some(replica)) => replica.engines,
        // Not configured yet: it serves nothing that anybody could connect to.
        (None, None) => Some(0),
    }
}

/// What grows with I/O.
fn counted(status: &pb::InstanceStatus) -> Option<(u64, u64)> {
    status.engine.as_ref().map(|engine| (engine.reads, engine.writes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    fn down() -> Instance {
        let state = State::Down { error: None, retry_at: secs(0) };
        Instance::new(InstanceUuid::random(), VolumeId::random(), 0, state, secs(0))
    }

    fn says(phase: &str) -> Event {
        Event::Status(Box::new(pb::InstanceStatus { phase: phase.into(), ..Default::default() }))
    }

    #[test]
    fn the_names_of_a_volume_are_neighbours() {
        let named = |text: &str| text.parse::<InstanceName>().unwrap();
        let all = InstanceName::all_of(&"b".parse().unwrap());
        for ours in ["b.r1", "b.r2", "b.r4294967295", "b.engine"] {
            assert!(all.contains(&named(ours)), "{ours}");
        }
        for others in ["a.engine", "a.r1", "b-1.r1", "b0.engine", "c.r1"] {
            assert!(!all.contains(&named(others)), "{others}");
        }
    }

    #[test]
    fn names_say_volume_and_kind() {
        for text in ["demo.engine", "demo.r1", "a-b.r12"] {
            assert_eq!(text.parse::<InstanceName>().unwrap().to_string(), text);
        }
        for bad in ["", "demo", "demo.", ".r1", "demo.r0", "demo.r1.x", "../x.r1", "demo.Engine"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn from_nothing_to_running_and_back() {
        let mut i = down();
        assert_eq!(i.state_name(), "stopped");
        for (event, name) in [
            (Event::Spawning, "pending"),
            (Event::Confirmed, "starting"),
            (says("running"), "running"),
            (Event::StopAsked, "stopping"),
            (says("running"), "stopping"),
            (Event::Ended("exit code 0".into()), "stopped"),
        ] {
            i.handle(event, secs(1));
            assert_eq!(i.state_name(), name);
        }
        assert_eq!((i.restarts(), i.reason()), (0, None));
    }

    #[test]
    fn an_unasked_end_is_an_error_with_a_reason_and_a_restart_counts() {
        let mut i = down();
        i.handle(Event::Spawning, secs(0));
        i.handle(Event::Ended("killed by signal 9".into()), secs(5));
        let down = |at| State::Down { error: Some("killed by signal 9".into()), retry_at: secs(at) };
        assert_eq!(i.state(), &down(5), "at once");
        assert_eq!((i.state_name(), i.reason().as_deref()), ("error", Some("killed by signal 9")));
        i.handle(Event::Spawning, secs(5));
        assert_eq!((i.restarts(), i.state_name()), (1, "pending"));
        i.handle(Event::Ended("killed by signal 9".into()), secs(6));
        assert_eq!(i.state(), &down(7), "not at once the second time");
    }

    #[test]
    fn one_that_cannot_be_asked_is_neither_up_nor_down() {
        let mut i = down();
        i.handle(Event::Spawning, secs(0));
        i.handle(Event::Lost("does not answer".into()), secs(1));
        assert!(!i.is_down() && !i.is_up());
        i.handle(Event::Confirmed, secs(2));
        assert!(i.is_up());
    }

    #[test]
    fn o10_a_peer_or_io_lately_is_use_and_silence_about_it_is_too() {
        let lately = Duration::from_secs(30);
        let with = |engines| {
            let replica = Some(pb::ReplicaStatus { engines, ..Default::default() });
            Event::Status(Box::new(pb::InstanceStatus { replica, ..Default::default() }))
        };
        let mut i = down();
        assert!(i.in_use(lately, secs(0)).is_some(), "it has said nothing");
        for (at, event, used_until) in [
            (100, with(Some(0)), 130), // before the first word anything may have been
            (200, with(Some(1)), u64::MAX),
            (300, with(Some(0)), 330),
            (400, with(Some(0)), 330),
            (500, with(None), u64::MAX),
        ] {
            i.handle(event, secs(at));
            for later in [at, at + 29, at + 30, at + 1000] {
                assert_eq!(i.in_use(lately, secs(later)).is_some(), later < used_until, "at {later}");
            }
        }
        let wrote = |writes| {
            let engine = Some(pb::EngineStatus { writes, ..Default::default() });
            Event::Status(Box::new(pb::InstanceStatus { engine, ..Default::default() }))
        };
        let mut i = down();
        i.handle(wrote(1), secs(0));
        i.handle(wrote(1), secs(100));
        assert_eq!(i.in_use(lately, secs(100)), None);
        i.handle(wrote(2), secs(200));
        assert_eq!(i.in_use(lately, secs(229)).as_deref(), Some("in use 29 s ago"));
        assert_eq!(i.in_use(lately, secs(230)), None);
    }

    #[test]
    fn a_repeated_report_changes_nothing() {
        let mut i = down();
        i.handle(Event::Spawning, secs(0));
        let pending = i.relevant();
        i.handle(says("running"), secs(1));
        assert!(i.relevant() != pending);
        let mut same = |event, at| {
            let before = i.relevant();
            i.handle(event, secs(at));
            i.relevant() == before
        };
        assert!(same(says("running"), 2));
        assert!(same(Event::Confirmed, 3), "a running one is confirmed already");
        let engine = pb::EngineStatus { writes: 1, ..Default::default() };
        let mut status =
            pb::InstanceStatus { phase: "running".into(), engine: Some(engine), ..Default::default() };
        same(Event::Status(Box::new(status.clone())), 4);
        status.engine.as_mut().unwrap().writes = 1000;
        assert!(same(Event::Status(Box::new(status)), 5), "only a counter");
    }

    #[test]
    fn instance_that_serves_nothing_says_why() {
        let mut instance = down();
        instance.handle(Event::Spawning, secs(1));
        instance.handle(Event::Confirmed, secs(1));
        instance.handle(Event::Configured(Err("no port is free".into())), secs(2));
        let reason = instance.reason().unwrap();
        assert!(reason.contains("no port is free"), "{reason}");
        instance.handle(Event::Configured(Ok(())), secs(3));
        assert_eq!(instance.reason(), None);
        instance.handle(Event::Configured(Err("no port is free".into())), secs(4));
        instance.handle(Event::Ended("exit code 1".into()), secs(5));
        instance.handle(Event::Spawning, secs(6));
        assert_eq!(instance.reason(), None, "that was the process before");
    }

    #[test]
    fn silent_instance_is_in_error_and_its_word_does_not_count() {
        let mut instance = down();
        instance.handle(Event::Spawning, secs(1));
        instance.handle(Event::Confirmed, secs(1));
        let engine = pb::EngineStatus { state: "healthy".into(), ..Default::default() };
        let healthy =
            pb::InstanceStatus { phase: "running".into(), engine: Some(engine), ..Default::default() };
        instance.handle(Event::Status(Box::new(healthy.clone())), secs(2));
        let before = instance.relevant();
        instance.handle(Event::Silent("it lives and does not answer".into()), secs(30));
        assert_eq!((instance.state_name(), instance.engine_status()), ("error", None));
        assert_eq!(instance.reason().as_deref(), Some("it lives and does not answer"));
        assert_ne!(instance.relevant(), before, "a plan is made");
        assert!(instance.in_use(secs(1), secs(1000)).is_some(), "nobody knows that it is not used");
        // Its process is known, so that it can be told to end.
        assert!(instance.is_up() && !instance.is_down());
        instance.handle(Event::Status(Box::new(healthy)), secs(40));
        assert_eq!((instance.state_name(), instance.reason()), ("running", None));
        instance.handle(Event::Silent("again".into()), secs(50));
        instance.handle(Event::StopAsked, secs(51));
        assert_eq!(instance.state_name(), "stopping");
        instance.handle(Event::Ended("killed by signal 9".into()), secs(52));
        assert_eq!((instance.state_name(), instance.silent()), ("stopped", None));
    }

    #[test]
    fn instance_fails_again_only_after_two_failures_in_a_row() {
        let mut instance = down();
        let mut now = 1;
        let mut run = |instance: &mut Instance, seconds: u64| {
            instance.handle(Event::Spawning, secs(now));
            now += seconds;
            instance.handle(Event::Ended("exit code 1".into()), secs(now));
        };
        run(&mut instance, 1);
        assert!(!instance.fails_again(), "the first is news");
        run(&mut instance, 1);
        assert!(instance.fails_again());
        run(&mut instance, 3600);
        assert!(!instance.fails_again(), "it was well in between");
    }
}
