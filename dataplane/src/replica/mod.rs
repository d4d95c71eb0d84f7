//! The replica process: one full copy of a volume, behind a data port that only the volume's key opens.
//!
//! The control thread (`shell`) holds the directory, the promises and the handshakes; the data thread (`data`) the
//! engine's connection and the image. What the replica may promise is decided in [`crate::core::replica`].

mod complete;
mod config;
mod data;
mod listen;
mod maps;
mod messages;
mod request;
mod serve;
mod shell;
mod zeroing;

#[cfg(test)]
mod data_tests;
#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod test_engine;

use std::time::Duration;

use holdfast_proto::pb::instance as pb;
use tokio::sync::{mpsc, oneshot};

use crate::control::{self, Instance, InstanceArgs, Role};
use crate::error::Error;
pub use config::{IoMode, ReplicaConfig};

/// Runs a replica until it is stopped.
///
/// # Errors
/// What ended it; see [`Error::exit_code`].
pub fn run(args: InstanceArgs) -> Result<(), Error> {
    control::run(args, "replica", |instance| Ok(ReplicaRole::start(instance)))
}

/// The agent's calls, on their way to the shell's task.
#[derive(Debug)]
pub(crate) struct ReplicaRole {
    commands: mpsc::Sender<shell::Command>,
}

impl ReplicaRole {
    /// Starts the shell's task on this thread's runtime.
    pub(crate) fn start(instance: &Instance) -> Self {
        let (commands, incoming) = mpsc::channel(shell::COMMANDS_MAX);
        tokio::task::spawn_local(shell::Shell::new(instance.clone()).run(incoming));
        Self { commands }
    }

    fn send<T: 'static, F: FnOnce(oneshot::Sender<T>) -> shell::Command>(
        &self,
        make: F,
    ) -> impl Future<Output = Result<T, Error>> + 'static + use<T, F> {
        let commands = self.commands.clone();
        let (reply, answer) = oneshot::channel();
        let command = make(reply);
        async move {
            let ending =
                || Error::Failed { operation: "reach the replica's task", reason: "it has ended".to_owned() };
            commands.send(command).await.map_err(|_| ending())?;
            answer.await.map_err(|_| ending())
        }
    }
}

impl Role for ReplicaRole {
    fn configure(
        &self,
        config: pb::configure_request::Role,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        let parsed = match &config {
            pb::configure_request::Role::Replica(config) => ReplicaConfig::try_from(config),
            pb::configure_request::Role::Engine(_) => {
                Err(Error::invalid("role", "the configuration of a replica", "that of an engine"))
            }
        };
        let sent =
            parsed.map(|config| self.send(move |reply| shell::Command::Configure(Box::new(config), reply)));
        async move { sent?.await? }
    }

    fn drain(&self, deadline: Duration) -> impl Future<Output = pb::DrainReply> + 'static {
        let drained = self.send(shell::Command::Drain);
        async move {
            let result = match tokio::time::timeout(deadline, drained).await {
                Ok(Ok(result)) => result,
                Ok(Err(e)) => Err(e.to_string()),
                Err(_) => Err(format!("not finished within {deadline:?}")),
            };
            pb::DrainReply { clean: result.is_ok(), reason: result.err().unwrap_or_default() }
        }
    }

    fn stop(&self) -> impl Future<Output = ()> + 'static {
        let stopped = self.send(shell::Command::Stop);
        async move {
            // Its task has ended: that is what was asked for.
            let _ = stopped.await;
        }
    }
}
