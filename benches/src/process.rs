//! Child processes that serve while they are measured, and end with the runner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a condition is looked at that sends no event; start-up is not what is measured.
const POLL: Duration = Duration::from_millis(10);
/// How long a server may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to end: it may have much to flush.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A serving child. Dropped, it is asked to end with SIGTERM, and killed if it does not.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command`; what it says goes to a file in `dir`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("failed to start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never: Linux keeps process ids far below the limit of the type.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are positive and fit")
    }

    /// Waits until `ready` gives a value.
    ///
    /// # Errors
    /// When the process ends first, or it takes too long; the message carries what the process said.
    pub fn wait_for<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}; it said:\n{}", self.name, self.said());
            }
            if Instant::now() > deadline {
                bail!("{}: no {what} within {START_TIMEOUT:?}; it said:\n{}", self.name, self.said());
            }
            std::thread::park_timeout(POLL);
        }
    }

    /// `kill -9`: it has no chance to put anything in order.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} did not end within {STOP_TIMEOUT:?} of SIGTERM and was killed", self.name);
            }
            std::thread::park_timeout(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("failed to stop {}: {error}", self.name);
        }
    }
}

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message carries its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("failed to read what {program} said"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_dies_early_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut server =
            Server::start("early", dir.path(), Command::new("sh").args(["-c", "echo no room; exit 3"]))
                .unwrap();
        let error = server.wait_for("socket", || None::<()>).unwrap_err().to_string();
        assert!(error.contains("no room") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_server_ends_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start("sleeper", dir.path(), Command::new("sleep").arg("1000")).unwrap();
        let pid = Pid::from_raw(server.pid());
        assert!(kill(pid, None).is_ok());
        drop(server);
        assert!(kill(pid, None).is_err());
    }

    #[test]
    fn a_failed_command_says_why() {
        let error =
            output(Command::new("sh").args(["-c", "echo broken >&2; exit 1"])).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
    }
}
