//! The command line: one file per noun. Parses, calls the agent (or runs one), prints; the exit code says how it went.

mod agent;
mod claim;
mod client;
mod confirm;
mod instance;
mod instance_process;
mod json;
mod node;
mod node_rename;
mod orphan;
mod output;
mod owner;
mod quickstart;
mod ready;
mod registry;
mod replica;
mod shutdown;
mod status_line;
mod trash;
mod uninstall;
mod version;
mod volume;
mod wait;
mod watch;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use holdfast_proto::status::ErrorKind;
use nix::sys::stat::Mode;

use crate::complaint::Complaint;
use crate::config::{AgentFlags, parse_listen};
use output::{Format, Out};

const ABOUT_CODES: &str = "\
Exit codes:
  0 done        1 failed                2 usage      3 not found
  4 conflict    5 agent not reachable   6 timed out  7 refused for safety
  8 not confirmed

Examples:
  holdfast quickstart   a replicated volume in one command, without root
  holdfast volume create db --size 10GiB --replicas 3
  holdfast volume attach db && holdfast volume wait db --for healthy --timeout 60s
  holdfast volume show db -o json  the same for programs";

/// Replicated block volumes that outlive their manager.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, after_help = ABOUT_CODES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
struct Global {
    /// Socket of the agent [env: HOLDFAST_AGENT] [default: unix:/run/holdfast/agent.sock, then that of a quickstart in
    /// ./holdfast-data]
    #[arg(long = "agent", id = "agent_socket", global = true, value_name = "unix:PATH", value_parser = parse_listen)]
    agent: Option<PathBuf>,
    /// Tables for people, JSON for programs
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Where an agent listens, for who does not say it on the command line.
const AGENT_VARIABLE: &str = "HOLDFAST_AGENT";

impl Global {
    /// Takes the agent that the environment names, where none was given. One that is set to nothing names none.
    fn ask(&mut self, named: Option<OsString>) -> Result<(), Complaint> {
        let named = named.filter(|named| !named.is_empty());
        if let (None, Some(named)) = (&self.agent, named) {
            let told = |why: String| {
                let message = format!("{AGENT_VARIABLE} names no socket of an agent: {why}");
                Complaint::new(ErrorKind::Invalid, message).remedy("set it to unix:PATH, or unset it")
            };
            let text = named.to_str().ok_or_else(|| told(format!("{} is no text", named.display())))?;
            self.agent = Some(parse_listen(text).map_err(told)?);
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node
    #[command(after_help = agent::EXAMPLES)]
    Agent(Box<AgentFlags>),
    /// Run an agent with a volume `demo` in the foreground, without root
    #[command(after_help = quickstart::EXAMPLES)]
    Quickstart(quickstart::Args),
    /// Create, attach, detach, delete and look at volumes
    #[command(subcommand, after_help = volume::EXAMPLES)]
    Volume(volume::Command),
    /// Look at engines and replicas, their logs, and stop unclaimed ones
    #[command(subcommand, after_help = instance::EXAMPLES)]
    Instance(instance::Command),
    /// Add, remove and replace replicas of volumes, and look at their directories
    #[command(after_help = replica::EXAMPLES)]
    Replica(replica::Args),
    /// Look at what no record claims; hold, release and delete it
    #[command(subcommand, after_help = orphan::EXAMPLES)]
    Orphan(orphan::Command),
    /// Claim instances for controllers that are not Holdfast, and release them
    #[command(subcommand, after_help = claim::EXAMPLES)]
    Claim(claim::Command),
    /// Look at deleted data that still waits; restore or unlink it
    #[command(subcommand, after_help = trash::EXAMPLES)]
    Trash(trash::Command),
    /// Look at the node
    #[command(subcommand, after_help = node::EXAMPLES)]
    Node(node::Command),
    /// Look at the registry, and let one that is refused count as it is
    #[command(subcommand, after_help = registry::EXAMPLES)]
    Registry(registry::Command),
    /// Take Holdfast off this node: end what runs, remove what is ours, keep the data
    #[command(after_help = uninstall::EXAMPLES)]
    Uninstall(Box<uninstall::Args>),
    /// Print everything that runs, then each change, until interrupted
    #[command(after_help = watch::EXAMPLES)]
    Watch,
    /// Print the versions of this program and of the agent, where one runs
    #[command(after_help = version::EXAMPLES)]
    Version,
    /// Serve one volume (started by the agent)
    #[command(hide = true)]
    Engine(instance_process::ProcessArgs),
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    // What any of this makes is this user's alone; what others may use is opened to them one by one.
    nix::sys::stat::umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let out = Out::new(cli.global.output);
    let done = cli.global.ask(std::env::var_os(AGENT_VARIABLE)).and_then(|()| dispatch(cli, &out));
    // What was logged comes before the reason for the end.
    holdfast_log::flush();
    match done {
        Ok(code) => code,
        Err(complaint) => {
            out.complain(&complaint);
            ExitCode::from(complaint.kind.exit_code())
        }
    }
}

fn dispatch(cli: Cli, out: &Out) -> Result<ExitCode, Complaint> {
    let global = cli.global;
    let done = match cli.command {
        Command::Agent(flags) => agent::run(&flags),
        Command::Quickstart(args) => quickstart::run(&args, out),
        Command::Volume(command) => client_runtime(volume::run(command, &global, out)),
        Command::Instance(command) => client_runtime(instance::run(command, &global, out)),
        Command::Replica(replica::Args { command: Some(command), .. }) => {
            client_runtime(replica::run(&command, &global, out))
        }
        Command::Replica(replica::Args { process: Some(args), .. }) => {
            return Ok(instance_process::replica(args));
        }
        Command::Replica(replica::Args { command: None, process: None }) => {
            Err(Complaint::new(ErrorKind::Invalid, "replica needs a command").remedy("`holdfast replica ls`"))
        }
        Command::Orphan(command) => client_runtime(orphan::run(command, &global, out)),
        Command::Claim(command) => client_runtime(claim::run(command, &global, out)),
        Command::Trash(command) => client_runtime(trash::run(command, &global, out)),
        Command::Node(command) => client_runtime(node::run(&command, &global, out)),
        Command::Registry(command) => client_runtime(registry::run(&command, &global, out)),
        Command::Uninstall(args) => uninstall::run(&args, out),
        Command::Watch => client_runtime(watch::run(&global, out)),
        Command::Version => client_runtime(version::run(&global, out)),
        Command::Engine(args) => return Ok(instance_process::engine(args)),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// One thread is enough to ask a question.
fn client_runtime(work: impl Future<Output = Result<(), Complaint>>) -> Result<(), Complaint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Complaint::failed(format!("failed to start: {error}")))?.block_on(work)
}

/// Help and versions go to standard output; what cannot be parsed is a usage error, as JSON where that was asked for.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if error.use_stderr() && wants_json(arguments) {
        let text = error.to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        let complaint = Complaint::new(ErrorKind::Invalid, message);
        Out::new(Format::Json).complain(&complaint);
        return ExitCode::from(complaint.kind.exit_code());
    }
    // Nothing can be done where even standard error is closed.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(ErrorKind::Invalid.exit_code()) } else { ExitCode::SUCCESS }
}

/// What the parser would have found, had it got that far.
fn wants_json(arguments: &[OsString]) -> bool {
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    arguments.iter().any(|argument| matches!(argument.as_ref(), "-ojson" | "-o=json" | "--output=json"))
        || arguments.windows(2).any(|pair| match pair {
            [flag, value] => matches!(flag.as_ref(), "-o" | "--output") && value.as_ref() == "json",
            _ => false,
        })
}

/// The whole command line, for documents and tests.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
