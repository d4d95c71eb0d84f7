//! `holdfast uninstall`: ends what runs on this node and removes what is ours, once somebody has confirmed it. Each step
//! may be interrupted and repeated; data and records stay unless their removal is asked for.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::agent;
use super::client::{Client, ask};
use super::confirm::{Elsewhere, confirm};
use super::output::Out;
use super::owner::work_as_owner;
use crate::complaint::Complaint;
use crate::config::{AgentConfig, AgentFlags, Surroundings};
use crate::error::Error;
use crate::node;
use crate::registry::{Entry, Registry};
use crate::store::lock::AgentLock;
use crate::store::uninstall::{Places, UninstallLock};
use crate::store::{DataDir, identity};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast uninstall --allow && holdfast uninstall   end everything here, keep the data
  holdfast uninstall --force    also where volumes are attached: their clients lose them
  holdfast uninstall --purge-data   the data too: the volumes of this node are deleted for good; asks on a terminal, \
elsewhere wants --yes

Give --config, --data-dir and the like as the agent has them. It may be interrupted and repeated.
Exit code 8 where it was not confirmed with --allow, or --purge-data with --yes; 7 where volumes are attached.";

/// A confirmation that was given a moment ago, elsewhere, is waited for.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(15);
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(100);
/// Longer than an agent takes to end without its instances, and with them.
const AGENT_ENDS_WITHIN: Duration = Duration::from_secs(150);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TOML file of the agent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's records, replicas and binaries [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The agent's socket [default: unix:/run/holdfast/agent.sock]
    #[arg(long, value_name = "unix:PATH", value_parser = crate::config::parse_listen)]
    listen: Option<PathBuf>,
    /// The node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    node: Option<holdfast_proto::ids::NodeName>,
    /// Where its records live, if not in its files; how etcd is reached is read from --config
    #[arg(long, value_name = "file|etcd://...", value_parser = crate::config::parse_place)]
    registry: Option<crate::config::RegistryPlace>,
    /// Where its instances are run from [default: DATA_DIR/bin]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Its directory for sockets [default: as the agent's]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Only confirm that this node's agent may be taken away
    #[arg(long, conflicts_with_all = ["revoke", "force", "purge_data"])]
    allow: bool,
    /// Only take the confirmation back
    #[arg(long, conflicts_with_all = ["force", "purge_data"])]
    revoke: bool,
    /// Detach volumes that are attached here, whoever uses them
    #[arg(long)]
    force: bool,
    /// Delete the volumes of this node with their data
    #[arg(long)]
    purge_data: bool,
    /// Do not ask; where there is no terminal to ask on, --purge-data wants this
    #[arg(long, requires = "purge_data")]
    yes: bool,
}

pub(super) fn run(args: &Args, out: &Out) -> Result<(), Complaint> {
    let flags = AgentFlags {
        config: args.config.clone(),
        data_dir: args.data_dir.clone(),
        listen: args.listen.clone(),
        node: args.node.clone(),
        registry: args.registry.clone(),
        bin_dir: args.bin_dir.clone(),
        runtime_dir: args.runtime_dir.clone(),
        ..AgentFlags::default()
    };
    let config = AgentConfig::load(&flags, &Surroundings::of_this_machine()?)?;
    work_as_owner(&config.data_dir)?;
    let places = Places {
        data_dir: config.data_dir.clone(),
        bin_dir: config.bin_dir.clone(),
        runtime_dir: config.runtime_dir.clone(),
        listen: config.listen.clone(),
    };
    agent::runtime()?.block_on(Uninstall { args, config, places, out }.run())
}

/// What is printed at the end.
#[derive(Debug, Default, Serialize)]
struct Done {
    /// `allowed`, `revoked`, `in_progress`, `nothing_here` or `uninstalled`.
    result: &'static str,
    detached: Vec<String>,
    deleted: Vec<String>,
    removed: Vec<PathBuf>,
    kept: Vec<PathBuf>,
}

struct Uninstall<'a> {
    args: &'a Args,
    config: AgentConfig,
    places: Places,
    out: &'a Out,
}

/// Who can say what the records say.
enum Home {
    /// An agent runs.
    Agent(Client),
    /// None does, and none starts while the lock is held.
    Here { _lock: AgentLock, registry: Arc<dyn Registry> },
}

impl Uninstall<'_> {
    async fn run(&self) -> Result<(), Complaint> {
        if self.args.allow || self.args.revoke {
            let allowed = self.home().await?.allow(&self.config, Some(self.args.allow)).await?;
            return self
                .tell(&Done { result: if allowed { "allowed" } else { "revoked" }, ..Done::default() });
        }
        if !self.places.is_installed() {
            return self.tell(&Done { result: "nothing_here", ..Done::default() });
        }
        if self.args.purge_data {
            let node = &self.config.node;
            let what = format!(
                "the volumes whose copies are all on node {node} are deleted for good, with all that \
                 waits in its trash"
            );
            confirm(&what, self.args.yes, Elsewhere::WantsYes)?;
        }
        let Some(lock) = UninstallLock::take(&self.places.data_dir)? else {
            return self.tell(&Done { result: "in_progress", ..Done::default() });
        };
        let mut done = Done { result: "uninstalled", ..Done::default() };
        // An earlier run that was interrupted at its very end has nothing left to ask for.
        if self.config.data_dir.join("instances").exists() {
            let home = self.home().await?;
            self.confirmed(&home).await?;
            self.nobody_is_served(&home).await?;
            home.end(self.out).await?;
            self.end_instances(&mut done).await?;
        }
        // Nothing is taken away under an agent that was started meanwhile.
        let agent = self.lock_agent()?;
        (done.removed, done.kept) = self.places.clear()?;
        let registry = DataDir::registry_in(&self.config.data_dir);
        if registry.exists() {
            // What is installed here next is confirmed anew.
            let home = node::open_registry(&agent::node_config(&self.config)).await?;
            if !node::leave_registry(&*home, &self.config.node).await? {
                self.say(&format!(
                    "node {} stays known to the registry, as volumes have a part of them here; where it does not come \
                     back: `holdfast node forget`",
                    self.config.node
                ));
            }
            if self.args.purge_data && !self.places.data_dir.join("replicas").exists() {
                self.places.clear_registry(&mut done.removed)?;
            } else {
                let orphans = DataDir::orphans_in(&self.config.data_dir);
                let identity = identity::path_in(&self.config.data_dir);
                done.kept.extend([registry, orphans, identity].into_iter().filter(|path| path.exists()));
            }
        }
        self.places.clear_locks(lock)?;
        drop(agent);
        self.tell(&done)
    }

    /// No agent runs on the data directory, and none starts while this is held.
    fn lock_agent(&self) -> Result<AgentLock, Error> {
        let config = &self.config;
        AgentLock::take(&DataDir::lock_in(&config.data_dir), config.node.as_str(), "uninstall")
    }

    async fn home(&self) -> Result<Home, Complaint> {
        let config = &self.config;
        if !config.data_dir.is_dir() {
            let message = format!("{} is not there", config.data_dir.display());
            return Err(Complaint::new(ErrorKind::NotFound, message)
                .remedy("give --config or --data-dir as the agent has it"));
        }
        match self.lock_agent() {
            Ok(lock) => {
                let registry = node::open_registry(&agent::node_config(config)).await?;
                Ok(Home::Here { _lock: lock, registry })
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let client = Client::open(&config.listen).await;
                client.map(Home::Agent).map_err(|failed: io::Error| {
                    let message = format!(
                        "failed to {error}, and it does not answer at {}: {failed}",
                        config.listen.display()
                    );
                    Complaint::new(ErrorKind::Unreachable, message)
                        .remedy("give --listen as the agent has it, or end the agent first")
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the confirmation from the source of truth until it is there.
    async fn confirmed(&self, home: &Home) -> Result<(), Complaint> {
        let until = Instant::now() + CONFIRMED_WITHIN;
        let mut wait = ASK_AGAIN_FIRST;
        while !home.allow(&self.config, None).await? {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message =
                    format!("nobody has confirmed that node {} may be uninstalled", self.config.node);
                return Err(Complaint::new(ErrorKind::Unconfirmed, message)
                    .remedy("nothing was changed; confirm it with `holdfast uninstall --allow`"));
            }
            if wait == ASK_AGAIN_FIRST {
                let within = CONFIRMED_WITHIN.as_secs();
                self.say(&format!("not confirmed yet; looking for a confirmation for {within} s"));
            }
            sleep(wait.min(left)).await;
            wait *= 2;
        }
        Ok(())
    }

    async fn nobody_is_served(&self, home: &Home) -> Result<(), Complaint> {
        let attached = home.attached(&self.config).await?;
        if attached.is_empty() || self.args.force {
            return Ok(());
        }
        let message = format!("volumes are attached on node {}: {}", self.config.node, attached.join(", "));
        Err(Complaint::new(ErrorKind::Refused, message).remedy(
            "detach them with `holdfast volume detach`, or take them away from their clients with --force; their data \
             stays either way",
        ))
    }

    /// Ends every instance in order, with a supervisor of our own.
    async fn end_instances(&self, done: &mut Done) -> Result<(), Complaint> {
        self.say("ending what runs");
        let node = node::start(agent::node_config(&self.config)).await?;
        let ended = self.end_volumes(&node, done).await;
        let stopped = node.shutdown(true).await;
        drop(node);
        ended?;
        stopped?;
        let living = self.places.living()?;
        if living.is_empty() {
            return Ok(());
        }
        let message = format!("these instances may still run: {}", living.join(", "));
        Err(Complaint::failed(message).remedy("end them by hand, then repeat this"))
    }

    async fn end_volumes(&self, node: &node::NodeHandle, done: &mut Done) -> Result<(), Complaint> {
        for volume in node.snapshot().volumes {
            if !is_served(&volume, &self.config) {
                continue;
            }
            let request = pb::DetachVolumeRequest { name: volume.name.clone(), force: true };
            let state = node.detach_volume(request).await?.state;
            if state != "detached" {
                let message = format!("volume {} is still {state}", volume.name);
                return Err(
                    Complaint::new(ErrorKind::TimedOut, message).remedy("repeat this when it has ended")
                );
            }
            done.detached.push(volume.name);
        }
        if self.args.purge_data {
            for volume in node.snapshot().volumes {
                // What has copies elsewhere is no business of this node alone.
                if !volume.replicas.iter().all(|replica| replica.node == self.config.node.as_str()) {
                    continue;
                }
                self.say(&format!("deleting volume {}", volume.name));
                let request = pb::DeleteVolumeRequest { name: volume.name.clone(), purge_data: true };
                node.delete_volume(request).await?;
                done.deleted.push(volume.name);
            }
            node.empty_trash("").await?;
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        self.out.hint(text);
    }

    fn tell(&self, done: &Done) -> Result<(), Complaint> {
        self.out.show(done, || describe(done, &self.config))
    }
}

impl Home {
    async fn allow(&self, config: &AgentConfig, allowed: Option<bool>) -> Result<bool, Complaint> {
        match self {
            Self::Agent(client) => {
                let request = pb::AllowUninstallRequest { allowed };
                Ok(ask("look at the node", client.node().allow_uninstall(request)).await?.allowed)
            }
            Self::Here { registry, .. } => {
                Ok(node::allow_uninstall(&**registry, &config.node, allowed).await?)
            }
        }
    }

    /// The volumes that are, or may be, in use on this node.
    async fn attached(&self, config: &AgentConfig) -> Result<Vec<String>, Complaint> {
        match self {
            Self::Agent(client) => {
                let volumes =
                    ask("list volumes", client.volumes().list(pb::ListVolumesRequest {})).await?.volumes;
                Ok(volumes.into_iter().filter(|v| is_served(v, config)).map(|v| v.name).collect())
            }
            Self::Here { registry, .. } => {
                let here = |entry: &Entry| match entry {
                    Entry::Readable(record) => {
                        record.spec.attach.as_ref().is_some_and(|attach| attach.node == config.node)
                    }
                    Entry::Unreadable { .. } => true,
                };
                let entries = registry.list().await?;
                Ok(entries.iter().filter(|entry| here(entry)).map(|entry| entry.name().to_owned()).collect())
            }
        }
    }

    /// Ends the agent, without its instances, where one runs. When this returns the data directory is free.
    async fn end(self, out: &Out) -> Result<(), Complaint> {
        let Self::Agent(client) = self else { return Ok(()) };
        let info = ask("look at the node", client.node().show(pb::ShowNodeRequest {})).await?;
        out.hint(format!("ending the agent (pid {})", info.agent_pid));
        let pid = Pid::from_raw(info.agent_pid);
        let failed = |error: nix::Error| {
            Complaint::failed(format!("failed to end the agent (pid {pid}): {error}"))
                .remedy("run this as root or as the agent's user, or end the agent first")
        };
        kill(pid, Signal::SIGTERM).map_err(failed)?;
        let lock = DataDir::lock_in(std::path::Path::new(&info.data_dir));
        within(AGENT_ENDS_WITHIN, || async { AgentLock::take(&lock, &info.node, "uninstall").is_ok() })
            .await
            .ok_or_else(|| {
                Complaint::new(ErrorKind::TimedOut, format!("the agent (pid {pid}) does not end"))
                    .remedy("end it by hand, then repeat this")
            })
    }
}

/// Whether it is in use on this node, or may be.
fn is_served(volume: &pb::VolumeInfo, config: &AgentConfig) -> bool {
    let here = volume.engine.as_ref().is_none_or(|engine| engine.node == config.node.as_str());
    volume.state != "detached" && here
}

/// Asks until it is so.
async fn within<F: Future<Output = bool>>(limit: Duration, so: impl Fn() -> F) -> Option<()> {
    let until = Instant::now() + limit;
    while !so().await {
        if Instant::now() >= until {
            return None;
        }
        sleep(ASK_AGAIN_FIRST).await;
    }
    Some(())
}

fn describe(done: &Done, config: &AgentConfig) -> String {
    let data_dir = config.data_dir.display();
    match done.result {
        "allowed" => format!("node {} may be uninstalled now", config.node),
        "revoked" => format!("node {} is not to be uninstalled", config.node),
        "in_progress" => format!("an uninstall of {data_dir} is in progress already"),
        "nothing_here" => format!("nothing of an agent is in {data_dir}"),
        _ => {
            let mut text = String::new();
            for (what, names) in [("detached", &done.detached), ("deleted", &done.deleted)] {
                if !names.is_empty() {
                    text.push_str(&format!("{what} {}\n", names.join(", ")));
                }
            }
            for path in &done.removed {
                text.push_str(&format!("removed {}\n", path.display()));
            }
            for path in &done.kept {
                text.push_str(&format!("kept {}\n", path.display()));
            }
            text.push_str(&format!(
                "node {} is uninstalled; a service unit and /usr/bin/holdfast are for the package manager",
                config.node
            ));
            text
        }
    }
}
