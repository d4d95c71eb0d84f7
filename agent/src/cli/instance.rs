//! `holdfast instance`.

use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask, told};
use super::output::{Out, dash, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::format_duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast instance ls
  holdfast instance logs demo.engine -f
  holdfast instance stop demo.r2   an instance that no record claims";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List engines and replicas, claimed or not
    #[command(
        after_help = "Examples:\n  holdfast instance ls\n  holdfast instance ls -o json | jq '.instances[] | select(.claim != \"claimed\")'"
    )]
    Ls,
    /// Show one instance
    #[command(after_help = "Examples:\n  holdfast instance show demo.engine")]
    Show {
        /// Its name, as `ls` lists it
        name: String,
    },
    /// Print what an instance has logged
    #[command(
        after_help = "Examples:\n  holdfast instance logs demo.r1 --tail 100\n  holdfast instance logs demo.engine -f"
    )]
    Logs {
        /// Its name, as `ls` lists it
        name: String,
        /// Go on printing as lines come, across rotations
        #[arg(short, long)]
        follow: bool,
        /// Only this many of the last lines
        #[arg(short = 'n', long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
        tail: Option<u32>,
    },
    /// Stop the process of an instance that no record claims; its data stays
    #[command(
        after_help = "Examples:\n  holdfast instance stop demo.r2\n  holdfast instance stop demo.r2 --uuid 6f1c...   only this one, not one that took its name"
    )]
    Stop {
        /// Its name, as `ls` lists it
        name: String,
        /// Only the instance with this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
}

pub(super) async fn run(command: Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let mut instances = client.instances();
    match command {
        Command::Ls => {
            let reply = ask("list instances", instances.list(pb::ListInstancesRequest {})).await?;
            out.show(&json::Instances::from(&reply), || list(&reply.instances))
        }
        Command::Show { name } => {
            let request = pb::GetInstanceRequest { name: name.clone() };
            let instance = ask(&format!("show instance {name}"), instances.get(request)).await?;
            out.show(&json::Instance::from(&instance), || describe(&instance))
        }
        Command::Logs { name, follow, tail } => {
            let request =
                pb::LogsRequest { name: name.clone(), tail_lines: tail.unwrap_or_default(), follow };
            logs(&client, &name, request, out).await
        }
        Command::Stop { name, uuid } => {
            let request = pb::StopInstanceRequest { name: name.clone(), uuid: uuid.unwrap_or_default() };
            let instance = ask(&format!("stop instance {name}"), instances.stop(request)).await?;
            out.show(&json::Instance::from(&instance), || describe(&instance))
        }
    }
}

async fn logs(client: &Client, name: &str, request: pb::LogsRequest, out: &Out) -> Result<(), Complaint> {
    let what = format!("read the log of {name}");
    let mut chunks = ask(&what, client.instances().logs(request)).await?;
    let mut lines = Lines::default();
    while let Some(chunk) = chunks.message().await.map_err(|status| told(&what, &status))? {
        if !out.is_json() {
            out.raw(&chunk.data)?;
            continue;
        }
        for line in lines.push(&chunk.data) {
            out.event(&json::LogLine { instance: name, line: &line }, String::new)?;
        }
    }
    match lines.rest() {
        Some(line) => out.event(&json::LogLine { instance: name, line: &line }, String::new),
        None => Ok(()),
    }
}

/// A line longer than this is cut in pieces: a log without newlines must not fill memory.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Whole lines out of chunks that end anywhere.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
}

impl Lines {
    fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(piece);
            if self.open.ends_with(b"\n") || self.open.len() >= LINE_BYTES_MAX {
                lines.extend(self.rest());
            }
        }
        lines
    }
    fn rest(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.open);
        let text = String::from_utf8_lossy(&line);
        (!line.is_empty()).then(|| text.trim_end_matches('\n').to_owned())
    }
}

fn list(instances: &[pb::InstanceInfo]) -> String {
    if instances.is_empty() {
        return "no instances; attaching a volume starts some".to_owned();
    }
    let rows = instances.iter().map(|instance| {
        [
            instance.name.clone(),
            instance.kind.clone(),
            instance.volume.clone(),
            instance.state.clone(),
            dash(instance.pid),
            instance.restarts.to_string(),
            claim(instance),
            instance.reason.clone().unwrap_or_default(),
        ]
    });
    table(["NAME", "KIND", "VOLUME", "STATE", "PID", "RESTARTS", "CLAIM", "REASON"], rows)
}

fn claim(instance: &pb::InstanceInfo) -> String {
    match &instance.orphan {
        Some(orphan) => {
            let remaining = std::time::Duration::from_secs(orphan.remaining_s);
            format!("{} ({}, {} left)", instance.claim, orphan.state, format_duration(remaining))
        }
        None => instance.claim.clone(),
    }
}

fn describe(instance: &pb::InstanceInfo) -> String {
    fields([
        ("name", instance.name.clone()),
        ("uuid", instance.uuid.clone()),
        ("kind", instance.kind.clone()),
        ("volume", instance.volume.clone()),
        ("state", instance.state.clone()),
        ("reason", instance.reason.clone().unwrap_or_default()),
        ("pid", dash(instance.pid)),
        ("restarts", instance.restarts.to_string()),
        ("claim", claim(instance)),
        ("binary", instance.binary_digest.clone()),
        ("log", instance.log_path.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_out_of_any_chunks() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"on"), Vec::<String>::new());
        assert_eq!(lines.push(b"e\ntwo\n\nthr"), ["one", "two", ""]);
        assert_eq!(lines.push(b"ee"), Vec::<String>::new());
        assert_eq!(lines.rest().as_deref(), Some("three"));
        assert_eq!(lines.rest(), None);
    }

    #[test]
    fn an_orphan_shows_what_is_left() {
        let instance = pb::InstanceInfo {
            claim: "unclaimed".into(),
            orphan: Some(pb::OrphanInfo { state: "orphaned".into(), remaining_s: 90 }),
            ..Default::default()
        };
        assert_eq!(claim(&instance), "unclaimed (orphaned, 1m30s left)");
    }
}
