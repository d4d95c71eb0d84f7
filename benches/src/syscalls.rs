//! System calls of the serving processes, counted in a short run of their own: counting slows what is counted.
//!
//! `perf stat` counts them in the kernel; where it may not, `strace -c` stops the process at each, which changes how fast
//! it is and hardly how many calls an operation takes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::cpu::Accounted;
use crate::fio::{self, Run};
use crate::process;

/// The kernel's trace point at the entry of each call.
const EVENT: &str = "raw_syscalls:sys_enter";
/// How long strace may take to attach.
const ATTACHES_WITHIN: Duration = Duration::from_secs(10);
/// How often is looked whether it has.
const POLL: Duration = Duration::from_millis(5);

/// Who counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel, asked by `perf stat`.
    Perf,
    /// `strace -c`.
    Strace,
}

impl Source {
    /// Its command.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf stat",
            Self::Strace => "strace -c",
        }
    }
}

/// Who can count here.
///
/// # Errors
/// With the reason why nobody can.
pub fn source() -> Result<Source, String> {
    let perf = try_perf();
    let strace = process::output(Command::new("strace").args(["-c", "-o", "/dev/null", "true"]));
    match (perf, strace) {
        (Ok(()), _) => Ok(Source::Perf),
        (Err(_), Ok(_)) => Ok(Source::Strace),
        (Err(perf), Err(strace)) => Err(format!(
            "neither perf (package linux-perf; {perf:#}) nor strace (package strace; {strace:#}) can count here"
        )),
    }
}

fn try_perf() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("perf");
    process::output(perf(&file).arg("true"))?;
    let said = std::fs::read_to_string(&file)?;
    perf_count(&said).map(drop)
}

fn perf(file: &Path) -> Command {
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", EVENT, "-o"]).arg(file);
    command
}

/// Runs the job while the calls of `processes` are counted: what fio said, and the calls of each.
///
/// # Errors
/// When something cannot be counted, or the job fails.
pub fn counted(source: Source, processes: &[Accounted], run: &Run<'_>) -> Result<(Value, Vec<f64>)> {
    let file_of = |process: &Accounted| run.dir.join(format!("syscalls-{}", process.pid));
    match source {
        Source::Perf => {
            // Each is the command of the one before: all count just as long as fio runs.
            let mut before: Vec<String> = Vec::new();
            for process in processes {
                let command = perf(&file_of(process));
                before.push("perf".to_owned());
                before.extend(command.get_args().map(|word| word.display().to_string()));
                before.extend(["-p".to_owned(), process.pid.to_string(), "--".to_owned()]);
            }
            let said = fio::run_under(&before, run)?;
            let counts = processes
                .iter()
                .map(|process| perf_count(&read(&file_of(process))?))
                .collect::<Result<_>>()?;
            Ok((said, counts))
        }
        Source::Strace => {
            let mut tracers = Vec::new();
            for process in processes {
                tracers.push(Tracer::attach(process.pid, file_of(process))?);
            }
            let said = fio::run_under(&[], run);
            let counts = tracers.into_iter().map(Tracer::detach).collect::<Result<Vec<_>>>()?;
            Ok((said?, counts))
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

/// `COUNT,,raw_syscalls:sys_enter,...`, or words in place of the count.
fn perf_count(said: &str) -> Result<f64> {
    let line = said.lines().find(|line| line.contains(EVENT)).context("perf counted nothing")?;
    let first = line.split(',').next().unwrap_or_default();
    match first {
        // Nothing of it ran meanwhile.
        "<not counted>" => Ok(0.0),
        count => count.parse().with_context(|| format!("perf says {line:?}")),
    }
}

/// The calls in the line of `strace -c` with the sums: the fourth column, before the errors where there are any.
fn strace_count(said: &str) -> Result<f64> {
    let total = said.lines().find(|line| line.trim_end().ends_with(" total"));
    // A process that made none has no table.
    let Some(total) = total else { return Ok(0.0) };
    let count = total.split_whitespace().nth(3);
    count.and_then(|count| count.parse().ok()).with_context(|| format!("strace says {total:?}"))
}

/// A `strace` that counts one process with its threads.
#[derive(Debug)]
struct Tracer {
    child: Child,
    file: PathBuf,
}

impl Tracer {
    fn attach(pid: i32, file: PathBuf) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-o"]).arg(&file).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("failed to start strace")?;
        let mut tracer = Self { child, file };
        let deadline = Instant::now() + ATTACHES_WITHIN;
        while !is_traced(pid) {
            if let Some(status) = tracer.child.try_wait()? {
                bail!("strace may not look at process {pid} ({status}): run this as root");
            }
            if Instant::now() > deadline {
                bail!("strace does not attach to process {pid} within {ATTACHES_WITHIN:?}");
            }
            std::thread::park_timeout(POLL);
        }
        Ok(tracer)
    }

    fn detach(mut self) -> Result<f64> {
        let pid = i32::try_from(self.child.id()).context("a process id does not fit")?;
        kill(Pid::from_raw(pid), Signal::SIGINT)?;
        self.child.wait()?;
        strace_count(&read(&self.file)?)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of a process is traced.
fn is_traced(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        std::fs::read_to_string(task.path().join("status"))
            .is_ok_and(|status| !status.lines().any(|line| line == "TracerPid:\t0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tools_are_understood() {
        let perf = "# started on Sat Nov 28\n\n47182,,raw_syscalls:sys_enter,2004821,100.00,,\n";
        assert_eq!(perf_count(perf).unwrap(), 47_182.0);
        assert_eq!(perf_count("<not counted>,,raw_syscalls:sys_enter,0,100.00,,").unwrap(), 0.0);
        assert!(perf_count("<not supported>,,raw_syscalls:sys_enter,0,100.00,,").is_err());
        assert!(perf_count("").is_err());

        let strace = "% time     seconds  usecs/call     calls    errors syscall\n------ -----------\n\
                      86.49    0.000032          32      4711         3 io_uring_enter\n\
                      100.00    0.000037          12      4713         3 total\n";
        assert_eq!(strace_count(strace).unwrap(), 4713.0);
        assert_eq!(strace_count("100.00    0.000037          12      4713           total").unwrap(), 4713.0);
        assert_eq!(strace_count("").unwrap(), 0.0);
    }
}
