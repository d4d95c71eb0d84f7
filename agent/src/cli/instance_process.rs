//! The hidden commands that the agent starts: one process, one instance.

use std::path::PathBuf;
use std::process::ExitCode;

use holdfast_dataplane::control::InstanceArgs;
use holdfast_dataplane::error::Error;
use holdfast_proto::ids::InstanceUuid;

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
pub(super) fn engine(args: ProcessArgs) -> ExitCode {
    ended("engine", holdfast_dataplane::engine::run(args.into()))
}

/// Keeps a copy until told to end.
pub(super) fn replica(args: ProcessArgs) -> ExitCode {
    ended("replica", holdfast_dataplane::replica::run(args.into()))
}

/// An instance's exit code says more than a command's: the agent tells people what it means.
fn ended(kind: &str, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => {
            holdfast_log::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            // The agent reads the last line of the log.
            holdfast_log::last_words(&format!("error: the {kind} ended: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
