//! What a replica promises: fencing, views, and what it knows about its own data's reliability.
//!
//! Calling order: `handle_*` for what happened, then [`Replica::poll_action`] until it returns `None`, and carry the
//! actions out in order. One piece of work is done at a time, in the order of arrival; each answer comes after what it
//! says is on stable storage ([`Action::Persist`], then [`Replica::handle_persisted`]).

use std::collections::VecDeque;

use holdfast_proto::ids::{BootId, Generation, ReplicaId};
use holdfast_proto::record::{ReplicaSet, Stamp, View};

use super::rules::{Rule, kept};
use crate::layout::Meta;
use crate::layout::meta::DirtyMap;
use crate::wire::Status;
use crate::wire::handshake::{Hello, RefusalKind, Refused, Role, Welcome};
use crate::wire::payload::ViewUpdate;

/// Engines waiting to be fenced in; each is an authenticated connection. More are told to come again.
const FENCES_MAX: usize = 8;

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Drop the engine's connection; when all I/O it submitted has ended, [`Replica::handle_dropped`].
    DropSession,
    /// Put this on stable storage, then [`Replica::handle_persisted`]. The dirty maps that begin with it are put there
    /// first: a map that is named in `meta` and missing counts as full.
    Persist {
        /// Replaces the one there is.
        meta: Box<Meta>,
        /// Maps that begin anew.
        begin: Vec<NewMap>,
    },
    /// From here on changes are remembered for these; before the answer to the view that says so.
    Track(Box<Tracked>),
    /// Take this engine; its connection is `session` from now on.
    Welcome {
        /// Of [`Replica::handle_fence`].
        ticket: u64,
        /// What to tell it.
        welcome: Box<Welcome>,
        /// Its session.
        session: Session,
    },
    /// Send this engine away.
    Refuse {
        /// Of [`Replica::handle_fence`].
        ticket: u64,
        /// What to tell it.
        refused: Refused,
    },
    /// Answer a PersistView. `reopen`: everything is being filled anew after a failed fsync; drop what the page cache
    /// holds (it may differ from the disk, and be taken for the disk's content) and let flushes count again.
    AnswerView {
        /// Of [`Replica::handle_view`].
        ticket: u64,
        /// How it went.
        status: Status,
        /// See above.
        reopen: bool,
    },
}

/// A dirty map that begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewMap {
    /// For whom.
    pub replica: ReplicaId,
    /// Whether it begins with every region: nothing is known of what that replica has.
    pub full: bool,
}

/// What a replica's maps are to remember.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// The dirty maps.
    pub dirty: Vec<DirtyMap>,
    /// Those of them that begin anew.
    pub begun: Vec<NewMap>,
}

impl Tracked {
    /// What a replica that is opened remembers.
    #[must_use]
    pub fn of(meta: &Meta) -> Self {
        Self { dirty: meta.dirty.clone(), begun: Vec::new() }
    }
}

/// One engine's connection: its number within this process, and the generation its frames must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Grows with each.
    pub number: u64,
    /// Of the engine.
    pub generation: Generation,
}

#[derive(Debug, Clone)]
enum Work {
    Fence { ticket: u64, hello: Box<Hello> },
    View { ticket: u64, generation: Generation, update: Box<ViewUpdate> },
    SyncFailed(String),
    Clean { session: u64 },
}

#[derive(Debug, Clone)]
enum State {
    Idle,
    /// Waits for the end of the older connection's I/O.
    Dropping {
        ticket: u64,
        hello: Box<Hello>,
    },
    /// Waits for `next` to be on stable storage.
    Persisting {
        next: Box<Meta>,
        begun: Vec<NewMap>,
        then: Then,
    },
}

#[derive(Debug, Clone)]
enum Then {
    Welcome { ticket: u64 },
    AnswerView { ticket: u64, reopen: bool },
    KeepFailed,
    Nothing,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Replica {
    /// As on stable storage, but for `failed`, which holds as soon as it is known, and where that is `doubtful`.
    meta: Meta,
    boot: BootId,
    session: u64,
    /// The last flush that the present engine's connections had acknowledged.
    flush_sequence: u64,
    /// Whether all data was on stable storage when the last session's I/O had ended.
    clean: bool,
    failed_while_syncing: bool,
    /// The last write of `meta` failed: what is on stable storage may be that, or the one before.
    doubtful: bool,
    work: VecDeque<Work>,
    state: State,
    actions: VecDeque<Action>,
}

/// What `meta` must become when a directory is opened, before anything else: where the node has restarted since
/// writes that no flush covered, they may be gone. `None`: it may stay.
#[must_use]
pub fn reopened(meta: &Meta, boot: BootId) -> Option<Meta> {
    (meta.unflushed && meta.boot != boot).then(|| Meta {
        cache_lost: true,
        unflushed: false,
        boot,
        ..meta.clone()
    })
}

/// What a replica with this on stable storage tells an engine that it takes.
pub(crate) fn welcome(meta: &Meta, flush_sequence: u64) -> Welcome {
    Welcome {
        size_bytes: meta.size_bytes,
        lineage: meta.lineage,
        view: meta.view,
        configured: meta.configured,
        incarnation: meta.incarnation,
        revision: meta.revision,
        basis: meta.basis,
        stamps: true,
        settled: meta.settled,
        syncing: meta.syncing,
        cache_lost: meta.cache_lost,
        failed: meta.failed.clone(),
        flush_sequence,
    }
}

impl Replica {
    /// A replica with this `meta` on stable storage (see [`reopened`]).
    #[must_use]
    pub fn new(meta: Meta, boot: BootId) -> Self {
        let clean = !meta.unflushed;
        // A process before this one may have failed a flush since it was last told to begin anew: nothing says when.
        let failed_while_syncing = meta.syncing && !meta.failed.is_empty();
        Self {
            meta,
            boot,
            session: 0,
            flush_sequence: 0,
            clean,
            failed_while_syncing,
            doubtful: false,
            work: VecDeque::new(),
            state: State::Idle,
            actions: VecDeque::new(),
        }
    }

    /// What it is and promised.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// For the model checker, which gives other names to what is named in it.
    #[cfg(test)]
    pub(crate) fn rename(&mut self, meta: Meta, boot: BootId) {
        (self.meta, self.boot) = (meta, boot);
    }

    /// What the model checker tells states apart by, between two events: there is no work then. Session numbers and
    /// flush sequences are left out: only equality with the present one is ever asked. `caches`: whether what is unflushed may be lost.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self, caches: bool, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        assert!(self.is_idle());
        let Meta { node: _, volume: _, volume_name: _, replica: _, size_bytes: _, lineage: _, .. } =
            &self.meta;
        (self.meta.promised, self.meta.promised_to, self.meta.view, self.meta.configured).hash(h);
        (self.meta.incarnation, self.meta.revision, self.meta.syncing, self.meta.boot).hash(h);
        (self.meta.cache_lost, self.meta.failed.is_empty()).hash(h);
        if caches {
            (self.meta.unflushed, self.clean).hash(h);
        }
        (self.boot, self.failed_while_syncing, self.doubtful).hash(h);
        (self.meta.basis, self.meta.settled, &self.meta.dirty).hash(h);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.work.is_empty() && self.actions.is_empty()
    }

    /// An engine has proven the key and wants to be taken.
    pub fn handle_fence(&mut self, ticket: u64, hello: Hello) {
        let waiting = self.work.iter().filter(|work| matches!(work, Work::Fence { .. })).count();
        if waiting >= FENCES_MAX {
            let refused = self.refused(RefusalKind::Storage, "too many engines are waiting".to_owned());
            self.actions.push_back(Action::Refuse { ticket, refused });
            return;
        }
        self.work.push_back(Work::Fence { ticket, hello: Box::new(hello) });
        self.advance();
    }

    /// No connection is left and all I/O that one had submitted has ended. `clean`: everything is on stable storage.
    pub fn handle_dropped(&mut self, flush_sequence: u64, clean: bool) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Dropping { ticket, hello } => {
                self.clean = clean;
                self.promise(ticket, &hello, flush_sequence);
            }
            State::Idle | State::Persisting { .. } => unreachable!("dropped without being asked to"),
        }
        self.advance();
    }

    /// The engine of the session with this generation wants a view persisted.
    pub fn handle_view(&mut self, ticket: u64, generation: Generation, update: ViewUpdate) {
        self.work.push_back(Work::View { ticket, generation, update: Box::new(update) });
        self.advance();
    }

    /// An fsync of the data failed.
    pub fn handle_sync_failed(&mut self, reason: String) {
        self.work.push_back(Work::SyncFailed(reason));
        self.advance();
    }

    /// A session ended by itself (or never began); see [`Replica::handle_dropped`] for `clean`.
    pub fn handle_session_ended(&mut self, session: u64, clean: bool) {
        self.clean = clean;
        if clean {
            self.work.push_back(Work::Clean { session });
            self.advance();
        }
    }

    /// The welcome could not be sent: there will be no such session.
    pub fn handle_session_lost(&mut self, session: u64) {
        self.handle_session_ended(session, self.clean);
    }

    /// Everything is finished and on stable storage, and no further engine is taken.
    pub fn handle_stopped_clean(&mut self) {
        self.handle_session_ended(self.session, true);
    }

    /// [`Action::Persist`] was carried out, or `Err(status, reason)`.
    pub fn handle_persisted(&mut self, result: Result<(), (Status, String)>) {
        let State::Persisting { next, begun, then } = std::mem::replace(&mut self.state, State::Idle) else {
            unreachable!("persisted without being asked to")
        };
        self.doubtful = result.is_err();
        match result {
            Ok(()) => {
                let before = std::mem::replace(&mut self.meta, *next);
                let tracked = Tracked { begun, ..Tracked::of(&self.meta) };
                if !tracked.begun.is_empty() || tracked != Tracked::of(&before) {
                    self.actions.push_back(Action::Track(Box::new(tracked)));
                }
                match then {
                    Then::Welcome { ticket } => self.welcome(ticket),
                    Then::AnswerView { ticket, reopen } => self.answer_view(ticket, Status::Ok, reopen),
                    Then::KeepFailed | Then::Nothing => {}
                }
            }
            Err((status, reason)) => match then {
                Then::Welcome { ticket } => {
                    let refused =
                        self.refused(RefusalKind::Storage, format!("persist the promise: {reason}"));
                    self.actions.push_back(Action::Refuse { ticket, refused });
                }
                Then::AnswerView { ticket, .. } => self.answer_view(ticket, status, false),
                // On disk or not, this process does not claim a flush again.
                Then::KeepFailed => self.meta.failed = next.failed,
                Then::Nothing => {}
            },
        }
        self.advance();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn advance(&mut self) {
        while matches!(self.state, State::Idle) {
            match self.work.pop_front() {
                None => return,
                Some(Work::Fence { ticket, hello }) => self.begin_fence(ticket, hello),
                Some(Work::View { ticket, generation, update }) => {
                    self.begin_view(ticket, generation, &update);
                }
                Some(Work::SyncFailed(failed)) => {
                    self.failed_while_syncing |= self.meta.syncing;
                    self.persist(Meta { failed, ..self.meta.clone() }, Then::KeepFailed);
                }
                // A later session may have written since.
                Some(Work::Clean { session }) => {
                    if session == self.session && self.meta.unflushed {
                        self.persist(Meta { unflushed: false, ..self.meta.clone() }, Then::Nothing);
                    }
                }
            }
        }
    }

    fn persist(&mut self, next: Meta, then: Then) {
        self.persist_maps(next, Vec::new(), then);
    }

    fn persist_maps(&mut self, next: Meta, begin: Vec<NewMap>, then: Then) {
        let (meta, begun) = (Box::new(next.clone()), begin.clone());
        self.actions.push_back(Action::Persist { meta, begin });
        self.state = State::Persisting { next: Box::new(next), begun, then };
    }

    // ---- fencing ----

    fn begin_fence(&mut self, ticket: u64, hello: Box<Hello>) {
        match self.check_fence(&hello) {
            Ok(()) => {
                self.actions.push_back(Action::DropSession);
                self.state = State::Dropping { ticket, hello };
            }
            Err(refused) => self.actions.push_back(Action::Refuse { ticket, refused }),
        }
    }

    fn check_fence(&self, hello: &Hello) -> Result<(), Refused> {
        let meta = &self.meta;
        let identity = |reason| Err(self.refused(RefusalKind::Identity, reason));
        if hello.volume != meta.volume || hello.replica != meta.replica {
            return identity(format!(
                "this is {} of volume {}, not {} of {}",
                meta.replica, meta.volume, hello.replica, hello.volume
            ));
        }
        if hello.role != Role::Engine {
            return identity("only engines are served".to_owned());
        }
        if hello.lineage != meta.lineage {
            return identity(format!("this data is of lineage {}, not {}", meta.lineage, hello.lineage));
        }
        if hello.generation.jumps_from(meta.promised) {
            // What is stored here every later engine has to exceed.
            return identity(format!(
                "generation {} cannot be after {}, which this replica promised last: refused",
                hello.generation, meta.promised
            ));
        }
        let foreign = hello.generation == meta.promised && hello.engine != meta.promised_to;
        if (hello.generation < meta.promised || foreign) && kept(Rule::Refuse) {
            let reason = format!(
                "promised to generation {} of engine {}, not to generation {} of engine {}",
                meta.promised, meta.promised_to, hello.generation, hello.engine
            );
            return Err(self.refused(RefusalKind::Fenced, reason));
        }
        Ok(())
    }

    fn refused(&self, kind: RefusalKind, reason: String) -> Refused {
        Refused { kind, generation: self.meta.promised, engine: self.meta.promised_to, reason }
    }

    /// The older connection's I/O has ended: from here on it is this engine's.
    fn promise(&mut self, ticket: u64, hello: &Hello, flush_sequence: u64) {
        let same = hello.generation == self.meta.promised && hello.engine == self.meta.promised_to;
        self.flush_sequence = if same { flush_sequence } else { 0 };
        let next = Meta {
            promised: hello.generation,
            promised_to: hello.engine,
            // Durable before the first write, once per session: after a restart of the node nobody could tell whether
            // this session wrote something that no flush covered.
            unflushed: true,
            boot: self.boot,
            ..self.meta.clone()
        };
        if !kept(Rule::PromisePersists) {
            self.meta = next;
            self.welcome(ticket);
        } else if next == self.meta && !self.doubtful {
            self.welcome(ticket);
        } else {
            self.persist(next, Then::Welcome { ticket });
        }
    }

    fn welcome(&mut self, ticket: u64) {
        self.session += 1;
        let session = Session { number: self.session, generation: self.meta.promised };
        let welcome = Box::new(welcome(&self.meta, self.flush_sequence));
        self.actions.push_back(Action::Welcome { ticket, welcome, session });
    }

    // ---- views ----

    fn answer_view(&mut self, ticket: u64, status: Status, reopen: bool) {
        if reopen {
            self.failed_while_syncing = false;
        }
        self.actions.push_back(Action::AnswerView { ticket, status, reopen });
    }

    fn begin_view(&mut self, ticket: u64, generation: Generation, update: &ViewUpdate) {
        match self.check_view(generation, update) {
            Ok((next, begin)) => {
                // Everything it lacks is written anew, or a person wants it as it is.
                let reopen = !self.meta.failed.is_empty() && (next.syncing || update.new_history);
                if next == self.meta && begin.is_empty() && !self.doubtful {
                    self.answer_view(ticket, Status::Ok, reopen);
                } else {
                    self.persist_maps(next, begin, Then::AnswerView { ticket, reopen });
                }
            }
            Err(status) => self.answer_view(ticket, status, false),
        }
    }

    fn check_view(&self, generation: Generation, update: &ViewUpdate) -> Result<(Meta, Vec<NewMap>), Status> {
        let meta = &self.meta;
        if generation != meta.promised || update.view.generation != meta.promised {
            return Err(Status::Fenced);
        }
        let member = update.view.members.contains(meta.replica);
        // Only a view that begins a new history with this replica alone may leave the old one.
        let alone = update.new_history && member && update.view.members.len() == 1;
        let same_history = update.lineage == meta.lineage || alone;
        if !same_history || (member && update.syncing) || !follows(&update.view, &meta.view) {
            return Err(Status::Invalid);
        }
        let adopted = update.adopt.iter().flatten().map(|(_, base)| *base);
        let told = update.stamp.iter().flat_map(|stamp| {
            let advanced = stamp.advance.map(|(_, base)| base);
            [Some(update.view.stamp(stamp.round)), stamp.settled, advanced].into_iter().flatten()
        });
        let absurd = |stamp: Stamp| stamp.order() > update.view.order() || stamp.round > Stamp::ROUND_MAX;
        if update.view.epoch.jumps_from(meta.view.epoch) || adopted.chain(told).any(absurd) {
            return Err(Status::Invalid);
        }
        if member && meta.syncing && self.failed_while_syncing && !update.new_history {
            return Err(Status::Failed);
        }
        // Only what has been filled and made a member is as good as the others again; neither a removal nor a view
        // that does not mention it makes it so.
        let synced = member && meta.syncing;
        let (dirty, begin) = if member { self.maps_after(update) } else { (Vec::new(), Vec::new()) };
        let next = Meta {
            lineage: update.lineage,
            view: update.view,
            configured: update.configured,
            incarnation: update.incarnation,
            revision: update.revision,
            syncing: !member && (update.syncing || meta.syncing),
            // After a repair, what was lost with the cache has been copied from a member that kept it.
            cache_lost: meta.cache_lost && !synced && !(member && update.repaired),
            failed: if synced { String::new() } else { meta.failed.clone() },
            basis: self.basis_after(update),
            settled: update.stamp.and_then(|stamp| meta.settled.max(stamp.settled)),
            dirty,
            ..meta.clone()
        };
        Ok((next, begin))
    }

    /// The stamp of this copy under a view. It never goes back, so that each is given to one state of the directory.
    fn basis_after(&self, update: &ViewUpdate) -> Option<Stamp> {
        let round = update.stamp.map_or(0, |stamp| stamp.round);
        let member = update.view.members.contains(self.meta.replica);
        if member || update.rebased {
            self.meta.basis.max(Some(update.view.stamp(round)))
        } else {
            self.meta.basis.map(|basis| Stamp { round: basis.round.max(round), ..basis })
        }
    }

    /// The dirty maps that a member keeps under a view: one for each configured replica that is no member, and for those
    /// that the engine does not know yet to have persisted it. A copy of a replica that leaves differs from this one, if
    /// it has at least the stamp that all members had, only where one of the two has its write-intent bit set. Of a
    /// replica that this one has never been a member with nothing is known, and there is no map, until the engine has it
    /// begin with everything.
    fn maps_after(&self, update: &ViewUpdate) -> (Vec<DirtyMap>, Vec<NewMap>) {
        let meta = &self.meta;
        let absent = update.configured.difference(&update.view.members);
        let known: ReplicaSet = meta.dirty.iter().map(|map| map.replica).collect();
        let kept = known.intersection(&update.keep);
        let together = meta.view.members.contains(meta.replica) && !meta.syncing;
        let first = meta.view.stamp(0);
        let reached = match update.stamp {
            Some(_) => meta.settled.unwrap_or(first),
            // Bits may be cleared from now on without a round.
            None => meta.settled.map_or(first, |settled| settled.max(first)),
        };
        let advanced = |replica| {
            let (advanced, stamp) = update.stamp?.advance?;
            (advanced == replica).then_some(stamp)
        };
        let (mut dirty, mut begin) = (Vec::new(), Vec::new());
        for replica in absent.iter().chain(kept.difference(&absent).iter()) {
            let old = meta.dirty.iter().find(|map| map.replica == replica);
            let (base, full) = match old {
                _ if update.refill.contains(replica) => {
                    (advanced(replica).unwrap_or(update.view.stamp(0)), Some(true))
                }
                Some(old) => (advanced(replica).map_or(old.base, |stamp| stamp.max(old.base)), None),
                None if together && meta.view.members.contains(replica) => (reached, Some(false)),
                // A new member knows no more than that the others' maps of it go back that far.
                None => match update.adopt.iter().flatten().find(|(adopted, _)| *adopted == replica) {
                    Some((_, base)) => (*base, Some(true)),
                    None => continue,
                },
            };
            dirty.push(DirtyMap { replica, base });
            begin.extend(full.map(|full| NewMap { replica, full }));
        }
        dirty.sort_by_key(|map| map.replica);
        (dirty, begin)
    }
}

/// Whether `next` may stand where `view` stood: a later one, or the very same again.
fn follows(next: &View, view: &View) -> bool {
    next.order() > view.order() || next == view
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
