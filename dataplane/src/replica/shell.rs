//! The replica's task on the control thread: carries out what [`crate::core::replica`] decides, holds the directory,
//! and keeps trying to open it where it is missing or damaged. It never makes a directory that was there before.

use std::cell::RefCell;
use std::fs::File;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::ids::{BootId, Generation, InstanceUuid, ReplicaId};
use holdfast_proto::pb::instance as pb;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::config::{IoMode, ReplicaConfig};
use super::data::{self, DataHandle, DataOptions};
use super::listen;
use super::messages::{FromData, ToData, Track, TrackFor, ViewFrom};
use crate::control::Instance;
use crate::control::handshake::{Acceptor, Authenticated};
use crate::core::region_map::RegionMap;
use crate::core::replica::{Action, NewMap, Replica, Session, Tracked, reopened};
use crate::error::Error;
use crate::layout::bitmap_file::file_name;
use crate::layout::{Meta, ReplicaDir, ReplicaDirError, create_replica_dir};
use crate::units::{GROUP_BYTES, REGION_BYTES};
use crate::wire::Status;
use crate::wire::handshake::{About, RefusalKind, Refused, Welcome};

/// The agent's calls under way.
pub(super) const COMMANDS_MAX: usize = 16;
/// How often a directory that is absent is looked for.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// How often the space used is looked at while an engine writes.
const REFRESH_AFTER: Duration = Duration::from_secs(5);
const STOPPING: &str = "the replica is stopping";

/// A call of the agent.
#[derive(Debug)]
pub(super) enum Command {
    Configure(Box<ReplicaConfig>, oneshot::Sender<Result<(), Error>>),
    Drain(oneshot::Sender<Result<(), String>>),
    Stop(oneshot::Sender<()>),
}

/// Everything that needs the directory.
#[derive(Debug)]
struct Open {
    /// First, so that its thread has ended before the directory's lock is given up.
    data: DataHandle,
    dir: ReplicaDir,
    core: Replica,
    events: mpsc::Receiver<FromData>,
    /// The data thread has finished and flushed everything.
    finished: bool,
    /// A second descriptor, for what concerns the page cache.
    image: File,
    allocated_bytes: u64,
    changes_seen: u64,
    /// The session that an engine is connected by.
    session: Option<u64>,
}

#[derive(Debug)]
enum Disk {
    Absent(String),
    Open(Box<Open>),
}

/// What a Configure began.
#[derive(Debug)]
struct Serving {
    config: ReplicaConfig,
    acceptor: Rc<RefCell<Acceptor>>,
    address: SocketAddr,
    engines: mpsc::Receiver<Authenticated>,
    /// For the next listener.
    to_shell: mpsc::Sender<Authenticated>,
    accepting: JoinHandle<()>,
    disk: Disk,
}

impl Serving {
    /// Listens where `next` says, if that is another place, and only then no longer where it did. Engines that are connected
    /// stay; the others are told the new address by the agent.
    async fn listen_as(&mut self, next: ReplicaConfig) -> Result<(), Error> {
        if next.bind != self.config.bind {
            // Of the same port, where it is free: only a part of the address changes.
            let port_preferred = Some(self.address.port());
            let (listener, bound) = listen::bind(&ReplicaConfig { port_preferred, ..next.clone() }).await?;
            let before = std::mem::replace(
                &mut self.accepting,
                spawn_accept(listener, &self.acceptor, &self.to_shell),
            );
            before.abort();
            // Cancelled, and its listener closed, when this returns.
            let _ = before.await;
            self.address.set_port(bound.port());
            tracing::info!(from = %self.config.bind, to = %bound, "listening for engines at another address");
        }
        self.address.set_ip(next.advertise);
        (self.config.node, self.config.ports) = (next.node, next.ports);
        (self.config.bind, self.config.advertise) = (next.bind, next.advertise);
        Ok(())
    }
}

fn spawn_accept(
    listener: TcpListener,
    acceptor: &Rc<RefCell<Acceptor>>,
    to_shell: &mpsc::Sender<Authenticated>,
) -> JoinHandle<()> {
    tokio::task::spawn_local(listen::accept(listener, Rc::clone(acceptor), to_shell.clone()))
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

enum Event {
    Command(Option<Command>),
    Engine(Option<Box<Authenticated>>),
    Data(Option<FromData>),
    Timer,
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Shell {
    instance: Instance,
    serving: Option<Serving>,
    /// Peers and frames that wait for an answer, by ticket.
    engines: Vec<(u64, Authenticated)>,
    views: Vec<(u64, ViewFrom)>,
    next_ticket: u64,
    /// Callers of Drain; `Some` once one was asked.
    draining: Option<Vec<oneshot::Sender<Result<(), String>>>>,
    drained: Option<Result<(), String>>,
    timer: Option<Instant>,
}

impl Shell {
    pub(super) fn new(instance: Instance) -> Self {
        Self {
            instance,
            serving: None,
            engines: Vec::new(),
            views: Vec::new(),
            next_ticket: 0,
            draining: None,
            drained: None,
            timer: None,
        }
    }

    /// Runs until a Stop.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            match self.next(&mut commands).await {
                Event::Command(Some(Command::Configure(config, reply))) => {
                    // The caller may be gone.
                    let _ = reply.send(self.configure(*config).await);
                }
                Event::Command(Some(Command::Drain(reply))) => self.drain(reply),
                Event::Command(Some(Command::Stop(reply))) => {
                    self.serving = None;
                    let _ = reply.send(());
                    return;
                }
                Event::Command(None) => return,
                Event::Engine(engine) => self.engine(engine),
                Event::Data(Some(event)) => self.data(event),
                Event::Data(None) => {
                    let reason = "it ended without a word".to_owned();
                    self.fail(Error::Failed { operation: "run the data thread", reason });
                    return;
                }
                Event::Timer => self.timer_fired(),
            }
            self.act().await;
            self.publish();
        }
    }

    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        let timer = self.timer;
        let Some(serving) = &mut self.serving else {
            return Event::Command(commands.recv().await);
        };
        let events = match &mut serving.disk {
            Disk::Open(open) => Some(&mut open.events),
            Disk::Absent(_) => None,
        };
        tokio::select! {
            command = commands.recv() => Event::Command(command),
            engine = serving.engines.recv() => Event::Engine(engine.map(Box::new)),
            event = async { events?.recv().await }, if events.is_some() => Event::Data(event),
            () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => Event::Timer,
        }
    }

    fn fail(&mut self, error: Error) {
        self.serving = None;
        self.instance.end(Err(error));
    }

    // ---- the agent's calls ------------------------------------------------------------------------------------------

    async fn configure(&mut self, config: ReplicaConfig) -> Result<(), Error> {
        if let Some(serving) = &mut self.serving {
            serving.config.check_update(&config)?;
            serving.acceptor.borrow_mut().key = config.key.clone();
            serving.config.key = config.key.clone();
            return serving.listen_as(config).await;
        }
        let (listener, bound) = listen::bind(&config).await?;
        let address = SocketAddr::new(config.advertise, bound.port());
        let acceptor = Rc::new(RefCell::new(Acceptor {
            volume: config.volume,
            replica: config.replica,
            key: config.key.clone(),
            about: About {
                process: self.instance.process,
                boot: self.instance.boot,
                build: env!("CARGO_PKG_VERSION").to_owned(),
            },
        }));
        let (to_shell, engines) = mpsc::channel(listen::AUTHENTICATED_MAX);
        let accepting = spawn_accept(listener, &acceptor, &to_shell);
        tracing::info!(volume = %config.volume_name, replica = %config.replica, %bound, %address,
            dir = %config.data_dir.display(), "listening for engines");
        let disk = Disk::Absent("not opened yet".to_owned());
        self.serving = Some(Serving { config, acceptor, address, engines, to_shell, accepting, disk });
        self.open_disk();
        Ok(())
    }

    /// Tries to open the directory; says so when the answer is another one than the last time.
    fn open_disk(&mut self) {
        let Some(serving) = &mut self.serving else { return };
        let Disk::Absent(last) = &serving.disk else { return };
        match open(&serving.config, self.instance.boot) {
            Ok(open) => {
                tracing::info!(view = %open.core.meta().view, promised = %open.core.meta().promised,
                    cache_lost = open.core.meta().cache_lost, "replica opened");
                // From here on it existed: if it is missing later, it is absent.
                serving.config.create = false;
                serving.disk = Disk::Open(Box::new(open));
            }
            Err(e) => {
                let reason = e.to_string();
                if *last != reason {
                    tracing::warn!("replica absent: {reason}");
                }
                serving.disk = Disk::Absent(reason);
                self.timer = Some(Instant::now() + RETRY_AFTER);
            }
        }
    }

    fn drain(&mut self, reply: oneshot::Sender<Result<(), String>>) {
        if let Some(result) = &self.drained {
            let _ = reply.send(result.clone());
            return;
        }
        let first = self.draining.is_none();
        self.draining.get_or_insert_default().push(reply);
        match self.serving.as_ref().map(|serving| &serving.disk) {
            Some(Disk::Open(open)) if first => open.data.send(ToData::Drain),
            Some(Disk::Open(_)) => {}
            // Nothing is open, so nothing is unfinished.
            Some(Disk::Absent(_)) | None => self.drain_done(Ok(())),
        }
    }

    fn drain_done(&mut self, result: Result<(), String>) {
        for reply in self.draining.get_or_insert_default().drain(..) {
            let _ = reply.send(result.clone());
        }
        self.drained = Some(result);
    }

    // ---- engines and data -------------------------------------------------------------------------------------------

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn engine(&mut self, engine: Option<Box<Authenticated>>) {
        let (Some(engine), ticket) = (engine, self.ticket()) else { return };
        let Some(serving) = &mut self.serving else { return };
        let refused = match &mut serving.disk {
            Disk::Open(open) if self.draining.is_none() => {
                open.core.handle_fence(ticket, engine.hello().clone());
                self.engines.push((ticket, *engine));
                return;
            }
            Disk::Open(open) => absent(open.core.meta().promised, STOPPING.to_owned()),
            Disk::Absent(reason) => absent(Generation(0), reason.clone()),
        };
        tokio::task::spawn_local(async move { engine.refuse(&refused).await });
    }

    fn data(&mut self, event: FromData) {
        let ticket = self.ticket();
        let Some(Serving { disk: Disk::Open(open), .. }) = &mut self.serving else { return };
        match event {
            FromData::Dropped { flush_sequence, clean } => open.core.handle_dropped(flush_sequence, clean),
            FromData::View { from, update } => {
                self.views.push((ticket, from));
                let generation = Generation(from.header.generation);
                open.core.handle_view(ticket, generation, *update);
            }
            FromData::SyncFailed { reason } => {
                tracing::error!(
                    "{reason}: this replica does not claim a flush again until it has been filled anew"
                );
                open.core.handle_sync_failed(reason);
            }
            FromData::SessionEnded { session, clean, reason } => {
                tracing::info!(session = session.number, generation = %session.generation, clean,
                    "engine's connection ended: {reason}");
                open.session = open.session.filter(|number| *number != session.number);
                open.core.handle_session_ended(session.number, clean);
            }
            FromData::Drained(Ok(())) => {
                open.finished = true;
                open.core.handle_stopped_clean();
            }
            FromData::Drained(Err(reason)) => self.drain_done(Err(reason)),
            FromData::Ended(result) => {
                let error = result.err().unwrap_or_else(|| Error::Failed {
                    operation: "run the data thread",
                    reason: "it stopped unasked".to_owned(),
                });
                self.fail(error);
            }
        }
    }

    /// Carries out what the core decided.
    async fn act(&mut self) {
        while let Some(Serving { disk: Disk::Open(open), .. }) = &mut self.serving {
            let Some(action) = open.core.poll_action() else { break };
            match action {
                Action::DropSession => {
                    open.session = None;
                    open.data.send(ToData::Drop);
                }
                Action::Persist { meta, begin } => {
                    open.core.handle_persisted(persist(&mut open.dir, *meta, &begin));
                }
                Action::Track(tracked) => open.track(&tracked),
                Action::AnswerView { ticket, status, reopen } => {
                    if reopen {
                        open.forget_cache();
                    }
                    if let Some(from) = take(&mut self.views, ticket) {
                        open.data.send(ToData::AnswerView { from, status, reopen });
                    }
                }
                Action::Refuse { ticket, refused } => {
                    if let Some(engine) = take(&mut self.engines, ticket) {
                        tracing::info!("engine refused: {}", refused.reason);
                        tokio::task::spawn_local(async move { engine.refuse(&refused).await });
                    }
                }
                Action::Welcome { ticket, welcome, session } => {
                    let stopping = self.draining.is_some();
                    if let Some(engine) = take(&mut self.engines, ticket) {
                        attach(open, engine, &welcome, session, stopping).await;
                    }
                }
            }
        }
        self.finish_drain();
    }

    /// A drain is done when its clean mark is on stable storage.
    fn finish_drain(&mut self) {
        let Some(Serving { disk: Disk::Open(open), .. }) = &self.serving else { return };
        if self.draining.as_ref().is_some_and(|waiting| !waiting.is_empty())
            && open.finished
            && open.core.is_idle()
        {
            let result = if open.core.meta().unflushed {
                Err("the clean mark could not be written".to_owned())
            } else {
                Ok(())
            };
            self.drain_done(result);
        }
    }

    // ---- status -----------------------------------------------------------------------------------------------------

    fn timer_fired(&mut self) {
        self.timer = None;
        match self.serving.as_mut().map(|serving| &mut serving.disk) {
            Some(Disk::Absent(_)) if self.draining.is_none() => self.open_disk(),
            Some(Disk::Open(open)) => open.refresh(),
            Some(Disk::Absent(_)) | None => {}
        }
    }

    fn publish(&mut self) {
        let Some(serving) = &self.serving else { return };
        let mut status = pb::ReplicaStatus {
            address: serving.address.to_string(),
            data_dir: serving.config.data_dir.display().to_string(),
            ..Default::default()
        };
        let reason = match &serving.disk {
            Disk::Absent(reason) => {
                "absent".clone_into(&mut status.mode);
                status.engines = Some(0);
                reason.clone()
            }
            Disk::Open(open) => {
                let meta = open.core.meta();
                let mode = if meta.failed.is_empty() { "open" } else { "faulted" };
                mode.clone_into(&mut status.mode);
                status.generation = meta.promised.0;
                status.epoch = meta.view.epoch.0;
                status.allocated_bytes = open.allocated_bytes;
                status.engines = Some(u32::from(open.session.is_some()));
                // No timer while nothing changes: an idle replica is not woken.
                if self.timer.is_none() && open.data.changes() != open.changes_seen {
                    self.timer = Some(Instant::now() + REFRESH_AFTER);
                }
                meta.failed.clone()
            }
        };
        let phase = if self.draining.is_some() { "stopping" } else { "running" };
        self.instance.board.update(|shown| {
            phase.clone_into(&mut shown.phase);
            shown.reason = reason;
            shown.replica = Some(status);
        });
    }
}

impl Open {
    /// Looks at the space used.
    fn refresh(&mut self) {
        self.changes_seen = self.data.changes();
        if let Ok(metadata) = self.image.metadata() {
            use std::os::unix::fs::MetadataExt as _;
            self.allocated_bytes = metadata.blocks() * 512;
        }
    }

    /// Tells the data thread for whom it remembers changes. A map that cannot be opened counts as full: the replica that
    /// it is for gets everything.
    fn track(&self, tracked: &Tracked) {
        let dirty = tracked
            .dirty
            .iter()
            .filter_map(|map| {
                let begun = tracked.begun.iter().any(|new| new.replica == map.replica);
                let new = if begun { Some(self.open_dirty(map.replica)?) } else { None };
                Some(TrackFor { map: *map, new })
            })
            .collect();
        self.data.send(ToData::Track(Box::new(Track { dirty })));
    }

    fn open_dirty(&self, replica: ReplicaId) -> Option<(File, RegionMap)> {
        let regions = self.dir.meta().size_bytes.div_ceil(REGION_BYTES);
        open_bitmap(&self.dir, Some(replica), regions)
            .inspect_err(|e| tracing::error!(%replica, "open its dirty map: {e}"))
            .ok()
    }

    /// After a failed fsync the page cache may hold what the disk does not, marked as written. What is compared and filled
    /// from now on must be the disk's.
    fn forget_cache(&self) {
        if let Err(e) = posix_fadvise(&self.image, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            tracing::warn!("drop the page cache of the image: {e}");
        }
    }
}

fn take<T>(waiting: &mut Vec<(u64, T)>, ticket: u64) -> Option<T> {
    let at = waiting.iter().position(|(t, _)| *t == ticket)?;
    Some(waiting.swap_remove(at).1)
}

/// The maps that begin first: one that `meta` names and that is missing would count as full.
fn persist(dir: &mut ReplicaDir, meta: Meta, begin: &[NewMap]) -> Result<(), (Status, String)> {
    let regions = meta.size_bytes.div_ceil(REGION_BYTES);
    let maps = begin
        .iter()
        .try_for_each(|new| dir.make_bitmap(&dir.bitmap_label(Some(new.replica), regions), new.full));
    let fewer = meta.dirty.len() < dir.meta().dirty.len();
    let more_replicas = meta.configured.len() > dir.meta().configured.len();
    let stored = maps.and_then(|()| dir.store(meta));
    if stored.is_ok() && fewer {
        dir.remove_stale_bitmaps();
    }
    if stored.is_ok() && more_replicas {
        reserve(dir);
    }
    stored.map_err(|e| {
        tracing::error!("persist meta: {e}");
        let full = matches!(&e, ReplicaDirError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::StorageFull);
        (if full { Status::NoSpace } else { Status::Io }, e.to_string())
    })
}

fn reserve(dir: &ReplicaDir) {
    if let Err(error) = dir.reserve_bitmaps() {
        tracing::warn!(
            "no room is reserved for the loss of other replicas: {error}; it needs room on this disk then"
        );
    }
}

fn absent(promised: Generation, reason: String) -> Refused {
    Refused { kind: RefusalKind::Absent, generation: promised, engine: InstanceUuid::nil(), reason }
}

async fn attach(open: &mut Open, engine: Authenticated, welcome: &Welcome, session: Session, stopping: bool) {
    if stopping {
        let refused = absent(session.generation, STOPPING.to_owned());
        tokio::task::spawn_local(async move { engine.refuse(&refused).await });
        return open.core.handle_session_lost(session.number);
    }
    let (id, generation, terms) = (engine.hello().engine, engine.hello().generation, engine.terms());
    match engine.welcome(welcome).await {
        Ok(socket) => {
            tracing::info!(engine = %id, %generation, session = session.number, view = %welcome.view,
                version = terms.version, features = terms.features, "engine taken");
            open.session = Some(session.number);
            open.data.send(ToData::Attach { socket, session, terms });
        }
        Err(e) => {
            tracing::info!(engine = %id, %generation, "engine left before it was taken: {e}");
            open.core.handle_session_lost(session.number);
        }
    }
}

/// A map and its bits; says aloud what had to be taken for set.
fn open_bitmap(
    dir: &ReplicaDir,
    of: Option<ReplicaId>,
    bits: u64,
) -> Result<(File, RegionMap), ReplicaDirError> {
    let mut map = RegionMap::of(bits);
    let opened = dir.open_bitmap(&dir.bitmap_label(of, bits), |index, word| map.insert_word(index, word))?;
    if let Some(doubt) = opened.doubt {
        let name = file_name(of);
        tracing::warn!("{name}: {doubt}; what it cannot tell is compared or copied");
    }
    Ok((opened.file, map))
}

/// Opens the directory, or makes it where it may be made.
fn open(config: &ReplicaConfig, boot: BootId) -> Result<Open, Error> {
    if config.create {
        match create_replica_dir(&config.data_dir, &config.first_meta()) {
            // An earlier attempt got that far.
            Ok(()) | Err(ReplicaDirError::Exists { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut dir = ReplicaDir::open(&config.data_dir)?;
    config.check_directory(dir.meta())?;
    let image = dir.open_image(config.io_mode == IoMode::Direct)?;
    if let Some(next) = reopened(dir.meta(), boot) {
        tracing::warn!("the node restarted after writes that no flush covered: they may be lost");
        dir.store(next)?;
    }
    let meta = dir.meta().clone();
    dir.remove_stale_bitmaps();
    reserve(&dir);
    let intent = open_bitmap(&dir, None, meta.size_bytes.div_ceil(GROUP_BYTES))?;
    let regions = meta.size_bytes.div_ceil(REGION_BYTES);
    let mut dirty = Vec::new();
    for map in &meta.dirty {
        dirty.push(TrackFor { map: *map, new: Some(open_bitmap(&dir, Some(map.replica), regions)?) });
    }
    let options = DataOptions {
        intent,
        track: Track { dirty },
        size_bytes: meta.size_bytes,
        io_mode: config.io_mode,
        spin: config.spin,
        dirty: meta.unflushed,
        failed: !meta.failed.is_empty(),
    };
    let second = image.try_clone().map_err(Error::os("clone the descriptor of", &config.data_dir))?;
    let (data, events) = data::spawn(image, options)?;
    let core = Replica::new(meta, boot);
    let mut open = Open {
        data,
        dir,
        core,
        events,
        finished: false,
        image: second,
        allocated_bytes: 0,
        changes_seen: 0,
        session: None,
    };
    open.refresh();
    Ok(open)
}
