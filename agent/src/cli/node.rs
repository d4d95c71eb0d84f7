//! `holdfast node`.

use holdfast_proto::pb::agent as pb;

use super::client::{Client, ask};
use super::output::{Out, dash, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::format_size;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast node ls
  holdfast node show
  holdfast node show -o json | jq .available_bytes
  holdfast node show -o json | jq '.disks[] | {path, errors, faulted_replicas}'";

const LS_EXAMPLES: &str = "\
Examples:
  holdfast node ls   every node that the registry tells of
  holdfast node ls -o json | jq -r '.nodes[] | select(.live | not) | .name'";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the nodes that share this registry: whether their agents live, versions, what runs, pressure
    #[command(after_help = LS_EXAMPLES)]
    Ls,
    /// Show the node: versions, room, disks, pressure, what runs, warnings
    #[command(after_help = EXAMPLES)]
    Show,
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    match command {
        Command::Ls => {
            let reply = ask("list nodes", client.node().list(pb::ListNodesRequest {})).await?;
            out.show(&json::Nodes::from(&reply), || list(&reply.nodes))
        }
        Command::Show => {
            let node = ask("show the node", client.node().show(pb::ShowNodeRequest {})).await?;
            out.show(&json::Node::from(&node), || describe(&node))
        }
    }
}

fn list(nodes: &[pb::NodeSummary]) -> String {
    let some = |text: &str| dash((!text.is_empty()).then(|| text.to_owned()));
    let rows = nodes.iter().map(|node| {
        let state = match (node.live, node.silent_s) {
            (true, _) => "live".to_owned(),
            (false, Some(seconds)) => format!("silent for {seconds} s"),
            (false, None) => "silent".to_owned(),
        };
        let name = if node.here { format!("{} (here)", node.name) } else { node.name.clone() };
        let pressure = [&node.pressure_cpu, &node.pressure_memory, &node.pressure_io];
        let pressure = pressure.map(|level| some(level)).join("/");
        [
            name,
            state,
            some(&node.version),
            some(&node.address),
            node.instances.to_string(),
            node.replicas.to_string(),
            pressure,
            node.reason.clone().unwrap_or_default(),
        ]
    });
    table(["NODE", "STATE", "VERSION", "ADDRESS", "INSTANCES", "REPLICAS", "CPU/MEM/IO", "REASON"], rows)
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
        ("speaks", speaks(node)),
        ("pressure", pressure(node.pressure.as_ref())),
    ]);
    for disk in &node.disks {
        text.push_str(&describe_disk(disk));
    }
    for warning in &node.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

fn describe_disk(disk: &pb::DiskInfo) -> String {
    let (available, capacity) = (format_size(disk.available_bytes), format_size(disk.capacity_bytes));
    let mut text = format!("disk: {}, {available} of {capacity} available", disk.path);
    match disk.errors {
        Some(0) => text.push_str(", no errors"),
        Some(errors) => text.push_str(&format!(", {errors} errors of its file system")),
        None => {}
    }
    if disk.faulted_replicas > 0 {
        let last = disk.last_error.as_deref().unwrap_or_default();
        text.push_str(&format!(", {} faulted replicas ({last})", disk.faulted_replicas));
    }
    text.push('\n');
    text
}

fn speaks(node: &pb::NodeInfo) -> String {
    let range = |min: u32, max: u32| if min == max { min.to_string() } else { format!("{min} to {max}") };
    let instances = range(node.instance_protocol_min, node.instance_protocol_max);
    let data = range(node.data_protocol_min, node.data_protocol_max);
    format!("instance protocol {instances}, data protocol {data}")
}

fn pressure(told: Option<&pb::PressureInfo>) -> String {
    let Some(told) = told else { return "not told by this kernel".to_owned() };
    let share = |percent: Option<f32>| percent.map_or("-".to_owned(), |percent| format!("{percent:.1} %"));
    let (cpu, memory, io) = (share(told.cpu), share(told.memory), share(told.io));
    format!("cpu {cpu}, memory {memory}, io {io} of the last 10 s spent waiting")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_its_disks_what_it_speaks_and_how_long_tasks_wait() {
        let mut node = pb::NodeInfo {
            node: "n1".into(),
            disks: vec![pb::DiskInfo {
                path: "/data/replicas".into(),
                capacity_bytes: 2 << 30,
                available_bytes: 1 << 30,
                errors: Some(3),
                faulted_replicas: 1,
                last_error: Some("fsync failed".into()),
            }],
            pressure: Some(pb::PressureInfo { cpu: Some(0.25), memory: None, io: Some(12.5) }),
            instance_protocol_min: 1,
            instance_protocol_max: 1,
            data_protocol_min: 2,
            data_protocol_max: 3,
            ..Default::default()
        };
        let text = describe(&node);
        for part in [
            "disk: /data/replicas, 1GiB of 2GiB available, 3 errors of its file system, 1 faulted replicas (fsync",
            "instance protocol 1, data protocol 2 to 3",
            "cpu 0.2 %, memory -, io 12.5 % of the last 10 s",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        node.pressure = None;
        assert!(describe(&node).contains("not told by this kernel"));
    }
}
