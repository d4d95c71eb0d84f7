//! The one task that owns the instances of a node: events in, plans made, actions done, the inventory published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_proto::ids::{InstanceUuid, VolumeId, VolumeName};
use holdfast_proto::pb::agent as pb;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::ShutdownProgress;
use super::roles;
use super::shared::{Command, Shared, blocking};
use super::startup::sockets;
use crate::core::Moment;
use crate::core::blocked::Blocked;
use crate::core::claims::{self, Claim};
use crate::core::elsewhere::Elsewhere;
use crate::core::foreign::Foreign;
use crate::core::instance::{Event, Instance, InstanceName, Kind, State};
use crate::core::moves::Moves;
use crate::core::predecessor::EndedEngines;
use crate::core::reconcile::{self, Action, Plan, World};
use crate::core::records::{Lookup, RecordState, Records};
use crate::core::retry::Retries;
use crate::core::turns::{self, Turns, Want};
use crate::core::view::{self, Viewer};
use crate::error::Error;
use crate::metrics::Since;
use crate::process::driver::{Begin, Context, DRAIN_WITHIN, Driver, Report, StopWish};
use crate::process::{logs, proc};
use crate::registry::{Entry, Read, VolumeKey};
use crate::store::instances::SpawnRecord;
use crate::store::lock::AgentLock;
use crate::store::replica_dirs;

mod act;
mod housekeeping;
mod orphans;
mod settled;
mod shutdown;

pub(super) use orphans::Orphans;

/// How often it is looked for what others may have changed without a word.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Those that may have changed: enough to notice what there is to do.
    Changed,
    /// Each of them.
    All,
}

/// An instance that an earlier agent left.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: InstanceName,
    pub(super) instance: Instance,
    pub(super) record: Option<SpawnRecord>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Supervisor {
    // Weak: when the last handle is gone, so is the reason to supervise.
    shared: Weak<Shared>,
    context: Arc<Context>,
    lock: AgentLock,
    instances: BTreeMap<InstanceName, Instance>,
    drivers: BTreeMap<InstanceName, Driver>,
    sockets: BTreeMap<InstanceName, PathBuf>,
    /// What was said last about why their directory cannot be made again.
    sockets_lost: String,
    digests: BTreeMap<InstanceName, String>,
    keys: BTreeMap<VolumeId, VolumeKey>,
    ended: EndedEngines,
    /// Unclaimed ones that a person has stopped: forgotten when they have ended.
    forgetting: BTreeSet<InstanceName>,
    orphans: Orphans,
    records: Arc<Records>,
    foreign: Arc<Foreign>,
    absent: BTreeMap<InstanceName, String>,
    missing: BTreeSet<InstanceName>,
    elsewhere: Arc<Elsewhere>,
    plan: Plan,
    planned_at: Moment,
    planned_from: (Arc<Records>, Arc<Foreign>),
    blocked: Blocked,
    moves: Moves,
    retries: Retries,
    turns: Turns,
    runs: u64,
    ticks: u64,
}

impl Supervisor {
    pub(super) fn new(
        shared: Weak<Shared>,
        context: Arc<Context>,
        lock: AgentLock,
        orphans: Orphans,
        now: Moment,
    ) -> Self {
        let records = Arc::new(Records::Unavailable("not read yet".to_owned()));
        let foreign = Arc::new(Foreign::Unavailable("not read yet".to_owned()));
        Self {
            shared,
            context,
            lock,
            instances: BTreeMap::new(),
            drivers: BTreeMap::new(),
            sockets: BTreeMap::new(),
            sockets_lost: String::new(),
            digests: BTreeMap::new(),
            keys: BTreeMap::new(),
            ended: EndedEngines::default(),
            forgetting: BTreeSet::new(),
            orphans,
            planned_from: (Arc::clone(&records), Arc::clone(&foreign)),
            records,
            foreign,
            absent: BTreeMap::new(),
            missing: BTreeSet::new(),
            elsewhere: Arc::default(),
            plan: Plan::default(),
            planned_at: now,
            blocked: Blocked::default(),
            moves: Moves::default(),
            retries: Retries::new(now),
            turns: Turns::default(),
            runs: 0,
            ticks: 0,
        }
    }

    /// Begins to watch what earlier agents left running.
    pub(super) fn take_over(&mut self, shared: &Shared, found: Vec<Found>) {
        self.sockets = sockets(&found);
        for Found { name, mut instance, record } in found {
            if let Some(record) = record {
                self.digests.insert(name.clone(), record.binary_digest.clone());
                if !instance.is_down() {
                    if let Some(process) = record.process {
                        instance.handle(Event::Process(process.pid), shared.now());
                    }
                    self.drive(&name, record, Begin::Adopt);
                }
            }
            self.instances.insert(name, instance);
        }
    }

    fn drive(&mut self, name: &InstanceName, record: SpawnRecord, begin: Begin) {
        self.runs += 1;
        let driver = Driver::start(Arc::clone(&self.context), record, begin, self.runs);
        self.drivers.insert(name.clone(), driver);
    }

    /// Supervises until it is told to end or the last handle is gone.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut reports: mpsc::Receiver<Report>,
    ) {
        let Some((mut changes, mut elsewhere, mut standing)) = self
            .shared
            .upgrade()
            .map(|shared| (shared.registry.changes(), shared.elsewhere.subscribe(), shared.standing.clone()))
        else {
            return;
        };
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(shared) = self.shared.upgrade() {
                shared.came_round();
            }
            let next = self.next_at();
            let mut due = tokio::select! {
                command = commands.recv() => {
                    let (Some(command), Some(shared)) = (command, self.shared.upgrade()) else { return };
                    match command {
                        Command::Shutdown { stop_instances, reply } => {
                            drop(commands);
                            self.shut_down(&shared, stop_instances, &mut reports, reply).await;
                            return;
                        }
                        command => self.obey(&shared, command).await,
                    }
                    false
                }
                Some(report) = reports.recv() => self.hear(report),
                Ok(()) = changes.changed() => true,
                Ok(()) = elsewhere.changed() => true,
                Ok(()) = standing.changed() => true,
                () = sleep_until(next) => true,
                _ = tick.tick() => {
                    let Some(shared) = self.shared.upgrade() else { return };
                    self.keep_house(&shared).await;
                    if self.is_as_planned(&shared).await {
                        continue;
                    }
                    true
                }
            };
            // A burst is one reason to look, not many.
            while let Ok(report) = reports.try_recv() {
                due |= self.hear(report);
            }
            let Some(shared) = self.shared.upgrade() else { return };
            if due {
                self.reconcile(&shared, Reads::Changed).await;
            } else {
                self.publish(&shared);
            }
        }
    }

    fn next_at(&self) -> Instant {
        let far = Instant::now() + LOOK_EVERY * 2;
        let Some(shared) = self.shared.upgrade() else { return far };
        let orphan = self.orphans.tracker.next_at(&shared.orphan_settings.lock());
        let next = [self.plan.next_at, orphan].into_iter().flatten().min();
        next.map_or(far, |at| shared.instant(at))
    }

    async fn obey(&mut self, shared: &Shared, command: Command) {
        match command {
            Command::Reconcile { reply } => {
                self.reconcile(shared, Reads::Changed).await;
                let _ = reply.send(());
            }
            Command::CheckClients { name, reply } => {
                if let Some(driver) = self.drivers.get(&name) {
                    driver.check_clients();
                }
                let _ = reply.send(());
            }
            Command::Stop { name, uuid, reply } => {
                // Ownership is read again, whatever was known.
                self.reconcile(shared, Reads::All).await;
                let _ = reply.send(self.stop_unclaimed(shared, &name, &uuid).await);
                self.publish(shared);
            }
            Command::Orphan { wish, name, uuid, reply } => {
                self.orphans.look_at_data = true;
                self.reconcile(shared, Reads::All).await;
                let _ = reply.send(self.obey_about_orphan(shared, wish, &name, &uuid).await);
                self.publish(shared);
            }
            Command::Shutdown { .. } => {}
        }
    }

    /// Takes an event in. Returns whether a plan may depend on it.
    fn hear(&mut self, report: Report) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let current = self.drivers.get(&report.name).is_some_and(|driver| driver.run == report.run);
        let Some(instance) = self.instances.get_mut(&report.name).filter(|_| current) else { return false };
        let ended = matches!(report.event, Event::Ended(_));
        let before = instance.relevant();
        let from = instance.state_name();
        happened(&shared, &report.name, instance, report.event);
        let (to, reason) = (instance.state_name(), instance.reason());
        match to {
            _ if from == to => {}
            "error" => tracing::warn!(instance = %report.name, from, to, reason, "state"),
            // What fails again and again says why when it does; that it was started meanwhile adds nothing.
            _ if instance.fails_again() && to != "running" => {
                tracing::debug!(instance = %report.name, from, to, reason, "state");
            }
            _ => tracing::info!(instance = %report.name, from, to, reason, "state"),
        }
        if report.name.kind() == Kind::Engine {
            shared.metrics.seen.lock().note_io(report.name.volume(), instance.engine_status());
        }
        let changed = before != instance.relevant();
        if ended {
            self.drivers.remove(&report.name);
        }
        changed
    }

    /// Asks the registry for all records, and for what others claim here.
    async fn read_records(&mut self, shared: &Shared, reads: Reads) {
        let registry = &shared.registry;
        let records = match reads {
            Reads::Changed => registry.look(),
            Reads::All => registry.list(),
        };
        let (records, claims) = tokio::join!(records, registry.claims(&shared.config.node));
        // What the records want of a node is not for two agents of one name to do.
        let doubt = shared.check_standing().err().map(|error| error.to_string());
        let certain = || doubt.clone().map_or(Ok(()), |why| Err(Error::failed(why)));
        let records = records.and_then(|entries| certain().map(|()| entries));
        let claims = claims.and_then(|claims| certain().map(|()| claims));
        self.records = Arc::new(match records {
            Ok(entries) => Records::Known(entries.into_iter().map(state_of).collect()),
            Err(error) => {
                if matches!(*self.records, Records::Known(_)) {
                    tracing::error!(%error, "the registry cannot be read; nothing is started or stopped");
                }
                Records::Unavailable(error.to_string())
            }
        });
        if matches!(*self.records, Records::Known(_)) {
            *shared.last_known.lock() = Some(Arc::clone(&self.records));
        }
        *shared.records.lock() = Arc::clone(&self.records);
        self.foreign = Arc::new(match claims {
            Ok(found) => shared.leases.lock().observe(found, shared.now()),
            Err(error) => {
                shared.leases.lock().lost();
                if matches!(*self.foreign, Foreign::Known(_)) {
                    tracing::warn!(%error, "the claims of others cannot be read; nothing is cleaned");
                }
                Foreign::Unavailable(error.to_string())
            }
        });
        *shared.foreign.lock() = Arc::clone(&self.foreign);
    }

    /// Compares records with observations and acts.
    pub(super) async fn reconcile(&mut self, shared: &Shared, reads: Reads) {
        let asked_at = shared.now();
        self.read_records(shared, reads).await;
        self.elsewhere = Arc::clone(&shared.elsewhere.borrow());
        self.look_for_directories(shared).await;
        self.give_turns(shared);
        if self.plan_and_act(shared, reads).await {
            // What is to run in the directories that were made.
            self.look_for_directories(shared).await;
            self.plan_and_act(shared, reads).await;
        }
        self.look_for_orphans(shared, asked_at, reads).await;
        self.forget_ended(shared).await;
        self.note_blocked(shared);
        self.note_moves(shared);
        self.planned_at = asked_at;
        let took = shared.now().saturating_sub(asked_at);
        let known = matches!(*self.records, Records::Known(_));
        shared.metrics.counts.lock().reconciled(took, known);
        self.publish(shared);
    }

    /// Returns whether directories were to be made.
    async fn plan_and_act(&mut self, shared: &Shared, reads: Reads) -> bool {
        let mut plan = reconcile::plan(self.world(shared, shared.now()));
        if reads == Reads::Changed && plan.actions.iter().any(|(_, action)| action.ends_something()) {
            self.read_records(shared, Reads::All).await;
            plan = reconcile::plan(self.world(shared, shared.now()));
        }
        self.planned_from = (Arc::clone(&self.records), Arc::clone(&self.foreign));
        let makes = plan.actions.iter().any(|(_, action)| matches!(action, Action::MakeDirectory { .. }));
        self.carry_out(shared, &mut plan).await;
        self.plan = plan;
        makes
    }

    /// Decides whose replicas are filled now; engines hear of it with their next configuration, which is planned anyway.
    fn give_turns(&mut self, shared: &Shared) {
        let engines = self.instances.values().filter(|instance| instance.is_up());
        let wants = engines.filter_map(|i| Some((i.volume_id(), Want::of(i.engine_status()?)?))).collect();
        let limits = turns::Limits {
            concurrency: usize::try_from(shared.config.limits.rebuild_concurrency).unwrap_or(usize::MAX),
            bytes_per_second: shared.config.limits.rebuild_bandwidth,
        };
        self.turns.decide(&wants, limits, &shared.config.node, shared.now());
    }

    /// Does what is planned, volume by volume as far as it goes, where what failed before may be tried again.
    async fn carry_out(&mut self, shared: &Shared, plan: &mut Plan) {
        let records = Arc::clone(&self.records);
        let wishes: BTreeMap<_, _> = records.readable().map(|record| (&record.name, &record.spec)).collect();
        let mut steps: BTreeMap<VolumeName, Vec<Action>> = BTreeMap::new();
        for (volume, action) in std::mem::take(&mut plan.actions) {
            steps.entry(volume).or_default().push(action);
        }
        let held = self.retries.hold_back(&wishes, steps.keys(), shared.now());
        for (volume, actions) in steps {
            if held.contains(&volume) {
                let before = self.plan.blocked.get(volume.as_str()).cloned();
                let reason = before.unwrap_or_else(|| "waits before it is tried again".to_owned());
                plan.blocked.insert(volume.to_string(), reason);
                shared.metrics.counts.lock().stepped("held_back");
                continue;
            }
            let done = self.steps_of(shared, actions).await;
            shared.metrics.counts.lock().stepped(if done.is_ok() { "done" } else { "failed" });
            match done {
                Ok(()) => self.retries.succeeded(&volume),
                Err(error) => {
                    let reason = error.to_string();
                    let say = (wishes.get(&volume))
                        .is_none_or(|wish| self.retries.failed(&volume, wish, &reason, shared.now()));
                    if say {
                        tracing::warn!(%volume, reason, "cannot go on");
                    }
                    plan.blocked.insert(volume.to_string(), reason);
                }
            }
        }
        plan.next_at = plan.next_at.into_iter().chain(self.retries.next_at(shared.now())).min();
    }

    async fn steps_of(&mut self, shared: &Shared, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            self.act(shared, action).await?;
        }
        Ok(())
    }

    fn world<'a>(&'a self, shared: &'a Shared, now: Moment) -> World<'a> {
        World {
            node: &shared.config.node,
            now,
            records: &self.records,
            foreign: &self.foreign,
            instances: &self.instances,
            absent: &self.absent,
            missing: &self.missing,
            incarnation: shared.registry.incarnation(),
            elsewhere: &self.elsewhere,
        }
    }

    /// Finds the replicas of this node whose directory cannot be used, and those that have none.
    async fn look_for_directories(&mut self, shared: &Shared) {
        let mut wanted = Vec::new();
        for record in self.records.readable() {
            for spec in record.placed().filter(|spec| spec.node == shared.config.node) {
                let name = InstanceName::replica(&record.name, spec.id);
                let path = roles::data_dir(shared, record, spec.id);
                wanted.push((name, path, spec.id, record.id, spec.to_make));
            }
        }
        let labels = Arc::clone(&shared.labels);
        let looked = blocking(move || {
            let (mut absent, mut missing) = (BTreeMap::new(), BTreeSet::new());
            for (name, path, replica, volume, to_make) in wanted {
                if let Err(mut reason) = labels.check(&path, replica, volume) {
                    if replica_dirs::is_missing(&path) {
                        missing.insert(name.clone());
                        if to_make {
                            reason = format!("the replica directory {} was not made yet", path.display());
                        }
                    }
                    absent.insert(name, reason);
                }
            }
            Ok((absent, missing))
        });
        (self.absent, self.missing) = looked.await.unwrap_or_default();
    }

    async fn stop_unclaimed(
        &mut self,
        shared: &Shared,
        name: &str,
        uuid: &str,
    ) -> Result<pb::InstanceInfo, Error> {
        let told = |why: &str| format!("stop instance {name}: {why}");
        let parsed = name.parse::<InstanceName>().ok();
        let known = parsed.and_then(|n| self.instances.get_key_value(&n)).map(|(n, i)| (n.clone(), i));
        let Some((name, instance)) = known else {
            return Err(Error::not_found(told("there is none; `holdfast instance ls` lists all")));
        };
        let found = instance.uuid();
        if !uuid.is_empty() && uuid != found.to_string() {
            return Err(Error::conflict(told(&format!("expected {uuid}, found {found} under that name"))));
        }
        let volume_id = instance.volume_id();
        match claims::of_instance(self.world(shared, shared.now()), &name, found, volume_id) {
            Claim::Unclaimed => {}
            Claim::Claimed => {
                let why = match self.foreign.of(&name, found, volume_id) {
                    Claim::Claimed => "a controller claims it: `holdfast claim ls`".to_owned(),
                    _ => format!("volume {} claims it; detach the volume instead", name.volume()),
                };
                return Err(Error::refused(told(&why)));
            }
            Claim::Unknown => {
                return Err(Error::refused(told("whether a record claims it cannot be known")));
            }
        }
        if !instance.is_down() {
            view::may_be_stopped(&name, instance).map_err(|why| Error::refused(told(&why)))?;
            let drain = name.kind() == Kind::Engine;
            self.stop(shared, &name, found, StopWish { drain });
        }
        self.forgetting.insert(name.clone());
        let info = self.instance_info(shared, &name);
        self.forget_ended(shared).await;
        info.ok_or_else(|| Error::not_found(told("it has ended")))
    }

    /// Forgets the unclaimed instances that a person has stopped.
    async fn forget_ended(&mut self, shared: &Shared) {
        let down = |name: &InstanceName| self.instances.get(name).is_none_or(Instance::is_down);
        let ended: Vec<_> = self.forgetting.iter().filter(|name| down(name)).cloned().collect();
        for name in ended {
            self.forgetting.remove(&name);
            if let Err(error) = self.retire(shared, name).await {
                tracing::warn!(%error, "an ended instance stays listed");
            }
        }
    }

    fn note_moves(&mut self, shared: &Shared) {
        let mut moves = std::mem::take(&mut self.moves);
        for (volume, step, took) in moves.update(self.world(shared, shared.now()), &self.plan) {
            tracing::info!(%volume, step = step.as_str(), ?took, "a move to this node");
            shared.metrics.counts.lock().volume_moves(step);
        }
        self.moves = moves;
    }

    fn note_blocked(&mut self, shared: &Shared) {
        let mut blocked = std::mem::take(&mut self.blocked);
        for (name, by) in blocked.update(self.world(shared, shared.now()), &self.plan) {
            tracing::warn!(instance = %name, blocked_by = by, "is to run and does not");
        }
        self.blocked = blocked;
    }

    /// One that is to run, is kept from it, and was never made.
    fn missing_info(&self, name: &InstanceName, by: &str) -> Option<pb::InstanceInfo> {
        let Lookup::Found(record) = self.records.lookup(name.volume().as_str()) else { return None };
        let uuid = record.status.instance_uuids.get(&name.to_string());
        Some(pb::InstanceInfo {
            name: name.to_string(),
            uuid: uuid.copied().unwrap_or(InstanceUuid::nil()).to_string(),
            kind: name.kind().as_str().to_owned(),
            volume: name.volume().to_string(),
            volume_id: record.id.to_string(),
            state: "stopped".to_owned(),
            claim: Claim::Claimed.as_str().to_owned(),
            reason: Some(by.to_owned()),
            blocked_by: Some(by.to_owned()),
            ..Default::default()
        })
    }

    fn instance_info(&self, shared: &Shared, name: &InstanceName) -> Option<pb::InstanceInfo> {
        let viewer = Viewer { world: self.world(shared, shared.now()), plan: &self.plan };
        let mut info = viewer.instance_info(name, self.instances.get(name)?);
        info.orphan = self.orphan_info(shared, name);
        info.binary_digest = self.digests.get(name).cloned().unwrap_or_default();
        info.log_path = shared.store.log_of(&info.name).to_string_lossy().into_owned();
        info.blocked_by = self.blocked.by(name, shared.now()).map(str::to_owned);
        Some(info)
    }

    fn publish(&self, shared: &Shared) {
        let viewer = Viewer { world: self.world(shared, shared.now()), plan: &self.plan };
        let volumes =
            viewer.volumes(|record, id| roles::data_dir(shared, record, id).to_string_lossy().into_owned());
        let there = self.instances.keys().filter_map(|name| self.instance_info(shared, name));
        let blocked = self.blocked.all(shared.now()).filter(|(name, _)| !self.instances.contains_key(*name));
        let missing = blocked.filter_map(|(name, by)| self.missing_info(name, by));
        self.show_in_metrics(shared, &volumes);
        shared.publish(there.chain(missing).collect(), volumes);
    }

    fn show_in_metrics(&self, shared: &Shared, volumes: &[pb::VolumeInfo]) {
        let now = shared.now();
        let waits = |instance: &Instance| matches!(instance.state(), State::Down { error: Some(_), retry_at } if *retry_at > now);
        let mut waiting = BTreeMap::new();
        for (name, _) in self.instances.iter().filter(|(_, instance)| waits(instance)) {
            *waiting.entry(name.kind().as_str()).or_default() += 1;
        }
        let mut seen = shared.metrics.seen.lock();
        seen.waiting_to_restart = waiting;
        seen.retrying = self.retries.failing();
        seen.note_blocked(self.plan.blocked.keys(), now);
        seen.note_suspended(volumes, now);
        let blocked = self.blocked.waits(now).map(|(name, since)| {
            (Since { volume: name.volume().to_string(), since }, name.to_string(), name.kind().as_str())
        });
        seen.instances_blocked = blocked.collect();
        seen.moving = self.moves.under_way().cloned().collect();
    }
}

/// Takes in what happened to an instance, and counts the state that it came into.
fn happened(shared: &Shared, name: &InstanceName, instance: &mut Instance, event: Event) {
    let before = instance.state_name();
    instance.handle(event, shared.now());
    if before != instance.state_name() {
        shared.metrics.counts.lock().instance_is(name.kind().as_str(), instance.state_name());
    }
}

fn state_of(entry: Entry) -> (String, RecordState) {
    match entry {
        Entry::Readable(record) => (record.name.to_string(), RecordState::Readable(record)),
        Entry::Unreadable { name, reason } => (name, RecordState::Unreadable(reason)),
    }
}
