//! One agent, its data directory, its ports, and everything it spawned.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli;
use crate::faults::FaultyDisk;
use crate::logs;
use crate::mounts::SmallDisk;
use crate::ports::PortBlock;
use crate::process::{Signal, holdfast, kill, processes_of, signal};
use crate::wait::{SECOND, check, eventually, eventually_or};

/// Long enough for a debug build on two busy cores, for a replica timeout (8 s), and for one full back-off (30 s).
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(90);
/// An agent or an instance that starts, stops or notices something.
pub const SOON: Duration = Duration::from_secs(40);
/// Pairs of a path and where it is to be found, `--`, and what to run then.
const MOUNT_AND_RUN: &str =
    r#"while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@""#;

/// How `holdfast agent` is started.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Further arguments.
    pub extra: Vec<String>,
    /// `--data-ports`; none: this cluster's own block.
    pub data_ports: Option<String>,
    /// `--node`; none: `node-a`.
    pub node: Option<String>,
}

impl AgentOptions {
    /// With these further arguments.
    #[must_use]
    pub fn with(extra: &[&str]) -> Self {
        Self { extra: extra.iter().map(|a| (*a).to_owned()).collect(), ..Self::default() }
    }

    /// The same for a node of this name.
    #[must_use]
    pub fn of_node(node: &str, extra: &[&str]) -> Self {
        Self { node: Some(node.to_owned()), ..Self::with(extra) }
    }
}

/// How `holdfast quickstart` is started.
#[derive(Debug, Clone)]
pub struct QuickstartOptions {
    /// `--replicas`.
    pub replicas: u32,
    /// `--size`.
    pub size: String,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Default for QuickstartOptions {
    fn default() -> Self {
        Self { replicas: 3, size: "128MiB".to_owned(), extra: Vec::new() }
    }
}
impl QuickstartOptions {
    /// Three replicas of this size.
    #[must_use]
    pub fn sized(size: &str) -> Self {
        Self { size: size.to_owned(), ..Self::default() }
    }
}

#[derive(Debug, Clone)]
enum Launch {
    Agent(AgentOptions),
    Quickstart(QuickstartOptions),
}

/// A running agent and what belongs to it. Dropping it ends everything that names its directory, and fails the test
/// when a log holds an ERROR that was not announced with [`Cluster::allow_errors`].
#[derive(Debug)]
pub struct Cluster {
    // Declared before the directory that they are mounted in, and therefore dropped before it.
    disks: Vec<SmallDisk>,
    faulty_disks: Vec<FaultyDisk>,
    dir: TempDir,
    ports: PortBlock,
    launch: Launch,
    binary: PathBuf,
    child: Option<Child>,
    starts: u32,
    allowed: Vec<String>,
    /// What agent and instances find at a path instead of what is there.
    shown: Vec<(PathBuf, &'static str)>,
}

impl Cluster {
    fn prepare(launch: Launch) -> Self {
        // Short, because socket paths below it may not pass 108 bytes.
        let dir = tempfile::Builder::new().prefix("hf").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("run")).expect("an empty directory takes another");
        let (ports, binary) = (PortBlock::take(), holdfast());
        Self {
            disks: Vec::new(),
            faulty_disks: Vec::new(),
            dir,
            ports,
            launch,
            binary,
            child: None,
            starts: 0,
            allowed: Vec::new(),
            shown: Vec::new(),
        }
    }
    /// `holdfast agent`, ready to be asked.
    #[must_use]
    pub fn agent(options: AgentOptions) -> Self {
        let mut this = Self::agent_not_started(options);
        this.start();
        this
    }
    /// `holdfast agent`, for a test that starts it itself.
    #[must_use]
    pub fn agent_not_started(options: AgentOptions) -> Self {
        Self::prepare(Launch::Agent(options))
    }
    /// `holdfast quickstart`, its volume ready for I/O.
    #[must_use]
    pub fn quickstart(options: QuickstartOptions) -> Self {
        let mut this = Self::prepare(Launch::Quickstart(options));
        this.start();
        this
    }
    /// An agent with one volume, `demo`, attached and healthy.
    #[must_use]
    pub fn with_volume(size: &str, replicas: u32) -> Self {
        let this = Self::agent(AgentOptions::default());
        this.create_attached("demo", size, replicas);
        this
    }

    /// The test's own directory; everything of this cluster is below it.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }
    /// `--data-dir`.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }
    /// `--runtime-dir`, or what quickstart derives its own from.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.root().join("run")
    }
    /// The file that quickstart writes when I/O can start.
    #[must_use]
    pub fn ready_file(&self) -> PathBuf {
        self.root().join("ready.json")
    }
    /// This cluster's ports.
    #[must_use]
    pub fn ports(&self) -> &PortBlock {
        &self.ports
    }
    /// The agent's address.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.launch {
            Launch::Agent(_) => format!("unix:{}", self.root().join("agent.sock").display()),
            Launch::Quickstart(_) => {
                self.ready()["agent"].as_str().expect("the ready file names the agent").to_owned()
            }
        }
    }
    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let address = self.address();
        PathBuf::from(address.strip_prefix("unix:").unwrap_or(&address))
    }
    /// The content of the ready file.
    ///
    /// # Panics
    /// When it is not there, or no JSON.
    #[must_use]
    pub fn ready(&self) -> Value {
        let path = self.ready_file();
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{} is no JSON: {e}", path.display()))
    }
    /// Log lines of level ERROR that hold this text are part of the test.
    pub fn allow_errors(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }
    /// From the next start on, the agent is run from this binary.
    pub fn use_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }
    /// From the next start on, these arguments are added.
    pub fn add_arguments(&mut self, arguments: &[&str]) {
        let extra = match &mut self.launch {
            Launch::Agent(options) => &mut options.extra,
            Launch::Quickstart(options) => &mut options.extra,
        };
        extra.extend(arguments.iter().map(|a| (*a).to_owned()));
    }
    /// From the next start on, the agent is of the node of this name.
    pub fn use_node(&mut self, name: &str) {
        if let Launch::Agent(options) = &mut self.launch {
            options.node = Some(name.to_owned());
        }
    }
    /// From the next start on, this flag of the further arguments has another value.
    ///
    /// # Panics
    /// When it was not given.
    pub fn change_argument(&mut self, flag: &str, value: &str) {
        let extra = match &mut self.launch {
            Launch::Agent(options) => &mut options.extra,
            Launch::Quickstart(options) => &mut options.extra,
        };
        let at = extra.iter().position(|argument| argument == flag);
        let given = at.and_then(|at| extra.get_mut(at + 1));
        value.clone_into(given.unwrap_or_else(|| panic!("{flag} was not given")));
    }
    /// Keeps a mount until the cluster is gone.
    pub fn keep_disk(&mut self, disk: SmallDisk) {
        self.disks.push(disk);
    }
    /// Keeps a disk of our own until the cluster is gone.
    pub fn keep_faulty_disk(&mut self, disk: FaultyDisk) {
        self.faulty_disks.push(disk);
    }
    /// Those kept, in order.
    #[must_use]
    pub fn faulty_disks(&self) -> &[FaultyDisk] {
        &self.faulty_disks
    }
    /// From the next start on, the agent and its instances find `ours` at `path`, by a mount that only they see, beside
    /// a copy of the mounts that are there then.
    pub fn show(&mut self, ours: PathBuf, path: &'static str) {
        self.shown.push((ours, path));
    }
    /// The mounts kept, in order.
    #[must_use]
    pub fn disks(&self) -> &[SmallDisk] {
        &self.disks
    }
}

/// The agent's own process.
impl Cluster {
    fn arguments(&self) -> Vec<String> {
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        let mut args: Vec<String> = Vec::new();
        let mut add = |list: &[&str]| args.extend(list.iter().map(|a| (*a).to_owned()));
        let (data, ports) = (path(self.data_dir()), self.ports.data_ports());
        match &self.launch {
            Launch::Agent(options) => {
                let listen = format!("unix:{}", self.root().join("agent.sock").display());
                let run = path(self.runtime_dir());
                add(&["agent", "--data-dir", &data, "--listen", &listen, "--runtime-dir", &run]);
                add(&["--node", options.node.as_deref().unwrap_or("node-a")]);
                add(&["--data-ports", options.data_ports.as_ref().unwrap_or(&ports)]);
                args.extend(options.extra.iter().cloned());
            }
            Launch::Quickstart(options) => {
                let (ready, replicas) = (path(self.ready_file()), options.replicas.to_string());
                add(&["quickstart", "--data-dir", &data, "--replicas", &replicas, "--size", &options.size]);
                add(&["--ready-file", &ready, "--data-ports", &ports]);
                args.extend(options.extra.iter().cloned());
            }
        }
        args
    }

    /// The command that [`Self::start`] runs, for tests that run a second one.
    #[must_use]
    pub fn command(&self) -> std::process::Command {
        let mut command = if self.shown.is_empty() {
            cli::command(&self.binary)
        } else {
            let mut command = cli::command(Path::new("unshare"));
            command.args(["--mount", "sh", "-c", MOUNT_AND_RUN, "sh"]);
            for (ours, path) in &self.shown {
                command.arg(ours).arg(path);
            }
            command.arg("--").arg(&self.binary);
            command
        };
        command.args(self.arguments()).env("XDG_RUNTIME_DIR", self.runtime_dir()).current_dir(self.root());
        command
    }

    /// Starts the agent, and waits until it can be asked (quickstart: until I/O can start).
    ///
    /// # Panics
    /// When it ends instead, or is not ready in time.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the agent without waiting for anything.
    ///
    /// # Panics
    /// When one is running already, or it cannot be started.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        self.starts += 1;
        // Each start writes its ready file anew; one of an earlier start must not be taken for it.
        if let Err(e) = std::fs::remove_file(self.ready_file()) {
            assert!(e.kind() == std::io::ErrorKind::NotFound, "cannot remove the ready file: {e}");
        }
        let file = |name: String| File::create(self.root().join(name)).expect("a log file can be created");
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(file(format!("agent-{}.stdout", self.starts)))
            .stderr(file(format!("agent-{}.log", self.starts)));
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.binary.display()));
        self.child = Some(child);
    }

    /// Waits until the agent can be asked (quickstart: until I/O can start).
    ///
    /// # Panics
    /// When it ends instead, or is not ready in time.
    pub fn wait_ready(&mut self) {
        if let Err(said) = self.ready_or_ended() {
            panic!("the agent ended instead of becoming ready: {said}");
        }
    }

    /// Waits until the agent can be asked (quickstart: until I/O can start), or has ended.
    ///
    /// # Errors
    /// What it said, where it has ended.
    ///
    /// # Panics
    /// When neither happens in time.
    pub fn ready_or_ended(&mut self) -> Result<(), String> {
        let pid = self.agent_pid();
        let ended = eventually(HEALTHY_WITHIN, "the agent is ready", || {
            let child = self.child.as_mut().expect("the agent was started");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                return Ok(Some(format!("{status}: {}", self.agent_said())));
            }
            match &self.launch {
                Launch::Agent(_) => {
                    let said = self.cli(&["node", "show", "-o", "json"]);
                    check(said.0.code == Some(0), || said.said())
                }
                Launch::Quickstart(_) => {
                    check(self.ready_file().exists(), || "no ready file".to_owned())?;
                    let told = self.ready()["pid"].as_i64();
                    check(told == Some(i64::from(pid)), || {
                        format!("ready file of process {told:?}, not {pid}")
                    })
                }
            }
            .map(|()| None)
        });
        match ended {
            None => Ok(()),
            Some(said) => {
                self.child = None;
                Err(said)
            }
        }
    }

    /// What the agent wrote to its outputs since it was last started.
    #[must_use]
    pub fn agent_said(&self) -> String {
        let read = |suffix: &str| {
            let path = self.root().join(format!("agent-{}.{suffix}", self.starts));
            std::fs::read_to_string(path).unwrap_or_default()
        };
        format!("{}{}", read("stdout"), read("log"))
    }

    /// The agent's process.
    ///
    /// # Panics
    /// When it was not started.
    #[must_use]
    pub fn agent_pid(&self) -> i32 {
        let child = self.child.as_ref().expect("the agent was started");
        i32::try_from(child.id()).expect("process numbers are small")
    }

    /// Whether the agent was started and not ended by this.
    #[must_use]
    pub fn agent_runs(&self) -> bool {
        self.child.is_some()
    }

    /// `kill -9` of the agent alone.
    ///
    /// # Panics
    /// When it was not started.
    pub fn kill_agent(&mut self) {
        let mut child = self.child.take().expect("the agent was started");
        child.kill().expect("a child that was not waited for can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Sends `how` to the agent and waits for its end.
    ///
    /// # Panics
    /// When it has not ended in time.
    pub fn end_agent(&mut self, how: Signal) -> ExitStatus {
        signal(self.agent_pid(), how);
        self.wait_agent_end()
    }

    /// Waits for the agent's end.
    ///
    /// # Panics
    /// When it has not ended in time.
    pub fn wait_agent_end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the agent was started");
        let status = eventually(HEALTHY_WITHIN, "the agent ends", || {
            child.try_wait().expect("a child can be waited for").ok_or_else(|| "it runs".to_owned())
        });
        self.child = None;
        status
    }
}

/// Its end.
impl Cluster {
    /// Ends everything that names this cluster's directory, instances first seen or not.
    fn end_everything(&mut self) -> Result<(), String> {
        if let Some(mut child) = self.child.take() {
            // Either may fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        eventually_or(20 * SECOND, || {
            let left = processes_of(self.dir.path());
            for process in &left {
                kill(process.pid);
            }
            check(left.is_empty(), || format!("processes that kill -9 does not end: {left:?}"))
        })
    }

    fn dump(&self) {
        eprintln!("==== {}", self.root().display());
        for process in processes_of(self.root()) {
            eprintln!("running: {} {}", process.pid, process.command.join(" "));
        }
        if self.child.is_some() && (matches!(self.launch, Launch::Agent(_)) || self.ready_file().exists()) {
            for args in [["volume", "ls"], ["instance", "ls"]] {
                let mut command = cli::command(&self.binary);
                command.env("HOLDFAST_AGENT", self.address()).args(args).args(["-o", "json"]);
                if let Ok(said) = command.output() {
                    eprintln!("{}: {}", args.join(" "), String::from_utf8_lossy(&said.stdout));
                }
            }
        }
        logs::dump(self.root());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.dump();
        }
        let ended = self.end_everything();
        let errors = logs::errors(self.root(), &self.allowed);
        if std::env::var_os("HOLDFAST_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.root().display());
            self.dir.disable_cleanup(true);
        }
        if !failed {
            ended.unwrap_or_else(|left| panic!("{left}"));
            assert!(errors.is_empty(), "ERROR lines that the test did not announce:\n{}", errors.join("\n"));
        }
    }
}
