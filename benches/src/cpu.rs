//! Processor time of the serving processes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A process whose time is accounted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounted {
    /// What it does, as in the table: `engine`, `replica`.
    pub role: String,
    /// Its id.
    pub pid: i32,
}

/// Processor time that `pid` has used so far, in microseconds: of all threads, dead ones and kernel workers of its rings
/// included. By the scheduler's clock: the ticks of `/proc/PID/stat` are of 10 ms, too coarse for who is idle.
///
/// # Errors
/// When there is no such process any more.
pub fn used_us(pid: i32) -> Result<f64> {
    let used = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
    let used = used.with_context(|| format!("failed to read the processor time of process {pid}"))?;
    Ok(Duration::from(used).as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_grows_while_it_runs_until_it_is_gone() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = used_us(own).unwrap();
        // To ask takes time of its own.
        while used_us(own).unwrap() <= before {}
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(used_us(i32::try_from(child.id()).unwrap()).is_err(), "it has been waited for");
    }
}
