//! Reaching replicas: the handshakes that the core wants, on the control thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_proto::ids::{Epoch, Lineage, ReplicaId};
use tokio::task::JoinHandle;

use super::config::Settings;
use super::message::{Attempt, Command, DataHandle};
use crate::control::Instance;
use crate::control::handshake::{ConnectError, connect};
use crate::core::engine::ConnectFailure;
use crate::units::PART_BYTES_MAX;
use crate::wire::handshake::{Hello, RefusalKind, Role};
use crate::wire::{FEATURES_KNOWN, VERSION_MAX, VERSION_MIN};

/// The agent is asked for a replica's address at most this often: its answer may be the same, and as wrong.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// A task that ends with its handle.
#[derive(Debug)]
pub(super) struct Task(JoinHandle<()>);

impl Task {
    pub(super) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One try under way.
#[derive(Debug)]
struct Try {
    attempt: Attempt,
    lineage: Lineage,
    epoch: Epoch,
    address: SocketAddr,
    task: Task,
}

/// Tries to reach replicas, one at a time for each.
#[derive(Debug)]
pub(super) struct Connector {
    instance: Instance,
    settings: Rc<Settings>,
    data: DataHandle,
    tries: BTreeMap<ReplicaId, Try>,
    asked: Rc<RefCell<BTreeMap<ReplicaId, Instant>>>,
}

impl Connector {
    pub(super) fn new(instance: Instance, settings: Rc<Settings>, data: DataHandle) -> Self {
        Self { instance, settings, data, tries: BTreeMap::new(), asked: Rc::default() }
    }

    /// Begins a try; one for the same replica that is still under way is given up.
    pub(super) fn begin(
        &mut self,
        attempt: Attempt,
        lineage: Lineage,
        epoch: Epoch,
        address: Option<SocketAddr>,
    ) {
        let Some(address) = address else {
            let why = ConnectFailure::Unreachable("nobody said where it is".to_owned());
            return self.data.tell(Command::ConnectFailed { attempt, why });
        };
        let task = self.spawn(attempt, lineage, epoch, address);
        self.tries.insert(attempt.replica, Try { attempt, lineage, epoch, address, task });
    }

    /// The replica is somewhere else now: a try that still knocks at the old place goes on at the new one.
    pub(super) fn moved(&mut self, replica: ReplicaId, address: SocketAddr) {
        let under_way = self.tries.get(&replica).filter(|t| !t.task.0.is_finished() && t.address != address);
        if let Some(&Try { attempt, lineage, epoch, .. }) = under_way {
            self.begin(attempt, lineage, epoch, Some(address));
        }
    }

    fn spawn(&self, attempt: Attempt, lineage: Lineage, epoch: Epoch, address: SocketAddr) -> Task {
        let (instance, settings) = (self.instance.clone(), Rc::clone(&self.settings));
        let (data, asked) = (self.data.clone(), Rc::clone(&self.asked));
        let hello = self.hello(attempt, lineage, epoch);
        Task::spawn(async move {
            // The replica answers only when its older I/O has ended: as long as for any answer, and no longer.
            let timeout = settings.core.replica_timeout;
            match connect(address, &settings.key, hello, timeout).await {
                Ok(connected) => data.tell(Command::Connected { attempt, connected: Box::new(connected) }),
                Err(e) => {
                    let reason = format!("{address}: {e}");
                    tracing::debug!(replica = %attempt.replica, reason, "not connected");
                    let why = failure(&e, reason.clone());
                    if !matches!(why, ConnectFailure::Fenced { .. }) {
                        ask_where(&instance, &asked, attempt.replica, reason);
                    }
                    data.tell(Command::ConnectFailed { attempt, why });
                }
            }
        })
    }

    fn hello(&self, attempt: Attempt, lineage: Lineage, epoch: Epoch) -> Hello {
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES_KNOWN,
            payload_bytes_max: u32::try_from(PART_BYTES_MAX).unwrap_or(u32::MAX),
            volume: self.settings.volume,
            replica: attempt.replica,
            key_id: self.settings.key.id,
            role: Role::Engine,
            lineage,
            generation: attempt.generation,
            engine: self.settings.core.engine,
            epoch,
            process: self.instance.process,
            boot: self.instance.boot,
            nonce: [0; 32],
        }
    }
}

fn ask_where(
    instance: &Instance,
    asked: &RefCell<BTreeMap<ReplicaId, Instant>>,
    replica: ReplicaId,
    reason: String,
) {
    let mut asked = asked.borrow_mut();
    if asked.get(&replica).is_none_or(|at| at.elapsed() >= ASK_EVERY) {
        asked.insert(replica, Instant::now());
        instance.board.ask_replica_address(replica.0, reason);
    }
}

fn failure(e: &ConnectError, reason: String) -> ConnectFailure {
    match e {
        ConnectError::Unreachable(e) if e.kind() == ErrorKind::ConnectionRefused => {
            ConnectFailure::Gone(reason)
        }
        ConnectError::Refused(refused) if refused.kind == RefusalKind::Fenced => {
            ConnectFailure::Fenced { generation: refused.generation, engine: refused.engine }
        }
        ConnectError::Refused(_) | ConnectError::Handshake(_) => ConnectFailure::Refused(reason),
        ConnectError::Unreachable(_) | ConnectError::TimedOut => ConnectFailure::Unreachable(reason),
    }
}
