//! `holdfast replica`: the replicas of volumes and their directories for people, and (hidden) the process that the agent
//! starts.

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeName};
use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask};
use super::output::{Out, dash, table};
use super::{Global, instance_process, json, volume};
use crate::complaint::Complaint;
use crate::units::format_size;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast replica ls   every replica directory on this node, claimed or not
  holdfast replica ls -o json | jq '.replicas[] | select(.claim == \"unclaimed\")'
  holdfast replica add db          one more copy
  holdfast replica replace db r2   a new copy in the place of r2
  holdfast replica remove db r3    one copy less; its data stays on disk";
const LS_EXAMPLES: &str = "\
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
    #[command(after_help = LS_EXAMPLES)]
    Ls,
    /// Add a replica to a volume; it is filled while the volume is in use
    #[command(after_help = "\
Examples:
  holdfast replica add db && holdfast volume wait db --for healthy --timeout 10m
  holdfast replica add db --on b   its directory is made on node b
  holdfast replica add db -o json | jq -r '.replicas[-1].id'")]
    Add {
        /// The volume
        volume: VolumeName,
        /// The node that is to keep it [default: the agent's own]
        #[arg(long, alias = "node", value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// Remove a replica from a volume; its data stays on disk, and its id is never given again
    #[command(after_help = "\
Refused (exit code 7) where it may be the last healthy copy.

Examples:
  holdfast replica remove db r3
  holdfast replica ls   afterwards: its directory, unclaimed")]
    Remove {
        /// The volume
        volume: VolumeName,
        /// Such as r3
        replica: ReplicaId,
    },
    /// Put a new replica in the place of one, also of one whose directory is lost
    #[command(after_help = "\
The old one serves until the new one holds everything. Its data stays on disk.

Examples:
  holdfast replica replace db r2 && holdfast volume wait db --for healthy --timeout 10m
  holdfast replica replace db r2 --on c   moves that copy to node c
  holdfast volume show db   afterwards: the new one has an id of its own")]
    Replace {
        /// The volume
        volume: VolumeName,
        /// Such as r2
        replica: ReplicaId,
        /// The node that is to keep the new one [default: the node of the old one]
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    match command {
        Command::Ls => {
            let reply = ask("list replicas", client.node().list_replicas(pb::ListReplicasRequest {})).await?;
            out.show(&json::ReplicaDirs::from(&reply), || list(&reply.replicas))
        }
        Command::Add { volume, on } => {
            let request = pb::AddReplicaRequest {
                volume: volume.to_string(),
                node: on.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
            let what = format!("add a replica to volume {volume}");
            wanted(out, &ask(&what, client.volumes().add_replica(request)).await?)
        }
        Command::Remove { volume, replica } => {
            let request =
                pb::RemoveReplicaRequest { volume: volume.to_string(), replica: replica.to_string() };
            let what = format!("remove a replica of volume {volume}");
            wanted(out, &ask(&what, client.volumes().remove_replica(request)).await?)
        }
        Command::Replace { volume, replica, on } => {
            let request = pb::ReplaceReplicaRequest {
                volume: volume.to_string(),
                replica: replica.to_string(),
                node: on.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
            let what = format!("replace a replica of volume {volume}");
            wanted(out, &ask(&what, client.volumes().replace_replica(request)).await?)
        }
    }
}

/// The volume with what is wanted of it now, and how that comes about.
fn wanted(out: &Out, shown: &pb::VolumeInfo) -> Result<(), Complaint> {
    volume::show(out, shown)?;
    let name = &shown.name;
    if shown.state == "detached" {
        out.hint(format_args!(
            "the engine does it once the volume is attached: holdfast volume attach {name}"
        ));
    } else {
        out.hint(format_args!("next: holdfast volume wait {name} --for healthy --timeout 10m"));
    }
    Ok(())
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
