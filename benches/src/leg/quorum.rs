//! qemu's own replication: three `qemu-nbd` on loopback TCP, each with a file of its own through the page cache, and a
//! `qemu-storage-daemon` that makes a quorum of them and exports it on a unix socket. The same shape as Holdfast's: one
//! process that replicates, one process per copy, TCP between them, writes volatile until a flush.
//!
//! With `read-pattern=fifo` only the first child sends data, and still the others work: qemu's NBD server asks for the
//! block status before it reads, and the quorum asks all of its children for it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Leg, QemuAio, QuorumRead, Running, Setup, TARGET_NBD, sparse_file, typed};
use crate::cpu::Accounted;
use crate::fio::Target;
use crate::process::{self, Server};

const COPIES: usize = 3;

/// Starts the four processes.
pub(super) fn start(leg: Leg, setup: &Setup) -> Result<Running> {
    let dir = setup.leg_dir(leg)?;
    let aio = aio(setup.qemu_aio)?;
    let mut commands = Vec::new();
    let mut copies = Vec::new();
    let mut ports = Vec::new();
    for copy in 0..COPIES {
        let image = dir.join(format!("copy{copy}.img"));
        sparse_file(&image, setup.size_mib)?;
        let port = free_port()?;
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format=raw", "--cache=writeback", "--discard=unmap"]);
        command.arg(format!("--aio={aio}")).args(["--shared=8", "--export-name=copy", "--bind=127.0.0.1"]);
        command.arg(format!("--port={port}")).arg(&image);
        commands.push(typed(&command));
        let mut server = Server::start(&format!("qemu-nbd-{copy}"), &setup.socket_dir, &mut command)?;
        server.wait_for("its port", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())?;
        copies.push(server);
        ports.push(port);
    }
    let socket = setup.socket_dir.join("quorum.sock");
    let mut command = storage_daemon(&ports, &socket.display().to_string(), setup.quorum_read);
    commands.push(typed(&command));
    let mut daemon = Server::start("qemu-storage-daemon", &setup.socket_dir, &mut command)?;
    daemon.wait_for("its socket", || UnixStream::connect(&socket).ok())?;

    let mut accounted = vec![Accounted { role: "engine".to_owned(), pid: daemon.pid() }];
    accounted.extend(copies.iter().map(|copy| Accounted { role: "replica".to_owned(), pid: copy.pid() }));
    // The daemon ends before what it is connected to.
    let mut servers = vec![daemon];
    servers.extend(copies);
    Ok(Running {
        leg,
        target: Target {
            text: TARGET_NBD,
            variable: ("HF_URI", format!("nbd+unix:///disk?socket={}", socket.display())),
            read_only: false,
        },
        accounted,
        commands,
        _servers: servers,
    })
}

fn storage_daemon(ports: &[u16], socket: &str, read: QuorumRead) -> Command {
    let pattern = match read {
        QuorumRead::Fifo => "fifo",
        QuorumRead::Quorum => "quorum",
    };
    let mut command = Command::new("qemu-storage-daemon");
    let mut quorum = format!("driver=quorum,node-name=disk,vote-threshold=2,read-pattern={pattern}");
    for (child, port) in ports.iter().enumerate() {
        command.arg("--blockdev").arg(format!(
            "driver=nbd,node-name=copy{child},server.type=inet,server.host=127.0.0.1,server.port={port},export=copy"
        ));
        quorum.push_str(&format!(",children.{child}=copy{child}"));
    }
    command.arg("--blockdev").arg(quorum);
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={socket},max-connections=16"));
    command.arg("--export").arg("type=nbd,id=export,node-name=disk,name=disk,writable=on");
    command
}

/// A port that was free a moment ago; `qemu-nbd` cannot be given a socket and cannot choose one itself.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn aio(wanted: QemuAio) -> Result<&'static str> {
    Ok(match wanted {
        QemuAio::Threads => "threads",
        QemuAio::IoUring => "io_uring",
        QemuAio::Auto => {
            let help = process::output(Command::new("qemu-nbd").arg("--help"))?;
            if help.contains("io_uring") { "io_uring" } else { "threads" }
        }
    })
}
