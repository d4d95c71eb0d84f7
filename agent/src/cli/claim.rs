//! `holdfast claim`.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;

use super::client::{Client, ask};
use super::output::{Out, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::{format_duration, parse_duration};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast claim put db.r2 --owner backup --desired running --lease 60s
  holdfast claim ls
  holdfast claim delete db.r2 --owner backup";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Desired {
    /// It is left as it is
    Keep,
    /// A replica runs, whether its volume is attached or not
    Running,
    /// It ends, unless its volume wants it to run
    Stopped,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List what controllers claim on this node
    #[command(
        after_help = "Examples:\n  holdfast claim ls\n  holdfast claim ls -o json | jq '.claims[].owner'"
    )]
    Ls,
    /// Claim an instance of this node for a controller, or renew its claim
    #[command(after_help = "\
A claim that is not renewed within its lease counts no more; nothing ends at that moment, but what nobody claims may
become an orphan.

Examples:
  holdfast claim put db.r2 --owner backup --desired running --lease 60s
  holdfast claim put old.engine --owner ops --desired stopped")]
    Put {
        /// The instance, VOLUME.rN or VOLUME.engine
        instance: String,
        /// Who claims it
        #[arg(long, value_name = "NAME")]
        owner: String,
        /// What becomes of it
        #[arg(long, value_name = "WISH", default_value = "keep")]
        desired: Desired,
        /// How long the claim counts after this; 0: until it is deleted
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
        lease: Duration,
        /// Only this creation of it [default: whichever has the name]
        #[arg(long, value_name = "UUID")]
        uuid: Option<String>,
        /// Its volume [default: that of its name]
        #[arg(long, value_name = "UUID")]
        volume_id: Option<String>,
    },
    /// Release an instance
    #[command(after_help = "Examples:\n  holdfast claim delete db.r2 --owner backup")]
    Delete {
        /// The instance
        instance: String,
        /// Only if it is this owner's
        #[arg(long, value_name = "NAME")]
        owner: Option<String>,
    },
}

pub(super) async fn run(command: Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let mut claims = client.claims();
    match command {
        Command::Ls => {
            let reply = ask("list the claims", claims.list(pb::ListClaimsRequest {})).await?;
            out.show(&json::Claims::from(&reply), || list(&reply.claims))
        }
        Command::Put { instance, owner, desired, lease, uuid, volume_id } => {
            let desired = match desired {
                Desired::Keep => "keep",
                Desired::Running => "running",
                Desired::Stopped => "stopped",
            };
            let lease_s = u32::try_from(lease.as_secs()).ok().filter(|s| *s > 0 || lease.is_zero());
            let lease_s = lease_s.ok_or_else(|| {
                Complaint::new(ErrorKind::Invalid, "the lease: expected whole seconds, at least one, or 0")
            })?;
            let request = pb::PutClaimRequest {
                instance: instance.clone(),
                uuid: uuid.unwrap_or_default(),
                volume_id: volume_id.unwrap_or_default(),
                owner,
                desired: desired.to_owned(),
                lease_s,
            };
            let claim = ask(&format!("claim {instance}"), claims.put(request)).await?;
            out.show(&json::Claim::from(&claim), || describe(&claim))
        }
        Command::Delete { instance, owner } => {
            let request =
                pb::DeleteClaimRequest { instance: instance.clone(), owner: owner.unwrap_or_default() };
            let claim = ask(&format!("release {instance}"), claims.delete(request)).await?;
            out.show(&json::Claim::from(&claim), || format!("{instance} is released"))
        }
    }
}

fn remaining(claim: &pb::Claim) -> String {
    claim.remaining_s.map_or_else(|| "-".to_owned(), |left| format_duration(Duration::from_secs(left)))
}

fn list(claims: &[pb::Claim]) -> String {
    if claims.is_empty() {
        return "nothing is claimed here but by volumes".to_owned();
    }
    let rows = claims.iter().map(|claim| {
        let desired = if claim.problem.is_empty() { &claim.desired } else { &claim.problem };
        [
            claim.instance.clone(),
            claim.owner.clone(),
            desired.clone(),
            remaining(claim),
            claim.volume_id.clone(),
        ]
    });
    table(["INSTANCE", "OWNER", "DESIRED", "REMAINING", "VOLUME ID"], rows)
}

fn describe(claim: &pb::Claim) -> String {
    let uuid = if claim.uuid.is_empty() { "any" } else { &claim.uuid };
    fields([
        ("instance", claim.instance.clone()),
        ("uuid", uuid.to_owned()),
        ("volume id", claim.volume_id.clone()),
        ("node", claim.node.clone()),
        ("owner", claim.owner.clone()),
        ("desired", claim.desired.clone()),
        ("remaining", remaining(claim)),
    ])
}
