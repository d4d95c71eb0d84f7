//! etcd, really: members on loopback ports, with their data in a directory of the test's own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::ports::PortBlock;
use crate::process::{Signal, signal};
use crate::tools::tool;
use crate::wait::{SECOND, check, eventually};

/// The members of one etcd. Dropping it ends them.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    ports: PortBlock,
    members: Vec<Option<Child>>,
    extra: Vec<String>,
    starts: u32,
}

impl Etcd {
    /// Starts so many members, at most eight, and waits until they answer.
    ///
    /// # Panics
    /// When etcd is not installed, or does not answer in time.
    #[must_use]
    pub fn start(members: usize) -> Self {
        Self::start_with(members, |_| Vec::new())
    }

    /// The same with further arguments, made for the directory that they may put files in. Members that are given
    /// certificates for clients are not waited for.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(members: usize, extra: impl FnOnce(&Path) -> Vec<String>) -> Self {
        assert!((1..=8).contains(&members), "a block of ports is for one to eight members");
        let dir = tempfile::Builder::new().prefix("hfetcd").tempdir().expect("a temporary directory");
        let extra = extra(dir.path());
        let ports = PortBlock::take();
        let members = (0..members).map(|_| None).collect();
        let mut this = Self { dir, ports, members, extra, starts: 0 };
        for index in 0..this.members.len() {
            this.run(index);
        }
        this.wait_healthy();
        this
    }

    /// `HOST:PORT` of one member, for clients.
    #[must_use]
    pub fn endpoint(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.port(index, 0))
    }
    /// `etcd://...` with all members.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        let all: Vec<_> = (0..self.members.len()).map(|index| self.endpoint(index)).collect();
        format!("etcd://{}{prefix}", all.join(","))
    }
    /// Where a member keeps its data.
    #[must_use]
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("m{index}"))
    }
    /// The directory of all of it.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// How many members it has, running or not.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }
    /// Forgets all revisions up to now.
    ///
    /// # Panics
    /// When it cannot.
    pub fn compact(&self) {
        let said = self.post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#);
        let (_, rest) = said.split_once("\"revision\":\"").unwrap_or_else(|| panic!("no revision: {said}"));
        let revision = rest.split('"').next().unwrap_or_default();
        self.post("/v3/kv/compaction", &format!("{{\"revision\":\"{revision}\",\"physical\":true}}"));
    }

    fn port(&self, index: usize, kind: u16) -> u16 {
        let index = u16::try_from(index).expect("few members");
        self.ports.data_port_range().start() + index * 2 + kind
    }

    /// Starts a member that does not run.
    ///
    /// # Panics
    /// When it runs, or etcd is not installed.
    pub fn run(&mut self, index: usize) {
        assert!(self.members[index].is_none(), "member {index} runs");
        self.starts += 1;
        let peer = |index: usize| format!("http://127.0.0.1:{}", self.port(index, 1));
        let cluster: Vec<_> =
            (0..self.members.len()).map(|index| format!("m{index}={}", peer(index))).collect();
        let scheme = if self.serves_tls() { "https" } else { "http" };
        let client = format!("{scheme}://{}", self.endpoint(index));
        let log = self.dir.path().join(format!("m{index}-{}.log", self.starts));
        let log = File::create(log).expect("a log file can be created");
        let mut command: Command = tool("etcd");
        command
            .args(["--name", &format!("m{index}"), "--logger", "zap", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.data_dir(index))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer(index), "--initial-advertise-peer-urls", &peer(index)])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start etcd: {e}"));
        self.members[index] = Some(child);
    }

    fn serves_tls(&self) -> bool {
        self.extra.iter().any(|argument| argument.starts_with("--cert-file"))
    }

    /// Waits until every member that runs has a leader.
    ///
    /// # Panics
    /// When one has none in time.
    pub fn wait_healthy(&self) {
        for index in 0..self.members.len() {
            if self.members[index].is_none() || self.serves_tls() {
                continue;
            }
            eventually(60 * SECOND, "etcd is healthy", || {
                let said = self.ask(index, "GET", "/health", "")?;
                check(said.contains("\"health\":\"true\""), || said)
            });
        }
    }

    /// A request to a member's JSON gateway, by hand.
    ///
    /// # Errors
    /// When it cannot be reached, or ends in the middle.
    pub fn ask(&self, index: usize, method: &str, path: &str, body: &str) -> Result<String, String> {
        let told = |e: std::io::Error| e.to_string();
        let mut stream = TcpStream::connect(self.endpoint(index)).map_err(told)?;
        stream.set_read_timeout(Some(5 * SECOND)).map_err(told)?;
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).map_err(told)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(told)?;
        Ok(answer)
    }

    /// A `POST` to the gateway that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn post(&self, path: &str, body: &str) -> String {
        let said = self.ask(0, "POST", path, body).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(said.starts_with("HTTP/1.0 200"), "{path} {body}: {said}");
        said
    }

    /// The member that leads.
    ///
    /// # Panics
    /// When there is none in time.
    #[must_use]
    pub fn leader(&self) -> usize {
        eventually(30 * SECOND, "a leader", || {
            let leads = |index: &usize| {
                let said = self.ask(*index, "GET", "/metrics", "").unwrap_or_default();
                said.lines().any(|line| line == "etcd_server_is_leader 1")
            };
            (0..self.members.len())
                .filter(|index| self.members[*index].is_some())
                .find(leads)
                .ok_or_else(|| "nobody leads".to_owned())
        })
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].take().expect("the member runs");
        child.kill().expect("a child that was not waited for can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// SIGSTOP: its connections stay, and nothing comes from it.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }
    /// The end of [`Self::freeze`].
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }
    fn signal(&self, index: usize, how: Signal) {
        let child = self.members[index].as_ref().expect("the member runs");
        signal(i32::try_from(child.id()).expect("process numbers are small"), how);
    }

    /// Ends all members, does this to their data, and starts them again.
    pub fn with_all_down(&mut self, change: impl FnOnce(&Self)) {
        for index in 0..self.members.len() {
            if self.members[index].is_some() {
                self.kill(index);
            }
        }
        change(self);
        for index in 0..self.members.len() {
            self.run(index);
        }
        self.wait_healthy();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            // Either may fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            crate::logs::dump(self.dir.path());
        }
    }
}
