//! Holdfast as an operator starts it: `holdfast quickstart`, found through its ready file.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Leg, Running, Setup, TARGET_NBD, typed};
use crate::cpu::Accounted;
use crate::fio::Target;
use crate::process::{self, Server};

/// What `--ready-file` says.
#[derive(Debug, Deserialize)]
struct Ready {
    agent: String,
    nbd_uri: String,
}

#[derive(Debug, Deserialize)]
struct Instances {
    instances: Vec<Instance>,
}

#[derive(Debug, Deserialize)]
struct Instance {
    name: String,
    kind: String,
    pid: Option<i32>,
}

/// Starts a volume with `replicas` copies, which do file I/O in `io_mode`.
pub(super) fn start(leg: Leg, replicas: usize, io_mode: Option<&str>, setup: &Setup) -> Result<Running> {
    if !setup.holdfast.is_file() {
        bail!("{} is missing: run `cargo build --release -p holdfast`", setup.holdfast.display());
    }
    let dir = setup.leg_dir(leg)?;
    let ready_file = setup.socket_dir.join(format!("{}.ready", leg.name()));
    let mut command = Command::new(&setup.holdfast);
    command.arg("quickstart").arg("--data-dir").arg(&dir).arg("--ready-file").arg(&ready_file);
    command.args(["--replicas", &replicas.to_string(), "--size", &format!("{}MiB", setup.size_mib)]);
    if let Some(mode) = io_mode {
        command.args(["--io-mode", mode]);
    }
    let commands = vec![typed(&command)];
    let mut server = Server::start(leg.name(), &setup.socket_dir, &mut command)?;
    let ready = server.wait_for("a volume that serves", || read_ready(&ready_file))?;
    let listing = process::output(
        Command::new(&setup.holdfast)
            .args(["instance", "ls", "-o", "json"])
            .env("HOLDFAST_AGENT", &ready.agent),
    )?;
    let mut accounted = processes(&listing, replicas)?;
    accounted.push(Accounted { role: "agent".to_owned(), pid: server.pid() });
    Ok(Running {
        leg,
        target: Target { text: TARGET_NBD, variable: ("HF_URI", ready.nbd_uri), read_only: false },
        accounted,
        commands,
        _servers: vec![server],
    })
}

/// The file appears whole, by a rename.
fn read_ready(path: &Path) -> Option<Ready> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// One engine and `replicas` replicas, the engine first.
fn processes(listing: &str, replicas: usize) -> Result<Vec<Accounted>> {
    let mut instances: Vec<Instance> = serde_json::from_str::<Instances>(listing)
        .with_context(|| format!("failed to understand the list of instances: {listing}"))?
        .instances;
    instances.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    let found: Vec<Accounted> = instances
        .into_iter()
        .filter_map(|instance| Some(Accounted { role: instance.kind, pid: instance.pid? }))
        .collect();
    let count = |role: &str| found.iter().filter(|process| process.role == role).count();
    if count("engine") != 1 || count("replica") != replicas {
        bail!("expected 1 engine and {replicas} replicas with a process each, found {listing}");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_accounted_for() {
        let one =
            |name: &str, kind: &str, pid: &str| format!(r#"{{"name":"{name}","kind":"{kind}","pid":{pid}}}"#);
        let list = |items: &[String]| format!(r#"{{"revision":7,"instances":[{}]}}"#, items.join(","));
        let (r1, r2, e) =
            (one("demo-r1", "replica", "11"), one("demo-r2", "replica", "12"), one("demo-e", "engine", "9"));
        let found = processes(&list(&[r1.clone(), r2, e.clone()]), 2).unwrap();
        let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [9, 11, 12]);
        let dead = one("demo-r2", "replica", "null");
        assert!(processes(&list(&[r1, dead, e]), 2).is_err());
        assert!(processes("not json", 1).is_err());
    }
}
