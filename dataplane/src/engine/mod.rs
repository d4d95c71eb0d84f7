//! The engine process: the shell around [`crate::core::engine::Engine`].
//!
//! Two threads. The **data thread** (`data`) owns the I/O driver, the core and the clients: completions go into the
//! core, its actions become submissions, once around per turn. The **control thread** (`control`) talks to the agent,
//! shakes hands with replicas and clients, and hands over sockets. They exchange messages (`message`) and share no
//! lock.
//!
//! - `config`: what the agent says, checked.
//! - `control`: the agent's calls and what the data thread reports; `connect` reaches replicas, `listen` takes clients,
//!   `status` says it in the agent's words.
//! - `data`: the loop; `replicas` are its connections to replicas, `frontends` its clients, `buffers` the memory of
//!   operations in flight.

mod buffers;
mod config;
mod connect;
mod control;
mod data;
mod frontends;
mod listen;
mod message;
mod replicas;
mod status;

#[cfg(test)]
mod tests;

use crate::control::{InstanceArgs, run as run_instance};
use crate::error::Error;

/// Runs an engine until it is stopped or cannot go on.
///
/// # Errors
/// What ended it; see [`Error::exit_code`].
pub fn run(args: InstanceArgs) -> Result<(), Error> {
    run_instance(args, "engine", |instance| Ok(control::EngineRole::new(instance)))
}
