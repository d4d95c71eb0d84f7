//! One process, held by a pidfd: it cannot be mistaken for a later one with the same number.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::store::instances::ProcessId;

use super::proc;

/// A process that this agent watches, and reaps where it is its child.
#[derive(Debug)]
pub struct Watched {
    pid: i32,
    fd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Watched {
    /// A child of ours. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the kernel has no pidfds, or no descriptor is left.
    pub fn child(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self { pid, fd: open(pid)?, child: Some(child) })
    }

    /// A process that an earlier agent started. The pidfd is opened first and the start time compared after, so it
    /// is a descriptor of exactly this process.
    ///
    /// # Errors
    /// When there is no such process (any more).
    pub fn adopt(process: ProcessId) -> io::Result<Self> {
        let fd = open(process.pid)?;
        let found = proc::process(process.pid);
        if found != Some(process) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("expected {process:?}, found {found:?}"),
            ));
        }
        Ok(Self { pid: process.pid, fd, child: None })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end and reaps it. Cancel safe.
    pub async fn ended(&mut self) -> String {
        loop {
            let mut guard = match self.fd.readable().await {
                Ok(guard) => guard,
                Err(error) => return format!("its end cannot be watched: {error}"),
            };
            // Never a blocking wait: should the descriptor have been ready for nothing, the runtime must go on.
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) => return told(status),
                Some(Ok(None)) => guard.clear_ready(),
                Some(Err(error)) => return format!("its exit status is lost: {error}"),
                // Another agent's child: only its parent may know.
                None => return "it ended".to_owned(),
            }
        }
    }

    /// Sends a signal to exactly this process; one that has ended is none the worse.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(self.fd.get_ref(), signal) {
            tracing::debug!(pid = self.pid, ?signal, %error, "not sent");
        }
    }
}

#[expect(
    deprecated,
    reason = "the replacement is unsafe for any descriptor; an OwnedFd keeps its own promise to stay open"
)]
fn open(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    // The number may come from a peer or a file; zero and less mean groups and everybody.
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    AsyncFd::with_interest(pidfd_open(pid, PidfdFlags::NONBLOCK)?, tokio::io::Interest::READABLE)
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn an_end_is_seen_with_its_cause() {
        for (script, cause) in [("exit 3", "exit code 3"), ("kill -9 $$", "killed by signal 9")] {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            assert_eq!(Watched::child(child).unwrap().ended().await, cause);
        }
    }

    /// Ends its process even when the test fails.
    struct Sleeper(Option<Child>);
    impl Drop for Sleeper {
        fn drop(&mut self) {
            if let Some(mut child) = self.0.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    #[tokio::test]
    async fn only_the_process_that_was_meant_is_adopted() {
        let mut sleeper = Sleeper(Some(Command::new("/bin/sleep").arg("1000").spawn().unwrap()));
        let pid = sleeper.0.as_ref().unwrap().id();
        let found = proc::process(i32::try_from(pid).unwrap()).unwrap();
        let later = ProcessId { start_time_ticks: found.start_time_ticks + 1, ..found };
        assert_eq!(Watched::adopt(later).unwrap_err().kind(), io::ErrorKind::NotFound);
        for nobody in [0, -1, i32::MAX] {
            assert!(Watched::adopt(ProcessId { pid: nobody, ..found }).is_err(), "{nobody}");
        }
        let mut adopted = Watched::adopt(found).unwrap();
        assert_eq!(adopted.pid(), found.pid);
        adopted.signal(Signal::TERM);
        assert_eq!(adopted.ended().await, "it ended");
        adopted.signal(Signal::TERM);
        let mut child = Watched { child: sleeper.0.take(), ..Watched::adopt(found).unwrap() };
        assert_eq!(child.ended().await, "killed by signal 15");
    }
}
