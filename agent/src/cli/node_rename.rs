//! `holdfast node rename`: gives the node of a data directory another name while its agent is stopped.

use std::path::PathBuf;

use holdfast_proto::ids::NodeName;
use serde::Serialize;

use super::agent::node_config;
use super::output::Out;
use super::owner::work_as_owner;
use crate::complaint::Complaint;
use crate::config::{AgentConfig, AgentFlags, RegistryPlace, Surroundings, parse_place};
use crate::node;

pub(super) const EXAMPLES: &str = "\
Stop the agent first; engines and replicas go on serving meanwhile. Records, claims and what is wished for the node get \
the new name, and last of all its data directory. It may be interrupted and repeated; until it has ended no agent starts \
on the directory. Then start the agent under the new name.

Give --config, --data-dir and --registry as the agent has them. Exit code 4 while the agent runs, 7 where another node \
has one of the names.

Examples:
  systemctl stop holdfast-agent && holdfast node rename old new && systemctl start holdfast-agent
  holdfast node rename old new --data-dir /srv/holdfast --registry etcd://10.0.0.1:2379/holdfast";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The name that it has
    from: NodeName,
    /// The name that it gets
    to: NodeName,
    /// TOML file of the agent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's records, replicas and binaries [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where its records live, if not in its files; how etcd is reached is read from --config
    #[arg(long, value_name = "file|etcd://...", value_parser = parse_place)]
    registry: Option<RegistryPlace>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Done<'a> {
    node: &'a NodeName,
    was: &'a NodeName,
    /// False: it had the new name already.
    changed: bool,
    volumes: &'a [String],
    claims: &'a [String],
}

pub(super) async fn run(args: &Args, out: &Out) -> Result<(), Complaint> {
    let flags = AgentFlags {
        config: args.config.clone(),
        data_dir: args.data_dir.clone(),
        registry: args.registry.clone(),
        node: Some(args.from.clone()),
        ..AgentFlags::default()
    };
    let config = AgentConfig::load(&flags, &Surroundings::of_this_machine()?)?;
    work_as_owner(&config.data_dir)?;
    let renamed = node::rename(&node_config(&config), &args.from, &args.to, |text| out.hint(text)).await?;
    let done = Done {
        node: &args.to,
        was: &args.from,
        changed: !renamed.unchanged,
        volumes: &renamed.volumes,
        claims: &renamed.claims,
    };
    out.show(&done, || match renamed.unchanged {
        true => format!("node {} has that name already", args.to),
        false => format!(
            "node {} is node {} now: {} volumes and {} claims were changed; start its agent under that name",
            args.from,
            args.to,
            renamed.volumes.len(),
            renamed.claims.len()
        ),
    })
}
