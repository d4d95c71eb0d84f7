//! `holdfast orphan`.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;

use super::client::{Client, ask};
use super::output::{Out, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::format_duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast orphan ls
  holdfast orphan hold demo.r2      never cleaned until it is released
  holdfast orphan delete demo.r2    now: a process is stopped, a directory goes to the trash";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List what no record claims: processes and replica directories
    #[command(
        after_help = "Examples:\n  holdfast orphan ls\n  holdfast orphan ls -o json | jq '.orphans[] | select(.auto_cleanup)'"
    )]
    Ls,
    /// Show one orphan: why nobody claims it, when that was confirmed last, what keeps it
    #[command(after_help = "Examples:\n  holdfast orphan show demo.r2")]
    Show(Which),
    /// Keep an orphan from being cleaned until it is released
    #[command(after_help = "Examples:\n  holdfast orphan hold demo.r2")]
    Hold(Which),
    /// Let an orphan go that a person holds, or that turned orphan with too many others
    #[command(after_help = "\
It is cleaned when its grace period is over, which may be now, where its class is switched on.

Examples:
  holdfast orphan release demo.r2
  holdfast orphan ls -o json | jq -r '.orphans[] | select(.held) | .name'   which are held")]
    Release(Which),
    /// Clean an orphan now: its process is stopped, or its directory is moved to the trash
    #[command(after_help = "\
Who owns it is read again. Refused (exit code 7) where it is claimed, where that cannot be known, and while it is in use.

Examples:
  holdfast orphan delete demo.r2
  holdfast orphan delete demo.r3.5c92e1c6 && holdfast trash ls")]
    Delete(Which),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Its name, as `ls` lists it
    name: String,
    /// Only the one with this UUID
    #[arg(long)]
    uuid: Option<String>,
}

pub(super) async fn run(command: Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let mut orphans = client.orphans();
    let orphan = match &command {
        Command::Ls => {
            let reply = ask("list orphans", orphans.list(pb::ListOrphansRequest {})).await?;
            return out.show(&json::Orphans::from(&reply), || list(&reply.orphans));
        }
        Command::Show(which) => {
            let reply = ask("list orphans", orphans.list(pb::ListOrphansRequest {})).await?;
            which.find(reply.orphans).ok_or_else(|| no_orphan(&which.name))?
        }
        Command::Hold(which) => ask(&which.what("hold"), orphans.hold(which.request())).await?,
        Command::Release(which) => ask(&which.what("release"), orphans.release(which.request())).await?,
        Command::Delete(which) => ask(&which.what("delete"), orphans.delete(which.request())).await?,
    };
    out.show(&json::OrphanDetail::from(&orphan), || describe(&orphan))?;
    if matches!(command, Command::Delete(_)) && orphan.class == "replica-data" {
        out.hint("it waits in the trash: holdfast trash ls");
    }
    Ok(())
}

impl Which {
    fn what(&self, verb: &str) -> String {
        format!("{verb} orphan {}", self.name)
    }
    fn request(&self) -> pb::OrphanRequest {
        pb::OrphanRequest { name: self.name.clone(), uuid: self.uuid.clone().unwrap_or_default() }
    }
    fn find(&self, orphans: Vec<pb::Orphan>) -> Option<pb::Orphan> {
        let uuid = |orphan: &pb::Orphan| self.uuid.as_ref().is_none_or(|uuid| *uuid == orphan.uuid);
        orphans.into_iter().find(|orphan| orphan.name == self.name && uuid(orphan))
    }
}

fn no_orphan(name: &str) -> Complaint {
    Complaint::new(ErrorKind::NotFound, format!("failed to show orphan {name}: there is none"))
        .remedy("`holdfast orphan ls` lists all")
}

fn list(orphans: &[pb::Orphan]) -> String {
    if orphans.is_empty() {
        return "no orphans: everything here is claimed, or nobody knows whether it is".to_owned();
    }
    let rows = orphans.iter().map(|orphan| {
        [
            orphan.name.clone(),
            orphan.class.clone(),
            orphan.state.clone(),
            remaining(orphan),
            confirmed(orphan),
            orphan.reason.clone(),
        ]
    });
    table(["NAME", "CLASS", "STATE", "REMAINING", "CONFIRMED", "REASON"], rows)
}

/// What is left of its grace period, and whether anything happens then.
fn remaining(orphan: &pb::Orphan) -> String {
    let left = format_duration(Duration::from_secs(orphan.remaining_s));
    if orphan.auto_cleanup { left } else { format!("{left}, then nothing: cleanup is off") }
}

fn confirmed(orphan: &pb::Orphan) -> String {
    match orphan.last_confirmed_s {
        Some(ago) => format!("{} ago", format_duration(Duration::from_secs(ago))),
        None => "not yet".to_owned(),
    }
}

fn describe(orphan: &pb::Orphan) -> String {
    let held = if orphan.held { "yes" } else { "no" };
    fields([
        ("name", orphan.name.clone()),
        ("class", orphan.class.clone()),
        ("uuid", orphan.uuid.clone()),
        ("state", orphan.state.clone()),
        ("reason", orphan.reason.clone()),
        ("remaining", remaining(orphan)),
        ("unclaimed for", format_duration(Duration::from_secs(orphan.confirmed_s))),
        ("confirmed", confirmed(orphan)),
        ("held", held.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_says_whether_anything_happens_then() {
        let mut orphan = pb::Orphan { remaining_s: 90, ..Default::default() };
        assert_eq!(remaining(&orphan), "1m30s, then nothing: cleanup is off");
        orphan.auto_cleanup = true;
        assert_eq!(remaining(&orphan), "1m30s");
        assert_eq!(confirmed(&orphan), "not yet");
        orphan.last_confirmed_s = Some(3);
        assert_eq!(confirmed(&orphan), "3s ago");
    }
}
