//! `holdfast replica`: replica directories for people, and (hidden) the process that the agent starts.

use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask};
use super::output::{Out, dash, table};
use super::{Global, instance_process, json};
use crate::complaint::Complaint;
use crate::units::format_size;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast replica ls   every replica directory on this node, claimed or not
  holdfast replica ls -o json | jq '.replicas[] | select(.claim == \"unclaimed\")'";

/// One word, two users: `replica ls` is a person's, `replica --name ...` is the agent's.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    override_usage = "holdfast replica [OPTIONS] <COMMAND>"
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) process: Option<instance_process::ProcessArgs>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the replica directories on this node, claimed or not
    #[command(after_help = EXAMPLES)]
    Ls,
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    match command {
        Command::Ls => {
            let reply = ask("list replicas", client.node().list_replicas(pb::ListReplicasRequest {})).await?;
            out.show(&json::ReplicaDirs::from(&reply), || list(&reply.replicas))
        }
    }
}

fn list(replicas: &[pb::ReplicaDirInfo]) -> String {
    if replicas.is_empty() {
        return "no replica directories on this node".to_owned();
    }
    let some = |text: &str| dash((!text.is_empty()).then(|| text.to_owned()));
    let rows = replicas.iter().map(|dir| {
        [
            some(&dir.volume),
            some(&dir.id),
            dir.claim.clone(),
            format_size(dir.size_bytes),
            format_size(dir.allocated_bytes),
            dash(dir.instance.as_ref()),
            dir.data_dir.clone(),
            dir.reason.clone().unwrap_or_default(),
        ]
    });
    table(["VOLUME", "ID", "CLAIM", "SIZE", "USED", "INSTANCE", "DATA", "REASON"], rows)
}
