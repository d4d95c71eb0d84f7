//! `holdfast trash`.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask};
use super::confirm::{Elsewhere, confirm};
use super::output::{Out, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::format_duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast trash ls
  holdfast trash restore 1764046800-demo.r3.5c92e1c6
  holdfast trash empty   unlinks everything that waits; asks on a terminal, elsewhere wants --yes";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the directories that wait to be unlinked
    #[command(
        after_help = "Examples:\n  holdfast trash ls\n  holdfast trash ls -o json | jq -r '.items[].name'"
    )]
    Ls,
    /// Put a directory back where it was; no record claims it then
    #[command(after_help = "\
Where replica data is cleaned by itself, hold it afterwards, or it goes again after a full grace period.

Examples:
  holdfast trash restore 1764046800-demo.r3.5c92e1c6
  holdfast orphan hold demo.r3.5c92e1c6")]
    Restore {
        /// Its name, as `ls` lists it
        name: String,
    },
    /// Unlink now what waits: one directory, or everything
    #[command(
        after_help = "Examples:\n  holdfast trash empty 1764046800-demo.r3.5c92e1c6\n  holdfast trash empty --yes"
    )]
    Empty {
        /// Only this one, as `ls` lists it
        name: Option<String>,
        /// Do not ask; where there is no terminal to ask on, this is wanted
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(command: Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let mut trash = client.trash();
    match command {
        Command::Ls => {
            let reply = ask("list the trash", trash.list(pb::ListTrashRequest {})).await?;
            out.show(&json::Trash::from(&reply), || list(&reply.items, "the trash is empty"))
        }
        Command::Restore { name } => {
            let request = pb::RestoreTrashRequest { name: name.clone() };
            let item = ask(&format!("restore {name}"), trash.restore(request)).await?;
            out.show(&json::TrashItem::from(&item), || describe(&item))
        }
        Command::Empty { name, yes } => {
            let what = name.as_ref().map_or("everything that waits in the trash".to_owned(), Clone::clone);
            confirm(
                &format!("{what} is unlinked now, and cannot be brought back"),
                yes,
                Elsewhere::WantsYes,
            )?;
            let request = pb::EmptyTrashRequest { name: name.unwrap_or_default() };
            let reply = ask("empty the trash", trash.empty(request)).await?;
            out.show(&json::Trash::from(&reply), || list(&reply.items, "the trash was empty"))
        }
    }
}

fn list(items: &[pb::TrashItem], nothing: &str) -> String {
    if items.is_empty() {
        return nothing.to_owned();
    }
    let rows = items.iter().map(|item| {
        let remaining = format_duration(Duration::from_secs(item.remaining_s));
        [item.name.clone(), item.volume_id.clone(), remaining, item.from.clone()]
    });
    let mut text = table(["NAME", "VOLUME ID", "REMAINING", "WAS"], rows);
    for item in items.iter().filter(|item| !item.problem.is_empty()) {
        text.push_str(&format!("\n{} cannot be unlinked: {}", item.name, item.problem));
    }
    text
}

fn describe(item: &pb::TrashItem) -> String {
    fields([
        ("name", item.name.clone()),
        ("volume id", item.volume_id.clone()),
        ("restored to", item.from.clone()),
    ])
}
