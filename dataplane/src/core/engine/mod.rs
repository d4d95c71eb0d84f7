//! The engine: one volume's writes to all members, its reads from one, and who is a member.
//!
//! Pure: the shell calls a method for each thing that happened, with the time, and then drains
//! [`Engine::poll_action`] until it is empty. [`Engine::poll_timeout`] says when [`Engine::tick`] is due.
//!
//! - `ops`: what clients (and repair and copying) want done, in an order that never runs conflicting ranges together.
//! - `zeroing`: trims and zeroing, a step at a time.
//! - `peers`: the connections to replicas, and when one is failed. `unanswered`: which frames have no answer yet.
//! - `view`: attach, fence, decide, propose, commit. A write is acknowledged only under a committed view all of whose
//!   members have it.
//! - `repair`: making members equal after an unclean end.
//! - `fill`: filling replicas that are to become members. `maps`: what they lack, by the members' word. `missed`: what
//!   they lack for certain. `handover`: what a new member is told of others.
//! - `intent`: when the members' write-intent bits may be cleared. `rounds`: stamps that grow before they are.
//! - `lease`: when reads may be sent at all.
//! - `lag`: members that are slow, and when one is left behind for it.
//! - `configure`: moving the configured set towards what is wanted, one replica at a time.
//! - `force`: starting from one replica against the rules, because a person said so.
//! - `report`: what to tell people.
//!
//! Source of the rules: `docs/replication.md`.

mod configure;
#[cfg(test)]
mod configure_tests;
#[cfg(test)]
mod cost_tests;
#[cfg(test)]
mod directed_tests;
mod fill;
mod force;
mod handover;
mod intent;
mod lag;
mod lease;
#[cfg(test)]
mod lease_tests;
mod maps;
mod missed;
#[cfg(test)]
mod missed_tests;
mod ops;
#[cfg(test)]
mod pace_tests;
mod peers;
#[cfg(test)]
mod print;
mod repair;
mod report;
mod rounds;
#[cfg(test)]
mod rounds_tests;
mod tag;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thin_tests;
mod unanswered;
mod view;
mod zeroing;
#[cfg(test)]
mod zeroing_tests;

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_proto::ids::{Epoch, Generation, InstanceUuid, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, View, VolumeStatus};

pub use self::configure::Wanted;
pub use self::fill::{Pace, Wait};
pub use self::force::Force;
pub use self::report::{EngineState, ReplicaMode, ReplicaReport, Report};
pub use self::tag::OpId;
use self::{
    configure::Configure,
    fill::Fill,
    force::Forced,
    intent::IntentClock,
    lease::Lease,
    ops::Ops,
    peers::Peer,
    rounds::Rounds,
    view::{Phase, Proposal, Registry},
    zeroing::Zeroing,
};
use super::range_lock::RangeLock;
use super::region_map::RegionMap;
use crate::units::GROUP_BYTES;
use crate::wire::header::Header;
use crate::wire::payload::{Extent, ViewUpdate};

/// Time, counted from any fixed moment.
pub type Now = Duration;

/// What does not change while an engine runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The volume's size; whole blocks.
    pub volume_bytes: u64,
    /// This engine's UUID: of this process alone, since it is what promises are made to. Another process of the same
    /// instance may have been promised the same generation, started without the registry, and must not pass for it.
    pub engine: InstanceUuid,
    /// The instance it is a process of: by it the agent knows which engine it was.
    pub instance: InstanceUuid,
    /// A replica that owes answers and gives none for this long has failed.
    pub replica_timeout: Duration,
    /// I/O that could not be done for this long fails.
    pub suspend_timeout: Duration,
    /// Below this many members nothing is acknowledged.
    pub min_in_sync: usize,
    /// How long a start waits for the replicas it could do without.
    pub start_patience: Duration,
    /// Every replica is asked this often whether it is there.
    pub heartbeat: Duration,
    /// Reads are sent only while every member has answered something that was sent no longer ago than this.
    pub read_lease: Duration,
    /// The agent knows that the engine which the record names has ended, or that none was ever attached.
    pub predecessor_gone: bool,
    /// A member whose answers go on taking longer than this, while others are quick, is left behind.
    pub replica_lag_max: Duration,
    /// Copies and comparisons in flight.
    pub copies_max: usize,
    /// Write-intent bits are cleared where nothing was written for one to two of these.
    pub intent_sweep: Duration,
    /// Bytes copied to a replica that is being filled, per second; 0: no limit.
    pub rebuild_bytes_per_second: u64,
    /// A person's word that the rules of a start do not count this once.
    pub force: Option<Force>,
}

impl Config {
    /// The defaults for a volume.
    #[must_use]
    pub fn new(volume_bytes: u64, engine: InstanceUuid) -> Self {
        Self {
            volume_bytes,
            engine,
            instance: engine,
            // Longhorn's and Mayastor's defaults are 8 s and 5 s: long enough for a disk's own retries.
            replica_timeout: Duration::from_secs(8),
            suspend_timeout: Duration::from_secs(300),
            min_in_sync: 1,
            // A guess: processes start within a second of each other, and a rebuild costs far more.
            start_patience: Duration::from_secs(3),
            heartbeat: Duration::from_secs(1),
            // Five heartbeats: one or two that are late hold no reads. Longer, and a start after a lost node waits longer.
            read_lease: Duration::from_secs(5),
            predecessor_gone: false,
            // A guess: far above what a sound disk takes even for a flush of a full cache shared with others, and below
            // what makes guests report a hung disk.
            replica_lag_max: Duration::from_secs(2),
            // A guess: enough to hide one round trip, few enough that a client waits for about one copy.
            copies_max: 4,
            // A guess: a load that comes back within it pays nothing again, and one bit is 4 MiB to compare after a crash.
            intent_sweep: Duration::from_secs(10),
            rebuild_bytes_per_second: 0,
            force: None,
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub enum Request {
    /// At most one region; the shell's buffer for the operation receives the covering blocks.
    Read,
    /// At most one region; the shell's buffer holds the covering blocks, with the payload in its place.
    Write {
        /// On stable storage before the answer.
        fua: bool,
    },
    /// All that was answered before is on stable storage on every member.
    Flush,
    /// Whole blocks read as zeros afterwards, and are deallocated.
    Trim,
    /// Whole blocks read as zeros afterwards.
    WriteZeroes {
        /// They may be deallocated.
        may_punch: bool,
        /// On stable storage before the answer.
        fua: bool,
    },
    /// Which parts are allocated.
    Extents,
}

impl Request {
    /// Whether its change is to be on stable storage before the answer.
    fn is_fua(self) -> bool {
        match self {
            Self::Write { fua } | Self::WriteZeroes { fua, .. } => fua,
            Self::Read | Self::Flush | Self::Trim | Self::Extents => false,
        }
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Every member's disk refused.
    Io,
    /// There is no room on any member.
    NoSpace,
    /// Out of range or not aligned.
    Invalid,
    /// The engine ends, is fenced, or could not do it within the suspend timeout.
    Unavailable,
}

/// How an operation went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; what was read is in the operation's buffer.
    Done,
    /// The answer to [`Request::Extents`]: runs from the offset asked for, at least one.
    Extents(Vec<Extent>),
    /// Not done, or not known to be done on any member.
    Failed(Failure),
}

/// What a frame carries behind its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// `len` bytes of the operation's buffer, from `from`.
    Buffer {
        /// Whose buffer.
        op: OpId,
        /// From where in it.
        from: u64,
        /// How many.
        len: u64,
    },
    /// A view to persist.
    View(Box<ViewUpdate>),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Reach the replica and shake hands with this generation; answered by [`Engine::connected`] or
    /// [`Engine::connect_failed`].
    Connect {
        /// Which.
        replica: ReplicaId,
        /// To be promised.
        generation: Generation,
        /// The engine's history.
        lineage: Lineage,
        /// Of the newest view known.
        epoch: Epoch,
    },
    /// Drop this connection; no answer is expected.
    Disconnect {
        /// Whose.
        replica: ReplicaId,
        /// Which.
        session: u64,
    },
    /// Send a frame. The shell fills in length and checksum of the payload.
    Send {
        /// To whom.
        replica: ReplicaId,
        /// On which connection; one that is gone is passed over.
        session: u64,
        /// The header.
        header: Header,
        /// What goes behind it.
        body: Body,
    },
    /// A client's operation has ended. Its buffer is the shell's again.
    Complete {
        /// Which.
        op: OpId,
        /// How.
        outcome: Outcome,
    },
    /// An operation of the engine's own needs a buffer of this many bytes until [`Action::Release`].
    Reserve {
        /// Which.
        op: OpId,
        /// How much.
        len: u64,
    },
    /// An operation of the engine's own has ended.
    Release {
        /// Which.
        op: OpId,
    },
    /// Change the record's status if its version is still this; answered by [`Engine::registry_result`].
    CompareAndSwap {
        /// To tell answers apart.
        ask: u64,
        /// The version expected.
        expected_version: u64,
        /// The status wanted.
        status: Box<VolumeStatus>,
    },
    /// The first view is committed: clients may come.
    Serve,
    /// The end: nothing more will be answered.
    End(Ending),
}

/// Why an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Drained, flushed on every member, and the record says so.
    Clean,
    /// Drained, but the copies still have to be compared, or the record could not be told.
    Unclean(String),
    /// A newer engine took the volume over. It never serves again.
    Fenced {
        /// The newer generation.
        by: Generation,
    },
    /// Every member lost its cache while writes that consumers believe in were in it.
    CacheLost,
    /// The record is gone, or means another engine.
    RecordMissing,
}

/// What the registry said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryOutcome {
    /// Stored under this version.
    Stored {
        /// The record's new version.
        version: u64,
    },
    /// The record has another version.
    Conflict {
        /// Its version.
        version: u64,
        /// Its status.
        status: Box<VolumeStatus>,
    },
    /// There is no such record, or it means another engine.
    Missing,
    /// The registry cannot be reached, or refuses to store anything.
    Unreachable,
}

/// Why a replica could not be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens there: the process is gone.
    Gone(String),
    /// No answer in time, or the handshake broke off.
    Unreachable(String),
    /// It promised to a newer (or another) engine: its word in the handshake, never that of a frame.
    Fenced {
        /// The generation it promised.
        generation: Generation,
        /// To whom.
        engine: InstanceUuid,
    },
    /// It said no for a reason that only a change over there mends.
    Refused(String),
}

/// What the shell does with the payload of a reply before it hands the reply over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadUse {
    /// It becomes the content of the operation's buffer, from its beginning.
    Fill(OpId),
    /// The same, and [`crate::core::zero_blocks::ZeroBlocks`] of it are handed over with the reply.
    FillAndLook(OpId),
    /// The block around an edge of an unaligned write: its bytes go to `at..` of the operation's buffer, but for
    /// those that fall into `keep_from..keep_to` of it, which are the client's.
    Merge {
        /// Whose buffer.
        op: OpId,
        /// Where in the buffer the block belongs.
        at: u64,
        /// The client's bytes begin here in the buffer,
        keep_from: u64,
        /// and end here.
        keep_to: u64,
    },
    /// Small; handed over with the reply.
    Inline,
    /// Nobody waits for it any more.
    Discard,
}

/// A set of places in the table of replicas, one bit each.
type Mask = u8;

fn bit(slot: usize) -> Mask {
    1 << slot
}

fn slots(mask: Mask) -> impl Iterator<Item = usize> {
    (0..8).filter(move |slot| mask & bit(*slot) != 0)
}

/// The state machine. See the module's documentation for the calling order.
#[derive(Debug, Clone)]
pub struct Engine {
    config: Config,
    peers: Vec<Peer>,
    registry: Registry,
    phase: Phase,
    /// The committed view; nothing is acknowledged under another.
    view: View,
    /// The configured set of that view: what decides majorities.
    configured: ReplicaSet,
    /// What the configured set is to become.
    configure: Configure,
    /// A start against the rules, while and after it is one.
    forced: Forced,
    /// Its members' places.
    members: Mask,
    /// A view that is on its way.
    proposal: Option<Proposal>,
    /// Connected, fenced, and answering as far as is known.
    live: Mask,
    /// Being filled: they get every write.
    targets: Mask,
    ops: Ops,
    zeroing: Zeroing,
    lock: RangeLock,
    /// Whose turn has come.
    ready: VecDeque<u32>,
    /// Regions in which members may differ.
    unrepaired: RegionMap,
    fill: Fill,
    intent: IntentClock,
    rounds: Rounds,
    actions: VecDeque<Action>,
    /// Clients' writes that were answered, and how many of them the last flush covered.
    writes_done: u64,
    writes_flushed: u64,
    reads_done: u64,
    /// After a stall of all members, the first to return waits until then for the others.
    remove_not_before: Now,
    /// Since when I/O cannot be done.
    suspended_since: Option<Now>,
    next_heartbeat: Now,
    lease: Lease,
}

impl Engine {
    /// An engine for the volume whose record was read as `status` at `version`. Nothing happens before
    /// [`Self::start`].
    #[must_use]
    pub fn new(config: Config, version: u64, status: VolumeStatus) -> Self {
        let peers: Vec<_> = status.configured.iter().map(Peer::new).collect();
        let (view, configured) = (status.view, status.configured);
        let fill = Fill::new(&config);
        let intent = IntentClock::new(config.volume_bytes);
        let rounds = Rounds::new(config.volume_bytes.div_ceil(GROUP_BYTES));
        Self {
            peers,
            view,
            configured,
            configure: Configure::default(),
            forced: Forced::default(),
            members: 0,
            proposal: None,
            live: 0,
            targets: 0,
            ops: Ops::new(),
            zeroing: Zeroing::default(),
            lock: RangeLock::with_capacity(1024),
            ready: VecDeque::with_capacity(1024),
            unrepaired: RegionMap::empty(config.volume_bytes),
            fill,
            intent,
            rounds,
            lease: Lease::new(&status, config.predecessor_gone),
            registry: Registry::new(version, status),
            phase: Phase::New,
            actions: VecDeque::with_capacity(4096),
            writes_done: 0,
            writes_flushed: 0,
            reads_done: 0,
            remove_not_before: Duration::ZERO,
            suspended_since: None,
            next_heartbeat: Duration::ZERO,
            config,
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// This engine's generation; what its frames carry.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.registry.generation
    }

    fn slot_of(&self, replica: ReplicaId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.id == replica && !peer.vacant)
    }

    fn mask_of(&self, set: &ReplicaSet) -> Mask {
        self.peers
            .iter()
            .enumerate()
            .filter(|(_, peer)| set.contains(peer.id) && !peer.vacant)
            .fold(0, |mask, (slot, _)| mask | bit(slot))
    }

    fn set_of(&self, mask: Mask) -> ReplicaSet {
        slots(mask).filter_map(|slot| self.peers.get(slot)).map(|peer| peer.id).collect()
    }

    /// The places in the table that a replica has.
    fn occupied(&self) -> Mask {
        (0..self.peers.len()).filter(|slot| !self.peers[*slot].vacant).fold(0, |mask, slot| mask | bit(slot))
    }

    /// Whose answer an operation needs: the members of the view that is proposed, or else committed.
    fn required(&self) -> Mask {
        self.proposal.as_ref().map_or(self.members, |proposal| proposal.members)
    }

    /// With whom the next engine may begin, should this one end now: the members of the committed view, and of every view
    /// that was proposed since. One that was to be added and left again knows of a view with it, until a later one counts.
    fn possible(&self) -> Mask {
        self.members | self.proposal.as_ref().map_or(0, |proposal| proposal.named)
    }
}
