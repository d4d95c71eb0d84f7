//! Processor time of the serving processes, from `/proc/PID/stat`.

use std::fs;

use anyhow::{Context as _, Result};

/// Microseconds in one tick of `/proc/PID/stat`: `USER_HZ` is 100 in the kernel's interface on x86-64 and arm64.
const TICK_US: f64 = 10_000.0;

/// A process whose time is accounted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounted {
    /// What it does, as in the table: `engine`, `replica`.
    pub role: String,
    /// Its id.
    pub pid: i32,
}

/// User and system ticks in the text of `/proc/PID/stat`, of all threads, dead ones and kernel workers of its rings
/// included.
fn ticks(stat: &str) -> Option<u64> {
    // The name, field 2, is in parentheses and may hold anything; fields 14 and 15 are the 12th and 13th behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Processor time that `pid` has used so far, in microseconds.
///
/// # Errors
/// When there is no such process any more.
pub fn used_us(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let ticks = ticks(&stat).with_context(|| format!("failed to understand {path}: {stat:?}"))?;
    Ok(f64::from(u32::try_from(ticks).context("failed to count ticks")?) * TICK_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = "77 (a ) b (c) S 1 77 77 0 -1 4194560 100 0 0 0 12 30 5 6 20 0 1 0 9 1 2 3";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("77 (cut) S 1 77"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn a_process_can_be_read_until_it_is_gone() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(used_us(own).is_ok());
        assert!(used_us(i32::MAX).is_err());
    }
}
