//! nbdkit with its file plugin: one copy through the page cache, over NBD on a unix socket, without any replication. What
//! is left between it and Holdfast is the price of replicating.

use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::Result;

use super::{Leg, Running, Setup, TARGET_NBD, sparse_file, typed};
use crate::cpu::Accounted;
use crate::fio::Target;
use crate::process::Server;

/// Starts the one process.
pub(super) fn start(leg: Leg, setup: &Setup) -> Result<Running> {
    let image = setup.leg_dir(leg)?.join("data.img");
    sparse_file(&image, setup.size_mib)?;
    let socket = setup.socket_dir.join("nbdkit.sock");
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").arg("--unix").arg(&socket).arg("file").arg(&image);
    let commands = vec![typed(&command)];
    let mut server = Server::start("nbdkit", &setup.socket_dir, &mut command)?;
    server.wait_for("its socket", || UnixStream::connect(&socket).ok())?;
    Ok(Running {
        leg,
        target: Target {
            text: TARGET_NBD,
            variable: ("HF_URI", format!("nbd+unix:///?socket={}", socket.display())),
            read_only: false,
        },
        accounted: vec![Accounted { role: "server".to_owned(), pid: server.pid() }],
        commands,
        _servers: vec![server],
    })
}
