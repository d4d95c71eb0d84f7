//! The hidden commands that the agent starts: one process, one instance.

use std::fmt::Display;
use std::path::PathBuf;

use holdfast_dataplane::control::InstanceArgs;
use holdfast_proto::ids::InstanceUuid;

use crate::complaint::Complaint;

/// What the agent says about an instance on its command line; nothing secret.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ProcessArgs {
    /// The instance's name
    #[arg(long, hide = true)]
    name: String,
    /// The UUID of its creation
    #[arg(long, hide = true)]
    uuid: InstanceUuid,
    /// Its directory
    #[arg(long, hide = true)]
    instance_dir: PathBuf,
    /// Its control socket
    #[arg(long, hide = true)]
    control: PathBuf,
}

impl From<ProcessArgs> for InstanceArgs {
    fn from(args: ProcessArgs) -> Self {
        Self { name: args.name, uuid: args.uuid, instance_dir: args.instance_dir, control: args.control }
    }
}

/// Serves a volume until told to end.
pub(super) fn engine(args: ProcessArgs) -> Result<(), Complaint> {
    ended("engine", holdfast_dataplane::engine::run(args.into()))
}

/// Keeps a copy until told to end.
pub(super) fn replica(args: ProcessArgs) -> Result<(), Complaint> {
    ended("replica", holdfast_dataplane::replica::run(args.into()))
}

fn ended<E: Display>(kind: &str, result: Result<(), E>) -> Result<(), Complaint> {
    result.map_err(|error| Complaint::failed(format!("the {kind} ended: {error}")))
}
