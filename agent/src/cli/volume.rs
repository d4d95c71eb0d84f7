//! `holdfast volume`.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_proto::ids::{NodeName, ReplicaId, VolumeName};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::record::REPLICAS_MAX;

use super::client::{Client, ask};
use super::confirm::{Elsewhere, confirm};
use super::output::{Out, dash, fields, table};
use super::wait::{Target, wait};
use super::{Global, json};
use crate::complaint::Complaint;
use crate::units::{format_size, parse_duration, parse_size, parse_tcp_listen};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast volume create db --size 10GiB --replicas 3
  holdfast volume attach db
  holdfast volume wait db --for healthy --timeout 60s
  holdfast volume show db -o json
  holdfast volume detach db && holdfast volume delete db";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a volume; it is attached separately
    #[command(after_help = "\
Examples:
  holdfast volume create db --size 10GiB --replicas 3
  holdfast volume create scratch --size 512M --replicas 1 --io-mode direct
  holdfast volume create db --size 10GiB --on a,b,c   one replica on each of these nodes")]
    Create {
        /// 1 to 40 characters of a-z, 0-9 and '-'
        name: VolumeName,
        /// Such as 10GiB, 512M or 10GB (powers of 1024, all three), a multiple of 4096 bytes
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// Copies of the data, 1 to 5 [default: as many as --on names nodes, where that is more than one; else 3]
        #[arg(long, value_parser = replicas)]
        replicas: Option<u32>,
        /// The nodes that keep them: one for all, or as many as replicas [default: the agent's own]
        #[arg(long, value_name = "NODES", value_delimiter = ',')]
        on: Vec<NodeName>,
        /// How replicas do file I/O [default: the agent's choice, today buffered]
        #[arg(long, value_name = "MODE")]
        io_mode: Option<IoMode>,
    },
    /// Start serving a volume on this node or another; repeating it changes nothing
    #[command(after_help = "\
Examples:
  holdfast volume attach db
  holdfast volume attach db --on b   the engine runs on node b, and its endpoint is there
  holdfast volume attach db --nbd-tcp 10809   on loopback too (without authentication)
  holdfast volume attach db --force-from r1   says what would be lost, and changes nothing
  holdfast volume attach db --force-from r1 --yes-lose-writes

--force-from is the way out when a start waits for replicas that are lost for good. The volume then has the data of the \
one replica that is named, and a new history begins: the others are never read or written again, their data stays on \
disk, and `holdfast replica replace` puts new ones in their places.")]
    Attach {
        /// The volume
        name: VolumeName,
        /// The node that serves it [default: the agent's own]
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
        /// Serve NBD on this TCP address too: PORT (on loopback), IP:PORT or [IPV6]:PORT
        #[arg(long, value_name = "ADDRESS", value_parser = parse_tcp_listen)]
        nbd_tcp: Option<SocketAddr>,
        /// Start from this replica alone, against the rules; acknowledged writes may be lost
        #[arg(long, value_name = "REPLICA")]
        force_from: Option<ReplicaId>,
        /// Also where that replica was being filled: its blocks may be of different times
        #[arg(long, requires = "force_from")]
        even_if_syncing: bool,
        /// That acknowledged writes may be lost is understood; without it, what may be lost is told
        #[arg(long, requires = "force_from")]
        yes_lose_writes: bool,
    },
    /// Stop serving a volume; refused while clients are connected
    #[command(after_help = "\
Examples:
  holdfast volume detach db
  holdfast volume detach db --force   disconnects the clients")]
    Detach {
        /// The volume
        name: VolumeName,
        /// Disconnect clients that are still there; also needed where the engine does not answer
        #[arg(long)]
        force: bool,
    },
    /// Forget a volume, refused while it is attached; its data stays on disk unless it is purged
    #[command(after_help = "\
Examples:
  holdfast volume delete db   replica data stays, listed by `holdfast replica ls`
  holdfast volume delete db --purge-data   replica data goes to the trash, and later away; asks on a terminal")]
    Delete {
        /// The volume
        name: VolumeName,
        /// Move the data of all its replicas to the trash
        #[arg(long)]
        purge_data: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make a deleted volume again of its data that is still on this node
    #[command(after_help = "\
Its replicas are those that agree: of one history, with the newest view that any of them knows. On this node there must be a \
directory of every replica that the volume was to have, and those of all members of that view must be whole. What does not agree is left as it is. The volume is detached; its members are compared when it is attached. \
How replicas did file I/O is not kept: it is buffered. Exit code 7 where a directory is missing or newer data may be elsewhere, 4 where the volume or \
another of its name is there.

Examples:
  holdfast volume undelete db   after `volume delete db`
  holdfast volume undelete db --from-trash   after `volume delete db --purge-data`")]
    Undelete {
        /// The volume, or its id where several had the name
        name: String,
        /// Use what waits in the trash, too
        #[arg(long)]
        from_trash: bool,
    },
    /// List the volumes
    #[command(
        after_help = "Examples:\n  holdfast volume ls\n  holdfast volume ls -o json | jq -r '.volumes[].name'"
    )]
    Ls,
    /// Show one volume and its replicas
    #[command(after_help = "\
The mode of a replica:
  member        has every acknowledged write; of a detached volume: will serve when it is attached
  suspect       a member that does not answer, or an engine that has not reported yet
  catching_up   misses writes and gets them; of a detached volume: will get them when it is attached
  rebuilding    is being filled
  faulted       its disk failed
  absent        it cannot be reached, or its directory is missing

Examples:
  holdfast volume show db
  holdfast volume show db -o json | jq -r .endpoint")]
    Show {
        /// The volume
        name: VolumeName,
    },
    /// Wait until a volume is in a state
    #[command(after_help = "\
Examples:
  holdfast volume wait db --for healthy --timeout 60s
  holdfast volume wait db --for detached || echo 'still attached'")]
    Wait {
        /// The volume
        name: VolumeName,
        /// The state to wait for
        #[arg(long = "for", value_name = "STATE")]
        target: Target,
        /// Give up after this long, with exit code 6
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
}

/// How replicas do file I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum IoMode {
    /// Past the page cache
    Direct,
    /// Through the page cache
    Buffered,
}

impl IoMode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

/// How many copies there are where nobody chose.
const REPLICAS_DEFAULT: u32 = 3;

/// A number of replicas that a volume can have.
pub(super) fn replicas(text: &str) -> Result<u32, String> {
    let number: u32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    match usize::try_from(number) {
        Ok(count @ 1..) if count <= REPLICAS_MAX => Ok(number),
        _ => Err(format!("a volume has 1 to {REPLICAS_MAX} replicas, not {number}")),
    }
}

pub(super) async fn run(command: Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let mut volumes = client.volumes();
    match command {
        Command::Create { name, size, replicas, on, io_mode } => {
            let spread = u32::try_from(on.len()).ok().filter(|nodes| *nodes > 1);
            let request = pb::CreateVolumeRequest {
                name: name.to_string(),
                size_bytes: size,
                replicas: replicas.or(spread).unwrap_or(REPLICAS_DEFAULT),
                on: on.iter().map(ToString::to_string).collect(),
                io_mode: io_mode.map(IoMode::as_str).unwrap_or_default().to_owned(),
            };
            let volume = ask(&format!("create volume {name}"), volumes.create(request)).await?;
            show(out, &volume)?;
            out.hint(format_args!("next: holdfast volume attach {name}"));
        }
        Command::Attach { name, on, nbd_tcp, force_from, even_if_syncing, yes_lose_writes } => {
            let request = pb::AttachVolumeRequest {
                name: name.to_string(),
                nbd_tcp: nbd_tcp.map(|address| address.to_string()).unwrap_or_default(),
                force_from: force_from.map(|id| id.to_string()).unwrap_or_default(),
                even_if_syncing,
                lose_writes: yes_lose_writes,
                node: on.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
            let volume = ask(&format!("attach volume {name}"), volumes.attach(request)).await?;
            show(out, &volume)?;
            if let Some(address) = nbd_tcp {
                out.hint(no_authentication(address));
            }
            if let Some(id) = force_from {
                out.hint(format_args!(
                    "note: {name} has the data of {id} now; put new replicas in the places of the others: `holdfast \
                     replica replace {name} rN`"
                ));
            }
            if let Some(engine) = volume
                .engine
                .as_ref()
                .filter(|engine| on.as_ref().is_some_and(|on| engine.node == on.as_str()))
                && volume.endpoint.is_none()
                && volume.state != "attaching"
            {
                out.hint(format_args!(
                    "attached on node {}: `holdfast volume show {name}` there tells its endpoint",
                    engine.node
                ));
            } else if volume.endpoint.is_none() {
                out.hint(format_args!("next: holdfast volume wait {name} --for healthy"));
            }
        }
        Command::Detach { name, force } => {
            let request = pb::DetachVolumeRequest { name: name.to_string(), force };
            show(out, &ask(&format!("detach volume {name}"), volumes.detach(request)).await?)?;
        }
        Command::Delete { name, purge_data, yes } => {
            if purge_data {
                let what =
                    format!("volume {name} is deleted, and the data of all its replicas goes to the trash");
                confirm(&what, yes, Elsewhere::GoesOn)?;
            }
            let request = pb::DeleteVolumeRequest { name: name.to_string(), purge_data };
            let reply = ask(&format!("delete volume {name}"), volumes.delete(request)).await?;
            let name = name.to_string();
            out.show(&json::Deleted::new(&name, &reply), || deleted(&name, &reply))?;
        }
        Command::Undelete { name, from_trash } => {
            let operation = format!("undelete volume {name}");
            let request = pb::UndeleteVolumeRequest { name, from_trash };
            show(out, &ask(&operation, volumes.undelete(request)).await?)?;
        }
        Command::Ls => {
            let reply = ask("list volumes", volumes.list(pb::ListVolumesRequest {})).await?;
            out.show(&json::Volumes::from(&reply), || list(&reply.volumes))?;
        }
        Command::Show { name } => {
            let request = pb::GetVolumeRequest { name: name.to_string() };
            show(out, &ask(&format!("show volume {name}"), volumes.get(request)).await?)?;
        }
        Command::Wait { name, target, timeout } => {
            let volume = wait(client, global, name.as_str(), target, timeout).await?;
            show(out, &volume)?;
        }
    }
    Ok(())
}

fn no_authentication(address: SocketAddr) -> String {
    let who = if address.ip().is_loopback() { "every user of this machine" } else { "everybody" };
    format!(
        "note: NBD over TCP has no authentication: {who} who reaches {address} can read and write this volume"
    )
}

pub(super) fn show(out: &Out, volume: &pb::VolumeInfo) -> Result<(), Complaint> {
    out.show(&json::Volume::from(volume), || describe(volume))
}

fn deleted(name: &str, reply: &pb::DeleteVolumeReply) -> String {
    let mut text = format!("volume {name} is deleted\n");
    for dir in &reply.kept_dirs {
        text.push_str(&format!("  kept     {dir}\n"));
    }
    for dir in &reply.trashed_dirs {
        text.push_str(&format!("  trashed  {dir}\n"));
    }
    text
}

fn list(volumes: &[pb::VolumeInfo]) -> String {
    if volumes.is_empty() {
        return "no volumes; `holdfast volume create NAME --size SIZE` makes one".to_owned();
    }
    let rows = volumes.iter().map(|volume| {
        let members = volume.replicas.iter().filter(|replica| replica.mode == "member").count();
        [
            volume.name.clone(),
            format_size(volume.size_bytes),
            volume.state.clone(),
            format!("{members}/{}", volume.replicas.len()),
            volume.clients.to_string(),
            dash(volume.engine.as_ref().and_then(|engine| engine.pid)),
            dash(volume.endpoint.as_ref()),
        ]
    });
    table(["NAME", "SIZE", "STATE", "MEMBERS", "CLIENTS", "PID", "ENDPOINT"], rows)
}

fn describe(volume: &pb::VolumeInfo) -> String {
    let engine = volume.engine.as_ref().map(|engine| {
        let pid = engine.pid.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
        format!("{} on {} ({pid})", engine.instance, engine.node)
    });
    let repair = match volume.unrepaired_bytes {
        0 => String::new(),
        bytes => format!("{} still to be made equal after an unclean end", format_size(bytes)),
    };
    let head = fields([
        ("name", volume.name.clone()),
        ("id", volume.id.clone()),
        ("size", format_size(volume.size_bytes)),
        ("state", volume.state.clone()),
        ("reason", volume.reason.clone().unwrap_or_default()),
        ("generation", format!("{} (epoch {})", volume.generation, volume.epoch)),
        ("endpoint", dash(volume.endpoint.as_ref())),
        ("over TCP", volume.endpoint_tcp.clone().unwrap_or_default()),
        ("clients", volume.clients.to_string()),
        ("repair", repair),
        ("engine", dash(engine)),
    ]);
    let rows = volume.replicas.iter().map(|replica| {
        [
            replica.id.clone(),
            replica.node.clone(),
            mode(replica),
            dash(replica.pid),
            dash(replica.address.as_ref()),
            replica.data_dir.clone(),
        ]
    });
    let mut text = format!("{head}\n{}", table(["ID", "NODE", "MODE", "PID", "ADDRESS", "DATA"], rows));
    for replica in &volume.replicas {
        if let Some(filling) = replica.progress.as_ref().filter(|progress| progress.total_bytes > 0) {
            text.push_str(&format!("\n{}: {}", replica.id, progress(filling)));
        }
        if let Some(reason) = replica.reason.as_ref().filter(|reason| !reason.is_empty()) {
            text.push_str(&format!("\n{}: {reason}", replica.id));
        }
    }
    text
}

/// `43MiB of 100MiB, 12MiB/s, 5 s left`.
fn progress(progress: &pb::Progress) -> String {
    let mib = |bytes: u64| format!("{}MiB", bytes >> 20);
    let rate = match progress.bytes_per_second {
        0 => String::new(),
        rate => format!(", {}/s", mib(rate)),
    };
    let left = progress.remaining_s.map_or(String::new(), |left| format!(", {left} s left"));
    format!("{} of {}{rate}{left}", mib(progress.done_bytes), mib(progress.total_bytes))
}

/// `rebuilding 43%`.
pub(super) fn mode(replica: &pb::VolumeReplicaInfo) -> String {
    let percent = replica
        .progress
        .as_ref()
        .filter(|progress| progress.total_bytes > 0)
        .map(|progress| u128::from(progress.done_bytes) * 100 / u128::from(progress.total_bytes));
    match percent {
        Some(percent) => format!("{} {percent}%", replica.mode),
        None => replica.mode.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_counts_are_bounded() {
        assert_eq!(replicas("1"), Ok(1));
        assert_eq!(replicas("5"), Ok(5));
        for bad in ["0", "6", "-1", "x", "4294967296"] {
            assert!(replicas(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_volume_reads_well() {
        let volume = pb::VolumeInfo {
            name: "demo".into(),
            size_bytes: 1 << 30,
            state: "degraded".into(),
            replicas: vec![pb::VolumeReplicaInfo {
                id: "r2".into(),
                node: "n1".into(),
                mode: "rebuilding".into(),
                progress: Some(pb::Progress {
                    done_bytes: 43 << 20,
                    total_bytes: 100 << 20,
                    bytes_per_second: (12 << 20) + 7,
                    remaining_s: Some(5),
                }),
                reason: Some("was away".into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = describe(&volume);
        for words in [
            "1GiB",
            "degraded",
            "rebuilding 43%",
            "r2: was away",
            "ADDRESS",
            "43MiB of 100MiB, 12MiB/s, 5 s left",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("over TCP"), "{text}");
        assert!(list(&[volume]).contains("0/1"));
    }

    #[test]
    fn tcp_always_says_that_it_has_no_authentication() {
        for address in ["127.0.0.1:1", "0.0.0.0:1"] {
            assert!(no_authentication(address.parse().unwrap()).contains("no authentication"));
        }
    }
}
