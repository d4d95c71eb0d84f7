//! An agent of our own with its volumes, whose parts are killed, stopped and started again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::process::{self, Server};

/// How long anything may take that is waited for here: a comparison of a large volume takes longest.
pub(super) const WITHIN: Duration = Duration::from_secs(300);
/// How often a condition is looked at that sends no event.
const POLL: Duration = Duration::from_millis(2);

/// `volume show -o json`, as far as it is needed.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Volume {
    /// Its name.
    pub(super) name: String,
    /// `healthy`, `degraded`...
    pub(super) state: String,
    /// Its NBD URI.
    pub(super) endpoint: Option<String>,
    /// Who serves it.
    pub(super) engine: Option<Part>,
    /// Its copies.
    pub(super) replicas: Vec<Replica>,
    /// Not told by every version that is measured.
    #[serde(default)]
    pub(super) unrepaired_bytes: u64,
}

/// A process.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Part {
    /// Its number.
    pub(super) pid: Option<i32>,
}

/// One copy.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Replica {
    /// `r1`...
    pub(super) id: String,
    /// `member`, `rebuilding`...
    pub(super) mode: String,
    /// Its process.
    pub(super) pid: Option<i32>,
    /// Its directory.
    pub(super) data_dir: PathBuf,
    /// Sent to it by fillings.
    #[serde(default)]
    pub(super) copied_bytes: u64,
    /// Found equal by fillings.
    #[serde(default)]
    pub(super) compared_bytes: u64,
}

impl Volume {
    /// The replica with this id.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn replica(&self, id: &str) -> Result<&Replica> {
        self.replicas.iter().find(|replica| replica.id == id).with_context(|| format!("no replica {id}"))
    }
    /// The engine's process.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn engine_pid(&self) -> Result<i32> {
        self.engine.as_ref().and_then(|engine| engine.pid).context("the engine has no process")
    }
    /// Where I/O goes.
    ///
    /// # Errors
    /// When it is not served.
    pub(super) fn uri(&self) -> Result<&str> {
        self.endpoint.as_deref().context("the volume is not served")
    }
}

/// Bits a second, bytes of a burst, and what to run then.
const SHAPED: &str = "ip link set lo up; tc qdisc add dev lo root tbf rate ${1}bit burst ${2} latency 50ms; \
                      shift 2; exec \"$@\"";

/// An agent, its data and its sockets.
#[derive(Debug)]
pub(super) struct Node {
    binary: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    arguments: Vec<String>,
    /// Bits a second of its own loopback; none: that of the machine.
    loopback: Option<u64>,
    agent: Option<Server>,
    starts: u32,
}

impl Node {
    /// Starts an agent with `binary` on the new directories `data` and `sockets`, and these flags more.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn start(binary: &Path, data: &Path, sockets: &Path, arguments: Vec<String>) -> Result<Self> {
        for dir in [data, sockets] {
            std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let mut node = Self {
            binary: binary.to_owned(),
            data: data.to_owned(),
            sockets: sockets.to_owned(),
            arguments,
            loopback: None,
            agent: None,
            starts: 0,
        };
        node.start_agent()?;
        Ok(node)
    }

    /// Starts its agent again in a network of its own, whose loopback carries only so many bits a second, both directions
    /// together. Needs root, `ip` and `tc`.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn shape(&mut self, bits_per_second: u64) -> Result<()> {
        self.stop();
        self.loopback = Some(bits_per_second);
        self.start_agent()
    }

    /// The agent's process.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn agent_pid(&self) -> Result<i32> {
        self.agent.as_ref().map(Server::pid).context("the agent does not run")
    }

    /// Takes a volume's record out of the registry.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn take_record_away(&self, volume: &str) -> Result<Aside> {
        let path = self.data.join(format!("registry/volumes/{volume}.json"));
        let aside = Aside { to: self.data.with_extension("record-aside"), path };
        std::fs::rename(&aside.path, &aside.to)
            .with_context(|| format!("failed to move {}", aside.path.display()))?;
        Ok(aside)
    }

    /// Removes all data of a node that does not run.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn remove_data(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.data)
            .with_context(|| format!("failed to remove {}", self.data.display()))
    }

    /// Where the jobs' own files may go.
    #[must_use]
    pub(super) fn scratch(&self) -> &Path {
        &self.sockets
    }

    fn socket(&self) -> PathBuf {
        self.sockets.join("agent.sock")
    }

    /// Starts the agent, and waits until it can be asked. What runs already it adopts.
    ///
    /// # Errors
    /// When it ends instead.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        self.starts += 1;
        let mut command = match self.loopback {
            None => Command::new(&self.binary),
            Some(bits) => {
                let mut command = Command::new("unshare");
                // 2 ms of the rate at once, for a packet of loopback may have 64 KiB; what waits longer than 50 ms is lost.
                let burst = (bits / 8 / 500).max(128 << 10);
                command.args(["--net", "sh", "-ec", SHAPED, "sh", &bits.to_string(), &burst.to_string()]);
                command.arg(&self.binary);
                command
            }
        };
        command.arg("agent").arg("--data-dir").arg(&self.data).arg("--runtime-dir").arg(&self.sockets);
        command.arg("--listen").arg(format!("unix:{}", self.socket().display()));
        command.args(["--node", "bench", "--stop-instances"]).args(&self.arguments);
        let mut agent = Server::start(&format!("agent-{}", self.starts), &self.sockets, &mut command)?;
        let socket = self.socket();
        agent.wait_for("its socket", || std::os::unix::net::UnixStream::connect(&socket).ok())?;
        self.agent = Some(agent);
        Ok(())
    }

    /// `kill -9` of the agent alone: nobody starts again what dies from here on.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.kill()
    }

    /// Stops everything in order, and waits for it.
    pub(super) fn stop(&mut self) {
        drop(self.agent.take());
    }

    /// `kill -9` of everything that runs from this directory.
    ///
    /// # Errors
    /// When something does not end.
    pub(super) fn kill_everything(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
        }
        let deadline = Instant::now() + WITHIN;
        loop {
            let left = processes_below(&self.data);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("processes {left:?} do not end");
            }
            for pid in left {
                send(pid, Signal::SIGKILL)?;
            }
            std::thread::park_timeout(POLL);
        }
    }

    /// A `holdfast` command for this agent.
    #[must_use]
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("HOLDFAST_AGENT", format!("unix:{}", self.socket().display()));
        command
    }

    /// Runs one, and gives what it said.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn cli(&self, arguments: &[&str]) -> Result<String> {
        process::output(&mut self.command(arguments))
    }

    /// The volume as it is now.
    ///
    /// # Errors
    /// When the agent does not tell.
    pub(super) fn volume(&self, name: &str) -> Result<Volume> {
        let said = self.cli(&["volume", "show", name, "-o", "json"])?;
        serde_json::from_str(&said).with_context(|| format!("failed to understand {said}"))
    }

    /// Makes a volume and serves it.
    ///
    /// # Errors
    /// When it does not become healthy.
    pub(super) fn create(&self, name: &str, size_mib: u64, replicas: u32) -> Result<Volume> {
        let (size, replicas) = (format!("{size_mib}MiB"), replicas.to_string());
        self.cli(&["volume", "create", name, "--size", &size, "--replicas", &replicas])?;
        self.cli(&["volume", "attach", name])?;
        self.healthy(name)
    }

    /// Detaches a volume and takes its data away.
    ///
    /// # Errors
    /// When the agent refuses.
    pub(super) fn delete(&self, name: &str) -> Result<()> {
        self.cli(&["volume", "detach", name, "--force"])?;
        self.cli(&["volume", "wait", name, "--for", "detached"])?;
        self.cli(&["volume", "delete", name, "--purge-data"])?;
        Ok(())
    }

    /// Waits until every replica is a member and all are equal.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) fn healthy(&self, name: &str) -> Result<Volume> {
        let within = format!("{}s", WITHIN.as_secs());
        self.cli(&["volume", "wait", name, "--for", "healthy", "--timeout", &within])?;
        self.volume(name)
    }
}

/// A file that is somewhere else for a while.
#[derive(Debug)]
pub(super) struct Aside {
    path: PathBuf,
    to: PathBuf,
}

impl Aside {
    /// Puts it back.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn put_back(self) -> Result<()> {
        std::fs::rename(&self.to, &self.path)
            .with_context(|| format!("failed to put {} back", self.path.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.kill_everything() {
            eprintln!("failed to end the node in {}: {error:#}", self.data.display());
        }
    }
}

/// Sends a signal; a process that has ended is fine.
///
/// # Errors
/// When the system refuses.
pub(super) fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to send {signal} to {pid}")),
    }
}

/// Instances are run from a copy of the binary below the data directory.
fn processes_below(dir: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of_dir = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.starts_with(dir))
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(of_dir).collect()
}

/// When a process began, as a moment of ours: to a hundredth of a second.
///
/// # Errors
/// When it is gone.
pub(super) fn began(pid: i32) -> Result<Instant> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let now = Instant::now();
    let (_, fields) = stat.rsplit_once(") ").context("failed to read the process's times")?;
    let ticks: f64 = fields.split(' ').nth(19).context("failed to find when the process began")?.parse()?;
    let up: f64 = uptime.split(' ').next().context("failed to read the uptime")?.parse()?;
    let ago = Duration::from_secs_f64((up - ticks / 100.0).max(0.0));
    now.checked_sub(ago).context("the process is older than the clock")
}
