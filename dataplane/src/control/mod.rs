//! The control thread, common to engine and replica: process start, the gRPC server that the agent talks to, and
//! the handshakes of the data protocol. It knows nothing of what a role does with its configuration.
//!
//! The runtime is tokio-uring's: a current-thread tokio with a ring. Handlers of tonic must be `Send`; they pass each
//! call over a channel to a task of this thread that holds the [`Role`], which need not be.

pub mod board;
pub(crate) mod bound;
pub mod guests;
pub mod handshake;
pub mod lifecycle;
pub mod lobby;
pub mod server;
pub(crate) mod tcp;

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::ids::{BootId, InstanceUuid, ProcessUuid};
use holdfast_proto::pb::instance as pb;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::io::SpinMode;
pub use board::Board;

/// By then the agent has configured it, and everything runs.
const STARTED_AFTER: Duration = Duration::from_secs(5);

/// What the agent tells an instance on its command line: no secret is among it.
#[derive(Debug, Clone)]
pub struct InstanceArgs {
    /// The instance's name, `VOLUME-engine` or `VOLUME-rN`.
    pub name: String,
    /// Minted at its creation, kept across restarts.
    pub uuid: InstanceUuid,
    /// Its directory, which exists: lock, log.
    pub instance_dir: PathBuf,
    /// Where to listen for the agent.
    pub control: PathBuf,
}

/// Who this process is, and its ways to the agent and to its own end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Instance {
    /// As the agent said.
    pub args: InstanceArgs,
    /// "engine" or "replica".
    pub kind: &'static str,
    /// This boot of the node.
    pub boot: BootId,
    /// This run of the process.
    pub process: ProcessUuid,
    /// Field 22 of `/proc/self/stat`.
    pub start_time_ticks: u64,
    /// Status and asks.
    pub board: Board,
    end: mpsc::Sender<Result<(), Error>>,
}

impl Instance {
    /// An instance and the receiver of its end, which [`server::serve`] takes.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn new(
        args: InstanceArgs,
        kind: &'static str,
    ) -> Result<(Self, mpsc::Receiver<Result<(), Error>>), Error> {
        let (end, ended) = mpsc::channel(1);
        let instance = Self {
            args,
            kind,
            boot: lifecycle::boot_id()?,
            process: ProcessUuid::random(),
            start_time_ticks: lifecycle::start_time_ticks()?,
            board: Board::default(),
            end,
        };
        Ok((instance, ended))
    }

    /// Ends the process with this result, once the answers under way are sent. The first call counts.
    pub fn end(&self, result: Result<(), Error>) {
        // Full or closed: it is ending already.
        let _ = self.end.try_send(result);
    }
}

/// What an engine or a replica does with the agent's calls. Calls run as tasks of the control thread and may overlap:
/// a drain waits for what other calls bring.
pub trait Role: 'static {
    /// The first call opens data; later ones update what may change. Never called before Confirm.
    fn configure(
        &self,
        config: pb::configure_request::Role,
    ) -> impl Future<Output = Result<(), Error>> + 'static;
    /// Finish what is in flight, take no more, flush, write the clean mark. Repeats are answered alike.
    fn drain(&self, deadline: Duration) -> impl Future<Output = pb::DrainReply> + 'static;
    /// Find out soon which clients are still there; what has none does nothing.
    fn check_clients(&self) {}
    /// Close what is open; the process ends when this returns.
    fn stop(&self) -> impl Future<Output = ()> + 'static;
}

/// Runs an instance until it is stopped: starts the process ([`lifecycle::begin`]), then the control thread with the role
/// that `make` returns.
///
/// # Errors
/// What ended the process; see [`Error::exit_code`].
pub fn run<R: Role>(
    args: InstanceArgs,
    kind: &'static str,
    make: impl FnOnce(&Instance) -> Result<R, Error>,
) -> Result<(), Error> {
    let _lock = lifecycle::begin(&args)?;
    let (instance, ended) = Instance::new(args, kind)?;
    tracing::info!(
        instance = instance.args.name, uuid = %instance.args.uuid, kind, pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"), "instance started"
    );
    // tokio-uring would panic where io_uring is forbidden; this says why it is, and what to do.
    tracing::info!("{}", crate::io::probe()?);
    let result = tokio_uring::start(async {
        let listener = server::listen(&instance.args.control)?;
        let role = Rc::new(make(&instance)?);
        lifecycle::spawn_signal_task(instance.clone(), Rc::clone(&role))?;
        tokio::task::spawn_local(forget_startup());
        server::serve(instance, ended, listener, role, server::CONFIRM_WITHIN).await
    });
    match &result {
        Ok(()) => tracing::info!("instance ended"),
        Err(e) => tracing::error!("instance ended: {e}"),
    }
    result
}

/// Once everything runs, memory need not hold what only the start needed.
async fn forget_startup() {
    tokio::time::sleep(STARTED_AFTER).await;
    if let Err(e) = crate::io::forget_mapped_code() {
        tracing::debug!("the code of the start stays mapped: {e}");
    }
}

/// How a data thread is to wait; an agent that does not say it leaves it to the default.
pub(crate) fn spin(text: &str) -> Result<SpinMode, Error> {
    match text {
        "" => Ok(SpinMode::default()),
        text => text.parse().map_err(|_| Error::invalid("spin", "auto, off or microseconds", text)),
    }
}

#[cfg(test)]
mod tests;
