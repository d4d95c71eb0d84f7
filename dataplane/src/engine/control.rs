//! The control thread's part: the agent's calls, and what the data thread asks for and reports.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_proto::ids::{InstanceUuid, ReplicaId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::VolumeStatus;
use pb::registry_result_request::Outcome;
use tokio::sync::{Mutex, mpsc, watch};

use super::config::{Endpoints, Settings, endpoints, force, pace, wanted};
use super::connect::{Connector, Task};
use super::data;
use super::listen::{self, Listeners};
use super::message::{Command, DataHandle, Event};
use super::status::{Facts, describe, mode};
use crate::control::{Instance, Role};
use crate::core::engine::{Ending, Engine, RegistryOutcome};
use crate::error::{EXIT_CACHE_LOST, EXIT_RECORD_MISSING, Error};

/// A configuration that says nothing new makes the core try again to reach who is away, at most this often.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long the data thread may take to end: it waits for what the kernel still does with its memory.
const THREAD_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What an engine does with the agent's calls.
#[derive(Debug)]
pub(super) struct EngineRole(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    instance: Instance,
    /// One configuration at a time.
    configuring: Mutex<()>,
    running: RefCell<Option<Running>>,
    facts: RefCell<Facts>,
    /// How the core ended.
    ended: watch::Sender<Option<Ending>>,
    /// Whether the data thread has ended.
    gone: watch::Sender<bool>,
    /// It was told to end.
    stopping: Cell<bool>,
}

/// What there is once the data thread runs.
#[derive(Debug)]
struct Running {
    settings: Rc<Settings>,
    data: DataHandle,
    /// What the agent said last.
    endpoints: Endpoints,
    /// Where each replica was said to be last. Kept while nobody says where it is: that nobody listens there any more
    /// is the proof that its process is gone, and without one its writes would have to wait.
    addresses: BTreeMap<ReplicaId, SocketAddr>,
    retried: Instant,
    connector: Connector,
    listeners: Option<Listeners>,
    _events: Task,
}

impl EngineRole {
    pub(super) fn new(instance: &Instance) -> Self {
        Self(Rc::new(Shared {
            instance: instance.clone(),
            configuring: Mutex::new(()),
            running: RefCell::new(None),
            facts: RefCell::default(),
            ended: watch::Sender::new(None),
            gone: watch::Sender::new(false),
            stopping: Cell::new(false),
        }))
    }
}

impl Role for EngineRole {
    fn configure(
        &self,
        config: pb::configure_request::Role,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        let shared = Rc::clone(&self.0);
        async move {
            let pb::configure_request::Role::Engine(config) = config else {
                return Err(Error::invalid("role", "engine", "replica"));
            };
            let _alone = shared.configuring.lock().await;
            let endpoints = endpoints(&config)?;
            if shared.running.borrow().is_some() {
                shared.reconfigure(&config, endpoints)
            } else {
                Shared::begin(&shared, &config, endpoints).await
            }
        }
    }

    fn drain(&self, deadline: Duration) -> impl Future<Output = pb::DrainReply> + 'static {
        let shared = Rc::clone(&self.0);
        async move { shared.drain(deadline).await }
    }

    fn stop(&self) -> impl Future<Output = ()> + 'static {
        let shared = Rc::clone(&self.0);
        async move { shared.stop().await }
    }

    fn check_clients(&self) {
        self.0.with_running(|running| running.data.tell(Command::CheckClients));
    }
}

impl Shared {
    // ---- the agent's calls ------------------------------------------------------------------------------------------

    async fn begin(shared: &Rc<Self>, config: &pb::EngineConfig, endpoints: Endpoints) -> Result<(), Error> {
        let mut settings = Settings::new(config, InstanceUuid(shared.instance.process.0))?;
        settings.core.instance = shared.instance.args.uuid;
        let settings = Rc::new(settings);
        let mut core = Engine::new(settings.core.clone(), settings.record_version, settings.status.clone());
        core.want(wanted(config)?, Duration::ZERO);
        core.pace_fill(pace(config), Duration::ZERO);
        let addresses = known_addresses(&endpoints).collect::<BTreeMap<_, _>>();
        let whereabouts = endpoints
            .iter()
            .map(|(id, endpoint)| endpoint.whereabouts(*id, addresses.contains_key(id)))
            .collect();
        let (data, events) =
            data::spawn(core, settings.core.volume_bytes, settings.spin, whereabouts).await?;
        tracing::info!(
            volume = %settings.name, id = %settings.volume, size_bytes = settings.core.volume_bytes,
            configured = %settings.status.configured, "attaching"
        );
        let connector = Connector::new(shared.instance.clone(), Rc::clone(&settings), data.clone());
        let running = Running {
            settings,
            data,
            endpoints,
            addresses,
            retried: Instant::now(),
            connector,
            listeners: None,
            _events: Task::spawn(Self::hear(Rc::clone(shared), events)),
        };
        *shared.running.borrow_mut() = Some(running);
        Ok(())
    }

    fn reconfigure(&self, config: &pb::EngineConfig, endpoints: Endpoints) -> Result<(), Error> {
        let mut running = self.running.borrow_mut();
        let Some(running) = running.as_mut() else { return Ok(()) };
        running.settings.check_same(config)?;
        running.data.tell(Command::Want(wanted(config)?));
        running.data.tell(Command::Pace(pace(config)));
        if let Some(force) = force(config)? {
            running.data.tell(Command::Force(force));
        }
        let retry = running.retried.elapsed() >= RETRY_EVERY;
        if retry {
            running.retried = Instant::now();
        }
        running.addresses.extend(known_addresses(&endpoints));
        for (id, endpoint) in endpoints {
            let changed = running.endpoints.get(&id) != Some(&endpoint);
            if changed && let Some(address) = endpoint.address {
                running.connector.moved(id, address);
            }
            if changed || retry {
                let known = running.addresses.contains_key(&id);
                running.data.tell(Command::Locate(endpoint.whereabouts(id, known)));
            }
            running.endpoints.insert(id, endpoint);
        }
        Ok(())
    }

    async fn drain(&self, deadline: Duration) -> pb::DrainReply {
        let reply = |clean, reason: &str| pb::DrainReply { clean, reason: reason.to_owned() };
        {
            let mut running = self.running.borrow_mut();
            let Some(running) = running.as_mut() else { return reply(true, "it was not configured") };
            running.listeners = None;
            running.data.tell(Command::Drain { within: deadline });
        }
        self.change(|facts| {
            facts.draining = true;
            facts.nbd_socket.clear();
            facts.nbd_tcp.clear();
        });
        let (mut ended, mut gone) = (self.ended.subscribe(), self.gone.subscribe());
        let ended = async {
            tokio::select! {
                ended = ended.wait_for(Option::is_some) => ended.ok().and_then(|ending| ending.clone()),
                _ = gone.wait_for(|gone| *gone) => None,
            }
        };
        match tokio::time::timeout(deadline, ended).await {
            Ok(Some(ending)) => reply(ending == Ending::Clean, &describe(&ending)),
            Ok(None) => reply(false, "the data thread has ended"),
            Err(_) => reply(false, &format!("not done within {deadline:?}: {}", self.waiting_for())),
        }
    }

    fn waiting_for(&self) -> String {
        let facts = self.facts.borrow();
        match facts.report.as_ref().map(|report| report.waiting_for.as_str()) {
            None | Some("") => "I/O is still in flight".to_owned(),
            Some(waiting) => format!("waiting for {waiting}"),
        }
    }

    async fn stop(&self) {
        {
            let mut running = self.running.borrow_mut();
            let Some(running) = running.as_mut() else { return };
            running.listeners = None;
            self.stopping.set(true);
            running.data.tell(Command::Stop);
        }
        let mut gone = self.gone.subscribe();
        if tokio::time::timeout(THREAD_ENDS_WITHIN, gone.wait_for(|gone| *gone)).await.is_err() {
            tracing::warn!("the data thread did not end within {THREAD_ENDS_WITHIN:?}");
        }
    }

    // ---- the data thread's events -----------------------------------------------------------------------------------

    async fn hear(shared: Rc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut why = "it ended without a word".to_owned();
        while let Some(event) = events.recv().await {
            if let Event::Failed(reason) = event {
                why = reason;
            } else {
                Self::heard(&shared, event);
            }
        }
        shared.gone.send_replace(true);
        if !shared.stopping.get() {
            shared.instance.end(Err(Error::failed("run the data thread")(why)));
        }
    }

    fn heard(shared: &Rc<Self>, event: Event) {
        match event {
            Event::Connect { attempt, lineage, epoch } => shared.with_running(|running| {
                let address = running.addresses.get(&attempt.replica).copied();
                running.connector.begin(attempt, lineage, epoch, address);
            }),
            Event::CompareAndSwap { ask, expected_version, status } => {
                shared.ask_registry(ask, expected_version, &status);
            }
            Event::Serve => Self::serve(shared),
            Event::Report { report, clients, stalled, io } => shared.change(|facts| {
                for (replica, from) in facts.modes_that_change(&report) {
                    let (to, reason) = (mode(replica.mode), &replica.reason);
                    tracing::info!(replica = %replica.id, from, to, reason, "replica");
                }
                let known = facts.report.as_ref().is_some_and(|known| known.forced == report.forced);
                if !known && !report.forced.is_empty() {
                    tracing::error!("{}", report.forced);
                }
                facts.report = Some(*report);
                facts.clients = clients;
                facts.clients_stalled = stalled;
                facts.io = *io;
            }),
            Event::Ended(ending) => shared.has_ended(ending),
            Event::Failed(_) => {}
        }
    }

    fn with_running(&self, call: impl FnOnce(&mut Running)) {
        if let Some(running) = self.running.borrow_mut().as_mut() {
            call(running);
        }
    }

    fn ask_registry(&self, ask: u64, expected_version: u64, status: &VolumeStatus) {
        let board = self.instance.board.clone();
        self.with_running(|running| {
            let outcome = board.ask_registry(pb::RegistryCas {
                volume_id: running.settings.volume.to_string(),
                expected_version,
                status: Some(status.into()),
            });
            let data = running.data.clone();
            tokio::task::spawn_local(async move {
                // An error means that the process is ending.
                if let Ok(outcome) = outcome.await {
                    data.tell(Command::RegistryResult { ask, outcome: registry_outcome(outcome) });
                }
            });
        });
    }

    /// The first view is committed: opens the doors.
    fn serve(shared: &Rc<Self>) {
        let weak = Rc::downgrade(shared);
        let tcp = move |result: Result<std::net::SocketAddr, String>| {
            let Some(shared) = weak.upgrade() else { return };
            shared.change(|facts| {
                (facts.nbd_tcp, facts.trouble) = match result {
                    Ok(address) => (address.to_string(), String::new()),
                    Err(trouble) => (String::new(), trouble),
                };
            });
        };
        let mut opened = Ok(String::new());
        shared.with_running(|running| {
            let settings = &running.settings;
            let path = settings.nbd_socket.clone();
            let data = running.data.clone();
            opened = listen::open(path, settings.nbd_tcp, settings.export(), data, tcp).map(|listeners| {
                running.listeners = Some(listeners);
                settings.nbd_socket.display().to_string()
            });
        });
        match opened {
            Ok(socket) => shared.change(|facts| {
                facts.served = true;
                facts.nbd_socket = socket;
            }),
            // Without its frontend an engine is of no use: the agent hears why, and starts it again.
            Err(e) => shared.instance.end(Err(e)),
        }
    }

    fn has_ended(&self, ending: Ending) {
        self.with_running(|running| running.listeners = None);
        let reason = describe(&ending);
        let exit = match &ending {
            // A fenced engine stays, so that the agent can read why; one that went and were started again would be
            // attached again.
            Ending::Fenced { .. } => {
                tracing::error!("{reason}");
                None
            }
            Ending::Clean | Ending::Unclean(_) => None,
            Ending::CacheLost => Some(EXIT_CACHE_LOST),
            Ending::RecordMissing => Some(EXIT_RECORD_MISSING),
        };
        self.change(|facts| {
            facts.ending = Some(ending.clone());
            facts.nbd_socket.clear();
            facts.nbd_tcp.clear();
        });
        self.ended.send_replace(Some(ending));
        if let Some(exit) = exit {
            self.instance.end(Err(Error::EngineEnded { exit, reason }));
        }
    }

    /// Changes what is known, and shows it.
    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts.borrow_mut();
        change(&mut facts);
        self.instance.board.update(|status| facts.show(status));
    }
}

fn known_addresses(endpoints: &Endpoints) -> impl Iterator<Item = (ReplicaId, SocketAddr)> {
    endpoints.iter().filter_map(|(id, endpoint)| endpoint.address.map(|address| (*id, address)))
}

fn registry_outcome(outcome: Outcome) -> RegistryOutcome {
    match outcome {
        Outcome::Stored(stored) => RegistryOutcome::Stored { version: stored.version },
        Outcome::Conflict(conflict) => match conflict.status.as_ref().map(VolumeStatus::try_from) {
            Some(Ok(status)) => {
                RegistryOutcome::Conflict { version: conflict.version, status: Box::new(status) }
            }
            Some(Err(e)) => {
                tracing::warn!("the record cannot be read: {e}");
                RegistryOutcome::Unreachable
            }
            None => RegistryOutcome::Unreachable,
        },
        Outcome::Missing(_) => {
            tracing::warn!("the registry has no record of this volume");
            RegistryOutcome::Missing
        }
        Outcome::Unavailable(unavailable) => {
            tracing::warn!("the registry cannot be reached: {}", unavailable.reason);
            RegistryOutcome::Unreachable
        }
    }
}
