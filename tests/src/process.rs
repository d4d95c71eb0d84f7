//! Processes as `/proc` shows them, and commands that cannot hang.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::wait::eventually_or;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: tells a process from a later one with the same number.
    pub start_ticks: u64,
    /// Its arguments.
    pub command: Vec<String>,
}

impl Process {
    /// The process with this number, unless it is gone or only waits to be reaped.
    #[must_use]
    pub fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the name, may itself hold spaces and parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let start_ticks = fields.nth(18)?.parse().ok()?;
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = raw
            .split(|byte| *byte == 0)
            .filter(|arg| !arg.is_empty())
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect();
        Some(Self { pid, start_ticks, command })
    }
    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks)
    }
    /// Whether one of its arguments is this.
    #[must_use]
    pub fn has_argument(&self, argument: &str) -> bool {
        self.command.iter().any(|a| a == argument)
    }
    /// Resident memory, in bytes; 0 once it is gone.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }
}

/// Every process that names a path under `dir` as its program or in an argument, this one excepted.
///
/// # Panics
/// When there is no `/proc`.
#[must_use]
pub fn processes_of(dir: &Path) -> Vec<Process> {
    let needle = dir.to_string_lossy();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| *n != own) else { continue };
        let Ok(pid) = name.parse::<i32>() else { continue };
        let Some(process) = Process::find(pid) else { continue };
        let program = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let named = process.command.iter().any(|arg| arg.contains(needle.as_ref()));
        if named || program.to_string_lossy().contains(needle.as_ref()) {
            found.push(process);
        }
    }
    found
}

/// Sends a signal; a process that is gone already is fine.
///
/// # Panics
/// When the system refuses.
pub fn signal(pid: i32, signal: Signal) {
    assert!(pid > 1, "refusing to signal process {pid}");
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("cannot send {signal} to {pid}: {e}"),
    }
}

/// `kill -9`.
pub fn kill(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

/// What a command gave.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; none: ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// This, where the command succeeded.
    ///
    /// # Panics
    /// When it did not, with all it said.
    #[must_use]
    pub fn ok(self) -> Self {
        assert!(self.code == Some(0), "{self}");
        self
    }
}
impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "`{}` ended with {:?}", self.command, self.code)?;
        write!(f, "stdout: {}\nstderr: {}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// The command as a person would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A command that runs, its output being collected.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: std::thread::JoinHandle<String>,
    stderr: std::thread::JoinHandle<String>,
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let text = shown(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{text}`: {e}"));
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Self { command: text, child, stdout, stderr }
    }
    /// Its process number.
    ///
    /// # Panics
    /// Never: process numbers are small.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process numbers are small")
    }
    /// `kill -9` after so long, wherever it is by then, unless it has ended.
    pub fn kill_after(mut self, delay: Duration) {
        let ended = |child: &mut Child| child.try_wait().ok().flatten().ok_or_else(|| "it runs".to_owned());
        if eventually_or(delay, || ended(&mut self.child)).is_err() {
            // Both may fail only where it has just ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended by the deadline; it is killed then.
    #[must_use]
    pub fn finish(mut self, deadline: Duration) -> Finished {
        let ended = eventually_or(deadline, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(Some(status)),
            Ok(None) => Err("still running".to_owned()),
            Err(e) => panic!("cannot wait for `{}`: {e}", self.command),
        });
        let status = ended.unwrap_or_else(|_| {
            // Both may fail only where it has just ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
            None
        });
        let read =
            |thread: std::thread::JoinHandle<String>| thread.join().expect("the reader does not panic");
        let finished = Finished {
            code: status.and_then(|s| s.code()),
            command: self.command,
            stdout: read(self.stdout),
            stderr: read(self.stderr),
        };
        assert!(status.is_some(), "not ended within {deadline:?}: {finished}");
        finished
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started, or has not ended by the deadline.
#[must_use]
pub fn run(command: Command, deadline: Duration) -> Finished {
    Running::start(command).finish(deadline)
}

/// The built binary under test, beside the test executables.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn holdfast() -> PathBuf {
    let test = std::env::current_exe().expect("the test executable has a path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("holdfast");
    assert!(
        path.exists(),
        "{} is missing: build it first with `cargo build` (in the same profile as these tests)",
        path.display()
    );
    path
}
