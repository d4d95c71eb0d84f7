//! `holdfast node`.

use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask};
use super::output::{Out, fields};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::format_size;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast node show
  holdfast node show -o json | jq .available_bytes";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the node: versions, room, what runs, warnings
    #[command(after_help = EXAMPLES)]
    Show,
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    match command {
        Command::Show => {
            let node = ask("show the node", client.node().show(pb::ShowNodeRequest {})).await?;
            out.show(&json::Node::from(&node), || describe(&node))
        }
    }
}

fn describe(node: &pb::NodeInfo) -> String {
    let room =
        format!("{} of {} available", format_size(node.available_bytes), format_size(node.capacity_bytes));
    let mut text = fields([
        ("node", node.node.clone()),
        ("version", node.version.clone()),
        ("agent", format!("pid {} on {}", node.agent_pid, node.listen)),
        ("data", node.data_dir.clone()),
        ("room", room),
        ("runs", format!("{} volumes, {} instances", node.volumes, node.instances)),
        ("kernel", node.kernel.clone()),
        ("io_uring", node.io_uring.clone()),
        ("boot", node.boot_id.clone()),
    ]);
    for warning in &node.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}
