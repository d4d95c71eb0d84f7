//! `holdfast node`.

use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;
use tokio::time::{Instant, sleep};

use super::client::{Client, ask};
use super::node_rename;
use super::output::{Out, dash, fields, table};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::{format_duration, format_size, parse_duration};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast node ls
  holdfast node show
  holdfast node drain b && holdfast node safe-to-reboot b   before b is taken down
  holdfast node show -o json | jq .available_bytes
  holdfast node show -o json | jq '.disks[] | {path, errors, faulted_replicas}'";

const LS_EXAMPLES: &str = "\
Examples:
  holdfast node ls   every node that the registry tells of
  holdfast node ls -o json | jq -r '.nodes[] | select(.live | not) | .name'";

const DRAIN_EXAMPLES: &str = "\
The node takes no new replicas from now on, and those that are there are moved to other nodes, one of a volume at a \
time, while the volumes go on. What is attached there is not moved: detach it, and attach it elsewhere. What runs there \
is still restarted. It stays so until `holdfast node undrain`.

Exit code 6 where something is left after the timeout: each volume and replica is named, with what it waits for, and the \
drain goes on.

Examples:
  holdfast node drain b --timeout 1h
  holdfast node drain b --no-wait -o json | jq -r '.left[] | \"\\(.volume) \\(.replica): \\(.reason)\"'";

const SAFE_EXAMPLES: &str = "\
Exit code 0 only where every volume with a part on the node is healthy without it; 7 where it is not, with the reasons.

Examples:
  holdfast node safe-to-reboot && systemctl reboot
  holdfast node safe-to-reboot b -o json | jq '.against'";

const FORGET_EXAMPLES: &str = "\
Its replicas are placed on other nodes at once, and deletions do not wait for it any more. Nothing is deleted: should it \
come back, its agent takes the mark away, and no record claims what was replaced meanwhile. Once no record names \
it, the registry keeps nothing of it. Refused (exit code 7) while its agent lives, and while the registry does not \
tell whether it does.

Examples:
  holdfast node forget c --yes
  holdfast node undrain c   takes it back";

/// Between two looks at what is left.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many of what is left are named while it is waited for.
const NAMED_MAX: usize = 3;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the nodes that share this registry: whether their agents live, versions, what runs, pressure
    #[command(after_help = LS_EXAMPLES)]
    Ls,
    /// Show the node: versions, room, disks, pressure, what runs, warnings
    #[command(after_help = EXAMPLES)]
    Show,
    /// Have a node take no new replicas and give its own away, and wait until nothing is left there
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain {
        /// The node
        node: NodeName,
        /// Give up waiting after this long, with exit code 6
        #[arg(long, default_value = "10m", value_parser = parse_duration)]
        timeout: Duration,
        /// Only mark it, and say what is left
        #[arg(long, conflicts_with = "timeout")]
        no_wait: bool,
    },
    /// Have a node take replicas again; takes back `drain` and `forget`
    #[command(after_help = "Examples:\n  holdfast node undrain b")]
    Undrain {
        /// The node
        node: NodeName,
    },
    /// Say whether a node may be restarted now without making a volume less than healthy
    #[command(after_help = SAFE_EXAMPLES)]
    SafeToReboot {
        /// The node [default: that of the agent]
        node: Option<NodeName>,
    },
    /// Declare that a node does not come back: nobody waits for it any more
    #[command(after_help = FORGET_EXAMPLES)]
    Forget {
        /// The node
        node: NodeName,
        /// It is really meant
        #[arg(long)]
        yes: bool,
    },
    /// Give this node another name while its agent is stopped: records, claims and its data directory
    #[command(after_help = node_rename::EXAMPLES)]
    Rename(Box<node_rename::Args>),
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = async || Client::connect(global).await;
    match command {
        Command::Ls => {
            let client = client().await?;
            let reply = ask("list nodes", client.node().list(pb::ListNodesRequest {})).await?;
            out.show(&json::Nodes::from(&reply), || list(&reply.nodes))
        }
        Command::Show => {
            let client = client().await?;
            let node = ask("show the node", client.node().show(pb::ShowNodeRequest {})).await?;
            out.show(&json::Node::from(&node), || describe(&node))
        }
        Command::Drain { node, timeout, no_wait } => {
            let client = client().await?;
            let mut parts = ask(&format!("drain node {node}"), client.node().drain(named(node))).await?;
            if !*no_wait {
                parts = wait_drained(&client, node, parts, *timeout, out).await?;
            }
            out.show(&json::NodeParts::from(&parts), || match parts.parts.len() {
                0 => format!("node {node} is drained: nothing of a volume is left there"),
                _ => list_parts(&parts),
            })
        }
        Command::Undrain { node } => {
            let client = client().await?;
            let told = ask(&format!("undrain node {node}"), client.node().undrain(named(node))).await?;
            out.show(&json::NodeSummary::from(&told), || format!("node {node} takes replicas again"))
        }
        Command::SafeToReboot { node } => {
            let client = client().await?;
            let request =
                pb::NodeRequest { node: node.as_ref().map(ToString::to_string).unwrap_or_default() };
            let parts = ask("look at the node", client.node().safe_to_reboot(request)).await?;
            out.show(&json::SafeToReboot::from(&parts), || match parts.parts.len() {
                0 => format!("node {} may be restarted", parts.node),
                _ => list_parts(&parts),
            })?;
            if parts.parts.is_empty() {
                return Ok(());
            }
            let message = format!("node {} must not be restarted now", parts.node);
            Err(Complaint::new(ErrorKind::Refused, message)
                .remedy("wait until the volumes are healthy without it, or move its parts of them: `holdfast node drain`"))
        }
        Command::Forget { node, yes: false } => {
            drop(client().await?);
            let message =
                format!("node {node} would be forgotten: its replicas are then placed on other nodes");
            Err(Complaint::new(ErrorKind::Unconfirmed, message)
                .remedy("nothing was changed; if it does not come back, repeat this with --yes"))
        }
        Command::Forget { node, yes: true } => {
            let client = client().await?;
            let told = ask(&format!("forget node {node}"), client.node().forget(named(node))).await?;
            out.show(&json::NodeSummary::from(&told), || {
                format!("node {node} is forgotten: nobody waits for it any more")
            })
        }
        // No agent is asked: none may run.
        Command::Rename(args) => node_rename::run(args, out).await,
    }
}

fn named(node: &NodeName) -> pb::NodeRequest {
    pb::NodeRequest { node: node.to_string() }
}

/// Returns what is left once that is nothing; says meanwhile what it is.
async fn wait_drained(
    client: &Client,
    node: &NodeName,
    mut parts: pb::NodeParts,
    timeout: Duration,
    out: &Out,
) -> Result<pb::NodeParts, Complaint> {
    let until = Instant::now() + timeout;
    let mut said = String::new();
    while !parts.parts.is_empty() {
        let progress = progress(&parts);
        if said != progress {
            out.hint(&progress);
            said = progress;
        }
        if Instant::now() >= until {
            return Err(late(&parts, timeout));
        }
        sleep(LOOK_EVERY).await;
        parts = ask(&format!("look at node {node}"), client.node().left(named(node))).await?;
        if !parts.draining {
            let message = format!("node {node} is drained no more: somebody has taken that back");
            return Err(Complaint::new(ErrorKind::Conflict, message));
        }
    }
    Ok(parts)
}

fn progress(parts: &pb::NodeParts) -> String {
    let named: Vec<_> = parts.parts.iter().take(NAMED_MAX).map(part).collect();
    let more = if parts.parts.len() > NAMED_MAX { "; ..." } else { "" };
    format!("{} left on node {}: {}{more}", parts.parts.len(), parts.node, named.join("; "))
}

fn late(parts: &pb::NodeParts, timeout: Duration) -> Complaint {
    let lines: String = parts.parts.iter().map(|left| format!("\n  {}", part(left))).collect();
    let message = format!(
        "node {} is not drained after {}; this is left there:{lines}",
        parts.node,
        format_duration(timeout)
    );
    Complaint::new(ErrorKind::TimedOut, message)
        .remedy("it goes on by itself; repeat this to wait on, or take it back with `holdfast node undrain`")
}

fn part(part: &pb::NodePart) -> String {
    match (part.volume.as_str(), part.replica.as_str()) {
        ("*", _) => part.reason.clone(),
        (volume, "") => format!("volume {volume}: {}", part.reason),
        (volume, replica) => format!("volume {volume}, {replica}: {}", part.reason),
    }
}

fn list_parts(parts: &pb::NodeParts) -> String {
    let rows = parts.parts.iter().map(|part| {
        let replica = dash(Some(part.replica.clone()).filter(|replica| !replica.is_empty()));
        [part.volume.clone(), replica, part.reason.clone()]
    });
    table(["VOLUME", "REPLICA", "REASON"], rows)
}

fn list(nodes: &[pb::NodeSummary]) -> String {
    let some = |text: &str| dash((!text.is_empty()).then(|| text.to_owned()));
    let rows = nodes.iter().map(|node| {
        let name = if node.here { format!("{} (here)", node.name) } else { node.name.clone() };
        let pressure = [&node.pressure_cpu, &node.pressure_memory, &node.pressure_io];
        let pressure = pressure.map(|level| some(level)).join("/");
        [
            name,
            state(node),
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

fn state(node: &pb::NodeSummary) -> String {
    let state = match (node.live, node.silent_s) {
        (false, _) if node.forgotten => "forgotten".to_owned(),
        (true, _) => "live".to_owned(),
        (false, Some(seconds)) => format!("silent for {seconds} s"),
        (false, None) => "silent".to_owned(),
    };
    if node.draining { format!("{state}, draining") } else { state }
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
    if disk.reserved_bytes > 0 {
        text.push_str(&format!(", moves leave {}", format_size(disk.reserved_bytes)));
    }
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
    fn r5_a_drain_that_is_late_names_volume_replica_and_reason() {
        let part = |volume: &str, replica: &str, reason: &str| pb::NodePart {
            volume: volume.into(),
            replica: replica.into(),
            reason: reason.into(),
        };
        let mut parts = pb::NodeParts { node: "b".into(), draining: true, parts: Vec::new() };
        parts.parts.push(part("db", "r2", "the last healthy copy of the volume"));
        parts.parts.push(part("web", "", "it is attached here"));
        parts.parts.push(part("*", "", "the registry cannot be read"));
        let late = late(&parts, Duration::from_secs(60));
        assert_eq!(late.kind.exit_code(), 6);
        let said = late.to_string();
        for line in [
            "node b is not drained after 1m",
            "\n  volume db, r2: the last healthy copy of the volume\n",
            "\n  volume web: it is attached here\n",
            "\n  the registry cannot be read\n",
        ] {
            assert!(said.contains(line), "{said}");
        }
        assert!(progress(&parts).starts_with("3 left on node b: volume db, r2: "));
        let mut node = pb::NodeSummary { live: true, draining: true, ..Default::default() };
        assert_eq!(state(&node), "live, draining");
        (node.live, node.forgotten, node.draining) = (false, true, false);
        assert_eq!(state(&node), "forgotten");
    }

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
                reserved_bytes: 100 << 20,
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
            "disk: /data/replicas, 1GiB of 2GiB available, moves leave 100MiB, 3 errors of its file system, 1 faulted",
            "instance protocol 1, data protocol 2 to 3",
            "cpu 0.2 %, memory -, io 12.5 % of the last 10 s",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        node.pressure = None;
        assert!(describe(&node).contains("not told by this kernel"));
    }
}
