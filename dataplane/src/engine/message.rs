//! What the two threads tell each other. All of it is rare: none is sent per I/O.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use holdfast_proto::ids::{Epoch, Generation, Lineage, ReplicaId};
use holdfast_proto::record::VolumeStatus;

use crate::control::handshake::Connected;
use crate::core::engine::{ConnectFailure, Ending, Force, Pace, RegistryOutcome, Report, Wanted};
use crate::core::seats::Source;
use crate::frontend::IoCounters;
use crate::frontend::nbd::Negotiated;
use crate::io::Waker;

/// Where a replica is, as far as the core wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whereabouts {
    pub(super) replica: ReplicaId,
    pub(super) known: bool,
    pub(super) local: bool,
    pub(super) absent: Option<String>,
}

/// One try to reach a replica. A result that comes when another try was asked for meanwhile is dropped: its promise was
/// made to an older generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) replica: ReplicaId,
    pub(super) number: u64,
    pub(super) generation: Generation,
}

/// A client that has finished its handshake.
#[derive(Debug)]
pub(super) struct NewClient {
    pub(super) socket: OwnedFd,
    pub(super) negotiated: Negotiated,
    pub(super) source: Source,
}

/// To the data thread.
#[derive(Debug)]
pub(super) enum Command {
    Locate(Whereabouts),
    /// Which replicas the volume is to have.
    Want(Vec<Wanted>),
    /// What the node allows fillings.
    Pace(Option<Pace>),
    /// A person's word about how to start.
    Force(Force),
    /// The handshake with a replica is done.
    Connected {
        attempt: Attempt,
        connected: Box<Connected>,
    },
    ConnectFailed {
        attempt: Attempt,
        why: ConnectFailure,
    },
    RegistryResult {
        ask: u64,
        outcome: RegistryOutcome,
    },
    /// A client has finished its handshake.
    Client(NewClient),
    /// Find out soon which clients over TCP are still there.
    CheckClients,
    /// Take no more, finish what was taken, within this time.
    Drain {
        within: Duration,
    },
    /// End the thread, whatever is in flight.
    Stop,
}

/// From the data thread.
#[derive(Debug)]
pub(super) enum Event {
    Connect {
        attempt: Attempt,
        lineage: Lineage,
        epoch: Epoch,
    },
    CompareAndSwap {
        ask: u64,
        expected_version: u64,
        status: Box<VolumeStatus>,
    },
    /// Clients may come.
    Serve,
    Report {
        report: Box<Report>,
        clients: usize,
        /// Clients that were dropped so far for taking no replies while others waited.
        stalled: u64,
        io: Box<IoCounters>,
    },
    /// Nothing more is answered; clients have been told.
    Ended(Ending),
    /// The thread is about to end by itself: its driver failed.
    Failed(String),
}

/// The way to the data thread.
#[derive(Debug, Clone)]
pub(super) struct DataHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) waker: Waker,
}

impl DataHandle {
    /// Tells the data thread; a thread that has ended is past caring.
    pub(super) fn tell(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}
